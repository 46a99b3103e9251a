"""From cells to the tokens of the graph module: genes, annotations, neighbours, signals.

Two things are kept apart. The molecules that are held out, and on which the module is judged, are
dealt before anything is computed (:func:`deal`), as neighbours and cell vectors would tell of them
otherwise. And whatever a token needs of other cells comes from training cells, whose vectors
the :class:`Vocabulary` keeps: neighbours are training cells, so that a cell's tokens do not depend
on the cells that happen to stand beside it, and held-out cells tell nothing of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate, graphsignals, graphvectors
from cellvq.counts import DEPTH_COLUMNS, find_counts, sequencing_depth

if TYPE_CHECKING:
    from anndata import AnnData

KINDS = ("genes", "annotations", "neighbours", "pairs")
"""Kinds of tokens beside the cell's own."""
REFERENCE = 20_000
"""Training cells that may be neighbours, at the most; more are drawn from."""
FEWEST = 20
"""Training cells below which nothing can be learnt."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What tokens are made of: learnt from training cells, and the same for all other cells."""

    genes: tuple[str, ...]  # the panel: genes that have tokens, and whose counts are predicted
    annotations: dict[str, tuple[str, ...]]  # known values of each annotation, by column of obs
    pairs: tuple[tuple[str, str], ...]  # ligand and receptor; subunits are joined by _
    features: str  # key of obsm with cell vectors, or empty: components of expression
    mean: np.ndarray  # what is taken off the input of the cell vector, [inputs]
    axes: np.ndarray  # how the input becomes the cell vector, [inputs, width]
    scale: np.ndarray  # mean and standard deviation of each gene's log value, [2, panel]
    reference: np.ndarray  # vectors of the training cells that may be neighbours, [cells, width]
    apart: str  # column of obs; cells are neighbours only where it differs; empty: their names
    names: np.ndarray  # hash of each reference cell's value of it, int64 [cells]
    centres: np.ndarray  # mean vector of each group of like cells, [groups, width]
    partner: np.ndarray  # group at the other end where a cell receives, and sends, [2, pairs]
    contrast: np.ndarray  # how far that group stands out, [2, pairs]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of cells, and the counts that are to be predicted; -1 where there is none."""

    vocabulary: Vocabulary
    features: np.ndarray  # cell vectors, float32 [cells, width]
    gene: np.ndarray  # expressed genes that stand out most, int [cells, gene tokens]
    value: np.ndarray  # each above its mean, in standard deviations, float32 [cells, gene tokens]
    annotation: np.ndarray  # number of the value of each annotation, int [cells, annotations]
    neighbour: np.ndarray  # nearest reference cells, nearest first, int [cells, neighbours]
    pair: np.ndarray  # pairs, received ones and then as many sent ones, int [cells, pair tokens]
    weight: np.ndarray  # product of the expression at both ends, float32 [cells, pair tokens]
    target: csr_matrix  # counts to be predicted, [cells, panel]
    depth: np.ndarray  # molecules in which, by what is shown alone, float32 [cells]


def deal(cells: AnnData, share: float = 0.8, seed: int = 0) -> AnnData:
    """Deal each cell's molecules into a shown and a held-out part, which are independent.

    Binomial thinning (doi 10.1093/biostatistics/kxac047). Encode what this returns, not the whole
    cells, where vectors of another model are to be the features.

    Args:
        cells: cells with raw counts.
        share: share of the molecules that are shown.
        seed: seed of the deal.

    Returns:
        Cells with shown counts in ``X``, held-out ones in ``layers["held"]``, the depth of the
        shown molecules in ``obs["total_counts"]`` and the share in ``uns["shown_share"]``.

    Raises:
        InputError: the share is not between 0 and 1, or there are no counts.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=60)
        >>> dealt = deal(cells, 0.8)
        >>> bool(abs(dealt.X + dealt.layers["held"] - cells.X).sum() == 0)
        True
    """
    from anndata import AnnData

    if not 0 < share < 1:
        raise InputError(f"the shown share is {share}; use one between 0 and 1, such as 0.8")
    counts, _ = find_counts(cells)
    rng = np.random.default_rng([seed, 41])
    shown = counts.copy()
    shown.data = rng.binomial(counts.data.astype(np.int64), share).astype(np.float32)
    held = csr_matrix(counts - shown)
    shown.eliminate_zeros()
    held.eliminate_zeros()
    elsewhere = sequencing_depth(cells, counts) - np.asarray(counts.sum(1)).ravel()
    depth = np.asarray(shown.sum(1)).ravel()
    depth += rng.binomial(np.maximum(elsewhere, 0).astype(np.int64), share)
    obs = cells.obs.drop(columns=[name for name in DEPTH_COLUMNS if name in cells.obs])
    return AnnData(
        shown, obs=obs.assign(total_counts=depth), var=cells.var.copy(), layers={"held": held},
        uns={**cells.uns, "shown_share": share})


def learn(
    cells: AnnData, *, train: np.ndarray | None = None, features: str = "",
    annotations: tuple[str, ...] = (), genes: int = 2000, width: int = 16,
    pairs: pd.DataFrame | None = None, apart: str = "", seed: int = 0,
) -> Vocabulary:
    """Learn from training cells what tokens are made of.

    Args:
        cells: cells with raw counts, as a rule those of :func:`deal`.
        train: which cells may be learnt from, [cells] bool; None: all.
        features: key of ``obsm`` with cell vectors, such as ``X_cellvq``; empty: principal
            components of log-normalised counts.
        annotations: columns of ``obs``; never one whose values codes are judged by.
        genes: size of the panel, the genes whose Pearson residuals vary most
            (doi 10.1186/s13059-021-02451-7).
        width: width of the cell vector.
        pairs: table with ``ligand`` and ``receptor``; None: liana's consensus list. An empty table
            leaves these tokens out.
        apart: column of ``obs``, as a rule the donor: neighbours come from other donors, as they
            must for cells of a donor who was not there. Empty: only the cell itself is left out.
        seed: seed of the components, the groups, and the draw of the reference.

    Raises:
        InputError: a column or a key does not exist, or there are too few cells.
    """
    counts, depth = _counted(cells)
    train = np.ones(cells.n_obs, bool) if train is None else np.asarray(train, bool)
    for name in (*annotations, *([apart] if apart else [])):
        if name not in cells.obs:
            raise InputError(f"obs has no column {name!r}; there are {', '.join(cells.obs)}")
    if train.sum() < FEWEST:
        raise InputError(f"{train.sum()} training cells; give {FEWEST} or more")
    counts, depth = counts[train], depth[train]
    panel = graphvectors.variable(counts, depth, genes)
    values = evaluate.log_normalise(counts[:, panel], depth)
    mean = np.asarray(values.mean(0)).ravel()
    square = np.asarray(values.multiply(values).mean(0)).ravel()
    scale = np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0)) + 0.1]).astype(np.float32)
    inputs = _vectors(cells, features)[train] if features else values
    offset, axes = graphvectors.components(inputs, None if features else scale[1], width, seed)
    vectors = np.asarray(inputs @ axes - offset @ axes, np.float32)
    group, centres = graphvectors.groups(vectors, seed)
    known = {name: tuple(sorted(cells.obs.loc[train & evaluate.labelled(cells.obs[name]), name]
                                .astype(str).unique())) for name in annotations}
    usable = graphsignals.usable(cells, pairs)
    partner, contrast = graphsignals.partners(
        counts, depth, pd.Index(cells.var_names.astype(str)), usable, group)
    kept = np.arange(len(vectors))
    if len(kept) > REFERENCE:
        kept = np.sort(np.random.default_rng([seed, 53]).choice(kept, REFERENCE, replace=False))
    return Vocabulary(
        tuple(cells.var_names[panel].astype(str)), known, usable, features, offset, axes, scale,
        vectors[kept], apart, graphvectors.hashed(cells, apart)[train][kept], centres, partner,
        contrast)


def tokens(
    cells: AnnData, vocabulary: Vocabulary, *, genes: int = 32, neighbours: int = 8,
    pairs: int = 4,
) -> Tokens:
    """Make the tokens of cells.

    Args:
        cells: cells with raw counts. Where they are dealt, held-out counts are the target;
            otherwise the target is what is shown, which is good for encoding alone.
        vocabulary: what :func:`learn` made.
        genes: gene tokens of a cell.
        neighbours: cells that lie next to it, among the training cells that the vocabulary keeps.
            One of the same name is taken for the cell itself, and left out.
        pairs: ligand-receptor pairs in each direction.

    Raises:
        InputError: the cells have other genes, or lack the vectors.

    Example:
        >>> from cellvq.simulate import simulate_cells, truth
        >>> cells = deal(simulate_cells(cells=200))
        >>> words = learn(cells, genes=100, width=8, pairs=truth(cells)["communication"])
        >>> made = tokens(cells, words, genes=10, neighbours=5)
        >>> made.gene.shape, made.neighbour.shape, made.pair.shape
        ((200, 10), (200, 5), (200, 8))
    """
    counts, depth = _counted(cells)
    names = pd.Index(cells.var_names.astype(str))
    place = names.get_indexer(vocabulary.genes) if names.is_unique else -np.ones(1)
    here = place >= 0
    if here.mean() < 0.5:
        raise InputError(f"{here.sum()} of {len(here)} genes of the panel are among the genes of "
                         "these cells; name genes alike, and each once")
    panel = _columns(counts, place)
    values = evaluate.log_normalise(panel, depth)
    inputs = _vectors(cells, vocabulary.features) if vocabulary.features else values
    if inputs.shape[1] != len(vocabulary.mean):
        raise InputError(f"vectors in {vocabulary.features} have {inputs.shape[1]} columns, and "
                         f"the module was trained on {len(vocabulary.mean)}")
    found = np.asarray(inputs @ vocabulary.axes - vocabulary.mean @ vocabulary.axes, np.float32)
    gene, value = _top_genes(values, vocabulary, genes)
    annotation = np.full((cells.n_obs, len(vocabulary.annotations)), -1)
    for number, (name, known) in enumerate(vocabulary.annotations.items()):
        if name in cells.obs:
            annotation[:, number] = pd.Index(known).get_indexer(cells.obs[name].astype(str))
    pair, weight = graphsignals.strongest(
        counts, depth, names, vocabulary.pairs, vocabulary.contrast, pairs)
    near = graphvectors.nearest(
        found, graphvectors.hashed(cells, vocabulary.apart), vocabulary.reference,
        vocabulary.names, neighbours, bool(vocabulary.apart))
    share = float(cells.uns.get("shown_share", 0.5)) if "held" in cells.layers else 0.5
    target = _columns(csr_matrix(cells.layers["held"]), place) if "held" in cells.layers else panel
    return Tokens(
        vocabulary, found, gene, value, annotation, near, pair, weight, target,
        (np.maximum(depth, 1) * (1 - share) / share).astype(np.float32))


def _counted(cells: AnnData) -> tuple[csr_matrix, np.ndarray]:
    counts, _ = find_counts(cells)
    return counts, sequencing_depth(cells, counts)


def _columns(counts: csr_matrix, place: np.ndarray) -> csr_matrix:
    """Pick columns; a place of -1 gives one of zeros."""
    rows = np.flatnonzero(place >= 0)
    pick = csr_matrix((np.ones(len(rows), np.float32), (place[rows], rows)),
                      (counts.shape[1], len(place)))
    return csr_matrix(counts @ pick)


def _vectors(cells: AnnData, key: str) -> np.ndarray:
    if key not in cells.obsm:
        raise InputError(f"obsm has no {key!r}: give the model that makes them, or encode these "
                         "cells by it first")
    return np.asarray(cells.obsm[key], np.float32)


def _top_genes(
    values: csr_matrix, words: Vocabulary, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the expressed genes that stand out most, and by how much."""
    number = min(number, values.shape[1])
    genes, sizes = [], []
    for first in range(0, values.shape[0], graphsignals.BLOCK):
        dense = values[first : first + graphsignals.BLOCK].toarray()
        out = np.clip((dense - words.scale[0]) / words.scale[1], -10, 10)
        top = np.argsort(-np.where(dense > 0, out, -np.inf), axis=1, kind="stable")[:, :number]
        is_there = np.take_along_axis(dense, top, 1) > 0
        genes.append(np.where(is_there, top, -1))
        sizes.append(np.where(is_there, np.take_along_axis(out, top, 1), 0).astype(np.float32))
    return np.concatenate(genes), np.concatenate(sizes)
