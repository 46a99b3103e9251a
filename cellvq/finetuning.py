"""Fine-tuning: a trained model learns the labels of new cells, wholly or by a few weights only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch.nn import functional as F

from cellvq import InputError, adapters, config, distributed, weights
from cellvq.config import TrainingConfig
from cellvq.corpus import Corpus, gather
from cellvq.history import report, write_history
from cellvq.model import CellVQ
from cellvq.optimize import reproducible
from cellvq.runs import Manner, Pretrained, describe, finished
from cellvq.train import encode_cells, train

if TYPE_CHECKING:
    from anndata import AnnData

PARTS = ("all", "adapters", "head")
"""What may learn, every weight, low-rank additions to the attention, or the label's head alone."""


def finetune(
    cells: AnnData | str | Path | Sequence[str | Path],
    model: str | Path,
    *,
    label: str,
    parts: str = "all",
    batch: str | None = None,
    donor: str | None = None,
    steps: int = 200,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 50,
    engine: str = "ddp",
    progress: bool = True,
) -> Pretrained:
    """Teach a trained model a label; to go on with new cells without one, use ``pretrain(init=)``.

    The label gets a head on the cell vector, first fitted on the vectors as they are. With all
    parts or adapters the pretraining tasks then go on beside it, so that vectors and codes stay
    those of whole cells. Heads that the model had before are left behind.

    Args:
        cells: cells with raw counts, or the file (or files) they are in.
        model: folder of the trained model.
        label: column of ``obs`` to learn; it may be missing in any cell.
        parts: ``all``, ``adapters`` (low-rank additions to the attention, merged into the weights
            when training ends) or ``head`` (a logistic regression on the vectors, which stay as
            they are, as do the codes; ``steps`` and checkpoints play no part).
        batch: column of ``obs`` with the batch, which the decoder sees.
        donor: column of ``obs`` with the donor; whole donors are kept for validation.
        steps: optimizer steps.
        changes: other numbers to change, such as ``{"training.learning_rate": 1e-4}``.
        seed: seed of the split and of every draw.
        output: folder for the model, its history and, while it trains, a checkpoint.
        resume: go on with the run in ``output``; a finished run is read, not repeated.
        overwrite: replace another run that is in ``output``.
        checkpoint_every: steps between checkpoints.
        engine: how the processes of a ``torchrun`` share the model, ``ddp`` or ``fsdp``.
        progress: show a progress bar.

    Returns:
        The model, whose ``properties`` now hold the label, and its history, in which
        ``accuracy_<label>`` is that of the validation cells.

    Raises:
        InputError: the label is absent, has fewer than two values, or the genes do not match.

    Example:
        >>> from cellvq import pretrain
        >>> from cellvq.simulate import simulate_cells
        >>> import tempfile
        >>> cells = simulate_cells(cells=200)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pretrain(cells, steps=3, codes=8, output=folder, progress=False)
        ...     tuned = finetune(cells, folder, label="cell_type", steps=3, progress=False)
        >>> list(tuned.model.properties)
        ['cell_type']
    """
    if parts not in PARTS:
        raise InputError(f"parts is {parts!r}; use one of {', '.join(PARTS)}")
    manner = Manner(None if output is None else Path(output), resume, overwrite, checkpoint_every,
                    progress, engine)
    device = distributed.enter()
    source, _ = weights.read_model(model)
    base = TrainingConfig(steps=steps, learning_rate=3e-4, decoder_rate=3.0, warm_path_rate=1.0,
                          property_weight=1.0, seed=seed)
    size, training = config.change(source.config, base, changes or {})
    if size != source.config:
        raise InputError("only numbers of the training can change when a model is fine-tuned")
    data = gather(cells, source.panel, batch, donor, training, [label], size.depth)
    run = describe(data, size, training) | {
        "finetuned": label, "parts": parts, "init": weights.fingerprint(source),
    }
    if found := finished(run, manner):
        return found
    if parts == "adapters" and engine == "fsdp":
        raise InputError("adapters need the engine ddp: there is little to divide")
    with reproducible():
        torch.manual_seed(seed)
        tuned = CellVQ(size, data.panel, data.batches, data.labels)
        weights.carry_over(source, tuned)
        tuned.to(device)
        fit_head(tuned, data)  # first, so that training does not bend the vectors towards noise
        if parts == "head":
            return _without_training(tuned, data, training, run, manner)
        if parts == "adapters":
            adapters.adapt(tuned)
        return train(tuned, data, training, run, manner)


def fit_head(model: CellVQ, corpus: Corpus) -> None:
    """Fit the head of the label on the vectors of the training cells: a ridge logistic regression.

    Fine-tuning from a fitted head keeps more of what the model knows (arXiv 2202.10054).

    Args:
        model: the model, on its device; nothing but its head changes.
        corpus: the cells, with the label as their only property.
    """
    (head,) = model.heads.values()
    cells = corpus.train[corpus.properties[corpus.train, 0] >= 0]
    vectors = encode_cells(model, corpus, cells).cell
    labels = torch.as_tensor(corpus.properties[cells, 0], device=vectors.device)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        ridge = head.weight.square().sum() / len(labels)
        total = F.cross_entropy(head(vectors), labels) + ridge
        total.backward()
        return total

    optimizer.step(loss)


def _without_training(
    model: CellVQ, corpus: Corpus, training: TrainingConfig, run: dict, manner: Manner
) -> Pretrained:
    """Score a model as it is and write it down."""
    state = {"step": 0, "cells": 0, "seconds": 0.0, "history": [],
             "usage": [0] * model.config.quantizer.codes}
    report(model, corpus, training, state)
    if manner.output is not None:
        weights.write_model(manner.output, model, run)
        if distributed.rank() == 0:
            write_history(manner.output, state["history"])
    return Pretrained(model.eval(), pd.DataFrame(state["history"]))
