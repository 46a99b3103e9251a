"""Every number that shapes a CellVQ, in three frozen dataclasses and a table of presets.

A configuration is written beside the weights as JSON and read back with every field checked, so
that a saved model says completely what it is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from cellvq import InputError

FORMAT = 1
"""Version of the saved files; a model of another version is refused with a clear line."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)


@dataclass(frozen=True)
class QuantizerConfig:
    """The single-cell discretization (SCD): how a cell vector becomes a code."""

    kind: str = "ema"
    """``ema`` for a codebook of running means, ``soft`` for the release's soft conditional one."""
    codes: int = 32
    """Size of the codebook; a power of two for ``soft``, whose codes are bit vectors."""
    commitment: float = 0.25
    """Weight of the pull of a cell vector towards its code (``ema``)."""
    decay: float = 0.98
    """How much of its running mean a code keeps at each step (``ema``)."""
    restart_share: float = 0.1
    """A code with less than this share of even usage is dead and restarts on a cell (``ema``)."""
    hidden: int = 128
    """Width of the network that turns bits into a code vector (``soft``)."""
    width: int = 32
    """Width of the space in which cells and codes are compared (``soft``)."""
    separation: float = 0.1
    """Weight of the loss that keeps codes apart (``soft``)."""

    def __post_init__(self) -> None:
        _require(self.kind in ("ema", "soft"), f"quantizer.kind is {self.kind!r}; use ema or soft")
        _require(self.codes >= 2, f"quantizer.codes is {self.codes}; a codebook needs at least 2")
        if self.kind == "soft":
            is_power = self.codes & (self.codes - 1) == 0
            _require(is_power, f"quantizer.codes is {self.codes}; soft needs a power of two")


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
    value_bins: int = 16
    """Soft bins into which an expression value is discretised."""
    cell_width: int = 16
    """Width of the cell vector, which is also the number of components of the warm start."""
    decoder_width: int = 64
    """Hidden width of the decoder's nonlinear part, which also sees the batch."""
    panel_size: int = 2000
    """At most this many genes are seen, the highly variable ones where there are more."""
    likelihood: str = "zinb"
    """``zinb`` or ``nb``: distribution of a gene's counts given the cell."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """The discretization."""

    def __post_init__(self) -> None:
        fits = self.width % self.heads == 0
        _require(fits, f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        known = self.likelihood in ("zinb", "nb")
        _require(known, f"model.likelihood is {self.likelihood!r}; use zinb or nb")
        _require(self.cell_width >= 2, f"model.cell_width is {self.cell_width}; use at least 2")


@dataclass(frozen=True)
class TrainingConfig:
    """One pretraining run: how long, how fast, on what task."""

    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 64
    """Cells a step."""
    learning_rate: float = 7e-4
    """Peak learning rate, reached after the warm-up and followed by a cosine to zero."""
    warm_path_rate: float = 0.3
    """The linear path of the warm start learns at this share of the learning rate."""
    decoder_rate: float = 15.0
    """The decoder learns at this multiple, as it has to follow what the encoder changes."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    hidden_share: float = 0.25
    """Share of all genes, expressed or not, that are held out of the input, to be predicted."""
    max_tokens: int = 96
    """Expressed genes of a cell that a training step shows to the transformer, drawn at random."""
    code_start: float = 0.2
    """Share of the steps before the codebook starts on the cell vectors reached so far."""
    validation_share: float = 0.1
    """Share of the donors (or of the cells where no donor is known) kept for validation."""
    seed: int = 0
    """Seed of everything random in the run."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"training.steps is {self.steps}; use at least 1")
        _require(self.batch_size >= 2, f"training.batch_size is {self.batch_size}; use at least 2")
        for name in ("hidden_share", "code_start", "validation_share"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"training.{name} is {value}; use a share from 0 to below 1")


@dataclass(frozen=True)
class Preset:
    """A named size of model with the training that suits it."""

    model: ModelConfig
    training: TrainingConfig
    purpose: str


PRESETS: dict[str, Preset] = {
    "tiny": Preset(ModelConfig(), TrainingConfig(), "minutes on two CPU cores"),
}


def preset(name: str) -> Preset:
    """Look up a preset by name.

    Args:
        name: one of ``PRESETS``.

    Raises:
        InputError: no preset has this name; the message lists those there are.

    Example:
        >>> preset("tiny").model.layers
        2
    """
    if name not in PRESETS:
        raise InputError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def from_dict(kind: type, values: dict):
    """Rebuild a configuration from the dictionary that `dataclasses.asdict` made of it.

    Args:
        kind: the dataclass to build.
        values: its fields, nested configurations as dictionaries.

    Raises:
        InputError: a field is unknown or missing, as in a file of another version.

    Example:
        >>> config = ModelConfig(width=32)
        >>> from_dict(ModelConfig, dataclasses.asdict(config)) == config
        True
    """
    fields = {f.name for f in dataclasses.fields(kind)}
    odd = sorted(fields.symmetric_difference(values))
    if odd:
        state = "unknown" if odd[0] in values else "missing"
        raise InputError(f"{kind.__name__}: field {odd[0]!r} is {state}: file of another version?")
    nested = {"quantizer": QuantizerConfig}
    return kind(**{k: from_dict(nested[k], v) if k in nested else v for k, v in values.items()})
