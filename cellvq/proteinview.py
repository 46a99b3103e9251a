"""Figures of proteins read from codes: how much is read, what a code adds, which code has it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from cellvq.style import FAINT, INK, PALETTE, axes, short

SIGNIFICANT = 0.05
"""False discovery rate below which a mark is filled."""


def share_dots(table: pd.DataFrame, *, marked: str = "CellVQ", ax: Axes | None = None) -> Axes:
    """Show the share of variance that each method reads, with its interval.

    Args:
        table: rows of one protein, or of their mean, of :func:`cellvq.proteinverdicts.scores`.
        marked: methods with this in their name are coloured.
    """
    rows = table.iloc[::-1]
    ax = axes(ax, 6.2, 1.2 + 0.3 * len(rows))
    places = np.arange(len(rows))
    own = rows["method"].str.contains(marked, regex=False)
    colors = np.where(own, PALETTE[0], FAINT)
    ax.hlines(places, rows["low"], rows["high"], color=colors, lw=3, alpha=0.55)
    ax.scatter(rows["share"], places, color=colors, s=44, zorder=3, edgecolors="white")
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(places, [short(name, 44) for name in rows["method"]])
    ax.set(xlabel="share of variance read in cells held out", ylabel="")
    ax.grid(axis="x")
    sns.despine(ax=ax)
    return ax


def added_dots(
    table: pd.DataFrame, *, most: int = 24, xlabel: str = "share of variance that the code adds",
    ax: Axes | None = None,
) -> Axes:
    """Show what a code adds for each protein, with its interval; sure ones are filled.

    Args:
        table: proteins of :func:`cellvq.proteinverdicts.beyond_pca` or of
            :func:`cellvq.proteinverdicts.differences`, one row each.
        most: proteins to show, those with the largest difference either way.
        xlabel: what the difference is.
    """
    rows = table.sort_values("difference", key=abs).tail(most).sort_values("difference")
    ax = axes(ax, 6.2, 1.2 + 0.27 * len(rows))
    places, sure = np.arange(len(rows)), (rows["fdr"] < SIGNIFICANT).to_numpy()
    ax.hlines(places, rows["low"], rows["high"], color=FAINT, lw=2, zorder=1)
    for chosen, face, label in ((sure, PALETTE[0], f"FDR below {SIGNIFICANT}"),
                                (~sure, "white", "not distinguishable")):
        if chosen.any():
            ax.scatter(rows["difference"][chosen], places[chosen], s=46, color=face, zorder=2,
                       edgecolors=PALETTE[0], label=label)
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(places, [short(name) for name in rows["protein"]])
    ax.set(xlabel=xlabel, ylabel="")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.9 / max(len(rows), 6) - 0.04), ncols=2)
    sns.despine(ax=ax)
    return ax


def code_map(table: pd.DataFrame, *, most: int = 24, ax: Axes | None = None) -> Axes:
    """Show which code carries which protein: colour is the difference, a dot is a sure one.

    Args:
        table: :func:`cellvq.proteins.code_table`.
        most: proteins to show, those with the largest differences.
    """
    if table.empty:
        ax = axes(ax, 5.0, 2.0)
        ax.text(0.5, 0.5, "no code has cells enough", ha="center", transform=ax.transAxes)
        ax.axis("off")
        return ax
    sizes = table.drop_duplicates("code").set_index("code")["n_cells"].sort_index()
    values = table.pivot_table(index="protein", columns="code", values="difference")[sizes.index]
    kept = values.abs().max(axis=1).sort_values(ascending=False).index[:most]
    values = values.loc[kept]
    values = values.iloc[np.lexsort((-values.max(axis=1), values.to_numpy().argmax(axis=1)))]
    ax = axes(ax, 2.8 + 0.42 * len(sizes), 1.6 + 0.27 * len(values))
    limit = max(float(np.nanquantile(np.abs(values), 0.98)), 0.1)
    sns.heatmap(values, ax=ax, cmap="RdBu_r", vmin=-limit, vmax=limit, yticklabels=1,
                cbar_kws={"label": "standard deviations from\nother cells of the batch",
                          "shrink": 0.7})
    sure = table[(table["fdr"] < SIGNIFICANT) & table["protein"].isin(values.index)]
    ax.scatter(sure["code"].map(values.columns.get_loc) + 0.5,
               sure["protein"].map(values.index.get_loc) + 0.5, s=7, color=INK)
    ax.set_yticks(np.arange(len(values)) + 0.5, [short(name) for name in values.index], rotation=0)
    ax.set_xticks(np.arange(len(sizes)) + 0.5, [f"{code} ({n:,})" for code, n in sizes.items()],
                  rotation=60, ha="right")
    ax.set(xlabel="code (cells)", ylabel="")
    ax.set_title(f"dot: FDR below {SIGNIFICANT}", fontsize=9, loc="left")
    return ax
