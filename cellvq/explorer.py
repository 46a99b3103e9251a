"""The graph explorer: a knowledge graph that a reader searches, filters, questions and exports.

It is an object for a notebook or a page of the book (:func:`explore`), or one HTML file that needs
nothing else (:func:`write_page`). Both hold the graph as JSON, drawn by
``book/_static/cellvq-explorer.js``; every text from data becomes text there, never markup.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq import InputError, explorerpage, schema
from cellvq.graphpaths import many
from cellvq.graphview import KINDS, InteractiveFigure
from cellvq.schema import EDGES

DIGITS = 6
"""Significant digits of a number in the page, and in the tables that it exports."""
TEXTS = ("name", "null", "evidence")
"""Columns of the edge table that say the same many times; the page holds each text once."""
NUMBERS = ("effect", "p", "fdr", "stability")


@dataclass(frozen=True)
class Explorer:
    """A knowledge graph for a notebook or a page; ``figure.spec`` is what the script draws."""

    figure: InteractiveFigure

    def _repr_html_(self) -> str:
        # What a notebook shows, which has no script for it; drawn figures hide the words.
        hint = f"{self.figure.fallback} To explore it, write it as a page: explorer.write_page."
        return (f"<style>{explorerpage.STYLE}</style>{self.figure._repr_html_()}"
                f'<p class="cvx-undrawn">{html.escape(hint)}</p>')


def explore(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    positions: pd.DataFrame,
    *,
    title: str = "Knowledge graph",
    alt: str = "",
    communities: pd.Series | None = None,
    notes: Sequence[str] = (),
) -> Explorer:
    """Show a knowledge graph that a reader can search, filter, question and export.

    A node opens a card with the evidence of each of its links; two nodes give the shortest path
    between them; tables show all of it without the picture. What a reader chose stands in the
    address of the page, so that it can be sent. A graph of more than a few hundred nodes begins
    with the strongest (:func:`prominence`), and others appear next to a node that is chosen.

    Args:
        nodes: node table of :mod:`cellvq.schema`.
        edges: edge table of :mod:`cellvq.schema`.
        positions: place of each node: ``id``, ``x``, ``y``.
        title: a few words above it.
        alt: what the graph holds, in a sentence; by default its size.
        communities: number of each node by its id, 0 the largest; None: not shown.
        notes: what is missing and why.

    Raises:
        InputError: the tables are no graph, or a node has no place.

    Example:
        >>> from cellvq.schema import edge_table, node_table
        >>> nodes = pd.concat([node_table("code", ["C07"], cells=30), node_table("gene", ["NKG7"])])
        >>> edges = edge_table("code-marks-gene", ["code:C07"], ["gene:NKG7"], effect=2.0,
        ...                    fdr=1e-9, n_cells=30, p=1e-12)
        >>> places = pd.DataFrame({"id": nodes["id"], "x": [0.0, 1.0], "y": [0.0, 1.0]})
        >>> explore(nodes, edges, places).figure.fallback
        'Knowledge graph. 2 nodes and 1 link of cell codes and genes.'
    """
    schema.check(nodes, edges)
    nodes = nodes.reset_index(drop=True)
    edges = _sorted(edges)
    words = alt or _in_words(nodes, edges)
    spec = {
        "kind": "explorer", "title": title, "alt": words, "page": False,
        "notes": [str(note) for note in notes],
        "kinds": {kind: KINDS[kind] for kind in schema.NODES},
        "links": {kind: {"says": one.says, "effect": one.effect, "source": one.source,
                         "target": one.target} for kind, one in EDGES.items()},
        **_columns(nodes, edges, _placed(nodes, positions), communities),
    }
    return Explorer(InteractiveFigure(spec, f"{title}. {words}"))


def page(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    positions: pd.DataFrame,
    *,
    title: str = "Knowledge graph",
    alt: str = "",
    communities: pd.Series | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Give the explorer as the HTML of one page, which loads nothing.

    The arguments are those of :func:`explore`.

    Raises:
        InputError: the tables are no graph, or a node has no place.
    """
    shown = explore(nodes, edges, positions, title=title, alt=alt, communities=communities,
                    notes=notes).figure
    figure = replace(shown, spec=shown.spec | {"page": True})
    return explorerpage.frame(title, figure._repr_html_(), shown.fallback)


def write_page(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    positions: pd.DataFrame,
    path: str | Path,
    *,
    title: str = "Knowledge graph",
    alt: str = "",
    communities: pd.Series | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write the explorer as one HTML file that opens from any folder, without a network.

    Args:
        nodes: node table of :mod:`cellvq.schema`.
        edges: edge table of :mod:`cellvq.schema`.
        positions: place of each node: ``id``, ``x``, ``y``.
        path: the file, ending in ``.html``; its folders are made where they are missing.
        title: a few words above it.
        alt: what the graph holds, in a sentence; by default its size.
        communities: number of each node by its id; None: not shown.
        notes: what is missing and why.
        overwrite: replace a file that is there.

    Raises:
        InputError: the tables are no graph, the file is there, or it cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: the explorer is a page; name a file that ends in .html")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: the file exists; name another, or allow it to be overwritten")
    text = page(nodes, edges, positions, title=title, alt=alt, communities=communities,
                notes=notes)
    new = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="\n", delete=False,
                                         prefix=f".{path.name}.", dir=path.parent) as file:
            new = Path(file.name)
            file.write(text)
        new.chmod(0o644)
        os.replace(new, path)  # so that no half of it is ever seen
    except OSError as error:
        if new is not None:
            new.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another "
                         "file") from error
    return path


def prominence(nodes: pd.DataFrame, edges: pd.DataFrame) -> pd.Series:
    """Rank nodes by what they have to tell, so that a large graph can begin with the first.

    Codes come first, the largest before others; then what has the strongest link of its kind. A
    link counts by its rank within its kind and status, so that no kind crowds out the others.

    Args:
        nodes: node table.
        edges: edge table.

    Returns:
        Rank of each node by its id, 0 the first.

    Example:
        >>> from cellvq.schema import edge_table, node_table
        >>> nodes = pd.concat([node_table("gene", ["A", "B"]), node_table("code", ["C0"])])
        >>> edges = edge_table("code-marks-gene", ["code:C0"] * 2, ["gene:A", "gene:B"],
        ...                    p=0.0, fdr=[1e-3, 1e-9])
        >>> prominence(nodes, edges).to_dict()
        {'gene:A': 2, 'gene:B': 1, 'code:C0': 0}
    """
    links = _sorted(edges)
    place = links.groupby(["kind", "status"]).cumcount()
    ends = pd.concat([pd.Series(place.to_numpy(), links[end]) for end in ("source", "target")])
    best = nodes["id"].map(ends.groupby(level=0).min()).fillna(np.inf)
    order = np.lexsort([nodes["id"], best, -nodes["cells"].where(nodes["kind"] == "code", 0),
                        nodes["kind"] != "code"])
    rank = np.empty(len(nodes), int)
    rank[order] = np.arange(len(nodes))
    return pd.Series(rank, nodes["id"].to_numpy())


def _sorted(edges: pd.DataFrame) -> pd.DataFrame:
    """Edges by kind in the order of the schema, the strongest evidence of each first."""
    order = {kind: number for number, kind in enumerate(EDGES)}
    keys = edges.assign(order=edges["kind"].map(order), size=-edges["effect"].abs())
    keys = keys.sort_values(["order", "fdr", "size", "source", "target", "name"], kind="stable")
    return keys.drop(columns=["order", "size"]).reset_index(drop=True)


def _placed(nodes: pd.DataFrame, positions: pd.DataFrame) -> pd.DataFrame:
    """The place of each node, in the order of the nodes."""
    if missing := [name for name in ("id", "x", "y") if name not in positions]:
        raise InputError(f"the positions have no column {missing[0]!r}; take them from "
                         "Graph.layout()")
    if (twice := positions["id"].duplicated()).any():
        raise InputError(f"the positions name {positions['id'][twice].iloc[0]!r} twice; take them "
                         "from Graph.layout()")
    placed = positions.set_index("id")[["x", "y"]].astype(float).reindex(nodes["id"])
    lost = ~np.isfinite(placed).all(axis=1)
    if lost.any():
        raise InputError(f"node {lost.idxmax()!r} has no place; lay the graph out anew")
    return placed


def _columns(
    nodes: pd.DataFrame, edges: pd.DataFrame, placed: pd.DataFrame, communities: pd.Series | None
) -> dict:
    """The tables column by column: the page stays small, and no text stands there twice."""
    number = pd.Series(np.arange(len(nodes)), nodes["id"].to_numpy())
    group = pd.Series(-1, number.index) if communities is None else \
        communities.reindex(number.index).fillna(-1).astype(int)
    codes, texts = pd.factorize(pd.concat([edges[name] for name in TEXTS]).astype(str))
    codes = codes.reshape(len(TEXTS), -1)
    return {
        "nodes": {
            **{name: nodes[name].astype(str).tolist() for name in ("id", "kind", "name", "detail")},
            **{name: nodes[name].astype(int).tolist() for name in ("cells", "donors")},
            "x": placed["x"].round(4).tolist(), "y": placed["y"].round(4).tolist(),
            "community": group.tolist(), "rank": prominence(nodes, edges).tolist(),
        },
        "edges": {
            **{end: edges[end].map(number).tolist() for end in ("source", "target")},
            **{name: edges[name].tolist() for name in ("kind", "status")},
            "directed": edges["directed"].astype(bool).tolist(),
            **{name: edges[name].astype(int).tolist() for name in ("n_cells", "n_donors")},
            **{name: _rounded(edges[name]) for name in NUMBERS},
            **{name: row.tolist() for name, row in zip(TEXTS, codes, strict=True)},
        },
        "texts": [str(text) for text in texts],
    }


def _rounded(values: pd.Series) -> list[float | None]:
    """Numbers with few digits; what is not known is None, which JSON has."""
    return [float(f"{value:.{DIGITS}g}") if known else None
            for value, known in zip(values, np.isfinite(values), strict=True)]


def _in_words(nodes: pd.DataFrame, edges: pd.DataFrame) -> str:
    kinds = [f"{schema.NODES[kind].label}s" for kind in schema.NODES
             if (nodes["kind"] == kind).any()]
    listed = ", ".join(kinds[:-1]) + " and " + kinds[-1] if len(kinds) > 1 else "".join(kinds)
    sizes = f"{many(len(nodes), 'node')} and {many(len(edges), 'link')}"
    return sizes + (f" of {listed}." if kinds else ".")
