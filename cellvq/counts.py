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
LEAST_GENES = 10  # of a cell with fewer, several numbers of molecules explain the values as well
LARGEST_LOGARITHM = 40.0  # no count is as large as its exponential
MOST_MOLECULES = 6  # looked for in the smallest value of a cell
ENSEMBL = re.compile(r"^(ENS([A-Z]{3,4})?G\d{6,})(\.\d+)?$")


def find_counts(cells: anndata.AnnData) -> tuple[scipy.sparse.csr_matrix, str]:
    """Find the raw counts: the first of layers["counts"], X and raw.X that holds whole numbers.

    Where none does, :func:`recover` is asked of each, which takes counts out of log-normalised
    values where that is exact.

    Returns:
        UMI counts, float32 [cells, genes], never the matrix of ``cells`` itself; and where they
        were found, in words that say so if they had to be recovered.

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
        problem = problem_of(matrix)
        if problem is None:
            counts = scipy.sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
            counts.sum_duplicates()
            counts.eliminate_zeros()
            return counts, where
        problems.append(f"{where} {problem}")
    for where, matrix in _places(cells):
        for depth in (None, *known_depths(cells.obs).values()):
            counts, way = undo(matrix, depth)
            if counts is not None:
                return counts, f"{where} ({way})"
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
    for depth in known_depths(cells.obs).values():
        if (depth >= sums).all():
            return depth.astype(np.float32)
    return sums.astype(np.float32)


def known_depths(obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Take the columns of ``obs`` that can be a depth: whole numbers, not all alike, [cells] each.

    Example:
        >>> list(known_depths(pd.DataFrame({"total_counts": [30, 20], "n_counts": [1e4, 1e4]})))
        ['total_counts']
    """
    found = {}
    for column in DEPTH_COLUMNS:
        if column in obs and pd.api.types.is_numeric_dtype(obs[column]):
            depth = obs[column].to_numpy(dtype=np.float64, na_value=np.nan)
            if len(depth) and np.ptp(depth) > 0 and (depth == np.rint(depth)).all():
                found[column] = depth
    return found


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
    wanted = without_versions(panel)
    places = np.append(np.flatnonzero(~wanted.duplicated()), -1)  # -1, as of an unknown gene
    known = wanted[places[:-1]]
    found = [places[known.get_indexer(without_versions(names))] for names in offered]
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


def problem_of(matrix) -> str | None:
    """Say why a matrix, dense or sparse, cannot be raw counts, or None where it can.

    Example:
        >>> problem_of(np.array([[0.5, 3.0]]))
        'holds values such as 0.5 (normalised or log-transformed)'
    """
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


def recover(
    values: scipy.sparse.csr_matrix, depth: np.ndarray | None = None
) -> scipy.sparse.csr_matrix | None:
    """Take counts back out of normalised values, log1p(counts / total * scale) or without the log.

    Within a cell such values are whole multiples of one molecule, of which the smallest value holds
    one or a few. That is accepted only where every value of every cell lies on a whole number, as
    closely as the precision of the numbers lets it: scaled, batch-corrected, smoothed and averaged
    values, and those of a cell with fewer than ten genes, which prove nothing, are refused.

    Args:
        values: normalised values, [cells, genes]; a block of rows gives what the whole would.
        depth: UMI counts of each cell before normalisation, [cells]. With it, values that were
            rounded to a few decimals can be undone too, and cells with few genes.

    Returns:
        UMI counts, float32 [cells, genes], or None where they cannot be had exactly.

    Example:
        >>> counts = scipy.sparse.csr_matrix([np.arange(12.0), np.arange(1.0, 13)])
        >>> values = (counts / 70 * 1e4).log1p()
        >>> (recover(values) != counts).nnz
        0
        >>> recover(values * 0.9) is None
        True
    """
    if not values.count_nonzero():
        return scipy.sparse.csr_matrix(values.shape, dtype=np.float32)  # a block of empty cells
    return undo(values, depth)[0]


def undo(matrix, depth: np.ndarray | None = None) -> tuple[scipy.sparse.csr_matrix | None, str]:
    """Do what :func:`recover` does, with a matrix of any form, and say in words what was undone."""
    values = matrix.data if scipy.sparse.issparse(matrix) else np.asarray(matrix).ravel()
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return None, ""
    if values.min(initial=0) < 0 or not values.any():
        return None, ""
    counts = scipy.sparse.csr_matrix(matrix, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    precision = np.finfo(values.dtype).eps
    if (counts.data.astype(np.float32) == counts.data).all():
        precision = max(precision, np.finfo(np.float32).eps)  # computed so, however stored later
    values = counts.data.astype(np.float64)
    lengths = np.diff(counts.indptr)[np.diff(counts.indptr) > 0]
    broken = np.logical_or.reduceat(values != np.rint(values), np.cumsum(lengths) - lengths)
    if broken.mean() < 0.5:
        return None, ""  # most cells hold counts as they are: the others are spoilt, not normalised
    ways = [("normalised", values, np.ones_like(values))]
    if values.max() < LARGEST_LOGARITHM:
        # A logarithm lets the rounding error of a value grow, by so many times, in its amount.
        ways.insert(0, ("logarithms", np.expm1(values), values / -np.expm1(-values)))
    for way, amounts, growth in ways:
        if depth is None:
            whole = _multiples(counts.indptr, amounts, 4 * precision * (1 + growth))
        else:
            whole = _multiples_by_depth(counts.indptr, amounts, np.asarray(depth, np.float64))
        if whole is not None:
            counts.data = whole.astype(np.float32)
            return counts, f"{way}; counts recovered {'exactly' if depth is None else 'by depth'}"
    return None, ""


def _multiples(indptr: np.ndarray, amounts: np.ndarray, error: np.ndarray) -> np.ndarray | None:
    """Express each cell's amounts in molecules, where all of them lie on whole numbers.

    Args:
        indptr: where each cell begins, [cells + 1].
        amounts: amounts above zero, [values].
        error: how far rounding may have moved an amount, as a share of it, [values].
    """
    lengths = np.diff(indptr)
    lengths = lengths[lengths > 0]
    if lengths.min() < LEAST_GENES:
        return None
    starts = np.cumsum(lengths) - lengths
    least = np.minimum.reduceat(amounts, starts)
    error = error + np.repeat(np.maximum.reduceat(error, starts), lengths)
    molecules = np.zeros(lengths.size)  # in the smallest value of each cell; 0 is not known yet
    for number in range(1, MOST_MOLECULES + 1):
        open_cells = molecules == 0
        sizes, part = lengths[open_cells], np.repeat(open_cells, lengths)
        if not sizes.size:
            break
        multiples = amounts[part] * np.repeat(number / least[open_cells], sizes)
        far = np.abs(multiples - np.rint(multiples)) > np.minimum(multiples * error[part], 0.1)
        far |= multiples * error[part] > 0.1  # so large that a whole number proves nothing
        fits = ~np.logical_or.reduceat(far, np.cumsum(sizes) - sizes)
        molecules[open_cells] = np.where(fits, number, 0)
    if not molecules.all():
        return None
    parts = molecules / least  # of one unit of amount
    is_mean = (parts > 1.5) & (np.abs(parts - np.rint(parts)) < 1e-3)
    if is_mean.all() and np.median(np.add.reduceat(amounts, starts)) > 1.5:
        return None  # sums of cells divided by their number: whole, but the counts of no cell
    return np.rint(amounts * np.repeat(parts, lengths))


def _multiples_by_depth(
    indptr: np.ndarray, amounts: np.ndarray, depth: np.ndarray
) -> np.ndarray | None:
    """Express each cell's amounts in molecules, of which one is the scale over the depth."""
    cells = np.flatnonzero(np.diff(indptr))
    if len(depth) != len(indptr) - 1 or not (depth[cells] > 0).all():
        return None
    lengths = np.diff(indptr)[cells]
    starts = np.cumsum(lengths) - lengths
    scale = np.median(np.minimum.reduceat(amounts, starts) * depth[cells])
    power = 10 ** np.rint(np.log10(scale))
    scale = power if abs(scale / power - 1) < 0.01 else scale
    multiples = amounts * np.repeat(depth[cells] / scale, lengths)
    whole = np.rint(multiples)
    exact = len(whole) >= 20 and np.abs(multiples - whole).max() <= 0.1 and whole.all()
    if exact and (np.add.reduceat(whole, starts) <= depth[cells]).all():
        return whole
    return None


def some(names: Sequence[str]) -> str:
    """Show the first three of some names, on one line whatever is in them.

    Example:
        >>> some(["ACTB", "CD3E\\nCD3D", "LYZ", "MS4A1"])
        'ACTB, CD3E?CD3D, LYZ'
    """
    return ", ".join(map(plain, names[:3]))


def plain(text: str) -> str:
    """Make text of a file fit for a line: no control characters, at most forty letters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return text if len(text) <= 40 else f"{text[:39]}…"


def _places(cells: anndata.AnnData) -> Iterator[tuple[str, object]]:
    """Go through the places where raw counts may be, the most explicit first."""
    if "counts" in cells.layers:
        yield 'layers["counts"]', cells.layers["counts"]
    if cells.X is not None:
        yield "X", cells.X
    if cells.raw is not None and cells.raw.var_names.equals(cells.var_names):
        yield "raw.X", cells.raw.X


def without_versions(names: Sequence[str]) -> pd.Index:
    """Take the version off Ensembl identifiers; other names stay as they are."""
    return pd.Index(names).astype(str).str.replace(ENSEMBL, r"\1", regex=True)
