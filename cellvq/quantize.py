"""The SCD (single-cell discretization): quantisers that turn a cell vector into one code.

Both quantisers keep one contract. ``forward(x)`` returns `Quantized`; ``distances(x)`` says how far
a cell is from every code; ``start(x)`` places the codebook on real cells; ``settle(x)`` lets it
come to rest on them when training ends. A model does not know which of the two it holds.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq.config import QuantizerConfig


class Quantized(NamedTuple):
    """What every quantiser returns."""

    vectors: Tensor
    """Code vectors with a straight-through gradient to the input, [cells, width]."""
    codes: Tensor
    """Index of the code each cell took, [cells], int64."""
    loss: Tensor
    """What the quantiser asks of training (commitment or separation), scalar."""


def build(config: QuantizerConfig, width: int) -> EMACodebook | SoftConditionalCodebook:
    """Make the quantiser that a configuration names.

    Args:
        config: the quantiser's numbers.
        width: width of the cell vectors.

    Example:
        >>> quantizer = build(QuantizerConfig(codes=4), width=2)
        >>> quantizer(torch.zeros(3, 2)).vectors.shape
        torch.Size([3, 2])
    """
    kinds = {"ema": EMACodebook, "soft": SoftConditionalCodebook}
    return kinds[config.kind](config, width)


class EMACodebook(nn.Module):
    """A codebook whose vectors are running means of the cells that took them.

    Van den Oord et al. 2017 (arXiv 1711.00937), with a k-means start and a restart of dead codes.
    The codebook is a buffer, not a parameter: no gradient moves it.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codebook", torch.randn(config.codes, width))
        self.register_buffer("cells", torch.ones(config.codes))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("started", torch.tensor(False))

    def distances(self, x: Tensor) -> Tensor:
        """Return the Euclidean distance of each cell to each code, [cells, codes]."""
        # The plain form, not ||x||^2 - 2 x.c + ||c||^2, whose rounding would make a cell's code
        # depend on the cells it shares a batch with.
        return torch.cdist(x.float(), self.codebook, compute_mode="donot_use_mm_for_euclid_dist")

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
        vectors = self.codebook[codes]
        if self.training:
            self._follow(x.detach(), codes)
        loss = self.config.commitment * F.mse_loss(x, vectors)
        return Quantized(x + (vectors - x).detach(), codes, loss)

    @torch.no_grad()
    def _follow(self, x: Tensor, codes: Tensor) -> None:
        """Move each code towards the mean of its cells, and restart codes that none takes."""
        taken = F.one_hot(codes, self.config.codes).to(x.dtype)
        self.cells.lerp_(taken.sum(0), 1 - self.config.decay)
        self.sums.lerp_(taken.T @ x, 1 - self.config.decay)
        even = self.cells.sum() / self.config.codes
        dead = self.cells < self.config.restart_share * even
        if dead.any():  # the cells worst served by the codebook take over, farthest first
            error = (x - self.codebook[codes]).square().sum(1)
            worst = error.topk(min(int(dead.sum()), len(x))).indices
            dead = dead.nonzero().squeeze(1)[: len(worst)]
            self.cells[dead] = even
            self.sums[dead] = even * x[worst]
        self.codebook.copy_(self.sums / self.cells.unsqueeze(1))

    @torch.no_grad()
    def start(self, x: Tensor, seed: int = 0) -> None:
        """Place the codes by k-means (the best of four k-means++ starts) on cell vectors.

        Args:
            x: cell vectors to start on, [cells, width]; more cells than codes.
            seed: seed of the k-means++ starts.
        """
        starts = []
        for attempt in range(4):
            rng = np.random.default_rng([seed, attempt])
            with warnings.catch_warnings():  # of an empty cluster, which restarts as a dead code
                warnings.simplefilter("ignore")
                codes, _ = kmeans2(x.float().cpu().numpy(), self.config.codes, minit="++", rng=rng)
            starts.append(self._at_rest(torch.from_numpy(codes).to(x.device), x.float()))
        self._place(*min(starts, key=lambda found: found[2])[:2])
        self.started.fill_(True)

    @torch.no_grad()
    def settle(self, x: Tensor, seed: int = 0) -> None:
        """Let the codebook come to rest on whole cells, or start anew where that fits them better.

        Training shows cells with genes held out, so the running means carry that noise.

        Args:
            x: vectors of whole training cells, [cells, width].
            seed: seed of the new starts.
        """
        codes, taken, error = self._at_rest(self.codebook.clone(), x.float())
        self.start(x, seed)
        if error <= self.distances(x).amin(1).square().mean():
            self._place(codes, taken)

    def _at_rest(self, codes: Tensor, x: Tensor, rounds: int = 30) -> tuple[Tensor, Tensor, Tensor]:
        """Move codes to the means of their cells until they rest (Lloyd's algorithm).

        Returns:
            The codes [codes, width], the code of each cell [cells] and the mean squared distance.
        """
        for _ in range(rounds):
            taken = torch.cdist(x, codes).argmin(1)
            cells = torch.bincount(taken, minlength=len(codes)).unsqueeze(1)
            sums = torch.zeros_like(codes).index_add_(0, taken, x)
            means = torch.where(cells > 0, sums / cells.clamp(min=1), codes)
            if torch.allclose(means, codes, atol=1e-6):
                break
            codes = means
        nearest = torch.cdist(x, codes).min(1)
        return codes, nearest.indices, nearest.values.square().mean()

    def _place(self, codes: Tensor, taken: Tensor) -> None:
        self.codebook.copy_(codes)
        cells = torch.bincount(taken.to(self.cells.device), minlength=self.config.codes)
        self.cells.copy_(cells.clamp(min=1))
        self.sums.copy_(self.codebook * self.cells.unsqueeze(1))


class SoftConditionalCodebook(nn.Module):
    """Codes as bit vectors that a network turns into code vectors (FoldToken, arXiv 2403.09673).

    All ``2**bits`` bit vectors pass one small network, so that codes with common bits share what
    they learn. A cell is compared with every code by cosine; in training its code is drawn from the
    softmax of the cosines, whose temperature falls from 1, and a falling share of cells takes a
    shortcut around the codebook. At the end the nearest code is taken, which is deterministic.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        count = config.codes.bit_length() - 1
        bits = (torch.arange(config.codes).unsqueeze(1) >> torch.arange(count - 1, -1, -1)) & 1
        self.register_buffer("bits", bits.float())
        self.embed = nn.Sequential(
            nn.Linear(count, config.hidden), nn.BatchNorm1d(config.hidden), nn.ReLU(),
            nn.Linear(config.hidden, config.hidden), nn.BatchNorm1d(config.hidden), nn.ReLU(),
            nn.Linear(config.hidden, config.width),
        )
        self.into = nn.Linear(width, config.width)
        self.out = nn.Linear(config.width, width)

    def codebook(self) -> Tensor:
        """Return the unit-length code vectors, [codes, width of the code space]."""
        return F.normalize(self.embed(self.bits), dim=1)

    def distances(self, x: Tensor) -> Tensor:
        """Return one minus the cosine of each cell with each code, [cells, codes]."""
        return 1 - F.normalize(self.into(x.float()), dim=1) @ self.codebook().T

    def forward(self, x: Tensor, progress: float = 1.0) -> Quantized:
        """Quantise cell vectors.

        Args:
            x: cell vectors, [cells, width].
            progress: share of the training done; the temperature falls to 0 at one half of it.
        """
        temperature = max(1 - 2 * progress, 0.0)
        codebook = self.codebook()
        cells = F.normalize(self.into(x.float()), dim=1)
        logits = 2 * cells @ codebook.T
        if self.training and temperature > 0.02:
            # In value the logits of temperature tau, in gradient those of temperature 1.
            logits = logits + (logits / temperature - logits).detach()
            codes = torch.multinomial(logits.detach().softmax(1), 1).squeeze(1)
        else:
            codes = logits.argmax(1)
        share = logits.softmax(1)
        one_hot = F.one_hot(codes, self.config.codes).to(share.dtype)
        vectors = (one_hot + share - share.detach()) @ codebook
        if self.training:
            shortcut = torch.rand(len(x), 1, device=x.device) < temperature
            vectors = torch.where(shortcut, cells, vectors)
        cosine = codebook @ codebook.T - 2 * torch.eye(len(codebook), device=x.device)
        loss = self.config.separation * cosine.amax(1).mean()
        return Quantized(self.out(vectors), codes, loss)

    def start(self, x: Tensor, seed: int = 0) -> None:
        """Do nothing: this codebook is learnt by gradient from the first step."""

    def settle(self, x: Tensor, seed: int = 0) -> None:
        """Do nothing: this codebook is learnt by gradient to the last step."""


def perplexity(usage: Tensor) -> tuple[float, int]:
    """Measure how evenly codes are used.

    Args:
        usage: number of cells of each code, [codes].

    Returns:
        The perplexity (exponential of the usage's entropy: the number of evenly used codes that
        would be as uncertain; not a number without cells) and the number of codes in use.

    Example:
        >>> value, used = perplexity(torch.tensor([5, 0, 5, 0]))
        >>> round(value, 3), used
        (2.0, 2)
    """
    share = usage[usage > 0].double() / usage.sum()
    return float((-(share * share.log()).sum()).exp()) if len(share) else math.nan, len(share)
