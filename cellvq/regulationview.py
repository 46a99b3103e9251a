"""Regulation for the eye: edges as dots, and methods beside what chance gives them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cellvq import InputError
from cellvq.style import FAINT, INK, PALETTE, axes, short

DEEPEST = 6.0
"""-log10 of the false discovery rate from which on dots grow no more."""


def edge_dots(
    table: pd.DataFrame, *, most: int = 30, fdr: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Draw the surest edges as dots: regulators across, genes down.

    Colour is the correlation (violet: one falls where the other rises) and size the evidence; a dot
    with a line around it is below the false discovery rate. Of several codes the surest counts.

    Args:
        table: :func:`cellvq.regulation.regulation`: ``regulator``, ``gene``, ``effect``, ``p``,
            ``fdr``.
        most: at most so many edges.
        fdr: largest false discovery rate of a finding.

    Raises:
        InputError: a column is absent, or the table has no rows.

    Example:
        >>> ax = edge_dots(pd.DataFrame({"regulator": ["JUN"], "gene": ["FOS"], "effect": [0.4],
        ...                              "p": [1e-9], "fdr": [1e-6]}))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['FOS']
    """
    _need(table, ("regulator", "gene", "effect", "p", "fdr"), "edges")
    shown = table.sort_values("p", kind="stable").drop_duplicates(["regulator", "gene"]).head(most)
    columns, rows = (list(dict.fromkeys(shown[name])) for name in ("regulator", "gene"))
    ax = axes(ax, 3.6 + 0.32 * len(columns), 1.9 + 0.24 * len(rows))
    deep = np.clip(-np.log10(shown["fdr"].clip(lower=1e-300)), 0, DEEPEST)
    limit = max(float(shown["effect"].abs().max()), 1e-9)
    dots = ax.scatter(
        [columns.index(name) for name in shown["regulator"]],
        [rows.index(name) for name in shown["gene"]], s=16 + 22 * deep, c=shown["effect"],
        cmap="PuOr_r", vmin=-limit, vmax=limit, linewidths=0.9,
        edgecolors=np.where(shown["fdr"] < fdr, INK, "none"))
    ax.set_xticks(range(len(columns)), [short(name) for name in columns], rotation=90, fontsize=8)
    ax.set_yticks(range(len(rows)), [short(name) for name in rows], fontsize=8)
    ax.set(xlim=(-0.7, len(columns) - 0.3), ylim=(len(rows) - 0.3, -0.7),
           xlabel="transcription factor", ylabel="gene")
    ax.set_title("They go up and down together")
    ax.grid(color=FAINT, alpha=0.25)
    ax.set_axisbelow(True)
    ax.figure.colorbar(dots, ax=ax, label="correlation at equal depth", shrink=0.7)
    return ax


def method_points(
    table: pd.DataFrame, metric: str = "auroc", *, controls: tuple[str, ...] = (),
    title: str = "", ax: Axes | None = None,
) -> Axes:
    """Draw every method's score with its interval, beside random networks of the same degrees.

    Args:
        table: :func:`cellvq.regulationscore.score_methods`.
        metric: ``auroc`` or ``precision``.
        controls: methods that know of no regulation, which are grey.
        title: words above the figure.

    Raises:
        InputError: a column is absent, or the table has no rows.

    Example:
        >>> row = {"method": "correlation", "auroc": 0.6, "auroc_low": 0.5, "auroc_high": 0.7,
        ...        "auroc_null": 0.55}
        >>> method_points(pd.DataFrame([row])).get_xlabel()
        'area under the ROC curve'
    """
    _need(table, ("method", metric, f"{metric}_low", f"{metric}_high", f"{metric}_null"), "scores")
    table = table.sort_values(metric, ignore_index=True)
    ax = axes(ax, 6.4, 1.3 + 0.32 * len(table))
    for place, row in table.iterrows():
        color = FAINT if row["method"] in controls else PALETTE[0]
        ax.hlines(place, row[f"{metric}_low"], row[f"{metric}_high"], color=color, lw=4, alpha=0.4)
        ax.plot(row[metric], place, "o", color=color, mec="white", ms=8)
        ax.plot(row[f"{metric}_null"], place, "D", color=INK, mfc="white", ms=5)
    ax.plot([], [], "o", color=PALETTE[0], label="method")
    ax.plot([], [], "o", color=FAINT, label="control")
    ax.plot([], [], "D", color=INK, mfc="white", ms=5, label="random edges, same degrees")
    ax.set_yticks(range(len(table)), [short(name, 30) for name in table["method"]])
    ax.set(ylim=(-0.6, len(table) - 0.4), title=title, xlabel={
        "auroc": "area under the ROC curve", "precision": "known share of the top pairs"}[metric])
    ax.grid(axis="x")
    ax.legend(loc="upper center", bbox_to_anchor=(0.3, -0.75 / ax.figure.get_size_inches()[1]),
              ncols=3, handletextpad=0.2, columnspacing=1.0)
    return ax


def _need(table: pd.DataFrame, columns: tuple[str, ...], what: str) -> None:
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"the table of {what} has no column {', '.join(missing)}")
    if table.empty:
        raise InputError(f"there are no {what} to draw: "
                         f"{table.attrs.get('reason', 'the table is empty')}")
