"""Errors in the three shapes, bodies and last frames of streams."""

from __future__ import annotations

import json

import pytest

from olol_tui.gateway.dialects.errors import (
    BadRequest,
    error_body,
    error_frame,
    model_not_found,
    upstream_message,
)
from olol_tui.gateway.dialects.fields import decode_body


def test_native_errors_are_one_sentence():
    assert error_body("ollama", 404, model_not_found("x")) == b'{"error":"model \'x\' not found"}'
    assert error_frame("ollama", 500, "gone") == b'{"error":"gone"}\n'


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (500, "api_error"),
        (503, "api_error"),
    ],
)
def test_openai_errors_carry_a_type(status, kind):
    assert json.loads(error_body("openai", status, "no")) == {
        "error": {"message": "no", "type": kind, "param": None, "code": None}
    }


def test_an_openai_stream_that_fails_ends_without_done():
    frame = error_frame("openai", 500, "gone")
    assert frame.startswith(b"data: {")
    assert frame.endswith(b"\n\n")
    assert b"[DONE]" not in frame


def test_anthropic_errors_have_an_envelope_and_an_event():
    body = json.loads(error_body("anthropic", 503, "busy", request_id="r1"))
    assert body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "busy"},
        "request_id": "r1",
    }
    assert error_frame("anthropic", 500, "x").startswith(b"event: error\ndata: {")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"code":400,"message":" too long ","type":"x"}}', "too long"),
        (b'{"error":"model not found"}', "model not found"),
        (b'{"detail":"x"}', '{"detail":"x"}'),
        (b'"busy"', "busy"),
        (b"plain text\n", "plain text"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        pytest.param(b"[" * 100_000, "[" * 100_000, id="nested too deep"),
        (b"", ""),
    ],
)
def test_the_engines_sentence_is_found_in_any_shape(body, message):
    assert upstream_message(body) == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"[1]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (b'"x"', "json: cannot unmarshal string into Go value of type api.ChatRequest"),
    ],
)
def test_a_body_that_is_no_object(raw, message):
    with pytest.raises(BadRequest) as caught:
        decode_body(raw, "/api/chat")
    assert caught.value.message == message


@pytest.mark.parametrize(
    "raw", [b"{", b"{'a':1}", b"\xff", pytest.param(b'{"a":' * 100_000, id="nested too deep")]
)
def test_a_body_that_is_no_json(raw):
    with pytest.raises(BadRequest, match="invalid JSON"):
        decode_body(raw, "/api/chat")
