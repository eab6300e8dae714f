"""OpenAI's `/v1/responses` and its forms: what is read of a body that is passed on as it came."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.fields import kind_of

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE
)
_MODEL = re.compile(rb'form-data\s*;(?:[^\r\n]*;)?\s*name="model"\s*(?:;|\r|$)', re.IGNORECASE)
_MAX_HEAD_BYTES = 4096
_MAX_MODEL_BYTES = 1024


class _Body(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Body).decode
_decode_any = msgspec.json.Decoder().decode


def check(route: str, raw: bytes) -> None:
    """Refuse what no engine could answer.

    Raises:
        BadRequest: no input, or one that is neither a text nor a list.
    """
    text = bytes(_decode(raw).input).strip() or b"null"
    if text in (b"null", b'""', b"[]"):
        raise BadRequest("input is required")
    if text[:1] not in b'"[':
        value: Any = _decode_any(text)
        raise BadRequest(f"input must be a string or array, not {kind_of(value)}")


def model_of_form(content_type: bytes, body: bytes) -> str:
    """The `model` field of a multipart form; the file in it is not copied.

    Raises:
        BadRequest: it is no such form, or names no model.
    """
    kind = _BOUNDARY.match(content_type.strip())
    if kind is None:
        raise BadRequest(
            "failed to parse multipart form: request Content-Type isn't multipart/form-data"
        )
    mark = b"--" + (kind.group(1) or kind.group(2))
    if not body.startswith((mark, b"\r\n" + mark)):
        raise BadRequest("failed to parse multipart form: its first boundary is missing")
    mark = b"\r\n" + mark
    at = body.find(mark[2:]) + len(mark) - 2
    while True:
        if body.startswith(b"--", at):
            raise BadRequest("model is required")
        blank = body.find(b"\r\n\r\n", at, at + _MAX_HEAD_BYTES)
        end = body.find(mark, max(at, blank))
        if blank < 0 or end < 0:
            raise BadRequest("failed to parse multipart form: NextPart: EOF")
        if _MODEL.search(body, at, blank + 2):
            return _model(body[blank + 4 : min(end, blank + 4 + _MAX_MODEL_BYTES)])
        at = end + len(mark)


def _model(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadRequest("model is not a valid name") from None
    if not name:
        raise BadRequest("model is required")
    return name
