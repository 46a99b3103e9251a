"""Training of the graph module: a linear start, then steps that predict held-out molecules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from cellvq import InputError
from cellvq.graphattention import GraphConfig, GraphNetwork, gather, log_likelihood
from cellvq.graphtokens import Tokens, Vocabulary
from cellvq.objective import LIKELIHOOD_WEIGHT
from cellvq.optimize import reproducible

DROPPED = (0.3, 0.3, 0.1, 0.1)
"""Share of the tokens of each kind (genes, annotations, neighbours, pairs) that a step hides."""
PRIOR = 40.0
"""Precision of the prior of a slope; a gene of so many molecules has its slope halved."""
GATES = (0.0, 0.25, 0.5, 0.75)
"""How far cell vectors may be moved to their neighbours at the start, of which the best is kept."""
MOST_FITTED = 4000
"""Cells to which the linear start is fitted, at the most."""
FIXED = 0.6
"""Share of the training after which codes are placed on the cells, and stay."""
AT_ONCE = 512
"""Cells that are looked at together outside of training."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained graph module."""

    network: GraphNetwork
    """The weights, in evaluation mode."""
    vocabulary: Vocabulary
    """What its tokens mean."""
    history: pd.DataFrame
    """One row a report, with ``step`` and ``loss`` (of the cells of that step)."""


def train(
    made: Tokens, config: GraphConfig | None = None, *, held_out: np.ndarray | None = None,
    init: Trained | None = None, progress: Callable[[dict], None] | None = None,
) -> Trained:
    """Train the graph module to predict held-out molecules from a vector and from its code.

    Args:
        made: tokens of dealt cells, :func:`cellvq.graphtokens.tokens`.
        config: numbers of the module and its training; None: the defaults of
            :class:`cellvq.graphattention.GraphConfig`.
        held_out: cells that are not learnt from, [cells] bool; the vocabulary must not have learnt
            from them either.
        init: a trained module to go on from, of the same vocabulary.
        progress: called with each row of the history.

    Raises:
        InputError: there are too few cells, or ``init`` is another module.

    Example:
        >>> from cellvq import graphtokens
        >>> from cellvq.simulate import simulate_cells, truth
        >>> cells = simulate_cells(cells=200)
        >>> pairs, cells = truth(cells)["communication"], graphtokens.deal(cells)
        >>> words = graphtokens.learn(cells, genes=80, width=8, pairs=pairs)
        >>> made = graphtokens.tokens(cells, words, genes=8)
        >>> run = train(made, GraphConfig(width=16, codes=8, prefixes=(), steps=5))
        >>> run.history["loss"].notna().all()
        np.True_
    """
    config = config or GraphConfig()
    held_out = np.zeros(len(made.features), bool) if held_out is None else held_out
    cells = np.flatnonzero(~held_out)
    if len(cells) <= config.codes:
        raise InputError(f"{len(cells)} training cells for {config.codes} codes: use fewer codes")
    rng = np.random.default_rng([config.seed, 47])
    with reproducible():
        torch.manual_seed(config.seed)
        network = GraphNetwork(config, made.vocabulary)
        if init is None:
            _warm_start(network, made, cells)
        else:
            _go_on(network, made, init)
        optimizer = _optimizer(network)
        rows, order = [], np.zeros(0, int)
        fixed = int(FIXED * config.steps)
        for step in range(config.steps):
            network.train()
            if step == fixed:  # from here on the decoder gets used to codes that stay
                place = network.quantizer.settle if init else network.quantizer.start
                place(vectors_of(network, made, cells), config.seed)
                network.quantizer.held = True
                network.train()
            done = (step + 1) / config.steps
            rate = min(step / max(0.05 * config.steps, 1), (1 + np.cos(np.pi * done)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["times"] * config.learning_rate
            while len(order) < min(config.batch_size, len(cells)):
                order = np.concatenate([order, rng.permutation(cells)])
            now, order = order[: config.batch_size], order[config.batch_size :]
            loss = _loss(network, made, now, rng, done)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % max(config.steps // 10, 1) == 0:
                rows.append({"step": step + 1, "loss": float(loss.detach())})
                if progress:
                    progress(rows[-1])
    return Trained(network.eval(), made.vocabulary, pd.DataFrame(rows))


def neighbours_mean(made: Tokens) -> np.ndarray:
    """Return the plain mean vector of each cell's neighbours, or its own where it has none.

    Args:
        made: tokens.
    """
    there = made.neighbour >= 0
    near = (made.vocabulary.reference[made.neighbour] * there[..., None]).sum(1)
    near = near / np.maximum(there.sum(1), 1)[:, None]
    return np.where(there.any(1)[:, None], near, made.features).astype(np.float32)


@torch.no_grad()
def vectors_of(network: GraphNetwork, made: Tokens, cells: np.ndarray) -> Tensor:
    """Return the vectors of cells with all their tokens, [cells, vector width].

    Args:
        network: the module; set to evaluation mode.
        made: tokens.
        cells: which cells.
    """
    network.eval()
    parts = np.array_split(cells, len(cells) // AT_ONCE + 1)
    return torch.cat([network(*gather(made, part)).vectors for part in parts])


@torch.no_grad()
def likelihood(
    network: GraphNetwork, made: Tokens, rows: np.ndarray, keep: Tensor | None = None
) -> pd.DataFrame:
    """Return how well the held-out molecules of cells are predicted.

    Args:
        network: the module.
        made: tokens of dealt cells.
        rows: which cells.
        keep: which of their tokens are shown, [cells, tokens] bool; None: all.

    Returns:
        One row a cell: ``cell`` (its number), ``vector`` and ``code`` (log likelihood of its
        counts over the panel, nats, from the vector before and after the quantiser), ``number``
        (of the code).
    """
    network.eval()
    found = []
    for places in np.array_split(np.arange(len(rows)), len(rows) // AT_ONCE + 1):
        part = rows[places]
        batch, there = gather(made, part)
        there = there if keep is None else there & keep[torch.from_numpy(places)]
        vectors = network(batch, there).vectors
        coded = network.quantizer(vectors)
        depth = torch.from_numpy(made.depth[part])
        said = [log_likelihood(network.predict(v, depth), made.target[part]).double().numpy()
                for v in (vectors, coded.vectors)]
        found.append(pd.DataFrame({"cell": part, "vector": said[0], "code": said[1],
                                   "number": coded.codes.numpy()}))
    return pd.concat(found, ignore_index=True)


def _optimizer(network: GraphNetwork) -> torch.optim.AdamW:
    """Make AdamW with three rates: what starts at a fit is slow, or rare genes would wander."""
    named = dict(network.named_parameters())
    fitted = [named.pop(f"decoder.{name}") for name in ("queries", "log_rate", "log_dispersion")]
    gate = [named.pop("gate")]
    return torch.optim.AdamW([
        {"params": list(named.values()), "weight_decay": 0.01, "times": 1.0},
        {"params": fitted, "weight_decay": 0.0, "times": 0.3},
        {"params": gate, "weight_decay": 0.0, "times": 3.0}])


def _go_on(network: GraphNetwork, made: Tokens, init: Trained) -> None:
    ours, theirs = made.vocabulary, init.vocabulary
    if (ours.genes, ours.pairs, ours.annotations) != (theirs.genes, theirs.pairs,
                                                      theirs.annotations):
        raise InputError("init has other tokens: make these with its vocabulary")
    try:
        network.load_state_dict(init.network.state_dict())
    except RuntimeError as error:
        raise InputError("init has another configuration: go on with its own") from error


def _loss(
    network: GraphNetwork, made: Tokens, cells: np.ndarray, rng: np.random.Generator, done: float
) -> Tensor:
    """Return what a step asks for: held-out counts from the vector and from the code."""
    batch, keep = gather(made, cells)
    widths = [batch[name].shape[1] for name in ("gene", "annotation", "neighbour", "pair")]
    hidden = np.repeat([0.0, *DROPPED], [1, *widths])
    keep = keep & torch.from_numpy(rng.random(keep.shape) >= hidden)
    vectors = network(batch, keep).vectors
    coded = network.quantizer(vectors, done)
    counts, depth = made.target[cells], torch.from_numpy(made.depth[cells])
    told = (vectors, coded.vectors) if network.quantizer.held else (vectors,)
    said = sum(log_likelihood(network.predict(v, depth), counts).mean() for v in told)
    return coded.loss - LIKELIHOOD_WEIGHT * said / counts.shape[1]


@torch.no_grad()
def _warm_start(network: GraphNetwork, made: Tokens, cells: np.ndarray) -> None:
    """Start decoder, gate and gene embedding at a linear fit of held-out molecules on vectors."""
    cells = cells[:: -(-len(cells) // MOST_FITTED)]
    target, depth, own = made.target[cells], made.depth[cells], made.features[cells]
    if made.neighbour.shape[1]:
        near = neighbours_mean(made)[cells]
        gate = _gate(network, own, near, target, depth)
        network.gate.fill_(gate)
        own = own + gate * (near - own)
    fitted = _fit(own, target, depth)
    _set_decoder(network, *fitted)
    slope = fitted[0]
    columns = min(slope.shape[1], network.config.width)
    unit = np.sqrt((slope[:, :columns] ** 2).mean()) + 1e-9
    network.gene.weight[:, :columns] = torch.from_numpy(0.5 * slope[:, :columns] / unit).float()


def _gate(
    network: GraphNetwork, own: np.ndarray, near: np.ndarray, target: csr_matrix, depth: np.ndarray
) -> float:
    """Return how far vectors are moved to their neighbours: what serves cells not fitted to best.

    The linear decoder is fitted on one half of the training cells and judged on the other.
    """
    cells = slice(None, None, -(-len(own) // (MOST_FITTED // 2)))
    own, near, target, depth = own[cells], near[cells], target[cells], depth[cells]
    one, other, scores = slice(0, None, 2), slice(1, None, 2), []
    for gate in GATES:
        moved = own + gate * (near - own)
        moved = moved / moved.std(0).clip(1e-6)  # else the prior would favour the shorter vectors
        _set_decoder(network, *_fit(moved[one], target[one], depth[one], rounds=5))
        said = network.predict(torch.from_numpy(moved[other]).float(),
                               torch.from_numpy(depth[other]))
        scores.append(float(log_likelihood(said, target[other]).sum()))
    return GATES[int(np.argmax(scores))]


def _set_decoder(
    network: GraphNetwork, slope: np.ndarray, log_rate: np.ndarray, dispersion: np.ndarray
) -> None:
    network.decoder.queries.copy_(torch.from_numpy(slope))
    network.decoder.log_rate.copy_(torch.from_numpy(log_rate))
    network.profile.copy_(torch.from_numpy(np.exp(log_rate) / 1e4))
    start = torch.from_numpy(np.clip(dispersion, 0.05, 50))  # the inverse of softplus
    network.decoder.log_dispersion.copy_(start.expm1().log())


def _fit(
    vectors: np.ndarray, target: csr_matrix, depth: np.ndarray, rounds: int = 8
) -> tuple:
    """Return the slopes of a Poisson regression on vectors, rates without them, and dispersions.

    Newton's method with the curvature at the mean profile, the same for all genes; a gene whose
    likelihood falls goes back and takes half the step. Slopes are drawn to nothing as by a prior.

    Returns:
        Slopes, [panel, width], log of the rate per 10,000 molecules, and dispersion, [panel] each.
    """
    z, depth = np.pad(vectors.astype(float), ((0, 0), (0, 1)), constant_values=1.0), depth + 0.0
    rate = (np.asarray(target.sum(0)).ravel() + 0.5) / depth.sum()
    curve, axes = np.linalg.eigh(z.T @ (depth[:, None] * z))
    inverse = 1 / (rate[:, None] * curve + PRIOR)  # of the curvature, along its axes
    best = slope = np.zeros((len(rate), z.shape[1]))
    record, step, gradient = np.full(len(rate), -np.inf), np.full(len(rate), 2.0), 0.0
    for _ in range(rounds):
        log_mean = np.clip(z @ slope.T, -8, 4)
        mean = (depth[:, None] * rate) * np.exp(log_mean)
        said = np.asarray(target.multiply(log_mean).sum(0)).ravel() - mean.sum(0)
        said -= PRIOR / 2 * (slope**2).sum(1)
        better = (said > record)[:, None]
        new = target.T @ z - mean.T @ z - PRIOR * slope
        gradient, best = np.where(better, new, gradient), np.where(better, slope, best)
        record = np.maximum(record, said)
        step = np.where(better[:, 0], np.minimum(step * 1.5, 1.0), step / 2)
        slope = best + step[:, None] * ((gradient @ axes * inverse) @ axes.T)
    mean = (depth[:, None] * rate) * np.exp(np.clip(z @ best.T, -8, 4))
    squares = np.asarray(target.multiply(target - 2 * mean).sum(0)).ravel() + (mean**2).sum(0)
    excess = squares - mean.sum(0)  # of the variance over that of Poisson counts
    dispersion = (mean**2).sum(0) / np.maximum(excess, 1e-9)
    return best[:, :-1], np.log(rate * 1e4) + best[:, -1], dispersion
