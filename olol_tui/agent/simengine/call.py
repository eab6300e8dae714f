"""One computing request from its arrival to its last byte.

    waits for the model -> waits for a slot -> prefill -> decode -> done
                 any of these -> cancelled (the peer left) or failed

The dialect (Ollama's or OpenAI's) is a Reply object; this module knows the order of
things, the clock and the faults.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from .faults import Fault
from .host import MAX_QUEUE
from .httpd import dumps

if TYPE_CHECKING:
    import asyncio

    from .catalogue import SimModel
    from .claims import Lease
    from .httpd import Exchange
    from .metronome import Beat
    from .server import SimServer


class Reply(Protocol):
    """How a dialect writes what a call produces."""

    def loaded(self, call: Call) -> None:
        """The model was loaded and nothing else was asked."""

    def token(self, piece: str, thought: bool) -> None:
        """One token of a streamed reply."""

    def done(self, call: Call) -> None:
        """The end: the final line of a stream, or the whole reply."""

    def embedded(self, call: Call) -> None:
        """Vectors are wanted and the time for them has passed."""

    def error(self, status: int, message: str) -> None:
        """The call failed, before the first byte or in mid-reply."""


class Work:
    """What a call is to compute.

    Attributes:
        prompt_tokens: to prefill.
        prompt: its text, for the cache; empty where nothing is cached.
        thoughts, tokens: the pieces to decode, in this order.
        limit: how many of them at most; beyond it the reason is `length`.
        stream: whether each token is written when it is there.
        kind: load (only that), text, or embed.
    """

    __slots__ = ("kind", "limit", "prompt", "prompt_tokens", "stream", "thoughts", "tokens")

    def __init__(
        self,
        kind: str,
        prompt_tokens: int = 0,
        thoughts: list[str] | None = None,
        tokens: list[str] | None = None,
        limit: int = 0,
        stream: bool = False,
        prompt: str = "",
    ) -> None:
        self.kind = kind
        self.prompt = prompt
        self.prompt_tokens = prompt_tokens
        self.thoughts = thoughts or []
        self.tokens = tokens or []
        self.limit = limit
        self.stream = stream


class Call:
    """See the module. Create it, then `begin()`."""

    __slots__ = (
        "_beat",
        "_decode_s",
        "_fault",
        "_lease",
        "_server",
        "_stage",
        "_timer",
        "created_ns",
        "decode_began_ns",
        "done_reason",
        "ended_ns",
        "exchange",
        "loaded_ns",
        "model",
        "prefill_began_ns",
        "produced",
        "reply",
        "total",
        "work",
    )

    def __init__(
        self,
        server: SimServer,
        exchange: Exchange,
        model: SimModel,
        work: Work,
        reply: Reply,
        fault: Fault | None,
    ) -> None:
        self._server = server
        self._fault = fault
        self._lease: Lease | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._beat: Beat | None = None
        self._stage = "waiting"
        self._decode_s = 1.0 / server.settings.decode_rate(model.size_bytes, model.active_share)
        self.exchange = exchange
        self.model = model
        self.work = work
        self.reply = reply
        self.produced = 0
        """Tokens decoded so far, thoughts included."""
        self.total = min(len(work.thoughts) + len(work.tokens), max(work.limit, 0))
        self.done_reason = ""
        self.created_ns = time.monotonic_ns()
        self.loaded_ns = self.prefill_began_ns = self.decode_began_ns = 0
        self.ended_ns = 0

    # -- the way ---------------------------------------------------------------------

    def begin(self, num_ctx: int, keep_alive_s: float | None) -> None:
        """Starts; everything after this is driven by events."""
        self._server.call_began()
        self.exchange.when_gone(self._cancelled)
        if self._fault is not None and self._strikes_at_once(self._fault):
            return
        self._lease = self._server.host.acquire(
            self.model, num_ctx, keep_alive_s, self._model_ready, self._refused
        )
        # acquire() may call back before it returns; then the lease arrives here only now.
        if self._stage == "ready":
            self._continue()
        elif self._stage in ("ended", "failed"):
            self._release()

    def _model_ready(self) -> None:
        self._stage = "ready"
        self.loaded_ns = time.monotonic_ns()
        if self._lease is not None:
            self._continue()

    def _continue(self) -> None:
        if self.work.kind == "load":
            self._end("load")
        elif self._lease is not None:
            self._stage = "line"
            self._lease.take_slot(self._slot_ready)

    def _slot_ready(self) -> None:
        self._stage = "prefill"
        self.prefill_began_ns = time.monotonic_ns()
        settings = self._server.settings
        rate = settings.prefill_rate(self.model.size_bytes, self.model.active_share)
        cached = 0.0
        if self.work.prompt and self._lease is not None and self._lease.runner is not None:
            cached = self._lease.runner.remember(self.work.prompt)
        seconds = self.work.prompt_tokens * (1.0 - cached) / rate * self._slow()
        self._timer = self._server.loop.call_later(seconds, self._prefilled)
        self._server.touched()

    def _prefilled(self) -> None:
        self._timer = None
        self.decode_began_ns = time.monotonic_ns()
        if self.work.kind == "embed":
            if self._fault is not None and self._fault.kind != "slow":
                self._strike(self._fault)
            else:
                self._end("")
            return
        self._stage = "decode"
        if self.total == 0:
            self._end("length" if self.work.tokens else "stop")
            return
        self._server.decoding += 1
        self._server.touched()
        self._beat = self._server.metronome.start(self._step, self._interval_s())

    def _step(self) -> float | None:
        """One decode step: one token."""
        fault = self._fault
        if fault is not None and fault.kind != "slow" and self.produced >= fault.after_tokens:
            return self._strike(fault)
        at = self.produced
        self.produced += 1
        self._server.tokens += 1
        if self.work.stream:
            thoughts = self.work.thoughts
            if at < len(thoughts):
                self.reply.token(thoughts[at], True)
            else:
                self.reply.token(self.work.tokens[at - len(thoughts)], False)
        if self.produced < self.total:
            return self._interval_s()
        whole = len(self.work.thoughts) + len(self.work.tokens)
        self._end("stop" if self.produced >= whole else "length")
        return None

    def _interval_s(self) -> float:
        crowd = max(self._server.decoding - 1, 0) * self._server.settings.slowdown
        return self._decode_s * (1.0 + crowd) * self._slow()

    def _slow(self) -> float:
        fault = self._fault
        return fault.factor if fault is not None and fault.kind == "slow" else 1.0

    # -- results ---------------------------------------------------------------------

    def text(self) -> str:
        """The reply as far as it was decoded, without thoughts."""
        return "".join(self.work.tokens[: max(0, self.produced - len(self.work.thoughts))])

    def thoughts_text(self) -> str:
        return "".join(self.work.thoughts[: self.produced])

    def timings(self) -> dict[str, int]:
        """Ollama's counters: durations in nanoseconds."""
        now_ns = time.monotonic_ns()
        return {
            "total_duration": now_ns - self.created_ns,
            "load_duration": self.loaded_ns - self.created_ns,
            "prompt_eval_count": self.work.prompt_tokens,
            "prompt_eval_duration": self.decode_began_ns - self.prefill_began_ns,
            "eval_count": self.produced,
            "eval_duration": max(1, now_ns - self.decode_began_ns),
        }

    # -- ends ------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        self.done_reason = reason
        kind = self.work.kind
        self._leave("ended")
        self._server.completed += 1
        if kind == "load":
            self.reply.loaded(self)
        elif kind == "embed":
            self.reply.embedded(self)
        else:
            self.reply.done(self)

    def _refused(self, status: int, message: str) -> None:
        self._fail(status, message)

    def _fail(self, status: int, message: str) -> None:
        self._leave("failed")
        self._server.failed += 1
        self.reply.error(status, message)

    def _cancelled(self) -> None:
        """The peer closed its side: everything stops now."""
        if self._stage in ("ended", "failed"):
            return
        self._leave("failed")
        self._server.call_cancelled()

    def _leave(self, stage: str) -> None:
        if self._stage == "decode":
            self._server.decoding -= 1
        self._stage = stage
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._beat is not None:
            self._beat.stop()
            self._beat = None
        self._release()

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.close()
        self._server.touched()

    # -- faults ----------------------------------------------------------------------

    def _strikes_at_once(self, fault: Fault) -> bool:
        if fault.kind == "refuse":
            self._leave("failed")
            self._server.failed += 1
            self.exchange.reset()
        elif fault.kind == "503":
            self._fail(503, MAX_QUEUE)
        elif fault.kind == "500" and fault.after_tokens == 0:
            self._fail(500, "llama-server process has terminated: simulated fault")
        elif fault.kind == "hang" and fault.after_tokens == 0:
            self._stage = "hung"  # until the peer leaves
        else:
            return False
        return True

    def _strike(self, fault: Fault) -> float | None:
        """A fault in mid-reply; returns what a step returns."""
        if fault.kind == "hang":
            return None  # keeps its slot, says nothing more
        if fault.kind == "500":
            self._fail(500, "model runner has unexpectedly stopped: simulated fault")
            return None
        self._leave("failed")
        self._server.failed += 1
        self.exchange.cut(b"" if self.work.stream else dumps({"response": self.text()}))
        return None
