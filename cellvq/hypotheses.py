"""Which links between genes are likely, though no prior holds them?

Ranked by how many kinds of evidence join two genes, and how directly. What is hidden from the graph
and ranked high again says whether such a ranking can be trusted (`cellvq.hiddenscore`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from cellvq import InputError
from cellvq.graphanswers import SPOKEN, Answer, names_of

DAMPING = 0.4
"""Exponent by which the links of a node weaken the ways through it (Hetionet's choice)."""
MOST_ENDS = 20_000
"""Genes of a graph that hypotheses are ranked among, at the most."""


def rank(
    nodes: pd.DataFrame, edges: pd.DataFrame, kind: str = "tf-regulates-gene", *,
    count: int = 20, least: int = 2, weights: pd.Series | None = None,
) -> Answer:
    """Rank links between genes that several kinds of evidence support and no prior holds.

    Two genes are joined through a code they both mark or drive, a set they belong to, a condition
    they follow in one code, a common regulator, a regulator of the one that has targets in common
    with the other, a gene that one regulates and that marks a code or follows a condition with the
    other, pairs that share a partner, or a link found in these cells. Each kind
    of way is counted with ways through busy nodes weakened (degree-weighted path counts,
    Himmelstein and Baranzini 2015, doi 10.1371/journal.pcbi.1004259); the score is the mean over
    kinds of the inverse hyperbolic sine of the count, in units of its mean.

    Args:
        nodes: node table.
        edges: edge table.
        kind: ``tf-regulates-gene`` (candidates start at genes that a prior or a finding calls a
            regulator) or ``gene-in-pair`` (a ligand and a receptor of different pairs).
        count: candidates to return.
        least: kinds of ways that must support one.
        weights: weight of each kind of way, such as :func:`cellvq.hiddenscore.learn_weights` gives;
            None: all alike.

    Returns:
        One row a candidate: ``source``, ``target`` (node ids), ``score``, ``support`` (int, kinds
        of ways), and one column for each kind with its count.
    """
    if kind not in ("tf-regulates-gene", "gene-in-pair"):
        raise InputError(f"hypotheses of the kind {kind!r} cannot be ranked; use "
                         "tf-regulates-gene or gene-in-pair")
    scores = path_scores(nodes, edges)
    genes = scores.genes
    starts, ends = _candidates(edges, genes, kind)
    known = edges[(edges["kind"] == kind) & (edges["status"] == "prior")]
    if kind == "gene-in-pair":
        known = known.merge(known, on="target")
        known = known.rename(columns={"source_x": "source", "source_y": "target", "target": "by"})
    hidden = set(zip(known["source"], known["target"], strict=True))
    table = scores.table(starts, ends, weights)
    table = table[table["support"] >= least]
    there = [pair in hidden for pair in zip(table["source"], table["target"], strict=True)]
    table = table[~np.array(there, bool)] if len(table) else table
    table = table.sort_values(["score", "source", "target"], ascending=[False, True, True],
                              ignore_index=True).head(count)
    names = names_of(nodes)
    if table.empty:
        words = f"No link of the kind {kind} is supported by {least} kinds of evidence."
    else:
        best = "; ".join(f"{names[row.source]} and {names[row.target]} ({row.support} kinds of "
                         f"evidence, score {row.score:.2f})"
                         for row in table.head(SPOKEN).itertuples())
        words = (f"{len(table)} links that no prior holds are supported by at least {least} kinds "
                 f"of evidence. First: {best}. Each is a hypothesis.")
    return Answer("Which links are likely and not known?", table, words)


@dataclass(frozen=True)
class PathScores:
    """Degree-weighted path counts between the genes of a graph."""

    genes: list[str]
    """Node ids, [genes]."""
    counts: dict[str, sparse.csr_matrix]
    """Of each kind of way the counts, [genes, genes]."""

    def parts(self, starts: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
        """Give the counts of each kind of way between some genes, [starts, ends] each."""
        return {name: matrix[starts][:, ends].toarray() for name, matrix in self.counts.items()}

    def score(
        self, starts: np.ndarray, ends: np.ndarray, weights: pd.Series | None = None
    ) -> np.ndarray:
        """Give the scores of pairs of genes, 0 of a gene with itself, [starts, ends].

        Args:
            starts: positions of the genes that a pair may start with.
            ends: positions of those it may end with.
            weights: weight of each kind of way, by its name; None: all alike.
        """
        return _joined(self.parts(starts, ends), starts, ends, weights)

    def table(
        self, starts: np.ndarray, ends: np.ndarray, weights: pd.Series | None = None
    ) -> pd.DataFrame:
        """Score pairs of genes.

        Args:
            starts: positions of the genes that a pair may start with.
            ends: positions of those it may end with.
            weights: see :meth:`score`.

        Returns:
            One row a pair with any way: ``source``, ``target``, ``score``, ``support``, the counts.
        """
        parts = self.parts(starts, ends)
        if not parts or not len(starts) or not len(ends):
            return pd.DataFrame(columns=["source", "target", "score", "support", *parts])
        score = _joined(parts, starts, ends, weights)
        support = np.sum([part > 0 for part in parts.values()], axis=0)
        rows, columns = np.nonzero(score)
        genes = np.array(self.genes, object)
        table = pd.DataFrame({
            "source": genes[starts[rows]], "target": genes[ends[columns]],
            "score": score[rows, columns], "support": support[rows, columns]})
        return table.assign(**{name: part[rows, columns] for name, part in parts.items()})


def path_scores(nodes: pd.DataFrame, edges: pd.DataFrame) -> PathScores:
    """Count the ways between genes, kind by kind, those through busy nodes weakened."""
    genes = nodes.loc[nodes["kind"] == "gene", "id"].tolist()
    if len(genes) > MOST_ENDS:
        raise InputError(f"the graph has {len(genes):,} genes, and {MOST_ENDS:,} at the most can "
                         "be ranked; build it with fewer genes per code")
    place = pd.Series(np.arange(len(genes)), genes)
    counts = {}
    for way, kinds in (("both mark a code", ("code-marks-gene",)),
                       ("both drive a code", ("gene-drives-code",)),
                       ("both change in a code", ("gene-changes-in-code",)),
                       ("both in a set", ("gene-in-set",)),
                       ("both in a pair", ("gene-in-pair",))):
        part = edges[edges["kind"].isin(kinds)]
        if len(part):
            counts[way] = _through(part, place)
    if "both in a pair" in counts:
        pair = counts["both in a pair"]
        counts["pairs that share a partner"] = (pair @ pair @ pair).tocsr()
    links = edges[edges["kind"] == "tf-regulates-gene"]
    if len(known := links[links["status"] == "prior"]):
        regulates = _known(known, place)
        counts["known regulator in common"] = _squared(regulates.T)
        weak = _weakened(regulates)
        counts["one with like targets regulates it"] = (_squared(regulates) @ weak).tocsr()
        for way in ("both mark a code", "both change in a code"):
            if way in counts:
                together = way.removeprefix("both ").replace("mark", "marks").replace(
                    "change", "changes")
                counts[f"regulates what {together} with it"] = (
                    _weakened(regulates) @ counts[way]).tocsr()
    if len(found := links[links["status"] == "finding"]):
        ends = [place[found[end]].to_numpy() for end in ("source", "target")]
        matrix = sparse.csr_matrix((np.abs(found["effect"].to_numpy()), ends),
                                   (len(genes), len(genes)))
        counts["found in these cells"] = matrix
    return PathScores(genes, counts)


def _joined(
    parts: dict[str, np.ndarray], starts: np.ndarray, ends: np.ndarray, weights: pd.Series | None
) -> np.ndarray:
    """Mean of the counts of all kinds in their units, [starts, ends]."""
    score = np.zeros((len(starts), len(ends)))
    worth = {name: 1.0 if weights is None else weights.get(name, 0.0) for name in parts}
    for name, part in parts.items():
        if worth[name]:
            score += worth[name] * in_units(part) / sum(worth.values())
    score[starts[:, None] == ends] = 0
    return score


def in_units(part: np.ndarray) -> np.ndarray:
    """Give the inverse hyperbolic sine of counts in units of the mean of those above zero."""
    return np.arcsinh(part / part[part > 0].mean()) if (part > 0).any() else part


def _through(edges: pd.DataFrame, place: pd.Series) -> sparse.csr_matrix:
    """Ways gene - other node - gene, [genes, genes]."""
    gene = edges["source"].where(edges["source"].str.startswith("gene:"), edges["target"])
    other = edges["target"].where(edges["source"] == gene, edges["source"])
    middle, names = pd.factorize(other)
    matrix = sparse.csr_matrix((np.ones(len(gene)), (place[gene].to_numpy(), middle)),
                               (len(place), len(names)))
    matrix.data[:] = 1
    return _squared(matrix)


def _known(known: pd.DataFrame, place: pd.Series) -> sparse.csr_matrix:
    """Which gene regulates which, 0 or 1, [regulators, genes], both over all genes."""
    ends = [place[known[end]].to_numpy() for end in ("source", "target")]
    matrix = sparse.csr_matrix((np.ones(len(known)), ends), (len(place), len(place)))
    matrix.data[:] = 1
    return matrix


def _weakened(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Weaken rows and columns by their links."""
    left, right = (np.asarray(matrix.sum(axis=axis)).ravel() for axis in (1, 0))
    left, right = (np.where(part > 0, np.maximum(part, 1) ** -DAMPING, 0) for part in (left, right))
    return (sparse.diags(left) @ matrix @ sparse.diags(right)).tocsr()


def _squared(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Join rows through columns, both weakened by their links; no row with itself."""
    weak = _weakened(matrix)
    joined = (weak @ weak.T).tolil()
    joined.setdiag(0)
    return joined.tocsr()


def _candidates(edges: pd.DataFrame, genes: list[str], kind: str) -> tuple[np.ndarray, np.ndarray]:
    place = pd.Index(genes)
    part = edges[edges["kind"] == kind]
    if kind == "tf-regulates-gene":
        return place.get_indexer(part["source"].unique()), np.arange(len(genes))
    ends = [part.loc[part["name"] == word, "source"].unique() for word in ("ligand", "receptor")]
    return place.get_indexer(ends[0]), place.get_indexer(ends[1])
