"""Proteins of cells that were counted by antibodies, and which codes of the RNA carry them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate, tasks

if TYPE_CHECKING:
    from anndata import AnnData


def protein_values(
    cells: AnnData, key: str = "protein_counts", *, names: Sequence[str] | None = None,
    batch: str | None = None, min_cells: int = 10, per_cell: bool = False,
) -> pd.DataFrame:
    """Turn antibody counts into centred log ratios of mean 0 and variance 1 in each batch.

    The ratio is that of a cell to the geometric mean of the protein over the cells of the batch.
    The older form (CITE-seq: doi 10.1038/nmeth.4380), to the mean over the proteins of the
    cell, ties every protein to all others: an antibody that binds nothing then follows the cell
    type, as its denominator does. It is offered to show just that.

    Args:
        cells: cells with whole counts in ``obsm[key]``, [cells, proteins].
        names: names of the proteins; None: columns of the table, or ``uns["protein_names"]``.
        batch: column of ``obs`` with the batch.
        min_cells: a protein with counts in fewer cells is left out, as is one that is constant in
            a batch; ``attrs["left_out"]`` names them.
        per_cell: take the ratio to the mean over the proteins of the cell.

    Returns:
        One row a cell and one column a protein.

    Raises:
        InputError: there are no counts or names, or names occur twice, or no protein is left.

    Example:
        >>> from anndata import AnnData
        >>> counts = np.random.default_rng(0).poisson([[5, 0]], (40, 2))
        >>> table = protein_values(AnnData(obsm={"protein_counts": counts}), names=["CD3", "none"])
        >>> table.shape, table.attrs["left_out"]
        ((40, 1), ['none'])
    """
    names = _names(cells, cells.obsm.get(key), names, key)
    found = cells.obsm[key]
    counts = np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=np.float64)
    wrong = ~np.isfinite(counts).all(axis=0) | (counts < 0).any(axis=0) | (counts % 1).any(axis=0)
    if wrong.any():
        raise InputError(f"obsm[{key!r}] holds no whole counts in {names[wrong][0]!r}: put the raw "
                         "counts there, without missing, negative or normalised values")
    logs, of = np.log1p(counts), strata_of(cells, batch)
    if per_cell:
        logs -= logs.mean(axis=1, keepdims=True)
    else:
        for one in np.unique(of):
            part = counts[of == one]
            logs[of == one] = np.log1p(part / np.exp(np.log1p(part).mean(axis=0)))
    spread = np.min([logs[of == one].std(axis=0) for one in np.unique(of)], axis=0)
    keep = ((counts > 0).sum(axis=0) >= min_cells) & (spread > 1e-9)
    if not keep.any():
        raise InputError(f"no protein has counts in {min_cells} cells and varies in every batch")
    logs = within(logs[:, keep], of)
    for one in np.unique(of):
        logs[of == one] /= logs[of == one].std(axis=0)
    table = pd.DataFrame(logs, index=cells.obs_names, columns=names[keep])
    table.attrs["left_out"] = list(names[~keep])
    return table


def join(parts: Sequence[AnnData], key: str = "protein_counts") -> AnnData:
    """Join cells of several files on the genes and the proteins that all of them measured.

    Args:
        parts: cells with antibody counts in ``obsm[key]`` and their names in
            ``uns["protein_names"]``.
        key: where the antibody counts are.

    Raises:
        InputError: a file has no antibody counts, or they share no protein.
    """
    import anndata

    names = [_names(part, part.obsm.get(key), None, key) for part in parts]
    shared = [name for name in names[0] if all(name in other for other in names)]
    if not shared:
        raise InputError("these files share no protein by name; rename the antibodies alike")
    if len(parts) == 1:
        return parts[0]
    cut_down = [part.copy() for part in parts]
    for part, own in zip(cut_down, names, strict=True):
        part.obsm[key] = np.asarray(part.obsm[key])[:, own.get_indexer(shared)]
    whole = anndata.concat(cut_down, join="inner", index_unique="-",
                           keys=[str(number) for number in range(len(parts))])
    whole.uns["protein_names"] = shared
    return whole


def within(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Take the mean of each stratum out of values, [cells, columns]."""
    values = np.array(values, dtype=np.float64)
    for one in np.unique(strata):
        values[strata == one] -= values[strata == one].mean(axis=0)
    return values


def strata_of(cells: AnnData, column: str | None) -> np.ndarray:
    """Number the values of a column of ``obs``, [cells]; None or an empty name: all are 0.

    Raises:
        InputError: there is no such column, or it is empty in some cells.
    """
    if not column:
        return np.zeros(cells.n_obs, dtype=int)
    values = tasks.column(cells, column)
    if not (known := evaluate.labelled(values)).all():
        raise InputError(f"obs[{column!r}] is empty in {(~known).sum()} cells; leave them out "
                         "first")
    return pd.factorize(values.astype(str))[0]




def code_table(
    values: pd.DataFrame, codes: Sequence[str], *, strata: np.ndarray | None = None,
    min_cells: int = 8,
) -> pd.DataFrame:
    """Test every protein in every code against the other cells of the same batch.

    A rank-sum test within strata, weighted as by van Elteren (1960), corrected for ties. Codes were
    learnt from RNA alone, so that proteins are a witness from outside.

    Args:
        values: :func:`protein_values`.
        codes: code of each cell, [cells].
        strata: number of the batch of each cell, [cells]; None: one batch.
        min_cells: codes with fewer cells are not tested.

    Returns:
        One row a code and protein, the surest first: ``code``, ``protein`` (str), ``n_cells``,
        ``difference`` (mean of the code less that of the others in its batches, in standard
        deviations), ``z``, ``p`` (two-sided), ``fdr`` (over all rows).

    Raises:
        InputError: codes are not one a cell.

    Example:
        >>> values = pd.DataFrame({"CD3": [0.0] * 10 + [1.0] * 10})
        >>> code_table(values, ["C0"] * 10 + ["C1"] * 10)["difference"].tolist()
        [-1.0, 1.0]
    """
    code = _matching(values, codes)
    strata = np.zeros(len(code), int) if strata is None else strata
    score, variance, gap, weight = (np.zeros((code.max() + 1, values.shape[1])) for _ in range(4))
    for one in np.unique(strata):
        at = strata == one
        own = np.eye(code.max() + 1)[code[at]]  # [cells, codes]
        size, n = own.sum(axis=0)[:, None], at.sum()
        ranks = stats.rankdata(values[at], axis=0)
        score += (own.T @ ranks - size * (n + 1) / 2) / (n + 1)
        variance += size * (n - size) / n * ranks.var(axis=0, ddof=1) / (n + 1)**2
        inside = own.T @ values[at].to_numpy()
        outside = values[at].to_numpy().sum(axis=0) - inside
        share = size * (n - size) / n
        gap += share * (inside / np.maximum(size, 1) - outside / np.maximum(n - size, 1))
        weight += share
    sizes, names = np.bincount(code), np.unique(np.asarray(codes, dtype=str))
    kept = (sizes >= min_cells) & (sizes < len(code))
    z = score / np.sqrt(np.maximum(variance, 1e-12))
    table = pd.DataFrame({
        "code": np.repeat(names[kept], values.shape[1]),
        "protein": np.tile(values.columns, kept.sum()),
        "n_cells": np.repeat(sizes[kept], values.shape[1]),
        "difference": (gap / np.maximum(weight, 1e-12))[kept].ravel(), "z": z[kept].ravel(),
    })
    table["p"] = 2 * stats.norm.sf(table["z"].abs())
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    return table.sort_values(["p", "code"], kind="stable", ignore_index=True)


def inside_clusters(
    values: pd.DataFrame, codes: Sequence[str], clusters: Sequence, *,
    strata: np.ndarray | None = None, draws: int = 2000, seed: int = 0,
) -> pd.DataFrame:
    """Test whether a protein differs between the codes that one and the same cluster holds.

    Codes are shuffled over the cells of each cluster and batch. Given what another reading left of
    the protein in held-out cells in place of its values, the test asks for what lies beyond that.

    Args:
        values: proteins, or what is left of them, [cells, proteins].
        codes: code of each cell, [cells].
        clusters: cluster of each cell, [cells].
        strata: number of the batch of each cell, [cells]; None: one batch.
        draws: shuffles.
        seed: seed of the shuffles.

    Returns:
        One row a protein, the surest first: ``protein``, ``share`` (of the variance inside
        clusters that lies between codes), ``share_null`` (mean of the shuffles), ``p``, ``fdr``,
        ``n_cells`` (in clusters with two codes).

    Raises:
        InputError: codes or clusters are not one a cell.

    Example:
        >>> values = pd.DataFrame({"CD3": [0.0, 1.0] * 20, "other": [0.0, 0.0, 1.0, 1.0] * 10})
        >>> found = inside_clusters(values, ["C0", "C1"] * 20, ["one"] * 40, draws=200)
        >>> found.set_index("protein")["share"].to_dict()
        {'CD3': 1.0, 'other': 0.0}
    """
    code, cluster = _matching(values, codes), _matching(values, clusters)
    strata = np.zeros(len(code), int) if strata is None else strata
    block = np.unique(np.column_stack([cluster, strata]), axis=0, return_inverse=True)[1].ravel()
    y = within(values.to_numpy(), block)
    whole = np.maximum((y**2).sum(axis=0), 1e-12)
    many = code.max() + 1

    def share(number: np.ndarray) -> np.ndarray:
        group = block * many + number
        member = csr_matrix((np.ones(len(y)), (group, np.arange(len(y)))))
        size = np.maximum(np.bincount(group), 1)[:, None]
        return ((member @ y)**2 / size).sum(axis=0) / whole

    rng, seen = np.random.default_rng(seed), share(code)
    null = np.empty((draws, len(seen)))
    start = np.argsort(block, kind="stable")
    for draw in range(draws):
        shuffled = np.empty_like(code)
        shuffled[np.lexsort((rng.random(len(code)), block))] = code[start]
        null[draw] = share(shuffled)
    kinds = pd.Series(code).groupby(block).transform("nunique").to_numpy()
    table = pd.DataFrame({
        "protein": values.columns, "share": seen, "share_null": null.mean(axis=0),
        "p": (1 + (null >= seen - 1e-12).sum(axis=0)) / (1 + draws)})
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table["n_cells"] = int((kinds > 1).sum())
    return table.sort_values(["p", "share"], ascending=[True, False], ignore_index=True)


def _names(cells: AnnData, found, names: Sequence[str] | None, key: str) -> pd.Index:
    """Names of the proteins, one for each column and none twice."""
    if found is None:
        raise InputError(f"obsm has no {key!r}; there are {', '.join(cells.obsm) or 'none'}. Put "
                         "the antibody counts there, one column a protein")
    if names is None:
        names = found.columns if hasattr(found, "columns") else cells.uns.get("protein_names")
    if names is None or len(names) != found.shape[1]:
        many = "no names" if names is None else f"{len(names)} names"
        raise InputError(f"obsm[{key!r}] has {found.shape[1]} proteins and {many}: give one for "
                         "each in uns['protein_names']")
    names = pd.Index([str(name) for name in names])
    if names.has_duplicates:
        raise InputError(f"the protein {names[names.duplicated()][0]!r} occurs twice; rename one "
                         "of the antibodies, or add their counts")
    return names


def _matching(values: pd.DataFrame, names: Sequence) -> np.ndarray:
    """Number of the code or cluster of each cell, in the order of sorted names."""
    names = np.asarray(names, dtype=object)
    if len(names) != len(values) or not evaluate.labelled(names).all():
        raise InputError(f"{evaluate.labelled(names).sum()} codes or clusters for {len(values)} "
                         "cells: give one for each")
    return np.unique(names.astype(str), return_inverse=True)[1]
