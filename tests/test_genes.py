"""Reading files, finding counts, and matching genes."""

import gzip
import os
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse

from cellvq import InputError, genes, reading, registry, simulate
from cellvq.counts import recover

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
    found = reading.read(tmp_path / "filtered.h5")
    assert found.X.toarray().tolist() == [[5, 0], [0, 7]]
    assert found.var["gene_ids"].tolist() == ["ENSG00000075624", "ENSG00000111640"]


def write_loom(cells, path):
    with h5py.File(path, "w") as file:
        file["matrix"] = cells.X.toarray().T
        file["row_attrs/Gene"] = cells.var_names.to_numpy().astype("S")
        file["col_attrs/CellID"] = cells.obs_names.to_numpy().astype("S")
        file["col_attrs/cell_type"] = cells.obs["cell_type"].astype(str).to_numpy().astype("S")


def write_folder(cells, path):
    path.mkdir()
    scipy.io.mmwrite(path / "GSM1_matrix.mtx", cells.X.T.astype(int))
    (path / "GSM1_genes.tsv").write_text("".join(f"ENSG{i}\t{g}\n" for i, g in
                                                 enumerate(cells.var_names)))
    with gzip.open(path / "GSM1_barcodes.tsv.gz", "wt") as file:
        file.write("\n".join(cells.obs_names))


def write_table(cells, path, transposed=False, **options):
    table = cells.to_df().astype(int)
    (table.T if transposed else table).to_csv(path, **options)


@pytest.mark.parametrize(("name", "write"), [
    ("cells.loom", write_loom), ("run", write_folder), ("cells.csv", write_table),
    ("cells.tsv.gz", lambda cells, path: write_table(cells, path, transposed=True, sep="\t")),
    ("cells.txt", lambda cells, path: write_table(cells, path, transposed=True, sep=" ")),
])
def test_every_format_gives_the_same_cells(cells, tmp_path, name, write):
    write(cells, tmp_path / name)
    found = reading.read(tmp_path / name)
    assert scipy.sparse.issparse(found.X) and (found.X != cells.X).nnz == 0
    assert list(found.var_names) == list(cells.var_names)
    assert list(found.obs_names) == list(cells.obs_names)
    if name.endswith("loom"):
        assert found.obs["cell_type"].tolist() == cells.obs["cell_type"].tolist()
    if "cells.t" in name:
        assert found.uns["cellvq_table"] == "genes in rows"


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
def test_other_values_are_refused(values, words):
    cells = small(values)
    with pytest.raises(InputError, match=words) as caught:
        genes.find_counts(cells)
    assert 'layers["counts"]' in str(caught.value) and "\n" not in str(caught.value)


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


# --- counts out of normalised values -------------------------------------------------------------


def normalised(counts, scale=1e4, log=True, dtype="float32"):
    totals = np.asarray(counts.sum(axis=1), dtype=dtype).ravel()
    values = counts.astype(dtype).multiply((np.dtype(dtype).type(scale) / totals)[:, None]).tocsr()
    return values.log1p() if log else values


def rounded(values):
    return scipy.sparse.csr_matrix((values.data.round(3), values.indices, values.indptr))


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("scale", [1, 1e4, 1e6, 713.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_counts_come_back_exactly(cells, log, scale, dtype):
    found = recover(normalised(cells.X, scale, log, dtype))
    assert found.dtype == np.float32 and (found != cells.X).nnz == 0


def test_the_smallest_value_may_hold_several_molecules_and_cells_may_be_empty():
    counts = scipy.sparse.csr_matrix(np.stack([
        np.arange(3.0, 20), np.zeros(17), np.arange(17.0), np.tile([2.0, 3.0], 9)[:17],
    ]))
    values = counts.multiply(np.array([[0.37], [1.0], [2.2], [0.9]])).tocsr().log1p()
    assert (recover(values) != counts).nnz == 0
    halves = [recover(values[:2]), recover(values[2:])]
    assert (scipy.sparse.vstack(halves) != counts).nnz == 0


SPOILERS = {
    "scaled by gene": lambda v: v.multiply(np.linspace(0.5, 2, v.shape[1])).tocsr(),
    "shifted": lambda v: scipy.sparse.csr_matrix((v.data + 0.01, v.indices, v.indptr), v.shape),
    "average of logarithms": lambda v: (v[:60] + v[60:]) / 2,
    "average of amounts": lambda v: (v[:60].expm1() + v[60:].expm1()).multiply(0.5).tocsr().log1p(),
    "rounded": rounded,
    "powers": lambda v: v.power(0.5),
    "negative": lambda v: v - v.multiply(2),
    "one cell is not": lambda v: scipy.sparse.vstack([v, v[:1] * 0.83], format="csr"),
    "few genes": lambda v: v[:, :6],
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_values_that_hide_no_whole_counts_are_refused(cells, spoil):
    assert recover(spoil(normalised(cells.X)).astype("float32").tocsr()) is None


def test_averages_of_counts_are_refused(cells):
    assert recover((cells.X[:60] + cells.X[60:]) / 2) is None


def test_with_the_depth_values_of_three_decimals_are_enough(cells):
    values, depth = rounded(normalised(cells.X)), np.asarray(cells.X.sum(axis=1)).ravel()
    assert (recover(values, depth) != cells.X).nnz == 0
    assert recover(values, depth[::-1]) is None and recover(values, depth / 2) is None
    cells.X, cells.obs["n_counts"] = values, depth
    found, where = genes.find_counts(cells)
    assert where == "X (logarithms; counts recovered by depth)" and found.max() == found.data.max()


@real
@pytest.mark.parametrize("name", ["kang_ifnb_sub", "pbmc3k"])
@pytest.mark.parametrize("scale", [1e4, None])
def test_counts_of_real_cells_come_back_exactly_from_what_scanpy_made_of_them(name, scale):
    import scanpy

    cells = reading.read(DATA / f"{name}.h5ad")
    counts = cells.X.astype(np.float32)
    cells.X = counts.copy()
    scanpy.pp.normalize_total(cells, target_sum=scale)
    scanpy.pp.log1p(cells)
    assert cells.X.dtype == np.float32 and (recover(cells.X) != counts).nnz == 0
    assert genes.find_counts(cells)[1] == "X (logarithms; counts recovered exactly)"


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
    (["ENSDARG00000037746", "ENSDARG00000055618"], ("Ensembl", "zebrafish")),
    (["0", "1", "2"], ("numbers", None)),
    (["YAL001C", "YAL002W"], ("symbols", None)),
])
def test_names_are_described(names, expected):
    assert genes.describe_names(names) == expected


TABLE = pd.DataFrame({
    "symbol": ["MARCHF1", "SEPTIN1", "CCL3L3", "CCL3L1", "ACTB", "OLD1"],
    "status": ["Approved"] * 5 + ["Entry Withdrawn"],
    "prev_symbol": ["MARCH1", "SEPT1|PNUTL3", "", "", "", ""],
    "alias_symbol": ["RNF171|ACTB", "DIFF6", "LD78", "LD78", "", "CD74"],
    "ensembl_gene_id": ["ENSG00000145416", "", "", "", "ENSG00000075624", ""],
})
ORTHOLOGS = pd.DataFrame({
    "human_symbol": ["ACTB", "CD74", "H2X", "H2X"],
    "mouse_symbol": ["Actb", "Cd74", "H2-a", "H2-b"],
    "mouse_ensembl_id": ["ENSMUSG00000029580", "", "", ""],
})
PANEL = ["MARCHF1", "SEPTIN1", "ACTB", "CD74", "CCL3L3"]


@pytest.mark.parametrize(("name", "gene", "how", "outcome"), [
    ("CD74", "CD74", "symbol", "matched"),
    ("GRCh38_CD74", "CD74", "prefix removed", "renamed"),
    ("MARCH1", "MARCHF1", "previous symbol", "renamed"),
    ("PNUTL3", "SEPTIN1", "previous symbol", "renamed"),
    ("RNF171", "MARCHF1", "alias", "renamed"),
    ("ENSG00000145416", "MARCHF1", "Ensembl", "renamed"),
    ("ENSG00000145416.12", "MARCHF1", "Ensembl", "renamed"),
    ("ACTB", "ACTB", "symbol", "matched"),  # an alias of MARCHF1 too
    ("LD78", "", "ambiguous", "dropped"),
    ("OLD1", "", "none", "dropped"),
    ("Actb", "ACTB", "ortholog", "renamed"),
    ("ENSMUSG00000029580.3", "ACTB", "ortholog", "renamed"),
    ("H2-a", "", "none", "dropped"),  # one to many
])
def test_a_name_finds_its_gene(name, gene, how, outcome):
    found = genes.match([name], PANEL, TABLE, ORTHOLOGS).iloc[0]
    assert found.tolist() == [name, gene, how, outcome]


def test_older_names_may_stand_in_the_panel_and_identifiers_too():
    found = genes.match(["MARCHF1", "ACTB"], ["MARCH1", "ENSG00000075624.5"], TABLE)
    assert found["gene"].tolist() == ["MARCH1", "ENSG00000075624.5"]
    assert found["how"].tolist() == ["previous symbol", "Ensembl"]


def test_the_plainest_name_of_a_gene_wins_and_equals_are_merged():
    names = ["RNF171", "MARCHF1", "DIFF6", "PNUTL3", "SEPT1", "ACTB", "ACTB"]
    found = genes.match(names, PANEL, TABLE)
    assert found["outcome"].tolist() == ["dropped", "matched", "dropped", *["merged"] * 4]
    assert found["how"].tolist()[:3] == ["outranked", "symbol", "outranked"]
    counts = scipy.sparse.csr_matrix([[1, 2, 4, 8, 16, 32, 64]])
    aligned, matched = genes.align(found["gene"], counts, PANEL)
    assert aligned.toarray().tolist() == [[2, 24, 96, 0, 0]] and matched == 3


def test_without_a_table_only_exact_names_match():
    found = genes.match(["CD74", "MARCH1", "Actb"], PANEL)
    assert found["outcome"].tolist() == ["matched", "dropped", "dropped"]


def test_renamed_cells_keep_their_counts_and_their_given_names():
    cells = small([[1, 2, 4]], ["MARCH1", "XYZ", "DIFF6"])
    renamed, found = genes.rename(cells, table=TABLE)
    assert renamed.var_names.tolist() == ["MARCHF1", "SEPTIN1"] and len(found) == 3
    assert renamed.X.tolist() == [[1, 4]] and cells.var_names.tolist() == ["MARCH1", "XYZ", "DIFF6"]
    assert renamed.var["given_name"].tolist() == ["MARCH1", "DIFF6"]
    with pytest.raises(InputError, match="the cells have MARCH1, XYZ, DIFF6, the panel has A"):
        genes.rename(cells, ["A"])
    with pytest.raises(InputError, match="needs a panel or a gene table"):
        genes.rename(cells)


@real
def test_the_table_of_symbols_brings_real_cells_to_the_panel_of_19264_genes():
    table, panel = registry.table("hgnc"), registry.table("panel_19264")["gene_name"]
    names = reading.read(DATA / "pbmc3k.h5ad").var_names
    exact, found = genes.match(names, panel), genes.match(names, panel, table)
    kept = exact["gene"] != ""
    assert (~kept & (found["gene"] != "")).sum() > 600
    assert found["gene"][kept].equals(exact["gene"][kept])
    assert not set(found["how"][~kept]) & {"symbol", "Ensembl", "ortholog"}


@real
def test_symbols_and_published_identifiers_of_the_same_genes_agree():
    table, panel = registry.table("hgnc"), registry.table("panel_19264")["gene_name"]
    var = reading.read(DATA / "kang_muscat_example.h5ad").var
    by_symbol = genes.match(var.index, panel, table)
    by_identifier = genes.match(var["ensembl_id"].astype(str), panel, table)
    both = (by_symbol["gene"] != "") & (by_identifier["gene"] != "")
    renamed = both & by_symbol["how"].isin(["previous symbol", "alias"])
    assert both.sum() > 1000 and renamed.sum() > 40
    same = by_symbol["gene"] == by_identifier["gene"]
    assert same[both].mean() > 0.99 and same[renamed].mean() > 0.9


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
