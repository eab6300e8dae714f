"""What the gateway reads of a request body: the fields it routes by, nothing else.

Prompts and images stay unparsed slices of the body, which goes to the engine as it came.
"""

from __future__ import annotations

import msgspec

_EMPTY = (b"", b"null", b'""', b"[]")


class BadBody(Exception):
    """The body cannot be used. `message` is the sentence for the client, always status 400."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RouteBody(msgspec.Struct):
    """Of any inference request, in any dialect."""

    model: str = ""
    name: str = ""
    """Older clients' spelling of `model`."""
    stream: bool | None = None
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    images: msgspec.Raw = msgspec.Raw()
    keep_alive: msgspec.Raw = msgspec.Raw()
    options: msgspec.Raw = msgspec.Raw()
    format: msgspec.Raw = msgspec.Raw()

    @property
    def has_prompt(self) -> bool:
        return _says_something(self.prompt)

    @property
    def conversation(self) -> msgspec.Raw:
        """What the next round of it begins with."""
        return self.messages or self.prompt or self.input

    @property
    def has_messages(self) -> bool:
        return _says_something(self.messages)

    @property
    def has_input(self) -> bool:
        return _says_something(self.input)

    @property
    def wishes(self) -> Wishes:
        """What its options say to the router.

        Raises:
            BadBody: something that makes no sense.
        """
        options = bytes(self.options)
        # `in` would take two times as long: it makes an error of the type first.
        if options.find(b"num_ctx") < 0 and options.find(b"distributed") < 0:
            return _NO_WISHES
        try:
            return _OPTIONS.decode(options)
        except msgspec.ValidationError as error:
            raise BadBody(f"invalid options: {error}") from error

    def check_options(self) -> None:
        """Options must be an object, as Ollama insists."""
        options = bytes(self.options)
        if not options or options[0] == 123:  # {
            return
        options = options.strip()
        if options and options != b"null" and not options.startswith(b"{"):
            raise BadBody("invalid options: expected an object")

    def check_format(self) -> None:
        """A schema or a known word. An engine says so with a 500, which would be counted against
        it, and the request would be tried on the others."""
        if not self.format:
            return
        text = bytes(memoryview(self.format)[:64]).strip()
        if not text.startswith(b"{") and text not in (b"null", b'""', b'"json"'):
            shown = msgspec.json.encode(text.decode("utf-8", "replace")).decode()
            raise BadBody(f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


class Wishes(msgspec.Struct, frozen=True):
    """Those of the options that routing goes by."""

    num_ctx: int | None = None
    distributed: bool | None = None
    """Whether the client wants a split of the model, or none; OLOL's option."""


_NO_WISHES = Wishes()


def _says_something(raw: msgspec.Raw) -> bool:
    # A long one is not copied only to see whether it is empty.
    return memoryview(raw).nbytes > 64 or bytes(raw).strip() not in _EMPTY


class Timings(msgspec.Struct):
    """Of the last object of a native reply; nanoseconds. OpenAI's `usage` beside it."""

    done: bool = False
    error: msgspec.Raw = msgspec.Raw()
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    usage: _Usage | None = None


class _Usage(msgspec.Struct):
    """OpenAI's counts, or those that Anthropic's and the responses' dialects call otherwise."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    """Of the prompt, not contained in `input_tokens`."""

    @property
    def prompt(self) -> int | None:
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        if self.input_tokens is None:
            return None
        return self.input_tokens + (self.cache_read_input_tokens or 0)

    @property
    def reply(self) -> int | None:
        return self.output_tokens if self.completion_tokens is None else self.completion_tokens


class _Failure(msgspec.Struct):
    message: str = ""


class _Holder(msgspec.Struct):
    usage: _Usage | None = None
    error: _Failure | None = None


class _Event(_Holder):
    """One event of a stream: the counts are in it, or in the object that it is about."""

    message: _Holder | None = None
    response: _Holder | None = None


_ROUTE = msgspec.json.Decoder(RouteBody)
_OPTIONS = msgspec.json.Decoder(Wishes)
_TIMINGS = msgspec.json.Decoder(Timings)
_EVENT = msgspec.json.Decoder(_Event)


def read(body: bytes) -> RouteBody:
    """The routing fields.

    Raises:
        BadBody: empty, not JSON, a wrong type, or no model.
    """
    try:
        found = _ROUTE.decode(body)
    except msgspec.ValidationError as error:
        raise BadBody(f"invalid request: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not body.strip():
            raise BadBody("missing request body") from None
        raise BadBody(f"invalid JSON: {error}") from error
    if not found.model:
        found.model = found.name
    if not found.model.strip():
        raise BadBody("model is required")
    found.check_options()
    return found


def event_usage(payload: bytes) -> _Usage | None:
    """The counts in an event's data, None when it has none."""
    event = _event(payload)
    if event is None:
        return None
    held = event.message or event.response
    return event.usage or (held.usage if held is not None else None)


def event_error(line: bytes) -> str:
    """The sentence of an event that reports a failure; empty when it is none."""
    event = _event(line.strip().removeprefix(b"data:"))
    if event is None:
        return ""
    error = event.error or (event.response.error if event.response is not None else None)
    return error.message if error is not None else ""


def _event(payload: bytes) -> _Event | None:
    try:
        return _EVENT.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def timings(line: bytes) -> Timings | None:
    """Counts and durations of a reply's last object, None when it is not one."""
    try:
        return _TIMINGS.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
