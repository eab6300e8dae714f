"""What several modules share because it takes long to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.client_service import KINDS, Service, serving


@pytest.fixture(scope="session", params=KINDS)
def client_service(request: pytest.FixtureRequest, runtime_dir: str) -> Iterator[Service]:
    """A gateway over each kind of engine, for the tests that official clients make."""
    with serving(request.param) as service:
        yield service
