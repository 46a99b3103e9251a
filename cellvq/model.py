"""The CellVQ network, in the order in which a cell passes through it.

counts -> gene tokens -> set transformer -> cell vector -> SCD (code) -> decoder -> all counts.

Method: Nature Communications 2026, 17:4037 (doi 10.1038/s41467-026-70071-5). Two things are ours,
as measured to matter at laptop size: the cell vector starts as a principal component analysis on
which the transformer improves (`CellVector`), and the decoder asks the cell vector for every gene
at once (`Decoder`) where the release runs a second transformer over all genes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq import quantize
from cellvq.config import ModelConfig
from cellvq.loader import Batch


class Counts(NamedTuple):
    """A (zero-inflated) negative binomial of the counts of every gene of every cell."""

    mean: Tensor
    """Mean of the negative binomial, [cells, panel]."""
    dispersion: Tensor
    """Inverse overdispersion, [panel]."""
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


class Output(NamedTuple):
    """What the model says of some cells."""

    cell: Tensor
    """Continuous cell vectors, [cells, cell width]."""
    quantized: quantize.Quantized
    """Their codes and code vectors."""
    from_cell: Counts
    """Counts decoded from the continuous vector."""
    from_code: Counts
    """Counts decoded from the code alone."""


class ValueEmbedding(nn.Module):
    """Soft auto-discretisation: an expression value becomes a mixture of learnt bin vectors."""

    def __init__(self, bins: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(1, bins)
        self.second = nn.Linear(bins, bins)
        self.table = nn.Linear(bins, width, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """Embed values, [...] -> [..., width]."""
        a = F.leaky_relu(self.first(values.unsqueeze(-1)), 0.1)
        return self.table((self.second(a) + a).softmax(-1))


class Layer(nn.Module):
    """One pre-norm transformer layer over a set of tokens; a set has no positions."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.into_attention = nn.Linear(width, 3 * width)
        self.out_of_attention = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.into_feedforward = nn.Linear(width, feedforward)
        self.out_of_feedforward = nn.Linear(feedforward, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Update tokens [cells, tokens, width]; ``mask`` [cells, 1, 1, tokens] is -inf at pads."""
        qkv = self.into_attention(self.attention_norm(x))
        if x.device.type == "cpu":  # torch's attention on CPU is slower in bf16 than in float32
            qkv = qkv.float()
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        x = x + self.out_of_attention(attended.transpose(1, 2).flatten(2))
        return x + self.out_of_feedforward(F.gelu(self.into_feedforward(self.feedforward_norm(x))))


class CellVector(nn.Module):
    """The cell vector: a linear path that starts as PCA, plus a gated view of the transformer.

    With few cells a transformer from a random start ends far below PCA. So the linear path starts
    on the components of the training cells (`objective.warm_start` fills them in), the gate starts
    small, and training moves away from PCA only where the likelihood gains by it.
    """

    def __init__(self, panel: int, pooled: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(panel))  # of the log-normalised training cells
        self.register_buffer("ceiling", torch.full((panel,), 100.0))  # no cell counts for more
        self.components = nn.Parameter(torch.randn(panel, width) / math.sqrt(panel))
        self.norm = nn.LayerNorm(pooled)
        self.view = nn.Linear(pooled, width)
        self.gate = nn.Parameter(torch.tensor(0.1))

    def forward(self, pooled: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
        """Make cell vectors from pooled tokens [cells, pooled] and all values [cells, panel]."""
        centred = torch.minimum(values, self.ceiling) - self.mean
        if hidden is not None:
            # A gene that is held out counts as average; the rest speaks a little louder for it.
            centred = centred.masked_fill(hidden, 0.0) / (1 - hidden.float().mean())
        with torch.autocast(values.device.type, enabled=False):
            linear = centred @ self.components
        return linear + self.gate * self.view(self.norm(pooled)).float()


class Decoder(nn.Module):
    """Counts of every gene of the panel from one vector per cell, by one query per gene.

    The decoder sees the batch, both as a shift of each gene and together with the cell vector (a
    batch may change each cell type in its own way), so that the vector and the code need not carry
    it.
    """

    def __init__(self, config: ModelConfig, panel: int, batches: int) -> None:
        super().__init__()
        width, hidden = config.cell_width, config.decoder_width
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

    def forward(self, vectors: Tensor, depth: Tensor, batch: Tensor) -> Counts:
        """Decode vectors [cells, cell width] at depths [cells] in batches [cells] (-1: average)."""
        known, batch = (batch >= 0).float().unsqueeze(1), batch.clamp(min=0)
        bend = self.into_bend(vectors) + known * self.batch_embedding[batch]
        log_rate = self.log_rate + vectors @ self.queries.T + self.out_of_bend(F.gelu(bend))
        log_rate = log_rate + known * self.batch_shift[batch]
        log_mean = log_rate + torch.log(depth / 1e4).unsqueeze(1)
        mean = log_mean.clamp(math.log(1e-5), math.log(1e6)).exp()
        dispersion = F.softplus(self.log_dispersion).clamp(1e-4, 1e4)
        return Counts(mean, dispersion, None if self.dropout is None else self.dropout(vectors))


class CellVQ(nn.Module):
    """A single-cell foundation model whose cell vectors are quantised into cell codes.

    Args:
        config: the network's numbers.
        panel: names of the genes the model sees, in its order.
        batches: names of the training batches; empty where there is one.

    Example:
        >>> from cellvq.loader import make_batch
        >>> from scipy.sparse import csr_matrix
        >>> model = CellVQ(ModelConfig(), panel=["CD3D", "LYZ", "NKG7"]).eval()
        >>> output = model(make_batch(csr_matrix([[5, 0, 1], [0, 9, 0]])))
        >>> output.cell.shape, output.from_code.mean.shape
        (torch.Size([2, 16]), torch.Size([2, 3]))
    """

    def __init__(self, config: ModelConfig, panel: list[str], batches: list[str] = ()) -> None:
        super().__init__()
        self.config, self.panel, self.batches = config, list(panel), list(batches)
        genes, width = len(self.panel), config.width
        self.value_embedding = ValueEmbedding(config.value_bins, width)
        self.gene_embedding = nn.Embedding(genes + 1, width, padding_idx=genes)
        nn.init.normal_(self.gene_embedding.weight, std=0.3)
        self.depth_token = nn.Parameter(torch.randn(width) * 0.3)
        layer = (width, config.heads, config.feedforward)
        self.layers = nn.ModuleList(Layer(*layer) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.cell_vector = CellVector(genes, 3 * width, config.cell_width)
        self.quantizer = quantize.build(config.quantizer, config.cell_width)
        self.decoder = Decoder(config, genes, max(len(self.batches), 1))
    @property
    def device(self) -> torch.device:
        """The device on which the weights are."""
        return self.depth_token.device

    def encode(self, batch: Batch) -> Tensor:
        """Turn cells into continuous vectors, [cells, cell width].

        Each expressed gene is one token: what gene it is plus how much of it there is. One more
        token carries the sequencing depth. Padding is masked in attention and in both pools.
        """
        values = log_normalise(batch.counts, batch.depth)
        padded = F.pad(values, (0, 1)).gather(1, batch.genes)
        genes = self.gene_embedding(batch.genes) + self.value_embedding(padded)
        depth = self.depth_token + self.value_embedding(torch.log10(batch.depth))
        tokens = torch.cat([depth.unsqueeze(1), genes], 1)

        pad = F.pad(batch.genes == len(self.panel), (1, 0))
        mask = torch.zeros(pad.shape, device=pad.device).masked_fill_(pad, -torch.inf)
        mask = mask[:, None, None]
        for layer in self.layers:
            tokens = layer(tokens, mask)
        tokens = self.norm(tokens)

        depth, genes, pad = tokens[:, 0], tokens[:, 1:].float(), pad[:, 1:].unsqueeze(2)
        count = (~pad).sum(1).clamp(min=1)
        mean = genes.masked_fill(pad, 0.0).sum(1) / count
        # A cell without a visible gene has no largest one: 0 rather than minus infinity.
        largest = genes.masked_fill(pad, -torch.inf).amax(1).nan_to_num(neginf=0.0)
        return self.cell_vector(torch.cat([depth.float(), largest, mean], 1), values, batch.hidden)

    def forward(self, batch: Batch, progress: float = 1.0) -> Output:
        """Encode, discretise and decode some cells.

        Args:
            batch: the cells.
            progress: share of the training done, for quantisers that anneal.
        """
        cell = self.encode(batch)
        with torch.autocast(cell.device.type, enabled=False):  # the rest is cheap: keep it exact
            quantized = self.quantizer(cell, progress)
            from_cell = self.decoder(cell, batch.depth, batch.batch)
            from_code = self.decoder(quantized.vectors, batch.depth, batch.batch)
        return Output(cell, quantized, from_cell, from_code)


def log_normalise(counts: Tensor, depth: Tensor) -> Tensor:
    """Return ln(1 + 10,000 * count / depth), the value of a gene in a cell, [cells, panel]."""
    return torch.log1p(counts * (1e4 / depth).unsqueeze(1))


def parameter_table(model: CellVQ) -> dict[str, int]:
    """Count the parameters of each part of a model.

    Example:
        >>> sum(parameter_table(CellVQ(ModelConfig(), ["CD3D", "LYZ"])).values()) > 10_000
        True
    """
    table: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        table[part] = table.get(part, 0) + parameter.numel()
    return table
