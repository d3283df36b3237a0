"""What is known of the program that this one has replaced."""

import os
from collections.abc import Iterator

import pytest

from gateway.control.counters import Counters
from gateway.control.predecessor import Predecessor
from gateway.control.shared import Cell, SharedMemory, Slots
from gateway.control.sockets import Told


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """In which two workers have 5 sessions."""
    made = SharedMemory(SharedMemory.create())
    for worker, sessions in enumerate((2, 3)):
        Counters(made, worker, Slots()).store(Cell.SESSIONS, sessions)
    made.cells[1] = 2
    yield made
    made.close()


def test_without_one_there_is_nothing() -> None:
    alone = Predecessor(None)
    assert (alone.process, alone.sessions) == (0, 0)
    alone.close()


def test_its_sessions_are_counted_while_it_lives(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is our parent. When it has ended its memory is given back."""
    given = os.dup(memory.fd)
    before = Predecessor(Told(os.getppid(), given))
    assert (before.process, before.sessions) == (os.getppid(), 5)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert (before.process, before.sessions) == (0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given)
    before.close()


@pytest.mark.parametrize("size", [100, None])
def test_what_another_version_counts_is_not_known(size: int | None) -> None:
    """Its memory is smaller, or says that it is another's; or there is none."""
    given = SharedMemory.create() if size is None else os.memfd_create("other")
    if size is None:
        os.pwrite(given, bytes([255]), 0)
    else:
        os.ftruncate(given, size)
    before = Predecessor(Told(os.getppid(), given))
    assert (before.process, before.sessions) == (os.getppid(), None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given)
    assert Predecessor(Told(os.getppid(), -1)).sessions is None
