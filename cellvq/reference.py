"""What is ordinary for a model: reference cells, their codes, and how strange an ordinary cell is.

A model gives every cell a code, also one that it has never seen the like of. So a `Reference` keeps
what is ordinary, and `cellvq.mapping` holds each new cell against it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from cellvq import (
    InputError,
    config,
    corpus,
    encoding,
    evaluate,
    joined,
    loader,
    sources,
    tasks,
    weights,
)
from cellvq.decoder import Counts
from cellvq.encoding import tokens_at_once
from cellvq.model import CellVQ

if TYPE_CHECKING:
    from anndata import AnnData

UNKNOWN = "unknown"
"""What stands for a label where none can be given."""
LARGEST = 10.0
"""Standard deviations beyond which the count of one gene surprises no more."""


class Seen(NamedTuple):
    """What the model makes of some cells; NaN, and no code, where a cell is empty."""

    vectors: np.ndarray
    """Continuous vectors, [cells, embedding width]."""
    codes: np.ndarray
    """Address of each cell's code, None for an empty cell, [cells]."""
    confidence: np.ndarray
    """One minus the ratio of the distances to the nearest and second nearest code, [cells]."""
    distance: np.ndarray
    """Distance of each cell to its code, as the quantiser measures it, [cells]."""
    unexplained: np.ndarray
    """Mean squared Pearson residual of the counts under what is decoded from the cell, [cells]."""


class Panel(NamedTuple):
    """Cells in the gene order of a model."""

    counts: csr_matrix
    """UMI counts, [cells, panel]."""
    depth: np.ndarray
    """Total UMI counts over all genes measured, [cells]."""
    measured: np.ndarray
    """Which genes of the panel were measured, [panel]."""
    depth_is_sum: bool
    """Whether the depth was summed over the genes at hand, as no column of ``obs`` knows it."""


@dataclass(frozen=True)
class Reference:
    """What is ordinary for a model: cells to compare with, cells to calibrate on, and their codes.

    Both sets of cells keep their counts, so that they can be looked at again through the genes of
    a query that lacks some.
    """

    codes: pd.DataFrame
    """A row a code in use with ``code``, ``cells``, ``calibration_cells`` (int), ``distance``
    (median to the code's vector), ``relative_distance`` (to the median of all cells),
    ``label`` (most common; ``unknown`` where there is none), ``label_share``, ``label_cells``."""
    labels: pd.DataFrame
    """A row a code and label with ``code``, ``label``, ``cells``, ``share`` of the code's cells."""
    cells: Panel
    """The cells that new ones are compared with."""
    calibration: Panel
    """The cells that say how strange an ordinary new cell is."""
    seen: tuple[Seen, Seen]
    """What the model makes of both, through all genes."""
    weights_sha256: str
    """The model."""
    notes: tuple[str, ...]
    """What to keep in mind, in sentences."""


def learn(
    cells: AnnData, model: CellVQ | str | Path, *,
    calibration: AnnData | Sequence[bool] | None = None, label: str = "", seed: int = 0,
) -> Reference:
    """Learn from reference cells what is ordinary.

    Args:
        cells: reference cells with raw counts.
        model: the model, or its folder.
        calibration: cells that did NOT train the model: other cells, or which of ``cells``
            (`validation_cells` finds them). Training cells are explained too well, so that
            calibrated on them too many new cells look strange. None: a random fifth of ``cells``,
            with a warning.
        label: column of ``obs`` with what is known of the cells; empty: no labels.
        seed: seed of that random fifth.

    Raises:
        InputError: no raw counts or genes, no such column, cells encoded by another model, or fewer
            than two cells with a code on either side.

    Example:
        >>> import cellvq
        >>> from cellvq.mapping import map_cells
        >>> cells = cellvq.simulate.simulate_cells(cells=200)
        >>> run = cellvq.pretrain(cells[:100].copy(), steps=3, codes=4, progress=False)
        >>> known = learn(cells[:100], run.model, calibration=cells[100:150], label="cell_type")
        >>> map_cells(cells[150:], known, run.model)["p"].between(0, 1).all()
        np.True_
    """
    model = model if isinstance(model, CellVQ) else encoding.load(model)
    fingerprint, notes = weights.fingerprint(model), []
    if calibration is None:
        calibration = np.zeros(cells.n_obs, bool)
        drawn = np.random.default_rng(seed).permutation(cells.n_obs)
        calibration[drawn[: max(cells.n_obs // 5, 1)]] = True
        notes.append("Calibrated on a random fifth of the reference cells; if they trained the "
                     "model, more ordinary cells will be called new than the rate that is stated.")
        warnings.warn(notes[-1] + " Give calibration cells that did not.", stacklevel=2)
    if not hasattr(calibration, "obs"):
        held = np.asarray(calibration, bool)
        if len(held) != cells.n_obs:
            raise InputError(f"calibration names {len(held)} of {cells.n_obs} cells; give one "
                             "True or False for each reference cell, or the cells themselves")
        cells, calibration = cells[~held], cells[held]
    sides, seen = [], []
    for part in (cells, calibration):
        check_encoder(part, fingerprint)
        panel = in_panel(part, model) if part.n_obs else None
        found = None if panel is None else see(model, panel)
        with_code = 0 if found is None else int(np.isfinite(found.distance).sum())
        if with_code < 2:
            raise InputError(f"{with_code} {'reference' if not sides else 'calibration'} cells "
                             "with a code; give at least two, better some hundreds")
        sides.append(panel)
        seen.append(found)
    calibrating = int(np.isfinite(seen[1].distance).sum())
    if calibrating < 100:
        notes.append(f"{calibrating} calibration cells: no p-value can be below "
                     f"{1 / (1 + calibrating):.3f}.")
    known = np.full(cells.n_obs, "", object)
    if label:
        known = tasks.column(cells, label)
    codes, labels = _describe(seen, known)
    if not len(labels):
        notes.append("The reference has no labels, so none are transferred.")
    return Reference(codes, labels, *sides, tuple(seen), fingerprint, tuple(notes))


def validation_cells(
    cells: AnnData, folder: str | Path, *, batch: str | None = None, donor: str | None = None
) -> np.ndarray:
    """Find the cells that a pretraining set aside for validation, to calibrate on, [cells] bool.

    Args:
        cells: the very cells that the model was trained on.
        folder: the model's folder.
        batch: column of ``obs`` as given to `cellvq.pretrain`.
        donor: column of ``obs`` as given to `cellvq.pretrain`.

    Raises:
        InputError: the model was not trained on these cells with these columns.
    """
    known = weights.read_config(folder)
    training = config.from_dict(config.TrainingConfig, known["run"]["training"])
    depth = config.from_dict(config.ModelConfig, known["model"]).depth
    data = corpus.gather(cells, known["panel"], batch or None, donor or None, training,
                         tuple(known["properties"]), depth, stream=False)
    if data.fingerprint() != known["run"]["fingerprint"]:
        raise InputError(f"{folder}: not trained on these cells; give the cells, the batch and the "
                         "donor column of its pretraining, or calibration cells of your own")
    filled = np.flatnonzero(corpus.open_all(cells)[0].expressed())
    held = np.zeros(cells.n_obs, bool)
    held[filled[data.validation]] = True
    return held


@torch.no_grad()
def see(model: CellVQ, panel: Panel) -> Seen:
    """Encode cells, and ask the model how well it explains what it has just seen."""
    cells, device = panel.counts.shape[0], model.device
    found = [np.full(cells, np.nan) for _ in range(3)]
    vectors = np.full((cells, model.config.embedding_width), np.nan)
    codes = np.full(cells, None, object)
    addresses = np.array(model.quantizer.addresses(), object)
    genes = model.gene_table()[: len(model.panel)]
    whole = panel.measured.all()
    measured = torch.from_numpy(panel.measured).to(device)
    filled = np.flatnonzero(np.diff(panel.counts.indptr))
    for block in loader.by_length(panel.counts[filled], tokens_at_once(model)):
        for part in np.split(filled[block], range(2048, len(block), 2048)):
            known = None if whole else np.tile(panel.measured, (len(part), 1))
            batch = loader.make_batch(panel.counts[part], panel.depth[part], measured=known)
            batch = batch.to(device)
            cell, summary = model.encode(batch)
            nearest = model.quantizer.distances(summary).topk(2, largest=False).values
            decoded = model.decoder(summary, batch.depth, batch.batch, genes)
            surprise = _squared_residuals(decoded, batch.counts)[:, measured].mean(1)
            confidence = 1 - nearest[:, 0] / nearest[:, 1].clamp(min=1e-12)
            vectors[part] = cell.cpu().numpy()
            codes[part] = addresses[model.quantizer(summary).codes.cpu().numpy()]
            for values, here in zip(found, (confidence, nearest[:, 0], surprise), strict=True):
                values[part] = here.cpu().numpy()
    return Seen(vectors, codes, *found)


def in_panel(
    cells: AnnData, model: CellVQ, gene_table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> Panel:
    """Bring cells into the gene order of a model; names as `cellvq.encode` takes them.

    Raises:
        InputError: no counts, or none of the model's genes.
    """
    source = sources.Memory(cells)
    if gene_table is not None or orthologs is not None:
        sources.rename_genes(source, model.panel, gene_table, orthologs)
    together = joined.Joined([source], model.panel)
    counts, depth, _ = together.read([range(len(source))])
    is_sum = np.allclose(depth, np.asarray(source.counts.sum(1)).ravel())
    panel = Panel(counts, depth, together.measured[0], is_sum)
    return through(panel, panel, model)


def through(panel: Panel, query: Panel, model: CellVQ) -> Panel:
    """See cells as if only the genes that a query has had been measured, for their depth too."""
    measured, counts, depth = panel.measured & query.measured, panel.counts, panel.depth
    if (panel.measured & ~measured).any():
        counts = csr_matrix(counts.multiply(measured[None]), dtype=counts.dtype)
        counts.eliminate_zeros()
        if query.depth_is_sum:
            depth = depth - np.asarray(panel.counts.sum(1) - counts.sum(1)).ravel()
    if model.config.depth == "panel":
        depth = np.asarray(counts.sum(1)).ravel()
    return Panel(counts, depth, measured, panel.depth_is_sum)


def check_encoder(cells: AnnData, fingerprint: str) -> None:
    """Refuse cells that carry codes of another model."""
    encoded = cells.uns.get("cellvq", {})
    if encoded.get("weights_sha256", fingerprint) != fingerprint:
        raise InputError("the cells were encoded by another model (weights_sha256 differs); encode "
                         "them with this one, or give cells without codes")


def _squared_residuals(decoded: Counts, counts: Tensor) -> Tensor:
    """Squared Pearson residual of each count, [cells, panel]."""
    mean, variance = decoded.mean, decoded.mean + decoded.mean.square() / decoded.dispersion
    if decoded.dropout_logit is not None:
        kept = torch.sigmoid(-decoded.dropout_logit)
        mean, variance = kept * mean, kept * (variance + (1 - kept) * mean.square())
    return ((counts - mean).square() / variance).clamp(max=LARGEST**2)


def _describe(seen: Sequence[Seen], known: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of codes and of their labels."""
    cells, calibration = (pd.DataFrame({"code": part.codes, "distance": part.distance}).dropna()
                          for part in seen)
    codes = cells.groupby("code")["distance"].agg(cells="size", distance="median")
    codes["calibration_cells"] = calibration["code"].value_counts().reindex(codes.index).fillna(0)
    codes["relative_distance"] = codes["distance"] / max(cells["distance"].median(), 1e-12)
    known = pd.Series(known, dtype=object)[evaluate.labelled(known)].astype(str)
    pairs = cells.join(known.rename("label"), how="inner")[["code", "label"]]
    labels = pairs.value_counts(sort=False).rename("cells").reset_index()
    total = labels.groupby("code")["cells"].transform("sum")
    labels = labels.assign(share=labels["cells"] / total)
    best = labels.sort_values("cells", ascending=False, kind="stable").groupby("code").first()
    codes = codes.join(best[["label", "share"]].rename(columns={"share": "label_share"}))
    codes["label"] = codes["label"].fillna(UNKNOWN)
    codes["label_cells"] = labels.groupby("code")["cells"].sum().reindex(codes.index).fillna(0)
    counted = {"calibration_cells": int, "label_cells": int}
    return codes.astype(counted).rename_axis("code").reset_index(), labels
