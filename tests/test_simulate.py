"""The simulator plants what its truth tables say, and says all that it planted."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import cross_val_predict

from cellvq import InputError, simulate


@pytest.fixture(scope="module")
def cells():
    return simulate.simulate_cells()


@pytest.fixture(scope="module")
def mean(cells):
    """Mean counts of each cell type in the control, [cell types, genes]."""
    control = cells[cells.obs["condition"] == "control"]
    table = pd.DataFrame(control.X.toarray(), columns=control.var_names)
    return table.groupby(control.obs["cell_type"].to_numpy()).mean()


def log_normalised(cells):
    counts = cells.X.toarray()
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def test_counts_look_like_counts(cells):
    assert scipy.sparse.isspmatrix_csr(cells.X) and cells.X.dtype == np.float32
    assert (cells.X.data == np.rint(cells.X.data)).all() and cells.X.data.min() >= 1
    assert 0.7 < 1 - cells.X.nnz / np.prod(cells.shape) < 0.9
    depth = np.asarray(cells.X.sum(axis=1)).ravel()
    assert 200 < np.median(depth) < 500 and depth.max() < 30 * np.median(depth)
    house = cells[:, list(simulate.HOUSEKEEPING)].X.toarray()
    assert (house.var(axis=0) > 1.2 * house.mean(axis=0)).all()  # wider than Poisson
    assert cells.var_names.is_unique and cells.obs_names.is_unique


def test_seed_decides_everything(cells):
    again, other = simulate.simulate_cells(), simulate.simulate_cells(seed=1)
    assert (again.X != cells.X).nnz == 0 and again.obs.equals(cells.obs)
    for name, table in simulate.truth(cells).items():
        assert table.equals(simulate.truth(again)[name])
    assert (other.X != cells.X).nnz > 0.1 * cells.X.nnz
    assert not simulate.truth(other)["markers"].equals(simulate.truth(cells)["markers"])


def test_donors_are_nested_in_conditions_and_batches_hold_both(cells):
    donor = cells.obs.groupby("donor", observed=True)
    assert (donor["condition"].nunique() == 1).all() and (donor["batch"].nunique() == 1).all()
    assert (pd.crosstab(cells.obs["batch"], cells.obs["condition"]) > 100).all(axis=None)
    assert (cells.obs["cell_type"].value_counts() > 50).all()


def test_types_are_found_by_a_probe_on_pca_and_lost_when_shuffled(cells):
    values = log_normalised(cells)
    values -= values.mean(axis=0)
    left, power, _ = np.linalg.svd(values, full_matrices=False)
    components, types = left[:, :20] * power[:20], cells.obs["cell_type"].to_numpy()
    probe = LogisticRegression(max_iter=2000)
    found = cross_val_predict(probe, components, types, cv=3)
    assert f1_score(types, found, average="macro") > 0.95
    shuffled = np.random.default_rng(0).permutation(types)
    lost = cross_val_predict(probe, components, shuffled, cv=3)
    assert f1_score(shuffled, lost, average="macro") < 0.3


def test_markers_are_higher_in_their_type_alone(cells, mean):
    markers = simulate.truth(cells)["markers"]
    assert markers.groupby("cell_type").size().eq(10).all() and markers["gene"].is_unique
    for cell_type, genes in markers.groupby("cell_type")["gene"]:
        others = mean.loc[mean.index != cell_type, list(genes)].max()
        assert (mean.loc[cell_type, list(genes)] > 2 * others).all()


def test_lineage_genes_are_shared_by_sister_types(cells, mean):
    lineages = simulate.truth(cells)["lineages"]
    for genes, rows in lineages.groupby("gene"):
        inside = mean.index.isin(rows["cell_type"])
        assert inside.sum() == 2
        assert mean.loc[inside, genes].min() > 2 * mean.loc[~inside, genes].max()


def test_genes_of_a_program_rise_with_its_activity_in_every_type(cells):
    values = pd.DataFrame(log_normalised(cells), columns=cells.var_names)
    for number, (_, genes) in enumerate(simulate.truth(cells)["programs"].groupby("program")):
        activity = cells.obsm["program_activity"][:, number]
        score = values[list(genes["gene"])].mean(axis=1).to_numpy()
        for cell_type in cells.obs["cell_type"].cat.categories:
            chosen = (cells.obs["cell_type"] == cell_type).to_numpy()
            assert np.corrcoef(activity[chosen], score[chosen])[0, 1] > 0.6


def test_ligands_are_in_their_source_and_receptors_in_their_target(cells, mean):
    talk = simulate.truth(cells)["communication"]
    assert len(talk) == 6 and (talk["source"] != talk["target"]).all()
    assert not talk.duplicated(["source", "target"]).any()
    for row in talk.itertuples():
        for gene, home in ((row.ligand, row.source), (row.receptor, row.target)):
            assert mean.loc[home, gene] > 10 * mean.drop(index=home)[gene].max()


def test_planted_pairs_stand_in_lianas_resource_and_bystanders_bind_none_of_them():
    liana = pytest.importorskip("liana")
    resource = liana.rs.select_resource("consensus")
    pairs = set(zip(resource["ligand"], resource["receptor"], strict=True))
    assert set(simulate.PAIRS) <= pairs
    planted = {gene for pair in simulate.PAIRS for gene in pair}
    ours = planted | set(simulate.BYSTANDERS + simulate.HOUSEKEEPING + simulate.RESPONSE)
    for ligand, receptor in pairs - set(simulate.PAIRS):
        parts = {*ligand.split("_"), *receptor.split("_")}
        assert not (parts <= ours and parts & planted), (ligand, receptor)


def test_the_perturbation_raises_its_genes_by_the_fold_written_down(cells):
    table = simulate.truth(cells)["perturbation"]
    assert set(table["condition"]) == {"stimulated"} and (table["log2_fold_change"] > 1).all()
    everywhere = table.groupby("gene")["cell_type"].nunique()
    assert (everywhere == 6).sum() == 8 and (everywhere == 1).sum() == 4
    stimulated = (cells.obs["condition"] == "stimulated").to_numpy()
    rates = cells.X.toarray() / cells.X.sum(axis=1).A1[:, None]
    measured = []
    for row in table.itertuples():
        of_type = (cells.obs["cell_type"] == row.cell_type).to_numpy()
        values = rates[:, cells.var_names.get_loc(row.gene)]
        after, before = values[of_type & stimulated].mean(), values[of_type & ~stimulated].mean()
        measured.append(np.log2((after + 1e-5) / (before + 1e-5)))
    assert abs(np.mean(measured - table["log2_fold_change"])) < 0.3
    assert np.corrcoef(measured, table["log2_fold_change"])[0, 1] > 0.4
    # a gene that answers in one type stays as it was in the others
    private = table[table["gene"].map(everywhere) == 1]
    others = (cells.obs["cell_type"] != private["cell_type"].iloc[0]).to_numpy()
    columns = cells.var_names.get_indexer(private["gene"])
    ratio = (rates[others & stimulated][:, columns].mean(axis=0)
             / rates[others & ~stimulated][:, columns].mean(axis=0))
    assert (np.abs(np.log2(ratio)) < 1).all()


def test_batches_shift_genes_and_the_shift_can_be_turned_off():
    def distance(effect):
        cells = simulate.simulate_cells(batch_effect=effect, donor_effect=0.0)
        first = (cells.obs["batch"] == "batch_1").to_numpy()
        values = log_normalised(cells)
        return np.abs(values[first].mean(axis=0) - values[~first].mean(axis=0)).mean()

    assert distance(0.5) > 2 * distance(0.0)


def test_the_truth_survives_a_file(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    tables = simulate.truth(back)
    assert list(tables) == list(simulate.TRUTH_COLUMNS)
    for name, table in simulate.truth(cells).items():
        assert tuple(table.columns) == simulate.TRUTH_COLUMNS[name]
        pd.testing.assert_frame_equal(
            tables[name].reset_index(drop=True), table, check_dtype=False
        )
    assert simulate.truth(anndata.AnnData(np.ones((2, 2), dtype=np.float32))) is None


def test_one_condition_has_an_empty_perturbation_that_survives_too(tmp_path):
    cells = simulate.simulate_cells(cells=50, conditions=("control",))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    table = simulate.truth(anndata.read_h5ad(tmp_path / "cells.h5ad"))["perturbation"]
    assert table.empty and tuple(table.columns) == simulate.TRUTH_COLUMNS["perturbation"]


def test_blocks_do_not_show(monkeypatch):
    monkeypatch.setattr(simulate, "_BLOCK", 100)
    cells = simulate.simulate_cells(cells=450, cell_types=5, donors=9, batches=3)
    assert cells.shape == (450, 400) and cells.obs["lineage"].nunique() == 3
    assert (np.diff(cells.X.indptr) > 20).all()


@pytest.mark.parametrize(("sizes", "words"), [
    ({"cells": 0}, "at least one cell"),
    ({"cell_types": 1}, "raise cell_types"),
    ({"donors": 3}, "at least 4 donors"),
    ({"pairs": 13}, "between 0 and 12"),
    ({"genes": 100}, "raise genes"),
])
def test_sizes_that_do_not_fit_give_one_line(sizes, words):
    with pytest.raises(InputError, match=words) as caught:
        simulate.simulate_cells(**sizes)
    assert "\n" not in str(caught.value)
