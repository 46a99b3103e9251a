"""Are planted facts found, and nothing else? Power and false discoveries over simulations.

Codes are the planted cell types here, so that this tests the statistics behind the graph and no
model. A finding is *false* where nothing of the kind was planted; the *false discovery rate* is the
mean over simulations of the share of false ones among all findings (doi
10.1111/j.2517-6161.1995.tb02031.x). In simulations without anything planted every finding is false,
so there it is the share of simulations with any finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from cellvq import (
    InputError,
    conditions,
    evaluate,
    plainstatistics,
    signalchanges,
    signals,
    tallies,
    tallymarkers,
)
from cellvq.planting import CODE, CONDITIONS, KINDS, Planted, plant, plant_nothing
from cellvq.regulation import regulation

OURS = "this package"
TOGETHER = "this package, directions together"
"""Markers with one false discovery rate over higher and lower genes, though only the higher ones
enter the graph."""
SHUFFLED = ("code-marks-gene", "code-talks-to-code")
"""Kinds whose null deals the codes to the cells anew."""
COLUMNS = {
    "simulation": int, "planted": bool, "kind": str, "method": str, "tests": int, "true": int,
    "called": int, "right": int, "power": float, "false_share": float, "small": float,
}
SUMMARY = {
    "kind": str, "method": str, "planted": bool, "simulations": int, "tests": float, "true": float,
    "called": float, "power": float, "power_low": float, "power_high": float, "fdr": float,
    "fdr_low": float, "fdr_high": float, "small": float,
}


def recover(
    simulations: int = 20,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    fdr: float = 0.05,
    seed: int = 0,
    nulls: int | None = None,
    baselines: bool = True,
    say: Callable[[str], object] = lambda step: None,
    **sizes,
) -> pd.DataFrame:
    """Test simulated cells as the graph does, and hold what is found to what was planted.

    Args:
        simulations: simulations with something planted (:func:`cellvq.planting.plant`).
        kinds: kinds of findings, of ``planting.KINDS``.
        fdr: nominal false discovery rate.
        seed: seed of the first; the others follow.
        nulls: simulations with nothing planted (:func:`cellvq.planting.plant_nothing`); None: as
            many.
        baselines: test also as :mod:`cellvq.plainstatistics` does.
        say: is told what is being done.
        sizes: sizes of the simulation, such as ``cells`` and ``donors``.

    Returns:
        One row a simulation, kind and method: ``simulation``, ``planted`` (bool), ``kind``,
        ``method`` (``this package`` or a baseline), ``tests``, ``true`` (planted facts, also those
        that were not tested), ``called`` (findings), ``right`` (of them planted), ``power`` (right
        to true, NaN where nothing is planted), ``false_share`` (of the findings; 0 without any),
        ``small`` (share of the tests without a planted fact that have p below 0.05; NaN where
        there is no p).

    Raises:
        InputError: a kind is not known, or a number cannot be.

    Example:
        >>> table = recover(1, kinds=["code-changes-with-condition"], baselines=False, cells=600)
        >>> table[["kind", "planted", "true"]].values.tolist()
        [['code-changes-with-condition', True, 2], ['code-changes-with-condition', False, 0]]
    """
    nulls = simulations if nulls is None else nulls
    if simulations < 0 or nulls < 0 or simulations + nulls < 1 or not 0 < fdr < 1:
        raise InputError(f"simulations is {simulations}, nulls is {nulls} and fdr is {fdr}; use "
                         "one simulation at least, and an fdr between 0 and 1")
    if odd := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"{odd[0]!r} is not planted; there are {', '.join(KINDS)}")
    rows = []
    for number in range(max(simulations, nulls)):
        say(f"simulation {number + 1}")
        made = []
        if number < simulations:
            made.append((plant(seed + number, **sizes), True, kinds))
        if number < nulls:
            for shuffled in (True, False):
                some = [kind for kind in kinds if (kind in SHUFFLED) == shuffled]
                if some:
                    null = plant_nothing(seed + number, shuffled=shuffled, **sizes)
                    made.append((null, False, some))
        for planted, anything, some in made:
            for kind, method, table in _tables(planted, some, baselines):
                scored = _score(planted, kind, table, fdr)
                rows.append({"simulation": seed + number, "planted": anything, "kind": kind,
                             "method": method, **scored})
    return pd.DataFrame(rows).astype(COLUMNS)[list(COLUMNS)]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Give the mean power and false discovery rate over simulations, with 95 % intervals.

    Args:
        table: :func:`recover`.

    Returns:
        One row a kind, method and whether anything was planted, with the columns ``SUMMARY``: means
        over simulations; ``power_low`` to ``fdr_high`` are intervals over simulations (Student's;
        exact binomial ones where nothing is planted).

    Example:
        >>> row = {"kind": "code-marks-gene", "method": "this package", "planted": True,
        ...        "tests": 90, "true": 10, "called": 9, "right": 9, "small": 0.05}
        >>> rows = [row | {"power": 0.9, "false_share": share} for share in (0.0, 0.1)]
        >>> summarise(pd.DataFrame(rows))[["power", "fdr"]].values.tolist()
        [[0.9, 0.05]]
    """
    rows = []
    groups = table.groupby(["kind", "method", "planted"], sort=False)
    for (kind, method, planted), part in groups:
        power = _interval(part["power"])
        wrong = _interval(part["false_share"]) if planted else _binomial(part["false_share"] > 0)
        rows.append({
            "kind": kind, "method": method, "planted": planted, "simulations": len(part),
            **{name: part[name].mean() for name in ("tests", "true", "called", "small")},
            **dict(zip(("power", "power_low", "power_high"), power, strict=True)),
            **dict(zip(("fdr", "fdr_low", "fdr_high"), wrong, strict=True))})
    order = {kind: number for number, kind in enumerate(KINDS)}
    found = pd.DataFrame(rows, columns=list(SUMMARY)).astype(SUMMARY)
    found["place"] = found["kind"].map(order)
    found["other"] = ~found["method"].str.startswith(OURS)
    found = found.sort_values(["planted", "place", "other"], ascending=[False, True, True])
    return found[list(SUMMARY)].reset_index(drop=True)


def _tables(
    planted: Planted, kinds: Sequence[str], baselines: bool
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Kind, method and table of each test; ``found`` is what it would call beside the rate."""
    cells = planted.cells
    counted = tallies.tally(cells, donor="donor", condition="condition")
    contrast = CONDITIONS[::-1]
    plain, names = plainstatistics, plainstatistics.NAMES
    changes = None
    if baselines and {"gene-changes-in-code", "talk-changes-with-condition"} & set(kinds):
        changes = plain.gene_changes(cells, CODE, "condition", contrast[0])
    for kind in kinds:
        if kind == "code-marks-gene":
            table = tallymarkers.marker_table(counted)
            table = table.assign(effect=table["log2_fold_change"], up=True)
            yield kind, OURS, table
            both = evaluate.false_discovery_rate(table["p"])
            yield kind, TOGETHER, table.assign(fdr=both)
            other = plain.markers(cells, CODE).assign(up=True) if baselines else None
        elif kind == "code-talks-to-code":
            table = signals.communication(cells, donor="donor", consensus=False)
            yield kind, OURS, table.assign(up=True)
            other = table.assign(p=np.nan, fdr=0.0)
        elif kind == "code-changes-with-condition":
            yield kind, OURS, conditions.abundance(counted, *contrast)
            other = plain.abundance(cells, CODE, "condition")
        elif kind == "gene-changes-in-code":
            yield kind, OURS, conditions.gene_changes(counted, *contrast)
            other = changes
        elif kind == "talk-changes-with-condition":
            table = signalchanges.signal_changes(cells, "condition", contrast[1], donor="donor")
            yield kind, OURS, table
            other = plain.talk_changes(table, changes) if baselines else None
        else:
            options = {"regulators": planted.regulators, "donor": "donor", "draws": 0, "fdr": 1}
            yield kind, OURS, regulation(cells, CODE, **options)
            other = plain.regulation(cells, CODE, planted.regulators)
        if baselines:
            yield kind, names[kind], other


def _score(planted: Planted, kind: str, table: pd.DataFrame, fdr: float) -> dict:
    """Counts and shares of one table."""
    true = planted.is_true(kind, table)
    called = (table["fdr"] < fdr).to_numpy(bool)
    if "up" in table:
        called &= (table["effect"] > 0).to_numpy(bool)
    p = table["p"].to_numpy(float)[~true]
    p = p[np.isfinite(p)]
    total, right = len(planted.truth[kind]), int((called & true).sum())
    return {
        "tests": len(table), "true": total, "called": int(called.sum()), "right": right,
        "power": right / total if total else np.nan,
        "false_share": 1 - right / called.sum() if called.any() else 0.0,
        "small": (p < 0.05).mean() if len(p) else np.nan,
    }


def _interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean of shares and its 95 % interval over simulations."""
    values = values.dropna().to_numpy(float)
    if not len(values):
        return np.nan, np.nan, np.nan
    if len(values) == 1:
        return values[0], 0.0, 1.0
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), max(values.mean() - half, 0), min(values.mean() + half, 1)


def _binomial(hits: pd.Series) -> tuple[float, float, float]:
    """Share of hits and its exact 95 % interval."""
    found = stats.binomtest(int(hits.sum()), len(hits))
    return found.statistic, *found.proportion_ci()
