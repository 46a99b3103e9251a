"""What regulators and genes have in common over the cells of a state, and what chance gives.

Values are log1p of counts per 10,000. What the logarithm of the depth and its square explain is
taken off, and so are the means of donors (and of finer codes, if there are any), so that cells are
compared at equal depth within donors; and what genes share merely because a cell has so many
molecules and no more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special
from scipy.sparse import csc_matrix, csr_matrix

from cellvq.evidence import skewed_tail
from cellvq.regulationpairs import Candidates

BLOCK = 20_000_000
"""Residuals (cells x genes) that are dense at once, which bounds the memory."""
LEAST_SHUFFLED = 6
"""Cells of a code and donor below which there is nothing to shuffle."""
TINY = 1e-300


class Sums(NamedTuple):
    """What the residuals of regulators and genes have in common, over the cells of a code."""

    product: np.ndarray
    """Sum of products, [regulators, genes]."""
    variance: np.ndarray
    """Variance of that sum when regulators are shuffled within donors, [regulators, genes]."""
    third: np.ndarray
    """Third cumulant of it, likewise."""
    up: np.ndarray
    """Donors in whom the sum of products is above 0, [regulators, genes]."""
    regulator: np.ndarray
    """Sum of squares of each regulator, [regulators]."""
    gene: np.ndarray
    """Sum of squares of each gene, [genes]."""
    donors: int
    """Donors who take part."""

    @property
    def z(self) -> np.ndarray:
        """The sum of products in standard deviations of its null, 0 where nothing varies."""
        return self.product / np.sqrt(np.maximum(self.variance, 1e-12))

    @property
    def correlation(self) -> np.ndarray:
        """Correlation at equal depth within donors, [regulators, genes]."""
        return self.product / np.sqrt(np.maximum(np.outer(self.regulator, self.gene), 1e-12))

    @property
    def p(self) -> np.ndarray:
        """See :func:`shuffled_p`."""
        return shuffled_p(self.product, self.variance, self.third)


def shuffled_p(product: np.ndarray, variance: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Find the two-sided p-value over all shuffles, by their mean, variance and skewness.

    Where the null is skewed the other way, the skewed tail ends too soon: a few cells without a
    gene that all others have can lie beyond it. So the normal tail is the least.

    Args:
        product: sums of products; their mean over shuffles is 0.
        variance: their variance over shuffles.
        third: their third cumulant over shuffles.

    Example:
        >>> shuffled_p(*np.array([[2.0, -2.0], [1.0, 1.0], [0.5, 0.5]])).round(3).tolist()
        [0.069, 0.046]
    """
    variance = np.maximum(variance, 1e-12)
    z = product / np.sqrt(variance)
    skewness = third / variance**1.5
    tail = skewed_tail(np.abs(z), np.where(z < 0, -skewness, skewness))
    return np.clip(2 * np.maximum(tail, special.ndtr(-np.abs(z))), TINY, 1)


def sums_of(
    made: Candidates, rows: np.ndarray | None = None, *, composition: bool = True
) -> Sums:
    """Sum up what regulators and genes have in common over some cells.

    Args:
        made: the candidates.
        rows: places of the cells, such as those of one code; None: all.
        composition: whether to take off what genes have in common as they share the molecules of a
            cell; not where the values are no logarithms of counts.

    Example:
        >>> from cellvq.regulationpairs import candidates
        >>> from cellvq.simulate import simulate_cells
        >>> made = candidates(simulate_cells(cells=200), "lineage", regulators=["STAT1"])
        >>> bool(abs(sums_of(made).correlation).max() <= 1 + 1e-3)
        True
    """
    rows = np.arange(len(made.code)) if rows is None else rows
    rows, runs, basis = _strata(made, rows)
    values = made.values[rows].tocsc()
    own = _residuals(values, made.regulators, basis)
    slopes = basis.shape[1] - len(np.unique(made.donor[rows]))
    step = max(BLOCK // max(len(rows), 1), 1)
    parts = []
    for first in range(0, max(len(made.genes), 1), step):
        block = _residuals(values, np.arange(first, min(first + step, len(made.genes))), basis)
        parts.append(_block_sums(own, block, runs, slopes))
    joined = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    product, variance, third, up, gene = joined
    regulator = (own**2).sum(axis=0)
    if composition:
        shift = _composition(made, rows, values) * np.sqrt(np.outer(regulator, gene))
        # This holds to first order alone, so that it may take evidence away and never adds any.
        product -= np.clip(shift, np.minimum(product, 0), np.maximum(product, 0))
    return Sums(product, variance, third, up, regulator, gene, len(runs))


def half_sums(
    made: Candidates, rows: np.ndarray, pairs: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sum up some pairs over random halves of some cells.

    Args:
        made: the candidates.
        rows: places of the cells, such as those of one code.
        pairs: places of the two genes of each pair, [2, pairs].
        draws: random halves.
        rng: source of the halves.

    Returns:
        Sums of products and their variance under the null, both [draws, pairs].
    """
    rows, runs, basis = _strata(made, rows)
    used, place = np.unique(pairs, return_inverse=True)
    residuals = _residuals(made.values[rows].tocsc(), used, basis)
    half = np.zeros((draws, len(rows)), np.float32)
    for mask in half:
        mask[rng.permutation(len(rows))[: len(rows) // 2]] = 1
    first, second = place.reshape(2, -1)
    product, variance = np.zeros((2, draws, len(first)), np.float32)
    step = max(BLOCK // max(len(rows), 1), 1)
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        x, y = residuals[:, first[part]], residuals[:, second[part]]
        for run in runs:
            chosen = half[:, run]
            product[:, part] += chosen @ (x[run] * y[run])
            size = np.maximum(chosen.sum(axis=1, keepdims=True) - 1, 1)
            variance[:, part] += (chosen @ x[run] ** 2) * (chosen @ y[run] ** 2) / size
    return product, variance


def _block_sums(own, block, runs, slopes) -> tuple[np.ndarray, ...]:
    """The parts of :class:`Sums` that speak of a block of genes."""
    product, up, variance, third = np.zeros((4, own.shape[1], block.shape[1]))
    for run in runs:
        here = own[run].T @ block[run]
        product += here
        up += here > 0
    if runs:
        # Moments of a sum of products over all orders of one of its factors; slopes that were
        # taken off cost degrees of freedom, shared by the donors.
        n = np.array([run.stop - run.start for run in runs])
        squares, cubes = (
            [np.stack([(side[run] ** power).sum(axis=0, dtype=float) for run in runs])
             for side in (own, block)] for power in (2, 3))
        variance = (squares[0].T / (n - 1 - slopes / len(runs))) @ squares[1]
        third = (cubes[0].T * (n / ((n - 1) * (n - 2)))) @ cubes[1]
    return product, variance, third, up, (block**2).sum(axis=0)


def _composition(made: Candidates, rows: np.ndarray, values: csc_matrix) -> np.ndarray:
    """Correlation that genes have as they share the molecules of a cell, [regulators, genes].

    Where one gene takes more of a cell, less is left for all others, and the depth is larger. What
    follows if every gene varies by itself is known from the mean and the variance of its share;
    for counts drawn at random it is the correlation of the multinomial distribution.
    """
    shares = values.astype(float)
    shares.data = np.expm1(shares.data) / 1e4
    donor, depth = made.donor[rows], np.log(made.depth[rows])
    member = csr_matrix(donor[None, :] == np.unique(donor)[:, None], dtype=float)
    size = np.asarray(member.sum(axis=1))
    mean = (member @ shares).toarray() / size
    spread = np.asarray(shares.power(2).sum(axis=0)).ravel() - (size * mean**2).sum(axis=0)
    spread = np.maximum(spread / len(rows), 1e-20)
    share = (size * mean).sum(axis=0) / len(rows)
    rest = max(1 - share.sum(), 0) * (1 / made.depth[rows]).mean()  # of genes left out
    whole = spread.sum() + rest
    for _ in range(5):  # how much of the variance of all molecules comes from each gene
        own = np.maximum(spread - share**2 * whole, 0) / np.maximum(1 - 2 * share, 0.1)
        whole = own.sum() + rest
    with_depth = own - share * whole
    deep = max(depth.var() - ((member @ depth) ** 2 / size.ravel()).sum() / len(rows)
               + depth.mean() ** 2, 1e-9)
    left = np.sqrt(np.maximum(spread - with_depth**2 / deep, 1e-20))
    one = made.regulators
    found = np.outer(share[one], share) * whole - np.outer(own[one], share)
    found -= np.outer(share[one], own) + np.outer(with_depth[one], with_depth / deep)
    return np.clip(found / np.outer(left[one], left), -1, 1)


def _strata(made: Candidates, rows: np.ndarray) -> tuple[np.ndarray, list[slice], np.ndarray]:
    """Rows donor by donor, where each donor of enough cells lies, and what is taken off."""
    rows = rows[np.argsort(made.donor[rows], kind="stable")]
    edges = np.flatnonzero(np.r_[True, np.diff(made.donor[rows]) > 0, True])
    runs = [slice(first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)
            if last - first >= LEAST_SHUFFLED]
    return rows, runs, _basis(made, rows)


def _basis(made: Candidates, rows: np.ndarray) -> np.ndarray:
    """Orthonormal columns for donors, log depth, its square and finer codes, [cells, columns]."""
    depth = np.log(made.depth[rows])
    depth = (depth - depth.mean()) / max(depth.std(), 1e-9)
    donor = made.donor[rows]
    own = (donor[:, None] == np.unique(donor)).astype(float)
    finer = np.unique(made.finer[rows])[1:]  # the means of donors stand for the first
    slopes = np.column_stack([depth, depth**2, made.finer[rows][:, None] == finer])
    own /= np.sqrt(own.sum(axis=0))
    slopes -= own @ (own.T @ slopes)
    left, size, _ = np.linalg.svd(slopes, full_matrices=False)
    return np.column_stack([own, left[:, size > 1e-6]]).astype(np.float32)


def _residuals(values: csc_matrix, columns: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Values of some genes less what donors and depth explain, float32 [cells, genes]."""
    dense = values[:, columns].toarray()
    return dense - basis @ (basis.T @ dense)
