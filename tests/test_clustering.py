"""Clustering: planted types are found, noise is not, and no label is seen on the way."""

import numpy as np
import pytest

from cellvq import InputError, baselines, clustering, entries, significance
from cellvq.simulate import simulate_cells


@pytest.fixture(scope="module")
def data():
    return entries.prepare(simulate_cells(cells=400, cell_types=4, seed=2), "cell_type")


@pytest.fixture(scope="module")
def noise(data):
    vectors = np.random.default_rng(0).normal(size=(data.cells.n_obs, 20)).astype("float32")
    return entries.Entry("noise", 0, vectors, data.labels())


def ari(found):
    scores = significance.score_calls(found.calls)
    return scores[scores["metric"] == "ari"].set_index("protocol")["value"]


def test_planted_types_are_found_and_noise_is_not(data, noise):
    planted = clustering.clustering(data, entries.Entry("PCA", 0, baselines.pca(data)[0]))
    nothing = clustering.clustering(data, noise)
    assert ari(planted).min() > 0.8
    assert ari(nothing)[["leiden", "k-means"]].abs().max() < 0.03
    assert ari(nothing)["code"] == 1  # the labels themselves
    silhouette = [found.scores.set_index("metric")["value"]["silhouette"]
                  for found in (planted, nothing)]
    assert silhouette[0] > 0.52 > silhouette[1]


def test_labels_do_not_choose_the_resolution(data, noise):
    entry = entries.Entry("PCA", 0, baselines.pca(data)[0])
    cells = data.cells.copy()
    cells.obs["cell_type"] = np.random.default_rng(1).permutation(cells.obs["cell_type"])
    mixed = entries.prepare(cells, "cell_type")
    one, other = (clustering.clustering(each, entry) for each in (data, mixed))
    leiden = one.calls["protocol"] == "leiden"
    assert one.calls.loc[leiden, "call"].equals(other.calls.loc[leiden, "call"])
    assert ari(other).abs().max() < 0.05


def test_leiden_finds_as_many_groups_as_there_are():
    centres = np.eye(5, dtype="float32") * 20
    vectors = np.repeat(centres, 40, axis=0) + np.random.default_rng(0).normal(size=(200, 5))
    groups, resolution = clustering.leiden(vectors.astype("float32"))
    assert len(set(groups)) == 5 and resolution in clustering.RESOLUTIONS


def test_unlabelled_cells_are_grouped_but_not_judged(data, noise):
    cells = data.cells.copy()
    labels = data.labels()
    labels[:50] = np.nan
    cells.obs["cell_type"] = labels
    found = clustering.clustering(entries.prepare(cells, "cell_type"), noise)
    assert found.calls["cell"].min() == 50
    assert found.scores.set_index("metric")["n_cells"]["codes_used"] == 400
    with pytest.raises(InputError, match="fewer than two classes are known"):
        cells.obs["cell_type"] = "T cell"
        clustering.clustering(entries.prepare(cells, "cell_type"), noise)
