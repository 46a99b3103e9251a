"""Joins tables of statistics and of knowledge into a graph; what misses the FDR does not enter.

Each function below turns one table into edges. All are optional: what is not given is missing, and
a note of the graph says so. What was known before enters as a prior, and only where both of its
ends are in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pandas as pd

from cellvq import evaluate
from cellvq.graph import Graph
from cellvq.graphpriors import Priors, known_links, set_id
from cellvq.schema import EDGE_COLUMNS, edge_table, empty, node_table

GENES_PER_CODE = 25
"""Marker genes, and genes that change with a condition, of one code at the most."""
SETS_PER_CODE = 10
"""Gene sets that a code shows, at the most."""


@dataclass(frozen=True)
class Evidence:
    """Tables that a graph is built from; None: was not looked at."""

    codes: pd.DataFrame
    """One row a code or parent, with ``code`` (str), ``cells`` (int), and where known ``donors``
    (int) and ``detail`` (str)."""
    markers: pd.DataFrame | None = None
    """See :func:`cellvq.tallymarkers.marker_table`, or :func:`cellvq.markers.marker_table`."""
    labels: pd.DataFrame | None = None
    """See :func:`cellvq.tallylabels.label_table`, or :func:`cellvq.codes.annotation_table`."""
    neighbours: pd.DataFrame | None = None
    """See :func:`cellvq.codes.neighbour_table`."""
    signals: pd.DataFrame | None = None
    """See :func:`cellvq.signals.communication`."""
    sets: pd.DataFrame | None = None
    """See :func:`cellvq.genesets.enrich`."""
    drivers: pd.DataFrame | None = None
    """Genes whose deletion changes the code, with ``code``, ``gene``, ``effect``, ``n_cells``,
    ``p``, ``fdr``, ``null``, ``evidence``."""
    regulation: pd.DataFrame | None = None
    """Links found in these cells, with ``regulator``, ``gene``, ``code``, ``effect``, ``n_cells``,
    ``n_donors``, ``p``, ``fdr``, ``null``, ``evidence``, ``stability``."""
    abundance: pd.DataFrame | None = None
    """See :func:`cellvq.conditions.abundance`; ``column`` names the condition's column."""
    changes: pd.DataFrame | None = None
    """See :func:`cellvq.conditions.gene_changes`."""
    signal_changes: pd.DataFrame | None = None
    """Signals that differ between conditions, with ``source``, ``target``, ``ligand``,
    ``receptor``, ``contrast``, ``effect``, ``n_cells``, ``n_donors``, ``p``, ``fdr``, ``null``,
    ``evidence``."""
    notes: tuple[str, ...] = ()
    """Why something is missing, a sentence each."""


def build(
    evidence: Evidence, priors: Priors | None = None, *, fdr: float = 0.05,
    genes_per_code: int = GENES_PER_CODE,
) -> Graph:
    """Join tables into the knowledge graph; only what is below the FDR enters as a finding.

    Args:
        evidence: what was tested in these cells.
        priors: what was known before.
        fdr: largest false discovery rate of a finding.
        genes_per_code: at most so many genes of a kind a code, those with the smallest p.

    Example:
        >>> from cellvq import simulate, tallies, tallymarkers
        >>> cells = simulate.simulate_cells(cells=200, cell_types=2)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> made = tallies.tally(cells, labels=["lineage"])
        >>> graph = build(Evidence(tallymarkers.sides(made).codes, tallymarkers.marker_table(made)),
        ...               genes_per_code=3)
        >>> graph.edges["kind"].value_counts().to_dict()
        {'code-marks-gene': 6}
    """
    given = {
        "code-parent-code": (evidence.codes, _parents),
        "code-marks-gene": (evidence.markers, lambda table: _marks(table, genes_per_code)),
        "code-is-annotation": (evidence.labels, _annotates),
        "code-near-code": (evidence.neighbours, _near),
        "code-talks-to-code": (evidence.signals, _talks),
        "code-shows-set": (evidence.sets, _shows),
        "gene-drives-code": (evidence.drivers, _drives),
        "tf-regulates-gene": (evidence.regulation, _regulates),
        "code-changes-with-condition": (evidence.abundance, _abundance),
        "gene-changes-in-code": (evidence.changes, lambda table: _changes(table, genes_per_code)),
        "talk-changes-with-condition": (evidence.signal_changes, _talk_changes),
    }
    found, notes = [], list(evidence.notes)
    for kind, (table, make) in given.items():
        if table is None or table.empty:
            reason = "not tested" if table is None else table.attrs.get("reason", "none tested")
            notes.append(f"{kind}: {reason}")
            continue
        edges = make(table[table["fdr"] < fdr] if "fdr" in table else table)
        if edges.empty and kind != "code-parent-code":
            notes.append(f"{kind}: none of {len(table):,} below FDR {fdr}")
        found.append(edges)
    edges = pd.concat([part for part in found if len(part)] or [empty(EDGE_COLUMNS)],
                      ignore_index=True)
    known = {"code:" + code for code in evidence.codes["code"]}
    ends = {end: edges[end].str.startswith("code:") & ~edges[end].isin(known)
            for end in ("source", "target")}
    edges = edges[~(ends["source"] | ends["target"])]  # of codes that the code table leaves out
    edges = pd.concat([edges, *known_links(edges, priors or Priors())], ignore_index=True)
    edges = edges.drop_duplicates(["source", "target", "kind", "name", "status"],
                                  ignore_index=True)
    return Graph(_nodes(evidence, priors or Priors(), edges), edges, tuple(dict.fromkeys(notes)))


def _parents(codes: pd.DataFrame) -> pd.DataFrame:
    """Each code below the longest part of its address that is a code too."""
    names = codes["code"].astype(str)
    parent = names.str.rpartition(".")[0]
    inner = parent.isin(set(names))
    sizes = codes["cells"].to_numpy()[inner]
    return edge_table("code-parent-code", "code:" + names[inner], "code:" + parent[inner],
                      status="structure", n_cells=sizes, evidence="nested codes of the model")


def _marks(markers: pd.DataFrame, per_code: int) -> pd.DataFrame:
    up = markers[markers["log2_fold_change"] > 0]
    if "null_score" in up:
        up = up[up["score"] > up["null_score"]]
    best = up.sort_values(["p", "score"], ascending=[True, False]).groupby("code").head(per_code)
    return edge_table(
        "code-marks-gene", "code:" + best["code"], "gene:" + best["gene"],
        effect=best["log2_fold_change"], n_cells=best["code_cells"],
        n_donors=best.get("n_donors", 0), p=best["p"], fdr=best["fdr"],
        null=best.get("null", "ranks exchangeable between the code and all other cells"),
        stability=best.get("stability", np.nan), evidence=f"cellvq {version('cellvq')} markers",
    )


def _annotates(pairs: pd.DataFrame) -> pd.DataFrame:
    pairs = pairs[pairs["log2_enrichment"] > 0]
    column = pairs["column"] if "column" in pairs else "label"
    return edge_table(
        "code-is-annotation", "code:" + pairs["code"],
        "annotation:" + column + "=" + pairs["label"],
        effect=pairs["log2_enrichment"], n_cells=pairs["cells"],
        n_donors=pairs.get("n_donors", 0), p=pairs["p"], fdr=pairs["fdr"],
        null=evaluate.PERMUTATION_NULL, evidence=f"scipy {version('scipy')} hypergeom",
        stability=pairs.get("stability", np.nan),
    )


def _near(pairs: pd.DataFrame) -> pd.DataFrame:
    pairs = pairs[pairs["log2_enrichment"] > 0]
    return edge_table(
        "code-near-code", "code:" + pairs["code"], "code:" + pairs["neighbour"],
        effect=pairs["log2_enrichment"], n_cells=pairs["n_cells"], p=pairs["p"], fdr=pairs["fdr"],
        null="second choice of each cell drawn by how common it is",
        evidence=f"cellvq {version('cellvq')} second choices",
    )


def _talks(pairs: pd.DataFrame) -> pd.DataFrame:
    pairs = pairs[pairs["effect"] > 0]
    return edge_table(
        "code-talks-to-code", "code:" + pairs["source"], "code:" + pairs["target"],
        name=_signal(pairs), effect=pairs["effect"], n_cells=pairs["n_cells"],
        n_donors=pairs.get("n_donors", 0), p=pairs["p"], fdr=pairs["fdr"],
        null=pairs.get("null", "codes shuffled over cells, sizes kept"),
        evidence=pairs["evidence"], stability=pairs.get("stability", np.nan),
    )


def _shows(table: pd.DataFrame) -> pd.DataFrame:
    table = table[table["effect"] > 0].sort_values("effect", ascending=False)
    best = table.groupby(["code", "collection"]).head(SETS_PER_CODE)
    best = best[best["collection"] != "regulons"]
    sizes = best.get("code_cells", 0)
    return edge_table(
        "code-shows-set", "code:" + best["code"], set_id(best["collection"], best["name"]),
        effect=best["effect"], n_cells=sizes, p=best["p"], fdr=best["fdr"],
        null="genes of like expression, and codes shuffled over cells where told",
        evidence=f"decoupler {version('decoupler')} ulm",
    )


def _drives(table: pd.DataFrame) -> pd.DataFrame:
    return edge_table(
        "gene-drives-code", "gene:" + table["gene"], "code:" + table["code"],
        effect=table["effect"], n_cells=table["n_cells"], p=table["p"], fdr=table["fdr"],
        null=table["null"], evidence=table["evidence"],
    )


def _regulates(table: pd.DataFrame) -> pd.DataFrame:
    return edge_table(
        "tf-regulates-gene", "gene:" + table["regulator"], "gene:" + table["gene"],
        name=table["code"] if "code" in table else "", effect=table["effect"],
        n_cells=table["n_cells"], n_donors=table.get("n_donors", 0), p=table["p"],
        fdr=table["fdr"], null=table["null"], evidence=table["evidence"],
        stability=table.get("stability", np.nan),
    )


def _abundance(table: pd.DataFrame) -> pd.DataFrame:
    column = table["column"] if "column" in table else "condition"
    return edge_table(
        "code-changes-with-condition", "code:" + table["code"],
        "annotation:" + column + "=" + table["condition"],
        name=table["contrast"], effect=table["effect"], n_cells=table["n_cells"],
        n_donors=table["n_donors"], p=table["p"], fdr=table["fdr"], null=table["null"],
        evidence=f"cellvq {version('cellvq')} moderated t of logits",
        stability=table["stability"],
    )


def _changes(table: pd.DataFrame, per_code: int) -> pd.DataFrame:
    best = table.sort_values("p").groupby(["code", "contrast"]).head(per_code)
    return edge_table(
        "gene-changes-in-code", "gene:" + best["gene"], "code:" + best["code"],
        name=best["contrast"], effect=best["effect"], n_cells=best["n_cells"],
        n_donors=best["n_donors"], p=best["p"], fdr=best["fdr"], null=best["null"],
        evidence=f"cellvq {version('cellvq')} moderated t of pseudobulk",
        stability=best["stability"],
    )


def _talk_changes(table: pd.DataFrame) -> pd.DataFrame:
    return edge_table(
        "talk-changes-with-condition", "code:" + table["source"], "code:" + table["target"],
        name=table["contrast"] + ": " + _signal(table), effect=table["effect"],
        n_cells=table["n_cells"], n_donors=table["n_donors"], p=table["p"], fdr=table["fdr"],
        null=table["null"], evidence=table["evidence"],
    )


def _signal(pairs: pd.DataFrame) -> pd.Series:
    return pairs["ligand"] + " → " + pairs["receptor"]


def _nodes(evidence: Evidence, priors: Priors, edges: pd.DataFrame) -> pd.DataFrame:
    """Every code, every annotation that was tested, and what else edges name."""
    codes = evidence.codes
    parts = [node_table("code", codes["code"], cells=codes["cells"],
                        donors=codes.get("donors", 0), detail=codes.get("detail", ""))]
    labels = evidence.labels
    if labels is not None and len(labels):
        column = labels["column"] if "column" in labels else pd.Series("label", labels.index)
        ids = "annotation:" + column + "=" + labels["label"]
        first = ~ids.duplicated()
        parts.append(node_table("annotation", labels["label"][first], id=ids[first],
                                cells=labels["label_cells"][first], detail=column[first]))
    named = pd.concat([edges["source"], edges["target"]]).drop_duplicates()
    known = set(pd.concat([part["id"] for part in parts]))
    named = named[~named.isin(known)]
    term_names = dict(zip(priors.terms["id"], priors.terms["name"], strict=True)) \
        if len(priors.terms) else {}
    for kind in ("annotation", "gene", "set", "pair", "term"):
        ids = named[named.str.startswith(f"{kind}:")]
        if ids.empty:
            continue
        rest = ids.str.removeprefix(f"{kind}:")
        if kind == "annotation":
            parts.append(node_table(kind, rest.str.partition("=")[2], id=ids,
                                    detail=rest.str.partition("=")[0]))
        elif kind == "set":
            parts.append(node_table(kind, rest.str.partition("/")[2], id=ids,
                                    detail=rest.str.partition("/")[0]))
        elif kind == "term":
            parts.append(node_table(kind, rest.map(lambda one: term_names.get(one, one)), id=ids,
                                    detail=rest))
        else:
            parts.append(node_table(kind, rest))
    return pd.concat(parts, ignore_index=True)
