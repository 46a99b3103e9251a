"""Time the markers of all codes against scanpy's, on the same simulated cells, in one run.

    python tests/bench_dictionary.py --cells 20000 --genes 1000 --codes 64

Scanpy is asked for the same test of the same codes, without the correction for ties, which it would
find anew for each code. Prints one line of JSON; times are seconds of one processor.
"""

import argparse
import json
import resource
import time
import warnings

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from cellvq import evaluate, markers


def draw_cells(cells: int, genes: int, codes: int, seed: int = 0) -> AnnData:
    """Counts, about 9 % of them above zero, of codes in three levels that differ in some genes."""
    rng = np.random.default_rng(seed)
    share = 1 + rng.pareto(1.5, codes)
    code = rng.choice(codes, cells, p=share / share.sum())
    raised = np.where(rng.random((codes, genes)) < 0.01, 1.5, 0.0)
    rate = rng.lognormal(-1.2, 1.3, genes) * 0.13
    depth = rng.lognormal(0, 0.4, (cells, 1))
    counts = vstack([
        csr_matrix(rng.poisson(rate * np.exp(raised[code[rows]]) * depth[rows]).astype("float32"))
        for rows in np.array_split(np.arange(cells), cells // 5000 + 1)
    ], format="csr")
    address = [f"C{a}.{b}.{c:02d}" for a, b, c in zip(*np.unravel_index(
        np.arange(codes), (4, 4, -(-codes // 16))), strict=True)]
    obs = pd.DataFrame({markers.CODE: pd.Categorical(np.array(address)[code])},
                       index=[f"cell {i}" for i in range(cells)])
    return AnnData(counts, obs, pd.DataFrame(index=[f"GENE{i}" for i in range(genes)]))


def by_scanpy(cells: AnnData) -> pd.DataFrame:
    """Markers of codes with ten cells by scanpy, and the time that they took."""
    work = AnnData(evaluate.log_normalise(cells.X, np.asarray(cells.X.sum(1)).ravel()),
                   cells.obs.copy(), cells.var.copy())
    sizes = work.obs[markers.CODE].value_counts()
    sc.tl.rank_genes_groups(work, markers.CODE, groups=sizes.index[sizes >= 10].to_list(),
                            method="wilcoxon", pts=True, use_raw=False)
    return sc.get.rank_genes_groups_df(work, None)


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=20_000, help="cells (default: 20000)")
    parser.add_argument("--genes", type=int, default=1000, help="genes (default: 1000)")
    parser.add_argument("--codes", type=int, default=64, help="codes (default: 64)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # scanpy warns of its own bookkeeping beyond 25 groups
    cells = draw_cells(options.cells, options.genes, options.codes)
    ways = {
        "ours": lambda: markers.marker_table(cells),
        "ours_with_parents_and_null": lambda: markers.marker_table(cells, levels="all",
                                                                   null_draws=20),
        "scanpy": lambda: by_scanpy(cells),
    }
    seconds, memory = {}, {}
    for name, way in ways.items():
        start = time.process_time()
        way()
        seconds[name] = round(time.process_time() - start, 2)
        memory[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps({
        **vars(options), "expressed": round(cells.X.nnz / (cells.n_obs * cells.n_vars), 3),
        "seconds": seconds, "gigabytes_so_far": memory,
        "times_faster": round(seconds["scanpy"] / seconds["ours"], 1),
    }))


if __name__ == "__main__":
    main()
