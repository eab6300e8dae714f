"""What several modules share because it takes long to start."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import openai
import pytest

from tests.contract.client_service import KINDS, REPLY_S, Service, serving


@pytest.fixture(scope="session", params=KINDS)
def client_service(request: pytest.FixtureRequest, runtime_dir: str) -> Iterator[Service]:
    """A gateway over each kind of engine, for the tests that official clients make."""
    with serving(request.param) as service:
        yield service


@pytest.fixture
def service(client_service: Service) -> Service:
    return client_service


@pytest.fixture
def native(service: Service) -> Iterator[ollama.Client]:
    client = ollama.Client(host=service.url, timeout=REPLY_S)
    yield client
    client._client.close()


@pytest.fixture
def compatible(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key="any", timeout=REPLY_S, max_retries=0
    ) as client:
        yield client
