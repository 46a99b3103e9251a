"""Denoising: the truth wins, the wrong cell loses, and nobody sees what is held out."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from cellvq import InputError, denoising, entries, pretrain
from cellvq.contenders import Budget
from cellvq.simulate import simulate_cells


@pytest.fixture(scope="module")
def data():
    return entries.prepare(simulate_cells(cells=400, seed=2), "cell_type", batch="batch",
                           donor="donor")


def test_the_order_of_methods_is_as_planted(data, monkeypatch):
    types = data.labels()

    def truth(thinned, genes, seed, budget):
        counts, rates = thinned.cells.X[:, genes].toarray(), np.zeros((len(types), len(genes)))
        for name in set(types):  # the profile of each planted type
            rates[types == name] = counts[types == name].sum(0) / thinned.depth[types == name].sum()
        yield "truth", rates

    def broken(thinned, genes, seed, budget):
        raise InputError("not run: needs more")

    monkeypatch.setattr(denoising, "METHODS", {
        ("broken",): broken, ("mean profile",): denoising._simple, ("truth",): truth})
    found = denoising.denoising(data, seed=1)
    means = found.losses.groupby(["metric", "method"])["value"].mean().unstack()
    assert set(means.index) == {"poisson", "negative_binomial", "squared_error"}
    assert means["truth"].lt(0.99 * means["mean profile"]).all()
    assert means.loc[["poisson", "negative_binomial"]].idxmin(axis=1).eq("truth").all()
    assert means.idxmax(axis=1).eq(denoising.OTHERS).all()
    assert found.scores["status"].tolist() == ["not run: needs more"]
    assert found.losses.groupby(["method", "metric"]).size().nunique() == 1
    again = denoising.denoising(data, seed=1).losses
    assert again.equals(found.losses)
    assert not denoising.denoising(data, seed=2).losses["value"].equals(again["value"])


def test_methods_see_nine_of_ten_molecules_and_the_depth_of_those(data, monkeypatch):
    seen = []

    def spy(thinned, genes, seed, budget):
        seen.append(thinned)
        yield "spy", np.full((thinned.cells.n_obs, len(genes)), 1e-3)

    monkeypatch.setattr(denoising, "METHODS", {("spy",): spy})
    before = data.cells.X.copy()
    denoising.denoising(data)
    shown, = seen
    assert (before != data.cells.X).nnz == 0  # the given counts stay as they are
    assert (shown.cells.X > before).nnz == 0
    assert shown.cells.X.sum() / before.sum() == pytest.approx(0.9, abs=0.005)
    fewer = np.asarray((before - shown.cells.X).sum(1)).ravel()
    np.testing.assert_allclose(shown.depth, data.depth - fewer)


def test_cellvq_is_decoded_from_the_vector_and_from_the_code(data, tmp_path):
    pretrain(data.cells, steps=10, codes=8, output=tmp_path, progress=False)
    genes = np.arange(data.cells.n_vars)
    budget = Budget(steps=10, init=str(tmp_path))
    found = dict(denoising._cellvq(data, genes, 0, budget))
    vector, code = found["CellVQ, from the vector"], found["CellVQ, from the code"]
    assert vector.shape == code.shape == data.cells.shape
    observed = np.asarray(data.cells.X.sum(0)).ravel() / data.depth.sum()
    for rates in (vector, code):
        assert rates.min() >= 0 and np.corrcoef(rates.mean(0), observed)[0, 1] > 0.95
    nearest = [NearestNeighbors(n_neighbors=1).fit(np.log(rates)).kneighbors()[0]
               for rates in (vector, code)]
    twins = [np.mean(distances < 1e-3) for distances in nearest]
    assert twins[0] < 0.1 < 0.7 < twins[1]  # cells of one code and batch get the same rates
