"""What goes to the engine for each native request, and what is refused before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_fakes import CAPABLE, HELLO, PLAIN, translation

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.llama import load_reply

GENERATE = {"model": "m", "prompt": "Why?"}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
JPEG = "/9j/4AAQSkZJRgABAQEAYABgAAD/2w=="
WEBP = "UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="


def sent(route: str, body: dict[str, Any], model: Model = CAPABLE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(translation(route, body, model).body)
    return found


def refusal(route: str, body: dict[str, Any], model: Model = CAPABLE) -> str:
    with pytest.raises(BadRequest) as caught:
        translation(route, body, model)
    assert caught.value.status == 400
    return caught.value.message


def test_generate_becomes_a_chat_with_system_and_user():
    request = sent("/api/generate", GENERATE | {"system": "Be brief."}, PLAIN)
    assert request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    assert translation("/api/generate", GENERATE).path == "/v1/chat/completions"


def test_the_engine_always_streams_so_that_a_leaving_client_is_noticed():
    way = translation("/api/chat", HELLO | {"stream": False})
    assert way.stream is False
    assert json.loads(way.body)["stream"] is True


def test_raw_goes_to_completion_without_template():
    way = translation("/api/generate", GENERATE | {"raw": True})
    assert way.path == "/completion"
    request = json.loads(way.body)
    assert request["prompt"] == "Why?"
    assert "messages" not in request


@pytest.mark.parametrize("extra", [{"system": "x"}, {"template": "x"}, {"context": [1]}])
def test_raw_with_a_template_is_refused_in_ollamas_words(extra):
    assert (
        refusal("/api/generate", GENERATE | {"raw": True} | extra)
        == "raw mode does not support template, system, or context"
    )


def test_what_this_kind_of_engine_cannot_do_is_said():
    assert '"raw": true' in refusal("/api/generate", GENERATE | {"template": "{{ .Prompt }}"})
    assert "/api/chat" in refusal("/api/generate", GENERATE | {"context": [1, 2]})
    assert "_debug" in refusal("/api/chat", HELLO | {"_debug_render_only": True})


def test_a_suffix_fills_in_the_middle_where_the_model_can():
    way = translation("/api/generate", GENERATE | {"suffix": "end"})
    request = json.loads(way.body)
    assert way.path == "/infill"
    assert (request["input_prefix"], request["input_suffix"]) == ("Why?", "end")
    assert (
        refusal("/api/generate", {"model": "m", "prompt": "a", "suffix": "b"}, PLAIN)
        == "registry.ollama.ai/library/m:latest does not support insert"
    )


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama3.2:3b", "registry.ollama.ai/library/llama3.2:3b"),
        ("me/tiny", "registry.ollama.ai/me/tiny:latest"),
        ("hf.co/u/m:Q4_K_M", "hf.co/u/m:q4_k_m"),
    ],
)
def test_capability_errors_name_the_model_in_full(name, full):
    tools = {"tools": [{"function": {"name": "f"}}]}
    message = refusal("/api/chat", HELLO | {"model": name} | tools, PLAIN)
    assert message == f"{full} does not support tools"


def test_an_embedding_model_neither_chats_nor_generates():
    bert = Model("bert", capabilities=("embedding",))
    assert refusal("/api/chat", HELLO | {"model": "bert"}, bert) == '"bert" does not support chat'
    assert (
        refusal("/api/generate", GENERATE | {"model": "bert"}, bert)
        == '"bert" does not support generate'
    )


def test_messages_with_images_become_content_parts():
    message = {"role": "User", "content": "What?", "images": [PNG, JPEG]}
    [converted] = sent("/api/chat", HELLO | {"messages": [message]})["messages"]
    assert converted["role"] == "user"
    assert converted["content"] == [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{JPEG}"}},
    ]
    [generated] = sent("/api/generate", GENERATE | {"images": [PNG]})["messages"]
    assert [part["type"] for part in generated["content"]] == ["text", "image_url"]


def test_images_that_cannot_be_used_are_refused():
    def ask(image: object, model: Model = CAPABLE) -> str:
        message = {"role": "user", "content": "", "images": [image]}
        return refusal("/api/chat", HELLO | {"messages": [message]}, model)

    assert ask("not base64!").startswith("illegal base64 data")
    assert ask(7) == "json: cannot unmarshal number into Go value of type api.ImageData"
    assert "WebP" in ask(WEBP)
    assert ask(PNG, PLAIN).endswith("does not support vision")
    assert ask(WAV).endswith("does not support audio")
    assert "raw" in refusal("/api/generate", GENERATE | {"images": [PNG], "raw": True})


def test_a_sound_goes_as_audio_to_a_model_that_hears():
    hearing = Model("m", capabilities=("completion", "audio"))
    message = {"role": "user", "content": "", "images": [WAV]}
    [converted] = sent("/api/chat", HELLO | {"messages": [message]}, hearing)["messages"]
    assert converted["content"] == [
        {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}
    ]


def test_tool_calls_of_former_turns_go_up_as_json_text():
    messages = [
        {
            "role": "assistant",
            "thinking": "I need the weather.",
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"city": "Köln"}}}],
        },
        {"role": "tool", "content": "11 C", "tool_name": "f", "tool_call_id": "c1"},
    ]
    first, second = sent("/api/chat", HELLO | {"messages": messages})["messages"]
    assert first == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I need the weather.",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "index": 0,
                "function": {"name": "f", "arguments": '{"city":"Köln"}'},
            }
        ],
    }
    assert second == {"role": "tool", "name": "f", "tool_call_id": "c1", "content": "11 C"}


def test_tools_pass_as_they_are_with_their_type_filled_in():
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert sent("/api/chat", HELLO | {"tools": [tool]})["tools"] == [{"type": "function", **tool}]


@pytest.mark.parametrize(
    ("think", "kwargs"),
    [
        (None, {"enable_thinking": True}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
    ],
)
def test_thinking_is_told_to_the_template(think, kwargs):
    assert sent("/api/chat", HELLO | {"think": think})["chat_template_kwargs"] == kwargs


def test_a_model_that_does_not_think_is_left_alone_or_refuses():
    assert "chat_template_kwargs" not in sent("/api/chat", HELLO, PLAIN)
    assert sent("/api/chat", HELLO | {"think": False}, PLAIN)
    for think in (True, "high"):
        message = refusal("/api/chat", HELLO | {"think": think}, PLAIN)
        assert message == '"smollm2:135m" does not support thinking'
    assert "invalid think value" in refusal("/api/chat", HELLO | {"think": "much"})
    assert "must be a boolean" in refusal("/api/chat", HELLO | {"think": 3})


def test_format_json_and_schema():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert sent("/api/chat", HELLO | {"format": "json"})["response_format"] == {
        "type": "json_object"
    }
    assert sent("/api/chat", HELLO | {"format": schema})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "schema", "schema": schema},
    }
    raw = GENERATE | {"raw": True}
    assert sent("/api/generate", raw | {"format": schema})["json_schema"] == schema
    assert sent("/api/generate", raw | {"format": "json"})["json_schema"] == {"type": "object"}
    for nothing in (None, ""):
        assert "response_format" not in sent("/api/chat", HELLO | {"format": nothing})
    for wrong in ("xml", 3, ["json"]):
        assert refusal("/api/chat", HELLO | {"format": wrong}).startswith("invalid format: ")


def test_log_probabilities():
    assert "logprobs" not in sent("/api/chat", HELLO)
    wanted = sent("/api/chat", HELLO | {"logprobs": True})
    assert (wanted["logprobs"], wanted["top_logprobs"]) == (True, 1)
    raw = GENERATE | {"raw": True, "logprobs": True, "top_logprobs": 5}
    assert sent("/api/generate", raw)["n_probs"] == 5
    assert (
        refusal("/api/chat", HELLO | {"top_logprobs": 21})
        == "top_logprobs must be between 0 and 20"
    )


@pytest.mark.parametrize(
    ("route", "body", "message"),
    [
        ("/api/chat", {"messages": []}, "model is required"),
        ("/api/chat", {"model": ""}, "model is required"),
        (
            "/api/generate",
            {"model": 3},
            "json: cannot unmarshal number into Go struct field "
            "GenerateRequest.model of type string",
        ),
        (
            "/api/generate",
            GENERATE | {"prompt": ["a"]},
            "json: cannot unmarshal array into Go struct field "
            "GenerateRequest.prompt of type string",
        ),
        (
            "/api/generate",
            GENERATE | {"options": "hot"},
            "json: cannot unmarshal string into Go struct field "
            "GenerateRequest.options of type map[string]interface {}",
        ),
        (
            "/api/chat",
            HELLO | {"messages": "hi"},
            "json: cannot unmarshal string into Go struct field "
            "ChatRequest.messages of type []api.Message",
        ),
        (
            "/api/chat",
            HELLO | {"messages": ["hi"]},
            "json: cannot unmarshal string into Go struct field "
            "ChatRequest.messages of type api.Message",
        ),
        (
            "/api/chat",
            HELLO | {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "json: cannot unmarshal array into Go struct field Message.content of type string",
        ),
        (
            "/api/chat",
            HELLO | {"stream": "yes"},
            "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool",
        ),
        (
            "/api/chat",
            HELLO | {"tools": {"name": "f"}},
            "json: cannot unmarshal object into Go struct field "
            "ChatRequest.tools of type []api.Tool",
        ),
        ("/api/chat", HELLO | {"keep_alive": "5"}, 'time: missing unit in duration "5"'),
        (
            "/api/chat",
            HELLO | {"top_logprobs": 1.5},
            "json: cannot unmarshal number 1.5 into Go struct field "
            "ChatRequest.top_logprobs of type int",
        ),
        (
            "/api/embeddings",
            {"model": "m", "prompt": 1},
            "json: cannot unmarshal number into Go struct field "
            "EmbeddingRequest.prompt of type string",
        ),
        (
            "/api/embed",
            {"model": "m", "input": "x", "truncate": 1},
            "json: cannot unmarshal number into Go struct field EmbedRequest.truncate of type bool",
        ),
    ],
)
def test_wrong_types_are_refused_in_the_words_of_ollama(route, body, message):
    assert refusal(route, body) == message


def test_arguments_of_a_tool_call_must_be_an_object():
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    message = refusal(
        "/api/chat", HELLO | {"messages": [{"role": "assistant", "tool_calls": calls}]}
    )
    assert message.endswith("ToolCallFunction.arguments of type api.ToolCallFunctionArguments")


def test_the_answer_to_a_load_is_one_finished_object():
    assert json.loads(load_reply("/api/chat", "m", "load", "T")) == {
        "model": "m",
        "created_at": "T",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }
    assert json.loads(load_reply("/api/generate", "m", "unload", "T"))["response"] == ""
    assert json.loads(load_reply("/api/embed", "m", "load", "T")) == {
        "model": "m",
        "embeddings": [],
    }
    assert json.loads(load_reply("/api/embeddings", "m", "load", "T")) == {"embedding": []}


def test_an_unknown_route_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="no translation"):
        translation("/api/pull", {"model": "m"})
