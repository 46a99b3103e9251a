"""Measures and their uncertainty, checked against scikit-learn, exact laws and simulation."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scipy import stats
from sklearn import metrics

from cellvq import InputError, evaluate

LABELS = np.array(["B"] * 30 + ["NK"] * 20 + ["T"] * 50, dtype=object)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  "])
def test_cells_without_a_label_are_dropped_and_counted(missing):
    labels = LABELS.copy()
    labels[:10] = missing
    found = evaluate.agreement(labels, LABELS)
    assert (found["ari"], found["n_cells"], found["n_groups"]) == (1.0, 90, 3)
    assert evaluate.purity(labels, LABELS) == 1.0
    assert evaluate.enrichment(LABELS, labels)["n_cells"].unique() == [90]


def test_agreement_is_scikit_learn(rng):
    groups = rng.integers(8, size=len(LABELS))
    found = evaluate.agreement(LABELS, groups)
    assert found["ari"] == pytest.approx(metrics.adjusted_rand_score(LABELS.astype(str), groups))
    assert found["nmi"] == pytest.approx(
        metrics.normalized_mutual_info_score(LABELS.astype(str), groups)
    )
    assert found["nmi"] > found["ami"] + 0.04  # chance raises NMI, and not AMI


def test_categories_and_numbers_are_labels_too():
    groups = pd.Categorical(LABELS)
    assert evaluate.agreement(pd.Series(LABELS), groups)["nmi"] == pytest.approx(1)
    assert evaluate.purity(np.arange(6) // 2, np.arange(6) // 2) == 1


def test_perplexity_counts_equally_used_codes(rng):
    assert evaluate.perplexity(["C1"] * 7) == pytest.approx(1)
    uneven = evaluate.perplexity([0] * 90 + [1] * 5 + [2] * 5)
    assert 1 < uneven < 3


@pytest.mark.parametrize("classifier", ["knn", "logistic", "majority"])
def test_a_probe_reads_what_is_there_and_nothing_else(classifier, rng):
    if classifier == "majority":
        signal, noise = LABELS, rng.integers(4, size=len(LABELS)).astype(str)
    else:
        signal = pd.get_dummies(LABELS).to_numpy(float) + rng.normal(0, 0.1, (len(LABELS), 3))
        noise = rng.normal(size=(len(LABELS), 3))
    assert evaluate.probe(signal, LABELS, classifier=classifier).macro_f1 > 0.98
    assert evaluate.probe(noise, LABELS, classifier=classifier).macro_f1 < 0.55


def test_the_majority_probe_gives_a_code_its_most_common_label(rng):
    codes = np.repeat(["C00", "C01"], 50)
    labels = np.where(rng.random(100) < 0.9, np.repeat(["B", "T"], 50), "B").astype(object)
    found = evaluate.probe(codes, labels, classifier="majority")
    expected = np.repeat(["B", "T"], 50)
    assert found.macro_f1 == pytest.approx(metrics.f1_score(labels.astype(str), expected,
                                                            average="macro"))


def test_a_probe_never_tests_a_donor_it_has_seen(rng):
    # Every donor has its own place, and labels are constant within donors but random between them:
    # whoever sees the donor knows the label.
    donors = np.repeat([f"donor {i}" for i in range(60)], 5)
    place = rng.normal(0, 10, (60, 5)).repeat(5, axis=0) + rng.normal(0, 0.1, (300, 5))
    labels = np.repeat(rng.permutation(["B", "T"] * 30), 5)
    assert evaluate.probe(place, labels, neighbors=3).macro_f1 > 0.95
    assert evaluate.probe(place, labels, donors=donors, neighbors=3).macro_f1 < 0.7


def test_rare_classes_are_left_out_and_named(rng):
    features, labels = rng.normal(size=(103, 2)), np.append(LABELS, ["pDC"] * 3)
    found = evaluate.probe(features, labels)
    assert found.left_out == ("pDC",) and found.n_cells == 100 and found.n_classes == 3
    donors = np.append(np.tile(["a", "b"], 50), ["a"] * 3)
    found = evaluate.probe(features, np.append(LABELS, ["pDC"] * 3), donors=donors)
    assert found.left_out == ("pDC",) and found.folds == 2


def test_what_a_probe_cannot_use_is_said_in_one_line(rng):
    features = rng.normal(size=(100, 2))
    with pytest.raises(InputError, match="two labels"):
        evaluate.probe(features, ["B"] * 100)
    with pytest.raises(InputError, match="no donor"):
        evaluate.probe(features, LABELS, donors=["one"] * 100)
    with pytest.raises(InputError, match="99 labels for 100 cells"):
        evaluate.probe(features, LABELS[1:])
    with pytest.raises(InputError, match="unknown classifier"):
        evaluate.probe(features, LABELS, classifier="forest")
    with pytest.raises(InputError, match="no cell carries a label"):
        evaluate.agreement([None, ""], [0, 1])


def test_kmeans_gives_as_many_groups_as_asked(rng):
    embedding = rng.normal(size=(200, 5))
    groups = evaluate.kmeans_codes(embedding, 16, seed=3)
    assert len(np.unique(groups)) == 16
    assert (groups == evaluate.kmeans_codes(embedding, 16, seed=3)).all()
    with pytest.raises(InputError, match="between 1 and 200"):
        evaluate.kmeans_codes(embedding, 201)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_hold_their_level(n):
    rng = np.random.default_rng(n)
    found = [evaluate.bootstrap_interval(rng.normal(0.7, 0.1, n), seed) for seed in range(400)]
    covered = np.mean([interval.low <= 0.7 <= interval.high for interval in found])
    assert 0.88 < covered <= 0.985


def test_intervals_without_spread_and_with_one_repeat():
    constant = evaluate.paired_difference([0.8] * 5, [0.75] * 5)
    assert constant.low == constant.high == pytest.approx(0.05)
    single = evaluate.bootstrap_interval([0.5])
    assert np.isnan(single.low) and "no interval" in str(single) and single.n == 1
    # A deterministic baseline takes nothing from the spread of the differences.
    values = [0.80, 0.82, 0.81, 0.84, 0.79]
    paired = evaluate.paired_difference(values, [0.7] * 5, seed=1)
    alone = evaluate.bootstrap_interval(values, seed=1)
    assert paired.low == pytest.approx(alone.low - 0.7)
    with pytest.raises(InputError, match="pair them"):
        evaluate.paired_difference([1, 2], [1])
    with pytest.raises(InputError, match="finite"):
        evaluate.bootstrap_interval([0.5, np.nan])


def test_pairing_removes_what_repeats_share(rng):
    shared = rng.normal(0, 0.2, 8)
    paired = evaluate.paired_difference(0.75 + shared + rng.normal(0, 0.005, 8), 0.7 + shared)
    assert 0.03 < paired.low < paired.high < 0.07


def test_permutation_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(5)
    tests = [
        evaluate.permutation_test(rng.permutation(LABELS), rng.integers(6, size=100),
                                  metrics.adjusted_rand_score, permutations=99, seed=seed)
        for seed in range(60)
    ]
    assert stats.kstest([test.p for test in tests], "uniform").pvalue > 0.01


def test_the_null_of_purity_grows_with_the_number_of_codes(rng):
    few = evaluate.permutation_test(LABELS, rng.integers(3, size=100), evaluate.purity)
    many = evaluate.permutation_test(LABELS, np.arange(100) // 2, evaluate.purity)
    assert many.null_mean > few.null_mean + 0.1


def test_enrichment_is_fisher_and_controls_false_discovery(rng):
    groups = np.where(LABELS == "B", "C00", np.where(rng.random(100) < 0.5, "C01", "C02"))
    table = evaluate.enrichment(groups, LABELS).set_index(["group", "label"])
    for (group, label), row in table.iterrows():
        a = row["cells"]
        b, c = row["group_cells"] - a, row["label_cells"] - a
        exact = stats.fisher_exact([[a, b], [c, 100 - a - b - c]], "greater").pvalue
        assert row["p"] == pytest.approx(exact), (group, label)
    assert table.loc[("C00", "B"), "fdr"] < 1e-10 and table.loc[("C00", "B"), "fraction"] == 1
    assert table.loc[("C00", "T"), "log2_enrichment"] < 0
    assert (table["fdr"] >= table["p"] - 1e-15).all()
    assert table.groupby("group")["fraction"].sum().tolist() == pytest.approx([1, 1, 1])
    null = evaluate.enrichment(rng.integers(10, size=100), LABELS)
    assert (null["fdr"] > 0.05).all()


def test_log_normalising_uses_the_depth_and_not_the_row_sum():
    counts = scipy.sparse.csr_matrix([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    values = evaluate.log_normalise(counts, [10, 0]).toarray()
    assert values[0] == pytest.approx([np.log1p(1000), 0, np.log1p(3000)])
    assert (values[1] == 0).all()
