"""Which engine still has the beginning of a prompt in its cache.

Engines keep the keys and values of the prompts they served last: the next round of the same
conversation costs only its new part there. What is compared are the raw bytes of `messages` as
the client sent them, in blocks, by a rolling checksum: nothing is decoded, and a wrong match
costs a prefill, never a wrong answer. Pure.
"""

from __future__ import annotations

from zlib import crc32

LEAST_BYTES = 2048
"""Below it a prefill is too short to be worth any thought."""
BLOCK_BYTES = 1024
MAX_BLOCKS = 96
"""Of a prompt: 24,000 tokens; what follows is not looked at."""
MAX_MARKS = 50_000
"""Kept in all, about 8 MB; the oldest go first."""
MAX_SEATS = 4096
_SEATS_KEPT = 4
"""Of one mark: a system prompt is cached in many engines."""


def marks(view: memoryview) -> tuple[int, ...]:
    """A mark for each whole block of a prompt, of everything up to its end.

    Empty for a short prompt.
    """
    if len(view) < LEAST_BYTES:
        return ()
    found = []
    sum_ = 0
    for index in range(min(len(view) // BLOCK_BYTES, MAX_BLOCKS)):
        start = index * BLOCK_BYTES
        sum_ = crc32(view[start : start + BLOCK_BYTES], sum_)
        # With its place: the same sum at another length is another prefix.
        found.append(sum_ | index << 32)
    return tuple(found)


class Prefixes:
    """Prompts served lately, by (seat, model).

    An engine's cache holds about as many prompts as it has slots; a prompt that was followed
    by more than `keeps` others on its seat counts as gone.
    """

    __slots__ = ("_marks", "_turns", "hits", "looked")

    def __init__(self) -> None:
        self._marks: dict[tuple[str, int], tuple[tuple[str, int], ...]] = {}
        """(model, mark) → (seat incarnation, its turn), latest first."""
        self._turns: dict[tuple[str, str], int] = {}
        self.looked = 0
        """Requests with a prompt long enough, that went to an engine."""
        self.hits = 0
        """Of them, those whose engine had served the beginning before."""

    def served(self, incarnation: str, model: str, prefix: tuple[int, ...], keeps: int) -> None:
        """A request goes to this seat: count whether its beginning is there, and remember it."""
        key = (incarnation, model)
        turn = self._turns.pop(key, 0) + 1
        self._turns[key] = turn
        if len(self._turns) > MAX_SEATS:
            # Restarted engines leave theirs behind.
            del self._turns[next(iter(self._turns))]
        if not prefix:
            return
        self.looked += 1
        if self.cached(model, prefix, {incarnation: keeps + 1}):
            self.hits += 1
        known = self._marks
        for mark in prefix:
            seats = known.pop((model, mark), ())
            others = [one for one in seats if one[0] != incarnation][: _SEATS_KEPT - 1]
            known[model, mark] = ((incarnation, turn), *others)
        while len(known) > MAX_MARKS:
            del known[next(iter(known))]

    def cached(self, model: str, prefix: tuple[int, ...], keeps: dict[str, int]) -> dict[str, int]:
        """Seat incarnation → bytes of the prompt it has cached, for those that have some.

        Args:
            keeps: the seats asked about, with how many prompts each of them keeps.
        """
        found: dict[str, int] = {}
        for index in range(len(prefix) - 1, -1, -1):
            for seat, turn in self._marks.get((model, prefix[index]), ()):
                kept = keeps.get(seat)
                if kept is None or seat in found:
                    continue
                if self._turns.get((seat, model), 0) - turn < kept:
                    found[seat] = (index + 1) * BLOCK_BYTES
            if len(found) == len(keeps):
                break
        return found
