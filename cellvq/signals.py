"""Signals between codes: ligand-receptor pairs by liana, with shuffles enough for many tests."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate
from cellvq.signalmoments import all_shuffles_p
from cellvq.signalnull import ENOUGH, Averages, Ends, OfMeans, orders, shuffled_p
from cellvq.signalpairs import Prepared, empty, found_rows, parts, prepare

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = {
    "source": str, "target": str, "ligand": str, "receptor": str, "expression": float,
    "effect": float, "n_cells": int, "n_donors": int, "p": float, "fdr": float, "null": str,
    "stability": float, "magnitude_rank": float, "specificity_rank": float, "evidence": str,
}
FEW = 100
"""Cells of a code below which the closed form is too light in its tail (for codes of 22 cells,
random ones had p below 0.001 twice as often as they should), so that shuffles are drawn as well."""
DRAWN = 10_000
"""Shuffles that are drawn for codes of few cells."""
SPECIFICITY = {"p": True, "scaled_weight": False, "lr_logfc": False, "spec_weight": False}
"""Scores of how specific a signal is, and whether a small one is the better."""
MAGNITUDE = {"lr_means": False, "expr_prod": False, "lrscore": False}
"""Scores of how strong a signal is, likewise."""
METHODS = "CellPhoneDB, Connectome, log2FC, NATMI, SingleCellSignalR"
"""Methods whose scores the consensus joins, as liana's own does."""
ENDS = ["source", "target", "ligand_complex", "receptor_complex"]


def communication(
    cells: AnnData,
    groupby: str = "cellvq_code",
    *,
    donor: str | None = None,
    permutations: int | None = None,
    seed: int = 0,
    resource: str | None = None,
    min_fraction: float = 0.1,
    min_cells: int = 5,
    most_groups: int = 64,
    consensus: bool = True,
    enough: int = ENOUGH,
) -> pd.DataFrame:
    """Find ligand-receptor pairs through which codes may talk: a test, and a consensus of methods.

    The statistic is the mean of the ligand's expression in one code and the receptor's in the
    other; the null shuffles codes over cells (CellPhoneDB: doi 10.1038/s41596-020-0292-x, liana:
    10.1038/s41467-022-30755-0), within donors where these are named. Expression at both ends is not
    contact: each row is a hypothesis. Codes were learnt from the same genes, so that p-values rank
    signals and prove nothing about new cells.

    liana gives the pairs, the filter and the scores of its methods. Thousands of tests need finer
    p-values than shuffles can give, so by default all shuffles are taken at once, in closed form
    (:mod:`cellvq.signalmoments`), and where a code has fewer than ``FEW`` cells the larger of that
    and of drawn shuffles; with ``permutations`` all are drawn, in liana's order. Ranks of
    the methods are joined by robust rank aggregation (doi 10.1093/bioinformatics/btr709), as in
    ``liana.mt.rank_aggregate``; they order signals and are no p-values. Each score is ranked once,
    as liana does from 2.0 on (1.10 turns ``magnitude_rank`` of one score around:
    github.com/scverse/liana/pull/261).

    Args:
        cells: cells with raw counts and gene symbols.
        groupby: column of ``obs`` with the codes.
        donor: column of ``obs`` with the donor of each cell.
        permutations: shuffles, whose p is (shuffles at least as large + 1) / (permutations + 1);
            None: all of them, in closed form.
        seed: seed of the shuffles.
        resource: liana's list of pairs, such as ``consensus`` (human) or ``mouseconsensus``; None:
            which of the two the gene names look like.
        min_fraction: both genes are expressed in this share of their code, or the pair is not
            tested there.
        min_cells: smaller codes are left out.
        most_groups: more codes than this are replaced by their parents, the finest that are few
            enough; ``attrs["note"]`` then says so.
        consensus: whether to join the ranks of liana's methods, which doubles liana's time.
        enough: a row ends when so many shuffles were as large, and p is this number by the
            shuffles until then.

    Returns:
        One row a tested pair of codes and genes: ``source`` (code with the ligand), ``target``
        (code with the receptor), ``ligand``, ``receptor`` (str; subunits joined by ``_``),
        ``expression`` (mean of both, log1p of counts per 10,000), ``effect`` (log2 of expression
        to its mean under the null), ``n_cells`` (of both codes), ``n_donors`` (who express both in
        the least share), ``p``, ``fdr`` (over all rows), ``null``, ``stability`` (share of donors
        with both codes whose own expression is above its mean under the null, NaN without donors),
        ``magnitude_rank``, ``specificity_rank`` (0 to 1, smaller is stronger, NaN without the
        consensus), ``evidence``. Without any pair the table is empty and ``attrs["reason"]`` says
        why.

    Raises:
        InputError: a column or a list of pairs does not exist, or a number cannot be.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=300, seed=1)
        >>> table = communication(cells, "cell_type", consensus=False)
        >>> bool(table.head(6)["p"].max() < 0.01), list(table)[:4]
        (True, ['source', 'target', 'ligand', 'receptor'])
    """
    if (permutations is not None and permutations < 1) or enough < 1:
        raise InputError(f"permutations is {permutations} and enough is {enough}; use 1 or more")
    if donor is not None and donor not in cells.obs:
        raise InputError(f"obs has no column {donor!r}; there are {', '.join(cells.obs)}")
    made = prepare(cells, groupby, resource=resource, min_fraction=min_fraction,
                   min_cells=min_cells, most_groups=most_groups)
    if isinstance(made, str):
        return empty(COLUMNS, made)
    strata = donors = None
    if donor is not None:
        known = evaluate.labelled(cells.obs[donor])[made.kept]
        donors = pd.factorize(cells.obs[donor][made.kept].astype(str).where(known))[0]
        strata = donors + 1  # cells without a donor are a stratum too
    found = _scores(made, min_fraction, min_cells) if consensus else found_rows(made, min_fraction)
    if found.empty:
        return empty(COLUMNS, "no ligand and receptor are expressed in "
                              f"{min_fraction:.0%} of the cells of two codes")
    ends, values = rows_of(made, found)
    def drawn(rows: Ends, count: int) -> np.ndarray:
        return shuffled_p(OfMeans(Averages(values, made.number), rows, _mean_of_both),
                          orders(made.cells.n_obs, strata, count, seed), enough=enough)

    if permutations is None:
        how, p = "all shuffles", all_shuffles_p(values, made.number, ends, strata)
        few = np.minimum(made.sizes[ends.source], made.sizes[ends.target]) < FEW
        if few.any():
            p[few] = np.maximum(p[few], drawn(ends.only(few), DRAWN))
            how += f", {DRAWN} drawn where a code has fewer than {FEW} cells"
        found["p"] = p
    else:
        how, found["p"] = f"{permutations} shuffles", drawn(ends, permutations)
    expected = _mean_of_both(_expected(values, made.number, strata), ends)
    n_donors, stability = _over_donors(values, made, ends, donors, min_fraction, min_cells)
    table = pd.DataFrame({
        "source": made.names[ends.source],
        "target": made.names[ends.target],
        "ligand": found["ligand_complex"],
        "receptor": found["receptor_complex"],
        "expression": found["lr_means"],
        "effect": np.log2(found["lr_means"] / expected),
        "n_cells": made.sizes[ends.source] + np.where(
            ends.source == ends.target, 0, made.sizes[ends.target]),
        "n_donors": n_donors,
        "p": found["p"],
        "fdr": evaluate.false_discovery_rate(found["p"]),
        "null": "codes shuffled over cells" + (", sizes kept" if donor is None else
                                               " of each donor, sizes kept"),
        "stability": stability,
        "magnitude_rank": join_ranks(found, MAGNITUDE) if consensus else np.nan,
        "specificity_rank": join_ranks(found, SPECIFICITY) if consensus else np.nan,
        "evidence": f"liana {version('liana')} {METHODS if consensus else 'CellPhoneDB'}, "
                    f"{made.resource}, {how}",
    })
    table = table.sort_values(["p", "effect"], ascending=[True, False], ignore_index=True)
    if made.note:
        table.attrs["note"] = made.note
    return table


def rows_of(prepared: Prepared, found: pd.DataFrame) -> tuple[Ends, csr_matrix]:
    """Turn rows of :func:`cellvq.signalpairs.found_rows` into numbers, and values of their genes.

    Returns:
        The rows, and log1p of counts per 10,000 of the genes that they name, [cells, genes].
    """
    names = pd.Index(sorted({*found["ligand"], *found["receptor"]}))
    ends = Ends(found["source"].to_numpy(int), found["target"].to_numpy(int),
                names.get_indexer(found["ligand"]), names.get_indexer(found["receptor"]))
    return ends, csr_matrix(prepared.cells[:, names].X, dtype=np.float64)


def join_ranks(scores: pd.DataFrame, best_is_small: dict[str, bool]) -> np.ndarray:
    """Join the ranks of several scores: is a row nearer to the top than by chance?

    Robust rank aggregation (doi 10.1093/bioinformatics/btr709). Scores of one pair of genes are no
    independent witnesses, so that the numbers order rows and are no p-values.

    Args:
        scores: one row a signal, one column a score.
        best_is_small: columns, and whether small values are the better.

    Returns:
        0 to 1, small for rows that several scores place high, [rows].

    Example:
        >>> scores = pd.DataFrame({"a": [9.0, 5.0, 1.0], "b": [0.1, 0.5, 0.9]})
        >>> join_ranks(scores, {"a": False, "b": True}).round(2).tolist()
        [0.22, 0.89, 1.0]
    """
    signed = scores[list(best_is_small)] * np.where(list(best_is_small.values()), 1, -1)
    rank = np.apply_along_axis(stats.rankdata, 0, signed.to_numpy())
    rank = np.sort(rank / rank.max(axis=0), axis=1)
    place = np.arange(1, rank.shape[1] + 1)
    by_chance = stats.beta.cdf(rank, place, rank.shape[1] + 1 - place)
    return np.clip(by_chance.min(axis=1) * rank.shape[1], 0, 1)


def _scores(made: Prepared, min_fraction: float, min_cells: int) -> pd.DataFrame:
    """Rows of :func:`cellvq.signalpairs.found_rows` with the scores of all methods.

    Ranks are joined here, over all rows: liana would rank within the part of the pairs that it
    gets. Its single shuffle is thrown away, as the p-values come from ours.
    """
    import liana

    with warnings.catch_warnings():  # about liana's own copies of the cells
        warnings.simplefilter("ignore")
        found = [liana.mt.rank_aggregate(
            made.cells, "group", resource=part, expr_prop=min_fraction, min_cells=min_cells,
            n_perms=1, use_raw=False, inplace=False, verbose=False,
        ) for part in parts(made)]
    table = pd.concat(found, ignore_index=True).astype({"source": int, "target": int})
    table = table[[*ENDS, *MAGNITUDE, *(name for name in SPECIFICITY if name != "p")]]
    means = Averages(made.cells.X, made.number).means()
    return table.assign(
        lr_means=table["lr_means"].astype(float),
        ligand=_subunit(made, means, table["source"], table["ligand_complex"]),
        receptor=_subunit(made, means, table["target"], table["receptor_complex"]))


def _subunit(
    made: Prepared, means: np.ndarray, group: pd.Series, complexes: pd.Series
) -> np.ndarray:
    """The gene of each complex that its group expresses least, which stands for it, [rows]."""
    keys = pd.MultiIndex.from_arrays([group, complexes])
    wanted = keys.unique()
    units = pd.DataFrame({"group": wanted.get_level_values(0), "key": range(len(wanted)),
                          "gene": wanted.get_level_values(1).str.split("_")}).explode("gene")
    column = made.cells.var_names.get_indexer(units["gene"])
    units["mean"] = means[units["group"].to_numpy(), column]
    least = units.sort_values(["key", "mean"], kind="stable").drop_duplicates("key")
    return least["gene"].to_numpy()[wanted.get_indexer(keys)]


def _mean_of_both(means: np.ndarray, ends: Ends) -> np.ndarray:
    """CellPhoneDB's statistic, [rows]."""
    ligand, receptor = ends.of(means)
    return (ligand + receptor) / 2


def _expected(values: csr_matrix, group: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """Means [groups, genes] under the null: those of the strata, as the group's cells have them."""
    strata = np.zeros(len(group), int) if strata is None else strata
    share = pd.crosstab(group, strata, normalize="index")
    return share.to_numpy() @ Averages(values, strata).means()[share.columns]


def _over_donors(
    values: csr_matrix, made: Prepared, ends: Ends, donors: np.ndarray | None,
    min_fraction: float, min_cells: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Donors who express both ends, and the share of donors above their own expectation."""
    rows = len(ends.source)
    if donors is None:
        return np.zeros(rows, int), np.full(rows, np.nan)
    express, above, both = np.zeros((3, rows), int)
    groups = len(made.names)
    for donor in range(donors.max() + 1):
        own = np.flatnonzero(donors == donor)
        part, group = values[own], made.number[own]
        enough = np.bincount(group, minlength=groups) >= min_cells
        there = enough[ends.source] & enough[ends.target]
        fraction = Averages(part > 0, group, groups).means()
        express += there & (np.minimum(*ends.of(fraction)) >= min_fraction)
        overall = np.broadcast_to(np.asarray(part.mean(axis=0)), fraction.shape)
        mine = _mean_of_both(Averages(part, group, groups).means(), ends)
        above += there & (mine > _mean_of_both(np.ascontiguousarray(overall), ends))
        both += there
    return express, np.where(both > 0, above / np.maximum(both, 1), np.nan)
