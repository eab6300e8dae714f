"""The engine's archive on the console's side: fetched once, checked always, packed anew."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from olol_tui.provision.archive import Archive, Archives
from olol_tui.provision.errors import ArchiveError

NAME = "ollama-linux-amd64.tgz"


def packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("bin/ollama")
        info.size, info.mode = 300_000, 0o755
        tar.addfile(info, io.BytesIO(bytes(300_000)))
    # Longer than one piece, and not by a round number.
    return buffer.getvalue() + b"\0" * 2_500_001


def quiet(message: str, progress: float | None) -> None:
    pass


class Mirror(ThreadingHTTPServer):
    """A web server with the release; counts what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[tuple[str, str]] = []
        self.cut_after: int | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror
    protocol_version: ClassVar[str] = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        span = self.headers.get("range", "")
        self.server.asked.append((name, span))
        data = self.server.files.get(name)
        if data is None:
            self.send_error(404)
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if span else 200)
        self.send_header("content-length", str(len(data) - start))
        self.end_headers()
        cut = self.server.cut_after if name == NAME else None
        if cut is not None:
            self.server.cut_after = None
        self.wfile.write(data[start : None if cut is None else start + cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    data = packed()
    line = f"{hashlib.sha256(data).hexdigest()}  ./{NAME}\n"
    with Mirror({NAME: data, "sha256sum.txt": line.encode()}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_it_is_fetched_once_for_many_nodes_and_kept(mirror: Mirror, tmp_path: Path) -> None:
    url = f"{mirror.url}/{NAME}"
    archives = Archives(tmp_path)
    told: list[float | None] = []
    many = [archives.get(url, lambda message, progress: told.append(progress)) for _ in range(8)]
    one, *others = await asyncio.gather(*many)
    assert all(other == one for other in others)
    assert one.source.path.read_bytes() == mirror.files[NAME]
    assert one.kind == "tgz"
    assert [name for name, _ in mirror.asked].count(NAME) == 1
    assert told[-2] == 1.0
    # The next console of this user checks the sum, and fetches nothing.
    assert await Archives(tmp_path).get(url, quiet) == one
    assert [name for name, _ in mirror.asked].count(NAME) == 1


async def test_a_cut_download_goes_on_where_it_was(mirror: Mirror, tmp_path: Path) -> None:
    url = f"{mirror.url}/{NAME}"
    mirror.cut_after = 1_500_000
    with pytest.raises(ArchiveError, match="peer closed") as caught:
        await Archives(tmp_path).get(url, quiet)
    assert caught.value.hint
    archive = await Archives(tmp_path).get(url, quiet)
    assert archive.source.path.read_bytes() == mirror.files[NAME]
    (_, first), (_, second) = (ask for ask in mirror.asked if ask[0] == NAME)
    assert first == ""
    assert int(second.removeprefix("bytes=").rstrip("-")) > 0


async def test_what_is_not_what_the_sum_says_is_not_kept(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files[NAME] += b"tampered"
    with pytest.raises(ArchiveError, match="is not what its checksum says"):
        await Archives(tmp_path).get(f"{mirror.url}/{NAME}", quiet)
    assert [path for path in (tmp_path / "engines").iterdir() if path.is_file()] == []


@pytest.mark.parametrize(
    ("sums", "why"),
    [
        (None, "used only with the checksum beside it"),
        (b"0" * 64 + b"  other.tgz\n", f"does not name {NAME}"),
        (b"<html>not found</html>", f"does not name {NAME}"),
    ],
)
async def test_without_its_checksum_an_archive_is_not_used(
    mirror: Mirror, tmp_path: Path, sums: bytes | None, why: str
) -> None:
    del mirror.files["sha256sum.txt"]
    if sums is not None:
        mirror.files["sha256sum.txt"] = sums
    with pytest.raises(ArchiveError, match=why):
        await Archives(tmp_path).get(f"{mirror.url}/{NAME}", quiet)
    assert not any(name == NAME for name, _ in mirror.asked)


async def test_a_mirror_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError) as caught:
        await Archives(tmp_path).get(f"http://127.0.0.1:1/{NAME}", quiet)
    assert "give its path as ollama_archive" in caught.value.hint


def release(folder: Path, name: str, data: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    (folder / "sha256sum.txt").write_text(f"{hashlib.sha256(data).hexdigest()} *{name}\n")
    return str(folder / name)


async def test_a_file_of_this_machine_is_used_where_it_is(tmp_path: Path) -> None:
    where = release(tmp_path / "dist", NAME, packed())
    archive = await Archives(tmp_path / "cache").get(where, quiet)
    assert str(archive.source.path) == where
    assert archive.release == archive.source.sha256
    Path(where).write_bytes(b"changed")
    with pytest.raises(ArchiveError, match="checksum says"):
        await Archives(tmp_path / "cache").get(where, quiet)
    assert Path(where).exists(), "it is the user's file"


@pytest.mark.parametrize(
    ("name", "why"),
    [("none.tgz", "does not exist"), ("ollama.zip", "ends in .tgz, .tar.gz or .tar.zst")],
)
async def test_what_is_no_archive_is_named(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ArchiveError, match=why):
        await Archives(tmp_path).get(str(tmp_path / name), quiet)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
async def test_zstd_is_packed_anew_for_a_node_without_it(tmp_path: Path) -> None:
    plain = bytes(range(256)) * 5000
    zst = subprocess.run(["zstd", "-qc"], input=plain, capture_output=True, check=True).stdout
    where = release(tmp_path / "dist", "ollama-linux-amd64.tar.zst", zst)
    archives = Archives(tmp_path / "cache")
    archive = await archives.get(where, quiet)
    assert archive.kind == "tar.zst"
    both: list[Archive] = await asyncio.gather(
        archives.repacked(archive, quiet), archives.repacked(archive, quiet)
    )
    assert both[0] == both[1]
    assert both[0].kind == "tgz"
    assert both[0].release == archive.release
    gunzipped = subprocess.run(
        ["gzip", "-dc", both[0].source.path], capture_output=True, check=True
    ).stdout
    assert gunzipped == plain
