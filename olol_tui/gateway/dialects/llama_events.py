"""What llama-server sends while it generates, decoded only as far as it is used."""

from __future__ import annotations

from typing import Any

import msgspec

from olol_tui.gateway.dialects.errors import TranslationError, upstream_message


class TokenProb(msgspec.Struct, gc=False):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list[TokenProb] | None = None


class Timings(msgspec.Struct, gc=False):
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolDelta] | None = None


class Logprobs(msgspec.Struct):
    content: list[TokenProb] | None = None


class Choice(msgspec.Struct):
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Chunk(msgspec.Struct):
    """One event of `/v1/chat/completions`."""

    choices: list[Choice] | None = None
    timings: Timings | None = None
    error: Any = None


class Piece(msgspec.Struct):
    """One event of `/completion` or `/infill`."""

    content: str = ""
    stop: bool = False
    stop_type: str = ""
    timings: Timings | None = None
    completion_probabilities: list[TokenProb] | None = None
    error: Any = None


_encode = msgspec.json.Encoder().encode

decode_chunk = msgspec.json.Decoder(Chunk).decode
decode_piece = msgspec.json.Decoder(Piece).decode


class Call:
    """A tool call whose pieces arrive over several events."""

    __slots__ = ("arguments", "id", "index", "name")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def native(self) -> dict[str, Any]:
        text = "".join(self.arguments).strip() or "{}"
        try:
            arguments = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise TranslationError(
                f'the engine returned invalid tool call arguments for "{self.name}": {error}'
            ) from None
        function = {"index": self.index, "name": self.name, "arguments": arguments}
        return {"id": self.id, "function": function} if self.id else {"function": function}


def native_prob(prob: TokenProb, *, top: bool) -> dict[str, Any]:
    native: dict[str, Any] = {"token": prob.token, "logprob": prob.logprob}
    if prob.token:
        native["bytes"] = prob.bytes or list(prob.token.encode())
    if top and prob.top_logprobs:
        native["top_logprobs"] = [native_prob(item, top=False) for item in prob.top_logprobs]
    return native


def failure_of(error: object) -> TranslationError:
    """An error event inside a reply: the engine's own sentence and status."""
    status = error.get("code") if isinstance(error, dict) else None
    return TranslationError(
        upstream_message(_encode({"error": error})),
        status=status if isinstance(status, int) and 400 <= status <= 599 else 500,
    )
