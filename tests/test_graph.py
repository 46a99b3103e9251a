"""The knowledge graph: planted truth recovered, liana's numbers kept, every export readable."""

import os
import warnings
from pathlib import Path

import igraph
import numpy as np
import pandas as pd
import pytest

from cellvq import InputError, codes, datasets, graph, signals, simulate

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
    from cellvq import tasks

    cells = as_codes(simulate.simulate_cells(cells=800, seed=3), "cell_type")
    cells.obsm["X_cellvq"] = tasks.pca_embedding(cells, 15)
    return cells


@pytest.fixture(scope="module")
def talk(cells):
    return graph.communication(cells)


@pytest.fixture(scope="module")
def made(cells, talk):
    markers = codes.marker_table(cells)
    return graph.build(
        codes.code_table(cells, "cell_type", markers=markers), markers,
        annotations=codes.annotation_table(cells, "cell_type"),
        neighbours=codes.neighbour_table(cells, draws=200), signals=talk,
    )


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
    ours = graph.communication(here, permutations=50, seed=7, min_cells=20)
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
    table = graph.communication(null, permutations=2000)
    assert len(table) > 500 and (table["fdr"] < 0.05).sum() == 0
    assert 0.02 < (table["p"] < 0.05).mean() < 0.09
    assert abs(table["effect"].median()) < 0.1


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
    table = graph.communication(some, **options)
    assert table.empty and list(table.columns) == list(signals._COLUMNS)
    assert table.attrs["reason"]
    markers = codes.marker_table(some)
    made = graph.build(codes.code_table(some, markers=markers), markers, signals=table)
    assert any(table.attrs["reason"] in note for note in made.notes)
    with pytest.raises(InputError, match="no column 'leiden'"):
        graph.communication(some, "leiden")


def test_the_graph_holds_what_was_planted(cells, made):
    code_of = dict(zip(cells.obs["cell_type"].astype(str), cells.obs["cellvq_code"], strict=True))
    edges = made.edges
    marks = set(edges[edges["kind"] == "code-marks-gene"][["source", "target"]]
                .itertuples(index=False, name=None))
    planted = [(f"code:{code_of[row.cell_type]}", f"gene:{row.gene}")
               for row in simulate.truth(cells)["markers"].itertuples()]
    assert np.mean([edge in marks for edge in planted]) > 0.9
    named = edges[edges["kind"] == "code-is-annotation"][["source", "target"]]
    assert set(named.itertuples(index=False, name=None)) == {
        (f"code:{code}", f"annotation:{name}") for name, code in code_of.items()
    }
    spoken = edges[edges["kind"] == "code-talks-to-code"]["name"]
    for row in simulate.truth(cells)["communication"].itertuples():
        assert f"{row.ligand} → {row.receptor}" in set(spoken)


def test_every_edge_carries_its_evidence(made):
    assert list(made.edges.columns) == list(graph.EDGE_COLUMNS)
    assert list(made.nodes.columns) == list(graph.NODE_COLUMNS)
    edges = made.edges
    assert (edges["fdr"] < 0.05).all() and (edges["fdr"] >= edges["p"] - 1e-12).all()
    assert (edges["effect"] > 0).all() and (edges["n_cells"] > 0).all()
    assert (edges["null"].str.len() > 0).all() and edges["evidence"].str.contains(r"\d").all()
    assert (edges["directed"] == (edges["kind"] == "code-talks-to-code")).all()
    assert made.nodes["id"].is_unique
    assert set(edges["source"]) | set(edges["target"]) <= set(made.nodes["id"])


def test_fdr_is_a_limit_and_missing_kinds_are_named(cells, made):
    markers = codes.marker_table(cells)
    table = codes.code_table(cells, "cell_type", markers=markers)
    strict = graph.build(table, markers, fdr=1e-100)
    assert 0 < len(strict.edges) < len(made.edges) and (strict.edges["fdr"] < 1e-100).all()
    assert any(note.startswith("code-talks-to-code: not tested") for note in strict.notes)
    none = graph.build(table, markers, fdr=0.0)
    assert none.edges.empty and len(none.nodes) == 6 and len(none.notes) == 4
    assert len(none.communities()) == 6 and none.layout()["x"].notna().all()


def test_same_names_of_different_kinds_stay_apart(cells):
    some = cells.copy()
    best = codes.top_markers(codes.marker_table(some), 1).iloc[0]
    kind = some.obs["cell_type"].astype(str)
    some.obs["cell_type"] = kind.mask(some.obs["cellvq_code"] == best["code"], best["gene"])
    markers = codes.marker_table(some)
    made = graph.build(codes.code_table(some, "cell_type", markers=markers), markers,
                       annotations=codes.annotation_table(some, "cell_type"))
    assert {f"gene:{best['gene']}", f"annotation:{best['gene']}"} <= set(made.nodes["id"])
    with pytest.raises(InputError, match="several nodes"):
        made.neighbours(best["gene"])
    assert (made.neighbours(f"gene:{best['gene']}")["kind"] == "code-marks-gene").all()


def test_neighbours_answer_with_evidence(made):
    table = made.neighbours("C00")
    mine = (made.edges["source"] == "code:C00") | (made.edges["target"] == "code:C00")
    assert len(table) == mine.sum() and table["fdr"].is_monotonic_increasing
    talks = table[table["kind"] == "code-talks-to-code"]
    assert set(talks["direction"]) <= {"to", "from"} and len(talks)
    assert (table[table["kind"] != "code-talks-to-code"]["direction"] == "").all()
    gene = table[table["kind"] == "code-marks-gene"]["neighbour"].iloc[0].removeprefix("gene:")
    assert "code:C00" in set(made.neighbours(gene)["neighbour"])
    with pytest.raises(InputError, match="near to it: C0"):
        made.neighbours("C0O")


def test_a_graph_survives_its_files(made, tmp_path):
    written = made.write(tmp_path / "deep" / "graph")
    assert {path.name for path in written} >= {
        "nodes.parquet", "edges.parquet", "nodes.csv", "edges.csv", "graph.graphml",
    }
    back = graph.read(tmp_path / "deep" / "graph")
    pd.testing.assert_frame_equal(back.nodes, made.nodes)
    pd.testing.assert_frame_equal(back.edges, made.edges)
    csv = pd.read_csv(tmp_path / "deep" / "graph" / "edges.csv", keep_default_na=False)
    assert csv["name"].tolist() == made.edges["name"].tolist()
    foreign = igraph.Graph.Read_GraphML(str(tmp_path / "deep" / "graph" / "graph.graphml"))
    assert (foreign.vcount(), foreign.ecount()) == (len(made.nodes), len(made.edges))
    assert foreign.vs["name"] == made.nodes["id"].tolist()
    assert foreign.es["fdr"] == pytest.approx(made.edges["fdr"].tolist())
    with pytest.raises(InputError, match="holds no graph"):
        graph.read(tmp_path)


def test_layout_and_communities_repeat(made):
    first, again = made.layout(1), made.layout(1)
    pd.testing.assert_frame_equal(first, again)
    assert not first[["x", "y"]].equals(made.layout(2)[["x", "y"]])
    assert first[["x", "y"]].abs().max().max() == pytest.approx(1)
    groups = made.communities(0)
    assert groups.equals(made.communities(0)) and groups.nunique() > 1
    # A code stands with most of the genes that it alone is marked by.
    marks = made.edges[made.edges["kind"] == "code-marks-gene"]
    own = marks[~marks["target"].duplicated(keep=False)]
    together = groups[own["source"]].to_numpy() == groups[own["target"]].to_numpy()
    assert together.mean() > 0.9


def test_the_picture_keeps_the_strongest(made):
    small = made.strongest(per_code=2, talks=3)
    kinds = small.edges["kind"].value_counts()
    assert kinds["code-marks-gene"] <= 12 and kinds["code-talks-to-code"] == 3
    assert (small.nodes["kind"] == "code").sum() == 6
    talks = made.edges[made.edges["kind"] == "code-talks-to-code"]
    kept = small.edges[small.edges["kind"] == "code-talks-to-code"]
    assert kept["effect"].max() == talks["effect"].max()
    many = made.strongest(talks=1000).edges.query("kind == 'code-talks-to-code'")["name"]
    assert many.value_counts().max() <= 3 and set(many) == set(talks["name"])


@real
def test_interferon_brings_chemokine_signals_in_kang():
    cells = datasets.load("kang_ifnb_sub")
    cells.obs["state"] = (
        cells.obs["cell_type"].astype(str) + "/" + cells.obs["condition"].astype(str)
    )
    table = graph.communication(cells, "state", permutations=500, min_cells=10)
    found = table[(table["fdr"] < 0.05) & table["source"].str.startswith("CD14 Mono/")]
    cxcl10 = found[found["ligand"] == "CXCL10"]
    assert len(cxcl10) and set(cxcl10["source"]) == {"CD14 Mono/stim"}
