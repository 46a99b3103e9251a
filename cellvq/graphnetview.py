"""Figures of the graph module: what each kind of token adds, and whether read-outs are faithful."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from cellvq.style import FAINT, INK, PALETTE, axes

MEASURES = {
    "vector": "log likelihood against all tokens,\nnats per 1,000 held-out molecules",
    "code": "log likelihood from the code against all tokens,\nnats per 1,000 held-out molecules",
    "nmi": "label NMI of codes against all tokens",
    "ami": "agreement of codes between seeds (AMI)",
}
"""What is drawn, and the words for it."""


def token_worth(table: pd.DataFrame, measure: str = "vector", *, ax: Axes | None = None) -> Axes:
    """Show how the module does without each kind of token, beside its control and its rivals.

    Args:
        table: :func:`cellvq.graphablation.summary`.
        measure: ``vector``, ``code`` or ``nmi`` (differences), or ``ami``.
    """
    rows = table[table[measure].notna()].iloc[::-1]
    if measure != "ami":
        rows = rows[rows["variant"] != "all tokens"]
    ax, places = axes(ax, 6.0, 1.2 + 0.32 * len(rows)), np.arange(len(rows))
    ax.hlines(places, rows[f"{measure}_low"], rows[f"{measure}_high"], color=PALETTE[0], lw=2)
    ax.plot(rows[measure], places, "o", color=PALETTE[0])
    if measure != "ami":
        ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(places, rows["variant"])
    ax.set(xlabel=MEASURES[measure], ylabel="")
    sns.despine(ax=ax)
    return ax


def deletion_losses(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Show what cells lose without their most attended tokens, random ones and a rival's choice.

    Args:
        table: :func:`cellvq.graphreading.deletions`.
    """
    ax = axes(ax, 6.0, 1.6 + 0.75 * len(table))
    ways = {"attended": ("most attended", PALETTE[0]), "random": ("random", FAINT),
            "rival": ("rival", PALETTE[1])}
    for number, (way, (label, color)) in enumerate(ways.items()):
        places = np.arange(len(table)) + 0.26 * (number - 1)
        ax.barh(places, table[way], 0.24, color=color, label=label)
        ax.hlines(places, table[f"{way}_low"], table[f"{way}_high"], color=INK, lw=1)
    ax.axvline(0, color=INK, lw=1)
    names = [f"{kind}\n({number:.3g} of each cell)" for kind, number
             in zip(table["kind"], table["deleted"], strict=True)]
    ax.set_yticks(np.arange(len(table)), names)
    ax.invert_yaxis()
    ax.set(xlabel="log likelihood lost without these tokens, nats a held-out cell", ylabel="")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.9 / (1.6 + 0.75 * len(table))), ncols=3)
    sns.despine(ax=ax)
    return ax
