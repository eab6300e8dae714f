"""Recorded bytes of a real llama-server, fed in pieces, come out as Ollama's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_fakes import CREATED, HELLO, STEP_NS, Clock, recorded, translation

from olol_tui.gateway.dialects.errors import TranslationError
from olol_tui.gateway.dialects.llama import Translation

GENERATE = {"model": "smollm2:135m", "prompt": "The capital of France is"}


def run(way: Translation, data: bytes, *, cut: int | None = None, size: int = 0) -> list[Any]:
    """The objects a client reads when the reply comes whole, in two pieces, or in small ones."""
    if cut is not None:
        out = way.feed(data[:cut]) + way.feed(data[cut:])
    elif size:
        out = b"".join(way.feed(data[i : i + size]) for i in range(0, len(data), size))
    else:
        out = way.feed(data)
    out += way.finish()
    return [json.loads(line) for line in out.splitlines()]


def test_a_chat_streams_one_line_a_token_and_ends_with_counts_and_nanoseconds():
    lines = run(translation("/api/chat", HELLO, clock=Clock()), recorded("chat.sse"))
    assert [line["message"]["content"] for line in lines[:-1]] == [
        "The",
        " capital",
        " of",
        " France",
        " is",
        " Paris",
        ".",
    ]
    assert all(line["model"] == "smollm2:135m" for line in lines)
    assert all(line["created_at"] == CREATED for line in lines)
    assert all(line["done"] is False for line in lines[:-1])
    last = lines[-1]
    timings = recorded_timings("chat.sse")
    assert last == {
        "model": "smollm2:135m",
        "created_at": CREATED,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": STEP_NS,
        "load_duration": 0,
        "prompt_eval_count": timings["cache_n"] + timings["prompt_n"],
        "prompt_eval_duration": round(timings["prompt_ms"] * 1e6),
        "eval_count": timings["predicted_n"],
        "eval_duration": round(timings["predicted_ms"] * 1e6),
    }


def recorded_timings(name: str) -> dict[str, Any]:
    lines = [line for line in recorded(name).split(b"\n") if b'"timings"' in line]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(b"data: "))["timings"]
    return found


@pytest.mark.parametrize(
    ("route", "body", "name"),
    [
        ("/api/chat", HELLO, "length.sse"),
        ("/api/chat", HELLO, "unicode.sse"),
        ("/api/generate", GENERATE, "thinking.sse"),
        ("/api/chat", HELLO | {"tools": [{"function": {"name": "f"}}]}, "tool_call.sse"),
        ("/api/generate", GENERATE | {"raw": True}, "raw.sse"),
        (
            "/api/generate",
            GENERATE | {"raw": True, "logprobs": True, "top_logprobs": 2},
            "raw_logprobs.sse",
        ),
    ],
)
def test_it_does_not_matter_where_the_reply_is_cut(route, body, name):
    """Every boundary, also inside a UTF-8 character, an escape or a line end."""
    data = recorded(name)
    whole = run(translation(route, body), data)
    for cut in range(len(data)):
        assert run(translation(route, body), data, cut=cut) == whole, cut
    assert run(translation(route, body), data, size=1) == whole
    assert run(translation(route, body), data, size=7) == whole


def test_text_of_any_script_arrives_unharmed():
    lines = run(translation("/api/chat", HELLO), recorded("unicode.sse"), size=3)
    assert "".join(line["message"]["content"] for line in lines) == "café 🎉 日本 – «ü»"


def test_windows_line_ends_comments_and_other_fields_are_skipped():
    data = b": ping\r\n\r\nevent: message\r\nid: 7\r\n" + recorded("chat.sse").replace(
        b"\n", b"\r\n"
    )
    assert len(run(translation("/api/chat", HELLO), data, size=5)) == 8


def test_without_streaming_one_object_holds_the_whole_reply():
    way = translation("/api/chat", HELLO | {"stream": False})
    assert way.content_type.startswith("application/json")
    assert way.feed(recorded("chat.sse")[:900]) == b""
    [reply] = run(way, recorded("chat.sse")[900:])
    assert reply["message"] == {
        "role": "assistant",
        "content": "The capital of France is Paris.",
    }
    assert (reply["done"], reply["done_reason"], reply["eval_count"]) == (True, "stop", 8)


def test_generate_says_response_where_chat_says_message():
    lines = run(translation("/api/generate", GENERATE), recorded("chat.sse"))
    assert "".join(line["response"] for line in lines) == "The capital of France is Paris."
    assert not any("message" in line or "context" in line for line in lines)


def test_a_reply_cut_by_num_predict_says_length():
    way = translation("/api/chat", HELLO)
    lines = run(way, recorded("length.sse"))
    assert lines[-1]["done_reason"] == way.done_reason == "length"
    assert (lines[-1]["eval_count"], way.tokens) == (3, 3)


def test_a_raw_completion_ends_with_its_own_event():
    way = translation("/api/generate", GENERATE | {"raw": True})
    lines = run(way, recorded("raw.sse"))
    assert way.path == "/completion"
    assert "".join(line["response"] for line in lines) == " Paris.\n\nThe United"
    assert lines[-1]["done_reason"] == "length"
    assert (way.tokens, way.prompt_tokens) == (6, 5)


def test_thoughts_come_as_thinking_and_before_the_answer():
    lines = run(translation("/api/chat", HELLO), recorded("thinking.sse"))
    thoughts = [line["message"].get("thinking", "") for line in lines]
    words = [line["message"]["content"] for line in lines]
    assert "".join(thoughts).strip() == "I must say Paris."
    assert "".join(words).strip() == "Paris."
    assert not any(thought and word for thought, word in zip(thoughts, words, strict=True))
    [whole] = run(
        translation("/api/generate", GENERATE | {"stream": False}), recorded("thinking.sse")
    )
    assert (whole["thinking"].strip(), whole["response"].strip()) == ("I must say Paris.", "Paris.")


def test_a_tool_call_is_gathered_and_its_arguments_become_an_object():
    asked = HELLO | {"tools": [{"type": "function", "function": {"name": "get_weather"}}]}
    lines = run(translation("/api/chat", asked), recorded("tool_call.sse"), size=11)
    assert [line["done"] for line in lines] == [False, True]
    [call] = lines[0]["message"]["tool_calls"]
    assert call["function"] == {
        "index": 0,
        "name": "get_weather",
        "arguments": {"city": "Paris"},
    }
    assert call["id"]
    assert lines[1]["done_reason"] == "stop"
    [whole] = run(translation("/api/chat", asked | {"stream": False}), recorded("tool_call.sse"))
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}


def test_two_tool_calls_keep_their_order_whatever_the_order_of_their_pieces():
    def delta(index: int, **function: str) -> bytes:
        call = {"index": index, "id": f"c{index}", "function": function}
        return event({"choices": [{"delta": {"tool_calls": [call]}}]})

    data = delta(1, name="b", arguments="{") + delta(0, name="a", arguments="")
    data += delta(1, name="b", arguments='"x":1}') + end_event("tool_calls")
    lines = run(translation("/api/chat", HELLO), data)
    assert [call["function"] for call in lines[0]["message"]["tool_calls"]] == [
        {"index": 0, "name": "a", "arguments": {}},
        {"index": 1, "name": "b", "arguments": {"x": 1}},
    ]
    assert [call["id"] for call in lines[0]["message"]["tool_calls"]] == ["c0", "c1"]


def test_arguments_that_are_not_json_end_the_reply_with_an_error():
    call = {"index": 0, "function": {"name": "f", "arguments": '{"x":'}}
    data = event({"choices": [{"delta": {"tool_calls": [call]}}]}) + end_event("tool_calls")
    way = translation("/api/chat", HELLO)
    [line] = [json.loads(text) for text in way.feed(data).splitlines()]
    assert 'invalid tool call arguments for "f"' in line["error"]
    assert way.finish() == b""


@pytest.mark.parametrize(
    ("route", "body", "name"),
    [
        ("/api/chat", HELLO | {"logprobs": True, "top_logprobs": 2}, "logprobs.sse"),
        (
            "/api/generate",
            GENERATE | {"raw": True, "logprobs": True, "top_logprobs": 2},
            "raw_logprobs.sse",
        ),
    ],
)
def test_log_probabilities_come_with_their_tokens(route, body, name):
    lines = run(translation(route, body), recorded(name))
    first = lines[0]["logprobs"][0]
    assert list(bytes(first["bytes"])) == list(first["token"].encode())
    assert first["logprob"] < 0
    assert len(first["top_logprobs"]) == 2
    [whole] = run(translation(route, body | {"stream": False}), recorded(name))
    assert [item["token"] for item in whole["logprobs"]] == [
        line["logprobs"][0]["token"] for line in lines[:-1]
    ]


def test_alternatives_are_left_out_when_only_log_probabilities_were_asked():
    asked = HELLO | {"logprobs": True}
    lines = run(translation("/api/chat", asked), recorded("logprobs.sse"))
    assert "top_logprobs" not in lines[0]["logprobs"][0]
    silent = run(translation("/api/chat", HELLO), recorded("logprobs.sse"))
    assert not any("logprobs" in line for line in silent)


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def end_event(reason: str) -> bytes:
    return event({"choices": [{"delta": {}, "finish_reason": reason}], "timings": {"prompt_n": 2}})


@pytest.mark.parametrize("field", [b"data: ", b"error: "])
def test_an_error_inside_a_stream_is_the_last_line_and_no_clean_end_follows(field):
    """`error:` is how older builds of llama-server say it."""
    failure = {"error": {"code": 500, "message": "Compute error.", "type": "server_error"}}
    begun = recorded("chat.sse").split(b"\n\n")[1] + b"\n\n"
    way = translation("/api/chat", HELLO)
    out = way.feed(begun + field + json.dumps(failure).encode() + b"\n\n")
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["message"]["content"] == "The"
    assert lines[1:] == [{"error": "Compute error."}]
    assert way.failure is not None
    assert (way.failure.status, way.failure.message) == (500, "Compute error.")
    assert way.feed(recorded("chat.sse")) == b""
    assert way.finish() == b""


def test_an_error_without_streaming_is_raised_with_its_status():
    way = translation("/api/chat", HELLO | {"stream": False})
    assert way.feed(event({"error": {"code": 503, "message": "busy"}})) == b""
    with pytest.raises(TranslationError) as caught:
        way.finish()
    assert (caught.value.status, caught.value.message) == (503, "busy")


@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_that_breaks_off_is_never_a_clean_end(stream):
    way = translation("/api/chat", HELLO | {"stream": stream})
    way.feed(recorded("chat.sse")[:1000])
    with pytest.raises(TranslationError, match="ended before it was complete"):
        way.finish()


def test_nonsense_from_the_engine_is_an_error_not_an_exception_in_the_gateway():
    way = translation("/api/chat", HELLO)
    [line] = [json.loads(text) for text in way.feed(b"data: {nope\n\n").splitlines()]
    assert "makes no sense" in line["error"]
    assert translation("/api/chat", HELLO).feed(b'data: {"choices":[{"delta":\xff}]}\n\n')


def test_a_finish_without_timings_still_ends_with_the_counted_tokens():
    data = event({"choices": [{"delta": {"content": "a"}}]})
    data += event({"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]})
    for ending in (b"data: [DONE]\n\n", b""):
        way = translation("/api/chat", HELLO)
        lines = run(way, data + ending)
        assert [line["done"] for line in lines] == [False, False, True]
        assert (lines[-1]["eval_count"], way.tokens) == (2, 2)


def test_the_last_event_counts_also_without_its_newline():
    data = recorded("raw.sse").rstrip(b"\n")
    assert run(translation("/api/generate", GENERATE | {"raw": True}), data)[-1]["done"]


def test_timings_that_come_after_the_finish_are_waited_for():
    data = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    data += event({"choices": [], "timings": {"cache_n": 3, "prompt_n": 4, "predicted_n": 5}})
    way = translation("/api/chat", HELLO)
    [last] = run(way, data + b"data: [DONE]\n\n")
    assert (last["prompt_eval_count"], last["eval_count"]) == (7, 5)


def test_the_wait_for_a_load_is_reported():
    way = translation("/api/chat", HELLO)
    way.load_ns = 1_500_000_000
    assert run(way, recorded("chat.sse"))[-1]["load_duration"] == 1_500_000_000


def test_an_endless_event_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("olol_tui.gateway.dialects.sse.MAX_EVENT_BYTES", 1000)
    way = translation("/api/chat", HELLO)
    way.feed(b"data: " + b"x" * 500)
    assert b"error" in way.feed(b"x" * 600)


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("too_long.json", 400, "exceeds the available context size"),
        ("bad_schema.json", 400, "unrecognized type foo"),
        ("no_infill.json", 501, "Infill is not supported"),
    ],
)
def test_what_the_engine_refuses_reaches_the_client_in_ollamas_shape(name, status, says):
    got_status, body = translation("/api/chat", HELLO).error(status, recorded(name))
    assert got_status == status
    assert says in json.loads(body)["error"]


def test_an_error_body_that_is_no_json_is_passed_on_as_text():
    status, body = translation("/api/chat", HELLO).error(502, b"<html>bad gateway</html>")
    assert (status, json.loads(body)) == (502, {"error": "<html>bad gateway</html>"})
    assert json.loads(translation("/api/chat", HELLO).error(500, b"")[1]) == {
        "error": "the engine said 500"
    }
