"""Shifts over codes: what moves is found, what does not is not, and the null holds."""

import numpy as np
import pytest

from cellvq import InputError, shifts, simulate, tallies


def screen(seed, moved=0.0):
    """Four names in two replicates; of one, a share of the cells changes its code."""
    rng = np.random.default_rng(seed)
    cells = simulate.simulate_cells(cells=1000, genes=300, cell_types=4, seed=seed)
    cells.obs["target"] = rng.choice(["none", "A", "B", "C"], 1000, p=[0.4, 0.2, 0.2, 0.2])
    code = cells.obs["cell_type"].astype(str).to_numpy(object)
    goes = (cells.obs["target"] == "A").to_numpy() & (rng.random(1000) < moved)
    cells.obs["cellvq_code"] = np.where(goes, "type_1", code)
    return tallies.tally(cells, donor="batch", condition="target")


def test_what_moves_is_found_with_where_to():
    table = shifts.code_shifts(screen(0, moved=0.4), "none").set_index("condition")
    assert table.index[0] == "A" and list(table.index[table["fdr"] < 0.05]) == ["A"]
    found = table.loc["A"]
    assert found["to"] == "type_1" and found["from"] != "type_1"
    assert 0.15 < found["shift"] < 0.45 and found["shift"] > 3 * found["shift_null"]
    assert found["n_donors"] == 2 and found["stability"] == 1
    again = shifts.code_shifts(screen(0, moved=0.4), "none").set_index("condition")
    assert again.equals(table)


def test_names_without_an_effect_are_found_as_often_as_they_should():
    p = np.concatenate([shifts.code_shifts(screen(seed), "none", draws=300)["p"]
                        for seed in range(30)])
    assert len(p) == 90 and (p < 0.05).mean() < 0.11  # 5 %, and three standard errors
    assert 0.35 < p.mean() < 0.65


def test_absent_conditions_and_few_cells_are_said():
    made = screen(1)
    with pytest.raises(InputError, match="'control'; there are A, B, C, none"):
        shifts.code_shifts(made, "control")
    cells = simulate.simulate_cells(cells=60, genes=300, cell_types=4)
    cells.obs["cellvq_code"] = cells.obs["cell_type"]
    few = shifts.code_shifts(tallies.tally(cells, donor="donor", condition="condition"), "control")
    assert few.empty and "has 20 cells" in few.attrs["reason"]
    assert list(few) == list(shifts.SHIFT_COLUMNS)
