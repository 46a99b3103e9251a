"""The measurement of graphs measures what it says, and what the book records has its form."""

import json
from pathlib import Path

import pytest

from cellvq import graphbench, tallies

RECORDED = Path(__file__).parents[1] / "book" / "discovery" / "measured-graph.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    names = graphbench.gene_names(200)
    for seed in range(2):
        graphbench.draw_shard(400, names, 16, seed).write_h5ad(folder / f"{seed}.h5ad")
    return folder


def test_shards_share_their_codes_and_tell_them_apart(folder):
    parts = [tallies.tally_file(path, donor="donor") for path in sorted(folder.glob("*.h5ad"))]
    assert parts[0].cells == 400 and (parts[0].counts.sum() != parts[1].counts.sum())
    assert list(parts[0].places.index) == list(parts[1].places.index)
    made = parts[0] + parts[1]
    shared = tallies.borders_file(folder / "0.h5ad", made)
    assert shared["shared"].sum() == 400


def test_every_step_is_timed_and_adds_up(folder, monkeypatch):
    monkeypatch.setattr(graphbench, "SHARD", 400)
    found = graphbench.measure(folder, 800)
    assert found["cells"] == 800 and found["nodes"] > 16
    # What is not of a step is the start, such as an import.
    assert 0.7 * found["seconds"] < sum(found["steps"].values()) <= found["seconds"]
    assert list(found["steps"])[0] == graphbench.GROWING and list(found["steps"])[-1] == "writing"
    assert 0 < found["peak_gb"] < 20 and set(found["queries"]) >= {"paths", "explain"}


def test_costs_follow_cells_and_workers():
    made = {"cells": 1000, "seconds": 30.0, "steps": {"counting": 20.0, "signals": 10.0}}
    cost = graphbench.many_cells({"graphs": [made]}, 1e6)["hours"]
    assert cost["counting"] == pytest.approx(20_000 / 3600)
    half = graphbench.many_cells({"graphs": [made]}, 1e6, workers=2)["hours"]
    assert half["counting"] == pytest.approx(cost["counting"] / 2) and half["rest"] == cost["rest"]


@pytest.mark.skipif(not RECORDED.exists(), reason="nothing was recorded for the book yet")
def test_what_the_book_records_is_what_the_command_prints():
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    words = graphbench.in_words(found)
    assert [made["cells"] for made in found["graphs"]] == [100_000, 1_000_000]
    assert all(f"{made['edges']:,} edges" in words for made in found["graphs"])
    assert max(found["graphs"][-1]["queries"].values()) < 1000
