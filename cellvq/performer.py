"""The decoder of the release: linear attention over the tokens of all genes at once.

It gives the released decoder's weights a place and is what our gene-query decoder in `model` is
compared with; at 19,264 tokens a cell it costs more than the encoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def count_features(head: int) -> int:
    """Return how many random features suit heads of a width: d ln d, for an even error.

    Example:
        >>> count_features(64)
        266
    """
    return int(head * math.log(head))


def random_projection(features: int, width: int) -> Tensor:
    """Draw the directions of the random features, [features, width].

    Directions of one block of ``width`` are orthogonal, which lowers the variance of the estimate;
    their lengths are those of normal vectors.
    """
    blocks = -(-features // width)
    directions = torch.linalg.qr(torch.randn(blocks, width, width)).Q.mT.flatten(0, 1)[:features]
    return directions * torch.randn(features, width).norm(dim=1, keepdim=True)


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor, projection: Tensor) -> Tensor:
    """Estimate softmax attention at a cost that is linear in the tokens (FAVOR+).

    Positive random features turn the softmax kernel into a product, so that the keys meet the
    values before the queries come (Choromanski et al. 2021, arXiv 2009.14794).

    Args:
        queries: [..., tokens, head width].
        keys: [..., tokens, head width].
        values: [..., tokens, head width].
        projection: directions of the random features, [features, head width].

    Example:
        >>> one = torch.ones(1, 5, 4)  # equal keys: attention is the mean of the values
        >>> values = torch.arange(20.0).reshape(1, 5, 4)
        >>> linear_attention(one, one, values, random_projection(8, 4))[0, 0].round().tolist()
        [8.0, 9.0, 10.0, 11.0]
    """
    # What is subtracted below the exponential, as it might overflow, cancels in the quotient if it
    # is one number a query, and one number for all keys.
    queries, of_query = _features(queries.float(), projection)
    keys, of_key = _features(keys.float(), projection)
    queries = (queries - of_query.amax(-1, keepdim=True)).exp() + 1e-4
    keys = (keys - of_key.amax((-2, -1), keepdim=True)).exp() + 1e-4
    weighted = queries @ (keys.mT @ values.float())
    return weighted / (queries @ keys.sum(-2).unsqueeze(-1))


def _features(x: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the features and the projections in it, [..., tokens, features]."""
    x = x * x.shape[-1] ** -0.25
    projected = x @ projection.T
    return projected - x.square().sum(-1, keepdim=True) / 2, projected


class Block(nn.Module):
    """One pre-norm block: linear attention, then a GELU feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, head = heads, width // heads
        self.register_buffer("projection", random_projection(count_features(head), head))
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out_of_attention = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.into_feedforward = nn.Linear(width, 4 * width)
        self.out_of_feedforward = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Update the tokens of some cells, [cells, tokens, width]."""
        normed = self.attention_norm(x)
        per_head = [
            into(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for into in (self.query, self.key, self.value)
        ]
        with torch.autocast(x.device.type, enabled=False):  # exponentials need float32
            attended = linear_attention(*per_head, self.projection)
        x = x + self.out_of_attention(attended.transpose(1, 2).flatten(2))
        return x + self.out_of_feedforward(F.gelu(self.into_feedforward(self.feedforward_norm(x))))


class PerformerDecoder(nn.Module):
    """Counts of every gene from one vector per cell, by a transformer over the tokens of all genes.

    The shapes are those of the release. How the release joins the quantised cell vector and its
    gene tokens is not known to us; here each token is the sum of the gene's embedding and the cell
    vector. The random features are drawn once, where the release draws them anew now and then.

    Args:
        width_in: width of the gene embeddings and of the cell vectors.
        width: width of the decoder's tokens.
        layers: number of blocks.
        heads: attention heads of a block; they divide the width.

    Example:
        >>> decoder = PerformerDecoder(width_in=8, width=16, layers=1, heads=2)
        >>> log_mean, dispersion, dropout_logit = decoder(torch.randn(5, 8), torch.randn(3, 8))
        >>> log_mean.shape
        torch.Size([3, 5])
    """

    def __init__(self, width_in: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.into = nn.Linear(width_in, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.block_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)  # two in a row, as released
        self.mean = nn.Linear(width, 1)
        self.dispersion = nn.Linear(width, 1)
        self.dropout = nn.Linear(width, 1)
        # The release has a head for the normalised value too. Counts do not need it: it is kept
        # as it came.
        self.value = nn.Linear(width, 1).requires_grad_(False)

    def forward(self, gene_table: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode cells; memory grows with cells x genes, so pass few cells at a time.

        Args:
            gene_table: embeddings of the genes, [genes, input width].
            vectors: cell vectors, continuous or quantised, [cells, input width].

        Returns:
            Log of the mean, dispersion before the softplus and logit of an extra zero, each
            [cells, genes].
        """
        # Linear(gene + cell) without the sum of [cells, genes, input width].
        x = self.into(gene_table) + F.linear(vectors, self.into.weight).unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(self.block_norm(x))
        return self.mean(x).squeeze(-1), self.dispersion(x).squeeze(-1), self.dropout(x).squeeze(-1)
