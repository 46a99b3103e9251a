"""Denoising: who predicts best the molecules of a cell that nobody has shown?

Each cell's molecules are dealt, nine of ten to the methods and one of ten to the judge (molecular
cross-validation, doi 10.1101/786269; binomial thinning keeps both parts independent, doi
10.1093/biostatistics/kxac047). A method gives the expected counts of the held-out part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from scipy import sparse, special
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from cellvq import baselines, contenders, evaluate, joined, loader, sources
from cellvq.annotation import failed
from cellvq.annotation import joined as join_results
from cellvq.contenders import Budget
from cellvq.entries import Benchmarked, Results, subset
from cellvq.model import CellVQ
from cellvq.pretraining import pretrain

SHOWN = 0.9
"""Share of the molecules that methods see."""
TASK, PROTOCOL = "denoising", "one of ten molecules held out"
PROTOCOLS = {
    PROTOCOL: "Binomial thinning; losses per 1,000 of the most variable genes: Poisson, negative "
              "binomial (the same overdispersion for all methods), and the mean squared error of "
              "log values at the held-out depth. Every method's rates are mixed with 5 % of the "
              "mean profile.",
}
"""What the protocol does."""
COMPONENTS, NEIGHBOURS = 20, 15
"""Of the two simple rivals."""
LEAST_RATE = 1e-6
"""No gene is taken as impossible; its least share of a cell's molecules."""
SHRUNK = 0.05
"""Share of the mean profile that is mixed into the rates of every method, as some say zero where
they have seen nothing, and one molecule would then decide."""
BLOCK = 1024
"""Cells that are judged at once."""
OTHERS = "PCA reconstruction of other cells"
"""The control, what it costs to be told of the wrong cell."""
Rates = Callable[[Benchmarked, np.ndarray, int, Budget], Iterator[tuple[str, np.ndarray]]]
"""From thinned data and positions of genes to each method's share of a cell's molecules."""


def denoising(data: Benchmarked, *, seed: int = 0, budget: Budget | None = None) -> Results:
    """Judge what methods expect of held-out molecules, those of CellVQ beside simple ones.

    Args:
        data: cells with raw counts; no labels are used.
        seed: seed of the thinning and of the methods.
        budget: training of scVI and CellVQ; the same as elsewhere in the benchmark.

    Returns:
        Losses of each cell and method, lower is better.
    """
    budget = budget or Budget()
    rng = np.random.default_rng([seed, 19])
    shown = data.cells.X.copy()
    shown.data = rng.binomial(shown.data.astype(np.int64), SHOWN).astype(np.float32)
    held = sparse.csr_matrix(data.cells.X - shown)
    shown.eliminate_zeros()
    thinned = subset(data, np.arange(data.cells.n_obs), shown)
    genes = baselines.variable_genes(thinned)
    depth = thinned.depth * (1 - SHOWN) / SHOWN
    keep = np.flatnonzero((depth > 0) & (np.diff(shown.indptr) > 0))
    judge = _Judge(thinned, held[:, genes], depth, keep, genes)
    found = []
    for names, make in METHODS.items():
        if make is _scvi and not budget.networks:
            continue
        try:
            for name, rates in make(thinned, genes, seed, budget):
                found.append(Results(losses=judge.losses(rates, name, seed)))
        except Exception as error:  # the others are judged all the same
            found += [failed(TASK, name, seed, contenders.why(error)) for name in names]
    return join_results(found)


class _Judge:
    """Scores expected against held-out counts of the variable genes."""

    def __init__(self, data, held, depth, keep, genes) -> None:
        self.held, self.depth, self.keep = held, depth, keep
        counts, exposure = data.cells.X[:, genes], data.depth
        rate = np.asarray(counts.sum(0)).ravel() / exposure.sum()
        self.profile = rate
        # Moments over the shown molecules: variance = mean + mean^2 / dispersion.
        extra = np.asarray(counts.multiply(counts).sum(0)).ravel() - rate * exposure.sum()
        squares = rate**2 * (exposure**2).sum()
        self.dispersion = np.clip(squares / np.maximum(extra - squares, 1e-2 * squares + 1e-12),
                                  1e-2, 1e2)

    def losses(self, rates: np.ndarray, method: str, seed: int) -> pd.DataFrame:
        """Losses of each cell; ``rates`` is the share of a cell's molecules, [cells, genes]."""
        found = {"poisson": [], "negative_binomial": [], "squared_error": []}
        for part in np.array_split(self.keep, len(self.keep) // BLOCK + 1):
            mixed = (1 - SHRUNK) * rates[part] + SHRUNK * self.profile
            mean = np.maximum(mixed, LEAST_RATE) * self.depth[part, None]
            counts, r = self.held[part].toarray().astype(np.float64), self.dispersion
            found["poisson"].append((mean - special.xlogy(counts, mean)
                                     + special.gammaln(counts + 1)).mean(1))
            total = np.log(r + mean)
            likelihood = (r * (np.log(r) - total) + counts * (np.log(mean) - total)
                          + special.gammaln(counts + r) - special.gammaln(r)
                          - special.gammaln(counts + 1))
            found["negative_binomial"].append(-likelihood.mean(1))
            found["squared_error"].append(((np.log1p(counts) - np.log1p(mean)) ** 2).mean(1))
        return pd.concat([pd.DataFrame({
            "task": TASK, "protocol": PROTOCOL, "method": method, "seed": seed,
            "cell": self.keep, "metric": name, "value": 1000 * np.concatenate(values),
        }) for name, values in found.items()], ignore_index=True)


def _simple(
    data: Benchmarked, genes: np.ndarray, seed: int, budget: Budget
) -> Iterator[tuple[str, np.ndarray]]:
    """The mean profile, PCA's reconstruction, its control, and the mean of like cells."""
    counts, cells = data.cells.X[:, genes], data.cells.n_obs
    share = np.asarray(counts.sum(0)).ravel() / data.depth.sum()
    yield "mean profile", np.broadcast_to(share, (cells, len(genes)))
    values = evaluate.log_normalise(counts, data.depth).toarray()
    with threadpool_limits(1):
        number = min(COMPONENTS, min(values.shape) - 1)
        fitted = PCA(number, svd_solver="arpack", random_state=seed)
        vectors = fitted.fit_transform(values)
        back = fitted.inverse_transform(vectors)
    # The mean of logarithms is not the logarithm of the mean: bring each gene back to its share.
    rates = np.maximum(np.expm1(back), 0) / 1e4
    rates *= share / np.maximum(np.average(rates, axis=0, weights=data.depth), 1e-12)
    yield "PCA reconstruction", rates
    yield OTHERS, rates[np.random.default_rng([seed, 23]).permutation(cells)]
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, cells)).fit(vectors)
    graph = near.kneighbors_graph(vectors)
    totals = np.maximum(np.asarray(graph @ data.depth[:, None]), 1)
    yield "kNN smoothing", np.asarray((graph @ counts).todense()) / totals


def _scvi(
    data: Benchmarked, genes: np.ndarray, seed: int, budget: Budget
) -> Iterator[tuple[str, np.ndarray]]:
    """scVI's expected frequencies, of the same genes and in each cell's own batch."""
    model, _ = baselines.scvi_model(data, seed, epochs=budget.epochs)
    with baselines.quiet(seed):
        share = np.asarray(model.get_normalized_expression(return_numpy=True), dtype=np.float64)
    kept = np.asarray(data.cells.X[:, genes].sum(1)).ravel() / data.depth
    yield "scVI", share * kept[:, None]


def _cellvq(
    data: Benchmarked, genes: np.ndarray, seed: int, budget: Budget
) -> Iterator[tuple[str, np.ndarray]]:
    """The trained model, gone on with the shown molecules, from its vectors and its codes."""
    run = pretrain(data.cells, init=budget.init, panel=list(data.cells.var_names[genes]),
                   codes=contenders.CODES, batch=data.batch, donor=data.donor, seed=seed,
                   progress=False, **budget.training())
    vector, code = _expected(run.model, data)
    yield "CellVQ, from the vector", vector
    yield "CellVQ, from the code", code


@torch.no_grad()
def _expected(model: CellVQ, data: Benchmarked) -> tuple[np.ndarray, np.ndarray]:
    """Each gene's expected share of a cell's molecules, [cells, panel], decoded both ways."""
    matrix, depth, _ = joined.Joined([sources.Memory(data.cells)], model.panel).read(
        [range(data.cells.n_obs)])
    names = {name: number for number, name in enumerate(model.batches)}
    batch = np.array([names.get(name, -1) for name in data.column(data.batch)])
    genes, found = model.gene_table()[: len(model.panel)], ([], [])
    for rows in np.array_split(np.arange(len(depth)), len(depth) // BLOCK + 1):
        made = loader.make_batch(matrix[rows], depth[rows], batch[rows]).to(model.device)
        summary = model.encode(made).summary
        for part, vectors in zip(found, (summary, model.quantizer(summary).vectors), strict=True):
            said = model.decoder(vectors, made.depth, made.batch, genes)
            kept = 1 if said.dropout_logit is None else torch.sigmoid(-said.dropout_logit)
            part.append((said.mean * kept / made.depth[:, None]).double().cpu().numpy())
    return tuple(np.concatenate(part) for part in found)


METHODS: dict[tuple[str, ...], Rates] = {
    ("mean profile", "PCA reconstruction", OTHERS, "kNN smoothing"): _simple,
    ("scVI",): _scvi,
    ("CellVQ, from the vector", "CellVQ, from the code"): _cellvq,
}
"""What makes the rates of each method."""
