"""Every translation against a real llama-server: in the embedded engine, and as a binary.

The binary runs too when `llama-server` is on PATH or OLOL_TEST_LLAMA_SERVER names one.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway.dialects.llama import Translation, translate
from tests.at_hand import LLAMA_SERVER, NO_LLAMA_SERVER, has, smollm2

MODEL = Model("smollm2:135m", capabilities=("completion", "tools", "thinking"), context_length=8192)
TEMPLATE = Path(__file__).parents[1] / "unit/gateway_dialects/recorded/tools.jinja"
CONTEXT = 1024
START_S = 90.0
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}
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

_EMBEDDED = "import sys; from olol_tui.agent.engines.embedded import main; main(sys.argv[1:])"


def command(kind: str, port: int) -> list[str]:
    model = str(smollm2())
    if kind == "embedded":
        argv = [sys.executable, "-c", _EMBEDDED, "--model", model, "--port", str(port)]
        argv += ["--ctx", str(CONTEXT), "--alias", MODEL.name, "--threads", "1"]
        return [*argv, "--chat-template", TEMPLATE.read_text()]
    argv = [LLAMA_SERVER, "-m", model, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-c", str(CONTEXT), "-np", "1", "--jinja", "--embeddings", "--pooling", "mean"]
    argv += ["-ub", str(CONTEXT), "--alias", MODEL.name, "--no-webui", "-ngl", "0", "-t", "1"]
    return [*argv, "--chat-template-file", str(TEMPLATE)]


class Server:
    """A llama-server in a process of its own, asked through a translation."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def get(self, path: str) -> Any:
        connection = self.connect()
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def send(self, way: Translation) -> tuple[http.client.HTTPConnection, Any]:
        connection = self.connect()
        connection.request("POST", way.path, way.body, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def ask(self, route: str, **body: Any) -> list[dict[str, Any]]:
        """The objects that a client reads; the engine must not refuse."""
        way = self.translate(route, body)
        connection, response = self.send(way)
        try:
            assert response.status == 200, response.read()
            out = b""
            while piece := response.read1(37):  # small and odd: pieces end anywhere
                out += way.feed(piece)
            out += way.finish()
        finally:
            connection.close()
        return [json.loads(line) for line in out.splitlines()]

    def refused(self, route: str, **body: Any) -> tuple[int, str]:
        way = self.translate(route, body)
        connection, response = self.send(way)
        try:
            assert response.status != 200
            status, reply = way.error(response.status, response.read())
        finally:
            connection.close()
        return status, json.loads(reply)["error"]

    def translate(self, route: str, body: dict[str, Any]) -> Translation:
        return translate(
            route,
            {"model": MODEL.name} | body,
            MODEL,
            created=lambda: "2026-10-01T12:00:00.000000000Z",
            clock_ns=time.monotonic_ns,
        )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("llama-server", marks=pytest.mark.llama_server),
    ],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    if request.param == "embedded" and not has("xllamacpp"):
        pytest.skip("xllamacpp is not installed")
    if request.param == "llama-server" and not LLAMA_SERVER:
        pytest.skip(NO_LLAMA_SERVER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command(request.param, port), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        found = Server(port)
        wait_ready(found, process, log)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            if server.get("/health") == {"status": "ok"}:
                return
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail("the engine did not get ready:\n" + log.read_text(errors="replace")[-3000:])


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(
        line["message"]["content"] if "message" in line else line["response"] for line in lines
    )


def test_chat_streams_the_capital_of_france(server):
    lines = server.ask("/api/chat", messages=FRANCE, options=GREEDY)
    assert text_of(lines) == "The capital of France is Paris."
    assert len(lines) > 5
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    last = lines[-1]
    assert last["done_reason"] == "stop"
    assert last["prompt_eval_count"] == 16
    assert last["eval_count"] == 8
    assert 0 < last["eval_duration"] < last["total_duration"]
    assert last["prompt_eval_duration"] > 0


def test_without_streaming_the_same_text_in_one_object(server):
    [reply] = server.ask("/api/chat", messages=FRANCE, options=GREEDY, stream=False)
    assert reply["message"]["content"] == "The capital of France is Paris."
    [reply] = server.ask("/api/generate", prompt=FRANCE[0]["content"], options=GREEDY, stream=False)
    assert reply["response"] == "The capital of France is Paris."


def test_the_system_prompt_is_counted(server):
    plain = server.ask("/api/generate", prompt="Hi", options=GREEDY | {"num_predict": 1})
    told = server.ask(
        "/api/generate",
        prompt="Hi",
        system="You are a helpful assistant who likes brevity.",
        options=GREEDY | {"num_predict": 1},
    )
    assert told[-1]["prompt_eval_count"] > plain[-1]["prompt_eval_count"] + 5


def test_raw_prompts_have_no_template(server):
    lines = server.ask(
        "/api/generate",
        prompt="The capital of France is",
        raw=True,
        options=GREEDY | {"num_predict": 3},
    )
    assert text_of(lines).startswith(" Paris")
    assert (lines[-1]["done_reason"], lines[-1]["prompt_eval_count"]) == ("length", 5)


def test_num_predict_and_stop_end_a_reply(server):
    lines = server.ask("/api/chat", messages=FRANCE, options=GREEDY | {"num_predict": 4})
    assert (text_of(lines), lines[-1]["done_reason"]) == ("The capital of France", "length")
    lines = server.ask("/api/chat", messages=FRANCE, options=GREEDY | {"stop": [" France"]})
    assert (text_of(lines), lines[-1]["done_reason"]) == ("The capital of", "stop")


@pytest.mark.parametrize("route", ["/api/chat", "/api/generate"])
def test_every_option_is_taken(server, route):
    options = {
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.8,
        "min_p": 0.05,
        "typical_p": 0.9,
        "seed": 3,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "mirostat": 2,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "num_keep": 5,
        "num_ctx": 512,
        "num_predict": 3,
        "stop": ["###"],
    }
    for raw in (False, True):
        asked = {"prompt": "Hi", "raw": raw} if route == "/api/generate" else {"messages": FRANCE}
        assert server.ask(route, options=options, **asked)[-1]["done"]


def test_a_seed_repeats_a_reply(server):
    options = {"temperature": 1.2, "seed": 7, "num_predict": 12}
    first, second = (
        text_of(server.ask("/api/chat", messages=FRANCE, options=options)) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("negative", [-1, -2])
def test_an_open_end_is_accepted(server, negative):
    options = GREEDY | {"num_predict": negative}
    assert server.ask("/api/chat", messages=FRANCE, options=options)[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("raw", [False, True])
def test_a_schema_shapes_the_reply(server, raw):
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    lines = server.ask(
        "/api/generate",
        prompt="Capital of France?",
        format=schema,
        raw=raw,
        options=GREEDY | {"num_predict": 64},
    )
    assert list(json.loads(text_of(lines))) == ["capital"]


def test_format_json_gives_an_object(server):
    lines = server.ask(
        "/api/chat", messages=FRANCE, format="json", options=GREEDY | {"num_predict": 200}
    )
    assert text_of(lines).lstrip().startswith("{")


def call_once(city: str) -> list[dict[str, Any]]:
    function = {"name": "get_weather", "arguments": {"city": city}}
    return [
        {"role": "user", "content": f"Weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": function}]},
    ]


def test_tools_are_called_and_their_answers_taken(server):
    """A small model calls a tool once it has seen itself do so."""
    messages = [*call_once("Rome"), *call_once("Oslo"), *call_once("Berlin")]
    messages.append({"role": "user", "content": "Weather in Paris?"})
    lines = server.ask("/api/chat", messages=messages, tools=[WEATHER], options=GREEDY)
    [call] = lines[0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert call["function"]["arguments"] == {"city": "Paris"}
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    messages.append({"role": "tool", "tool_name": "get_weather", "content": "11 C"})
    options = GREEDY | {"num_predict": 8}
    [reply] = server.ask(
        "/api/chat", messages=messages, tools=[WEATHER], stream=False, options=options
    )
    assert reply["eval_count"] > 0


def test_thinking_can_be_switched_off_in_the_template(server):
    on = server.ask("/api/chat", messages=FRANCE, think=True, options={"num_predict": 1})
    off = server.ask("/api/chat", messages=FRANCE, think=False, options={"num_predict": 1})
    assert off[-1]["prompt_eval_count"] > on[-1]["prompt_eval_count"]


@pytest.mark.parametrize("raw", [False, True])
def test_log_probabilities(server, raw):
    lines = server.ask(
        "/api/generate",
        prompt="The capital of France is",
        raw=raw,
        logprobs=True,
        top_logprobs=2,
        options=GREEDY | {"num_predict": 3},
    )
    probs = [item for line in lines for item in line.get("logprobs", [])]
    assert len(probs) == 3
    assert all(item["logprob"] <= 0 and len(item["top_logprobs"]) == 2 for item in probs)


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_embeddings_are_normalised_and_mean_something(server):
    texts = ["The cat sleeps on the sofa.", "A cat is sleeping on a couch.", "SELECT 1 FROM t;"]
    [reply] = server.ask("/api/embed", input=texts)
    cat, couch, query = reply["embeddings"]
    assert math.isclose(math.hypot(*cat), 1, rel_tol=1e-3)
    assert dot(cat, couch) > dot(cat, query)
    assert reply["prompt_eval_count"] > 10
    [legacy] = server.ask("/api/embeddings", prompt=texts[0])
    assert legacy["embedding"] == pytest.approx(cat, abs=1e-4)
    [cut] = server.ask("/api/embed", input=texts[0], dimensions=16)
    assert len(cut["embeddings"][0]) == 16


def test_what_does_not_fit_is_refused(server):
    long = "hello world " * (CONTEXT + 100)
    status, message = server.refused("/api/chat", messages=[{"role": "user", "content": long}])
    assert (status, "context" in message) == (400, True)
    assert server.refused("/api/embed", input=long) == (
        400,
        "the input length exceeds the context length",
    )


def test_a_bad_schema_is_refused_with_the_engines_reason(server):
    status, message = server.refused("/api/chat", messages=FRANCE, format={"type": "foo"})
    assert status == 400
    assert "foo" in message


def test_a_client_that_leaves_frees_the_slot(server):
    way = server.translate(
        "/api/chat",
        {"messages": FRANCE, "stream": False, "options": {"num_predict": 900, "temperature": 2}},
    )
    connection, response = server.send(way)
    while way.tokens < 3:
        way.feed(response.read1(200))
    assert server.get("/slots")[0]["is_processing"]
    response.close()
    connection.close()
    deadline = time.monotonic() + 10
    while server.get("/slots")[0]["is_processing"]:
        assert time.monotonic() < deadline, "the engine goes on for nobody"
        time.sleep(0.02)
