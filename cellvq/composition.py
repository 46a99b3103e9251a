"""What the files of a corpus have in common, and how well the steps of training mix them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from cellvq.build import fingerprints
from cellvq.joined import Joined
from cellvq.panels import common_names
from cellvq.sources import Source

LEAST_GENES = 20
"""Cells that express fewer of the common genes may be equal by chance, and are not compared."""
READ = 4096
"""Rows that are read together."""
BARCODE = r"([ACGT]{12,})"
"""What a barcode looks like inside the name of a cell; prefixes and suffixes differ by file."""


def shared_genes(measured: pd.DataFrame) -> pd.DataFrame:
    """Count the genes that each two sources both measured.

    Args:
        measured: which genes each source measured, bool [genes, sources].

    Returns:
        Genes in both, [sources, sources]; on the diagonal those of one.

    Example:
        >>> table = pd.DataFrame({"a": [True, True, False], "b": [False, True, True]})
        >>> shared_genes(table).to_numpy().tolist()
        [[2, 1], [1, 2]]
    """
    table = measured.astype(int)
    return table.T @ table


def copies(sources: Sequence[Source], least: int = LEAST_GENES) -> pd.DataFrame:
    """Find cells of one source that are in another too: equal in every gene that both measured.

    Files of one study often hold different genes of the same cells, which are then not equal as a
    whole. So each two sources are compared in the genes that they share.

    Args:
        sources: where the cells lie; no two have one name.
        least: cells that express fewer of the shared genes are not compared.

    Returns:
        One row a pair of cells, the sources in the order given: source, cell, copied_to, copy,
        genes (that both sources measured).

    Raises:
        InputError: two of the sources share no gene name.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> from cellvq.sources import Memory
        >>> cells = simulate_cells(cells=90, genes=200)
        >>> found = copies([Memory(cells[:60], "a"), Memory(cells[50:, 20:], "b")])
        >>> len(found), bool((found["cell"] == found["copy"]).all())
        (10, True)
    """
    pairs = []
    for first, second in itertools.combinations(sources, 2):
        names, places = common_names([first, second])
        genes = list(names[np.intersect1d(*places)])
        one, other = _prints(first, genes, least), _prints(second, genes, least)
        found = one.drop_duplicates("print").merge(other, on="print", suffixes=("", "_copy"))
        pairs.append(pd.DataFrame({
            "source": first.name, "cell": found["cell"], "copied_to": second.name,
            "copy": found["cell_copy"], "genes": len(genes),
        }))
    columns = ["source", "cell", "copied_to", "copy", "genes"]
    return pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(columns=columns)


def shared_barcodes(sources: Sequence[Source]) -> pd.DataFrame:
    """Count the cell barcodes that each two sources both have.

    A barcode is drawn from the list of the kit, some hundred thousands long, so two unrelated files
    share a few by chance. Names that hold no barcode are compared whole.

    Args:
        sources: where the cells lie; no two have one name.

    Returns:
        Barcodes in both, [sources, sources]; on the diagonal those of one.
    """
    found = {source.name: set(_barcodes(source.names())) for source in sources}
    return pd.DataFrame({one: {other: len(found[one] & found[other]) for other in found}
                         for one in found})


def step_entropy(labels: np.ndarray) -> np.ndarray:
    """Measure how evenly the cells of each step are spread over a label, in bits.

    Args:
        labels: index of the label, such as the source, of the cells of each step, [steps, cells].

    Returns:
        Entropy of the label in each step, [steps]; 0 where all cells have one label.

    Example:
        >>> step_entropy(np.array([[0, 0, 0, 0], [0, 1, 0, 1]])).tolist()
        [0.0, 1.0]
    """
    steps, kinds = len(labels), int(labels.max(initial=0)) + 1
    places = labels + kinds * np.arange(steps)[:, None]
    counts = np.bincount(places.ravel(), minlength=steps * kinds).reshape(steps, kinds)
    return stats.entropy(counts, base=2, axis=1)


def _prints(source: Source, genes: list[str], least: int) -> pd.DataFrame:
    """Give the cells of a source that express enough of the genes a number that equal cells share.

    Returns:
        Columns cell, print.
    """
    panel, found, enough = Joined([source], genes), [], []
    for first in range(0, len(source), READ):
        counts = panel.read([range(first, min(first + READ, len(source)))]).counts
        found.append(fingerprints(counts))
        enough.append(np.diff(counts.indptr) >= least)
    table = pd.DataFrame({"cell": source.names(), "print": np.concatenate(found)})
    return table[np.concatenate(enough)]


def _barcodes(names: np.ndarray) -> pd.Series:
    """Cut the barcode out of each name, or keep the name."""
    names = pd.Series(names).astype(str)
    return names.str.extract(BARCODE, expand=False).fillna(names)
