"""Errors of streams are errors of sockets, too."""

from __future__ import annotations

import inspect

import pytest

from olol_tui.errors import OlolError
from olol_tui.ssh import errors

ALL = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, errors.SSHError)
]


@pytest.mark.parametrize(
    "kind",
    [
        errors.LinkDown,
        errors.LinkLost,
        errors.ChannelRefused,
        errors.NoCapacity,
        errors.ForwardingForbidden,
    ],
)
def test_both(kind: type[errors.SSHError]) -> None:
    error = kind("n1: gone", hint="wait")
    assert isinstance(error, OSError)
    assert isinstance(error, OlolError)
    assert str(error) == "n1: gone"
    assert error.lines() == [f"{kind.title}: n1: gone", "wait"]


def test_each_is_drawn_in_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for kind in ALL:
        if kind is not errors.SSHError:
            [line] = [line for line in drawn.splitlines() if f"─ {kind.__name__} " in line]
            assert line.endswith("final") == kind.final, kind
