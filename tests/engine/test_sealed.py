"""Compiled relays with TLS on one side or both: the same rules, by clear bytes."""

from collections.abc import Iterator
from functools import partial

import pytest

from engine.authority import Authority
from engine.rig import MEBIBYTE, SocketFar, noise
from engine.sealing import Parties, SealedRoads, driving_sealed, parties
from engine.splicing import CALM, close_code, close_of, frame_of, header_of
from engine.tls_ends import NAME
from gateway import frames
from gateway.control.parts import OPENSSL
from gateway.errors import Fault
from gateway.events import Cause, RelayRules, Side

pytestmark = pytest.mark.skipif(bool(OPENSSL.why_missing()), reason="no OpenSSL here")

BOTH = (Side.CLIENT, Side.UPSTREAM)
SEALED = [(Side.CLIENT,), (Side.UPSTREAM,), BOTH]
SEALED_SIDES = pytest.mark.parametrize(
    ("roads", "side"), [(sealed, side) for sealed in SEALED for side in sealed],
    indirect=["roads"],
)
VERSIONS = ["TLSv1_2", "TLSv1_3"]
_AUTHORITY = Authority()
_PAIR = _AUTHORITY.issue(NAME)


def received(far: SocketFar, size: int) -> bool:
    """So much has come there."""
    return len(far.received) >= size


@pytest.fixture(params=VERSIONS)
def all_parties(request: pytest.FixtureRequest) -> Parties:
    """Who trusts whom, in each version of TLS."""
    return parties(_AUTHORITY, _PAIR, request.param)


@pytest.fixture(params=SEALED, ids=["client", "upstream", "both"])
def roads(request: pytest.FixtureRequest, all_parties: Parties) -> Iterator[SealedRoads]:
    """A driver with TLS on some sides."""
    with driving_sealed(all_parties, request.param) as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 125, 126, 4096, 16_384, 65_536, 3 * MEBIBYTE])
def test_frames_pass_both_ways(roads: SealedRoads, size: int) -> None:
    """Small ones, records, and more than one read brings."""
    road = roads.one()
    for side in Side:
        for _ in range(3):
            data = frame_of(side, noise(size))
            road.send(side, data)
            road.arrives(side, data)
    for side in Side:
        leg = road.counts()[side]
        whole = 3 * len(frame_of(side, bytes(size)))
        assert (leg.bytes_in, leg.messages, leg.copied, leg.spliced) == (whole, 3, whole, 0)
        assert road.counts()[side.other].bytes_out == whole
        assert leg.not_spliced == "tls"


def test_close_passes_and_both_end(roads: SealedRoads) -> None:
    """Each side gets close_notify behind its last frame."""
    road = roads.one()
    road.send(Side.CLIENT, close_of(Side.CLIENT, 1000))
    road.arrives(Side.CLIENT, close_of(Side.CLIENT, 1000))
    road.send(Side.UPSTREAM, close_of(Side.UPSTREAM, 1000))
    road.server.finish()
    road.arrives(Side.UPSTREAM, close_of(Side.UPSTREAM, 1000))
    roads.until(lambda: road.browser.finished)
    road.browser.finish()
    ended = road.ended()
    assert (ended.cause, ended.faults) == (Cause.CLOSED, (None, None))
    roads.until(lambda: road.server.finished)


def test_what_a_socket_does_not_take_is_counted_clear(roads: SealedRoads) -> None:
    """Back-pressure by clear bytes; all arrives once the far end reads on."""
    road = roads.one(RelayRules(max_queue=64 * 1024, write_timeout=0.0), small=True)
    data = b"".join(frame_of(Side.UPSTREAM, noise(50_000)) for _ in range(30))
    road.browser.stall()
    road.send(Side.UPSTREAM, data)
    roads.settle(40)
    queued = roads.driver.stats()["queued"]
    counts = road.counts()
    assert 64 * 1024 <= queued <= 64 * 1024 + 300 * 1024
    assert counts[Side.CLIENT].bytes_out + queued == counts[Side.UPSTREAM].bytes_in
    road.browser.resume()
    road.arrives(Side.UPSTREAM, data)
    assert roads.driver.stats()["queued"] == 0


@pytest.mark.parametrize("side", list(Side))
def test_fin_without_close_notify_is_no_end(roads: SealedRoads, side: Side) -> None:
    """On a side with TLS; without, FIN between frames is an end."""
    road = roads.one()
    road.send(side, frame_of(side, b"whole"))
    road.arrives(side, frame_of(side, b"whole"))
    if side not in roads.sealed:
        road.fars[side].finish()
        roads.until(lambda: road.fars[side.other].finished)
        road.fars[side.other].finish()
        assert road.ended().cause is Cause.FINISHED
        return
    road.sealed_far(side).truncate()
    other = road.fars[side.other]
    roads.until(partial(received, other, 3))
    other.finish()
    ended = road.ended()
    assert (ended.cause, ended.side) == (Cause.TRUNCATED, side)
    assert ended.faults[side] is Fault.TRUNCATED
    assert close_code(road.fars[side.other].received, side.other) == (
        1001 if side is Side.CLIENT else 1014
    )


@SEALED_SIDES
def test_fin_without_close_notify_behind_close_harms_nothing(
    roads: SealedRoads, side: Side
) -> None:
    """The stream is whole: its Close says so."""
    road = roads.one()
    road.send(side, close_of(side, 1000))
    road.sealed_far(side).truncate()
    road.arrives(side, close_of(side, 1000))
    road.send(side.other, close_of(side.other, 1000))
    road.fars[side.other].finish()
    ended = road.ended()
    assert (ended.cause, ended.faults) == (Cause.CLOSED, (None, None))
    roads.until(lambda: bytes(road.fars[side].received) == close_of(side.other, 1000))


@SEALED_SIDES
def test_a_forged_record_is_a_loss(roads: SealedRoads, side: Side) -> None:
    """And what came before it is delivered."""
    road = roads.one()
    road.send(side, frame_of(side, b"before"))
    road.sealed_far(side).send_sealed(b"\x17\x03\x03\x00\x20" + bytes(32))
    ended = road.ended()
    assert (ended.side, ended.faults[side]) == (side, Fault.TLS)
    # The alert, which an RST may overtake.
    assert road.sealed_far(side).alert in ("SSLV3_ALERT_BAD_RECORD_MAC", "")
    other = road.fars[side.other]
    before = frame_of(side, b"before")
    roads.until(lambda: len(other.received) > len(before))
    assert other.received.startswith(before)


def test_a_record_in_one_byte_pieces(roads: SealedRoads) -> None:
    """It is held until it is whole."""
    road = roads.one()
    side = roads.sealed[0]
    far = road.sealed_far(side)
    data = frame_of(side, noise(300))
    far.tls.ssl.write(data)
    for byte in far.tls.outgoing.read():
        far.send_sealed(bytes((byte,)))
        roads.turn()
    road.arrives(side, data)


def test_a_cut_record_is_a_cut_stream(roads: SealedRoads) -> None:
    """FIN in the middle of one."""
    road = roads.one()
    side = roads.sealed[0]
    far = road.sealed_far(side)
    far.tls.ssl.write(frame_of(side, noise(300)))
    far.send_sealed(far.tls.outgoing.read()[:-7])
    far.truncate()
    roads.until(partial(received, road.fars[side.other], 3))
    road.fars[side.other].finish()
    ended = road.ended()
    assert (ended.side, ended.faults[side]) == (side, Fault.TRUNCATED)


def test_text_for_a_raw_upstream(all_parties: Parties) -> None:
    """Unmasked, and wrapped: a header and its payload are one record."""
    for sealed in SEALED:
        with driving_sealed(all_parties, sealed) as roads:
            road = roads.one(RelayRules(raw=True, write_timeout=0.0))
            payload = noise(100_000)
            road.send(
                Side.CLIENT, header_of(Side.CLIENT, len(payload))
                + frames.unmask(payload, b"\x01\x02\x03\x04"),
            )
            road.arrives(Side.CLIENT, payload)
            road.send(Side.UPSTREAM, b"x" * 100)
            roads.until(partial(received, road.browser, 102))
            assert road.browser.received[:2] == b"\x82\x64"


def test_close_notify_without_close(roads: SealedRoads) -> None:
    """Between two frames it passes as FIN does, and the other side still speaks."""
    road = roads.one(CALM)
    side = roads.sealed[0]
    road.fars[side].finish()
    roads.until(lambda: road.fars[side.other].finished)
    road.send(side.other, frame_of(side.other, b"late"))
    road.arrives(side.other, frame_of(side.other, b"late"))
    road.fars[side.other].finish()
    ended = road.ended()
    assert (ended.cause, ended.faults) == (Cause.FINISHED, (None, None))


@pytest.mark.parametrize("cause", [Cause.DRAIN, Cause.KILLED])
def test_an_end_by_order(roads: SealedRoads, cause: Cause) -> None:
    """The farewell is sealed, close_notify behind it; killed, nothing looks whole."""
    road = roads.one()
    road.send(Side.CLIENT, frame_of(Side.CLIENT, b"first"))
    road.arrives(Side.CLIENT, frame_of(Side.CLIENT, b"first"))
    road.end(cause)
    for side in Side:
        far = road.fars[side]
        roads.until(partial(received, far, 1))
        assert far.received[0] == frames.FIN | frames.CLOSE
        far.finish()
    assert road.ended().cause is cause
