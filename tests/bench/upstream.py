"""A fast engine for benchmarks: three NDJSON lines at once, or a paced stream of tokens.

Run as a process: `python upstream.py PORT`. It answers as an Ollama with one model `bench:1b`.
`options.num_predict` in the body asks for a paced stream of so many tokens at 20 a second.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import httptools
import uvloop

LINES = [
    b'{"model":"bench:1b","created_at":"2026-01-01T00:00:00Z","response":"Hello","done":false}\n',
    b'{"model":"bench:1b","created_at":"2026-01-01T00:00:00Z","response":" you","done":false}\n',
    b'{"model":"bench:1b","created_at":"2026-01-01T00:00:00Z","response":"","done":true,'
    b'"done_reason":"stop","total_duration":1000000,"prompt_eval_count":10,'
    b'"prompt_eval_duration":500000,"eval_count":2,"eval_duration":500000}\n',
]
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)
REPLY = HEAD + b"".join(b"%x\r\n%s\r\n" % (len(x), x) for x in LINES) + b"0\r\n\r\n"
TOKENS_S = 20
_PREDICT = re.compile(rb'"num_predict":\s*(\d+)')
_FACTS = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {
        "models": [
            {"name": "bench:1b", "model": "bench:1b", "size": 10**9, "digest": "0" * 64,
             "modified_at": "2026-01-01T00:00:00Z",
             "details": {"format": "gguf", "family": "llama", "families": ["llama"],
                         "parameter_size": "1B", "quantization_level": "Q4_K_M"}}
        ]
    },
    "/api/ps": {
        "models": [
            {"name": "bench:1b", "model": "bench:1b", "size": 10**9, "size_vram": 10**9,
             "digest": "0" * 64, "expires_at": "2318-01-01T00:00:00Z", "context_length": 4096}
        ]
    },
}  # fmt: skip


class Engine(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = bytearray()
        self.url = b""
        self.timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        body, self.body = self.body, bytearray()
        facts = _FACTS.get(self.url.decode())
        if facts is not None:
            raw = json.dumps(facts).encode()
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw)
            )
            return
        wanted = _PREDICT.search(body)
        if wanted is None:
            self.transport.write(REPLY)
            return
        self.transport.write(HEAD)
        self.started = asyncio.get_running_loop().time()
        self.token(0, int(wanted[1]))

    def token(self, index: int, count: int) -> None:
        if self.transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        if index == count:
            last = LINES[-1]
            self.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))
            return
        line = json.dumps({"response": f"t{index} ", "sent": loop.time(), "done": False}).encode()
        line += b"\n"
        self.transport.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.timer = loop.call_at(
            self.started + (index + 1) / TOKENS_S, self.token, index + 1, count
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Engine, "127.0.0.1", port, backlog=2048)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
