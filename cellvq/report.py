"""What ``cellvq.check`` answers: findings, and a report that reads as text or as plain values."""

import dataclasses
import textwrap
from dataclasses import dataclass

from cellvq import InputError

LEVELS = ("error", "warning", "hint", "ok")


@dataclass(frozen=True)
class Finding:
    """One thing that ``check`` found."""

    level: str  # ok, hint, warning or error
    subject: str
    message: str
    remedy: str = ""

    @staticmethod
    def of_error(subject: str, error: InputError, name: str = "") -> "Finding":
        """Make a finding of a mistake in the input, whose line has a message and a remedy."""
        message, _, remedy = str(error).removeprefix(f"{name}: ").partition("; ")
        return Finding("error", subject, message, sentence(remedy))


@dataclass(frozen=True)
class Report:
    """What ``check`` found in a count matrix; ``str(report)`` reads as text.

    What stands after ``counts_in`` is None where there are no raw counts, or nothing to count.
    """

    name: str
    n_cells: int
    n_genes: int
    identifiers: str  # symbols, Ensembl, Ensembl with versions, or numbers
    species: str | None
    duplicated_genes: int  # names that stand more than once
    duplicated_cells: int
    label_columns: dict[str, int]  # usable columns of obs, and how many values each has
    batch_columns: dict[str, int]
    counts_in: str | None = None  # where the raw counts are
    depth_median: float | None = None  # UMI counts per cell, over all measured genes
    genes_per_cell_median: float | None = None
    sparsity: float | None = None  # fraction of values that are zero
    empty_cells: int | None = None
    empty_genes: int | None = None
    identical_cells: int | None = None  # with the counts of a cell before them, gene by gene
    mitochondrial_median: float | None = None  # share of a cell's counts
    crowded_cells: float | None = None  # share of cells that may be doublets
    panel_genes: int | None = None  # genes of the model, None where no model was given
    panel_matched: int | None = None
    panel_matched_by_table: int | None = None  # with the gene table, where it is here
    gene_names: dict[str, int] | None = None  # matched, renamed, merged and dropped names
    encode_seconds: float | None = None  # rough estimates for the preset tiny, like the next three
    encode_memory_gb: float | None = None
    pretrain_seconds: float | None = None
    pretrain_memory_gb: float | None = None
    cores: int | None = None  # of this machine
    free_memory_gb: float | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the cells can be used, as no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The one thing to know."""
        return "ready for CellVQ" if self.ok else "not usable as it is"

    def to_dict(self) -> dict:
        """Give the report as plain values, for JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def facts(self) -> dict[str, str]:
        """Give what is so, without judgement, as a short text for each subject."""
        facts = {
            "raw counts": f"found in {self.counts_in}" if self.counts_in else "not found",
            "gene names": f"{self.identifiers}, {self.species or 'species not recognised'}",
            "label columns": _in_words(self.label_columns),
            "batch columns": _in_words(self.batch_columns),
        }
        if self.gene_names:
            n = self.gene_names
            facts["gene names"] += (
                f"; by the gene table {n['matched']:,} names match as they stand, {n['renamed']:,} "
                f"under another name, {n['merged']:,} are merged, {n['dropped']:,} match nothing"
            )
        if self.panel_matched is not None:
            facts["model's genes"] = f"{self.panel_matched:,} of {self.panel_genes:,} are here"
            if (self.panel_matched_by_table or 0) > self.panel_matched:
                facts["model's genes"] += f", {self.panel_matched_by_table:,} with the gene table"
        if self.counts_in:
            facts["a typical cell"] = (
                f"{self.depth_median:,.0f} UMI counts, {self.genes_per_cell_median:,.0f} genes "
                f"expressed (medians); {self.sparsity:.0%} of the values are zero"
            )
            if self.mitochondrial_median:
                facts["a typical cell"] += f"; {self.mitochondrial_median:.1%} mitochondrial"
            facts["to encode"] = _needs(self.encode_seconds, self.encode_memory_gb)
            facts["to pretrain"] = _needs(self.pretrain_seconds, self.pretrain_memory_gb)
            free = self.free_memory_gb
            facts["this machine"] = (
                f"{self.cores} core{'s' if self.cores > 1 else ''}"
                + ("" if free is None else f", {free:.1f} GB of memory free")
                + "; both are rough estimates for the preset tiny on it"
            )
        return facts

    def __str__(self) -> str:
        rows = [(f"  {key:<15}", text) for key, text in self.facts().items()]
        rows += [
            (f"\n  {f.level}: ", f"{sentence(f.message)} {f.remedy}")
            for f in self.findings if f.level != "ok"
        ]
        head = f"{self.name}: {self.n_cells:,} cells x {self.n_genes:,} genes, {self.verdict}.\n"
        return "\n".join([head] + [
            textwrap.fill(text, 96, initial_indent=start, subsequent_indent=" " * 17)
            for start, text in rows
        ])


def sentence(text: str) -> str:
    """Make a clause a sentence.

    Example:
        >>> sentence("half of the cells are empty")
        'Half of the cells are empty.'
    """
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _in_words(columns: dict[str, int]) -> str:
    """List columns with their number of values."""
    listed = [f"{name} ({n} values)" for name, n in columns.items()]
    more = f", and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more or "none found"


def _needs(seconds: float, memory: float) -> str:
    """Say time and memory as roughly as they are known."""
    units = ((5400, 3600, "h"), (90, 60, "min"), (0, 1, "s"))
    _, unit, word = next(each for each in units if seconds >= each[0])
    return f"about {seconds / unit:,.0f} {word} and {memory:.1f} GB of memory"
