"""What a run of the book is given: a profile, the contents, and who gets which parameter.

A profile is a file of ``key: value`` lines. Every key is a parameter for each notebook that
declares it, except ``title``, ``extends`` (another profile to start from) and ``notebooks``
(parameters for one notebook alone). All is settled, or refused, before any notebook runs.
"""

import csv
import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cellvq import InputError

RESERVED = ("title", "extends", "notebooks")
THIS_RUN = "book/reference/this-run"  # the page that the runner writes itself
GIVEN = "output"  # the parameter that the runner sets itself
TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Profile:
    """One run of the whole book."""

    name: str
    """Stem of the profile's file; the run lands in ``_build/<name>``."""
    title: str = ""
    """One line shown above every page; empty for none."""
    shared: dict[str, object] = field(default_factory=dict)
    """Parameters for every notebook that declares them."""
    notebooks: dict[str, dict[str, object]] = field(default_factory=dict)
    """Notebook -> parameters for it alone."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    type: str
    default: str
    help: str


@dataclass(frozen=True)
class Chapter:
    """One notebook with what this run gives it."""

    name: str
    """Path from the root without its ending, as in ``_toc.yml``."""
    declared: dict[str, Parameter]
    values: dict[str, object]
    """The profile's values; the defaults hold for the others."""

    def value(self, name: str) -> object:
        """Return a parameter's value in this run; an empty text if it has none."""
        default = self.declared[name].default.strip("\"'") if name in self.declared else ""
        return self.values.get(name, default)


def find_root(start: Path | None = None, package: Path = Path(__file__).parents[1]) -> Path:
    """Find the clone that holds the book: the current folder, one above it, or the package's.

    Raises:
        InputError: there is none.
    """
    here = Path.cwd() if start is None else Path(start).resolve()
    for folder in [here, *here.parents, package] if start is None else [here]:
        if (folder / "_toc.yml").is_file() and (folder / "book").is_dir():
            return folder
    raise InputError(f"{here} is not in a clone of CellVQ: the notebooks come with the repository, "
                     "not with the package; clone it and run the same command there")


def read_profile(profile: str | Path, root: Path) -> Profile:
    """Read a profile, by name or by path, and those that it extends.

    Raises:
        InputError: no such profile, or no file of ``key: value`` lines.
    """
    files, layers, wanted = [], [], str(profile)
    while wanted:
        file = _find_profile(wanted, root, files[-1].parent if files else Path.cwd())
        if file in files:
            raise InputError(f"{file}: profiles extend one another in a circle; drop one `extends`")
        files.append(file)
        layers.append(read_yaml(file))
        wanted = layers[-1].get("extends") or ""
    shared, own = {}, {}
    for file, layer in zip(reversed(files), reversed(layers), strict=True):
        shared |= {key: value for key, value in layer.items() if key not in RESERVED}
        for name, values in (layer.get("notebooks") or {}).items():
            if not isinstance(values, dict):
                raise InputError(f"{file}: {name} needs indented lines `parameter: value` below it")
            name = name.removesuffix(".ipynb")
            own[name] = own.get(name, {}) | values
    return Profile(files[0].stem, str(layers[0].get("title") or ""), shared, own)


def plan(profile: Profile, root: Path) -> list[Chapter]:
    """Settle which notebook gets which parameters, in the order of ``_toc.yml``.

    Raises:
        InputError: a parameter or notebook that does not exist, a value of the wrong type, or a
            data file that is not there.
    """
    where = f"profile {profile.name}"
    declared = {name: declared_parameters(root / f"{name}.ipynb") for name in contents(root)
                if (root / f"{name}.ipynb").is_file()}
    anywhere = {key for parameters in declared.values() for key in parameters} - {GIVEN}
    for key in profile.shared:
        _known(key, {*anywhere, *RESERVED}, f"{where}: no notebook has a parameter `{key}`")
    for name, values in profile.notebooks.items():
        _known(name, declared, f"{where}: _toc.yml names no notebook `{name}`")
        for key in values:
            allowed = set(declared[name]) - {GIVEN}
            _known(key, allowed, f"{where}: {name} has no parameter `{key}`")
    chapters = []
    for name, parameters in declared.items():
        given = {key: value for key, value in profile.shared.items() if key in parameters}
        given |= profile.notebooks.get(name, {})
        values = {key: _fitting(value, parameters[key].type, f"{where}: `{key}`")
                  for key, value in given.items()}
        if "dataset" in values:
            values["dataset"] = _data(values["dataset"], root, where)
        if GIVEN in parameters:
            values[GIVEN] = f"_build/{profile.name}/out"
        chapters.append(Chapter(name, parameters, values))
    return chapters


def contents(root: Path) -> list[str]:
    """List the pages of ``_toc.yml`` in reading order, without their endings.

    Raises:
        InputError: a page that is not there.
    """
    def walk(entry: object) -> list[str]:
        if isinstance(entry, list):
            return [name for item in entry for name in walk(item)]
        if not isinstance(entry, dict):
            return []
        own = [str(entry[key]) for key in ("root", "file") if key in entry]
        return own + [name for value in entry.values() for name in walk(value)]

    names = walk(read_yaml(root / "_toc.yml"))
    for name in names:
        if name != THIS_RUN and not any((root / f"{name}{e}").is_file() for e in (".md", ".ipynb")):
            raise InputError(f"_toc.yml names {name}, but there is neither {name}.md nor .ipynb")
    return names


def declared_parameters(path: Path) -> dict[str, Parameter]:
    """Read the parameters cell of a notebook: name -> type, default and help."""
    import papermill

    return {name: Parameter(about["inferred_type_name"], about["default"], about["help"])
            for name, about in papermill.inspect_notebook(str(path)).items()}


def read_yaml(path: Path) -> dict:
    """Read a file of ``key: value`` lines.

    Raises:
        InputError: it is something else.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold lines `key: value`")
    return content


def registry(root: Path) -> dict[str, str]:
    """Read the names of the data sets, and for each the SHA-256 of its file if it has one."""
    path = root / "data" / "registry.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        return {row["name"]: row["sha256"] for row in csv.DictReader(lines)}


def is_path(value: object) -> bool:
    """Say whether a data set is named by a path rather than by its name in the registry."""
    return isinstance(value, str) and ("/" in value or value.endswith((".h5ad", ".h5")))


def _find_profile(wanted: str, root: Path, folder: Path) -> Path:
    if wanted.endswith((".yml", ".yaml")):
        path = (folder / wanted).resolve()
        if not path.is_file():
            raise InputError(f"profile {path} does not exist")
        return path
    shipped = {path.stem: path for path in sorted((root / "book" / "profiles").glob("*.yml"))}
    _known(wanted, shipped, f"there is no profile `{wanted}` in book/profiles; "
           "name one of them, or the path of a file that ends in .yml")
    return shipped[wanted].resolve()


def _known(name: object, allowed: Iterable[str], complaint: str) -> None:
    if name not in allowed:
        close = difflib.get_close_matches(str(name), allowed, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(allowed)}"
        raise InputError(f"{complaint}; {hint}")


def _fitting(value: object, type_name: str, what: str) -> object:
    """Return a value as the notebook gets it: nothing written is an empty text."""
    if value is None and type_name == "str":
        return ""
    wanted = TYPES.get(type_name.partition("[")[0].lower(), object)
    if not isinstance(value, wanted) or (isinstance(value, bool) and type_name in ("int", "float")):
        raise InputError(f"{what} is {value!r}, but the notebook wants {type_name}")
    return value


def _data(dataset: str, root: Path, where: str) -> str:
    """Return a data set as the notebooks get it: a known name, or the whole path of a file."""
    if not is_path(dataset):
        _known(dataset, registry(root) or [dataset], f"{where}: there is no data set `{dataset}` "
               "in data/registry.csv (the path of a file would end in .h5ad)")
        return dataset
    path = Path(dataset).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"{where}: there is no file {path}; "
                         "a path counts from the folder in which you type the command")
    return str(path)


def check_columns(chapters: Iterable[Chapter]) -> None:
    """Refuse cells that cannot be read or lack a column that a notebook is to use.

    It is asked before the first notebook that is stale, so that a wrong name costs seconds.

    Raises:
        InputError: the cells cannot be read, or ``obs`` lacks a column; it lists those there are.
    """
    for chapter in chapters:
        dataset = str(chapter.value("dataset"))
        for role in ("label", "batch", "donor"):
            column = chapter.value(role)
            if dataset and column and column not in _columns(dataset):
                raise InputError(f"{dataset} has no column {column!r} in obs to use as the {role}; "
                                 f"there are: {', '.join(_columns(dataset))}")


@functools.cache
def _columns(dataset: str) -> tuple[str, ...]:
    from cellvq import datasets

    return tuple(map(str, datasets.load(dataset).obs))
