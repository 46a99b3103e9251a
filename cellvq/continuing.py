"""A trained model goes on with cells it was not made for: what it knows is carried over by gene.

The new cells get a panel, a linear path and a codebook of their own, as in a fresh run. What is
carried over is what the model has learnt of genes and of how they go together: the embeddings of
genes and values, the transformer, and the view it takes of a cell.
"""

from __future__ import annotations

import torch

from cellvq import InputError
from cellvq.model import CellVQ

CARRIED = ("value_embedding.", "layers.", "norm.", "cell_vector.norm.", "cell_vector.view.",
           "cell_vector.gate", "decoder.into_bend.")
"""Parts that know no gene by its number, and so serve any panel."""
RIDGE = 1e-2
"""Share of an axis' mean square that is added before unknown genes are placed by regression."""


@torch.no_grad()
def carry_genes(source: CellVQ, target: CellVQ) -> list[str]:
    """Carry tokens and transformer of a model over to one with another panel.

    A gene that the source does not know is placed among those that vary as it does, by regressing
    the embeddings of the known genes on the loadings that the warm start gave to all.

    Args:
        source: a trained model.
        target: a model of the same configuration after its warm start; changed in place.

    Returns:
        The genes that both know.

    Raises:
        InputError: there is none.
    """
    number = {gene: place for place, gene in enumerate(source.panel)}
    here = [place for place, gene in enumerate(target.panel) if gene in number]
    if not here:
        raise InputError(
            f"none of the {len(target.panel):,} genes learnt from these cells (such as "
            f"{target.panel[0]!r}) is among the {len(source.panel):,} of the model "
            f"(such as {source.panel[0]!r}); give symbols where it has symbols, or a gene table"
        )
    there = [number[target.panel[place]] for place in here]
    state = target.state_dict()
    state |= {name: value for name, value in source.state_dict().items()
              if name.startswith(CARRIED)}
    target.load_state_dict(state)
    table, learnt = target.gene_embedding.weight, source.gene_embedding.weight.to(target.device)
    loadings = target.cell_vector.components
    gram = loadings[here].T @ loadings[here]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    way = torch.linalg.solve(gram, loadings[here].T @ learnt[there])
    table[: len(target.panel)] = loadings @ way
    table[here] = learnt[there]
    table[-3:] = learnt[-3:]  # T, S and padding
    return [target.panel[place] for place in here]
