"""Low-rank additions to the attention of a trained model, by which it learns with few weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cellvq.model import CellVQ

RANK = 8
"""Rank of the addition to a weight matrix."""


class LowRank(nn.Module):
    """A weight matrix plus a learnt product of two thin ones (LoRA, arXiv 2106.09685)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(RANK, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.out = nn.Parameter(torch.zeros(weight.shape[0], RANK))  # so nothing changes at first

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight matrix."""
        return weight + self.out @ self.into


def adapt(model: CellVQ) -> None:
    """Freeze the encoder but for low-rank additions to its attention and its linear path.

    Args:
        model: the model; changed in place. Its decoder and heads learn as before, since new batches
            and labels are theirs.
    """
    frozen = (model.value_embedding, model.gene_embedding, model.prior, model.layers, model.norm)
    for part in frozen:
        if part is not None:
            part.requires_grad_(False)
    for linear in _adapted(model):
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight))


def merge(model: CellVQ) -> None:
    """Fold what the additions learnt into the weights they were added to, if there are any."""
    for linear in _adapted(model):
        if parametrize.is_parametrized(linear, "weight"):
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
    model.requires_grad_(True)


def _adapted(model: CellVQ) -> list[nn.Linear]:
    return [linear for layer in model.layers
            for linear in (layer.into_attention, layer.out_of_attention)]
