"""Figures of the book: functions ``f(table, *, ax=None) -> Axes`` that never compute a statistic.

Tables come from :mod:`cellvq.codes`, :mod:`cellvq.tasks`, :mod:`cellvq.graph` and the history of a
training run; the look comes from :mod:`cellvq.style`.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cellvq import InputError
from cellvq.graphview import InteractiveFigure, graph_picture, interactive_graph
from cellvq.scaleview import cost_curves, parameter_shares
from cellvq.scoreview import score_differences, scores_by_level
from cellvq.style import FAINT, INK, PALETTE, axes, palette, short, use_style, write_names

if TYPE_CHECKING:
    from cellvq.report import Report

__all__ = [
    "InteractiveFigure", "check_overview", "code_by_label", "code_usage", "cost_curves",
    "embedding_scatter", "graph_picture", "interactive_graph", "marker_dots", "palette",
    "parameter_shares", "perplexity_history", "score_differences", "score_intervals",
    "scores_by_level", "training_history", "use_style",
]
MARKERS = "oDs^vPX*"
LEVELS = {"ok": (PALETTE[2], "o"), "hint": (PALETTE[0], "D"), "warning": (PALETTE[1], "^"),
          "error": (PALETTE[3], "X")}
METRIC_NAMES = {
    "macro_f1": "macro-F1", "ari": "ARI", "nmi": "NMI", "purity": "purity",
    "codes_used": "codes in use", "perplexity": "perplexity",
}


def training_history(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Validation likelihood while training, decoded from the cell vector and from the code alone.

    Args:
        history: history of a run: step, validation_cell, validation_code, validation_mean
            (negative log likelihood per 1,000 hidden genes; lower is better).
    """
    ax = axes(ax, 5.6, 3.6)
    lines = {
        "validation_mean": ("mean profile (baseline)", FAINT, "--"),
        "validation_code": ("from the code", PALETTE[1], "-"),
        "validation_cell": ("from the cell vector", PALETTE[0], "-"),
    }
    for column, (name, color, dash) in lines.items():
        ax.plot(history["step"], history[column], dash, color=color, label=name)
    ax.set(xlabel="training step", ylabel="loss per 1,000 hidden genes", title="Held-out cells")
    ax.grid(axis="y")
    ax.legend()
    return ax


def perplexity_history(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Codes in use and perplexity while training.

    Args:
        history: history of a run: step, perplexity, codes_used, usage (cells of each code).
    """
    history = history[history["codes_used"] > 0]
    ax = axes(ax, 5.6, 3.2)
    codes = len(history["usage"].iloc[-1])
    ax.axhline(codes, color=FAINT, ls="--", label=f"codes there are ({codes})")
    ax.plot(history["step"], history["codes_used"], color=PALETTE[0], label="codes in use")
    ax.plot(history["step"], history["perplexity"], color=PALETTE[1], label="perplexity")
    ax.set(xlabel="training step", ylabel="codes", title="Is the codebook alive?")
    ax.set_ylim(0, codes * 1.06)
    ax.grid(axis="y")
    ax.legend(loc="lower right")
    return ax


def code_usage(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of the cells in each code while training, as a heat map; codes by their last share.

    Args:
        history: history of a run: step, usage (cells of each code since the last row).
    """
    history = history[history["codes_used"] > 0]
    usage = np.array(history["usage"].tolist(), dtype=float)  # [reports, codes]
    share = 100 * usage / usage.sum(axis=1, keepdims=True)
    share = share[:, np.argsort(-share[-1], kind="stable")]
    ax = axes(ax, 5.6, 3.6)
    steps = history["step"].to_numpy()
    shown = ax.imshow(share.T, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    ticks = np.unique(np.linspace(0, len(steps) - 1, 5).astype(int))
    ax.set_xticks(ticks, [f"{steps[i]:,}" for i in ticks])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    ax.set(xlabel="training step", ylabel="codes, by their last share")
    ax.set_title("Cells by code while training")
    ax.figure.colorbar(shown, ax=ax, label="% of cells", shrink=0.9)
    return ax


def score_intervals(
    summary: pd.DataFrame,
    *,
    representation: str = "embedding",
    baseline: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean and interval of every method in every metric; the baseline is a dashed line.

    Args:
        summary: :func:`cellvq.tasks.summarise` of one data set.
        representation: ``embedding`` or ``code``.
        baseline: method to compare with; None: PCA, or k-means on PCA for codes.
    """
    table = summary[(summary["representation"] == representation) & (summary["task"] != "usage")]
    if table.empty:
        raise InputError(f"the summary has no scores of the {representation}")
    baseline = baseline or {"embedding": "PCA", "code": "k-means on PCA"}[representation]
    metrics, methods = list(table["metric"].unique()), list(table["method"].unique())
    ax = axes(ax, 5.8, 1.3 + 0.26 * len(metrics) * len(methods))
    for number, method in enumerate(methods):
        part = table[table["method"] == method]
        color = FAINT if "shuffled" in method else PALETTE[number % len(PALETTE)]
        centre = part["metric"].map(metrics.index)
        rows = centre + 0.6 * ((number + 0.5) / len(methods) - 0.5)
        ax.hlines(rows, part["low"], part["high"], color=color, lw=3, alpha=0.6)
        ax.plot(part["mean"], rows, MARKERS[number % len(MARKERS)], color=color, ms=7, mec="white",
                mew=0.8, label=method)
        if method == baseline:
            ax.vlines(part["mean"], centre - 0.4, centre + 0.4, color=color, lw=1.2, ls="--")
    ax.set_yticks(range(len(metrics)), [METRIC_NAMES.get(m, m) for m in metrics])
    ax.invert_yaxis()
    ax.set_xlim(min(-0.03, table["mean"].min() - 0.03), 1.02)
    seeds = table["seeds"].max()
    ax.set_xlabel(f"score (mean and 95 % interval, {seeds} seed{'s' if seeds > 1 else ''})")
    ax.grid(axis="x")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(methods)),
              columnspacing=1.0, handletextpad=0.2)
    return ax


def embedding_scatter(
    places: pd.DataFrame,
    column: str,
    *,
    names: pd.DataFrame | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Cells in the plane, coloured by a column.

    Args:
        places: :func:`cellvq.codes.cell_map`: ``x``, ``y`` and the column.
        column: categories, or numbers (then with a colour bar).
        names: :func:`cellvq.codes.code_centres`: where to write the name of each category; None:
            a legend below.
        title: None: the name of the column.
    """
    ax = axes(ax, 5.6, 5.2 if names is not None else 6.2)
    size = float(np.clip(20_000 / len(places), 1.5, 26))
    # Cells in random order, so that no category hides the others.
    places = places.sample(frac=1, random_state=0)
    dots = {"s": size, "linewidths": 0, "alpha": 0.85, "rasterized": True}
    if pd.api.types.is_numeric_dtype(places[column]):
        shown = ax.scatter(places["x"], places["y"], c=places[column], cmap="cividis", **dots)
        ax.figure.colorbar(shown, ax=ax, shrink=0.6, aspect=25, label=column)
    else:
        values = places[column].astype("object").where(places[column].notna(), "").astype(str)
        found = sorted(set(values) - {""})
        colors = palette(found) | {"": "#d5dade"}
        ax.scatter(places["x"], places["y"], c=[colors[value] for value in values], **dots)
        if names is None:
            _legend_below(ax, {name: colors[name] for name in found})
        else:
            names = names.sort_values("cells", ascending=False)
            write_names(ax, names[["x", "y"]].to_numpy(), names["name"], size=8.5, weight="bold")
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    ax.set_title(title or column)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def code_by_label(
    pairs: pd.DataFrame, *, fdr: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Heat map of the labels in each code; a dot marks a label that is enriched.

    Args:
        pairs: :func:`cellvq.codes.annotation_table`.
        fdr: largest FDR of a dot.
    """
    share = 100 * pairs.pivot(index="code", columns="label", values="fraction")
    labels = pairs.drop_duplicates("label").sort_values("label_cells", ascending=False)["label"]
    share = share[labels]
    order = np.lexsort((-share.max(axis=1), share.to_numpy().argmax(axis=1)))  # a diagonal
    share = share.iloc[order]
    enriched = pairs.assign(dot=(pairs["fdr"] < fdr) & (pairs["log2_enrichment"] > 0))
    enriched = enriched.pivot(index="code", columns="label", values="dot").loc[share.index, labels]
    ax = axes(ax, 2.2 + 0.42 * len(labels), 1.9 + 0.22 * len(share))
    sns.heatmap(
        share, ax=ax, cmap="Blues", vmin=0, vmax=100, linewidths=0.5, linecolor="white",
        cbar_kws={"label": "% of the code's cells", "shrink": 0.6, "aspect": 25},
        yticklabels=True, xticklabels=True,
    )
    rows, columns = np.nonzero(enriched.to_numpy(bool))
    dark = share.to_numpy()[rows, columns] > 50
    ax.scatter(columns + 0.5, rows + 0.5, s=12, c=np.where(dark, "white", INK), linewidths=0)
    ax.set_xticklabels([short(label) for label in labels], rotation=45, ha="right")
    ax.tick_params(axis="y", labelsize=9, rotation=0, length=0)
    ax.tick_params(axis="x", length=0)
    ax.set(xlabel="", ylabel="code")
    ax.set_title(f"Labels in each code (dot: enriched, FDR < {fdr})", loc="left")
    return ax


def marker_dots(
    markers: pd.DataFrame, *, per_code: int = 3, codes: int = 12, ax: Axes | None = None
) -> Axes:
    """Dot plot of the best markers: size is the share of cells with the gene, colour the change.

    Args:
        markers: :func:`cellvq.codes.marker_table`.
        per_code: genes of each code, by rank.
        codes: at most so many codes, the largest.
    """
    ax = axes(ax, 5.8, 6)
    if markers.empty:
        ax.text(0.5, 0.5, "no code was tested", ha="center", transform=ax.transAxes)
        return ax
    largest = markers.drop_duplicates("code").nlargest(codes, "code_cells")["code"]
    chosen = markers[markers["code"].isin(largest)]
    best = chosen[(chosen["rank"] <= per_code) & (chosen["score"] > 0)]
    order = [code for code in largest if (best["code"] == code).any()]
    genes = best.assign(place=best["code"].map(order.index)).sort_values(["place", "rank"])["gene"]
    genes = list(genes.drop_duplicates())
    shown = chosen[chosen["gene"].isin(genes)]
    x, y = shown["code"].map(order.index), shown["gene"].map(genes.index)
    dots = ax.scatter(
        x, y, s=90 * shown["fraction_in"] + 1, c=shown["log2_fold_change"], cmap="RdBu_r",
        vmin=-6, vmax=6, edgecolors=FAINT, linewidths=0.4,
    )
    ax.set_xticks(range(len(order)), order, rotation=90)
    ax.set_yticks(range(len(genes)), genes, fontsize=9, style="italic")
    ax.set(xlim=(-0.7, len(order) - 0.3), ylim=(len(genes) - 0.4, -0.6), xlabel="code")
    ax.set_title(f"Best {per_code} markers of the {len(order)} largest codes")
    ax.grid(color="#f0f2f4")
    ax.set_axisbelow(True)
    ax.figure.colorbar(dots, ax=ax, shrink=0.35, aspect=14, label="log2 fold change", anchor=(0, 1))
    sizes = [
        Line2D([], [], ls="", marker="o", color=FAINT, ms=np.sqrt(90 * share), label=f"{share:.0%}")
        for share in (0.25, 0.5, 1.0)
    ]
    ax.legend(handles=sizes, title="cells with\nthe gene", loc="lower left",
              bbox_to_anchor=(1.02, 0), labelspacing=0.9)
    return ax


def check_overview(report: Report, *, ax: Axes | None = None) -> Axes:
    """What :func:`cellvq.check` found, on one screen: ready or not, the facts, and what to mend."""
    said = [(f.level, f.subject, f"{f.message}. {f.remedy}") for f in report.findings
            if f.level != "ok"]
    wrong = {subject for level, subject, _ in said if level == "error"}
    rows = [("ok", *fact) for fact in report.facts().items() if fact[0] not in wrong] + said
    rows.sort(key=lambda row: row[0] != "error")  # what is wrong comes first
    texts = [textwrap.wrap(text, 66) for *_, text in rows]
    ax = axes(ax, 8.0, 0.9 + sum(0.12 + 0.19 * len(lines) for lines in texts))
    verdict = {"x": 0.01, "y": 0.0, "va": "center", "fontsize": 12, "weight": "bold"}
    color, _ = LEVELS["ok" if report.ok else "error"]
    ax.axhspan(0.16, -0.16, color=color, alpha=0.16, lw=0)
    ax.text(s=f"{report.name}: {report.verdict}", color=INK, parse_math=False, **verdict)
    ax.text(0.99, 0.0, f"{report.n_cells:,} cells x {report.n_genes:,} genes", ha="right",
            va="center", fontsize=11)
    y = -0.42
    for (level, subject, _), lines in zip(rows, texts, strict=True):
        color, shape = LEVELS[level]
        ax.plot(0.02, y, shape, color=color, ms=8, clip_on=False)
        words = {"fontsize": 10, "parse_math": False}  # a dollar in a name is no formula
        ax.text(0.05, y, subject, weight="bold", va="center", **words)
        ax.text(0.25, y + 0.09, "\n".join(lines), va="top", linespacing=1.25, **words)
        y -= 0.12 + 0.19 * len(lines)
    ax.set(xlim=(0, 1), ylim=(y + 0.1, 0.2), xticks=[], yticks=[])
    used = [level for level in LEVELS if level in {row[0] for row in rows}]
    ax.legend(handles=[Line2D([], [], ls="", marker=LEVELS[level][1], color=LEVELS[level][0], ms=8,
                              label=level) for level in used],
              loc="upper right", bbox_to_anchor=(1.0, 0.0), ncols=4, handletextpad=0.1)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def _legend_below(ax: Axes, colors: dict) -> None:
    handles = [Line2D([], [], ls="", marker="o", color=color, ms=7, label=short(name))
               for name, color in colors.items()]
    longest = max((len(short(name)) for name in colors), default=0)
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.04), handletextpad=0.1,
              ncols=2 if longest > 14 else 4 if longest > 6 else 6, columnspacing=1.0)
