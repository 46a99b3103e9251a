"""The SCD (single-cell discretization): quantisers that turn a cell vector into one code.

All keep one contract (`Quantizer`), so that a model does not know which of them it holds:

- ``forward(x, progress)`` returns `Quantized`; ``distances(x)`` how far a cell is from every code;
- ``start(x, seed)`` places the codes on real cells; ``settle(x, seed)`` lets them rest there at the
  end of training;
- ``addresses()``, ``prefix(codes, level)`` and ``vectors_at(level)`` read the levels of codes.

`RunningMeans` (``ema``, ``nested``) and `ResidualMeans` live in :mod:`cellvq.nested`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellvq import InputError
from cellvq.codebook import Quantized, Quantizer, factors, fit, principal_axes, put
from cellvq.config import QuantizerConfig
from cellvq.distributed import whole
from cellvq.nested import ResidualMeans, RunningMeans

__all__ = ["FiniteScalars", "Quantized", "Quantizer", "ResidualMeans", "RunningMeans",
           "SoftConditionalCodebook", "build", "diagnose", "perplexity"]


def build(config: QuantizerConfig, width: int) -> Quantizer:
    """Make the quantiser that a configuration names.

    Args:
        config: the quantiser's numbers.
        width: width of the cell vectors.

    Raises:
        InputError: ``fsq`` cannot make so many codes, or not of so narrow vectors.

    Example:
        >>> quantizer = build(QuantizerConfig("nested", codes=6, prefixes=(2,)), width=2)
        >>> quantizer(torch.zeros(3, 2)).vectors.shape
        torch.Size([3, 2])
        >>> quantizer.addresses()
        ['C0.0', 'C0.1', 'C0.2', 'C1.0', 'C1.1', 'C1.2']
    """
    kinds = {"ema": RunningMeans, "nested": RunningMeans, "residual": ResidualMeans,
             "fsq": FiniteScalars, "soft": SoftConditionalCodebook}
    return kinds[config.kind](config, width)


class FiniteScalars(Quantizer):
    """Codes as roundings: a few directions of the cell vector with a few levels each (``fsq``).

    Mentzer et al. 2023 (arXiv 2309.15505): there is no codebook that could collapse. Our levels are
    few and the directions many, which explained more of blood cells than eight levels each.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config, width)
        self.levels = factors(config.codes)
        if not self.levels:
            raise InputError(f"quantizer.codes is {config.codes}; fsq needs a number without prime "
                             "factors above 7, such as 32 (4 x 4 x 2) or 60 (5 x 4 x 3)")
        if len(self.levels) > width:
            raise InputError(f"{config.codes} fsq codes have {len(self.levels)} directions, more "
                             f"than the cell vector ({width}): use fewer codes or a wider vector")
        self.into = nn.Linear(width, len(self.levels))
        self.out = nn.Linear(len(self.levels), width)

    def points(self) -> Tensor:
        """Return where every code lies between -1 and 1 in each direction, [codes, directions]."""
        steps = [torch.arange(n, device=self.into.weight.device) for n in self.levels]
        middles = [(2 * step + 1) / len(step) - 1 for step in steps]
        return torch.cartesian_prod(*middles).view(self.config.codes, -1)

    def vectors_at(self, level: int) -> Tensor:
        """Return the vector of every code, [codes, width]."""
        return self.out(self.points())

    def distances(self, x: Tensor) -> Tensor:
        """Return the distance of each cell to each code between the levels, [cells, codes]."""
        place = torch.tanh(self.into(x.float()) / 2)
        return torch.cdist(place, self.points(), compute_mode="donot_use_mm_for_euclid_dist")

    def forward(self, x: Tensor, progress: float = 1.0) -> Quantized:
        """Quantise cell vectors.

        Args:
            x: cell vectors, [cells, width].
            progress: not needed here.
        """
        place = torch.tanh(self.into(x.float()) / 2)
        codes = self._round(place.detach())
        rounded = place + (self.points()[codes] - place).detach()
        return Quantized(self.out(rounded), codes, place.sum() * 0)

    def _round(self, place: Tensor) -> Tensor:
        """Return the code next to each place between -1 and 1, [cells]."""
        codes = torch.zeros(len(place), dtype=torch.long, device=place.device)
        for number, along in zip(self.levels, place.unbind(1), strict=True):
            codes = codes * number + ((along + 1) / 2 * number).long().clamp(max=number - 1)
        return codes

    @torch.no_grad()
    def start(self, x: Tensor, seed: int = 0) -> None:
        """Lay the directions along the principal axes of cells, so that levels are used evenly."""
        mean, axes, spread = principal_axes(x)
        kept = len(self.levels)
        # The logistic function of 1.7 z is close to the normal distribution function of z.
        weight = 1.7 * (axes[:, :kept] / spread[:kept].clamp(min=1e-6)).T
        place = torch.tanh((x - mean) @ weight.T / 2)
        put(self.into.weight, weight)
        put(self.into.bias, -weight @ mean)
        fit(self.out, self.points()[self._round(place)], x)

    def settle(self, x: Tensor, seed: int = 0) -> None:
        """Do nothing: these codes are learnt by gradient to the last step."""


class SoftConditionalCodebook(Quantizer):
    """Codes as bit vectors that a network turns into code vectors (FoldToken, arXiv 2403.09673).

    All ``2**bits`` bit vectors pass one small network, so that codes with common bits share what
    they learn. A cell is compared with every code by cosine; in training its code is drawn from the
    softmax of the cosines, whose temperature falls, and a falling share of cells takes a shortcut
    around the codebook. Ours are the start on real cells and the loss for even use of the codes.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__(config, width)
        places = torch.arange(config.codes.bit_length() - 2, -1, -1)  # most significant bit first
        self.register_buffer("bits", (torch.arange(config.codes)[:, None] >> places & 1).float())
        self.embed = self._network()
        self.into = nn.Linear(width, config.width)
        self.out = nn.Linear(config.width, width)
        self._kept: Tensor | None = None  # the codebook, while nothing changes it

    def _network(self) -> nn.Sequential:
        config, layers = self.config, []
        widths = [self.bits.shape[1], *[config.hidden] * config.hidden_layers]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], config.width))

    def codebook(self) -> Tensor:
        """Return the unit-length code vectors, [codes, width of the code space]."""
        if self.training or torch.is_grad_enabled():
            return _unit(self.embed(self.bits))
        if self._kept is None:
            self._kept = _unit(self.embed(self.bits))
        return self._kept

    def train(self, mode: bool = True) -> SoftConditionalCodebook:
        """Set training or evaluation mode, and forget the codebook."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *args, **options):
        self._kept = None
        return super()._apply(*args, **options)

    def _load_from_state_dict(self, *args, **options) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **options)

    def vectors_at(self, level: int) -> Tensor:
        """Return the vector of every code, [codes, width]."""
        return self.out(self.codebook())

    def distances(self, x: Tensor) -> Tensor:
        """Return one minus the cosine of each cell with each code, [cells, codes]."""
        return 1 - _unit(self.into(x.float())) @ self.codebook().T

    def forward(self, x: Tensor, progress: float = 1.0) -> Quantized:
        """Quantise cell vectors.

        Args:
            x: cell vectors, [cells, width].
            progress: share of the training done; from one half of it on the nearest code is taken.
        """
        codebook, cells = self.codebook(), _unit(self.into(x.float()))
        logits = 2 * cells @ codebook.T
        if not self.training:
            codes = logits.argmax(1)
            return Quantized(self.out(codebook[codes]), codes, logits.sum() * 0)
        usage = F.softmax(logits / 0.1, 1).mean(0)
        temperature = max(1 - 2 * progress, 0.0)
        if temperature > 0.02:  # in value the logits of that temperature, in gradient those of 1
            logits = logits + (logits / temperature - logits).detach()
            codes = torch.multinomial(logits.detach().softmax(1), 1).squeeze(1)
        else:
            codes = logits.argmax(1)
        share = logits.softmax(1)
        one_hot = F.one_hot(codes, self.config.codes).to(share.dtype)
        vectors = (one_hot + share - share.detach()) @ codebook
        is_short = torch.rand(len(x), 1, device=x.device) < temperature
        vectors = torch.where(is_short, cells, vectors)
        cosine = codebook @ codebook.T - 2 * torch.eye(len(codebook), device=x.device)
        loss = self.config.separation * cosine.amax(1).mean()
        uneven = math.log(self.config.codes) + (usage * (usage + 1e-9).log()).sum()
        return Quantized(self.out(vectors), codes, loss + self.config.balance * uneven)

    @torch.no_grad()
    def start(self, x: Tensor, seed: int = 0) -> None:
        """Place the codes by k-means on cells, and teach the network to say these places.

        Args:
            x: cell vectors to start on, as for `RunningMeans.start`.
            seed: seed of the k-means starts.
        """
        mean, axes, spread = principal_axes(x)
        kept = min(self.width, self.config.width - 1)
        weight = axes.new_zeros(self.config.width, self.width)
        weight[:kept] = axes[:, :kept].T / spread.norm().clamp(min=1e-6)
        bias = -weight @ mean
        bias[-1] = 1.0  # a constant direction: the length of a vector counts, too
        cells = _unit(x.double() @ weight.T + bias).float()
        means = RunningMeans(QuantizerConfig(codes=self.config.codes), self.config.width)
        means.to(x.device).start(cells, seed)
        targets = _unit(means.codebook[_bit_order(means.codebook)])
        network = self._plain().train()
        with torch.enable_grad():
            optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
            for _ in range(200):
                optimizer.zero_grad()
                (1 - (_unit(network(self.bits)) * targets).sum(1)).mean().backward()
                optimizer.step()
        _set_norms(network, self.bits)
        codebook = _unit(network(self.bits))
        for name, values in self.embed.state_dict(keep_vars=True).items():
            put(values, network.state_dict()[name])
        put(self.into.weight, weight)
        put(self.into.bias, bias)
        fit(self.out, codebook[(cells @ codebook.T).argmax(1)], x)
        self._kept = None

    @torch.no_grad()
    def settle(self, x: Tensor, seed: int = 0) -> None:
        """Give the batch norms the exact statistics of the codes, so that use equals training."""
        network = self._plain()
        _set_norms(network, self.bits)
        for values, settled in zip(self.embed.buffers(), network.buffers(), strict=True):
            values.copy_(settled)
        self._kept = None

    def _plain(self) -> nn.Sequential:
        """Return a copy of the network that lies in one piece on every process."""
        network = self._network().to(self.bits.device)
        network.load_state_dict({k: whole(v) for k, v in self.embed.state_dict().items()})
        return network


def diagnose(quantizer: Quantizer, x: Tensor) -> list[dict[str, float]]:
    """Measure how a quantiser serves some cells, in one row for each of its levels.

    Args:
        quantizer: any quantiser.
        x: cell vectors, [cells, width].

    Returns:
        Coarsest level first: ``level``, ``codes``, ``used``, ``dead`` (int), ``perplexity``, and
        ``quantisation_error``, the share of the cells' variance that their code leaves unexplained.

    Example:
        >>> quantizer = build(QuantizerConfig(codes=2), width=1)
        >>> quantizer.start(torch.tensor([[0.0], [2.0], [10.0], [12.0]]))
        >>> row = diagnose(quantizer, torch.tensor([[0.0], [2.0], [10.0], [12.0]]))[0]
        >>> row["used"], round(row["quantisation_error"], 4)
        (2, 0.0385)
    """
    was_training = quantizer.training
    quantizer.eval()
    with torch.no_grad():
        codes = torch.cat([quantizer(part).codes for part in x.split(4096)])
        variance = (x - x.mean(0)).double().square().sum()
        rows = []
        for level, size in enumerate(quantizer.sizes):
            usage = torch.bincount(quantizer.prefix(codes, level), minlength=size)
            evenness, used = perplexity(usage)
            error = (x - quantizer.vectors_of(codes, level)).double().square().sum() / variance
            rows.append({"level": level, "codes": size, "used": used, "dead": size - used,
                         "perplexity": evenness, "quantisation_error": float(error)})
    quantizer.train(was_training)
    return rows


def perplexity(usage: Tensor) -> tuple[float, int]:
    """Measure how evenly codes are used.

    Args:
        usage: number of cells of each code, [codes].

    Returns:
        The perplexity (exponential of the usage's entropy, a number of evenly used codes; not a
        number without cells) and the number of codes in use.

    Example:
        >>> value, used = perplexity(torch.tensor([5, 0, 5, 0]))
        >>> round(value, 3), used
        (2.0, 2)
    """
    share = usage[usage > 0].double() / usage.sum()
    return float((-(share * share.log()).sum()).exp()) if len(share) else math.nan, len(share)


def _unit(x: Tensor) -> Tensor:
    """Scale rows to length one, as the release does."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-6)


def _set_norms(network: nn.Sequential, x: Tensor) -> None:
    """Set the running statistics of batch norms to those of ``x``, all inputs that there are."""
    for layer in network.eval():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.copy_(x.mean(0))
            layer.running_var.copy_(x.var(0, correction=0))
        x = layer(x)


def _bit_order(x: Tensor) -> Tensor:
    """Order rows so that halving the order again and again halves their widest directions."""
    order = torch.arange(len(x), device=x.device).unsqueeze(0)
    while order.shape[1] > 1:
        widest = x[order].var(1).argmax(1)
        along = x[order, widest.unsqueeze(1)]
        order = order.gather(1, along.argsort(1)).view(2 * len(order), -1)
    return order.flatten()
