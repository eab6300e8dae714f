"""Real tokens through SSH: a model that computes, in an engine on a host of the lab."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.at_hand import needs_embedded
from tests.e2e.product import Product, product
from tests.lab import Host, Lab

MODEL = "smollm2:135m"
ENGINE = "h1/embedded-cpu-smollm2-135m"
BASE, PACKAGES, ENVIRONMENT = "/opt/olol-base", "/opt/olol-packages", "/opt/olol-env"
NAME = "python3.14"
"""The name that is looked for first on a node; what counts is the version that it says."""
QUESTION = {"model": MODEL, "options": {"temperature": 0, "seed": 7, "num_predict": 24}}
LOADED_WITHIN_S = 60.0

pytestmark = [pytest.mark.embedded, needs_embedded]


def give_packages(host: Host) -> None:
    """A virtual environment on the host with what is installed for these tests."""
    library = f"{ENVIRONMENT}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    python = f"{BASE}/bin/{Path(sys.executable).resolve().name}"
    host.exec(
        f"mkdir -p {ENVIRONMENT}/bin {library} && ln -s {PACKAGES} {library}/site-packages && "
        f"ln -s {python} {ENVIRONMENT}/bin/python && "
        f"echo 'home = {BASE}/bin' > {ENVIRONMENT}/pyvenv.cfg && "
        f"printf '#!/bin/sh\\nexec {ENVIRONMENT}/bin/python \"$@\"\\n' > /usr/local/bin/{NAME} && "
        f"chmod 755 /usr/local/bin/{NAME}",
        "root",
    )


@pytest.fixture(scope="module")
def served(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    share = {BASE: sys.base_prefix, PACKAGES: sysconfig.get_path("platlib")}
    text = '[nodes.h1]\nengine = "embedded"\nnum_ctx = 512\n'
    with Lab(1, share=share) as lab:
        give_packages(lab.hosts["h1"])
        with product(lab, tmp_path_factory.mktemp("embedded"), text) as one:
            yield one


async def test_a_real_model_answers_through_ssh(served: Product) -> None:
    async with (
        served.opened(warm=False) as (ops, _),
        httpx.AsyncClient(base_url=served.url, timeout=LOADED_WITHIN_S) as http,
    ):
        fleet = await ops.until(lambda f: f.nodes[0].library)
        assert MODEL in {model.name for model in fleet.nodes[0].library}
        ask = {**QUESTION, "messages": [{"role": "user", "content": "Name three colours."}]}
        pieces, last = [], {}
        async with http.stream("POST", "/api/chat", json=ask) as reply:
            assert reply.status_code == 200, await reply.aread()
            assert reply.headers["x-olol-engine"] == ENGINE
            async for line in reply.aiter_lines():
                last = json.loads(line)
                pieces.append(last["message"]["content"])
        text = "".join(pieces)
        print(f"\n  {MODEL} on h1: {text!r}")
        assert last["done"], last
        assert 0 < last["eval_count"] <= 24
        assert len([piece for piece in pieces if piece]) > 1, "token by token"
        assert any(colour in text.lower() for colour in ("red", "blue", "green")), text

        # The same engine, asked in another dialect.
        openai = await http.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": ask["messages"], "max_tokens": 24},
        )
        assert openai.json()["usage"]["completion_tokens"] > 0, openai.text
        assert openai.headers["x-olol-engine"] == ENGINE

        engine = ops.fleet.nodes[0].engines[0]
        there = [p for p in served.lab.hosts["h1"].processes() if p.pid == engine.pid]
        assert len(there) == 1, "it computes on the host"
        assert " embedded --model " in there[0].command
