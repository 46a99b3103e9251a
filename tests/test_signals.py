"""Signals between codes: planted ones found, liana's numbers kept, nothing from shuffled codes."""

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellvq import InputError, datasets, signals, simulate
from cellvq.signals import communication

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "h5ad").is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)


def as_codes(cells, column):
    """Cells whose codes are a column of obs: what a perfect model would give."""
    names = pd.Categorical(cells.obs[column].astype(str))
    cells.obs["cellvq_code"] = [f"C{number:02d}" for number in names.codes]
    return cells


@pytest.fixture(scope="module")
def cells():
    return as_codes(simulate.simulate_cells(cells=800, seed=3), "cell_type")


@pytest.fixture(scope="module")
def talk(cells):
    return communication(cells)


def test_planted_signals_are_found_and_few_others(cells, talk):
    code_of = dict(zip(cells.obs["cell_type"].astype(str), cells.obs["cellvq_code"], strict=True))
    planted = {
        (code_of[row.source], code_of[row.target], row.ligand, row.receptor)
        for row in simulate.truth(cells)["communication"].itertuples()
    }
    found = talk[talk["fdr"] < 0.05]
    keys = ["source", "target", "ligand", "receptor"]
    named = set(found[keys].itertuples(index=False, name=None))
    assert planted <= named
    assert len(named - planted) <= 2
    assert talk.head(len(planted))["effect"].min() > 1.5  # and the planted ones lead the table


@pytest.mark.parametrize("source", ["simulated", "pbmc68k_reduced"])
def test_communication_equals_liana(source, cells):
    import liana

    here = cells if source == "simulated" else as_codes(datasets.load(source), "cell_type")
    ours = communication(here, permutations=50, seed=7, min_cells=20)
    work, _ = signals._prepare(here, "cellvq_code", 20)
    pairs = liana.rs.select_resource("consensus")
    names = set(work.var_names)
    known = [names.issuperset(f"{row.ligand}_{row.receptor}".split("_"))
             for row in pairs.itertuples()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = liana.mt.cellphonedb(
            work, "code", resource=pairs[known].copy(), n_perms=50, seed=7, min_cells=20,
            use_raw=False, inplace=False,
        )
    both = ours.merge(
        theirs, left_on=["source", "target", "ligand", "receptor"],
        right_on=["source", "target", "ligand_complex", "receptor_complex"], validate="1:1",
    )
    assert len(both) == len(ours) == len(theirs) > 100
    assert both["expression"].to_numpy() == pytest.approx(both["lr_means"].to_numpy())
    count = (both["p"] * 51 - 1).to_numpy()
    assert count == pytest.approx(50 * both["cellphone_pvals"].to_numpy(), abs=1e-6)


def test_signals_of_shuffled_codes_are_rare(cells):
    null = cells.copy()
    null.obs["cellvq_code"] = np.random.default_rng(0).permutation(null.obs["cellvq_code"])
    table = communication(null, permutations=2000)
    assert len(table) > 500 and (table["fdr"] < 0.05).sum() == 0
    assert 0.02 < (table["p"] < 0.05).mean() < 0.09
    assert abs(table["effect"].median()) < 0.1


def test_all_shuffles_in_closed_form_are_what_many_shuffles_come_to(cells):
    closed, drawn = communication(cells), communication(cells, permutations=5000)
    both = closed.merge(drawn, on=["source", "target", "ligand", "receptor"], suffixes=("", "_of"))
    assert len(both) == len(closed) == len(drawn)
    assert both["effect"].to_numpy() == pytest.approx(both["effect_of"].to_numpy())
    error = np.sqrt(both["p_of"] * (1 - both["p_of"]) / 5000)
    apart = (both["p"] - both["p_of"]).abs()
    assert apart.max() < 0.03 and (apart - 3 * error).max() < 0.02
    assert ((both["fdr"] < 0.05) == (both["fdr_of"] < 0.05)).mean() > 0.99
    assert closed["p"].min() < 1e-8  # finer than any number of shuffles that could be drawn


@pytest.mark.parametrize("case", ["no genes", "not expressed", "small codes", "one code"])
def test_without_signals_the_reason_is_stated(cells, case):
    options, some = {}, cells.copy()
    if case == "no genes":
        some.var_names = [f"X{i}" for i in range(some.n_vars)]
    elif case == "not expressed":
        options["min_fraction"] = 1.01
    elif case == "small codes":
        options["min_cells"] = 10_000
    else:
        some.obs["cellvq_code"] = "C00"
    table = communication(some, **options)
    assert table.empty and list(table.columns) == list(signals._COLUMNS)
    assert table.attrs["reason"]
    with pytest.raises(InputError, match="no column 'leiden'"):
        communication(some, "leiden")


@real
def test_interferon_brings_chemokine_signals_in_kang():
    cells = datasets.load("kang_ifnb_sub")
    cells.obs["state"] = (
        cells.obs["cell_type"].astype(str) + "/" + cells.obs["condition"].astype(str)
    )
    table = communication(cells, "state", permutations=500, min_cells=10)
    found = table[(table["fdr"] < 0.05) & table["source"].str.startswith("CD14 Mono/")]
    cxcl10 = found[found["ligand"] == "CXCL10"]
    assert len(cxcl10) and set(cxcl10["source"]) == {"CD14 Mono/stim"}
