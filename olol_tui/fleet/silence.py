"""Nothing heard for too long: said once, at its moment and not at the next look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LATE_S = 0.1
"""An alarm that rings so late rings in a loop that stood still."""


class Silence:
    """Watches for a pause between things heard. Starts with the first of them.

    Args:
        after_s: so long a pause is silence.
        told: called when it begins.
    """

    def __init__(self, after_s: float, told: Callable[[], None]) -> None:
        self._after_s = after_s
        self._told = told
        self._alarm: asyncio.TimerHandle | None = None
        self._is_silent = False

    def __bool__(self) -> bool:
        """Whether it is silent now."""
        return self._is_silent

    def heard(self) -> None:
        self._is_silent = False
        self._set(self._after_s, is_second=False)

    def close(self) -> None:
        """Watch no more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _set(self, delay_s: float, *, is_second: bool) -> None:
        self.close()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(delay_s, self._ring, loop.time() + delay_s, is_second)

    def _ring(self, due_s: float, is_second: bool) -> None:
        if not is_second and asyncio.get_running_loop().time() - due_s > LATE_S:
            # What was said while we stood still has yet to be read.
            self._set(LATE_S, is_second=True)
            return
        self._is_silent = True
        self._told()
