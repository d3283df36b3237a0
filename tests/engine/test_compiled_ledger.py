"""The ledger of a debug build, and that it costs nothing elsewhere."""

import pytest

from engine.rig import MEBIBYTE, noise
from engine.splicing import driving, frame_of, header_of
from gateway.engine import ledger
from gateway.events import RelayRules, Side


def test_every_kind_has_a_name() -> None:
    assert list(ledger.entries()) == list(ledger.KINDS)
    assert len(set(ledger.KINDS)) == len(ledger.KINDS)


def test_all_that_a_relay_takes_is_counted() -> None:
    """While one runs, and when it is gone."""
    if not ledger.is_kept():
        with driving() as roads:
            roads.open()
            assert not any(made for made, _ in ledger.entries().values())
        pytest.skip("no debug build: nothing is counted")
    with driving() as roads:
        one = roads.open(RelayRules(heartbeat=60), small=True)
        one.browser.stall()
        one.send(Side.CLIENT, b"\x82")
        one.send(Side.UPSTREAM, frame_of(Side.UPSTREAM, b"x" * 30_000) * 20)
        two = roads.open(RelayRules(heartbeat=60), small=True)
        two.browser.stall()
        two.send(Side.UPSTREAM, header_of(Side.UPSTREAM, MEBIBYTE))
        roads.settle(3)
        two.send(Side.UPSTREAM, noise(MEBIBYTE))
        roads.settle()
        assert ledger.not_freed() == {
            "relays": 2, "descriptors": 4, "queues": 1, "tails": 1, "timers": 2, "pipes": 1,
            "pipes lent": 1,
        }
    assert ledger.not_freed() == {}
