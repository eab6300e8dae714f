"""Anthropic's messages, OpenAI's responses and sounds through the gateway, by official clients.

Over the simulated engine, which answers as Ollama does, and over llama.cpp where it is there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from olol_tui.config import GatewayConfig
from olol_tui.fleet.snapshot import Fleet, Node
from olol_tui.gateway.gateway import Gateway
from olol_tui.gateway.keys import Key, KeyStore
from tests.contract.gateway_rig import HandFleet, engine_node, eventually, gateway_over
from tests.contract.runner_process import MODEL as REAL
from tests.contract.runner_process import runner
from tests.contract.sim_process import SimEngine, sim_engine

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SIMULATED = "qwen3:8b"
FAST = {"load_bytes_s": 1e12, "decode_tps": 400.0, "prefill_tps": 1e6, "reply_tokens": 12}
FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris"]}},
        "required": ["city"],
    },
}


@dataclass
class Service:
    gateway: Gateway
    fleet: HandFleet
    http: httpx.AsyncClient
    anthropic: anthropic.AsyncAnthropic
    openai: openai.AsyncOpenAI
    model: str

    @property
    def real(self) -> bool:
        return self.model == REAL


KINDS: list[Any] = [
    "simulated",
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("llama-server", marks=pytest.mark.llama_server),
]


async def serve(node: Node, model: str) -> AsyncIterator[Service]:
    async with (
        gateway_over(node) as (gateway, fleet, http),
        anthropic.AsyncAnthropic(base_url=gateway.address, api_key="any", max_retries=0) as one,
        openai.AsyncOpenAI(base_url=f"{gateway.address}/v1", api_key="any", max_retries=0) as other,
    ):
        http.timeout = httpx.Timeout(90)
        yield Service(gateway, fleet, http, one, other, model)


@pytest.fixture(scope="module", params=KINDS)
def real_node(request: pytest.FixtureRequest) -> Iterator[Node | None]:
    """A node with a real engine, None for the simulated one, which each test gets anew."""
    if request.param == "simulated":
        yield None
    else:
        with runner(request.param) as node:
            yield node


@pytest.fixture
async def service(real_node: Node | None) -> AsyncIterator[Service]:
    if real_node is not None:
        async for service in serve(real_node, REAL):
            yield service
        return
    async with sim_engine(**FAST) as engine:
        await engine.load(SIMULATED)
        async for service in serve(engine_node("n1", engine.address, SIMULATED), SIMULATED):
            yield service


@pytest.fixture
async def engine() -> AsyncIterator[SimEngine]:
    async with sim_engine(**FAST) as running:
        await running.load(SIMULATED)
        yield running


@pytest.fixture
async def simulated(engine: SimEngine) -> AsyncIterator[Service]:
    async for service in serve(engine_node("n1", engine.address, SIMULATED), SIMULATED):
        yield service


def ask(service: Service, **more: Any) -> dict[str, Any]:
    return {
        "model": service.model,
        "max_tokens": 16,
        "messages": FRANCE,
        "extra_body": {"temperature": 0},
        **more,
    }


# -- Anthropic


async def test_anthropic_messages_streaming_and_not(service: Service) -> None:
    whole = await service.anthropic.messages.create(**ask(service))
    assert whole.model == service.model and whole.role == "assistant"
    assert whole.usage.input_tokens and whole.usage.output_tokens
    assert whole._request_id and whole._request_id.startswith("r")
    async with service.anthropic.messages.stream(**ask(service)) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    block, streamed = whole.content[0], final.content[0]
    assert block.type == streamed.type == "text"
    if service.real:
        assert block.text == streamed.text == "The capital of France is Paris."
    assert final.stop_reason in ("end_turn", "max_tokens")
    service.fleet.publish()
    records = service.fleet.fleet.requests
    assert [r.dialect for r in records] == ["anthropic", "anthropic"]
    # The counts are the engine's own, also those of a stream.
    for record in records:
        assert record.state == "done" and record.tokens == whole.usage.output_tokens
        assert record.prompt_tokens == records[0].prompt_tokens > 5


def called_before(city: str) -> list[dict[str, Any]]:
    block = {"type": "tool_use", "id": f"t{city}", "name": "get_weather", "input": {"city": city}}
    return [
        {"role": "user", "content": f"Weather in {city}?"},
        {"role": "assistant", "content": [block]},
    ]


async def test_anthropic_tool_use(service: Service) -> None:
    """A small model calls a tool once it has seen itself do so."""
    before = [turn for city in ("Rome", "Oslo", "Berlin") for turn in called_before(city)]
    messages = [*before, {"role": "user", "content": "Weather in Paris?"}]
    asked = ask(service, messages=messages, tools=[WEATHER], max_tokens=64)
    if not service.real:
        asked["tool_choice"] = {"type": "any"}
    reply = await service.anthropic.messages.create(**asked)
    (called,) = [block for block in reply.content if block.type == "tool_use"]
    assert (called.name, called.input) == ("get_weather", {"city": "Paris"})
    assert reply.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": called.id, "content": "11 C"}
    messages += [
        {
            "role": "assistant",
            "content": [called.model_dump(include={"type", "id", "name", "input"})],
        },
        {"role": "user", "content": [result]},
    ]
    after = await service.anthropic.messages.create(
        **ask(service, messages=messages, tools=[WEATHER])
    )
    assert after.usage.output_tokens


async def test_anthropic_tool_use_in_events(simulated: Service) -> None:
    asked = ask(simulated, tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"})
    async with simulated.anthropic.messages.stream(**asked | {"max_tokens": 64}) as stream:
        final = await stream.get_final_message()
    (block,) = final.content
    assert block.type == "tool_use" and block.input == {"city": "Paris"}


async def test_anthropic_thinking(simulated: Service) -> None:
    asked = ask(simulated, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2048)
    del asked["extra_body"]
    reply = await simulated.anthropic.messages.create(**asked)
    assert [block.type for block in reply.content] == ["thinking", "text"]


async def test_anthropic_counts_tokens_before_it_asks(service: Service) -> None:
    count = await service.anthropic.messages.count_tokens(model=service.model, messages=FRANCE)
    assert count.input_tokens > 3
    raw = await service.http.post(
        "/v1/messages/count_tokens", json={"model": service.model, "messages": FRANCE}
    )
    assert raw.headers.get("x-olol-estimated") == (None if service.real else "1")
    if service.real:
        reply = await service.anthropic.messages.create(**ask(service))
        cached = reply.usage.cache_read_input_tokens or 0
        assert reply.usage.input_tokens + cached == count.input_tokens
    assert service.gateway.queue.running == 0
    with pytest.raises(anthropic.NotFoundError):
        await service.anthropic.messages.count_tokens(model="none", messages=FRANCE)


async def test_anthropic_errors(service: Service) -> None:
    client = service.anthropic
    with pytest.raises(anthropic.NotFoundError) as missing:
        await client.messages.create(**ask(service, model="no-such-model"))
    assert missing.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "model 'no-such-model' not found"},
    }
    with pytest.raises(anthropic.BadRequestError, match="messages is required"):
        await client.messages.create(**ask(service, messages=[]))
    with pytest.raises(anthropic.BadRequestError, match="must be positive"):
        await client.messages.create(**ask(service, max_tokens=0))
    with pytest.raises(anthropic.PermissionDeniedError, match="cloud"):
        await client.messages.create(**ask(service, model="gpt-oss:120b-cloud"))
    odd = f'{{"model":"{service.model}","max_tokens":"1"}}'.encode()
    for body in (b"", b"[]", b"{", b'{"model":5}', odd):
        reply = await service.http.post("/v1/messages", content=body)
        error = reply.json()
        assert (reply.status_code, error["type"]) == (400, "error")
        assert error["error"]["type"] == "invalid_request_error"
    wrong = await service.http.get("/v1/messages")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["type"] == "error"


async def test_a_full_queue_is_overloaded_in_anthropics_words(engine: SimEngine) -> None:
    node = engine_node("n1", engine.address, SIMULATED)
    await engine.fault(fault="slow", factor=1000)
    async with gateway_over(node, max_queue=1) as (gateway, _, http):
        long = {"model": SIMULATED, "prompt": "a"}
        running = asyncio.create_task(http.post("/api/generate", json=long))
        await eventually(lambda: gateway.queue.running == 1)
        waiting = asyncio.create_task(http.post("/api/generate", json=long))
        await eventually(lambda: gateway.queue.queued == 1)
        async with anthropic.AsyncAnthropic(
            base_url=gateway.address, api_key="any", max_retries=0
        ) as client:
            with pytest.raises(anthropic.InternalServerError) as busy:
                await client.messages.create(model=SIMULATED, max_tokens=5, messages=FRANCE)
        assert busy.value.status_code == 503
        assert busy.value.response.headers["retry-after"] == "5"
        body: Any = busy.value.body
        assert body["error"]["type"] == "overloaded_error"
        running.cancel()
        waiting.cancel()


async def test_an_engine_that_dies_is_an_error_event_and_never_message_stop() -> None:
    async with sim_engine(**FAST | {"decode_tps": 20.0, "reply_tokens": 500}) as engine:
        await engine.load(SIMULATED)
        async for service in serve(engine_node("n1", engine.address, SIMULATED), SIMULATED):
            seen: list[str] = []
            with pytest.raises(anthropic.APIError, match="upstream lost"):
                async with service.anthropic.messages.stream(
                    **ask(service, max_tokens=500)
                ) as stream:
                    async for event in stream:
                        seen.append(event.type)
                        if len(seen) == 4:
                            engine.process.kill()
            assert "message_stop" not in seen
            service.fleet.publish()
            assert service.fleet.fleet.requests[-1].state == "failed"


async def test_an_error_event_of_the_engine_itself_reaches_the_client(
    engine: SimEngine, simulated: Service
) -> None:
    await engine.fault(fault="500", after_tokens=3, count=1)
    with pytest.raises(anthropic.APIError, match="unexpectedly stopped"):
        async with simulated.anthropic.messages.stream(**ask(simulated)) as stream:
            async for _ in stream:
                pass
    simulated.fleet.publish()
    record = simulated.fleet.fleet.requests[-1]
    assert record.state == "failed" and "unexpectedly stopped" in record.error


async def test_a_lost_engine_is_replaced_before_the_first_event(engine: SimEngine) -> None:
    async with sim_engine(**FAST) as bad:
        await bad.load(SIMULATED)
        await bad.fault(fault="500", count=None)
        nodes = [
            engine_node("a", bad.address, SIMULATED),
            engine_node("b", engine.address, SIMULATED),
        ]
        async with gateway_over(*nodes) as (gateway, _, http):
            body = {"model": SIMULATED, "max_tokens": 5, "messages": FRANCE, "stream": True}
            for _ in range(4):
                reply = await http.post("/v1/messages", json=body)
                assert reply.text.rstrip().endswith('data: {"type":"message_stop"}')
            assert gateway.ledger.errors == 0


async def test_an_engine_that_knows_no_messages_is_named_or_avoided(engine: SimEngine) -> None:
    """An Ollama before 0.14 answers 404 to the path: that is not a missing model."""

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n"
            b"Connection: close\r\n\r\n404 page not found"
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(old, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ancient = engine_node("a", f"127.0.0.1:{port}", SIMULATED)
    body = {"model": SIMULATED, "max_tokens": 5, "messages": FRANCE}
    async with server:
        async with gateway_over(ancient) as (_, _, http):
            reply = await http.post("/v1/messages", json=body)
            assert reply.status_code == 501
            assert "a/gpu0" in reply.json()["error"]["message"]
        async with gateway_over(ancient, engine_node("b", engine.address, SIMULATED)) as (
            _,
            _,
            http,
        ):
            for _ in range(3):
                assert (await http.post("/v1/messages", json=body)).status_code == 200


# -- OpenAI's responses


async def test_openai_responses_streaming_and_not(service: Service) -> None:
    asked: dict[str, Any] = {
        "model": service.model,
        "input": "What is the capital of France?",
        "temperature": 0,
        "max_output_tokens": 16,
    }
    whole = await service.openai.responses.create(**asked)
    assert whole.output_text and whole.usage and whole.usage.output_tokens
    text, kinds = "", []
    async for event in await service.openai.responses.create(**asked, stream=True):
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert text == whole.output_text
    if service.real:
        assert text == "The capital of France is Paris."
    service.fleet.publish()
    for record in service.fleet.fleet.requests:
        assert (record.state, record.tokens) == ("done", whole.usage.output_tokens)
        assert record.prompt_tokens == whole.usage.input_tokens


@pytest.mark.parametrize("big", [False, True])
async def test_a_zstd_body_is_read(simulated: Service, big: bool) -> None:
    said = "".join(f"{at} is a number. " for at in range(400_000 if big else 1))
    body = json.dumps({"model": SIMULATED, "input": said or "a", "max_output_tokens": 3}).encode()
    packed = zstd.compress(body)
    assert (len(packed) > 65536) == big
    reply = await simulated.http.post(
        "/v1/responses", content=packed, headers={"Content-Encoding": "zstd"}
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["output_tokens"] == (1 if big else 3)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("zstd", b"not zstd at all", 400),
        ("zstd", zstd.compress(b'{"model":"a","input":"b"}')[:-3], 400),
        ("zstd", zstd.compress(b'{"model":"a","input":"b"}') + b"more", 400),
        ("zstd", zstd.compress(b"0" * 5000), 413),
        ("gzip", b"x", 415),
        ("identity", b"{}", 400),
    ],
)
async def test_compressed_bodies_that_are_refused(encoding: str, body: bytes, status: int) -> None:
    async with gateway_over(max_body_bytes=4096) as (_, _, http):
        reply = await http.post(
            "/v1/responses", content=body, headers={"Content-Encoding": encoding}
        )
        assert reply.status_code == status
        assert reply.json()["error"]["message"]


async def test_openai_responses_errors(simulated: Service) -> None:
    with pytest.raises(openai.NotFoundError):
        await simulated.openai.responses.create(model="none", input="a")
    with pytest.raises(openai.BadRequestError, match="input is required"):
        await simulated.openai.responses.create(model=SIMULATED, input="")
    reply = await simulated.http.post("/v1/responses", json={"model": SIMULATED, "input": 5})
    assert reply.json()["error"]["message"] == "input must be a string or array, not number"


async def test_a_cut_response_is_never_a_clean_end(engine: SimEngine, simulated: Service) -> None:
    await engine.fault(fault="cut", after_tokens=3, count=1)
    with pytest.raises(openai.APIError, match="upstream lost"):
        async for event in await simulated.openai.responses.create(
            model=SIMULATED, input="a", stream=True
        ):
            assert event.type != "response.completed"
    await engine.fault(fault="500", after_tokens=3, count=1)
    last = ""
    with pytest.raises(openai.APIConnectionError):
        # The engine told its error, and the connection still breaks after it.
        async for event in await simulated.openai.responses.create(
            model=SIMULATED, input="a", stream=True
        ):
            last = event.type
    assert last == "response.failed"
    simulated.fleet.publish()
    assert "unexpectedly stopped" in simulated.fleet.fleet.requests[-1].error


async def test_a_response_that_reached_its_limit_is_complete(simulated: Service) -> None:
    stream = await simulated.openai.responses.create(
        model=SIMULATED, input="a", stream=True, max_output_tokens=2
    )
    seen = [event.type async for event in stream]
    assert seen[-1] == "response.incomplete"
    simulated.fleet.publish()
    assert simulated.fleet.fleet.requests[-1].state == "done"


# -- sounds


async def test_a_sound_is_transcribed_by_the_model_its_form_names(simulated: Service) -> None:
    sound = ("a.wav", b"RIFF" + bytes(200_000), "audio/wav")
    said = await simulated.openai.audio.transcriptions.create(model=SIMULATED, file=sound)
    assert "200004 bytes of sound" in said.text
    plain = await simulated.openai.audio.transcriptions.create(
        model=SIMULATED, file=sound, response_format="text"
    )
    assert "200004 bytes of sound" in str(plain)
    with pytest.raises(openai.NotFoundError):
        await simulated.openai.audio.transcriptions.create(model="none", file=sound)


async def test_a_model_that_cannot_hear_says_so(service: Service) -> None:
    if not service.real:
        pytest.skip("the simulated engine hears everything")
    with pytest.raises(openai.InternalServerError, match="audio"):
        await service.openai.audio.transcriptions.create(
            model=service.model, file=("a.wav", b"RIFF" + bytes(500), "audio/wav")
        )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x\r\n\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nno end"),
        (
            'multipart/form-data; boundary="x"',
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nb\r\n--x--\r\n',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--x--\r\n',
        ),
    ],
)
async def test_forms_that_make_no_sense(kind: str, body: bytes) -> None:
    async with gateway_over() as (_, _, http):
        reply = await http.post(
            "/v1/audio/transcriptions", content=body, headers={"Content-Type": kind}
        )
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"


# -- pages in browsers


async def test_a_page_of_a_welcome_origin_may_ask_and_read(simulated: Service) -> None:
    origin = "http://localhost:3000"
    for path in ("/api/chat", "/v1/messages", "/api/tags", "/no/such"):
        reply = await simulated.http.options(
            path,
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type, x-api-key, anthropic-version",
            },
        )
        assert (reply.status_code, reply.content) == (204, b"")
        assert "content-length" not in reply.headers
        assert reply.headers["access-control-allow-origin"] == origin
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert "x-api-key" in reply.headers["access-control-allow-headers"]
        assert int(reply.headers["access-control-max-age"]) > 0
    body = {"model": SIMULATED, "messages": FRANCE, "options": {"num_predict": 2}}
    for sent in (body, body | {"stream": False}, body | {"model": "none"}, {}):
        reply = await simulated.http.post("/api/chat", json=sent, headers={"Origin": origin})
        assert reply.headers["access-control-allow-origin"] == origin
        assert reply.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in (await simulated.http.get("/api/tags")).headers


async def test_a_page_of_another_origin_may_not(simulated: Service) -> None:
    for origin in ("https://evil.example.com", "null", "http://localhost.evil.example.com"):
        reply = await simulated.http.options("/api/chat", headers={"Origin": origin})
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers
    bare = await simulated.http.options("/api/chat")
    assert (bare.status_code, "access-control-allow-origin" in bare.headers) == (204, False)
    injected = await simulated.http.options(
        "/api/chat",
        headers={"Origin": "app://x", "Access-Control-Request-Headers": "a; b"},
    )
    assert "access-control-allow-headers" not in injected.headers


async def test_keys_of_anthropics_clients_and_of_pages(engine: SimEngine, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    token = store.create(Key(id="", name="ann", digest="", scopes=("infer",)))
    fleet = HandFleet(Fleet(nodes=(engine_node("n1", engine.address, SIMULATED),)))
    gateway = Gateway(GatewayConfig(port=0), fleet, keys=store)
    await gateway.start()
    try:
        base: dict[str, Any] = {"base_url": gateway.address, "max_retries": 0}
        asked: dict[str, Any] = {"model": SIMULATED, "messages": FRANCE}
        async with anthropic.AsyncAnthropic(api_key=token, **base) as client:
            assert (await client.messages.create(max_tokens=4, **asked)).content
            assert (await client.messages.count_tokens(**asked)).input_tokens
        async with anthropic.AsyncAnthropic(api_key="wrong", **base) as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.create(max_tokens=4, **asked)
        async with httpx.AsyncClient(base_url=gateway.address, trust_env=False) as http:
            page = {"Origin": "http://localhost:3000"}
            refused = await http.post("/v1/messages", json=asked, headers=page)
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == page["Origin"]
            may_ask = await http.options("/v1/messages", headers=page)
            assert may_ask.status_code == 204
            stored = await http.post("/api/blobs/x", content=b"x", headers={"x-api-key": token})
            assert stored.status_code == 403
    finally:
        await gateway.close()


async def test_a_client_that_leaves_a_message_frees_its_slot(engine: SimEngine) -> None:
    node = engine_node("n1", engine.address, SIMULATED)
    async with gateway_over(node) as (gateway, _, http):
        body = {"model": SIMULATED, "max_tokens": 5000, "messages": FRANCE, "stream": True}
        await engine.fault(fault="slow", factor=50)
        async with http.stream("POST", "/v1/messages", json=body) as reply:
            async for _ in reply.aiter_lines():
                break
        await engine.until(cancelled=1, running=0)
        assert gateway.queue.running == 0


async def test_a_cordoned_node_takes_no_message(engine: SimEngine) -> None:
    node = replace(engine_node("n1", engine.address, SIMULATED), cordoned=True)
    async with gateway_over(node) as (gateway, fleet, http):
        body = {"model": SIMULATED, "max_tokens": 5, "messages": FRANCE}
        waiting = asyncio.create_task(http.post("/v1/messages", json=body))
        await eventually(lambda: gateway.queue.queued == 1)
        fleet.publish(nodes=(replace(node, cordoned=False),))
        assert (await waiting).status_code == 200
