"""The dictionary of codes: one row with evidence for each, on disk whole or not at all."""

import json
import sys
from pathlib import Path

import bench_dictionary
import numpy as np
import pandas as pd
import pytest
from test_codes import encode_simply, real

from cellvq import (
    InputError,
    codes,
    datasets,
    decoded,
    dictionary,
    dictionaryfiles,
    evaluate,
    pseudobulk,
    simulate,
)
from cellvq.knowledge import Knowledge

LONG = ("markers", "gene_sets", "names")


def nested(cells):
    """Cells of two lineages with a code for each cell type."""
    kind = cells.obs["cell_type"].astype(str)
    root = np.where(kind.isin(["type_1", "type_2"]), "C0.", "C1.")
    cells.obs["cellvq_code"] = pd.Categorical(root + kind)
    return cells


def known(cells):
    """Knowledge made of planted markers: a gene set, a regulon and a cell type for each type."""
    planted = simulate.truth(cells)["markers"]
    sets = pd.DataFrame({"collection": "planted", "gene_set": "set of " + planted["cell_type"],
                         "gene": planted["gene"]})
    regulons = pd.DataFrame({"regulator": "factor of " + planted["cell_type"],
                             "gene": planted["gene"], "weight": 1.0})
    kinds = pd.DataFrame({"cell_type": "kind " + planted["cell_type"], "cell_type_id": "",
                          "gene": planted["gene"], "positive": True, "weight": 1.0,
                          "broader": "", "source": "planted"})
    ontology = pd.DataFrame(columns=["id", "name", "parents"], dtype=str)
    return Knowledge(sets, regulons, kinds, ontology, ["the ontology is not here"])


@pytest.fixture(scope="module")
def cells():
    return nested(encode_simply(simulate.simulate_cells(cells=700, seed=4), 6))


@pytest.fixture(scope="module")
def built(cells):
    return dictionary.build(cells, label="cell_type", donor="donor", batch="batch",
                            knowledge=known(cells))


def test_every_code_and_parent_has_a_row_with_its_evidence(cells, built):
    table = built.codes.set_index("address")
    assert list(built.codes) == list(dictionary.CODE_COLUMNS)
    assert table.index.is_unique and list(table.index) == sorted(table.index)
    assert table["is_code"].sum() == cells.obs["cellvq_code"].nunique()
    children = table[table["level"] == 1].groupby("parent")["cells"].sum()
    assert children.to_dict() == table[table["level"] == 0]["cells"].to_dict()
    own = table[table["is_code"]]
    assert (own["label_share"] == 1).all() and (own["label_share_null"] < 0.6).all()
    assert (own["label"] == own.index.str.split(".").str[1]).all()
    planted = simulate.truth(cells)["markers"].groupby("cell_type")["gene"].agg(set)
    for row in own.itertuples():
        assert set(row.markers.split(", ")) & planted[row.label], row
        assert row.gene_sets.startswith(f"set of {row.label}"), row
        assert row.regulons.startswith(f"factor of {row.label}"), row
    assert (own["donor_perplexity"] <= 6).all() and (own["donors"] == 6).all()
    assert own["donor_perplexity_null"].between(5.5, 6).all()
    assert (table["stable"] == "not measured").all()
    assert "the ontology is not here" in built.notes


def test_labels_never_name(cells, built):
    some = cells.copy()
    some.obs["cell_type"] = np.random.default_rng(0).permutation(some.obs["cell_type"])
    other = dictionary.build(some, label="cell_type", donor="donor", knowledge=known(cells))
    assert other.codes["name"].tolist() == built.codes["name"].tolist()
    pd.testing.assert_frame_equal(other.names, built.names)
    assert (other.codes["label_share"] < 0.6).all()


def test_stability_is_carried_along(cells):
    flags = pd.DataFrame({"code": ["C0", "C0.type_1"], "level": [0, 1], "stability": [0.9, 0.3],
                          "null": [0.2, 0.1], "stable": ["stable", "unstable"]})
    table = dictionary.build(cells, stability=flags).codes.set_index("address")
    assert table.loc["C0", ["stability", "stability_null", "stable"]].to_list() == [
        0.9, 0.2, "stable"]
    assert table.loc["C0.type_1", "stable"] == "unstable"
    assert table.loc["C1", "stable"] == "not measured"


def test_a_dictionary_is_written_whole(built, tmp_path):
    folder = dictionary.write(built, tmp_path / "new" / "words")
    assert {path.name for path in folder.iterdir()} == dictionaryfiles.FILES
    for name in ("codes", *LONG):
        pd.testing.assert_frame_equal(pd.read_parquet(folder / f"{name}.parquet"),
                                      getattr(built, name).reset_index(drop=True))
    assert len(pd.read_csv(folder / "codes.csv")) == len(built.codes)
    short = pd.read_csv(folder / "markers.csv")
    assert short["fdr"].max() < 0.05 and {-1.0, 1.0} == set(np.sign(short["score"]))
    readme = (folder / "README.md").read_text()
    for name in ("codes", *LONG):
        for column in getattr(built, name):
            assert f"| `{column}` |" in readme, column
    assert dictionary.in_words(built) in readme
    with pytest.raises(InputError, match="holds a dictionary already"):
        dictionary.write(built, folder)
    dictionary.write(built, folder, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["words"]


def test_nothing_of_others_is_overwritten(built, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else than a dictionary"):
        dictionary.write(built, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        dictionary.write(built, tmp_path / "thesis.txt")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"No space left.*; nothing changed"):
        dictionary.write(built, tmp_path / "words")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_text_from_data_stays_text(cells, tmp_path):
    some = cells.copy()
    names = {"type_1": "<script>alert(1)</script>", "type_2": '=HYPERLINK("x")'}
    some.obs["what"] = some.obs["cell_type"].astype(str).replace(names)
    folder = dictionary.write(dictionary.build(some, label="what"), tmp_path / "words")
    exact = pd.read_parquet(folder / "codes.parquet")["label"]
    assert {*names.values()} <= set(exact)
    short = pd.read_csv(folder / "codes.csv")["label"]
    assert names["type_1"] in set(short) and "'" + names["type_2"] in set(short)
    page = (folder / "index.html").read_text()
    assert names["type_1"] not in page and "&lt;script&gt;alert(1)" in page


def test_poor_cells_give_a_dictionary_with_reasons(tmp_path):
    cells = encode_simply(simulate.simulate_cells(cells=300, seed=1), 3)
    codes_of = cells.obs["cellvq_code"].astype(object)
    codes_of.iloc[:4] = np.nan
    codes_of.iloc[4] = "C98"  # of a single cell
    codes_of.iloc[5:9] = "C97"
    cells.obs["cellvq_code"] = codes_of
    cells.obs["donor"], cells.obs["batch"], cells.obs["cell_type"] = "only one", None, ""
    counts = cells.X.toarray()
    counts[:, 3], counts[:, 4] = 0, 1  # constant genes
    cells.X = counts
    before = cells.copy()
    found = dictionary.build(cells, label="cell_type", donor="donor", batch="batch")
    assert before.obs.equals(cells.obs) and (before.X != cells.X).sum() == 0
    table = found.codes.set_index("address")
    assert table.loc["C98", "cells"] == 1 and not table.loc["C98", "tested"]
    assert (table["donors"] == 1).all() and table["donor_perplexity"].isna().all()
    assert (table["label"] == "").all() and found.gene_sets.empty and found.names.empty
    said = "\n".join(found.notes)
    for words in ("4 cells without a code", "obs['cell_type'] is empty", "fewer than 3 donors",
                  "a single value as donor", "no values as batch",
                  "gene sets, regulons and names left out", "stability not measured",
                  "decoded expression left out"):
        assert words in said, words
    folder = dictionary.write(found, tmp_path / "words")
    assert "fewer than 3 donors" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match="no column 'donors'"):
        dictionary.build(cells, donor="donors")


def test_one_code_makes_a_dictionary_too(cells, tmp_path):
    some = cells.copy()
    some.obs["cellvq_code"] = "C0"
    found = dictionary.build(some, donor="donor", knowledge=known(cells))
    assert found.codes["address"].tolist() == ["C0"] and found.markers.empty
    assert any("markers left out" in note for note in found.notes)
    dictionary.write(found, tmp_path / "words")


def test_knowledge_of_other_genes_tells_nothing_and_says_why(cells):
    strange = known(cells)
    strange.gene_sets["gene"] = "Q" + strange.gene_sets["gene"]
    found = dictionary.build(cells, knowledge=strange)
    assert (found.codes["gene_sets"] == "").all() and (found.codes["regulons"] != "").any()
    assert any(note.startswith("gene sets left out") for note in found.notes)
    mouse = cells.copy()
    mouse.uns["organism"] = "mouse"
    assert any("mouse" in note for note in dictionary.build(mouse, knowledge=strange).notes)


def test_decoded_expression_is_that_of_the_cells():
    from cellvq import encode, pretrain

    cells = simulate.simulate_cells(cells=400, seed=3)
    run = pretrain(cells, codes=(4, 12), steps=40, batch="batch", progress=False,
                   quantizer="nested")
    encoded = encode(cells, run.model)
    found = dictionary.build(encoded, model=run.model)
    assert found.decoded.index.tolist() == sorted(found.codes["address"], key=lambda a: (
        a.count("."), a))
    values = evaluate.log_normalise(cells.X, np.asarray(cells.X.sum(1)).ravel())[
        :, cells.var_names.get_indexer(found.decoded.columns)]
    parents = codes.cut(encoded.obs["cellvq_code"], 1)
    for address, row in found.decoded.iterrows():
        inside = ((parents if "." not in address else encoded.obs["cellvq_code"]) == address)
        if inside.sum() >= 20:
            mean = np.asarray(values[inside.to_numpy()].mean(axis=0)).ravel()
            assert np.corrcoef(mean, row)[0, 1] > 0.9, address
    other = pretrain(cells, codes=12, steps=2, progress=False, seed=1).model
    with pytest.raises(InputError, match="encoded by another model"):
        dictionary.build(encoded, model=other)
    assert decoded.decoded_expression(run.model).shape == (4 + 12, len(run.model.panel))


def test_donors_decide_what_donors_can(cells):
    table = pseudobulk.donor_table(cells, "donor", levels="all")
    planted = simulate.truth(cells)["markers"]
    found = table[(table["donor_fdr"] < 0.05) & (table["donor_log2_fold_change"] > 0)]
    kind = found["code"].str.split(".").str[1]
    hits = set(zip(kind, found["gene"], strict=True))
    share = np.mean([pair in hits for pair in zip(planted["cell_type"], planted["gene"],
                                                  strict=True)])
    assert share > 0.7 and table["donors"].max() == 6
    few = cells[cells.obs["donor"].isin(cells.obs["donor"].unique()[:2])]
    empty = pseudobulk.donor_table(few, "donor")
    assert empty.empty and "fewer than 3 donors" in empty.attrs["reason"]
    assert list(empty) == list(pseudobulk.DONOR_COLUMNS)


def test_random_codes_hold_over_no_donors():
    cells = simulate.simulate_cells(cells=1500, seed=5)
    rng, rejected = np.random.default_rng(0), []
    for _ in range(4):
        # Small codes too: the log of few counts must not look lower than that of many.
        cells.obs["cellvq_code"] = rng.choice(["C0", "C1", "C2"], 1500, p=[0.1, 0.2, 0.7])
        table = pseudobulk.donor_table(cells, "donor").dropna()
        rejected.append((table["donor_p"] < 0.05).groupby(table["code"]).mean())
        assert (table["donor_fdr"] >= 0.05).all()
    mean = pd.concat(rejected, axis=1).mean(axis=1)
    assert (mean < 0.08).all() and mean["C2"] > 0.02


def test_moderated_variances_are_smyth_s():
    rng = np.random.default_rng(0)
    true = 4 * 7 / rng.chisquare(7, (20_000, 1))  # a prior of variance 4 worth 7 degrees
    seen = true * rng.chisquare([2, 5], (20_000, 2)) / [2, 5]
    common, worth = pseudobulk._common_variance(seen, np.array([2, 5]))
    assert common == pytest.approx([4, 4], rel=0.05) and worth == pytest.approx([7, 7], rel=0.15)


def test_the_benchmark_runs(monkeypatch, capsys):
    options = ["--cells", "3000", "--genes", "300", "--codes", "48"]
    monkeypatch.setattr(sys, "argv", ["bench_dictionary.py", *options])
    bench_dictionary.main()
    assert json.loads(capsys.readouterr().out)["times_faster"] > 2


@real
def test_donors_of_kang_agree_on_the_markers_of_b_cells():
    cells = encode_simply(datasets.load("kang_muscat_ctrl12k"), 12)
    table = codes.code_table(cells, "cell_type").set_index("annotation")
    row = table.loc[["B cells"]].iloc[0]
    found = pseudobulk.donor_table(cells, "donor")
    own = found[found["code"] == row["code"]].set_index("gene")
    assert own["donors"].iloc[0] >= 3
    assert (own.loc[["CD79A", "CD74"], "donor_fdr"] < 0.01).all()
    assert (own.loc[["CD79A", "CD74"], "donor_log2_fold_change"] > 1).all()
