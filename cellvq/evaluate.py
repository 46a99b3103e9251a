"""Measures of a representation: agreement with labels, what a simple probe reads, code usage.

Every function takes plain arrays, leaves out cells without a label (missing, or an empty string)
and says how many cells it used. Intervals and nulls come from :mod:`cellvq.evidence`, whose
functions are offered here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse
from scipy import stats
from sklearn import metrics
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from cellvq import InputError
from cellvq.evidence import (
    PERMUTATION_NULL,
    Interval,
    NullTest,
    bootstrap_interval,
    enrichment,
    false_discovery_rate,
    labelled,
    labelled_pair,
    paired_difference,
    permutation_test,
    skewed_tail,
)

__all__ = [
    "PERMUTATION_NULL", "Interval", "NullTest", "Probe", "Usage", "agreement", "bootstrap_interval",
    "code_usage", "enrichment", "false_discovery_rate", "kmeans_codes", "knn_macro_f1", "labelled",
    "log_normalise", "paired_difference", "permutation_test", "perplexity", "probe", "purity",
    "skewed_tail",
]


@dataclass(frozen=True)
class Usage:
    """How evenly cells use the codes; a dead code holds no cell."""

    used: int
    dead: int
    perplexity: float
    n_cells: int


@dataclass(frozen=True)
class Probe:
    """What a simple classifier reads from a representation, on cells that it was not fitted to."""

    macro_f1: float
    accuracy: float
    n_cells: int
    n_classes: int
    folds: int
    left_out: tuple[str, ...]  # classes too rare to stand in every fold


def log_normalise(
    counts: scipy.sparse.csr_matrix, depth: np.ndarray, target: float = 1e4
) -> scipy.sparse.csr_matrix:
    """Natural logarithm of 1 + counts per ``target``: the scale of every test in the book.

    Args:
        counts: UMI counts, [cells, genes].
        depth: UMI counts of each cell over all measured genes, [cells]; cells at 0 stay at 0.
    """
    scale = target / np.maximum(np.asarray(depth, dtype=np.float64), 1)
    values = scipy.sparse.csr_matrix(scipy.sparse.diags(scale) @ counts, dtype=np.float32)
    return values.log1p()


def agreement(labels: Sequence, groups: Sequence) -> dict[str, float]:
    """Measure how well groups agree with labels: adjusted Rand index and mutual information.

    NMI grows with the number of groups, so compare it at an equal number of groups only; ARI and
    AMI are corrected for chance.

    Args:
        labels: label of each cell, [cells]; cells without one are dropped.
        groups: cluster or code of each cell, [cells].

    Returns:
        ``ari``, ``nmi``, ``ami``, ``n_cells`` and ``n_groups``.

    Example:
        >>> agreement(["B", "B", "NK", "NK", ""], [0, 0, 1, 1, 1])["ari"]
        1.0
    """
    labels, groups = labelled_pair(labels, groups)
    return {
        "ari": float(metrics.adjusted_rand_score(labels, groups)),
        "nmi": float(metrics.normalized_mutual_info_score(labels, groups)),
        "ami": float(metrics.adjusted_mutual_info_score(labels, groups)),
        "n_cells": len(labels),
        "n_groups": len(np.unique(groups)),
    }


def purity(labels: Sequence, groups: Sequence) -> float:
    """Share of labelled cells that carry the most common label of their group.

    It reaches 1 when every cell is a group of its own: read it beside :func:`permutation_test`.

    Example:
        >>> purity(["B", "B", "NK", "NK"], [0, 0, 0, 1])
        0.75
    """
    labels, groups = labelled_pair(labels, groups)
    table = metrics.cluster.contingency_matrix(labels, groups)
    return float(table.max(axis=0).sum() / table.sum())


def perplexity(codes: Sequence) -> float:
    """Number of equally used codes that would have the entropy of these codes.

    Example:
        >>> round(perplexity(["C0", "C1", "C2", "C3"]), 6)
        4.0
    """
    return float(np.exp(stats.entropy(pd.Series(codes).value_counts().to_numpy())))


def code_usage(codes: Sequence, codebook_size: int | None = None) -> Usage:
    """Count codes in use and dead codes, and give the perplexity.

    Args:
        codes: code of each cell, [cells]; cells without one are dropped.
        codebook_size: number of codes that the model has; None: only those seen.

    Example:
        >>> usage = code_usage(["C0", "C0", "C1", None], codebook_size=4)
        >>> usage.used, usage.dead, usage.n_cells
        (2, 2, 3)
    """
    codes = np.asarray(codes, dtype=object)
    codes = codes[labelled(codes)].astype(str)
    used = len(np.unique(codes))
    return Usage(used, (codebook_size or used) - used, perplexity(codes), len(codes))


def probe(
    features: np.ndarray,
    labels: Sequence,
    *,
    classifier: str = "knn",
    seed: int = 0,
    donors: Sequence | None = None,
    folds: int = 5,
    neighbors: int = 15,
) -> Probe:
    """Predict the label of each cell by a classifier that saw neither it nor its donor.

    Predictions of all folds are pooled before scoring, so that rare classes are scored once.

    Args:
        features: embedding, [cells, dimensions]; for ``majority`` the code of each cell, [cells].
        labels: label of each cell, [cells]; cells without one are dropped, and so are classes
            with fewer cells than folds or, with donors, in a single donor.
        classifier: ``knn``, ``logistic`` (on standardised features) or ``majority`` (the most
            common label of the code).
        seed: seed of the folds, which keep the share of every label.
        donors: donor of each cell, [cells]: no donor stands on both sides of a fold; cells without
            one are dropped. None: folds split cells.
        folds: number of folds, at most the number of donors.
        neighbors: neighbours that vote in ``knn``.

    Raises:
        InputError: fewer than two classes or donors are left.

    Example:
        >>> features = np.repeat([[0.0], [5.0]], 20, axis=0)
        >>> probe(features, ["B"] * 20 + ["NK"] * 20).macro_f1
        1.0
    """
    features = np.asarray(features)
    features = features.reshape(len(features), -1)
    units = range(len(features)) if donors is None else donors
    labels, units = np.asarray(labels, dtype=object), np.asarray(units, dtype=object)
    if not len(features) == len(labels) == len(units):
        raise InputError(f"{len(labels)} labels for {len(features)} cells: give one for each cell")
    keep = labelled(labels) & labelled(units)
    folds = folds if donors is None else min(folds, len(np.unique(units[keep].astype(str))))
    sizes = pd.Series(units[keep]).groupby(labels[keep].astype(str)).agg(["size", "nunique"])
    rare = sizes.index[(sizes["size"] < folds) | (sizes["nunique"] < 2)]
    keep &= ~np.isin(labels.astype(str), rare)
    features, labels, units = features[keep], labels[keep].astype(str), units[keep].astype(str)
    classes = np.unique(labels)
    if len(classes) < 2 or folds < 2:
        raise InputError(
            f"a probe needs two labels with at least {max(folds, 2)} cells each, and two donors "
            "where cells are split by donor: name another label column, or no donor"
        )
    kind, groups = (StratifiedKFold, None) if donors is None else (StratifiedGroupKFold, units)
    split = kind(folds, shuffle=True, random_state=seed).split(features, labels, groups)
    predicted = np.empty_like(labels)
    for train, test in split:
        model = _classifier(classifier, min(neighbors, len(train)), seed)
        predicted[test] = model.fit(features[train], labels[train]).predict(features[test])
    macro_f1 = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    accuracy = metrics.accuracy_score(labels, predicted)
    return Probe(float(macro_f1), float(accuracy), len(labels), len(classes), folds, tuple(rare))


def _classifier(name: str, neighbors: int, seed: int):
    if name == "knn":
        return KNeighborsClassifier(neighbors)
    if name == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if name == "majority":  # a fully grown tree over one categorical feature: a leaf a code
        codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        return make_pipeline(codes, DecisionTreeClassifier(random_state=seed))
    raise InputError(f"unknown classifier {name!r}: use knn, logistic or majority")


def knn_macro_f1(embedding: np.ndarray, labels: Sequence, seed: int = 0, **options) -> float:
    """Macro-F1 of a k-nearest-neighbour :func:`probe`, which takes the other options."""
    return probe(embedding, labels, seed=seed, **options).macro_f1


def kmeans_codes(embedding: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Group cells by k-means, the simplest codebook there is.

    Args:
        embedding: [cells, dimensions].
        k: number of groups; for a fair baseline the number of codes IN USE, not the codebook size.
        seed: seed of the four starts, of which the best is kept.

    Returns:
        Group of each cell, 0 to k - 1, [cells].

    Example:
        >>> len(set(kmeans_codes(np.arange(20.0).reshape(-1, 1), 3)))
        3
    """
    if not 1 <= k <= len(embedding):
        raise InputError(f"k-means needs between 1 and {len(embedding)} groups; {k} asked for")
    kmeans = MiniBatchKMeans if len(embedding) > 50_000 else KMeans
    with threadpool_limits(1):  # the order of sums, and so the result, depends on the threads
        return kmeans(k, n_init=4, random_state=seed).fit_predict(embedding)
