"""The registry and its downloads, against a local server that misbehaves in every known way."""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest

from cellvq import InputError, datasets, download, registry

CONTENT = b"gene_name\tindex\n" + b"".join(b"G%d\t%d\n" % (i, i) for i in range(50_000))
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PIECE = download.PIECE
PAGE = b"<!DOCTYPE html><html><title>Just a moment...</title></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file under paths that name what goes wrong."""

    def do_GET(self):
        what = self.path.strip("/").split("/")[0]
        self.server.asked.append((what, self.headers.get("Range")))
        getattr(self, what)()

    def send(self, status=200, body=CONTENT, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def good(self, upto=None):
        start = int(re.search(r"\d+", self.headers.get("Range", "0")).group())
        body, etag = CONTENT[start:], '"one"'
        if self.headers.get("If-Range", etag) != etag:
            start, body = 0, CONTENT
        more = {"Content_Range": f"bytes {start}-{SIZE - 1}/{SIZE}"} if start else {}
        self.send(206 if start else 200, body[:upto], length=len(body), ETag=etag, **more)

    def broken(self):
        self.good(upto=3 * PIECE)

    def half(self):
        self.send(body=CONTENT[: 3 * PIECE], length=SIZE)

    def cut(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT[: 3 * PIECE])

    def norange(self):
        self.send()

    def slow(self):
        time.sleep(0.5)
        self.good()

    def stalls(self):
        self.half()
        time.sleep(1)

    def wrong(self):
        self.send(body=CONTENT.swapcase())

    def other_length(self):
        self.send(body=CONTENT + b"more")

    def endless(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT + CONTENT)

    def missing(self):
        self.send(404, PAGE, Content_Type="text/html")

    def forbidden(self):
        self.send(403, PAGE, Content_Type="text/html")

    def challenge(self):
        self.send(200, PAGE, Content_Type="text/html; charset=utf-8")

    def disguised(self):
        self.send(200, PAGE.ljust(SIZE), Content_Type="application/octet-stream")

    def empty(self):
        self.send(202, b"", x_amzn_waf_action="challenge")

    def fails(self):
        self.send(503, PAGE, Content_Type="text/html")

    def plain(self):
        self.send(302, b"", Location="http://example.invalid/file")

    def loop(self):
        self.send(302, b"", Location="/loop")

    def moved(self):
        self.send(302, b"", Location="/good/little.tsv")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on this machine; ``asked`` lists what it was asked for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.asked = []
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


Place = namedtuple("Place", "path target part")


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A machine without data, and the paths of one download."""
    monkeypatch.setenv("CELLVQ_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CELLVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "TIMEOUT", (2, 0.3))
    target = tmp_path / "cache" / "original" / "little" / "little.tsv"
    return Place(tmp_path, target, target.with_name("little.tsv.part"))


@pytest.fixture
def little(monkeypatch, server, place):
    """Registers one gene table, ``little``; returns the function that says how it is served."""

    def register(what="good", sha256=SHA256, size=str(SIZE)):
        row = dict.fromkeys(registry.COLUMNS, "") | {
            "name": "little", "kind": "genes", "reader": "tsv", "sha256": sha256, "bytes": size,
            "url": f"{server.url}/{what}/little.tsv",
        }
        monkeypatch.setattr(registry, "_rows", lambda: pd.DataFrame([row]))
        return server

    return register


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_registry_is_complete():
    table = registry.entries()
    assert table["name"].is_unique and set(table["kind"]) == {"cells", "genes"}
    assert set(table["reader"]) == {
        "scanpy", "simulate", "rda", "h5ad", "parquet", "census", "tsv", "gmt", "wheel",
    }
    for name in table["name"]:
        known = registry.entry(name)
        for file in known.files:
            assert file.url.startswith(("https://", "s3://"))
            assert re.fullmatch("([0-9a-f]{64})?", file.sha256)
            assert (file.bytes > 0) == bool(file.sha256)
    made = table["reader"].isin(registry.BUILT_IN)
    wanted = ["url", "licence", "terms", "citation", "study", "species"]
    assert (table.loc[~made, wanted] != "").all(axis=None)
    # a date stands exactly where somebody had the bytes in hand
    verified = [bool(registry.entry(name).files) and registry.entry(name).verified
                for name in table["name"]]
    assert ((table["checked"] != "") == (pd.Series(verified) & ~made)).all()


def test_from_the_address_to_the_table(little, place):
    server = little()
    with pytest.raises(InputError, match="`cellvq fetch little` brings it"):
        registry.table("little")
    path = datasets.fetch("little", progress=False)
    table = registry.table("little")
    assert path == place.path / "cache" / "knowledge" / "little.tsv"
    assert len(table) == 50_000 and table.attrs["sha256"] == SHA256
    record = json.loads(registry.record_of(path).read_text())
    assert record["files"][0] == {
        "url": f"{server.url}/good/little.tsv", "sha256": SHA256, "verified": True,
    }
    assert datasets.fetch("little") == path and len(server.asked) == 1


@pytest.mark.parametrize(
    "what, words, kept",
    [
        ("half", r"the connection broke; check the network and run this again \(it goes on", True),
        ("cut", r"only 196,608 of .* bytes arrived; check the network .* \(it goes on", True),
        ("stalls", "the server does not answer in time", True),
        ("wrong", r"not the registered one \(SHA-256 .* was deleted", False),
        ("other_length", "bytes and the registered one .* replaced at its source", False),
        ("endless", "sends more than the registered", False),
        ("missing", r"no such file any more \(404\)", False),
        ("forbidden", r"a page for people .* of the file \(403\); open it in a browser", False),
        ("challenge", r"a page for people instead of the file \(200\)", False),
        ("disguised", "a page for people instead of the file", False),
        ("empty", r"a page for people instead of the file \(202\)", False),
        ("fails", r"the server fails \(503\); try again later", False),
        ("plain", "leads to http://example.invalid/file, which is not encrypted", False),
        ("loop", "from one address to the next without end", False),
    ],
)
def test_a_failed_download_gives_one_line_and_leaves_no_file(little, place, what, words, kept):
    little(what)
    with pytest.raises(InputError, match=words) as error:
        datasets.fetch("little", progress=False)
    assert "little.tsv" in one_line(error)
    assert not place.target.exists() and place.part.exists() == kept
    assert registry.find("little") is None
    little("good")  # whatever was left behind does no harm
    datasets.fetch("little", progress=False)
    assert place.target.read_bytes() == CONTENT and not place.part.exists()


def test_no_network_and_no_server(little, place, server):
    little()
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="no connection to the server; .* yourself") as error:
        datasets.fetch("little", progress=False)
    assert str(place.target) in one_line(error)


def test_what_was_saved_by_hand_is_taken(little, place):
    server = little("challenge")
    place.target.parent.mkdir(parents=True)
    place.target.write_bytes(CONTENT)
    datasets.fetch("little")
    assert len(registry.table("little")) == 50_000 and not server.asked


@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_broken_line_is_taken_up_again(server, place, sha256):
    found = download.download(
        f"{server.url}/broken/little.tsv", place.target, sha256=sha256, progress=False
    )
    assert found == SHA256 and place.target.read_bytes() == CONTENT
    ranges = [asked for _, asked in server.asked]
    assert ranges == [None, *(f"bytes={i * PIECE}-" for i in range(3, SIZE // PIECE + 1, 3))]
    assert sorted(path.name for path in place.target.parent.iterdir()) == ["little.tsv"]


@pytest.mark.parametrize("what, asked", [("good", 1), ("norange", 1), ("moved", 2)])
def test_an_earlier_piece_is_used_where_the_server_allows(server, place, what, asked):
    place.part.parent.mkdir(parents=True)
    place.part.write_bytes(CONTENT[:1000])
    url = f"{server.url}/{what}/little.tsv"
    download.download(url, place.target, sha256=SHA256, size=SIZE, progress=False)
    assert place.target.read_bytes() == CONTENT and len(server.asked) == asked
    assert server.asked[-1][1] == "bytes=1000-"


@pytest.mark.parametrize("what", ["fails", "forbidden", "half"])
def test_an_earlier_piece_outlives_a_server_in_trouble(server, place, what):
    place.part.parent.mkdir(parents=True)
    place.part.write_bytes(CONTENT[:1000])
    with pytest.raises(InputError):
        download.download(f"{server.url}/{what}/x", place.target, sha256=SHA256, progress=False)
    assert CONTENT.startswith(place.part.read_bytes()) and place.part.stat().st_size >= 1000


def test_a_piece_of_another_file_is_thrown_away(server, place):
    for piece, tag in ((b"x" * 1000, "one"), (b"x" * SIZE, "one"), (b"x" * 1000, "two")):
        place.part.parent.mkdir(parents=True, exist_ok=True)
        place.part.write_bytes(piece)
        Path(f"{place.part}.etag").write_text(f'"{tag}"')
        sha256 = "" if tag == "two" else SHA256  # the tag says that the file has changed
        download.download(f"{server.url}/good/x", place.target, sha256=sha256, progress=False)
        assert place.target.read_bytes() == CONTENT


def test_a_full_disk_gives_one_line(little, place, monkeypatch):
    little()
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
        with pytest.raises(InputError, match="the disk is full; make room") as error:
            datasets.fetch("little", progress=False)
    assert "CELLVQ_CACHE" in one_line(error) and not place.target.exists()


def test_a_cache_that_cannot_be_written_gives_one_line(little, place, monkeypatch):
    little()
    (place.path / "file").write_text("no folder")
    monkeypatch.setenv("CELLVQ_CACHE", str(place.path / "file"))
    with pytest.raises(InputError, match="cannot be written .* CELLVQ_CACHE"):
        datasets.fetch("little", progress=False)


def test_a_failed_conversion_leaves_nothing(little, place, monkeypatch):
    little()
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(InputError, match=r"cannot be written \(full\); make room"):
        datasets.fetch("little", progress=False)
    files = [path.name for path in (place.path / "cache" / "knowledge").iterdir()]
    assert all(name.endswith(".lock") for name in files)


def test_two_processes_download_once(little, place, tmp_path):
    server = little("slow")
    registry.entries().to_csv(tmp_path / "rows.csv", index=False)
    code = (
        "import sys, pandas as pd\n"
        "from cellvq import datasets, registry\n"
        "rows = pd.read_csv(sys.argv[1], keep_default_na=False, dtype=str)\n"
        "registry._rows = lambda: rows\n"
        "print(datasets.fetch('little'))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows.csv")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0].strip() for process in running}
    assert paths == {str(registry.verified("little"))} and len(server.asked) == 1


def test_what_nobody_verified_is_taken_only_when_told_to(little, place):
    server = little(sha256="", size="")
    with pytest.raises(InputError, match="nobody has verified .* --unverified"):
        datasets.fetch("little", progress=False)
    assert not server.asked
    path = datasets.fetch("little", unverified=True, progress=False)
    record = json.loads(registry.record_of(path).read_text())
    assert record["files"][0]["sha256"] == SHA256 and not record["files"][0]["verified"]
    assert len(registry.table("little")) == 50_000
    path.write_bytes(CONTENT[:-3])
    with pytest.raises(InputError, match="is not the registered little; delete it and run"):
        registry.table("little")


def test_a_damaged_copy_is_refused_and_fetched_anew(little, place):
    little()
    path = datasets.fetch("little", progress=False)
    path.write_bytes(CONTENT.replace(b"G7\t", b"G8\t"))
    with pytest.raises(InputError, match="not the registered little"):
        registry.table("little")
    datasets.fetch("little", progress=False)
    assert path.read_bytes() == CONTENT
    registry.record_of(path).write_text('["not a record"]')
    with pytest.raises(InputError, match="not the registered little"):
        registry.table("little")


def test_published_files_of_the_user_come_first(little, place):
    server = little()
    folder = place.path / "data" / "original" / "anything"
    folder.mkdir(parents=True)
    (folder / "little.tsv").write_bytes(CONTENT)
    datasets.fetch("little")
    assert not server.asked and not place.target.exists()
    assert registry.find("little").parts[-3:] == ("cache", "knowledge", "little.tsv")


def test_a_table_that_does_not_exist_gives_one_line():
    with pytest.raises(InputError, match="not a gene table; there are hgnc, panel_19264"):
        registry.table("pbmc3k")


def test_what_is_no_file_is_not_fetched():
    for name, words in (
        ("simulated", "needs no file; load it"),
        ("census_2025-01-30", "`cellvq corpus build` reads from it"),
        ("nothing", "not in the registry; it holds pbmc68k_reduced"),
    ):
        with pytest.raises(InputError, match=words):
            datasets.fetch(name)


@pytest.mark.skipif(
    not Path(os.environ.get("CELLVQ_DATA", "none"), "knowledge").is_dir(),
    reason="real data: set CELLVQ_DATA to the folder that holds knowledge/",
)
def test_real_gene_tables_are_what_the_registry_says():
    genes = registry.table("hgnc").query("status == 'Approved'").set_index("symbol")
    assert genes.loc["CD3D", "ensembl_gene_id"] == "ENSG00000167286"
    assert "Bp35" in genes.loc["MS4A1", "alias_symbol"].split("|")
    panel = registry.table("panel_19264")
    assert len(panel) == int(registry.entries().set_index("name").loc["panel_19264", "genes"])


def test_the_data_card_says_what_the_registry_says(clone):
    page = (clone / "book/data/data-card.md").read_text(encoding="utf-8")
    lines = page.splitlines()
    for name, row in registry.entries().set_index("name").iterrows():
        if row["reader"] in ("simulate", "census"):
            assert f"`{name}`" in page or f"## {name}" in page
            continue
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert line.endswith(f"| {row['licence']} | {row['terms']} |")
        if row["kind"] == "cells":
            size = [f"{int(row[part]):,}" if row[part] else "?" for part in ("cells", "genes")]
            labels = ", ".join(f"`{label}`" for label in row["labels"].split())
            assert line.startswith(f"| `{name}` | {' x '.join(size)} | {labels} |")
    told = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert told <= set(registry.entries()["name"])
