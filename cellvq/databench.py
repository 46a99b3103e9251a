"""How fast cells come from the disk into batches of tokens, how well mixed, beside other readers.

Each reader runs in a process of its own, so that its memory is its own. Cells are made up and lie
sorted by a label, as files often do: that is where reading in blocks could go wrong.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import torch

from cellvq import build, config, corpus, loader, objective, optimize, train
from cellvq.composition import step_entropy
from cellvq.cost import device_name, peak_memory
from cellvq.joined import Joined
from cellvq.model import CellVQ
from cellvq.stream import Stream

BATCH = 64
"""Cells of a batch, as in a step of the preset ``tiny``."""
LABELS = 14
"""Values of the label by which the cells are sorted."""
SECONDS = 8.0
"""How long a reader is measured, after its first window."""

Batches = Iterator[tuple[object, np.ndarray]]
"""Counts of a batch (CSR or dense) and the numbers of its cells."""


def bench_data(
    cells: int = 100_000, genes: int = 2000, values: int = 160,
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000), progress: bool = True,
) -> dict:
    """Measure how fast cells are read into batches of tokens on this machine.

    Args:
        cells: cells of the file that all readers read.
        genes: genes of the file.
        values: genes that a cell expresses.
        sizes: numbers of cells for which the time a cell is measured.
        progress: say on standard error what is being measured.

    Returns:
        Values for JSON: ``date``, ``processor``, ``cores``, ``cells``, ``genes``,
        ``values_per_cell``; ``reading`` (reader, storage, cells_per_second, entropy of the label in
        a batch over that in a batch of random cells, peak_gb); ``scaling`` (cells,
        microseconds_per_cell, peak_gb); ``building`` (cells_per_second, values_per_second,
        bytes_per_value); ``collating`` (milliseconds, step_milliseconds, share).
    """

    def say(what: str) -> None:
        if progress:
            print(f"measuring {what} ...", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="cellvq-bench-") as place:
        folder = Path(place)
        path = folder / "cells.h5ad"
        say(f"how a corpus of {cells:,} cells is built")
        write_cells(path, cells, genes, values)
        start = time.perf_counter()
        manifest = build.build(corpus.open_all(path), folder / "corpus", progress=False)
        seconds = time.perf_counter() - start
        stored = sum(file.stat().st_size for file in (folder / "corpus").rglob("X/*/c/*"))
        building = {"cells_per_second": cells / seconds,
                    "values_per_second": manifest["values"] / seconds,
                    "bytes_per_value": stored / manifest["values"]}
        reading = []
        for name, (_, storage, needs) in READERS.items():
            if all(importlib.util.find_spec(library) for library in needs):
                say(f"{name}, {storage}")
                where = folder / "corpus" if "zarr" in storage else path
                reading.append({"reader": name, "storage": storage} | _alone(name, where))
        say("how long making batches takes beside a training step")
        collating = measure_collating(path)
        scaling = []
        for size in sizes:
            say(f"{size:,} cells")
            here = path if size == cells else folder / f"{size}.h5ad"
            write_cells(here, size, genes, values)
            found = _alone("CellVQ", here)
            scaling.append({"cells": size, "peak_gb": found["peak_gb"],
                            "microseconds_per_cell": 1e6 / found["cells_per_second"]})
    return {
        "date": datetime.date.today().isoformat(), "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(), "cells": cells, "genes": genes, "values_per_cell": float(values),
        "reading": reading, "scaling": scaling, "building": building, "collating": collating,
    }


def in_words(found: dict) -> str:
    """Say in lines for people what `bench_data` measured."""
    lines = [
        f"{found['processor']}, {found['cores']} cores, {found['date']}; {found['cells']:,} cells "
        f"x {found['genes']:,} genes, {found['values_per_cell']:.0f} expressed in a cell, sorted "
        f"by a label; batches of {BATCH}.", "",
        f"{'reader':<34}{'storage':<22}{'cells/s':>9}{'mixing':>8}{'memory':>9}",
    ]
    for row in found["reading"]:
        lines.append(f"{row['reader']:<34}{row['storage']:<22}{row['cells_per_second']:>9,.0f}"
                     f"{row['entropy']:>8.3f}{row['peak_gb']:>6.2f} GB")
    lines += ["", "Mixing is the entropy of the label in a batch, over that in random cells.", ""]
    for row in found["scaling"]:
        lines.append(f"{row['cells']:>9,} cells: {row['microseconds_per_cell']:.1f} microseconds a "
                     f"cell, {row['peak_gb']:.2f} GB at the most")
    made, building = found["collating"], found["building"]
    lines += [
        "", f"A corpus is built at {building['cells_per_second']:,.0f} cells/s and takes "
        f"{building['bytes_per_value']:.2f} bytes a value.",
        f"Making a batch takes {made['milliseconds']:.1f} ms, {made['share']:.0%} of a training "
        f"step of tiny ({made['step_milliseconds']:.1f} ms).",
    ]
    return "\n".join(lines)


def write_cells(path: str | Path, cells: int, genes: int, values: int) -> None:
    """Write made-up cells, sorted by ``label``, as a gzip ``.h5ad``, piece by piece.

    Args:
        path: file to write; one that is there stays.
        cells: number of cells.
        genes: number of genes.
        values: genes that each cell expresses.
    """
    path = Path(path)
    if path.exists():
        return
    label = pd.Categorical.from_codes(np.arange(cells) * LABELS // cells,
                                      [f"type {n}" for n in range(LABELS)])
    names = pd.RangeIndex(cells).astype(str)
    table = anndata.AnnData(obs=pd.DataFrame({"label": label}, index=names),
                            var=pd.DataFrame(index=[f"gene {n}" for n in range(genes)]))
    rng, edges = np.random.default_rng(0), np.linspace(0, genes, values + 1).astype(int)
    with h5py.File(path, "w") as file:
        anndata.io.write_elem(file, "/", table)
        for key in {"X", "raw"} & set(file):  # a note that there is none
            del file[key]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0",
                            "shape": np.array([cells, genes])})
        group["indptr"] = np.arange(cells + 1) * values
        data, indices = (
            group.create_dataset(name, (cells * values,), kind, chunks=(16_384,),
                                 compression="gzip", compression_opts=1)
            for name, kind in (("data", "f4"), ("indices", "i4"))
        )
        for first in range(0, cells, 10_000):
            count = min(10_000, cells - first)
            here = slice(first * values, (first + count) * values)
            data[here] = rng.geometric(0.5, count * values).astype("f4")
            indices[here] = rng.integers(edges[:-1], edges[1:], (count, values)).ravel()


def measure_collating(path: Path) -> dict:
    """Time how long a batch takes to make, and a whole training step of ``tiny`` beside it."""
    preset = config.PRESETS["tiny"]
    training = preset.training
    data = corpus.gather(path, preset.model.panel_size, None, None, training, stream=True)
    with optimize.reproducible():
        model = CellVQ(preset.model, data.panel)
        optimizer = optimize.make_optimizer(model, training)
        made, whole = [], []
        for step in range(40):
            start = time.perf_counter()
            shown = train.training_batch(data, training, training.batch_size, step, 0)
            made.append(time.perf_counter() - start)
            optimizer.zero_grad()
            with optimize.autocast(model, training.precision):
                loss = objective.pretraining_loss(model(shown, 0.5), shown, training)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()
            whole.append(time.perf_counter() - start)
    made, whole = 1000 * float(np.median(made[5:])), 1000 * float(np.median(whole[5:]))
    return {"milliseconds": made, "step_milliseconds": whole, "share": made / whole}


def measure(batches: Batches, cells: int) -> dict:
    """Time batches as they come, made into tokens; the first window is not counted.

    Args:
        batches: the batches of one reader, without end.
        cells: cells of the file, sorted by the label.

    Returns:
        ``cells_per_second``, ``entropy`` and ``peak_gb``.
    """
    labels, rng = np.arange(cells) * LABELS // cells, np.random.default_rng(0)
    numbers, start, seen = [], 0.0, 0
    for place, (counts, which) in enumerate(batches):
        if place == 1:
            start = time.perf_counter()
        loader.make_batch(counts)
        if place >= 1:
            seen += len(which)
            numbers.append(which)
            # Whole windows are read ahead, so that little is told by less than several of them.
            enough = seen >= min(max(2 * cells, 50_000), 1_000_000)
            if enough or time.perf_counter() - start > (2 if seen < 5000 else 6) * SECONDS:
                break
    seconds = time.perf_counter() - start
    shown = [which for which in numbers if len(which) == BATCH][:2000]
    random = [rng.choice(cells, BATCH, replace=False) for _ in range(2000)]
    mixed, best = (step_entropy(labels[np.stack(some)]).mean() for some in (shown, random))
    return {"cells_per_second": seen / seconds, "entropy": float(mixed / best),
            "peak_gb": peak_memory(torch.device("cpu")) / 1e9}


def ours(path: Path) -> Batches:
    """Read shuffled blocks, as training does."""
    sources = corpus.open_all(path)
    together = Joined(sources, list(sources[0].var.index))
    stream = Stream(together, np.ones(len(together), bool), BATCH, seed=0)
    number = np.arange(len(together))
    if "cell" in sources[0].columns:  # a corpus is shuffled: its cells have their old names
        number = sources[0].column("cell").astype(int).to_numpy()
    for step in itertools.count():
        rows = stream.step(step)
        yield rows.counts, number[rows.cells]


def backed(path: Path, in_order: bool = False) -> Batches:
    """Read random cells, or cells in order, as AnnData does from a backed file."""
    cells, rng = anndata.read_h5ad(path, backed="r"), np.random.default_rng(0)
    for place in itertools.count():
        rows = np.arange(place * BATCH, (place + 1) * BATCH) % cells.n_obs
        if not in_order:
            rows = rng.choice(cells.n_obs, BATCH, replace=False)
        rows.sort()
        yield cells[rows].to_memory().X, rows


def annloader(path: Path) -> Batches:
    """Read with the loader that anndata has for torch."""
    from anndata.experimental import AnnLoader

    cells = anndata.read_h5ad(path, backed="r")
    cells.obs["number"] = np.arange(cells.n_obs)
    batches = AnnLoader(cells, batch_size=BATCH, shuffle=True, use_cuda=False)
    for batch in itertools.chain.from_iterable(itertools.repeat(batches)):
        yield np.asarray(batch.X), np.asarray(batch.obs["number"]).astype(int)


def scdataset(path: Path) -> Batches:
    """Read shuffled blocks with scDataset (arXiv 2506.01883), as large a window as ours."""
    from scdataset import BlockShuffling, scDataset

    cells = anndata.read_h5ad(path, backed="r")
    batches = scDataset(
        cells, BlockShuffling(block_size=64), batch_size=BATCH, fetch_factor=256, seed=0,
        fetch_callback=lambda data, rows: (data[rows].to_memory().X, rows),
        batch_callback=lambda found, chosen: (found[0][chosen], np.asarray(found[1])[chosen]),
    )
    yield from itertools.chain.from_iterable(itertools.repeat(batches))


READERS: dict[str, tuple[Callable[[Path], Batches], str, tuple[str, ...]]] = {
    "CellVQ": (ours, "gzip h5ad", ()),
    "CellVQ, a corpus it built": (ours, "sharded zarr", ()),
    "AnnData backed, random cells": (backed, "gzip h5ad", ()),
    "AnnData backed, in order": (lambda path: backed(path, True), "gzip h5ad", ()),
    "AnnLoader": (annloader, "gzip h5ad", ()),
    "scDataset, blocks of 64": (scdataset, "gzip h5ad", ("scdataset",)),
}
"""Name -> how it reads, from what, and which libraries it needs beyond ours."""


def _alone(reader: str, path: Path) -> dict:
    """Measure a reader in a process of its own."""
    command = [sys.executable, "-m", "cellvq.databench", reader, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{reader} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def _main() -> None:
    """Measure one reader and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cells = sum(len(source) for source in corpus.open_all(options.path))
    print(json.dumps(measure(READERS[options.reader][0](options.path), cells)), flush=True)
    os._exit(0)  # readers may leave threads behind that read ahead


if __name__ == "__main__":
    _main()
