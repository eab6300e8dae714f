"""The demonstration's clients: what they ask, how often, and that it is bounded."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from olol_tui.demo import (
    PERSONAS,
    PROMPT_TOKENS_MAX,
    REPLY_TOKENS_MAX,
    Persona,
    Tide,
    compose,
    zipf_weights,
)
from olol_tui.fleet.snapshot import Model

MODELS = [
    Model("llama3.2:1b", size_bytes=1 << 30),
    Model("qwen3:8b", size_bytes=5 << 30),
    Model("gpt-oss:20b", size_bytes=13 << 30),
    Model("nomic-embed-text:latest", capabilities=("embedding",)),
]


def asks(persona: Persona, count: int, models: list[Model] = MODELS) -> list[dict[str, object]]:
    chance = random.Random(7)
    made = [compose(persona, models, chance, number) for number in range(count)]
    return [{"path": ask.path, **ask.body} for ask in made if ask is not None]


def test_popularity_falls_by_rank_and_shifts_with_the_client() -> None:
    assert zipf_weights(3) == sorted(zipf_weights(3), reverse=True)
    shifted = zipf_weights(3, shift=1)
    assert max(shifted) == shifted[1]
    counts = Counter(ask["model"] for ask in asks(PERSONAS[0], 600))
    assert [name for name, _ in counts.most_common()] == ["llama3.2:1b", "qwen3:8b", "gpt-oss:20b"]


@pytest.mark.parametrize("persona", PERSONAS, ids=lambda p: p.name)
def test_requests_have_the_right_model_and_bounded_lengths(persona: Persona) -> None:
    for ask in asks(persona, 200):
        embeds = ask["path"] == "/api/embed"
        assert (ask["model"] == "nomic-embed-text:latest") == embeds
        if embeds:
            continue
        options = ask.get("options", {})
        assert isinstance(options, dict)
        reply = ask.get("max_tokens", options.get("num_predict"))
        assert isinstance(reply, int) and 1 <= reply <= REPLY_TOKENS_MAX
        assert len(str(ask.get("prompt") or ask["messages"]).split()) <= PROMPT_TOKENS_MAX


def test_no_two_prompts_are_alike() -> None:
    prompts = [str(ask["messages"]) for ask in asks(PERSONAS[0], 100)]
    assert len(set(prompts)) == 100


def test_a_client_without_a_model_for_its_wish_asks_nothing() -> None:
    embedder = Persona("x", 1, (("embed", 1.0),))
    assert asks(embedder, 5, MODELS[:2]) == []


def test_the_pace_is_one_on_average_and_bursts_now_and_then() -> None:
    tide = Tide(random.Random(3))
    factors = [tide.factor(0.5) for _ in range(7200)]
    assert 1.0 < sum(factors) / len(factors) < 1.8
    assert max(factors) > 3 and min(factors) < 0.5


def test_shares_are_shares() -> None:
    assert sum(persona.share for persona in PERSONAS) == pytest.approx(1)
