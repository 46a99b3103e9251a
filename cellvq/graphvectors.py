"""Where cells of the graph module lie: variable genes, components, neighbours, groups of cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from anndata import AnnData

GROUPS = 12
"""Groups of like cells from which signals may come."""
OVERDISPERSION = 100.0
"""Of counts whose gene does not vary, as in analytic Pearson residuals."""


def variable(counts: csr_matrix, depth: np.ndarray, number: int) -> np.ndarray:
    """Return the genes whose Pearson residuals vary most, from the non-zero counts alone."""
    total = np.asarray(counts.sum(0)).ravel()
    rate = total / max(depth.sum(), 1)
    entries = counts.tocoo()
    mean = depth[entries.row] * rate[entries.col]
    residual = (entries.data - mean) / np.sqrt(mean + mean**2 / OVERDISPERSION)
    square = np.minimum(residual**2, len(depth)) - mean / (1 + mean / OVERDISPERSION)
    found = np.bincount(entries.col, square, counts.shape[1])
    found += total / (1 + total / len(depth) / OVERDISPERSION)  # what the zeros add, nearly
    expressed = np.bincount(entries.col, minlength=counts.shape[1]) >= min(5, len(depth))
    order = np.argsort(-np.where(expressed, found, -1), kind="stable")
    return np.sort(order[: min(number, max(int(expressed.sum()), 2))])


def components(
    inputs: csr_matrix | np.ndarray, spread: np.ndarray | None, width: int, seed: int
) -> Iterator[np.ndarray]:
    """Return the mean of inputs and the axes of their largest variance, of variance 1 on average.

    With ``spread`` each input is divided by its own.
    """
    from sklearn.decomposition import PCA

    width = min(width, min(inputs.shape) - 1)
    if spread is None:
        fitted = PCA(width, svd_solver="full").fit(inputs)
    else:
        fitted = PCA(width, svd_solver="arpack", random_state=seed)
        fitted.fit(csr_matrix(inputs.multiply(1 / spread)))
    axes = fitted.components_.T * np.sign(fitted.components_.sum(1) + 1e-12)
    axes, offset = axes / np.sqrt(fitted.explained_variance_.mean()), fitted.mean_
    if spread is not None:
        axes, offset = axes / spread[:, None], offset * spread
    return (np.ascontiguousarray(part, dtype=np.float32) for part in (offset, axes))


def hashed(cells: AnnData, column: str) -> np.ndarray:
    """Return a number for each cell's donor (or name), the same wherever that value stands.

    Args:
        cells: cells; without the column all count as of one donor who is unknown.
        column: of ``obs``; empty: names of cells.
    """
    if column and column not in cells.obs:
        return np.zeros(cells.n_obs, np.int64)
    values = cells.obs[column] if column else cells.obs_names
    return pd.util.hash_array(np.asarray(values.astype(str), dtype=object)).view(np.int64)


def nearest(
    vectors: np.ndarray, own: np.ndarray, reference: np.ndarray, names: np.ndarray, number: int,
    by_group: bool,
) -> np.ndarray:
    """Return the nearest reference cells of other names, int [cells, number]; -1 where few are.

    Args:
        vectors: of the cells, [cells, width].
        own: number of each one's name or donor, :func:`hashed`.
        reference: vectors of the cells that may be neighbours, [reference cells, width].
        names: their numbers.
        number: neighbours of a cell.
        by_group: whether many cells share a number, as those of a donor do.

    Example:
        >>> place = np.array([[0.0], [1.0], [5.0]])
        >>> nearest(place, np.arange(3), place, np.arange(3), 1, False).ravel().tolist()
        [1, 0, 1]
    """
    from sklearn.neighbors import NearestNeighbors

    found = np.full((len(vectors), number), -1)
    for value in np.unique(own) if by_group else [None]:
        rows = np.flatnonzero(own == value) if by_group else np.arange(len(vectors))
        others = np.flatnonzero(names != value) if by_group else np.arange(len(names))
        asked = min(number + (not by_group), len(others))
        if not asked:
            continue
        search = NearestNeighbors(n_neighbors=asked, algorithm="brute").fit(reference[others])
        near = others[search.kneighbors(vectors[rows])[1]]
        other = names[near] != own[rows, None]
        order = np.argsort(~other, axis=1, kind="stable")[:, :number]  # its own name goes last
        near, other = (np.take_along_axis(part, order, 1) for part in (near, other))
        found[rows, : near.shape[1]] = np.where(other, near, -1)
    return found


def groups(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of like cells of each vector, and the mean vector of each group."""
    from sklearn.cluster import KMeans

    fitted = KMeans(min(GROUPS, len(vectors)), n_init=1, random_state=seed).fit(vectors)
    used, group = np.unique(fitted.labels_, return_inverse=True)
    return group, fitted.cluster_centers_[used].astype(np.float32)
