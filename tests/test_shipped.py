"""The model that comes with the package loads offline, knows blood, and can be made again."""

import numpy as np
import pytest
import torch

import cellvq
from cellvq import InputError, shipped, weights
from cellvq.datasets import load


def test_it_is_small_whole_and_the_one_of_the_model_card(clone):
    folder = weights.locate("small")
    assert (folder / "model.safetensors").stat().st_size < 25e6
    model, config = weights.read_model("small")
    assert config["batches"] == list(shipped.DATASETS)
    assert config["run"]["preset"] == shipped.PRESET
    assert len(model.panel) == 4000 and torch.isfinite(model.cell_vector.components).all()
    card = (clone / "book/pretraining/model-card.md").read_text(encoding="utf-8")
    assert config["weights_sha256"] in card


def test_a_folder_of_this_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    with pytest.raises(InputError, match="no model here"):
        cellvq.load("small")


def test_it_tells_blood_cells_of_an_unseen_study_apart():
    """Zero-shot on cells it never saw, against chance and against its own shuffled codes."""
    from cellvq import evaluate

    cells = cellvq.encode(load("pbmc68k_reduced"), "small")
    labels = cells.obs["cell_type"].to_numpy(object)
    nmi = evaluate.agreement(labels, cells.obs["cellvq_code"])["nmi"]
    shuffled = np.random.default_rng(0).permutation(cells.obs["cellvq_code"])
    assert nmi > evaluate.agreement(labels, shuffled)["nmi"] + 0.2
    probe = evaluate.probe(cells.obsm["X_cellvq"], labels)
    assert probe.macro_f1 > 0.5


def test_studies_are_left_out_by_name():
    with pytest.raises(InputError, match="no study is called 'kong'"):
        shipped.make("nowhere", without=["kong"])
