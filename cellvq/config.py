"""Every number that shapes a CellVQ, in three frozen dataclasses and a table of presets.

A configuration is written beside the weights as JSON and read back with every field checked, so
that a saved model says completely what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cellvq import InputError

FORMAT = 2
"""Version of the saved files; a model of another version is refused with a clear line."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)


@dataclass(frozen=True)
class QuantizerConfig:
    """The single-cell discretization (SCD): how a cell vector becomes a code."""

    kind: str = "ema"
    """``ema``, ``nested``, ``residual``, ``fsq``, or ``soft``, the release's conditional codes."""
    codes: int = 32
    """Number of codes at full depth; for ``soft``, whose codes are bit vectors, a power of two."""
    prefixes: tuple[int, ...] = ()
    """Number of codes of each coarser level, ascending (``nested``, ``residual``)."""
    truncated_share: float = 0.2
    """Share of cells that training shows a prefix of their code (``nested``, ``residual``)."""
    commitment: float = 0.25
    """Weight of the pull of a cell vector towards its code (``ema``, ``nested``, ``residual``)."""
    decay: float = 0.98
    """How much of its running mean a code keeps at each step (of these three)."""
    restart_share: float = 0.1
    """A code with less than this share of even usage is dead and restarts on a cell (of these)."""
    hidden: int = 128
    """Width of the network that turns bits into a code vector (``soft``)."""
    hidden_layers: int = 2
    """Hidden layers of that network (``soft``)."""
    width: int = 32
    """Width of the space in which cells and codes are compared (``soft``)."""
    separation: float = 0.1
    """Weight of the loss that keeps codes apart (``soft``)."""
    balance: float = 0.03
    """Weight of the loss that asks for even use of the codes (``soft``)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefixes", tuple(self.prefixes))  # a list, read from JSON
        kinds, codes = ("ema", "nested", "residual", "fsq", "soft"), self.codes
        _require(self.kind in kinds, f"quantizer.kind is {self.kind!r}; use {', '.join(kinds)}")
        _require(codes >= 2, f"quantizer.codes is {codes}; a codebook needs at least 2")
        is_power = self.kind != "soft" or codes & (codes - 1) == 0
        _require(is_power, f"quantizer.codes is {codes}; soft needs a power of two")
        steps, free = list(pairwise((1, *self.prefixes, codes))), self.kind == "nested"
        fits = (len(steps) > 1) == (self.kind in ("nested", "residual"))
        fits = fits and all(few < many and (free or many % few == 0) for few, many in steps)
        needs = {"nested": f"rising numbers from 2 to below codes ({codes}), such as (8,)",
                 "residual": f"rising numbers, each a divisor of the next (of {codes})"}
        needs = needs.get(self.kind, "none")
        _require(fits, f"quantizer.prefixes is {self.prefixes}; {self.kind} needs {needs}")
        _require(0 <= self.truncated_share < 1, "quantizer.truncated_share is not from 0 to 1")


@dataclass(frozen=True)
class ModelConfig:
    """The network: what a CellVQ with these numbers computes."""

    width: int = 64
    """Width of a gene token in the transformer."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 2
    """Attention heads; they divide the width."""
    feedforward: int = 128
    """Hidden width of each layer's feed-forward network."""
    norm: str = "pre"
    """``pre`` normalises what enters a part of a layer, ``post`` what leaves it (as released)."""
    activation: str = "gelu"
    """``gelu`` or ``relu`` (as released), between the two halves of the feed-forward network."""
    value_bins: int = 16
    """Soft bins into which an expression value is discretised."""
    prior: str = "none"
    """``dense`` adds a learnt gene-by-gene matrix to the gene embedding, or ``none``."""
    cell_vector: str = "components"
    """``components`` starts as PCA and learns a view of the tokens, ``pooled`` is as released."""
    cell_width: int = 16
    """Width of the cell vector, which is also the number of components of the warm start."""
    decoder: str = "query"
    """``query`` asks the cell vector for each gene, ``performer`` attends over all genes."""
    decoder_width: int = 64
    """Hidden width of the decoder; the ``query`` decoder's nonlinear part, which sees the batch."""
    decoder_layers: int = 6
    """Layers of the ``performer`` decoder."""
    decoder_heads: int = 8
    """Attention heads of the ``performer`` decoder."""
    panel_size: int = 2000
    """At most this many genes are seen, the highly variable ones where there are more."""
    depth: str = "measured"
    """Genes that the depth is summed over, all ``measured`` or the ``panel`` only (as released)."""
    likelihood: str = "zinb"
    """``zinb`` or ``nb``, the distribution of a gene's counts given the cell."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """The discretization."""

    def __post_init__(self) -> None:
        fits = self.width % self.heads == 0
        _require(fits, f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        for name, known in MODEL_CHOICES.items():
            value = getattr(self, name)
            _require(value in known, f"model.{name} is {value!r}; use {' or '.join(known)}")
        _require(self.cell_width >= 2, f"model.cell_width is {self.cell_width}; use at least 2")
        fits = self.decoder == "query" or self.code_width == self.width
        _require(fits, f"model.decoder performer needs model.cell_width {self.width}, the width")

    @property
    def code_width(self) -> int:
        """Width of what is quantised, and of a code's vector."""
        return self.cell_width if self.cell_vector == "components" else self.width

    @property
    def embedding_width(self) -> int:
        """Width of the continuous cell vector that a user gets."""
        return self.cell_width if self.cell_vector == "components" else 4 * self.width


MODEL_CHOICES = {
    "norm": ("pre", "post"),
    "activation": ("gelu", "relu"),
    "prior": ("none", "dense"),
    "cell_vector": ("components", "pooled"),
    "decoder": ("query", "performer"),
    "depth": ("measured", "panel"),
    "likelihood": ("zinb", "nb"),
}


@dataclass(frozen=True)
class TrainingConfig:
    """One pretraining run: how long, how fast, on what tasks."""

    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 64
    """Cells a step, over all processes and all parts into which memory makes a step fall."""
    accumulate: int = 1
    """Parts of a step that pass the network one after the other, to save memory."""
    learning_rate: float = 7e-4
    """Peak learning rate, reached after the warm-up and followed by a cosine to zero."""
    warm_path_rate: float = 0.3
    """The linear path of the warm start learns at this share of the learning rate."""
    decoder_rate: float = 15.0
    """Decoder and heads learn at this multiple, as they have to follow what the encoder changes."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    patience: int = 0
    """Reports without a better validation loss before the run stops early; 0 for never."""
    warm_start: bool = True
    """Start as a principal component analysis of the training cells, not at random."""
    hidden_share: float = 0.25
    """Share of all genes, expressed or not, that are held out of the input, to be predicted."""
    thinned_share: float = 0.0
    """Share of the cells shown at a lower depth, to be predicted at the depth they have."""
    code_likelihood: float = 1.0
    """Weight of the prediction from the code alone against that from the cell vector."""
    property_weight: float = 0.3
    """Weight of the property heads, where properties are named."""
    max_tokens: int = 64
    """Expressed genes of a cell that a training step shows to the transformer, drawn at random."""
    precision: str = "auto"
    """``float32``, ``bfloat16``, or ``auto`` for the second where the device multiplies in it."""
    code_start: float = 0.2
    """Share of the steps before the codebook starts on the cell vectors reached so far."""
    validation_share: float = 0.1
    """Share of the donors (or of the cells where no donor is known) kept for validation."""
    seed: int = 0
    """Seed of everything random in the run."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"training.steps is {self.steps}; use at least 1")
        _require(self.batch_size >= 2, f"training.batch_size is {self.batch_size}; use at least 2")
        fits = self.accumulate >= 1 and self.batch_size % self.accumulate == 0
        _require(fits, f"training.accumulate {self.accumulate} does not divide the batch_size")
        known = self.precision in ("auto", "float32", "bfloat16")
        _require(known, f"training.precision is {self.precision!r}; use auto, float32 or bfloat16")
        for name in ("hidden_share", "code_start", "validation_share"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"training.{name} is {value}; use a share from 0 to below 1")
        _require(0 <= self.thinned_share <= 1, "training.thinned_share is not a share from 0 to 1")
        _require(self.hidden_share + self.thinned_share > 0,
                 "training.hidden_share and thinned_share are both 0: there is nothing to predict")


@dataclass(frozen=True)
class Preset:
    """A named size of model with the training that suits it."""

    model: ModelConfig
    training: TrainingConfig
    purpose: str


def _transformer(width: int, layers: int, **others) -> ModelConfig:
    """Return a network of the usual proportions: heads of width 64, four widths in between."""
    return ModelConfig(width, layers, heads=width // 64, feedforward=4 * width, **others)


PRESETS: dict[str, Preset] = {
    "tiny": Preset(ModelConfig(quantizer=QuantizerConfig("nested", 32, (8,))), TrainingConfig(),
                   "minutes on two CPU cores"),
    "small": Preset(
        ModelConfig(cell_width=32, panel_size=4000, quantizer=QuantizerConfig("nested", 64, (8,))),
        TrainingConfig(steps=1500), "ten minutes on two CPU cores",
    ),
    "medium": Preset(
        _transformer(256, 6, value_bins=32, cell_width=32, decoder_width=128, panel_size=4000,
                     quantizer=QuantizerConfig("nested", 512, (8, 64))),
        TrainingConfig(steps=10_000, batch_size=128, learning_rate=5e-4, max_tokens=512),
        "an hour on one GPU, or a night on a workstation",
    ),
    "base": Preset(
        _transformer(768, 12, value_bins=100, cell_width=64, decoder_width=128, panel_size=20_000,
                     quantizer=QuantizerConfig("nested", 4096, (16, 256))),
        TrainingConfig(steps=100_000, batch_size=512, learning_rate=2e-4, max_tokens=2000),
        "days on eight GPUs, about 100 million parameters",
    ),
    "official": Preset(
        ModelConfig(
            width=768, layers=12, heads=12, feedforward=3072, norm="post", activation="relu",
            value_bins=100, prior="dense", cell_vector="pooled", decoder="performer",
            decoder_width=512, panel_size=19_264, depth="panel",
            quantizer=QuantizerConfig(kind="soft", codes=4096, hidden=1024, hidden_layers=5),
        ),
        TrainingConfig(steps=100_000, batch_size=512, learning_rate=1e-4, max_tokens=2000,
                       warm_start=False),
        "the shape of the released weights",
    ),
    "500m": Preset(
        _transformer(1536, 16, value_bins=100, cell_width=128, decoder_width=256,
                     panel_size=20_000, quantizer=QuantizerConfig("nested", 4096, (16, 256))),
        TrainingConfig(steps=200_000, batch_size=2048, learning_rate=1e-4, max_tokens=2000),
        "weeks on many GPUs, about 500 million parameters",
    ),
}


def preset(name: str) -> Preset:
    """Look up a preset by name.

    Args:
        name: one of ``PRESETS``.

    Raises:
        InputError: no preset has this name.

    Example:
        >>> preset("tiny").model.layers
        2
    """
    if name not in PRESETS:
        raise InputError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def change(
    model: ModelConfig, training: TrainingConfig, changes: Mapping[str, Any]
) -> tuple[ModelConfig, TrainingConfig]:
    """Change single numbers of a preset.

    Args:
        model: the network's numbers.
        training: the run's numbers.
        changes: new values by their full names, ``model.``, ``quantizer.`` or ``training.``.

    Raises:
        InputError: a name is unknown, a value of another kind, or the numbers do not go together.

    Example:
        >>> model, _ = change(ModelConfig(), TrainingConfig(), {"quantizer.codes": 64})
        >>> model.quantizer.codes
        64
    """
    parts = {"model": model, "quantizer": model.quantizer, "training": training}
    wanted: dict[str, dict] = {name: {} for name in parts}
    for name, value in changes.items():
        part, _, key = name.partition(".")
        fields = {f.name for f in dataclasses.fields(parts[part])} if part in parts else ()
        _require(key in fields, f"{name!r} is no setting; they are listed in cellvq.config")
        kind = type(getattr(parts[part], key))
        if kind is float and type(value) is int:
            value = float(value)
        _require(isinstance(value, kind) and type(value) is not bool or kind is bool,
                 f"{name} is {value!r}; it has to be of type {kind.__name__}")
        wanted[part][key] = value
    quantizer = dataclasses.replace(model.quantizer, **wanted["quantizer"])
    return (
        dataclasses.replace(model, **{"quantizer": quantizer} | wanted["model"]),
        dataclasses.replace(training, **wanted["training"]),
    )


def from_dict(kind: type, values: dict):
    """Rebuild a configuration of a kind from what `dataclasses.asdict` made of it.

    Raises:
        InputError: a field is unknown or missing.

    Example:
        >>> from_dict(ModelConfig, dataclasses.asdict(ModelConfig())) == ModelConfig()
        True
    """
    fields = {f.name for f in dataclasses.fields(kind)}
    odd = sorted(fields.symmetric_difference(values))
    if odd:
        state = "unknown" if odd[0] in values else "missing"
        raise InputError(f"{kind.__name__}: field {odd[0]!r} is {state}: file of another version?")
    nested = {"quantizer": QuantizerConfig}
    return kind(**{k: from_dict(nested[k], v) if k in nested else v for k, v in values.items()})
