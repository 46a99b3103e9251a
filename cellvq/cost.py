"""What one call of a model on some cells costs: time, operations and memory.

Every number is measured on the device where the model is; cells may be made up, since what they
hold changes no cost.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cellvq.config import ModelConfig, TrainingConfig
from cellvq.loader import Batch, make_batch
from cellvq.model import CellVQ
from cellvq.objective import pretraining_loss
from cellvq.optimize import autocast, make_optimizer, reproducible


class Cost(NamedTuple):
    """What one call on a batch of cells costs."""

    cells: int
    """Cells of the batch."""
    seconds: float
    """Median time of a call."""
    operations: int
    """Floating-point operations of the call's matrix products, as `count_operations` counts."""
    kept: int
    """Bytes that the forward pass keeps for the backward pass, weights not counted."""
    peak: float
    """Most bytes in use, of a GPU's memory during the calls, else by the process until then."""

    @property
    def cells_per_second(self) -> float:
        """How many cells pass in a second."""
        return self.cells / self.seconds


def train_cost(
    model: CellVQ, batch: Batch, training: TrainingConfig, seconds: float = 1.0, *,
    decode: bool = True, compile: bool = False,
) -> Cost:
    """Measure a training step; the weights stay what they are.

    Args:
        model: the model, on its device.
        batch: cells with hidden genes, on the same device.
        training: the run's numbers.
        seconds: about how long to repeat it.
        decode: whether the decoder and the likelihood take part.
        compile: measure what ``torch.compile`` makes of the model.
    """
    model.train()
    optimizer = make_optimizer(model, training)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # a step costs as much, and made-up cells teach nothing

    def step(network: Callable) -> None:
        optimizer.zero_grad()
        with autocast(model):
            made = network(batch)
        if decode:
            loss = pretraining_loss(made, batch, training)
        else:
            taken = model.quantizer(made.summary)
            loss = made.cell.mean() + taken.vectors.mean() + taken.loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()

    network = model if decode else model.encode
    return measure(step, network, model, len(batch.depth), seconds, compile)


def encode_cost(
    model: CellVQ, batch: Batch, seconds: float = 1.0, *, bf16: bool = False, compile: bool = False
) -> Cost:
    """Measure encoding: cell vectors and codes.

    Args:
        model: the model, in evaluation mode.
        batch: whole cells, on the model's device.
        seconds: about how long to repeat it.
        bf16: multiply in bfloat16.
        compile: measure what ``torch.compile`` makes of the encoder.
    """

    @torch.no_grad()
    def encode(network: Callable) -> None:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            made = network(batch)
        model.quantizer(made.summary)

    return measure(encode, model.encode, model, len(batch.depth), seconds, compile)


def measure(
    work: Callable[[Callable], object], network: Callable, model: CellVQ, cells: int,
    seconds: float, compile: bool = False,
) -> Cost:
    """Count the operations and the memory of one call, then time more of them.

    Args:
        work: what to measure, given the network to call.
        network: the model, or a part of it.
        model: the model.
        cells: cells that a call passes.
        seconds: about how long to repeat it; a call that takes longer is made only once.
        compile: time what ``torch.compile`` makes of the network.
    """
    weights = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    if model.device.type == "cuda":
        torch.cuda.resetpeak_memory_stats(model.device)
    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        operations = count_operations(lambda: work(network))
    _synchronise(model.device)
    took = time.perf_counter() - start
    if compile:
        network = torch.compile(network)
    if compile or took < seconds:
        took = seconds_per_call(lambda: work(network), seconds, model.device)
    return Cost(cells, took, operations, sum(kept.values()), peak_memory(model.device))


def step_cost(
    size: ModelConfig, training: TrainingConfig, *, genes: int, cells: int, seconds: float = 0.5,
    seed: int = 0,
) -> Cost:
    """Measure a training step of a fresh model on made-up cells, on the CPU.

    Args:
        size: the network's numbers.
        training: the run's numbers.
        genes: expressed genes that each cell shows.
        cells: cells of the step.
        seconds: about how long to repeat it.
        seed: seed of the weights and the cells.

    Example:
        >>> small = ModelConfig(panel_size=100)
        >>> step_cost(small, TrainingConfig(), genes=20, cells=2, seconds=0.0).cells
        2
    """
    rng = np.random.default_rng(seed)
    expressed = genes_to_express(genes, training)
    with reproducible():
        torch.manual_seed(seed)
        model = CellVQ(size, panel_of(size))
        batch = make_batch(
            synthetic_counts(cells, expressed, size.panel_size, rng), max_tokens=genes,
            hidden_share=training.hidden_share, rng=rng,
        )
        return train_cost(model, batch, training, seconds)


def operations_of(size: ModelConfig, genes: int) -> dict[str, int]:
    """Count the operations of one cell forward, by part, without computing anything.

    Args:
        size: the network's numbers; a dense prior counts as folded.
        genes: expressed genes of the cell.

    Returns:
        Operations of the ``encoder`` and of the ``decoder``, decoding once.

    Example:
        >>> parts = operations_of(ModelConfig(), 500)
        >>> parts["encoder"] > parts["decoder"]
        True
    """
    size = dataclasses.replace(size, prior="none")
    cell = make_batch(synthetic_counts(1, genes, size.panel_size, np.random.default_rng(0)))
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without numbers
        model = CellVQ(size, panel_of(size))
        vector, table = torch.zeros(1, size.code_width), model.gene_table()[: size.panel_size]
        return {
            "encoder": count_operations(lambda: model.encode(cell)),
            "decoder": count_operations(
                lambda: model.decoder(vector, cell.depth, cell.batch, table)),
        }


def count_operations(work: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products in a call, backward included.

    Attention counts as the products of its definition, two forward and four backward, however it
    is computed.

    Example:
        >>> count_operations(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
        60
    """
    def forward(query, key, value, *others, out_shape=None, **more) -> int:
        *parts, tokens, head = query
        return 2 * int(np.prod(parts)) * tokens * key[-2] * (head + value[-1])

    def backward(gradient, *others, out_shape=None, **more) -> int:
        return 2 * forward(*others)

    kinds = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    attention = {}
    for kind in kinds:
        attention[getattr(torch.ops.aten, f"_scaled_dot_product_{kind}")] = forward
        attention[getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_backward")] = backward
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return counter.get_total_flops()


def seconds_per_call(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Time calls for about so many seconds, at least two; return the median without the first."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def matrix_rate(kind: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """Measure the operations a second of large square matrix products, the best of some sizes.

    Args:
        kind: the numbers' type.
        device: where to multiply.
        seconds: about how long to repeat it; a size that takes longer is the last one that is
            tried, as a processor that does not know a type takes a minute for one large product.
    """
    rates = []
    for side in (4096, 8192) if device.type == "cuda" else (256, 1024, 2048):
        a = torch.randn(side, side, device=device).to(kind)
        b = torch.randn(side, side, device=device).to(kind)
        took = seconds_per_call(lambda a=a, b=b: a @ b, seconds / 2, device)
        rates.append(2 * side**3 / took)
        if took > seconds / 2:
            break
    return max(rates)


def genes_to_express(genes: int, training: TrainingConfig) -> int:
    """Return how many genes a cell expresses so that enough are left when some are hidden."""
    spare = 6 * np.sqrt(genes * training.hidden_share)
    return int(np.ceil((genes + spare) / (1 - training.hidden_share)))


def panel_of(size: ModelConfig) -> list[str]:
    """Name as many genes as the panel of a model holds."""
    return [f"gene {number}" for number in range(size.panel_size)]


def synthetic_counts(
    cells: int, genes: int, panel: int, rng: np.random.Generator
) -> csr_matrix:
    """Make cells of exactly so many expressed genes, [cells, panel].

    Args:
        cells: number of cells.
        genes: expressed genes of each.
        panel: number of genes there are.
        rng: source of the draws.

    Example:
        >>> made = synthetic_counts(3, 5, 40, np.random.default_rng(0))
        >>> made.shape, np.diff(made.indptr).tolist()
        ((3, 40), [5, 5, 5])
    """
    chosen = rng.random((cells, panel), dtype=np.float32).argpartition(genes - 1)[:, :genes]
    chosen.sort(axis=1)
    counts = rng.geometric(0.5, chosen.size).astype(np.float32)
    starts = np.arange(cells + 1) * genes
    return csr_matrix((counts, chosen.ravel(), starts), shape=(cells, panel))


def device_name(device: torch.device) -> str:
    """Name a GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> float:
    """Return the most memory in bytes that was in use on a device, or by the process; or NaN."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    about = Path("/proc/self/status")  # getrusage would count a parent's memory too
    lines = about.read_text().splitlines() if about.exists() else []
    if peak := [float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]:
        return peak[0]
    try:
        import resource
    except ImportError:  # Windows has no such count
        return np.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _synchronise(device: torch.device) -> None:
    """Wait for a GPU, which works on while Python does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
