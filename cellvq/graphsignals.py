"""Ligand-receptor tokens of the graph module: which pairs a cell may take part in, and with whom.

A cell may receive by a receptor that it expresses, from the group of training cells that expresses
the ligand most, and send likewise. What counts is how far that group stands above the mean of all
groups, so that pairs which are expressed everywhere stay behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate
from cellvq.signalpairs import resource_for

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK = 1024
"""Cells that are dense at once."""


def usable(cells: AnnData, pairs: pd.DataFrame | None) -> tuple[tuple[str, str], ...]:
    """Return the ligand-receptor pairs of which every subunit is among the genes.

    Args:
        cells: cells whose genes count.
        pairs: table with ``ligand`` and ``receptor``, subunits joined by ``_``; None: liana's
            consensus list for the species.

    Raises:
        InputError: the table lacks a column.

    Example:
        >>> from anndata import AnnData
        >>> cells = AnnData(np.ones((1, 2)), var=pd.DataFrame(index=["IL2", "IL2RA"]))
        >>> usable(cells, pd.DataFrame({"ligand": ["IL2"], "receptor": ["IL2RA_IL2RB"]}))
        ()
    """
    if pairs is None:
        import liana  # seconds on first use

        pairs = liana.rs.select_resource(resource_for(cells))
    if not {"ligand", "receptor"} <= set(pairs):
        raise InputError(f"a table of pairs needs the columns ligand and receptor; it has "
                         f"{', '.join(map(str, pairs)) or 'none'}")
    here = set(cells.var_names.astype(str))
    pairs = pairs[["ligand", "receptor"]].astype(str).drop_duplicates()
    fits = [here.issuperset(f"{one}_{two}".split("_")) for one, two in pairs.to_numpy()]
    return tuple(map(tuple, pairs[fits].to_numpy().tolist()))


def partners(
    counts: csr_matrix, depth: np.ndarray, names: pd.Index, pairs: tuple, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each pair the group of cells at the other end, and how far it stands out.

    Args:
        counts: of training cells, [cells, genes].
        depth: of these cells, [cells].
        names: names of the genes.
        pairs: :func:`usable`.
        group: group of each cell, every number from 0 on, [cells].

    Returns:
        The group, int [2, pairs], and its mean above the mean of all groups, float32 [2, pairs];
        the first row where the cell receives, the second where it sends.
    """
    if not pairs:
        return np.zeros((2, 0), int), np.zeros((2, 0), np.float32)
    one_hot = np.eye(group.max() + 1, dtype=np.float32)[group]
    values, place = _ends(counts, depth, names, pairs)
    group_of, contrast = [], []
    for side in (0, 1):  # the other end: the ligand where the cell receives
        sums = sum(one_hot[rows].T @ _expressed(values, place, rows, side)
                   for rows in _blocks(len(depth)))
        means = sums / one_hot.sum(0)[:, None]
        group_of.append(means.argmax(0))
        contrast.append(means.max(0) - means.mean(0))
    return np.stack(group_of), np.stack(contrast).astype(np.float32)


def strongest(
    counts: csr_matrix, depth: np.ndarray, names: pd.Index, pairs: tuple, contrast: np.ndarray,
    number: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the strongest pairs of each cell, received ones and then as many sent ones.

    Args:
        counts: of the cells, [cells, genes].
        depth: of the cells, [cells].
        names: names of the genes.
        pairs: the pairs; one that lacks a gene here has no token.
        contrast: :func:`partners`.
        number: pairs in each direction.

    Returns:
        Number of the pair, int [cells, 2 * number], -1 where there is none, and its weight: the
        cell's own expression times the partners' contrast, float32 of the same shape.
    """
    number = min(number, len(pairs))
    if not number:
        return np.full((len(depth), 0), -1), np.zeros((len(depth), 0), np.float32)
    values, place = _ends(counts, depth, names, pairs)
    found = []
    for way, side in enumerate((1, 0)):  # the cell's own end
        top, weight = [], []
        for rows in _blocks(len(depth)):
            product = _expressed(values, place, rows, side) * contrast[way]
            best = np.argsort(-product, axis=1, kind="stable")[:, :number]
            weight.append(np.take_along_axis(product, best, 1))
            top.append(np.where(weight[-1] > 0, best, -1))
        found.append((np.concatenate(top), np.concatenate(weight).astype(np.float32)))
    return tuple(np.concatenate(part, 1) for part in zip(*found, strict=True))


def _blocks(cells: int) -> list[slice]:
    return [slice(first, first + BLOCK) for first in range(0, cells, BLOCK)]


def _ends(counts: csr_matrix, depth: np.ndarray, names: pd.Index, pairs: tuple) -> tuple:
    """Return log values of the genes of all pairs, and the columns of each end's subunits."""
    ends = [[end.split("_") for end in pair] for pair in pairs]
    longest = max(len(units) for pair in ends for units in pair)
    units = np.array([[names.get_indexer((part * longest)[:longest]) for part in pair]
                      for pair in ends])  # [pairs, 2, units]; -1 for a gene that is not here
    used = np.unique(units[units >= 0])
    values = csr_matrix(evaluate.log_normalise(counts[:, used], depth))
    return values, np.where(units >= 0, np.searchsorted(used, units), len(used))


def _expressed(values: csr_matrix, place: np.ndarray, rows: slice, side: int) -> np.ndarray:
    """Expression of one end of every pair, [cells, pairs]: a complex is as strong as its weakest
    part, and a gene that is not here counts as nothing."""
    dense = np.pad(values[rows].toarray(), ((0, 0), (0, 1)))
    return dense[:, place[:, side]].min(2)
