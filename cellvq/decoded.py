"""The expression that codes stand for: what a model decodes from the vector of a code or parent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellvq import InputError, encoding, weights
from cellvq.model import CellVQ

DEPTH = 10_000.0
"""UMI counts of the cell that is decoded."""


def model_of(encoded: Mapping, model: CellVQ | str | Path) -> CellVQ:
    """Make sure that cells were encoded by this very model.

    Args:
        encoded: ``cells.uns["cellvq"]``.
        model: the model, or its folder.

    Raises:
        InputError: they were encoded by another one.
    """
    if not isinstance(model, CellVQ):
        model = encoding.load(model)
    known = str(encoded.get("weights_sha256", "none"))
    if weights.fingerprint(model) != known:
        raise InputError(
            f"the cells were encoded by another model (weights {known[:12]}, and this one has "
            f"{weights.fingerprint(model)[:12]}); name the model that encoded them"
        )
    return model


@torch.no_grad()
def decoded_expression(model: CellVQ, addresses: Iterable[str] | None = None) -> pd.DataFrame:
    """Decode the mean expression of codes and their parents.

    Args:
        model: a trained model.
        addresses: codes or parents that are wanted; by default all of the codebook. Others than
            the model's are left out.

    Returns:
        log1p of the mean counts of a cell of 10,000 UMI, as the mean over the training batches,
        [addresses, panel], coarsest level first.

    Example:
        >>> from cellvq.config import ModelConfig
        >>> model = CellVQ(ModelConfig(), panel=["CD3D", "LYZ", "NKG7"])
        >>> decoded_expression(model, ["C00", "C01"]).shape
        (2, 3)
    """
    quantizer, tables = model.quantizer, []
    wanted = None if addresses is None else list(addresses)
    for level in range(len(quantizer.sizes)):
        table = pd.DataFrame(_mean_expression(model, quantizer.vectors_at(level)),
                             quantizer.addresses(level), model.panel)
        tables.append(table if wanted is None else table[table.index.isin(wanted)])
    return np.log1p(pd.concat(tables).rename_axis("address"))


def _mean_expression(model: CellVQ, vectors: torch.Tensor) -> np.ndarray:
    """Mean counts at ``DEPTH``, over batches, [vectors, panel]."""
    vectors, genes = vectors.float(), model.gene_table()[: len(model.panel)]
    depth, batch = vectors.new_full((len(vectors),), DEPTH), max(len(model.batches), 1)
    total = 0
    for number in range(batch):
        said = model.decoder(vectors, depth, torch.full_like(depth, number, dtype=torch.long),
                             genes)
        kept = 1 if said.dropout_logit is None else torch.sigmoid(-said.dropout_logit)
        total = total + said.mean * kept
    return (total / batch).cpu().numpy()
