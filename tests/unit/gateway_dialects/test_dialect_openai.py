"""OpenAI bodies: what is refused before it waits for an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.openai import Checked, check

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def checked(route: str, body: Any) -> Checked:
    return check(route, json.dumps(body).encode())


def test_the_routing_fields_are_read():
    assert checked(CHAT, HELLO) == Checked("m", stream=False, include_usage=False)
    streaming = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
    assert checked(CHAT, streaming) == Checked("m", stream=True, include_usage=True)
    assert checked("/v1/completions", {"model": "m", "prompt": ["a", "b"]}).model == "m"
    assert checked("/v1/completions", {"model": "m"}).model == "m"
    assert checked("/v1/embeddings", {"model": "m", "input": [1, 2]}).model == "m"


@pytest.mark.parametrize(
    ("route", "body", "message"),
    [
        (CHAT, {"messages": []}, "model is required"),
        (CHAT, {"model": ""}, "model is required"),
        (
            CHAT,
            {"model": 1},
            "json: cannot unmarshal number into Go struct field "
            "ChatCompletionRequest.model of type string",
        ),
        (CHAT, {"model": "m"}, "[] is too short - 'messages'"),
        (CHAT, {"model": "m", "messages": [ ]}, "[] is too short - 'messages'"),
        (CHAT, {"model": "m", "messages": None}, "[] is too short - 'messages'"),
        (
            CHAT,
            {"model": "m", "messages": "hello"},
            "json: cannot unmarshal string into Go struct field "
            "ChatCompletionRequest.messages of type []openai.Message",
        ),
        (
            CHAT,
            HELLO | {"stream": "yes"},
            "json: cannot unmarshal string into Go struct field "
            "ChatCompletionRequest.stream of type bool",
        ),
        (
            CHAT,
            HELLO | {"stream_options": True},
            "json: cannot unmarshal bool into Go struct field "
            "ChatCompletionRequest.stream_options of type openai.StreamOptions",
        ),
        ("/v1/embeddings", {"model": "m"}, "invalid input"),
        ("/v1/embeddings", {"model": "m", "input": ""}, "invalid input"),
        ("/v1/embeddings", {"model": "m", "input": {"a": 1}}, "invalid input type"),
        (
            "/v1/completions",
            {"model": "m", "prompt": 3},
            "json: cannot unmarshal number into Go struct field "
            "CompletionRequest.prompt of type string",
        ),
        (CHAT, [1], "json: cannot unmarshal array into Go value of type openai."
                    "ChatCompletionRequest"),
    ],
)  # fmt: skip
def test_what_no_engine_could_answer_is_refused(route, body, message):
    with pytest.raises(BadRequest) as caught:
        checked(route, body)
    assert (caught.value.status, caught.value.message) == (400, message)


@pytest.mark.parametrize("raw", [b"", b"  "])
def test_an_empty_body(raw):
    with pytest.raises(BadRequest, match="missing request body"):
        check(CHAT, raw)


@pytest.mark.parametrize(
    "raw", [b"{", b"\xff\xff", pytest.param(b'{"x":' * 50_000, id="nested too deep")]
)
def test_a_body_that_is_no_json(raw):
    with pytest.raises(BadRequest, match="invalid JSON"):
        check(CHAT, raw)
