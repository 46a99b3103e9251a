"""Scores under resampled cells or donors, so that every score and difference gets its interval.

Calls of one method and seed become a contingency table of each unit (a cell, or a donor with all
its cells); a bootstrap draw weights the units. All methods and seeds share the draws, which is what
pairs them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse, stats

CALLED = ("macro_f1", "accuracy", "balanced_accuracy")
"""Scores of calls that name a class."""
GROUPED = ("ari", "nmi", "purity")
"""Scores of calls that name a group, whatever it is called."""
FEWEST_DONORS = 3
"""With fewer donors than this the cell is the unit."""


@dataclass(frozen=True)
class Counted:
    """What a score of one method and seed is computed from."""

    matrix: sparse.csr_matrix
    """Sums of each unit, [units, columns]."""
    score: Callable[[np.ndarray], dict[str, np.ndarray]]
    """Sums over weighted units, [draws, columns], to each metric's values, [draws]."""


@dataclass(frozen=True)
class Estimate:
    """A score or a difference, with what units and seeds leave open."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided, against zero."""
    error: float
    """Standard error."""


def count_calls(
    calls: pd.DataFrame, units: np.ndarray, n_units: int, metrics: Sequence[str]
) -> Counted:
    """Count truth against call in each unit.

    Args:
        calls: ``truth`` and ``call`` (str), of one method and seed.
        units: unit of each row, 0 to n_units - 1.
        metrics: of ``CALLED`` and ``GROUPED``.
    """
    rows = calls["truth"].to_numpy(str), calls["call"].to_numpy(str)
    names, index = np.unique(np.concatenate(rows), return_inverse=True)
    truth, call = index.reshape(2, -1)
    pairs, column = np.unique(truth * len(names) + call, return_inverse=True)
    matrix = sparse.csr_matrix((np.ones(len(units), np.float32), (units, column)),
                               shape=(n_units, len(pairs)))
    truth, call = np.divmod(pairs, len(names))
    return Counted(matrix, lambda counts: score_counts(counts, truth, call, metrics))


def count_losses(losses: pd.DataFrame, units: np.ndarray, n_units: int, metric: str) -> Counted:
    """Sum the losses of each unit; the score is their mean.

    Args:
        losses: ``value``, of one method, seed and metric.
        units: unit of each row, 0 to n_units - 1.
        metric: name of the loss.
    """
    sums = [np.bincount(units, weights, n_units) for weights in (losses["value"], None)]
    return Counted(sparse.csr_matrix(np.column_stack(sums)),
                   lambda counts: {metric: counts[:, 0] / counts[:, 1]})


def score_counts(
    counts: np.ndarray, truth: np.ndarray, call: np.ndarray, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Score contingency tables, many at once; classes that hold no cell do not count.

    Args:
        counts: cells of each pair of truth and call that occurs, [draws, pairs].
        truth: class of each pair, [pairs].
        call: class or group of each pair, [pairs]; equal numbers mean equal names.
        metrics: of ``CALLED`` and ``GROUPED``.

    Returns:
        Each metric's values, [draws].

    Example:
        >>> pair = np.array([[0, 0], [0, 1], [1, 1]])
        >>> found = score_counts(np.array([[3, 1, 4]]), *pair.T, ["accuracy", "purity"])
        >>> found["accuracy"].tolist(), found["purity"].tolist()
        ([0.875], [0.875])
    """
    counts = np.asarray(counts, dtype=np.float64)
    classes = np.arange(1 + max(truth.max(), call.max()))
    total = counts.sum(axis=1)
    of_truth, of_call = ((index[:, None] == classes).astype(float) for index in (truth, call))
    rows, columns = counts @ of_truth, counts @ of_call
    right = counts @ (of_truth * of_call)
    there = rows > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.where(there, values, 0).sum(axis=1) / there.sum(axis=1)

    found = {}
    for metric in metrics:
        if metric == "accuracy":
            found[metric] = right.sum(axis=1) / total
        elif metric == "balanced_accuracy":
            found[metric] = mean(right / np.maximum(rows, 1))
        elif metric == "macro_f1":
            found[metric] = mean(2 * right / np.maximum(rows + columns, 1))
        elif metric == "purity":
            largest = [counts[:, call == group].max(axis=1) for group in np.unique(call)]
            found[metric] = np.sum(largest, axis=0) / total
        else:
            found[metric] = {"ari": _ari, "nmi": _nmi}[metric](counts, rows, columns, total)
    return found


def resample(
    counted: Mapping[Hashable, Counted], *, draws: int = 500, seed: int = 0
) -> dict[Hashable, dict[str, np.ndarray]]:
    """Score everything on the units as they are and on units drawn with replacement.

    Args:
        counted: of each method and seed, over the same units.
        draws: bootstrap draws.
        seed: seed of the draws.

    Returns:
        For every key each metric's values, [1 + draws]; the first is the score itself.
    """
    if not counted:
        return {}
    units = next(iter(counted.values())).matrix.shape[0]
    rng = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // units)
    whole = np.ones((1, units), np.float32)
    found = {key: [one.score(whole @ one.matrix)] for key, one in counted.items()}
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = rng.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        weights = weights.astype(np.float32)
        for key, one in counted.items():
            with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any counted row
                found[key].append(one.score(weights @ one.matrix))
    return {key: {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}
            for key, parts in found.items()}


def estimate(values: np.ndarray, units: int, level: float = 0.95) -> Estimate:
    """Mean over seeds, its standard error from units and seeds, and Student's t around it.

    The variance is that of resampled units plus that of seeds, less what both count (Cameron,
    Gelbach and Miller 2011, doi 10.1198/jbes.2010.07136); degrees of freedom are Satterthwaite's,
    so that few donors or few seeds widen the interval. With a single seed, what another would
    change is not in it. The interval stands around the score itself, since resampled cells occur
    twice and so agree with themselves.

    Args:
        values: scores or paired differences, [seeds, 1 + draws]; the first column is no draw.
        units: cells or donors that were resampled.

    Returns:
        An estimate whose interval is NaN where nothing varies that could be estimated from.
    """
    observed, drawn = values[:, 0], values[:, 1:]
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    mean, seeds = float(observed.mean()), len(observed)
    from_units = from_seeds = both = 0.0
    if drawn.shape[1] > 1 and units > 1:
        few = units / (units - 1)  # a bootstrap variance is that much too small
        from_units = few * drawn.mean(axis=0).var(ddof=1)
        each = few * drawn.var(axis=1, ddof=1).mean()
        both = max(each - from_units, 0) / max(seeds - 1, 1)
    if seeds > 1:
        from_seeds = max(observed.var(ddof=1) / seeds - both, 0.0)
    variance = from_units + from_seeds
    if variance < 1e-20:
        return Estimate(mean, *((0.0, 0.0, 1.0) if mean == 0 else (np.nan,) * 3), error=0.0)
    freedom = variance**2 / (from_units**2 / max(units - 1, 1) + from_seeds**2 / max(seeds - 1, 1))
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf((1 + level) / 2, freedom) * error)
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return Estimate(mean, mean - half, mean + half, p, error)


def units_of(
    rows: pd.Series, cells: int, donors: Sequence | None
) -> tuple[np.ndarray, int, str]:
    """Say which unit each row belongs to.

    Args:
        rows: position of the cell of each row.
        cells: how many cells the data set has.
        donors: donor of each of them, [cells], where donors were held out.

    Returns:
        Unit of each row, number of units, and ``donor`` or ``cell``.
    """
    at = rows.to_numpy(dtype=int)
    if donors is not None:
        names = pd.Series(np.asarray(donors, dtype=object)).astype(str)
        index, kinds = pd.factorize(names)
        if len(np.unique(index[at])) >= FEWEST_DONORS:
            return index[at], len(kinds), "donor"
    return at, cells, "cell"


def _ari(counts, rows, columns, total) -> np.ndarray:
    """Adjusted Rand index of many tables (Hubert and Arabie 1985, doi 10.1007/BF01908075)."""
    both, one, other = (_pairs(part).sum(axis=1) for part in (counts, rows, columns))
    expected = one * other / np.maximum(_pairs(total), 1)
    most = (one + other) / 2
    return np.where(most > expected, (both - expected) / np.maximum(most - expected, 1e-12), 1.0)


def _nmi(counts, rows, columns, total) -> np.ndarray:
    """Mutual information over the mean of both entropies, of many tables."""
    joint, one, other = (_entropy(part, total) for part in (counts, rows, columns))
    sides = one + other
    return np.where(sides > 0, 2 * (sides - joint) / np.maximum(sides, 1e-12), 1.0)


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) / 2


def _entropy(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    share = counts / total[:, None]
    return -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
