"""Figures show what the tables say: marks are counted, names read, markup in names disarmed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

from cellvq import InputError, check, plot, schema, simulate

STATIC = Path(__file__).parents[1] / "book" / "_static"
EVIL = "</script><img src=x onerror=alert(1)>\u2028<!--\"'& $x^{$"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def history():
    steps = np.arange(0, 500, 100)
    usage = [[0, 0, 0, 0], [50, 0, 0, 50], [40, 10, 0, 50], [40, 20, 0, 40], [10, 20, 0, 70]]
    return pd.DataFrame({
        "step": steps, "validation_cell": 400.0 - steps / 10, "validation_code": 410 - steps / 10,
        "validation_mean": 450.0, "usage": usage, "codes_used": [0, 2, 3, 3, 3],
        "perplexity": [1.0, 2.0, 2.4, 2.9, 2.2],
    })


@pytest.fixture
def tables():
    """Node, edge and position tables with hostile names."""
    nodes = pd.concat([
        schema.node_table("code", ["C00"], cells=40, detail=f"{EVIL}; CD3D"),
        schema.node_table("gene", ["CD3D"]),
        schema.node_table("annotation", [EVIL], cells=60),
    ], ignore_index=True)
    numbers = {"p": 0.001, "fdr": 0.01, "null": "ranks", "evidence": "scanpy 1"}
    edges = pd.concat([
        schema.edge_table("code-marks-gene", ["code:C00"], ["gene:CD3D"], effect=2.0, n_cells=40,
                          **numbers),
        schema.edge_table("code-is-annotation", ["code:C00"], [f"annotation:{EVIL}"], effect=1.0,
                          n_cells=30, **numbers),
        schema.edge_table("code-talks-to-code", ["code:C00"], ["code:C00"], effect=1.5,
                          n_cells=40, name=f"CD3D → {EVIL}", **numbers),
    ], ignore_index=True)
    positions = pd.DataFrame({"id": nodes["id"], "x": [0.0, 1.0, -1.0], "y": [0.0, 1.0, 0.5]})
    return nodes, edges, positions


def texts(ax):
    ax.figure.canvas.draw()
    return [text.get_text() for text in ax.texts]


def test_one_style_for_all_and_opaque(history):
    for draw in (plot.training_history, plot.perplexity_history, plot.code_usage):
        ax = draw(history)
        assert to_rgb(ax.figure.get_facecolor()) == (1, 1, 1) and ax.get_xlabel()
        assert ax.figure.get_size_inches()[0] <= 6.5  # so that type stays large on a phone


def test_a_given_axes_is_used(history):
    figure, (left, right) = plt.subplots(1, 2)
    assert plot.training_history(history, ax=left) is left
    assert plot.code_usage(history, ax=right) is right
    assert len(plt.get_fignums()) == 1


def test_palettes_give_every_name_its_own_colour():
    for count in (1, 8, 12, 13, 32, 64):
        colors = plot.palette([f"C{i:02d}" for i in range(count)])
        assert len({to_rgb(color) for color in colors.values()}) == count
    rgb = np.array([to_rgb(color) for color in plot.PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # As somebody without green cones sees them (Machado et al. 2009): still apart from each other.
    blind = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    seen = linear @ blind.T
    gaps = np.linalg.norm(seen[:, None] - seen[None], axis=2) + np.eye(len(seen))
    assert gaps[:8, :8].min() > 0.05


def test_code_usage_shows_shares_of_each_report(history):
    shown = plot.code_usage(history).images[0].get_array()
    assert shown.shape == (4, 4)  # four codes, four reports with cells
    assert shown.sum(axis=0).tolist() == pytest.approx([100] * 4)
    assert shown[:, -1].tolist() == [70, 20, 10, 0]


def test_scores_stand_where_the_table_says():
    summary = pd.DataFrame({
        "dataset": "d", "task": ["annotation", "annotation", "clustering", "usage"],
        "representation": "embedding", "metric": ["macro_f1", "macro_f1", "ari", "perplexity"],
        "method": ["CellVQ", "PCA", "CellVQ", "CellVQ"], "mean": [0.8, 0.7, 0.5, 20.0],
        "low": [0.75, 0.65, 0.4, 19], "high": [0.85, 0.75, 0.6, 21], "seeds": 5, "n_cells": 9,
    })
    ax = plot.score_intervals(summary)
    drawn = {line.get_label(): sorted(line.get_xdata()) for line in ax.lines}
    assert drawn["CellVQ"] == [0.5, 0.8] and drawn["PCA"] == [0.7]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["macro-F1", "ARI"]
    assert "5 seeds" in ax.get_xlabel()
    with pytest.raises(InputError, match="no scores of the code"):
        plot.score_intervals(summary, representation="code")


def test_a_difference_is_full_where_its_interval_leaves_out_zero():
    table = pd.DataFrame({
        "baseline": ["clear", "unclear", "far"], "difference": [0.2, 0.1, -7.0],
        "verdict": ["ahead", "not distinguishable", "behind"],
        "low": [0.1, -0.1, -8.0], "high": [0.3, 0.3, -6.0],
    })
    ax = plot.score_differences(table, reach=1.0)
    marks = {line.get_ydata()[0]: line for line in ax.lines if len(line.get_ydata()) == 1}
    assert marks[0].get_markerfacecolor() == marks[0].get_color() and marks[0].get_xdata() == [0.2]
    assert marks[1].get_markerfacecolor() == "white" and marks[1].get_xdata() == [0.1]
    assert marks[2].get_marker() == "<" and texts(ax) == ["-7"]  # beyond the axis: an arrow
    assert ax.get_xlim() == (-1, 1)
    two = pd.concat([table.assign(dataset=name) for name in ("Kang", "PBMC")])
    ax = plot.score_differences(two)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Kang", "PBMC"]


def test_scores_by_level_keep_their_colours_whoever_is_there():
    summary = pd.DataFrame({
        "method": ["nested", "nested", "flat", "flat", "control"], "level": [8, 64, 8, 64, 8],
        "mean": [0.7, 0.5, 0.6, 0.4, 0.0], "low": 0.1, "high": 0.9,
    })
    methods = ["nested", "k-means", "flat"]
    ax = plot.scores_by_level(summary, methods=methods)
    drawn = {line.get_label(): line for line in ax.lines}
    assert list(drawn) == methods and list(drawn["flat"].get_ydata()) == [0.6, 0.4]
    assert [drawn[name].get_color() for name in methods] == list(plot.PALETTE[:3])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["8", "64"]


def test_scatter_draws_every_cell_once():
    rng = np.random.default_rng(0)
    places = pd.DataFrame(rng.normal(size=(300, 2)), columns=["x", "y"])
    places["code"] = pd.Categorical(rng.choice([f"C{i:02d}" for i in range(40)], 300))
    places["confidence"] = rng.random(300)
    places["label"] = np.where(places.index < 30, None, "B")
    names = places.groupby("code", observed=True)[["x", "y"]].median().assign(cells=1)
    names = names.rename_axis("name").reset_index()
    ax = plot.embedding_scatter(places, "code", names=names)
    (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
    assert len(dots.get_offsets()) == 300 and len(np.unique(dots.get_facecolors(), axis=0)) == 40
    assert sorted(texts(ax)) == sorted(names["name"])
    ax = plot.embedding_scatter(places, "label")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["B"]
    ax = plot.embedding_scatter(places, "confidence")
    assert ax.collections[0].get_array().max() == pytest.approx(places["confidence"].max())


def test_labels_by_code_mark_what_is_enriched():
    pairs = pd.DataFrame({
        "code": ["C0", "C0", "C1", "C1"], "label": ["B", "T", "B", "T"],
        "label_cells": [5, 9, 5, 9], "fraction": [0.9, 0.1, 0.2, 0.8],
        "log2_enrichment": [1.3, -2.0, -0.8, 0.3], "fdr": [0.001, 0.9, 0.8, 0.2],
    })
    ax = plot.code_by_label(pairs)
    share = ax.collections[0].get_array().reshape(2, 2)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["C1", "C0"]
    assert share.tolist() == [[80, 20], [10, 90]]  # columns: T (more cells), B
    assert ax.collections[1].get_offsets().tolist() == [[1.5, 1.5]]


def test_marker_dots_show_the_best_genes_in_all_codes():
    rows = [(code, gene, rank, 3.0 if rank == 1 else -1.0, 5.0 if rank == 1 else -2.0, 0.5, size)
            for code, order, size in (("C0", "AB", 50), ("C1", "BA", 90))
            for rank, gene in enumerate(order, 1)]
    markers = pd.DataFrame(rows, columns=["code", "gene", "rank", "log2_fold_change", "score",
                                          "fraction_in", "code_cells"])
    ax = plot.marker_dots(markers, per_code=1)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["C1", "C0"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["B", "A"]
    assert len(ax.collections[0].get_offsets()) == 4
    assert plot.marker_dots(markers.head(0)).texts[0].get_text() == "no code was tested"


def test_the_check_is_drawn_with_its_findings():
    cells = simulate.simulate_cells(cells=100)
    good = plot.check_overview(check(cells))
    assert "cells: ready for CellVQ" in texts(good) and "raw counts" in texts(good)
    cells.X, cells.uns["dataset"] = cells.X * 0.5, "$a_cell"  # which is no formula
    bad = plot.check_overview(check(cells, label="typ"))
    bad.figure.canvas.draw()
    assert "$a_cell: not usable as it is" in texts(bad)
    assert "label" in texts(bad) and sum(line.get_marker() == "X" for line in bad.lines) == 2


def test_graph_picture_names_codes_and_annotations(tables):
    ax = plot.graph_picture(*tables)
    assert "C00" in texts(ax) and any(text.startswith("</script>") for text in texts(ax))
    assert sum(len(c.get_segments()) for c in ax.collections if hasattr(c, "get_segments")) == 3


def test_interactive_graph_disarms_markup_and_keeps_names(tables):
    figure = plot.interactive_graph(*tables, title=EVIL, alt=EVIL)
    page = figure._repr_html_()
    assert re.findall(r"<(/?\w+)", page) == ["div", "script", "/script", "noscript", "p", "/p",
                                             "/noscript", "/div"]
    spec = json.loads(re.search(r'<script type="application/json">(.*)</script>', page, re.S)[1])
    assert spec == figure.spec and spec["title"] == EVIL
    assert [node["label"] for node in spec["nodes"]] == ["C00", "CD3D", EVIL]
    assert {edge["kind"] for edge in spec["edges"]} <= set(spec["kinds"])
    assert spec["edges"][2]["directed"] and not spec["edges"][0]["directed"]
    assert "FDR 0.01" in spec["edges"][0]["detail"][-1]
    assert 'src="' not in page and "href" not in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the chromium browser")
def test_a_browser_draws_the_graph(tables, tmp_path):
    figure = plot.interactive_graph(*tables, title=EVIL, alt=EVIL)
    script = (STATIC / "cellvq-figure.js").read_text(encoding="utf-8")
    page = tmp_path / "graph.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8>{figure._repr_html_()}<script>{script}</script>",
        encoding="utf-8",
    )
    found = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout
    assert 'data-drawn="1"' in found and "<img" not in found
    assert found.count('class="cvf-mark"') >= 3
