"""Heads of HTTP requests, and bodies that fit in memory."""

from __future__ import annotations

MAX_BODY_BYTES = 64 << 20


class BadHead(Exception):
    """The peer does not speak HTTP as we do; answered with `status`, then closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def parse_head(raw: bytes) -> tuple[str, str, str, dict[str, str]]:
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[1].startswith("/") or not parts[2].startswith("HTTP/1."):
        raise BadHead(400, "malformed request line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadHead(400, "malformed header")
        headers[name.lower()] = value.strip()
    return parts[0], parts[1], parts[2], headers


def closes(version: str, headers: dict[str, str]) -> bool:
    connection = headers.get("connection", "").lower()
    return connection == "close" or (version != "HTTP/1.1" and connection != "keep-alive")


def body_length(headers: dict[str, str]) -> int | None:
    """None for a chunked body."""
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
            raise BadHead(501, "unsupported transfer encoding")
        return None
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise BadHead(400, "invalid Content-Length")
    return int(length)


def chunked(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    """The body and where it ends; None while chunks are missing."""
    body = bytearray()
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None, 0
        size_text = bytes(buffer[at:line_end]).split(b";", 1)[0].strip()
        try:
            size = int(size_text, 16)
        except ValueError:
            raise BadHead(400, "malformed chunk") from None
        if size < 0 or len(body) + size > MAX_BODY_BYTES:
            raise BadHead(413, "request body too large")
        at = line_end + 2
        if size == 0:
            while True:  # trailers end with an empty line
                line_end = buffer.find(b"\r\n", at)
                if line_end < 0:
                    return None, 0
                if line_end == at:
                    return bytes(body), at + 2
                at = line_end + 2
        if len(buffer) < at + size + 2:
            return None, 0
        body += buffer[at : at + size]
        at += size + 2
