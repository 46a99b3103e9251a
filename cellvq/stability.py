"""Would another run find these codes? Agreement of partitions, and how stable each single code is.

Names of codes mean nothing across runs, so partitions of the same cells are compared by the cells
that share a code, and models of different studies are aligned by the expression that their codes
decode to. Tables in, tables out; the runs themselves come from :mod:`cellvq.replicates`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from cellvq import InputError, codes, evaluate
from cellvq.markers import CODE, with_code

if TYPE_CHECKING:
    from anndata import AnnData

DISSOLVED = 0.5
"""A group whose best match has no larger Jaccard index is dissolved (Hennig 2007)."""
NOT_MEASURED, STABLE, UNSTABLE = "not measured", "stable", "unstable"
STABILITY_COLUMNS = {
    "code": str, "level": int, "cells": int, "stability": float, "null": float, "p": float,
    "fdr": float, "runs": int, "stable": str,
}
MOST_RESAMPLED = 20_000
"""Cells of a half on which groups are made anew, at the most."""


def agreement_table(
    runs: pd.DataFrame, pairs: Iterable[tuple[str, str]] | None = None, *,
    permutations: int = 100, seed: int = 0,
) -> pd.DataFrame:
    """Compare partitions of the same cells, pair by pair, beside cells shuffled.

    Args:
        runs: the code of each cell in each run, [cells, runs]; a cell without a code in one run is
            left out of its pairs.
        pairs: names of the columns to compare; by default every pair.
        permutations: shuffles of the cells of one run, which keep its usage.
        seed: seed of the shuffles.

    Returns:
        One row a pair: ``first``, ``second`` (str), ``ami`` (adjusted mutual information), ``ari``,
        ``null_mean``, ``null_high`` (of the AMI; mean and 95th percentile), ``p``, ``first_codes``,
        ``second_codes``, ``n_cells`` (int).

    Example:
        >>> runs = pd.DataFrame({"a": ["C0", "C0", "C1", "C1"] * 9, "b": ["K", "K", "L", "L"] * 9})
        >>> agreement_table(runs)[["ami", "ari"]].round(6).values.tolist()
        [[1.0, 1.0]]
    """
    rows = []
    for first, second in combinations(runs, 2) if pairs is None else pairs:
        one, other = evaluate.labelled_pair(runs[first], runs[second])
        test = evaluate.permutation_test(one, other, adjusted_mutual_info_score,
                                         permutations=permutations, seed=seed)
        rows.append((first, second, test.observed, adjusted_rand_score(one, other), test.null_mean,
                     test.null_high, test.p, len(set(one)), len(set(other)), len(one)))
    return pd.DataFrame(rows, columns=[
        "first", "second", "ami", "ari", "null_mean", "null_high", "p", "first_codes",
        "second_codes", "n_cells",
    ])


def summary(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean agreement of the runs of each kind and method, with its interval over runs.

    Pairs that share a run are not independent. So the interval is Student's t on the mean
    agreement of each run with the others, as Hoeffding's variance of a U-statistic asks (doi
    10.1214/aoms/1177730196); of fewer than three runs there is none.

    Args:
        table: :func:`agreement_table` with columns ``kind`` and ``method``, and ``dataset`` where
            there are several.
        level: of the interval.

    Returns:
        One row a kind and method: ``dataset``, ``kind``, ``method`` (str), ``mean``, ``low``,
        ``high`` (of the AMI), ``lowest``, ``highest`` (pair), ``null`` (mean), ``pairs``, ``runs``,
        ``n_cells`` (int, fewest).

    Example:
        >>> pairs = pd.DataFrame({"kind": "seeds", "method": "k-means", "first": list("aab"),
        ...                       "second": list("bcc"), "ami": 0.5, "null_mean": 0, "n_cells": 9})
        >>> summary(pairs)[["mean", "low", "pairs", "runs"]].values.tolist()
        [[0.5, 0.5, 3.0, 3.0]]
    """
    keys, rows = ["dataset", "kind", "method"], []
    for key, part in table.assign(dataset=table.get("dataset", "")).groupby(keys, sort=False):
        each = pd.concat([part.set_index(end)["ami"] for end in ("first", "second")])
        each = each.groupby(level=0).mean()
        n, mean, half = len(each), part["ami"].mean(), np.nan
        if n > 2 and n * (n - 1) == 2 * len(part):
            half = float(stats.t.ppf((1 + level) / 2, n - 1) * 2 * stats.sem(each))
        rows.append((*key, mean, mean - half, mean + half, part["ami"].min(), part["ami"].max(),
                     part["null_mean"].mean(), len(part), n, part["n_cells"].min()))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "lowest", "highest", "null",
                                       "pairs", "runs", "n_cells"])


def code_stability(
    cells: AnnData, runs: pd.DataFrame, *, permutations: int = 100, seed: int = 0
) -> pd.DataFrame:
    """Measure for every code, and every parent, whether other runs find the same cells together.

    A code's stability is the Jaccard index of its cells with those of the most similar code of
    another run, averaged over runs (Hennig 2007, doi 10.1016/j.csda.2006.11.025). Beside it stands
    what that is where the cells of the other runs are shuffled, so that the null has the same
    usage: a code with half of all cells finds a similar one by chance, a small one does not.

    Args:
        cells: encoded cells.
        runs: the code of each cell in each other run, [cells, runs], the index that of the cells.
            Nested addresses are cut to the level of the code that they are compared with.
        permutations: shuffles of each run; the smallest possible p is 1 / (permutations + 1).
        seed: seed of the shuffles.

    Returns:
        One row a code and level: ``code`` (address), ``level`` (int, 0 the coarsest), ``cells``,
        ``stability``, ``null`` (mean), ``p``, ``fdr`` (over the codes of a level), ``runs`` (int),
        ``stable`` (``stable`` where the index is above 0.5 and the FDR below 0.05, else
        ``unstable``).

    Raises:
        InputError: the runs are of other cells.

    Example:
        >>> from anndata import AnnData
        >>> cells = AnnData(obs=pd.DataFrame({"cellvq_code": ["C0"] * 20 + ["C1"] * 20},
        ...                                  index=[f"cell {i}" for i in range(40)]))
        >>> runs = pd.DataFrame({"seed 1": ["C7"] * 19 + ["C3"] * 21}, cells.obs_names)
        >>> code_stability(cells, runs)[["code", "stability", "stable"]].values.tolist()
        [['C0', 0.95, 'stable'], ['C1', 0.9523809523809523, 'stable']]
    """
    cells, own = with_code(cells)
    if not cells.obs_names.isin(runs.index).all() or runs.index.has_duplicates:
        raise InputError("the runs lack some of these cells, or name one twice; encode the same "
                         "cells by every model")
    runs = runs.loc[cells.obs_names]
    depth = own.str.count(r"\.").max() + 1
    rng, tables = np.random.default_rng(seed), []
    for level in range(depth):
        names, number = np.unique(codes.cut(own, level + 1), return_inverse=True)
        observed, null = np.zeros(len(names)), np.zeros((permutations, len(names)))
        for column in runs:
            other, _ = pd.factorize(codes.cut(runs[column], level + 1))
            observed += _best_jaccard(number, other, len(names))
            null += [_best_jaccard(number, rng.permutation(other), len(names))
                     for _ in range(permutations)]
        p = (1 + (null >= observed).sum(axis=0)) / (1 + permutations)
        tables.append(pd.DataFrame({
            "code": names, "level": level, "cells": np.bincount(number),
            "stability": observed / runs.shape[1], "null": null.mean(axis=0) / runs.shape[1],
            "p": p, "fdr": evaluate.false_discovery_rate(p), "runs": runs.shape[1],
        }))
    table = pd.concat(tables, ignore_index=True)
    found = (table["stability"] > DISSOLVED) & (table["fdr"] < 0.05)
    table["stable"] = np.where(found, STABLE, UNSTABLE)
    return table.astype(STABILITY_COLUMNS)[list(STABILITY_COLUMNS)]


def resampled(cells: AnnData, *, draws: int = 4, seed: int = 0) -> pd.DataFrame:
    """Make groups anew on random halves of the cells: runs for `code_stability` without a model.

    k-means with as many groups as there are codes is fitted to the cell vectors of a half, and all
    cells go to the nearest group. This asks less than another training run would, as the vectors
    stay what they are; it is what can be told from one encoded file.

    Args:
        cells: encoded cells.
        draws: number of random halves.
        seed: seed of the halves and of the starts of k-means.

    Returns:
        Group of each cell in each draw, [cells, draws]; where codes are nested, an address whose
        parts are the groups of each level.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    cells, own = with_code(cells)
    vectors = np.asarray(cells.obsm[codes.EMBEDDING], dtype=np.float32)
    depth = own.str.count(r"\.").max() + 1
    levels = [codes.cut(own, level + 1).nunique() for level in range(depth)]
    most = min(max(len(vectors) // 2, levels[-1]), MOST_RESAMPLED)
    groups = {}
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        half = vectors[rng.choice(len(vectors), most, replace=False)]
        parts = []
        for size in levels:
            kind = MiniBatchKMeans if len(half) * size > 1_000_000 else KMeans
            with threadpool_limits(1):
                fitted = kind(size, n_init=2, random_state=int(rng.integers(2**31))).fit(half)
                parts.append(pd.Series(fitted.predict(vectors)).astype(str))
        address = parts[0]
        for part in parts[1:]:
            address = address + "." + part
        groups[f"half {draw + 1}"] = address.to_numpy()
    return pd.DataFrame(groups, index=cells.obs_names)


def align(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Pair the codes of two models one to one, by the expression that they decode to.

    Each gene is centred over the codes of a model, so that what all cells express does not count;
    then the pairs are those whose correlations add up to the most (Hungarian algorithm).

    Args:
        first: expression of each code, [codes, genes], log1p scale.
        second: the same of another model; genes are matched by name.

    Returns:
        One row a pair, best first: ``first``, ``second`` (codes, str), ``correlation``,
        ``next_best`` (the largest correlation of the first code with another one), ``genes`` (int,
        shared).

    Raises:
        InputError: the models share fewer than ten genes.

    Example:
        >>> genes = [f"GENE{i}" for i in range(12)]
        >>> one = pd.DataFrame(np.eye(2, 12), ["C0", "C1"], genes)
        >>> align(one, one.iloc[::-1].set_axis(["K0", "K1"]))[["first", "second"]].values.tolist()
        [['C0', 'K1'], ['C1', 'K0']]
    """
    shared = first.columns.intersection(second.columns)
    if len(shared) < 10:
        raise InputError(f"the models share {len(shared)} genes; train them on more of the same")
    found = _correlation(first[shared].to_numpy(), second[shared].to_numpy())
    one, other = linear_sum_assignment(-found)
    others = found[one].copy()
    others[np.arange(len(one)), other] = -np.inf
    table = pd.DataFrame({
        "first": first.index[one].astype(str), "second": second.index[other].astype(str),
        "correlation": found[one, other],
        "next_best": others.max(axis=1) if found.shape[1] > 1 else np.nan, "genes": len(shared),
    })
    return table.sort_values("correlation", ascending=False, ignore_index=True)


def aligned_share(
    pairs: pd.DataFrame, first: pd.Series, second: pd.Series, *, permutations: int = 200,
    seed: int = 0,
) -> evaluate.NullTest:
    """Test an alignment on cells that both models encoded: how many took a pair of aligned codes?

    The alignment knows expression only, so this is a test and no fit. The null shuffles the codes
    of one model over the cells, which keeps the usage of both.

    Args:
        pairs: :func:`align` of the two models.
        first: code of each cell by the first model, [cells].
        second: code of each cell by the second model, [cells].

    Example:
        >>> pairs = pd.DataFrame({"first": ["C0", "C1"], "second": ["K1", "K0"]})
        >>> one, other = pd.Series(["C0", "C1"] * 20), pd.Series(["K1", "K0"] * 20)
        >>> aligned_share(pairs, one, other).observed
        1.0
    """
    partner = dict(zip(pairs["first"], pairs["second"], strict=True))

    def share(one: np.ndarray, other: np.ndarray) -> float:
        return float((pd.Series(one).map(partner).to_numpy() == other).mean())

    return evaluate.permutation_test(first, second, share, permutations=permutations, seed=seed)


def best_share(first: pd.Series, second: pd.Series) -> float:
    """Share of cells in paired codes by the best one-to-one pairs, found on the very cells.

    No alignment can reach more, so it is what to hold :func:`aligned_share` against.

    Example:
        >>> best_share(pd.Series(list("aabb")), pd.Series(list("xxxy")))
        0.75
    """
    counts = pd.crosstab(np.asarray(first), np.asarray(second)).to_numpy()
    return float(counts[linear_sum_assignment(-counts)].sum() / counts.sum())


def code_runs(encoded: Iterable[AnnData]) -> pd.DataFrame:
    """Put the codes that several models gave to the same cells side by side, [cells, runs]."""
    return pd.DataFrame({f"run {number}": cells.obs[CODE].astype(object)
                         for number, cells in enumerate(encoded, 1)})


def _best_jaccard(number: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    """Largest Jaccard index of each group with any group of another partition; -1 is no group."""
    width = other.max() + 2
    shared = np.bincount(number * width + other + 1, minlength=size * width).reshape(size, width)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0) - shared
    return (shared / union.clip(min=1))[:, 1:].max(axis=1, initial=0.0)


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of every row with every row, genes centred over the rows of each."""
    parts = []
    for values in (first, second):
        values = values - values.mean(axis=0)
        values = values - values.mean(axis=1, keepdims=True)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        parts.append(values / np.maximum(length, 1e-12))
    return parts[0] @ parts[1].T
