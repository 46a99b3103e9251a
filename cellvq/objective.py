"""What pretraining starts from, what it asks of the model, and the baseline it is held against."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from cellvq.config import TrainingConfig
from cellvq.decoder import Counts
from cellvq.loader import Batch
from cellvq.model import CellVQ, Output

if TYPE_CHECKING:
    from cellvq.corpus import Corpus

CLIP = 10.0
"""Standard deviations above a gene's mean beyond which more of it counts for no more."""
WARM_CELLS = 20_000
"""The warm start looks at no more cells than this."""
WARM_GENES = 4000
"""The warm start looks at no more genes than this, those of the largest variance."""
GROUPS = 12
"""Groups of like cells within which the warm start compares batches."""
SHIFTS_LEFT_OUT = 8
"""Directions of batch differences, the largest first, that the warm start leaves out."""
LIKELIHOOD_WEIGHT = 10.0
"""Weight of the mean log likelihood per gene against the quantiser's loss."""


@torch.no_grad()
def warm_start(model: CellVQ, corpus: Corpus) -> None:
    """Start the model as a principal component analysis of its training cells, made for counts.

    Genes are scaled to unit variance and clipped at ten standard deviations, as usual. Two things
    are not usual. The molecules of each cell are dealt into two halves, and the axes are those of
    the covariance *between* the halves, in which counting noise, being independent, cancels (count
    splitting, doi 10.1093/biostatistics/kxac047). And where there are batches, directions in which
    batches differ within groups of like cells are left out, so that cells of one kind lie together
    whatever their batch, and a new cell needs no batch to be placed.

    Each axis is shrunk by how much of it other cells confirm (`reliability`), so a wide vector does
    no harm where few cells can tell no more than a dozen axes. The decoder starts as the way back.

    Args:
        model: a fresh model whose cell vector is of the kind ``components``; its linear path, gene
            embedding and decoder are filled in.
        corpus: the cells; at most ``WARM_CELLS`` of ``corpus.train`` are looked at.
    """
    rng = np.random.default_rng(0)
    cells = corpus.train
    if len(cells) > WARM_CELLS:
        cells = np.sort(rng.choice(cells, WARM_CELLS, replace=False))
    counts, depth, batch = corpus.counts[cells], corpus.depth[cells], corpus.batch[cells]
    values = log_values(counts, depth)
    asked = corpus.summed(np.ones(len(cells)), cells)  # cells that measured each gene
    mean = np.asarray(values.sum(0)).ravel() / asked
    variance = np.asarray(values.multiply(values).sum(0)).ravel() / asked - mean**2
    scale = 1 / (np.sqrt(np.maximum(variance, 0)) + 1e-2)
    ceiling = mean + CLIP / scale
    values = log_values(counts, depth, ceiling)
    mean = np.asarray(values.sum(0)).ravel() / asked

    # A covariance of 20,000 genes would take 3 GB; the genes left out start at nothing.
    genes = np.sort(np.argsort(-variance, kind="stable")[:WARM_GENES])
    counts, values, scale = counts[:, genes], values[:, genes], scale[genes]
    panel, width = len(genes), min(model.config.cell_width, len(genes))
    half = rng.permutation(len(cells)) < len(cells) // 2
    covariances = [
        scale[:, None] * scale
        * signal_covariance(counts[part], depth[part], batch[part], ceiling[genes], rng)
        for part in (half, ~half)
    ]
    covariance = half.mean() * covariances[0] + (~half).mean() * covariances[1]
    keep, axes = None, principal_axes(covariance, width)[1]
    for attempt in range(2 if len(np.unique(batch)) > 1 else 0):
        left_out = shared_shifts(values, scale, axes, batch, attempt)
        keep = np.eye(panel) - left_out.T @ left_out
        axes = principal_axes(keep @ covariance @ keep, width)[1]
    if keep is not None:
        covariances = [keep @ part @ keep for part in covariances]
    confirmed = reliability(covariances, values @ scipy.sparse.diags(scale), half, batch, width)
    weight = np.sqrt(confirmed)
    unit = math.sqrt((values @ (scale[:, None] * axes * weight)).var(0).mean())

    _put(model.cell_vector.mean, mean)
    _put(model.cell_vector.ceiling, ceiling)
    model.cell_vector.components.zero_()
    model.cell_vector.components[genes, :width] = _like(
        model, scale[:, None] * axes * weight / unit
    )
    columns = min(width, model.config.width)
    model.gene_embedding.weight[genes, :columns] = _like(
        model, 0.3 * math.sqrt(panel) * axes[:, :columns]
    )
    if model.config.decoder == "query":
        way_back = axes * confirmed / weight * unit / scale[:, None]
        model.decoder.queries[genes, :width] = _like(model, way_back)


@torch.no_grad()
def start_decoder(model: CellVQ, corpus: Corpus) -> None:
    """Start the gene-query decoder at the mean profile of the training cells and of each batch."""
    average = mean_profile(corpus, torch.tensor([1e4]))
    _put(model.decoder.log_rate, (average.mean[0] + 1e-3).log())
    # The inverse of softplus, which the decoder applies.
    _put(model.decoder.log_dispersion, average.dispersion.clamp(0.05, 50).expm1().log())
    for number in range(len(model.batches)):
        cells = corpus.train[corpus.batch[corpus.train] == number]
        if not len(cells):  # a batch of validation cells alone: taken as the average
            continue
        exposure = corpus.summed(corpus.depth[cells], cells)
        rate = np.asarray(corpus.counts[cells].sum(0)).ravel() / exposure * 1e4
        shift = np.log((rate + 0.05) / (average.mean[0].numpy() + 0.05))
        _put(model.decoder.batch_shift[number], shift)


def _like(model: CellVQ, value: np.ndarray) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32, device=model.device)


def _put(parameter: Tensor, value: np.ndarray | Tensor) -> None:
    parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype))


def log_values(
    counts: csr_matrix, depth: np.ndarray, ceiling: np.ndarray | None = None
) -> csr_matrix:
    """Return ln(1 + 10,000 * count / depth), at most the gene's ceiling, sparse [cells, panel]."""
    values = counts.multiply((1e4 / depth)[:, None]).tocsr().log1p()
    if ceiling is not None:
        values.data = np.minimum(values.data, ceiling[values.indices])
    return values


def principal_axes(covariance: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest variances [width] of a covariance and their axes [genes, width].

    Example:
        >>> power, axes = principal_axes(np.diag([1.0, 4.0]), 1)
        >>> power.tolist(), axes.ravel().tolist()
        ([4.0], [0.0, 1.0])
    """
    power, axes = scipy.linalg.eigh(covariance, subset_by_index=(len(covariance) - width,
                                                                 len(covariance) - 1))
    power, axes = power[::-1], axes[:, ::-1]
    # An axis may point either way: let its largest entry be positive, so that runs agree.
    return power, axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(width)])


def reliability(
    covariances: list[np.ndarray], values: csr_matrix, half: np.ndarray, batch: np.ndarray,
    width: int,
) -> np.ndarray:
    """Return the share of the variance along each axis that other cells confirm as signal, [width].

    The axes of one half of the cells are judged on the other half and the other way round. Axes
    found and judged on the same cells would all seem to hold something.

    Args:
        covariances: without counting noise, of the two halves of the cells, [genes, genes] each.
        values: scaled values, noise and all, [cells, genes].
        half: cells of the first half, [cells] bool.
        batch: index of the batch, [cells].
        width: number of axes.
    """
    found = np.zeros(width)
    for own, other, judges in ((0, 1, ~half), (1, 0, half)):
        _, axes = principal_axes(covariances[own], width)
        seen = csr_matrix(values[judges] @ axes)
        means, sizes = group_means(seen, batch[judges])
        total = np.asarray(seen.multiply(seen).mean(0)).ravel() - (sizes @ means**2) / sizes.sum()
        signal = np.einsum("gj,gh,hj->j", axes, covariances[other], axes, optimize=True)
        found += signal / np.maximum(total, 1e-12) / 2
    # Axes come in falling order of signal: what rises again is chance.
    smooth = np.convolve(np.pad(found, 1, "edge"), np.full(3, 1 / 3), "valid")
    return np.minimum.accumulate(np.clip(smooth, 0.02, 1))


def signal_covariance(
    counts: csr_matrix, depth: np.ndarray, batch: np.ndarray, ceiling: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the covariance of genes around the mean of each cell's batch, without counting noise.

    Args:
        counts: UMI counts, [cells, genes].
        depth: total UMI counts, [cells].
        batch: index of the batch, [cells].
        ceiling: largest value of each gene that counts, [genes].
        rng: deals the molecules of each cell into two halves, twice.

    Returns:
        Covariance between the halves, [genes, genes].
    """
    found = 0.0
    for _ in range(2):
        first, second = (log_values(half, depth / 2, ceiling) for half in deal(counts, rng))
        (means, sizes), (others, _) = group_means(first, batch), group_means(second, batch)
        product = np.asarray((first.T @ second).todense()) / len(batch)
        product -= (means.T * (sizes / len(batch))) @ others
        found = found + (product + product.T) / 4
    return found


def deal(counts: csr_matrix, rng: np.random.Generator) -> tuple[csr_matrix, csr_matrix]:
    """Deal the molecules of each cell into two halves, [cells, genes] each."""
    first, second = counts.copy(), counts.copy()
    first.data = rng.binomial(counts.data.astype(int), 0.5).astype(counts.dtype)
    second.data = counts.data - first.data
    return first, second


def shared_shifts(
    values: csr_matrix, scale: np.ndarray, axes: np.ndarray, batch: np.ndarray, attempt: int
) -> np.ndarray:
    """Return the directions in which batches differ most within groups of like cells.

    Args:
        values: log-normalised, [cells, genes].
        scale: factor that brings each gene to unit variance, [genes].
        axes: of scaled genes, along which cells are grouped, [genes, width].
        batch: index of the batch, [cells].
        attempt: seed of the grouping.

    Returns:
        At most ``SHIFTS_LEFT_OUT`` directions of scaled genes, [directions, genes].
    """
    with warnings.catch_warnings():  # an empty group does no harm
        warnings.simplefilter("ignore")
        start = np.random.default_rng([attempt])
        groups = kmeans2(values @ (scale[:, None] * axes), GROUPS, minit="++", rng=start)[1]
    shifts = batch_shifts(values, groups, batch) * scale
    return np.linalg.svd(shifts, full_matrices=False)[2][:SHIFTS_LEFT_OUT]


def batch_shifts(values: csr_matrix, groups: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return how far each batch's part of a group lies from the group, [groups x batches, genes].

    Rows carry the square root of their number of cells, so that a decomposition weighs cells alike;
    parts of fewer than ten cells are left out.
    """
    parts = groups * (batch.max() + 2) + batch + 1
    means, sizes = group_means(values, parts)
    _, first = np.unique(parts, return_index=True)
    whole, _ = group_means(values, groups)
    group = np.searchsorted(np.unique(groups), groups[first])
    shifts = (means - whole[group]) * np.sqrt(sizes)[:, None]
    return shifts[sizes >= 10] if (sizes >= 10).any() else shifts


def group_means(values: csr_matrix, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each group's cells [groups, genes] and their number [groups]."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    member = csr_matrix((1 / sizes[group], (group, np.arange(len(group)))))
    return np.asarray((member @ values).todense()), sizes


def pretraining_loss(output: Output, batch: Batch, training: TrainingConfig) -> Tensor:
    """Score what the model predicts of the batch, and add what the quantiser asks for.

    The hidden genes are predicted from the continuous vector and again from the code alone, so that
    both carry the cell. Where a cell was thinned the prediction is at the depth it has in truth.
    Every sum is divided by a number that is known beforehand, not by what this batch happens to
    hold, so that the parts of a step add up to the same gradient however it is divided.

    Args:
        output: what the model says of the batch.
        batch: the batch, with ``hidden`` genes, thinned cells, or both.
        training: which tasks there are, and their weights.
    """
    from_cell = mean_likelihood(output.from_cell, batch, training.hidden_share)
    from_code = mean_likelihood(output.from_code, batch, training.hidden_share)
    likelihood = from_cell + training.code_likelihood * from_code
    loss = output.quantized.loss - LIKELIHOOD_WEIGHT * likelihood
    for number, logits in enumerate(output.properties.values()):
        labels = batch.properties[:, number]
        wrong = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / len(labels)
        loss = loss + training.property_weight * wrong
    return loss


def mean_likelihood(predicted: Counts, batch: Batch, hidden_share: float) -> Tensor:
    """Return the mean log likelihood of the hidden genes, or of all where none is hidden."""
    asked, share = batch.hidden, hidden_share
    if batch.measured is not None:
        asked, share = batch.measured & (asked if hidden_share else True), hidden_share or 1.0
    if asked is None:
        return predicted.log_likelihood(batch.counts).mean()
    places = asked.flatten().nonzero().squeeze(1)
    found = predicted.at(places).log_likelihood(batch.counts.flatten()[places])
    return found.sum() / (share * asked.numel())


def mean_profile(corpus: Corpus, depth: Tensor) -> Counts:
    """Predict every cell as the average training cell at its depth: the baseline to beat.

    Args:
        corpus: the cells; rates and overdispersion are those of the training cells.
        depth: total UMI counts of the cells to predict, [cells].
    """
    counts, sizes = corpus.counts[corpus.train], corpus.depth[corpus.train]
    exposure = corpus.summed(sizes, corpus.train)
    rate = np.asarray(counts.sum(0)).ravel() / exposure
    # Moments: variance = mean + mean^2 / dispersion, summed over cells of different depths.
    extra = np.asarray(counts.multiply(counts).sum(0)).ravel() - rate * exposure
    squares = rate**2 * corpus.summed(sizes**2, corpus.train)
    dispersion = squares / np.maximum(extra - squares, 1e-4 * squares + 1e-12)
    mean = depth.unsqueeze(1) * torch.as_tensor(rate, dtype=depth.dtype, device=depth.device)
    dispersion = torch.as_tensor(dispersion, dtype=depth.dtype, device=depth.device)
    return Counts(mean.clamp(min=1e-5), dispersion.clamp(1e-4, 1e4), None)
