"""Scores for the eye: what separates two methods, and how scores change with the number of codes.

Tables come from :mod:`cellvq.scores`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from cellvq.style import INK, PALETTE, axes, short

MARKERS = "oDs^vPX*"


def score_differences(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    reach: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Difference of one method to each other one, with its interval; right of the line is better.

    A full mark tells that the interval leaves out zero.

    Args:
        table: :func:`cellvq.tasks.verdicts` in one metric; a column ``dataset`` where there are
            several.
        title: what the difference is of.
        reach: how far the axis goes to both sides; what lies beyond is an arrow with its number.
    """
    names = list(table["baseline"].unique())
    sets = table.get("dataset", pd.Series("", index=table.index))
    ax = axes(ax, 5.8, 1.2 + 0.36 * len(names))
    ax.axvline(0, color=INK, lw=1)
    for number, (dataset, part) in enumerate(table.groupby(sets, sort=False)):
        color, mark = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        offset = 0.7 * ((number + 0.5) / sets.nunique() - 0.5)
        for row in part.itertuples():
            y, x = names.index(row.baseline) + offset, row.difference
            if reach is not None and abs(x) > 0.95 * reach:
                edge = 0.9 * reach * (1 if x > 0 else -1)
                ax.plot(edge, y, ">" if x > 0 else "<", color=color, ms=8)
                ax.text(0.88 * edge, y, f"{x:+.2g}", va="center", color=color, fontsize=9,
                        ha="right" if x > 0 else "left")
                continue
            face = "white" if row.verdict == "not distinguishable" else color
            ax.hlines(y, row.low, row.high, color=color, lw=3, alpha=0.5)
            ax.plot(x, y, mark, color=color, mfc=face, mew=1.6, ms=7)
        ax.plot([], [], mark, color=color, ms=7, label=short(str(dataset)))
    if reach is not None:
        ax.set_xlim(-reach, reach)
    ax.set_yticks(range(len(names)), [short(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_title(title or "")
    ax.grid(axis="x")
    if sets.nunique() > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=1)
    return ax


def scores_by_level(
    summary: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One score of every method against the number of codes, with its interval.

    Args:
        summary: :func:`cellvq.tasks.summarise` in one metric, with a column ``level``, the number
            of codes there are.
        methods: those to show, in the order that fixes their colours; by default all.
        title: what the score is.
    """
    ax = axes(ax, 5.6, 3.8)
    methods = list(summary["method"].unique()) if methods is None else list(methods)
    levels = sorted(summary["level"].unique())
    apart = max(levels[-1] / levels[0], 4) ** 0.03
    for number, method in enumerate(methods):
        part, color = summary[summary["method"] == method], PALETTE[number % len(PALETTE)]
        # Methods beside each other, so that no interval hides another.
        place = part["level"] * apart ** (number - (len(methods) - 1) / 2)
        ax.plot(place, part["mean"], marker=MARKERS[number % len(MARKERS)], color=color, ms=6,
                label=method)
        ax.vlines(place, part["low"], part["high"], color=color, lw=3, alpha=0.5)
    ax.set(xscale="log", xlabel="codes there are", title=title or "")
    ax.set_xticks(levels)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    ax.grid(axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return ax
