"""Sizes read and written."""

import pytest

from olol_tui.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("24GiB", 24 * 2**30),
        (" 1.5 GB ", 1_500_000_000),
        ("512mib", 512 * 2**20),
        ("80 MB", 80_000_000),
        ("17", 17),
        ("17 bytes", 17),
        (17, 17),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_read(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "24G", "GiB", "-1", "1e3", "24 parsecs", True, -1, 1.5, None])
def test_what_is_not_a_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (24 * 2**30, "24 GiB"),
        (int(1.5 * 2**30), "1.5 GiB"),
        (2**30 - 1, "1 GiB"),
        (139 * 2**30 + 5, "139 GiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_a_size_is_written(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
