"""What the codes mean: their size, markers, annotation and neighbours, each with its evidence.

Every function reads an encoded AnnData (``obs["cellvq_code"]``, ``obs["cellvq_confidence"]``,
``obsm["X_cellvq"]``, ``obsm["X_cellvq_code"]``) and returns a table; cells without a code are left
out.

Codes were learnt from the same counts that are tested here, so p-values of markers and neighbours
are descriptive: they rank, they do not prove that a state exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from cellvq import InputError, evaluate
from cellvq.markers import CODE, MARKER_COLUMNS, cut, marker_table, top_markers, with_code

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "MARKER_COLUMNS", "annotation_table", "cell_map", "code_centres", "code_table", "cut",
    "marker_table", "neighbour_table", "top_markers", "tree_table", "with_code",
]
CONFIDENCE, EMBEDDING, CODE_VECTOR = "cellvq_confidence", "X_cellvq", "X_cellvq_code"


def annotation_table(cells: AnnData, label: str) -> pd.DataFrame:
    """Test every code for every label: the table of :func:`cellvq.evaluate.enrichment`.

    Args:
        cells: encoded cells.
        label: column of ``obs`` with what is known of the cells; cells without one are dropped.

    Returns:
        One row a pair: ``code``, ``label`` (str), ``cells`` (both), ``code_cells``,
        ``label_cells``, ``n_cells`` (int, labelled cells), ``fraction`` (of the code's labelled
        cells), ``log2_enrichment``, ``p``, ``fdr``.
    """
    if label not in cells.obs:
        raise InputError(f"obs has no column {label!r}; there are {', '.join(cells.obs)}")
    cells, codes = with_code(cells)
    table = evaluate.enrichment(codes.to_numpy(), cells.obs[label].to_numpy(dtype=object))
    return table.rename(columns={"group": "code", "group_cells": "code_cells"})


def neighbour_table(cells: AnnData, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Find codes that border on each other: many cells of one have the other as second choice.

    The second choice of a cell is the nearest code but its own, by the mean of the code's cells in
    ``obsm["X_cellvq"]``. Under the null it is drawn by how often each code is a second choice at
    all, so a code in the middle of everything is not everybody's neighbour.

    Args:
        cells: encoded cells.
        draws: draws from the null; the smallest possible p is 1 / (draws + 1).
        seed: seed of the draws.

    Returns:
        One row a pair of codes that share such cells, each pair once: ``code``, ``neighbour``
        (str), ``shared`` (int, cells of either with the other as second choice), ``expected``
        (under the null), ``log2_enrichment``, ``distance`` (Euclidean, between code vectors),
        ``n_cells`` (int, cells of both), ``p``, ``fdr`` (over all pairs of codes).
    """
    cells, codes = with_code(cells)
    names, number = np.unique(codes.to_numpy(), return_inverse=True)
    sizes, size = np.bincount(number), len(names)
    first, second = np.triu_indices(size, 1)
    choice = _second_choice(np.asarray(cells.obsm[EMBEDDING], dtype=float), number)
    shared = np.bincount(number * size + choice, minlength=size * size).reshape(size, size)
    observed = (shared + shared.T)[first, second]
    chance = np.tile(shared.sum(axis=0) / len(number), (size, 1)) * (1 - np.eye(size))
    chance /= np.maximum(chance.sum(axis=1, keepdims=True), 1e-12)
    rng = np.random.default_rng(seed)
    as_many = np.zeros(len(observed))
    for _ in range(draws):
        drawn = rng.multinomial(sizes, chance)
        as_many += (drawn + drawn.T)[first, second] >= observed
    expected = (sizes[first] * chance[first, second]) + (sizes[second] * chance[second, first])
    vectors = _code_vectors(cells, codes).loc[names]
    table = pd.DataFrame({
        "code": names[first],
        "neighbour": names[second],
        "shared": observed,
        "expected": expected,
        "log2_enrichment": np.log2((observed + 0.5) / (expected + 0.5)),
        "distance": cdist(vectors, vectors)[first, second],
        "n_cells": sizes[first] + sizes[second],
        "p": (1 + as_many) / (1 + draws),
    })
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table = table[table["shared"] > 0]
    return table.sort_values(["p", "distance"], ignore_index=True)


def code_table(
    cells: AnnData,
    label: str | None = None,
    *,
    markers: pd.DataFrame | None = None,
    stability: pd.DataFrame | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Describe every code in use in one row.

    Args:
        cells: encoded cells; with raw counts where ``markers`` is None.
        label: column of ``obs`` with what is known of the cells; None: no annotation.
        markers: :func:`marker_table` of the same cells, to save making it again.
        stability: :func:`cellvq.stability.code_stability` of the same cells; by default not told.
        seed: seed of the null of the purity.

    Returns:
        Largest code first: ``code`` (str), ``cells`` (int), ``fraction`` (of all cells),
        ``confidence`` (mean, 0 to 1; NaN where none was given), ``markers`` (str, up to five genes
        at FDR 0.05, best first), ``tested`` (bool, large enough for the marker test),
        ``nearest`` (str, closest other code; empty with a single code), ``nearest_distance``
        (Euclidean, between code vectors). With a label also ``annotation`` (str, its most common
        label; empty without labelled cells), ``purity`` (share of that label), ``purity_null``
        (mean purity of random codes of this size), ``annotation_log2_enrichment``,
        ``annotation_fdr``; with stability also ``stability`` and ``stable`` (str).
    """
    cells, codes = with_code(cells)
    sizes = codes.value_counts()
    confidence = cells.obs.get(CONFIDENCE, pd.Series(np.nan, cells.obs_names)).astype(float)
    markers = marker_table(cells) if markers is None else markers
    best = top_markers(markers).groupby("code")["gene"].agg(", ".join)
    vectors = _code_vectors(cells, codes).loc[sizes.index]
    distances = cdist(vectors, vectors) + np.diag(np.full(len(vectors), np.inf))
    single = len(vectors) == 1
    table = sizes.to_frame("cells").assign(
        fraction=sizes / len(codes),
        confidence=confidence.groupby(codes).mean(),
        markers=best.reindex(sizes.index).fillna(""),
        tested=sizes.index.isin(markers["code"]),
        nearest="" if single else sizes.index.to_numpy()[distances.argmin(axis=1)],
        nearest_distance=np.nan if single else distances.min(axis=1),
    )
    if label is not None:
        table = table.join(_annotate(annotation_table(cells, label), seed))
        table["annotation"] = table["annotation"].fillna("")
    if stability is not None:
        table = table.join(stability.set_index("code")[["stability", "stable"]])
    table = table.rename_axis("code").reset_index()
    return table.sort_values(["cells", "code"], ascending=[False, True], ignore_index=True)


def tree_table(cells: AnnData, label: str) -> pd.DataFrame:
    """Describe every state of nested codes, from the coarsest to the codes themselves.

    Args:
        cells: encoded cells.
        label: column of ``obs`` with what is known of the cells.

    Returns:
        One row a state, parents before their children: ``address``, ``parent`` (str, empty for the
        coarsest), ``level`` (int, 0 the coarsest), ``cells`` (int), ``annotation`` (str, its most
        common label; empty without labelled cells), ``purity`` (share of that label).
    """
    cells, codes = with_code(cells)
    levels = []
    for level in range(codes.str.count(r"\.").max() + 1):
        work = cells[:, :0].copy()
        work.obs[CODE] = pd.Categorical(cut(codes, level + 1))
        pairs = annotation_table(work, label).sort_values("fraction", ascending=False)
        best = pairs.groupby("code")[["label", "fraction"]].first()
        found = work.obs[CODE].value_counts().rename("cells").to_frame().join(best)
        levels.append(found.assign(level=level))
    table = pd.concat(levels).rename_axis("address").reset_index()
    table = table.rename(columns={"label": "annotation", "fraction": "purity"})
    table["annotation"] = table["annotation"].fillna("")
    table["parent"] = cut(table["address"], -1)
    columns = ["address", "parent", "level", "cells", "annotation", "purity"]
    return table.astype({"address": str})[columns].sort_values("address", ignore_index=True)


def cell_map(
    cells: AnnData, key: str = EMBEDDING, *, neighbors: int = 15, seed: int = 0
) -> pd.DataFrame:
    """Place cells in the plane by UMAP (scanpy), for looking at and not for measuring.

    Args:
        cells: encoded cells.
        key: the embedding in ``obsm``.

    Returns:
        DataFrame indexed by cell: ``x``, ``y`` (float, no unit), then the columns of ``obs``.
    """
    import scanpy as sc
    from anndata import AnnData

    cells, _ = with_code(cells)
    work = AnnData(obs=cells.obs[[]].copy(), obsm={key: np.asarray(cells.obsm[key])})
    sc.pp.neighbors(work, n_neighbors=min(neighbors, work.n_obs - 1), use_rep=key,
                    transformer="sklearn", random_state=seed)  # as in tasks.with_label
    sc.tl.umap(work, random_state=seed)
    places = pd.DataFrame(work.obsm["X_umap"], index=cells.obs_names, columns=["x", "y"])
    return places.join(cells.obs)


def code_centres(places: pd.DataFrame, column: str = CODE) -> pd.DataFrame:
    """Where to write the name of each group on a map: the median of its cells; unnamed ones none.

    Args:
        places: the table of :func:`cell_map`.
        column: column that names the groups.

    Returns:
        ``name`` (str), ``x``, ``y`` (float), ``cells`` (int).
    """
    places = places[evaluate.labelled(places[column])]
    groups = places.groupby(places[column].astype(str))
    table = groups[["x", "y"]].median().assign(cells=groups.size())
    return table.rename_axis("name").reset_index()


def _second_choice(embedding: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The nearest code but its own, of each cell; its own where there is a single code."""
    centres = pd.DataFrame(embedding).groupby(number).mean().to_numpy()
    nearest = NearestNeighbors(n_neighbors=min(2, len(centres))).fit(centres)
    choices = nearest.kneighbors(embedding, return_distance=False)
    return np.where(choices[:, 0] == number, choices[:, -1], choices[:, 0])


def _annotate(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The most common label of each code, with its null: random codes of the same size."""
    best = pairs.sort_values(["cells", "label"], ascending=[False, True]).groupby("code").head(1)
    label_cells = pairs.drop_duplicates("label")["label_cells"].to_numpy()
    rng = np.random.default_rng(seed)
    null = [
        rng.multivariate_hypergeometric(label_cells, size, 200, method="marginals").max(1).mean()
        for size in best["code_cells"]
    ]
    return best.assign(purity_null=null / best["code_cells"]).set_index("code")[
        ["label", "fraction", "purity_null", "log2_enrichment", "fdr"]
    ].set_axis(["annotation", "purity", "purity_null", "annotation_log2_enrichment",
                "annotation_fdr"], axis=1)


def _code_vectors(cells: AnnData, codes: pd.Series) -> pd.DataFrame:
    """One vector a code, [codes, dimensions]; cells of a code share it, up to rounding."""
    key = CODE_VECTOR if CODE_VECTOR in cells.obsm else EMBEDDING
    if key not in cells.obsm:
        raise InputError(f"obsm has neither {CODE_VECTOR!r} nor {EMBEDDING!r}: encode the cells")
    vectors = pd.DataFrame(np.asarray(cells.obsm[key], dtype=float), index=codes.index)
    return vectors.groupby(codes.to_numpy()).mean()
