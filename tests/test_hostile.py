"""Files that should not exist: each gives one clear line or a named finding, and stays as it is."""

import gzip
import json
import os
import shutil
import zipfile

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from cellvq import InputError, check, reading

GENES = ["ACTB", "GAPDH", "CD74", "MT-CO1", "LYZ", "CD3D", "VIM", "FTL"]
CELLS, PANEL = 12, ["ACTB", "GAPDH", "LYZ"]


@pytest.fixture(autouse=True)
def without_gene_tables(monkeypatch, tmp_path):
    monkeypatch.delenv("CELLVQ_DATA", raising=False)
    monkeypatch.setenv("CELLVQ_CACHE", str(tmp_path / "cache"))


# --- how files are spoilt ------------------------------------------------------------------------


def matrix(dtype="float32"):
    values = np.random.default_rng(0).poisson(2.0, (CELLS, len(GENES))).astype(dtype)
    values[:, 0] = 1  # no empty cell
    return values


def cells(values=None, genes=GENES, **obs):
    values = matrix() if values is None else values
    frame = pd.DataFrame(obs, index=[f"cell{i}" for i in range(values.shape[0])])
    return anndata.AnnData(values, obs=frame, var=pd.DataFrame(index=list(genes)))


def with_value(value, dtype="float32", sparse=False):
    def write(path):
        values = matrix(dtype)
        values[5, 3] = value
        cells(scipy.sparse.csr_matrix(values) if sparse else values).write_h5ad(path)

    return write


def of(**options):
    return lambda path: cells(**options).write_h5ad(path)


def of_csr(change):
    """Write a sparse matrix and change it inside the file."""

    def write(path):
        cells(scipy.sparse.csr_matrix(matrix())).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            change(file)

    return write


def replaced(key, values, **attributes):
    """Replace a part of the file, and keep what anndata notes beside it."""

    def change(file):
        kept, new = dict(file[key].attrs), values(file) if callable(values) else values
        del file[key]
        file[key] = new
        file[key].attrs.update(kept | attributes)

    return change


def part(key, position, value):
    def change(file):
        values = file[key][:]
        values[position] = value
        replaced(key, values)(file)

    return change


def deleted(key):
    return lambda file: file.__delitem__(key)


def attribute(key, name, value):
    return lambda file: file[key].attrs.__setitem__(name, value)


def cut(share):
    def write(path):
        of_csr(lambda file: None)(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def corrupt_chunk(path):
    cells(scipy.sparse.csr_matrix(matrix())).write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)


def overwritten(begin, end):
    def write(path):
        of_csr(lambda file: None)(path)
        content = bytearray(path.read_bytes())
        content[begin:end] = bytes(end - begin)
        path.write_bytes(content)

    return write


def packed(path):
    of()(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cells.h5ad", b"x")


def content(data):
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode())


def hdf5(*parts):
    def write(path):
        with h5py.File(path, "w") as file:
            for name, values in parts:
                file[name] = values

    return write


def ten_x(change=lambda file: None, group="matrix"):
    def write(path):
        counts = scipy.sparse.csr_matrix(matrix("int32"))
        with h5py.File(path, "w") as file:
            for name in [group] if isinstance(group, str) else group:
                to = file.create_group(name)
                for key in ("data", "indices", "indptr"):
                    to[key] = getattr(counts, key)
                to["shape"] = [len(GENES), CELLS]
                to["barcodes"] = [f"AAAC{i}-1".encode() for i in range(CELLS)]
                if name == "matrix":
                    columns = {"id": GENES, "name": GENES, "genome": ["GRCh38"] * len(GENES),
                               "feature_type": ["Gene Expression"] * len(GENES)}
                    for key, values in columns.items():
                        to[f"features/{key}"] = np.array(values, "S")
                else:
                    names = [f"{name}_{gene}" for gene in GENES]
                    to["genes"], to["gene_names"] = np.array(names, "S"), np.array(names, "S")
            change(file)

    return write


def folder(change=lambda path: None, version=3):
    """Write a matrix folder of 10x, of version 2 or of version 3 (packed)."""

    def write(path):
        path.mkdir()
        opener, end = (gzip.open, ".gz") if version == 3 else (open, "")
        names = [f"ENSG{i:011d}\t{gene}" for i, gene in enumerate(GENES)]
        names = [f"{name}\tGene Expression" for name in names] if version == 3 else names
        rows, columns = np.nonzero(matrix().T)
        values = matrix("int32").T[rows, columns]
        lines = [f"{i + 1} {j + 1} {n}" for i, j, n in zip(rows, columns, values, strict=True)]
        header = ["%%MatrixMarket matrix coordinate integer general", "%",
                  f"{len(GENES)} {CELLS} {len(lines)}"]
        for name, text in (
            ("matrix.mtx", header + lines),
            ("features.tsv" if version == 3 else "genes.tsv", names),
            ("barcodes.tsv", [f"AAAC{i}-1" for i in range(CELLS)]),
        ):
            with opener(path / (name + end), "wt", encoding="utf-8") as file:
                file.write("\n".join(text) + "\n")
        change(path)

    return write


def rewritten(name, change):
    return lambda path: (path / name).write_text(change((path / name).read_text()))


def table(change=lambda text: text, mark=",", encoding="utf-8"):
    """Write a table with genes in rows."""

    def write(path):
        lines = [mark.join(["", *(f"AAACCCAA-{i}" for i in range(CELLS))])]
        lines += [mark.join([gene, *map(str, row)])
                  for gene, row in zip(GENES, matrix("int32").T, strict=True)]
        path.write_bytes(change("\n".join(lines) + "\n").encode(encoding))

    return write


def loom(change=lambda file: None):
    def write(path):
        with h5py.File(path, "w") as file:
            file["matrix"] = matrix("int32").T
            file["row_attrs/Gene"] = np.array(GENES, "S")
            file["col_attrs/CellID"] = np.array([f"c{i}" for i in range(CELLS)], "S")
            change(file)

    return write


def many_categories(path):
    n = 100_000
    counts = scipy.sparse.random(n, 3, 0.5, format="csr", dtype="float32", random_state=0)
    counts.data[:] = 2
    obs = pd.DataFrame({"barcode": pd.Categorical([f"b{i}" for i in range(n)])})
    obs.index = obs.index.astype(str)
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES[:3])).write_h5ad(path)


def linked(target):
    return lambda path: os.symlink(target, path)


# --- the table: what it is, its name, how it is made, and what must be said ----------------------

DAMAGED, REFUSED = "damaged or cut off", "raw counts"
SPOILT = [
    # files that are no AnnData
    ("absent", "cells.h5ad", lambda path: None, "there is no such file"),
    ("in an absent folder", "none/cells.h5ad", lambda path: None, "there is no such file"),
    ("below a file", "a.txt/cells.h5ad", lambda path: path.parent.write_text("x"),
     "cannot be read"),
    ("very long name", "x" * 300 + ".h5ad", lambda path: None, "cannot be read"),
    ("folder", "cells.h5ad", lambda path: path.mkdir(), "this is a folder"),
    ("empty file", "cells.h5ad", content(b""), "it is empty"),
    ("text", "cells.h5ad", content("gene,cell\nACTB,3\n"), "not an .h5ad file"),
    ("web page", "cells.h5ad", content("<!DOCTYPE html><html>no"), "a web page"),
    ("zip", "cells.h5ad", zipped, "a zip archive"),
    ("gzip of h5ad", "cells.h5ad", packed, "compressed with gzip"),
    ("dangling link", "cells.h5ad", linked("nowhere.h5ad"), "leads nowhere"),
    ("link to itself", "cells.h5ad", linked("cells.h5ad"), "cannot be read"),
    ("pipe", "cells.h5ad", os.mkfifo, "no ordinary file"),
    ("other HDF5", "cells.h5ad", hdf5(("values", np.ones(3))), "holds no AnnData"),
    ("empty HDF5", "cells.h5", hdf5(), "holds no AnnData"),
    ("unknown ending", "cells.rds", content(b"RDX3\n"), "not an .h5ad file"),
    # cut off and overwritten
    *((f"cut at {share:.1%}", "cells.h5ad", cut(share), "not an .h5ad file|" + DAMAGED)
      for share in (0.0001, 0.01, 0.25, 0.5, 0.75, 0.99)),
    ("header overwritten", "cells.h5ad", overwritten(8, 200), DAMAGED),
    ("middle overwritten", "cells.h5ad", overwritten(200, 6000), DAMAGED),
    ("chunk overwritten", "cells.h5ad", corrupt_chunk, DAMAGED),
    # parts missing or at odds
    ("no X", "cells.h5ad", of_csr(deleted("X")), REFUSED),
    ("no var", "cells.h5ad", of_csr(deleted("var")), "holds no AnnData"),
    ("no obs", "cells.h5ad", of_csr(deleted("obs")), "holds no AnnData"),
    ("obs without names", "cells.h5ad", of_csr(deleted("obs/_index")), DAMAGED),
    ("obs is a number", "cells.h5ad", of_csr(replaced("obs", 3)), DAMAGED),
    ("column longer than obs", "cells.h5ad",
     lambda path: (of(batch=["a"] * CELLS)(path), of_file(path, "obs/batch/codes")), DAMAGED),
    ("dense X of another shape", "cells.h5ad", of_csr(
        replaced("X", matrix()[:5], **{"encoding-type": "array"})), DAMAGED),
    ("three-dimensional X", "cells.h5ad", of_csr(
        replaced("X", matrix()[None], **{"encoding-type": "array"})), DAMAGED),
    ("sparse X of another shape", "cells.h5ad", of_csr(
        attribute("X", "shape", [CELLS, 3])), DAMAGED),
    ("X larger than memory", "cells.h5ad", of_csr(
        lambda file: [file["X"].attrs.__setitem__("shape", [CELLS, 2**62]),
                      replaced("X/indices", lambda f: f["X/indices"][:].astype("i8"))(file),
                      part("X/indices", 0, 2**61)(file)]), DAMAGED),
    ("unknown encoding", "cells.h5ad", of_csr(
        attribute("X", "encoding-type", "quantum")), None),
    ("rows not in order", "cells.h5ad", of_csr(part("X/indptr", 3, 90)), DAMAGED),
    ("rows begin late", "cells.h5ad", of_csr(part("X/indptr", 0, 2)), DAMAGED),
    ("rows end beyond", "cells.h5ad", of_csr(part("X/indptr", -1, 10**6)), DAMAGED),
    ("a row too few", "cells.h5ad", of_csr(
        replaced("X/indptr", lambda file: file["X/indptr"][:-1])), DAMAGED),
    ("gene out of range", "cells.h5ad", of_csr(part("X/indices", 4, 99)), DAMAGED),
    ("gene below zero", "cells.h5ad", of_csr(part("X/indices", 4, -1)), DAMAGED),
    ("gene beyond 32 bits", "cells.h5ad", of_csr(lambda file: [
        replaced("X/indices", lambda f: f["X/indices"][:].astype("i8"))(file),
        part("X/indices", 4, 2**32)(file)]), DAMAGED),
    ("fewer values than genes", "cells.h5ad", of_csr(
        replaced("X/data", lambda file: file["X/data"][:-3])), DAMAGED),
    ("genes not in order", "cells.h5ad", of_csr(
        lambda file: part("X/indices", [0, 1], file["X/indices"][:2][::-1])(file)), None),
    ("by columns", "cells.h5ad", of(values=scipy.sparse.csc_matrix(matrix())), None),
    # values that are no counts
    ("NaN", "cells.h5ad", with_value(np.nan), REFUSED),
    ("infinite", "cells.h5ad", with_value(np.inf), REFUSED),
    ("minus infinite", "cells.h5ad", with_value(-np.inf, sparse=True), REFUSED),
    ("negative", "cells.h5ad", with_value(-1), REFUSED),
    ("fraction", "cells.h5ad", with_value(0.5, sparse=True), REFUSED),
    ("huge", "cells.h5ad", with_value(1e30), "huge counts"),
    ("beyond 32 bits", "cells.h5ad", with_value(2**40, "int64"), "huge counts"),
    ("all zero", "cells.h5ad", of(values=matrix() * 0), REFUSED),
    ("nothing stored", "cells.h5ad", of(values=scipy.sparse.csr_matrix((CELLS, 8))), REFUSED),
    ("words", "cells.h5ad", of_csr(replaced(
        "X", np.full((CELLS, 8), b"three"), **{"encoding-type": "string-array"})),
     DAMAGED + "|" + REFUSED),
    ("words in a sparse X", "cells.h5ad", of_csr(
        replaced("X/data", lambda file: np.full(len(file["X/data"]), b"three"))), REFUSED),
    ("true and false", "cells.h5ad", of(values=matrix() > 0), "only ones"),
    ("complex", "cells.h5ad", of_csr(
        replaced("X/data", lambda file: file["X/data"][:] + 1j)), REFUSED),
    ("records", "cells.h5ad", of_csr(replaced(
        "X", np.zeros((CELLS, 8), [("a", "f4"), ("b", "i4")]), **{"encoding-type": "array"})),
     DAMAGED + "|" + REFUSED),
    # shapes and names
    ("no cells", "cells.h5ad", of(values=matrix()[:0]), REFUSED),
    ("no genes", "cells.h5ad", of(values=matrix()[:, :0], genes=[]), REFUSED),
    ("empty cells", "cells.h5ad", of(values=matrix() * (np.arange(CELLS) > 2)[:, None]),
     "empty cells"),
    ("empty genes", "cells.h5ad", of(values=matrix() * (np.arange(8) > 2)), "empty genes"),
    ("genes twice", "cells.h5ad", of(genes=["ACTB"] * 3 + GENES[3:]), "gene names"),
    ("cells twice", "cells.h5ad", of_csr(part("obs/_index", 1, b"cell0")), "cell names"),
    ("numbers for names", "cells.h5ad", of(genes=map(str, range(8))), "gene names"),
    ("foreign genes", "cells.h5ad", of(genes=[f"YAL{i}W" for i in range(8)]), "model's genes"),
    ("empty names", "cells.h5ad", of(genes=[""] * 8), "gene names"),
    ("two genomes", "cells.h5ad", of(genes=[
        *(f"GRCh38_{gene}" for gene in GENES[:4]),
        *(f"mm10___{gene.title()}" for gene in GENES[:4])]), "mixed species"),
    ("two species by identifiers", "cells.h5ad", of(genes=[
        f"ENS{letters}G{i:011d}" for letters in ("", "MUS") for i in range(4)]), "mixed species"),
    ("HTML for names", "cells.h5ad", of(genes=["<script>alert(1)</script>"] * 8), "gene names"),
    ("lines in names", "cells.h5ad", of(genes=["a\nb\x1b[31m"] * 8), "gene names"),
    ("foreign letters", "cells.h5ad", of(genes=[f"基因{i}" for i in range(8)]), "model's genes"),
    ("a hundred thousand categories", "cells.h5ad", many_categories, "few genes"),
    ("odd path", "mes cellules é 细胞/a b.h5ad",
     lambda path: (path.parent.mkdir(), of()(path)), None),
    # 10x
    ("10x", "cells.h5", ten_x(), None),
    ("10x of an old version", "cells.h5", ten_x(group="hg19"), None),
    ("10x of two genomes", "cells.h5", ten_x(group=["hg19", "mm10"]), None),
    ("10x without barcodes", "cells.h5", ten_x(deleted("matrix/barcodes")), DAMAGED + "|AnnData"),
    ("10x without features", "cells.h5", ten_x(deleted("matrix/features")), DAMAGED),
    ("10x gene out of range", "cells.h5", ten_x(part("matrix/indices", 3, 50)), DAMAGED),
    ("10x of another shape", "cells.h5", ten_x(
        replaced("matrix/features/name", np.array(GENES[:3], "S"))), DAMAGED),
    ("folder of 10x", "run", folder(), None),
    ("folder of 10x, old", "run", folder(version=2), None),
    ("folder, empty", "run", lambda path: path.mkdir(), "no matrix.mtx"),
    ("folder without barcodes", "run", folder(lambda path: (path / "barcodes.tsv.gz").unlink()),
     "no barcodes.tsv"),
    ("folder without features", "run", folder(lambda path: (path / "genes.tsv").unlink(), 2),
     "no features.tsv"),
    ("folder with two matrices", "run", folder(
        lambda path: shutil.copy(path / "matrix.mtx", path / "b_matrix.mtx"), 2), "2 matrix.mtx"),
    ("mtx without header", "run", folder(rewritten(
        "matrix.mtx", lambda text: text[text.index("\n") + 1:]), 2), DAMAGED),
    ("mtx with lines missing", "run", folder(rewritten(
        "matrix.mtx", lambda text: text[: len(text) // 2]), 2), DAMAGED),
    ("mtx beyond its size", "run", folder(rewritten(
        "matrix.mtx", lambda text: text + "99 99 1\n"), 2), DAMAGED),
    ("mtx with words", "run", folder(rewritten(
        "matrix.mtx", lambda text: text.replace("\n1 1 1", "\n1 1 one")), 2), DAMAGED),
    ("mtx of an array", "run", folder(lambda path: (path / "matrix.mtx").write_text(
        "%%MatrixMarket matrix array integer general\n1 1\n3\n"), 2), DAMAGED),
    ("more barcodes than cells", "run", folder(rewritten(
        "barcodes.tsv", lambda text: text + "TTTG-1\n"), 2), "13 barcodes"),
    ("mtx.gz cut off", "run", folder(lambda path: (path / "matrix.mtx.gz").write_bytes(
        (path / "matrix.mtx.gz").read_bytes()[:60])), DAMAGED),
    # tables of text
    ("csv", "cells.csv", table(), "table"),
    ("csv with a byte-order mark", "cells.csv", table(encoding="utf-8-sig"), "table"),
    ("csv with semicolons", "cells.csv", table(mark=";"), "table"),
    ("tsv", "cells.tsv", table(mark="\t"), "table"),
    ("csv of other letters", "cells.csv", table(
        lambda text: text.replace("VIM", "é"), encoding="latin-1"), "table"),
    ("csv, empty", "cells.csv", content(""), "it is empty"),
    ("csv with names alone", "cells.csv", content("gene,a,b\n"), "not a table"),
    ("csv of one column", "cells.csv", content("gene\nACTB\n"), "not a table"),
    ("csv with a line too long", "cells.csv", table(
        lambda text: text.replace("LYZ,", "LYZ,7,")), "Expected 13 fields in line"),
    ("csv with a line too short", "cells.csv", table(
        lambda text: text[: text.rindex(",")] + "\n"), "too short"),
    ("csv with a gap", "cells.csv", table(
        lambda text: text[: text.rindex(",") + 1] + "NA\n"), "empty place"),
    ("csv with a word", "cells.csv", table(
        lambda text: text[: text.rindex(",") + 1] + "three\n"), "'three' stands"),
    ("csv with too few names", "cells.csv", table(
        lambda text: text.replace(",AAACCCAA-0,AAACCCAA-1", "", 1)), "names but"),
    ("csv with unknown names", "cells.csv", content("x,a,b\nu,1,2\nv,3,4\n"), "table"),
    ("csv of bytes", "cells.csv", content(bytes(range(256))), "not a table"),
    ("csv of 16 bits", "cells.csv", table(encoding="utf-16"), "in UTF-8"),
    ("csv.gz cut off", "cells.csv.gz", lambda path: (
        table()(path), path.write_bytes(gzip.compress(path.read_bytes())[:-20])), DAMAGED),
    # loom
    ("loom", "cells.loom", loom(), None),
    ("loom without matrix", "cells.loom", loom(deleted("matrix")), "holds no AnnData"),
    ("loom without names of genes", "cells.loom", loom(deleted("row_attrs/Gene")), DAMAGED),
    ("loom with too few names", "cells.loom", loom(
        replaced("row_attrs/Gene", np.array(["ACTB"], "S"))), DAMAGED),
    ("loom of words", "cells.loom", loom(
        replaced("matrix", np.full((8, CELLS), b"x"))), DAMAGED),
]


def of_file(path, key):
    with h5py.File(path, "r+") as file:
        replaced(key, lambda f: np.tile(f[key][:], 2))(file)


def snapshot(root):
    found = {}
    for path in sorted(root.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[path] = path.read_bytes() if is_file else path.lstat().st_mode
    return found


@pytest.mark.parametrize(("name", "spoil", "expected"), [row[1:] for row in SPOILT],
                         ids=[row[0] for row in SPOILT])
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_file_gives_one_line_or_a_finding(tmp_path, name, spoil, expected):
    path = tmp_path / name
    spoil(path)
    before = snapshot(tmp_path)
    try:
        report = check(path, panel=PANEL)
    except InputError as error:
        line = str(error)
        assert "\n" not in line and "; " in line, line
        assert path.name in line and len(line) < 400 + len(str(path)), line
        assert expected is not None and any(words in line for words in expected.split("|")), line
    else:
        said = {finding.subject for finding in report.findings if finding.level != "ok"}
        assert expected is None or said & set(expected.split("|")), (said, str(report))
        assert expected is not None or report.ok, str(report)
        text = str(report)
        assert max(map(len, text.splitlines())) <= 100 and "\x1b" not in text
        json.dumps(report.to_dict(), allow_nan=False)
    assert snapshot(tmp_path) == before


def test_there_are_enough_of_them():
    assert len({row[0] for row in SPOILT}) == len(SPOILT) >= 60


def test_a_file_that_may_not_be_read_gives_one_line(tmp_path, monkeypatch):
    path = tmp_path / "cells.h5ad"
    of()(path)

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)  # root may read everything
    with pytest.raises(InputError, match="cells.h5ad: cannot be read .Permission denied.; check"):
        reading.read(path)
