"""Planted edges are found and no others; scores of edges mean what they say."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellvq import InputError, regulationmethods, regulationview
from cellvq.regulation import ALL, network, regulation
from cellvq.regulationnull import independent_cells
from cellvq.regulationpairs import candidates
from cellvq.regulationscore import _networks, _pairs, knockout_table, score_edges, score_methods
from cellvq.regulationsums import half_sums, sums_of
from cellvq.regulationtrial import simulated_truth
from cellvq.simulate import simulate_cells, truth


@pytest.fixture(scope="module")
def cells():
    made = simulate_cells(cells=1500, seed=1)
    made.obs["cellvq_code"] = made.obs["cell_type"].astype(str)
    return made


@pytest.fixture(scope="module")
def program(cells):
    table = truth(cells)["programs"]
    return dict(zip(table["gene"], table["program"], strict=True))


@pytest.fixture(scope="module")
def regulators(cells, program):
    leaders = truth(cells)["programs"].groupby("program")["gene"].first().tolist()
    return [*leaders, *cells.var_names.difference(list(program))[:40]]


@pytest.fixture(scope="module")
def edges(cells, regulators):
    return regulation(cells, regulators=regulators, donor="donor", together=True)


def genes_alone(rate, names, obs, seed=0):
    """Cells whose genes are drawn one by one, around a rate [cells, genes]."""
    from anndata import AnnData

    counts = np.random.default_rng(seed).poisson(rate)
    table = pd.DataFrame(obs, index=[f"c{n}" for n in range(len(counts))])
    return AnnData(csr_matrix(counts, dtype=np.float32), table, pd.DataFrame(index=names))


def test_a_planted_program_is_found_and_little_else(edges, program):
    right = edges["regulator"].map(program) == edges["gene"].map(program)
    assert right.sum() > 12 and right.mean() > 0.9
    assert (edges["effect"][right] > 0).all() and (edges["code"] == ALL).all()
    assert edges["p"].is_monotonic_increasing and (edges["fdr"] < 0.05).all()


def test_an_edge_that_is_sure_is_stable_and_shared_by_donors(edges):
    sure = edges.head(5)
    assert (sure["stability"] > 0.9).all() and (sure["agree"] > 0.6).all()
    assert edges["stability"].between(0, 1).all() and (edges["n_donors"] == 6).all()


def test_most_keeps_the_surest_of_each_code(cells, regulators):
    options = {"regulators": regulators[:5], "draws": 0}
    every = regulation(cells, fdr=1, **options)
    few = regulation(cells, fdr=1, most=2, **options)
    assert every.attrs["tested"] == len(every) == few.attrs["tested"]
    assert (few["code"].value_counts() == 2).all() and few["code"].nunique() == 6
    for code, part in few.groupby("code"):
        assert part["p"].max() <= every.loc[every["code"] == code, "p"].nsmallest(2).max()


def test_adjusted_p_values_are_those_of_all_tests(cells, regulators):
    every = regulation(cells, regulators=regulators, donor="donor", together=True, fdr=1, draws=0)
    some = regulation(cells, regulators=regulators, donor="donor", together=True, draws=0)
    same = some.merge(every, on=["regulator", "gene"])
    assert len(same) == len(some) == (every["fdr"] < 0.05).sum()
    np.testing.assert_allclose(same["fdr_x"], same["fdr_y"])


def test_nothing_planted_nothing_found_where_strata_are_kept():
    table = simulated_truth(range(3), cells=1000)
    null = table[~table["planted"]].set_index("family")
    assert null.loc[["each code", "all codes together"], "false"].sum() <= 1
    assert (null.loc["codes and donors ignored", "false"] > 50).all()
    assert null["power"].isna().all()


def test_genes_that_know_of_no_other_make_no_edge_at_real_differences_of_depth(cells, regulators):
    drawn = independent_cells(cells, "cell_type", donor="donor", dispersion=1, seed=2)
    assert np.allclose(drawn.X.sum(), cells.X.sum(), rtol=0.05)
    every = regulation(drawn, regulators=regulators, donor="donor", together=True, fdr=1, draws=0)
    assert every["fdr"].min() > 0.05 and 0.02 < (every["p"] < 0.05).mean() < 0.06
    assert abs(every["score"].mean()) < 0.06  # what genes share as parts of a whole is taken off


def test_a_difference_between_donors_makes_no_edge_once_donors_are_named():
    donor = np.repeat([0, 1, 2, 3], 100)
    rate = np.random.default_rng(0).lognormal(0, 0.5, (400, 1)) * np.full(100, 2.0)
    rate[donor % 2 == 1, :2] *= 3  # two genes are high in the same donors
    names = [f"G{n}" for n in range(100)]
    made = genes_alone(rate, names, {"code": "a", "donor": donor.astype(str)})
    options = {"regulators": ["G0"], "draws": 0}
    assert "G1" in set(regulation(made, "code", **options)["gene"])
    assert regulation(made, "code", donor="donor", **options).empty


def test_a_difference_between_finer_codes_makes_no_edge_once_they_are_named():
    finer = np.tile([0, 1], 200)
    rate = np.random.default_rng(0).lognormal(0, 0.5, (400, 1)) * np.full(100, 2.0)
    rate[finer == 1, :2] *= 3
    made = genes_alone(rate, [f"G{n}" for n in range(100)], {
        "cellvq_code": [f"C0.{n}" for n in finer], "donor": "a"})
    made.obs["parent"] = "C0"
    assert "G1" in set(regulation(made, "parent", regulators=["G0"], draws=0)["gene"])
    pairs = candidates(made, "parent", regulators=["G0"], finer="cellvq_code")
    assert np.abs(sums_of(pairs).z[0, 1:]).max() < 4
    assert network(made, regulators=["G0"]).empty  # 200 cells a code: asked one by one
    assert network(made[:300].copy(), regulators=["G0"]).empty  # or their parent, less their means


def test_depth_makes_no_edge():
    rng = np.random.default_rng(0)
    depth = rng.lognormal(0, 0.7, 600)
    rate = depth[:, None] * rng.lognormal(0.5, 1, 60)
    made = genes_alone(rate, [f"G{n}" for n in range(60)], {"code": "a"})
    table = regulation(made, "code", regulators=["G0", "G1", "G2"], fdr=1, draws=0)
    counts = made.X.toarray()
    plain = np.corrcoef(counts.T)[0, 1:]
    assert np.median(plain) > 0.2 and table["fdr"].min() > 0.05
    assert table["effect"].abs().median() < 0.06


def test_one_gene_that_takes_much_of_a_cell_lowers_no_other():
    rng = np.random.default_rng(0)
    rate = np.full((1500, 30), 4.0)
    rate[:, 0] = 60 * rng.gamma(2, 0.5, 1500)  # a third of the molecules, and it varies
    for size, low in ((np.ones(1500), -2.5), (rng.lognormal(0, 0.5, 1500), -5)):
        made = genes_alone(rate * size[:, None], [f"G{n}" for n in range(30)], {"code": "a"})
        pair = candidates(made, "code", regulators=["G0"])
        left, plain = (sums_of(pair, composition=which).z[0, 1:].mean() for which in (True, False))
        assert plain < low and plain / 4 < left <= 0


def test_moments_of_all_shuffles_are_those_of_drawn_shuffles(cells):
    made = candidates(cells, None, regulators=["ISG15"], donor="donor")
    rows = np.flatnonzero(made.donor < 3)[::8]
    genes = np.r_[made.regulators, (made.regulators[0] + np.arange(1, 6)) % len(made.genes)]
    part = made.only(rows, np.sort(genes))
    sums = sums_of(part, composition=False)
    from cellvq import regulationsums as inside

    order, runs, basis = inside._strata(part, np.arange(len(rows)))
    values = inside._residuals(part.values[order].tocsc(), np.arange(len(genes)), basis)
    rng, drawn = np.random.default_rng(0), []
    own = values[:, part.regulators[0]]
    for _ in range(4000):
        mixed = np.concatenate([rng.permutation(own[run]) for run in runs])
        drawn.append(mixed @ values)
    drawn = np.array(drawn)
    np.testing.assert_allclose(sums.variance[0], drawn.var(axis=0), rtol=0.12)


def test_halves_of_all_cells_are_the_cells(cells):
    made = candidates(cells, None, regulators=["ISG15"])
    rng = np.random.default_rng(0)
    pair = np.array([[made.regulators[0]], [3]])
    product, variance = half_sums(made, np.arange(len(made.code)), pair, 200, rng)
    sums = sums_of(made, composition=False)
    assert np.isclose(product.mean(), sums.product[0, 3] / 2, atol=0.2 * sums.variance[0, 3]**0.5)
    assert np.isclose(variance.mean(), sums.variance[0, 3] / 2, rtol=0.05)


def test_scores_of_a_small_network_are_those_by_hand():
    edges = pd.DataFrame(product("AB", "CDEF"), columns=["regulator", "gene"])
    edges["score"] = [5, -4, 3, 0, 2, 1, 0, 0]
    known = pd.DataFrame({"regulator": ["A", "A", "B"], "gene": ["C", "E", "C"],
                          "weight": [1, -1, 1]})
    row = score_edges(edges, known, draws=50).iloc[0]
    # ranks of known pairs 1, 3, 4; one pair stands before the last two
    assert row["auroc"] == pytest.approx(1 - 2 / 15)
    assert row["precision"] == pytest.approx(2 / 3)  # of the three first pairs
    assert row["ratio"] == pytest.approx(2 / 3 / (3 / 8))
    assert row["signs"] == pytest.approx(2 / 3)
    assert row["regulators"] == 2 and row["pairs"] == 8 and row["known"] == 3


def test_random_networks_keep_every_degree_and_move_edges():
    rng = np.random.default_rng(0)
    edges = pd.DataFrame(product([f"R{n}" for n in range(8)], [f"G{n}" for n in range(40)]),
                         columns=["regulator", "gene"])
    edges["score"] = rng.normal(size=len(edges))
    known = edges.sample(60, random_state=0)[["regulator", "gene"]]
    pairs = _pairs(edges, known)
    table = edges.assign(there=0)
    for drawn in _networks(pairs, 5, rng):
        assert len(set(drawn)) == len(known)
        got = table.iloc[drawn]
        for side in ("regulator", "gene"):
            assert got[side].value_counts().to_dict() == known[side].value_counts().to_dict()
    assert len(set(drawn) & set(pairs.known)) < 40


def test_a_score_that_knows_only_degrees_is_told_by_the_random_networks():
    rng = np.random.default_rng(1)
    edges = pd.DataFrame(product([f"R{n}" for n in range(12)], range(80)),
                         columns=["regulator", "gene"])
    height = np.linspace(0, 1, 80)
    chance = height[edges["gene"]] ** 2 * 0.4
    known = edges[rng.random(len(edges)) < chance]
    edges["score"] = height[edges["gene"]]
    row = score_edges(edges, known, draws=100).iloc[0]
    assert row["auroc"] > 0.65 and row["auroc_p"] > 0.05
    assert row["auroc_null"] == pytest.approx(row["auroc"], abs=0.01)


def test_methods_rank_a_planted_program_above_shuffled_ones(cells, program, regulators):
    made = candidates(cells, "cell_type", regulators=regulators[:3], donor="donor")
    known = pd.DataFrame([(one, gene) for one in regulators[:3] for gene in program
                          if gene != one and program[gene] == program[one]],
                         columns=["regulator", "gene"])
    tables = {name: regulationmethods.score_pairs(made, name)
              for name in regulationmethods.METHODS}
    scores = score_methods(tables, known, draws=20).set_index("method")
    ours = scores.loc["correlation within codes"]
    assert ours["auroc"] > 0.9 and ours["auroc_p"] < 0.06
    assert scores.loc["shuffled within codes", "auroc"] < 0.7
    assert scores["pairs"].nunique() == 1
    axes = regulationview.method_points(scores.reset_index(), controls=regulationmethods.CONTROLS)
    assert len(axes.get_yticks()) == len(tables)


def test_knock_outs_become_known_edges():
    made = simulate_cells(cells=900, seed=3)
    made.obs["replicate"] = (pd.factorize(made.obs["donor"], sort=True)[0] // 2).astype(str)
    treated = (made.obs["condition"] == "stimulated").to_numpy()
    made.obs["target"] = np.where(treated, "ACTB", "none")  # as if losing it raised interferon
    table = knockout_table(made, "target", "none", "replicate")
    known = table[table["is_known"]]
    assert set(table["regulator"]) == {"ACTB"} and "ACTB" not in set(table["gene"])
    planted = set(truth(made)["perturbation"]["gene"])
    assert len(known) >= 4 and known["gene"].isin(planted).mean() > 0.8
    assert (known["weight"][known["gene"].isin(planted)] == -1).all()


def test_the_graph_gets_edges_or_a_reason(cells, regulators):
    table = network(cells, regulators=regulators, donor="donor", most=5, per_code=1)
    assert (table["code"] == ALL).sum() == 5 and "note" not in table.attrs
    nested = cells.copy()
    rng = np.random.default_rng(0)
    nested.obs["cellvq_code"] = [f"C{one[-1]}.{part}" for one, part in zip(
        nested.obs["cell_type"], rng.integers(0, 4, nested.n_obs), strict=True)]
    noted = network(nested, regulators=regulators[:3], donor="donor")
    assert "6 parents, the first 1 part" in noted.attrs["note"]
    assert set(noted["code"]) <= {ALL, *(f"C{n}" for n in range(1, 7))}
    nothing = network(cells, regulators=["NOT_A_GENE"])
    assert nothing.empty and "NOT_A_GENE" in nothing.attrs["reason"]
    mouse = cells[:, :3].copy()
    mouse.var_names = ["Cd3d", "Actb", "Gapdh"]
    assert "mouse" in network(mouse).attrs["reason"]


@pytest.mark.parametrize(("change", "words"), [
    ({"groupby": "nowhere"}, "no column 'nowhere'"),
    ({"donor": "nobody"}, "no column 'nobody'"),
    ({"regulators": ["Stat1", "Irf7"]}, "symbols of the same species"),
    ({"min_cells": 10_000}, "no code"),
    ({"fdr": 0}, "fdr is 0"),
    ({"draws": -1}, "draws is -1"),
    ({"min_fraction": 1}, "min_fraction is 1"),
])
def test_bad_input_gets_one_clear_line(cells, change, words):
    options = {"groupby": "cell_type", "regulators": ["STAT1"], **change}
    with pytest.raises(InputError, match=words) as told:
        regulation(cells, **options)
    assert "\n" not in str(told.value)


def test_a_decoder_is_asked_with_numbers_that_can_be(cells):
    from cellvq.regulationresponse import decoder_response

    with pytest.raises(InputError, match="per_code is 0"):
        decoder_response(cells, None, per_code=0)
    with pytest.raises(InputError, match="high is 2"):
        decoder_response(cells, None, high=2)


def test_one_code_and_no_donors_are_enough(cells, regulators):
    one = cells[cells.obs["cell_type"] == "type_1"].copy()
    table = regulation(one, "cell_type", regulators=regulators, fdr=1, most=3, draws=2)
    assert set(table["code"]) == {"type_1"} and (table["n_donors"] == 0).all()
    assert table["agree"].isna().all() and table["stability"].notna().all()


def test_a_table_without_edges_says_why(cells):
    table = regulation(cells, "cell_type", regulators=["ACTB"], fdr=1e-9)
    assert table.empty and "below the false discovery rate" in table.attrs["reason"]
    with pytest.raises(InputError, match="no edges to draw"):
        regulationview.edge_dots(table)


def test_scores_without_a_known_edge_say_why():
    edges = pd.DataFrame({"regulator": ["A", "A"], "gene": ["B", "C"], "score": [1.0, 2.0]})
    none = score_edges(edges, pd.DataFrame({"regulator": ["Z"], "gene": ["B"]}))
    assert none.empty and "no known edge" in none.attrs["reason"]
    with pytest.raises(InputError, match="no column score"):
        score_edges(edges.drop(columns="score"), edges)
    with pytest.raises(InputError, match="missing or infinite"):
        score_edges(edges.assign(score=np.nan), edges)
