"""Each official client doing each thing: chat, tools, structured output, images, embeddings,
streaming, errors. Python's `ollama`, `openai` and `anthropic`, and `ollama-js` where npm is.

What an engine truly cannot do is an error with a status and a sentence, the same for all.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.contract.client_service import REPLY_S, Service

OLLAMA_JS = "ollama@0.6"
FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 20}},
    "required": ["capital"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris"]}},
    "required": ["city"],
}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": PARAMETERS,
}
TOOL: Any = {"type": "function", "function": WEATHER}


def png() -> bytes:
    """One black pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = chunk(b"IHDR", bytes((0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0)))
    pixel = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + head + pixel + chunk(b"IEND", b"")


IMAGE = base64.b64encode(png()).decode()
NO_SIGHT = "does not support vision"


@pytest.fixture
def messages(service: Service) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=service.url, api_key="any", timeout=REPLY_S, max_retries=0
    ) as client:
        yield client


def asked_before(calls: bool = True) -> list[dict[str, Any]]:
    """A small model calls a tool once it has seen itself do so."""
    told: list[dict[str, Any]] = []
    for city in ("Rome", "Oslo", "Berlin"):
        function = {"name": "get_weather", "arguments": {"city": city}}
        told += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        ]
    return [*told, {"role": "user", "content": "Weather in Paris?"}]


def as_openai(told: list[dict[str, Any]]) -> list[Any]:
    """OpenAI writes arguments as text, and each call has an id."""
    out = []
    for number, turn in enumerate(told):
        calls = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"]["arguments"]),
                },
            }
            for call in turn.get("tool_calls", ())
        ]
        out.append({**turn, "tool_calls": calls} if calls else turn)
    return out


def is_paris(name: str, arguments: object) -> bool:
    return (name, arguments) == ("get_weather", {"city": "Paris"})


# -- ollama


def test_ollama_python(service: Service, native: ollama.Client) -> None:
    """Chat, streams, generate, schemas, lists, embeddings and errors are in test_clients."""
    called = native.chat(
        service.tool_model,
        asked_before(),
        tools=[TOOL],
        options={"temperature": 0, "num_predict": 64},
    )
    calls = called.message.tool_calls or []
    if service.real:
        (call,) = calls
        assert is_paris(call.function.name, dict(call.function.arguments))
        after = [
            *asked_before(),
            called.message,
            {"role": "tool", "tool_name": "get_weather", "content": "11 C"},
        ]
        assert native.chat(service.tool_model, after, tools=[TOOL], options={"num_predict": 8}).done
    else:
        assert called.message.content, "a simulated model talks instead"

    seen: list[Any] = [{"role": "user", "content": "What is this?", "images": [png()]}]
    options = {"num_predict": 8}
    if service.vision_model:
        assert native.chat(service.vision_model, seen, options=options).message.content
        streamed = native.chat(service.vision_model, seen, options=options, stream=True)
        assert list(streamed)[-1].done
        assert native.generate(
            service.vision_model, "What?", images=[png()], options=options
        ).response
    if service.refuses_images:
        with pytest.raises(ollama.ResponseError, match=NO_SIGHT) as caught:
            native.chat(service.model, seen)
        assert caught.value.status_code == 400
        with pytest.raises(ollama.ResponseError, match=NO_SIGHT):
            native.generate(service.model, "What?", images=[png()])


# -- openai


def test_openai_python(service: Service, compatible: openai.OpenAI) -> None:
    """Chat, completions, embeddings, lists and errors are in test_clients."""
    complete = compatible.chat.completions.create
    named: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    structured = complete(
        model=service.model, messages=FRANCE, response_format=named, temperature=0, max_tokens=64
    )
    assert list(json.loads(structured.choices[0].message.content or "")) == ["capital"]

    asked: dict[str, Any] = {
        "model": service.tool_model,
        "messages": as_openai(asked_before()),
        "tools": [TOOL],
        "temperature": 0,
        "max_tokens": 64,
    }
    answer = complete(**asked).choices[0]
    if service.real:
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert is_paris(call.function.name, json.loads(call.function.arguments))
        arguments = ""
        for piece in complete(**asked, stream=True):
            for delta in piece.choices[0].delta.tool_calls or () if piece.choices else ():
                arguments += delta.function.arguments or ""
        assert json.loads(arguments) == {"city": "Paris"}
    else:
        assert answer.message.content

    url = f"data:image/png;base64,{IMAGE}"
    seen: Any = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        }
    ]
    if service.vision_model:
        reply = complete(model=service.vision_model, messages=seen, max_tokens=8)
        assert reply.choices[0].message.content
    if service.refuses_images:
        with pytest.raises(openai.APIStatusError) as caught:
            complete(model=service.model, messages=seen, max_tokens=8)
        assert 400 <= caught.value.status_code <= 501 and "image" in str(caught.value)


# -- anthropic


def test_anthropic_python(service: Service, messages: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": service.model,
        "max_tokens": 16,
        "messages": FRANCE,
        "extra_body": {"temperature": 0},
    }
    whole = messages.messages.create(**asked)
    assert whole.type == "message" and whole.content[0].type == "text" and whole.content[0].text
    assert whole.usage.output_tokens and whole.usage.input_tokens
    with messages.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1 and final.stop_reason in ("max_tokens", "end_turn")
    assert final.content[0].type == "text" and "".join(pieces) == final.content[0].text
    assert messages.messages.count_tokens(model=service.model, messages=FRANCE).input_tokens

    tool: Any = {
        "name": "get_weather",
        "description": WEATHER["description"],
        "input_schema": PARAMETERS,
    }
    turns: list[Any] = []
    for city in ("Rome", "Oslo", "Berlin"):
        block = {
            "type": "tool_use",
            "id": f"t{city}",
            "name": "get_weather",
            "input": {"city": city},
        }
        turns += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "content": [block]},
        ]
    turns.append({"role": "user", "content": "Weather in Paris?"})
    choice: Any = {} if service.real else {"tool_choice": {"type": "any"}}
    reply = messages.messages.create(
        model=service.tool_model,
        max_tokens=64,
        messages=turns,
        tools=[tool],
        extra_body={"temperature": 0},
        **choice,
    )
    (called,) = [block for block in reply.content if block.type == "tool_use"]
    assert is_paris(called.name, called.input) and reply.stop_reason == "tool_use"

    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    seen: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    if service.vision_model:
        shown = messages.messages.create(model=service.vision_model, max_tokens=8, messages=seen)
        assert shown.content
    if service.refuses_images:
        with pytest.raises(anthropic.APIStatusError) as caught:
            messages.messages.create(model=service.model, max_tokens=8, messages=seen)
        assert 400 <= caught.value.status_code <= 501 and "image" in str(caught.value)
    with pytest.raises(anthropic.NotFoundError) as missing:
        messages.messages.create(**{**asked, "model": "no-such-model"})
    assert "no-such-model" in str(missing.value)
    with pytest.raises(anthropic.BadRequestError):
        messages.messages.create(**{**asked, "messages": []})


# -- ollama-js


@pytest.fixture(scope="session")
def ollama_js() -> Path:
    """Where the package is: fetched once, kept outside the tree."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no node and npm on PATH")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    prefix = cache / "olol-tui-tests" / OLLAMA_JS.replace("@", "-")
    package = prefix / "node_modules" / "ollama"
    if not (package / "dist/index.mjs").exists():
        prefix.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(prefix)]
        try:
            done = subprocess.run(
                [*command, OLLAMA_JS], capture_output=True, timeout=60, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"{OLLAMA_JS} cannot be fetched: npm took more than 60 s")
        if done.returncode:
            pytest.skip(f"{OLLAMA_JS} cannot be fetched: {done.stderr.strip()[-200:]}")
    return package


def test_ollama_js(service: Service, ollama_js: Path) -> None:
    given = {
        **asdict(service),
        "france": FRANCE,
        "schema": SCHEMA,
        "tool": TOOL,
        "tool_messages": asked_before(),
        "image": IMAGE,
    }
    script = Path(__file__).with_name("ollama_client.mjs")
    done = subprocess.run(
        ["node", str(script), str(ollama_js), service.url, json.dumps(given)],
        capture_output=True,
        timeout=110,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["chat"]["done"] and said["chat"]["text"] and said["chat"]["tokens"]
    streamed = said["streamed"]
    assert streamed["pieces"] > 3 and streamed["done"] and not streamed["early"]
    if service.real:
        assert streamed["text"] == said["chat"]["text"]
    assert said["generate"]["done"] and said["generate"]["text"]
    assert list(said["structured"]) == ["capital"]
    if service.real:
        (call,) = said["tool_calls"]
        assert is_paris(call["function"]["name"], call["function"]["arguments"])
    else:
        assert said["tool_text"]
    if service.vision_model:
        assert said["image"]["done"] and said["image"]["text"]
    elif service.refuses_images:
        assert said["image"]["status"] == 400 and NO_SIGHT in said["image"]["message"]
    assert len(said["embeddings"]) == 2 and min(said["embeddings"]) > 100
    assert service.model in said["listed"]
    # Ollama runs all names of one file in one process, and shows the name that came first.
    alike = {service.tool_model} if service.kind == "ollama" else set()
    assert {service.model, *alike} & set(said["running"])
    assert said["shown"] == "gguf"
    for missing in (said["missing"], said["missing_stream"]):
        assert missing["name"] == "ResponseError" and missing["status"] == 404
        assert missing["message"] == "model 'no-such-model' not found"
    assert said["wrong"]["status"] in (400, 500)
    assert said["aborted"]["name"] == "AbortError"
