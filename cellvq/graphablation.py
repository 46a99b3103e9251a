"""What each kind of token is worth: the graph module with and without it, on held-out cells.

Beside the module stand the cell vector alone, the neighbours of strangers (the control), and the
plain mean of a cell and its neighbours (a rival that learns nothing of them).
"""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score

from cellvq import InputError, evaluate, stability
from cellvq.graphattention import GraphConfig
from cellvq.graphtokens import KINDS, Tokens, deal, learn, tokens
from cellvq.graphtraining import likelihood, neighbours_mean, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

FULL, ALONE = "all tokens", "cell vector alone"
"""The module, and the same without the graph and without all other tokens."""
FOLDS = 5
"""A seed holds out one of so many parts of the donors."""
TOLD = 0.8
"""Adjusted mutual information with the label above which an annotation is the label."""


def without(made: Tokens, *kinds: str) -> Tokens:
    """Leave out all tokens of some kinds.

    Args:
        made: tokens.
        kinds: any of ``KINDS``.

    Raises:
        InputError: there is no such kind.

    Example:
        >>> without(None, "cells")
        Traceback (most recent call last):
        cellvq.InputError: no tokens are called cells; use genes, annotations, neighbours, pairs
    """
    none = {"genes": ("gene", "value"), "annotations": (), "neighbours": ("neighbour",),
            "pairs": ("pair", "weight")}
    for kind in kinds:
        if kind not in none:
            raise InputError(f"no tokens are called {kind}; use {', '.join(KINDS)}")
    gone = {field: getattr(made, field)[:, :0] for kind in kinds for field in none[kind]}
    if "annotations" in kinds:
        gone["annotation"] = np.full_like(made.annotation, -1)
    return dataclasses.replace(made, **gone)


def strangers(made: Tokens, seed: int = 0) -> Tokens:
    """Give every cell the neighbours and signals of another cell: the control of the graph.

    Args:
        made: tokens.
        seed: seed of the shuffle.
    """
    other = np.random.default_rng([seed, 43]).permutation(len(made.features))
    return dataclasses.replace(made, neighbour=made.neighbour[other], pair=made.pair[other],
                               weight=made.weight[other])


def averaged(made: Tokens) -> Tokens:
    """Put the plain mean of a cell and of its neighbours in place of its vector, a simple rival.

    Args:
        made: tokens.
    """
    return dataclasses.replace(made, features=(made.features + neighbours_mean(made)) / 2)


def variants(made: Tokens, seed: int = 0) -> dict[str, Callable[[], Tokens]]:
    """List what is compared: the module, and the same tokens with something left out or spoilt.

    Args:
        made: tokens.
        seed: seed of the strangers.
    """
    has = {"genes": made.gene.size, "annotations": made.annotation.size,
           "neighbours": made.neighbour.size, "pairs": made.pair.size}
    found = {FULL: lambda: made}
    found |= {f"without {kind}": lambda kind=kind: without(made, kind)
              for kind in KINDS if has[kind]}
    return found | {
        "without the graph": lambda: without(made, "neighbours", "pairs"),
        "neighbours of strangers": lambda: strangers(made, seed),
        ALONE: lambda: without(made, *KINDS),
        "plain mean of neighbours": lambda: without(averaged(made), *KINDS),
    }


def held_out(cells: AnnData, donor: str | None = None, seed: int = 0) -> np.ndarray:
    """Tell which cells are held out: whole donors, another part of them for each seed.

    Args:
        cells: cells.
        donor: column of ``obs``; None, or fewer than three donors: a fifth of the cells. Cells
            without a donor count as one donor.
        seed: which part.

    Raises:
        InputError: there is no such column.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=100)
        >>> cells.obs["donor"][held_out(cells, "donor")].nunique()
        2
    """
    apart = several(cells, donor)
    unit = np.unique(cells.obs[apart].astype(str), return_inverse=True)[1] if apart else (
        np.arange(cells.n_obs))
    order = np.random.default_rng(61).permutation(unit.max() + 1)
    folds = np.array_split(order, min(FOLDS, len(order)))
    return np.isin(unit, folds[seed % len(folds)])


def several(cells: AnnData, donor: str | None) -> str:
    """Return the donor's column where it names three donors or more, and else nothing.

    Args:
        cells: cells.
        donor: column of ``obs``, or None.

    Raises:
        InputError: there is no such column.
    """
    if donor and donor not in cells.obs:
        raise InputError(f"obs has no column {donor!r}; there are {', '.join(cells.obs)}")
    return donor if donor and cells.obs[donor].astype(str).nunique() > 2 else ""


def ablation(
    cells: AnnData, label: str, *, annotations: tuple[str, ...] = (), donor: str | None = None,
    seeds: tuple[int, ...] = (0, 1, 2), config: GraphConfig | None = None, share: float = 0.8,
    only: tuple[str, ...] | None = None, progress: Callable[[str], None] | None = None, **options,
) -> pd.DataFrame:
    """Train the module with and without each kind of token, and judge all on held-out cells.

    A seed deals molecules anew, holds out other donors and trains anew, so that intervals over
    seeds hold all three. Neighbours are training cells, of other donors where donors are known.

    Args:
        cells: cells with raw counts.
        label: column of ``obs`` by which codes are judged.
        annotations: columns of ``obs`` that are tokens; never the label.
        donor: column of ``obs``, as in :func:`held_out`.
        seeds: seeds of the runs.
        config: numbers of the module; its seed is not used.
        share: share of the molecules that are shown.
        only: names of :func:`variants` to compare; None: all.
        progress: called with a line a run.
        options: as in :func:`cellvq.graphtokens.learn`, such as ``pairs`` or ``genes``.

    Returns:
        One row a variant and seed: ``variant``, ``seed``, ``vector``, ``code`` (log likelihood of
        held-out molecules of held-out cells, from the vector and from its code, nats per 1,000
        molecules), ``nmi`` (of the codes and the label, held-out cells), ``n_cells`` (held-out),
        ``donors`` (held out; 0: cells). ``attrs["codes"]`` is the code of every cell in each run,
        a column ``variant | seed``.

    Raises:
        InputError: an annotation is the label, or tells it.
    """
    check_label(cells, label, annotations)
    labels, config = cells.obs[label].astype(object).to_numpy(), config or GraphConfig()
    rows, codes, apart = [], {}, several(cells, donor)
    for seed in seeds:
        hold, dealt = held_out(cells, donor, seed), deal(cells, share, seed)
        words = learn(dealt, train=~hold, annotations=annotations, apart=apart, seed=seed,
                      **options)
        made = tokens(dealt, words)
        donors = cells.obs.loc[hold, apart].astype(str).nunique() if apart else 0
        for name, make in variants(made, seed).items():
            if only is not None and name not in only:
                continue
            now = make()
            run = train(now, dataclasses.replace(config, seed=seed), held_out=hold)
            said = likelihood(run.network, now, np.arange(cells.n_obs))
            codes[f"{name} | {seed}"] = said["number"].to_numpy()
            molecules = now.target[hold].sum() / 1000
            score = evaluate.agreement(labels[hold], said["number"].to_numpy()[hold])
            rows.append((name, seed, said.loc[hold, "vector"].sum() / molecules,
                         said.loc[hold, "code"].sum() / molecules, score["nmi"], hold.sum(),
                         donors))
            if progress:
                progress(f"{name}, seed {seed}: {rows[-1][2]:.1f} nats per 1,000 molecules")
    table = pd.DataFrame(rows, columns=["variant", "seed", "vector", "code", "nmi", "n_cells",
                                        "donors"])
    table.attrs["codes"] = pd.DataFrame(codes, index=cells.obs_names)
    return table


def check_label(cells: AnnData, label: str, annotations: tuple[str, ...]) -> None:
    """Refuse annotations by which codes would be told what they are judged by.

    Args:
        cells: cells.
        label: column of ``obs`` by which codes are judged.
        annotations: columns of ``obs`` that are tokens.

    Raises:
        InputError: an annotation is the label or another name of it, or a column is missing.
    """
    for name in (label, *annotations):
        if name not in cells.obs:
            raise InputError(f"obs has no column {name!r}; there are {', '.join(cells.obs)}")
    for name in annotations:
        one, other = evaluate.labelled_pair(cells.obs[label], cells.obs[name])
        told = 1.0 if name == label else adjusted_mutual_info_score(one, other)
        if told > TOLD:
            raise InputError(f"the annotation {name!r} tells the label {label!r} (adjusted mutual "
                             f"information {told:.2f}), by which codes are judged: leave it out")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise an ablation: differences to the module, paired by seed, and what codes agree on.

    Args:
        table: :func:`ablation`.

    Returns:
        One row a variant: ``variant``; ``vector``, ``code`` and ``nmi`` (difference to the module
        with all tokens, mean over seeds) each with ``_low`` and ``_high``; ``label_nmi`` (itself,
        mean), ``ami``, ``ami_low``, ``ami_high`` (adjusted mutual information of the codes of all
        cells between seeds; the interval needs three), ``seeds``, ``n_cells`` (held out, fewest).
    """
    codes, rows = table.attrs["codes"], []
    full = table[table["variant"] == FULL].set_index("seed")
    for name, part in table.groupby("variant", sort=False):
        part = part.set_index("seed")
        row = {"variant": name}
        for column in ("vector", "code", "nmi"):
            found = evaluate.paired_difference(part[column], full.loc[part.index, column])
            row |= {column: found.estimate, f"{column}_low": found.low,
                    f"{column}_high": found.high}
        row |= {"label_nmi": part["nmi"].mean(), "ami": np.nan, "ami_low": np.nan,
                "ami_high": np.nan, "seeds": len(part), "n_cells": part["n_cells"].min()}
        pairs = pd.DataFrame([
            (name, "seeds", one, other, adjusted_mutual_info_score(
                codes[f"{name} | {one}"], codes[f"{name} | {other}"]), 0.0, len(codes))
            for one, other in combinations(part.index, 2)],
            columns=["method", "kind", "first", "second", "ami", "null_mean", "n_cells"])
        if len(pairs):
            found = stability.summary(pairs).iloc[0]
            row |= {"ami": found["mean"], "ami_low": found["low"], "ami_high": found["high"]}
        rows.append(row)
    return pd.DataFrame(rows)
