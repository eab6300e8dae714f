"""Every way of not getting in: a step that is named, what to do about it, and a retry once mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from olol_tui.provision.archive import Archives
from olol_tui.provision.jobs import describe_link, link_transport
from olol_tui.provision.runner import Job, Provisioning
from olol_tui.provision.shell import Shell
from olol_tui.ssh.connection import Connector
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.target import Target
from tests.contract.provision_rig import agent_file, wishes
from tests.contract.ssh_rig import Sshd, connector, free_port, needs_sshd, new_key, sshd

pytestmark = needs_sshd


@dataclass
class Place:
    """A node as configured: what a user would edit between two tries."""

    server: Sshd
    folder: Path
    target: Target
    by: Connector
    undo: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Beside what is configured."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Shell]:
        async with NodeLink("n1", self.target, self.by, data_connections=0) as link:
            await link.wait_up()
            yield link


Break = Callable[[Place], Awaitable[None]]


async def wrong_host(place: Place) -> None:
    place.target = replace(place.target, host="no-such-machine.invalid")


async def wrong_port(place: Place) -> None:
    place.target = replace(place.target, port=free_port())


async def not_ssh(place: Place) -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nserver: \x1b[2Jevil\r\n\r\n")
        writer.close()

    web = await asyncio.start_server(hello, "127.0.0.1", 0)
    place.target = replace(place.target, port=web.sockets[0].getsockname()[1])

    async def close() -> None:
        web.close()
        await web.wait_closed()

    place.undo.append(close)


async def wrong_user(place: Place) -> None:
    place.target = replace(place.target, user="nobody-of-that-name")


async def wrong_key(place: Place) -> None:
    new_key(place.folder / "stranger")
    place.target = replace(place.target, identities=(place.folder / "stranger",))


async def wrong_passphrase(place: Place) -> None:
    place.server.authorized.write_text(new_key(place.folder / "locked", "open sesame"))
    place.target = replace(place.target, identities=(place.folder / "locked",))
    place.by = connector(place.folder, ask=_answering("sesame?"))


def _answering(passphrase: str) -> Callable[[Path, str], Awaitable[str | None]]:
    async def ask(key: Path, complaint: str) -> str | None:
        return passphrase

    return ask


async def unknown_key(place: Place) -> None:
    place.by = connector(place.folder, policy="ask")


async def changed_key(place: Place) -> None:
    async with place.open():
        pass
    place.server.stop()
    new_key(place.server.host_key)
    place.server.start()


async def no_commands(place: Place) -> None:
    await _restarted(place.server, "MaxSessions 0")

    async def mend() -> None:
        await _restarted(place.server, "")

    place.undo.append(mend)


async def _restarted(server: Sshd, config: str) -> None:
    server.stop()
    server.config = config
    server.start()


async def trust(place: Place) -> None:
    place.by = connector(place.folder, policy="accept-new")


async def forget(place: Place) -> None:
    place.by.hostkeys.forget(f"127.0.0.1:{place.server.port}")


async def right_passphrase(place: Place) -> None:
    place.by = connector(place.folder, ask=_answering("open sesame"))


async def configured_well(place: Place) -> None:
    place.target = place.server.target()
    for undo in place.undo:
        await undo()


CASES: dict[str, tuple[Break, str, str, Break]] = {
    "wrong host": (wrong_host, "does not resolve", "Write the host's address", configured_well),
    "wrong port": (wrong_port, "connection refused", "on this port?", configured_well),
    "not SSH": (not_ssh, "before we were let in", "Is it sshd's port?", configured_well),
    "wrong user": (wrong_user, "nobody-of-that-name", "ssh-copy-id -p ", configured_well),
    "wrong key": (wrong_key, "accepted no key", "ssh-copy-id -p ", configured_well),
    "wrong passphrase": (wrong_passphrase, "wrong passphrase", "identity", right_passphrase),
    "unknown host key": (unknown_key, "never seen", "ssh-keygen -lf", trust),
    "changed host key": (changed_key, "host key changed", "olol-tui hosts forget", forget),
    "no commands": (no_commands, "runs no command", "MaxSessions", configured_well),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as running:
        yield running


@pytest.mark.parametrize("name", CASES)
async def test_it_is_a_failure_of_connect_with_what_to_do(
    server: Sshd, tmp_path: Path, name: str
) -> None:
    spoil, said, hint, mend = CASES[name]
    place = Place(server, tmp_path, server.target(), connector(tmp_path))
    await spoil(place)
    what = wishes(agent_file(tmp_path), directory=str(tmp_path / "node"))
    job = Job("n1", "n1", place.open, what, link_transport, describe_link)
    run = Provisioning(job, Archives(tmp_path))
    report = await run.run(dry_run=True)
    failure = report.failure
    assert failure is not None
    assert failure.name == "connect"
    assert said in failure.message
    assert hint in failure.hint
    assert (failure.message + failure.hint).replace("\n", "").isprintable()
    assert [step.state for step in report.steps[1:]] == ["waiting"] * (len(report.steps) - 1)

    await mend(place)
    mended = await run.run(dry_run=True)
    assert mended.failure is None, mended.failure
    assert mended.plan is not None
    assert not (tmp_path / "node").exists()
