"""The relay's rules as conversations: facts in, and what each leg is sent and becomes.

Every test runs through the reference in Python and through the compiled rules.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest

from gateway import frames
from gateway.engine.compiled import CompiledRelay
from gateway.events import Cause, RelayRules, Side
from gateway.leg import Fate
from gateway.relaying import Relay

C, U = Side.CLIENT, Side.UPSTREAM
MASK = b"\xaa\xbb\xcc\xdd"


def ours(opcode: int, payload: bytes) -> bytes:
    """A frame as a client sends it."""
    return frames.build_frame(opcode, payload, MASK)


def theirs(opcode: int, payload: bytes) -> bytes:
    """A frame as an upstream sends it."""
    return frames.build_frame(opcode, payload)


def close(code: int, reason: str = "") -> bytes:
    return frames.build_close(code, reason)


@pytest.fixture(autouse=True, params=[Relay, CompiledRelay], ids=["reference", "compiled"])
def rules_in(request: pytest.FixtureRequest) -> None:
    """Which implementation `Line` is made of."""
    Line.factory = request.param


class Line:
    """A relay and its two far ends: what was sent to each, with a clock that the test sets."""

    factory: Any = Relay

    def __init__(self, **rules: Any):
        self.now = 100.0
        self.relay = self.factory(RelayRules(**rules), self.now, lambda n: bytes(range(1, n + 1)))
        self.got = {C: b"", U: b""}

    def receive(self, side: Side, data: bytes) -> None:
        self.relay.received(side, data, self.now)

    def finish(self, side: Side) -> None:
        self.relay.finished(side, self.now)

    def pump(self, *sides: Side) -> None:
        """The kernel takes all that waits for these sides (both, if none is named)."""
        for side in sides or (C, U):
            leg = self.relay.legs[side]
            while leg.queue:
                self.got[side] += leg.queue[0]
                self.relay.sent(side, len(leg.queue[0]), self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass, ticking at each deadline on the way."""
        until = self.now + seconds
        self.pump()
        while self.relay.deadline <= until:
            self.now = max(self.now, self.relay.deadline)
            self.relay.tick(self.now)
            self.pump()
        self.now = until

    def sent(self, side: Side) -> list[tuple[int, bytes]]:
        """The frames that this side got, unmasked."""
        return list(_frames(self.got[side]))

    def codes(self, side: Side) -> list[int]:
        return [int.from_bytes(p[:2], "big") for o, p in self.sent(side) if o == frames.CLOSE]

    @property
    def settled(self) -> bool:
        return self.relay.cause is not None

    @property
    def over(self) -> bool:
        return self.relay.over

    def fates(self) -> tuple[Fate, Fate]:
        return self.relay.legs[C].fate, self.relay.legs[U].fate


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        masked, size = data[at + 1] & 0x80, data[at + 1] & 0x7F
        start = at + 2
        if size == 126:
            size = int.from_bytes(data[start : start + 2], "big")
            start += 2
        elif size == 127:
            size = int.from_bytes(data[start : start + 8], "big")
            start += 8
        mask = b""
        if masked:
            mask = data[start : start + 4]
            start += 4
        body = data[start : start + size]
        yield data[at] & 0x0F, frames.unmask(body, mask) if mask else body
        at = start + size


def test_bytes_pass_as_they_are_and_are_counted() -> None:
    line = Line()
    up = ours(frames.TEXT, b"hello") + ours(frames.PING, b"p")
    down = theirs(frames.BINARY, bytes(70000)) + theirs(frames.PONG, b"p")
    line.receive(C, up)
    line.receive(U, down)
    line.pump()

    assert line.got == {U: up, C: down}
    client, upstream = line.relay.counts()
    assert (client.frames, client.messages, client.payload) == (2, 1, 5)
    assert (upstream.frames, upstream.messages, upstream.bytes_in) == (2, 1, len(down))
    assert client.bytes_out == len(down)


@pytest.mark.parametrize("first", [C, U])
@pytest.mark.parametrize("code", [1000, 1001, 1007, 1011, 3000, 4999])
def test_a_close_passes_both_ways(first: Side, code: int) -> None:
    """The client is finished at once; a ws upstream closes first (RFC 6455 7.1.1)."""
    line = Line()
    frame = {C: ours, U: theirs}
    line.receive(first, frame[first](frames.CLOSE, code.to_bytes(2, "big")))
    line.pump()
    assert not line.over
    line.receive(first.other, frame[first.other](frames.CLOSE, code.to_bytes(2, "big")))
    line.pump()

    assert line.codes(C) == line.codes(U) == [code]
    assert line.fates() == (Fate.FINISH, Fate.OPEN)
    line.finish(U)
    line.finish(C)
    assert line.over
    assert (line.relay.cause, line.relay.side) == (Cause.CLOSED, first)
    assert [leg.close_sent for leg in line.relay.counts()] == [code, code]


def test_what_comes_behind_a_close_is_thrown_away() -> None:
    line = Line()
    line.receive(C, ours(frames.CLOSE, b"") + ours(frames.TEXT, b"late"))
    line.receive(U, theirs(frames.TEXT, b"still passes"))
    line.pump()

    assert line.sent(U) == [(frames.CLOSE, b"")]
    assert line.sent(C) == [(frames.TEXT, b"still passes")]


@pytest.mark.parametrize(("silent", "code"), [(U, 1014), (C, 1001)])
def test_a_close_that_is_not_answered(silent: Side, code: int) -> None:
    """close_timeout: the silent side is given up, the other gets an answer after all."""
    line = Line(close_timeout=5.0)
    frame = {C: ours, U: theirs}[silent.other]
    line.receive(silent.other, frame(frames.CLOSE, b"\x03\xe8"))
    line.wait(4.9)
    assert not line.settled
    line.wait(0.2)

    assert (line.relay.cause, line.relay.side) == (Cause.UNANSWERED, silent)
    assert line.relay.legs[silent].fate is Fate.RESET
    assert line.codes(silent.other) == [code]
    line.wait(5.1)
    assert line.over


@pytest.mark.parametrize("first", [C, U])
def test_fin_between_frames_is_passed_on_and_the_tail_arrives(first: Side) -> None:
    line = Line()
    frame = {C: ours, U: theirs}[first.other]
    line.finish(first)
    assert line.relay.legs[first.other].fate is Fate.FINISH
    tail = frame(frames.TEXT, b"tail")
    line.receive(first.other, tail)
    line.finish(first.other)
    line.pump()

    assert line.got[first] == tail
    assert line.over
    assert (line.relay.cause, line.relay.side) == (Cause.FINISHED, first)


@pytest.mark.parametrize("first", [C, U])
def test_after_a_fin_the_other_has_close_timeout(first: Side) -> None:
    line = Line(close_timeout=5.0)
    line.finish(first)
    line.wait(5.1)

    assert line.over
    assert line.relay.legs[first.other].fate is Fate.RESET


@pytest.mark.parametrize("first", [C, U])
def test_fin_inside_a_frame_resets_the_other(first: Side) -> None:
    """Inside a cut frame nothing is put."""
    line = Line()
    frame = {C: ours, U: theirs}[first](frames.BINARY, bytes(100))
    line.receive(first, frame[:50])
    line.finish(first)
    line.pump()

    assert line.over
    assert line.relay.cause is Cause.CUT
    assert line.relay.legs[first.other].fate is Fate.RESET
    assert line.relay.legs[first].fate is Fate.CLOSE
    assert line.got[first] == b""


@pytest.mark.parametrize(("first", "code"), [(C, 1001), (U, 1014)])
def test_fin_inside_a_header_is_told_with_a_close(first: Side, code: int) -> None:
    """No byte of that frame has passed, so the other side stands between two frames."""
    line = Line()
    line.receive(first, {C: ours, U: theirs}[first](frames.BINARY, bytes(300))[:3])
    line.finish(first)
    line.pump()

    assert line.relay.cause is Cause.CUT
    assert line.codes(first.other) == [code]


@pytest.mark.parametrize(("lost", "code"), [(C, 1001), (U, 1014)])
def test_a_lost_side_is_told_to_the_other(lost: Side, code: int) -> None:
    line = Line()
    line.relay.lost(lost, "reset", line.now)
    line.pump()

    assert line.codes(lost.other) == [code]
    assert not line.over
    line.finish(lost.other)
    assert line.over


@pytest.mark.parametrize("lost", [C, U])
def test_lost_inside_a_frame(lost: Side) -> None:
    line = Line()
    line.receive(lost, {C: ours, U: theirs}[lost](frames.BINARY, bytes(100))[:50])
    line.relay.lost(lost, "reset", line.now)
    line.pump()

    assert line.over
    assert line.relay.legs[lost.other].fate is Fate.RESET


VIOLATIONS = [
    (b"\xf1\x80" + MASK, 1002),
    (ours(frames.CLOSE, b"\x03\xe8\xff"), 1007),
    (ours(frames.BINARY, bytes(2000)), 1009),
]


@pytest.mark.parametrize(("data", "code"), VIOLATIONS)
def test_a_client_that_breaks_the_rules(data: bytes, code: int) -> None:
    line = Line(max_message=1000)
    line.receive(C, ours(frames.TEXT, b"fine") + data)
    line.pump()

    assert line.codes(C) == [code]
    assert line.codes(U) == [1001]
    assert line.sent(U)[0] == (frames.TEXT, b"fine")
    assert line.fates() == (Fate.FINISH, Fate.OPEN)


def test_an_upstream_that_breaks_the_rules() -> None:
    line = Line()
    line.receive(U, ours(frames.TEXT, b"masked"))
    line.pump()

    assert line.codes(C) == [1014]
    assert line.codes(U) == [1002]


def test_a_farewell_waits_for_the_end_of_the_frame_under_way() -> None:
    """The offender is in the middle of getting a frame: it gets the rest, then its Close."""
    line = Line()
    frame = theirs(frames.BINARY, bytes(100))
    line.receive(U, frame[:40])
    line.receive(C, b"\xf1\x80" + MASK)
    line.pump()
    assert line.got[C] == frame[:40]
    line.receive(U, frame[40:] + theirs(frames.TEXT, b"thrown away"))
    line.pump()

    assert line.sent(C)[0] == (frames.BINARY, bytes(100))
    assert line.codes(C) == [1002]
    assert len(line.sent(C)) == 2


def test_a_farewell_still_waits_when_its_side_has_finished() -> None:
    """FIN says that the offender sends no more, not that it does not read."""
    line = Line()
    frame = theirs(frames.BINARY, bytes(100))
    line.receive(U, frame[:40])
    line.receive(C, b"\xf1\x80" + MASK)
    line.finish(C)
    line.pump()
    assert not line.over
    line.receive(U, frame[40:])
    line.pump()

    assert line.sent(C)[0] == (frames.BINARY, bytes(100))
    assert line.codes(C) == [1002]
    assert line.relay.legs[C].fate is Fate.CLOSE


def test_a_farewell_whose_frame_never_ends_becomes_a_reset() -> None:
    line = Line(close_timeout=5.0)
    line.receive(U, theirs(frames.BINARY, bytes(100))[:40])
    line.relay.end(Cause.DRAIN, line.now)
    line.wait(5.1)

    assert line.over
    assert line.relay.legs[C].fate is Fate.RESET
    assert line.codes(U) == [1001]


def test_drain_tells_both_sides() -> None:
    line = Line(drain_code=1012, drain_reason="come back")
    line.relay.end(Cause.DRAIN, line.now)
    line.pump()

    assert line.sent(C) == [(frames.CLOSE, (1012).to_bytes(2, "big") + b"come back")]
    assert line.codes(U) == [1001]
    assert (line.relay.cause, line.relay.side) == (Cause.DRAIN, None)


def test_a_drain_without_a_reason_has_a_code_alone() -> None:
    line = Line(drain_reason="")
    line.relay.end(Cause.DRAIN, line.now)
    line.pump()

    assert line.sent(C) == [(frames.CLOSE, (1001).to_bytes(2, "big"))]


def test_killed_cuts_at_once_but_says_so_where_it_can() -> None:
    line = Line()
    line.receive(U, theirs(frames.BINARY, bytes(100))[:40])
    line.pump()
    line.relay.end(Cause.KILLED, line.now)
    line.pump()

    assert line.over
    assert line.fates() == (Fate.RESET, Fate.CLOSE)
    assert line.codes(U) == [1001]


def test_killed_hurries_a_drain() -> None:
    line = Line()
    line.relay.end(Cause.DRAIN, line.now)
    line.pump()
    assert not line.over
    line.relay.end(Cause.KILLED, line.now)

    assert line.over
    assert (line.relay.cause, line.relay.detail) == (Cause.KILLED, "ended at once")


@pytest.mark.parametrize("gone", [(C,), (U,), (C, U)], ids=["client", "upstream", "both"])
def test_a_drain_is_killed_as_long_as_a_side_is_waited_for(gone: tuple[Side, ...]) -> None:
    """Not where both have finished, and only their bytes are on the way."""
    line = Line()
    line.relay.end(Cause.DRAIN, line.now)
    for side in gone:
        line.receive(side, (ours, theirs)[side](frames.CLOSE, b"\x03\xe9"))
        line.relay.finished(side, line.now)
    line.relay.end(Cause.KILLED, line.now)
    line.pump()

    assert line.over
    assert line.relay.cause is (Cause.DRAIN if gone == (C, U) else Cause.KILLED)


def test_session_timeout_tells_the_chosen_code() -> None:
    line = Line(session_timeout=60.0, session_code=4001)
    line.wait(59.0)
    assert not line.settled
    line.wait(2.0)

    assert (line.codes(C), line.codes(U)) == ([4001], [1001])
    assert line.relay.cause is Cause.SESSION_TIMEOUT


def test_idle_timeout_counts_bytes_of_both_sides() -> None:
    line = Line(idle_timeout=10.0)
    for side, frame in ((C, ours), (U, theirs)):
        line.wait(9.0)
        line.receive(side, frame(frames.TEXT, b"x"))
        line.pump()
    line.wait(9.0)
    assert not line.settled
    line.wait(2.0)

    assert line.relay.cause is Cause.IDLE


def test_heartbeats_do_not_keep_an_idle_session_alive() -> None:
    """Our own ping and its answer are no traffic of the session."""
    line = Line(idle_timeout=10.0, heartbeat=3.0, heartbeat_timeout=2.0)
    for _ in range(3):
        line.wait(3.0)
        for side, frame in ((C, ours), (U, theirs)):
            opcode, payload = line.sent(side)[-1]
            assert opcode == frames.PING
            line.receive(side, frame(frames.PONG, payload))
    line.wait(1.5)

    assert line.relay.cause is Cause.IDLE


def test_write_timeout_gives_up_a_side_that_takes_nothing() -> None:
    line = Line(write_timeout=30.0)
    line.receive(U, theirs(frames.TEXT, b"x"))
    line.now += 29.0
    line.relay.tick(line.now)
    assert not line.settled
    line.now += 2.0
    line.relay.tick(line.now)
    line.pump(U)

    assert (line.relay.cause, line.relay.side) == (Cause.STALLED, C)
    assert line.relay.legs[C].fate is Fate.RESET
    assert line.codes(U) == [1001]


def test_back_pressure_crosses_the_relay() -> None:
    """At max_queue the other side is not read any more; at half of it, it is again."""
    line = Line(max_queue=1000)
    line.receive(U, theirs(frames.BINARY, bytes(1100)))
    assert not line.relay.legs[U].reading
    assert line.relay.legs[C].reading
    line.relay.sent(C, 500, line.now)
    assert not line.relay.legs[U].reading
    line.relay.sent(C, 150, line.now)

    assert line.relay.legs[U].reading


# --- Heartbeat ------------------------------------------------------------------------------


def test_a_quiet_side_is_pinged_and_its_pong_is_swallowed() -> None:
    line = Line(heartbeat=30.0)
    line.wait(30.0)
    (opcode, payload), = line.sent(C)
    assert opcode == frames.PING
    line.now += 0.25
    line.receive(C, ours(frames.PONG, payload))
    line.pump()

    assert [o for o, _ in line.sent(U)] == [frames.PING]     # its own, and no pong
    assert line.relay.counts()[0].round_trip == pytest.approx(0.25)
    assert line.relay.counts()[0].pings_sent == 1


def test_a_side_that_sends_is_not_pinged() -> None:
    line = Line(heartbeat=30.0)
    for _ in range(5):
        line.wait(20.0)
        line.receive(C, ours(frames.TEXT, b"x"))
        line.receive(U, theirs(frames.TEXT, b"x"))
        line.pump()

    assert frames.PING not in [o for o, _ in line.sent(C) + line.sent(U)]


@pytest.mark.parametrize(("dead", "code"), [(C, 1001), (U, 1014)])
def test_a_side_without_a_sign_of_life_is_lost(dead: Side, code: int) -> None:
    line = Line(heartbeat=30.0, heartbeat_timeout=20.0)
    for _ in range(4):                       # the other side is alive all the time
        line.wait(12.0)
        if not line.settled:
            alive = {C: ours, U: theirs}[dead.other]
            line.receive(dead.other, alive(frames.TEXT, b"x"))
    assert not line.settled
    line.wait(3.0)

    assert (line.relay.cause, line.relay.side) == (Cause.SILENT, dead)
    assert line.codes(dead.other) == [code]


def test_any_byte_is_a_sign_of_life() -> None:
    line = Line(heartbeat=30.0, heartbeat_timeout=20.0)
    line.wait(30.0)
    line.receive(C, ours(frames.TEXT, bytes(200))[:1])
    line.receive(U, theirs(frames.TEXT, b"x"))
    line.wait(21.0)

    assert not line.settled


def test_no_own_ping_while_a_foreign_one_is_unanswered() -> None:
    """RFC 6455 5.5.3: only the latest ping need be answered; ours would hide the other's."""
    line = Line(heartbeat=30.0, heartbeat_timeout=20.0)
    line.wait(20.0)
    line.receive(U, theirs(frames.PING, b"foreign"))
    line.wait(11.0)
    assert line.sent(C) == [(frames.PING, b"foreign")]
    line.wait(10.0)                          # 21 s after the foreign ping

    assert (line.relay.cause, line.relay.side) == (Cause.SILENT, C)


def test_a_foreign_pong_passes() -> None:
    line = Line(heartbeat=30.0)
    line.receive(U, theirs(frames.PING, b"foreign"))
    line.receive(C, ours(frames.PONG, b"foreign"))
    line.pump()

    assert line.sent(U) == [(frames.PONG, b"foreign")]


def test_no_ping_inside_a_frame() -> None:
    line = Line(heartbeat=30.0, heartbeat_timeout=20.0)
    frame = theirs(frames.BINARY, bytes(100))
    line.receive(U, frame[:50])
    line.wait(40.0)
    assert line.got[C] == frame[:50]
    line.receive(U, frame[50:])
    line.pump()
    line.wait(1.0)

    assert [o for o, _ in line.sent(C)] == [frames.BINARY, frames.PING]


def test_our_frames_toward_an_upstream_are_masked() -> None:
    line = Line(heartbeat=30.0)
    line.wait(30.0)

    assert line.got[U][1] & 0x80
    assert not line.got[C][1] & 0x80


# --- Raw upstreams --------------------------------------------------------------------------


def test_raw_up_is_payload_and_down_is_frames() -> None:
    line = Line(raw=True)
    line.receive(C, ours(frames.TEXT, b"one ") + ours(frames.BINARY, b"two"))
    line.receive(U, b"three")
    line.pump()

    assert line.got[U] == b"one two"
    assert line.got[C] == theirs(frames.BINARY, b"three")


def test_raw_text_is_never_cut_inside_a_character() -> None:
    line = Line(raw=True, raw_text=True)
    euro = "€".encode()
    line.receive(U, b"a" + euro[:1])
    line.receive(U, euro[1:2])
    line.receive(U, euro[2:] + b"b")
    line.pump()

    assert line.sent(C) == [(frames.TEXT, b"a"), (frames.TEXT, euro + b"b")]


@pytest.mark.parametrize("data", [b"\xff", b"ok\xc3"])
def test_raw_bytes_that_are_not_text(data: bytes) -> None:
    line = Line(raw=True, raw_text=True)
    line.receive(U, data)
    if not line.settled:
        line.finish(U)
    line.pump()

    assert (line.relay.cause, line.relay.side) == (Cause.TEXT, U)
    assert line.codes(C) == [1014]


@pytest.mark.parametrize("cuts", [(), (2,), (4,), (5,), (2, 4, 5)])
def test_raw_text_before_a_bad_byte_passes_however_it_is_cut(cuts: tuple[int, ...]) -> None:
    line = Line(raw=True, raw_text=True)
    data = "ok€".encode() + b"\xe2\x82\xff" + b"more"
    for start, stop in itertools.pairwise((0, *cuts, len(data))):
        line.receive(U, data[start:stop])
    line.pump()

    sent = line.sent(C)
    assert b"".join(payload for opcode, payload in sent if opcode == frames.TEXT) == data[:5]
    assert line.codes(C) == [1014]


def test_toward_raw_we_answer_ping_and_close() -> None:
    line = Line(raw=True)
    line.receive(C, ours(frames.PING, b"p") + ours(frames.TEXT, b"x"))
    line.receive(C, ours(frames.CLOSE, b"\x0f\xa0"))
    line.pump()

    assert line.sent(C) == [(frames.PONG, b"p"), (frames.CLOSE, b"\x0f\xa0")]
    assert line.got[U] == b"x"
    assert line.fates() == (Fate.FINISH, Fate.FINISH)
    assert line.relay.cause is Cause.CLOSED


def test_a_flood_of_pings_toward_raw_holds_its_sender() -> None:
    line = Line(raw=True, max_queue=1000)
    line.receive(C, ours(frames.PING, bytes(100)) * 12)

    assert not line.relay.legs[C].reading
    line.pump(C)
    assert line.relay.legs[C].reading


def test_raw_fin_is_a_normal_close_after_the_last_byte() -> None:
    line = Line(raw=True)
    line.receive(U, b"last")
    line.finish(U)
    line.pump()

    assert line.sent(C) == [(frames.BINARY, b"last"), (frames.CLOSE, b"\x03\xe8")]
    assert line.fates() == (Fate.FINISH, Fate.CLOSE)


def test_a_raw_reset_is_1014() -> None:
    line = Line(raw=True)
    line.relay.lost(U, "reset", line.now)
    line.pump()

    assert line.codes(C) == [1014]


@pytest.mark.parametrize("cut", [0, 10])
def test_a_client_that_goes_without_close_resets_raw(cut: int) -> None:
    """A cut stream must not look whole."""
    line = Line(raw=True)
    if cut:
        line.receive(C, ours(frames.BINARY, bytes(100))[:cut])
    line.finish(C)
    line.pump()

    assert line.relay.legs[U].fate is Fate.RESET
    assert line.over


def test_drain_of_raw_is_fin() -> None:
    line = Line(raw=True)
    line.relay.end(Cause.DRAIN, line.now)
    line.pump()

    assert line.codes(C) == [1001]
    assert line.fates() == (Fate.FINISH, Fate.FINISH)
    assert line.got[U] == b""


def test_text_to_raw_that_is_not_utf8() -> None:
    line = Line(raw=True)
    line.receive(C, ours(frames.TEXT, b"\xff"))
    line.pump()

    assert line.codes(C) == [1007]
    assert line.relay.legs[U].fate is Fate.RESET


def test_a_relay_without_limits_in_time_has_no_deadline() -> None:
    assert Line().relay.deadline == math.inf
