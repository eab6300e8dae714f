"""pytest fixtures; a conftest imports those it wants.

Where this machine cannot host a lab, a test that asks for one is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab


@pytest.fixture(scope="session")
def lab_machine() -> None:
    """For tests that make labs of their own: skips where there can be none."""
    if reason := Lab.available():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def module_lab(lab_machine: None) -> Iterator[Lab]:
    """Three hosts for all tests of a module, in the state in which the last test left them."""
    with Lab(3) as lab:
        yield lab


@pytest.fixture
def lab(module_lab: Lab) -> Iterator[Lab]:
    """Three hosts without a fault; files on their disks outlive the test."""
    yield module_lab
    module_lab.mend()
