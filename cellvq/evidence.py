"""How sure we are: intervals over repeats, permutation nulls, enrichment, false discovery rate.

Plain arrays in. Cells without a label (missing, or an empty string) are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from cellvq import InputError

PERMUTATION_NULL = "labels shuffled over cells, group sizes kept"


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` repeats and the interval around it (NaN with a single repeat)."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        interval = f"{self.level:.0%} interval {self.low:.3f} to {self.high:.3f}"
        return f"{self.estimate:.3f} ({interval if self.n > 1 else 'no interval'}, n = {self.n})"


@dataclass(frozen=True)
class NullTest:
    """A statistic beside its permutation null; ``p`` is one-sided."""

    observed: float
    null_mean: float
    null_high: float  # 95th percentile of the null
    p: float
    permutations: int
    null: str = PERMUTATION_NULL


def labelled(labels: Sequence) -> np.ndarray:
    """Tell which cells carry a label: neither missing nor an empty string.

    Example:
        >>> labelled(["B", "", None, float("nan"), "NK"]).tolist()
        [True, False, False, False, True]
    """
    labels = pd.Series(np.asarray(labels, dtype=object))
    return (labels.notna() & (labels.astype(str).str.strip() != "")).to_numpy()


def labelled_pair(labels: Sequence, groups: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups as text, of the cells that have both.

    Raises:
        InputError: lengths differ, or no cell carries a label.
    """
    labels, groups = np.asarray(labels, dtype=object), np.asarray(groups, dtype=object)
    if len(labels) != len(groups):
        raise InputError(f"{len(labels)} labels for {len(groups)} cells: give one for each cell")
    keep = labelled(labels) & labelled(groups)
    if not keep.any():
        raise InputError("no cell carries a label: name another label column")
    return labels[keep].astype(str), groups[keep].astype(str)


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> Interval:
    """Mean over repeats with its expanded percentile bootstrap interval.

    The plain percentile interval of few repeats is far too short; Hesterberg's expansion mends that
    (doi 10.1080/00031305.2015.1089789). With two to four repeats no bootstrap can reach the level,
    and Student's t takes its place. Repeats over seeds measure what the seed changes, not what
    other donors would change. Equal values give an interval of length zero.

    Args:
        values: one value a repeat, [repeats].

    Example:
        >>> bootstrap_interval([0.5, 0.5, 0.5])
        Interval(estimate=0.5, low=0.5, high=0.5, n=3, level=0.95)
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        raise InputError("an interval needs finite values: a score is missing")
    if n == 1:
        return Interval(float(values[0]), np.nan, np.nan, 1, level)
    t = stats.t.ppf((1 + level) / 2, n - 1)
    mean = float(values.mean())
    if n < 5:
        half = float(t * stats.sem(values))
        return Interval(mean, mean - half, mean + half, n, level)
    tail = stats.norm.sf(np.sqrt(n / (n - 1)) * t)
    draws = np.random.default_rng(seed).choice(values, (10_000, n)).mean(axis=1)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), n, level)


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean difference to a baseline over the same repeats, with :func:`bootstrap_interval`."""
    if len(values) != len(baseline):
        raise InputError(f"{len(values)} scores against {len(baseline)}: pair them by seed")
    return bootstrap_interval(np.subtract(values, baseline), seed, level)


def permutation_test(
    labels: Sequence,
    groups: Sequence,
    statistic: Callable[[Sequence, Sequence], float],
    *,
    permutations: int = 200,
    seed: int = 0,
) -> NullTest:
    """Compare a statistic of labels and groups with labels shuffled over cells.

    Group sizes stay, so the null is matched in code usage: many small codes are pure by chance.

    Example:
        >>> from sklearn.metrics import adjusted_rand_score
        >>> test = permutation_test([0] * 20 + [1] * 20, [0] * 20 + [1] * 20, adjusted_rand_score)
        >>> test.p < 0.01
        True
    """
    labels, groups = labelled_pair(labels, groups)
    rng = np.random.default_rng(seed)
    observed = statistic(labels, groups)
    null = np.array([statistic(rng.permutation(labels), groups) for _ in range(permutations)])
    p = (1 + (null >= observed).sum()) / (1 + permutations)
    return NullTest(
        float(observed), float(null.mean()), float(np.quantile(null, 0.95)), float(p), permutations
    )


def false_discovery_rate(p: Sequence[float]) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values; a missing p-value stays missing.

    Example:
        >>> false_discovery_rate([0.01, float("nan"), 0.04]).tolist()
        [0.02, nan, 0.04]
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested])
    return adjusted


def skewed_tail(z: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Chance of more than z under Pearson's type III distribution, of mean 0 and variance 1.

    Sums over cells drawn at random have a known skewness, and for few cells or rare genes the
    normal distribution would call far too many of them extreme.

    Args:
        z: standardised statistics.
        skewness: skewness of each under the null.

    Example:
        >>> skewed_tail(np.array([2.0, 2.0]), np.array([0.0, 1.5])).round(3).tolist()
        [0.023, 0.047]
    """
    skewness = np.where(np.abs(skewness) < 1e-3, 1e-3, skewness)
    shape = 4 / skewness**2
    reach = np.maximum(shape + 2 * z / skewness, 0)
    return np.where(skewness > 0, special.gammaincc(shape, reach), special.gammainc(shape, reach))


def enrichment(groups: Sequence, labels: Sequence) -> pd.DataFrame:
    """Test for every group and label whether they share more cells than chance would give.

    One-sided hypergeometric test, which is the exact form of shuffling labels over cells with
    group sizes kept; Benjamini-Hochberg over all pairs. Groups learnt from the same cells make
    these p-values descriptive: they rank, they do not prove.

    Returns:
        One row a pair: ``group``, ``label`` (str), ``cells`` (both), ``group_cells``,
        ``label_cells``, ``n_cells`` (int, labelled cells), ``fraction`` (of the group's labelled
        cells), ``log2_enrichment`` (observed to expected cells, half a cell added to each),
        ``p``, ``fdr``.

    Example:
        >>> table = enrichment([0] * 20 + [1] * 20, ["B"] * 20 + ["NK"] * 20)
        >>> table.loc[table["fdr"] < 0.05, ["group", "label"]].values.tolist()
        [['0', 'B'], ['1', 'NK']]
    """
    labels, groups = labelled_pair(labels, groups)
    counts = pd.crosstab(pd.Series(groups, name="group"), pd.Series(labels, name="label"))
    table = counts.stack().rename("cells").reset_index()
    table["group_cells"] = table.groupby("group")["cells"].transform("sum")
    table["label_cells"] = table.groupby("label")["cells"].transform("sum")
    table["n_cells"] = len(labels)
    table["fraction"] = table["cells"] / table["group_cells"]
    expected = table["group_cells"] * table["label_cells"] / len(labels)
    table["log2_enrichment"] = np.log2((table["cells"] + 0.5) / (expected + 0.5))
    table["p"] = stats.hypergeom.sf(
        table["cells"] - 1, len(labels), table["label_cells"], table["group_cells"]
    )
    table["fdr"] = false_discovery_rate(table["p"])
    return table
