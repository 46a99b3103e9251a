"""Signals between neighbours in a tissue: do ligand and receptor stand side by side?

Tried on simulated tissue alone: no section with positions and raw counts was at hand. Neighbours
come from ``liana.ut.spatial_neighbors`` and Moran's R of each pair of genes from
``liana.mt.bivariate`` (doi 10.1038/s41556-024-01469-w).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate
from cellvq.signalnull import ENOUGH, Averages, Ends, orders, shuffled_p
from cellvq.signalpairs import Prepared, empty, found_rows, prepare
from cellvq.signals import rows_of
from cellvq.simulate import simulate_cells, truth

if TYPE_CHECKING:
    from anndata import AnnData

POSITIONS = "spatial"
"""Where ``obsm`` has the positions."""
COLUMNS = {
    "source": str, "target": str, "ligand": str, "receptor": str, "effect": float,
    "contacts": int, "n_cells": int, "p": float, "fdr": float, "morans_r": float,
    "morans_p": float, "null": str, "evidence": str,
}
ANYWHERE = "positions shuffled over all cells"
WITHIN = "positions shuffled over the cells of each code"
TINY = 1e-3
"""Added to sums of products, which may be 0, before their logarithm."""
AT_ONCE = 4_000_000
"""Products (contacts x rows) that are held at once, which bounds the memory."""


def spatial_communication(
    cells: AnnData,
    groupby: str = "cellvq_code",
    *,
    within_codes: bool = True,
    neighbours: int = 8,
    permutations: int = 10_000,
    seed: int = 0,
    resource: str | None = None,
    min_fraction: float = 0.1,
    min_cells: int = 10,
    min_contacts: int = 20,
    most_groups: int = 64,
    enough: int = ENOUGH,
) -> pd.DataFrame:
    """Find ligand-receptor pairs that neighbouring cells of two codes have more than by chance.

    The statistic is the product of the ligand's expression in a cell and the receptor's in its
    neighbour, summed over all contacts of two codes. The null shuffles positions. Over all cells it
    asks whether codes with the genes are neighbours at all. Within codes it keeps which codes are
    neighbours, and asks whether the very cells with ligand and receptor stand side by side.

    Args:
        cells: cells with raw counts, gene symbols and ``obsm["spatial"]``, [cells, 2 or 3].
        groupby: column of ``obs`` with the codes.
        within_codes: whether positions are shuffled within codes.
        neighbours: nearest cells that a cell is in contact with.
        permutations: shuffles; p is (shuffles at least as large + 1) / (permutations + 1).
        seed: seed of the shuffles.
        resource: see :func:`cellvq.signals.communication`.
        min_fraction: both genes are expressed in this share of their code.
        min_cells: smaller codes are left out.
        min_contacts: pairs of codes with fewer contacts are not tested.
        most_groups: see :func:`cellvq.signals.communication`.
        enough: see :func:`cellvq.signals.communication`.

    Returns:
        One row a tested pair of codes and genes: ``source`` (code with the ligand), ``target``
        (code of the neighbours), ``ligand``, ``receptor``, ``effect`` (log2 of the observed to the
        mean sum under the null), ``contacts`` (int, of the two codes), ``n_cells`` (of both codes),
        ``p``, ``fdr`` (over all rows), ``morans_r``, ``morans_p`` (liana's, of the pair of genes
        over all cells, by the normal formula), ``null``, ``evidence``. Without rows
        ``attrs["reason"]`` says why.

    Raises:
        InputError: positions are no numbers, a column does not exist, or a number cannot be.

    Example:
        >>> tissue = simulated_tissue(cells=300, seed=1)
        >>> table = spatial_communication(tissue, "cell_type", permutations=50)
        >>> list(table)[:4], len(table) > 10
        (['source', 'target', 'ligand', 'receptor'], True)
    """
    if permutations < 1 or neighbours < 1:
        raise InputError(f"permutations is {permutations} and neighbours is {neighbours}; use 1 or "
                         "more")
    if POSITIONS not in cells.obsm:
        return empty(COLUMNS, f"obsm has no {POSITIONS!r}: the cells have no positions")
    places = np.asarray(cells.obsm[POSITIONS])
    if places.ndim != 2 or not np.issubdtype(places.dtype, np.number) or not (
            np.isfinite(places).all()):
        raise InputError(f"obsm[{POSITIONS!r}] has positions that are missing or no numbers; leave "
                         "out cells without one")
    made = prepare(cells, groupby, resource=resource, min_fraction=min_fraction,
                   min_cells=min_cells, most_groups=most_groups)
    if isinstance(made, str):
        return empty(COLUMNS, made)
    found = found_rows(made, min_fraction)
    made.cells.obsm[POSITIONS] = places[made.kept].astype(float)
    contacts = _contacts(made, neighbours)
    number, groups = made.number, len(made.names)
    pair = number[contacts[0]] * groups + number[contacts[1]]
    of_pair = np.bincount(pair, minlength=groups**2)
    near = of_pair[found["source"] * groups + found["target"]] >= min_contacts
    found = found[near].reset_index(drop=True)
    if found.empty:
        return empty(COLUMNS, "no two codes with ligand and receptor have "
                              f"{min_contacts} contacts")
    ends, values = rows_of(made, found)
    sums = _OfContacts(values, number, contacts, ends)
    p = shuffled_p(sums, orders(len(number), number if within_codes else None, permutations, seed),
                   enough=enough, rounding=1e-6)
    effect = np.log2((sums.values() + TINY) / (sums.expected(within=within_codes) + TINY))
    table = pd.DataFrame({
        "source": made.names[ends.source], "target": made.names[ends.target],
        "ligand": found["ligand_complex"], "receptor": found["receptor_complex"],
        "effect": effect, "contacts": of_pair[ends.source * groups + ends.target],
        "n_cells": made.sizes[ends.source] + np.where(
            ends.source == ends.target, 0, made.sizes[ends.target]),
        "p": p, "fdr": evaluate.false_discovery_rate(p),
        "null": WITHIN if within_codes else ANYWHERE,
        "evidence": f"cellvq {version('cellvq')}, liana {version('liana')}, {made.resource}, "
                    f"{neighbours} neighbours, {permutations} shuffles",
    })
    table = table.merge(_morans(made), on=["ligand", "receptor"], how="left")
    table = table.sort_values(["p", "effect"], ascending=[True, False], ignore_index=True)
    if made.note:
        table.attrs["note"] = made.note
    return table[list(COLUMNS)]


def simulated_tissue(cells: int = 900, *, talk: str = "cells", seed: int = 0) -> AnnData:
    """Simulate cells with positions and one planted signal between neighbours.

    Positions are uniform in a square of side 1. The first planted pair of
    :func:`cellvq.simulate.simulate_cells` talks: its receiving cells stand beside cells that send.

    Args:
        cells: number of cells.
        talk: ``cells``: receiving cells with much receptor stand beside cells with much ligand;
            ``codes``: the two cell types stand side by side, whatever a cell expresses;
            ``none``: every position is chance.
        seed: every number follows from it.

    Raises:
        InputError: talk is another word.

    Example:
        >>> tissue = simulated_tissue(cells=200)
        >>> tissue.obsm["spatial"].shape, list(tissue.uns["neighbours"])
        ((200, 2), ['source', 'target', 'ligand', 'receptor'])
    """
    if talk not in ("cells", "codes", "none"):
        raise InputError(f"talk is {talk!r}; use cells, codes or none")
    made = simulate_cells(cells=cells, cell_types=4, pairs=4, seed=seed)
    pair = truth(made)["communication"].iloc[0]
    rng = np.random.default_rng(seed)
    places = rng.random((cells, 2))
    if talk != "none":
        kind = made.obs["cell_type"].astype(str).to_numpy()
        source, target = (np.flatnonzero(kind == pair[end]) for end in ("source", "target"))
        if talk == "cells":  # both in the order of their gene, so that much stands beside much
            depth = np.asarray(made.X.sum(axis=1)).ravel()
            ligand, receptor = (made[:, pair[end]].X.toarray().ravel() / depth
                                for end in ("ligand", "receptor"))
            source = source[np.argsort(ligand[source], kind="stable")]
            target = target[np.argsort(receptor[target], kind="stable")]
        partner = source[np.linspace(0, len(source) - 1, len(target)).round().astype(int)]
        places[target] = places[partner] + rng.normal(0, 0.25 / np.sqrt(cells), (len(target), 2))
    made.obsm[POSITIONS] = places
    made.uns["neighbours"] = pair.to_dict() if talk != "none" else {}
    return made


def _contacts(made: Prepared, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells and their nearest cells by liana, numbers, [contacts] each."""
    import liana

    cells = made.cells.n_obs
    places = made.cells.obsm[POSITIONS]
    wide = float(np.ptp(places, axis=0).max()) or 1.0  # so wide that the number alone decides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight = csr_matrix(liana.ut.spatial_neighbors(
            made.cells, bandwidth=10 * wide, cutoff=0.0, set_diag=False, inplace=False,
            max_neighbours=min(neighbours, cells - 1), spatial_key=POSITIONS))
    made.cells.obsp["spatial_connectivities"] = csr_matrix(
        (np.ones(weight.nnz, np.float32), weight.indices, weight.indptr), weight.shape)
    return weight.nonzero()


@dataclass(frozen=True)
class _OfContacts:
    """Sum over contacts of the ligand in a cell by the receptor in its neighbour."""

    values_of: csr_matrix
    """[cells, genes]."""
    number: np.ndarray
    """Group of each cell."""
    contacts: tuple[np.ndarray, np.ndarray]
    """Cell and neighbour."""
    ends: Ends

    def values(self, order: np.ndarray | None = None) -> np.ndarray:
        """Sums, [rows]; cells take their code along, so that contacts may change their codes."""
        here, there = self.contacts if order is None else (order[end] for end in self.contacts)
        groups = self.number.max() + 1
        code = self.number[here] * groups + self.number[there]
        one_hot = csr_matrix((np.ones(len(code), np.float32), (code, np.arange(len(code)))),
                             (groups**2, len(code)))
        ligand, receptor = self._dense
        step = max(AT_ONCE // len(code), 1)
        found = np.hstack([
            one_hot @ (ligand[here, first : first + step] * receptor[there, first : first + step])
            for first in range(0, ligand.shape[1], step)])
        return found[self.ends.source * groups + self.ends.target, self._pairs[1]].astype(float)

    def expected(self, *, within: bool) -> np.ndarray:
        """Mean of the sums over all shuffles, [rows]."""
        ends, sizes, (pairs, of_row) = self.ends, np.bincount(self.number), self._pairs
        ligand, receptor = ends.of(Averages(self.values_of, self.number).means())
        products = self.values_of[:, pairs[0]].multiply(self.values_of[:, pairs[1]])
        own = Averages(csr_matrix(products), self.number).means()[ends.source, of_row]
        n, m = sizes[ends.source], sizes[ends.target]
        same = ends.source == ends.target  # a cell is no neighbour of its own
        total = n * m * ligand * receptor - same * n * own
        here, there = (self.number[end] for end in self.contacts)
        of_pair = np.bincount(here * len(sizes) + there, minlength=len(sizes) ** 2)
        if within:
            return of_pair[ends.source * len(sizes) + ends.target] * total / (n * (m - same))
        return len(here) * total / (len(self.number) * (len(self.number) - 1))

    def only(self, rows: np.ndarray) -> _OfContacts:
        """Keep some rows, [rows] bool."""
        return replace(self, ends=self.ends.only(rows))

    @cached_property
    def _dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Values of ligands and of receptors, [cells, pairs] each."""
        return tuple(self.values_of[:, end].astype(np.float32).toarray() for end in self._pairs[0])

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of genes, [2, pairs], and which each row has."""
        pairs, of_row = np.unique(np.stack([self.ends.ligand, self.ends.receptor]), axis=1,
                                  return_inverse=True)
        return pairs, of_row.ravel()


def _morans(made: Prepared) -> pd.DataFrame:
    """Moran's R of every pair of genes over all cells, by liana."""
    import liana

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = liana.mt.bivariate(
            made.cells, resource=made.pairs.copy(), local_name=None, global_name="morans",
            n_perms=0, nz_prop=0.0, remove_self_interactions=False, use_raw=False, verbose=False,
            x_name="ligand", y_name="receptor")
    return found.rename(columns={"morans": "morans_r", "morans_pvals": "morans_p"})[
        ["ligand", "receptor", "morans_r", "morans_p"]]
