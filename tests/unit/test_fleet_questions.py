"""Passphrases: asked one at a time, never shown, answered or withdrawn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from olol_tui.errors import OlolError
from olol_tui.fleet.commands import GivePassphrase
from olol_tui.fleet.questions import Questions


async def test_questions_come_one_after_the_other() -> None:
    changes: list[int] = []
    questions = Questions(lambda: changes.append(1))
    first = asyncio.create_task(questions.ask(Path("/k1"), ""))
    second = asyncio.create_task(questions.ask(Path("/k2"), "That one does not open it."))
    await asyncio.sleep(0)
    assert questions.open is not None and questions.open.path == "/k1"
    with pytest.raises(OlolError, match="/k2"):
        questions.answer("/k2", "x")
    questions.answer("/k1", "secret")
    assert await first == "secret"
    await asyncio.sleep(0)
    assert questions.open is not None and questions.open.complaint
    questions.answer("/k2", None)
    assert await second is None
    assert questions.open is None and len(changes) == 4


async def test_a_connection_that_is_given_up_withdraws_its_question() -> None:
    questions = Questions(lambda: None)
    asking = asyncio.create_task(questions.ask(Path("/k1"), ""))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert questions.open is None


def test_a_passphrase_is_not_written_into_the_log() -> None:
    assert "secret" not in repr(GivePassphrase("/k1", "secret"))
