"""Figures of what a condition does: which codes grow, and which genes change in which codes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from cellvq.style import FAINT, INK, PALETTE, axes, short

SIGNIFICANT = 0.05
"""False discovery rate below which a mark is filled."""


def abundance_steps(table: pd.DataFrame, *, most: int = 20, ax: Axes | None = None) -> Axes:
    """Show how the share of each code changes with a condition, the surest changes on top.

    Args:
        table: :func:`cellvq.conditions.abundance`, of one contrast.
        most: codes to show.
    """
    rows = table.sort_values("p").head(most).sort_values("effect")
    ax = axes(ax, 6.0, 1.4 + 0.27 * len(rows))
    if rows.empty:
        return _nothing(ax, table)
    sure = (rows["fdr"] < SIGNIFICANT).to_numpy()
    places = np.arange(len(rows))
    ax.hlines(places, 0, rows["effect"], color=FAINT, lw=2, zorder=1)
    for chosen, face, label in ((sure, PALETTE[0], f"FDR below {SIGNIFICANT}"),
                                (~sure, "white", "not distinguishable")):
        ax.scatter(rows["effect"][chosen], places[chosen], s=46, color=face, edgecolors=PALETTE[0],
                   zorder=2, label=label)
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(places, [f"{row.code} ({row.n_cells:,})" for row in rows.itertuples()])
    ax.set(xlabel=f"log2 ratio of the share of cells, {rows['contrast'].iloc[0]}",
           ylabel="code (cells)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5 / max(len(rows), 4) - 0.12), ncols=2)
    sns.despine(ax=ax)
    return ax


def change_dots(table: pd.DataFrame, *, most: int = 20, ax: Axes | None = None) -> Axes:
    """Show the genes that change in most codes: colour is the effect, size the evidence.

    Args:
        table: :func:`cellvq.conditions.gene_changes`, of one contrast.
        most: genes to show, those found in most codes first.
    """
    found = table[table["fdr"] < SIGNIFICANT]
    order = found.groupby("gene").agg(codes=("code", "nunique"), p=("p", "min"))
    names = list(order.sort_values(["codes", "p"], ascending=[False, True]).index[:most])
    rows = table[table["gene"].isin(names)]
    states = sorted(rows["code"].unique())
    ax = axes(ax, 2.4 + 0.42 * len(states), 1.8 + 0.27 * len(names))
    if not names:
        return _nothing(ax, table)
    size = 12 + 14 * np.minimum(-np.log10(np.maximum(rows["fdr"], 1e-8)), 8)
    limit = max(rows["effect"].abs().quantile(0.98), 0.1)
    dots = ax.scatter(rows["code"].map(states.index), rows["gene"].map(names.index), s=size,
                      c=rows["effect"], cmap="RdBu_r", vmin=-limit, vmax=limit,
                      edgecolors=np.where(rows["fdr"] < SIGNIFICANT, INK, "none"), linewidths=0.8)
    ax.set_xticks(range(len(states)), [short(name) for name in states], rotation=60, ha="right")
    ax.set_yticks(range(len(names)), names, style="italic")
    ax.set(xlim=(-0.7, len(states) - 0.3), ylim=(len(names) - 0.4, -0.6), xlabel="code")
    ax.figure.colorbar(dots, ax=ax, shrink=0.7,
                       label=f"log2 fold change, {rows['contrast'].iloc[0]}")
    ax.set_title(f"dark edge: FDR below {SIGNIFICANT}; larger: smaller FDR", fontsize=9, loc="left")
    sns.despine(ax=ax)
    return ax


def shift_bars(table: pd.DataFrame, *, most: int = 25, ax: Axes | None = None) -> Axes:
    """Show how far each condition moves cells to other codes, beside what chance gives.

    Args:
        table: :func:`cellvq.shifts.code_shifts`.
        most: conditions to show.
    """
    rows = table.head(most).iloc[::-1]
    ax = axes(ax, 6.0, 1.4 + 0.26 * len(rows))
    if rows.empty:
        return _nothing(ax, table)
    places = np.arange(len(rows))
    sure = rows["fdr"] < SIGNIFICANT
    ax.barh(places, rows["shift"], height=0.62, color=np.where(sure, PALETTE[0], FAINT))
    (line,) = ax.plot(rows["shift_null"], places, "|", color=INK, ms=13, mew=1.8)
    ax.set_yticks(places, [f"{short(row.condition)} ({row.n_cells:,})"
                           for row in rows.itertuples()])
    ax.set(xlabel="share of cells that would have to move", ylabel="condition (cells)")
    ax.legend([Patch(color=PALETTE[0]), Patch(color=FAINT), line],
              [f"FDR below {SIGNIFICANT}", "not distinguishable", "mean by chance"],
              loc="lower right")
    sns.despine(ax=ax)
    return ax


def _nothing(ax: Axes, table: pd.DataFrame) -> Axes:
    ax.text(0.5, 0.5, table.attrs.get("reason", "nothing is below the false discovery rate"),
            ha="center", va="center", wrap=True, transform=ax.transAxes)
    ax.axis("off")
    return ax
