"""What a training run is: its folder, what it depends on, and whether it is there already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cellvq import InputError, distributed, weights
from cellvq.config import ModelConfig, TrainingConfig
from cellvq.corpus import Corpus
from cellvq.history import read_history
from cellvq.loader import PART
from cellvq.model import CellVQ

CHECKPOINT = "checkpoint.safetensors"
"""Name of the checkpoint in the folder of a run that is not finished."""


class Pretrained(NamedTuple):
    """What `cellvq.pretrain` and `cellvq.finetune` return."""

    model: CellVQ
    """The trained model, in evaluation mode."""
    history: pd.DataFrame
    """One row a report; columns as `history.report` writes them."""


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a run goes about its work; none of it changes what is learnt."""

    output: Path | None = None
    """Folder for the model, its history and, while it trains, a checkpoint."""
    resume: bool = False
    """Go on with the run in the folder."""
    overwrite: bool = False
    """Replace another run in the folder."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    progress: bool = True
    """Show a progress bar."""
    engine: str = "ddp"
    """How several processes share the model, ``ddp`` or ``fsdp``."""
    compile: bool = False
    """Compile the model with ``torch.compile`` first."""


def describe(data: Corpus, size: ModelConfig, training: TrainingConfig) -> dict:
    """Say as JSON values what a run depends on, and refuse one that cannot work.

    Args:
        data: the cells.
        size: the network's numbers.
        training: the run's numbers.

    Raises:
        InputError: too few cells for the codebook, or for the processes.
    """
    if data.training_cells <= size.quantizer.codes:
        raise InputError(
            f"{data.training_cells} training cells for {size.quantizer.codes} codes; a codebook "
            "needs more cells than codes: give more cells or fewer codes"
        )
    shares = distributed.size() * training.accumulate
    step = min(training.batch_size, data.training_cells)
    if shares > 1 and step < PART * shares:
        raise InputError(
            f"{step} cells a step cannot be shared by {shares}: every process and part needs "
            f"{PART}; use training.batch_size of at least {PART * shares}"
        )
    described = {
        "training": dataclasses.asdict(training),
        "model": dataclasses.asdict(size),
        "cells": data.size,
        "split": data.split,
        "fingerprint": data.fingerprint(),
        "code": code_fingerprint(),
    }
    return json.loads(json.dumps(described))  # as it will be read back


def finished(run: dict, manner: Manner) -> Pretrained | None:
    """Return the run if its folder holds it, finished; refuse to lose another one.

    Args:
        run: what the run depends on, as `describe` says it.
        manner: its folder, and what to do with what is in it.

    Raises:
        InputError: the folder holds another run, or this one and ``resume`` was not asked for.
    """
    folder = manner.output
    if folder is None:
        return None
    checkpoint, is_finished = folder / CHECKPOINT, (folder / "config.json").exists()
    if not checkpoint.exists() and not is_finished:
        return None
    try:
        if checkpoint.exists():  # the newer of the two, if both are there
            is_finished = False
            saved = json.loads(weights.read_tensors(checkpoint)[1]["state"])["run"]
        else:
            saved = weights.read_config(folder)["run"]
    except InputError:  # damaged, or of another version
        if not manner.overwrite:
            raise
        saved = {}
    other = next((key for key, value in run.items() if saved.get(key) != value), None)
    if other is None and manner.resume:
        if not is_finished:
            return None
        return Pretrained(weights.read_model(folder)[0], read_history(folder))
    distributed.wait()  # until every process has looked
    if manner.overwrite:
        checkpoint.unlink(missing_ok=True)
        return None
    if other is None:
        raise InputError(f"{folder}: holds this run already; resume it, or name another folder")
    words = {"cells": "set of cells", "fingerprint": "set of cells", "code": "version of CellVQ"}
    raise InputError(
        f"{folder}: holds a run that differs in its {words.get(other, other)}; name another "
        "folder, or overwrite it"
    )


def code_fingerprint() -> str:
    """Return a sha256 of the source that a run depends on; under other code it is another run."""
    rooms = ("adapters", "attention", "codebook", "config", "continuing", "corpus", "decoder",
             "joined", "loader", "model", "nested", "objective", "optimize", "panels", "performer",
             "pretraining", "quantize", "runs", "stream", "train")
    sources = (Path(__file__).with_name(f"{room}.py").read_bytes() for room in rooms)
    return hashlib.sha256(b"".join(sources)).hexdigest()
