"""Simulated cells in which every kind of finding of the knowledge graph is planted, or none is.

The simulator plants markers, programs, signals and a response to a condition. Here a change in the
number of cells and a change of signals are planted on top, and all of it is put into the words of
the graph: which rows of which table are true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import simulate
from cellvq.simulate import BYSTANDERS, HOUSEKEEPING

if TYPE_CHECKING:
    from anndata import AnnData

CODE = "cellvq_code"
CONDITIONS = ("control", "stimulated")
KINDS = {
    "code-marks-gene": ("code", "gene"),
    "code-talks-to-code": ("source", "target", "ligand", "receptor"),
    "code-changes-with-condition": ("code",),
    "gene-changes-in-code": ("code", "gene"),
    "talk-changes-with-condition": ("source", "target", "ligand", "receptor"),
    "tf-regulates-gene": ("regulator", "gene", "code"),
}
"""Kinds of findings that are planted, and the columns that name one."""
LOST = 0.6
"""Share of the cells of a code that is taken away where its number is lowered, of the smaller of
two codes; of the other as many cells, so that the shares of further codes stay as they are."""
THINNED = 0.15
"""Share of the counts of a ligand that is left where a condition weakens a signal."""


@dataclass(frozen=True)
class Planted:
    """Cells, and what is true of them."""

    cells: AnnData
    """Raw counts; ``obs`` holds the planted types as ``cellvq_code``, ``donor``, ``condition``."""
    truth: dict[str, pd.DataFrame]
    """Of each of ``KINDS`` the true rows; without rows where nothing is planted."""
    regulators: tuple[str, ...]
    """Genes whose targets are asked for, three of programs (if there are any) and three others."""

    def is_true(self, kind: str, table: pd.DataFrame) -> np.ndarray:
        """Say which rows of a table of statistics are planted, bool [rows].

        Args:
            kind: one of ``KINDS``.
            table: has the columns that name a finding of this kind.
        """
        columns = list(KINDS[kind])
        wanted = set(self.truth[kind][columns].itertuples(index=False, name=None))
        rows = table[columns].astype(str).itertuples(index=False, name=None)
        return np.fromiter((row in wanted for row in rows), bool, len(table))


def plant(seed: int = 0, **sizes) -> Planted:
    """Simulate cells with findings of every kind, whose codes are the planted types.

    In the treated donors cells of one code are taken away, and in the other donors as many of a
    code of like size. Of every second signal the ligand's counts are thinned to 15 % in the treated
    cells of its source.

    Args:
        seed: every number follows from it.
        sizes: of :func:`cellvq.simulate.simulate_cells`, in place of 1,800 cells of five types and
            eight donors with twelve signals.

    Example:
        >>> made = plant(seed=1, cells=400)
        >>> {kind: len(table) for kind, table in made.truth.items()}["code-talks-to-code"]
        12
    """
    cells = simulate.simulate_cells(seed=seed, conditions=CONDITIONS, **_sizes(sizes))
    rng = np.random.default_rng([seed, 1])
    tables = simulate.truth(cells)
    weaker = tables["communication"].iloc[::2]
    _thin(cells, weaker, rng)
    cells, moved = _move(cells, rng)
    cells.obs[CODE] = cells.obs["cell_type"].astype(str)
    programs = tables["programs"]
    leaders = programs.groupby("program")["gene"].first().tolist()
    return Planted(cells, _truth(tables, weaker, moved, leaders, sorted(set(cells.obs[CODE]))),
                   (*leaders, *HOUSEKEEPING[:2], BYSTANDERS[0]))


def plant_nothing(seed: int = 0, *, shuffled: bool = False, **sizes) -> Planted:
    """Simulate cells of one condition without programs; half of the donors, by lot, are "treated".

    No gene, code or signal changes with such a condition, and no genes vary together.

    Args:
        seed: every number follows from it.
        shuffled: deal the codes to the cells anew, so that they also have no markers or signals.
        sizes: as in :func:`plant`.

    Example:
        >>> made = plant_nothing(seed=1, cells=400)
        >>> sum(len(table) for table in made.truth.values())
        0
    """
    options = _sizes(sizes) | {"programs": 0, "batches": 1}
    cells = simulate.simulate_cells(seed=seed, conditions=CONDITIONS[:1], **options)
    rng = np.random.default_rng([seed, 2])
    donors = rng.permutation(sorted(cells.obs["donor"].astype(str).unique()))
    treated = cells.obs["donor"].astype(str).isin(donors[: len(donors) // 2])
    cells.obs["condition"] = np.where(treated, *CONDITIONS[::-1])
    codes = cells.obs["cell_type"].astype(str).to_numpy(object)
    cells.obs[CODE] = rng.permutation(codes) if shuffled else codes
    nothing = {kind: pd.DataFrame(columns=list(names), dtype=object)
               for kind, names in KINDS.items()}
    return Planted(cells, nothing, (*HOUSEKEEPING[:3], *BYSTANDERS[:3]))


def planted_regulons(cells: AnnData) -> pd.DataFrame:
    """Give links that are as true of simulated cells as known regulation is of real ones.

    The first two markers of each planted type "regulate" its other markers.

    Args:
        cells: simulated cells.

    Returns:
        One row a link: ``regulator``, ``gene``, ``weight``, as of
        :func:`cellvq.knowledge.regulons`.

    Example:
        >>> len(planted_regulons(simulate.simulate_cells(cells=60, cell_types=2)))
        36
    """
    markers = simulate.truth(cells)["markers"]
    links = [(factor, gene) for _, part in markers.groupby("cell_type")
             for factor in part["gene"].head(2) for gene in part["gene"] if gene != factor]
    return pd.DataFrame(links, columns=["regulator", "gene"]).assign(weight=1.0)


def _sizes(given: dict) -> dict:
    return {"cells": 1800, "cell_types": 5, "donors": 8, "pairs": 12, "depth": 500.0} | given


def _thin(cells: AnnData, signals: pd.DataFrame, rng: np.random.Generator) -> None:
    """Leave a part of the ligand's counts in treated cells of its source, in place."""
    counts = cells.X.tolil()
    treated = (cells.obs["condition"] == CONDITIONS[1]).to_numpy()
    for row in signals.itertuples():
        rows = np.flatnonzero(treated & (cells.obs["cell_type"] == row.source).to_numpy())
        column = cells.var_names.get_loc(row.ligand)
        seen = counts[rows, column].toarray().ravel().astype(int)
        counts[rows, column] = rng.binomial(seen, THINNED)[:, None]
    cells.X = csr_matrix(counts, dtype=np.float32)
    cells.X.eliminate_zeros()


def _move(cells: AnnData, rng: np.random.Generator) -> tuple[AnnData, list[str]]:
    """Lower the number of cells of one code in each condition, two codes of like size."""
    sizes = cells.obs["cell_type"].value_counts()
    gaps = (sizes - sizes.shift(-1)).dropna()
    first = int(np.argmin(gaps))
    pair = sizes.iloc[first : first + 2]
    names = rng.permutation(pair.index.astype(str)).tolist()
    kept = np.ones(cells.n_obs, bool)
    for name, condition in zip(names, CONDITIONS, strict=True):
        here = ((cells.obs["cell_type"] == name) & (cells.obs["condition"] == condition)).to_numpy()
        kept[here] = rng.random(here.sum()) >= LOST * pair.min() / pair[name]
    return cells[kept].copy(), names


def _truth(
    tables: dict[str, pd.DataFrame], weaker: pd.DataFrame, moved: list[str], leaders: list[str],
    codes: list[str],
) -> dict[str, pd.DataFrame]:
    """Put what was planted into the words of the graph."""
    talks, changed = tables["communication"], tables["perturbation"]
    often = changed.groupby("gene")["cell_type"].transform("nunique")
    own = changed[often == 1]  # a gene that one type alone answers with is higher there
    marks = [tables["markers"], tables["lineages"], own,
             talks.rename(columns={"source": "cell_type", "ligand": "gene"}),
             talks.rename(columns={"target": "cell_type", "receptor": "gene"})]
    marks = pd.concat([part[["cell_type", "gene"]] for part in marks], ignore_index=True)
    thinned = weaker.rename(columns={"source": "cell_type", "ligand": "gene"})
    changes = pd.concat([changed[["cell_type", "gene"]], thinned[["cell_type", "gene"]]])
    program = dict(zip(tables["programs"]["gene"], tables["programs"]["program"], strict=True))
    links = [(leader, gene, code) for leader in leaders for gene in program
             if gene != leader and program[gene] == program[leader] for code in codes]
    named = {"cell_type": "code"}
    return {
        "code-marks-gene": marks.rename(columns=named).drop_duplicates(ignore_index=True),
        "code-talks-to-code": talks,
        "code-changes-with-condition": pd.DataFrame({"code": moved}),
        "gene-changes-in-code": changes.rename(columns=named).drop_duplicates(ignore_index=True),
        "talk-changes-with-condition": weaker,
        "tf-regulates-gene": pd.DataFrame(links, columns=["regulator", "gene", "code"]),
    }
