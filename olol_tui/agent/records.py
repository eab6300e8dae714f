"""What the agent remembers on disk, one directory per machine id.

Home directories are shared over NFS, so `STATE/<machine id>/` holds everything:

    agent.lock       held (flock) while an agent runs
    desired.json     the engines that should run: they return after a crash or a reboot
    engines/*.json   one record per engine process: enough to adopt it, or to leave it alone
    logs/*.log       what the engines and the agent wrote

Every write is temp + fsync + rename: a power cut leaves the old or the new file.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from .errors import BadRequest, StartError
from .spec import Spec, parse_specs

_SAFE_CHARS = "-_.@+"


@dataclass(frozen=True)
class Record:
    """One engine process, named so that pid reuse cannot deceive us."""

    id: str
    pid: int
    starttime: int
    boot_id: str
    port: int
    spec_digest: str
    argv: list[str]
    log: str
    started_wall: float
    version: str = ""
    restarts: int = 0


def slug(identity: str) -> str:
    """An id as a file name, reversible."""
    return quote(identity, safe=_SAFE_CHARS)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file; readers see the old or the new content, also after a power cut."""
    descriptor, name = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    directory = os.open(str(path.parent), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class State:
    """The state directory of this machine.

    Raises:
        StartError: the directory cannot be used, or another agent holds it.
    """

    def __init__(self, root: Path, machine_id: str, lock: int | None = None) -> None:
        """
        Args:
            lock: descriptor of the lock, held already by the image that we replace.
        """
        self.machine_id = machine_id
        self.path = root / (re.sub(r"[^A-Za-z0-9_.-]", "_", machine_id) or "unknown")
        self.engines = self.path / "engines"
        self.logs = self.path / "logs"
        try:
            for directory in (self.path, self.engines, self.logs):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock or os.open(
                str(self.path / "agent.lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
        except OSError as error:
            raise StartError(
                f"the state directory {self.path} cannot be used: {error.strerror}",
                "choose another with --state-dir",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 64).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise StartError(
                f"another agent (pid {holder or 'unknown'}) holds {self.path}",
                "stop it first, or use another --state-dir",
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    @property
    def lock(self) -> int:
        """Descriptor of the lock: whoever has it open holds it."""
        return self._lock

    def close(self) -> None:
        os.close(self._lock)

    def log_path(self, identity: str) -> Path:
        """Log of an engine; `""` is the agent itself."""
        return self.logs / f"{slug(identity) if identity else 'agent'}.log"

    # -- desired engines

    def read_desired(self) -> tuple[int, list[Spec]]:
        """(generation, specs); (0, []) when there is none or it cannot be read.

        Raises:
            BadRequest: the file is there but makes no sense: the caller reports it.
        """
        path = self.path / "desired.json"
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            return 0, []
        except (OSError, ValueError) as error:
            raise BadRequest(f"{path}: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("generation"), int):
            raise BadRequest(f"{path}: expected generation and engines")
        return data["generation"], parse_specs(data.get("engines"))

    def write_desired(self, generation: int, specs: list[Spec]) -> None:
        data = {"generation": generation, "engines": [spec.to_json() for spec in specs]}
        atomic_write(self.path / "desired.json", json.dumps(data, indent=1).encode())

    # -- records

    def write(self, record: Record) -> None:
        path = self.engines / f"{slug(record.id)}.json"
        atomic_write(path, json.dumps(asdict(record), indent=1).encode())

    def forget(self, identity: str) -> None:
        with suppress(FileNotFoundError):
            (self.engines / f"{slug(identity)}.json").unlink()

    def records(self) -> dict[str, Record]:
        """Every readable record by engine id; a broken one is removed: it names nobody."""
        found: dict[str, Record] = {}
        for path in sorted(self.engines.glob("*.json")):
            record = _parse(path)
            if record is None or record.id != unquote(path.stem):
                path.unlink()
                continue
            found[record.id] = record
        return found


def _parse(path: Path) -> Record | None:
    try:
        data: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict):
        return None
    known = {f.name for f in fields(Record)}
    try:
        record = Record(**{name: value for name, value in data.items() if name in known})
    except TypeError:
        return None
    numbers = (record.pid, record.starttime, record.port)
    return record if all(isinstance(n, int) for n in numbers) else None
