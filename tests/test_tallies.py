"""Tallies: shards add up bit for bit, and the tests made of them hold their nulls and the truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cellvq import (
    InputError,
    evaluate,
    markers,
    pseudobulk,
    simulate,
    tallies,
    tallylabels,
    tallymarkers,
)


def as_codes(cells, column="cell_type", parent=""):
    cells.obs["cellvq_code"] = parent + cells.obs[column].astype(str).str.replace("type_", "C")
    return cells


@pytest.fixture(scope="module")
def cells():
    made = as_codes(simulate.simulate_cells(cells=900, seed=3))
    made.obsm["X_cellvq"] = made.obsm["program_activity"]
    return made


COLUMNS = {"donor": "donor", "condition": "condition", "labels": ["lineage", "batch"]}


@pytest.fixture(scope="module")
def made(cells):
    return tallies.tally(cells, **COLUMNS)


def assert_same(first, second):
    assert first.names == second.names
    for name in ("counts", "sums", "squares", "detected", "cubes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name in ("groups", "labels", "places"):
        pd.testing.assert_frame_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("seed", range(3))
def test_shards_add_up_bit_for_bit_in_any_order(cells, made, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(cells.n_obs)
    cuts = np.sort(rng.choice(cells.n_obs, 4, replace=False))
    parts = [tallies.tally(cells[rows], **COLUMNS) for rows in np.split(order, cuts) if len(rows)]
    assert_same(tallies.merge(parts), made)
    assert_same(parts[0] + tallies.merge(parts[:0:-1]), made)
    first, second = (tallymarkers.marker_table(one) for one in (tallies.merge(parts), made))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_sums_are_those_of_the_cells(cells, made):
    values = evaluate.log_normalise(cells.X, np.asarray(cells.X.sum(axis=1)).ravel()).toarray()
    for number, row in enumerate(made.groups.itertuples()):
        own = (cells.obs[["cellvq_code", "donor"]] == [row.code, row.donor]).all(axis=1).to_numpy()
        assert row.cells == own.sum() and row.depth == cells.X[own].sum()
        exact = values[own].sum(axis=0, dtype=float)
        np.testing.assert_allclose(made.sums[number] * tallies.STEP, exact, rtol=1e-6,
                                   atol=own.sum() * tallies.STEP)
        np.testing.assert_array_equal(made.detected[number], (values[own] > 0).sum(axis=0))
    assert made.cells == 900


def test_a_tally_survives_its_files_and_a_cut_one_is_refused(made, tmp_path):
    tallies.write(made, tmp_path / "one")
    assert_same(tallies.read(tmp_path / "one"), made)
    path = tmp_path / "one/sums.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="holds no whole tally"):
        tallies.read(tmp_path / "one")


def test_files_are_tallied_in_parts(cells, made, tmp_path):
    cells.write_h5ad(tmp_path / "encoded.h5ad")
    shards = list(tallies.shards(tmp_path / "encoded.h5ad", rows=250))
    assert [shard.n_obs for shard in shards] == [250, 250, 250, 150]
    assert_same(tallies.merge(tallies.tally(shard, **COLUMNS) for shard in shards), made)
    (tmp_path / "torn.h5ad").write_bytes((tmp_path / "encoded.h5ad").read_bytes()[:3000])
    with pytest.raises(InputError, match="torn.h5ad: cannot be read"):
        list(tallies.shards(tmp_path / "torn.h5ad"))


def test_other_genes_and_absent_columns_are_refused(cells, made):
    with pytest.raises(InputError, match="different genes"):
        tallies.merge([made, tallies.tally(cells[:, ::-1], **COLUMNS)])
    with pytest.raises(InputError, match="no column 'tissue'"):
        tallies.tally(cells, labels=["tissue"])
    with pytest.raises(InputError, match="no tally to merge"):
        tallies.merge([])


def test_planted_markers_lead_and_parents_are_the_sums_of_their_codes(cells):
    nested = as_codes(cells.copy(), parent="L.")
    table = tallymarkers.marker_table(tallies.tally(nested))
    truth = simulate.truth(cells)["markers"]
    for kind, genes in truth.groupby("cell_type")["gene"]:
        own = table[table["code"] == "L." + kind.replace("type_", "C")]
        own = own[(own["log2_fold_change"] > 0) & (own["fdr"] < 0.05)].sort_values("p")
        assert len(set(own["gene"]) & set(genes)) >= 9  # of ten
        assert len(set(own["gene"].head(20)) & set(genes)) >= 7  # its lineage has genes as well
    assert "L" not in set(table["code"])  # it has all cells, and nothing to compare them with
    codes = tallymarkers.sides(tallies.tally(nested)).codes
    assert codes.loc[codes["code"] == "L", "cells"].item() == 900


def test_markers_over_cells_are_those_of_shuffles(cells):
    made = tallies.tally(cells)
    table = tallymarkers.marker_table(made).set_index(["code", "gene"])
    values = evaluate.log_normalise(cells.X, np.asarray(cells.X.sum(axis=1)).ravel()).toarray()
    rng, code = np.random.default_rng(0), "C3"
    inside = (cells.obs["cellvq_code"] == code).to_numpy()
    between = table.loc[code, "p"].reindex(cells.var_names).between(0.01, 0.9).to_numpy()
    genes = np.flatnonzero(between & ((values > 0).sum(axis=0) > 60))[:40]
    draws = np.stack([values[rng.permutation(inside)][:, genes].sum(axis=0) for _ in range(4000)])
    seen = values[inside][:, genes].sum(axis=0)
    up = ((draws >= seen - 1e-9).sum(axis=0) + 1) / 4001
    down = ((draws <= seen + 1e-9).sum(axis=0) + 1) / 4001
    exact = np.minimum(1, 2 * np.minimum(up, down))
    ours = table.loc[code, "p"].reindex(cells.var_names[genes]).to_numpy()
    np.testing.assert_allclose(ours, exact, atol=0.08)
    assert np.abs(ours - exact).mean() < 0.02


@pytest.mark.parametrize("donor", [None, "donor"])
def test_random_codes_have_no_markers(donor):
    wrong, shares = 0, []
    for seed in range(20):
        cells = simulate.simulate_cells(cells=600, genes=300, cell_types=4, seed=seed)
        codes = np.random.default_rng(seed).choice(["C0", "C1", "C2", "C3"], 600,
                                                   p=[0.04, 0.16, 0.3, 0.5])
        cells.obs["cellvq_code"] = codes
        table = tallymarkers.marker_table(tallies.tally(cells, donor=donor))
        wrong += (table["fdr"] < 0.05).any()
        shares.append((table["p"] < 0.05).sum() / table["p"].notna().sum())
    assert wrong <= 3  # the chance of more is 2 % if one run in twenty has any
    assert 0.02 < np.mean(shares) < 0.065


def test_markers_over_donors_are_those_of_pseudobulk(cells, made):
    ours = tallymarkers.marker_table(made)
    theirs = pseudobulk.donor_table(cells, "donor")
    both = ours.merge(theirs, on=["code", "gene"])
    assert len(both) == len(theirs) > 1000 and (both["n_donors"] == both["donors"]).all()
    np.testing.assert_allclose(both["p"], both["donor_p"], rtol=1e-6)
    np.testing.assert_allclose(both["log2_fold_change"][both["p"].notna()],
                               both["donor_log2_fold_change"].dropna(), rtol=1e-6)
    assert ours.loc[ours["n_donors"] > 0, "null"].str.contains("n = donors").all()


def test_welch_would_call_markers_where_skewness_is_known(cells):
    """Why the test is what it is: rare genes are skewed, and t tests of them find too much."""
    rng = np.random.default_rng(1)
    values = (rng.random((3000, 400)) < 0.01) * rng.lognormal(1, 0.3, (3000, 400))
    inside = np.arange(3000) < 40
    welch = stats.ttest_ind(values[inside], values[~inside], equal_var=False).pvalue
    import anndata

    rare = anndata.AnnData(np.rint(values).astype(np.float32))
    rare.obs["n_counts"] = 1000 + np.arange(3000) % 7
    rare.obs["cellvq_code"] = np.where(inside, "C0", "C1")
    ours = tallymarkers.marker_table(tallies.tally(rare))
    ours = ours[ours["code"] == "C0"]
    assert np.nanmean(welch < 1e-6) > 0.3 and (ours["p"] < 1e-6).sum() == 0


def test_labels_are_tested_as_enrichment_does(cells, made):
    table = tallylabels.label_table(tallies.tally(cells, labels=["lineage"]))
    other = evaluate.enrichment(cells.obs["cellvq_code"], cells.obs["lineage"])
    both = table.merge(other, left_on=["code", "label"], right_on=["group", "label"])
    seen = other[other["cells"] > 0]
    assert len(both) == len(seen)
    np.testing.assert_allclose(both["p_x"], both["p_y"])
    np.testing.assert_allclose(both["log2_enrichment_x"], both["log2_enrichment_y"])
    assert tallylabels.label_table(made).attrs["left_out"] == ["batch"]


def test_borders_join_codes_that_share_a_lineage(cells):
    near = cells.copy()
    types = near.obs["cell_type"].cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [1, 0], [10, 0], [11, 0], [0, 10], [1, 10]])
    near.obsm["X_cellvq"] = centres[types] + rng.normal(0, 0.1, (near.n_obs, 2))
    made = tallies.tally(near)
    halves = pd.concat([tallies.borders(near[:400], made), tallies.borders(near[400:], made)])
    table = tallylabels.border_table(made, halves)
    found = table[table["fdr"] < 0.05]
    codes = sorted(set(near.obs["cellvq_code"]))
    pairs = {tuple(codes[i:i + 2]) for i in (0, 2, 4)}
    assert set(found[["code", "neighbour"]].itertuples(index=False, name=None)) == pairs
    assert halves["shared"].sum() == near.n_obs


def test_few_cells_and_one_code_say_why(cells):
    one = cells.copy()
    one.obs["cellvq_code"] = "C0"
    assert "others to compare" in tallymarkers.marker_table(tallies.tally(one)).attrs["reason"]
    without = cells.copy()
    del without.obs["cellvq_code"]
    with pytest.raises(InputError, match="encode the cells first"):
        tallies.tally(without)
    assert markers.CODE == "cellvq_code"
