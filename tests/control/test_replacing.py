"""What keeps a program from being replaced; how it goes well is in tests/end_to_end."""

import asyncio
import os
import sys

import pytest

from gateway.control.replacing import ReplaceFailed, Replacement


def test_process_1_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ReplaceFailed, match=r"process 1 .* start a container .* SIGTERM"):
        Replacement().start([], 0)


def attempt(monkeypatch: pytest.MonkeyPatch, code: str, seconds: float = 20.0) -> str:
    """Why it failed, where the new program is this code."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", code])

    async def replace() -> None:
        replacement = Replacement()
        replacement.start([], 0)
        await replacement.serving(seconds)

    with pytest.raises(ReplaceFailed) as caught:
        asyncio.run(replace())
    return str(caught.value)


def test_one_that_ends_is_told_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ended before it served (exit code 7)" in attempt(monkeypatch, "exit(7)")


def test_one_that_does_not_come_up_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = attempt(monkeypatch, "import time; time.sleep(60)", 0.2)
    assert said == "the new program did not serve within 0.2 s"


def test_one_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot be started: No such file" in attempt(monkeypatch, "")
