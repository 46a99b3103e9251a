"""Benchmark tasks with their baselines: does a representation carry what is known of the cells?

A task takes AnnData with ``obsm`` and ``obs``, never a model, so any method can be scored. The
continuous embedding and the code are scored separately, each beside the simplest rival and a
control with shuffled labels.

The score table is described in :mod:`cellvq.scores`, whose functions are offered here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellvq import InputError, evaluate, genes
from cellvq.scores import (
    KMEANS,
    MODEL,
    NARROW,
    PCA,
    SCORE_COLUMNS,
    SHUFFLED,
    Verdict,
    in_words,
    summarise,
    verdict,
    verdicts,
)

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "KMEANS", "MODEL", "NARROW", "PCA", "SCORE_COLUMNS", "SHUFFLED", "Verdict", "column", "compare",
    "in_words", "pca_embedding", "score_codes", "score_embedding", "shuffled", "summarise",
    "verdict", "verdicts", "with_label",
]


def pca_embedding(
    cells: AnnData, components: int = 50, *, seed: int = 0, variable_genes: int = 2000
) -> np.ndarray:
    """Embed cells by the standard recipe of the field: the baseline that a model has to beat.

    Counts to 10,000 a cell (by sequencing depth), log1p, the most variable genes where there are
    more than ``variable_genes`` (Seurat flavour), unit variance clipped at 10, PCA; all by scanpy.

    Args:
        cells: cells with raw counts.
        components: dimensions wanted; fewer where there are not as many cells or genes.

    Returns:
        float32, [cells, components].

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> pca_embedding(simulate_cells(cells=200), 10).shape
        (200, 10)
    """
    import scanpy as sc
    from anndata import AnnData

    counts, _ = genes.find_counts(cells)
    work = AnnData(evaluate.log_normalise(counts, genes.sequencing_depth(cells, counts)))
    sc.pp.filter_genes(work, min_cells=1)
    if work.n_vars > variable_genes:
        sc.pp.highly_variable_genes(work, n_top_genes=variable_genes, subset=True)
    work.X = work.X.toarray()  # scaling fills the zeros
    sc.pp.scale(work, max_value=10)
    sc.pp.pca(work, n_comps=min(components, min(work.shape) - 1), random_state=seed)
    return np.asarray(work.obsm["X_pca"], dtype=np.float32)


def score_embedding(
    cells: AnnData,
    key: str,
    label: str,
    *,
    seed: int = 0,
    donor: str | None = None,
    method: str = MODEL,
    dataset: str | None = None,
) -> pd.DataFrame:
    """Score a continuous embedding: kNN macro-F1, and k-means with as many groups as labels.

    Args:
        cells: cells with ``obsm[key]``, [cells, dimensions].
        label: column of ``obs`` with what is known of the cells, for example the cell type.
        donor: column of ``obs``; the probe is then tested on donors that it never saw.
        method: name of the method in the table.
        dataset: name in the table; None: ``uns["dataset"]``.

    Returns:
        Score table: macro_f1, ari, nmi.
    """
    if key not in cells.obsm:
        raise InputError(f"obsm has no {key!r}; there are {', '.join(cells.obsm) or 'none'}")
    known = evaluate.labelled(column(cells, label))
    cells = cells[known & np.isfinite(cells.obsm[key]).all(axis=1)]  # empty cells have no embedding
    embedding, labels = np.asarray(cells.obsm[key]), column(cells, label)
    donors = None if donor is None else column(cells, donor)
    probe = evaluate.probe(embedding, labels, seed=seed, donors=donors)
    groups = evaluate.kmeans_codes(embedding, len(pd.unique(labels)), seed)
    agreement = evaluate.agreement(labels, groups)
    sizes = agreement["n_cells"], agreement["n_groups"]
    rows = [
        ("annotation", "macro_f1", probe.macro_f1, probe.n_cells, probe.n_classes),
        ("clustering", "ari", agreement["ari"], *sizes),
        ("clustering", "nmi", agreement["nmi"], *sizes),
    ]
    return _score_table(rows, cells, dataset, method, "embedding", seed)


def score_codes(
    cells: AnnData,
    code_column: str,
    label: str,
    *,
    seed: int = 0,
    donor: str | None = None,
    method: str = MODEL,
    dataset: str | None = None,
) -> pd.DataFrame:
    """Score a code: agreement with labels, what its majority label predicts, how evenly it is used.

    NMI and purity rise with the number of codes, so compare methods at an equal number in use.

    Args:
        cells: cells with the code in ``obs[code_column]``.
        label: column of ``obs`` with what is known of the cells.
        donor: column of ``obs``; majority labels are then tested on donors that they never saw.
        method: name of the method in the table.
        dataset: name of the data set; None: ``uns["dataset"]``.

    Returns:
        Score table: macro_f1, nmi, ari, purity, codes_used, perplexity.
    """
    cells = cells[evaluate.labelled(column(cells, code_column))]  # empty cells have no code
    codes, labels = column(cells, code_column).astype(str), column(cells, label)
    donors = None if donor is None else column(cells, donor)
    probe = evaluate.probe(codes, labels, classifier="majority", seed=seed, donors=donors)
    agreement = evaluate.agreement(labels, codes)
    sizes = agreement["n_cells"], agreement["n_groups"]
    usage = evaluate.code_usage(codes)
    rows = [
        ("annotation", "macro_f1", probe.macro_f1, probe.n_cells, probe.n_classes),
        ("clustering", "nmi", agreement["nmi"], *sizes),
        ("clustering", "ari", agreement["ari"], *sizes),
        ("clustering", "purity", evaluate.purity(labels, codes), *sizes),
        ("usage", "codes_used", usage.used, usage.n_cells, usage.used),
        ("usage", "perplexity", usage.perplexity, usage.n_cells, usage.used),
    ]
    return _score_table(rows, cells, dataset, method, "code", seed)


def shuffled(cells: AnnData, label: str, seed: int = 0) -> AnnData:
    """The same cells (``obs`` and ``obsm``) with labels shuffled: what chance scores."""
    from anndata import AnnData

    labels = column(cells, label)
    known = evaluate.labelled(labels)
    labels[known] = np.random.default_rng(seed).permutation(labels[known])
    return AnnData(obs=cells.obs.assign(**{label: labels}), obsm=dict(cells.obsm))


def compare(
    cells: AnnData,
    label: str,
    *,
    seed: int = 0,
    donor: str | None = None,
    dataset: str | None = None,
    key: str = "X_cellvq",
    code_column: str = "cellvq_code",
) -> pd.DataFrame:
    """Score an encoded data set beside PCA, k-means on PCA and shuffled labels, for one seed.

    k-means gets as many groups as there are codes in use. Call it once for each seed of the model
    and join the tables: ``pd.concat([compare(encode(cells, model[s]), label, seed=s) ...])``.

    Args:
        cells: encoded cells with raw counts.
        label: column of ``obs`` with what is known of the cells.
        donor: column of ``obs`` to split the probes by.
        dataset: name of the data set; None: ``uns["dataset"]``.

    Returns:
        Score table of the methods ``CellVQ``, ``PCA`` (50 components, and as many as CellVQ has),
        ``k-means on PCA`` and the controls.
    """
    from anndata import AnnData

    cells = cells[evaluate.labelled(column(cells, code_column))]  # all methods on the same cells
    columns = {name: column(cells, name) for name in (code_column, label, donor) if name}
    pca = pca_embedding(cells, seed=seed)
    in_use = len(pd.unique(columns[code_column]))
    columns["k-means"] = evaluate.kmeans_codes(pca, in_use, seed)
    vectors = np.asarray(cells.obsm[key])
    narrow = pca[:, : vectors.shape[1]]
    work = AnnData(obs=pd.DataFrame(columns, index=cells.obs_names),
                   obsm={key: vectors, "X_pca": pca, "X_narrow": narrow})
    control = shuffled(work, label, seed)
    dataset = cells.uns.get("dataset", "") if dataset is None else dataset
    options = {"seed": seed, "donor": donor, "dataset": dataset}
    scores = pd.concat([
        score_embedding(work, key, label, method=MODEL, **options),
        score_embedding(work, "X_pca", label, method=PCA, **options),
        score_embedding(work, "X_narrow", label, method=NARROW, **options),
        score_embedding(control, key, label, method=MODEL + SHUFFLED, **options),
        score_codes(work, code_column, label, method=MODEL, **options),
        score_codes(work, "k-means", label, method=KMEANS, **options),
        score_codes(control, code_column, label, method=MODEL + SHUFFLED, **options),
    ], ignore_index=True)
    # Shuffling labels leaves the codes as they are.
    twice = (scores["task"] == "usage") & scores["method"].str.endswith(SHUFFLED)
    return scores[~twice].reset_index(drop=True)


def with_label(cells: AnnData, label: str, seed: int = 0) -> tuple[AnnData, str]:
    """Give cells without labels a stand-in, so that a notebook can run on any file.

    The stand-in is Leiden clusters of the PCA baseline. Scores against it say how far a method
    agrees with PCA, not which of the two is right.

    Args:
        cells: cells with raw counts.
        label: column of ``obs``; empty: the stand-in, in a new column ``leiden``.

    Returns:
        The cells (a copy where a column was added) and the name of the column.

    Raises:
        InputError: there is no such column; the message lists those there are.
    """
    if label:
        column(cells, label)
        return cells, label
    import scanpy as sc
    from anndata import AnnData

    work = AnnData(obs=cells.obs[[]].copy(), obsm={"X_pca": pca_embedding(cells, seed=seed)})
    # Exact neighbours: scanpy's own choice beyond 4,096 cells fails with newer pynndescent.
    sc.pp.neighbors(work, use_rep="X_pca", transformer="sklearn", random_state=seed)
    sc.tl.leiden(work, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    cells = cells.copy()
    cells.obs["leiden"] = ("cluster " + work.obs["leiden"].astype(str)).astype("category")
    return cells, "leiden"


def column(cells: AnnData, name: str) -> np.ndarray:
    """A column of ``obs`` as an object array, [cells].

    Raises:
        InputError: there is no such column; the message lists those there are.
    """
    if name not in cells.obs:
        raise InputError(f"obs has no column {name!r}; there are {', '.join(cells.obs) or 'none'}")
    return cells.obs[name].to_numpy(dtype=object, copy=True)


def _score_table(rows, cells, dataset, method, representation, seed) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["task", "metric", "value", "n_cells", "n_groups"])
    dataset = cells.uns.get("dataset", "") if dataset is None else dataset
    table = table.assign(
        dataset=str(dataset), method=method, representation=representation, seed=seed
    )
    return table.astype({"value": float})[SCORE_COLUMNS]
