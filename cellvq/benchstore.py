"""Entries and results of a benchmark as files, so that an interrupted one goes on where it stopped.

A file is there whole or not at all, holds no pickle, and is read only by the key of what it was
made of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq.entries import Entry, Results

TABLES = ("calls", "scores", "losses")


def write_entry(entry: Entry, folder: Path, key: str) -> None:
    """Write an entry, whole or not at all.

    Args:
        entry: the entry.
        folder: where entries are kept.
        key: what it was made of; only the same key reads it again.
    """
    arrays = {"vectors": entry.vectors, "codes": entry.codes}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    if "codes" in arrays:
        arrays["codes"] = np.asarray(arrays["codes"]).astype(str)
    facts = {each.name: getattr(entry, each.name) for each in dataclasses.fields(entry)
             if each.name not in ("vectors", "codes")}
    with whole(entry_path(folder, entry.method, entry.seed)) as partial:
        np.savez(partial, key=np.array(key), facts=np.array(json.dumps(facts)), **arrays)


def read_entry(folder: Path, method: str, seed: int, key: str) -> Entry | None:
    """Read an entry that was made of the same; None where there is none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_entry(Entry("PCA", 0, np.zeros((3, 2))), folder, "as then")
        >>> read_entry(folder, "PCA", 0, "as then").vectors.shape
        (3, 2)
        >>> read_entry(folder, "PCA", 0, "otherwise") is None
        True
    """
    try:
        with np.load(entry_path(folder, method, seed), allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            facts = json.loads(str(stored["facts"]))
            vectors = stored["vectors"] if "vectors" in stored else None
            codes = stored["codes"].astype(object) if "codes" in stored else None
        return Entry(**facts, vectors=vectors, codes=codes)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None  # damaged or of another version: it is made again


def write_results(results: Results, path: Path, key: str) -> None:
    """Write the results of a task as one file, whole or not at all."""
    with whole(path) as partial, zipfile.ZipFile(partial, "w") as kept:
        kept.writestr("facts.json", json.dumps({"key": key, "notes": results.notes}))
        for name in TABLES:
            kept.writestr(f"{name}.parquet", getattr(results, name).to_parquet())


def read_results(path: Path, key: str) -> Results | None:
    """Read results that were made of the same; None where there are none.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "task.zip"
        >>> write_results(Results(notes=["One batch only."]), path, "as then")
        >>> read_results(path, "as then").notes, read_results(path, "otherwise")
        (['One batch only.'], None)
    """
    try:
        with zipfile.ZipFile(path) as kept:
            facts = json.loads(kept.read("facts.json"))
            if facts["key"] != key:
                return None
            tables = {name: pd.read_parquet(io.BytesIO(kept.read(f"{name}.parquet")))
                      for name in TABLES}
        return Results(**tables, notes=facts["notes"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file beside its place, and put it there when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def entry_path(folder: Path, method: str, seed: int) -> Path:
    """Where an entry is kept; two methods never share a place.

    Example:
        >>> entry_path(Path("entries"), "CellVQ, zero-shot", 1).name
        'cellvq-zero-shot-483e13-1.npz'
    """
    return Path(folder) / f"{slug(method)}-{seed}.npz"


def slug(method: str) -> str:
    """A name fit for a file, with a piece of its hash, since names may differ in signs only."""
    plain = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")[:40]
    return f"{plain}-{hashlib.sha256(method.encode()).hexdigest()[:6]}"
