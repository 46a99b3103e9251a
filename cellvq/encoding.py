"""A trained model and cells -> vectors, codes and confidences in the AnnData contract.

The room is not called ``encode``, since a module and a function of one name in a package shadow
each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

import cellvq
from cellvq import InputError, config, loader, weights
from cellvq.model import CellVQ

if TYPE_CHECKING:
    from anndata import AnnData

TOKENS_AT_ONCE = 100_000
"""Tokens (cells x expressed genes) that pass the model at once, about 200 MB for ``tiny``."""


def load(name_or_path: str | Path) -> CellVQ:
    """Load a trained model from the folder that `cellvq.pretrain` wrote.

    Args:
        name_or_path: the model's folder.

    Returns:
        The model, in evaluation mode, on the GPU where there is one.

    Raises:
        InputError: there is no model, or its files are damaged or of another version.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        cellvq.InputError: nowhere: no model here; name a folder that holds a config.json
    """
    path = Path(name_or_path)
    if str(name_or_path) in config.PRESETS and not path.exists():
        raise InputError(
            f"{name_or_path!r} is a preset to pretrain, not a trained model; name a model's folder"
        )
    model, _ = weights.read_model(path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def encode(cells: AnnData | str | Path, model: CellVQ | str | Path) -> AnnData:
    """Give every cell its continuous vector, its code and how sure the code is.

    A cell's answer does not depend on the other cells, their order or their number: all is computed
    in float32, and padding is masked wherever cells share a batch.

    Args:
        cells: cells with raw counts, or the file they are in; left as they are.
        model: the model, or its folder.

    Returns:
        A copy with ``obsm["X_cellvq"]`` (continuous vector, [cells, cell width]),
        ``obsm["X_cellvq_code"]`` (the code's vector), ``obs["cellvq_code"]`` (categorical, such as
        ``C07``), ``obs["cellvq_confidence"]`` (0 halfway between two codes, 1 on a code: one minus
        the ratio of the distances to the nearest and the second nearest code) and
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
    from cellvq import datasets, genes

    if isinstance(cells, str | Path):
        cells = datasets.load(cells)
    if not isinstance(model, CellVQ):
        model = load(model)
    matrix, where = genes.find_counts(cells)
    depth = genes.sequencing_depth(cells, matrix)
    matrix, matched = genes.align(cells, matrix, model.panel)
    matrix.sort_indices()
    vectors, codes, quantised, confidence = encode_counts(model, matrix, depth)

    empty = np.diff(matrix.indptr) == 0
    size = model.config.quantizer.codes
    digits = max(len(str(size - 1)), 2)
    names = pd.Series([f"C{code:0{digits}d}" for code in codes], index=cells.obs_names)
    vectors[empty], quantised[empty], confidence[empty] = np.nan, np.nan, np.nan
    encoded = cells.copy()
    encoded.obsm["X_cellvq"], encoded.obsm["X_cellvq_code"] = vectors, quantised
    encoded.obs["cellvq_code"] = pd.Categorical(names.mask(empty))
    encoded.obs["cellvq_confidence"] = confidence
    encoded.uns["cellvq"] = {
        "weights_sha256": weights.fingerprint(model),
        "codebook_size": size,
        "quantizer": model.config.quantizer.kind,
        "panel_size": len(model.panel),
        "genes_matched": matched,
        "counts_in": where,
        "empty_cells": int(empty.sum()),
        "cellvq_version": cellvq.__version__,
        "torch_version": str(torch.__version__),
    }
    return encoded


@torch.no_grad()
def encode_counts(
    model: CellVQ, counts, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Encode rows of counts, in blocks of cells with like numbers of expressed genes.

    Args:
        model: the model, in evaluation mode.
        counts: UMI counts of the model's panel, CSR with ascending indices, [cells, panel].
        depth: total UMI counts of each cell over all genes measured, [cells].

    Returns:
        Continuous vectors [cells, cell width], codes [cells], vectors of the codes [cells, cell
        width], confidences [cells].
    """
    cells, width = counts.shape[0], model.config.cell_width
    vectors, quantised = np.zeros((cells, width), np.float32), np.zeros((cells, width), np.float32)
    codes, confidence = np.zeros(cells, int), np.zeros(cells, np.float32)
    for block in loader.by_length(counts, TOKENS_AT_ONCE):
        batch = loader.make_batch(counts[block], depth[block]).to(model.device)
        cell = model.encode(batch)
        taken = model.quantizer(cell)
        nearest = model.quantizer.distances(cell).topk(2, largest=False).values
        ratio = nearest[:, 0] / nearest[:, 1].clamp(min=1e-12)
        vectors[block], codes[block] = cell.cpu().numpy(), taken.codes.cpu().numpy()
        quantised[block], confidence[block] = taken.vectors.cpu().numpy(), (1 - ratio).cpu().numpy()
    return vectors, codes, quantised, confidence
