"""Gene names and gene panels, and ``check``: can these cells be used, and if not, what to do.

``check`` is what a user meets first, so it speaks in whole sentences.
"""

import dataclasses
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from cellvq import InputError, reading
from cellvq.counts import ENSEMBL, align, find_counts, sequencing_depth, some

# Genes that most human tissues express; mouse spells the same genes Actb, Gapdh ...
LANDMARKS = (
    "ACTB", "GAPDH", "B2M", "MALAT1", "EEF1A1", "RPLP0", "FTL", "VIM", "CD74", "PTPRC", "ISG15",
    "STAT1", "JUN", "FOS", "MYC", "HSPA5", "GNAS", "ITGB1", "LGALS3", "CAV1", "NFKBIA", "TGFBR3",
)
ENCODE_CELLS_PER_SECOND = 800  # tiny preset, two CPU cores, 2,000-gene panel, Kang: rough
BASE_MEMORY_GB = 0.8  # Python with torch and scanpy loaded, and the tiny model: rough
_LABEL_WORDS = re.compile(r"type|label|annot|cluster|louvain|leiden", re.IGNORECASE)
_BATCH_WORDS = re.compile(
    r"batch|donor|sample|patient|subject|individual|replicate|orig\.ident|library|study|assay",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Finding:
    """One thing that ``check`` found."""

    level: str  # ok, hint, warning or error
    subject: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """What ``check`` found in a count matrix; ``str(report)`` reads as text."""

    name: str
    n_cells: int
    n_genes: int
    identifiers: str  # symbols, Ensembl, Ensembl with versions, or numbers
    species: str | None
    duplicated_genes: int
    label_columns: dict[str, int]  # usable columns of obs, and how many values each has
    batch_columns: dict[str, int]
    counts_in: str | None = None  # where the raw counts are; None, like the next four, without any
    depth_median: float | None = None  # UMI counts per cell, over all measured genes
    genes_per_cell_median: float | None = None
    sparsity: float | None = None  # fraction of values that are zero
    empty_cells: int | None = None
    panel_genes: int | None = None  # genes of the model, None where no model was given
    panel_matched: int | None = None
    encode_seconds: float | None = None  # rough estimates
    encode_memory_gb: float | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the cells can be used, as no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict:
        """Give the report as plain values, for JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        verdict = "ready for CellVQ" if self.ok else "not usable as it is"
        table = {
            "raw counts": f"found in {self.counts_in}" if self.counts_in else "not found",
            "gene names": f"{self.identifiers}, {self.species or 'species not recognised'}",
            "label columns": _in_words(self.label_columns),
            "batch columns": _in_words(self.batch_columns),
        }
        if self.counts_in:
            table["a typical cell"] = (
                f"{self.depth_median:,.0f} UMI counts, {self.genes_per_cell_median:,.0f} genes "
                f"expressed (medians); {self.sparsity:.0%} of the values are zero"
            )
            table["to encode"] = (
                f"about {self.encode_seconds:,.0f} s and {self.encode_memory_gb:.1f} GB of memory "
                "(rough estimate, two CPU cores)"
            )
        if self.panel_matched is not None:
            table["model's genes"] = f"{self.panel_matched:,} of {self.panel_genes:,} are here"
        rows = [(f"  {key:<15}", text) for key, text in table.items()]
        rows += [
            (f"\n  {f.level}: ", f"{f.message[:1].upper()}{f.message[1:]}. {f.remedy}")
            for f in self.findings if f.level != "ok"
        ]
        head = f"{self.name}: {self.n_cells:,} cells x {self.n_genes:,} genes, {verdict}.\n"
        return "\n".join([head] + [
            textwrap.fill(text, 96, initial_indent=start, subsequent_indent=" " * 17)
            for start, text in rows
        ])


def check(
    cells: anndata.AnnData | str | Path,
    *,
    panel: Sequence[str] | None = None,
    label: str | None = None,
    batch: str | None = None,
) -> Report:
    """Look at cells and say whether they can be used, and if not, what to do.

    Args:
        cells: The cells, or the path of their file.
        panel: Gene names of a model, to count how many are there.
        label: Column of ``obs`` that is to be the label.
        batch: Column of ``obs`` that is to be the batch.

    Returns:
        The report: ``print(report)`` for people, ``report.to_dict()`` for programs.

    Raises:
        InputError: The path cannot be read. Whatever is wrong inside the file is a finding.

    Example:
        >>> cells = anndata.AnnData(np.array([[0.5, 1.2], [0.0, 0.7]], dtype="float32"))
        >>> report = check(cells)
        >>> report.ok, report.findings[0].subject
        (False, 'raw counts')
    """
    name = "cells"
    if isinstance(cells, str | Path):
        name, cells = Path(cells).name, reading.read(cells)
    name = str(cells.uns.get("dataset", name))
    names = cells.var_names.astype(str)
    identifiers, species = describe_names(names)
    labels, batches = _usable_columns(cells.obs)
    numbers, findings = _look_at_counts(cells, panel)
    findings += _look_at_names(cells, names, identifiers)
    findings += [
        _look_at_column(cells.obs, role, column)
        for role, column in (("label", label), ("batch", batch)) if column is not None
    ]
    levels = ("error", "warning", "hint", "ok")
    return Report(
        name=name, n_cells=cells.n_obs, n_genes=cells.n_vars, identifiers=identifiers,
        species=species, duplicated_genes=int(names.duplicated().sum()), label_columns=labels,
        batch_columns=batches, **numbers,
        findings=tuple(sorted(findings, key=lambda finding: levels.index(finding.level))),
    )


def describe_names(names: Sequence[str]) -> tuple[str, str | None]:
    """Say which kind of gene names these are and which species they look like, or None.

    Example:
        >>> describe_names(["Actb", "Gapdh", "Cd74"])
        ('symbols', 'mouse')
        >>> describe_names(["ENSG00000075624.17", "ENSG00000111640.15"])
        ('Ensembl with versions', 'human')
    """
    names = pd.Index(names).astype(str)
    parts = names.str.extract(ENSEMBL).dropna(subset=[0])
    if len(parts) > len(names) / 2:
        species = {"": "human", "MUS": "mouse"}.get(parts[1].fillna("").mode()[0])
        return ("Ensembl with versions" if parts[2].notna().any() else "Ensembl"), species
    if names.str.fullmatch(r"\d+").mean() > 0.5:
        return "numbers", None
    human, mouse = names.isin(LANDMARKS).sum(), names.isin([g.title() for g in LANDMARKS]).sum()
    return "symbols", "human" if human > mouse else "mouse" if mouse > human else None


def _look_at_counts(cells, panel) -> tuple[dict, list[Finding]]:
    """Find the counts, describe them in numbers, and say what is remarkable."""
    numbers = {"panel_genes": None if panel is None else len(panel)}
    try:
        counts, where = find_counts(cells)
    except InputError as error:
        message, _, remedy = str(error).partition("; ")
        return numbers, [Finding("error", "raw counts", message, _sentence(remedy))]
    expressed = np.diff(counts.indptr)
    empty = int((expressed == 0).sum())
    numbers |= {
        "counts_in": where,
        "depth_median": float(np.median(sequencing_depth(cells, counts))),
        "genes_per_cell_median": float(np.median(expressed)),
        "sparsity": 1 - counts.nnz / (counts.shape[0] * counts.shape[1]),
        "empty_cells": empty,
        "encode_seconds": max(1.0, cells.n_obs / ENCODE_CELLS_PER_SECOND),
        "encode_memory_gb": BASE_MEMORY_GB + 3 * 8 * counts.nnz / 1e9,
    }
    findings = [Finding("ok", "raw counts", f"raw counts were found in {where}")]
    if empty:
        findings.append(Finding(
            "warning", "empty cells", f"{empty:,} cells have no counts at all",
            "Remove them with scanpy.pp.filter_cells(cells, min_counts=1).",
        ))
    if np.median(expressed) < 20:
        findings.append(Finding(
            "warning", "few genes", f"half of the cells express fewer than "
            f"{np.median(expressed) + 1:.0f} genes", "Their codes will say little.",
        ))
    if panel is not None:
        findings.append(_look_at_panel(cells, counts, panel, numbers))
    return numbers, findings


def _look_at_panel(cells, counts, panel, numbers) -> Finding:
    """Count the genes that the model knows, into ``numbers`` too."""
    try:
        numbers["panel_matched"] = matched = align(cells, counts, panel)[1]
    except InputError as error:
        numbers["panel_matched"] = 0
        message, _, remedy = str(error).partition("; ")
        return Finding("error", "model's genes", message, _sentence(remedy))
    message = f"{matched:,} of the model's {len(panel):,} genes are here"
    if matched < len(panel) / 2:
        return Finding(
            "warning", "model's genes", message, "The others count as zero, which blurs the codes."
        )
    return Finding("ok", "model's genes", message)


def _look_at_names(cells, names, identifiers) -> list[Finding]:
    """Say what is remarkable about the names of genes and cells."""
    findings = []
    twice = names[names.duplicated()].unique()
    if identifiers == "numbers":
        findings.append(Finding(
            "error", "gene names", f"the gene names are numbers, such as {some(names)}",
            "Put symbols or Ensembl identifiers into var_names.",
        ))
    if len(twice):
        findings.append(Finding(
            "warning", "gene names", f"{len(twice):,} gene names stand more than once, such as "
            f"{some(twice)}", "Their counts are summed.",
        ))
    if not cells.obs_names.is_unique:
        findings.append(Finding(
            "warning", "cell names", "some cells have the same name",
            "Make them unique with cells.obs_names_make_unique().",
        ))
    return findings


def _look_at_column(obs: pd.DataFrame, role: str, column: str) -> Finding:
    """Say whether a column of obs can serve as label or batch."""
    if column not in obs:
        return Finding(
            "error", role, f"there is no column {column!r} in obs to be the {role}",
            f"The columns are: {', '.join(map(str, obs.columns)) or 'none'}.",
        )
    sizes = _filled(obs[column]).value_counts()
    sizes = sizes[sizes > 0]
    missing = len(obs) - int(sizes.sum())
    if len(sizes) < 2 or len(sizes) > len(obs) / 2:
        return Finding(
            "error", role, f"column {column!r} has {len(sizes):,} values for {len(obs):,} cells",
            f"A {role} needs at least two values, each in several cells.",
        )
    if missing or sizes.iloc[-1] < 5:
        return Finding(
            "hint", role, f"in column {column!r}, {missing:,} cells have no value and the rarest "
            f"of {len(sizes)} values has {sizes.iloc[-1]:,} cells", "Scores leave out the former.",
        )
    return Finding("ok", role, f"column {column!r} has {len(sizes)} values")


def _usable_columns(obs: pd.DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """Find the columns that may be labels and those that may be batches, likeliest first."""
    usable: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for column in sorted(obs, key=lambda name: not _LABEL_WORDS.search(str(name))):
        is_batch = bool(_BATCH_WORDS.search(str(column)))
        values = obs[column]
        if pd.api.types.is_float_dtype(values) or not (is_batch or values.dtype.kind not in "iu"):
            continue
        if 2 <= (n := _filled(values).nunique()) <= min(200, len(obs) / 3):
            usable[is_batch][str(column)] = int(n)
    return usable


def _filled(values: pd.Series) -> pd.Series:
    """Drop the values that are missing; an empty string is missing too."""
    return values[values.notna() & (values.astype(str).str.strip() != "")]


def _sentence(text: str) -> str:
    """Make a clause a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _in_words(columns: dict[str, int]) -> str:
    """List columns with their number of values."""
    listed = [f"{name} ({n} values)" for name, n in columns.items()]
    more = f", and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more or "none found"
