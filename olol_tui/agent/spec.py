"""What should run (Spec) and how patient supervision is (Policy), checked on the way in."""

from __future__ import annotations

import hashlib
import json
import socket
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import BadRequest
from .splitspec import Chain, Forward, chain_of, forward_of, permits_of

KINDS = ("ollama", "llama-server", "embedded", "simulated", "rpc-server", "forward")
RUNNERS = ("llama-server", "embedded")
"""Kinds whose process serves exactly one model."""

LOOPBACK = "127.0.0.1"
_MAX_ID_CHARS = 200


@dataclass(frozen=True)
class ModelRef:
    """The one model of a runner."""

    name: str
    path: str
    chat_template: str = ""


@dataclass(frozen=True)
class Spec:
    """One engine as the console wants it."""

    id: str
    kind: str
    devices: tuple[str, ...] = ()
    slots: int = 1
    num_ctx: int = 4096
    binary: str = ""
    """Path of the program, or a directory that holds it; empty: looked up on PATH."""
    models_dir: str = ""
    prune: bool = False
    env: dict[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    model: ModelRef | None = None
    simulated: dict[str, Any] = field(default_factory=dict)
    listen: str = ""
    """Address to listen on instead of 127.0.0.1, for nodes that are reached without SSH."""
    chain: Chain | None = None
    """Of the head of a split model: where its layers go."""
    forward: Forward | None = None
    """Of kind `forward`: where it leads."""
    cache_bytes: int = 0
    """Of kind `rpc-server`: weights that it will be sent."""
    permit: tuple[str, ...] = ()
    """Of kind `rpc-server`: public keys that may be let through to it over this node's sshd."""

    @property
    def bind(self) -> str:
        return self.listen or LOOPBACK

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["devices"] = list(self.devices)
        plain["args"] = list(self.args)
        plain["permit"] = list(self.permit)
        for name in ("chain", "forward"):
            part = getattr(self, name)
            plain[name] = None if part is None else part.to_json()
        for name in ("listen", "chain", "forward", "permit", "cache_bytes"):
            # A field that older agents do not know must not change the digest: an upgrade
            # would restart every engine.
            if not plain[name]:
                del plain[name]
        if self.model is None:
            del plain["model"]
        else:
            plain["model"] = dict(self.model.__dict__)
        return plain

    @property
    def digest(self) -> str:
        """Changes when anything in the spec changes: then the process is replaced.

        Whom sshd lets through to it is none of the process's business, and how much it will
        be sent only matters at its next start.
        """
        aside = ("permit", "cache_bytes")
        plain = {name: value for name, value in self.to_json().items() if name not in aside}
        text = json.dumps(plain, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Policy:
    """Every interval and limit of supervision."""

    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    backoff_ceiling_s: float = 5.0
    """Between tries of what never gives up."""
    healthy_after_s: float = 60.0
    """Ready for this long: the next crash starts the back-off anew."""
    crash_limit: int = 5
    crash_window_s: float = 300.0
    """`crash_limit` crashes within it: failed, until restarted by hand."""
    stop_grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    ready_probe_s: float = 0.15
    poll_s: float = 1.0
    """Between looks at what a ready engine has loaded."""
    answer_s: float = 5.0
    """An engine that has not answered such a look by then is silent."""
    start_timeout_s: float = 60.0
    load_timeout_s: float = 900.0
    """A runner reads its whole model before it is ready."""
    stall_s: float = 10.0
    """The head of a split model that decodes without a token for so long has lost a worker."""
    prefill_stall_s: float = 120.0
    """The same while a prompt is read: a batch of it is one step."""
    stopped_s: float = 5.0
    """Somebody may stop a worker for a moment, and let it go on."""
    stuck_s: float = 10.0
    """A worker that lives, and neither computes nor waits for anybody, is lost after so long."""
    log_tail_lines: int = 50
    rotate_s: float = 15.0
    foreign_s: float = 10.0
    log_max_bytes: int = 20 * 1024 * 1024
    log_files: int = 3

    @classmethod
    def from_json(cls, given: Any) -> Policy:
        """Raises BadRequest for an unknown name or a value that is not a positive number."""
        if not isinstance(given, dict):
            raise BadRequest("the policy must be an object")
        known = {f.name: type(f.default) for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise BadRequest(f"the policy has no field {name!r}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise BadRequest(f"policy.{name}: expected a positive number, got {value!r}")
            values[name] = int(value) if known[name] is int else float(value)
        return cls(**values)


def parse_specs(given: Any) -> list[Spec]:
    """The desired list of a PUT.

    Raises:
        BadRequest: with the place and what was expected; nothing is half accepted.
    """
    if not isinstance(given, list):
        raise BadRequest(f"engines: expected a list, got {_kind_of(given)}")
    specs = [parse_spec(item, f"engines[{index}]") for index, item in enumerate(given)]
    seen: set[str] = set()
    for spec in specs:
        if spec.id in seen:
            raise BadRequest(f"engine id {spec.id!r} is given twice")
        seen.add(spec.id)
    return specs


def parse_spec(given: Any, where: str) -> Spec:
    """One spec; see `parse_specs`."""
    if not isinstance(given, dict):
        raise BadRequest(f"{where}: expected an object, got {_kind_of(given)}")
    known = {f.name for f in fields(Spec)}
    for name in given:
        if name not in known:
            raise BadRequest(f"{where}: unknown field {name!r}")
    identity = _text(given, "id", where, "")
    if not identity or len(identity) > _MAX_ID_CHARS or not identity.isprintable():
        raise BadRequest(f"{where}.id: expected 1 to {_MAX_ID_CHARS} printable characters")
    kind = _text(given, "kind", where, "")
    if kind not in KINDS:
        raise BadRequest(f"{where}.kind: unknown kind {kind!r}, expected {', '.join(KINDS)}")
    model = _model(given.get("model"), f"{where}.model")
    if kind in RUNNERS and model is None:
        raise BadRequest(f"{where}.model: an engine of kind {kind} needs the model it serves")
    if kind not in RUNNERS and model is not None:
        raise BadRequest(f"{where}.model: an engine of kind {kind} serves many models")
    return Spec(
        id=identity,
        kind=kind,
        devices=tuple(_texts(given, "devices", where)),
        slots=_count(given, "slots", where, 1, 1, 1024),
        num_ctx=_count(given, "num_ctx", where, 4096, 1, 1 << 24),
        binary=_text(given, "binary", where, ""),
        models_dir=_text(given, "models_dir", where, ""),
        prune=_flag(given, "prune", where),
        env=_env(given.get("env"), where),
        args=tuple(_texts(given, "args", where)),
        model=model,
        simulated=_object(given, "simulated", where),
        listen=_address(given, "listen", where),
        chain=chain_of(given.get("chain"), f"{where}.chain", kind),
        forward=forward_of(given.get("forward"), f"{where}.forward", kind),
        cache_bytes=_count(given, "cache_bytes", where, 0, 0, 1 << 50),
        permit=permits_of(given.get("permit"), f"{where}.permit"),
    )


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _text(given: dict[str, Any], name: str, where: str, default: str) -> str:
    value = given.get(name, default)
    if not isinstance(value, str) or "\0" in value:
        raise BadRequest(f"{where}.{name}: expected a string, got {_kind_of(value)}")
    return value


def _address(given: dict[str, Any], name: str, where: str) -> str:
    text = _text(given, name, where, "")
    if text:
        try:
            socket.inet_aton(text)
        except OSError as error:
            raise BadRequest(f"{where}.{name}: expected an IPv4 address, got {text!r}") from error
    return text


def _texts(given: dict[str, Any], name: str, where: str) -> list[str]:
    value = given.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        raise BadRequest(f"{where}.{name}: expected a list of strings")
    return list(value)


def _count(given: dict[str, Any], name: str, where: str, default: int, low: int, high: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{where}.{name}: expected a whole number from {low} to {high}")
    return value


def _flag(given: dict[str, Any], name: str, where: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{where}.{name}: expected true or false, got {_kind_of(value)}")
    return value


def _object(given: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise BadRequest(f"{where}.{name}: expected an object, got {_kind_of(value)}")
    return dict(value)


def _env(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{where}.env: expected an object, got {_kind_of(value)}")
    for name, text in value.items():
        if not isinstance(text, str) or "\0" in text or not name or "=" in name or "\0" in name:
            raise BadRequest(f"{where}.env: expected names and strings, got {name!r}")
    return dict(value)


def _model(value: Any, where: str) -> ModelRef | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: expected an object, got {_kind_of(value)}")
    name, path = _text(value, "name", where, ""), _text(value, "path", where, "")
    if not name or not path:
        raise BadRequest(f"{where}: expected name and path")
    return ModelRef(name, path, _text(value, "chat_template", where, ""))
