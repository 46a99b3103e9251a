"""A trained model goes on with cells it was not made for: what it knows is carried over by gene.

Whether its linear path and panel serve the new cells, or a path of their own would serve better, is
decided by the cells (`keeps_path`). With a few hundred cells of a tissue that the model knows, its
path is the better one; with thousands, or another tissue, theirs. A path that is kept leaves out
what sets the new batches apart, and the codebook that goes with it stays where it is.
What is always carried over is what the model has learnt of genes and of how they go together: the
embeddings of genes and values, the transformer, and the view it takes of a cell.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from cellvq import InputError
from cellvq.corpus import Corpus
from cellvq.model import CellVQ
from cellvq.objective import (
    CLIP,
    WARM_CELLS,
    deal,
    group_means,
    log_values,
    shared_shifts,
    warm_start,
)

CARRIED = ("value_embedding.", "layers.", "norm.", "cell_vector.norm.", "cell_vector.view.",
           "cell_vector.gate", "decoder.into_bend.")
"""Parts that know no gene by its number, and so serve any panel."""
RIDGE = 1e-2
"""Share of an axis' mean square that is added before unknown genes are placed by regression."""
JUDGED_CELLS = 3000
"""At most so many training cells decide whether the linear path is kept."""
JUDGED_GENES = 300
"""At most so many genes, those of the largest variance, are predicted for it."""
FOLDS = 3
"""Parts of the cells that are predicted in turn."""


@torch.no_grad()
def keeps_path(source: CellVQ, corpus: Corpus, known: Corpus) -> bool:
    """Say whether a trained model's linear path tells more of new cells than one fitted to them.

    The molecules of each cell are dealt into two halves. From the vector of one half, the other is
    predicted by a ridge regression, for cells that neither the regression nor the fitted path has
    seen. The path that predicts more is the better one; no label is looked at.

    Args:
        source: the trained model.
        corpus: the new cells with a panel of their own; only training cells are looked at.
        known: the same cells with the panel of the model.
    """
    rng = np.random.default_rng(0)
    cells = rng.permutation(corpus.train)[:JUDGED_CELLS]
    if len(cells) < 10 * FOLDS:
        return True  # too few to fit anything to
    others = np.flatnonzero(~np.isin(known.panel, corpus.panel))
    whole = scipy.sparse.hstack([corpus.counts[cells], known.counts[cells][:, others]]).tocsr()
    names = [*corpus.panel, *np.asarray(known.panel)[others]]
    first, second = deal(whole, rng)
    own, half = len(corpus.panel), corpus.depth[cells] / 2
    theirs = first[:, [names.index(gene) for gene in known.panel]]
    batch = corpus.batch[cells]
    wanted = log_values(second[:, :own], half)
    wanted = wanted[:, np.argsort(-_variance(wanted), kind="stable")[:JUDGED_GENES]].toarray()
    wanted = _centred(wanted, batch) / (np.sqrt(_variance(wanted)) + 0.05)
    wanted = np.clip(wanted, -CLIP, CLIP)
    kept, gains = _path(source, theirs, half, batch), []
    for seen, unseen in KFold(FOLDS).split(cells):
        fresh = CellVQ(source.config, corpus.panel, corpus.batches)
        warm_start(fresh, dataclasses.replace(corpus, train=np.sort(cells[seen])))
        fitted = _path(fresh, first[:, :own], half, batch)
        wrong = []
        for vectors in (kept, fitted):
            way = RidgeCV(len(seen) * np.logspace(-3, 2, 6)).fit(vectors[seen], wanted[seen])
            wrong.append(((wanted[unseen] - way.predict(vectors[unseen])) ** 2).mean())
        gains.append(wrong[1] - wrong[0])
    return float(np.mean(gains)) > 0


@torch.no_grad()
def leave_out_batches(model: CellVQ, corpus: Corpus) -> None:
    """Take out of a kept linear path what sets the new batches apart within groups of like cells.

    The warm start does the same for a path of its own; a kept one has not seen these batches.

    Args:
        model: the model with its panel; its linear path is changed in place.
        corpus: the new cells with that panel.
    """
    cells = corpus.train[:WARM_CELLS]
    batch, path = corpus.batch[cells], model.cell_vector
    if len(np.unique(batch)) < 2:
        return
    ceiling = path.ceiling.cpu().numpy().astype(float)
    scale = CLIP / np.maximum(ceiling - path.mean.cpu().numpy(), 1e-6)
    values = log_values(corpus.counts[cells], corpus.depth[cells], ceiling)
    known = path.components.cpu().numpy() / scale[:, None]
    axes = known
    for attempt in range(2):
        left_out = shared_shifts(values, scale, axes, batch, attempt)
        axes = known - left_out.T @ (left_out @ known)
    path.components.copy_(torch.as_tensor(scale[:, None] * axes))


def _path(model: CellVQ, counts, depth: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return the vectors of a model's linear path, around the mean of each batch, at unit scale."""
    path = model.cell_vector
    values = log_values(counts, depth, path.ceiling.cpu().numpy())
    vectors = _centred(values @ path.components.detach().cpu().numpy(), batch)
    return vectors / max(np.sqrt((vectors**2).mean()), 1e-9)


def _centred(values: np.ndarray, batch: np.ndarray) -> np.ndarray:
    means, _ = group_means(scipy.sparse.csr_matrix(values), batch)
    return values - means[np.unique(batch, return_inverse=True)[1]]


def _variance(values) -> np.ndarray:
    values = scipy.sparse.csr_matrix(values)
    mean = np.asarray(values.mean(0)).ravel()
    return np.maximum(np.asarray(values.multiply(values).mean(0)).ravel() - mean**2, 0)


def require_shared(source: CellVQ, panel: list[str]) -> None:
    """Refuse genes of which a trained model knows none.

    Raises:
        InputError: the names are of another kind, or of another species.
    """
    if not set(source.panel) & set(panel):
        raise InputError(
            f"none of the {len(panel):,} genes learnt from these cells (such as "
            f"{panel[0]!r}) is among the {len(source.panel):,} of the model "
            f"(such as {source.panel[0]!r}); give symbols where it has symbols, or a gene table"
        )


@torch.no_grad()
def carry_genes(source: CellVQ, target: CellVQ) -> list[str]:
    """Carry tokens and transformer of a model over to one with another panel.

    A gene that the source does not know is placed among those that vary as it does, by regressing
    the embeddings of the known genes on the loadings that the warm start gave to all.

    Args:
        source: a trained model.
        target: a model of the same configuration after its warm start; changed in place.

    Returns:
        The genes that both know.

    Raises:
        InputError: there is none.
    """
    number = {gene: place for place, gene in enumerate(source.panel)}
    here = [place for place, gene in enumerate(target.panel) if gene in number]
    require_shared(source, target.panel)
    there = [number[target.panel[place]] for place in here]
    state = target.state_dict()
    state |= {name: value for name, value in source.state_dict().items()
              if name.startswith(CARRIED)}
    target.load_state_dict(state)
    table, learnt = target.gene_embedding.weight, source.gene_embedding.weight.to(target.device)
    loadings = target.cell_vector.components
    gram = loadings[here].T @ loadings[here]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    way = torch.linalg.solve(gram, loadings[here].T @ learnt[there])
    table[: len(target.panel)] = loadings @ way
    table[here] = learnt[there]
    table[-3:] = learnt[-3:]  # T, S and padding
    return [target.panel[place] for place in here]
