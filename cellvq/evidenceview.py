"""What codes are worth, for the eye: agreement, batch, price, attribution, novelty, confusion.

Tables come from :mod:`cellvq.stability`, :mod:`cellvq.biology`, :mod:`cellvq.health`,
:mod:`cellvq.faithfulness` and :mod:`cellvq.mapping`; nothing here computes a score.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from cellvq import InputError
from cellvq.style import FAINT, INK, PALETTE, axes, short

MARKERS = "oDs^vPX*"
CONTROLS = ("random", "shuffled", "highest")
"""Words in the name of a method that mark it as a control; controls are grey."""


def biology_or_batch(
    table: pd.DataFrame,
    *,
    x: str = "batch_nmi",
    y: str = "label_nmi",
    ax: Axes | None = None,
) -> Axes:
    """Every method by its agreement with the batch and with the labels; up and left is better.

    Args:
        table: one row a method and metric: ``method``, ``metric``, ``value``, where there are any
            ``low`` and ``high`` (interval) and ``null`` or ``null_mean``; of several rows the
            first counts.
        x: metric across, which should be small.
        y: metric upwards, which should be large.

    Raises:
        InputError: a metric is not in the table.
    """
    missing = [metric for metric in (x, y) if not table["metric"].eq(metric).any()]
    if missing:
        why = table.attrs.get("reason") or f"there are {', '.join(table['metric'].unique())}"
        raise InputError(f"no method has a score in {' or '.join(missing)}; {why}")
    null = "null" if "null" in table else "null_mean"
    table = table.assign(low=table.get("low"), high=table.get("high"), null=table.get(null))
    first = table.drop_duplicates(["method", "metric"]).astype({"low": float, "high": float})
    across, up = (first[first["metric"] == metric].set_index("method") for metric in (x, y))
    ax = axes(ax, 5.8, 4.6)
    methods = [method for method in up.index if method in across.index]
    for number, method in enumerate(methods):
        color, one, other = PALETTE[number % len(PALETTE)], across.loc[method], up.loc[method]
        ax.hlines(other["value"], one["low"], one["high"], color=color, lw=3, alpha=0.4)
        ax.vlines(one["value"], other["low"], other["high"], color=color, lw=3, alpha=0.4)
        ax.plot(one["value"], other["value"], MARKERS[number % len(MARKERS)], color=color, ms=9,
                mec="white", label=method)
        ax.plot(one["null"], other["null"], MARKERS[number % len(MARKERS)], color=color, ms=5,
                mfc="white")
    ax.plot([], [], "o", color=FAINT, mfc="white", ms=5, label="the same, shuffled")
    edge = np.nanmax(across[["value", "high", "null"]].to_numpy(float))
    top = 1.1 * np.nanmax(up[["value", "high"]].to_numpy(float))
    ax.set(xlim=(-0.02 * edge, 1.15 * edge), ylim=(-0.02, top))
    ax.set_xlabel(f"{_words(x)} (less is better)")
    ax.set_ylabel(f"{_words(y)} (more is better)")
    ax.set_title("Biology or batch?")
    ax.grid()
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, handletextpad=0.2)
    return ax


def agreement(
    pairs: pd.DataFrame, summary: pd.DataFrame, *, ax: Axes | None = None
) -> Axes:
    """How much runs agree on the same cells: every pair, their mean and interval, and the null.

    Args:
        pairs: :func:`cellvq.stability.agreement_table` with ``kind`` and ``method``, and
            ``dataset`` where there are several.
        summary: :func:`cellvq.stability.summary` of it.
    """
    sets = summary["dataset"] if "dataset" in summary and summary["dataset"].nunique() > 1 else ""
    summary = summary.assign(row=sets + (": " if len(sets) else "") + summary["kind"])
    rows, methods = list(summary["row"].unique()), list(summary["method"].unique())
    ax = axes(ax, 5.8, 1.4 + 0.34 * len(rows) * len(methods))
    for line in summary.to_dict("records"):
        number = methods.index(line["method"])
        color, mark = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        y = rows.index(line["row"]) + 0.7 * ((number + 0.5) / len(methods) - 0.5)
        same = pairs["kind"].eq(line["kind"]) & pairs["method"].eq(line["method"])
        if len(sets):
            same &= pairs["dataset"].eq(line["dataset"])
        ax.plot(pairs["ami"][same], np.full(same.sum(), y), "|", color=color, ms=9, alpha=0.6)
        ax.hlines(y, line["low"], line["high"], color=color, lw=4, alpha=0.4)
        ax.plot(line["mean"], y, mark, color=color, mec="white", ms=8)
        ax.plot(line["null"], y, mark, color=color, mfc="white", ms=5)
    for number, method in enumerate(methods):
        ax.plot([], [], MARKERS[number % len(MARKERS)], color=PALETTE[number % len(PALETTE)],
                label=short(method))
    ax.plot([], [], "o", color=FAINT, mfc="white", ms=5, label="cells of one run shuffled")
    ax.set_yticks(range(len(rows)), ["\n".join(map(short, row.split(": "))) for row in rows])
    ax.set(xlim=(-0.04, 1.02), ylim=(len(rows) - 0.4, -0.6), title="Would another run find them?",
           xlabel="adjusted mutual information of two runs")
    ax.grid(axis="x")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.75 / ax.figure.get_size_inches()[1]),
              ncols=2, handletextpad=0.2)
    return ax


def price_of_discretising(
    table: pd.DataFrame, *, title: str = "The price of discretising", ax: Axes | None = None
) -> Axes:
    """One score at every level of the code, against the line of the continuous cell vector.

    Args:
        table: one row a level, in one metric: ``codes`` (codes there are at that level; missing
            for what is not a code, such as the continuous vector), ``value``, where there are any
            ``low`` and ``high``, ``representation``, ``metric``, and ``method`` where there are
            several models.
        title: words above the figure.
    """
    ax = axes(ax, 5.6, 3.8)
    table = table.assign(low=table.get("low"), high=table.get("high"))
    table = table.astype({"low": float, "high": float})
    methods = table.get("method", pd.Series("codes", index=table.index))
    for number, (method, part) in enumerate(table.groupby(methods, sort=False)):
        color, whole = PALETTE[number % len(PALETTE)], part["codes"].isna()
        levels = part[~whole].sort_values("codes")
        ax.plot(levels["codes"], levels["value"], marker=MARKERS[number % len(MARKERS)],
                color=color, label=str(method))
        ax.vlines(levels["codes"], levels["low"], levels["high"], color=color, lw=3, alpha=0.5)
        for row in part[whole].itertuples():
            name = getattr(row, "representation", f"{method}, continuous")
            tone = FAINT if name == "mean profile" else color
            ax.axhline(row.value, color=tone, ls="--", lw=1.4, label=name)
            if np.isfinite(row.low):
                ax.axhspan(row.low, row.high, color=tone, alpha=0.1, lw=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(table["codes"].dropna().unique()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    metric = str(table["metric"].iloc[0]) if "metric" in table and len(table) else "score"
    ax.set(xlabel="codes there are at the level", title=title)
    ax.set_ylabel({"likelihood": "likelihood above the mean profile"}.get(metric, _words(metric)))
    ax.grid(axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return ax


def deletion_curves(
    table: pd.DataFrame, *, direction: str = "deletion", ax: Axes | None = None
) -> Axes:
    """What is left of the margin of a code as the genes of each attribution go, or come.

    Args:
        table: one row a method and step: ``method``, ``fraction`` (of the genes), ``margin``,
            ``low``, ``high``, ``direction`` (``deletion`` or ``insertion``).
        direction: which of the two.

    Raises:
        InputError: the table has no such direction.
    """
    shown = table[table["direction"] == direction]
    if shown.empty:
        raise InputError(f"no curve has the direction {direction!r}; use deletion or insertion")
    ax = axes(ax, 5.6, 3.8)
    drawn = 0
    for number, (method, part) in enumerate(shown.groupby("method", sort=False)):
        control = any(word in method.lower() for word in CONTROLS)
        color = (FAINT, INK)[number % 2] if control else PALETTE[drawn % len(PALETTE)]
        drawn += not control
        part, mark = part.sort_values("fraction"), MARKERS[number % len(MARKERS)]
        across = 100 * part["fraction"]
        ax.plot(across, part["margin"], "--" if control else "-", color=color, marker=mark, ms=5,
                label=method)
        ax.fill_between(across, part["low"], part["high"], color=color, alpha=0.14, lw=0)
    ax.axhline(0, color=INK, lw=0.8)
    better = "falls fastest" if direction == "deletion" else "rises fastest"
    verb = "deleted" if direction == "deletion" else "inserted"
    ax.set(xlabel=f"% of the cell's expressed genes {verb}, most important first",
           ylabel="margin of the code (1: whole cells)")
    ax.set_title(f"{direction.capitalize()}: the best {better}")
    ax.grid(axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return ax


def novelty_histogram(
    table: pd.DataFrame, threshold: float, *, bins: int = 40, ax: Axes | None = None
) -> Axes:
    """How far cells lie from their nearest code, by group, with the calibrated threshold.

    Args:
        table: ``score`` (one a cell) and ``group``, such as reference and query.
        threshold: score above which a cell counts as new.
        bins: number of bars.
    """
    ax = axes(ax, 5.6, 3.4)
    known = table[np.isfinite(table["score"].astype(float))]
    edges = np.histogram_bin_edges([*known["score"], threshold], bins)
    for number, (group, part) in enumerate(known.groupby("group", sort=False, observed=True)):
        color, values = PALETTE[number % len(PALETTE)], part["score"]
        weight = np.full(len(values), 100 / len(values))
        ax.hist(values, edges, weights=weight, histtype="stepfilled", color=color, alpha=0.18)
        ax.hist(values, edges, weights=weight, histtype="step", color=color, lw=1.8,
                ls=("-", "--", ":", "-.")[number % 4],
                label=f"{short(str(group))}, {len(part):,} cells")
    ax.axvline(threshold, color=INK, lw=1.2)
    ax.annotate(f" new: above {threshold:.2g}", (threshold, 1), xycoords=("data", "axes fraction"),
                va="top", fontsize=9)
    ax.set(xlabel="novelty score", ylabel="% of the group's cells", title="Far from every code?")
    ax.grid(axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return ax


def confusion(
    table: pd.DataFrame, *, predicted: str = "transferred", ax: Axes | None = None
) -> Axes:
    """Heat map of known against mapped labels; rows add up to 100 %.

    Args:
        table: ``label`` (known), the mapped one and ``cells``, one row a pair.
        predicted: column of the mapped label.
    """
    counts = table.pivot_table("cells", "label", predicted, aggfunc="sum", fill_value=0,
                               observed=True)
    both = [name for name in counts.index if name in counts.columns]
    counts = counts.loc[both + [name for name in counts.index if name not in both],
                        both + [name for name in counts.columns if name not in both]]
    cells = counts.sum(axis=1)
    share = 100 * counts.div(cells.clip(lower=1), axis=0)
    ax = axes(ax, min(2.8 + 0.42 * share.shape[1], 9.0), 2.2 + 0.32 * len(share))
    sns.heatmap(
        share, ax=ax, cmap="Blues", vmin=0, vmax=100, linewidths=0.5, linecolor="white",
        annot=share.to_numpy() if share.size <= 200 else None, fmt=".0f", annot_kws={"size": 8},
        cbar_kws={"label": "% of the label's cells", "shrink": 0.6, "aspect": 25},
        xticklabels=True, yticklabels=True,
    )
    ax.set_yticklabels([f"{short(str(name))} ({cells[name]:,.0f})" for name in share.index],
                       rotation=0)
    ax.set_xticklabels([short(str(name)) for name in share.columns], rotation=45, ha="right")
    ax.tick_params(length=0)
    ax.set(xlabel="mapped label", ylabel="known label")
    ax.set_title("Known and mapped labels")
    return ax


def _words(metric: str) -> str:
    subject, _, score = metric.rpartition("_")
    known = {"nmi": "NMI", "ari": "ARI", "ami": "AMI", "macro_f1": "macro-F1"}
    if metric in known or not subject:
        return known.get(metric, metric)
    return f"{known.get(score, score)} with the {subject}"
