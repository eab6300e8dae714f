"""Getting in: host keys, users, keys, passphrases, jump hosts, and what refusals say."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from olol_tui.ssh.connection import Connection, Connector
from olol_tui.ssh.errors import (
    AuthFailed,
    HostKeyChanged,
    HostKeyRevoked,
    HostKeysUnusable,
    HostKeyUnknown,
    NameUnknown,
    NotSSH,
    SSHConfigError,
    SSHError,
    Unreachable,
)
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.target import Target
from tests.contract.ssh_rig import (
    TIMEOUT_S,
    USER,
    Peer,
    Sshd,
    connector,
    free_port,
    in_phase,
    needs_sshd,
    new_key,
    service,
    sshd,
    until,
)

pytestmark = needs_sshd


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    (path / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as running:
        yield running


async def opened(by: Connector, target: Target) -> Connection:
    connection = await by.connect("n1", target)
    await connection.close()
    return connection


def fingerprint(server: Sshd) -> str:
    told = subprocess.check_output(["ssh-keygen", "-lf", f"{server.host_key}.pub"], text=True)
    return told.split()[1]


async def test_an_unknown_host_is_asked_about(server: Sshd, tmp_path: Path) -> None:
    by = connector(tmp_path, policy="ask")
    with pytest.raises(HostKeyUnknown) as refused:
        await opened(by, server.target())
    offered = refused.value.offered
    assert offered.fingerprint == fingerprint(server)
    assert offered.key_type == "ED25519"
    assert offered.name == f"[127.0.0.1]:{server.port}"
    drawn = subprocess.check_output(["ssh-keygen", "-lvf", f"{server.host_key}.pub"], text=True)
    assert offered.randomart in drawn
    by.hostkeys.trust(offered)
    await opened(by, server.target())
    # Written by us, read by OpenSSH.
    file = by.hostkeys.own_file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "127.0.0.1" not in file.read_text()
    subprocess.check_call(
        ["ssh-keygen", "-F", offered.name, "-f", str(file)], stdout=subprocess.DEVNULL
    )


async def test_a_new_host_is_written_down_once(server: Sshd, tmp_path: Path) -> None:
    by = connector(tmp_path, policy="accept-new")
    await asyncio.gather(*(opened(by, server.target()) for _ in range(4)))
    assert len(by.hostkeys.own_file.read_text().splitlines()) == 1
    await opened(connector(tmp_path, policy="ask"), server.target())


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
async def test_a_changed_host_key_stops_everything(server: Sshd, tmp_path: Path, kind: str) -> None:
    """Also when it is of another kind: the old one cannot just be left out."""
    by = connector(tmp_path, policy="accept-new")
    await opened(by, server.target())
    old = fingerprint(server)
    new_key(server.host_key, kind=kind)
    server.restart()
    with pytest.raises(HostKeyChanged) as refused:
        await opened(by, server.target())
    error = refused.value
    assert old in str(error) and fingerprint(server) in str(error)
    assert error.final
    with pytest.raises(HostKeyChanged):
        by.hostkeys.trust(error.offered)
    assert f"hosts forget 127.0.0.1:{server.port}" in error.hint
    [removed] = by.hostkeys.forget(f"127.0.0.1:{server.port}")
    assert old in removed
    assert by.hostkeys.forget(f"127.0.0.1:{server.port}") == []
    await opened(by, server.target())


async def test_the_users_known_hosts_count(server: Sshd, tmp_path: Path, home: Path) -> None:
    public = Path(f"{server.host_key}.pub").read_text()
    file = home / ".ssh" / "known_hosts"
    file.write_text(f"not a line\n[127.0.0.1]:{server.port} {public}other.host {public}")
    by = connector(tmp_path, policy="ask")
    await opened(by, server.target())
    new_key(server.host_key)
    server.restart()
    with pytest.raises(HostKeyChanged, match=str(file)):
        await opened(by, server.target())
    assert by.hostkeys.forget(f"127.0.0.1:{server.port}")
    assert file.read_text().startswith("not a line\nother.host")
    assert f":{server.port}" in (home / ".ssh" / "known_hosts.old").read_text()


async def test_a_revoked_key(server: Sshd, tmp_path: Path, home: Path) -> None:
    public = Path(f"{server.host_key}.pub").read_text()
    (home / ".ssh" / "known_hosts").write_text(f"@revoked * {public}")
    with pytest.raises(HostKeyRevoked):
        await opened(connector(tmp_path), server.target())


async def test_a_host_certificate(server: Sshd, tmp_path: Path, home: Path) -> None:
    authority = asyncssh.generate_private_key("ssh-ed25519")
    key = asyncssh.read_private_key(str(server.host_key))
    certificate = authority.generate_host_certificate(key, "n1", principals=["127.0.0.1"])
    Path(f"{server.host_key}-cert.pub").write_bytes(certificate.export_certificate())
    server.config = f"HostCertificate {server.host_key}-cert.pub"
    server.restart()
    public = authority.export_public_key("openssh").decode()
    (home / ".ssh" / "known_hosts").write_text(f"@cert-authority [127.0.0.1]:* {public}")
    await opened(connector(tmp_path, policy="ask"), server.target())
    with pytest.raises(HostKeyUnknown):
        (home / ".ssh" / "known_hosts").unlink()
        await opened(connector(tmp_path, policy="ask"), server.target())


async def test_a_wrong_user_and_a_wrong_key(server: Sshd, tmp_path: Path) -> None:
    by = connector(tmp_path)
    with pytest.raises(AuthFailed, match="nobody-of-that-name"):
        await opened(by, server.target(user="nobody-of-that-name"))
    new_key(tmp_path / "stranger")
    with pytest.raises(AuthFailed) as refused:
        await opened(
            by, replace(server.target(), identities=(tmp_path / "stranger", tmp_path / "gone"))
        )
    assert refused.value.final
    assert [line.rpartition("/")[2] for line in refused.value.tried] == [
        "gone: not there",
        "stranger",
    ]


async def test_no_key_at_all(server: Sshd, tmp_path: Path) -> None:
    with pytest.raises(AuthFailed, match="no key was found"):
        await opened(connector(tmp_path), replace(server.target(), identities=()))


async def test_too_many_keys(server: Sshd, tmp_path: Path) -> None:
    strangers = [tmp_path / f"key{number}" for number in range(8)]
    for path in strangers:
        new_key(path)
    with pytest.raises(AuthFailed, match="IdentitiesOnly"):
        await opened(connector(tmp_path), replace(server.target(), identities=tuple(strangers)))


@pytest.mark.parametrize("with_public_half", [True, False])
async def test_an_encrypted_key_is_asked_for_once(
    server: Sshd, tmp_path: Path, with_public_half: bool
) -> None:
    path = tmp_path / "id_locked"
    server.authorized.write_text(new_key(path, "open sesame"))
    if not with_public_half:
        Path(f"{path}.pub").unlink()
    answers = ["wrong", "open sesame"]
    asked: list[str] = []

    async def ask(key: Path, complaint: str) -> str | None:
        assert key == path
        asked.append(complaint)
        return answers.pop(0)

    by = connector(tmp_path, ask=ask)
    target = replace(server.target(), identities=(path,))
    await asyncio.gather(*(opened(by, target) for _ in range(3)))
    assert len(asked) == 2
    assert asked[0] == "" and asked[1]


async def test_an_encrypted_key_that_would_not_do_is_not_asked_for(
    server: Sshd, tmp_path: Path
) -> None:
    new_key(tmp_path / "id_locked", "secret")

    async def ask(key: Path, complaint: str) -> str | None:
        raise AssertionError("asked")

    target = replace(server.target(), identities=(tmp_path / "id_locked", server.identity))
    await opened(connector(tmp_path, ask=ask), target)


async def test_a_passphrase_that_is_not_given(server: Sshd, tmp_path: Path) -> None:
    server.authorized.write_text(new_key(tmp_path / "id_locked", "secret"))
    asked = 0

    async def ask(key: Path, complaint: str) -> str | None:
        nonlocal asked
        asked += 1
        return None

    target = replace(server.target(), identities=(tmp_path / "id_locked",))
    by = connector(tmp_path, ask=ask)
    for _ in range(2):
        with pytest.raises(AuthFailed, match="no passphrase given"):
            await opened(by, target)
    assert asked == 1
    with pytest.raises(AuthFailed, match="nobody to ask"):
        await opened(connector(tmp_path), target)


async def test_keys_of_the_agent(
    server: Sshd, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / ".ssh" / "id_ed25519"
    server.authorized.write_text(new_key(path, "secret"))
    told = subprocess.check_output(["ssh-agent", "-a", str(tmp_path / "agent")], text=True)
    pid = int(told.split("SSH_AGENT_PID=")[1].split(";")[0])
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        for number in range(3):
            new_key(tmp_path / f"other{number}")
            _add(tmp_path / f"other{number}")
        unlocked = asyncssh.read_private_key(str(path), "secret")
        (tmp_path / "plain").write_bytes(unlocked.export_private_key("openssh"))
        (tmp_path / "plain").chmod(0o600)
        _add(tmp_path / "plain")
        by = connector(tmp_path)
        await opened(by, replace(server.target(), identities=()))
        # IdentitiesOnly with a public key picks one of the agent's.
        config = tmp_path / "config"
        config.write_text(f"Host *\n IdentitiesOnly yes\n IdentityFile {path}.pub\n")
        await opened(connector(tmp_path, config=config), replace(server.target(), identities=()))
        server.authorized.write_text("")
        with pytest.raises(AuthFailed) as refused:
            await opened(by, replace(server.target(), identities=()))
        assert len([line for line in refused.value.tried if "agent key" in line]) == 4
    finally:
        os.kill(pid, signal.SIGTERM)
    with pytest.raises(AuthFailed, match="agent"):
        await opened(by, replace(server.target(), identities=()))


def _add(path: Path) -> None:
    subprocess.check_call(["ssh-add", "-q", str(path)], stdin=subprocess.DEVNULL)


async def test_the_ssh_configuration_and_a_jump_host(server: Sshd, tmp_path: Path) -> None:
    with sshd(tmp_path / "jump") as jump:
        config = tmp_path / "config"
        config.write_text(
            f"Host bastion\n HostName 127.0.0.1\n Port {jump.port}\n IdentityFile {jump.identity}\n"
            f"Host gpu1\n HostName localhost\n Port {server.port}\n ProxyJump bastion\n"
            f" HostKeyAlias gpu-one\n IdentityFile {server.identity}\n"
            f"Host *\n User {USER}\n IdentitiesOnly yes\n"
        )
        by = connector(tmp_path, policy="ask", config=config)
        for expected in (f"[127.0.0.1]:{jump.port}", "gpu-one"):
            with pytest.raises(HostKeyUnknown) as refused:
                await opened(by, Target("gpu1"))
            assert refused.value.offered.name == expected
            by.hostkeys.trust(refused.value.offered)
        async with service(tmp_path / "s") as node, NodeLink("n1", Target("gpu1"), by) as up:
            await up.wait_up(TIMEOUT_S)
            peer = await up.dial(node.tcp, Peer)
            assert isinstance(peer, Peer)
            peer.transport.write(b"far away")
            assert await peer.until(8) == b"far away"
            jump.signal_sessions(signal.SIGKILL)
            assert await peer.end() is not None
            assert not peer.eof
        jump.stop()
        with pytest.raises(Unreachable, match="port"):
            await opened(by, Target("gpu1"))


async def test_a_jump_host_that_cannot_reach_the_target(server: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"Host far\n HostName 127.0.0.1\n Port {free_port()}\n"
        f" ProxyJump {USER}@127.0.0.1:{server.port}\nHost *\n IdentityFile {server.identity}\n"
    )
    with pytest.raises(Unreachable, match=r"through 127\.0\.0\.1 port .*refused"):
        await opened(connector(tmp_path, config=config), Target("far"))


async def test_a_circle_of_jump_hosts(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host a\n ProxyJump b\nHost b\n ProxyJump a\n")
    with pytest.raises(SSHConfigError):
        await opened(connector(tmp_path, config=config), Target("a"))


async def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host a\n Port many\n")
    with pytest.raises(SSHConfigError, match="line 2"):
        await opened(connector(tmp_path, config=config), Target("a"))
    with pytest.raises(SSHConfigError, match="no such file"):
        await opened(connector(tmp_path, config=tmp_path / "gone"), Target("a"))


async def test_nobody_there(tmp_path: Path) -> None:
    by = connector(tmp_path)
    with pytest.raises(Unreachable, match="refused"):
        await opened(by, Target("127.0.0.1", free_port(), USER))
    with pytest.raises(NameUnknown):
        await opened(by, Target("no-such-host.invalid", 22, USER))


async def test_something_else_than_ssh(tmp_path: Path) -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 \x1b[2JBad Request\r\n\r\n" + b"<p>\r\n" * 2000)

    async with service(tmp_path / "s", web) as node:
        with pytest.raises(SSHError) as refused:
            await opened(connector(tmp_path), Target("127.0.0.1", node.port, USER))
        assert isinstance(refused.value, NotSSH | Unreachable)
        assert str(refused.value).isprintable()


async def test_a_silent_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from olol_tui.ssh import target

    patient = replace(target.PROFILES["lan"], handshake_s=0.5)
    monkeypatch.setitem(target.PROFILES, "lan", patient)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unreachable, match=r"within 0\.5 s"):
            await opened(connector(tmp_path), Target("127.0.0.1", silent.getsockname()[1], USER))


async def test_a_banner_cannot_steer_the_terminal(tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    banner.write_bytes(b"\x1b]0;owned\x07Welcome\x1b[2J\r\n\xff\xfe to \xc2\x9b31mthis host\n")
    with sshd(tmp_path / "sshd", f"Banner {banner}") as server:
        connection = await opened(connector(tmp_path), server.target())
    assert connection.banner.isprintable()
    assert connection.banner.startswith("Welcome") and connection.banner.endswith("this host")


async def test_the_measured_rules(server: Sshd, tmp_path: Path) -> None:
    by = connector(tmp_path)
    connection = await by.connect("n1", server.target())
    try:
        assert connection.cipher == "aes128-gcm@openssh.com"
        assert "Starting session: command" in server.log
        sock = connection.ssh.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4000
    finally:
        await connection.close()


async def test_a_refused_link_waits_for_somebody(server: Sshd, tmp_path: Path) -> None:
    """A server that bans repeated failures must not be knocked at."""
    by = connector(tmp_path, policy="ask")
    states: list[str] = []
    async with NodeLink(
        "n1", server.target(), by, on_state=lambda state: states.append(state.phase)
    ) as up:
        with pytest.raises(HostKeyUnknown) as refused:
            await up.wait_up(TIMEOUT_S)
        assert up.state.phase == "refused"
        connections = server.log.count("Connection from")
        await asyncio.sleep(1.2)  # The first back-offs would be over.
        assert server.log.count("Connection from") == connections
        by.hostkeys.trust(refused.value.offered)
        up.retry()
        await in_phase(up, "up")
        assert up.state.fingerprint == fingerprint(server)
    assert states == ["connecting", "refused", "connecting", "up", "closed"]


async def test_handshakes_are_not_more_than_the_server_takes(server: Sshd, tmp_path: Path) -> None:
    """sshd drops connections at random beyond ten: three at a time are not too many."""
    server.config = "MaxStartups 6:100:6"
    server.restart()
    by = connector(tmp_path)
    await asyncio.gather(*(opened(by, server.target()) for _ in range(20)))


async def test_a_new_host_that_cannot_be_written_down(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(HostKeysUnusable):
        await opened(connector(tmp_path), server.target())
    await until(lambda: not server.sessions())


async def test_keys_are_exchanged_anew_all_the_time(server: Sshd, tmp_path: Path) -> None:
    """Every GiB in life. Each time the host key is checked, also one accepted just now."""
    config = tmp_path / "config"
    config.write_text("Host *\n RekeyLimit 200K\n RemoteCommand cat\n RequestTTY force\n")
    node_link = NodeLink("n1", server.target(), connector(tmp_path, config=config))
    async with service(tmp_path / "s") as node, node_link as up:
        await up.wait_up(TIMEOUT_S)

        async def talk() -> None:
            peer = await up.dial(node.tcp, Peer)
            assert isinstance(peer, Peer)
            for round_trip in range(1, 21):
                peer.transport.write(b"z" * 20_000)
                await peer.until(20_000 * round_trip)
            peer.transport.abort()

        await asyncio.gather(*(talk() for _ in range(5)))
        assert (await up.run("echo hi")).stdout == "hi\n"
        async with up.sftp() as files:
            assert await files.exists("/")
        assert up.state.phase == "up"
