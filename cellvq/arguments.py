"""The words of the command line: every verb, its flags and their help.

`__main__` does what they say.
"""

import argparse
import json

import cellvq

QUESTIONS = {"explain": 1, "compare": 2, "paths": 2, "neighbours": 1, "conditions": None,
             "hypotheses": 0, "central": 0, "export": None}
"""What a graph can be asked, and how many names each question takes; None for any number."""
FILE_HELP = "cells with raw counts (.h5ad, 10x .h5 or folder, .loom, .csv), or a data set's name"


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports a mistake in one line, as every other mistake is reported."""

    def error(self, message: str):
        self.exit(2, f"cellvq: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Describe the verbs and their flags."""
    parser = _Parser(
        prog="cellvq", description="Single cells as readable codes, and the graph they open.",
        epilog="Start with: cellvq check pbmc68k_reduced",
    )
    parser.add_argument("--version", action="version", version=f"cellvq {cellvq.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _add(verbs, "check", "say whether a file can be used, and if not, what to do",
                "cellvq check my.h5ad --label cell_type")
    verb.add_argument("file", metavar="FILE", help=FILE_HELP)
    verb.add_argument("--json", action="store_true", help="print the report as JSON")
    verb.add_argument("--model", metavar="DIR", help="count the genes that this model knows")
    verb.add_argument("--label", metavar="COLUMN", help="column of obs that is to be the label")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs that is to be the batch")
    _add_names(verb)

    verb = _add(verbs, "pretrain", "train a model on raw counts by hiding genes",
                "cellvq pretrain my.h5ad --preset tiny --minutes 5 --seed 0 --output model",
                "; go on with the same command and --resume")
    verb.add_argument("files", metavar="FILE", nargs="+", help=FILE_HELP)
    verb.add_argument("--preset", default="tiny", help="size of the model (default: tiny)")
    verb.add_argument("--init", metavar="NAME|DIR", help="go on from this trained model: small, "
                      "which comes with the package, or one of your own")
    verb.add_argument("--keep-codes", action=argparse.BooleanOptionalAction,
                      help="keep genes and codes of --init, so that codes keep their meaning, or "
                      "fit them to these cells anew (default: what tells more of these cells)")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs with the batch to leave out")
    verb.add_argument("--panel", metavar="NAME|FILE",
                      help="genes to learn: panel_19264, or a file with one name a line")
    _add_names(verb)
    verb.add_argument("--stream", action="store_true", default=None,
                      help="read the cells from the disk while training, as for large corpora")
    verb.add_argument("--property", metavar="COLUMN", action="append", dest="properties",
                      help="column of obs to predict as well, such as tissue; may be repeated")
    verb.add_argument("--quantizer", help="nested, ema (flat), residual, fsq or soft")
    verb.add_argument("--codes", type=_sizes, metavar="N[,N...]",
                      help="size of the codebook, or of each level: 8,64,512")
    _add_training(verb)
    verb.add_argument("--minutes", type=_number(float), metavar="M", help="train this long")
    verb.add_argument("--compile", action="store_true", help="compile the model with torch first")

    verb = _add(verbs, "finetune", "teach a trained model a label",
                "cellvq finetune my.h5ad --model model --label cell_type --output tuned",
                "; go on with the same command and --resume")
    verb.add_argument("files", metavar="FILE", nargs="+", help=FILE_HELP)
    verb.add_argument("--model", metavar="DIR", required=True, help="a trained model")
    verb.add_argument("--label", metavar="COLUMN", required=True, help="column of obs to learn")
    verb.add_argument("--parts", default="all",
                      help="what may learn: all, adapters or head (default: all)")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs with the batch")
    _add_training(verb)

    verb = _add(verbs, "import-official", "turn the released checkpoint into a model of ours",
                "cellvq import-official models.ckpt --mode m1 --output official",
                "; no model was written")
    verb.add_argument("checkpoint", metavar="CKPT", help="the released models.ckpt")
    verb.add_argument("--mode", default="m1",
                      help="m1 (pretrained) or m2 (fine-tuned); default: m1")
    verb.add_argument("--output", metavar="DIR", required=True, help="folder for the model")
    verb.add_argument("--panel", metavar="FILE", help="table of the 19,264 genes in their order")
    verb.add_argument("--overwrite", action="store_true", help="replace a model in the folder")

    verb = _add(verbs, "encode", "give every cell its embedding, its code and a confidence",
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
    _add_names(verb)

    verb = _add(verbs, "benchmark", "compare CellVQ with established methods on your own cells",
                "cellvq benchmark my.h5ad --label cell_type --batch batch --output benchmark",
                "; go on with the same command")
    verb.add_argument("file", metavar="FILE", help=FILE_HELP)
    verb.add_argument("--label", metavar="COLUMN", help="column of obs with what is known of cells")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs with the technical batch")
    verb.add_argument("--donor", metavar="COLUMN", help="column of obs whose values are held out")
    verb.add_argument("--study", metavar="COLUMN", help="column of obs with the study")
    verb.add_argument("--method", metavar="NAME|obsm:KEY", action="append", default=[],
                      help="a method of the benchmark (default: all), or vectors of your own that "
                           "are in the file; may be repeated")
    verb.add_argument("--tasks", metavar="TASK[,TASK...]", type=_words,
                      help="clustering, annotation, integration, properties, denoising "
                           "(default: all)")
    verb.add_argument("--seeds", type=_number(int), default=5, metavar="N",
                      help="runs of every method (default: 5)")
    verb.add_argument("--steps", type=_number(int), metavar="N", help="steps of each CellVQ")
    verb.add_argument("--minutes", type=_number(float), metavar="M",
                      help="train each CellVQ this long instead")
    verb.add_argument("--model", metavar="NAME|DIR", default="small",
                      help="the trained model that goes on with the cells (default: small)")
    verb.add_argument("--output", metavar="DIR", required=True, help="folder for the tables")
    verb.add_argument("--jobs", type=_number(int), default=1, metavar="N",
                      help="processes of one thread and about 2 GB each (default: 1)")
    verb.add_argument("--restart", action="store_true", help="do not go on with what is there")
    verb.add_argument("--overwrite", action="store_true",
                      help="replace a benchmark of other cells that is in the folder")

    verb = _add(verbs, "codes", "write the dictionary of codes: markers, names, stability",
                "cellvq codes encoded.h5ad --label cell_type --output dictionary",
                "; no dictionary was written")
    verb.add_argument("file", metavar="ENCODED.h5ad", help="cells with raw counts and codes")
    verb.add_argument("--output", metavar="DIR", required=True, help="folder for the dictionary")
    verb.add_argument("--model", metavar="DIR",
                      help="the model that encoded them (default: where it was when they were)")
    verb.add_argument("--label", metavar="COLUMN",
                      help="column of obs to show beside the names; it never decides them")
    verb.add_argument("--donor", metavar="COLUMN", help="column of obs with the donor")
    verb.add_argument("--batch", metavar="COLUMN", help="column of obs with the batch")
    verb.add_argument("--runs", metavar="ENCODED.h5ad", nargs="+", default=[],
                      help="the same cells encoded by other models, to measure stability")
    verb.add_argument("--gene-sets", metavar="NAME|FILE.gmt", action="append",
                      help="hallmark, reactome, go or a file; may be repeated")
    verb.add_argument("--markers", metavar="NAME|FILE.csv",
                      help="markers to name codes by: blood, sctype, accordion or a file")
    verb.add_argument("--tissue", default="blood",
                      help="tissue whose cell types may be named (default: blood)")
    verb.add_argument("--seed", type=int, default=0, help="every draw follows from it (default: 0)")
    verb.add_argument("--overwrite", action="store_true", help="replace a dictionary in the folder")

    verb = _add(verbs, "graph", "join codes, genes, signals and annotations in a knowledge graph",
                "cellvq graph encoded.h5ad --label cell_type --donor donor --output graph",
                "; no graph was written")
    verb.add_argument("files", metavar="ENCODED.h5ad", nargs="+",
                      help="cells with raw counts and codes; shards of one data set are added up. "
                      "To ask a graph: cellvq graph query GRAPHDIR QUESTION")
    verb.add_argument("--output", metavar="DIR", required=True, help="folder for the graph")
    verb.add_argument("--label", metavar="COLUMN", action="append", default=[], dest="labels",
                      help="column of obs with annotations of cells; may be repeated")
    verb.add_argument("--donor", metavar="COLUMN", help="column of obs with the donor")
    verb.add_argument("--condition", metavar="COLUMN", help="column of obs with the condition")
    verb.add_argument("--reference", metavar="VALUE",
                      help="condition that the others are compared with, such as ctrl")
    verb.add_argument("--model", metavar="NAME|DIR", help="the model that encoded the cells: adds "
                      "the genes that drive each code (default: where it was)")
    verb.add_argument("--resource", metavar="NAME", help="liana's list of ligands and receptors "
                      "(default: consensus or mouseconsensus, as the names of the genes look)")
    verb.add_argument("--fdr", type=_number(float), default=0.05, metavar="Q",
                      help="largest false discovery rate of a finding (default: 0.05)")
    verb.add_argument("--seed", type=int, default=0, help="every draw follows from it (default: 0)")
    verb.add_argument("--overwrite", action="store_true", help="replace a graph in the folder")

    verb = _add(verbs, "graph query", "ask a knowledge graph",
                "cellvq graph query graph paths CD8A NKG7 --within C07")
    verb.add_argument("graph", metavar="GRAPH", help="folder of a graph, .graphml or .cyjs")
    verb.add_argument("question", choices=QUESTIONS, metavar="QUESTION",
                      help="explain CODE; compare CODE CODE; paths NODE NODE; neighbours NODE; "
                      "conditions [CONTRAST]; hypotheses; central; export NODE...")
    verb.add_argument("names", metavar="NAME", nargs="*", help="codes, genes, or ids as gene:ID1")
    verb.add_argument("--within", metavar="CODE", help="paths through this code alone")
    verb.add_argument("--kind", help="kind of edges, for neighbours and hypotheses")
    verb.add_argument("--count", type=_number(int), default=10, metavar="N",
                      help="rows to show (default: 10)")
    verb.add_argument("--steps", type=_number(int), default=1, metavar="N",
                      help="links around the nodes to export (default: 1)")
    verb.add_argument("--output", metavar="FILE.csv|DIR",
                      help="file for the whole table, or folder for the part that is exported")
    verb.add_argument("--overwrite", action="store_true", help="replace the output")

    verb = _add(verbs, "fetch", "download, verify and keep a data set or a gene table",
                "cellvq fetch pbmc3k", "; run it again and it goes on where it stopped")
    verb.add_argument("names", metavar="NAME", nargs="+", help="names of data/registry.csv")
    verb.add_argument("--unverified", action="store_true",
                      help="allow files whose SHA-256 nobody has registered")

    verb = _add(verbs, "corpus", "make one shuffled training corpus of many files",
                "cellvq corpus build a.h5ad b.h5ad --min-genes 200 --output corpus",
                "; go on with the same command and --resume")
    verb.add_argument("action", choices=["build"], help="what to do")
    verb.add_argument("files", metavar="FILE", nargs="*", help=FILE_HELP)
    verb.add_argument("--census", metavar="VERSION|DIR",
                      help="add cells of CELLxGENE Census, such as 2025-01-30")
    verb.add_argument("--organism", default="homo_sapiens",
                      help="organism of Census (default: homo_sapiens)")
    verb.add_argument("--filter", metavar="QUERY",
                      help="cells of Census: \"is_primary_data == True and tissue == 'blood'\"")
    verb.add_argument("--panel", metavar="NAME|FILE",
                      help="genes to keep: panel_19264, or a file with one name a line")
    verb.add_argument("--columns", type=_words, metavar="A,B",
                      help="columns of obs to keep (default: all)")
    verb.add_argument("--min-genes", type=_number(int), default=1, metavar="N",
                      help="leave out cells that express fewer genes (default: 1)")
    verb.add_argument("--seed", type=int, default=0, help="order of the cells (default: 0)")
    verb.add_argument("--resume", action="store_true", help="go on with the corpus in the folder")
    verb.add_argument("--overwrite", action="store_true", help="replace a corpus in the folder")
    verb.add_argument("--output", metavar="DIR", required=True, help="folder for the corpus")

    verb = _add(verbs, "bench", "measure how fast this machine trains and encodes, reads cells, or "
                "makes a knowledge graph", "cellvq bench model --preset base --json")
    verb.add_argument("what", choices=["model", "data", "graph"], help="what to measure")
    verb.add_argument("--preset", default="tiny", help="size of the model (default: tiny)")
    verb.add_argument("--genes", type=_number(int), metavar="N",
                      help="expressed genes of a cell (default: those of a training step)")
    verb.add_argument("--cells", type=_number(int), metavar="N",
                      help="cells of a batch (default: as many as make it fastest); for data, "
                           "cells of the file (default: 100,000); for graph, encoded cells "
                           "(default: 100,000 and 1,000,000)")
    verb.add_argument("--codes", type=_number(int), default=512, metavar="N",
                      help="codes of the graph (default: 512)")
    verb.add_argument("--compile", action="store_true", help="compile the model with torch first")
    verb.add_argument("--json", action="store_true", help="print the measurements as JSON")

    verb = _add(verbs, "book", "run the notebooks of a profile and build the book",
                "cellvq book --profile default", "; run it again and it goes on where it stopped")
    verb.add_argument("--profile", metavar="NAME|FILE", default="default",
                      help="a profile in book/profiles, or your own .yml (default: default)")
    return parser


def _add(verbs, name: str, summary: str, example: str, after_interruption: str = ""):
    """Add a verb, with an example below its help."""
    parser = verbs.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"Example: {example}",
    )
    parser.set_defaults(verb=name, after_interruption=after_interruption)
    return parser


def _add_names(verb: argparse.ArgumentParser) -> None:
    """Add the flags by which genes are found under other names."""
    verb.add_argument("--gene-table", metavar="NAME",
                      help="find genes by older names and aliases in this table, such as hgnc")
    verb.add_argument("--orthologs", metavar="NAME",
                      help="find genes of mouse by this table, such as mouse_orthologs")


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


def _words(text: str) -> list[str]:
    """Read names between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


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
