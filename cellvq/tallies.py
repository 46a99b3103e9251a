"""Tallies of codes: sums over cells that add up exactly, wherever and in whatever order made.

Every statistic of a code needs no more of its cells than how many there are, and of every gene the
sum, the sum of squares and in how many cells it is detected, apart for each donor and condition.
Shards of an atlas are tallied where they lie, and tallies are added. So that a sum does not depend
on its order, values are rounded to multiples of 2**-20 and added as whole numbers: the tables of
one machine and of many are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellvq import InputError, evaluate, genes
from cellvq.codes import EMBEDDING
from cellvq.markers import with_code

if TYPE_CHECKING:
    from anndata import AnnData

STEP = 2.0**-20
"""What a log-normalised value and its square are rounded to, below a millionth."""
AT_ONCE = 32_768
"""Cells of a file that are read together."""
GROUP = ("code", "donor", "condition")
"""What a group of cells has in common; an empty text where it is not known."""
LABEL = ("column", "value", "code", "donor")


@dataclass(frozen=True)
class Tally:
    """Sums over the cells of each code, donor and condition, all of them whole numbers."""

    groups: pd.DataFrame
    """One row a group with the columns ``GROUP`` (str), ``cells`` and ``depth`` (int, UMI counts
    over all measured genes), sorted by ``GROUP``."""
    names: tuple[str, ...]
    """Names of the genes, [genes]."""
    counts: np.ndarray
    """Sums of UMI counts, int64 [groups, genes]."""
    sums: np.ndarray
    """Sums of log1p of counts per 10,000, in units of ``STEP``, int64 [groups, genes]."""
    squares: np.ndarray
    """Sums of their squares, in units of ``STEP``, int64 [groups, genes]."""
    detected: np.ndarray
    """Cells that express the gene, int64 [groups, genes]."""
    cubes: np.ndarray
    """Sums of their cubes over all groups, in units of ``STEP``, int64 [genes]."""
    labels: pd.DataFrame
    """One row a label of a code and donor with the columns ``LABEL`` (str) and ``cells`` (int)."""
    places: pd.DataFrame
    """Sums of the cell vectors of each code, in units of ``STEP``, int64 [codes, axes]."""

    def __add__(self, other: Tally) -> Tally:
        """Add the tally of other cells with the same genes."""
        return merge([self, other])

    @property
    def cells(self) -> int:
        """Number of cells that were tallied."""
        return int(self.groups["cells"].sum())


def tally(
    cells: AnnData, *, donor: str | None = None, condition: str | None = None,
    labels: Iterable[str] = (),
) -> Tally:
    """Sum up encoded cells by code, donor and condition; cells without a code are left out.

    Args:
        cells: encoded cells with raw counts.
        donor: column of ``obs`` with the donor.
        condition: column of ``obs`` with the condition.
        labels: columns of ``obs`` with annotations.

    Raises:
        InputError: the cells are not encoded, hold no counts, or a column is absent.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200, cell_types=2)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> halves = tally(cells[:90], donor="donor") + tally(cells[90:], donor="donor")
        >>> whole = tally(cells, donor="donor")
        >>> bool((halves.sums == whole.sums).all()), whole.cells
        (True, 200)
    """
    from anndata.utils import make_index_unique

    labels = list(labels)
    for column in filter(None, (donor, condition, *labels)):
        if column not in cells.obs:
            raise InputError(f"obs has no column {column!r}; there are {', '.join(cells.obs)}")
    cells, codes = with_code(cells)
    known = pd.DataFrame({"code": codes.to_numpy(object)})
    for name, column in (("donor", donor), ("condition", condition)):
        known[name] = _texts(cells.obs[column]) if column else ""
    group = known.groupby(list(GROUP), sort=True, observed=True)
    number, size = group.ngroup().to_numpy(), group.ngroups
    counts, _ = genes.find_counts(cells)
    depth = genes.sequencing_depth(cells, counts)
    values = evaluate.log_normalise(counts, depth).astype(np.float64)
    ones = csr_matrix((np.ones(counts.nnz), counts.indices, counts.indptr), counts.shape)

    def summed(matrix: csr_matrix) -> np.ndarray:
        """Whole numbers below 2**53 are added exactly, in any order."""
        entries = np.ones(len(number)), number, np.arange(len(number) + 1)
        chosen = csr_matrix(entries, (len(number), size))
        return np.asarray((chosen.T @ matrix).todense()).astype(np.int64)

    squares, cubes = values.copy(), values.copy()
    squares.data = np.rint(values.data**2 / STEP)
    cubes.data = np.rint(values.data**3 / STEP)
    values.data = np.rint(values.data / STEP)
    groups = group.size().rename("cells").reset_index()
    groups["depth"] = np.rint(np.bincount(number, depth.astype(float), size)).astype(np.int64)
    return Tally(
        groups, tuple(make_index_unique(cells.var_names.astype(str))),
        summed(counts.astype(np.float64)), summed(values), summed(squares), summed(ones),
        np.asarray(cubes.sum(axis=0)).ravel().astype(np.int64),
        _labels(cells, known, labels), _places(cells, known["code"]),
    )


def borders(cells: AnnData, made: Tally) -> pd.DataFrame:
    """Count for each code which other codes are the second choice of its cells.

    A second pass over the shards, because the second choice is the nearest centre of all codes but
    the cell's own, and the centres are those of the whole tally. Counts of shards add up.

    Args:
        cells: encoded cells, such as a shard.
        made: tally of all shards.

    Returns:
        One row a code and second choice: ``code``, ``neighbour`` (str), ``shared`` (int).

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200, cell_types=3)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> cells.obsm["X_cellvq"] = cells.obsm["program_activity"]
        >>> int(borders(cells, tally(cells))["shared"].sum())
        200
    """
    empty = pd.DataFrame({"code": [], "neighbour": [], "shared": []}).astype(
        {"code": object, "neighbour": object, "shared": int})
    cells, codes = with_code(cells)
    size = made.groups.groupby("code")["cells"].sum().reindex(made.places.index)
    centres = made.places.to_numpy() * STEP / size.to_numpy()[:, None]
    if len(centres) < 2 or not centres.shape[1]:
        return empty
    own = made.places.index.get_indexer(codes)
    vectors = np.asarray(cells.obsm[EMBEDDING], float)
    second = np.empty(len(own), int)
    for first in range(0, len(own), AT_ONCE // 8):
        part = slice(first, first + AT_ONCE // 8)
        away = (centres**2).sum(axis=1) - 2 * vectors[part] @ centres.T
        away[np.arange(len(away)), own[part]] = np.inf
        second[part] = away.argmin(axis=1)
    pairs = pd.DataFrame({"code": own, "neighbour": second}).value_counts(sort=False)
    pairs = pairs.rename("shared").reset_index()
    names = made.places.index.to_numpy(object)
    return pairs.assign(code=names[pairs["code"]], neighbour=names[pairs["neighbour"]])


def merge(tallies: Iterable[Tally]) -> Tally:
    """Add tallies of different cells; the order does not matter.

    Raises:
        InputError: their genes are not the same, or there is none.
    """
    total = None
    for part in tallies:
        total = part if total is None else _added(total, part)
    if total is None:
        raise InputError("there is no tally to merge; tally a file with cells first")
    return total


def _added(one: Tally, other: Tally) -> Tally:
    """Add two tallies; no more than these and their sum are ever in memory."""
    if one.names != other.names:
        raise InputError("the shards hold different genes; give all the genes of one panel")
    groups = pd.concat([one.groups, other.groups], ignore_index=True)
    keys = groups.groupby(list(GROUP), sort=True)
    number, size = keys.ngroup().to_numpy(), keys.ngroups
    first, second = np.split(number, [len(one.groups)])  # within each, all differ

    def summed(name: str) -> np.ndarray:
        total = np.zeros((size, len(one.names)), np.int64)
        total[first] = getattr(one, name)
        total[second] += getattr(other, name)
        return total

    labels = pd.concat([one.labels, other.labels], ignore_index=True)
    return Tally(
        keys[["cells", "depth"]].sum().reset_index(), one.names,
        *map(summed, ("counts", "sums", "squares", "detected")), one.cubes + other.cubes,
        labels.groupby(list(LABEL), sort=True, as_index=False)["cells"].sum(),
        pd.concat([one.places, other.places]).groupby(level=0, sort=True).sum())


def shards(path: str | Path, rows: int = AT_ONCE) -> Iterator[AnnData]:
    """Read an encoded file in parts that fit into memory.

    Args:
        path: an encoded ``.h5ad``.
        rows: cells of a part.

    Raises:
        InputError: the file cannot be read.
    """
    import anndata

    path = Path(path)
    try:
        whole = anndata.read_h5ad(path, backed="r")
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); encode the cells "
                         "anew") from error
    try:
        for first in range(0, whole.n_obs, rows):
            yield whole[first : first + rows].to_memory()
    finally:
        whole.file.close()


def tally_file(
    path: str | Path, *, donor: str | None = None, condition: str | None = None,
    labels: Iterable[str] = (),
) -> Tally:
    """Tally an encoded file in parts, such as a worker does with its shard.

    Args:
        path: an encoded ``.h5ad``.
        donor: column of ``obs`` with the donor.
        condition: column of ``obs`` with the condition.
        labels: columns of ``obs`` with annotations.

    Raises:
        InputError: the file cannot be read; see also :func:`tally`.
    """
    return merge(tally(shard, donor=donor, condition=condition, labels=labels)
                 for shard in shards(path))


def borders_file(path: str | Path, made: Tally) -> pd.DataFrame:
    """Count second choices over the cells of a file; see :func:`borders`.

    Args:
        path: an encoded ``.h5ad``.
        made: tally of all files.

    Raises:
        InputError: the file cannot be read.
    """
    return pd.concat([borders(shard, made) for shard in shards(path)], ignore_index=True)


def write(made: Tally, folder: str | Path) -> None:
    """Write a tally, so that another machine can add it to its own."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("groups", "labels", "places"):
        getattr(made, name).rename(columns=str).to_parquet(folder / f"{name}.parquet")
    arrays = {field.name: getattr(made, field.name) for field in fields(made)
              if field.type == "np.ndarray"}
    np.savez_compressed(folder / "sums.npz", names=np.array(made.names, dtype=str), **arrays)


def read(folder: str | Path) -> Tally:
    """Read a tally that :func:`write` wrote.

    Raises:
        InputError: a file is missing or was cut short.
    """
    folder = Path(folder)
    try:
        tables = {name: pd.read_parquet(folder / f"{name}.parquet")
                  for name in ("groups", "labels", "places")}
        with np.load(folder / "sums.npz", allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except Exception as error:
        raise InputError(f"{folder}: holds no whole tally ({type(error).__name__}); make it "
                         "anew") from error
    names = tuple(arrays.pop("names").tolist())
    tables["places"].columns = range(tables["places"].shape[1])
    return Tally(names=names, **tables, **arrays)


def _texts(column: pd.Series) -> np.ndarray:
    """Values as text, empty where there is none, [cells]."""
    known = evaluate.labelled(column)
    return np.where(known, column.astype(str).to_numpy(object), "")


def _labels(cells: AnnData, known: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    tables = [known.assign(column=column, value=_texts(cells.obs[column]))
              for column in columns]
    if not tables:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in LABEL}).assign(
            cells=pd.Series(dtype=np.int64))
    table = pd.concat(tables, ignore_index=True)
    return table.groupby(list(LABEL), sort=True).size().rename("cells").reset_index()


def _places(cells: AnnData, code: pd.Series) -> pd.DataFrame:
    """Sums of cell vectors of each code; cells without vectors have no axes."""
    vectors = np.asarray(cells.obsm[EMBEDDING], float) if EMBEDDING in cells.obsm \
        else np.empty((len(code), 0))
    whole = pd.DataFrame(np.rint(vectors / STEP).astype(np.int64))
    return whole.groupby(code.to_numpy(object), sort=True).sum()
