"""Integration: are cells of one kind from several batches together, and cells of two kinds apart?

The ten measures of scIB (doi 10.1038/s41592-021-01336-8) as scib-metrics computes them, with BRAS
(doi 10.1038/s41587-025-02743-4) in place of the batch silhouette, which can reward the wrong thing.
The total is 0.6 times the mean of what is kept of biology plus 0.4 times that of batch removal.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from unittest import mock

import numpy as np
import pandas as pd
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from cellvq import InputError, baselines
from cellvq.entries import LEAST_CELLS, Benchmarked, Entry, Results

NEIGHBOURS = 90
"""Neighbours for the local measures, as scIB recommends; exact ones, by scikit-learn."""
BIOLOGY = ("isolated_labels", "kmeans_nmi", "kmeans_ari", "silhouette_label", "clisi")
BATCHES = ("bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
BIOLOGY_SHARE = 0.6
MOST_CELLS = 1000
"""Cells that are judged with one seed, as some measures compare each with each."""
CONFOUNDED = 0.99
"""Share of mutual information between labels and batches above which neither can be judged."""
PROTOCOLS = {"scib": "scib-metrics on nine tenths of the labelled cells, at most a thousand, drawn "
                     "by class and batch; total = 0.6 biology + 0.4 batches."}
"""What each protocol does."""


def integration(data: Benchmarked, entry: Entry, *, seed: int = 0) -> Results:
    """Judge how an entry's vectors bring batches together and keep kinds apart.

    Args:
        data: cells with labels and batches.
        entry: one method's vectors; codes are not judged.
        seed: draws nine tenths of the cells, at most ``MOST_CELLS``, anew with every seed, so that
            scores of several seeds say how far they depend on the cells.

    Returns:
        Scores, one row a measure, with ``biology``, ``batches`` and ``total``.

    Raises:
        InputError: one batch, labels that tell the batch, or scib-metrics is not installed.
    """
    if entry.vectors is None:
        return Results()
    labels, batches = data.labels(), data.column(data.batch)
    keep = usable(labels, batches)
    share = min(0.9, MOST_CELLS / len(keep))
    # As many cells of each class and batch with every seed, so that jax need not compile anew.
    groups = [labels[keep].astype(str), batches[keep].astype(str)]
    drawn = pd.Series(keep).groupby(groups).sample(frac=share, random_state=seed)
    keep = np.sort(drawn.to_numpy())
    before, _ = baselines.pca(data)
    with _quiet():
        values = measures(entry.vectors[keep], before[keep], labels[keep].astype(str),
                          batches[keep].astype(str))
    for name, parts in (("biology", BIOLOGY), ("batches", BATCHES)):
        values[name] = float(np.mean([values[part] for part in parts]))
    values["total"] = BIOLOGY_SHARE * values["biology"] + (1 - BIOLOGY_SHARE) * values["batches"]
    return Results(scores=pd.DataFrame([{
        "task": "integration", "protocol": "scib", "method": entry.method,
        "representation": "embedding", "metric": metric, "seed": seed, "value": value,
        "n_cells": len(keep), "n_groups": len(np.unique(batches[keep])),
        "settings": json.dumps({"neighbours": min(NEIGHBOURS, len(keep) - 1)}),
        "status": "" if np.isfinite(value) else f"{metric} is not defined for so few cells",
    } for metric, value in values.items()]))


def usable(labels: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Positions of the cells on which integration can be judged.

    Args:
        labels: class of each cell, empty where it is unknown, [cells].
        batches: batch of each cell, empty where it is unknown, [cells].

    Raises:
        InputError: no batch, one batch, or labels that tell the batch.

    Example:
        >>> usable(np.array(["B"] * 6 + ["NK"] * 6), np.array(["a"] * 6 + ["b"] * 6))
        Traceback (most recent call last):
        ...
        cellvq.InputError: labels and batches are confounded (a label tells the batch); ...
    """
    known = (labels != "") & (batches != "")
    sizes = pd.Series(labels[known]).value_counts()
    known &= np.isin(labels.astype(str), sizes.index[sizes >= LEAST_CELLS].astype(str))
    keep = np.flatnonzero(known)
    found = len(np.unique(batches[keep].astype(str)))
    if found < 2:
        raise InputError(f"{'one batch' if found else 'no batch'} is known; integration needs two, "
                         "name their column with --batch")
    kinds, groups = labels[keep].astype(str), batches[keep].astype(str)
    if len(np.unique(kinds)) < 2:
        raise InputError("fewer than two classes are known; there is nothing to keep apart")
    each_in_one = pd.crosstab(kinds, groups).gt(0).sum(axis=1).eq(1).all()
    if each_in_one or normalized_mutual_info_score(kinds, groups) > CONFOUNDED:
        raise InputError("labels and batches are confounded (a label tells the batch); nobody can "
                         "say what is biology and what is batch, so there is no verdict")
    return keep


def measures(
    vectors: np.ndarray, before: np.ndarray, labels: np.ndarray, batches: np.ndarray
) -> dict[str, float]:
    """Compute scIB's measures, each from 0 (bad) to 1 (good).

    Args:
        vectors: integrated embedding, [cells, dimensions].
        before: principal components before integration, [cells, components].
        labels: class of each cell, [cells].
        batches: batch of each cell, [cells].

    Raises:
        InputError: scib-metrics is not installed.
        ValueError: all vectors are the same.
    """
    try:
        scib = importlib.import_module("scib_metrics")
    except ImportError as error:
        raise InputError(f"not run: needs `{baselines.EXTRA}`") from error
    from scib_metrics import nearest_neighbors

    def neighbours(points: np.ndarray, n_neighbors: int) -> nearest_neighbors.NeighborsResults:
        fitted = NearestNeighbors(n_neighbors=min(n_neighbors, len(points))).fit(points)
        distances, indices = fitted.kneighbors(points)
        return nearest_neighbors.NeighborsResults(indices=indices, distances=distances)

    def nearest(most: int) -> nearest_neighbors.NeighborsResults:
        return nearest_neighbors.NeighborsResults(
            indices=whole.indices[:, :most], distances=whole.distances[:, :most])

    vectors = np.ascontiguousarray(vectors[:, np.ptp(vectors, axis=0) > 0], dtype=np.float32)
    if not vectors.size:
        raise ValueError("all cells have the same vector")
    number = min(NEIGHBOURS, len(vectors) - 1)
    whole = neighbours(vectors, number)
    groups = scib.nmi_ari_cluster_labels_kmeans(vectors, labels)
    # kBET looks for neighbours itself, approximate ones, which takes half a minute to compile.
    with mock.patch.object(nearest_neighbors, "pynndescent", neighbours):
        kbet = scib.kbet_per_label(nearest(50), batches, labels)
    found = {
        "isolated_labels": scib.isolated_labels(vectors, labels, batches),
        "kmeans_nmi": groups["nmi"], "kmeans_ari": groups["ari"],
        "silhouette_label": scib.silhouette_label(vectors, labels),
        "clisi": scib.clisi_knn(nearest(number), labels),
        "bras": scib.bras(vectors, labels, batches),
        "ilisi": scib.ilisi_knn(nearest(number), batches),
        "kbet": kbet,
        "graph_connectivity": scib.graph_connectivity(nearest(15), labels),
        "pcr_comparison": scib.pcr_comparison(before, vectors, batches, categorical=True),
    }
    return {name: float(value) for name, value in found.items()}


@contextlib.contextmanager
def _quiet():
    """Keep scib-metrics and jax silent."""
    for name in ("jax", "scib_metrics", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
