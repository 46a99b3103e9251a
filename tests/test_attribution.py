"""Which genes make a code: attributions add up, single out planted genes, and are put to the test.

The model has codes that depend on known genes alone, so the right answer is known without training.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import cellvq
from cellvq import InputError, attribution, faithfulness, margins, simulate, truth
from cellvq.attribution import BASELINES, METHODS
from cellvq.config import ModelConfig, QuantizerConfig
from cellvq.loader import Batch
from cellvq.margins import Question
from cellvq.model import CellVQ

QUICK = {"most": 24, "fractions": [0, 0.1, 0.3, 1], "steps": 8, "draws": 2}


@pytest.fixture(scope="module")
def coded():
    """Simulated cells with the model that coded them in a tree."""
    cells = simulate.simulate_cells(cells=240, genes=240, depth=100.0, seed=2)
    run = cellvq.pretrain(cells, steps=5, codes=(6, 12), quantizer="nested", progress=False)
    return cellvq.encode(cells, run.model), run.model


@pytest.fixture(scope="module")
def two_genes():
    """Cells of a model whose two codes lie along the first two genes of eight."""
    torch.manual_seed(0)
    genes = [f"gene {i}" for i in range(8)]
    config = ModelConfig(cell_width=2, quantizer=QuantizerConfig(codes=2))
    model = CellVQ(config, genes).eval()
    with torch.no_grad():
        model.cell_vector.components.zero_()
        model.cell_vector.components[[0, 1], [0, 1]] = 1.0
        model.cell_vector.gate.zero_()
        model.cell_vector.mean.fill_(1.0)
        model.quantizer.codebook.copy_(torch.tensor([[4.0, -2.0], [-2.0, 4.0]]))
        model.quantizer.started.fill_(True)
    rng = np.random.default_rng(0)
    counts = rng.poisson(5.0, (30, 8)).astype("float32")
    counts[:15, 0] += 60
    counts[15:, 1] += 60
    import anndata

    return cellvq.encode(anndata.AnnData(counts, var=pd.DataFrame(index=genes)), model), model


def first_batch(cells, model, most=8, level=-1):
    found = margins.read(cells, model, level)
    return next(found.blocks(found.draw(0, most=most), model))


def test_the_margin_says_who_keeps_the_code(coded):
    cells, model = coded
    for level in range(len(model.quantizer.sizes)):
        _, batch, asked = first_batch(cells, model, level=level)
        others = (asked.code + 1) % model.quantizer.sizes[level]
        with torch.no_grad():
            own = margins.margin(model, batch, asked)
            other = margins.margin(model, batch, asked._replace(code=others))
            against_all = margins.margin(model, batch, asked._replace(rival="all"))
        assert (own > 0).all() and (other < 0).all() and (against_all >= own).all()


def test_integrated_gradients_add_up_to_the_margin(coded):
    cells, model = coded
    _, batch, asked = first_batch(cells, model)
    usual = margins.average(model).expm1() * batch.depth[:, None] / 1e4
    with torch.no_grad():
        gained = margins.margin(model, batch, asked)
        gained -= margins.margin(model, batch._replace(counts=usual), asked)
    found = attribution.integrated_gradients(model, batch, asked, steps=64).sum(1)
    assert (found - gained).abs().mean() < 0.02 * gained.abs().mean()
    assert (attribution.integrated_gradients(model, batch, asked, steps=2).sum(1)
            - gained).abs().mean() > 0.02 * gained.abs().mean()  # the tolerance can be missed


def test_occlusion_is_the_deletion_of_one_gene(coded):
    cells, model = coded
    _, batch, asked = first_batch(cells, model, most=3)
    found = attribution.occlusion(model, batch, asked)
    gene = int(batch.genes[0, 2])
    counts = batch.counts.clone()
    counts[0, gene] = margins.average(model)[gene].expm1() * batch.depth[0] / 1e4
    genes = batch.genes.masked_fill(batch.genes == gene, len(model.panel) + 2)
    with torch.no_grad():
        left = margins.margin(model, batch._replace(counts=counts, genes=genes, padded=True), asked)
        whole = margins.margin(model, batch, asked)
    assert found[0, gene] == pytest.approx(float((whole - left)[0]), abs=1e-4)
    assert (found[batch.counts == 0] == 0).all()


def test_attention_is_that_of_torch(coded):
    cells, model = coded
    _, batch, _ = first_batch(cells, model)
    given = []
    hook = model.layers[-1].register_forward_pre_hook(lambda _, args: given.append(args))
    model.encode(batch)
    hook.remove()
    layer, (x, mask) = model.layers[-1], given[0]
    theirs = torch.nn.MultiheadAttention(x.shape[-1], layer.heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(layer.into_attention.weight)
        theirs.in_proj_bias.copy_(layer.into_attention.bias)
        normed = layer.attention_norm(x)
        expected = theirs(normed, normed, normed, key_padding_mask=torch.isinf(mask[:, 0, 0]))[1]
        assert torch.allclose(attribution.attention_weights(layer, x, mask), expected, atol=1e-6)
    last = attribution.attention(model, batch)
    assert last[0, batch.genes[0, 1]] == pytest.approx(float(expected[0, -2:, 1].mean()), abs=1e-6)
    for found in (last, attribution.attention(model, batch, rollout=True)):
        assert (found[batch.counts == 0] == 0).all() and (found[batch.counts > 0] > 0).all()
        assert (found.sum(1) <= 1).all()
    assert not any(layer._forward_pre_hooks for layer in model.layers)


@pytest.mark.parametrize("method", ["integrated gradients", "occlusion", "marker z"])
def test_the_genes_that_decide_come_first(two_genes, method):
    cells, model = two_genes
    table = attribution.attribute(cells, model, method)
    best = table[table["rank"] == 1].set_index("code")["gene"]
    assert best.to_dict() == {"C00": "gene 0", "C01": "gene 1"}
    idle = table[~table["gene"].isin(["gene 0", "gene 1"])]
    if method != "marker z":  # correlations do not move an attribution of the model
        assert idle["attribution"].abs().max() < 1e-5
    tested = faithfulness.measure(cells, model, [method], **QUICK).verdicts
    assert (tested["verdict"] == "passes").all() and (tested["low"] > 0).all()


def test_a_useless_attribution_fails(two_genes, monkeypatch):
    cells, model = two_genes
    worst = {"gene 0": -1.0, "gene 1": -1.0}
    scores = torch.tensor([worst.get(gene, 1.0) for gene in model.panel])
    monkeypatch.setattr(attribution, "attention", lambda model, batch, rollout: scores.expand(
        len(batch.depth), -1))
    tested = faithfulness.measure(cells, model, ["attention"], **QUICK).verdicts
    assert (tested["verdict"] == "fails").all() and (tested["advantage"] < 0).all()


def test_curves_begin_and_end_where_all_methods_meet(coded):
    cells, model = coded
    methods = ["integrated gradients", "rollout", "marker z"]
    found = faithfulness.measure(cells, model, methods, **QUICK)
    wide = found.curves.pivot_table("margin", ["direction", "fraction"], "method")
    ends = wide[np.isin(wide.index.get_level_values("fraction"), [0, 1])]
    assert list(wide.columns) == sorted([*methods, *BASELINES])
    assert ends.std(axis=1).max() < 1e-4
    assert wide.loc[("deletion", 0)].iloc[0] == pytest.approx(1)
    assert wide.loc[("deletion", 1)].iloc[0] == pytest.approx(wide.loc[("insertion", 0)].iloc[0])
    assert found.curves["kept"].between(0, 1).all() and (found.curves["cells"] == 24).all()
    assert found.areas.groupby(["method", "direction"]).size().eq(24).all()
    again = faithfulness.measure(cells, model, methods, **QUICK)
    pd.testing.assert_frame_equal(found.verdicts, again.verdicts)


def test_planted_genes_come_first_and_shuffled_genes_do_not(coded):
    cells, model = coded
    known = truth.truth(cells)["markers"]
    parents = cells.obs["cellvq_code"].astype(str).str.split(".").str[0]
    kinds = cells.obs["cell_type"].groupby(parents.to_numpy()).agg(lambda kind: kind.mode()[0])
    tables = {name: attribution.attribute(cells, model, name, level=0, rival="all", steps=8)
              for name in ("integrated gradients", "random")}
    ours, drawn = (faithfulness.agreement(table, known, kinds) for table in tables.values())
    assert set(ours["code"]) == set(parents) and (ours["fdr"] < 0.05).mean() > 0.8
    assert ours["auroc"].mean() > drawn["auroc"].mean() + 0.05  # drawn among what is expressed
    table = tables["integrated gradients"]
    shuffled = table.assign(attribution=np.random.default_rng(0).permutation(table["attribution"]))
    chance = faithfulness.agreement(shuffled, known, kinds)
    assert (chance["fdr"] < 0.05).mean() < 0.2 and abs(chance["auroc"].mean() - 0.5) < 0.15


def test_genes_taken_away_are_unknown_in_each_way(coded):
    cells, model = coded
    _, batch, asked = first_batch(cells, model)
    nothing = torch.zeros_like(batch.counts, dtype=torch.bool)
    some = nothing.clone()
    some[:, :100] = True
    with torch.no_grad():
        whole = margins.margin(model, batch, asked)
        for away in margins.AWAY:
            left = margins.without(model, batch, some, away)
            changed = left._replace(counts=torch.where(some, 50.0, left.counts))
            assert torch.allclose(
                margins.margin(model, margins.without(model, batch, nothing, away), asked), whole,
                atol=1e-3)
            assert ((left.genes >= 100) | (left.genes > len(model.panel))).all()
            if away != "average":  # whatever the counts of unknown genes are
                assert torch.allclose(margins.margin(model, left, asked),
                                      margins.margin(model, changed, asked), atol=1e-4)


def test_a_code_of_one_cell_and_genes_that_were_not_measured(coded):
    cells, model = coded
    some = cells[:, cells.var_names[:180]].copy()
    some = cellvq.encode(some[:60], model)
    first = some.obs["cellvq_code"].mode()[0]
    alone = np.flatnonzero(some.obs["cellvq_code"] == first)[:1]
    some = some[np.union1d(alone, np.flatnonzero(some.obs["cellvq_code"] != first))].copy()
    some.obs.loc[some.obs_names[-1], "cellvq_code"] = np.nan  # a cell without a code
    for method in METHODS:
        table = attribution.attribute(some, model, method, per_code=2, steps=2)
        assert set(table["gene"]) == set(cells.var_names[:180]) and table["cells"].max() <= 2
        assert np.isfinite(table["attribution"]).all()
        single = table["cells"] == 1
        assert table["standard_error"].isna().equals(single) and single.any()
        assert table.groupby("code")["rank"].max().eq(180).all()


def test_what_cannot_be_asked_is_refused_in_one_line(coded):
    cells, model = coded
    for change, about in [({"method": "shap"}, "use one of"), ({"away": "zero"}, "use one of"),
                          ({"rival": "none"}, "use one of"), ({"level": 5}, "level")]:
        with pytest.raises(InputError, match=about):
            attribution.attribute(cells, model, **change)
    foreign = CellVQ(dataclasses.replace(model.config), model.panel).eval()
    with pytest.raises(InputError, match="not encoded by this model; encode"):
        attribution.attribute(cells, foreign)
    with pytest.raises(InputError, match="ascend from 0 to 1"):
        faithfulness.measure(cells, model, fractions=[0.5, 1])
    with pytest.raises(InputError, match="at least two"):
        faithfulness.measure(cells[:1], model)
    table = pd.DataFrame({"code": ["C0"], "gene": ["A"], "attribution": [1.0]})
    none = faithfulness.agreement(table, pd.DataFrame({"cell_type": ["B"], "gene": ["Z"]}),
                                  pd.Series({"C0": "B"}))
    assert none.empty and "no code has a type" in none.attrs["reason"]


def test_a_model_in_the_released_shape_can_be_asked_too():
    config = ModelConfig(cell_vector="pooled", quantizer=QuantizerConfig("soft", codes=8))
    torch.manual_seed(0)
    model = CellVQ(config, [f"gene {i}" for i in range(20)]).eval()
    counts = torch.poisson(torch.full((6, 20), 3.0))
    genes = torch.where(counts > 0, torch.arange(20), 22).sort(1).values
    batch = Batch(counts, counts.sum(1), genes, torch.full((6,), -1))
    asked = Question(model.quantizer.distances(model.encode(batch).summary).argmin(1))
    found = attribution.scores("integrated gradients", model, batch, asked)
    assert torch.isfinite(found).all() and (found[counts == 0] == 0).all()
    assert torch.isfinite(attribution.scores("occlusion", model, batch, asked)).all()
