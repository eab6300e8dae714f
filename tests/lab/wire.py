"""A wire between two links that delays, loses, blocks one way, or resets.

A script of its own (`python -I -S`): it relays raw Ethernet frames in user space, for
kernels without `tc netem` and for faults that need a look into the packet without asking
for a firewall tool. Tens of megabytes a second.

Arguments: PLACE HOST_LINK HOST_MAC WIRE_END BRIDGE_PORT INIT_PID MODE DELAY_MS JITTER_MS LOSS_PERCENT;
MODE is pass, in (the host hears nothing), out (nobody hears the host) or rst. Two bytes on
stdout: ready to take over (it then waits for stdin), and relaying.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from types import FrameType

SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
ETH_P_ALL, ETH_P_IP, IPPROTO_TCP = 3, 0x0800, 6
SIOCETHTOOL = 0x8946
ETHTOOL_SETTERS = {"tx checksum": 0x17, "scatter-gather": 0x19, "tso": 0x1F, "gso": 0x24}
CLONE_NEWNET = 0x40000000
FIN, SYN, RST, ACK = 1, 2, 4, 16
BUFFER_BYTES = 32 << 20
BATCH = 64

Frame = tuple[float, int, socket.socket, bytes]


def offload(name: str, enabled: bool) -> None:
    """Checksums and segments by the link itself, or in software before a frame gets here.

    A frame that is relayed must be complete: a link with offloads passes it on without a
    checksum and up to 64 KiB long.
    """
    order = ETHTOOL_SETTERS.values() if enabled else reversed(ETHTOOL_SETTERS.values())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in order:
            value = ctypes.create_string_buffer(struct.pack("II", command, int(enabled)))
            request = struct.pack("16sP16x", name.encode(), ctypes.addressof(value))
            fcntl.ioctl(control, SIOCETHTOOL, request)


def offload_inside(init: int, enabled: bool) -> None:
    """The same for eth0 of the host."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    host = os.open(f"/proc/{init}/ns/net", os.O_RDONLY)
    try:
        for step in (host, home):
            if libc.setns(step, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            if step == host:
                offload("eth0", enabled)
    finally:
        os.close(home)
        os.close(host)


def open_link(name: str) -> socket.socket:
    """Everything that arrives on a link, and a way to send on it."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    link.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    link.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    link.bind((name, 0))
    link.setblocking(False)
    return link


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def resets_for(frame: bytes) -> tuple[bytes, bytes]:
    """Frames that reset the connection of a TCP segment: at its sender, and at its receiver.

    Empty for all else, and for a segment that is itself a reset.
    """
    if len(frame) < 54 or struct.unpack_from("!H", frame, 12)[0] != ETH_P_IP:
        return b"", b""
    header = (frame[14] & 15) * 4
    if frame[23] != IPPROTO_TCP or struct.unpack_from("!H", frame, 20)[0] & 0x1FFF:
        return b"", b""
    tcp = 14 + header
    source_port, target_port, seq, ack, offset, flags = struct.unpack_from("!HHLLBB", frame, tcp)
    if flags & RST:
        return b"", b""
    here, there = (frame[26:30], source_port), (frame[30:34], target_port)
    to_sender, to_receiver = frame[6:12] + frame[:6] + frame[12:14], frame[:14]
    # A reset counts if it has the number that its receiver expects next.
    if flags & ACK:
        back = _reset(there, here, ack, 0, RST)
    else:
        total = struct.unpack_from("!H", frame, 16)[0]
        length = total - header - (offset >> 4) * 4 + bool(flags & SYN) + bool(flags & FIN)
        back = _reset(there, here, 0, (seq + length) & 0xFFFFFFFF, RST | ACK)
    return to_sender + back, to_receiver + _reset(here, there, seq, ack, RST)


def _reset(
    source: tuple[bytes, int], target: tuple[bytes, int], seq: int, ack: int, flags: int
) -> bytes:
    """An IPv4 packet with a TCP header and nothing in it; ends are address and port."""
    segment = struct.pack("!HHLLBBHHH", source[1], target[1], seq, ack, 0x50, flags, 0, 0, 0)
    pseudo = source[0] + target[0] + struct.pack("!BBH", 0, IPPROTO_TCP, len(segment))
    segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, IPPROTO_TCP, 0)
    packet += source[0] + target[0]
    return packet[:10] + struct.pack("!H", checksum(packet)) + packet[12:] + segment


class Wire:
    """Two links and what happens between them."""

    def __init__(
        self,
        host: str,
        mac: bytes,
        bridge: str,
        mode: str,
        delay_s: float,
        jitter_s: float,
        loss: float,
    ) -> None:
        self.mac = mac
        self.host, self.bridge = open_link(host), open_link(bridge)
        self.peer = {self.host: self.bridge, self.bridge: self.host}
        self.mode, self.delay_s, self.jitter_s, self.loss = mode, delay_s, jitter_s, loss
        self.blocked = {"in": self.bridge, "out": self.host}.get(mode)
        """The link whose frames go nowhere."""
        self.queue: list[Frame] = []
        self.last_due = {self.host: 0.0, self.bridge: 0.0}
        self.count = 0

    def relay(self) -> None:
        """Until a link is gone."""
        while True:
            now = time.monotonic()
            while self.queue and self.queue[0][0] <= now:
                _, _, link, frame = heapq.heappop(self.queue)
                self._send(link, frame)
            timeout = max(0.0, self.queue[0][0] - time.monotonic()) if self.queue else None
            for link in select.select([self.host, self.bridge], [], [], timeout)[0]:
                if not self._take(link):
                    return

    def _take(self, link: socket.socket) -> bool:
        """What has arrived on a link; False when the link is gone."""
        for _ in range(BATCH):
            try:
                frame = link.recv(1 << 16)
            except BlockingIOError:
                return True
            except OSError:  # ENETDOWN: the host lost its power, or the lab is being removed
                return False
            if link is self.blocked or (self.loss and random.random() < self.loss):
                continue
            if self.mode == "rst":
                self._reset(link, frame)
            else:
                self._pass(link, frame)
        return True

    def _reset(self, link: socket.socket, frame: bytes) -> None:
        # The bridge floods what is for a host that it has not heard of lately: not ours.
        if self.mac in (frame[:6], frame[6:12]):
            to_sender, to_receiver = resets_for(frame)
            if to_sender:
                self._send(link, to_sender)
                self._send(self.peer[link], to_receiver)

    def _pass(self, link: socket.socket, frame: bytes) -> None:
        if not self.delay_s:
            self._send(self.peer[link], frame)
            return
        jitter = random.uniform(-self.jitter_s, self.jitter_s) if self.jitter_s else 0.0
        # A real path seldom reorders: no frame overtakes the one before it.
        due = max(time.monotonic() + self.delay_s + jitter, self.last_due[link])
        self.last_due[link] = due
        self.count += 1
        heapq.heappush(self.queue, (due, self.count, self.peer[link], frame))

    @staticmethod
    def _send(link: socket.socket, frame: bytes) -> None:
        # A full queue or a link that is down loses the frame, as any wire would.
        with contextlib.suppress(OSError):
            link.send(frame)


def main(argv: list[str]) -> None:
    _place, host, mac, end, port, init, mode, *numbers = argv
    delay_ms, jitter_ms, loss_percent = map(float, numbers)

    def restore(_signal: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # the host may be gone, and its link with it
            offload_inside(int(init), True)
        os._exit(0)

    os.write(1, b"+")
    if not os.read(0, 1):
        return
    offload(port, False)
    offload_inside(int(init), False)
    signal.signal(signal.SIGTERM, restore)
    seconds = (delay_ms / 1000, jitter_ms / 1000)
    wire = Wire(host, bytes.fromhex(mac.replace(":", "")), end, mode, *seconds, loss_percent / 100)
    os.write(1, b"+")
    wire.relay()


if __name__ == "__main__":
    main(sys.argv[1:])
