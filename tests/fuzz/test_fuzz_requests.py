"""Requests made up by hypothesis: valid ones with one thing wrong, in any order, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS
from tests.fuzz.wire import cut, listen

tokens = st.sampled_from(
    [b"GET", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"get", b"P\x00ST", b"", b"\xff"]
)
targets = st.sampled_from(
    [
        b"/",
        b"/api/chat",
        b"/api/tags?x=1",
        b"//",
        b"*",
        b"http://a/",
        b"/%00",
        b"/a b",
        b"/\x80",
        b"",
    ]
)
versions = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b""])
ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"])
names = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Content-Type",
     b"content-length", b"Content-Length ", b" Content-Length", b"X", b"X\x00", b"Te", b"Upgrade", b""]
)  # fmt: skip
fields = st.sampled_from(
    [b"localhost", b"0", b"2", b"+2", b"-1", b"2, 2", b"0x2", b"2 ", b"99999999999999999999", b"chunked",
     b"Chunked", b"xchunked", b"chunked, chunked", b"identity", b"\x0bchunked", b"close", b"keep-alive",
     b"100-continue", b"h2c", b"a\x00b", b"a\nb", b"\xe9", b""]
)  # fmt: skip
payloads = st.sampled_from(
    [b"", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n", b"0\r\n\r\n", b"-1\r\n",
     b"2\n{}\n0\n\n", b"fffffffffffffffff\r\n", b"0x2\r\n{}\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    end = draw(ends)
    line = b" ".join((draw(tokens), draw(targets), draw(versions))) + end
    headers = draw(st.lists(st.tuples(names, fields), max_size=5))
    head = b"".join(name + b": " + value + end for name, value in headers)
    return line + head + draw(ends) + draw(payloads)


@settings(max_examples=400, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3), st.integers(0, 255))
def test_requests_are_read_alike_however_they_are_cut(stream: list[bytes], size: int) -> None:
    TARGETS["http"](bytes([size]) + b"".join(stream))


SAFE = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"


@settings(max_examples=200, deadline=None)
@given(requests(), st.integers(1, 40))
def test_a_request_after_one_that_was_refused_is_never_served(bad: bytes, size: int) -> None:
    """The end of what cannot be read is unknown: what follows may be part of it."""
    listener, wire = listen(cut(bad + SAFE, size))
    if listener.refused:
        served = len(listener.requests)
        listener, wire = listen(cut(bad + SAFE + SAFE, size))
        assert len(listener.requests) == served and wire.written.count(b"HTTP/1.1 4") <= 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = {
    "model": "m", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "input": "a",
    "stream": True, "keep_alive": "5m", "options": {"num_ctx": 4096}, "format": "json", "tools": [],
    "images": ["aGk="], "system": "s", "suffix": "s", "raw": False, "think": True, "context": [1],
    "max_tokens": 4, "stop": ["x"], "truncate": True, "dimensions": 2, "template": "t",
}  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.data(), st.integers(0, 255))
def test_bodies_with_anything_in_a_field_are_read_or_refused(
    data: st.DataObject, route: int
) -> None:
    body: dict[str, Any] = dict(FIELDS)
    for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3)):
        body[name] = data.draw(json_values)
    for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=6)):
        body.pop(name, None)
    TARGETS["body"](bytes([route]) + json.dumps(body).encode())
