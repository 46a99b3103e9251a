"""Cells by name or by path, always in one form: raw counts in ``X``, labels in ``obs``."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import anndata
import filelock
import numpy as np
import pandas as pd

from cellvq import (
    InputError,
    __version__,
    download,
    genes,
    genetables,
    originals,
    reading,
    registry,
    simulate,
)


def names() -> pd.DataFrame:
    """List the data sets that can be loaded by name: the registry and what is on this machine.

    Returns:
        One row a data set, the columns of ``registry.COLUMNS``, with ``cells`` and ``genes`` as
        numbers, and ``here`` (bool: it can be loaded now; the checksum is compared when it is).

    Example:
        >>> table = names().set_index("name")
        >>> table.loc["pbmc68k_reduced", ["reader", "licence"]].tolist()
        ['scanpy', 'BSD-3 (scanpy)']
    """
    table = registry.entries().query("kind == 'cells'").reset_index(drop=True)
    for column in ("cells", "genes"):
        table[column] = pd.to_numeric(table[column]).astype("Int64")
    return table.assign(here=[
        reader in registry.BUILT_IN or registry.find(name) is not None
        for name, reader in zip(table["name"], table["reader"], strict=True)
    ])


def is_name(text: str) -> bool:
    """Whether a text names a data set of the registry, and not a file.

    Example:
        >>> is_name("simulated"), is_name("simulated.h5ad")
        (True, False)
    """
    return str(text) in set(names()["name"])


def fetch(name: str, *, unverified: bool = False, progress: bool = True) -> Path:
    """Bring a data set or gene table onto this machine: download, verify, convert, keep.

    Looked for first is the converted file, then the published ones under ``original/``, both in
    $CELLVQ_DATA and then in the user cache; only what is missing is downloaded. The converted file
    appears whole or not at all, and beside it stands what it was made from.

    Args:
        name: A name in ``registry.entries()``.
        unverified: Whether to accept a published file whose checksum the registry does not know;
            the checksum that was seen is written down.
        progress: Whether to draw progress bars.

    Returns:
        The converted file: canonical cells as ``.h5ad``, or a table.

    Raises:
        InputError: No such name, nothing to download or no checksum to verify it by, or the
            download failed; the message says what to do.

    Example:
        >>> fetch("simulated")
        Traceback (most recent call last):
        cellvq.InputError: simulated needs no file; load it
    """
    known = registry.entry(name)
    if known.reader in registry.BUILT_IN:
        raise InputError(f"{name} needs no file; load it")
    if known.reader == "census":
        raise InputError(f"{name} is too large for one file; `cellvq corpus build` reads from it")
    found, path = registry.find(name), registry.cache() / known.place
    if found is not None and (found != path or registry.is_verified(name, found)):
        return registry.verified(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path, progress):
            if not (path.is_file() and registry.is_verified(name, path)):
                files = [_published(known, file, unverified, progress) for file in known.files]
                _convert(known, files, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make room and check "
            "permissions, or set CELLVQ_CACHE to another folder"
        ) from error
    return path


def load(name_or_path: str | Path) -> anndata.AnnData:
    """Load cells by the name of a data set or by the path of a file.

    Args:
        name_or_path: A name in ``names()``, or the path of an ``.h5ad`` or 10x ``.h5`` file.

    Returns:
        Canonical cells: ``X`` raw UMI counts (CSR float32 [cells, genes]), each gene named once;
        ``obs`` as published, with missing values where a label was empty, and ``total_counts``, the
        depth over all measured genes; ``uns["dataset"]`` the name.

    Raises:
        InputError: No such data set or file, a file that is not the published one, or no raw
            counts in it.

    Example:
        >>> cells = load("pbmc68k_reduced")
        >>> cells.shape, int(cells.X.max()), cells.obs["cell_type"].nunique()
        ((700, 765), 259, 10)
    """
    name = str(name_or_path)
    table = names().set_index("name")
    if name not in table.index:
        path = Path(name).expanduser()
        if not path.exists() and not path.suffix and path.name == name:
            raise InputError(
                f"{name} is neither a file nor a known data set; known are {', '.join(table.index)}"
            )
        return canonical(reading.read(path), path.stem)
    reader = table.loc[name, "reader"]
    if reader == "scanpy":
        return canonical(originals.bundled(), name)
    if reader == "census":
        raise InputError(f"{name} is too large for one file; `cellvq corpus build` reads from it")
    if reader == "simulate":
        return canonical(simulate.simulate_cells(), name)
    return canonical(reading.read(registry.verified(name)), name)


def canonical(cells: anndata.AnnData, name: str) -> anndata.AnnData:
    """Bring cells into the form that every other room expects; see ``load``.

    Example:
        >>> cells = anndata.AnnData(np.array([[0.0, 3.0], [1.0, 2.0]], dtype="float32"))
        >>> cells.obs["cell_type"] = ["T cell", ""]
        >>> canonical(cells, "mine").obs["cell_type"].isna().tolist()
        [False, True]
    """
    try:
        counts, _ = genes.find_counts(cells)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    var = cells.var.copy()
    if not cells.var_names.is_unique:
        var = var[~cells.var_names.duplicated()]
        counts, _ = genes.align(list(cells.var_names), counts, var.index)
    obs = cells.obs.copy()
    for column in obs.columns[[not pd.api.types.is_numeric_dtype(obs[c]) for c in obs]]:
        values = obs[column].astype(object)
        values = values.where(values.astype(str).str.strip() != "", np.nan)
        obs[column] = values.astype("category")
    obs = obs.dropna(axis="columns", how="all")
    obs["total_counts"] = genes.sequencing_depth(cells, counts)
    result = anndata.AnnData(X=counts, obs=obs, var=var, obsm=dict(cells.obsm), uns=dict(cells.uns))
    result.obs_names_make_unique()
    result.uns["dataset"] = name
    return result


def donor_split(
    cells: anndata.AnnData, column: str = "donor", fraction: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split cells so that no donor is on both sides.

    Args:
        cells: The cells.
        column: Column of ``obs`` with the donor.
        fraction: Share of the donors to hold out; at least one donor is, and one is not.
        seed: Chooses the donors.

    Returns:
        Two bool arrays [cells]: to train on, and held out. A cell of unknown donor is in neither.

    Raises:
        InputError: There is no such column, or fewer than two donors in it.

    Example:
        >>> train, held = donor_split(simulate.simulate_cells(cells=90), fraction=0.5)
        >>> bool((train ^ held).all())
        True
    """
    if column not in cells.obs:
        raise InputError(
            f"there is no column {column!r} in obs to split by; the columns are "
            f"{', '.join(map(str, cells.obs.columns)) or 'none'}"
        )
    codes, donors = pd.factorize(cells.obs[column], sort=True)
    if len(donors) < 2:
        raise InputError(
            f"column {column!r} names {len(donors)} of them; a split by it needs at least two"
        )
    held_donors = int(np.clip(round(fraction * len(donors)), 1, len(donors) - 1))
    order = np.random.default_rng(seed).permutation(len(donors))
    held = np.isin(codes, order[:held_donors])
    return (codes >= 0) & ~held, held


def study_split(
    cells: anndata.AnnData, fraction: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split cells so that no study is on both sides; sets of one study may share cells.

    The study stands in the column ``study``. Where there is none, the registry tells the study of
    each data set that the column ``dataset`` names; a set that it does not know is its own study.

    Args:
        cells: Cells of several studies.
        fraction: Share of the studies to hold out; at least one study is, and one is not.
        seed: Chooses the studies.

    Returns:
        Two bool arrays [cells]: to train on, and held out.

    Raises:
        InputError: There is neither column, or there are fewer than two studies.

    Example:
        >>> cells = simulate.simulate_cells(cells=40)
        >>> cells.obs["dataset"] = ["kang_ifnb_sub", "kang_muscat_example", "pbmc3k", "mine"] * 10
        >>> train, held = study_split(cells)
        >>> sorted(cells.obs["dataset"][train | held].unique()), int(held[0]) == int(held[1])
        (['kang_ifnb_sub', 'kang_muscat_example', 'mine', 'pbmc3k'], True)
    """
    if "study" in cells.obs or "dataset" not in cells.obs:
        return donor_split(cells, "study", fraction, seed)
    study = registry.entries().set_index("name")["study"]
    named = cells.obs["dataset"].astype(str)
    table = pd.DataFrame({"study": named.map(study).fillna(named)}, index=cells.obs_names)
    return donor_split(anndata.AnnData(obs=table), "study", fraction, seed)


@contextlib.contextmanager
def _alone(path: Path, progress: bool) -> Iterator[None]:
    """Let one process at a time make a file; the others wait, and then find it made."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0.1)
    except filelock.Timeout:
        if progress:
            print(f"another process brings {path.name}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _published(
    known: registry.Entry, file: registry.Published, unverified: bool, progress: bool
) -> Path:
    """Find a published file in the folders for data, or download it."""
    if not file.sha256 and not unverified:
        raise InputError(
            f"{known.name}: nobody has verified {file.url}; `cellvq fetch {known.name} "
            "--unverified` downloads it and writes down the SHA-256 that it sees"
        )
    for folder in registry.folders():
        for path in sorted((folder / "original").rglob(file.file)):
            if not file.sha256 or registry.digest(path) == file.sha256:
                return path
    target = registry.cache() / "original" / known.name / file.file
    download.download(
        file.url, target, sha256=file.sha256, size=file.bytes, progress=progress
    )
    return target


def _convert(known: registry.Entry, files: list[Path], path: Path) -> None:
    """Write the converted file and, beside it, what it was made from."""
    made = path.with_name(f".{path.name}")
    try:
        if known.kind == "cells":
            cells = originals.cells(known.name, files)
            for column in known.facts.keys() - set(cells.obs):
                cells.obs[column] = known.facts[column]
            canonical(cells, known.name).write_h5ad(made, compression="gzip")
        elif known.reader in ("tsv", "gmt"):
            shutil.copyfile(files[0], made)
        else:
            table = genetables.read(known.name, files[0])
            table.to_csv(made, sep="\t", index=False, compression={"method": "gzip", "mtime": 0})
        _write_record(known, files, made, path)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _write_record(known: registry.Entry, files: list[Path], made: Path, path: Path) -> None:
    """Write down what a converted file was made from."""
    record = {
        "name": known.name,
        "sha256": registry.digest(made),
        "files": [
            {"url": file.url, "sha256": registry.digest(path), "verified": bool(file.sha256)}
            for file, path in zip(known.files, files, strict=True)
        ],
        "cellvq": __version__,
    }
    registry.record_of(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
