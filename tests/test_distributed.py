"""Several processes train and encode as one does, and what they leave out costs nothing."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist

import cellvq
from cellvq import distributed, weights
from cellvq.simulate import simulate_cells

OPTIONS = {"steps": 6, "batch": "batch", "progress": False, "properties": ["cell_type"],
           "changes": {"training.thinned_share": 0.5, "training.precision": "float32"}}


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(cells=300, genes=180, cell_types=4, seed=1)


def in_processes(count, folder, work):
    """Call ``work(rank)`` in forked processes that know each other through a file."""

    def enter(rank):
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count
        )
        work(rank)
        dist.destroy_process_group()

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=enter, args=(rank,)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * count


@pytest.mark.parametrize(("engine", "quantizer", "accumulate", "stream"), [
    ("ddp", "ema", 1, True), ("ddp", "nested", 2, False), ("fsdp", "ema", 1, False),
    ("fsdp", "fsq", 2, True),
])
def test_two_processes_train_what_one_trains(
    cells, tmp_path, engine, quantizer, accumulate, stream
):
    if stream:  # from the disk, each process its own lanes
        cells.write_h5ad(tmp_path / "cells.h5ad")
        cells = tmp_path / "cells.h5ad"
    codes = (4, 16) if quantizer == "nested" else 16
    options = OPTIONS | {"quantizer": quantizer, "codes": codes, "stream": stream}
    options["changes"] = options["changes"] | {"training.accumulate": accumulate}

    def work(rank):
        run = cellvq.pretrain(cells, engine=engine, output=tmp_path / "two", **options)
        whole = weights.state_of(run.model)
        digest = torch.cat([value.double().flatten() for value in whole.values()])
        others = [torch.empty_like(digest) for _ in range(2)]
        dist.all_gather(others, digest)
        assert torch.equal(others[0], others[1])  # the same model, and codebook, on every process

    in_processes(2, tmp_path, work)
    one = cellvq.pretrain(cells, **options)
    two = cellvq.load(tmp_path / "two")
    still = options | {"changes": options["changes"] | {"training.learning_rate": 0.0}}
    start = cellvq.pretrain(cells, **still).model.state_dict()
    wanted, found = one.model.state_dict(), two.state_dict()
    for name, value in wanted.items():
        apart = value.double() - found[name].double()
        if name.endswith("into_attention.bias"):
            # The softmax does not see the bias of the keys: its gradient is rounding and nothing
            # else, which Adam blows up to steps of full length.
            apart[64:128] = 0
        # Held against how far training went. Adam lets rounding grow in a single weight whose
        # gradient is next to nothing, so no bound in numbers of its own would hold for each.
        way = (value.double() - start[name].double()).norm()
        assert apart.norm() <= 1e-4 * way + 1e-7 * value.double().norm(), name


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_processes_resume_from_their_checkpoint(cells, tmp_path, engine):
    options = OPTIONS | {"codes": 16, "engine": engine, "checkpoint_every": 4}

    class Stopped(Exception):
        pass

    def work(rank):
        write = weights.write_checkpoint

        def write_and_stop(*arguments):
            write(*arguments)
            raise Stopped

        weights.write_checkpoint = write_and_stop
        with pytest.raises(Stopped):
            cellvq.pretrain(cells, output=tmp_path / "run", **options)
        distributed.wait()
        weights.write_checkpoint = write
        resumed = cellvq.pretrain(cells, output=tmp_path / "run", resume=True, **options)
        whole = cellvq.pretrain(cells, **options)
        states = [weights.state_of(run.model) for run in (resumed, whole)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    in_processes(2, tmp_path, work)


def test_encoding_is_divided_and_merged_in_order(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(cellvq.encoding, "tokens_at_once", lambda _: 2000)  # several blocks
    run = cellvq.pretrain(cells, steps=3, codes=16, progress=False)
    torch.set_num_threads(1)
    alone = cellvq.encode(cells, run.model)

    def work(rank):
        together = cellvq.encode(cells, run.model)
        assert np.array_equal(together.obsm["X_cellvq"], alone.obsm["X_cellvq"])
        assert (together.obs["cellvq_code"] == alone.obs["cellvq_code"]).all()
        assert np.array_equal(together.obs["cellvq_confidence"], alone.obs["cellvq_confidence"])

    in_processes(2, tmp_path, work)


def test_one_process_needs_no_group():
    assert (distributed.rank(), distributed.size(), distributed.agree(0.3)) == (0, 1, 0.3)
