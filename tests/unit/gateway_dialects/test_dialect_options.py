"""Sampling: Ollama's names and defaults, llama-server's fields."""

from __future__ import annotations

from typing import Any

import pytest

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.fields import Fields
from olol_tui.gateway.dialects.options import sampling


def fields(options: Any) -> Fields:
    return Fields("ChatRequest", {"options": options})


def wanted(context_length: int | None = 8192, **options: Any) -> dict[str, Any]:
    return sampling(fields(options), context_length=context_length)


def test_ollamas_defaults_are_sent_because_the_engines_differ():
    assert wanted() == {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n_keep": 4,
        "n_predict": -1,
    }
    assert sampling(fields(None), context_length=None) == wanted()


def test_every_sampling_option_reaches_the_engine_under_its_name():
    given = {
        "temperature": 0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.7,
        "seed": 42,
        "repeat_penalty": 1.2,
        "repeat_last_n": 128,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
        "stop": ["\n", "user:"],
    }
    assert wanted(**given, num_predict=9, num_keep=2) == given | {"n_predict": 9, "n_keep": 2}


def test_open_ends_stop_at_the_context():
    assert wanted(num_predict=-2)["n_predict"] == -1
    assert wanted(num_predict=10**12)["n_predict"] == 2**31 - 1
    assert wanted(num_predict=0)["n_predict"] == 0


def test_the_repeat_window_is_bounded_because_the_engine_allocates_it():
    assert wanted(repeat_last_n=-1)["repeat_last_n"] == 8192
    assert wanted(None, repeat_last_n=-1)["repeat_last_n"] == 4096
    assert wanted(repeat_last_n=2**31)["repeat_last_n"] == 131_072


def test_load_time_options_and_unknown_ones_are_not_sent():
    given = {"num_ctx": 4096, "num_gpu": 1, "use_mmap": True, "distributed": False, "top_k": None}
    assert wanted(**given) == wanted()


def test_a_fraction_given_for_a_whole_number_is_cut_as_ollama_does():
    assert wanted(top_k=39.9)["top_k"] == 39


def test_empty_stop_strings_would_stop_every_reply_at_once():
    assert "stop" not in wanted(stop=["", ""])
    assert wanted(stop=["a", ""])["stop"] == ["a"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("temperature", True, 'option "temperature" must be of type float32'),
        ("temperature", float("inf"), 'option "temperature" must be of type float32'),
        ("top_k", "4", 'option "top_k" must be of type integer'),
        ("top_k", float("inf"), 'option "top_k" must be of type integer'),
        ("num_ctx", "big", 'option "num_ctx" must be of type integer'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", "x", 'option "stop" must be of type array'),
        ("stop", [1], 'option "stop" must be of an array of strings'),
    ],
)
def test_wrong_types_are_refused_in_ollamas_words(name, value, message):
    with pytest.raises(BadRequest) as caught:
        wanted(**{name: value})
    assert caught.value.message == message
