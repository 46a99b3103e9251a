"""What people do first: every cell a witness, every gene that is seen a signal.

Baselines that the statistics of the knowledge graph are held to. Most take cells of one donor as
independent, which they are not (doi 10.1038/s41467-021-25960-2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats.contingency import chi2_contingency

from cellvq import evaluate

if TYPE_CHECKING:
    from anndata import AnnData

NAMES = {
    "code-marks-gene": "Welch's t test over cells",
    "code-talks-to-code": "both genes expressed",
    "code-changes-with-condition": "chi-square test over cells",
    "gene-changes-in-code": "Welch's t test over cells",
    "talk-changes-with-condition": "t tests over cells of both genes, joined by Fisher's method",
    "tf-regulates-gene": "correlation over cells",
}
"""Baseline of each kind."""


def markers(cells: AnnData, code: str) -> pd.DataFrame:
    """Compare the cells of each code with all others by Welch's t test, gene by gene.

    Args:
        cells: raw counts.
        code: column of ``obs``.

    Returns:
        One row a code and gene: ``code``, ``gene``, ``effect`` (difference of means of log1p),
        ``p``, ``fdr``.
    """
    values, names = _values(cells), cells.obs[code].astype(str).to_numpy()
    return _tests(cells, [(name, values[names == name], values[names != name])
                          for name in sorted(set(names))])


def gene_changes(cells: AnnData, code: str, condition: str, treated: str) -> pd.DataFrame:
    """Compare treated cells of a code with the others of it by Welch's t test, gene by gene.

    Args:
        cells: raw counts.
        code: column of ``obs``.
        condition: column of ``obs``.
        treated: its value that is compared with the others.

    Returns:
        As :func:`markers`.
    """
    values, names = _values(cells), cells.obs[code].astype(str).to_numpy()
    side = (cells.obs[condition].astype(str) == treated).to_numpy()
    return _tests(cells, [(name, values[(names == name) & side], values[(names == name) & ~side])
                          for name in sorted(set(names))])


def talk_changes(tested: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Join the p-values of ligand and receptor by Fisher's method.

    Args:
        tested: signals, with ``source``, ``target``, ``ligand``, ``receptor``.
        changes: table of :func:`gene_changes`.
    """
    p = changes.set_index(["code", "gene"])["p"].clip(lower=1e-300)
    ends = [p.reindex(pd.MultiIndex.from_frame(tested[list(pair)])).to_numpy()
            for pair in (("source", "ligand"), ("target", "receptor"))]
    joined = stats.chi2.sf(-2 * np.log(np.stack(ends)).sum(axis=0), 4)
    table = tested[["source", "target", "ligand", "receptor"]].assign(p=joined)
    return table.assign(fdr=evaluate.false_discovery_rate(table["p"]))


def abundance(cells: AnnData, code: str, condition: str) -> pd.DataFrame:
    """Compare the share of each code between conditions by a chi-square test over cells.

    Args:
        cells: any.
        code: column of ``obs``.
        condition: column of ``obs``.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> list(abundance(simulate_cells(cells=300), "cell_type", "condition"))
        ['code', 'p', 'fdr']
    """
    counts = pd.crosstab(cells.obs[code].astype(str), cells.obs[condition].astype(str))
    p = [chi2_contingency(np.stack([row, counts.sum() - row])).pvalue for row in counts.to_numpy()]
    table = pd.DataFrame({"code": counts.index.astype(str), "p": p})
    return table.assign(fdr=evaluate.false_discovery_rate(table["p"]))


def regulation(cells: AnnData, code: str, regulators: tuple[str, ...]) -> pd.DataFrame:
    """Correlate genes with regulators over the cells of each code, depth and donors left in.

    Args:
        cells: raw counts.
        code: column of ``obs``.
        regulators: names of genes.

    Returns:
        One row a pair and code: ``regulator``, ``gene``, ``code``, ``p``, ``fdr``.
    """
    values, names = _values(cells), cells.obs[code].astype(str).to_numpy()
    at, tables = cells.var_names.get_indexer(list(regulators)), []
    for name in sorted(set(names)):
        own = values[names == name]
        with np.errstate(invalid="ignore", divide="ignore"):
            own = (own - own.mean(axis=0)) / own.std(axis=0)
            r = own[:, at].T @ own / len(own)
            t = r * np.sqrt((len(own) - 2) / np.maximum(1 - r**2, 1e-12))
        p = 2 * stats.t.sf(np.abs(t), len(own) - 2)
        p[np.arange(len(at)), at] = np.nan
        tables.append(pd.DataFrame({
            "regulator": np.repeat(np.array(regulators, object), len(cells.var_names)),
            "gene": np.tile(cells.var_names.to_numpy(object), len(at)), "code": name,
            "p": p.ravel()}))
    table = pd.concat(tables, ignore_index=True).dropna(subset="p")
    return table.assign(fdr=evaluate.false_discovery_rate(table["p"]))


def _values(cells: AnnData) -> np.ndarray:
    """log1p of counts per 10,000, [cells, genes]."""
    counts = cells.X.toarray().astype(float)
    return np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4)


def _tests(cells: AnnData, sides: list[tuple[str, np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """Welch's t test of each gene, in each of several codes."""
    tables = []
    for name, one, other in sides:
        with np.errstate(invalid="ignore", divide="ignore"):
            p = stats.ttest_ind(one, other, equal_var=False).pvalue
        tables.append(pd.DataFrame({
            "code": name, "gene": cells.var_names.to_numpy(object),
            "effect": one.mean(axis=0) - other.mean(axis=0), "p": p}))
    table = pd.concat(tables, ignore_index=True).dropna(subset="p")
    return table.assign(fdr=evaluate.false_discovery_rate(table["p"]))
