"""Which cells are new, and what a judgement of that is worth: conformal p-values and their tests.

A score of strangeness alone says nothing. Here it is held against cells known to be ordinary, which
gives a p-value with a stated rate of false alarms, and against what is known of the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_matrix
from sklearn import metrics
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from cellvq import InputError, counts, evaluate

if TYPE_CHECKING:
    from anndata import AnnData

NEIGHBOURS = 5
"""Reference cells to which the distance of a cell is averaged."""
FITTED = 10_000
"""The PCA is fitted to no more reference cells than this."""
DETECTION_COLUMNS = {
    "score": str, "auroc": float, "detected": float, "detected_low": float, "detected_high": float,
    "false_alarms": float, "false_alarms_low": float, "false_alarms_high": float,
    "novel_cells": int, "known_cells": int, "calibration_cells": int, "alpha": float,
}
"""Columns of `detection`."""


def conformal_p(
    scores: Sequence[float],
    calibration: Sequence[float],
    groups: Sequence | None = None,
    calibration_groups: Sequence | None = None,
    *,
    least: int = 100,
) -> np.ndarray:
    """Give each score the share of ordinary cells that are at least as strange.

    That is (1 + as strange) / (1 + all), so that of ordinary cells at most a share alpha gets a p
    of alpha or less, whatever the score's distribution (Bates et al., doi 10.1214/22-AOS2244). With
    groups this holds within each group that has cells enough, and within the rest together
    (Mondrian conformal prediction, doi 10.1007/978-3-031-06649-8).

    Args:
        scores: of the cells in question, the larger the stranger; a missing one stays missing.
        calibration: of ordinary cells that neither trained the model nor are anybody's neighbours.
        groups: group of each cell in question, such as its code; None: all are one group.
        calibration_groups: group of each calibration cell.
        least: fewest calibration cells with which a group stands for itself.

    Example:
        >>> conformal_p([0.5, 9.0], [0.0, 1.0, 2.0, 3.0]).tolist()
        [0.8, 0.2]
    """
    scores, known = np.asarray(scores, float), np.asarray(calibration, float)
    finite = np.isfinite(known)
    if not finite.any():
        raise InputError("no calibration cell has a score; give ordinary cells to calibrate on")
    own, of_known = np.full(len(scores), "", object), np.full(len(known), "", object)
    if groups is not None:
        sizes = pd.Series(np.asarray(calibration_groups, object)[finite]).value_counts()
        large = sizes.index[sizes >= least]
        own = np.where(np.isin(groups, large), groups, "")
        of_known = np.where(np.isin(calibration_groups, large), calibration_groups, "")
    p = np.full(len(scores), np.nan)
    for group in pd.unique(own):
        here, there = (own == group) & np.isfinite(scores), finite & (of_known == group)
        if group == "" and there.sum() < least:  # too few are left over: all stand for them
            there = finite
        ordered = np.sort(known[there])
        as_strange = len(ordered) - np.searchsorted(ordered, scores[here], side="left")
        p[here] = (1 + as_strange) / (1 + len(ordered))
    return p


def threshold(calibration: Sequence[float], alpha: float = 0.05) -> float:
    """Return the score beyond which the p-value of `conformal_p` is at most alpha.

    It is infinite where there are fewer than 1 / alpha - 1 calibration cells: then no cell can be
    told to be new at this rate.

    Example:
        >>> threshold(range(19)), threshold(range(18))
        (18.0, inf)
    """
    known = np.asarray(calibration, float)
    known = np.sort(known[np.isfinite(known)])[::-1]
    allowed = int(np.floor(alpha * (1 + len(known)) + 1e-9))
    return float(known[allowed - 1]) if allowed else np.inf


def detection(
    scores: Mapping[str, Sequence[float]],
    calibration: Mapping[str, Sequence[float]],
    is_novel: Sequence[bool],
    *,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Judge scores of novelty where it is known which cells are new.

    Args:
        scores: of each method, the scores of the cells; missing ones are left out in all methods.
        calibration: of each method, the scores of its calibration cells.
        is_novel: whether each cell is of a kind that is not in the reference, [cells].
        alpha: false-alarm rate aimed at.

    Returns:
        One row a method: ``score`` (str), ``auroc``, ``detected`` (share of the new cells with p of
        at most alpha), ``false_alarms`` (share of the known cells), both with 95 % intervals
        (Clopper and Pearson) ``_low`` and ``_high``, ``novel_cells``, ``known_cells``,
        ``calibration_cells`` (int), ``alpha``. Without new or without known cells it is empty, and
        ``attrs["reason"]`` says so.

    Example:
        >>> table = detection({"far": [9, 9, 1]}, {"far": range(4)}, [True, True, False], alpha=0.2)
        >>> table[["auroc", "detected", "false_alarms"]].values.tolist()
        [[1.0, 1.0, 0.0]]
    """
    is_novel = np.asarray(is_novel, bool)
    whole = np.all([np.isfinite(np.asarray(values, float)) for values in scores.values()], axis=0)
    novel, known = whole & is_novel, whole & ~is_novel
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in DETECTION_COLUMNS.items()})
    if not novel.any() or not known.any():
        table.attrs["reason"] = f"{novel.sum()} new and {known.sum()} known cells; both are needed"
        return table
    rows = []
    for name, values in scores.items():
        values = np.asarray(values, float)
        flagged = conformal_p(values, calibration[name]) <= alpha
        rows.append([
            name, metrics.roc_auc_score(is_novel[whole], values[whole]),
            *_share(flagged[novel]), *_share(flagged[known]), novel.sum(), known.sum(),
            np.isfinite(np.asarray(calibration[name], float)).sum(), alpha,
        ])
    return pd.DataFrame(rows, columns=list(DETECTION_COLUMNS)).astype(DETECTION_COLUMNS)


def pca_distances(
    reference: AnnData, *others: AnnData, neighbours: int = NEIGHBOURS, components: int = 50
) -> list[np.ndarray]:
    """Return how far cells lie from their nearest reference cells in a PCA: the baseline to beat.

    The recipe of `tasks.pca_embedding` (log of counts per 10,000, 2,000 variable genes, unit
    variance clipped at ten), fitted to the reference alone and then applied to the others.

    Args:
        reference: cells with raw counts.
        others: cells with raw counts; only genes that all of them have are used.
        neighbours: reference cells that are averaged over.
        components: dimensions of the PCA.

    Returns:
        Mean distance of each cell of each of the others, [cells].
    """
    panel = [gene for gene in reference.var_names if all(gene in c.var_names for c in others)]
    values = [_values(cells, panel) for cells in (reference, *others)]
    return nearest_in_pca(*values, neighbours=neighbours, components=components)


def nearest_in_pca(
    reference: csr_matrix, *others: csr_matrix, neighbours: int = NEIGHBOURS, components: int = 50
) -> list[np.ndarray]:
    """Return what `pca_distances` does, from log-normalised values, [cells, genes] each."""
    import scanpy as sc
    from anndata import AnnData

    genes = np.flatnonzero(np.diff(reference.tocsc().indptr))
    if len(genes) > 2000:
        work = AnnData(reference[:, genes])
        sc.pp.highly_variable_genes(work, n_top_genes=2000)
        genes = genes[work.var["highly_variable"].to_numpy()]
    drawn = np.random.default_rng(0).permutation(reference.shape[0])[:FITTED]
    start = reference[np.sort(drawn)][:, genes].toarray()
    clip = FunctionTransformer(np.clip, kw_args={"a_min": -10, "a_max": 10})
    size = min(components, min(start.shape) - 1)
    with threadpool_limits(1):  # the order of sums, and so the result, depends on the threads
        embed = make_pipeline(StandardScaler(), clip, PCA(size, random_state=0)).fit(start)
        places = [
            np.concatenate([embed.transform(part[begin : begin + FITTED, genes].toarray())
                            for begin in range(0, part.shape[0], FITTED)])
            for part in (reference, *others)
        ]
    nearest = NearestNeighbors(n_neighbors=min(neighbours, reference.shape[0])).fit(places[0])
    return [nearest.kneighbors(place)[0].mean(1) for place in places[1:]]


def _values(cells: AnnData, panel: list[str]) -> csr_matrix:
    """Log-normalised values of some genes, [cells, panel]."""
    raw, _ = counts.find_counts(cells)
    depth = counts.sequencing_depth(cells, raw)
    return evaluate.log_normalise(counts.align(cells, raw, panel)[0], depth)


def _share(hits: np.ndarray) -> tuple[float, float, float]:
    """Share of hits and its exact 95 % interval."""
    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci()
    return float(hits.mean()), float(interval.low), float(interval.high)
