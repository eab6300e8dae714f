"""Bodies of megabytes: kept in a file, sent from there whole, and again when an engine is lost."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from olol_tui.fleet.snapshot import Node
from olol_tui.gateway import spool
from tests.contract.gateway_rig import engine_node, eventually, gateway_over

MODEL = "llava:7b"
IMAGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + os.urandom(3_000_000)).decode()
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "what?", "images": [IMAGE]}]}
PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}
DONE = b'{"model":"llava:7b","message":{"role":"assistant","content":"a cat"},"done":true}\n'
CHOICES = b'{"choices":[{"message":{"content":"a cat"},"finish_reason":"stop"}]}'

EVENTS = (
    b'data: {"choices":[{"delta":{"content":"a cat"},"index":0}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop","index":0}]}\n\ndata: [DONE]\n\n'
)


class Engine:
    """Answers with what it is told to, once it has read the body; or does something worse."""

    def __init__(self, reply: bytes = DONE, kind: str = "application/x-ndjson") -> None:
        self._reply = reply
        self._kind = kind
        self.bodies: list[bytes] = []
        self.read_bytes = 0
        self.leaves_after: int | None = None
        self.answers_after: int | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = bytearray()
            while len(body) < length:
                await self.goes_on.wait()
                body += await reader.read(65536)
                self.read_bytes = len(body)
                if self.leaves_after is not None and len(body) > self.leaves_after:
                    writer.transport.abort()
                    return
                if self.answers_after is not None and len(body) > self.answers_after:
                    writer.write(
                        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
                        b"Content-Length: 19\r\n\r\n" + b'{"error":"too big"}'
                    )
                    await writer.drain()
                    break
            self.bodies.append(bytes(body))
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
                % (self._kind.encode(), len(self._reply), self._reply)
            )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def nameless_files() -> list[str]:
    """Open files of this process that no directory names."""
    links = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            links.append(os.readlink(file))
    return sorted(link for link in links if link.endswith("(deleted)") and "tmp/" in link)


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[str]:
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def runner_node(address: str) -> Node:
    """As `engine_node`, of an engine that speaks llama-server's dialect."""
    node = engine_node("n1", address, MODEL)
    model = replace(node.library[0], path="/m.gguf", capabilities=("completion", "vision"))
    runner = replace(node.engines[0], kind="llama-server", model=MODEL)
    return replace(node, engines=(runner,), library=(model,), runner="llama-server")


def raw(body: dict[str, Any], **how: Any) -> bytes:
    return json.dumps(body, **how).encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", raw(CHAT)),
        ("/api/chat", raw({**CHAT, "model": MODEL}, indent=2)),
        ("/api/generate", raw({"images": [IMAGE], "prompt": "what?", "model": MODEL})),
        ("/v1/chat/completions", raw({"messages": [{"role": "user", "content": [PART]}], "model": MODEL})),
    ],
    ids=["chat", "indented", "images-first", "model-last"],
)  # fmt: skip
async def test_a_large_body_reaches_the_engine_as_it_came(path: str, body: bytes) -> None:
    engine = Engine() if path.startswith("/api") else Engine(CHOICES, "application/json")
    async with running(engine) as address, gateway_over(engine_node("n1", address, MODEL)) as (
        gateway, _, client,
    ):  # fmt: skip
        reply = await client.post(path, content=body)
        assert reply.status_code == 200 and b"a cat" in reply.content
        assert [hashlib.sha256(one).digest() for one in engine.bodies] == [
            hashlib.sha256(body).digest()
        ]
        assert gateway.ledger.finished[-1].state == "done"
        # What is wrong with it is said before any engine sees it.
        for wrong in ({**CHAT, "model": "none"}, {**CHAT, "options": []}):
            reply = await client.post("/api/chat", content=raw(wrong))
            assert reply.status_code in (400, 404)
        reply = await client.post("/api/chat", content=raw(CHAT)[:-2])
        assert reply.status_code == 400 and "invalid JSON" in reply.json()["error"]
        assert len(engine.bodies) == 1


async def test_a_large_body_is_translated_without_reading_the_image() -> None:
    engine = Engine(EVENTS, "text/event-stream")
    async with running(engine) as address, gateway_over(runner_node(address)) as (_, _, client):
        reply = await client.post("/api/chat", json={**CHAT, "stream": False})
        assert reply.json()["message"]["content"] == "a cat"
        (asked,) = engine.bodies
        (message,) = json.loads(asked)["messages"]
        assert message["content"] == [{"type": "text", "text": "what?"}, PART]


async def test_a_lost_engine_costs_nothing_as_the_body_is_still_there() -> None:
    bad, good = Engine(), Engine()
    bad.leaves_after = 1_000_000
    async with running(bad) as one, running(good) as two:
        nodes = engine_node("n1", one, MODEL), engine_node("n2", two, MODEL)
        # Of two that are alike the first is asked first.
        async with gateway_over(*nodes) as (gateway, _, client):
            reply = await client.post("/api/chat", content=raw(CHAT))
            assert reply.status_code == 200
            assert bad.read_bytes > 0
            assert good.bodies == [raw(CHAT)]
            assert gateway.ledger.finished[-1].retries == 1


async def test_an_engine_may_answer_before_it_has_it_all() -> None:
    engine = Engine()
    engine.answers_after = 500_000
    async with running(engine) as address, gateway_over(engine_node("n1", address, MODEL)) as (
        gateway, _, client,
    ):  # fmt: skip
        reply = await client.post("/api/chat", content=raw(CHAT))
        assert (reply.status_code, reply.json()) == (400, {"error": "too big"})
        assert gateway.queue.running == 0


async def test_a_slow_engine_is_not_overrun_and_a_client_that_leaves_ends_it() -> None:
    before = nameless_files()
    engine = Engine()
    engine.goes_on.clear()
    async with running(engine) as address, gateway_over(engine_node("n1", address, MODEL)) as (
        gateway, _, client,
    ):  # fmt: skip
        asking = asyncio.create_task(client.post("/api/chat", content=raw(CHAT)))
        await eventually(lambda: gateway.queue.running == 1)
        assert len(nameless_files()) == len(before) + 1
        asking.cancel()
        await eventually(lambda: not gateway.ledger.live)
        assert nameless_files() == before, "the file is gone with its request"
        engine.goes_on.set()


async def test_a_body_that_would_take_long_to_parse_is_refused_before_it_is() -> None:
    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (_, _, client):
        bulky = b'{"model":"%s","input":[' % MODEL.encode() + b"1," * 9_000_000 + b"1]}"
        reply = await client.post("/api/embed", content=bulky)
        assert reply.status_code == 413 and "not in long strings" in reply.json()["error"]


async def test_the_next_round_about_an_image_goes_where_the_first_went() -> None:
    one, two = Engine(), Engine()
    first = CHAT["messages"]
    answer = [{"role": "assistant", "content": "a cat"}, {"role": "user", "content": "sure?"}]
    async with (
        running(one) as a,
        running(two) as b,
        gateway_over(engine_node("n1", a, MODEL), engine_node("n2", b, MODEL)) as (
            gateway,
            _,
            client,
        ),
    ):
        for messages in (first, [*first, *answer], [*first, *answer, *answer]):
            body = {"model": MODEL, "messages": messages, "stream": False}
            reply = await client.post("/api/chat", content=raw(body))
            assert reply.status_code == 200, reply.text
        assert sorted((len(one.bodies), len(two.bodies))) == [0, 3]
        prefixes = gateway.queue.books.prefixes
        assert (prefixes.looked, prefixes.hits) == (3, 2)


async def test_no_room_for_a_body_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with gateway_over(engine_node("n1", "127.0.0.1:9", MODEL)) as (_, _, client):
        monkeypatch.setattr(spool.os, "write", full)
        reply = await client.post("/api/chat", content=raw(CHAT))
        assert reply.status_code == 507 and "no room" in reply.json()["error"]


async def test_a_body_in_crumbs_costs_no_more_than_itself() -> None:
    """An object a byte would be 50 times the body."""
    engine = Engine()
    text = raw({"model": MODEL, "prompt": "x" * 1_500_000})

    async def crumbs() -> AsyncIterator[bytes]:
        frames = b"".join(b"1\r\n%c\r\n" % byte for byte in text)
        for at in range(0, len(frames), 2**16):
            yield frames[at : at + 2**16]

    async with running(engine) as address, gateway_over(engine_node("n1", address, MODEL)) as (
        gateway, _, _client,
    ):  # fmt: skip
        host, port = gateway.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        async for piece in crumbs():
            writer.write(piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.startswith(b"HTTP/1.1 200")
        assert engine.bodies == [text]
        writer.close()
