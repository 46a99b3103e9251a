"""The CellVQ network, in the order in which a cell passes through it.

counts -> gene tokens -> set transformer -> cell vector -> SCD (code) -> decoder -> all counts.

Method: Nature Communications 2026, 17:4037 (doi 10.1038/s41467-026-70071-5). One network serves
every size, from ``tiny`` to the shape of the released weights. Two things are ours, as measured to
matter: the cell vector starts as a principal component analysis on which the transformer improves
(`CellVector`), and the decoder asks the cell vector for every gene at once (`cellvq.decoder`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq import decoder, quantize
from cellvq.attention import attend
from cellvq.config import ModelConfig
from cellvq.decoder import Counts
from cellvq.loader import Batch


class Encoded(NamedTuple):
    """Cells after the encoder."""

    cell: Tensor
    """Continuous cell vectors, the embedding that users get, [cells, embedding width]."""
    summary: Tensor
    """What is quantised, [cells, code width]; the same as ``cell`` but in the released shape."""


class Output(NamedTuple):
    """What the model says of some cells."""

    cell: Tensor
    """Continuous cell vectors, [cells, embedding width]."""
    quantized: quantize.Quantized
    """Their codes and code vectors."""
    from_cell: Counts
    """Counts decoded from what was quantised."""
    from_code: Counts
    """Counts decoded from the code alone."""
    properties: dict[str, Tensor]
    """For each property a logit of each of its labels, [cells, labels]."""


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


class GenePrior(nn.Module):
    """A learnt gene-by-gene matrix, projected to the tokens' width, as released.

    A gene's part is ``into(matrix[gene])``, so once trained it folds exactly into the table of gene
    embeddings (`CellVQ.fold_prior`), and 72 % of the released parameters are not needed any more.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(tokens))
        self.into = nn.Linear(tokens, width)

    def forward(self) -> Tensor:
        """Return each token's part in its embedding, [tokens, width]."""
        return self.into(self.matrix)


class Layer(nn.Module):
    """One transformer layer over a set of tokens; a set has no positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.heads, self.before = config.width, config.heads, config.norm == "pre"
        self.activation = {"gelu": F.gelu, "relu": F.relu}[config.activation]
        self.attention_norm = nn.LayerNorm(width)
        self.into_attention = nn.Linear(width, 3 * width)
        self.out_of_attention = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.into_feedforward = nn.Linear(width, config.feedforward)
        self.out_of_feedforward = nn.Linear(config.feedforward, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Update tokens [cells, tokens, width]; ``mask`` [cells, 1, 1, tokens] is -inf at pads."""
        if self.before:
            x = x + self.attend(self.attention_norm(x), mask)
            return x + self.feed(self.feedforward_norm(x))
        x = self.attention_norm(x + self.attend(x, mask))
        return self.feedforward_norm(x + self.feed(x))

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Let every token look at every other of its cell."""
        qkv = self.into_attention(x).unflatten(-1, (3, self.heads, -1))
        attended = attend(*qkv.permute(2, 0, 3, 1, 4), mask)
        return self.out_of_attention(attended.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """Pass each token through the feed-forward network."""
        return self.out_of_feedforward(self.activation(self.into_feedforward(x)))


NOISE = 0.05
"""Variance of a gene around the components, over that of a component."""


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
        self.gate = nn.Parameter(torch.tensor([0.1]))  # one number, in a shape FSDP2 can divide

    def forward(
        self, pooled: Tensor, values: Tensor, hidden: Tensor | None, measured: Tensor | None
    ) -> Tensor:
        """Make cell vectors from pooled tokens [cells, pooled] and all values [cells, panel]."""
        centred = torch.minimum(values, self.ceiling) - self.mean
        if hidden is not None:
            # A gene that is held out counts as average; the rest speaks a little louder for it.
            there = torch.ones_like(hidden) if measured is None else measured
            shown = (there & ~hidden).sum(1, keepdim=True) / there.sum(1, keepdim=True)
            centred = centred.masked_fill(hidden, 0.0) / shown.clamp(min=0.01)
        with torch.autocast(values.device.type, enabled=False):
            linear = centred @ self.components
            if measured is not None:
                linear = self.complete(linear, measured)
        return linear + self.gate * self.view(self.norm(pooled)).float()

    def complete(self, linear: Tensor, measured: Tensor) -> Tensor:
        """Estimate what all genes would give from what those give that were measured.

        Whole sets of genes may be missing, and the others need not be like them. So each set of
        measured genes has its own way back, the posterior mean of probabilistic PCA (doi
        10.1111/1467-9868.00196), which also shrinks what few genes cannot tell.

        Args:
            linear: what the measured genes give, [cells, width].
            measured: the genes that were measured, [cells, panel] bool.
        """
        axes = self.components * (self.ceiling - self.mean)[:, None]  # of genes at unit variance
        sets, which = torch.unique(measured, dim=0, return_inverse=True)
        whole = axes.T @ axes
        noise = torch.diag(NOISE * whole.diagonal())
        there = (axes * sets[:, :, None]).mT @ axes
        back = torch.linalg.solve(there + noise, whole + noise)
        return (back[which] @ linear[:, :, None]).squeeze(2)


class CellVQ(nn.Module):
    """A single-cell foundation model whose cell vectors are quantised into cell codes.

    Args:
        config: the network's numbers.
        panel: names of the genes the model sees, in its order.
        batches: names of the training batches; empty where there is one.
        properties: labels of each property that a head predicts, such as the cell type.

    Example:
        >>> from cellvq.loader import make_batch
        >>> from scipy.sparse import csr_matrix
        >>> model = CellVQ(ModelConfig(), panel=["CD3D", "LYZ", "NKG7"]).eval()
        >>> output = model(make_batch(csr_matrix([[5, 0, 1], [0, 9, 0]])))
        >>> output.cell.shape, output.from_code.mean.shape
        (torch.Size([2, 16]), torch.Size([2, 3]))
    """

    def __init__(
        self, config: ModelConfig, panel: Sequence[str], batches: Sequence[str] = (),
        properties: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.panel, self.batches = config, list(panel), list(batches)
        self.properties = {name: list(labels) for name, labels in (properties or {}).items()}
        genes, width = len(self.panel), config.width
        self.value_embedding = ValueEmbedding(config.value_bins, width)
        # After the genes come T (target depth), S (source depth) and padding, as released.
        self.gene_embedding = nn.Embedding(genes + 3, width, padding_idx=genes + 2)
        nn.init.normal_(self.gene_embedding.weight, std=0.3)
        self.prior = GenePrior(genes + 2, width) if config.prior == "dense" else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.cell_vector = (
            CellVector(genes, 4 * width, config.cell_width)
            if config.cell_vector == "components" else None
        )
        self.quantizer = quantize.build(config.quantizer, config.code_width)
        self.decoder = decoder.build(config, genes, max(len(self.batches), 1))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.embedding_width, len(labels))
             for name, labels in self.properties.items()}
        )

    @property
    def device(self) -> torch.device:
        """The device on which the weights are."""
        return self.norm.weight.device

    def gene_table(self) -> Tensor:
        """Return the embedding of every gene, of T, S and of padding, [panel + 3, width]."""
        table = self.gene_embedding.weight
        return table if self.prior is None else table + F.pad(self.prior(), (0, 0, 0, 1))

    def encode(self, batch: Batch) -> Encoded:
        """Turn cells into continuous vectors.

        Each expressed gene is one token: what gene it is plus how much of it there is. Two more
        carry the sequencing depth: that of the target (T), at which counts are to be predicted, and
        that of the source (S), at which they were seen. Padding is masked in attention and in both
        pools.
        """
        panel = len(self.panel)
        values = log_normalise(batch.counts if batch.seen is None else batch.seen, batch.depth)
        target = batch.depth if batch.target is None else batch.target
        depths = torch.log10(torch.stack([target, batch.depth], 1))
        genes = F.pad(batch.genes, (0, 2))
        genes[:, -2], genes[:, -1] = panel, panel + 1
        seen = F.pad(values, (0, 3)).gather(1, batch.genes)
        with torch.autocast(values.device.type, enabled=False):  # cheap, and values are exact
            tokens = self.value_embedding(torch.cat([seen, depths], 1))
        tokens = tokens + F.embedding(genes, self.gene_table())

        pad = F.pad(batch.genes == panel + 2, (0, 2))
        mask = None
        if batch.padded:
            mask = torch.zeros(pad.shape, device=pad.device).masked_fill_(pad, -torch.inf)
            mask = mask[:, None, None]
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return self.summarise(self.norm(tokens).float(), pad.unsqueeze(2), values, batch)

    def summarise(self, tokens: Tensor, pad: Tensor, values: Tensor, batch: Batch) -> Encoded:
        """Pool the tokens [cells, tokens, width] of each cell; the last two are T and S."""
        genes, pad = tokens[:, :-2], pad[:, :-2]
        mean = genes.masked_fill(pad, 0.0).sum(1) / (~pad).sum(1).clamp(min=1)
        largest = genes.masked_fill(pad, -torch.inf).amax(1)
        target, source = tokens[:, -2], tokens[:, -1]
        # A cell without a visible gene has no largest one: 0 rather than minus infinity.
        pooled = torch.cat([source, target, largest.nan_to_num(neginf=0.0), mean], 1)
        if self.cell_vector is None:
            return Encoded(pooled, torch.maximum(largest, torch.maximum(source, target)))
        cell = self.cell_vector(pooled, values, batch.hidden, batch.measured)
        return Encoded(cell, cell)

    def forward(self, batch: Batch, progress: float = 1.0) -> Output:
        """Encode, discretise and decode some cells.

        Args:
            batch: the cells.
            progress: share of the training done, for quantisers that anneal.
        """
        cell, summary = self.encode(batch)
        depth = batch.depth if batch.target is None else batch.target
        genes = self.gene_table()[: len(self.panel)]
        with torch.autocast(cell.device.type, enabled=False):  # cheap, and codes are exact
            quantized = self.quantizer(summary, progress)
            properties = {name: head(cell) for name, head in self.heads.items()}
        from_cell = self.decoder(summary, depth, batch.batch, genes)
        from_code = self.decoder(quantized.vectors, depth, batch.batch, genes)
        return Output(cell, quantized, from_cell, from_code, properties)

    @torch.no_grad()
    def fold_prior(self) -> CellVQ:
        """Fold the dense gene prior into the gene embeddings; what the model says stays the same.

        Returns:
            A model without the prior that shares all other weights with this one.
        """
        config = dataclasses.replace(self.config, prior="none")
        with torch.device("meta"):
            folded = CellVQ(config, self.panel, self.batches, self.properties)
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("prior.")}
        folded.load_state_dict(state | {"gene_embedding.weight": self.gene_table()}, assign=True)
        return folded.train(self.training)


def log_normalise(counts: Tensor, depth: Tensor) -> Tensor:
    """Return ln(1 + 10,000 * count / depth), the value of a gene in a cell, [cells, panel]."""
    return torch.log1p(counts * (1e4 / depth).unsqueeze(1))


def parameter_table(model: CellVQ) -> dict[str, int]:
    """Count the parameters of each part of a model.

    A model on the ``meta`` device has shapes and no weights, so even the largest is counted at no
    cost.

    Example:
        >>> with torch.device("meta"):
        ...     model = CellVQ(ModelConfig(), ["CD3D", "LYZ"])
        >>> sum(parameter_table(model).values()) > 10_000
        True
    """
    table: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        table[part] = table.get(part, 0) + parameter.numel()
    return table
