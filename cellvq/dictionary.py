"""The dictionary of cell codes: every code and every parent in one row, with its evidence.

What the codes are is learnt from counts alone. Labels, where there are any, stand beside the names
that markers suggest and never decide them. What could not be told is said in the notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cellvq import InputError, biology, codes, dictionaryfiles, evaluate, pseudobulk
from cellvq.markers import CODE, cut, marker_table, top_markers, with_code
from cellvq.stability import NOT_MEASURED

if TYPE_CHECKING:
    from anndata import AnnData

    from cellvq.knowledge import Knowledge
    from cellvq.model import CellVQ

NULL_DRAWS = 20
"""Shuffles of the codes that ``null_score`` is taken from."""
MIX_DRAWS = 100
"""Shuffles of donors and of batches over the cells."""
SHOWN, SETS_SHOWN = 5, 3
"""Markers, and sets of each collection, that the row of a code names at the most."""
REGULONS = "regulons"
CODE_COLUMNS = {
    "address": str, "parent": str, "level": int, "is_code": bool, "cells": int, "fraction": float,
    "donors": int, "donor_perplexity": float, "donor_perplexity_null": float,
    "batch_perplexity": float, "batch_perplexity_null": float, "confidence": float,
    "stability": float, "stability_null": float, "stable": str, "tested": bool, "markers": str,
    "markers_down": str, "gene_sets": str, "regulons": str, "nearest": str,
    "nearest_distance": float, "name": str, "name_id": str, "name_evidence": str, "label": str,
    "label_share": float, "label_share_null": float,
}


@dataclass(frozen=True)
class Dictionary:
    """Tables of what the codes of some cells mean; their columns are explained in its README."""

    codes: pd.DataFrame
    """One row a code and a parent, in the order of the tree, with the columns ``CODE_COLUMNS``."""
    markers: pd.DataFrame
    """See :func:`cellvq.markers.marker_table`, of all levels, with ``null_score``; where donors
    allow also with the columns of :func:`cellvq.pseudobulk.donor_table`."""
    gene_sets: pd.DataFrame
    """See :func:`cellvq.genesets.enrich`; the collection ``regulons`` are transcription factors."""
    names: pd.DataFrame
    """See :func:`cellvq.naming.suggest`."""
    decoded: pd.DataFrame
    """See :func:`cellvq.decoded.decoded_expression`, [addresses, panel]."""
    notes: list[str] = field(default_factory=list)
    """What was left out and why, a sentence each."""


def build(
    cells: AnnData,
    *,
    label: str | None = None,
    donor: str | None = None,
    batch: str | None = None,
    model: CellVQ | str | Path | None = None,
    knowledge: Knowledge | None = None,
    stability: pd.DataFrame | None = None,
    seed: int = 0,
) -> Dictionary:
    """Gather what can be told about every code and every parent.

    Args:
        cells: encoded cells with raw counts; cells without a code are left out.
        label: column of ``obs`` with what is known of the cells; shown, and never used to name.
        donor: column of ``obs`` with the donor; cells without one are left out of tests of donors.
        batch: column of ``obs`` with the batch.
        model: the model that encoded the cells, or its folder, for the decoded expression.
        knowledge: :func:`cellvq.knowledge.available`; None: no gene sets, regulons and names.
        stability: :func:`cellvq.stability.code_stability`.
        seed: seed of all nulls.

    Raises:
        InputError: the cells are not encoded, hold no counts, were encoded by another model, or a
            column is not there.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=200, cell_types=2)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> cells.obsm["X_cellvq"] = cells.obsm["program_activity"]
        >>> found = build(cells, label="cell_type")
        >>> found.codes[["address", "cells", "label", "stable"]].values.tolist()
        [['type_1', 142, 'type_1', 'not measured'], ['type_2', 58, 'type_2', 'not measured']]
        >>> found.notes[-1]
        'decoded expression left out: no model; add --model DIR'
    """
    notes: list[str] = []
    coded, address = with_code(cells)
    if coded.n_obs < cells.n_obs:
        notes.append(f"{cells.n_obs - coded.n_obs:,} cells without a code left out")
    cells = coded.copy() if coded.is_view else coded
    for word, column in (("labels", label), ("donors", donor), ("batches", batch)):
        if not column:
            notes.append(f"{word} left out: no column of obs is named")
        elif column not in cells.obs:
            raise InputError(f"obs has no column {column!r}; there are {', '.join(cells.obs)}")
    if label and not evaluate.labelled(cells.obs[label]).any():
        notes.append(f"labels left out: obs[{label!r}] is empty")
        label = None
    markers = _markers(cells, donor, seed, notes)
    sets, names = _knowledge(cells, markers, knowledge, seed, notes)
    levels = [_level(work, markers, label, donor, batch, seed, notes)
              for work in _levels(cells, address)]
    table = pd.concat(levels, ignore_index=True).drop_duplicates("address")
    if stability is None:
        notes.append("stability not measured: no other runs to compare with")
        stability = pd.DataFrame(columns=["code", "stability", "null", "stable"])
    table = table.join(_in_a_line(markers, sets, names), on="address")
    table = table.join(stability.rename(columns={"null": "stability_null"}).set_index("code")[
        ["stability", "stability_null", "stable"]], on="address")
    table["stable"] = table["stable"].fillna(NOT_MEASURED)
    table["is_code"] = table["address"].isin(address)
    if model is None:
        decoded = pd.DataFrame(index=pd.Index([], name="address"))
        notes.append("decoded expression left out: no model; add --model DIR")
    else:
        from cellvq import decoded as room

        model = room.model_of(cells.uns.get("cellvq", {}), model)
        decoded = room.decoded_expression(model, table["address"])
    return Dictionary(_typed(table), markers, sets, names, decoded, list(dict.fromkeys(notes)))


def write(dictionary: Dictionary, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a dictionary as a folder, which appears whole or not at all.

    See :func:`cellvq.dictionaryfiles.write_folder`.
    """
    tables = {name: getattr(dictionary, name)
              for name in ("codes", "markers", "gene_sets", "names", "decoded")}
    return dictionaryfiles.write_folder(
        tables, folder, summary=in_words(dictionary), notes=dictionary.notes, overwrite=overwrite
    )


def in_words(dictionary: Dictionary) -> str:
    """Say in a sentence what a dictionary holds.

    Example:
        >>> codes = pd.DataFrame({"is_code": [False, True], "level": [0, 1], "cells": [9, 9],
        ...                       "stable": "stable", "markers": ["", "LYZ"], "name": ""})
        >>> nothing = pd.DataFrame()
        >>> in_words(Dictionary(codes, nothing, nothing, nothing, nothing))
        '1 code and 1 parent in 9 cells: 1 stable; 1 with markers, 0 named'
    """
    rows = dictionary.codes
    own, parents = rows[rows["is_code"]], rows[~rows["is_code"]]
    words = " and ".join(f"{len(part):,} {word}{'' if len(part) == 1 else 's'}"
                         for part, word in ((own, "code"), (parents, "parent")) if len(part))
    flags = own["stable"].value_counts()
    flags = ", ".join(f"{count:,} {flag}" for flag, count in flags.items())
    flags = flags.replace("not measured", "without a measure of stability")
    named = (~own["name"].isin(["", "unknown"])).sum()
    return (f"{words} in {own['cells'].sum():,} cells: {flags}; "
            f"{(own['markers'] != '').sum():,} with markers, {named:,} named")


def _levels(cells: AnnData, address: pd.Series) -> Iterator[AnnData]:
    """Cells without counts whose codes are cut to each level, the coarsest first."""
    from anndata import AnnData

    vectors = {key: cells.obsm[key] for key in (codes.EMBEDDING, codes.CODE_VECTOR)
               if key in cells.obsm}
    for level in range(address.str.count(r"\.").max() + 1):
        state = cut(address, level + 1).astype("category")
        yield AnnData(obs=cells.obs.assign(**{CODE: state}), obsm=vectors, uns={"level": level})


def _level(work, markers, label, donor, batch, seed, notes) -> pd.DataFrame:
    """Rows of the codes of one level."""
    level = work.uns["level"]
    table = codes.code_table(work, label, markers=markers[markers["level"] == level], seed=seed)
    table = table.rename(columns={
        "code": "address", "annotation": "label", "purity": "label_share",
        "purity_null": "label_share_null",
    }).assign(level=level)
    table["parent"] = cut(table["address"], -1) if level else ""
    if donor:
        known = work.obs[evaluate.labelled(work.obs[donor])]
        donors = known.groupby(known[CODE].astype(str))[donor].nunique()
        table = table.join(donors.rename("donors"), on="address")
    for column, name in ((donor, "donor"), (batch, "batch")):
        if column:
            mix = biology.donor_mix(work, column, draws=MIX_DRAWS, seed=seed)
            if mix.attrs["reason"]:
                reason = mix.attrs["reason"].replace("as donor", f"as {name}")
                notes.append(f"{name} perplexity left out: {reason}")
            mix = mix.set_index("code")[["donor_perplexity", "expected"]]
            table = table.join(mix.set_axis([f"{name}_perplexity", f"{name}_perplexity_null"],
                                            axis=1), on="address")
    return table


def _markers(cells: AnnData, donor: str | None, seed: int, notes: list[str]) -> pd.DataFrame:
    """Markers of all levels, with what holds over donors where there are enough of them."""
    markers = marker_table(cells, levels="all", null_draws=NULL_DRAWS, donor=donor, seed=seed)
    if "reason" in markers.attrs:
        notes.append(f"markers left out: {markers.attrs['reason']}")
    if not donor or markers.empty:
        return markers
    known = evaluate.labelled(cells.obs[donor])
    if 0 < known.sum() < len(known):
        notes.append(f"tests over donors rest on {known.sum():,} of {len(known):,} cells, those "
                     f"with a value in obs[{donor!r}]")
    tested = pseudobulk.donor_table(cells, donor, levels="all")
    if "reason" in tested.attrs:
        notes.append(f"tests over donors left out: {tested.attrs['reason']}")
        return markers
    return markers.merge(tested, how="left", on=["code", "gene", "level"])


def _knowledge(cells, markers, knowledge, seed, notes) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gene sets with regulons, and names; empty tables where nothing can be told."""
    from cellvq import genesets, naming
    from cellvq.knowledge import why_foreign

    nothing = (_empty(genesets.COLUMNS), _empty(naming.COLUMNS))
    organism = cells.uns.get("organism")
    if organism is None and "organism" in cells.obs:
        organism = ", ".join(cells.obs["organism"].dropna().astype(str).unique())
    reason = "no tables are given" if knowledge is None else why_foreign(cells.var_names, organism)
    if reason:
        notes.append(f"gene sets, regulons and names left out: {reason}")
        return nothing
    notes += knowledge.missing
    null = genesets.random_codes(cells, seed=seed)
    parts = []
    for word, known in (("gene sets", knowledge.gene_sets), (REGULONS, knowledge.regulons)):
        found = _attempt(word, notes, genesets.enrich, markers, known, null=null)
        parts += [] if found is None else [found]
    sets = pd.concat(parts, ignore_index=True) if parts else nothing[0]
    names = _attempt("names", notes, naming.suggest, markers, knowledge.markers,
                     knowledge.ontology, null=null, organism=organism)
    return sets, nothing[1] if names is None else names


def _attempt(word: str, notes: list[str], ask, markers, known, *more, **options):
    """Ask what is known; None with the reason in the notes where that tells nothing."""
    if known.empty:  # why is among what knowledge misses
        return None
    try:
        found = ask(markers, known, *more, **options)
    except InputError as error:
        notes.append(f"{word} left out: {error}")
        return None
    if found.empty and found.attrs.get("reason"):
        notes.append(f"{word} left out: {found.attrs['reason']}")
    return found


def _in_a_line(markers, sets, names) -> pd.DataFrame:
    """What the row of a code says of the other tables, indexed by address."""
    def listed(rows: pd.DataFrame, column: str) -> pd.Series:
        return rows.groupby("code")[column].agg(", ".join)

    best = sets[(sets["fdr"] < 0.05) & (sets["score"] > 0)]  # best first within a collection
    best = best.groupby(["code", "collection"]).head(SETS_SHOWN)
    regulons = best["collection"] == REGULONS
    return pd.DataFrame({
        "markers_down": listed(top_markers(markers, SHOWN, down=True), "gene"),
        "gene_sets": listed(best[~regulons], "name"),
        "regulons": listed(best[regulons], "name"),
    }).join(names.set_index("code")[["name", "name_id", "evidence"]].rename(
        columns={"evidence": "name_evidence"}), how="outer")


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """All columns in their order and kind; what is not known is NaN, empty or 0 donors."""
    table = table.sort_values("address", ignore_index=True).reindex(columns=list(CODE_COLUMNS))
    for name, kind in CODE_COLUMNS.items():
        if kind is not float:
            table[name] = table[name].fillna("" if kind is str else 0)
    return table.astype(CODE_COLUMNS)


def _empty(columns: dict[str, type]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
