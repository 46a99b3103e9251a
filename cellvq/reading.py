"""Files of cells -> AnnData, and one clear line where a file cannot be read.

``.h5ad``, 10x ``.h5`` and matrix folders, ``.loom``, and tables of text; nothing is ever written.
"""

import contextlib
import csv
import gzip
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse

from cellvq import InputError

# Genes that most human tissues express; mouse spells the same genes Actb, Gapdh ...
LANDMARKS = (
    "ACTB", "GAPDH", "B2M", "MALAT1", "EEF1A1", "RPLP0", "FTL", "VIM", "CD74", "PTPRC", "ISG15",
    "STAT1", "JUN", "FOS", "MYC", "HSPA5", "GNAS", "ITGB1", "LGALS3", "CAV1", "NFKBIA", "TGFBR3",
)
TEXT = re.compile(r"\.(csv|tsv|tab|txt)(\.gz)?$", re.IGNORECASE)
_SIGNATURES = {  # the first bytes of what people take for HDF5: what it is, and how to mend it
    b"\x1f\x8b": ("is compressed with gzip", "unpack it first, with gunzip"),
    b"BZh": ("is compressed with bzip2", "unpack it first, with bunzip2"),
    b"PK\x03\x04": ("is a zip archive", "unpack it and name the file inside"),
    b"<!DOCTYPE html": ("is a web page, not data", "download the file itself"),
    b"<html": ("is a web page, not data", "download the file itself"),
}
_CELL_KEYS = ("CellID", "obs_names", "cell_names", "cell_id", "barcode")  # of loom files
_GENE_KEYS = ("Gene", "var_names", "gene_names", "gene_name", "Accession", "gene_ids")
GENOME = r"^(GRCh38|hg19|hg38|GRCm38|GRCm39|mm10|mm9)_+"  # what 10x puts before a name
_BLOCK = 4_000_000  # values of a dense table that are held at once


class Unreadable(InputError):
    """A file that is damaged, cut off, or too large to be loaded."""


def read(path: str | Path) -> anndata.AnnData:
    """Read cells from a file, or from the folder of a 10x matrix.

    Args:
        path: An ``.h5ad``, 10x ``.h5`` or ``.loom`` file, a table of text (``.csv``, ``.tsv``,
            ``.txt``, also with ``.gz``; genes or cells in rows), or a folder with ``matrix.mtx``.

    Returns:
        The cells as the file holds them, sparse where the file is text or loom.

    Raises:
        InputError: There is no such file, or it is cut off, damaged, or of another format.
    """
    path = existing(path)
    if path.is_file() and re.search(r"\.mtx(\.gz)?$", path.name):
        path = path.parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `check` tells of repeated names in its own words
        if path.is_dir():
            return _read_folder(path)
        if TEXT.search(path.name):
            return _read_text(path)
        with open_hdf5(path) as file, one_line(path):
            keys = set(file)
            if {"obs", "var"} <= keys:
                cells = anndata.read_h5ad(path)
            elif isinstance(file.get("matrix"), h5py.Dataset):
                cells = _read_loom(file)
            elif holds_10x(file):
                cells = _read_10x(path, file)
            else:
                raise InputError(
                    f"{path}: this HDF5 file holds no AnnData (it has no obs and var); write one "
                    "with cells.write_h5ad() of anndata"
                )
            for matrix in (cells.X, *cells.layers.values(), getattr(cells.raw, "X", None)):
                if scipy.sparse.issparse(matrix):
                    matrix.check_format(full_check=True)  # an index out of range would crash later
    return cells


def open_hdf5(path: str | Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        InputError: There is no such file, it may not be read, is no HDF5, is damaged or cut off.
    """
    path = existing(path)
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name the .h5ad file itself")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check permissions") from error
    if not start:
        raise InputError(f"{path}: not an .h5ad file, it is empty; copy or download it again")
    for signature, (what, remedy) in _SIGNATURES.items():
        if start.lstrip().lower().startswith(signature.lower()):
            raise InputError(f"{path}: not an .h5ad file, it {what}; {remedy}")
    with one_line(path):
        if not h5py.is_hdf5(path):
            raise InputError(
                f"{path}: this is not an .h5ad file; write one with cells.write_h5ad() of anndata"
            )
        return h5py.File(path, "r")


@contextlib.contextmanager
def one_line(path: str | Path) -> Iterator[None]:
    """Turn whatever a reader raises about a file into one clear line.

    Example:
        >>> with one_line("cells.h5ad"):
        ...     raise OSError("bad chunk")
        Traceback (most recent call last):
        cellvq.reading.Unreadable: cells.h5ad: the file is damaged or cut off (bad chunk); ...
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise Unreadable(
            f"{path}: the cells do not fit into memory; save them as .h5ad, which is read in parts"
        ) from error
    except Exception as error:  # readers fail in many ways on a file that was cut off or altered
        reason = (str(error).strip(" \n\"'") or type(error).__name__).splitlines()[0]
        reason = re.sub(r"^[^(]* synchronously [^(]*\(([^:)]*).*", r"\1", reason)  # of HDF5
        raise Unreadable(
            f"{path}: the file is damaged or cut off ({reason[:100]}); copy or download it again"
        ) from error


def holds_10x(file: h5py.File) -> bool:
    """Whether a file is a count matrix of Cell Ranger 3, or 2 (with a group for each genome)."""
    groups = [file[key] for key in file]
    return bool(groups) and all(
        isinstance(group, h5py.Group) and {"barcodes", "data", "indices", "indptr"} <= set(group)
        for group in groups
    )


def looks_like_genes(names: Sequence[str]) -> float:
    """Score how much some names look like genes; below zero they look like barcodes of cells.

    Example:
        >>> looks_like_genes(["Actb", "Gapdh", "Xyz"]) > 0 > looks_like_genes(["ACGTACGTACGT-1"])
        True
    """
    names = pd.Index(names).astype(str).str.replace(GENOME, "", regex=True)
    known = names.str.upper().isin(LANDMARKS).sum() + names.str.upper().str.startswith("MT-").sum()
    share = names.str.match(r"ENS[A-Z]*G\d{6,}").mean() - names.str.match(r"[ACGTN]{8,}").mean()
    return float(known + share * len(LANDMARKS)) if len(names) else 0.0


def _read_folder(folder: Path) -> anndata.AnnData:
    """Read the folder of a 10x matrix: of any version, packed or not, with or without a prefix."""
    matrices = sorted(folder.glob("*matrix.mtx*"))
    if len(matrices) != 1:
        raise InputError(
            f"{folder}: this is a folder with {len(matrices) or 'no'} matrix.mtx of 10x; name the "
            "folder of one of them, or the .h5ad file itself (a corpus is for cellvq pretrain)"
        )
    prefix = matrices[0].name.partition("matrix.mtx")[0]
    with one_line(matrices[0]):
        matrix = scipy.io.mmread(matrices[0])
        if not scipy.sparse.issparse(matrix):
            raise ValueError("not a matrix of coordinates")
    features = _names_file(folder, prefix, ("features.tsv", "genes.tsv"))
    barcodes = _names_file(folder, prefix, ("barcodes.tsv",))
    if matrix.shape != (len(features), len(barcodes)):
        raise InputError(
            f"{folder}: the matrix has {matrix.shape[0]:,} genes x {matrix.shape[1]:,} cells, but "
            f"{len(features):,} features and {len(barcodes):,} barcodes are named; take the three "
            "files of one run"
        )
    var = pd.DataFrame({"gene_ids": features[0].to_numpy()},
                       index=features[min(1, features.shape[1] - 1)].to_numpy())
    cells = anndata.AnnData(matrix.T.tocsr(), obs=pd.DataFrame(index=barcodes[0].to_numpy()),
                            var=var)
    if features.shape[1] > 2:  # antibodies and guides stand in the same matrix
        cells = cells[:, (features[2] == "Gene Expression").to_numpy()].copy()
    return cells


def _names_file(folder: Path, prefix: str, names: tuple[str, ...]) -> pd.DataFrame:
    """Read one of the tables beside a 10x matrix."""
    places = [folder / f"{prefix}{name}{packed}" for name in names for packed in ("", ".gz")]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise InputError(
            f"{folder}: there is no {prefix}{names[0]} beside the matrix; copy the whole folder"
        )
    with one_line(path):
        return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False,
                           quoting=csv.QUOTE_NONE)


def _read_10x(path: Path, file: h5py.File) -> anndata.AnnData:
    """Read an HDF5 matrix of 10x; of an old one, the genomes stand side by side."""
    import scanpy

    if "matrix" in file:
        return scanpy.read_10x_h5(path)
    genomes = [scanpy.read_10x_h5(path, genome=genome) for genome in file]
    return anndata.concat(genomes, axis="var") if len(genomes) > 1 else genomes[0]


def _read_loom(file: h5py.File) -> anndata.AnnData:
    """Read a loom file, whose matrix holds genes in rows."""
    obs, var = (_loom_table(file, group, keys) for group, keys in (
        ("col_attrs", _CELL_KEYS), ("row_attrs", _GENE_KEYS)))
    layers = {key: _by_blocks(file["layers"][key]).T.tocsr()
              for key in file.get("layers", ()) if key == "counts"}
    return anndata.AnnData(_by_blocks(file["matrix"]).T.tocsr(), obs=obs, var=var, layers=layers)


def _loom_table(file: h5py.File, group: str, keys: tuple[str, ...]) -> pd.DataFrame:
    """Read the names and the columns of one side of a loom file."""
    columns = {}
    for key, column in file[group].items():
        if isinstance(column, h5py.Dataset) and column.ndim == 1:
            is_text = h5py.check_string_dtype(column.dtype)
            columns[key] = column.asstr(errors="replace")[:] if is_text else column[:]
    length = file["matrix"].shape[group == "col_attrs"]
    if any(len(column) != length for column in columns.values()):
        raise ValueError(f"{group} do not fit the matrix")
    table = pd.DataFrame(columns, index=range(length))
    name = next((key for key in keys if key in columns), None)
    if name is None and group == "row_attrs":
        raise ValueError("no attribute names the genes")
    return table.set_index(table.index.astype(str) if name is None else table[name].astype(str))


def _by_blocks(matrix: h5py.Dataset) -> scipy.sparse.csr_matrix:
    """Read a dense matrix in blocks of rows, keeping only what is not zero."""
    if matrix.dtype.kind not in "biuf":
        raise ValueError("the matrix holds no numbers")
    chunk = matrix.chunks[0] if matrix.chunks else 1
    rows = max(_BLOCK // max(matrix.shape[1], 1) // chunk, 1) * chunk
    blocks = [scipy.sparse.csr_matrix(matrix[first : first + rows])
              for first in range(0, matrix.shape[0], rows)]
    return scipy.sparse.vstack(blocks, format="csr")


def _read_text(path: Path) -> anndata.AnnData:
    """Read a table of text in blocks; the names tell whether genes stand in rows or in columns."""
    with one_line(path):
        with path.open("rb") as file:
            start = file.read(2)
        opener = gzip.open if start == b"\x1f\x8b" else open
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            first = file.readline()
            mark = max("\t,; ", key=first.count)
            header = next(csv.reader([first], delimiter=mark), [])
            try:
                if len(header) < 2 or "\0" in first:
                    raise ValueError("its first line is no list of names in UTF-8")
                blocks = pd.read_csv(file, sep=mark, header=None, index_col=0,
                                     chunksize=max(_BLOCK // len(header), 1))
                tables = [(block.index.astype(str), _numbers(path, block)) for block in blocks]
            except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                reason = str(error).strip().rpartition("error: ")[2] if first else "it is empty"
                raise InputError(
                    f"{path}: not a table ({reason}); give a line of names, and then lines of a "
                    "name and numbers"
                ) from error
    rows = list(chain.from_iterable(names for names, _ in tables))
    matrix = scipy.sparse.vstack([numbers for _, numbers in tables], format="csr")
    columns = header[len(header) - matrix.shape[1]:]
    if len(columns) != matrix.shape[1] or len(header) > matrix.shape[1] + 1:
        raise InputError(
            f"{path}: the first line has {len(header):,} names but the others {matrix.shape[1]:,} "
            "numbers; give each column one name"
        )
    by_rows, by_columns = looks_like_genes(rows), looks_like_genes(columns)
    stands = "genes in rows" if by_rows > by_columns else "genes in columns"
    if by_rows > by_columns:
        rows, columns, matrix = columns, rows, matrix.T.tocsr()
    cells = anndata.AnnData(matrix, obs=pd.DataFrame(index=rows), var=pd.DataFrame(index=columns))
    cells.uns["cellvq_table"] = stands if by_rows != by_columns else f"{stands}, as a guess"
    return cells


def _numbers(path: Path, block: pd.DataFrame) -> scipy.sparse.csr_matrix:
    """Take the numbers of a block of lines, each of which must be there."""
    for name in block.columns[[kind.kind not in "iuf" for kind in block.dtypes]]:
        numbers = pd.to_numeric(block[name], errors="coerce")
        row = numbers.isna().to_numpy().argmax()
        raise InputError(
            f"{path}: {str(block[name].iloc[row])[:40]!r} stands in the line of "
            f"{block.index[row]} where a number should; keep one line and one column of names"
        )
    missing = block.isna().to_numpy().any(axis=1)
    if missing.any():
        raise InputError(
            f"{path}: the line of {block.index[missing.argmax()]} is too short or has an empty "
            "place; write a number into every place, 0 where nothing was counted"
        )
    return scipy.sparse.csr_matrix(block.to_numpy(dtype=np.float32))


def existing(path: str | Path) -> Path:
    """Tell a path at which there is a file or a folder; whether it may be read is seen later.

    Raises:
        InputError: There is nothing, or neither file nor folder.
    """
    path = Path(path).expanduser()
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        what = "the link leads nowhere" if path.is_symlink() else "there is no such file"
        raise InputError(f"{path}: {what}; check the spelling and the folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check permissions") from error
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{path}: this is no ordinary file; name the .h5ad file itself")
    return path
