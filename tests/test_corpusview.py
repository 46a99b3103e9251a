"""What a corpus is made of: hidden copies are found, costs follow from rates, figures say it."""

import json
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cellvq import InputError, composition, corpuscost, corpusview
from cellvq.simulate import simulate_cells
from cellvq.sources import Memory

MEASURED = {  # made up, in the form that `cellvq bench data --json` writes
    "date": "2000-01-01", "processor": "none", "cores": 1, "values_per_cell": 100.0,
    "reading": [
        {"reader": "CellVQ", "storage": "gzip h5ad", "cells_per_second": 10.0, "entropy": 0.9,
         "peak_gb": 0.1},
        {"reader": "CellVQ, a corpus it built", "storage": "sharded zarr",
         "cells_per_second": 1000.0, "entropy": 0.99, "peak_gb": 0.1},
        {"reader": "another", "storage": "sharded zarr", "cells_per_second": 9000.0,
         "entropy": 0.5, "peak_gb": 0.1},
    ],
    "building": {"cells_per_second": 1.0, "values_per_second": 1e5, "bytes_per_value": 1.5},
}
ASKED = {"cells": 1e6, "genes_per_cell": 1800, "bytes_per_cell": 4000, "network": 10}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(cells=300, genes=250, seed=3)


def test_copies_are_found_though_other_genes_and_names_hide_them(cells):
    again = cells[40:100, 60:].copy()  # the same cells with fewer genes and other names
    again.obs_names = [f"renamed-{name}" for name in again.obs_names]
    sources = [Memory(cells[:150, :200], "one"), Memory(again, "two"),
               Memory(cells[150:], "three")]
    found = composition.copies(sources, least=5)
    assert set(zip(found["source"], found["copied_to"], strict=True)) == {("one", "two")}
    assert ("renamed-" + found["cell"] == found["copy"]).all()
    assert sorted(found["cell"]) == sorted(cells.obs_names[40:100])
    assert (found["genes"] == 140).all()


def test_poor_cells_are_not_compared(cells):
    poor = cells[:20].copy()
    poor.X = poor.X.multiply(np.arange(poor.n_vars) < 4).tocsr().astype("float32")
    both = [Memory(poor, "one"), Memory(poor, "two")]
    assert composition.copies(both).empty
    assert len(composition.copies(both, least=1))
    assert list(composition.copies(both[:1]).columns) == list(composition.copies(both).columns)


def test_barcodes_are_compared_without_what_files_add_to_them():
    sources = [SimpleNamespace(name=name, names=lambda names=names: np.array(names)) for name, names
               in {"a": ["AAACATACAACCAC-1", "AAACATTGAGCTAC-1", "cell_1"],
                   "b": ["run2_AAACATACAACCAC", "cell_1", "cell_2"]}.items()]
    assert composition.shared_barcodes(sources).loc["a"].to_dict() == {"a": 3, "b": 2}


def test_costs_follow_from_the_rates_and_from_nothing_else(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(MEASURED))
    cost = corpuscost.rebuilding(corpuscost.recorded(path), **ASKED)["cost"]
    assert cost["download"] == pytest.approx(8.0)  # GB: two passes of 4 kB a cell
    assert cost["disk"] == pytest.approx(1.8e9 * 1.5 / 1e9)
    assert cost["building_hours"] == pytest.approx(1.8e9 / 1e5 / 3600)
    assert cost["reading_hours"] == pytest.approx(1.8e9 / (1000 * 100) / 3600)  # ours, by value


def test_what_was_not_measured_is_said_so(tmp_path):
    nothing = corpuscost.recorded(tmp_path / "absent.json")
    costs = corpuscost.rebuilding(nothing, **ASKED)
    words = dict(zip(costs.index, map(corpuscost.in_words, costs["cost"], costs["unit"]),
                     strict=True))
    assert {key for key, text in words.items() if text == "not measured"} == {
        "disk", "building_hours", "reading_hours"}
    ax = corpusview.reading_speed(corpuscost.readers(nothing))
    assert [text.get_text() for text in ax.texts] == ["not measured"]
    for damaged in ("{", "[1]"):
        (tmp_path / "measured.json").write_text(damaged)
        with pytest.raises(InputError, match="bench data"):
            corpuscost.recorded(tmp_path / "measured.json")


def test_figures_hold_the_numbers_of_their_tables():
    kept = pd.DataFrame({"source": ["a", "a", "b"], "cells": [70, 30, 50],
                         "reason": [corpusview.KEPT, "copies", "copies"]})
    ax = corpusview.cells_by_source(kept)
    assert [text.get_text() for text in ax.texts] == ["70 of 100", "0 of 50"]
    assert sum(bar.get_width() for bar in ax.patches) == 150
    counts = pd.DataFrame([[100, 20], [20, 40]], index=["a", "b"], columns=["a", "b"])
    ax = corpusview.shared(counts)
    assert [text.get_text() for text in ax.texts] == ["100", "20", "20", "40"]
    shade = ax.collections[0].get_array().ravel()
    assert shade.tolist() == [100, 50, 50, 100]  # of the smaller one
    ax = corpusview.reading_speed(corpuscost.readers(MEASURED))
    assert [text.get_text() for text in ax.texts][0] == "9,000, mixes 0.50"
    spread = pd.DataFrame({"source": ["$a$", "<b>"] * 50, "depth": np.arange(1, 101)})
    assert len(corpusview.spread_by_source(spread, "depth").get_yticklabels()) == 2
    mixed = pd.DataFrame({"reading": ["files"] * 2 + ["corpus"] * 2, "window": [64, 256] * 2,
                          "entropy": [0.7, 0.9, 1, 1], "low": 0.5, "high": 1.1})
    lines = corpusview.mixing(mixed, in_order=0.1).get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[1, 1], [0.7, 0.9], [1, 1], [0.1, 0.1]]
