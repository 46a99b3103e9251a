"""Is the codebook alive, and what does it cost to say a cell in one code, at every depth?

How codes are used is read off encoded cells; the price is measured on validation cells. Which genes
and codes pay it says :mod:`cellvq.reconstruction`, whose functions are offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsClassifier

from cellvq import InputError, evaluate, quantize, weights
from cellvq.codes import CONFIDENCE, EMBEDDING, cut, with_code
from cellvq.corpus import Corpus
from cellvq.model import CellVQ
from cellvq.reconstruction import (
    MEAN,
    VECTOR,
    HeldOut,
    held_out,
    reconstruction_by_code,
    reconstruction_by_gene,
)
from cellvq.train import encode_cells

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "HeldOut", "code_sizes", "held_out", "over_seeds", "price_of_discretising",
    "reconstruction_by_code", "reconstruction_by_gene", "usage",
]
MOST_TAUGHT = 10_000
"""Training cells that the probe learns from, at the most."""
QUANTILES = (0.1, 0.5, 0.9)


def code_sizes(cells: AnnData, model: CellVQ) -> pd.DataFrame:
    """Count the cells of every code of every level, dead codes included.

    Args:
        cells: cells that this model encoded; those without a code are left out.
        model: the model.

    Returns:
        Largest code of each level first: ``level`` (int, 0 the coarsest), ``code`` (str),
        ``cells`` (int), ``fraction`` (of all cells), ``distance`` (median Euclidean distance of its
        cells to its vector), ``confidence`` (their median, 0 to 1; both NaN for a dead code).
    """
    tables = []
    for level, (names, number, distance, confidence) in enumerate(_levels(cells, model)):
        each = pd.DataFrame({"distance": distance, "confidence": confidence}).groupby(number)
        sizes = np.bincount(number, minlength=len(names))
        table = pd.DataFrame({"level": level, "code": names, "cells": sizes,
                              "fraction": sizes / sizes.sum()}).join(each.median())
        tables.append(table.sort_values("cells", ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True)


def usage(cells: AnnData, model: CellVQ) -> pd.DataFrame:
    """Say for each level of the address whether its codes are alive.

    Args:
        cells: cells that this model encoded; those without a code are left out.
        model: the model.

    Returns:
        One row a level, the coarsest first: ``level``, ``codes`` (there are), ``used``, ``dead``
        (int), ``perplexity`` (codes evenly used), ``evenness`` (perplexity over used codes),
        ``smallest``, ``size_25``, ``size_50``, ``size_75``, ``largest`` (cells of a used code, with
        quartiles), ``smallest_code``, ``largest_code`` (str), ``distance_10``, ``distance_50``,
        ``distance_90`` (Euclidean, of cells to their code's vector), ``confidence_10``,
        ``confidence_50``, ``confidence_90``, ``quantisation_error`` (share of the variance of the
        vectors that the codes leave unexplained), ``n_cells`` (int). Distances are NaN for models
        that quantise another vector than they give out, as ``attrs["reason"]`` then says.

    Raises:
        InputError: the cells were not encoded by this model.
    """
    rows, reason = [], ""
    coded, _ = with_code(cells)
    x = torch.as_tensor(np.asarray(coded.obsm[EMBEDDING], np.float32), device=model.device)
    if x.shape[1] == model.config.code_width:
        errors = [row["quantisation_error"] for row in quantize.diagnose(model.quantizer, x)]
    else:
        errors = [math.nan] * len(model.quantizer.sizes)
        reason = "no distances: this model quantises another vector than it gives out"
    for level, (names, number, distance, confidence) in enumerate(_levels(cells, model)):
        sizes = np.bincount(number, minlength=len(names))
        used = sizes[sizes > 0]
        even = evaluate.perplexity(number)
        row = {"level": level, "codes": len(names), "used": len(used),
               "dead": len(names) - len(used), "perplexity": even, "evenness": even / len(used),
               "smallest": used.min()}
        row |= {f"size_{share}": np.quantile(used, share / 100) for share in (25, 50, 75)}
        row |= {"largest": used.max(),
                "smallest_code": names[np.where(sizes > 0, sizes, sizes.max() + 1).argmin()],
                "largest_code": names[sizes.argmax()]}
        for what, values in (("distance", distance), ("confidence", confidence)):
            found = np.quantile(values, QUANTILES)
            row |= {f"{what}_{round(100 * share)}": value
                    for share, value in zip(QUANTILES, found, strict=True)}
        rows.append(row | {"quantisation_error": errors[level], "n_cells": len(number)})
    table = pd.DataFrame(rows)
    table.attrs["reason"] = reason
    return table


@torch.no_grad()
def _levels(cells: AnnData, model: CellVQ) -> list[tuple]:
    """Return names of codes, code, distance and confidence of each cell, for each level."""
    cells, codes = with_code(cells)
    made_by = cells.uns.get("cellvq", {}).get("weights_sha256")
    if made_by is not None and made_by != weights.fingerprint(model):
        raise InputError("the cells were encoded by another model; encode them with this one")
    x = torch.as_tensor(np.asarray(cells.obsm[EMBEDDING], np.float32), device=model.device)
    is_quantised, found = x.shape[1] == model.config.code_width, []
    depths = len(model.quantizer.sizes)
    for level in range(depths):
        names = np.array(model.quantizer.addresses(level), dtype=object)
        number = pd.Index(names).get_indexer(cut(codes, level + 1))
        if (number < 0).any():
            raise InputError(f"code {codes.iloc[number.argmin()]!r} is none of this model's; "
                             "encode the cells with it")
        distance = confidence = np.full(len(codes), np.nan)
        if is_quantised:
            distance, other = _distances(x, model.quantizer.vectors_at(level), number)
            confidence = np.clip(1 - distance / np.maximum(other, 1e-12), 0, 1)
        if level == depths - 1 and CONFIDENCE in cells.obs:  # as the quantiser measures it
            confidence = cells.obs[CONFIDENCE].to_numpy(float)
        found.append((names, number, distance, confidence))
    return found


def _distances(
    x: torch.Tensor, vectors: torch.Tensor, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each cell to its code's vector and to the nearest other, [cells]."""
    own, other = [], []
    taken = torch.as_tensor(number, device=x.device)
    for part, code in zip(x.split(4096), taken.split(4096), strict=True):
        apart = torch.cdist(part, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        own.append(apart.gather(1, code[:, None]).squeeze(1))
        other.append(apart.scatter(1, code[:, None], math.inf).amin(1))
    return torch.cat(own).cpu().numpy(), torch.cat(other).cpu().numpy()


def price_of_discretising(
    model: CellVQ, corpus: Corpus, *, label: str | None = None, found: HeldOut | None = None,
    draws: int = 200, seed: int = 0,
) -> pd.DataFrame:
    """Measure on validation cells what is lost from the vector to each level of the code.

    Three scores: the likelihood of hidden genes; how well the label is predicted from training
    cells (15 nearest neighbours of the vector; the most common label of the code); and how k-means
    with as many groups as labels, on vectors and on code vectors, agrees with the labels.

    Args:
        model: a trained model.
        corpus: cells whose validation cells (whole donors, where they are known) it has not seen.
        label: a property of the corpus (``gather(..., properties=[label])``); None for likelihood
            alone.
        found: `held_out` of the same model and corpus, to save making it again.
        draws: bootstrap draws of cells, the same for all rows.
        seed: seed of hidden genes, k-means and draws.

    Returns:
        One row a score: ``representation`` (str, ``cell vector``, ``8 codes``, ...,
        ``mean profile``), ``codes`` (there are; NaN of the other two), ``metric`` (``likelihood``
        above the mean profile per 1,000 hidden genes, ``macro_f1``, ``ari``), ``value``, ``low``,
        ``high`` (95 % interval over cells), ``price`` (the vector's value less this one),
        ``price_low``, ``price_high``, ``n_cells`` (int). ``attrs["reason"]`` says what is missing.
    """
    found = held_out(model, corpus, seed=seed) if found is None else found
    gains, none = found.gains.assign(**{MEAN: 0.0}), math.nan
    sizes = [none, *model.quantizer.sizes, none]
    rng = np.random.default_rng(seed)
    rows = _priced("likelihood", list(gains), sizes, len(gains), draws, rng,
                   lambda name, chosen: gains[name].to_numpy()[chosen].mean())
    truth, reason = _truth(corpus, label), ""
    taught, asked = (cells[truth[cells] >= 0] for cells in (corpus.train, gains.index.to_numpy()))
    if not label:
        reason = "no label is named"
    elif len(np.unique(truth[taught])) < 2 or len(np.unique(truth[asked])) < 2:
        reason = f"fewer than two labels of {label!r} among training or validation cells"
    else:
        if len(taught) > MOST_TAUGHT:
            taught = np.sort(rng.choice(taught, MOST_TAUGHT, replace=False))
        said, groups = _read(model, corpus, truth, taught, asked, seed)
        known = truth[asked]
        rows += _priced("macro_f1", list(said), sizes, len(asked), draws, rng,
                        lambda name, chosen: _macro_f1(known[chosen], said[name][chosen]))
        rows += _priced("ari", list(groups), sizes, len(asked), draws, rng,
                        lambda name, chosen: adjusted_rand_score(known[chosen],
                                                                 groups[name][chosen]))
    table = pd.DataFrame(rows)
    table.attrs["reason"] = reason
    return table


def over_seeds(prices: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join the prices of models of several seeds: means, with intervals over seeds.

    Args:
        prices: :func:`price_of_discretising` of each model.

    Returns:
        The same columns, ``n_cells`` the smallest, and ``seeds`` (int). With one seed the intervals
        stay those over cells.
    """
    prices = list(prices)
    if len(prices) == 1:
        return prices[0].assign(seeds=1)
    rows = []
    keys = ["representation", "codes", "metric"]
    for names, part in pd.concat(prices).groupby(keys, sort=False, dropna=False):
        value = evaluate.bootstrap_interval(part["value"])
        price = evaluate.bootstrap_interval(part["price"])
        rows.append((*names, value.estimate, value.low, value.high, price.estimate, price.low,
                     price.high, part["n_cells"].min(), value.n))
    table = pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "price", "price_low",
                                        "price_high", "n_cells", "seeds"])
    table.attrs["reason"] = prices[0].attrs["reason"]
    return table


def _priced(
    metric: str, names: list[str], sizes: list[float], cells: int, draws: int,
    rng: np.random.Generator, score: Callable[[str, np.ndarray], float],
) -> list[dict]:
    """Score every representation on all cells and on bootstrap draws of them, the vector first."""
    chosen = [np.arange(cells), *rng.integers(cells, size=(draws, cells))]
    scores = np.array([[score(name, one) for one in chosen] for name in names])
    prices, rows = scores[0] - scores, []
    for name, size, of_score, of_price in zip(names, sizes, scores, prices, strict=False):
        (low, high), (least, most) = (np.quantile(x[1:], [0.025, 0.975])
                                      for x in (of_score, of_price))
        rows.append({"representation": name, "codes": size, "metric": metric, "value": of_score[0],
                     "low": low, "high": high, "price": of_price[0], "price_low": least,
                     "price_high": most, "n_cells": cells})
    return rows


def _truth(corpus: Corpus, label: str | None) -> np.ndarray:
    """Return the number of each cell's label, -1 where it has none, [cells]."""
    if not label:
        return np.full(len(corpus.depth), -1)
    if label not in corpus.labels:
        raise InputError(f"{label!r} is no property of the corpus; "
                         f"gather it with properties=[{label!r}]")
    return corpus.properties[:, list(corpus.labels).index(label)]


@torch.no_grad()
def _read(
    model: CellVQ, corpus: Corpus, truth: np.ndarray, taught: np.ndarray, asked: np.ndarray,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read labels of asked cells off what taught cells have, and group asked cells by k-means.

    Returns:
        The labels, and the groups, of each representation but the mean profile.
    """
    quantizer, taught_labels = model.quantizer, truth[taught]
    before, after = (encode_cells(model, corpus, cells).summary for cells in (taught, asked))
    codes, new = (quantizer(x).codes for x in (before, after))
    before, after = before.cpu().numpy(), after.cpu().numpy()
    labels, size = np.bincount(taught_labels), len(np.unique(truth[asked]))
    nearest = KNeighborsClassifier(min(15, len(taught))).fit(before, taught_labels)
    said = {VECTOR: nearest.predict(after)}
    groups = {VECTOR: evaluate.kmeans_codes(after, size, seed)}
    for level, codes_there in enumerate(quantizer.sizes):
        old, own = (quantizer.prefix(x, level).cpu().numpy() for x in (codes, new))
        votes = np.zeros((codes_there, len(labels)), int)
        np.add.at(votes, (old, taught_labels), 1)
        best = np.where(votes.any(1), votes.argmax(1), labels.argmax())  # an unseen code: the most
        said[f"{codes_there} codes"] = best[own]
        vectors = quantizer.vectors_of(new, level).cpu().numpy()
        few = min(size, len(np.unique(own)))
        groups[f"{codes_there} codes"] = evaluate.kmeans_codes(vectors, few, seed)
    return said, groups


def _macro_f1(truth: np.ndarray, said: np.ndarray) -> float:
    """Return the mean F1 of the labels that cells have or are said to have."""
    size = max(truth.max(), said.max()) + 1
    counts = np.bincount(truth * size + said, minlength=size**2).reshape(size, size)
    both = counts.sum(0) + counts.sum(1)
    return float(np.mean(2 * counts.diagonal()[both > 0] / both[both > 0]))
