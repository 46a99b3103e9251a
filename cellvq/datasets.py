"""Cells by name or by path, always in one form: raw counts in ``X``, labels in ``obs``."""

import hashlib
import os
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from cellvq import InputError, genes, reading, simulate

REGISTRY_COLUMNS = (
    "name", "url", "sha256", "bytes", "reader", "licence", "terms", "citation", "cells", "genes",
    "labels", "study", "species", "tissue",
)


def names() -> pd.DataFrame:
    """List the data sets that can be loaded by name: the registry and what is on this machine.

    Returns:
        One row a data set, the columns of ``REGISTRY_COLUMNS`` and ``here`` (bool: it can be
        loaded now; the checksum is compared when it is).

    Example:
        >>> table = names().set_index("name")
        >>> table.loc["pbmc68k_reduced", ["reader", "licence"]].tolist()
        ['scanpy', 'BSD-3 (scanpy)']
    """
    # The registry lies beside the package in a clone, and inside it once installed.
    folder = Path(__file__).resolve().parent
    file = next(
        path for path in (folder / "registry.csv", folder.parent / "data" / "registry.csv")
        if path.exists()
    )
    table = pd.read_csv(file, keep_default_na=False)[list(REGISTRY_COLUMNS)]
    return table.assign(here=[
        reader != "h5ad" or _find(name) is not None
        for name, reader in zip(table["name"], table["reader"], strict=True)
    ])


def is_name(text: str) -> bool:
    """Whether a text names a data set of the registry, and not a file.

    Example:
        >>> is_name("simulated"), is_name("simulated.h5ad")
        (True, False)
    """
    return str(text) in set(names()["name"])


def data_dirs() -> list[Path]:
    """List the folders in which data sets are looked for, first $CELLVQ_DATA, then the user cache.

    Each holds ``h5ad/<name>.h5ad``. ``$CELLVQ_CACHE`` puts the cache elsewhere.
    """
    given = os.environ.get("CELLVQ_DATA")
    cache = os.environ.get("CELLVQ_CACHE")
    if not cache:
        import platformdirs

        cache = platformdirs.user_cache_dir("cellvq", appauthor=False)
    return [Path(folder).expanduser() for folder in (given, cache) if folder]


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
        return canonical(_recover_pbmc68k(), name)
    if reader == "simulate":
        return canonical(simulate.simulate_cells(), name)
    return canonical(reading.read(_verified(name, table.loc[name])), name)


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
            f"column {column!r} names {len(donors)} donor; a split by donor needs at least two"
        )
    held_donors = int(np.clip(round(fraction * len(donors)), 1, len(donors) - 1))
    order = np.random.default_rng(seed).permutation(len(donors))
    held = np.isin(codes, order[:held_donors])
    return (codes >= 0) & ~held, held


def _find(name: str) -> Path | None:
    """Find the file of a data set in the folders for data."""
    places = (folder / "h5ad" / f"{name}.h5ad" for folder in data_dirs())
    return next((path for path in places if path.is_file()), None)


def _verified(name: str, row: pd.Series) -> Path:
    """Find the file of a data set and compare its checksum with the registry's."""
    path = _find(name)
    if path is None:
        raise InputError(
            f"data set {name} is not on this machine; put {name}.h5ad into "
            f"{data_dirs()[0] / 'h5ad'}, or set CELLVQ_DATA to the folder above its h5ad/"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != row["sha256"]:
        raise InputError(
            f"{path} is not the registered {name} (SHA-256 {digest[:12]}... instead of "
            f"{row['sha256'][:12]}...); replace the file, or load your own under another name"
        )
    return path


def _recover_pbmc68k() -> anndata.AnnData:
    """Take the counts back out of scanpy's bundled cells, which hold log-normalised values.

    They were divided by the cell's total, brought to 10,000 and stored with three decimals, so that
    what comes back lies close to whole numbers; rounding is then exact.
    """
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file was written by an old anndata
        cells = scanpy.datasets.pbmc68k_reduced()
    depth = cells.obs["n_counts"].to_numpy(dtype=np.float64)
    values = np.expm1(cells.raw.X.toarray().astype(np.float64)) * depth[:, None] / 1e4
    counts = np.rint(values)
    deviation = np.abs(values - counts).max()
    if deviation > 0.1:
        raise InputError(
            f"pbmc68k_reduced: scanpy's file gives no whole counts (off by {deviation:.2f}); use "
            "the scanpy version of constraints.txt"
        )
    obs = cells.obs.rename(columns={"bulk_labels": "cell_type"}).drop(columns="n_counts")
    obs["total_counts"] = depth
    obs = obs[["cell_type", "louvain", "phase", "total_counts", "n_genes", "percent_mito"]]
    return anndata.AnnData(
        X=counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=cells.raw.var_names)
    )
