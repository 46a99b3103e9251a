"""Which gene sets and regulons a code turns up or down, beside two nulls.

The score is decoupler's univariate linear model (doi 10.1093/bioadv/vbac016): the t of a regression
of a code's marker scores on the weights of a set. Its own p takes genes as independent, which they
are not, and comes out far too small (doi 10.1093/nar/gks461). So p is taken from nulls instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate
from cellvq.genes import find_counts, some
from cellvq.markers import CODE, marker_table, with_code

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = {
    "code": str, "level": int, "collection": str, "name": str, "effect": float, "score": float,
    "p": float, "fdr": float, "null_score": float, "p_genes": float, "p_codes": float, "genes": int,
    "top_genes": str,
}
BLOCK = 500
"""Sets that are scored together, which bounds the memory."""
BIN = 100
"""Genes of like expression among which labels are shuffled, at least."""
REST, TINY = "rest", 1e-300


class Spread(NamedTuple):
    """Sums over a set when genes trade places with others of like expression."""

    observed: np.ndarray
    """Weighted sum of the scores of the genes of a set, [codes, sets]."""
    expected: np.ndarray
    """Its mean over all ways to shuffle, [codes, sets]."""
    deviation: np.ndarray
    """Its standard deviation, [codes, sets]."""

    @property
    def z(self) -> np.ndarray:
        """How far the sum lies from what random genes give, [codes, sets]."""
        return (self.observed - self.expected) / np.maximum(self.deviation, 1e-12)


def enrich(
    markers: pd.DataFrame,
    sets: pd.DataFrame,
    *,
    null: pd.DataFrame | None = None,
    min_genes: int = 5,
) -> pd.DataFrame:
    """Score every gene set or regulon in every code.

    Two nulls stand beside each score, and ``p`` is the larger of their p-values: a set must do
    better than random genes and, where they are given, better than random codes. Gene labels
    shuffled among genes of like expression control for the size of the set, and for expressed genes
    that have larger scores in any code. They do not know that the genes of a set vary together in
    any cells; random codes of the same sizes do.

    Args:
        markers: table of :func:`cellvq.markers.marker_table`.
        sets: table of :func:`cellvq.knowledge.gene_sets` or :func:`cellvq.knowledge.regulons`.
        null: marker scores of random codes, :func:`random_codes`; None: random genes alone.
        min_genes: sets with fewer measured genes are left out.

    Returns:
        One row a code and set. Within a code and collection those with an FDR below 0.05 come
        first, by effect, for p falls with the size of a set; then the others by p. ``code``,
        ``level`` (0 the coarsest), ``collection``, ``name`` (str), ``effect`` (mean score of the
        genes of the set above that of the others, in standard deviations of all genes; with weights
        the slope), ``score`` (its t; negative where the set is lower in the code), ``p``
        (two-sided), ``fdr`` (over all codes of a level and sets of a collection),
        ``null_score`` (what the absolute score stays below in 95 % of the null), ``p_genes``,
        ``p_codes`` (NaN without random codes), ``genes`` (int, of the set and measured),
        ``top_genes`` (str, up to five that drive the score, best first; of sets with an FDR below
        0.05). A table without rows says why in ``attrs["reason"]``.

    Raises:
        InputError: no gene of the sets is measured.

    Example:
        >>> genes = [f"G{i}" for i in range(60)]
        >>> markers = pd.DataFrame({"code": "C0", "gene": genes, "score": np.arange(60.0)})
        >>> sets = pd.DataFrame({"collection": "mine", "gene_set": "last", "gene": genes[-6:]})
        >>> enrich(markers, sets)[["code", "name", "genes"]].values.tolist()
        [['C0', 'last', 6]]
    """
    net = _net(sets)
    if markers.empty:
        return _empty("no code was large enough to have marker scores")
    scores = score_matrix(markers)
    _check_overlap(net, scores.columns)
    net = net[net["target"].isin(scores.columns)]
    sizes = net.groupby(["collection", "source"]).size()
    sizes = sizes[(sizes >= min_genes) & (sizes < scores.shape[1])]
    if sizes.empty:
        return _empty(f"no set has {min_genes} measured genes")
    bins = expression_bins(markers, scores.columns)
    parts = [
        _score_block(scores, null, bins, net, collection, names[start:start + BLOCK])
        for collection, names in sizes.reset_index().groupby("collection")["source"]
        for names in [names.to_numpy()]
        for start in range(0, len(names), BLOCK)
    ]
    table = pd.concat(parts, ignore_index=True)
    table["genes"] = sizes.reindex(table[["collection", "name"]]).to_numpy()
    table["p"] = np.fmax(table["p_genes"], table["p_codes"])
    table["level"] = levels_of(markers, table["code"])
    table["fdr"] = table.groupby(["collection", "level"])["p"].transform(
        evaluate.false_discovery_rate)
    table["top_genes"] = _leaders(table, scores, net)
    holds = table["fdr"] < 0.05
    table["order"] = np.where(holds, -table["effect"], table["p"])
    table = table.assign(fails=~holds).sort_values(
        ["level", "code", "collection", "fails", "order", "name"], ignore_index=True)
    return table.astype(COLUMNS)[list(COLUMNS)]


def random_codes(cells: AnnData, *, count: int = 200, seed: int = 0) -> pd.DataFrame:
    """Score the genes of random codes: codes shuffled over cells, so that sizes stay.

    Args:
        cells: encoded cells with raw counts.
        count: random codes wanted; the last shuffle may bring a few more.
        seed: seed of the shuffles.

    Returns:
        Rank-sum z, [random codes, genes]; the ``null`` of :func:`enrich` and of
        :func:`cellvq.naming.suggest`.
    """
    from anndata import AnnData

    cells, codes = with_code(cells)
    counts, _ = find_counts(cells)
    work = AnnData(counts, obs=cells.obs.copy(), var=cells.var[[]])
    names, rng = codes.unique(), np.random.default_rng(seed)
    found, n = [], 0
    while n < count:
        kept = rng.choice(names, min(count, len(names)), replace=False)
        drawn = codes.where(codes.isin(kept), REST)  # the other cells need no test of their own
        work.obs[CODE] = rng.permutation(drawn.to_numpy())
        scores = score_matrix(marker_table(work)).drop(index=REST, errors="ignore")
        if scores.empty:
            break
        found.append(scores)
        n += len(scores)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def score_matrix(markers: pd.DataFrame) -> pd.DataFrame:
    """Lay the scores of a marker table out as [codes, genes]; a gene without one has 0."""
    return markers.pivot(index="code", columns="gene", values="score").fillna(0.0)


def levels_of(markers: pd.DataFrame, codes: pd.Series) -> pd.Series:
    """Level of each code: what the marker table says, or the depth of its address."""
    if "level" in markers:
        return codes.map(markers.drop_duplicates("code").set_index("code")["level"])
    return codes.str.count(r"\.")


def expression_bins(markers: pd.DataFrame, genes: pd.Index) -> np.ndarray:
    """Number genes by the share of cells that have them, in bins of at least ``BIN``, [genes]."""
    if "fraction_out" not in markers:
        return np.zeros(len(genes), dtype=int)
    seen = markers.groupby("gene")["fraction_out"].mean().reindex(genes).fillna(0.0)
    order = np.empty(len(genes), dtype=int)
    order[np.argsort(seen.to_numpy(), kind="stable")] = np.arange(len(genes))
    return order * max(len(genes) // BIN, 1) // len(genes)


def shuffle_genes(scores: np.ndarray, weights: csr_matrix, bins: np.ndarray) -> Spread:
    """Work out the sum over a set, its mean and its spread when genes are shuffled within bins.

    Mean and variance of a permutation are known exactly, so nothing is drawn.

    Args:
        scores: [codes, genes].
        weights: [sets, genes], 0 outside a set.
        bins: bin of each gene, [genes].
    """
    expected = np.zeros((len(scores), weights.shape[0]))
    variance = np.zeros_like(expected)
    columns = weights.tocsc()
    for number in np.unique(bins):
        inside = np.flatnonzero(bins == number)
        own, part = scores[:, inside], columns[:, inside]
        size = len(inside)
        total = np.asarray(part.sum(axis=1)).ravel()
        squares = np.asarray(part.multiply(part).sum(axis=1)).ravel()
        expected += np.outer(own.mean(axis=1), total)
        if size > 1:
            variance += np.outer(own.var(axis=1, ddof=1), squares - total**2 / size)
    return Spread((weights @ scores.T).T, expected, np.sqrt(np.maximum(variance, 0)))


def _net(sets: pd.DataFrame) -> pd.DataFrame:
    """Gene sets or regulons as decoupler's network, with a collection."""
    names = {"regulator": "source", "gene_set": "source", "gene": "target"}
    net = sets.rename(columns=names)
    fixed = {"collection": "regulons", "weight": 1.0}
    net = net.assign(**{name: value for name, value in fixed.items() if name not in net})
    return net[net["weight"] != 0].drop_duplicates(["collection", "source", "target"])


def _check_overlap(net: pd.DataFrame, genes: pd.Index) -> None:
    if not net["target"].isin(genes).any():
        sets, read = net["source"].nunique(), net["target"].nunique()
        raise InputError(
            f"none of the {read:,} genes of {sets:,} gene sets is measured: the sets have "
            f"{some(net['target'].unique())}, the cells have {some(genes)}; use gene names of the "
            "same kind (symbols or Ensembl identifiers) and species"
        )


def _score_block(scores, null, bins, net, collection: str, names: np.ndarray) -> pd.DataFrame:
    """Scores and p-values of some sets of a collection, one row a code and set."""
    part = net[(net["collection"] == collection) & net["source"].isin(names)]
    t = _linear_model(scores, part).reindex(columns=names)
    where = pd.Index(names).get_indexer(part["source"]), scores.columns.get_indexer(part["target"])
    weights = csr_matrix((part["weight"].to_numpy(dtype=float), where), (len(names), len(bins)))
    genes = shuffle_genes(scores.to_numpy(), weights, bins)
    # The t of the sum that 1 in 20 shuffles exceed, in the direction of the mean.
    edge = genes.expected + np.where(genes.expected < 0, -1.0, 1.0) * 1.96 * genes.deviation
    high = np.abs(_t_of_sum(edge, scores.to_numpy(), weights))
    # From t back to the correlation, and by the spread of the weights to the slope.
    r = t.to_numpy() / np.sqrt(len(bins) - 2 + t.to_numpy() ** 2)
    effect = r / np.maximum(_spread(weights), 1e-12)
    p_codes = np.full(t.shape, np.nan)
    if null is not None and len(null) > 2:
        drawn = _linear_model(null.reindex(columns=scores.columns).fillna(0.0), part)
        drawn = drawn.reindex(columns=names).to_numpy()
        n, mean, spread = len(drawn), drawn.mean(axis=0), drawn.std(axis=0, ddof=1)
        z = (t.to_numpy() - mean) / np.maximum(spread * np.sqrt(1 + 1 / n), 1e-12)
        p_codes = np.maximum(2 * stats.t.sf(np.abs(z), n - 1), TINY)
        high = np.maximum(high, np.quantile(np.abs(drawn), 0.95, axis=0))
    return pd.DataFrame({
        "code": np.repeat(scores.index.to_numpy(), len(names)), "collection": collection,
        "name": np.tile(names, len(scores)), "score": t.to_numpy().ravel(),
        "effect": effect.ravel(),
        "p_genes": np.maximum(2 * stats.norm.sf(np.abs(genes.z)), TINY).ravel(),
        "p_codes": p_codes.ravel(), "null_score": high.ravel(),
    })


def _linear_model(scores: pd.DataFrame, net: pd.DataFrame) -> pd.DataFrame:
    """t of decoupler's univariate linear model, [codes, sets]; 0 where nothing varies."""
    import decoupler

    net, scores = net[["source", "target", "weight"]], scores.set_axis(scores.index.astype(str))
    varies = scores[scores.std(axis=1) > 0]
    if varies.empty:
        return pd.DataFrame(0.0, index=scores.index, columns=net["source"].unique())
    t, _ = decoupler.mt.ulm(varies, net, tmin=1, empty=False)
    return t.reindex(scores.index, fill_value=0.0)


def _t_of_sum(total: np.ndarray, scores: np.ndarray, weights: csr_matrix) -> np.ndarray:
    """The t that a sum over a set would have, [codes, sets]."""
    n = scores.shape[1]
    mean = np.asarray(weights.mean(axis=1)).ravel()
    spread = n * np.outer(scores.std(axis=1), _spread(weights))
    r = (total - np.outer(scores.sum(axis=1), mean)) / np.maximum(spread, 1e-12)
    r = np.clip(r, -1 + 1e-12, 1 - 1e-12)
    return r * np.sqrt((n - 2) / (1 - r**2))


def _spread(weights: csr_matrix) -> np.ndarray:
    """Standard deviation of the weights of each set over all genes, [sets]."""
    mean = np.asarray(weights.mean(axis=1)).ravel()
    squares = np.asarray(weights.multiply(weights).mean(axis=1)).ravel()
    return np.sqrt(np.maximum(squares - mean**2, 0))


def _leaders(table: pd.DataFrame, scores: pd.DataFrame, net: pd.DataFrame) -> pd.Series:
    """Up to five genes behind each score that holds, best first."""
    values, result = scores.to_numpy(), pd.Series("", table.index)
    members = dict(iter(net.groupby(["collection", "source"])))
    for key, rows in table[table["fdr"] < 0.05].groupby(["collection", "name"]):
        own = members[key]
        where = scores.columns.get_indexer(own["target"])
        codes = scores.index.get_indexer(rows["code"])
        push = values[np.ix_(codes, where)] * own["weight"].to_numpy(dtype=float)
        push *= np.sign(rows["score"].to_numpy())[:, None]
        best = np.argsort(-push, axis=1, kind="stable")[:, :5]
        names = own["target"].to_numpy(dtype=object)[best]
        result[rows.index] = [", ".join(row) for row in names]
    return result


def _empty(reason: str) -> pd.DataFrame:
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    table.attrs["reason"] = reason
    return table
