"""What all quantisers share: levels and addresses of codes, k-means, and one codebook everywhere.

The processes of a distributed run call the same functions in the same order, and come out with the
same numbers; where there is one process, nothing is exchanged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq import distributed
from cellvq.config import QuantizerConfig

ATTEMPTS = 2
"""Random starts of k-means of which the best is kept; more where few centres make them cheap."""
BREATH = 5
"""Centres that k-means adds and drops at first when it breathes."""


class Quantized(NamedTuple):
    """What every quantiser returns."""

    vectors: Tensor
    """Code vectors with a straight-through gradient to the input, [cells, width]."""
    codes: Tensor
    """Index of the full-depth code each cell took, [cells], int64."""
    loss: Tensor
    """What the quantiser asks of training (commitment, separation or usage), scalar."""


class Quantizer(nn.Module):
    """A set of codes with addresses in a tree, which has a single level where codes are flat."""

    held = False
    """Whether codes learnt from cells stay where they are, and so keep their meaning."""

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.sizes = (*config.prefixes, config.codes)

    def prefix(self, codes: Tensor, level: int) -> Tensor:
        """Return the codes of a level (0 the coarsest, -1 full depth) of full-depth codes."""
        return codes * self.sizes[level] // self.sizes[-1]

    def vectors_of(self, codes: Tensor, level: int = -1) -> Tensor:
        """Return the vectors of full-depth codes, or of their prefixes, [cells, width]."""
        return self.vectors_at(level)[self.prefix(codes, level)]

    def addresses(self, level: int = -1) -> list[str]:
        """Name every code of a level: ``C07`` where codes are flat, ``C3.05.12`` in a tree.

        Numbers are padded, so that the order of the alphabet is the order of the tree.
        """
        every = torch.arange(self.sizes[-1])
        names, parent = ["C"], np.zeros(len(every), int)
        for depth in range(range(len(self.sizes))[level] + 1):
            codes, size = self.prefix(every, depth).cpu().numpy(), self.sizes[depth]
            of = parent[np.unique(codes, return_index=True)[1]]  # the parent of each code
            order, number = of.argsort(kind="stable"), np.empty(size, int)
            number[order] = np.arange(size) - np.searchsorted(of[order], of[order])
            digits = max(len(str(number.max())), 2 if len(self.sizes) == 1 else 1)
            names = [f"{names[a]}.{n:0{digits}d}" for a, n in zip(of, number, strict=True)]
            parent = codes
        return [name.replace("C.", "C") for name in names]


def k_means(cells: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Return centres of cells, [size, width]: greedy k-means++ starts, the best of which breathes.

    Arthur and Vassilvitskii 2007 (ACM-SIAM SODA): cells become centres by chance, in proportion to
    their squared distance to the centres so far; of a few drawn the best one is taken.

    Args:
        cells: cell vectors, [cells, width].
        size: how many centres.
        rng: draws the starts.

    Example:
        >>> k_means(torch.tensor([[0.0], [2.0], [9.0]]), 2, np.random.default_rng(0)).sort(0).values
        tensor([[1.],
                [9.]])
    """
    found = []
    for _ in range(max(ATTEMPTS, 64 // size)):
        centres = cells[rng.integers(len(cells), size=1)]
        apart = torch.cdist(cells, centres).square().squeeze(1)
        for _ in range(1, size):
            ends = apart.cumsum(0)
            drawn = torch.from_numpy(rng.random(2 + int(math.log(size)))).to(cells) * ends[-1]
            draws = cells[torch.searchsorted(ends, drawn).clamp(max=len(cells) - 1)]
            each = torch.minimum(torch.cdist(draws, cells).square(), apart)
            best = each.sum(1).argmin()
            centres, apart = torch.cat([centres, draws[best, None]]), each[best]
        found.append(_lloyd(cells, centres))
    centres, error = min(found, key=lambda start: start[1])
    return _breathe(cells, centres, error, rng)


def _breathe(cells: Tensor, centres: Tensor, error: float, rng: np.random.Generator) -> Tensor:
    """Improve centres: add some where they serve worst, then drop as many that are missed least.

    Fritzke 2020 (arXiv 2006.15666). Runs with other seeds agree better by it than by many more
    starts, because they come closer to the one best answer (``tests/bench_stability.py``).
    """
    depth = min(BREATH, len(centres) - 1)
    while depth:
        apart, taken = torch.cdist(cells, centres).min(1)
        worst = torch.zeros_like(centres[:, 0]).index_add_(0, taken, apart.square())
        aside = torch.from_numpy(rng.normal(size=(depth, cells.shape[1]))).to(cells)
        added = centres[worst.topk(depth).indices] + 0.01 * apart.square().mean().sqrt() * aside
        tried, _ = _lloyd(cells, torch.cat([centres, added]))
        two, which = torch.cdist(cells, tried).topk(2, largest=False)
        missed = torch.zeros_like(tried[:, 0])
        missed.index_add_(0, which[:, 0], two[:, 1].square() - two[:, 0].square())
        tried, now = _lloyd(cells, tried[_keep(tried, missed, depth)])
        if now < (1 - 1e-4) * error:
            centres, error = tried, now
        else:
            depth -= 1
    return centres


def _keep(centres: Tensor, missed: Tensor, drop: int) -> Tensor:
    """Tell which centres stay when the least missed go, but not two that lie next to each other."""
    apart = torch.cdist(centres, centres)
    nearest = apart.fill_diagonal_(math.inf).argmin(1).tolist()
    order, gone, spared = missed.argsort(stable=True).tolist(), [], set()
    for centre in order:
        if len(gone) < drop and centre not in spared:
            gone.append(centre)
            spared.add(nearest[centre])
    gone += [centre for centre in order if centre not in gone][: drop - len(gone)]
    stays = torch.ones_like(missed, dtype=torch.bool)
    stays[gone] = False
    return stays


def _lloyd(cells: Tensor, centres: Tensor, rounds: int = 20) -> tuple[Tensor, float]:
    """Move centres to the means of their cells until they rest; return them and their error."""
    before = math.inf
    for _ in range(rounds):
        apart, taken = torch.cdist(cells, centres).min(1)
        error = float(apart.double().square().sum())
        if error > (1 - 1e-4) * before:
            break
        before, sizes = error, torch.bincount(taken, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, taken, cells)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres, error


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks; each may have any number."""
    if distributed.size() == 1:
        return rows
    counts = torch.zeros(distributed.size(), dtype=torch.long, device=rows.device)
    counts[distributed.rank()] = len(rows)
    counts = distributed.total(counts).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def same_on_all(values: Tensor) -> Tensor:
    """Return the first process's values on all of them; they are overwritten in place."""
    if distributed.size() > 1:
        dist.broadcast(values, 0)
    return values


def drawn_for(cells: int, device: torch.device) -> Tensor:
    """Draw a uniform number for each cell here, as one process would for the cells of all.

    This holds for processes that were seeded alike and have equal parts of a batch.
    """
    begin = cells * distributed.rank()
    return torch.rand(cells * distributed.size(), device=device)[begin : begin + cells]


def put(parameter: Tensor, values: Tensor) -> None:
    """Write the first process's values into a parameter, however it is laid out."""
    values = same_on_all(values.to(parameter.dtype).contiguous())
    parameter.copy_(distributed.like(values, parameter))


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of all processes' cells, their principal axes in columns and spreads."""
    x = F.pad(x.double(), (1, 0), value=1.0)
    moments = distributed.total(x.T @ x)
    moments = moments / moments[0, 0]
    mean = moments[0, 1:]
    variances, axes = torch.linalg.eigh(moments[1:, 1:] - mean.outer(mean))
    return mean, axes.flip(1), variances.flip(0).clamp(min=1e-12).sqrt()


def fit(layer: nn.Linear, inputs: Tensor, targets: Tensor) -> None:
    """Set a layer to the least-squares map of all processes' inputs to their targets."""
    inputs, targets = F.pad(inputs.double(), (0, 1), value=1.0), targets.double()
    squares, products = distributed.total(inputs.T @ inputs), distributed.total(inputs.T @ targets)
    # A little ridge: as many codes as directions would let the weights grow without bound.
    squares.diagonal().add_(1e-3 * squares.diagonal().mean())
    weight = torch.linalg.solve(squares, products).T
    put(layer.weight, weight[:, :-1])
    put(layer.bias, weight[:, -1])


def factors(codes: int) -> tuple[int, ...]:
    """Return few levels each of several directions, whose product is ``codes``; empty if none are.

    Example:
        >>> factors(32), factors(60), factors(22)
        ((4, 4, 2), (5, 4, 3), ())
    """
    found = []
    for levels in (7, 5, 4, 3, 2):
        while codes % levels == 0:
            found.append(levels)
            codes //= levels
    return tuple(found) if codes == 1 else ()
