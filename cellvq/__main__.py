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

FILE_HELP = "an .h5ad or 10x .h5 file with raw counts, or a data set's name (pbmc68k_reduced)"


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports a mistake in one line, as every other mistake is reported."""

    def error(self, message: str):
        self.exit(2, f"cellvq: {message}; see {self.prog} --help\n")


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
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            # Notices of other packages to programmers would bury the sentences for the user.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            return options.verb(options)
    except InputError as error:
        print(f"cellvq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ncellvq: interrupted{options.after_interruption}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    """Describe the verbs and their flags."""
    parser = _Parser(
        prog="cellvq", description="Single cells as readable codes, and the graph they open.",
        epilog="Start with: cellvq check pbmc68k_reduced",
    )
    parser.add_argument("--version", action="version", version=f"cellvq {cellvq.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _add(verbs, _check, "say whether a file can be used, and if not, what to do",
                "cellvq check my.h5ad --label cell_type")
    verb.add_argument("file", metavar="FILE", help=FILE_HELP)
    verb.add_argument("--json", action="store_true", help="print the report as JSON")
    verb.add_argument("--model", metavar="DIR", help="count the genes that this model knows")
    verb.add_argument("--label", metavar="COLUMN", help="column of obs that is to be the label")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs that is to be the batch")

    verb = _add(verbs, _pretrain, "train a model on raw counts by hiding genes",
                "cellvq pretrain my.h5ad --preset tiny --minutes 5 --seed 0 --output model",
                "; go on with the same command and --resume")
    verb.add_argument("files", metavar="FILE", nargs="+", help=FILE_HELP)
    verb.add_argument("--preset", default="tiny", help="size of the model (default: tiny)")
    verb.add_argument("--init", metavar="DIR", help="go on from this trained model")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs with the batch to leave out")
    verb.add_argument("--property", metavar="COLUMN", action="append", dest="properties",
                      help="column of obs to predict as well, such as tissue; may be repeated")
    verb.add_argument("--quantizer", help="ema, nested, residual, fsq or soft")
    verb.add_argument("--codes", type=_sizes, metavar="N[,N...]",
                      help="size of the codebook; for nested codes that of each level: 8,64,512")
    _add_training(verb)
    verb.add_argument("--minutes", type=_number(float), metavar="M", help="train this long")
    verb.add_argument("--compile", action="store_true", help="compile the model with torch first")

    verb = _add(verbs, _finetune, "teach a trained model a label",
                "cellvq finetune my.h5ad --model model --label cell_type --output tuned",
                "; go on with the same command and --resume")
    verb.add_argument("files", metavar="FILE", nargs="+", help=FILE_HELP)
    verb.add_argument("--model", metavar="DIR", required=True, help="a trained model")
    verb.add_argument("--label", metavar="COLUMN", required=True, help="column of obs to learn")
    verb.add_argument("--parts", default="all",
                      help="what may learn: all, adapters or head (default: all)")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs with the batch")
    _add_training(verb)

    verb = _add(verbs, _import_official, "turn the released checkpoint into a model of ours",
                "cellvq import-official models.ckpt --mode m1 --output official",
                "; no model was written")
    verb.add_argument("checkpoint", metavar="CKPT", help="the released models.ckpt")
    verb.add_argument("--mode", default="m1",
                      help="m1 (pretrained) or m2 (fine-tuned); default: m1")
    verb.add_argument("--output", metavar="DIR", required=True, help="folder for the model")
    verb.add_argument("--panel", metavar="FILE", help="table of the 19,264 genes in their order")
    verb.add_argument("--overwrite", action="store_true", help="replace a model in the folder")

    verb = _add(verbs, _encode, "give every cell its embedding, its code and a confidence",
                "cellvq encode my.h5ad --model model --output encoded.h5ad",
                "; no output was written")
    verb.add_argument("file", metavar="FILE", help=FILE_HELP)
    verb.add_argument("--model", metavar="NAME|DIR", required=True, help="a pretrained model")
    verb.add_argument("--output", metavar="OUT.h5ad", required=True, help="file to write")
    verb.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    verb.add_argument("--target-depth", default="match", metavar="4|match",
                      help="depth token T: log10 of UMI counts, or the cell's own (default: match)")
    verb.add_argument("--precision", default="float32",
                      help="float32, or bfloat16 for speed on wide models (default: float32)")

    verb = _add(verbs, _bench, "measure how fast this machine trains and encodes",
                "cellvq bench model --preset base --json")
    verb.add_argument("what", choices=["model"], help="what to measure")
    verb.add_argument("--preset", default="tiny", help="size of the model (default: tiny)")
    verb.add_argument("--genes", type=_number(int), metavar="N",
                      help="expressed genes of a cell (default: those of a training step)")
    verb.add_argument("--cells", type=_number(int), metavar="N",
                      help="cells of a batch (default: as many as make it fastest)")
    verb.add_argument("--compile", action="store_true", help="compile the model with torch first")
    verb.add_argument("--json", action="store_true", help="print the measurements as JSON")

    verb = _add(verbs, _book, "run the notebooks of a profile and build the book",
                "cellvq book --profile default", "; run it again and it goes on where it stopped")
    verb.add_argument("--profile", metavar="NAME|FILE", default="default",
                      help="a profile in book/profiles, or your own .yml (default: default)")
    return parser


def _add(verbs, function, summary: str, example: str, after_interruption: str = ""):
    """Add a verb named as its function, with an example below its help."""
    parser = verbs.add_parser(
        function.__name__[1:].replace("_", "-"), help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"Example: {example}",
    )
    parser.set_defaults(verb=function, after_interruption=after_interruption)
    return parser


def _add_training(verb: argparse.ArgumentParser) -> None:
    """Add the flags that every kind of training knows."""
    verb.add_argument("--donor", metavar="COLUMN",
                      help="column of obs with the donor; whole donors are kept for validation")
    verb.add_argument("--steps", type=_number(int), metavar="N", help="train this many steps")
    verb.add_argument("--seed", type=int, default=0, help="every draw follows from it (default: 0)")
    verb.add_argument("--set", type=_setting, metavar="NAME=VALUE", action="append",
                      dest="changes", help="change a number, such as training.hidden_share=0.4")
    verb.add_argument("--checkpoint-every", type=_number(int), metavar="N",
                      help="steps between checkpoints")
    verb.add_argument("--engine", default="ddp",
                      help="how the processes of torchrun share a model: ddp or fsdp")
    verb.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    verb.add_argument("--overwrite", action="store_true", help="replace a run in the folder")
    verb.add_argument("--output", metavar="DIR", required=True, help="folder for the model")


def _setting(text: str) -> tuple[str, object]:
    """Read NAME=VALUE; the value as JSON, or else as the word it is."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _sizes(text: str) -> tuple[int, ...]:
    """Read whole numbers between commas."""
    return tuple(_number(int)(part) for part in text.split(","))


def _number(kind: type):
    """Make a reader of numbers above zero."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not value > 0:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {words} above 0")
        return value

    return read


def _cells(file: str):
    """Read a data set by its name, or a file as it is, with all that the user keeps in it."""
    from cellvq import datasets, reading

    path = Path(file).expanduser()
    is_path = path.suffix or len(path.parts) > 1 or path.exists()
    return reading.read(path) if is_path and not datasets.is_name(file) else datasets.load(file)


def _check(options: argparse.Namespace) -> int:
    """Print the report on one file."""
    panel = None if options.model is None else cellvq.load(options.model).panel
    cells = _cells(options.file)
    cells.uns.setdefault("dataset", Path(options.file).name)
    report = cellvq.check(cells, panel=panel, label=options.label, batch=options.batch)
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
    given = _given(options, "preset", "init", "properties", "quantizer", "codes", "minutes",
                   "compile", *TRAINING)
    cellvq.pretrain(options.files, **given)
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


def _bench(options: argparse.Namespace) -> int:
    """Measure the model on this machine."""
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
    model = cellvq.load(options.model)
    encoded = cellvq.encode(_cells(options.file), model, target_depth=options.target_depth,
                            precision=options.precision)
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
    print(f"{encoded.n_obs:,} cells have one of {used} codes; they are in {output}.")
    return 0


def _book(options: argparse.Namespace) -> int:
    """Run the notebooks and build the pages."""
    from cellvq.book import build_book

    return 0 if build_book(options.profile).ok else 1


if __name__ == "__main__":
    sys.exit(main())
