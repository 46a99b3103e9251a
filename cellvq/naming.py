"""Which cell type a code suggests, with the evidence, and ``unknown`` where that is thin.

Known markers are looked up among the marker scores of a code (the idea of ScType, doi
10.1038/s41467-022-28803-w); labels of cells are never read. Where two types do as well as each
other, the Cell Ontology (doi 10.1186/s13326-016-0088-7) tells what both are kinds of.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_matrix

from cellvq.genesets import expression_bins, levels_of, score_matrix, shuffle_genes
from cellvq.knowledge import small_ontology, why_foreign

UNKNOWN = "unknown"
COLUMNS = {
    "code": str, "level": int, "name": str, "name_id": str, "score": float, "margin": float,
    "null_score": float, "p": float, "evidence": str, "second": str,
}
SUPPORT = 2
"""Markers of a type that must be up in a code, each by its own test, before it names the code."""
FDR, P = 0.05, 0.01
NEGATIVE = 0.5
"""How much a gene counts that a type should not have, against 1 of one that it should."""


class Tree(NamedTuple):
    """The ontology, ready to be asked what two types have in common."""

    names: dict[str, str]
    """Name of each id."""
    above: dict[str, frozenset[str]]
    """Everything that each id is a kind of, and the id itself."""


class Scores(NamedTuple):
    """How well each type fits each code."""

    z: pd.DataFrame
    """Standard deviations above random genes of like expression, [codes, types]."""
    support: pd.DataFrame
    """Markers of the type that are up in the code, [codes, types]."""
    null_score: float
    """What the best type stays below in 95 % of the shuffles of genes."""
    p: pd.DataFrame
    """One-sided, corrected for the number of types, [codes, types]."""


def suggest(
    markers: pd.DataFrame,
    known: pd.DataFrame,
    ontology: pd.DataFrame | None = None,
    *,
    null: pd.DataFrame | None = None,
    organism: str | None = None,
    margin: float = 2.0,
) -> pd.DataFrame:
    """Suggest a cell type for each code, or say why there is none.

    The score of a type is the weighted mean of the marker scores of its genes, less half the scores
    of genes that it should not have, in standard deviations of the same sum over random genes of
    like expression. With random codes the sum must beat theirs too. A gene that marks ``n`` types
    weighs ``1 / sqrt(n)``. A type can name a code if its p is below 0.01 and at least two of its
    genes are up in the code (FDR 0.05). Types within ``margin`` of the best are its rivals; with
    rivals the code takes the name of what they all are, if that says something: it must cover at
    most half of the types of the table. Broader types of the best are no rivals. Each code is
    judged alone, whatever its level.

    Args:
        markers: table of :func:`cellvq.markers.marker_table`.
        known: table of :func:`cellvq.knowledge.markers`.
        ontology: table of :func:`cellvq.knowledge.ontology`; None: the broader types of ``known``.
        null: marker scores of random codes, :func:`cellvq.genesets.random_codes`, of which p below
            0.01 takes 100 at least; None: random genes alone.
        organism: what the cells say of themselves, such as ``uns["organism"]``.
        margin: how much better than its rivals a type must be, in standard deviations.

    Returns:
        One row a code: ``code``, ``level``, ``name`` (``unknown`` where evidence is thin),
        ``name_id`` (Cell Ontology, or empty), ``score`` (of the best type), ``margin`` (to the best
        type that is neither a kind of the name nor the other way round), ``null_score`` (what the
        best type stays below in 95 % of the shuffles of genes), ``p`` (of the best type),
        ``evidence`` (genes for it and against it, with their scores, or why there is no name),
        ``second`` (the type that the margin is to). If nothing could be named, ``attrs["reason"]``
        says why.

    Example:
        >>> genes = ["CD79A", "MS4A1", "CD3D", "LYZ", *(f"G{i}" for i in range(200))]
        >>> score = [9.0, 8.0, -4.0, -5.0, *np.tile([0.5, -0.5], 100)]
        >>> markers = pd.DataFrame({"code": "C0", "gene": genes, "score": score,
        ...                         "fdr": [0.0] * 4 + [1.0] * 200})
        >>> known = pd.DataFrame({"cell_type": ["B cell", "B cell", "T cell", "monocyte"],
        ...                       "gene": genes[:4]})
        >>> suggest(markers, known)[["name", "evidence"]].values.tolist()
        [['B cell', 'for: CD79A (9.0), MS4A1 (8.0)']]
    """
    if markers.empty:
        return _nothing(markers, "no code was large enough to have marker scores")
    scores = score_matrix(markers)
    known = _complete(known)
    here = known["gene"].isin(scores.columns)
    reason = why_foreign(scores.columns, organism)
    if reason or not here.any():
        return _nothing(markers, reason or "no gene of the marker table is measured")
    fit = _fit(markers, scores, known[here], null)
    tree = _tree(small_ontology(known) if ontology is None else ontology, known)
    ids = known.drop_duplicates("cell_type").set_index("cell_type")["cell_type_id"]
    rows = [_name(code, fit, tree, ids, margin) for code in scores.index]
    table = pd.DataFrame(rows, columns=["code", "name", "name_id", "best", "score", "margin", "p",
                                        "second", "why"])
    table["null_score"], table["level"] = fit.null_score, levels_of(markers, table["code"])
    table["evidence"] = [
        _evidence(scores.loc[row.code], known[known["cell_type"] == row.best], row.why)
        for row in table.itertuples()
    ]
    table = table.sort_values(["level", "code"], ignore_index=True)
    return table.astype(COLUMNS)[list(COLUMNS)]


def _complete(known: pd.DataFrame) -> pd.DataFrame:
    """Fill in the columns that a short marker table leaves out."""
    usual = {"cell_type_id": "", "broader": "", "positive": True, "weight": 1.0}
    return known.assign(**{name: value for name, value in usual.items() if name not in known})


def _fit(markers, scores: pd.DataFrame, known: pd.DataFrame, null) -> Scores:
    """Fit every type to every code, and to random codes."""
    names = pd.Index(known.loc[known["positive"], "cell_type"].unique())
    known = known[known["cell_type"].isin(names)]
    weights = _weights(known, names, scores.columns)
    bins = expression_bins(markers, scores.columns)
    sums = shuffle_genes(scores.to_numpy(), weights, bins)
    z = sums.z
    up = markers[(markers["fdr"] < FDR) & (markers["score"] > 0)]
    marking = pd.crosstab(*up[["code", "gene"]].merge(known[known["positive"]])[
        ["code", "cell_type"]].to_numpy(dtype=object).T) if len(up) else pd.DataFrame()
    support = marking.reindex(index=scores.index, columns=names).fillna(0).astype(int)
    p = -np.expm1(len(names) * stats.norm.logcdf(z))  # Sidak
    if null is not None and len(null) > 2:
        # The sum, not its z: scores of random codes spread by 1, those of real codes by more.
        drawn = (weights @ null.reindex(columns=scores.columns).fillna(0.0).to_numpy().T).T
        mean, spread = drawn.mean(axis=0), np.maximum(drawn.std(axis=0, ddof=1), 1e-12)
        best = np.sort(((drawn - mean) / spread).max(axis=1))
        as_good = len(best) - np.searchsorted(best, (sums.observed - mean) / spread)
        p = np.maximum(p, (1 + as_good) / (1 + len(best)))
    high = stats.norm.ppf(0.95 ** (1 / len(names)))
    frame = {"index": scores.index, "columns": names}
    return Scores(pd.DataFrame(z, **frame), support, float(high), pd.DataFrame(p, **frame))


def _weights(known: pd.DataFrame, names: pd.Index, genes: pd.Index) -> csr_matrix:
    """Signed weights of the genes of each type, [types, genes]; those for it add up to 1."""
    types = known.groupby(["gene", "positive"])["cell_type"].transform("nunique")
    weight = known["weight"].astype(float) / np.sqrt(types)
    total = weight.where(known["positive"], 0.0).groupby(known["cell_type"]).transform("sum")
    weight *= np.where(known["positive"], 1.0, -NEGATIVE) / total
    where = names.get_indexer(known["cell_type"]), genes.get_indexer(known["gene"])
    return csr_matrix((weight, where), (len(names), len(genes)))


def _name(code: str, fit: Scores, tree: Tree, ids: pd.Series, margin: float) -> tuple:
    """Name one code: the best type, or what it and its rivals all are, or nothing."""
    z, p = fit.z.loc[code], fit.p.loc[code]
    able = (p < P) & (fit.support.loc[code] >= SUPPORT)
    best = z[able].idxmax() if able.any() else z.idxmax()
    name, name_id, why = best, ids[best], ""
    if not able.any():
        name, name_id = UNKNOWN, ""
        why = f"{best} fits best, but " + (
            f"fewer than {SUPPORT} of its genes are up" if p[best] < P else "no better than chance")
    else:
        above = tree.above.get(ids[best], frozenset())
        near = z.index[able & (z > z[best] - margin) & ~ids[z.index].isin(above)].drop(
            best, errors="ignore")
        if len(near):
            name, name_id = _common([best, *near], tree, ids)
            rivals = ", ".join([best, *near[:2]])
            why = f"{rivals} do as well as each other" if name == UNKNOWN else f"among {rivals}"
    other = z[[not _related(ids[kind], name_id, tree) and kind != name for kind in z.index]]
    if name == UNKNOWN:
        other = z.drop(best)
    second = other.idxmax() if len(other) else ""
    gap = z[best] - other.max() if len(other) else np.nan
    return code, name, name_id, best, z[best], gap, p[best], second, why


def _related(one: str, other: str, tree: Tree) -> bool:
    """Whether one type is a kind of the other."""
    known = tree.above.get
    return bool(one and other) and (one in known(other, ()) or other in known(one, ()))


def _common(types: list[str], tree: Tree, ids: pd.Series) -> tuple[str, str]:
    """Name and id of the narrowest type that all are kinds of, if it says something."""
    shared = frozenset.intersection(*(tree.above.get(ids[kind], frozenset()) for kind in types))
    told = ids[ids != ""]
    covers = {
        kind: sum(kind in tree.above.get(each, ()) for each in told) for kind in shared
    }
    shared = [kind for kind in shared if 2 * covers[kind] <= len(told)]
    if not shared:
        return UNKNOWN, ""
    narrow = min(shared, key=lambda kind: (covers[kind], -len(tree.above[kind]), kind))
    own = told.index[told == narrow]
    return (own[0] if len(own) else tree.names[narrow]), narrow


def _tree(ontology: pd.DataFrame, known: pd.DataFrame) -> Tree:
    """Follow the parents of each type of the table up to the root."""
    parents = dict(zip(ontology["id"], ontology["parents"].str.split("|"), strict=True))
    above: dict[str, frozenset[str]] = {}

    def climb(kind: str) -> frozenset[str]:
        if kind not in above:
            above[kind] = frozenset([kind])  # also where the parents of a damaged table run round
            higher = [climb(each) for each in parents.get(kind, ()) if each]
            above[kind] = above[kind].union(*higher)
        return above[kind]

    for kind in known["cell_type_id"].unique():
        if kind:
            climb(kind)
    names = dict(zip(ontology["id"], ontology["name"], strict=True))
    return Tree(names, above)


def _evidence(scores: pd.Series, known: pd.DataFrame, why: str) -> str:
    """The genes of the best type: up, expected and absent, up though it should not have them."""
    known = known.assign(score=known["gene"].map(scores)).dropna(subset="score")
    own, others = known[known["positive"]], known[~known["positive"]]
    up = own[own["score"] > 2].nlargest(5, "score")
    absent = own[own["score"] <= 0].nsmallest(3, "score")
    wrong = others[others["score"] > 2].nlargest(3, "score")
    parts = {"for": up, "expected and absent": absent, "against": wrong}
    texts = [why] if why else []
    for title, found in parts.items():
        if len(found):
            genes = zip(found["gene"], found["score"], strict=True)
            texts.append(f"{title}: " + ", ".join(f"{gene} ({z:.1f})" for gene, z in genes))
    return "; ".join(texts)


def _nothing(markers: pd.DataFrame, reason: str) -> pd.DataFrame:
    """All codes unknown, for one reason."""
    codes = pd.Series(markers["code"].unique(), dtype=object)
    table = pd.DataFrame({
        "code": codes, "level": levels_of(markers, codes) if len(codes) else 0, "name": UNKNOWN,
        "name_id": "", "score": np.nan, "margin": np.nan, "null_score": np.nan, "p": np.nan,
        "evidence": reason, "second": "",
    }, columns=list(COLUMNS)).astype(COLUMNS)
    table.attrs["reason"] = reason
    return table
