"""Cells of the CELLxGENE Census, or of any TileDB-SOMA store, read in blocks of rows."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix, csr_matrix

from cellvq import InputError, counts

VERSION = re.compile(r"stable|latest|V\d+|\d{4}-\d{2}-\d{2}")
"""How versions of the Census are called; anything else is the place of a store."""
BLOCK = 256
"""Cells that are read together; the Census stores them in tiles of 2,048, but those mix badly."""
BUFFER = 2**27
"""Bytes that TileDB may fill before it hands over what it has read, for each of three columns."""
PRESENCE = "feature_dataset_presence_matrix"


class Census:
    """Cells of a Census that pass a filter, of which only the rows asked for are read.

    The cells stand in the order of their ``soma_joinid``, so that the same version and the same
    filter always give the same cells. See doi:10.1093/nar/gkae1142.

    Args:
        place: a version of the Census ("2025-01-30"), which is read over the network, or the
            folder or address of a SOMA store.
        organism: as the Census calls it, "homo_sapiens" or "mus_musculus"; a store that is one
            experiment has no choice.
        value_filter: which cells to take, as a condition on columns of ``obs``, such as
            ``is_primary_data == True and tissue_general == 'blood'``; None for all.
        gene_names: the column of ``var`` that names the genes, "feature_name" or "feature_id".

    Raises:
        InputError: the library is not installed, there is no such version, store, organism or
            column, the network fails, the store has no raw counts, or no cell passes.
    """

    block = BLOCK
    counts_in = 'X["raw"]'

    def __init__(
        self,
        place: str | Path,
        organism: str = "homo_sapiens",
        value_filter: str | None = None,
        gene_names: str = "feature_name",
    ) -> None:
        self.place, self.organism = str(place), organism
        self.value_filter = value_filter and " ".join(value_filter.splitlines())
        self.name = f"{Path(self.place).name} {organism}"
        with _one_line_errors(self.place):
            self._root = _open_store(self.place)
            self._experiment = _experiment(self._root, self.place, organism)
            self._measurement = self._experiment.ms["RNA"]
            self._obs = self._experiment.obs
            self.columns = [c for c in self._obs.keys() if c not in ("soma_joinid", "obs_id")]
            layers = list(self._measurement.X)
            if "raw" not in layers:
                raise InputError(f"{self.name}: there is no layer of raw counts, only "
                                 f"{', '.join(layers) or 'none'}; raw counts belong into X/raw")
            self._counts = self._measurement.X["raw"]
            genes = self._measurement.var.read().concat().to_pandas().sort_values("soma_joinid")
        if gene_names not in genes:
            raise InputError(f"{self.name}: the genes have no column {gene_names!r}; there are "
                             f"{', '.join(genes)}")
        self._genes = genes.pop("soma_joinid").to_numpy()
        self.var = genes.set_index(gene_names, drop=False).rename_axis(None)
        if self.value_filter is not None:
            _check_filter(self.value_filter, self._obs.keys(), self.name)
        self._cells = self._table([])["soma_joinid"].to_numpy()
        if not len(self._cells):
            raise InputError(f"{self.name}: no cell passes the filter {self.value_filter}; check "
                             "the spelling of its values")

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def provenance(self) -> dict[str, str]:
        """Say which cells these are, so that others can ask for the same."""
        info = self._root["census_info"] if "census_info" in self._root else {}
        known = {}
        if "summary" in info:
            with _one_line_errors(self.place):
                summary = info["summary"].read().concat().to_pandas()
            known = {label: value for label, value in zip(summary["label"], summary["value"],
                     strict=True) if label in ("census_build_date", "census_schema_version")}
        digest = hashlib.sha256(self._cells.astype("<i8").tobytes()).hexdigest()
        return {"census": Path(self.place).name, **known, "organism": self.organism,
                "value_filter": self.value_filter or "", "soma_joinid_sha256": digest}

    def names(self) -> np.ndarray:
        """Return the names of the cells, [cells]; in the Census, their ``soma_joinid``."""
        if "obs_id" in self._obs.keys():
            return self._table(["obs_id"])["obs_id"].to_numpy()
        return self._cells.astype(str)

    def column(self, name: str) -> pd.Series:
        """Return one column of ``obs``, [cells]."""
        if name not in self.columns:
            raise InputError(f"{self.name}: the cells have no column {name!r}; there are "
                             f"{', '.join(self.columns)}")
        column = self._table([name])[name].to_pandas()
        if isinstance(column.dtype, pd.CategoricalDtype):
            return column.cat.remove_unused_categories()
        return column

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def expressed(self) -> np.ndarray:
        """Return how many genes each cell expresses, [cells]; the Census knows it as ``nnz``."""
        if "nnz" in self.columns:
            return self.column("nnz").to_numpy()
        starts = range(0, len(self), self.block)
        blocks = (range(start, min(start + self.block, len(self))) for start in starts)
        return np.concatenate([np.diff(self.read([block]).indptr) for block in blocks])

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def known_depth(self) -> np.ndarray | None:
        """Return each cell's UMI counts over all genes, [cells]; the Census knows ``raw_sum``."""
        if "raw_sum" not in self.columns:
            return None
        return self.column("raw_sum").to_numpy(dtype=np.float32)

    def read(self, rows: Sequence[range]) -> csr_matrix:
        """Return the UMI counts of ranges of rows, one after the other, float32 [cells, genes].

        Raises:
            InputError: some of them are no counts, or the network or the store fails.
        """
        cells = np.concatenate([self._cells[part.start : part.stop] for part in rows])
        wanted, place = np.unique(cells, return_inverse=True)
        if not len(wanted):
            return csr_matrix((0, len(self.var)), dtype=np.float32)
        with _one_line_errors(self.place):  # ids that adjoin are read as ranges by the library
            table = self._counts.read((wanted,)).tables().concat()
        cell, gene = (table[f"soma_dim_{axis}"].to_numpy() for axis in (0, 1))
        found = coo_matrix(
            (table["soma_data"].to_numpy(), (_places(cell, wanted), _places(gene, self._genes))),
            shape=(len(wanted), len(self._genes)),
        ).tocsr()
        problem = counts.problem_of(found) if found.nnz else None
        if problem:
            raise InputError(f"{self.name}: X/raw {problem}, among cells {wanted[0]} to "
                             f"{wanted[-1]}; filter for assays that count molecules, such as "
                             """assay == "10x 3' v3\"""")
        if not np.array_equal(place, np.arange(len(wanted))):
            found = found[place]
        found.sort_indices()
        return found.astype(np.float32, copy=False)

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each cell's part [cells] and which genes each part measured [parts, genes].

        The parts are the data sets that these cells come from; the Census records their genes.
        """
        if PRESENCE not in self._measurement or "dataset_id" not in self.columns:
            return np.zeros(len(self), np.int16), np.ones((1, len(self.var)), bool)
        dataset = pd.Categorical(self.column("dataset_id"))
        with _one_line_errors(self.place):
            listed = self._root["census_info"]["datasets"].read(
                column_names=["soma_joinid", "dataset_id"]).concat().to_pandas()
            ids = listed.set_index("dataset_id")["soma_joinid"].loc[dataset.categories].to_numpy()
            table = self._measurement[PRESENCE].read((np.sort(ids),)).tables().concat()
        part = pd.Index(ids).get_indexer(table["soma_dim_0"].to_numpy())
        measured = np.zeros((len(ids), len(self.var)), bool)
        measured[part, _places(table["soma_dim_1"].to_numpy(), self._genes)] = (
            table["soma_data"].to_numpy())
        return dataset.codes.astype(np.int16), measured

    def _table(self, columns: Sequence[str]):
        """Read columns of ``obs`` of the cells that pass, as an Arrow table in their order."""
        with _one_line_errors(self.place):
            table = self._obs.read(
                column_names=["soma_joinid", *columns], value_filter=self.value_filter
            ).concat()
        return table.sort_by("soma_joinid")


def write_census(
    cells: anndata.AnnData, folder: str | Path, organism: str = "homo_sapiens"
) -> None:
    """Write cells as a Census of their own, laid out like the one of CELLxGENE.

    ``Census(folder)`` and ``cellxgene_census.open_soma(uri=folder)`` read it, with no network.

    Args:
        cells: raw counts in ``X``, [cells, genes]. Columns of ``obs`` are kept under their names,
            ``raw_sum`` and ``nnz`` are added, and ``dataset_id`` where there is none. The genes'
            columns ``feature_name`` and ``feature_id`` are their names where there are none.
        folder: a folder that does not exist yet.
        organism: as the Census calls it.

    Raises:
        InputError: the folder exists, the cells hold no raw counts, or the library is absent.
    """
    soma = _library("tiledbsoma.io")
    folder = Path(folder).expanduser()
    if folder.exists():
        raise InputError(f"{folder}: exists already; name a new folder")
    raw, _ = counts.find_counts(cells)
    obs = cells.obs.rename_axis(None).assign(raw_sum=raw.sum(axis=1), nnz=np.diff(raw.indptr))
    obs["dataset_id"] = obs["dataset_id"].astype(str) if "dataset_id" in obs else "these cells"
    named = {column: cells.var_names for column in ("feature_name", "feature_id")}
    var = cells.var.rename_axis(None).assign(**(named | dict(cells.var.items())))
    obs["dataset_id"] = dataset = pd.Categorical(obs["dataset_id"])
    member = csr_matrix((np.ones(len(dataset), bool), (dataset.codes, np.arange(len(dataset)))))
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_store(soma, anndata.AnnData(raw, obs=obs, var=var), partial, organism,
                     list(dataset.categories), coo_matrix(member @ raw > 0))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_store(soma, cells, folder, organism, datasets, measured) -> None:
    """Write the layout of the Census: its tables of cells, genes, data sets and their genes."""
    import pyarrow
    import tiledbsoma

    listed = pyarrow.table({"soma_joinid": np.arange(len(datasets)), "dataset_id": datasets})
    with tiledbsoma.Collection.create(str(folder)) as root:
        root.add_new_collection("census_info").add_new_dataframe(
            "datasets", schema=listed.schema, domain=[(0, len(datasets) - 1)]
        ).write(listed)
        data = root.add_new_collection("census_data")
        soma.from_anndata(f"{folder}/census_data/{organism}", cells, "RNA", X_layer_name="raw")
        with tiledbsoma.open(f"{folder}/census_data/{organism}", "w") as experiment:
            data.set(organism, experiment, use_relative_uri=True)
            experiment.ms["RNA"].add_new_sparse_ndarray(
                PRESENCE, type=pyarrow.bool_(), shape=measured.shape
            ).write(pyarrow.SparseCOOTensor.from_scipy(measured))


def _places(found: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Say where numbers stand among sorted ids; a subtraction where it can be, which is faster.

    Example:
        >>> _places(np.array([9, 7]), np.array([4, 7, 9])).tolist()
        [2, 1]
    """
    adjoin = ids[-1] - ids[0] + 1 == len(ids)
    return found - ids[0] if adjoin else np.searchsorted(ids, found)


def _library(name: str):
    """Import a library that is installed only where the Census is wanted."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"the Census is read with {name}, which is not installed; pip install "
                         "'cellvq[census]'") from error


def _open_store(place: str):
    """Open a version of the Census, or the store at a place."""
    soma = _library("tiledbsoma")
    if VERSION.fullmatch(place):
        census = _library("cellxgene_census")
        context = census.get_default_soma_context({"soma.init_buffer_bytes": BUFFER})
        try:
            return census.open_soma(census_version=place, context=context)
        except ValueError as error:  # also where a page came instead of the list of versions
            raise InputError(
                f"the Census has no version {place!r}, or its list cannot be read; the versions: "
                "cellxgene_census.get_census_version_directory()"
            ) from error
    if "://" not in place and not Path(place).expanduser().exists():
        raise InputError(f"{place}: there is no such folder, and versions of the Census look like "
                         "2025-01-30; check the spelling")
    context = soma.SOMATileDBContext(tiledb_config={"soma.init_buffer_bytes": BUFFER})
    return soma.open(place if "://" in place else str(Path(place).expanduser()), context=context)


def _experiment(root, place: str, organism: str):
    """Choose the organism in a Census; a store that is one experiment is taken as it is."""
    if root.soma_type == "SOMAExperiment":
        return root
    if "census_data" not in root:
        raise InputError(f"{place}: this SOMA store is neither a Census nor an experiment; name "
                         "the folder that holds census_data, or one with obs and ms")
    organisms = list(root["census_data"])
    if organism not in organisms:
        raise InputError(f"{place}: there is no organism {organism!r}; choose from "
                         f"{', '.join(organisms)}")
    return root["census_data"][organism]


def _check_filter(value_filter: str, columns: Sequence[str], name: str) -> None:
    """Refuse a filter that is no condition on columns of ``obs``."""
    try:
        tree = ast.parse(value_filter.strip(), mode="eval")
    except SyntaxError as error:
        raise InputError(f"{name}: the filter cannot be understood: {value_filter}; write it like "
                         "tissue_general == 'blood' and is_primary_data == True") from error
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    unknown = sorted(used - set(columns) - {"attr", "val"})  # two words of the language of filters
    if unknown:
        raise InputError(f"{name}: the filter asks for {', '.join(unknown)}, which the cells do "
                         f"not have; there are {', '.join(columns)}")


@contextlib.contextmanager
def _one_line_errors(place: str) -> Iterator[None]:
    """Say in one line what the library, the network or the disk said in many."""
    failures = (OSError, RuntimeError, KeyError, _library("tiledbsoma").SOMAError)
    try:
        yield
    except failures as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        if "HTTPSConnectionPool" in reason or "resolve host" in reason:
            reason = "there is no connection to the server"
        remote = VERSION.fullmatch(place) or "://" in place
        remedy = "check the network and the filter" if remote else "check the filter and the folder"
        raise InputError(f"{place}: cannot be read ({reason}); {remedy}") from error
