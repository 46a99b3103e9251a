"""A dictionary on disk: Parquet, CSV, a README that explains every column, and a page of cards.

Parquet files hold everything as it is. CSV files are for spreadsheets: of the long tables they hold
the best lines only, and text that a spreadsheet would take for a formula is led by an apostrophe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cellvq import folders
from cellvq.markers import top_markers
from cellvq.tablefiles import for_spreadsheets

BEST = 50
"""Lines a code in each direction that the CSV of a long table holds."""
FDR = 0.05
TABLES = ("codes", "markers", "gene_sets", "names", "decoded")
FILES = {"README.md", "index.html", *(f"{name}.parquet" for name in TABLES),
         *(f"{name}.csv" for name in TABLES if name != "decoded")}
"""All files of a dictionary."""
ABOUT = {
    "codes": ("One row a code and a parent, in the order of the tree.", {
        "address": "the code, or a parent of codes; C3.05 is a part of C3",
        "parent": "the next coarser address; empty for the coarsest",
        "level": "depth of the address, 0 is the coarsest",
        "is_code": "true for codes of full depth, false for parents",
        "cells": "cells with this address",
        "fraction": "of all cells with a code",
        "donors": "donors with a cell here; 0 where none is known",
        "donor_perplexity": "effective number of donors: exponential of their entropy",
        "donor_perplexity_null": "the same for random cells, mean over shuffles",
        "batch_perplexity": "effective number of batches",
        "batch_perplexity_null": "the same for random cells, mean over shuffles",
        "confidence": "mean over cells: 0 halfway between two codes, 1 on the code",
        "stability": "largest Jaccard index with any code of another run, mean over runs",
        "stability_null": "the same with cells shuffled",
        "stable": "stable, unstable or not measured",
        "tested": "large enough for tests of markers",
        "markers": "best genes that are higher here, below an FDR of 0.05 and above null_score",
        "markers_down": "the same of genes that are lower here",
        "gene_sets": "best gene sets that are higher here, below an FDR of 0.05",
        "regulons": "the same of transcription factors, by the genes that they regulate",
        "nearest": "the closest address of the same level",
        "nearest_distance": "Euclidean, between code vectors",
        "name": "cell type that the markers suggest; unknown where evidence is thin",
        "name_id": "its identifier in the Cell Ontology",
        "name_evidence": "the genes that speak for the name, and those that are missing",
        "label": "most common label of the cells; it had no part in the name",
        "label_share": "of the labelled cells here",
        "label_share_null": "the same for random cells, mean over draws",
    }),
    "markers": ("One row an address and a gene, best marker first; rank-sum test of cells inside "
                "against all others.", {
        "code": "the address",
        "gene": "name of the gene",
        "rank": "1 is the best",
        "log2_fold_change": "between the exponentials of the mean log1p of counts per 10,000",
        "auroc": "chance that a cell inside has more of the gene than one outside",
        "score": "z of the rank sum, corrected for ties; negative where the gene is lower inside",
        "p": "two-sided; cells count as independent, so it ranks and does not prove",
        "fdr": "Benjamini-Hochberg over all genes and addresses of a level",
        "fraction_in": "share of cells inside with the gene",
        "fraction_out": "share of cells outside with the gene",
        "code_cells": "cells inside",
        "level": "depth of the address, 0 is the coarsest",
        "null_score": "what the largest absolute score of any gene stays below in 95 % of random "
                      "codes of this size",
        "donors": "donors with at least ten cells inside and ten outside",
        "donor_log2_fold_change": "of counts summed within donors, mean over donors",
        "donor_p": "moderated t test over donors: the only test here whose n is donors",
        "donor_fdr": "Benjamini-Hochberg over all genes and addresses of a level",
    }),
    "gene_sets": ("One row an address and a gene set or regulon, best first.", {
        "code": "the address",
        "level": "depth of the address, 0 is the coarsest",
        "collection": "where the set is from; regulons are targets of transcription factors",
        "name": "gene set or transcription factor",
        "effect": "mean score of its genes above that of the other genes",
        "score": "t of the univariate linear model; negative where the set is lower inside",
        "p": "two-sided, the larger of p_genes and p_codes",
        "fdr": "Benjamini-Hochberg over the sets of a collection and the addresses of a level",
        "null_score": "what the absolute score stays below in 95 % of the null",
        "p_genes": "against random genes of like expression",
        "p_codes": "against random codes",
        "genes": "genes of the set that were measured",
        "top_genes": "genes that drive the score, best first",
    }),
    "names": ("One row an address: the cell type that its markers suggest.", {
        "code": "the address",
        "level": "depth of the address, 0 is the coarsest",
        "name": "cell type; unknown where evidence is thin",
        "name_id": "its identifier in the Cell Ontology",
        "score": "how well the markers of the type fit",
        "margin": "by how much it exceeds the second best type",
        "null_score": "what the score stays below in 95 % of the null",
        "p": "under the null",
        "evidence": "the genes that speak for the name, and those that are missing",
        "second": "the second best type",
    }),
    "decoded": ("Expression that the model decodes from each address: log1p of mean counts of a "
                "cell of 10,000 UMI, [addresses, genes].", {}),
}
"""What each table and each of its columns is."""


def write_folder(
    tables: Mapping[str, pd.DataFrame],
    folder: str | Path,
    *,
    summary: str,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write the tables of a dictionary as a folder, which appears whole or not at all.

    Args:
        tables: the five tables by name, as in :class:`cellvq.dictionary.Dictionary`.
        folder: the folder; its parents are made where they are missing.
        summary: a sentence on all of it.
        notes: what was left out and why.
        overwrite: replace a dictionary that is there.

    Returns:
        The folder.

    Raises:
        InputError: there is something in the folder already, or it cannot be written.
    """
    check_free(folder, overwrite)
    name = Path(folder).expanduser().name
    return folders.write_whole(folder, lambda new: _fill(new, tables, name, summary, notes))


def _fill(folder: Path, tables: Mapping[str, pd.DataFrame], title: str, summary: str,
          notes: Sequence[str]) -> None:
    from cellvq import cards

    markers, sets = tables["markers"], tables["gene_sets"]
    found = sets[sets["fdr"] < FDR]
    short = {
        "codes": tables["codes"], "names": tables["names"],
        "markers": pd.concat([top_markers(markers, BEST, FDR),
                              top_markers(markers, BEST, FDR, down=True)]).sort_values(
                                  ["level", "code", "rank"], ignore_index=True),
        "gene_sets": found.groupby(["code", "collection", found["score"] > 0]).head(BEST),
    }
    for name in TABLES:
        tables[name].to_parquet(folder / f"{name}.parquet", index=name == "decoded")
    for name, table in short.items():
        for_spreadsheets(table).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    (folder / "README.md").write_text(_readme(tables, title, summary, notes), encoding="utf-8")
    page = cards.page(tables["codes"], short["markers"], short["gene_sets"], title=title,
                      notes=list(notes))
    (folder / "index.html").write_text(page, encoding="utf-8")


def _readme(tables: Mapping[str, pd.DataFrame], title: str, summary: str,
            notes: Sequence[str]) -> str:
    lines = [
        f"# {title}: a dictionary of cell codes", "", f"{summary}.", "",
        "Open `index.html` to search the codes. Codes were learnt from the same counts that are "
        "tested here, so p-values rank and do not prove.", "",
        f"Parquet files hold everything. `markers.csv` and `gene_sets.csv` hold the lines below an "
        f"FDR of {FDR}, at most {BEST} an address in each direction. In CSV files, text that a "
        "spreadsheet would run as a formula is led by an apostrophe.", "",
    ]
    if notes:
        lines += ["## What was left out", "", *(f"- {_one_line(note)}" for note in notes), ""]
    for name in TABLES:
        about, columns = ABOUT[name]
        lines += [f"## {name}", "", f"{about} {len(tables[name]):,} rows.", ""]
        here = [column for column in tables[name].columns if column in columns]
        if here:
            lines += ["| column | what it is |", "| --- | --- |",
                      *(f"| `{column}` | {columns[column]} |" for column in here), ""]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """Text from data in a list of Markdown: no line of its own, and no HTML."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def check_free(folder: str | Path, overwrite: bool) -> None:
    """Refuse a place that holds something else than a dictionary that may be replaced."""
    folders.check_free(folder, "a dictionary", {"codes.parquet", "markers.parquet"}, FILES,
                       overwrite)
