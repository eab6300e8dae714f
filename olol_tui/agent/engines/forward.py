"""A port of this node that leads through SSH to a worker on another one.

OpenSSH's own client, kept like an engine. The key is made for this and nothing else: over
there it opens one port and runs one command. That command matters: until a session runs,
sshd leaves Nagle's algorithm on, and every token would wait for an acknowledgement.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

from .. import client, proc, pulse
from ..errors import EngineError
from ..records import atomic_write
from ..spec import Policy, Spec
from .base import Context, EngineKind, Launch

_ALIAS = "olol-worker"
_KEYGEN_S = 30.0
_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "ForwardAgent=no",
    "PreferredAuthentications=publickey",
    "ControlPath=none",
    "ExitOnForwardFailure=yes",
    "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    "ConnectTimeout=5",
    "ServerAliveInterval=2",
    "ServerAliveCountMax=2",
    f"HostKeyAlias={_ALIAS}",
)


class Forward(EngineKind):
    name = "forward"
    never_gives_up = True
    is_inspected = True

    def launch(self, spec: Spec, port: int, context: Context, *, plain: bool = False) -> Launch:
        way = spec.forward
        if way is None:
            raise EngineError(f"{spec.id} leads nowhere")
        program = shutil.which("ssh", path=context.environ.get("PATH", os.defpath))
        if program is None:
            raise EngineError("no ssh on PATH", 'install openssh-client, or set mesh = "relay"')
        home = mesh_directory(context.state_dir)
        public_key(context.state_dir)
        # ssh expands % in such a path.
        known = home / f"known-{zlib.crc32(spec.id.encode()):08x}"
        atomic_write(known, f"{_ALIAS} {way.host_key}\n".encode("ascii"))
        argv = ["/bin/sh", "-c", 'exec "$@" >/dev/null', "sh"]  # its heartbeat is no log
        argv += [program, "-F", "none", "-T", "-i", str(home / "id_ed25519")]
        for option in (*_OPTIONS, f"UserKnownHostsFile={known}"):
            argv += ["-o", option]
        argv += ["-L", f"{spec.bind}:{port}:127.0.0.1:{way.target}"]
        argv += ["-p", str(way.port), "-l", way.user, *spec.args, "--", way.host]
        return Launch(tuple(argv), {**context.environ, **spec.env})

    async def ready(self, spec: Spec, port: int) -> str | None:
        """It listens as soon as it is let in over there."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, proc.listening)
        if not any(there == port for _, there in found.values()):
            raise client.CallError("ssh has not been let in yet")
        return ""

    async def loaded(self, spec: Spec, port: int, timeout_s: float) -> list[dict[str, Any]]:
        return []

    def inspect(self, spec: Spec, pid: int, state_dir: str) -> pulse.Pulse | None:
        return pulse.take(pid, counts=True)

    def stop_grace_s(self, policy: Policy) -> float:
        return min(policy.stop_grace_s, 2.0)


def mesh_directory(state_dir: str) -> Path:
    """Where the key and the known hosts of forwards are kept; removed with the state."""
    directory = Path(state_dir or ".", "mesh")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def public_key(state_dir: str) -> str:
    """The public half of this node's own key, made when it is first asked for. Blocks.

    The private half never leaves the node.

    Raises:
        EngineError: it cannot be made.
    """
    directory = mesh_directory(state_dir)
    final = directory / "id_ed25519.pub"
    if not final.is_file():
        program = shutil.which("ssh-keygen")
        if program is None:
            raise EngineError("no ssh-keygen on PATH", 'install openssh-client, or mesh = "relay"')
        with tempfile.TemporaryDirectory(dir=str(directory)) as place:
            path = Path(place, "id_ed25519")
            made = subprocess.run(
                [program, "-q", "-t", "ed25519", "-N", "", "-C", "olol-mesh", "-f", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_KEYGEN_S,
                check=False,
            )
            if made.returncode:
                said = made.stdout.decode("utf-8", "replace").strip()
                raise EngineError(f"ssh-keygen failed: {said}")
            # The private half first: the public one says that both are there.
            path.replace(directory / "id_ed25519")
            path.with_suffix(".pub").replace(final)
    kind, _, rest = final.read_text(encoding="ascii").partition(" ")
    return f"{kind} {rest.split()[0]}"
