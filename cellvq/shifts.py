"""Does a perturbation move cells to other codes? One test for the whole distribution over codes.

For screens with many conditions and few replicates: within each replicate, cells of a condition are
held to as many cells drawn from them and the reference together. The draws need only counts of
cells by code, so tallies are enough.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cellvq import InputError, evaluate
from cellvq.tallies import Tally

SHIFT_COLUMNS = {
    "condition": str, "shift": float, "shift_null": float, "z": float, "n_cells": int,
    "n_reference": int, "n_donors": int, "p": float, "fdr": float, "stability": float,
    "to": str, "from": str,
}
LEAST_CELLS = 20
"""Cells of a condition in a replicate, below which the replicate takes no part."""
NULL = "cells of condition and reference exchanged within replicates, n = cells"


def code_shifts(
    made: Tally, reference: str, *, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Test for every condition whether its cells have other codes than those of the reference.

    The distance is half the sum of absolute differences of shares, the part of the cells that would
    have to move, as a mean over replicates by their cells.

    Args:
        made: tally with conditions, and replicates as donors.
        reference: condition that the others are held to.
        draws: draws from the null; the smallest p is 1 / (draws + 1).
        seed: seed of the draws.

    Returns:
        One row a condition, the largest shift beyond chance first, with the columns
        ``SHIFT_COLUMNS``: ``shift`` (share of cells that would have to move), ``shift_null`` (mean
        over draws), ``z`` (how many standard deviations of the null the shift is above it),
        ``n_donors`` (replicates), ``stability`` (share of replicates whose own shift is above the
        mean of their null), ``to`` and ``from`` (codes that gain and lose most).

    Raises:
        InputError: no cell is of the reference.

    Example:
        >>> from cellvq import simulate, tallies
        >>> cells = simulate.simulate_cells(cells=900)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]
        >>> made = tallies.tally(cells, donor="batch", condition="condition")
        >>> table = code_shifts(made, "control", draws=200)
        >>> table[["condition", "n_donors"]].values.tolist()
        [['stimulated', 2]]
    """
    groups = made.groups[made.groups["condition"] != ""]
    if not (groups["condition"] == reference).any():
        raise InputError(f"no cell is of the condition {reference!r}; there are "
                         f"{', '.join(sorted(set(groups['condition']))) or 'none'}")
    table = groups.pivot_table(index=["condition", "donor"], columns="code", values="cells",
                               aggfunc="sum", fill_value=0)
    rng = np.random.default_rng(seed)
    rows = [_shift(table, condition, reference, draws, rng)
            for condition in table.index.unique("condition") if condition != reference]
    found = pd.DataFrame([row for row in rows if row], columns=list(SHIFT_COLUMNS))
    if found.empty:
        found.attrs["reason"] = f"no condition has {LEAST_CELLS} cells beside those of {reference}"
        return found.astype(SHIFT_COLUMNS)
    found["fdr"] = evaluate.false_discovery_rate(found["p"])
    return found.sort_values(["p", "z"], ascending=[True, False], ignore_index=True).astype(
        SHIFT_COLUMNS)


def _shift(
    table: pd.DataFrame, condition: str, reference: str, draws: int, rng: np.random.Generator
) -> dict | None:
    """One row of the table, or None where no replicate has cells enough."""
    one, other = table.loc[condition], table.loc[reference]
    both = one.index.intersection(other.index)
    enough = (one.loc[both].sum(axis=1) >= LEAST_CELLS) & (
        other.loc[both].sum(axis=1) >= LEAST_CELLS)
    both = both[enough]
    if not len(both):
        return None
    one, other = one.loc[both].to_numpy(), other.loc[both].to_numpy()
    sizes = one.sum(axis=1)
    seen, null = np.zeros(len(both)), np.zeros((len(both), draws))
    for number, (own, rest) in enumerate(zip(one, other, strict=True)):
        pool = own + rest
        drawn = rng.multivariate_hypergeometric(pool, own.sum(), draws, method="marginals")
        seen[number] = _distance(own[None], rest[None])[0]
        null[number] = _distance(drawn, pool - drawn)
    weight = sizes / sizes.sum()
    total, chance = weight @ seen, weight @ null
    change = weight @ (one / sizes[:, None] - other / other.sum(axis=1, keepdims=True))
    return {
        "condition": condition, "shift": total, "shift_null": chance.mean(),
        "z": (total - chance.mean()) / max(chance.std(), 1e-12), "n_cells": sizes.sum(),
        "n_reference": other.sum(), "n_donors": len(both),
        "p": (1 + (chance >= total).sum()) / (1 + draws), "fdr": np.nan,
        "stability": (seen > null.mean(axis=1)).mean(),
        "to": table.columns[change.argmax()], "from": table.columns[change.argmin()],
    }


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences of shares, of each row."""
    shares = (part / part.sum(axis=1, keepdims=True) for part in (one, other))
    return np.abs(np.subtract(*shares)).sum(axis=1) / 2
