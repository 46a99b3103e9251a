"""Ablation: the model with one choice taken back at a time, as competitors of one benchmark."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from cellvq import codes, contenders, encoding, pretraining
from cellvq.questions import OVERALL
from cellvq.scores import SHUFFLED

FULL = "as it is"
"""The variant in which nothing is taken back."""
VARIANTS: dict[str, dict] = {
    FULL: {},
    "from scratch": {"init": None},
    "path and codes kept": {"keep_codes": True},
    "path and codes anew": {"keep_codes": False},
    "no training after the warm start": {"training.learning_rate": 0.0},
    "no warm start": {"init": None, "training.warm_start": False},
    "16 axes": {"init": None, "model.cell_width": 16},
    "nothing hidden, cells thinned": {
        "training.hidden_share": 0.0, "training.thinned_share": 1.0},
    "code predicts nothing": {"training.code_likelihood": 0.0},
    "no pull towards the code": {"quantizer.commitment": 0.0},
}
"""Arguments of `cellvq.pretrain` that each variant changes, and settings (those with a dot)."""


def competitors(
    variants: Mapping[str, Mapping] = VARIANTS, *, init: str | Path = contenders.SMALL,
    batch: str | None = None, steps: int | None = None,
) -> dict[str, Callable[..., np.ndarray]]:
    """Make a competitor of each variant: a function of cells and a seed that returns vectors.

    Args:
        variants: what each variant changes, as in `VARIANTS`.
        init: the trained model to start from, where a variant does not start from none.
        batch: column of ``obs`` with the technical batch.
        steps: length of each training, optimizer steps.

    Example:
        >>> list(competitors())[:2]
        ['as it is', 'from scratch']
    """
    made = {}
    for name, changed in variants.items():
        options = {"init": str(init), "batch": batch, "steps": steps}
        options |= {key: value for key, value in changed.items() if "." not in key}
        changes = {key: value for key, value in changed.items() if "." in key}
        if options["init"] is None:  # the same network as that of the trained model
            options["codes"], changes = contenders.CODES, contenders.NETWORK | changes
        made[name] = functools.partial(_embed, options=options, changes=changes)
    return made


def effects(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Say how far the model as it is stands from each variant, and from whatever else took part.

    Args:
        verdicts: of a benchmark with `competitors`.

    Returns:
        Data set, what was taken back, the difference in the overall score with its interval (above
        zero: the choice earned its place), the verdict, seeds and cells.
    """
    rows = verdicts[(verdicts["task"] == OVERALL) & (verdicts["method"] == FULL)
                    & ~verdicts["baseline"].str.endswith(SHUFFLED)]
    kept = rows[["dataset", "baseline", "difference", "low", "high", "verdict", "seeds", "n_cells"]]
    return kept.rename(columns={"baseline": "taken back"}).reset_index(drop=True)


def _embed(cells: AnnData, seed: int, options: dict, changes: dict) -> np.ndarray:
    run = pretraining.pretrain(cells, seed=seed, changes=changes, progress=False, **options)
    return encoding.encode(cells, run.model).obsm[codes.EMBEDDING]
