"""How long the knowledge graph of many encoded cells takes on this machine, and what it costs.

Cells are made up: codes in three levels, donors, conditions, labels, ligands and receptors. Each
graph is made in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from cellvq import graph, graphmaking, knowledge, regulation
from cellvq.cost import device_name, peak_memory

SHARD = 100_000
"""Cells of a file."""
UMI = 400
"""UMI counts of a cell, about."""
GROWING = "counting"
"""The step whose time grows with the cells; the others look at tallies, or at a sample."""


def bench_graph(
    cells: tuple[int, ...] = (100_000, 1_000_000), genes: int = 3000, codes: int = 512,
    progress: bool = True,
) -> dict:
    """Measure how long the tables and the graph of encoded cells take on this machine.

    Args:
        cells: numbers of cells.
        genes: genes of the files.
        codes: codes of the cells.
        progress: say on standard error what is being measured.

    Returns:
        Values for JSON: ``date``, ``processor``, ``cores``, ``genes``, ``codes``, and ``graphs``:
        for each number of cells ``cells``, ``seconds``, ``microseconds_per_cell``, ``steps``
        (seconds by name), ``peak_gb``, ``nodes``, ``edges``, and ``queries`` (milliseconds by
        question).
    """

    def say(what: str) -> None:
        if progress:
            print(f"measuring the graph of {what} ...", file=sys.stderr, flush=True)

    graphs, names = [], gene_names(genes)
    with tempfile.TemporaryDirectory(prefix="cellvq-bench-") as place:
        folder, written = Path(place), 0
        for size in sorted(cells):
            say(f"{size:,} cells")
            for number in range(written, -(-size // SHARD)):
                rows = min(SHARD, size - number * SHARD)
                draw_shard(rows, names, codes, number).write_h5ad(folder / f"{number:06}.h5ad")
                written = number + 1 if rows == SHARD else number
            graphs.append(_alone(folder, size))
    return {
        "date": datetime.date.today().isoformat(), "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(), "genes": genes, "codes": codes, "graphs": graphs,
    }


def in_words(found: dict) -> str:
    """Say in lines for people what :func:`bench_graph` measured."""
    lines = [f"{found['processor']}, {found['cores']} cores, {found['date']}; "
             f"{found['genes']:,} genes, {found['codes']:,} codes"]
    for made in found["graphs"]:
        steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in made["steps"].items())
        lines.append(
            f"{made['cells']:,} cells: {made['seconds']:.1f} s "
            f"({made['microseconds_per_cell']:.0f} microseconds a cell), {made['peak_gb']:.2f} GB, "
            f"{made['nodes']:,} nodes, {made['edges']:,} edges; seconds by step: {steps}")
    slowest = max(found["graphs"][-1]["queries"].items(), key=lambda query: query[1])
    lines.append(f"The slowest query ({slowest[0]}) took {slowest[1]:.0f} ms.")
    return "\n".join(lines)


def many_cells(found: dict, cells: float, workers: int = 1) -> pd.DataFrame:
    """Compute what the graph of very many cells costs, from measured times.

    What grows with the cells is counting them, shard by shard, which workers share. The other steps
    look at tallies or at a sample, whose size does not change.

    Args:
        found: as :func:`bench_graph` returns it.
        cells: number of cells.
        workers: processes that count shards, each as fast as that of the measurement.

    Returns:
        Index counting, rest, total; columns what, hours, how.

    Example:
        >>> made = {"cells": 1000, "seconds": 3.0, "steps": {"counting": 1.0, "signals": 2.0}}
        >>> many_cells({"graphs": [made]}, 3.6e6, workers=2)["hours"].round(3).to_dict()
        {'counting': 0.5, 'rest': 0.001, 'total': 0.501}
    """
    largest = max(found["graphs"], key=lambda made: made["cells"])
    counting = largest["steps"][GROWING] / largest["cells"] * cells / workers / 3600
    rest = (largest["seconds"] - largest["steps"][GROWING]) / 3600
    rows = {"counting": ("tallies of all shards and borders of codes", counting,
                         f"cells x seconds a cell / {workers} workers"),
            "rest": ("tests, signals, gene sets, joining", rest, "as measured: does not grow"),
            "total": ("all of it", counting + rest, "sum")}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["what", "hours", "how"])


def draw_shard(cells: int, genes: list[str], codes: int, seed: int) -> AnnData:
    """Make up encoded cells of codes in three levels, eight donors and two conditions.

    Args:
        cells: number of cells.
        genes: names of the genes.
        codes: number of codes, 16 or more.
        seed: seed of the cells; the profiles of the codes are the same for all seeds.

    Example:
        >>> draw_shard(50, gene_names(90), 16, seed=0).obs["cellvq_code"].nunique() <= 16
        True
    """
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


def gene_names(count: int) -> list[str]:
    """Name genes, ligands and receptors first, so that there are signals to look for.

    Example:
        >>> len(gene_names(40))
        40
    """
    import liana  # seconds on first use

    pairs = liana.rs.select_resource("consensus")
    known = sorted({part for end in (*pairs["ligand"], *pairs["receptor"])
                    for part in end.split("_")})[: count // 3]
    return known + [f"GENE{number}" for number in range(count - len(known))]


def measure(folder: Path, cells: int) -> dict:
    """Make the graph of shards, write it, and ask it; see ``graphs`` of :func:`bench_graph`.

    Args:
        folder: where the shards are.
        cells: cells of those that are looked at.
    """
    paths = sorted(folder.glob("*.h5ad"))[: -(-cells // SHARD)]
    columns = graphmaking.Columns(("cell_type",), "donor", "condition")
    start, steps = time.perf_counter(), []

    def say(step: str) -> None:
        steps.append((step, time.perf_counter()))

    made = graphmaking.make(
        paths, columns, knowledge=knowledge.available(), say=say,
        regulation=lambda some: regulation.network(some, donor=columns.donor))
    say("writing")
    made.write(folder / f"graph-{cells}", overwrite=True)
    say("")
    seconds = time.perf_counter() - start
    return {
        "cells": cells, "seconds": seconds, "microseconds_per_cell": 1e6 * seconds / cells,
        "steps": {name: after - before for (name, before), (_, after) in
                  zip(steps, steps[1:], strict=False)},
        "peak_gb": peak_memory(torch.device("cpu")) / 1e9,
        "nodes": len(made.nodes), "edges": len(made.edges), "queries": _queries(made),
    }


def _queries(made: graph.Graph) -> dict[str, float]:
    """Milliseconds of each kind of question, the first time that it is asked."""
    nodes = made.nodes
    codes = nodes.loc[nodes["kind"] == "code"].nlargest(2, "cells")["name"].tolist()
    genes = nodes.loc[nodes["kind"] == "gene", "id"].head(2).tolist()
    asked = {
        "neighbours": lambda: made.neighbours(codes[0]), "explain": lambda: made.explain(codes[0]),
        "compare": lambda: made.compare(*codes), "paths": lambda: made.paths(*genes),
        "conditions": made.conditions, "hypotheses": made.hypotheses,
    }
    found = {}
    for name, ask in asked.items():
        start = time.perf_counter()
        ask()
        found[name] = 1e3 * (time.perf_counter() - start)
    return found


def _alone(folder: Path, cells: int) -> dict:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "cellvq.graphbench", str(folder), str(cells)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the graph failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _main() -> None:
    """Measure one graph and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("cells", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(measure(options.folder, options.cells)), flush=True)


if __name__ == "__main__":
    _main()
