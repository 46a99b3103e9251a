"""The released checkpoint: imported, it says what a plain reference of the release says."""

import math
import os
import time

import numpy as np
import pytest
import torch
from anndata import AnnData
from official_reference import NARROW, Reference, Sizes, decode, random_checkpoint
from scipy.sparse import csr_matrix

import cellvq
from cellvq import InputError, loader, weights
from cellvq.config import ModelConfig, QuantizerConfig, preset
from cellvq.model import CellVQ
from cellvq.official import import_official, schema
from cellvq.performer import PerformerDecoder, linear_attention, random_projection

PANEL = [f"gene {i}" for i in range(NARROW.genes)]


def config_of(sizes: Sizes) -> ModelConfig:
    """The configuration whose layout has these sizes."""
    return ModelConfig(
        width=sizes.width, layers=sizes.layers, heads=sizes.heads, feedforward=sizes.feedforward,
        norm="post", activation="relu", value_bins=sizes.bins, prior="dense", cell_vector="pooled",
        decoder="performer", decoder_width=sizes.decoder_width, panel_size=sizes.genes,
        decoder_layers=sizes.decoder_layers, decoder_heads=sizes.decoder_heads,
        quantizer=QuantizerConfig(
            kind="soft", codes=2**sizes.bits, hidden=sizes.code_hidden, hidden_layers=5,
            width=sizes.code_width,
        ),
    )


def draw_cells(cells: int, genes: int, fewest: int, most: int) -> torch.Tensor:
    """Counts [cells, genes] of cells with very different numbers of expressed genes."""
    rng = np.random.default_rng(0)
    counts = rng.geometric(0.3, (cells, genes))
    expressed = np.linspace(fewest, most, cells).astype(int)[:, None]
    order = rng.random((cells, genes)).argsort(1)
    return torch.from_numpy(np.where(order < expressed, counts, 0)).float()


@pytest.fixture(scope="module")
def cells():
    return draw_cells(40, NARROW.genes, 3, 140)


@pytest.fixture(scope="module")
def state(cells):
    return random_checkpoint(NARROW, cells=cells)


def save(folder, state, **others):
    path = folder / "models.ckpt"
    torch.save({"m1": state, "m2": state, "config": {"width": 48}} | others, path)
    return path


def bring_in(path, output, mode="m1", **others):
    """Import a narrow checkpoint."""
    given = {"panel": PANEL, "config": config_of(NARROW), "properties": NARROW.properties}
    return import_official(path, mode, output, **given | others)


def encode(model, counts, target_depth):
    """Embeddings and codes of cells in batches of cells with unlike numbers of genes."""
    parts = []
    with torch.no_grad():
        for block in counts.split(7):
            batch = loader.make_batch(csr_matrix(block.numpy()), target_depth=target_depth)
            encoded = model.encode(batch)
            taken = model.quantizer(encoded.summary)
            parts.append((encoded.cell, taken.codes, taken.vectors))
    return (torch.cat(part) for part in zip(*parts, strict=True))


def compare(model, reference, counts, target_depth):
    """Hold a model against the reference, cell by cell."""
    embedding, codes, vectors = encode(model, counts, target_depth)
    wanted = [reference(cell, target_depth) for cell in counts]
    assert (embedding - torch.stack([cell.embedding for cell in wanted])).abs().max() < 1e-4
    assert codes.tolist() == [cell.code for cell in wanted]
    assert (vectors - torch.stack([cell.quantised for cell in wanted])).abs().max() < 1e-4
    return codes


@pytest.mark.parametrize("target_depth", [None, 1e4], ids=["T = S", "T = 4"])
def test_imported_weights_say_what_the_reference_says(cells, state, tmp_path, target_depth):
    said = bring_in(save(tmp_path, state), tmp_path / "model", mode="m2")
    assert "all 132 tensors" in said
    model, config = weights.read_model(tmp_path / "model")
    codes = compare(model, Reference(state, NARROW.heads), cells, target_depth)
    assert len(codes.unique()) > 15
    found = config["run"]["imported"]
    assert found["mode"] == "m2" and len(found["sha256"]) == 64 and len(found["left_out"]) == 3
    assert model.properties["sex"] == ["sex 0", "sex 1"]


def test_encode_knows_both_conventions_of_the_target_depth(cells, state, tmp_path):
    bring_in(save(tmp_path, state), tmp_path / "model")
    shuffled = torch.randperm(NARROW.genes, generator=torch.Generator().manual_seed(0))
    adata = AnnData(csr_matrix(cells[:, shuffled].numpy()))
    adata.var_names = np.array(PANEL)[shuffled.numpy()]
    reference = Reference(state, NARROW.heads)
    for given, target_depth in (("match", None), ("4", 1e4)):
        encoded = cellvq.encode(adata, tmp_path / "model", target_depth=given)
        wanted = [reference(cell, target_depth) for cell in cells]
        embedding = torch.stack([cell.embedding for cell in wanted]).numpy()
        assert np.abs(encoded.obsm["X_cellvq"] - embedding).max() < 1e-4
        codes = [f"C{cell.code:02d}" for cell in wanted]
        assert encoded.obs["cellvq_code"].tolist() == codes


def test_every_tensor_finds_its_place(cells, state, tmp_path):
    bring_in(save(tmp_path, state), tmp_path / "model")
    model, _ = weights.read_model(tmp_path / "model")
    ours = model.state_dict()
    theirs = {entry.ours: state[name]
              for name, entry in schema(config_of(NARROW), 150, NARROW.properties).items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name)
    prior = state["go"] @ state["go_embed.weight"].T + state["go_embed.bias"]
    table = state["pos_emb.weight"] + torch.nn.functional.pad(prior, (0, 0, 0, 1))
    assert torch.allclose(model.gene_table(), table, atol=1e-6)

    embedding, codes, vectors = encode(model, cells[:3], None)
    given = model.decoder.performer(table[:150], vectors)
    wanted = [decode(state, table[:150] + vector, NARROW.decoder_heads) for vector in vectors]
    for part, cells_of_part in zip(given, zip(*wanted, strict=True), strict=True):
        assert torch.allclose(part, torch.stack(cells_of_part), atol=1e-4)
    sexes = embedding @ state["sex.weight"].T + state["sex.bias"]
    assert torch.allclose(model.heads["sex"](embedding), sexes, atol=1e-5)


def test_layout_is_that_of_the_release(state):
    narrow = schema(config_of(NARROW), NARROW.genes, NARROW.properties)
    assert {name: (entry.shape, entry.dtype) for name, entry in narrow.items()} == {
        name: (tuple(value.shape), value.dtype) for name, value in state.items()
    }
    full = schema(preset("official").model, 19264)
    assert config_of(Sizes()).quantizer == preset("official").model.quantizer
    assert len(full) == 326
    size = {name: math.prod(entry.shape) for name, entry in full.items()}
    buffers = ("running_", "num_batches", "projection_matrix", "calls_since", "cell_vq.embedding")
    learnt = [name for name in full if not any(part in name for part in buffers)
              or "embedding_mlp" in name and name.endswith(("weight", "bias"))]
    assert round(sum(size[name] for name in learnt) / 1e6, 1) == 514.3


BROKEN = {
    "missing": (lambda m: m.pop("encoder.norm.bias"), r"missing: encoder\.norm\.bias \[48\]"),
    "extra": (lambda m: m.update(other=torch.zeros(2, 3)), r"unexpected: other \[2, 3\]"),
    "shape": (lambda m: m.update({"mean.weight": torch.zeros(1, 7)}),
              r"shape of mean\.weight: \[1, 7\] instead of \[1, 32\]"),
    "dtype": (lambda m: m.update({"mean.weight": torch.zeros(1, 32).half()}),
              r"dtype of mean\.weight: torch\.float16 instead of torch\.float32"),
    "nan": (lambda m: m.update(go=m["go"].clone().fill_diagonal_(math.nan)), "infinite values: go"),
    "sparse": (lambda m: m.update(go=m["go"].to_sparse()), "no plain tensor: go"),
    "number": (lambda m: m.update(go=3), "no plain tensor: go"),
    "many": (lambda m: [m.pop(name) for name in list(m)[:15]], r"\n  and 5 more$"),
}


@pytest.fixture
def untouched(state, tmp_path):
    """A folder with a model in it, which must be as it was when the test is over."""
    folder = tmp_path / "kept"
    bring_in(save(tmp_path, state), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("kind", BROKEN)
def test_a_checkpoint_of_another_layout_is_told_apart(kind, state, untouched, tmp_path):
    changed = dict(state)
    change, message = BROKEN[kind]
    change(changed)
    path = save(tmp_path, changed)
    with pytest.raises(InputError, match=message) as error:
        bring_in(path, untouched)
    assert str(error.value).startswith(f"{path}: m1 is not as released\n  ")
    assert len(str(error.value).splitlines()) <= 12


class Trap:
    """An object whose unpickling would leave a trace."""

    def __reduce__(self):
        return os.mkdir, ("trap",)


def test_a_file_that_is_no_checkpoint_is_refused(state, untouched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, state, config=Trap())
    with pytest.raises(InputError, match="holds more than tensors"):
        bring_in(path, untouched)
    assert not (tmp_path / "trap").exists()
    path = save(tmp_path, state)
    with pytest.raises(InputError, match="no mode 'm3' in this checkpoint; there are: m1, m2"):
        bring_in(path, untouched, mode="m3")
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:0], b"no checkpoint"):
        path.write_bytes(part)
        with pytest.raises(InputError, match="not a whole checkpoint"):
            bring_in(path, untouched)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="there are: none"):
        bring_in(path, untouched)
    with pytest.raises(InputError, match="cannot be read"):
        bring_in(tmp_path, untouched)


def test_a_panel_that_does_not_fit_is_refused(state, untouched, tmp_path, monkeypatch):
    path = save(tmp_path, state)
    with pytest.raises(InputError, match=r"shape of go: \[152, 152\] instead of \[151, 151\]"):
        bring_in(path, untouched, panel=PANEL[1:])
    wrong = tmp_path / "panel.tsv"
    wrong.write_text("gene_name\tindex\nA1BG\t0\n")
    with pytest.raises(InputError, match="not the released gene order"):
        bring_in(path, untouched, panel=wrong)
    for variable in ("CELLVQ_DATA", "CELLVQ_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(InputError, match="not on this machine; run `cellvq fetch panel_19264`"):
        bring_in(path, untouched, panel=None)


def test_linear_attention_estimates_softmax_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 30, 8)
    exact = torch.nn.functional.scaled_dot_product_attention(q / 2, k / 2, v)
    given = linear_attention(q / 2, k / 2, v, random_projection(4096, 8))
    flat = v.mean(-2, keepdim=True)  # attention to all alike
    assert (given - exact).abs().mean() < 0.3 * (flat - exact).abs().mean()
    directions = torch.nn.functional.normalize(random_projection(8, 8))
    assert torch.allclose(directions @ directions.T, torch.eye(8), atol=1e-5)


def test_performer_decodes_each_cell_alone_and_all_of_it_learns():
    torch.manual_seed(0)
    decoder = PerformerDecoder(width_in=12, width=16, layers=2, heads=2)
    genes, vectors = torch.randn(9, 12), torch.randn(3, 12)
    together = decoder(genes, vectors)
    for part, alone in zip(together, decoder(genes, vectors[1:2]), strict=True):
        assert part.shape == (3, 9) and torch.allclose(part[1:2], alone, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = decoder(genes, vectors)
    assert all(torch.allclose(a, b.float(), atol=0.1) for a, b in zip(together, rough, strict=True))
    sum(part.square().sum() for part in together).backward()
    silent = {n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert silent == {"value.weight", "value.bias"}


@pytest.mark.skipif("CELLVQ_FULL_SIZE" not in os.environ,
                    reason="the official shape takes 2 minutes, 7 GB of memory and 3 GB of disk: "
                    "set CELLVQ_FULL_SIZE=1")
def test_official_shape(tmp_path):
    sizes = Sizes()
    counts = draw_cells(6, sizes.genes, 200, 900)
    state = random_checkpoint(sizes, cells=counts[:3])
    assert len(state) == 326
    path = tmp_path / "models.ckpt"
    torch.save({"m1": state, "config": {}}, path)
    start = time.perf_counter()
    print(import_official(path, "m1", tmp_path / "model"))
    print(f"imported in {time.perf_counter() - start:.1f} s")
    model, _ = weights.read_model(tmp_path / "model")
    assert isinstance(model, CellVQ) and model.panel[0] == "A1BG" and model.panel[-1] == "ZZZ3"
    for target_depth in (None, 1e4):
        print(compare(model, Reference(state, sizes.heads), counts, target_depth))
