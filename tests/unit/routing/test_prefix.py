"""Conversations go back to the engine that has them in its cache."""

from __future__ import annotations

from olol_tui.routing.prefix import BLOCK_BYTES, LEAST_BYTES, Prefixes, marks


def of(text: str) -> tuple[int, ...]:
    return marks(memoryview(text.encode()))


def test_the_next_round_of_a_conversation_begins_with_the_marks_of_the_last() -> None:
    first = '[{"role":"user","content":"' + "why " * 1000
    second = first + '"},{"role":"assistant","content":"because ' + "so " * 1000
    assert of(second)[: len(of(first))] == of(first)
    assert len(of(first)) == len(first) // BLOCK_BYTES


def test_short_prompts_cost_nothing() -> None:
    assert of("x" * (LEAST_BYTES - 1)) == ()


def test_a_prompt_counts_as_cached_until_enough_others_followed_it() -> None:
    one, prefixes = of("a" * 5000), Prefixes()
    prefixes.served("n#1", "m", one, keeps=2)
    assert prefixes.cached("m", one, {"n#1": 2}) == {"n#1": 4 * BLOCK_BYTES}
    assert prefixes.cached("other", one, {"n#1": 2}) == {}, "another model's cache"
    assert prefixes.cached("m", one, {"n#2": 2}) == {}, "a new process has an empty one"
    for index in range(2):
        prefixes.served("n#1", "m", of(f"{index}" * 5000), keeps=2)
    assert prefixes.cached("m", one, {"n#1": 2}) == {}
    assert (prefixes.looked, prefixes.hits) == (3, 0)


def test_only_the_common_beginning_counts() -> None:
    prefixes = Prefixes()
    prefixes.served("n#1", "m", of("a" * 3000 + "b" * 3000), keeps=2)
    cached = prefixes.cached("m", of("a" * 3000 + "c" * 3000), {"n#1": 2, "n#2": 2})
    assert cached == {"n#1": 2 * BLOCK_BYTES}
