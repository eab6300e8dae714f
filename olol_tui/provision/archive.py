"""Archives of engines on this machine: fetched once, checked, packed anew where they must be.

The node never fetches anything. An archive is used only if its hash is right, which the
configuration gives, or the `sha256sum.txt` beside it; that of an sdist is known beforehand.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urljoin, urlsplit

import httpx

from olol_tui.provision import sdist
from olol_tui.provision.errors import ArchiveError
from olol_tui.provision.sdist import Sdist
from olol_tui.provision.upload import Source
from olol_tui.units import format_size

Kind = Literal["tgz", "tar.zst"]
Progress = Callable[[str, float | None], None]

SUMS = "sha256sum.txt"
SUMS_LIMIT_BYTES = 2**20
LOOK_TIMEOUT = httpx.Timeout(5.0)
"""For a checksum that is only looked at: a mirror that is away must not hold up a node."""
FETCH_TIMEOUT = httpx.Timeout(30.0, read=60.0)
_PIECE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Field:
    """What the configuration says of an archive beside where it is."""

    name: str = "ollama_archive"
    sha256: str = ""
    """As configured; empty: told by the list beside the archive."""
    releases: str = "https://github.com/ollama/ollama/releases"


OLLAMA = Field()


@dataclass(frozen=True, slots=True)
class Archive:
    """A checked archive on this machine."""

    source: Source
    kind: Kind
    release: str
    """sha256 of the archive as released: names what is in it, however it is packed."""


class Archives:
    """All archives of one console. Many nodes may ask at once: each is fetched once."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache / "engines"
        self._locks: dict[str, asyncio.Lock] = {}
        self._known: dict[tuple[str, str], Archive] = {}

    async def get(self, where: str, progress: Progress, field: Field = OLLAMA) -> Archive:
        """The archive at a path or URL, checked.

        Raises:
            ArchiveError: it cannot be had, or is not what its checksum says.
        """
        async with self._locks.setdefault(where, asyncio.Lock()):
            key = where, field.sha256
            if key not in self._known:
                self._known[key] = await self._get(where, progress, field)
            return self._known[key]

    async def sdist(self, what: Sdist, progress: Progress) -> Archive:
        """A source distribution of the package index, checked by the hash we know it by.

        Raises:
            ArchiveError: it cannot be had, or is not what it was.
        """
        async with self._locks.setdefault(what.file, asyncio.Lock()):
            path = self._cache / f"{what.sha256}-{what.file}"
            if not path.is_file():
                progress(f"fetching {what.file} from the package index", None)
                async with httpx.AsyncClient(follow_redirects=True, timeout=FETCH_TIMEOUT) as http:
                    try:
                        await self._download(http, await sdist.url(http, what), path, progress)
                    except httpx.HTTPError as error:
                        raise sdist.unreachable(what, error) from error
            progress("checking the source", None)
            return await asyncio.to_thread(_checked, path, what.sha256, "tgz", is_ours=True)

    async def release(self, where: str, field: Field = OLLAMA) -> str:
        """What `get` would bring, by the hash that it will be held against alone.

        Raises:
            ArchiveError: there is none, or the list does not name the archive.
        """
        _kind(where, field)
        if field.sha256:
            return field.sha256
        if "://" not in where:
            return await asyncio.to_thread(_local_release, Path(where), field)
        async with httpx.AsyncClient(follow_redirects=True, timeout=LOOK_TIMEOUT) as http:
            try:
                return await _remote_release(http, where, field)
            except httpx.HTTPError as error:
                raise ArchiveError(f"{where}: {error or type(error).__name__}") from error

    async def _get(self, where: str, progress: Progress, field: Field) -> Archive:
        kind = _kind(where, field)
        if "://" not in where:
            progress("checking the archive", None)
            return await asyncio.to_thread(_local, Path(where), kind, field)
        async with httpx.AsyncClient(follow_redirects=True, timeout=FETCH_TIMEOUT) as http:
            try:
                return await self._fetched(http, where, kind, progress, field)
            except httpx.HTTPError as error:
                raise ArchiveError(
                    f"{where}: {error or type(error).__name__}",
                    hint=f"Fetch it by hand and give its path as {field.name}.",
                ) from error

    async def _fetched(
        self, http: httpx.AsyncClient, url: str, kind: Kind, progress: Progress, field: Field
    ) -> Archive:
        name = Path(urlsplit(url).path).name
        progress("fetching its checksum", None)
        digest = field.sha256 or await _remote_release(http, url, field)
        path = self._cache / f"{digest}-{name}"
        if not path.is_file():
            await self._download(http, url, path, progress)
        progress("checking the archive", None)
        return await asyncio.to_thread(_checked, path, digest, kind, is_ours=True)

    async def _download(
        self, http: httpx.AsyncClient, url: str, path: Path, progress: Progress
    ) -> None:
        """Into `path`, going on where an earlier try was cut off."""
        part = path.with_name(path.name + ".part")
        await asyncio.to_thread(self._cache.mkdir, parents=True, exist_ok=True, mode=0o700)
        have = part.stat().st_size if part.exists() else 0
        headers = {"range": f"bytes={have}-"} if have else {}
        async with http.stream("GET", url, headers=headers) as reply:
            if reply.status_code == 416:
                # All of it is there, or it is longer than the file: the hash will tell.
                part.replace(path)
                return
            if reply.status_code not in (200, 206):
                raise ArchiveError(f"{url}: status {reply.status_code}", hint="Check the URL.")
            if reply.status_code == 200:
                have = 0
            size = have + int(reply.headers.get("content-length", 0))
            try:
                with part.open("r+b" if have else "wb") as file:
                    file.seek(have)
                    async for piece in reply.aiter_bytes(_PIECE_BYTES):
                        await asyncio.to_thread(file.write, piece)
                        have += len(piece)
                        progress(f"fetched {format_size(have)}", have / size if size else None)
            except OSError as error:
                raise ArchiveError(f"{part}: {error.strerror}") from error
        part.replace(path)

    async def repacked(self, archive: Archive, progress: Progress) -> Archive:
        """The same content as `.tgz`, for a node without zstd.

        Raises:
            ArchiveError: there is no zstd here either.
        """
        async with self._locks.setdefault(f"repack {archive.release}", asyncio.Lock()):
            path = self._cache / f"{archive.release}-repacked.tgz"
            if not path.is_file():
                progress("packing anew, there is no zstd on the node", None)
                await asyncio.to_thread(_repack, archive.source.path, path)
            source = await asyncio.to_thread(_source, path)
            return replace(archive, source=source, kind="tgz")


def _kind(where: str, field: Field) -> Kind:
    name = urlsplit(where).path if "://" in where else where
    if name.endswith((".tgz", ".tar.gz")):
        return "tgz"
    if name.endswith((".tar.zst", ".tzst")):
        return "tar.zst"
    raise ArchiveError(
        f"{where}: expected a name that ends in .tgz, .tar.gz or .tar.zst",
        hint=f"Use the archives of {field.releases}."
        if field.releases
        else "Pack it anew with tar.",
    )


async def _remote_release(http: httpx.AsyncClient, url: str, field: Field) -> str:
    sums = await http.get(urljoin(url, SUMS))
    if sums.status_code != 200:
        raise _no_sums(urljoin(url, SUMS), f"status {sums.status_code}", field)
    return _listed(sums.text[:SUMS_LIMIT_BYTES], Path(urlsplit(url).path).name, urljoin(url, SUMS))


def _local_release(path: Path, field: Field) -> str:
    try:
        sums = (path.parent / SUMS).read_text("utf-8", "replace")
    except OSError as error:
        if not path.exists():
            raise ArchiveError(f"{path} does not exist", hint=f"Check {field.name}.") from error
        raise _no_sums(str(path.parent / SUMS), str(error.strerror), field) from error
    return _listed(sums, path.name, str(path.parent / SUMS))


def _local(path: Path, kind: Kind, field: Field) -> Archive:
    digest = field.sha256 or _local_release(path, field)
    return _checked(path, digest, kind, is_ours=False)


def _no_sums(where: str, why: str, field: Field) -> ArchiveError:
    hint = f"Put the release's {SUMS} there."
    if field is not OLLAMA:
        hint = f"Make one there (sha256sum FILE > {SUMS}), or give the hash as llama_sha256."
    return ArchiveError(
        f"{where}: {why}; an archive is used only with the checksum beside it", hint=hint
    )


def _listed(sums: str, name: str, where: str) -> str:
    """The hash of a file in a list as `sha256sum` writes it."""
    for line in sums.splitlines():
        match = re.fullmatch(r"([0-9a-fA-F]{64})[ \t]+\*?(?:\./)?(.+?)\s*", line)
        if match and match[2] == name:
            return match[1].lower()
    raise ArchiveError(f"{where} does not name {name}", hint="Is it the list of this release?")


def _checked(path: Path, digest: str, kind: Kind, *, is_ours: bool) -> Archive:
    try:
        source = _source(path)
    except OSError as error:
        raise ArchiveError(f"{path}: {error.strerror}") from error
    if source.sha256 != digest:
        if is_ours:
            path.unlink()
        raise ArchiveError(
            f"{path} is not what its checksum says: expected {digest[:16]}…, "
            f"got {source.sha256[:16]}…",
            hint="Try again." if is_ours else "Fetch it again, together with its checksums.",
        )
    return Archive(source, kind, digest)


def _source(path: Path) -> Source:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(path, digest, path.stat().st_size)


# -- zstd


def _repack(archive: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    part = Path(name)
    try:
        # No time and no name in the header: the same archive packs into the same bytes.
        with (
            os.fdopen(fd, "wb") as out,
            gzip.GzipFile("", "wb", 1, out, mtime=0) as packed,
            _unzstd(archive) as plain,
        ):
            shutil.copyfileobj(plain, packed, _PIECE_BYTES)
        part.replace(target)
    except OSError as error:
        raise ArchiveError(f"{archive} cannot be packed anew: {error}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _unzstd(archive: Path) -> Iterator[IO[bytes]]:
    """The decompressed stream, by whatever this Python or this machine has for it."""
    for module in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            zstd: Any = importlib.import_module(module)
        except ImportError:
            continue
        with zstd.open(archive, "rb") as plain:
            yield plain
        return
    if (program := shutil.which("zstd")) is None:
        raise ArchiveError(
            f"neither the node nor this machine can unpack {archive.name}",
            hint="Install zstd on one of them, or use the release's .tgz.",
        )
    with subprocess.Popen(
        [program, "-dcq", "--", str(archive)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode:
        raise ArchiveError(f"zstd cannot unpack {archive}: status {process.returncode}")
