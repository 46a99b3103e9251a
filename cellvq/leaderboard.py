"""The leaderboard: benchmarks of several data sets joined and corrected together."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq import InputError
from cellvq.judging import correct, in_words
from cellvq.questions import MEAN, OVERALL, QUESTION
from cellvq.ranking import LOWER, ranks
from cellvq.scores import MODEL
from cellvq.significance import summarise

FAILED = "failed"
NOT_RUN = "–"
HEADLINES = {
    OVERALL: MEAN, "annotation": "macro_f1", "clustering": "ari", "integration": "total",
    "properties": "macro_f1", "denoising": "negative_binomial",
}
"""The metric of each task that a leaderboard shows."""


@dataclass(frozen=True)
class Leaderboard:
    """Joined tables of the benchmarks of one or several data sets."""

    summary: pd.DataFrame
    """:func:`cellvq.significance.summarise` of each data set, joined."""
    verdicts: pd.DataFrame = field(default_factory=pd.DataFrame)
    """:func:`cellvq.significance.verdicts` of each, joined and corrected together."""
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    about: str = ""
    """When and how it was measured."""

    @property
    def judged(self) -> str:
        """The first method that got a verdict; CellVQ where none did."""
        return self.verdicts["method"].iloc[0] if len(self.verdicts) else MODEL

    @property
    def rivals(self) -> list[str]:
        """Whom it was compared with, without the controls and without CellVQ's other forms."""
        names = self.verdicts["baseline"].unique() if len(self.verdicts) else []
        return [name for name in names if not name.startswith(MODEL)]

    def of(self, task: str, *, metric: str | None = None, protocol: str = "",
           representation: str | None = "embedding") -> pd.DataFrame:
        """The summary of one task.

        Args:
            task: ``overall``, or the task.
            metric: None: the task's headline; empty: all.
            protocol: words in the name of the protocol.
            representation: ``embedding`` or ``code``; None: both.
        """
        metric, found = HEADLINES.get(task, "") if metric is None else metric, self.summary
        keep = found["task"].eq(task) & found["protocol"].str.contains(protocol, regex=False)
        keep &= found["metric"].eq(metric) | (metric == "")
        keep &= found["representation"].eq(representation) | (representation is None)
        return found[keep]

    def table(self, task: str = OVERALL, *, metric: str | None = None, protocol: str = "",
              representation: str = "embedding") -> pd.DataFrame:
        """Rank methods over data sets in one task, best first.

        Args:
            task: ``overall``, or the task.
            metric: None: the task's headline.
            protocol: words in the name of the protocols that count.
            representation: ``embedding`` or ``code``.

        Returns:
            One row a method: a column each data set (float; NaN where it failed or was not run),
            ``mean``, ``mean_rank`` (1 is best; a failure ranks last), ``data_sets`` (how many it
            ran on), ``failed`` (names of those it failed on).
        """
        found = self.of(task, metric=metric, protocol=protocol, representation=representation)
        return standings(found.rename(columns={"mean": "value"}))

    def failures(self) -> pd.DataFrame:
        """What did not run, where and why: ``dataset``, ``task``, ``protocol``, ``method``."""
        bad = self.summary[self.summary["status"].fillna("") != ""]
        return bad[["dataset", "task", "protocol", "method", "status"]].drop_duplicates(
            ignore_index=True)

    def failed_in_words(self) -> str:
        """Who failed in what, and why, or ``nothing``."""
        rows = self.failures().groupby(["method", "status"], sort=False)["task"].unique()
        return "; ".join(f"{method} ({', '.join(where)}): {why}"
                         for (method, why), where in rows.items()) or "nothing"

    def standing(self, method: str | None = None, task: str = OVERALL, *, protocol: str = "",
                 representation: str = "embedding") -> pd.DataFrame:
        """The verdicts on a method in a task's headline, against its rivals.

        Args:
            method: None: the first that was judged in this task.
            task: ``overall``, or the task.
            protocol: words in the name of the protocols to keep.
            representation: ``embedding`` or ``code``.
        """
        found = self.verdicts
        if found.empty:
            return found
        found = found[found["task"].eq(task) & found["metric"].eq(HEADLINES.get(task))
                      & found["representation"].eq(representation)
                      & found["protocol"].str.contains(protocol, regex=False)]
        if method is None and len(found):
            method = found["method"].iloc[0]
        return found[found["method"].eq(method) & found["baseline"].isin(self.rivals)].copy()

    def words(self, method: str | None = None, task: str = OVERALL, *, protocol: str = "",
              representation: str = "embedding") -> str:
        """Say how a method stands in a task's headline; the arguments are :meth:`standing`'s."""
        if self.verdicts.empty:
            return self.about or "Nothing was compared."
        words = in_words(self.standing(method, task, protocol=protocol,
                                       representation=representation))
        return words or f"{method or self.judged} was not compared in {task}."


def standings(scores: pd.DataFrame) -> pd.DataFrame:
    """Score and mean rank of each method over data sets, best first.

    Args:
        scores: rows of one metric and representation: ``dataset``, ``task``, ``protocol``,
            ``metric``, ``method``, ``value``, ``status``. Seeds are averaged, and so are protocols:
            those that all methods of a data set ran, where there are any.

    Example:
        >>> scores = pd.DataFrame({"dataset": ["a", "a", "b", "b"], "task": "t", "protocol": "p",
        ...     "metric": "nmi", "method": ["x", "y"] * 2, "value": [0.9, 0.8, 0.7, None],
        ...     "status": ["", "", "", "out of memory"]})
        >>> standings(scores)[["mean", "mean_rank", "failed"]].values.tolist()
        [[0.8, 1.0, ''], [0.8, 2.0, 'b']]
    """
    if scores.empty:
        return pd.DataFrame(columns=["mean", "mean_rank", "data_sets", "failed"])
    run = scores[scores["value"].notna()]
    methods = run.groupby("dataset")["method"].transform("nunique")
    everybody = run.groupby(["dataset", "protocol"])["method"].transform("nunique") == methods
    common = run[everybody | ~everybody.groupby(run["dataset"]).transform("any")]
    table = common.pivot_table(index="method", columns="dataset", values="value", sort=False)
    table = table.reindex(index=scores["method"].unique(), columns=scores["dataset"].unique())
    bad = scores[scores["value"].isna() & (scores["status"].fillna("") != "")]
    failed = bad.groupby("method")["dataset"].agg(lambda names: ", ".join(dict.fromkeys(names)))
    return table.assign(
        mean=table.mean(axis=1), mean_rank=ranks(scores).mean(),
        data_sets=table.notna().sum(axis=1), failed=failed.reindex(table.index, fill_value=""),
    ).sort_values(["mean_rank", "mean"], ascending=[True, scores["task"].isin(LOWER).all()])


def join(
    summaries: Sequence[pd.DataFrame], verdicts: Sequence[pd.DataFrame] = (),
    costs: Sequence[pd.DataFrame] = (), notes: Sequence[str] = (),
) -> Leaderboard:
    """Join the tables of several data sets; verdicts are corrected over all of them.

    Raises:
        InputError: two tables tell of the same data set.
    """
    names = [name for table in summaries for name in table["dataset"].unique()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two benchmarks are of the data set {twice[0]!r}: leave one out, since "
                         "its cells would count twice")
    if not names:
        raise InputError("there is no score to join: give the folder of a finished benchmark")
    verdicts = [table for table in verdicts if len(table)]
    return Leaderboard(
        pd.concat(list(summaries), ignore_index=True),
        correct(pd.concat(verdicts, ignore_index=True)) if verdicts else pd.DataFrame(),
        pd.concat(list(costs), ignore_index=True) if costs else pd.DataFrame(), tuple(notes))


def read(folders: Sequence[str | Path]) -> Leaderboard:
    """Join benchmarks from the folders that ``cellvq benchmark --output`` wrote.

    Raises:
        InputError: a folder holds no finished benchmark.
    """
    summaries, verdicts, costs, notes = [], [], [], []
    for folder in map(Path, folders):
        there = {name: folder / f"{name}.parquet" for name in ("scores", "calls", "verdicts")}
        missing = [path.name for path in there.values() if not path.is_file()]
        if missing:
            raise InputError(f"{folder} holds no finished benchmark, {missing[0]} is missing; run "
                             "`cellvq benchmark` with this folder as output")
        tables = {name: pd.read_parquet(path) for name, path in there.items()}
        kept = folder / "summary.parquet"
        summaries.append(pd.read_parquet(kept) if kept.is_file() else
                         summarise(tables["scores"], tables["calls"]))
        verdicts.append(tables["verdicts"])
        spent, said = folder / "costs.parquet", folder / "notes.md"
        costs += [pd.read_parquet(spent)] if spent.is_file() else []
        notes += said.read_text(encoding="utf-8").splitlines() if said.is_file() else []
    return join(summaries, verdicts, costs, notes)


def record(board: Leaderboard, folder: str | Path, about: str) -> None:
    """Keep a large run beside the pages that show it.

    Args:
        board: the run.
        folder: gets ``measured-scores.csv`` and ``measured-verdicts.csv``.
        about: when and how it was measured; the first line of both files.
    """
    for name, table in (("scores", board.summary), ("verdicts", board.verdicts)):
        path = Path(folder) / f"measured-{name}.csv"
        part = path.with_name(path.name + ".part")
        part.write_text(f"# {' '.join(about.split())}\n" + table.to_csv(
            index=False, float_format="%.5g"), encoding="utf-8")
        part.replace(path)


def recorded(folder: str | Path) -> Leaderboard:
    """Read a run that :func:`record` kept; an empty leaderboard that says so where there is none.

    Example:
        >>> recorded("no such folder").words()
        'No large run is recorded here yet.'
    """
    files = [Path(folder) / f"measured-{name}.csv" for name in ("scores", "verdicts")]
    if not all(path.is_file() for path in files):
        columns = [*QUESTION, "metric", "method", "mean", "low", "high", "unit", "seeds",
                   "n_cells", "status"]
        return Leaderboard(pd.DataFrame(columns=columns),
                           about="No large run is recorded here yet.")
    text = {"status": str, "protocol": str}
    summary, verdicts = (pd.read_csv(path, skiprows=1, dtype=text) for path in files)
    with files[0].open(encoding="utf-8") as file:
        about = file.readline().lstrip("# ").strip()
    summary = summary.fillna({"status": "", "protocol": ""})
    return Leaderboard(summary, verdicts.fillna({"protocol": ""}), about=about)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """:meth:`Leaderboard.table` as text for people: failures are named, gaps are dashes.

    Example:
        >>> table = pd.DataFrame({"a": [0.5], "b": [None], "mean": [0.5], "mean_rank": [1.0],
        ...     "data_sets": [1], "failed": ["b"]}, index=pd.Index(["PCA"], name="method"))
        >>> shown(table).iloc[0].tolist()
        ['0.500', 'failed', '0.500', '1.00', '1']
    """
    sets = [name for name in table if name not in ("mean", "mean_rank", "data_sets", "failed")]
    texts = {}
    for name in sets:
        failed = [name in why.split(", ") for why in table["failed"]]
        texts[name] = [FAILED if bad else NOT_RUN if np.isnan(value) else f"{value:.3f}"
                       for value, bad in zip(table[name].astype(float), failed, strict=True)]
    return pd.DataFrame(texts, index=table.index).assign(**{
        "mean": [f"{value:.3f}" if np.isfinite(value) else NOT_RUN for value in table["mean"]],
        "mean rank": [f"{value:.2f}" for value in table["mean_rank"]],
        "data sets": table["data_sets"].astype(str)})


def to_markdown(table: pd.DataFrame) -> str:
    """:meth:`Leaderboard.table` as a Markdown table."""
    rows = shown(table).rename_axis("method").reset_index()
    lines = [list(rows), ["---"] * len(list(rows)), *rows.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |"
                     for line in lines)


def to_html(table: pd.DataFrame) -> str:
    """Any table as HTML; text is escaped."""
    return table.to_html(border=0, escape=True, float_format="{:.3f}".format, na_rep=NOT_RUN)


def figure_html(axes, words: str) -> str:
    """A figure within a page of its own, as an SVG image with words for those who cannot see it."""
    from matplotlib import pyplot as plt

    kept = io.BytesIO()
    axes.figure.savefig(kept, format="svg", bbox_inches="tight")
    plt.close(axes.figure)
    data = base64.b64encode(kept.getvalue()).decode()
    return (f'<figure><img alt="{html.escape(words)}" src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{html.escape(words)}</figcaption></figure>")
