"""From what the user wrote to hosts that can be dialled: `~/.ssh/config` applied, jumps in order.

asyncssh would open jump hosts by itself, but without our host keys, keys and keepalive:
the route is worked out here, and every hop is opened by our rules.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import asyncssh

from olol_tui.ssh.errors import SSHConfigError
from olol_tui.ssh.hostkeys import known_hosts_name

ProfileName = Literal["lan", "wan"]

_MAX_HOPS = 8
_DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")


@dataclass(frozen=True, slots=True)
class Profile:
    """How patient we are with a silent host."""

    keepalive_s: float
    keepalive_count: int
    user_timeout_ms: int
    """TCP_USER_TIMEOUT: sees a cut line sooner, but not a frozen host."""
    handshake_s: float
    """TCP, key exchange and authentication together."""


PROFILES: dict[ProfileName, Profile] = {
    "lan": Profile(2.0, 2, 4_000, 15.0),
    "wan": Profile(5.0, 3, 15_000, 40.0),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A host as the user names it. What is unset comes from `~/.ssh/config`."""

    host: str
    """A name, an address, or a `Host` of the SSH configuration."""
    port: int | None = None
    user: str | None = None
    identities: tuple[Path, ...] = ()
    """Private keys to offer first, or alone where the configuration says IdentitiesOnly."""
    known_hosts: tuple[Path, ...] = ()
    """In place of the user's own files; ours is always read too."""
    profile: ProfileName = "lan"


@dataclass(frozen=True, slots=True)
class Hop:
    """One SSH server on the way, resolved."""

    target: Target
    host: str
    port: int
    user: str
    key_name: str
    """What known_hosts calls it."""
    identities: tuple[Path, ...]
    explicit_identities: bool
    """Named by the user or the configuration, not just the usual file names."""
    identities_only: bool
    agent_path: str
    known_hosts: tuple[Path, ...]
    has_ciphers: bool
    has_host_key_algorithms: bool
    """The user's own choice of algorithms stands."""

    @property
    def display(self) -> str:
        """`gpu1.lan` or `gpu1.lan port 2222`."""
        return self.host if self.port == 22 else f"{self.host} port {self.port}"

    @property
    def login(self) -> str:
        """As ssh-copy-id and its like want it: `-p 2222 ops@gpu1.lan`."""
        return f"{'' if self.port == 22 else f'-p {self.port} '}{self.user}@{self.host}"

    @property
    def place(self) -> str:
        """`ops@gpu1.lan` or `ops@gpu1.lan:2222`: what is dialled, whatever it was called."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}{'' if self.port == 22 else f':{self.port}'}"


def route(target: Target, config: Path | None = None) -> tuple[Hop, ...]:
    """The hops from here to the target, which is the last one. Reads files: blocking.

    Args:
        target: where to.
        config: the SSH configuration; None: `~/.ssh/config` if there is one.

    Raises:
        SSHConfigError: the configuration cannot be read, or goes in a circle.
    """
    hops: list[Hop] = []
    pending = [target]
    while pending:
        if len(hops) >= _MAX_HOPS:
            raise SSHConfigError(f"{target.host}: ProxyJump leads through more than {_MAX_HOPS}")
        hop, jumps = _resolve(pending.pop(), config)
        hops.insert(0, hop)
        # Only the first of several jumps is asked for jumps of its own, as `ssh -J` does.
        following = [_jump(spec, target) for spec in jumps]
        while len(following) > 1:
            hops.insert(0, _resolve(following.pop(), config)[0])
        pending += following
    return tuple(hops)


def describe(hops: Sequence[Hop]) -> str:
    """`ops@10.0.4.13 via ops@bastion.lan`: the last hop, and those before it."""
    return " via ".join(hop.place for hop in reversed(hops))


def config_argument(config: Path | None) -> object:
    """asyncssh's `config`: () means the default file."""
    return () if config is None else [str(config)]


def _resolve(target: Target, config: Path | None) -> tuple[Hop, list[str]]:
    if config is not None and not config.is_file():
        raise SSHConfigError(f"{config}: no such file")
    try:
        options = asyncssh.SSHClientConnectionOptions(
            host=target.host,
            port=() if target.port is None else target.port,
            username=() if target.user is None else target.user,
            config=config_argument(config),
            client_keys=None,
        )
    except (asyncssh.ConfigParseError, ValueError, OSError) as error:
        raise SSHConfigError(
            f"{target.host}: {error}", hint="Check ~/.ssh/config with: ssh -G " + target.host
        ) from error
    found = options.config
    listed = _paths(found.get("IdentityFile"))
    usual = tuple(Path("~/.ssh", name).expanduser() for name in _DEFAULT_IDENTITIES)
    identities = tuple(dict.fromkeys((*target.identities, *listed)))
    agent = found.get("IdentityAgent", "SSH_AUTH_SOCK")  # None: the user wrote `none`.
    if agent == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK")
    jump = str(options.tunnel) if isinstance(options.tunnel, str) else ""
    hop = Hop(
        target=target,
        host=options.host,
        port=options.port,
        user=options.username,
        key_name=options.host_key_alias or known_hosts_name(options.host.lower(), options.port),
        identities=identities or usual,
        explicit_identities=bool(identities),
        identities_only=bool(found.get("IdentitiesOnly", False)),
        agent_path=str(Path(str(agent)).expanduser()) if agent else "",
        known_hosts=target.known_hosts or _paths(found.get("UserKnownHostsFile")),
        has_ciphers=found.get("Ciphers") is not None,
        has_host_key_algorithms=found.get("HostKeyAlgorithms") is not None,
    )
    return hop, [spec.strip() for spec in jump.split(",") if spec.strip()]


def _jump(spec: str, target: Target) -> Target:
    """`[user@]host[:port]` or `ssh://…`; patience and own known_hosts come from the target."""
    spec = spec.removeprefix("ssh://").rstrip("/")
    user, _, host = spec.rpartition("@")
    port: int | None = None
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        digits = rest.removeprefix(":")
    elif host.count(":") == 1:
        host, _, digits = host.partition(":")
    else:
        digits = ""
    if digits:
        if not digits.isascii() or not digits.isdigit():
            raise SSHConfigError(f"ProxyJump {spec}: {digits!r} is no port")
        port = int(digits)
    if not host:
        raise SSHConfigError(f"ProxyJump {spec!r} names no host")
    return replace(target, host=host, port=port, user=user or None)


def _paths(value: object) -> tuple[Path, ...]:
    """A path or several of the configuration; `none` and /dev/null stand for no file."""
    if value is None:
        return ()
    items: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    texts = [str(item) for item in items if item]
    return tuple(Path(text).expanduser() for text in texts if text not in ("none", "/dev/null"))


def ssh_command(target: Target, own_file: str = "") -> str:
    """What a human types to get there.

    Args:
        own_file: our known_hosts, where the host's key is in no other.
    """
    words = ["ssh"]
    if target.port is not None:
        words += ["-p", str(target.port)]
    for identity in target.identities:
        words += ["-i", str(identity)]
    files = [str(path) for path in target.known_hosts] + ([own_file] if own_file else [])
    if files:
        # ssh takes one list: another option of that name would count for nothing.
        words += ["-o", f"UserKnownHostsFile={' '.join(map(shlex.quote, files))}"]
    words.append(f"{target.user}@{target.host}" if target.user else target.host)
    return shlex.join(words)
