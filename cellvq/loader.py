"""Cells in memory -> batches of tokens for the model; every draw follows from (seed, step).

Because a step's cells, held-out genes and tokens depend on nothing but the seed and the step, a run
that was stopped continues exactly where it was.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

PART = 16
"""Cells whose draws come from one generator, whichever process or part of a step they are in."""
LEAST_DEPTH = 0.2
"""A thinned cell keeps at least this share of its molecules."""


class Batch(NamedTuple):
    """Some cells as the model takes them; `loader` makes these."""

    counts: Tensor
    """UMI counts of the panel's genes, [cells, panel]."""
    depth: Tensor
    """Total UMI counts of each cell, as the model sees it, over all genes measured, [cells]."""
    genes: Tensor
    """Panel index of the expressed genes, padded with the panel's size + 2, [cells, tokens]."""
    batch: Tensor
    """Index of each cell's batch, -1 where none is known, [cells]."""
    hidden: Tensor | None = None
    """Genes held out of the input, those never measured among them, [cells, panel] bool."""
    target: Tensor | None = None
    """Total UMI counts at which the cell is to be predicted, [cells]; None for ``depth``."""
    seen: Tensor | None = None
    """What is left of the counts where molecules were taken away, [cells, panel]."""
    properties: Tensor | None = None
    """Index of each cell's label in each property, -1 where unknown, [cells, properties]."""
    measured: Tensor | None = None
    """Genes that were measured, the only ones to be predicted, [cells, panel]; None for all."""
    padded: bool = True
    """Whether any cell has fewer tokens than another."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(part.to(device, non_blocking=True) if isinstance(part, Tensor) else part
                       for part in self))


def make_batch(
    counts: csr_matrix,
    depth: np.ndarray | None = None,
    batch: np.ndarray | None = None,
    properties: np.ndarray | None = None,
    measured: np.ndarray | None = None,
    *,
    target_depth: float | None = None,
    hidden_share: float = 0.0,
    thinned_share: float = 0.0,
    max_tokens: int | None = None,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Make one batch for the model from rows of counts.

    Args:
        counts: UMI counts of the panel's genes, [cells, panel].
        depth: total UMI counts of each cell, [cells]; by default the sum over the panel.
        batch: index of each cell's batch, -1 for unknown, [cells].
        properties: index of each cell's label, -1 for unknown, [cells, properties].
        measured: which genes were measured in each cell, [cells, panel]; None for all in all. The
            others are not zero but unknown: the model neither sees nor predicts them.
        target_depth: total UMI counts at which to predict every cell; by default its own.
        hidden_share: share of all genes, expressed or not, to hold out of the input in each cell.
        thinned_share: share of the cells that lose molecules (binomial thinning) in the input.
        max_tokens: at most this many expressed genes a cell, drawn at random; None for all.
        rng: source of the draws; needed for the two shares and ``max_tokens``.

    Example:
        >>> made = make_batch(csr_matrix([[5, 0, 1], [0, 9, 0]]))
        >>> made.genes.tolist()  # gene 5 is padding
        [[0, 2], [1, 5]]
    """
    counts = csr_matrix(counts, dtype=np.float32)
    cells, panel = counts.shape
    depth = np.asarray(counts.sum(1)).ravel() if depth is None else np.asarray(depth)
    target, seen, hidden = None, None, None
    if target_depth is not None:
        target = np.full(cells, target_depth)
    shown = counts
    if thinned_share:
        target = depth
        shown, depth = thin(counts, depth, thinned_share, rng)
        seen = torch.from_numpy(shown.toarray())
    rows = np.repeat(np.arange(cells), np.diff(shown.indptr))
    genes = shown.indices
    if hidden_share:
        hidden = rng.random((cells, panel), dtype=np.float32) < hidden_share
        visible = ~hidden[rows, genes]
        rows, genes = rows[visible], genes[visible]
    if measured is not None:
        hidden = ~measured if hidden is None else hidden | ~measured
    if max_tokens is not None and np.bincount(rows, minlength=1).max() > max_tokens:
        order = np.lexsort((rng.random(len(rows)), rows))  # within a cell, a random order
        order = order[_rank(rows, cells) < max_tokens]
        order.sort()  # back to ascending genes
        rows, genes = rows[order], genes[order]
    lengths = np.bincount(rows, minlength=cells)
    tokens = np.full((cells, max(int(lengths.max(initial=0)), 1)), panel + 2)
    tokens[rows, _rank(rows, cells)] = genes

    def as_depth(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(np.maximum(values, 1).astype("float32"))

    return Batch(
        counts=torch.from_numpy(counts.toarray()),
        depth=as_depth(depth),
        genes=torch.from_numpy(tokens),
        batch=torch.from_numpy(np.full(cells, -1) if batch is None else np.asarray(batch, int)),
        hidden=None if hidden is None else torch.from_numpy(hidden),
        target=as_depth(target),
        seen=seen,
        properties=None if properties is None else torch.from_numpy(np.asarray(properties, int)),
        measured=None if measured is None else torch.from_numpy(measured),
        padded=bool((lengths < tokens.shape[1]).any()),
    )


def thin(
    counts: csr_matrix, depth: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[csr_matrix, np.ndarray]:
    """Take molecules away at random, as if some of the cells had been sequenced less deeply.

    Args:
        counts: UMI counts, [cells, genes].
        depth: total UMI counts over all genes measured, [cells].
        share: share of the cells that lose molecules; each keeps its own share of them, drawn
            evenly on a logarithmic scale from ``LEAST_DEPTH`` to 1.
        rng: source of the draws.

    Returns:
        The counts that are left and the depth that goes with them.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> left, depth = thin(csr_matrix([[900.0, 90.0]]), np.array([990.0]), 1.0, rng)
        >>> bool(left.sum() < 990), bool(depth[0] < 990)
        (True, True)
    """
    kept = np.exp(rng.uniform(np.log(LEAST_DEPTH), 0, counts.shape[0]))
    kept[rng.random(counts.shape[0]) >= share] = 1.0
    left = counts.copy()
    probability = np.repeat(kept, np.diff(counts.indptr))
    left.data = rng.binomial(counts.data.astype(int), probability).astype(np.float32)
    left.eliminate_zeros()
    return left, depth * kept


def join(batches: Sequence[Batch], panel: int) -> Batch:
    """Put batches one after the other into one, padded to the longest.

    Args:
        batches: batches of one kind.
        panel: number of genes.
    """
    tokens = max(batch.genes.shape[1] for batch in batches)
    padded = any(batch.padded or batch.genes.shape[1] < tokens for batch in batches)
    missing = (tokens - batch.genes.shape[1] for batch in batches)
    batches = [
        batch._replace(genes=F.pad(batch.genes, (0, pads), value=panel + 2))
        for batch, pads in zip(batches, missing, strict=True)
    ]
    columns = list(zip(*(batch[:-1] for batch in batches), strict=True))
    return Batch(*(None if column[0] is None else torch.cat(column) for column in columns), padded)


def cells_of_step(cells: np.ndarray, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Say which cells a training step sees: epochs of random order, cut into batches.

    Args:
        cells: indices of the training cells.
        batch_size: cells a step; all of them where there are fewer.
        step: step of the run, from 0.
        seed: seed of the run.

    Example:
        >>> a = [set(cells_of_step(np.arange(6), 3, step, seed=0).tolist()) for step in (0, 1)]
        >>> sorted(a[0] | a[1])
        [0, 1, 2, 3, 4, 5]
    """
    per_epoch = max(len(cells) // batch_size, 1)
    epoch, place = divmod(step, per_epoch)
    order = _order(len(cells), seed, epoch)
    return cells[order[place * batch_size : (place + 1) * batch_size]]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle an epoch's cells once, not at each of its steps."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def share_of_step(count: int, parts: int, part: int) -> slice:
    """Say which of a step's cells one of several processes or memory-saving parts takes.

    Shares are whole numbers of `PART` cells, so that draws do not depend on how many there are.

    Args:
        count: cells of the step.
        parts: number of shares.
        part: which share, from 0.

    Example:
        >>> share_of_step(64, parts=2, part=1)
        slice(32, 64, None)
    """
    edges = [round(edge * count / parts / PART) * PART for edge in range(parts)] + [count]
    return slice(edges[part], edges[part + 1])


def _rank(rows: np.ndarray, cells: int) -> np.ndarray:
    """Number the entries of each row from 0; ``rows`` ascends."""
    starts = np.searchsorted(rows, np.arange(cells))
    return np.arange(len(rows)) - starts[rows]


def by_length(counts: csr_matrix, size: int) -> Iterator[np.ndarray]:
    """Yield blocks of cells of like numbers of expressed genes, so that little is padded.

    Args:
        counts: UMI counts, [cells, panel].
        size: largest number of tokens (padding included) a block may take; at least one cell.

    Yields:
        Indices of the cells of a block.
    """
    lengths = np.diff(counts.indptr) + 2  # T and S
    order, start = np.argsort(lengths, kind="stable"), 0
    longest = lengths[order]
    while start < len(order):
        # Blocks end where (cells so far) x (longest cell so far) would pass the size.
        tokens = longest[start:] * np.arange(1, len(order) - start + 1)
        cells = max(int(np.searchsorted(tokens, size, side="right")), 1)
        yield order[start : start + cells]
        start += cells


def free_memory(device: torch.device) -> float:
    """Return the bytes that are free on a device; infinite where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    about = Path("/proc/meminfo")
    lines = about.read_text().splitlines() if about.exists() else []
    free = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return free[0] if free else math.inf
