"""A terminal driver that never makes the event loop wait for the terminal.

Textual's writer queue holds 30 frames and then blocks: a terminal that stopped reading
(dead SSH, a stalled tmux) froze the loop, hence the gateway, for seconds. Here frames are
dropped instead, and the screen is drawn anew when the terminal reads again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver

HUNG_UP = "hang-up"
"""The app's result when its terminal has gone."""

GIVE_UP_S = 1.0
"""How long leaving waits for a terminal that does not read."""


_SIGNALS = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
"""Handlers that Textual sets and does not take back."""


@contextlib.contextmanager
def process_as_found() -> Iterator[None]:
    """Give back what Textual changes in the process, for whatever goes on after the console.

    Signal handlers of a driver that is closed, the loop's task factory (Python 3.12 on),
    and the objects of the interface that `gc.freeze` keeps.
    """
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        loop.set_task_factory(factory)
        gc.unfreeze()


def settle_garbage() -> None:
    """Take what is alive now out of later collections: a full one stalls the loop 15-30 ms."""
    gc.collect()
    gc.freeze()


class LossyDriver(LinuxDriver):
    """LinuxDriver that drops frames while the terminal does not read."""

    _lossy = False
    dropped = 0
    """Writes thrown away so far."""

    def __init__(
        self,
        app: App[Any],
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        # Textual draws on stderr; where that is a log file, the terminal is stdout.
        out = sys.__stdout__
        if out is not None and out.isatty() and not (self._file and self._file.isatty()):
            self._file = out

    def _queue(self) -> queue.Queue[str | None]:
        assert self._writer_thread is not None, "driver must be in application mode"
        return self._writer_thread._queue

    @property
    def backlog(self) -> int:
        """Frames that the terminal has not taken yet."""
        return 0 if self._writer_thread is None else self._queue().qsize()

    @property
    def hung_up(self) -> bool:
        """True when the terminal is gone for good."""
        poll = select.poll()
        poll.register(self.fileno, 0)
        return any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))

    def write(self, data: str) -> None:
        pending = self._queue()
        if self._lossy:
            if not pending.empty():
                self.dropped += 1
                return
            self._lossy = False
            # What the terminal shows is unknown: end a half-open synchronised update, and
            # draw everything once this write is through.
            data = "\x1b[?2026l" + data
            self._app.call_later(self._app.refresh, layout=True)
        try:
            pending.put_nowait(data)
        except queue.Full:
            self._lossy = True
            self.dropped += 1

    def stop_application_mode(self) -> None:
        # The frames that wait are void; what restores the terminal must not be dropped.
        with contextlib.suppress(queue.Empty):
            while self._writer_thread is not None:
                self._queue().get_nowait()
        self._lossy = False
        super().stop_application_mode()

    def close(self) -> None:
        thread = self._writer_thread
        if thread is None:
            return
        with contextlib.suppress(queue.Full):
            thread._queue.put(None, timeout=GIVE_UP_S)
        # A daemon thread: a terminal that never reads again cannot keep the process.
        thread.join(GIVE_UP_S)

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except OSError:
            # The terminal is gone (EIO). The console leaves; what it watched goes on.
            self._loop.call_soon_threadsafe(self._app.exit, HUNG_UP)
