"""Stand-ins for llama.cpp's two programs: the same flags, sockets and deaths, no tensors.

Run as a program: `fake_llama.py worker …` or `fake_llama.py head …`; `install` puts both into a
directory under the names that llama.cpp gives them.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import socket
import struct
import sys
import threading
from pathlib import Path

VERSION = "1.0 (build 7, commit fade)"
_HELLO = 14


def install(directory: Path) -> Path:
    """Returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, part in (("ggml-rpc-server", "worker"), ("llama-server", "head")):
        path = directory / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {part} "$@"\n')
        path.chmod(0o755)
    return directory


def worker(host: str, port: int) -> None:
    """One client at a time, as the real one."""
    with socket.create_server((host, port)) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                while head := connection.recv(9, socket.MSG_WAITALL):
                    kind, size = struct.unpack("<BQ", head)
                    connection.recv(size, socket.MSG_WAITALL)
                    if kind == _HELLO:
                        connection.sendall(struct.pack("<Q", 3) + bytes((7, 0, 0)))


def head(options: argparse.Namespace) -> None:
    """Holds a connection to each worker and dies when one is lost."""
    for index, address in enumerate(options.rpc.split(",")):
        place, _, port = address.rpartition(":")
        connection = socket.create_connection((place, int(port)))
        connection.sendall(struct.pack("<BQ", _HELLO, 24) + bytes(24))
        connection.recv(11, socket.MSG_WAITALL)
        threading.Thread(target=_watch, args=(connection,), daemon=True).start()
        for kind, what in (("load_tensors", "model"), ("llama_kv_cache", "KV")):
            print(f"{kind}: RPC{index}[{address}] {what} buffer size = 1.00 MiB", flush=True)
    print(f"offloaded to {options.tensor_split}", flush=True)
    http.server.ThreadingHTTPServer((options.host, options.port), _Handler).serve_forever()


def _watch(connection: socket.socket) -> None:
    try:
        connection.recv(1)
    finally:
        print("Remote RPC server crashed or returned malformed response", flush=True)
        os.abort()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        idle = [{"id": 0, "is_processing": False}]
        self._answer(idle if self.path == "/slots" else {"status": "ok"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"content": "a"})

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def main() -> None:
    part, *rest = sys.argv[1:]
    if rest == ["--version"]:
        print(f"version: {VERSION}")
        return
    parser = argparse.ArgumentParser()
    if part == "worker":
        parser.add_argument("-H", dest="host")
        parser.add_argument("-p", dest="port", type=int)
        options, _ = parser.parse_known_args(rest)
        worker(options.host, options.port)
    else:
        parser.add_argument("--host")
        parser.add_argument("--port", type=int)
        parser.add_argument("--rpc")
        parser.add_argument("--tensor-split")
        options, _ = parser.parse_known_args(rest)
        head(options)


if __name__ == "__main__":
    main()
