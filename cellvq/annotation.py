"""Annotation: what a simple classifier reads of the labels on cells that it was not taught with.

Every method gets the same two classifiers with the same tuning: 15 nearest neighbours, and logistic
regression whose penalty is chosen from four, in every split anew, by three folds of its training
cells. Rivals read the genes themselves. A code is read by its majority label.

The regression reads values divided by one scale. To standardise each axis by itself would make
noise as large as signal in every embedding whose axes differ in size, and in genes: with ten labels
a class in PBMC 3k, macro-F1 on PCA was then 0.77 and is 0.88, and on genes 0.76 and is 0.88.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from threadpoolctl import threadpool_limits

from cellvq import InputError, baselines, evaluate, splits
from cellvq.entries import Benchmarked, Entry, Results

NEIGHBOURS = 15
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths C of the ridge penalty to choose from."""
TUNED_CELLS = 1000
"""Training cells by which a penalty is chosen, at the most."""
KNN, LOGISTIC, MAJORITY = "kNN", "logistic regression", "majority label"
ON_GENES = " on genes"
CELLTYPIST, SCANVI = "CellTypist", "scANVI"
PROTOCOLS = splits.PROTOCOLS
CALLS = ["task", "protocol", "method", "representation", "seed", "fold", "cell", "truth", "call"]
Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From positions of training cells, their labels and positions of test cells to calls."""


def annotation(data: Benchmarked, entry: Entry, *, seed: int = 0) -> Results:
    """Judge an entry's vectors and codes by what a classifier reads of the labels.

    Args:
        data: cells with labels.
        entry: one method's vectors, codes, or both.
        seed: seed of the splits.

    Returns:
        Calls of every protocol that the data allow, and the area under the ROC curve of the
        detection of an unknown class.

    Example:
        >>> from cellvq.entries import prepare
        >>> from cellvq.simulate import simulate_cells
        >>> data = prepare(simulate_cells(cells=200), "cell_type")
        >>> vectors, _ = baselines.pca(data)
        >>> calls = annotation(data, Entry("PCA", 0, vectors)).calls
        >>> bool(calls.truth.eq(calls.call).mean() > 0.8)
        True
    """
    return _judge(data, data.labels(), _readers(entry), entry.method, seed, "annotation",
                  unknown=entry.vectors)


def on_genes(data: Benchmarked, *, seed: int = 0, budget: Any = None) -> Results:
    """Judge classifiers that read the genes: logistic regression, kNN, CellTypist and scANVI.

    CellTypist is its authors' package (doi 10.1126/science.abl5197). scANVI sees the labels of the
    training cells; it trains anew for every fold, so it takes part with seed 0 only, where donors,
    studies or folds are held out.

    Args:
        data: cells with labels.
        seed: seed of the splits.
        budget: a `contenders.Budget`, which may leave networks out and says how long scVI trains.
    """
    genes = baselines.variable_genes(data)
    values = evaluate.log_normalise(data.cells.X, data.depth)
    dense = values[:, genes].toarray()
    labels, found = data.labels(), []
    for name, reader in ((LOGISTIC, logistic(dense)), (KNN, _knn(dense))):
        found.append(_judge(data, labels, {("embedding", name): reader}, name + ON_GENES, seed,
                            "annotation", unknown=dense if name == LOGISTIC else None))
    whole = {CELLTYPIST: _celltypist(data.cells.var_names[genes], values[:, genes])}
    if not seed and getattr(budget, "networks", True):
        whole[SCANVI] = _scanvi(data, seed, getattr(budget, "epochs", baselines.EPOCHS))
    for name, reader in whole.items():
        only = None if name == CELLTYPIST else HEADLINE
        try:
            found.append(_judge(data, labels, {("embedding", LOGISTIC): reader}, name, seed,
                                "annotation", only=only))
        except (InputError, RuntimeError, ValueError) as error:
            found.append(failed("annotation", name, seed, str(error)))
    return joined(found)


HEADLINE = ("within_study", "new_donor", "new_study")
"""Protocols with enough labels for a network."""


def failed(task: str, method: str, seed: int, why: str) -> Results:
    """Results of a method that could not be run: a row with the reason."""
    row = {"task": task, "protocol": "", "method": method, "representation": "embedding",
           "metric": "", "seed": seed, "value": np.nan, "n_cells": 0, "n_groups": 0,
           "settings": "{}", "status": " ".join(why.split())[:300]}
    return Results(scores=pd.DataFrame([row]))


def joined(found: list[Results]) -> Results:
    """Join the results of several methods."""
    def all_of(name: str) -> pd.DataFrame:
        tables = [table for each in found if len(table := getattr(each, name))]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    notes = list(dict.fromkeys(note for each in found for note in each.notes))
    return Results(all_of("calls"), all_of("scores"), all_of("losses"), notes)


def call_labels(
    data: Benchmarked, labels: np.ndarray, readers: dict, method: str, seed: int, task: str,
    only: tuple[str, ...] | None = None, tail: str = "",
) -> Results:
    """Let classifiers call the labels of test cells under every protocol that the data allow.

    Args:
        data: cells, whose donors and studies are held out.
        labels: what is to be called, empty where it is unknown, [cells].
        readers: classifiers by representation and name.
        method: name of the method in the table.
        seed: seed of the splits.
        task: name of the task.
        only: protocols to keep; by default all.
        tail: what follows the protocol's name, such as the property.
    """
    tables, notes = [], []
    for protocol, parts in splits.protocols(data, labels, seed):
        if only is not None and protocol not in only:
            continue
        if isinstance(parts, str):
            notes.append(f"{protocol}{tail}: {parts}.")
            continue
        for (representation, name), make in readers.items():
            predict = make()
            for fold, split in enumerate(parts):
                with threadpool_limits(1):
                    call = predict(split.train, labels[split.train].astype(str), split.test)
                tables.append(pd.DataFrame({
                    "task": task, "protocol": f"{protocol}{tail}, {name}", "method": method,
                    "representation": representation, "seed": seed, "fold": fold,
                    "cell": split.test, "truth": labels[split.test].astype(str),
                    "call": np.asarray(call, dtype=str),
                }))
    calls = pd.concat(tables, ignore_index=True)[CALLS] if tables else pd.DataFrame(columns=CALLS)
    return Results(calls=calls, notes=notes)


def classifiers(vectors: np.ndarray, balanced: bool = False) -> dict:
    """The two classifiers that read an embedding, by representation and name.

    Args:
        vectors: embedding, [cells, dimensions].
        balanced: let every value count alike, however many training cells have it. Where a value
            belongs to whole donors, the one that is held out is rarer among the others, and a
            classifier that knows nothing would be wrong more often than by chance.
    """
    return {("embedding", KNN): _knn(vectors, balanced),
            ("embedding", LOGISTIC): logistic(vectors, balanced)}


def of_codes(codes: np.ndarray, balanced: bool = False) -> Predict:
    """Call every cell by the most common label of its code among the training cells.

    Args:
        codes: code of each cell, [cells].
        balanced: as for :func:`classifiers`.
    """
    codes = codes.astype(str)

    def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        share = "columns" if balanced else False
        common = pd.crosstab(codes[train], labels, normalize=share).idxmax(axis=1)
        overall = pd.Series(labels).mode()[0]
        return pd.Series(codes[test]).map(common).fillna(overall).to_numpy()

    return predict


def _readers(entry: Entry) -> dict:
    """The classifiers that suit what an entry has."""
    found = {} if entry.vectors is None else classifiers(entry.vectors)
    if entry.codes is not None:
        found[("code", MAJORITY)] = lambda: of_codes(entry.codes)
    return found


def _judge(data, labels, readers, method, seed, task, only=None, unknown=None) -> Results:
    found = call_labels(data, labels, readers, method, seed, task, only)
    if unknown is None:
        return found
    try:
        rows = list(_unknown(labels, unknown, seed))
    except InputError as error:
        found.notes.append(f"unknown_class: {error}.")
        return found
    common = {"task": task, "protocol": f"unknown_class, {LOGISTIC}", "method": method,
              "representation": "embedding", "metric": "auroc", "seed": seed, "status": "",
              "settings": json.dumps({"hidden": [row["hidden"] for row in rows]})}
    value = float(np.mean([row["value"] for row in rows]))
    scores = pd.DataFrame([common | {"value": value, "n_cells": rows[0]["n_cells"],
                                     "n_groups": len(rows)}])
    return Results(found.calls, scores, notes=found.notes)


def _unknown(labels: np.ndarray, vectors: np.ndarray, seed: int) -> Iterator[dict]:
    """How well the largest probability tells a hidden class from those that were taught."""
    for split in splits.unknown_class(labels, seed):
        fitted = pipeline(1.0)
        with threadpool_limits(1):
            fitted.fit(vectors[split.train], labels[split.train].astype(str))
            doubt = 1 - fitted.predict_proba(vectors[split.test]).max(axis=1)
        is_hidden = labels[split.test] == split.name
        yield {"hidden": split.name, "value": roc_auc_score(is_hidden, doubt),
               "n_cells": len(split.test)}


def _knn(vectors: np.ndarray, balanced: bool = False) -> Callable[[], Predict]:
    def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        fitted = KNeighborsClassifier(min(NEIGHBOURS, len(train))).fit(vectors[train], labels)
        sizes = np.unique(labels, return_counts=True)[1] if balanced else 1
        return fitted.classes_[(fitted.predict_proba(vectors[test]) / sizes).argmax(axis=1)]

    return lambda: predict


class _CommonScale(TransformerMixin, BaseEstimator):
    """Centre each axis, and divide all by one number, so that large axes stay large.

    Example:
        >>> _CommonScale().fit_transform(np.array([[0.0, 3.0], [8.0, 9.0]])).round(2).tolist()
        [[-1.13, -0.85], [1.13, 0.85]]
    """

    def fit(self, vectors: np.ndarray, labels: np.ndarray | None = None) -> _CommonScale:
        """Learn the mean of each axis and the root of their mean variance."""
        self.mean_ = vectors.mean(axis=0)
        self.scale_ = float(np.sqrt(vectors.var(axis=0).mean())) or 1.0
        return self

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """Centre and scale rows of values."""
        return (vectors - self.mean_) / self.scale_


def pipeline(penalty: float, balanced: bool = False) -> Pipeline:
    """Logistic regression on values of one scale, with this inverse strength of the penalty."""
    weight = "balanced" if balanced else None
    return make_pipeline(_CommonScale(), LogisticRegression(
        C=penalty, max_iter=300, tol=1e-3, class_weight=weight))


def logistic(vectors: np.ndarray, balanced: bool = False) -> Callable[[], Predict]:
    """Logistic regression on rows of values, its penalty chosen by the cells that teach."""
    vectors = np.asarray(vectors, dtype=np.float32)

    def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        fitted = pipeline(_penalty(vectors[train], labels), balanced)
        return fitted.fit(vectors[train], labels).predict(vectors[test])

    return lambda: predict


def _penalty(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Choose the penalty by macro-F1 over three folds of the training cells."""
    some = np.random.default_rng(0).permutation(len(labels))[:TUNED_CELLS]
    vectors, labels = vectors[some], labels[some]
    names, sizes = np.unique(labels, return_counts=True)
    large = np.isin(labels, names[sizes >= 3])  # others cannot stand in every fold
    if len(np.unique(labels[large])) < 2:
        return 1.0
    search = GridSearchCV(pipeline(1.0), {"logisticregression__C": PENALTIES},
                          scoring="f1_macro", cv=StratifiedKFold(3), refit=False)
    search.fit(vectors[large], labels[large])
    return search.best_params_["logisticregression__C"]


def _celltypist(names: pd.Index, values) -> Callable[[], Predict]:
    """CellTypist's own training, in its quick form (stochastic gradient descent)."""
    def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        try:
            celltypist = importlib.import_module("celltypist")
        except ImportError as error:
            raise InputError(f"not run: needs `{baselines.EXTRA}`") from error
        from anndata import AnnData

        celltypist.logger.logger.setLevel("ERROR")
        var = pd.DataFrame(index=names)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            model = celltypist.train(AnnData(values[train], var=var), labels=labels, use_SGD=True,
                                     check_expression=False, n_jobs=1, random_state=0)
            called = celltypist.annotate(AnnData(values[test], var=var), model=model)
        return called.predicted_labels["predicted_labels"].to_numpy(str)

    return lambda: predict


def _scanvi(data: Benchmarked, seed: int, epochs: int) -> Callable[[], Predict]:
    """scANVI's vectors, taught with the training labels, read by logistic regression."""
    start: list = []

    def predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        if not start:
            start.append(baselines.scvi_model(data, seed, epochs=epochs))
        taught = np.full(data.cells.n_obs, "", dtype=object)
        taught[train] = labels
        vectors, _ = baselines.scanvi_embedding(data, seed, train_labels=taught, start=start[0])
        return pipeline(1.0).fit(vectors[train], labels).predict(vectors[test])

    return lambda: predict
