"""CellVQ-Graph: codes, genes, annotations and the signals between codes, joined with evidence.

Tables in, tables out: nothing here knows a model. :func:`build` turns the tables of
:mod:`cellvq.codes` and :func:`communication` into a :class:`Graph`, whose every edge carries an
effect, the number of cells, p, FDR, the null and the source. What misses the FDR does not enter.

Node table: ``id`` (str, ``kind:name``, so that a gene and a cell type of one name stay apart),
``kind`` (code, gene, annotation), ``name`` (str), ``cells`` (int: cells with the code or the
annotation, 0 for genes), ``detail`` (str, a line for people).

Edge table:

=========== ===== ===============================================================================
source      str   node id; of code-talks-to-code the code with the ligand
target      str   node id
kind        str   code-marks-gene, code-is-annotation, code-near-code, code-talks-to-code
name        str   ligand and receptor of code-talks-to-code, otherwise empty
directed    bool  only code-talks-to-code has a direction
effect      float log2 fold change of a gene; otherwise log2 of observed to expected under the null
n_cells     int   cells of the code (genes), with both (annotation), of both codes (near, talks)
p           float p-value
fdr         float Benjamini-Hochberg over all tests of this kind, also those that did not enter
null        str   what the p-value compares with
evidence    str   software and version that gave the numbers
=========== ===== ===============================================================================
"""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import igraph
import leidenalg
import numpy as np
import pandas as pd

from cellvq import InputError, evaluate
from cellvq.signals import communication

__all__ = ["Graph", "build", "communication", "read"]

NODE_COLUMNS = {"id": str, "kind": str, "name": str, "cells": int, "detail": str}
EDGE_COLUMNS = {
    "source": str, "target": str, "kind": str, "name": str, "directed": bool, "effect": float,
    "n_cells": int, "p": float, "fdr": float, "null": str, "evidence": str,
}


@dataclass(frozen=True)
class Graph:
    """A knowledge graph of cell states: a node table, an edge table and what is missing."""

    nodes: pd.DataFrame
    edges: pd.DataFrame
    notes: tuple[str, ...] = ()  # why a kind of edge is missing

    def to_igraph(self) -> igraph.Graph:
        """The graph for igraph, directed, with all columns as attributes (``label`` = name)."""
        ends = self._positions(self.edges)
        vertices = self.nodes.rename(columns={"name": "label", "id": "name"}).to_dict("list")
        attributes = self.edges.drop(columns=["source", "target"]).to_dict("list")
        return igraph.Graph(len(self.nodes), ends, True, {}, vertices, attributes)

    def communities(self, seed: int = 0, resolution: float = 1.0) -> pd.Series:
        """Community of each node, 0 the largest, by Leiden (doi 10.1038/s41598-019-41695-z).

        Two nodes count once for each kind of evidence between them.
        """
        found = leidenalg.find_partition(
            self._skeleton(), leidenalg.RBConfigurationVertexPartition, n_iterations=-1,
            resolution_parameter=resolution, seed=seed,
        )
        return pd.Series(found.membership, self.nodes["id"].to_numpy(), name="community")

    def layout(self, seed: int = 0) -> pd.DataFrame:
        """Places of the nodes for drawing, by Fruchterman and Reingold: ``id``, ``x``, ``y``.

        Signals do not pull, because they join codes that are far apart. Coordinates lie between -1
        and 1; the same graph and seed give the same places.
        """
        links = self._skeleton(self.edges["kind"] != "code-talks-to-code")
        igraph.set_random_number_generator(random.Random(seed))
        try:
            places = links.layout_fruchterman_reingold(niter=2000)
        finally:
            igraph.set_random_number_generator(random)  # as igraph has it
        places = np.array(places.coords).reshape(-1, 2)
        places -= (places.max(axis=0) + places.min(axis=0)) / 2
        places /= max(np.abs(places).max(), 1e-9)
        return pd.DataFrame({"id": self.nodes["id"], "x": places[:, 0], "y": places[:, 1]})

    def neighbours(self, name: str) -> pd.DataFrame:
        """What a node is linked to, strongest evidence first.

        Args:
            name: id of the node (``gene:CD3D``), or its name where that is unique (``CD3D``).

        Returns:
            One row an edge: ``neighbour`` (node id), ``direction`` (to, from; empty: none), then
            the columns of the edge table but ``source``, ``target`` and ``directed``.

        Raises:
            InputError: no node, or more than one, has this name.
        """
        node = self._find(name)
        out, into = self.edges["source"] == node, self.edges["target"] == node
        edges = self.edges[out | into]
        table = edges.drop(columns=["source", "target", "directed"])
        table.insert(0, "neighbour", edges["target"].where(out, edges["source"]))
        direction = pd.Series(np.where(out[edges.index], "to", "from"), edges.index)
        table.insert(1, "direction", direction.where(edges["directed"], ""))
        return table.sort_values(["fdr", "effect"], ascending=[True, False], ignore_index=True)

    def strongest(self, per_code: int = 5, talks: int = 60) -> Graph:
        """The part of the graph that fits a picture.

        Args:
            per_code: genes kept for each code, those with the smallest p.
            talks: code-talks-to-code edges kept in all, those with the largest effect, at most
                three of each ligand-receptor pair.
        """
        edges = self.edges.sort_values(["p", "effect"], ascending=[True, False])
        marks = edges[edges["kind"] == "code-marks-gene"].groupby("source").head(per_code)
        signals = edges[edges["kind"] == "code-talks-to-code"].sort_values("effect")[::-1]
        signals = signals.groupby("name").head(3).head(talks)
        others = edges[edges["kind"].isin(["code-is-annotation", "code-near-code"])]
        edges = pd.concat([others, marks, signals]).sort_index().reset_index(drop=True)
        linked = self.nodes["id"].isin([*edges["source"], *edges["target"]])
        nodes = self.nodes[linked | (self.nodes["kind"] == "code")]
        return Graph(nodes.reset_index(drop=True), edges, self.notes)

    def write(self, directory: str | Path) -> list[Path]:
        """Write nodes and edges as Parquet and CSV and the graph as GraphML; the paths written."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        names = ["nodes.parquet", "edges.parquet", "nodes.csv", "edges.csv", "graph.graphml"]
        written = [directory / name for name in names]
        self.nodes.to_parquet(written[0], index=False)
        self.edges.to_parquet(written[1], index=False)
        self.nodes.to_csv(written[2], index=False)
        self.edges.to_csv(written[3], index=False)
        self.to_igraph().write_graphml(str(written[4]))
        return written

    def _find(self, name: str) -> str:
        ids = self.nodes["id"]
        found = ids[ids == name] if (ids == name).any() else ids[self.nodes["name"] == name]
        if len(found) == 1:
            return found.iloc[0]
        if len(found):
            raise InputError(f"{name!r} names several nodes: say {' or '.join(found)}")
        close = difflib.get_close_matches(name, [*self.nodes["name"], *ids], 3, 0.5)
        hint = f"; near to it: {', '.join(close)}" if close else ""
        raise InputError(f"the graph has no node {name!r}{hint}")

    def _positions(self, edges: pd.DataFrame) -> list[tuple[int, int]]:
        position = pd.Series(range(len(self.nodes)), self.nodes["id"])
        return list(zip(edges["source"].map(position), edges["target"].map(position), strict=True))

    def _skeleton(self, chosen: pd.Series | None = None) -> igraph.Graph:
        """Undirected graph with one edge for each kind of evidence between two nodes."""
        edges = self.edges if chosen is None else self.edges[chosen]
        ends = np.sort(edges[["source", "target"]].to_numpy(dtype=str), axis=1)
        pairs = pd.DataFrame(ends, columns=["source", "target"]).assign(kind=edges["kind"].array)
        pairs = pairs[pairs["source"] != pairs["target"]].drop_duplicates()
        return igraph.Graph(len(self.nodes), self._positions(pairs))


def read(directory: str | Path) -> Graph:
    """Read a graph that :meth:`Graph.write` wrote."""
    directory = Path(directory)
    if not (directory / "nodes.parquet").is_file() or not (directory / "edges.parquet").is_file():
        raise InputError(f"{directory} holds no graph: nodes.parquet and edges.parquet are needed")
    return Graph(*(pd.read_parquet(directory / f"{name}.parquet") for name in ("nodes", "edges")))


def build(
    codes: pd.DataFrame,
    markers: pd.DataFrame,
    *,
    annotations: pd.DataFrame | None = None,
    neighbours: pd.DataFrame | None = None,
    signals: pd.DataFrame | None = None,
    fdr: float = 0.05,
    markers_per_code: int = 25,
) -> Graph:
    """Join tables into the knowledge graph; only what is below the FDR enters.

    Args:
        codes: :func:`cellvq.codes.code_table`; where it tells stability, so do the nodes.
        markers: :func:`cellvq.codes.marker_table`; genes that are higher in the code enter.
        annotations: :func:`cellvq.codes.annotation_table`.
        neighbours: :func:`cellvq.codes.neighbour_table`.
        signals: :func:`communication` between codes.
        fdr: largest false discovery rate of an edge.
        markers_per_code: at most so many genes a code, those with the best rank.

    Example:
        >>> from cellvq import codes, simulate
        >>> cells = simulate.simulate_cells(cells=200, cell_types=2)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> cells.obsm["X_cellvq"] = cells.obsm["program_activity"]
        >>> markers = codes.marker_table(cells)
        >>> made = build(codes.code_table(cells, markers=markers), markers, markers_per_code=3)
        >>> made.edges["kind"].value_counts().to_dict()
        {'code-marks-gene': 6}
        >>> made.notes[-1]
        'code-talks-to-code: not tested'
    """
    kinds = {
        "code-marks-gene": _marks(markers, markers_per_code),
        "code-is-annotation": _annotates(annotations),
        "code-near-code": _near(neighbours),
        "code-talks-to-code": _talks(signals),
    }
    found = {kind: e[(e["fdr"] < fdr) & (e["effect"] > 0)] for kind, e in kinds.items()}
    edges = pd.concat(found.values(), ignore_index=True)
    notes = [_note(kind, found[kind], kinds[kind], fdr) for kind in kinds]
    if signals is not None and "reason" in signals.attrs:
        notes.append(f"code-talks-to-code: {signals.attrs['reason']}")
    return Graph(_nodes(codes, annotations, edges), edges, tuple(filter(None, notes)))


def _edges(kind: str, source, target, **columns) -> pd.DataFrame:
    table = pd.DataFrame({"source": source, "target": target, "name": "", "directed": False})
    return table.assign(kind=kind, **columns).astype(EDGE_COLUMNS)[list(EDGE_COLUMNS)]


def _empty(columns: dict[str, type]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def _marks(markers: pd.DataFrame, per_code: int) -> pd.DataFrame:
    best = markers[markers["score"] > 0].sort_values("rank").groupby("code").head(per_code)
    return _edges(
        "code-marks-gene", "code:" + best["code"], "gene:" + best["gene"],
        effect=best["log2_fold_change"], n_cells=best["code_cells"], p=best["p"], fdr=best["fdr"],
        null="ranks exchangeable between the code and all other cells",
        evidence=f"rank-sum test, scipy {version('scipy')}",
    )


def _annotates(pairs: pd.DataFrame | None) -> pd.DataFrame:
    if pairs is None:
        return _empty(EDGE_COLUMNS)
    return _edges(
        "code-is-annotation", "code:" + pairs["code"], "annotation:" + pairs["label"],
        effect=pairs["log2_enrichment"], n_cells=pairs["cells"], p=pairs["p"], fdr=pairs["fdr"],
        null=evaluate.PERMUTATION_NULL, evidence=f"scipy {version('scipy')} hypergeom",
    )


def _near(pairs: pd.DataFrame | None) -> pd.DataFrame:
    if pairs is None:
        return _empty(EDGE_COLUMNS)
    return _edges(
        "code-near-code", "code:" + pairs["code"], "code:" + pairs["neighbour"],
        effect=pairs["log2_enrichment"], n_cells=pairs["n_cells"], p=pairs["p"], fdr=pairs["fdr"],
        null="second choice of each cell drawn by how common it is",
        evidence=f"second choices, numpy {version('numpy')} multinomial",
    )


def _talks(pairs: pd.DataFrame | None) -> pd.DataFrame:
    if pairs is None:
        return _empty(EDGE_COLUMNS)
    return _edges(
        "code-talks-to-code", "code:" + pairs["source"], "code:" + pairs["target"],
        name=pairs["ligand"] + " → " + pairs["receptor"], directed=True, effect=pairs["effect"],
        n_cells=pairs["n_cells"], p=pairs["p"], fdr=pairs["fdr"],
        null="codes shuffled over cells, sizes kept", evidence=pairs["evidence"],
    )


def _nodes(codes, annotations, edges) -> pd.DataFrame:
    """Every code, every annotation that was tested, and the genes that edges name."""
    about = [
        "; ".join(filter(None, (getattr(row, "annotation", ""), row.markers,
                                getattr(row, "stable", ""))))
        for row in codes.itertuples()
    ]
    parts = [("code", codes["code"], codes["cells"], about)]
    if annotations is not None:
        labels = annotations.drop_duplicates("label")
        parts.append(("annotation", labels["label"], labels["label_cells"], ""))
    names = edges.loc[edges["kind"] == "code-marks-gene", "target"].drop_duplicates()
    parts.append(("gene", names.str.removeprefix("gene:"), 0, ""))
    return pd.concat([
        pd.DataFrame({"id": f"{kind}:" + name, "kind": kind, "name": name, "cells": cells,
                      "detail": detail})
        for kind, name, cells, detail in parts
    ], ignore_index=True).astype(NODE_COLUMNS)


def _note(kind: str, found: pd.DataFrame, tested: pd.DataFrame, fdr: float) -> str:
    if len(found):
        return ""
    return f"{kind}: " + (f"none of {len(tested)} below FDR {fdr}" if len(tested) else "not tested")
