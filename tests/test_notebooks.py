"""Notebooks are committed clean and are built alike; the checker sees what it should see."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cellvq import notebooks, profiles

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "book").rglob("*.ipynb"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", COMMITTED, ids=name)
def test_committed_notebook_is_fit(path):
    assert notebooks.check(notebooks.read(path)) == []


@pytest.mark.parametrize("path", COMMITTED, ids=name)
def test_notebook_has_the_anatomy_of_all(path):
    headings = [line.lstrip("# ").lower() for cell in notebooks.read(path).cells
                if cell.cell_type == "markdown" for line in cell.source.splitlines()
                if line.startswith("## ")]
    for part in ("the result first", "what could be wrong", "exercise", "takeaways"):
        assert any(heading.startswith(part) for heading in headings), f"no section `{part}`"
    assert "dataset" in profiles.declared_parameters(path)


def test_every_notebook_is_in_the_contents():
    listed = {f"{page}.ipynb" for page in profiles.contents(ROOT)}
    assert {name(path) for path in COMMITTED} <= listed


def test_one_word_means_one_thing_in_every_notebook():
    meanings = {}
    for path in COMMITTED:
        for parameter, about in profiles.declared_parameters(path).items():
            meanings.setdefault(parameter, set()).add(about.type)
    assert {key: types for key, types in meanings.items() if len(types) > 1} == {}


def fit_notebook():
    """A small notebook without any fault."""
    notebook = new_notebook(metadata={"cellvq": {
        "question": "Why?", "learn": ["a thing"], "needs": ["nothing"], "minutes_read": 1,
        "data": "none"}})
    notebook.cells = [
        new_markdown_cell("# A title\n\nA question?", id="title"),
        new_code_cell("import math", id="imports", metadata={"tags": ["imports"]}),
        new_code_cell("seed: int = 0  # random seed", id="parameters",
                      metadata={"tags": ["parameters"]}),
        new_code_cell("math.pi", id="result"),
    ]
    return notebooks.strip(notebook)


def change(cell: int, **values):
    def apply(notebook):
        for key, value in values.items():
            notebook.cells[cell][key] = value
    return apply


def test_a_fit_notebook_passes_and_survives_the_disk(tmp_path):
    notebooks.write(fit_notebook(), tmp_path / "a.ipynb")
    assert notebooks.check(notebooks.read(tmp_path / "a.ipynb")) == []
    nbformat.validate(notebooks.read(tmp_path / "a.ipynb"))


@pytest.mark.parametrize(("spoil", "complaint"), [
    (change(3, outputs=[new_output("stream", text="x")]), "outputs"),
    (change(3, execution_count=3), "traces of a run"),
    (change(3, id="3f2a9c01"), "no word"),
    (change(3, id="imports"), "twice"),
    (change(3, source="# comment\n" * 16), "16 lines"),
    (change(3, source="x = '" + "a" * 90 + "'"), "columns"),
    (change(3, source="import warnings\nwarnings.filterwarnings('ignore')"), "filters warnings"),
    (change(3, metadata={"tags": ["parameters"]}), "exactly one code cell with the tag `param"),
    (change(2, source="seed = 0"), "is not `name: type = default"),
    (change(0, source="No title"), "title"),
    (change(3, metadata={"mystnb": {"figure": {"name": "f", "caption": "c"}}}), "alternative text"),
    (lambda notebook: notebook.metadata["cellvq"].pop("learn"), "'learn'"),
])
def test_each_fault_is_seen(spoil, complaint):
    notebook = fit_notebook()
    spoil(notebook)
    assert any(complaint in fault for fault in notebooks.check(notebook))


def test_strip_takes_out_what_a_run_left():
    notebook = fit_notebook()
    notebook.cells[3].outputs = [new_output("stream", text="x")]
    notebook.cells[3].metadata["execution"] = {"iopub.status.idle": "now"}
    notebook.metadata["papermill"] = {"input_path": "elsewhere"}
    assert notebooks.strip(notebook) == fit_notebook()


def test_a_dressed_page_tells_no_paths_or_times_and_cannot_be_broken_by_a_value():
    notebook = fit_notebook()
    notebook.metadata["papermill"] = {"input_path": "/home/somebody/a.ipynb"}
    notebook.cells.insert(3, new_code_cell("seed = 1", metadata={
        "tags": ["injected-parameters"], "papermill": {"start_time": "now"}}))
    page = notebooks.dress(notebook, seconds=75, parameters={"seed": ("a|b", "random | seed")},
                           provenance={"Profile": "x|y"})
    text = nbformat.writes(page)
    assert "somebody" not in text and "start_time" not in text
    cells = {cell.id: cell for cell in page.cells}
    assert "1 min 15 s to run" in cells["at-a-glance"].source
    assert r"| `seed` | `a\|b` | random \| seed |" in cells["parameters-of-this-run"].source
    assert r"x\|y" in page.cells[-1].source
    assert "remove-cell" in cells["parameters"].metadata.tags
    assert "remove-cell" in cells["injected-parameters"].metadata.tags
