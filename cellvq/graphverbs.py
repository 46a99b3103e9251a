"""What ``cellvq graph`` and ``cellvq graph query`` do, in whole sentences."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from cellvq import InputError, explorer, graph, graphfiles, graphmaking, knowledge, regulation
from cellvq.arguments import QUESTIONS
from cellvq.tablefiles import for_spreadsheets

SHOWN = ["neighbour", "path", "from", "source", "kind", "to", "target", "partner", "name", "of",
         "effect", "fdr", "n_cells", "n_donors", "score", "support", "links", "pagerank"]
"""Columns that the terminal shows, where a table has them."""


def make(options: argparse.Namespace) -> int:
    """Make the graph of encoded files and say where it is."""
    graphfiles.check_free(options.output, options.overwrite)
    columns = graphmaking.Columns(tuple(options.labels), options.donor, options.condition,
                                  options.reference)
    made = graphmaking.make(
        options.files, columns, knowledge=knowledge.available(), drivers=_drivers(options),
        regulation=lambda cells: regulation.network(
            cells, donor=options.donor, fdr=options.fdr, seed=options.seed),
        resource=options.resource, fdr=options.fdr, seed=options.seed, say=_say)
    made.write(options.output, overwrite=options.overwrite, page=_page(made, options.seed))
    for note in made.notes:
        print(f"Note: {note}.")
    print(f"{made}.\nOpen {options.output}/graph.html to explore it; README.md there explains the "
          f"tables.\n"
          f"Next: cellvq graph query {options.output} central")
    return 0


def query(options: argparse.Namespace) -> int:
    """Answer one question to a graph."""
    wanted = QUESTIONS[options.question]
    if wanted is not None and len(options.names) != wanted:
        raise InputError(f"{options.question} takes {wanted or 'no'} name{'s' * (wanted != 1)}, "
                         f"and {len(options.names)} were given")
    found = graph.read(options.graph)
    if options.question == "export":
        return _export(found, options)
    table, words = _ask(found, options)
    if words:
        print(words)
    shown = table[[name for name in SHOWN if name in table]].head(options.count)
    if len(shown):
        print(shown.to_string(index=False, float_format="{:.3g}".format))
    if len(table) > len(shown):
        print(f"{len(table) - len(shown):,} more rows; --count or --output shows them.")
    if options.output:
        path = Path(options.output)
        if path.exists() and not options.overwrite:
            raise InputError(f"{path}: the file exists; choose another name, or add --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        for_spreadsheets(table).to_csv(path, index=False)
        print(f"The table is in {path}.")
    return 0


def _ask(found: graph.Graph, options: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    names, question = options.names, options.question
    if question == "neighbours":
        return found.neighbours(names[0], options.kind), ""
    if question == "central":
        return found.centrality(), ""
    if question == "conditions" and len(names) > 1:
        raise InputError("conditions takes one contrast at the most; put it into quotes")
    answer = {
        "explain": lambda: found.explain(*names), "compare": lambda: found.compare(*names),
        "paths": lambda: found.paths(*names, within=options.within, count=options.count),
        "conditions": lambda: found.conditions(*names),
        "hypotheses": lambda: found.hypotheses(options.kind or "tf-regulates-gene",
                                               count=max(options.count, 20)),
    }[question]()
    return answer.table, answer.words


def _export(found: graph.Graph, options: argparse.Namespace) -> int:
    if not options.names or not options.output:
        raise InputError("export needs nodes and --output DIR, such as: export C07 --output part")
    part = found.around(options.names, options.steps)
    part.write(options.output, overwrite=options.overwrite, page=_page(part, 0))
    print(f"{part}.\nThe part is in {options.output}.")
    return 0


def _page(made: graph.Graph, seed: int) -> str:
    """The explorer of a graph."""
    return explorer.page(made.nodes, made.edges, made.layout(seed), notes=made.notes,
                         communities=made.communities(seed), title="Knowledge graph of cell states")


def _drivers(options: argparse.Namespace):
    """Let the model say which genes drive each code, if it is named."""
    if options.model is None:
        return None
    from cellvq import driving, encoding

    model = encoding.load(options.model)
    return lambda cells: driving.drivers(cells, model, seed=options.seed)


def _say(step: str) -> None:
    if sys.stderr.isatty():
        print(f"cellvq graph: {step} ...", file=sys.stderr)
