"""What remains of requests: rows in SQLite and, if wanted, lines of an access log.

The loop only appends to a queue; a thread of its own writes batches once a second. Never a
prompt, a reply or a key. Both ends are bounded: rows by count and age, the queue by a number
a second above which an ended request is counted and not recorded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from olol_tui.gateway.records import Record

log = logging.getLogger("olol.gateway.archive")

FILE_NAME = "requests.db"
FLUSH_S = 1.0
MAX_PENDING = 300
"""Between two flushes. GPUs that end more requests a second than this do nothing but tiny
embeddings, and a sample of those tells as much; each record costs some 20 µs."""
LOG_BYTES = 64 * 2**20
"""Of an access log, before it is moved aside to `.1`."""
_PRUNE_ROWS = 1000
_VERSION = 2
_ADDED = ("replays", "tried")
"""What version 1 did not have."""
COLUMNS = (
    "id", "arrived_wall_s", "client", "dialect", "path", "model", "engine", "place", "state",
    "status", "cause", "error", "retries", "stream", "wait_s", "ttft_s", "total_s",
    "prompt_tokens", "tokens", "tokens_per_s", "why", *_ADDED,
)  # fmt: skip
_CREATE = f"""
CREATE TABLE IF NOT EXISTS requests (seq INTEGER PRIMARY KEY, {", ".join(COLUMNS)});
CREATE INDEX IF NOT EXISTS requests_arrived ON requests (arrived_wall_s);
PRAGMA user_version = {_VERSION};
"""
_INSERT = f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' for _ in COLUMNS)})"


class Refused(NamedTuple):
    """A call that was answered with an error before it became a request."""

    wall_s: float
    client: str
    method: str
    path: str
    status: int


class Archive:
    """Keeps records of one gateway. Start it, put records, close it.

    Args:
        path: the database; None keeps none.
        max_rows, max_age_s: what is kept in it.
        access_log: file for a line a request; `-` is stderr, empty is none.
    """

    def __init__(
        self, path: Path | None, *, max_rows: int, max_age_s: float, access_log: str = ""
    ) -> None:
        self._file = path
        self._max_rows = max_rows
        self._max_age_s = max_age_s
        self._access_log = access_log
        self._pending: deque[Record | Refused] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._since_prune = _PRUNE_ROWS
        self._complained = ""
        self.unrecorded = 0

    def reconfigure(self, *, max_rows: int, max_age_s: float, access_log: str) -> None:
        """Other bounds, another log; they hold for what ends from now on."""
        self._max_rows = max_rows
        self._max_age_s = max_age_s
        self._access_log = access_log
        self._since_prune = _PRUNE_ROWS
        if self._thread is None and not self._closing:
            self.start()

    @property
    def _path(self) -> Path | None:
        return self._file if self._max_rows > 0 else None

    @property
    def logs(self) -> bool:
        return bool(self._access_log)

    def put(self, record: Record | Refused) -> None:
        """From the loop: keep this, soon."""
        if len(self._pending) < MAX_PENDING:
            self._pending.append(record)
        else:
            self.unrecorded += 1

    def start(self) -> None:
        if self._path is not None or self._access_log:
            self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what is left. Waits for the disk: not from a loop that serves."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # -- in the thread

    def _run(self) -> None:
        database: sqlite3.Connection | None = None
        try:
            while True:
                closing = self._closing
                batch = [self._pending.popleft() for _ in range(len(self._pending))]
                if batch:
                    self._log_lines(batch)
                    database = self._keep(database, batch)
                if closing:
                    return
                self._wake.wait(FLUSH_S)
        finally:
            if database is not None:
                database.close()

    def _keep(
        self, database: sqlite3.Connection | None, batch: list[Record | Refused]
    ) -> sqlite3.Connection | None:
        """Write rows; a disk that is full costs records, never requests."""
        if self._path is None:
            return None
        offset_s = time.time() - time.monotonic()
        rows = [_row(record, offset_s) for record in batch if isinstance(record, Record)]
        if not rows:
            return database
        try:
            database = database or _open(self._path)
            with database:
                database.executemany(_INSERT, rows)
            self._since_prune += len(rows)
            if self._since_prune >= min(_PRUNE_ROWS, self._max_rows):
                self._prune(database)
        except (sqlite3.Error, OSError) as error:
            self.unrecorded += len(rows)
            self._complain("request records cannot be kept", str(error))
            if database is not None:
                database.close()
            return None
        self._complained = ""
        return database

    def _prune(self, database: sqlite3.Connection) -> None:
        with database:
            database.execute(
                "DELETE FROM requests WHERE seq <= (SELECT max(seq) FROM requests) - ?",
                (self._max_rows,),
            )
            oldest = (time.time() - self._max_age_s,)
            database.execute("DELETE FROM requests WHERE arrived_wall_s < ?", oldest)
        self._since_prune = 0

    def _log_lines(self, batch: list[Record | Refused]) -> None:
        if not self._access_log:
            return
        offset_s = time.time() - time.monotonic()
        text = b"".join(_line(one, offset_s) for one in batch)
        try:
            if self._access_log == "-":
                sys.stderr.buffer.write(text)
                sys.stderr.buffer.flush()
            else:
                _append(Path(self._access_log), text)
        except (OSError, ValueError) as error:
            self._complain("the access log cannot be written", str(error))

    def _complain(self, what: str, reason: str) -> None:
        if reason != self._complained:
            self._complained = reason
            log.error(what, extra={"reason": reason})


def _open(path: Path) -> sqlite3.Connection:
    """The database, ours alone; one that is damaged or of another version is moved aside."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    database = sqlite3.connect(path, timeout=5.0)
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version in (0, 1, _VERSION):
            # WAL: `olol-tui requests` reads while we write.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            with database:
                for column in _ADDED if version == 1 else ():
                    database.execute(f"ALTER TABLE requests ADD COLUMN {column}")
                if version == 1:
                    database.execute(f"PRAGMA user_version = {_VERSION}")
            database.executescript(_CREATE)
            return database
        reason = f"it is of version {version}"
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            database.close()
            raise
        reason = str(error)
    database.close()
    aside = path.with_suffix(".old.db")
    log.warning("request records moved aside", extra={"reason": reason, "to": str(aside)})
    path.replace(aside)
    for left in ("-wal", "-shm"):
        path.with_name(path.name + left).unlink(missing_ok=True)
    return _open(path)


def _append(path: Path, text: bytes) -> None:
    """Opened anew for each batch, so that logrotate needs no signal."""
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        full = file.tell() > LOG_BYTES
    if full:
        path.replace(path.with_name(path.name + ".1"))


def _row(record: Record, offset_s: float) -> tuple[object, ...]:
    view = record.view(record.ended_s or 0.0)
    return (
        record.id,
        record.arrived_s + offset_s,
        record.client,
        record.dialect,
        record.path,
        record.model,
        record.engine,
        record.where,
        record.state,
        record.status,
        record.cause,
        record.error,
        record.retries,
        int(record.stream),
        view.wait_s,
        view.ttft_s,
        view.total_s,
        record.prompt_tokens,
        record.tokens,
        view.tokens_per_s,
        view.why,
        record.replays,
        json.dumps(record.tried, ensure_ascii=False) if record.tried else None,
    )


def _line(one: Record | Refused, offset_s: float) -> bytes:
    """JSON; numbers in seconds. Of a path a stranger chose only the beginning."""
    if isinstance(one, Refused):
        shown: dict[str, object] = {
            "time": _rfc3339(one.wall_s),
            "client": one.client,
            "method": one.method,
            "path": one.path[:200],
            "status": one.status,
        }
    else:
        row = dict(zip(COLUMNS, _row(one, offset_s), strict=True))
        # Why, and what failed before, may hold anything that an engine said.
        for column in ("why", "arrived_wall_s", "error", "tried"):
            del row[column]
        row["stream"] = one.stream
        kept = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        shown = {"time": _rfc3339(one.arrived_s + offset_s), "method": one.method, **kept}
    return msgspec.json.encode({k: v for k, v in shown.items() if v not in (None, "")}) + b"\n"


def _rfc3339(wall_s: float) -> str:
    return f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def read(
    path: Path, *, since_wall_s: float = 0.0, limit: int | None = None, request: str = ""
) -> list[dict[str, object]]:
    """Rows as dictionaries, oldest first; the newest `limit`. `tried` is a list. Another process
    may be writing.

    Raises:
        FileNotFoundError: nothing was ever recorded.
        sqlite3.Error: the file cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as database:
        has = {row[1] for row in database.execute("PRAGMA table_info(requests)")}
        # Nobody may have written since the file was of version 1.
        columns = [name if name in has else f"NULL AS {name}" for name in COLUMNS]
        found = database.execute(
            f"SELECT {', '.join(columns)} FROM requests WHERE arrived_wall_s >= ? "
            "AND (? = '' OR id = ?) ORDER BY seq DESC LIMIT ?",
            (since_wall_s, request, request, -1 if limit is None else limit),
        ).fetchall()
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in reversed(found)]
    for row in rows:
        row["replays"] = row["replays"] or 0
        row["tried"] = json.loads(row["tried"]) if row["tried"] else []
    return rows
