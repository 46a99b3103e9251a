"""What a corpus is made of, for the eye: its sources, what they share, and how reading mixes them.

Tables come from :mod:`cellvq.build`, :mod:`cellvq.composition` and :mod:`cellvq.corpuscost`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from cellvq.style import FAINT, INK, PALETTE, axes, short

KEPT = "in the corpus"
MARKERS = "oDs^vPX*"


def cells_by_source(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Cells of each source that are in the corpus, and those left out by reason.

    Args:
        table: source, reason (``in the corpus`` where they stay), cells; one row each.
    """
    counts = table.pivot_table(index="source", columns="reason", values="cells", sort=False,
                               aggfunc="sum", fill_value=0)
    counts = counts[sorted(counts, key=lambda reason: reason != KEPT)]
    ax = axes(ax, 6.4, 1.5 + 0.45 * len(counts))
    rows, left = np.arange(len(counts)), np.zeros(len(counts))
    for number, reason in enumerate(counts):
        cells = counts[reason].to_numpy(float)
        ax.barh(rows, cells, left=left, color=PALETTE[number % len(PALETTE)], edgecolor="white",
                linewidth=0.8, height=0.7, label=reason)
        left += cells
    for row, (source, total) in enumerate(zip(counts.index, left, strict=True)):
        kept = counts[KEPT].get(source, 0) if KEPT in counts else 0
        ax.annotate(f"{kept:,.0f} of {total:,.0f}", (total, row), xytext=(5, 0),
                    textcoords="offset points", va="center", fontsize=10)
    ax.set_yticks(rows, [short(str(source), 24) for source in counts.index])
    ax.invert_yaxis()
    ax.set(xlim=(0, left.max() * 1.4), xlabel="cells")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=min(3, counts.shape[1]))
    return ax


def spread_by_source(
    cells: pd.DataFrame, column: str, *, name: str | None = None, ax: Axes | None = None
) -> Axes:
    """Spread of a number over the cells of each source: box of the quartiles, whiskers 5 to 95 %.

    Args:
        cells: source, and the column; one row a cell.
        column: the number, above zero; the axis is logarithmic.
        name: what to write for the column; by default its name.
    """
    sources = list(cells["source"].unique())
    ax = axes(ax, 5.6, 1.3 + 0.42 * len(sources))
    sns.boxplot(cells, x=column, y=cells["source"].astype(str), order=list(map(str, sources)),
                ax=ax, log_scale=True, whis=(5, 95), showfliers=False, width=0.6, linewidth=1.2,
                hue=cells["source"].astype(str), hue_order=list(map(str, sources)), legend=False,
                palette=[PALETTE[number % len(PALETTE)] for number in range(len(sources))])
    ax.set_yticks(ax.get_yticks(), [short(str(source), 24) for source in sources])
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.minorticks_off()
    ax.set(xlabel=name or column, ylabel="")
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    return ax


def shared(counts: pd.DataFrame, *, name: str = "genes", ax: Axes | None = None) -> Axes:
    """Heat map of what each two sources have both: numbers, and shade by share of the smaller one.

    Args:
        counts: things in both, [sources, sources]; on the diagonal those of one source.
        name: what is counted.
    """
    own = np.diag(counts).astype(float)
    share = 100 * counts / np.maximum(np.minimum.outer(own, own), 1)
    size = 1.8 + 0.65 * len(counts)
    ax = axes(ax, size + 1.6, size)
    sns.heatmap(share, ax=ax, cmap="Blues", vmin=0, vmax=100, linewidths=1, linecolor="white",
                annot=counts.map("{:,}".format).to_numpy(), fmt="", annot_kws={"fontsize": 10},
                square=True, cbar_kws={"label": f"% of the smaller source's {name}",
                                       "shrink": 0.8, "aspect": 25})
    labels = [short(str(source), 20) for source in counts.columns]
    ax.set_xticks(ax.get_xticks(), labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(ax.get_yticks(), labels, rotation=0)
    ax.tick_params(length=0)
    ax.set(xlabel="", ylabel="")
    return ax


def mixing(table: pd.DataFrame, *, in_order: float | None = None, ax: Axes | None = None) -> Axes:
    """How well steps mix the sources, by the cells that are in memory at a time; 1 is random.

    Args:
        table: reading, window (cells in memory), entropy (mean over steps, over that of random
            cells), low, high (5 and 95 % of the steps); one row a way of reading and a window.
        in_order: the entropy where cells are read in the order of their files.
    """
    ax = axes(ax, 5.8, 3.8)
    ax.axhline(1, color=INK, lw=1.2, ls=":", label="random cells")
    for number, (reading, part) in enumerate(table.groupby("reading", sort=False)):
        color = PALETTE[number % len(PALETTE)]
        ax.fill_between(part["window"], part["low"], part["high"], color=color, alpha=0.15, lw=0)
        ax.plot(part["window"], part["entropy"], marker=MARKERS[number % len(MARKERS)],
                color=color, label=reading)
    if in_order is not None:
        ax.axhline(in_order, color=FAINT, ls="--", label="files in order")
    ax.set(xscale="log", xlabel="cells in memory at a time",
           ylim=(0, max(1.2, 1.05 * table["high"].max())),
           ylabel="entropy of the source in a step,\nover that of random cells")
    ax.set_xticks(sorted(table["window"].unique()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.minorticks_off()
    ax.grid(axis="y")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1.0)
    return ax


def reading_speed(readers: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Speed of each reader, with how well it mixes written beside it.

    Args:
        readers: :func:`cellvq.corpuscost.readers`; where it is empty, the figure says so.
    """
    ax = axes(ax, 6.4, 1.2 + 0.4 * max(len(readers), 1))
    if readers.empty:
        ax.text(0.5, 0.5, "not measured", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return ax
    rows = np.arange(len(readers))
    ours = readers["reader"].str.startswith("CellVQ")
    ax.scatter(readers["cells_per_second"], rows, s=60, zorder=2,
               c=np.where(ours, PALETTE[0], FAINT), marker="o")
    for row, (speed, entropy) in enumerate(zip(readers["cells_per_second"], readers["entropy"],
                                               strict=True)):
        mixed = "" if pd.isna(entropy) else f", mixes {entropy:.2f}"
        ax.annotate(f"{speed:,.0f}{mixed}", (speed, row), xytext=(8, 0),
                    textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(rows, [f"{short(reader, 30)}, {short(storage, 16)}" for reader, storage in
                         zip(readers["reader"], readers["storage"], strict=True)], fontsize=9)
    ax.invert_yaxis()
    most, least = readers["cells_per_second"].max(), readers["cells_per_second"].min()
    ax.set(xscale="log", xlim=(least / 2, most * 20), xlabel="cells a second")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.minorticks_off()
    ax.grid(axis="both")
    ax.set_axisbelow(True)
    return ax
