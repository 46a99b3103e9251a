"""Genes that drive codes: taking them away moves cells to another code, and a test says so."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import pandas as pd
from scipy import stats

from cellvq import attribution, evaluate, faithfulness

if TYPE_CHECKING:
    from anndata import AnnData

    from cellvq.model import CellVQ

METHOD = "occlusion"
"""Each gene is taken away by itself, so the attribution is a deletion and no stand-in for one."""
DRIVER_COLUMNS = {
    "code": str, "gene": str, "effect": float, "n_cells": int, "p": float, "fdr": float,
    "null": str, "evidence": str,
}


def drivers(
    cells: AnnData, model: CellVQ, *, per_code: int = 12, tested: int = 60, seed: int = 0
) -> pd.DataFrame:
    """Find the genes whose loss takes a cell nearest to leaving its code.

    First the attribution itself is tested: genes are taken away and given back in its order, beside
    random genes and the highest expressed ones (:func:`cellvq.faithfulness.measure`). If it does
    not beat both in both directions on these cells, no gene is reported. Then the loss of margin
    that each gene causes is tested against zero over the cells of the code.

    Args:
        cells: encoded cells with raw counts.
        model: the model that encoded them.
        per_code: at most so many cells of a code are asked.
        tested: cells that the attribution is tested on.
        seed: seed of the draws.

    Returns:
        One row a code and gene with the columns ``DRIVER_COLUMNS``: ``effect`` (mean share of the
        margin of the code that goes with the gene), ``p`` (one-sided t test over cells), ``fdr``
        (over all rows). Without rows ``attrs["reason"]`` says why.

    Raises:
        InputError: the cells were not encoded by this model.
    """
    verdicts = faithfulness.measure(cells, model, [METHOD], most=tested, seed=seed).verdicts
    if (verdicts["verdict"] == "fails").any():
        table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in DRIVER_COLUMNS.items()})
        table.attrs["reason"] = (f"{METHOD} does not beat random and highest expressed genes in "
                                 "deletion and insertion on these cells, so it is not believed")
        return table
    table = attribution.attribute(cells, model, METHOD, per_code=per_code, seed=seed)
    table = table[(table["cells"] > 2) & (table["standard_error"] > 0)]
    t = table["attribution"] / table["standard_error"]
    table = table.assign(
        effect=table["attribution"], n_cells=table["cells"], p=stats.t.sf(t, table["cells"] - 1),
        null="taking the gene away does not lower the margin of the code, n = cells",
        evidence=f"cellvq {version('cellvq')} {METHOD}, passed deletion and insertion")
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    return table.sort_values(["p", "code"], ignore_index=True)[list(DRIVER_COLUMNS)].astype(
        DRIVER_COLUMNS)
