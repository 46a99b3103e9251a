"""What a knowledge graph may hold: kinds of nodes and edges, the columns of their tables, checks.

Every edge is one of three things, and its column ``status`` says which. A *finding* was tested in
these cells, and is below the false discovery rate that the graph was built with. A *prior* was
known before, from a table of others. *Structure* is how the codes were made.

Node table:

=========== ===== ===============================================================================
id          str   ``kind:name``, so that a gene and a cell type of one name stay apart; of an
                  annotation ``annotation:column=value``
kind        str   one of ``NODES``
name        str   what people call it
cells       int   cells with the code or the annotation, 0 for what is no set of cells
donors      int   donors of these cells, 0 where donors are not known
detail      str   a line for people
=========== ===== ===============================================================================

Edge table:

=========== ===== ===============================================================================
source      str   node id
target      str   node id
kind        str   one of ``EDGES``
name        str   what tells edges of one kind between two nodes apart, such as ligand → receptor
directed    bool  whether the edge says something of its direction
status      str   finding, prior or structure
effect      float see the kind; NaN where there is none
n_cells     int   cells that the numbers come from; 0 of a prior
n_donors    int   donors that the numbers come from; 0 where cells were the unit, or of a prior
p           float p-value; NaN of a prior or structure
fdr         float Benjamini-Hochberg over all tests of this kind, also those that did not enter
null        str   what the p-value compares with
evidence    str   software or table, and its version
stability   float share of resamplings or donors that agree, 0 to 1; NaN where not measured
=========== ===== ===============================================================================
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellvq import InputError

NODE_COLUMNS = {
    "id": str, "kind": str, "name": str, "cells": int, "donors": int, "detail": str,
}
EDGE_COLUMNS = {
    "source": str, "target": str, "kind": str, "name": str, "directed": bool, "status": str,
    "effect": float, "n_cells": int, "n_donors": int, "p": float, "fdr": float, "null": str,
    "evidence": str, "stability": float,
}
STATUS = ("finding", "prior", "structure")


@dataclass(frozen=True)
class NodeKind:
    """A kind of node."""

    label: str
    """What people call one."""
    color: int
    """Number in the palette of `style`."""
    shape: str
    """Form in which it is drawn, a circle, square, diamond, triangle or hexagon."""


@dataclass(frozen=True)
class EdgeKind:
    """A kind of edge."""

    source: str
    """Kind of node that it starts from."""
    target: str
    """Kind of node that it ends at."""
    says: str
    """Words between the names of its ends, a sentence with them."""
    effect: str
    """What its effect is, with the unit."""
    directed: bool = False


NODES = {
    "code": NodeKind("cell code", 0, "circle"),
    "gene": NodeKind("gene", 11, "square"),
    "annotation": NodeKind("annotation", 1, "diamond"),
    "set": NodeKind("gene set", 2, "hexagon"),
    "pair": NodeKind("ligand-receptor pair", 3, "triangle"),
    "term": NodeKind("Cell Ontology term", 4, "diamond"),
}
"""Kinds of nodes; a transcription factor is a gene, and edges show what it regulates."""
EDGES = {
    "code-parent-code": EdgeKind("code", "code", "is part of", "none", True),
    "code-near-code": EdgeKind("code", "code", "borders on",
                               "log2 of observed to expected second choices"),
    "code-marks-gene": EdgeKind("code", "gene", "is marked by", "log2 fold change"),
    "gene-drives-code": EdgeKind("gene", "code", "makes cells take code",
                                 "share of the decision that hangs on the gene", True),
    "code-is-annotation": EdgeKind("code", "annotation", "is",
                                   "log2 of observed to expected cells"),
    "annotation-is-term": EdgeKind("annotation", "term", "is called", "none"),
    "term-is-term": EdgeKind("term", "term", "is a kind of", "none", True),
    "code-shows-set": EdgeKind("code", "set", "shows", "mean score above all genes"),
    "gene-in-set": EdgeKind("gene", "set", "belongs to", "none"),
    "gene-in-pair": EdgeKind("gene", "pair", "takes part in", "none"),
    "code-talks-to-code": EdgeKind("code", "code", "may talk to",
                                   "log2 of observed to expected expression of the pair", True),
    "tf-regulates-gene": EdgeKind("gene", "gene", "regulates",
                                  "sign of the regulation, or size in these cells", True),
    "code-changes-with-condition": EdgeKind("code", "annotation", "changes in number with",
                                            "log2 ratio of its share of a donor's cells", True),
    "gene-changes-in-code": EdgeKind("gene", "code", "changes with a condition in",
                                     "log2 fold change between conditions", True),
    "talk-changes-with-condition": EdgeKind("code", "code", "talks otherwise under a condition to",
                                            "difference of log2 expression of the pair", True),
}
"""Kinds of edges. An edge that joins a gene to a gene is named after the transcription factor."""
CHANGES = ("code-changes-with-condition", "gene-changes-in-code", "talk-changes-with-condition")
"""Kinds whose name begins with the contrast that they speak of, such as ``stim / ctrl``."""


def edge_table(kind: str, source, target, *, status: str = "finding", **columns) -> pd.DataFrame:
    """Put edges of one kind into the form of the edge table; what is not named is empty.

    Args:
        kind: one of ``EDGES``.
        source: node ids, [edges].
        target: node ids, [edges].
        status: what the edges are, all of them.
        columns: other columns of the edge table, values or [edges].

    Example:
        >>> made = edge_table("gene-in-set", ["gene:STAT1"], ["set:IFN"], status="prior",
        ...                   evidence="Hallmark 7.0")
        >>> made[["kind", "directed", "status", "effect", "n_cells"]].values.tolist()
        [['gene-in-set', False, 'prior', nan, 0]]
    """
    blank = {"name": "", "effect": np.nan, "n_cells": 0, "n_donors": 0, "p": np.nan,
             "fdr": np.nan, "null": "", "evidence": "", "stability": np.nan}
    table = pd.DataFrame({"source": np.asarray(source, object),
                          "target": np.asarray(target, object)})
    given = {name: np.asarray(value) if np.ndim(value) else value
             for name, value in columns.items()}
    table = table.assign(kind=kind, directed=EDGES[kind].directed, status=status)
    return table.assign(**blank | given).astype(EDGE_COLUMNS)[list(EDGE_COLUMNS)]


def node_table(kind: str, names, **columns) -> pd.DataFrame:
    """Put nodes of one kind into the form of the node table.

    Args:
        kind: one of ``NODES``.
        names: their names, [nodes].
        columns: other columns of the node table, values or [nodes].

    Example:
        >>> node_table("gene", ["CD3D"])["id"].tolist()
        ['gene:CD3D']
    """
    names = pd.Series(np.asarray(names, object), dtype=object).astype(str)
    given = {name: np.asarray(value) if np.ndim(value) else value
             for name, value in columns.items()}
    table = pd.DataFrame({"id": f"{kind}:" + names, "kind": kind, "name": names})
    if "id" in given:
        table["id"] = given.pop("id")
    return table.assign(**{"cells": 0, "donors": 0, "detail": ""} | given).astype(
        NODE_COLUMNS)[list(NODE_COLUMNS)]


def empty(columns: dict[str, type]) -> pd.DataFrame:
    """Make a table without rows, such as of ``EDGE_COLUMNS``."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def check(nodes: pd.DataFrame, edges: pd.DataFrame, where: str = "") -> None:
    """Refuse tables that are no knowledge graph, for instance after they were edited by hand.

    Args:
        nodes: the node table.
        edges: the edge table.
        where: name of the file or folder, for the message.

    Raises:
        InputError: a column is absent, an id occurs twice, a kind or a status is not known, an
            edge ends at no node or at one of another kind, or a number cannot be.
    """
    start = f"{where}: " if where else ""
    for word, table, columns in (("node", nodes, NODE_COLUMNS), ("edge", edges, EDGE_COLUMNS)):
        if missing := [name for name in columns if name not in table]:
            raise InputError(f"{start}the {word} table has no column {', '.join(missing)}; "
                             "build the graph anew, or put it back")
        known = NODES if word == "node" else EDGES
        _known(table["kind"], known, f"{start}kind of {word}")
    _known(edges["status"], STATUS, f"{start}status of edge")
    if (twice := nodes["id"].duplicated()).any():
        raise InputError(f"{start}two nodes have the id {nodes['id'][twice].iloc[0]!r}")
    kinds = nodes.set_index("id")["kind"]
    for end in ("source", "target"):
        found = edges[end].map(kinds)
        if found.isna().any():
            odd = edges[end][found.isna()].iloc[0]
            raise InputError(f"{start}an edge names the {end} {odd!r}, which is no node")
        wanted = edges["kind"].map({name: getattr(kind, end) for name, kind in EDGES.items()})
        if (wrong := found != wanted).any():
            row = edges[wrong].iloc[0]
            raise InputError(f"{start}{row['kind']} has the {end} {row[end]!r}; that must be a "
                             f"{wanted[wrong].iloc[0]}")
    tested = edges["status"] == "finding"
    for column in ("p", "fdr"):
        if not edges.loc[tested, column].between(0, 1).all():
            raise InputError(f"{start}a finding has no {column} between 0 and 1; a link without "
                             "a test has the status prior")


def _known(values: pd.Series, known, what: str) -> None:
    odd = values[~values.isin(list(known))]
    if len(odd):
        near = difflib.get_close_matches(str(odd.iloc[0]), list(known), 1, 0.5)
        hint = f"do you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"{what} {str(odd.iloc[0])!r} is not known; {hint}")
