"""What a benchmark found: tables, words, and a page of one file."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq import InputError, benchview, leaderboard, significance
from cellvq.annotation import LOGISTIC
from cellvq.benchstore import whole
from cellvq.entries import Benchmarked, Entry
from cellvq.judging import METRIC_NAMES
from cellvq.leaderboard import HEADLINES
from cellvq.questions import OVERALL
from cellvq.scores import SHUFFLED

HARDEST_FIRST = ("new_study", "new_donor", "within_study")
"""Splits from the hardest to the easiest, of which the first that the data allow is told."""
TABLES = ("scores", "summary", "verdicts", "calls", "losses", "costs")
STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #22303c; background: #fff;
  font: 16px/1.55 "Avenir Next", "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
h1, h2 { color: #17324d; line-height: 1.2; } h2 { margin-top: 2.2rem; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } figure img { max-width: 100%; }
figcaption, .notes { color: #52616d; font-size: 0.92rem; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; border-bottom: 1px solid #d8e0e6; text-align: left; }
"""


@dataclass(frozen=True)
class Benchmark:
    """Tables of a benchmark on one data set; :mod:`cellvq.significance` names their columns."""

    name: str
    scores: pd.DataFrame
    """One row a method, seed and score, with all settings; a failure has a status and no value."""
    verdicts: pd.DataFrame
    """One row a comparison, with difference, 95 % interval and verdict."""
    calls: pd.DataFrame
    """One row a test cell, with the truth and the call."""
    losses: pd.DataFrame
    """One row a test cell of denoising."""
    summary: pd.DataFrame
    """Mean and 95 % interval of every score."""
    costs: pd.DataFrame
    """One row a method and seed, with seconds, megabytes (MB), fitted numbers."""
    notes: tuple[str, ...] = ()
    """What was left out and why, a sentence each."""
    words: str = ""
    """The verdicts that count most, in sentences."""

    def __str__(self) -> str:
        board = leaderboard.Leaderboard(self.summary, self.verdicts, self.costs)
        failed = board.failed_in_words() if "status" in self.summary else "nothing"
        lines = [self.words or "Nothing could be compared."]
        lines += [f"failed: {failed}"] * (failed != "nothing")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def judge(
    data: Benchmarked, entries: Sequence[Entry], tables: Mapping[str, pd.DataFrame],
    failed: Sequence[tuple[str, str, int, str]], judged: Sequence[str], notes: Sequence[str],
) -> Benchmark:
    """Score all calls, and compare the methods that are judged with all others.

    Args:
        data: the data.
        entries: all entries, also those that failed.
        tables: ``calls``, ``scores`` and ``losses`` of all tasks.
        failed: task, method, seed and reason of every failure.
        judged: methods that get a verdict.
        notes: what was left out and why.
    """
    calls, losses = tables["calls"], tables["losses"]
    scores = significance.score_table(tables["scores"], calls, losses)
    scores = with_failures(scores, data.name, failed)
    made = {(entry.method, entry.seed): entry.settings for entry in entries}
    whose = zip(scores["method"].str.removesuffix(SHUFFLED), scores["seed"], strict=True)
    scores["settings"] = [json.dumps({"method": made.get(key, {}), "task": json.loads(own or "{}")})
                          for key, own in zip(whose, scores["settings"], strict=True)]
    donors = data.column(data.donor) if data.donor else None
    given = {"calls": calls if len(calls) else None, "losses": losses if len(losses) else None,
             "donors": donors}
    names = list(dict.fromkeys(scores["method"]))
    verdicts = significance.verdicts(
        scores, [name for name in judged if name in names], baselines=names, **given)
    costs = pd.DataFrame([{
        "dataset": data.name, "method": entry.method, "seed": entry.seed,
        "seconds": entry.seconds, "memory_mb": entry.memory_mb, "parameters": entry.parameters,
        "n_cells": data.cells.n_obs, "uses_batch": entry.uses_batch,
        "uses_labels": entry.uses_labels, "settings": json.dumps(entry.settings),
        "status": entry.status,
    } for entry in entries])
    return Benchmark(
        data.name, scores, verdicts, calls, losses, significance.summarise(scores, **given), costs,
        tuple(dict.fromkeys(notes)), in_words(verdicts, judged))


def with_failures(
    scores: pd.DataFrame, dataset: str, failed: Sequence[tuple[str, str, int, str]]
) -> pd.DataFrame:
    """Give a method that failed a row, without a value, in every score that others got.

    Example:
        >>> scores = pd.DataFrame({"task": ["clustering"], "protocol": "leiden", "metric": "ari",
        ...     "representation": "embedding", "method": "PCA", "seed": 0, "value": 0.5})
        >>> found = with_failures(scores, "mine", [("clustering", "scVI", 0, "out of memory")])
        >>> found[["method", "metric", "value", "status"]].values.tolist()[1]
        ['scVI', 'ari', nan, 'out of memory']
    """
    question = ["task", "protocol", "representation", "metric"]
    there = scores.loc[~scores["method"].str.endswith(SHUFFLED), question].drop_duplicates()
    rows = pd.DataFrame(failed, columns=["task", "method", "seed", "status"])
    rows = rows.merge(there[there["representation"] == "embedding"], on="task", how="left")
    # Where nobody has a score, the reason still has to stand somewhere.
    rows = rows.fillna({"protocol": "", "representation": "embedding", "metric": ""})
    rows = rows.assign(dataset=dataset, value=np.nan, n_cells=0, n_groups=0, settings="{}")
    return pd.concat([scores, rows[[name for name in significance.SCORES if name in rows]]],
                     ignore_index=True) if len(rows) else scores


def in_words(verdicts: pd.DataFrame, judged: Sequence[str]) -> str:
    """Say the headlines of every task, one a line, of the first method that has a verdict.

    CellVQ's other forms and the controls are passed over; all scores are in the tables.
    """
    for method in judged:
        own = verdicts[verdicts["method"].eq(method)
                       & ~verdicts["baseline"].isin(judged)
                       & ~verdicts["baseline"].str.endswith(SHUFFLED)]
        said = []
        for task, metric in HEADLINES.items():
            part = own[own["task"].eq(task) & own["metric"].eq(metric)]
            foremost = part["protocol"].isin(_foremost(part["protocol"].unique()))
            part = part[foremost | ~part["task"].isin(("annotation", "properties"))]
            said += [significance.in_words(rows) for _, rows
                     in part.groupby(["protocol", "representation"], sort=False)]
        if said:
            return "\n".join(said)
    return ""


def _foremost(protocols: Sequence[str]) -> list[str]:
    """Of many protocols and classifiers those to speak of: the hardest split, and few labels.

    Example:
        >>> _foremost(["within_study, kNN", "within_study, logistic regression",
        ...     "new_donor, logistic regression", "few_labels_10, logistic regression"])
        ['new_donor, logistic regression', 'few_labels_10, logistic regression']
    """
    found = [name for name in protocols if name.endswith(LOGISTIC)]
    for split in HARDEST_FIRST:
        if hardest := [name for name in found if name.startswith(split)]:
            return hardest + [name for name in found if name.startswith("few_labels_10")]
    return found


def claim(folder: Path, data: Benchmarked, overwrite: bool = False) -> None:
    """Say whose benchmark a folder holds.

    Raises:
        InputError: it is a file, it cannot be written, or it holds a benchmark of other cells.
    """
    sign = folder / "benchmark.json"
    facts = {"dataset": data.name, "cells": data.cells.n_obs, "fingerprint": data.fingerprint,
             "label": data.label, "batch": data.batch, "donor": data.donor, "study": data.study,
             "properties": list(data.properties)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if sign.exists():
            there = json.loads(sign.read_text(encoding="utf-8"))
            if there.get("fingerprint") != data.fingerprint and not overwrite:
                raise InputError(
                    f"{folder}: holds a benchmark of other cells or columns "
                    f"({there.get('dataset')}); choose another folder, or overwrite it")
        elif any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty and holds no benchmark; choose another "
                             "folder")
        with whole(sign) as partial:
            partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: cannot be used ({error}); choose another folder") from error


def write(found: Benchmark, folder: Path) -> None:
    """Write the tables as Parquet, the notes, and the page ``report.html``."""
    for name in TABLES:
        with whole(folder / f"{name}.parquet") as partial:
            getattr(found, name).to_parquet(partial)
    texts = {"notes.md": "".join(f"- {note}\n" for note in found.notes), "report.html": page(found)}
    for name, text in texts.items():
        with whole(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def page(found: Benchmark) -> str:
    """The report as one HTML file that needs nothing else; text is escaped."""
    board = leaderboard.Leaderboard(found.summary, found.verdicts, found.costs, found.notes)
    parts = [f"<p>{html.escape(line)}</p>" for line in found.words.splitlines()]
    parts += ["<h2>Where methods stand</h2>"]
    for representation in found.summary["representation"].unique():
        table = board.table(OVERALL, representation=representation)
        if len(table):
            parts += [f"<h3>Mean of macro-F1, ARI and NMI, {html.escape(representation)}</h3>",
                      _wide(leaderboard.to_html(leaderboard.shown(table)))]
    for task in found.summary["task"].unique():
        parts += _of_task(found.summary[found.summary["task"] == task], task)
    failures = board.failures()
    if len(failures):
        parts += ["<h2>What failed</h2>", _wide(leaderboard.to_html(failures))]
    for method in found.verdicts["method"].unique()[:1]:
        own = found.verdicts[found.verdicts["method"].eq(method)
                             & found.verdicts["metric"].isin(METRIC_NAMES)]
        if len(own):
            axes = benchview.verdict_grid(own)
            parts += ["<h2>Verdicts</h2>", leaderboard.figure_html(
                axes, f"{method} against every other method: up is ahead, down is behind.")]
    good = found.costs[found.costs["status"] == ""] if len(found.costs) else found.costs
    if len(good):
        parts += ["<h2>Costs</h2>", leaderboard.figure_html(
            benchview.cost_figure(good), "Time and memory of each method, mean over seeds.")]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in found.notes)
    title = html.escape(f"Benchmark of {found.name}")
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
            f"{''.join(parts)}<h2>Notes</h2><ul class=\"notes\">{notes or '<li>None.</li>'}</ul>"
            "</body></html>\n")


def _of_task(summary: pd.DataFrame, task: str) -> list[str]:
    """Heatmap and headline of one task, for each representation."""
    parts = [f"<h2>{html.escape(task.capitalize())}</h2>"]
    for representation, part in summary.groupby("representation", sort=False):
        words = f"{task}, {representation}: every method in every score; ✕ failed, · not run."
        parts.append(leaderboard.figure_html(benchview.score_heatmap(part), words))
        headline = part[part["metric"] == HEADLINES.get(task)]
        if len(headline) and task != OVERALL:
            axes = benchview.score_intervals(headline, metric=HEADLINES[task])
            parts.append(leaderboard.figure_html(
                axes, f"{task}, {representation}: mean and 95 % interval of each method."))
    return parts


def _wide(table: str) -> str:
    return f'<div class="wide">{table}</div>'
