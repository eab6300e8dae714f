"""What is read of multipart forms, of responses, of messages and of their events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olol_tui.gateway import bodies
from olol_tui.gateway.dialects import anthropic, responses
from olol_tui.gateway.dialects.errors import BadRequest

KIND = b"multipart/form-data; boundary=XyZ"


def form(*parts: tuple[bytes, bytes], end: bytes = b"--") -> bytes:
    head = b"--XyZ\r\nContent-Disposition: form-data; %s\r\nX-Other: a\r\n\r\n%s\r\n"
    return b"".join(head % part for part in parts) + b"--XyZ" + end + b"\r\n"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KIND, form((b'name="model"', b"m:1b"))),
        (
            KIND,
            form((b'name="file"; filename="a"', b"\r\n--Xy\r\n\r\n"), (b'name="model"', b"m:1b")),
        ),
        (b'Multipart/Form-Data;charset=x; boundary="XyZ"', form((b'name="model"', b" m:1b "))),
        (KIND, b"\r\n" + form((b'name="model"', b"m:1b"))),
        (KIND, form((b'filename="model"; name="file"', b"x"), (b'name="model"', b"m:1b"))),
    ],
)
def test_the_model_of_a_form(kind: bytes, body: bytes) -> None:
    assert responses.model_of_form(kind, body) == "m:1b"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"", b""),
        (b"multipart/mixed; boundary=x", b"--x--"),
        (b"multipart/form-data; boundary=", b""),
        (KIND, b""),
        (KIND, b"--XyZ"),
        (KIND, b"--XyZ--\r\n"),
        (KIND, form((b'name="file"', b"x"))),
        (KIND, form((b'name="model"', b""))),
        (KIND, form((b'name="model"', b"\xff\xfe"))),
        (KIND, form((b'name="model"', b"m"))[:-12]),
        (KIND, b"--XyZ\r\n" + b"A: b\r\n" * 2000 + b"\r\nx\r\n--XyZ--"),
    ],
)
def test_forms_without_a_model(kind: bytes, body: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        responses.model_of_form(kind, body)
    assert refused.value.status == 400


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_no_form_brings_it_down(body: bytes, kind: bytes) -> None:
    for given_kind in (KIND, kind):
        for raw in (body, b"--XyZ" + body, b"--XyZ\r\n\r\n" + body + b"\r\n--XyZ" + body):
            try:
                assert responses.model_of_form(given_kind, raw)
            except BadRequest as refused:
                assert refused.status == 400


@pytest.mark.parametrize("value", ['"a"', '[{"role":"user","content":"a"}]'])
def test_inputs_of_responses(value: str) -> None:
    responses.check("/v1/responses", f'{{"model":"m","input":{value}}}'.encode())


@pytest.mark.parametrize("value", ["null", '""', "[]", "5", "{}", "true"])
def test_inputs_that_no_engine_takes(value: str) -> None:
    with pytest.raises(BadRequest):
        responses.check("/v1/responses", f'{{"model":"m","input":{value}}}'.encode())
    with pytest.raises(BadRequest):
        responses.check("/v1/responses", b'{"model":"m"}')


def raw(**body: Any) -> bytes:
    return json.dumps(body).encode()


MESSAGES = [{"role": "user", "content": "four by four"}]


def test_messages_that_may_pass() -> None:
    anthropic.check("/v1/messages", raw(model="m", max_tokens=1, messages=MESSAGES))
    anthropic.check("/v1/messages", raw(model="m", max_tokens=1, messages=MESSAGES, stream=None))
    assert anthropic.check_count(raw(model="m", messages=MESSAGES)) == "m"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": None}, "model is required"),
        ({"model": 5}, "MessagesRequest.model of type string"),
        ({"max_tokens": None}, "max_tokens is required and must be positive"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"max_tokens": -1}, "max_tokens is required and must be positive"),
        ({"max_tokens": True}, "cannot unmarshal bool"),
        ({"max_tokens": "9"}, "MessagesRequest.max_tokens of type int"),
        ({"messages": []}, "messages is required"),
        ({"messages": {}}, "messages is required"),
        ({"messages": "hi"}, "cannot unmarshal string"),
        ({"stream": "yes"}, "MessagesRequest.stream of type bool"),
    ],
)
def test_messages_that_no_engine_takes(change: dict[str, Any], sentence: str) -> None:
    body = {"model": "m", "max_tokens": 1, "messages": MESSAGES} | change
    with pytest.raises(BadRequest, match=sentence):
        anthropic.check("/v1/messages", raw(**body))


@pytest.mark.parametrize("body", [b"", b"  ", b"[]", b"{", b"\xff", b'"a"'])
def test_bodies_that_are_no_objects(body: bytes) -> None:
    with pytest.raises(BadRequest):
        anthropic.check("/v1/messages", body)
    with pytest.raises(BadRequest):
        anthropic.check_count(body)


def test_an_estimate_is_a_token_for_four_bytes_of_text() -> None:
    assert anthropic.estimate(raw(messages=MESSAGES)) == (4 + 12) // 4
    blocks = [
        {"type": "text", "text": "12345678"},
        {"type": "image", "source": {"data": "x" * 999}},
    ]
    assert anthropic.estimate(raw(messages=[{"role": "user", "content": blocks}])) == (4 + 8) // 4
    used = [{"type": "tool_result", "tool_use_id": "a", "content": "x" * 400}]
    assert anthropic.estimate(raw(messages=[{"role": "user", "content": used}])) > 100
    assert anthropic.estimate(raw(messages=MESSAGES, system="x" * 400)) > 100
    assert anthropic.estimate(raw(messages=MESSAGES, tools=[{"description": "x" * 400}])) > 100
    assert anthropic.estimate(raw(messages=[{}, 5, None])) == 1
    with pytest.raises(BadRequest):
        anthropic.estimate(raw(messages="x"))


def counts(event: dict[str, Any]) -> tuple[int | None, int | None] | None:
    found = bodies.event_usage(json.dumps(event).encode())
    return None if found is None else (found.prompt, found.reply)


def test_the_counts_in_events() -> None:
    usage = {"input_tokens": 1, "cache_read_input_tokens": 30, "output_tokens": 0}
    assert counts({"type": "message_start", "message": {"usage": usage}}) == (31, 0)
    assert counts({"type": "message_delta", "usage": {"output_tokens": 4}}) == (None, 4)
    done = {"input_tokens": 31, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 30}}
    assert counts({"type": "response.completed", "response": {"usage": done}}) == (31, 4)
    assert counts({"type": "response.created", "response": {"usage": None}}) is None
    assert counts({"usage": "many"}) is None
    assert bodies.event_usage(b"[DONE]") is None


def test_the_error_in_an_event() -> None:
    frame = b'data: {"type":"error","error":{"type":"api_error","message":"it broke"}}\n\n'
    assert bodies.event_error(frame) == "it broke"
    failed = {"type": "response.failed", "response": {"error": {"message": "so did this"}}}
    assert bodies.event_error(json.dumps(failed).encode()) == "so did this"
    assert bodies.event_error(b'{"type":"response.completed","response":{"error":null}}') == ""
    assert bodies.event_error(b"nonsense") == ""
