"""Answers of a knowledge graph: a table, and a paragraph whose every number stands in the table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellvq import InputError
from cellvq.graphpaths import find_node, many, paths, sentence
from cellvq.schema import EDGES

SPOKEN = 3
"""Edges of a kind that a paragraph names."""


@dataclass(frozen=True)
class Answer:
    """What a graph says to a question."""

    question: str
    table: pd.DataFrame
    words: str
    """A paragraph; every number in it is taken from the table."""

    def __str__(self) -> str:
        return self.words


def explain(nodes: pd.DataFrame, edges: pd.DataFrame, code: str) -> Answer:
    """Tell everything that is known of a code: what it is, its genes, sets, neighbours, signals.

    Args:
        nodes: node table.
        edges: edge table.
        code: address or id of the code.

    Example:
        >>> from cellvq.schema import edge_table, node_table
        >>> nodes = pd.concat([node_table("gene", ["NKG7"]),
        ...                    node_table("code", ["C07"], cells=30)])
        >>> edges = edge_table("code-marks-gene", ["code:C07"], ["gene:NKG7"], effect=2.0,
        ...                    fdr=1e-9, n_cells=30, p=1e-12)
        >>> print(explain(nodes, edges, "C07"))
        C07 has 30 cells. C07 is marked by NKG7 (effect +2.00, FDR 1e-09, 30 cells).
    """
    node = find_node(nodes, code, "code")
    table = _links(edges, node)
    names = names_of(nodes)
    facts = nodes.set_index("id").loc[node]
    said = [f"{facts['name']} has {many(facts['cells'], 'cell')}"
            + (f" of {many(facts['donors'], 'donor')}." if facts["donors"] else ".")]
    said += _by_kind(table, names)
    if table.empty:
        said.append("No finding below the false discovery rate of this graph speaks of it.")
    return Answer(f"What is {facts['name']}?", table, " ".join(said))


def compare(nodes: pd.DataFrame, edges: pd.DataFrame, first: str, second: str) -> Answer:
    """Tell what two codes share and what is found of one alone.

    Returns:
        The table has one row a kind of edge and partner: ``kind``, ``partner`` (node id), ``name``,
        ``of`` (both, or the name of the code), and ``effect`` and ``fdr`` of each code.
    """
    ids = [find_node(nodes, code, "code") for code in (first, second)]
    if ids[0] == ids[1]:
        raise InputError(f"{first!r} and {second!r} are the same code; name two")
    names = names_of(nodes)
    parts = []
    for one in ids:
        links = _links(edges, one)
        links = links[links["status"] == "finding"]
        partner = links["target"].where(links["source"] == one, links["source"])
        links = links.assign(partner=partner.to_numpy()).sort_values("fdr")
        parts.append(links.drop_duplicates(["kind", "partner", "name"]).set_index(
            ["kind", "partner", "name"])[["effect", "fdr"]])
    titles = [names[one] for one in ids]
    table = parts[0].join(parts[1], how="outer", lsuffix=f" {titles[0]}", rsuffix=f" {titles[1]}")
    there = [table[f"effect {title}"].notna() for title in titles]
    of = np.select([there[0] & there[1], there[0]], ["both", titles[0]], titles[1])
    table.insert(0, "of", of)
    table = table.reset_index().sort_values(["kind", "of", f"fdr {titles[0]}"], ignore_index=True)
    counts = table["of"].value_counts()
    said = [f"{titles[0]} and {titles[1]} share {counts.get('both', 0)} findings; "
            f"{counts.get(titles[0], 0)} are of {titles[0]} alone and "
            f"{counts.get(titles[1], 0)} of {titles[1]} alone."]
    for of, part in table[table["kind"] == "code-marks-gene"].groupby("of", sort=False):
        best = ", ".join(names[one] for one in part["partner"].head(5))
        said.append(f"Marker genes of {of}: {best}.")
    between = edges[edges["source"].isin(ids) & edges["target"].isin(ids)]
    said += [f"{sentence(edge, names)}." for _, edge in between.head(SPOKEN).iterrows()]
    return Answer(f"How do {titles[0]} and {titles[1]} differ?", table, " ".join(said))


def conditions(nodes: pd.DataFrame, edges: pd.DataFrame, contrast: str | None = None) -> Answer:
    """Tell which codes change with a condition, and which genes and signals go with it.

    Args:
        nodes: node table.
        edges: edge table.
        contrast: such as ``stim / ctrl``, or a part of it; None: all that the graph holds.

    Returns:
        The table has the edges that speak of the contrast, strongest evidence first.

    Raises:
        InputError: the graph holds no such contrast.
    """
    kinds = {"code-changes-with-condition": "name", "gene-changes-in-code": "name",
             "talk-changes-with-condition": "name"}
    table = edges[edges["kind"].isin(kinds)]
    if contrast is not None:
        held = sorted(set(table["name"].str.partition(": ")[0]))
        table = table[table["name"].str.contains(contrast, regex=False)]
        if table.empty:
            raise InputError(f"the graph holds no change with {contrast!r}; it holds "
                             f"{', '.join(held) or 'none: build it with a condition and donors'}")
    table = table.sort_values(["kind", "fdr"], ignore_index=True)
    names = names_of(nodes)
    if table.empty:
        return Answer("What changes with a condition?", table,
                      "No change with a condition is below the false discovery rate of this graph.")
    codes = table[table["kind"] == "code-changes-with-condition"]
    genes = table[table["kind"] == "gene-changes-in-code"]
    talks = table[table["kind"] == "talk-changes-with-condition"]
    said = [f"{codes['source'].nunique()} codes change in number, {genes['source'].nunique()} "
            f"genes change in {genes['target'].nunique()} codes, and {len(talks)} signals change."]
    for part in (codes, genes, talks):
        said += [f"{sentence(edge, names)}." for _, edge in part.head(SPOKEN).iterrows()]
    if len(genes):
        often = genes.groupby("source")["target"].nunique().sort_values(ascending=False,
                                                                         kind="stable")
        said.append("Genes that change in most codes: " + ", ".join(
            f"{names[gene]} ({count})" for gene, count in often.head(5).items()) + ".")
    return Answer("What changes with the condition?", table, " ".join(said))


def linked(
    nodes: pd.DataFrame, edges: pd.DataFrame, source: str, target: str, *,
    within: str | None = None, count: int = 3,
) -> Answer:
    """Tell how two nodes are linked: the shortest ways, with the evidence of every step.

    The arguments are those of :func:`cellvq.graphpaths.paths`.
    """
    table = paths(nodes, edges, source, target, within=within, count=count)
    where = f" in code {within}" if within else ""
    question = f"How is {source} linked to {target}{where}?"
    if table.empty:
        return Answer(question, table, f"No way in this graph leads from {source} to "
                      f"{target}{where}.")
    names = names_of(nodes)
    said = [f"{table['path'].max()} ways lead from {source} to {target}{where}; the shortest has "
            f"{(table['path'] == 1).sum()} steps."]
    said += [f"{sentence(edge, names)}." for _, edge in table[table["path"] == 1].iterrows()]
    return Answer(question, table, " ".join(said))


def _links(edges: pd.DataFrame, node: str) -> pd.DataFrame:
    """The edges of a node, by kind, strongest evidence first."""
    table = edges[(edges["source"] == node) | (edges["target"] == node)]
    order = {kind: number for number, kind in enumerate(EDGES)}
    return table.assign(order=table["kind"].map(order), size=-table["effect"].abs()).sort_values(
        ["order", "fdr", "size"]).drop(columns=["order", "size"]).reset_index(drop=True)


def _by_kind(table: pd.DataFrame, names: dict[str, str]) -> list[str]:
    said = []
    for _, part in table.groupby("kind", sort=False):
        said += [f"{sentence(edge, names)}." for _, edge in part.head(SPOKEN).iterrows()]
        if len(part) > SPOKEN:
            said[-1] = f"{said[-1][:-1]}, and {len(part) - SPOKEN} more of this kind."
    return said


def names_of(nodes: pd.DataFrame) -> dict[str, str]:
    """Give the name of each node by its id."""
    return dict(zip(nodes["id"], nodes["name"], strict=True))
