"""The run: from one profile to a rendered book.

Execute each notebook of ``_toc.yml`` with the profile's parameters, stage the executed copies
beside the pages, and build them strictly with Jupyter Book. All that a run makes lies in
``_build/<profile>/``: ``html/`` the book to open, ``out/`` what notebooks write, ``executed/`` the
last good run of each notebook, ``logs/`` what they and the build printed, ``src/`` the staged book.
"""

import hashlib
import importlib.metadata
import importlib.resources
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cellvq import InputError, __version__, notebooks
from cellvq.profiles import (
    GIVEN,
    THIS_RUN,
    Chapter,
    Profile,
    check_columns,
    contents,
    find_root,
    is_path,
    plan,
    read_profile,
    read_yaml,
    registry,
)

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """What became of one notebook."""

    name: str
    state: str
    """``ran``, ``unchanged`` or ``failed``."""
    seconds: float
    cell: str = ""
    """The cell that failed, and below its error and the log."""
    error: str = ""
    log: str = ""


@dataclass(frozen=True)
class BookResult:
    """What a run of the book gave."""

    html: Path
    """The first page, to open in a browser."""
    pages: tuple[Page, ...]
    problems: tuple[str, ...]
    """One line for each page that failed, and one if the pages were not built cleanly."""

    @property
    def ok(self) -> bool:
        """Whether every notebook ran and the pages were built without a warning."""
        return not self.problems


@dataclass(frozen=True)
class _Run:
    """What the notebooks of one run have in common."""

    profile: Profile
    root: Path
    work: Path
    surroundings: str
    """Digest of the package's source and the pinned versions."""
    provenance: dict[str, str]
    chapters: tuple[Chapter, ...]


def build_book(profile: str | Path = "default", *, root: Path | None = None,
               execute_only: bool = False, progress: bool = True) -> BookResult:
    """Run those notebooks of the book that are stale, and build its pages.

    A notebook is run again only if its source, its parameters, a file that they name, the package,
    the pinned versions, or the code of an earlier notebook changed. If one fails, its page says so
    and the others are still run and built. After an interruption a run goes on where it stopped.

    Args:
        profile: name of a file in ``book/profiles``, or path of a user's own profile.
        root: the clone; by default the one around the current folder or the package.
        execute_only: run the notebooks but build no pages.
        progress: print one line for each notebook, and where the book is.

    Raises:
        InputError: no clone here, no such profile, an unknown parameter or profile key, a value of
            the wrong type, or a data file that does not exist. Nothing has been run then.
    """
    root = find_root(root)
    settings = read_profile(profile, root)
    chapters = plan(settings, root)
    surroundings = _digest(*sorted(PACKAGE.glob("*.py")), root / "constraints.txt")
    run = _Run(settings, root, root / "_build" / settings.name, surroundings, _provenance(root),
               tuple(chapters))
    say = print if progress else _say_nothing
    say(f"The book with profile {settings.name}, {len(chapters)} notebooks:")
    pages, upstream = [], ""
    for number, chapter in enumerate(chapters, start=1):
        say(f"[{number}/{len(chapters)}] {chapter.name} ... ", end="", flush=True)
        try:
            page, upstream = _execute(run, chapter, upstream)
        except InputError:
            say("not started")
            raise
        pages.append(page)
        say({"ran": notebooks.duration(page.seconds), "unchanged": "unchanged",
             "failed": f"failed in cell {page.cell}"}[page.state])
    took = sum(page.seconds for page in pages if page.state == "ran")
    if took:
        memory = _peak_memory()
        say(f"The notebooks took {notebooks.duration(took)}, and at most {memory} of memory.")
    problems = [f"{page.name}.ipynb, cell {page.cell}: {page.error} (log: {page.log})"
                for page in pages if page.state == "failed"]
    html = run.work / "html" / "index.html"
    if not execute_only:
        say("pages ... ", end="", flush=True)
        start = time.monotonic()
        _stage(run, chapters, pages)
        problems += _render(run)
        say(notebooks.duration(time.monotonic() - start))
    for problem in problems:
        say(f"cellvq: {problem}")
    if html.is_file():
        say(f"The book is in {os.path.relpath(html)}")
    return BookResult(html, tuple(pages), tuple(problems))


def _execute(run: _Run, chapter: Chapter, upstream: str) -> tuple[Page, str]:
    """Run one notebook unless its last good run still holds; return its page and its code's key."""
    import nbclient.exceptions
    import papermill

    source = run.root / f"{chapter.name}.ipynb"
    executed = run.work / "executed" / f"{chapter.name}.ipynb"
    keyfile = executed.with_suffix(".json")
    data = _digest_of_data(chapter.value("dataset"), run.root)
    code = [cell.source for cell in notebooks.read(source).cells if cell.cell_type == "code"]
    chain = _digest(json.dumps([code, chapter.values, data]), run.surroundings, upstream)
    key = _digest(chain, source)
    last = json.loads(keyfile.read_text()) if keyfile.is_file() else {}
    if last.get("key") == key and executed.is_file():
        return Page(chapter.name, "unchanged", last["seconds"]), chain

    check_columns(run.chapters)
    log, partial = run.work / "logs" / f"{chapter.name}.log", run.work / "running" / source.name
    for folder in (log.parent, partial.parent, run.work / "out"):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, partial)
    # A kernel of the user's own of this name may lie outside the environment: ours comes first.
    os.environ.update(JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as lines:
        try:
            papermill.execute_notebook(
                str(source), str(partial), chapter.values, cwd=str(run.root),
                kernel_name="python3", progress_bar=False, stdout_file=lines, stderr_file=lines,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except (papermill.PapermillExecutionError, nbclient.exceptions.DeadKernelError) as error:
            lines.write(re.sub(r"\x1b\[[0-9;]*m", "", f"\n{error}\n"))
            cell, reason = notebooks.failed_cell(notebooks.read(partial), str(error))
            failed = Page(chapter.name, "failed", time.monotonic() - start, cell, reason,
                          str(log.relative_to(run.root)))
            page = notebooks.read(executed if executed.is_file() else partial)
            notebooks.write(notebooks.mark_failed(
                page, cell=cell, error=reason, log=failed.log, earlier=executed.is_file()
            ), partial.parent / "failed" / f"{chapter.name}.ipynb")
            # Later notebooks run on what an earlier run left: stale once this one is mended.
            return failed, _digest(chain, "failed")
    seconds = round(time.monotonic() - start, 2)
    shown = {name: (_without_folder(chapter.value(name)), about.help)
             for name, about in chapter.declared.items() if name != GIVEN}
    provenance = {"Profile": run.profile.name, "SHA-256 of the data": data or "no file of its own",
                  **run.provenance, "Run time": notebooks.duration(seconds)}
    keyfile.unlink(missing_ok=True)
    notebooks.write(notebooks.dress(
        notebooks.read(partial), seconds=seconds, parameters=shown, provenance=provenance
    ), executed)
    keyfile.write_text(json.dumps({"key": key, "seconds": seconds}))
    return Page(chapter.name, "ran", seconds), chain


def _stage(run: _Run, chapters: list[Chapter], pages: list[Page]) -> None:
    """Lay the book out in ``src``: only what changed is written, what is gone is removed."""
    import yaml

    source = run.work / "src"
    wanted = {"_toc.yml": (run.root / "_toc.yml").read_bytes()}
    config = read_yaml(run.root / "_config.yml")
    if run.profile.title:
        options = config.setdefault("sphinx", {}).setdefault("config", {})
        options.setdefault("html_theme_options", {})["announcement"] = run.profile.title
    wanted["_config.yml"] = yaml.safe_dump(config, sort_keys=True).encode()
    beside = [path for path in (run.root / "book").rglob("*")
              if path.is_file() and path.suffix not in (".ipynb", ".yml")]
    named = [run.root / f"{name}.md" for name in contents(run.root)]
    for path in {*beside, *(path for path in named if path.is_file())}:
        wanted[str(path.relative_to(run.root))] = path.read_bytes()
    for page in pages:
        folder = "running/failed" if page.state == "failed" else "executed"
        wanted[f"{page.name}.ipynb"] = (run.work / folder / f"{page.name}.ipynb").read_bytes()
    if THIS_RUN in contents(run.root):
        wanted[f"{THIS_RUN}.md"] = _this_run(run, pages).encode()
    # MathJax comes out of a Python package, so that pages work offline and no copy is kept here.
    mathjax = importlib.resources.files("sphinx-mathjax-offline") / "static/mathjax/tex-svg.js"
    wanted["book/_static/vendor/tex-svg.js"] = mathjax.read_bytes()
    for name, content in wanted.items():
        path = source / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in source.rglob("*"):
        if path.is_file() and str(path.relative_to(source)) not in wanted:
            path.unlink()


def _render(run: _Run) -> list[str]:
    """Build the pages strictly; publish what was built, and report a build that was not clean."""
    log = run.work / "logs" / "pages.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    with log.open("w", encoding="utf-8") as lines:
        done = subprocess.run(
            [sys.executable, "-c", start, "build", str(run.work / "src"), "--path-output",
             str(run.work / "site"), "-W", "-n", "--keep-going"],
            stdout=lines, stderr=subprocess.STDOUT, cwd=run.root, check=False)
    site, html = run.work / "site" / "_build" / "html", run.work / "html"
    if (site / "index.html").is_file():
        fresh = run.work / "html.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(site, fresh, ignore=shutil.ignore_patterns(".buildinfo", ".doctrees"))
        shutil.rmtree(html, ignore_errors=True)
        fresh.rename(html)
    if done.returncode == 0:
        return []
    # The next build would not read unchanged pages again, and so would miss their warnings.
    shutil.rmtree(run.work / "site", ignore_errors=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
    warnings = [line for line in text.splitlines() if re.search(r"WARNING|ERROR", line)]
    first = warnings[0].replace(f"{run.work / 'src'}/", "") if warnings else "Jupyter Book stopped"
    return [f"the pages were not built cleanly, {len(warnings)} warnings; the first: {first} "
            f"(log: {log.relative_to(run.root)})"]


def _this_run(run: _Run, pages: list[Page]) -> str:
    rows = "\n".join(f"| [](/{page.name}) | {notebooks.duration(page.seconds)} | "
                     f"{'failed' if page.state == 'failed' else 'good'} |" for page in pages)
    facts = "\n".join(f"| {label} | {value} |" for label, value in run.provenance.items())
    return (f"# This run\n\nHow the book that you read was made: profile `{run.profile.name}`, "
            f"every notebook run from its first cell.\n\n| Notebook | Run time | Result |\n"
            f"|---|---|---|\n{rows}\n\n| Made with | |\n|---|---|\n{facts}\n")


def _peak_memory() -> str:
    """Say how much memory the largest process took that this one started and saw end."""
    try:
        import resource
    except ImportError:  # no Unix
        return "an unknown amount"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9:.1f} GB"


def _provenance(root: Path) -> dict[str, str]:
    """Say what every page of a run was made with."""
    def answer(*command: str) -> str:
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout.strip()

    device = ("import os, torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() "
              "else f'processor, {os.cpu_count()} cores')")
    names = ("torch", "scanpy", "anndata")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return {
        "Commit": answer("git", "describe", "--always", "--dirty=, changed since") or "unknown",
        "Versions": ", ".join([f"CellVQ {__version__}", f"Python {platform.python_version()}",
                               *versions]),
        "Device": answer(sys.executable, "-c", device) or "unknown",
    }


def _digest_of_data(dataset: object, root: Path) -> str:
    """Return a data set's SHA-256: of the file, or as its registry line states it."""
    if is_path(dataset):
        with Path(dataset).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return registry(root).get(dataset, "")


def _digest(*parts: str | Path) -> str:
    """Return one SHA-256 over texts and the contents of files; a missing file counts as empty."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else (
            part.read_bytes() if part.is_file() else b"")
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def _without_folder(value: object) -> object:
    return Path(value).name if is_path(value) else value


def _say_nothing(*_: object, **__: object) -> None:
    pass
