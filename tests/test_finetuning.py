"""A trained model learns labels of new cells, and keeps what it need not change."""

import numpy as np
import pandas as pd
import pytest
import torch

import cellvq
from cellvq import InputError, adapters, continuing
from cellvq.config import TrainingConfig
from cellvq.corpus import gather
from cellvq.simulate import simulate_cells
from cellvq.truth import truth


@pytest.fixture(scope="module")
def cells():
    cells = simulate_cells(cells=500, genes=220, cell_types=4, seed=2)
    some = np.random.default_rng(0).random(500) < 0.3
    cells.obs["known_type"] = cells.obs["cell_type"].astype(object).where(~some)  # 30 % missing
    return cells


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    cellvq.pretrain(cells, steps=30, codes=16, batch="batch", output=folder, progress=False)
    return folder


@pytest.mark.parametrize("parts", ["all", "adapters", "head"])
def test_labels_are_learnt_from_some_and_predicted_for_all(cells, folder, parts):
    before = cellvq.load(folder)
    tuned = cellvq.finetune(
        cells, folder, label="known_type", parts=parts, batch="batch", donor="donor", steps=40,
        progress=False,
    )
    assert tuned.history["accuracy_known_type"].iloc[-1] > 0.9
    encoded = cellvq.encode(cells, tuned.model)
    hidden = cells.obs["known_type"].isna()
    right = encoded.obs["cellvq_predicted_known_type"].astype(str) == cells.obs["cell_type"]
    assert right[hidden].mean() > 0.9
    changed = {name.split(".")[0] for name, value in before.state_dict().items()
               if not torch.equal(value, tuned.model.state_dict()[name])}
    if parts == "head":
        assert not changed
    else:
        assert "layers" in changed
        assert ("gene_embedding" in changed) == (parts == "all")
    assert set(before.state_dict()) < set(tuned.model.state_dict())  # adapters are merged


def test_merged_adapters_say_what_they_said_before(folder, cells):
    model = cellvq.load(folder)
    adapters.adapt(model)
    for name, parameter in model.named_parameters():
        if name.endswith("0.out"):
            torch.nn.init.normal_(parameter, std=0.1)
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {"layers", "cell_vector", "decoder"}
    before = cellvq.encode(cells, model).obsm["X_cellvq"]
    adapters.merge(model)
    assert np.allclose(before, cellvq.encode(cells, model).obsm["X_cellvq"], atol=1e-5)
    assert not np.allclose(before, cellvq.encode(cells, folder).obsm["X_cellvq"], atol=1e-3)


def test_a_shuffled_label_is_not_learnt(cells, folder):
    shuffled = cells.copy()
    labels = np.random.default_rng(1).permutation(cells.obs["cell_type"].astype(str).to_numpy())
    shuffled.obs["cell_type"] = labels
    tuned = cellvq.finetune(shuffled, folder, label="cell_type", parts="head", donor="donor",
                            progress=False)
    assert tuned.history["accuracy_cell_type"].iloc[-1] < 0.5


def test_pretraining_goes_on_from_a_model(cells, folder):
    options = {"steps": 2, "batch": "batch", "progress": False}
    kept = {"init": folder, "keep_codes": True}
    more = cellvq.pretrain(cells[:, :200].copy(), **kept, **options)
    known = cellvq.load(folder)
    assert more.model.panel == known.panel  # genes that are absent are unknown
    assert torch.equal(more.model.quantizer.codebook, known.quantizer.codebook)
    more = cellvq.pretrain(cells, **kept, **options)
    fresh = cellvq.pretrain(cells, codes=16, **options)
    assert more.history.validation_cell.iloc[0] < fresh.history.validation_cell.iloc[0] - 1


@pytest.mark.parametrize(("options", "message"), [
    ({"label": "tissue"}, "no column 'tissue'"),
    ({"label": "one"}, "fewer than two labels"),
    ({"label": "cell_type", "parts": "some"}, "use one of all, adapters, head"),
    ({"label": "cell_type", "changes": {"model.width": 8}}, "only numbers of the training"),
])
def test_wrong_settings_are_one_clear_line(cells, folder, options, message):
    one = cells.copy()
    one.obs["one"] = "same"
    with pytest.raises(InputError, match=message):
        cellvq.finetune(one, folder, progress=False, **options)


def test_a_model_is_fitted_to_other_cells(cells, folder):
    source, other = cellvq.load(folder), cells[:, 150:].copy()
    other.var_names = [f"new{n}" if n < 60 else name for n, name in enumerate(other.var_names)]
    still = {"training.learning_rate": 0.0}
    made = cellvq.pretrain(other, init=folder, codes=24, steps=1, changes=still, progress=False)
    assert set(made.model.panel) <= set(other.var_names) and "new3" in made.model.panel
    assert made.model.config.quantizer.codes == 24
    shared = [gene for gene in made.model.panel if gene in set(source.panel)]
    rows = [[model.panel.index(gene) for gene in shared] for model in (made.model, source)]
    tables = [model.gene_embedding.weight[row] for model, row in
              zip((made.model, source), rows, strict=True)]
    assert torch.equal(*tables)
    view = "cell_vector.view.weight"
    assert torch.equal(made.model.state_dict()[view], source.state_dict()[view])
    # Its vectors are those of a fresh warm start, not of the old panel's.
    fresh = cellvq.pretrain(other, codes=24, steps=1, changes=still, progress=False).model
    assert torch.allclose(made.model.cell_vector.components, fresh.cell_vector.components)


def test_unknown_genes_lie_among_their_like(cells, folder):
    """A gene that the model never saw is placed among the markers of the type that it marks."""
    markers = truth(cells)["markers"]
    gene, kind = markers.loc[0, ["gene", "cell_type"]]
    other = cells.copy()
    other.var_names = ["unknown" if name == gene else name for name in other.var_names]
    still = {"training.learning_rate": 0.0}
    model = cellvq.pretrain(other, init=folder, steps=1, changes=still, progress=False,
                            panel=list(other.var_names)).model  # a panel and path of its own
    table = torch.nn.functional.normalize(model.gene_embedding.weight[: len(model.panel)], dim=1)
    near = dict(zip(model.panel, (table @ table[model.panel.index("unknown")]).tolist(),
                    strict=True))
    markers = markers[markers["gene"].isin(near) & (markers["gene"] != gene)]
    likeness = markers["gene"].map(near).groupby(markers["cell_type"]).mean()
    assert likeness.idxmax() == kind
    assert likeness[kind] > likeness.drop(kind).max() + 0.1


def test_init_keeps_the_size_of_the_model(cells, folder):
    with pytest.raises(InputError, match="quantizer.codes cannot change here.*without keep_codes"):
        cellvq.pretrain(cells, init=folder, keep_codes=True, codes=8, progress=False)
    with pytest.raises(InputError, match="model.width cannot change here"):
        cellvq.pretrain(cells, init=folder, changes={"model.width": 8}, progress=False)
    with pytest.raises(InputError, match="keep_codes needs init"):
        cellvq.pretrain(cells, keep_codes=True, progress=False)
    other = cells.copy()
    other.var_names = [f"zebra{i}" for i in range(other.n_vars)]
    with pytest.raises(InputError, match="zebra"):
        cellvq.pretrain(other, init=folder, progress=False)


def test_cells_decide_whether_the_linear_path_is_kept(tmp_path):
    """A few more cells of the same kinds keep it; other kinds, or many more cells, do not."""
    many = simulate_cells(cells=1500, genes=200, cell_types=5, seed=2)
    order = np.random.default_rng(0).permutation(many.n_obs)
    few, most = many[order[:60]].copy(), many[order[60:]].copy()
    still = {"training.learning_rate": 0.0}
    source = tmp_path / "known"
    known = cellvq.pretrain(most, codes=8, steps=1, changes=still, progress=False,
                            output=source).model
    other = most.copy()  # the same cells, but every gene stands for another
    other.var_names = np.random.default_rng(1).permutation(most.var_names)
    for cells, keeps in ((few, True), (other, False)):
        corpora = (gather(cells, panel, None, None, TrainingConfig())
                   for panel in (200, known.panel))
        assert continuing.keeps_path(known, *corpora) == keeps
        run = cellvq.pretrain(cells, init=source, steps=1, changes=still, progress=False)
        assert (run.model.panel == known.panel) == keeps  # and pretraining does as they decide
        if keeps:
            paths = [model.cell_vector.components for model in (run.model, known)]
            assert torch.equal(*paths)


def test_a_kept_path_leaves_new_batches_out():
    """Batches that a trained model has not seen lie together once their shifts are left out."""
    cells = simulate_cells(cells=900, genes=200, cell_types=4, seed=3)
    still = {"training.learning_rate": 0.0}
    model = cellvq.pretrain(cells, codes=8, steps=1, changes=still, progress=False).model

    def share_of_batch():
        values = pd.DataFrame(cellvq.encode(cells, model).obsm["X_cellvq"], index=cells.obs_names)
        kinds, parts = cells.obs["cell_type"], [cells.obs["cell_type"], cells.obs["batch"]]
        between = values.groupby(parts, observed=True).transform("mean").sub(
            values.groupby(kinds, observed=True).transform("mean"))
        return between.to_numpy().var() / values.to_numpy().var()

    before = share_of_batch()
    corpus = gather(cells, model.panel, "batch", None, TrainingConfig())
    continuing.leave_out_batches(model, corpus)
    assert share_of_batch() < 0.5 * before
