"""Skeletons of JSON texts: what is left out can be put back, wherever the text was cut."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway.dialects import llama
from olol_tui.gateway.skeleton import HOLE_BYTES, KEPT, Hole, Skeleton

LONG = HOLE_BYTES + 1000


def skeleton_of(text: bytes, piece: int) -> tuple[Skeleton, bytes]:
    skeleton = Skeleton()
    for at in range(0, len(text), piece):
        skeleton.feed(text[at : at + piece])
    return skeleton, skeleton.finish()


def filled(skeleton: Skeleton, made: bytes, text: bytes) -> bytes:
    pieces = skeleton.fill(made)
    return b"".join(text[p.start : p.end] if isinstance(p, Hole) else p for p in pieces)


short = st.text(max_size=20)
long = st.sampled_from(
    ["x" * LONG, 'say "no" \\ ' * 5000, "ü🙂" * 20000, "\n\t" * 30000, "a" * (LONG - 3) + '\\"']
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | short | long,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(short, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=values, piece=st.integers(1000, 70000), ascii_only=st.booleans())
def test_any_text_cut_anywhere_comes_back(value: Any, piece: int, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    skeleton, small = skeleton_of(text, piece)
    assert filled(skeleton, small, text) == text
    assert skeleton.size == len(small)
    json.loads(small)


@settings(max_examples=300, deadline=None)
@given(text=st.binary(max_size=200), piece=st.integers(1, 5))
def test_nonsense_comes_back_too(text: bytes, piece: int) -> None:
    skeleton, small = skeleton_of(text, piece)
    assert filled(skeleton, small, text) == text


@pytest.mark.parametrize("piece", [65536, 1021])
def test_an_image_of_megabytes_leaves_a_skeleton_of_hundreds_of_bytes(piece: int) -> None:
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3_000_000)).decode()
    asked = {"model": "m", "messages": [{"role": "user", "content": "what?", "images": [image]}]}
    text = json.dumps(asked).encode()
    skeleton, small = skeleton_of(text, piece)
    assert len(small) < 600 and len(skeleton.holes) == 1
    (shown,) = json.loads(small)["messages"][0]["images"]
    assert shown.startswith(image[:KEPT]) and base64.b64decode(shown, validate=True)

    # A translation made of the skeleton is that of the whole, once it is filled.
    model = Model("m", capabilities=("completion", "vision"))

    def translated(body: bytes) -> bytes:
        return llama.translate(
            "/api/chat", json.loads(body), model, created=lambda: "", clock_ns=lambda: 0
        ).body

    assert filled(skeleton, translated(small), text) == translated(text)
    assert b"data:image/png;base64,iVBOR" in translated(small)


def test_a_long_prompt_weighs_what_it_holds_and_an_image_does_not() -> None:
    """By its weight the time to its first token is estimated."""
    prompt = json.dumps({"prompt": "once upon a time " * 100_000}).encode()
    image = json.dumps({"images": [base64.b64encode(bytes(3_000_000)).decode()]}).encode()
    for text, least, most in ((prompt, 1_600_000, 1_800_000), (image, 1000, 5000)):
        skeleton, _ = skeleton_of(text, 65536)
        assert least < skeleton.size + skeleton.weight < most


def test_nobody_can_guess_a_mark() -> None:
    text = b'{"a":"' + b"x" * LONG + b'"}'
    (one, first), (two, second) = skeleton_of(text, 9999), skeleton_of(text, 9999)
    assert first != second
    assert one.fill(second) == [second] and two.fill(first) == [first]
