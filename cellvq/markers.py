"""Which genes mark a code: a rank-sum test of every gene in every code.

Codes were learnt from the same counts that are tested here, so p-values are descriptive: they rank,
they do not prove that a state exists (why that is: doi 10.1016/j.cels.2019.07.012).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse
from scipy import stats

from cellvq import InputError, evaluate, genes

if TYPE_CHECKING:
    from anndata import AnnData

CODE = "cellvq_code"
MARKER_COLUMNS = {
    "code": str, "gene": str, "rank": int, "log2_fold_change": float, "auroc": float,
    "score": float, "p": float, "fdr": float, "fraction_in": float, "fraction_out": float,
    "code_cells": int,
}


def with_code(cells: AnnData) -> tuple[AnnData, pd.Series]:
    """The cells that have a code (empty cells have none), and their codes as text.

    Raises:
        InputError: the cells are not encoded.
    """
    if CODE not in cells.obs:
        raise InputError(f"obs has no {CODE!r}: encode the cells first")
    has = cells.obs[CODE].notna().to_numpy()
    if not has.any():
        raise InputError(f"no cell has a code in obs[{CODE!r}]: no gene of the model was found")
    cells = cells if has.all() else cells[has]
    return cells, cells.obs[CODE].astype(str)


def marker_table(cells: AnnData, *, min_cells: int = 10) -> pd.DataFrame:
    """Test every gene in every code against all other cells.

    Wilcoxon rank-sum by scanpy, corrected for ties, on log1p of counts per 10,000. All genes of all
    codes are one family for Benjamini-Hochberg.

    Args:
        cells: encoded cells with raw counts.
        min_cells: codes with fewer cells are not tested and have no row.

    Returns:
        One row a code and gene, best marker first: ``code``, ``gene`` (str), ``rank`` (int, 1 is
        the best), ``log2_fold_change`` (of mean counts per 10,000), ``auroc`` (chance that a cell
        of the code has more of the gene than another cell), ``score`` (z of the rank sum, negative
        where the gene is lower in the code), ``p``, ``fdr`` (two-sided),
        ``fraction_in``, ``fraction_out`` (share of cells with the gene inside and outside the
        code), ``code_cells`` (int).

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200, cell_types=2)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> marker_table(cells).groupby("code")["fdr"].min().max() < 1e-10
        np.True_
    """
    import scanpy as sc
    from anndata import AnnData

    cells, codes = with_code(cells)
    sizes = codes.value_counts()
    tested = sorted(sizes.index[(sizes >= min_cells) & (sizes < len(codes))])
    if not tested:
        return pd.DataFrame({name: pd.Series(dtype=t) for name, t in MARKER_COLUMNS.items()})
    counts, _ = genes.find_counts(cells)
    work = AnnData(
        evaluate.log_normalise(counts, genes.sequencing_depth(cells, counts)),
        obs=pd.DataFrame({CODE: pd.Categorical(codes)}, index=cells.obs_names),
        var=pd.DataFrame(index=cells.var_names.astype(str)),
    )
    work.var_names_make_unique()
    sc.pp.filter_genes(work, min_cells=1)
    with warnings.catch_warnings():  # scanpy warns of its own bookkeeping beyond 25 groups
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        sc.tl.rank_genes_groups(
            work, CODE, groups=tested, method="wilcoxon", pts=True, use_raw=False
        )
    # One code at a time, because scanpy leaves the group's name out where there is only one.
    table = pd.concat(
        [sc.get.rank_genes_groups_df(work, code).assign(code=code) for code in tested],
        ignore_index=True,
    ).rename(columns={
        "names": "gene", "scores": "score", "logfoldchanges": "log2_fold_change",
        "pct_nz_group": "fraction_in", "pct_nz_reference": "fraction_out",
    })
    inside = table["code"].map(sizes)
    pairs = inside * (len(codes) - inside)
    # U of the rank sum from its z without ties; then z as ties have it.
    table["auroc"] = 0.5 + table["score"] * np.sqrt((len(codes) + 1) / (12 * pairs))
    ties = pd.Series(_tie_correction(work.X), work.var_names)
    table["score"] /= np.sqrt(table["gene"].map(ties).astype(float))
    table["p"] = 2 * stats.norm.sf(table["score"].abs())
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table = table.sort_values(["code", "score"], ascending=[True, False], ignore_index=True)
    table["rank"] = table.groupby("code").cumcount() + 1
    table["code_cells"] = table["code"].map(sizes)
    return table.astype(MARKER_COLUMNS)[list(MARKER_COLUMNS)]


def top_markers(markers: pd.DataFrame, count: int = 5, fdr: float = 0.05) -> pd.DataFrame:
    """The best up-regulated markers of each code: rows of the marker table below an FDR."""
    found = markers[(markers["fdr"] < fdr) & (markers["score"] > 0)]
    return found.sort_values(["code", "rank"]).groupby("code").head(count).reset_index(drop=True)


def _tie_correction(values: scipy.sparse.csr_matrix) -> np.ndarray:
    """Share of the variance of a rank sum that ties leave, [genes]; of many zeros, little.

    The same factor for every code, while scanpy would find it anew for each of them.
    """
    cells, columns = values.shape
    values = values.tocsc()
    gene = np.repeat(np.arange(columns), np.diff(values.indptr))
    order = np.lexsort((values.data, gene))
    gene, value = gene[order], values.data[order]
    starts = np.flatnonzero(np.r_[True, (gene[1:] != gene[:-1]) | (value[1:] != value[:-1])])
    length = np.diff(np.r_[starts, len(value)]).astype(float)
    zeros = cells - np.diff(values.indptr).astype(float)
    tied = np.bincount(gene[starts], length**3 - length, columns) + zeros**3 - zeros
    return 1 - tied / (float(cells) ** 3 - cells)
