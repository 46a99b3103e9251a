"""From one vector per cell back to the counts of every gene: two decoders and their likelihood.

New models ask the cell vector for every gene at once (`QueryDecoder`), at the price of two small
matrix products. The release attends over all 19,266 tokens instead (`PerformerDecoder`), which
costs more than its encoder; the book's page on scale shows both prices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq.config import ModelConfig
from cellvq.performer import PerformerDecoder


def build(config: ModelConfig, panel: int, batches: int) -> QueryDecoder | AttentionDecoder:
    """Make the decoder that a configuration names.

    Args:
        config: the network's numbers.
        panel: number of genes.
        batches: number of training batches, at least 1.
    """
    kind = {"query": QueryDecoder, "performer": AttentionDecoder}[config.decoder]
    return kind(config, panel, batches)


class Counts(NamedTuple):
    """A (zero-inflated) negative binomial of the counts of every gene of every cell."""

    mean: Tensor
    """Mean of the negative binomial, [cells, panel]."""
    dispersion: Tensor
    """Inverse overdispersion, [panel] or [cells, panel]."""
    dropout_logit: Tensor | None
    """Logit of an extra zero, [cells, panel]; None for a plain negative binomial."""

    def log_likelihood(self, counts: Tensor) -> Tensor:
        """Return the log probability of each count, [cells, panel]."""
        r, mean = self.dispersion, self.mean
        log_total = torch.log(r + mean)
        log_zero = r * (torch.log(r) - log_total)  # probability of a zero
        log_nb = (
            log_zero
            + counts * (torch.log(mean) - log_total)
            + torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1)
        )
        if self.dropout_logit is None:
            return log_nb
        log_kept = F.logsigmoid(-self.dropout_logit)
        log_dropped = F.logsigmoid(self.dropout_logit)
        zero = torch.logaddexp(log_dropped, log_kept + log_zero)
        return torch.where(counts > 0, log_kept + log_nb, zero)

    def at(self, places: Tensor) -> Counts:
        """Keep some places only: indices into the flattened [cells, panel]."""
        dispersion = self.dispersion.expand_as(self.mean)
        parts = (self.mean, dispersion, self.dropout_logit)
        return Counts(*(None if part is None else part.flatten()[places] for part in parts))


def rate_to_mean(log_rate: Tensor, depth: Tensor) -> Tensor:
    """Turn the log of a rate per 10,000 UMI into the mean count at depths [cells]."""
    log_mean = log_rate + torch.log(depth / 1e4).unsqueeze(1)
    return log_mean.clamp(math.log(1e-5), math.log(1e6)).exp()


class QueryDecoder(nn.Module):
    """Counts of every gene of the panel from one vector per cell, by one query per gene.

    The decoder sees the batch, both as a shift of each gene and together with the cell vector (a
    batch may change each cell type in its own way), so that the vector and the code need not carry
    it.
    """

    def __init__(self, config: ModelConfig, panel: int, batches: int) -> None:
        super().__init__()
        width, hidden = config.code_width, config.decoder_width
        self.queries = nn.Parameter(torch.randn(panel, width) * 0.01)
        self.log_rate = nn.Parameter(torch.zeros(panel))  # log of the mean rate per 10,000 UMI
        self.log_dispersion = nn.Parameter(torch.zeros(panel))
        self.batch_shift = nn.Parameter(torch.zeros(batches, panel))
        self.batch_embedding = nn.Parameter(torch.zeros(batches, hidden))
        nn.init.normal_(self.batch_embedding, std=0.1)
        self.into_bend = nn.Linear(width, hidden)  # what is not linear in the cell vector
        self.out_of_bend = nn.Linear(hidden, panel, bias=False)
        nn.init.zeros_(self.out_of_bend.weight)
        self.dropout = nn.Linear(width, panel) if config.likelihood == "zinb" else None
        if self.dropout is not None:
            nn.init.zeros_(self.dropout.weight)
            nn.init.constant_(self.dropout.bias, -3.0)

    def forward(self, vectors: Tensor, depth: Tensor, batch: Tensor, genes: Tensor) -> Counts:
        """Decode vectors [cells, code width] at depths [cells] in batches [cells] (-1: average).

        Args:
            vectors: cell vectors or code vectors.
            depth: total UMI counts at which to predict.
            batch: index of each cell's batch.
            genes: embedding of each gene; this decoder has queries of its own instead.
        """
        with torch.autocast(vectors.device.type, enabled=False):  # cheap: keep it exact
            known, batch = (batch >= 0).float().unsqueeze(1), batch.clamp(min=0)
            bend = self.into_bend(vectors) + known * self.batch_embedding[batch]
            log_rate = self.log_rate + vectors @ self.queries.T + self.out_of_bend(F.gelu(bend))
            log_rate = log_rate + known * self.batch_shift[batch]
            dispersion = F.softplus(self.log_dispersion).clamp(1e-4, 1e4)
            dropout = None if self.dropout is None else self.dropout(vectors)
            return Counts(rate_to_mean(log_rate, depth), dispersion, dropout)


class AttentionDecoder(nn.Module):
    """Counts of every gene from one vector per cell, by attention over all genes of the panel.

    It knows no batches, as the released one does not.
    """

    def __init__(self, config: ModelConfig, panel: int, batches: int) -> None:
        super().__init__()
        self.zero_inflated = config.likelihood == "zinb"
        self.performer = PerformerDecoder(
            config.code_width, config.decoder_width, config.decoder_layers, config.decoder_heads
        )

    def forward(self, vectors: Tensor, depth: Tensor, batch: Tensor, genes: Tensor) -> Counts:
        """Decode vectors [cells, code width] at depths [cells].

        Args:
            vectors: cell vectors or code vectors.
            depth: total UMI counts at which to predict.
            batch: index of each cell's batch; not used.
            genes: embedding of each gene, [panel, code width].
        """
        parts = self.performer(genes, vectors)
        log_rate, dispersion, dropout = (part.float() for part in parts)
        dispersion = F.softplus(dispersion).clamp(1e-4, 1e4)
        mean = rate_to_mean(log_rate, depth)
        return Counts(mean, dispersion, dropout if self.zero_inflated else None)
