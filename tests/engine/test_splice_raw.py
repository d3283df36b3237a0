"""What a raw upstream says at length is put into frames without being looked at, and is exact.

Its bytes go socket, pipe, socket, each pipeful behind a header that promises just that much; so
the gateway's own frames have their place between two of these, also while a pipe is full.
"""

from collections.abc import Iterator

import pytest

from engine.rig import MEBIBYTE, noise
from engine.splicing import HOT, MASK, PIPE, SPLICE_MIN, Road, Roads, close_of, driving, frame_of
from gateway import frames
from gateway.events import Cause, RelayRules, Side

RAW = RelayRules(raw=True, write_timeout=0.0, close_timeout=5.0, heartbeat=0)
TEXT = RelayRules(raw=True, raw_text=True, write_timeout=0.0, close_timeout=5.0, heartbeat=0)
DATA = noise(4 * MEBIBYTE)


@pytest.fixture
def roads() -> Iterator[Roads]:
    """A driver, which leaves nothing behind."""
    with driving() as made:
        yield made


def parsed(data: bytes | bytearray) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame; the last one may be cut."""
    found, at = [], 0
    while at + 2 <= len(data):
        length, size = data[at + 1], 2
        assert data[at] & frames.FIN
        if length > frames.CONTROL_MAX:
            size = 4 if length == 126 else 10
            length = int.from_bytes(data[at + 2 : at + size], "big")
        found.append((data[at] & 0x0F, bytes(data[at + size : at + size + length])))
        at += size + length
    return found


def said(data: bytes | bytearray) -> bytes:
    """All payload of data frames."""
    return b"".join(payload for opcode, payload in parsed(data) if opcode < frames.CLOSE)


def hears(road: Road, data: bytes) -> list[tuple[int, bytes]]:
    """Wait until the client has all of it, and give the frames."""
    road.roads.until(lambda: len(said(road.browser.received)) >= len(data))
    assert said(road.browser.received) == data
    return parsed(road.browser.received)


def fill_pipe(roads: Roads, rules: RelayRules = RAW) -> Road:
    """A client that takes nothing while its upstream says `DATA`: a pipe waits for it."""
    road = roads.open(rules, small=Side.CLIENT)
    road.browser.stall()
    road.send(Side.UPSTREAM, DATA)
    roads.until(lambda: roads.driver.stats()["pipes_in_use"] == 1 and roads.is_quiet(0.1))
    client, upstream = road.counts()
    assert upstream.spliced > client.bytes_out, "nothing waits"
    return road


class TestCarriage:
    """What is spliced, and what is not, and why."""

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_much_is_spliced(self, roads: Roads, family: str) -> None:
        """The first read tells that it is much; what follows is spliced, and counted."""
        road = roads.open(RAW, family=family)
        road.send(Side.UPSTREAM, DATA)
        found = hears(road, DATA)
        client, upstream = road.counts()
        assert upstream.spliced > MEBIBYTE
        assert upstream.spliced + upstream.copied == upstream.bytes_in == len(DATA)
        assert upstream.payload == len(DATA)
        assert upstream.frames == upstream.messages == len(found)
        assert {opcode for opcode, _ in found} == {frames.BINARY}
        assert max(len(payload) for _, payload in found) <= max(HOT, PIPE)
        assert client.bytes_out == len(road.browser.received)
        assert (upstream.not_spliced, client.spliced) == ("", 0)
        assert roads.driver.stats()["pipes_in_use"] == 0

    def test_text_is_checked_and_so_copied(self, roads: Roads) -> None:
        road = roads.open(TEXT)
        text = ("aß€😀" * 200_000).encode()
        road.send(Side.UPSTREAM, text)
        found = hears(road, text)
        upstream = road.counts()[Side.UPSTREAM]
        assert (upstream.spliced, upstream.not_spliced) == (0, "text is checked")
        for opcode, payload in found:
            assert opcode == frames.TEXT
            payload.decode()                # never cut inside a character

    def test_little_at_once_is_copied(self, roads: Roads) -> None:
        """Below the threshold, however much it is in all."""
        road = roads.open(RAW)
        piece = noise(SPLICE_MIN - 1)
        for count in range(1, 20):
            road.send(Side.UPSTREAM, piece)
            hears(road, piece * count)
        upstream = road.counts()[Side.UPSTREAM]
        assert (upstream.spliced, upstream.not_spliced) == (0, "little came at once")

    def test_little_behind_much(self, roads: Roads) -> None:
        """A small piece may be spliced, since much was expected; the next ones are copied."""
        road = roads.open(RAW)
        road.send(Side.UPSTREAM, DATA)
        hears(road, DATA)
        data = DATA
        for _ in range(5):
            road.send(Side.UPSTREAM, b"little")
            data += b"little"
            before = road.counts()[Side.UPSTREAM].copied
            hears(road, data)
        assert road.counts()[Side.UPSTREAM].copied == before + len(b"little")

    def test_what_goes_up_is_unmasked_and_copied(self, roads: Roads) -> None:
        """Large frames of the client, both ways at once."""
        road = roads.open(RAW)
        up = noise(MEBIBYTE, 3)
        road.send(Side.UPSTREAM, DATA)
        road.send(Side.CLIENT, frame_of(Side.CLIENT, frames.unmask(up, MASK)) * 3)
        hears(road, DATA)
        roads.until(lambda: len(road.server.received) >= 3 * len(up))
        assert road.server.received == up * 3
        client = road.counts()[Side.CLIENT]
        assert (client.spliced, client.not_spliced) == (0, "payloads are unmasked")

    def test_without_pipes_all_is_copied(self) -> None:
        with driving(pipes_max=0) as roads:
            road = roads.open(RAW)
            road.send(Side.UPSTREAM, DATA)
            hears(road, DATA)
            upstream = road.counts()[Side.UPSTREAM]
            assert (upstream.spliced, upstream.not_spliced) == (0, "no pipe was free")


class TestPressure:
    """A client that takes nothing holds its upstream, and nothing else."""

    def test_a_stalled_client(self, roads: Roads) -> None:
        """What waits is bounded, the driver sleeps, the other direction flows, all arrives."""
        road = fill_pipe(roads)
        assert roads.driver.stats()["queued"] <= RAW.max_queue + PIPE + HOT
        roads.until(roads.is_quiet)         # in vain if it spins while nobody reads
        road.browser.send(frame_of(Side.CLIENT, frames.unmask(b"back", MASK)))
        roads.until(lambda: road.server.received == b"back")
        road.browser.resume()
        hears(road, DATA)

    def test_it_is_lost_as_stalled(self, roads: Roads) -> None:
        rules = RelayRules(raw=True, write_timeout=0.5, close_timeout=0.1, heartbeat=0)
        road = fill_pipe(roads, rules)
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.STALLED, Side.CLIENT)
        road.browser.resume()
        roads.until(lambda: road.browser.was_reset and road.server.was_reset)

    def test_a_ping_comes_between_two_frames(self, roads: Roads) -> None:
        """It waits behind the pipe, and is answered after it."""
        rules = RelayRules(
            raw=True, heartbeat=0.05, heartbeat_timeout=60, write_timeout=0, close_timeout=5
        )
        road = fill_pipe(roads, rules)
        roads.until(lambda: road.counts()[Side.CLIENT].pings_sent)      # it is in the queue
        road.browser.resume()
        hears(road, DATA)
        roads.until(lambda: any(op == frames.PING for op, _ in parsed(road.browser.received)))
        assert said(road.browser.received) == DATA
        pings = [payload for op, payload in parsed(road.browser.received) if op == frames.PING]
        road.send(Side.CLIENT, frames.build_frame(frames.PONG, pings[-1], MASK))
        roads.until(lambda: road.counts()[Side.CLIENT].round_trip is not None)


class TestEnds:
    """The last word stands behind all that was in the pipe."""

    def test_the_upstream_finishes(self, roads: Roads) -> None:
        road = fill_pipe(roads)
        road.server.finish()
        road.browser.resume()
        roads.until(lambda: road.browser.finished)
        found = parsed(road.browser.received)
        assert said(road.browser.received) == DATA
        assert found[-1] == (frames.CLOSE, b"\x03\xe8")
        road.browser.close()
        assert road.ended().cause is Cause.FINISHED

    def test_the_upstream_resets(self, roads: Roads) -> None:
        """What left its socket before arrives in whole frames; then the client is told."""
        road = fill_pipe(roads)
        road.server.reset()
        road.browser.resume()
        roads.until(lambda: road.browser.finished)
        *found, (opcode, reason) = parsed(road.browser.received)
        assert (opcode, reason[:2]) == (frames.CLOSE, (1014).to_bytes(2, "big"))
        assert found
        assert DATA.startswith(said(road.browser.received))
        road.browser.close()
        assert road.ended().cause is Cause.LOST

    def test_the_client_resets(self, roads: Roads) -> None:
        road = fill_pipe(roads)
        road.browser.reset()
        ended = road.ended()
        assert (ended.cause, ended.side) == (Cause.LOST, Side.CLIENT)
        roads.until(lambda: road.server.was_reset)
        assert roads.driver.stats()["pipes_in_use"] == 0

    def test_the_client_closes(self, roads: Roads) -> None:
        """Its code comes back behind the pipe; the upstream gets FIN."""
        road = fill_pipe(roads)
        road.send(Side.CLIENT, close_of(Side.CLIENT, 4321))
        roads.until(lambda: road.server.finished)
        road.browser.resume()
        roads.until(lambda: road.browser.finished)
        found = parsed(road.browser.received)
        assert found[-1] == (frames.CLOSE, (4321).to_bytes(2, "big"))
        assert DATA.startswith(said(road.browser.received))
        for far in road.fars:
            far.close()
        ended = road.ended()
        assert ended.cause is Cause.CLOSED
        assert ended.counts[Side.CLIENT].close_received == 4321

    def test_drain(self, roads: Roads) -> None:
        road = fill_pipe(roads)
        road.end(Cause.DRAIN)
        road.browser.resume()
        roads.until(lambda: road.browser.finished)
        found = parsed(road.browser.received)
        assert found[-1][0] == frames.CLOSE
        assert found[-1][1][:2] == (1001).to_bytes(2, "big")
        assert DATA.startswith(said(road.browser.received))
        for far in road.fars:
            far.close()
        assert road.ended().cause is Cause.DRAIN
