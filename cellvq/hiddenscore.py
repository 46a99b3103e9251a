"""Does the graph find links that were hidden from it? The test of its hypotheses.

Well-known genes are easy to find, whatever the cells say. So beside every number stand as many
random links between the same genes, each gene keeping how many it has, and rankings that know the
priors alone, the cells alone, cells that are shuffled, or only how many links each gene has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cellvq import InputError
from cellvq.hiddenedges import Task, hide, known_pairs, make_task, shuffle_cells, swap
from cellvq.hypotheses import in_units, path_scores

ALL, PRIORS, CELLS = "all evidence", "priors alone", "cells alone"
SHUFFLED, DEGREES, COMMON = "cells shuffled", "product of degrees", "common neighbours"
LEARNT, LEARNT_PRIORS = "all evidence, weights learnt", "priors alone, weights learnt"
METHODS = (ALL, PRIORS, CELLS, SHUFFLED, LEARNT, LEARNT_PRIORS, DEGREES, COMMON)
DIFFERENCES = ((ALL, PRIORS), (ALL, SHUFFLED), (LEARNT, LEARNT_PRIORS), (LEARNT, ALL),
               (ALL, DEGREES), (LEARNT, DEGREES))
"""Methods whose difference is told, with its interval."""
TOPS = (10, 50, 100)
AUROC, AS_HIDDEN = "AUROC", "precision at as many as hidden"
MEASURES = (AUROC, *(f"precision at {top}" for top in TOPS), AS_HIDDEN)
COLUMNS = {
    "kind": str, "method": str, "minus": str, "measure": str, "value": float, "low": float,
    "high": float, "null": float, "null_low": float, "null_high": float, "p": float,
    "chance": float, "folds": int, "hidden": int, "candidates": int,
}
INNER = 3
"""Parts of the links that are left, hidden in turn to learn the weights."""


@dataclass(frozen=True)
class _Fold:
    """A graph without some links, and what is looked for."""

    nodes: pd.DataFrame
    edges: pd.DataFrame
    task: Task
    hit: np.ndarray
    """Whether each candidate was hidden, bool [candidates]."""


def hidden_edges(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    kind: str = "tf-regulates-gene",
    *,
    methods: Sequence[str] = METHODS,
    folds: int = 5,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Hide every known link of a graph once, and measure how well rankings find it.

    Candidates are all pairs of a gene that starts a known link and one that may end it (a
    transcription factor and any gene, or a ligand and a receptor), without known links that were
    not hidden. What no table knows counts as wrong, though some of it may be true.

    Args:
        nodes: node table of the graph.
        edges: its edge table.
        kind: ``tf-regulates-gene`` or ``gene-in-pair``.
        methods: rankings, of ``METHODS``.
        folds: parts of the links, each hidden in turn.
        draws: random networks beside each number.
        seed: seed of the parts, the networks and the shuffles.

    Returns:
        One row a method and measure, with the columns ``COLUMNS``: ``value`` (mean over folds),
        ``low``, ``high`` (95 % interval over folds, Student's), ``null``, ``null_low``,
        ``null_high`` (mean and 95 % range of random networks in which each gene keeps its number of
        hidden links), ``p`` (share of these that reach the value), ``chance`` (hidden links among
        candidates), ``folds``, ``hidden`` (a fold), ``candidates``. Then differences of methods:
        there ``minus`` names the second, and the null is empty.

    Raises:
        InputError: the kind cannot be hidden, the graph holds too few links, or a number cannot be.
    """
    if odd := [name for name in methods if name not in METHODS]:
        raise InputError(f"{odd[0]!r} is no method; there are {', '.join(METHODS)}")
    known = known_pairs(edges, kind)
    if folds < 2 or draws < 1 or len(known) < 2 * folds:
        raise InputError(f"folds is {folds}, draws is {draws} and the graph holds {len(known)} "
                         f"links of the kind {kind}; use 2 folds or more, 1 draw or more, and "
                         "a graph with two links for each fold")
    rng = np.random.default_rng(seed)
    part = rng.permutation(len(known)) % folds
    values = np.zeros((folds, len(methods), len(MEASURES)))
    nulls = np.zeros((draws, *values.shape))
    made = []
    for number in range(folds):
        fold = _fold(nodes, edges, known[part == number], kind)
        made.append((fold.hit.mean(), fold.hit.sum(), fold.hit.size))
        others = [_random(fold.task, rng) for _ in range(draws)]
        for place, method in enumerate(methods):
            score = rank_pairs(fold.nodes, fold.edges, fold.task, kind, method, seed)
            measure = _measures(score[fold.task.open], int(fold.hit.sum()))
            values[number, place] = measure(np.flatnonzero(fold.hit))
            nulls[:, number, place] = [measure(other) for other in others]
    facts = dict(zip(("chance", "hidden", "candidates"), np.mean(made, axis=0), strict=True))
    rows = []
    for place, method in enumerate(methods):
        for column, measure in enumerate(MEASURES):
            null = nulls[:, :, place, column].mean(axis=1)
            value, low, high = _interval(values[:, place, column], 0, 1)
            rows.append({
                "kind": kind, "method": method, "minus": "", "measure": measure, "value": value,
                "low": low, "high": high, "null": null.mean(),
                **dict(zip(("null_low", "null_high"), np.quantile(null, [0.025, 0.975]),
                           strict=True)),
                "p": (1 + (null >= value - 1e-12).sum()) / (1 + draws)})
    for one, other in DIFFERENCES:
        if one in methods and other in methods:
            gap = values[:, list(methods).index(one)] - values[:, list(methods).index(other)]
            for column, measure in enumerate(MEASURES):
                value, low, high = _interval(gap[:, column], -1, 1)
                rows.append({"kind": kind, "method": one, "minus": other, "measure": measure,
                             "value": value, "low": low, "high": high})
    table = pd.DataFrame(rows).assign(folds=folds, **facts)
    table[["hidden", "candidates"]] = table[["hidden", "candidates"]].round()
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def rank_pairs(
    nodes: pd.DataFrame, edges: pd.DataFrame, task: Task, kind: str, method: str, seed: int = 0,
) -> np.ndarray:
    """Score all pairs by one method, from a graph that lacks the hidden links, [starts, ends].

    Args:
        nodes: node table.
        edges: edge table.
        task: what is ranked; a gene that is in the graph no more has the score 0.
        kind: kind of the hidden links.
        method: one of ``METHODS``.
        seed: seed of the shuffles.
    """
    weights = None
    if method in (LEARNT, LEARNT_PRIORS):
        only = "prior" if method == LEARNT_PRIORS else None
        weights = learn_weights(nodes, edges, kind, only=only, seed=seed)
    if method == DEGREES:
        known = known_pairs(edges, kind)
        counts = [known[end].value_counts().reindex(names).fillna(0).to_numpy()
                  for end, names in (("source", task.starts), ("target", task.ends))]
        return np.outer(counts[0] + 0.5, counts[1] + 0.5)
    if method in (PRIORS, LEARNT_PRIORS, COMMON):
        edges = edges[edges["status"] == "prior"]
    elif method == CELLS:
        edges = edges[edges["status"] != "prior"]
    elif method == SHUFFLED:
        edges = shuffle_cells(edges, seed)
    if method == COMMON:
        return _common(edges, task)
    scores = path_scores(nodes, edges)
    place = pd.Index(scores.genes)
    starts, ends = place.get_indexer(task.starts), place.get_indexer(task.ends)
    found = scores.score(starts, ends, weights)
    found[starts < 0], found[:, ends < 0] = 0, 0
    return found


def learn_weights(
    nodes: pd.DataFrame, edges: pd.DataFrame, kind: str = "tf-regulates-gene", *,
    only: str | None = None, seed: int = 0,
) -> pd.Series:
    """Learn what each kind of way is worth, from links that are hidden in turn.

    A logistic regression tells hidden links from other candidates by the counts of ways; weights
    below 0 become 0, since no way speaks against a link.

    Args:
        nodes: node table.
        edges: edge table.
        kind: kind of the links.
        only: use edges of this status alone, such as ``prior``; None: all.
        seed: seed of the parts.

    Returns:
        Weight of each kind of way, for :func:`cellvq.hypotheses.rank`; where there are too few
        links to learn from they are all 1.
    """
    from sklearn.linear_model import LogisticRegression

    try:
        known = known_pairs(edges, kind)
    except InputError:
        known = pd.DataFrame({"source": [], "target": []})
    ways = list(path_scores(nodes, _only(edges, only)).counts)
    if len(known) < 4 * INNER or not ways:
        return pd.Series(1.0, ways)
    part = np.random.default_rng(seed).permutation(len(known)) % INNER
    features, hits = [], []
    for number in range(INNER):
        fold = _fold(nodes, edges, known[part == number], kind)
        scores = path_scores(fold.nodes, _only(fold.edges, only))
        place = pd.Index(scores.genes)
        starts, ends = place.get_indexer(fold.task.starts), place.get_indexer(fold.task.ends)
        counts = scores.parts(starts, ends)
        there = fold.task.open & (starts >= 0)[:, None] & (ends >= 0)
        nothing = np.zeros(there.shape)
        features.append(np.stack([in_units(counts.get(way, nothing))[there] for way in ways], 1))
        full = np.zeros(fold.task.open.shape, bool)
        full[tuple(fold.task.hidden.T)] = True
        hits.append(full[there])
    hit = np.concatenate(hits)
    if not hit.any():
        return pd.Series(1.0, ways)
    model = LogisticRegression(max_iter=500).fit(np.concatenate(features), hit)
    weights = np.maximum(model.coef_[0], 0)
    return pd.Series(weights if weights.any() else 1.0, ways)


def _only(edges: pd.DataFrame, status: str | None) -> pd.DataFrame:
    return edges if status is None else edges[edges["status"] == status]


def _fold(nodes: pd.DataFrame, edges: pd.DataFrame, hidden: pd.DataFrame, kind: str) -> _Fold:
    """Hide some links."""
    task = make_task(edges, hidden, kind)
    full = np.zeros(task.open.shape, bool)
    full[tuple(task.hidden.T)] = True
    return _Fold(*hide(nodes, edges, hidden, kind), task, full[task.open])


def _random(task: Task, rng: np.random.Generator) -> np.ndarray:
    """Candidates that stand for hidden links in a random network, their numbers."""
    swapped = swap(task.hidden, task.open, rng)
    number = np.full(task.open.shape, -1)
    number[task.open] = np.arange(task.open.sum())
    return number[tuple(swapped.T)]


def _measures(score: np.ndarray, hidden: int):
    """Make the function that measures a set of candidates; ties count as their mean."""
    rank = stats.rankdata(score)
    order = np.sort(score)[::-1]
    weights = []
    for top in (*TOPS, hidden):
        top = min(top, len(score))
        last = order[top - 1]
        above, tied = score > last, score == last
        weights.append((above + tied * (top - above.sum()) / tied.sum()) / top)
    weights = np.stack(weights)

    def measure(places: np.ndarray) -> np.ndarray:
        n = len(places)
        area = (rank[places].sum() - n * (n + 1) / 2) / (n * (len(rank) - n))
        return np.array([area, *weights[:, places].sum(axis=1)])

    return measure


def _interval(values: np.ndarray, least: float, most: float) -> tuple[float, float, float]:
    """Mean and 95 % interval over folds."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), max(values.mean() - half, least), min(values.mean() + half, most)


def _common(edges: pd.DataFrame, task: Task) -> np.ndarray:
    """Number of neighbours that two genes share."""
    names = pd.Index(pd.unique(edges[["source", "target"]].to_numpy().ravel()))
    link = np.zeros((len(names) + 1, len(names)), np.float32)  # the last has no neighbours
    at = [names.get_indexer(edges[end]) for end in ("source", "target")]
    link[at[0], at[1]] = link[at[1], at[0]] = 1
    return link[names.get_indexer(task.starts)] @ link[names.get_indexer(task.ends)].T
