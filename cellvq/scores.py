"""Score tables: what stands in them, their summary over seeds, and verdicts in words.

Score table, one row a value:

=============== ===== ==========================================================================
dataset         str   name of the data set
task            str   ``annotation`` (a probe), ``clustering`` or ``usage``
method          str   who made the representation; ``... (labels shuffled)`` is the control
representation  str   ``embedding`` or ``code``
metric          str   macro_f1, ari, nmi, purity (0 to 1); codes_used, perplexity (codes)
seed            int   seed of the method, of the folds and of the starts of k-means
value           float the score
n_cells         int   cells that carry a label (usage: all cells)
n_groups        int   classes (annotation) or groups (clustering, usage)
=============== ===== ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from cellvq import InputError, evidence

SCORE_COLUMNS = [
    "dataset", "task", "method", "representation", "metric", "seed", "value", "n_cells", "n_groups",
]
SHUFFLED = " (labels shuffled)"
MODEL, PCA, KMEANS = "CellVQ", "PCA", "k-means on PCA"
NARROW = "PCA, as wide as CellVQ"


def summarise(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean and 95 % interval of every score over seeds.

    Returns:
        One row a score: ``dataset``, ``task``, ``representation``, ``metric``, ``method`` (str),
        ``mean``, ``low``, ``high`` (float; NaN interval with one seed), ``seeds``, ``n_cells``
        (int, smallest over seeds).
    """
    keys = ["dataset", "task", "representation", "metric", "method"]
    rows = []
    for names, part in scores.groupby(keys, sort=False):
        interval = evidence.bootstrap_interval(part["value"], seed)
        bounds = (interval.estimate, interval.low, interval.high, interval.n)
        rows.append((*names, *bounds, part["n_cells"].min()))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "seeds", "n_cells"])


@dataclass(frozen=True)
class Verdict:
    """A method against a baseline in one metric, from differences paired by seed."""

    method: str
    baseline: str
    representation: str
    metric: str
    word: str  # ahead, behind, not distinguishable
    difference: evidence.Interval

    def __str__(self) -> str:
        link = {"ahead": " of", "behind": "", "not distinguishable": " from"}[self.word]
        return (
            f"{self.method} is {self.word}{link} {self.baseline} in {self.metric} "
            f"({self.representation}): difference {self.difference}"
        )


def verdict(
    scores: pd.DataFrame,
    method: str = MODEL,
    baseline: str = PCA,
    metric: str = "macro_f1",
    representation: str = "embedding",
    *,
    seed: int = 0,
) -> Verdict:
    """Say whether a method is ahead of a baseline, from differences paired by data set and seed.

    ``ahead`` or ``behind`` needs an interval without zero, so at least two seeds. It speaks of
    these cells under other seeds, not of other cells.

    Raises:
        InputError: the two methods share no seed in this metric.
    """
    part = scores[(scores["metric"] == metric) & (scores["representation"] == representation)]
    values = part.pivot_table(index=["dataset", "seed"], columns="method", values="value")
    missing = [name for name in (method, baseline) if name not in values]
    if missing:
        raise InputError(
            f"no {metric} of {' and '.join(missing)} for the {representation}; "
            f"scored methods: {', '.join(values.columns) or 'none'}"
        )
    values = values[[method, baseline]].dropna()
    if values.empty:
        raise InputError(f"{method} and {baseline} share no seed in {metric}: score both with it")
    interval = evidence.paired_difference(values[method], values[baseline], seed)
    word = "not distinguishable"
    if interval.low > 0:
        word = "ahead"
    elif interval.high < 0:
        word = "behind"
    return Verdict(method, baseline, representation, metric, word, interval)


def verdicts(scores: pd.DataFrame, method: str = MODEL, seed: int = 0) -> pd.DataFrame:
    """Judge a method against every other one in every metric that says better or worse.

    Returns:
        One row a comparison: ``representation``, ``metric``, ``baseline``, ``verdict`` (str),
        ``difference``, ``low``, ``high`` (float), ``seeds`` (int).
    """
    judged = scores[scores["task"] != "usage"]
    keys = judged[["representation", "metric", "method"]].drop_duplicates()
    own = keys.loc[keys["method"] == method, ["representation", "metric"]]
    rows = []
    for key in keys[keys["method"] != method].merge(own).itertuples():
        found = verdict(judged, method, key.method, key.metric, key.representation, seed=seed)
        step = found.difference
        rows.append((found.representation, found.metric, found.baseline, found.word,
                     step.estimate, step.low, step.high, step.n))
    return pd.DataFrame(rows, columns=[
        "representation", "metric", "baseline", "verdict", "difference", "low", "high", "seeds",
    ])


def in_words(table: pd.DataFrame, representation: str, method: str = MODEL) -> str:
    """Say in one sentence how a method stands against each of its baselines.

    Args:
        table: :func:`verdicts`; controls with shuffled labels are passed over.
        representation: ``embedding`` or ``code``.

    Example:
        >>> rows = pd.DataFrame({"representation": "code", "metric": ["nmi", "ari"],
        ...     "baseline": "k-means on PCA", "verdict": ["ahead", "not distinguishable"],
        ...     "difference": [0.021, 0.004], "seeds": 5})
        >>> in_words(rows, "code")
        "CellVQ's code against k-means on PCA: ahead in NMI (+0.021); not distinguishable in ARI."
    """
    names = {"macro_f1": "macro-F1", "ari": "ARI", "nmi": "NMI"}
    table = table[table["representation"] == representation]
    table = table[~table["baseline"].str.endswith(SHUFFLED)]
    sentences = []
    for baseline, part in table.groupby("baseline", sort=False):
        words = []
        for word in ("ahead", "not distinguishable", "behind"):
            found = part[part["verdict"] == word]
            steps = zip(found["metric"], found["difference"], strict=True)
            shown = [f"{names.get(metric, metric)} ({step:+.3f})" if word != "not distinguishable"
                     else names.get(metric, metric) for metric, step in steps]
            words += [f"{word} in {', '.join(shown)}"] if shown else []
        what = {"embedding": "vector", "code": "code"}[representation]
        sentences.append(f"{method}'s {what} against {baseline}: {'; '.join(words)}.")
    return " ".join(sentences)
