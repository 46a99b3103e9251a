"""Benchmark tasks: truth that was planted is scored as such, and chance as chance."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cellvq import InputError, evaluate, simulate, tasks


@pytest.fixture(scope="module")
def cells():
    """Simulated cells, encoded by the simplest model there is: PCA and k-means."""
    cells = simulate.simulate_cells(cells=600, seed=2)
    cells.uns["dataset"] = "simulated"
    cells.obsm["X_cellvq"] = tasks.pca_embedding(cells, 20, seed=1)
    codes = evaluate.kmeans_codes(cells.obsm["X_cellvq"], 12, seed=1)
    cells.obs["cellvq_code"] = pd.Categorical([f"C{code:02d}" for code in codes])
    return cells


@pytest.fixture(scope="module")
def scores(cells):
    return pd.concat([tasks.compare(cells, "cell_type", seed=seed) for seed in range(5)])


def test_pca_is_scanpy_s_standard_recipe(cells):
    import scanpy as sc

    work = AnnData(cells.X.copy())
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    sc.pp.filter_genes(work, min_cells=1)
    work.X = work.X.toarray()
    sc.pp.scale(work, max_value=10)
    sc.pp.pca(work, n_comps=10, random_state=0)
    ours = tasks.pca_embedding(cells, 10)
    assert ours.dtype == np.float32 and ours.shape == (600, 10)
    assert np.abs(ours - work.obsm["X_pca"]).max() < 1e-2


def test_pca_leaves_the_cells_as_they_are(cells):
    before, columns = cells.X.copy(), list(cells.obs)
    tasks.pca_embedding(cells, 5, variable_genes=100)
    assert (cells.X != before).nnz == 0 and list(cells.obs) == columns
    assert "X_pca" not in cells.obsm and "hvg" not in cells.uns


def test_compare_scores_everybody_on_the_same_cells(scores):
    assert list(scores.columns) == tasks.SCORE_COLUMNS
    methods = scores.groupby("representation")["method"].unique()
    assert set(methods["embedding"]) == {
        "CellVQ", "PCA", "PCA, as wide as CellVQ", "CellVQ (labels shuffled)",
    }
    assert set(methods["code"]) == {"CellVQ", "k-means on PCA", "CellVQ (labels shuffled)"}
    assert scores["value"].notna().all() and scores["n_cells"].unique() == [600]
    used = scores[scores["metric"] == "codes_used"]
    assert (used["value"] == 12).all()  # the baseline has as many codes as are in use
    assert not scores.duplicated(["method", "representation", "metric", "seed"]).any()


def test_planted_types_are_found_and_shuffled_labels_are_not(scores):
    mean = scores.groupby(["method", "representation", "metric"])["value"].mean()
    assert mean["CellVQ", "embedding", "macro_f1"] > 0.9
    assert mean["CellVQ", "code", "purity"] > 0.85
    assert mean["CellVQ (labels shuffled)", "embedding", "macro_f1"] < 0.3
    assert abs(mean["CellVQ (labels shuffled)", "embedding", "ari"]) < 0.03
    assert abs(mean["CellVQ (labels shuffled)", "code", "ari"]) < 0.03


def test_compare_leaves_out_cells_without_label_or_code(cells):
    some = cells.copy()
    some.obs["cell_type"] = some.obs["cell_type"].astype(object)
    some.obs.iloc[:50, some.obs.columns.get_loc("cell_type")] = ""
    some.obsm["X_cellvq"][50:60] = np.nan
    some.obs.iloc[50:60, some.obs.columns.get_loc("cellvq_code")] = np.nan
    scores = tasks.compare(some, "cell_type", donor="donor")
    assert scores.loc[scores["task"] != "usage", "n_cells"].unique() == [540]
    assert scores.loc[scores["task"] == "usage", "n_cells"].unique() == [590]


def test_summary_has_an_interval_over_seeds(scores):
    table = tasks.summarise(scores)
    assert (table["seeds"] == 5).all()
    assert (table["low"] <= table["mean"] + 1e-12).all()
    assert (table["mean"] <= table["high"] + 1e-12).all()
    single = tasks.summarise(scores[scores["seed"] == 0])
    assert single["low"].isna().all() and single["mean"].notna().all()


def make_scores(**values):
    return pd.concat([
        pd.DataFrame({
            "dataset": "d", "task": "annotation", "method": method.replace("_", " "),
            "representation": "embedding", "metric": "macro_f1", "seed": range(len(column)),
            "value": column, "n_cells": 10, "n_groups": 2,
        })
        for method, column in values.items()
    ])


@pytest.mark.parametrize(("values", "word"), [
    ([0.81, 0.82, 0.80, 0.83, 0.81], "ahead"),
    ([0.71, 0.72, 0.70, 0.73, 0.71], "behind"),
    ([0.71, 0.86, 0.80, 0.73, 0.78], "not distinguishable"),
])
def test_verdicts_against_a_deterministic_baseline(values, word):
    scores = make_scores(CellVQ=values, PCA=[0.77] * 5)
    verdict = tasks.verdict(scores)
    assert verdict.word == word and verdict.difference.n == 5
    assert verdict.difference.estimate == pytest.approx(np.mean(values) - 0.77)
    assert word in str(verdict) and "PCA" in str(verdict) and "n = 5" in str(verdict)


def test_verdicts_pair_by_seed_and_say_what_is_missing():
    scores = make_scores(CellVQ=[0.81, 0.82, 0.80, 0.83], PCA=[0.80, 0.81, 0.79, 0.82])
    scattered = scores.sample(frac=1, random_state=0)
    assert tasks.verdict(scattered).difference.low == pytest.approx(0.01)
    assert tasks.verdict(scattered).word == "ahead"
    assert tasks.verdict(make_scores(CellVQ=[0.9], PCA=[0.1])).word == "not distinguishable"
    with pytest.raises(InputError, match="no macro_f1 of scVI"):
        tasks.verdict(scores, baseline="scVI")
    one, other = make_scores(CellVQ=[0.9]), make_scores(PCA=[0.1]).assign(seed=7)
    with pytest.raises(InputError, match="share no seed"):
        tasks.verdict(pd.concat([one, other]))


def test_verdict_table_judges_scores_and_not_usage(scores):
    table = tasks.verdicts(scores)
    assert not set(table["metric"]) & {"codes_used", "perplexity"}
    control = table[table["baseline"].str.contains("shuffled")]
    assert (control["verdict"] == "ahead").all() and (table["seeds"] == 5).all()
    assert tasks.verdicts(scores[scores["seed"] < 0]).empty


def test_bad_input_is_said_in_one_line(cells):
    with pytest.raises(InputError, match="no column 'typ'; there are cell_type"):
        tasks.score_embedding(cells, "X_cellvq", "typ")
    with pytest.raises(InputError, match="obsm has no 'X_scvi'"):
        tasks.score_embedding(cells, "X_scvi", "cell_type")
    with pytest.raises(InputError, match="no column 'leiden'"):
        tasks.score_codes(cells, "leiden", "cell_type")


def test_stand_in_label_for_more_cells_than_scanpy_treats_exactly():
    cells = simulate.simulate_cells(cells=5000, genes=260, cell_types=3, pairs=2, seed=2)
    found, label = tasks.with_label(cells, "")
    assert label == "leiden" and "leiden" not in cells.obs
    agreement = evaluate.agreement(cells.obs["cell_type"], found.obs["leiden"])
    assert agreement["nmi"] > 0.5
