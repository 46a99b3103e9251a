"""A user's own table: read as text, and whatever cannot be used is named by its line and column."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from cellvq import InputError
from cellvq.counts import some

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a text for a formula, when it stands first."""
ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """Lead text that a spreadsheet would run as a formula by an apostrophe.

    Example:
        >>> for_spreadsheets(pd.DataFrame({"label": ["=1+1", "B"], "score": [-1.0, 2.0]}))
          label  score
        0  '=1+1   -1.0
        1      B    2.0
    """
    texts = table.select_dtypes(include=["object", "string"]).columns
    risky = {name: table[name].str.lstrip("'").str.startswith(FORMULA, na=False) for name in texts}
    return table.assign(**{name: table[name].where(~risky[name], "'" + table[name])
                           for name in texts})


def from_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """Take off the apostrophes that :func:`for_spreadsheets` led text by.

    Example:
        >>> from_spreadsheets(pd.DataFrame({"label": ["'=1+1", "'quoted'"]}))["label"].tolist()
        ['=1+1', "'quoted'"]
    """
    texts = table.select_dtypes(include=["object", "string"]).columns
    led = {name: table[name].str.startswith("'", na=False)
           & table[name].str.lstrip("'").str.startswith(FORMULA, na=False) for name in texts}
    return table.assign(**{name: table[name].where(~led[name], table[name].str[1:])
                           for name in texts})


def own_file(source: str | Path, endings: tuple[str, ...] = ENDINGS) -> Path:
    """Check the path of a user's file.

    Raises:
        InputError: it is of another kind, or does not exist.
    """
    path = Path(source).expanduser()
    if not path.name.lower().endswith(endings):
        raise InputError(f"{source} is no known table and no file of this kind; give a file that "
                         f"ends in {' or '.join(endings)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path")
    return path


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a table as text; lines at its head that begin with ``#`` are comment.

    Returns:
        All columns as text, nothing missing; the index is the line in which each row stands.

    Raises:
        InputError: it is no table.
    """
    try:
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8") as file:
            head = len(list(itertools.takewhile(lambda line: line.startswith("#"), file)))
        table = pd.read_csv(path, sep="," if ".csv" in path.name.lower() else "\t", dtype=str,
                            keep_default_na=False, skiprows=head, skip_blank_lines=False)
    except (OSError, ValueError, EOFError) as error:  # pandas raises kinds of ValueError
        problem = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise InputError(f"{path}: is no table ({problem[0]}); give text in columns, the names of "
                         "the columns in its first line") from error
    table = table.apply(lambda column: column.str.strip())
    table.index += head + 2
    return table[(table != "").any(axis=1)]


def need(table: pd.DataFrame, path: Path, columns: list[str]) -> None:
    """Refuse a table without a column, without rows, or with a hole in one of the columns.

    Raises:
        InputError: which column, or which line.
    """
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise InputError(f"{path}: has no column {lacking[0]!r}, only {some(list(table))}; name "
                         f"its columns {', '.join(columns)}")
    if table.empty:
        raise InputError(f"{path}: has no rows; give one for each pair")
    for column in columns:
        refuse(table[column] == "", path, column, table[column], "fill it in or drop the line")


def numbers(values: pd.Series, path: Path, column: str) -> pd.Series:
    """Turn a column of text into numbers.

    Raises:
        InputError: a line holds none.
    """
    found = pd.to_numeric(values, errors="coerce").astype(float)
    refuse(~np.isfinite(found), path, column, values, "give a number")
    return found


def refuse(bad: pd.Series, path: Path, column: str, values: pd.Series, remedy: str) -> None:
    """Name the first line that cannot be used, if there is one.

    Raises:
        InputError: which line, which column and what it holds.
    """
    if bad.any():
        line = bad.idxmax()
        raise InputError(f"{path}: line {line}, column {column!r} holds {values[line]!r}; {remedy}")
