"""What signals are made of: groups of cells, ligand-receptor pairs of liana, what is expressed.

liana stops with a traceback where genes are of another species or groups have odd names. Here
groups get numbers before liana sees them, and what cannot be tested has a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate, genes
from cellvq.markers import cut
from cellvq.signalnull import Averages

if TYPE_CHECKING:
    from anndata import AnnData

ADDRESS = r"\D*\d+(\.\d+)*"
"""How nested codes are written; only these have parents."""


@dataclass(frozen=True)
class Prepared:
    """Cells of groups that are large enough, of the genes that a list of pairs names."""

    cells: AnnData
    """Log-normalised; ``obs`` has ``group``, a category of numbers written as text, and ``depth``,
    counts over all genes."""
    names: np.ndarray
    """Name of each group, [groups]."""
    sizes: np.ndarray
    """Cells of each group, [groups]."""
    kept: np.ndarray
    """Which of the cells that were given these are, bool."""
    pairs: pd.DataFrame
    """Pairs of the list that can be tested, with ``ligand`` and ``receptor``."""
    resource: str
    """Name of liana's list of pairs."""
    note: str
    """What was changed to keep the tests few, for people; empty where nothing was."""

    @property
    def number(self) -> np.ndarray:
        """Number of the group of each cell, [cells]."""
        return self.cells.obs["group"].cat.codes.to_numpy().astype(int)


def prepare(
    cells: AnnData, groupby: str, *, resource: str | None = None, min_fraction: float = 0.1,
    min_cells: int = 5, most_groups: int = 64, groups: int = 2,
) -> Prepared | str:
    """Get cells ready for tests of ligand-receptor pairs, or say why there is none.

    Args:
        cells: cells with raw counts and gene symbols.
        groupby: column of ``obs`` with the groups, such as codes.
        resource: liana's list of pairs; None: of the species that the gene names look like.
        min_fraction: share of a group's cells that express a gene, below which it is not there.
        min_cells: smaller groups are left out.
        most_groups: more groups are replaced by their parents, or by the largest of them where
            they have none.
        groups: how many groups there must be.

    Raises:
        InputError: a column or a list of pairs does not exist, or a number cannot be.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> found = prepare(simulate_cells(cells=200), "cell_type")
        >>> found.resource, found.names.tolist()[:2], len(found.pairs) > 5
        ('consensus', ['type_1', 'type_2'], True)
    """
    if groupby not in cells.obs:
        raise InputError(f"obs has no column {groupby!r}; there are {', '.join(cells.obs)}")
    if most_groups < 2:
        raise InputError(f"most_groups is {most_groups}; use 2 or more")
    group = cells.obs[groupby].astype(object).where(evaluate.labelled(cells.obs[groupby]))
    group = group.map(str, na_action="ignore")
    group, note = _fewer(group, min_cells, most_groups)
    sizes = group.value_counts()
    names = np.array(sorted(sizes.index[sizes >= min_cells]), dtype=object)
    if len(names) < groups:
        few = "fewer than two codes have" if groups == 2 else "no code has"
        return f"{few} {min_cells} cells"
    resource = resource or resource_for(cells)
    pairs = _listed(resource)
    kept = group.isin(names).to_numpy()
    work = _normalised(cells, kept, pairs)
    work.obs["group"] = pd.Categorical.from_codes(
        pd.Index(names).get_indexer(group[kept]), [f"{n:04d}" for n in range(len(names))])
    known, usable = _expressed(work, pairs, min_fraction)
    if not known.any():
        return _why_none(cells, resource, len(pairs))
    if not usable.any():
        return (f"{known.sum()} of {len(known)} ligand-receptor pairs ({resource}) are among the "
                f"genes, and none is expressed in {min_fraction:.0%} of the cells of two codes")
    pairs = pairs[usable].reset_index(drop=True)
    used = sorted(set("_".join([*pairs["ligand"], *pairs["receptor"]]).split("_")))
    return Prepared(work[:, used].copy(), names, sizes[names].to_numpy(), kept, pairs, resource,
                    note)


def resource_for(cells: AnnData) -> str:
    """Name liana's list of pairs for the species of the cells: ``consensus`` or ``mouseconsensus``.

    What ``uns["organism"]`` says counts for more than how the names look.

    Example:
        >>> from anndata import AnnData
        >>> resource_for(AnnData(np.ones((1, 2)), var=pd.DataFrame(index=["Actb", "Gapdh"])))
        'mouseconsensus'
    """
    told = str(cells.uns.get("organism", "")).lower()
    if told:
        return "mouseconsensus" if "mouse" in told or "mus musculus" in told else "consensus"
    return "mouseconsensus" if genes.describe_names(cells.var_names)[1] == "mouse" else "consensus"


def found_rows(prepared: Prepared, min_fraction: float) -> pd.DataFrame:
    """List the rows that liana would test, with CellPhoneDB's statistic.

    liana joins tables for every two groups, which takes a minute for 64 of them; the same rows come
    out of a few products here, and a test holds them to liana's.

    Args:
        prepared: :func:`prepare`.
        min_fraction: both genes are expressed in this share of their group.

    Returns:
        One row a pair of groups and genes: ``source``, ``target`` (int, numbers of groups),
        ``ligand``, ``receptor`` (str, the subunit with the lowest mean stands for a complex),
        ``ligand_complex``, ``receptor_complex`` (str), ``lr_means`` (mean of both means).
    """
    number, groups = prepared.number, len(prepared.names)
    means = Averages(prepared.cells.X, number, groups).means()
    fraction = Averages(prepared.cells.X > 0, number, groups).means()
    ends = [_weakest(prepared.cells.var_names, means, fraction, prepared.pairs[end])
            for end in ("ligand", "receptor")]
    expressed = [least >= min_fraction - 1e-9 for _, least, _ in ends]  # 7 of 70 are a tenth
    found = []
    for source in range(groups):  # all at once would be groups x groups x pairs
        target, pair = np.nonzero(expressed[0][source] & expressed[1])
        found.append(np.stack([np.full(len(pair), source), target, pair]))
    source, target, pair = np.concatenate(found, axis=1)
    pairs = prepared.pairs.iloc[pair].reset_index(drop=True)
    return pd.DataFrame({
        "source": source, "target": target,
        "ligand": ends[0][0][source, pair], "receptor": ends[1][0][target, pair],
        "ligand_complex": pairs["ligand"], "receptor_complex": pairs["receptor"],
        "lr_means": (ends[0][2][source, pair] + ends[1][2][target, pair]) / 2,
    })


def _weakest(
    names: pd.Index, means: np.ndarray, fraction: np.ndarray, complexes: pd.Series
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subunit of each complex with the lowest mean, least fraction, that mean, [groups, pairs]."""
    units = [complex_.split("_") for complex_ in complexes]
    longest = max(map(len, units))
    place = names.get_indexer(np.array([(part * longest)[:longest] for part in units]).ravel())
    place = place.reshape(len(units), longest)
    lowest = means[:, place].argmin(axis=2)
    chosen = np.take_along_axis(np.broadcast_to(place, (len(means), *place.shape)),
                                lowest[:, :, None], 2)[:, :, 0]
    return (names.to_numpy(object)[chosen], fraction[:, place].min(axis=2),
            np.take_along_axis(means, chosen, 1))


def parts(prepared: Prepared, at_once: int = 2_000_000) -> list[pd.DataFrame]:
    """Cut the pairs into parts of which liana makes so many rows at once, which bounds its memory.

    Args:
        prepared: :func:`prepare`.
        at_once: rows, before liana leaves out what is not expressed.
    """
    step = max(at_once // len(prepared.names) ** 2, 1)
    pairs = prepared.pairs
    return [pairs[first : first + step].reset_index(drop=True)
            for first in range(0, len(pairs), step)]


def empty(columns: dict[str, type], reason: str) -> pd.DataFrame:
    """Make a table without rows that says why."""
    table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    table.attrs["reason"] = reason
    return table


def _fewer(group: pd.Series, min_cells: int, most: int) -> tuple[pd.Series, str]:
    """Groups that are few enough: parents of codes, or else the largest groups."""
    sizes = group.value_counts()
    large = sizes.index[sizes >= min_cells]
    if len(large) <= most:
        return group, ""
    start = f"{len(large)} groups have {min_cells} cells, more than {most}"
    names = pd.Series(large)
    if names.str.fullmatch(ADDRESS).all():
        for depth in range(names.str.count(r"\.").max(), 0, -1):
            parents = cut(group, depth)
            if 1 < (count := parents.nunique()) <= most:
                return parents, (f"{start}: signals are between their {count} parents, the first "
                                 f"{depth} part{'s' * (depth > 1)} of the codes")
    kept = group.isin(large[:most])
    return group.where(kept), f"{start}: signals are between the {most} largest"


def _listed(resource: str) -> pd.DataFrame:
    import liana

    known = list(liana.rs.show_resources())
    if resource not in known:
        raise InputError(f"liana has no list of pairs {resource!r}; there are {', '.join(known)}")
    return liana.rs.select_resource(resource).drop_duplicates(ignore_index=True)


def _normalised(cells: AnnData, kept: np.ndarray, pairs: pd.DataFrame) -> AnnData:
    """Log-normalised cells of the genes that the pairs name; depths are over all genes."""
    from anndata import AnnData
    from anndata.utils import make_index_unique

    counts, _ = genes.find_counts(cells)
    depth = genes.sequencing_depth(cells, counts)
    names = make_index_unique(cells.var_names.astype(str))
    named = names.isin(set("_".join([*pairs["ligand"], *pairs["receptor"]]).split("_")))
    depth = np.asarray(depth, dtype=float)[kept]
    values = evaluate.log_normalise(csr_matrix(counts)[kept][:, named], depth)
    index = [str(n) for n in range(len(depth))]  # names of cells may stand twice
    return AnnData(csr_matrix(values), obs=pd.DataFrame({"depth": depth}, index),
                   var=pd.DataFrame(index=names[named]))


def _expressed(
    work: AnnData, pairs: pd.DataFrame, min_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose genes are all here, and those that some group expresses at either end."""
    group = pd.get_dummies(work.obs["group"], dtype=float, sparse=True).sparse.to_coo().T.tocsr()
    fraction = (group @ (work.X > 0)).toarray() / np.asarray(group.sum(axis=1))
    expressed = pd.DataFrame(fraction >= min_fraction, columns=work.var_names)
    genes_here = set(work.var_names)
    units = {end: end.split("_") for end in {*pairs["ligand"], *pairs["receptor"]}}
    here = {end: genes_here.issuperset(names) for end, names in units.items()}
    used = {end: here[end] and expressed[names].all(axis=1).any() for end, names in units.items()}
    known, usable = (
        (pairs["ligand"].map(ends) & pairs["receptor"].map(ends)).to_numpy(bool)
        for ends in (here, used)
    )
    return known, usable & np.asarray(fraction.sum() > 0)


def _why_none(cells: AnnData, resource: str, listed: int) -> str:
    kind, species = genes.describe_names(cells.var_names)
    start = f"0 of {listed} ligand-receptor pairs ({resource}) are among the genes"
    if kind != "symbols":
        return f"{start}: they are named by {kind}, and the pairs by gene symbols"
    if species == "mouse" and not resource.startswith("mouse"):
        return f"{start}, which look like those of mouse: use the resource mouseconsensus"
    return f"{start} ({genes.some(cells.var_names)})"
