"""The measuring rod: operations, memory and genes are counted right, and torch is enough."""

import dataclasses
import json
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch

from cellvq import InputError, bench, config, cost, plot
from cellvq.config import ModelConfig, TrainingConfig
from cellvq.loader import make_batch
from cellvq.model import CellVQ

BARE = """
import json, sys

sys.modules.update(dict.fromkeys({names}))  # importing any of these fails
import cellvq.__main__
from cellvq import bench
found = bench.bench_model("tiny", genes=30, cells=2, seconds=0.02)
print(json.dumps(found))
print(bench.in_words(found))
"""
ABSENT = ("anndata", "h5py", "igraph", "matplotlib", "pandas", "scanpy", "seaborn", "sklearn",
          "tqdm", "yaml")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CellVQ(ModelConfig(), [f"g{i}" for i in range(300)])


def shown(cells: int, genes: int):
    """Cells that show so many of 300 genes while a quarter is hidden."""
    rng, training = np.random.default_rng(0), TrainingConfig()
    counts = cost.synthetic_counts(cells, cost.genes_to_express(genes, training), 300, rng)
    return make_batch(counts, hidden_share=0.25, max_tokens=genes, rng=rng)


def test_a_bare_machine_can_measure():
    code = BARE.format(names=ABSENT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[0])
    rate, train = found["matrix_tflops"], found["training"]["whole model"]
    assert found["genes"] == 30 and found["panel_size"] == 2000 and found["device"]
    assert train["tflops"] / rate[train["precision"]] == pytest.approx(
        train["share_of_matrix_rate"], rel=0.02)
    assert set(found["encoding"]) == {"float32", "bfloat16"}
    assert "cells/s" in done.stdout and found["date"] in done.stdout
    if not torch.cuda.is_available():
        assert any("GPU" in what for what in found["not_measured"])


def test_operations_are_those_of_the_matrix_products(model):
    cells, genes, c = 3, 50, model.config
    tokens = genes + 2
    embedding = c.value_bins * (1 + c.value_bins + c.width)
    linear = 4 * c.width**2 + 2 * c.width * c.feedforward
    layer = tokens * linear + 2 * tokens**2 * c.width
    vector = 300 * c.cell_width + 4 * c.width * c.cell_width
    forward = 2 * cells * (tokens * embedding + c.layers * layer + vector)
    whole = make_batch(cost.synthetic_counts(cells, genes, 300, np.random.default_rng(0)))
    assert cost.encode_cost(model.eval(), whole, 0.0).operations == forward
    alone = cost.operations_of(dataclasses.replace(c, panel_size=300), genes)
    assert alone["encoder"] * cells == forward
    decoder = 2 * 2 * cells * (3 * 300 * c.code_width + c.code_width * c.decoder_width)
    decoder += 2 * 2 * cells * 300 * (c.decoder_width - c.code_width)
    trained = cost.train_cost(model, shown(cells, genes), TrainingConfig(), 0.0).operations
    # Backward costs twice the forward pass, but for gradients that nobody asks of the input.
    no_gradient = 2 * cells * (tokens * c.value_bins + 300 * c.cell_width)
    assert trained == 3 * (forward + decoder) - no_gradient


def test_a_step_keeps_memory_by_cells_and_leaves_the_weights(model):
    before = {name: value.clone() for name, value in model.named_parameters()}
    kept = [cost.train_cost(model, shown(cells, 50), TrainingConfig(), 0.0).kept
            for cells in (4, 8, 16)]
    assert kept[2] - kept[1] == pytest.approx(2 * (kept[1] - kept[0]), rel=0.05)
    # At least what enters every product of each layer: 4 bytes a number.
    assert kept[0] > 4 * 4 * 52 * 2 * (6 * 64 + 128)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


@pytest.mark.parametrize("genes", [1, 96, 160])
def test_every_cell_shows_the_same_number_of_genes(genes):
    batch = shown(64, genes)
    assert batch.genes.shape == (64, genes) and not batch.padded
    assert (batch.genes < 300).all()


@pytest.mark.parametrize(("too_large", "most", "tried", "best"), [
    (99, 64, [1, 2, 4, 8, 16, 32], 16), (4, 64, [1, 2, 4], 2), (99, 3, [1, 2], 2),
])
def test_the_search_doubles_until_nothing_is_gained(too_large, most, tried, best):
    cells_per_second, asked = {1: 10, 2: 18, 4: 17, 8: 30, 16: 30.1, 32: 29, 64: 99}, []

    def cost_of(cells, _):
        asked.append(cells)
        if cells >= too_large:
            raise torch.OutOfMemoryError
        return cost.Cost(cells, cells / cells_per_second[cells] / 1e6, 1, 1, 1)

    found = bench.fastest(cost_of, cells=None, most=most, seconds=60, device=torch.device("cuda"))
    assert found.cells == best and asked == tried


def test_what_cannot_be_measured_is_said_in_one_line(monkeypatch):
    with pytest.raises(InputError, match="no preset is called 'huge'; there are: tiny"):
        bench.bench_model("huge")
    with pytest.raises(InputError, match="can show from 1 to about 1,350 of its 2,000 genes"):
        bench.bench_model("tiny", genes=1900)
    monkeypatch.setattr(bench, "free_memory", lambda device: 1e6)
    with pytest.raises(InputError, match="tiny needs 0.0 GB .* choose a smaller preset"):
        bench.bench_model("tiny")
    narrow = config.change(config.PRESETS["official"].model, TrainingConfig(), {
        "model.width": 16, "model.heads": 2, "model.feedforward": 16, "model.decoder_width": 16,
        "model.decoder_heads": 2, "model.panel_size": 600, "model.prior": "none"})[0]
    wide = CellVQ(narrow, [f"g{i}" for i in range(600)])
    assert "GB a cell (0 GB are free)" in bench.decoder_too_large(wide, 1.0, wide.device)
    monkeypatch.setattr(bench, "free_memory", lambda device: 1e12)
    assert bench.decoder_too_large(wide, 10.0, wide.device) == ""


def test_folding_takes_out_the_prior_and_nothing_else():
    size = config.PRESETS["official"].model
    whole, folded = bench.parameters_of(size), bench.parameters_of(size, folded=True)
    assert whole.pop("prior") == 19266**2 + 19266 * 768 + 768 and whole == folded


def test_what_others_measured_is_read_and_what_nobody_did_is_said(tmp_path):
    found = bench.bench_model("tiny", genes=20, cells=2, seconds=0.01)
    file = tmp_path / "measured.jsonl"
    file.write_text(json.dumps(found) + "\n" + json.dumps(found, indent=1) + "\n")
    measured, again, absent = bench.recorded(file, ["tiny", "base"])
    assert measured == again
    assert measured["device"] == found["device"] and measured["date"] == found["date"]
    rate = found["training"]["whole model"]["cells_per_second"]
    assert f"{rate:,g} cells/s" in measured["training"]
    assert absent == {"preset": "base"} | dict.fromkeys(list(absent)[1:], "not measured")
    pictured = plot.parameter_shares(pd.DataFrame(
        {"preset": ["a", "a", "b"], "part": ["layers", "odd", "layers"],
         "parameters": [3_000_000, 1_000_000, 5_000_000]}))
    assert [bar.get_width() for bar in pictured.patches] == [75, 100, 25, 0]
    assert [tick.get_text() for tick in pictured.get_yticklabels()] == ["a (4.0 M)", "b (5.0 M)"]
