"""The command line: each verb calls one public function and speaks in whole sentences.

A mistake in the input ends with one line on standard error and exit status 2, a book with failed
pages with status 1, an interruption with 130.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

import cellvq
from cellvq import InputError
from cellvq.arguments import parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after ``cellvq``; those of the process by default.

    Returns:
        The exit status: 0 done, 1 a page of the book failed, 2 the input cannot be used.

    Example:
        >>> main(["check", "simulated"])
        simulated: 1,500 cells x 400 genes, ready for CellVQ.
        ...
        0
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:2] == ["graph", "query"]:
        words[:2] = ["graph query"]
    options = parser().parse_args(words)
    try:
        with warnings.catch_warnings():
            # Notices of other packages to programmers would bury the sentences for the user.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            return VERBS[options.verb](options)
    except InputError as error:
        print(f"cellvq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ncellvq: interrupted{options.after_interruption}", file=sys.stderr)
        return 130


def _named(file: str):
    """Load a data set by its name; of anything else, return the path."""
    from cellvq import datasets

    path = Path(file).expanduser()
    is_path = path.suffix or len(path.parts) > 1 or path.exists()
    return path if is_path and not datasets.is_name(file) else datasets.load(file)


def _cells(file: str):
    """Read a data set by its name, or a file as it is, with all that the user keeps in it."""
    from cellvq import reading

    found = _named(file)
    return reading.read(found) if isinstance(found, Path) else found


def _names(options: argparse.Namespace) -> dict:
    """Read the tables by which genes are found under other names, if they are asked for."""
    from cellvq import registry

    asked = {"gene_table": options.gene_table, "orthologs": options.orthologs}
    return {key: registry.table(name) for key, name in asked.items() if name is not None}


def _check(options: argparse.Namespace) -> int:
    """Print the report on one file."""
    panel = None if options.model is None else cellvq.load(options.model).panel
    report = cellvq.check(_named(options.file), panel=panel, label=options.label,
                          batch=options.batch, **_names(options))
    print(json.dumps(report.to_dict(), indent=1) if options.json else report)
    return 0 if report.ok else 2


def _given(options: argparse.Namespace, *names: str) -> dict:
    """Return the named options that were given."""
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return given | {"changes": dict(given.get("changes", ()))}


TRAINING = ("batch", "donor", "steps", "seed", "changes", "checkpoint_every", "engine", "resume",
            "overwrite", "output")


def _pretrain(options: argparse.Namespace) -> int:
    """Train a model and say where it is."""
    given = _given(options, "preset", "init", "keep_codes", "properties", "quantizer", "codes",
                   "minutes", "compile", "stream", *TRAINING)
    cellvq.pretrain(options.files, panel=_panel(options.panel), **_names(options), **given)
    return _say_where(options)


def _finetune(options: argparse.Namespace) -> int:
    """Teach a model a label and say where it is."""
    tuned = cellvq.finetune(options.files, **_given(options, "model", "label", "parts", *TRAINING))
    accuracy = tuned.history[f"accuracy_{options.label}"].iloc[-1]
    if _is_first():
        print(f"Of the labelled validation cells {accuracy:.1%} get their {options.label} right.")
    return _say_where(options)


def _is_first() -> bool:
    """Tell whether this is the first process of a torchrun, the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def _say_where(options: argparse.Namespace) -> int:
    """Say where a trained model is and what to do with it."""
    if not _is_first():
        return 0
    print(
        f"The model is in {options.output}: model.safetensors, config.json and history.jsonl.\n"
        f"Next: cellvq encode {options.files[0]} --model {options.output} --output encoded.h5ad"
    )
    return 0


def _import_official(options: argparse.Namespace) -> int:
    """Turn the released checkpoint into a model of ours."""
    from cellvq.official import import_official

    if (Path(options.output) / "config.json").exists() and not options.overwrite:
        raise InputError(f"{options.output}: holds a model; name another folder, or overwrite it")
    print(import_official(options.checkpoint, options.mode, options.output, panel=options.panel))
    print(f"Next: cellvq encode my.h5ad --model {options.output} --output encoded.h5ad")
    return 0


def _panel(named: str | None) -> list[str] | None:
    """Read the genes of a panel, by its name in the registry or from a file."""
    if named is None:
        return None
    from cellvq import panels

    return panels.read(named)


def _fetch(options: argparse.Namespace) -> int:
    """Download data sets and say where they are."""
    from cellvq import datasets

    for name in options.names:
        print(f"{name} is in {datasets.fetch(name, unverified=options.unverified)}.")
    return 0


def _corpus(options: argparse.Namespace) -> int:
    """Build a corpus and say what is in it."""
    from cellvq import build, corpus

    if not options.files and options.census is None:
        raise InputError("nothing to build a corpus of; name files, or a version with --census")
    found = corpus.open_all(options.files) if options.files else []
    if options.census is not None:
        from cellvq.census import Census

        found.append(Census(options.census, options.organism, options.filter))
    manifest = build.build(
        found, options.output, panel=_panel(options.panel), columns=options.columns,
        min_genes=options.min_genes, seed=options.seed, resume=options.resume,
        overwrite=options.overwrite,
    )
    print(f"{options.output}: {build.in_words(manifest)}\n"
          f"Next: cellvq pretrain {options.output} --output model")
    return 0


def _bench(options: argparse.Namespace) -> int:
    """Measure the model, the reading of cells, or the graph, on this machine."""
    if options.what == "graph":
        from cellvq import graphbench

        sizes = {} if options.cells is None else {"cells": (options.cells,)}
        found = graphbench.bench_graph(genes=options.genes or 3000, codes=options.codes, **sizes)
        print(json.dumps(found, indent=1) if options.json else graphbench.in_words(found))
        return 0
    if options.what == "data":
        from cellvq import databench

        found = databench.bench_data(options.cells or 100_000, options.genes or 2000)
        print(json.dumps(found, indent=1) if options.json else databench.in_words(found))
        return 0
    from cellvq import bench

    measured = bench.bench_model(options.preset, genes=options.genes, cells=options.cells,
                                 compile=options.compile)
    print(json.dumps(measured, indent=1) if options.json else bench.in_words(measured))
    return 0


def _encode(options: argparse.Namespace) -> int:
    """Encode one file into another, which appears whole or not at all."""
    source, output = Path(options.file).expanduser(), Path(options.output).expanduser()
    if output.suffix != ".h5ad":
        raise InputError(f"{output}: the output must end in .h5ad")
    if output.is_dir():
        raise InputError(f"{output}: this is a folder; name a file to write")
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"{output}: the output is the input itself; choose another name")
    if output.exists() and not options.overwrite:
        raise InputError(f"{output}: the file exists; choose another name, or add --overwrite")
    encoded = cellvq.encode(_cells(options.file), options.model, target_depth=options.target_depth,
                            precision=options.precision, **_names(options))
    if not _is_first():
        return 0
    partial = output.with_name(f".{output.stem}.{os.getpid()}.partial.h5ad")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        encoded.write_h5ad(partial)
        partial.replace(output)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}); choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    used = encoded.obs["cellvq_code"].nunique()
    print(f"{encoded.n_obs:,} cells have one of {used} codes; they are in {output}.\n"
          f"Next: cellvq codes {output} --output dictionary")
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    """Compare methods on one file and say who is ahead."""
    from cellvq import benchmarking, contenders

    methods, keys = contenders.asked(options.method)
    found = benchmarking.benchmark(
        _cells(options.file), options.label, options.batch, options.donor, options.study,
        methods=methods, obsm=keys, tasks=options.tasks, seeds=options.seeds, steps=options.steps,
        minutes=options.minutes, init=options.model, name=Path(options.file).stem,
        output=options.output, resume=not options.restart, overwrite=options.overwrite,
        jobs=options.jobs,
    )
    print(f"{found}\nRead {options.output}/report.html; the tables lie beside it.")
    return 0


def _codes(options: argparse.Namespace) -> int:
    """Write the dictionary of the codes of an encoded file."""
    from cellvq import dictionary, dictionaryfiles, reading, stability

    dictionaryfiles.check_free(Path(options.output), options.overwrite)
    cells = reading.read(Path(options.file))
    runs, how = [reading.read(Path(file)) for file in options.runs], "in other runs"
    if not runs:
        how = ("by grouping halves of the same cell vectors anew; for what another training run "
               "would change, name files encoded by other models with --runs")
    others = stability.code_runs(runs) if runs else stability.resampled(cells, seed=options.seed)
    found = dictionary.build(
        cells, label=options.label, donor=options.donor, batch=options.batch,
        model=_encoder(cells, options.model), knowledge=_known(options), seed=options.seed,
        stability=stability.code_stability(cells, others, seed=options.seed),
    )
    found.notes.append(f"stability was measured {how}")
    dictionary.write(found, options.output, overwrite=options.overwrite)
    print(f"{dictionary.in_words(found)}.\n"
          f"Read {options.output}/index.html; README.md beside it explains the tables.")
    return 0


def _encoder(cells, named: str | None) -> str | None:
    """Find the folder of the model that encoded cells, if it is named or still where it was."""
    if named is not None:
        return named
    folder = cells.uns.get("cellvq", {}).get("model", "")
    return folder if folder and (Path(folder) / "config.json").is_file() else None


def _known(options: argparse.Namespace):
    """Gather what is known on this machine, and read what the user names."""
    import dataclasses

    import pandas as pd

    from cellvq import knowledge

    known, named = knowledge.available(options.tissue), {}
    if options.gene_sets:
        tables = [knowledge.gene_sets(source) for source in options.gene_sets]
        named["gene_sets"] = pd.concat(tables, ignore_index=True)
    if options.markers:
        named["markers"] = knowledge.markers(options.markers, options.tissue)
    return dataclasses.replace(known, **named)


def _graph(options: argparse.Namespace) -> int:
    """Make the knowledge graph of encoded files."""
    from cellvq import graphverbs

    return graphverbs.make(options)


def _graph_query(options: argparse.Namespace) -> int:
    """Ask a knowledge graph."""
    from cellvq import graphverbs

    return graphverbs.query(options)


def _book(options: argparse.Namespace) -> int:
    """Run the notebooks and build the pages."""
    from cellvq.book import build_book

    return 0 if build_book(options.profile).ok else 1


VERBS = {
    "check": _check, "pretrain": _pretrain, "finetune": _finetune,
    "import-official": _import_official, "encode": _encode, "codes": _codes, "fetch": _fetch,
    "graph": _graph, "graph query": _graph_query,
    "corpus": _corpus, "bench": _bench, "benchmark": _benchmark, "book": _book,
}

if __name__ == "__main__":
    sys.exit(main())
