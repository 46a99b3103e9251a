"""The quantisers keep one contract, do not collapse, and are the same on every process."""

import copy
import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score
from test_distributed import in_processes

from cellvq import InputError, codebook
from cellvq.codebook import gathered
from cellvq.config import QuantizerConfig
from cellvq.quantize import build, diagnose, perplexity

KINDS = ("ema", "nested", "residual", "fsq", "soft")


def make(kind, codes=16, prefixes=(4,), **numbers):
    prefixes = prefixes if kind in ("nested", "residual") else ()
    return build(QuantizerConfig(kind, codes, prefixes, **numbers), width=8)


@pytest.fixture
def blobs():
    """Cells in eight well-separated groups, [800, 8], and the group of each."""
    torch.manual_seed(0)
    groups = torch.arange(800) % 8
    return torch.eye(8)[groups] * 6 + torch.randn(800, 8) * 0.2, groups


@pytest.fixture
def families():
    """Cells of eight groups in two families, of six and of two, [700, 8]; group and family."""
    torch.manual_seed(0)
    groups = torch.arange(700) % 8
    family = (groups >= 6).long()
    places = torch.eye(8)[groups] * 4 + 9 * family.unsqueeze(1)
    return places + torch.randn(700, 8) * 0.2, groups, family


def purity(codes, groups):
    """Share of cells in the most common group of their code."""
    return sum(int(groups[codes == code].bincount().max()) for code in codes.unique()) / len(groups)


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind, blobs):
    cells, groups = blobs
    quantizer = make(kind).eval()
    quantizer.start(cells)
    quantizer.settle(cells)
    with torch.no_grad():
        out = quantizer(cells)
        assert out.vectors.shape == cells.shape and out.loss.ndim == 0
        assert out.codes.dtype == torch.int64 and purity(out.codes, groups) > 0.6
        assert torch.equal(out.codes, quantizer.distances(cells).argmin(1))
        assert torch.allclose(out.vectors, quantizer.vectors_of(out.codes), atol=1e-5)
        # Whatever cells share a batch: the same code.
        alone = torch.cat([quantizer(cell[None]).codes for cell in cells[:20]])
        assert torch.equal(alone, out.codes[:20])
        rows = diagnose(quantizer, cells)
        for level, (row, size) in enumerate(zip(rows, quantizer.sizes, strict=True)):
            assert quantizer.vectors_at(level).shape == (size, 8)
            assert row["codes"] == size == len(set(quantizer.addresses(level)))
            taken = quantizer.prefix(out.codes, level)
            left = cells - quantizer.vectors_at(level)[taken]
            share = float(left.square().sum() / (cells - cells.mean(0)).square().sum())
            assert row["quantisation_error"] == pytest.approx(share, rel=1e-3)
            assert row["used"] == size - row["dead"] == len(taken.unique())
        assert rows[-1]["quantisation_error"] < {"fsq": 0.8, "residual": 0.3}.get(kind, 0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_cell(kind, blobs):
    cells = blobs[0].clone().requires_grad_()
    quantizer = make(kind)
    quantizer.start(cells.detach())
    quantizer(cells, progress=0.9).vectors.square().sum().backward()
    assert cells.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_processes_hold_one_codebook(kind, families, tmp_path):
    cells, lag = families[0], 0.3 * torch.randn(6, 64, 8)

    def learn(part, of):
        """Start, six steps in which codes die, and a rest, on one of several parts of the cells."""
        torch.manual_seed(1)
        quantizer = make(kind, decay=0.7, restart_share=0.5)
        torch.manual_seed(2)
        # Whoever is not the first starts elsewhere, and has to end where the first one does.
        for values in quantizer.state_dict().values():
            if values.is_floating_point() and kind != "soft":
                values += part
        quantizer.start(cells.tensor_split(of)[part])
        with torch.no_grad():
            for noise in lag:
                batch = cells[:64] * torch.rand(64, 1) + noise
                quantizer(batch.tensor_split(of)[part], progress=0.5)
        quantizer.settle(cells.tensor_split(of)[part])
        return torch.cat([v.double().flatten() for v in quantizer.state_dict().values()])

    one = learn(0, 1)

    def work(rank):
        mine = learn(rank, 2)
        first, second = gathered(mine[None])
        assert torch.equal(first, second)
        assert (first - one).abs().max() <= 1e-6 * one.abs().max()

    in_processes(2, tmp_path, work)


def test_k_means_start_finds_the_groups(blobs):
    cells, groups = blobs
    quantizer = build(QuantizerConfig(codes=8), width=8)
    quantizer.start(cells)
    codes = quantizer.eval()(cells).codes
    assert len(codes.unique()) == 8 and purity(codes, groups) == 1


def test_a_parent_has_the_children_that_its_cells_call_for(families):
    cells, groups, family = families
    quantizer = make("nested", codes=8, prefixes=(2,)).eval()
    quantizer.start(cells)
    codes = quantizer(cells).codes
    assert purity(codes, groups) == 1 and purity(quantizer.prefix(codes, 0), family) == 1
    # Six under the larger family, and the names follow the tree.
    names = quantizer.addresses()
    assert names == [f"C0.{child}" for child in range(6)] + ["C1.0", "C1.1"] == sorted(names)
    assert quantizer.addresses(0) == ["C0", "C1"]
    # The vector of a prefix is the mean of all cells below it.
    for code in (0, 1):
        mean = cells[quantizer.prefix(codes, 0) == code].mean(0)
        assert torch.allclose(quantizer.vectors_at(0)[code], mean, atol=1e-4)
    # The tree is saved with the codes.
    other = make("nested", codes=8, prefixes=(2,)).eval()
    other.load_state_dict(quantizer.state_dict())
    assert other.addresses() == names and torch.equal(other(cells).codes, codes)


def test_addresses_are_padded_in_the_order_of_the_tree():
    assert build(QuantizerConfig(codes=4), 2).addresses() == ["C00", "C01", "C02", "C03"]
    names = make("nested", codes=60, prefixes=(2, 24)).addresses()
    assert names[:4] == ["C0.00.0", "C0.00.1", "C0.00.2", "C0.01.0"] and names == sorted(names)


def test_training_shows_prefixes_and_use_does_not(blobs):
    cells, _ = blobs
    quantizer = make("nested", codes=64, prefixes=(2, 8), truncated_share=0.4)
    quantizer.start(cells)
    before = copy.deepcopy(quantizer).eval()
    shown, codes, _ = quantizer(cells)
    for level, share in enumerate((0.2, 0.2, 0.6)):
        is_level = (shown - before.vectors_of(codes, level)).abs().amax(1) < 1e-4
        assert float(is_level.float().mean()) == pytest.approx(share, abs=0.05)
    assert torch.allclose(before(cells).vectors, before.vectors_of(codes), atol=1e-5)


def test_before_the_start_cells_pass_unchanged(blobs):
    quantizer = build(QuantizerConfig(codes=8), width=8)
    assert torch.equal(quantizer(blobs[0]).vectors, blobs[0])


@pytest.mark.parametrize("kind", ["ema", "nested"])
def test_dead_codes_restart(kind, blobs):
    cells, _ = blobs
    quantizer = make(kind, codes=8, prefixes=(2, 4), decay=0.5)
    quantizer.start(cells)
    quantizer.codebook[1:] = 1000.0  # all codes but one are far from every cell
    quantizer.sums.copy_(quantizer.codebook * quantizer.cells.unsqueeze(1))
    for _ in range(40):
        codes = quantizer(cells).codes
    assert len(codes.unique()) == 8
    for level, (path, size) in enumerate(zip(quantizer.path, quantizer.sizes, strict=True)):
        assert torch.equal(path.unique(), torch.arange(size))  # no parent is left without a child
        for code in range(size):  # and every code has one parent
            assert len(quantizer.path[max(level - 1, 0), path == code].unique()) == 1


def test_settle_lowers_the_error(blobs):
    cells, _ = blobs
    quantizer = build(QuantizerConfig(codes=8), width=8)
    quantizer.start(cells)
    quantizer.codebook += 0.5 * torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    before = quantizer.distances(cells).min(1).values.mean()
    quantizer.settle(cells)
    assert quantizer.distances(cells).min(1).values.mean() < 0.9 * before


@pytest.mark.parametrize(("codes", "steps", "is_placed"), [(16, 200, False), (8, 40, True)])
def test_soft_codebook_learns_to_tell_groups_apart(codes, steps, is_placed, blobs):
    cells, groups = blobs
    torch.manual_seed(0)
    quantizer = make("soft", codes)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=5e-3)
    if is_placed:
        quantizer.start(cells)
    for step in range(steps):
        out = quantizer(cells, progress=step / steps)
        loss = (out.vectors - cells).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        in_training = quantizer.codebook()
        quantizer.settle(cells)
        assert torch.allclose(quantizer.eval().codebook(), in_training, atol=1e-5)
    found = quantizer(cells).codes
    assert purity(found, groups) > 0.9
    assert len(found.unique()) >= (8 if is_placed else 6)


@torch.no_grad()
def test_soft_codebook_is_kept_until_something_changes_it(blobs):
    quantizer, other = make("soft").eval(), make("soft").eval()
    first = quantizer.codebook()
    assert quantizer.codebook() is first
    quantizer.load_state_dict(other.state_dict())
    assert torch.equal(quantizer.codebook(), other.codebook())
    assert quantizer.double().codebook().dtype == torch.float64
    second = quantizer.float().codebook()
    quantizer.train().codebook()  # which moves the running statistics
    assert not torch.equal(quantizer.eval().codebook(), second)


@pytest.mark.parametrize(("numbers", "message"), [
    ({"kind": "lattice"}, "use ema, nested, residual, fsq, soft"),
    ({"kind": "nested"}, r"prefixes is \(\); nested needs rising numbers from 2"),
    ({"kind": "nested", "codes": 8, "prefixes": [8]}, r"below codes \(8\)"),
    ({"kind": "nested", "codes": 64, "prefixes": [16, 8]}, "rising numbers"),
    ({"kind": "residual", "codes": 64, "prefixes": [6]}, "a divisor of the next"),
    ({"prefixes": [4]}, "ema needs none"),
    ({"kind": "fsq", "codes": 22}, "prime factors above 7"),
    ({"kind": "fsq", "codes": 4**9}, "a wider vector"),
])
def test_silly_numbers_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        build(QuantizerConfig(**numbers), width=8)


def test_perplexity_of_even_and_of_no_usage():
    assert perplexity(torch.full((8,), 5))[0] == pytest.approx(8)
    value, used = perplexity(torch.zeros(8, dtype=torch.long))
    assert value != value and used == 0


def test_breathing_lowers_the_error_and_brings_seeds_together(monkeypatch):
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(1500, 6)) * np.linspace(4, 0.5, 6)  # without gaps, like cells
    cells = torch.from_numpy(spread + 5 * rng.normal(size=(5, 6))[rng.integers(5, size=1500)])
    cells = cells.float()
    error, agreed = {}, {}
    for breath in (0, codebook.BREATH):
        monkeypatch.setattr(codebook, "BREATH", breath)
        found = [codebook.k_means(cells, 16, np.random.default_rng(seed)) for seed in range(4)]
        near = [torch.cdist(cells, means).min(1) for means in found]
        error[breath] = np.mean([float(one.values.square().sum()) for one in near])
        agreed[breath] = np.mean([adjusted_mutual_info_score(one.indices, other.indices)
                                  for one, other in itertools.combinations(near, 2)])
        assert all(len(one.indices.unique()) == 16 for one in near)
    assert error[codebook.BREATH] < 0.995 * error[0]
    assert agreed[codebook.BREATH] > agreed[0] + 0.05


def test_k_means_of_few_or_equal_cells():
    equal = torch.zeros(5, 2)
    assert codebook.k_means(equal, 3, np.random.default_rng(0)).shape == (3, 2)
    few = torch.eye(4)
    means = codebook.k_means(few, 4, np.random.default_rng(0))
    assert torch.cdist(few, means).amin(1).max() < 1e-5
