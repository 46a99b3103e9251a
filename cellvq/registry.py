"""The registry: which data sets and gene tables there are, where they lie, what they must hash to.

``data/registry.csv`` holds it; ``data/README.md`` explains its columns. Nothing is downloaded here:
``cellvq.datasets.fetch`` does that.
"""

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cellvq import InputError

COLUMNS = (
    "name", "kind", "url", "sha256", "bytes", "reader", "canonical_sha256", "checked", "licence",
    "terms", "citation", "cells", "genes", "labels", "study", "species", "tissue", "disease",
    "assay",
)
FOLDERS = {"cells": "h5ad", "genes": "knowledge"}
BUILT_IN = ("scanpy", "simulate")  # readers of cells that come with a package, and have no file


@dataclass(frozen=True)
class Published:
    """One file as its authors published it."""

    url: str
    """Pinned address."""
    sha256: str
    """Checksum, or nothing where nobody could compute it."""
    bytes: int
    """Size, or 0 where it is not known."""

    @property
    def file(self) -> str:
        """Name of the file, which stands behind the ``#`` of its address or is its last part."""
        address, _, name = self.url.partition("#")
        return name or address.rstrip("/").rsplit("/", 1)[-1].split("?")[0]


@dataclass(frozen=True)
class Entry:
    """One row of the registry, ready for use."""

    name: str
    """Name of the data set or gene table."""
    kind: str
    """Either ``cells`` or ``genes``."""
    reader: str
    """How the published files are read; see ``data/README.md``."""
    files: tuple[Published, ...]
    """The published files."""
    canonical_sha256: str
    """Checksum of the converted file that the developers use, or nothing."""
    facts: dict[str, str]
    """What holds for all of its cells, keyed as in ``obs``; only what the registry states."""

    @property
    def place(self) -> str:
        """Path of the converted file below a folder for data."""
        if self.kind == "cells":
            return f"h5ad/{self.name}.h5ad"
        if self.reader == "gmt":
            return f"knowledge/{self.files[0].file}"
        return f"knowledge/{self.name}.tsv" + ("" if self.reader == "tsv" else ".gz")

    @property
    def verified(self) -> bool:
        """Whether the registry knows the checksum of every published file."""
        return all(file.sha256 for file in self.files)


def entries() -> pd.DataFrame:
    """Read the whole registry, data sets and gene tables.

    Returns:
        One row an entry, the columns of ``COLUMNS``, all text.

    Example:
        >>> entries().set_index("name").loc["panel_19264", ["kind", "reader"]].tolist()
        ['genes', 'tsv']
    """
    return _rows().copy()


def entry(name: str) -> Entry:
    """Look up one entry.

    Raises:
        InputError: The registry does not hold the name.

    Example:
        >>> entry("pbmc3k").files[0].file, entry("pbmc3k").place
        ('pbmc3k.rda', 'h5ad/pbmc3k.h5ad')
    """
    table = _rows().set_index("name")
    if name not in table.index:
        raise InputError(f"{name} is not in the registry; it holds {', '.join(table.index)}")
    row = table.loc[name]
    urls = row["url"].split()
    hashes = row["sha256"].split() or [""] * len(urls)
    sizes = row["bytes"].split() or [0] * len(urls)
    files = tuple(
        Published(url, digest, int(size))
        for url, digest, size in zip(urls, hashes, sizes, strict=True)
    )
    facts = {"dataset": name, "organism": row["species"]}
    facts |= row[["tissue", "disease", "assay"]].to_dict()
    return Entry(
        name, row["kind"], row["reader"], files, row["canonical_sha256"],
        {column: value for column, value in facts.items() if value},
    )


def folders() -> list[Path]:
    """List the folders in which data is looked for, first $CELLVQ_DATA, then the user cache.

    Each holds ``h5ad/``, ``knowledge/`` and ``original/``. ``$CELLVQ_CACHE`` puts the cache
    elsewhere.
    """
    given = os.environ.get("CELLVQ_DATA")
    return [*([Path(given).expanduser()] if given else []), cache()]


def cache() -> Path:
    """Tell the folder into which downloads go."""
    folder = os.environ.get("CELLVQ_CACHE")
    if not folder:
        import platformdirs

        folder = platformdirs.user_cache_dir("cellvq", appauthor=False)
    return Path(folder).expanduser()


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check permissions") from error


def find(name: str) -> Path | None:
    """Find the converted file of an entry in the folders for data; nothing is compared yet."""
    place = entry(name).place
    return next((path for path in (folder / place for folder in folders()) if path.is_file()), None)


def verified(name: str) -> Path:
    """Find the converted file of an entry and compare its checksum.

    It is either the file of the developers, whose checksum the registry holds, or was made here by
    ``cellvq.datasets.fetch``, which wrote down beside it what it was made from.

    Raises:
        InputError: It is not on this machine, or is not the registered one.
    """
    known, path = entry(name), find(name)
    if path is None:
        noun = "gene table" if known.kind == "genes" else "data set"
        raise InputError(
            f"{noun} {name} is not on this machine; `cellvq fetch {name}` brings it, or set "
            f"CELLVQ_DATA to the folder that holds {known.place}"
        )
    if not is_verified(name, path):
        raise InputError(
            f"{path} is not the registered {name}; delete it and run `cellvq fetch {name}`, or "
            "load your own under another name"
        )
    return path


def is_verified(name: str, path: Path) -> bool:
    """Whether a converted file is the registered one, or was made from the registered files.

    Raises:
        InputError: The file cannot be read.
    """
    known, found = entry(name), digest(path)
    return found == known.canonical_sha256 or _made_here(path, found, known)


def record_of(path: Path) -> Path:
    """Tell where ``cellvq.datasets.fetch`` writes down what a converted file was made from."""
    return path.with_name(path.name + ".json")


def table(name: str) -> pd.DataFrame:
    """Read a gene table that is on this machine; it is never downloaded here.

    Args:
        name: ``hgnc`` (symbol, alias_symbol, prev_symbol, ensembl_gene_id; several names are
            parted by ``|``), ``panel_19264`` (gene_name, index), ``mouse_orthologs``
            (human_symbol, human_ensembl_id, mouse_symbol, mouse_ensembl_id; one to one) or
            ``cell_ontology`` (id, name, parents; several are parted by ``|``). Gene sets are read
            by ``cellvq.knowledge.gene_sets``.

    Returns:
        All columns as text, nothing missing; ``attrs["sha256"]`` is the checksum of the file.

    Raises:
        InputError: There is no such table, it is not on this machine, or it is damaged.
    """
    known = _rows().query("kind == 'genes' and reader != 'gmt'")["name"]
    if name not in set(known):
        raise InputError(f"{name} is not a gene table; there are {', '.join(known)}")
    path = verified(name)
    result = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    result.attrs["sha256"] = digest(path)
    return result


@functools.cache
def _rows() -> pd.DataFrame:
    """Read the file of the registry: beside the package in a clone, inside it once installed."""
    folder = Path(__file__).resolve().parent
    places = (folder / "registry.csv", folder.parent / "data" / "registry.csv")
    file = next(path for path in places if path.exists())
    return pd.read_csv(file, keep_default_na=False, dtype=str)[list(COLUMNS)]


def _made_here(path: Path, found: str, known: Entry) -> bool:
    """Whether a converted file is, unchanged, what was made from the registered published files."""
    try:
        record = json.loads(record_of(path).read_text(encoding="utf-8"))
        made_from = {file["url"]: file["sha256"] for file in record["files"]}
        return record["sha256"] == found and all(
            made_from[file.url] == (file.sha256 or made_from[file.url]) for file in known.files
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
