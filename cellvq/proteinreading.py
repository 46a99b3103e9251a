"""Read proteins from codes of the RNA, beside PCA and chance, in cells that were held out.

A cell's proteins are predicted from what was made of its RNA, by ridge regression fitted to other
cells. All readings get the same folds, penalties and tuning, and what differs between batches is
taken out of both sides first. Verdicts on what is read are in :mod:`cellvq.proteinverdicts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut
from threadpoolctl import threadpool_limits

from cellvq import InputError, baselines, entries, evaluate, genes, tasks
from cellvq.markers import CODE, cut
from cellvq.proteins import strata_of, within

if TYPE_CHECKING:
    from anndata import AnnData

DEPTH, SHUFFLED = "depth alone", "shuffled code"
UNSCALED = "unscaled PCA"
KMEANS, KMEANS_UNSCALED, CODES = "k-means on PCA", f"k-means on {UNSCALED}", "CellVQ code"
VECTOR, NARROW, PCA = "CellVQ vector", "PCA, as wide as CellVQ", "PCA"
BASE = "PCA and depth"
PENALTIES = np.logspace(-4, 1, 11)
"""Ridge penalties tried, by the number of training cells; every block of inputs has variance 1."""
WEIGHTS = (0.3, 1.0, 3.0)
"""Weights tried for a code that stands beside PCA."""


@dataclass(frozen=True)
class Reading:
    """What every method left unread of each protein in cells that it was not fitted to."""

    values: pd.DataFrame
    """Proteins, [cells, proteins], mean 0 and variance 1 in each batch."""
    left: dict[str, np.ndarray]
    """Value less prediction for each method, [seeds, cells, proteins]."""
    held_out: str
    """What was held out, in words."""


def plus(code: str) -> str:
    """Name of the reading that has PCA and depth, and a code beside them.

    Example:
        >>> plus(CODES)
        'PCA and depth + CellVQ code'
    """
    return f"{BASE} + {code}"


def read(
    encoded: Sequence[AnnData], values: pd.DataFrame, *, batch: str | None = None,
    hold_out: str | None = None, folds: int = 5, methods: Iterable[str] | None = None,
    pca: np.ndarray | None = None, views: Mapping[str, np.ndarray] | None = None,
) -> Reading:
    """Predict proteins from every reading of the RNA, in cells that took no part in the fit.

    A code enters as one column a code and one a parent, so that a ridge on it gives means of codes,
    shrunk towards those of their parents. k-means has as many groups, and as many parents.

    Args:
        encoded: the same cells, encoded by models of different seeds; their place is the seed of
            folds, shuffles and k-means.
        values: :func:`cellvq.proteins.protein_values` of these cells.
        batch: column of ``obs`` whose means are taken out of values and inputs, and within
            which codes are shuffled.
        hold_out: column of ``obs`` of which whole values are held out in turn; None: cells.
        folds: parts of the cells.
        methods: names of readings; None: all.
        pca: principal components; None: the standard recipe (:func:`cellvq.tasks.pca_embedding`).
        views: other vectors of the same RNA, [cells, dimensions] each, by name: their k-means
            groups are read as well, so that a code that adds no more than any second look at the
            RNA is not taken for more. :func:`unscaled_pca` is always one of them.

    Raises:
        InputError: cells are not encoded, or not those of the values.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200, cell_types=2, genes=300)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]
        >>> type_1 = (cells.obs["cell_type"] == "type_1").to_numpy(float) - 0.5
        >>> values = pd.DataFrame({"CD3": type_1}, index=cells.obs_names)
        >>> left = read([cells], values, methods=[CODES, SHUFFLED]).left
        >>> bool(np.abs(left[CODES]).max() < 0.01 < np.abs(left[SHUFFLED]).max())
        True
    """
    first = encoded[0] if encoded else None
    if first is None or not all(list(one.obs_names) == list(values.index) for one in encoded):
        raise InputError("values and encoded cells are not the same cells in the same order; make "
                         "the values from these cells")
    of = strata_of(first, batch)
    views = {"PCA": tasks.pca_embedding(first) if pca is None else pca, **(views or {})}
    if UNSCALED not in views and (methods is None or any(UNSCALED in name for name in methods)):
        views[UNSCALED] = unscaled_pca(first)
    if wrong := [name for name, view in views.items() if len(view) != len(values)]:
        raise InputError(f"{wrong[0]} has {len(views[wrong[0]])} rows for {len(values)} cells; "
                         "give one for each")
    views = {name: axes_within(view, of) for name, view in views.items()}
    counts, _ = genes.find_counts(first)
    depth = np.column_stack([np.log1p(genes.sequencing_depth(first, counts)),
                             np.log1p(counts.getnnz(axis=1))])
    groups = None if not hold_out else strata_of(first, hold_out)
    if groups is not None and groups.max() < 1:
        raise InputError(f"obs[{hold_out!r}] has one value only, so that none can be held out")
    y, left = values.to_numpy(), {}
    for seed, cells in enumerate(encoded):
        inputs = _inputs(cells, views, depth, of, seed)
        if unknown := set(methods or ()) - set(inputs):
            raise InputError(f"{min(unknown)!r} cannot be read here; there are {', '.join(inputs)}")
        split = _split(len(y), groups, folds, seed)
        for name in methods or inputs:
            blocks = [_scaled(block, of) for block in inputs[name]]
            with threadpool_limits(1):  # the order of sums depends on the threads
                left.setdefault(name, []).append(_unread(blocks, y, split))
    what = f"{folds} parts of the cells" if not hold_out else f"whole values of {hold_out}"
    return Reading(values, {name: np.stack(parts) for name, parts in left.items()}, what)


def unscaled_pca(cells: AnnData) -> np.ndarray:
    """Principal components of genes that are not scaled, so that strong genes count more.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> unscaled_pca(simulate_cells(cells=90)).shape
        (90, 50)
    """
    return baselines.pca_unscaled(entries.prepare(cells))[0]


def axes_within(pca: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Principal components without means of strata, turned so that the first vary most again."""
    centred = within(pca, strata)
    turned, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    return turned * sizes


def _split(
    cells: int, groups: np.ndarray | None, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    if groups is None:
        return list(KFold(folds, shuffle=True, random_state=seed).split(np.arange(cells)))
    way = LeaveOneGroupOut() if groups.max() < folds else GroupKFold(folds)
    return list(way.split(np.arange(cells), groups=groups))


def _code(cells: AnnData) -> np.ndarray:
    if CODE not in cells.obs or not evaluate.labelled(cells.obs[CODE]).all():
        raise InputError(f"not every cell has a code in obs[{CODE!r}]: encode the cells, and leave "
                         "out those without a count in the model's genes")
    return cells.obs[CODE].astype(str).to_numpy()


def _inputs(
    cells: AnnData, views: dict[str, np.ndarray], depth: np.ndarray, strata: np.ndarray, seed: int
) -> dict[str, list[np.ndarray]]:
    """Blocks of inputs of each reading, [cells, columns] each."""
    code = _code(cells)
    parent = cut(pd.Series(code), 1).to_numpy()
    rng, order = np.random.default_rng(seed), np.arange(len(code))
    for one in np.unique(strata):
        order[strata == one] = rng.permutation(order[strata == one])
    own, pca = _one_hot(code, parent), views["PCA"]
    codes = {SHUFFLED: own[order]}
    for name, view in views.items():
        groups = [evaluate.kmeans_codes(view, len(np.unique(of)), seed) for of in (code, parent)]
        codes[f"k-means on {name}"] = _one_hot(*groups)
    codes[CODES] = own
    found = {DEPTH: [depth]} | {name: [block] for name, block in codes.items()}
    if "X_cellvq" in cells.obsm:
        vector = np.asarray(cells.obsm["X_cellvq"])
        found |= {VECTOR: [vector], NARROW: [pca[:, : vector.shape[1]]]}
    found |= {PCA: [pca], BASE: [pca, depth]}
    return found | {plus(name): [pca, depth, block] for name, block in codes.items()}


def _one_hot(*groups: np.ndarray) -> np.ndarray:
    return np.column_stack([pd.get_dummies(group) for group in groups]).astype(np.float64)


def _scaled(block: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Take out means of batches and give all columns together variance 1."""
    block = within(block, strata)
    return block / max(np.sqrt(block.var(axis=0).sum()), 1e-12)


def _unread(blocks: list[np.ndarray], values: np.ndarray, split: list[tuple]) -> np.ndarray:
    """Value less prediction of cells held out, [cells, proteins].

    Where there are several blocks, the weight of the last is chosen for each protein as the
    penalty is, by cells left out one at a time within those that are fitted to.
    """
    left = np.empty_like(values)
    *base, last = blocks
    for train, test in split:
        least = np.full(values.shape[1], np.inf)
        for weight in WEIGHTS if base else (1.0,):
            design = np.column_stack([*base, weight * last])
            predicted, error = _ridge(design[train], values[train], design[test])
            better = error < least
            left[np.ix_(test, better)] = (values[test] - predicted)[:, better]
            least = np.minimum(least, error)
    return left


def _ridge(
    inputs: np.ndarray, values: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression whose penalty is chosen for each column by leaving out one cell at a time.

    Returns:
        Predictions for new cells, [new, columns], and the error of the cells left out, [columns].
    """
    centre, mean = inputs.mean(axis=0), values.mean(axis=0)
    u, sizes, axes = np.linalg.svd(inputs - centre, full_matrices=False)
    along, n = u.T @ (values - mean), len(inputs)
    least, kept = np.full(values.shape[1], np.inf), np.zeros_like(along)
    for penalty in n * PENALTIES:
        shrink = sizes**2 / (sizes**2 + penalty)
        hat = 1 / n + u**2 @ shrink
        fitted = shrink[:, None] * along
        missed = (values - mean - u @ fitted) / np.maximum(1 - hat, 1e-6)[:, None]
        error = (missed**2).mean(axis=0)
        better = error < least
        kept[:, better] = fitted[:, better] / np.maximum(sizes, 1e-12)[:, None]
        least = np.minimum(least, error)
    return mean + (new - centre) @ axes.T @ kept, least
