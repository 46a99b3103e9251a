"""The look of every figure: colours, type, sizes.

Colours are those of Okabe and Ito and of Paul Tol, which colour-blind people can tell apart. The
background is white and opaque, so that a figure also reads on a dark page, and figures are narrow
with large type, so that they read on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

# The same twelve as in book/_static/cellvq-figure.js.
PALETTE = [
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999933", "#882255",
    "#44aa99", "#6f4fa0", "#b5651d", "#7a8796",
]
INK, FAINT = "#22303c", "#9aa5ae"


def use_style() -> None:
    """Set the style of all figures; every function here does it for the Axes that it makes."""
    sns.set_theme(
        context="notebook", style="ticks", palette=PALETTE, font_scale=1.0,
        rc={
            "figure.dpi": 150, "savefig.dpi": 150, "figure.facecolor": "white",
            "savefig.facecolor": "white", "axes.facecolor": "white", "axes.edgecolor": INK,
            "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
            "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
            "axes.titleweight": "bold", "axes.titlesize": 12, "axes.labelsize": 11,
            "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10,
            "legend.frameon": False, "lines.linewidth": 2, "font.sans-serif": ["DejaVu Sans"],
            "grid.color": "#e6eaed", "svg.fonttype": "none",
            "text.parse_math": False,  # a dollar sign in a name is no formula
        },
    )


def palette(names: Sequence[str]) -> dict[str, str | tuple]:
    """A colour for each name: twelve that are safe, then evenly spaced hues.

    Beyond twelve nobody tells groups apart by colour alone; such figures carry names as well.

    Example:
        >>> palette(["B", "NK"])
        {'B': '#0072b2', 'NK': '#e69f00'}
    """
    if len(names) <= len(PALETTE):
        return dict(zip(names, PALETTE, strict=False))
    hues = [*sns.husl_palette(len(names), s=0.85, l=0.5)]
    lighter = [*sns.husl_palette(len(names), s=0.75, l=0.7)]
    step = next(k for k in (7, 5, 3, 11, 13, 2, 1) if np.gcd(k, len(names)) == 1)
    order = [(i * step) % len(names) for i in range(len(names))]  # neighbours get distant hues
    return {name: (hues if i % 2 else lighter)[k]
            for i, (name, k) in enumerate(zip(names, order, strict=True))}


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The Axes given, or new ones in the style of the book; sizes in inches."""
    if ax is None:
        use_style()
        ax = plt.subplots(figsize=(width, height), layout="constrained")[1]
    return ax


# Where a name may stand around its point: half widths across, lines up.
_STEPS = [(0, 0), (0, 1), (0, -1), (1.2, 0), (-1.2, 0), (1.2, 1), (-1.2, -1), (0, 2), (0, -2)]


def write_names(
    ax: Axes, points: np.ndarray, names: Sequence[str], *, size: float = 8, always: bool = True,
    only_there: bool = False, taken: Sequence = (), color: str = INK, halo: str | None = "white",
    **font,
) -> list[tuple]:
    """Write names at points, each near enough but over no earlier one.

    Args:
        points: where, in data units, [names, 2].
        names: what; those that come first get the better places.
        size: type size in points.
        always: write a name even where no place near it is free; otherwise leave it out.
        only_there: write at the very point, whatever is there.
        taken: boxes that earlier calls returned.

    Returns:
        The boxes that are covered now: left, bottom, right, top in pixels.
    """
    ax.figure.draw_without_rendering()  # fixes where data units lie on the page
    taken, pixel = list(taken), ax.figure.dpi / 72
    outline = [withStroke(linewidth=size / 4, foreground=halo)] if halo else None
    for point, name in zip(points, names, strict=True):
        x, y = ax.transData.transform(point)
        half, line = 0.34 * size * pixel * len(name), 1.35 * size * pixel
        places = [(x + across * half, y + up * line) for across, up in _STEPS]
        boxes = [(u - half, v - line / 2, u + half, v + line / 2) for u, v in places]
        free = [i for i, box in enumerate(boxes) if only_there or not _covered(box, taken)]
        if not free and not always:
            continue
        best = free[0] if free else 0
        taken.append(boxes[best])
        ax.annotate(name, ax.transData.inverted().transform(places[best]), ha="center", va="center",
                    fontsize=size, color=color, annotation_clip=False, path_effects=outline, **font)
    return taken


def short(name: str, most: int = 26) -> str:
    """A name cut to a length that fits beside a figure."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _covered(box: tuple, taken: list) -> bool:
    left, bottom, right, top = box
    return any(left < r and right > le and bottom < t and top > b for (le, b, r, t) in taken)
