"""Record the leaderboard of the book: the benchmark on real data sets, with models that never saw
the study that they are judged on.

Needs ``CELLVQ_DATA`` (or fetched data sets), and takes hours on two cores:

    python tests/bench_leaderboard.py --models MODELS --output RUNS            # all data sets
    python tests/bench_leaderboard.py --models MODELS --output RUNS --record   # write the tables

With ``--ablation`` it records in the same way what each choice in the model is worth.

``MODELS`` holds the models of ``python -m cellvq.shipped --without STUDY --output MODELS/STUDY``;
one that is missing is trained first.
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc

from cellvq import ablation, benchmarking, datasets, leaderboard, shipped

# Data set, label, batch, donor, study column, and the study that the model must not have seen.
DATASETS = {
    "cite_pbmc": ("protein_group", "batch", None, None, "10x_pbmc_protein"),
    "pancreas_xin_wang": ("cell_type", "study", None, "study", ""),
    "simulated": ("cell_type", "batch", "donor", None, ""),
    "eccite_citefuse": ("protein_group", None, None, None, "mimitou2019"),
    "pbmc3k": ("cell_type", None, None, None, "pbmc3k"),
    "kang_ifnb_sub": ("cell_type", "condition", "donor", None, "kang2018"),
}
TASKS = ("clustering", "annotation", "integration")


def load(name: str) -> anndata.AnnData:
    """Load a data set; cells without types get groups of their surface proteins as labels."""
    if name == "eccite_citefuse":
        return with_protein_groups(datasets.load(name), np.zeros(500))
    if name != "cite_pbmc":
        return datasets.load(name)
    parts = {size: datasets.load(f"pbmc_{size}_protein_scvi200") for size in ("5k", "10k")}
    shared = [each for each in parts["5k"].uns["protein_names"]
              if each in set(parts["10k"].uns["protein_names"])]
    for cells in parts.values():
        place = pd.Index(cells.uns["protein_names"]).get_indexer(shared)
        cells.obsm["protein_counts"] = np.asarray(cells.obsm["protein_counts"])[:, place]
    cells = anndata.concat(parts, join="inner", label="batch", index_unique="-")
    cells.uns["dataset"] = name
    return with_protein_groups(cells, cells.obs["batch"].to_numpy())


def with_protein_groups(cells: anndata.AnnData, batch: np.ndarray) -> anndata.AnnData:
    """Label cells by Leiden groups of their proteins (centred log ratios, scaled in each batch).

    No gene is looked at, so the groups favour no method that reads genes.
    """
    values = np.log1p(np.asarray(cells.obsm["protein_counts"], dtype=float))
    values -= values.mean(1, keepdims=True)
    for name in np.unique(batch):
        part = values[batch == name]
        values[batch == name] = (part - part.mean(0)) / (part.std(0) + 1e-6)
    work = anndata.AnnData(values)
    sc.pp.neighbors(work, 15, use_rep="X", transformer="sklearn")
    sc.tl.leiden(work, 0.6, flavor="igraph", n_iterations=2, directed=False)
    cells.obs["protein_group"] = ("group " + work.obs["leiden"].astype(str)).to_numpy()
    return cells


def model(folder: Path, study: str) -> str:
    """The model that has not seen a study; ``small`` where it saw no such study anyway."""
    if not study:
        return "small"
    if not (folder / study / "config.json").exists():
        shipped.make(folder / study, without=[study])
    return str(folder / study)


def main() -> None:
    """Run the data sets that are asked for, and join what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dataset", action="append", choices=[*DATASETS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--ablation", action="store_true", help="compare variants of the model")
    parser.add_argument("--record", action="store_true", help="write book/benchmarking")
    options = parser.parse_args()
    names = options.dataset or [*DATASETS]
    for name in [] if options.record else names:
        label, batch, donor, study, unseen = DATASETS[name]
        init = model(options.models, unseen)
        taking_part = {"tasks": options.tasks}
        if options.ablation:
            taking_part = {"tasks": ["clustering", "annotation"], "methods": ["PCA"],
                           "competitors": ablation.competitors(init=init, batch=batch)}
        found = benchmarking.benchmark(
            load(name), label, batch, donor, study, name=name, seeds=options.seeds, init=init,
            output=options.output / name, jobs=options.jobs, **taking_part,
        )
        print(found.words, flush=True)
    if options.record:
        about = (f"recorded on {pd.Timestamp.today():%Y-%m-%d} by tests/bench_leaderboard.py, "
                 f"{len(names)} data sets, {options.seeds} seeds, 300 steps; CellVQ starts from "
                 "models that never saw the study")
        folders = [options.output / name for name in names]
        if options.ablation:
            verdicts = pd.concat([pd.read_parquet(each / "verdicts.parquet") for each in folders])
            with open("book/benchmarking/measured-ablation.csv", "w", encoding="utf-8") as file:
                file.write(f"# {about}\n")
                ablation.effects(verdicts).round(4).to_csv(file, index=False)
        else:
            leaderboard.record(leaderboard.read(folders), "book/benchmarking", about)


if __name__ == "__main__":
    main()
