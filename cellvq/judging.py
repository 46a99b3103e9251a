"""Verdicts on many comparisons: corrected over data sets, and said in words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cellvq.questions import OVERALL, QUESTION
from cellvq.scores import SHUFFLED

METRIC_NAMES = {
    "macro_f1": "macro-F1", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC", "ari": "ARI", "nmi": "NMI", "purity": "purity", "total": "total scIB score",
    "silhouette": "silhouette", "biology": "biology conserved", "batches": "batches mixed",
    "poisson": "Poisson loss", "negative_binomial": "negative binomial loss",
    "squared_error": "squared error of logarithms",
}
AHEAD, BEHIND, EQUAL = "ahead", "behind", "not distinguishable"
UNJUDGED = "no interval"
"""Every seed gave the same score and no cell was resampled, so there is nothing to judge by."""


def correct(table: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Holm's correction over data sets, and the verdicts that survive it.

    A family is a method against a baseline in one task, protocol, representation and metric, on
    all data sets: tables of several are joined first. With one data set nothing is corrected, and
    a verdict says whether the interval leaves out zero.

    Args:
        table: :func:`cellvq.significance.verdicts`, of one or of several data sets.
        alpha: chance of a wrong verdict in a family, at the most.

    Example:
        >>> table = pd.DataFrame({"dataset": ["a", "b"], "task": "annotation", "protocol": "p",
        ...     "representation": "code", "metric": "macro_f1", "method": "CellVQ",
        ...     "baseline": "PCA", "difference": [0.1, -0.1], "low": 0.0, "high": 0.0,
        ...     "p": [0.01, 0.04]})
        >>> correct(table)["p_adjusted"].tolist(), correct(table)["verdict"].tolist()
        ([0.02, 0.04], ['ahead', 'behind'])
    """
    table = table.drop(columns=["p_adjusted", "verdict"], errors="ignore").reset_index(drop=True)
    # The overall score is one question, whatever protocol its annotation has in a data set.
    protocol = table["protocol"].where(table["task"] != OVERALL, "")
    question = ("task", "representation", "metric", "method", "baseline")
    keys = [protocol, *(table[name] for name in question)]
    adjusted = table.groupby(keys, sort=False)["p"].transform(holm).astype(float)
    words = np.select(
        [adjusted.isna(), adjusted >= alpha, table["difference"] > 0], [UNJUDGED, EQUAL, AHEAD],
        BEHIND)
    place = table.columns.get_loc("p") + 1
    table.insert(place, "p_adjusted", adjusted)
    table.insert(place + 1, "verdict", words.astype(object))
    return table


def in_words(table: pd.DataFrame, baselines: Iterable[str] | None = None) -> str:
    """Say in one sentence a score how a method stands against the others.

    Args:
        table: :func:`cellvq.significance.verdicts`; controls with shuffled labels are passed over.
        baselines: of whom to speak; None: of all.

    Example:
        >>> table = pd.DataFrame({"dataset": "kang", "task": "annotation", "protocol": "new_donor",
        ...     "representation": "embedding", "metric": "macro_f1", "method": "CellVQ",
        ...     "baseline": ["PCA", "scVI"], "verdict": ["ahead", "not distinguishable"],
        ...     "difference": [0.021, 0.004], "low": [0.012, -0.01], "high": [0.03, 0.02],
        ...     "n_donors": 8, "n_cells": 2000, "seeds": 5})
        >>> print(in_words(table).replace(": ", ":\\n").replace(" and ", "\\nand "))
        kang, annotation (new_donor), macro-F1 of the embedding:
        CellVQ is ahead of PCA (+0.021, interval +0.012 to +0.030),
        and not distinguishable from scVI. 8 donors, 5 seeds.
    """
    if baselines is not None:
        table = table[table["baseline"].isin(list(baselines))]
    table = table[~table["baseline"].str.endswith(SHUFFLED)]
    sentences = []
    keys = [*QUESTION, "metric", "method"]
    for (dataset, task, protocol, what, metric, method), part in table.groupby(keys, sort=False):
        said = []
        for verdict, link in ((AHEAD, " of "), (EQUAL, " from "), (BEHIND, " ")):
            rows = part[part["verdict"] == verdict]
            steps = [row.baseline + f" ({row.difference:+.3f}, interval {row.low:+.3f} to "
                     f"{row.high:+.3f})" * (verdict != EQUAL) for row in rows.itertuples()]
            said += [verdict + link + _listed(steps)] if steps else []
        unjudged = part.loc[part["verdict"] == UNJUDGED, "baseline"]
        said += [f"without an interval against {_listed(list(unjudged))}"] if len(unjudged) else []
        first = part.iloc[0]
        sizes = (f"{first['n_donors']} donors" if first["n_donors"] else
                 f"{first['n_cells']:,} cells")
        where = f"{dataset}, {task} ({protocol}), " if task != OVERALL else f"{dataset}, "
        seeds = f"{part['seeds'].min()} seed{'s' if part['seeds'].min() > 1 else ''}"
        sentences.append(f"{where}{METRIC_NAMES.get(metric, metric)} of the {what}: {method} is "
                         f"{', and '.join(said)}. {sizes}, {seeds}.")
    return " ".join(sentences)


def counted(table: pd.DataFrame) -> str:
    """Say in one sentence how often a method is ahead of each of the others, for many data sets.

    Args:
        table: :func:`cellvq.significance.verdicts` of one method, one row a comparison; controls
            with shuffled labels are passed over.

    Example:
        >>> table = pd.DataFrame({"dataset": ["a", "b"], "method": "CellVQ", "baseline": "PCA",
        ...     "verdict": ["ahead", "behind"], "n_cells": [90, 60]})
        >>> print(counted(table))
        CellVQ over 2 data sets (150 cells): against PCA: ahead in 1, behind in 1, undecided in 0.
    """
    table = table[~table["baseline"].str.endswith(SHUFFLED)]
    if table.empty:
        return "Nothing was compared."
    parts = []
    for baseline, part in table.groupby("baseline", sort=False):
        ahead, behind = ((part["verdict"] == word).sum() for word in (AHEAD, BEHIND))
        parts.append(f"against {baseline}: ahead in {ahead}, behind in {behind}, undecided in "
                     f"{len(part) - ahead - behind}")
    sets = table.drop_duplicates("dataset")
    many = f"{len(sets)} data set{'s' if len(sets) > 1 else ''}"
    return (f"{table['method'].iloc[0]} over {many} ({sets['n_cells'].sum():,} cells): "
            f"{_listed(parts)}.")


def holm(p: pd.Series) -> pd.Series:
    """Holm-adjusted p-values; a missing one stays missing.

    Example:
        >>> holm(pd.Series([0.01, 0.04, float("nan"), 0.03])).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    ordered = p.dropna().sort_values()
    steps = ordered * np.arange(len(ordered), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)


def _listed(words: list[str]) -> str:
    """Names hold commas, so that semicolons part them."""
    return "; ".join(words)
