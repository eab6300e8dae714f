"""`keep_alive` as Ollama reads it."""

from __future__ import annotations

import pytest

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.keepalive import FOREVER, parse


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (90, 90.0),
        (0.5, 0.5),
        (-1, FOREVER),
        (-0.1, FOREVER),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("100ms", 0.1),
        ("2h45m30.5s", 9930.5),
        ("+3s", 3.0),
        ("0", 0.0),
        ("0s", 0.0),
        ("-1s", FOREVER),
        ("-5m", FOREVER),
    ],
)
def test_seconds(value, seconds):
    assert parse(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("text", ["1us", "1µs", "1μs"])
def test_all_three_spellings_of_a_microsecond(text):
    assert parse(text) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5", 'time: missing unit in duration "5"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("m", 'time: invalid duration "m"'),
        (".s", 'time: invalid duration ".s"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
        ("forever", 'time: invalid duration "forever"'),
        ("5m3", 'time: missing unit in duration "5m3"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
        (True, "Unsupported type: 'bool'"),
        ([5], "Unsupported type: '[]interface {}'"),
        ({"s": 5}, "Unsupported type: 'map[string]interface {}'"),
        (float("inf"), "keep_alive must be a finite number of seconds"),
    ],
)
def test_go_would_refuse_it_with_the_same_words(value, message):
    with pytest.raises(BadRequest) as caught:
        parse(value)
    assert caught.value.message == message
