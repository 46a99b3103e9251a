"""The network of the graph module: one reading of a cell's tokens, a quantiser, a decoder.

It starts as the linear path: the cell vector, moved towards its neighbours as far as a linear fit
asks for, and the best linear decoder. The cell then asks all its tokens once (graph attention,
arXiv 1710.10903), and learns what to add. There is one layer only, so that what the cell attends
to is all that reaches it, and deleting a token deletes what it brought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq import InputError, decoder, quantize
from cellvq.config import ModelConfig, QuantizerConfig
from cellvq.graphtokens import Tokens, Vocabulary

SHRUNK = 0.05
"""Share of the mean profile in every prediction, as one molecule would else decide."""


@dataclass(frozen=True)
class GraphConfig:
    """Numbers of the graph module and of its training."""

    width: int = 64
    """Width of a token."""
    heads: int = 4
    """Attention heads; they divide the width."""
    codes: int = 32
    """Size of the codebook."""
    prefixes: tuple[int, ...] = (8,)
    """Number of codes of each coarser level."""
    likelihood: str = "nb"
    """``nb`` or ``zinb``, the distribution of a gene's counts given the cell."""
    steps: int = 200
    """Optimizer steps."""
    batch_size: int = 128
    """Cells a step."""
    learning_rate: float = 3e-3
    """Peak learning rate of the attention; what starts at a fit learns a third as fast."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefixes", tuple(self.prefixes))
        if self.heads < 1 or self.width % self.heads:
            raise InputError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.steps < 1 or self.batch_size < 2:
            raise InputError("steps must be at least 1 and batch_size at least 2")
        self.quantizer  # noqa: B018 - checks the codes
        self.decoder(2)

    @property
    def quantizer(self) -> QuantizerConfig:
        """The discretization."""
        return QuantizerConfig("nested" if self.prefixes else "ema", self.codes, self.prefixes)

    def decoder(self, width: int) -> ModelConfig:
        """Return the decoder's numbers for cell vectors of some width."""
        return ModelConfig(cell_width=width, decoder_width=32, likelihood=self.likelihood)


class Attended(NamedTuple):
    """What the module makes of cells."""

    vectors: Tensor
    """Cell vectors after attention, [cells, vector width]."""
    read: Tensor
    """Attention of the cell to its tokens, mean over heads, [cells, tokens]."""


class GraphNetwork(nn.Module):
    """A cell's question to its tokens, quantiser and decoder."""

    def __init__(self, config: GraphConfig, words: Vocabulary) -> None:
        super().__init__()
        width, out = config.width, words.axes.shape[1]
        self.config = config
        self.cell = nn.Linear(out, width)
        self.gene = nn.Embedding(len(words.genes), width)
        self.value = nn.Linear(1, width)
        sizes = [len(known) for known in words.annotations.values()]
        first = torch.tensor([0, *np.cumsum(sizes)[:-1]] if sizes else [], dtype=torch.long)
        self.register_buffer("first", first, persistent=False)
        self.annotation = nn.Embedding(max(sum(sizes), 1), width)
        self.neighbour = nn.Linear(out, width)
        self.pair = nn.Embedding(max(len(words.pairs), 1), width)
        self.partner = nn.Linear(out, width)
        self.weight = nn.Linear(1, width)
        self.kind = nn.Parameter(0.02 * torch.randn(6, width))
        self.norm = nn.LayerNorm(width)
        self.ask, self.answer = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.bend = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
        self.add = nn.Linear(width, out)
        nn.init.zeros_(self.add.weight)
        nn.init.zeros_(self.add.bias)
        self.gate = nn.Parameter(torch.zeros(out))  # how far a vector moves to its neighbours
        self.quantizer = quantize.build(config.quantizer, out)
        self.register_buffer("profile", torch.zeros(len(words.genes)))  # mean share of each gene
        self.decoder = decoder.build(config.decoder(out), len(words.genes), 1)

    def forward(self, batch: dict[str, Tensor], keep: Tensor) -> Attended:
        """Ask the tokens of cells.

        Args:
            batch: what :func:`gather` returns.
            keep: which tokens are there, [cells, tokens] bool.
        """
        x = self.norm(self._embed(batch))
        query = self.ask(x[:, 0]).unflatten(-1, (self.config.heads, -1))
        keys, values = (part.unflatten(-1, (self.config.heads, -1))
                        for part in self.answer(x).chunk(2, -1))
        score = torch.einsum("chw,cthw->cht", query, keys) / query.shape[-1] ** 0.5
        share = score.masked_fill(~keep[:, None], -1e9).softmax(-1)
        heard = torch.einsum("cht,cthw->chw", share, values).flatten(1)
        read, vectors, near = share.mean(1), batch["features"], batch["near"]
        if near.shape[1]:
            first = 1 + batch["gene"].shape[1] + batch["annotation"].shape[1]
            part = slice(first, first + near.shape[1])
            weight = read[:, part] * keep[:, part]
            total = weight.sum(1, keepdim=True)
            mean = (weight[:, :, None] * near).sum(1) / total.clamp(min=1e-9)
            vectors = vectors + self.gate * (total > 0) * (mean - vectors)
        return Attended(vectors + self.add(self.bend(torch.cat([x[:, 0], heard], 1))), read)

    def predict(self, vectors: Tensor, depth: Tensor) -> decoder.Counts:
        """Return the distribution of the counts of each gene, given vectors or code vectors.

        Args:
            vectors: [cells, vector width].
            depth: molecules in which to predict, [cells].
        """
        nowhere = torch.full((len(vectors),), -1, dtype=torch.long)
        said = self.decoder(vectors, depth, nowhere, None)
        mean = (1 - SHRUNK) * said.mean + SHRUNK * depth[:, None] * self.profile
        return said._replace(mean=mean.clamp(min=1e-6))

    def _embed(self, batch: dict[str, Tensor]) -> Tensor:
        kind = self.kind
        way = torch.arange(batch["pair"].shape[1]) >= batch["pair"].shape[1] // 2
        gene = self.gene(batch["gene"].clamp(min=0)) * (1 + self.value(batch["value"][..., None]))
        pair = self.pair(batch["pair"].clamp(min=0)) + self.partner(batch["centres"])
        pair = pair + self.weight(batch["weight"][..., None])
        label = self.annotation(batch["annotation"].clamp(min=0) + self.first)
        return torch.cat([
            self.cell(batch["features"])[:, None] + kind[0], gene + kind[1], label + kind[2],
            self.neighbour(batch["near"]) + kind[3], pair + kind[4 + way.long()]], 1)


def log_likelihood(said: decoder.Counts, counts: csr_matrix) -> Tensor:
    """Return the log probability of each cell's counts, summed over genes, [cells].

    Nearly all counts are zeros, whose probability needs no gamma function.

    Args:
        said: what :meth:`GraphNetwork.predict` returns.
        counts: [cells, panel].

    Example:
        >>> said = decoder.Counts(torch.tensor([[0.5, 2.0]]), torch.tensor([1.0, 3.0]), None)
        >>> whole = said.log_likelihood(torch.tensor([[0.0, 4.0]])).sum()
        >>> bool(log_likelihood(said, csr_matrix([[0.0, 4.0]])).sub(whole).abs() < 1e-5)
        True
    """
    found, r = counts.tocoo(), said.dispersion
    nothing = r * (torch.log(r) - torch.log(r + said.mean))
    if said.dropout_logit is not None:
        nothing = torch.logaddexp(F.logsigmoid(said.dropout_logit),
                                  F.logsigmoid(-said.dropout_logit) + nothing)
    cell = torch.from_numpy(found.row.astype(np.int64))
    places = cell * counts.shape[1] + torch.from_numpy(found.col.astype(np.int64))
    more = said.at(places).log_likelihood(torch.from_numpy(found.data.astype(np.float32)))
    more = more - nothing.flatten()[places]
    return nothing.sum(1).index_add(0, cell, more)


def gather(made: Tokens, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tokens of some cells as tensors, and which of them are there.

    Args:
        made: tokens of all cells.
        rows: which cells, [cells].

    Returns:
        Tensors by name, and [cells, tokens] bool in the order cell, genes, annotations,
        neighbours, pairs received, pairs sent.
    """
    words = made.vocabulary
    batch = {name: torch.from_numpy(np.ascontiguousarray(getattr(made, name)[rows]))
             for name in ("features", "gene", "value", "annotation", "neighbour", "pair", "weight")}
    batch["near"] = torch.from_numpy(words.reference[made.neighbour[rows]])
    half = made.pair.shape[1] // 2
    received, sent = made.pair[rows, :half], made.pair[rows, half:]
    group = np.concatenate([words.partner[0][received], words.partner[1][sent]], 1)
    batch["centres"] = torch.from_numpy(words.centres[group])
    there = [batch[name] >= 0 for name in ("gene", "annotation", "neighbour", "pair")]
    return batch, torch.cat([torch.ones(len(rows), 1, dtype=torch.bool), *there], 1)
