"""From cells to raw counts: where the counts are, the depth, the gene order of a panel."""

import re
from collections.abc import Iterator, Sequence

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from cellvq import InputError

# Columns of obs in which tools keep a cell's UMI counts over all genes that were measured.
DEPTH_COLUMNS = ("total_counts", "n_counts", "nCount_RNA", "response_n_umis")
# Columns of var in which tools keep the other kind of gene names.
NAME_COLUMNS = ("gene_ids", "ensembl_id", "gene_id", "gene_symbols", "gene_symbol", "feature_name")
ENSEMBL = re.compile(r"^(ENS([A-Z]{3,4})?G\d{6,})(\.\d+)?$")


def find_counts(cells: anndata.AnnData) -> tuple[scipy.sparse.csr_matrix, str]:
    """Find the raw counts: the first of layers["counts"], X and raw.X that holds whole numbers.

    Returns:
        UMI counts, float32 [cells, genes], never the matrix of ``cells`` itself; and where they
        were found.

    Raises:
        InputError: There are no cells, no genes or no raw counts; it says what each place holds.

    Example:
        >>> cells = anndata.AnnData(np.array([[0.0, 3.0], [1.0, 0.0]], dtype="float32"))
        >>> counts, where = find_counts(cells)
        >>> where, float(counts.sum())
        ('X', 4.0)
    """
    if not cells.n_obs or not cells.n_vars:
        raise InputError(
            f"the matrix is empty, {cells.n_obs} cells x {cells.n_vars} genes; check the filters "
            "that made it"
        )
    problems = []
    for where, matrix in _places(cells):
        problem = _problem(matrix)
        if problem is None:
            counts = scipy.sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
            counts.sum_duplicates()
            counts.eliminate_zeros()
            return counts, where
        problems.append(f"{where} {problem}")
    raise InputError(
        f"no raw counts: {', '.join(problems) or 'X is missing'}; put the UMI counts from before "
        'normalisation into layers["counts"]'
    )


def sequencing_depth(cells: anndata.AnnData, counts: scipy.sparse.csr_matrix) -> np.ndarray:
    """Give each cell's UMI counts over all genes that were measured, float32 [cells].

    Files often hold only the variable genes, and then a column of ``obs`` still knows the depth. It
    is used where it can be one: whole numbers, not all alike, and never below the sum of the row.

    Example:
        >>> cells = anndata.AnnData(np.array([[0.0, 3.0], [1.0, 0.0]], dtype="float32"))
        >>> cells.obs["total_counts"] = [30, 20]
        >>> sequencing_depth(cells, find_counts(cells)[0])
        array([30., 20.], dtype=float32)
    """
    sums = np.asarray(counts.sum(axis=1)).ravel()
    for column in DEPTH_COLUMNS:
        if column in cells.obs and pd.api.types.is_numeric_dtype(cells.obs[column]):
            depth = cells.obs[column].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.ptp(depth) > 0 and (depth >= sums).all() and (depth == np.rint(depth)).all():
                return depth.astype(np.float32)
    return sums.astype(np.float32)


def align(
    cells: anndata.AnnData | Sequence[str], counts: scipy.sparse.csr_matrix, panel: Sequence[str]
) -> tuple[scipy.sparse.csr_matrix, int]:
    """Bring counts into the gene order of a panel.

    Of the gene names and the usual columns of ``var``, the one that matches most genes is used.
    Ensembl versions are ignored, genes named twice are summed, genes outside the panel are dropped.

    Args:
        cells: The cells, or only their gene names [genes].
        counts: UMI counts, [cells, genes].
        panel: The gene names wanted; of one that stands twice, the second stays zero.

    Returns:
        UMI counts, float32 [cells, panel], and how many genes of the panel were found.

    Raises:
        InputError: No gene matches; the message shows names of both sides.

    Example:
        >>> counts = scipy.sparse.csr_matrix([[1.0, 2.0, 4.0]])
        >>> aligned, matched = align(["CD3D", "MS4A1", "CD3D"], counts, ["LYZ", "CD3D"])
        >>> aligned.toarray().tolist(), matched
        ([[0.0, 5.0]], 1)
    """
    offered = [cells]
    if isinstance(cells, anndata.AnnData):
        offered = [cells.var_names, *(cells.var[c] for c in NAME_COLUMNS if c in cells.var)]
    wanted = _without_versions(panel)
    places = np.append(np.flatnonzero(~wanted.duplicated()), -1)  # -1, as of an unknown gene
    known = wanted[places[:-1]]
    found = [places[known.get_indexer(_without_versions(names))] for names in offered]
    column = max(found, key=lambda place: np.unique(place[place >= 0]).size)
    here = np.flatnonzero(column >= 0)
    if not here.size:
        raise InputError(
            f"no gene of the cells is known to the model: the cells have {some(offered[0])}, the "
            f"model has {some(panel)}; use the same species and the same kind of gene names"
        )
    chooser = scipy.sparse.csr_matrix(
        (np.ones(here.size, dtype=np.float32), (here, column[here])),
        shape=(len(column), len(wanted)),
    )
    aligned = scipy.sparse.csr_matrix(counts, dtype=np.float32) @ chooser
    aligned.sort_indices()
    return aligned, int(np.unique(column[here]).size)


def some(names: Sequence[str]) -> str:
    """Show the first three of some names."""
    return ", ".join(map(str, names[:3]))


def _places(cells: anndata.AnnData) -> Iterator[tuple[str, object]]:
    """Go through the places where raw counts may be, the most explicit first."""
    if "counts" in cells.layers:
        yield 'layers["counts"]', cells.layers["counts"]
    if cells.X is not None:
        yield "X", cells.X
    if cells.raw is not None and cells.raw.var_names.equals(cells.var_names):
        yield "raw.X", cells.raw.X


def _problem(matrix) -> str | None:
    """Say why a matrix cannot be raw counts, or None where it can."""
    values = matrix.data if scipy.sparse.issparse(matrix) else np.asarray(matrix).ravel()
    if values.dtype.kind not in "biuf":
        return "holds no numbers"
    if not np.isfinite(values).all():
        return "holds NaN or infinite values"
    if not values.any():
        return "is all zero"
    if values.min() < 0:
        return "holds negative values (scaled)"
    broken = values != np.rint(values)
    if broken.any():
        return f"holds values such as {values[broken][0]:.4g} (normalised or log-transformed)"
    return None


def _without_versions(names: Sequence[str]) -> pd.Index:
    """Take the version off Ensembl identifiers; other names stay as they are."""
    return pd.Index(names).astype(str).str.replace(ENSEMBL, r"\1", regex=True)
