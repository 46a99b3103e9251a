"""A knowledge graph on disk: Parquet, GraphML, Cytoscape JSON and CSV for Neo4j, all re-readable.

``nodes.parquet`` and ``edges.parquet`` are the graph; the other files say the same for other
programs. In CSV files, text that a spreadsheet would run as a formula is led by an apostrophe.
Neo4j reads them with ``neo4j-admin database import full --multiline-fields=true
--nodes=neo4j/nodes.csv --relationships=neo4j/relationships.csv``; texts are fields there and never
become part of a Cypher query.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path

import igraph
import numpy as np
import pandas as pd

from cellvq import InputError, folders, schema
from cellvq.graphpaths import to_igraph
from cellvq.schema import EDGE_COLUMNS, NODE_COLUMNS
from cellvq.tablefiles import for_spreadsheets, from_spreadsheets

NEEDED = {"nodes.parquet", "edges.parquet"}
FILES = NEEDED | {"README.md", "about.json", "nodes.csv", "edges.csv", "graph.graphml",
                  "graph.cyjs", "graph.html", "neo4j"}
"""All files and folders of a graph on disk."""
NEO4J = {str: "string", int: "long", float: "double", bool: "boolean"}
READERS = (".graphml", ".cyjs")
"""Endings of single files that :func:`read` reads, beside the folder of a graph."""


def write(
    nodes: pd.DataFrame, edges: pd.DataFrame, notes: tuple[str, ...], folder: str | Path, *,
    overwrite: bool = False, page: str | None = None,
) -> Path:
    """Write a graph as a folder, which appears whole or not at all.

    Args:
        nodes: node table.
        edges: edge table.
        notes: what is missing and why.
        folder: the folder.
        overwrite: replace a graph that is there.
        page: HTML of the explorer, to lie beside the tables as ``graph.html``.

    Raises:
        InputError: the tables are no graph, the place is taken, or it cannot be written.
    """
    schema.check(nodes, edges)
    check_free(folder, overwrite)

    def fill(new: Path) -> None:
        nodes.to_parquet(new / "nodes.parquet", index=False)
        edges.to_parquet(new / "edges.parquet", index=False)
        for_spreadsheets(nodes).to_csv(new / "nodes.csv", index=False)
        for_spreadsheets(edges).to_csv(new / "edges.csv", index=False)
        to_igraph(nodes, edges).write_graphml(str(new / "graph.graphml"))
        (new / "graph.cyjs").write_text(json.dumps(cytoscape(nodes, edges), allow_nan=False),
                                        encoding="utf-8")
        (new / "neo4j").mkdir()
        neo4j_nodes(nodes).to_csv(new / "neo4j/nodes.csv", index=False)
        neo4j_edges(edges).to_csv(new / "neo4j/relationships.csv", index=False)
        about = {"made_by": f"cellvq {version('cellvq')}", "notes": list(notes)}
        (new / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        (new / "README.md").write_text(_readme(nodes, edges, notes), encoding="utf-8")
        if page is not None:
            (new / "graph.html").write_text(page, encoding="utf-8")

    return folders.write_whole(folder, fill)


def check_free(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse a place that holds something else than a graph that may be replaced."""
    folders.check_free(folder, "a graph", NEEDED, FILES, overwrite)


def read(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """Read a graph from its folder, a GraphML file or a Cytoscape JSON file.

    Returns:
        The node table, the edge table and the notes.

    Raises:
        InputError: it holds no graph, or one that was edited into something else.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix == ".graphml":
            found = _from_graphml(path)
        elif path.suffix == ".cyjs":
            found = _from_cytoscape(path)
        else:
            found = _from_folder(path)
    except InputError:
        raise
    except Exception as error:  # of whatever reader, on a file that was cut short
        raise InputError(f"{path}: holds no graph that can be read ({type(error).__name__}); "
                         "write it anew") from error
    nodes, edges, notes = found
    schema.check(nodes, edges, str(path))
    return (nodes[list(NODE_COLUMNS)].astype(NODE_COLUMNS),
            edges[list(EDGE_COLUMNS)].astype(EDGE_COLUMNS), notes)


def cytoscape(nodes: pd.DataFrame, edges: pd.DataFrame) -> dict:
    """Give the graph as Cytoscape's JSON; a number that is not known is null."""
    def rows(table: pd.DataFrame) -> list[dict]:
        return [{name: None if isinstance(value, float) and not math.isfinite(value) else value
                 for name, value in row.items()} for row in table.to_dict("records")]

    links = edges.assign(id=[f"edge:{number}" for number in range(len(edges))])
    return {
        "format_version": "1.0", "generated_by": f"cellvq {version('cellvq')}",
        "data": {"name": "CellVQ-Graph"},
        "elements": {"nodes": [{"data": row} for row in rows(nodes)],
                     "edges": [{"data": row} for row in rows(links)]},
    }


def neo4j_nodes(nodes: pd.DataFrame) -> pd.DataFrame:
    """Give the node table with the header that Neo4j's import reads."""
    table = for_spreadsheets(nodes)
    names = {name: f"{name}:{NEO4J[kind]}" for name, kind in NODE_COLUMNS.items()}
    table = table.rename(columns=names | {"id": "id:ID", "kind": ":LABEL"})
    return table.assign(**{":LABEL": nodes["kind"].str.capitalize().to_numpy()})


def neo4j_edges(edges: pd.DataFrame) -> pd.DataFrame:
    """Give the edge table with the header that Neo4j's import reads; unknown numbers are empty."""
    table = for_spreadsheets(edges)
    names = {name: f"{name}:{NEO4J[kind]}" for name, kind in EDGE_COLUMNS.items()}
    table = table.rename(columns=names | {"source": ":START_ID", "target": ":END_ID",
                                          "kind": ":TYPE"})
    types = edges["kind"].str.upper().str.replace("-", "_", regex=False)
    return table.assign(**{":TYPE": types.to_numpy(),
                           "directed:boolean": np.where(edges["directed"], "true", "false")})


def _from_folder(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    if not path.is_dir() or not NEEDED & {file.name for file in path.iterdir()}:
        csv = path.is_dir() and (path / "edges.csv").is_file()
        if not csv:
            raise InputError(f"{path} holds no graph: nodes.parquet and edges.parquet are needed")
        tables = [from_spreadsheets(pd.read_csv(path / f"{name}.csv", keep_default_na=False,
                                                na_values=[""], dtype=_texts(columns)))
                  for name, columns in (("nodes", NODE_COLUMNS), ("edges", EDGE_COLUMNS))]
        nodes, edges = (table.fillna(dict.fromkeys(_texts(columns), ""))
                        for table, columns in zip(tables, (NODE_COLUMNS, EDGE_COLUMNS),
                                                  strict=True))
    else:
        for name in sorted(NEEDED):
            if not (path / name).is_file():
                raise InputError(f"{path} holds no graph: nodes.parquet and edges.parquet are "
                                 "needed")
        nodes, edges = (pd.read_parquet(path / f"{name}.parquet") for name in ("nodes", "edges"))
    about = path / "about.json"
    notes = json.loads(about.read_text(encoding="utf-8"))["notes"] if about.is_file() else []
    return nodes, edges, tuple(map(str, notes))


def _from_graphml(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    made = igraph.Graph.Read_GraphML(str(path))
    nodes = pd.DataFrame({name: made.vs[name] for name in made.vs.attributes() if name != "id"})
    nodes = nodes.rename(columns={"name": "id", "label": "name"})
    edges = pd.DataFrame({name: made.es[name] for name in made.es.attributes()})
    ends = np.array(made.get_edgelist(), dtype=int).reshape(-1, 2)
    ids = nodes["id"].to_numpy(object)
    edges = edges.assign(source=ids[ends[:, 0]], target=ids[ends[:, 1]])
    return nodes, edges, ()


def _from_cytoscape(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    found = json.loads(path.read_text(encoding="utf-8"))["elements"]
    nodes, edges = (pd.DataFrame([row["data"] for row in found[name]])
                    for name in ("nodes", "edges"))
    if edges.empty:
        edges = schema.empty(EDGE_COLUMNS)
    return nodes, edges, ()


def _texts(columns: dict[str, type]) -> dict[str, type]:
    return {name: str for name, kind in columns.items() if kind is str}


def _readme(nodes: pd.DataFrame, edges: pd.DataFrame, notes: tuple[str, ...]) -> str:
    lines = ["# A knowledge graph of cell states", "",
             f"{len(nodes):,} nodes and {len(edges):,} edges. Open `graph.html` to explore them; "
             "it needs no network. `nodes.parquet` and `edges.parquet` are the graph, the other "
             "files say the same for Cytoscape (`graph.cyjs`), igraph, Gephi and networkx "
             "(`graph.graphml`), spreadsheets (CSV) and Neo4j (`neo4j/`, read with "
             "`neo4j-admin database import full --multiline-fields=true`).", "",
             "A *finding* was tested in these cells. A *prior* was known before. *Structure* is "
             "how the codes were made.", ""]
    if notes:
        lines += ["## What is missing", "",
                  *("- " + " ".join(note.replace("&", "&amp;").replace("<", "&lt;").split())
                    for note in notes), ""]
    counted = edges.groupby(["kind", "status"]).size()
    lines += ["## Edges", "", "| kind | status | edges | effect |", "| --- | --- | --- | --- |"]
    lines += [f"| {kind} | {status} | {count:,} | {schema.EDGES[kind].effect} |"
              for (kind, status), count in counted.items()]
    columns = schema.__doc__.split("Node table:")[1].strip()
    lines += ["", "## Columns", "", "```", columns, "```", ""]
    return "\n".join(lines)
