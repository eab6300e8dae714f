"""How long an engine may be silent before it counts as lost. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from olol_tui.routing.speeds import Speed

PREFILL_FACTOR = 4.0
"""A prefill beside other requests takes longer than one alone."""
SERVICE_FACTOR = 2.0
"""An engine that somebody else uses too may have a line of its own."""
MARGIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. What an operator may set."""

    first_byte_s: float = 120.0
    """At most, for the first token of a model that is loaded; less where speeds are known."""
    load_s: float = 300.0
    """While the model loads, and for a reply that comes in one piece."""
    token_s: float = 60.0
    """Between two pieces of a stream."""
    probe_after_s: float = 5.0
    """After so long it is asked whether it lives at all, and as long is waited for its answer."""

    def first_token_s(self, prompt_tokens: int, speed: Speed) -> float:
        """For the first token of a stream, the model being loaded."""
        prefill_s = prompt_tokens / speed.prefill_tps
        expected_s = PREFILL_FACTOR * prefill_s + SERVICE_FACTOR * speed.service_s
        return min(expected_s + MARGIN_S, self.first_byte_s)

    def whole_s(self, prompt_tokens: int, speed: Speed) -> float:
        """For a reply that comes in one piece when all of it is there."""
        prefill_s = prompt_tokens / speed.prefill_tps
        return max(self.load_s, PREFILL_FACTOR * (prefill_s + speed.service_s))
