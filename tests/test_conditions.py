"""Changes between conditions: donors are the unit, nulls are held, planted changes are found."""

import os
from pathlib import Path

import numpy as np
import pytest

from cellvq import InputError, conditions, datasets, simulate, tallies

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "h5ad").is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)
STIMULATED = ("stimulated", "control")


def counted(cells, column="cell_type"):
    cells.obs["cellvq_code"] = cells.obs[column].astype(str).str.replace("type_", "C")
    return tallies.tally(cells, donor="donor", condition="condition")


@pytest.fixture(scope="module")
def cells():
    return simulate.simulate_cells(cells=2400, donors=8, batches=2, depth=600, seed=5)


def test_planted_responses_are_found_and_few_others(cells):
    table = conditions.gene_changes(counted(cells), *STIMULATED)
    found = table[table["fdr"] < 0.05]
    planted = simulate.truth(cells)["perturbation"]
    planted = {(row.cell_type.replace("type_", "C"), row.gene) for row in planted.itertuples()}
    hits = set(found[["code", "gene"]].itertuples(index=False, name=None))
    tested = set(table[["code", "gene"]].itertuples(index=False, name=None))
    assert len(hits & planted) / len(tested & planted) > 0.8
    assert len(hits - planted) / len(hits) <= 0.1
    right = found[[pair in planted for pair in zip(found["code"], found["gene"], strict=True)]]
    assert (right["effect"] > 0).all() and (right["stability"] > 0.6).all()
    assert (found["n_donors"] == 8).all() and found["null"].str.contains("n = donors").all()


def test_a_code_that_grows_is_found(cells):
    table = conditions.abundance(counted(cells), *STIMULATED)
    assert not (table["fdr"] < 0.05).any()  # conditions have the same mixtures here
    rng = np.random.default_rng(0)
    state = cells.obs["cell_type"].astype(str).to_numpy(object)
    moves = (cells.obs["condition"] == "stimulated") & (rng.random(cells.n_obs) < 0.6)
    state = np.where((state == "type_1") & moves, "type_9", state)
    some = cells.copy()
    some.obs["state"] = state
    table = conditions.abundance(counted(some, "state"), *STIMULATED).set_index("code")
    assert set(table.index[table["fdr"] < 0.05]) >= {"C9", "C1"}
    assert table.loc["C9", "effect"] > 2 and table.loc["C1", "effect"] < -0.5
    assert table.loc["C9", "share"] > table.loc["C9", "share_reference"] == 0


def test_nulls_are_held():
    """Whole donors change their condition by chance: nothing should be found."""
    wrong, shares = {"abundance": 0, "genes": 0}, []
    for seed in range(20):
        cells = simulate.simulate_cells(cells=1200, genes=300, cell_types=4, donors=8,
                                        conditions=("control",), batches=1, seed=seed)
        names = sorted(cells.obs["donor"].unique())
        treated = np.random.default_rng(seed).permutation(names)[:4]
        cells.obs["condition"] = np.where(cells.obs["donor"].isin(treated), *STIMULATED)
        made = counted(cells)
        wrong["abundance"] += (conditions.abundance(made, *STIMULATED)["fdr"] < 0.05).any()
        genes = conditions.gene_changes(made, *STIMULATED)
        wrong["genes"] += (genes["fdr"] < 0.05).any()
        shares.append((genes["p"] < 0.05).mean())
    assert max(wrong.values()) <= 3  # 5 % of the runs are one
    assert np.mean(shares) < 0.07


def test_donors_under_both_conditions_are_paired(cells):
    some = cells.copy()
    rank = some.obs["donor"].astype(str).str[-1].astype(int)
    some.obs["donor"] = ((rank + 1) // 2).astype(str)  # neighbours differ in their condition
    made = counted(some)
    design = conditions.samples(made, *STIMULATED)
    assert design.paired and len(design.rows) == 8
    table = conditions.gene_changes(made, *STIMULATED)
    assert (table["n_donors"] == 4).all() and table["null"].str.contains("within donors").all()
    assert "ISG15" in set(table.loc[table["fdr"] < 0.05, "gene"])


def test_without_donors_nothing_is_claimed(cells):
    some = cells.copy()
    some.obs["donor"] = some.obs["condition"].astype(str)  # one of each
    made = counted(some)
    for ask in (conditions.abundance, conditions.gene_changes):
        table = ask(made, *STIMULATED)
        assert table.empty and "1 and 1 donors" in table.attrs["reason"]
    with pytest.raises(InputError, match="no cell is of the condition 'ifn'; there are control"):
        conditions.abundance(made, "ifn", "control")
    one = counted(cells, "condition")
    table = conditions.abundance(one, *STIMULATED)  # shares are all or none
    assert np.isfinite(table["p"]).all() and len(table) == 2


def test_the_reference_is_the_one_that_is_named_so(cells):
    made = counted(cells)
    assert conditions.contrasts(made) == [STIMULATED]
    assert conditions.contrasts(made, "stimulated") == [STIMULATED[::-1]]
    with pytest.raises(InputError, match="'ctrl'; there are control, stimulated"):
        conditions.contrasts(made, "ctrl")
    assert conditions.contrasts(tallies.tally(cells)) == []


@real
def test_interferon_changes_what_it_should_in_kang():
    cells = datasets.load("kang_muscat_example")
    cells.obs["cellvq_code"] = cells.obs["cell_type"].astype(str).str.replace(".", "_")
    made = tallies.tally(cells, donor="donor", condition="condition")
    ((condition, reference),) = conditions.contrasts(made)
    table = conditions.gene_changes(made, condition, reference)
    found = table[table["fdr"] < 0.05]
    often = found.groupby("gene")["code"].nunique()
    known = {"ISG15", "IFI6", "IFIT3", "IFIT1", "LY6E", "MX1"}
    assert len(known & set(often.index[often >= 3])) >= 4
    monocytes = found[found["code"].str.contains("CD14")]
    assert {"CXCL10", "CCL8"} & set(monocytes.loc[monocytes["effect"] > 0, "gene"])
