"""Which genes make a cell take its code: attributions of the code margin to the genes of the cell.

Whether an attribution can be believed is tested in :mod:`cellvq.faithfulness`; two baselines stand
beside those that claim to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cellvq import InputError, markers
from cellvq.loader import Batch
from cellvq.margins import (
    AWAY,
    RIVALS,
    Coded,
    Question,
    at_once,
    average,
    margin,
    read,
    without,
)
from cellvq.model import CellVQ, Layer, log_normalise

if TYPE_CHECKING:
    from anndata import AnnData

METHODS = ("integrated gradients", "occlusion", "attention", "rollout", "marker z")
"""Attributions that claim to know which genes matter; `scores` says what each of them is."""
BASELINES = ("highest expressed", "random")
"""What an attribution has to beat before it is worth a look."""
COLUMNS = {"code": str, "gene": str, "attribution": float, "standard_error": float, "rank": int,
           "cells": int}


def integrated_gradients(
    model: CellVQ, batch: Batch, asked: Question, steps: int = 16
) -> Tensor:
    """Add up the gradient of the margin on the way from the average cell to each cell.

    The sum over genes is the margin of the cell minus that of the average cell (completeness;
    Sundararajan et al. 2017, doi 10.48550/arXiv.1703.01365). The average cell is where the model's
    own view of a cell has its origin, while a cell of zeros would lie far from all cells. On the
    way a cell keeps its tokens, so what changes is how much of each gene there is. A gene that a
    cell does not express can matter here, too: by being absent.

    Args:
        model: the model.
        batch: the cells.
        asked: their codes.
        steps: points on the way.

    Returns:
        Attribution of every gene, in units of the margin, [cells, panel].
    """
    end = log_normalise(batch.counts, batch.depth)
    start, total = average(model).expand_as(end), torch.zeros_like(end)
    scale = batch.depth[:, None] / 1e4
    with torch.enable_grad():
        for step in range(steps):
            values = torch.lerp(start, end, (step + 0.5) / steps).requires_grad_()
            there = margin(model, batch._replace(counts=values.expm1() * scale), asked)
            total += torch.autograd.grad(there.sum(), values)[0]
    return total / steps * (end - start)


@torch.no_grad()
def occlusion(
    model: CellVQ, batch: Batch, asked: Question, away: str = "average"
) -> Tensor:
    """Take each expressed gene away alone, and see how much of the margin goes with it.

    Args:
        model: the model.
        batch: the cells.
        asked: their codes.
        away: how a gene is taken away, one of ``AWAY``.

    Returns:
        Loss of margin by every gene, 0 for genes that are not expressed, [cells, panel].
    """
    panel = len(model.panel)
    whole, found = margin(model, batch, asked), torch.zeros_like(batch.counts)
    cell, place = (batch.genes < panel).nonzero(as_tuple=True)
    gene = batch.genes[cell, place]
    size = max(at_once(model) // (batch.genes.shape[1] + 2), 1)
    for cells, genes in zip(cell.split(size), gene.split(size), strict=True):
        some = Batch(*(part[cells] if isinstance(part, Tensor) else part for part in batch))
        taken = torch.zeros_like(some.counts, dtype=torch.bool).scatter_(1, genes[:, None], True)
        left = margin(model, without(model, some, taken, away),
                      asked._replace(code=asked.code[cells]))
        found[cells, genes] = whole[cells] - left
    return found


@torch.no_grad()
def attention(model: CellVQ, batch: Batch, rollout: bool = False) -> Tensor:
    """Read how much the cell's own tokens look at each gene, averaged over heads.

    Those are T and S, the depth tokens, whose state is pooled into the cell vector. Attention has
    no sign and knows of no code.

    Args:
        model: the model.
        batch: the cells.
        rollout: follow the attention through all layers, half of each token staying where it is
            (Abnar and Zuidema 2020, doi 10.18653/v1/2020.acl-main.385), instead of the last layer
            alone, as the paper does.

    Returns:
        Attention to every gene, 0 for genes that are not expressed, [cells, panel].
    """
    given: list[tuple] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: given.append(args))
             for layer in model.layers]
    try:
        model.encode(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if rollout:
        looks = torch.eye(given[0][0].shape[1], device=model.device)[-2:]
        for layer, args in zip(reversed(model.layers), reversed(given), strict=True):
            looks = (looks @ attention_weights(layer, *args) + looks) / 2
    else:
        looks = attention_weights(model.layers[-1], *given[-1], last=2)
    looks = looks.mean(1)[:, :-2]
    found = looks.new_zeros(len(looks), len(model.panel) + 3).scatter_add_(1, batch.genes, looks)
    return found[:, : len(model.panel)]


def attention_weights(layer: Layer, x: Tensor, mask: Tensor | None, last: int = 0) -> Tensor:
    """Return what tokens look at, averaged over heads, [cells, queries, tokens].

    Args:
        layer: a layer of the model.
        x: tokens as the layer gets them, [cells, tokens, width].
        mask: as the layer gets it.
        last: only the last so many tokens ask; 0 for all.
    """
    x = layer.attention_norm(x) if layer.before else x
    queries, keys, _ = layer.into_attention(x).unflatten(-1, (3, layer.heads, -1)).unbind(2)
    queries, keys = queries[:, -last:].transpose(1, 2), keys.transpose(1, 2)
    found = queries @ keys.mT * queries.shape[-1] ** -0.5
    return (found if mask is None else found + mask).softmax(-1).mean(1)


def marker_scores(coded: Coded, panel: list[str]) -> Tensor:
    """Return the rank-sum z of every gene in every code, 0 where not tested, [codes, panel]."""
    from anndata import AnnData

    cells = AnnData(coded.counts, obs=pd.DataFrame({
        markers.CODE: np.array(coded.names, dtype=object)[coded.code],
        "total_counts": coded.depth,
    }, [str(i) for i in range(len(coded.code))]), var=pd.DataFrame(index=panel))
    table = markers.marker_table(cells, min_cells=2)
    wide = table.pivot(index="code", columns="gene", values="score")
    wide = wide.astype(float).reindex(index=coded.names, columns=panel).fillna(0.0)
    return torch.from_numpy(wide.to_numpy(np.float32))


def scores(
    method: str, model: CellVQ, batch: Batch, asked: Question, *, steps: int = 16,
    away: str = "average", z: Tensor | None = None, rng: np.random.Generator | None = None,
) -> Tensor:
    """Attribute the codes of some cells to their genes, by any method, [cells, panel].

    Args:
        method: one of ``METHODS`` or ``BASELINES``. ``attention`` is that of the last layer,
            ``marker z`` the rank-sum statistic of the gene in the code times its value in the
            cell, ``highest expressed`` the value alone.
        model: the model.
        batch: the cells.
        asked: their codes.
        steps: see `integrated_gradients`.
        away: see `occlusion`.
        z: `marker_scores`, for ``marker z``.
        rng: source of the draws, for ``random``.
    """
    if method == "integrated gradients":
        return integrated_gradients(model, batch, asked, steps)
    if method == "occlusion":
        return occlusion(model, batch, asked, away)
    if method in ("attention", "rollout"):
        return attention(model, batch, method == "rollout")
    values = log_normalise(batch.counts, batch.depth)
    if method == "marker z":
        return values * z.to(values.device)[asked.code]
    if method == "random":
        drawn = rng.random(values.shape, dtype=np.float32)
        return torch.from_numpy(drawn).to(values.device) * (values > 0)
    return values


def attribute(
    cells: AnnData, model: CellVQ, method: str = "integrated gradients", *, level: int = -1,
    rival: str = "nearest", per_code: int | None = 20, steps: int = 16, away: str = "average",
    seed: int = 0,
) -> pd.DataFrame:
    """Say which genes make the cells of each code take it, as the mean over cells.

    Args:
        cells: encoded cells with raw counts.
        model: the model that encoded them.
        method: one of ``METHODS`` or ``BASELINES``, see `scores`.
        level: level of nested codes to explain, 0 the coarsest, -1 full depth.
        rival: what a code is held against, one of ``margins.RIVALS``: ``nearest`` asks why this
            code and not its neighbour, ``all`` why this code at all.
        per_code: at most so many cells of a code, drawn at random; None for all.
        steps: points of integrated gradients.
        away: how `occlusion` takes a gene away, one of ``AWAY``.
        seed: seed of the draws.

    Returns:
        One row a code in use and measured gene of the panel, best gene first: ``code``, ``gene``
        (str), ``attribution`` (mean over cells; of the first two methods in units of the margin),
        ``standard_error`` (of that mean; NaN for a single cell), ``rank`` (int, 1 is the best),
        ``cells`` (int, those that were asked).

    Raises:
        InputError: there is no such method or level, or the cells were not encoded by this model.

    Example:
        >>> import cellvq
        >>> cells = cellvq.simulate.simulate_cells(cells=200)
        >>> run = cellvq.pretrain(cells, steps=3, codes=8, progress=False)
        >>> table = attribute(cellvq.encode(cells, run.model), run.model, per_code=5)
        >>> table[table["rank"] == 1].shape[0] <= 8, table["cells"].max()
        (True, np.int64(5))
    """
    check(method, away, rival)
    coded = read(cells, model, level)
    rows, rng = coded.draw(seed, per_code=per_code), np.random.default_rng(seed)
    z = marker_scores(coded, model.panel) if method == "marker z" else None
    sums = torch.zeros(2, len(coded.names), len(model.panel), dtype=torch.float64)
    for _, batch, asked in coded.blocks(rows, model, rival):
        found = scores(method, model, batch, asked, steps=steps, away=away, z=z, rng=rng)
        found = found.double().cpu()
        for total, power in zip(sums, (found, found.square()), strict=True):
            total.index_add_(0, asked.code.cpu(), power)
    return code_table(coded, rows, sums.numpy(), model.panel)


def check(method: str, away: str = "average", rival: str = "nearest") -> None:
    """Refuse what is no method, no way to take genes away or no rival."""
    known = {"method": (method, METHODS + BASELINES), "away": (away, AWAY),
             "rival": (rival, RIVALS)}
    for name, (value, choices) in known.items():
        if value not in choices:
            raise InputError(f"{name} is {value!r}; use one of: {', '.join(choices)}")


def code_table(coded: Coded, rows: np.ndarray, sums: np.ndarray, panel: list[str]) -> pd.DataFrame:
    """Make the table of `attribute` from sums and sums of squares, [2, codes, panel]."""
    size = np.bincount(coded.code[rows], minlength=len(coded.names))
    used, genes = np.flatnonzero(size), np.array(panel, dtype=object)[coded.measured]
    each = size[used, None]
    mean, square = sums[:, used][:, :, coded.measured] / each
    spread = np.maximum(square - mean**2, 0)
    error = np.where(each > 1, np.sqrt(spread / np.maximum(each - 1, 1)), np.nan)
    order = np.argsort(-mean, axis=1, kind="stable")
    table = pd.DataFrame({
        "code": np.repeat(np.array(coded.names, dtype=object)[used], len(genes)),
        "gene": genes[order].ravel(),
        "attribution": np.take_along_axis(mean, order, 1).ravel(),
        "standard_error": np.take_along_axis(error, order, 1).ravel(),
        "rank": np.tile(np.arange(1, len(genes) + 1), len(used)),
        "cells": np.repeat(size[used], len(genes)),
    })
    return table.sort_values(["code", "rank"], ignore_index=True).astype(COLUMNS)
