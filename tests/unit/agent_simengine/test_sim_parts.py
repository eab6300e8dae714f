"""The pure parts of the simulated engine: durations, text, catalogue, settings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from olol_tui.agent.simengine import text
from olol_tui.agent.simengine.catalogue import canonical, catalogue, open_catalogue
from olol_tui.agent.simengine.keep_alive import FOREVER, DurationError, parse_keep_alive
from olol_tui.agent.simengine.replies import rfc3339
from olol_tui.agent.simengine.settings import Settings
from olol_tui.fleet.snapshot import Model
from olol_tui.models import names


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), (0, 0.0), (3, 3.0), (0.5, 0.5), (-1, FOREVER), (-0.1, FOREVER),
        ("0", 0.0), ("5m", 300.0), ("1h30m", 5400.0), ("-1s", FOREVER), ("1.5s", 1.5),
        ("+2s", 2.0), (".5s", 0.5), ("250ms", 0.25), ("10us", 1e-5), ("1µs", 1e-6),
    ],
)  # fmt: skip
def test_keep_alive_as_ollama_reads_it(value: Any, seconds: float | None) -> None:
    got = parse_keep_alive(value)
    assert (
        got == seconds if seconds is None or math.isinf(seconds) else got == pytest.approx(seconds)
    )


@pytest.mark.parametrize("value", ["5", "", "m", "5 m", "1x", "--1s", "1h5", True, [], {}])
def test_what_is_no_keep_alive(value: Any) -> None:
    with pytest.raises(DurationError):
        parse_keep_alive(value)


def test_pieces_join_to_the_text_again() -> None:
    for sample in ("", "Hello, world!", "a_b  c\n\n\td", "日本語 text", "x" * 30, "1.5 € 😀"):
        assert "".join(text.pieces(sample)) == sample


def test_a_reply_names_the_model_and_says_that_it_is_simulated() -> None:
    dice = text.Dice(1)
    words = "".join(text.reply("qwen3:8b", "What is the capital of France?", dice, 50))
    assert words.startswith("This is a simulated reply of qwen3:8b; no model ran.")
    assert "capital of France" in words and words.endswith(".")


def test_dice_are_the_same_everywhere() -> None:
    dice = text.Dice(42)
    assert [dice.next() for _ in range(2)] == [13679457532755275413, 2949826092126892291]
    assert {text.Dice(n).between(1, 3) for n in range(50)} == {1, 2, 3}


def test_catalogue_entries_are_models_of_the_fleet() -> None:
    models = [Model(**entry) for entry in catalogue()]
    assert {"llama3.2:3b", "qwen3:8b", "llama3.3:70b"} <= {model.name for model in models}
    for model in models:
        assert names.canonical(model.name) == model.name
        assert model.digest.startswith("sha256:") and len(model.digest) == 71
        assert model.size_bytes > 10**8 and model.context_length


@pytest.mark.parametrize(
    "name", ["Gemma3", "registry.ollama.ai/library/x:1", "hf.co/u/M:Q4", "a:b"]
)
def test_names_are_compared_as_the_rest_of_the_program_does(name: str) -> None:
    assert canonical(name) == names.canonical(name)


def test_a_configured_catalogue_overrides_and_adds() -> None:
    models = open_catalogue(["phi4:14b", {"name": "Own", "size_bytes": 5}])
    assert set(models) == {"phi4:14b", "own:latest"}
    assert models["own:latest"].size_bytes == 5 and models["phi4:14b"].layers == 40
    with pytest.raises(ValueError, match="expected a name"):
        open_catalogue([3])


def test_memory_grows_with_context_and_slots() -> None:
    model = open_catalogue(None)["qwen3:8b"]
    small, wide, many = (model.vram_bytes(*a) for a in ((4096, 1), (8192, 1), (4096, 4)))
    assert wide - small == 4096 * 36 * 8 * 128 * 4
    assert many - small == 3 * (wide - small)


def test_rates_follow_the_size_unless_they_are_given() -> None:
    by_size = Settings({})
    assert by_size.decode_rate(2 * 10**9, 1.0) == 120
    assert 20 < by_size.decode_rate(20 * 10**9, 1.0) < 40
    assert by_size.decode_rate(14 * 10**9, 0.25) > by_size.decode_rate(14 * 10**9, 1.0)
    fixed = Settings({"decode_tps": 20, "prefill_tps": 500})
    assert (fixed.decode_rate(9, 1.0), fixed.prefill_rate(9, 1.0)) == (20, 500)


def test_times_are_rfc_3339_also_in_three_centuries() -> None:
    assert rfc3339(0.5) == "1970-01-01T00:00:00.500000Z"
    assert rfc3339(2**63 / 1e9).startswith("2262-")
    assert rfc3339(1e15) == "9999-12-31T23:59:59Z"
