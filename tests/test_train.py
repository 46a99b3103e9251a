"""Pretraining learns, is reproducible, resumes bit for bit, and loses nothing."""

import errno
import json
import subprocess
import sys
import time

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LinearRegression

import cellvq
from cellvq import InputError, corpus, history, objective, tasks, train, weights
from cellvq.config import ModelConfig, TrainingConfig
from cellvq.model import CellVQ
from cellvq.simulate import simulate_cells


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(cells=600, genes=260, cell_types=4, seed=1)


@pytest.fixture(scope="module")
def run(cells):
    return cellvq.pretrain(cells, batch="batch", donor="donor", steps=60, codes=16, progress=False)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    first, second = weights_of(first), weights_of(second)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns_from_cells_and_from_codes(run):
    first, last = run.history.iloc[0], run.history.iloc[-1]
    assert last.validation_cell < first.validation_cell
    assert last.validation_cell < last.validation_mean - 5
    assert last.validation_code < last.validation_mean - 5
    assert last.codes_used >= 12 and last.perplexity > 6
    assert len(last.usage) == 16


def test_planted_types_are_in_vectors_and_codes(cells, run):
    encoded = cellvq.encode(cells, run.model)
    scores = tasks.compare(encoded, "cell_type", donor="donor")
    value = scores.set_index(["method", "representation", "metric"])["value"]
    assert value["CellVQ", "embedding", "macro_f1"] > 0.9
    assert value["CellVQ", "code", "nmi"] > 0.6
    shuffled = value["CellVQ (labels shuffled)", "embedding", "macro_f1"]
    assert shuffled < 0.5 < value["CellVQ", "embedding", "macro_f1"]


def test_the_batch_is_left_out(cells):
    with_batch = cellvq.pretrain(cells, batch="batch", steps=30, codes=16, progress=False)
    without = cellvq.pretrain(cells, steps=30, codes=16, progress=False)
    told, untold = (
        tasks.score_embedding(cellvq.encode(cells, r.model), "X_cellvq", "batch")
        .set_index("metric")["value"]["macro_f1"] for r in (with_batch, without)
    )
    assert told < untold - 0.1


def test_same_seed_same_weights(cells):
    a, b = (cellvq.pretrain(cells, steps=4, codes=8, seed=3, progress=False) for _ in range(2))
    c = cellvq.pretrain(cells, steps=4, codes=8, seed=4, progress=False)
    assert same(a.model, b.model) and not same(a.model, c.model)


@pytest.mark.parametrize(("quantizer", "codes"), [("nested", (4, 8)), ("soft", 8)])
def test_killed_run_resumes_bit_for_bit(cells, tmp_path, quantizer, codes):
    """A process that is killed in mid-run, resumed here, against a run without interruption."""
    source = tmp_path / "cells.h5ad"
    cells.write_h5ad(source)
    options = {"steps": 24, "codes": codes, "quantizer": quantizer, "checkpoint_every": 5,
               "properties": ["cell_type"],
               "changes": {"training.patience": 20, "training.thinned_share": 0.3,
                           "training.accumulate": 2}}
    # Sums depend on the number of threads in their last bits, and libraries change that number.
    script = (f"import cellvq, torch; torch.set_num_threads({torch.get_num_threads()}); "
              f"cellvq.pretrain({str(source)!r}, output={str(tmp_path / 'run')!r}, "
              f"progress=False, **{options!r})")
    process = subprocess.Popen([sys.executable, "-c", script])
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert checkpoint.exists() and not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(InputError, match="holds this run already; resume it"):
        cellvq.pretrain(source, output=tmp_path / "run", progress=False, **options)
    resumed = cellvq.pretrain(
        source, output=tmp_path / "run", resume=True, progress=False, **options
    )
    whole = cellvq.pretrain(source, progress=False, **options)
    assert same(resumed.model, whole.model)
    assert not checkpoint.exists()
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == whole.history.step.tolist()


def test_finished_run_is_read_and_another_is_refused(cells, tmp_path):
    options = {"steps": 3, "codes": 8, "output": tmp_path, "progress": False}
    first = cellvq.pretrain(cells, **options)
    before = (tmp_path / "model.safetensors").read_bytes()
    again = cellvq.pretrain(cells, resume=True, **options)
    assert same(first.model, again.model)
    assert again.history.step.tolist() == first.history.step.tolist()
    with pytest.raises(InputError, match="already"):
        cellvq.pretrain(cells, **options)
    with pytest.raises(InputError, match="differs in its set of cells"):
        cellvq.pretrain(cells[:-1], resume=True, **options)
    with pytest.raises(InputError, match="differs in its training"):
        cellvq.pretrain(cells, resume=True, **(options | {"steps": 4}))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    replaced = cellvq.pretrain(cells, overwrite=True, **(options | {"steps": 4}))
    assert same(replaced.model, cellvq.load(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 1}))
    with pytest.raises(InputError, match="format 1"):
        cellvq.pretrain(cells, resume=True, **options)
    cellvq.pretrain(cells, resume=True, overwrite=True, **options)  # an older version's model
    assert same(first.model, cellvq.load(tmp_path))


def test_a_run_that_gets_no_better_stops_early_with_its_best_weights(cells):
    changes = {"training.patience": 1, "training.learning_rate": 0.05}  # far too fast to learn well
    run = cellvq.pretrain(cells, steps=200, codes=8, changes=changes, progress=False)
    coded = run.history[run.history.step > 40]  # before, there is no codebook to be judged
    losses = coded.validation_cell + coded.validation_code
    assert run.history.step.iloc[-1] < 200
    assert losses.argmin() == len(losses) - 2  # the best, and one report after it
    with_best = coded.validation_cell.iloc[losses.argmin()]
    data = corpus.gather(cells, 2000, None, None, TrainingConfig())
    state = {"step": 0, "cells": 0, "seconds": 0, "usage": [0] * 8, "history": []}
    again = history.report(run.model, data, TrainingConfig(), state)["validation_cell"]
    assert abs(again - with_best) < 1e-3


def test_a_loss_that_is_not_a_number_is_one_clear_line(cells, tmp_path):
    options = {"steps": 40, "codes": 8, "changes": {"training.learning_rate": 1e18},
               "output": tmp_path, "progress": False}
    with pytest.raises(InputError, match="loss is not a number .* lower training.learning_rate"):
        cellvq.pretrain(cells, **options)
    assert not (tmp_path / "config.json").exists()


def test_several_levels_of_codes_become_addresses(cells):
    run = cellvq.pretrain(cells, steps=12, quantizer="nested", codes=(4, 16), progress=False)
    codes = cellvq.encode(cells, run.model).obs["cellvq_code"]
    assert codes.str.fullmatch(r"C\d\.\d+").all()
    assert codes.str.split(".").str[0].nunique() <= 4 < codes.nunique() <= 16


@pytest.mark.parametrize("options, kind, sizes", [
    ({}, "nested", (8, 32)),  # of the preset
    ({"codes": 64}, "nested", (16, 64)),
    ({"codes": 4}, "ema", (4,)),  # too few for a tree
    ({"codes": 16, "quantizer": "ema"}, "ema", (16,)),
    ({"quantizer": "ema"}, "ema", (32,)),
    ({"codes": (4, 8)}, "nested", (4, 8)),
    ({"codes": (4, 8), "quantizer": "residual"}, "residual", (4, 8)),
])
def test_codes_and_quantizer_go_together(cells, options, kind, sizes):
    quantizer = cellvq.pretrain(cells, steps=1, progress=False, **options).model.quantizer
    assert (quantizer.config.kind, tuple(quantizer.sizes)) == (kind, sizes)


def test_clock_limits_a_run(cells):
    start = time.perf_counter()
    run = cellvq.pretrain(cells, minutes=0.03, codes=8, progress=False)
    assert run.history.iloc[-1].seconds >= 1.8
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(("options", "message"), [
    ({"batch": "lane"}, "no column 'lane' in obs; there are: .*donor"),
    ({"preset": "huge"}, "no preset is called 'huge'"),
    ({"codes": 700}, "more cells than codes|fewer codes"),
    ({"steps": 3, "minutes": 1.0}, "choose one"),
    ({"steps": 0}, "steps is 0; use at least 1"),
    ({"quantizer": "soft", "codes": 20}, "power of two"),
])
def test_wrong_settings_are_one_clear_line(cells, options, message):
    with pytest.raises(InputError, match=message):
        cellvq.pretrain(cells, progress=False, **options)


def test_normalised_values_are_refused(cells):
    logged = cells.copy()
    logged.X = logged.X.log1p() * 0.9  # out of log1p alone the counts come back
    with pytest.raises(InputError, match="no raw counts"):
        cellvq.pretrain(logged, progress=False)


def test_a_gene_that_a_file_did_not_measure_is_neither_shown_nor_asked_for(cells, tmp_path):
    first, second = cells[:300, 10:].copy(), cells[300:, :-10].copy()
    first.write_h5ad(tmp_path / "first.h5ad")
    second.write_h5ad(tmp_path / "second.h5ad")
    data = corpus.gather(
        [tmp_path / "first.h5ad", tmp_path / "second.h5ad"], 2000, None, None, TrainingConfig()
    )
    assert data.batches == ["first", "second"]
    assert len(data.depth) == 600
    missing = {"first": set(cells.var_names[:10]), "second": set(cells.var_names[-10:])}
    for part, name in enumerate(data.batches):
        unknown = set(np.array(data.panel)[~data.measured[part]])
        assert unknown == missing[name] & set(data.panel) and unknown
    shown = train.training_batch(data, TrainingConfig(), 64, 0, 0)
    assert shown.hidden[~shown.measured].all() and not shown.counts[~shown.measured].any()
    # What was not measured changes neither the mean profile nor the loss.
    rate = objective.mean_profile(data, torch.tensor([1e4])).mean[0].numpy()
    gene = data.panel.index(cells.var_names[-1])
    measured = cells.X[:300].toarray()[:, -1].sum() / cells.X[:300].sum() * 1e4
    assert rate[gene] == pytest.approx(measured, rel=0.25)


def test_validation_holds_out_whole_donors(cells):
    data = corpus.gather(cells, 2000, None, "donor", TrainingConfig())
    donors = cells.obs["donor"].to_numpy()
    assert not set(donors[data.validation]) & set(donors[data.train])
    assert "donor" in data.split


def test_empty_cells_are_left_out_of_training_and_get_no_code(cells, run):
    some = cells[:50].copy()
    counts = some.X.toarray()
    counts[[3, 7]] = 0
    some.X = csr_matrix(counts)
    encoded = cellvq.encode(some, run.model)
    assert encoded.obs["cellvq_code"].isna().sum() == 2
    assert encoded.uns["cellvq"]["empty_cells"] == 2
    assert np.isnan(encoded.obsm["X_cellvq"][3]).all()
    assert len(corpus.gather(some, 2000, None, None, TrainingConfig()).depth) == 48


def test_encoding_does_not_depend_on_company_or_gene_order(cells, run):
    encoded = cellvq.encode(cells, run.model)
    some = np.random.default_rng(0).permutation(cells.n_obs)[:37]
    genes = np.random.default_rng(1).permutation(cells.n_vars)
    again = cellvq.encode(cells[some][:, genes].copy(), run.model)
    assert np.allclose(encoded.obsm["X_cellvq"][some], again.obsm["X_cellvq"], atol=1e-5)
    assert list(encoded.obs["cellvq_code"].iloc[some]) == list(again.obs["cellvq_code"])
    assert encoded.obs["cellvq_confidence"].between(0, 1).all()


def test_genes_that_were_not_measured_are_unknown_and_not_zero(cells, run):
    full = cellvq.encode(cells, run.model).obs["cellvq_code"].astype(str)
    keep = np.random.default_rng(0).random(cells.n_vars) < 0.6
    lacking, zero = cells[:, keep].copy(), cells.copy()
    lacking.obs["total_counts"] = zero.obs["total_counts"] = np.asarray(cells.X.sum(1)).ravel()
    zero.X = csr_matrix(cells.X.toarray() * keep)
    same = {name: (cellvq.encode(some, run.model).obs["cellvq_code"].astype(str) == full).mean()
            for name, some in (("lacking", lacking), ("zero", zero))}
    assert same["lacking"] > same["zero"] + 0.1


def test_encoded_cells_survive_a_file(cells, run, tmp_path):
    encoded = cellvq.encode(cells, run.model)
    encoded.write_h5ad(tmp_path / "encoded.h5ad")
    back = anndata.read_h5ad(tmp_path / "encoded.h5ad")
    assert back.uns["cellvq"]["genes_matched"] == len(run.model.panel)
    assert (back.obs["cellvq_code"] == encoded.obs["cellvq_code"]).all()


def test_no_common_gene_is_one_clear_line(cells, run):
    other = cells.copy()
    other.var_names = [f"zebra{i}" for i in range(other.n_vars)]
    with pytest.raises(InputError, match="zebra"):
        cellvq.encode(other, run.model)


def test_warm_start_is_a_principal_component_analysis(cells):
    data = corpus.gather(cells, 2000, None, None, TrainingConfig(validation_share=0.0))
    model = CellVQ(ModelConfig(), data.panel).eval()
    objective.warm_start(model, data)
    model.cell_vector.gate.data.zero_()
    vectors = train.encode_cells(model, data, data.train).cell.numpy()
    assert np.allclose(vectors.mean(0), 0, atol=1e-3)
    usual = tasks.pca_embedding(cells, 3)[data.train]  # as many axes as four types need
    assert LinearRegression().fit(vectors, usual).score(vectors, usual) > 0.97
    noisy = np.random.default_rng(0).permuted(vectors, axis=0)  # the control
    assert LinearRegression().fit(noisy, usual).score(noisy, usual) < 0.2


def test_signal_covariance_is_free_of_counting_noise():
    """Counts of one rate for all cells hold noise and nothing else."""
    rng = np.random.default_rng(0)
    counts = csr_matrix(rng.poisson(2.0, (4000, 20)).astype(np.float32))
    depth, batch = np.full(4000, 1000.0), np.zeros(4000, int)
    found = objective.signal_covariance(counts, depth, batch, np.full(20, 100.0), rng)
    plain = np.cov(objective.log_values(counts, depth).toarray().T)
    assert np.abs(found.diagonal()).max() < 0.1 * plain.diagonal().min()


def test_damaged_models_are_one_clear_line(cells, tmp_path):
    cellvq.pretrain(cells, steps=2, codes=8, output=tmp_path, progress=False)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(InputError, match="not the weights that config.json names"):
        cellvq.load(tmp_path)
    path.write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"format": 99}, "format 99"),
        ({"panel": config["panel"][:-1]}, "shape"),
        ({"model": {**config["model"], "wings": 2}}, "'wings' is unknown"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            cellvq.load(tmp_path)
    with pytest.raises(InputError, match="is a preset to pretrain"):
        cellvq.load("tiny")


def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    weights.write_whole(path, b"old")
    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        weights.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]  # and nothing half written beside it


def test_the_size_of_the_panel_can_be_changed():
    cells = simulate_cells(cells=120, genes=220)
    run = cellvq.pretrain(cells, codes=8, steps=1, changes={"model.panel_size": 60}, progress=False)
    assert len(run.model.panel) == 60
