"""One card for every code: what a biologist reads first, as a page that opens from any folder.

The page is a single HTML file without any load from outside. All text from data is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import numpy as np
import pandas as pd

from cellvq.cardpage import frame

UP, DOWN, SETS, REGULATORS = 8, 4, 5, 4
"""Rows of each table of a card, at the most."""
FDR = 0.05
UNKNOWN = "unknown"
GIVEN_LABEL = "given label, not used to name"
REGULONS = "regulons"


def page(
    codes: pd.DataFrame,
    markers: pd.DataFrame,
    gene_sets: pd.DataFrame,
    *,
    title: str = "Dictionary of cell codes",
    notes: Sequence[str] = (),
) -> str:
    """Write the page of code cards: searchable, light and dark, for phone and paper.

    Args:
        codes: codes of a dictionary; of the columns only ``address`` and ``cells`` must be there.
        markers: ``code``, ``gene``, ``score``, ``log2_fold_change``, ``fdr``, where there are any
            ``auroc`` and ``null_score``.
        gene_sets: ``code``, ``collection``, ``name``, ``score``, ``fdr``, ``top_genes``; the
            collection ``regulons`` are transcription factors.
        title: words at the top.
        notes: what was left out and why.

    Returns:
        HTML.

    Example:
        >>> codes = pd.DataFrame({"address": ["C0"], "cells": [40], "name": ["<B> cell"]})
        >>> text = page(codes, pd.DataFrame(), pd.DataFrame())
        >>> "&lt;B&gt; cell" in text, "<B>" in text
        (True, False)
    """
    rows = codes.to_dict("records")
    known = {str(row["address"]) for row in rows}
    genes, sets = _marker_tables(markers), _set_tables(gene_sets)
    cards = "\n".join(
        _card(row, known, genes.get(row["address"], "") + sets.get(row["address"], ""))
        for row in rows
    )
    own = sum(bool(row.get("is_code", True)) for row in rows)
    lead = f"{own:,} codes" + (f" and {len(rows) - own:,} parents" if own < len(rows) else "")
    return frame(title, f"{lead}. Every line stands beside its evidence; p-values of learnt groups "
                 "rank genes, they prove no state.", list(notes), _fields(codes), cards)


def facts(code: Mapping) -> list[tuple[str, str]]:
    """What a code's row tells in short, as names with values; what is not known is left out.

    Args:
        code: a row of the codes of a dictionary.

    Example:
        >>> facts({"cells": 40, "fraction": 0.5, "stability": 0.9, "stability_null": 0.1})
        [('cells', '40 (50.0 %)'), ('stability', '0.90 (chance 0.10)')]
    """
    share = _if(code, "fraction", " ({:.1%})").replace("%", " %")
    found = [("cells", f"{code['cells']:,}{share}")]
    if (code.get("donors") or 0) > 0:
        even = _if(code, "donor_perplexity", ", as even as {:.1f}")
        chance = _if(code, "donor_perplexity_null", " (chance {:.1f})")
        found.append(("donors", f"{code['donors']:,.0f}{even}{chance if even else ''}"))
    for word, column in (("batches", "batch_perplexity"), ("stability", "stability")):
        value = _if(code, column, "as even as {:.1f}" if word == "batches" else "{:.2f}")
        chance = _if(code, f"{column}_null", " (chance {:.2f})")
        found.append((word, value + chance if value else ""))
    found.append(("confidence", _if(code, "confidence", "{:.2f}")))
    if code.get("label"):
        share = _if(code, "label_share", " {:.0%}").replace("%", " %")
        chance = _if(code, "label_share_null", " (chance {:.0%})").replace("%", " %")
        found.append((GIVEN_LABEL, f"{code['label']}{share}{chance}"))
    return [(name, value) for name, value in found if value]


def short_facts(code: Mapping) -> list[tuple[str, str]]:
    """The facts of a card with its name, markers and gene sets in one line each.

    Args:
        code: a row of the codes of a dictionary.
    """
    sets = ", ".join(map(_readable, _text(code.get("gene_sets")).split(", ")))
    said = [("evidence", _text(code.get("name_evidence"))), ("up", _text(code.get("markers"))),
            ("down", _text(code.get("markers_down"))), ("gene sets", sets),
            ("regulons", _text(code.get("regulons")))]
    flag = _text(code.get("stable"))
    found = [(name, f"{value}, {flag}" if name == "stability" else value)
             for name, value in facts(code)]
    if flag and not any(name == "stability" for name, _ in found):
        found.append(("stability", flag))
    return found + [(name, value) for name, value in said if value]


def _card(row: dict, known: set[str], tables: str) -> str:
    address, name = str(row["address"]), _text(row.get("name"))
    evidence, flag = _text(row.get("name_evidence")), _text(row.get("stable"))
    shown = "unknown" if name in ("", UNKNOWN) else name
    identity = _text(row.get("name_id"))
    about = "".join([
        f'<p class="name{" unknown" if shown == UNKNOWN else ""}">{_e(shown)}'
        f'{f" <small>{_e(identity)}</small>" if identity else ""}</p>',
        f'<p class="why">{_e(evidence)}</p>' if evidence else
        f'<p class="why">{_no_name(row)}</p>' if not name else "",
    ])
    pairs = "".join(f"<dt>{_e(word)}<dd>{_e(value)}" for word, value in facts(row))
    links = ""
    nearest = [part for part in _text(row.get("nearest")).split(", ") if part]
    if nearest:
        distance = _if(row, "nearest_distance", " (distance {:.2f})")
        links = f"<dt>nearest<dd>{', '.join(_link(part, known) for part in nearest)}{distance}"
    kind = "code" if row.get("is_code", True) else "parent"
    classes = " ".join(filter(None, [kind, {"stable": "stable", "unstable": "unstable"}.get(flag)]))
    return (
        f'<article id="{_e(address)}" class="{classes}" data-level="{_e(row.get("level", 0))}" '
        f'data-parent="{_e(_text(row.get("parent")))}" data-name="{_e(shown)}">'
        + (f'<span class="flag">{_e(flag)}</span>' if flag else "")
        + f"<h2>{_path(address, known)}</h2>{about}<dl>{pairs}{links}</dl>{tables}</article>"
    )


def _no_name(row: Mapping) -> str:
    tested = row.get("tested", True)
    return "no marker table was read" if tested else "too few cells to test its markers"


def _marker_tables(markers: pd.DataFrame) -> dict[str, str]:
    """The table of the best markers of each code that was tested."""
    if markers.empty:
        return {}
    sure = markers[markers["fdr"] < FDR].sort_values("score", ascending=False, kind="stable")
    up, down = (part.groupby("code", sort=False) for part in
                (sure[sure["score"] > 0], sure[sure["score"] < 0].iloc[::-1]))
    best = up["score"].max()
    null = markers.groupby("code")["null_score"].first() if "null_score" in markers else {}
    extra = "auroc" in markers
    head = "<tr><th>gene<th>log2 change" + ("<th>AUROC" if extra else "") + "<th>FDR"
    found = dict.fromkeys(markers["code"].unique(), "")
    for row in pd.concat([up.head(UP), down.head(DOWN)]).to_dict("records"):
        found[row["code"]] += (
            f"<tr><td>{_e(row['gene'])}<td>{_change(row['log2_fold_change'])}"
            + (f"<td>{row['auroc']:.2f}" if extra else "") + f"<td>{_small(row['fdr'])}"
        )
    return {
        code: "<h3>Markers</h3>"
        + (f"<div class=wide><table class=gene>{head}{body}</table></div>"
           + _beside_null(best.get(code, np.nan), null.get(code, np.nan))
           if body else f"<p class=why>no gene at FDR {FDR:g}</p>")
        for code, body in found.items()
    }


def _set_tables(sets: pd.DataFrame) -> dict[str, str]:
    """The tables of the best gene sets and regulons of each code that was tested."""
    if sets.empty:
        return {}
    sure = sets[(sets["fdr"] < FDR) & (sets["score"] > 0)]
    sure = sure.sort_values(["fdr", "score"], ascending=[True, False], kind="stable")
    regulator, found = sure["collection"] == REGULONS, dict.fromkeys(sets["code"].unique(), "")
    for head, part, most in (("Gene sets", sure[~regulator], SETS),
                             ("Regulons", sure[regulator], REGULATORS)):
        for code, rows in part.groupby("code").head(most).groupby("code"):
            body = "".join(
                f"<tr><td>{_e(_readable(row['name']))}<td>{row['score']:.1f}"
                f"<td>{_small(row['fdr'])}<td>{_e(_first(row.get('top_genes'), 4))}"
                for row in rows.to_dict("records")
            )
            found[code] += (f"<h3>{head}</h3><div class=wide><table class=sets><tr><th>name"
                            f"<th>score<th>q<th>genes{body}</table></div>")
    return {code: text or f"<h3>Gene sets</h3><p class=why>none at q {FDR:g}</p>"
            for code, text in found.items()}


def _beside_null(best: float, null: float) -> str:
    if not (np.isfinite(best) and np.isfinite(null)):
        return ""
    return (f"<p class=why>best score {best:.1f}; in 95 % of random codes of this size it is below "
            f"{null:.1f}</p>")


def _change(log2: float) -> str:
    """A fold change; of a gene that one side lacks it is as large as one likes."""
    return f"{log2:+.1f}" if abs(log2) <= 12 else "&lt;-12" if log2 < 0 else "&gt;+12"


def _small(p: float) -> str:
    """A false discovery rate; what rounds to nothing is below the smallest number."""
    return "&lt;1e-300" if p < 1e-300 else f"{p:.0e}"


def _fields(codes: pd.DataFrame) -> str:
    """Choices of the filters: level, parent, name."""
    names = codes.get("name", pd.Series("", codes.index)).map(_text).replace("", UNKNOWN)
    levels = sorted(codes["level"].unique()) if "level" in codes else []
    parents = codes["parent"].map(_text) if "parent" in codes else pd.Series(dtype=str)
    fields = []
    for field, every, options in (
        ("level", "all levels", [(str(level), f"level {level}") for level in levels]),
        ("parent", "all parents", [(name, name) for name in sorted(set(parents) - {""})]),
        ("name", "all names", [(name, name) for name in sorted(set(names))]),
    ):
        choices = "".join(f'<option value="{_e(value)}">{_e(text)}' for value, text in options)
        hidden = " hidden" if len(options) < 2 else ""
        fields.append(f'<select id="{field}" aria-label="{field}"{hidden}>'
                      f'<option value="">{every}{choices}</select>')
    return "".join(fields)


def _path(address: str, known: set[str]) -> str:
    """An address whose parents are links."""
    parts = address.split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    links = " › ".join(_link(parent, known) for parent in above)
    return (f"<small>{links} › </small>" if links else "") + _link(address, known)


def _link(address: str, known: set[str]) -> str:
    return (f'<a href="#{quote(address)}">{_e(address)}</a>' if address in known else _e(address))


def _readable(name: str) -> str:
    """The name of a gene set, with spaces where lines may break."""
    return str(name).removeprefix("HALLMARK_").removeprefix("REACTOME_").replace("_", " ")


def _first(genes: object, count: int) -> str:
    return ", ".join(_text(genes).split(", ")[:count])


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)


def _if(row: Mapping, column: str, form: str) -> str:
    """A number in a form, or nothing where it is not known."""
    value = row.get(column)
    known = isinstance(value, (int, float, np.number)) and np.isfinite(value)
    return form.format(value) if known else ""


def _e(value: object) -> str:
    return html.escape(str(value), quote=True)
