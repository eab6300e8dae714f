"""Pulls and pushes: the progress that Ollama reports, at the speed of a pretended link."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .httpd import JSON, NDJSON, Exchange, dumps

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .faults import Fault
    from .server import SimServer

_BEAT_S = 0.06
"""Between two lines of a layer, as Ollama."""


class Progress:
    """The lines of one long request: streamed, or only the last of them."""

    def __init__(self, exchange: Exchange, stream: bool) -> None:
        self._exchange = exchange
        self._stream = stream
        self._last: dict[str, Any] = {}
        self.lines = 0

    def say(self, **line: Any) -> None:
        """`status`, and for a layer `digest`, `total` and `completed`."""
        self.lines += 1
        self._last = line
        if self._stream:
            if not self._exchange.streaming:
                self._exchange.start(NDJSON)
            self._exchange.chunk(dumps(line) + b"\n")

    def end(self, status: str = "success") -> None:
        self.say(status=status)
        if self._stream:
            self._exchange.end()
        else:
            self._exchange.reply(200, dumps(self._last), JSON)

    def fail(self, message: str, status: int = 500) -> None:
        body = dumps({"error": message})
        if self._exchange.streaming:
            self._exchange.end(body + b"\n")
        else:
            self._exchange.reply(status, body, JSON)


class Transfer:
    """One pull or push. Create it, then `begin()`; timers do the rest."""

    def __init__(
        self,
        server: SimServer,
        exchange: Exchange,
        progress: Progress,
        verb: str,
        layers: list[tuple[str, int]],
        finish: Callable[[Progress], None],
        fault: Fault | None,
    ) -> None:
        """
        Args:
            verb: `pulling` or `pushing`.
            layers: digest and size of each.
            finish: says the rest once all layers are over.
        """
        self._server = server
        self._exchange = exchange
        self._progress = progress
        self._verb = verb
        self._layers = list(layers)
        self._finish = finish
        self._fault = fault
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._exchange.when_gone(self._cancelled)
        self._next_layer()

    def _next_layer(self) -> None:
        if not self._layers:
            self._finish(self._progress)
            return
        digest, total = self._layers[0]
        done = self._done(digest, total)
        more = {"completed": done} if done else {}
        self._say(digest, total, more)

    def _say(self, digest: str, total: int, more: dict[str, int]) -> None:
        if self._strikes():
            return
        status = f"{self._verb} {digest[7:19]}"
        self._progress.say(status=status, digest=digest, total=total, **more)
        if more.get("completed", 0) >= total:
            self._layers.pop(0)
            self._timer = self._server.loop.call_later(0, self._next_layer)
        else:
            self._timer = self._server.loop.call_later(self._wait_s(total), self._beat)

    def _wait_s(self, total: int) -> float:
        slow = self._fault.factor if self._fault and self._fault.kind == "slow" else 1.0
        return min(_BEAT_S, total / self._rate()) * slow

    def _rate(self) -> float:
        return self._server.settings.pull_bytes_s

    def _beat(self) -> None:
        digest, total = self._layers[0]
        step = max(1, int(self._rate() * _BEAT_S))
        done = min(total, self._done(digest, total) + step)
        self._server.partial[digest] = done
        self._say(digest, total, {"completed": done})

    def _done(self, digest: str, total: int) -> int:
        if self._verb == "pulling" and self._server.shelf.blob_bytes(digest) is not None:
            return total
        return min(total, self._server.partial.get(digest, 0))

    def _strikes(self) -> bool:
        fault = self._fault
        if fault is None or fault.kind == "slow" or self._progress.lines < fault.after_tokens:
            return False
        if fault.kind in ("500", "503"):
            self._progress.fail("simulated fault", int(fault.kind))
        elif fault.kind in ("cut", "refuse"):
            self._exchange.cut()
        return True  # also for hang: nothing more is said

    def _cancelled(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server.call_cancelled()
