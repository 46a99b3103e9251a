"""Cells of a Census: a look-alike on this disk, opened as the real one is."""

import functools
import http.server
import json
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse

from cellvq import InputError, simulate
from cellvq.census import Census, write_census
from cellvq.joined import Joined
from cellvq.sources import Memory

BLOOD = "is_primary_data == True and tissue_general == 'blood'"


@pytest.fixture(scope="module")
def soma():
    """The library that reads and writes SOMA stores."""
    reason = "TileDB-SOMA is not installed: pip install 'cellvq[census]'"
    pytest.importorskip("tiledbsoma.io", reason=reason)
    return sys.modules["tiledbsoma"]


@pytest.fixture(scope="module")
def cells():
    """Simulated cells with the columns of the Census; "lung" did not measure the last 100 genes."""
    cells = simulate.simulate_cells(cells=900, genes=350, seed=1)
    n, rng = cells.n_obs, np.random.default_rng(0)
    dataset = rng.choice(["blood-1", "lung-1", "blood-2"], n)
    counts = cells.X.tolil()
    counts[np.flatnonzero(dataset == "lung-1")[:, None], np.arange(250, 350)] = 0
    cells.X = counts.tocsr()
    cells.obs = cells.obs[["cell_type"]].assign(
        assay=rng.choice(["10x 3' v2", "10x 3' v3"], n), dataset_id=dataset,
        tissue=np.char.partition(dataset, "-")[:, 0], disease="normal", sex="unknown",
        tissue_general=np.char.partition(dataset, "-")[:, 0], donor_id=cells.obs["donor"],
        development_stage="adult", suspension_type="cell",
    ).astype("category").assign(is_primary_data=rng.random(n) < 0.7)
    cells.var["feature_id"] = [f"ENSG{number:011d}" for number in range(cells.n_vars)]
    return cells


@pytest.fixture(scope="module")
def store(cells, soma, tmp_path_factory):
    folder = tmp_path_factory.mktemp("census") / "2025-01-30"
    write_census(cells, folder)
    summary = pa.table({"soma_joinid": [0, 1], "label": ["census_build_date", "total_cell_count"],
                        "value": ["2025-01-30", "900"]})
    with soma.open(str(folder / "census_info"), "w") as info:
        info.add_new_dataframe("summary", schema=summary.schema, domain=[(0, 1)]).write(summary)
    return folder


def test_every_row_comes_back_as_it_was_written(cells, store):
    census = Census(store)
    assert len(census) == cells.n_obs and census.var.index.equals(cells.var_names)
    assert list(census.var["feature_id"]) == list(cells.var["feature_id"])
    assert list(census.names()) == list(cells.obs_names)
    found = census.read([range(len(census))])
    assert found.dtype == np.float32 and found.has_sorted_indices and (found != cells.X).nnz == 0
    rows = [range(700, 764), range(3, 4), range(0, 64), range(3, 4), range(9, 9)]
    flat = np.concatenate(rows).astype(int)
    assert (census.read(rows) != cells.X[flat]).nnz == 0
    assert census.read([range(5, 5)]).shape == (0, cells.n_vars)


def test_a_filter_chooses_cells_and_columns_follow(cells, store):
    census = Census(store, value_filter=BLOOD, gene_names="feature_id")
    chosen = cells[cells.obs["is_primary_data"] & (cells.obs["tissue_general"] == "blood")]
    assert 100 < len(census) == chosen.n_obs < cells.n_obs
    assert list(census.var.index) == list(cells.var["feature_id"])
    assert (census.read([range(40, 90), range(10, 20)])
            != chosen.X[np.r_[40:90, 10:20]]).nnz == 0
    for column in ("cell_type", "assay", "tissue", "donor_id"):
        assert (census.column(column).to_numpy() == chosen.obs[column].to_numpy()).all()
    assert set(census.column("tissue").cat.categories) == {"blood"}
    assert (census.expressed() == np.diff(chosen.X.indptr)).all()
    assert (census.known_depth() == np.asarray(chosen.X.sum(axis=1)).ravel()).all()


def test_each_data_set_knows_the_genes_that_it_measured(cells, store):
    census = Census(store)
    part, measured = census.parts()
    names = pd.Categorical(cells.obs["dataset_id"])
    assert (part == names.codes).all() and measured.shape == (3, cells.n_vars)
    lung = list(names.categories).index("lung-1")
    assert not measured[lung, 250:].any() and measured[:, :250].mean() > 0.99
    assert Census(store, value_filter=BLOOD).parts()[1].shape[0] == 2


def test_a_census_joins_other_sources_and_says_which_cells_it_gave(cells, store):
    census, panel = Census(store, value_filter=BLOOD), list(cells.var_names[::-3])
    joined = Joined([Memory(cells[:50]), census], panel)
    found = joined.read([range(40, 60)]).counts
    expected = scipy.sparse.vstack([cells[40:50].X, census.read([range(10)])]).tocsr()
    assert (found != expected[:, ::-3]).nnz == 0
    made = census.provenance
    assert made["census"] == made["census_build_date"] == "2025-01-30"
    assert made["value_filter"] == BLOOD and made == Census(store, value_filter=BLOOD).provenance
    assert made["soma_joinid_sha256"] != Census(store).provenance["soma_joinid_sha256"]


def test_a_plain_experiment_is_read_too(cells, soma, tmp_path):
    soma.io.from_anndata(str(tmp_path / "mine"), cells, "RNA", X_layer_name="raw")
    census = Census(tmp_path / "mine", gene_names="var_id")
    assert (census.read([range(5, 25)]) != cells.X[5:25]).nnz == 0
    assert (census.expressed() == np.diff(cells.X.indptr)).all() and census.known_depth() is None
    assert census.parts()[1].all()


def test_a_version_is_opened_as_the_real_census_is(cells, store, tmp_path, monkeypatch):
    """The library of CELLxGENE asks its list of versions, here served on this machine."""
    released = pytest.importorskip("cellxgene_census._release_directory")
    listed = {"2025-01-30": {"release_build": "2025-01-30", "h5ads": {}, "flags": {"lts": True},
                             "soma": {"relative_uri": store.name}}}
    mirrors = {"default": "here", "here": {
        "provider": "file", "base_uri": f"{store.parent.as_uri()}/", "region": None}}
    (tmp_path / "release.json").write_text(json.dumps(listed))
    (tmp_path / "mirrors.json").write_text(json.dumps(mirrors))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name in ("RELEASE", "MIRRORS"):
            monkeypatch.setattr(released, f"CELL_CENSUS_{name}_DIRECTORY_URL",
                                f"{address}/{name.lower()}.json")
        census = Census("2025-01-30", value_filter=BLOOD)
        same = Census(store, value_filter=BLOOD).read([range(9)])
        assert (census.read([range(9)]) != same).nnz == 0
        with pytest.raises(InputError, match="no version '2024-01-01'"):
            Census("2024-01-01")
        server.shutdown()
    with pytest.raises(InputError, match="2025-01-30: cannot be read .*; check the network and"):
        Census("2025-01-30")


@pytest.mark.parametrize(("change", "message"), [
    ({"place": "no-such-folder"}, "there is no such folder"),
    ({"place": "."}, "cannot be read .*not a valid"),
    ({"organism": "mus_musculus"}, "no organism 'mus_musculus'; choose from homo_sapiens"),
    ({"gene_names": "symbol"}, "the genes have no column 'symbol'; there are .*feature_id"),
    ({"value_filter": "tisue == 'blood'"}, "asks for tisue, .* there are .*tissue"),
    ({"value_filter": "tissue = 'blood'"}, "cannot be understood"),
    ({"value_filter": "tissue == 3"}, "cannot be read .*; check the filter"),
    ({"value_filter": "tissue == 'blod'"}, "no cell passes the filter tissue == 'blod'"),
])
def test_each_mistake_gets_one_line(store, change, message):
    with pytest.raises(InputError, match=message) as error:
        Census(**{"place": store, **change})
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_values_that_are_no_counts_are_refused(cells, soma, tmp_path):
    broken = cells[:300].copy()
    broken.X.data[-1] = 2.5
    soma.io.from_anndata(str(tmp_path / "x"), broken, "RNA", X_layer_name="raw")
    census = Census(tmp_path / "x", gene_names="var_id")
    assert census.read([range(0, 299)]).nnz
    with pytest.raises(InputError, match=r"X/raw holds values such as 2.5 .*filter for assays"):
        census.read([range(0, 10), range(290, 300)])
    soma.io.from_anndata(str(tmp_path / "y"), cells, "RNA", X_layer_name="data")
    with pytest.raises(InputError, match="no layer of raw counts, only data"):
        Census(tmp_path / "y", gene_names="var_id")


def test_a_census_is_written_whole_or_not_at_all(cells, store, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="exists already"):
        write_census(cells, store)
    monkeypatch.setattr("cellvq.census._write_store", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_census(cells, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_without_the_library_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(InputError, match=r"pip install 'cellvq\[census\]'"):
        Census("2025-01-30")
