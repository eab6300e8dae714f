"""What a prompt with images weighs, and that its next round is known again."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from olol_tui.gateway import bodies
from olol_tui.gateway.prompts import Prompt, measure
from olol_tui.gateway.skeleton import MEDIA_WEIGHT
from olol_tui.gateway.spool import Spool


def image(seed: int, size: int) -> str:
    return base64.b64encode(random.Random(seed).randbytes(size)).decode()


def rounds(picture: str, count: int, *, dialect: str) -> list[dict[str, Any]]:
    """The messages of a conversation about a picture."""
    text = "What is on it? " * 10
    if dialect == "ollama":
        first: dict[str, Any] = {"role": "user", "content": text, "images": [picture]}
    else:
        url = {"url": f"data:image/png;base64,{picture}"}
        parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
        first = {"role": "user", "content": parts}
    more = [
        {"role": ("assistant", "user")[n % 2], "content": f"{n} " * 800} for n in range(count - 1)
    ]
    return [first, *more]


def measured(messages: list[dict[str, Any]], *, spooled: bool) -> Prompt:
    body = json.dumps({"model": "m", "messages": messages}).encode()
    if not spooled:
        return measure(bodies.read(body), len(body), None)
    spool = Spool()
    for at in range(0, len(body), 65536):
        spool.feed(body[at : at + 65536])
    skeleton = spool.finish()
    try:
        return measure(bodies.read(skeleton), len(skeleton), spool)
    finally:
        spool.close()


@pytest.mark.parametrize("spooled", [False, True], ids=["in memory", "in a file"])
@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_the_next_round_about_a_picture_is_known_again(dialect: str, spooled: bool) -> None:
    picture = image(1, 300_000)
    first = measured(rounds(picture, 1, dialect=dialect), spooled=spooled)
    third = measured(rounds(picture, 3, dialect=dialect), spooled=spooled)
    assert len(first.marks) >= MEDIA_WEIGHT // 1024
    assert third.marks[: len(first.marks)] == first.marks
    assert first.weight < 6000, "an image is a thousand tokens, however large its file"
    assert third.weight - first.weight == pytest.approx(3200, abs=200)
    other = measured(rounds(image(2, 300_000), 1, dialect=dialect), spooled=spooled)
    assert not set(other.marks) & set(first.marks)


def test_a_picture_is_the_same_in_memory_and_in_a_file() -> None:
    """The first round of a conversation may be small enough for memory, and the next not."""
    talk = rounds(image(3, 90_000), 2, dialect="ollama")
    assert measured(talk, spooled=True) == measured(talk, spooled=False)


def test_long_texts_stay_what_they_are() -> None:
    text = "The image of the sea. " * 4000
    whole = measured([{"role": "user", "content": text}], spooled=False)
    assert whole.weight == pytest.approx(len(text), rel=0.01)
    longer = measured([{"role": "user", "content": text + "And more. " * 300}], spooled=False)
    assert longer.marks[: len(whole.marks) - 1] == whole.marks[:-1]
