"""Files of cells that are read in blocks of rows, and never as a whole."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, counts, reading

BLOCK = 64
"""Rows of a file that are read together; fewer cost more seeks, more make neighbours stay so."""
SAMPLED_BLOCKS = 16
"""Blocks that are looked at, evenly over a file, to find out where its counts are."""


class File:
    """Cells in an ``.h5ad`` or 10x ``.h5`` file, of which only the rows asked for are read.

    Args:
        path: the file; its matrix must be stored by rows, dense or sparse (CSR).

    Raises:
        InputError: the file is damaged, holds no raw counts, or is not stored by rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.h5ad"
        >>> cells = anndata.AnnData(csr_matrix(np.eye(3, dtype="float32") * 4))
        >>> cells.write_h5ad(path)
        >>> File(path).read([range(2, 3), range(0, 1)]).toarray().tolist()
        [[0.0, 0.0, 4.0], [4.0, 0.0, 0.0]]
    """

    block = BLOCK

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.name = self.path.stem
        self.file = reading.open_hdf5(self.path)
        self._recovers = False
        with reading.one_line(self.path):
            self._open()

    def _open(self) -> None:
        """Find the table of genes, the columns of ``obs`` and the places where counts may be."""
        if "matrix" in self.file:  # of 10x Genomics
            self.columns, group = [], self.file["matrix"]
            features = group["features"]
            kinds = features["feature_type"].asstr()[:]
            self._genes = np.flatnonzero(kinds == "Gene Expression")  # others are proteins, guides
            self._features, self.cells = len(kinds), len(group["barcodes"])
            self.var = pd.DataFrame({"gene_ids": features["id"].asstr()[:]},
                                    index=features["name"].asstr()[:]).iloc[self._genes]
            self._matrices = {"X": group}
        else:
            obs = self.file["obs"]
            self.columns = [str(column) for column in obs.attrs["column-order"]]
            self.var = anndata.io.read_elem(self.file["var"])
            self.cells, self._features = len(obs[obs.attrs["_index"]]), len(self.var)
            self._genes = np.arange(self._features)
            there = {'layers["counts"]': "layers/counts", "X": "X", "raw.X": "raw/X"}
            self._matrices = {place: self.file[key] for place, key in there.items()
                              if key in self.file}
            if "raw.X" in self._matrices and len(self._names_of("raw/var")) != len(self.var):
                del self._matrices["raw.X"]
        for place, matrix in self._matrices.items():
            if not _is_by_rows(matrix):
                raise InputError(f"{self.path}: {place} is not stored by rows; load it, and write "
                                 "it again with cells.X = cells.X.tocsr()")
            self._starts(place)

    @property
    def places(self) -> list[str]:
        """Name the places where counts may be, the most explicit first."""
        return list(self._matrices)

    @functools.cached_property
    def counts_in(self) -> str:
        """Name the first place whose values are counts, as far as blocks all over the file tell."""
        if not len(self) or not len(self.var):
            raise InputError(f"{self.path}: the matrix is empty, {len(self)} cells x "
                             f"{len(self.var)} genes; check the filters that made it")
        last = max(len(self) - self.block, 0)
        firsts = np.unique(np.linspace(0, last, SAMPLED_BLOCKS, dtype=int))
        sample = [range(first, min(first + self.block, len(self))) for first in firsts]
        problems = []
        for place in self.places:
            if (problem := counts.problem_of(self.values(place, sample))) is None:
                return place
            problems.append(f"{place} {problem}")
        columns = [name for name in counts.DEPTH_COLUMNS if name in self.columns]
        depths = counts.known_depths(pd.DataFrame({name: self.column(name) for name in columns}))
        for place in self.places:
            values = self.values(place, sample)
            for depth in (None, *depths.values()):
                here = None if depth is None else depth[flat(sample)]
                recovered, way = counts.undo(values, here)
                if recovered is not None:
                    self._recovers, self._depth = True, depth
                    return f"{place} ({way})"
        raise InputError(
            f"{self.path}: no raw counts: {', '.join(problems) or 'X is missing'}; put the UMI "
            'counts from before normalisation into layers["counts"]'
        )

    @property
    def _place(self) -> str:
        """Name the place that ``counts_in`` speaks of."""
        return next(place for place in self.places if self.counts_in.startswith(place))

    def __len__(self) -> int:
        return self.cells

    def names(self) -> np.ndarray:
        """Return the names of the cells, [cells]."""
        if "matrix" in self.file:
            return self.file["matrix/barcodes"].asstr()[:]
        return self._names_of("obs")

    def column(self, name: str) -> pd.Series:
        """Return one column of ``obs``, [cells]."""
        stored = self.file["obs"][name]
        values = anndata.io.read_elem(stored)
        if "categories" in stored.attrs:  # of anndata 0.7
            words = anndata.io.read_elem(self.file[stored.attrs["categories"]])
            values = pd.Categorical.from_codes(values, words)
        return pd.Series(values)

    def expressed(self) -> np.ndarray:
        """Return how many values are stored of each cell, [cells]; 0 is an empty cell."""
        if (starts := self._starts(self._place)) is not None:
            return np.diff(starts)
        matrix = self._matrices[self._place]
        parts = (matrix[first : first + 1024] for first in range(0, len(self), 1024))
        return np.concatenate([np.count_nonzero(part, axis=1) for part in parts])

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def known_depth(self) -> np.ndarray | None:
        """Return each cell's UMI counts over all genes where a column of ``obs`` knows them."""
        for name in (name for name in counts.DEPTH_COLUMNS if name in self.columns):
            column = self.column(name)
            if pd.api.types.is_numeric_dtype(column):
                depth = column.to_numpy(dtype=np.float64, na_value=np.nan)
                some = min(len(self), self.block)
                sums = np.asarray(self.read([range(some)]).sum(1)).ravel()
                if np.ptp(depth) > 0 and (depth == np.rint(depth)).all() and (
                        depth[:some] >= sums).all():
                    return depth.astype(np.float32)
        return None

    def read(self, rows: Sequence[range]) -> csr_matrix:
        """Return the UMI counts of ranges of rows, one after the other, float32 [cells, genes].

        Raises:
            InputError: some of them are no counts, or the file is damaged there.
        """
        values = self.values(self._place, rows)
        if self._recovers:
            depth = None if self._depth is None else self._depth[flat(rows)]
            found, problem = counts.recover(values, depth), "holds values that give no whole counts"
        else:
            found, problem = values, counts.problem_of(values) if values.nnz else None
            problem = None if problem == "is all zero" else problem
        if found is None or (problem and not self._recovers):
            raise InputError(
                f"{self.path}: {self._place} {problem}, somewhere in rows {rows[0].start:,} to "
                f'{rows[-1].stop:,}; put raw UMI counts into layers["counts"]'
            )
        return csr_matrix(found, dtype=np.float32)

    def values(self, place: str, rows: Sequence[range]) -> csr_matrix:
        """Return what lies in a place as it is, of ranges of rows, [cells, genes].

        Args:
            place: one of ``places``.
            rows: ranges of rows; the result has them one after the other.
        """
        with reading.one_line(self.path):
            matrix, starts = self._matrices[place], self._starts(place)
            if starts is None:
                dense = [matrix[part.start : part.stop] for part in rows]
                return csr_matrix(np.concatenate(dense))
            return self._sparse_rows(matrix, starts, rows)

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return that all genes were measured in every cell."""
        return one_part(self)

    def _sparse_rows(self, matrix, starts: np.ndarray, rows: Sequence[range]) -> csr_matrix:
        """Read ranges of rows of a sparse matrix in the order in which they lie on the disk."""
        rows_flat = flat(rows)
        lengths = np.diff(starts)[rows_flat]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        values = np.empty(ends[-1], matrix["data"].dtype)
        genes = np.empty(ends[-1], np.int32)
        sizes = np.concatenate([[0], np.cumsum([len(part) for part in rows])])
        for number in np.argsort([part.start for part in rows], kind="stable"):
            part = rows[number]
            here = slice(ends[sizes[number]], ends[sizes[number + 1]])
            there = slice(int(starts[part.start]), int(starts[part.stop]))
            numbers = matrix["indices"][there]  # perhaps of 64 bits
            if len(numbers) and not (0 <= numbers.min() and numbers.max() < self._features):
                raise ValueError("a gene's number is out of range")
            values[here], genes[here] = matrix["data"][there], numbers
        found = csr_matrix((values, genes, ends), shape=(len(rows_flat), self._features))
        found.sum_duplicates()  # also puts each row's genes in order
        return found if len(self._genes) == self._features else found[:, self._genes]

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def _starts(self, place: str) -> np.ndarray | None:
        """Read where each row of a sparse matrix begins, [cells + 1]; None for a dense one."""
        matrix = self._matrices[place]
        if isinstance(matrix, h5py.Dataset):
            if matrix.shape != (len(self), self._features):
                raise ValueError(f"{place} has the shape {matrix.shape}")
            return None
        shape = matrix.attrs.get("shape", matrix.attrs.get("h5sparse_shape"))
        shape = matrix["shape"][:][::-1] if shape is None else shape
        if tuple(shape) != (len(self), self._features):
            raise ValueError(f"{place} has the shape {tuple(map(int, shape))}")
        starts = matrix["indptr"][:].astype(np.int64)
        stored = len(matrix["data"]), len(matrix["indices"])
        if len(starts) != len(self) + 1 or starts[0] or (np.diff(starts) < 0).any() or (
                stored != (starts[-1], starts[-1])):
            raise ValueError(f"the rows of {place} do not fit its values")
        return starts

    def _names_of(self, table: str) -> np.ndarray:
        """Read the index of a table, as text."""
        group = self.file[table]
        return np.asarray(anndata.io.read_elem(group[group.attrs["_index"]])).astype(str)


def is_streamable(path: str | Path) -> bool:
    """Whether a file holds its cells row by row, so that blocks of them can be read.

    Raises:
        InputError: it is no file, or damaged.
    """
    path = reading.existing(path)
    if path.is_dir() or path.suffix not in (".h5ad", ".h5"):
        return False
    with reading.open_hdf5(path) as file, reading.one_line(path):
        if "matrix" in file:
            return "features" in file["matrix"]
        is_table = all(isinstance(file.get(table), h5py.Group) for table in ("obs", "var"))
        matrices = [file[key] for key in ("layers/counts", "X", "raw/X") if key in file]
        return is_table and bool(matrices) and all(map(_is_by_rows, matrices))


def _is_by_rows(matrix) -> bool:
    """Whether a matrix in HDF5 is dense, or sparse and stored by rows."""
    if isinstance(matrix, h5py.Dataset):
        return matrix.ndim == 2 and matrix.dtype.kind in "biuf"
    by_columns = "csc_matrix" in (matrix.attrs.get("encoding-type"),
                                  f"{matrix.attrs.get('h5sparse_format')}_matrix")
    return {"data", "indices", "indptr"} <= set(matrix) and not by_columns


def flat(rows: Sequence[range]) -> np.ndarray:
    """Return the rows of some ranges, one after the other."""
    return np.concatenate([np.arange(part.start, part.stop) for part in rows] or [[]]).astype(int)


def one_part(source) -> tuple[np.ndarray, np.ndarray]:
    """Say that all genes were measured in every cell; see `sources.Source.parts`."""
    return np.zeros(len(source), np.int16), np.ones((1, len(source.var)), bool)
