"""How far edges agree with known regulation and with knock-outs: ranks, intervals and nulls.

A network from expression alone is close to chance against what is known (doi
10.1038/s41592-019-0690-6), and well-expressed genes have more known edges and larger scores. So no
number stands alone: beside each are the same number of known networks in which every regulator and
every gene keeps its number of edges but the edges are random, and an interval over regulators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_matrix

from cellvq import InputError, conditions, evaluate, tallies
from cellvq.genes import some

if TYPE_CHECKING:
    from anndata import AnnData

NULL = "known edges swapped, each regulator and gene keeping its number"
COLUMNS = {
    "method": str, "regulators": int, "pairs": int, "known": int,
    "auroc": float, "auroc_low": float, "auroc_high": float,
    "auroc_null": float, "auroc_null_low": float, "auroc_null_high": float, "auroc_p": float,
    "precision": float, "precision_low": float, "precision_high": float, "precision_null": float,
    "precision_null_high": float, "precision_p": float, "ratio": float,
    "precision_100": float, "ratio_100": float, "signs": float, "signs_null": float,
    "signs_p": float, "null": str,
}
"""Columns of the table of :func:`score_edges`."""
KNOCKOUT_COLUMNS = {
    "regulator": str, "gene": str, "weight": float, "effect": float, "n_cells": int,
    "n_donors": int, "p": float, "fdr": float, "is_known": bool,
}
BINS = 2000
"""Bins of ranks from which the intervals are worked out; they are finest at the top."""
SWAPS = 10
"""Passes over all edges before the first random network; a third of it between two of them."""


class Pairs(NamedTuple):
    """Scored pairs, and which of them are known."""

    score: np.ndarray
    """Scores with their sign, [pairs]."""
    rank: np.ndarray
    """Rank of each score without its sign, 1 the largest, ties sharing the mean, [pairs]."""
    ordered: np.ndarray
    """The same ranks, ascending."""
    regulator: np.ndarray
    """Number of the regulator of each pair."""
    place: np.ndarray
    """Place of each pair in the matrix of regulators and genes, which holds -1 for no pair."""
    known: np.ndarray
    """Pairs that are known, their numbers."""
    sign: np.ndarray
    """Sign of each known edge, 0 where it is not known."""
    of: tuple[np.ndarray, np.ndarray]
    """Numbers of the regulator and the gene of each known edge."""


def score_edges(
    edges: pd.DataFrame,
    known: pd.DataFrame,
    *,
    method: str = "",
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a table of pairs against known edges.

    Only regulators with a known edge to one of the genes take part, with all of their pairs. Pairs
    of several codes are joined first: the largest score without its sign counts.

    Args:
        edges: all pairs that were scored, with ``regulator``, ``gene``, ``score``; a larger score
            without its sign means a likelier edge, and its sign that of the regulation.
        known: known edges, with ``regulator``, ``gene`` and if possible ``weight``, whose sign is
            that of the regulation; such as :func:`cellvq.knowledge.regulons`, or the rows with
            ``is_known`` of :func:`knockout_table`.
        method: a name for the row.
        draws: random networks, and draws of the regulators.
        seed: seed of both.

    Returns:
        One row with the columns ``COLUMNS``: ``auroc`` (chance that a known pair has the larger
        score than another), ``precision`` (known share of as many top pairs as are known), its
        ``ratio`` to the known share of all pairs, the same of the top 100, ``signs`` (share of
        known pairs whose score has their sign); ``_low`` and ``_high``: 95 % of draws of
        regulators, with replacement; ``_null``, ``_null_low``, ``_null_high``: mean and 95 % of
        random networks; ``_p``: one-sided, against these. Without a known pair the table is empty
        and ``attrs["reason"]`` says why.

    Raises:
        InputError: a column is absent, or a score is no number.

    Example:
        >>> from itertools import product
        >>> edges = pd.DataFrame(product("AB", "CDEFGH"), columns=["regulator", "gene"])
        >>> edges["score"] = [9, 8, 1, 1, 1, 1, 1, 1, 7, 6, 1, 1]
        >>> known = pd.DataFrame({"regulator": [*"AABB"], "gene": [*"CDEF"]})
        >>> score_edges(edges, known)[["auroc", "precision"]].values.tolist()
        [[1.0, 1.0]]
    """
    for name, table, needed in (("edges", edges, ["regulator", "gene", "score"]),
                                ("known", known, ["regulator", "gene"])):
        if missing := [column for column in needed if column not in table]:
            raise InputError(f"the table of {name} has no column {', '.join(missing)}")
    if not np.isfinite(edges["score"].to_numpy(float)).all():
        raise InputError("a score is missing or infinite; give pairs that were not scored a 0")
    pairs = _pairs(edges, known)
    if isinstance(pairs, str):
        table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
        table.attrs["reason"] = pairs
        return table
    rng = np.random.default_rng(seed)
    total, count = len(pairs.score), len(pairs.known)
    found = _measures(pairs, pairs.known)
    null = pd.DataFrame([_measures(pairs, drawn) for drawn in _networks(pairs, draws, rng)])
    over = _over_regulators(pairs, draws, rng)
    row = {"method": method, "regulators": pairs.regulator.max() + 1, "pairs": total,
           "known": count, "null": NULL}
    for name in ("auroc", "precision", "precision_100", "signs"):
        row[name], row[f"{name}_null"] = found[name], null[name].mean()
        row[f"{name}_null_low"], row[f"{name}_null_high"] = null[name].quantile([0.025, 0.975])
        row[f"{name}_p"] = (1 + (null[name] >= found[name] - 1e-12).sum()) / (1 + draws)
        if np.isnan(found[name]):
            row[f"{name}_p"] = np.nan
        if name in over:
            row[f"{name}_low"], row[f"{name}_high"] = np.nanquantile(over[name], [0.025, 0.975])
    row["ratio"] = found["precision"] / (count / total)
    row["ratio_100"] = found["precision_100"] / (count / total)
    return pd.DataFrame([row])[list(COLUMNS)].astype(COLUMNS)


def score_methods(
    tables: dict[str, pd.DataFrame], known: pd.DataFrame, *, draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Score several tables of the same pairs, best first; a pair that one lacks has score 0 there.

    Args:
        tables: method and its pairs, such as of :func:`cellvq.regulationmethods.score_pairs`, of
            a decoder's response, or of attention.
        known: see :func:`score_edges`.
        draws: likewise.
        seed: likewise.

    Returns:
        One row a method, see :func:`score_edges`.
    """
    every = pd.concat([table[["regulator", "gene"]] for table in tables.values()])
    every = every.drop_duplicates(ignore_index=True)
    rows = []
    for method, table in tables.items():
        if not table[["regulator", "gene"]].equals(every):
            table = every.merge(_joined(table), how="left").fillna({"score": 0.0})
        rows.append(score_edges(table, known, method=method, draws=draws, seed=seed))
    table = pd.concat(rows, ignore_index=True)
    table.attrs.update(rows[0].attrs)
    return table.sort_values("auroc", ascending=False, ignore_index=True, kind="stable")


def knockout_table(
    cells: AnnData, perturbation: str, reference: str, replicate: str, *, fdr: float = 0.05
) -> pd.DataFrame:
    """Find which genes change when a gene is lost: edges that were tested by an experiment.

    Cells of a target are summed within replicates, and each gene is tested against cells that lost
    nothing with :func:`cellvq.conditions.gene_changes`. Only targets that are measured themselves
    take part, and no gene is asked of its own loss. Many of the changes are indirect.

    Args:
        cells: cells of a screen, with raw counts.
        perturbation: column of ``obs`` with the target.
        reference: value of cells that lost nothing.
        replicate: column of ``obs`` with the replicate, three or more.
        fdr: false discovery rate below which an edge is called known, over all targets and genes.

    Returns:
        One row a target and gene: ``regulator`` (the target), ``gene`` (str), ``weight`` (1 where
        the gene falls with the loss, so that the target raises it, and -1 where it rises),
        ``effect`` (log2 fold change by the loss), ``n_cells``, ``n_donors``, ``p``, ``fdr``,
        ``is_known``. Without rows ``attrs["reason"]`` says why.

    Raises:
        InputError: a column is absent.
    """
    whole = cells.copy()
    whole.obs["cellvq_code"] = "all"
    made = tallies.tally(whole, donor=replicate, condition=perturbation)
    targets = [target for target, _ in conditions.contrasts(made, reference)
               if target in cells.var_names]
    tables = [conditions.gene_changes(made, target, reference).assign(regulator=target)
              for target in targets]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if table.empty:
        table = pd.DataFrame({name: pd.Series(dtype=kind)
                              for name, kind in KNOCKOUT_COLUMNS.items()})
        table.attrs["reason"] = "no target is a measured gene with cells in three replicates"
        return table
    table = table[table["gene"] != table["regulator"]].reset_index(drop=True)
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table["weight"], table["is_known"] = -np.sign(table["effect"]), table["fdr"] < fdr
    return table[list(KNOCKOUT_COLUMNS)].astype(KNOCKOUT_COLUMNS)


def _joined(edges: pd.DataFrame) -> pd.DataFrame:
    """One row a pair: of several codes, the largest score without its sign."""
    if not edges.duplicated(["regulator", "gene"]).any():
        return edges[["regulator", "gene", "score"]].reset_index(drop=True)
    order = edges["score"].abs().sort_values(ascending=False, kind="stable").index
    table = edges.loc[order, ["regulator", "gene", "score"]]
    return table.drop_duplicates(["regulator", "gene"]).sort_index(ignore_index=True)


def _pairs(edges: pd.DataFrame, known: pd.DataFrame) -> Pairs | str:
    """Bring scores and known edges together, or say why that is not possible."""
    edges = _joined(edges)
    edges = edges[edges["regulator"] != edges["gene"]]
    both = known.drop_duplicates(["regulator", "gene"]).merge(
        edges.reset_index(names="at"), on=["regulator", "gene"])
    kept = edges["regulator"].isin(both["regulator"])
    edges = edges[kept].reset_index(drop=True)
    if both.empty:
        return (f"no known edge is among the pairs, whose regulators are "
                f"{some(edges['regulator'].unique()) or 'not among those that are known'}")
    if len(both) == len(edges):
        return "all pairs are known, so that there is nothing to tell them from"
    regulator, names = pd.factorize(edges["regulator"], sort=True)
    gene, genes = pd.factorize(edges["gene"], sort=True)
    place = np.full((len(names), len(genes)), -1)
    place[regulator, gene] = np.arange(len(edges))
    of = names.get_indexer(both["regulator"]), genes.get_indexer(both["gene"])
    score = edges["score"].to_numpy(float)
    sign = np.sign(both["weight"]) if "weight" in both else np.zeros(len(both))
    rank = stats.rankdata(-np.abs(score))
    return Pairs(score, rank, np.sort(rank), regulator, place, place[of],
                 np.asarray(sign, float), of)


def _measures(pairs: Pairs, known: np.ndarray) -> dict[str, float]:
    """How early known pairs come, and how many have their sign."""
    rank, count, total = pairs.rank[known], len(known), len(pairs.rank)
    above = rank.sum() - count * (count + 1) / 2  # other pairs before a known one
    signed = (pairs.sign != 0) & (pairs.score[known] != 0)
    agree = np.sign(pairs.score[known][signed]) == pairs.sign[signed]
    return {
        "auroc": 1 - above / (count * (total - count)),
        "precision": _precision(pairs.ordered, rank, count),
        "precision_100": _precision(pairs.ordered, rank, min(100, total)),
        "signs": agree.mean() if len(agree) else np.nan,
    }


def _precision(ordered: np.ndarray, known: np.ndarray, top: int) -> float:
    """Known share of the top pairs; pairs with equal scores at the edge count in part."""
    edge = ordered[top - 1]
    first = np.searchsorted(ordered, edge)
    tied = np.searchsorted(ordered, edge, side="right") - first
    return ((known < edge).sum() + (known == edge).sum() * (top - first) / tied) / top


def _networks(pairs: Pairs, draws: int, rng: np.random.Generator):
    """Yield random networks of the same degrees: genes of two edges are swapped, many times.

    A swap is left out where one of its edges is there already or is no pair. Edges keep their
    regulator, and with it their sign.
    """
    regulator, gene = pairs.of[0], pairs.of[1].copy()
    there = np.zeros(pairs.place.shape, bool)
    there[regulator, gene] = True
    for number in range(draws):
        for _ in range(SWAPS if number == 0 else -(-SWAPS // 3)):
            one, other = rng.permutation(len(gene))[: len(gene) // 2 * 2].reshape(2, -1)
            new = np.concatenate([gene[other], gene[one]])
            at = np.concatenate([regulator[one], regulator[other]])
            free = ~there[at, new] & (pairs.place[at, new] >= 0)
            _, back, times = np.unique(at * pairs.place.shape[1] + new, return_inverse=True,
                                       return_counts=True)
            free &= times[back] == 1
            swap = free[: len(one)] & free[len(one):]
            one, other = one[swap], other[swap]
            there[regulator[one], gene[one]] = there[regulator[other], gene[other]] = False
            gene[one], gene[other] = gene[other], gene[one]
            there[regulator[one], gene[one]] = there[regulator[other], gene[other]] = True
        yield pairs.place[regulator, gene]


def _over_regulators(
    pairs: Pairs, draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """AUROC and precision over draws of the regulators with replacement, by bins of ranks."""
    size, total = pairs.regulator.max() + 1, len(pairs.rank)
    edges = np.unique(np.geomspace(1, total, BINS).round())
    column = np.searchsorted(edges, pairs.rank)

    def spread(which: np.ndarray) -> csr_matrix:
        entries = np.ones(len(which)), (pairs.regulator[which], column[which])
        return csr_matrix(entries, (size, len(edges)))

    weight = rng.multinomial(size, np.full(size, 1 / size), draws)
    known, every = (np.asarray(weight @ spread(which)) for which in (
        pairs.known, np.arange(total)))
    other = every - known
    before = np.cumsum(other, axis=1) - other / 2
    found, others = known.sum(axis=1), other.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = 1 - (known * before).sum(axis=1) / (found * others)
        reached, hit = np.cumsum(every, axis=1), np.cumsum(known, axis=1)
        last = np.argmax(reached >= found[:, None], axis=1)
        at = np.arange(draws), last
        inside = (found - reached[at] + every[at]) / np.maximum(every[at], 1)
        precision = (hit[at] - known[at] * (1 - inside)) / found
    return {"auroc": auroc, "precision": precision}
