"""Clients for the demonstration: realistic traffic through the gateway's real address.

Each client is somebody: a chat window, a coding assistant, a night batch. Their prompts and
replies have the lengths of a public trace of conversations (Azure LLM inference 2023: median
1020 prompt tokens and 129 reply tokens, log-normal), models are chosen by Zipf's law, and
the pace changes between quiet and bursts. Everything is bounded: requests at once, prompt
and reply lengths.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import httpx

from olol_tui.fleet.snapshot import Fleet, Model
from olol_tui.models.names import canonical

log = logging.getLogger("olol.demo")

MAX_AT_ONCE = 96
"""Requests in flight over all clients."""
PROMPT_TOKENS_LOG = (6.63, 0.99)
REPLY_TOKENS_LOG = (5.02, 0.86)
"""Mean and standard deviation of the logarithm, fitted to the trace."""
PROMPT_TOKENS_MAX = 3000
REPLY_TOKENS_MAX = 600
ZIPF_EXPONENT = 1.1
_WORDS = [
    "the",
    "cluster",
    "answers",
    "when",
    "every",
    "queue",
    "is",
    "visible",
    "and",
    "each",
    "card",
    "keeps",
    "one",
    "model",
    "warm",
    "so",
    "that",
    "nobody",
    "waits",
    "for",
    "a",
    "load",
    "that",
    "another",
    "machine",
    "has",
    "done",
    "already",
]
_LOOK_S = 1.0
_FITS_SHARE = 0.85
"""Of a device's memory: the rest is for the context."""

Kind = Literal["chat", "generate", "embed", "openai"]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How the demonstration behaves."""

    traffic: bool = True
    per_gpu_per_s: float = 0.35
    """Requests a second that each device is offered on average."""
    seed: int | None = None
    """Makes the traffic repeatable; None: different each time."""


@dataclass(frozen=True, slots=True)
class Persona:
    """One kind of client."""

    name: str
    share: float
    """Of all requests."""
    kinds: tuple[tuple[Kind, float], ...]
    """Kinds of request with their weights."""
    stream: float = 1.0
    """Share of its requests that stream."""
    impatient: float = 0.0
    """Share of its requests that it leaves before the end."""
    rank_shift: int = 0
    """Rotates the popularity of models, so that not all like the same."""


PERSONAS = (
    Persona("chat-ui", 0.40, (("chat", 1.0),), impatient=0.04),
    Persona("ide-agent", 0.25, (("openai", 0.8), ("generate", 0.2)), impatient=0.08, rank_shift=1),
    Persona("rag-search", 0.20, (("embed", 0.7), ("chat", 0.3)), rank_shift=2),
    Persona("nightly-batch", 0.10, (("generate", 1.0),), stream=0.0, rank_shift=3),
    Persona("slack-bot", 0.05, (("chat", 1.0),), stream=0.5),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as it will be sent."""

    path: str
    body: dict[str, Any]
    leaves_after_s: float | None = None


@dataclass(slots=True)
class Tide:
    """The pace: quiet and busy hours in minutes, and bursts of a few seconds.

    Pure: the caller says how much time went by.
    """

    chance: random.Random
    phase_s: float = 0.0
    burst_left_s: float = 0.0
    until_burst_s: float = field(default=8.0)

    PERIOD_S = 90.0

    def factor(self, elapsed_s: float) -> float:
        """Offered load now, as a multiple of the average."""
        self.phase_s += elapsed_s
        if self.burst_left_s > 0:
            self.burst_left_s -= elapsed_s
        else:
            self.until_burst_s -= elapsed_s
            if self.until_burst_s <= 0:
                self.burst_left_s = self.chance.uniform(3, 8)
                self.until_burst_s = self.chance.expovariate(1 / 30)
        slow = 1 + 0.6 * math.sin(2 * math.pi * self.phase_s / self.PERIOD_S)
        return slow * (2.5 if self.burst_left_s > 0 else 1.0)


def zipf_weights(count: int, shift: int = 0, exponent: float = ZIPF_EXPONENT) -> list[float]:
    """Popularity of `count` models: the first is asked for most, `shift` makes another first."""
    return [1 / ((rank - shift) % count + 1) ** exponent for rank in range(count)]


def compose(
    persona: Persona, models: Sequence[Model], chance: random.Random, number: int
) -> Ask | None:
    """One request of a client; None when the fleet has no model for what it wanted.

    Args:
        models: the catalogue, most popular first.
        number: written into the prompt, so that no two prompts are alike.
    """
    kinds, weights = zip(*persona.kinds, strict=True)
    kind: Kind = chance.choices(kinds, weights)[0]
    wanted = "embedding" if kind == "embed" else "completion"
    able = [model for model in models if wanted in model.capabilities]
    if not able:
        return None
    model = chance.choices(able, zipf_weights(len(able), persona.rank_shift))[0]
    prompt = _prompt(_tokens(chance, PROMPT_TOKENS_LOG, PROMPT_TOKENS_MAX), number)
    reply = _tokens(chance, REPLY_TOKENS_LOG, REPLY_TOKENS_MAX)
    stream = chance.random() < persona.stream
    leaves = chance.uniform(0.5, 4.0) if chance.random() < persona.impatient else None
    options = {"num_predict": reply}
    messages = [{"role": "user", "content": prompt}]
    name = canonical(model.name)
    if kind == "embed":
        return Ask("/api/embed", {"model": name, "input": prompt[:2000]})
    if kind == "generate":
        body = {"model": name, "prompt": prompt, "stream": stream, "options": options}
        return Ask("/api/generate", body, leaves)
    if kind == "openai":
        body = {"model": name, "messages": messages, "stream": stream, "max_tokens": reply}
        return Ask("/v1/chat/completions", body, leaves)
    body = {"model": name, "messages": messages, "stream": stream, "options": options}
    return Ask("/api/chat", body, leaves)


class HasFleet(Protocol):
    @property
    def fleet(self) -> Fleet: ...


class Traffic:
    """Sends the requests while open; an async context manager that ends with all its tasks.

    Args:
        address: the gateway's URL.
        fleet: tells what models there are and how many devices want work.
    """

    def __init__(self, address: str, options: DemoOptions, fleet: HasFleet) -> None:
        self._address = address
        self._options = options
        self._fleet = fleet
        self._chance = random.Random(options.seed)
        self._tide = Tide(self._chance)
        self._numbers = itertools.count(1)
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Traffic:
        async with AsyncExitStack() as stack:
            for index, persona in enumerate(PERSONAS):
                client = await stack.enter_async_context(self._client(persona, index))
                self._clients[persona.name] = client
            self._stack = stack.pop_all()
        self._task = asyncio.create_task(self._run(), name="demo traffic")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End the clients and what they asked for; a second call does nothing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._stack.aclose()

    def _client(self, persona: Persona, index: int) -> httpx.AsyncClient:
        """Every client has an address of its own where loopback is a whole network."""
        local = f"127.0.0.{11 + index}" if self._own_addresses() else None
        return httpx.AsyncClient(
            base_url=self._address,
            transport=httpx.AsyncHTTPTransport(
                local_address=local, limits=httpx.Limits(max_connections=MAX_AT_ONCE)
            ),
            timeout=httpx.Timeout(5.0, read=None),
            headers={"user-agent": f"{persona.name} (olol-tui demo)"},
        )

    def _own_addresses(self) -> bool:
        return sys.platform == "linux" and httpx.URL(self._address).host == "127.0.0.1"

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                models = self._catalogue()
                pause_s = self._pause_s()
                if not models:
                    await asyncio.sleep(_LOOK_S)
                    continue
                await asyncio.sleep(pause_s)
                persona = self._chance.choices(PERSONAS, [p.share for p in PERSONAS])[0]
                ask = compose(persona, models, self._chance, next(self._numbers))
                # Full: this request is not sent. Waiting would send them all at once later.
                if ask is not None and not self._room.locked():
                    await self._room.acquire()
                    tasks.create_task(self._send(persona, ask))

    def _catalogue(self) -> list[Model]:
        """The models that fit a device, the smaller the more popular, as in life."""
        nodes = self._fleet.fleet.nodes
        largest = max((d.vram_bytes or 0 for n in nodes for d in n.devices), default=0)
        models = {
            canonical(model.name): model
            for node in nodes
            for model in node.library
            if model.size_bytes < largest * _FITS_SHARE
        }
        return sorted(models.values(), key=lambda model: (model.size_bytes, model.name))

    def _pause_s(self) -> float:
        devices = sum(len(node.devices) for node in self._fleet.fleet.nodes) or 1
        mean_s = 1 / (self._options.per_gpu_per_s * devices)
        gap_s = self._chance.expovariate(1 / mean_s)
        return min(10.0, gap_s / self._tide.factor(gap_s))

    async def _send(self, persona: Persona, ask: Ask) -> None:
        try:
            async with asyncio.timeout(ask.leaves_after_s):
                client = self._clients[persona.name]
                async with client.stream("POST", ask.path, json=ask.body) as response:
                    async for _ in response.aiter_raw():
                        pass
        except TimeoutError:
            pass  # It lost patience; leaving is what it was to do.
        except httpx.HTTPError as error:
            log.debug("%s: %s: %r", persona.name, ask.path, error)
        finally:
            self._room.release()


def _tokens(chance: random.Random, log_normal: tuple[float, float], most: int) -> int:
    return max(1, min(most, int(chance.lognormvariate(*log_normal))))


def _prompt(tokens: int, number: int) -> str:
    """About `tokens` tokens of text; the number first, so that no prefix is shared."""
    words = itertools.islice(itertools.cycle(_WORDS), max(1, int(tokens * 0.75)))
    return f"[{number}] {' '.join(words)}"
