"""CellVQ-Graph: codes, genes, annotations and the signals between codes, joined with evidence.

A :class:`Graph` is a node table and an edge table (:mod:`cellvq.schema` says what they may hold)
with questions that can be asked of them. It knows no model: :mod:`cellvq.graphbuild` makes it of
tables, and :mod:`cellvq.graphmaking` makes the tables of encoded cells.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import igraph
import leidenalg
import numpy as np
import pandas as pd

from cellvq import InputError, graphanswers, graphfiles, graphpaths, hypotheses, schema
from cellvq.graphanswers import Answer

TALKS_PER_SIGNAL = 3
"""Edges of one ligand-receptor pair that a picture shows, at the most."""


@dataclass(frozen=True)
class Graph:
    """A knowledge graph of cell states: a node table, an edge table and what is missing."""

    nodes: pd.DataFrame
    edges: pd.DataFrame
    notes: tuple[str, ...] = ()
    """Why a kind of edge is missing, a sentence each."""

    def __str__(self) -> str:
        kinds = self.edges["kind"].value_counts()
        parts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        return f"{len(self.nodes):,} nodes and {len(self.edges):,} edges ({parts or 'none'})"

    def explain(self, code: str) -> Answer:
        """Tell what is known of a code; see :func:`cellvq.graphanswers.explain`."""
        return graphanswers.explain(self.nodes, self.edges, code)

    def compare(self, first: str, second: str) -> Answer:
        """Tell what two codes share and not; see :func:`cellvq.graphanswers.compare`."""
        return graphanswers.compare(self.nodes, self.edges, first, second)

    def conditions(self, contrast: str | None = None) -> Answer:
        """Tell what a condition changes; see :func:`cellvq.graphanswers.conditions`."""
        return graphanswers.conditions(self.nodes, self.edges, contrast)

    def paths(self, source: str, target: str, *, within: str | None = None,
              count: int = 3) -> Answer:
        """Tell how two nodes are linked; see :func:`cellvq.graphanswers.linked`."""
        return graphanswers.linked(self.nodes, self.edges, source, target, within=within,
                                   count=count)

    def hypotheses(self, kind: str = "tf-regulates-gene", *, count: int = 20,
                   least: int = 2) -> Answer:
        """Rank links that no prior holds; see :func:`cellvq.hypotheses.rank`."""
        return hypotheses.rank(self.nodes, self.edges, kind, count=count, least=least)

    def to_igraph(self) -> igraph.Graph:
        """The graph for igraph, directed, with all columns as attributes (``label`` = name)."""
        return graphpaths.to_igraph(self.nodes, self.edges)

    def communities(self, seed: int = 0, resolution: float = 1.0) -> pd.Series:
        """Community of each node, 0 the largest, by Leiden (doi 10.1038/s41598-019-41695-z).

        Two nodes count once for each kind of evidence between them.
        """
        found = leidenalg.find_partition(
            self._skeleton(), leidenalg.RBConfigurationVertexPartition, n_iterations=-1,
            resolution_parameter=resolution, seed=seed,
        )
        return pd.Series(found.membership, self.nodes["id"].to_numpy(), name="community")

    def centrality(self) -> pd.DataFrame:
        """Which nodes hold the graph together: links and PageRank, most central first.

        Returns:
            One row a node: ``id``, ``kind``, ``name``, ``links`` (int, kinds of evidence that end
            there) and ``pagerank`` (doi 10.1016/S0169-7552(98)00110-X).
        """
        made = self._skeleton()
        table = self.nodes[["id", "kind", "name"]].assign(
            links=made.degree(), pagerank=made.pagerank(directed=False))
        return table.sort_values(["pagerank", "id"], ascending=[False, True], ignore_index=True)

    def layout(self, seed: int = 0) -> pd.DataFrame:
        """Places of the nodes for drawing, by Fruchterman and Reingold: ``id``, ``x``, ``y``.

        Signals do not pull, because they join codes that are far apart. Coordinates lie between -1
        and 1; the same graph and seed give the same places.
        """
        pulls = ~self.edges["kind"].isin(["code-talks-to-code", "talk-changes-with-condition"])
        links = graphpaths.skeleton(self.nodes, self.edges[pulls])
        igraph.set_random_number_generator(random.Random(seed))
        steps = 2000 if len(self.nodes) < 1000 else 300
        try:
            places = links.layout_fruchterman_reingold(niter=steps)
        finally:
            igraph.set_random_number_generator(random)  # as igraph has it
        places = np.array(places.coords).reshape(-1, 2)
        places -= (places.max(axis=0) + places.min(axis=0)) / 2
        places /= max(np.abs(places).max(), 1e-9)
        return pd.DataFrame({"id": self.nodes["id"], "x": places[:, 0], "y": places[:, 1]})

    def neighbours(self, name: str, kind: str | None = None) -> pd.DataFrame:
        """What a node is linked to, strongest evidence first.

        Args:
            name: id of the node (``gene:CD3D``), or its name where that is unique (``CD3D``).
            kind: edges of this kind alone.

        Returns:
            One row an edge: ``neighbour`` (node id), ``direction`` (to, from; empty: none), then
            the columns of the edge table but ``source``, ``target`` and ``directed``.

        Raises:
            InputError: no node, or more than one, has this name, or the kind is not known.
        """
        node = graphpaths.find_node(self.nodes, name)
        edges = self.edges
        if kind is not None:
            if kind not in schema.EDGES:
                raise InputError(f"{kind!r} is no kind of edge; there are "
                                 f"{', '.join(schema.EDGES)}")
            edges = edges[edges["kind"] == kind]
        out, into = edges["source"] == node, edges["target"] == node
        found = edges[out | into]
        table = found.drop(columns=["source", "target", "directed"])
        table.insert(0, "neighbour", found["target"].where(out, found["source"]))
        direction = pd.Series(np.where(out[found.index], "to", "from"), found.index, dtype=object)
        table.insert(1, "direction", direction.where(found["directed"], ""))
        return table.sort_values(["fdr", "effect"], ascending=[True, False], ignore_index=True)

    def around(self, names: list[str], steps: int = 1) -> Graph:
        """The part of the graph within some steps of nodes, to look at or to export.

        Args:
            names: ids or names of nodes.
            steps: links between a node of the part and the nearest of these, at the most.
        """
        ids = [graphpaths.find_node(self.nodes, name) for name in names]
        made = self._skeleton()
        place = pd.Index(self.nodes["id"])
        near = made.neighborhood(place.get_indexer(ids).tolist(), order=steps)
        here = set(place[np.unique(np.concatenate(near))])
        kept = self.edges["source"].isin(here) & self.edges["target"].isin(here)
        return Graph(self.nodes[self.nodes["id"].isin(here)].reset_index(drop=True),
                     self.edges[kept].reset_index(drop=True), self.notes)

    def strongest(self, per_code: int = 5, talks: int = 60) -> Graph:
        """The part of the graph that fits a picture.

        Args:
            per_code: genes and sets kept for each code and kind of edge, those with the smallest p.
            talks: signals kept in all, those with the largest effect, at most three of each
                ligand-receptor pair.
        """
        edges = self.edges.sort_values(["p", "effect"], ascending=[True, False])
        kind = edges["kind"]
        code = edges["source"].where(edges["source"].str.startswith("code:"), edges["target"])
        many = kind.isin(["code-marks-gene", "gene-drives-code", "code-shows-set",
                          "gene-changes-in-code"])
        marks = edges[many].groupby([kind[many], code[many]]).head(per_code)
        talking = kind.isin(["code-talks-to-code", "talk-changes-with-condition"])
        signals = edges[talking].sort_values("effect", ascending=False)
        signals = signals.groupby("name").head(TALKS_PER_SIGNAL).head(talks)
        own = kind.isin(["code-is-annotation", "code-near-code", "code-parent-code",
                         "code-changes-with-condition", "annotation-is-term"])
        chosen = pd.concat([edges[own], marks, signals])
        here = set(chosen["source"]) | set(chosen["target"])
        between = kind.isin(["tf-regulates-gene", "gene-in-set", "gene-in-pair"])
        between &= edges["source"].isin(here) & edges["target"].isin(here)
        edges = pd.concat([chosen, edges[between]]).sort_index().reset_index(drop=True)
        linked = self.nodes["id"].isin([*edges["source"], *edges["target"]])
        nodes = self.nodes[linked | (self.nodes["kind"] == "code")]
        return Graph(nodes.reset_index(drop=True), edges, self.notes)

    def write(self, folder: str | Path, *, overwrite: bool = False,
              page: str | None = None) -> Path:
        """Write the graph as a folder; see :func:`cellvq.graphfiles.write`."""
        return graphfiles.write(self.nodes, self.edges, self.notes, folder, overwrite=overwrite,
                                page=page)

    def _skeleton(self) -> igraph.Graph:
        """Undirected graph with one edge for each kind of evidence between two nodes."""
        return graphpaths.skeleton(self.nodes, self.edges)


def read(path: str | Path) -> Graph:
    """Read a graph from its folder, a GraphML file or a Cytoscape JSON file.

    Raises:
        InputError: it holds no graph.
    """
    return Graph(*graphfiles.read(path))
