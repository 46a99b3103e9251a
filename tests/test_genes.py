"""Reading files, finding counts, matching genes, and the report that a user meets first."""

import json
import os
import stat
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from cellvq import InputError, genes, reading, simulate

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder")) / "h5ad"
real = pytest.mark.skipif(
    not DATA.is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)


@pytest.fixture
def cells():
    return simulate.simulate_cells(cells=120, seed=3)


def small(values, names=("ACTB", "GAPDH", "CD74")):
    return anndata.AnnData(np.array(values, dtype=np.float32), var=pd.DataFrame(index=list(names)))


# --- reading -------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was_written(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert (reading.read(tmp_path / "cells.h5ad").X != cells.X).nnz == 0


def test_a_10x_file_is_read(tmp_path):
    with h5py.File(tmp_path / "filtered.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["data"], matrix["indices"] = np.array([5, 7], "i4"), np.array([0, 1], "i8")
        matrix["indptr"], matrix["shape"] = np.array([0, 1, 2], "i8"), np.array([2, 2], "i4")
        matrix["barcodes"] = np.array([b"AAAC-1", b"AAAG-1"])
        features = matrix.create_group("features")
        for key, values in {
            "id": [b"ENSG00000075624", b"ENSG00000111640"], "name": [b"ACTB", b"GAPDH"],
            "feature_type": [b"Gene Expression"] * 2, "genome": [b"GRCh38"] * 2,
        }.items():
            features[key] = np.array(values)
    report = genes.check(tmp_path / "filtered.h5")
    assert report.ok and (report.n_cells, report.n_genes) == (2, 2) and report.species == "human"


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path):
    content = bytearray(path.read_bytes())
    content[200:6000] = b"\0" * 5800
    path.write_bytes(bytes(content))


def without_obs(path):
    with h5py.File(path, "w") as file:
        file["values"] = np.ones(3)


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("gene,cell\nACTB,3\n")


def folder(path):
    path.unlink()
    path.mkdir()


def absent(path):
    path.unlink()


@pytest.mark.parametrize(("spoil", "words"), [
    (absent, "there is no such file"), (folder, "this is a folder"),
    (text, "not an .h5ad file"), (empty, "not an .h5ad file"), (cut_off, "damaged or cut off"),
    (overwritten, "damaged or cut off"), (without_obs, "holds no AnnData"),
])
def test_files_that_cannot_be_read_give_one_line(cells, tmp_path, spoil, words):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    spoil(path)
    with pytest.raises(InputError, match=words) as caught:
        genes.check(path)
    assert "cells.h5ad" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_gives_one_line(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    path.chmod(stat.S_IWUSR)
    with pytest.raises(InputError, match="check permissions"):
        reading.read(path)


# --- counts --------------------------------------------------------------------------------------


def test_counts_are_found_in_the_most_explicit_place(cells):
    counts = cells.X.copy()
    cells.X = cells.X.multiply(0.3).tocsr()
    cells.raw = anndata.AnnData(counts, var=cells.var)
    assert genes.find_counts(cells)[1] == "raw.X"
    cells.X = counts
    assert genes.find_counts(cells)[1] == "X"
    cells.layers["counts"] = counts.toarray()
    found, where = genes.find_counts(cells)
    assert where == 'layers["counts"]' and (found != counts).nnz == 0


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csc_matrix, scipy.sparse.csr_array])
@pytest.mark.parametrize("dtype", ["int32", "uint16", "float64"])
def test_every_form_of_counts_becomes_csr_float32(kind, dtype):
    values = np.array([[0, 3, 1], [2, 0, 0]], dtype=dtype)
    cells = anndata.AnnData(kind(values), var=pd.DataFrame(index=["ACTB", "GAPDH", "CD74"]))
    counts, _ = genes.find_counts(cells)
    assert scipy.sparse.isspmatrix_csr(counts) and counts.dtype == np.float32
    assert (counts.toarray() == values).all() and counts.nnz == 3


def test_the_input_is_never_changed():
    matrix = scipy.sparse.csr_matrix(np.array([[0, 3, 1], [2, 0, 0]], dtype=np.float32))
    matrix.data[0] = 0.0  # an explicit zero, which find_counts drops from its copy
    cells = anndata.AnnData(matrix)
    counts, _ = genes.find_counts(cells)
    counts.data[:] = 9.0
    assert cells.X.nnz == 3 and cells.X.data.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("values", "words"), [
    ([[0.5, 1.7, 0.0]], "such as 0.5 .normalised or log"),
    ([[0.0, np.nan, 1.0]], "NaN or infinite"),
    ([[0.0, np.inf, 1.0]], "NaN or infinite"),
    ([[-1.0, 2.0, 0.0]], "negative"),
    ([[0.0, 0.0, 0.0]], "all zero"),
])
def test_other_values_are_refused_and_reported(values, words):
    cells = small(values)
    with pytest.raises(InputError, match=words) as caught:
        genes.find_counts(cells)
    assert 'layers["counts"]' in str(caught.value) and "\n" not in str(caught.value)
    report = genes.check(cells)
    assert not report.ok and report.counts_in is None and "not usable as it is" in str(report)
    assert report.findings[0].level == "error" and report.findings[0].remedy.endswith(".")


def test_text_in_the_matrix_no_matrix_and_no_cells_are_refused():
    with pytest.raises(InputError, match="holds no numbers"):
        genes.find_counts(anndata.AnnData(
            shape=(1, 2), layers={"counts": np.array([["3", "x"]], dtype=object)}
        ))
    with pytest.raises(InputError, match="X is missing"):
        genes.find_counts(anndata.AnnData(obs=pd.DataFrame(index=["a"]),
                                          var=pd.DataFrame(index=["ACTB"])))
    with pytest.raises(InputError, match="the matrix is empty, 0 cells x 3 genes"):
        genes.find_counts(small([[1, 2, 3]])[:0])


@pytest.mark.parametrize(("column", "values", "used"), [
    ("total_counts", [10, 20], True),
    ("n_counts", [10.0, 20.0], True),
    ("nCount_RNA", [3, 4], True),  # never below the sums of the rows, 3 and 4
    ("total_counts", [2, 20], False),  # below
    ("total_counts", [10_000, 10_000], False),  # what normalising leaves behind
    ("total_counts", [10.5, 20.0], False),  # not counts
    ("total_counts", [np.nan, 20.0], False),
    ("total_counts", ["10", "20"], False),
])
def test_depth_comes_from_obs_where_obs_can_be_right(column, values, used):
    cells = small([[1, 2, 0], [0, 0, 4]])
    cells.obs[column] = values
    depth = genes.sequencing_depth(cells, genes.find_counts(cells)[0])
    assert depth.dtype == np.float32
    assert depth.tolist() == (values if used else [3.0, 4.0])


# --- gene names ----------------------------------------------------------------------------------


def test_align_orders_sums_and_drops():
    counts = scipy.sparse.csr_matrix(np.array([[1, 2, 4, 8], [0, 0, 1, 0]]))
    aligned, matched = genes.align(["B", "X", "A", "B"], counts, ["A", "B", "C"])
    assert matched == 2 and aligned.dtype == np.float32
    assert aligned.toarray().tolist() == [[4, 9, 0], [1, 0, 0]]


def test_align_ignores_ensembl_versions_on_either_side_but_not_dots_in_symbols():
    counts = scipy.sparse.csr_matrix(np.array([[1.0, 2.0]]))
    first = ["ENSG00000075624.17", "AL627309.1"]
    for names, panel in ((first, ["ENSG00000075624"]), (["ENSG00000075624", "AL627309.1"], first)):
        aligned, _ = genes.align(names, counts, panel)
        assert aligned.toarray()[0, 0] == 1
    assert genes.align(first, counts, ["AL627309", "ENSG00000075624"])[1] == 1


def test_align_uses_the_column_of_var_that_matches_most(cells):
    panel = list(cells.var_names)
    cells.var["gene_symbols"] = pd.Categorical(panel)
    cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    aligned, matched = genes.align(cells, cells.X, panel)
    assert matched == len(panel) and (aligned != cells.X).nnz == 0


def test_of_a_panel_gene_that_stands_twice_the_first_is_filled():
    aligned, matched = genes.align(["A"], scipy.sparse.csr_matrix([[3.0]]), ["B", "A", "A"])
    assert matched == 1 and aligned.toarray().tolist() == [[0, 3, 0]]


def test_align_with_nothing_in_common_shows_both_sides():
    with pytest.raises(InputError, match="the cells have Actb, Gapdh, the model has ACTB"):
        genes.align(["Actb", "Gapdh"], scipy.sparse.csr_matrix((1, 2)), ["ACTB"])


@pytest.mark.parametrize(("names", "expected"), [
    (["ACTB", "GAPDH", "X"], ("symbols", "human")),
    (["Actb", "B2m", "X"], ("symbols", "mouse")),
    (["ENSG00000075624", "ENSG00000111640"], ("Ensembl", "human")),
    (["ENSMUSG00000029580.14", "ENSMUSG00000057666.19"], ("Ensembl with versions", "mouse")),
    (["ENSDARG00000037746", "ENSDARG00000055618"], ("Ensembl", None)),
    (["0", "1", "2"], ("numbers", None)),
    (["YAL001C", "YAL002W"], ("symbols", None)),
])
def test_names_are_described(names, expected):
    assert genes.describe_names(names) == expected


# --- the report ----------------------------------------------------------------------------------


def test_a_good_file_reads_well_and_says_the_same_to_programs(cells):
    report = genes.check(cells, panel=list(cells.var_names[:300]), label="cell_type", batch="batch")
    assert report.ok and report.counts_in == "X" and report.species == "human"
    assert report.label_columns == {"cell_type": 6, "lineage": 3, "condition": 2}
    assert report.batch_columns == {"batch": 2, "donor": 6}
    sums = np.asarray(cells.X.sum(axis=1)).ravel()
    assert report.depth_median == np.median(sums) and report.panel_matched == 300
    assert report.sparsity == pytest.approx(1 - cells.X.nnz / 48_000)
    page = str(report)
    assert "120 cells x 400 genes, ready for CellVQ." in page and "rough estimate" in page
    assert max(map(len, page.splitlines())) <= 96
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["ok"] is True and record["n_genes"] == 400
    assert {f["subject"] for f in record["findings"]} >= {"raw counts", "label", "batch"}


def subjects(report, level):
    return {finding.subject for finding in report.findings if finding.level == level}


def test_empty_cells_repeated_names_and_poor_cells_are_warnings(cells):
    lil = cells.X.tolil()
    lil[:5] = 0
    cells.X = lil.tocsr()
    cells.var_names = ["ACTB", *cells.var_names[:-1]]
    cells.obs_names = ["one", *cells.obs_names[1:-1], "one"]
    report = genes.check(cells)
    assert report.ok and report.empty_cells == 5 and report.duplicated_genes == 1
    assert subjects(report, "warning") == {"empty cells", "gene names", "cell names"}
    assert "5 cells have no counts at all. Remove them" in str(report)
    assert "few genes" in subjects(genes.check(small([[1, 0, 2]])), "warning")


def test_numbers_for_names_are_an_error(cells):
    cells.var_names = [str(i) for i in range(cells.n_vars)]
    assert subjects(genes.check(cells), "error") == {"gene names"}


def test_columns_asked_for_are_judged(cells):
    cells.obs["one"] = "same"
    cells.obs["each"] = cells.obs_names.to_numpy()
    cells.obs["gaps"] = np.where(np.arange(120) < 20, "", cells.obs["cell_type"].astype(str))
    report = genes.check(cells, label="celltype")
    assert not report.ok and "there is no column 'celltype'" in report.findings[0].message
    assert "cell_type, lineage" in report.findings[0].remedy
    assert not genes.check(cells, label="one").ok and not genes.check(cells, batch="each").ok
    report = genes.check(cells, label="gaps")
    assert report.ok and "20 cells have no value" in report.findings[0].message
    assert not {"one", "each"} & {*report.label_columns, *report.batch_columns}


def test_the_panel_is_counted(cells):
    strangers = [f"GENE{i}" for i in range(500)]
    report = genes.check(cells, panel=[*cells.var_names[:100], *strangers])
    assert report.ok and report.panel_matched == 100
    assert subjects(report, "warning") == {"model's genes"}
    report = genes.check(cells, panel=strangers)
    assert report.panel_matched == 0 and subjects(report, "error") == {"model's genes"}


@real
@pytest.mark.parametrize(("name", "shape", "labels"), [
    ("pbmc3k", (2700, 13714), {"cell_type": 9, "cluster": 9}),
    ("kang_ifnb_sub", (2000, 13215), {"cell_type": 13, "condition": 2}),
    ("kang_muscat_example", (1556, 1267), {"cell_type": 5, "condition": 2}),
    ("papalexi_lowmoi_sceptre", (20729, 299), {"grna": 107, "perturbation": 26, "condition": 2}),
])
def test_real_files_are_ready(name, shape, labels):
    report = genes.check(DATA / f"{name}.h5ad")
    assert report.ok and (report.n_cells, report.n_genes) == shape
    assert report.label_columns == labels and report.species == "human"
    assert not subjects(report, "warning")


@real
def test_real_genes_match_by_symbol_and_by_ensembl_identifier():
    cells = reading.read(DATA / "kang_muscat_example.h5ad")
    identifiers = cells.var["ensembl_id"].astype(str)
    cells = cells[:, identifiers.str.startswith("ENSG") & ~identifiers.duplicated()].copy()
    assert cells.n_vars > 1000
    by_symbol, n_symbols = genes.align(cells, cells.X, list(cells.var_names))
    versions = [f"{gene}.7" for gene in cells.var["ensembl_id"]]
    by_ensembl, n_ensembl = genes.align(cells, cells.X, versions)
    assert n_symbols == n_ensembl == cells.n_vars and (by_symbol != by_ensembl).nnz == 0


@real
def test_depth_of_papalexi_is_known_though_most_genes_were_dropped():
    cells = reading.read(DATA / "papalexi_lowmoi_sceptre.h5ad")
    counts, _ = genes.find_counts(cells)
    depth = genes.sequencing_depth(cells, counts)
    assert (depth == cells.obs["response_n_umis"]).all()
    assert np.median(depth) > 20 * np.median(np.asarray(counts.sum(axis=1)))


@real
@pytest.mark.parametrize("name", ["pancreas_wang_scclassify", "pancreas_xin_scclassify"])
def test_real_log_values_are_refused(name):
    report = genes.check(DATA / f"{name}.h5ad")
    assert not report.ok and "X holds values such as" in report.findings[0].message
    assert "log-transformed" in str(report) and report.label_columns
