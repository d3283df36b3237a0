"""Ends under pressure: sides that are slow get all and their farewell, sides that stopped are cut.

`close_timeout` is short here, and the slow side takes several times as long: what keeps it from
being cut is that it goes on taking bytes. Nothing sleeps but the slow readers.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import BINARY, PING, PONG, Upstream, Wire, close_frame, frame

pytestmark = pytest.mark.forms

SIZE = 6 * 1024 * 1024                 # more than a slow side takes within close_timeout
STEPS = 24                             # pieces in which a slow reader takes that
PAUSE = 0.1                            # seconds before each: 2.4 in all
QUICK = 'close_timeout = "1s"'


@pytest.fixture(scope="module")
def narrow() -> Iterator[Upstream]:
    """An upstream whose connections have small kernel buffers."""
    with Upstream() as listening:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            listening.socket.setsockopt(socket.SOL_SOCKET, option, 65536)
        yield listening


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, narrow: Upstream) -> Gateway:
    """Routes to the narrow upstream."""
    return start_shared(
        head()
        + route("ws", narrow.url("ws"), QUICK)
        + route("beats", narrow.url("ws"), 'heartbeat = "300ms"', 'heartbeat_timeout = "1s"')
        + route("hasty", narrow.url("ws"), 'close_timeout = "700ms"')
        + route("raw", narrow.url("tcp"), QUICK)
        + route("stalls", narrow.url("tcp"), QUICK, 'write_timeout = "700ms"')
    )


@pytest.fixture
def ends(gateway: Gateway, narrow: Upstream) -> Iterator[Ends]:
    """Sessions with the narrow upstream."""
    opened = Ends(gateway, narrow)
    yield opened
    opened.close()


def slowly(wire: Wire, size: int) -> bytes:
    """The next `size` bytes, a piece at a time."""
    got = b""
    while len(got) < size:
        time.sleep(PAUSE)
        got += wire.exactly(min(SIZE // STEPS, size - len(got)))
    return got


def make_narrow(wire: Wire) -> None:
    """Little waits in this side's kernel: what it does not read, the gateway keeps."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)


# --- Close ---------------------------------------------------------------------------------------


def test_all_bytes_reach_a_slow_raw_upstream_before_the_fin(ends: Ends) -> None:
    """The client closed behind them, and was answered long since."""
    client, service = ends.raw()
    message = os.urandom(SIZE)
    with client.sending(frame(BINARY, message) + close_frame(1000)):
        assert slowly(service, SIZE) == message
    service.expect_fin()
    assert client.read_close().code == 1000
    service.close()
    client.finish()
    client.expect_fin()
    record = ends.record(cause="closed", route="raw")
    assert (record["cut"], record["from_upstream"]["bytes_out"]) == ("", SIZE)


def test_a_raw_upstream_that_stops_reading_is_cut(ends: Ends) -> None:
    """By write_timeout: RST, since its stream is not whole; the record says who lost bytes."""
    client, service = ends.raw("/stalls")
    with client.sending(frame(BINARY, os.urandom(4 * SIZE))):
        record = ends.record(route="stalls")
    service.expect_reset()
    assert client.read_close().code == 1014
    assert (record["cause"], record["blame"]) == ("stalled", "upstream")
    assert record["cut"] == "upstream"


@pytest.mark.parametrize("closes", ["client", "upstream"])
def test_a_close_behind_much_is_answered_late(ends: Ends, closes: str) -> None:
    """The time to answer begins when the Close has left, not when it came in."""
    client, service = ends.ws()
    first, other = (client, service) if closes == "client" else (service, client)
    make_narrow(client)
    whole = frame(BINARY, os.urandom(SIZE), masked=closes == "client")
    with first.sending(whole + close_frame(1000, masked=closes == "client")):
        assert slowly(other, len(whole)) == whole
    assert other.read_close().code == 1000
    other.send(close_frame(1000, masked=closes == "upstream"))
    assert first.read_close().code == 1000
    service.finish()                   # the server closes first (RFC 6455 7.1.1)
    client.expect_fin()
    client.finish()
    record = ends.record(route="ws", blame=closes)
    assert (record["cause"], record["cut"]) == ("closed", "")


def test_a_close_that_the_kernel_still_has_is_not_unanswered(ends: Ends) -> None:
    """All has left the gateway, and not its kernel: a client that takes that slowly is no more
    cut than one that takes it slowly from the gateway."""
    client, service = ends.ws("/hasty")
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    whole = frame(BINARY, os.urandom(400_000), masked=False)
    with service.sending(whole + close_frame(1000, masked=False)):
        got = b""
        while len(got) < len(whole):
            time.sleep(PAUSE)
            got += client.exactly(min(12_000, len(whole) - len(got)))
    assert got == whole
    assert client.read_close().code == 1000
    client.send(close_frame(1000))
    assert service.read_close().code == 1000
    record = ends.record(route="hasty", blame="upstream")
    assert (record["cause"], record["cut"]) == ("closed", "")


def test_one_that_reads_slowly_is_not_silent(ends: Ends) -> None:
    """It is pinged behind what the kernel has for it, and cannot answer before it has read that:
    several times `heartbeat_timeout`."""
    client, service = ends.ws("/beats")
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    whole = frame(BINARY, os.urandom(400_000), masked=False)
    told: list[int | None] = []

    def serve() -> None:
        service.send(whole)
        while (heard := service.read_frame()).opcode == PING:
            service.send(frame(PONG, heard.payload, masked=False))
        told.append(heard.code)
        service.send(close_frame(1000, masked=False))

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        got = b""
        while len(got) < len(whole):
            time.sleep(PAUSE)
            got += client.exactly(min(12_000, len(whole) - len(got)))
        assert got == whole
        ping = client.read_frame()
        assert ping.opcode == PING
        client.send(frame(PONG, ping.payload) + close_frame(1000))
        served.result()
    assert told == [1000], "and its pong was swallowed"
    record = ends.record(route="beats")
    assert (record["cause"], record["cut"]) == ("closed", "")


# --- Drain ---------------------------------------------------------------------------------------


def test_a_drain_waits_for_a_slow_reader(start: Starter, narrow: Upstream) -> None:
    """It gets the rest of the frame under way, then 1001; nobody is cut, and the exit code is 0."""
    gateway = start(head('drain = "30s"') + route("ws", narrow.url("ws"), QUICK))
    ends = Ends(gateway, narrow)
    client, service = ends.ws()
    make_narrow(client)
    whole = frame(BINARY, os.urandom(SIZE), masked=False)
    with service.sending(whole):
        assert client.exactly(1000) == whole[:1000]
        gateway.signal(signal.SIGTERM)
        assert slowly(client, len(whole) - 1000) == whole[1000:]
    assert client.read_close().code == 1001
    assert service.read_close().code == 1001
    ends.close()
    assert gateway.wait() == 0
    record = gateway.record(route="ws")
    assert (record["cause"], record["cut"]) == ("drain", "")


@pytest.mark.parametrize(
    ("drain", "write_timeout"), [("700ms", "30s"), ("30s", "700ms")], ids=["drain", "write_timeout"]
)
def test_a_drain_cuts_who_reads_nothing(
    start: Starter, narrow: Upstream, drain: str, write_timeout: str
) -> None:
    """At its end, or by write_timeout if that is over sooner: it is counted, and the exit code
    is 4."""
    gateway = start(
        head(f'drain = "{drain}"')
        + route("ws", narrow.url("ws"), QUICK, f'write_timeout = "{write_timeout}"')
    )
    ends = Ends(gateway, narrow)
    client, service = ends.ws()
    make_narrow(client)
    with service.sending(frame(BINARY, os.urandom(4 * SIZE), masked=False)):
        assert len(client.exactly(1000)) == 1000
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 4
    assert client.end() == "reset"
    ends.close()
    record = gateway.record(route="ws")
    assert (record["cause"], record["cut"]) == (
        "killed" if drain == "700ms" else "drain", "client"
    )
    assert '"cut":1' in gateway.messages
