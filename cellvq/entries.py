"""What a benchmark is made of: the data it judges on, a method's entry, the results of a task."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellvq import InputError, datasets, evidence
from cellvq.counts import sequencing_depth, some

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

PROPERTIES = (
    "condition", "stim", "stimulation", "treatment", "perturbation", "sex", "gender", "disease",
    "tissue", "organ", "age", "development_stage", "phase",
)
"""Columns of ``obs`` that are taken for properties where the user names none."""
MOST_VALUES = 30
"""A column with more values is no property to predict."""
LEAST_CELLS = 5
"""A class with fewer cells cannot stand in every fold."""
WITHOUT_LABELS = "tasks that need labels are left out"


@dataclass(frozen=True)
class Benchmarked:
    """Cells that a benchmark judges on, checked by :func:`prepare`."""

    cells: AnnData
    """Raw counts in ``X`` (CSR float32 [cells, genes]); ``obs`` and ``obsm`` as the user gave."""
    name: str
    label: str | None = None
    batch: str | None = None
    donor: str | None = None
    study: str | None = None
    properties: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences on what is left out, and why."""
    kept: np.ndarray | None = None
    """Which of the given cells these are, bool [given cells]; None for all."""

    def column(self, name: str | None) -> np.ndarray:
        """A column of ``obs`` as text, empty where nothing is known, [cells] of object."""
        values = np.full(self.cells.n_obs, "", dtype=object)
        if name is not None:
            given = self.cells.obs[name].to_numpy(dtype=object)
            known = evidence.labelled(given)
            values[known] = given[known].astype(str)
        return values

    def labels(self) -> np.ndarray:
        """What is known of each cell; an unlabelled cell has an empty string, [cells]."""
        return self.column(self.label)

    @cached_property
    def depth(self) -> np.ndarray:
        """UMI counts of each cell over all measured genes, [cells]."""
        return sequencing_depth(self.cells, self.cells.X)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with every count, gene name and column that a benchmark reads."""
        counts, digest = self.cells.X, hashlib.sha256()
        for values in (counts.indptr, counts.indices, counts.data):
            digest.update(np.ascontiguousarray(values))
        roles = (self.label, self.batch, self.donor, self.study, *self.properties)
        digest.update(json.dumps([self.name, *map(str, self.cells.var_names)]).encode())
        digest.update(json.dumps([[role, *self.column(role)] for role in roles]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """What one method made of all cells with one seed."""

    method: str
    seed: int
    vectors: np.ndarray | None = None
    """Embedding, float32 [cells, dimensions]; None where the method failed or has none."""
    codes: np.ndarray | None = None
    """Code of each cell, text, [cells]; None for a method without codes."""
    settings: dict = field(default_factory=dict)
    """All numbers of the method, as JSON holds them."""
    seconds: float = 0.0
    memory_mb: float = 0.0
    """Most memory in use while it was made, in megabytes (MB), above what was in use before."""
    parameters: int = 0
    """Trained or fitted numbers."""
    uses_batch: bool = False
    uses_labels: bool = False
    status: str = ""
    """Empty, or why there is nothing to score."""


@dataclass(frozen=True)
class Results:
    """What a task says of one entry; the columns stand in :mod:`cellvq.significance`."""

    calls: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row a test cell, with the truth and the call."""
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Scores that no calls underlie."""
    losses: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row a test cell and metric; lower is better."""
    notes: list[str] = field(default_factory=list)


def prepare(
    cells: AnnData | str | Path, label: str | None = None, *, batch: str | None = None,
    donor: str | None = None, study: str | None = None, properties: Sequence[str] | None = None,
    name: str | None = None,
) -> Benchmarked:
    """Check cells and their columns, and note what cannot be judged.

    Args:
        cells: cells with raw counts, a file or the name of a data set; they stay as they are.
        label: column of ``obs`` with what is known of the cells, such as the cell type. Where it is
            missing or empty, the tasks without labels still run.
        batch: column of ``obs`` with the technical batch.
        donor: column of ``obs`` with the donor.
        study: column of ``obs`` with the study.
        properties: columns of ``obs`` to predict from the embedding; by default those in
            ``PROPERTIES`` that have at least two values.
        name: name of the data set; by default ``uns["dataset"]``, or that of the file.

    Raises:
        InputError: no raw counts, or a column that is named for the batch, the donor, the study or
            a property is not there.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> data = prepare(simulate_cells(cells=90), "cell_type", batch="batch", donor="donor")
        >>> data.cells.n_obs, data.labels()[0] != "", data.notes
        (90, True, ())
    """
    if isinstance(cells, str | Path):
        cells, name = datasets.load(cells), name or Path(cells).stem
    name, columns = str(name or cells.uns.get("dataset", "cells")), list(cells.obs)
    for role, column in (("batch", batch), ("donor", donor), ("study", study),
                         *(("property", each) for each in properties or ())):
        if column is not None and column not in columns:
            raise InputError(f"{name}: obs has no column {column!r} for the {role}; there are "
                             f"{', '.join(map(str, columns)) or 'none'}")
    cells = datasets.canonical(cells, name)
    notes, known = [], np.asarray(cells.X.sum(axis=1)).ravel() > 0
    if not known.all():
        notes.append(f"{np.sum(~known):,} cells without a count are left out of everything.")
        cells = cells[known].copy()
    lost = [column for column in columns if column not in cells.obs]  # not a value in them
    if label is None:
        notes.append(f"No label is named: {WITHOUT_LABELS}.")
    elif label in lost:
        notes.append(f"No cell has a value in {label!r}: {WITHOUT_LABELS}.")
    elif label not in columns:
        notes.append(f"obs has no column {label!r}, only {', '.join(map(str, columns)) or 'none'}: "
                     f"{WITHOUT_LABELS}.")
    if label not in cells.obs:
        label = None
    roles = {"batch": batch, "donor": donor, "study": study}
    for role, column in roles.items():
        if column in lost:
            notes.append(f"No cell has a value in {column!r}: no {role} is known.")
            roles[role] = None
    if properties is None:
        lower = {str(column).lower(): column for column in cells.obs}
        properties = [lower[each] for each in PROPERTIES if each in lower]
    properties = tuple(column for column in properties if column in cells.obs
                       and column not in (label, *roles.values())
                       and 2 <= _values(cells, column) <= MOST_VALUES)
    data = Benchmarked(cells, name, label, **roles, properties=properties)
    return dataclasses.replace(data, notes=tuple(notes + _label_notes(data)),
                               kept=None if known.all() else known)


def subset(data: Benchmarked, keep: np.ndarray, counts: csr_matrix | None = None) -> Benchmarked:
    """The same columns for some of the cells, or for other counts of all of them.

    Args:
        data: the data.
        keep: which cells, [cells] of bool or positions.
        counts: counts to put in place of those of the kept cells, [kept cells, genes].
    """
    cells = data.cells[keep].copy()
    if counts is not None:
        fewer = np.asarray(cells.X.sum(axis=1) - counts.sum(axis=1)).ravel()
        cells.obs["total_counts"] -= fewer  # the depth, which would tell of what is held out
        cells.X = counts
    return dataclasses.replace(data, cells=cells)


def _values(cells: AnnData, column: str) -> int:
    values = cells.obs[column].to_numpy(dtype=object)
    return len(np.unique(values[evidence.labelled(values)].astype(str)))


def _label_notes(data: Benchmarked) -> list[str]:
    """Say what the labels lack."""
    if data.label is None:
        return []
    labels = pd.Series(data.labels())
    missing = int((labels == "").sum())
    notes = []
    if missing:
        notes.append(f"{missing:,} cells without a value in {data.label!r} count as unlabelled: "
                     "methods see them, no score does.")
    sizes = labels[labels != ""].value_counts()
    if len(sizes) == 1:
        notes.append(f"{data.label!r} has one value only, {some(sizes.index)}: there is nothing to "
                     "tell apart.")
    rare = sizes[sizes < LEAST_CELLS]
    if len(rare):
        listed = ", ".join(f"{name} ({size})" for name, size in rare.items())
        notes.append(f"Classes with fewer than {LEAST_CELLS} cells are left out of annotation: "
                     f"{listed}.")
    return notes
