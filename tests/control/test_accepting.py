"""Listeners of a worker that come, stay and go: whoever waits on one that goes is accepted."""

import socket
from typing import Any, cast

import pytest

from gateway.control.accepting import LAST_ACCEPTS, LOOK, STEP, Accepting
from gateway.engine.contract import Engine
from gateway.events import Address
from gateway.table import Listener

HERE = Listener(address=Address(host="127.0.0.1", port=1))
SLOW = Listener(address=Address(host="127.0.0.1", port=1), head_timeout=99.0)
OWN = 7


class Verbs:
    """Notes them; a listener's link is 100 and its turn."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.crowded: set[int] = set()           # listeners where somebody waits
        self._made = 0

    def listen(self, listening: socket.socket) -> int:
        listening.close()
        self._made += 1
        return 100 + self._made

    def waits(self, listener: int) -> bool:
        return listener in self.crowded

    def __getattr__(self, verb: str) -> Any:
        return lambda *given: self.calls.append((verb, *given))

    def taken(self) -> list[tuple[Any, ...]]:
        """Those since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Rig:
    """Two listeners that are open: 0 by link 101, 1 by 102."""

    def __init__(self) -> None:
        self.verbs = Verbs()
        self.accepting = Accepting(cast("Engine", self.verbs))
        self.accepting.own = OWN
        self.told: list[str] = []
        self.change(0, 1)

    def change(self, *numbers: int, listener: Listener = HERE) -> None:
        """Accept from these."""
        new = {number: socket.socket() for number in numbers
               if number not in self.accepting.numbers}
        self.accepting.change(dict.fromkeys(numbers, listener), new)


@pytest.fixture
def rig() -> Rig:
    """See `Rig`."""
    return Rig()


def test_one_that_goes_stays_while_somebody_waits(rig: Rig) -> None:
    """The balance may have held it: it is read, also for those who have nobody else."""
    rig.verbs.crowded = {101, 102}
    rig.change(0)
    rig.accepting.closed(10.0, lambda: rig.told.append("closed"))
    assert rig.verbs.taken() == [("read", 102), ("set_timer", OWN, LOOK, 10.0)]
    assert list(rig.accepting.numbers) == [0]
    for at in (10.0, 10.01):
        assert rig.accepting.listener(102) == HERE
        rig.accepting.look(at)
        assert rig.verbs.taken() == [("set_timer", OWN, LOOK, at + STEP)]
    rig.verbs.crowded = {101}
    rig.accepting.look(10.02)
    assert rig.verbs.taken() == [("unlisten", 102)]
    assert rig.told == ["closed"]
    assert rig.accepting.is_open


def test_a_crowd_without_end_does_not_keep_it_open(rig: Rig) -> None:
    """After its time it is closed on top of them."""
    rig.verbs.crowded = {102}
    rig.change(0)
    rig.accepting.closed(10.0, lambda: None)
    rig.verbs.taken()
    rig.accepting.look(10.0 + LAST_ACCEPTS)
    assert rig.verbs.taken() == [("unlisten", 102)]


def test_where_none_goes_it_is_told_at_once(rig: Rig) -> None:
    """A listener whose terms change stays what it is."""
    rig.change(1, 0, listener=SLOW)
    rig.accepting.closed(10.0, lambda: rig.told.append("closed"))
    assert rig.told == ["closed"]
    assert rig.verbs.taken() == []
    assert rig.accepting.listener(101) == SLOW


def test_at_a_drain_all_go(rig: Rig) -> None:
    """With those that a reload has just had go."""
    rig.change(0)
    rig.accepting.closed(10.0, lambda: rig.told.append("closed"))
    rig.accepting.go(10.1)
    assert rig.told == []
    assert rig.accepting.is_open
    rig.verbs.taken()
    rig.accepting.look(10.1)
    assert sorted(rig.verbs.taken()) == [("unlisten", 101), ("unlisten", 102)]
    assert rig.told == ["closed"]
    assert not rig.accepting.is_open
    assert list(rig.accepting.links) == []


def test_where_others_accept_those_that_stay_are_left(rig: Rig) -> None:
    """One that a reload had go has no others."""
    rig.change(0)
    rig.accepting.closed(10.0, lambda: rig.told.append("closed"))
    rig.verbs.taken()
    rig.accepting.leave(10.0)
    assert rig.verbs.taken() == [("unlisten", 101), ("set_timer", OWN, LOOK, 10.0)]
    assert rig.accepting.is_open
    rig.accepting.look(10.0)
    assert rig.verbs.taken() == [("unlisten", 102)]
    assert rig.told == ["closed"]


def test_one_that_nobody_else_has_is_not_left(rig: Rig) -> None:
    """A successor has no use for it: who waits there is ours."""
    rig.verbs.crowded = {102}
    rig.accepting.leave(10.0, [1])
    assert rig.verbs.taken() == [("unlisten", 101), ("set_timer", OWN, LOOK, 10.0)]
    rig.accepting.look(10.0)
    assert rig.verbs.taken() == [("set_timer", OWN, LOOK, 10.0 + STEP)]
    rig.verbs.crowded.clear()
    rig.accepting.look(10.01)
    assert rig.verbs.taken() == [("unlisten", 102)]
    assert not rig.accepting.is_open


@pytest.mark.parametrize("end", ["go", "leave", "end"])
def test_a_reload_that_our_end_has_crossed_changes_nothing(rig: Rig, end: str) -> None:
    """Its sockets are closed, and it is answered."""
    getattr(rig.accepting, end)(*[10.0][: end != "end"])
    rig.verbs.taken()
    new = socket.socket()
    rig.accepting.change({0: HERE, 1: HERE, 2: HERE}, {2: new})
    rig.accepting.closed(10.0, lambda: rig.told.append("closed"))
    assert new.fileno() == -1
    assert list(rig.accepting.numbers) == []
    rig.accepting.look(10.0)
    assert rig.told == ["closed"]


def test_the_end_waits_for_nobody(rig: Rig) -> None:
    """But who waits for a reload is told."""
    rig.change(0)
    rig.accepting.closed(10.0, lambda: rig.told.append("closed"))
    rig.verbs.taken()
    rig.accepting.end()
    assert rig.verbs.taken() == [
        ("unlisten", 101), ("clear_timer", OWN, LOOK), ("unlisten", 102)
    ]
    assert rig.told == ["closed"]
    rig.accepting.end()
    assert rig.told == ["closed"]


def test_of_those_that_have_gone_nothing_is_kept(rig: Rig) -> None:
    """A client that came by one may still be told of; by the next change it is there."""
    rig.change(0)
    rig.accepting.look(10.0)
    assert rig.accepting.listener(102) == HERE
    rig.change(0)
    with pytest.raises(KeyError):
        rig.accepting.listener(102)
