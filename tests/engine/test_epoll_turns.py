"""Drains of compiled relays under another loop: bounded, and what is left is first in the next.

Ends come in portions, counted here and not timed: of four, where they may take no time at all.
"""

import select

from engine.splicing import Road, Roads, driving, frame_of
from gateway.events import Side

BUSY = 60                          # relays; with no time at all a drain does 16 events
DRAINS = 4                         # that 60 take
PORTION = 4                        # ends in one drain, where they may take no time
DATA = frame_of(Side.CLIENT, b"x" * 64)


def readable(roads: Roads) -> bool:
    """Whether the outer loop would come back."""
    return bool(select.select([roads.driver.fileno()], [], [], 0)[0])


def all_speak(roads: list[Road]) -> None:
    """Each client has something in its socket: what is read by a drain, and by nobody before."""
    for road in roads:
        assert road.browser.sock is not None
        road.browser.sock.send(DATA)


def arrived(roads: list[Road]) -> int:
    """How many servers have what was sent to them."""
    for road in roads:
        road.server.move()
    return sum(bool(road.server.received) for road in roads)


def test_a_drain_ends_within_a_batch_and_loses_none() -> None:
    """The edges of a batch are told once; those that are left are done by the next drains, for
    which the outer loop is called, and not for more."""
    with driving() as roads:
        some = [roads.open() for _ in range(BUSY)]
        roads.settle(3)
        roads.driver.limit_turns(0.0)
        assert not readable(roads)
        all_speak(some)
        waits, counts = roads.driver.waits, []
        for _ in range(DRAINS):
            assert readable(roads)
            roads.driver.drain()
            counts.append(arrived(some))
        assert counts == [16, 32, 48, 60]
        assert roads.driver.waits <= waits + 2
        for _ in range(2):
            roads.driver.drain()
        assert not readable(roads)


def test_who_is_left_is_served_before_who_came_later() -> None:
    """Sixteen who have something again each time keep nobody else waiting."""
    with driving() as roads:
        some = [roads.open() for _ in range(BUSY)]
        roads.settle(3)
        roads.driver.limit_turns(0.0)
        all_speak(some)
        for _ in range(DRAINS):
            roads.driver.drain()
            all_speak(some[:16])
        assert arrived(some) == BUSY


def test_relays_that_end_while_they_are_left_are_passed_over() -> None:
    """Their places may be others' when it is their turn."""
    with driving() as roads:
        some = [roads.open() for _ in range(BUSY)]
        roads.settle(3)
        roads.driver.limit_turns(0.0)
        all_speak(some)
        roads.driver.drain()
        for road in some[1::2]:
            roads.driver.cut(road.slot)
        roads.collect()
        later = [roads.open() for _ in range(BUSY // 2)]
        for _ in range(DRAINS):
            roads.driver.drain()
        roads.collect()
        assert arrived(some[::2]) == BUSY // 2
        assert arrived(later) == 0
        later[0].send(Side.CLIENT, DATA)
        later[0].arrives(Side.CLIENT, DATA)
        assert roads.is_quiet()


def test_a_crowd_that_ends_keeps_nobody_waiting_who_speaks() -> None:
    """The crowd is found first, and yet ended last: in portions, for which the outer loop is
    called, and not for more."""
    with driving() as roads:
        crowd = [roads.open() for _ in range(BUSY)]
        speaker = roads.open()
        roads.settle(3)
        roads.driver.limit_ends(0.0)
        for road in crowd:
            road.browser.reset()
        all_speak([speaker])
        for told in range(PORTION, BUSY + 1, PORTION):
            assert readable(roads)
            roads.driver.drain()
            assert arrived([speaker]) == 1
            assert arrived(crowd) == told, "servers hear of their clients' ends in portions"
        for _ in range(2):
            roads.driver.drain()
        assert not readable(roads)


def test_the_last_words_of_who_ends_come_before_the_end() -> None:
    """Bytes and FIN that are found together are put off together."""
    with driving() as roads:
        crowd = [roads.open() for _ in range(BUSY)]
        roads.settle(3)
        roads.driver.limit_ends(0.0)
        all_speak(crowd)
        for road in crowd:
            road.browser.finish()
        while arrived(crowd) < BUSY:
            assert readable(roads)
            roads.driver.drain()
        for road in crowd:
            assert road.server.received == DATA


def test_what_was_put_off_for_a_relay_that_is_cut_is_nobodys() -> None:
    """Its place may be another's by then."""
    with driving() as roads:
        crowd = [roads.open() for _ in range(BUSY)]
        roads.settle(3)
        roads.driver.limit_ends(0.0)
        for road in crowd:
            road.browser.reset()
        roads.driver.drain()
        for road in crowd:
            roads.driver.cut(road.slot)
        roads.collect()
        later = [roads.open() for _ in range(BUSY)]
        while roads.driver.put_off_size:
            roads.driver.drain()
        assert roads.driver.live == BUSY
        later[0].send(Side.CLIENT, DATA)
        later[0].arrives(Side.CLIENT, DATA)
