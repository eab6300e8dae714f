"""For all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="session", autouse=True)
def runtime_dir() -> Iterator[str]:
    """Sockets lie in a directory of this run: short enough for them, and gone afterwards."""
    path = tempfile.mkdtemp(prefix="olol-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", path)
        yield path
    shutil.rmtree(path, ignore_errors=True)


# How fast a machine makes examples is no property of the code under test.
settings.register_profile("slow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow")
