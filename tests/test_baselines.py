"""Baselines: planted types are found, batches mixed, seeds kept, test labels never seen."""

import importlib

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from cellvq import InputError, baselines, contenders, evaluate
from cellvq.entries import prepare
from cellvq.simulate import simulate_cells


@pytest.fixture(scope="module")
def data():
    return prepare(simulate_cells(cells=400, seed=3), "cell_type", batch="batch", donor="donor")


@pytest.mark.parametrize("embed", [baselines.pca, baselines.pca_unscaled, baselines.truncated_svd])
def test_linear_baselines_find_planted_types_and_repeat_themselves(data, embed):
    vectors, settings = embed(data)
    labels = data.labels()
    groups = evaluate.kmeans_codes(vectors, len(set(labels)))
    assert evaluate.agreement(labels, groups)["ari"] > 0.8
    assert settings["dimensions"] == vectors.shape[1] == 50 and settings["parameters"] > 0
    np.testing.assert_array_equal(embed(data)[0], vectors)


def test_variable_genes_are_those_of_scanpy(data):
    import scanpy as sc

    theirs = data.cells.copy()
    sc.pp.normalize_total(theirs, target_sum=1e4)
    sc.pp.log1p(theirs)
    sc.pp.highly_variable_genes(theirs, n_top_genes=100)
    ours = baselines.variable_genes(data, 100)
    assert len(np.intersect1d(ours, np.flatnonzero(theirs.var["highly_variable"]))) >= 98


def test_harmony_mixes_batches(data):
    pytest.importorskip("harmonypy")
    one_type = data.labels() == max(set(data.labels()), key=list(data.labels()).count)
    batch = data.column("batch")[one_type]
    before, after = (silhouette_score(embed(data)[0][one_type], batch)
                     for embed in (baselines.pca, baselines.harmony))
    assert after < before


def test_scvi_keeps_its_seed_and_leaves_other_draws_alone(data):
    pytest.importorskip("scvi")
    np.random.seed(5), torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5), torch.manual_seed(5)
    vectors, settings = baselines.scvi_embedding(data, 1, epochs=2)
    assert (np.random.rand(), torch.rand(1)) == expected
    assert settings["epochs"] == 2 and settings["batch"] == "batch"
    baselines.forget()
    np.testing.assert_array_equal(baselines.scvi_embedding(data, 1, epochs=2)[0], vectors)
    assert not np.array_equal(baselines.scvi_embedding(data, 2, epochs=2)[0], vectors)


def test_scanvi_learns_from_training_labels_alone(data):
    pytest.importorskip("scvi")
    start = baselines.scvi_model(data, 0, epochs=2)
    train = data.labels()
    train[::2] = ""
    vectors, settings = baselines.scanvi_embedding(data, 0, train_labels=train, start=start)
    assert settings["labelled_cells"] == 200 and len(vectors) == 400
    with pytest.raises(InputError, match="labelled cells"):
        baselines.scanvi_embedding(data, 0, train_labels=np.full(400, "", object), start=start)


def test_a_missing_library_is_named_with_the_way_to_get_it(data, monkeypatch):
    def no_scvi(name, *rest):
        if name == "scvi":
            raise ModuleNotFoundError("No module named 'scvi'")
        return importlib.__import__(name)

    monkeypatch.setattr(baselines.importlib, "import_module", no_scvi)
    scvi = contenders.named(["scVI"])[0]
    entry = contenders.enter(scvi, data, 0, contenders.Budget())
    assert entry.vectors is None
    assert entry.status == "not run: needs `pip install 'cellvq[benchmark]'`"


def test_random_weights_learn_nothing_and_keep_their_seed(data):
    budget = contenders.Budget()
    first, again, other = (contenders.random_weights(data, seed, budget) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert not np.array_equal(first.vectors, other.vectors)
    types = evaluate.kmeans_codes(first.vectors, len(set(data.labels())))
    assert evaluate.agreement(data.labels(), types)["ari"] < 0.5
    assert len(set(first.codes)) <= contenders.CODES
