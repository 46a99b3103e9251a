"""Intervals cover what they say, corrections are those of the textbook, ranks those of Demsar."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from cellvq import InputError, ranking, resampling, significance

SEEDS = 5


def make_calls(rng, effect=0.0, *, cells=250, donors=None, donor_spread=0.0, seed_spread=0.3):
    """Calls of two methods that err alike; the first is right more often by ``effect`` (logits).

    Cells differ in difficulty for both, each method has cells (and donors) of its own that it
    finds hard, and each seed of each method has a better or a worse day.
    """
    truth = rng.choice(4, cells, p=[0.5, 0.3, 0.15, 0.05])
    hard, parts = rng.normal(0, 1.5, cells), []
    for method, ahead in (("ours", effect), ("theirs", 0.0)):
        own = hard + ahead + rng.normal(0, 1, cells)
        if donors is not None:
            own = own + rng.normal(0, donor_spread, donors.max() + 1)[donors]
        for seed in range(SEEDS):
            logit = 1 + own + rng.normal(0, seed_spread)
            right = rng.random(cells) < 1 / (1 + np.exp(-logit))
            parts.append(pd.DataFrame({
                "method": method, "seed": seed, "cell": np.arange(cells), "truth": truth,
                "call": np.where(right, truth, rng.integers(0, 4, cells))}))
    calls = pd.concat(parts, ignore_index=True).astype({"truth": str, "call": str})
    return calls.assign(dataset="made", task="annotation", protocol="within_study",
                        representation="embedding", fold=0)


def coverage(repeats, **options):
    rng, covered = np.random.default_rng(0), 0
    for repeat in range(repeats):
        calls = make_calls(rng, cells=options.get("cells", 250), **options.get("made", {}))
        found = significance.paired_bootstrap(
            calls, "ours", "theirs", "macro_f1", draws=150, seed=repeat,
            donors=options.get("donors"))
        covered += found.low <= 0 <= found.high
    return covered / repeats


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_the_interval_covers_zero_where_two_methods_are_alike(spread):
    assert 0.90 <= coverage(150, made={"seed_spread": spread}) <= 0.99


def test_donors_are_resampled_where_they_are_the_unit():
    donors = np.arange(240) % 6
    made = {"donors": donors, "donor_spread": 1.0, "seed_spread": 0.0}
    assert coverage(100, cells=240, made=made, donors=donors) >= 0.89
    # Cells as the unit would claim far too much here: this is what the test could not miss.
    assert coverage(100, cells=240, made=made) < 0.85


def test_a_planted_difference_is_found_and_its_error_is_the_textbook_one():
    rng = np.random.default_rng(1)
    calls = make_calls(rng, effect=1.0, cells=600)
    scores = significance.score_table(pd.DataFrame(), calls)
    table = significance.verdicts(scores, ["ours"], calls, draws=200)
    assert set(table["verdict"]) == {"ahead"} and (table["low"] > 0).all()
    assert set(table["unit"]) == {"cell"} and set(table["seeds"]) == {SEEDS}
    one = calls[calls["seed"] == 0]  # a single seed: only cells are left, as in a paired t test
    right = one["truth"].eq(one["call"]).astype(float).groupby(one["method"]).apply(np.array)
    expected = stats.ttest_rel(right["ours"], right["theirs"]).confidence_interval()
    found = significance.paired_bootstrap(one, "ours", "theirs", "accuracy", draws=2000)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.004)


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "balanced_accuracy", "ari", "nmi"])
def test_scores_are_those_of_scikit_learn_also_with_weights(metric):
    rng = np.random.default_rng(2)
    truth, call = rng.integers(0, 4, 300), rng.integers(0, 5, 300)
    call[:150], call[150:] = truth[:150], np.minimum(call[150:], 3)
    weights = rng.integers(0, 4, 300)
    rows = pd.DataFrame({"truth": truth.astype(str), "call": call.astype(str)})
    counted = resampling.count_calls(rows, np.arange(300), 300, [metric])
    found = counted.score(np.stack([np.ones(300), weights]) @ counted.matrix)[metric]
    own = {"macro_f1": lambda t, c: metrics.f1_score(t, c, average="macro"),
           "accuracy": metrics.accuracy_score, "ari": metrics.adjusted_rand_score,
           "balanced_accuracy": metrics.balanced_accuracy_score,
           "nmi": metrics.normalized_mutual_info_score}[metric]
    again = np.repeat(np.arange(300), weights)
    np.testing.assert_allclose(found, [own(truth, call), own(truth[again], call[again])])


def test_cells_that_one_method_lacks_are_left_out_for_both():
    calls = make_calls(np.random.default_rng(3))
    short = calls[~(calls["method"].eq("theirs") & calls["cell"].lt(50))]
    same = calls[calls["cell"] >= 50]
    found, expected = (significance.paired_bootstrap(table, "ours", "theirs", "accuracy", draws=50)
                       for table in (short, same))
    assert found == expected
    with pytest.raises(InputError, match="share no seed"):
        significance.paired_bootstrap(calls[calls["method"] == "ours"], "ours", "theirs", "ari")


def test_losses_are_turned_round_and_scores_without_calls_use_seeds():
    rng = np.random.default_rng(4)
    cells = rng.gamma(2, 50, 200)
    losses = pd.concat([pd.DataFrame({
        "dataset": "made", "task": "denoising", "protocol": "thinning", "method": method,
        "seed": seed, "cell": np.arange(200), "metric": "poisson",
        "value": cells + rng.normal(shift, 5, 200)})
        for method, shift in (("ours", 0), ("theirs", 4)) for seed in range(3)])
    plain = pd.DataFrame({
        "dataset": "made", "task": "integration", "protocol": "scib", "method": ["ours"] * 3 +
        ["theirs"] * 3, "representation": "embedding", "metric": "total", "seed": [0, 1, 2] * 2,
        "value": [0.5, 0.6, 0.7, 0.5, 0.6, 0.7], "n_cells": 200, "n_groups": 2, "status": ""})
    scores = significance.score_table(plain, losses=losses)
    table = significance.verdicts(scores, ["ours"], losses=losses).set_index("task")
    assert table.loc["denoising", "verdict"] == "ahead"
    assert table.loc["denoising", "difference"] == pytest.approx(4, abs=1)
    assert table.loc["integration", ["low", "high", "unit"]].tolist() == [0, 0, "seed"]
    assert table.loc["integration", "verdict"] == "not distinguishable"
    plain.loc[plain["method"] == "ours", "value"] += 0.1  # alike in every seed: nothing varies
    assert significance.verdicts(plain, ["ours"])["verdict"].tolist() == ["no interval"]


def test_the_overall_score_pairs_its_parts_by_cell():
    calls = make_calls(np.random.default_rng(5))
    groups = calls.assign(task="clustering", protocol="leiden")
    calls = pd.concat([calls, groups], ignore_index=True)
    scores = significance.score_table(pd.DataFrame(), calls)
    table = significance.verdicts(scores, ["ours"], calls).set_index(["task", "metric"])
    parts = [("annotation", "macro_f1"), ("clustering", "ari"), ("clustering", "nmi")]
    whole = table.loc["overall"].iloc[0]
    assert whole["difference"] == pytest.approx(table.loc[parts, "difference"].mean())
    width = table["high"] - table["low"]
    # Errors of the parts add up, as they come from the same cells: independent ones would cancel.
    assert whole["high"] - whole["low"] > 0.8 * width.loc[parts].mean()


def test_holm_is_the_textbook_one_and_corrects_over_data_sets():
    p = pd.Series([0.01, 0.04, 0.03])
    np.testing.assert_allclose(significance.holm(p), [0.03, 0.06, 0.06])
    rng = np.random.default_rng(6)
    tables = []
    for number in range(4):
        calls = make_calls(rng, effect=0.45).assign(dataset=f"set {number}")
        scores = significance.score_table(pd.DataFrame(), calls)
        tables.append(significance.verdicts(scores, ["ours"], calls, draws=100))
    alone, joined = pd.concat(tables), significance.correct(pd.concat(tables))
    assert (joined["p_adjusted"].to_numpy() >= alone["p_adjusted"].to_numpy()).all()
    assert joined["p_adjusted"].gt(joined["p"]).any()


def test_ranks_are_those_of_the_textbook_and_failures_rank_last():
    # Table 6 of Demsar 2006: 14 data sets, C4.5 with and without two parameters tuned.
    auc = np.array([
        [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967],
        [.628, .661, .654, .657], [.882, .888, .886, .898], [.936, .931, .916, .931],
        [.661, .668, .609, .685], [.583, .583, .563, .625], [.775, .838, .866, .875],
        [1.0, 1.0, 1.0, 1.0], [.940, .962, .965, .962], [.619, .666, .614, .669],
        [.972, .981, .9751, .975], [.957, .978, .946, .970]])
    names = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]
    table = pd.DataFrame(auc, columns=names).rank(axis=1, ascending=False)
    found = ranking.critical_difference(table)
    assert found.ranks["C4.5"] == pytest.approx(3.143, abs=1e-3)
    assert found.difference == pytest.approx(1.25, abs=0.01)  # as in the paper
    assert found.p == pytest.approx(stats.friedmanchisquare(*table.to_numpy().T).pvalue)
    rows = pd.DataFrame({
        "dataset": ["a"] * 3 + ["b"] * 3, "task": "integration", "protocol": "scib",
        "metric": "total", "method": ["x", "y", "z"] * 2, "value": [.9, .8, np.nan, .1, .2, .3],
        "status": ["", "", "did not converge", "", "", ""]})
    assert ranking.ranks(rows).to_numpy().tolist() == [[1, 2, 3], [3, 2, 1]]
    losses = rows.assign(task="denoising")
    assert ranking.ranks(losses).to_numpy().tolist() == [[2, 1, 3], [1, 2, 3]]
    with pytest.raises(InputError, match="two data sets"):
        ranking.critical_difference(ranking.ranks(rows[rows["dataset"] == "a"]))
