"""Can an attribution be believed? Take its best genes away, or show only them, and see the code.

Deletion takes the genes of a cell away in the order of their attribution, insertion gives them back
to a cell that has lost all it expressed (doi 10.48550/arXiv.1806.07421). A faithful attribution
loses the margin of the code sooner than chance does and wins it back sooner. One that does not beat
random genes and the cell's highest expressed genes in both is reported as failing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from cellvq import InputError, attribution, evaluate
from cellvq.attribution import BASELINES, METHODS
from cellvq.loader import Batch
from cellvq.margins import Question, margin, read, without
from cellvq.model import CellVQ

if TYPE_CHECKING:
    from anndata import AnnData

DIRECTIONS = ("deletion", "insertion")
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of a cell's expressed genes that are taken away or shown."""
VERDICTS = {"method": str, "direction": str, "baseline": str, "advantage": float, "low": float,
            "high": float, "cells": int, "verdict": str}
AGREEMENT = ["code", "cell_type", "genes", "auroc", "null_high", "top", "p", "fdr"]
TOP = 25
"""Best genes of a code among which known ones are counted."""


@dataclass(frozen=True)
class Faithfulness:
    """What the test of some attributions found."""

    curves: pd.DataFrame
    """Mean margins over cells.

    Columns ``method``, ``direction``, ``fraction`` (of the cell's expressed genes), ``margin`` (1
    is the mean margin of whole cells), ``low``, ``high`` (95 % bootstrap interval over cells),
    ``kept`` (share of cells that keep their code), ``cells``.
    """
    areas: pd.DataFrame
    """Area under the curve of each cell, with ``method``, ``direction``, ``cell`` and ``area``."""
    verdicts: pd.DataFrame
    """The table of `judge`."""


def measure(
    cells: AnnData, model: CellVQ, methods: Sequence[str] = METHODS, *, level: int = -1,
    fractions: Sequence[float] = FRACTIONS, most: int = 200, steps: int = 16, draws: int = 3,
    away: str = "average", seed: int = 0,
) -> Faithfulness:
    """Test attributions by deletion and insertion beside random and highest expressed genes.

    Only genes that a cell expresses are ordered, taken away and shown; its zeros stay known, alike
    for all methods. Genes that an attribution cannot tell apart stand in random order.

    Args:
        cells: encoded cells with raw counts.
        model: the model that encoded them.
        methods: attributions to test, of ``attribution.METHODS``.
        level: level of nested codes, 0 the coarsest, -1 full depth.
        fractions: shares of the cell's expressed genes, ascending from 0 to 1.
        most: cells to test, drawn at random.
        steps: points of integrated gradients.
        draws: random orders of genes, whose mean is the baseline ``random``.
        away: how genes are taken away, one of ``margins.AWAY``.
        seed: seed of all draws.

    Raises:
        InputError: there is no such method or level, fewer than two cells, or fractions do not
            ascend from 0 to 1.

    Example:
        >>> import cellvq
        >>> cells = cellvq.simulate.simulate_cells(cells=200)
        >>> run = cellvq.pretrain(cells, steps=3, codes=8, progress=False)
        >>> encoded = cellvq.encode(cells, run.model)
        >>> found = measure(encoded, run.model, ["attention"], most=20, fractions=[0, 0.2, 1])
        >>> found.curves["method"].unique().tolist(), len(found.verdicts)
        (['attention', 'highest expressed', 'random'], 4)
    """
    if list(fractions[:1]) != [0] or fractions[-1] != 1 or (np.diff(fractions) <= 0).any():
        raise InputError(f"fractions are {list(fractions)}; give shares that ascend from 0 to 1")
    methods = [*(method for method in methods if method not in BASELINES), *BASELINES]
    for method in methods:
        attribution.check(method, away)
    coded = read(cells, model, level)
    rows, rng = coded.draw(seed, most=most), np.random.default_rng(seed)
    if len(rows) < 2:
        raise InputError("one cell has a code; a test of attributions needs at least two")
    z = attribution.marker_scores(coded, model.panel) if "marker z" in methods else None
    names = np.asarray(cells.obs_names[cells.obs["cellvq_code"].notna()])
    found = {pair: np.zeros((len(coded.code), len(fractions)))
             for pair in ((method, way) for method in methods for way in DIRECTIONS)}
    for block, batch, asked in coded.blocks(rows, model):
        for method in methods:
            repeats = draws if method == "random" else 1
            for _ in range(repeats):
                scores = attribution.scores(method, model, batch, asked, steps=steps, away=away,
                                            z=z, rng=rng)
                rank = ranks(scores, batch, rng)
                for way in DIRECTIONS:
                    left = curve(model, batch, asked, rank, way, fractions, away)
                    found[method, way][block] += left.cpu().numpy() / repeats
    whole = found["random", "deletion"][rows, 0].mean()
    found = {pair: values[rows] for pair, values in found.items()}
    areas = pd.concat([
        pd.DataFrame({"method": method, "direction": way, "cell": names[rows],
                      "area": np.trapezoid(values / whole, fractions, axis=1)})
        for (method, way), values in found.items()
    ], ignore_index=True)
    table = pd.concat([curve_table(*pair, values, whole, fractions, seed)
                       for pair, values in found.items()], ignore_index=True)
    return Faithfulness(table, areas, judge(areas, seed))


def ranks(scores: Tensor, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Rank the expressed genes of each cell by their scores, 0 the best, [cells, tokens].

    Args:
        scores: attribution of every gene, [cells, panel].
        batch: the cells; where they have padding, ranks come last.
        rng: draws the order of genes with equal scores.
    """
    padding = batch.genes == scores.shape[1] + 2
    at = F.pad(scores, (0, 3)).gather(1, batch.genes).masked_fill(padding, -torch.inf)
    drawn = torch.from_numpy(rng.random(at.shape).argsort(1)).to(at.device)
    order = drawn.gather(1, at.gather(1, drawn).argsort(dim=1, descending=True, stable=True))
    return order.argsort(1)


@torch.no_grad()
def curve(
    model: CellVQ, batch: Batch, asked: Question, rank: Tensor, direction: str,
    fractions: Sequence[float], away: str = "average",
) -> Tensor:
    """Return the margin of each cell as its genes go or come in order, [cells, fractions].

    Args:
        model: the model.
        batch: the cells.
        asked: their codes.
        rank: `ranks` of the genes.
        direction: ``deletion`` or ``insertion``.
        fractions: shares of the cell's expressed genes.
        away: how genes are taken away, one of ``margins.AWAY``.
    """
    panel, found = len(model.panel), []
    expressed = (batch.genes < panel).sum(1, keepdim=True)
    for fraction in fractions:
        first = rank < (fraction * expressed).ceil()
        taken = (first if direction == "deletion" else ~first) & (batch.genes < panel)
        genes = taken.new_zeros(len(taken), panel + 3).scatter_(1, batch.genes, taken)[:, :panel]
        found.append(margin(model, without(model, batch, genes, away), asked))
    return torch.stack(found, 1)


def curve_table(
    method: str, direction: str, values: np.ndarray, whole: float, fractions: Sequence[float],
    seed: int = 0,
) -> pd.DataFrame:
    """Make the rows of ``Faithfulness.curves`` of one method from margins, [cells, fractions]."""
    intervals = [evaluate.bootstrap_interval(column / whole, seed) for column in values.T]
    return pd.DataFrame({
        "method": method, "direction": direction, "fraction": np.asarray(fractions, float),
        "margin": [interval.estimate for interval in intervals],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
        "kept": (values > 0).mean(0), "cells": len(values),
    })


def judge(areas: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Say of each attribution whether it passes: ahead of both baselines in both directions.

    All four intervals must lie above zero, so no correction for their number is needed (an
    intersection-union test). Cells of one model are paired; other models are other repeats.

    Args:
        areas: `Faithfulness.areas`, of one model or of several one after the other.
        seed: seed of the bootstrap.

    Returns:
        One row a method, direction and baseline: ``method``, ``direction``, ``baseline``,
        ``advantage`` (area between the curves, in mean margins of whole cells; above 0 the method
        is better), ``low``, ``high`` (95 % bootstrap interval over cells), ``cells`` and
        ``verdict`` of the method, ``passes`` or ``fails``, the same in all its rows.

    Example:
        >>> area = {"marker z": 0.2, "random": 0.6, "highest expressed": 0.5}
        >>> rows = [(name, way, f"cell {i}", abs((way == "insertion") - value) + i / 100)
        ...         for name, value in area.items() for way in DIRECTIONS for i in range(9)]
        >>> judge(pd.DataFrame(rows, columns=["method", "direction", "cell", "area"]))["verdict"][0]
        'passes'
    """
    groups = areas.groupby(["method", "direction"], sort=False)["area"]
    found, rows = {pair: values.to_numpy() for pair, values in groups}, []
    for method in areas["method"].unique():
        for direction, baseline in ((d, b) for d in DIRECTIONS for b in BASELINES):
            if method in BASELINES:
                continue
            sign = -1 if direction == "deletion" else 1
            gain = evaluate.paired_difference(
                sign * found[method, direction], sign * found[baseline, direction], seed)
            rows.append((method, direction, baseline, gain.estimate, gain.low, gain.high, gain.n))
    table = pd.DataFrame(rows, columns=list(VERDICTS)[:-1])
    passes = (table["low"] > 0).groupby(table["method"]).transform("all").astype(bool)
    return table.assign(verdict=np.where(passes, "passes", "fails")).astype(VERDICTS)


def agreement(table: pd.DataFrame, known: pd.DataFrame, kinds: pd.Series) -> pd.DataFrame:
    """Ask whether genes that are known to mark a cell type come first in the codes of that type.

    The null shuffles genes within a code, which is the rank-sum test of Mann and Whitney. It is
    weak: markers are expressed where they mark, so any order that puts expressed genes first beats
    it. Hold an attribution against the same measure of ``highest expressed`` and ``random``.

    Args:
        table: the table of `attribution.attribute`.
        known: known or planted markers: ``cell_type``, ``gene``.
        kinds: cell type of each code, by its address.

    Returns:
        One row a code whose type has known genes among those measured: ``code``, ``cell_type``
        (str), ``genes`` (int, known and measured), ``auroc`` (chance that a known gene stands
        before another one), ``null_high`` (its 95th percentile with shuffled genes), ``top`` (int,
        known genes among the best 25), ``p`` (one-sided), ``fdr``. Without any such code it is
        empty and ``attrs["reason"]`` says why.

    Example:
        >>> table = pd.DataFrame({"code": "C0", "gene": list("ABCDEFGH"),
        ...                       "attribution": range(8, 0, -1)})
        >>> known = pd.DataFrame({"cell_type": "B", "gene": ["A", "B"]})
        >>> agreement(table, known, pd.Series({"C0": "B"}))["auroc"].tolist()
        [1.0]
    """
    wide = table.pivot(index="code", columns="gene", values="attribution")
    kinds = kinds.reindex(wide.index).dropna().astype(str)
    rows = []
    for kind, codes in kinds.groupby(kinds).groups.items():
        marks = wide.columns.isin(known.loc[known["cell_type"].astype(str) == kind, "gene"])
        inside, outside = int(marks.sum()), int((~marks).sum())
        if inside and outside:
            values = wide.loc[codes].to_numpy()
            best = np.argsort(-values, axis=1, kind="stable")[:, :TOP]
            test = stats.mannwhitneyu(values[:, marks], values[:, ~marks], axis=1,
                                      alternative="greater", method="asymptotic")
            spread = np.sqrt((inside + outside + 1) / (12 * inside * outside))
            rows.append(pd.DataFrame({
                "code": codes, "cell_type": kind, "genes": inside,
                "auroc": test.statistic / (inside * outside),
                "null_high": 0.5 + stats.norm.ppf(0.95) * spread, "top": marks[best].sum(1),
                "p": test.pvalue}))
    if not rows:
        none = pd.DataFrame(columns=AGREEMENT)
        none.attrs["reason"] = "no code has a type with known genes among those measured"
        return none
    found = pd.concat(rows, ignore_index=True).sort_values("code", ignore_index=True)
    return found.assign(fdr=evaluate.false_discovery_rate(found["p"]))
