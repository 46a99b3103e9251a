"""Folders of results that appear whole or not at all, and never replace what is not theirs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cellvq import InputError


def write_whole(folder: str | Path, fill: Callable[[Path], object]) -> Path:
    """Fill a new folder and put it in its place, so that no half of it is ever seen.

    Args:
        folder: the folder; its parents are made where they are missing. What is there already is
            replaced: ask :func:`check_free` first.
        fill: writes the files into the folder that it is given.

    Raises:
        InputError: it cannot be written; what was there is there still.

    Example:
        >>> with tempfile.TemporaryDirectory() as place:
        ...     made = write_whole(Path(place) / "new", lambda at: (at / "a.txt").write_text("a"))
        ...     [path.name for path in made.iterdir()]
        ['a.txt']
    """
    folder = Path(folder).expanduser()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); name another "
                         "folder") from error
    try:
        fill(new)
        new.chmod(0o755)
        if folder.exists():
            old = new.with_name(f"{new.name}.old")
            folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: not written ({error.strerror}); nothing changed") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def check_free(
    folder: str | Path, what: str, needed: set[str], files: set[str], overwrite: bool = False
) -> None:
    """Refuse a place that holds something else than a result that may be replaced.

    Args:
        folder: where the result is to be written.
        what: word for such a result, with its article.
        needed: files that every such result has.
        files: all files and folders that it may have.
        overwrite: whether an earlier result may be replaced.

    Raises:
        InputError: the place is taken.
    """
    folder = Path(folder).expanduser()
    if folder.is_dir():
        there = {path.name for path in folder.iterdir()}
        if not there:
            return
        if not needed <= there <= files:
            raise InputError(f"{folder} holds something else than {what}; name another folder")
        if not overwrite:
            raise InputError(f"{folder} holds {what} already; name another folder, or allow "
                             "it to be overwritten (--overwrite)")
    elif folder.exists():
        raise InputError(f"{folder} is a file; name a folder")
