"""Machines found in a network and in the SSH configuration."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from olol_tui.provision.discover import Found, ScanError, hosts_of, scan


async def server(reply: bytes, ask_first: bool) -> tuple[asyncio.Server, int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if ask_first:
            await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    return listening, listening.sockets[0].getsockname()[1]


async def collected(addresses: list[str], **ports: int) -> list[Found]:
    async with aclosing(scan(addresses, rate_per_s=2000, **ports)) as found:
        return [one async for one in found]


async def test_what_answers_is_told_and_made_safe() -> None:
    hostile = b"SSH-2.0-OpenSSH_9.9 \x1b]0;owned\x07Debian\r\n"
    ssh, ssh_port = await server(hostile, ask_first=False)
    reply = b'HTTP/1.0 200 OK\r\n\r\n{"version":"0.12.3"}'
    ollama, ollama_port = await server(reply, ask_first=True)
    async with ssh, ollama:
        found = await collected(["127.0.0.1"], ssh_port=ssh_port, ollama_port=ollama_port)
    assert found == [Found("127.0.0.1", "OpenSSH_9.9 Debian", "0.12.3")]


async def test_something_else_on_the_port_is_nothing() -> None:
    web, port = await server(b"HTTP/1.1 400 Bad Request\r\n\r\n", ask_first=False)
    async with web:
        assert await collected(["127.0.0.1"], ssh_port=port, ollama_port=port) == []


async def test_a_scan_that_is_left_ends_at_once() -> None:
    listening, port = await server(b"SSH-2.0-x\r\n", ask_first=False)
    done = []
    async with listening:
        addresses = ["127.0.0.1"] + [f"127.0.1.{n}" for n in range(1, 200)]
        async with aclosing(
            scan(
                addresses,
                progress=lambda count, total: done.append(count),
                rate_per_s=20,
                ssh_port=port,
                ollama_port=1,
            )
        ) as found:
            async for _ in found:
                break
    assert len(done) < 20
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "look" in repr(task) or "all_of_them" in repr(task)]


def test_a_network_is_bounded() -> None:
    assert hosts_of("192.168.1.9/30") == ["192.168.1.9", "192.168.1.10"]
    assert hosts_of("10.0.0.7") == ["10.0.0.7"]
    assert len(hosts_of("10.0.0.0/20")) == 4094
    with pytest.raises(ScanError, match="65536 addresses, at most 4096"):
        hosts_of("10.0.0.0/16")
    with pytest.raises(ScanError, match=r"expected a network such as 192\.168"):
        hosts_of("gpu1.lan")
