"""What a pretraining run writes down of itself while it goes on, and how it is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellvq import InputError, loader
from cellvq.config import TrainingConfig
from cellvq.corpus import Corpus
from cellvq.model import CellVQ
from cellvq.objective import mean_profile
from cellvq.quantize import perplexity
from cellvq.weights import write_whole

HISTORY = "history.jsonl"
"""Name of the history in the folder of a run."""


@torch.no_grad()
def report(model: CellVQ, corpus: Corpus, training: TrainingConfig, state: dict) -> dict:
    """Score the validation cells, always with the same genes hidden; add a row to the history.

    Args:
        model: the model as it stands.
        corpus: the cells.
        training: the run's numbers.
        state: where the run stands; its history grows by the row.

    Returns:
        The row: step, cells (seen so far), seconds, cells_per_second, loss; validation_cell,
        validation_code and validation_mean (negative log likelihood per 1,000 hidden genes, decoded
        from the cell vector, from the code alone, and of the mean profile, a baseline); perplexity,
        codes_used and usage of the training cells since the last row; accuracy_<property>, the
        share of labelled validation cells whose label is predicted from all of their genes.
    """
    cells, scores = corpus.validation[:1024], []
    model.eval()
    for part in range(0, len(cells), 128):  # all genes of a cell at once need memory
        chosen = cells[part : part + 128]
        taken = corpus.take(chosen)
        batch = loader.make_batch(
            taken.counts, taken.depth, taken.batch, measured=taken.measured,
            hidden_share=training.hidden_share or 0.25,
            rng=np.random.default_rng([training.seed, 2, part]),
        ).to(model.device)
        asked = batch.hidden if batch.measured is None else batch.hidden & batch.measured
        output = model(batch)
        mean = mean_profile(corpus, batch.depth)
        losses = [-counts.log_likelihood(batch.counts)[asked].sum()
                  for counts in (output.from_cell, output.from_code, mean)]
        right = []
        if model.properties:  # read off whole cells, as users do
            whole = model.encode(loader.make_batch(
                taken.counts, taken.depth, measured=taken.measured
            ).to(model.device)).cell
            right = [
                (head(whole).argmax(1).cpu().numpy() == taken.properties[:, number]).sum()
                for number, head in enumerate(model.heads.values())
            ]
        scores.append([*map(float, losses), int(asked.sum()), *right])
    model.train()
    cell, code, mean, places, *right = np.sum(scores, axis=0).tolist()
    labelled = (corpus.properties[cells] >= 0).sum(0)
    accuracy = {f"accuracy_{name}": right[number] / max(labelled[number], 1)
                for number, name in enumerate(model.properties)}
    even, used = perplexity(torch.tensor(state["usage"]))
    row = {
        "step": state["step"], "cells": state["cells"], "seconds": state["seconds"],
        "cells_per_second": state["cells"] / state["seconds"] if state["seconds"] else None,
        "loss": state.get("loss"), "validation_cell": 1000 * cell / places,
        "validation_code": 1000 * code / places, "validation_mean": 1000 * mean / places,
        "perplexity": even, "codes_used": used, "usage": state["usage"], **accuracy,
    }
    state["history"].append(row)
    state["usage"] = [0] * len(state["usage"])
    return row


def write_history(directory: str | Path, rows: list[dict]) -> None:
    """Write the history of a run, one JSON line a row."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(Path(directory) / HISTORY, lines.encode())


def read_history(directory: str | Path) -> pd.DataFrame:
    """Read the history of a run, one row a report; its columns are described at `report`.

    Raises:
        InputError: the folder holds no history.
    """
    path = Path(directory) / HISTORY
    if not path.exists():
        raise InputError(f"{path}: there is no such file; name the folder of a pretraining run")
    return pd.read_json(path, lines=True)
