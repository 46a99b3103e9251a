"""Codes for the eye: their tree, their stability, their sizes, and where they go in another study.

Tables come from :mod:`cellvq.dictionary` and :mod:`cellvq.stability`. What codes are worth is drawn
in :mod:`cellvq.evidenceview`, whose figures are found here as well.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from cellvq import InputError
from cellvq.evidenceview import (
    agreement,
    biology_or_batch,
    confusion,
    deletion_curves,
    novelty_histogram,
    price_of_discretising,
)
from cellvq.style import FAINT, INK, PALETTE, axes, palette, short

__all__ = [
    "agreement", "biology_or_batch", "code_tree", "confusion", "deletion_curves",
    "novelty_histogram", "price_of_discretising", "river", "stability_plot", "usage_sizes",
]
UNSTABLE = "unstable"
CURVE = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]


def code_tree(
    codes: pd.DataFrame,
    *,
    color: str = "parent",
    markers: int = 3,
    most: int = 64,
    ax: Axes | None = None,
) -> Axes:
    """Nested codes as a tree: cells as size, names at the nodes, markers on the branches.

    Args:
        codes: codes of a dictionary, or :func:`cellvq.codes.tree_table`: ``address``, ``parent``,
            ``level``, ``cells``, where there are any also ``name`` (without that column ``label``
            or ``annotation``), ``markers`` and ``stable``; an unstable state is hollow.
        color: ``parent``, or a column of shares such as ``label_share`` or ``stability``.
        markers: genes written at a node, at the most.
        most: levels with more states than this are left out, and the title says so.

    Raises:
        InputError: the codes are flat, or not even the coarsest levels fit.
    """
    if codes["level"].nunique() < 2:
        raise InputError("flat codes have no tree; draw their sizes with `usage_sizes`")
    found = codes.groupby("level").size()
    shown = codes[codes["level"].isin(found.index[found.cummax() <= most])]
    if shown["level"].nunique() < 2:
        raise InputError(f"the second level has {found.iloc[1]} states; give `most` that number")
    shown = shown.sort_values("address").set_index("address")
    last = shown["level"].max()
    y = _rows_of_a_tree(shown, last)
    ax = axes(ax, 6.4, 1.0 + 0.27 * (y.max() + 1))
    tones, label = _tones(shown, color, ax)
    size = 14 + 260 * np.sqrt(shown["cells"] / shown["cells"].max())
    x = shown["level"].astype(float)
    for address, parent in shown["parent"].items():
        start = (x[parent], y[parent]) if parent in y else (-0.5, y[shown["level"] == 0].mean())
        middle = (start[0] + x[address]) / 2
        ax.add_patch(PathPatch(
            Path([start, (middle, start[1]), (middle, y[address]), (x[address], y[address])],
                 [Path.MOVETO, *[Path.CURVE4] * 3]),
            fill=False, edgecolor=tones[address], alpha=0.55, zorder=1,
            lw=0.8 + 5 * np.sqrt(shown.at[address, "cells"] / shown["cells"].sum()),
        ))
    hollow = shown.get("stable", pd.Series("", shown.index)).eq(UNSTABLE)
    face = [("white" if hollow[address] else tones[address]) for address in shown.index]
    ax.scatter(x, y, s=size, c=face, edgecolors=tones.to_list(), linewidths=1.4, zorder=2)
    for state, (across, up) in zip(shown.reset_index().to_dict("records"),
                                   zip(x, y, strict=True), strict=True):
        _write_state(ax, state, across, up, leaf=state["level"] == last, markers=markers)
    ax.set(xlim=(-0.55, last + 1.35), ylim=(y.max() + 1.2, y.min() - 0.9), yticks=[])
    ax.set_xticks(range(last + 1), [f"level {level}\n{found[level]} states"
                                    for level in range(last + 1)])
    ax.set_xlabel(f"size: cells; colour: {label}" + ("; hollow: unstable" if hollow.any() else ""))
    left_out = [str(level) for level in found.index if level > last]
    ax.set_title("Tree of codes" + (f" (without level {', '.join(left_out)})" if left_out else ""))
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def stability_plot(
    stability: pd.DataFrame, *, threshold: float = 0.5, most: int = 48, ax: Axes | None = None
) -> Axes:
    """Stability of every code beside its null, best first; each level in a block of its own.

    Args:
        stability: :func:`cellvq.stability.code_stability`: ``code``, ``level``, ``stability``,
            ``null``, ``stable``, and ``runs`` or ``cells`` where there are any.
        threshold: index at which a group counts as found again; a thin line.
        most: a level with more codes than this shows its codes without their names.
    """
    levels = sorted(stability["level"].unique())
    table = stability.sort_values(["level", "stability"], ascending=[True, False])
    named = stability.groupby("level").size().max() <= most
    ax = axes(ax, 5.8, 1.6 + len(table) * (0.19 if named else 0.05))
    row = np.arange(len(table)) + 1.6 * table["level"].map(levels.index).to_numpy()
    looks = {"stable": (PALETTE[0], "o", PALETTE[0]), "unstable": (PALETTE[3], "D", "white"),
             "not measured": (FAINT, "s", "white")}
    ax.hlines(row, table["null"], table["stability"], color=FAINT, lw=1.2, alpha=0.7, zorder=1)
    ax.plot(table["null"], row, "|", color=INK, ms=8, mew=1.6, ls="", label="cells shuffled")
    for flag, (edge, mark, face) in looks.items():
        part = (table["stable"] == flag).to_numpy()
        if part.any():
            ax.plot(table["stability"][part], row[part], mark, color=edge, mfc=face, mew=1.4, ms=6,
                    ls="", label=f"{flag} ({part.sum()})")
    ax.axvline(threshold, color=FAINT, lw=1, ls="--", zorder=0)
    if named:
        ax.set_yticks(row, table["code"].map(short), fontsize=8)
    else:
        ax.set_yticks([])
    if len(levels) > 1:
        for level in levels:
            top = row[(table["level"] == level).to_numpy()].min() - 0.75
            ax.text(1.01, top, f"level {level}", va="center", ha="right", weight="bold")
    runs = f", {int(table['runs'].max())} runs" if "runs" in table and len(table) else ""
    ax.set(xlim=(-0.02, 1.03), ylabel="" if named else f"{len(table)} codes, best first",
           xlabel=f"Jaccard index with the most similar code of another run{runs}")
    ax.set_ylim((row.max() if len(row) else 0) + 0.8, -1.5)
    ax.set_title("Would another run find it?")
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.7 / ax.figure.get_size_inches()[1]),
              ncols=2, handletextpad=0.2)
    return ax


def usage_sizes(
    codes: pd.DataFrame, *, size: int | None = None, ax: Axes | None = None
) -> Axes:
    """Cells of every code, the largest first, beside codes of equal size.

    Args:
        codes: ``cells`` of each code; where there are levels, ``level``, of which the deepest
            counts. ``stable`` decides whether a bar is full.
        size: codes there are, if some have no cells.
    """
    if "level" in codes:
        codes = codes[codes["level"] == codes["level"].max()]
    codes = codes.sort_values("cells", ascending=False)
    size = max(size or 0, len(codes))
    ax = axes(ax, 5.8, 3.2)
    hollow = codes.get("stable", pd.Series("", codes.index)).eq(UNSTABLE).to_numpy()
    share = 100 * (codes["cells"] / max(codes["cells"].sum(), 1)).to_numpy()
    rank = np.arange(1, len(codes) + 1)
    for part, face, label in ((~hollow, PALETTE[0], "codes"), (hollow, "white", "unstable codes")):
        if part.any():
            ax.bar(rank[part], share[part], 0.8 if size <= 64 else 1.0, facecolor=face,
                   edgecolor=PALETTE[0], linewidth=1 if size <= 64 else 0, label=label)
    ax.axhline(100 / size, color=PALETTE[3], ls="--", lw=1.4, label="all codes equal")
    ax.set(xlim=(0, size + 1), xlabel=f"rank of the code, of {size}", ylabel="% of cells")
    dead = size - int((codes["cells"] > 0).sum())
    ax.set_title(f"Code sizes ({dead} of {size} without cells)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    ax.legend(loc="upper right")
    return ax


def river(
    pairs: pd.DataFrame,
    *,
    names: tuple[str, str] = ("source", "target"),
    title: str = "Where codes go",
    most: int = 24,
    ax: Axes | None = None,
) -> Axes:
    """Ribbons between two sets of codes, as wide as what they share, coloured by their source.

    Args:
        pairs: ``source``, ``target`` and ``cells`` or ``weight``, one row a pair.
        names: what is on the left and on the right.
        title: what the ribbons are.
        most: codes shown of each side, the largest; the smaller ones are one group, ``others``.

    Raises:
        InputError: no pair has a weight above zero.
    """
    table = _gathered(pairs.rename(columns={"cells": "weight"}), most)
    if table.empty:
        raise InputError("no pair of codes shares anything; there is nothing to draw")
    left, right = _fewest_crossings(table)
    count = max(len(left), len(right))
    ax = axes(ax, 5.8, 1.3 + 0.24 * max(count, 8))
    total, gap = table["weight"].sum(), 0.9 / max(count, 12)
    colors = palette(sorted(name for name in left if not name.startswith("others")))
    place = {}  # of each side and node: where it begins and ends
    for side, order in (("source", left), ("target", right)):
        height = table.groupby(side)["weight"].sum() / total
        begin = (1 + gap * (count - 1) - 1 - gap * (len(order) - 1)) / 2
        for name in order:
            place[side, name] = (begin, begin + height[name])
            begin += height[name] + gap
    start = {key: begin for key, (begin, _) in place.items()}
    rank = {"source": {name: i for i, name in enumerate(left)},
            "target": {name: i for i, name in enumerate(right)}}
    ends = []
    for side, other in (("source", "target"), ("target", "source")):
        order = table.assign(a=table[side].map(rank[side]), b=table[other].map(rank[other]))
        order = order.sort_values(["a", "b"])
        below = order.groupby(side)["weight"].cumsum() / total - order["weight"] / total
        ends.append((below + [start[side, name] for name in order[side]]).reindex(table.index))
    for row, here, there in zip(table.to_dict("records"), *ends, strict=True):
        wide, tone = row["weight"] / total, colors.get(row["source"], FAINT)
        points = [(0.03, here), (0.5, here), (0.5, there), (0.97, there), (0.97, there + wide),
                  (0.5, there + wide), (0.5, here + wide), (0.03, here + wide), (0.03, here)]
        ax.add_patch(PathPatch(Path(points, CURVE), facecolor=tone, alpha=0.55, lw=0))
    for (side, name), (low, high) in place.items():
        at_left = side == "source"
        ax.add_patch(Rectangle((0 if at_left else 0.97, low), 0.03, high - low, lw=0,
                               facecolor=colors.get(name, FAINT) if at_left else INK))
    for side, across, align in (("source", -0.02, "right"), ("target", 1.02, "left")):
        nodes = [(name, sum(place[key, name]) / 2) for key, name in place if key == side]
        for (name, _), up in zip(nodes, _apart([up for _, up in nodes], 1.1 / max(count, 8)),
                                 strict=True):
            ax.text(across, up, short(name, 22), ha=align, va="center", fontsize=8)
    ax.set(xlim=(0, 1), ylim=(1 + gap * (count - 1) + 0.03, -0.03), yticks=[])
    ax.set_xticks([0.015, 0.985], names, weight="bold")
    ax.set_title(title)
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def _rows_of_a_tree(shown: pd.DataFrame, last: int) -> pd.Series:
    """The row of each state: the last level in order, a parent amid its children."""
    y = pd.Series(np.nan, shown.index)
    ends = shown.index[(shown["level"] == last) | ~shown.index.isin(shown["parent"])]
    parent = shown.loc[ends, "parent"]
    children = parent.groupby(parent).transform("size").to_numpy()
    begins = parent.ne(parent.shift()).to_numpy() & (np.arange(len(ends)) > 0)
    # Between families there is room for the two lines of text at the parents.
    y[ends] = np.arange(len(ends)) + np.cumsum(begins * np.maximum(0.6, 2.6 - children))
    for level in range(last - 1, -1, -1):
        children = shown["parent"][shown["level"] == level + 1]
        y = y.fillna(y[children.index].groupby(children).mean())
    return y


def _tones(shown: pd.DataFrame, color: str, ax: Axes) -> tuple[pd.Series, str]:
    """A colour for every state, and what it means."""
    if color == "parent":
        roots = shown.index.str.split(".").str[0]
        colors = palette(sorted(set(roots)))
        return pd.Series([colors[root] for root in roots], shown.index), "coarsest state"
    if color not in shown:
        raise InputError(f"the codes have no column {color!r}; there are {', '.join(shown)}")
    scale = sns.color_palette("cividis", as_cmap=True)
    values = shown[color].astype(float)
    tones = [scale(value) if np.isfinite(value) else FAINT for value in values]
    dots = ax.scatter([], [], c=[], cmap=scale, vmin=0, vmax=1)
    label = color.replace("_", " ")
    ax.figure.colorbar(dots, ax=ax, shrink=0.4, aspect=25, location="bottom", label=label)
    return pd.Series(tones, shown.index), label


def _write_state(ax: Axes, state: dict, x: float, y: float, *, leaf: bool, markers: int) -> None:
    column = next((each for each in ("name", "label", "annotation") if each in state), None)
    name = state[column] if column and isinstance(state[column], str) else ""
    genes = ", ".join(str(state.get("markers") or "").split(", ")[:markers])
    label = f"{state['address']} {short(name, 22)}".strip()
    if leaf:
        text = ax.annotate(label, (x, y), xytext=(11, 0), textcoords="offset points", va="center",
                           fontsize=8)
        ax.annotate(genes, (1, 0.5), xycoords=text, xytext=(5, 0), textcoords="offset points",
                    va="center", fontsize=7, style="italic", color="#5c6b77")
    else:
        look = {"textcoords": "offset points", "ha": "center", "annotation_clip": False,
                "path_effects": [withStroke(linewidth=2.5, foreground="white")]}
        ax.annotate(label, (x, y), xytext=(0, 11), fontsize=8.5, weight="bold", **look)
        ax.annotate(genes, (x, y), xytext=(0, -18), fontsize=7, style="italic", color="#5c6b77",
                    **look)


def _gathered(pairs: pd.DataFrame, most: int) -> pd.DataFrame:
    """Pairs with a weight; the smallest nodes of each side joined to one."""
    table = pairs[pairs["weight"] > 0].astype({"source": str, "target": str})
    for side in ("source", "target"):
        sizes = table.groupby(side)["weight"].sum().sort_values(ascending=False, kind="stable")
        if len(sizes) > most:
            small = set(sizes.index[most - 1:])
            joined = f"others ({len(small)})"
            table[side] = table[side].where(~table[side].isin(small), joined)
    return table.groupby(["source", "target"], as_index=False)["weight"].sum()


def _fewest_crossings(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """An order of both sides with few crossings: each node near the mean place of its partners."""
    weights = table.pivot_table("weight", "source", "target", fill_value=0.0)
    values = weights.to_numpy(float)
    left, right = (_ranks(np.arange(size)) for size in values.shape)
    for _ in range(12):
        right = _ranks(values.T @ left / values.sum(axis=0))
        left = _ranks(values @ right / values.sum(axis=1))
    orders = [names[place.argsort(kind="stable")].tolist()
              for names, place in ((weights.index, left), (weights.columns, right))]
    return tuple(sorted(order, key=lambda name: name.startswith("others")) for order in orders)


def _ranks(places: np.ndarray) -> np.ndarray:
    """Rank of each place, from 0 to 1."""
    return places.argsort(kind="stable").argsort() / max(len(places) - 1, 1)


def _apart(places: list[float], least: float) -> list[float]:
    """Places at least so far apart, moved as little as a sweep down and one up can."""
    order, steps = np.argsort(places, kind="stable"), least * np.arange(len(places))
    wanted = np.array(places)[order] - steps
    down = np.maximum.accumulate(wanted)
    up = np.minimum.accumulate(wanted[::-1])[::-1]
    moved = np.empty(len(places))
    moved[order] = (down + up) / 2 + steps
    return moved.tolist()
