"""Cells read from the disk in shuffled blocks: the same cells, well mixed, exactly resumed."""

import os
import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import cellvq
from cellvq import InputError, corpus, loader, objective, weights
from cellvq.config import TrainingConfig
from cellvq.files import File, is_streamable
from cellvq.joined import Joined, as_text
from cellvq.simulate import simulate_cells
from cellvq.sources import Memory, open_source
from cellvq.stream import Stream


@pytest.fixture(scope="module")
def cells():
    """Cells sorted by type, the worst case for blocks of neighbours."""
    cells = simulate_cells(cells=3000, genes=200, cell_types=4, seed=2)
    return cells[np.argsort(cells.obs["cell_type"].cat.codes.to_numpy(), kind="stable")].copy()


@pytest.fixture(scope="module")
def path(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "sorted.h5ad"
    cells.write_h5ad(path, compression="gzip")
    return path


def streamed(path, cells, batch_size=64, seed=0, keep=None, window=1024):
    together = Joined([open_source(path)], list(cells.var_names))
    keep = np.ones(len(together), bool) if keep is None else keep
    return Stream(together, keep, batch_size, seed, window)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr", "dense", "layer", "raw", "logarithms"])
def test_any_rows_of_a_file_are_those_in_memory(cells, tmp_path, form):
    some = cells[:300].copy()
    counts = some.X.copy()
    if form == "dense":
        some.X = counts.toarray()
    elif form == "layer":
        some.layers["counts"], some.X = counts, counts.multiply(0.37).tocsr()
    elif form == "raw":
        some.raw = anndata.AnnData(counts, var=some.var)
        some.X = counts.multiply(0.37).tocsr()
    elif form == "logarithms":
        some.X = (counts.multiply(1e4 / counts.sum(1)).tocsr()).log1p().astype(np.float32)
    some.write_h5ad(tmp_path / "some.h5ad")
    file = File(tmp_path / "some.h5ad")
    rows = [range(250, 300), range(3, 4), range(0, 2), range(100, 100)]
    wanted = counts[np.concatenate([list(part) for part in rows]).astype(int)]
    assert (file.read(rows) != wanted).nnz == 0
    assert (file.expressed() == np.diff(counts.indptr)).all()
    assert list(file.names()) == list(some.obs_names)
    assert (file.column("cell_type").astype(str) == some.obs["cell_type"].astype(str).values).all()


def test_values_that_are_no_counts_are_met_where_they_lie(cells, tmp_path):
    spoilt = cells[:2000].copy()
    values = spoilt.X.toarray()
    values[1110, 5] = 0.25  # between the blocks that are looked at first
    spoilt.X = scipy.sparse.csr_matrix(values)
    spoilt.write_h5ad(tmp_path / "spoilt.h5ad")
    file = File(tmp_path / "spoilt.h5ad")
    file.read([range(0, 900)])
    with pytest.raises(InputError, match="X holds values such as 0.25 .*rows 1,100 to 1,200"):
        file.read([range(1100, 1200)])


def test_a_matrix_stored_by_genes_is_loaded_instead(cells, tmp_path):
    some = cells[:50].copy()
    some.X = some.X.tocsc()
    some.write_h5ad(tmp_path / "by genes.h5ad")
    assert not is_streamable(tmp_path / "by genes.h5ad")
    source = open_source(tmp_path / "by genes.h5ad")
    assert (source.read([range(50)]) != cells.X[:50]).nnz == 0


def test_depth_comes_from_obs_where_it_knows_more(cells, tmp_path):
    some = cells[:100].copy()
    some.obs["total_counts"] = np.asarray(some.X.sum(1)).ravel() + np.arange(100)
    some.write_h5ad(tmp_path / "some.h5ad")
    together = Joined([File(tmp_path / "some.h5ad")], list(some.var_names[:50]))
    assert (together.read([range(100)]).depth == some.obs["total_counts"]).all()


# --- many as one ---------------------------------------------------------------------------------


def test_files_of_different_genes_are_aligned_as_they_are_read(cells, path):
    rng = np.random.default_rng(0)
    order = rng.permutation(200)[:150]
    other = cells[:500, order].copy()
    panel = list(rng.permutation(cells.var_names)[:120]) + ["NEVER SEEN"]
    together = Joined([File(path), Memory(other, "other")], panel)
    rows = together.read([range(2990, 3010), range(3499, 3500), range(5, 6)])
    wanted = pd.DataFrame(cells.X.toarray(), columns=cells.var_names)
    wanted["NEVER SEEN"] = 0
    second = wanted.iloc[:500].copy()
    second[cells.var_names.difference(other.var_names)] = 0
    wanted = pd.concat([wanted, second], ignore_index=True)[panel].to_numpy()[rows.cells]
    assert (rows.counts.toarray() == wanted).all()
    assert list(rows.cells) == [*range(2990, 3010), 3499, 5]
    known = np.isin(panel, other.var_names)
    assert (together.measured == [np.array(panel) != "NEVER SEEN", known]).all()


def test_genes_that_share_a_name_are_summed(cells):
    twice = cells[:10].copy()
    twice.var_names = [*twice.var_names[:-1], twice.var_names[0]]
    together = Joined([Memory(twice)], [twice.var_names[0]])
    counts = cells.X[:10].toarray()
    assert (together.read([range(10)]).counts.toarray()[:, 0] == counts[:, 0] + counts[:, -1]).all()


def test_columns_become_text_by_their_categories():
    values = pd.Series(["b", " ", None, "a", "b"], dtype="category")
    assert as_text(values).tolist() == ["b", np.nan, np.nan, "a", "b"]
    assert as_text(pd.Series([2, 1, 2])).tolist() == ["2", "1", "2"]


# --- steps ---------------------------------------------------------------------------------------


def test_an_epoch_shows_each_training_cell_once_with_its_own_counts(cells, path):
    keep = np.random.default_rng(1).random(3000) < 0.8
    stream = streamed(path, cells, keep=keep)
    seen = [stream.step(step) for step in range(stream.steps_per_epoch)]
    numbers = np.concatenate([rows.cells for rows in seen])
    assert len(numbers) == len(set(numbers)) > 0.9 * keep.sum() and keep[numbers].all()
    counts = scipy.sparse.vstack([rows.counts for rows in seen])
    assert (counts != cells.X[numbers]).nnz == 0
    again = stream.step(stream.steps_per_epoch).cells  # the next epoch, in another order
    assert set(again) != set(numbers[:64])


def test_any_step_can_be_asked_for_first(cells, path):
    stream = streamed(path, cells)
    steps = 2 * stream.steps_per_epoch + 3  # into the third epoch
    in_turn = [stream.step(step).cells for step in range(steps)]
    for step in (steps - 1, 7, stream.steps_per_epoch):
        assert (streamed(path, cells).step(step).cells == in_turn[step]).all()
    assert not (streamed(path, cells, seed=1).step(7).cells == in_turn[7]).all()


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_share_a_step_without_overlap_and_read_their_own_lanes(cells, path, processes):
    whole, parts = streamed(path, cells), [streamed(path, cells) for _ in range(processes)]
    shares = [loader.share_of_step(64, processes, rank) for rank in range(processes)]
    for step in range(whole.steps_per_epoch):
        found = [part.step(step, share).cells for part, share in zip(parts, shares, strict=True)]
        assert (np.concatenate(found) == whole.step(step).cells).all()
    if processes == 2:  # each process opened half of the lanes
        assert {key[1] for key in parts[0]._windows} == {0, 1, 2, 3}


def test_blocks_of_neighbours_are_mixed_as_well_as_random_cells(cells, path):
    types = cells.obs["cell_type"].cat.codes.to_numpy()
    stream, rng = streamed(path, cells), np.random.default_rng(0)

    def entropy(numbers):
        shares = np.bincount(types[numbers]) / len(numbers)
        return -(shares[shares > 0] * np.log(shares[shares > 0])).sum()

    steps = 3 * stream.steps_per_epoch
    ours = np.mean([entropy(stream.step(step).cells) for step in range(steps)])
    random = np.mean([entropy(rng.choice(3000, 64, replace=False)) for _ in range(500)])
    assert ours > 0.98 * random
    sorted_cells = np.mean([entropy(np.arange(first, first + 64)) for first in range(0, 2900, 64)])
    assert sorted_cells < 0.3 * random  # what reading in order would give


def test_few_cells_and_odd_batches_still_make_steps(cells, path):
    for count, batch_size in ((5, 64), (64, 64), (70, 7), (300, 61), (3000, 2000)):
        keep = np.zeros(3000, bool)
        keep[np.random.default_rng(count).permutation(3000)[:count]] = True
        stream = streamed(path, cells, batch_size, keep=keep)
        seen = np.concatenate([stream.step(s).cells for s in range(stream.steps_per_epoch)])
        assert len(seen) == len(set(seen)) >= 0.6 * count and keep[seen].all()
    with pytest.raises(InputError, match="no cell is left to train on"):
        streamed(path, cells, keep=np.zeros(3000, bool))


# --- training ------------------------------------------------------------------------------------


def test_a_streamed_corpus_has_the_same_split_panel_and_labels(cells, path):
    arguments = (150, None, "donor", TrainingConfig(), ["cell_type"])
    whole = corpus.gather(path, *arguments, stream=False)
    parts = corpus.gather(path, *arguments, stream=True)
    assert (whole.panel, whole.split, whole.labels) == (parts.panel, parts.split, parts.labels)
    assert parts.size == whole.size and parts.training_cells == whole.training_cells
    taken = parts.step(TrainingConfig(), 3, slice(0, 64))
    rows = parts.stream.step(3).cells
    assert not set(rows) & set(whole.validation)
    assert (taken.properties == whole.properties[rows]).all()
    assert (taken.counts != whole.counts[rows]).nnz == 0
    assert (taken.depth == whole.depth[rows]).all()
    held = set(map(tuple, whole.counts[whole.validation].toarray()))
    assert set(map(tuple, parts.counts[parts.validation].toarray())) == held
    profile, other = (objective.mean_profile(data, torch.tensor([1e4])) for data in (whole, parts))
    assert torch.allclose(profile.mean, other.mean, rtol=1e-4)
    assert whole.fingerprint() != parts.fingerprint()


def test_a_killed_streamed_run_resumes_bit_for_bit_mid_epoch(path, tmp_path):
    def command(output):
        return [sys.executable, "-m", "cellvq", "pretrain", str(path), "--stream", "--steps", "40",
                "--codes", "8", "--batch", "batch", "--donor", "donor", "--checkpoint-every", "5",
                "--set", "training.batch_size=32", "--resume", "--output", str(tmp_path / output)]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), env=environment, check=True, capture_output=True)
    process = subprocess.Popen(command("killed"), env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    checkpoint, end = tmp_path / "killed" / "checkpoint.safetensors", time.time() + 120
    while not checkpoint.exists() and time.time() < end:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert checkpoint.exists()
    subprocess.run(command("killed"), env=environment, check=True, capture_output=True)
    first, second = (weights.read_model(tmp_path / name)[0].state_dict()
                     for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_streamed_run_learns(cells, path):
    run = cellvq.pretrain(path, stream=True, steps=60, codes=8, batch="batch", progress=False)
    last = run.history.iloc[-1]
    assert last.validation_cell < last.validation_mean
    assert last.validation_code < last.validation_mean and last.codes_used > 4
