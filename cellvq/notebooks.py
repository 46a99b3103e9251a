"""One notebook of the book: fit to be committed, and dressed as a page after its run.

``python -m cellvq.notebooks check`` says what is wrong with the notebooks of a clone and
``python -m cellvq.notebooks strip`` takes outputs and run times out of them.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from cellvq import InputError

MAX_LINES, MAX_COLUMNS = 15, 88
GLANCE = {"question": str, "learn": list, "needs": list, "minutes_read": int, "data": str}
CELL_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){0,3}(-[0-9a-f]{12})?")
PARAMETER = re.compile(r"\w+: [\w\[\], |]+ = .+  # \w.+")
INJECTED = "injected-parameters"


def read(path: Path):
    """Read a notebook with nbformat; anything else is an ``InputError``."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise InputError(f"{path} cannot be read as a notebook: {error}") from error


def write(notebook, path: Path) -> None:
    """Write a notebook in one step, so that an interruption leaves no half of it."""
    import nbformat

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    nbformat.write(notebook, part)
    part.replace(path)


def strip(notebook):
    """Take out everything a run leaves behind: outputs, counts, times, editor settings."""
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed", "scrolled", "jupyter", "trusted"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kept = {"cellvq", "mystnb"}
    notebook.metadata = {key: notebook.metadata[key] for key in kept & set(notebook.metadata)}
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3", "language": "python", "name": "python3"
    }
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def check(notebook) -> list[str]:
    """Say in one line each what keeps a notebook from being committed; nothing if it is fit."""
    import copy

    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    found = []
    if strip(copy.deepcopy(notebook)) != notebook:
        found.append("holds outputs or traces of a run: `python -m cellvq.notebooks strip`")
    ids = [cell.get("id", "") for cell in cells]
    found += [f"cell id {i!r} is no word" for i in ids
              if not CELL_ID.fullmatch(i) or RANDOM_ID.fullmatch(i)]
    found += [f"cell id {i!r} stands twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    headings = [line for cell in cells if cell.cell_type == "markdown"
                for line in cell.source.splitlines() if line.startswith("# ")]
    if len(headings) != 1 or not (cells and cells[0].source.startswith("# ")):
        found.append("the first cell, and only that, carries the title: one line `# ...`")
    tags = [cell.metadata.get("tags", []) for cell in code]
    for tag in ("imports", "parameters"):
        if sum(tag in t for t in tags) != 1:
            found.append(f"needs exactly one code cell with the tag `{tag}`")
    for cell in code:
        lines = cell.source.splitlines()
        if len(lines) > MAX_LINES:
            found.append(f"cell {cell.id!r} has {len(lines)} lines, {MAX_LINES} are allowed")
        found += [f"cell {cell.id!r} has a line of {len(line)} columns" for line in lines
                  if len(line) > MAX_COLUMNS]
        if re.search(r"(filterwarnings|simplefilter)\(", cell.source):
            found.append(f"cell {cell.id!r} filters warnings: mend what warns")
        if "parameters" in cell.metadata.get("tags", []):
            found += [f"parameter {line!r} is not `name: type = default  # help, unit`"
                      for line in lines if not PARAMETER.fullmatch(line)]
        picture = cell.metadata.get("mystnb", {})
        if "figure" in picture and not (
            picture["figure"].get("caption") and picture.get("image", {}).get("alt")
        ):
            found.append(f"cell {cell.id!r} draws a figure without caption or alternative text")
    glance = notebook.metadata.get("cellvq", {})
    found += [f"metadata `cellvq` needs {key!r} ({kind.__name__})" for key, kind in GLANCE.items()
              if not isinstance(glance.get(key), kind) or not glance[key]]
    return found


def dress(notebook, *, seconds: float, parameters: Mapping[str, tuple[object, str]],
          provenance: Mapping[str, object]):
    """Turn an executed notebook into a page.

    The machine's paths and times go. After the title comes a box made from the metadata
    ``cellvq``, in place of the parameter cells a table, and at the end how the page was made.

    Args:
        notebook: as papermill wrote it.
        seconds: measured run time.
        parameters: name -> (value in this run, help).
        provenance: label -> value, shown at the foot of the page.
    """
    notebook = scrub(notebook)
    table = "\n".join(f"| `{name}` | {_code(value)} | {_cell(text)} |"
                      for name, (value, text) in parameters.items())
    cells = []
    for position, cell in enumerate(notebook.cells):
        tags = cell.metadata.setdefault("tags", [])
        if "parameters" in tags or INJECTED in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
        cells.append(cell)
        if position == 0:
            about = notebook.metadata.get("cellvq", {})
            cells.append(_markdown("at-a-glance", _glance(about, seconds)))
        if "parameters" in tags:
            cells.append(_markdown("parameters-of-this-run", ":::{div} cellvq-parameters\n"
                         f"| Parameter | This run | Meaning |\n|---|---|---|\n{table}\n:::"))
    made = "\n".join(f"| {_cell(label)} | {_cell(value)} |" for label, value in provenance.items())
    cells.append(_markdown("how-this-page-was-made", ":::{dropdown} How this page was made\n"
                 f":class-container: cellvq-provenance\n\n| | |\n|---|---|\n{made}\n:::"))
    notebook.cells = cells
    return notebook


def scrub(notebook):
    """Remove papermill's paths and times, which differ from run to run and machine to machine."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if INJECTED in cell.metadata.get("tags", []):
            cell["id"] = INJECTED
    return notebook


def mark_failed(notebook, *, cell: str, error: str, log: str, earlier: bool):
    """Put a notice below the title that this page did not run; outputs of errors are taken out."""
    notebook = scrub(notebook)
    notebook.cells = [c for c in notebook.cells
                      if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    for c in notebook.cells:
        if c.cell_type == "code":
            c.outputs = [o for o in c.outputs if o.output_type != "error"]
    below = ("What follows is an earlier run of this page." if earlier
             else "What follows is the page as far as it came.")
    notice = ("::::{admonition} This page did not run\n:class: danger\n"
              f"Its cell `{cell}` stopped. {below} The whole log: `{log}`.\n\n"
              f"````text\n{error}\n````\n::::")
    notebook.cells.insert(1, _markdown("this-page-did-not-run", notice))
    return notebook


def failed_cell(notebook, otherwise: str) -> tuple[str, str]:
    """Name the cell that stopped a run, and its error; ``otherwise`` when the kernel died."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return cell.id, f"{output.ename}: {output.evalue}".strip()
        if cell.metadata.get("papermill", {}).get("status") == "running":
            return cell.id, otherwise
    return "?", otherwise


def duration(seconds: float) -> str:
    """Write a time for people.

    Example:
        >>> duration(7.6), duration(95)
        ('8 s', '1 min 35 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _glance(about: Mapping, seconds: float) -> str:
    rows = [f"**Question.** {about['question']}"] if about.get("question") else []
    lists = (("learn", "You will learn"), ("needs", "You need"))
    columns = ["\n".join([":::{grid-item}", f"**{label}**", *map("- {}".format, about[key]), ":::"])
               for key, label in lists if about.get(key)]
    if columns:
        rows.append("\n".join(["::::{grid} 1 1 2 2", *columns, "::::"]))
    if about.get("data"):
        rows.append(f"**Data.** {about['data']}")
    read = f"{about['minutes_read']} min to read, " if about.get("minutes_read") else ""
    rows.append(f"**Time.** {read}{duration(seconds)} to run")
    body = "\n\n".join(rows)
    return f":::::{{admonition}} At a glance\n:class: cellvq-glance\n{body}\n:::::"


def _markdown(name: str, source: str):
    from nbformat.v4 import new_markdown_cell

    return new_markdown_cell(source, id=name)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")


def _code(value: object) -> str:
    return f"`{_cell(value)}`" if value not in ("", None) else "*empty*"


def main(arguments: list[str]) -> int:
    """Check or strip the notebooks below ``book/``; the exit status counts as for any checker."""
    if arguments not in (["check"], ["strip"]):
        print("usage: python -m cellvq.notebooks check|strip", file=sys.stderr)
        return 2
    faults = 0
    for path in sorted(Path("book").rglob("*.ipynb")):
        notebook = read(path)
        if arguments == ["strip"]:
            write(strip(notebook), path)
        for fault in check(notebook):
            faults += 1
            print(f"{path}: {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
