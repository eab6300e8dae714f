"""Calls to the agent, and which function answers which."""

from __future__ import annotations

import json
import re
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Union
from urllib.parse import parse_qs, unquote

from .errors import BadRequest, MethodNotAllowed, NotFound


class Request:
    """One call, decoded."""

    def __init__(
        self, method: str, target: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        path, _, query = target.partition("?")
        self.method = method
        self.target = target
        self.headers = headers or {}
        """By lower-case name."""
        self.path = path
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        self._body = body

    def json(self) -> dict[str, Any]:
        """The body as an object; an empty body is an empty object.

        Raises:
            BadRequest: not JSON, or not an object.
        """
        if not self._body.strip():
            return {}
        try:
            data = json.loads(self._body)
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise BadRequest("the body must be a JSON object")
        return data

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A query parameter.

        Raises:
            BadRequest: not a number in the range.
        """
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise BadRequest(f"{name}: expected a number from {low:g} to {high:g}, got {text!r}")
        return value


Stream = AsyncIterator[Dict[str, Any]]
Answer = Union[Dict[str, Any], Stream]
Handler = Callable[..., Awaitable[Answer]]


class Router:
    """Paths to handlers. `{name}` takes one segment, still quoted: an id may hold `/`."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
        self._routes.append((method, re.compile(f"^{pattern}$"), handler))

    async def answer(self, request: Request) -> Answer:
        """Raises NotFound, MethodNotAllowed, or what the handler raises."""
        allowed = []
        for method, pattern, handler in self._routes:
            match = pattern.match(request.path)
            if match is None:
                continue
            if method == request.method:
                given = {name: unquote(value) for name, value in match.groupdict().items()}
                return await handler(request, **given)
            allowed.append(method)
        if allowed:
            raise MethodNotAllowed(f"{request.path} takes {', '.join(allowed)}")
        raise NotFound(f"there is no {request.path}")
