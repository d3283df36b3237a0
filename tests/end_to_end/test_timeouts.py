"""What the clock ends and what the clock says: session, idle and write timeouts, heartbeats."""

import os
import threading
import time

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Upstream,
    Wire,
    close_frame,
    frame,
    plain,
    upgrade,
)

pytestmark = pytest.mark.forms

BEAT = 0.2  # seconds, as the table below has it
CLIENT, SERVICE = "client", "service"
SIDES = [CLIENT, SERVICE]
TOLD = {CLIENT: 1001, SERVICE: 1014}


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """Routes with one short time each."""
    url = upstream.url("ws")
    quick = 'close_timeout = "300ms"'
    beats = f'heartbeat = "{int(BEAT * 1000)}ms"'
    return start_shared(
        head()
        + route("session", url, quick, 'session_timeout = "300ms"', "session_code = 4007")
        + route("session-default", url, quick, 'session_timeout = "300ms"')
        + route("idle", url, quick, 'idle_timeout = "400ms"', 'heartbeat = "off"')
        + route("write", url, quick, 'write_timeout = "400ms"', 'heartbeat = "off"')
        + route("beat", url, quick, beats, 'heartbeat_timeout = "400ms"')
        + route("pace", url, quick, beats, 'heartbeat_timeout = "30s"')
        + route("raw", upstream.url("tcp"), quick, beats, 'heartbeat_timeout = "400ms"')
        + route("off", url, quick, 'heartbeat = "off"')
        + route("echo", "builtin:echo", 'write_timeout = "400ms"')
        + route("page", "builtin:page", 'write_timeout = "400ms"', path="/")
    )


def both(client: Wire, service: Wire, first: str) -> tuple[Wire, Wire]:
    """This side, then the other."""
    return (client, service) if first == CLIENT else (service, client)


# --- Session, idle, write ------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "code"), [("/session", 4007), ("/session-default", 1000)])
def test_session_timeout(ends: Ends, target: str, code: int) -> None:
    """The route's code to the client, 1001 to the upstream, however busy they are."""
    client, service = ends.ws(target)
    client.send(frame(TEXT, b"busy"))
    service.read_frame()
    assert client.read_close().code == code
    assert service.read_close().code == 1001
    client.send(close_frame(code))
    client.finish()
    client.expect_fin()
    service.send(close_frame(1001, masked=False))
    service.finish()
    service.expect_fin()
    assert ends.record(cause="session timeout")["blame"] in (None, "gateway")


def test_idle_timeout(ends: Ends) -> None:
    """No byte from either side: both are told 1001."""
    begun = time.monotonic()
    client, service = ends.ws("/idle")
    assert client.read_close().code == 1001
    assert time.monotonic() - begun >= 0.4
    assert service.read_close().code == 1001
    assert ends.record(cause="idle timeout")


@pytest.mark.parametrize("first", SIDES)
def test_bytes_of_either_side_put_off_the_idle_timeout(ends: Ends, first: str) -> None:
    """One talking side is enough."""
    one, other = both(*ends.ws("/idle"), first)
    begun = time.monotonic()
    while time.monotonic() - begun < 0.8:
        one.send(frame(BINARY, b"x", masked=first == CLIENT))
        assert other.read_frame().payload == b"x"
        time.sleep(0.05)


@pytest.mark.parametrize("first", SIDES)
def test_write_timeout(ends: Ends, first: str) -> None:
    """A side that takes no byte for so long is given up; the other is told."""
    one, other = both(*ends.ws("/write"), first)
    flood = frame(BINARY, bytes(100_000), masked=first != CLIENT) * 10
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set() and other.send_anyway(flood):
            pass

    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert other.read_close().code == TOLD[first]
    finally:
        stop.set()
        other.finish()
        sender.join()
    assert one.end() == "reset"
    record = ends.record(cause="stalled")
    assert record["blame"] == ("client" if first == CLIENT else "upstream")


def test_write_timeout_of_an_echo(ends: Ends) -> None:
    """It mirrors what is read from it: a client that only sends is at fault, and the record says
    so, though the echo takes no more bytes either."""
    client = ends.client()
    client.send(upgrade("/echo"))
    assert client.read_head().status == 101
    flood = frame(BINARY, bytes(100_000))
    while client.send_anyway(flood):
        pass
    record = ends.record(cause="stalled", route="echo")
    assert (record["blame"], record["detail"]) == ("client", "write_timeout: it took no byte")


def test_write_timeout_of_a_page(ends: Ends) -> None:
    """A client that asks and asks, and reads no answer, is held and then cut."""
    client = ends.client()
    while client.send_anyway(plain("/") * 1000):
        pass                                     # raises before the default of 30 s is over
    assert ends.record(route="page")["status"] == 200


# --- Heartbeat -----------------------------------------------------------------------------------


def answer_pings(wire: Wire, count: int, *, masked: bool) -> list[bytes]:
    """Read and answer so many pings; nothing else may come."""
    seen = []
    for _ in range(count):
        got = wire.read_frame()
        assert got.opcode == PING, got
        assert got.masked != masked
        wire.send(frame(PONG, got.payload, masked=masked))
        seen.append(got.payload)
    return seen


@pytest.mark.parametrize("name", ["beat", "pace"])
def test_quiet_sides_are_pinged_and_pongs_swallowed(ends: Ends, name: str) -> None:
    """Each side gets pings of its own, however long it would have to answer them; neither ever sees
    the other's answer."""
    client, service = ends.ws(f"/{name}")
    mine: list[list[bytes]] = []
    thread = threading.Thread(
        target=lambda: mine.append(answer_pings(service, 3, masked=False))
    )
    thread.start()
    pings = answer_pings(client, 3, masked=True)
    thread.join()
    assert len(mine) == 1
    assert len(set(pings)) == 3, "a payload was used twice"
    client.send(frame(TEXT, b"still here"))
    assert service.read_frame()[:2] == (TEXT, b"still here")
    client.send(close_frame(1000))
    while (got := service.read_frame()).opcode == PING:
        pass
    assert got.code == 1000
    service.send(close_frame(1000, masked=False))
    while client.read_frame().opcode == PING:
        pass
    record = ends.record(cause="closed", route=name)
    assert record["from_client"]["pings_sent"] >= 3
    assert record["from_client"]["round_trip_ms"] is not None
    assert record["from_upstream"]["round_trip_ms"] is not None


@pytest.mark.parametrize("first", SIDES)
def test_silent_side_is_lost(ends: Ends, first: str) -> None:
    """No sign of life after the ping: reset, and the other side told."""
    begun = time.monotonic()
    one, other = both(*ends.ws("/beat"), first)
    while (got := other.read_frame()).opcode == PING:
        other.send(frame(PONG, got.payload, masked=first != CLIENT))
    assert got.code == TOLD[first]
    assert time.monotonic() - begun >= BEAT + 0.4
    assert one.read_frame().opcode == PING
    one.expect_reset()
    assert ends.record(cause="silent", blame="client" if first == CLIENT else "upstream")


@pytest.mark.parametrize("first", SIDES)
def test_any_byte_is_a_sign_of_life(ends: Ends, first: str) -> None:
    """Who sends data need not answer pings, and is pinged only when quiet."""
    one, other = both(*ends.ws("/beat"), first)
    begun = time.monotonic()
    while time.monotonic() - begun < 1.0:
        one.send(frame(BINARY, b"x", masked=first == CLIENT))
        got = other.read_frame()
        if got.opcode == PING:
            other.send(frame(PONG, got.payload, masked=first != CLIENT))
            got = other.read_frame()
        assert got.payload == b"x"
        time.sleep(BEAT / 4)
    assert len(one.received) == one.parsed
    assert one.silent(0), "a side that talks was pinged"


@pytest.mark.parametrize("first", SIDES)
def test_foreign_pings_and_pongs_pass(ends: Ends, first: str) -> None:
    """What the sides say to each other is theirs, also unasked pongs."""
    one, other = both(*ends.ws("/off"), first)
    one.send(frame(PING, b"theirs", masked=first == CLIENT))
    assert other.read_frame()[:2] == (PING, b"theirs")
    other.send(frame(PONG, b"theirs", masked=first != CLIENT))
    assert one.read_frame()[:2] == (PONG, b"theirs")
    other.send(frame(PONG, b"unasked", masked=first != CLIENT))
    assert one.read_frame()[:2] == (PONG, b"unasked")


def test_no_ping_while_a_foreign_one_is_unanswered(ends: Ends) -> None:
    """The upstream's ping to the client stands for ours (RFC 6455 5.5.3), and loses it as well."""
    client, service = ends.ws("/beat")
    service.send(frame(PING, b"foreign", masked=False))
    assert client.read_frame()[:2] == (PING, b"foreign")
    while (got := service.read_frame()).opcode == PING:
        service.send(frame(PONG, got.payload, masked=False))
    assert got.code == 1001
    assert client.end() == "reset"
    assert len(client.received) == client.parsed, "a ping of the gateway's own came too"
    assert ends.record(cause="silent", blame="client")


@pytest.mark.parametrize("size", [50, 1_000_000])
@pytest.mark.parametrize("first", SIDES)
def test_heartbeats_never_enter_a_frame(ends: Ends, first: str, size: int) -> None:
    """A frame that takes longer than many heartbeats arrives as it was sent."""
    one, other = both(*ends.ws("/beat"), first)
    payload = os.urandom(size)
    whole = frame(BINARY, payload, masked=first == CLIENT)
    one.send(whole[:10])
    begun = time.monotonic()
    step = len(whole) // 40
    for at in range(10, len(whole), step):
        time.sleep(BEAT / 10)
        one.send(whole[at : at + step])
    assert time.monotonic() - begun > 3 * BEAT
    assert other.read_frame()[:2] == (BINARY, payload)
    assert other.read_frame().opcode == PING, "the ping that was due comes behind the frame"


def test_heartbeat_off(ends: Ends) -> None:
    """Where it is off, nobody is pinged."""
    client, service = ends.ws("/off")
    assert client.silent(3 * BEAT)
    assert service.silent(0)


def test_raw_upstream_gets_no_ping(ends: Ends) -> None:
    """The client is pinged, a byte stream cannot be; and a silent client is lost: RST up."""
    client, service = ends.raw()
    answer_pings(client, 2, masked=True)
    assert client.read_frame().opcode == PING
    service.expect_reset()
    assert not service.received
    assert client.end() == "reset"
    assert ends.record(cause="silent", blame="client")
