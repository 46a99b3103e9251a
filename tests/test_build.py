"""A corpus on the disk: what goes in comes out, and the manifest says what did not."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest

from cellvq import InputError, build, corpus, panels, shards
from cellvq.config import TrainingConfig
from cellvq.shards import Shards
from cellvq.simulate import simulate_cells


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of different genes; in the first an empty cell, a poor one and a copy."""
    folder = tmp_path_factory.mktemp("files")
    cells = simulate_cells(cells=700, genes=200, seed=4)
    first, second = cells[:400, :180].copy(), cells[400:, 20:].copy()
    dense = first.X.toarray()
    dense[7], dense[8, 3:], dense[9] = 0, 0, dense[10]
    dense[8, :3] = 1
    first.X = type(first.X)(dense)
    first.obs["only here"] = "x"
    first.write_h5ad(folder / "first.h5ad")
    second.write_h5ad(folder / "second.h5ad")
    return [folder / "first.h5ad", folder / "second.h5ad"]


def made(files, output, **options):
    options = {"min_genes": 5, "progress": False} | options
    return build.build(corpus.open_all(files), output, **options)


@pytest.fixture(scope="module")
def built(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("corpus") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SHARD_VALUES", 8000)
        return output, made(files, output)


def test_every_cell_is_there_once_with_its_counts_and_labels(files, built):
    output, manifest = built
    source = Shards(output)
    assert len(source) == manifest["cells"] == 697 and len(manifest["shards"]) > 2
    originals = [anndata.read_h5ad(path) for path in files]
    counts = pd.DataFrame(source.read([range(697)]).toarray(), columns=source.var.index)
    for number, cells in enumerate(originals):
        mine = (source.column("source") == files[number].stem).to_numpy()
        names = source.names()[mine]
        assert len(set(names)) == len(names) == [397, 300][number]
        wanted = cells[names]
        assert (counts.loc[mine, wanted.var_names].to_numpy() == wanted.X.toarray()).all()
        assert not counts.loc[mine, counts.columns.difference(wanted.var_names)].any(axis=None)
        types = source.column("cell_type")[mine].astype(str).to_numpy()
        assert (types == wanted.obs["cell_type"].astype(str)).all()
        depth = source.known_depth()[mine]
        assert (depth == np.asarray(wanted.X.sum(1)).ravel()).all()
    # ranges over the borders of shards, in any order
    rows = [range(690, 697), range(0, 300), range(299, 301)]
    flat = np.concatenate([list(part) for part in rows])
    assert (source.read(rows).toarray() == counts.to_numpy()[flat]).all()


def test_the_manifest_says_what_was_left_out_and_why(files, built):
    output, manifest = built
    first, second = manifest["sources"]
    assert first["left_out"] == {"copies": 1, "fewer than 5 genes": 1, "empty": 1}
    assert second["left_out"] == {} and second["kept"] == 300
    left = pd.read_csv(output / "left_out.csv").set_index("reason")["cell"]
    names = anndata.read_h5ad(files[0]).obs_names
    assert left.to_dict() == {"empty": names[7], "fewer than 5 genes": names[8],
                              "copies": names[10]}
    assert len(first["sha256"]) == 64 and manifest["genes"] == 200
    genes = pd.read_parquet(output / "genes.parquet").set_index("gene")
    assert genes.sum().to_dict() == {"measured in part 0": 180, "measured in part 1": 180}
    assert {"only here", "donor"} <= set(manifest["columns"])
    here = Shards(output).column("only here").notna().to_numpy()
    assert (here == (Shards(output).column("source") == "first")).all()
    assert "700 cells" not in build.in_words(manifest) and "697 cells" in build.in_words(manifest)


def test_shards_are_shuffled_and_others_can_read_them(built):
    output, manifest = built
    cells = anndata.read_zarr(output / manifest["shards"][0]["folder"])
    assert cells.obs["source"].nunique() == 2 and cells.X.shape[1] == 200
    files = pd.Series(Shards(output).column("source").astype(str).to_numpy())
    runs = (files != files.shift()).sum()
    assert runs > 0.7 * 2 * 697 * (397 / 697) * (300 / 697)  # as many as in a random order


def test_it_is_the_same_again_and_another_with_another_seed(files, built, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SHARD_VALUES", 8000)
    output, manifest = built
    assert made(files, tmp_path / "again") == manifest
    other = made(files, tmp_path / "other", seed=1)
    assert other["shards"][0]["sha256"] != manifest["shards"][0]["sha256"]


def test_an_interrupted_building_is_resumed(files, built, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SHARD_VALUES", 8000)
    write, written = shards.write_shard, []

    def interrupted(folder, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(folder)
        write(folder, *arguments)

    monkeypatch.setattr(shards, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(files, tmp_path / "corpus")
    with pytest.raises(InputError, match="no corpus here .*finish it with --resume"):
        Shards(tmp_path / "corpus")
    with pytest.raises(InputError, match="resume it if it was interrupted"):
        made(files, tmp_path / "corpus")
    with pytest.raises(InputError, match="begun from other cells or settings"):
        made(files, tmp_path / "corpus", resume=True, seed=5)
    written.clear()
    monkeypatch.setattr(shards, "write_shard",
                        lambda folder, *rest: (written.append(folder), write(folder, *rest)))
    assert made(files, tmp_path / "corpus", resume=True) == built[1]
    assert len(written) == len(built[1]["shards"]) - 2


def test_what_is_there_is_not_lost(files, built, tmp_path):
    (tmp_path / "mine.txt").write_text("a thesis")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds other files"):
            made(files, tmp_path, overwrite=overwrite)
    assert (tmp_path / "mine.txt").read_text() == "a thesis"
    with pytest.raises(InputError, match="holds a corpus; name another"):
        made(files, built[0])
    with pytest.raises(InputError, match="no cell is left of 700: .*fewer than 300 genes"):
        made(files, tmp_path / "none", min_genes=300)
    with pytest.raises(InputError, match="no column 'nowhere' in obs of any source; there are: "):
        made(files, tmp_path / "columns", columns=["nowhere"])


def test_a_damaged_corpus_is_one_clear_line(files, tmp_path):
    output = tmp_path / "corpus"
    made(files, output)
    manifest = json.loads((output / "manifest.json").read_text())
    for change, words in (({"format": 99}, "format 99"), ({"shards": []}, "do not hold the cells")):
        (output / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(InputError, match=words):
            Shards(output)
    (output / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="damaged; build the corpus again"):
        Shards(output)
    (output / "manifest.json").write_text(json.dumps(manifest))
    data = next((output / "dataset_0" / "X" / "data" / "c").iterdir())
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged or cut off"):
        Shards(output).read([range(10)])


def test_training_on_a_corpus_knows_which_genes_were_measured(built):
    output, manifest = built
    data = corpus.gather(output, 2000, None, "donor", TrainingConfig(), stream=True)
    assert len(data.panel) == 200 and data.batches == []
    assert data.measured.sum(1).tolist() == [180, 180]
    rows = data.step(TrainingConfig(), 0, slice(0, 64))
    assert rows.measured.shape == (64, 200) and not rows.counts.toarray()[~rows.measured].any()


def test_a_panel_comes_from_a_file_or_by_name(tmp_path):
    path = tmp_path / "panel.txt"
    path.write_text("CD3D\tany\nLYZ\n\nCD3D\n")
    assert panels.read(path) == ["CD3D", "LYZ"]
    with pytest.raises(InputError, match="no panel of genes can be read here"):
        panels.read(tmp_path / "none.txt")
    path.write_text("\n")
    with pytest.raises(InputError, match="no gene is named"):
        panels.read(path)


def test_genes_are_chosen_by_the_cells_that_measured_them(built, files):
    chosen = panels.choose(corpus.open_all(files), [np.ones(400, bool), np.ones(300, bool)], 60, 0)
    of_corpus = panels.choose([Shards(built[0])], [np.ones(697, bool)], 60, 0)
    assert len(set(chosen) & set(of_corpus)) > 50  # the corpus knows its parts
    genes = pd.read_parquet(built[0] / "genes.parquet").set_index("gene").loc[of_corpus]
    assert genes.to_numpy().all()  # enough vary in both files: none that one did not measure
