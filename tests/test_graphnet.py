"""The graph module sees shown molecules only, finds what was planted, and keeps what it learnt."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_mutual_info_score

from cellvq import InputError, graphablation, graphnet, graphreading, graphtokens
from cellvq.graphattention import GraphConfig, gather, log_likelihood
from cellvq.graphtraining import likelihood, train
from cellvq.simulate import simulate_cells, truth

SMALL = GraphConfig(width=32, codes=12, prefixes=(), steps=60, batch_size=64)
NO_PAIRS = pd.DataFrame({"ligand": [], "receptor": []})


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(cells=500, cell_types=4, seed=1)


@pytest.fixture(scope="module")
def fitted(cells):
    return graphnet.fit(cells, annotations=("condition",), donor="donor", config=SMALL, genes=400,
                        pairs=truth(cells)["communication"])


def test_dealt_molecules_add_up_and_the_depth_is_that_of_the_shown(cells):
    dealt = graphtokens.deal(cells, 0.7, seed=3)
    assert abs(dealt.X + dealt.layers["held"] - cells.X).sum() == 0
    assert dealt.layers["held"].sum() / cells.X.sum() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(dealt.obs["total_counts"], np.asarray(dealt.X.sum(1)).ravel())
    assert not np.array_equal(dealt.X.toarray(), graphtokens.deal(cells, 0.7, seed=4).X.toarray())


def test_tokens_hold_nothing_of_held_out_molecules_or_of_held_out_cells(cells, fitted):
    words = fitted.trained.vocabulary
    other = fitted.cells.copy()
    other.layers["held"] = other.layers["held"] * 0
    made, same = (graphtokens.tokens(each, words) for each in (fitted.cells, other))
    for name in ("features", "gene", "value", "annotation", "neighbour", "pair", "weight"):
        np.testing.assert_array_equal(getattr(made, name), getattr(same, name))
    hold = fitted.held_out
    assert len(words.reference) == (~hold).sum()
    spoilt = fitted.cells.copy()
    spoilt.X = csr_matrix(spoilt.X.multiply(~hold[:, None]))
    learnt = graphtokens.learn(spoilt, train=~hold, annotations=("condition",), apart="donor",
                               genes=400, pairs=truth(cells)["communication"])
    for name in ("mean", "axes", "reference", "centres", "contrast"):
        np.testing.assert_allclose(getattr(learnt, name), getattr(words, name), atol=1e-4)


def test_neighbours_are_near_and_of_other_donors(cells, fitted):
    train_donors = fitted.cells.obs["donor"].astype(str).to_numpy()[~fitted.held_out]
    own = fitted.cells.obs["donor"].astype(str).to_numpy()
    near = fitted.tokens.neighbour
    assert (near >= 0).all() and (train_donors[near] != own[:, None]).all()
    types = cells.obs["cell_type"].astype(str).to_numpy()
    same = (types[~fitted.held_out][near] == types[:, None]).mean()
    assert same > 0.8  # one in four by chance


def test_no_cell_is_its_own_neighbour_without_donors(cells):
    dealt = graphtokens.deal(cells)
    words = graphtokens.learn(dealt, genes=200, pairs=NO_PAIRS)
    made = graphtokens.tokens(dealt, words)
    assert (made.neighbour != np.arange(cells.n_obs)[:, None]).all()
    assert made.pair.shape == (cells.n_obs, 0)


def test_gene_tokens_are_expressed_and_stand_out_most(fitted):
    made, words = fitted.tokens, fitted.trained.vocabulary
    counts = fitted.cells[:, list(words.genes)].X.toarray()
    for cell in range(20):
        genes = made.gene[cell][made.gene[cell] >= 0]
        assert (counts[cell, genes] > 0).all()
        assert (np.diff(made.value[cell][made.gene[cell] >= 0]) <= 0).all()


def test_signal_tokens_name_planted_pairs_of_the_cells_type(cells, fitted):
    planted = truth(cells)["communication"]
    made, words = fitted.tokens, fitted.trained.vocabulary
    types = cells.obs["cell_type"].astype(str).to_numpy()
    received = made.pair[:, : made.pair.shape[1] // 2][:, 0]
    has = received >= 0
    target = planted.set_index(["ligand", "receptor"])["target"].to_dict()
    right = [target[words.pairs[pair]] == kind for pair, kind
             in zip(received[has], types[has], strict=True)]
    assert np.mean(right) > 0.7


def test_a_seed_gives_one_module_and_another_seed_another(fitted):
    short = dataclasses.replace(SMALL, steps=6)
    runs = [train(fitted.tokens, dataclasses.replace(short, seed=seed)) for seed in (0, 0, 1)]
    rows = np.arange(100)
    first, again, other = (likelihood(run.network, fitted.tokens, rows) for run in runs)
    pd.testing.assert_frame_equal(first, again)
    assert not np.array_equal(first["vector"], other["vector"])


def test_codes_predict_held_out_molecules_and_find_planted_types(cells, fitted):
    rows = np.flatnonzero(fitted.held_out)
    network, made = fitted.trained.network, fitted.tokens
    nothing = torch.zeros(len(rows), made.features.shape[1])
    said = network.predict(nothing, torch.from_numpy(made.depth[rows]))
    mean_profile = log_likelihood(said, made.target[rows]).detach().numpy()
    assert fitted.scores["code"].mean() > mean_profile.mean() + 1
    assert fitted.scores["vector"].mean() > mean_profile.mean() + 1
    encoded = graphnet.encode(cells, fitted.trained)
    found = adjusted_mutual_info_score(
        cells.obs["cell_type"], encoded.obs["cellvq_graph_code"])
    assert found > 0.6


def test_a_cells_answer_depends_on_no_other_cell(cells, fitted):
    whole = graphnet.encode(cells, fitted.trained)
    order = np.random.default_rng(0).permutation(cells.n_obs)[:150]
    part = graphnet.encode(cells[order].copy(), fitted.trained)
    np.testing.assert_allclose(part.obsm["X_cellvq_graph"], whole.obsm["X_cellvq_graph"][order],
                               atol=1e-5)
    assert (part.obs["cellvq_graph_code"].astype(str).to_numpy()
            == whole.obs["cellvq_graph_code"].astype(str).to_numpy()[order]).all()


def test_a_saved_module_comes_back_exactly_and_damage_is_seen(cells, fitted, tmp_path):
    folder = graphnet.save(tmp_path / "module", fitted.trained)
    back = graphnet.load(folder)
    one, other = (graphnet.encode(cells, each) for each in (fitted.trained, back))
    np.testing.assert_array_equal(one.obsm["X_cellvq_graph"], other.obsm["X_cellvq_graph"])
    pd.testing.assert_frame_equal(back.history, fitted.trained.history)
    with pytest.raises(InputError, match="already"):
        graphnet.save(folder, fitted.trained)
    about = json.loads((folder / "graphnet.json").read_text())
    (folder / "graphnet.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(InputError, match="this version"):
        graphnet.load(folder)
    (folder / "graphnet.json").write_text(json.dumps(about))
    (folder / "graphnet.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="copy the folder again"):
        graphnet.load(folder)


def test_read_outs_are_means_of_attention_beside_all_cells(fitted):
    table = graphreading.read_outs(fitted.trained, fitted.tokens)
    assert list(table) == list(graphreading.READ_OUT_COLUMNS)
    assert set(table["kind"]) == set(graphtokens.KINDS)
    labels = table[table["kind"] == "annotations"]
    read, there = graphreading.attention(fitted.trained, fitted.tokens, np.arange(500))
    part = graphreading.parts(fitted.tokens)["annotations"]
    assert labels.groupby("token")["baseline"].first().sum() == pytest.approx(
        read[:, part].sum() / 500, rel=1e-4)
    np.testing.assert_allclose(read.sum(1), 1, atol=1e-5)
    assert (read[~there] == 0).all()


def test_an_annotation_that_tells_passes_and_a_shuffled_one_does_not(cells):
    """Cells of 25 molecules do not show their type: who tells it tells something."""
    poor = cells.copy()
    rng = np.random.default_rng(0)
    poor.obs["told"] = poor.obs["cell_type"].astype(str)
    poor.obs["shuffled"] = rng.permutation(poor.obs["told"])
    verdicts = {}
    for name in ("told", "shuffled"):
        run = graphnet.fit(poor, annotations=(name,), genes=200, pairs=NO_PAIRS, share=0.1,
                           config=dataclasses.replace(SMALL, steps=100, learning_rate=5e-3))
        test = graphreading.deletions(run.trained, run.tokens, np.flatnonzero(run.held_out))
        verdicts[name] = test.set_index("kind").loc["annotations", "verdict"]
    assert verdicts == {"told": graphreading.FAITHFUL, "shuffled": graphreading.IDLE}


def test_attention_finds_planted_genes_and_their_deletion_costs_most(cells):
    """The cell vector is noise here: all that the module knows of a cell are its gene tokens."""
    blind = cells.copy()
    blind.obsm["X_noise"] = np.random.default_rng(0).normal(size=(cells.n_obs, 8))
    run = graphnet.fit(
        blind, features="X_noise", pairs=NO_PAIRS, genes=300,
        config=dataclasses.replace(SMALL, steps=100, learning_rate=5e-3))
    test = graphreading.deletions(run.trained, run.tokens, np.flatnonzero(run.held_out))
    test = test.set_index("kind")
    assert test.loc["genes", "verdict"] == graphreading.FAITHFUL
    assert test.loc["genes", "to_rival"] > 0  # of genes that merely stand out
    assert test.loc["neighbours", "verdict"] != graphreading.FAITHFUL  # they are strangers
    tables = truth(cells)
    planted = pd.concat([tables[name]["gene"] for name in ("markers", "lineages", "programs")])
    rows = np.flatnonzero(run.held_out)
    genes = run.tokens.gene[rows]
    is_planted = np.isin(np.array(run.trained.vocabulary.genes)[genes], planted) & (genes >= 0)
    loss = {}
    for name, which in {"planted": is_planted, "others": ~is_planted & (genes >= 0)}.items():
        drawn = np.where(which, np.random.default_rng(0).random(genes.shape), 2)
        drop = (np.argsort(np.argsort(drawn, 1), 1) < 6) & which  # six of the kind in each cell
        keep = np.ones((len(rows), 1 + genes.shape[1] + 8), bool)
        keep[:, 1 : 1 + genes.shape[1]] = ~drop
        said = likelihood(run.trained.network, run.tokens, rows, torch.from_numpy(keep))
        loss[name] = run.scores["vector"].sum() - said["vector"].sum()
    assert loss["planted"] > max(2 * loss["others"], 0)


def test_an_ablation_compares_on_cells_that_were_held_out(cells):
    few = ("all tokens", "cell vector alone", "neighbours of strangers")
    table = graphablation.ablation(
        cells, "cell_type", donor="donor", seeds=(0, 1), genes=100, only=few,
        config=dataclasses.replace(SMALL, steps=5), pairs=NO_PAIRS)
    assert len(table) == 6 and (table["donors"] > 0).all()
    found = graphablation.summary(table).set_index("variant")
    assert (found.loc["all tokens", ["vector", "nmi"]] == 0).all()
    assert found["ami"].between(0.1, 1).all() and (found["seeds"] == 2).all()


def test_where_neighbours_tell_more_the_module_starts_from_them_and_never_from_strangers(fitted):
    config = dataclasses.replace(SMALL, steps=1)
    made = fitted.tokens
    near = train(made, config, held_out=fitted.held_out).network.gate
    strange = train(graphablation.strangers(made), config, held_out=fitted.held_out).network.gate
    assert (near > 0).all() and (strange == 0).all()


def test_nothing_is_there_without_tokens(fitted):
    bare = graphablation.without(fitted.tokens, *graphtokens.KINDS)
    _, keep = gather(bare, np.arange(5))
    assert keep.sum() == 5  # the cell itself
    strange = graphablation.strangers(fitted.tokens)
    assert (strange.neighbour != fitted.tokens.neighbour).any()


@pytest.mark.parametrize(("change", "complaint"), [
    ({"annotations": ("nowhere",)}, "no column 'nowhere'"),
    ({"donor": "nowhere"}, "no column 'nowhere'"),
    ({"features": "X_cellvq"}, "held out"),
    ({"features": "X_protein"}, "obsm has no"),
    ({"share": 1.5}, "shown share"),
    ({"pairs": pd.DataFrame({"a": ["b"]})}, "ligand and receptor"),
    ({"config": GraphConfig(codes=5000, prefixes=())}, "fewer codes"),
])
def test_bad_input_is_named(cells, change, complaint):
    with pytest.raises(InputError, match=complaint):
        graphnet.fit(cells, **{"pairs": NO_PAIRS, "genes": 50, **change})


def test_few_cells_other_genes_and_told_labels_are_refused(cells, fitted):
    with pytest.raises(InputError, match="training cells"):
        graphnet.fit(cells[:15].copy(), pairs=NO_PAIRS)
    strange = cells.copy()
    strange.var_names = [f"OTHER{n}" for n in range(cells.n_vars)]
    with pytest.raises(InputError, match="name genes alike"):
        graphnet.encode(strange, fitted.trained)
    cells = cells.copy()
    cells.obs["again"] = cells.obs["cell_type"].astype(str) + "!"
    for name in ("again", "cell_type"):
        with pytest.raises(InputError, match="by which codes are judged"):
            graphablation.check_label(cells, "cell_type", (name,))


def test_one_donor_means_cells_are_held_out(cells):
    one = cells.copy()
    one.obs["donor"] = "only"
    hold = graphablation.held_out(one, "donor")
    assert 0.1 < hold.mean() < 0.3 and graphablation.several(one, "donor") == ""
    parts = [graphablation.held_out(cells, "donor", seed) for seed in range(5)]
    assert np.sum(parts, 0).max() == 1
