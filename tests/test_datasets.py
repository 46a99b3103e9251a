"""Data sets by name and by path, always in the canonical form."""

import os
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from cellvq import InputError, datasets, registry, simulate

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "h5ad").is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """A machine without data sets."""
    monkeypatch.setenv("CELLVQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CELLVQ_CACHE", str(tmp_path / "cache"))
    return tmp_path


def assert_canonical(cells, name):
    assert scipy.sparse.isspmatrix_csr(cells.X) and cells.X.dtype == np.float32
    assert (cells.X.data == np.rint(cells.X.data)).all() and cells.X.data.min() > 0
    assert cells.uns["dataset"] == name and cells.var_names.is_unique
    assert (cells.obs["total_counts"] >= np.asarray(cells.X.sum(axis=1)).ravel()).all()
    for column in cells.obs.select_dtypes("category"):
        assert "" not in cells.obs[column].cat.categories
        assert cells.obs[column].notna().any()


def test_names_are_data_sets_and_no_gene_tables():
    table = datasets.names().set_index("name")
    assert table.index.is_unique and set(table["kind"]) == {"cells"}
    assert "pbmc68k_reduced" in table.index and not datasets.is_name("hgnc")
    assert table.loc["pbmc68k_reduced", ["cells", "genes", "here"]].tolist() == [700, 765, True]


def test_pbmc68k_counts_are_recovered_exactly():
    scanpy = pytest.importorskip("scanpy")
    cells, bundled = datasets.load("pbmc68k_reduced"), scanpy.datasets.pbmc68k_reduced()
    assert_canonical(cells, "pbmc68k_reduced")
    assert cells.shape == (700, 765) and cells.obs["cell_type"].nunique() == 10
    assert (cells.obs["cell_type"].astype(str) == bundled.obs["bulk_labels"].astype(str)).all()
    depth = cells.obs["total_counts"].to_numpy()
    assert (depth == bundled.obs["n_counts"]).all()
    # forward again: normalising the counts must give the bundled values, to their three decimals
    again = np.log1p(cells.X.toarray().astype(float) / depth[:, None] * 1e4)
    assert np.abs(again - bundled.raw.X.toarray()).max() < 6e-4


def test_pbmc68k_of_another_make_is_refused(monkeypatch):
    scanpy = pytest.importorskip("scanpy")
    bundled = scanpy.datasets.pbmc68k_reduced()
    bundled.obs["n_counts"] *= 1.1
    monkeypatch.setattr(scanpy.datasets, "pbmc68k_reduced", lambda: bundled)
    with pytest.raises(InputError, match="gives no whole counts"):
        datasets.load("pbmc68k_reduced")


def test_simulated_is_the_default_simulation_with_its_truth():
    cells = datasets.load("simulated")
    assert_canonical(cells, "simulated")
    assert (cells.X != simulate.simulate_cells().X).nnz == 0
    assert len(simulate.truth(cells)["markers"]) == 60


def test_a_path_gives_canonical_cells(tmp_path):
    cells = simulate.simulate_cells(cells=60)
    counts = cells.X.copy()
    cells.layers["counts"] = counts
    cells.X = np.log1p(counts.toarray())
    cells.obs["label"] = np.where(np.arange(60) < 10, " ", "known")
    cells.obs["nothing"] = ""
    cells.write_h5ad(tmp_path / "my cells.h5ad")
    loaded = datasets.load(tmp_path / "my cells.h5ad")
    assert_canonical(loaded, "my cells")
    assert (loaded.X != counts).nnz == 0 and not loaded.layers and "nothing" not in loaded.obs
    assert loaded.obs["label"].isna().sum() == 10 and loaded.obs["donor"].nunique() == 6


def test_genes_and_cells_named_twice_are_mended_and_the_input_is_left_alone():
    cells = anndata.AnnData(
        np.array([[1, 2, 4], [3, 0, 1]], dtype=np.float32),
        obs=pd.DataFrame(index=["a", "a"]), var=pd.DataFrame(index=["CD3D", "LYZ", "CD3D"]),
    )
    tidy = datasets.canonical(cells, "mine")
    assert tidy.X.toarray().tolist() == [[5, 2], [4, 0]]
    assert list(tidy.var_names) == ["CD3D", "LYZ"] and tidy.obs_names.is_unique
    assert list(cells.obs_names) == ["a", "a"] and not len(cells.obs.columns) and not cells.uns


def test_what_cannot_be_found_gives_one_line(nothing_here):
    for name, words in (
        ("pbmc30k", "neither a file nor a known data set; known are pbmc68k_reduced"),
        ("pbmc3k", "not on this machine; `cellvq fetch pbmc3k` brings it, or set CELLVQ_DATA"),
        ("folder/none.h5ad", "there is no such file"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            datasets.load(name)
        assert "\n" not in str(caught.value)
    here = datasets.names().set_index("name")["here"]
    assert here[here].index.tolist() == ["pbmc68k_reduced", "simulated"]


def test_another_file_under_a_registered_name_is_refused(nothing_here):
    (nothing_here / "cache" / "h5ad").mkdir(parents=True)
    simulate.simulate_cells(cells=20).write_h5ad(nothing_here / "cache" / "h5ad" / "pbmc3k.h5ad")
    with pytest.raises(InputError, match="is not the registered pbmc3k"):
        datasets.load("pbmc3k")


def test_values_that_are_no_counts_are_refused_by_name(tmp_path):
    cells = anndata.AnnData(np.full((2, 2), 0.5, dtype=np.float32))
    cells.write_h5ad(tmp_path / "logged.h5ad")
    with pytest.raises(InputError, match="^logged: no raw counts"):
        datasets.load(tmp_path / "logged.h5ad")


def test_the_folder_of_the_user_comes_before_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CELLVQ_DATA", str(tmp_path))
    monkeypatch.delenv("CELLVQ_CACHE", raising=False)
    first, cache = registry.folders()
    assert first == tmp_path and cache.name == "cellvq"


def test_no_donor_is_on_both_sides():
    cells = simulate.simulate_cells(cells=300, donors=10)
    cells.obs.loc[cells.obs_names[:7], "donor"] = np.nan
    train, held = datasets.donor_split(cells, fraction=0.3, seed=1)
    donor = cells.obs["donor"]
    assert donor[held].nunique() == 3 and donor[train].nunique() == 7
    assert not set(donor[held]) & set(donor[train])
    assert not (train | held)[:7].any() and (train ^ held)[7:].all()
    splits = {tuple(datasets.donor_split(cells, seed=seed)[1]) for seed in range(5)}
    assert len(splits) > 1


def test_a_split_that_cannot_be_made_gives_one_line():
    cells = simulate.simulate_cells(cells=30)
    cells.obs["one"] = "same"
    with pytest.raises(InputError, match="no column 'patient'.*cell_type, lineage"):
        datasets.donor_split(cells, "patient")
    with pytest.raises(InputError, match="at least two"):
        datasets.donor_split(cells, "one")
    with pytest.raises(InputError, match="no column 'study'"):
        datasets.study_split(cells)


def test_no_study_is_on_both_sides():
    cells = simulate.simulate_cells(cells=300)
    named = ["kang_ifnb_sub", "kang_muscat_example", "pbmc3k", "pbmc_5k_protein_scvi200", "mine"]
    cells.obs["dataset"] = np.resize(named, 300)
    sides = set()
    for seed in range(6):
        train, held = datasets.study_split(cells, fraction=0.5, seed=seed)
        assert (train ^ held).all()
        of = [set(cells.obs["dataset"][side]) for side in (train, held)]
        assert not of[0] & of[1] and len({*named[:2]} & of[0]) in (0, 2)
        sides.add(frozenset(of[1]))
    assert len(sides) > 1
    cells.obs["study"] = cells.obs["donor"]
    train, held = datasets.study_split(cells)
    assert not set(cells.obs["donor"][train]) & set(cells.obs["donor"][held])


@real
@pytest.mark.parametrize("name", datasets.names().query("checked != ''")["name"])
def test_registered_files_are_what_the_registry_says(name):
    if registry.find(name) is None:
        pytest.skip(f"{name} is made of published files: tests/test_originals.py makes it")
    cells, row = datasets.load(name), datasets.names().set_index("name").loc[name]
    assert_canonical(cells, name)
    assert cells.shape == (row["cells"], row["genes"])
    for column in row["labels"].split():
        assert cells.obs[column].nunique() > 1


@real
def test_pbmc3k_keeps_cells_without_a_label():
    cells = datasets.load("pbmc3k")
    assert cells.obs["cell_type"].isna().sum() == 62 and cells.obs["cell_type"].nunique() == 9


@real
def test_a_damaged_copy_is_refused(nothing_here):
    target = nothing_here / "data" / "h5ad" / "pbmc3k.h5ad"
    target.parent.mkdir(parents=True)
    shutil.copy(DATA / "h5ad" / "pbmc3k.h5ad", target)
    target.chmod(0o600)
    assert datasets.load("pbmc3k").n_obs == 2700
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(bytes(content))
    with pytest.raises(InputError, match="is not the registered pbmc3k"):
        datasets.load("pbmc3k")
