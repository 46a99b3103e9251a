"""Integration: both halves count, and what cannot be judged is refused."""

import sys

import numpy as np
import pytest

from cellvq import InputError, baselines, entries, integration
from cellvq.simulate import simulate_cells


@pytest.fixture(scope="module")
def data():
    cells = simulate_cells(cells=300, cell_types=3, batch_effect=1.0, seed=2)
    return entries.prepare(cells, "cell_type", batch="batch")


def scores(data, vectors):
    found = integration.integration(data, entries.Entry("x", 0, vectors.astype("float32")))
    return found.scores.set_index("metric")["value"]


def test_each_half_is_seen_and_only_both_together_win(data):
    pytest.importorskip("scib_metrics")
    rng = np.random.default_rng(0)
    kinds, batches = data.labels(), data.column("batch")
    kind = 6.0 * (kinds[:, None] == np.unique(kinds.astype(str))).astype(float)
    batch = 6.0 * (batches[:, None] == np.unique(batches.astype(str))).astype(float)
    noise = rng.normal(size=(len(kinds), 10))
    empty = np.zeros_like(batch)
    ideal = scores(data, np.c_[kind, empty, noise])
    torn = scores(data, np.c_[kind, batch, noise])
    mixed = scores(data, np.c_[0 * kind, empty, noise])  # constant dimensions change nothing
    assert ideal["biology"] > 0.8 and ideal["batches"] > 0.8
    assert torn["biology"] > 0.6 and torn["batches"] < ideal["batches"] - 0.3
    assert mixed["batches"] > 0.7 and mixed["biology"] < ideal["biology"] - 0.3
    assert ideal["total"] > max(torn["total"], mixed["total"]) + 0.1
    parts = [*integration.BIOLOGY, *integration.BATCHES]
    assert ideal[parts].between(0, 1).all() and torn[parts].between(-0.01, 1).all()
    total = 0.6 * torn[[*integration.BIOLOGY]].mean() + 0.4 * torn[[*integration.BATCHES]].mean()
    assert torn["total"] == pytest.approx(total)


def test_vectors_that_are_all_the_same_are_a_failure_of_the_method(data):
    pytest.importorskip("scib_metrics")
    with pytest.raises(ValueError, match="all cells have the same vector"):
        scores(data, np.ones((data.cells.n_obs, 4)))


@pytest.mark.parametrize(("labels", "batches", "said"), [
    (["B", "NK"] * 20, ["a"] * 40, "one batch is known"),
    (["B", "NK"] * 20, [""] * 40, "no batch is known"),
    (["B"] * 40, ["a", "b"] * 20, "fewer than two classes"),
    (["B", "NK"] * 20, ["a", "b"] * 20, "labels and batches are confounded"),
    (["B", "NK", "T"] * 13 + [""], ["a", "b", "b"] * 13 + ["a"], "confounded"),
])
def test_what_cannot_be_judged_is_refused_in_one_line(labels, batches, said):
    with pytest.raises(InputError, match=said) as error:
        integration.usable(np.array(labels, dtype=object), np.array(batches, dtype=object))
    assert "\n" not in str(error.value)


def test_small_classes_and_cells_without_batch_are_left_out():
    labels = np.array(["B", "B", "NK", "NK"] * 10 + ["rare"] * 2, dtype=object)
    batches = np.array(["a", "b"] * 21, dtype=object)
    batches[0], labels[1] = "", ""
    assert integration.usable(labels, batches).tolist() == list(range(2, 40))


def test_without_the_package_a_clear_line(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(InputError, match="not run: needs `pip install 'cellvq"):
        scores(data, baselines.pca(data)[0])
