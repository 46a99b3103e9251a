"""What a condition does to cell states: how many cells have a code, and what its genes do.

Cells of one donor are not independent, so the donor is the unit of every test here (doi
10.1038/s41467-021-25960-2). Where donors stand under both conditions they are compared with
themselves. Without at least two donors of each condition nothing is tested, and the table says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellvq import InputError, evaluate
from cellvq.pseudobulk import moderated_p
from cellvq.tallies import Tally
from cellvq.tallymarkers import LEAST_CELLS, Sides, sides

LEAST_DONORS = 2
"""Donors of each condition, or of both where they are paired, below which nothing is tested."""
LEAST_COUNTS = 5
"""Mean of a gene's counts over donors and conditions, below which it is not tested."""
PAIRED = "no difference between conditions within donors, n = donors"
UNPAIRED = "no difference between donors of the two conditions, n = donors"
ABUNDANCE_COLUMNS = {
    "code": str, "contrast": str, "condition": str, "effect": float, "share": float,
    "share_reference": float, "n_cells": int, "n_donors": int, "p": float, "fdr": float,
    "null": str, "stability": float,
}
CHANGE_COLUMNS = {
    "code": str, "gene": str, "contrast": str, "effect": float, "n_cells": int, "n_donors": int,
    "p": float, "fdr": float, "null": str, "stability": float,
}


@dataclass(frozen=True)
class Samples:
    """The donors of two conditions, as rows of a design."""

    rows: pd.DataFrame
    """One row a sample with ``donor``, ``condition`` (str) and ``treated`` (bool)."""
    of_group: np.ndarray
    """Sample of each group of the tally, -1 for those that take no part, [groups]."""
    paired: bool
    """Whether every donor stands under both conditions."""


def samples(made: Tally, condition: str, reference: str) -> Samples:
    """Find the donors under two conditions; where some stand under both, only these.

    Args:
        made: tally with donors and conditions.
        condition: value of the condition that is compared.
        reference: value that it is compared with.

    Raises:
        InputError: no cell has one of the conditions.

    Example:
        >>> from cellvq import simulate, tallies
        >>> cells = simulate.simulate_cells(cells=200)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]
        >>> made = tallies.tally(cells, donor="donor", condition="condition")
        >>> found = samples(made, "stimulated", "control")
        >>> len(found.rows), found.paired
        (6, False)
    """
    groups = made.groups
    for value in (condition, reference):
        if not (groups["condition"] == value).any():
            known = sorted(set(groups["condition"]) - {""})
            raise InputError(f"no cell is of the condition {value!r}; there are "
                             f"{', '.join(known) or 'none'}")
    usable = (groups["donor"] != "") & groups["condition"].isin([condition, reference])
    pairs = groups.loc[usable, ["donor", "condition"]].drop_duplicates()
    both = pairs["donor"].duplicated(keep=False)
    if paired := bool(pairs[both]["donor"].nunique() >= LEAST_DONORS):
        pairs = pairs[both]
    rows = pairs.sort_values(["donor", "condition"], ignore_index=True)
    rows["treated"] = rows["condition"] == condition
    index = pd.MultiIndex.from_frame(rows[["donor", "condition"]])
    number = index.get_indexer(pd.MultiIndex.from_frame(groups[["donor", "condition"]]))
    return Samples(rows, number, paired)


def contrasts(made: Tally, reference: str | None = None) -> list[tuple[str, str]]:
    """List the conditions to compare, each with the reference.

    Args:
        made: tally with conditions.
        reference: value that the others are compared with; by default one that is named as
            controls are, or the most common.
    """
    cells = made.groups[made.groups["condition"] != ""].groupby("condition")["cells"].sum()
    if len(cells) < 2:
        return []
    if reference is None:
        words = ("ctrl", "control", "unstimulated", "untreated", "healthy", "normal", "nt",
                 "non-targeting", "vehicle", "dmso", "baseline", "wt")
        named = [value for value in cells.index if value.lower() in words]
        reference = named[0] if named else cells.idxmax()
    elif reference not in cells.index:
        raise InputError(f"no cell is of the condition {reference!r}; there are "
                         f"{', '.join(cells.index)}")
    return [(value, reference) for value in cells.index if value != reference]


def abundance(made: Tally, condition: str, reference: str) -> pd.DataFrame:
    """Test whether the share of a donor's cells that have a code differs between conditions.

    Shares become logits (half a cell added), whose differences between donors are tested by a
    moderated t test over codes, as propeller does (doi 10.1093/bioinformatics/btac582). Shares add
    up to one: where one code grows others shrink, so few codes that change are stronger evidence
    than many.

    Args:
        made: tally with donors and conditions.
        condition: value of the condition.
        reference: value that it is compared with.

    Returns:
        One row a code and parent with the columns ``ABUNDANCE_COLUMNS``: ``effect`` (log2 ratio of
        odds), ``share`` and ``share_reference`` (mean over donors), ``n_cells`` (of the code, in
        the donors that take part), ``fdr`` over the codes of a level, ``stability`` (share of
        donors, paired, or of pairs of donors that agree in sign). Without rows
        ``attrs["reason"]`` says why.

    Example:
        >>> from cellvq import simulate, tallies
        >>> cells = simulate.simulate_cells(cells=600, donors=8)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]
        >>> made = tallies.tally(cells, donor="donor", condition="condition")
        >>> int((abundance(made, "stimulated", "control")["fdr"] < 0.05).sum())
        0
    """
    design = samples(made, condition, reference)
    contrast = f"{condition} / {reference}"
    if reason := _too_few(design, contrast):
        return _empty(ABUNDANCE_COLUMNS, reason)
    of = sides(made)
    cells = _by_sample(made, of, design, made.groups["cells"].to_numpy())[..., 0]
    total = _totals(made, design, made.groups["cells"].to_numpy())[:, 0]
    whole = of.codes["level"] == 0
    several = whole.sum() > 1  # a single coarsest code has all cells
    keep = (cells.sum(axis=0) >= LEAST_CELLS) & (several | ~whole).to_numpy()
    if not keep.any():
        return _empty(ABUNDANCE_COLUMNS, f"{contrast}: no code has {LEAST_CELLS} cells in the "
                      "donors that can be compared, or there is only one code")
    codes, cells = of.codes[keep].reset_index(drop=True), cells[:, keep]
    logit = np.log2((cells + 0.5) / (total[:, None] - cells + 0.5))
    found = _compared(logit.T[:, :, None], design)
    share, treated = cells / total[:, None], design.rows["treated"].to_numpy()
    table = codes.assign(
        contrast=contrast, condition=condition, effect=found["effect"][:, 0],
        share=share[treated].mean(axis=0), share_reference=share[~treated].mean(axis=0),
        n_cells=cells.sum(axis=0), n_donors=design.rows["donor"].nunique(),
        p=found["p"][:, 0], null=PAIRED if design.paired else UNPAIRED,
        stability=found["agree"][:, 0],
    )
    table["fdr"] = table.groupby("level")["p"].transform(evaluate.false_discovery_rate)
    table = table.sort_values(["p", "code"], ignore_index=True)
    return table[list(ABUNDANCE_COLUMNS)].astype(ABUNDANCE_COLUMNS)


def gene_changes(made: Tally, condition: str, reference: str) -> pd.DataFrame:
    """Test which genes change with a condition in each code and parent, over donors.

    Counts are summed within donor and condition, put as log2 of one plus counts at the depth of the
    typical sum of the code, and tested by a moderated t test over genes (limma: doi
    10.2202/1544-6115.1027). A donor takes part with at least ten cells of the code.

    Args:
        made: tally with donors and conditions.
        condition: value of the condition.
        reference: value that it is compared with.

    Returns:
        One row a code and gene that was tested with the columns ``CHANGE_COLUMNS``: ``effect``
        (log2 fold change, mean over donors), ``n_cells`` (of the code in the donors that take
        part), ``fdr`` over all rows. Without rows ``attrs["reason"]`` says why.

    Example:
        >>> from cellvq import simulate, tallies
        >>> cells = simulate.simulate_cells(cells=1200, cell_types=2, donors=8)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]
        >>> made = tallies.tally(cells, donor="donor", condition="condition")
        >>> table = gene_changes(made, "stimulated", "control")
        >>> "ISG15" in set(table[table["fdr"] < 0.05]["gene"])
        True
    """
    design = samples(made, condition, reference)
    contrast = f"{condition} / {reference}"
    if reason := _too_few(design, contrast):
        return _empty(CHANGE_COLUMNS, reason)
    of = sides(made)
    cells = _by_sample(made, of, design, made.groups["cells"].to_numpy())[..., 0]
    depth = _by_sample(made, of, design, made.groups["depth"].to_numpy())[..., 0]
    tables = []
    for number, row in enumerate(of.codes.itertuples()):  # codes differ in the donors they have
        there = cells[:, number] >= LEAST_CELLS
        part = _kept(design, there)
        if part is None:
            continue
        chosen = np.flatnonzero(np.isin(design.of_group, np.flatnonzero(part)))
        member = of.member[number, chosen].toarray().ravel() > 0
        chosen = chosen[member]
        counts = np.zeros((len(part), len(made.names)))
        np.add.at(counts, design.of_group[chosen], made.counts[chosen])
        own = depth[:, number]
        scaled = counts[part] / own[part, None] * np.median(own[part])
        seen = scaled.mean(axis=0) >= LEAST_COUNTS
        if not seen.any():
            continue
        logs = np.log2(1 + scaled[:, seen]).T[:, :, None]  # [genes, samples, 1]
        height = logs.mean(axis=1)
        rows = Samples(design.rows[part].reset_index(drop=True), design.of_group, design.paired)
        found = _compared(logs, rows, height)
        tables.append(pd.DataFrame({
            "code": row.code, "gene": np.array(made.names, object)[seen], "contrast": contrast,
            "effect": found["effect"][:, 0], "n_cells": int(cells[part, number].sum()),
            "n_donors": rows.rows["donor"].nunique(), "p": found["p"][:, 0],
            "null": PAIRED if design.paired else UNPAIRED, "stability": found["agree"][:, 0],
        }))
    if not tables:
        return _empty(CHANGE_COLUMNS, f"{contrast}: no code has {LEAST_CELLS} cells in "
                      f"{LEAST_DONORS} donors of each condition")
    table = pd.concat(tables, ignore_index=True)
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table = table.sort_values(["p", "code", "gene"], ignore_index=True)
    return table[list(CHANGE_COLUMNS)].astype(CHANGE_COLUMNS)


def _too_few(design: Samples, contrast: str) -> str:
    """Say why two conditions cannot be compared, or nothing."""
    found = design.rows.groupby("treated")["donor"].nunique().reindex([True, False], fill_value=0)
    if found.min() >= LEAST_DONORS:
        return ""
    return (f"{contrast}: {found[True]} and {found[False]} donors, and {LEAST_DONORS} of each are "
            "needed; name the column of donors, as cells of one donor are not independent")


def _kept(design: Samples, there: np.ndarray) -> np.ndarray | None:
    """Samples of a code that can be compared, bool [samples], or None where they are too few."""
    rows = design.rows
    if design.paired:
        there = there & pd.Series(there).groupby(rows["donor"]).transform("all").to_numpy()
    counted = rows[there].groupby("treated")["donor"].nunique().reindex([True, False], fill_value=0)
    return there if counted.min() >= LEAST_DONORS else None


def _by_sample(made: Tally, of: Sides, design: Samples, values: np.ndarray) -> np.ndarray:
    """Sum values of groups over samples and codes, [samples, codes, 1]."""
    found = [of.member @ np.where(design.of_group == number, values, 0)
             for number in range(len(design.rows))]
    return np.stack(found)[..., None].astype(float)


def _totals(made: Tally, design: Samples, values: np.ndarray) -> np.ndarray:
    """Sum values of groups over samples, [samples, 1]."""
    part = design.of_group >= 0
    return np.bincount(design.of_group[part], values[part], len(design.rows))[:, None]


def _compared(
    values: np.ndarray, design: Samples, height: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Compare values of samples between conditions, [rows, samples, groups] to [rows, groups]."""
    treated = design.rows["treated"].to_numpy()
    if design.paired:  # rows are sorted by donor, so the two halves are in one order
        change = values[:, treated] - values[:, ~treated]
        n = change.shape[1]
        effect, variance = change.mean(axis=1), change.var(axis=1, ddof=1)
        agree = (np.sign(change) == np.sign(effect)[:, None]).mean(axis=1)
        worth, freedom = np.array([float(n)]), np.array([n - 1.0])
    else:
        one, other = values[:, treated], values[:, ~treated]
        n, m = one.shape[1], other.shape[1]
        effect = one.mean(axis=1) - other.mean(axis=1)
        variance = (one.var(axis=1) * n + other.var(axis=1) * m) / (n + m - 2)
        pairs = one[:, :, None] - other[:, None]
        agree = (np.sign(pairs) == np.sign(effect)[:, None, None]).mean(axis=(1, 2))
        worth = np.array([1 / (1 / n + 1 / m)])
        freedom = np.array([n + m - 2.0])
    variance = np.where(variance > 0, variance, np.nan)
    p = moderated_p(effect, variance, worth, freedom, height)
    return {"effect": effect, "agree": agree, "p": p}


def _empty(columns: dict[str, type], reason: str) -> pd.DataFrame:
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    table.attrs["reason"] = reason
    return table
