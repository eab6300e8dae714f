"""Nothing that a node says reaches a terminal as more than text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from olol_tui.ssh.text import clean


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x9b2Jx", "x"),
        ("two\r\nlines\ttabbed", "two lines tabbed"),
        ("a\u202eb\u200bc", "abc"),
        (b"\xff bytes \x00", "� bytes"),
    ],
)
def test_examples(told: str | bytes, shown: str) -> None:
    assert clean(told) == shown


@given(some.text() | some.binary())
def test_always_printable_and_short(told: str | bytes) -> None:
    shown = clean(told, 20)
    assert len(shown) <= 20
    assert shown.isprintable()
