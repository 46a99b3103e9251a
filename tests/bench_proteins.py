"""Record what codes tell of proteins on real cells, for the page of the book that shows it.

Needs ``CELLVQ_DATA`` (or fetched data sets), and takes an hour on two cores, most of it training:

    python tests/bench_proteins.py --models MODELS --record book/discovery

``MODELS`` holds the models, which are trained first where they are missing: for each study one for
each seed on the RNA of its cells. Each study is also encoded by the models of the other one, which
have seen none of its cells.
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

import cellvq
from cellvq import datasets, evaluate, proteinreading, proteins, proteinverdicts, tasks
from cellvq.proteinreading import CODES, KMEANS, KMEANS_UNSCALED, NARROW, PCA, SHUFFLED, plus
from cellvq.runs import Pretrained

# Study: its data sets, batch, and column of which whole values are held out.
STUDIES = {
    "mimitou2019": (("eccite_citefuse",), None, "hto_argmax"),
    "10x_pbmc_protein": (("pbmc_5k_protein_scvi200", "pbmc_10k_protein_scvi200"), "batch", "batch"),
}
STEPS, CODEBOOK, CLUSTERS = 120, 16, 5
PLANTED = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Shares of variance of made-up proteins that hang on the code."""


def load(study: str) -> anndata.AnnData:
    """Cells of a study, joined."""
    return proteins.join([datasets.load(name) for name in STUDIES[study][0]])


def trained(study: str, seeds: int, models: Path) -> list[Pretrained]:
    """A model for each seed that knows the RNA of one study and nothing else."""
    cells, (names, batch, _) = load(study), STUDIES[study]
    return [cellvq.pretrain(
        cells, batch=batch, codes=CODEBOOK, steps=STEPS, seed=seed, resume=True, progress=False,
        output=models / f"model-proteins-{'-'.join(names)}-{seed}", overwrite=True,
    ) for seed in range(seeds)]


def power(study: str, seeds: int, models: Path) -> pd.DataFrame:
    """Share of made-up proteins that hang on the code and are found beyond PCA, one seed each."""
    cells, batch = load(study), STUDIES[study][1]
    pca = tasks.pca_embedding(cells)
    views = {proteinreading.UNSCALED: proteinreading.unscaled_pca(cells)}
    beside = [SHUFFLED, KMEANS, KMEANS_UNSCALED, CODES]
    methods = [proteinreading.BASE, *map(plus, beside)]
    planted, rows = np.repeat(PLANTED, 20), []
    for seed, run in enumerate(trained(study, seeds, models)):
        rng, encoded = np.random.default_rng(seed), cellvq.encode(cells, run.model)
        code = pd.get_dummies(encoded.obs["cellvq_code"]).to_numpy(float)
        code = code[:, code.sum(axis=0) >= 8]
        follows = code @ rng.normal(size=(code.shape[1], len(planted)))
        made = np.sqrt(planted) * follows / follows.std(axis=0)
        made += np.sqrt(1 - planted) * rng.normal(size=made.shape)
        made = pd.DataFrame((made - made.mean(axis=0)) / made.std(axis=0), cells.obs_names)
        made.columns = made.columns.astype(str)
        found = proteinreading.read([encoded], made, batch=batch, pca=pca, views=views,
                                    methods=methods)
        judged = proteinverdicts.beyond_pca(found).iloc[1:]
        rows.append(pd.DataFrame({
            "study": study, "planted": judged["protein"].astype(int).map(lambda n: planted[n]),
            "found": judged["verdict"] == proteinverdicts.BEYOND}))
    by = pd.concat(rows).groupby(["study", "planted"])
    return by["found"].agg(found="mean", proteins="size").reset_index()


def measure(study: str, seeds: int, models: Path) -> dict[str, list[pd.DataFrame]]:
    """All tables of one study, by name."""
    cells, (_, batch, held) = load(study), STUDIES[study]
    values, strata = proteins.protein_values(cells, batch=batch), proteins.strata_of(cells, batch)
    pca = tasks.pca_embedding(cells)
    views = {proteinreading.UNSCALED: proteinreading.unscaled_pca(cells)}
    axes = proteinreading.axes_within(pca, strata)
    clusters = evaluate.kmeans_codes(axes, CLUSTERS, 0)
    tables = {"proteins": [], "protein-means": [], "protein-verdicts": [], "protein-codes": []}
    other = next(name for name in STUDIES if name != study)
    for kind, source in (("own", study), ("unseen", other)):
        runs = [cellvq.encode(cells, run.model) for run in trained(source, seeds, models)]
        for hold_out in (None, held):
            found = proteinreading.read(runs, values, batch=batch, hold_out=hold_out, pca=pca,
                                        views=views)
            about = {"study": study, "model": kind, "held_out": hold_out or "cells",
                     "n_cells": cells.n_obs}
            rows = proteinverdicts.per_protein(found)
            means = proteinverdicts.scores(found)
            judged = pd.concat([
                proteinverdicts.differences(found, CODES, [
                    SHUFFLED, KMEANS, KMEANS_UNSCALED, NARROW, PCA]),
                proteinverdicts.differences(found, proteinreading.VECTOR, [NARROW, PCA]),
                proteinverdicts.differences(found, plus(CODES), proteinverdicts.rivals(found))])
            overall = proteinverdicts.overall(judged).drop(columns="n_cells")
            single = judged[(judged["method"] == CODES) & (judged["baseline"] == PCA)]
            rows["against_pca"] = rows["protein"].map(single.set_index("protein")["verdict"])
            if hold_out is None:
                inside = proteinverdicts.inside(found, runs, clusters, strata=strata)
                rows = rows.merge(inside, on="protein")
                carried = proteins.code_table(values, runs[0].obs["cellvq_code"], strata=strata)
                carried = carried.drop(columns="n_cells").assign(cells=carried["n_cells"])
                tables["protein-codes"].append(carried[carried["fdr"] < 0.05].assign(**about))
            tables["proteins"].append(rows.assign(**about))
            tables["protein-means"].append(
                means[means["protein"] == proteinverdicts.ALL].assign(**about))
            tables["protein-verdicts"].append(overall.assign(**about))
            print(overall.assign(**about).to_string(), flush=True)
    tables["protein-power"] = [power(study, seeds, models)]
    return tables


def main() -> None:
    """Measure the studies, and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    parts = [measure(study, options.seeds, options.models) for study in STUDIES]
    cells = ", ".join(f"{study} {tables['protein-means'][0]['n_cells'].iloc[0]} cells"
                      for study, tables in zip(STUDIES, parts, strict=True))
    about = (f"# recorded on {pd.Timestamp.today():%Y-%m-%d} by tests/bench_proteins.py, {cells}, "
             f"{options.seeds} seeds, {CODEBOOK} codes, {STEPS} steps\n")
    for name in parts[0]:
        table = pd.concat([part for tables in parts for part in tables[name]])
        with open(options.record / f"measured-{name}.csv", "w", encoding="utf-8") as file:
            file.write(about + table.to_csv(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
