"""Who takes part in a benchmark: CellVQ in its forms, established methods, and a user's own.

A contender makes vectors (and codes) of all cells. It sees counts and, where it takes one, the
batch; it never sees a label that it is tested on. Whatever it fails of stands in its entry.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cellvq import InputError, baselines, codes, config, cost, encoding, pretraining
from cellvq.entries import Benchmarked, Entry
from cellvq.tasks import MODEL, PCA

CODES = 64
"""Codes that a CellVQ is judged by, at the finest level with no more."""
SMALL = "small"
"""The model that comes with the package."""
NETWORK = {"model.cell_width": config.preset(SMALL).model.cell_width}
"""What its network has that the preset ``tiny``, by which all of them train, has not."""


@dataclass(frozen=True)
class Budget:
    """What a method may spend on one seed."""

    minutes: float | None = None
    """Training time of a CellVQ; None for ``steps``."""
    steps: int | None = None
    """Optimizer steps of a CellVQ; None for those of the preset ``tiny``."""
    epochs: int = baselines.EPOCHS
    """Epochs of scVI at the most; it stops early."""
    folder: Path | None = None
    """Where models are kept, from which an interrupted training goes on."""
    networks: bool = True
    """Whether tasks train scVI and scANVI as rivals of their own."""
    init: str = SMALL
    """The trained model that is scored as it is and goes on with the cells, a name or a folder."""

    def training(self) -> dict:
        """The arguments of :func:`cellvq.pretrain` that the budget decides."""
        return {"minutes": self.minutes, "steps": None if self.minutes else self.steps}


class Made(NamedTuple):
    """What a contender makes; vectors come one for each cell, in the cells' order."""

    vectors: np.ndarray
    settings: dict
    codes: np.ndarray | None = None


@dataclass(frozen=True)
class Contender:
    """A method that takes part."""

    name: str
    make: Callable[[Benchmarked, int, Budget], Made]
    family: str
    """``CellVQ``, ``linear``, ``neural``, ``control`` or ``yours``."""
    uses_batch: bool = False
    uses_labels: bool = False
    """It learns from the labels of training cells, so that only annotation can judge it."""
    needs_batch: bool = False
    seeded: bool = True
    """Whether another seed changes the result; if not, it is computed once."""
    identity: Callable[[Benchmarked], str] = lambda data: ""
    """What an entry depends on beside its name, the data and the budget; kept entries of another
    identity are not read."""


def zero_shot(data: Benchmarked, seed: int, budget: Budget) -> Made:
    """The trained model as it comes, whether or not it was trained on these cells."""
    return encoded(data, encoding.load(budget.init), {"init": _name(budget), "steps": 0})


def continued(data: Benchmarked, seed: int, budget: Budget) -> Made:
    """The trained model, fitted to these cells and trained on with them."""
    return encoded(data, *_train(data, seed, budget, "continued", init=budget.init))


def from_scratch(data: Benchmarked, seed: int, budget: Budget) -> Made:
    """The same network as ``small``, trained in the same way with these cells alone."""
    return encoded(data, *_train(data, seed, budget, "scratch", codes=CODES, changes=NETWORK))


def random_weights(data: Benchmarked, seed: int, budget: Budget) -> Made:
    """The same network with random weights that learn nothing; its codes are k-means of that."""
    still = NETWORK | {"training.warm_start": False, "training.learning_rate": 0.0,
             "training.code_start": 0.0}
    return encoded(data, *_train(data, seed, Budget(steps=1), "random", codes=CODES, changes=still))


def encoded(data: Benchmarked, model: encoding.CellVQ, settings: Mapping = ()) -> Made:
    """What a CellVQ makes of the cells.

    A cell without a count in any of the model's genes gets the mean vector and a code of its own,
    so that it counts against the model.
    """
    cells = encoding.encode(data.cells, model)
    level = max((depth for depth, size in enumerate(model.quantizer.sizes) if size <= CODES),
                default=0)
    vectors, empty = _filled(cells.obsm[codes.EMBEDDING])
    named = cells.obs[codes.CODE].astype(object).fillna("none")
    cut = np.asarray(codes.cut(named, level + 1), dtype=object)
    return Made(vectors, dict(settings) | {
        "dimensions": vectors.shape[1], "codes": int(model.quantizer.sizes[level]),
        "genes_matched": cells.uns["cellvq"]["genes_matched"], "cells_without_a_gene": empty,
        "parameters": sum(each.numel() for each in model.parameters()),
    }, cut)


def of_baseline(embed: Callable[..., baselines.Embedded], *, trains: bool = False) -> Callable:
    """Turn a function of :mod:`cellvq.baselines` into what makes a contender's vectors."""

    def make(data: Benchmarked, seed: int, budget: Budget) -> Made:
        return Made(*embed(data, seed, **({"epochs": budget.epochs} if trains else {})))

    return make


CONTENDERS = (
    Contender("CellVQ, continued", continued, MODEL, uses_batch=True),
    Contender("CellVQ, zero-shot", zero_shot, MODEL, seeded=False),
    Contender("CellVQ, from scratch", from_scratch, MODEL, uses_batch=True),
    Contender("CellVQ, random weights", random_weights, "control"),
    Contender(PCA, of_baseline(baselines.pca), "linear", seeded=False),
    Contender("PCA, unscaled", of_baseline(baselines.pca_unscaled), "linear", seeded=False),
    Contender("truncated SVD", of_baseline(baselines.truncated_svd), "linear", seeded=False),
    Contender("Harmony", of_baseline(baselines.harmony), "linear", uses_batch=True,
              needs_batch=True),
    Contender("scVI", of_baseline(baselines.scvi_embedding, trains=True), "neural",
              uses_batch=True),
)
"""Those that take part where none are named."""


def named(methods: Iterable[str] | None) -> list[Contender]:
    """Find contenders by their names.

    Raises:
        InputError: there is none of this name.

    Example:
        >>> [contender.name for contender in named(["PCA", "Harmony"])]
        ['PCA', 'Harmony']
    """
    known = {contender.name: contender for contender in CONTENDERS}
    names = list(known if methods is None else methods)
    for name in names:
        if name not in known:
            raise InputError(f"no method is called {name!r}; there are: {'; '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def asked(words: Iterable[str]) -> tuple[list[str] | None, list[str]]:
    """Part words of the command line into names of methods (None for all) and keys of ``obsm``.

    Example:
        >>> asked(["obsm:X_mine"]), asked(["PCA"])
        ((None, ['X_mine']), (['PCA'], []))
    """
    words = list(words)
    keys = [word.removeprefix("obsm:") for word in words if word.startswith("obsm:")]
    return [word for word in words if not word.startswith("obsm:")] or None, keys


def of_key(key: str) -> Contender:
    """A competitor whose vectors are already in ``obsm``."""

    def make(data: Benchmarked, seed: int, budget: Budget) -> Made:
        if key not in data.cells.obsm:
            raise InputError(f"obsm has no {key!r}; there are "
                             f"{', '.join(data.cells.obsm) or 'none'}")
        return checked(data.cells.obsm[key], data.cells.n_obs, key)

    return Contender(key, make, "yours", seeded=False,
                     identity=lambda data: _digest(data.cells.obsm.get(key)))


def of_function(name: str, embed: Callable[..., np.ndarray] | np.ndarray) -> Contender:
    """A competitor that is a function of the cells, or an array of vectors.

    Args:
        name: its name in the tables.
        embed: takes cells with raw counts, without the label, and returns vectors, [cells,
            dimensions]; if it has an argument ``seed``, it is called with every seed.
    """
    if not callable(embed):
        def given(data: Benchmarked, seed: int, budget: Budget) -> Made:
            chosen = data.kept is not None and len(embed) == len(data.kept)
            return checked(embed[data.kept] if chosen else embed, data.cells.n_obs, name)

        return Contender(name, given, "yours", seeded=False, identity=lambda data: _digest(embed))
    seeded = "seed" in inspect.signature(embed).parameters

    def make(data: Benchmarked, seed: int, budget: Budget) -> Made:
        cells = data.cells.copy()
        cells.obs = cells.obs.drop(columns=[data.label] if data.label else [])
        found = embed(cells, **({"seed": seed} if seeded else {}))
        return checked(found, cells.n_obs, name)

    source = _source(embed)  # now: a process that shares the work cannot see a notebook's cells
    return Contender(name, make, "yours", seeded=seeded, identity=lambda data: source)


def checked(vectors, n_cells: int, name: str) -> Made:
    """Check what somebody else's method gave.

    Raises:
        InputError: not a row of numbers for each cell.

    Example:
        >>> checked([[0.0], [1.0]], 3, "mine")
        Traceback (most recent call last):
        cellvq.InputError: mine gives 2 vectors for 3 cells; give one row for each, in their order
    """
    vectors = vectors.toarray() if hasattr(vectors, "toarray") else vectors
    try:
        vectors = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} gives no numbers; give an array [cells, dimensions]") from error
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(f"{name} gives an array of shape {vectors.shape}; give [cells, "
                         "dimensions]")
    if len(vectors) != n_cells:
        raise InputError(f"{name} gives {len(vectors):,} vectors for {n_cells:,} cells; give one "
                         "row for each, in their order")
    vectors, empty = _filled(vectors)
    if empty == n_cells:
        raise InputError(f"{name} holds NaN or infinite values in every row; give numbers")
    return Made(vectors, {"dimensions": vectors.shape[1], "cells_without_a_vector": empty})


def enter(contender: Contender, data: Benchmarked, seed: int, budget: Budget) -> Entry:
    """Let a contender make its entry; time and memory are measured, a failure is written down."""
    entry = Entry(contender.name, seed, uses_batch=contender.uses_batch and data.batch is not None,
                  uses_labels=contender.uses_labels)
    if contender.family != "yours":
        baselines.forget()  # a piece of the work would not be counted
    before, start = _reset_peak(), time.perf_counter()
    try:
        made = contender.make(data, seed, budget)
    except Exception as error:  # a method's failure is a row of the table, not the end of it
        return dataclasses.replace(entry, status=why(error))
    seconds, settings = time.perf_counter() - start, dict(made.settings)
    return dataclasses.replace(
        entry, vectors=made.vectors, codes=made.codes, seconds=seconds,
        memory_mb=max(cost.peak_memory(torch.device("cpu")) - before, 0.0) / 1e6,
        parameters=settings.pop("parameters", 0), settings=settings,
    )


def why(error: Exception) -> str:
    """Say in one line why a method failed."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"[:300]


def _train(
    data: Benchmarked, seed: int, budget: Budget, name: str, **options
) -> tuple[encoding.CellVQ, dict]:
    """Pretrain on the cells, or go on where an interrupted run stopped."""
    folder = None if budget.folder is None else Path(budget.folder) / f"{name}-seed{seed}"
    run = pretraining.pretrain(
        data.cells, seed=seed, batch=data.batch, donor=data.donor, output=folder, progress=False,
        resume=folder is not None, overwrite=folder is not None, **budget.training(), **options)
    settings = {key: str(value) for key, value in options.items()} | budget.training()
    if "init" in options:
        settings["init"] = _name(budget)
    return run.model, settings | {"preset": "tiny", "steps": int(run.history["step"].iloc[-1])}


def _name(budget: Budget) -> str:
    """Name of the trained model, without the folder that it lies in."""
    return Path(budget.init).name


def _digest(values) -> str:
    return "" if values is None else hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def _source(embed: Callable) -> str:
    """The text of a function and what is bound to it: one that was changed is called again."""
    if isinstance(embed, functools.partial):
        return _source(embed.func) + repr((embed.args, embed.keywords))
    try:
        bound = inspect.getclosurevars(embed).nonlocals.items()
        # A list or dict may be what the function itself fills; other objects would say where in
        # memory they lie, which no later process can compare.
        plain = {name: value for name, value in bound
                 if isinstance(value, (str, int, float, tuple, type(None)))}
        return inspect.getsource(embed) + (repr(plain) if plain else "")
    except (OSError, TypeError):
        return repr(embed.__class__)


def _filled(vectors: np.ndarray) -> tuple[np.ndarray, int]:
    """Put the mean vector in place of rows that are not finite, and count them."""
    vectors = np.array(vectors, dtype=np.float32)
    empty = ~np.isfinite(vectors).all(axis=1)
    if empty.any() and not empty.all():
        vectors[empty] = vectors[~empty].mean(axis=0)
    return vectors, int(empty.sum())


def _reset_peak() -> float:
    """Let the count of the most memory start anew, where Linux allows it; return it in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak until then stays a lower bound of what was in use
    return cost.peak_memory(torch.device("cpu"))
