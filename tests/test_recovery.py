"""What is planted is recovered, what is not is not, and the measures say so rightly."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from cellvq import InputError, hiddenscore, planting, recovery, trustview

matplotlib.use("Agg")
QUICK = ("code-marks-gene", "code-changes-with-condition", "gene-changes-in-code",
         "tf-regulates-gene")


@pytest.fixture(scope="module")
def table():
    return recovery.recover(2, kinds=QUICK, seed=3, nulls=2)


def test_planted_facts_are_found_and_few_others(table):
    assert list(table.columns) == list(recovery.COLUMNS)
    found = recovery.summarise(table).set_index(["planted", "kind", "method"])["power"]
    ours = {kind: found[(True, kind, recovery.OURS)] for kind in QUICK}
    assert ours["code-marks-gene"] > 0.9 and ours["gene-changes-in-code"] > 0.8
    assert ours["code-changes-with-condition"] >= 0.5 and ours["tf-regulates-gene"] > 0.05
    mine = table[table["planted"] & table["method"].str.startswith(recovery.OURS)]
    assert mine["false_share"].mean() < 0.12
    assert (mine["right"] <= mine["called"]).all() and (mine["called"] <= mine["tests"]).all()


def test_nothing_is_found_where_nothing_is_planted(table):
    nulls = table[~table["planted"]]
    assert (nulls[["right", "true"]] == 0).all(axis=None) and nulls["power"].isna().all()
    ours = nulls[nulls["method"].str.startswith(recovery.OURS)]
    assert (ours["called"] > 0).sum() <= 2
    large = ours[ours["tests"] > 500].groupby("kind")["small"].mean()
    assert large.between(0.02, 0.08).all()


def test_signals_and_their_changes_are_recovered():
    kinds = ["code-talks-to-code", "talk-changes-with-condition"]
    found = recovery.recover(1, kinds=kinds, seed=2, nulls=0, cell_types=3, pairs=6, cells=1200)
    ours = found[found["method"] == recovery.OURS].set_index("kind")
    assert ours.loc[kinds[0], "power"] == 1 and ours.loc[kinds[1], "power"] >= 1 / 3
    assert (ours["false_share"] <= 0.25).all()
    seen = found[found["method"] == "both genes expressed"].iloc[0]
    assert seen["power"] == 1 and seen["false_share"] > 0.9


def test_what_is_planted_is_in_the_counts():
    made = planting.plant(seed=4)
    cells, truth = made.cells, made.truth
    assert set(truth) == set(planting.KINDS) and all(len(part) for part in truth.values())
    values = pd.DataFrame(cells.X.toarray(), cells.obs_names, cells.var_names)
    codes, treated = cells.obs["cellvq_code"], cells.obs["condition"] == "stimulated"
    marks = truth["code-marks-gene"].groupby("code")["gene"].agg(list)
    higher = [(values.loc[codes == code, genes].mean() > values.loc[codes != code, genes].mean())
              for code, genes in marks.items()]
    assert np.concatenate(higher).mean() > 0.97
    for row in truth["talk-changes-with-condition"].itertuples():
        mine = values.loc[codes == row.source, row.ligand].groupby(treated).mean()
        assert mine[True] < 0.5 * mine[False]
    share = pd.crosstab(codes, treated, normalize="columns")
    moved = truth["code-changes-with-condition"]["code"]
    ratio = np.log2(share[True] / share[False])
    assert set(ratio.abs().nlargest(2).index) == set(moved)
    assert sorted(np.sign(ratio[moved])) == [-1, 1]
    assert made.is_true("code-changes-with-condition", pd.DataFrame(
        {"code": [moved[0], "nobody"]})).tolist() == [True, False]
    nothing = planting.plant_nothing(seed=4, cells=300, shuffled=True)
    assert set(nothing.cells.obs["condition"]) == {"control", "stimulated"}
    assert nothing.cells.obs.groupby("donor", observed=True)["condition"].nunique().max() == 1


def test_summary_and_figures_say_what_the_table_holds(table):
    summary = recovery.summarise(table)
    assert list(summary.columns) == list(recovery.SUMMARY)
    part = table[table["planted"] & (table["kind"] == QUICK[0])
                 & (table["method"] == recovery.OURS)]
    row = summary.iloc[0]
    assert row["power"] == part["power"].mean() and row["fdr"] == part["false_share"].mean()
    assert row["fdr_low"] <= row["fdr"] <= row["fdr_high"]
    null = summary[~summary["planted"]]
    assert (null["fdr_high"] > 0.5).all()  # two simulations cannot say more
    axes = trustview.recovered(summary[summary["planted"]], "fdr")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(QUICK)
    hidden = pd.DataFrame([{
        "method": name, "minus": "", "measure": "AUROC", "value": 0.7, "low": 0.6, "high": 0.8,
        "null_low": 0.45, "null_high": 0.55, "chance": 0.01} for name in hiddenscore.METHODS])
    labels = trustview.hidden_links(hidden).get_yticklabels()
    assert [label.get_text() for label in labels] == list(hiddenscore.METHODS)


def test_what_cannot_be_simulated_is_refused():
    with pytest.raises(InputError, match="'code-near-code' is not planted"):
        recovery.recover(1, kinds=["code-near-code"])
    with pytest.raises(InputError, match="one simulation at least"):
        recovery.recover(0)
    with pytest.raises(InputError, match="fdr is 5"):
        recovery.recover(1, fdr=5)
