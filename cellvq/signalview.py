"""Signals for the eye: the strongest between codes as dots, and how many there are as a map."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from cellvq import InputError
from cellvq.style import FAINT, INK, axes, short

WIDEST = 40
"""Letters of a name beside the figure, at the most."""
DEEPEST = 6.0
"""-log10 of the false discovery rate from which on dots grow no more."""


def signal_dots(
    table: pd.DataFrame, *, most: int = 20, per_pair: int = 3, fdr: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Draw the strongest signals as dots: pairs of genes down, pairs of codes across.

    Colour is the effect and size the evidence; a dot with an edge is below the false discovery
    rate. Where effects go both ways, as between conditions, violet is lower and orange is higher;
    of several contrasts the one with the smallest p is drawn.

    Args:
        table: :func:`cellvq.signals.communication`, `signalchanges.signal_changes` or
            `spatial.spatial_communication`: ``source``, ``target``, ``ligand``, ``receptor``,
            ``effect``, ``p``, ``fdr``.
        most: so many signals choose the rows and columns, those with the smallest p.
        per_pair: at most so many of them have the same two genes.
        fdr: largest false discovery rate of a finding.

    Raises:
        InputError: a column is absent, or the table has no rows.

    Example:
        >>> ax = signal_dots(pd.DataFrame({
        ...     "source": ["C0"], "target": ["C1"], "ligand": ["CCL19"], "receptor": ["CCR7"],
        ...     "effect": [2.0], "p": [1e-4], "fdr": [1e-3]}))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['CCL19 → CCR7']
    """
    shown, title = _named(table).assign(size=table["effect"].abs()), "Strongest signals"
    if changed := "contrast" in shown:
        title = str(shown.sort_values("p")["contrast"].iloc[0])
        shown = shown[shown["contrast"] == title]
    shown = shown.sort_values(["p", "size"], ascending=[True, False])
    best = shown.groupby("pair").head(per_pair).head(most)
    rows, columns = (list(dict.fromkeys(best[side])) for side in ("pair", "codes"))
    shown = shown[shown["pair"].isin(rows) & shown["codes"].isin(columns)]
    below = 0.07 * max(len(short(name, WIDEST)) for name in columns)
    ax = axes(ax, max(5.2, 3.6 + 0.32 * len(columns)), 1.9 + below + 0.28 * len(rows))
    both_ways = changed or (best["effect"] < 0).any()
    limit = max(float(shown["effect"].abs().max()), 1e-9)
    norm = TwoSlopeNorm(0, -limit, limit) if both_ways else None
    deep = np.clip(-np.log10(shown["fdr"].clip(lower=1e-300)), 0, DEEPEST)
    dots = ax.scatter(
        [columns.index(name) for name in shown["codes"]],
        [rows.index(name) for name in shown["pair"]], s=12 + 20 * deep, c=shown["effect"],
        cmap="PuOr_r" if both_ways else "cividis", norm=norm, linewidths=1.1,
        edgecolors=np.where(shown["fdr"] < fdr, INK, "none"))
    ax.set_xticks(range(len(columns)), [short(name, WIDEST) for name in columns], rotation=90,
                  fontsize=8)
    ax.set_yticks(range(len(rows)), [short(name, WIDEST) for name in rows], fontsize=8)
    ax.set(xlim=(-0.7, len(columns) - 0.3), ylim=(len(rows) - 0.3, -0.7),
           xlabel="code with the ligand → code with the receptor")
    ax.set_title(title, pad=44)
    ax.grid(color=FAINT, alpha=0.25)
    ax.set_axisbelow(True)
    ax.figure.colorbar(dots, ax=ax, label="effect (log2)", shrink=0.7)
    handles = [ax.scatter([], [], s=12 + 20 * size, color=FAINT) for size in (1, 3, DEEPEST)]
    ax.legend(handles, ["0.1", "0.001", f"≤ {10**-DEEPEST:.0e}"], title="FDR", ncols=3,
              loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2,
              handletextpad=0.1, columnspacing=0.8, title_fontsize=9, fontsize=8)
    return ax


def signal_map(
    table: pd.DataFrame, *, fdr: float = 0.05, most: int = 32, ax: Axes | None = None
) -> Axes:
    """Draw how many signals lead from each code to each other.

    Args:
        table: as for :func:`signal_dots`.
        fdr: largest false discovery rate of a signal that counts.
        most: at most so many codes, those with most signals.

    Raises:
        InputError: a column is absent, or the table has no rows.

    Example:
        >>> ax = signal_map(pd.DataFrame({
        ...     "source": ["C0"], "target": ["C1"], "ligand": ["CCL19"], "receptor": ["CCR7"],
        ...     "effect": [2.0], "p": [1e-4], "fdr": [1e-3]}))
        >>> ax.get_xlabel()
        'code with the receptor'
    """
    found = _named(table)
    found = found[(found["fdr"] < fdr) & (found["effect"] != 0)]
    busy = pd.concat([found["source"], found["target"]]).value_counts()
    names = sorted(busy.index[:most]) or sorted({*table["source"], *table["target"]})[:most]
    counts = pd.crosstab(found["source"], found["target"]).reindex(
        index=names, columns=names, fill_value=0)
    side = 1.6 + 0.2 * len(names)
    ax = axes(ax, side + 1.6, side + 0.6)
    image = ax.imshow(counts, cmap="cividis", vmin=0, aspect="equal")
    ax.set_xticks(range(len(names)), [short(name) for name in names], rotation=90, fontsize=8)
    ax.set_yticks(range(len(names)), [short(name) for name in names], fontsize=8)
    ax.set(xlabel="code with the receptor", ylabel="code with the ligand")
    ax.set_title(f"{len(found):,} signals below FDR {fdr:g}")
    bar = ax.figure.colorbar(image, ax=ax, label="signals", shrink=0.7)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    return ax


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a name for the pair of genes and for the pair of codes."""
    needed = ("source", "target", "ligand", "receptor", "effect", "p", "fdr")
    if missing := [name for name in needed if name not in table]:
        raise InputError(f"the table of signals has no column {', '.join(missing)}")
    if table.empty:
        raise InputError("there are no signals to draw: "
                         f"{table.attrs.get('reason', 'the table is empty')}")
    text = table[["source", "target", "ligand", "receptor"]].astype(str)
    return table.assign(pair=text["ligand"] + " → " + text["receptor"],
                        codes=text["source"] + " → " + text["target"])
