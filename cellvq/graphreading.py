"""Reading the graph module: what each code attends to, and whether that says anything.

Attention explains nothing until a test says so (arXiv 1902.10186). :func:`read_outs` lists what the
cells of a code attend to; :func:`deletions` deletes what they attend to most, beside as many random
tokens and beside a simple rival, and asks how much worse held-out molecules are predicted.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from cellvq import InputError
from cellvq.graphattention import gather
from cellvq.graphtokens import KINDS, Tokens
from cellvq.graphtraining import AT_ONCE, Trained, likelihood

READ_OUT_COLUMNS = {
    "code": str, "kind": str, "token": str, "attention": float, "baseline": float,
    "log2_ratio": float, "share": float, "n_cells": int,
}
DELETED = {"genes": 8, "annotations": 1, "neighbours": 3, "pairs": 2}
"""Tokens of each kind that are deleted from a cell, where it has so many."""
RIVALS = {"genes": "stand out most", "annotations": "", "neighbours": "nearest",
          "pairs": "strongest"}
"""What is deleted beside the most attended and random tokens, by what is known without a model."""
FAITHFUL, RANDOM, IDLE = "faithful", "no better than random", "adds nothing"
"""Verdicts on a read-out."""
LEVEL = 0.95
SMALLEST = 1e-5
"""Attention added to both parts of a ratio."""


def parts(made: Tokens) -> dict[str, slice]:
    """Tell where tokens of each kind stand, as :func:`cellvq.graphattention.gather` orders them.

    Args:
        made: tokens.
    """
    widths = [made.gene.shape[1], made.annotation.shape[1], made.neighbour.shape[1],
              made.pair.shape[1]]
    ends = np.cumsum([1, *widths])
    return {kind: slice(int(first), int(last))
            for kind, first, last in zip(KINDS, ends, ends[1:], strict=False)}


@torch.no_grad()
def attention(trained: Trained, made: Tokens, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the attention of cells to their tokens, and which tokens are there.

    Args:
        trained: the module.
        made: tokens.
        rows: which cells.

    Returns:
        Attention, mean over heads, and bool, [cells, tokens] each.
    """
    trained.network.eval()
    found = []
    for part in np.array_split(rows, len(rows) // AT_ONCE + 1):
        batch, keep = gather(made, part)
        found.append((trained.network(batch, keep).read.numpy(), keep.numpy()))
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))


@torch.no_grad()
def read_outs(trained: Trained, made: Tokens, rows: np.ndarray | None = None) -> pd.DataFrame:
    """List what the cells of each code attend to: genes, annotations, neighbours and signals.

    Neighbours are listed by the code that their own vector has before attention, signals by the
    pair and its direction. A cell without the token counts as attention 0.

    Args:
        trained: the module.
        made: tokens of cells.
        rows: which cells; None: all.

    Returns:
        One row a code and token: ``code``, ``kind`` (of ``KINDS``), ``token`` (str), ``attention``
        (mean over the code's cells), ``baseline`` (mean over all cells), ``log2_ratio`` (of the
        two), ``share`` (of the code's cells that have the token), ``n_cells`` (of the code); each
        code's most attended tokens first.
    """
    rows = np.arange(len(made.features)) if rows is None else rows
    code = _codes(trained, made, rows)
    read, there = attention(trained, made, rows)
    names, tables = _names(trained, made, rows), []
    sizes = pd.Series(code).value_counts()
    for kind, part in parts(made).items():
        if not there[:, part].any():
            continue
        cell, place = np.nonzero(there[:, part])
        long = pd.DataFrame({"cell": cell, "token": names[kind][cell, place],
                             "attention": read[:, part][cell, place]})
        long = long.groupby(["cell", "token"], as_index=False)["attention"].sum()
        long["code"] = code[long["cell"].to_numpy()]
        baseline = long.groupby("token")["attention"].sum() / len(rows)
        table = long.groupby(["code", "token"])["attention"].agg(["sum", "size"]).reset_index()
        n_cells = table["code"].map(sizes)
        tables.append(pd.DataFrame({
            "code": table["code"], "kind": kind, "token": table["token"],
            "attention": table["sum"] / n_cells, "baseline": table["token"].map(baseline),
            "share": table["size"] / n_cells, "n_cells": n_cells}))
    if not tables:
        return pd.DataFrame({name: pd.Series(dtype=of) for name, of in READ_OUT_COLUMNS.items()})
    table = pd.concat(tables, ignore_index=True)
    table["log2_ratio"] = np.log2((table["attention"] + SMALLEST) / (table["baseline"] + SMALLEST))
    table["kind"] = pd.Categorical(table["kind"], KINDS)
    table = table.sort_values(["code", "kind", "attention"], ascending=[True, True, False],
                              kind="stable", ignore_index=True)
    return table.astype(READ_OUT_COLUMNS)[list(READ_OUT_COLUMNS)]


def deletions(
    trained: Trained, made: Tokens, rows: np.ndarray, *, deleted: dict[str, int] | None = None,
    draws: int = 3, seed: int = 0,
) -> pd.DataFrame:
    """Delete the tokens that cells attend to most, beside random ones: is the read-out faithful?

    The outcome is what a cell's held-out molecules lose in log likelihood, from the vector before
    the quantiser, and whether the cell's code changes. A read-out is ``faithful`` where the most
    attended tokens cost more than as many random ones of the same cell and kind. It ``adds
    nothing`` where cells lose nothing without all tokens of the kind. Where cells have a single
    annotation there is no other to delete; ``random`` and ``difference`` are then what they lose
    with the annotation of another cell, as a token may matter by being there, whatever it says.

    Args:
        trained: the module.
        made: tokens of dealt cells.
        rows: cells that were not trained on.
        deleted: tokens to delete a cell, by kind; by default ``DELETED``.
        draws: draws of the random tokens, over which a cell's loss is averaged.
        seed: seed of these draws.

    Returns:
        One row a kind that has tokens: ``kind``, ``deleted`` (mean tokens a cell), ``n_cells``;
        ``without`` (nats a cell lost without all tokens of the kind), ``attended``, ``random``,
        ``rival`` (the same for those tokens), each with ``_low`` and ``_high``; ``difference``
        (attended less random, paired over cells) and ``to_rival`` (attended less rival) likewise;
        ``changed_attended``, ``changed_random`` (share of cells whose code changes),
        ``rival_is``, ``verdict``.

    Raises:
        InputError: there are no cells, or no such kind.
    """
    deleted = {**DELETED, **(deleted or {})}
    unknown = set(deleted) - set(KINDS)
    if unknown or len(rows) < 2:
        raise InputError(f"no tokens are called {unknown}; there are {', '.join(KINDS)}" if unknown
                         else f"{len(rows)} cells: a test needs 2 or more")
    rng = np.random.default_rng([seed, 59])
    read, there = attention(trained, made, rows)
    whole = likelihood(trained.network, made, rows)
    found = []
    for kind, part in parts(made).items():
        has = there[:, part]
        if not has.any():
            continue
        number = np.minimum(deleted[kind], np.maximum(has.sum(1) - 1, 0))
        if has.sum(1).max() == 1:  # a single token: to delete it is to delete the kind
            number = has.sum(1)

        def lost(order: np.ndarray, part=part, has=has, number=number) -> tuple:
            rank = np.argsort(np.argsort(np.where(has, order, np.inf), 1, kind="stable"), 1)
            keep = np.ones_like(there)
            keep[:, part] = rank >= number[:, None]
            now = likelihood(trained.network, made, rows, torch.from_numpy(keep))
            loss = (whole["vector"] - now["vector"]).to_numpy()
            return loss, (whole["number"] != now["number"]).to_numpy().astype(float)

        everything = np.ones_like(there)
        everything[:, part] = False
        gone = likelihood(trained.network, made, rows, torch.from_numpy(everything))
        without = (whole["vector"] - gone["vector"]).to_numpy()
        attended, changed = lost(-read[:, part])
        is_single = has.sum(1).max() == 1
        if is_single and kind == "annotations":  # that of a stranger in place of one's own
            chance = [_swapped(trained, made, rows, whole, rng) for _ in range(draws)]
        else:
            chance = [lost(rng.random(has.shape)) for _ in range(draws)]
        chance, moved = (np.mean(each, 0) for each in zip(*chance, strict=True))
        rival = lost(_rival(made, rows, kind))[0]
        row = {"kind": kind, "deleted": number.mean(), "n_cells": len(rows)}
        for name, values in {"without": without, "attended": attended, "random": chance,
                             "rival": rival,
                             "difference": chance if is_single else attended - chance,
                             "to_rival": attended - rival}.items():
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval(values)
        row |= {"changed_attended": changed.mean(), "changed_random": moved.mean(),
                "rival_is": RIVALS[kind], "verdict": _verdict(row, is_single)}
        found.append(row)
    return pd.DataFrame(found)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return a mean over cells and Student's interval around it.

    Args:
        values: one value a cell.

    Example:
        >>> [round(value, 3) for value in interval(np.array([1.0, 2.0, 3.0]))]
        [2.0, -0.484, 4.484]
    """
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def _verdict(row: dict, is_single: bool) -> str:
    if not row["without_low"] > 0 or (is_single and not row["difference_low"] > 0):
        return IDLE
    return FAITHFUL if row["difference_low"] > 0 else RANDOM


def _swapped(
    trained: Trained, made: Tokens, rows: np.ndarray, whole: pd.DataFrame, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return what cells lose with the annotation of another cell, and whose code changes."""
    annotation = made.annotation.copy()
    annotation[rows] = made.annotation[rng.permutation(rows)]
    now = likelihood(trained.network, dataclasses.replace(made, annotation=annotation), rows)
    loss = (whole["vector"] - now["vector"]).to_numpy()
    return loss, (whole["number"] != now["number"]).to_numpy().astype(float)


def _rival(made: Tokens, rows: np.ndarray, kind: str) -> np.ndarray:
    """Return the order in which a rival that needs no model deletes tokens, the first smallest."""
    if kind == "genes":
        return -made.value[rows]
    if kind == "pairs":
        return -made.weight[rows]
    width = {"annotations": made.annotation, "neighbours": made.neighbour}[kind].shape[1]
    return np.tile(np.arange(width, dtype=float), (len(rows), 1))  # neighbours come nearest first


def _codes(trained: Trained, made: Tokens, rows: np.ndarray) -> np.ndarray:
    names = np.array(trained.network.quantizer.addresses(), dtype=object)
    return names[likelihood(trained.network, made, rows)["number"].to_numpy()]


def _names(trained: Trained, made: Tokens, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the name of every token of cells, by kind, object [cells, tokens of the kind]."""
    words, quantizer = trained.vocabulary, trained.network.quantizer
    known = [np.array([f"{name}: {value}" for value in values] or [""], dtype=object)
             for name, values in words.annotations.items()]
    labels = [values[made.annotation[rows, number]] for number, values in enumerate(known)]
    near = np.array(quantizer.addresses(), object)[_quantised(quantizer, words.reference)]
    half = made.pair.shape[1] // 2
    both = np.array([f"{ligand} → {receptor}" for ligand, receptor in words.pairs] or [""], object)
    both = both[made.pair[rows]]
    both[:, :half] += ", received"
    both[:, half:] += ", sent"
    none = np.zeros((len(rows), 0), dtype=object)
    return {"genes": np.array(words.genes, dtype=object)[made.gene[rows]],
            "annotations": np.stack(labels, 1) if labels else none,
            "neighbours": near[made.neighbour[rows]], "pairs": both}


def _quantised(quantizer: torch.nn.Module, vectors: np.ndarray) -> np.ndarray:
    found: list[Tensor] = [quantizer(part).codes for part in torch.from_numpy(vectors).split(4096)]
    return torch.cat(found).numpy()
