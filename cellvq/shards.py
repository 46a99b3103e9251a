"""A training corpus on the disk: shuffled cells in sharded zarr, with a manifest of where from.

Each shard is an AnnData store of its own (zarr format 3), so that other readers, such as
``anndata.read_zarr`` and annbatch, open it too. `build` makes a corpus, `Shards` reads it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, reading
from cellvq.counts import problem_of
from cellvq.files import flat

FORMAT = 1
"""Version of the layout, written into each manifest."""
MANIFEST = "manifest.json"
"""Name of the file that says what a corpus holds and where it is from."""
CHUNK = 131_072
"""Values that are compressed, and read, together."""


def is_corpus(path: str | Path) -> bool:
    """Whether a path is a folder that `build` wrote."""
    return (Path(path).expanduser() / MANIFEST).is_file()


class Shards:
    """The cells of a corpus that `build` wrote, as a source.

    Args:
        folder: the corpus.

    Raises:
        InputError: it is no corpus, of another version, or parts of it are missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        import zarr

        self.folder = Path(folder).expanduser()
        self.name = self.folder.name
        self.manifest = read_manifest(self.folder)
        with reading.one_line(self.folder):
            genes = pd.read_parquet(self.folder / "genes.parquet").set_index("gene")
            measured = [name for name in genes.columns if name.startswith("measured in part ")]
            self.var, self._measured = genes.drop(columns=measured), genes[measured].to_numpy().T
            groups = [zarr.open_group(self.folder / shard["folder"], mode="r")["X"]
                      for shard in self.manifest["shards"]]
            self._arrays = [(group["data"], group["indices"]) for group in groups]
            self._starts = [group["indptr"][:] for group in groups]
        sizes = [len(starts) - 1 for starts in self._starts]
        named = [shard["cells"] for shard in self.manifest["shards"]]
        if sizes != named or sum(sizes) != self.manifest["cells"]:
            raise InputError(f"{self.folder}: its shards do not hold the cells that {MANIFEST} "
                             "names; build the corpus again")
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        values = self.manifest["values"] / max(len(self), 1)
        self.block = int(np.clip(CHUNK // max(values, 1), 64, 1024))
        self.columns = self.manifest["columns"]

    def __len__(self) -> int:
        return int(self._first[-1])

    def names(self) -> np.ndarray:
        """Return the names that the cells had in their files, [cells]."""
        return self.column("cell").to_numpy()

    def column(self, name: str) -> pd.Series:
        """Return one column of ``obs``, [cells]."""
        from pyarrow import parquet

        with reading.one_line(self.folder):
            path = self.folder / "cells.parquet"
            texts = [field.name for field in parquet.read_schema(path) if field.type == "string"]
            known = [name] if name in texts else None  # by categories, not cell by cell
            return parquet.read_table(path, columns=[name], read_dictionary=known).to_pandas()[name]

    def expressed(self) -> np.ndarray:
        """Return how many genes each cell expresses, [cells]."""
        return np.concatenate([np.diff(starts) for starts in self._starts])

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def known_depth(self) -> np.ndarray:
        """Return each cell's UMI counts over all genes that its file measured, [cells]."""
        return self.column("total_counts").to_numpy(np.float32)

    def read(self, rows: Sequence[range]) -> csr_matrix:
        """Return the UMI counts of ranges of rows, one after the other, float32 [cells, genes]."""
        lengths = self._lengths[flat(rows)]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        values, genes = np.empty(ends[-1], np.float32), np.empty(ends[-1], np.int32)
        filled = 0
        with reading.one_line(self.folder):
            for part in rows:
                start = part.start
                while start < part.stop:
                    shard = int(np.searchsorted(self._first, start, side="right")) - 1
                    first = int(self._first[shard])
                    stop = min(part.stop, int(self._first[shard + 1]))
                    begin, end = self._starts[shard][[start - first, stop - first]].tolist()
                    here = slice(filled, filled + end - begin)
                    data, indices = self._arrays[shard]
                    values[here], genes[here] = data[begin:end], indices[begin:end]
                    filled, start = here.stop, stop
            if problem_of(values) not in (None, "is all zero"):
                raise ValueError("it holds values that are no counts")
            if filled and not 0 <= genes.min() <= genes.max() < len(self.var):
                raise ValueError("a gene's number is out of range")
        return csr_matrix((values, genes, ends), shape=(len(lengths), len(self.var)))

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each cell's part [cells] and which genes each part measured [parts, genes]."""
        return self.column("part").to_numpy(np.int16), self._measured

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return self.expressed()


def read_manifest(folder: str | Path) -> dict:
    """Read what a corpus says of itself.

    Raises:
        InputError: there is no corpus, it is not finished, or of another version.
    """
    folder = Path(folder).expanduser()
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no corpus here ({MANIFEST} is missing); make one with cellvq "
                         "corpus build, or finish it with --resume")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged; build the corpus again") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version}, this CellVQ reads {FORMAT}; build it again")
    return manifest


def write_shard(folder: Path, counts: csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """Write cells as an AnnData store in zarr, sharded and compressed.

    Args:
        folder: where to; it must not exist.
        counts: UMI counts, whole, [cells, genes].
        obs: the cells.
        var: the genes.
    """
    import zarr
    from zarr.codecs import BloscCodec

    store = zarr.open_group(folder, mode="w", zarr_format=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices to programmers of what anndata plans
        anndata.io.write_elem(store, "/", anndata.AnnData(obs=obs, var=var))
    group = store.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0",
                        "shape": list(counts.shape)})
    small = np.uint16 if counts.data.max(initial=0) < 2**16 else np.uint32
    whole = max(-(-counts.nnz // CHUNK), 1) * CHUNK
    packed = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    for name, values in (("data", counts.data.astype(small)), ("indices", counts.indices)):
        group.create_array(name, data=values, chunks=(CHUNK,), shards=(whole,), compressors=packed)
    group.create_array("indptr", data=counts.indptr.astype(np.int64))


def mark_as_collection(folder: Path) -> None:
    """Make a corpus a zarr group that annbatch opens as a shuffled ``DatasetCollection``."""
    import zarr

    zarr.open_group(folder, mode="a", zarr_format=3).attrs.update(
        {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
    )


def describe_shard(folder: Path) -> dict:
    """Say what a shard holds: cells, values and the sha256 of its counts."""
    import zarr

    group, digest = zarr.open_group(folder, mode="r")["X"], hashlib.sha256()
    for name in ("indptr", "indices", "data"):
        array = group[name]
        for first in range(0, array.size, 64 * CHUNK):
            digest.update(np.ascontiguousarray(array[first : first + 64 * CHUNK]))
    return {"folder": folder.name, "cells": group["indptr"].size - 1, "values": group["data"].size,
            "sha256": digest.hexdigest()}
