"""The parts of a Spec that only split models need, checked on the way in.

A split is one model whose layers lie on several devices: a head (`llama-server`), workers
(`rpc-server`, one a lent device) and, where a worker is on another node, forwards that carry
the tensors there over SSH.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .errors import BadRequest

MAX_WORKERS = 16
"""Of one head: GGML_RPC_MAX_SERVERS."""
_ADDRESS = re.compile(r"^[0-9.]{7,15}:[0-9]{1,5}$")
"""The workers' client resolves IPv4 only."""
_HOST = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,254}$")
"""Never with a leading dash: it becomes an argument of ssh."""
_USER = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
_KEY = re.compile(r"^[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}$")


@dataclass(frozen=True)
class Chain:
    """Where the layers of a split model go, in the order in which they are computed."""

    workers: tuple[str, ...]
    """`127.0.0.1:port`; the head's own GPUs come after all of them."""
    layers: tuple[int, ...]
    """For each worker, then for each own GPU; the output counts as one more layer."""
    build: str = ""
    """What the workers' `llama-server --version` says: ours must say the same."""

    def to_json(self) -> dict[str, Any]:
        return {"workers": list(self.workers), "layers": list(self.layers), "build": self.build}


@dataclass(frozen=True)
class Forward:
    """A port of this node that leads to a worker on another one."""

    host: str
    user: str
    port: int
    """Of its sshd."""
    target: int
    """The worker's port on its own loopback."""
    host_key: str
    """`ssh-ed25519 AAAA…`: no other host is talked to."""

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def chain_of(given: Any, where: str, kind: str) -> Chain | None:
    """Raises BadRequest."""
    if given is None:
        return None
    if kind != "llama-server":
        raise BadRequest(f"{where}: only a llama-server heads a split model")
    workers, layers = _object(given, where).get("workers"), given.get("layers")
    build = given.get("build", "")
    if not isinstance(workers, list) or not all(_is_address(one) for one in workers):
        raise BadRequest(f"{where}.workers: expected a list of addresses such as 127.0.0.1:41000")
    if len(workers) > MAX_WORKERS:
        raise BadRequest(f"{where}.workers: {len(workers)} are more than {MAX_WORKERS}")
    if not isinstance(layers, list) or not all(_is_count(one) for one in layers):
        raise BadRequest(f"{where}.layers: expected a list of whole numbers")
    if len(layers) < len(workers) or not sum(layers):
        raise BadRequest(f"{where}.layers: expected one number for each worker, and one layer")
    if not isinstance(build, str):
        raise BadRequest(f"{where}.build: expected a string")
    return Chain(tuple(workers), tuple(layers), build)


def forward_of(given: Any, where: str, kind: str) -> Forward | None:
    """Raises BadRequest."""
    if (given is None) != (kind != "forward"):
        raise BadRequest(f"{where}: given for the kind `forward`, and for no other")
    if given is None:
        return None
    item = _object(given, where)
    host, user = _matching(item, "host", where, _HOST), _matching(item, "user", where, _USER)
    key = _key(item.get("host_key"), f"{where}.host_key")
    return Forward(host, user, _port(item, "port", where), _port(item, "target", where), key)


def permits_of(given: Any, where: str) -> tuple[str, ...]:
    """Raises BadRequest."""
    if given is None:
        return ()
    if not isinstance(given, list):
        raise BadRequest(f"{where}: expected a list of public keys")
    return tuple(_key(one, f"{where}[{index}]") for index, one in enumerate(given))


def _object(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BadRequest(f"{where}: expected an object")
    return given


def _matching(item: dict[str, Any], name: str, where: str, pattern: re.Pattern[str]) -> str:
    text = item.get(name)
    if not isinstance(text, str) or not pattern.match(text):
        raise BadRequest(f"{where}.{name}: {text!r} is not one")
    return text


def _port(item: dict[str, Any], name: str, where: str) -> int:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise BadRequest(f"{where}.{name}: expected a port from 1 to 65535")
    return value


def _key(given: Any, where: str) -> str:
    """One line of a known form: it is written into files that others read."""
    if not isinstance(given, str) or not _KEY.match(given):
        raise BadRequest(f"{where}: expected a public key such as `ssh-ed25519 AAAA…`")
    return given


def _is_address(given: Any) -> bool:
    return isinstance(given, str) and _ADDRESS.match(given) is not None


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= 1 << 20
