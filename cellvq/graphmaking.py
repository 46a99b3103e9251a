"""From encoded cells to their knowledge graph: every table made, every table joined.

Statistics of codes come from tallies, which are read shard by shard, so that cells may be many.
What needs the cells themselves (signals, gene sets, what drives a code) is asked of a
sample, and the edges say of how many cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cellvq import InputError, conditions, genesets, graphbuild, signalchanges, signals, tallies
from cellvq.graph import Graph
from cellvq.graphbuild import Evidence
from cellvq.graphpriors import Priors
from cellvq.knowledge import Knowledge, why_foreign
from cellvq.markers import marker_table, with_code
from cellvq.tallies import Tally
from cellvq.tallylabels import border_table, label_table
from cellvq.tallymarkers import marker_table as tally_markers
from cellvq.tallymarkers import sides

if TYPE_CHECKING:
    from anndata import AnnData

SAMPLE = 20_000
"""Cells that are looked at themselves, drawn at random from all, at the most."""
NAMED = 3
"""Marker genes that the detail of a code names."""


@dataclass(frozen=True)
class Columns:
    """What the columns of ``obs`` hold."""

    labels: tuple[str, ...] = ()
    """Annotations, such as ``cell_type`` and ``tissue``."""
    donor: str | None = None
    condition: str | None = None
    reference: str | None = None
    """Value of the condition that the others are compared with, or None to find it by its name."""


def make(
    cells: AnnData | str | Path | Sequence[str | Path],
    columns: Columns | None = None,
    *,
    knowledge: Knowledge | None = None,
    drivers: Callable[[AnnData], pd.DataFrame] | None = None,
    regulation: Callable[[AnnData], pd.DataFrame] | None = None,
    stability: pd.DataFrame | None = None,
    resource: str | None = None,
    fdr: float = 0.05,
    seed: int = 0,
    say: Callable[[str], object] = lambda step: None,
) -> Graph:
    """Make the knowledge graph of encoded cells.

    Args:
        cells: encoded cells with raw counts, or encoded ``.h5ad`` files, which are read in parts.
        columns: columns of ``obs`` to use.
        knowledge: :func:`cellvq.knowledge.available`; None: no priors and no gene sets.
        drivers: finds the genes that drive each code; gets a sample of the cells and gives the
            table of `graphbuild.Evidence.drivers`. None: not looked at.
        regulation: finds links between genes, likewise.
        stability: :func:`cellvq.stability.code_stability`; shown with each code.
        resource: liana's list of ligands and receptors; None: that of human or of mouse, as the
            names of the genes look.
        fdr: largest false discovery rate of a finding.
        seed: seed of the sample and of all nulls.
        say: is told what is being done.

    Raises:
        InputError: the cells are not encoded, or a column is absent.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> cells = simulate_cells(cells=300, seed=1)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> cells.obsm["X_cellvq"] = cells.obsm["program_activity"]
        >>> graph = make(cells, Columns(labels=("lineage",)))
        >>> {"code-marks-gene", "code-is-annotation"} <= set(graph.edges["kind"])
        True
    """
    columns = columns or Columns()
    if not 0 < fdr < 1:
        raise InputError(f"fdr is {fdr}; use a number between 0 and 1, such as 0.05")
    say("counting")
    made, sample, shared = _read(cells, columns, seed)
    notes = _notes(made, columns)
    say("markers and labels")
    markers = tally_markers(made)
    codes = _codes(made, markers, stability)
    borders = border_table(made, shared)
    labels = label_table(made)
    if labels.attrs["left_out"]:
        notes.append(f"{', '.join(labels.attrs['left_out'])}: the same for all cells of a donor, "
                     "so it is no label of cells; name it as the condition")
    abundance, changes = _conditions(made, columns, notes)
    say("signals")
    talk = signals.communication(sample, donor=columns.donor, resource=resource, seed=seed,
                                 consensus=False)  # ranks are no evidence that an edge holds
    if "note" in talk.attrs:
        notes.append(f"code-talks-to-code: {talk.attrs['note']}")
    talk_changes = _talk_changes(sample, made, columns, resource, seed)
    say("gene sets and regulation")
    foreign = "no tables are given" if knowledge is None else why_foreign(sample.var_names)
    sets, priors = None, Priors()
    if foreign:
        notes.append(f"priors and gene sets left out: {foreign}")
    else:
        notes += knowledge.missing
        priors = Priors(knowledge.regulons, knowledge.gene_sets, knowledge.ontology)
        sets = _sets(sample, knowledge.gene_sets, seed)
    links = _ask(regulation, sample)
    if links is not None and "note" in links.attrs:
        notes.append(f"tf-regulates-gene: {links.attrs['note']}")
    found = Evidence(
        codes, markers, labels, borders, talk, sets,
        drivers=_ask(drivers, sample), regulation=links,
        abundance=abundance, changes=changes, signal_changes=talk_changes, notes=tuple(notes))
    say("joining")
    return graphbuild.build(found, priors, fdr=fdr)


def _read(cells, columns: Columns, seed: int) -> tuple[Tally, AnnData, pd.DataFrame]:
    """Tally all shards, draw a sample of their cells, and count borders in a second pass."""
    import anndata

    options = {"donor": columns.donor, "condition": columns.condition, "labels": columns.labels}
    rng = np.random.default_rng(seed)
    if isinstance(cells, anndata.AnnData):
        coded, _ = with_code(cells)
        made = tallies.tally(coded, **options)
        kept = np.arange(coded.n_obs)
        if coded.n_obs > SAMPLE:
            kept = np.sort(rng.choice(coded.n_obs, SAMPLE, replace=False))
        sample = coded if len(kept) == coded.n_obs else coded[kept].copy()
        return made, sample, tallies.borders(coded, made)
    paths = [cells] if isinstance(cells, str | Path) else list(cells)
    drawn = []

    def counted(shard: AnnData) -> Tally:
        nonlocal drawn
        keys = rng.random(shard.n_obs)  # the cells with the smallest keys of all are the sample
        near = np.argsort(keys)[:SAMPLE]
        drawn.append((keys[near], shard[near].copy()))
        drawn = [_smallest(drawn)] if len(drawn) > 1 else drawn
        return tallies.tally(shard, **options)

    made = tallies.merge(map(counted, _shards(paths)))
    shared = pd.concat([tallies.borders_file(path, made) for path in paths])
    return made, drawn[0][1], shared


def _shards(paths: Iterable[str | Path]) -> Iterator[AnnData]:
    for path in paths:
        yield from tallies.shards(path)


def _smallest(drawn: list) -> tuple[np.ndarray, AnnData]:
    """Join two samples and keep the cells with the smallest keys."""
    import anndata

    keys = np.concatenate([part[0] for part in drawn])
    joined = anndata.concat([part[1] for part in drawn], merge="same", uns_merge="first")
    joined.obs_names_make_unique()
    kept = np.argsort(keys)[:SAMPLE]
    return keys[kept], joined[kept].copy()


def _notes(made: Tally, columns: Columns) -> list[str]:
    notes = []
    for what, named in (("annotations", columns.labels), ("donors", columns.donor),
                        ("conditions", columns.condition)):
        if not named:
            notes.append(f"{what}: no column of obs is named")
    if made.groups["code"].nunique() == 1:
        notes.append("all cells have one code, so nothing sets codes apart")
    if columns.donor and (unknown := made.groups["donor"] == "").any():
        notes.append(f"{int(made.groups.loc[unknown, 'cells'].sum()):,} of {made.cells:,} cells "
                     f"have no value in obs[{columns.donor!r}]; tests over donors leave them out")
    return notes


def _codes(made: Tally, markers: pd.DataFrame, stability: pd.DataFrame | None) -> pd.DataFrame:
    """Codes and parents with a line for people."""
    codes = sides(made).codes
    best = markers[(markers["log2_fold_change"] > 0) & (markers["fdr"] < 0.05)]
    best = best.sort_values("p").groupby("code").head(NAMED)
    words = best.groupby("code")["gene"].agg(", ".join)
    detail = codes["code"].map(words).fillna("")
    if stability is not None:
        said = codes["code"].map(stability.set_index("code")["stable"]).fillna("")
        detail = (detail + "; " + said).str.strip("; ")
    return codes.assign(detail=detail)


def _conditions(
    made: Tally, columns: Columns, notes: list[str]
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Codes and genes that change, of all contrasts with the reference."""
    if not columns.condition:
        return None, None
    pairs = conditions.contrasts(made, columns.reference)
    if not pairs:
        notes.append(f"conditions: obs[{columns.condition!r}] has a single value")
        return None, None
    found = []
    for ask in (conditions.abundance, conditions.gene_changes):
        tables = [ask(made, *pair) for pair in pairs]
        reasons = [table.attrs["reason"] for table in tables if "reason" in table.attrs]
        table = pd.concat([part for part in tables if len(part)] or tables[:1], ignore_index=True)
        table.attrs = {"reason": "; ".join(reasons)} if table.empty else {}
        found.append(table)
    return found[0].assign(column=columns.condition), found[1]


def _talk_changes(
    sample: AnnData, made: Tally, columns: Columns, resource: str | None, seed: int
) -> pd.DataFrame | None:
    """Signals that differ between conditions, where donors can tell."""
    pairs = conditions.contrasts(made, columns.reference) if columns.condition else []
    if not pairs or not columns.donor:
        return None
    table = signalchanges.signal_changes(
        sample, columns.condition, pairs[0][1], donor=columns.donor, resource=resource, seed=seed)
    found = table[table["n_donors"] > 0].reset_index(drop=True)
    found.attrs = table.attrs if table.empty else {"reason": "too few donors in any pair of codes"}
    return found


def _sets(sample: AnnData, known: pd.DataFrame, seed: int) -> pd.DataFrame | None:
    """Gene sets of each code and parent, held to random codes."""
    if known.empty:
        return None
    markers = marker_table(sample, levels="all")
    if markers.empty:
        return None
    try:
        table = genesets.enrich(markers, known, null=genesets.random_codes(sample, seed=seed))
    except InputError:  # not one gene of the sets is measured
        return None
    sizes = markers.drop_duplicates("code").set_index("code")["code_cells"]
    return table.assign(code_cells=table["code"].map(sizes))


def _ask(find: Callable[[AnnData], pd.DataFrame] | None, sample: AnnData) -> pd.DataFrame | None:
    return None if find is None else find(sample)

