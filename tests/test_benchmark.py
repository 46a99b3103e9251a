"""The benchmark: resumes where it stopped, keeps failures in sight, survives bad columns."""

import functools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import cellvq
from cellvq import InputError, ablation, benchrun, benchstore, contenders, entries
from cellvq.scores import KMEANS, SHUFFLED
from cellvq.simulate import simulate_cells

QUICK = {"methods": ["PCA", "PCA, unscaled"], "tasks": ["clustering"], "progress": False}


@pytest.fixture(scope="module")
def cells():
    cells = simulate_cells(cells=300, seed=1)
    cells.obsm["X_mine"] = np.random.default_rng(0).normal(size=(300, 4)).astype("float32")
    return cells


def test_prepare_says_what_it_leaves_out_and_changes_nothing(cells):
    given = cells.copy()
    given.obs["cell_type"] = given.obs["cell_type"].astype(object)
    given.obs.iloc[:7, given.obs.columns.get_loc("cell_type")] = np.nan
    given.obs.iloc[7, given.obs.columns.get_loc("cell_type")] = "alone"
    given.X = scipy.sparse.diags((np.arange(300) != 8).astype("float32")) @ given.X
    before = given.copy()
    data = entries.prepare(given, "cell_type", batch="batch", donor="donor")
    pd.testing.assert_frame_equal(given.obs, before.obs)
    assert (given.X != before.X).sum() == 0
    assert data.cells.n_obs == 299 and data.kept.sum() == 299
    text = " ".join(data.notes)
    assert "1 cells without a count" in text and "7 cells without a value" in text
    assert "alone (1)" in text
    assert (data.labels() == "").sum() == 7


@pytest.mark.parametrize("label", [None, "nowhere", "empty", "one value"])
def test_without_labels_a_clear_line_and_the_rest_runs(cells, label):
    cells = cells.copy()
    cells.obs["empty"], cells.obs["one value"] = np.nan, "T cell"
    data = entries.prepare(cells, label)
    assert len(data.notes) == 1 and "\n" not in data.notes[0]
    assert (data.label is None) == (label != "one value")


@pytest.mark.parametrize("role", ["batch", "donor", "study"])
def test_a_column_that_is_not_there_is_named(cells, role):
    with pytest.raises(InputError, match=f"no column 'nowhere' for the {role}; there are"):
        entries.prepare(cells, "cell_type", **{role: "nowhere"})


def test_fingerprint_changes_with_counts_and_columns(cells):
    one = entries.prepare(cells, "cell_type")
    assert entries.prepare(cells.copy(), "cell_type").fingerprint == one.fingerprint
    other = cells.copy()
    other.X = other.X * 2
    relabelled = cells.copy()
    relabelled.obs["cell_type"] = relabelled.obs["cell_type"].to_numpy()[::-1]
    batched = entries.prepare(cells, "cell_type", batch="batch")
    changed = {entries.prepare(each, "cell_type").fingerprint for each in (other, relabelled)}
    assert len(changed | {one.fingerprint, batched.fingerprint}) == 4


def test_thinned_counts_do_not_tell_the_depth_they_had(cells):
    data = entries.prepare(cells, "cell_type")
    half = (data.cells.X[:50] / 2).floor()
    thinned = entries.subset(data, np.arange(50), half)
    np.testing.assert_array_equal(thinned.depth, np.asarray(half.sum(1)).ravel())


def test_an_interrupted_benchmark_goes_on_and_ends_the_same(cells, tmp_path):
    called = []

    def stopped(cells, seed):
        called.append(seed)
        if called == [0, 1]:
            raise KeyboardInterrupt
        return np.asarray(cells.X[:, :5].toarray()) + seed

    def run(folder):
        return cellvq.benchmark(cells, "cell_type", competitors=[stopped], seeds=2,
                                output=tmp_path / folder, **QUICK)

    with pytest.raises(KeyboardInterrupt):
        run("a")
    assert not list((tmp_path / "a").rglob("*partial*"))
    resumed = run("a")
    assert called == [0, 1, 1]  # the first seed was not made again
    whole = run("b")
    columns = ["method", "task", "metric", "seed", "value"]
    pd.testing.assert_frame_equal(resumed.scores[columns], whole.scores[columns])
    again = run("a")
    assert called == [0, 1, 1, 0, 1] and again.words == resumed.words
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a" / "scores.parquet"), again.scores)


def test_failures_are_rows_and_the_others_are_scored(cells, tmp_path):
    def broken(cells):
        raise ZeroDivisionError("<b>nothing</b>")

    found = cellvq.benchmark(
        cells, "cell_type", "batch", seeds=1, output=tmp_path, obsm=["X_mine", "X_none"],
        competitors={"<i>broken": broken, "short": np.zeros((299, 2)),
                     "same": cells.obsm["X_mine"]}, **QUICK)
    failed = found.scores[found.scores["status"] != ""].groupby("method")["status"].first()
    assert failed["short"].startswith("short gives 299 vectors for 300 cells")
    assert failed["<i>broken"] == "ZeroDivisionError: <b>nothing</b>"
    assert failed["X_none"].startswith("obsm has no 'X_none'")
    assert found.scores.loc[found.scores["method"].isin(failed.index), "value"].isna().all()
    values = found.scores.query("metric == 'ari'").groupby("method")["value"].mean()
    assert values["PCA"] > 0.8 > 0.1 > abs(values["X_mine"])
    assert values["same"] == values["X_mine"]
    assert abs(values["PCA" + SHUFFLED]) < 0.1
    page = (tmp_path / "report.html").read_text()
    assert "ZeroDivisionError" in page and "&lt;i&gt;broken" in page
    assert "<i>" not in page and "<b>" not in page
    verdict = found.verdicts.query("method == 'X_mine' and baseline == 'PCA' and metric == 'ari'")
    assert set(verdict["verdict"]) == {"behind"} and (verdict["high"] < 0).all()


def test_the_code_is_judged_beside_k_means_with_as_many_groups(cells, monkeypatch):
    def halves(data, seed, budget):
        codes = np.where(np.arange(data.cells.n_obs) % 2, "C0", "C1").astype(object)
        return contenders.Made(np.asarray(data.cells.obsm["X_mine"]), {}, codes)

    halving = contenders.Contender("halving", halves, "CellVQ")
    monkeypatch.setattr(contenders, "CONTENDERS", (halving, *contenders.CONTENDERS))
    found = cellvq.benchmark(cells, "cell_type", seeds=1, **QUICK | {"methods": ["halving", "PCA"]})
    codes = found.scores.query("representation == 'code' and metric == 'nmi'").set_index("method")
    assert codes["n_groups"][KMEANS] == codes["n_groups"]["halving"] == 2
    assert codes["value"][KMEANS] > 0.2 > codes["value"]["halving"]
    verdict = found.verdicts.query("baseline == @KMEANS and metric == 'nmi'")
    assert verdict["verdict"].tolist() == ["behind"]


def test_folders_of_other_cells_and_wrong_names_are_refused(cells, tmp_path):
    cellvq.benchmark(cells, "cell_type", seeds=1, output=tmp_path / "a", **QUICK)
    with pytest.raises(InputError, match="other cells or columns"):
        cellvq.benchmark(cells[:200].copy(), "cell_type", seeds=1, output=tmp_path / "a", **QUICK)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for wrong, words in (({"output": tmp_path / "full"}, "holds no benchmark"),
                         ({"tasks": ["karaoke"]}, "no task is called"),
                         ({"methods": ["PCR"]}, "no method is called"),
                         ({"seeds": []}, "needs a seed")):
        with pytest.raises(InputError, match=words):
            cellvq.benchmark(cells, "cell_type", **(QUICK | wrong))


def test_damaged_files_are_made_again(tmp_path):
    entry = entries.Entry("PCA", 0, np.ones((3, 2), "float32"), np.array(["a", "b", "a"], object))
    benchstore.write_entry(entry, tmp_path, "key")
    back = benchstore.read_entry(tmp_path, "PCA", 0, "key")
    assert back.codes.tolist() == ["a", "b", "a"] and back.vectors.dtype == np.float32
    path = benchstore.entry_path(tmp_path, "PCA", 0)
    path.write_bytes(path.read_bytes()[:100])
    assert benchstore.read_entry(tmp_path, "PCA", 0, "key") is None


def test_labels_are_shuffled_among_labelled_cells_only(cells):
    cells = cells.copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[:20, cells.obs.columns.get_loc("cell_type")] = np.nan
    data = entries.prepare(cells, "cell_type")
    mixed = benchrun.shuffled(data, 0)
    np.testing.assert_array_equal(mixed.labels() == "", data.labels() == "")
    assert sorted(mixed.labels()) == sorted(data.labels())
    assert (mixed.labels() != data.labels()).mean() > 0.3


def _noise(cells, seed, scale):
    return scale * np.random.default_rng(seed).normal(size=(cells.n_obs, 3))


def test_a_competitor_is_known_by_its_text_and_by_what_is_bound_to_it(cells, tmp_path):
    data = entries.prepare(cells, "cell_type")

    def closure(scale):
        return lambda cells, seed: scale * _noise(cells, seed, 1)

    for bind in (closure, lambda scale: functools.partial(_noise, scale=scale)):
        same, again, other = (contenders.of_function("mine", bind(n)).identity(data)
                              for n in (1, 1, 2))
        assert same == again != other


def test_processes_know_a_function_of_a_notebook_by_the_text_it_had_there(cells, monkeypatch):
    data = entries.prepare(cells, "cell_type")
    contender = contenders.of_function("mine", _noise)
    monkeypatch.setattr(contenders.inspect, "getsource", None)
    assert "default_rng" in contender.identity(data)


def test_every_variant_of_the_ablation_differs_from_the_model_as_it_is(cells):
    variants = {name: changed | {"init": None} for name, changed in ablation.VARIANTS.items()
                if name in (ablation.FULL, "no warm start", "16 axes")}
    found = cellvq.benchmark(
        cells, "cell_type", methods=["PCA"], tasks=["clustering", "annotation"], seeds=1,
        competitors=ablation.competitors(variants, steps=2), progress=False)
    assert found.scores["status"].fillna("").eq("").all()
    effects = ablation.effects(found.verdicts)
    assert set(effects["taken back"]) == {"PCA", "no warm start", "16 axes"}
    assert effects["difference"].abs().gt(0).all()


def test_the_terminal_is_told_of_failures_and_of_what_was_left_out(cells):
    found = cellvq.benchmark(
        cells, "cell_type", "cell_type", seeds=1, methods=["PCA"], obsm=["X_gone", "X_mine"],
        tasks=["clustering", "integration"], progress=False)
    said = str(found).splitlines()
    assert "X_mine is behind PCA" in said[0]
    assert any(line.startswith("failed: X_gone (clustering") and "obsm has no" in line
               for line in said)
    assert any(line.startswith("note: Integration") and "confounded" in line for line in said)
