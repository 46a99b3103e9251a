"""A plain reference of the released forward pass, one cell at a time, and weights in its layout.

It is written from the description of the release alone and imports nothing of the package, so that
a mistake in the package cannot repeat itself here. The 326 tensors of a mode are: prior and
embeddings 11, codebook 1 + 6 x 2 + 5 x 5 + 2 x 2 = 42, encoder 12 x 12 + 2 = 146, decoder
2 + 1 + 6 x 17 + 2 + 2 + 4 x 2 = 117, property heads 5 x 2 = 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """The numbers that shape a checkpoint; those of the release by default."""

    genes: int = 19264
    width: int = 768
    bins: int = 100
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    bits: int = 12
    code_hidden: int = 1024
    code_width: int = 32
    decoder_width: int = 512
    decoder_layers: int = 6
    decoder_heads: int = 8
    properties: dict[str, int] = field(default_factory=lambda: {
        "cell_type": 831, "tissue": 377, "disease": 150, "sex": 3, "age": 184,
    })


NARROW = Sizes(
    genes=150, width=48, bins=10, layers=2, heads=4, feedforward=96, bits=6, code_hidden=40,
    code_width=8, decoder_width=32, decoder_layers=2, decoder_heads=2,
    properties={"cell_type": 7, "sex": 2},
)


class Cell(NamedTuple):
    """What the release says of one cell."""

    embedding: Tensor
    """[S, T, largest over genes, mean over genes], [4 x width]."""
    code: int
    quantised: Tensor
    """Vector of the code, [width]."""


class Reference:
    """The released network as plain torch layers.

    Args:
        state: tensors of one mode of a checkpoint, the prior not folded.
        heads: attention heads, which no tensor tells.
        masked: pass a key-padding mask to the encoder, as the release does even for one cell.
    """

    def __init__(self, state: dict[str, Tensor], heads: int, masked: bool = True) -> None:
        self.state, self.masked = state, masked
        self.genes = len(state["go"]) - 2
        feedforward, width = state["encoder.transformer_encoder.0.linear1.weight"].shape
        weights = {
            name.removeprefix("encoder.").replace("transformer_encoder.", "layers."): value
            for name, value in state.items() if name.startswith("encoder.")
        }
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width)).eval()
        self.encoder.load_state_dict(weights, assign=True)
        bits = state["cell_vq.embedding"].shape[1]
        numbers = torch.arange(2**bits)
        bits_of = torch.stack([numbers // 2**place % 2 for place in range(bits - 1, -1, -1)], 1)
        assert torch.equal(state["cell_vq.embedding"], bits_of.float())
        codebook = _code_network(state)(bits_of.float()).detach()
        self.codebook = codebook / (codebook.norm(dim=1, keepdim=True) + 1e-6)

    def tokens(self, counts: Tensor, target_depth: float | None = None) -> Tensor:
        """Return the encoder's output for a cell's expressed genes, T and S, [tokens, width].

        Args:
            counts: UMI counts of the panel, [genes].
            target_depth: T as UMI counts; None for that of the cell.
        """
        state, total = self.state, counts.sum()
        values = torch.log1p(1e4 * counts / total)
        ids = (values > 0).nonzero().squeeze(1)
        s = torch.log10(total)
        t = s if target_depth is None else torch.tensor(math.log10(target_depth))
        x = torch.cat([values[ids], t[None], s[None]]).unsqueeze(1)
        ids = torch.cat([ids, torch.tensor([self.genes, self.genes + 1])])

        a = F.leaky_relu(_linear(state, "token_emb.mlp", x), 0.1)
        bins = (_linear(state, "token_emb.mlp2", a) + 1.0 * a).softmax(1)
        x = bins @ state["token_emb.emb.weight"] + state["pos_emb.weight"][ids]
        x = x + _linear(state, "go_embed", state["go"][ids])
        mask = torch.zeros(1, len(x), dtype=torch.bool) if self.masked else None
        with torch.no_grad():
            return self.encoder(x.unsqueeze(0), src_key_padding_mask=mask)[0]

    def __call__(self, counts: Tensor, target_depth: float | None = None) -> Cell:
        """Encode one cell; the arguments are those of `tokens`."""
        tokens = self.tokens(counts, target_depth)
        genes, t, s = tokens[:-2], tokens[-2], tokens[-1]
        embedding = torch.cat([s, t, genes.max(0).values, genes.mean(0)])
        h = _linear(self.state, "cell_vq.proj", tokens.max(0).values)
        code = int((self.codebook @ (h / (h.norm() + 1e-6))).argmax())
        return Cell(embedding, code, _linear(self.state, "cell_vq.proj_inv", self.codebook[code]))


def decode(
    state: dict[str, Tensor], tokens: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pass one cell's tokens through the released decoder, [genes] each: mean, disp and pi.

    Args:
        state: tensors of one mode of a checkpoint.
        tokens: what enters ``decoder_embed``, [genes, width].
        heads: attention heads.
    """
    x = _linear(state, "decoder_embed", tokens)
    layers = sum(name.endswith("projection_matrix") for name in state)
    for i in range(layers):
        attention, feed = (f"decoder.performer.net.layers.{i}.{part}" for part in (0, 1))
        h = _norm(state, f"{attention}.norm", x)
        q, k, v = (_linear(state, f"{attention}.fn.to_{part}", h).chunk(heads, 1) for part in "qkv")
        w = state[f"{attention}.fn.fast_attention.projection_matrix"]
        out = []
        for head in range(heads):
            weights = _random_features(q[head], w, 1) @ _random_features(k[head], w, (0, 1)).T
            out.append(weights @ v[head] / weights.sum(1, keepdim=True))
        x = x + _linear(state, f"{attention}.fn.to_out", torch.cat(out, 1))
        h = _linear(state, f"{feed}.fn.fn.w1", _norm(state, f"{feed}.norm", x))
        x = x + _linear(state, f"{feed}.fn.fn.w2", F.gelu(h))
    x = _norm(state, "norm", _norm(state, "decoder.norm", x))
    return tuple(_linear(state, name, x).squeeze(1) for name in ("mean", "disp", "pi"))


def random_checkpoint(
    sizes: Sizes = Sizes(), seed: int = 0, cells: Tensor | None = None
) -> dict[str, Tensor]:
    """Draw one mode of a checkpoint: every tensor, at scales at which signals keep their size.

    The codebook's BatchNorm has the statistics of the codebook itself, so that codes differ.

    Args:
        sizes: the shape.
        seed: seed of the draws.
        cells: cells between whose code vectors the codebook is to be centred, as if trained on
            them (a random network gives all cells much the same vector), [cells, genes].
    """
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, std: float) -> None:
        state[name] = torch.randn(shape, generator=draw).mul_(std)

    def linear(name: str, out: int, into: int, gain: float = 1.0) -> None:
        normal(f"{name}.weight", out, into, std=gain / math.sqrt(into))
        normal(f"{name}.bias", out, std=0.1)

    def norm(name: str, width: int) -> None:
        normal(f"{name}.weight", width, std=0.1)
        state[f"{name}.weight"] += 1
        normal(f"{name}.bias", width, std=0.1)

    width, tokens = sizes.width, sizes.genes + 2
    normal("go", tokens, tokens, std=0.01)
    state["go"].diagonal().add_(1)
    normal("go_embed.weight", width, tokens, std=0.3)
    normal("go_embed.bias", width, std=0.1)
    normal("pos_emb.weight", tokens + 1, width, std=0.5)
    linear("token_emb.mlp", sizes.bins, 1)
    linear("token_emb.mlp2", sizes.bins, sizes.bins)
    normal("token_emb.emb.weight", sizes.bins, width, std=1)
    normal("token_emb.emb_mask.weight", 1, width, std=1)
    normal("token_emb.emb_pad.weight", 1, width, std=1)
    for i in range(sizes.layers):
        layer = f"encoder.transformer_encoder.{i}"
        normal(f"{layer}.self_attn.in_proj_weight", 3 * width, width, std=width**-0.5)
        normal(f"{layer}.self_attn.in_proj_bias", 3 * width, std=0.1)
        linear(f"{layer}.self_attn.out_proj", width, width)
        linear(f"{layer}.linear1", sizes.feedforward, width)
        linear(f"{layer}.linear2", width, sizes.feedforward)
        norm(f"{layer}.norm1", width)
        norm(f"{layer}.norm2", width)
    norm("encoder.norm", width)

    linear("cell_vq.proj", sizes.code_width, width)
    linear("cell_vq.proj_inv", width, sizes.code_width)
    numbers = torch.arange(2**sizes.bits).unsqueeze(1)
    x = numbers // 2 ** torch.arange(sizes.bits - 1, -1, -1) % 2
    x = state["cell_vq.embedding"] = x.float()
    for i in range(5):
        linear(f"cell_vq.embedding_mlp.{3 * i}", sizes.code_hidden, x.shape[1])
        batch_norm = f"cell_vq.embedding_mlp.{3 * i + 1}"
        norm(batch_norm, sizes.code_hidden)
        x = _linear(state, f"cell_vq.embedding_mlp.{3 * i}", x)
        state[f"{batch_norm}.running_mean"] = x.mean(0)
        state[f"{batch_norm}.running_var"] = x.var(0)
        state[f"{batch_norm}.num_batches_tracked"] = torch.tensor(1000)
        scaled = (x - x.mean(0)) / torch.sqrt(x.var(0) + 1e-5)
        x = F.relu(scaled * state[f"{batch_norm}.weight"] + state[f"{batch_norm}.bias"])
    last = "cell_vq.embedding_mlp.15"
    linear(last, sizes.code_width, sizes.code_hidden)
    state[f"{last}.bias"] -= _linear(state, last, x).mean(0)

    inner = sizes.decoder_width
    head = inner // sizes.decoder_heads
    linear("decoder_embed", inner, width)
    state["decoder.performer.calls_since_last_redraw"] = torch.tensor(7)
    for i in range(sizes.decoder_layers):
        attention, feed = (f"decoder.performer.net.layers.{i}.{part}" for part in (0, 1))
        features = int(head * math.log(head))
        normal(f"{attention}.fn.fast_attention.projection_matrix", features, head, std=1)
        for name in ("to_q", "to_k", "to_v", "to_out"):
            linear(f"{attention}.fn.{name}", inner, inner)
        linear(f"{feed}.fn.fn.w1", 4 * inner, inner)
        linear(f"{feed}.fn.fn.w2", inner, 4 * inner)
        norm(f"{attention}.norm", inner)
        norm(f"{feed}.norm", inner)
    norm("decoder.norm", inner)
    norm("norm", inner)
    for name in ("to_final", "mean", "disp", "pi"):
        linear(name, 1, inner)
    for name, labels in sizes.properties.items():
        linear(name, labels, 4 * width)

    if cells is not None:
        reference = Reference(state, sizes.heads)
        summaries = torch.stack([reference.tokens(cell).max(0).values for cell in cells])
        state["cell_vq.proj.bias"] = -state["cell_vq.proj.weight"] @ summaries.mean(0)
    return state


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _random_features(x: Tensor, w: Tensor, largest: int | tuple[int, int]) -> Tensor:
    """FAVOR+'s positive features of one head (arXiv 2009.14794, lemma 1), [tokens, features]."""
    x = x / x.shape[1] ** 0.25
    projected = x @ w.T
    inside = projected - (x**2).sum(1, keepdim=True) / 2
    return (torch.exp(inside - projected.amax(largest, keepdim=True)) + 1e-4) / len(w) ** 0.5


def _code_network(state: dict[str, Tensor]) -> nn.Sequential:
    """The network that turns bits into code vectors."""
    start = "cell_vq.embedding_mlp."
    weights = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    layers = [
        layer for i in range(0, 15, 3)
        for layer in (nn.Linear(*weights[f"{i}.weight"].shape[::-1]),
                      nn.BatchNorm1d(len(weights[f"{i}.bias"])), nn.ReLU())
    ]
    network = nn.Sequential(*layers, nn.Linear(*weights["15.weight"].shape[::-1])).eval()
    network.load_state_dict(weights)
    return network
