"""Published files -> cells; whatever code or pickle lies in a file is never run.

One short reader a data set: published files are alike in nothing. What a file does not carry is not
added here.
"""

import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from cellvq import InputError, reading, rfiles


def cells(name: str, files: list[Path]) -> anndata.AnnData:
    """Read the published files of a data set.

    Args:
        name: Name in the registry; it chooses how files are read that are no ``.h5ad``.
        files: The published files, in the order of the registry.

    Returns:
        Raw UMI counts in ``X`` [cells, genes] as CSR, and in ``obs`` the labels that the files
        carry, under the standard names ``cell_type``, ``donor``, ``batch``, ``condition``.

    Raises:
        InputError: A file holds something else than it should.
    """
    reader = _READERS.get(name)
    if reader is None:
        found = reading.read(files[0])
        found.obs = found.obs.rename(columns=_STANDARD_NAMES.get(name, {}))
        return found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rdata names every R class that it leaves plain
            return reader(files)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # parsers fail in many ways on a file of another make
        raise InputError(
            f"{name}: {files[0]} does not hold what it should ({type(error).__name__}); delete it "
            f"and run `cellvq fetch {name}`"
        ) from error


def bundled() -> anndata.AnnData:
    """Take the counts back out of scanpy's bundled cells, pbmc68k_reduced.

    scanpy holds log-normalised values: they were divided by the cell's total, brought to 10,000 and
    stored with three decimals. What comes back lies close to whole numbers; rounding is then exact.

    Raises:
        InputError: This version of scanpy bundles other values.
    """
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file was written by an old anndata
        cells = scanpy.datasets.pbmc68k_reduced()
    depth = cells.obs["n_counts"].to_numpy(dtype=np.float64)
    values = np.expm1(cells.raw.X.toarray().astype(np.float64)) * depth[:, None] / 1e4
    counts = np.rint(values)
    deviation = np.abs(values - counts).max()
    if deviation > 0.1:
        raise InputError(
            f"pbmc68k_reduced: scanpy's file gives no whole counts (off by {deviation:.2f}); use "
            "the scanpy version of constraints.txt"
        )
    obs = cells.obs.rename(columns={"bulk_labels": "cell_type"}).drop(columns="n_counts")
    obs["total_counts"] = depth
    obs = obs[["cell_type", "louvain", "phase", "total_counts", "n_genes", "percent_mito"]]
    return anndata.AnnData(
        X=counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=cells.raw.var_names)
    )


def _pbmc3k(files: list[Path]) -> anndata.AnnData:
    """RcppML's sparse matrix with cell types; TileDB-SOMA's data frame with the clusters."""
    node = rfiles.at(rfiles.parse(files[0]), "pbmc3k")
    result = _cells(rfiles.sparse(node), *rfiles.dimnames(rfiles.at(node, "Dimnames")))
    result.obs["cell_type"] = rfiles.value(rfiles.at(node, "cell_type"))
    try:
        import tiledbsoma
    except ImportError:
        warnings.simplefilter("always")
        warnings.warn(
            "pbmc3k: the column cluster is left out; install 'cellvq[census]' and fetch it again",
            stacklevel=2,
        )
        return result
    with tempfile.TemporaryDirectory() as folder, tarfile.open(files[1]) as archive:
        archive.extractall(folder, filter="data")  # refuses links and paths that lead outside
        with tiledbsoma.open(folder) as frame:
            labels = frame.read().concat().to_pandas().set_index("obs_id")
    result.obs["cluster"] = labels["seurat_clusters"].reindex(result.obs_names)
    return result


def _kang_ifnb_sub(files: list[Path]) -> anndata.AnnData:
    """Seurat's object, which holds logarithms and depths; the donors are those of muscat's file."""
    root = rfiles.at(rfiles.parse(files[0]), "ifnb_sub")
    obs, node = rfiles.value(rfiles.at(root, "meta.data")), rfiles.at(root, "assays", "RNA", "data")
    names, barcodes = rfiles.dimnames(rfiles.at(node, "Dimnames"))
    logged = rfiles.sparse(node)
    depth = obs["nCount_RNA"].to_numpy()
    values = np.expm1(logged.data) * np.repeat(depth, np.diff(logged.indptr)) / 1e4
    counts = np.rint(values)
    if np.abs(values - counts).max() > 0.01:
        raise InputError(f"{files[0]}: the logarithms give no whole counts; fetch the file again")
    result = _cells(
        scipy.sparse.csr_matrix((counts, logged.indices, logged.indptr), logged.shape),
        names, barcodes,
    )
    result.obs["cell_type"] = obs["seurat_annotations"].to_numpy()
    result.obs["condition"] = obs["stim"].str.lower().to_numpy()
    result.obs[["nCount_RNA", "nFeature_RNA"]] = obs[["nCount_RNA", "nFeature_RNA"]].to_numpy()
    result.obs["batch"] = result.obs["condition"]
    others = rfiles.at(rfiles.parse(files[1]), "kang_se", "colData")
    donors = pd.Series(
        rfiles.value(rfiles.at(others, "listData", "sample_id")).astype(str),
        index=rfiles.value(rfiles.at(others, "rownames")),
    )
    plain = pd.Index(barcodes).str.replace(r"\.1$", "-1", regex=True)
    known = donors[~donors.index.duplicated(keep=False)].reindex(plain).to_numpy()
    result.obs["donor"] = np.where(result.obs["condition"] == "ctrl", known, np.nan)
    return result


def _kang_muscat_example(files: list[Path]) -> anndata.AnnData:
    """A SingleCellExperiment of muscat: two donors under two conditions."""
    root = rfiles.at(rfiles.parse(files[0]), "example_sce")
    node = rfiles.at(root, "assays", "data", "listData", "counts")
    names, barcodes = rfiles.dimnames(rfiles.at(node, "Dimnames"))
    result = _cells(rfiles.sparse(node), names, barcodes)
    labels = rfiles.at(root, "colData", "listData")
    result.obs["cell_type"] = rfiles.value(rfiles.at(labels, "cluster_id"))
    result.obs["sample"] = rfiles.value(rfiles.at(labels, "sample_id"))
    result.obs["condition"] = rfiles.value(rfiles.at(labels, "group_id"))
    result.obs["donor"] = result.obs["sample"].astype(str).str.removeprefix("ctrl")
    result.obs["donor"] = result.obs["donor"].str.removeprefix("stim")
    result.obs["batch"] = result.obs["sample"]
    described = rfiles.at(root, "rowRanges", "elementMetadata", "listData")
    result.var["ensembl_id"] = rfiles.value(rfiles.at(described, "ENSEMBL"))
    return result


def _kang_muscat_ctrl12k(files: list[Path]) -> anndata.AnnData:
    """A SummarizedExperiment of muscat, its counts dense within an R environment."""
    root = rfiles.at(rfiles.parse(files[0]), "kang_se")
    node = rfiles.at(root, "assays", ".xData", ".->data", "listData", "counts")
    shape = rfiles.value(rfiles.at(node, "dim"))
    counts = np.asarray(node.value).reshape(shape, order="F").T
    symbols = rfiles.value(rfiles.at(root, "elementMetadata", "listData", "feature"))
    described = rfiles.at(root, "colData")
    result = _cells(
        scipy.sparse.csr_matrix(counts), np.asarray(symbols),
        rfiles.value(rfiles.at(described, "rownames")),
    )
    labels = rfiles.at(described, "listData")
    result.obs["cell_type"] = rfiles.value(rfiles.at(labels, "cluster_id"))
    result.obs["donor"] = rfiles.value(rfiles.at(labels, "sample_id")).astype(str)
    result.obs["condition"] = "ctrl"
    result.obs["batch"] = result.obs["donor"]
    result.var["ensembl_id"] = rfiles.value(rfiles.at(root, "NAMES"))
    return result


def _papalexi(files: list[Path]) -> anndata.AnnData:
    """sceptre's list: counts of genes and of guides, the guides' targets, and covariates."""
    root = rfiles.at(rfiles.parse(files[0]), "lowmoi_example_data")
    counts = rfiles.sparse(rfiles.at(root, "response_matrix"))
    node = rfiles.at(root, "grna_matrix")
    guides, names = rfiles.sparse(node), rfiles.dimnames(rfiles.at(node, "Dimnames"))[0]
    genes = rfiles.dimnames(rfiles.at(root, "response_matrix", "Dimnames"))[0]
    result = _cells(counts, genes, [f"cell_{i}" for i in range(counts.shape[0])])
    targets = rfiles.value(rfiles.at(root, "grna_target_data_frame"))
    target = targets.set_index("grna_id")["grna_target"]
    most = np.asarray(guides.argmax(axis=1)).ravel()
    result.obs["grna"] = names[most]
    result.obs["perturbation"] = target.reindex(names[most]).to_numpy()
    result.obs["grna_umi_max"] = guides.max(axis=1).toarray().ravel().astype(int)
    result.obs["grna_umi_total"] = np.asarray(guides.sum(axis=1)).ravel().astype(int)
    result.obs["grna_frac"] = result.obs["grna_umi_max"] / result.obs["grna_umi_total"]
    covariates = rfiles.value(rfiles.at(rfiles.parse(files[1]), "covariate_data_frame_lowmoi"))
    result.obs["batch"] = covariates["bio_rep"].to_numpy()
    for column in ("response_n_umis", "response_n_nonzero", "p_mito"):
        result.obs[column] = covariates[column].to_numpy()
    silent = result.obs["perturbation"] == "non-targeting"
    result.obs["condition"] = np.where(silent, "control", "perturbed")
    return result


def _eccite(files: list[Path]) -> anndata.AnnData:
    """CiteFuse's list of three matrices: RNA, surface proteins and hashtags."""
    root = rfiles.at(rfiles.parse(files[0]), "CITEseq_example")
    names, barcodes = rfiles.dimnames(rfiles.at(root, "RNA", "Dimnames"))
    counts, symbols = rfiles.sparse(rfiles.at(root, "RNA")), pd.Index(names)
    result = _cells(counts, symbols.str.removeprefix("hg19_"), barcodes)
    result.obsm["protein_counts"] = rfiles.sparse(rfiles.at(root, "ADT")).toarray().astype(np.int32)
    result.uns["protein_names"] = rfiles.dimnames(rfiles.at(root, "ADT", "Dimnames"))[0]
    hashtags = rfiles.sparse(rfiles.at(root, "HTO")).toarray()
    tags = rfiles.dimnames(rfiles.at(root, "HTO", "Dimnames"))[0]
    result.obs["hto_argmax"] = tags[hashtags.argmax(axis=1)]
    return result


def _scvi_protein(files: list[Path]) -> anndata.AnnData:
    """scvi-tools' test file: counts and surface proteins."""
    found = reading.read(files[0])
    result = anndata.AnnData(
        scipy.sparse.csr_matrix(found.X), obs=found.obs, var=found.var[[]],
        obsm={"protein_counts": np.asarray(found.obsm["protein_expression"]).astype(np.int32)},
        uns={"protein_names": found.uns["protein_names"]},
    )
    return result


def _pancreas(files: list[Path]) -> anndata.AnnData:
    """scClassify's pair of studies, joined on their common genes.

    The file holds log2 of normalised reads, and no counts. What is brought back is brought to
    10,000 a cell and rounded: whole numbers that stand in for counts, without their noise.
    """
    root, parts = rfiles.at(rfiles.parse(files[0]), "scClassify_example"), {}
    for study in ("xin", "wang"):
        node = rfiles.at(root, f"exprsMat_{study}_subset")
        names, barcodes = rfiles.dimnames(rfiles.at(node, "Dimnames"))
        logged = rfiles.sparse(node)
        logged.data = np.exp2(logged.data) - 1
        parts[study] = _cells(logged, names, barcodes)
        parts[study].obs["cell_type"] = rfiles.value(rfiles.at(root, f"{study}_cellTypes"))
    result = anndata.concat(parts, join="inner", label="study", index_unique="-")
    result.obs["batch"] = result.obs["study"]
    per_cell = 1e4 / np.maximum(np.asarray(result.X.sum(1)), 1e-9)
    result.X = scipy.sparse.csr_matrix(np.rint(result.X.multiply(per_cell)), dtype=np.float32)
    result.X.eliminate_zeros()
    return result


def _tahoe(files: list[Path]) -> anndata.AnnData:
    """One shard of Tahoe-100M: a cell is a list of gene tokens and a list of counts."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    shard, described = pq.read_table(files[0]), pq.read_table(files[1]).to_pandas()
    described = described.set_index("token_id")
    lengths = pc.list_value_length(shard["genes"]).to_numpy()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    tokens = pc.list_flatten(shard["genes"]).to_numpy()
    values = pc.list_flatten(shard["expressions"]).to_numpy()
    columns = described.index.get_indexer(tokens)
    real = (columns >= 0) & (values > 0)  # a cell begins with a token that is no gene
    counts = scipy.sparse.csr_matrix(
        (values[real], (rows[real], columns[real])), (len(lengths), len(described))
    )
    labels = shard.drop_columns(["genes", "expressions"]).to_pandas()
    result = _cells(counts, described["gene_symbol"], labels.pop("BARCODE_SUB_LIB_ID"))
    names = {"drug": "perturbation", "cell_line_id": "cell_line", "plate": "batch"}
    result.obs = labels.rename(columns=names).set_index(result.obs_names)
    result.var["ensembl_id"] = described["ensembl_id"].to_numpy()
    return result


_STANDARD_NAMES = {
    "scib_pancreas": {"celltype": "cell_type", "tech": "batch"},
    "scib_immune_human": {"final_annotation": "cell_type"},
}
_READERS: dict[str, Callable[[list[Path]], anndata.AnnData]] = {
    "pbmc3k": _pbmc3k,
    "kang_ifnb_sub": _kang_ifnb_sub,
    "kang_muscat_example": _kang_muscat_example,
    "kang_muscat_ctrl12k": _kang_muscat_ctrl12k,
    "papalexi_lowmoi_sceptre": _papalexi,
    "eccite_citefuse": _eccite,
    "pbmc_5k_protein_scvi200": _scvi_protein,
    "pbmc_10k_protein_scvi200": _scvi_protein,
    "pancreas_xin_wang": _pancreas,
    "tahoe100m_shard": _tahoe,
}


def _cells(counts, genes, barcodes) -> anndata.AnnData:
    """Put counts [cells, genes] and their names together."""
    counts = scipy.sparse.csr_matrix(counts, dtype=np.float32)
    return anndata.AnnData(
        counts, obs=pd.DataFrame(index=pd.Index(barcodes, dtype=str)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=str)),
    )
