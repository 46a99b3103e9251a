"""The measurement of readers measures what it says, and what the book records has its form."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest

from cellvq import build, corpus, databench, reading

RECORDED = Path(__file__).parents[1] / "book" / "data" / "measured-streaming.json"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "cells.h5ad"
    databench.write_cells(path, 6000, 200, 16)
    return path


def test_made_up_cells_are_a_real_file_sorted_by_label(path):
    cells = reading.read(path)
    assert cells.shape == (6000, 200) and (np.diff(cells.X.indptr) == 16).all()
    assert cells.X.has_sorted_indices and not (np.diff(cells.X.indices.reshape(-1, 16)) <= 0).any()
    assert (np.diff(cells.obs["label"].cat.codes) >= 0).sum() == 5999
    assert anndata.read_h5ad(path, backed="r")[5:7].to_memory().X.nnz == 32


def test_mixing_tells_shuffled_cells_from_cells_in_order(path, tmp_path, monkeypatch):
    monkeypatch.setattr(databench, "SECONDS", 0.1)
    build.build(corpus.open_all(path), tmp_path / "corpus", progress=False)
    mixing = {}
    for name, (read, storage, needs) in databench.READERS.items():
        if not needs:
            where = tmp_path / "corpus" if "zarr" in storage else path
            found = databench.measure(read(where), 6000)
            assert found["cells_per_second"] > 0
            mixing[name] = found["entropy"]
    assert mixing.pop("AnnData backed, in order") < 0.2
    assert len(mixing) == 4 and min(mixing.values()) > 0.97


def test_making_a_batch_is_timed_as_a_part_of_its_step(path):
    found = databench.measure_collating(path)
    assert 0 < found["milliseconds"] < found["step_milliseconds"]
    assert found["share"] == found["milliseconds"] / found["step_milliseconds"]


@pytest.mark.skipif(not RECORDED.exists(), reason="nothing was recorded for the book yet")
def test_what_the_book_records_is_what_the_command_prints():
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    words = databench.in_words(found)
    for row in found["reading"]:
        assert f"{row['cells_per_second']:,.0f}" in words
    assert {row["cells"] for row in found["scaling"]} == {10_000, 100_000, 1_000_000}
