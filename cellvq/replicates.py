"""Train the same model again: other seeds, halves of the cells, halves of the donors.

What the runs say of the same cells is compared by :mod:`cellvq.stability`. k-means on PCA is put
through the same, so that a number has something to stand beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cellvq import InputError, encoding, evaluate, pretraining, stability, tasks
from cellvq.markers import CODE

if TYPE_CHECKING:
    from anndata import AnnData

SEEDS, HALVES, DONORS = "seeds", "halves of the cells", "halves of the donors"
KINDS = (SEEDS, HALVES, DONORS)
METHODS = ("CellVQ", tasks.KMEANS)


@dataclass(frozen=True)
class Run:
    """One training run of several that are to be compared."""

    name: str
    """What its column is called."""
    kind: str
    """What differs between the runs, one of ``KINDS``."""
    draw: int
    """Runs of one kind and draw are compared; those of ``seeds`` are of one draw."""
    seed: int
    """Seed of the training."""
    rows: np.ndarray | None
    """The cells that it is trained on; None for all."""


@dataclass(frozen=True)
class Replicates:
    """What several runs say of the same cells."""

    codes: pd.DataFrame
    """Code of each cell in each run, [cells, runs]; missing for cells without a code."""
    baseline: pd.DataFrame
    """Group of each cell by k-means on PCA with as many groups, treated alike, [cells, runs]."""
    runs: list[Run]
    """The runs, in the order of the columns."""

    def agreement(self, permutations: int = 100, seed: int = 0) -> pd.DataFrame:
        """Compare the runs of each kind, CellVQ's and those of the baseline.

        Returns:
            The table of :func:`cellvq.stability.agreement_table`, with ``kind`` and ``method``.
        """
        tables = []
        for kind in dict.fromkeys(run.kind for run in self.runs):
            pairs = [(one.name, other.name) for one, other in combinations(self.runs, 2)
                     if one.kind == other.kind == kind and one.draw == other.draw]
            for method, codes in zip(METHODS, (self.codes, self.baseline), strict=True):
                table = stability.agreement_table(codes, pairs, permutations=permutations,
                                                  seed=seed)
                tables.append(table.assign(kind=kind, method=method))
        return pd.concat(tables, ignore_index=True)


def plan(
    cells: AnnData, seeds: Sequence[int], *, draws: int = 1, donor: str = ""
) -> list[Run]:
    """Plan the runs: each seed, and two runs for each halving of the cells and of the donors.

    The two runs of a halving have other cells and another seed; all of them see the validation
    split of their own cells only. Cells without a known donor are in neither half of the donors.

    Args:
        cells: the cells.
        seeds: seeds of the runs on all cells.
        draws: how many random halvings of each kind; 0 for none.
        donor: column of ``obs`` with the donor; empty where none is known.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> runs = plan(simulate_cells(cells=200), [0, 1], donor="donor")
        >>> [run.name for run in runs]
        ['seed 0', 'seed 1', 'half 1a', 'half 1b', 'donors 1a', 'donors 1b']
    """
    runs = [Run(f"seed {seed}", SEEDS, 0, seed, None) for seed in seeds]
    for draw in range(draws):
        shuffled = np.random.default_rng([draw, 1]).permutation(cells.n_obs)
        halves = [(HALVES, "half", half) for half in np.array_split(shuffled, 2)]
        donors = tasks.column(cells, donor) if donor else np.array([])
        names = np.unique(donors[evaluate.labelled(donors)].astype(str))
        if len(names) > 1:
            names = np.random.default_rng([draw, 2]).permutation(names)
            halves += [(DONORS, "donors", np.flatnonzero(np.isin(donors.astype(str), half)))
                       for half in np.array_split(names, 2)]
        for number, (kind, word, rows) in enumerate(halves):
            side = number % 2
            runs.append(Run(f"{word} {draw + 1}{'ab'[side]}", kind, draw, 2 * draw + side,
                            np.sort(rows)))
    return runs


def replicate(
    cells: AnnData, runs: Sequence[Run], *, output: str | Path | None = None, batch: str = "",
    donor: str = "", **options,
) -> Replicates:
    """Train every run of a plan and let each of them encode all cells.

    Args:
        cells: cells with raw counts.
        runs: :func:`plan`.
        output: folder for the models; a finished one is read and not trained again.
        batch: column of ``obs`` with the batch.
        donor: column of ``obs`` with the donor.
        options: the other arguments of :func:`cellvq.pretrain`, such as ``codes`` and ``steps``.

    Raises:
        InputError: a half holds too few cells for so many codes.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200)
        >>> found = replicate(cells, plan(cells, [0, 1], draws=0), codes=8, steps=3)
        >>> found.agreement(permutations=9)["method"].tolist()
        ['CellVQ', 'k-means on PCA']
    """
    pca, codes, groups = tasks.pca_embedding(cells), {}, {}
    for run in runs:
        known = cells if run.rows is None else cells[run.rows].copy()
        # Runs on all cells lie where every notebook of the book looks for them.
        name = f"seed{run.seed}" if run.rows is None else run.name.replace(" ", "-")
        try:
            model = pretraining.pretrain(
                known, seed=run.seed, batch=batch, donor=donor, progress=False, resume=True,
                overwrite=True, output=None if output is None else Path(output) / f"model-{name}",
                **options,
            ).model
        except InputError as error:
            raise InputError(f"{run.name} ({known.n_obs:,} cells): {error}") from error
        codes[run.name] = encoding.encode(cells, model).obs[CODE].astype(object)
        groups[run.name] = _k_means(pca, run, codes[run.name].nunique())
    return Replicates(pd.DataFrame(codes, index=cells.obs_names),
                      pd.DataFrame(groups, index=cells.obs_names), list(runs))


def tested(
    coded: AnnData, seeds: Sequence[int], *, output: str | Path | None = None, **options
) -> pd.DataFrame:
    """Measure how stable codes are by models of other seeds, which are trained if need be.

    Args:
        coded: cells that one model has encoded, with raw counts.
        seeds: seeds of the other models.
        output: folder in which they lie, or will lie, as ``model-seed<seed>``.
        options: the other arguments with which the one model was trained.

    Returns:
        The table of :func:`cellvq.stability.code_stability`.
    """
    again = []
    for seed in seeds:
        folder = None if output is None else Path(output) / f"model-seed{seed}"
        run = pretraining.pretrain(coded, seed=seed, output=folder, resume=True, overwrite=True,
                                   progress=False, **options)
        again.append(encoding.encode(coded, run.model))
    return stability.code_stability(coded, stability.code_runs(again))


def _k_means(pca: np.ndarray, run: Run, size: int) -> np.ndarray:
    """Group all cells by k-means that is fitted to the cells of a run."""
    fitted_to = pca if run.rows is None else pca[run.rows]
    with threadpool_limits(1):
        fitted = KMeans(size, n_init=4, random_state=run.seed).fit(fitted_to)
        return fitted.predict(pca).astype(str).astype(object)
