"""How much of each protein do codes tell, is it more than PCA tells, and do codes add to PCA?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellvq import InputError, evaluate
from cellvq.judging import AHEAD, BEHIND, EQUAL
from cellvq.markers import CODE
from cellvq.proteinreading import BASE, CODES, Reading, plus
from cellvq.proteins import inside_clusters
from cellvq.resampling import estimate

if TYPE_CHECKING:
    from anndata import AnnData

ALL = "all proteins"
"""Row of the mean over proteins, in which each counts alike."""
BEYOND, NOT_SHOWN = "beyond PCA", "not shown"
VERDICT_COLUMNS = {
    "protein": str, "method": str, "baseline": str, "difference": float, "low": float,
    "high": float, "p": float, "fdr": float, "verdict": str, "n_cells": int, "seeds": int,
}


def scores(reading: Reading, *, draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """Share of each protein's variance that each method reads, with 95 % intervals.

    Cells and seeds are resampled; proteins are those that were measured.

    Returns:
        One row a method and protein, and one a method for ``all proteins`` (their mean):
        ``method``, ``protein``, ``share`` (below 0: worse than the mean of the batch), ``low``,
        ``high``.
    """
    names = [*reading.values, ALL]
    parts = []
    for method in reading.left:
        drawn = _drawn(reading, method, None, draws, seed)
        found = [estimate(drawn[:, :, at], len(reading.values)) for at in range(len(names))]
        parts.append(pd.DataFrame({
            "method": method, "protein": names, "share": [one.value for one in found],
            "low": [one.low for one in found], "high": [one.high for one in found]}))
    return pd.concat(parts, ignore_index=True)


def differences(
    reading: Reading, method: str, baselines: Iterable[str], *, draws: int = 500, seed: int = 0,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Judge a method against others for every protein, paired by cell and seed.

    Returns:
        One row a baseline and protein (``all proteins``, which takes no part in the
        correction, first), with the columns ``VERDICT_COLUMNS``: ``difference`` (share of variance,
        above 0 is better), ``fdr`` (over the proteins of a baseline), ``verdict``.

    Raises:
        InputError: a method was not read.
    """
    parts = []
    for baseline in baselines:
        if absent := {method, baseline} - set(reading.left):
            raise InputError(f"{absent.pop()!r} was not read; there are {', '.join(reading.left)}")
        drawn = _drawn(reading, method, baseline, draws, seed)
        found = [estimate(drawn[:, :, at], len(reading.values)) for at in range(drawn.shape[2])]
        parts.append(pd.DataFrame({
            "protein": [*reading.values, ALL], "method": method, "baseline": baseline,
            "difference": [one.value for one in found], "low": [one.low for one in found],
            "high": [one.high for one in found], "p": [one.p for one in found]}).iloc[
                [-1, *range(len(found) - 1)]])
    table = pd.concat(parts, ignore_index=True).assign(
        n_cells=len(reading.values), seeds=len(reading.left[method]))
    table["fdr"] = _corrected(table, "baseline")
    sure = table["fdr"] < alpha
    words = np.select([sure & (table["difference"] > 0), sure], [AHEAD, BEHIND], EQUAL)
    return table.assign(verdict=words)[list(VERDICT_COLUMNS)].astype(VERDICT_COLUMNS)


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the mean over proteins, and count the verdicts on single ones beside them.

    Args:
        table: :func:`differences`.

    Returns:
        The rows of ``all proteins`` with two columns more, ``ahead`` and ``behind`` (proteins).
    """
    rows = table[table["protein"] == ALL].reset_index(drop=True)
    single = table[table["protein"] != ALL]
    keys = ["method", "baseline"]
    for word in (AHEAD, BEHIND):
        many = single["verdict"].eq(word).groupby([single[key] for key in keys]).sum()
        rows[word] = many.reindex(pd.MultiIndex.from_frame(rows[keys])).to_numpy()
    return rows


def rivals(reading: Reading) -> list[str]:
    """Name the readings that PCA, depth and the code together have to beat."""
    return [name for name in reading.left if name.startswith(BASE) and name != plus(CODES)]


def beyond_pca(
    reading: Reading, *, draws: int = 500, seed: int = 0, alpha: float = 0.05
) -> pd.DataFrame:
    """Ask for every protein whether the code adds to PCA what nothing simpler adds.

    PCA, depth and the code together must be ahead of PCA and depth alone, and of both with any
    other code that was read: a shuffled one, and k-means groups, which give a straight line the
    same freedom to bend. The largest p-value counts (an intersection-union test), so that the
    hardest rival decides.

    Returns:
        Columns ``VERDICT_COLUMNS``, first the row of ``all proteins``, then one a protein, the
        surest first; ``baseline`` is the rival that is hardest to beat, ``p`` 1 where it is not
        beaten, ``verdict`` is ``beyond PCA`` or ``not shown``.

    Example:
        >>> left = {name: np.zeros((2, 9, 1)) for name in (BASE, plus("shuffled code"))}
        >>> left[plus(CODES)] = np.ones((2, 9, 1))
        >>> values = pd.DataFrame({"CD3": np.linspace(-1, 1, 9)})
        >>> set(beyond_pca(Reading(values, left, "cells"))["verdict"])
        {'not shown'}
    """
    table = differences(reading, plus(CODES), rivals(reading), draws=draws, seed=seed)
    table["p"] = table["p"].where(table["difference"] > 0, 1.0)
    table = table.sort_values(["p", "difference"], ascending=[False, True], kind="stable")
    table = table.drop_duplicates("protein").iloc[::-1]
    table = table.sort_values("protein", key=lambda name: name != ALL, kind="stable")
    table["fdr"] = _corrected(table, "method")
    found = (table["fdr"] < alpha) & (table["difference"] > 0)
    return table.assign(verdict=np.where(found, BEYOND, NOT_SHOWN)).reset_index(drop=True)


def per_protein(reading: Reading, **options) -> pd.DataFrame:
    """Gather what is known of each protein in one row: shares by method, and what a code adds.

    Args:
        reading: what was read.
        options: of :func:`beyond_pca`.

    Returns:
        One row a protein, the best read by the code first: ``protein``, one column a method
        (share of variance), and ``adds``, ``adds_low``, ``adds_high``, ``adds_fdr``,
        ``hardest_rival``, ``verdict`` of :func:`beyond_pca`.
    """
    squares = reading.values.to_numpy() ** 2
    whole = np.maximum(squares.sum(axis=0), 1e-12)
    shares = {name: 1 - (left**2).sum(axis=1).mean(axis=0) / whole
              for name, left in reading.left.items()}
    table = pd.DataFrame({"protein": reading.values.columns, **shares})
    added = beyond_pca(reading, **options).rename(columns={
        "difference": "adds", "low": "adds_low", "high": "adds_high", "fdr": "adds_fdr",
        "baseline": "hardest_rival"})
    kept = ["protein", "adds", "adds_low", "adds_high", "adds_fdr", "hardest_rival", "verdict"]
    return table.merge(added[kept], on="protein").sort_values(
        CODES, ascending=False, ignore_index=True)


def inside(
    reading: Reading, encoded: Sequence[AnnData], clusters: Sequence, *,
    strata: np.ndarray | None = None, draws: int = 1000, alpha: float = 0.05,
) -> pd.DataFrame:
    """Ask for every seed whether proteins differ between the codes inside clusters of PCA.

    Args:
        reading: what was read, with PCA and depth among it.
        encoded: the cells of each seed, as they were read.
        clusters: cluster of each cell.
        strata: number of the batch of each cell; None: one batch.
        draws: shuffles of codes within clusters and batches.
        alpha: largest false discovery rate, over the proteins of a seed.

    Returns:
        One row a protein: ``protein``, ``split`` (share of seeds in which it differs), ``left``
        (the same of what PCA and depth left unread of it in held-out cells), ``share`` and
        ``share_null`` (of the variance of that, mean over seeds), the surest first.
    """
    parts = []
    for seed, cells in enumerate(encoded):
        unread = pd.DataFrame(reading.left[BASE][seed], columns=reading.values.columns)
        split, left = (
            inside_clusters(values, cells.obs[CODE], clusters, strata=strata, draws=draws,
                            seed=seed).set_index("protein") for values in (reading.values, unread))
        parts.append(pd.DataFrame({
            "split": split["fdr"] < alpha, "left": left["fdr"] < alpha,
            "share": left["share"], "share_null": left["share_null"]}).astype(float))
    table = pd.concat(parts).groupby("protein").mean().reset_index()
    return table.sort_values(["left", "share"], ascending=False, ignore_index=True)


def _corrected(table: pd.DataFrame, by: str) -> pd.Series:
    """False discovery rate over proteins; their mean is a question of its own."""
    keys = [table[by], table["protein"] == ALL]
    return table.groupby(keys)["p"].transform(evaluate.false_discovery_rate)


def _drawn(
    reading: Reading, method: str, baseline: str | None, draws: int, seed: int
) -> np.ndarray:
    """Shares, or differences of shares, of resampled cells, [seeds, 1 + draws, proteins + 1]."""
    squares = reading.values.to_numpy() ** 2
    cells = len(squares)
    drawn = np.random.default_rng(seed).multinomial(cells, np.full(cells, 1 / cells), draws)
    weight = np.vstack([np.ones(cells), drawn])
    whole = np.maximum(weight @ squares, 1e-12)
    found = []
    for number, left in enumerate(reading.left[method]):
        other = squares if baseline is None else reading.left[baseline][number] ** 2
        share = weight @ (other - left**2) / whole
        found.append(np.column_stack([share, share.mean(axis=1)]))
    return np.stack(found)
