"""What a store says of a model, applied to requests for its split."""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec
import pytest

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway.dialects import llama
from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.finished import finished_prompt, with_prompt
from olol_tui.gateway.dialects.modelfile import with_layers
from olol_tui.models.store_layers import PROMPT, StoreLayers, accepting_prompts, layers_of

SYSTEM = StoreLayers("Be brief.")
OPTIONS = {"temperature": 0.6, "stop": ["<|end|>"]}
BOTH = StoreLayers("Be brief.", OPTIONS)


def test_the_clients_own_options_and_system_prompt_come_first() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "options": {"temperature": 0}}
    found = with_layers("/api/chat", chat, BOTH)
    assert found["options"] == {"temperature": 0, "stop": ["<|end|>"]}
    assert found["messages"][0] == {"role": "system", "content": "Be brief."}
    own = {"messages": [{"role": "system", "content": "Be long."}]}
    assert with_layers("/api/chat", own, SYSTEM) == own
    assert chat["options"] == {"temperature": 0}, "the request itself is not touched"


def test_a_raw_prompt_gets_nothing_but_options() -> None:
    found = with_layers("/api/generate", {"prompt": "x", "raw": True}, BOTH)
    assert found == {"prompt": "x", "raw": True, "options": OPTIONS}
    found = with_layers("/api/generate", {"prompt": "x"}, SYSTEM)
    assert found["system"] == "Be brief."


def test_what_is_wrong_is_left_to_be_refused() -> None:
    body = {"messages": "x", "options": 3}
    assert with_layers("/api/chat", body, BOTH) == body


TEMPLATE = (
    "{{ if .System }}<sys>{{ .System }}{{ end }}"
    '{{ range .Messages }}{{ if ne .Role "system" }}<{{ .Role }}>{{ .Content }}{{ end }}{{ end }}<go>'
)
WHOLE = StoreLayers(
    "Be brief.",
    {**OPTIONS, "num_predict": 7, "repeat_penalty": 1.3},
    TEMPLATE,
    ({"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}),
)
TODAY = date(2026, 1, 31)


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_openai_clients_get_ollamas_sampling_and_the_models_stops(route: str) -> None:
    found = with_layers(route, {"model": "m", "seed": 3}, WHOLE)
    assert (found["temperature"], found["top_p"]) == (1.0, 1.0), "as behind Ollama"
    assert (found["stop"], found["repeat_penalty"], found["min_p"]) == (["<|end|>"], 1.3, 0.0)
    assert found["max_output_tokens" if route == "/v1/responses" else "max_tokens"] == 7
    own = {"temperature": 0, "stop": "x", "max_tokens": 3, "max_output_tokens": 3}
    found = with_layers(route, own, WHOLE)
    assert {name: found[name] for name in own} == own


def test_anthropic_clients_get_the_models_own() -> None:
    body = {"max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    found = with_layers("/v1/messages", body, WHOLE)
    assert (found["temperature"], found["stop_sequences"]) == (0.6, ["<|end|>"])
    assert (found["system"], found["max_tokens"]) == ("Be brief.", 50)
    assert [one["content"] for one in found["messages"]] == ["a?", "b.", "hi"]


SAID = [{"role": "user", "content": "hi"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/api/chat", {"messages": SAID}),
        ("/api/generate", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": SAID}),
        ("/v1/chat/completions", {"messages": PARTS}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/messages", {"messages": PARTS}),
        ("/v1/responses", {"input": "hi"}),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
        ),
    ],
)
def test_every_dialect_gives_one_prompt(route: str, body: dict[str, Any]) -> None:
    asked = with_layers(route, {"model": "m", **body}, WHOLE)
    prompt = finished_prompt(route, asked, WHOLE, TODAY)
    assert prompt == "<sys>Be brief.<user>a?<assistant>b.<user>hi<go>"
    if not route.startswith("/v1/"):
        translation = llama.translate(
            route, asked, Model("m"), prompt=prompt, created=str, clock_ns=lambda: 1
        )
        sent = msgspec.json.decode(translation.body)
    else:
        sent = with_prompt(route, asked, prompt)
    if route == "/v1/completions":
        assert sent["prompt"] == prompt
    else:
        assert sent["chat_template_kwargs"][PROMPT] == prompt
        assert len(sent["input" if route == "/v1/responses" else "messages"]) == 1
    assert sent["stop"] == ["<|end|>"] if route != "/v1/messages" else sent["stop_sequences"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": SAID, "tools": [{"type": "function"}]},
        {"messages": [{**SAID[0], "images": ["aGk="]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": "hi"},
        {"messages": []},
    ],
)
def test_what_is_more_than_text_is_left_to_the_engines_template(body: dict[str, Any]) -> None:
    assert finished_prompt("/v1/chat/completions", body, WHOLE, TODAY) is None


def test_a_template_of_the_request_and_one_that_cannot_be() -> None:
    own = {"prompt": "hi", "template": "{{ .Prompt }}!"}
    bare = StoreLayers(template="{{ .Prompt }}?")
    assert finished_prompt("/api/generate", own, bare, TODAY) == "hi!"
    with pytest.raises(BadRequest, match="template: ") as refused:
        finished_prompt("/api/generate", {"prompt": "hi", "template": "{{ if }}"}, WHOLE, TODAY)
    assert refused.value.status == 500


def test_layers_are_taken_as_an_agent_gives_them() -> None:
    texts = {
        "system": "s",
        "params": {"top_k": 1},
        "messages": [{"role": "user"}, 3],
        "template": "t",
    }
    assert layers_of(texts) == StoreLayers("s", {"top_k": 1}, "t")
    assert not layers_of({}) and accepting_prompts("x" * 200_000) == ""
    assert accepting_prompts("OWN").endswith("OWN{% endif %}")
