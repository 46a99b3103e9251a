"""Cells in which no gene knows of any other: what a test of regulation must find nothing in.

Every cell keeps its depth, its code and its donor; its counts are drawn anew around the means of
cells of like code and donor, gene by gene. What codes, donors and depth do to genes is still there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from cellvq import InputError
from cellvq.genes import find_counts, sequencing_depth

if TYPE_CHECKING:
    from anndata import AnnData


def independent_cells(
    cells: AnnData, groupby: str, *, donor: str | None = None, dispersion: float = 0.5,
    seed: int = 0,
) -> AnnData:
    """Draw the counts of every cell anew, each gene by itself.

    Args:
        cells: cells with raw counts.
        groupby: column of ``obs`` with the codes.
        donor: column of ``obs`` with the donor of each cell.
        dispersion: variance of a gene's share of the molecules over cells, relative to its squared
            mean, beyond what drawing gives; 0 for Poisson counts.
        seed: seed of the draw.

    Returns:
        Cells with the same ``obs`` and genes, new counts in ``X``, and in ``obs["total_counts"]``
        what was drawn of all genes together, measured or not.

    Raises:
        InputError: a column is absent, or the dispersion is below 0.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200)
        >>> drawn = independent_cells(cells, "cell_type", donor="donor")
        >>> drawn.shape == cells.shape, bool((drawn.X != cells.X).nnz > 0)
        (True, True)
    """
    if dispersion < 0:
        raise InputError(f"dispersion is {dispersion}; use 0 or more")
    for column in filter(None, (groupby, donor)):
        if column not in cells.obs:
            raise InputError(f"obs has no column {column!r}; there are {', '.join(cells.obs)}")
    counts, _ = find_counts(cells)
    depth = np.asarray(sequencing_depth(cells, counts), float)
    group = cells.obs[groupby].astype(str)
    if donor:
        group = group + "\n" + cells.obs[donor].astype(str)
    number, rng = pd.factorize(group)[0], np.random.default_rng(seed)
    rows = [np.flatnonzero(number == one) for one in range(number.max() + 1)]
    drawn = []
    for own in rows:
        share = np.asarray(counts[own].sum(axis=0), float).ravel() / max(depth[own].sum(), 1)
        mean = depth[own, None] * share
        if dispersion:
            mean *= rng.gamma(1 / dispersion, dispersion, mean.shape)
        drawn.append(csr_matrix(rng.poisson(mean), dtype=np.float32))
    order = np.argsort(np.concatenate(rows), kind="stable")
    made = vstack(drawn, format="csr")[order]
    unseen = np.maximum(depth - np.asarray(counts.sum(axis=1), float).ravel(), 0)
    found = type(cells)(made, cells.obs.copy(), pd.DataFrame(index=cells.var_names.copy()))
    found.obs["total_counts"] = np.asarray(made.sum(axis=1)).ravel() + rng.poisson(unseen)
    return found
