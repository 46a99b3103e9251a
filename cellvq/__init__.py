"""CellVQ: single cells as readable codes, and the knowledge graph that they open.

The public functions are imported on first use, so that ``import cellvq`` is instant and the rooms
that need no torch never load it.

Example:
    >>> import cellvq
    >>> cells = cellvq.datasets.load("simulated")
    >>> cellvq.check(cells).ok
    True
"""

import importlib
import os

# Threads that wait for each other sleep. Spinning, as is usual, two trainings at once took 38 s
# each and not 21 s on two cores, and one alone was no faster. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_FUNCTIONS = {
    "benchmark": "benchmarking",
    "check": "checking",
    "encode": "encoding",
    "finetune": "finetuning",
    "load": "encoding",
    "pretrain": "pretraining",
}
_MODULES = (
    "ablation", "adapters", "annotation", "atlas", "attention", "attribution", "baselines",
    "bench", "benchmarking", "benchreport", "benchrun", "benchstore", "benchview", "biology",
    "build", "cards", "census", "checking", "clustering", "codebook", "codes", "codeview",
    "composition", "conditions", "conditionview", "config", "contenders", "corpus", "corpuscost",
    "cost", "counts", "databench", "datasets", "decoded", "decoder", "denoising", "dictionary",
    "dictionaryfiles", "distributed", "download", "driving", "encoding", "entries", "evaluate",
    "explorer", "explorerpage", "faithfulness", "files", "finetuning", "genes", "genesets",
    "genetables", "graph", "graphablation", "graphattention", "graphbench", "graphbuild",
    "graphmaking", "graphnet", "graphnetview", "graphpriors", "graphreading", "graphsignals",
    "graphtokens", "graphtraining", "graphvectors", "health", "hiddenedges", "hiddenscore",
    "hypotheses", "integration", "joined", "knowledge", "leaderboard", "loader", "machine",
    "mapping", "margins", "model", "naming", "nested", "novelty", "objective", "official",
    "optimize", "originals", "panels", "performer", "plainstatistics", "planting", "plot",
    "pretraining", "properties", "proteinreading", "proteins", "proteinverdicts", "proteinview",
    "pseudobulk", "quantize", "reading", "reconstruction", "recovery", "reference", "registry",
    "regulation", "regulationmethods", "regulationnull", "regulationpairs", "regulationresponse",
    "regulationscore", "regulationsums", "regulationtrial", "regulationview", "replicates",
    "report", "rfiles", "runs", "scan", "schema", "shards", "shifts", "shipped", "signalchanges",
    "signalmoments", "signalnull", "signalpairs", "signals", "signalview", "significance",
    "simulate", "sources", "spatial", "splits", "stability", "stream", "tablefiles", "tallies",
    "tallylabels", "tallymarkers", "tasks", "train", "trustview", "truth", "weights",
)
__all__ = ["InputError", *_FUNCTIONS, *_MODULES]


class InputError(ValueError):
    """Something a user gave cannot be used; the message says what, where and how to mend it.

    It stands here, below every room, so that each of them may raise it. The command line prints it
    as one line and exits with status 2; any other exception is a fault of ours.
    """


def __getattr__(name: str):
    """Import a public function or module on first use."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"cellvq.{_FUNCTIONS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"cellvq.{name}")
    raise AttributeError(f"module 'cellvq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
