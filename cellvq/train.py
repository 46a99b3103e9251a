"""Pretraining: one plain loop that hides genes of real cells and learns to predict them.

A run writes ``model.safetensors``, ``config.json`` and ``history.jsonl`` into its folder, and while
it lasts a checkpoint from which it resumes bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from cellvq import InputError, config, loader, weights
from cellvq.config import TrainingConfig
from cellvq.corpus import Corpus, gather
from cellvq.history import read_history, report, write_history
from cellvq.model import CellVQ
from cellvq.objective import pretraining_loss, warm_start

if TYPE_CHECKING:
    from anndata import AnnData

CHECKPOINT = "checkpoint.safetensors"
"""Name of the checkpoint in the folder of a run that is not finished."""
REPORTS = 20
"""How many times in a run the validation cells are scored."""


class Pretrained(NamedTuple):
    """What `pretrain` returns."""

    model: CellVQ
    """The trained model, in evaluation mode."""
    history: pd.DataFrame
    """One row a report; columns as `history.report` writes them."""


def pretrain(
    cells: AnnData | str | Path | Sequence[str | Path],
    *,
    preset: str = "tiny",
    batch: str | None = None,
    donor: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    codes: int | None = None,
    quantizer: str | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 50,
    progress: bool = True,
) -> Pretrained:
    """Pretrain a CellVQ on raw counts by hiding genes and predicting them.

    Args:
        cells: cells with raw counts, or the file (or files, joined on common genes) they are in.
        preset: size of the model, a name of ``config.PRESETS``.
        batch: column of ``obs`` with the batch. The decoder sees it, and the warm start leaves it
            out, so that vectors and codes carry little of it.
        donor: column of ``obs`` with the donor; whole donors are kept for validation.
        steps: optimizer steps; by default those of the preset.
        minutes: train for this long instead; such a run is not reproducible to the bit.
        codes: size of the codebook; by default that of the preset.
        quantizer: ``ema`` or ``soft``; by default that of the preset.
        seed: seed of the split, the initial weights and every draw.
        output: folder for the model, its history and, while it trains, a checkpoint.
        resume: go on with the run in ``output``; a finished run is read, not repeated.
        overwrite: replace another run that is in ``output``.
        checkpoint_every: steps between checkpoints.
        progress: show a progress bar.

    Returns:
        The model and the history of its training.

    Raises:
        InputError: the cells hold no raw counts, a column is absent, or ``output`` holds another
            run.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> run = pretrain(simulate_cells(cells=200), steps=3, codes=8, progress=False)
        >>> list(run.history.step)
        [0, 1, 2, 3]
    """
    if steps is not None and minutes is not None:
        raise InputError("both steps and minutes are given; choose one")
    if minutes is not None and minutes <= 0:
        raise InputError(f"minutes is {minutes}; use a number above 0")
    size, training = config.preset(preset).model, config.preset(preset).training
    chosen = {"codes": codes, "kind": quantizer}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    size = dataclasses.replace(size, quantizer=dataclasses.replace(size.quantizer, **chosen))
    steps = training.steps if steps is None else steps
    training = dataclasses.replace(training, seed=seed, steps=steps)
    data = gather(cells, size.panel_size, batch, donor, training)
    if len(data.train) <= size.quantizer.codes:
        raise InputError(
            f"{len(data.train)} training cells for {size.quantizer.codes} codes; a codebook needs "
            "more cells than codes: give more cells or fewer codes"
        )
    run = {
        "preset": preset,
        "training": dataclasses.asdict(training),
        "model": dataclasses.asdict(size),
        "minutes": minutes,
        "cells": len(data.depth),
        "split": data.split,
        "fingerprint": data.fingerprint(),
        "code": code_fingerprint(),
    }
    folder = None if output is None else Path(output)
    if folder is not None and _is_finished(folder, run, resume, overwrite):
        return Pretrained(weights.read_model(folder)[0], read_history(folder))
    state = {"run": run, "step": 0, "cells": 0, "seconds": 0.0, "code_started": False,
             "usage": [0] * size.quantizer.codes, "history": []}
    with reproducible():
        torch.manual_seed(seed)
        model = CellVQ(size, data.panel, data.batches)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        warm_start(model, data)
        state = _train(model, data, training, state, folder, checkpoint_every, progress)
    if folder is not None:
        weights.write_model(folder, model, run | {"seconds": state["seconds"]})
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return Pretrained(model.eval(), pd.DataFrame(state["history"]))


def _is_finished(folder: Path, run: dict, resume: bool, overwrite: bool) -> bool:
    """Tell whether ``folder`` holds this very run, finished; refuse to lose another one."""
    checkpoint, finished = folder / CHECKPOINT, (folder / "config.json").exists()
    if checkpoint.exists():  # the newer of the two, if both are there
        finished, saved = False, json.loads(weights.read_tensors(checkpoint)[1]["state"])["run"]
    elif finished:
        saved = weights.read_config(folder)["run"]
    else:
        return False
    same = all(saved.get(key) == value for key, value in run.items())
    if same and resume:
        return finished
    if overwrite:
        checkpoint.unlink(missing_ok=True)
        return False
    if same:
        raise InputError(f"{folder}: holds this run already; resume it, or name another folder")
    other = next(key for key, value in run.items() if saved.get(key) != value)
    words = {"cells": "set of cells", "fingerprint": "set of cells", "code": "version of CellVQ"}
    other = words.get(other, other)
    raise InputError(
        f"{folder}: holds a run that differs in its {other}; name another folder, or overwrite it"
    )


def _train(
    model: CellVQ, corpus: Corpus, training: TrainingConfig, state: dict, folder: Path | None,
    checkpoint_every: int, progress: bool,
) -> dict:
    """Run the loop from where ``state`` or the checkpoint in ``folder`` stands to the end."""
    minutes, codes = state["run"]["minutes"], model.config.quantizer.codes
    optimizer = make_optimizer(model, training)
    if folder is not None and (folder / CHECKPOINT).exists():
        state = weights.read_checkpoint(folder / CHECKPOINT, model, optimizer)
    start = time.perf_counter() - state["seconds"]
    bar = tqdm(total=None if minutes else training.steps, initial=state["step"], unit="step",
               disable=not progress, desc="pretraining")
    if not state["history"]:
        report(model, corpus, training, state)
    model.train()
    while (before := _progress(state, minutes)) < 1:
        step = state["step"]
        torch.manual_seed(training.seed * 1_000_003 + step)  # so that a resumed run draws the same
        if before >= training.code_start and not state["code_started"]:
            model.quantizer.start(encode_cells(model, corpus, corpus.train[:4096]), training.seed)
            state["code_started"] = True
        cells = loader.cells_of_step(corpus.train, training.batch_size, step, training.seed)
        batch = loader.make_batch(
            corpus.counts[cells], corpus.depth[cells], corpus.batch[cells],
            hidden_share=training.hidden_share, max_tokens=training.max_tokens,
            rng=np.random.default_rng([training.seed, 1, step]),
        ).to(model.device)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule(before, training)
        with autocast(model):
            output = model(batch, before)
        loss = pretraining_loss(output, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()

        if state["code_started"]:
            usage = torch.bincount(output.quantized.codes, minlength=codes)
            state["usage"] = (np.array(state["usage"]) + usage.cpu().numpy()).tolist()
        state |= {"step": step + 1, "cells": state["cells"] + len(cells), "loss": loss.item(),
                  "seconds": time.perf_counter() - start}
        bar.update()
        after = _progress(state, minutes)
        if after >= 1:
            cells = corpus.train[:50_000]
            model.quantizer.settle(encode_cells(model, corpus, cells), training.seed)
        if int(after * REPORTS) > int(before * REPORTS):
            row = report(model, corpus, training, state)
            bar.set_postfix_str(f"validation {row['validation_cell']:.1f}, "
                                f"perplexity {row['perplexity']:.1f}")
            if folder is not None:
                write_history(folder, state["history"])
        if folder is not None and after < 1 and state["step"] % checkpoint_every == 0:
            weights.write_checkpoint(folder / CHECKPOINT, model, optimizer, state)
    bar.close()
    return state


@torch.no_grad()
def encode_cells(model: CellVQ, corpus: Corpus, cells: np.ndarray) -> Tensor:
    """Return the continuous vectors of whole cells of the corpus, [cells, cell width]."""
    was_training = model.training
    model.eval()
    vectors = [
        model.encode(loader.make_batch(corpus.counts[part], corpus.depth[part]).to(model.device))
        for part in np.array_split(cells, math.ceil(len(cells) / 256))
    ]
    model.train(was_training)
    return torch.cat(vectors)


def code_fingerprint() -> str:
    """Return a sha256 of the source that a run depends on; under other code it is another run."""
    rooms = ("config", "corpus", "loader", "model", "objective", "quantize", "train")
    sources = (Path(__file__).with_name(f"{room}.py").read_bytes() for room in rooms)
    return hashlib.sha256(b"".join(sources)).hexdigest()


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
    """Make AdamW with three rates: slow for the warm start's linear path, fast for the decoder."""
    rates = {"cell_vector.components": training.warm_path_rate, "decoder": training.decoder_rate}
    groups: dict[float, list] = {}
    for name, parameter in model.named_parameters():
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


def autocast(model: CellVQ) -> torch.autocast:
    """Return the mixed precision that is fastest here: bf16 where the processor multiplies in it.

    On a CPU that is so for wide models only: at the width of ``tiny`` the conversions cost more
    than the products gain.
    """
    kind = model.device.type
    if kind == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        can = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        has_bf16 = can() and model.config.width >= 256
    return torch.autocast(kind, torch.bfloat16, enabled=has_bf16)


def _progress(state: dict, minutes: float | None) -> float:
    """Return the share of the run that is done, by steps or by the clock."""
    if minutes is not None:
        return min(state["seconds"] / (60 * minutes), 1.0)
    return state["step"] / state["run"]["training"]["steps"]
