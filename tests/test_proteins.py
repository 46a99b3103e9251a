"""Proteins read from codes: what is planted is found, noise is not, and bad input is told."""

import os
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeCV

from cellvq import (
    InputError,
    datasets,
    proteinreading,
    proteins,
    proteinverdicts,
    proteinview,
    simulate,
    tasks,
)
from cellvq.proteinreading import BASE, CODES, DEPTH, KMEANS, PCA, SHUFFLED, plus

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "h5ad").is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)


@pytest.fixture(scope="module")
def cells():
    """Codes are cell types, each in two halves of which the RNA knows nothing; one is for a half.

    ``hidden`` follows the halves, ``kind`` a cell type, ``axis`` the first component, and two
    antibodies bind nothing. A tenth is called ``constant``, which every cell lacks.
    """
    cells = simulate.simulate_cells(cells=400, genes=300, cell_types=4, seed=3)
    rng = np.random.default_rng(0)
    half = rng.integers(2, size=400)
    kind = pd.factorize(cells.obs["cell_type"], sort=True)[0]
    cells.obs["cellvq_code"] = [f"C{one}.{two}" for one, two in zip(kind, half, strict=True)]
    axis = tasks.pca_embedding(cells, 1)[:, 0]
    logs = np.column_stack([1.0 * half, 1.5 * (kind == 1), 0.6 * axis / axis.std(),
                            np.zeros((400, 2))])
    counts = rng.poisson(20 * np.exp(logs + rng.normal(0, 0.2, (400, 1))))
    cells.obsm["protein_counts"] = np.column_stack([counts, np.zeros(400, int)])
    cells.obsm["X_cellvq"] = tasks.pca_embedding(cells, 6)
    cells.uns["protein_names"] = ["hidden", "kind", "axis", "noise 1", "noise 2", "constant"]
    return cells


@pytest.fixture(scope="module")
def values(cells):
    return proteins.protein_values(cells, batch="batch")


@pytest.fixture(scope="module")
def reading(cells, values):
    return proteinreading.read([cells, cells], values, batch="batch")


def test_values_have_one_scale_in_every_batch_and_empty_proteins_are_named(cells, values):
    assert list(values) == ["hidden", "kind", "axis", "noise 1", "noise 2"]
    assert values.attrs["left_out"] == ["constant"]
    of = values.groupby(cells.obs["batch"].to_numpy())
    assert np.allclose(of.mean(), 0) and np.allclose(of.std(ddof=0), 1)


def test_what_codes_carry_beyond_rna_is_found_and_nothing_else(reading):
    table = proteinverdicts.beyond_pca(reading).set_index("protein")
    assert table.index[0] == proteinverdicts.ALL
    assert table.loc["hidden", "verdict"] == "beyond PCA" and table.loc["hidden", "low"] > 0.3
    rest = table.loc[["axis", "noise 1", "noise 2"]]
    assert set(rest["verdict"]) == {"not shown"}
    assert set(table["baseline"]) <= set(proteinverdicts.rivals(reading))


def test_shares_are_near_the_truth_and_shuffled_codes_near_zero(reading):
    shares = proteinverdicts.scores(reading).set_index(["method", "protein"])
    assert shares.loc[(CODES, "hidden"), "share"] > 0.5 > 0.1 > shares.loc[(PCA, "hidden"), "share"]
    assert shares.loc[(CODES, "kind"), "share"] > 0.5
    assert shares.loc[(PCA, "axis"), "share"] > shares.loc[(CODES, "axis"), "share"] + 0.03
    for name in reading.values:
        assert abs(shares.loc[(SHUFFLED, name), "share"]) < 0.05
    for method in reading.left:
        assert shares.loc[(method, "noise 1"), "share"] < 0.05
    one = shares.loc[(CODES, proteinverdicts.ALL)]
    each = shares.loc[CODES].drop(proteinverdicts.ALL)["share"]
    assert one["low"] < one["share"] < one["high"] and np.isclose(one["share"], each.mean())


def test_verdicts_say_who_is_ahead_and_who_is_behind(reading):
    table = proteinverdicts.differences(reading, CODES, [PCA]).set_index("protein")
    assert table.loc["hidden", "verdict"] == "ahead" and table.loc["axis", "verdict"] == "behind"
    turned = proteinverdicts.differences(reading, PCA, [CODES]).set_index("protein")
    assert np.allclose(table["difference"], -turned["difference"])
    assert turned.loc["hidden", "verdict"] == "behind"
    both = pd.concat([table.reset_index(), turned.reset_index()])
    counted = proteinverdicts.overall(both).set_index("method")
    assert counted.loc[CODES, "ahead"] == counted.loc[PCA, "behind"] >= 1
    wide = proteinverdicts.per_protein(reading)
    assert set(reading.left) < set(wide) and len(wide) == 5
    with pytest.raises(InputError, match="'totalVI' was not read"):
        proteinverdicts.differences(reading, CODES, ["totalVI"])


def test_noise_is_seldom_called_beyond_pca(cells):
    rng = np.random.default_rng(5)
    noise = pd.DataFrame(rng.normal(size=(400, 200)), index=cells.obs_names)
    noise.columns = noise.columns.astype(str)
    noise = (noise - noise.mean()) / noise.std(ddof=0)
    methods = [BASE, plus(SHUFFLED), plus(KMEANS), plus(CODES)]
    found = proteinverdicts.beyond_pca(proteinreading.read([cells], noise, methods=methods))
    assert (found["verdict"] == "beyond PCA").sum() == 0
    assert (found["p"] < 0.05).mean() <= 0.05


def test_donors_can_be_held_out_and_the_same_seed_gives_the_same(cells, values):
    options = {"batch": "batch", "hold_out": "donor", "methods": [CODES, PCA, DEPTH]}
    found, again = (proteinreading.read([cells], values, **options) for _ in range(2))
    assert found.held_out == "whole values of donor" and list(found.left) == [CODES, PCA, DEPTH]
    assert all(np.array_equal(found.left[name], again.left[name]) for name in found.left)
    share = proteinverdicts.scores(found).set_index(["method", "protein"])["share"]
    assert share[CODES, "hidden"] > 0.5


def test_ridge_chooses_the_penalty_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    inputs, new = rng.normal(size=(60, 8)), rng.normal(size=(9, 8))
    outputs = inputs @ rng.normal(size=(8, 3)) + rng.normal(size=(60, 3)) * [0.1, 3, 30]
    ours = proteinreading._ridge(inputs, outputs, new)[0]
    theirs = RidgeCV(60 * proteinreading.PENALTIES, alpha_per_target=True).fit(inputs, outputs)
    assert np.allclose(ours, theirs.predict(new))


def test_a_prediction_knows_nothing_of_the_cells_it_is_for():
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(80, 6)), rng.normal(size=(80, 3))]
    outputs = blocks[0] @ rng.normal(size=(6, 2)) + rng.normal(size=(80, 2))
    split = proteinreading._split(80, None, 4, seed=0)
    assert np.array_equal(np.sort(np.concatenate([test for _, test in split])), np.arange(80))
    said = outputs - proteinreading._unread(blocks, outputs, split)
    for train, test in split:
        other = outputs.copy()
        other[test] = rng.normal(size=other[test].shape)
        again = other - proteinreading._unread(blocks, other, [(train, test)])
        assert np.allclose(again[test], said[test])


def test_a_ratio_within_cells_makes_noise_follow_the_cell(cells, values, reading):
    tied = proteins.protein_values(cells, batch="batch", per_cell=True)
    seen = proteinreading.read([cells], tied, batch="batch", methods=[CODES])
    share = proteinverdicts.scores(seen).set_index("protein")["share"]
    assert share["noise 1"] > 0.1  # the mean over proteins, of which half follow the code


def test_codes_that_carry_a_protein_are_named_and_batches_are_no_codes(cells, values):
    strata = proteins.strata_of(cells, "batch")
    table = proteins.code_table(values, cells.obs["cellvq_code"], strata=strata)
    kind = table[(table["protein"] == "kind") & (table["difference"] > 0) & (table["fdr"] < 0.05)]
    assert set(kind["code"]) == {"C1.0", "C1.1"}
    noise = table[table["protein"].str.startswith("noise")]
    assert (noise["p"] < 0.05).mean() < 0.3 and table["p"].is_monotonic_increasing
    # Codes that stand mostly in one batch, and a protein that is only stained better there.
    rng = np.random.default_rng(0)
    lean = np.where(rng.random(400) < 0.8, strata, 1 - strata).astype(str)
    stained = pd.DataFrame({"CD3": strata + rng.normal(size=400)})
    assert proteins.code_table(stained, lean)["p"].max() < 1e-3
    assert proteins.code_table(stained, lean, strata=strata)["p"].min() > 1e-3


def test_codes_within_a_cluster_are_told_apart_by_a_protein(cells, values, reading):
    codes, clusters = cells.obs["cellvq_code"], cells.obs["cell_type"]
    strata = proteins.strata_of(cells, "batch")
    table = proteins.inside_clusters(values, codes, clusters, strata=strata, draws=300)
    table = table.set_index("protein")
    assert table.index[0] == "hidden" and table.loc["hidden", "share"] > 0.4
    assert (table.drop("hidden")["p"] > 0.01).all()
    assert np.allclose(table["share_null"], table["share_null"].mean(), atol=0.02)
    rng = np.random.default_rng(1)
    noise = pd.DataFrame(rng.normal(size=(400, 300)))
    seen = proteinverdicts.inside(reading, [cells, cells], clusters, strata=strata, draws=300)
    assert seen.loc[seen["left"] == 1, "protein"].tolist() == ["hidden"]
    p = proteins.inside_clusters(noise, codes, clusters, draws=200)["p"]
    assert 0.02 < (p < 0.05).mean() < 0.09 and 0.45 < p.mean() < 0.55


def test_files_are_joined_on_what_all_of_them_measured(cells):
    one, other = cells[:200].copy(), cells[200:].copy()
    other.obsm["protein_counts"] = np.asarray(other.obsm["protein_counts"])[:, [3, 0]]
    other.uns["protein_names"] = ["noise 1", "hidden"]
    whole = proteins.join([one, other])
    assert whole.uns["protein_names"] == ["hidden", "noise 1"] and whole.n_obs == 400
    assert np.array_equal(whole.obsm["protein_counts"], cells.obsm["protein_counts"][:, [0, 3]])
    other.uns["protein_names"] = ["A", "B"]
    with pytest.raises(InputError, match="share no protein"):
        proteins.join([one, other])


def spoilt(counts=None, names=("A", "B")):
    obsm = {} if counts is None else {"protein_counts": np.asarray(counts, dtype=float)}
    uns = {} if names is None else {"protein_names": list(names)}
    return anndata.AnnData(obs=pd.DataFrame(index=map(str, range(30))), obsm=obsm, uns=uns)


GOOD = np.random.default_rng(0).poisson(5, (30, 2)).astype(float)


@pytest.mark.parametrize(("bad", "message"), [
    (spoilt(), "obsm has no 'protein_counts'; there are none"),
    (spoilt(GOOD, None), "2 proteins and no names"),
    (spoilt(GOOD, "A"), "2 proteins and 1 names"),
    (spoilt(GOOD, "AA"), "'A' occurs twice"),
    (spoilt(np.where(GOOD == 5, np.nan, GOOD)), "holds no whole counts in 'A'"),
    (spoilt(np.log1p(GOOD)), "holds no whole counts in 'A'"),
    (spoilt(-GOOD), "holds no whole counts in 'A'"),
    (spoilt(0 * GOOD), "no protein has counts in 10 cells"),
])
def test_bad_counts_get_one_clear_line(bad, message):
    with pytest.raises(InputError, match=message) as told:
        proteins.protein_values(bad)
    assert "\n" not in str(told.value)


def test_cells_that_do_not_fit_get_one_clear_line(cells, values):
    with pytest.raises(InputError, match="not the same cells"):
        proteinreading.read([cells[::-1]], values)
    with pytest.raises(InputError, match="not the same cells"):
        proteinreading.read([], values)
    with pytest.raises(InputError, match="PCA has 3 rows for 400 cells"):
        proteinreading.read([cells], values, pca=np.ones((3, 2)))
    with pytest.raises(InputError, match="'scVI' cannot be read here"):
        proteinreading.read([cells], values, methods=["scVI"])
    plain = cells.copy()
    plain.obs["one"] = "same"
    with pytest.raises(InputError, match=r"obs\['one'\] has one value only"):
        proteinreading.read([plain], values, hold_out="one")
    plain.obs["cellvq_code"] = None
    with pytest.raises(InputError, match="not every cell has a code"):
        proteinreading.read([plain], values)
    with pytest.raises(InputError, match="obs has no column 'plate'"):
        proteins.protein_values(cells, batch="plate")
    with pytest.raises(InputError, match="3 codes or clusters for 400 cells"):
        proteins.code_table(values, ["C0", "C1", "C2"])


def test_figures_show_what_the_tables_hold(cells, values, reading):
    shares = proteinverdicts.scores(reading, draws=50)
    ax = proteinview.share_dots(shares[shares["protein"] == proteinverdicts.ALL])
    assert len(ax.get_yticklabels()) == len(reading.left)
    table = proteinverdicts.beyond_pca(reading, draws=50).iloc[1:]
    ax = proteinview.added_dots(table)
    assert ax.get_yticklabels()[-1].get_text() == "hidden"
    codes = proteins.code_table(values, cells.obs["cellvq_code"])
    ax = proteinview.code_map(codes, most=3)
    assert len(ax.get_yticklabels()) == 3
    assert "no code" in proteinview.code_map(codes.iloc[:0]).texts[0].get_text()
    plt.close("all")


@real
def test_real_antibodies_are_read():
    cells = datasets.load("eccite_citefuse")
    values = proteins.protein_values(cells)
    assert values.shape == (500, 48) and values.attrs["left_out"] == ["CD223 (lag3)"]
