"""Between which regulators and genes, and over which cells, edges are looked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate, knowledge
from cellvq.genes import find_counts, sequencing_depth, some

if TYPE_CHECKING:
    from anndata import AnnData


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Cells, and the pairs of regulator and gene that may be an edge."""

    values: csr_matrix
    """log1p of counts per 10,000, float32 [cells, genes]."""
    genes: pd.Index
    """Names of the genes."""
    regulators: np.ndarray
    """Which of the genes are regulators, places [regulators]."""
    code: np.ndarray
    """Number of the code of each cell, [cells]."""
    names: np.ndarray
    """Name of each code."""
    donor: np.ndarray
    """Number of the donor of each cell, 0 for all where donors are not known, [cells]."""
    depth: np.ndarray
    """Total UMI counts of each cell, [cells]."""
    donor_known: bool
    """Whether donors are known."""
    finer: np.ndarray
    """Number of the finer code of each cell, whose means are taken off, 0 for all without."""

    def merged(self) -> Candidates:
        """Forget codes and donors: all cells are one state of one donor."""
        nothing = np.zeros(len(self.code), int)
        return dataclasses.replace(self, code=nothing, donor=nothing, finer=nothing,
                                   names=np.array(["all"]))

    def only(self, rows: np.ndarray, genes: np.ndarray) -> Candidates:
        """Keep some cells and genes, whose places are given in ascending order."""
        return dataclasses.replace(
            self, values=self.values[rows][:, genes], genes=self.genes[genes],
            regulators=np.flatnonzero(np.isin(genes, self.regulators)), code=self.code[rows],
            donor=self.donor[rows], depth=self.depth[rows], finer=self.finer[rows])

    def table(self, scores: np.ndarray) -> pd.DataFrame:
        """Lay scores [regulators, genes] out as rows; no gene regulates itself here.

        Returns:
            One row a pair: ``regulator``, ``gene`` (str), ``score``.
        """
        names = self.genes.to_numpy(object)
        table = pd.DataFrame({
            "regulator": np.repeat(names[self.regulators], len(names)),
            "gene": np.tile(names, len(self.regulators)),
            "score": np.asarray(scores, float).ravel(),
        })
        return table[table["regulator"] != table["gene"]].reset_index(drop=True)


def candidates(
    cells: AnnData,
    groupby: str | None = "cellvq_code",
    *,
    regulators: Sequence[str] | None = None,
    donor: str | None = None,
    finer: str | None = None,
    min_fraction: float = 0.05,
    min_cells: int = 50,
) -> Candidates:
    """Choose the cells and the genes between which edges are looked for.

    Args:
        cells: cells with raw counts and gene symbols.
        groupby: column of ``obs`` with the codes, such as ``cellvq_code`` or a coarser one; None:
            all cells are one state.
        regulators: names of the transcription factors; None: the regulators of
            :func:`cellvq.knowledge.regulons`.
        donor: column of ``obs`` with the donor of each cell; cells without one are left out.
        finer: column of ``obs`` with finer codes that have too few cells to be tested one by one;
            the differences between their means make no edge.
        min_fraction: share of the cells that express a gene, or it is left out.
        min_cells: smaller codes are left out.

    Raises:
        InputError: a column is absent, a share cannot be, or no cell, regulator or gene is left.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=300, seed=1)
        >>> made = candidates(cells, "cell_type", regulators=["STAT1", "IRF7"], min_cells=20)
        >>> len(made.regulators), len(made.names)
        (2, 6)
    """
    if not 0 <= min_fraction < 1:
        raise InputError(f"min_fraction is {min_fraction}; use a share such as 0.05")
    for column in filter(None, (groupby, donor, finer)):
        if column not in cells.obs:
            raise InputError(f"obs has no column {column!r}; there are {', '.join(cells.obs)}")
    if regulators is None:
        regulators = knowledge.regulons()["regulator"].unique()
    counts, _ = find_counts(cells)
    depth = sequencing_depth(cells, counts)
    label = pd.Series("all", cells.obs_names) if groupby is None else cells.obs[groupby]
    kept = evaluate.labelled(label) & (depth > 0)
    if donor:
        kept &= evaluate.labelled(cells.obs[donor])
    label = label.astype(str).to_numpy(object)
    size = pd.Series(label[kept]).value_counts()
    kept &= np.isin(label, size.index[size >= min_cells].to_numpy(object))
    if not kept.any():
        raise InputError(f"no code in obs[{groupby!r}] has {min_cells} cells; name a coarser "
                         "column, or lower min_cells")
    counts, depth = counts[kept], depth[kept]
    names = cells.var_names.astype(str)
    expressed = counts.getnnz(axis=0) >= max(min_fraction * counts.shape[0], 1)
    expressed &= ~names.duplicated()
    is_regulator = names[expressed].isin(list(regulators))
    if not is_regulator.any():
        raise InputError(
            f"none of the {len(regulators):,} regulators ({some(list(regulators))}) is expressed "
            f"in {min_fraction:.0%} of the cells, whose genes are {some(names)}; use gene symbols "
            "of the same species, or lower min_fraction")
    code, found = pd.factorize(label[kept], sort=True)
    donors = np.zeros(len(code), int)
    if donor:
        donors = pd.factorize(cells.obs[donor][kept].astype(str), sort=True)[0]
    small = np.zeros(len(code), int)
    if finer:
        small = pd.factorize(cells.obs[finer][kept].astype(str), sort=True)[0]
    values = evaluate.log_normalise(counts[:, np.flatnonzero(expressed)], depth)
    return Candidates(values, names[expressed], np.flatnonzero(is_regulator), code,
                      np.asarray(found, object), donors, depth, bool(donor), small)
