"""``cellvq corpus build``: many files, or a query of Census, -> one shuffled corpus on the disk.

Two passes. The first looks at every cell once and decides which are left out, and why. The second
reads the others in shuffled blocks and writes them as shards, each a random sample of the whole, so
that training may read the corpus in large pieces. Both can be interrupted and resumed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from tqdm import tqdm

import cellvq
from cellvq import InputError, panels, shards
from cellvq.joined import Joined
from cellvq.sources import Source

SHARD_VALUES = 32_000_000
"""Values other than zero of a shard at the most, which building keeps in memory."""
SCANNED = 4096
"""Rows that the first pass reads together."""
BUILDING, LOOKED = "building.json", "looked.parquet"
"""Files that an unfinished corpus holds, to be resumed from."""
SPARE = ("cell", "source", "part", "total_counts")
"""Columns that a corpus makes itself."""


def build(
    sources: Sequence[Source],
    output: str | Path,
    *,
    panel: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    min_genes: int = 1,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Make a training corpus: shuffled shards, a table of genes, one of cells, and a manifest.

    Args:
        sources: where the cells lie, as `corpus.open_all` opens them.
        output: folder for the corpus.
        panel: the genes to keep; by default all that some source measured.
        columns: columns of ``obs`` to keep, empty in cells of a source that lacks them; by default
            all that some source has.
        min_genes: cells that express fewer genes are left out.
        seed: every draw follows from it.
        resume: go on with a corpus that was interrupted.
        overwrite: replace what is in the folder, if it is a corpus.
        progress: show progress bars.

    Returns:
        The manifest, as in ``manifest.json``: sources with their sha256, genes and cells, what was
        left out and why, shards with their sha256, filters, seed and version.

    Raises:
        InputError: no cell is left, a column is absent, or the folder holds something else.

    Example:
        >>> import tempfile
        >>> from cellvq.simulate import simulate_cells
        >>> from cellvq.sources import Memory
        >>> folder = Path(tempfile.mkdtemp()) / "corpus"
        >>> manifest = build([Memory(simulate_cells(cells=100))], folder, progress=False)
        >>> manifest["cells"], len(shards.Shards(folder))
        (100, 100)
    """
    output = Path(output).expanduser()
    names, places = panels.common_names(sources)
    together = Joined(sources, list(names) if panel is None else list(panel))
    chosen = _columns(sources, columns)
    run = {
        "format": shards.FORMAT, "cellvq": cellvq.__version__, "seed": seed,
        "filters": {"min_genes": min_genes, "copies": "all but the first are left out"},
        "columns": [*SPARE, *chosen], "genes": len(together.panel),
        "panel_sha256": hashlib.sha256("\n".join(together.panel).encode()).hexdigest(),
        "sources": [_describe(source) for source in sources],
    }
    _prepare(output, run, resume, overwrite)
    reasons = _look(together, places, output, min_genes, progress)
    keep = reasons.isna().to_numpy()
    if not keep.any():
        raise InputError(f"no cell is left of {len(keep):,}: {_in_words(reasons)}; check the "
                         "filters")
    made = _write_shards(together, keep, chosen, output, seed, progress)

    owner = np.repeat(np.arange(len(sources)), np.diff(together.starts))
    for number, source in enumerate(run["sources"]):
        mine = reasons[owner == number]
        source |= {"kept": int(mine.isna().sum()), "left_out": mine.value_counts().to_dict()}
    _write_tables(together, reasons, owner, made, output)
    manifest = run | {"cells": int(keep.sum()), "values": sum(shard["values"] for shard in made),
                      "shards": made}
    shards.mark_as_collection(output)
    _write_json(output / shards.MANIFEST, manifest)
    for left in (output / BUILDING, output / LOOKED, *output.glob("dataset_*.parquet")):
        left.unlink(missing_ok=True)
    return manifest


def in_words(manifest: dict) -> str:
    """Say what a corpus holds and what was left out.

    Args:
        manifest: as `build` returns it.
    """
    lines = [f"{manifest['cells']:,} cells x {manifest['genes']:,} genes of "
             f"{len(manifest['sources'])} source(s), in {len(manifest['shards'])} shard(s)."]
    for source in manifest["sources"]:
        why = ", ".join(f"{n:,} {reason}" for reason, n in source["left_out"].items())
        lines.append(f"  {source['name']}: {source['kept']:,} of {source['cells']:,} cells"
                     + (f"; left out: {why}." if why else "."))
    return "\n".join(lines)


def _describe(source: Source) -> dict:
    """Say which source it is: its name, size, and the sha256 of its file."""
    described = {"name": source.name, "cells": len(source), "genes": len(source.var)}
    described |= getattr(source, "provenance", {})
    if (path := getattr(source, "path", None)) is not None:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described |= {"file": Path(path).name, "sha256": digest}
    return described


def _columns(sources: Sequence[Source], columns: Sequence[str] | None) -> list[str]:
    """Choose the columns of ``obs`` to keep: those named, or all that some source has."""
    there = list(dict.fromkeys(name for source in sources for name in source.columns))
    if lacking := [name for name in columns or () if name not in there]:
        raise InputError(f"no column {lacking[0]!r} in obs of any source; there are: "
                         f"{', '.join(there[:20]) or 'none'}")
    return [name for name in (there if columns is None else columns) if name not in SPARE]


def _prepare(output: Path, run: dict, resume: bool, overwrite: bool) -> None:
    """Make the folder ready, or refuse to lose what is in it."""
    begun, finished = output / BUILDING, output / shards.MANIFEST
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: this is a file; name a folder")
    if output.is_dir() and any(output.iterdir()):
        if not (begun.exists() or finished.exists()):
            raise InputError(f"{output}: the folder holds other files; name an empty one")
        if resume and begun.exists() and not finished.exists():
            if json.loads(begun.read_text()) != json.loads(json.dumps(run)):
                raise InputError(f"{output}: holds a corpus begun from other cells or settings; "
                                 "name another folder, or overwrite it")
            return
        if not overwrite:
            raise InputError(f"{output}: holds a corpus; name another folder, resume it if it was "
                             "interrupted, or overwrite it")
        shutil.rmtree(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        _write_json(begun, run)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); choose another place"
                         ) from error


def _look(
    together: Joined, places: list[np.ndarray], output: Path, min_genes: int, progress: bool
) -> pd.Series:
    """Look at all genes of every cell once: why it is left out, or missing where it stays."""
    known = output / LOOKED
    if known.exists():
        return pd.read_parquet(known)["reason"]
    expressed, inside, prints = [], [], []
    with tqdm(total=len(together), unit="cells", desc="looking", disable=not progress) as bar:
        for number, source in enumerate(together.sources):
            of_panel = together.inside(number)
            for first in range(0, len(source), SCANNED):
                rows = source.read([range(first, min(first + SCANNED, len(source)))])
                expressed.append(np.diff(rows.indptr))
                inside.append(rows @ of_panel)
                rows.indices = places[number][rows.indices]  # numbers that all sources share
                prints.append(fingerprints(rows))
                bar.update(rows.shape[0])
    expressed = np.concatenate(expressed)
    reasons = pd.Series(None, index=range(len(expressed)), dtype=object, name="reason")
    reasons[np.concatenate(inside) == 0] = "without a gene of the panel"
    reasons[pd.Series(np.concatenate(prints)).duplicated() & (expressed > 0)] = "copies"
    reasons[(expressed > 0) & (expressed < min_genes)] = f"fewer than {min_genes} genes"
    reasons[expressed == 0] = "empty"
    reasons.to_frame().to_parquet(known)
    return reasons


def fingerprints(counts: csr_matrix) -> np.ndarray:
    """Give cells with equal counts in all genes equal numbers, others different ones, [cells].

    Args:
        counts: UMI counts, [cells, genes].

    Example:
        >>> found = fingerprints(csr_matrix([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]))
        >>> bool(found[0] == found[2]), bool(found[0] == found[1])
        (True, False)
    """
    # A sum of well-mixed 64-bit numbers (the finaliser of splitmix64), one for each gene and count.
    mixed = counts.indices.astype(np.uint64) << np.uint64(32)
    mixed = (mixed | counts.data.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(mixed ^ (mixed >> np.uint64(31)))])
    return sums[counts.indptr[1:]] - sums[counts.indptr[:-1]]


def _write_shards(
    together: Joined, keep: np.ndarray, columns: Sequence[str], output: Path, seed: int,
    progress: bool,
) -> list[dict]:
    """Write the cells that stay, block-shuffled, in shards; those that are there already stay."""
    blocks = np.concatenate([
        np.arange(first, last, source.block) for source, first, last in zip(
            together.sources, together.starts[:-1], together.starts[1:], strict=True)
    ])
    blocks = np.random.default_rng([seed, 7]).permutation(np.stack(
        [blocks, np.append(blocks[1:], len(keep))], axis=1))
    stored = np.concatenate([[0], np.cumsum(np.concatenate(
        [source.expressed() for source in together.sources]) * keep)])
    values = np.cumsum(stored[blocks[:, 1]] - stored[blocks[:, 0]])
    count = max(-(-int(values[-1]) // SHARD_VALUES), 1)
    of_shard = np.minimum((values - 1) * count // max(int(values[-1]), 1), count - 1)
    obs = {name: together.column(name, everywhere=False) for name in columns}
    made, names = [], np.concatenate([source.names() for source in together.sources])
    bar = tqdm(total=int(keep.sum()), unit="cells", desc="writing", disable=not progress)
    for number in range(count):
        folder = output / f"dataset_{number}"
        record = output / f"dataset_{number}.parquet"
        mine = blocks[of_shard == number]
        if not record.exists():
            rows = together.read([range(*pair) for pair in mine[np.argsort(mine[:, 0])].tolist()])
            order = np.random.default_rng([seed, 8, number]).permutation(
                np.flatnonzero(keep[rows.cells]))
            cells = rows.cells[order]
            source = np.searchsorted(together.starts, cells, side="right") - 1
            table = pd.DataFrame({
                "cell": names[cells].astype(str),
                "source": pd.Categorical.from_codes(source, [s.name for s in together.sources]),
                "part": together.part[cells],
                "total_counts": rows.depth[order].astype(np.int64),
            } | {name: column[cells] for name, column in obs.items()})
            shutil.rmtree(folder, ignore_errors=True)
            index = pd.Index([f"{number}-{place}" for place in range(len(cells))])
            try:
                shards.write_shard(folder, rows.counts[order], table.set_index(index),
                                   pd.DataFrame(index=together.panel))
                table.to_parquet(record)
            except OSError as error:
                raise InputError(f"{folder}: cannot be written ({error.strerror or error}); make "
                                 "room, and go on with --resume") from error
        made.append(shards.describe_shard(folder))
        bar.update(made[-1]["cells"])
    bar.close()
    return made


def _write_tables(
    together: Joined, reasons: pd.Series, owner: np.ndarray, made: list[dict], output: Path
) -> None:
    """Write the tables of genes, of cells in the order of the shards, and of cells left out."""
    import pyarrow
    from pyarrow import parquet

    names = [source.name for source in together.sources]
    genes = pd.DataFrame({"gene": together.panel} | {
        f"measured in part {number}": row for number, row in enumerate(together.measured)
    })
    genes.to_parquet(output / "genes.parquet")
    writer = None
    for shard in made:  # piece by piece: a large corpus has more cells than fit
        table = parquet.read_table(output / f"{shard['folder']}.parquet")
        texts = [field.with_type(pyarrow.string()) if pyarrow.types.is_dictionary(field.type)
                 else field for field in table.schema]
        table = table.cast(pyarrow.schema(texts))
        writer = writer or parquet.ParquetWriter(output / "cells.parquet", table.schema)
        writer.write_table(table)
    writer.close()
    left = np.flatnonzero(reasons.notna())
    cells = np.concatenate([source.names() for source in together.sources])
    pd.DataFrame({
        "source": np.array(names)[owner[left]], "cell": cells[left].astype(str),
        "reason": reasons.to_numpy()[left].astype(str),
    }).to_csv(output / "left_out.csv", index=False)


def _write_json(path: Path, values: dict) -> None:
    """Write a file whole or not at all."""
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(values, indent=1), encoding="utf-8")
    beside.replace(path)


def _in_words(reasons: pd.Series) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in reasons.value_counts().items())
