"""Properties: noise scores as chance for new donors, too, and a donor is not mistaken for a sex."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cellvq import InputError, entries, properties, significance
from cellvq.simulate import simulate_cells


@pytest.fixture(scope="module")
def data():
    return entries.prepare(simulate_cells(cells=500, seed=2), "cell_type", donor="donor")


@pytest.fixture(scope="module")
def noise(data):
    rng, cells = np.random.default_rng(0), data.cells.n_obs
    codes = rng.integers(0, 20, cells).astype(str).astype(object)
    return entries.Entry("noise", 0, rng.normal(size=(cells, 50)).astype("float32"), codes)


def values(results, metric):
    scores = significance.score_calls(results.calls)
    return scores[scores["metric"] == metric].set_index("protocol")["value"]


def test_a_property_of_donors_is_asked_of_new_donors(data, noise):
    cells = data.cells.copy()
    donors = sorted(set(data.column("donor")) - {""})
    sex = dict(zip(donors, ["female", "male"] * len(donors), strict=False))
    cells.obs["sex"] = cells.obs["donor"].astype(object).map(sex)
    vectors = noise.vectors.copy()
    vectors[:, 0] += 4.0 * (cells.obs["sex"] == "male")
    data = entries.prepare(cells, "cell_type", donor="donor", properties=["sex"])
    planted = properties.properties(data, entries.Entry("planted", 0, vectors))
    nothing = properties.properties(data, noise)
    assert all(name.startswith("new_donor, sex") for name in planted.calls["protocol"].unique())
    assert "donor that is recognised" in " ".join(planted.notes)
    assert values(planted, "macro_f1").min() > 0.9 and planted.scores["value"].min() > 0.97
    # Held-out donors are the rarer ones: without balance noise would be worse than chance.
    assert values(nothing, "macro_f1").sub(0.5).abs().max() < 0.08
    assert nothing.scores["value"].sub(0.5).abs().max() < 0.08


def test_properties_within_the_study_and_what_knows_nothing(data):
    cells = data.cells.copy()
    rng = np.random.default_rng(5)
    cells.obs["phase"] = np.where(rng.random(len(cells)) < 0.8, "G1", "S")
    counts = cells.X.toarray()
    counts[(cells.obs["phase"] == "S").to_numpy(), :5] += 30
    cells.X = csr_matrix(counts)
    data = entries.prepare(cells, "cell_type", properties=["phase"])
    found = properties.on_genes(data)
    scores = significance.score_calls(found.calls).set_index(["method", "metric"])["value"]
    assert scores["logistic regression on genes", "macro_f1"] > 0.95
    assert scores["majority label", "balanced_accuracy"] == pytest.approx(0.5)
    assert scores["majority label", "macro_f1"] < 0.5


def test_without_a_property_a_clear_line(data, noise):
    data = entries.prepare(data.cells, "cell_type", properties=[])
    with pytest.raises(InputError, match="no property is known"):
        properties.properties(data, noise)
