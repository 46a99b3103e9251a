"""Files of cells -> the arrays that a training run sees: panel, batches and validation cells."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix

from cellvq import InputError, datasets, evaluate
from cellvq.config import TrainingConfig


@dataclasses.dataclass
class Corpus:
    """The cells of a run, as arrays."""

    counts: csr_matrix
    """UMI counts of the panel, [cells, panel]."""
    depth: np.ndarray
    """Total UMI counts over all genes measured, [cells]."""
    batch: np.ndarray
    """Index of the batch, [cells]."""
    train: np.ndarray
    """Indices of the training cells."""
    validation: np.ndarray
    """Indices of the validation cells, empty where there are too few cells to spare any."""
    panel: list[str]
    """Names of the genes."""
    batches: list[str]
    """Names of the batches; empty where there is one."""
    split: str
    """In words, how the validation cells were chosen."""

    def fingerprint(self) -> str:
        """Return a sha256 of the cells, so that a run can tell whether it is still on the same."""
        digest = hashlib.sha256("\n".join([*self.panel, "", *self.batches]).encode())
        arrays = (self.counts.data, self.counts.indices, self.counts.indptr, self.depth, self.batch,
                  self.validation)
        for array in arrays:
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def gather(
    cells: AnnData | str | Path | Sequence[str | Path],
    panel_size: int,
    batch: str | None,
    donor: str | None,
    training: TrainingConfig,
) -> Corpus:
    """Bring cells into arrays: choose the panel, number the batches, set validation cells aside.

    Args:
        cells: cells, a file, a name of a data set, or several files, joined on common genes.
        panel_size: at most this many genes; where there are more, the highly variable ones.
        batch: column of ``obs`` with the batch; several files are batches where it is None.
        donor: column of ``obs`` with the donor, or None.
        training: seed and share of the validation cells.

    Raises:
        InputError: no counts, no common gene, or a column that is absent.
    """
    if isinstance(cells, str | Path):
        cells = datasets.load(cells)
    elif isinstance(cells, Sequence):
        cells, batch = _join(cells, batch)
    cells = datasets.canonical(cells, str(cells.uns.get("dataset", "these cells")))
    depth = cells.obs["total_counts"].to_numpy(np.float64)
    cells, depth = cells[depth > 0], depth[depth > 0]  # nothing can be learnt from an empty cell

    panel = np.asarray(np.diff(cells.X.tocsc().indptr) > 0)
    if panel.sum() > panel_size:
        import scanpy

        values = AnnData(evaluate.log_normalise(cells.X, depth)[:, panel])
        scanpy.pp.highly_variable_genes(values, n_top_genes=panel_size)
        panel[panel] = values.var["highly_variable"]
    counts = csr_matrix(cells.X[:, panel], dtype=np.float32)
    counts.sort_indices()
    names = _column(cells, batch, "batch")
    batches = sorted(set(names) - {""})
    numbers = {name: number for number, name in enumerate(batches)}
    held, split = _validation(_column(cells, donor, "donor"), donor, training)
    return Corpus(
        counts=counts,
        depth=depth,
        batch=np.array([numbers.get(name, -1) for name in names]),
        train=np.flatnonzero(~held),
        validation=np.flatnonzero(held),
        panel=list(cells.var_names[panel].astype(str)),
        batches=batches if len(batches) > 1 else [],
        split=split,
    )


def _join(files: Sequence[str | Path], batch: str | None) -> tuple[AnnData, str | None]:
    """Join files on their common genes; each file is a batch where no column is named."""
    if len(files) == 1:
        return datasets.load(files[0]), batch
    parts = {Path(str(file)).stem: datasets.load(file) for file in files}
    if len(parts) < len(files):
        raise InputError("two of the files have one name; rename one, as names tell them apart")
    joined = anndata.concat(parts, join="inner", label="file", index_unique="-")
    if not joined.n_vars:
        raise InputError(f"{', '.join(parts)}: no gene in common; are the identifiers of one kind?")
    return joined, batch or "file"


def _column(cells: AnnData, column: str | None, role: str) -> np.ndarray:
    """Return a column of ``obs`` as text, "" where a value is missing, [cells]."""
    if not column:
        return np.full(cells.n_obs, "all")
    if column not in cells.obs:
        there = ", ".join(map(str, cells.obs.columns)) or "none"
        raise InputError(f"no column {column!r} in obs to use as the {role}; there are: {there}")
    values = cells.obs[column].astype(object)
    return values.where(values.notna(), "").astype(str).to_numpy()


def _validation(
    donors: np.ndarray, column: str | None, training: TrainingConfig
) -> tuple[np.ndarray, str]:
    """Choose validation cells, [cells] bool: whole donors where there are three or more."""
    rng = np.random.default_rng([training.seed, 0])
    known = sorted(set(donors) - {""}) if column else []
    if len(known) >= 3:
        count = max(round(len(known) * training.validation_share), 1)
        chosen = sorted(rng.choice(known, count, replace=False))
        return np.isin(donors, chosen), f"{column} {', '.join(chosen)} held out"
    count = max(round(len(donors) * training.validation_share), 1)
    held = np.zeros(len(donors), bool)
    held[rng.choice(len(donors), count, replace=False)] = True
    why = f"{column} has fewer than three values" if column else "no donor is named"
    return held, f"{count} random cells held out, as {why}"
