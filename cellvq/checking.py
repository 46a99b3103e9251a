"""``check``: can these cells be used, and if not, what to do?

It is what a user meets first, so it speaks in whole sentences. It goes through the file once, never
holds it in memory where that can be avoided, and changes nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from cellvq import InputError, counts, genes, machine, registry
from cellvq.reading import Unreadable
from cellvq.report import LEVELS, Finding, Report
from cellvq.scan import Scan, Table, open_table, scan

FEW_GENES = 20  # expressed in a cell; with fewer, a code says little
DROPLET_GENES = 200  # expressed in a cell where all genes were measured; empty droplets have fewer
LARGEST_COUNT = 1e7  # of one gene in one cell; reads of full-length methods reach a million
ALL_GENES = 10_000  # genes of a file from which on all were measured
CROWDED, MANY_CROWDED = 2.5, 0.05  # times the median; share of the cells that is worth a hint
STRESSED, MANY_STRESSED = 0.2, 0.1  # share of mitochondrial counts; share of the cells
_LABEL_WORDS = re.compile(r"type|label|annot|cluster|louvain|leiden", re.IGNORECASE)
_BATCH_WORDS = re.compile(
    r"batch|donor|sample|patient|subject|individual|replicate|orig\.ident|library|study|assay",
    re.IGNORECASE,
)


def check(
    cells: anndata.AnnData | str | Path,
    *,
    panel: Sequence[str] | None = None,
    label: str | None = None,
    batch: str | None = None,
    gene_table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> Report:
    """Look at cells and say whether they can be used, and if not, what to do.

    Args:
        cells: The cells, or the path of their file.
        panel: Gene names of a model, to count how many are there.
        label: Column of ``obs`` that is to be the label.
        batch: Column of ``obs`` that is to be the batch.
        gene_table: Approved symbols; None: those of the registry (``hgnc``), if they are here.
        orthologs: One-to-one orthologs (``mouse_orthologs``), to match genes of mouse.

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
    table = open_table(cells)
    names = table.var.index.astype(str)
    identifiers, species = genes.describe_names(names)
    columns = {name: _sizes(table.column(name)) for name in table.columns}
    labels, batches = _usable_columns(table, columns)
    groups = batch if batch in columns else next(iter(batches), None)
    numbers, findings = _look_at_counts(table, cells, groups)
    named, said = _look_at_panel(table, panel, _table(gene_table, species), orthologs)
    findings += said + _look_at_names(table, names, identifiers, species)
    findings += [
        _look_at_column(columns, len(table.obs_names), role, column)
        for role, column in (("label", label), ("batch", batch)) if column is not None
    ]
    return Report(
        name=counts.plain(table.name), n_cells=len(table.obs_names), n_genes=len(names),
        identifiers=identifiers, species=species,
        duplicated_genes=int(names.duplicated().sum()),
        duplicated_cells=int(table.obs_names.duplicated().sum()),
        label_columns=labels, batch_columns=batches, **numbers, **named,
        findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
    )


def _look_at_counts(table: Table, cells, groups: str | None) -> tuple[dict, list[Finding]]:
    """Go through the counts, describe them in numbers, and say what is remarkable."""
    try:
        found = scan(table)
    except Unreadable:
        raise
    except InputError as error:
        return {}, [Finding.of_error("raw counts", error, str(cells))]
    depth = _depth(table, found)
    here = machine.measure()
    values = int(found.cells_of_gene.sum())
    n_cells, n_genes = len(found.expressed), len(found.cells_of_gene)
    needs = machine.estimate(n_cells, n_genes, values, here)
    batch = pd.Series(0, range(n_cells)) if groups is None else table.column(groups)
    crowded = _crowded(found, batch.astype(str).to_numpy())
    shares = None if found.mitochondrial is None else found.mitochondrial[found.expressed > 0]
    numbers = {
        "counts_in": found.counts_in,
        "depth_median": float(np.median(depth)),
        "genes_per_cell_median": float(np.median(found.expressed)),
        "sparsity": 1 - values / (n_cells * n_genes),
        "empty_cells": int((found.expressed == 0).sum()),
        "empty_genes": int((found.cells_of_gene == 0).sum()),
        "identical_cells": found.identical,
        "mitochondrial_median": None if shares is None else float(np.median(shares)),
        "crowded_cells": crowded,
        "cores": here.cores, "free_memory_gb": here.free_memory_gb, **vars(needs),
    }
    findings = _judge(numbers, found, shares, groups)
    if here.free_memory_gb and needs.encode_memory_gb > here.free_memory_gb:
        findings.append(Finding(
            "warning", "memory", f"encoding may need {needs.encode_memory_gb:.0f} GB, and "
            f"{here.free_memory_gb:.0f} GB are free", "Encode parts of the file, or elsewhere.",
        ))
    return numbers, findings


def _judge(numbers: dict, found: Scan, shares, groups: str | None) -> list[Finding]:
    """Say what is remarkable about counts."""
    findings = [Finding("ok", "raw counts", f"raw counts were found in {found.counts_in}")]
    if "recovered" in found.counts_in:
        findings.append(Finding(
            "hint", "recovered counts", f"the file holds no counts but {found.counts_in}",
            "Every value gave a whole number; keep the original counts if you have them.",
        ))
    if numbers["empty_cells"]:
        findings.append(Finding(
            "warning", "empty cells", f"{numbers['empty_cells']:,} cells have no counts at all",
            "Remove them with scanpy.pp.filter_cells(cells, min_counts=1).",
        ))
    if found.largest > LARGEST_COUNT:
        findings.append(Finding(
            "warning", "huge counts", f"the largest count is {found.largest:.3g}, more than any "
            "cell holds of a gene", "Is it a number that marks missing values?",
        ))
    if found.largest == 1:
        findings.append(Finding(
            "warning", "only ones", "every count is 0 or 1, as in data that were made binary",
            "Take the counts from before.",
        ))
    expressed = found.expressed[found.expressed > 0]
    least = DROPLET_GENES if len(found.cells_of_gene) >= ALL_GENES else FEW_GENES
    few = int((expressed < least).sum())
    if np.median(found.expressed) < FEW_GENES:
        findings.append(Finding(
            "warning", "few genes", f"half of the cells express fewer than "
            f"{np.median(found.expressed) + 1:.0f} genes", "Their codes will say little.",
        ))
    elif few:
        findings.append(Finding(
            "hint", "few genes", f"{few:,} cells express fewer than {least} genes, as broken cells "
            "and empty droplets do", f"scanpy.pp.filter_cells(cells, min_genes={least}) removes "
            "them.",
        ))
    if numbers["identical_cells"]:
        findings.append(Finding(
            "warning", "repeated cells", f"{numbers['identical_cells']:,} cells repeat the counts "
            "of another cell exactly", "Was one sample read twice? Keep one of each.",
        ))
    if numbers["empty_genes"]:
        findings.append(Finding(
            "hint", "empty genes", f"{numbers['empty_genes']:,} genes are expressed in no cell",
            "They do no harm.",
        ))
    if shares is not None and (share := (shares > STRESSED).mean()) > MANY_STRESSED:
        findings.append(Finding(
            "hint", "mitochondria", f"in {share:.0%} of the cells more than {STRESSED:.0%} of the "
            "counts are mitochondrial, as in dying cells",
            "Some tissues are so; else filter by it, with scanpy.pp.calculate_qc_metrics.",
        ))
    if numbers["crowded_cells"] > MANY_CROWDED:
        of = "" if groups is None else f" of their {groups}"
        findings.append(Finding(
            "hint", "doublets", f"{numbers['crowded_cells']:.0%} of the cells have over "
            f"{CROWDED} times the median counts or genes{of}: large cells, or two in one droplet",
            "scanpy.pp.scrublet tells more.",
        ))
    return findings


def _depth(table: Table, found: Scan) -> np.ndarray:
    """Give each cell's UMI counts over all measured genes, as ``counts.sequencing_depth`` does."""
    columns = [column for column in counts.DEPTH_COLUMNS if column in table.columns]
    known = counts.known_depths(pd.DataFrame({name: table.column(name) for name in columns}))
    return next((depth for depth in known.values() if (depth >= found.depth).all()), found.depth)


def _crowded(found: Scan, batch: np.ndarray) -> float:
    """Give the share of cells with far more counts or genes than is usual in their batch."""
    cells = pd.DataFrame({"depth": found.depth, "genes": found.expressed})[found.expressed > 0]
    usual = cells.groupby(batch[found.expressed > 0]).transform("median")
    return float((cells > CROWDED * usual).any(axis=1).mean())


def _table(given: pd.DataFrame | None, species: str | None) -> pd.DataFrame | None:
    """Take the gene table given, or that of the registry where it helps and is on this machine."""
    if given is not None or species == "mouse":
        return given
    try:
        return registry.table("hgnc") if registry.find("hgnc") else None
    except InputError:
        return None  # damaged; whoever asks for it by name is told


def _look_at_panel(table: Table, panel, approved, orthologs) -> tuple[dict, list[Finding]]:
    """Count the genes that the model knows, as they are named and with the gene tables."""
    wanted = panel if panel is not None else None if approved is None else approved["symbol"]
    if wanted is None or not len(table.var):
        return {"panel_genes": None if panel is None else len(panel)}, []
    named = {}
    if approved is not None or orthologs is not None:
        best = genes.best_match(table.var, wanted, approved, orthologs)
        named["gene_names"] = {
            outcome: int((best["outcome"] == outcome).sum()) for outcome in genes.OUTCOMES
        }
    if panel is None:
        return named, []
    direct = genes.best_match(table.var, panel)["gene"]
    matched = direct[direct != ""].nunique()
    named |= {"panel_genes": len(panel), "panel_matched": matched}
    if "gene_names" in named:
        named["panel_matched_by_table"] = best.loc[best["gene"] != "", "gene"].nunique()
    more = named.get("panel_matched_by_table", 0) - matched
    message = f"{matched:,} of the model's {len(panel):,} genes are here"
    flag = "--gene-table hgnc" if orthologs is None else "--orthologs mouse_orthologs"
    remedy = f"{more:,} more are found with {flag}." if more > 0 else ""
    species = [genes.describe_names(names)[1] for names in (table.var.index, panel)]
    if species == ["mouse", "human"] and orthologs is None:
        remedy = ("The cells are of mouse and the model is human: cellvq fetch mouse_orthologs, "
                  "then --orthologs mouse_orthologs.")
    if not matched and more <= 0:
        return named, [Finding(
            "error", "model's genes", f"no gene of the cells is known to the model: the cells have "
            f"{counts.some(list(table.var.index))}, the model has {counts.some(list(panel))}",
            remedy or "Use the same species and the same kind of gene names.",
        )]
    if matched < len(panel) / 2:
        return named, [Finding(
            "warning", "model's genes", message,
            remedy or "The others are unknown to the model, which blurs the codes."
            + (" Older names may hide more: cellvq fetch hgnc." if approved is None else ""),
        )]
    return named, [Finding("hint" if more > len(panel) / 100 else "ok", "model's genes", message,
                           remedy)]


def _look_at_names(table: Table, names, identifiers, species) -> list[Finding]:
    """Say what is remarkable about the names of genes and cells."""
    findings = []
    twice = names[names.duplicated()].unique()
    if identifiers == "numbers":
        findings.append(Finding(
            "error", "gene names", f"the gene names are numbers, such as {counts.some(names)}",
            "Put symbols or Ensembl identifiers into var_names.",
        ))
    if species is not None and " and " in species:
        findings.append(Finding(
            "warning", "mixed species", f"genes of {species} stand in one file",
            "Keep the cells and the genes of one species, for example "
            "cells[:, cells.var_names.str.startswith('GRCh38_')].",
        ))
    if len(twice):
        findings.append(Finding(
            "warning", "gene names", f"{len(twice):,} gene names stand more than once, such as "
            f"{counts.some(twice)}", "Their counts are summed.",
        ))
    if not table.obs_names.is_unique:
        findings.append(Finding(
            "warning", "cell names", "some cells have the same name",
            "Make them unique with cells.obs_names_make_unique().",
        ))
    if table.note:
        findings.append(Finding(
            "warning" if "guess" in table.note else "hint", "table",
            f"the table was read with {table.note}",
            "If that is wrong, transpose it." if "guess" in table.note else "",
        ))
    return findings


def _look_at_column(columns: dict, n_cells: int, role: str, column: str) -> Finding:
    """Say whether a column of obs can serve as label or batch."""
    if column not in columns:
        listed = ", ".join(map(counts.plain, list(columns)[:20])) or "none"
        return Finding("error", role, f"there is no column {column!r} in obs to be the {role}",
                       f"The columns are: {listed}.")
    sizes, _ = columns[column]
    missing = n_cells - int(sizes.sum())
    if len(sizes) < 2 or len(sizes) > n_cells / 2:
        return Finding(
            "error", role, f"column {column!r} has {len(sizes):,} values for {n_cells:,} cells",
            f"A {role} needs at least two values, each in several cells.",
        )
    if missing or sizes.iloc[-1] < 5:
        return Finding(
            "hint", role, f"in column {column!r}, {missing:,} cells have no value and the rarest "
            f"of {len(sizes)} values has {sizes.iloc[-1]:,} cells", "Scores leave out the former.",
        )
    return Finding("ok", role, f"column {column!r} has {len(sizes)} values")


def _sizes(values: pd.Series) -> tuple[pd.Series, str]:
    """Count the cells of each value of a column, most first, and give the kind of its numbers."""
    kind = "f" if pd.api.types.is_float_dtype(values) else values.dtype.kind
    try:
        sizes = values.value_counts()
    except TypeError:  # lists and the like
        return pd.Series(dtype=int), kind
    filled = sizes.index.astype(str).str.strip() != ""
    return sizes[(sizes > 0) & filled], kind


def _usable_columns(table: Table, columns: dict) -> tuple[dict[str, int], dict[str, int]]:
    """Find the columns that may be labels and those that may be batches, likeliest first."""
    usable: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for column in sorted(columns, key=lambda name: not _LABEL_WORDS.search(name)):
        is_batch = bool(_BATCH_WORDS.search(column))
        sizes, kind = columns[column]
        if kind == "f" or not (is_batch or kind not in "iu"):
            continue
        if 2 <= len(sizes) <= min(200, len(table.obs_names) / 3):
            usable[is_batch][counts.plain(column)] = len(sizes)
    return usable
