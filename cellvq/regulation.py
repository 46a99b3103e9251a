"""Which genes vary together with a transcription factor within a cell state: a test, and edges.

Cells of one code and one donor are compared with each other alone, so that differences between
cell states and between donors make no edge. What is left is that two genes go up and down together,
at equal sequencing depth. That is what regulation would do, and so would a common cause: an edge is
a hypothesis. How far such edges agree with what is known is asked in :mod:`cellvq.regulationscore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from cellvq import InputError, knowledge
from cellvq.markers import cut, with_code
from cellvq.regulationpairs import Candidates, candidates
from cellvq.regulationsums import TINY, half_sums, shuffled_p, sums_of

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = {
    "regulator": str, "gene": str, "code": str, "score": float, "effect": float, "n_cells": int,
    "n_donors": int, "p": float, "fdr": float, "null": str, "stability": float, "agree": float,
    "evidence": str,
}
LEAST_EXPRESSING = 10
"""Cells of a code that express a gene, or its edges are not tested there."""
ALL, CODES = "all", "codes"
"""Tests over all codes together, whose edges have the code ``all``, or over each code by itself."""
LEAST_SHARE = 0.05
"""Share of the cells that express a gene, or it is not tested."""
DRAWS = 20
"""Random halves of the cells, for the stability."""
STANDS = 1.96
"""Standard deviations beyond which half of the cells tell an edge."""
ENOUGH = 200
"""Cells of a code, on average, below which the graph asks coarser codes for their edges."""


def regulation(
    cells: AnnData,
    groupby: str | None = "cellvq_code",
    *,
    regulators: Sequence[str] | None = None,
    donor: str | None = None,
    finer: str | None = None,
    together: bool = False,
    fdr: float = 0.05,
    most: int | None = None,
    draws: int = DRAWS,
    min_fraction: float = LEAST_SHARE,
    min_cells: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Test which genes vary together with which regulator within each code.

    The statistic is the correlation of log1p of counts per 10,000 at equal depth: what the
    logarithm of the depth and its square explain is taken off, and so are the means of donors. The
    null shuffles the regulator over cells of like donor; all shuffles are taken at once, by the
    mean, variance and skewness that they are known to have (Pitman 1937, doi 10.2307/2983647).

    Args:
        cells: cells with raw counts, codes and gene symbols.
        groupby: column of ``obs`` with the codes; None: all cells are one state.
        regulators: names of the transcription factors; None: those of CollecTRI.
        donor: column of ``obs`` with the donor of each cell.
        finer: column of ``obs`` with finer codes; the differences between their means make no edge.
        together: one test a pair over all codes, whose cells are still compared within their code
            alone: finds what holds in many states and what no state has the cells to show. False:
            one test a pair and code.
        fdr: only edges below this false discovery rate have a row; 1 for all that were tested.
        most: at most so many edges of a code, the surest.
        draws: random halves of the cells, for the stability; 0 for none.
        min_fraction: share of the cells that express a gene, over all codes and in a code, or it is
            not tested.
        min_cells: smaller codes are left out.
        seed: seed of the halves.

    Returns:
        One row an edge, surest first: ``regulator``, ``gene``, ``code`` (str; ``all`` where codes
        were tested together), ``score`` (z), ``effect`` (correlation, positive where they go up
        together), ``n_cells`` (of the codes in which it was tested), ``n_donors`` (who take part,
        0 where donors are not known), ``p``, ``fdr`` (over all pairs of all codes), ``null``,
        ``stability`` (share of random halves of the cells that show the edge with this sign, p
        below 0.05), ``agree`` (share of donors with this sign, NaN without donors), ``evidence``.
        ``attrs["tested"]`` is the number of tests. A table without rows says why in
        ``attrs["reason"]``.

    Raises:
        InputError: see :func:`cellvq.regulationpairs.candidates`; or a number cannot be.

    Example:
        >>> from cellvq.simulate import simulate_cells, truth
        >>> cells = simulate_cells(cells=500, seed=1)
        >>> program = truth(cells)["programs"]["gene"].iloc[:12].tolist()  # these vary together
        >>> table = regulation(cells, "lineage", regulators=program[:1], draws=0)
        >>> bool(table["gene"].isin(program).mean() > 0.5)
        True
    """
    if not 0 < fdr <= 1 or draws < 0 or (most is not None and most < 1):
        raise InputError(f"fdr is {fdr}, draws is {draws} and most is {most}; fdr lies between 0 "
                         "and 1, and the others are no less than 0 and 1")
    made = candidates(cells, groupby, regulators=regulators, donor=donor, finer=finer,
                      min_fraction=min_fraction, min_cells=min_cells)
    family = ALL if together else CODES
    return _edges(made, _found(made, (family,), min_fraction, fdr)[family], fdr, most, draws, seed)


def network(
    cells: AnnData, *, regulators: Sequence[str] | None = None, donor: str | None = None,
    fdr: float = 0.05, most: int = 200, per_code: int = 10, seed: int = 0,
) -> pd.DataFrame:
    """Find the edges of the knowledge graph: over all codes together, and within single codes.

    Where codes have few cells, the coarser codes above them are asked, and what sets the means of
    the finer ones apart is taken off; ``attrs["note"]`` says so.

    Args:
        cells: encoded cells with raw counts and gene symbols.
        regulators: see :func:`regulation`.
        donor: likewise.
        fdr: false discovery rate, of each of the two families by itself.
        most: at most so many edges over all codes, the surest.
        per_code: at most so many edges of a code.
        seed: likewise.

    Returns:
        The table of :func:`regulation`. What cannot be tested (no table of regulators, genes of
        another species, small codes) is no error here: ``attrs["reason"]`` says it.

    Example:
        >>> from cellvq.simulate import simulate_cells, truth
        >>> cells = simulate_cells(cells=500, seed=1)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> program = truth(cells)["programs"]["gene"].iloc[:12].tolist()
        >>> table = network(cells, regulators=program[:1], donor="donor")
        >>> "all" in set(table["code"]), table.attrs["tested"] > 300
        (True, True)
    """
    coded, code = with_code(cells)
    label, note = _coarser(code)
    coded = coded.copy()
    coded.obs["cellvq_regulation"] = label
    try:
        if regulators is None and (foreign := knowledge.why_foreign(cells.var_names)):
            raise InputError(foreign)
        made = candidates(coded, "cellvq_regulation", regulators=regulators, donor=donor,
                          finer="cellvq_code" if note else None)
    except InputError as error:
        table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
        table.attrs["reason"] = str(error)
        return table
    found = _found(made, (ALL, CODES), LEAST_SHARE, fdr)
    both = [_edges(made, found[ALL], fdr, most, DRAWS, seed),
            _edges(made, found[CODES], fdr, per_code, DRAWS, seed)]
    table = pd.concat(both, ignore_index=True)
    table.attrs = {"tested": sum(one.attrs["tested"] for one in both)}
    if table.empty:
        table.attrs["reason"] = "; ".join(dict.fromkeys(one.attrs["reason"] for one in both))
    if note:
        table.attrs["note"] = note
    return table


def _coarser(code: pd.Series) -> tuple[pd.Series, str]:
    """The finest level of nested codes that have cells enough, and a sentence if it is a parent."""
    whole = int(code.astype(str).str.count(r"\.").max()) + 1
    for depth in range(whole, 0, -1):
        label = cut(code, depth)
        if len(label) >= ENOUGH * label.nunique() or depth == 1:
            break
    if depth == whole:
        return label, ""
    return label, (f"codes have {len(code) / code.nunique():.0f} cells on average, so that edges "
                   f"are asked of their {label.nunique()} parents, the first {depth} "
                   f"part{'s' * (depth > 1)} of the codes, less what sets their means apart")


def _found(
    made: Candidates, families: tuple[str, ...], min_fraction: float, fdr: float
) -> dict[str, tuple[int, pd.DataFrame]]:
    """Test all pairs: how many tests a family has, and its pairs with p up to the FDR."""
    found = {family: [] for family in families}
    whole = np.zeros((7, len(made.regulators), len(made.genes)) if ALL in families else 0)
    for number in range(len(made.names)):
        rows = np.flatnonzero(made.code == number)
        expressing = made.values[rows].getnnz(axis=0)
        genes = np.flatnonzero(expressing >= max(LEAST_EXPRESSING, min_fraction * len(rows)))
        own = np.flatnonzero(np.isin(made.regulators, genes))
        sums = sums_of(made.only(rows, genes))
        one = np.ones(sums.up.shape)
        parts = np.stack([sums.product, sums.variance, sums.third, sums.up, sums.donors * one,
                          len(rows) * one, sums.donors * one])
        if CODES in families:
            found[CODES].append(_rows(number, made.regulators[own], genes, parts, fdr))
        if ALL in families:
            here = np.ix_(own, genes)
            donors = np.maximum(whole[6][here], sums.donors)
            whole[(slice(None), *here)] += parts
            whole[6][here] = donors
    if ALL in families:
        found[ALL].append(_rows(-1, made.regulators, np.arange(len(made.genes)), whole, fdr))
    return {family: (sum(count for count, _ in parts),
                     pd.concat([pairs for _, pairs in parts], ignore_index=True))
            for family, parts in found.items()}


def _rows(
    code: int, regulators: np.ndarray, genes: np.ndarray, parts: np.ndarray, fdr: float
) -> tuple[int, pd.DataFrame]:
    """Count the pairs that are tested, and lay sums out as one row for each with p up to the FDR.

    A pair whose own p is above the false discovery rate cannot come below it beside others; and p
    is no less than the normal tail.
    """
    tested = (regulators[:, None] != genes) & (parts[1] > 0)
    far = np.abs(parts[0]) >= -special.ndtri(fdr / 2) * np.sqrt(parts[1])
    at = np.nonzero(tested & far)
    product, variance, third, up, strata, cells, donors = parts[:, *at]
    up, z = up / np.maximum(strata, 1), product / np.sqrt(variance)
    table = pd.DataFrame({
        "regulator": regulators[at[0]], "gene": genes[at[1]], "code": code, "score": z,
        "effect": z / np.sqrt(cells), "n_cells": cells, "n_donors": donors,
        "p": shuffled_p(product, variance, third), "agree": np.where(product > 0, up, 1 - up),
    })
    return int(tested.sum()), table[table["p"] <= fdr]


def _edges(
    made: Candidates, found: tuple[int, pd.DataFrame], fdr: float, most: int | None, draws: int,
    seed: int,
) -> pd.DataFrame:
    """The table of one family."""
    count, pairs = found
    edges = pairs.assign(fdr=_adjusted(pairs["p"].to_numpy(float), count))
    edges = edges[(edges["fdr"] < fdr) | (fdr == 1)].sort_values(
        "score", key=np.abs, ascending=False).sort_values("p", kind="stable")
    edges = edges.groupby("code").head(most or max(len(edges), 1)).reset_index(drop=True)
    edges["stability"] = _stability(made, edges, draws, seed)
    table = _named(made, edges)
    table.attrs["tested"] = int(count)
    if table.empty:
        table.attrs["reason"] = (
            f"none of {count:,} pairs is below the false discovery rate of {fdr:.0%}" if count else
            f"no regulator and gene are both expressed in {LEAST_EXPRESSING} cells of a code")
    return table


def _adjusted(p: np.ndarray, count: int) -> np.ndarray:
    """Benjamini-Hochberg of the smallest p-values of so many; right below the largest of them."""
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum.accumulate((p[order] * count / np.arange(1, len(p) + 1))[::-1])[::-1]
    found = np.empty(len(p))
    found[order] = np.minimum(adjusted, 1)
    return found


def _stability(made: Candidates, edges: pd.DataFrame, draws: int, seed: int) -> np.ndarray:
    """Share of random halves of the cells in which each edge shows with its sign, [edges]."""
    if not draws or edges.empty:
        return np.full(len(edges), np.nan)
    rng, code = np.random.default_rng(seed), edges["code"].to_numpy()
    pairs = edges[["regulator", "gene"]].to_numpy(int).T
    product, variance = np.zeros((2, draws, len(edges)))
    for number in range(len(made.names)):
        own = np.flatnonzero((code == number) | (code < 0))
        if len(own):
            rows = np.flatnonzero(made.code == number)
            here = half_sums(made, rows, pairs[:, own], draws, rng)
            product[:, own] += here[0]
            variance[:, own] += here[1]
    z = product / np.sqrt(np.maximum(variance, TINY))
    return (z * np.sign(edges["score"].to_numpy()) > STANDS).mean(axis=0)


def _named(made: Candidates, edges: pd.DataFrame) -> pd.DataFrame:
    """Put names in the place of numbers."""
    donors = made.donor_known
    genes, codes = made.genes.to_numpy(object), np.r_[made.names, [ALL]].astype(object)
    table = edges.assign(
        regulator=genes[edges["regulator"].to_numpy(int)], gene=genes[edges["gene"].to_numpy(int)],
        code=codes[edges["code"].to_numpy(int)],
        null="regulator shuffled over cells of one code" + (" and donor" if donors else ""),
        evidence=f"cellvq {version('cellvq')} correlation at equal depth")
    if not donors:
        table = table.assign(n_donors=0, agree=np.nan)
    return table[list(COLUMNS)].astype(COLUMNS)
