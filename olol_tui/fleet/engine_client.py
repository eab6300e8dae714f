"""Talks to one engine that speaks Ollama's API: load, unload, what is resident, what it has.

Control calls only; client requests go through the gateway. The transport comes from the
node's road, so that an engine behind SSH is reached the same way.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeVar

import httpx
import msgspec

from olol_tui.errors import EngineError
from olol_tui.fleet.snapshot import Loaded, Model

CALL_TIMEOUT_S = 5.0
DEFAULT_KEEP_ALIVE_S = 300.0
"""Ollama's own default."""
FOREVER_S = -1.0
_NEVER = timedelta(days=3650)
"""Ollama writes "never" as a date centuries ahead."""

_T = TypeVar("_T")


class EngineUnreachable(EngineError):
    title = "The engine does not answer"


class _Details(msgspec.Struct, frozen=True):
    format: str | None = None
    family: str | None = None
    families: list[str] | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None


class _Resident(msgspec.Struct, frozen=True):
    name: str
    digest: str = ""
    size: int = 0
    size_vram: int = 0
    context_length: int | None = None
    expires_at: str = ""


class _Ps(msgspec.Struct, frozen=True):
    models: list[_Resident] | None = None


class _Tag(msgspec.Struct, frozen=True):
    name: str
    digest: str = ""
    size: int = 0
    modified_at: str = ""
    details: _Details = msgspec.field(default_factory=_Details)
    capabilities: list[str] | None = None
    remote_host: str | None = None


class _Tags(msgspec.Struct, frozen=True):
    models: list[_Tag] | None = None


class _Version(msgspec.Struct, frozen=True):
    version: str = ""


class _Fault(msgspec.Struct, frozen=True):
    error: str = ""


class EngineClient:
    """One engine at `base_url`; an async context manager that closes its transport.

    Raises, from every method:
        EngineUnreachable: no answer.
        EngineError: the engine refused, in its own words.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, base_url: str, name: str) -> None:
        self._name = name
        self._http = httpx.AsyncClient(
            transport=transport, base_url=base_url, timeout=CALL_TIMEOUT_S, trust_env=False
        )

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def version(self) -> str:
        return (await self._call("GET", "/api/version", _Version)).version

    async def tags(self) -> tuple[Model, ...]:
        """The models of its store, without those that it would pass on to a cloud."""
        reply = await self._call("GET", "/api/tags", _Tags)
        return tuple(_model(tag) for tag in reply.models or () if not tag.remote_host)

    async def ps(self) -> tuple[Loaded, ...]:
        """The resident models."""
        reply = await self._call("GET", "/api/ps", _Ps)
        now = datetime.now(UTC)
        return tuple(
            Loaded(
                name=one.name,
                digest=_digest(one.digest),
                size_bytes=one.size,
                vram_bytes=one.size_vram,
                context_length=one.context_length,
                expires_at="" if _is_never(one.expires_at, now) else one.expires_at,
            )
            for one in reply.models or ()
        )

    async def load(
        self,
        model: Model,
        *,
        keep_alive_s: float | None,
        num_ctx: int | None,
        timeout_s: float,
    ) -> None:
        """Make a model resident, or renew the keep-alive of one that is. Returns when it is.

        Args:
            keep_alive_s: None leaves the engine's default, negative is forever.
        """
        body: dict[str, object] = {"model": model.name, "stream": False}
        if keep_alive_s is not None:
            body["keep_alive"] = _seconds(keep_alive_s)
        if num_ctx is not None:
            body["options"] = {"num_ctx": num_ctx}
        # Embedding models refuse /api/generate; an empty input loads and embeds nothing.
        path = "/api/generate"
        if "completion" not in model.capabilities and "embedding" in model.capabilities:
            path, body["input"] = "/api/embed", []
        await self._call("POST", path, dict, body=body, timeout_s=timeout_s)

    async def unload(self, name: str) -> None:
        """Ask it to drop a model; it does so when the last request on it has ended."""
        body = {"model": name, "keep_alive": 0, "stream": False}
        await self._call("POST", "/api/generate", dict, body=body)

    async def _call(
        self,
        method: str,
        path: str,
        reply: type[_T],
        *,
        body: object = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> _T:
        timeout = httpx.Timeout(timeout_s, connect=CALL_TIMEOUT_S)
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if content is not None else {}
        try:
            response = await self._http.request(
                method, path, content=content, headers=headers, timeout=timeout
            )
        except httpx.HTTPError as error:
            detail = str(error) or type(error).__name__
            raise EngineUnreachable(f"{self._name} does not answer: {detail}") from error
        if response.is_error:
            raise EngineError(f"{self._name} answered {response.status_code}: {_fault(response)}")
        try:
            return msgspec.json.decode(response.content, type=reply)
        except msgspec.MsgspecError as error:
            raise EngineError(
                f"{self._name} answered {path} with something that no Ollama says: {error}"
            ) from error


def _fault(response: httpx.Response) -> str:
    try:
        said = msgspec.json.decode(response.content, type=_Fault).error
    except msgspec.MsgspecError:
        said = ""
    return said or response.text.strip()[:200] or response.reason_phrase


def _model(tag: _Tag) -> Model:
    details = tag.details
    return Model(
        name=tag.name,
        digest=_digest(tag.digest),
        size_bytes=tag.size,
        modified_at=tag.modified_at,
        format=details.format or "gguf",
        family=details.family or "",
        families=tuple(details.families or ()),
        parameter_size=details.parameter_size or "",
        quantization=details.quantization_level or "",
        capabilities=tuple(tag.capabilities) if tag.capabilities else _capabilities(tag),
    )


def _digest(told: str) -> str:
    """Ollama leaves the algorithm out of its lists."""
    return told if not told or ":" in told else f"sha256:{told}"


def _capabilities(tag: _Tag) -> tuple[str, ...]:
    """Older servers list none. BERT families only embed."""
    family = (tag.details.family or "").lower()
    return ("embedding",) if "bert" in family else ("completion",)


def _is_never(expires_at: str, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(expires_at) - now > _NEVER
    except (ValueError, TypeError):
        # Nothing, or a year that Python cannot read: only "never" looks like that.
        return True


def _seconds(keep_alive_s: float) -> int | float:
    """As Ollama takes it in JSON: a number of seconds, whole where it is."""
    return int(keep_alive_s) if keep_alive_s == int(keep_alive_s) else keep_alive_s
