"""The questions that a benchmark's calls and losses answer, each with its bootstrap draws.

A question is a data set, a task, a protocol and a representation. On top of them stands the
overall one: the mean of macro-F1, ARI and NMI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellvq.resampling import CALLED, GROUPED, count_calls, count_losses, resample, units_of
from cellvq.scores import SHUFFLED

QUESTION = ["dataset", "task", "protocol", "representation"]
NEW_DONORS = ("new_donor", "new_study", "few_labels", "unknown_class")
"""Protocols that hold donors out, by how their names begin; there the donor is the unit."""
OVERALL, MEAN = "overall", "mean of macro-F1, ARI and NMI"
OVERALL_PARTS = {"macro_f1": "annotation", "ari": "clustering", "nmi": "clustering"}
"""Metric and task of each part of the overall score."""
HELD_OUT = ("new_donor", "within_study")
"""Annotation protocols of the overall score, of which the first that was run counts."""

Values = dict[tuple[str, int], dict[str, np.ndarray]]
"""By method and seed, each metric's values, [1 + draws]; the first is the score itself."""


@dataclass(frozen=True)
class Answer:
    """All scores of one question, with those of the bootstrap draws."""

    values: Values
    units: int
    """Cells or donors that were resampled."""
    unit: str
    """``cell`` or ``donor``."""


def metrics_of(task: str, representation: str) -> tuple[str, ...]:
    """Metrics that calls of a task are scored in."""
    if task != "clustering":
        return CALLED
    return GROUPED if representation == "code" else GROUPED[:2]


def answers(
    calls: pd.DataFrame | None, losses: pd.DataFrame | None = None, *,
    donors: Sequence | None = None, draws: int = 500, seed: int = 0,
) -> Iterator[tuple[tuple, Answer]]:
    """Resample every question, and the overall one of each data set and representation.

    Args:
        calls: calls of one data set.
        losses: losses of the same cells.
        donors: donor of each cell, [cells], where it is known.
        draws: bootstrap draws.
        seed: seed of the draws.

    Yields:
        A question (dataset, task, protocol, representation) and its answer.
    """
    tables = [named(table) for table in (calls, losses) if table is not None and len(table)]
    cells = 1 + max((int(table["cell"].max()) for table in tables), default=0)
    for table in tables:
        for question, rows in table.groupby(QUESTION, sort=False):
            held = donors if question[2].startswith(NEW_DONORS) else None
            yield question, answer(rows, cells, donors=held, draws=draws, seed=seed)
    if tables and "call" in tables[0]:
        for (dataset, representation), rows in tables[0].groupby(
            ["dataset", "representation"], sort=False
        ):
            protocol = held_out(rows)
            held = donors if protocol.startswith(NEW_DONORS) else None
            parts = [answer(rows[rows["task"].eq(task) & chosen(rows, protocol)], cells,
                            donors=held, draws=draws, seed=seed)
                     for task in dict.fromkeys(OVERALL_PARTS.values())]
            yield (dataset, OVERALL, protocol, representation), _mean(parts)


def answer(
    rows: pd.DataFrame, cells: int, *, donors: Sequence | None = None, draws: int = 500,
    seed: int = 0,
) -> Answer:
    """Resample the calls or losses of all methods, on the cells of a seed that all of them have.

    Args:
        rows: calls or losses of one task and representation; the scores of several protocols are
            averaged.
        cells: how many cells the data set has.
        donors: donor of each cell, to resample donors with all their cells.
        draws: bootstrap draws; the same seed and units draw the same units for every question.
        seed: seed of the draws.
    """
    losses = "value" in rows
    rows = rows.reset_index(drop=True)
    rows = rows.assign(measure=rows["metric"] if losses else "", fold=rows.get("fold", 0))
    index, units, unit = units_of(rows["cell"], cells, donors)
    groups = ["protocol", "seed", "measure"]
    rivals = rows[~rows["method"].isin(_controls(rows))]  # shuffled labels fall on other cells
    methods = rivals.groupby(groups)["method"].transform("nunique")
    fewer = rivals.groupby([*groups, "fold", "cell"])["method"].transform("nunique") < methods
    kept = ~rows.index.isin(fewer.index[fewer])
    rows, index = rows[kept], index[kept]
    counted = {}
    parts = rows.groupby(["method", "seed", "protocol", "measure"], sort=False).indices
    for key, at in parts.items():
        part = rows.iloc[at]
        counted[key] = (count_losses(part, index[at], units, key[3]) if losses else count_calls(
            part, index[at], units, metrics_of(part["task"].iloc[0], part["representation"].iloc[0])
        ))
    found: dict[tuple, dict[str, list]] = {}
    for (method, at, *_), values in resample(counted, draws=draws, seed=seed).items():
        for metric, value in values.items():
            found.setdefault((method, at), {}).setdefault(metric, []).append(value)
    return Answer({key: {metric: np.mean(value, axis=0) for metric, value in metrics.items()}
                   for key, metrics in found.items()}, units, unit)


def overall_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean of macro-F1, ARI and NMI of each method and seed, as rows of a score table.

    Macro-F1 is that of annotation in new donors, or within the study where no donors are known;
    where a metric has several protocols (Leiden and k-means), they are averaged first. A method
    that lacks one of the three gets no row.
    """
    rows = []
    for (dataset, representation), part in scores[scores["value"].notna()].groupby(
        ["dataset", "representation"], sort=False
    ):
        protocol = held_out(part)
        part = part[part["metric"].map(OVERALL_PARTS).eq(part["task"]) & chosen(part, protocol)]
        means = part.pivot_table(index=["method", "seed"], columns="metric", values="value",
                                 sort=False).reindex(columns=list(OVERALL_PARTS)).dropna()
        sizes = part.groupby("method")["n_cells"].min()
        rows.append(pd.DataFrame({
            "dataset": dataset, "task": OVERALL, "protocol": protocol,
            "representation": representation, "metric": MEAN, "value": means.mean(axis=1),
            "n_groups": len(OVERALL_PARTS), "settings": "{}", "status": "",
        }).reset_index().assign(n_cells=lambda table, sizes=sizes: table["method"].map(sizes)))
    rows = [row for row in rows if len(row)]
    return pd.concat(rows, ignore_index=True)[list(scores)] if rows else scores.iloc[:0]


def held_out(rows: pd.DataFrame) -> str:
    """The annotation protocol of the overall score: new donors, else within the study."""
    there = rows.loc[rows["task"] == "annotation", "protocol"].unique()
    return next((name for name in HELD_OUT if any(str(one).startswith(name) for one in there)),
                HELD_OUT[-1])


def chosen(rows: pd.DataFrame, protocol: str) -> pd.Series:
    """Tell which rows count for the overall score."""
    names = [name for name in rows["protocol"].unique() if str(name).startswith(protocol)]
    return rows["protocol"].isin(names) | rows["task"].eq("clustering")


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Calls or losses with the columns that they may leave out, and text as text."""
    defaults = {"dataset": "", "representation": "embedding"}
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table})
    kinds = table.select_dtypes("category")  # groups of absent categories would be empty
    return table.astype(dict.fromkeys(kinds, object))


def _controls(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows["method"].unique() if name.endswith(SHUFFLED)]


def _mean(parts: list[Answer]) -> Answer:
    """The overall score of every method and seed that has all parts; draws are shared."""
    values: Values = {}
    for key in parts[0].values:
        found: dict[str, np.ndarray] = {}
        for part in parts:
            found |= part.values.get(key, {})
        if set(OVERALL_PARTS) <= set(found):
            values[key] = {MEAN: np.mean([found[metric] for metric in OVERALL_PARTS], axis=0)}
    return Answer(values, parts[0].units, parts[0].unit)
