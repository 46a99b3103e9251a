"""The runner on a tiny book; then the real book on simulated cells, read as a browser reads it."""

import hashlib
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import urllib.parse
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cellvq import InputError, book, notebooks, profiles

BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
OFFLINE = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --allow-file-access-from-files
    --enable-logging=stderr --v=0 --virtual-time-budget=8000""".split()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")


def notebook(path: Path, code: str, parameters: str = "") -> None:
    """Write a notebook with a title, parameters and one cell named ``work``."""
    made = new_notebook(metadata={"kernelspec": {
        "display_name": "Python 3", "language": "python", "name": "python3"}})
    parameters = f'dataset: str = ""  # data\noutput: str = ""  # folder\n{parameters}'.strip()
    made.cells = [
        new_markdown_cell(f"# {path.stem.capitalize()}", id="title"),
        new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell(textwrap.dedent(code).strip(), id="work"),
    ]
    notebooks.write(made, path)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A clone with two notebooks, of which the second reads what the first wrote."""
    root = tmp_path / "clone"
    (root / "book" / "profiles").mkdir(parents=True)
    (root / "book" / "_static").mkdir()
    (root / "book" / "index.md").write_text("# A tiny book\n")
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n"
                                   "- file: book/first\n- file: book/second\n")
    (root / "_config.yml").write_text(
        'title: Tiny\nonly_build_toc_files: true\nexecute:\n  execute_notebooks: "off"\n')
    (root / "book/profiles/default.yml").write_text("steps: 3\n")
    notebook(root / "book/first.ipynb",
             "from pathlib import Path\nPath(output, 'a.txt').write_text(str(steps))",
             "steps: int = 1  # steps")
    notebook(root / "book/second.ipynb",
             "from pathlib import Path\nprint('read', Path(output, 'a.txt').read_text(), word)",
             'word: str = "x"  # a word')
    (tmp_path / "package").mkdir()
    monkeypatch.setattr(book, "PACKAGE", tmp_path / "package")
    monkeypatch.chdir(root)
    return root


def states(root: Path, profile: str = "default") -> list[str]:
    result = book.build_book(profile, root=root, execute_only=True, progress=False)
    assert result.ok, result.problems
    return [page.state for page in result.pages]


def printed(root: Path, name: str = "second") -> str:
    page = notebooks.read(root / "_build/default/executed/book" / f"{name}.ipynb")
    return "".join(output.get("text", "") for cell in page.cells if cell.id == "work"
                   for output in cell.outputs)


# Refused before anything runs


@pytest.mark.parametrize(("profile", "complaint"), [
    ("step: 3", "no notebook has a parameter `step`; did you mean steps?"),
    ("notebook:\n  book/first: {steps: 1}", "did you mean notebooks?"),
    ("notebooks:\n  book/frist: {steps: 1}", "did you mean book/first?"),
    ("notebooks:\n  book/second: {steps: 1}", "book/second has no parameter `steps`"),
    ("notebooks:\n  book/second: 3", "needs indented lines"),
    ("output: elsewhere", "no notebook has a parameter `output`"),
    ("steps: many", "`steps` is 'many', but the notebook wants int"),
    ("steps: true", "but the notebook wants int"),
    ("dataset: cells.h5ad", "there is no file"),
    ("dataset: folder/cells", "there is no file"),
    ("extends: defualt", "did you mean default?"),
    ("extends: ./mine.yml", "in a circle"),
    ("- a list", "`key: value`"),
    ("steps: [1", "not valid YAML"),
])
def test_a_wrong_profile_is_refused_in_one_line(tiny, profile, complaint):
    (tiny / "mine.yml").write_text(profile)
    with pytest.raises(InputError) as refused:
        book.build_book("mine.yml", root=tiny, progress=False)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)
    assert not (tiny / "_build").exists()


def test_the_shipped_profiles_fit_the_notebooks(clone, tmp_path, monkeypatch):
    for name in ("default", "smoke"):
        assert profiles.plan(profiles.read_profile(name, clone), clone)
    example = clone / "book/profiles/example-own-data.yml"
    with pytest.raises(InputError, match=r"there is no file .*path/to/my\.h5ad"):
        profiles.plan(profiles.read_profile(example, clone), clone)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/my.h5ad").touch()
    monkeypatch.chdir(tmp_path)
    chapters = profiles.plan(profiles.read_profile(example, clone), clone)
    for chapter in chapters:
        assert chapter.values["dataset"] == str(tmp_path / "path/to/my.h5ad")
        if "output" in chapter.declared:
            assert chapter.values["output"] == "_build/example-own-data/out"


@pytest.mark.parametrize("profile", ["defualt", "absent.yml"])
def test_an_absent_profile_is_refused(tiny, profile):
    with pytest.raises(InputError, match="profile"):
        book.build_book(profile, root=tiny)


def test_an_absent_column_is_refused_before_anything_runs(tiny):
    notebook(tiny / "book/first.ipynb", "1", 'label: str = ""  # column')
    (tiny / "mine.yml").write_text("dataset: simulated\nlabel: nope\n")
    with pytest.raises(InputError, match="simulated has no column 'nope' in obs.*cell_type"):
        book.build_book(str(tiny / "mine.yml"), root=tiny, progress=False)
    assert not list((tiny / "_build").rglob("*.ipynb"))


def test_an_unknown_data_set_is_refused(tiny):
    (tiny / "data").mkdir()
    (tiny / "data/registry.csv").write_text("name,sha256\npbmc3k,abc\n")
    (tiny / "mine.yml").write_text("dataset: pbmc3")
    with pytest.raises(InputError, match=r"`pbmc3` .*did you mean pbmc3k\?"):
        book.build_book("mine.yml", root=tiny)


def test_outside_a_clone_one_line_says_so(tmp_path):
    with pytest.raises(InputError, match="not in a clone of CellVQ"):
        book.build_book(root=tmp_path)


# What is run again


def test_only_stale_notebooks_run(tiny):
    assert states(tiny) == ["ran", "ran"]
    assert printed(tiny) == "read 3 x\n"
    assert states(tiny) == ["unchanged", "unchanged"]

    prose = notebooks.read(tiny / "book/first.ipynb")
    prose.cells[0].source = "# Another title"
    notebooks.write(prose, tiny / "book/first.ipynb")
    assert states(tiny) == ["ran", "unchanged"], "prose of an earlier page is no input"

    (tiny / "book/profiles/default.yml").write_text("steps: 3\nword: y\n")
    assert states(tiny) == ["unchanged", "ran"]
    (tiny / "book/profiles/default.yml").write_text("steps: 4\nword: y\n")
    assert states(tiny) == ["ran", "ran"], "the second reads what the first wrote"
    assert printed(tiny) == "read 4 y\n"

    (tiny.parent / "package/module.py").write_text("answer = 42\n")
    assert states(tiny) == ["ran", "ran"], "the package changed"


def test_the_content_of_a_data_file_counts(tiny):
    (tiny / "cells.h5ad").write_text("one")
    (tiny / "mine.yml").write_text("extends: default\ndataset: cells.h5ad\n")
    assert states(tiny, "mine.yml") == ["ran", "ran"]
    os.utime(tiny / "cells.h5ad", (0, 0))
    assert states(tiny, "mine.yml") == ["unchanged", "unchanged"], "only the time changed"
    (tiny / "cells.h5ad").write_text("two")
    assert states(tiny, "mine.yml") == ["ran", "ran"]
    page = (tiny / "_build/mine/executed/book/first.ipynb").read_text()
    assert "`cells.h5ad`" in page and hashlib.sha256(b"two").hexdigest() in page


def test_an_interrupted_run_goes_on_where_it_stopped(tiny):
    notebook(tiny / "book/second.ipynb", """
        import os, pathlib, signal, time
        if not pathlib.Path("interrupted").exists():
            pathlib.Path("interrupted").touch()
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(30)
        """)
    # A shell that runs the tests in the background has told them to ignore interruptions.
    code = ("import pathlib, signal; from cellvq import book;"
            "signal.signal(signal.SIGINT, signal.default_int_handler);"
            f"book.PACKAGE = pathlib.Path({str(book.PACKAGE)!r});"
            "book.build_book(execute_only=True)")
    first = subprocess.run([sys.executable, "-c", code], cwd=tiny, capture_output=True, text=True,
                           timeout=60)
    assert (tiny / "interrupted").exists() and first.returncode != 0
    assert states(tiny) == ["unchanged", "ran"]


# A notebook that fails


def test_a_failing_notebook_is_named_and_the_others_are_built(tiny, capsys):
    assert states(tiny) == ["ran", "ran"]
    notebook(tiny / "book/first.ipynb", "print('on the way')\nraise ValueError('no | counts')",
             "steps: int = 1  # steps")
    result = book.build_book(root=tiny)
    said = capsys.readouterr().out
    assert not result.ok
    assert [page.state for page in result.pages] == ["failed", "ran"]
    assert "book/first.ipynb, cell work: ValueError: no | counts (log: _build/default/logs/" in said
    log = tiny / result.pages[0].log
    assert "on the way" in log.read_text() and "ValueError" in log.read_text()
    assert "\x1b" not in log.read_text()
    marked = (tiny / "_build/default/html/book/first.html").read_text()
    assert "This page did not run" in marked and "An earlier run" not in marked
    assert "earlier run of this page" in marked
    assert "read 3" in (tiny / "_build/default/html/book/second.html").read_text()
    assert (tiny / "_build/default/executed/book/first.ipynb").exists(), "the good run is kept"

    notebook(tiny / "book/first.ipynb",
             "from pathlib import Path\nPath(output, 'a.txt').write_text(str(steps))",
             "steps: int = 1  # steps")
    mended = book.build_book(root=tiny, progress=False)
    assert mended.ok, mended.problems
    assert [page.state for page in mended.pages] == ["unchanged", "ran"], "it had run on old files"
    assert "did not run" not in (tiny / "_build/default/html/book/first.html").read_text()


def test_a_warning_of_the_build_stays_one_when_nothing_changes(tiny):
    (tiny / "book/index.md").write_text("# A tiny book\n\n[nowhere](absent.md)\n")
    for _ in range(2):
        result = book.build_book(root=tiny, progress=False)
        assert len(result.problems) == 1 and "book/index.md" in result.problems[0]


# The real book on simulated cells


class Reader(html.parser.HTMLParser):
    """Collect what a page loads, where it leads, and what it lacks."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads, self.links, self.ids, self.mute = [], [], set(), []
        self.titles, self.in_article = 0, False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        self.in_article |= tag == "article"
        self.titles += self.in_article and tag == "h1"
        if given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "author"):
            self.loads.append(given.get("href", ""))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img" and not (given.get("alt") or "").strip():
            self.mute.append(given.get("src"))


@pytest.fixture(scope="session")
def pages(smoke_book) -> dict[Path, Reader]:
    folder = smoke_book.html.parent
    return {path: Reader(path) for path in sorted(folder.rglob("*.html"))
            if "_static" not in path.parts}


def written(pages: dict[Path, Reader]) -> dict[Path, Reader]:
    """The pages of the book itself, without the index, the search and the source code."""
    return {path: page for path, page in pages.items() if "html/book" in path.as_posix()}


@pytest.mark.book
def test_the_book_runs_and_builds_without_a_warning(smoke_book):
    assert smoke_book.problems == ()
    assert smoke_book.html.is_file()


@pytest.mark.book
def test_no_page_loads_anything_from_outside(pages):
    outside = {(path.name, url) for path, page in pages.items() for url in page.loads
               if re.match(r"(https?:)?//", url)}
    assert not outside


@pytest.mark.book
def test_everything_a_page_loads_is_there(pages):
    missing = {(path.name, url) for path, page in written(pages).items() for url in page.loads
               if not re.match(r"(https?:)?//|data:", url)
               and not (path.parent / urllib.parse.unquote(re.split("[?#]", url)[0])).exists()}
    assert not missing


@pytest.mark.book
def test_every_link_inside_the_book_leads_somewhere(pages):
    broken = set()
    for path, page in written(pages).items():
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            address, _, anchor = link.partition("#")
            file = urllib.parse.unquote(address.split("?")[0])
            target = (path.parent / file).resolve() if file else path
            known = pages[target].ids if target in pages else {urllib.parse.unquote(anchor)}
            if not target.exists() or (anchor and urllib.parse.unquote(anchor) not in known):
                broken.add((path.name, link))
    assert not broken


@pytest.mark.book
def test_every_page_has_a_title_and_every_picture_a_text(pages, smoke_book):
    own = written(pages)
    assert len(own) > len(smoke_book.pages)
    assert {path.name for path, page in own.items() if page.titles != 1} == set()
    assert {path.name: page.mute for path, page in own.items() if page.mute} == {}


@pytest.mark.book
def test_pages_hold_no_path_of_this_machine(smoke_book, clone):
    for path in smoke_book.html.parent.rglob("*.html"):
        assert str(clone) not in path.read_text(encoding="utf-8"), path.name


def browse(page: Path) -> tuple[str, list[str]]:
    """Open a page in a browser: the document after its scripts ran, and the console's errors."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [BROWSER, *OFFLINE, f"--user-data-dir={home}", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, [line for line in console if re.search("error|failed|refused", line, re.I)]


@pytest.mark.book
@needs_browser
def test_a_browser_draws_every_figure(smoke_book):
    folder = smoke_book.html.parent / "book"
    marker = '<div class="cellvq-figure'
    with_figures = [path for path in sorted(folder.rglob("*.html")) if marker in path.read_text()]
    assert with_figures, "the book has no interactive figure"
    for path in {*with_figures, folder / "index.html"}:
        document, faults = browse(path)
        assert faults == []
        assert document.count('data-drawn="1"') == document.count(marker)
        assert document.count("cvf-drawing") == document.count(marker)


@needs_browser
def test_names_from_data_never_become_markup(tmp_path, clone):
    evil = "<img src=x onerror=\"document.title='owned'\">"
    spec = {
        "kind": "graph", "title": evil, "alt": evil,
        "kinds": {evil: {"label": evil, "color": evil, "shape": evil}},
        "nodes": [{"id": name, "label": evil, "kind": evil, "x": x, "y": 0, "detail": {evil: evil}}
                  for x, name in enumerate("ab")],
        "edges": [{"source": "a", "target": end, "kind": evil, "detail": evil} for end in "bc"],
    }
    page = tmp_path / "page.html"
    page.write_text('<title>safe</title><div class="cellvq-figure"><script type="application/json">'
                    + json.dumps(spec).replace("<", "\\u003c") + "</script></div><script>"
                    + (clone / "book/_static/cellvq-figure.js").read_text() + "</script>")
    document, faults = browse(page)
    assert 'data-drawn="1"' in document and faults == []
    assert "<title>safe</title>" in document, "a label ran as markup"
