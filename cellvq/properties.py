"""Properties: can condition, sex, disease or tissue be read from the vectors of unseen donors?

Classifiers are those of :mod:`cellvq.annotation`, but every value counts alike in them. Where each
donor has one value only, to read it in a known donor would be to recognise the donor: then only new
donors or studies are asked.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from cellvq import InputError, annotation, baselines, evaluate, splits
from cellvq.annotation import LOGISTIC, MAJORITY, call_labels, joined
from cellvq.entries import Benchmarked, Entry, Results

TASK = "properties"
PROTOCOLS = {
    name: text for name, text in splits.PROTOCOLS.items()
    if name in ("within_study", "new_donor", "new_study")
}
"""As for annotation; where no donor is known, cells of one donor may teach and test."""


HELD_OUT = ("new_donor", "new_study", "within_study")
"""Protocols of the area under the ROC curve, of which the first counts that the data allow."""


def properties(data: Benchmarked, entry: Entry, *, seed: int = 0) -> Results:
    """Judge what an entry's vectors tell of each property that the data have.

    Args:
        data: cells with properties.
        entry: one method's vectors, codes, or both.
        seed: seed of the splits.

    Returns:
        Calls of each property and protocol; and the area under the ROC curve of logistic
        regression (the mean over values of one against the others), for new donors where they are
        known.

    Raises:
        InputError: there is no property.

    Example:
        >>> from cellvq.entries import prepare
        >>> from cellvq.simulate import simulate_cells
        >>> data = prepare(simulate_cells(cells=200), "cell_type")
        >>> found = properties(data, Entry("PCA", 0, baselines.pca(data)[0]))
        >>> found.calls.protocol.unique().tolist()[0]
        'within_study, condition, kNN'
    """
    _require(data)
    readers = {}
    if entry.vectors is not None:
        readers = annotation.classifiers(entry.vectors, balanced=True)
    if entry.codes is not None:
        readers[("code", MAJORITY)] = lambda: annotation.of_codes(entry.codes, balanced=True)
    return _judge(data, readers, entry.method, seed, entry.vectors)


def on_genes(data: Benchmarked, *, seed: int = 0, budget: None = None) -> Results:
    """Judge logistic regression on genes, and the most common value, which knows nothing."""
    _require(data)
    genes = baselines.variable_genes(data)
    dense = evaluate.log_normalise(data.cells.X[:, genes], data.depth).toarray()
    reader = {("embedding", LOGISTIC): annotation.logistic(dense, balanced=True)}
    nothing = {("embedding", LOGISTIC): lambda: annotation.of_codes(np.full(len(dense), "all"))}
    return joined([
        _judge(data, reader, LOGISTIC + annotation.ON_GENES, seed, dense),
        _judge(data, nothing, MAJORITY, seed, None),
    ])


def _require(data: Benchmarked) -> None:
    if not data.properties:
        raise InputError("no property is known (such as condition, sex, disease or tissue); name "
                         "a column of obs that has two values or more")


def _judge(data, readers, method, seed, vectors) -> Results:
    found, donors = [], data.column(data.donor)
    for name in data.properties:
        values, only, notes = data.column(name), tuple(PROTOCOLS), []
        if _of_donors(values, donors):
            only = only[1:]
            notes = [f"Each donor has one value in {name!r}: it is asked of new donors only, as "
                     "within the study it would be the donor that is recognised."]
        made = call_labels(data, values, readers, method, seed, TASK, only, tail=f", {name}")
        areas = pd.DataFrame() if vectors is None else _areas(data, values, vectors, only, seed)
        areas = areas.assign(method=method, protocol=[f"{each}, {name}, {LOGISTIC}"
                                                      for each in areas.get("protocol", ())])
        found.append(Results(made.calls, areas, notes=notes + made.notes))
    return joined(found)


def _of_donors(values: np.ndarray, donors: np.ndarray) -> bool:
    """Whether donors differ in a property, and none of them has two values of it."""
    known = pd.DataFrame({"value": values, "donor": donors})[(values != "") & (donors != "")]
    one_each = known.groupby("donor")["value"].nunique().le(1).all()
    return bool(one_each and known["value"].nunique() > 1)


def _areas(data, values, vectors, only, seed) -> pd.DataFrame:
    """Area under the ROC curve of the probabilities of cells that were not taught."""
    parts = {name: found for name, found in splits.protocols(data, values, seed)
             if name in only and not isinstance(found, str)}
    protocol = next((name for name in HELD_OUT if parts.get(name)), None)
    if protocol is None:
        return pd.DataFrame()
    chances, truth = [], []
    for split in parts[protocol]:
        fitted = annotation.pipeline(1.0, balanced=True)
        with threadpool_limits(1):
            fitted.fit(vectors[split.train].astype(np.float32), values[split.train].astype(str))
            chance = fitted.predict_proba(vectors[split.test].astype(np.float32))
        chances.append(pd.DataFrame(chance, columns=fitted.classes_))
        truth.append(values[split.test].astype(str))
    chances, truth = pd.concat(chances).fillna(0.0), np.concatenate(truth)
    kinds = [kind for kind in chances if 0 < np.mean(truth == kind) < 1]
    if not kinds:
        return pd.DataFrame()
    area = np.mean([roc_auc_score(truth == kind, chances[kind]) for kind in kinds])
    return pd.DataFrame([{
        "task": TASK, "protocol": protocol, "representation": "embedding", "metric": "auroc",
        "seed": seed, "value": float(area), "n_cells": len(truth), "n_groups": len(kinds),
        "settings": json.dumps({"C": 1.0}), "status": "",
    }])
