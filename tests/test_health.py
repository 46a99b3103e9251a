"""Codebook health and biology or batch: counts add up, nulls hold, planted effects are found."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn import metrics

import cellvq
from cellvq import InputError, biology, codes, evaluate, health, simulate, tasks
from cellvq.config import TrainingConfig
from cellvq.corpus import gather


@pytest.fixture(scope="module")
def cells():
    return simulate.simulate_cells(cells=500, seed=2)


@pytest.fixture(scope="module")
def model(cells):
    return cellvq.pretrain(cells, codes=(4, 12), quantizer="nested", steps=40, batch="batch",
                           progress=False).model


@pytest.fixture(scope="module")
def encoded(cells, model):
    return cellvq.encode(cells, model)


@pytest.fixture(scope="module")
def corpus(cells, model):
    split = TrainingConfig(validation_share=0.3)
    return gather(cells, model.panel, "batch", None, split, properties=["cell_type"])


@pytest.fixture(scope="module")
def found(model, corpus):
    return health.held_out(model, corpus)


def table_of(**columns):
    """Cells that hold nothing but columns of obs."""
    obs = pd.DataFrame(columns)
    return AnnData(obs=obs.set_axis(obs.index.astype(str)))


def test_usage_adds_up_at_every_level(encoded, model):
    usage, sizes = health.usage(encoded, model), health.code_sizes(encoded, model)
    assert usage["codes"].tolist() == [4, 12] and usage["n_cells"].tolist() == [500, 500]
    assert (usage["used"] + usage["dead"] == usage["codes"]).all()
    for level in (0, 1):
        own = codes.cut(encoded.obs["cellvq_code"], level + 1)
        row = usage.loc[level]
        assert row["perplexity"] == pytest.approx(evaluate.perplexity(own))
        assert row["largest_code"] == own.value_counts().idxmax()
        assert row["largest"] == own.value_counts().max()
        part = sizes[sizes["level"] == level].set_index("code")["cells"]
        assert part[part > 0].sort_index().to_dict() == own.value_counts().sort_index().to_dict()
    gaps = np.linalg.norm(encoded.obsm["X_cellvq"] - encoded.obsm["X_cellvq_code"], axis=1)
    assert usage.loc[1, "distance_50"] == pytest.approx(np.median(gaps), rel=1e-4)
    error = (gaps**2).sum() / np.var(encoded.obsm["X_cellvq"], axis=0).sum() / 500
    assert usage.loc[1, "quantisation_error"] == pytest.approx(error, rel=1e-3)
    assert usage.loc[0, "quantisation_error"] > usage.loc[1, "quantisation_error"]


def test_dead_codes_and_cells_without_a_code_are_counted_as_such(encoded, model):
    code = encoded.obs["cellvq_code"].value_counts().idxmax()
    some = encoded[encoded.obs["cellvq_code"] == code].copy()
    some.obs["cellvq_code"] = some.obs["cellvq_code"].astype(object)
    some.obs.iloc[:3, some.obs.columns.get_loc("cellvq_code")] = np.nan
    some.obsm["X_cellvq"][:3] = np.nan
    row = health.usage(some, model).loc[1]
    assert (row["used"], row["dead"], row["evenness"]) == (1, 11, 1.0)
    assert row["n_cells"] == some.n_obs - 3 and np.isfinite(row["distance_90"])
    sizes = health.code_sizes(some, model)
    assert (sizes["cells"] == 0).sum() == 3 + 11


def test_cells_of_another_model_are_refused(encoded, model):
    other = encoded.copy()
    other.uns["cellvq"] = {"weights_sha256": "another"}
    with pytest.raises(InputError, match="another model"):
        health.usage(other, model)
    del other.uns["cellvq"]
    other.obs["cellvq_code"] = "C99.1"
    with pytest.raises(InputError, match="'C99.1' is none of this model's"):
        health.code_sizes(other, model)


def test_sums_over_cells_and_over_genes_are_of_the_same_hidden_counts(found, corpus):
    assert found.by_cell.sum().to_numpy() == pytest.approx(found.by_gene.sum().to_numpy(), rel=1e-5)
    assert found.genes_hidden.sum() == found.cells_hiding.sum()
    assert found.genes_hidden.mean() == pytest.approx(len(corpus.panel) / 4, rel=0.05)
    assert list(found.by_cell) == ["cell vector", "4 codes", "12 codes", "mean profile"]
    assert (codes.cut(found.codes[1], 1) == found.codes[0]).all()
    assert (found.gains.mean() > 5).all()  # the model knows more than the mean profile


def test_reconstruction_by_code_averages_to_the_price(found):
    table = health.reconstruction_by_code(found)
    for level, part in table.groupby("level"):
        for column, name in (("gain_from_cell", 0), ("gain_from_code", 1 + level)):
            mean = (part[column] * part["cells"]).sum() / part["cells"].sum()
            assert mean == pytest.approx(found.gains.iloc[:, name].mean())
    one = table[table["cells"] == 1]
    assert one["low"].isna().all() and table["lost"].is_monotonic_decreasing


def test_reconstruction_by_gene_is_that_of_each_gene(found):
    table = health.reconstruction_by_gene(found).set_index("gene")
    assert table["lost"].is_monotonic_decreasing and (table["low"] <= table["high"]).all()
    total = (table["gain"] * table["cells"]).sum()
    gains = found.by_cell["12 codes"] - found.by_cell["mean profile"]
    assert total == pytest.approx(gains.sum(), rel=1e-4)


def test_price_is_against_the_vector_and_labels_that_mean_nothing_score_nothing(
        cells, model, corpus, found):
    price = health.price_of_discretising(model, corpus, label="cell_type", found=found, draws=50)
    values = price.pivot(index="representation", columns="metric", values="value")
    assert values.loc["mean profile", "likelihood"] == 0
    assert values.loc["12 codes", "macro_f1"] > 0.9 and values.loc["12 codes", "ari"] > 0.7
    assert (price.loc[price["representation"] == "cell vector", "price"] == 0).all()
    assert ((price["low"] <= price["value"]) & (price["value"] <= price["high"])).mean() > 0.8
    mixed = cells.copy()
    mixed.obs["cell_type"] = np.random.default_rng(0).permutation(cells.obs["cell_type"])
    split = TrainingConfig(validation_share=0.3)
    control = gather(mixed, model.panel, "batch", None, split, properties=["cell_type"])
    null = health.price_of_discretising(model, control, label="cell_type", found=found, draws=5)
    null = null[null["metric"] != "likelihood"]
    assert null.loc[null["metric"] == "macro_f1", "value"].max() < 0.4
    assert null.loc[null["metric"] == "ari", "value"].abs().max() < 0.1


def test_price_without_labels_says_so(model, corpus, found):
    price = health.price_of_discretising(model, corpus, found=found, draws=5)
    assert set(price["metric"]) == {"likelihood"} and price.attrs["reason"] == "no label is named"
    with pytest.raises(InputError, match="no property of the corpus"):
        health.price_of_discretising(model, corpus, label="typ", found=found)
    seeds = health.over_seeds([price, price.assign(value=price["value"] + 1)])
    assert (seeds["high"] > seeds["low"]).all() and (seeds["seeds"] == 2).all()
    assert seeds["value"].to_numpy() == pytest.approx(price["value"].to_numpy() + 0.5)


def test_macro_f1_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 5, 200), rng.integers(1, 7, 200)
    assert health._macro_f1(truth, said) == pytest.approx(
        metrics.f1_score(truth, said, average="macro", zero_division=0))


def test_rivals_have_as_many_groups_as_codes_in_use(encoded):
    some = encoded.copy()
    some.obs["flat"] = some.obs["cell_type"].astype(str)
    groups = biology.partitions(some, columns=["flat"])
    assert groups.drop(columns="flat").nunique().nunique() == 1
    assert groups["flat"].equals(some.obs["flat"]) and groups.index.equals(some.obs_names)
    assert groups.equals(biology.partitions(some, columns=["flat"]))


def test_agreement_is_scikit_learn_s_and_chance_is_not_significant():
    rng = np.random.default_rng(0)
    kinds = rng.choice(["B", "T", "NK"], 600)
    some = table_of(kind=kinds, right=kinds, chance=rng.choice(list("abcdefgh"), 600))
    some.obs.loc[some.obs_names[:30], "kind"] = None
    table = biology.biology_or_batch(some, ["right", "chance"], "kind")
    scores = table.pivot(index="method", columns="metric", values="value")
    labels, groups = some.obs["kind"][30:], some.obs["chance"][30:]
    assert scores.loc["chance", "label_nmi"] == pytest.approx(
        metrics.normalized_mutual_info_score(labels, groups))
    assert scores.loc["chance", "label_purity"] == pytest.approx(evaluate.purity(labels, groups))
    assert scores.loc["right"].tolist() == pytest.approx([1, 1])
    p = table.set_index(["method", "metric"])["p"]
    assert (p["right"] < 0.01).all() and (p["chance"] > 0.05).all()
    assert (table["n_cells"] == 570).all()


def test_a_batch_that_differs_in_cell_types_is_no_batch_effect():
    rng = np.random.default_rng(1)
    kinds = np.repeat(["B", "T"], 400)
    batch = np.where(rng.random(800) < np.where(kinds == "B", 0.8, 0.2), "one", "two")
    by_batch = np.char.add(kinds, batch)
    table = biology.biology_or_batch(table_of(kind=kinds, batch=batch, type=kinds, both=by_batch),
                                     ["type", "both"], "kind", "batch")
    p = table[table["metric"] == "batch_nmi"].set_index(["method", "shuffled"])["p"]
    assert p["type", biology.OVER_CELLS] < 0.01 and p["type", biology.WITHIN_LABELS] > 0.5
    assert p["both", biology.WITHIN_LABELS] < 0.01


def test_codes_of_one_donor_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    donors = rng.choice(["d1", "d2", "d3", "d4"], 800)
    code = np.where((donors == "d1") & (rng.random(800) < 0.08), "own",
                    rng.choice(["a", "b", "c"], 800)).astype(object)
    code[0], code[1] = "single", ""
    table = biology.donor_mix(table_of(code=code, donor=donors), "donor", column="code")
    table = table.set_index("code")
    assert table.index[0] == "own" and table.loc["own", "fdr"] < 0.01
    assert table.loc["own", "donor_perplexity"] == pytest.approx(1)
    assert (table.loc[["a", "b", "c", "single"], "fdr"] > 0.05).all()
    assert table.loc["single", ["cells", "donors", "expected", "p"]].tolist() == [1, 1, 1, 1]
    assert table["cells"].sum() == 799
    # Within a label that is the code itself, nothing can be uneven.
    kinds = biology.donor_mix(table_of(code=code, donor=donors, kind=code), "donor",
                              column="code", label="kind")
    assert (kinds["p"] == 1).all()


def test_what_cannot_be_judged_is_left_out_with_the_reason(encoded):
    some = encoded.copy()
    some.obs["one"], some.obs["none"] = "here", None
    table = biology.biology_or_batch(some, ["cellvq_code"], None, "one", "none", permutations=5)
    assert table.empty and list(table) == list(biology.SCORES)
    assert table.attrs["reason"] == ("no label is named; obs['one'] has a single value as batch; "
                                     "obs['none'] has no values as donor")
    mix = biology.donor_mix(some, "one")
    assert mix.empty and list(mix) == list(biology.DONOR_COLUMNS) and mix.attrs["reason"]
    with pytest.raises(InputError, match="no column 'typ'"):
        biology.biology_or_batch(some, ["cellvq_code"], "typ")
    del some.obs["cellvq_code"]
    with pytest.raises(InputError, match="encode the cells first"):
        biology.partitions(some)


def test_seeds_are_paired_and_less_batch_is_better():
    rows = {"k": 8, "shuffled": biology.OVER_CELLS, "null_mean": 0.1, "null_high": 0.2, "p": 0.01,
            "n_cells": 90}
    tables = [pd.DataFrame([
        {"method": name, "metric": metric, "value": value + step / 100, **rows}
        for name, value in (("CellVQ", 0.6), ("rival", 0.5))
        for metric in ("label_nmi", "batch_nmi")
    ]) for step in range(3)]
    table = biology.over_seeds(tables).set_index(["method", "metric"])
    assert table["difference"]["rival"].tolist() == pytest.approx([0.1, 0.1])
    assert table["verdict"]["rival"].tolist() == ["ahead", "behind"]
    assert table["verdict"]["CellVQ"].tolist() == ["", ""]
    tables[2] = tables[2][tables[2]["method"] == "CellVQ"]  # a rival may have fewer seeds
    fewer = biology.over_seeds(tables).set_index(["method", "metric"])
    assert fewer["seeds"].loc[["CellVQ", "rival"]].tolist() == [3, 3, 2, 2]
    assert fewer["difference"]["rival"].tolist() == pytest.approx([0.1, 0.1])
    one = biology.over_seeds(tables[:1])
    assert set(one["verdict"]) == {"", "not distinguishable"} and one["low"].isna().all()


def test_leiden_comes_near_the_number_asked_for(cells):
    pca = tasks.pca_embedding(cells, 10)
    for wanted in (3, 12):
        assert abs(len(set(biology.leiden_codes(pca, wanted))) - wanted) <= 1
