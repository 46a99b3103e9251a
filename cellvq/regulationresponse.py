"""What a model expects of other genes when a regulator is switched off or on, code by code.

The counts of a regulator are set to zero and to a high value in cells of a code; everything else in
the cell stays. The model encodes both cells and decodes both vectors. What it expects of another
gene then differs as the model has learnt that the two go together, in cells like these: this is
association as the model sees it, and no experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from cellvq import InputError, knowledge, loader, margins
from cellvq.genes import some
from cellvq.model import CellVQ

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = {"regulator": str, "gene": str, "code": str, "score": float, "n_cells": int}
AT_ONCE = 20_000_000
"""Counts (cells x panel) of changed cells that are dense at once."""


@torch.no_grad()
def decoder_response(
    cells: AnnData,
    model: CellVQ,
    *,
    regulators: Sequence[str] | None = None,
    level: int = -1,
    per_code: int = 16,
    high: float = 0.9,
    by_code: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Change the counts of each regulator and read how the decoded means of all genes answer.

    Args:
        cells: cells that `cellvq.encode` gave their codes.
        model: the model that did.
        regulators: names of the transcription factors; None: those of CollecTRI. Those that are not
            in the model's panel, or that no cell expresses, are left out.
        level: level of nested codes, 0 the coarsest, -1 the finest.
        per_code: cells of each code that are changed, drawn at random.
        high: quantile of the regulator in the cells that express it, to which it is raised.
        by_code: one row for each code; False: the mean over codes, one row a pair, with the code
            ``all``.
        seed: seed of the draw.

    Returns:
        One row a pair and code: ``regulator``, ``gene``, ``code`` (str), ``score`` (mean over cells
        of the natural logarithm of the ratio of the decoded means, raised to zero), ``n_cells``
        (that were changed). Nothing is tested here.

    Raises:
        InputError: see :func:`cellvq.margins.read`; or no regulator is in the panel, or a number
            cannot be.

    Example:
        >>> import cellvq
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200)
        >>> model = cellvq.pretrain(cells, steps=3, codes=4, progress=False).model
        >>> cells = cellvq.encode(cells, model)
        >>> table = decoder_response(cells, model, regulators=["STAT1"], per_code=2)
        >>> list(table), len(table) % (len(model.panel) - 1)
        (['regulator', 'gene', 'code', 'score', 'n_cells'], 0)
    """
    if per_code < 1 or not 0 < high <= 1:
        raise InputError(f"per_code is {per_code} and high is {high}; use 1 or more cells, and a "
                         "quantile above 0 and up to 1")
    if regulators is None:
        regulators = knowledge.regulons()["regulator"].unique()
    coded = margins.read(cells, model, level)
    panel = pd.Index(model.panel)
    place = panel.get_indexer(pd.Index(list(regulators)).intersection(panel, sort=False))
    place = np.sort(place[coded.counts.getnnz(axis=0)[place] > 0])
    if not len(place):
        raise InputError(f"none of the regulators ({some(list(regulators))}) is in the model's "
                         f"panel ({some(model.panel)}) and expressed; use gene names as it does")
    raised = _quantiles(coded.counts, coded.depth, place, high)
    rows = coded.draw(seed, per_code=per_code)
    codes, names = np.unique(coded.code[rows]), np.array(coded.names, object)
    total, tables = 0, []
    for code in codes:
        own = rows[coded.code[rows] == code]
        answer = _answers(model, coded, own, place, raised)
        total = total + answer / len(codes)
        if by_code:
            tables.append(_table(panel, place, answer, names[code], len(own)))
    if not by_code:
        tables.append(_table(panel, place, total, "all", len(rows)))
    return pd.concat(tables, ignore_index=True).astype(COLUMNS)


def _quantiles(
    counts: csr_matrix, depth: np.ndarray, place: np.ndarray, high: float
) -> np.ndarray:
    """Share of a cell's molecules that each regulator has where it is high, [regulators]."""
    own = counts[:, place].tocsc()
    share = own.data / depth[own.indices]
    gene = np.repeat(np.arange(len(place)), np.diff(own.indptr))
    return pd.Series(share).groupby(gene).quantile(high).to_numpy()


def _answers(
    model: CellVQ, coded: margins.Coded, rows: np.ndarray, place: np.ndarray, raised: np.ndarray
) -> np.ndarray:
    """Mean change over some cells of the log of decoded means, [regulators, panel]."""
    counts = coded.counts[rows].toarray()
    step = max(AT_ONCE // (2 * counts.size), 1)
    found = np.zeros((len(place), counts.shape[1]), np.float32)
    for first in range(0, len(place), step):
        chosen = place[first : first + step]
        changed = np.tile(counts, (2, len(chosen), 1, 1))  # [low or high, regulators, cells, panel]
        each = np.arange(len(chosen))
        changed[0, each, :, chosen] = 0
        wanted = raised[first : first + step, None] * coded.depth[rows]
        changed[1, each, :, chosen] = np.maximum(np.round(wanted), 1)
        flat = csr_matrix(changed.reshape(-1, counts.shape[1]))
        depth = np.tile(coded.depth[rows], 2 * len(chosen))
        log_mean = _decoded(model, coded, flat, depth)
        low, up = log_mean.reshape(2, len(chosen), len(rows), -1)
        found[first : first + step] = (up - low).mean(axis=1)
    return found


def _decoded(
    model: CellVQ, coded: margins.Coded, counts: csr_matrix, depth: np.ndarray
) -> np.ndarray:
    """Natural logarithm of the means decoded from cells as they are given, [cells, panel]."""
    found = np.zeros(counts.shape, np.float32)
    genes = model.gene_table()[: len(model.panel)]
    for block in loader.by_length(counts, margins.at_once(model)):
        known = None if coded.measured.all() else np.tile(coded.measured, (len(block), 1))
        batch = loader.make_batch(counts[block], depth[block], measured=known,
                                  target_depth=coded.target_depth).to(model.device)
        nowhere = torch.full_like(batch.depth, -1, dtype=torch.long)  # the average batch
        said = model.decoder(model.encode(batch).summary, batch.depth, nowhere, genes)
        kept = 1 if said.dropout_logit is None else torch.sigmoid(-said.dropout_logit)
        found[block] = torch.log(said.mean * kept + 1e-9).cpu().numpy()
    return found


def _table(
    panel: pd.Index, place: np.ndarray, answer: np.ndarray, code: str, cells: int
) -> pd.DataFrame:
    names = panel.to_numpy(object)
    table = pd.DataFrame({
        "regulator": np.repeat(names[place], len(names)), "gene": np.tile(names, len(place)),
        "code": code, "score": answer.ravel(), "n_cells": cells,
    })
    return table[table["regulator"] != table["gene"]]
