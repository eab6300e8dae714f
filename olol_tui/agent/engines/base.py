"""What every engine kind tells the supervisor.

A kind holds no state: the supervisor owns processes, and asks a kind how to start one,
whether it answers, and what it has loaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

from .. import client
from ..errors import EngineError, Malformed
from ..gguf import read_header
from ..pulse import Pulse
from ..spec import Policy, Spec

_VISIBILITY = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "GGML_VK_VISIBLE_DEVICES",
    "ONEAPI_DEVICE_SELECTOR",
)

_VERSION_TIMEOUT_S = 10.0
_VERSION = re.compile(r"version(?: is)?:? *v?([0-9][^\s,]*(?: \(build \d+[^)]*\))?)")

_versions: dict[tuple[str, int], str] = {}
"""(path, mtime) to version: asking starts a process."""

_EXTRA_DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/opt/ollama/bin", "/snap/bin")
"""Where installers put programs that a non-login PATH may lack."""


@dataclass(frozen=True)
class Context:
    """What a kind may know of the node it starts an engine on."""

    devices: Mapping[str, Mapping[str, Any]]
    """DEVICE facts by UUID."""
    self_argv: tuple[str, ...]
    """Command that runs this agent's own subcommands."""
    cpus: int
    policy: Policy
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    state_dir: str = ""
    """Of this agent; empty where nothing is to be kept."""

    def vendors(self, spec: Spec) -> set[str]:
        return {str(self.devices.get(uuid, {}).get("vendor", "cpu")) for uuid in spec.devices}


@dataclass(frozen=True)
class Launch:
    """A command line with its environment."""

    argv: tuple[str, ...]
    env: dict[str, str]
    version: str = ""
    ignores_sigpipe: bool = False
    """Start it deaf to SIGPIPE: a peer that leaves early must not end it."""


class NotYet(EngineError):
    """What it needs elsewhere is not there yet: worth another try, with a back-off."""


class Unsupported(Exception):
    """This build of the engine refuses a feature: start it again with `plain=True`."""


@dataclass(frozen=True)
class Advance:
    """The steps of all running requests so far: if it stays the same, nothing moves."""

    steps: tuple[Any, ...]
    in_prefill: bool
    """Some prompt is being read: steps take long."""


class EngineKind:
    """Base: one subclass a kind."""

    name = ""
    runner = False
    """True when its process serves exactly one model."""
    ends_when_silent = False
    """Whether one that does not answer any more is to be ended, and so started again."""
    never_gives_up = False
    """Whether it is tried again for ever: what it needs is elsewhere and may come back."""

    is_inspected = False
    """Whether `inspect` is to be asked: its process may stand still and break no connection."""

    def launch(self, spec: Spec, port: int, context: Context, *, plain: bool = False) -> Launch:
        """How to start it; `plain`: without what `ready` found unsupported.

        Raises:
            EngineError: it cannot be started here, with what to do about it.
        """
        raise NotImplementedError

    async def ready(self, spec: Spec, port: int) -> str | None:
        """Its version (may be empty) once it answers, None while it does not yet.

        Raises:
            client.CallError: nothing answers.
            Unsupported: it runs, but not with all the features it was started with.
        """
        raise NotImplementedError

    async def loaded(self, spec: Spec, port: int, timeout_s: float) -> list[dict[str, Any]]:
        """LOADED facts of the models it holds.

        Raises:
            client.CallError: it gave no usable answer.
        """
        raise NotImplementedError

    async def advance(self, spec: Spec, port: int, timeout_s: float) -> Advance | None:
        """How far its running requests are; None when it has none, or is no head of a split."""
        return None

    def inspect(self, spec: Spec, pid: int, state_dir: str) -> Pulse | None:
        """How the process of a ready engine is, by the kernel, after looking after what it keeps
        on disk; None when the process is gone. Asked only where `is_inspected`. Blocks.
        """
        raise NotImplementedError

    def layout(self, spec: Spec, log: Path) -> dict[str, Any] | None:
        """Where a ready head put its layers, by its own log; None for all others."""
        return None

    def tells(self, pid: int | None) -> dict[str, Any]:
        """Fields of its STATUS that other kinds do not have."""
        return {}

    def stop_grace_s(self, policy: Policy) -> float:
        """From SIGTERM to SIGKILL."""
        return policy.stop_grace_s

    def start_timeout_s(self, policy: Policy) -> float:
        return policy.load_timeout_s if self.runner else policy.start_timeout_s


def find_program(name: str, given: str, environ: Mapping[str, str]) -> str:
    """The path of a program: `given` (file, or directory that holds it), else PATH.

    Raises:
        EngineError: there is none, or it cannot be executed.
    """
    if given:
        path = Path(given).expanduser()
        if path.is_dir():
            inside = [path / name, path / "bin" / name]
            path = next((p for p in inside if p.is_file()), inside[0])
        if not path.is_file():
            raise EngineError(f"{path} does not exist", f"point `binary` at {name}")
        if not os.access(path, os.X_OK):
            raise EngineError(f"{path} is not executable", f"chmod +x {path}")
        return str(path)
    search = os.pathsep.join([environ.get("PATH", ""), *_EXTRA_DIRECTORIES])
    found = shutil.which(name, path=search)
    if found is None:
        raise EngineError(f"no {name} on PATH", f"install {name}, or set `binary` to where it is")
    return found


def program_version(path: str) -> str:
    """What `PROGRAM --version` says, empty when it says nothing we can read."""
    try:
        key = (path, Path(path).stat().st_mtime_ns)
        if key not in _versions:
            done = subprocess.run(
                [path, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_VERSION_TIMEOUT_S,
                env=with_libraries(dict(os.environ), path),
                check=False,
            )
            match = _VERSION.search(done.stdout.decode("utf-8", "replace"))
            _versions[key] = match.group(1) if match else ""
        return _versions[key]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def with_libraries(env: dict[str, str], program: str) -> dict[str, str]:
    """The environment with the libraries that lie beside a program before all others.

    One that was packed out of a build tree looks for them where they were built.
    """
    folder = Path(program).resolve().parent
    if not any(folder.glob("*.so*")):
        return env
    others = env.get("LD_LIBRARY_PATH", "")
    return {**env, "LD_LIBRARY_PATH": f"{folder}{os.pathsep}{others}" if others else str(folder)}


def device_env(spec: Spec, context: Context, *, hide_vulkan: bool) -> dict[str, str]:
    """The engine's environment: its own devices visible by UUID, every other one hidden.

    Anything inherited that selects devices is dropped first: an engine must see what its
    spec says, not what the shell that started the agent happened to hold.
    """
    env = {k: v for k, v in context.environ.items() if k not in _VISIBILITY}
    by_vendor: dict[str, list[str]] = {"nvidia": [], "amd": []}
    for uuid in spec.devices:
        device = context.devices.get(uuid, {})
        vendor = str(device.get("vendor", "cpu"))
        if vendor == "nvidia":
            by_vendor["nvidia"].append(uuid)
        elif vendor == "amd":
            # ROCm knows UUIDs of the form GPU-<hex>; anything else is named by index.
            named = uuid if uuid.startswith("GPU-") else str(device.get("index", 0))
            by_vendor["amd"].append(named)
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    env["CUDA_VISIBLE_DEVICES"] = ",".join(by_vendor["nvidia"]) or "-1"
    env["ROCR_VISIBLE_DEVICES"] = ",".join(by_vendor["amd"]) or "-1"
    if hide_vulkan or not (by_vendor["nvidia"] or by_vendor["amd"]):
        # The Vulkan back-end would see the hidden cards again.
        env["GGML_VK_VISIBLE_DEVICES"] = "-1"
    return env


async def health(port: int, timeout_s: float = 5.0) -> bool:
    """llama-server's `/health`: 200 when the model is loaded, 503 while it loads.

    Raises:
        client.CallError: nothing answers.
    """
    reply = await client.call(port, "/health", timeout_s=timeout_s)
    if reply.status in (200, 503):
        return reply.status == 200
    raise client.CallError(f"/health answered {reply.status}")


def model_file(spec: Spec) -> Path:
    """The GGUF of a runner; reads its header.

    Raises:
        EngineError: it is not there, cannot be read, or is no GGUF.
    """
    if spec.model is None:
        raise EngineError(f"{spec.id} has no model")
    path = Path(spec.model.path)
    if not path.is_file():
        raise EngineError(f"the model file {path} does not exist")
    try:
        read_header(str(path))
    except Malformed as error:
        raise EngineError(error.message) from error
    except OSError as error:
        raise EngineError(f"the model file {path} cannot be read: {error.strerror}") from error
    return path
