"""A registry of models on this machine: as much of the distribution API as Ollama uses."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
_UPLOADS = re.compile(r"/v2/(.+)/blobs/uploads/?")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/(.+)")
_MANIFEST_KIND = "application/vnd.docker.distribution.manifest.v2+json"
FORBIDDEN = "private"
"""A namespace that nobody may push to."""


class Registry(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytearray] = {}
        self.numbers = itertools.count()
        self.asked: list[str] = []
        """`METHOD path` of each request."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        path = self._path()
        if match := _BLOB.fullmatch(path):
            self._blob(match[2])
        elif (match := _MANIFEST.fullmatch(path)) and match[0] in self.server.manifests:
            self._answer(200, self.server.manifests[match[0]], {"Content-Type": _MANIFEST_KIND})
        else:
            self._answer(404)

    def _blob(self, digest: str) -> None:
        data = self.server.blobs.get(digest)
        asked = self.headers.get("Range")
        if data is None:
            self._answer(404)
        elif self.command == "GET" and asked is None:
            # Ollama asks where the data is before it asks for parts of them.
            self._answer(200, b"", {"Location": f"http://{self.server.host}{self.path}"})
        elif asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            self._answer(206, part)
        else:
            self._answer(200, data)

    def do_POST(self) -> None:
        match = _UPLOADS.fullmatch(self._path())
        self._body()
        if match is None:
            self._answer(404)
        else:
            number = str(next(self.server.numbers))
            self.server.uploads[number] = bytearray()
            self._answer(202, b"", {"Location": f"http://{self.server.host}/upload/{number}"})

    def do_PATCH(self) -> None:
        number = self._path().removeprefix("/upload/")
        self.server.uploads[number] += self._body()
        self._answer(202, b"", {"Location": f"http://{self.server.host}/upload/{number}"})

    def do_PUT(self) -> None:
        path, body = self._path(), self._body()
        if match := _MANIFEST.fullmatch(path):
            if match[1].startswith(f"{FORBIDDEN}/"):
                self._answer(403, b"access denied")
                return
            self.server.manifests[path] = body
            self._answer(201)
            return
        (digest,) = parse_qs(urlsplit(self.path).query)["digest"]
        data = bytes(self.server.uploads.pop(path.removeprefix("/upload/")) + body)
        if digest == f"sha256:{hashlib.sha256(data).hexdigest()}":
            self.server.blobs[digest] = data
            self._answer(201)
        else:
            self._answer(400, b"digest mismatch")

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def registry() -> Iterator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
