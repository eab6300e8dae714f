"""What an operator types about a node."""

from __future__ import annotations

import pytest

from olol_tui.console.node_wish import Where, name_for, parse_simulated, parse_where, wish
from olol_tui.fleet.commands import AddNode


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("h1", Where("h1")),
        (" ssh ops@h1 ", Where("h1", "ops")),
        ("ssh://ops@h1:2222", Where("h1", "ops", 2222)),
        ("[fe80::1]:22", Where("fe80::1", "", 22)),
        ("root@fe80::1", Where("fe80::1", "root")),
        ("a@b@h1", Where("h1", "a@b")),
    ],
)
def test_places_as_typed(text: str, where: Where) -> None:
    if where.user == "a@b":
        with pytest.raises(ValueError, match="not a name"):
            parse_where(text)
    else:
        assert parse_where(text) == where


@pytest.mark.parametrize(
    "text",
    ["", "@h", "h:", "h:0", "h:65536", "h:٣", "-oX", "a b", "h;rm", "[::1", "[::1]x", "$(x)"],
)
def test_places_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_where(text)


def test_names_made_of_hosts() -> None:
    assert name_for("GPU_1.lan") == "gpu_1.lan"
    assert name_for("fe80::1") == "fe80-1"
    assert name_for("..") == ""
    assert len(name_for("x" * 200)) == 64


def test_simulated_gpus() -> None:
    assert parse_simulated("") == (None, None)
    assert parse_simulated("8") == (8, None)
    assert parse_simulated("2 x 80GiB") == (2, 80 * 2**30)
    for wrong in ("0", "1025", "two", "2x", "2x5", "2x-1GiB"):
        with pytest.raises(ValueError, match=r"\S"):
            parse_simulated(wrong)


def test_a_known_host_leaves_user_and_port_to_the_configuration() -> None:
    known = {"gpu1", "Big.Box"}
    assert wish("gpu1", "", "", known=known, taken=()) == AddNode(name="gpu1")
    assert wish("Big.Box", "", "", known=known, taken=()) == AddNode(name="big.box", host="Big.Box")
    assert wish("ops@10.0.0.1", "n1", "", known=known, taken=()) == AddNode(
        name="n1", host="10.0.0.1", user="ops"
    )
