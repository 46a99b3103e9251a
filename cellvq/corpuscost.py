"""What a large corpus costs in disk, download and hours, computed from rates that were measured.

The rates are those that ``cellvq bench data --json`` writes. What was not measured is missing in
the tables, and nothing is estimated in its place.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq import InputError

READING = ("reader", "storage", "cells_per_second", "entropy", "peak_gb")
"""Columns of a table of readers."""
PASSES = 2
"""How often building reads each cell, once to look at it and once to write it."""
OURS, SHARDED = "CellVQ", "zarr"
"""Beginning of the reader's name, and part of its storage's, where a built corpus is read."""


def recorded(path: str | Path) -> dict:
    """Read what ``cellvq bench data --json`` measured; empty where nothing was.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged; measure again with cellvq bench data --json") from error
    if not isinstance(measured, dict):
        raise InputError(f"{path}: holds no measurements; make them with cellvq bench data --json")
    return measured


def readers(measured: dict) -> pd.DataFrame:
    """List the readers that were measured, the fastest first.

    Args:
        measured: as `recorded` returns it.

    Returns:
        One row a reader and storage: reader, storage, cells_per_second, entropy (of a label that is
        sorted in the file, within a step, over that of random cells), peak_gb.
    """
    table = pd.DataFrame(measured.get("reading", []), columns=list(READING))
    return table.sort_values("cells_per_second", ascending=False, ignore_index=True)


def rebuilding(
    measured: dict, *, cells: float, genes_per_cell: float, bytes_per_cell: float, network: float
) -> pd.DataFrame:
    """Compute what it costs to build a corpus of the Census and to read it once.

    Rates are carried over by the value (a gene that a cell expresses), not by the cell, as cells of
    the measurement may express more or fewer genes.

    Args:
        measured: as `recorded` returns it.
        cells: cells of the corpus.
        genes_per_cell: genes that a cell expresses, on average.
        bytes_per_cell: size of a cell where it is downloaded from, bytes.
        network: speed of the network, MB/s.

    Returns:
        Index values, download, download_hours, disk, building_hours, reading_hours; columns what,
        cost (missing where it was not measured), unit, how.

    Example:
        >>> found = rebuilding({}, cells=1e6, genes_per_cell=2000, bytes_per_cell=4000, network=100)
        >>> found["cost"].dropna().round(3).to_dict()
        {'values': 2.0, 'download': 8.0, 'download_hours': 0.022}
    """
    building, table = measured.get("building", {}), readers(measured)
    ours = table[table["reader"].astype(str).str.startswith(OURS)
                 & table["storage"].astype(str).str.contains(SHARDED)]
    values = cells * genes_per_cell
    download = PASSES * cells * bytes_per_cell
    rate = ours["cells_per_second"].max() * measured.get("values_per_cell", np.nan)
    rows = {
        "values": ("values other than zero", values / 1e9, "billion", "cells x genes of a cell"),
        "download": ("download", download / 1e9, "GB", f"{PASSES} x cells x bytes of a cell"),
        "download_hours": ("time of the download", download / (1e6 * network) / 3600, "hours",
                           "GB / speed of the network"),
        "disk": ("disk", values * building.get("bytes_per_value", np.nan) / 1e9, "GB",
                 "values x bytes of a value"),
        "building_hours": ("building from local files",
                           values / building.get("values_per_second", np.nan) / 3600, "hours",
                           "values / values a second"),
        "reading_hours": ("one epoch of reading", values / rate / 3600, "hours",
                          "values / values a second"),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["what", "cost", "unit", "how"])


def in_words(cost: float, unit: str) -> str:
    """Write a cost for people.

    Example:
        >>> in_words(1234.5, "GB"), in_words(0.25, "hours"), in_words(float("nan"), "GB")
        ('1,234 GB', '0.25 hours', 'not measured')
    """
    if np.isnan(cost):
        return "not measured"
    return f"{cost:,.0f} {unit}" if cost >= 10 else f"{cost:.2g} {unit}"
