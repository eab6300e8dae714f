"""Requests that two readers could read differently: refused, the connection closed, and no engine
hears of them or of what follows them."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.gateway_rig import engine_node, gateway_over

MODEL = "llama3.2:3b"
POST = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"model":"llama3.2:3b","prompt":"a"}'
HIDDEN = POST + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
"""What a smuggler wants an engine to get."""
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

AMBIGUOUS = {
    "length and chunked": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two other lengths": POST + b"Content-Length: 2\r\nContent-Length: 90\r\n\r\n{}",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "a length in hex": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length of two numbers": POST + b"Content-Length: 1 2\r\n\r\n{}",
    "no number for a length": POST + b"Content-Length:\r\n\r\n{}",
    "a length beyond all integers": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "chunked twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked and more": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n{}",
    "nearly chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked behind a tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked before a colon with space": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked on the next line": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"POST /api/generate HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "bare line ends": b"GET /api/version HTTP/1.1\nHost: localhost\n\n",
    "a bare line end in a header": b"GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
    "a bare return in a header": b"GET / HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    "a zero in a header": GET + b"X: a\0b\r\n\r\n",
    "a zero in a name": GET + b"X\0: a\r\n\r\n",
    "a header without a colon": GET + b"X a\r\n\r\n",
    "a header without a name": GET + b": a\r\n\r\n",
    "space before the first header": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "two hosts": GET + b"Host: evil.example\r\n\r\n",
    "no host": b"GET /api/version HTTP/1.1\r\n\r\n",
    "two keys": GET + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    "two origins": GET + b"Origin: http://localhost\r\nOrigin: http://evil\r\n\r\n",
    "a whole address": b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tunnel": b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "a small method": b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tabs between": b"GET\t/\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a control in the target": b"GET /\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a byte in the target": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "a chunk size with 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk size with space": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "a chunk beyond all integers": CHUNKED + b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "bare line ends between chunks": CHUNKED + b"2\n{}\n0\n\n",
    "a chunk longer than it says": CHUNKED + b"1\r\n{}\r\n0\r\n\r\n",
    "a chunk without its end": CHUNKED + b"2\r\n{}0\r\n\r\n",
    "a bare line end in an extension": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a bare return in an extension": CHUNKED + b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "a length in a trailer": CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "an encoding in a trailer": CHUNKED + b"2\r\n{}\r\n0\r\nTransfer-Encoding: x\r\n\r\n",
}


class Engine:
    """Only listens."""

    heard = 0

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard += 1
        writer.close()


async def said(address: str, raw: bytes) -> bytes:
    """Everything a server says to this, until it closes."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    try:
        return await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.close()


async def test_what_can_be_read_in_two_ways_is_not_read_at_all() -> None:
    engine = Engine()
    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, gateway_over(engine_node("n1", f"127.0.0.1:{port}", MODEL)) as (
        gateway, _, client,
    ):  # fmt: skip
        for name, raw in AMBIGUOUS.items():
            answer = await said(gateway.address, raw + HIDDEN)
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), (name, answer)
            assert answer.count(b"HTTP/1.1 ") == 1, (name, answer)
            assert b"Connection: close" in answer, name
        assert engine.heard == 0
        assert (await client.get("/api/version")).status_code == 200


@pytest.mark.parametrize(
    ("trailer", "status"),
    [("Host: evil.example", 404), ("Origin: http://evil.example", 404), ("X-Api-Key: a", 404)],
)
async def test_a_trailer_is_no_header(trailer: str, status: int) -> None:
    """Who asks was judged when the head was there; nothing that follows may change it."""
    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (gateway, _, _client):
        raw = (
            f"POST /api/show HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f'Transfer-Encoding: chunked\r\n\r\n10\r\n{{"model":"none"}}\r\n0\r\n{trailer}\r\n\r\n'
        )
        answer = await said(gateway.address, raw.encode())
        assert answer.startswith(b"HTTP/1.1 %d" % status)


async def test_an_offer_of_http2_is_declined_and_the_request_answered() -> None:
    """As `curl --http2` sends it; what comes after it on that connection is not read."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    )
    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (gateway, _, _client):
        answer = await said(gateway.address, GET + offer + HIDDEN)
        assert answer.startswith(b"HTTP/1.1 200") and b"version" in answer
        assert answer.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in answer
