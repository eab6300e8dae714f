"""What `~/.ssh/config` makes of a name."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from olol_tui.ssh.errors import SSHConfigError
from olol_tui.ssh.target import Hop, Target, describe, route


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    return tmp_path


def configured(home: Path, text: str) -> Path:
    path = home / ".ssh" / "config"
    path.write_text(text)
    return path


def last(target: Target) -> Hop:
    return route(target)[-1]


def test_without_a_configuration(home: Path) -> None:
    hop = last(Target("GPU1.lan"))
    assert (hop.host, hop.port, hop.user) == ("GPU1.lan", 22, getpass.getuser())
    assert hop.key_name == "gpu1.lan"
    assert home / ".ssh" / "id_ed25519" in hop.identities
    assert not hop.explicit_identities
    assert hop.agent_path == "/run/agent"


def test_the_file_of_the_user(home: Path) -> None:
    configured(
        home,
        "Host gpu*\n HostName %h.lan\n User ops\n Port 2222\n IdentityFile ~/.ssh/lab\n"
        " IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile ~/lab_hosts\n",
    )
    hop = last(Target("gpu1"))
    assert (hop.host, hop.port, hop.user) == ("gpu1.lan", 2222, "ops")
    assert hop.key_name == "[gpu1.lan]:2222"
    assert hop.identities == (home / ".ssh" / "lab",)
    assert hop.identities_only and hop.explicit_identities
    assert hop.agent_path == ""
    assert hop.known_hosts == (home / "lab_hosts",)


def test_where_a_name_leads_is_told_with_user_port_and_jump_hosts(home: Path) -> None:
    configured(
        home,
        "Host gpu1\n HostName 10.0.4.13\n User ops\n Port 2222\n ProxyJump me@bastion.lan\n"
        "Host six\n HostName fd00::13\n User ops\n Port 2222\n",
    )
    assert describe(route(Target("gpu1"))) == "ops@10.0.4.13:2222 via me@bastion.lan"
    assert describe(route(Target("six"))) == "ops@[fd00::13]:2222"


def test_what_the_node_says_wins(home: Path) -> None:
    configured(home, "Host gpu1\n User ops\n Port 2222\n IdentityFile ~/.ssh/lab\n")
    hop = last(Target("gpu1", 22, "root", identities=(home / "mine",)))
    assert (hop.port, hop.user) == (22, "root")
    assert hop.identities == (home / "mine", home / ".ssh" / "lab")


def test_host_keys_cannot_be_switched_off(home: Path) -> None:
    """`UserKnownHostsFile none` makes asyncssh trust everybody: it never gets to see that."""
    configured(home, "Host *\n UserKnownHostsFile /dev/null\n StrictHostKeyChecking no\n")
    assert last(Target("gpu1")).known_hosts == ()


def test_an_alias_for_the_key(home: Path) -> None:
    configured(home, "Host gpu1\n Port 2222\n HostKeyAlias cluster\n")
    assert last(Target("gpu1")).key_name == "cluster"


def hosts(hops: tuple[Hop, ...]) -> list[str]:
    return [f"{hop.user}@{hop.host}:{hop.port}" for hop in hops]


def test_jumps(home: Path) -> None:
    configured(
        home,
        "Host gpu1\n ProxyJump two,me@three:33\nHost two\n ProxyJump one\n Port 2\n"
        "Host v6\n ProxyJump ssh://[fe80::1]:44/\nHost direct\n ProxyJump none\n"
        "Host direct via-*\n ProxyJump one\nHost *\n User ops\n",
    )
    assert hosts(route(Target("gpu1"))) == ["ops@one:22", "ops@two:2", "me@three:33", "ops@gpu1:22"]
    assert hosts(route(Target("v6")))[0] == "ops@fe80::1:44"
    assert hosts(route(Target("direct"))) == ["ops@direct:22"]
    # The node's own keys open the node, and its jump hosts too.
    assert all(
        h.identities[0] == home / "k" for h in route(Target("gpu1", identities=(home / "k",)))
    )


@pytest.mark.parametrize(
    "text",
    [
        "Host gpu1\n Port many\n",
        "Host gpu1\n ProxyJump gpu1\n",
        "Host gpu1\n ProxyJump one:x\n",
        "Host gpu1\n ProxyJump ops@\n",
        "Host gpu1\n HostName 'unclosed\n",
    ],
)
def test_what_cannot_be_used(home: Path, text: str) -> None:
    configured(home, text)
    with pytest.raises(SSHConfigError):
        route(Target("gpu1"))
