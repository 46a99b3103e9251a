"""Is one method ahead of another? Paired differences with intervals, corrected, in words.

Score table, one row a value: ``dataset``, ``task``, ``protocol``, ``method``, ``representation``
(``embedding`` or ``code``), ``metric`` (str), ``seed`` (int), ``value`` (float), ``n_cells``,
``n_groups`` (int), ``settings`` (JSON), ``status`` (empty, or why there is no value).

Calls, one row a test cell: ``dataset``, ``task``, ``protocol``, ``method``, ``representation``,
``seed``, ``fold``, ``cell`` (position), ``truth``, ``call`` (str). Losses are alike, with
``metric`` and ``value`` (lower is better) in place of ``truth`` and ``call``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import pandas as pd

from cellvq import InputError, evidence
from cellvq.judging import AHEAD, BEHIND, EQUAL, UNJUDGED, correct, holm, in_words
from cellvq.questions import QUESTION, Answer, answer, answers, metrics_of, named, overall_scores
from cellvq.ranking import CriticalDifference, critical_difference, ranks
from cellvq.resampling import Estimate, count_calls, estimate

__all__ = [
    "AHEAD", "BEHIND", "EQUAL", "SCORES", "UNJUDGED", "CriticalDifference", "correct",
    "critical_difference", "holm", "in_words", "judge", "overall_scores", "paired_bootstrap",
    "paired_scores", "ranks", "score_calls", "score_losses", "score_table", "summarise", "verdicts",
]
SCORES = [*QUESTION, "metric", "method", "seed", "value", "n_cells", "n_groups", "settings",
          "status"]
NEITHER = ("codes_used", "perplexity")
"""Metrics in which more is neither better nor worse, so that they get no verdict."""


def score_calls(calls: pd.DataFrame) -> pd.DataFrame:
    """Score calls: macro-F1, accuracy and balanced accuracy, or for groups ARI, NMI and purity.

    All folds are pooled first, so that rare classes are scored once. Macro-F1 is over the classes
    that test cells have.

    Returns:
        Score table.

    Example:
        >>> calls = pd.DataFrame({"task": "annotation", "protocol": "within_study", "method": "PCA",
        ...     "representation": "embedding", "seed": 0, "fold": 0, "cell": range(4),
        ...     "truth": ["B", "B", "NK", "NK"], "call": ["B", "B", "NK", "B"]})
        >>> score_calls(calls).set_index("metric")["value"].round(3).to_dict()
        {'macro_f1': 0.733, 'accuracy': 0.75, 'balanced_accuracy': 0.75}
    """
    rows = []
    for names, part in named(calls).groupby([*QUESTION, "method", "seed"], sort=False):
        units = np.zeros(len(part), dtype=int)
        counted = count_calls(part, units, 1, metrics_of(names[1], names[3]))
        groups = part["call" if names[1] == "clustering" else "truth"].nunique()
        for metric, value in counted.score(counted.matrix.toarray()).items():
            rows.append((*names[:4], metric, *names[4:], value[0], part["cell"].nunique(), groups,
                         "{}", ""))
    return pd.DataFrame(rows, columns=SCORES)


def score_table(
    scores: pd.DataFrame, calls: pd.DataFrame | None = None, losses: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Join scores with those of calls and losses and with the overall score of each method.

    A failure that names no metric gets a row in every score that others have in this task.
    """
    tables = [scores.reindex(columns=SCORES)] if len(scores) else []
    tables += [score_calls(calls)] if calls is not None and len(calls) else []
    tables += [score_losses(losses)] if losses is not None and len(losses) else []
    if not tables:
        return pd.DataFrame(columns=SCORES)
    joined = _spread(pd.concat(tables, ignore_index=True))
    return pd.concat([joined, overall_scores(joined)], ignore_index=True)


def score_losses(losses: pd.DataFrame) -> pd.DataFrame:
    """Mean loss of the cells, as a score table."""
    keys = [*QUESTION, "metric", "method", "seed"]
    table = named(losses).groupby(keys, sort=False, as_index=False).agg(
        value=("value", "mean"), n_cells=("cell", "nunique"))
    return table.assign(n_groups=0, settings="{}", status="")[SCORES]


def paired_bootstrap(
    calls: pd.DataFrame, method: str, baseline: str, metric: str, *, draws: int = 500,
    seed: int = 0, donors: Sequence | None = None,
) -> evidence.Interval:
    """Difference of two methods with its interval over cells (or donors) and seeds.

    Args:
        calls: calls of both for one data set, task, protocol and representation; the same cells
            and seeds of both are compared.
        method: who may be ahead.
        baseline: whom to compare with.
        metric: of :func:`cellvq.questions.metrics_of`.
        draws: bootstrap draws.
        seed: seed of the draws.
        donors: donor of each cell of the data set, to resample donors with all their cells.

    Raises:
        InputError: the two have no seed or no cell in common.
    """
    rows = named(calls[calls["method"].isin([method, baseline])])
    cells = 1 + int(rows["cell"].max()) if donors is None else len(donors)
    found = answer(rows, cells, donors=donors, draws=draws, seed=seed)
    pair = _difference(found.values, method, baseline, metric, found.units)
    if pair is None:
        raise InputError(f"{method} and {baseline} share no seed in {metric}: score both with it")
    return evidence.Interval(pair[0].value, pair[0].low, pair[0].high, found.units)


def summarise(
    scores: pd.DataFrame, calls: pd.DataFrame | None = None, losses: pd.DataFrame | None = None, *,
    donors: Sequence | None = None, draws: int = 500, seed: int = 0,
) -> pd.DataFrame:
    """Mean and 95 % interval of every score; failures keep their row.

    Args:
        scores: all scores, also those of calls and losses.
        calls: calls that some of the scores come from; those get intervals over cells and seeds,
            the others over seeds.
        losses: losses that some of the scores come from.
        donors: donor of each cell of the data set, where it is known.
        draws: bootstrap draws.
        seed: seed of the draws.

    Returns:
        One row a score: ``dataset``, ``task``, ``protocol``, ``representation``, ``metric``,
        ``method``, ``mean``, ``low``, ``high``, ``unit`` (what was resampled), ``seeds``,
        ``n_cells``, ``status``.
    """
    return _summary(scores, dict(answers(calls, losses, donors=donors, draws=draws, seed=seed)))


def verdicts(
    scores: pd.DataFrame, methods: Iterable[str], calls: pd.DataFrame | None = None,
    losses: pd.DataFrame | None = None, *, baselines: Iterable[str] | None = None,
    donors: Sequence | None = None, draws: int = 500, seed: int = 0,
) -> pd.DataFrame:
    """Judge methods against every baseline in every score of one data set.

    Scores of calls and losses are resampled over cells, or over donors where the protocol holds
    donors out and at least three are known, and over seeds; other scores over seeds alone.

    Args:
        scores: all scores.
        methods: who is judged.
        calls: calls that some of the scores come from.
        losses: losses that some of the scores come from; their differences are turned round.
        baselines: whom to compare with; None: every method that is not judged itself.
        donors: donor of each cell of the data set, where it is known.
        draws: bootstrap draws.
        seed: seed of the draws.

    Returns:
        One row a comparison: ``dataset``, ``task``, ``protocol``, ``representation``, ``metric``,
        ``method``, ``baseline`` (str), ``difference``, ``low``, ``high`` (float; above zero is
        better in every metric), ``p``, ``p_adjusted``, ``verdict``, ``unit`` (what was resampled),
        ``n_cells``, ``n_donors`` (int; 0: not resampled), ``seeds``.
    """
    answered = dict(answers(calls, losses, donors=donors, draws=draws, seed=seed))
    return _verdicts(scores, methods, answered, baselines)


def judge(
    scores: pd.DataFrame, methods: Iterable[str], calls: pd.DataFrame | None = None,
    losses: pd.DataFrame | None = None, *, donors: Sequence | None = None, draws: int = 500,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both :func:`summarise` and :func:`verdicts`, which share the draws and half of the time."""
    answered = dict(answers(calls, losses, donors=donors, draws=draws, seed=seed))
    return _summary(scores, answered), _verdicts(scores, methods, answered)


def paired_scores(
    scores: pd.DataFrame, method: str, baseline: str, metric: str
) -> evidence.Interval:
    """Difference of two methods with its interval over seeds, for scores that no calls underlie.

    Raises:
        InputError: the two have no seed in common.
    """
    part = scores[scores["metric"].eq(metric) & scores["value"].notna()]
    found = _difference(_by_seed(part), method, baseline, metric, 0)
    if found is None:
        raise InputError(f"{method} and {baseline} share no seed in {metric}: score both with it")
    return evidence.Interval(found[0].value, found[0].low, found[0].high, found[1])


def _summary(scores: pd.DataFrame, answered: dict[tuple, Answer]) -> pd.DataFrame:
    drawn = {}
    for question, found in answered.items():
        for method in {key[0] for key in found.values}:
            own = [value for key, value in found.values.items() if key[0] == method]
            for metric in own[0]:
                values = np.stack([value[metric] for value in own])
                drawn[*question, metric, method] = (estimate(values, found.units), found.unit)
    rows = []
    for names, part in scores.groupby([*QUESTION, "metric", "method"], sort=False):
        good = part["value"].dropna()
        plain = good.to_numpy(dtype=float)[:, None]
        found, unit = drawn.get(names) or (estimate(plain, 0) if len(good) else None, "seed")
        numbers = (found.value, found.low, found.high) if found else (np.nan,) * 3
        failed = part.loc[part["status"].fillna("") != "", "status"]
        rows.append((*names, *numbers, unit, part.loc[good.index, "seed"].nunique(),
                     part["n_cells"].min(), "; ".join(failed.drop_duplicates())))
    return pd.DataFrame(rows, columns=[
        *QUESTION, "metric", "method", "mean", "low", "high", "unit", "seeds", "n_cells", "status"])


def _verdicts(
    scores: pd.DataFrame, methods: Iterable[str], answered: dict[tuple, Answer],
    baselines: Iterable[str] | None = None,
) -> pd.DataFrame:
    keys, methods = [*QUESTION, "metric"], list(methods)
    there = scores[scores["value"].notna() & ~scores["metric"].isin(NEITHER)]
    rows = []
    for names, part in there.groupby(keys, sort=False):
        sizes = part.groupby("method", sort=False)["n_cells"].min()
        found = answered.get(names[:-1])
        if found is None or not any(names[-1] in values for values in found.values.values()):
            found = Answer(_by_seed(part), 0, "seed")
        others = sizes.index.difference(methods) if baselines is None else baselines
        for method, other in product(methods, others):
            pair = _difference(found.values, method, other, names[-1], found.units)
            if pair and method != other:
                rows.append((*names, method, other, *_facts(pair[0], names[1]),
                             found.unit, sizes[[method, other]].min(),
                             found.units * (found.unit == "donor"), pair[1]))
    table = pd.DataFrame(rows, columns=[
        *keys, "method", "baseline", "difference", "low", "high", "p", "unit", "n_cells",
        "n_donors", "seeds"])
    return correct(table)


def _facts(found: Estimate, task: str) -> tuple[float, float, float, float]:
    if task == "denoising":  # a loss: less is better
        return -found.value, -found.high, -found.low, found.p
    return found.value, found.low, found.high, found.p


def _spread(scores: pd.DataFrame) -> pd.DataFrame:
    blank = scores["metric"].eq("") & scores["status"].fillna("").ne("")
    if not blank.any():
        return scores
    where = ["dataset", "task"]
    named = [*where, "protocol", "representation", "metric"]
    there = scores.loc[~blank & scores["representation"].eq("embedding"), named].drop_duplicates()
    spread = scores[blank].drop(columns=named[2:]).merge(there, on=where, how="left")
    spread = spread.fillna({"protocol": "", "representation": "embedding", "metric": ""})
    return pd.concat([scores[~blank], spread[list(scores)]], ignore_index=True)


def _by_seed(scores: pd.DataFrame) -> dict[tuple, dict[str, np.ndarray]]:
    columns = scores[["method", "seed", "metric", "value"]]
    return {(method, seed): {metric: np.array([value])}
            for method, seed, metric, value in columns.itertuples(index=False)}


def _difference(values, method, baseline, metric, units) -> tuple[Estimate, int] | None:
    one, other = ({seed: found[metric] for (who, seed), found in values.items()
                   if who == name and metric in found} for name in (method, baseline))
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return None
    return estimate(np.stack([one[at] - other[at] for at in seeds]), units), len(seeds)
