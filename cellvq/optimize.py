"""How a step changes the weights: rates, schedule, precision, and the order of additions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from cellvq.config import TrainingConfig
from cellvq.model import CellVQ


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Leave torch's draws as they were, and on a CPU add up in an order that never changes.

    Without it two threads add the gradients of an indexed tensor in the order in which they finish,
    and two runs with one seed part in the last bits.
    """
    settings, before = torch.utils.deterministic, torch.are_deterministic_algorithms_enabled()
    filled = settings.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        try:
            torch.use_deterministic_algorithms(not torch.cuda.is_available() or before)
            settings.fill_uninitialized_memory = False  # it costs time, and nothing here reads it
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            settings.fill_uninitialized_memory = filled


def make_optimizer(model: CellVQ, training: TrainingConfig) -> torch.optim.AdamW:
    """Make AdamW with three rates: slow for the warm start's path, fast for what reads it off."""
    rates = {"cell_vector.components": training.warm_path_rate, "decoder": training.decoder_rate,
             "heads": training.decoder_rate}
    groups: dict[float, list] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = next((rate for part, rate in rates.items() if name.startswith(part)), 1.0)
        groups.setdefault(rate, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "base": rate * training.learning_rate}
         for rate, parameters in groups.items()], weight_decay=training.weight_decay,
    )


def schedule(progress: float, training: TrainingConfig) -> float:
    """Return the share of the peak learning rate: a linear rise, then a cosine to zero.

    Example:
        >>> schedule(0.05, TrainingConfig(warmup=0.1)), schedule(1.0, TrainingConfig())
        (0.5, 0.0)
    """
    if progress < training.warmup:
        return max(progress / training.warmup, 0.02)
    past = (progress - training.warmup) / (1 - training.warmup)
    return 0.5 * (1 + math.cos(math.pi * past))


def autocast(model: CellVQ, precision: str = "auto") -> torch.autocast:
    """Return the mixed precision in which a model's matrix products are computed.

    Args:
        model: the model, on its device.
        precision: ``float32``, ``bfloat16``, or ``auto`` for bfloat16 where the device multiplies
            in it.
    """
    kind = model.device.type
    if kind == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.autocast(
        kind, torch.bfloat16, enabled=has_bf16 if precision == "auto" else precision == "bfloat16"
    )
