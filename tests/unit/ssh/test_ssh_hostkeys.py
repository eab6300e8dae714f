"""The verdict on a host key, and the files it comes from."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import asyncssh
import pytest

from olol_tui.ssh.errors import HostKeyChanged, HostKeyRevoked, HostKeysUnusable, HostKeyUnknown
from olol_tui.ssh.hostkeys import HostKeys, OfferedKey, known_hosts_name, parse_name

ED, OTHER, ECDSA, RSA = (
    asyncssh.generate_private_key(kind).convert_to_public()
    for kind in ("ssh-ed25519", "ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
)


def line(key: asyncssh.SSHKey) -> str:
    return key.export_public_key("openssh").decode().strip()


@pytest.fixture
def keys(tmp_path: Path) -> HostKeys:
    return HostKeys(
        tmp_path / "own", user_files=[tmp_path / "user"], system_files=[tmp_path / "sys"]
    )


def verdict(keys: HostKeys, name: str, key: asyncssh.SSHKey) -> type[Exception] | None:
    refusal = keys.refusal(name, key, keys.lookup(name))
    return None if refusal is None else type(refusal)


@pytest.mark.parametrize("file", ["own", "user", "sys"])
def test_every_file_counts(keys: HostKeys, tmp_path: Path, file: str) -> None:
    assert verdict(keys, "gpu1", ED) is HostKeyUnknown
    (tmp_path / file).write_text(f"gpu1,10.0.0.1 {line(ED)}\n")
    assert verdict(keys, "gpu1", ED) is None
    assert verdict(keys, "gpu1", OTHER) is HostKeyChanged
    assert verdict(keys, "gpu1", ECDSA) is HostKeyChanged
    assert verdict(keys, "gpu2", ED) is HostKeyUnknown


def test_a_port_of_its_own(keys: HostKeys, tmp_path: Path) -> None:
    """As OpenSSH: the host's key is good on another port; another key there is just unknown."""
    (tmp_path / "user").write_text(f"gpu1 {line(ED)}\n")
    assert verdict(keys, "[gpu1]:2222", ED) is None
    assert verdict(keys, "[gpu1]:2222", OTHER) is HostKeyUnknown
    keys.trust(OfferedKey.of("[gpu1]:2222", OTHER))
    assert verdict(keys, "[gpu1]:2222", OTHER) is None
    assert verdict(keys, "[gpu1]:2222", ED) is HostKeyChanged
    assert verdict(keys, "gpu1", ED) is None


def test_wildcards_and_revocations(keys: HostKeys, tmp_path: Path) -> None:
    (tmp_path / "user").write_text(f"*.lan {line(ED)}\n@revoked * {line(OTHER)}\n")
    assert verdict(keys, "a.lan", ED) is None
    assert verdict(keys, "a.lan", OTHER) is HostKeyRevoked
    assert verdict(keys, "elsewhere", OTHER) is HostKeyRevoked


def test_a_host_has_keys_of_several_kinds(keys: HostKeys, tmp_path: Path) -> None:
    (tmp_path / "user").write_text(f"gpu1 {line(RSA)}\ngpu1 {line(ECDSA)}\n")
    assert verdict(keys, "gpu1", RSA) is None
    assert verdict(keys, "gpu1", ECDSA) is None
    wanted = keys.lookup("gpu1").algorithms
    assert set(wanted[:3]) == {"rsa-sha2-256", "rsa-sha2-512", "ecdsa-sha2-nistp256"}
    assert "ssh-ed25519" in wanted[3:]
    assert not any("cert" in algorithm for algorithm in wanted)
    (tmp_path / "sys").write_text(f"@cert-authority * {line(OTHER)}\n")
    assert "cert" in keys.lookup("gpu1").algorithms[0]


def test_a_line_that_makes_no_sense_costs_only_itself(keys: HostKeys, tmp_path: Path) -> None:
    (tmp_path / "user").write_bytes(
        b"\xff\xfe\n@marked gpu1 x\ngpu1\n|1|x ssh-ed25519 AAAA\ngpu1 ssh-ed25519 %%%\n"
        + f"gpu1 {line(ED)}\n".encode()
    )
    assert verdict(keys, "gpu1", ED) is None


def test_trusting(keys: HostKeys, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("# a comment without an end of line")
    for _ in range(2):
        keys.trust(OfferedKey.of("gpu1", ED))
    keys.trust(OfferedKey.of("[gpu2]:2222", ECDSA))
    text = (tmp_path / "own").read_text()
    assert len(text.splitlines()) == 3
    assert "gpu" not in text
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    with pytest.raises(HostKeyChanged) as refused:
        keys.trust(OfferedKey.of("gpu1", OTHER))
    assert refused.value.known == (f"ED25519 {ED.get_fingerprint()} in {tmp_path / 'own'}",)
    assert (tmp_path / "own").read_text() == text


def test_forgetting(keys: HostKeys, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    real = tmp_path / "dotfiles" / "known"
    kept = f"# kept\n*.lan {line(ED)}\n@cert-authority gpu1 {line(ED)}\ngpu2 {line(ED)}\n"
    real.write_text(f"{kept}gpu1,10.0.0.1 {line(ED)}\n")
    real.chmod(0o644)
    keys.trust(OfferedKey.of("gpu1", ED))
    (tmp_path / "user").symlink_to(real)
    removed = keys.forget("gpu1")
    assert [entry.split(":")[0] for entry in removed] == [
        str(tmp_path / "own"),
        str(tmp_path / "user"),
    ]
    assert all(ED.get_fingerprint() in entry for entry in removed)
    assert real.read_text() == kept
    assert (tmp_path / "user").is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o644
    assert "10.0.0.1" in (tmp_path / "dotfiles" / "known.old").read_text()
    assert verdict(keys, "gpu1", OTHER) is HostKeyUnknown
    assert keys.forget("gpu1") == []


@pytest.mark.parametrize("name", ["gpu1:2222", "[gpu1]:2222"])
def test_forgetting_a_port(keys: HostKeys, name: str) -> None:
    offered = OfferedKey.of("[gpu1]:2222", ED)
    keys.trust(offered)
    assert offered.forget_as == "gpu1:2222"
    assert offered.display == "gpu1 port 2222"
    assert len(keys.forget(name)) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_our_own_file_must_be_readable(keys: HostKeys, tmp_path: Path) -> None:
    keys.trust(OfferedKey.of("gpu1", ED))
    (tmp_path / "own").chmod(0)
    with pytest.raises(HostKeysUnusable):
        keys.lookup("gpu1")


def test_our_own_file_is_a_directory(keys: HostKeys, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(HostKeysUnusable):
        keys.lookup("gpu1")
    with pytest.raises(HostKeysUnusable):
        keys.trust(OfferedKey.of("gpu1", ED))


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("gpu1", "gpu1", 22),
        ("[gpu1]:2222", "gpu1", 2222),
        ("gpu1:2222", "gpu1", 2222),
        ("::1", "::1", 22),
        ("[::1]:2222", "::1", 2222),
        ("[::1]", "::1", 22),
    ],
)
def test_names(name: str, host: str, port: int) -> None:
    assert parse_name(name) == (host, port)
    assert parse_name(known_hosts_name(host, port)) == (host, port)


@pytest.mark.parametrize("key", [ED, ECDSA, RSA], ids=["ed25519", "ecdsa", "rsa"])
def test_the_picture_is_openssh_s(key: asyncssh.SSHKey, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(line(key))
    try:
        drawn = subprocess.check_output(
            ["ssh-keygen", "-lvf", str(tmp_path / "key.pub")], text=True
        )
    except FileNotFoundError:
        pytest.skip("no ssh-keygen here")
    offered = OfferedKey.of("gpu1", key)
    summary, _, art = drawn.strip().partition("\n")
    assert offered.randomart == art
    assert summary.startswith(f"{offered.bits} {offered.fingerprint} ")
    assert summary.endswith(f"({offered.key_type})")
