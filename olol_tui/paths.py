"""Where olol-tui keeps its files, and where its sockets are.

Imports nothing heavy: `olol-tui status` needs only these names and a socket.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from olol_tui.errors import OlolError

APP = "olol-tui"
SOCKET_PATH_MAX_BYTES = 100
"""Linux allows 107, other systems 103: below both."""
_LONGEST_SOCKET_NAME = len("/agent-0123456789ab.sock")


class UnsafeDirectory(OlolError):
    title = "A directory is not safe to use"


@dataclass(frozen=True, slots=True)
class Paths:
    """All files of one instance. Two state directories never share a socket."""

    config_file: Path
    """`cluster.toml`; need not exist."""
    state_dir: Path
    """0700, exists."""
    runtime_dir: Path
    """Sockets and locks: 0700, ours, exists; its name holds a hash of `state_dir`."""
    cache_dir: Path
    models_dir: Path
    """GGUF files the user puts here are found without configuration; exists."""
    log_file: Path
    user_themes: Path

    @classmethod
    def resolve(cls, state_dir: Path | None = None, config_file: Path | None = None) -> Paths:
        """The paths of this user, or all of them under `state_dir` (sockets excepted).

        Creates the state, models and runtime directories: what is opened next lies in them,
        and the models' one is found by looking for it.

        Raises:
            UnsafeDirectory: the runtime directory belongs to somebody else, or a directory
                cannot be made.
        """
        if state_dir is not None:
            state = state_dir.expanduser().resolve()
            config, cache, models, themes = (
                state / "cluster.toml",
                state / "cache",
                state / "models",
                state / "themes",
            )
        else:
            state = platformdirs.user_state_path(APP).resolve()
            config_home = platformdirs.user_config_path(APP)
            config, themes = config_home / "cluster.toml", config_home / "themes"
            cache = platformdirs.user_cache_path(APP)
            models = platformdirs.user_data_path(APP) / "models"
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            models.mkdir(parents=True, exist_ok=True)
            runtime = _runtime_dir(state)
        except OSError as error:
            raise UnsafeDirectory(
                f"{error.filename} cannot be made: {error.strerror}",
                hint="Choose another one: --state-dir DIR",
            ) from error
        return cls(
            config_file=config if config_file is None else config_file.expanduser().absolute(),
            state_dir=state,
            runtime_dir=runtime,
            cache_dir=cache,
            models_dir=models,
            log_file=state / "olol-tui.log",
            user_themes=themes,
        )

    @property
    def control_socket(self) -> Path:
        """Where a running core listens for consoles and the CLI."""
        return self.runtime_dir / "control.sock"

    @property
    def lock_file(self) -> Path:
        """Held (flock) by the one core of this state directory; holds its pid."""
        return self.runtime_dir / "core.lock"

    def agent_socket(self, node: str) -> Path:
        """The UNIX socket of a node's agent, short enough for every system."""
        path = self.runtime_dir / f"agent-{node}.sock"
        if len(os.fsencode(path)) < SOCKET_PATH_MAX_BYTES:
            return path
        return self.runtime_dir / f"agent-{_short_hash(node, 12)}.sock"

    def agent_state(self, node: str) -> Path:
        """A local agent's state, per machine: homes on NFS are shared by many."""
        return self.state_dir / "agents" / _short_hash(_machine_id(), 8) / node


def _short_hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _machine_id() -> str:
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            found = Path(name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if found:
            return found
    return platform.node()


def _runtime_dir(state: Path) -> Path:
    name = _short_hash(str(state), 10)
    for base in _runtime_bases():
        path = base / name
        if len(os.fsencode(path)) + _LONGEST_SOCKET_NAME < SOCKET_PATH_MAX_BYTES:
            _own(base)
            _own(path)
            return path
    raise AssertionError("the directory in /tmp is always short enough")


def _runtime_bases() -> list[Path]:
    """The user's runtime directory if it is really theirs (it is not after `su`), then /tmp."""
    bases = []
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    if xdg and Path(xdg).is_absolute():
        try:
            ours = Path(xdg).stat().st_uid == os.getuid()
        except OSError:
            ours = False
        if ours:
            bases.append(Path(xdg) / APP)
    bases.append(Path("/tmp") / f"{APP}-{os.getuid()}")
    return bases


def _own(path: Path) -> None:
    """Make the directory ours alone; in /tmp anybody may have made it before us."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnsafeDirectory(
            f"{path} is not a directory of user {os.getuid()}",
            hint=f"Remove it, or set XDG_RUNTIME_DIR to a directory of yours: ls -ld {path}",
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
