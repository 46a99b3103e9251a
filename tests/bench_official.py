"""Time our encoder against the plain reference of the release, with the same weights, in one run.

    python tests/bench_official.py --cells 4 --genes 2000 --threads 2

The weights are random and of the official shape (4 GB of memory). Each round times every way once,
so that what else the machine does falls on all of them alike; the medians are compared. Prints one
line of JSON; times are seconds per cell.
"""

import argparse
import contextlib
import json
import statistics
import time
import warnings

import numpy as np
import torch
from official_reference import Reference, Sizes, random_checkpoint
from scipy.sparse import csr_matrix

from cellvq import loader
from cellvq.official import convert


def draw_cells(cells: int, genes: int, panel: int) -> torch.Tensor:
    """Counts of cells that express a number of genes each, [cells, panel]."""
    rng = np.random.default_rng(0)
    expressed = rng.random((cells, panel)).argsort(1) < genes
    return torch.from_numpy(np.where(expressed, rng.geometric(0.3, (cells, panel)), 0)).float()


@torch.no_grad()
def encode(model, counts: torch.Tensor, dtype: torch.dtype):
    """Embeddings and codes of cells, in one batch."""
    rough = dtype != torch.float32
    with torch.autocast("cpu", dtype) if rough else contextlib.nullcontext():
        encoded = model.encode(loader.make_batch(csr_matrix(counts.numpy())))
    return encoded.cell, model.quantizer(encoded.summary.float()).codes


def plain(reference: Reference, counts: torch.Tensor):
    """Embeddings and codes of cells, one at a time."""
    cells = [reference(cell) for cell in counts]
    return torch.stack([cell.embedding for cell in cells]), torch.tensor([c.code for c in cells])


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=2, help="cells a round (default: 2)")
    parser.add_argument("--genes", type=int, default=2000, help="expressed genes of each cell")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # torch says that nested tensors are a prototype

    sizes = Sizes()
    state = random_checkpoint(sizes, cells=draw_cells(3, 300, sizes.genes))
    model = convert(state, [f"gene {i}" for i in range(sizes.genes)])
    counts = draw_cells(options.cells, options.genes, sizes.genes)
    masked, bare = (Reference(state, sizes.heads, masked) for masked in (True, False))
    ways = {
        "reference": lambda: plain(masked, counts),
        "reference_without_mask": lambda: plain(bare, counts),
        "float32": lambda: encode(model, counts, torch.float32),
        "bfloat16": lambda: encode(model, counts, torch.bfloat16),
    }
    said = {name: way() for name, way in ways.items()}  # the first call of each warms it up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - start) / options.cells)

    median = {name: statistics.median(times) for name, times in seconds.items()}
    embedding, codes = said["reference"]
    print(json.dumps({
        "torch": str(torch.__version__), **vars(options),
        "seconds_per_cell": {name: round(value, 3) for name, value in median.items()},
        "times_faster": {name: round(median["reference"] / median[name], 2) for name in ways},
        "equal_codes": {name: (codes == said[name][1]).float().mean().item() for name in ways},
        "largest_difference": {
            name: float(f"{(embedding - said[name][0]).abs().max():.2g}") for name in ways
        },
    }))


if __name__ == "__main__":
    main()
