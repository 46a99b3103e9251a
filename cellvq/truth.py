"""Hold a run on simulated cells to the truth that was planted in them.

Each function takes the tables that a run makes for any cells, and says which share of the planted
facts is in them. The `smoke` profile asserts these shares; on real cells there is no truth to hold.
"""

from __future__ import annotations

import pandas as pd

from cellvq.simulate import truth

__all__ = ["recovered_markers", "recovered_signals", "truth"]


def recovered_markers(planted: pd.DataFrame, codes: pd.DataFrame, markers: pd.DataFrame) -> float:
    """Return the share of planted markers that rank first in a code of their cell type.

    Args:
        planted: planted markers: ``cell_type``, ``gene``.
        codes: code table, whose ``annotation`` names the most common cell type of a code.
        markers: marker table of the codes.

    Returns:
        Share of the planted markers that are among a code's best 25 upward markers (FDR 0.05) in at
        least one code annotated as their cell type.

    Example:
        >>> planted = pd.DataFrame({"cell_type": ["B", "T"], "gene": ["CD79A", "CD3D"]})
        >>> codes = pd.DataFrame({"code": ["C0", "C1"], "annotation": ["B", "T"]})
        >>> markers = pd.DataFrame({"code": ["C0", "C0"], "gene": ["CD79A", "CD3D"],
        ...                         "rank": [1, 2], "score": [9.0, 8.0], "fdr": [0.0, 0.0]})
        >>> recovered_markers(planted, codes, markers)
        0.5
    """
    best = markers[(markers["rank"] <= 25) & (markers["score"] > 0) & (markers["fdr"] < 0.05)]
    best = best.merge(codes[["code", "annotation"]])
    found = set(zip(best["annotation"], best["gene"], strict=True))
    wanted = zip(planted["cell_type"], planted["gene"], strict=True)
    return sum(pair in found for pair in wanted) / len(planted)


def recovered_signals(planted: pd.DataFrame, codes: pd.DataFrame, edges: pd.DataFrame) -> float:
    """Return the share of planted ligand-receptor pairs that the graph holds between right codes.

    Args:
        planted: planted communication: ``source``, ``target`` (cell types), ``ligand`` and
            ``receptor``.
        codes: code table with its ``annotation``.
        edges: edge table of the graph.

    Returns:
        Share of the planted pairs with at least one code-talks-to-code edge of that ligand and
        receptor from a code of the source type to a code of the target type.

    Example:
        >>> planted = pd.DataFrame({"source": ["B"], "target": ["T"], "ligand": ["CCL19"],
        ...                         "receptor": ["CCR7"]})
        >>> codes = pd.DataFrame({"code": ["C0", "C1"], "annotation": ["B", "T"]})
        >>> edges = pd.DataFrame({"source": ["code:C0"], "target": ["code:C1"],
        ...                       "kind": ["code-talks-to-code"], "name": ["CCL19 → CCR7"]})
        >>> recovered_signals(planted, codes, edges)
        1.0
    """
    talks = edges[edges["kind"] == "code-talks-to-code"]
    kinds = ("code:" + codes["code"]).to_list(), codes["annotation"].to_list()
    kind = dict(zip(*kinds, strict=True))
    ends = talks["source"].map(kind), talks["target"].map(kind), talks["name"]
    found = set(zip(*ends, strict=True))
    wanted = zip(planted["source"], planted["target"],
                 planted["ligand"] + " → " + planted["receptor"], strict=True)
    return sum(signal in found for signal in wanted) / len(planted)
