"""Signals between codes: liana's numbers kept, planted truth recovered, nulls held, odd input."""

import itertools
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellvq import (
    InputError,
    datasets,
    evaluate,
    signalchanges,
    signalnull,
    signalpairs,
    signals,
    signalview,
    simulate,
    spatial,
)
from cellvq.signalchanges import OF_CELLS, signal_changes
from cellvq.signalpairs import prepare
from cellvq.signals import communication

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "h5ad").is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)
KEYS = ["source", "target", "ligand", "receptor"]


@pytest.fixture(scope="module")
def cells():
    return simulate.simulate_cells(cells=800, seed=3)


@pytest.fixture(scope="module")
def talk(cells):
    return communication(cells, "cell_type")


def planted(cells):
    return set(simulate.truth(cells)["communication"][KEYS].itertuples(index=False, name=None))


def named(table):
    return set(table[KEYS].itertuples(index=False, name=None))


def test_planted_signals_are_found_and_few_others(cells, talk):
    found = named(talk[talk["fdr"] < 0.05])
    assert planted(cells) <= found and len(found - planted(cells)) <= 2
    assert talk.head(len(planted(cells)))["effect"].min() > 1.5
    assert list(talk) == list(signals.COLUMNS)


def test_the_consensus_ranks_planted_signals_first(cells, talk):
    best = talk.sort_values("specificity_rank").head(len(planted(cells)))
    assert named(best) == planted(cells)
    for column in ("magnitude_rank", "specificity_rank"):
        assert talk[column].between(0, 1).all()
    assert "NATMI" in talk["evidence"].iloc[0]


@pytest.mark.parametrize("source", ["simulated", "pbmc68k_reduced"])
def test_numbers_equal_those_of_liana(source, cells):
    import liana

    from cellvq import evaluate, genes

    here = cells if source == "simulated" else datasets.load(source)
    ours = communication(here, "cell_type", permutations=50, seed=7, min_cells=20)
    counts, _ = genes.find_counts(here)
    work = here.copy()
    work.X = evaluate.log_normalise(counts, genes.sequencing_depth(here, counts))
    work.raw = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = liana.mt.rank_aggregate(
            work, "cell_type", n_perms=50, seed=7, min_cells=20, use_raw=False, inplace=False,
            resource=prepare(here, "cell_type", min_cells=20).pairs,
        )
    both = ours.merge(theirs, left_on=KEYS, validate="1:1",
                      right_on=["source", "target", "ligand_complex", "receptor_complex"])
    assert len(both) == len(ours) == len(theirs) > 100
    assert both["expression"].to_numpy() == pytest.approx(both["lr_means"].to_numpy())
    count = (both["p"] * 51 - 1).to_numpy()
    assert count == pytest.approx(50 * both["cellphone_pvals"].to_numpy(), abs=1e-6)
    assert both["specificity_rank_x"].to_numpy() == pytest.approx(
        both["specificity_rank_y"].to_numpy())
    # liana 1.10 ranks the product of expressions twice, which turns it around; later ones do not.
    theirs = both["magnitude_rank_y"].to_numpy()
    twice = both.assign(expr_prod=both["expr_prod"].rank(ascending=False))
    assert any(np.allclose(signals.join_ranks(table, signals.MAGNITUDE), theirs)
               for table in (both, twice))


def test_ranks_do_not_hang_on_the_parts_that_liana_gets(cells, monkeypatch):
    whole = communication(cells, "cell_type", permutations=20)
    monkeypatch.setattr(signals, "parts", lambda made: signalpairs.parts(made, 1000))
    pieces = communication(cells, "cell_type", permutations=20)
    pd.testing.assert_frame_equal(whole, pieces)


def test_compiled_sums_change_nothing(cells, monkeypatch):
    options = {"permutations": 200, "consensus": False, "donor": "donor"}
    plain = communication(cells, "cell_type", **options)
    monkeypatch.setattr(signalnull, "WORTH_COMPILING", 0)
    pd.testing.assert_frame_equal(communication(cells, "cell_type", **options), plain)


def test_rows_that_end_early_keep_their_p_value(cells):
    full = communication(cells, "cell_type", permutations=2000, consensus=False, enough=10**9)
    early = communication(cells, "cell_type", permutations=2000, consensus=False)
    both = full.merge(early, on=KEYS, validate="1:1")
    rare = both["p_x"] < 0.04
    assert rare.sum() > 20 and both["p_x"][rare].equals(both["p_y"][rare])
    assert np.abs(np.log2(both["p_x"] / both["p_y"])).max() < 0.8


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("donor", [None, "donor"])
def test_signals_of_shuffled_codes_are_rare(cells, seed, donor):
    null = cells.copy()
    null.obs["code"] = np.random.default_rng(seed).permutation(null.obs["cell_type"])
    table = communication(null, "code", permutations=1000, donor=donor, consensus=False)
    assert len(table) > 500 and (table["fdr"] < 0.05).sum() == 0
    assert 0.01 < (table["p"] < 0.05).mean() < 0.1
    assert abs(table["effect"].median()) < 0.1


def test_codes_that_differ_between_donors_alone_do_not_talk(cells):
    """Shuffling over all cells takes what sets donors apart for signals; within donors it does not.
    """
    some = cells.copy()
    some.obs["code"] = some.obs["donor"].astype(str) + np.random.default_rng(0).choice(
        ["a", "b"], some.n_obs)
    raised = some.X.toarray()
    raised[:, some.var_names.isin(["CCL19", "CCR7"])] += 9.0 * np.asarray(
        some.obs["donor"] == "donor_1")[:, None]
    some.X = csr_matrix(raised)
    plain = communication(some, "code", permutations=2000, consensus=False)
    fair = communication(some, "code", permutations=2000, consensus=False, donor="donor")
    assert (plain["fdr"] < 0.05).sum() > 3 and (fair["fdr"] < 0.05).sum() == 0


def test_donors_who_agree_are_counted(cells, talk):
    assert (talk["n_donors"] == 0).all() and talk["stability"].isna().all()
    table = communication(cells, "cell_type", donor="donor", permutations=500, consensus=False)
    best = table.set_index(KEYS).loc[sorted(planted(cells))]
    donors = cells.obs["donor"].nunique()
    assert (best["n_donors"] == donors).all() and (best["stability"] == 1).all()
    others = table[~table.set_index(KEYS).index.isin(planted(cells))]
    assert others["n_donors"].between(0, donors).all() and others["stability"].mean() < 0.8
    assert "of each donor" in table["null"].iloc[0]
    some = cells.copy()
    some.obs["donor"] = some.obs["donor"].astype(object)
    some.obs.loc[some.obs_names[::3], "donor"] = None  # as in real files
    table = communication(some, "cell_type", donor="donor", permutations=100, consensus=False)
    assert len(table) and table["n_donors"].max() <= donors


def test_many_codes_are_replaced_by_their_parents(cells):
    some = cells.copy()
    kind = some.obs["cell_type"].cat.codes.astype(str)
    state = pd.Series(np.random.default_rng(0).integers(0, 4, some.n_obs), some.obs_names)
    some.obs["cellvq_code"] = "C" + kind + "." + state.astype(str)
    table = communication(some, permutations=100, most_groups=6, consensus=False)
    assert set(table["source"]) <= {f"C{n}" for n in range(6)}
    assert "24 groups" in table.attrs["note"] and "their 6 parents" in table.attrs["note"]
    every = communication(some, permutations=20, most_groups=24, consensus=False)
    assert "note" not in every.attrs and every["source"].str.contains(".", regex=False).all()
    plain = communication(some, "cell_type", permutations=20, most_groups=4, consensus=False)
    assert plain["source"].nunique() <= 4 and "the 4 largest" in plain.attrs["note"]


NAMES = {
    "quotes": "it's \"{}\"", "newline": "a\n{}", "and": "T & {}", "hat": "T^{}",
    "underscore": "T_{}", "numbers": "{}", "spaces": " {} ",
}


@pytest.mark.parametrize("case", NAMES)
def test_odd_names_of_codes_change_nothing(cells, talk, case):
    some = cells.copy()
    number = some.obs["cell_type"].cat.codes
    some.obs["odd"] = number if case == "numbers" else [NAMES[case].format(n) for n in number]
    table = communication(some, "odd", permutations=50)
    assert sorted(table["expression"]) == pytest.approx(sorted(talk["expression"]))
    assert set(table["source"]) <= set(some.obs["odd"].astype(str))


def test_genes_that_stand_twice_and_mouse_genes_work(cells):
    some = cells.copy()
    names = some.var_names.to_list()
    names[5] = names[6] = "CCL19"
    some.var_names = names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(communication(some, "cell_type", permutations=20))
    mouse = cells.copy()
    mouse.var_names = ["Actb", "Gapdh", *cells.var_names.str.title()[2:]]
    table = communication(mouse, "cell_type", permutations=20, consensus=False)
    assert len(table) > 100 and "mouseconsensus" in table["evidence"].iloc[0]
    reason = communication(mouse, "cell_type", resource="consensus").attrs["reason"]
    assert "look like those of mouse: use the resource mouseconsensus" in reason


@pytest.mark.parametrize("case", ["no genes", "ensembl", "not expressed", "small", "one code",
                                  "no code"])
def test_without_signals_the_reason_is_stated(cells, case):
    options, some = {}, cells.copy()
    some.obs["code"] = some.obs["cell_type"].astype(object)
    if case == "no genes":
        some.var_names = [f"X{i}" for i in range(some.n_vars)]
    elif case == "ensembl":
        some.var_names = [f"ENSG{i:011d}" for i in range(some.n_vars)]
    elif case == "not expressed":
        options["min_fraction"] = 1.01
    elif case == "small":
        options["min_cells"] = 10_000
    else:
        some.obs["code"] = "C00" if case == "one code" else None
    table = communication(some, "code", **options)
    assert table.empty and list(table) == list(signals.COLUMNS)
    reason = table.attrs["reason"]
    assert reason and "\n" not in reason
    assert case != "ensembl" or "Ensembl" in reason


@pytest.mark.parametrize(("options", "says"), [
    ({"groupby": "leiden"}, "no column 'leiden'"),
    ({"donor": "patient"}, "no column 'patient'"),
    ({"resource": "mine"}, "no list of pairs 'mine'"),
    ({"permutations": 0}, "use 1 or more"),
    ({"most_groups": 1}, "use 2 or more"),
])
def test_bad_input_gives_one_line(cells, options, says):
    with pytest.raises(InputError, match=says) as error:
        communication(cells, **{"groupby": "cell_type"} | options)
    assert "\n" not in str(error.value)


def halves(cells, seed):
    """Cells with a condition that does nothing, within every donor."""
    some = cells.copy()
    some.obs["half"] = np.random.default_rng(seed).choice(["x", "y"], some.n_obs)
    return some


DESIGNS = {
    "cells": (0, OF_CELLS), "2 paired": (2, "within donors .* moderated t"),
    "12 paired": (12, "within donors .* 1000 permutations"), "4 against 4": (8, "moderated t"),
    "10 against 10": (20, "1000 permutations"),
}


def test_a_condition_that_does_nothing_changes_no_signal():
    shares, found = [], []
    for (design, (donors, null)), seed in itertools.product(DESIGNS.items(), range(3)):
        some = halves(simulate.simulate_cells(
            cells=max(100 * donors, 800), cell_types=3, donors=donors or 6, conditions=("a",),
            batches=1, seed=seed,
        ), seed)
        if "against" in design:
            some.obs["half"] = np.where(some.obs["donor"].cat.codes % 2, "x", "y")
        table = signal_changes(some, "half", "x", groupby="cell_type", permutations=1000,
                               donor="donor" if donors else None, seed=seed)
        assert len(table) > 20 and donors - 2 <= table["n_donors"].max() <= donors, design
        assert table["null"].str.contains(null).any(), design
        found.append((table["fdr"] < 0.05).any())
        shares.append((table["p"] < 0.05).mean())
    assert np.mean(found) <= 0.06 and 0.02 < np.mean(shares) < 0.07


@pytest.mark.parametrize("donor", [None, "donor"])
def test_a_signal_that_a_condition_brings_is_found(donor):
    cells = simulate.simulate_cells(cells=1500, cell_types=3, donors=4, pairs=3, seed=1)
    some = halves(cells, 0)
    ligands = simulate.truth(cells)["communication"]["ligand"]
    raised = some.X.toarray()
    raised[:, some.var_names.isin(ligands)] *= np.where(some.obs["half"] == "x", 1, 4)[:, None]
    some.X = csr_matrix(raised)
    options = {"groupby": "cell_type", "donor": donor, "permutations": 3000}
    table = signal_changes(some, "half", "x", **options)
    assert list(table) == list(signalchanges.COLUMNS) and (table["contrast"] == "y / x").all()
    best = table.merge(simulate.truth(cells)["communication"], on=KEYS, validate="1:1")
    assert len(best) == 3 and (best["fdr"] < 0.05).all()
    assert best["ligand_change"].between(1.0, 2.8).all()
    assert best["receptor_change"].abs().max() < 1
    assert np.allclose(table["effect"], table["ligand_change"] + table["receptor_change"])
    assert set(table[table["fdr"] < 0.05]["ligand"]) <= set(ligands)
    turned = signal_changes(some, "half", "y", **options)
    both = table.merge(turned, on=KEYS, validate="1:1")
    assert both["effect_x"].to_numpy() == pytest.approx(-both["effect_y"].to_numpy())


def test_changes_that_cannot_be_tested_have_a_reason(cells):
    some = halves(cells, 0)
    one = signal_changes(some[some.obs["half"] == "x"], "half", "x", groupby="cell_type")
    assert one.empty and "single value" in one.attrs["reason"]
    few = signal_changes(some, "half", "x", groupby="cell_type", min_cells=10_000)
    assert few.empty and "10000 cells of each condition" in few.attrs["reason"]
    some.obs["apart"] = np.where(some.obs["half"] == "x", "type_1", "type_2")
    apart = signal_changes(some, "half", "x", groupby="apart")
    assert apart.empty and list(apart) == list(signalchanges.COLUMNS)
    for options, says in [({"reference": "z"}, "no cell is of the condition 'z'"),
                          ({"condition": "dose"}, "no column 'dose'"),
                          ({"donor": "patient"}, "no column 'patient'"),
                          ({"groupby": "leiden"}, "no column 'leiden'")]:
        with pytest.raises(InputError, match=says):
            signal_changes(some, **{"condition": "half", "reference": "x",
                                    "groupby": "cell_type"} | options)


def test_several_conditions_are_each_compared(cells):
    some = cells.copy()
    some.obs["dose"] = np.random.default_rng(0).choice([0, 1, 2], some.n_obs)
    table = signal_changes(some, "dose", 0, groupby="cell_type", permutations=100)
    assert set(table["contrast"]) == {"1 / 0", "2 / 0"}
    assert np.allclose(table["fdr"], evaluate.false_discovery_rate(table["p"]))


@real
@pytest.mark.parametrize(("name", "donor", "ligands"), [
    ("kang_ifnb_sub", None, {"CXCL10", "CXCL11", "CCL8", "TNFSF10"}),
    ("kang_muscat_example", "donor", {"CXCL11", "CCL8"}),  # has no pair of the other two
])
def test_interferon_raises_its_signals_in_kang(name, donor, ligands):
    table = signal_changes(datasets.load(name), "condition", "ctrl", groupby="cell_type",
                           donor=donor, permutations=2000)
    up = table[(table["fdr"] < 0.05) & (table["effect"] > 1)]
    assert ligands <= set(up["ligand"])
    down = table[(table["fdr"] < 0.05) & (table["effect"] < 0)]
    assert not set(down[down["ligand_change"] < 0]["ligand"]) & ligands
    assert (table["n_donors"] == (2 if donor else 0)).all()


@real
def test_interferon_brings_chemokine_signals_in_kang():
    cells = datasets.load("kang_ifnb_sub")
    cells.obs["state"] = (
        cells.obs["cell_type"].astype(str) + "/" + cells.obs["condition"].astype(str)
    )
    table = communication(cells, "state", permutations=500, min_cells=10, consensus=False)
    found = table[(table["fdr"] < 0.05) & table["source"].str.startswith("CD14 Mono/")]
    cxcl10 = found[found["ligand"] == "CXCL10"]
    assert len(cxcl10) and set(cxcl10["source"]) == {"CD14 Mono/stim"}


def test_neighbours_with_ligand_and_receptor_are_found_in_simulated_tissue():
    tissue = spatial.simulated_tissue(900, talk="cells", seed=1)
    table = spatial.spatial_communication(tissue, "cell_type", resource="cellphonedb",
                                          permutations=8000)
    assert list(table) == list(spatial.COLUMNS)
    found = table[table["fdr"] < 0.05]
    assert [row[KEYS].to_dict() for _, row in found.iterrows()] == [tissue.uns["neighbours"]]
    assert found["morans_p"].iloc[0] < 1e-4 and (table["contacts"] >= 20).all()


@pytest.mark.parametrize("within", [True, False])
def test_neighbours_by_chance_do_not_talk(within):
    options = {"within_codes": within, "permutations": 1000, "resource": "cellphonedb"}
    shares, found = [], 0
    for seed in range(2):
        tissue = spatial.simulated_tissue(400, talk="none", seed=seed)
        table = spatial.spatial_communication(tissue, "cell_type", **options)
        found += (table["fdr"] < 0.05).sum()
        shares.append((table["p"] < 0.05).mean())
    assert found == 0 and 0.02 < np.mean(shares) < 0.08


def test_codes_side_by_side_are_no_talk_of_cells():
    tissue = spatial.simulated_tissue(900, talk="codes", seed=1)
    pair = [tissue.uns["neighbours"][end] for end in ("source", "target")]
    found = {}
    for within in (True, False):
        table = spatial.spatial_communication(tissue, "cell_type", within_codes=within,
                                              resource="cellphonedb", permutations=2000)
        found[within] = table[table["fdr"] < 0.05]
    assert found[True].empty and len(found[False])
    near = {frozenset(row) for row in found[False][["source", "target"]].itertuples(index=False)}
    assert frozenset(pair) in near


@pytest.mark.parametrize("within", [True, False])
def test_the_expected_sum_is_the_mean_of_shuffles(within):
    rng = np.random.default_rng(0)
    number, values = np.repeat([0, 1], [12, 8]), csr_matrix(rng.poisson(2.0, (20, 2)) * 1.0)
    cell = np.repeat(np.arange(20), 2)
    contacts = cell, (cell + rng.integers(1, 20, 40)) % 20
    ends = signalnull.Ends(*np.array([[0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]))
    sums = spatial._OfContacts(values, number, contacts, ends)
    dense = values.toarray()
    first = dense[contacts[0], 0] * dense[contacts[1], 1]
    here = (number[contacts[0]] == 0) & (number[contacts[1]] == 1)
    assert sums.values()[0] == pytest.approx(first[here].sum())
    shuffles = signalnull.orders(20, number if within else None, 4000, seed=0)
    mean = np.mean([sums.values(order) for order in shuffles], axis=0)
    assert sums.expected(within=within) == pytest.approx(mean, rel=0.05)


def test_without_positions_the_reason_is_stated(cells):
    table = spatial.spatial_communication(cells, "cell_type")
    assert table.empty and "no positions" in table.attrs["reason"]
    some = cells[:60].copy()
    some.obsm["spatial"] = np.full((60, 2), np.nan)
    with pytest.raises(InputError, match="missing or no numbers"):
        spatial.spatial_communication(some, "cell_type")
    some.obsm["spatial"] = np.zeros((60, 2))  # all in one place
    far = spatial.spatial_communication(some, "cell_type", permutations=10, min_contacts=10**6)
    assert far.empty and "contacts" in far.attrs["reason"]
    with pytest.raises(InputError, match="talk is 'much'"):
        spatial.simulated_tissue(100, talk="much")


def test_figures_name_their_signals(cells, talk):
    ax = signalview.signal_dots(talk, most=8)
    assert ax.get_title(loc="left") == "Strongest signals"
    shown = {label.get_text() for label in ax.get_yticklabels()}
    assert "CCL19 → CCR7" in shown and len(shown) <= 8
    ax = signalview.signal_map(talk)
    assert sum(ax.images[0].get_array().ravel()) == (talk["fdr"] < 0.05).sum()
    changes = signal_changes(halves(cells, 0), "half", "x", groupby="cell_type", permutations=20)
    assert signalview.signal_dots(changes).get_title(loc="left") == "y / x"
    plt.close("all")
    nothing = communication(cells, "cell_type", min_cells=10_000)
    with pytest.raises(InputError, match="no signals to draw"):
        signalview.signal_dots(nothing)
    with pytest.raises(InputError, match="no column effect"):
        signalview.signal_map(talk.drop(columns="effect"))


@pytest.mark.parametrize("donor", [None, "donor"])
def test_all_shuffles_in_closed_form_are_what_many_shuffles_come_to(cells, donor):
    options = {"donor": donor, "consensus": False}
    closed = communication(cells, "cell_type", **options)
    drawn = communication(cells, "cell_type", permutations=3000, enough=10**9, **options)
    ends = ["source", "target", "ligand", "receptor"]
    both = closed.merge(drawn, on=ends, suffixes=("", "_of"), validate="1:1")
    assert len(both) == len(closed) == len(drawn)
    assert both["effect"].to_numpy() == pytest.approx(both["effect_of"].to_numpy())
    sizes = cells.obs["cell_type"].value_counts()
    few = both[["source", "target"]].apply(lambda ends: ends.map(sizes)).min(axis=1) < signals.FEW
    assert 0 < few.sum() < len(both)
    error = 3 * np.sqrt(both["p_of"] * (1 - both["p_of"]) / 3000)
    apart = both["p"] - both["p_of"]
    assert (apart.abs() - error)[~few].max() < 0.03 and apart[~few].abs().mean() < 0.01
    # Of few cells the larger p of two counts, which is never too small; a row that ends after
    # ENOUGH shuffles is known to a tenth of its p.
    assert (-apart - error)[few].max() < 0.03
    assert (apart - error - 0.3 * both["p_of"])[few].max() < 0.03
    assert ((both["fdr"] < 0.05) == (both["fdr_of"] < 0.05)).mean() > 0.99
    assert closed["p"].min() < 1e-6  # finer than any number of shuffles that could be drawn


@pytest.mark.parametrize("source", ["simulated", "pbmc68k_reduced", "complexes"])
def test_rows_are_those_that_liana_finds(source, cells):
    import liana

    here = datasets.load("pbmc68k_reduced") if source == "pbmc68k_reduced" else cells.copy()
    if source == "complexes":  # subunits of the list's first complexes stand in for other genes
        listed = liana.rs.select_resource("consensus")
        split = listed[listed["receptor"].str.contains("_")].head(40)
        units = dict.fromkeys("_".join([*split["ligand"], *split["receptor"]]).split("_"))
        here.var_names = [*units, *here.var_names[len(units) :]]
        here.var_names_make_unique()
    made = prepare(here, "cell_type", min_cells=20)
    ours = signalpairs.found_rows(made, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = liana.mt.cellphonedb(
            made.cells, "group", resource=made.pairs, expr_prop=0.1, min_cells=20, n_perms=None,
            use_raw=False, inplace=False, verbose=False)
    theirs = theirs.astype({"source": int, "target": int})
    keys = ["source", "target", "ligand_complex", "receptor_complex"]
    both = ours.merge(theirs, on=keys, suffixes=("", "_of"), validate="1:1")
    assert len(both) == len(ours) == len(theirs) > 100
    assert source != "complexes" or both["receptor_complex"].str.contains("_").sum() > 20
    assert (both[["ligand", "receptor"]] == both[["ligand_of", "receptor_of"]].to_numpy()).all(
        axis=None)
    assert both["lr_means"].to_numpy() == pytest.approx(
        both["lr_means_of"].to_numpy(float), abs=1e-5)
