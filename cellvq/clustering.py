"""Clustering: do groups of like vectors, made without labels, agree with the labels?

Leiden communities of 15 nearest neighbours, at the resolution that the method's own silhouette
prefers, and k-means with as many groups as there are classes. A code is a clustering already.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.metrics import silhouette_score

from cellvq import InputError, evaluate
from cellvq.entries import Benchmarked, Entry, Results

NEIGHBOURS = 15
RESOLUTIONS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
SILHOUETTE_CELLS = 1000
"""Cells, drawn at random, on which a resolution is chosen."""
PROTOCOLS = {
    "leiden": "Leiden communities of 15 neighbours; of eight resolutions from 0.1 to 2 the one "
              "with the largest mean silhouette of the method's own vectors, without labels.",
    "k-means": "As many groups as there are classes, the best of four starts.",
    "code": "The codes themselves, beside k-means on PCA with as many groups.",
}
"""What each protocol does."""


def clustering(data: Benchmarked, entry: Entry, *, seed: int = 0) -> Results:
    """Judge an entry's vectors by clusters of them, and its codes as they are.

    Args:
        data: cells with labels.
        entry: one method's vectors, codes, or both.
        seed: seed of both clusterings.

    Returns:
        Calls (the group of each labelled cell), and scores: the silhouette of the labels (0 to 1,
        half where classes touch), codes in use and their perplexity.

    Raises:
        InputError: fewer than two classes are known.

    Example:
        >>> from cellvq.entries import prepare
        >>> from cellvq.simulate import simulate_cells
        >>> data = prepare(simulate_cells(cells=200), "cell_type")
        >>> found = clustering(data, Entry("mine", 0, codes=data.labels()))
        >>> found.calls.truth.eq(found.calls.call).all()
        np.True_
    """
    labels = data.labels()
    known = np.flatnonzero(labels != "")
    classes = np.unique(labels[known].astype(str))
    if len(classes) < 2:
        raise InputError("fewer than two classes are known, there is nothing to find again")
    calls, scores = [], []
    if entry.vectors is not None:
        vectors = np.asarray(entry.vectors, dtype=np.float32)
        groups, resolution = leiden(vectors, seed)
        calls.append(_calls("leiden", "embedding", entry, seed, known, labels, groups))
        groups = evaluate.kmeans_codes(vectors, len(classes), seed)
        calls.append(_calls("k-means", "embedding", entry, seed, known, labels, groups))
        value = _silhouette(vectors[known], labels[known].astype(str), seed)
        scores.append(_score("labels", "embedding", "silhouette", (value + 1) / 2, entry, seed,
                             len(known), len(classes), f'{{"resolution": {resolution}}}'))
    if entry.codes is not None:
        codes = entry.codes.astype(str)
        calls.append(_calls("code", "code", entry, seed, known, labels, codes))
        usage = evaluate.code_usage(codes)
        for metric, value in (("codes_used", usage.used), ("perplexity", usage.perplexity)):
            scores.append(_score("code", "code", metric, value, entry, seed, len(codes),
                                 usage.used))
    return Results(calls=pd.concat(calls, ignore_index=True), scores=pd.DataFrame(scores))


def leiden(vectors: np.ndarray, seed: int = 0) -> tuple[np.ndarray, float]:
    """Find Leiden communities at the resolution of the largest silhouette.

    Args:
        vectors: embedding, [cells, dimensions].
        seed: seed of the communities and of the cells that judge them.

    Returns:
        Community of each cell, [cells], and the resolution.
    """
    import scanpy as sc
    from anndata import AnnData

    work = AnnData(obsm={"X": vectors}, obs=pd.DataFrame(index=map(str, range(len(vectors)))))
    # Exact neighbours: scanpy's own choice beyond 4,096 cells fails with newer pynndescent.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(work, NEIGHBOURS, use_rep="X", transformer="sklearn", random_state=seed)
    best = (-np.inf, np.zeros(len(vectors), dtype=int), RESOLUTIONS[0])
    for resolution in RESOLUTIONS:
        sc.tl.leiden(work, resolution, flavor="igraph", n_iterations=2, directed=False,
                     random_state=seed, key_added="group")
        groups = work.obs["group"].to_numpy(int)
        value = _silhouette(vectors, groups, seed)
        if value > best[0]:
            best = value, groups, resolution
    return best[1:]


def _silhouette(vectors: np.ndarray, groups: np.ndarray, seed: int) -> float:
    """Mean silhouette of some cells; -1 where all lie in one group, or each in its own."""
    chosen = np.random.default_rng([seed, 13]).permutation(len(groups))[:SILHOUETTE_CELLS]
    found = len(np.unique(groups[chosen]))
    if not 1 < found < len(chosen):
        return -1.0
    return float(silhouette_score(vectors[chosen], groups[chosen]))


def _calls(protocol, representation, entry, seed, known, labels, groups) -> pd.DataFrame:
    return pd.DataFrame({
        "task": "clustering", "protocol": protocol, "method": entry.method,
        "representation": representation, "seed": seed, "fold": 0, "cell": known,
        "truth": labels[known].astype(str), "call": groups[known].astype(str),
    })


def _score(
    protocol, representation, metric, value, entry, seed, n_cells, n_groups, settings="{}"
) -> dict:
    return {"task": "clustering", "protocol": protocol, "method": entry.method,
            "representation": representation, "metric": metric, "seed": seed,
            "value": float(value), "n_cells": n_cells, "n_groups": n_groups, "settings": settings,
            "status": ""}
