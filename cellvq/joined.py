"""Several sources as one, each brought into the gene order of one panel as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
from scipy.sparse import csr_matrix

from cellvq import InputError, counts
from cellvq.sources import Source


class Rows(NamedTuple):
    """Some cells of a corpus."""

    counts: csr_matrix
    """UMI counts of the panel, [cells, panel]."""
    depth: np.ndarray
    """Total UMI counts over all genes measured, [cells]."""
    cells: np.ndarray
    """Number of each cell in the corpus, [cells]."""


def join(pieces: Sequence[tuple[Rows, int, int]]) -> Rows:
    """Put neighbouring rows of several tables one after the other.

    Args:
        pieces: of each, the table, its first row and the row after its last.
    """
    if len(pieces) == 1 and pieces[0][2] - pieces[0][1] == len(pieces[0][0].depth):
        return pieces[0][0]
    values, genes, lengths, depth, cells = [], [], [[0]], [], []
    for rows, begin, end in pieces:
        starts = rows.counts.indptr[begin : end + 1]
        values.append(rows.counts.data[starts[0] : starts[-1]])
        genes.append(rows.counts.indices[starts[0] : starts[-1]])
        lengths.append(np.diff(starts))
        depth.append(rows.depth[begin:end])
        cells.append(rows.cells[begin:end])
    ends = np.concatenate(lengths).cumsum()
    counts = csr_matrix((np.concatenate(values), np.concatenate(genes), ends),
                        shape=(len(ends) - 1, pieces[0][0].counts.shape[1]))
    return Rows(counts, np.concatenate(depth), np.concatenate(cells))


class Joined:
    """Several sources as one, each brought into the gene order of one panel as it is read.

    Args:
        sources: where the cells lie.
        panel: the gene names wanted; a gene that a source did not measure counts as zero there, and
            ``measured`` knows.

    Raises:
        InputError: a source has none of the genes.

    Example:
        >>> from cellvq.sources import Memory
        >>> one = anndata.AnnData(np.ones((2, 2), "f4"), var=pd.DataFrame(index=["A", "B"]))
        >>> two = anndata.AnnData(np.full((1, 2), 5, "f4"), var=pd.DataFrame(index=["C", "B"]))
        >>> joined = Joined([Memory(one), Memory(two)], panel=["B", "C"])
        >>> joined.read([range(1, 3)]).counts.toarray().tolist()
        [[1.0, 0.0], [5.0, 5.0]]
        >>> joined.measured.tolist()
        [[True, False], [True, True]]
    """

    def __init__(self, sources: Sequence[Source], panel: Sequence[str]) -> None:
        self.sources, self.panel = list(sources), list(panel)
        self.starts = np.concatenate([[0], np.cumsum([len(source) for source in sources])])
        self._into_panel = [into_panel(source, self.panel) for source in sources]
        parts, measured, first = [], [], 0
        for source, (place, _) in zip(self.sources, self._into_panel, strict=True):
            part, masks = source.parts()
            parts.append(part + first)
            first += len(masks)
            here = np.zeros((len(masks), len(self.panel) + 1), bool)
            here[:, place] = masks  # genes outside the panel fall into the last column
            measured.append(here[:, :-1])
        self.part = np.concatenate(parts).astype(np.int16)
        """Part (source, or data set within one) of each cell, [cells]."""
        self.measured = np.concatenate(measured)
        """Which genes of the panel each part measured, [parts, panel]."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str, *, everywhere: bool = True) -> pd.Categorical:
        """Return one column of ``obs`` as text, missing where empty, [cells].

        Args:
            name: the column.
            everywhere: whether every source must have it.

        Raises:
            InputError: a source, or every source, lacks it.
        """
        lacking = [source for source in self.sources if name not in source.columns]
        if len(lacking) == len(self.sources) or (lacking and everywhere):
            there = ", ".join(lacking[0].columns[:20]) or "none"
            where = f"{lacking[0].name}: " if len(self.sources) > 1 else ""
            raise InputError(f"{where}no column {name!r} in obs; there are: {there}")
        columns = [
            as_text(source.column(name)) if name in source.columns
            else pd.Categorical([None] * len(source), categories=[])
            for source in self.sources
        ]
        return pd.api.types.union_categoricals(columns, sort_categories=True)

    def inside(self, number: int) -> np.ndarray:
        """Say which genes of a source are in the panel, 1.0 or 0.0, [genes of the source]."""
        return (self._into_panel[number][0] < len(self.panel)).astype(np.float32)

    def read(self, rows: Sequence[range]) -> Rows:
        """Read ranges of rows, one after the other; a range may cross from one source to another.

        Args:
            rows: ranges of cells of the corpus.
        """
        pieces = [piece for part in rows for piece in self._pieces(part)]
        read = [None] * len(pieces)
        for number in sorted({number for number, _ in pieces}):
            mine = [place for place, (owner, _) in enumerate(pieces) if owner == number]
            found = self._read(number, [pieces[place][1] for place in mine])
            edges = np.cumsum([0] + [len(pieces[place][1]) for place in mine])
            for place, first, last in zip(mine, edges[:-1], edges[1:], strict=True):
                read[place] = found, first, last
        cells = np.concatenate([np.arange(part.start, part.stop) for part in rows])
        return join(read)._replace(cells=cells)

    def _pieces(self, rows: range) -> list[tuple[int, range]]:
        """Cut a range of cells at the borders of the sources."""
        owner = int(np.searchsorted(self.starts, rows.start, side="right")) - 1
        pieces, start = [], rows.start
        while start < rows.stop:
            stop = min(rows.stop, int(self.starts[owner + 1]))
            first = int(self.starts[owner])
            pieces.append((owner, range(start - first, stop - first)))
            start, owner = stop, owner + 1
        return [piece for piece in pieces if len(piece[1])]

    def _read(self, number: int, rows: list[range]) -> Rows:
        """Read rows of one source and bring them into the order of the panel."""
        source, (place, is_one_to_one) = self.sources[number], self._into_panel[number]
        raw, depth = read_with_depth(source, rows)
        if np.array_equal(place, np.arange(len(self.panel))):
            return Rows(raw, depth, np.zeros(len(depth), int))
        genes = place[raw.indices]
        inside = genes < len(self.panel)
        ends = np.concatenate([[0], np.cumsum(inside)])[raw.indptr]
        aligned = csr_matrix((raw.data[inside], genes[inside], ends),
                             shape=(raw.shape[0], len(self.panel)))
        aligned.sort_indices()
        if not is_one_to_one:
            aligned.sum_duplicates()
        return Rows(aligned, depth, np.zeros(len(depth), int))


def read_with_depth(source: Source, rows: Sequence[range]) -> tuple[csr_matrix, np.ndarray]:
    """Read rows of a source: UMI counts [cells, genes], and over all genes measured [cells]."""
    raw = source.read(rows)
    depth = np.asarray(raw.sum(1), np.float64).ravel()
    if (known := source.known_depth()) is not None:
        of_rows = np.concatenate([known[part.start : part.stop] for part in rows])
        depth = np.maximum(depth, of_rows)
    return raw, depth


def into_panel(source: Source, panel: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Find the place of each gene of a source in a panel, [genes], the panel's size if outside.

    Args:
        source: the cells; their gene names or a column of ``var``, whichever matches most.
        panel: the gene names wanted.

    Returns:
        The places, and whether no two genes share one.

    Raises:
        InputError: no gene matches.
    """
    genes = len(source.var)
    each = scipy.sparse.identity(genes, format="csr", dtype=np.float32)
    try:
        chooser, _ = counts.align(anndata.AnnData(each, var=source.var), each, panel)
    except InputError as error:
        raise InputError(f"{source.name}: {error}") from None
    place = np.full(genes, len(panel), np.int32)
    place[np.diff(chooser.indptr) > 0] = chooser.indices
    inside = place[place < len(panel)]
    return place, len(np.unique(inside)) == len(inside)


def as_text(values: pd.Series) -> pd.Categorical:
    """Make a column text, missing where it is empty; by its categories, not by its cells.

    Example:
        >>> as_text(pd.Series(["B", "", None, "NK"])).codes.tolist()
        [0, -1, -1, 1]
    """
    values = pd.Categorical(values)
    names = values.categories.astype(str)
    known = np.append(names.str.strip() != "", False)
    codes, kept = np.unique(names[known[:-1]], return_inverse=True)[::-1]
    new = np.full(len(names) + 1, -1)
    new[np.flatnonzero(known)] = codes
    return pd.Categorical.from_codes(new[values.codes], categories=kept)
