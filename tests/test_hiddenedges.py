"""Links hidden from a graph leave no trace; what is planted is found again, noise is not."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from cellvq import (
    InputError,
    graphmaking,
    graphpriors,
    hiddenedges,
    hiddenscore,
    knowledge,
    simulate,
)
from cellvq.hypotheses import rank
from cellvq.schema import check, edge_table, node_table

COLUMNS = graphmaking.Columns((), "donor")


def known(links):
    sets = pd.DataFrame(columns=["collection", "gene_set", "gene"], dtype=str)
    return knowledge.Knowledge(sets, links, pd.DataFrame(), pd.DataFrame(), [])


@pytest.fixture(scope="module")
def cells():
    cells = simulate.simulate_cells(cells=600, donors=6, seed=2, depth=500, cell_types=4)
    cells.obs["cellvq_code"] = cells.obs["cell_type"].astype(str)
    return cells


@pytest.fixture(scope="module")
def regulons(cells):
    """Each of two regulators of a type has the most of its markers."""
    markers = simulate.truth(cells)["markers"]
    rng, rows = np.random.default_rng(0), []
    for _, part in markers.groupby("cell_type"):
        for factor in part["gene"].head(2):
            rows += [(factor, gene) for gene in part["gene"]
                     if gene != factor and rng.random() < 0.8]
    return pd.DataFrame(rows, columns=["regulator", "gene"]).assign(weight=1.0)


@pytest.fixture(scope="module")
def made(cells, regulons):
    return graphmaking.make(cells, COLUMNS, knowledge=known(regulons))


@pytest.mark.parametrize("kind", hiddenedges.KINDS)
def test_a_hidden_link_is_named_nowhere(made, kind):
    links = hiddenedges.known_pairs(made.edges, kind)
    hidden = links.iloc[::3]
    nodes, edges = hiddenedges.hide(made.nodes, made.edges, hidden, kind)
    check(nodes, edges)
    assert 0 < len(edges) < len(made.edges)
    found = edges[["source", "target", "name"]].astype(str).agg(" ".join, axis=1)
    for row in hidden.itertuples():
        ends = [row.source.removeprefix("gene:"), row.target.removeprefix("gene:")]
        both = found.str.contains(rf"\b{ends[0]}\b") & found.str.contains(rf"\b{ends[1]}\b")
        assert not both.any(), found[both].iloc[0]
        assert not nodes["name"].eq(" → ".join(ends)).any()
    left = hiddenedges.known_pairs(edges, kind)
    assert len(left) <= len(links) - len(hidden)


def test_what_is_left_is_the_graph_that_would_have_been_built(made, cells, regulons):
    links = hiddenedges.known_pairs(made.edges)
    hidden = links.sample(8, random_state=0)
    nodes, edges = hiddenedges.hide(made.nodes, made.edges, hidden)
    gone = {frozenset(pair) for pair in zip(hidden["source"], hidden["target"], strict=True)}
    kept = [frozenset((f"gene:{row.regulator}", f"gene:{row.gene}")) not in gone
            for row in regulons.itertuples()]
    built = graphmaking.make(cells, COLUMNS, knowledge=known(regulons[kept]))
    pd.testing.assert_frame_equal(edges, built.edges)
    assert set(nodes["id"]) == set(built.nodes["id"])


def test_a_gene_that_only_its_pair_brought_in_goes_with_it():
    nodes = pd.concat([node_table("code", ["C0", "C1"]), node_table("gene", ["L", "R", "T"]),
                       node_table("pair", ["L → R"])])
    edges = pd.concat([
        edge_table("code-talks-to-code", ["code:C0"], ["code:C1"], name="L → R"),
        edge_table("code-marks-gene", ["code:C0"], ["gene:R"]),
        edge_table("gene-in-pair", ["gene:L", "gene:R"], ["pair:L → R"] * 2, status="prior",
                   name=["ligand", "receptor"]),
        edge_table("tf-regulates-gene", ["gene:R"], ["gene:L"], status="prior")])
    hidden = hiddenedges.known_pairs(edges, "gene-in-pair")
    nodes, edges = hiddenedges.hide(nodes, edges, hidden, "gene-in-pair")
    assert edges["kind"].tolist() == ["code-marks-gene"]
    assert nodes["id"].tolist() == ["code:C0", "code:C1", "gene:R"]


def test_random_links_keep_the_number_of_each_gene(made):
    links = hiddenedges.known_pairs(made.edges).iloc[::2]
    task = hiddenedges.make_task(made.edges, links, "tf-regulates-gene")
    swapped = hiddenedges.swap(task.hidden, task.open, np.random.default_rng(0))
    for end in (0, 1):
        assert Counter(swapped[:, end].tolist()) == Counter(task.hidden[:, end].tolist())
    assert len({tuple(pair) for pair in swapped.tolist()}) == len(swapped)
    assert task.open[tuple(swapped.T)].all()
    assert (swapped != task.hidden).any(axis=1).mean() > 0.5
    shuffled = hiddenedges.shuffle_cells(made.edges)
    marks = made.edges["kind"] == "code-marks-gene"
    for end in ("source", "target"):
        assert Counter(shuffled.loc[marks, end]) == Counter(made.edges.loc[marks, end])
    assert (shuffled.loc[marks, "target"] != made.edges.loc[marks, "target"]).mean() > 0.3
    prior = made.edges["status"] == "prior"
    pd.testing.assert_frame_equal(shuffled[prior], made.edges[prior])


def test_planted_links_are_found_again_and_cells_add_to_it(made):
    some = [hiddenscore.ALL, hiddenscore.CELLS, hiddenscore.SHUFFLED]
    table = hiddenscore.hidden_edges(made.nodes, made.edges, methods=some, folds=3, draws=50)
    assert list(table.columns) == list(hiddenscore.COLUMNS)
    row = table[table["minus"] == ""].set_index(["method", "measure"])
    best = row.loc[(hiddenscore.ALL, "AUROC")]
    assert best["value"] > 0.85 and best["p"] < 0.05 and best["value"] > best["null_high"]
    top = row.loc[(hiddenscore.ALL, hiddenscore.AS_HIDDEN)]
    assert top["value"] > 3 * top["chance"] and top["low"] <= top["value"] <= top["high"]
    assert row.loc[(hiddenscore.CELLS, "AUROC"), "value"] > 0.8  # they mark the code of theirs
    assert row.loc[(hiddenscore.SHUFFLED, "AUROC"), "value"] < best["value"]
    gap = table[(table["minus"] == hiddenscore.SHUFFLED) & (table["measure"] == "AUROC")].iloc[0]
    assert gap["value"] > 0 and np.isnan(gap["null"])


def test_random_regulons_are_not_found(made, cells):
    rng = np.random.default_rng(1)
    genes = simulate.truth(cells)["markers"]["gene"].to_numpy()
    noise = pd.DataFrame({"regulator": rng.choice(genes[:8], 90), "gene": rng.choice(genes, 90),
                          "weight": 1.0}).drop_duplicates(["regulator", "gene"])
    found = made.edges[made.edges["status"] != "prior"]
    edges = pd.concat([found, *graphpriors.known_links(found, graphpriors.Priors(noise))])
    table = hiddenscore.hidden_edges(made.nodes, edges, folds=3, draws=50,
                                     methods=[hiddenscore.ALL, hiddenscore.CELLS])
    found = table[(table["measure"] == "AUROC") & (table["minus"] == "")]
    assert (found["p"] > 0.02).all() and found["value"].between(0.3, 0.7).all()


def test_weights_are_learnt_and_used(made):
    weights = hiddenscore.learn_weights(made.nodes, made.edges)
    assert (weights >= 0).all() and weights.max() > 0
    plain, weighted = (rank(made.nodes, made.edges, count=50, weights=given).table
                       for given in (None, weights))
    assert len(weighted) and plain["score"].iloc[0] != weighted["score"].iloc[0]
    nothing = weights * 0
    nothing["both mark a code"] = 1.0
    alone = rank(made.nodes, made.edges, count=50, weights=nothing).table
    assert (alone["both mark a code"] > 0).all()


def test_what_cannot_be_hidden_is_refused(made):
    with pytest.raises(InputError, match="is no kind of edge"):
        hiddenedges.known_pairs(made.edges, "gene-likes-gene")
    with pytest.raises(InputError, match="cannot be hidden"):
        hiddenscore.hidden_edges(made.nodes, made.edges, "code-near-code")
    bare = made.edges[made.edges["status"] != "prior"]
    with pytest.raises(InputError, match="holds no prior of the kind tf-regulates-gene"):
        hiddenscore.hidden_edges(made.nodes, bare)
    with pytest.raises(InputError, match="two links for each fold"):
        hiddenscore.hidden_edges(made.nodes, made.edges, folds=1000)
    with pytest.raises(InputError, match="'magic' is no method"):
        hiddenscore.hidden_edges(made.nodes, made.edges, methods=["magic"])
