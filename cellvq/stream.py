"""More cells than memory holds -> training steps, read in shuffled blocks.

What a step sees is a pure function of the seed and the step, found without reading anything. So a
run that was stopped continues mid-epoch exactly where it was, and processes that share a step take
cells of their own without asking each other.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from cellvq import InputError
from cellvq.joined import Joined, Rows, join

LANES = 8
"""Streams that are read side by side, each with blocks of its own; processes share them out."""
WINDOW = 16_384
"""Cells in memory at a time, of all lanes together, among which a step's cells are drawn."""
LEAST_BLOCKS = 16
"""Blocks of a lane's window; where the cells are too few for that, the blocks are smaller."""


class Stream:
    """Training steps of a corpus that need not fit into memory.

    Each epoch the blocks (neighbouring rows, cheap to read) are shuffled and dealt to ``LANES``
    lanes. A lane reads a window of its blocks, shuffles the cells in it and hands them out; a step
    takes as many cells from each lane. So a step's cells come from all over the corpus, though they
    are read in blocks. While one window is used, the next one is read.

    Args:
        cells: where the cells lie.
        keep: which cells take part, [cells] bool.
        batch_size: cells of a step; all of them where there are fewer.
        seed: every draw follows from it.
        window: cells in memory at a time.

    Example:
        >>> import anndata
        >>> from cellvq.sources import Memory
        >>> values = anndata.AnnData(np.arange(1, 101, dtype="float32")[:, None])
        >>> stream = Stream(Joined([Memory(values)], ["0"]), np.ones(100, bool), 20, seed=0)
        >>> seen = [stream.step(step).cells for step in range(stream.steps_per_epoch)]
        >>> len(seen), len(set(np.concatenate(seen).tolist()))
        (5, 100)
    """

    def __init__(
        self, cells: Joined, keep: np.ndarray, batch_size: int, seed: int, window: int = WINDOW
    ) -> None:
        self.cells, self.keep, self.seed = cells, keep, seed
        self.batch_size = min(batch_size, int(keep.sum()))
        if not self.batch_size:
            raise InputError("no cell is left to train on; check the filters and what is held out")
        largest = max(len(keep) // (LANES * LEAST_BLOCKS), 1)
        blocks = [
            np.arange(first, last, min(source.block, largest))
            for source, first, last in zip(cells.sources, cells.starts[:-1], cells.starts[1:],
                                           strict=True)
        ]
        first = np.concatenate([*blocks, [len(keep)]])
        before = np.concatenate([[0], np.cumsum(keep)])
        kept = np.diff(before[first])
        self.first, self.last = first[:-1][kept > 0], first[1:][kept > 0]
        """First cell of each block, and the first after it, [blocks]."""
        self.kept = kept[kept > 0]
        """Cells of each block that take part, [blocks]."""
        is_small = keep.sum() < LANES * self.batch_size  # a lane might not fill one step
        self.lanes = 1 if is_small else next(
            lanes for lanes in range(LANES, 0, -1) if self.batch_size % lanes == 0
        )
        self.slot = self.batch_size // self.lanes
        """Cells of a step that come from one lane."""
        self.blocks_at_once = max(round(window / self.lanes / self.kept.mean()), 1)
        self._windows: dict[tuple[int, int, int], Future] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="cells")

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch; a few cells are left over, others in each epoch."""
        return self._steps(0)

    def step(self, step: int, share: slice = slice(None)) -> Rows:
        """Return a step's cells, or the share of them that one process takes.

        Args:
            step: the step, from 0.
            share: which of the step's cells, as `loader.share_of_step` says it.
        """
        epoch, place = self._epoch_of(step)
        first, last, _ = share.indices(self.batch_size)
        found = []
        for lane in range(first // self.slot, -(-last // self.slot)):
            begin = max(first - lane * self.slot, 0)
            end = min(last - lane * self.slot, self.slot)
            found += self._take(epoch, lane, place * self.slot + begin, place * self.slot + end)
        return join(found)

    def sample(self, size: int, seed: int = 0) -> Rows:
        """Read some of the cells, in whole blocks from all over the corpus, in random order.

        Args:
            size: cells, or all where there are fewer.
            seed: chooses the blocks.
        """
        rng = np.random.default_rng([self.seed, 3, seed])
        order = rng.permutation(len(self.kept))
        enough = int(np.searchsorted(np.cumsum(self.kept[order]), size)) + 1
        rows = self._read(order[:enough], rng)
        return Rows(rows.counts[:size], rows.depth[:size], rows.cells[:size])

    def _epoch_of(self, step: int) -> tuple[int, int]:
        """Return a step's epoch and its place there; epochs differ a little in length."""
        epoch = 0
        while step >= (steps := self._steps(epoch)):
            step -= steps
            epoch += 1
        return epoch, step

    @functools.cache  # noqa: B019 - a stream lives as long as its run
    def _steps(self, epoch: int) -> int:
        """Return how many steps an epoch has: the lane that is empty first ends it."""
        shortest = min(self._ends(epoch, lane)[-1] for lane in range(self.lanes))
        return int(shortest) // self.slot

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of the blocks in an epoch."""
        return np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.kept))

    def _blocks(self, epoch: int, lane: int) -> np.ndarray:
        """Return the blocks of a lane in an epoch."""
        return self._order(epoch)[lane :: self.lanes]

    @functools.lru_cache(maxsize=4 * LANES)  # noqa: B019
    def _ends(self, epoch: int, lane: int) -> np.ndarray:
        """Return how many cells a lane has handed out at the end of each of its windows."""
        handed_out = np.cumsum(self.kept[self._blocks(epoch, lane)])
        last = np.arange(self.blocks_at_once, len(handed_out) + self.blocks_at_once,
                         self.blocks_at_once)
        return handed_out[np.minimum(last, len(handed_out)) - 1]

    def _take(self, epoch: int, lane: int, begin: int, end: int) -> list[tuple[Rows, int, int]]:
        """Return what a lane hands out from one place to another; it may lie in two windows."""
        ends = self._ends(epoch, lane)
        found = []
        while begin < end:
            number = int(np.searchsorted(ends, begin, side="right"))
            before = int(ends[number - 1]) if number else 0
            stop = min(end, int(ends[number]))
            found.append((self._window(epoch, lane, number), begin - before, stop - before))
            begin = stop
        return found

    def _window(self, epoch: int, lane: int, number: int) -> Rows:
        """Return a window of a lane, from memory if it is there, and have the next one read."""
        is_last = number + 1 == len(self._ends(epoch, lane))
        wanted = (epoch, lane, number)
        ahead = (epoch + 1, lane, 0) if is_last else (epoch, lane, number + 1)
        for key in (wanted, ahead):
            if key not in self._windows:
                self._windows[key] = self._reader.submit(self._read_window, *key)
        for key in [key for key in self._windows if key[1] == lane and key not in (wanted, ahead)]:
            self._windows.pop(key).cancel()
        return self._windows[wanted].result()

    def _read_window(self, epoch: int, lane: int, number: int) -> Rows:
        """Read a window of a lane and shuffle its cells."""
        mine = self._blocks(epoch, lane)[number * self.blocks_at_once :][: self.blocks_at_once]
        return self._read(mine, np.random.default_rng([self.seed, 4, epoch, lane, number]))

    def _read(self, blocks: np.ndarray, rng: np.random.Generator) -> Rows:
        """Read blocks and return those of their cells that take part, shuffled."""
        blocks = np.sort(blocks)
        rows = self.cells.read([range(*pair) for pair in zip(
            self.first[blocks].tolist(), self.last[blocks].tolist(), strict=True)])
        order = rng.permutation(np.flatnonzero(self.keep[rows.cells]))
        return Rows(rows.counts[order], rows.depth[order], rows.cells[order])
