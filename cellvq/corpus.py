"""Files of cells -> what a training run sees: panel, batches, validation cells, and its steps."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from cellvq import InputError, datasets, joined, loader, panels, shards, sources
from cellvq.config import TrainingConfig
from cellvq.joined import Joined
from cellvq.sources import Source
from cellvq.stream import Stream

IN_MEMORY = 400_000_000
"""Values other than zero (5 GB) up to which a corpus is held in memory and not streamed."""
SAMPLE = 50_000
"""Training cells of a streamed corpus that are held in memory, to start the model on."""
VALIDATED = 4096
"""Validation cells of a streamed corpus that are held in memory, to score the model on."""
MOST_HELD_OUT = 20_000
"""Cells kept for validation where no donor is named, at the most."""


class Cells(NamedTuple):
    """Some cells, as `loader.make_batch` takes them."""

    counts: csr_matrix
    """UMI counts of the panel, [cells, panel]."""
    depth: np.ndarray
    """Total UMI counts over all genes measured, [cells]."""
    batch: np.ndarray
    """Index of the batch, -1 where it is unknown, [cells]."""
    properties: np.ndarray
    """Index of each cell's label in each property, -1 where it is missing, [cells, properties]."""
    measured: np.ndarray | None
    """Which genes were measured in each cell, [cells, panel]; None for all in all."""

    def cut(self, begin: int, end: int) -> Cells:
        """Return neighbouring cells."""
        return Cells(*(None if part is None else part[begin:end] for part in self))


@dataclasses.dataclass
class Corpus:
    """The cells of a run: in memory, or streamed with a sample of them in memory."""

    counts: csr_matrix
    """UMI counts of the panel, of the cells in memory, [cells, panel]."""
    depth: np.ndarray
    """Total UMI counts over all genes measured, [cells]."""
    batch: np.ndarray
    """Index of the batch, [cells]."""
    properties: np.ndarray
    """Index of each cell's label in each property, -1 where it is missing, [cells, properties]."""
    part: np.ndarray
    """Row of ``measured`` that holds for each cell, [cells]."""
    train: np.ndarray
    """Indices of the training cells in memory."""
    validation: np.ndarray
    """Indices of the validation cells in memory; there may be none."""
    panel: list[str]
    """Names of the genes."""
    batches: list[str]
    """Names of the batches; empty where there is one."""
    labels: dict[str, list[str]]
    """The labels of each property."""
    measured: np.ndarray | None
    """Which genes each part of the corpus measured, [parts, panel]; None for all."""
    split: str
    """In words, how the validation cells were chosen."""
    stream: Stream | None = None
    """The steps of a corpus that is streamed; None where all of it is in memory."""
    streamed: tuple[np.ndarray, np.ndarray, np.ndarray] = ()
    """Batch, properties and part of all cells of a streamed corpus."""

    @property
    def size(self) -> int:
        """Number of cells, those not in memory included."""
        return len(self.depth) if self.stream is None else len(self.stream.keep)

    @property
    def training_cells(self) -> int:
        """Number of training cells, those not in memory included."""
        return len(self.train) if self.stream is None else int(self.stream.keep.sum())

    def take(self, cells: np.ndarray) -> Cells:
        """Return some of the cells in memory, by their indices."""
        return Cells(self.counts[cells], self.depth[cells], self.batch[cells],
                     self.properties[cells], self._measured(self.part[cells]))

    def step(self, training: TrainingConfig, step: int, share: slice) -> Cells:
        """Return the training cells of a step that one process takes; a function of the seed.

        Args:
            training: the run's numbers.
            step: the step, from 0.
            share: which of the step's cells, as `loader.share_of_step` says it.
        """
        if self.stream is None:
            cells = loader.cells_of_step(self.train, training.batch_size, step, training.seed)
            return self.take(cells[share])
        rows = self.stream.step(step, share)
        batch, properties, part = (column[rows.cells] for column in self.streamed)
        return Cells(rows.counts, rows.depth, batch, properties, self._measured(part))

    def summed(self, values: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Sum a value of cells over those of them that measured each gene, [panel] or one number.

        Args:
            values: a value of each of the cells, [cells].
            cells: indices of cells in memory, [cells].
        """
        if self.measured is None:
            return values.sum()
        of_part = np.bincount(self.part[cells], values, minlength=len(self.measured))
        return np.maximum(of_part @ self.measured, 1e-12)

    def fingerprint(self) -> str:
        """Return a sha256 of the cells, so that a run can tell whether it is still on the same."""
        digest = hashlib.sha256("\n".join([*self.panel, "", *self.batches]).encode())
        digest.update(json.dumps(self.labels).encode())
        arrays = [self.counts.data, self.counts.indices, self.counts.indptr, self.depth, self.batch,
                  self.validation, self.properties]
        if self.measured is not None:
            arrays += [self.part, self.measured]
        if self.stream is not None:
            arrays += [source.expressed() for source in self.stream.cells.sources]
            arrays += [self.stream.keep, *self.streamed]
        for array in arrays:
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def _measured(self, part: np.ndarray) -> np.ndarray | None:
        return None if self.measured is None else self.measured[part]


def gather(
    cells: AnnData | str | Path | Source | Sequence[str | Path | Source],
    panel: int | Sequence[str],
    batch: str | None,
    donor: str | None,
    training: TrainingConfig,
    properties: Sequence[str] = (),
    depth_of: str = "measured",
    stream: bool | None = None,
    gene_table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> Corpus:
    """Bring cells together: choose the panel, number the batches, set validation cells aside.

    Args:
        cells: cells, a file, a corpus, a name of a data set, or several of them. A gene that a file
            did not measure is neither shown nor asked for in its cells.
        panel: at most this many genes, the highly variable ones where there are more; or the genes
            themselves, as a model knows them.
        batch: column of ``obs`` with the batch; several files are batches where it is None.
        donor: column of ``obs`` with the donor or the study, or None.
        training: seed, cells a step and share of the validation cells.
        properties: columns of ``obs`` with properties to predict, such as the cell type.
        depth_of: genes that the depth is summed over, all ``measured`` or those of the ``panel``.
        stream: read the cells from the disk while training; by default only if there are too many.
        gene_table: names that genes go by, to bring those of all files together; see `genes.match`.
        orthologs: one-to-one orthologs, for files of another species.

    Raises:
        InputError: no counts, no common gene, or a column that is absent.
    """
    found = open_all(cells)
    if gene_table is not None or orthologs is not None:
        for source in found:
            sources.rename_genes(source, None if isinstance(panel, int) else panel, gene_table,
                                 orthologs)
    stored = [source.expressed() for source in found]
    keep = [number > 0 for number in stored]  # nothing can be learnt from an empty cell
    if stream is None:
        stream = sum(int(number.sum()) for number in stored) > IN_MEMORY
    if isinstance(panel, int):
        panel = panels.choose(found, keep, panel, training.seed)
    together, keep = Joined(found, panel), np.concatenate(keep)

    of_batch = together.column(batch) if batch else _names_of_sources(together)
    batches = list(map(str, of_batch[keep].remove_unused_categories().categories))
    donors = together.column(donor)[keep] if donor else None
    held, split = _validation(int(keep.sum()), donors, donor, training)
    columns = {name: together.column(name, everywhere=False)[keep].remove_unused_categories()
               for name in properties}
    labels = {name: list(map(str, column.categories)) for name, column in columns.items()}
    for name, known in labels.items():
        if len(known) < 2:
            raise InputError(f"obs column {name!r} has fewer than two labels; nothing to predict")
    indices = np.empty((int(keep.sum()), len(columns)), np.int32)
    for number, column in enumerate(columns.values()):
        indices[:, number] = column.codes
    numbers = of_batch[keep].remove_unused_categories().codes.astype(np.int32)
    of_all = numbers, indices, together.part[keep]
    steps = None
    kept = np.flatnonzero(keep)
    if not stream:
        rows = together.read([range(len(together))])
        rows = rows if keep.all() else joined.Rows(*(part[kept] for part in rows))
        here, train, validation = of_all, np.flatnonzero(~held), np.flatnonzero(held)
    else:
        chosen = keep.copy()
        chosen[kept[held]] = False
        steps = Stream(together, chosen, training.batch_size, training.seed)
        sample = steps.sample(SAMPLE)
        rng = np.random.default_rng([training.seed, 5])
        scored = np.sort(rng.permutation(kept[held])[:VALIDATED])
        other = together.read([range(cell, cell + 1) for cell in scored])
        rows = joined.join([(part, 0, len(part.depth)) for part in (sample, other)])
        train = np.arange(len(sample.cells))
        validation = np.arange(len(sample.cells), len(rows.cells))
        of_all = tuple(_spread(column, kept, len(keep)) for column in of_all)
        here = tuple(column[rows.cells] for column in of_all)
    depth = rows.depth
    if depth_of == "panel":
        depth = np.asarray(rows.counts.sum(1), np.float64).ravel()
    return Corpus(
        counts=rows.counts, depth=depth, batch=here[0].astype(np.int64),
        properties=here[1].astype(np.int64), part=here[2],
        train=train, validation=validation, panel=list(panel),
        batches=batches if len(batches) > 1 else [], labels=labels,
        measured=None if together.measured.all() else together.measured, split=split,
        stream=steps, streamed=of_all if stream else (),
    )


def open_all(cells: AnnData | str | Path | Source | Sequence) -> list[Source]:
    """Open cells wherever they lie, each file as a source.

    Raises:
        InputError: they cannot be read, or two have one name.
    """
    is_one = isinstance(cells, str | Path | AnnData) or hasattr(cells, "read")
    several = [cells] if is_one else cells
    found = [_open(one) for one in several]
    if len({source.name for source in found}) < len(found):
        raise InputError("two of the files have one name; rename one, as names tell them apart")
    return found


def _open(cells: AnnData | str | Path | Source) -> Source:
    """Open one source of cells."""
    if isinstance(cells, AnnData):
        name = str(cells.uns.get("dataset", "these cells"))
        return sources.Memory(datasets.canonical(cells, name))
    if not isinstance(cells, str | Path):
        return cells
    if datasets.is_name(cells):
        return sources.Memory(datasets.load(cells))
    if shards.is_corpus(cells):
        return shards.Shards(cells)
    return sources.open_source(cells)


def _names_of_sources(together: Joined) -> pd.Categorical:
    """Return the name of the source that each cell is from."""
    names = [source.name for source in together.sources]
    number = np.repeat(np.arange(len(names)), np.diff(together.starts))
    return pd.Categorical.from_codes(number, names)


def _spread(values: np.ndarray, cells: np.ndarray, size: int) -> np.ndarray:
    """Put the values of some cells where they stand among all of them."""
    spread = np.full((size, *values.shape[1:]), -1, values.dtype)
    spread[cells] = values
    return spread


def _validation(
    cells: int, donors: pd.Categorical | None, column: str | None, training: TrainingConfig
) -> tuple[np.ndarray, str]:
    """Choose validation cells, [cells] bool: whole donors where there are three or more."""
    rng = np.random.default_rng([training.seed, 0])
    known = [] if donors is None else sorted(donors.remove_unused_categories().categories)
    if len(known) >= 3:
        count = max(round(len(known) * training.validation_share), 1)
        chosen = sorted(rng.choice(known, count, replace=False))
        return np.asarray(donors.isin(chosen)), f"{column} {', '.join(chosen)} held out"
    count = min(max(round(cells * training.validation_share), 1), MOST_HELD_OUT)
    held = np.zeros(cells, bool)
    held[rng.choice(cells, count, replace=False)] = True
    why = f"{column} has fewer than three values" if column else "no donor is named"
    return held, f"{count} random cells held out, as {why}"
