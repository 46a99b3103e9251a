"""How fast a model of a preset trains and encodes here, against what the machine can multiply.

Cells are made up and weights are random, so nothing but torch is needed: the same command measures
a laptop and a bare machine with a GPU.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cellvq import InputError, config
from cellvq.config import ModelConfig
from cellvq.cost import (
    Cost,
    device_name,
    encode_cost,
    genes_to_express,
    matrix_rate,
    measure,
    panel_of,
    seconds_per_call,
    synthetic_counts,
    train_cost,
)
from cellvq.loader import Batch, free_memory, make_batch
from cellvq.model import CellVQ, parameter_table
from cellvq.optimize import autocast, reproducible

STATE_BYTES = 16
"""Bytes a parameter needs in training, its weight, its gradient and AdamW's two moments."""
PROBED_GENES = 256
"""Genes on which a decoder that attends over all of them is tried first."""
GAIN = 1.03
"""Twice the cells have to be faster by this factor; if they are not twice, the search ends."""


def bench_model(
    preset: str, *, genes: int | None = None, cells: int | None = None, seconds: float = 10.0,
    seed: int = 0, compile: bool = False,
) -> dict:
    """Measure a model of a preset on this machine: on the GPU where there is one.

    A training step is forward, backward, clipping and AdamW, in the precision in which
    `cellvq.pretrain` would do it; its batches are ready beforehand, and how fast they are made is
    said apart. Encoding makes cell vectors and codes; a dense gene prior is folded first, as for a
    user. Every cell shows the same number of genes, so that nothing is padded.

    Only matrix products count as operations, a multiplication and an addition as two, and what a
    fused attention computes again to save memory does not count. The share of the matrix rate
    divides that by the time of the whole step and by the rate of large square products in the
    step's precision, measured in the same run.

    Args:
        preset: size of the model, a name of ``config.PRESETS``.
        genes: expressed genes that a cell shows; by default those of the preset's training.
        cells: cells at once; by default doubled until memory, the batch of the preset, the time or
            the gain is used up.
        seconds: about how long each of the measurements may take; one call is always made.
        seed: seed of the weights and the cells.
        compile: measure what ``torch.compile`` makes of the model.

    Returns:
        Values for JSON: what was measured on (preset, genes, panel_size, device, date, torch,
        threads, compiled), parameters (by component), matrix_tflops (by precision), loading
        (cells_per_second), training (by what is trained, the whole model or where
        the decoder is costly also the rest alone: precision, cells, cells_per_second, tflops,
        share_of_matrix_rate, peak_memory_gb), encoding (by precision: cells, cells_per_second,
        tflops) and not_measured (sentences).

    Raises:
        InputError: the preset is unknown, its panel has too few genes, or memory is too small.

    Example:
        >>> found = bench_model("tiny", genes=20, cells=2, seconds=0.01)
        >>> found["training"]["whole model"]["cells"], sorted(found["encoding"])
        (2, ['bfloat16', 'float32'])
    """
    known = config.preset(preset)
    size, training = known.model, known.training
    genes = training.max_tokens if genes is None else genes
    expressed = genes_to_express(genes, training)
    if genes < 1 or expressed > size.panel_size:
        most = int(size.panel_size * (1 - training.hidden_share) * 0.9)
        raise InputError(f"genes is {genes}; a cell of {preset} can show from 1 to about {most:,} "
                         f"of its {size.panel_size:,} genes while others are hidden")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = parameters_of(size)
    _require_memory(preset, sum(weights.values()) * STATE_BYTES, device)
    rates = {str(kind)[6:]: matrix_rate(kind, device, seconds / 4)
             for kind in (torch.bfloat16, torch.float32)}
    not_measured = [] if device.type == "cuda" else ["a GPU, as none is at hand"]

    rng = np.random.default_rng(seed)
    with reproducible():
        torch.manual_seed(seed)
        with device:
            model = CellVQ(size, panel_of(size))
        hides = {"hidden_share": training.hidden_share, "max_tokens": genes, "rng": rng}

        def shown(count: int) -> Batch:
            return make_batch(synthetic_counts(count, expressed, size.panel_size, rng), **hides)

        def whole(count: int) -> Batch:
            return make_batch(synthetic_counts(count, genes, size.panel_size, rng))

        search = {"cells": cells, "seconds": seconds, "device": device}
        attends = size.decoder == "performer"
        parts = {"encoder and codes": False} if attends else {}
        if attends and (reason := decoder_too_large(model, seconds, device)):
            not_measured.append(f"training of the whole model: the decoder {reason}")
        else:
            parts["whole model"] = True
        trained = {
            name: fastest(
                lambda count, time, decode=decode: train_cost(
                    model, shown(count).to(device), training, time, decode=decode,
                    compile=compile),
                most=training.batch_size, **search)
            for name, decode in parts.items()
        }
        with autocast(model):
            mixed = torch.is_autocast_enabled(device.type)
        precision = "bfloat16" if mixed else "float32"
        model.zero_grad()
        model = (model if model.prior is None else model.fold_prior()).eval()
        encoded = {
            kind: fastest(
                lambda count, time, kind=kind: encode_cost(
                    model, whole(count).to(device), time, bf16=kind == "bfloat16",
                    compile=compile),
                most=1024, **search)
            for kind in ("float32", "bfloat16")
        }
        loaded = seconds_per_call(lambda: shown(16), seconds / 8, device)
    return {
        "preset": preset, "genes": genes, "panel_size": size.panel_size,
        "device": device_name(device), "date": datetime.date.today().isoformat(),
        "torch": str(torch.__version__), "threads": torch.get_num_threads(), "compiled": compile,
        "parameters": weights,
        "matrix_tflops": {kind: _round(rate / 1e12) for kind, rate in rates.items()},
        "loading": {"cells_per_second": _round(16 / loaded)},
        "training": {
            name: {"precision": precision, **_row(cost),
                   "share_of_matrix_rate": _round(
                       cost.operations / cost.seconds / rates[precision]),
                   "peak_memory_gb": _round(cost.peak / 1e9)}
            for name, cost in trained.items()
        },
        "encoding": {kind: _row(cost) for kind, cost in encoded.items()},
        "not_measured": not_measured,
    }


def in_words(found: dict) -> str:
    """Say in lines for people what `bench_model` measured.

    Args:
        found: what it returned.
    """
    parts = ", ".join(f"{name} {count:,}" for name, count in found["parameters"].items())
    lines = [
        f"{found['preset']} on {found['device']}, threads: {found['threads']}, "
        f"torch {found['torch']}, {found['date']}",
        f"parameters       {sum(found['parameters'].values()):,}: {parts}",
        "matrix products  " + ", ".join(
            f"{rate:g} TFLOP/s in {kind}" for kind, rate in found["matrix_tflops"].items()),
        f"loading          {found['loading']['cells_per_second']:g} cells/s by one process",
    ]
    lines += [
        f"training         {cost['cells_per_second']:g} cells/s ({name}, {cost['cells']} cells of "
        f"{found['genes']:,} genes at once, {cost['precision']}), {cost['tflops']:g} TFLOP/s, "
        f"{cost['share_of_matrix_rate']:.0%} of the matrix rate, {cost['peak_memory_gb']:g} GB"
        for name, cost in found["training"].items()
    ]
    lines += [
        f"encoding         {cost['cells_per_second']:g} cells/s ({cost['cells']} cells at once, "
        f"{kind}), {cost['tflops']:g} TFLOP/s" for kind, cost in found["encoding"].items()
    ]
    return "\n".join(lines + [f"not measured     {what}" for what in found["not_measured"]])


def recorded(path: str | Path, presets: Sequence[str]) -> list[dict[str, str]]:
    """Read what was measured on other machines, in words for a table.

    Args:
        path: file to which ``cellvq bench model --json`` was appended, as often as one liked; it
            may be absent.
        presets: presets that have a row even if nobody measured them.

    Returns:
        A row for each measurement, then one for each preset without any: preset, device, date,
        training (cells/s and share of the matrix rate) and encoding (cells/s in bfloat16).

    Example:
        >>> recorded("nowhere.json", ["base"])[0]["training"]
        'not measured'
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    rows = []
    while text:
        found, end = json.JSONDecoder().raw_decode(text)
        text = text[end:].lstrip()
        training = "; ".join(
            f"{cost['cells_per_second']:,g} cells/s, {cost['share_of_matrix_rate']:.0%} ({name})"
            for name, cost in found["training"].items())
        encoding = f"{found['encoding']['bfloat16']['cells_per_second']:,g} cells/s"
        rows.append({key: found[key] for key in ("preset", "device", "date")}
                    | {"training": training, "encoding": encoding})
    missing = [name for name in presets if name not in {row["preset"] for row in rows}]
    columns = ("device", "date", "training", "encoding")
    return rows + [{"preset": name} | dict.fromkeys(columns, "not measured") for name in missing]


def parameters_of(size: ModelConfig, *, folded: bool = False) -> dict[str, int]:
    """Count the parameters of a model with a full panel, by component, without making it.

    Args:
        size: the network's numbers.
        folded: after the dense gene prior went into the gene embeddings.

    Example:
        >>> parameters_of(ModelConfig())["gene_embedding"] == 2003 * 64
        True
    """
    with torch.device("meta"):
        model = CellVQ(size, panel_of(size))
    return parameter_table(model.fold_prior() if folded and model.prior is not None else model)


def fastest(
    cost_of: Callable[[int, float], Cost], *, cells: int | None, most: int, seconds: float,
    device: torch.device,
) -> Cost:
    """Find the number of cells at once that is fastest, by doubling.

    Args:
        cost_of: measures a batch of so many cells for so many seconds.
        cells: measure this number alone.
        most: not more cells than this.
        seconds: about how long all of it may take; the first number is always measured.
        device: where the model is.

    Raises:
        InputError: memory does not suffice for the smallest batch.
    """
    begin, best = time.perf_counter(), None
    count, misses = cells or (1 if device.type == "cuda" else 2), 0
    while True:
        try:
            found = cost_of(count, seconds / 8)
        except torch.OutOfMemoryError:
            if best is None:
                raise InputError(
                    f"{count} cells do not fit into the memory of {device_name(device)}; choose "
                    f"{'fewer cells or ' if cells else ''}a smaller preset"
                ) from None
            return best
        gains = best is None or found.cells_per_second > GAIN * best.cells_per_second
        misses = 0 if gains else misses + 1  # one alone may be another program's doing
        best = found if gains else max(best, found, key=lambda cost: cost.cells_per_second)
        # A call on twice the cells needs about twice the time and keeps twice as much.
        late = time.perf_counter() - begin + 4 * found.seconds > seconds
        full = device.type == "cpu" and 3 * found.kept > free_memory(device)
        if cells or misses == 2 or late or full or 2 * count > most:
            return best
        count *= 2


def decoder_too_large(model: CellVQ, seconds: float, device: torch.device) -> str:
    """Say why a decoder that attends over all genes cannot be trained here; empty if it can.

    Its cost is linear in the genes, so it is tried on a few of them.
    """
    size = model.config
    genes = min(PROBED_GENES, size.panel_size)
    vector = torch.zeros(1, size.code_width, device=device)
    depth = torch.full((1,), 1e4, device=device)
    table = model.gene_embedding.weight[:genes]

    def decode(decoder: Callable) -> None:
        decoder(vector, depth, depth.long(), table).mean.sum().backward()

    cost = measure(decode, model.decoder, model, 1, seconds / 8, False)
    model.zero_grad()
    times = 2 * size.panel_size / genes  # decoded from the cell vector and from the code
    took, kept, free = cost.seconds * times, cost.kept * times, free_memory(device)
    if kept < 0.9 * free and took < 6 * seconds:
        return ""
    return (f"would take about {took:,.0f} s and {kept / 1e9:,.0f} GB a cell "
            f"({free / 1e9:,.0f} GB are free)")


def _require_memory(preset: str, bytes_needed: int, device: torch.device) -> None:
    free = free_memory(device)
    if bytes_needed > free:
        raise InputError(
            f"{preset} needs {bytes_needed / 1e9:,.1f} GB to train before it sees a cell, and "
            f"{device_name(device)} has {free / 1e9:,.1f} GB free; choose a smaller preset"
        )


def _row(cost: Cost) -> dict:
    return {"cells": cost.cells, "cells_per_second": _round(cost.cells_per_second),
            "tflops": _round(cost.operations / cost.seconds / 1e12)}


def _round(value: float) -> float:
    """Keep three digits: a time is not known any better."""
    return float(f"{value:.3g}")
