"""Signals between codes: ligand-receptor pairs by liana, with p-values for many tests."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse

from cellvq import InputError, evaluate, genes

if TYPE_CHECKING:
    from anndata import AnnData

_COLUMNS = {
    "source": str, "target": str, "ligand": str, "receptor": str, "expression": float,
    "effect": float, "n_cells": int, "p": float, "fdr": float, "evidence": str,
}


def communication(
    cells: AnnData,
    groupby: str = "cellvq_code",
    *,
    permutations: int | None = None,
    seed: int = 0,
    resource: str = "consensus",
    min_fraction: float = 0.1,
    min_cells: int = 5,
) -> pd.DataFrame:
    """Find ligand-receptor pairs through which codes may talk: CellPhoneDB's test, by liana.

    The statistic is the mean of the ligand's expression in one code and the receptor's in the
    other; the null shuffles codes over cells (CellPhoneDB: doi 10.1038/s41596-020-0292-x, liana:
    10.1038/s41467-022-30755-0). Expression at both ends is not contact: each row is a hypothesis.

    liana gives the pairs, the filter and the statistic. Thousands of tests need far finer p-values
    than shuffles can give, so by default the null is not drawn: mean, variance and skewness of the
    statistic over all shuffles are known in closed form, and its upper tail follows Pearson's type
    III nearly. With ``permutations`` liana's shuffles are repeated, in its order.

    Args:
        cells: cells with raw counts and gene symbols.
        groupby: column of ``obs`` with the codes.
        permutations: shuffles, whose p is (shuffles at least as large + 1) / (permutations + 1);
            None: all of them, in closed form.
        seed: seed of the shuffles.
        resource: liana's list of pairs (``consensus``: human; ``mouseconsensus``: mouse).
        min_fraction: both genes are expressed in this share of their code, or the pair is not
            tested there.
        min_cells: smaller codes are left out.

    Returns:
        One row a tested pair of codes and genes: ``source`` (code with the ligand), ``target``
        (code with the receptor), ``ligand``, ``receptor`` (str; subunits joined by ``_``),
        ``expression`` (mean of both, log1p of counts per 10,000), ``effect`` (log2 of expression
        to its mean under the null), ``n_cells`` (of both codes), ``p``, ``fdr`` (over all rows),
        ``evidence``. Without any pair the table is empty and ``attrs["reason"]`` says why.
    """
    if groupby not in cells.obs:
        raise InputError(f"obs has no column {groupby!r}; there are {', '.join(cells.obs)}")
    work, sizes = _prepare(cells, groupby, min_cells)
    if work is None:
        return _nothing(f"fewer than two codes have {min_cells} cells")
    import liana  # ten seconds and more on first use in a new environment

    pairs = liana.rs.select_resource(resource)
    known, usable = _which_pairs(work, pairs, min_fraction)
    if not usable.any():
        return _nothing(
            f"{known.sum()} of {len(known)} ligand-receptor pairs ({resource}) are among the "
            f"genes, and none is expressed in {min_fraction:.0%} of the cells of two codes"
        )
    with warnings.catch_warnings():  # about liana's own copies of the cells
        warnings.simplefilter("ignore")
        found = liana.mt.cellphonedb(
            work, "code", resource=pairs[usable].reset_index(drop=True), expr_prop=min_fraction,
            min_cells=min_cells, n_perms=None, use_raw=False, inplace=False, verbose=False,
        ).reset_index(drop=True)
    source, target = found["source"].astype(str), found["target"].astype(str)
    if permutations is None:
        p, expected = _all_shuffles(work, found)
        null = "all shuffles"
    else:
        p, expected = _shuffle(work, found, permutations, seed)
        null = f"{permutations} shuffles"
    table = pd.DataFrame({
        "source": source,
        "target": target,
        "ligand": found["ligand_complex"],
        "receptor": found["receptor_complex"],
        "expression": found["lr_means"],
        "effect": np.log2(found["lr_means"] / expected),
        "n_cells": source.map(sizes) + target.map(sizes).where(source != target, 0),
        "p": p,
        "fdr": evaluate.false_discovery_rate(p),
        "evidence": f"liana {version('liana')} cellphonedb, {resource}, {null}",
    })
    return table.sort_values(["p", "effect"], ascending=[True, False], ignore_index=True)


def _prepare(cells: AnnData, groupby: str, min_cells: int) -> tuple[AnnData | None, pd.Series]:
    """Log-normalised cells of the codes that are large enough, and the size of every code."""
    from anndata import AnnData

    group = cells.obs[groupby].astype(str).where(evaluate.labelled(cells.obs[groupby]))
    sizes = group.value_counts()
    keep = group.isin(sizes.index[sizes >= min_cells]).to_numpy()
    if group[keep].nunique() < 2:
        return None, sizes
    counts, _ = genes.find_counts(cells)
    values = evaluate.log_normalise(counts, genes.sequencing_depth(cells, counts))
    work = AnnData(
        values[keep],
        obs=pd.DataFrame({"code": pd.Categorical(group[keep])}, cells.obs_names[keep].astype(str)),
        var=pd.DataFrame(index=cells.var_names.astype(str)),
    )
    work.var_names_make_unique()
    return work, sizes


def _which_pairs(
    work: AnnData, pairs: pd.DataFrame, min_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose genes are all here, and those that two codes express (liana fails on none)."""
    code = pd.get_dummies(work.obs["code"], dtype=float, sparse=True).sparse.to_coo().T.tocsr()
    fraction = (code @ (work.X > 0)).toarray() / np.asarray(code.sum(axis=1))
    expressed = pd.DataFrame(fraction >= min_fraction, columns=work.var_names)
    genes_here = set(work.var_names)
    units = {end: end.split("_") for end in {*pairs["ligand"], *pairs["receptor"]}}
    here = {end: genes_here.issuperset(names) for end, names in units.items()}
    used = {end: here[end] and expressed[names].all(axis=1).any() for end, names in units.items()}
    known, usable = (
        (pairs["ligand"].map(ends) & pairs["receptor"].map(ends)).to_numpy(bool)
        for ends in (here, used)
    )
    return known, usable


def _shuffle(
    work: AnnData, found: pd.DataFrame, permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """p-value and null mean of every row of liana's table, by shuffling codes over cells."""
    names = pd.Index(sorted({*found["ligand"], *found["receptor"]}))
    values = scipy.sparse.csr_matrix(work[:, names].X, dtype=np.float64)
    group = work.obs["code"].cat
    sizes = np.bincount(group.codes)
    first = np.concatenate([[0], sizes.cumsum()])
    members = np.argsort(group.codes.to_numpy(), kind="stable")
    sender, receiver = (group.categories.get_indexer(found[end]) for end in ("source", "target"))
    ligand, receptor = names.get_indexer(found["ligand"]), names.get_indexer(found["receptor"])

    def statistic(order: np.ndarray) -> np.ndarray:
        """Mean of ligand and receptor; ``order`` says which cell stands in for which."""
        entries = np.repeat(1 / sizes, sizes), order[members], first
        average = scipy.sparse.csr_matrix(entries, (len(sizes), len(order)))
        means = (average @ values).toarray()  # [codes, genes]
        return (means[sender, ligand] + means[receiver, receptor]) / 2

    observed = statistic(np.arange(work.n_obs)) * (1 - 1e-9)  # equal but for rounding is equal
    rng = np.random.default_rng(seed)
    as_large = np.zeros(len(found))
    for _ in range(permutations):
        as_large += statistic(rng.permutation(work.n_obs)) >= observed
    overall = np.asarray(values.mean(axis=0)).ravel()
    return (as_large + 1) / (permutations + 1), (overall[ligand] + overall[receptor]) / 2


def _all_shuffles(work: AnnData, found: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """p-value and null mean of every row, over all ways to shuffle codes over cells.

    Means over cells drawn without putting back have known moments. Ligand and receptor are read in
    the same cells where a code talks to itself, and in cells that exclude each other elsewhere.
    """
    names = pd.Index(sorted({*found["ligand"], *found["receptor"]}))
    values = scipy.sparse.csc_matrix(work[:, names].X, dtype=np.float64)
    total = work.n_obs
    group = work.obs["code"].cat
    sizes = np.bincount(group.codes).astype(float)
    sender, receiver = (group.categories.get_indexer(found[end]) for end in ("source", "target"))
    ligand, receptor = names.get_indexer(found["ligand"]), names.get_indexer(found["receptor"])
    mean = np.asarray(values.mean(axis=0)).ravel()
    power = {k: np.asarray(values.power(k).mean(axis=0)).ravel() for k in (2, 3)}
    variance = power[2] - mean**2
    third = power[3] - 3 * mean * power[2] + 2 * mean**3

    pairs, which = np.unique(np.column_stack([ligand, receptor]), axis=0, return_inverse=True)
    left, right = values[:, pairs[:, 0]], values[:, pairs[:, 1]]
    joint = np.asarray(left.multiply(right).mean(axis=0)).ravel()
    covariance = (joint - mean[pairs[:, 0]] * mean[pairs[:, 1]])[which]
    both = left + right  # third moment of the sum of the two, in one cell
    second, cube = (np.asarray(both.power(k).mean(axis=0)).ravel() for k in (2, 3))
    centre = mean[pairs[:, 0]] + mean[pairs[:, 1]]
    joint_third = (cube - 3 * centre * second + 2 * centre**3)[which]

    def spread(of: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Variance of a mean of n cells."""
        return of / n * (total - n) / (total - 1)

    def lean(of: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Third central moment of a mean of n cells."""
        return of / n**2 * (total - n) * (total - 2 * n) / ((total - 1) * max(total - 2, 1))

    n, m, own = sizes[sender], sizes[receiver], sender == receiver
    apart = spread(variance[ligand], n) + spread(variance[receptor], m)
    apart -= 2 * covariance / (total - 1)
    same = spread(variance[ligand] + variance[receptor] + 2 * covariance, n)
    deviation = np.sqrt(np.maximum(np.where(own, same, apart), 1e-12)) / 2
    leaning = np.where(own, lean(joint_third, n),
                       lean(third[ligand], n) + lean(third[receptor], m)) / 8
    expected = (mean[ligand] + mean[receptor]) / 2
    z = (found["lr_means"].to_numpy() - expected) / deviation
    p = evaluate.skewed_tail(z, leaning / deviation**3)
    return np.clip(p, 1e-300, 1), expected


def _nothing(reason: str) -> pd.DataFrame:
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _COLUMNS.items()})
    table.attrs["reason"] = reason
    return table
