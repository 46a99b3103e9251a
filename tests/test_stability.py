"""Stability of codes: agreement of runs, single codes with their null, alignment of models."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cellvq import InputError, replicates, simulate, stability


def encoded(codes, vectors=None):
    """Cells with codes and, if given, vectors."""
    cells = AnnData(obs=pd.DataFrame({"cellvq_code": pd.Categorical(codes)},
                                     index=[f"cell {i}" for i in range(len(codes))]))
    if vectors is not None:
        cells.obsm["X_cellvq"] = np.asarray(vectors, dtype=np.float32)
    return cells


@pytest.fixture(scope="module")
def blobs():
    """Three groups far apart, the third with three cells, and vectors to tell them by."""
    number = np.repeat([0, 1, 2], [60, 40, 3])
    noise = np.random.default_rng(0).normal(size=(len(number), 2))
    return encoded([f"C{n}" for n in number], 20 * np.eye(3, 2)[number] + noise), number


def test_a_code_that_other_runs_dissolve_is_unstable(blobs):
    cells, number = blobs
    rng = np.random.default_rng(1)
    # The other runs find the first group, and cut the rest at random.
    runs = pd.DataFrame(
        {f"run {i}": np.where(number == 0, "K0", rng.choice(["K1", "K2", "K3"], len(number)))
         for i in range(3)}, cells.obs_names)
    table = stability.code_stability(cells, runs).set_index("code")
    assert table.loc["C0", "stable"] == "stable" and table.loc["C0", "stability"] == 1
    assert table.loc["C1", "stable"] == "unstable"
    assert (table["null"] < 0.7).all() and (table["runs"] == 3).all()


def test_a_code_of_nearly_all_cells_is_not_stable_by_its_size():
    cells = encoded(["C0"] * 97 + ["C1"] * 3)
    rng = np.random.default_rng(0)
    runs = pd.DataFrame({"run": rng.permutation(["K0"] * 97 + ["K1"] * 3)}, cells.obs_names)
    table = stability.code_stability(cells, runs).set_index("code")
    assert table.loc["C0", "stability"] > 0.9  # it overlaps by chance alone
    assert table.loc["C0", "stable"] == "unstable"


def test_parents_are_measured_beside_their_codes():
    codes = ["C0.0", "C0.1", "C1.0", "C1.1"] * 15
    cells = encoded(codes)
    swapped = {"C0.0": "K5.1", "C0.1": "K5.0", "C1.0": "K2.0", "C1.1": "K2.0"}
    runs = pd.DataFrame({"run": [swapped[code] for code in codes]}, cells.obs_names)
    table = stability.code_stability(cells, runs).set_index("code")
    assert table.loc[["C0", "C1", "C0.0", "C0.1"], "stability"].tolist() == [1, 1, 1, 1]
    assert table.loc["C1.0", "stability"] == 0.5 and table.loc["C1.0", "stable"] == "unstable"
    assert table["level"].tolist() == [0, 0, 1, 1, 1, 1]


def test_cells_without_a_code_are_left_out():
    cells = encoded(["C0"] * 10 + ["C1"] * 10 + [None] * 5)
    runs = pd.DataFrame({"run": ["K0"] * 10 + [None] * 2 + ["K1"] * 8 + ["K9"] * 5},
                        cells.obs_names)
    table = stability.code_stability(cells, runs).set_index("code")
    assert table["cells"].tolist() == [10, 10]
    assert table.loc["C1", "stability"] == 0.8  # a missing code matches nothing


def test_runs_of_other_cells_are_refused(blobs):
    cells, _ = blobs
    with pytest.raises(InputError, match="encode the same cells"):
        stability.code_stability(cells, pd.DataFrame({"run": ["K0"]}, ["another cell"]))


def test_resampling_finds_groups_that_are_there_and_not_those_that_are_not(blobs):
    cells, number = blobs
    runs = stability.resampled(cells, draws=3)
    table = stability.code_stability(cells, runs).set_index("code")
    assert table.loc[["C0", "C1"], "stability"].min() > 0.9
    rng = np.random.default_rng(0)
    nothing = encoded(rng.choice(["C0", "C1", "C2"], 300), rng.normal(size=(300, 2)))
    table = stability.code_stability(nothing, stability.resampled(nothing, draws=3))
    assert (table["stable"] == "unstable").all()


def test_alignment_finds_the_permutation_and_its_test_sees_chance():
    rng = np.random.default_rng(0)
    genes = [f"GENE{i}" for i in range(50)]
    first = pd.DataFrame(rng.normal(size=(6, 50)), [f"C{i}" for i in range(6)], genes)
    order = [3, 0, 5, 1, 4, 2]
    noisy = first.to_numpy()[order] + 0.3 * rng.normal(size=(6, 50)) + 7  # another offset
    second = pd.DataFrame(noisy, [f"K{i}" for i in range(6)], genes).iloc[:, ::-1]
    pairs = stability.align(first, second)
    assert dict(zip(pairs["second"], pairs["first"], strict=True)) == {
        f"K{i}": f"C{n}" for i, n in enumerate(order)}
    assert (pairs["correlation"] > pairs["next_best"]).all()
    one = pd.Series(rng.choice(first.index, 200))
    right = one.map(dict(zip(pairs["first"], pairs["second"], strict=True)))
    test = stability.aligned_share(pairs, one, right)
    assert test.observed == 1 and test.p < 0.01
    assert stability.aligned_share(pairs, one, right.sample(frac=1, random_state=0)).p > 0.05


def test_models_without_common_genes_cannot_be_aligned():
    one = pd.DataFrame(np.eye(3, 12), list("abc"), [f"A{i}" for i in range(12)])
    with pytest.raises(InputError, match="share 0 genes"):
        stability.align(one, one.add_prefix("x"))


def test_interval_is_over_runs_and_not_over_pairs():
    rows = [(f"r{i}", f"r{j}", 0.7 + 0.02 * (i + j)) for i in range(5) for j in range(i)]
    table = pd.DataFrame(rows, columns=["first", "second", "ami"]).assign(
        kind="seeds", method="m", null_mean=0.0, n_cells=10)
    row = stability.summary(table).iloc[0]
    assert (row["pairs"], row["runs"]) == (10, 5)
    over_pairs = 2.26 * table["ami"].std() / np.sqrt(10)
    assert row["high"] - row["mean"] > over_pairs  # pairs that share a run tell less
    two = table[table["first"].isin(["r1"])]
    assert np.isnan(stability.summary(two)["low"]).all()


def test_halves_are_disjoint_and_donors_whole():
    cells = simulate.simulate_cells(cells=300)
    runs = {run.name: run for run in replicates.plan(cells, [0], draws=2, donor="donor")}
    assert not set(runs["half 1a"].rows) & set(runs["half 1b"].rows)
    assert len(runs["half 1a"].rows) + len(runs["half 1b"].rows) == 300
    donors = [set(cells.obs["donor"].iloc[runs[f"donors 1{side}"].rows]) for side in "ab"]
    assert donors[0] and donors[1] and not donors[0] & donors[1]
    assert not np.array_equal(runs["half 1a"].rows, runs["half 2a"].rows)


def test_one_donor_gives_no_halves_of_donors():
    cells = simulate.simulate_cells(cells=200)
    cells.obs["donor"] = "only"
    kinds = {run.kind for run in replicates.plan(cells, [0], donor="donor")}
    assert kinds == {replicates.SEEDS, replicates.HALVES}


def test_too_few_cells_name_the_run():
    cells = simulate.simulate_cells(cells=60)
    runs = [run for run in replicates.plan(cells, []) if run.name == "half 1a"]
    with pytest.raises(InputError, match=r"half 1a \(30 cells\)"):
        replicates.replicate(cells, runs, codes=32, steps=3)
