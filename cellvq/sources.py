"""Where cells lie, in memory or in a file: one protocol to read any rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, counts, genes, reading
from cellvq.files import File, flat, is_streamable, one_part


class Source(Protocol):
    """Cells that lie somewhere; every room that streams asks for no more than this."""

    name: str
    """Name of the file or the data set."""
    var: pd.DataFrame
    """The genes; the index holds their names, [genes]."""
    columns: list[str]
    """Names of the columns of ``obs``."""
    block: int
    """Rows that are cheap to read together."""

    def __len__(self) -> int:
        """Return the number of cells."""

    def names(self) -> np.ndarray:
        """Return the names of the cells, [cells]."""

    def column(self, name: str) -> pd.Series:
        """Return one column of ``obs``, [cells]."""

    def expressed(self) -> np.ndarray:
        """Return how many values are stored of each cell, [cells]; 0 is an empty cell."""

    def known_depth(self) -> np.ndarray | None:
        """Return each cell's UMI counts over all genes where a column of ``obs`` knows them."""

    def read(self, rows: Sequence[range]) -> csr_matrix:
        """Return the UMI counts of ranges of rows, one after the other, float32 [cells, genes]."""

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each cell's part [cells] and which genes each part measured [parts, genes]."""


class Memory:
    """Cells that are in memory already.

    Args:
        cells: the cells; their counts are found as `counts.find_counts` does.
        name: a name for messages; by default that in ``uns["dataset"]``.

    Raises:
        InputError: there are no raw counts.

    Example:
        >>> source = Memory(anndata.AnnData(np.eye(3, dtype="float32") * 4))
        >>> source.read([range(2, 3), range(0, 1)]).toarray().tolist()
        [[0.0, 0.0, 4.0], [4.0, 0.0, 0.0]]
    """

    block = 1

    def __init__(self, cells: anndata.AnnData, name: str | None = None) -> None:
        self.name = name or str(cells.uns.get("dataset", "these cells"))
        try:
            self.counts, self.counts_in = counts.find_counts(cells)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        self.cells, self.var = cells, cells.var
        self.columns = [str(column) for column in cells.obs.columns]

    def __len__(self) -> int:
        return self.cells.n_obs

    def names(self) -> np.ndarray:
        """Return the names of the cells, [cells]."""
        return self.cells.obs_names.to_numpy()

    def column(self, name: str) -> pd.Series:
        """Return one column of ``obs``, [cells]."""
        return self.cells.obs[name]

    def expressed(self) -> np.ndarray:
        """Return how many genes each cell expresses, [cells]."""
        return np.diff(self.counts.indptr)

    def known_depth(self) -> np.ndarray | None:
        """Return each cell's UMI counts over all genes, [cells]."""
        return counts.sequencing_depth(self.cells, self.counts)

    def read(self, rows: Sequence[range]) -> csr_matrix:
        """Return the UMI counts of ranges of rows, one after the other, float32 [cells, genes]."""
        if len(rows) == 1:
            return self.counts[rows[0].start : rows[0].stop]
        return self.counts[flat(rows)]

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return that all genes were measured in every cell."""
        return one_part(self)


def open_source(cells: anndata.AnnData | str | Path) -> Source:
    """Open cells wherever they lie: files that can be streamed are, others are loaded.

    Args:
        cells: the cells, or the path of their file.

    Raises:
        InputError: they cannot be read, or hold no raw counts.
    """
    if isinstance(cells, anndata.AnnData):
        return Memory(cells)
    path = Path(cells).expanduser()
    return File(path) if is_streamable(path) else Memory(reading.read(path), path.stem)


def rename_genes(
    source: Source,
    panel: Sequence[str] | None = None,
    table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Let a source go by other names of its genes, as `genes.match` finds them.

    Args:
        source: the cells; its ``var`` is replaced, its file and its cells stay as they are.
        panel: gene names wanted; by default all approved symbols of the table.
        table: approved symbols, aliases and previous symbols; see `genes.match`.
        orthologs: one-to-one orthologs, for cells of another species.

    Returns:
        One row a gene: its name, the gene it means, how that was found, and the outcome.

    Raises:
        InputError: no gene is known.
    """
    try:
        _, found = genes.rename(anndata.AnnData(var=source.var), panel, table, orthologs)
    except InputError as error:
        raise InputError(f"{source.name}: {error}") from None
    source.var = pd.DataFrame(index=found["gene"].where(found["gene"] != "", found["name"]))
    return found
