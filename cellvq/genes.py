"""Gene names and gene panels: which gene of a panel does each name of a file mean?

Exact names need no table. With the table of approved human symbols, older symbols, aliases and
Ensembl identifiers find their gene too, and with a table of orthologs those of mouse; such tables
are in the registry (``cellvq.registry.table``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd

from cellvq import InputError
from cellvq.counts import ENSEMBL, NAME_COLUMNS, without_versions
from cellvq.counts import align as align  # offered here too, with the other questions about genes
from cellvq.counts import find_counts as find_counts
from cellvq.counts import sequencing_depth as sequencing_depth
from cellvq.counts import some as some
from cellvq.reading import GENOME, LANDMARKS

SPECIES = {
    "": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish", "MMU": "macaque", "SSC": "pig",
    "GAL": "chicken", "BTA": "cow", "CAF": "dog",
}
"""Species by the letters of its Ensembl identifiers."""
OUTCOMES = ("matched", "renamed", "merged", "dropped")


def describe_names(names: Sequence[str]) -> tuple[str, str | None]:
    """Say which kind of gene names these are and which species they look like, or None.

    Example:
        >>> describe_names(["Actb", "Gapdh", "Cd74"])
        ('symbols', 'mouse')
        >>> describe_names(["ENSG00000075624.17", "ENSG00000111640.15"])
        ('Ensembl with versions', 'human')
        >>> describe_names(["GRCh38_ACTB", "GRCh38_CD74", "mm10___Actb", "mm10___Cd74"])
        ('symbols', 'human and mouse')
    """
    names = pd.Index(names).astype(str).str.replace(GENOME, "", regex=True)
    parts = names.str.extract(ENSEMBL).dropna(subset=[0])
    if len(parts) > len(names) / 2:
        found = parts[1].fillna("").map(SPECIES).value_counts(normalize=True)
        common = sorted(found.index[found > 0.1]) if len(found) else []
        kind = "Ensembl with versions" if parts[2].notna().any() else "Ensembl"
        return kind, " and ".join(common) or None
    if names.str.fullmatch(r"\d+").sum() > len(names) / 2:
        return "numbers", None
    human = names.isin(LANDMARKS).sum() + names.str.startswith("MT-").sum()
    mouse = names.isin([g.title() for g in LANDMARKS]).sum() + names.str.startswith("mt-").sum()
    if min(human, mouse) > 0.2 * max(human, mouse):
        return "symbols", "human and mouse" if min(human, mouse) > 1 else None
    return "symbols", "human" if human > mouse else "mouse" if mouse > human else None


def match(
    names: Sequence[str],
    panel: Sequence[str],
    table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Find the gene of a panel that each name means.

    A panel gene goes to the names that say it most directly: as it stands in the panel, then by
    Ensembl identifier, previous symbol, alias and ortholog, in this order. So a name that is only
    an alias never takes part in a gene whose symbol is there, nor does it rename an approved
    symbol. A former name of two approved symbols is ambiguous and is not mapped.

    Args:
        names: gene names of the cells [genes]: symbols, or Ensembl identifiers with or without
            versions, with or without a genome before them, as in ``GRCh38_ACTB``.
        panel: gene names wanted, symbols or Ensembl identifiers.
        table: approved symbols, ``cellvq.registry.table("hgnc")``; None: only exact names match.
        orthologs: one-to-one orthologs, ``cellvq.registry.table("mouse_orthologs")``; None: genes
            of another species do not match.

    Returns:
        One row a name, in the order given: ``name``; ``gene`` of the panel, empty if there is none;
        ``how`` (symbol, Ensembl, version removed, prefix removed, previous symbol, alias, ortholog;
        or ambiguous, outranked, none); ``outcome``: matched under its own name, renamed, merged
        (several names mean the gene, and their counts are summed) or dropped.

    Example:
        >>> table = pd.DataFrame({"symbol": ["MARCHF1"], "prev_symbol": ["MARCH1"],
        ...                       "alias_symbol": ["RNF171"], "ensembl_gene_id": [""]})
        >>> match(["ACTB", "MARCH1", "XYZ"], ["ACTB", "MARCHF1"], table)["outcome"].tolist()
        ['matched', 'renamed', 'dropped']
    """
    return _match(names, panel, _Lookup.of(table), orthologs)


def _match(names, panel, lookup, orthologs) -> pd.DataFrame:
    """Do what :func:`match` says with a table that is ready to look things up in."""
    given = pd.Index(names).astype(str)
    plain = given.str.replace(GENOME, "", regex=True)
    wanted = pd.Index(panel).astype(str).unique()
    found = pd.DataFrame({"name": given, "gene": "", "how": "none", "rank": len(_RANKS)})
    identifiers = given.str.fullmatch(ENSEMBL)
    _fill(found, given, pd.Series(wanted, wanted), np.where(identifiers, "Ensembl", "symbol"))
    _fill(found, plain, pd.Series(wanted, wanted), "prefix removed")
    bare = without_versions(plain)
    same = np.where(bare == plain, "Ensembl", "version removed")
    _fill(found, bare, _unique(pd.Series(wanted, without_versions(wanted))), same)
    by_symbol = pd.Series(wanted, wanted)
    if lookup is not None:
        symbols, how = lookup.approved(bare)
        of_panel, how_panel = lookup.approved(without_versions(wanted))
        by_symbol = pd.DataFrame({"gene": wanted, "how": how_panel}, index=of_panel)
        by_symbol = by_symbol[by_symbol.index != ""]
        by_symbol = by_symbol.sort_values("how", key=lambda how: how.map(_RANKS), kind="stable")
        by_symbol = by_symbol[~by_symbol.index.duplicated()]
        # An approved symbol may meet the panel's older name of the same gene.
        meets = symbols.map(by_symbol["how"]).fillna("")
        _fill(found, symbols, by_symbol["gene"],
              np.where((how == "symbol") & (meets != "symbol") & (meets != ""), meets, how))
        found.loc[(found["how"] == "none") & (how == "ambiguous"), "how"] = "ambiguous"
        by_symbol = by_symbol["gene"]
    if orthologs is not None:
        _fill(found, bare.map(_counterparts(orthologs)), by_symbol, "ortholog")
    best = found[found["gene"] != ""].groupby("gene")["rank"].min()
    outranked = found["rank"] > found["gene"].map(best).fillna(len(_RANKS))
    found.loc[outranked, ["gene", "how"]] = "", "outranked"
    here = found["gene"] != ""
    several = here & found["gene"].duplicated(keep=False)
    found["outcome"] = np.select(
        [~here, several, found["gene"] == found["name"]], ["dropped", "merged", "matched"],
        "renamed",
    )
    return found[["name", "gene", "how", "outcome"]]


def rename(
    cells: anndata.AnnData,
    panel: Sequence[str] | None = None,
    table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> tuple[anndata.AnnData, pd.DataFrame]:
    """Give the genes of some cells the names of a panel, and drop those it does not know.

    Of the gene names and the usual columns of ``var``, the one that matches most genes is used.

    Args:
        cells: the cells; they stay as they are.
        panel: gene names wanted; None: all approved symbols of the table.
        table: see :func:`match`.
        orthologs: see :func:`match`.

    Returns:
        The cells, whose names may repeat where genes are merged (``align`` sums their counts), and
        what :func:`match` found.

    Raises:
        InputError: no gene is in the panel, or there is neither panel nor table.

    Example:
        >>> cells = anndata.AnnData(np.ones((2, 2), "float32"))
        >>> cells.var_names = ["GRCh38_ACTB", "mm10___Actb"]
        >>> rename(cells, ["CD74", "ACTB"])[0].var_names.tolist()
        ['ACTB']
    """
    if panel is None:
        if table is None:
            raise InputError("renaming genes needs a panel or a gene table; name one of them")
        panel = _alive(table)["symbol"]
    found = best_match(cells.var, panel, table, orthologs)
    here = (found["outcome"] != "dropped").to_numpy()
    if not here.any():
        raise InputError(
            f"no gene of the cells is in the panel: the cells have {some(cells.var_names)}, the "
            f"panel has {some(list(panel))}; use the same species, or its orthologs"
        )
    renamed = cells[:, here].copy()
    renamed.var["given_name"] = renamed.var_names.astype(str)
    renamed.var_names = pd.Index(found.loc[here, "gene"].to_numpy(), name=None)
    return renamed, found


def best_match(
    var: pd.DataFrame,
    panel: Sequence[str],
    table: pd.DataFrame | None = None,
    orthologs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Match a table of genes by its index or the usual column, whichever finds most of the panel.

    Example:
        >>> var = pd.DataFrame({"gene_ids": ["ENSG00000075624"]}, index=["ACTB"])
        >>> best_match(var, ["ENSG00000075624"])["name"].tolist()
        ['ENSG00000075624']
    """
    offered = [var.index, *(var[column] for column in NAME_COLUMNS if column in var)]
    lookup = _Lookup.of(table)
    found = [_match(names, panel, lookup, orthologs) for names in offered]
    return max(found, key=lambda each: each.loc[each["gene"] != "", "gene"].nunique())


# The more directly a name says its gene, the lower.
_RANKS = {how: rank for rank, names in enumerate((
    ("symbol", "prefix removed", "version removed"), ("Ensembl",), ("previous symbol",),
    ("alias",), ("ortholog",), ("ambiguous", "outranked", "none"),
)) for how in names}


def _fill(found: pd.DataFrame, keys: pd.Index, genes: pd.Series, how: np.ndarray | str) -> None:
    """Enter the genes of the keys that have one, for names that have none yet."""
    gene = pd.Series(keys).map(genes).fillna("").to_numpy()
    new = (found["gene"] == "").to_numpy() & (gene != "")
    found.loc[new, "gene"] = gene[new]
    found.loc[new, "how"] = np.broadcast_to(how, len(gene))[new]
    found.loc[new, "rank"] = found.loc[new, "how"].map(_RANKS)


class _Lookup(NamedTuple):
    """A table of approved symbols, turned round: each name leads to its symbol."""

    symbols: pd.Series
    identifiers: pd.Series
    older: pd.DataFrame
    ambiguous: frozenset[str]

    @classmethod
    def of(cls, table: pd.DataFrame | None) -> "_Lookup | None":
        """Turn a table round; a former name of two symbols leads nowhere, a symbol to itself."""
        if table is None:
            return None
        alive = _alive(table)
        symbols = pd.Series(alive["symbol"].to_numpy(), alive["symbol"]).drop_duplicates()
        known = alive.set_index("ensembl_gene_id")["symbol"].drop("", errors="ignore")
        older = pd.concat([
            alive.assign(key=alive[column].str.split("|"), how=how)[["key", "symbol", "how"]]
            .explode("key")
            for column, how in (("prev_symbol", "previous symbol"), ("alias_symbol", "alias"))
        ])
        older = older[older["key"].fillna("").ne("") & ~older["key"].isin(symbols)]
        older = older.drop_duplicates(["key", "symbol"])
        twice = older["key"].duplicated(keep=False)
        ambiguous = frozenset(older.loc[twice, "key"])
        return cls(symbols, _unique(known), older[~twice].set_index("key"), ambiguous)

    def approved(self, names: pd.Index) -> tuple[pd.Index, np.ndarray]:
        """Find the approved symbol of names, empty where there is none, and how."""
        found = pd.DataFrame({"name": names, "gene": "", "how": "none", "rank": 0})
        _fill(found, names, self.symbols, "symbol")
        _fill(found, names, self.identifiers, "Ensembl")
        _fill(found, names, self.older["symbol"], names.map(self.older["how"]).to_numpy())
        found.loc[(found["gene"] == "") & names.isin(self.ambiguous), "how"] = "ambiguous"
        return pd.Index(found["gene"]), found["how"].to_numpy()


def _alive(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the symbols that were withdrawn."""
    return table[table["status"] == "Approved"] if "status" in table else table


def _counterparts(orthologs: pd.DataFrame) -> pd.Series:
    """Map names of either species to the symbol of the other, where that is one to one."""
    pairs = orthologs[["human_symbol", "mouse_symbol"]]
    single = ~(pairs["human_symbol"].duplicated(False) | pairs["mouse_symbol"].duplicated(False))
    pairs = orthologs[single & pairs.ne("").all(axis=1)]
    both = [
        pd.Series(pairs[f"{to}_symbol"].to_numpy(), pairs[key])
        for to, keys in (("human", ("mouse_symbol", "mouse_ensembl_id")),
                         ("mouse", ("human_symbol", "human_ensembl_id")))
        for key in keys if key in pairs
    ]
    both = pd.concat(both)
    return _unique(both[both.index != ""])


def _unique(genes: pd.Series) -> pd.Series:
    """Leave out the keys that stand more than once."""
    return genes[~genes.index.duplicated(keep=False)]
