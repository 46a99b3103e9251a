"""What a code tells of genes that were hidden, against the cell vector and the mean profile.

Genes are hidden from validation cells and predicted from the continuous vector, from each level of
the code alone, and by the mean profile, which knows nothing of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats

from cellvq import InputError, loader
from cellvq.corpus import Corpus
from cellvq.model import CellVQ
from cellvq.objective import mean_profile

VECTOR, MEAN = "cell vector", "mean profile"
MOST_VALIDATED = 4096
"""Validation cells on which genes are hidden, at the most."""


@dataclass(frozen=True)
class HeldOut:
    """Log likelihood of the hidden genes of validation cells, summed over genes and over cells."""

    by_cell: pd.DataFrame
    """Sum over the hidden genes, in nats, [cells, representations], indexed by row of the corpus;
    the columns are ``cell vector``, the levels of the code (``8 codes``) and ``mean profile``."""
    by_gene: pd.DataFrame
    """Sum over the cells that hid the gene, in nats, [genes, representations]."""
    genes_hidden: np.ndarray
    """Hidden genes of each cell, [cells]."""
    cells_hiding: np.ndarray
    """Cells that hid each gene, [genes]."""
    squares: np.ndarray
    """Sum over these cells of the squared difference of cell vector and finest code, [genes]."""
    codes: pd.DataFrame
    """Code of each cell at each level, as read from the genes that were shown, [cells, levels]."""

    @property
    def gains(self) -> pd.DataFrame:
        """Log likelihood above the mean profile per 1,000 genes, [cells, representations]."""
        above = self.by_cell.drop(columns=MEAN).sub(self.by_cell[MEAN], axis=0)
        return 1000 * above.div(np.maximum(self.genes_hidden, 1), axis=0)


@torch.no_grad()
def held_out(
    model: CellVQ, corpus: Corpus, *, hidden_share: float = 0.25, seed: int = 0
) -> HeldOut:
    """Hide genes of validation cells, and predict them from the vector and from every level.

    Args:
        model: a trained model.
        corpus: cells whose validation cells the model was not trained on.
        hidden_share: share of the genes that is hidden in each cell.
        seed: seed of the choice of genes, and of cells where there are more than
            ``MOST_VALIDATED``.

    Raises:
        InputError: the corpus has no validation cells.
    """
    quantizer, rng = model.quantizer, np.random.default_rng(seed)
    cells, depths = corpus.validation, range(len(model.quantizer.sizes))
    if not len(cells):
        raise InputError("the corpus has no validation cells; "
                         "gather it with a training.validation_share above 0")
    if len(cells) > MOST_VALIDATED:
        cells = np.sort(rng.choice(cells, MOST_VALIDATED, replace=False))
    was_training = model.training
    model.eval()
    genes = model.gene_table()[: len(model.panel)]
    by_cell, by_gene, squares, hidden, taken = [], 0, 0, [], []
    for rows in np.array_split(cells, len(cells) // 128 + 1):
        part = corpus.take(rows)
        batch = loader.make_batch(part.counts, part.depth, part.batch, measured=part.measured,
                                  hidden_share=hidden_share, rng=rng).to(model.device)
        summary = model.encode(batch).summary
        codes = quantizer(summary).codes
        vectors = [summary, *(quantizer.vectors_of(codes, level) for level in depths)]
        said = [model.decoder(x, batch.depth, batch.batch, genes) for x in vectors]
        said.append(mean_profile(corpus, batch.depth))
        asked = batch.hidden if batch.measured is None else batch.hidden & batch.measured
        found = torch.stack([x.log_likelihood(batch.counts) * asked for x in said], 2)
        by_cell.append(found.sum(1).cpu())
        by_gene = by_gene + found.double().sum(0).cpu()
        squares = squares + (found[..., 0] - found[..., -2]).double().square().sum(0).cpu()
        hidden.append(asked.cpu())
        taken.append(torch.stack([quantizer.prefix(codes, level) for level in depths], 1).cpu())
    model.train(was_training)
    names = [VECTOR, *(f"{size} codes" for size in quantizer.sizes), MEAN]
    hidden, taken = torch.cat(hidden).numpy(), torch.cat(taken).numpy()
    codes = {level: np.array(quantizer.addresses(level))[taken[:, level]] for level in depths}
    return HeldOut(
        pd.DataFrame(torch.cat(by_cell).numpy(), cells, names),
        pd.DataFrame(by_gene.numpy(), corpus.panel, names),
        hidden.sum(1), hidden.sum(0), squares.numpy(), pd.DataFrame(codes, cells),
    )


def reconstruction_by_gene(found: HeldOut) -> pd.DataFrame:
    """Say of which genes the code tells less than the vector.

    Returns:
        Gene that loses most first: ``gene`` (str), ``cells`` (int, in which it was hidden),
        ``from_cell``, ``from_code``, ``mean_profile`` (mean log likelihood, nats a cell), ``gain``
        (from the code above the mean profile), ``lost`` (from the cell vector above the code),
        ``low``, ``high`` (95 % interval of ``lost`` over cells).
    """
    means = found.by_gene.div(np.where(found.cells_hiding, found.cells_hiding, np.nan), axis=0)
    table = pd.DataFrame({
        "gene": found.by_gene.index, "cells": found.cells_hiding,
        "from_cell": means[VECTOR].to_numpy(), "from_code": means.iloc[:, -2].to_numpy(),
        "mean_profile": means[MEAN].to_numpy(),
    })
    table["gain"] = table["from_code"] - table["mean_profile"]
    table["lost"] = table["from_cell"] - table["from_code"]
    spread = np.sqrt(np.maximum(found.squares / found.cells_hiding.clip(1) - table["lost"]**2, 0))
    table = _with_interval(table, spread * np.sqrt(table["cells"] / (table["cells"] - 1).clip(1)))
    table = table[table["cells"] > 0]
    return table.sort_values("lost", ascending=False, kind="stable", ignore_index=True)


def reconstruction_by_code(found: HeldOut) -> pd.DataFrame:
    """Say which codes describe their cells worse than the cells' own vectors do.

    Returns:
        Code that loses most first: ``code`` (str), ``level``, ``cells`` (int, validation cells),
        ``gain_from_cell``, ``gain_from_code`` (log likelihood per 1,000 hidden genes above the mean
        profile, decoded from the cell vector and from the code of this level), ``lost`` (their
        difference), ``low``, ``high`` (95 % interval of ``lost`` over cells, NaN of one cell).
    """
    tables = []
    for level, codes in found.codes.items():
        cell, code = found.gains[VECTOR], found.gains.iloc[:, 1 + level]
        each = pd.DataFrame({"gain_from_cell": cell, "gain_from_code": code, "lost": cell - code})
        groups = each.groupby(codes.to_numpy())
        table = groups.mean().assign(cells=groups.size(), level=level)
        tables.append(_with_interval(table, groups["lost"].std()).rename_axis("code"))
    table = pd.concat(tables).reset_index()[["code", "level", "cells", "gain_from_cell",
                                             "gain_from_code", "lost", "low", "high"]]
    return table.sort_values("lost", ascending=False, kind="stable", ignore_index=True)


def _with_interval(table: pd.DataFrame, spread: pd.Series) -> pd.DataFrame:
    """Add Student's interval of the mean ``lost``; ``spread`` is its deviation over cells."""
    wide = stats.t.ppf(0.975, (table["cells"] - 1).clip(1)) * spread / np.sqrt(table["cells"])
    wide = wide.where(table["cells"] > 1)
    return table.assign(low=table["lost"] - wide, high=table["lost"] + wide)
