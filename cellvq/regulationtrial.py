"""Trials of regulation: methods against known edges, and the test against a planted truth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellvq import simulate
from cellvq.regulation import regulation
from cellvq.regulationmethods import METHODS, score_pairs, shared_by_halves
from cellvq.regulationpairs import Candidates
from cellvq.regulationscore import score_methods

if TYPE_CHECKING:
    from anndata import AnnData

NOISE = 60
"""Genes without a program that are called regulators, in a simulation."""
LEADERS = 3
"""Genes of each program that are called regulators, in a simulation."""
FAMILIES = {
    "each code": {"groupby": "cell_type", "donor": "donor"},
    "all codes together": {"groupby": "cell_type", "donor": "donor", "together": True},
    "codes and donors ignored": {"groupby": None},
}
"""What is tested, with the true types as codes; the last is co-expression, the baseline."""


def compare(
    made: Candidates, known: pd.DataFrame, *, more: dict[str, pd.DataFrame] | None = None,
    top: int = 1000, draws: int = 200, seed: int = 0,
) -> pd.DataFrame:
    """Score all methods against known edges, over the same pairs.

    Args:
        made: :func:`cellvq.regulationpairs.candidates`.
        known: known edges, see :func:`cellvq.regulationscore.score_edges`.
        more: further methods and their pairs, such as a decoder's response or attention; only pairs
            that all of them have are compared.
        top: top pairs of two halves of the cells that are compared.
        draws: see :func:`cellvq.regulationscore.score_edges`.
        seed: likewise.

    Returns:
        The table of :func:`cellvq.regulationscore.score_methods`, best first, with ``halves`` (see
        :func:`cellvq.regulationmethods.shared_by_halves`; NaN for further methods) and
        ``halves_null`` (what chance gives).

    Example:
        >>> from cellvq.regulationpairs import candidates
        >>> cells = simulate.simulate_cells(cells=300, seed=1)
        >>> program = simulate.truth(cells)["programs"]["gene"].iloc[:12].tolist()
        >>> known = pd.DataFrame({"regulator": program[0], "gene": program[1:]})
        >>> made = candidates(cells, "lineage", regulators=program[:1])
        >>> bool(compare(made, known, draws=20)["auroc"].max() > 0.8)
        True
    """
    for table in (more or {}).values():
        there = set(table["gene"]) | set(table["regulator"])
        made = made.only(np.arange(len(made.code)), np.flatnonzero(made.genes.isin(there)))
    tables = {method: score_pairs(made, method) for method in METHODS}
    pairs = next(iter(tables.values()))[["regulator", "gene"]]
    tables |= {name: table.merge(pairs) for name, table in (more or {}).items()}
    scores = score_methods(tables, known, draws=draws, seed=seed)
    halves = {method: shared_by_halves(made, method, top=top, seed=seed)
              for method in METHODS if len(scores)}
    scores["halves"] = scores["method"].map(halves)
    scores["halves_null"] = min(top / len(pairs), 1)
    return scores


def simulated_truth(seeds: Iterable[int], *, cells: int = 1500, fdr: float = 0.05) -> pd.DataFrame:
    """Hold the test to simulated cells: with nothing planted, and with three programs.

    A few genes of each program and many genes without one are called regulators. Genes of a program
    go up and down together in every type; all other edges are false.

    Args:
        seeds: one simulation of each kind for each.
        cells: cells of a simulation.
        fdr: nominal false discovery rate.

    Returns:
        One row a simulation and family: ``seed``, ``planted`` (bool), ``family`` (see
        ``FAMILIES``), ``tested``, ``found``, ``false``, ``false_share`` (of those found, 0 without
        any), ``power`` (share of true edges that are found, NaN where nothing is planted).
    """
    rows = []
    for seed in seeds:
        for planted in (False, True):
            made = simulate.simulate_cells(cells=cells, seed=seed, programs=3 if planted else 0)
            rows += [{"seed": seed, "planted": planted, "family": family,
                      **_trial(made, options, fdr, seed)} for family, options in FAMILIES.items()]
    return pd.DataFrame(rows)


def _trial(made: AnnData, options: dict, fdr: float, seed: int) -> dict[str, float]:
    """Count what one test finds in simulated cells, and what of it is true."""
    programs = simulate.truth(made)["programs"]
    program = dict(zip(programs["gene"], programs["program"], strict=True))
    leaders = programs.groupby("program")["gene"].head(LEADERS).tolist()
    noise = np.random.default_rng(seed).permutation(made.var_names.difference(list(program)))
    table = regulation(made, regulators=[*leaders, *noise[:NOISE]], draws=0, fdr=fdr, **options)
    right = table["regulator"].map(program) == table["gene"].map(program)  # missing equals nothing
    codes = 1
    if options["groupby"] and not options.get("together"):
        codes = made.obs[options["groupby"]].nunique()
    true = codes * sum(program[one] == program[gene] for one in leaders for gene in program
                       if gene != one)
    return {"tested": table.attrs["tested"], "found": len(table), "false": int((~right).sum()),
            "false_share": (~right).mean() if len(table) else 0.0,
            "power": right.sum() / true if true else np.nan}
