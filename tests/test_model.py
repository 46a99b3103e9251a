"""The network: padding and order do not matter, the likelihood is right, configurations hold."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import nbinom

from cellvq import InputError
from cellvq.config import PRESETS, ModelConfig, QuantizerConfig, TrainingConfig, from_dict, preset
from cellvq.loader import by_length, cells_of_step, make_batch
from cellvq.model import CellVQ, Counts, parameter_table


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return csr_matrix(rng.poisson(0.4, (40, 60)).astype(np.float32))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CellVQ(ModelConfig(), [f"g{i}" for i in range(60)], ["a", "b"]).eval()


def test_a_cell_does_not_see_its_batch_its_padding_or_its_order(model, counts):
    together = model.encode(make_batch(counts))
    alone = torch.cat([model.encode(make_batch(counts[i])) for i in range(40)])
    assert torch.allclose(together, alone, atol=1e-5)
    order = np.random.default_rng(1).permutation(40)
    assert torch.allclose(together[order], model.encode(make_batch(counts[order])), atol=1e-5)
    padded = make_batch(counts)
    padded = padded._replace(genes=torch.nn.functional.pad(padded.genes, (0, 9), value=60))
    assert torch.allclose(together, model.encode(padded), atol=1e-5)


def test_hidden_genes_do_not_leak(model, counts):
    rng = np.random.default_rng(0)
    batch = make_batch(counts, np.full(40, 50.0), hidden_share=0.5, rng=rng)
    changed = batch.counts.clone()
    changed[batch.hidden] += 7
    assert torch.allclose(model.encode(batch), model.encode(batch._replace(counts=changed)))
    seen = torch.nn.functional.pad(batch.hidden, (0, 1)).gather(1, batch.genes)
    assert not seen.any()


def test_the_decoder_sees_the_batch_and_the_vector_does_not(model, counts):
    torch.nn.init.normal_(model.decoder.batch_shift)
    a, b = (model(make_batch(counts, batch=np.full(40, k))) for k in (0, 1))
    assert torch.equal(a.cell, b.cell)
    assert not torch.allclose(a.from_cell.mean, b.from_cell.mean)


def test_cell_without_counts_gives_finite_numbers(model):
    assert torch.isfinite(model.encode(make_batch(csr_matrix((2, 60), dtype=np.float32)))).all()


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


def test_every_parameter_learns(model, counts):
    model.train()
    model.quantizer.start(model.encode(make_batch(counts)).detach(), seed=0) if False else None
    out = model(make_batch(counts, batch=np.arange(40) % 2))
    loss = -out.from_cell.log_likelihood(torch.from_numpy(counts.toarray())).mean()
    loss.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # Zero at the start by design: these reach the output through weights that begin at zero.
    assert set(silent) <= {"decoder.into_bend.weight", "decoder.into_bend.bias",
                           "decoder.batch_embedding"}


def test_loader_holds_out_the_asked_share_and_caps_tokens(counts):
    rng = np.random.default_rng(0)
    batch = make_batch(counts, hidden_share=0.25, max_tokens=7, rng=rng)
    assert 0.2 < batch.hidden.float().mean() < 0.3
    assert batch.genes.shape[1] == 7
    expressed = [set(counts[i].indices) for i in range(40)]
    for row, genes in zip(batch.genes.tolist(), expressed, strict=True):
        assert set(row) - {60} <= genes
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
        assert from_dict(ModelConfig, dataclasses.asdict(config)) == config
    for wrong in (
        lambda: ModelConfig(width=10, heads=3),
        lambda: ModelConfig(likelihood="poisson"),
        lambda: QuantizerConfig(kind="soft", codes=20),
        lambda: QuantizerConfig(kind="other"),
        lambda: TrainingConfig(hidden_share=1.0),
        lambda: preset("huge"),
        lambda: from_dict(ModelConfig, {"width": 64}),
    ):
        with pytest.raises(InputError):
            wrong()


def test_bf16_agrees_with_float32(counts):
    torch.manual_seed(0)
    wide = CellVQ(ModelConfig(width=256), [f"g{i}" for i in range(60)]).eval()
    batch = make_batch(counts)
    exact = wide.encode(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = wide.encode(batch)
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(exact, rough).min() > 0.999
    assert not torch.equal(exact, rough)  # bf16 really took part


def test_parameter_table_adds_up(model):
    assert sum(parameter_table(model).values()) == sum(p.numel() for p in model.parameters())
