"""A JSON text without its long strings, made while the text arrives.

Images and documents in a request are strings of megabytes that nobody here looks into. A
skeleton is the same JSON with a short mark in place of all but the first characters of each, and
a list of what the marks stand for: it is small, quick to parse, and whatever is made of it can be
filled in again.

Pure: bytes in, bytes out; where the left-out bytes are kept is the caller's business.
"""

from __future__ import annotations

import re
import secrets
import string
from typing import NamedTuple
from zlib import crc32

HOLE_BYTES = 32 * 1024
"""Strings up to this length stay."""
KEPT = 256
"""Of a long string: enough to see what an image is. A multiple of 4, so that base64 stays so."""
MEDIA_WEIGHT = 4096
"""What an image counts as, in bytes of text."""
_NAME_BYTES = 128 * 1024
"""Of what stands for a hole: of longer prompts only the beginning is looked at."""
_ALPHABET = string.ascii_letters + string.digits
# Whole strings and what is between them, up to one that does not end here.
_BETWEEN = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_INSIDE = re.compile(rb"(?:[^\"\\]++|\\.)*+", re.DOTALL)
_PLAIN = re.compile(rb"[ !#-\[\]-~]*")


class Hole(NamedTuple):
    """Bytes of the text that are not in the skeleton."""

    start: int
    end: int
    sum_: int = 0
    """Checksum of the bytes."""
    is_text: bool = False


class Skeleton:
    """Feed it the text; `finish` returns the skeleton. `fill` puts back what was left out."""

    def __init__(self) -> None:
        self._mark = "ololhole" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
        self._out: list[bytes] = []
        self._at = 0
        """Bytes of the text that were read."""
        self._inside = False
        self._escaped = False
        """The last byte was a backslash that escapes the next."""
        self._started: list[bytes] | None = None
        """Of a string that is not over yet and may stay; None once it is a hole."""
        self._started_bytes = 0
        self._hole_at = 0
        self._sum = 0
        self._is_text = False
        self.weight = 0
        """What was left out, in bytes of text: those of an image say nothing of its tokens."""
        self.holes: list[Hole] = []
        self.size = 0
        """Of what stays, in bytes, so far."""

    def feed(self, data: bytes) -> None:
        before, at = len(self._out), 0
        while at < len(data):
            if self._inside:
                at = self._go_on(data, at)
            else:
                match = _BETWEEN.match(data, at)
                assert match is not None
                end = match.end()
                self._out.append(data[at:end])
                at = end
                if end < len(data):
                    self._out.append(b'"')
                    at += 1
                    self._inside, self._escaped = True, False
                    self._started, self._started_bytes = [], 0
        self._at += len(data)
        self.size += sum(map(len, self._out[before:]))

    def finish(self) -> bytes:
        """The whole skeleton. A text that ends inside a string gives one that does, too."""
        if self._inside:
            self._end_string(self._at)
        out, self._out = b"".join(self._out), []
        return out

    def fill(self, text: bytes) -> list[bytes | Hole]:
        """`text`, made from the skeleton, in pieces: bytes, and holes of the original."""
        pieces: list[bytes | Hole] = []
        mark = re.compile(self._mark.encode() + rb"(\d{8})")
        at = 0
        for match in mark.finditer(text):
            pieces += [text[at : match.start()], self.holes[int(match[1])]]
            at = match.end()
        return [*pieces, text[at:]]

    def named(self, text: bytes, original: bytes = b"") -> bytes:
        """`text`, made from the skeleton, with a name in the place of each hole: the same for the
        same bytes, and about as long as the tokens that they stand for.

        Args:
            original: where it is at hand, texts come back from there as they are.
        """

        def name(match: re.Match[bytes]) -> bytes:
            hole = self.holes[int(match[1])]
            if hole.is_text and original:
                return original[hole.start : hole.end]
            weight = hole.end - hole.start if hole.is_text else MEDIA_WEIGHT
            one = b"%08x%x " % (hole.sum_, hole.end - hole.start)
            return (one * (min(weight, _NAME_BYTES) // len(one) + 1))[:weight]

        return re.sub(self._mark.encode() + rb"(\d{8})", name, text)

    def _go_on(self, data: bytes, at: int) -> int:
        """Read on inside a string; returns where it goes on outside, or the end of the data."""
        begin = at
        if self._escaped:
            at += 1
            self._escaped = False
        quote = data.find(b'"', at)
        stop = len(data) if quote < 0 else quote
        if data.find(b"\\", at, stop) >= 0:
            match = _INSIDE.match(data, at)
            assert match is not None
            stop = match.end()
            self._escaped = data[stop : stop + 1] == b"\\"
        is_over = data[stop : stop + 1] == b'"'
        end = stop if is_over else len(data)
        self._take(data[begin:end], self._at + begin)
        if not is_over:
            return end
        self._end_string(self._at + end)
        self._out.append(b'"')
        return end + 1

    def _take(self, piece: bytes, at: int) -> None:
        if self._started is None:
            self._sum = crc32(piece, self._sum)
            return
        if not self._started:
            self._hole_at = at
        self._started.append(piece)
        self._started_bytes += len(piece)
        if self._started_bytes > HOLE_BYTES:
            # The first characters stay where cutting behind them cannot split one.
            whole = b"".join(self._started)
            first = whole[:KEPT]
            kept = first if _PLAIN.fullmatch(first) else b""
            self._is_text = not kept or b" " in kept
            self._started = None
            self._sum = crc32(memoryview(whole)[len(kept) :])
            self._hole_at += len(kept)
            self._out.append(kept + b"%s%08d" % (self._mark.encode(), len(self.holes)))

    def _end_string(self, at: int) -> None:
        self._inside = False
        if self._started is None:
            self.holes.append(Hole(self._hole_at, at, self._sum, self._is_text))
            self.weight += at - self._hole_at if self._is_text else MEDIA_WEIGHT
        else:
            self._out += self._started
        self._started = None
