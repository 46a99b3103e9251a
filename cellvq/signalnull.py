"""p-values of signals by shuffling cells: the sums in blocks, and an end where nothing is to find.

A row is a pair of groups and a pair of genes. Most rows are far from significant, and a few hundred
shuffles show it. Their count ends as soon as ``ENOUGH`` shuffles were as large (Besag and Clifford,
doi 10.1093/biomet/78.2.301): p is then ``ENOUGH`` / shuffles, which stays a valid p-value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import csr_matrix

ENOUGH = 100
"""Shuffles as large as the observed value after which a row is looked at no more."""
BLOCK = 50
"""Shuffles after which rows and genes that are done are put away."""

WORTH_COMPILING = 100_000
"""Expressed values from which on sums are compiled, which takes a second."""


@dataclass(frozen=True)
class Ends:
    """Rows that are tested: two groups and two genes each, as numbers, [rows]."""

    source: np.ndarray
    """Group with the ligand."""
    target: np.ndarray
    """Group with the receptor."""
    ligand: np.ndarray
    """Column of the ligand in the values."""
    receptor: np.ndarray
    """Column of the receptor in the values."""

    def only(self, rows: np.ndarray) -> Ends:
        """Keep some rows, [rows] bool or numbers."""
        return Ends(self.source[rows], self.target[rows], self.ligand[rows], self.receptor[rows])

    def of(self, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of the ligand and of the receptor from [groups, genes], [rows] each."""
        flat, width = means.ravel(), means.shape[1]
        return (flat.take(self.source * width + self.ligand),
                flat.take(self.target * width + self.receptor))


class Averages:
    """Means of genes over groups of cells, for any order of the cells.

    Example:
        >>> found = Averages(csr_matrix([[1.0], [3.0], [5.0]]), np.array([0, 1, 1]))
        >>> found.means(np.array([0, 1, 2])).ravel().tolist()
        [1.0, 4.0]
        >>> found.means(np.array([2, 1, 0])).ravel().tolist()  # the third cell for the first
        [5.0, 2.0]
    """

    def __init__(self, values: csr_matrix, group: np.ndarray, groups: int | None = None) -> None:
        self.values = csr_matrix(values, dtype=np.float64)
        sizes = np.bincount(group, minlength=groups or 0)
        self._group = np.sort(group)  # of the places that members fill
        self._share = 1 / np.maximum(sizes, 1)
        self._first = np.r_[0, sizes.cumsum()]
        self._members = np.argsort(group, kind="stable")

    def means(self, order: np.ndarray | None = None) -> np.ndarray:
        """Means [groups, genes]; ``order`` says which cell stands in for which, [cells]."""
        cells = self._members if order is None else order[self._members]
        if self.values.nnz >= WORTH_COMPILING and (sums := _compiled()):
            group, values = np.empty_like(self._group), self.values
            group[cells] = self._group
            found = np.zeros((len(self._share), values.shape[1]))
            sums(values.indptr, values.indices, values.data, group, found)
            return found * self._share[:, None]
        shape = (len(self._share), len(cells))
        one_hot = csr_matrix((self._share[self._group], cells, self._first), shape)
        return (one_hot @ self.values).toarray()

    def only(self, chosen: np.ndarray) -> Averages:
        """Keep some genes, numbers of columns."""
        made = object.__new__(Averages)
        made.__dict__ |= self.__dict__ | {"values": self.values[:, chosen]}
        return made


def orders(
    cells: int, strata: np.ndarray | None, permutations: int, seed: int
) -> Iterator[np.ndarray]:
    """Shuffle cells, all of them or within strata; without strata in the order that liana has.

    Args:
        cells: number of cells.
        strata: number of the stratum of each cell, [cells].
        permutations: how many orders.
        seed: seed of the shuffles.

    Example:
        >>> next(orders(6, np.array([0, 0, 1, 1, 1, 0]), 1, seed=1)).tolist()
        [0, 1, 4, 2, 3, 5]
    """
    rng = np.random.default_rng(seed)
    if strata is None:
        yield from (rng.permutation(cells) for _ in range(permutations))
        return
    by_stratum = np.argsort(strata, kind="stable")
    parts = np.split(by_stratum, np.bincount(strata).cumsum()[:-1])
    for _ in range(permutations):
        drawn = np.empty(cells, dtype=int)
        drawn[by_stratum] = np.concatenate([rng.permutation(part) for part in parts])
        yield drawn


@functools.cache
def _compiled() -> Callable | None:
    """Adds up values by group in one pass through the matrix, three times as fast as a product."""
    try:
        import numba  # comes with scanpy
    except ImportError:
        return None

    @numba.njit(nogil=True)
    def sums(first, column, value, group, found):
        for cell in range(len(first) - 1):
            row = found[group[cell]]
            for place in range(first[cell], first[cell + 1]):
                row[column[place]] += value[place]

    return sums


class Statistic(Protocol):
    """What is compared with its values after shuffles."""

    def values(self, order: np.ndarray | None = None) -> np.ndarray:
        """Values, [rows], where large ones count; ``order``: which cell stands in for which."""

    def only(self, rows: np.ndarray) -> Statistic:
        """Keep some rows, [rows] bool."""


@dataclass(frozen=True)
class OfMeans:
    """A statistic of the means of the ligand and the receptor."""

    averages: Averages
    ends: Ends
    combine: Callable[[np.ndarray, Ends], np.ndarray]
    """Makes values that are not negative, [rows], of means [groups, genes] and rows."""

    def values(self, order: np.ndarray | None = None) -> np.ndarray:
        """See :class:`Statistic`."""
        return self.combine(self.averages.means(order), self.ends)

    def only(self, rows: np.ndarray) -> OfMeans:
        """See :class:`Statistic`; genes that no row needs are put away."""
        ends = self.ends.only(rows)
        used, place = np.unique(np.r_[ends.ligand, ends.receptor], return_inverse=True)
        if len(used) == self.averages.values.shape[1]:
            return OfMeans(self.averages, ends, self.combine)
        ends = Ends(ends.source, ends.target, *np.split(place, 2))
        return OfMeans(self.averages.only(used), ends, self.combine)


def shuffled_p(
    statistic: Statistic, shuffles: Iterator[np.ndarray], *, enough: int = ENOUGH,
    rounding: float = 1e-9,
) -> np.ndarray:
    """Test every row against shuffled cells, one-sided: large values of the statistic count.

    Args:
        statistic: values of rows for any order of the cells, not negative.
        shuffles: :func:`orders`.
        enough: a row ends when so many shuffles were as large.
        rounding: share of a value by which equal ones may differ.

    Returns:
        p-values, [rows]: ``enough`` / shuffles of rows that ended, else (shuffles as large + 1) /
        (shuffles + 1).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> values = csr_matrix(np.r_[rng.poisson(9, (20, 2)), rng.poisson(1, (20, 2))] * 1.0)
        >>> rows = Ends(*np.array([[0, 1], [0, 1], [0, 0], [1, 1]]))
        >>> total = OfMeans(Averages(values, np.repeat([0, 1], 20)), rows,
        ...                 lambda means, ends: sum(ends.of(means)))
        >>> p = shuffled_p(total, orders(40, None, 999, seed=0), enough=50)
        >>> [float(round(value, 3)) for value in p]
        [0.001, 1.0]
    """
    observed = statistic.values() * (1 - rounding)  # equal but for rounding is equal
    p = np.full(len(observed), np.nan)
    active, as_large, shuffled = np.arange(len(observed)), np.zeros(len(observed), int), 0
    for drawn, order in enumerate(shuffles, 1):
        larger = statistic.values(order) >= observed
        as_large += larger
        shuffled = drawn
        ended = np.flatnonzero(larger & (as_large == enough))
        p[active[ended]] = enough / drawn
        if drawn % BLOCK or not (done := as_large >= enough).any():
            continue
        keep = ~done
        active, as_large, observed = active[keep], as_large[keep], observed[keep]
        if not len(active):
            return p
        statistic = statistic.only(keep)
    left = np.isnan(p[active])
    p[active[left]] = (as_large[left] + 1) / (shuffled + 1)
    return p
