"""p-values of signals over all shuffles of cells, in closed form: no draws, and no floor for p.

Thousands of signals need far finer p-values than shuffles can give. The statistic is a mean over
cells that are drawn without putting back, whose mean, variance and skewness over all draws are
known; its upper tail follows Pearson's type III nearly (a test holds it to shuffles).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from cellvq import evaluate
from cellvq.signalnull import Ends


def all_shuffles_p(
    values: csr_matrix, group: np.ndarray, ends: Ends, strata: np.ndarray | None = None
) -> np.ndarray:
    """Test the mean of a ligand's and a receptor's mean against all shuffles of codes over cells.

    Ligand and receptor are read in the same cells where a code talks to itself, and in cells that
    exclude each other elsewhere. Shuffles of different strata do not know of each other, so that
    their moments add up.

    Args:
        values: log1p of counts per 10,000, [cells, genes].
        group: number of the code of each cell, [cells].
        ends: the rows.
        strata: number of the stratum of each cell, such as its donor, within which codes are
            shuffled; None: over all cells.

    Returns:
        One-sided p-values, [rows].

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cells = csr_matrix(np.r_[rng.poisson(9, (20, 2)), rng.poisson(1, (20, 2))] * 1.0)
        >>> row = Ends(*np.array([[0, 1], [0, 1], [0, 0], [1, 1]]))
        >>> p = all_shuffles_p(cells, np.repeat([0, 1], 20), row)
        >>> bool(p[0] < 1e-6), bool(p[1] > 0.999)
        (True, True)
    """
    group = np.asarray(group)
    strata = np.zeros(len(group), int) if strata is None else np.asarray(strata)
    groups = int(group.max()) + 1
    sizes = np.bincount(group, minlength=groups).astype(float)
    own = ends.source == ends.target
    pairs, which = np.unique(np.column_stack([ends.ligand, ends.receptor]), axis=0,
                             return_inverse=True)
    which = which.ravel()
    mean, variance, third, seen = np.zeros((4, len(own)))
    for stratum in np.unique(strata):
        cells = np.flatnonzero(strata == stratum)
        total, part = float(len(cells)), csc_matrix(values[cells])
        inside = np.bincount(group[cells], minlength=groups).astype(float)
        n, m = inside[ends.source], inside[ends.target]
        weight = 1 / (2 * sizes[ends.source]), 1 / (2 * sizes[ends.target])
        of = _Moments(part, pairs)
        one, other = of.mean[ends.ligand], of.mean[ends.receptor]
        mean += n * one * weight[0] + m * other * weight[1]
        seen += _sums(part, group[cells], groups, ends, weight)
        if total < 2:
            continue
        draw = (total - 1), max((total - 1) * (total - 2), 1)
        spread = [k * (total - k) / draw[0] for k in (n, m)]
        lean = [k * (total - k) * (total - 2 * k) / draw[1] for k in (n, m)]
        apart = (spread[0] * of.variance[ends.ligand] * weight[0] ** 2
                 + spread[1] * of.variance[ends.receptor] * weight[1] ** 2
                 - 2 * n * m / draw[0] * of.covariance[which] * weight[0] * weight[1])
        variance += np.where(own, spread[0] * of.both_variance[which] * weight[0] ** 2, apart)
        apart = (lean[0] * of.third[ends.ligand] * weight[0] ** 3
                 + lean[1] * of.third[ends.receptor] * weight[1] ** 3)
        third += np.where(own, lean[0] * of.both_third[which] * weight[0] ** 3, apart)
    with np.errstate(divide="ignore", invalid="ignore"):
        z, skewness = (seen - mean) / np.sqrt(variance), third / variance**1.5
    p = evaluate.skewed_tail(np.nan_to_num(z, posinf=0, neginf=0), np.nan_to_num(skewness))
    return np.clip(p, 1e-300, 1)


class _Moments:
    """Central moments of genes, and of sums of two genes in one cell."""

    def __init__(self, values: csc_matrix, pairs: np.ndarray) -> None:
        self.mean, self.variance, self.third = self._three(values)
        left, right = values[:, pairs[:, 0]], values[:, pairs[:, 1]]
        joint = np.asarray(left.multiply(right).mean(axis=0)).ravel()
        self.covariance = joint - self.mean[pairs[:, 0]] * self.mean[pairs[:, 1]]
        _, self.both_variance, self.both_third = self._three(left + right)

    @staticmethod
    def _three(values: csc_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one, two, three = (np.asarray(values.power(k).mean(axis=0)).ravel() for k in (1, 2, 3))
        return one, np.maximum(two - one**2, 0), three - 3 * one * two + 2 * one**3


def _sums(
    values: csc_matrix, group: np.ndarray, groups: int, ends: Ends,
    weight: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The part of the statistic that comes from some cells, [rows]."""
    cells = np.arange(len(group))
    chosen = csr_matrix((np.ones(len(group)), (group, cells)), (groups, len(group)))
    ligand, receptor = ends.of((chosen @ values).toarray())
    return ligand * weight[0] + receptor * weight[1]
