"""The house: imports point to a lower floor, rooms stay small, most of them need no torch."""

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cellvq"

# From the ground up; a module may import only from the rows below its own. `cellvq` itself
# (InputError, the version) lies below everything.
FLOORS = (
    ("arguments", "attention", "cardpage", "config", "corpuscost", "counts", "distributed",
     "evidence", "explorerpage", "folders", "genetables", "graphvectors", "loader", "notebooks",
     "performer", "ranking", "reading", "registry", "report", "resampling", "rfiles", "schema",
     "signalnull", "simulate", "style"),
    ("cards", "census", "codebook", "conditionview", "decoder", "download", "evaluate",
     "evidenceview", "files", "genes", "graphnetview", "graphpaths", "graphpriors", "graphview",
     "hiddenedges", "machine", "originals", "planting", "proteinview", "regulationview",
     "scaleview", "scores", "scoreview", "signalview", "tablefiles", "trustview", "truth"),
    ("atlas", "codeview", "corpusview", "datasets", "explorer", "graphanswers", "graphfiles",
     "knowledge", "markers", "nested", "novelty", "plainstatistics", "plot", "questions",
     "regulationnull", "shards", "signalmoments", "sources", "tasks"),
    ("biology", "codes", "entries", "genesets", "hypotheses", "joined", "judging", "profiles",
     "proteins", "pseudobulk", "quantize", "regulationpairs", "scan", "signalpairs"),
    ("baselines", "benchstore", "benchview", "book", "checking", "clustering", "graph",
     "graphsignals", "hiddenscore", "model", "naming", "panels", "regulationsums", "signals",
     "significance", "splits", "stability", "stream", "tallies"),
    ("adapters", "annotation", "build", "corpus", "graphbuild", "graphtokens", "integration",
     "leaderboard", "optimize", "proteinreading", "regulation", "regulationmethods", "shifts",
     "signalchanges", "spatial", "tallymarkers", "weights"),
    ("benchreport", "composition", "conditions", "encoding", "graphattention", "objective",
     "official", "properties", "proteinverdicts", "tallylabels"),
    ("continuing", "cost", "decoded", "dictionaryfiles", "graphmaking", "graphtraining",
     "history", "margins", "reconstruction", "recovery", "reference", "regulationscore"),
    ("attribution", "bench", "dictionary", "graphablation", "graphbench", "graphreading",
     "mapping", "regulationresponse", "regulationtrial", "runs"),
    ("faithfulness", "graphnet", "train"),
    ("databench", "driving", "finetuning", "health", "pretraining"),
    ("contenders", "graphverbs", "replicates", "shipped"),
    ("ablation", "benchrun", "denoising"),
    ("benchmarking",),
    ("__main__",),
)
FLOOR = {module: number for number, row in enumerate(FLOORS) for module in row}
WITHOUT_TORCH = {
    "annotation", "atlas", "benchreport", "benchstore", "benchview", "biology", "book",
    "cardpage", "cards", "census", "checking", "clustering", "codes", "codeview", "composition",
    "conditions", "conditionview", "corpuscost", "corpusview", "counts", "datasets", "dictionary",
    "dictionaryfiles", "download", "entries", "evaluate", "evidence", "evidenceview", "explorer",
    "explorerpage", "folders", "genes", "genesets", "genetables", "graph", "graphanswers",
    "graphbuild", "graphfiles", "graphmaking", "graphnetview", "graphpaths", "graphpriors",
    "graphsignals", "graphtokens", "graphvectors", "graphview", "hiddenedges", "hiddenscore",
    "hypotheses", "integration", "judging", "knowledge", "leaderboard", "machine", "markers",
    "naming", "notebooks", "novelty", "originals", "plainstatistics", "planting", "plot",
    "profiles", "properties", "proteinreading", "proteins", "proteinverdicts", "proteinview",
    "pseudobulk", "questions", "ranking", "reading", "recovery", "registry", "regulation",
    "regulationmethods", "regulationnull", "regulationpairs", "regulationscore", "regulationsums",
    "regulationtrial", "regulationview", "report", "resampling", "rfiles", "scaleview", "scan",
    "schema", "scores", "scoreview", "shifts", "signalchanges", "signalmoments", "signalnull",
    "signalpairs", "signals", "signalview", "significance", "simulate", "spatial", "splits",
    "stability", "style", "tablefiles", "tallies", "tallylabels", "tallymarkers", "tasks",
    "trustview", "truth",
}
# What a bare machine with a GPU has: these rooms import nothing else when they are imported.
BARE = {
    "adapters", "attention", "bench", "codebook", "config", "cost", "decoder", "distributed",
    "loader", "model", "nested", "objective", "official", "optimize", "performer", "quantize",
    "weights",
}
BARE_LIBRARIES = {"cellvq", "numpy", "safetensors", "scipy", "torch"}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(module: str, *, at_once: bool = False) -> set[str]:
    """Every module that a room imports, also inside functions unless ``at_once``."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    nodes = tree.body if at_once else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write `from cellvq import ...`"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms(module: str) -> set[str]:
    """The rooms of this house that a room imports."""
    parts = (name.split(".") for name in imports(module))
    return {part[1] for part in parts if part[0] == "cellvq" and part[1:] and part[1] in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    assert module in FLOOR, f"give {module} its floor in tests/test_architecture.py"
    upward = {room for room in rooms(module) if FLOOR[room] >= FLOOR[module]}
    assert not upward, f"{module} imports {upward}, which stand no lower"


def test_every_floor_is_lived_on():
    assert set(FLOOR) == set(MODULES)


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_a_module_has_one_purpose(module):
    lines = (PACKAGE / f"{module}.py").read_text(encoding="utf-8").count("\n")
    assert lines <= 330, f"{module} has {lines} lines: does it hold two purposes?"


@pytest.mark.parametrize("module", sorted(BARE))
def test_core_rooms_run_on_a_bare_machine(module):
    foreign = {name.split(".")[0] for name in imports(module, at_once=True)}
    assert not foreign - BARE_LIBRARIES - sys.stdlib_module_names


def test_rooms_without_torch_do_not_load_it():
    named = ", ".join(f"cellvq.{module}" for module in sorted(WITHOUT_TORCH))
    code = f"import sys, {named}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    direct = {module for module in WITHOUT_TORCH
              if {"torch"} & {name.split(".")[0] for name in imports(module)}}
    assert not direct


def test_importing_the_package_is_instant():
    code = "import sys, cellvq; sys.exit(bool({'numpy', 'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_public_names_say_what_they_are_for(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            assert first.endswith((".", "?", "!")), f"{module}.{node.name}: one complete first line"


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_names_every_room(module, clone):
    text = (clone / "book/reference/api.md").read_text(encoding="utf-8")
    assert f"`{module}`" in text, f"give {module} its floor in the table of book/reference/api.md"


@pytest.mark.parametrize("module", MODULES)
def test_words_under_a_name_begin_without_a_colon(module):
    """Sphinx takes what stands before it for a type that it cannot find, and the pages fail."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)]
    for before, after in ((one, two) for body in bodies for one, two in pairwise(body)):
        if not isinstance(before, ast.Assign | ast.AnnAssign) or not isinstance(after, ast.Expr):
            continue
        first = str(getattr(after.value, "value", "")).split("\n")[0]
        plain = re.sub(r":[a-z]+:`[^`]*`|``[^`]*``|`[^`]*`", "", first)
        assert ":" not in plain, f"{module}, line {after.lineno}: {first}"
