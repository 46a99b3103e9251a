"""Hides known links from a graph, with all that came of them, so that they can be looked for.

What is left is the graph that would have been built had nobody known the links. Whether rankings
find them again is asked in :mod:`cellvq.hiddenscore`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellvq import InputError
from cellvq.schema import EDGES

KINDS = ("tf-regulates-gene", "gene-in-pair")
"""Kinds of links that can be hidden."""
SWAPS = 20
"""Swaps for each hidden link, before a random network is taken."""


@dataclass(frozen=True)
class Task:
    """Pairs of genes to rank, and which of them were hidden."""

    starts: np.ndarray
    """Genes that a link may start with, node ids."""
    ends: np.ndarray
    """Genes that it may end with, node ids."""
    hidden: np.ndarray
    """Row and column of each hidden link, [hidden, 2]."""
    open: np.ndarray
    """Pairs that may be ranked, none known and left, no gene with itself, bool [starts, ends]."""


def known_pairs(edges: pd.DataFrame, kind: str = "tf-regulates-gene") -> pd.DataFrame:
    """List the pairs of genes that priors of a graph link.

    Args:
        edges: edge table.
        kind: ``tf-regulates-gene``, or ``gene-in-pair`` for a ligand and its receptor.

    Returns:
        One row a pair: ``source``, ``target`` (node ids), and of a ligand and receptor ``pair``.

    Raises:
        InputError: the kind cannot be hidden, or the graph holds none.
    """
    if kind not in KINDS:
        what = "is no kind of edge" if kind not in EDGES else "cannot be hidden"
        raise InputError(f"{kind!r} {what}; use {' or '.join(KINDS)}")
    prior = edges[(edges["kind"] == kind) & (edges["status"] == "prior")]
    if kind == "gene-in-pair":
        ends = [prior.loc[prior["name"] == word, ["source", "target"]].set_axis(
            [end, "pair"], axis=1) for word, end in (("ligand", "source"), ("receptor", "target"))]
        prior = ends[0].merge(ends[1], on="pair")[["source", "target", "pair"]]
    else:
        prior = prior[["source", "target"]]
    prior = prior[prior["source"] != prior["target"]].drop_duplicates(ignore_index=True)
    if prior.empty:
        raise InputError(f"the graph holds no prior of the kind {kind}, so none can be hidden; "
                         "build it with the table of others (see its notes)")
    return prior


def hide(
    nodes: pd.DataFrame, edges: pd.DataFrame, pairs: pd.DataFrame, kind: str = "tf-regulates-gene",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take links out of a graph as if nobody had known them.

    A regulation is taken out in both directions. With a ligand and its receptor go the signals that
    were tested because the pair is known, and genes that nothing else brought into the graph, with
    all priors of theirs. What was found in the cells without the prior stays.

    Args:
        nodes: node table.
        edges: edge table.
        pairs: rows of :func:`known_pairs`.
        kind: their kind.

    Returns:
        Node table and edge table of the smaller graph.
    """
    wanted = {frozenset(pair) for pair in zip(pairs["source"], pairs["target"], strict=True)}
    if kind == "gene-in-pair":
        every = known_pairs(edges, kind)
        linked = [frozenset(pair) in wanted
                  for pair in zip(every["source"], every["target"], strict=True)]
        gone = set(every.loc[linked, "pair"])
        signal = "pair:" + edges["name"].str.rpartition(": ")[2]
        talks = edges["kind"].isin(["code-talks-to-code", "talk-changes-with-condition"])
        drop = edges["target"].isin(gone) | (talks & signal.isin(gone))
    else:
        links = (edges["kind"] == kind) & (edges["status"] == "prior")
        drop = links.copy()
        drop[links] = [frozenset(pair) in wanted for pair in
                       zip(edges.loc[links, "source"], edges.loc[links, "target"], strict=True)]
    edges = edges[~drop]
    brought = edges[(edges["status"] != "prior") | (edges["kind"] == "gene-in-pair")]
    here = {*brought["source"], *brought["target"]}
    lost = {name for name in nodes.loc[nodes["kind"] == "gene", "id"] if name not in here}
    edges = edges[~edges["source"].isin(lost) & ~edges["target"].isin(lost)]
    linked = {*edges["source"], *edges["target"]}
    kept = ~nodes["kind"].isin(["gene", "pair", "set", "term"]) | nodes["id"].isin(linked)
    return nodes[kept].reset_index(drop=True), edges.reset_index(drop=True)


def shuffle_cells(edges: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Shuffle what was found in the cells: each gene and each code keeps its number of edges.

    Args:
        edges: edge table.
        seed: seed of the swaps.
    """
    rng, edges = np.random.default_rng(seed), edges.copy()
    for kind in edges.loc[edges["status"] == "finding", "kind"].unique():
        rows = edges.index[(edges["kind"] == kind) & (edges["status"] == "finding")]
        genes = edges.loc[rows, ["source", "target"]].map(lambda name: name.startswith("gene:"))
        if not genes.any(axis=None):
            continue
        ends = [pd.factorize(edges.loc[rows, end]) for end in ("source", "target")]
        pairs = np.stack([ends[0][0], ends[1][0]], axis=1)
        allowed = np.ones((len(ends[0][1]), len(ends[1][1])), bool)
        swapped = swap(pairs, allowed, rng)
        edges.loc[rows, "target"] = ends[1][1].to_numpy()[swapped[:, 1]]
    return edges


def swap(pairs: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Swap the ends of random pairs, so that each row and column keeps its number of them.

    Args:
        pairs: row and column of each, [pairs, 2].
        allowed: where a pair may stand, [rows, columns].
        rng: a generator.

    Example:
        >>> pairs = np.array([[0, 0], [1, 1], [2, 2]])
        >>> made = swap(pairs, np.ones((3, 3), bool), np.random.default_rng(1))
        >>> sorted(made[:, 0].tolist()), sorted(made[:, 1].tolist())
        ([0, 1, 2], [0, 1, 2])
    """
    pairs = pairs.copy()
    there = {(row, column) for row, column in pairs.tolist()}
    one, other = rng.integers(len(pairs), size=(2, SWAPS * len(pairs)))
    for first, second in zip(one.tolist(), other.tolist(), strict=True):
        (a, b), (c, d) = pairs[first].tolist(), pairs[second].tolist()
        new = (a, d), (c, b)
        if a == c or b == d or new[0] in there or new[1] in there:
            continue
        if allowed[new[0]] and allowed[new[1]]:
            there -= {(a, b), (c, d)}
            there |= set(new)
            pairs[first, 1], pairs[second, 1] = d, b
    return pairs


def make_task(edges: pd.DataFrame, hidden: pd.DataFrame, kind: str) -> Task:
    """Say what is ranked: every pair of a possible start and end that is not known to be linked.

    Args:
        edges: edge table of the whole graph.
        hidden: rows of :func:`known_pairs` that were hidden.
        kind: their kind.
    """
    known = known_pairs(edges, kind)
    starts = np.array(sorted(set(known["source"])), object)
    ends = edges.loc[edges["kind"] != "gene-in-pair", ["source", "target"]].to_numpy().ravel()
    ends = known["target"] if kind == "gene-in-pair" else pd.Series(
        [name for name in pd.unique(ends) if name.startswith("gene:")])
    ends = np.array(sorted({*ends, *known["target"]}), object)
    rows, columns = pd.Index(starts), pd.Index(ends)
    opened = starts[:, None] != ends[None]
    opened[rows.get_indexer(known["source"]), columns.get_indexer(known["target"])] = False
    at = np.stack([rows.get_indexer(hidden["source"]), columns.get_indexer(hidden["target"])], 1)
    at = np.unique(at, axis=0)
    opened[at[:, 0], at[:, 1]] = True
    return Task(starts, ends, at, opened)
