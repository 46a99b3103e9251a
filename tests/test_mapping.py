"""Mapping: p-values that hold, new kinds that are found, and input that cannot be mapped."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import cellvq
from cellvq import InputError, mapping, novelty
from cellvq.simulate import simulate_cells

HELD = "type_2"


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(cells=1000, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model") / "run"


@pytest.fixture(scope="module")
def known(cells):
    """The half that the model is trained on: one type is not in it."""
    half = cells[:500]
    return half[half.obs["cell_type"] != HELD].copy()


@pytest.fixture(scope="module")
def model(known, folder):
    return cellvq.pretrain(known, steps=12, codes=12, batch="batch", output=folder, progress=False,
                           changes={"training.validation_share": 0.4}).model


@pytest.fixture(scope="module")
def held(known, model, folder):
    return mapping.validation_cells(known, folder, batch="batch")


@pytest.fixture(scope="module")
def learnt(known, model, held):
    return mapping.learn(known, model, calibration=held, label="cell_type")


@pytest.fixture(scope="module")
def table(cells, learnt, model):
    return mapping.map_cells(cells[500:], learnt, model)


def test_of_ordinary_cells_no_more_than_alpha_are_called_new():
    rng = np.random.default_rng(0)
    shares = [(novelty.conformal_p(rng.gamma(1, 1, 200), rng.gamma(1, 1, 99)) <= 0.1).mean()
              for _ in range(300)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.01)


def test_groups_hold_the_rate_each_for_itself():
    rng = np.random.default_rng(1)
    group, of_known = rng.choice(["a", "b"], 2000), rng.choice(["a", "b"], 800)
    scale = {"a": 1.0, "b": 5.0}
    scores = rng.random(2000) * pd.Series(group).map(scale).to_numpy()
    calibration = rng.random(800) * pd.Series(of_known).map(scale).to_numpy()
    p = novelty.conformal_p(scores, calibration, group, of_known)
    together = novelty.conformal_p(scores, calibration)
    for name in "ab":
        assert (p[group == name] <= 0.1).mean() == pytest.approx(0.1, abs=0.04)
    assert (together[group == "a"] <= 0.1).mean() == 0  # what groups are for
    few = novelty.conformal_p(scores, calibration, group, of_known, least=10_000)
    assert (few == together).all()


def test_the_threshold_is_where_p_becomes_alpha():
    rng = np.random.default_rng(2)
    scores, calibration = rng.random(500), rng.random(137)
    beyond = scores > novelty.threshold(calibration, 0.05)
    assert (beyond == (novelty.conformal_p(scores, calibration) <= 0.05)).all()


def test_the_cells_set_aside_in_training_are_found(known, held, folder):
    assert held.sum() == round(0.4 * known.n_obs)
    with pytest.raises(InputError, match="not trained on these cells"):
        mapping.validation_cells(known[1:].copy(), folder, batch="batch")


def test_a_planted_type_that_was_never_seen_is_new(cells, table, learnt):
    is_novel = (cells.obs["cell_type"][500:] == HELD).to_numpy()
    found = novelty.detection({"novelty": table["novelty"]}, table.attrs["calibration"],
                              is_novel).iloc[0]
    assert found["auroc"] > 0.9
    assert found["false_alarms_low"] <= 0.05 <= found["false_alarms_high"] + 0.03
    assert found["calibration_cells"] == learnt.codes["calibration_cells"].sum()
    flagged = table["novel"].to_numpy()
    assert (table["transferred_label"][flagged] == "unknown").all()
    assert (flagged == (table["novelty"] > table.attrs["threshold"])).mean() > 0.9
    parts = table[list(mapping.PARTS)]
    assert set(table["strangest"]) <= set(parts) and parts.notna().all().all()


def test_labels_are_transferred_to_known_cells(cells, table):
    labels = cells.obs["cell_type"][500:].astype(str).to_numpy()
    of_known = labels != HELD
    scores = mapping.accuracy(table[of_known], labels[of_known]).set_index("method")
    assert scores.loc["transferred", "accuracy_of_answered"] > 0.9
    assert scores.loc["shuffled labels", "accuracy"] < 0.4
    pairs = mapping.confusion(table, labels)
    assert pairs["cells"].sum() == len(labels)
    assert pairs.groupby("label")["share"].sum().to_numpy() == pytest.approx(1)


def test_codes_in_use_are_compared_with_the_reference(table, learnt):
    used = mapping.usage(table, learnt)
    assert used["query_cells"].sum() == len(table)
    assert used["reference_cells"].sum() == sum(len(seen.codes) for seen in learnt.seen)
    ours = table[table["novel"]]["code"].mode()[0]  # where the new type went
    row = used.set_index("code").loc[ours]
    assert row["log2_ratio"] > 0 and row["fdr"] < 0.01


def test_missing_genes_are_missing_in_the_calibration_too(cells, model, learnt):
    some = cells[500:, ::3].copy()
    some.obs = some.obs.drop(columns="total_counts", errors="ignore")
    table = mapping.map_cells(some, learnt, model)
    of_known = (some.obs["cell_type"] != HELD).to_numpy()
    assert table["novel"][of_known].mean() < 0.12
    assert table.attrs["genes"].startswith(f"{np.isin(model.panel, some.var_names).sum()} of")
    assert table["p"].notna().all()


def test_a_cell_s_answer_does_not_depend_on_the_others(cells, learnt, model, table):
    few = mapping.map_cells(cells[[700, 650]], learnt, model)
    same = table.loc[few.index]
    assert (few["code"] == same["code"]).all()
    assert few["novelty"].to_numpy() == pytest.approx(same["novelty"].to_numpy(), rel=1e-4)


def test_empty_cells_have_no_code_and_are_not_new(cells, learnt, model):
    some = cells[600:640].copy()
    some.X = csr_matrix(some.X.multiply(np.arange(40)[:, None] >= 2))
    table = mapping.map_cells(some, learnt, model)
    assert table["code"].isna().sum() == 2 and table["p"].isna().sum() == 2
    assert not table["novel"][:2].any() and (table["transferred_label"][:2] == "unknown").all()


def test_without_labels_nothing_is_transferred(cells, known, held, model):
    unlabelled = mapping.learn(known, model, calibration=held)
    assert unlabelled.labels.empty and any("no labels" in note for note in unlabelled.notes)
    table = mapping.map_cells(cells[600:650], unlabelled, model)
    assert (table["transferred_label"] == "unknown").all() and table["p"].notna().all()


def test_codes_of_a_single_cell_do_no_harm(cells, known, model):
    encoded = cellvq.encode(known, model)
    first = ~encoded.obs["cellvq_code"].duplicated().to_numpy()
    few = mapping.learn(known[first], model, calibration=cells[600:700], label="cell_type")
    assert (few.codes["cells"] == 1).all()
    table = mapping.map_cells(cells[700:800], few, model)
    assert np.isfinite(table["novelty"]).all() and table["relative_distance"].notna().all()


def test_training_cells_make_poor_calibration_and_that_is_said(known, model):
    with pytest.warns(UserWarning, match="did not"):
        careless = mapping.learn(known, model, label="cell_type")
    assert "more ordinary cells will be called new" in careless.notes[0]


def test_input_that_cannot_be_mapped(cells, known, held, model, learnt):
    other = cellvq.pretrain(known, steps=1, codes=12, seed=5, progress=False).model
    with pytest.raises(InputError, match="learnt with another model"):
        mapping.map_cells(cells, learnt, other)
    with pytest.raises(InputError, match="encoded by another model"):
        mapping.learn(cellvq.encode(known, other), model, calibration=held)
    strangers = cells[:5].copy()
    strangers.var_names = [f"unheard{i}" for i in range(cells.n_vars)]
    with pytest.raises(InputError, match="no gene of the cells"):
        mapping.map_cells(strangers, learnt, model)
    with pytest.raises(InputError, match="0 calibration cells"):
        mapping.learn(known, model, calibration=np.zeros(known.n_obs, bool))
    with pytest.raises(InputError, match="no column 'typ'"):
        mapping.learn(known, model, calibration=held, label="typ")
    with pytest.raises(InputError, match="calibration names 3"):
        mapping.learn(known, model, calibration=[True] * 3)


def test_detection_without_new_cells_says_why():
    table = novelty.detection({"x": [1.0, 2.0]}, {"x": [1.0]}, [False, False])
    assert table.empty and list(table) == list(novelty.DETECTION_COLUMNS)
    assert table.attrs["reason"].startswith("0 new")


def test_the_baseline_measures_distance_to_the_reference(cells):
    same, other = novelty.pca_distances(cells[:300], cells[:50], cells[600:650], neighbours=1)
    assert same.max() < 1e-2 < other.min()  # a cell of the reference is its own neighbour
