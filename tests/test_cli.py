"""The command line: its words are a promise, and every mistake ends in one line."""

import hashlib
import json
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest

import cellvq
from cellvq import datasets, registry, simulate
from cellvq.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one file of cells and, pretrained on it by the command line, one model."""
    folder = tmp_path_factory.mktemp("cli")
    cells = simulate.simulate_cells(cells=160, seed=5)
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X.toarray())
    cells.obs["patient"] = cells.obs["donor"].astype(str)
    cells.write_h5ad(folder / "cells.h5ad")
    assert main(["pretrain", str(folder / "cells.h5ad"), "--preset", "tiny", "--batch", "batch",
                 "--steps", "2", "--seed", "3", "--checkpoint-every", "1",
                 "--output", str(folder / "model")]) == 0
    return folder


def one_line(capsys, status, *arguments):
    """Run a command that must fail with one line, and give the line."""
    try:
        assert main([str(word) for word in arguments]) == status
    except SystemExit as end:  # argparse ends in this way
        assert end.code == status
    printed = capsys.readouterr()
    assert printed.err.startswith("cellvq: ") and printed.err.count("\n") == 1
    return printed.err


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_verb_has_help_with_an_example(capsys):
    for verb in ("check", "pretrain", "finetune", "import-official", "encode", "codes", "fetch",
                 "corpus", "bench", "benchmark", "book"):
        with pytest.raises(SystemExit) as end:
            main([verb, "--help"])
        assert end.value.code == 0 and f"Example: cellvq {verb}" in capsys.readouterr().out


def test_module_and_version():
    run = subprocess.run([sys.executable, "-m", "cellvq", "--version"], capture_output=True,
                         text=True, check=True)
    assert run.stdout == f"cellvq {cellvq.__version__}\n"


def test_check_speaks_to_people_and_to_programs(folder, capsys):
    file = str(folder / "cells.h5ad")
    assert main(["check", file, "--label", "cell_type", "--batch", "patient"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("cells.h5ad: 160 cells x 400 genes, ready for CellVQ.")
    assert 'found in layers["counts"]' in page and "patient (" in page
    assert main(["check", file, "--json", "--model", str(folder / "model")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] and record["panel_matched"] == record["panel_genes"] > 300


def test_check_of_a_file_that_cannot_be_used_ends_with_2(tmp_path, capsys):
    cells = simulate.simulate_cells(cells=20)
    cells.X = np.log1p(cells.X.toarray()) * 0.9  # out of log1p alone the counts come back
    cells.write_h5ad(tmp_path / "logged.h5ad")
    assert main(["check", str(tmp_path / "logged.h5ad")]) == 2
    assert "error: No raw counts: X holds values such as" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "logged.h5ad"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["check", "simulated", "--label", "celltype"]) == 2
    assert "there is no column 'celltype'" in capsys.readouterr().out.lower()


def test_pretrain_writes_a_model_and_says_where(folder):
    assert {"model.safetensors", "config.json", "history.jsonl"} <= {
        path.name for path in (folder / "model").iterdir()
    }


def test_encode_adds_to_the_file_and_keeps_what_was_there(folder, capsys):
    source, output = folder / "cells.h5ad", folder / "new" / "encoded.h5ad"
    before = digest(source)
    assert main(["encode", str(source), "--model", str(folder / "model"),
                 "--output", str(output)]) == 0
    assert "160 cells have one of" in capsys.readouterr().out
    cells, encoded = anndata.read_h5ad(source), anndata.read_h5ad(output)
    assert digest(source) == before and (encoded.X == cells.X).all()
    assert (encoded.obs[list(cells.obs)] == cells.obs).all(axis=None)
    assert encoded.obsm["X_cellvq"].shape == encoded.obsm["X_cellvq_code"].shape
    assert encoded.obs["cellvq_code"].str.fullmatch(r"C\d\.\d+").all()
    assert encoded.obs["cellvq_confidence"].between(0, 1).all()
    assert simulate.truth(encoded)["markers"].equals(simulate.truth(cells)["markers"])
    assert [path.name for path in output.parent.iterdir()] == ["encoded.h5ad"]


def test_codes_writes_a_dictionary_with_the_model_that_encoded(folder, tmp_path, capsys):
    encoded, output = tmp_path / "encoded.h5ad", tmp_path / "dictionary"
    assert main(["encode", str(folder / "cells.h5ad"), "--model", str(folder / "model"),
                 "--output", str(encoded)]) == 0
    planted = simulate.truth(anndata.read_h5ad(encoded))["markers"]
    planted.to_csv(tmp_path / "mine.csv", index=False)
    sets = "".join(f"{kind}\tplanted\t" + "\t".join(part["gene"]) + "\n"
                   for kind, part in planted.groupby("cell_type"))
    (tmp_path / "mine.gmt").write_text(sets)
    before, codes = digest(encoded), ["codes", str(encoded), "--output", str(output)]
    assert main([*codes, "--label", "cell_type", "--donor", "donor", "--batch", "batch",
                 "--runs", str(encoded), "--markers", str(tmp_path / "mine.csv"),
                 "--gene-sets", str(tmp_path / "mine.gmt")]) == 0
    said = capsys.readouterr().out
    assert "index.html" in said and "stable" in said and digest(encoded) == before
    table = pd.read_parquet(output / "codes.parquet")
    assert set(table["level"]) == {0, 1} and (table["stability"] == 1).all()  # the same run twice
    named = table[table["is_code"] & ~table["name"].isin(["", "unknown"])]
    assert len(named) and (named["name"] == named["label"]).mean() > 0.8
    decoded = pd.read_parquet(output / "decoded.parquet")  # the model was where it had been
    assert decoded.shape[0] == len(table) and np.isfinite(decoded.to_numpy()).all()
    assert "stability was measured in other runs" in (output / "README.md").read_text()
    assert "holds a dictionary" in one_line(capsys, 2, *codes)
    assert main([*codes, "--overwrite"]) == 0
    assert "with --runs" in (output / "README.md").read_text()


@pytest.mark.parametrize("flags, message", [
    (["--label", "celltype"], "no column 'celltype'"),
    (["--gene-sets", "nowhere.gmt"], "nowhere.gmt"),
    (["--markers", "nowhere.csv"], "nowhere.csv"),
    (["--model", "nowhere"], "no model here"),
])
def test_codes_of_wrong_input_are_one_clear_line(folder, tmp_path, capsys, flags, message):
    encoded = tmp_path / "encoded.h5ad"
    main(["encode", str(folder / "cells.h5ad"), "--model", str(folder / "model"),
          "--output", str(encoded)])
    capsys.readouterr()
    line = one_line(capsys, 2, "codes", str(encoded), "--output", str(tmp_path / "d"), *flags)
    assert message in line and not (tmp_path / "d").exists()


def test_codes_of_cells_that_are_not_encoded(folder, tmp_path, capsys):
    line = one_line(capsys, 2, "codes", folder / "cells.h5ad", "--output", tmp_path / "d")
    assert "encode the cells first" in line


def test_flags_of_encode_reach_the_model(folder, tmp_path):
    encode = ["encode", str(folder / "cells.h5ad"), "--model", str(folder / "model"), "--output"]
    said = {}
    for name, flags in (("plain", []), ("deep", ["--target-depth", "4"]),
                        ("rough", ["--precision", "bfloat16"])):
        assert main([*encode, str(tmp_path / f"{name}.h5ad"), *flags]) == 0
        said[name] = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
    assert said["deep"].uns["cellvq"]["target_depth"] == "10000.0"
    assert said["rough"].uns["cellvq"]["precision"] == "bfloat16"
    vectors = [cells.obsm["X_cellvq"] for cells in said.values()]
    assert not any(np.array_equal(vectors[0], other) for other in vectors[1:])


def test_a_model_is_made_nested_gone_on_with_and_taught(folder, tmp_path, capsys):
    file, model, tuned = str(folder / "cells.h5ad"), str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["pretrain", file, "--steps", "2", "--quantizer", "nested", "--codes", "4,8",
                 "--property", "cell_type", "--set", "training.hidden_share=0.4",
                 "--output", model]) == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["model"]["quantizer"]["prefixes"] == [4]
    assert config["run"]["training"]["hidden_share"] == 0.4
    assert list(config["properties"]) == ["cell_type"]
    assert main(["pretrain", file, "--init", model, "--steps", "1", "--output", tuned]) == 0
    assert main(["finetune", file, "--model", model, "--label", "cell_type", "--parts", "head",
                 "--output", tuned, "--overwrite"]) == 0
    assert "of the labelled validation cells" in capsys.readouterr().out.lower()


def test_bench_speaks_json(capsys):
    assert main(["bench", "model", "--genes", "20", "--cells", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["whole model"]["cells"] == 2


def test_encode_never_harms_a_file(folder, tmp_path, capsys, monkeypatch):
    source, model = folder / "cells.h5ad", folder / "model"
    output, before = tmp_path / "encoded.h5ad", digest(source)
    encode = ("encode", source, "--model", model, "--output")
    assert "the input itself" in one_line(capsys, 2, *encode, source, "--overwrite")
    assert "must end in .h5ad" in one_line(capsys, 2, *encode, tmp_path / "encoded.csv")
    (tmp_path / "folder.h5ad").mkdir()
    assert "this is a folder" in one_line(capsys, 2, *encode, tmp_path / "folder.h5ad")
    output.write_text("an earlier result")
    assert "add --overwrite" in one_line(capsys, 2, *encode, output)

    def write_half(self, path):
        path.write_text("half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", write_half)
    line = one_line(capsys, 2, *encode, output, "--overwrite")
    assert "No space left on device" in line and output.read_text() == "an earlier result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoded.h5ad", "folder.h5ad"]
    monkeypatch.undo()
    assert main([str(word) for word in (*encode, output, "--overwrite")]) == 0
    assert anndata.read_h5ad(output).n_obs == 160 and digest(source) == before


@pytest.mark.parametrize(("arguments", "words"), [
    (["check", "none.h5ad"], "none.h5ad: there is no such file"),
    (["check", "."], "this is a folder"),
    (["check", "pbmc30k"], "neither a file nor a known data set"),
    (["check", __file__], "not an .h5ad file"),
    (["check"], "FILE; see cellvq check --help"),
    (["check", "simulated", "--lable", "x"], "unrecognized arguments: --lable x"),
    (["chekc", "simulated"], "invalid choice: 'chekc'"),
    (["pretrain", "none.h5ad", "--output", "OUT"], "none.h5ad: there is no such file"),
    (["pretrain", "simulated"], "--output"),
    (["pretrain", "simulated", "--preset", "huge", "--output", "OUT"], "'huge'"),
    (["pretrain", "simulated", "--batch", "lane", "--output", "OUT"], "'lane'"),
    (["pretrain", "simulated", "--steps", "0", "--output", "OUT"], "whole number above 0"),
    (["pretrain", "simulated", "--minutes", "nan", "--output", "OUT"], "number above 0"),
    (["pretrain", "simulated", "--minutes", "1", "--steps", "2", "--output", "OUT"], "choose one"),
    (["pretrain", "simulated", "--set", "training.speed=3", "--output", "OUT"], "is no setting"),
    (["pretrain", "simulated", "--set", "fast", "--output", "OUT"], "not NAME=VALUE"),
    (["pretrain", "simulated", "--engine", "zip", "--output", "OUT"], "no engine is called 'zip'"),
    (["finetune", "simulated", "--model", "nowhere", "--label", "x", "--output", "OUT"], "nowhere"),
    (["import-official", "none.ckpt", "--output", "OUT"], "none.ckpt: cannot be read"),
    (["bench", "model", "--preset", "vast"], "no preset is called 'vast'"),
    (["encode", "simulated", "--model", "nowhere", "--output", "OUT.h5ad"], "nowhere"),
    (["book", "--profile", "nowhere"], "nowhere"),
])
def test_mistakes_end_in_one_line(arguments, words, capsys, tmp_path):
    arguments = [word.replace("OUT", str(tmp_path / "out")) for word in arguments]
    assert words in one_line(capsys, 2, *arguments)
    assert not list(tmp_path.iterdir())  # nothing half-made stays behind


def test_encode_of_cells_the_model_does_not_know(folder, tmp_path, capsys):
    cells = simulate.simulate_cells(cells=20)
    cells.var_names = [f"Gene{i}" for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "strange.h5ad")
    line = one_line(capsys, 2, "encode", tmp_path / "strange.h5ad", "--model", folder / "model",
                    "--output", tmp_path / "out.h5ad")
    assert "no gene of the cells is known to the model" in line
    assert not (tmp_path / "out.h5ad").exists()


def test_interruption_is_one_line(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cellvq.pretraining.pretrain", interrupt)
    status = main(["pretrain", "simulated", "--output", "out"])
    printed = capsys.readouterr().err
    assert status == 130 and "interrupted; go on with the same command and --resume" in printed


def test_a_book_with_failed_pages_ends_with_1(monkeypatch):
    class Result:
        ok = False

    monkeypatch.setattr("cellvq.book.build_book", lambda profile: Result())
    assert main(["book", "--profile", "smoke"]) == 1
    Result.ok = True
    assert main(["book"]) == 0


def test_a_corpus_is_built_and_trained_on_from_the_disk(folder, tmp_path, capsys):
    file, output, model = folder / "cells.h5ad", tmp_path / "corpus", tmp_path / "model"
    panel = tmp_path / "panel.txt"
    genes = list(anndata.read_h5ad(file).var_names[:120])
    panel.write_text("\n".join(genes))
    build = ["corpus", "build", str(file), "simulated", "--min-genes", "30", "--columns",
             "donor,cell_type", "--seed", "3", "--panel", str(panel), "--output", str(output)]
    assert main(build) == 0
    said = capsys.readouterr().out
    assert "1,660 cells x 120 genes of 2 source(s)" in said and f"cellvq pretrain {output}" in said
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["seed"] == 3 and manifest["filters"]["min_genes"] == 30
    assert manifest["columns"][4:] == ["donor", "cell_type"]
    assert "holds a corpus" in one_line(capsys, 2, *build)
    assert main([*build, "--overwrite"]) == 0
    assert main(["pretrain", str(output), "--stream", "--panel", str(panel), "--donor", "donor",
                 "--steps", "2", "--codes", "8", "--output", str(model)]) == 0
    assert cellvq.load(model).panel == genes
    capsys.readouterr()
    assert "nothing to build" in one_line(capsys, 2, "corpus", "build", "--output", tmp_path / "n")
    assert "no panel of genes" in one_line(capsys, 2, *build[:-2], "--output", tmp_path / "n",
                                           "--panel", tmp_path / "none.txt")


def test_genes_are_found_by_older_names_when_asked(folder, tmp_path, capsys, monkeypatch):
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    old = {name: f"OLD{number}" for number, name in enumerate(cells.var_names[:150])}
    table = pd.DataFrame({"symbol": list(old), "prev_symbol": list(old.values()),
                          "alias_symbol": "", "ensembl_gene_id": ""})
    monkeypatch.setattr(registry, "table", lambda name: {"hgnc": table}[name])
    cells.var_names = [old.get(name, name) for name in cells.var_names]
    cells.write_h5ad(tmp_path / "old.h5ad")
    encode = ["encode", str(tmp_path / "old.h5ad"), "--model", str(folder / "model"), "--output"]
    assert main([*encode, str(tmp_path / "plain.h5ad")]) == 0
    assert main([*encode, str(tmp_path / "found.h5ad"), "--gene-table", "hgnc"]) == 0
    matched = [anndata.read_h5ad(tmp_path / f"{name}.h5ad").uns["cellvq"]["genes_matched"]
               for name in ("plain", "found")]
    assert matched[1] - matched[0] == len(set(old) & set(cellvq.load(folder / "model").panel)) > 50
    assert main(["pretrain", str(tmp_path / "old.h5ad"), "--gene-table", "hgnc", "--steps", "1",
                 "--codes", "8", "--output", str(tmp_path / "model")]) == 0
    assert not [name for name in cellvq.load(tmp_path / "model").panel if name.startswith("OLD")]
    capsys.readouterr()
    check = ["check", str(tmp_path / "old.h5ad"), "--model", str(folder / "model")]
    assert main([*check, "--gene-table", "hgnc", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["panel_matched_by_table"] == matched[1]


def test_fetch_says_where_and_refuses_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(datasets, "fetch", lambda name, unverified: tmp_path / f"{name}.h5ad")
    assert main(["fetch", "pbmc3k"]) == 0
    assert capsys.readouterr().out == f"pbmc3k is in {tmp_path / 'pbmc3k.h5ad'}.\n"
    monkeypatch.undo()
    assert "not in the registry" in one_line(capsys, 2, "fetch", "pbmc30k")
