"""Figures of the codes: marks stand where the tables say, cards and maps disarm markup."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import PathPatch, Rectangle

from cellvq import InputError, atlas, cards, codeview

STATIC = Path(__file__).parents[1] / "book" / "_static"
EVIL = "</script><img src=x onerror=alert(1)>\u2028<!--\"'& $x^{$"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def codes():
    """Codes of a dictionary with two levels and a hostile name."""
    return pd.DataFrame({
        "address": ["C0", "C0.0", "C0.1", "C1", "C1.0"], "parent": ["", "C0", "C0", "", "C1"],
        "level": [0, 1, 1, 0, 1], "is_code": [False, True, True, False, True],
        "cells": [60, 40, 20, 40, 40], "fraction": [0.6, 0.4, 0.2, 0.4, 0.4],
        "donors": 3, "donor_perplexity": 2.5, "confidence": [0.5] * 4 + [np.nan],
        "stability": [0.9, 0.8, 0.2, 0.7, np.nan], "stability_null": 0.1,
        "stable": ["stable", "stable", "unstable", "stable", "not measured"],
        "markers": ["CD3D", "CD3D, IL7R", "GNLY", "LYZ", EVIL], "markers_down": "",
        "gene_sets": "", "regulons": "", "nearest": ["C1", "C0.1", "C0.0", "C0", "C0.1"],
        "nearest_distance": 1.5, "name": ["T cell", "unknown", "NK cell", EVIL, ""],
        "name_id": "", "name_evidence": ["for: CD3D (9.0)", "thin", "", EVIL, ""],
        "label": ["T", "T", EVIL, "Mono", "Mono"], "label_share": 0.8, "label_share_null": 0.5,
    })


@pytest.fixture
def markers():
    rows = [(code, gene, score, score / 2, 1e-9 if abs(score) > 2 else 0.9)
            for code in ("C0.0", "C1.0") for gene, score in
            (("CD3D", 9.0), (EVIL, 5.0), ("LYZ", -7.0), ("ACTB", 0.1))]
    columns = ["code", "gene", "score", "log2_fold_change", "fdr"]
    return pd.DataFrame(rows, columns=columns).assign(null_score=3.5, auroc=0.8)


@pytest.fixture
def places():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 2)) * [9, 3], columns=["x", "y"])
    table["cellvq_code"] = rng.choice(["C0.0", "C0.1", "C1.0"], 300)
    table.loc[:9, "cellvq_code"] = None
    table["cellvq_confidence"] = rng.random(300)
    table["cell_type"] = np.where(table.index < 50, None, EVIL)
    return table


def texts(ax):
    ax.figure.canvas.draw()
    return [text.get_text() for text in ax.texts]


def dots(ax):
    return [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets())]


def test_the_tree_hangs_every_state_below_its_parent(codes):
    ax = codeview.code_tree(codes)
    (nodes,) = dots(ax)
    place = dict(zip(sorted(codes["address"]), nodes.get_offsets(), strict=True))
    assert place["C0"][1] == (place["C0.0"][1] + place["C0.1"][1]) / 2
    assert [place[name][0] for name in ("C0", "C0.0")] == [0, 1]
    branches = [p for p in ax.patches if isinstance(p, PathPatch)]
    assert len(branches) == len(codes)
    written = texts(ax)
    assert "C1.0" in written, "a label names nothing"
    assert "C0 T cell" in written and "CD3D, IL7R" in written
    faces = dict(zip(sorted(codes["address"]), nodes.get_facecolors(), strict=True))
    assert faces["C0.1"].tolist() == [1, 1, 1, 1] and "unstable" in ax.get_xlabel()
    sizes = dict(zip(sorted(codes["address"]), nodes.get_sizes(), strict=True))
    assert sizes["C0"] > sizes["C0.0"] > sizes["C0.1"]


def test_a_tree_needs_branches_and_room(codes):
    with pytest.raises(InputError, match="flat codes"):
        codeview.code_tree(codes[codes["level"] == 1])
    with pytest.raises(InputError, match="`most`"):
        codeview.code_tree(codes, most=2)
    with pytest.raises(InputError, match="no column 'weight'"):
        codeview.code_tree(codes, color="weight")
    assert len(codeview.code_tree(codes, color="stability").figure.axes) == 2  # a colour bar


def test_stability_stands_beside_its_null():
    table = pd.DataFrame({
        "code": ["C0", "C1", "C2"], "level": 0, "stability": [0.4, 0.9, np.nan],
        "null": [0.2, 0.1, 0.1], "stable": ["unstable", "stable", "not measured"], "runs": 4,
    })
    ax = codeview.stability_plot(table)
    drawn = {line.get_label(): line for line in ax.lines}
    assert drawn["stable (1)"].get_xdata().tolist() == [0.9]
    assert drawn["unstable (1)"].get_markerfacecolor() == "white"
    assert drawn["cells shuffled"].get_xdata().tolist() == [0.1, 0.2, 0.1]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["C1", "C0", "C2"]
    assert "4 runs" in ax.get_xlabel()
    both = pd.concat([table, table.assign(level=1)])
    assert {"level 0", "level 1"} <= set(texts(codeview.stability_plot(both)))


def test_rivers_keep_their_width_and_cross_as_little_as_they_can():
    pairs = pd.DataFrame({"source": ["a", "b", "c", "a"], "target": ["z", "y", "x", "x"],
                          "cells": [50, 30, 19, 1]})
    ax = codeview.river(pairs, names=("one", "other"))
    bars = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert sorted(round(bar.get_height(), 2) for bar in bars if bar.get_x() == 0) == [
        0.19, 0.3, 0.51]
    place = {text.get_text(): text.get_position()[1] for text in ax.texts}
    order = [sorted(side, key=place.get) for side in ("abc", "xyz")]
    partner = dict(zip("abc", "zyx", strict=True))
    assert [partner[name] for name in order[0]] == order[1], "thick ribbons run straight"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["one", "other"]


def test_rivers_gather_what_is_small():
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame({"source": [f"C{i:02d}" for i in rng.integers(0, 40, 900)],
                          "target": [f"K{i:02d}" for i in rng.integers(0, 6, 900)]})
    pairs = pairs.value_counts().rename("weight").reset_index()
    ax = codeview.river(pairs, most=10)
    names = texts(ax)
    assert "others (31)" in names and len(names) == 10 + 6
    heights = [p.get_height() for p in ax.patches if isinstance(p, Rectangle) and p.get_x() == 0]
    assert sum(heights) == pytest.approx(1), "nothing is lost"
    with pytest.raises(InputError, match="nothing to draw"):
        codeview.river(pairs.assign(weight=0))


def test_sizes_count_dead_codes_and_mark_unstable_ones(codes):
    ax = codeview.usage_sizes(codes, size=8)
    heights = sorted((bar.get_height() for bar in ax.patches), reverse=True)
    assert heights == [40, 40, 20] and "5 of 8 without cells" in ax.get_title(loc="left")
    hollow = [bar.get_height() for bar in ax.patches if bar.get_facecolor() == (1, 1, 1, 1)]
    assert hollow == [20]


def test_methods_stand_by_batch_and_label():
    rows = [("CellVQ", "label_nmi", 0.7), ("CellVQ", "batch_nmi", 0.1), ("PCA", "label_nmi", 0.6),
            ("PCA", "batch_nmi", 0.2), ("odd", "label_nmi", 0.1)]
    table = pd.DataFrame(rows, columns=["method", "metric", "value"]).assign(null_mean=0.01)
    ax = codeview.biology_or_batch(table)
    points = {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in ax.lines}
    assert points["CellVQ"] == (0.1, 0.7) and points["PCA"] == (0.2, 0.6) and "odd" not in points
    assert ax.get_xlabel() == "NMI with the batch (less is better)"
    table.attrs["reason"] = "no donor is named"
    with pytest.raises(InputError, match="donor_nmi; no donor is named"):
        codeview.biology_or_batch(table, x="donor_nmi")


def test_prices_and_curves_and_agreement_stand_where_the_tables_say():
    price = pd.DataFrame({"codes": [8, 32, np.nan], "value": [0.5, 0.6, 0.7], "metric": "macro_f1",
                          "representation": ["8 codes", "32 codes", "cell vector"]})
    ax = codeview.price_of_discretising(price)
    assert ax.get_ylabel() == "macro-F1"
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn == {"codes": [0.5, 0.6], "cell vector": [0.7, 0.7]}
    curves = pd.DataFrame({"method": ["gradients"] * 2 + ["random"] * 2, "fraction": [0, 0.5] * 2,
                           "margin": [1, 0.2, 1, 0.8], "low": 0.1, "high": 0.9,
                           "direction": "deletion"})
    ax = codeview.deletion_curves(curves)
    drawn = {line.get_label(): line for line in ax.lines}
    assert drawn["gradients"].get_xdata().tolist() == [0, 50]
    assert drawn["random"].get_linestyle() == "--" and "deleted" in ax.get_xlabel()
    with pytest.raises(InputError, match="insertion"):
        codeview.deletion_curves(curves, direction="insertion")
    pairs = pd.DataFrame({"kind": "seeds", "method": "CellVQ", "ami": [0.7, 0.8]})
    summary = pd.DataFrame({"kind": ["seeds"], "method": "CellVQ", "mean": 0.75, "low": 0.6,
                            "high": 0.9, "null": 0.0})
    lines = codeview.agreement(pairs, summary).lines
    assert [line.get_xdata().tolist() for line in lines[:3]] == [[0.7, 0.8], [0.75], [0.0]]


def test_new_cells_are_counted_by_group_and_confusion_adds_up():
    cells = pd.DataFrame({"score": [0.1, 0.2, 0.3, 0.9, np.nan], "group": list("aaabb")})
    ax = codeview.novelty_histogram(cells, 0.5)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a, 3 cells", "b, 1 cells"] and "0.5" in texts(ax)[0]
    pairs = pd.DataFrame({"label": ["B", "B", "T"], "transferred": ["B", "unknown", "T"],
                          "cells": [3, 1, 4]})
    ax = codeview.confusion(pairs)
    share = ax.collections[0].get_array().reshape(2, 3)
    assert share.tolist() == [[75, 0, 25], [0, 100, 0]]
    assert ax.get_yticklabels()[0].get_text() == "B (4)"


class Tags(HTMLParser):
    """Which elements a page has, and what its text says."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.ids = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        assert not [value for name, value in attributes
                    if name in ("src", "href") and not value.startswith("#")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_cards_say_what_is_known_and_disarm_markup(codes, markers):
    sets = pd.DataFrame({
        "code": "C0.0", "collection": ["hallmark", "regulons", "hallmark"],
        "name": ["HALLMARK_HYPOXIA", EVIL, "NOT_FOUND"], "score": [5.0, 4.0, 1.0],
        "fdr": [1e-8, 0.001, 0.6], "top_genes": "ISG15, MX1",
    })
    page = cards.page(codes, markers, sets, title=EVIL, notes=[EVIL])
    read = Tags(page)
    assert "img" not in read.tags and read.tags.count("article") == 5
    assert read.tags.count("script") == 1 and page.count("</script>") == 1
    assert {"C0", "C0.0", "C1.0"} <= set(read.ids)
    for told in ("HYPOXIA", "given label, not used to name", "0.90 (chance 0.10)", "unstable",
                 "thin", "CD3D", EVIL, "in 95 % of random codes of this size it is below 3.5"):
        assert told in read.text, told
    few = cards.page(codes.assign(tested=False, name=""), markers.head(0), sets.head(0))
    assert "too few cells" in few and "marker table" not in few
    assert "ACTB" not in read.text and "NOT FOUND" not in read.text
    assert 'href="#C0.1"' in page and "no marker table was read" in read.text


def test_cards_need_only_addresses_and_stay_small():
    bare = pd.DataFrame({"address": ["C0"], "cells": [3]})
    assert "C0" in Tags(cards.page(bare, pd.DataFrame(), pd.DataFrame())).text
    names = [f"C{i:03d}" for i in range(576)]
    many = pd.DataFrame({"address": names, "cells": 9, "name": "cell", "markers": "A, B"})
    genes = pd.DataFrame({"code": np.repeat(names, 40), "gene": "GENE-1234", "score": 9.0,
                          "log2_fold_change": 2.0, "auroc": 0.8, "fdr": 1e-20})
    sets = pd.DataFrame({"code": np.repeat(names, 20), "collection": "go", "score": 5.0,
                         "name": "GOBP_" + "LONG_NAME_" * 6, "fdr": 1e-9,
                         "top_genes": "ISG15, MX1, IFIT1, IFIT2"})
    page = cards.page(many, genes, sets)
    assert len(page.encode()) < 3e6 and page.count("<article") == 576


def read_spec(figure):
    page = figure._repr_html_()
    assert re.findall(r"<(/?\w+)", page) == ["div", "script", "/script", "noscript", "p", "/p",
                                             "/noscript", "/div"]
    spec = json.loads(re.search(r'<script type="application/json">(.*)</script>', page, re.S)[1])
    assert spec == figure.spec
    return spec


def test_the_atlas_holds_every_coded_cell_on_a_grid(places, codes, markers):
    figure = atlas.atlas(places, codes, markers=markers, columns=["cell_type"], title=EVIL,
                         alt=EVIL)
    spec = read_spec(figure)
    cells, states = spec["cells"], spec["states"]
    assert {len(cells[key]) for key in cells} == {290} and spec["note"] == "290 cells."
    assert min(cells["x"]) == 0 and max(cells["x"]) == max(cells["y"]) == spec["grid"]
    found = pd.Series([states[i]["address"] for i in cells["code"]]).value_counts()
    assert found.to_dict() == places["cellvq_code"].value_counts().to_dict()
    assert [state["address"] for state in states] == sorted(codes["address"])
    assert [state["parent"] for state in states] == [-1, 0, 0, -1, 3]
    assert states[1]["genes"] == ["CD3D", EVIL] and states[2]["genes"] == ["GNLY"]
    assert ["part of", 0] in states[1]["links"] and ["nearest", 2] in states[1]["links"]
    looks = {look["name"]: look for look in spec["looks"]}
    assert set(looks) == {"suggested name", "stability flag", "stability", "cell_type",
                          "confidence"}
    assert looks["cell_type"]["groups"] == [EVIL] and -1 in looks["cell_type"]["values"]
    assert len(looks["confidence"]["values"]) == 290
    assert max(looks["confidence"]["values"]) == len(spec["scale"]) - 1
    assert looks["stability"]["values"][-1] == -1, "what was not measured has no shade"


def test_the_atlas_samples_and_says_so(places, codes):
    spec = read_spec(atlas.atlas(places, codes, most=100))
    assert len(spec["cells"]["x"]) == 100 and "100 of 290 cells" in spec["note"]
    many = places.dropna().sample(20_000, replace=True, random_state=0, ignore_index=True)
    assert len(atlas.atlas(many, codes, columns=["cell_type"])._repr_html_()) < 1e6


def test_the_atlas_refuses_tables_that_do_not_fit(places, codes):
    with pytest.raises(InputError, match="lacks C1.0"):
        atlas.atlas(places, codes[codes["address"] != "C1.0"])
    with pytest.raises(InputError, match="no column 'typ'"):
        atlas.atlas(places, codes, columns=["typ"])
    with pytest.raises(InputError, match="no cell has a code"):
        atlas.atlas(places.assign(cellvq_code=None), codes)


def test_the_moving_tree_keeps_parents_and_names(codes):
    spec = read_spec(atlas.tree(codes, title=EVIL))
    assert [state["parent"] for state in spec["states"]] == [-1, 0, 0, -1, 3]
    assert spec["states"][3]["name"] == EVIL and spec["states"][2]["unstable"]
    assert ["stability", "0.20 (chance 0.10), unstable"] in spec["states"][2]["facts"]


@pytest.mark.skipif(BROWSER is None, reason="needs the chromium browser")
def test_a_browser_draws_map_tree_and_cards(places, codes, markers, tmp_path):
    shown = [atlas.atlas(places, codes, columns=["cell_type"]), atlas.tree(codes)]
    scripts = "".join(f'<script defer src="{(STATIC / name).as_uri()}"></script>'
                      for name in ("cellvq-figure.js", "cellvq-atlas.js"))
    search = """<script>onload = () => document.querySelectorAll(".cvf-find").forEach((field) => {
        field.value = "NK cell"; field.dispatchEvent(new Event("input")); });</script>"""
    pages = {
        "figures": f"<!doctype html><meta charset=utf-8>{''.join(f._repr_html_() for f in shown)}"
                   f"{scripts}{search}",
        "cards": cards.page(codes, markers, pd.DataFrame()),
    }
    found = {}
    for name, text in pages.items():
        page = tmp_path / f"{name}.html"
        page.write_text(text, encoding="utf-8")
        found[name] = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--virtual-time-budget=2000", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=60, check=True)
        assert "<img" not in found[name].stdout
        assert "Uncaught" not in found[name].stderr and "could not" not in found[name].stdout
    drawn = found["figures"].stdout
    assert drawn.count('data-drawn="1"') == 2 and drawn.count("cvf-drawing") == 2
    assert "suggested name of 1 of 3" in drawn and "cvf-found" in drawn
    assert "5 of 5 cards" in found["cards"].stdout
