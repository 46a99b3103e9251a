"""What was known before these cells: gene sets, regulons, ligand-receptor pairs, Cell Ontology.

A prior enters the graph only where both of its ends are there, and is marked as one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellvq.schema import edge_table


@dataclass(frozen=True)
class Priors:
    """What was known before, as tables that may be empty, each with a column ``evidence``."""

    regulons: pd.DataFrame = field(default_factory=pd.DataFrame)
    """``regulator``, ``gene``, ``weight``."""
    gene_sets: pd.DataFrame = field(default_factory=pd.DataFrame)
    """``collection``, ``gene_set``, ``gene``."""
    terms: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The ontology, with ``id``, ``name``, ``parents`` (ids, parted by spaces or commas)."""


def set_id(collection: pd.Series, name: pd.Series) -> pd.Series:
    """Give the node ids of gene sets."""
    return "set:" + collection + "/" + name


def known_links(edges: pd.DataFrame, priors: Priors) -> list[pd.DataFrame]:
    """Give what is known of the nodes that findings brought in, as tables of edges.

    Args:
        edges: edge table of the findings.
        priors: what was known before.
    """
    found = []
    talks = edges[edges["kind"].isin(["code-talks-to-code", "talk-changes-with-condition"])]
    signals = talks["name"].str.split(": ").str[-1].drop_duplicates()
    if len(signals):
        parts = signals.str.split(" → ", expand=True)
        ends = pd.concat([parts[[0]].set_axis(["gene"], axis=1).assign(part="ligand"),
                          parts[[1]].set_axis(["gene"], axis=1).assign(part="receptor")])
        ends["pair"] = pd.concat([signals, signals])
        ends = ends.assign(gene=ends["gene"].str.split("_")).explode("gene").drop_duplicates()
        found.append(edge_table("gene-in-pair", "gene:" + ends["gene"], "pair:" + ends["pair"],
                                name=ends["part"], status="prior",
                                evidence="ligand-receptor resource of liana"))
    named = pd.concat([part[end] for part in (edges, *found) for end in ("source", "target")])
    here = set(named[named.str.startswith("gene:")].str.removeprefix("gene:"))
    if len(priors.gene_sets):
        sets = priors.gene_sets
        shown = set(edges.loc[edges["kind"] == "code-shows-set", "target"])
        ids = set_id(sets["collection"], sets["gene_set"])
        kept = sets["gene"].isin(here) & ids.isin(shown)
        found.append(edge_table("gene-in-set", "gene:" + sets["gene"][kept], ids[kept],
                                status="prior", evidence=sets["collection"][kept]))
    if len(priors.regulons):
        links = priors.regulons
        links = links[links["regulator"].isin(here) & links["gene"].isin(here)]
        found.append(edge_table(
            "tf-regulates-gene", "gene:" + links["regulator"], "gene:" + links["gene"],
            status="prior", effect=np.sign(links["weight"]),
            evidence=links.get("evidence", "CollecTRI")))
    return [*found, *_terms(edges, priors.terms)]


def _terms(edges: pd.DataFrame, terms: pd.DataFrame) -> list[pd.DataFrame]:
    """Annotations whose value is the name of a term, and what these terms are kinds of."""
    labels = edges.loc[edges["kind"] == "code-is-annotation", "target"].drop_duplicates()
    if terms.empty or labels.empty:
        return []
    by_name = dict(zip(terms["name"].str.lower(), terms["id"], strict=True))
    value = labels.str.partition("=")[2].str.lower()
    plain = value.str.replace(r"s$", "", regex=True)
    term = [by_name.get(one) or by_name.get(other) or by_name.get(f"{other} cell")
            for one, other in zip(value, plain, strict=True)]
    term = pd.Series(term, labels.index, dtype=object)
    known = term.notna()
    above = terms.set_index("id")["parents"].str.split(r"[|,; ]+", regex=True)
    links, todo = [], set(term[known])
    done: set[str] = set()
    while todo:  # a handful of levels
        done |= todo
        rows = [(one, parent) for one in sorted(todo) for parent in above.get(one, [])
                if parent in above.index]
        links += rows
        todo = {parent for _, parent in rows} - done
    source, target = zip(*links, strict=True) if links else ((), ())
    return [
        edge_table("annotation-is-term", labels[known], "term:" + term[known], status="prior",
                   evidence="equal names, Cell Ontology"),
        edge_table("term-is-term", ["term:" + one for one in source],
                   ["term:" + one for one in target], status="prior", evidence="Cell Ontology"),
    ]
