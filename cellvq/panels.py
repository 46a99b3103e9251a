"""Which genes a model sees: those that vary, over all the files that it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate, registry
from cellvq.counts import NAME_COLUMNS, some
from cellvq.files import flat
from cellvq.joined import read_with_depth
from cellvq.sources import Source

LOOKED_AT = 50_000
"""Cells, of all sources together, by which genes are chosen."""
ENOUGH = 200
"""Cells of a part from which on its own ranking of genes is worth something."""


def choose(
    sources: Sequence[Source], keep: Sequence[np.ndarray], size: int, seed: int
) -> list[str]:
    """Choose genes that some cell expresses, the highly variable ones if they are too many.

    Each part (a source, or a data set within one) ranks the genes that it measured by their
    normalised dispersion, and the mean rank over all cells decides; a gene that a part did not
    measure comes last there. So a corpus of many studies gets genes that most cells know.

    Args:
        sources: where the cells lie.
        keep: of each source, which cells take part, [cells] bool.
        size: at most this many genes.
        seed: chooses the cells that are looked at where there are too many.

    Returns:
        Names of genes, in the order of the first source, then of the next.

    Raises:
        InputError: two sources have no gene name in common.
    """
    names, places = common_names(sources)
    expressed, looked_at = np.zeros(len(names), bool), []
    share = LOOKED_AT / sum(int(chosen.sum()) for chosen in keep)
    for source, place, chosen in zip(sources, places, keep, strict=True):
        looked_at.append(_some_cells(source, chosen, share, seed))
        expressed[place[np.diff(looked_at[-1][0].tocsc().indptr) > 0]] = True
    chosen = np.flatnonzero(expressed)
    if len(chosen) <= size:
        return names[chosen].tolist()
    ranks, weights = [], []
    for source, place, (counts, depth, part) in zip(sources, places, looked_at, strict=True):
        for cells, measured in _parts(source, part):
            here = measured & (np.diff(counts[cells].tocsc().indptr) > 0)
            spread = _dispersion(counts[cells][:, here], depth[cells])
            rank = np.full(len(names), float(len(names)))
            rank[place[here][np.argsort(-spread, kind="stable")]] = np.arange(here.sum())
            ranks.append(rank)
            weights.append(len(cells))
    mean = np.average(np.stack(ranks)[:, chosen], axis=0, weights=weights)
    return names[np.sort(chosen[np.argsort(mean, kind="stable")[:size]])].tolist()


def _parts(source: Source, part: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """List the parts that are large enough to judge: their cells, and the genes they measured."""
    measured = source.parts()[1]
    cells = [np.flatnonzero(part == number) for number in range(len(measured))]
    large = [(mine, measured[number]) for number, mine in enumerate(cells) if len(mine) >= ENOUGH]
    return large or [(np.arange(len(part)), measured.any(0))]


def read(named: str | Path) -> list[str]:
    """Read the genes of a panel: of the registry, such as ``panel_19264``, or one a line in a file.

    Raises:
        InputError: it is neither, or names no gene.
    """
    if str(named) in set(registry.entries()["name"]):
        return registry.table(str(named)).iloc[:, 0].astype(str).tolist()
    path = Path(named).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no panel of genes can be read here; name panel_19264, or a "
                         "text file with one gene a line") from error
    genes = list(dict.fromkeys(line.split("\t")[0].strip() for line in lines))
    genes = [gene for gene in genes if gene]
    if not genes:
        raise InputError(f"{path}: no gene is named; put one name on each line")
    return genes


def common_names(sources: Sequence[Source]) -> tuple[pd.Index, list[np.ndarray]]:
    """Name the genes of all sources alike: by the names of the first, where others know them.

    Returns:
        The names, and of each source the place of its genes among them.

    Raises:
        InputError: a source shares no name with those before it.
    """
    names, places = pd.Index(sources[0].var.index.astype(str)).unique(), []
    for source in sources:
        offered = [source.var.index, *(source.var[c] for c in NAME_COLUMNS if c in source.var)]
        offered = [pd.Index(column).astype(str) for column in offered]
        best = max(offered, key=lambda column: column.isin(names).sum())
        if not best.isin(names).any():
            raise InputError(f"{source.name}: no gene in common with {sources[0].name}, which has "
                             f"{some(names)}; here are {some(best)}; are the names of one kind?")
        names = names.append(best[~best.isin(names)].unique())
        places.append(names.get_indexer(best))
    return names, places


def _some_cells(
    source: Source, keep: np.ndarray, share: float, seed: int
) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Read a share of the cells in whole blocks: counts [cells, genes], depth and part [cells]."""
    firsts, length = np.zeros(1, int), len(keep)
    if share < 1:
        firsts, length = np.arange(0, len(keep), source.block), source.block
        some = max(int(len(firsts) * share), 1)
        firsts = np.random.default_rng([seed, 6]).choice(firsts, some, replace=False)
    rows = [range(first, min(first + length, len(keep))) for first in np.sort(firsts).tolist()]
    counts, depth = read_with_depth(source, rows)
    cells = flat(rows)
    kept = keep[cells]
    return counts[kept], depth[kept], source.parts()[0][cells[kept]]


def _dispersion(counts: csr_matrix, depth: np.ndarray) -> np.ndarray:
    """Return scanpy's normalised dispersion of each gene, [genes]."""
    import scanpy
    import torch
    from anndata import AnnData

    values = AnnData(evaluate.log_normalise(counts, depth))
    threads = torch.get_num_threads()
    found = scanpy.pp.highly_variable_genes(values, inplace=False)
    torch.set_num_threads(threads)  # numba, which scanpy calls, changes their number
    return np.nan_to_num(found["dispersions_norm"].to_numpy(float), nan=-np.inf)
