"""Models and checkpoints on disk: safetensors and JSON, written whole or not at all, no pickle.

A model is a folder with ``model.safetensors`` and ``config.json``; a checkpoint is one safetensors
file, so that one rename puts it in place and a run killed while saving keeps the one before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import cellvq
from cellvq import InputError, distributed
from cellvq.config import FORMAT, ModelConfig, from_dict
from cellvq.model import CellVQ

_SHIPPED = Path(__file__).with_name("models")  # where the models of the package lie
MODELS = ("small",)
"""Their names."""


def write_model(directory: str | Path, model: CellVQ, run: dict) -> None:
    """Write a model as ``model.safetensors`` and ``config.json``.

    Args:
        directory: folder of the model; made where it is missing.
        model: the model.
        run: what is to be remembered of how it came about (data, training), as JSON values.
    """
    directory = Path(directory)
    weights = save(state_of(model))
    config = {
        "format": FORMAT,
        "cellvq_version": cellvq.__version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "model": dataclasses.asdict(model.config),
        "run": run,
        "batches": model.batches,
        "properties": model.properties,
        "panel": model.panel,
    }
    if distributed.rank() == 0:
        write_whole(directory / "model.safetensors", weights)
        write_whole(directory / "config.json", json.dumps(config, indent=1).encode())


def fingerprint(model: CellVQ) -> str:
    """Return the sha256 that the model's weights have on disk."""
    return hashlib.sha256(save(state_of(model))).hexdigest()


def locate(name_or_path: str | Path) -> Path:
    """Return the folder of a model: that of a model of the package where this is its name.

    Example:
        >>> locate("small").name, str(locate("runs/mine"))
        ('small', 'runs/mine')
    """
    path = Path(name_or_path).expanduser()
    return _SHIPPED / str(name_or_path) if name_or_path in MODELS and not path.exists() else path


def read_model(directory: str | Path) -> tuple[CellVQ, dict]:
    """Read a model and its ``config.json`` from a folder.

    Args:
        directory: folder that `write_model` wrote, or ``small``.

    Returns:
        The model, in evaluation mode, and all of ``config.json``.

    Raises:
        InputError: a file is missing, damaged, of another version, or does not fit the other.
    """
    directory = locate(directory)
    config = read_config(directory)
    path = directory / "model.safetensors"
    if not path.exists():
        raise InputError(f"{path}: there is no such file; the model's folder is incomplete")
    if hashlib.sha256(path.read_bytes()).hexdigest() != config["weights_sha256"]:
        raise InputError(f"{path}: not the weights that config.json names; copy the folder again")
    size = from_dict(ModelConfig, config["model"])
    with torch.device("meta"):  # shapes only: the weights come from the file
        model = CellVQ(size, config["panel"], config["batches"], config["properties"])
    load_state(model, read_tensors(path)[0], path, assign=True)
    return model.eval(), config


def read_config(directory: str | Path) -> dict:
    """Read the ``config.json`` of a model's folder.

    Raises:
        InputError: there is none, or it is not one of this version.
    """
    path = locate(directory) / "config.json"
    if not path.exists():
        raise InputError(f"{directory}: no model here; name a folder that holds a config.json")
    try:
        config = json.loads(path.read_text())
        found = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: this is not the config.json of a CellVQ model") from error
    if found != FORMAT:
        raise InputError(f"{path}: a model of format {found}, and this version reads {FORMAT}")
    return config


def carry_over(source: CellVQ, target: CellVQ, *, codes: bool = True) -> None:
    """Fill a model with all that another has and that fits: not other batches, not new heads.

    Args:
        source: a trained model.
        target: a model of the same panel and configuration; changed in place.
        codes: whether the codebook is carried over as well.
    """
    there, batches = target.state_dict(), ("decoder.batch_shift", "decoder.batch_embedding")
    fits = {
        name: value for name, value in source.state_dict().items()
        if name in there and there[name].shape == value.shape
        and (codes or not name.startswith("quantizer."))
        and (name not in batches or source.batches == target.batches)
    }
    target.load_state_dict(there | fits)


def write_checkpoint(
    path: str | Path, model: CellVQ, optimizer: torch.optim.Optimizer, state: dict,
    best: dict[str, Tensor],
) -> None:
    """Write all that a run needs to go on: weights, optimizer state and where it stands.

    Args:
        path: the checkpoint's file.
        model: the model in training.
        optimizer: its optimizer.
        state: where the run stands, as JSON values.
        best: the weights that did best so far, where the run may stop early.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    content = _plain(tensors)  # where the model lies in parts, every process takes part in this
    if distributed.rank() == 0:
        write_whole(Path(path), save(content, {"state": json.dumps(state)}))


def read_checkpoint(
    path: str | Path, model: CellVQ, optimizer: torch.optim.Optimizer
) -> tuple[dict, dict[str, Tensor]]:
    """Put a model and its optimizer back to where a checkpoint was written.

    Args:
        path: the checkpoint's file.
        model: a model of the same configuration; changed in place.
        optimizer: its optimizer; changed in place.

    Returns:
        The state and the best weights given to `write_checkpoint`.

    Raises:
        InputError: the file is damaged or of another model.
    """
    tensors, metadata = read_tensors(Path(path))
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    load_state(model, parts["model"], path)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in parts["optimizer"].items():
        index, _, name = key.partition(".")
        if value.shape == parameters[int(index)].shape:
            value = distributed.like(value, parameters[int(index)])
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return json.loads(metadata["state"]), parts["best"]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file; copy or train it again") from error


def state_of(model: CellVQ) -> dict[str, Tensor]:
    """Return a copy of a model's weights, each in one piece on the CPU."""
    return _plain(model.state_dict())


def load_state(
    model: CellVQ, tensors: dict[str, Tensor], path: str | Path, assign: bool = False
) -> None:
    """Fill a model's weights, telling plainly of the first tensor that does not fit.

    Args:
        model: the model; changed in place.
        tensors: its weights by their names, each in one piece.
        path: where they come from, for the message.
        assign: take the tensors themselves, not copies of them.

    Raises:
        InputError: a tensor is missing, unknown, of another shape, or not finite.
    """
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        state = "missing" if name in wanted else "unknown"
        raise InputError(f"{path}: tensor {name} is {state}; the file is not of this model")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            shapes = f"{list(value.shape)}, and the model needs {list(wanted[name].shape)}"
            raise InputError(f"{path}: tensor {name} has shape {shapes}")
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: tensor {name} holds NaN or infinite values")
    tensors = {name: distributed.like(value, wanted[name]) for name, value in tensors.items()}
    model.load_state_dict(tensors, assign=assign)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and move it into place, so that it is never half there.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InputError(f"{path}: not written ({error.strerror}); nothing changed") from error


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = {name: distributed.whole(value.detach()) for name, value in tensors.items()}
    return {name: value.cpu().contiguous().clone() for name, value in whole.items()}
