"""Simulated cells whose truth is known: types, programs, batches, donors, talk and a perturbation.

Whoever claims to recover structure must first recover structure that was planted. The counts come
with every planted gene written down beside them, in ``uns["truth"]``.
"""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from cellvq import InputError

HOUSEKEEPING = (
    "ACTB", "GAPDH", "MALAT1", "EEF1A1", "TPT1", "RPLP0", "RPL13A", "RPS27", "RPS18", "RPL10",
    "FTL", "FTH1", "UBC", "PPIA", "TMSB4X", "TMSB10", "ACTG1", "HSP90AB1", "YWHAZ", "PGK1",
)
# Interferon-stimulated genes, so that a gene-set test on the perturbation has a true answer.
RESPONSE = (
    "ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "ISG20", "LY6E", "IFI44L", "OAS1", "IRF7", "STAT1",
    "IFIT2",
)
_SHARED_RESPONSE = 8  # answered by every cell type; the others by one type alone
# Each pair stands in liana's consensus resource, and no ligand here binds another one's receptor.
PAIRS = (
    ("CCL19", "CCR7"), ("CXCL13", "CXCR5"), ("CD40LG", "CD40"), ("CCL20", "CCR6"),
    ("XCL1", "XCR1"), ("FLT3LG", "FLT3"), ("KITLG", "KIT"), ("TNFSF4", "TNFRSF4"),
    ("CXCL16", "CXCR6"), ("CX3CL1", "CX3CR1"), ("CCL17", "CCR4"), ("CCL25", "CCR9"),
)
# Ligands and receptors that every type expresses alike: expressed, listed, and yet no planted talk.
# (liana also refuses data that hold fewer than 2 % of its resource's 1,876 genes.)
BYSTANDERS = (
    "VEGFA", "FLT1", "EGF", "EGFR", "PDGFA", "PDGFRA", "HGF", "MET", "FGF7", "FGFR2", "IGF1",
    "IGF1R", "NGF", "NTRK1", "GAS6", "AXL", "JAG1", "NOTCH1", "DLL4", "NOTCH3", "EFNB1", "EPHB2",
    "FASLG", "FAS", "WNT5A", "ROR2", "ANGPT1", "TEK", "EDN1", "EDNRA", "IL33", "IL1RL1", "TNF",
    "TNFRSF1A", "GRN", "SORT1",
)
TRUTH_COLUMNS = {
    "markers": ("cell_type", "gene"),
    "lineages": ("lineage", "cell_type", "gene"),
    "programs": ("program", "gene"),
    "communication": ("source", "target", "ligand", "receptor"),
    "perturbation": ("condition", "cell_type", "gene", "log2_fold_change"),
}
_LINEAGE_GENES = 8
_PROGRAM_GENES = 12
_BLOCK = 8192  # cells drawn at once: memory stays flat however many cells are asked for


@dataclass(frozen=True)
class _Rates:
    """What the counts are drawn from; natural logarithms of expected UMI counts."""

    state: np.ndarray  # [conditions, cell types, genes]
    programs: np.ndarray  # [programs, genes], added once per unit of a program's activity
    batches: np.ndarray  # [batches, genes]
    donors: np.ndarray  # [donors, genes]
    dispersion: np.ndarray  # [genes], the size parameter of the negative binomial


def simulate_cells(
    cells: int = 1500,
    genes: int = 400,
    cell_types: int = 6,
    batches: int = 2,
    donors: int = 6,
    conditions: tuple[str, ...] = ("control", "stimulated"),
    seed: int = 0,
    *,
    programs: int = 3,
    markers: int = 10,
    pairs: int = 6,
    depth: float = 300.0,
    batch_effect: float = 0.25,
    donor_effect: float = 0.1,
) -> anndata.AnnData:
    """Simulate cells with planted structure and the truth beside them.

    Cell types stand in pairs under lineages: each has ``markers`` genes of its own and shares eight
    with its sister type. Gene programs run in every type, each cell at its own activity. A ligand
    is expressed by its source type and the receptor by its target type alone. Every condition
    after the first raises eight interferon genes in all types and four more in one type. A donor
    has one condition and one batch, a factor per gene of its own, and its own mixture of types.
    Counts are negative binomial around ``size factor x rate``, with log-normal size factors.

    Args:
        cells: Number of cells.
        genes: Number of genes; those without a planted role are background.
        cell_types: Number of cell types, at least 2.
        batches: Number of batches, at most the donors of one condition.
        donors: Number of donors over all conditions.
        conditions: Names of the conditions; the first is the control.
        seed: Every number follows from it.
        programs: Number of gene programs, 12 genes each.
        markers: Private marker genes per cell type.
        pairs: Number of planted ligand-receptor pairs, at most 12.
        depth: UMI counts of a cell of average type in the control, median over cells.
        batch_effect: Standard deviation of a gene's log factor per batch.
        donor_effect: Standard deviation of a gene's log factor per donor.

    Returns:
        Raw counts in ``X`` (CSR float32, [cells, genes]); ``obs`` cell_type, lineage, batch,
        donor, condition; ``obsm["program_activity"]`` [cells, programs]; and ``uns["truth"]``,
        tables with the columns of ``TRUTH_COLUMNS``.

    Raises:
        InputError: The sizes do not fit together; the message says which to change.

    Example:
        >>> cells = simulate_cells(cells=200, seed=1)
        >>> cells.shape, cells.obs["cell_type"].nunique()
        ((200, 400), 6)
        >>> list(truth(cells)["communication"].columns)
        ['source', 'target', 'ligand', 'receptor']
    """
    planted = len(HOUSEKEEPING + RESPONSE + BYSTANDERS) + 2 * pairs + programs * _PROGRAM_GENES
    planted += cell_types * markers + -(-cell_types // 2) * _LINEAGE_GENES
    _check_sizes(cells, genes, planted, cell_types, batches, donors, len(conditions), pairs)
    rng = np.random.default_rng(seed)
    roles = _assign_roles(genes, cell_types, programs, markers, pairs, rng)
    types, lineages = roles["types"], roles["lineages"]

    tables, rates = _plant(roles, conditions, batches, donors, pairs, depth, rng)
    rates.batches[:] = rng.normal(0.0, batch_effect, (batches, genes))
    rates.donors[:] = rng.normal(0.0, donor_effect, (donors, genes))

    donor = rng.integers(donors, size=cells)
    condition = donor % len(conditions)  # donors are nested in conditions ...
    batch = (donor // len(conditions)) % batches  # ... and each batch holds every condition
    mixtures = rng.dirichlet(np.linspace(60, 20, cell_types), size=donors).cumsum(axis=1)
    cell_type = (rng.random((cells, 1)) > mixtures[donor, :-1]).sum(axis=1)
    activity = 2 * rng.beta(0.6, 1.4, size=(cells, programs))
    size = rng.lognormal(-0.15 * (batch % 2), 0.35)  # every second batch is sequenced less deeply

    counts = _draw_counts(rates, (condition, cell_type), batch, donor, activity, size, rng)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(cell_type, types),
            "lineage": pd.Categorical.from_codes(cell_type // 2, lineages),
            "batch": pd.Categorical.from_codes(batch, _names("batch", batches)),
            "donor": pd.Categorical.from_codes(donor, _names("donor", donors)),
            "condition": pd.Categorical.from_codes(condition, list(conditions)),
        },
        index=[f"cell_{i:0{len(str(cells))}d}" for i in range(1, cells + 1)],
    )
    result = anndata.AnnData(X=counts, obs=obs, var=pd.DataFrame(index=roles["names"]))
    result.obsm["program_activity"] = activity.astype(np.float32)
    result.uns["truth"] = tables
    return result


def truth(cells: anndata.AnnData) -> dict[str, pd.DataFrame] | None:
    """Give the planted tables of simulated cells, or None where the cells are not simulated.

    Example:
        >>> sorted(truth(simulate_cells(cells=60)))
        ['communication', 'lineages', 'markers', 'perturbation', 'programs']
    """
    tables = cells.uns.get("truth")
    return None if tables is None else {name: tables[name] for name in TRUTH_COLUMNS}


def _check_sizes(cells, genes, planted, cell_types, batches, donors, conditions, pairs) -> None:
    """Refuse sizes that cannot be simulated, in one line each."""
    if cells < 1:
        raise InputError("simulated cells: ask for at least one cell")
    if cell_types < 2:
        raise InputError("simulated cells: two cell types are needed at least; raise cell_types")
    if conditions < 1 or batches < 1 or donors < conditions * batches:
        raise InputError(
            f"simulated cells: {donors} donors cannot fill {batches} batches in each of "
            f"{conditions} conditions; use at least {max(1, conditions) * max(1, batches)} donors"
        )
    if not 0 <= pairs <= len(PAIRS):
        raise InputError(f"simulated cells: pairs must lie between 0 and {len(PAIRS)}")
    if genes < planted:
        raise InputError(
            f"simulated cells: {genes} genes cannot hold the {planted} planted ones; raise genes"
        )


def _names(word: str, number: int) -> list[str]:
    """Number things from 1, padded so that names sort as numbers do."""
    return [f"{word}_{i:0{len(str(number))}d}" for i in range(1, number + 1)]


def _assign_roles(genes, cell_types, programs, markers, pairs, rng) -> dict:
    """Name the genes and say which column plays which part; columns stand in random order."""
    talk = [gene for pair in PAIRS[:pairs] for gene in pair]
    named = [*HOUSEKEEPING, *RESPONSE, *BYSTANDERS, *talk]
    order = rng.permutation(genes)
    names = np.array(_names("SIM", genes), dtype=object)  # by column, which tells nothing
    names[order[: len(named)]] = named
    lineages = -(-cell_types // 2)
    ends = np.cumsum([
        len(HOUSEKEEPING), len(RESPONSE), len(BYSTANDERS), 2 * pairs, cell_types * markers,
        lineages * _LINEAGE_GENES, programs * _PROGRAM_GENES,
    ])
    house, response, bystanders, talk, private, shared, running, _ = np.split(order, ends)
    return {
        "names": names,
        "types": _names("type", cell_types),
        "lineages": _names("lineage", lineages),
        "programs": _names("program", programs),
        "housekeeping": house,
        "response": response,
        "bystanders": bystanders,
        "talk": talk.reshape(pairs, 2),
        "markers": private.reshape(cell_types, markers),
        "shared": shared.reshape(lineages, _LINEAGE_GENES),
        "running": running.reshape(programs, _PROGRAM_GENES),
    }


def _plant(roles, conditions, batches, donors, pairs, depth, rng):
    """Write the planted structure into log rates and, from the same arrays, into the tables."""
    names, types = roles["names"], np.array(roles["types"], dtype=object)
    n_types, n_genes = len(types), len(names)
    base = rng.normal(-2.6, 1.0, n_genes)  # background
    base[roles["housekeeping"]] = rng.normal(1.8, 0.6, len(HOUSEKEEPING))
    base[roles["response"]] = rng.normal(-1.6, 0.3, len(RESPONSE))
    base[roles["bystanders"]] = rng.normal(-1.2, 0.3, len(BYSTANDERS))
    base[roles["talk"]] = -4.5
    base[roles["markers"]] = rng.normal(-2.8, 0.4, roles["markers"].shape)
    base[roles["shared"]] = rng.normal(-2.6, 0.4, roles["shared"].shape)
    base[roles["running"]] = rng.normal(-2.0, 0.4, roles["running"].shape)
    state = np.tile(base, (len(conditions), n_types, 1))

    each = np.arange(n_types)
    state[:, each[:, None], roles["markers"]] += rng.normal(2.4, 0.3, roles["markers"].shape)
    lineage = each // 2
    raised = rng.normal(2.2, 0.3, roles["shared"].shape)
    state[:, each[:, None], roles["shared"][lineage]] += raised[lineage]

    # Sources and targets are different types; a step around the circle keeps the pairs distinct.
    source = rng.permutation(n_types)[np.arange(pairs) % n_types]
    step = 1 + np.arange(pairs) // n_types % max(1, n_types - 1)
    target = (source + step) % n_types
    state[:, source, roles["talk"][:, 0]] += 4.5
    state[:, target, roles["talk"][:, 1]] += 4.5

    fold = np.zeros((len(conditions), n_types, len(RESPONSE)))  # log2
    fold[1:, :, :_SHARED_RESPONSE] = rng.uniform(
        1.5, 3.0, (len(conditions) - 1, 1, _SHARED_RESPONSE)
    )
    responder = rng.integers(n_types)
    fold[1:, responder, _SHARED_RESPONSE:] = rng.uniform(
        2.0, 3.0, (len(conditions) - 1, len(RESPONSE) - _SHARED_RESPONSE)
    )
    state[:, :, roles["response"]] += fold * np.log(2)
    state += np.log(depth / np.exp(state[0]).sum(axis=1).mean())

    programs = np.zeros((len(roles["programs"]), n_genes))
    programs[np.arange(len(programs))[:, None], roles["running"]] = rng.uniform(
        0.8, 1.6, roles["running"].shape
    )
    where = np.nonzero(fold)
    tables = {
        "markers": _table("markers", np.repeat(types, roles["markers"].shape[1]),
                          names[roles["markers"]].ravel()),
        "lineages": _table("lineages", np.repeat(np.array(roles["lineages"])[lineage],
                                                 _LINEAGE_GENES),
                           np.repeat(types, _LINEAGE_GENES),
                           names[roles["shared"][lineage]].ravel()),
        "programs": _table("programs", np.repeat(roles["programs"], _PROGRAM_GENES),
                           names[roles["running"]].ravel()),
        "communication": _table("communication", types[source], types[target],
                                *names[roles["talk"]].T),
        "perturbation": _table("perturbation", np.array(conditions, dtype=object)[where[0]],
                               types[where[1]], names[roles["response"]][where[2]], fold[where]),
    }
    rates = _Rates(
        state=state, programs=programs, batches=np.zeros((batches, n_genes)),
        donors=np.zeros((donors, n_genes)), dispersion=rng.lognormal(1.0, 0.4, n_genes),
    )
    return tables, rates


def _table(name: str, *columns: np.ndarray) -> pd.DataFrame:
    """Make one table of the truth with the columns that are promised for it."""
    return pd.DataFrame(dict(zip(TRUTH_COLUMNS[name], columns, strict=True)))


def _draw_counts(rates, state, batch, donor, activity, size, rng) -> scipy.sparse.csr_matrix:
    """Draw negative binomial counts, block after block, as gamma-mixed Poisson counts."""
    blocks = []
    for start in range(0, len(size), _BLOCK):
        part = slice(start, start + _BLOCK)
        log_rate = rates.state[state[0][part], state[1][part]]
        log_rate += rates.batches[batch[part]]
        log_rate += rates.donors[donor[part]]
        log_rate += activity[part] @ rates.programs
        mean = np.exp(log_rate) * size[part, None]
        counts = rng.poisson(rng.gamma(rates.dispersion, mean / rates.dispersion))
        blocks.append(scipy.sparse.csr_matrix(counts, dtype=np.float32))
    return scipy.sparse.vstack(blocks, format="csr")
