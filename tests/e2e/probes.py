"""Ways for a test to look at a host over the network, each with a short time-out."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

from tests.lab import Host, Lab

SILENT_S = 0.4
"""How long nothing must come before a test calls it silence; a round trip here takes 0.1 ms."""
ANSWER_S = 10.0
"""How long an answer may take on a busy machine."""


def greets(host: Host, timeout_s: float = ANSWER_S) -> bool:
    """Whether the host's sshd says who it is."""
    try:
        with socket.create_connection((host.address, 22), timeout_s) as connection:
            connection.settimeout(timeout_s)
            return connection.recv(4) == b"SSH-"
    except TimeoutError:
        return False


def ssh(lab: Lab, host: str, command: str) -> str:
    """What OpenSSH brings back from a command on a host."""
    argv = ["ssh", "-F", str(lab.ssh_config), host, command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout


@contextlib.contextmanager
def echo(host: Host) -> Iterator[socket.socket]:
    """A TCP connection to a server on the host that sends back what it gets."""
    server = (
        "import socket\n"
        "s = socket.create_server(('', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "c = s.accept()[0]\n"
        "while data := c.recv(4096): c.sendall(data)\n"
    )
    process = host.spawn(["python3", "-c", server], stdout=-1)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        with socket.create_connection((host.address, port), ANSWER_S) as connection:
            connection.sendall(b"hello")
            assert connection.recv(16) == b"hello"
            yield connection
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def datagrams(host: Host) -> Iterator[Datagrams]:
    """A UDP server on the host that sends back what it gets, and says so on its own as well."""
    server = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)\n"
        "s.bind(('', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    data, peer = s.recvfrom(2048)\n"
        "    print(data.decode(), flush=True)\n"
        "    s.sendto(data, peer)\n"
    )
    process = host.spawn(["python3", "-c", server], stdout=-1)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host.address, port))
            yield Datagrams(sock)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Datagrams:
    """Numbered datagrams to a server that echoes them."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def exchange(self, count: int, gap_s: float, wait_s: float) -> dict[int, float]:
        """Sends `count` datagrams; the round trip in seconds of each that came back, in order of arrival."""
        sent: dict[int, float] = {}
        trips: dict[int, float] = {}
        deadline = float("inf")
        while len(trips) < count:
            now = time.monotonic()
            if len(sent) < count:
                sent[len(sent)] = now
                self._socket.send(b"%d" % (len(sent) - 1))
                until = now + gap_s
                deadline = now + wait_s
            else:
                until = deadline
                if now > deadline:
                    break
            while (left := until - time.monotonic()) > 0:
                self._socket.settimeout(left)
                try:
                    number = int(self._socket.recv(64))
                except TimeoutError:
                    break
                trips[number] = time.monotonic() - sent[number]
                if len(trips) == count:
                    break
        return trips
