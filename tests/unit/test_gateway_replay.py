"""Two runs of one request, joined: each text once, under the names of the first run."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.message import Request
from olol_tui.gateway.replay import Broken, Differs, Replay, wanted
from olol_tui.gateway.routes import INFERENCE

WORDS = ["Tokyo", " is", " wide", ",", " «", "ü", "»", " and", " 東京", ".", "\n", "End", "."]
PATHS = ["/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/messages",
         "/v1/responses"]  # fmt: skip


def sse(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def run(path: str, pieces: list[str], number: int) -> list[bytes]:
    """One run's events, with this run's ids and times."""
    if path.startswith("/api/"):
        chat = path == "/api/chat"

        def line(text: str, **more: Any) -> bytes:
            body = (
                {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
            )
            times = {"created_at": f"{number}:{len(text)}", "model": "m"}
            return json.dumps(times | body | {"done": False} | more).encode() + b"\n"

        last = line("", done=True, done_reason="stop", total_duration=number, eval_count=number)
        return [*(line(text) for text in pieces), last]
    if path == "/v1/messages":
        delta = {"type": "content_block_delta", "index": 0}
        return [
            sse({"type": "message_start", "message": {"id": f"msg_{number}", "role": "assistant"}},
                "message_start"),
            sse({"type": "content_block_start", "index": 0,
                 "content_block": {"type": "text", "text": ""}}, "content_block_start"),
            b"event: ping\ndata: {\"type\":\"ping\"}\n\n",
            *(sse(delta | {"delta": {"type": "text_delta", "text": x}}, "content_block_delta")
              for x in pieces),
            sse({"type": "content_block_stop", "index": 0}, "content_block_stop"),
            sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                 "usage": {"output_tokens": number}}, "message_delta"),
            sse({"type": "message_stop"}, "message_stop"),
        ]  # fmt: skip
    if path == "/v1/responses":
        item = f"msg_{number}"
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {"id": f"resp_{number}", "error": None}},
            {"type": "response.output_item.added", "output_index": 0, "item": {"id": item}},
        ]
        where = {"item_id": item, "output_index": 0, "content_index": 0}
        events += [{"type": "response.output_text.delta", "delta": x} | where for x in pieces]
        whole = "".join(pieces)
        events.append({"type": "response.output_text.done", "text": whole} | where)
        events.append({"type": "response.completed", "response": {"id": f"resp_{number}"}})
        return [sse(e | {"sequence_number": at}, e["type"]) for at, e in enumerate(events)]
    chat = path == "/v1/chat/completions"
    frame = {"id": f"chatcmpl-{number}", "created": number, "model": "m"}

    def chunk(choice: dict[str, Any]) -> bytes:
        return sse(frame | {"choices": [{"index": 0, "finish_reason": None} | choice]})

    texts = [chunk({"delta": {"content": x}} if chat else {"text": x}) for x in pieces]
    first = [chunk({"delta": {"role": "assistant", "content": ""}})] if chat else []
    over: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
    end = chunk(over | {"finish_reason": "stop"})
    return [*first, *texts, end, b"data: [DONE]\n\n"]


def pieces_of(chance: random.Random) -> list[str]:
    """The same text, cut otherwise."""
    text, cut = "".join(WORDS), []
    while text:
        size = chance.randint(1, 9)
        cut.append(text[:size])
        text = text[size:]
    return cut


def events_of(path: str, got: bytes) -> list[Any]:
    if path.startswith("/api/"):
        return [json.loads(line) for line in got.splitlines()]
    payloads = [line[6:] for line in got.splitlines() if line.startswith(b"data: ")]
    return [json.loads(x) for x in payloads if x not in (b"[DONE]", b'{"type":"ping"}')]


def text_of(path: str, events: list[Any]) -> str:
    out = ""
    for event in events:
        match path:
            case "/api/generate":
                out += event["response"]
            case "/api/chat":
                out += event["message"]["content"]
            case "/v1/messages":
                out += event.get("delta", {}).get("text", "")
            case "/v1/responses":
                out += event.get("delta", "")
            case "/v1/completions":
                out += event["choices"][0]["text"]
            case _:
                out += event["choices"][0]["delta"].get("content", "")
    return out


def fed(replay: Replay, data: bytes, chance: random.Random) -> bytes:
    out = b""
    while data:
        size = chance.randint(1, 60)
        out += replay.feed(data[:size])
        data = data[size:]
    return out


@pytest.mark.parametrize("path", PATHS)
def test_what_was_sent_is_skipped_and_the_rest_goes_on(path: str) -> None:
    whole = run(path, WORDS, 1)
    for seed in range(60):
        chance = random.Random(seed)
        replay = Replay(INFERENCE[path])
        replay.restart()
        # Cut anywhere, also within an event: the client only gets whole ones.
        first = b"".join(whole)
        got = fed(replay, first[: chance.randrange(len(first))], chance)
        again = b"".join(run(path, pieces_of(chance), 2))
        if seed % 3 == 0:
            # The second one is lost too.
            replay.restart()
            got += fed(replay, again[: chance.randrange(len(again))], chance)
            again = b"".join(run(path, pieces_of(chance), 3))
        replay.restart()
        got += fed(replay, again, chance) + replay.rest()
        events = events_of(path, got)
        assert text_of(path, events) == "".join(WORDS), (seed, got)
        last = events_of(path, b"".join(whole))[-1]
        assert len(events[-1]) == len(last) and events[-1].get("type") == last.get("type")
        names = {event[key] for event in events for key in ("id", "item_id") if key in event}
        assert len(names) <= 1, got
        numbers = [event["sequence_number"] for event in events if "sequence_number" in event]
        assert numbers == sorted(set(numbers))
        starts = [e for e in events if e.get("type") in ("message_start", "response.created")]
        assert len(starts) == (path in ("/v1/messages", "/v1/responses"))


@pytest.mark.parametrize("path", PATHS)
def test_another_text_is_found_out(path: str) -> None:
    first = run(path, WORDS, 1)
    for words in (["Kyoto", *WORDS[1:]], WORDS[:4], [*WORDS[:6], "u", *WORDS[7:]]):
        replay = Replay(INFERENCE[path])
        replay.restart()
        replay.feed(b"".join(first[:-3]))
        replay.restart()
        with pytest.raises(Differs):
            replay.feed(b"".join(run(path, words, 2)))


def test_tool_calls_and_thoughts_are_texts_of_their_own() -> None:
    def chunk(**delta: Any) -> bytes:
        return sse({"choices": [{"index": 0, "delta": delta}]})

    def call(arguments: str, **more: Any) -> bytes:
        return chunk(tool_calls=[{"index": 0, "function": {"arguments": arguments} | more}])

    first = [
        chunk(reasoning="I should"),
        chunk(reasoning=" ask"),
        call("", name="f"),
        call('{"a":'),
    ]
    again = [
        chunk(reasoning="I should ask"),
        call("", name="f"),
        call('{"a'),
        call('":1}'),
        chunk(content="x"),
    ]
    replay = Replay(INFERENCE["/v1/chat/completions"])
    replay.restart()
    replay.feed(b"".join(first))
    replay.restart()
    rest = [
        json.loads(x)
        for x in replay.feed(b"".join(again)).replace(b"data: ", b"").split(b"\n\n")
        if x
    ]
    deltas = [one["choices"][0]["delta"] for one in rest]
    assert deltas == [
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"content": "x"},
    ]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/api/chat", b'{"error":"it fell over"}\n'),
        ("/v1/chat/completions", b'data: {"error":{"message":"it fell over"}}\n\n'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"message":"it fell over"}}\n\n'),
        ("/v1/responses", b'data: {"type":"response.failed","response":{"error":{"message":"it fell over"}}}\n\n'),
    ],
)  # fmt: skip
def test_an_error_inside_the_stream_is_a_loss(path: str, line: bytes) -> None:
    replay = Replay(INFERENCE[path])
    replay.restart()
    first = run(path, WORDS, 1)[:2]
    with pytest.raises(Broken, match="it fell over") as broken:
        replay.feed(b"".join(first) + line)
    assert broken.value.before == b"".join(first), "that much reaches the client"


def asked(path: str, body: dict[str, Any], header: bytes = b"deterministic") -> Replay | None:
    request = Request(b"POST", path, "", {b"x-olol-replay": header}, json.dumps(body).encode())
    return wanted(request, INFERENCE[path], stream=True)


def test_only_reproducible_requests_are_replayed() -> None:
    assert asked("/api/chat", {"options": {"temperature": 0}}) is not None
    assert asked("/api/chat", {"options": {"temperature": 0.7, "seed": 3}}) is not None
    assert asked("/v1/messages", {"temperature": 0}) is not None
    assert asked("/v1/completions", {"seed": 0}) is not None
    assert asked("/api/embed", {}) is None, "it has nothing to replay and needs nothing"
    for path, body in (
        ("/api/chat", {}),
        ("/api/chat", {"temperature": 0}),
        ("/api/generate", {"options": {"temperature": 0.1}}),
        ("/v1/chat/completions", {"options": {"seed": 1}}),
    ):
        with pytest.raises(BadRequest, match="needs `temperature` 0 or a `seed`"):
            asked(path, body)
    with pytest.raises(BadRequest, match="expected `deterministic`"):
        asked("/api/chat", {"options": {"seed": 1}}, b"yes")
    with pytest.raises(BadRequest, match="cannot be read"):
        asked("/api/chat", {"options": {"seed": "x"}})
