"""Commands on their way: what the operator sees of them, and the tasks that do them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import Operation

log = logging.getLogger("olol.fleet.operations")

RESULT_SHOWN_S = 30.0


class Report:
    """How running work tells its progress."""

    def __init__(self, book: OperationBook, operation_id: str) -> None:
        self._book = book
        self._id = operation_id

    def say(self, message: str, progress: float | None = None) -> None:
        """Replaces message and progress."""
        self._book.update(self._id, message, progress)


@dataclass(slots=True)
class _Entry:
    operation: Operation
    key: str
    ended_s: float | None = None
    task: asyncio.Task[None] | None = None


class OperationBook:
    """All operations that run or ended lately.

    The tasks belong to the TaskGroup given to `open`: when it ends, they are cancelled.
    A failure ends the operation and nothing else.
    """

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._entries: dict[str, _Entry] = {}
        self._numbers = itertools.count(1)
        self._tasks: asyncio.TaskGroup | None = None

    def open(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def running(self, key: str) -> str | None:
        """The operation that does this already."""
        return next(
            (
                entry.operation.id
                for entry in self._entries.values()
                if entry.key == key and entry.ended_s is None
            ),
            None,
        )

    def is_running(self, operation_id: str) -> bool:
        entry = self._entries.get(operation_id)
        return entry is not None and entry.ended_s is None

    def start(self, title: str, work: Callable[[Report], Awaitable[str]], *, key: str = "") -> str:
        """Run `work` as an operation; its result is the final message.

        Args:
            key: names what is done; a second start with the key of running work joins it.
        """
        if key and (joined := self.running(key)) is not None:
            return joined
        if self._tasks is None:
            raise OlolError("the controller is not running")
        operation_id = f"op{next(self._numbers)}"
        self._entries[operation_id] = _Entry(
            Operation(id=operation_id, title=title, state="running", started_s=self._clock()),
            key,
        )
        entry = self._entries[operation_id]
        entry.task = self._tasks.create_task(
            self._run(operation_id, work), name=f"{operation_id} {title}"
        )
        entry.task.add_done_callback(lambda _: self._stopped(entry))
        self._changed()
        return operation_id

    def cancel(self, operation_id: str) -> bool:
        """Stop running work; False when there is none of that id."""
        entry = self._entries.get(operation_id)
        if entry is None or entry.ended_s is not None or entry.task is None:
            return False
        entry.task.cancel()
        return True

    def note(self, title: str, message: str) -> str:
        """Record something that is done already."""
        operation_id = f"op{next(self._numbers)}"
        now_s = self._clock()
        done = Operation(
            id=operation_id,
            title=title,
            state="done",
            started_s=now_s,
            progress=1.0,
            message=message,
        )
        self._entries[operation_id] = _Entry(done, "", ended_s=now_s)
        self._changed()
        return operation_id

    def update(self, operation_id: str, message: str, progress: float | None) -> None:
        entry = self._entries.get(operation_id)
        if entry is None or entry.ended_s is not None:
            return
        if (entry.operation.message, entry.operation.progress) != (message, progress):
            entry.operation = replace(entry.operation, message=message, progress=progress)
            self._changed()

    def view(self, now_s: float) -> tuple[Operation, ...]:
        """Running ones and results that are still shown, oldest first."""
        for operation_id, entry in list(self._entries.items()):
            if entry.ended_s is not None and now_s - entry.ended_s > RESULT_SHOWN_S:
                del self._entries[operation_id]
        return tuple(entry.operation for entry in self._entries.values())

    async def _run(self, operation_id: str, work: Callable[[Report], Awaitable[str]]) -> None:
        entry = self._entries[operation_id]
        title = entry.operation.title
        try:
            message = await work(Report(self, operation_id))
        except asyncio.CancelledError:
            self._end(entry, replace(entry.operation, state="cancelled"))
            raise
        except OlolError as error:
            log.warning("%s: %s", title, error)
            self._end(
                entry,
                replace(entry.operation, state="failed", message=str(error), hint=error.hint),
            )
        except Exception as error:
            log.exception("%s: unexpected failure", title)
            self._end(
                entry,
                replace(
                    entry.operation,
                    state="failed",
                    message=f"unexpected failure: {error!r}",
                    hint="This is a bug; the log has the details.",
                ),
            )
        else:
            log.info("%s: %s", title, message or "done")
            self._end(entry, replace(entry.operation, state="done", progress=1.0, message=message))

    def _stopped(self, entry: _Entry) -> None:
        """A task that is cancelled before it begins tells nobody."""
        if entry.ended_s is None:
            self._end(entry, replace(entry.operation, state="cancelled"))

    def _end(self, entry: _Entry, operation: Operation) -> None:
        entry.operation = operation
        entry.ended_s = self._clock()
        self._changed()
