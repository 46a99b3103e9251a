"""Do other seeds give the same codes? Plain k-means starts against those that breathe.

    python tests/bench_stability.py [FILE or NAME] [CODES]

One model is trained; its cell vectors are then grouped from eight seeds in both ways. Printed are
the error, the adjusted mutual information over pairs of seeds and the seconds of one grouping.
"""

import itertools
import sys
import time

import numpy as np
import torch
from sklearn.metrics import adjusted_mutual_info_score

import cellvq
from cellvq import codebook, datasets


def main(name: str = "pbmc68k_reduced", size: int = 32) -> None:
    """Train, group, compare and print."""
    cells = datasets.load(name)
    run = cellvq.pretrain(cells, codes=size, steps=120, progress=False)
    vectors = torch.from_numpy(cellvq.encode(cells, run.model).obsm["X_cellvq"])
    vectors = vectors[vectors.isfinite().all(1)]
    breath, attempts = codebook.BREATH, codebook.ATTEMPTS
    for said, codebook.BREATH, codebook.ATTEMPTS in (
        (f"{attempts} starts", 0, attempts), (f"{16 * attempts} starts", 0, 16 * attempts),
        (f"{attempts} starts, then breathing", breath, attempts),
    ):
        begin, groups, errors = time.perf_counter(), [], []
        for seed in range(8):
            centres = codebook.k_means(vectors, size, np.random.default_rng(seed))
            apart, taken = torch.cdist(vectors, centres).min(1)
            groups.append(taken.numpy())
            errors.append(float(apart.square().sum()))
        seconds = (time.perf_counter() - begin) / 8
        agreed = [adjusted_mutual_info_score(*pair) for pair in itertools.combinations(groups, 2)]
        print(f"{said}: error {np.mean(errors):,.1f}, agreement of seeds {np.mean(agreed):.3f} "
              f"(lowest {min(agreed):.3f}), {seconds:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
