"""What is known beforehand: gene sets, regulons, markers of cell types and the Cell Ontology.

Tables come from the folders for data (see ``cellvq.registry``) or from a file of your own; nothing
is downloaded here. All of them are about human genes, by symbol.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq import InputError, genetables, registry
from cellvq.genes import describe_names, match, some
from cellvq.tablefiles import need, numbers, own_file, read_text_table, refuse

GENE_SETS = {
    "hallmark": "`cellvq fetch hallmark` brings it",
    "go": "`cellvq fetch go` brings it",
    "reactome": "save a GMT file of Reactome, as MSigDB offers it, as {path}",
}
REGULONS = {
    "collectri": "save `decoupler.op.collectri()[['source', 'target', 'weight']]` as {path}",
}
MARKERS = {
    "sctype": "save ScTypeDB_full.xlsx of ScType as a table parted by tabs, as {path}",
    "accordion": "save the table of markers of Cell Marker Accordion, parted by tabs, as {path}",
}
FILES = {
    "reactome": "reactome_msigdb_v6.0.gmt", "collectri": "collectri.tsv.gz",
    "sctype": "markers_sctype.tsv.gz", "accordion": "markers_accordion.tsv.gz",
}
"""Files below ``knowledge/`` that have no pinned address, and so no line in the registry."""
SPELLINGS = {
    r"naive (cd[48]-positive) t cell": r"naive thymus-derived \1, alpha-beta t cell",
    r"memory (cd[48]-positive) t cell": r"\1, alpha-beta memory t cell",
    r"effector (cd[48]-positive) t cell": r"effector \1, alpha-beta t cell",
    r"γδ-t cell": "gamma-delta t cell", r"plasma b cell": "plasma cell",
}
"""How the Cell Ontology writes what others write shorter, in small letters."""
TRUE, FALSE = ("true", "1", "yes", "positive", "+"), ("false", "0", "no", "negative", "-")


@dataclass(frozen=True)
class Knowledge:
    """Everything known on this machine, as tables that may be empty."""

    gene_sets: pd.DataFrame
    """See :func:`gene_sets`; Hallmark and Reactome."""
    regulons: pd.DataFrame
    """See :func:`regulons`."""
    markers: pd.DataFrame
    """See :func:`markers`."""
    ontology: pd.DataFrame
    """See :func:`ontology`; without it the broader types of :func:`markers` take its place."""
    missing: list[str]
    """What is not here, a sentence each that says how to get it."""


def gene_sets(source: str | Path = "hallmark") -> pd.DataFrame:
    """Read gene sets by name or from a GMT file.

    Args:
        source: ``hallmark`` (doi 10.1016/j.cels.2015.12.004), ``reactome``, ``go`` (biological
            processes) or the path of a ``.gmt`` file: name, description and genes of a set in each
            line, parted by tabs.

    Returns:
        One row a gene of a set: ``collection`` (the source's name), ``gene_set``, ``gene`` (str).

    Raises:
        InputError: it is not on this machine, or a line of the file holds no set.
    """
    name = str(source)
    path = _place(name, GENE_SETS) if name in GENE_SETS else own_file(source, (".gmt",))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({type(error).__name__}); give a "
                         "GMT file") from error
    parts = [line.rstrip().split("\t") for line in lines]
    bad = [n for n, part in enumerate(parts, 1) if part != [""] and (len(part) < 3 or not part[0])]
    if bad or not any(part[0] for part in parts):
        where = f"line {bad[0]}" if bad else "the file"
        raise InputError(f"{path}: {where} holds no gene set; a GMT line is a name, a description "
                         "and genes, parted by tabs")
    sets = [part for part in parts if part != [""]]
    table = pd.DataFrame({
        "collection": name if name in GENE_SETS else path.stem,
        "gene_set": np.repeat([part[0] for part in sets], [len(part) - 2 for part in sets]),
        "gene": [gene.strip() for part in sets for gene in part[2:]],
    })
    return table[table["gene"] != ""].drop_duplicates(ignore_index=True)


def regulons(source: str | Path = "collectri") -> pd.DataFrame:
    """Read which genes a transcription factor regulates.

    Args:
        source: ``collectri`` (doi 10.1093/nar/gkad841) or the path of a ``.csv`` or ``.tsv`` file
            with ``regulator`` (or ``source``), ``gene`` (or ``target``) and ``weight``.

    Returns:
        One row a pair: ``regulator``, ``gene`` (str), ``weight`` (positive where the regulator
        activates, negative where it represses).

    Raises:
        InputError: it is not on this machine, or a column or number is missing.
    """
    name = str(source)
    path = _place(name, REGULONS) if name in REGULONS else own_file(source)
    table = read_text_table(path).rename(columns={"source": "regulator", "target": "gene"})
    need(table, path, ["regulator", "gene", "weight"])
    table["weight"] = numbers(table["weight"], path, "weight")
    table = table[["regulator", "gene", "weight"]]
    return table.drop_duplicates(["regulator", "gene"], ignore_index=True)


def markers(source: str | Path = "blood", tissue: str = "blood") -> pd.DataFrame:
    """Read which genes mark a cell type, and which it should not have.

    Args:
        source: ``blood`` (written for CellVQ, part of the package), ``sctype`` (doi
            10.1038/s41467-022-28803-w), ``accordion`` (doi 10.1038/s41467-025-60900-4; genes that
            two of its sources name) or the path of a ``.csv`` or ``.tsv`` file with ``cell_type``
            and ``gene``, and if you like ``cell_type_id``, ``broader`` (the type of the table under
            which this one falls), ``positive``, ``weight``.
        tissue: of ``sctype`` and ``accordion``, which markers to take: those of the tissue, and
            those of immune cells, which are everywhere.

    Returns:
        One row a gene of a type: ``cell_type``, ``cell_type_id`` (Cell Ontology, or empty),
        ``broader``, ``gene`` (str), ``positive`` (bool), ``weight`` (float, above 0), ``source``.

    Raises:
        InputError: it is not on this machine, or a line cannot be used.

    Example:
        >>> table = markers("blood")
        >>> table.query("cell_type == 'B cell' and positive")["gene"].head(3).tolist()
        ['CD79A', 'CD79B', 'MS4A1']
    """
    name = str(source)
    if name in MARKERS:
        path = _place(name, MARKERS)
        try:
            table = getattr(genetables, name)(read_text_table(path), tissue)
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: does not hold what it should ({error}); "
                             f"{MARKERS[name].format(path=path)}") from error
        table["gene"] = _approved(table["gene"])
        table["cell_type_id"] = _identifiers(table)
    else:
        path = _blood() if name == "blood" else own_file(source)
        table = read_text_table(path)
        need(table, path, ["cell_type", "gene"])
        for column in {"cell_type_id", "broader"} - set(table):
            table[column] = ""
        said = table["positive"].str.lower() if "positive" in table else "true"
        table["positive"] = pd.Series(said, table.index)
        refuse(~table["positive"].isin(TRUE + FALSE), path, "positive", table["positive"],
                "write true or false")
        table["positive"] = table["positive"].isin(TRUE)
        weight = table["weight"] if "weight" in table else pd.Series("1", table.index)
        table["weight"] = numbers(weight, path, "weight")
        refuse(table["weight"] <= 0, path, "weight", weight, "give a number above 0")
        name = name if name == "blood" else path.stem
    columns = ["cell_type", "cell_type_id", "broader", "gene", "positive", "weight"]
    table = table[columns].assign(source=name)
    return table.drop_duplicates(["cell_type", "gene"], ignore_index=True)


def ontology() -> pd.DataFrame:
    """Read the Cell Ontology (doi 10.1186/s13326-016-0088-7).

    Returns:
        One row a cell type: ``id``, ``name``, ``parents`` (str, several are parted by ``|``).

    Raises:
        InputError: it is not on this machine.
    """
    table = registry.table("cell_ontology")
    return table[~table["name"].str.startswith("obsolete")].reset_index(drop=True)


def available(tissue: str = "blood") -> Knowledge:
    """Gather what is on this machine; what is missing is said and is no error.

    Args:
        tissue: of the cells, such as ``blood (PBMC)``, ``lung``; chooses the markers. For blood
            they are those of the package, for other tissues those of ScType.
    """
    missing = []

    def attempt(read, *arguments) -> pd.DataFrame | None:
        try:
            return read(*arguments)
        except InputError as error:
            missing.append(str(error))
            return None

    sets = [attempt(gene_sets, name) for name in ("hallmark", "reactome")]
    sets = [table for table in sets if table is not None]
    factors = attempt(regulons)
    marks = None if genetables.is_immune(tissue) else attempt(markers, "sctype", tissue)
    marks = markers("blood") if marks is None else marks
    kinds = attempt(ontology)
    return Knowledge(
        pd.concat(sets, ignore_index=True) if sets else pd.DataFrame(
            columns=["collection", "gene_set", "gene"], dtype=str),
        pd.DataFrame(columns=["regulator", "gene", "weight"]) if factors is None else factors,
        marks,
        small_ontology(marks) if kinds is None else kinds,
        missing,
    )


def small_ontology(markers: pd.DataFrame) -> pd.DataFrame:
    """Make the table of :func:`ontology` from the broader types that a marker table names.

    Example:
        >>> small_ontology(globals()["markers"]("blood")).set_index("name").loc["naive B cell"]
        id         CL:0000788
        parents    CL:0000236
        Name: naive B cell, dtype: object
    """
    types = markers.drop_duplicates("cell_type")
    ids = types.set_index("cell_type")["cell_type_id"]
    table = pd.DataFrame({"id": types["cell_type_id"], "name": types["cell_type"],
                          "parents": types["broader"].map(ids).fillna("")})
    return table[table["id"] != ""].reset_index(drop=True)


def why_foreign(genes: Sequence[str], organism: str | None = None) -> str:
    """Say why knowledge of human symbols does not fit these genes; an empty text where it does.

    Args:
        genes: names of the measured genes.
        organism: what the cells say of themselves, such as ``uns["organism"]``; it counts for more
            than how the names look.

    Example:
        >>> why_foreign(["Cd3d", "Actb", "Gapdh"])
        'the genes look like those of mouse (Cd3d, Actb, Gapdh) and the tables are of human genes'
        >>> why_foreign(["CD3D", "ACTB", "GAPDH"])
        ''
    """
    kind, looks = describe_names(genes)
    told = (organism or "").strip().lower()
    if kind != "symbols":
        named = "numbers" if kind == "numbers" else "Ensembl identifiers"
        return f"the genes are named by {named} ({some(genes)}) and the tables by symbols"
    if told and not re.search(r"human|homo sapiens|9606", told):
        return f"the cells are of {told} and the tables are of human genes"
    if looks == "mouse" and not told:
        return (f"the genes look like those of {looks} ({some(genes)}) and the tables are of human "
                "genes")
    return ""


def _place(name: str, remedies: dict[str, str]) -> Path:
    """Where a table of ours lies; registered ones are verified."""
    if name not in FILES:
        return registry.verified(name)
    paths = [folder / "knowledge" / FILES[name] for folder in registry.folders()]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        remedy = remedies[name].format(path=_short(paths[-1]))
        raise InputError(f"{name} is not on this machine; {remedy}, or give a file of your own")
    return found


def _short(path: Path) -> str:
    """A path as a user writes it, without the name of the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _blood() -> Path:
    """The package's own markers: beside the registry."""
    folder = Path(__file__).resolve().parent
    places = (folder / "markers_blood.csv", folder.parent / "data" / "markers_blood.csv")
    return next(path for path in places if path.exists())


def _identifiers(table: pd.DataFrame) -> pd.Series:
    """Cell Ontology ids by exact name, after a plural and a ``+`` are written as the ontology does.

    Names that the ontology does not have in these very words stay without one.
    """
    try:
        known = ontology()
    except InputError:
        return table["cell_type_id"]
    ids = known.drop_duplicates("name").set_index("name")["id"]
    ids.index = ids.index.str.lower()
    plain = table["cell_type"].str.lower().str.replace(r"\s+", " ", regex=True)
    plain = plain.str.replace("+", "-positive", regex=False)
    single = plain.str.replace(r"s$", "", regex=True)
    for short, long in SPELLINGS.items():
        single = single.str.replace(f"^{short}$", long, regex=True)
    return table["cell_type_id"].where(table["cell_type_id"] != "",
                                       plain.map(ids).fillna(single.map(ids)).fillna(""))


def _approved(symbols: pd.Series) -> pd.Series:
    """Approved symbols of names like CD20, where the table of HGNC is on this machine."""
    if registry.find("hgnc") is None:
        return symbols
    names = symbols.unique()
    table = registry.table("hgnc")
    found = match(names, table["symbol"], table).set_index("name")["gene"]
    return symbols.map(found[found != ""]).fillna(symbols)
