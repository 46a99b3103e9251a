"""Files of cells -> AnnData, and one clear line where a file cannot be read."""

import warnings
from pathlib import Path

import anndata
import h5py

from cellvq import InputError


def read(path: str | Path) -> anndata.AnnData:
    """Read cells from an ``.h5ad`` file or a 10x ``.h5`` file.

    Raises:
        InputError: There is no such file, or it is a folder, cut off, or of another format.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: there is no such file; check the spelling and the folder")
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name the .h5ad file itself")
    try:
        with path.open("rb") as file:
            is_hdf5 = file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check permissions") from error
    if not is_hdf5:
        raise InputError(
            f"{path}: this is not an .h5ad file; write one with cells.write_h5ad() of anndata"
        )
    try:
        with h5py.File(path) as file:
            keys = set(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `check` tells of repeated names in its own words
            if {"obs", "var"} <= keys:
                return anndata.read_h5ad(path)
            if "matrix" in keys:
                import scanpy

                return scanpy.read_10x_h5(path)
    except MemoryError:
        raise
    except Exception as error:  # readers fail in many ways on a file that was cut off or altered
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise InputError(
            f"{path}: the file is damaged or cut off ({reason}); copy or download it again"
        ) from error
    raise InputError(
        f"{path}: this HDF5 file holds no AnnData (it has no obs and var); write one with "
        "cells.write_h5ad() of anndata"
    )
