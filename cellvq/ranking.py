"""Who ranks where over data sets, and which ranks can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cellvq import InputError

LOWER = ("denoising", "cost")
"""Tasks in which less is better."""


@dataclass(frozen=True)
class CriticalDifference:
    """Mean ranks, and by how much two have to differ."""

    ranks: pd.Series
    """Mean rank of each method, best first; 1 is best."""
    difference: float
    """Nemenyi's critical difference of two mean ranks."""
    p: float
    """Friedman's test that all methods rank alike."""
    blocks: int
    left_out: tuple[str, ...]
    """Methods that are not ranked in every block."""

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Largest sets of methods that no critical difference separates, best first.

        Example:
            >>> ranks = pd.Series({"a": 1.0, "b": 1.8, "c": 2.9})
            >>> CriticalDifference(ranks, 1.2, 0.01, 9, ()).groups
            [('a', 'b'), ('b', 'c')]
        """
        ranks, found, reached = self.ranks, [], 0
        for start, rank in enumerate(ranks):
            end = int((ranks <= rank + self.difference).sum())
            if end > max(reached, start + 1):
                found.append(tuple(ranks.index[start:end]))
                reached = end
        return found

    def __str__(self) -> str:
        words = ", ".join(f"{name} {rank:.2f}" for name, rank in self.ranks.items())
        return (f"mean ranks over {self.blocks} blocks: {words} (Friedman p = {self.p:.2g}; two "
                f"ranks differ from {self.difference:.2f} on)")


def ranks(scores: pd.DataFrame, blocks: Sequence[str] = ("dataset",)) -> pd.DataFrame:
    """Rank methods in every block; a failure ranks last.

    Scores are averaged over seeds, ranked in each protocol and metric, and these ranks averaged
    in the block and ranked again, so that a block counts once however many metrics it has.

    Args:
        scores: score table of one representation, of the metrics that are to count.
        blocks: columns that name a block. Friedman's test takes blocks as independent, which data
            sets are and tasks on the same cells are not.

    Returns:
        Rank of each method, [blocks, methods]; NaN where a method was not run.

    Example:
        >>> scores = pd.DataFrame({"dataset": ["a", "a", "b", "b"], "task": "t", "protocol": "p",
        ...     "metric": "nmi", "method": ["x", "y"] * 2, "value": [0.9, 0.8, 0.7, 0.2],
        ...     "status": ""})
        >>> ranks(scores).values.tolist()
        [[1.0, 2.0], [1.0, 2.0]]
    """
    question = list(dict.fromkeys([*blocks, "task", "protocol", "metric"]))
    failed = scores["value"].isna() & (scores["status"].fillna("") != "")
    scores = scores[scores["value"].notna() | failed]
    sign = np.where(scores["task"].isin(LOWER), 1.0, -1.0)
    table = scores.assign(worse=(scores["value"] * sign).where(~failed, np.inf))
    means = table.pivot_table(index=question, columns="method", values="worse", sort=False)
    each = means.rank(axis=1)
    return each.groupby(level=list(blocks), sort=False).mean().rank(axis=1)


def critical_difference(table: pd.DataFrame, alpha: float = 0.05) -> CriticalDifference:
    """Friedman's test and Nemenyi's critical difference (Demsar 2006, JMLR 7:1-30).

    Args:
        table: :func:`ranks`.
        alpha: chance of telling any two equal methods apart.

    Raises:
        InputError: fewer than two blocks, or fewer than three methods in all of them.

    Example:
        >>> table = pd.DataFrame({"a": [1.0] * 9, "b": [2.0] * 9, "c": [3.0] * 9})
        >>> found = critical_difference(table)
        >>> round(found.difference, 3), found.groups
        (1.105, [('a', 'b'), ('b', 'c')])
    """
    whole = table.dropna(axis=1)
    blocks, methods = whole.shape
    if blocks < 2 or methods < 3:
        raise InputError(
            f"a critical difference needs two data sets and three methods that ran on all of them; "
            f"there are {blocks} and {methods}: join the tables of more runs"
        )
    whole = whole.rank(axis=1)  # without those that are left out
    quantile = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    difference = quantile * np.sqrt(methods * (methods + 1) / (6 * blocks))
    alike = (whole.nunique(axis=1) == 1).all()  # every block ties all methods
    p = 1.0 if alike else float(stats.friedmanchisquare(*whole.to_numpy().T).pvalue)
    left_out = tuple(table.columns.difference(whole.columns))
    return CriticalDifference(whole.mean().sort_values(), float(difference), p, blocks, left_out)
