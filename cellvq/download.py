"""One file from an address: whole and verified, or one line that says why not."""

import errno
import os
import shutil
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from cellvq import InputError, __version__, registry

TIMEOUT = (10, 60)  # seconds: to connect, and between two pieces
PIECE = 1 << 16  # bytes
TRIES = 5  # a broken line is taken up again as long as something arrives
REDIRECTS = 5
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


class _Broken(Exception):
    """The line broke; what has arrived may be of use."""


def download(
    url: str, target: Path, *, sha256: str = "", size: int = 0, progress: bool = True
) -> str:
    """Download a file, going on where an earlier try stopped.

    What has arrived lies beside the target as ``<name>.part`` until it is complete and verified. It
    is kept after a failure only if it can be taken up again: if the checksum is known, or the
    server names the version of the file (a strong ETag).

    Args:
        url: Address; ``https``, or ``http`` of this machine.
        target: Where the file goes; it appears there whole or not at all.
        sha256: Checksum that it must have; if empty, every content is accepted.
        size: Bytes that it must have; 0 if unknown.
        progress: Whether to draw a progress bar.

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: No network, no such file, another file or a page for people in its place, a
            broken line, or no room on the disk. The message says what to do.
    """
    part = target.with_name(target.name + ".part")
    by_hand = f"or save {url} as {target} yourself"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _receive_all(url, part, sha256, size, progress, by_hand)
        found = registry.digest(part)
        if sha256 and found != sha256 and resumed:  # the earlier piece may be of another file
            part.unlink()
            _receive_all(url, part, sha256, size, progress, by_hand)
            found = registry.digest(part)
        if sha256 and found != sha256:
            _drop(part)
            raise InputError(
                f"{url}: the file is not the registered one (SHA-256 {found[:12]}... instead of "
                f"{sha256[:12]}...) and was deleted; try again, and report it if it stays so"
            )
        _etag_of(part).unlink(missing_ok=True)
        part.replace(target)
    except OSError as error:
        kept = _keep(part, sha256)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{target.parent}: the disk is full; make room and run this again{kept}, or set "
                "CELLVQ_CACHE to a larger disk"
            ) from error
        raise InputError(
            f"{target.parent}: cannot be written ({error.strerror}); check permissions, or set "
            "CELLVQ_CACHE to another folder"
        ) from error
    return found


def _receive_all(
    url: str, part: Path, sha256: str, size: int, progress: bool, by_hand: str
) -> None:
    """Fill the partial file until it is complete, over as many lines as that takes."""
    for tries in range(1, TRIES + 1):
        before = _length(part)
        try:
            return _receive(url, part, sha256, size, progress, by_hand)
        except _Broken as broken:
            kept = _keep(part, sha256)
            if not (kept and _length(part) > before and tries < TRIES):
                raise InputError(
                    f"{url}: {broken}; check the network and run this again{kept}, {by_hand}"
                ) from broken


def _receive(url: str, part: Path, sha256: str, size: int, progress: bool, by_hand: str) -> None:
    """Ask once for what is missing and append it."""
    import requests

    try:
        with requests.Session() as session:
            answer, start = _ask(session, url, part, sha256, by_hand)
            total = _total(answer, start)
            if size and total and total != size:
                _drop(part)
                raise InputError(
                    f"{url}: the file there has {total:,} bytes and the registered one {size:,}; "
                    "it was replaced at its source, so report it"
                )
            if (total or size) - start > shutil.disk_usage(part.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not start:
                _etag_of(part).write_text(_strong_etag(answer), encoding="utf-8")
            try:
                _append(answer, part, start, total or size, progress, url, by_hand)
            except InputError:
                _drop(part)
                raise
    except requests.exceptions.RequestException as error:
        raise _Broken(_why(error, part)) from error
    if _length(part) < (total or size):
        raise _Broken(f"only {_length(part):,} of {total or size:,} bytes arrived")
    if size and _length(part) > size:
        _drop(part)
        raise InputError(f"{url}: sends more than the registered {size:,} bytes; report it")


def _ask(session, url: str, part: Path, sha256: str, by_hand: str) -> tuple:
    """Ask for what is missing: the answer, and the byte at which it begins."""
    start, etag = _length(part), _text(_etag_of(part))
    headers = {"User-Agent": f"cellvq/{__version__}", "Accept-Encoding": "identity"}
    if start and (sha256 or etag):
        # with a checksum the end decides; without one the server must say that it is the same file
        ask = {"Range": f"bytes={start}-"} | ({} if sha256 else {"If-Range": etag})
        answer = _open(session, url, headers | ask)
        if answer.status_code == 206:
            _check(answer, url, by_hand)
            if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return answer, start
        if answer.status_code == 200:  # it ignores ranges, or the file has changed
            _check(answer, url, by_hand)
            return answer, 0
        answer.close()
    answer = _open(session, url, headers)
    _check(answer, url, by_hand)
    return answer, 0


def _append(
    answer, part: Path, start: int, total: int, progress: bool, url: str, by_hand: str
) -> None:
    """Write an answer behind what is there, or anew; stop where more comes than should."""
    from tqdm.auto import tqdm

    with (
        part.open("ab" if start else "wb") as file,
        tqdm(
            total=total or None, initial=start, unit="B", unit_scale=True, desc=part.stem,
            disable=not progress,
        ) as bar,
    ):
        for piece in answer.iter_content(PIECE):
            if not file.tell() and _is_page(piece):
                raise InputError(_challenge(url, by_hand))
            file.write(piece)
            bar.update(len(piece))
            if total and file.tell() > total:
                break


def _why(error: Exception, part: Path) -> str:
    """Say in a few words why a request failed."""
    import requests

    kinds = requests.exceptions
    if isinstance(error, kinds.SSLError):
        return "the certificate of the server cannot be trusted"
    if isinstance(error, kinds.ConnectTimeout | kinds.ReadTimeout) or "timed out" in str(error):
        return "the server does not answer in time"
    if isinstance(error, kinds.ConnectionError) and not _length(part):
        return "there is no connection to the server"
    if isinstance(error, kinds.ConnectionError | kinds.ChunkedEncodingError):
        return "the connection broke"
    return f"the request failed ({type(error).__name__})"


def _open(session, url: str, headers: dict[str, str]):
    """Ask for an address and follow it, but never to one that is not encrypted."""
    where = url
    for _ in range(REDIRECTS + 1):
        local = all(
            urlsplit(address).scheme == "http" and urlsplit(address).hostname in THIS_MACHINE
            for address in (url, where)
        )
        if urlsplit(where).scheme != "https" and not local:
            raise InputError(
                f"{url}: leads to {where[:100]}, which is not encrypted (https); report it"
            )
        answer = session.get(
            where, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
        )
        if not answer.is_redirect:
            return answer
        where = urljoin(where, answer.headers["Location"])
        answer.close()
    raise InputError(f"{url}: leads from one address to the next without end; report it")


def _check(answer, url: str, by_hand: str) -> None:
    """Refuse an answer that is not the file."""
    status = answer.status_code
    if status in (404, 410):
        raise InputError(f"{url}: there is no such file any more ({status}); report it")
    if status >= 500:
        raise InputError(f"{url}: the server fails ({status}); try again later, {by_hand}")
    is_page = answer.headers.get("Content-Type", "").startswith("text/html")
    if status not in (200, 206) or is_page:
        raise InputError(_challenge(url, by_hand, status))


def _challenge(url: str, by_hand: str, status: int = 200) -> str:
    return (
        f"{url}: the server sends a page for people instead of the file ({status}); open it in a "
        f"browser, {by_hand.removeprefix('or ')}, and run this again"
    )


def _is_page(piece: bytes) -> bool:
    """Whether the beginning of a file is that of a web page."""
    return piece[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _total(answer, start: int) -> int:
    """Tell how long the whole file is, 0 if the server does not say."""
    if "Content-Encoding" in answer.headers:
        return 0
    length = answer.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else 0


def _strong_etag(answer) -> str:
    """Take the server's name of this version of the file, nothing if it is a weak one."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else ""


def _etag_of(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _keep(part: Path, sha256: str) -> str:
    """Keep a partial file that can be taken up again, delete any other; say which it was."""
    etag = _etag_of(part)
    if _length(part) and (sha256 or _text(etag)):
        return f" (it goes on after the {_length(part):,} bytes that are here)"
    _drop(part)
    return ""


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_of(part).unlink(missing_ok=True)
