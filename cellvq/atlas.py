"""The atlas of codes: cells on a map that a reader can search and question, and the tree of codes.

Both are a JSON description in the page, drawn by ``book/_static/cellvq-atlas.js``. Positions are
whole numbers on a grid, so that the page stays small; every text from data becomes text there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns

from cellvq import InputError
from cellvq.cards import UNKNOWN, short_facts
from cellvq.graphview import InteractiveFigure
from cellvq.style import PALETTE, palette

GRID, SHADES = 2047, 32
CODE, CONFIDENCE = "cellvq_code", "cellvq_confidence"
STABLE_TONES = {"stable": PALETTE[0], "unstable": PALETTE[3], "not measured": "#b9c1c8"}
GENES = 12
"""Markers of a state that a reader can search for."""


def atlas(
    places: pd.DataFrame,
    codes: pd.DataFrame,
    *,
    markers: pd.DataFrame | None = None,
    columns: Sequence[str] = (),
    title: str = "Atlas of codes",
    alt: str = "Map of cells with their codes.",
    most: int = 20_000,
    seed: int = 0,
) -> InteractiveFigure:
    """Show cells on a map; a code opens its card, a search finds a code, a gene or a name.

    Args:
        places: :func:`cellvq.codes.cell_map`: ``x``, ``y``, ``cellvq_code``, where there is any
            ``cellvq_confidence``, and the columns to colour by.
        codes: codes of a dictionary, codes and parents.
        markers: marker table, for more genes to find; None: those that ``codes`` names.
        columns: columns of ``places`` to colour by, such as known labels.
        title: a few words above the figure.
        alt: what the figure shows, for readers who do not see it.
        most: with more cells, so many are drawn at random, and the figure says so.
        seed: seed of that draw, and of the order in which cells are drawn.

    Raises:
        InputError: a column is not there, or a cell has a code that is not in ``codes``.
    """
    absent = [name for name in (CODE, *columns) if name not in places]
    if absent:
        raise InputError(f"the places have no column {absent[0]!r}; there are {', '.join(places)}")
    states = _states(codes, markers)
    number = {state["address"]: i for i, state in enumerate(states)}
    placed = places[places[CODE].notna() & np.isfinite(places[["x", "y"]]).all(axis=1)]
    unknown = set(placed[CODE].astype(str)) - set(number)
    if unknown or placed.empty:
        what = f"the table of codes lacks {min(unknown)}" if unknown else "no cell has a code"
        raise InputError(f"{what}; make the map and the dictionary of the same cells")
    note = f"{len(placed):,} cells."
    if len(placed) > most:
        note = (f"{most:,} of {len(placed):,} cells, drawn at random so that the page stays small.")
    shown = placed.sample(n=min(most, len(placed)), random_state=seed)
    x, y, wide = _grid(shown)
    code = shown[CODE].astype(str).map(number).to_numpy()
    _centre(states, x, y, code)
    looks = [_per_cell(shown, column) for column in columns]
    if CONFIDENCE in shown:
        looks.append(_per_cell(shown, CONFIDENCE, "confidence"))
    depth = 1 + max(state["level"] for state in states)
    levels = [f"level {level}" for level in range(depth - 1)] + ["codes"]
    spec = {
        "kind": "atlas", "title": title, "alt": alt, "note": note, "grid": GRID, "wide": wide,
        "levels": levels, "states": states, "looks": [*_per_state(states, codes), *looks],
        "scale": sns.color_palette("cividis", SHADES + 1).as_hex(),
        "cells": {"x": x.tolist(), "y": y.tolist(), "code": code.tolist()},
    }
    return InteractiveFigure(spec, f"{title}. {alt} {note}")


def tree(
    codes: pd.DataFrame,
    *,
    title: str = "Tree of codes",
    alt: str = "Codes below their parents.",
) -> InteractiveFigure:
    """Show codes below their parents; each opens its card, a search finds a code, gene or name.

    Args:
        codes: codes of a dictionary, codes and parents.
        title: a few words above the figure.
        alt: what the figure shows, for readers who do not see it.

    Example:
        >>> codes = pd.DataFrame({"address": ["C0", "C0.1"], "parent": ["", "C0"],
        ...                       "level": [0, 1], "cells": [5, 5]})
        >>> [state["parent"] for state in tree(codes).spec["states"]]
        [-1, 0]
    """
    spec = {"kind": "code-tree", "title": title, "alt": alt, "states": _states(codes, None)}
    return InteractiveFigure(spec, f"{title}. {alt} {len(codes)} states.")


def _states(codes: pd.DataFrame, markers: pd.DataFrame | None) -> list[dict]:
    """The states of a code table in the order of their addresses, as the script reads them."""
    rows = codes.sort_values("address").to_dict("records")
    number = {str(row["address"]): i for i, row in enumerate(rows)}
    colors = _colors(codes)
    more = {} if markers is None or markers.empty else _best(markers)
    return [
        {
            "address": str(row["address"]), "name": _name(row), "level": int(row.get("level", 0)),
            "parent": number.get(str(row.get("parent") or ""), -1), "count": int(row["cells"]),
            "x": 0, "y": 0, "color": colors[row["address"]],
            "unstable": row.get("stable") == "unstable",
            "facts": [list(fact) for fact in short_facts(row)],
            "genes": more.get(row["address"]) or _list(row.get("markers"))[:GENES],
            "links": [["part of" if word == "parent" else "nearest", number[other]]
                      for word in ("parent", "nearest")
                      for other in _list(row.get(word)) if other in number],
        }
        for row in rows
    ]


def _colors(codes: pd.DataFrame) -> dict[str, str]:
    """A colour for each state, distinct within its level."""
    levels = codes.get("level", pd.Series(0, codes.index))
    colors = {}
    for _, part in codes.groupby(levels):
        for name, color in palette(sorted(part["address"])).items():
            tone = color if isinstance(color, str) else sns.color_palette([color]).as_hex()[0]
            colors[name] = tone
    return colors


def _best(markers: pd.DataFrame) -> dict[str, list[str]]:
    found = markers[(markers["fdr"] < 0.05) & (markers["score"] > 0)]
    found = found.sort_values(["code", "score"], ascending=[True, False])
    return found.groupby("code").head(GENES).groupby("code")["gene"].agg(list).to_dict()


def _grid(shown: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
    """Positions as whole numbers, the y axis downwards as on a screen; and width by height."""
    values = shown[["x", "y"]].to_numpy(float)
    low, span = values.min(axis=0), np.maximum(np.ptp(values, axis=0), 1e-9)
    x, y = np.rint(GRID * (values - low) / span).astype(int).T
    return x, GRID - y, round(float(np.clip(span[0] / span[1], 0.4, 2.5)), 3)


def _centre(states: list[dict], x: np.ndarray, y: np.ndarray, code: np.ndarray) -> None:
    """Put the name of each state where its cells lie: the median of those drawn."""
    inside = np.array([[state["parent"]] for state in states]).ravel()
    at = code.copy()
    while (at >= 0).any():
        here = at >= 0
        table = pd.DataFrame({"x": x[here], "y": y[here]}).groupby(at[here]).median()
        for number, row in table.iterrows():
            states[number] |= {"x": int(row["x"]), "y": int(row["y"])}
        at = np.where(here, inside[at], -1)


def _per_cell(shown: pd.DataFrame, column: str, name: str | None = None) -> dict:
    """What to colour each cell by: groups, or numbers in shades; -1 is not known."""
    name, values = name or column, shown[column]
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return {"name": name, "of": "cell", **_shades(values.to_numpy(float))}
    text = values.astype(object).where(values.notna(), "").astype(str)
    return {"name": name, "of": "cell", **_groups(text)}


def _per_state(states: list[dict], codes: pd.DataFrame) -> list[dict]:
    """What to colour the cells of a state by."""
    table = codes.sort_values("address")
    looks = []
    for name, column in (("suggested name", "name"), ("stability flag", "stable")):
        if column in table and table[column].astype(str).ne("").any():
            looks.append({"name": name, "of": "state", **_groups(table[column].astype(str))})
    if "stability" in table and table["stability"].notna().any():
        looks.append({"name": "stability", "of": "state",
                      **_shades(table["stability"].to_numpy(float), 0, 1)})
    return looks


def _groups(text: pd.Series) -> dict:
    names = sorted(set(text) - {"", UNKNOWN}) + ([UNKNOWN] if UNKNOWN in set(text) else [])
    colors = {name: color if isinstance(color, str) else sns.color_palette([color]).as_hex()[0]
              for name, color in palette([name for name in names if name != UNKNOWN]).items()}
    colors |= {UNKNOWN: "#8b9aa8"}
    if set(names) <= set(STABLE_TONES):
        colors = STABLE_TONES
    number = {name: i for i, name in enumerate(names)}
    return {"groups": names, "tones": [colors[name] for name in names],
            "values": [number.get(value, -1) for value in text]}


def _shades(values: np.ndarray, low: float | None = None, high: float | None = None) -> dict:
    known = np.isfinite(values)
    low = float(values[known].min(initial=np.inf)) if low is None else low
    high = float(values[known].max(initial=-np.inf)) if high is None else high
    if not known.any():
        low, high = 0.0, 1.0
    shade = np.where(known, SHADES * (np.nan_to_num(values) - low) / max(high - low, 1e-12), -1)
    shade = np.rint(shade).astype(int).tolist()
    return {"low": f"{low:.2g}", "high": f"{high:.2g}", "values": shade}


def _name(row: dict) -> str:
    name = row.get("name")
    return name if isinstance(name, str) else ""


def _list(value: object) -> list[str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    return [part for part in str(value).split(", ") if part]
