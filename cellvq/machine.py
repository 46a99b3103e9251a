"""What this machine has, and roughly how long it will take; measured in a blink, without torch."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellvq import config

# Rates of the tiny preset on one and two cores with 20 to 200 GFLOP/s: tokens a second go with the
# square root of the rate of matrix products, as much of the work is not matrix products. Rough.
ENCODED_TOKENS, TRAINED_TOKENS = 10_000, 4_500
SETTLED, SETTLED_CELLS = 4, 20_000  # how often so many cells are encoded while training, for codes
START_SECONDS = 8  # Python with torch and scanpy loaded, and genes chosen: rough
BASE_MEMORY_GB = 0.9  # the same, and the tiny model: rough
BYTES_OF_VALUE = 24  # of a value that is not zero: in the file's cells, as counts, and by panel
STREAMED_FROM = 400_000_000  # values other than zero, from which pretraining streams a file


@dataclass(frozen=True)
class Machine:
    """What the machine has."""

    cores: int
    """Processor cores that this process may use."""
    free_memory_gb: float | None
    """Memory that is free, None where nobody says."""
    gflops: float
    """Billions of floating-point operations a second in a matrix product of numpy."""


@dataclass(frozen=True)
class Estimate:
    """Roughly what encoding and pretraining some cells will take."""

    encode_seconds: float
    encode_memory_gb: float
    pretrain_seconds: float
    pretrain_memory_gb: float


def measure() -> Machine:
    """Look at this machine; takes a twentieth of a second.

    Example:
        >>> measure().cores >= 1
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    matrix = np.ones((512, 512), dtype=np.float32)
    matrix @ matrix  # the first product wakes the threads
    began, products = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < 0.05:
        matrix @ matrix
        products += 1
    return Machine(cores or 1, _free_memory(), 2 * 512**3 * products / took / 1e9)


def estimate(cells: int, genes: int, values: int, machine: Machine) -> Estimate:
    """Estimate time and memory of the tiny preset with its own number of steps.

    Args:
        cells: number of cells.
        genes: number of genes in the file.
        values: number of values other than zero.
        machine: what :func:`measure` found.

    Example:
        >>> slow, fast = Machine(2, 8.0, 50.0), Machine(8, 8.0, 400.0)
        >>> need = [estimate(10_000, 20_000, 10_000_000, each) for each in (slow, fast)]
        >>> need[0].encode_seconds > need[1].encode_seconds
        True
    """
    tiny = config.preset("tiny")
    speed = np.sqrt(machine.gflops)
    tokens = values / max(cells, 1) * min(1, tiny.model.panel_size / max(genes, 1))
    trained = tiny.training.steps * tiny.training.batch_size * min(tokens, tiny.training.max_tokens)
    settled = SETTLED * min(cells, SETTLED_CELLS) * tokens / ENCODED_TOKENS
    reading = START_SECONDS + values / 2e7
    return Estimate(
        encode_seconds=float(reading + cells * tokens / ENCODED_TOKENS / speed),
        encode_memory_gb=BASE_MEMORY_GB + BYTES_OF_VALUE * values / 1e9,
        pretrain_seconds=float(reading + (trained / TRAINED_TOKENS + settled) / speed),
        pretrain_memory_gb=BASE_MEMORY_GB + BYTES_OF_VALUE / 2 * min(values, STREAMED_FROM) / 1e9,
    )


def _free_memory() -> float | None:
    """Return the free memory in GB: of the machine, or of the container if that is less."""
    free = []
    about = Path("/proc/meminfo")
    if about.exists():
        lines = about.read_text().splitlines()
        free += [float(line.split()[1]) / 1e6 for line in lines if line.startswith("MemAvailable")]
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    try:
        free.append((int(limit.read_text()) - int(used.read_text())) / 1e9)
    except (OSError, ValueError):
        pass  # no container, or one without a limit
    return max(min(free), 0.0) if free else None
