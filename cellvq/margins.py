"""What a cell has in hand: the margin of its code, and what is left of it without some genes.

The margin is the distance to the nearest other code minus that to the cell's own, as the quantiser
measures them (along the whole path where codes are nested). Above 0 the cell keeps its code. Two
codes of one cell type are neighbours, so what decides between them need not mark the type; against
the mean distance to all other codes it does, as far as anything does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from cellvq import InputError, encoding, joined, loader, markers, sources, weights
from cellvq.loader import Batch
from cellvq.model import CellVQ

if TYPE_CHECKING:
    from anndata import AnnData

AWAY = ("average", "hidden", "unmeasured")
"""Ways to take genes away from a cell; `without` says what each of them is."""
SHARE = 8
"""Blocks are this many times smaller than in encoding."""


RIVALS = ("nearest", "all")
"""A code is held against the nearest other code, or the mean distance of all others."""


class Question(NamedTuple):
    """Why do some cells take these codes, and not others?"""

    code: Tensor
    """Index of each cell's code at the level, [cells]; it need not be the nearest."""
    level: int = -1
    """Level of the codes, 0 the coarsest, -1 full depth; all codes below a prefix are its own."""
    rival: str = "nearest"
    """One of ``RIVALS``."""


@dataclasses.dataclass(frozen=True)
class Coded:
    """Encoded cells as their model takes them, and the code of each at one level."""

    counts: csr_matrix
    """UMI counts of the panel, [cells, panel]."""
    depth: np.ndarray
    """Total UMI counts over all genes measured, [cells]."""
    code: np.ndarray
    """Index of each cell's code at the level, [cells]."""
    names: list[str]
    """Address of each code of the level."""
    level: int
    """Level of the codes, 0 the coarsest, -1 full depth."""
    measured: np.ndarray
    """Which genes of the panel were measured, [panel] bool."""
    target_depth: float | None
    """Depth at which the cells were encoded; None for each cell's own."""

    def draw(
        self, seed: int, *, per_code: int | None = None, most: int | None = None
    ) -> np.ndarray:
        """Draw rows of cells at random, at most so many of a code or in all; ascending."""
        order = np.random.default_rng(seed).permutation(len(self.code))
        place = pd.Series(order).groupby(self.code[order]).cumcount().to_numpy()
        order = order[place < (len(order) if per_code is None else per_code)]
        return np.sort(order[:most])

    def blocks(
        self, rows: np.ndarray, model: CellVQ, rival: str = "nearest"
    ) -> Iterator[tuple[np.ndarray, Batch, Question]]:
        """Yield cells of like numbers of expressed genes: rows, batch, and what is asked of it."""
        for block in loader.by_length(self.counts[rows], at_once(model)):
            block = rows[block]
            known = None if self.measured.all() else np.tile(self.measured, (len(block), 1))
            batch = loader.make_batch(self.counts[block], self.depth[block], measured=known,
                                      target_depth=self.target_depth)
            code = torch.from_numpy(self.code[block]).to(model.device)
            yield block, batch.to(model.device), Question(code, self.level, rival)


def read(cells: AnnData, model: CellVQ, level: int = -1) -> Coded:
    """Bring encoded cells that have a code into the order of their model's panel.

    Args:
        cells: cells that `cellvq.encode` gave their codes.
        model: the model that did.
        level: level of nested codes to explain, 0 the coarsest, -1 full depth.

    Raises:
        InputError: the cells are not encoded, or by another model, or there is nothing to choose.
    """
    cells, taken = markers.with_code(cells)
    levels = len(model.quantizer.sizes)
    if not -levels <= level < levels:
        raise InputError(f"these codes have {levels} level(s) and none numbered {level}; use 0 "
                         "for the coarsest, or -1 for the finest")
    if model.quantizer.sizes[level] < 2:
        raise InputError(f"level {level} has a single code, so no gene makes a cell take it; use "
                         "a finer level")
    about = cells.uns.get("cellvq", {})
    if about.get("weights_sha256") != weights.fingerprint(model):
        raise InputError("the cells were not encoded by this model; encode them with it first")
    place = {name: i for i, name in enumerate(model.quantizer.addresses())}
    code = torch.from_numpy(taken.map(place).to_numpy(int))
    together = joined.Joined([sources.Memory(cells)], model.panel)
    matrix, depth, _ = together.read([range(len(together))])
    if model.config.depth == "panel":
        depth = np.asarray(matrix.sum(1)).ravel()
    target = about.get("target_depth", "match")
    return Coded(
        matrix, depth, model.quantizer.prefix(code.to(model.device), level).cpu().numpy(),
        model.quantizer.addresses(level), level, together.measured[0],
        None if target == "match" else float(target),
    )


def margin(model: CellVQ, batch: Batch, asked: Question) -> Tensor:
    """Return how much nearer each cell is to its own code than to the rival, [cells].

    Args:
        model: the model.
        batch: the cells.
        asked: their codes.
    """
    distances = model.quantizer.distances(model.encode(batch).summary)
    every = torch.arange(distances.shape[1], device=distances.device)
    own = model.quantizer.prefix(every, asked.level) == asked.code[:, None]
    if asked.rival == "nearest":
        other = distances.masked_fill(own, torch.inf).amin(1)
    else:
        other = distances.masked_fill(own, 0.0).sum(1) / (~own).sum(1)
    return other - distances.masked_fill(~own, torch.inf).amin(1)


def without(model: CellVQ, batch: Batch, taken: Tensor, away: str = "average") -> Batch:
    """Take genes away from cells, so that the model does not know them any more.

    A gene set to zero would not be unknown: its absence speaks. ``average`` gives the gene the
    value that it has in the average training cell, and no token. The model itself does so with a
    gene that is held out (``hidden``), but then lets the other genes speak louder, by the share of
    genes held out and not by what they said: with many genes away that factor, and no longer the
    genes, decides the margin. ``unmeasured`` estimates what a gene would have said from those that
    are left, so that a gene for which others can stand in is hardly missed.

    Args:
        model: the model.
        batch: the cells.
        taken: the genes to take away, [cells, panel] bool.
        away: one of ``AWAY``.
    """
    panel = len(model.panel)
    genes = batch.genes.masked_fill(F.pad(taken, (0, 3)).gather(1, batch.genes), panel + 2)
    genes = genes.sort(1).values  # padding last
    genes = genes[:, : max(int((genes < panel).sum(1).max()), 1)]
    batch = batch._replace(genes=genes, padded=True)
    if away == "average":
        usual = average(model).expm1() * batch.depth[:, None] / 1e4
        return batch._replace(counts=torch.where(taken, usual, batch.counts))
    if away == "hidden":
        return batch._replace(hidden=taken if batch.hidden is None else taken | batch.hidden)
    there = ~taken if batch.measured is None else batch.measured & ~taken
    return batch._replace(measured=there, hidden=~there)


def average(model: CellVQ) -> Tensor:
    """Return the log-normalised profile of the average training cell, [panel].

    A model in the released shape has not kept one; there no expression stands in for it.
    """
    if model.cell_vector is None:
        return torch.zeros(len(model.panel), device=model.device)
    return model.cell_vector.mean


def at_once(model: CellVQ) -> int:
    """Return how many tokens a block may hold, fewer than in encoding: gradients need memory."""
    return max(encoding.tokens_at_once(model) // SHARE, 1)
