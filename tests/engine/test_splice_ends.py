"""Ends, limits and heartbeats while a frame is spliced: exactly as where it is copied.

A frame is "under way" when its header has passed and a part of its payload is still to come; "in
the pipe" are bytes that left one socket and have not reached the other.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.rig import MEBIBYTE, noise
from engine.splicing import (
    CALM,
    Road,
    Roads,
    close_code,
    close_of,
    driving,
    frame_of,
    header_of,
)
from gateway import frames
from gateway.events import Cause, RelayRules, Side

SIDES = pytest.mark.parametrize("side", list(Side))
SHORT = RelayRules(write_timeout=0.0, close_timeout=0.2)
TESTS = Path(__file__).resolve().parents[1]
CLOSE_SIZE = (4, 8)                # of a Close with a code alone, as each side gets it
PART = 300_000                     # what has come of a frame of one MiB


@pytest.fixture
def roads() -> Iterator[Roads]:
    """A driver, which leaves nothing behind."""
    with driving() as made:
        yield made


def begin_frame(road: Road, side: Side, size: int = MEBIBYTE, part: int = PART) -> bytes:
    """A frame under way, of which `part` has come and has all arrived; it is given."""
    header = header_of(side, size)
    road.send(side, header)
    road.roads.settle(3)
    road.send(side, noise(part))
    road.roads.until(lambda: road.counts()[side].bytes_in == len(header) + part)
    assert road.counts()[side].spliced == part
    return header + noise(part)


def live(road: Road, side: Side) -> None:
    """A sign of life from this side, for which a ping is due again, whatever came before. Its
    `messages` show that it was heard."""
    road.send(side, frame_of(side, b"alive"))
    road.roads.until(lambda: road.counts()[side].messages == 1)


def behind_pings(received: bytearray, side: Side) -> bytearray:
    """What a side got, but for the pings that a slow machine brought before the first frame."""
    size = 14 if side is Side.UPSTREAM else 10         # with 8 bytes of payload, and a mask
    while received[:1] == bytes((frames.FIN | frames.PING,)):
        received = received[size:]
    return received


def fill_pipe(road: Road, side: Side, size: int = MEBIBYTE) -> bytes:
    """A frame under way whose reader takes nothing, so that a part of it waits in the pipe; all
    that was sent of it is given."""
    road.fars[side.other].stall()
    header = header_of(side, size)
    road.send(side, header)
    road.roads.settle(3)
    data = noise(size)
    road.send(side, data)
    road.roads.until(lambda: road.roads.is_quiet(0.01))
    counts = road.counts()
    assert counts[side.other].bytes_out < counts[side].bytes_in, "nothing waits"
    assert counts[side].spliced
    return header + data


class TestCuts:
    """Inside a cut frame no Close is put: the other side sees an abnormal end."""

    @SIDES
    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_with_nothing_in_the_pipe(self, roads: Roads, side: Side, how: str) -> None:
        road = roads.open(SHORT)
        begun = begin_frame(road, side)
        other = road.fars[side.other]
        roads.until(lambda: len(other.received) == len(begun))
        if how == "fin":
            road.fars[side].finish()
        else:
            road.fars[side].reset()
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.CUT if how == "fin" else Cause.LOST, side)
        roads.until(lambda: other.was_reset)
        assert other.received == begun

    @SIDES
    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_with_bytes_in_the_pipe(self, roads: Roads, side: Side, how: str) -> None:
        """They are thrown away with it."""
        road = roads.open(SHORT, small=side.other)
        sent = fill_pipe(road, side)
        other = road.fars[side.other]
        if how == "fin":
            road.fars[side].finish()
            other.resume()                   # FIN comes behind bytes that are still to be read
        else:
            road.fars[side].reset()
        ended = road.ended() if how == "rst" else None
        if ended is not None:
            other.resume()
            assert (ended.cause, ended.side) == (Cause.LOST, side)
            roads.until(lambda: other.was_reset)
            assert sent.startswith(other.received)
        else:
            roads.until(lambda: len(other.received) == len(sent))
            assert not roads.ended, "the whole frame came before FIN"

    @SIDES
    def test_the_receiver_resets(self, roads: Roads, side: Side) -> None:
        """Bytes in the pipe have nowhere to go; the sender gets its farewell."""
        road = roads.open(SHORT, small=side.other)
        fill_pipe(road, side)
        road.fars[side.other].reset()
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.LOST, side.other)
        sender = road.fars[side]
        roads.until(lambda: sender.received or sender.was_reset)
        if sender.received:
            assert close_code(sender.received, side) == (1014 if side is Side.CLIENT else 1001)

    @SIDES
    def test_the_receiver_resets_while_the_stream_flows(self, roads: Roads, side: Side) -> None:
        """The failure is splice's own: EPIPE or ECONNRESET on its way out."""
        road = roads.open(SHORT)
        data = frame_of(side, noise(8 * MEBIBYTE))
        road.send(side, data)
        roads.until(lambda: len(road.fars[side.other].received) > MEBIBYTE)
        road.fars[side.other].reset()
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.LOST, side.other)

    @SIDES
    def test_a_close_from_the_receiver_meets_a_frame_under_way(
        self, roads: Roads, side: Side
    ) -> None:
        """It passes at once, the frame goes on, and then the answer comes."""
        road = roads.open()
        begun = begin_frame(road, side)
        close = close_of(side.other, 1000)
        road.send(side.other, close)
        road.arrives(side.other, close)
        rest = noise(MEBIBYTE)[PART:]
        rest_of_frame = b"z" * len(rest)
        answer = close_of(side, 1000)
        road.send(side, rest_of_frame + answer)
        road.arrives(side, begun + rest_of_frame + answer)
        for far in road.fars:
            far.finish()
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.CLOSED, side.other)

    @SIDES
    def test_a_cut_by_order(self, roads: Roads, side: Side) -> None:
        """KILLED inside a spliced frame resets its reader."""
        road = roads.open(SHORT)
        begin_frame(road, side)
        road.end(Cause.KILLED)
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.KILLED, None)
        roads.until(lambda: road.fars[side.other].was_reset)


class TestDrain:
    """A farewell waits for the end of the frame."""

    @SIDES
    @pytest.mark.parametrize("stalled", [False, True])
    def test_it_comes_behind_the_frame(self, roads: Roads, side: Side, *, stalled: bool) -> None:
        road = roads.open(CALM, small=side.other if stalled else False)
        other = road.fars[side.other]
        if stalled:
            whole = fill_pipe(road, side)
        else:
            whole = begin_frame(road, side) + b"z" * (MEBIBYTE - PART)
        road.end(Cause.DRAIN)
        roads.settle(5)
        sender = road.fars[side]
        roads.until(lambda: sender.received)
        assert close_code(sender.received, side) == 1001, "this way a frame is not under way"
        if stalled:
            assert roads.is_quiet()
            other.resume()
        else:
            assert b"\x88" not in other.received[len(header_of(side, MEBIBYTE)) + PART :]
            road.send(side, whole[len(header_of(side, MEBIBYTE)) + PART :])
        roads.until(lambda: len(other.received) >= len(whole) + CLOSE_SIZE[side.other])
        assert other.received[: len(whole)] == whole
        assert close_code(other.received[len(whole) :], side.other) == 1001
        for one in Side:
            road.send(one, close_of(one, 1001))
            road.fars[one].finish()
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.DRAIN, None)
        assert not any(far.was_reset for far in road.fars)
        assert ended.counts[side].spliced

    @SIDES
    def test_it_gives_up_a_frame_that_does_not_end(self, roads: Roads, side: Side) -> None:
        road = roads.open(SHORT)
        begun = begin_frame(road, side)
        road.end(Cause.DRAIN)
        ended = road.ended()
        assert ended.cause is Cause.DRAIN
        roads.until(lambda: road.fars[side.other].was_reset)
        assert road.fars[side.other].received == begun


class TestHeartbeat:
    """The gateway's own frames stand between two others, never inside."""

    @SIDES
    def test_no_ping_inside_a_frame(self, roads: Roads, side: Side) -> None:
        """Its reader is quiet; the ping waits until the frame is whole, wherever its bytes are."""
        rules = RelayRules(heartbeat=0.03, heartbeat_timeout=60, write_timeout=0, close_timeout=5)
        road = roads.open(rules)
        begun = begin_frame(road, side)
        live(road, side.other)
        other = road.fars[side.other]
        roads.settle(100)
        assert behind_pings(other.received, side.other) == begun
        rest = b"z" * (MEBIBYTE - PART)
        road.send(side, rest)
        whole = len(begun) + len(rest)
        roads.until(lambda: len(behind_pings(other.received, side.other)) > whole)
        got = behind_pings(other.received, side.other)
        assert got[:whole] == begun + rest
        assert got[whole] == frames.FIN | frames.PING
        assert road.counts()[side].spliced == MEBIBYTE

    @SIDES
    def test_a_ping_waits_behind_the_pipe(self, roads: Roads, side: Side) -> None:
        """The frame has been read to its end, and waits in the pipe."""
        rules = RelayRules(heartbeat=0.03, heartbeat_timeout=60, write_timeout=0, close_timeout=5)
        road = roads.open(rules, small=side.other)
        other = road.fars[side.other]
        size = 100_000
        other.stall()
        road.send(side, header_of(side, size))
        roads.settle(3)
        live(road, side.other)
        before = road.counts()[side.other].pings_sent     # none may follow inside the frame
        road.send(side, noise(size))
        roads.until(lambda: road.counts()[side].messages == 1)
        roads.until(lambda: road.counts()[side.other].pings_sent > before)
        other.resume()
        whole = frame_of(side, noise(size))
        roads.until(lambda: len(behind_pings(other.received, side.other)) > len(whole))
        got = behind_pings(other.received, side.other)
        assert got[: len(whole)] == whole
        assert got[len(whole)] == frames.FIN | frames.PING

    @SIDES
    def test_spliced_bytes_are_a_sign_of_life(self, roads: Roads, side: Side) -> None:
        """Who sends a frame that takes long is neither pinged nor lost."""
        # Long beside what one round takes on a busy machine; and passed twice.
        rules = RelayRules(heartbeat=0.8, heartbeat_timeout=0.5, write_timeout=0, close_timeout=5)
        road = roads.open(rules)
        road.send(side, header_of(side, 60_000_000))
        data = noise(20_000)
        until = time.monotonic() + 1.7
        while time.monotonic() < until:
            road.send(side, data)
            road.send(side.other, frame_of(side.other, b"too"))
            roads.settle(5)
        assert not roads.ended
        assert [leg.pings_sent for leg in road.counts()] == [0, 0]

    def test_a_reader_that_takes_nothing_is_stalled(self, roads: Roads) -> None:
        rules = RelayRules(write_timeout=0.1, close_timeout=0.1, heartbeat=0)
        road = roads.open(rules, small=Side.CLIENT)
        fill_pipe(road, Side.UPSTREAM)
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.STALLED, Side.CLIENT)
        road.browser.resume()
        roads.until(lambda: road.browser.was_reset)


class TestLimits:
    """Exact at sizes that are spliced."""

    @SIDES
    @pytest.mark.parametrize("kind", ["frame", "message"])
    def test_the_limit_passes_and_one_more_does_not(
        self, roads: Roads, side: Side, kind: str
    ) -> None:
        rules = RelayRules(
            max_frame=MEBIBYTE if kind == "frame" else 0,
            max_message=MEBIBYTE if kind == "message" else 0,
            write_timeout=0, close_timeout=0.3,
        )
        road = roads.open(rules)
        for _ in range(2):
            data = frame_of(side, noise(MEBIBYTE))
            road.send(side, data)
            road.arrives(side, data)
        road.send(side, frame_of(side, noise(MEBIBYTE + 1)))
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.TOO_BIG, side)
        assert ended.counts[side].messages == 2
        assert ended.counts[side].close_sent == 1009
        other = road.fars[side.other]
        roads.until(lambda: other.received)
        assert close_code(other.received, side.other) == (1001 if side is Side.CLIENT else 1014)

    @SIDES
    def test_the_parts_of_a_message_count_together(self, roads: Roads, side: Side) -> None:
        """Two spliced parts and a byte too many."""
        road = roads.open(RelayRules(max_message=MEBIBYTE, write_timeout=0, close_timeout=0.3))
        half = noise(MEBIBYTE // 2)
        parts = (
            header_of(side, len(half), fin=False) + half
            + header_of(side, len(half), frames.CONTINUATION, fin=False) + half
        )
        road.send(side, parts)
        road.arrives(side, parts)
        road.send(side, header_of(side, 1, frames.CONTINUATION) + b"!")
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.TOO_BIG, side)
        assert ended.counts[side].spliced

    @SIDES
    def test_broken_framing_behind_a_spliced_frame(self, roads: Roads, side: Side) -> None:
        road = roads.open(SHORT)
        data = frame_of(side, noise(MEBIBYTE))
        road.send(side, data + b"\xff" * 20)
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.FRAMING, side)
        other = road.fars[side.other]
        roads.until(lambda: len(other.received) > len(data))
        assert other.received[: len(data)] == data
        assert close_code(other.received[len(data) :], side.other)


# --- Processes of their own -----------------------------------------------------------------------

CHILD = """
import os, sys
sys.path[:0] = [{tests!r}]
from engine.splicing import *
from engine.rig import noise, MEBIBYTE
{body}
print("lived")
"""

# The sender is told of first, so splice is what meets the reset.
RESET_WHILE_SPLICING = """
import signal
assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
with driving() as roads:
    for side, family in [(side, family) for side in Side for family in ("tcp", "unix")]:
        road = roads.open(RelayRules(close_timeout=0.02), family=family)
        road.send(side, header_of(side, MEBIBYTE))
        road.send(side, noise(100_000))
        roads.until(lambda: len(road.fars[side.other].received) > 100_000)
        road.send(side, noise(100_000))
        road.fars[side.other].reset()
        assert road.ended().cause is Cause.LOST
"""

# fs.pipe-user-pages-soft: past it a new pipe of an unprivileged user has two pages, and cannot be
# made larger (pipe(7)).
NO_PAGES = """
import fcntl
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
hoard = []
while True:
    hoard += os.pipe()
    try:
        fcntl.fcntl(hoard[-1], 1031, 1 << 20)
    except PermissionError:
        break
with driving() as roads:
    for side in Side:
        road = roads.open()
        data = frame_of(side, noise(MEBIBYTE))
        road.send(side, data)
        road.arrives(side, data)
        counts = road.counts()[side]
        assert (counts.spliced, counts.not_spliced) == (0, "no pipe was free"), counts
"""


def child(body: str) -> None:
    """Run this in a process of its own, which has to live."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(tests=str(TESTS), body=body)],
        capture_output=True, text=True, timeout=100,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), *sys.path[1:]])},
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )
    assert done.stdout == "lived\n", (done.returncode, done.stdout, done.stderr[-2000:])


def test_a_reset_while_splicing_raises_no_signal() -> None:
    """splice(2) to a socket that was reset raises SIGPIPE, for which there is no flag. Python
    ignores it from its start on, whatever the parent did."""
    child(RESET_WHILE_SPLICING)


def test_pipes_that_cannot_be_made_large_are_not_used() -> None:
    """All is copied, and the counters say why."""
    child(NO_PAGES)


class TestFirstWords:
    """What stands before a large frame, and how its stream ends, is not lost by looking ahead."""

    @SIDES
    def test_whole_messages_before_a_cut_frame_arrive(self, roads: Roads, side: Side) -> None:
        road = roads.open()
        whole = b"".join(frame_of(side, b"message %d" % number) for number in range(100))
        road.send(side, whole + frame_of(side, noise(100_000))[:5_000])
        road.fars[side].finish()
        roads.until(lambda: len(road.fars[side.other].received) >= len(whole))
        assert road.fars[side.other].received[: len(whole)] == whole

    @SIDES
    def test_a_reset_behind_a_large_frame_is_a_loss(self, roads: Roads, side: Side) -> None:
        road = roads.open()
        road.send(side, frame_of(side, noise(65_536)))
        road.arrives(side, frame_of(side, noise(65_536)))
        road.fars[side].reset()
        assert road.ended().cause is Cause.LOST
