"""Codes as running means of their cells: flat, in a tree of prefixes, or as sums of residuals.

In a tree a code is an address such as ``C3.05.12``, and cutting it gives the code of a coarser
state, which has its own vector; so one model serves from lineages to fine states.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq.codebook import Quantized, Quantizer, drawn_for, gathered, k_means, same_on_all
from cellvq.config import QuantizerConfig
from cellvq.distributed import total

STARTS = 3
"""Starts of a whole tree of which the best is kept, when they have come to rest on the cells."""
RESTARTS = 64
"""At most this many dead codes restart at one step."""
FLOOR = 1e-6
"""A code without cells counts as this many, so that it stays where it is."""
COARSER = 1.5
"""How much more the squared distance to a prefix counts than that to the next finer one."""


class Means(Quantizer):
    """What codebooks of means share: the choice of a code by its whole path, a start and a rest.

    A cell takes the code whose path lies nearest: the squared distances to the code's vector and to
    those of its prefixes are added up, the coarser the heavier. So one address serves every level,
    and moving nested vectors to the means of their cells lowers that sum.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config, width)
        self.register_buffer("started", torch.tensor(False))
        self.weights = [COARSER**finer for finer in reversed(range(len(self.sizes)))]

    def tree(self) -> Tensor:
        """Return the code of each level that each full-depth code belongs to, [levels, codes]."""
        every = torch.arange(self.sizes[-1], device=self.started.device)
        return torch.stack([self.prefix(every, level) for level in range(len(self.sizes))])

    def distances(self, x: Tensor) -> Tensor:
        """Return the distance of each cell to each code, [cells, codes].

        It is Euclidean, and more by what the code's prefixes lack to the nearest prefixes.
        """
        # The plain form, not ||x||^2 - 2 x.c + ||c||^2, whose rounding would make a cell's code
        # depend on the cells it shares a batch with.
        exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
        square = torch.cdist(x.float(), self.vectors_at(-1), **exact).square()
        for level, codes in enumerate(self.tree()[:-1]):
            apart = torch.cdist(x.float(), self.vectors_at(level), **exact).square()
            lack = apart - apart.amin(1, keepdim=True)
            square = square + self.weights[level] * lack[:, codes]
        return square.sqrt()

    def assign(self, x: Tensor) -> tuple[Tensor, float]:
        """Return the code of each cell, [cells], and the error of all cells of all processes.

        The codes are those of `distances`, found by one product in double precision; the error is
        the sum of squared distances over cells and levels.
        """
        centre, offset = 0.0, 0.0
        for level, codes in enumerate(self.tree()):
            vectors = self.weights[level] * self.vectors_at(level).double()[codes]
            centre = centre + vectors
            offset = offset + vectors.square().sum(1) / self.weights[level]
        x = x.double()
        found = [torch.addmm(offset, part, centre.T, alpha=-2).min(1) for part in x.split(4096)]
        error = sum(part.values.sum() for part in found) + sum(self.weights) * x.square().sum()
        return torch.cat([part.indices for part in found]), float(total(error))

    def forward(self, x: Tensor, progress: float = 1.0) -> Quantized:
        """Quantise cell vectors; in training mode also move the codebook.

        Args:
            x: cell vectors, [cells, width].
            progress: share of the training done; this quantiser does not need it.
        """
        x = x.float()
        if not self.started:  # before `start`, cells pass through unchanged
            return Quantized(x, torch.zeros(len(x), dtype=torch.long, device=x.device), x.sum() * 0)
        codes = self.distances(x.detach()).argmin(1)
        vectors = self.vectors_of(codes)
        loss = self.config.commitment * F.mse_loss(x, vectors)
        if self.training:
            vectors = self._truncate(codes, vectors)
            if not self.held:
                self._follow(x.detach(), codes, self.config.decay, self.config.restart_share)
        return Quantized(x + (vectors - x).detach(), codes, loss)

    def _truncate(self, codes: Tensor, vectors: Tensor) -> Tensor:
        """Give a share of the cells the vector of a prefix, of a level drawn for each."""
        coarser, share = len(self.sizes) - 1, self.config.truncated_share
        if coarser and share:
            drawn = drawn_for(len(codes), codes.device) * coarser / share
            for level in range(coarser):
                is_cut = (drawn >= level) & (drawn < level + 1)
                vectors = torch.where(is_cut[:, None], self.vectors_of(codes, level), vectors)
        return vectors

    @torch.no_grad()
    def start(self, x: Tensor, seed: int = 0) -> None:
        """Place the codes by k-means (the best of several starts) on cell vectors.

        Args:
            x: cell vectors to start on, [cells, width]; more cells than codes. Each process of a
                distributed run gives its own.
            seed: seed of the starts.
        """
        starts = [np.random.default_rng([seed, start]) for start in range(STARTS)]
        self._keep_best(x.float(), starts)

    @torch.no_grad()
    def settle(self, x: Tensor, seed: int = 0) -> None:
        """Let the codebook come to rest on whole cells, or start anew where that fits them better.

        Training shows cells with genes held out, so the running means carry that noise.

        Args:
            x: vectors of whole training cells, [cells, width], as for `start`.
            seed: seed of the new starts.
        """
        if self.held:
            return
        starts = [np.random.default_rng([seed, start]) for start in range(STARTS)]
        self._keep_best(x.float(), [None, *starts])

    def _keep_best(self, x: Tensor, starts: list[np.random.Generator | None]) -> None:
        """Come to rest from each start (None: from where the codes are), and keep the best."""
        everyone, rested = gathered(x), []
        here = [values.clone() for values in self.buffers()]
        for rng in starts:
            if rng is None:
                self._restore(here)
            else:
                self._place(everyone, rng)
                for values in self.buffers():
                    same_on_all(values)
            error = self._rest(x)
            rested.append((error, [values.clone() for values in self.buffers()]))
        self._restore(min(rested, key=lambda found: found[0])[1])
        self._number()
        self.started.fill_(True)

    def _restore(self, state: list[Tensor]) -> None:
        for values, saved in zip(self.buffers(), state, strict=True):
            values.copy_(saved)

    def _rest(self, x: Tensor, rounds: int = 30) -> float:
        """Move codes to the means of their cells until they rest (Lloyd's algorithm).

        Returns:
            The error that is left, as of `assign`.
        """
        error = math.inf
        for _ in range(rounds):
            codes, now = self.assign(x)
            if now > (1 - 1e-4) * error:
                break
            self._follow(x, codes, decay=0.0, restart_share=0.0)
            error = now
        return error


class RunningMeans(Means):
    """A codebook whose vectors are running means of the cells that took them; flat or nested.

    Flat (``ema``): van den Oord et al. 2017 (arXiv 1711.00937), with a k-means start and a restart
    of dead codes. The codebook is a buffer, not a parameter: no gradient moves it.

    Nested: the codes are the leaves of a tree, and the vector of a prefix is the running mean of
    all cells below it. A code is read under its parents (see `Means`), and a parent has as many
    children as its cells call for: each level is placed by k-means on its own, then each code joins
    the nearest parent. Splitting every parent into equally many children served the finest level
    far worse when it was tried. In training a share of the cells is shown a prefix in place of its
    code, so that every prefix learns to decode on its own.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config, width)
        self.register_buffer("codebook", torch.randn(config.codes, width))
        self.register_buffer("cells", torch.ones(config.codes))
        self.register_buffer("sums", self.codebook.clone())
        every = torch.arange(config.codes)
        even = [Quantizer.prefix(self, every, level) for level in range(len(self.sizes))]
        self.register_buffer("path", torch.stack(even))

    def prefix(self, codes: Tensor, level: int) -> Tensor:
        """Return the codes of a level (0 the coarsest, -1 full depth) of full-depth codes."""
        return self.path[level][codes]

    def vectors_at(self, level: int) -> Tensor:
        """Return the vector of every code of a level, [codes of the level, width]."""
        path, size = self.path[level], self.sizes[level]
        if size == len(path):
            return self.codebook
        sums = self.sums.new_zeros(size, self.width).index_add_(0, path, self.sums)
        return sums / self.cells.new_zeros(size).index_add_(0, path, self.cells).unsqueeze(1)

    @torch.no_grad()
    def _follow(self, x: Tensor, codes: Tensor, decay: float, restart_share: float) -> None:
        """Move each code towards the mean of its cells, and restart codes that none takes."""
        # In double precision neither the order of cells nor their split over processes matters.
        taken = torch.cat([torch.ones_like(x[:, :1]), x], 1).double()
        taken = taken.new_zeros(len(self.cells), taken.shape[1]).index_add_(0, codes, taken)
        taken = total(taken).float()
        self.cells.lerp_(taken[:, 0], 1 - decay)
        self.sums.lerp_(taken[:, 1:], 1 - decay)
        empty = self.cells < FLOOR
        self.cells.masked_fill_(empty, FLOOR)
        self.sums.copy_(torch.where(empty.unsqueeze(1), FLOOR * self.codebook, self.sums))
        even = self.cells.sum() / len(self.cells)
        dead = self.cells <= (restart_share * even).clamp(min=FLOOR)
        if dead.any():
            self._restart(dead & self._may_leave(), x, codes, even)
        self.codebook.copy_(self.sums / self.cells.unsqueeze(1))

    def _may_leave(self) -> Tensor:
        """Tell which codes may join other parents: all but the largest of several children."""
        rank = self.cells.argsort(stable=True).argsort()
        free = torch.ones_like(rank, dtype=torch.bool)
        for path, size in zip(self.path, self.sizes, strict=True):
            largest = rank.new_zeros(size).scatter_reduce(0, path, rank, "amax")[path] == rank
            free &= ~largest | (torch.bincount(path, minlength=size)[path] == 1)
        return free

    def _restart(self, dead: Tensor, x: Tensor, codes: Tensor, even: Tensor) -> None:
        """Put dead codes where the codebook serves cells worst, under the parents of those cells.

        A prefix of which a dead code is the last comes along with it.
        """
        error = (x - self.codebook[codes]).square().sum(1).masked_fill(dead[codes], -1.0)
        worst = error.topk(min(RESTARTS, len(x))).indices
        found = gathered(torch.cat([error[worst, None], codes[worst, None], x[worst]], 1))
        found = found[found[:, 0].argsort(descending=True, stable=True)]
        found = found[found[:, 0] >= 0][: min(RESTARTS, int(dead.sum()))]
        dead = dead.nonzero().squeeze(1)[: len(found)]
        self.cells[dead] = even
        self.sums[dead] = even * found[:, 2:]
        is_last = torch.stack([torch.bincount(path)[path[dead]] == 1 for path in self.path])
        parents = self.path[:, found[:, 1].long()]
        self.path[:, dead] = torch.where(is_last, self.path[:, dead], parents)

    def _place(self, x: Tensor, rng: np.random.Generator) -> None:
        """Place the codes of each level by k-means on cells, and give each the nearest parent."""
        most = max(4096, 16 * self.config.codes)
        cells = x[rng.choice(len(x), most, replace=False)] if len(x) > most else x
        centres = [k_means(cells, size, rng) for size in self.sizes]
        path = [torch.arange(self.config.codes, device=x.device)]
        for parents, children in reversed(list(pairwise(centres))):
            apart = torch.cdist(children, parents)
            parent = apart.argmin(1)
            own = linear_sum_assignment(apart.T.cpu().numpy())[1]  # a child for every parent
            parent[torch.from_numpy(own).to(x.device)] = torch.arange(len(parents), device=x.device)
            path.insert(0, parent[path[0]])
        self.path.copy_(torch.stack(path))
        self.codebook.copy_(centres[-1])
        self.sums.copy_(centres[-1])
        self.cells.fill_(1.0)

    def _number(self) -> None:
        """Number codes by their cells, most first, and the children of a code one after another."""
        order = torch.arange(len(self.cells), device=self.cells.device)
        for path, size in reversed(list(zip(self.path, self.sizes, strict=True))):
            cells = self.cells.new_zeros(size).index_add_(0, path, self.cells)
            rank = cells.argsort(descending=True, stable=True).argsort()
            order = order[rank[path[order]].argsort(stable=True)]
        for values in (self.codebook, self.cells, self.sums):
            values.copy_(values[order])
        path = [path.unique_consecutive(return_inverse=True)[1] for path in self.path[:, order]]
        self.path.copy_(torch.stack(path))


class ResidualMeans(Means):
    """Codes as sums: each level has a small codebook for what the coarser levels leave over.

    The codebook of a level is shared by all parents (Zeghidour et al. 2021, arXiv 2107.03312), so
    few vectors make many codes, of which many are not used. Kept for comparison with nested codes.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config, width)
        flat = {"kind": "ema", "prefixes": ()}
        self.books = nn.ModuleList(
            RunningMeans(dataclasses.replace(config, codes=size // coarser, **flat), width)
            for coarser, size in pairwise((1, *self.sizes))
        )

    def vectors_at(self, level: int) -> Tensor:
        """Return the vector of every code of a level, [codes of the level, width]."""
        vectors = torch.zeros_like(self.books[0].codebook[:1])
        for book in self.books[: range(len(self.sizes))[level] + 1]:
            vectors = (vectors.unsqueeze(1) + book.codebook).flatten(0, 1)
        return vectors

    def _follow(self, x: Tensor, codes: Tensor, decay: float, restart_share: float) -> None:
        """Move each level's vectors towards the mean of what the coarser levels leave over."""
        for level, book in enumerate(self.books):
            taken = self.prefix(codes, level) % len(book.codebook)
            left = x - book.codebook[taken]
            book._follow(x, taken, decay, restart_share)
            x = left

    def _place(self, x: Tensor, rng: np.random.Generator) -> None:
        """Place one level after another by k-means on what is left over."""
        for book in self.books:
            book._place(x, rng)
            x = x - book.vectors_of(book.distances(x).argmin(1))

    def _number(self) -> None:
        """Leave the codes in the order in which k-means found them."""
