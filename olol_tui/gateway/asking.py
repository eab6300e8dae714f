"""One whole question to an engine and its whole answer, for what is rare and small."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from olol_tui.gateway import upstream


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes


class Lost(Exception):
    """The engine gave no whole answer. The message is a sentence for people."""


class _Asking:
    """An upstream.Receiver that collects."""

    def __init__(self, *, head_only: bool) -> None:
        self._head_only = head_only
        self._status = 0
        self._parts: list[bytes] = []
        self.answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def up_head(self, status: int, content_type: bytes) -> None:
        self._status = status
        # What a HEAD says of its body's length does not mean that one follows.
        if self._head_only and not self.answer.done():
            self.answer.set_result(Reply(status, b""))

    def up_data(self, data: bytes, final: bool) -> None:
        self._parts.append(data)

    def up_end(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Reply(self._status, b"".join(self._parts)))

    def up_lost(self, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(Lost(reason))


async def ask(
    pool: upstream.UpstreamPool,
    address: str,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    timeout_s: float,
) -> Reply:
    """Ask once: never on a pooled connection, so that nothing has to be sent twice.

    Cancelling it closes the connection, which tells the engine.

    Raises:
        Lost: no whole answer, or none in time.
    """
    asking = _Asking(head_only=method == "HEAD")
    kind = "application/json" if body else ""
    head = upstream.head(method, address, path, len(body), kind)
    call = pool.call(address, head + body, asking, fresh=True)
    try:
        async with asyncio.timeout(timeout_s):
            return await asking.answer
    except TimeoutError:
        raise Lost(f"no answer within {timeout_s:g} s") from None
    finally:
        call.cancel()


class Task:
    """A reply that a coroutine works out; it is cancelled when the client leaves."""

    def __init__(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)

    def client_gone(self) -> None:
        self._task.cancel()

    def client_paused(self) -> None:
        pass

    def client_resumed(self) -> None:
        pass
