"""The knowledge graph for the eye: a still picture, and one that a reader can search and move.

The moving one is a JSON description in the page, drawn by ``book/_static/cellvq-figure.js``;
nothing is loaded from outside. Every text from data is escaped here and becomes text, never markup,
in the script.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from cellvq.schema import EDGES, NODES
from cellvq.style import FAINT, PALETTE, axes, short, write_names

KINDS = {
    kind: {"label": one.label, "color": PALETTE[one.color], "shape": one.shape}
    for kind, one in NODES.items()
} | {kind: {"label": one.says} for kind, one in EDGES.items()}
"""How each kind of node and edge is named and drawn."""
SHAPES = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "hexagon": "h"}
SIZES = {"code": 190, "annotation": 60, "set": 50, "pair": 30, "term": 40, "gene": 8}
"""Area of the marks of a still picture, in points squared; also the order in which they stand."""
EDGE_COLORS = {kind: PALETTE[NODES[one.source if one.target == "gene" else one.target].color]
               for kind, one in EDGES.items()} | {
    "code-marks-gene": FAINT, "gene-drives-code": FAINT, "gene-in-set": FAINT,
    "code-talks-to-code": PALETTE[3], "code-parent-code": FAINT}
MOST_KINDS = 6
"""Kinds of edges that the legend of a still picture names, the most common first."""


@dataclass(frozen=True)
class InteractiveFigure:
    """A figure for a notebook or a page; ``spec`` is what the script draws."""

    spec: dict
    fallback: str  # what a reader without scripts sees

    def _repr_html_(self) -> str:
        # Inside <script> only a closing tag, a comment or an ampersand could end the JSON.
        text = json.dumps(self.spec, ensure_ascii=False, allow_nan=False)
        for sign in "<>&\u2028\u2029":
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        kind, alt = html.escape(self.spec["kind"]), html.escape(self.spec["alt"])
        return (
            f'<div class="cellvq-figure" data-kind="{kind}" role="group" aria-label="{alt}">'
            f'<script type="application/json">{text}</script>'
            f"<noscript><p>{html.escape(self.fallback)}</p></noscript></div>"
        )


def interactive_graph(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    positions: pd.DataFrame,
    title: str,
    alt: str,
    communities: pd.Series | None = None,
) -> InteractiveFigure:
    """Show a knowledge graph that a reader can search, filter, zoom and question.

    Args:
        nodes: node table of :mod:`cellvq.graph`.
        edges: edge table of :mod:`cellvq.graph`.
        positions: :meth:`cellvq.graph.Graph.layout`: ``id``, ``x``, ``y``.
        title: a few words above the figure.
        alt: what the figure shows, for readers who do not see it.
        communities: :meth:`cellvq.graph.Graph.communities`, number of each node.

    Example:
        >>> from cellvq.schema import EDGE_COLUMNS, empty, node_table
        >>> nodes, edges = node_table("gene", ["A"]), empty(EDGE_COLUMNS)
        >>> place = pd.DataFrame({"id": ["gene:A"], "x": [0.0], "y": [0.0]})
        >>> interactive_graph(nodes, edges, place, "One gene", "A gene.").fallback
        'One gene. A gene. 1 nodes, 0 edges.'
    """
    places = positions.set_index("id")
    largest = max(1, nodes["cells"].max())
    groups = {} if communities is None else communities.to_dict()
    drawn_nodes = [
        {
            "id": node.id, "label": node.name, "kind": node.kind,
            "x": round(float(places.at[node.id, "x"]), 4),
            "y": round(float(places.at[node.id, "y"]), 4),
            "size": round(4 + 11 * float(np.sqrt(node.cells / largest)), 1),
            "community": int(groups.get(node.id, 0)),
            "detail": ([f"{node.cells:,} cells"] if node.cells else []) + node.detail.split("; "),
        }
        for node in nodes.itertuples(index=False)
    ]
    drawn_edges = [
        {
            "source": edge.source, "target": edge.target, "kind": edge.kind,
            "directed": bool(edge.directed),
            "weight": 1.0 if np.isnan(edge.effect) else round(float(edge.effect), 3),
            "detail": [*([edge.name] if edge.name else []), describe(edge)],
        }
        for edge in edges.itertuples(index=False)
    ]
    used = {*nodes["kind"], *(edges["kind"] if len(edges) else [])}
    spec = {
        "kind": "graph", "title": title, "alt": alt, "nodes": drawn_nodes, "edges": drawn_edges,
        "kinds": {kind: look for kind, look in KINDS.items() if kind in used},
    }
    return InteractiveFigure(spec, f"{title}. {alt} {len(nodes)} nodes, {len(edges)} edges.")


def describe(edge) -> str:
    """The evidence of an edge in one line."""
    if edge.status != "finding":
        return f"{edge.status}; {edge.evidence}"
    donors = f", {edge.n_donors} donors" if edge.n_donors else ""
    return (
        f"effect {edge.effect:.2f} ({EDGES[edge.kind].effect}), FDR {edge.fdr:.1g}, "
        f"{edge.n_cells:,} cells{donors}; {edge.evidence}; null: {edge.null}"
    )


def graph_picture(
    nodes: pd.DataFrame, edges: pd.DataFrame, positions: pd.DataFrame, *, ax: Axes | None = None
) -> Axes:
    """The knowledge graph as a still picture: codes and annotations named, genes small.

    Args:
        nodes: node table of :mod:`cellvq.graph`.
        edges: edge table of :mod:`cellvq.graph`.
        positions: :meth:`cellvq.graph.Graph.layout`: ``id``, ``x``, ``y``.
    """
    ax = axes(ax, 6.2, 6.0)
    place = positions.set_index("id")[["x", "y"]]
    for number, kind in enumerate(edges["kind"].value_counts().index):
        part = edges[edges["kind"] == kind]
        lines = np.stack([place.loc[part["source"]], place.loc[part["target"]]], axis=1)
        label = KINDS[kind]["label"] if number < MOST_KINDS else None
        ax.add_collection(LineCollection(lines, colors=EDGE_COLORS[kind], linewidths=0.8,
                                         alpha=0.4, zorder=1, label=label))
    for kind in reversed(SIZES):
        look, part = KINDS[kind], nodes[nodes["kind"] == kind]
        if part.empty:
            continue
        xy = place.loc[part["id"]]
        ax.scatter(xy["x"], xy["y"], s=SIZES[kind], c=look["color"], marker=SHAPES[look["shape"]],
                   edgecolors="white", linewidths=0.6, zorder=2, label=look["label"])
    ax.set(xticks=[], yticks=[])
    ax.margins(0.06)
    sns.despine(ax=ax, left=True, bottom=True)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, handletextpad=0.3,
              columnspacing=1.2, handlelength=1.2, markerscale=0.7)
    taken = []
    for kind, size, look in (
        ("code", 6.5, {"color": "white", "halo": None, "only_there": True}),
        ("annotation", 8.5, {"weight": "bold"}),
        ("set", 6.5, {"always": False}),
        ("gene", 6, {"always": False, "style": "italic"}),
    ):
        part = nodes[nodes["kind"] == kind].sort_values("cells", ascending=False)
        names = [short(name) for name in part["name"]]
        taken = write_names(ax, place.loc[part["id"]].to_numpy(), names, size=size, taken=taken,
                            **look)
    return ax
