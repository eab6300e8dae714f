"""`num_ctx` stays as the model was loaded, so that an engine never reloads it for less."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from olol_tui.fleet.snapshot import Fleet
from olol_tui.gateway import bodies
from olol_tui.gateway.context import kept
from olol_tui.routing.roster import Roster
from tests.contract.gateway_rig import engine_node


@pytest.mark.parametrize(
    ("asked", "loaded", "sent"),
    [
        (None, None, None),
        (None, 4096, None),
        (None, 8192, 8192),
        (2048, 4096, 4096),
        (2048, 8192, 8192),
        (8192, 8192, 8192),
        (16384, 8192, 16384),
        (2048, None, 2048),
    ],
)
def test_what_is_sent_for_what_was_asked(
    asked: int | None, loaded: int | None, sent: int | None
) -> None:
    seat = Roster(Fleet(nodes=(engine_node("n", "127.0.0.1:1", "m:latest"),)), {}).seats("m:latest")
    options: dict[str, Any] = {"temperature": 0.5}
    if asked is not None:
        options["num_ctx"] = asked
    whole = {"model": "m", "prompt": 'say "options":{} \u00fc', "options": options, "stream": False}
    body = json.dumps(whole).encode()
    found = kept(body, bodies.read(body), asked, replace(seat[0], context_length=loaded))
    expected = {**whole, "options": {"temperature": 0.5} | ({"num_ctx": sent} if sent else {})}
    assert json.loads(found) == expected
    if sent == asked:
        assert found is body, "nothing is copied that need not be"
