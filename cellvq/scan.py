"""One pass over cells, block after block: what ``check`` must know of all values, and no more.

A file that can be streamed is never in memory as a whole, so that its size does not matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, counts, reading, sources
from cellvq.reading import GENOME

BLOCK_VALUES = 3_000_000  # of a block, other than zero, about
BLOCK_CELLS = 8192  # of a block at most
MITOCHONDRIAL = r"(?i:^mt[-.])"


@dataclass(frozen=True)
class Table:
    """The cells without their matrix: what they are called, and the columns of ``obs``."""

    name: str
    note: str  # what the reader had to decide, or empty
    var: pd.DataFrame
    obs_names: pd.Index
    columns: list[str]
    of: anndata.AnnData | sources.File

    def column(self, name: str) -> pd.Series:
        """Return one column of ``obs``."""
        if isinstance(self.of, anndata.AnnData):
            return self.of.obs[name]
        with reading.one_line(self.of.path):
            values = self.of.column(name)
            if len(values) != len(self.obs_names):
                raise ValueError(f"obs column {name} has {len(values):,} values")
            return values


@dataclass(frozen=True)
class Scan:
    """What one pass found out about the counts."""

    counts_in: str
    """Where the raw counts are."""
    depth: np.ndarray
    """UMI counts of each cell over the genes of the file, [cells]."""
    expressed: np.ndarray
    """Genes that each cell expresses, [cells]."""
    mitochondrial: np.ndarray | None
    """Share of each cell's counts in mitochondrial genes, [cells]; None without such genes."""
    cells_of_gene: np.ndarray
    """Cells that express each gene, [genes]."""
    largest: float
    """The largest count."""
    identical: int
    """Cells whose counts are, gene by gene, those of a cell before them."""


def open_table(cells: anndata.AnnData | str | Path) -> Table:
    """Open cells without reading their matrix, where the format allows it.

    Raises:
        InputError: the path cannot be read.

    Example:
        >>> open_table(anndata.AnnData(np.eye(2, dtype="float32"))).obs_names.tolist()
        ['0', '1']
    """
    name = "cells"
    if not isinstance(cells, anndata.AnnData):
        path = reading.existing(cells)
        name = path.name
        with reading.one_line(path):
            if sources.is_streamable(path):
                file = sources.File(path)
                names = pd.Index(file.names()).astype(str)
                return Table(name, "", file.var, names, file.columns, file)
        cells = reading.read(path)
    name = str(cells.uns.get("dataset", name))
    note = str(cells.uns.get("cellvq_table", ""))
    columns = [str(column) for column in cells.obs.columns]
    return Table(name, note, cells.var, cells.obs_names.astype(str), columns, cells)


def scan(table: Table) -> Scan:
    """Go through all counts once.

    Raises:
        InputError: there are no raw counts, or not everywhere; or the file is damaged.

    Example:
        >>> cells = anndata.AnnData(np.array([[0, 3], [1, 4], [0, 3]], dtype="float32"))
        >>> found = scan(open_table(cells))
        >>> found.depth.tolist(), found.cells_of_gene.tolist(), found.counts_in
        ([3.0, 5.0, 3.0], [1, 3], 'X')
    """
    names = pd.Index(table.var.index).astype(str).str.replace(GENOME, "", regex=True)
    mitochondrial = names.str.contains(MITOCHONDRIAL)
    # Of each cell three sums: of all counts, of mitochondrial ones, and one that tells cells apart.
    weights = np.stack([
        np.ones(len(names)), mitochondrial, np.random.default_rng(0).random(len(names))
    ], axis=1)
    counts_in, blocks = _blocks(table)
    sums, expressed, cells_of_gene = [], [], np.zeros(len(names), dtype=np.int64)
    largest = 0.0
    for block in blocks:
        sums.append(block @ weights)
        block.eliminate_zeros()
        cells_of_gene += np.bincount(block.indices, minlength=len(names))
        expressed.append(np.diff(block.indptr))
        largest = max(largest, float(block.data.max(initial=0)))
    sums, expressed = np.concatenate(sums), np.concatenate(expressed)
    if not expressed.any():
        raise InputError("no raw counts: all values are zero; check the filters that made the file")
    telling = sums[expressed >= counts.LEAST_GENES]
    return Scan(
        counts_in, sums[:, 0], expressed,
        sums[:, 1] / np.maximum(sums[:, 0], 1) if mitochondrial.any() else None,
        cells_of_gene, largest, len(telling) - len(np.unique(telling, axis=0)),
    )


def _blocks(table: Table) -> tuple[str, Iterator[csr_matrix]]:
    """Find where the counts are, and give them block after block."""
    if isinstance(table.of, anndata.AnnData):
        matrix, counts_in = counts.find_counts(table.of)
        starts = range(0, matrix.shape[0], BLOCK_CELLS)
        return counts_in, (matrix[start : start + BLOCK_CELLS] for start in starts)
    file = table.of
    cells = len(file)
    counts_in = file.counts_in
    size = int(np.clip(BLOCK_VALUES * cells / max(file.expressed().sum(), 1), 64, BLOCK_CELLS))
    return counts_in, (
        file.read([range(start, min(start + size, cells))]) for start in range(0, cells, size)
    )
