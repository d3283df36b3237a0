"""Large payloads pass through the kernel alone, and every rule holds exactly while they do."""

import resource
from collections.abc import Iterator

import pytest

from engine.rig import MEBIBYTE, noise
from engine.splicing import (
    CALM,
    HOT,
    PIPE,
    SPLICE_MIN,
    Road,
    Roads,
    close_code,
    close_of,
    driving,
    frame_of,
    header_of,
)
from gateway import frames
from gateway.events import RelayRules, Side

SIDES = pytest.mark.parametrize("side", list(Side))


@pytest.fixture
def roads() -> Iterator[Roads]:
    """A driver, which leaves nothing behind."""
    with driving() as made:
        yield made


def spliced(road: Road, side: Side) -> int:
    """Bytes from this side that never were in user space."""
    counts = road.counts()[side]
    assert counts.copied + counts.spliced == counts.bytes_in
    return counts.spliced


class TestCarriage:
    """What is spliced, and what is not, and why."""

    @SIDES
    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_large_frames_are_spliced(self, roads: Roads, side: Side, family: str) -> None:
        """Nine tenths of a megabyte and more; the counters tell, and the bytes are right."""
        road = roads.open(family=family)
        data = b"".join(frame_of(side, noise(MEBIBYTE, seed)) for seed in range(10))
        road.send(side, data)
        road.arrives(side, data)
        counts = road.counts()
        assert counts[side].spliced > 0.9 * len(data)
        assert counts[side].copied + counts[side].spliced == len(data)
        assert counts[side].not_spliced == ""
        assert (counts[side].frames, counts[side].messages) == (10, 10)
        assert counts[side].payload == 10 * MEBIBYTE
        assert counts[side.other].bytes_out == len(data)
        assert counts[side.other].spliced == 0
        assert counts[side.other].not_spliced == "no large frame came"
        assert roads.driver.stats()["pipes_in_use"] == 0

    def test_both_directions_at_once(self, roads: Roads) -> None:
        road = roads.open()
        data = [
            b"".join(frame_of(side, noise(MEBIBYTE, 10 * side + seed)) for seed in range(10))
            for side in Side
        ]
        for side in Side:
            road.send(side, data[side])
        roads.until(
            lambda: all(len(road.fars[s.other].received) >= len(data[s]) for s in Side)
        )
        for side in Side:
            assert road.fars[side.other].received == data[side]
            assert spliced(road, side) > 0.9 * len(data[side])

    @SIDES
    @pytest.mark.parametrize("off", [-1, 0, 1])
    def test_the_threshold_is_exact(self, roads: Roads, side: Side, off: int) -> None:
        """With the header alone in one read, all of the payload is spliced, or none of it."""
        road = roads.open()
        size = SPLICE_MIN + off
        payload = noise(size)
        for _ in range(2):
            road.send(side, header_of(side, size))
            roads.settle(3)
            road.send(side, payload)
            road.arrives(side, header_of(side, size) + payload)
        # The second header is peeked at, and goes with its payload.
        assert spliced(road, side) == (0 if off < 0 else 2 * size + len(header_of(side, size)))

    @SIDES
    def test_the_header_of_the_next_frame_is_read_here(self, roads: Roads, side: Side) -> None:
        """Splice takes exactly the payload, whatever waits behind it in the socket."""
        road = roads.open()
        payload = noise(SPLICE_MIN)
        small = frame_of(side, b"small") + frame_of(side, b"!", frames.PING)
        road.send(side, header_of(side, len(payload)))
        roads.settle(3)
        road.send(side, payload + small + frame_of(side, payload) + small)
        road.arrives(
            side, frame_of(side, payload) + small + frame_of(side, payload) + small
        )
        assert spliced(road, side) >= len(payload)
        assert road.counts()[side].frames == 6

    @SIDES
    @pytest.mark.parametrize("size", [SPLICE_MIN, 65_535, 65_536, 200_000])
    def test_headers_split_at_every_byte(self, roads: Roads, side: Side, size: int) -> None:
        road = roads.open()
        payload = noise(size)
        header = header_of(side, size)
        for cut in range(1, len(header) + 1):
            road.send(side, header[:cut])
            roads.settle(2)
            road.send(side, header[cut:] + payload)
            road.arrives(side, header + payload)
        counts = road.counts()[side]
        assert counts.messages == len(header)
        assert counts.payload == size * len(header)

    @SIDES
    def test_small_and_large_ones_in_turns(self, roads: Roads, side: Side) -> None:
        road = roads.open()
        data = b"".join(
            frame_of(side, noise(size, size), opcode)
            for size, opcode in [
                (5, frames.TEXT), (300_000, frames.BINARY), (0, frames.BINARY),
                (125, frames.PING), (40_000, frames.TEXT), (0, frames.PONG), (1, frames.TEXT),
                (MEBIBYTE, frames.BINARY), (32_768, frames.TEXT), (32_767, frames.TEXT),
            ] * 3
        )
        road.send(side, data)
        road.arrives(side, data)
        assert road.counts()[side].frames == 30
        assert spliced(road, side) > MEBIBYTE

    @SIDES
    def test_fragments_of_a_large_message(self, roads: Roads, side: Side) -> None:
        """A message counts once, with a ping between its parts."""
        road = roads.open()
        part = noise(200_000)
        data = (
            header_of(side, len(part), frames.TEXT, fin=False) + part
            + frame_of(side, b"between", frames.PING)
            + header_of(side, len(part), frames.CONTINUATION, fin=False) + part
            + header_of(side, len(part), frames.CONTINUATION) + part
        )
        road.send(side, data)
        road.arrives(side, data)
        counts = road.counts()[side]
        assert (counts.frames, counts.messages, counts.payload) == (4, 1, 600_000)
        assert counts.spliced

    def test_why_a_direction_is_not_spliced(self, roads: Roads) -> None:
        raw = roads.open(RelayRules(raw=True, heartbeat=0))
        text = roads.open(RelayRules(raw=True, raw_text=True, heartbeat=0))
        assert raw.counts()[0].not_spliced == "payloads are unmasked"
        assert raw.counts()[1].not_spliced == "little came at once"
        assert text.counts()[1].not_spliced == "text is checked"

    def test_a_frame_longer_than_all_buffers(self, roads: Roads) -> None:
        """32 MiB in one frame: more than any number of turns moves, and never all at once."""
        road = roads.open()
        piece = noise(MEBIBYTE)
        road.send(Side.CLIENT, header_of(Side.CLIENT, 32 * MEBIBYTE))
        roads.settle(3)
        road.browser.send(piece * 32)
        roads.until(lambda: len(road.server.received) >= 14 + 32 * MEBIBYTE)
        assert road.server.received[14:] == piece * 32
        assert spliced(road, Side.CLIENT) == 32 * MEBIBYTE
        assert roads.is_quiet()


class TestPipes:
    """A bounded pool, which is never needed."""

    @SIDES
    def test_without_pipes_all_is_copied(self, side: Side) -> None:
        with driving(pipes_max=0) as roads:
            road = roads.open()
            data = frame_of(side, noise(MEBIBYTE)) * 3
            road.send(side, data)
            road.arrives(side, data)
            counts = road.counts()[side]
            assert (counts.spliced, counts.copied) == (0, len(data))
            assert counts.not_spliced == "no pipe was free"

    def test_the_33rd_is_copied(self, roads: Roads) -> None:
        """Each of 32 stalled readers holds a pipe; one more relay goes on without."""
        data = frame_of(Side.UPSTREAM, noise(MEBIBYTE))
        stalled = [roads.open(small=True) for _ in range(32)]
        for road in stalled:
            road.browser.stall()
            road.send(Side.UPSTREAM, data[:10])
        roads.settle(5)
        for road in stalled:
            road.send(Side.UPSTREAM, data[10:])
        roads.until(lambda: roads.driver.stats()["pipes_in_use"] == 32)
        roads.settle()
        one_more = roads.open()
        one_more.send(Side.UPSTREAM, data)
        one_more.arrives(Side.UPSTREAM, data)
        counts = one_more.counts()[Side.UPSTREAM]
        assert (counts.spliced, counts.not_spliced) == (0, "no pipe was free")
        for road in stalled:
            road.browser.resume()
        roads.until(lambda: all(len(r.browser.received) >= len(data) for r in stalled))
        assert all(road.browser.received == data for road in stalled)
        assert roads.driver.stats()["pipes_in_use"] == 0
        one_more.send(Side.UPSTREAM, data)
        one_more.arrives(Side.UPSTREAM, data)
        assert spliced(one_more, Side.UPSTREAM), "a pipe came back"

    def test_descriptors_that_ran_out_come_back(self, roads: Roads) -> None:
        """Without them all is copied; once they are free again there are pipes again, soon."""
        road = roads.open()
        data = frame_of(Side.CLIENT, noise(HOT))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            road.send(Side.CLIENT, data)
            road.arrives(Side.CLIENT, data)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        counts = road.counts()[Side.CLIENT]
        assert (counts.spliced, counts.not_spliced) == (0, "no pipe was free")
        for _ in range(100):
            road.send(Side.CLIENT, data)
            road.arrives(Side.CLIENT, data)
            if spliced(road, Side.CLIENT):
                return
        pytest.fail("never again a pipe")

    def test_a_pipe_with_bytes_in_it_reaches_no_stranger(self) -> None:
        """With a single pipe, whose first user is cut while it holds bytes."""
        with driving(pipes_max=1) as roads:
            first = roads.open(small=True)
            first.browser.stall()
            first.send(Side.UPSTREAM, header_of(Side.UPSTREAM, MEBIBYTE))
            roads.settle(3)
            first.send(Side.UPSTREAM, b"x" * MEBIBYTE)
            roads.settle()
            assert roads.driver.stats()["pipes_in_use"] == 1
            assert roads.driver.stats()["queued"] >= 1000
            first.server.reset()
            first.ended()
            assert roads.driver.stats()["pipes_in_use"] == 0
            second = roads.open()
            data = frame_of(Side.CLIENT, b"y" * MEBIBYTE)
            second.send(Side.CLIENT, data)
            second.arrives(Side.CLIENT, data)
            assert spliced(second, Side.CLIENT)


class TestPressure:
    """A reader that stalls stops the sender, and nothing else."""

    @SIDES
    def test_a_stalled_reader(self, roads: Roads, side: Side) -> None:
        """What waits is bounded, the other direction flows, the driver sleeps."""
        road = roads.open(small=True)
        reader, sender = road.fars[side.other], road.fars[side]
        reader.stall()
        data = frame_of(side, noise(4 * MEBIBYTE))
        road.send(side, data)
        roads.settle()
        assert roads.driver.stats()["queued"] <= CALM.max_queue + HOT
        assert roads.is_quiet(), "it spins while nobody reads"
        back = frame_of(side.other, noise(MEBIBYTE, 2))
        reader.send(back)
        roads.until(lambda: len(sender.received) >= len(back))
        assert sender.received == back
        assert roads.driver.stats()["queued"] <= CALM.max_queue + HOT
        reader.resume()
        road.arrives(side, data)
        assert spliced(road, side)
        assert road.counts()[side.other].bytes_out == len(data)

    @SIDES
    @pytest.mark.parametrize("size", [40_000, 100_000, 200_000, 300_000])
    def test_who_waits_for_a_reader_sleeps_whatever_the_sender_does(
        self, roads: Roads, side: Side, size: int
    ) -> None:
        """The whole frame is in the pipe, its reader stalls, its sender half-closes."""
        road = roads.open(RelayRules(write_timeout=0.0, close_timeout=60.0), small=True)
        reader, sender = road.fars[side.other], road.fars[side]
        reader.stall()
        road.send(side, header_of(side, size))
        roads.settle(3)
        road.send(side, noise(size))
        sender.finish()
        roads.settle()
        assert roads.is_quiet()
        reader.finish()
        roads.settle()
        assert roads.is_quiet(), "both have half-closed"
        reader.resume()
        roads.until(lambda: reader.finished)
        assert reader.received == header_of(side, size) + noise(size)
        assert road.ended().cause.value == "finished"

    @SIDES
    @pytest.mark.parametrize("size", [40_000, 100_000, 200_000])
    def test_a_sender_that_resets_behind_a_whole_frame(
        self, roads: Roads, side: Side, size: int
    ) -> None:
        """All of its frame is in the pipe: the reader gets it, then the farewell."""
        road = roads.open(RelayRules(write_timeout=0.0, close_timeout=60.0), small=side.other)
        reader = road.fars[side.other]
        reader.stall()
        road.send(side, header_of(side, size))
        roads.settle(3)
        road.send(side, noise(size))
        whole = len(header_of(side, size)) + size
        roads.until(lambda: road.counts()[side].bytes_in == whole)
        assert spliced(road, side) == size
        assert 0 < road.counts()[side.other].bytes_out < whole
        road.fars[side].reset()
        roads.settle(5)
        assert roads.is_quiet(), "it spins"
        reader.resume()
        roads.until(lambda: reader.finished or len(reader.received) > whole + 4)
        assert reader.received[:whole] == header_of(side, size) + noise(size)
        code = 1001 if side is Side.CLIENT else 1014
        assert close_code(reader.received[whole:], side.other) == code
        reader.close()
        ended = road.ended()
        assert (ended.cause.value, ended.side) == ("lost", side)

    def test_a_full_pipe_is_bounded_by_max_queue(self, roads: Roads) -> None:
        """A route with a small queue has it also while its bytes are in a pipe."""
        rules = RelayRules(max_queue=64 * 1024, write_timeout=0.0)
        road = roads.open(rules, small=True)
        road.browser.stall()
        data = frame_of(Side.UPSTREAM, noise(MEBIBYTE))
        road.send(Side.UPSTREAM, data)
        roads.settle()
        assert roads.driver.stats()["queued"] <= rules.max_queue + max(PIPE, HOT)
        road.browser.resume()
        road.arrives(Side.UPSTREAM, data)


class TestCloseAfterLarge:
    """The handshake behind spliced frames is the ordinary one."""

    @SIDES
    def test_close_codes(self, roads: Roads, side: Side) -> None:
        road = roads.open()
        other = side.other
        data = frame_of(side, noise(MEBIBYTE)) + close_of(side, 4321)
        road.send(side, data)
        road.arrives(side, data)
        road.send(other, frame_of(other, noise(300_000)) + close_of(other, 4321))
        road.arrives(other, frame_of(other, noise(300_000)) + close_of(other, 4321))
        for far in road.fars:
            far.finish()
        ended = road.ended()
        assert (ended.cause.value, ended.side) == ("closed", side)
        assert [leg.close_received for leg in ended.counts] == [4321, 4321]
        assert ended.counts[side].spliced
        assert ended.counts[other].spliced


@SIDES
def test_a_slow_reader_is_spliced_to(roads: Roads, side: Side) -> None:
    """Bytes that wait in user space go ahead of the pipe; they do not keep it away."""
    road = roads.open(small=side.other)
    reader = road.fars[side.other]
    small = frame_of(side, noise(10_000)) * 30
    large = b"".join(frame_of(side, noise(2 * MEBIBYTE, seed)) for seed in range(4))
    reader.stall()
    road.send(side, small + large)
    roads.settle()
    reader.resume()
    road.arrives(side, small + large)
    assert spliced(road, side) > 0.9 * len(large)
