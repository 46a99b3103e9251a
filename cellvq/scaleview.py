"""What size costs, for the eye: where the parameters are, and how costs grow.

Tables come from :mod:`cellvq.bench`, :mod:`cellvq.graphbench` and :mod:`cellvq.cost`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from cellvq.style import PALETTE, axes

PART_NAMES = {
    "layers": "transformer layers", "gene_embedding": "gene embeddings",
    "prior": "gene-gene prior", "decoder": "decoder", "cell_vector": "cell vector",
    "quantizer": "quantiser",
}
MARKERS = "oDs^vPX*"


def parameter_shares(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of each component in the parameters of each model, with the total beside its name.

    Args:
        table: preset, part, parameters; one row a component of a preset.
    """
    counts = table.pivot_table(index="preset", columns="part", values="parameters", sort=False)
    counts = counts.fillna(0)
    total = counts.sum(axis=1)
    shown = [part for part in PART_NAMES if part in counts]
    counts = counts[shown].assign(rest=total - counts[shown].sum(axis=1))
    ax = axes(ax, 6.2, 1.6 + 0.42 * len(counts))
    rows, left = np.arange(len(counts)), np.zeros(len(counts))
    for number, part in enumerate(counts):
        share = 100 * (counts[part] / total).to_numpy()
        ax.barh(rows, share, left=left, color=PALETTE[number % len(PALETTE)], edgecolor="white",
                linewidth=0.8, label=PART_NAMES.get(part, "all else"))
        left += share
    ax.set_yticks(rows, [f"{name} ({_millions(total[name])})" for name in counts.index])
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="% of the parameters")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, columnspacing=1.0)
    return ax


def cost_curves(
    table: pd.DataFrame, x: str, y: str, by: str, *, names: dict[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How a cost grows, on logarithmic axes: a straight line of slope 1 is proportional growth.

    Args:
        table: one row a measurement.
        x: column with what grows.
        y: column with the cost.
        by: column that names the curve of a measurement.
        names: what to write for the columns; by default their names.
    """
    names, ax = names or {}, axes(ax, 5.6, 3.8)
    for number, (name, part) in enumerate(table.groupby(by, sort=False)):
        ax.plot(part[x], part[y], marker=MARKERS[number % len(MARKERS)], label=name,
                color=PALETTE[number % len(PALETTE)])
    ax.set(xscale="log", yscale="log", xlabel=names.get(x, x), ylabel=names.get(y, y))
    ax.set_xticks(sorted(table[x].unique()))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.minorticks_off()
    ax.grid(axis="both")
    ax.legend(title=names.get(by))
    return ax


def step_seconds(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Seconds of each step of a job, one bar a size of the job.

    Args:
        table: cells, step, seconds; one row a step of a job, in their order.
    """
    seconds = table.pivot_table(index="cells", columns="step", values="seconds", sort=False)
    ax = axes(ax, 6.2, 1.8 + 0.5 * len(seconds))
    rows, left = np.arange(len(seconds)), np.zeros(len(seconds))
    for number, step in enumerate(seconds):
        size = seconds[step].fillna(0).to_numpy()
        ax.barh(rows, size, left=left, color=PALETTE[number % len(PALETTE)], edgecolor="white",
                linewidth=0.8, label=step)
        left += size
    ax.set_yticks(rows, [f"{cells:,} cells" for cells in seconds.index])
    ax.invert_yaxis()
    ax.set(xlabel="seconds")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, columnspacing=1.0)
    return ax


def _millions(count: float) -> str:
    return f"{count / 1e6:,.1f} M" if count < 1e8 else f"{count / 1e6:,.0f} M"
