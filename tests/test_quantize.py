"""The quantisers keep one contract and do not collapse."""

import pytest
import torch

from cellvq.config import QuantizerConfig
from cellvq.quantize import build, perplexity

KINDS = ("ema", "soft")


@pytest.fixture
def blobs():
    """Cells in eight well-separated groups, [800, 8], and the group of each."""
    torch.manual_seed(0)
    groups = torch.arange(800) % 8
    return torch.eye(8)[groups] * 6 + torch.randn(800, 8) * 0.2, groups


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind, blobs):
    cells, _ = blobs
    quantizer = build(QuantizerConfig(kind=kind, codes=16), width=8).eval()
    quantizer.start(cells)
    out = quantizer(cells)
    assert out.vectors.shape == cells.shape
    assert out.loss.ndim == 0
    assert torch.equal(out.codes, quantizer.distances(cells).argmin(1))
    # one code, one vector
    for code in out.codes.unique():
        rows = out.vectors[out.codes == code]
        assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_cell(kind, blobs):
    cells = blobs[0].clone().requires_grad_()
    quantizer = build(QuantizerConfig(kind=kind, codes=16), width=8)
    quantizer.start(cells.detach())
    quantizer(cells, progress=0.9).vectors.square().sum().backward()
    assert cells.grad.abs().sum() > 0


def test_k_means_start_finds_the_groups(blobs):
    cells, groups = blobs
    quantizer = build(QuantizerConfig(codes=8), width=8)
    quantizer.start(cells)
    codes = quantizer.eval()(cells).codes
    pairs = {(int(a), int(b)) for a, b in zip(codes, groups, strict=True)}
    assert len(pairs) == 8


def test_before_the_start_cells_pass_unchanged(blobs):
    quantizer = build(QuantizerConfig(codes=8), width=8)
    assert torch.equal(quantizer(blobs[0]).vectors, blobs[0])


def test_dead_codes_restart(blobs):
    cells, _ = blobs
    quantizer = build(QuantizerConfig(codes=8, decay=0.5), width=8)
    quantizer.start(cells)
    quantizer.codebook[1:] = 1000.0  # all codes but one are far from every cell
    quantizer.sums.copy_(quantizer.codebook * quantizer.cells.unsqueeze(1))
    quantizer.train()
    for _ in range(30):
        codes = quantizer(cells).codes
    assert len(codes.unique()) == 8


def test_settle_lowers_the_error(blobs):
    cells, _ = blobs
    quantizer = build(QuantizerConfig(codes=8), width=8)
    quantizer.start(cells)
    quantizer.codebook += 0.5 * torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    before = quantizer.distances(cells).min(1).values.mean()
    quantizer.settle(cells)
    assert quantizer.distances(cells).min(1).values.mean() < 0.9 * before


def test_soft_codebook_learns_to_tell_groups_apart(blobs):
    cells, groups = blobs
    torch.manual_seed(0)
    quantizer = build(QuantizerConfig(kind="soft", codes=16), width=8)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=5e-3)
    for step in range(200):
        out = quantizer(cells, progress=step / 200)
        loss = (out.vectors - cells).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = quantizer.eval()(cells).codes
    majority = sum(int((groups[codes == c] == groups[codes == c].mode().values).sum())
                   for c in codes.unique())
    assert majority / len(groups) > 0.9
    assert len(codes.unique()) >= 6


def test_code_does_not_depend_on_the_company(blobs):
    cells, _ = blobs
    quantizer = build(QuantizerConfig(codes=16), width=8)
    quantizer.start(cells)
    alone = torch.cat([quantizer.eval().distances(cell[None]) for cell in cells[:20]])
    assert torch.equal(alone, quantizer.distances(cells)[:20])


def test_perplexity_of_even_and_of_no_usage():
    assert perplexity(torch.full((8,), 5))[0] == pytest.approx(8)
    value, used = perplexity(torch.zeros(8, dtype=torch.long))
    assert value != value and used == 0
