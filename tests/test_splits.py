"""Splits: whoever is held out teaches nothing, and what the data do not allow is said."""

import numpy as np
import pytest

from cellvq import InputError, entries, splits
from cellvq.simulate import simulate_cells

RNG = np.random.default_rng(3)
LABELS = RNG.choice(["B", "NK", "T", ""], 400, p=[0.3, 0.2, 0.4, 0.1]).astype(object)
DONORS = RNG.choice(["a", "b", "c", "d", "e", "f", ""], 400).astype(object)


def test_folds_test_every_labelled_cell_once_and_keep_shares():
    found = splits.within_study(LABELS, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate([split.test for split in found])),
                                  np.flatnonzero(LABELS != ""))
    assert all(not set(split.train) & set(split.test) for split in found)
    shares = [np.mean(LABELS[split.test] == "B") for split in found]
    assert max(shares) - min(shares) < 0.03


def test_a_donor_or_a_study_that_is_held_out_teaches_nothing():
    for found in (splits.new_donor(LABELS, DONORS), splits.new_study(LABELS, DONORS),
                  splits.few_labels(LABELS, DONORS, 10)):
        for split in found:
            assert not set(DONORS[split.train]) & set(DONORS[split.test])
            assert "" not in {*LABELS[split.test], *LABELS[split.train], *DONORS[split.test]}
    assert len(splits.new_donor(LABELS, DONORS)) == splits.FOLDS
    assert [split.name for split in splits.new_study(LABELS, DONORS)][0] == "study a"


def test_a_class_of_one_study_is_not_asked_of_it():
    labels = LABELS.copy()
    labels[DONORS == "a"] = "only here"
    labels[np.flatnonzero(DONORS == "a")[:9]] = "B"
    first, *others = splits.new_study(labels, DONORS)
    assert set(labels[first.test]) == {"B"}
    assert all("only here" not in labels[split.test] for split in others)


@pytest.mark.parametrize("donors", [DONORS, np.full(400, "", dtype=object)])
def test_few_labels_are_as_few_as_they_say(donors):
    split, = splits.few_labels(LABELS, donors, 10, seed=2)
    assert sorted(np.unique(LABELS[split.train].astype(str), return_counts=True)[1]) == [10] * 3
    assert not set(split.train) & set(split.test)
    assert set(split.train) != set(splits.few_labels(LABELS, donors, 10, seed=3)[0].train)


def test_a_hidden_class_teaches_nothing_and_is_tested():
    found = splits.unknown_class(LABELS)
    assert [split.name for split in found] == ["T", "B", "NK"]  # the largest first
    for split in found:
        assert split.name not in LABELS[split.train] and split.name in LABELS[split.test]


@pytest.mark.parametrize(("make", "said"), [
    (lambda: splits.within_study(np.array(["B"] * 9 + ["NK"] * 4, dtype=object)),
     "fewer than two classes have 5 labelled cells"),
    (lambda: splits.new_donor(LABELS, np.where(DONORS == "a", "a", "b").astype(object)),
     "2 donors have labelled cells; 3 are needed"),
    (lambda: splits.new_donor(DONORS, DONORS), "no two classes are shared by donors"),
    (lambda: splits.new_study(LABELS, np.full(400, "a", dtype=object)), "fewer than two studies"),
    (lambda: splits.new_study(DONORS, DONORS), "no two studies share two classes"),
    (lambda: splits.few_labels(LABELS, DONORS, 500), "fewer than two classes have 500 cells"),
    (lambda: splits.unknown_class(np.array(["B", "NK"] * 9, dtype=object)), "fewer than three"),
])
def test_what_cannot_be_split_is_said_in_one_line(make, said):
    with pytest.raises(InputError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_protocols_go_on_where_one_is_not_possible():
    cells = simulate_cells(cells=200)
    cells.obs["study"] = "one"
    data = entries.prepare(cells, "cell_type", donor="donor", study="study")
    found = dict(splits.protocols(data, data.labels(), 0))
    assert set(found) == set(splits.PROTOCOLS) - {"unknown_class"}
    assert isinstance(found["new_study"], str) and len(found["within_study"]) == splits.FOLDS
