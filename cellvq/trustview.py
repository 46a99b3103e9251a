"""Figures of how far the knowledge graph can be trusted: planted facts, and hidden links."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from cellvq.style import FAINT, INK, PALETTE, axes

AXES = {"power": "power: share of planted facts that are found",
        "fdr": "false discovery rate: share of findings not planted"}
OURS = "this package"


def recovered(
    table: pd.DataFrame, measure: str = "power", *, nominal: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Show power or false discovery rate of each kind of finding, beside a plain baseline.

    Args:
        table: :func:`cellvq.recovery.summarise`, of simulations with something planted or of those
            with nothing.
        measure: ``power`` or ``fdr``.
        nominal: rate that was asked for, drawn as a line.

    Example:
        >>> row = {"kind": "code-marks-gene", "method": "this package", "power": 0.9,
        ...        "power_low": 0.8, "power_high": 1.0}
        >>> recovered(pd.DataFrame([row])).get_xlabel()
        'power: share of planted facts that are found'
    """
    kinds = list(dict.fromkeys(table["kind"]))
    ax = axes(ax, 6.4, 1.5 + 0.5 * len(kinds))
    ours = table["method"] == OURS
    both = table["method"].str.startswith(OURS) & ~ours
    for part, shift, color, marker, label in (
            (ours, -0.18, PALETTE[0], "o", OURS),
            (both, 0.0, PALETTE[2], "D", "directions together"),
            (~ours & ~both, 0.18, PALETTE[1], "s", "plain baseline")):
        rows = table[part]
        if rows.empty:
            continue
        places = rows["kind"].map(kinds.index) + shift
        ax.hlines(places, rows[f"{measure}_low"], rows[f"{measure}_high"], color=color, lw=2)
        ax.scatter(rows[measure], places, s=44, color=color, marker=marker, label=label, zorder=3)
    if measure == "fdr":
        ax.axvline(nominal, color=INK, lw=1, ls="--", label=f"asked for: {nominal:g}")
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set(xlabel=AXES[measure], xlim=(-0.03, 1.03), ylim=(len(kinds) - 0.5, -0.5))
    ax.legend(loc="upper center", bbox_to_anchor=(0.3, -0.6 / max(len(kinds), 3) - 0.06), ncols=4,
              fontsize=9, columnspacing=1.0, handletextpad=0.3)
    sns.despine(ax=ax)
    return ax


def hidden_links(table: pd.DataFrame, measure: str = "AUROC", *, ax: Axes | None = None) -> Axes:
    """Show how well each ranking finds hidden links, beside random ones of the same genes.

    Args:
        table: :func:`cellvq.hiddenscore.hidden_edges`, of one kind.
        measure: its measure to show.

    Example:
        >>> row = {"method": "all evidence", "minus": "", "measure": "AUROC", "value": 0.8,
        ...        "low": 0.7, "high": 0.9, "null_low": 0.4, "null_high": 0.6, "chance": 0.01}
        >>> hidden_links(pd.DataFrame([row])).get_xlabel()
        'AUROC'
    """
    rows = table[(table["minus"].fillna("") == "") & (table["measure"] == measure)]
    ax = axes(ax, 6.4, 1.4 + 0.36 * len(rows))
    places = np.arange(len(rows))
    ax.hlines(places, rows["null_low"], rows["null_high"], color=FAINT, lw=9, alpha=0.6,
              label="random links of the same genes")
    ax.hlines(places, rows["low"], rows["high"], color=PALETTE[0], lw=2)
    ax.scatter(rows["value"], places, s=44, color=PALETTE[0], zorder=3, label="hidden links")
    chance = 0.5 if measure == "AUROC" else rows["chance"].iloc[0]
    ax.axvline(chance, color=INK, lw=1, ls="--", label="chance")
    ax.set_yticks(places, rows["method"])
    ax.set(xlabel=measure, ylim=(len(rows) - 0.5, -0.5))
    ax.legend(loc="upper center", bbox_to_anchor=(0.3, -0.7 / max(len(rows), 3) - 0.06), ncols=3,
              fontsize=9, columnspacing=1.0, handletextpad=0.3)
    sns.despine(ax=ax)
    return ax
