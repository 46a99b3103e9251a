"""Cells in memory -> batches of tokens for the model; every draw follows from (seed, step).

Because a step's cells, held-out genes and tokens depend on nothing but the seed and the step, a run
that was stopped continues exactly where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor


class Batch(NamedTuple):
    """Some cells as the model takes them; `loader` makes these."""

    counts: Tensor
    """UMI counts of the panel's genes, [cells, panel]."""
    depth: Tensor
    """Total UMI counts of each cell over all genes measured, [cells]."""
    genes: Tensor
    """Panel index of the expressed genes, padded with the panel's size, [cells, tokens]."""
    batch: Tensor
    """Index of each cell's batch, -1 where none is known, [cells]."""
    hidden: Tensor | None = None
    """Genes held out of the input, which the model must predict, [cells, panel] bool."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(None if part is None else part.to(device) for part in self))


def make_batch(
    counts: csr_matrix,
    depth: np.ndarray | None = None,
    batch: np.ndarray | None = None,
    *,
    hidden_share: float = 0.0,
    max_tokens: int | None = None,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Make one batch for the model from rows of counts.

    Args:
        counts: UMI counts of the panel's genes, [cells, panel].
        depth: total UMI counts of each cell, [cells]; by default the sum over the panel.
        batch: index of each cell's batch, -1 for unknown, [cells].
        hidden_share: share of all genes, expressed or not, to hold out of the input in each cell.
        max_tokens: at most this many expressed genes a cell, drawn at random; None for all.
        rng: source of the draws; needed for ``hidden_share`` and ``max_tokens``.

    Example:
        >>> made = make_batch(csr_matrix([[5, 0, 1], [0, 9, 0]]))
        >>> made.genes.tolist()  # gene 3 is padding
        [[0, 2], [1, 3]]
    """
    counts = csr_matrix(counts, dtype=np.float32)
    cells, panel = counts.shape
    if depth is None:
        depth = np.asarray(counts.sum(1)).ravel()
    rows = np.repeat(np.arange(cells), np.diff(counts.indptr))
    genes, hidden = counts.indices, None
    if hidden_share:
        hidden = rng.random((cells, panel), dtype=np.float32) < hidden_share
        seen = ~hidden[rows, genes]
        rows, genes = rows[seen], genes[seen]
    if max_tokens is not None:
        order = np.lexsort((rng.random(len(rows)), rows))  # within a cell, a random order
        order = order[_rank(rows, cells) < max_tokens]
        order.sort()  # back to ascending genes
        rows, genes = rows[order], genes[order]
    rank = _rank(rows, cells)
    tokens = np.full((cells, int(rank.max(initial=0)) + 1), panel)
    tokens[rows, rank] = genes
    return Batch(
        counts=torch.from_numpy(counts.toarray()),
        depth=torch.from_numpy(np.maximum(depth, 1).astype(np.float32)),
        genes=torch.from_numpy(tokens),
        batch=torch.from_numpy(np.full(cells, -1) if batch is None else np.asarray(batch, int)),
        hidden=None if hidden is None else torch.from_numpy(hidden),
    )


def _rank(rows: np.ndarray, cells: int) -> np.ndarray:
    """Number the entries of each row from 0; ``rows`` ascends."""
    starts = np.searchsorted(rows, np.arange(cells))
    return np.arange(len(rows)) - starts[rows]


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
    order = np.random.default_rng([seed, epoch]).permutation(cells)
    return order[place * batch_size : (place + 1) * batch_size]


def by_length(counts: csr_matrix, size: int) -> Iterator[np.ndarray]:
    """Yield blocks of cells of like numbers of expressed genes, so that little is padded.

    Args:
        counts: UMI counts, [cells, panel].
        size: largest number of tokens (padding included) a block may take; at least one cell.

    Yields:
        Indices of the cells of a block.
    """
    lengths = np.diff(counts.indptr) + 1
    order, start = np.argsort(lengths, kind="stable"), 0
    longest = np.maximum(lengths[order], 1)
    while start < len(order):
        # Blocks end where (cells so far) x (longest cell so far) would pass the size.
        tokens = longest[start:] * np.arange(1, len(order) - start + 1)
        cells = max(int(np.searchsorted(tokens, size, side="right")), 1)
        yield order[start : start + cells]
        start += cells
