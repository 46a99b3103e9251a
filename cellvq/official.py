"""The authors' released checkpoint -> a model of ours: safe to read, checked whole, prior folded.

The release is one file of ``torch.save``: ``m1`` (masked pretraining) and ``m2`` (fine-tuned), each
326 tensors. Its gene-by-gene prior, 72 % of the parameters, folds exactly into the gene embeddings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cellvq import InputError, weights
from cellvq.config import ModelConfig, preset
from cellvq.model import CellVQ
from cellvq.performer import count_features

PANEL_URL = (
    "https://raw.githubusercontent.com/biomap-research/scFoundation/"
    "d09626a5c1bc30b9c6227378677b61e0b987fe8b/OS_scRNA_gene_index.19264.tsv"
)
PANEL_SHA256 = "bb337ea195d94e7b033543abc02a42e7060d6562eba97deb077f7dcecec62661"
PROPERTIES = {"cell_type": 831, "tissue": 377, "disease": 150, "sex": 3, "age": 184}
"""Labels of each released property head; what the labels are called was never released."""
DECODER_HEADS = {"to_final": "value", "mean": "mean", "disp": "dispersion", "pi": "dropout"}
NOT_NEEDED = (
    "token_emb.emb_mask.weight",  # our masked genes are left out of the input
    "token_emb.emb_pad.weight",  # padding is masked wherever it could be seen
    "decoder.performer.calls_since_last_redraw",  # a counter
)
LINES_AT_MOST = 10
"""Differences that one message shows."""


class Entry(NamedTuple):
    """One tensor of the release."""

    shape: tuple[int, ...]
    ours: str | None = None
    """Name of the tensor in our model; None where none of ours is its copy."""
    dtype: torch.dtype = torch.float32


def schema(
    config: ModelConfig, genes: int, properties: Mapping[str, int] = PROPERTIES
) -> dict[str, Entry]:
    """List every tensor that a checkpoint in the layout of the release must hold.

    Args:
        config: the network's numbers, as in the preset ``official``.
        genes: size of the gene panel.
        properties: number of labels of each property.

    Returns:
        For each name in the release its shape, its dtype and its name in our model.

    Example:
        >>> table = schema(preset("official").model, genes=19264)
        >>> len(table), table["go_embed.weight"].shape
        (326, (768, 19266))
    """
    width, tokens, bins = config.width, genes + 2, config.value_bins
    table = {
        "go": Entry((tokens, tokens)),
        "pos_emb.weight": Entry((tokens + 1, width)),
        "go_embed.weight": Entry((width, tokens)),
        "go_embed.bias": Entry((width,)),
        "token_emb.emb.weight": Entry((bins, width)),
        "token_emb.emb_mask.weight": Entry((1, width)),
        "token_emb.emb_pad.weight": Entry((1, width)),
    }
    table |= _layer("token_emb.mlp", "value_embedding.first", bins, 1)
    table |= _layer("token_emb.mlp2", "value_embedding.second", bins, bins)
    table |= _encoder(config) | _codebook(config) | _decoder(config)
    for name, labels in properties.items():
        table |= _layer(name, f"heads.{name}", labels, config.embedding_width)
    return table


def _layer(theirs: str, ours: str, *shape: int, joint: str = ".") -> dict[str, Entry]:
    """List a layer's weight and bias."""
    parts = (("weight", shape), ("bias", shape[:1]))
    return {f"{theirs}{joint}{part}": Entry(size, f"{ours}.{part}") for part, size in parts}


def _encoder(config: ModelConfig) -> dict[str, Entry]:
    """List the tensors of the transformer."""
    width, inner, table = config.width, config.feedforward, {}
    for i in range(config.layers):
        theirs, ours = f"encoder.transformer_encoder.{i}", f"layers.{i}"
        into = f"{theirs}.self_attn.in_proj"
        table |= _layer(into, f"{ours}.into_attention", 3 * width, width, joint="_")
        table |= _layer(f"{theirs}.self_attn.out_proj", f"{ours}.out_of_attention", width, width)
        table |= _layer(f"{theirs}.linear1", f"{ours}.into_feedforward", inner, width)
        table |= _layer(f"{theirs}.linear2", f"{ours}.out_of_feedforward", width, inner)
        table |= _layer(f"{theirs}.norm1", f"{ours}.attention_norm", width)
        table |= _layer(f"{theirs}.norm2", f"{ours}.feedforward_norm", width)
    return table | _layer("encoder.norm", "norm", width)


def _codebook(config: ModelConfig) -> dict[str, Entry]:
    """List the tensors of the soft conditional codebook (SCD)."""
    code = config.quantizer
    bits, shape = code.codes.bit_length() - 1, (code.hidden,)
    table = {"cell_vq.embedding": Entry((code.codes, bits), "quantizer.bits")}
    widths = [bits, *[code.hidden] * code.hidden_layers, code.width]
    for i, into in enumerate(widths[:-1]):  # Linear, BatchNorm, ReLU, Linear ... Linear
        theirs, ours = "cell_vq.embedding_mlp", "quantizer.embed"
        table |= _layer(f"{theirs}.{3 * i}", f"{ours}.{3 * i}", widths[i + 1], into)
        if i < code.hidden_layers:
            theirs, ours = f"{theirs}.{3 * i + 1}", f"{ours}.{3 * i + 1}"
            table |= _layer(theirs, ours, *shape)
            for part in ("running_mean", "running_var"):
                table[f"{theirs}.{part}"] = Entry(shape, f"{ours}.{part}")
            part = "num_batches_tracked"
            table[f"{theirs}.{part}"] = Entry((), f"{ours}.{part}", torch.int64)
    table |= _layer("cell_vq.proj", "quantizer.into", code.width, config.code_width)
    return table | _layer("cell_vq.proj_inv", "quantizer.out", config.code_width, code.width)


def _decoder(config: ModelConfig) -> dict[str, Entry]:
    """List the tensors of the decoder over all genes."""
    width, root = config.decoder_width, "decoder.performer"  # called so by the release and by us
    head = width // config.decoder_heads
    table = {f"{root}.calls_since_last_redraw": Entry((), dtype=torch.int64)}
    table |= _layer("decoder_embed", f"{root}.into", width, config.code_width)
    for i in range(config.decoder_layers):
        attention, feed = f"{root}.net.layers.{i}.0", f"{root}.net.layers.{i}.1"
        ours = f"{root}.blocks.{i}"
        table[f"{attention}.fn.fast_attention.projection_matrix"] = Entry(
            (count_features(head), head), f"{ours}.projection"
        )
        table |= _layer(f"{attention}.norm", f"{ours}.attention_norm", width)
        for name in ("query", "key", "value"):
            table |= _layer(f"{attention}.fn.to_{name[0]}", f"{ours}.{name}", width, width)
        table |= _layer(f"{attention}.fn.to_out", f"{ours}.out_of_attention", width, width)
        table |= _layer(f"{feed}.norm", f"{ours}.feedforward_norm", width)
        table |= _layer(f"{feed}.fn.fn.w1", f"{ours}.into_feedforward", 4 * width, width)
        table |= _layer(f"{feed}.fn.fn.w2", f"{ours}.out_of_feedforward", width, 4 * width)
    table |= _layer("decoder.norm", f"{root}.block_norm", width)
    table |= _layer("norm", f"{root}.norm", width)
    for theirs, ours in DECODER_HEADS.items():
        table |= _layer(theirs, f"{root}.{ours}", 1, width)
    return table


def import_official(
    checkpoint: str | Path,
    mode: str,
    output: str | Path,
    *,
    panel: str | Path | Sequence[str] | None = None,
    config: ModelConfig | None = None,
    properties: Mapping[str, int] = PROPERTIES,
) -> str:
    """Turn the authors' released checkpoint into a model that `cellvq.load` reads.

    Nothing in the file is run: only tensors are read from it, and every one of them is checked
    before anything is written.

    Args:
        checkpoint: the released file.
        mode: ``m1``, the masked pretraining, or ``m2``, the fine-tuned weights.
        output: folder for the model; a model in it is replaced once all is well.
        panel: the file with the release's gene order, by default the registry's ``panel_19264``; or
            the genes themselves, for weights on another panel.
        config: the network's numbers; by default those of the preset ``official``.
        properties: number of labels of each property head.

    Returns:
        What was done, in sentences for a user.

    Raises:
        InputError: the file is not a checkpoint, holds more than tensors, lacks the mode, or
            differs from the release (the message lists how); the panel is not at hand or not the
            released one; the folder cannot be written to.

    Example:
        >>> import_official("models.ckpt", "m1", "official")
        Traceback (most recent call last):
        cellvq.InputError: models.ckpt: cannot be read (No such file or directory)
    """
    path = Path(checkpoint).expanduser()
    state = read_checkpoint(path, mode)
    if panel is None or isinstance(panel, str | Path):
        panel = read_panel(panel)
    model = convert(state, panel, config, properties, source=f"{path}: {mode}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    found = {"file": path.name, "sha256": sha256, "mode": mode, "left_out": list(NOT_NEEDED)}
    weights.write_model(output, model, {"imported": found})
    kept = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{path.name}, {mode}: all {len(state)} tensors are as released. With the gene prior "
        f"folded into the gene embeddings, {kept / 1e6:,.1f} million parameters are in {output}."
    )


def convert(
    state: Mapping[str, Tensor],
    panel: Sequence[str],
    config: ModelConfig | None = None,
    properties: Mapping[str, int] = PROPERTIES,
    source: str = "the checkpoint",
) -> CellVQ:
    """Check the tensors of one mode and build our model from them.

    Args:
        state: the tensors by their released names.
        panel: the genes, in the order of the tensors.
        config: the network's numbers; by default those of the preset ``official``.
        properties: number of labels of each property head.
        source: what the tensors are called in an error.

    Returns:
        The model, in evaluation mode, its gene prior folded in.

    Raises:
        InputError: tensors are missing, unexpected, of another shape or dtype, or not finite.
    """
    config = dataclasses.replace(config or preset("official").model, prior="none")
    table = schema(config, len(panel), properties)
    differences = list(_differences(state, table))
    if differences:
        more = len(differences) - LINES_AT_MOST
        shown = differences[:LINES_AT_MOST] + [f"and {more} more"] * (more > 0)
        raise InputError("\n  ".join([f"{source} is not as released", *shown]))

    labels = {name: [f"{name} {i}" for i in range(size)] for name, size in properties.items()}
    with torch.device("meta"):  # shapes only: the weights are those of the checkpoint
        model = CellVQ(config, panel, properties=labels)
    tensors = {entry.ours: state[name] for name, entry in table.items() if entry.ours}
    tensors["value_embedding.table.weight"] = state["token_emb.emb.weight"].T.contiguous()
    tensors["gene_embedding.weight"] = fold_prior(state)
    weights.load_state(model, tensors, source, assign=True)
    return model.eval()


def fold_prior(state: Mapping[str, Tensor]) -> Tensor:
    """Add the prior's part of each gene, of T and of S to its embedding, [genes + 3, width].

    The last row, of padding, has no prior. Working in blocks of rows changes no number.
    """
    blocks = state["go"].split(1024)
    into = state["go_embed.weight"], state["go_embed.bias"]
    prior = torch.cat([F.linear(rows, *into) for rows in blocks])
    return state["pos_emb.weight"] + F.pad(prior, (0, 0, 0, 1))


def read_checkpoint(path: Path, mode: str) -> dict[str, Tensor]:
    """Read the tensors of one mode; large ones stay on disk until they are used.

    Raises:
        InputError: the file is not a whole checkpoint, holds more than tensors, or has no such
            mode.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a file that anybody may have made can fail in any way
        what = "not a whole checkpoint of torch.save; download it again"
        if isinstance(error, UnpicklingError) and zipfile.is_zipfile(path):
            what = "not read, as it holds more than tensors, which could run code as they are read"
        raise InputError(f"{path}: {what}") from error
    found = found if isinstance(found, dict) else {}
    modes = [name for name, value in found.items() if name != "config" and isinstance(value, dict)]
    if mode not in modes:
        there = ", ".join(map(str, modes)) or "none; is it the released file?"
        raise InputError(f"{path}: no mode {mode!r} in this checkpoint; there are: {there}")
    return found[mode]


def read_panel(path: str | Path | None = None) -> list[str]:
    """Read the 19,264 gene symbols of the release, in its order.

    Args:
        path: the file; by default it is looked for where data sets are.

    Raises:
        InputError: the file is not there, or not the registered one.
    """
    if path is None:
        from cellvq import registry

        path = registry.find("panel_19264")
        if path is None:
            raise InputError("the released gene order is not on this machine; run `cellvq fetch "
                             "panel_19264`, or name the file with --panel")
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != PANEL_SHA256:
        raise InputError(f"{path}: not the released gene order; download {PANEL_URL} again")
    return [line.split("\t")[0] for line in content.decode().splitlines()[1:]]


def _differences(state: Mapping[str, Tensor], table: Mapping[str, Entry]) -> Iterator[str]:
    """Tell of each tensor that is not as it should be."""
    for name, wanted in table.items():
        if name not in state:
            yield f"missing: {name} {list(wanted.shape)}"
    for name, found in state.items():
        wanted = table.get(name)
        if wanted is None:
            yield f"unexpected: {name} {list(getattr(found, 'shape', []))}"
        elif not isinstance(found, Tensor) or found.layout != torch.strided:
            yield f"no plain tensor: {name}"
        elif tuple(found.shape) != wanted.shape:
            yield f"shape of {name}: {list(found.shape)} instead of {list(wanted.shape)}"
        elif found.dtype != wanted.dtype:
            yield f"dtype of {name}: {found.dtype} instead of {wanted.dtype}"
        elif not all(rows.isfinite().all() for rows in found.reshape(-1).split(2**24)):
            yield f"NaN or infinite values: {name}"
