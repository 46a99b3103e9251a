"""Annotation: vectors of noise score as chance, planted truth well above."""

import sys

import numpy as np
import pandas as pd
import pytest

from cellvq import annotation, baselines, entries, evaluate, significance
from cellvq.simulate import simulate_cells

CLASSES = 5
"""Cell types of the simulated cells."""


@pytest.fixture(scope="module")
def data():
    cells = simulate_cells(cells=500, cell_types=CLASSES, seed=2)
    return entries.prepare(cells, "cell_type", batch="batch", donor="donor")


@pytest.fixture(scope="module")
def pca(data):
    codes = data.labels()  # as good as codes can be
    return entries.Entry("PCA", 0, baselines.pca(data)[0], codes)


@pytest.fixture(scope="module")
def noise(data):
    rng, cells = np.random.default_rng(0), data.cells.n_obs
    codes = rng.integers(0, 20, cells).astype(str).astype(object)
    return entries.Entry("noise", 0, rng.normal(size=(cells, 50)).astype("float32"), codes)


@pytest.fixture(scope="module")
def good(data, pca):
    return annotation.annotation(data, pca)


@pytest.fixture(scope="module")
def bad(data, noise):
    return annotation.annotation(data, noise)


def values(results, metric):
    scores = significance.score_calls(results.calls)
    return scores[scores["metric"] == metric].set_index("protocol")["value"]


def test_vectors_and_codes_of_noise_score_as_chance(good, bad):
    good, bad = (values(found, "balanced_accuracy") for found in (good, bad))
    assert len(good) == len(bad) == 4 * 3  # protocols, classifiers
    assert good.min() > 0.75
    many = bad.filter(regex="within_study|new_donor")
    assert many.max() < 1 / CLASSES + 0.06 and many.min() > 1 / CLASSES - 0.06


def test_an_unknown_class_is_told_by_doubt(good, bad):
    good, bad = (found.scores.set_index("metric")["value"]["auroc"] for found in (good, bad))
    assert good > 0.8 and abs(bad - 0.5) < 0.05


def test_no_split_is_tuned_by_the_cells_that_test_it(data, pca, monkeypatch):
    seen = []
    monkeypatch.setattr(annotation, "_penalty", lambda vectors, labels: seen.append(len(labels))
                        or 1.0)
    calls = annotation.annotation(data, pca).calls
    calls = calls[calls["protocol"].str.endswith(annotation.LOGISTIC)]
    assert len(seen) == len(calls.groupby(["protocol", "fold"]))  # chosen anew in each
    assert min(seen) <= 10 * CLASSES < max(seen) < data.cells.n_obs


def test_classes_of_one_cell_and_cells_without_a_label_are_left_out(data, pca):
    labels = data.labels()
    labels[0], labels[1:9] = "alone", np.nan
    cells = data.cells.copy()
    cells.obs["cell_type"] = labels
    odd = entries.prepare(cells, "cell_type", donor="donor")
    found = annotation.annotation(odd, pca)
    assert "alone (1)" in " ".join(odd.notes)
    assert found.calls["cell"].min() >= 9 and not {"alone", "nan"} & {*found.calls["truth"]}


def test_rivals_read_genes_and_a_missing_package_is_a_row(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "celltypist", None)
    found = annotation.on_genes(data, seed=1)
    good = values(found, "macro_f1")
    assert good.filter(regex="logistic").min() > 0.8
    assert "CellTypist" not in set(found.calls["method"])
    said = found.scores.set_index("method")["status"]
    assert said["CellTypist"].startswith("not run: needs `pip install 'cellvq[benchmark]'`")


def test_celltypist_is_taught_and_asked(data):
    pytest.importorskip("celltypist")
    genes = baselines.variable_genes(data)
    values = evaluate.log_normalise(data.cells.X, data.depth)[:, genes]
    predict = annotation._celltypist(data.cells.var_names[genes], values)()
    train, labels = np.arange(0, 500, 2), data.labels()
    called = predict(train, labels[train].astype(str), train + 1)
    assert np.mean(called == labels[train + 1]) > 0.8


def test_joined_tables_keep_every_note_once():
    one = entries.Results(pd.DataFrame({"a": [1]}), notes=["x"])
    found = annotation.joined([one, entries.Results(), one])
    assert len(found.calls) == 2 and found.notes == ["x"]
