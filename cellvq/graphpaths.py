"""Ways through a knowledge graph: shortest paths with their evidence, by igraph.

Tables in, tables out; the tables are those of :mod:`cellvq.schema`.
"""

from __future__ import annotations

import difflib
import warnings

import igraph
import numpy as np
import pandas as pd

from cellvq import InputError
from cellvq.schema import EDGES, NODES

SIDEWAYS = 0.5
"""What each doubling of a node's links adds to the length of a way through it."""


def find_node(nodes: pd.DataFrame, name: str, kind: str | None = None) -> str:
    """Find the id of a node by its id, or by its name where that is unique.

    Args:
        nodes: node table.
        name: id (``gene:CD3D``) or name (``CD3D``).
        kind: kind of node wanted; None: any.

    Raises:
        InputError: no node, or more than one, has this name; the nearest names are said.

    Example:
        >>> from cellvq.schema import node_table
        >>> find_node(node_table("gene", ["CD3D", "NKG7"]), "NKG7")
        'gene:NKG7'
    """
    some = nodes if kind is None else nodes[nodes["kind"] == kind]
    ids = some["id"]
    found = ids[ids == name] if (ids == name).any() else ids[some["name"] == name]
    if len(found) == 1:
        return found.iloc[0]
    if len(found):
        raise InputError(f"{name!r} names several nodes: say {' or '.join(found)}")
    close = difflib.get_close_matches(name, [*some["name"], *ids], 3, 0.5)
    hint = f"; near to it: {', '.join(close)}" if close else ""
    what = "node" if kind is None else NODES[kind].label
    raise InputError(f"the graph has no {what} {name!r}{hint}")


def skeleton(nodes: pd.DataFrame, edges: pd.DataFrame) -> igraph.Graph:
    """Make the undirected graph with one link for each kind of evidence between two nodes.

    Args:
        nodes: node table.
        edges: edge table; attribute ``row`` of a link is the position of its strongest edge.
    """
    place = pd.Series(np.arange(len(nodes)), nodes["id"])
    ends = np.sort(np.column_stack([edges[end].map(place) for end in ("source", "target")]))
    links = pd.DataFrame(ends, columns=["one", "other"]).assign(
        kind=edges["kind"].to_numpy(), row=np.arange(len(edges)),
        fdr=edges["fdr"].fillna(1).to_numpy(), effect=-edges["effect"].abs().fillna(0).to_numpy())
    links = links[links["one"] != links["other"]].sort_values(["fdr", "effect", "row"])
    links = links.drop_duplicates(["one", "other", "kind"]).sort_values("row")
    made = igraph.Graph(len(nodes), links[["one", "other"]].to_numpy().tolist())
    made.es["row"] = links["row"].tolist()
    return made


def paths(
    nodes: pd.DataFrame, edges: pd.DataFrame, source: str, target: str, *,
    within: str | None = None, count: int = 3,
) -> pd.DataFrame:
    """Find the shortest ways between two nodes, and the evidence of every step.

    A step through a node with many links says little, so it is longer: each doubling of the links
    of a node adds ``SIDEWAYS``.

    Args:
        nodes: node table.
        edges: edge table.
        source: node to start from, id or name.
        target: node to end at, id or name.
        within: a code; other codes are then passed over, but for its parents.
        count: ways wanted at the most, shortest first.

    Returns:
        One row a step: ``path`` (int, 1 the shortest), ``step`` (int), ``from``, ``to`` (node ids),
        ``length`` (of the whole way), and the columns of the edge table.

    Raises:
        InputError: a node is not known, or the two are one.

    Example:
        >>> from cellvq.schema import edge_table, node_table
        >>> nodes = pd.concat([node_table("gene", ["CD8A", "NKG7"]), node_table("code", ["C07"])])
        >>> edges = edge_table("code-marks-gene", ["code:C07"] * 2, ["gene:CD8A", "gene:NKG7"])
        >>> paths(nodes, edges, "CD8A", "NKG7")[["from", "to"]].values.tolist()
        [['gene:CD8A', 'code:C07'], ['code:C07', 'gene:NKG7']]
    """
    ends = [find_node(nodes, name) for name in (source, target)]
    if ends[0] == ends[1]:
        raise InputError(f"{source!r} and {target!r} are the same node; name two")
    nodes, edges = nodes.reset_index(drop=True), edges.reset_index(drop=True)
    own: set[str] = set()
    if within is not None:
        code = find_node(nodes, within, "code").removeprefix("code:")
        parts = code.split(".")
        own = {"code:" + ".".join(parts[: n + 1]) for n in range(len(parts))}
        kept = (nodes["kind"] != "code") | nodes["id"].isin(own | set(ends))
        nodes = nodes[kept].reset_index(drop=True)
        here = set(nodes["id"])
        edges = edges[edges["source"].isin(here) & edges["target"].isin(here)]
        edges = edges.reset_index(drop=True)
    made = skeleton(nodes, edges)
    links = np.log2(np.maximum(made.degree(), 1))
    links[nodes["id"].isin(own)] = 0  # it was asked for, however busy it is
    ends_of = np.array(made.get_edgelist(), dtype=int).reshape(-1, 2)
    costs = 1 + SIDEWAYS * links[ends_of].sum(axis=1) / 2
    place = pd.Series(np.arange(len(nodes)), nodes["id"])
    with warnings.catch_warnings():  # that there is no way is an answer
        warnings.simplefilter("ignore", RuntimeWarning)
        found = made.get_k_shortest_paths(
            int(place[ends[0]]), int(place[ends[1]]), k=2 * count, weights=costs.tolist(),
            mode="all", output="vpath")
    ways = list(dict.fromkeys(tuple(way) for way in found if way))[:count]
    rows = made.es["row"]
    cheapest: dict[tuple[int, int], int] = {}
    for number, (one, other) in enumerate(ends_of.tolist()):  # several kinds join two nodes
        cheapest.setdefault((one, other), number)
    steps = []
    for number, way in enumerate(ways, 1):
        pairs = [cheapest[tuple(sorted(pair))] for pair in zip(way, way[1:], strict=False)]
        for step, (start, end, link) in enumerate(zip(way, way[1:], pairs, strict=False), 1):
            steps.append({"path": number, "step": step, "from": nodes["id"][start],
                          "to": nodes["id"][end], "length": float(costs[pairs].sum()),
                          **edges.iloc[rows[link]]})
    columns = ["path", "step", "from", "to", "length", *edges.columns]
    return pd.DataFrame(steps, columns=columns)


def to_igraph(nodes: pd.DataFrame, edges: pd.DataFrame) -> igraph.Graph:
    """Make the graph for igraph, directed, with all columns as attributes (``label`` = name)."""
    place = pd.Series(np.arange(len(nodes)), nodes["id"])
    ends = np.column_stack([edges[end].map(place) for end in ("source", "target")])
    vertices = nodes.rename(columns={"name": "label", "id": "name"}).to_dict("list")
    attributes = edges.drop(columns=["source", "target"]).to_dict("list")
    return igraph.Graph(len(nodes), ends.astype(int).tolist(), True, {}, vertices, attributes)


def sentence(edge: pd.Series, names: dict[str, str]) -> str:
    """Say an edge in words, with its numbers.

    Args:
        edge: row of the edge table.
        names: name of each node id.

    Example:
        >>> from cellvq.schema import edge_table
        >>> made = edge_table("code-marks-gene", ["code:C07"], ["gene:NKG7"], effect=2.0, fdr=1e-9,
        ...                   n_cells=30, p=1e-12)
        >>> sentence(made.iloc[0], {"code:C07": "C07", "gene:NKG7": "NKG7"})
        'C07 is marked by NKG7 (effect +2.00, FDR 1e-09, 30 cells)'
    """
    kind = EDGES[edge["kind"]]
    said = f"{names.get(edge['source'], edge['source'])} {kind.says} " \
           f"{names.get(edge['target'], edge['target'])}"
    if edge["kind"] in ("code-talks-to-code", "gene-changes-in-code", "tf-regulates-gene",
                        "talk-changes-with-condition", "gene-in-pair") and edge["name"]:
        said += f" by {edge['name']}" if "talk" in edge["kind"] else f" [{edge['name']}]"
    return f"{said} ({numbers(edge)})"


def numbers(edge: pd.Series) -> str:
    """Say the numbers of an edge: effect, FDR, and what they come from."""
    if edge["status"] == "prior":
        sign = "" if not np.isfinite(edge["effect"]) else \
            ", activates" if edge["effect"] > 0 else ", represses"
        return f"known before: {edge['evidence']}{sign}"
    if edge["status"] == "structure":
        return edge["evidence"]
    units = many(edge["n_cells"], "cell")
    if edge["n_donors"]:
        units += f", {many(edge['n_donors'], 'donor')}"
    fdr = f"FDR {edge['fdr']:.1g}" if edge["fdr"] > 1e-300 else "FDR below 1e-300"
    return f"effect {edge['effect']:+.2f}, {fdr}, {units}"


def many(number: int, word: str) -> str:
    """Say a number with its noun, such as ``1 donor`` or ``1,200 cells``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
