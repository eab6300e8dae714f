"""Carries many streams over stdin and stdout, on the node; `stdio` is the other end.

Sent to the node as source and run by the `python3` that is there (3.8 and up): standard
library only, no imports of ours, one thread, no file left behind. It ends when its stdin
does.

A frame is kind (1 byte), stream (4), length (4) and the payload. Each side may send only as
many bytes of a stream as the other has given credit for: a stalled stream holds up nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct

GREETING = b"olol-stdio-1\n"
HEAD = struct.Struct("!BII")
OPEN, OPENED, FAILED, DATA, EOF, CLOSE, CREDIT = range(1, 8)
WINDOW = 262144
CHUNK = 32768
UNSENT_HIGH = 1048576
"""Bytes waiting for the console above which nothing more is read from anybody."""
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Stream:
    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.connecting = True
        self.credit = WINDOW
        self.unsent = bytearray()
        self.taken = 0
        self.read_done = False
        self.eof_wanted = False
        self.write_done = False
        self.watched = 0


class Mux:
    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.streams: dict[int, Stream] = {}
        self.inbox = bytearray()
        self.outbox = bytearray(GREETING)
        self.choked = False
        for fd in (0, 1):
            os.set_blocking(fd, False)
        self.selector.register(0, READ, None)
        self.out_watched = False

    def run(self) -> None:
        while True:
            self.watch_out()
            for key, events in self.selector.select():
                stream = key.data
                if key.fd == 0:
                    if not self.receive():
                        return
                elif key.fd == 1:
                    self.flush()
                elif stream.number in self.streams:
                    if stream.connecting:
                        self.connected(stream)
                        continue
                    if events & WRITE:
                        self.write(stream)
                    if events & READ and stream.number in self.streams:
                        self.read(stream)

    # The console's side

    def receive(self) -> bool:
        try:
            data = os.read(0, 262144)
        except BlockingIOError:
            return True
        if not data:
            return False
        self.inbox += data
        at = 0
        while len(self.inbox) - at >= HEAD.size:
            kind, number, length = HEAD.unpack_from(self.inbox, at)
            if len(self.inbox) - at - HEAD.size < length:
                break
            at += HEAD.size
            self.handle(kind, number, bytes(self.inbox[at : at + length]))
            at += length
        del self.inbox[:at]
        return True

    def handle(self, kind: int, number: int, payload: bytes) -> None:
        if kind == OPEN:
            self.open(number, payload.decode())
            return
        stream = self.streams.get(number)
        if stream is None:
            return  # Ended here while the frame was under way.
        if kind == DATA:
            stream.unsent += payload
            self.write(stream)
        elif kind == EOF:
            stream.eof_wanted = True
            self.write(stream)
        elif kind == CREDIT:
            stream.credit += int.from_bytes(payload, "big")
            self.watch(stream)
        elif kind == CLOSE:
            self.drop(stream)

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        self.outbox += HEAD.pack(kind, number, len(payload)) + payload
        if len(self.outbox) > UNSENT_HIGH and not self.choked:
            self.choked = True
            self.watch_all()

    def flush(self) -> None:
        try:
            sent = os.write(1, self.outbox[:262144])
        except BlockingIOError:
            return
        del self.outbox[:sent]
        if self.choked and len(self.outbox) < UNSENT_HIGH // 2:
            self.choked = False
            self.watch_all()

    def watch_out(self) -> None:
        if self.outbox and not self.out_watched:
            self.selector.register(1, WRITE, None)
        elif self.out_watched and not self.outbox:
            self.selector.unregister(1)
        self.out_watched = bool(self.outbox)

    # The streams' side

    def open(self, number: int, address: str) -> None:
        try:
            if address.startswith("unix:"):
                sock = socket.socket(socket.AF_UNIX)
                where: object = address[5:]
            else:
                host, _, port = address.rpartition(":")
                # Addresses only: looking up a name would stop everything else.
                family, kind, _, _, where = socket.getaddrinfo(
                    "127.0.0.1" if host == "localhost" else host.strip("[]"),
                    int(port),
                    type=socket.SOCK_STREAM,
                    flags=socket.AI_NUMERICHOST,
                )[0]
                sock = socket.socket(family, kind)
        except (OSError, ValueError) as error:
            self.fail(number, error)
            return
        sock.setblocking(False)
        stream = Stream(number, sock)
        self.streams[number] = stream
        try:
            code = sock.connect_ex(where)  # type: ignore[arg-type]
        except OSError as error:  # A path too long.
            self.drop(stream)
            self.fail(number, error)
            return
        if code in (0, errno.EINPROGRESS):
            self.watch(stream)
        else:
            self.drop(stream)
            self.fail(number, OSError(code, os.strerror(code)))

    def fail(self, number: int, error: Exception) -> None:
        code = getattr(error, "errno", None) or 0
        text = getattr(error, "strerror", None) or str(error)
        self.send(FAILED, number, struct.pack("!i", code) + text.encode())

    def connected(self, stream: Stream) -> None:
        code = stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.drop(stream)
            self.fail(stream.number, OSError(code, os.strerror(code)))
            return
        stream.connecting = False
        if stream.sock.family != socket.AF_UNIX:
            stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(OPENED, stream.number)
        self.watch(stream)

    def read(self, stream: Stream) -> None:
        try:
            data = stream.sock.recv(min(CHUNK, stream.credit))
        except BlockingIOError:
            return
        except OSError as error:
            self.broken(stream, error)
            return
        if data:
            stream.credit -= len(data)
            self.send(DATA, stream.number, data)
        else:
            stream.read_done = True
            self.send(EOF, stream.number)
        self.settle(stream)

    def write(self, stream: Stream) -> None:
        if stream.connecting:
            return
        if stream.unsent:
            try:
                sent = stream.sock.send(stream.unsent)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.broken(stream, error)
                return
            del stream.unsent[:sent]
            stream.taken += sent
            if stream.taken >= WINDOW // 2:
                self.send(CREDIT, stream.number, stream.taken.to_bytes(4, "big"))
                stream.taken = 0
        if stream.eof_wanted and not stream.unsent and not stream.write_done:
            stream.write_done = True
            with contextlib.suppress(OSError):  # The other end may be gone altogether.
                stream.sock.shutdown(socket.SHUT_WR)
        self.settle(stream)

    def settle(self, stream: Stream) -> None:
        if stream.read_done and stream.write_done:
            self.drop(stream)
            self.send(CLOSE, stream.number)
        else:
            self.watch(stream)

    def broken(self, stream: Stream, error: OSError) -> None:
        self.drop(stream)
        self.send(CLOSE, stream.number, (error.strerror or str(error)).encode())

    def drop(self, stream: Stream) -> None:
        del self.streams[stream.number]
        if stream.watched:
            self.selector.unregister(stream.sock)
        stream.sock.close()

    def watch(self, stream: Stream) -> None:
        wanted = WRITE if stream.connecting or stream.unsent else 0
        if not (stream.connecting or stream.read_done or self.choked) and stream.credit > 0:
            wanted |= READ
        if wanted == stream.watched:
            return
        if not stream.watched:
            self.selector.register(stream.sock, wanted, stream)
        elif wanted:
            self.selector.modify(stream.sock, wanted, stream)
        else:
            self.selector.unregister(stream.sock)
        stream.watched = wanted

    def watch_all(self) -> None:
        for stream in list(self.streams.values()):
            self.watch(stream)


if __name__ == "__main__":
    # The console is gone, or its connection: nothing is left to carry.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        Mux().run()
