"""The doors into the project name one package and one list of versions."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cellvq


@pytest.fixture(scope="module")
def project(clone):
    return tomllib.loads((clone / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(clone):
    lines = (clone / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed(project) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for group in [project["dependencies"], *extras] for text in group]


def test_every_pin_is_exact_and_stands_once(pins):
    for pin in pins:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))


def test_every_dependency_is_pinned_within_its_bounds(project, pins):
    pinned = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    for requirement in needed(project):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes its pin {version}"


def test_jupyter_book_2_is_kept_out(project):
    book = next(each for each in needed(project) if canonicalize_name(each.name) == "jupyter-book")
    assert not book.specifier.contains("2.0.0")


def test_the_conda_door_holds_no_second_list(clone, project):
    environment = yaml.safe_load((clone / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [re.split(r"[<>=]", entry)[0] for entry in conda] == ["python", "pip"]
    assert set(conda[0].removeprefix("python").split(",")) == set(
        re.findall(r"[<>]=?[\d.]+", project["requires-python"]))
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[benchmark,book,test]"]}
    assert {"benchmark", "book", "test"} <= set(project["optional-dependencies"])
    assert "--constraint constraints.txt --editable '.[benchmark,book,test]'" in (
        clone / ".ci" / "install").read_text()


def test_one_version_and_one_paper(clone):
    citation = yaml.safe_load((clone / "CITATION.cff").read_text())
    assert citation["version"] == cellvq.__version__
    assert citation["references"][0]["doi"] == "10.1038/s41467-026-70071-5"
    assert cellvq.__version__ in (clone / "CHANGELOG.md").read_text()


def test_small_tables_and_scripts_travel_with_the_package(clone):
    build = tomllib.loads((clone / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    names = ("data/registry.csv", "data/markers_blood.csv", "book/_static/cellvq-figure.js",
             "book/_static/cellvq-explorer.js")
    assert included == {name: f"cellvq/{Path(name).name}" for name in names}
    assert all((clone / name).is_file() for name in names)


def test_no_file_names_a_package_index(clone):
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/install"):
        text = (clone / name).read_text()
        assert not re.search(r"index-url|find-links|https?://", text), name


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(("target", "command"), [
    ("book", 'cellvq book --profile "smoke"'), ("test", "-m pytest"), ("lint", "ruff check"),
])
def test_make_calls_what_the_readme_says(clone, target, command):
    shown = subprocess.run(["make", "--dry-run", target, "PROFILE=smoke"], cwd=clone,
                           capture_output=True, text=True, check=True)
    assert command in shown.stdout
