"""Files of cells -> the arrays that a training run sees: panel, batches and validation cells."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from cellvq import InputError, datasets, evaluate, genes
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
    properties: np.ndarray
    """Index of each cell's label in each property, -1 where it is missing, [cells, properties]."""
    labels: dict[str, list[str]]
    """The labels of each property."""

    def fingerprint(self) -> str:
        """Return a sha256 of the cells, so that a run can tell whether it is still on the same."""
        digest = hashlib.sha256("\n".join([*self.panel, "", *self.batches]).encode())
        digest.update(json.dumps(self.labels).encode())
        arrays = (self.counts.data, self.counts.indices, self.counts.indptr, self.depth, self.batch,
                  self.validation, self.properties)
        for array in arrays:
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def gather(
    cells: AnnData | str | Path | Sequence[str | Path],
    panel: int | Sequence[str],
    batch: str | None,
    donor: str | None,
    training: TrainingConfig,
    properties: Sequence[str] = (),
    depth_of: str = "measured",
) -> Corpus:
    """Bring cells into arrays: choose the panel, number the batches, set validation cells aside.

    Args:
        cells: cells, a file, a name of a data set, or several files, joined on common genes.
        panel: at most this many genes, the highly variable ones where there are more; or the genes
            themselves, as a model knows them.
        batch: column of ``obs`` with the batch; several files are batches where it is None.
        donor: column of ``obs`` with the donor, or None.
        training: seed and share of the validation cells.
        properties: columns of ``obs`` with properties to predict, such as the cell type.
        depth_of: genes that the depth is summed over, all ``measured`` or those of the ``panel``.

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

    if isinstance(panel, int):
        names = _choose_panel(cells, depth, panel)
        counts = csr_matrix(cells[:, names].X, dtype=np.float32)
    else:
        names = list(panel)
        counts, _ = genes.align(cells, cells.X, names)
    counts.sort_indices()
    if depth_of == "panel":
        depth = np.asarray(counts.sum(1), np.float64).ravel()
    of_batch = _column(cells, batch, "batch")
    batches = sorted(set(of_batch) - {""})
    held, split = _validation(_column(cells, donor, "donor"), donor, training)
    columns = {name: _column(cells, name, "property") for name in properties}
    labels = {name: sorted(set(column) - {""}) for name, column in columns.items()}
    for name, known in labels.items():
        if len(known) < 2:
            raise InputError(f"obs column {name!r} has fewer than two labels; nothing to predict")
    indices = [_number(column, labels[name]) for name, column in columns.items()]
    return Corpus(
        counts=counts,
        depth=depth,
        batch=_number(of_batch, batches),
        train=np.flatnonzero(~held),
        validation=np.flatnonzero(held),
        panel=names,
        batches=batches if len(batches) > 1 else [],
        split=split,
        properties=np.array(indices, int).reshape(len(indices), len(depth)).T.copy(),
        labels=labels,
    )


def _choose_panel(cells: AnnData, depth: np.ndarray, size: int) -> list[str]:
    """Return the genes that some cell expresses, the highly variable ones if they are too many."""
    chosen = np.asarray(np.diff(cells.X.tocsc().indptr) > 0)
    if chosen.sum() > size:
        import scanpy

        values = AnnData(evaluate.log_normalise(cells.X, depth)[:, chosen])
        threads = torch.get_num_threads()
        scanpy.pp.highly_variable_genes(values, n_top_genes=size)
        torch.set_num_threads(threads)  # numba, which scanpy calls, changes their number
        chosen[chosen] = values.var["highly_variable"]
    return list(cells.var_names[chosen].astype(str))


def _number(column: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the index of each value among the names, -1 where it is none of them."""
    return pd.Categorical(column, categories=list(names)).codes.astype(int)


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
