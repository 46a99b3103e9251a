"""Established embeddings of cells, made with the settings that their authors recommend.

All of them read the same 2,000 variable genes (truncated SVD: all genes) and give a vector for
each cell and their settings. None sees a label but scANVI, which is told whose.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA, TruncatedSVD
from threadpoolctl import threadpool_limits

from cellvq import InputError, evaluate, tasks
from cellvq.entries import Benchmarked

VARIABLE_GENES = 2000
COMPONENTS = 50
EPOCHS, PATIENCE = 200, 20
"""scVI trains for at most so many epochs, and stops after so many without a better ELBO on a tenth
of the cells."""
LABELLED_EPOCHS = 10
"""Epochs of scANVI after scVI, the default of scvi-tools."""
UNKNOWN = "unknown"
EXTRA = "pip install 'cellvq[benchmark]'"
Embedded = tuple[np.ndarray, dict]
"""Vectors, float32 [cells, dimensions], and settings."""


def variable_genes(data: Benchmarked, number: int = VARIABLE_GENES) -> np.ndarray:
    """Positions of the most variable genes (Seurat flavour, on log-normalised values), ascending.

    Example:
        >>> from cellvq.entries import prepare
        >>> from cellvq.simulate import simulate_cells
        >>> len(variable_genes(prepare(simulate_cells(cells=90), "cell_type"), 50))
        50
    """
    import scanpy as sc
    from anndata import AnnData

    seen = np.flatnonzero(data.cells.X.getnnz(axis=0))
    if len(seen) <= number:
        return seen
    work = AnnData(evaluate.log_normalise(data.cells.X, data.depth)[:, seen])
    found = sc.pp.highly_variable_genes(work, n_top_genes=number, inplace=False)
    return seen[found["highly_variable"].to_numpy()]


def pca(data: Benchmarked, seed: int = 0) -> Embedded:
    """Principal components of scaled genes, the standard recipe of the field.

    Example:
        >>> from cellvq.entries import prepare
        >>> from cellvq.simulate import simulate_cells
        >>> vectors, settings = pca(prepare(simulate_cells(cells=90), "cell_type"))
        >>> vectors.shape, settings["scaled"]
        ((90, 50), True)
    """
    def make() -> Embedded:
        vectors = tasks.pca_embedding(data.cells, COMPONENTS, seed=seed,
                                      variable_genes=VARIABLE_GENES)
        genes = min(VARIABLE_GENES, int((data.cells.X.getnnz(axis=0) > 0).sum()))
        return vectors, _of_components(vectors, genes) | {"scaled": True}

    vectors, settings = _kept(("PCA", data.fingerprint, seed), make)  # several tasks ask for it
    return vectors.copy(), dict(settings)


def pca_unscaled(data: Benchmarked, seed: int = 0) -> Embedded:
    """Principal components of log-normalised genes as they are, so that large genes count more."""
    genes = variable_genes(data)
    values = evaluate.log_normalise(data.cells.X, data.depth)[:, genes].toarray()
    with threadpool_limits(1):  # the order of sums depends on the threads
        fitted = PCA(_components(values), svd_solver="arpack", random_state=seed)
        vectors = fitted.fit_transform(values).astype(np.float32)
    return vectors, _of_components(vectors, len(genes)) | {"scaled": False}


def truncated_svd(data: Benchmarked, seed: int = 0) -> Embedded:
    """Truncated singular value decomposition of all log-normalised genes, not centred."""
    values = evaluate.log_normalise(data.cells.X, data.depth)
    with threadpool_limits(1):
        fitted = TruncatedSVD(_components(values), algorithm="arpack", random_state=seed)
        vectors = fitted.fit_transform(values.astype(np.float64)).astype(np.float32)
    return vectors, _of_components(vectors, values.shape[1]) | {"variable_genes": values.shape[1]}


def harmony(data: Benchmarked, seed: int = 0) -> Embedded:
    """Harmony on scaled principal components (doi 10.1038/s41592-019-0619-0).

    Raises:
        InputError: no batch is known, or only one.
    """
    harmonypy = _library("harmonypy")
    batch = data.column(data.batch)
    if data.batch is None or len(np.unique(batch)) < 2:
        raise InputError("Harmony needs two batches; name a column with --batch")
    vectors, settings = pca(data, seed)
    logging.getLogger("harmonypy").setLevel(logging.WARNING)
    # A cell without a batch is a batch of its own: Harmony knows no missing one.
    corrected = harmonypy.run_harmony(
        vectors.astype(np.float64), pd.DataFrame({"batch": batch}), "batch", random_state=seed,
        verbose=False, ncores=1,
    ).Z_corr
    corrected = np.asarray(corrected, dtype=np.float32)
    corrected = corrected if corrected.shape == vectors.shape else corrected.T
    return corrected, settings | {"harmonypy": harmonypy.__version__, "batch": data.batch}


def scvi_embedding(data: Benchmarked, seed: int = 0, *, epochs: int = EPOCHS) -> Embedded:
    """Mean latent vector of scVI with its default network (doi 10.1038/s41592-018-0229-2).

    Args:
        data: the data; the batch is given to the model where it is known.
        seed: seed of weights, order and the tenth of the cells that early stopping watches.
        epochs: at the most.
    """
    model, settings = scvi_model(data, seed, epochs=epochs)
    return _latent(model, seed), settings


def scanvi_embedding(
    data: Benchmarked, seed: int = 0, *, train_labels: np.ndarray, start=None, epochs: int = EPOCHS
) -> Embedded:
    """Mean latent vector of scANVI, scVI with some cells labelled (doi 10.15252/msb.20209620).

    Args:
        data: the data.
        seed: seed of weights and order.
        train_labels: label of each training cell, empty for the cells that test it, [cells].
        start: what :func:`scvi_model` returned for the same data and seed, to save training it
            again for each split.
        epochs: of scVI, at the most.

    Raises:
        InputError: no cell is labelled.
    """
    scvi = _library("scvi")
    labels = np.where(train_labels == "", UNKNOWN, train_labels).astype(str)
    if (labels == UNKNOWN).all():
        raise InputError("scANVI needs labelled cells; name a column with --label")
    model, settings = start or scvi_model(data, seed, epochs=epochs)
    cells = model.adata.copy()
    cells.obs["label"] = pd.Categorical(labels)
    with quiet(seed):
        labelled = scvi.model.SCANVI.from_scvi_model(model, UNKNOWN, labels_key="label",
                                                     adata=cells)
        labelled.train(max_epochs=LABELLED_EPOCHS, n_samples_per_label=100, **_SILENT)
    return _latent(labelled, seed), settings | {
        "labelled_epochs": LABELLED_EPOCHS, "labelled_cells": int((labels != UNKNOWN).sum()),
        "parameters": _parameters(labelled),
    }


def scvi_model(data: Benchmarked, seed: int = 0, *, epochs: int = EPOCHS):
    """Train scVI on counts of the variable genes; the last one is kept, as scANVI starts there.

    Returns:
        The model, whose ``adata`` holds the variable genes, and its settings.
    """
    scvi = _library("scvi")
    from anndata import AnnData

    def make() -> tuple:
        genes = variable_genes(data)
        obs = pd.DataFrame({"batch": pd.Categorical(data.column(data.batch))},
                           index=data.cells.obs_names)
        cells = AnnData(data.cells.X[:, genes].copy(), obs=obs, var=data.cells.var.iloc[genes][[]])
        # A last batch of a single cell stops batch normalisation.
        size = 128 if round(0.9 * len(obs)) % 128 != 1 else 127
        with quiet(seed):
            scvi.model.SCVI.setup_anndata(cells, batch_key="batch" if data.batch else None)
            model = scvi.model.SCVI(cells)
            model.train(max_epochs=epochs, early_stopping=True, early_stopping_patience=PATIENCE,
                        batch_size=size, **_SILENT)
        return model, {
            "variable_genes": len(genes), "dimensions": model.module.n_latent,
            "epochs_at_most": epochs, "epochs": len(model.history["elbo_train"]),
            "patience": PATIENCE, "batch": data.batch, "scvi": scvi.__version__,
            "parameters": _parameters(model),
        }

    return _kept(("scVI", data.fingerprint, data.batch, seed, epochs), make)


_LAST: dict[str, tuple[tuple, tuple]] = {}


def forget() -> None:
    """Let go of what was kept, so that the next call takes the time that it takes."""
    _LAST.clear()


def _kept(key: tuple, make: Callable[[], tuple]) -> tuple:
    """Make something, or give what the last call of the same kind with the same key made."""
    kind = key[0]
    if _LAST.get(kind, ((), ()))[0] != key:
        _LAST[kind] = key, make()
    return _LAST[kind][1]


_SILENT = {"enable_progress_bar": False, "logger": None, "enable_model_summary": False,
           "enable_checkpointing": False}
_SPEAKERS = ("scvi", "lightning", "lightning.pytorch", "lightning.fabric",
             "lightning.pytorch.utilities.rank_zero")


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Seed scvi-tools, keep it silent, and leave the draws of others as they were."""
    import torch

    scvi, state = _library("scvi"), np.random.get_state()
    hushed = contextlib.redirect_stdout(io.StringIO())  # early stopping speaks by print
    with torch.random.fork_rng(), warnings.catch_warnings(), hushed:
        warnings.simplefilter("ignore")
        for name in _SPEAKERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        scvi.settings.seed = seed
        yield
    np.random.set_state(state)


def _latent(model, seed: int) -> np.ndarray:
    with quiet(seed):
        return np.asarray(model.get_latent_representation(), dtype=np.float32)


def _parameters(model) -> int:
    return sum(each.numel() for each in model.module.parameters())


def _components(values) -> int:
    return min(COMPONENTS, min(values.shape) - 1)


def _of_components(vectors: np.ndarray, genes: int) -> dict:
    return {"dimensions": vectors.shape[1], "variable_genes": genes,
            "parameters": vectors.shape[1] * genes}


def _library(name: str):
    """Import a library of the extra, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"not run: needs `{EXTRA}`") from error
