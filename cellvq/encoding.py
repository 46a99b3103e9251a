"""A trained model and cells -> vectors, codes and confidences in the AnnData contract.

The room is not called ``encode``, since a module and a function of one name in a package shadow
each other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

import cellvq
from cellvq import InputError, config, distributed, loader, weights
from cellvq.model import CellVQ

if TYPE_CHECKING:
    from anndata import AnnData

PRECISIONS = ("float32", "bfloat16")
"""Numbers in which a model may compute; the second is faster on wide models, and rougher."""
MOST_TOKENS = {"cpu": 100_000, "cuda": 2_000_000}
"""Tokens (cells x expressed genes) at once beyond which no device gains any more."""


def load(name_or_path: str | Path) -> CellVQ:
    """Load a trained model: ``small``, which comes with the package, or one of your own.

    Args:
        name_or_path: ``small``, or the folder that `cellvq.pretrain` wrote.

    Returns:
        The model, in evaluation mode, on the GPU where there is one.

    Raises:
        InputError: there is no model, or its files are damaged or of another version.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        cellvq.InputError: nowhere: no model here; name a folder that holds a config.json
    """
    path = weights.locate(name_or_path)
    if str(name_or_path) in config.PRESETS and not path.exists():
        raise InputError(
            f"{name_or_path!r} is a preset to pretrain, not a trained model; name a model's "
            f"folder, or {weights.MODELS[0]!r}, which comes with the package"
        )
    device = distributed.enter()
    model, _ = weights.read_model(path)
    return model.to(device)


def encode(
    cells: AnnData | str | Path, model: CellVQ | str | Path, *, target_depth: float | str = "match",
    precision: str = "float32", gene_table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> AnnData:
    """Give every cell its continuous vector, its code and how sure the code is.

    A cell's answer does not depend on the other cells, their order or their number: all is computed
    in float32, and padding is masked wherever cells share a batch. Genes of the model that the
    cells lack are unknown to it, not zero, as genes held out while training. Under ``torchrun`` the
    cells are divided among the processes, and every process returns all of them.

    Args:
        cells: cells with raw counts, or the file they are in; left as they are.
        model: the model, or its folder.
        target_depth: the depth token T, as log10 of UMI counts (the release uses 4), or ``match``
            for the cell's own depth.
        precision: ``float32``, or ``bfloat16`` for speed on wide models.
        gene_table: names that genes go by, such as ``registry.table("hgnc")``, by which genes of
            the model are found under older names or aliases; none by default.
        orthologs: one-to-one orthologs, such as ``registry.table("mouse_orthologs")``.

    Returns:
        A copy with ``obsm["X_cellvq"]`` (continuous vector, [cells, embedding width]),
        ``obsm["X_cellvq_code"]`` (the code's vector), ``obs["cellvq_code"]`` (categorical, such as
        ``C07``), ``obs["cellvq_confidence"]`` (0 halfway between two codes, 1 on a code: one minus
        the ratio of the distances to the nearest and the second nearest code),
        ``obs["cellvq_predicted_<property>"]`` where the model has learnt a property, and
        ``uns["cellvq"]`` (model, panel, genes matched, versions). Cells without a count in any of
        the model's genes get no code: NaN, and their number in ``uns["cellvq"]["empty_cells"]``.

    Raises:
        InputError: the cells hold no raw counts, or none of the model's genes.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200)
        >>> run = cellvq.pretrain(cells, steps=3, codes=8, progress=False)
        >>> encode(cells, run.model).obsm["X_cellvq"].shape
        (200, 16)
    """
    from cellvq import datasets, joined, sources

    if target_depth != "match":
        try:
            target_depth = 10.0 ** float(target_depth)
        except (ValueError, OverflowError) as error:
            raise InputError(f"target_depth is {target_depth!r}; use match, or log10 of UMI "
                             "counts such as 4") from error
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; use {' or '.join(PRECISIONS)}")
    if isinstance(cells, str | Path):
        cells = datasets.load(cells)
    folder = "" if isinstance(model, CellVQ) else str(model)
    if folder:
        model = load(folder)
    source = sources.Memory(cells)
    if gene_table is not None or orthologs is not None:
        sources.rename_genes(source, model.panel, gene_table, orthologs)
    together = joined.Joined([source], model.panel)
    matrix, depth, _ = together.read([range(len(source))])
    measured = together.measured[0]
    if model.config.depth == "panel":
        depth = np.asarray(matrix.sum(1)).ravel()
    found = encode_counts(model, matrix, depth, None if target_depth == "match" else target_depth,
                          precision, None if measured.all() else measured)

    empty = np.diff(matrix.indptr) == 0
    for values in (found.vectors, found.code_vectors, found.confidence):
        values[empty] = np.nan
    encoded = cells.copy()
    encoded.obsm["X_cellvq"], encoded.obsm["X_cellvq_code"] = found.vectors, found.code_vectors
    names = np.array(model.quantizer.addresses(), dtype=object)[found.codes]
    encoded.obs["cellvq_code"] = pd.Categorical(np.where(empty, None, names))
    encoded.obs["cellvq_confidence"] = found.confidence
    for number, (name, labels) in enumerate(model.properties.items()):
        predicted = np.array(labels, dtype=object)[found.properties[:, number]]
        encoded.obs[f"cellvq_predicted_{name}"] = pd.Categorical(np.where(empty, None, predicted))
    encoded.uns["cellvq"] = {
        "model": folder,
        "weights_sha256": weights.fingerprint(model),
        "codebook_size": model.config.quantizer.codes,
        "quantizer": model.config.quantizer.kind,
        "panel_size": len(model.panel),
        "panel_sha256": hashlib.sha256("\n".join(model.panel).encode()).hexdigest(),
        "genes_matched": int(measured.sum()),
        "gene_table": "none" if gene_table is None else gene_table.attrs.get("sha256", "given"),
        "counts_in": source.counts_in,
        "empty_cells": int(empty.sum()),
        "target_depth": str(target_depth),
        "precision": precision,
        "cellvq_version": cellvq.__version__,
        "torch_version": str(torch.__version__),
    }
    return encoded


class EncodedCells(NamedTuple):
    """What `encode_counts` finds out about cells."""

    vectors: np.ndarray
    """Continuous vectors, [cells, embedding width]."""
    codes: np.ndarray
    """Index of each cell's code, [cells]."""
    code_vectors: np.ndarray
    """Vectors of the codes, [cells, code width]."""
    confidence: np.ndarray
    """One minus the ratio of the distances to the nearest and second nearest code, [cells]."""
    properties: np.ndarray
    """Index of the label predicted of each property, [cells, properties]."""


@torch.no_grad()
def encode_counts(
    model: CellVQ, counts: csr_matrix, depth: np.ndarray, target_depth: float | None = None,
    precision: str = "float32", measured: np.ndarray | None = None,
) -> EncodedCells:
    """Encode rows of counts, in blocks of cells with like numbers of expressed genes.

    Args:
        model: the model, in evaluation mode.
        counts: UMI counts of the model's panel, CSR with ascending indices, [cells, panel].
        depth: total UMI counts of each cell over all genes measured, [cells].
        target_depth: total UMI counts for the depth token T; by default each cell's own.
        precision: one of ``PRECISIONS``.
        measured: which genes of the panel were measured, [panel]; None for all. The others are
            unknown and not zero, as genes held out in training are.
    """
    cells, config, device = counts.shape[0], model.config, model.device
    found = EncodedCells(
        torch.zeros(cells, config.embedding_width), torch.zeros(cells, dtype=torch.long),
        torch.zeros(cells, config.code_width), torch.zeros(cells),
        torch.zeros(cells, len(model.properties), dtype=torch.long),
    )
    rough = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    blocks = list(loader.by_length(counts, tokens_at_once(model)))
    for block in blocks[distributed.rank() :: distributed.size()]:
        known = None if measured is None else np.tile(measured, (len(block), 1))
        batch = loader.make_batch(counts[block], depth[block], measured=known,
                                  target_depth=target_depth)
        with rough:
            cell, summary = model.encode(batch.to(device))
        taken = model.quantizer(summary)
        nearest = model.quantizer.distances(summary).topk(2, largest=False).values
        ratio = nearest[:, 0] / nearest[:, 1].clamp(min=1e-12)
        labels = [head(cell).argmax(1) for head in model.heads.values()]
        parts = (cell, taken.codes, taken.vectors, 1 - ratio)
        for whole, part in zip(found, parts, strict=False):
            whole[block] = part.cpu()
        if labels:
            found.properties[block] = torch.stack(labels, 1).cpu()
    # Every process left zeros where another was at work.
    return EncodedCells(*(distributed.total(whole.to(device)).cpu().numpy() for whole in found))


def tokens_at_once(model: CellVQ) -> int:
    """Return how many tokens fit into a quarter of the free memory of the model's device."""
    config = model.config
    per_token = 4 * (10 * config.width + 2 * config.feedforward + 4 * config.value_bins)
    fit = loader.free_memory(model.device) / 4 / per_token
    return int(min(max(fit, 1), MOST_TOKENS[model.device.type]))
