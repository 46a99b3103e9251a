"""Do the markers of a code hold over donors? Counts summed within donors, compared between them.

Cells of one donor are not independent, so tests over cells claim far too much (doi
10.1038/s41467-021-25960-2). Of all tests of markers here this is the only one whose n is donors.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats
from scipy.sparse import csc_matrix

from cellvq import InputError, evaluate, genes
from cellvq.markers import Groups, groups_of, sums_by, with_code

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_DONORS = 3
LEAST_SHARED = 10
"""Genes whose variances tell what variance is typical, at the least."""
LEAST_COUNTS = 1
"""Mean of the counts that are compared, over donors, below which a gene is not tested."""
AT_ONCE = 4_000_000
"""Sums (genes x donors x codes) that are held at once, which bounds the memory."""
DONOR_COLUMNS = {
    "code": str, "gene": str, "level": int, "donors": int, "donor_log2_fold_change": float,
    "donor_p": float, "donor_fdr": float,
}


class Change(NamedTuple):
    """How a group of cells differs from others of the same donors, [genes, groups] each."""

    mean: np.ndarray
    """Mean over donors of the log2 fold change."""
    variance: np.ndarray
    """Variance over donors of the log2 fold change."""
    agree: np.ndarray
    """Share of donors whose change has the sign of the mean."""


def donor_table(
    cells: AnnData, donor: str, *, min_cells: int = 10, levels: str = "finest"
) -> pd.DataFrame:
    """Test every gene in every code over donors, each code paired with the donor's other cells.

    Counts of a donor are summed over the cells of a code and over all others, and compared as log2
    of one plus the counts at the depth of the smaller sum, to which the larger one is thinned. The
    differences of all donors are tested against zero by a t test whose variance is moderated over
    genes (limma: doi 10.2202/1544-6115.1027).

    Args:
        cells: encoded cells with raw counts; those without a donor are left out.
        donor: column of ``obs`` with the donor of each cell.
        min_cells: a donor takes part with at least so many cells inside and outside the code.
        levels: ``finest`` for the codes, ``all`` for their parents too.

    Returns:
        One row a code and gene, for codes with at least three such donors: ``code``, ``gene``
        (str), ``level`` (int, 0 is the coarsest), ``donors`` (int, which took part),
        ``donor_log2_fold_change`` (mean over donors), ``donor_p`` (two-sided), ``donor_fdr`` (over
        all genes and codes of a level); NaN for genes with less than one count in the mean. A table
        without rows says why in ``attrs["reason"]``.

    Raises:
        InputError: there is no such column.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=600, cell_types=2, seed=1)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> table = donor_table(cells, "donor")
        >>> int(table["donors"].min()), bool((table["donor_fdr"] < 0.05).any())
        (6, True)
    """
    from anndata.utils import make_index_unique

    if donor not in cells.obs:
        raise InputError(f"obs has no column {donor!r}; there are {', '.join(cells.obs)}")
    cells, _ = with_code(cells)
    known = evaluate.labelled(cells.obs[donor])
    if len(set(cells.obs[donor][known].astype(str))) < LEAST_DONORS:
        return _empty(f"fewer than {LEAST_DONORS} donors in obs[{donor!r}]")
    cells, codes = with_code(cells[known])
    number, _ = pd.factorize(cells.obs[donor].astype(str), sort=True)
    groups = groups_of(codes, levels)
    counts, _ = genes.find_counts(cells)
    depth = genes.sequencing_depth(cells, counts)

    inside, outside = _in_and_out(groups, number, csc_matrix(np.ones((len(number), 1))))
    paired = ((inside >= min_cells) & (outside >= min_cells))[0]  # [donors, groups]
    enough = paired.sum(axis=0) >= LEAST_DONORS
    if not enough.any():
        return _empty(f"no code has {min_cells} cells in each of {LEAST_DONORS} donors")
    groups, paired = groups.only(enough), paired[:, enough]
    total = _in_and_out(groups, number, csc_matrix(depth[:, None]))
    counts, names = counts.tocsc(), make_index_unique(cells.var_names.astype(str))
    step = max(AT_ONCE // (len(paired) * groups.member.shape[1]), 1)
    blocks = [paired_change(*_in_and_out(groups, number, counts[:, first : first + step]), *total,
                            paired)
              for first in range(0, counts.shape[1], step)]
    found = Change(*(np.concatenate(part) for part in zip(*blocks, strict=True)))
    return _tested(found, paired.sum(axis=0), groups.table, names)


def _in_and_out(
    groups: Groups, donors: np.ndarray, values: csc_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values [cells, genes] in and outside each group, [genes, donors, groups] each."""
    codes = groups.member.shape[1]
    sums = sums_by(values, groups.number + codes * donors, codes * (donors.max() + 1))
    inside = sums.reshape(-1, codes) @ groups.member.T
    sums = sums.reshape(values.shape[1], -1, codes)
    inside = inside.reshape(*sums.shape[:2], -1)
    return inside, sums.sum(axis=2, keepdims=True) - inside


def paired_change(
    inside: np.ndarray, outside: np.ndarray, own: np.ndarray, others: np.ndarray,
    paired: np.ndarray,
) -> Change:
    """Compare sums of two sets of cells of each donor, gene by gene.

    Args:
        inside: UMI counts summed over the cells of a group, [genes, donors, groups].
        outside: UMI counts summed over the cells they are compared with, likewise.
        own: UMI counts of the first over all genes, [..., donors, groups].
        others: those of the second.
        paired: which donors take part, bool [donors, groups], at least two of each group.

    Returns:
        Mean and variance over donors of the log2 fold change, NaN for a gene with less than
        ``LEAST_COUNTS``, and the share of donors that agree with the sign of the mean.
    """
    own, others = (np.maximum(part, 1) for part in (own, others))
    depth = np.minimum(own, others)
    change = _thinned(inside, depth / own) - _thinned(outside, depth / others)
    n = paired.sum(axis=0)
    mean = (change * paired).sum(axis=1) / n
    variance = (np.square(change - mean[:, None]) * paired).sum(axis=1) / (n - 1)
    agree = ((np.sign(change) == np.sign(mean)[:, None]) & paired).sum(axis=1) / n
    compared = (inside * (depth / own) + outside * (depth / others)) / 2
    seen = (compared * paired).sum(axis=1) / n >= LEAST_COUNTS
    return Change(*(np.where(seen, part, np.nan) for part in (mean, variance, agree)))


def _thinned(counts: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean of log2(1 + counts) if each count stayed with a chance of ``share``.

    The logarithm of a mean is not the mean of logarithms; comparing a small sum with a large one
    that is only scaled down would find every gene lower in the small one.
    """
    left = counts * share
    lost = (1 - share) * np.interp(left, *_lost_of_poisson(), right=0.0)  # by a binomial, nearly
    return (np.log1p(left) - lost) / np.log(2)


@functools.cache
def _lost_of_poisson() -> tuple[np.ndarray, np.ndarray]:
    """Means of Poisson counts, and what log(1 + mean) exceeds the mean of log(1 + counts) by."""
    means, counts = np.r_[0, np.geomspace(0.01, 200, 300)], np.arange(400)
    mean_log = stats.poisson.pmf(counts, means[:, None]) @ np.log1p(counts)
    return means, np.log1p(means) - mean_log


def moderated_p(
    effect: np.ndarray, variance: np.ndarray, worth: np.ndarray, freedom: np.ndarray,
    height: np.ndarray | None = None,
) -> np.ndarray:
    """Test effects against zero, with variances drawn towards those of the group's other genes.

    From fewer than ``LEAST_SHARED`` genes, or whatever the rows are, nothing is borrowed.

    Args:
        effect: mean differences, [genes, groups].
        variance: variances of single differences, [genes, groups]; NaN where not tested.
        worth: how many single differences a mean is worth, [groups]: n where it is over n donors,
            ``1 / (1 / n + 1 / m)`` where means of n and of m are compared.
        freedom: degrees of freedom of the variances, [groups].
        height: mean logarithm of each gene's counts, [genes, groups]; where it is given, variances
            are drawn towards those of genes of like height, as few counts vary more (limma-trend:
            doi 10.1186/gb-2014-15-2-r29), and no further than the data are sure of.

    Returns:
        Two-sided p-values, [genes, groups] (limma: doi 10.2202/1544-6115.1027).
    """
    common, known = _common_variance(variance, freedom, height)
    moderated = (known * common + freedom * variance) / (known + freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(effect) / np.sqrt(moderated / worth)
    # No gene can borrow more degrees of freedom than all genes have (as limma caps them).
    every = (freedom * np.isfinite(variance).sum(axis=0)).clip(min=1)
    return 2 * stats.t.sf(t, np.minimum(known + freedom, every))


def _tested(
    found: Change, donors: np.ndarray, groups: pd.DataFrame, names: pd.Index
) -> pd.DataFrame:
    """Lay out means over donors and their tests as a table."""
    p = moderated_p(found.mean, found.variance, donors, donors - 1)
    table = pd.DataFrame({
        "code": np.repeat(groups["code"].to_numpy(dtype=object), len(names)),
        "gene": np.tile(names.to_numpy(dtype=object), len(groups)),
        "level": np.repeat(groups["level"].to_numpy(), len(names)),
        "donors": np.repeat(donors, len(names)),
        "donor_log2_fold_change": found.mean.T.ravel(),
        "donor_p": p.T.ravel(),
    })
    table["donor_fdr"] = table.groupby("level")["donor_p"].transform(
        evaluate.false_discovery_rate
    )
    return table


def _common_variance(
    variance: np.ndarray, freedom: np.ndarray, height: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The variance of a typical gene of each code, and the degrees of freedom it is worth.

    Moments of log variances under an inverse chi-square prior (Smyth 2004, doi
    10.2202/1544-6115.1027), around their mean or around a cubic of the height.
    """
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a code with a gene or none: NaN
        logs = np.where(variance > 0, np.log(variance), np.nan)
        logs = logs - special.digamma(freedom / 2) + np.log(freedom / 2)
        centre, spent = np.nanmean(logs, axis=0), 1
        if height is not None and len(logs) >= 2 * LEAST_SHARED:
            centre, spent = _cubic(height, logs), 4
        counted = np.isfinite(logs).sum(axis=0)
        away = (logs - centre) ** 2
        beyond = np.nansum(away, axis=0) / np.maximum(counted - spent, 1)
        beyond = beyond - special.polygamma(1, freedom / 2)
        if height is not None:
            # With two or three donors it is hardly known how alike variances are. Fewer degrees
            # are taken than they seem to be worth, by one standard error of their spread.
            beyond = beyond.clip(min=0) + np.nanstd(away, axis=0) / np.sqrt(
                np.maximum(counted, 1))
    worth = 2 * _inverse_trigamma(np.where(beyond > 1e-8, beyond, 1e-8))
    common = np.exp(centre + special.digamma(worth / 2) - np.log(worth / 2))
    worth = np.where((counted >= LEAST_SHARED) & np.isfinite(worth), worth, 0.0)
    return np.nan_to_num(common), worth


def _cubic(height: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Fit a cubic of the height to the values of each column, where both are known."""
    fitted = np.full(values.shape, np.nan)
    for column in range(values.shape[1]):
        known = np.isfinite(values[:, column]) & np.isfinite(height[:, column])
        if known.sum() > 4:
            at = (height[:, column] - height[known, column].mean()) / (
                height[known, column].std() + 1e-9)
            fitted[:, column] = np.polyval(np.polyfit(at[known], values[known, column], 3), at)
    return fitted


def _inverse_trigamma(values: np.ndarray) -> np.ndarray:
    """Solve trigamma(x) = value by Newton's method (Smyth 2004, appendix)."""
    x = 0.5 + 1 / values
    for _ in range(30):
        trigamma = special.polygamma(1, x)
        x = x + trigamma * (1 - trigamma / values) / special.polygamma(2, x)
    return x


def _empty(reason: str) -> pd.DataFrame:
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in DONOR_COLUMNS.items()})
    table.attrs["reason"] = reason
    return table
