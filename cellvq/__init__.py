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

__version__ = "0.1.0"

_FUNCTIONS = {
    "check": "checking",
    "encode": "encoding",
    "finetune": "finetuning",
    "load": "encoding",
    "pretrain": "pretraining",
}
_MODULES = (
    "adapters", "atlas", "attention", "attribution", "bench", "biology", "build", "cards",
    "census", "checking", "codebook", "codes", "codeview", "composition", "config", "corpus",
    "corpuscost", "cost", "counts", "databench", "datasets", "decoded", "decoder", "dictionary",
    "dictionaryfiles", "distributed", "download", "encoding", "evaluate", "faithfulness", "files",
    "finetuning", "genes", "genesets", "genetables", "graph", "health", "joined", "knowledge",
    "loader", "machine", "mapping", "margins", "model", "naming", "nested", "novelty", "objective",
    "official", "optimize", "originals", "panels", "performer", "plot", "pretraining",
    "pseudobulk", "quantize", "reading", "reconstruction", "reference", "registry", "replicates",
    "report", "rfiles", "runs", "scan", "shards", "simulate", "sources", "stability", "stream",
    "tablefiles", "tasks", "train", "truth", "weights",
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
