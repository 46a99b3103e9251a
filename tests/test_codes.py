"""Code tables: markers as scanpy finds them, annotations, neighbours; simulated and real cells."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from cellvq import InputError, codes, datasets, evaluate, simulate, tasks

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "h5ad").is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)


def encode_simply(cells, count, seed=0):
    """PCA for the embedding and k-means for the codes: the contract without a model."""
    embedding = tasks.pca_embedding(cells, 20, seed=seed)
    group = evaluate.kmeans_codes(embedding, count, seed)
    centres = pd.DataFrame(embedding).groupby(group).mean().to_numpy()
    cells.obsm["X_cellvq"], cells.obsm["X_cellvq_code"] = embedding, centres[group]
    cells.obs["cellvq_code"] = pd.Categorical([f"C{code:02d}" for code in group])
    cells.obs["cellvq_confidence"] = np.linspace(0, 1, cells.n_obs)
    return cells


@pytest.fixture(scope="module")
def cells():
    return encode_simply(simulate.simulate_cells(cells=700, seed=4), 6)


@pytest.fixture(scope="module")
def markers(cells):
    return codes.marker_table(cells)


@pytest.fixture(scope="module")
def pbmc():
    return encode_simply(datasets.load("pbmc68k_reduced"), 16)


def test_markers_are_scanpy_s(pbmc):
    import scanpy as sc

    ours = codes.marker_table(pbmc).set_index(["code", "gene"])
    theirs = pbmc.copy()
    theirs.X = evaluate.log_normalise(theirs.X, theirs.obs["total_counts"].to_numpy())
    names = ours.index.unique("code").to_list()
    sc.tl.rank_genes_groups(theirs, "cellvq_code", groups=names, method="wilcoxon",
                            tie_correct=True, pts=True)
    table = sc.get.rank_genes_groups_df(theirs, None).set_index(["group", "names"])
    assert len(names) > 12 and len(ours) == len(table)
    ours = ours.loc[table.index]
    for mine, scanpy_s, exact in (
        ("score", "scores", {"abs": 1e-3}), ("log2_fold_change", "logfoldchanges", {"abs": 1e-3}),
        ("p", "pvals", {"rel": 1e-3, "abs": 1e-300}),
        ("fraction_in", "pct_nz_group", {"abs": 1e-6}),
        ("fraction_out", "pct_nz_reference", {"abs": 1e-6}),
    ):
        assert ours[mine].to_numpy() == pytest.approx(table[scanpy_s].to_numpy(), **exact), mine
    inside = pbmc.obs["cellvq_code"] == "C00"
    for gene in ("CD3D", "LYZ", "MS4A1"):
        expression = np.asarray(theirs[:, gene].X.todense()).ravel()
        assert ours.loc[("C00", gene), "auroc"] == pytest.approx(
            metrics.roc_auc_score(inside, expression), abs=1e-4
        )


def test_parents_have_the_markers_they_would_have_alone(cells):
    nested = cells.copy()
    nested.obs["cellvq_code"] = np.char.add(
        np.where(nested.obs["cellvq_code"].isin(["C00", "C01"]), "C0.", "C1."),
        nested.obs["cellvq_code"].astype(str).to_numpy(dtype=str),
    )
    table = codes.marker_table(nested, levels="all", null_draws=3)
    nested.obs["cellvq_code"] = codes.cut(nested.obs["cellvq_code"], 1)
    alone = codes.marker_table(nested)
    parents = table[table["level"] == 0].drop(columns="null_score")
    pd.testing.assert_frame_equal(parents.reset_index(drop=True), alone, rtol=1e-9)
    assert sorted(table["level"].unique()) == [0, 1]
    with pytest.raises(InputError, match="levels is 'some'"):
        codes.marker_table(nested, levels="some")


def test_blocks_of_genes_change_nothing(cells, markers, monkeypatch):
    monkeypatch.setattr("cellvq.markers.BLOCK", 3000)
    pd.testing.assert_frame_equal(codes.marker_table(cells), markers)


def test_the_null_score_is_what_random_codes_reach():
    cells = simulate.simulate_cells(cells=600, seed=2)
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(6):
        cells.obs["cellvq_code"] = rng.permutation(["C0"] * 12 + ["C1"] * 40 + ["C2"] * 548)
        table = codes.marker_table(cells, null_draws=40)
        top = table.assign(score=table["score"].abs()).groupby("code")
        reached += (top["score"].max() > top["null_score"].first()).to_list()
    assert sum(reached) <= 4  # of 18; about one is expected
    assert table["null_score"].gt(3).all()
    cells.obs["cellvq_code"] = cells.obs["cell_type"]
    assert len(codes.top_markers(codes.marker_table(cells, null_draws=20), 3)) > 6


def test_a_null_within_donors_knows_what_donors_do():
    cells = simulate.simulate_cells(cells=600, seed=2)
    cells.obs["cellvq_code"] = cells.obs["donor"].astype(str).map(
        lambda donor: "C0" if donor == cells.obs["donor"].iloc[0] else "C1")
    freely = codes.marker_table(cells, null_draws=10)
    within = codes.marker_table(cells, null_draws=10, donor="donor")
    # Codes that are donors: shuffled within donors they stay as they are.
    assert within["null_score"].iloc[0] == pytest.approx(within["score"].abs().max())
    assert freely["null_score"].iloc[0] < within["null_score"].iloc[0]
    partly = cells.copy()
    partly.obs["donor"] = partly.obs["donor"].astype(str).where(np.arange(600) > 5, "")
    assert codes.marker_table(partly, null_draws=10, donor="donor").equals(freely)


def test_constant_genes_mark_nothing(cells):
    from anndata import AnnData

    counts = np.ones((40, 3), dtype="float32")
    counts[:20, 1] = 5
    some = AnnData(counts, pd.DataFrame({"cellvq_code": ["C0"] * 20 + ["C1"] * 20},
                                        index=[f"cell {i}" for i in range(40)]))
    some.obs["total_counts"] = 50 + np.arange(40) * 0
    some.layers["counts"] = some.X.copy()
    some.layers["counts"][:, 2] = 0
    table = codes.marker_table(some, null_draws=2).set_index(["code", "gene"])
    assert np.isfinite(table).all().all() and "2" not in table.index.unique("gene")
    assert table.loc[("C0", "1"), "fdr"] < 1e-6


def test_planted_markers_lead_the_marker_table(cells, markers):
    table = codes.code_table(cells, "cell_type", markers=markers)
    type_of = table[table["purity"] > 0.9].set_index("code")["annotation"]
    assert len(type_of) >= 4
    truth = simulate.truth(cells)
    planted = truth["markers"].groupby("cell_type")["gene"].agg(set)
    signals = {*truth["communication"]["ligand"], *truth["communication"]["receptor"]}
    shared = set(truth["lineages"]["gene"])
    for code, cell_type in type_of.items():
        best = codes.top_markers(markers, 10).query("code == @code")["gene"]
        own = best.isin(planted[cell_type])
        assert own.sum() >= 6, code
        assert (own | best.isin(signals) | best.isin(shared)).sum() >= 9, code


def test_marker_table_keeps_its_schema_and_family(markers):
    assert list(markers.columns) == list(codes.MARKER_COLUMNS)
    assert markers["fdr"].to_numpy() == pytest.approx(evaluate.false_discovery_rate(markers["p"]))
    assert (markers.groupby("code")["rank"].max() == markers.groupby("code").size()).all()
    assert markers.notna().all().all()


def test_random_codes_have_no_markers():
    cells = simulate.simulate_cells(cells=400, seed=1)
    cells.obs["cellvq_code"] = np.random.default_rng(0).choice(["C0", "C1", "C2"], 400)
    assert (codes.marker_table(cells)["fdr"] < 0.05).mean() < 0.01


def test_small_codes_are_reported_and_not_tested(cells):
    some = cells.copy()
    some.obs["cellvq_code"] = some.obs["cellvq_code"].astype(str)
    some.obs.iloc[:3, some.obs.columns.get_loc("cellvq_code")] = "C99"
    table = codes.code_table(some, "cell_type").set_index("code")
    assert not table.loc["C99", "tested"] and table.loc["C99", "markers"] == ""
    assert table["tested"].sum() == len(table) - 1
    assert table.loc["C99", "cells"] == 3


def test_code_table_counts_every_cell_once(cells, markers):
    table = codes.code_table(cells, "cell_type", markers=markers)
    assert table["cells"].sum() == cells.n_obs and table["fraction"].sum() == pytest.approx(1)
    assert table["cells"].is_monotonic_decreasing
    assert (table["cells"] * table["confidence"]).sum() == pytest.approx(cells.n_obs / 2)
    assert (table["purity"] > table["purity_null"]).all()
    assert (table["nearest"] != table["code"]).all()
    vectors = pd.DataFrame(cells.obsm["X_cellvq_code"]).groupby(cells.obs["cellvq_code"].to_numpy(),
                                                                observed=True).first()
    row = table.iloc[0]
    gaps = np.linalg.norm(vectors - vectors.loc[row["code"]], axis=1)
    assert vectors.index[np.argsort(gaps)[1]] == row["nearest"]
    assert np.sort(gaps)[1] == pytest.approx(row["nearest_distance"], rel=1e-5)


def test_without_labels_there_is_no_annotation(cells, markers):
    assert "annotation" not in codes.code_table(cells, markers=markers)
    some = cells.copy()
    some.obs["partly"] = some.obs["cell_type"].astype(str)
    in_first = some.obs["cellvq_code"] == "C00"
    some.obs.loc[in_first, "partly"] = ""
    row = codes.code_table(some, "partly", markers=markers).set_index("code").loc["C00"]
    assert row["annotation"] == "" and np.isnan(row["purity"])
    with pytest.raises(InputError, match="no column 'typ'"):
        codes.code_table(some, "typ", markers=markers)


def test_purity_null_is_matched_in_size(cells):
    rng = np.random.default_rng(0)
    some = cells.copy()
    some.obs["cellvq_code"] = np.where(np.arange(700) < 8, "C0", "C1")
    some = some[rng.permutation(700)].copy()
    some.obs["cell_type"] = rng.permutation(some.obs["cell_type"].astype(str))
    table = codes.code_table(some, "cell_type").set_index("code")
    assert table.loc["C0", "purity_null"] > table.loc["C1", "purity_null"] + 0.1
    assert abs(table.loc["C1", "purity"] - table.loc["C1", "purity_null"]) < 0.02


def test_neighbouring_codes_are_those_that_border_on_each_other(cells):
    line = np.sort(np.random.default_rng(0).random(600))
    some = cells[:600].copy()
    some.obsm["X_cellvq"] = some.obsm["X_cellvq_code"] = np.c_[line, 0 * line]
    some.obs["cellvq_code"] = [f"C{int(6 * x)}" for x in line]
    table = codes.neighbour_table(some, draws=500)
    found = table[(table["fdr"] < 0.05) & (table["log2_enrichment"] > 0)]
    place, other = (found[end].str[1:].astype(int) for end in ("code", "neighbour"))
    assert len(found) == 5 and (other - place == 1).all()
    assert table["shared"].sum() == 600  # every cell has one second choice
    assert table["expected"].sum() < 600
    assert codes.neighbour_table(some, draws=500).equals(table)


def test_random_codes_have_no_neighbours(cells):
    some = cells.copy()
    some.obs["cellvq_code"] = np.random.default_rng(1).choice([f"C{i}" for i in range(10)], 700)
    assert (codes.neighbour_table(some, draws=500)["fdr"] > 0.05).all()


def test_cells_without_a_code_are_left_out(cells):
    some = cells.copy()
    some.obs.iloc[:20, some.obs.columns.get_loc("cellvq_code")] = np.nan
    some.obsm["X_cellvq"][:20] = some.obsm["X_cellvq_code"][:20] = np.nan
    assert codes.code_table(some, "cell_type")["cells"].sum() == 680
    assert codes.neighbour_table(some, draws=10)["distance"].notna().all()
    del some.obs["cellvq_code"]
    with pytest.raises(InputError, match="encode the cells first"):
        codes.code_table(some)


def test_a_single_code_gives_tables_with_all_columns(cells):
    some = cells.copy()
    some.obs["cellvq_code"] = "C00"
    assert list(codes.marker_table(some).columns) == list(codes.MARKER_COLUMNS)
    table = codes.code_table(some, "cell_type")
    assert table.loc[0, "nearest"] == "" and table.loc[0, "markers"] == ""
    assert codes.neighbour_table(some, draws=5).empty


def test_map_and_centres(pbmc):
    places = codes.cell_map(pbmc)
    assert places.index.equals(pbmc.obs_names) and {"x", "y", "cell_type"} <= set(places)
    pd.testing.assert_frame_equal(places, codes.cell_map(pbmc))
    centres = codes.code_centres(places)
    assert centres["cells"].sum() == 700 and len(centres) == 16
    places["partly"] = ["", None, "B"] + ["B"] * 697
    assert codes.code_centres(places, "partly")["cells"].tolist() == [698]
    own = places[places["cellvq_code"] == centres.loc[3, "name"]]
    assert centres.loc[3, "x"] == pytest.approx(own["x"].median())


def test_codes_of_blood_cells_carry_known_markers(pbmc):
    table = codes.code_table(pbmc, "cell_type").set_index("annotation")
    b_cells = ", ".join(table.loc[["CD19+ B"], "markers"])
    assert {"MS4A1", "CD79A"} & set(b_cells.split(", "))
    progenitors = table.loc[["CD34+"]].iloc[0]
    assert progenitors["purity"] > 0.9 and progenitors["annotation_fdr"] < 1e-10


@real
def test_interferon_makes_codes_of_stimulated_monocytes():
    cells = encode_simply(datasets.load("kang_ifnb_sub"), 24)
    pairs = codes.annotation_table(cells, "condition")
    stimulated = pairs[(pairs["label"] == "stim") & (pairs["fraction"] > 0.95)]["code"]
    best = codes.top_markers(codes.marker_table(cells), 10)
    genes = set(best[best["code"].isin(stimulated)]["gene"])
    known = {"ISG15", "CXCL10", "CCL8", "IFIT1", "IFIT3", "ISG20", "CXCL11", "IDO1"}
    assert len(genes & known) >= 4


def test_the_tree_adds_up_from_leaves_to_roots(cells):
    nested = cells.copy()
    kinds = nested.obs["cell_type"].astype(str).to_numpy()
    root = np.where(np.isin(kinds, ["type_1", "type_2"]), "C0", "C1")
    nested.obs["cellvq_code"] = pd.Categorical(
        np.where(np.arange(len(kinds)) < 5, None, np.char.add(np.char.add(root, "."), kinds))
    )
    tree = codes.tree_table(nested, "cell_type").set_index("address")
    assert list(tree.index) == sorted(tree.index) and tree.loc["C0", "parent"] == ""
    roots, leaves = tree[tree["level"] == 0], tree[tree["level"] == 1]
    assert leaves.groupby("parent")["cells"].sum().to_dict() == roots["cells"].to_dict()
    assert roots["cells"].sum() == nested.n_obs - 5  # cells without a code are left out
    assert (leaves["purity"] == 1).all() and leaves.loc["C0.type_2", "annotation"] == "type_2"
    of_root = pd.Series(kinds[5:])[root[5:] == "C0"].value_counts()
    assert roots.loc["C0", "annotation"] == of_root.idxmax()
    assert roots.loc["C0", "purity"] == pytest.approx(of_root.max() / of_root.sum())
