"""The contract, on every engine, continued: `relay`, `end`, `inspect`.

What passes and what is said is the rules' own business (`gateway/relaying.py`, with tests of its
own); here it is shown that an engine tells them all facts, in order, and does all that they ask.
"""

from dataclasses import replace

import pytest

from engine.rig import MEBIBYTE, Far, Rig, noise
from gateway import frames
from gateway.engine import contract
from gateway.engine.memory import MemoryEngine
from gateway.errors import Fault
from gateway.events import (
    Cause,
    Closed,
    Event,
    Finished,
    Link,
    Received,
    RelayEnded,
    RelayRules,
    Side,
    TimedOut,
)


@pytest.fixture
def rig(any_rig: Rig) -> Rig:
    """A relay is the same over TLS."""
    return any_rig


MASK = b"\x01\x02\x03\x04"
QUICK = RelayRules(close_timeout=0.2)


def up(payload: bytes, opcode: int = frames.BINARY) -> bytes:
    """A frame as a client sends it."""
    return frames.build_frame(opcode, payload, MASK)


def down(payload: bytes, opcode: int = frames.BINARY) -> bytes:
    """A frame as an upstream sends it."""
    return frames.build_frame(opcode, payload)


def close_code(code: int) -> bytes:
    """The start of a Close frame with that code, as a client gets it."""
    return code.to_bytes(2, "big")


class Bridge:
    """A client, an upstream, and a relay between them."""

    def __init__(
        self,
        rig: Rig,
        rules: RelayRules = QUICK,
        *,
        family: str = "tcp",
        small: bool = False,
        early: tuple[bytes, bytes] = (b"", b""),
    ):
        self.rig = rig
        self.client, self.browser = rig.accepted(family=family, small=small)
        self.upstream, self.server = rig.connected(family=family, small=small)
        rig.engine.relay(self.client, self.upstream, rules, *early)

    def over(self) -> bool:
        """RelayEnded was delivered."""
        return self.rig.has(self.client, RelayEnded)

    def ended(self) -> RelayEnded:
        """Wait for the end, see that all comes at once and once, and give it."""
        self.rig.until(self.over)
        self.rig.settle()
        (ended,) = self.rig.of(self.client, RelayEnded)
        (batch,) = (b for b in self.rig.batches if ended in b)
        assert [(type(event), event.link) for event in batch] == [
            (RelayEnded, self.client),
            (Closed, self.client),
            (Closed, self.upstream),
        ]
        assert ended.upstream == self.upstream
        assert len(self.rig.of(self.client, Closed) + self.rig.of(self.upstream, Closed)) == 2
        assert self.rig.engine.stats().relays == 0
        assert self.rig.engine.inspect(self.client) is None
        return ended


class TestRelaying:
    """Bytes pass."""

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_both_ways_and_a_close_handshake(self, rig: Rig, family: str) -> None:
        bridge = Bridge(rig, family=family)
        browser, server = bridge.browser, bridge.server
        browser.send(up(b"ping") + up(b"pong"))
        server.send(down(b"one"))
        rig.until(lambda: server.received == up(b"ping") + up(b"pong"))
        rig.until(lambda: browser.received == down(b"one"))
        assert rig.engine.stats().relays == 1
        counts = rig.engine.inspect(bridge.client)
        assert counts is not None
        assert [leg.messages for leg in counts] == [2, 1]
        assert rig.engine.inspect(bridge.upstream) in (None, counts)
        browser.send(up(close_code(1000), frames.CLOSE))
        rig.until(lambda: server.received.endswith(up(close_code(1000), frames.CLOSE)))
        server.send(down(close_code(1000), frames.CLOSE))
        server.finish()
        rig.until(lambda: browser.finished)
        browser.close()
        ended = bridge.ended()
        assert ended.cause is Cause.CLOSED
        assert ended.side is Side.CLIENT
        assert [leg.close_received for leg in ended.counts] == [1000, 1000]
        assert not browser.was_reset
        assert not server.was_reset

    def test_idle_tells_since_when_nothing_came(self, rig: Rig) -> None:
        """From either side; a link that is not relayed is never idle."""
        bridge = Bridge(rig)
        engine = rig.engine
        for far, data in ((bridge.browser, up(b"a")), (bridge.server, down(b"b"))):
            start = engine.now()
            engine.set_timer(bridge.client, "later", start + 0.02)
            rig.until(lambda: rig.has(bridge.client, TimedOut))
            idle = engine.idle(bridge.client)
            assert idle is not None
            assert idle >= 0.02
            rig.events.clear()
            asked = engine.now()
            far.send(data)
            other = bridge.server if far is bridge.browser else bridge.browser
            rig.until(lambda other=other, data=data: other.received == data)  # type: ignore[misc]
            idle = engine.idle(bridge.client)
            assert idle is not None
            assert idle <= engine.now() - asked
        assert engine.idle(9999) is None

    def test_no_event_comes_while_it_runs(self, rig: Rig) -> None:
        bridge = Bridge(rig)
        before = len(rig.events)
        bridge.browser.send(up(noise(300_000)))
        bridge.server.send(down(noise(300_000)))
        rig.until(lambda: min(len(bridge.browser.received), len(bridge.server.received)) > 300_000)
        assert rig.events[before:] == []

    def test_the_callers_timers_go_on(self, rig: Rig) -> None:
        bridge = Bridge(rig)
        rig.engine.set_timer(bridge.client, "mine", rig.engine.now() + 0.01)
        rig.until(lambda: rig.has(bridge.client, TimedOut))

    def test_early_bytes_come_first(self, rig: Rig) -> None:
        """Frames cut anywhere between what came with the head, and what comes later."""
        first, second = up(b"first" * 100), up(b"second" * 100)
        text = down(b"greeting")
        bridge = Bridge(rig, early=(first[:300], text[:1]))
        bridge.browser.send(first[300:] + second)
        bridge.server.send(text[1:])
        rig.until(lambda: bridge.server.received == first + second)
        rig.until(lambda: bridge.browser.received == text)

    def test_early_bytes_pass_the_rules(self, rig: Rig) -> None:
        bridge = Bridge(rig, early=(down(b"not masked"), b""))
        rig.until(lambda: close_code(1002) in bridge.browser.received)
        bridge.browser.close()
        bridge.server.close()
        assert bridge.ended().cause is Cause.FRAMING

    def test_what_was_read_but_not_delivered_is_early(self, rig: Rig) -> None:
        """Both sides have bytes in one turn, and the first event begins the relay."""
        client, browser = rig.accepted()
        upstream, server = rig.connected()
        began = False

        def begin(event: Event) -> None:
            nonlocal began
            if isinstance(event, Received) and not began:
                began = True
                mine = event.link == client
                early = (event.data, b"") if mine else (b"", event.data)
                rig.engine.relay(client, upstream, QUICK, *early)

        rig.on_event = begin
        browser.send(up(b"from the client"))
        server.send(down(b"from the upstream"))
        rig.settle()
        rig.engine.read(client)
        rig.engine.read(upstream)
        rig.until(lambda: browser.received == down(b"from the upstream"))
        rig.until(lambda: server.received == up(b"from the client"))
        assert len(rig.of(client, Received) + rig.of(upstream, Received)) == 1

    @pytest.mark.parametrize("side", list(Side))
    def test_what_came_whole_before_a_cut_frame_and_fin_arrives(
        self, rig: Rig, side: Side
    ) -> None:
        """All of it together, and before the relay began: the other side gets the whole message,
        and sees that the next one was cut."""
        client, browser = rig.accepted()
        upstream, server = rig.connected()
        link, far = (client, browser) if side is Side.CLIENT else (upstream, server)
        other = server if side is Side.CLIENT else browser
        whole, cut = (up, down)[side](b"whole" * 100), (up, down)[side](b"cut" * 100)[:50]
        rig.engine.read(link)
        far.send(whole + cut)
        far.finish()
        rig.until(lambda: rig.has(link, Finished))
        early = [b"", b""]
        early[side] = rig.data(link)
        rig.engine.relay(client, upstream, QUICK, *early)
        rig.until(lambda: other.was_reset)
        assert other.received.startswith(whole)
        rig.until(lambda: rig.has(client, RelayEnded))
        (ended,) = rig.of(client, RelayEnded)
        assert (ended.cause, ended.side) == (Cause.CUT, side)

    def test_what_was_queued_before_leaves_first(self, rig: Rig) -> None:
        client, browser = rig.accepted(small=True)
        upstream, server = rig.connected()
        answer = noise(100_000)
        browser.stall()
        rig.engine.send(client, answer)
        rig.engine.relay(client, upstream, QUICK, b"", down(b"behind it"))
        server.send(down(b"and this"))
        rig.settle()
        browser.resume()
        expected = answer + down(b"behind it") + down(b"and this")
        rig.until(lambda: browser.received == expected)

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_4_mib_both_ways_through_small_buffers(self, rig: Rig, family: str) -> None:
        rules = RelayRules(max_queue=64 * 1024, close_timeout=0.2)
        bridge = Bridge(rig, rules, family=family, small=True)
        size = MEBIBYTE if isinstance(rig.engine, MemoryEngine) else 4 * MEBIBYTE
        upward, downward = up(noise(size, 5)), down(noise(size, 6))
        bridge.browser.send(upward)
        bridge.server.send(downward)
        rig.until(
            lambda: len(bridge.server.received) >= len(upward)
            and len(bridge.browser.received) >= len(downward)
        )
        assert bridge.server.received == upward
        assert bridge.browser.received == downward
        counts = rig.engine.inspect(bridge.client)
        assert counts is not None
        assert [leg.bytes_in for leg in counts] == [len(upward), len(downward)]
        assert [leg.bytes_out for leg in counts] == [len(downward), len(upward)]

    def test_one_who_does_not_read_stops_the_other(self, rig: Rig) -> None:
        rules = RelayRules(max_queue=32 * 1024)
        bridge = Bridge(rig, rules, small=True)
        bridge.browser.stall()
        data = noise(2 * MEBIBYTE)
        bridge.server.send(down(data))
        rig.settle(0.1)
        counts = rig.engine.inspect(bridge.client)
        assert counts is not None
        assert counts[1].bytes_in < MEBIBYTE
        assert rig.engine.stats().queued <= rules.max_queue + contract.READ_MAX
        bridge.browser.resume()
        rig.until(lambda: len(bridge.browser.received) >= len(data))
        assert bridge.browser.received == down(data)

    def test_raw_bytes_upstream(self, rig: Rig) -> None:
        bridge = Bridge(rig, RelayRules(raw=True, close_timeout=0.2))
        bridge.browser.send(up(b"SELECT ") + up(b"1"))
        rig.until(lambda: bridge.server.received == b"SELECT 1")
        bridge.server.send(b"OK")
        rig.until(lambda: bridge.browser.received == down(b"OK"))
        bridge.server.finish()
        rig.until(lambda: close_code(1000) in bridge.browser.received)
        bridge.browser.send(up(close_code(1000), frames.CLOSE))
        bridge.browser.finish()
        bridge.ended()
        assert not bridge.browser.was_reset


class TestRelayEnds:
    """Whatever ends it, both sides and the caller learn of it once."""

    def test_fin_from_the_client_is_passed_on_and_the_tail_arrives(self, rig: Rig) -> None:
        bridge = Bridge(rig)
        bridge.browser.send(up(b"last"))
        bridge.browser.finish()
        rig.until(lambda: bridge.server.finished)
        assert bridge.server.received == up(b"last")
        bridge.server.send(down(b"tail"))
        bridge.server.finish()
        rig.until(lambda: bridge.browser.finished)
        assert bridge.browser.received == down(b"tail")
        ended = bridge.ended()
        assert ended.cause is Cause.FINISHED
        assert ended.side is Side.CLIENT
        assert not bridge.browser.was_reset
        assert not bridge.server.was_reset

    def test_fin_that_was_delivered_before_counts(self, rig: Rig) -> None:
        client, browser = rig.accepted()
        upstream, server = rig.connected()
        rig.engine.read(client)
        browser.finish()
        rig.until(lambda: rig.has(client, Finished))
        rig.engine.relay(client, upstream, QUICK)
        rig.until(lambda: server.finished)
        server.finish()
        rig.until(lambda: rig.has(client, RelayEnded))
        assert rig.of(client, RelayEnded)[0].cause is Cause.FINISHED

    @pytest.mark.parametrize("side", list(Side))
    @pytest.mark.parametrize("stopped", [False, True])
    def test_a_reset_is_a_loss(self, rig: Rig, side: Side, *, stopped: bool) -> None:
        """Also of one who is not read from, since the other does not take what he says."""
        bridge = Bridge(rig, RelayRules(max_queue=1024, close_timeout=0.2), small=stopped)
        ends: tuple[Far, Far] = (bridge.browser, bridge.server)
        lost, other = ends[side], ends[side.other]
        if stopped:
            other.stall()
            lost.send((up if side is Side.CLIENT else down)(noise(MEBIBYTE)))
            rig.settle(0.05)
        lost.reset()
        ended = bridge.ended()
        other.resume()
        assert ended.cause is Cause.LOST
        assert ended.side is side
        link, far_link = (bridge.client, bridge.upstream)[:: 1 if side is Side.CLIENT else -1]
        assert rig.of(link, Closed)[0].fault is Fault.RESET
        assert rig.of(far_link, Closed)[0].fault is None
        if not stopped:
            code = 1001 if side is Side.CLIENT else 1014
            rig.until(lambda: other.finished or other.was_reset)
            assert ended.counts[side.other].close_sent == code
        else:
            rig.until(lambda: other.was_reset)      # the frame under way can never be whole

    def test_a_loss_that_is_not_delivered_yet_ends_it(self, rig: Rig) -> None:
        """The client speaks and the upstream resets in one turn; the first begins the relay."""
        client, browser = rig.accepted()
        upstream, server = rig.connected()

        def begin(event: Event) -> None:
            if isinstance(event, Received):
                rig.engine.relay(client, upstream, QUICK, event.data)

        rig.on_event = begin
        rig.engine.read(client)
        rig.settle()
        browser.send(up(b"hello"))
        server.reset()
        rig.until(lambda: rig.has(client, RelayEnded) or rig.has(upstream, Closed))
        if not rig.is_calm and not rig.has(client, RelayEnded):
            return                                  # they came in another order
        (ended,) = rig.of(client, RelayEnded)
        assert (ended.cause, ended.side) == (Cause.LOST, Side.UPSTREAM)
        assert [type(event) for event in rig.batches[-1]] == [RelayEnded, Closed, Closed]
        rig.until(lambda: close_code(1014) in browser.received)

    def test_what_a_side_said_before_it_took_nothing_more_still_counts(self, rig: Rig) -> None:
        """The upstream's Close says why it went; that we fail to send to it says less."""
        bridge = Bridge(rig, family="unix")
        rig.settle()
        bridge.browser.send(up(b"one more thing"))
        bridge.server.send(down(b"no") + down(close_code(1008), frames.CLOSE))
        bridge.server.close()
        bridge.browser.finish()
        ended = bridge.ended()
        if rig.is_calm:                             # else it may still have been on its way
            assert bridge.browser.received == down(b"no") + down(close_code(1008), frames.CLOSE)
            assert ended.counts[Side.UPSTREAM].close_received == 1008

    def test_on_a_link_whose_closed_was_delivered_nothing_happens(self, rig: Rig) -> None:
        client, browser = rig.accepted()
        upstream, server = rig.connected()
        server.reset()
        rig.until(rig.closed(upstream))
        rig.engine.relay(client, upstream, QUICK)
        rig.settle()
        assert not rig.has(client, RelayEnded)
        rig.engine.read(client)
        browser.send(b"still a link")
        rig.until(lambda: rig.data(client) == b"still a link")

    def test_on_a_link_that_was_reset_nothing_happens(self, rig: Rig) -> None:
        client, _ = rig.accepted()
        upstream, _ = rig.connected()
        rig.engine.reset(client)
        rig.engine.relay(client, upstream, QUICK)
        rig.until(rig.closed(client))
        assert not rig.has(client, RelayEnded)
        assert not rig.has(upstream, Closed)

    def test_broken_framing_is_told_to_both(self, rig: Rig) -> None:
        bridge = Bridge(rig)
        bridge.browser.send(up(b"fine") + b"\xff\xff")
        rig.until(lambda: bridge.browser.finished)
        assert close_code(1002) in bridge.browser.received
        rig.until(lambda: bridge.server.received.startswith(up(b"fine")))
        bridge.browser.close()
        bridge.server.close()
        ended = bridge.ended()
        assert (ended.cause, ended.side) == (Cause.FRAMING, Side.CLIENT)
        assert ended.detail

    def test_drain_is_told_and_waited_for(self, rig: Rig) -> None:
        bridge = Bridge(rig, RelayRules(close_timeout=5))
        rig.engine.end(bridge.client, Cause.DRAIN)
        rig.engine.end(bridge.client, Cause.DRAIN)
        rig.until(lambda: close_code(1001) in bridge.browser.received)
        rig.settle()
        assert not bridge.over()
        bridge.browser.send(up(close_code(1001), frames.CLOSE))
        bridge.server.send(down(close_code(1001), frames.CLOSE))
        bridge.browser.finish()
        bridge.server.finish()
        ended = bridge.ended()
        assert (ended.cause, ended.side) == (Cause.DRAIN, None)
        assert not bridge.browser.was_reset
        assert not bridge.server.was_reset

    def test_an_end_may_have_a_farewell_of_its_own(self, rig: Rig) -> None:
        """Of that relay alone: another on the same rules has the old one."""
        rules = RelayRules(close_timeout=0.05, drain_reason="later")
        one, other = Bridge(rig, rules), Bridge(rig, rules)
        own = replace(rules, drain_code=4001, drain_reason="signed out")
        rig.engine.end(one.client, Cause.DISMISSED, own)
        rig.engine.end(other.client, Cause.DRAIN)
        assert one.ended().cause is Cause.DISMISSED
        assert other.ended().cause is Cause.DRAIN
        rig.until(lambda: close_code(4001) + b"signed out" in one.browser.received)
        rig.until(lambda: close_code(1001) + b"later" in other.browser.received)

    def test_rules_that_no_relay_obeys_make_room(self, rig: Rig) -> None:
        """However many a reload brings, one after another."""
        for size in range(70):
            rules = RelayRules(close_timeout=0.05, max_message=1000 + size)
            bridge = Bridge(rig, rules)
            rig.engine.end(bridge.client, Cause.KILLED, replace(rules, drain_code=4000 + size))
            assert bridge.ended().cause is Cause.KILLED
            rig.until(lambda far=bridge.browser: far.finished)  # type: ignore[misc]
            assert close_code(4000 + size) in bridge.browser.received

    def test_drain_ends_by_itself(self, rig: Rig) -> None:
        bridge = Bridge(rig, RelayRules(close_timeout=0.05))
        rig.engine.end(bridge.client, Cause.DRAIN)
        assert bridge.ended().cause is Cause.DRAIN

    def test_killed_is_told_and_at_once(self, rig: Rig) -> None:
        bridge = Bridge(rig, RelayRules(close_timeout=60))
        began = rig.engine.now()
        rig.engine.end(bridge.client, Cause.KILLED)
        ended = bridge.ended()
        assert ended.cause is Cause.KILLED
        assert ended.at - began < 1
        rig.until(lambda: bridge.browser.finished)
        assert close_code(1001) in bridge.browser.received

    def test_killed_overrides_a_drain(self, rig: Rig) -> None:
        bridge = Bridge(rig, RelayRules(close_timeout=60), small=True)
        bridge.browser.stall()
        bridge.server.send(down(noise(MEBIBYTE)))
        rig.settle(0.05)
        rig.engine.end(bridge.client, Cause.DRAIN)
        rig.settle()
        assert not bridge.over()
        rig.engine.end(bridge.client, Cause.KILLED)
        ended = bridge.ended()
        assert ended.cause is Cause.KILLED
        assert [one.cut for one in ended.counts] == [True, False]
        bridge.browser.resume()
        rig.until(lambda: bridge.browser.was_reset)

    @pytest.mark.parametrize("side", list(Side))
    def test_reset_of_a_link_cuts_its_relay(self, rig: Rig, side: Side) -> None:
        bridge = Bridge(rig)
        rig.settle()
        rig.engine.reset((bridge.client, bridge.upstream)[side])
        rig.engine.reset((bridge.client, bridge.upstream)[side.other])
        assert bridge.ended().cause is Cause.KILLED
        rig.until(lambda: bridge.browser.was_reset and bridge.server.was_reset)

    def test_other_verbs_on_its_links_are_bugs(self, rig: Rig) -> None:
        bridge = Bridge(rig)
        for link in (bridge.client, bridge.upstream):
            for verb in (rig.engine.read, rig.engine.hold, rig.engine.finish, rig.engine.close):
                with pytest.raises(AssertionError):
                    verb(link)
            with pytest.raises(AssertionError):
                rig.engine.send(link, b"x")
        with pytest.raises(AssertionError):
            rig.engine.relay(bridge.client, bridge.upstream, QUICK)

    def test_end_of_no_relay_does_nothing(self, rig: Rig) -> None:
        link, _ = rig.accepted()
        rig.engine.end(link, Cause.DRAIN)
        rig.engine.end(4711, Cause.DRAIN)
        rig.settle()
        assert not rig.has(link, Closed)

    def test_stop_cuts_relays(self, rig: Rig) -> None:
        bridge = Bridge(rig)
        bridge.browser.stall()
        bridge.server.send(down(noise(MEBIBYTE)))
        rig.settle()
        rig.engine.stop()
        assert rig.engine.stats().relays == 0
        assert not bridge.over()


class TestRelayTime:
    """The rules' deadlines are kept."""

    def test_one_who_takes_nothing_is_stalled(self, rig: Rig) -> None:
        rules = RelayRules(max_queue=16 * 1024, write_timeout=0.1, close_timeout=0.1)
        bridge = Bridge(rig, rules, small=True)
        bridge.browser.stall()
        bridge.server.send(down(noise(MEBIBYTE)))
        ended = bridge.ended()
        assert (ended.cause, ended.side) == (Cause.STALLED, Side.CLIENT)
        bridge.browser.resume()
        rig.until(lambda: bridge.browser.was_reset)

    def test_quiet_sides_are_pinged(self, rig: Rig) -> None:
        rules = RelayRules(heartbeat=0.03, heartbeat_timeout=5, close_timeout=0.1)
        bridge = Bridge(rig, rules)
        rig.until(lambda: bridge.browser.received[:2] == bytes((frames.FIN | frames.PING, 8)))
        payload = bytes(bridge.browser.received[2:10])
        bridge.browser.send(up(payload, frames.PONG))

        def answered() -> bool:
            counts = rig.engine.inspect(bridge.client)
            return counts is not None and counts[0].round_trip is not None

        rig.until(answered)
        assert payload not in bridge.server.received, "the answer to our own ping is swallowed"

    def test_pings_keep_the_pace_of_the_heartbeat(self, rig: Rig) -> None:
        """The answer to one brings the next, long before the time to answer is over."""
        bridge = Bridge(rig, RelayRules(heartbeat=0.03, heartbeat_timeout=60, close_timeout=0.1))
        heard = bridge.browser.received
        for at in range(0, 30, 10):
            rig.until(lambda: len(heard) > at + 9)  # noqa: B023 - it is over before the next begins
            assert heard[at : at + 2] == bytes((frames.FIN | frames.PING, 8))
            bridge.browser.send(up(bytes(heard[at + 2 : at + 10]), frames.PONG))

    def test_one_who_is_silent_is_lost(self, rig: Rig) -> None:
        rules = RelayRules(heartbeat=0.02, heartbeat_timeout=0.05, close_timeout=0.1)
        ended = Bridge(rig, rules).ended()
        assert ended.cause is Cause.SILENT

    def test_session_timeout(self, rig: Rig) -> None:
        rules = RelayRules(session_timeout=0.05, session_code=4000, close_timeout=0.1)
        bridge = Bridge(rig, rules)
        began = rig.engine.now()
        ended = bridge.ended()
        assert ended.cause is Cause.SESSION_TIMEOUT
        assert ended.at - began < 5
        assert close_code(4000) in bridge.browser.received

    def test_an_idle_relay_makes_no_turn(self, rig: Rig) -> None:
        bridges = [Bridge(rig, RelayRules(heartbeat=30, idle_timeout=60)) for _ in range(10)]
        half: list[Link] = []
        for bridge in bridges[:5]:
            bridge.browser.finish()                 # one way open, the other not
            half.append(bridge.client)
        rig.settle(0.05)
        engine = rig.engine
        before = engine.turns  # type: ignore[attr-defined]
        rig.sleep(0.2)
        assert engine.turns - before <= 5  # type: ignore[attr-defined]
        assert not any(rig.has(link, RelayEnded) for link in half)
