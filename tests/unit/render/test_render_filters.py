"""What a filter line lets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olol_tui.render.filters import parse

ROW = {"model": "llama3.2:3b", "state": "queued", "where": "", "age": 4.2, "status": None}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("llama", True),
        ("LLAMA", True),
        ("qwen", False),
        ("!qwen", True),
        ("!llama", False),
        ("llama queued", True),
        ("llama running", False),
        ("state:queued", True),
        ("state:^q.*d$", True),
        ("state:llama", False),
        ("!state:queued", False),
        ("llama3.2:3b", True),
        ("age>4", True),
        ("age<4", False),
        ("age>=4.2", True),
        ("age<=4.1", False),
        ("status=200", False),
        ("!status=200", True),
        ("gone>3", False),
        ("[unfinished", False),
        ("!", False),
    ],
)
def test_filters(text: str, passes: bool) -> None:
    assert parse(text).passes(ROW) is passes


def test_an_empty_filter_is_falsy_and_a_real_one_not() -> None:
    assert not parse("   ")
    assert parse("x")


@given(st.text(max_size=40))
def test_no_half_typed_filter_fails(text: str) -> None:
    parse(text).passes(ROW)
