"""CellVQ-Graph's trainable module in one call: fit it to cells, encode cells, save and load it.

It takes the vectors of a CellVQ, or the expression of any data set, and adds what a cell's genes,
annotations, neighbours and ligand-receptor partners tell, before the vector becomes a code. What
each of these is worth has to be asked of the cells at hand: :mod:`cellvq.graphablation`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as packed

import cellvq
from cellvq import InputError, folders, weights
from cellvq.encoding import encode as encode_cells
from cellvq.graphablation import held_out, several
from cellvq.graphattention import GraphConfig, GraphNetwork
from cellvq.graphtokens import Tokens, Vocabulary, deal, learn, tokens
from cellvq.graphtraining import Trained, likelihood, train, vectors_of

if TYPE_CHECKING:
    from anndata import AnnData

    from cellvq.model import CellVQ

CODE, VECTOR = "cellvq_graph_code", "X_cellvq_graph"
"""Where :func:`encode` writes codes and vectors."""
WEIGHTS, CONFIG = "graphnet.safetensors", "graphnet.json"
FORMAT = 1
"""Version of the saved files."""
ARRAYS = ("mean", "axes", "scale", "reference", "names", "centres", "partner", "contrast")
"""Arrays of a vocabulary, which lie beside the weights."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What :func:`fit` makes."""

    trained: Trained
    """The module."""
    cells: AnnData
    """The dealt cells, shown molecules in ``X``."""
    tokens: Tokens
    """Their tokens."""
    held_out: np.ndarray
    """Cells that were not learnt from, bool."""
    scores: pd.DataFrame
    """One row a held-out cell, as of :func:`cellvq.graphtraining.likelihood`."""


def fit(
    cells: AnnData, *, model: CellVQ | str | Path | None = None, features: str = "",
    annotations: tuple[str, ...] = (), donor: str | None = None, config: GraphConfig | None = None,
    share: float = 0.8, progress: Callable[[dict], None] | None = None, **options,
) -> Fitted:
    """Deal the molecules of cells, hold some cells out, make tokens and train the module.

    Where there are three donors or more, whole donors are held out, and neighbours always come from
    other donors, as they must for cells of a donor who was not there.

    Args:
        cells: cells with raw counts.
        model: a CellVQ, or its folder, whose vectors the module starts from; it encodes the shown
            molecules only. None: principal components of the shown molecules.
        features: key of ``obsm`` with vectors that were *not* made from these counts, such as
            protein; vectors of the whole counts would tell what is to be predicted.
        annotations: columns of ``obs`` that become tokens; never one that codes are judged by.
        donor: column of ``obs`` with the donor.
        config: numbers of the module.
        share: share of the molecules that are shown.
        progress: called with ``step`` and ``loss`` as training goes on.
        options: of :func:`cellvq.graphtokens.learn`: ``genes``, ``width``, ``pairs``.

    Raises:
        InputError: a column is missing, there are too few cells, or ``features`` are vectors of
            CellVQ.

    Example:
        >>> from cellvq.simulate import simulate_cells, truth
        >>> cells = simulate_cells(cells=300)
        >>> small = GraphConfig(width=16, codes=8, prefixes=(), steps=5)
        >>> fitted = fit(cells, config=small, pairs=truth(cells)["communication"], genes=80)
        >>> encode(cells, fitted.trained).obs["cellvq_graph_code"].cat.categories[0]
        'C00'
    """
    if features.startswith("X_cellvq"):
        raise InputError(f"obsm[{features!r}] was made from all molecules, also those to be held "
                         "out: give the model, which then encodes the shown ones")
    config, dealt = config or GraphConfig(), deal(cells, share, (config or GraphConfig()).seed)
    if features and features not in cells.obsm:
        raise InputError(f"obsm has no {features!r}; there are {', '.join(cells.obsm) or 'none'}")
    if features:
        dealt.obsm[features] = np.asarray(cells.obsm[features])
    if model is not None:
        dealt, features = encode_cells(dealt, model), "X_cellvq"
    hold = held_out(cells, donor, config.seed)
    words = learn(dealt, train=~hold, features=features, annotations=annotations,
                  apart=several(cells, donor), seed=config.seed, **options)
    made = tokens(dealt, words)
    trained = train(made, config, held_out=hold, progress=progress)
    scores = likelihood(trained.network, made, np.flatnonzero(hold))
    return Fitted(trained, dealt, made, hold, scores)


@torch.no_grad()
def encode(
    cells: AnnData, trained: Trained, *, model: CellVQ | str | Path | None = None
) -> AnnData:
    """Give whole cells their vectors and codes; nothing is dealt, all molecules are shown.

    The module was trained on a share of each cell's molecules, and reads logarithms of shares, so
    that whole cells are the same to it with less noise. Neighbours are training cells (as they were
    shown), never other cells at hand: a cell's answer depends on no cell beside it.

    Args:
        cells: cells with raw counts.
        trained: the module.
        model: the CellVQ on whose vectors it was trained, unless these are in ``obsm`` already.

    Returns:
        A copy with ``obsm["X_cellvq_graph"]`` ([cells, vector width]) and
        ``obs["cellvq_graph_code"]`` (categorical, such as ``C3.05``; missing for a cell without
        molecules in the panel).

    Raises:
        InputError: the genes are others, or the vectors are missing.
    """
    cells = cells.copy() if model is None else encode_cells(cells, model)
    if "held" in cells.layers:
        del cells.layers["held"]
    made = tokens(cells, trained.vocabulary)
    vectors = vectors_of(trained.network, made, np.arange(cells.n_obs))
    quantizer = trained.network.quantizer
    codes = torch.cat([quantizer(part).codes for part in vectors.split(4096)]).numpy()
    codes[np.asarray(made.target.sum(1)).ravel() == 0] = -1
    names = quantizer.addresses()
    cells.obsm[VECTOR] = vectors.numpy()
    cells.obs[CODE] = pd.Categorical.from_codes(codes, names).remove_unused_categories()
    return cells


def save(folder: str | Path, trained: Trained, *, overwrite: bool = False) -> Path:
    """Write a module as safetensors and JSON: nothing in it can run.

    Args:
        folder: a folder of its own.
        trained: the module.
        overwrite: whether a module that is there may be replaced.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    files = {WEIGHTS, CONFIG}
    folders.check_free(folder, "a graph module", files, files, overwrite)
    words = trained.vocabulary
    tensors = {f"network.{name}": value.contiguous()
               for name, value in trained.network.state_dict().items()}
    tensors |= {f"vocabulary.{name}": torch.from_numpy(np.ascontiguousarray(getattr(words, name)))
                for name in ARRAYS}
    content = packed(tensors)
    about = {
        "format": FORMAT, "cellvq": cellvq.__version__,
        "sha256": hashlib.sha256(content).hexdigest(),
        "config": dataclasses.asdict(trained.network.config),
        "vocabulary": {field.name: getattr(words, field.name)
                       for field in dataclasses.fields(words) if field.name not in ARRAYS},
        "history": trained.history.to_dict("list"),
    }

    def fill(place: Path) -> None:
        (place / WEIGHTS).write_bytes(content)
        (place / CONFIG).write_text(json.dumps(about, indent=1), encoding="utf-8")

    return folders.write_whole(folder, fill)


def load(folder: str | Path) -> Trained:
    """Read a module that :func:`save` wrote.

    Args:
        folder: the module's folder.

    Raises:
        InputError: a file is missing, damaged, or of another version.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        cellvq.InputError: nowhere: no graph module here; name a folder that holds a graphnet.json
    """
    folder = Path(folder).expanduser()
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no graph module here; name a folder that holds a "
                         f"{CONFIG}") from error
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: not whole; copy the folder again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{folder / CONFIG}: not a graph module that this version reads")
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise InputError(f"{folder / WEIGHTS}: not the weights that {CONFIG} names; copy the "
                         "folder again")
    tensors = weights.read_tensors(folder / WEIGHTS)[0]
    plain = about["vocabulary"]
    words = Vocabulary(
        genes=tuple(plain["genes"]), pairs=tuple(map(tuple, plain["pairs"])),
        annotations={name: tuple(known) for name, known in plain["annotations"].items()},
        features=plain["features"], apart=plain["apart"],
        **{name: tensors.pop(f"vocabulary.{name}").numpy() for name in ARRAYS})
    network = GraphNetwork(GraphConfig(**about["config"]), words)
    weights.load_state(network, {name.removeprefix("network."): value
                                 for name, value in tensors.items()}, folder / WEIGHTS)
    network.quantizer.held = True
    return Trained(network.eval(), words, pd.DataFrame(about["history"]))
