"""Measure the knowledge graph of many cells: time, memory, and whether time per cell stays flat.

    python tests/bench_graph.py --cells 100000
    python tests/bench_graph.py --cells 1000000 --statistics

Shards of 100,000 simulated encoded cells are written to a temporary folder first, which is not
timed. ``--statistics`` leaves out what is asked of a sample of fixed size (signals, gene sets), and
times what grows with the cells. Prints one line of JSON; times are seconds, memory is in GB.
"""

import argparse
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from cellvq import conditions, graphmaking, knowledge, tallies, tallylabels, tallymarkers

SHARD = 100_000
UMI = 400


def draw_shard(cells: int, genes: list[str], codes: int, seed: int) -> AnnData:
    """Encoded cells of codes in three levels, eight donors and two conditions."""
    profile = np.random.default_rng(7)  # the same for all shards
    rates = profile.lognormal(0, 1.5, len(genes)) * np.exp(
        np.where(profile.random((codes, len(genes))) < 0.01, 2.0, 0.0))
    edges = np.cumsum(rates, axis=1) / rates.sum(axis=1, keepdims=True) + np.arange(codes)[:, None]
    centres = profile.normal(0, 1, (codes, 32))
    rng = np.random.default_rng(seed)
    code = rng.integers(0, codes, cells)
    size = np.maximum(rng.lognormal(np.log(UMI), 0.3, cells).astype(int), 20)
    cell = np.repeat(np.arange(cells), size)
    place = np.searchsorted(edges.ravel(), rng.random(len(cell)) + code[cell])
    gene = np.minimum(place, edges.size - 1) % len(genes)
    counts = csr_matrix((np.ones(len(cell), np.float32), (cell, gene)), (cells, len(genes)))
    counts.sum_duplicates()
    address = [f"C{n // 64}.{n // 8 % 8}.{n % 8}" for n in range(codes)]
    donor = rng.integers(0, 8, cells)
    obs = pd.DataFrame({
        "cellvq_code": pd.Categorical.from_codes(code, address),
        "cell_type": pd.Categorical.from_codes(code // 16, [f"t{n}" for n in range(codes // 16)]),
        "donor": pd.Categorical.from_codes(donor, [f"d{n}" for n in range(8)]),
        "condition": pd.Categorical.from_codes(donor % 2, ["ctrl", "stim"]),
    }, index=[f"{seed}-{n}" for n in range(cells)])
    made = AnnData(counts, obs, pd.DataFrame(index=genes))
    made.obsm["X_cellvq"] = (centres[code] + rng.normal(0, 0.5, (cells, 32))).astype(np.float32)
    return made


def names(count: int) -> list[str]:
    """Ligands and receptors first, so that there are signals to look for."""
    import liana

    pairs = liana.rs.select_resource("consensus")
    known = sorted({part for end in (*pairs["ligand"], *pairs["receptor"])
                    for part in end.split("_")})[: count // 3]
    return known + [f"GENE{number}" for number in range(count - len(known))]


def statistics(paths: list[Path]) -> dict[str, float]:
    """Time what grows with the cells, and what is made of the tally."""
    def timed(ask):
        start = time.perf_counter()
        found = ask()
        return found, time.perf_counter() - start

    columns = {"donor": "donor", "condition": "condition", "labels": ["cell_type"]}
    made, counting = timed(lambda: tallies.merge(
        tallies.tally(shard, **columns) for path in paths for shard in tallies.shards(path)))
    shared, bordering = timed(lambda: pd.concat(
        [tallies.borders(shard, made) for path in paths for shard in tallies.shards(path)]))
    _, testing = timed(lambda: (
        tallymarkers.marker_table(made), tallylabels.label_table(made),
        tallylabels.border_table(made, shared), conditions.abundance(made, "stim", "ctrl"),
        conditions.gene_changes(made, "stim", "ctrl")))
    return {"tally": counting, "borders": bordering, "tests": testing}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=100_000, help="cells (default: 100000)")
    parser.add_argument("--genes", type=int, default=3000, help="genes (default: 3000)")
    parser.add_argument("--codes", type=int, default=512, help="codes (default: 512)")
    parser.add_argument("--statistics", action="store_true", help="only what grows with the cells")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = {"cells": options.cells, "genes": options.genes, "codes": options.codes}
    with tempfile.TemporaryDirectory() as folder:
        paths, genes = [], names(options.genes)
        for number, first in enumerate(range(0, options.cells, SHARD)):
            paths.append(Path(folder) / f"{number}.h5ad")
            size = min(SHARD, options.cells - first)
            draw_shard(size, genes, options.codes, number).write_h5ad(paths[-1])
        start = time.perf_counter()
        if options.statistics:
            found |= {name: round(value, 1) for name, value in statistics(paths).items()}
        else:
            columns = graphmaking.Columns(("cell_type",), "donor", "condition")
            steps = []
            graph = graphmaking.make(paths, columns, knowledge=knowledge.available(),
                                     say=lambda step: steps.append((step, time.perf_counter())))
            steps.append(("", time.perf_counter()))
            found |= {step: round(end - begin, 1)
                      for (step, begin), (_, end) in zip(steps, steps[1:], strict=False)}
            graph.write(Path(folder) / "graph")
            found |= {"nodes": len(graph.nodes), "edges": len(graph.edges)}
        found["seconds"] = round(time.perf_counter() - start, 1)
    found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
