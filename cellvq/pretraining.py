"""Pretraining: from files of cells and a preset to a trained model, in one function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cellvq import InputError, config, distributed, weights
from cellvq.continuing import carry_genes, keeps_path, leave_out_batches, require_shared
from cellvq.corpus import gather
from cellvq.model import CellVQ
from cellvq.objective import start_decoder, warm_start
from cellvq.optimize import reproducible
from cellvq.runs import Manner, Pretrained, describe, finished
from cellvq.train import train

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

GENTLY = 0.3
"""Share of the learning rate at which a model trains on whose linear path is kept."""


def pretrain(
    cells: AnnData | str | Path | Sequence[str | Path],
    *,
    preset: str = "tiny",
    init: str | Path | None = None,
    keep_codes: bool | None = None,
    batch: str | None = None,
    donor: str | None = None,
    properties: Sequence[str] = (),
    steps: int | None = None,
    minutes: float | None = None,
    panel: Sequence[str] | None = None,
    codes: int | Sequence[int] | None = None,
    quantizer: str | None = None,
    changes: Mapping[str, Any] | None = None,
    stream: bool | None = None,
    gene_table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 50,
    engine: str = "ddp",
    compile: bool = False,
    progress: bool = True,
) -> Pretrained:
    """Pretrain a CellVQ on raw counts by hiding genes and predicting them.

    Args:
        cells: cells with raw counts, or the file, the corpus or the data set they are in, or
            several. A gene that a file did not measure is neither shown nor asked for there.
        preset: size of the model, a name of ``config.PRESETS``.
        init: a trained model to go on from, ``small`` or a folder. Its network and what it has
            learnt of genes are carried over. Of ``preset`` only training and size of the panel are
            used then.
        keep_codes: True to keep panel, linear path and codebook of ``init`` as well, so that its
            codes keep their meaning; False to fit them to these cells anew. By default the cells
            decide (`continuing.keeps_path`), and what sets their batches apart is taken out of a
            path that is kept. Models of the released shape always keep them.
        batch: column of ``obs`` with the batch. The decoder sees it, and the warm start leaves it
            out, so that vectors and codes carry little of it.
        donor: column of ``obs`` with the donor; whole donors are kept for validation.
        properties: columns of ``obs`` to predict as well, such as the cell type; a label may be
            missing in any cell. What is a property cannot be a fair test of the vector any more.
        steps: optimizer steps; by default those of the preset.
        minutes: train for this long instead; such a run is not reproducible to the bit.
        panel: names of the genes to learn; by default the highly variable ones.
        codes: size of the codebook, or several ascending sizes, such as ``(8, 64, 512)``, for each
            level of nested codes; of a single size the parents are a quarter. By default those of
            the preset.
        quantizer: ``nested``, ``ema`` for flat codes, ``residual``, ``fsq`` or ``soft``; by default
            nested where there are several sizes, or else the preset's.
        changes: other numbers to change, such as ``{"training.hidden_share": 0.4}``.
        stream: read the cells from the disk while training; by default only where there are too
            many for memory. It changes the order in which cells are seen.
        gene_table: names that genes go by, such as ``registry.table("hgnc")``, to bring older
            names, aliases and Ensembl identifiers together; none by default.
        orthologs: one-to-one orthologs, such as ``registry.table("mouse_orthologs")``.
        seed: seed of the split, the initial weights and every draw.
        output: folder for the model, its history and, while it trains, a checkpoint.
        resume: go on with the run in ``output``; a finished run is read, not repeated.
        overwrite: replace another run that is in ``output``.
        checkpoint_every: steps between checkpoints.
        engine: how the processes of a ``torchrun`` share the model, ``ddp`` or ``fsdp``.
        compile: compile the model with ``torch.compile`` first.
        progress: show a progress bar.

    Returns:
        The model and the history of its training.

    Raises:
        InputError: the cells hold no raw counts, a column is absent, or ``output`` holds another
            run.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> run = pretrain(simulate_cells(cells=200), steps=3, codes=8, progress=False)
        >>> list(run.history.step)
        [0, 3]
    """
    if steps is not None and minutes is not None:
        raise InputError("both steps and minutes are given; choose one")
    if minutes is not None and minutes <= 0:
        raise InputError(f"minutes is {minutes}; use a number above 0")
    manner = Manner(None if output is None else Path(output), resume, overwrite, checkpoint_every,
                    progress, engine, compile)
    device = distributed.enter()
    chosen = dict(changes or {}) | {"training.seed": seed}
    if steps is not None:
        chosen["training.steps"] = steps
    known, start = config.preset(preset), None
    size, keep = known.model, bool(keep_codes)
    if init is not None:
        start, _ = weights.read_model(init)
        size, keep = start.config, keep or start.config.cell_vector != "components"
    elif keep:
        raise InputError("keep_codes needs init; name the model whose codes are to be kept")
    chosen |= _codebook(codes, quantizer, size.quantizer.kind)
    _refuse_other_size(chosen, panel, init, keep)
    size, training = config.change(size, known.training, chosen)
    columns = (batch, donor, training, properties, size.depth, stream, gene_table, orthologs)
    most = size.panel_size if start is None else known.model.panel_size
    data, keeps = gather(cells, start.panel if keep else panel or most, *columns), keep
    if start is not None and not keep:
        require_shared(start, data.panel)
    if start is not None and not keep and keep_codes is None and panel is None:
        before = gather(cells, start.panel, *columns)
        if keeps := keeps_path(start, data, before):
            data = before
    if start is not None and keeps and "training.learning_rate" not in chosen:
        training = dataclasses.replace(training, learning_rate=GENTLY * training.learning_rate)
    run = describe(data, size, training) | {
        "preset": preset, "minutes": minutes, "keeps_path": keeps,
        "keep_codes": keeps and start is not None and size.quantizer == start.config.quantizer,
        "init": None if start is None else weights.fingerprint(start),
    }
    if found := finished(run, manner):
        return found
    with reproducible():
        torch.manual_seed(seed)
        model = CellVQ(size, data.panel, data.batches, data.labels)
        if keeps:
            weights.carry_over(start, model, codes=run["keep_codes"])
            model.quantizer.held = run["keep_codes"]
            if not keep:
                leave_out_batches(model, data)
        else:
            if size.decoder == "query":
                start_decoder(model, data)
            if training.warm_start and size.cell_vector == "components":
                warm_start(model, data)
            if start is not None:
                carry_genes(start, model)
        return train(model.to(device), data, training, run, manner)


def _refuse_other_size(
    chosen: Mapping[str, Any], panel: Sequence[str] | None, init: str | Path | None, keep: bool
) -> None:
    """Refuse to change what a trained model fixes: its network, and its codes if they are kept."""
    fixed = ("model.", "quantizer.") if keep else ("model.",)
    changed = [name for name in chosen if init is not None and name.startswith(fixed)]
    changed += ["panel"] if keep and panel is not None else []
    if changed:
        way = "; without keep_codes it can" if changed[0][:6] != "model." else ""
        raise InputError(f"{changed[0]} cannot change here, it is that of {init}{way}")


def _codebook(codes: int | Sequence[int] | None, quantizer: str | None, usual: str) -> dict:
    """Return the settings of the codebook that is asked for; ``usual`` is the preset's kind."""
    if codes is None:
        # Only trees have coarser levels; those of the preset would not fit another kind.
        kept = {} if quantizer in (None, "nested", "residual") else {"quantizer.prefixes": ()}
        return kept | ({} if quantizer is None else {"quantizer.kind": quantizer})
    *prefixes, full = (codes,) if isinstance(codes, int) else codes
    kind = quantizer or ("nested" if prefixes else usual)
    if kind == "nested" and not prefixes:
        prefixes = [full // 4]
        if quantizer is None and full < 8:
            kind, prefixes = "ema", []  # too few for a tree
    return {"quantizer.codes": full, "quantizer.prefixes": tuple(prefixes), "quantizer.kind": kind}
