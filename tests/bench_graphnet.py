"""Time the graph module on simulated cells, stage by stage: dealing, tokens, training, encoding.

    python tests/bench_graphnet.py --cells 20000 --threads 1

Prints one line of JSON. Processor seconds are what counts on a machine that is shared; ``--record``
writes them as a table that the book shows.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellvq import graphnet, graphtokens, graphtraining
from cellvq.simulate import simulate_cells, truth


def main() -> None:
    """Run the stages that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=20_000, help="cells (default: 20000)")
    parser.add_argument("--genes", type=int, default=2000, help="genes (default: 2000)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--record", default="", help="file to write the times to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cells = simulate_cells(cells=options.cells, genes=options.genes, depth=1500.0)
    pairs, rows = truth(cells)["communication"], []

    def timed(stage: str, work: Callable) -> object:
        wall, busy = time.perf_counter(), time.process_time()
        made = work()
        rows.append((stage, time.process_time() - busy, time.perf_counter() - wall))
        return made

    hold = np.arange(options.cells) % 5 == 0
    dealt = timed("deal molecules", lambda: graphtokens.deal(cells))
    words = timed("learn vocabulary", lambda: graphtokens.learn(
        dealt, train=~hold, annotations=("condition",), pairs=pairs))
    made = timed("make tokens", lambda: graphtokens.tokens(dealt, words))
    config = graphnet.GraphConfig(steps=options.steps)
    trained = timed("train", lambda: graphtraining.train(made, config, held_out=hold))
    timed("encode whole cells", lambda: graphnet.encode(cells, trained))
    table = pd.DataFrame(rows, columns=["stage", "processor_seconds", "seconds"])
    table.loc[len(table)] = ["in all", *table[["processor_seconds", "seconds"]].sum()]
    gigabytes = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps({**vars(options), "gigabytes": gigabytes,
                      "stages": table.round(1).to_dict("records")}))
    if options.record:
        about = (f"# recorded on {datetime.now(UTC):%Y-%m-%d}, {options.cells:,} simulated cells, "
                 f"{options.genes:,} genes, {options.steps} steps, {options.threads} thread"
                 f"{'s' * (options.threads > 1)}, at most {gigabytes} GB, on a machine that others "
                 "used as well: processor_seconds is what counts\n")
        text = about + table.to_csv(index=False, float_format="%.1f")
        Path(options.record).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
