"""Scores of every pair of regulator and gene, by several methods over the same cells and pairs.

They differ in what they compare: all cells, cells of one code, or averages over like cells; and in
whether each regulator is asked alone or beside all others. None of them knows any regulation.
:mod:`cellvq.regulationscore` tells which of them is worth something; the score of a model's decoder
is in :mod:`cellvq.regulationresponse`, and any table with the same columns can stand beside these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import linalg
from scipy.sparse import csc_matrix, csr_matrix

from cellvq import InputError
from cellvq.regulationpairs import Candidates
from cellvq.regulationsums import sums_of

PSEUDO_CELLS = 10
"""Cells that a pseudo-cell stands for, on average."""
NEIGHBOURS = 20
"""Cells that are summed into a pseudo-cell."""
PENALTIES = np.geomspace(1e-3, 10, 17)
"""Penalties of the regression that are tried, in units of a regulator's variance."""


def correlation(made: Candidates) -> np.ndarray:
    """Correlation over all cells at equal depth: co-expression, the baseline of the field."""
    return sums_of(made.merged()).correlation


def rank_correlation(made: Candidates) -> np.ndarray:
    """Correlation of ranks over all cells at equal depth, likewise."""
    ranked = dataclasses.replace(made.merged(), values=_ranks(made.values.tocsc()))
    return sums_of(ranked, composition=False).correlation


def within_codes(made: Candidates) -> np.ndarray:
    """Correlation within codes and donors, pooled over them."""
    product, regulator, gene = _pooled(made)
    return product / _sizes(regulator, gene)


def in_any_code(made: Candidates) -> np.ndarray:
    """The surest correlation of any code, in standard deviations of its null."""
    best = np.zeros((len(made.regulators), len(made.genes)))
    for number in range(len(made.names)):
        z = sums_of(made, np.flatnonzero(made.code == number)).z
        best = np.where(np.abs(z) > np.abs(best), z, best)
    return best


def ridge(made: Candidates) -> np.ndarray:
    """Coefficients of a ridge regression of each gene on all regulators, over all cells."""
    return _ridge(made, correlation(made))


def ridge_within_codes(made: Candidates) -> np.ndarray:
    """Coefficients of a ridge regression on all regulators, within codes and donors."""
    return _ridge(made, within_codes(made))


def pseudo_cells(made: Candidates) -> np.ndarray:
    """Correlation over sums of like cells, which have fewer zeros, whatever their code."""
    return correlation(pooled_cells(made.merged()))


def pseudo_cells_within_codes(made: Candidates) -> np.ndarray:
    """Correlation over sums of like cells of one code and donor, within codes and donors."""
    return within_codes(pooled_cells(made))


def expression(made: Candidates) -> np.ndarray:
    """How much of both genes there is: knows nothing of regulation, but well-studied genes."""
    mean = np.asarray(made.values.mean(axis=0)).ravel()
    return np.outer(mean[made.regulators], mean)


def shuffled(made: Candidates, seed: int = 0) -> np.ndarray:
    """Correlation after each regulator is shuffled over cells of one code and donor: a control."""
    rng = np.random.default_rng(seed)
    group = made.code * (made.donor.max() + 1) + made.donor
    place = np.argsort(group, kind="stable")
    product = np.zeros((len(made.regulators), len(made.genes)))
    own = made.values[:, made.regulators].toarray()
    for column in range(own.shape[1]):
        order = np.lexsort((rng.random(len(group)), group))
        own[place, column] = own[order, column]
    gene = made.values.tocsr()
    mean = np.asarray(gene.mean(axis=0)).ravel()
    own -= own.mean(axis=0)
    squares = np.asarray(gene.multiply(gene).mean(axis=0)).ravel() - mean**2
    product = (gene.T @ own).T
    return product / _sizes((own**2).sum(axis=0), squares * len(group))


METHODS: dict[str, Callable[[Candidates], np.ndarray]] = {
    "correlation": correlation,
    "rank correlation": rank_correlation,
    "correlation within codes": within_codes,
    "correlation in any code": in_any_code,
    "ridge": ridge,
    "ridge within codes": ridge_within_codes,
    "pseudo-cells": pseudo_cells,
    "pseudo-cells within codes": pseudo_cells_within_codes,
    "expression of both": expression,
    "shuffled within codes": shuffled,
}
"""Methods by name; the last two are what a method has to beat, as is ``correlation``."""
CONTROLS = ("correlation", "expression of both", "shuffled within codes")
"""The baseline, and two scores that know of no regulation."""


def score_pairs(made: Candidates, method: str) -> pd.DataFrame:
    """Score every pair of regulator and gene.

    Args:
        made: :func:`cellvq.regulationpairs.candidates`.
        method: one of ``METHODS``.

    Returns:
        One row a pair: ``regulator``, ``gene`` (str), ``score`` (float; the larger without its
        sign, the more likely an edge, and positive where the gene goes up with the regulator).

    Raises:
        InputError: there is no such method.

    Example:
        >>> from cellvq.regulationpairs import candidates
        >>> from cellvq.simulate import simulate_cells
        >>> made = candidates(simulate_cells(cells=200), "lineage", regulators=["STAT1"])
        >>> table = score_pairs(made, "correlation within codes")
        >>> list(table), bool(table["score"].abs().max() <= 1)
        (['regulator', 'gene', 'score'], True)
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; use one of {', '.join(METHODS)}")
    return made.table(METHODS[method](made))


def shared_by_halves(made: Candidates, method: str, *, top: int = 1000, seed: int = 0) -> float:
    """Ask how many of the top pairs two halves of the cells share: stability under resampling.

    Args:
        made: :func:`cellvq.regulationpairs.candidates`.
        method: one of ``METHODS``.
        top: so many pairs of each half.
        seed: seed of the halves, which have like shares of every code and donor.

    Returns:
        Share of the top pairs of one half that are among those of the other; by chance it is
        ``top`` divided by the number of pairs. NaN where a half is too small to be scored.

    Example:
        >>> from cellvq.regulationpairs import candidates
        >>> from cellvq.simulate import simulate_cells
        >>> made = candidates(simulate_cells(cells=200), "lineage", regulators=["STAT1"])
        >>> 0 <= shared_by_halves(made, "correlation", top=10) <= 1
        True
    """
    group = made.code * (made.donor.max() + 1) + made.donor
    order = np.lexsort((np.random.default_rng(seed).random(len(group)), group))
    tops = []
    for half in (order[::2], order[1::2]):
        part = made.only(np.sort(half), np.arange(len(made.genes)))
        table = score_pairs(part, method)
        best = table["score"].abs().nlargest(top)
        tops.append(set(best.index[best > 0]))
    return len(tops[0] & tops[1]) / min(map(len, tops)) if all(tops) else np.nan


def pooled_cells(made: Candidates, seed: int = 0) -> Candidates:
    """Sum up like cells of one code and donor.

    A tenth of the cells, drawn at random, are summed with their nearest neighbours by principal
    components. Pseudo-cells share cells, so that nothing is tested on them.

    Args:
        made: the candidates.
        seed: seed of the draw.

    Returns:
        The same pairs over pseudo-cells.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.neighbors import NearestNeighbors

    width = min(20, len(made.genes) - 1)
    place = TruncatedSVD(width, random_state=seed).fit_transform(made.values)
    group = made.code * (made.donor.max() + 1) + made.donor
    rng, rows, columns, centres = np.random.default_rng(seed), [], [], []
    for number in np.unique(group):
        own = np.flatnonzero(group == number)
        chosen = np.sort(rng.choice(own, -(-len(own) // PSEUDO_CELLS), replace=False))
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(own))).fit(place[own])
        found = own[near.kneighbors(place[chosen], return_distance=False)]
        rows.append(np.repeat(np.arange(len(chosen)) + sum(map(len, centres)), found.shape[1]))
        columns.append(found.ravel())
        centres.append(chosen)
    rows, columns, centre = (np.concatenate(part) for part in (rows, columns, centres))
    member = csr_matrix((np.ones(len(rows)), (rows, columns)), (len(centre), len(group)))
    depth = member @ made.depth
    counts = made.values.tocsr(copy=True)
    counts.data = np.expm1(counts.data) * np.repeat(made.depth, np.diff(counts.indptr))
    summed = csr_matrix(member @ counts)
    summed.data = np.log1p(summed.data / np.repeat(depth, np.diff(summed.indptr)))
    return dataclasses.replace(
        made, values=summed.astype(np.float32), depth=depth, code=made.code[centre],
        donor=made.donor[centre], finer=made.finer[centre])


def _pooled(made: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of products and of squares over all codes."""
    parts = [sums_of(made, np.flatnonzero(made.code == number))
             for number in range(len(made.names))]
    return tuple(sum(part) for part in zip(
        *((one.product, one.regulator, one.gene) for one in parts), strict=True))


def _sizes(regulator: np.ndarray, gene: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.outer(regulator, gene), 1e-12))


def _ridge(made: Candidates, correlated: np.ndarray) -> np.ndarray:
    """Coefficients for all genes at once, from correlations [regulators, genes].

    One penalty serves all genes, that of the least generalised cross-validation (doi
    10.1080/00401706.1979.10489751). A gene that is a regulator is not asked of itself: the
    coefficients of the others are in the inverse of the matrix of all regulators.
    """
    among = correlated[:, made.regulators]
    size, axes = linalg.eigh((among + among.T) / 2)
    size, turned = np.maximum(size, 0), axes.T @ correlated
    cells = len(made.code)
    freedom = (size / (size + PENALTIES[:, None])).sum(axis=1)
    kept = (size + 2 * PENALTIES[:, None]) / (size + PENALTIES[:, None]) ** 2
    left = correlated.shape[1] - kept @ (turned**2).sum(axis=1)
    best = PENALTIES[np.argmin(left / np.maximum(1 - freedom / cells, 1e-3) ** 2)]
    inverse = (axes / (size + best)) @ axes.T
    found = inverse @ correlated
    found[:, made.regulators] = -inverse / np.diag(inverse)[None, :]
    return found


def _ranks(values: csc_matrix) -> csc_matrix:
    """Rank of each value among the cells, less that of a zero, so that zeros stay, by gene."""
    cells, genes = values.shape
    values = values.sorted_indices()
    expressing = np.diff(values.indptr)
    gene = np.repeat(np.arange(genes), expressing)
    order = np.lexsort((values.data, gene))
    new = np.r_[True, (np.diff(gene[order]) > 0) | (np.diff(values.data[order]) > 0)]
    starts = np.flatnonzero(new)
    length = np.diff(np.r_[starts, values.nnz])
    middle = starts + (length + 1) / 2 - values.indptr[gene[order][starts]]
    rank = np.empty(values.nnz)
    rank[order] = np.repeat(middle, length)
    rank += ((cells - expressing) / 2 - 0.5)[gene]  # zeros share the rank (zeros + 1) / 2
    ranked = (rank / cells).astype(np.float32), values.indices, values.indptr
    return csr_matrix(csc_matrix(ranked, values.shape))
