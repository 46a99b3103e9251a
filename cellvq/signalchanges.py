"""Which signals between codes differ between two conditions: ligand and receptor, over donors.

Cells of one donor are not independent (doi 10.1038/s41467-021-25960-2). Where at least two donors
stand under each condition they are the unit of the test. Otherwise cells are: then ``n_donors`` is
0, the column ``null`` says so, and the p-values speak of these donors alone.
"""

from __future__ import annotations

from importlib.metadata import version
from math import comb
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate
from cellvq.pseudobulk import moderated_p
from cellvq.signalnull import ENOUGH, Averages, Ends, OfMeans, orders, shuffled_p
from cellvq.signalpairs import Prepared, empty, found_rows, prepare
from cellvq.signals import rows_of

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_DONORS = 2
"""Donors of each condition, or of both where they are paired, below which cells are the unit."""
LEAST_COUNTS = 10
"""Mean of the counts of a gene in a code, over donors and conditions, below which donors cannot be
compared; with fewer, more than one in twenty simulated nulls had a finding."""
LEAST_ARRANGEMENTS = 1000
"""Ways to deal the conditions to donors below which no permutation of donors can be significant
among thousands of tests, and a moderated t test takes its place."""
COLUMNS = {
    "source": str, "target": str, "ligand": str, "receptor": str, "contrast": str, "effect": float,
    "ligand_change": float, "receptor_change": float, "n_cells": int, "n_donors": int, "p": float,
    "fdr": float, "null": str, "evidence": str,
}
OF_CELLS = "conditions shuffled over the cells of each code, donors unknown or too few"
OF_DONORS = "{what} exchangeable between conditions, n = donors, {how}"


def signal_changes(
    cells: AnnData,
    condition: str,
    reference: str,
    *,
    groupby: str = "cellvq_code",
    donor: str | None = None,
    permutations: int = 10_000,
    seed: int = 0,
    resource: str | None = None,
    min_fraction: float = 0.05,
    min_cells: int = 10,
    most_groups: int = 64,
    enough: int = ENOUGH,
) -> pd.DataFrame:
    """Find signals that differ between a condition and the reference, in each pair of codes.

    A signal is the product of two means: that of the ligand in one code and of the receptor in the
    other. They are counts per 10,000, plus one, or plus what a single count in all cells of the
    code of a typical donor would be, if that is more. The effect is the difference of its log2
    between the conditions. Pairs are chosen without looking at the condition.

    Where donors are known, each gives one value a condition. The differences are tested by a
    moderated t test (limma: doi 10.2202/1544-6115.1027), within donors where two of them stand
    under both conditions; with so many donors that ``LEAST_ARRANGEMENTS`` are possible, the
    conditions are permuted over donors instead. Without donors the condition is shuffled over the
    cells of each code.

    Args:
        cells: cells with raw counts and gene symbols.
        condition: column of ``obs`` with the condition.
        reference: value that the others are compared with, one contrast each.
        groupby: column of ``obs`` with the codes.
        donor: column of ``obs`` with the donor of each cell.
        permutations: shuffles of cells, or of conditions over donors; the smallest p is 1 /
            (permutations + 1), so that a single signal among thousands of tests needs more.
        seed: seed of the shuffles.
        resource: see :func:`cellvq.signals.communication`.
        min_fraction: both genes are expressed in this share of their code, all conditions together.
        min_cells: a code takes part with so many cells of each condition, and a donor with so many
            of both codes.
        most_groups: see :func:`cellvq.signals.communication`.
        enough: see :func:`cellvq.signals.communication`.

    Returns:
        One row a contrast and tested pair of codes and genes: ``source``, ``target``, ``ligand``,
        ``receptor``, ``contrast`` (such as ``stim / ctrl``), ``effect`` (the sum of the next two),
        ``ligand_change``, ``receptor_change`` (log2, mean over donors), ``n_cells`` (of both codes
        under both conditions), ``n_donors``, ``p`` (two-sided), ``fdr`` (over all rows), ``null``,
        ``evidence``. Without rows ``attrs["reason"]`` says why.

    Raises:
        InputError: a column or the reference does not exist, or a number cannot be.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=600, cell_types=2, seed=1)
        >>> table = signal_changes(cells, "condition", "control", groupby="cell_type",
        ...                        donor="donor", resource="cellphonedb")
        >>> set(table["contrast"]), int((table["fdr"] < 0.05).sum())
        ({'stimulated / control'}, 0)
    """
    values = _conditions(cells, condition, reference, donor, permutations, enough)
    if len(values) == 1:
        return empty(COLUMNS, f"obs[{condition!r}] has the single value {reference!r}")
    tables = [
        _contrast(cells, condition, value, reference, donor, groupby, (permutations, seed, enough),
                  {"resource": resource, "min_fraction": min_fraction, "min_cells": min_cells,
                   "most_groups": most_groups})
        for value in values if value != reference
    ]
    full = [table for table in tables if len(table)]
    if not full:
        return empty(COLUMNS, "; ".join(table.attrs["reason"] for table in tables))
    notes = dict.fromkeys(table.attrs["note"] for table in full if "note" in table.attrs)
    for table in full:
        table.attrs = {}
    table = pd.concat(full, ignore_index=True)
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table = table.sort_values(["p", "source", "target", "ligand", "receptor"], ignore_index=True)
    table.attrs = {"note": "; ".join(notes)} if notes else {}
    return table[list(COLUMNS)]


def _conditions(cells, condition, reference, donor, permutations, enough) -> list[str]:
    """Values of the condition, after the arguments are checked."""
    if permutations < 1 or enough < 1:
        raise InputError(f"permutations is {permutations} and enough is {enough}; use 1 or more")
    for column in (condition, donor):
        if column is not None and column not in cells.obs:
            raise InputError(f"obs has no column {column!r}; there are {', '.join(cells.obs)}")
    known = evaluate.labelled(cells.obs[condition])
    values = sorted(set(cells.obs[condition][known].astype(str)))
    if str(reference) not in values:
        raise InputError(f"no cell is of the condition {reference!r}; obs[{condition!r}] has "
                         f"{', '.join(values) or 'no values'}")
    return values


def _contrast(
    cells: AnnData, condition: str, value: str, reference: str, donor: str | None, groupby: str,
    shuffles: tuple[int, int, int], options: dict,
) -> pd.DataFrame:
    """Compare one condition with the reference."""
    name = f"{value} / {reference}"
    state = cells.obs[condition].astype(object).map(str, na_action="ignore")
    chosen = state.isin([value, str(reference)]).to_numpy()
    if groupby not in cells.obs:
        raise InputError(f"obs has no column {groupby!r}; there are {', '.join(cells.obs)}")
    group = cells.obs[groupby][chosen].astype(object).map(str, na_action="ignore")
    sizes = pd.crosstab(group, state[chosen])
    there = sizes.index[(sizes.min(axis=1) >= options["min_cells"]) & (sizes.shape[1] == 2)]
    if not len(there):
        return empty(COLUMNS, f"{name}: no code has {options['min_cells']} cells of each condition")
    chosen[chosen] = group.isin(there)
    some = cells[chosen]
    made = prepare(some, groupby, groups=1, **options)
    if isinstance(made, str):
        return empty(COLUMNS, f"{name}: {made}")
    found = found_rows(made, options["min_fraction"])
    if found.empty:
        return empty(COLUMNS, f"{name}: no ligand and receptor are expressed in "
                              f"{options['min_fraction']:.0%} of the cells of their codes")
    ends, logs = rows_of(made, found)
    treated = (state[chosen][made.kept] == value).to_numpy()
    donors = _donors(some, made, donor)
    table = _over_donors(logs, made, ends, treated, donors, options["min_cells"], shuffles)
    if table is None:
        table = _over_cells(logs, made, ends, treated, shuffles)
    table = table.assign(
        source=made.names[ends.source], target=made.names[ends.target],
        ligand=found["ligand_complex"].to_numpy(), receptor=found["receptor_complex"].to_numpy(),
        contrast=name, evidence=f"cellvq {version('cellvq')}, pairs of liana {version('liana')} "
                                f"{made.resource}")
    table = table[table["p"].notna()]
    if made.note:
        table.attrs["note"] = made.note
    return table if len(table) else empty(
        COLUMNS, f"{name}: no two codes have {options['min_cells']} cells in {LEAST_DONORS} donors "
                 "of each condition")


def _donors(cells: AnnData, made: Prepared, donor: str | None) -> np.ndarray:
    """Number of the donor of each cell, -1 where it is not known."""
    if donor is None:
        return np.full(made.cells.n_obs, -1)
    known = evaluate.labelled(cells.obs[donor])[made.kept]
    return pd.factorize(cells.obs[donor][made.kept].astype(str).where(known), sort=True)[0]


def _plain(logs: csr_matrix) -> csr_matrix:
    """Counts per 10,000 of their log1p."""
    return csr_matrix((np.expm1(logs.data), logs.indices, logs.indptr), logs.shape)


def _offset(depth: np.ndarray) -> np.ndarray:
    """What is added to means before their logarithm, [groups], from depths [samples, groups].

    It holds back the noise of samples in which a gene is seen once or not at all.
    """
    typical = np.nanmedian(np.where(depth > 0, depth, np.nan), axis=0)
    return np.maximum(1, 1e4 / np.nan_to_num(typical, nan=1e4))


def _over_cells(
    logs: csr_matrix, made: Prepared, ends: Ends, treated: np.ndarray,
    shuffles: tuple[int, int, int],
) -> pd.DataFrame:
    """Shuffle the condition over the cells of each code."""
    permutations, seed, enough = shuffles
    sides = 2 * made.number + treated
    averages = Averages(_plain(logs), sides, 2 * len(made.names))
    depth = np.bincount(sides, made.cells.obs["depth"]).reshape(-1, 2)
    offset = _offset(depth.T).repeat(2)[:, None]

    def changes(means: np.ndarray, ends: Ends) -> tuple[np.ndarray, np.ndarray]:
        level = np.log2(means + offset)
        return ends.of(level[1::2] - level[::2])

    size = OfMeans(averages, ends, lambda means, ends: np.abs(np.add(*changes(means, ends))))
    p = shuffled_p(size, orders(len(treated), made.number, permutations, seed), enough=enough)
    ligand, receptor = changes(averages.means(), ends)
    n_cells = made.sizes[ends.source] + np.where(ends.source == ends.target, 0,
                                                 made.sizes[ends.target])
    return pd.DataFrame({"effect": ligand + receptor, "ligand_change": ligand,
                         "receptor_change": receptor, "n_cells": n_cells, "n_donors": 0, "p": p,
                         "null": OF_CELLS})


def _over_donors(
    logs: csr_matrix, made: Prepared, ends: Ends, treated: np.ndarray, donors: np.ndarray,
    min_cells: int, shuffles: tuple[int, int, int],
) -> pd.DataFrame | None:
    """Compare donors, or give None where there are too few."""
    samples = pd.DataFrame({"donor": donors, "treated": treated})[donors >= 0].drop_duplicates()
    samples = samples.sort_values(["donor", "treated"], ignore_index=True)
    both = samples["donor"].duplicated(keep=False)
    paired = samples[both]["donor"].nunique() >= LEAST_DONORS
    samples = samples[both].reset_index(drop=True) if paired else samples
    if min((samples["treated"] == side).sum() for side in (True, False)) < LEAST_DONORS:
        return None
    groups, plain = len(made.names), _plain(logs)
    of = [np.flatnonzero((donors == row.donor) & (treated == row.treated))
          for row in samples.itertuples()]
    sizes = np.stack([np.bincount(made.number[own], minlength=groups) for own in of])
    whole = made.cells.obs["depth"].to_numpy()
    depth = np.stack([np.bincount(made.number[own], whole[own], groups) for own in of])
    there = np.minimum(sizes[:, ends.source], sizes[:, ends.target]) >= min_cells
    offset, level, counts = _offset(depth)[:, None], [], []  # [samples, ends, rows]
    for own, deep in zip(of, depth, strict=True):
        means = Averages(plain[own], made.number[own], groups).means()
        level.append(ends.of(np.log2(means + offset)))
        counts.append(ends.of(means * deep[:, None] / 1e4))
    level = np.where(there[:, None], level, np.nan)
    seen = np.where(there[:, None], counts, 0).sum(axis=0) >= LEAST_COUNTS * there.sum(axis=0)
    level[:, :, ~seen.all(axis=0)] = np.nan
    cells = sizes[:, ends.source] + np.where(ends.source == ends.target, 0, sizes[:, ends.target])
    side = samples["treated"].to_numpy()
    if paired:  # sorted by donor, so that the two halves are in one order
        change = level[side] - level[~side]
        there = np.isfinite(change[:, 0])
        taking = np.repeat(there, 2, axis=0)
        n_donors = there.sum(axis=0)
    else:
        taking = np.isfinite(level[:, 0])
        n_donors = taking.sum(axis=0)
    table = _tested(level, side, paired, shuffles)
    return table.assign(n_cells=(cells * taking).sum(axis=0).astype(int), n_donors=n_donors)


def _tested(
    level: np.ndarray, side: np.ndarray, paired: bool, shuffles: tuple[int, int, int]
) -> pd.DataFrame:
    """Test levels [samples, ends, rows]; rows with the same donors are tested together."""
    there = np.isfinite(level[:, 0])
    if paired:
        there = np.repeat(there[side] & there[~side], 2, axis=0)
    found = np.full((4, level.shape[2]), np.nan)  # effect, ligand, receptor, p
    null = np.full(level.shape[2], "", dtype=object)
    patterns, pattern = np.unique(there, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        part, rows = patterns[:, number], np.flatnonzero(pattern.ravel() == number)
        treated = side[part]
        if min(treated.sum(), (~treated).sum()) < LEAST_DONORS:
            continue
        values = level[part][:, :, rows]
        change = values[treated].mean(axis=0) - values[~treated].mean(axis=0)
        p, how = _p_of_donors(values.sum(axis=1), treated, paired, shuffles)
        found[:, rows] = change.sum(axis=0), *change, p
        null[rows] = OF_DONORS.format(what="differences within donors" if paired else "donors",
                                      how=how)
    names = ("effect", "ligand_change", "receptor_change", "p")
    return pd.DataFrame(dict(zip(names, found, strict=True))).assign(null=null)


def _p_of_donors(
    values: np.ndarray, treated: np.ndarray, paired: bool, shuffles: tuple[int, int, int]
) -> tuple[np.ndarray, str]:
    """Two-sided p-values of [samples, rows], and how they were made."""
    permutations, seed, _ = shuffles
    rng = np.random.default_rng(seed)
    n, m = treated.sum(), (~treated).sum()
    if (2**n if paired else comb(n + m, n)) >= LEAST_ARRANGEMENTS:
        if paired:
            weights = rng.choice([-1.0, 1.0], (permutations, n)) / n
            values = values[treated] - values[~treated]
            own = np.full(n, 1 / n)
        else:
            own = np.where(treated, 1 / n, -1 / m)
            weights = rng.permuted(np.tile(own, (permutations, 1)), axis=1)
        observed = np.abs(own @ values) * (1 - 1e-9)
        as_large = np.concatenate([  # so many rows at once, which bounds the memory
            (np.abs(weights @ values[:, first : first + 500]) >= observed[first : first + 500])
            .sum(axis=0) for first in range(0, values.shape[1], 500)])
        return (as_large + 1) / (permutations + 1), f"{permutations} permutations"
    if paired:
        change = values[treated] - values[~treated]
        effect, variance, worth, freedom = change.mean(axis=0), change.var(axis=0, ddof=1), n, n - 1
    else:
        one, other = values[treated], values[~treated]
        effect = one.mean(axis=0) - other.mean(axis=0)
        freedom, worth = n + m - 2, 1 / (1 / n + 1 / m)
        variance = (one.var(axis=0) * n + other.var(axis=0) * m) / freedom
    variance = np.where(variance > 0, variance, np.nan)[:, None]
    return moderated_p(effect[:, None], variance, np.array([float(worth)]),
                       np.array([float(freedom)]))[:, 0], "moderated t"
