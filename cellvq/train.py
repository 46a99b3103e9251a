"""The training loop: hide genes of real cells, predict them, follow the gradient.

A run writes ``model.safetensors``, ``config.json`` and ``history.jsonl`` into its folder, and while
it lasts a checkpoint from which it resumes bit for bit. Under ``torchrun`` the same loop runs in
several processes, each on its share of every step's cells.
"""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cellvq import InputError, adapters, distributed, loader, weights
from cellvq.config import TrainingConfig
from cellvq.corpus import Corpus
from cellvq.history import report, write_history
from cellvq.loader import PART, Batch
from cellvq.model import CellVQ, Encoded
from cellvq.objective import pretraining_loss
from cellvq.optimize import autocast, make_optimizer, schedule
from cellvq.runs import CHECKPOINT, Manner, Pretrained

REPORTS = 20
"""How many times in a run the validation cells are scored, at the most."""
REPORT_STEPS = 4
"""Fewest steps between two scores; more often, they would cost as much as the training."""
SETTLED_ON = 20_000
"""Training cells on which the codebook comes to rest."""


def train(
    model: CellVQ, corpus: Corpus, training: TrainingConfig, run: dict, manner: Manner
) -> Pretrained:
    """Train a model that is ready to start, or go on from the checkpoint in its folder.

    Args:
        model: the model, on its device; changed in place.
        corpus: the cells.
        training: the run's numbers.
        run: what the run depends on, as `describe` says it, to be written beside the weights.
        manner: where to, and how.
    """
    folder, minutes, codes = manner.output, run.get("minutes"), model.config.quantizer.codes
    first = distributed.rank() == 0
    network = distributed.share(model, manner.engine)
    optimizer = make_optimizer(model, training)
    state = {"run": run, "step": 0, "cells": 0, "seconds": 0.0, "history": [], "best": math.inf,
             "code_started": run.get("keep_codes", False), "reports_since_best": 0,
             "usage": [0] * codes}
    best: dict[str, Tensor] = {}
    if folder is not None and (folder / CHECKPOINT).exists():
        state, best = weights.read_checkpoint(folder / CHECKPOINT, model, optimizer)
    if manner.compile:
        network = torch.compile(network, dynamic=True)
    usage = torch.tensor(state["usage"], device=model.device)
    before, start = _progress(state, minutes), time.perf_counter() - state["seconds"]
    times = REPORTS if minutes else min(REPORTS, math.ceil(training.steps / REPORT_STEPS))
    bar = tqdm(total=None if minutes else training.steps, initial=state["step"], unit="step",
               disable=not (manner.progress and first), desc="training")
    if not state["history"]:
        report(model, corpus, training, state)
    model.train()
    while before < 1:
        step = state["step"]
        torch.manual_seed(training.seed * 1_000_003 + step)  # so that a resumed run draws the same
        if before >= training.code_start and not state["code_started"]:
            mine = distributed.share_of(corpus.train[: max(4096, 16 * codes)])
            model.quantizer.start(encode_cells(model, corpus, mine).summary, training.seed)
            state["code_started"] = True
        size = min(training.batch_size, corpus.training_cells)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule(before, training)
        optimizer.zero_grad()
        for part in range(training.accumulate):
            shown = training_batch(corpus, training, size, step, part).to(model.device)
            weight = len(shown.depth) * distributed.size() / size
            with _sync_if(part == training.accumulate - 1, network, model):
                with autocast(model, training.precision):
                    output = network(shown, before)
                loss = weight * pretraining_loss(output, shown, training)
                loss.backward()
            if state["code_started"]:
                usage += distributed.total(
                    torch.bincount(output.quantized.codes, minlength=codes)
                )
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()

        state |= {"step": step + 1, "cells": state["cells"] + size,
                  "seconds": time.perf_counter() - start}
        after = _progress(state, minutes)
        reports = int(after * times) > int(before * times)
        saves = folder is not None and state["step"] % manner.checkpoint_every == 0
        bar.update()
        if reports or saves:
            state |= {"loss": loss.item(), "usage": usage.tolist()}
            if not math.isfinite(state["loss"]):
                raise InputError(
                    f"the loss is not a number at step {step}; lower training.learning_rate "
                    f"(it is {training.learning_rate}), and resume from the last checkpoint"
                )
        if after >= 1:
            settle(model, corpus, training)
        if reports:
            row = report(model, corpus, training, state)
            usage.zero_()
            left = f"{(1 - after) * minutes:.1f} min left, " if minutes else ""
            bar.set_postfix_str(
                f"{left}{row['cells_per_second']:,.0f} cells/s, loss {row['loss']:.2f}, validation "
                f"{row['validation_cell']:.1f}, perplexity {row['perplexity']:.1f}"
            )
            # Before the codebook starts, cells pass through it unchanged: that loss is no measure.
            if training.patience and state["code_started"] and _is_best(state, row):
                best = weights.state_of(model)
            if folder is not None and first:
                write_history(folder, state["history"])
            if training.patience and state["reports_since_best"] >= training.patience:
                break
        if saves and after < 1:
            weights.write_checkpoint(folder / CHECKPOINT, model, optimizer, state, best)
        before = after
    bar.close()
    if best and state["reports_since_best"]:
        weights.load_state(model, best, "the best weights so far")
        settle(model, corpus, training)
    adapters.merge(model)
    if folder is not None:
        weights.write_model(folder, model, run | {"seconds": state["seconds"]})
        distributed.wait()
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return Pretrained(model.eval(), pd.DataFrame(state["history"]))


def _is_best(state: dict, row: dict) -> bool:
    """Keep count of the reports since the validation loss was lowest."""
    loss = row["validation_cell"] + row["validation_code"]
    better = loss < state["best"]
    state["best"] = min(loss, state["best"])
    state["reports_since_best"] = 0 if better else state["reports_since_best"] + 1
    return better


def _sync_if(last: bool, network: nn.Module, model: CellVQ) -> contextlib.AbstractContextManager:
    """Let the processes add up their gradients only with the last part of a step."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(last)
    is_shared = isinstance(network, nn.parallel.DistributedDataParallel)
    return network.no_sync() if is_shared and not last else contextlib.nullcontext()


def training_batch(
    corpus: Corpus, training: TrainingConfig, size: int, step: int, part: int
) -> Batch:
    """Make the batch of one part of a step for this process, drawing anew what it does not see.

    Args:
        corpus: the cells.
        training: the run's numbers.
        size: number of cells of the whole step.
        step: the step.
        part: the part, of ``training.accumulate``.
    """
    # The processes share each part, so that a part holds the same cells however many there are.
    share = part * distributed.size() + distributed.rank()
    mine = loader.share_of_step(size, distributed.size() * training.accumulate, share)
    cells, made = corpus.step(training, step, mine), []
    for begin in range(0, mine.stop - mine.start, PART):
        made.append(loader.make_batch(
            *cells.cut(begin, begin + PART), hidden_share=training.hidden_share,
            thinned_share=training.thinned_share, max_tokens=training.max_tokens,
            rng=np.random.default_rng([training.seed, 1, step, mine.start + begin]),
        ))
    return loader.join(made, len(corpus.panel))


@torch.no_grad()
def settle(model: CellVQ, corpus: Corpus, training: TrainingConfig) -> None:
    """Let the codebook come to rest on whole training cells."""
    mine = distributed.share_of(corpus.train[:SETTLED_ON])
    model.quantizer.settle(encode_cells(model, corpus, mine).summary, training.seed)


@torch.no_grad()
def encode_cells(model: CellVQ, corpus: Corpus, cells: np.ndarray) -> Encoded:
    """Encode whole cells of the corpus, with nothing hidden; cells of like length go together."""
    was_training = model.training
    model.eval()
    encoded = []
    order = np.argsort(np.diff(corpus.take(cells).counts.indptr), kind="stable")
    for part in np.array_split(cells[order], math.ceil(len(cells) / 64)):
        taken = corpus.take(part)
        batch = loader.make_batch(taken.counts, taken.depth, measured=taken.measured)
        encoded.append(model.encode(batch.to(model.device)))
    model.train(was_training)
    if hasattr(model, "reshard"):  # FSDP2: what is written to the parameters next has to last
        model.reshard()
    back = torch.as_tensor(np.argsort(order), device=model.device)
    return Encoded(*(torch.cat(parts)[back] for parts in zip(*encoded, strict=True)))


def _progress(state: dict, minutes: float | None) -> float:
    """Return the share of the run that is done, by steps or by the first process's clock."""
    if minutes is not None:
        return distributed.agree(min(state["seconds"] / (60 * minutes), 1.0))
    return state["step"] / state["run"]["training"]["steps"]
