"""Figures of a benchmark: scores with intervals, verdicts, ranks and costs; failures stay in sight.

Tables come from :mod:`cellvq.significance` and :mod:`cellvq.benchmarking`.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cellvq import InputError
from cellvq.judging import AHEAD, BEHIND, EQUAL, METRIC_NAMES, UNJUDGED
from cellvq.questions import MEAN
from cellvq.ranking import CriticalDifference
from cellvq.scores import MODEL, SHUFFLED
from cellvq.style import FAINT, INK, PALETTE, axes, short, write_names

SIGNS = {AHEAD: ("^", PALETTE[0]), EQUAL: ("o", FAINT), BEHIND: ("v", PALETTE[3]),
         UNJUDGED: ("x", FAINT)}
"""Mark and colour of each verdict."""
MARKERS = "oDs^vPX*"
MOST_LETTERS = 38


def score_intervals(
    summary: pd.DataFrame, *, metric: str | None = None, title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean and 95 % interval of every method, best first; a failure is a cross with its reason.

    Args:
        summary: :func:`cellvq.significance.summarise`, of one question. Several data sets or
            protocols stand beside each other in their own colour.
        metric: which one to show; None: the first.
        title: None: the metric.
    """
    metric = metric or (summary["metric"].iloc[0] if len(summary) else "")
    table = summary[summary["metric"] == metric]
    if table.empty:
        there = ", ".join(summary["metric"].unique()) or "none"
        raise InputError(f"the summary has no scores in {metric!r}; it has {there}")
    table = table.assign(set=_sets(table))
    lower = table["task"].eq("denoising").all()
    order = table.groupby("method")["mean"].mean().sort_values(ascending=bool(lower)).index
    sets, ax = list(table["set"].unique()), axes(ax, 6.2, 1.2 + 0.3 * len(order))
    for number, name in enumerate(sets):
        part = table[table["set"] == name]
        y = part["method"].map(order.get_loc) + 0.6 * ((number + 0.5) / len(sets) - 0.5)
        colors = [_color(method, number, len(sets)) for method in part["method"]]
        ax.hlines(y, part["low"], part["high"], color=colors, lw=3, alpha=0.55)
        ax.scatter(part["mean"], y, color=colors, s=44, zorder=3, edgecolors="white",
                   marker=MARKERS[number % len(MARKERS)])
    failed = table[table["mean"].isna()].drop_duplicates(["method", "status"]).groupby("method")
    for method, reasons in failed["status"].agg("; ".join).items():
        ax.text(0.01, order.get_loc(method), f"✕ {short(reasons or 'not run', 48)}", va="center",
                fontsize=8, color=PALETTE[3], transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(order)), [short(name, MOST_LETTERS) for name in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel("mean and 95 % interval" + ("; less is better" if lower else ""))
    ax.set_title(title or METRIC_NAMES.get(metric, metric))
    ax.grid(axis="x")
    if len(sets) > 1:
        ax.legend(handles=[_handle(MARKERS[i % len(MARKERS)], PALETTE[i % len(PALETTE)], name)
                           for i, name in enumerate(sets)], loc="upper center",
                  bbox_to_anchor=(0.4, -0.16 - 0.3 / len(order)), ncols=2)
    return ax


def score_heatmap(
    summary: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Every method in every score, coloured by rank; failures are crosses, what was not run a dot.

    Args:
        summary: :func:`cellvq.significance.summarise`. A column of the figure is a data set, a
            protocol and a metric; what all columns share goes into the title.
        title: None: what all columns share.
    """
    table = summary.copy()
    named = ["dataset", "task", "protocol", "representation", "metric"]
    differ = [name for name in named if table[name].nunique() > 1] or ["metric"]
    texts = table[differ].astype(str).replace(METRIC_NAMES | {MEAN: "mean"})
    table["column"] = texts.agg("\n".join, axis=1) if len(differ) > 1 else texts[differ[0]]
    columns = list(dict.fromkeys(table["column"]))
    values = table.pivot_table(index="method", columns="column", values="mean")
    values = values.reindex(index=table["method"].unique(), columns=columns)
    sign = table.groupby("column")["task"].first().eq("denoising").map({True: 1, False: -1})
    places = (values * sign).rank(pct=True)[columns]
    values = values.loc[places.mean(axis=1).sort_values().index]
    failed = set(table.loc[table["mean"].isna() & table["status"].ne(""), ["method", "column"]]
                 .itertuples(index=False, name=None))
    ax = axes(ax, 3.4 + 0.7 * len(columns), 2.2 + 0.32 * len(values))
    shades = 1 - places.loc[values.index].to_numpy()
    ax.imshow(np.ma.masked_invalid(shades), aspect="auto", cmap="cividis", vmin=-0.3, vmax=1)
    for row, method in enumerate(values.index):
        for column, name in enumerate(columns):
            value, dark = values.iat[row, column], shades[row, column] < 0.45
            text = "✕" if (method, name) in failed else "·" if np.isnan(value) else _number(value)
            color = PALETTE[3] if text == "✕" else "white" if dark else INK
            ax.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
    ax.set_yticks(range(len(values)), [short(name, MOST_LETTERS) for name in values.index])
    ax.set_xticks(range(len(columns)), columns, rotation=60, ha="left", rotation_mode="anchor",
                  fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    same = [str(table[name].iloc[0]) for name in named if name not in differ]
    shared = ", ".join(METRIC_NAMES.get(word, word) for word in same if word)
    words = textwrap.fill(title or shared, 14 + 10 * len(columns))
    ax.set_xlabel(words, fontsize=9, loc="left")
    return ax


def verdict_grid(
    verdicts: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """One method against every other in every question: up is ahead, down behind, dot neither.

    Args:
        verdicts: :func:`cellvq.significance.verdicts` of one method.
        title: None: the name of the method.
    """
    if verdicts["method"].nunique() > 1:
        raise InputError("a grid shows the verdicts on one method; choose one of "
                         f"{', '.join(verdicts['method'].unique())}")
    named = ["dataset", "task", "protocol", "representation", "metric"]
    differ = [name for name in named if verdicts[name].nunique() > 1] or ["metric"]
    texts = verdicts[differ].astype(str).replace(METRIC_NAMES | {MEAN: "mean"})
    rows = texts.agg(", ".join, axis=1) if len(differ) > 1 else texts[differ[0]]
    names, baselines = list(dict.fromkeys(rows)), list(dict.fromkeys(verdicts["baseline"]))
    ax = axes(ax, 4.4 + 0.42 * len(baselines), 3.4 + 0.3 * len(names))
    for word, (mark, color) in SIGNS.items():
        part = verdicts["verdict"] == word
        if part.any():
            ax.scatter(verdicts.loc[part, "baseline"].map(baselines.index),
                       rows[part].map(names.index), marker=mark, color=color, s=52, label=word)
    ax.set_yticks(range(len(names)), [short(name, 48) for name in names])
    ax.set_xticks(range(len(baselines)), [short(name, MOST_LETTERS) for name in baselines],
                  rotation=50, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xlim(-0.6, len(baselines) - 0.4)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(color="#f0f2f4")
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    ax.legend(title=title or f"{verdicts['method'].iloc[0]} is ...", loc="upper center",
              bbox_to_anchor=(0.3, -0.2 / len(names)), ncols=3, handletextpad=0.1)
    return ax


def critical_difference(found: CriticalDifference, *, ax: Axes | None = None) -> Axes:
    """Mean ranks on a line; methods that a bar joins cannot be told apart.

    Args:
        found: :func:`cellvq.significance.critical_difference`.
    """
    ranks, groups, count = found.ranks, found.groups, len(found.ranks)
    half = (count + 1) // 2
    top = 0.5 + 0.35 * len(groups)
    ax = axes(ax, 7.2, 1.3 + 0.3 * (half + len(groups)))
    ax.hlines(0, 1, count, color=INK, lw=1.4)
    for tick in range(1, count + 1):
        ax.vlines(tick, -0.12, 0, color=INK, lw=1.2)
        ax.text(tick, -0.22, str(tick), ha="center", va="bottom", fontsize=9)
    for number, (name, rank) in enumerate(ranks.items()):
        left = number < half
        y = top + 0.55 * (number if left else count - 1 - number)
        end, side = (1 - 0.03 * count, "right") if left else (count + 0.03 * count, "left")
        color = _color(name, 0, 1)
        ax.plot([rank, rank, end], [0, y, y], color=color, lw=1.4, clip_on=False)
        ax.text(end, y, f" {short(name, MOST_LETTERS)} {rank:.2f} ", ha=side, va="center",
                fontsize=10, color=INK, weight="bold" if color == PALETTE[0] else "normal")
    for number, group in enumerate(groups):
        ends = ranks[group[0]] - 0.04, ranks[group[-1]] + 0.04
        ax.hlines(0.3 + 0.35 * number, *ends, color=PALETTE[1], lw=5)
    reach = min(found.difference, count - 1)
    ax.plot([1, 1 + reach], [-0.85, -0.85], color=INK, lw=1.6, marker="|", ms=7)
    ax.text(1 + reach / 2, -0.95, f"critical difference {found.difference:.2f}", ha="center",
            va="bottom", fontsize=9)
    ax.set(xlim=(1 - 0.62 * count, count + 0.62 * count), ylim=(top + 0.55 * half, -1.5))
    ax.axis("off")
    return ax


def cost_figure(costs: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Time and memory of each method; the size of a mark is how many numbers were fitted.

    Args:
        costs: one row a method and seed: ``method``, ``seconds``, ``memory_mb``, ``parameters``;
            means over seeds are shown.
    """
    table = costs.groupby("method", sort=False)[["seconds", "memory_mb", "parameters"]].mean()
    ax = axes(ax, 6.2, 4.0)
    sizes = 30 + 26 * np.log10(1 + table["parameters"])
    colors = [_color(name, number, 1) for number, name in enumerate(table.index)]
    seconds, memory = table["seconds"].clip(lower=0.01), table["memory_mb"].clip(lower=1)
    ax.scatter(seconds, memory, s=sizes, color=colors, alpha=0.85, edgecolors="white")
    ax.set(xscale="log", yscale="log", xlabel="seconds to embed all cells (mean over seeds)",
           ylabel="most memory (MB)")
    points = np.column_stack([seconds, memory])
    write_names(ax, points * [1, 1.12], [short(name) for name in table.index])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.margins(0.18)
    ax.grid()
    return ax


def _sets(table: pd.DataFrame) -> pd.Series:
    """What tells the rows of one method apart, in words."""
    differ = [name for name in ("dataset", "protocol") if table[name].nunique() > 1]
    return table[differ].astype(str).agg(", ".join, axis=1) if differ else table["dataset"]


def _color(method: str, number: int, sets: int) -> str:
    """Ours stands out where colours do not tell data sets apart; controls are pale."""
    if method.endswith(SHUFFLED):
        return FAINT
    if sets > 1:
        return PALETTE[number % len(PALETTE)]
    return PALETTE[0] if method.startswith(MODEL) else PALETTE[11]


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 10 else f"{value:,.0f}"


def _handle(mark: str, color: str, name: str) -> Line2D:
    return Line2D([], [], ls="", marker=mark, color=color, ms=7, label=short(name, MOST_LETTERS))
