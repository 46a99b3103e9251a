"""Tables of several data sets are joined and corrected together; no failure goes out of sight."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cellvq import InputError, benchview, judging, leaderboard, ranking, significance

EVIL = "</script><b>PCA | $x$"
METHODS = {"CellVQ": 0.9, "scVI": 0.7, EVIL: 0.5, "CellVQ (labels shuffled)": 0.3}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def benchmark(dataset, seed=0):
    """Calls of one data set: the better a method, the more often it is right; Harmony failed."""
    rng, cells = np.random.default_rng(seed), 200
    truth, parts = rng.choice(["B", "NK", "T"], cells), []
    for method, share in METHODS.items():
        for at in range(3):
            for task, protocol in (("annotation", "within_study"), ("clustering", "leiden")):
                right = rng.random(cells) < share
                parts.append(pd.DataFrame({
                    "dataset": dataset, "task": task, "protocol": protocol, "method": method,
                    "representation": "embedding", "seed": at, "cell": np.arange(cells), "fold": 0,
                    "truth": truth, "call": np.where(right, truth, rng.permutation(truth))}))
    failed = {"dataset": dataset, "task": "annotation", "protocol": "", "seed": 0,
              "method": "Harmony", "representation": "embedding", "metric": "",
              "value": np.nan, "n_cells": cells, "n_groups": 3, "settings": "{}",
              "status": "needs two batches"}
    calls = pd.concat(parts, ignore_index=True)
    scores = significance.score_table(pd.DataFrame([failed]), calls)
    return (significance.summarise(scores, calls, draws=100),
            significance.verdicts(scores, ["CellVQ"], calls, draws=100), scores, calls)


@pytest.fixture(scope="module")
def board():
    tables = [benchmark(name, seed) for seed, name in enumerate(["kang", "pbmc3k", "xin"])]
    return leaderboard.join([table[0] for table in tables], [table[1] for table in tables])


def test_the_better_method_leads_and_the_failure_is_named(board):
    table = board.table()
    assert list(table.index) == list(METHODS) and table["mean_rank"].tolist() == [1, 2, 3, 4]
    table = board.table("annotation")
    assert table.index[-1] == "Harmony" and table.loc["Harmony", "failed"] == "kang, pbmc3k, xin"
    assert set(board.failures()["status"]) == {"needs two batches"}
    markdown = leaderboard.to_markdown(table)
    assert "| Harmony | failed | failed | failed | – | 5.00 | 0 |" in markdown
    assert r"PCA \| $x$" in markdown
    assert "<b>" not in leaderboard.to_html(table)


def test_means_are_over_the_protocols_that_all_methods_ran():
    rows = [("kNN", "PCA", 0.9), ("logistic", "PCA", 0.5), ("logistic", "scANVI", 0.6)]
    scores = pd.DataFrame(rows, columns=["protocol", "method", "value"]).assign(
        dataset="kang", task="annotation", metric="macro_f1", status="")
    assert leaderboard.standings(scores)["kang"].to_dict() == {"PCA": 0.5, "scANVI": 0.6}


def test_verdicts_are_corrected_over_data_sets_and_said_in_words(board):
    alone = benchmark("kang")[1]
    joined = board.verdicts[board.verdicts["dataset"] == "kang"]
    assert (joined["p_adjusted"].to_numpy() >= alone["p_adjusted"].to_numpy()).all()
    stands = board.standing("CellVQ")
    words = judging.in_words(stands, ["scVI"])
    assert words.count("CellVQ is ahead of scVI (+") == 3 and "200 cells, 3 seeds" in words
    assert "shuffled" not in board.words("CellVQ")
    assert not stands["baseline"].str.contains("shuffled").any()
    assert "against scVI: ahead in 3, behind in 0" in judging.counted(stands)
    assert "not compared" in board.words("nobody")


def test_one_data_set_counts_once():
    summary = benchmark("kang")[0]
    with pytest.raises(InputError, match="two benchmarks are of the data set 'kang'"):
        leaderboard.join([summary, summary])


def test_a_folder_is_read_as_it_was_written(tmp_path, board):
    for number, name in enumerate(["kang", "pbmc3k"]):
        summary, verdicts, scores, calls = benchmark(name, number)
        (tmp_path / name).mkdir()
        for what, table in (("summary", summary), ("verdicts", verdicts), ("scores", scores),
                            ("calls", calls)):
            table.to_parquet(tmp_path / name / f"{what}.parquet")
    found = leaderboard.read([tmp_path / "kang", tmp_path / "pbmc3k"])
    expected = board.table()[["kang", "pbmc3k"]]
    pd.testing.assert_frame_equal(found.table()[["kang", "pbmc3k"]], expected)
    with pytest.raises(InputError, match="no finished benchmark"):
        leaderboard.read([tmp_path])


def test_a_recorded_run_is_read_as_it_was_kept(tmp_path, board):
    leaderboard.record(board, tmp_path, "recorded on a\nday, profile real")
    found = leaderboard.recorded(tmp_path)
    assert found.about == "recorded on a day, profile real"
    pd.testing.assert_frame_equal(found.summary, board.summary, rtol=1e-3, check_dtype=False)
    assert found.words("CellVQ") == board.words("CellVQ")
    nothing = leaderboard.recorded(tmp_path / "elsewhere")
    assert nothing.table().empty and nothing.failures().empty and "yet" in nothing.words("CellVQ")


def test_figures_show_every_method_and_every_failure(board):
    part = board.summary[board.summary["metric"].eq("macro_f1")]
    ax = benchview.score_intervals(part)
    assert [text.get_text() for text in ax.get_yticklabels()] == [*METHODS, "Harmony"]
    assert sum("needs two batches" in text.get_text() for text in ax.texts) == 1
    ax = benchview.score_heatmap(part)
    assert sum(text.get_text() == "✕" for text in ax.texts) == 3
    ax = benchview.verdict_grid(board.verdicts)
    marks = sum(len(found.get_offsets()) for found in ax.collections)
    assert marks == len(board.verdicts) > 0
    with pytest.raises(InputError, match="macro_f1"):
        benchview.score_intervals(part, metric="luck")


def test_the_critical_difference_joins_what_it_cannot_part():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (20, 4)) + [0.9, 0.895, 0.5, 0.1]
    table = pd.DataFrame(noise, columns=["a", "b", "c", "d"]).rank(axis=1, ascending=False)
    found = ranking.critical_difference(table)
    assert found.groups[0] == ("a", "b") and not any({"a", "d"} <= {*g} for g in found.groups)
    ax = benchview.critical_difference(found)
    shown = [text.get_text() for text in ax.texts]
    assert all(any(f" {name} " in text for text in shown) for name in "abcd")
    assert any(text == f"critical difference {found.difference:.2f}" for text in shown)


def test_the_cost_figure_places_methods_by_time_and_memory():
    costs = pd.DataFrame({"method": ["PCA", "PCA", "scVI"], "seconds": [1.0, 3.0, 90.0],
                          "memory_mb": [100.0, 100.0, 900.0], "parameters": [1e5, 1e5, 1e6]})
    ax = benchview.cost_figure(costs)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[2, 100], [90, 900]])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
