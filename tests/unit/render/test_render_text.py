"""Numbers with units, and text that cannot steer a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from olol_tui.render import text as t

GIB = 2**30


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("qwen3:8b", "qwen3:8b"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07name", "name"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jcleared", "cleared"),
        ("\x90payload\x9cafter", "after"),
        ("one\r\ntwo\tthree", "one two three"),
        ("a\u202eb\u200bc\ufeffd", "abcd"),
        ("\ud800x", "x"),
        ("bell\x07 null\x00", "bell null"),
        ("\x1b", ""),
        ("模型:7b", "模型:7b"),
    ],
)
def test_clean_takes_what_steers_and_leaves_what_is_read(raw: str, cleaned: str) -> None:
    assert t.clean(raw) == cleaned


HOSTILE = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from("\x1b\x9b\x9d\x90\x9c\x07\x00\r\n\t\x7f\u202e\u200d\ufe0f[]0;m八😀"),
    ),
    max_size=60,
)


@given(HOSTILE)
def test_nothing_that_steers_survives(raw: str) -> None:
    for character in t.clean(raw):
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
    assert t.clean(t.clean(raw)) == t.clean(raw)
    t.clean(raw).encode()


@given(HOSTILE, st.integers(0, 40), st.sampled_from(["<", ">", "^"]))
def test_fit_is_always_as_wide_as_asked(raw: str, width: int, align: t.Align) -> None:
    assert cell_len(t.fit(raw, width, align)) == width


@pytest.mark.parametrize(
    ("count_bytes", "words"),
    [
        (None, "-"),
        (0, "0M"),
        (94 * 2**20, "94M"),
        (0.98 * GIB, "1.0G"),
        (9.8 * GIB, "9.8G"),
        (42.4 * GIB, "42G"),
        (999 * GIB, "999G"),
        (5.1 * 1024 * GIB, "5.1T"),
    ],
)
def test_size(count_bytes: float | None, words: str) -> None:
    assert t.size(count_bytes) == words


@given(st.floats(0, 1e18))
def test_size_stays_narrow(count_bytes: float) -> None:
    assert len(t.size(count_bytes)) <= 6


def test_pairs_share_the_unit_of_the_total() -> None:
    assert t.size_pair(18.2 * GIB, 24 * GIB) == "18.2/24G"
    assert t.size_pair(99 * GIB, 141 * GIB) == "99/141G"
    assert t.size_pair(3.2 * 1024 * GIB, 5.1 * 1024 * GIB) == "3.2/5.1T"
    assert t.size_pair(100 * 2**20, 512 * 2**20) == "100/512M"
    assert t.size_pair(None, GIB) == "-"


def test_only_the_tag_that_says_nothing_goes() -> None:
    assert t.short_model("nomic-embed-text:latest") == "nomic-embed-text"
    assert t.short_model("qwen3:8b") == "qwen3:8b"


def test_what_is_missing_is_never_zero() -> None:
    assert t.percent(None) == "-"
    assert t.percent(0.0) == "0%"
    assert t.percent(0.2) == "1%"
    assert (t.watts(None), t.celsius(None), t.seconds(None), t.rate(None)) == ("-",) * 4


@pytest.mark.parametrize(
    ("duration_s", "words"),
    [(0.51, "0.5s"), (14, "14s"), (124, "2m"), (5 * 3600, "5h"), (3 * 86400, "3d"), (-1, "0.0s")],
)
def test_age(duration_s: float, words: str) -> None:
    assert t.age(duration_s) == words


@pytest.mark.parametrize(
    ("duration_s", "words"),
    [(0.412, "0.41s"), (9.999, "10.0s"), (17.5, "17.5s"), (252, "4m12s"), (7500, "2h05m")],
)
def test_seconds(duration_s: float, words: str) -> None:
    assert t.seconds(duration_s) == words


def test_remaining_reads_ollamas_dates() -> None:
    wall = "2026-11-23T18:56:30Z"
    assert t.remaining("2026-11-23T19:00:42.123456789+00:00", wall) == "4m12s"
    assert t.remaining("2318-01-01T00:00:00Z", wall) == "forever"
    assert t.remaining("", wall) == "forever"
    assert t.remaining("soon", wall) == "-"
    assert t.remaining("2026-11-23T18:00:00Z", wall) == "0.00s"
