"""The report that a user meets first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from cellvq import check, machine, reading, scan, simulate

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder")) / "h5ad"
real = pytest.mark.skipif(
    not DATA.is_dir(), reason="real data: set CELLVQ_DATA to the folder that holds h5ad/"
)


@pytest.fixture
def cells():
    return simulate.simulate_cells(cells=120, seed=3)


def small(values, names=("ACTB", "GAPDH", "CD74")):
    return anndata.AnnData(np.array(values, dtype=np.float32), var=pd.DataFrame(index=list(names)))


# --- the report ----------------------------------------------------------------------------------


def test_a_good_file_reads_well_and_says_the_same_to_programs(cells):
    report = check(cells, panel=list(cells.var_names[:300]), label="cell_type", batch="batch")
    assert report.ok and report.counts_in == "X" and report.species == "human"
    assert report.label_columns == {"cell_type": 6, "lineage": 3, "condition": 2}
    assert report.batch_columns == {"batch": 2, "donor": 6}
    sums = np.asarray(cells.X.sum(axis=1)).ravel()
    assert report.depth_median == np.median(sums) and report.panel_matched == 300
    assert report.sparsity == pytest.approx(1 - cells.X.nnz / 48_000)
    page = str(report)
    assert "120 cells x 400 genes, ready for CellVQ." in page and "rough estimate" in page
    assert max(map(len, page.splitlines())) <= 96
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["ok"] is True and record["n_genes"] == 400
    assert {f["subject"] for f in record["findings"]} >= {"raw counts", "label", "batch"}


def subjects(report, level):
    return {finding.subject for finding in report.findings if finding.level == level}


def test_empty_cells_repeated_names_and_poor_cells_are_warnings(cells):
    lil = cells.X.tolil()
    lil[:5] = 0
    cells.X = lil.tocsr()
    cells.var_names = ["ACTB", *cells.var_names[:-1]]
    cells.obs_names = ["one", *cells.obs_names[1:-1], "one"]
    report = check(cells)
    assert report.ok and report.empty_cells == 5 and report.duplicated_genes == 1
    assert subjects(report, "warning") == {"empty cells", "gene names", "cell names"}
    assert "5 cells have no counts at all. Remove them" in str(report)
    assert "few genes" in subjects(check(small([[1, 0, 2]])), "warning")


def test_numbers_for_names_are_an_error(cells):
    cells.var_names = [str(i) for i in range(cells.n_vars)]
    assert subjects(check(cells), "error") == {"gene names"}


def test_columns_asked_for_are_judged(cells):
    cells.obs["one"] = "same"
    cells.obs["each"] = cells.obs_names.to_numpy()
    cells.obs["gaps"] = np.where(np.arange(120) < 20, "", cells.obs["cell_type"].astype(str))
    report = check(cells, label="celltype")
    assert not report.ok and "there is no column 'celltype'" in report.findings[0].message
    assert "cell_type, lineage" in report.findings[0].remedy
    assert not check(cells, label="one").ok and not check(cells, batch="each").ok
    report = check(cells, label="gaps")
    said = next(finding for finding in report.findings if finding.subject == "label")
    assert report.ok and "20 cells have no value" in said.message
    assert not {"one", "each"} & {*report.label_columns, *report.batch_columns}


def test_the_panel_is_counted(cells):
    strangers = [f"GENE{i}" for i in range(500)]
    report = check(cells, panel=[*cells.var_names[:100], *strangers])
    assert report.ok and report.panel_matched == 100
    assert subjects(report, "warning") == {"model's genes"}
    report = check(cells, panel=strangers)
    assert report.panel_matched == 0 and subjects(report, "error") == {"model's genes"}


def test_a_file_is_read_in_parts_and_says_what_the_cells_say(cells, tmp_path, monkeypatch):
    cells.obs["total_counts"] = np.asarray(cells.X.sum(axis=1)).ravel() + 5
    cells.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    whole = check(cells, label="cell_type").to_dict()
    monkeypatch.setattr(scan, "BLOCK_VALUES", 2000)
    monkeypatch.setattr(reading, "read", None)  # which would load all of it
    parts = check(tmp_path / "cells.h5ad", label="cell_type").to_dict()
    measured = {"name", "free_memory_gb", "encode_seconds", "pretrain_seconds"}
    for key in whole.keys() - measured:
        assert parts[key] == (pytest.approx(whole[key]) if key != "findings" else whole[key]), key
    assert parts["depth_median"] == np.median(cells.obs["total_counts"])


def test_labels_of_an_old_anndata_keep_their_words(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:  # as anndata 0.7 wrote categories
        names, codes = (file[f"obs/cell_type/{part}"][:] for part in ("categories", "codes"))
        del file["obs/cell_type"]
        file["obs/__categories/cell_type"], file["obs/cell_type"] = names, codes
        file["obs/cell_type"].attrs["categories"] = file["obs/__categories/cell_type"].ref
        file["obs"].attrs["encoding-version"] = "0.1.0"
    assert check(tmp_path / "cells.h5ad").label_columns["cell_type"] == 6


def test_logarithms_are_undone_and_that_is_said(cells, tmp_path):
    counts = check(cells)
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    cells.X = cells.X.multiply(1e4 / totals[:, None]).tocsr().log1p().astype(np.float32)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for report in (check(cells), check(tmp_path / "cells.h5ad")):
        assert report.ok and "recovered counts" in subjects(report, "hint")
        assert report.counts_in == "X (logarithms; counts recovered exactly)"
        assert report.depth_median == counts.depth_median


def test_what_may_be_dying_doubled_or_read_twice_is_named():
    rng = np.random.default_rng(0)
    names = ["MT-CO1", "ACTB", "GAPDH", "CD74", *(f"GENE{i}" for i in range(96))]
    values = rng.poisson(1.0, (200, 100)).astype(np.float32)
    values[:40, 0] = 60  # dying
    values[40:80, 50:] += rng.poisson(6.0, (40, 50))  # crowded
    values[190:] = values[180:190]
    cells = small(values, names)
    report = check(cells)
    assert {"mitochondria", "doublets"} <= subjects(report, "hint")
    assert subjects(report, "warning") == {"repeated cells"} and report.identical_cells == 10
    assert report.crowded_cells == pytest.approx(0.2, abs=0.01)
    cells.obs["sample"] = pd.Categorical(["deep" if 40 <= i < 80 else "flat" for i in range(200)])
    assert check(cells).crowded_cells == 0 and "doublets" not in subjects(check(cells), "hint")


def test_the_gene_table_is_offered_where_it_finds_more(cells):
    table = pd.DataFrame({
        "symbol": cells.var_names, "prev_symbol": [f"old_{name}" for name in cells.var_names],
        "alias_symbol": "", "ensembl_gene_id": "",
    })
    panel = list(cells.var_names)
    cells.var_names = [f"old_{name}" if i % 4 else name for i, name in enumerate(cells.var_names)]
    report = check(cells, panel=panel, gene_table=table)
    assert (report.panel_matched, report.panel_matched_by_table) == (100, 400)
    assert report.gene_names == {"matched": 100, "renamed": 300, "merged": 0, "dropped": 0}
    assert "300 more are found with --gene-table hgnc" in str(report)
    assert check(cells, gene_table=table).gene_names == report.gene_names


def test_time_and_memory_grow_with_the_cells_and_shrink_with_the_machine():
    small_machine, large_machine = machine.Machine(1, 4.0, 25.0), machine.Machine(16, 64.0, 900.0)
    one = machine.estimate(10_000, 20_000, 10_000_000, small_machine)
    ten = machine.estimate(100_000, 20_000, 100_000_000, small_machine)
    fast = machine.estimate(100_000, 20_000, 100_000_000, large_machine)
    assert one.encode_seconds < fast.encode_seconds < ten.encode_seconds
    assert ten.encode_memory_gb > one.encode_memory_gb and fast.pretrain_seconds < 600


def test_check_needs_neither_torch_nor_scanpy(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    code = (f"import sys, cellvq; cellvq.check({str(tmp_path / 'cells.h5ad')!r}); "
            "sys.exit(bool({'torch', 'scanpy'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@real
@pytest.mark.parametrize(("name", "shape", "labels"), [
    ("pbmc3k", (2700, 13714), {"cell_type": 9, "cluster": 9}),
    ("kang_ifnb_sub", (2000, 13215), {"cell_type": 13, "condition": 2}),
    ("kang_muscat_example", (1556, 1267), {"cell_type": 5, "condition": 2}),
    ("papalexi_lowmoi_sceptre", (20729, 299), {"grna": 107, "perturbation": 26, "condition": 2}),
])
def test_real_files_are_ready(name, shape, labels):
    report = check(DATA / f"{name}.h5ad")
    assert report.ok and (report.n_cells, report.n_genes) == shape
    assert report.label_columns == labels and report.species == "human"
    assert not subjects(report, "warning")


@real
@pytest.mark.parametrize("name", ["pancreas_wang_scclassify", "pancreas_xin_scclassify"])
def test_real_log_values_are_refused(name):
    report = check(DATA / f"{name}.h5ad")
    assert not report.ok and "X holds values such as" in report.findings[0].message
    assert "log-transformed" in str(report) and report.label_columns


def test_the_estimate_streams_where_pretraining_does():
    from cellvq import corpus

    assert machine.STREAMED_FROM == corpus.IN_MEMORY


def test_mouse_cells_meet_a_human_model_by_their_orthologs():
    cells = simulate.simulate_cells(cells=60)
    panel = list(cells.var_names)
    table = pd.DataFrame({"human_symbol": panel, "mouse_symbol": [g.title() for g in panel],
                          "human_ensembl_id": "", "mouse_ensembl_id": ""})
    cells.var_names = table["mouse_symbol"]
    said = str(check(cells, panel=panel))
    assert "of mouse and the model is human: cellvq fetch mouse_orthologs" in " ".join(said.split())
    report = check(cells, panel=panel, orthologs=table)
    assert report.panel_matched_by_table == len(panel)
    said = " ".join(str(report).split())
    assert "with --orthologs mouse_orthologs" in said and "--gene-table" not in said
