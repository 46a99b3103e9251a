"""What the cells of a code are called and which codes border on each other, from tallies alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from cellvq import evaluate
from cellvq.markers import cut
from cellvq.tallies import Tally
from cellvq.tallymarkers import LEAST_CELLS

LABEL_COLUMNS = {
    "code": str, "column": str, "label": str, "cells": int, "code_cells": int, "label_cells": int,
    "fraction": float, "log2_enrichment": float, "p": float, "fdr": float, "n_donors": int,
    "stability": float,
}


def label_table(made: Tally) -> pd.DataFrame:
    """Test which annotations the cells of a code carry more often than chance would give.

    One-sided hypergeometric test over cells, for codes and parents. A label that is the same for
    all cells of a donor, such as a disease, would make one donor look like many cells: it is left
    out here and belongs to :func:`cellvq.conditions.abundance`.

    Returns:
        One row a code and label with the columns ``LABEL_COLUMNS``: ``cells`` (with both),
        ``fraction`` (of the code's labelled cells), ``log2_enrichment`` (half a cell added to
        observed and expected), ``n_donors`` (donors with such cells), ``stability`` (share of the
        donors with at least ten labelled cells of the code in which the label is more common than
        in the donor's other cells). ``attrs["left_out"]`` names the columns of donors.

    Example:
        >>> from cellvq import simulate, tallies
        >>> cells = simulate.simulate_cells(cells=200, cell_types=2)
        >>> cells.obs["cellvq_code"] = cells.obs["cell_type"]  # as a perfect model would have it
        >>> table = label_table(tallies.tally(cells, donor="donor", labels=["lineage", "batch"]))
        >>> table["column"].unique().tolist(), table.attrs["left_out"]
        (['lineage'], ['batch'])
    """
    labels = made.labels[made.labels["value"] != ""]
    left_out = donor_columns(made)
    labels = labels[~labels["column"].isin(left_out)]
    parts = [labels]
    depth = int(labels["code"].str.count(r"\.").max()) if len(labels) else 0
    for level in range(1, depth + 1):
        parent = labels.assign(code=cut(labels["code"], level))
        parts.append(parent[parent["code"] != labels["code"]])
    keys = ["column", "value", "code", "donor"]
    whole = labels.groupby(["column", "value", "donor"], as_index=False)["cells"].sum()
    counted = pd.concat(parts).groupby(keys, as_index=False)["cells"].sum()
    table = pd.concat([_labelled(counted[counted["column"] == column],
                                 whole[whole["column"] == column])
                       for column in labels["column"].unique()] or [pd.DataFrame()])
    if table.empty:
        table = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in LABEL_COLUMNS.items()})
    else:
        table["fdr"] = evaluate.false_discovery_rate(table["p"])
        table = table.sort_values(["p", "code", "label"], ignore_index=True)[list(LABEL_COLUMNS)]
    table.attrs["left_out"] = left_out
    return table


def border_table(made: Tally, shared: pd.DataFrame) -> pd.DataFrame:
    """Test which codes border on each other: many cells of one have the other as second choice.

    Under the null second choices are drawn by how common they are, so a code in the middle of
    everything is not everybody's neighbour. Their sum over both directions is nearly Poisson, and
    less varied than that, so p errs on the safe side.

    Args:
        made: tally of all cells.
        shared: :func:`cellvq.tallies.borders` of all shards, one below the other.

    Returns:
        One row a pair of codes with such cells, each pair once: ``code``, ``neighbour`` (str),
        ``shared`` (int, cells of either), ``expected``, ``log2_enrichment``, ``n_cells`` (int, of
        both), ``p`` (one-sided), ``fdr`` (over all pairs of codes).
    """
    names = made.places.index
    columns = ["code", "neighbour", "shared", "expected", "log2_enrichment", "n_cells", "p", "fdr"]
    if shared.empty:
        return pd.DataFrame(columns=columns)
    size = made.groups.groupby("code")["cells"].sum().reindex(names).to_numpy()
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (names.get_indexer(shared["code"]),
                       names.get_indexer(shared["neighbour"])), shared["shared"])
    chance = np.tile(counts.sum(axis=0), (len(names), 1)) * (1 - np.eye(len(names)))
    chance /= np.maximum(chance.sum(axis=1, keepdims=True), 1e-12)
    expected = size[:, None] * chance
    first, second = np.triu_indices(len(names), 1)
    observed, expected = ((part + part.T)[first, second] for part in (counts, expected))
    table = pd.DataFrame({
        "code": names[first], "neighbour": names[second], "shared": observed.astype(int),
        "expected": expected, "log2_enrichment": np.log2((observed + 0.5) / (expected + 0.5)),
        "n_cells": size[first] + size[second], "p": stats.poisson.sf(observed - 1, expected)})
    table["fdr"] = evaluate.false_discovery_rate(table["p"])
    table = table[table["shared"] > 0].sort_values(["p", "code", "neighbour"], ignore_index=True)
    return table[columns]


def donor_columns(made: Tally) -> list[str]:
    """Name the label columns whose value is the same for all cells of every donor."""
    known = made.labels[(made.labels["donor"] != "") & (made.labels["value"] != "")]
    values = known.groupby(["column", "donor"])["value"].nunique()
    constant = values.groupby(level="column").max() == 1
    several = known.groupby("column")["donor"].nunique() > 1
    varied = known.groupby("column")["value"].nunique() > 1
    return sorted(constant.index[constant & several & varied])


def _labelled(counted: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    """Enrichment of the labels of one column from counts of cells."""
    table = counted.groupby(["column", "code", "value"], as_index=False)["cells"].sum()
    table["code_cells"] = table.groupby("code")["cells"].transform("sum")
    of_label = whole.groupby("value")["cells"].sum()
    total = int(of_label.sum())
    table["label_cells"] = table["value"].map(of_label)
    table["fraction"] = table["cells"] / table["code_cells"]
    expected = table["code_cells"] * table["label_cells"] / total
    table["log2_enrichment"] = np.log2((table["cells"] + 0.5) / (expected + 0.5))
    table["p"] = stats.hypergeom.sf(table["cells"] - 1, total, table["label_cells"],
                                    table["code_cells"])
    donors = counted[counted["donor"] != ""].copy()
    donors["in_code"] = donors.groupby(["code", "donor"])["cells"].transform("sum")
    everywhere = whole.set_index(["value", "donor"])["cells"]
    all_cells = whole.groupby("donor")["cells"].sum()
    keys = pd.MultiIndex.from_frame(donors[["value", "donor"]])
    share = (everywhere.reindex(keys).to_numpy() - donors["cells"]) / np.maximum(
        donors["donor"].map(all_cells) - donors["in_code"], 1)
    donors["more"] = donors["cells"] / donors["in_code"] > share
    keys = ["code", "value"]
    table = table.join(donors.groupby(keys)["donor"].nunique().rename("n_donors"), on=keys)
    enough = counted[counted["donor"] != ""].groupby(["code", "donor"])["cells"].sum()
    enough = enough[enough >= LEAST_CELLS].reset_index()
    held = donors.merge(enough[["code", "donor"]])
    votes = held.groupby(keys)["more"].sum().rename("votes")
    table = table.join(votes, on=keys).join(
        enough.groupby("code").size().rename("asked"), on="code")
    table["stability"] = table["votes"].fillna(0).where(table["asked"].notna()) / table["asked"]
    return table.rename(columns={"value": "label"}).fillna({"n_donors": 0})
