"""Is it biology or batch? Codes held against labels, batches and donors, with rivals beside them.

Takes encoded cells and tables, never a model, so any grouping of cells can be scored. Every score
stands beside a null that keeps the sizes of the groups: many small codes agree with anything a
little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import xlogy
from scipy.stats import entropy

from cellvq import InputError, evaluate, tasks
from cellvq.markers import CODE, with_code

if TYPE_CHECKING:
    from anndata import AnnData

OURS, PCA = tasks.MODEL, tasks.KMEANS
OWN, LEIDEN = "k-means on our vectors", "Leiden on PCA"
OVER_CELLS, WITHIN_LABELS = "over cells", "within labels"
SCORES = {
    "method": str, "k": int, "metric": str, "shuffled": str, "value": float, "null_mean": float,
    "null_high": float, "p": float, "n_cells": int,
}
DONOR_COLUMNS = {
    "code": str, "cells": int, "donors": int, "donor_entropy": float, "donor_perplexity": float,
    "expected": float, "p": float, "fdr": float,
}


def partitions(
    cells: AnnData, *, columns: Sequence[str] = (), key: str = "X_cellvq", seed: int = 0
) -> pd.DataFrame:
    """Group the cells by rivals of the code, each with as many groups as there are codes in use.

    The rivals see all cells given, without labels; Leiden comes as near to that number as it can.

    Args:
        cells: encoded cells with raw counts; cells without a code are left out.
        columns: columns of ``obs`` with the codes of other models, taken as they are.
        key: our vectors in ``obsm``.
        seed: seed of all rivals.

    Returns:
        Group of each cell as text, [cells, methods], indexed by cell: ``CellVQ``, ``k-means on
        PCA``, ``k-means on our vectors``, ``Leiden on PCA``, then ``columns``.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> cells.obsm["X_cellvq"] = tasks.pca_embedding(cells, 8)
        >>> len(set(partitions(cells).nunique()))
        1
    """
    cells, codes = with_code(cells)
    if key not in cells.obsm:
        raise InputError(f"obsm has no {key!r}: encode the cells")
    pca, used = tasks.pca_embedding(cells, seed=seed), codes.nunique()
    groups = {
        OURS: codes.to_numpy(),
        PCA: evaluate.kmeans_codes(pca, used, seed).astype(str),
        OWN: evaluate.kmeans_codes(np.asarray(cells.obsm[key]), used, seed).astype(str),
        LEIDEN: leiden_codes(pca, used, seed).astype(str),
    }
    return pd.DataFrame(groups | {name: tasks.column(cells, name) for name in columns},
                        index=cells.obs_names)


def leiden_codes(embedding: np.ndarray, k: int, seed: int = 0, *, tries: int = 16) -> np.ndarray:
    """Group cells into Leiden communities, as nearly ``k`` of them as bisection finds.

    Traag et al. 2019 (doi 10.1038/s41598-019-41695-z), by scanpy on exact neighbours.

    Args:
        embedding: [cells, dimensions].
        k: number of groups wanted.
        seed: seed of the communities.
        tries: resolutions tried; the number of groups moves in jumps, so ``k`` may be missed.

    Returns:
        Group of each cell, [cells].
    """
    import scanpy as sc
    from anndata import AnnData

    if len(embedding) < 3:
        raise InputError(f"Leiden needs at least 3 cells; there are {len(embedding)}")
    names = pd.RangeIndex(len(embedding)).astype(str)
    work = AnnData(obs=pd.DataFrame(index=names), obsm={"X_pca": embedding})
    sc.pp.neighbors(work, n_neighbors=min(15, len(embedding) - 1), use_rep="X_pca",
                    transformer="sklearn", random_state=seed)  # as in tasks.with_label
    low, high, found, best = -8.0, 8.0, 0, np.zeros(len(embedding), int)
    for _ in range(tries):
        middle = (low + high) / 2
        sc.tl.leiden(work, resolution=2**middle, flavor="igraph", n_iterations=2, directed=False,
                     random_state=seed)
        groups = work.obs["leiden"].cat.codes.to_numpy()
        size = int(groups.max()) + 1
        if abs(size - k) < abs(found - k):
            found, best = size, groups
        if size == k:
            break
        low, high = (middle, high) if size < k else (low, middle)
    return best


def biology_or_batch(
    cells: AnnData,
    columns: Sequence[str],
    label: str | None = None,
    batch: str | None = None,
    donor: str | None = None,
    *,
    permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Score groupings of cells: agreement with labels, and with what should not show in them.

    NMI and purity with the label; NMI with the batch and the donor. The null shuffles the column
    that is held against the groups ``over cells``; for batch and donor also ``within labels``,
    since batches that differ in their mix of cell types share information with any good grouping.

    Args:
        cells: cells with the groupings in ``obs``, such as :func:`partitions` gives them.
        columns: columns of ``obs``, one for each method; cells without a group are left out.
        label: column of ``obs`` with what is known of the cells; None for none.
        batch: column of ``obs`` with the batch; None for none.
        donor: column of ``obs`` with the donor; None for none.
        permutations: shuffles of the null; the smallest possible p is 1 / (permutations + 1).
        seed: seed of the shuffles.

    Returns:
        One row a method, metric and null: ``method``, ``k`` (int, groups in use), ``metric`` (str,
        ``label_nmi``, ``label_purity``, ``batch_nmi``, ``donor_nmi``), ``shuffled`` (str, what the
        null shuffles), ``value``, ``null_mean``, ``null_high`` (95th percentile), ``p`` (one-sided,
        larger than chance), ``n_cells`` (int). ``attrs["reason"]`` says what was left out and why.
    """
    rows, missing = [], []
    for name, column in (("label", label), ("batch", batch), ("donor", donor)):
        why = _why_not(cells, name, column)
        if why:
            missing.append(why)
            continue
        rows += _rows(cells, columns, name, column, None, permutations, seed)
        if name != "label" and not _why_not(cells, "label", label):
            rows += _rows(cells, columns, name, column, label, permutations, seed)
    table = pd.DataFrame(rows, columns=list(SCORES)).astype(SCORES)
    table.attrs["reason"] = "; ".join(missing)
    return table


def donor_mix(
    cells: AnnData,
    donor: str,
    *,
    column: str = CODE,
    label: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how evenly the donors share each code, and whether chance would do as well.

    Args:
        cells: cells with a grouping in ``obs``; those without a group or donor are left out.
        donor: column of ``obs`` with the donor.
        column: column of ``obs`` with the groups.
        label: shuffle donors within the labels of this column, so that a code is not held guilty of
            a cell type that few donors have; None shuffles over all cells.
        draws: shuffles of the null; the smallest possible p is 1 / (draws + 1).
        seed: seed of the shuffles.

    Returns:
        Most uneven code first: ``code`` (str), ``cells``, ``donors`` (int), ``donor_entropy``
        (nats), ``donor_perplexity`` (its exponential, a number of donors), ``expected``
        (perplexity of a code of this size under the null), ``p`` (one-sided, less even than
        chance), ``fdr``. Empty with the reason in ``attrs["reason"]`` where there is one donor.
    """
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in DONOR_COLUMNS.items()})
    table.attrs["reason"] = _why_not(cells, "donor", donor)
    if table.attrs["reason"]:
        return table
    names = [column, donor] if label is None else [column, donor, label]
    (groups, donors, *strata), (codes, *_) = _numbers(cells, names)
    observed = _counts(groups, donors)
    evenness = entropy(observed, axis=1)
    rng, null = np.random.default_rng(seed), []
    shuffle = _shuffler(donors, strata[0] if strata else None, rng)
    for _ in range(draws):
        null.append(entropy(_counts(groups, shuffle()), axis=1))
    less = (np.array(null) <= evenness + 1e-12).sum(0)
    table = pd.DataFrame({
        "code": codes, "cells": observed.sum(1), "donors": (observed > 0).sum(1),
        "donor_entropy": evenness, "donor_perplexity": np.exp(evenness),
        "expected": np.exp(null).mean(0), "p": (1 + less) / (1 + draws),
    })
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table.attrs["reason"] = ""
    return table.sort_values(["p", "donor_perplexity"], ignore_index=True)


def over_seeds(tables: Iterable[pd.DataFrame], ours: str = OURS) -> pd.DataFrame:
    """Join the scores of several seeds: means, intervals, and our difference to every rival.

    Args:
        tables: :func:`biology_or_batch` of each seed; a rival may be missing in some.
        ours: the method that the others are compared with, paired by seed.

    Returns:
        One row a method, metric and null: ``method``, ``metric``, ``shuffled`` (str), ``k`` (mean
        number of groups), ``value``, ``low``, ``high`` (95 % interval over seeds), ``null`` (mean
        under the null), ``difference`` (ours less this method's), ``difference_low``,
        ``difference_high``, ``verdict`` (str: ours is ``ahead`` or ``behind`` where the interval
        leaves out zero, else ``not distinguishable``; of batch and donor less is better),
        ``seeds``, ``n_cells`` (int).
    """
    tables = [table.assign(seed=number) for number, table in enumerate(tables)]
    scores, rows = pd.concat(tables), []
    for (metric, shuffled), part in scores.groupby(["metric", "shuffled"], sort=False):
        values = part.pivot(index="seed", columns="method", values="value")
        less_is_better = metric.startswith(("batch", "donor"))
        for method, one in part.groupby("method", sort=False):
            value = evaluate.bootstrap_interval(one["value"])
            both = values[list({ours: 0, method: 0})].dropna()
            step = evaluate.paired_difference(both[ours], both[method])
            words = ("behind", "ahead") if less_is_better else ("ahead", "behind")
            verdict = (words[0] if step.low > 0 else words[1] if step.high < 0
                       else "not distinguishable")
            rows.append((method, metric, shuffled, one["k"].mean(), value.estimate, value.low,
                         value.high, one["null_mean"].mean(), step.estimate, step.low, step.high,
                         "" if method == ours else verdict, value.n, one["n_cells"].min()))
    table = pd.DataFrame(rows, columns=[
        "method", "metric", "shuffled", "k", "value", "low", "high", "null", "difference",
        "difference_low", "difference_high", "verdict", "seeds", "n_cells"])
    table.attrs["reason"] = tables[0].attrs.get("reason", "")
    return table


def _why_not(cells: AnnData, name: str, column: str | None) -> str:
    """Say why a column cannot judge; nothing if it can."""
    if not column:
        return f"no {name} is named"
    values = tasks.column(cells, column)
    known = pd.unique(values[evaluate.labelled(values)].astype(str))
    if len(known) > 1:
        return ""
    return f"obs[{column!r}] has {'a single value' if len(known) else 'no values'} as {name}"


def _numbers(cells: AnnData, columns: Sequence[str]) -> tuple[list, list]:
    """Number the values of columns, over the cells that have all: [columns] of [cells], names."""
    values = [tasks.column(cells, name) for name in columns]
    keep = np.logical_and.reduce([evaluate.labelled(value) for value in values])
    if not keep.any():
        raise InputError(f"no cell has a value in all of {', '.join(columns)}; name other columns")
    found = [np.unique(value[keep].astype(str), return_inverse=True) for value in values]
    return [number for _, number in found], [names for names, _ in found]


def _rows(cells, columns, name, column, label, permutations, seed) -> list[tuple]:
    """Score every method against one column, beside one null."""
    rows = []
    for method in columns:
        names = [method, column] if label is None else [method, column, label]
        (groups, values, *strata), _ = _numbers(cells, names)
        observed = _agreement(_counts(groups, values))
        shuffle = _shuffler(values, strata[0] if strata else None, np.random.default_rng(seed))
        null = np.array([_agreement(_counts(groups, shuffle())) for _ in range(permutations)])
        p = (1 + (null >= np.array(observed) - 1e-12).sum(0)) / (1 + permutations)
        for number, metric in enumerate(("nmi", "purity")[: 2 if name == "label" else 1]):
            rows.append((
                method, groups.max() + 1, f"{name}_{metric}",
                OVER_CELLS if label is None else WITHIN_LABELS, observed[number],
                null[:, number].mean(), np.quantile(null[:, number], 0.95), p[number], len(groups),
            ))
    return rows


def _counts(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count the cells of each group and value, [groups, values]."""
    width = values.max() + 1
    pairs = np.bincount(groups * width + values, minlength=(groups.max() + 1) * width)
    return pairs.reshape(-1, width)


def _agreement(counts: np.ndarray) -> tuple[float, float]:
    """Return NMI and purity of a table of groups and labels, as scikit-learn would."""
    cells = counts.sum()
    of_groups, of_values, of_pairs = (
        np.log(cells) - xlogy(part, part).sum() / cells
        for part in (counts.sum(1), counts.sum(0), counts)
    )
    total = of_groups + of_values
    shared = max(total - of_pairs, 0.0)
    return float(2 * shared / total) if total > 0 else 0.0, float(counts.max(1).sum() / cells)


def _shuffler(values: np.ndarray, strata: np.ndarray | None, rng: np.random.Generator):
    """Return a function that shuffles values over cells, or over the cells of each stratum."""
    if strata is None:
        return lambda: rng.permutation(values)
    places = np.argsort(strata, kind="stable")

    def within() -> np.ndarray:
        shuffled = np.empty_like(values)
        shuffled[places] = values[np.lexsort((rng.random(len(values)), strata))]
        return shuffled

    return within
