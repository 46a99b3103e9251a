"""The network: padding and order do not matter, the likelihood is right, configurations hold."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import nbinom

from cellvq import InputError
from cellvq.config import (
    PRESETS,
    ModelConfig,
    QuantizerConfig,
    TrainingConfig,
    change,
    from_dict,
    preset,
)
from cellvq.decoder import Counts
from cellvq.loader import (
    LEAST_DEPTH,
    PART,
    by_length,
    cells_of_step,
    join,
    make_batch,
    share_of_step,
)
from cellvq.model import CellVQ, parameter_table


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return csr_matrix(rng.poisson(0.4, (40, 60)).astype(np.float32))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CellVQ(ModelConfig(), [f"g{i}" for i in range(60)], ["a", "b"]).eval()


def test_a_cell_does_not_see_its_batch_its_padding_or_its_order(model, counts):
    together = model.encode(make_batch(counts)).cell
    alone = torch.cat([model.encode(make_batch(counts[i])).cell for i in range(40)])
    assert torch.allclose(together, alone, atol=1e-5)
    order = np.random.default_rng(1).permutation(40)
    assert torch.allclose(together[order], model.encode(make_batch(counts[order])).cell, atol=1e-5)
    padded = make_batch(counts)
    more = torch.nn.functional.pad(padded.genes, (0, 9), value=62)
    padded = padded._replace(genes=more, padded=True)
    assert torch.allclose(together, model.encode(padded).cell, atol=1e-5)


def test_hidden_genes_do_not_leak(model, counts):
    rng = np.random.default_rng(0)
    batch = make_batch(counts, np.full(40, 50.0), hidden_share=0.5, rng=rng)
    changed = batch.counts.clone()
    changed[batch.hidden] += 7
    told = model.encode(batch._replace(counts=changed)).cell
    assert torch.allclose(model.encode(batch).cell, told)
    seen = torch.nn.functional.pad(batch.hidden, (0, 3)).gather(1, batch.genes)
    assert not seen.any()


def test_the_decoder_sees_the_batch_and_the_vector_does_not(model, counts):
    torch.nn.init.normal_(model.decoder.batch_shift)
    a, b = (model(make_batch(counts, batch=np.full(40, k))) for k in (0, 1))
    assert torch.equal(a.cell, b.cell)
    assert not torch.allclose(a.from_cell.mean, b.from_cell.mean)


def test_cell_without_counts_gives_finite_numbers(model):
    nothing = make_batch(csr_matrix((2, 60), dtype=np.float32))
    assert torch.isfinite(model.encode(nothing).cell).all()


def test_likelihood_is_that_of_scipy():
    mean, size = np.array([0.3, 2.0, 9.0]), np.array([0.7, 3.0, 20.0])
    x = np.array([[0, 1, 4], [2, 0, 11]])
    wanted = nbinom.logpmf(x, size, size / (size + mean))
    given = Counts(torch.tensor(mean).expand(2, 3), torch.tensor(size), None)
    assert np.allclose(given.log_likelihood(torch.tensor(x)), wanted)
    dropped = 0.2
    logit = torch.full((2, 3), float(np.log(dropped / (1 - dropped))), dtype=torch.float64)
    inflated = np.log((x == 0) * dropped + (1 - dropped) * np.exp(wanted))
    zinb = given._replace(dropout_logit=logit)
    assert np.allclose(zinb.log_likelihood(torch.tensor(x)), inflated)


# Every kind of network there is: the small one, and the released shape made narrow.
RELEASED = ModelConfig(
    width=16, feedforward=32, norm="post", activation="relu", prior="dense", cell_vector="pooled",
    decoder="performer", decoder_width=16, decoder_layers=1, decoder_heads=2,
    quantizer=QuantizerConfig(kind="soft", hidden_layers=5),
)


@pytest.mark.parametrize("config", [ModelConfig(), RELEASED, ModelConfig(likelihood="nb")])
def test_every_parameter_learns(config, counts):
    torch.manual_seed(0)
    model = CellVQ(config, [f"g{i}" for i in range(60)], ["a", "b"], {"kind": ["x", "y"]}).train()
    batch = make_batch(counts, batch=np.arange(40) % 2)
    out = model(batch, progress=0.4)
    loss = sum(made.log_likelihood(batch.counts).mean() for made in (out.from_cell, out.from_code))
    (loss + out.quantized.loss + out.properties["kind"].square().mean()).backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    # Zero at the start by design: these reach the output through weights that begin at zero. The
    # released decoder has one head more than its likelihood needs.
    allowed = {"decoder.into_bend.weight", "decoder.into_bend.bias", "decoder.batch_embedding"}
    assert {name for name in silent if "performer.value" not in name} <= allowed


def test_the_released_shape_pools_as_released(counts):
    torch.manual_seed(0)
    model = CellVQ(RELEASED, [f"g{i}" for i in range(60)]).eval()
    cell, summary = model.encode(make_batch(counts))
    assert cell.shape == (40, 64) and summary.shape == (40, 16)
    source, target, largest, _ = cell.split(16, dim=1)
    assert torch.equal(summary, torch.stack([source, target, largest]).amax(0))
    alone = torch.cat([model.encode(make_batch(counts[i])).cell for i in range(40)])
    assert torch.allclose(cell, alone, atol=1e-5)


def test_folding_the_prior_changes_nothing(counts):
    torch.manual_seed(0)
    model = CellVQ(RELEASED, [f"g{i}" for i in range(60)]).eval()
    torch.nn.init.normal_(model.prior.matrix)
    folded, batch = model.fold_prior(), make_batch(counts)
    assert torch.allclose(model(batch).cell, folded(batch).cell, atol=1e-6)
    assert torch.equal(model(batch).quantized.codes, folded(batch).quantized.codes)
    assert folded.prior is None and "prior" not in parameter_table(folded)


def test_the_target_depth_is_seen_and_scales_the_prediction(model, counts):
    near, far = (model(make_batch(counts, target_depth=depth)) for depth in (100.0, 200.0))
    assert not torch.allclose(near.cell, far.cell)
    decoded = [model.decoder(near.cell, torch.full((40,), depth), torch.full((40,), -1), None).mean
               for depth in (100.0, 200.0)]
    assert torch.allclose(decoded[0] * 2, decoded[1])


def test_thinned_cells_are_shown_less_and_predicted_whole(counts):
    deep, depth = counts * 20, np.full(40, 600.0)
    batch = make_batch(deep, depth, thinned_share=1.0, rng=np.random.default_rng(0))
    assert torch.equal(batch.counts, torch.from_numpy(deep.toarray()))
    assert (batch.seen <= batch.counts).all() and batch.target.tolist() == depth.tolist()
    kept = batch.seen.sum(1) / batch.counts.sum(1)
    assert torch.allclose(kept, batch.depth / batch.target, atol=0.1)
    assert LEAST_DEPTH - 0.1 < kept.min() < 0.4 and 0.8 < kept.max() <= 1
    none = make_batch(deep, depth, thinned_share=1e-9, rng=np.random.default_rng(0))
    assert torch.equal(none.seen, none.counts) and torch.equal(none.depth, none.target)


def test_a_step_is_the_same_in_any_number_of_parts():
    cells = np.arange(100)
    for parts in (1, 2, 3):
        shares = [share_of_step(64, parts, part) for part in range(parts)]
        assert np.array_equal(np.concatenate([cells[s] for s in shares]), cells[:64])
        assert all(s.start % PART == 0 and s.stop - s.start >= PART for s in shares)


def test_joined_batches_are_the_batch(model, counts):
    whole = model(make_batch(counts))
    parts = join([make_batch(counts[:7]), make_batch(counts[7:])], 60)
    assert torch.allclose(whole.cell, model(parts).cell, atol=1e-5)
    assert torch.equal(parts.counts, make_batch(counts).counts)


def test_loader_holds_out_the_asked_share_and_caps_tokens(counts):
    rng = np.random.default_rng(0)
    batch = make_batch(counts, hidden_share=0.25, max_tokens=7, rng=rng)
    assert 0.2 < batch.hidden.float().mean() < 0.3
    assert batch.genes.shape[1] == 7
    expressed = [set(counts[i].indices) for i in range(40)]
    for row, genes in zip(batch.genes.tolist(), expressed, strict=True):
        assert set(row) - {62} <= genes
        assert sorted(row) == row


def test_blocks_cover_every_cell_once_and_stay_small(counts):
    blocks = list(by_length(counts, size=200))
    assert sorted(np.concatenate(blocks)) == list(range(40))
    lengths = np.diff(counts.indptr) + 1
    assert all(len(b) * lengths[b].max() <= 200 for b in blocks)


def test_steps_of_an_epoch_see_every_cell_once():
    seen = np.concatenate([cells_of_step(np.arange(20), 5, step, seed=3) for step in range(4)])
    assert sorted(seen) == list(range(20))
    again = cells_of_step(np.arange(20), 5, 4, seed=3)
    assert not np.array_equal(again, seen[:5])


def test_configurations_round_trip_and_refuse_nonsense():
    for name in PRESETS:
        config = preset(name).model
        saved = json.loads(json.dumps(dataclasses.asdict(config)))
        assert from_dict(ModelConfig, saved) == config
    nested = QuantizerConfig(kind="nested", codes=64, prefixes=[8])
    assert from_dict(QuantizerConfig, dataclasses.asdict(nested)) == nested
    wanted = {"training.clip": 2, "model.width": 8}
    model, training = change(ModelConfig(), TrainingConfig(), wanted)
    assert (model.width, training.clip) == (8, 2.0)
    for wrong in (
        lambda: ModelConfig(width=10, heads=3),
        lambda: ModelConfig(likelihood="poisson"),
        lambda: QuantizerConfig(kind="soft", codes=20),
        lambda: QuantizerConfig(kind="other"),
        lambda: TrainingConfig(hidden_share=1.0),
        lambda: preset("huge"),
        lambda: from_dict(ModelConfig, {"width": 64}),
        lambda: change(ModelConfig(), TrainingConfig(), {"training.speed": 3}),
        lambda: change(ModelConfig(), TrainingConfig(), {"model.width": "wide"}),
        lambda: TrainingConfig(hidden_share=0, thinned_share=0),
        lambda: TrainingConfig(accumulate=3),
    ):
        with pytest.raises(InputError):
            wrong()


def test_bf16_agrees_with_float32(counts):
    torch.manual_seed(0)
    wide = CellVQ(ModelConfig(width=256), [f"g{i}" for i in range(60)]).eval()
    batch = make_batch(counts)
    exact = wide.encode(batch).cell
    with torch.autocast("cpu", torch.bfloat16):
        rough = wide.encode(batch).cell
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(exact, rough).min() > 0.999
    assert not torch.equal(exact, rough)  # bf16 really took part


def test_parameter_table_adds_up(model):
    assert sum(parameter_table(model).values()) == sum(p.numel() for p in model.parameters())
