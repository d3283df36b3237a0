"""Splicing in the real program: what its records say, drain inside a frame, resets, signals."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.kit import FORMS, Gateway, head, launch, open_raw, open_ws, route
from end_to_end.wire import BINARY, Upstream, Wire, close_frame, frame, wait_for
from engine.rig import MEBIBYTE
from gateway.control.choice import why_no_uring
from gateway.control.parts import RELAY

pytestmark = pytest.mark.skipif(bool(RELAY.why_missing()), reason="relays are not compiled here")


@pytest.fixture(params=FORMS)
def engine(request: pytest.FixtureRequest) -> str:
    """Each form of relays that can be had here."""
    if request.param.startswith("io_uring") and (why := why_no_uring()):
        pytest.skip(why)
    return str(request.param)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A listening socket whose connections the test serves itself."""
    with Upstream() as listening:
        yield listening


def tables(upstream: Upstream) -> str:
    return (
        head() + route("ws", upstream.url("ws"))
        + route("raw", upstream.url("tcp"), 'frames = "binary"')
    )


def exchange(client: Wire, service: Wire, size: int, count: int) -> None:
    """So many frames of that size, each way."""
    up = frame(BINARY, os.urandom(size))
    down = frame(BINARY, os.urandom(size), masked=False)
    for _ in range(count):
        with client.sending(up):
            assert service.exactly(len(up)) == up
        with service.sending(down):
            assert client.exactly(len(down)) == down


def close_both(client: Wire, service: Wire) -> None:
    """The closing handshake, begun by the client."""
    client.send(close_frame(1000))
    assert service.read_close().code == 1000
    service.send(close_frame(1000, masked=False))
    service.finish()
    assert client.read_close().code == 1000
    client.finish()


def test_the_record_says_how_it_was_carried(
    engine: str, upstream: Upstream, tmp_path: Path
) -> None:
    """Of a large exchange, each direction is spliced for more than nine tenths."""
    with launch(tables(upstream), tmp_path, engine=engine) as gateway:
        client, service = open_ws(gateway, upstream)
        with client, service:
            exchange(client, service, MEBIBYTE, 5)
            close_both(client, service)
            record = gateway.record(route="ws")
    for side in ("from_client", "from_upstream"):
        leg = record[side]
        assert leg["spliced"] > 0.9 * leg["bytes_in"], leg
        assert leg["copied"] + leg["spliced"] == leg["bytes_in"]
        assert (leg["carried"], leg["not_spliced"]) == ("both", "")
        assert (leg["messages"], leg["close_received"]) == (5, 1000)
        assert leg["payload"] == 5 * MEBIBYTE
    assert (record["carried"], record["cause"]) == ("both", "closed")


def test_the_record_says_why_not(engine: str, upstream: Upstream, tmp_path: Path) -> None:
    """Small frames, and a raw upstream."""
    with launch(tables(upstream), tmp_path, engine=engine) as gateway:
        client, service = open_ws(gateway, upstream)
        with client, service:
            exchange(client, service, 1000, 3)
            close_both(client, service)
            record = gateway.record(route="ws")
        for side in ("from_client", "from_upstream"):
            assert record[side]["carried"] == "copy"
            assert record[side]["not_spliced"] == "no large frame came"
        client, service = open_raw(gateway, upstream)
        with client, service:
            with client.sending(frame(BINARY, bytes(MEBIBYTE))):
                assert service.exactly(MEBIBYTE) == bytes(MEBIBYTE)
            client.send(close_frame(1000))
            client.read_close()
            client.finish()
            service.close()
            record = gateway.record(route="raw")
        assert record["from_client"]["not_spliced"] == "payloads are unmasked"
        assert record["from_upstream"]["not_spliced"] == "little came at once"


def test_a_raw_upstream_that_says_much_is_spliced(
    engine: str, upstream: Upstream, tmp_path: Path
) -> None:
    """What it says arrives in binary frames, and the record tells that it was not copied."""
    data = os.urandom(8 * MEBIBYTE)
    with launch(tables(upstream), tmp_path, engine=engine) as gateway:
        client, service = open_raw(gateway, upstream)
        with client, service:
            received = b""
            with service.sending(data):
                while len(received) < len(data):
                    one = client.read_frame()
                    assert one.opcode == BINARY
                    received += one.payload
            assert received == data
            client.send(close_frame(1000))
            client.read_close()
            client.finish()
            service.close()
            record = gateway.record(route="raw")
    leg = record["from_upstream"]
    assert leg["bytes_in"] == leg["payload"] == len(data)
    assert leg["spliced"] > len(data) // 2
    assert (leg["carried"], leg["not_spliced"]) == ("both", "")


def test_the_record_as_text(engine: str, upstream: Upstream, tmp_path: Path) -> None:
    table = tables(upstream).replace('log = "json"', 'log = "text"')
    with launch(table, tmp_path, engine=engine) as gateway:
        client, service = open_ws(gateway, upstream)
        with client, service:
            exchange(client, service, MEBIBYTE, 1)
            service.send(frame(BINARY, b"small", masked=False))
            client.read_frame()
            close_both(client, service)
            assert gateway.out.wait(lambda: bool(gateway.out.lines), 10)
    (line,) = gateway.out.lines
    assert re.search(r" carried=both .* from_client\.spliced=\d{6,} ", line)
    assert "not_spliced" not in line


def test_drain_inside_a_spliced_frame(engine: str, upstream: Upstream, tmp_path: Path) -> None:
    """The farewell comes behind the frame, which comes whole; nothing is cut."""
    payload = os.urandom(4 * MEBIBYTE)
    whole = frame(BINARY, payload, masked=False)
    with launch(tables(upstream), tmp_path, engine=engine) as gateway:
        client, service = open_ws(gateway, upstream)
        with client, service:
            with service.sending(whole[: 2 * MEBIBYTE]):
                client.exactly(MEBIBYTE)
            gateway.signal(signal.SIGTERM)
            assert service.read_close().code == 1001
            with service.sending(whole[2 * MEBIBYTE :]):
                assert client.exactly(len(whole) - MEBIBYTE) == whole[MEBIBYTE:]
            assert client.read_close().code == 1001
            client.send(close_frame(1001))
            client.finish()
            service.send(close_frame(1001, masked=False))
            service.finish()
            assert gateway.wait() == 0
        record = gateway.record(route="ws")
    assert record["cause"] == "drain"
    assert record["from_upstream"]["spliced"] > MEBIBYTE


def test_resets_while_splicing_end_sessions_and_nothing_else(
    engine: str, upstream: Upstream, tmp_path: Path
) -> None:
    """The process was started with SIGPIPE at its default; it ignores it, and lives."""
    with launch(tables(upstream), tmp_path, engine=engine) as gateway:
        before = gateway.descriptors()
        for number in range(20):
            client, service = open_ws(gateway, upstream)
            with client, service:
                sender, reader = (client, service) if number % 2 else (service, client)
                data = frame(BINARY, bytes(4 * MEBIBYTE), masked=sender is client)
                with sender.sending(data):
                    reader.exactly(300_000 + 10_000 * number)
                    reader.reset()
        wait_for(lambda: len(gateway.records) == 20)
        assert {record["cause"] for record in gateway.records} == {"lost"}
        assert ignores_sigpipe(gateway)
        client, service = open_ws(gateway, upstream)
        with client, service:
            exchange(client, service, MEBIBYTE, 2)
            close_both(client, service)
        gateway.record(cause="closed")
        # What is kept open is pipes: two descriptors each, and a bounded number.
        assert gateway.descriptors() <= before + 2 * 32


def ignores_sigpipe(gateway: Gateway) -> bool:
    """By the kernel's word."""
    status = Path(f"/proc/{gateway.workers[0]}/status").read_text()
    found = re.search(r"SigIgn:\s+([0-9a-f]+)", status)
    assert found
    return bool(int(found[1], 16) >> (signal.SIGPIPE - 1) & 1)


def test_python_ignores_sigpipe_whatever_its_parent_did() -> None:
    """On which the engine on uvloop relies."""
    script = "import signal; print(signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )
    assert done.stdout == "True\n"
