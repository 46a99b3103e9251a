"""Map new cells onto known codes: which code, which label, and whether the cell is new altogether.

`learn` says what is ordinary for a model, `map_cells` holds each new cell against it, and tables
say which codes the new cells use and how far transferred labels can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors

from cellvq import InputError, encoding, evaluate, novelty, weights
from cellvq.model import CellVQ
from cellvq.novelty import NEIGHBOURS
from cellvq.reference import (
    UNKNOWN,
    Panel,
    Reference,
    Seen,
    check_encoder,
    in_panel,
    learn,
    see,
    through,
    validation_cells,
)

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["UNKNOWN", "Reference", "accuracy", "confusion", "learn", "map_cells", "usage",
           "validation_cells"]

PARTS = ("neighbour_distance", "expression_distance", "unexplained")
"""The three ways to be new, of which the strangest counts."""


def map_cells(
    query: AnnData, reference: Reference, model: CellVQ | str | Path, *, alpha: float = 0.05,
    least_share: float = 0.5, per_code: int = 100, gene_table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Give each new cell its code, the code's label, and a p-value of being an ordinary cell.

    A cell is as new as the strangest of three things about it, each on the scale of the calibration
    cells: how far it lies from its nearest reference cells, in units of the spread within codes;
    the same in a PCA of the expression, which is wider than the cell vector; and how badly the
    model explains its counts. The last two find what the first cannot: a cell whose own genes the
    model never learnt lands beside cells that it has little in common with. Where the query lacks
    genes of the model, the reference is looked at through the same genes.

    Args:
        query: cells with raw counts.
        reference: what `learn` returned.
        model: the model that it was learnt with, or its folder.
        alpha: share of ordinary cells that may be called novel.
        least_share: a code's label is transferred if it covers this share of the code's cells.
        per_code: a code with this many calibration cells is calibrated on them alone.
        gene_table: names that genes go by; see `cellvq.encode`.
        orthologs: one-to-one orthologs; see `cellvq.encode`.

    Returns:
        One row a cell, NaN and no code where it is empty: ``code``, ``confidence``, ``distance``
        (to its code), ``relative_distance`` (to the median of the code's reference cells),
        ``neighbour_distance``, ``expression_distance``, ``unexplained`` (mean squared residual),
        ``novelty`` and ``strangest`` (the largest of these three, and which it is), ``p`` (share of
        calibration cells at least as strange; `novelty.conformal_p`), ``fdr`` (over the query),
        ``novel`` (p of at most alpha), ``transferred_label``, ``label_share``. ``attrs`` holds
        ``alpha``, ``threshold`` (novelty beyond which p, calibrated on all, is at most alpha),
        ``calibration`` (the scores of the calibration cells), ``genes`` and ``notes``.

    Raises:
        InputError: the query has none of the model's genes or no counts, or the reference or the
            query was encoded by another model.
    """
    model = model if isinstance(model, CellVQ) else encoding.load(model)
    fingerprint = weights.fingerprint(model)
    if fingerprint != reference.weights_sha256:
        raise InputError("the reference was learnt with another model (weights_sha256 differs); "
                         "learn it with this one")
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}; use a share between 0 and 1, such as 0.05")
    check_encoder(query, fingerprint)
    new = in_panel(query, model, gene_table, orthologs)
    for part in (reference.cells, reference.calibration):
        new = through(new, part, model)
    panels, found = [new], [see(model, new)]
    for part, seen in zip((reference.cells, reference.calibration), reference.seen, strict=True):
        panels.append(through(part, new, model))
        same = (part.measured <= new.measured).all()
        found.append(seen if same else see(model, panels[-1]))
    seen, cells, calibration = found
    parts, ordinary = _parts(panels, found)
    strange, of_ordinary = (_tails(part, ordinary) for part in (parts, ordinary))
    highest, usual = strange.max(axis=1, skipna=False), of_ordinary.max(axis=1, skipna=False)
    p = novelty.conformal_p(highest, usual, seen.codes, calibration.codes, least=per_code)
    table = pd.DataFrame({
        "code": seen.codes, "confidence": seen.confidence, "distance": seen.distance,
        "relative_distance": seen.distance / _typical_distance(cells, seen.codes), **parts,
        "novelty": highest, "strangest": np.array(PARTS)[strange.fillna(0).to_numpy().argmax(1)],
        "p": p, "fdr": evaluate.false_discovery_rate(p), "novel": p <= alpha,
    }).set_axis(query.obs_names)
    of_code = reference.codes.set_index("code").reindex(seen.codes)
    share = of_code["label_share"].to_numpy(float)
    sure = (share >= least_share) & ~table["novel"].to_numpy()
    table["transferred_label"] = np.where(sure, of_code["label"].to_numpy(object), UNKNOWN)
    table["label_share"] = share
    table.attrs = {
        "alpha": alpha, "threshold": novelty.threshold(usual, alpha),
        "calibration": {"novelty": usual.tolist(), "distance": calibration.distance.tolist(),
                        **{name: ordinary[name].tolist() for name in PARTS}},
        "genes": f"{new.measured.sum()} of {len(new.measured)}", "notes": list(reference.notes),
    }
    return table


def usage(table: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """Compare how often the query and the reference use each code.

    Exact hypergeometric test, two-sided, over cells. Cells of one donor are no independent draws,
    so between few samples a small p-value says that these differ, not that their groups do.

    Args:
        table: what `map_cells` returned.
        reference: what it was mapped onto.

    Returns:
        A row a code, the largest change first: ``code``, ``query_cells``, ``reference_cells``
        (int), ``query_share``, ``reference_share``, ``log2_ratio`` (half a cell added to each),
        ``p``, ``fdr``.
    """
    known = [seen.codes for seen in reference.seen]
    known = np.concatenate(known)
    both = np.concatenate([table["code"].to_numpy(object), known])
    side = np.repeat(["query", "reference"], [len(table), len(known)])
    tested = evaluate.enrichment(both, side)
    rows = tested.pivot(index="group", columns="label", values=["cells", "p"])
    if "query" not in rows["cells"]:
        raise InputError("no query cell has a code; map cells that express genes of the model")
    cells = rows["cells"].astype(int)
    share = cells / cells.sum()
    found = pd.DataFrame({
        "query_cells": cells["query"], "reference_cells": cells["reference"],
        "query_share": share["query"], "reference_share": share["reference"],
        "log2_ratio": np.log2((cells["query"] + 0.5) / (cells["query"].sum() + 0.5))
        - np.log2((cells["reference"] + 0.5) / (cells["reference"].sum() + 0.5)),
        "p": (2 * rows["p"].min(axis=1)).clip(upper=1).astype(float),
    })
    found["fdr"] = evaluate.false_discovery_rate(found["p"])
    found = found.rename_axis("code").reset_index()
    return found.sort_values("log2_ratio", key=abs, ascending=False, ignore_index=True)


def confusion(table: pd.DataFrame, labels: Sequence) -> pd.DataFrame:
    """Count which labels of the query became which transferred labels.

    Args:
        table: what `map_cells` returned.
        labels: what is known of the query's cells, [cells]; those without one are left out.

    Returns:
        A row a pair: ``label``, ``transferred`` (str), ``cells`` (int), ``share`` of the label.
    """
    known, transferred = evaluate.labelled_pair(labels, table["transferred_label"])
    pairs = pd.DataFrame({"label": known, "transferred": transferred})
    pairs = pairs.value_counts(sort=False).rename("cells").reset_index()
    return pairs.assign(share=pairs["cells"] / pairs.groupby("label")["cells"].transform("sum"))


def accuracy(
    table: pd.DataFrame, labels: Sequence, *, words: Mapping[str, str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Score transferred labels beside the majority label and labels shuffled over cells.

    Args:
        table: what `map_cells` returned.
        labels: what is known of the query's cells, [cells]; those without one are left out.
        words: what a label of either side is to be called, where two studies use other words.
        seed: seed of the shuffles.

    Returns:
        A row a method (``transferred``, ``majority label``, ``shuffled labels``): ``accuracy``
        (``unknown`` counts as wrong), ``accuracy_of_answered``, ``answered`` (share with a label),
        ``cells`` (int).
    """
    known, given = evaluate.labelled_pair(labels, table["transferred_label"])
    known, given = (pd.Series(side).replace(words or {}).to_numpy() for side in (known, given))
    shuffled = np.random.default_rng(seed).permutation(given)
    common = pd.Series(known).mode()[0]
    rows = []
    for method, answer in (("transferred", given), ("majority label", np.full(len(known), common)),
                           ("shuffled labels", shuffled)):
        right, answered = answer == known, answer != UNKNOWN
        of_answered = right[answered].mean() if answered.any() else np.nan
        rows.append((method, right.mean(), of_answered, answered.mean(), len(known)))
    return pd.DataFrame(
        rows, columns=["method", "accuracy", "accuracy_of_answered", "answered", "cells"]
    )


def _parts(panels: Sequence[Panel], seen: Sequence[Seen]) -> list[pd.DataFrame]:
    """The three scores of the query and of the calibration cells, by the reference cells."""
    new, cells, calibration = range(3)
    near = _neighbour_distances(seen[cells], seen[new], seen[calibration])
    filled = [np.isfinite(part.distance) for part in seen]
    values = [evaluate.log_normalise(panel.counts, panel.depth) for panel in panels]
    placed = novelty.nearest_in_pca(values[cells][filled[cells]], values[new], values[calibration])
    found = []
    for side, vector, expression in zip((new, calibration), near, placed, strict=True):
        scores = vector, np.where(filled[side], expression, np.nan), seen[side].unexplained
        found.append(pd.DataFrame(dict(zip(PARTS, scores, strict=True))))
    return found


def _neighbour_distances(cells: Seen, *others: Seen) -> list[np.ndarray]:
    """Mean distance to the nearest cells, in units of the spread within codes, [cells] each."""
    filled = np.isfinite(cells.distance)
    vectors = pd.DataFrame(cells.vectors[filled])
    inside = (vectors - vectors.groupby(cells.codes[filled]).transform("mean")).to_numpy()
    if not inside.any():  # a single cell in every code
        inside = (vectors - vectors.mean()).to_numpy()
    covariance = ledoit_wolf(inside, assume_centered=True)[0]
    power, axes = np.linalg.eigh(covariance)
    scale = axes / np.sqrt(power.clip(max(power.max() * 1e-6, 1e-12)))
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, int(filled.sum())))
    nearest.fit(vectors.to_numpy() @ scale)
    found = []
    for other in others:
        distance = np.full(len(other.codes), np.nan)
        here = np.isfinite(other.distance)
        if here.any():
            distance[here] = nearest.kneighbors(other.vectors[here] @ scale)[0].mean(1)
        found.append(distance)
    return found


def _tails(parts: pd.DataFrame, ordinary: pd.DataFrame) -> pd.DataFrame:
    """Scores on a scale on which ordinary cells have their median at 0 and one in ten beyond 1."""
    middle, high = ordinary.median(), ordinary.quantile(0.9)
    return (parts - middle) / (high - middle).clip(lower=1e-12)


def _typical_distance(cells: Seen, codes: np.ndarray) -> np.ndarray:
    """Median distance of the cells of each code; that of all where it has fewer than five."""
    of_code = pd.Series(cells.distance).groupby(cells.codes).agg(["median", "size"])
    median = of_code["median"][of_code["size"] >= NEIGHBOURS]
    overall = max(float(np.nanmedian(cells.distance)), 1e-12)
    return median.reindex(codes).fillna(overall).clip(lower=1e-12).to_numpy()
