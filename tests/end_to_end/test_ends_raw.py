"""Sessions with a raw upstream (`tcp`, `tcp+unix`): what passes, and how they end.

The gateway is the WebSocket endpoint here. A stream that was cut must not look whole: the raw
upstream sees RST where a client did not close well, and FIN only where it did. A Unix socket has
no RST, so there the end is always EOF, and the access record alone says `cut`.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Upstream,
    Wire,
    close_frame,
    frame,
    upgrade,
)

pytestmark = pytest.mark.forms


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """Routes to one raw upstream."""
    url = upstream.url("tcp")
    quick = 'close_timeout = "300ms"'
    return start_shared(
        head()
        + route("raw", url, quick, 'subprotocols = ["binary", "base64"]')
        + route("patient", url, 'close_timeout = "8s"')
        + route("text", url, quick, 'frames = "text"')
        + route("limits", url, quick, 'max_frame = "1000B"', 'max_message = "2000B"')
        + route("session", url, quick, 'session_timeout = "300ms"', "session_code = 4007")
        + route("idle", url, quick, 'idle_timeout = "300ms"', 'heartbeat = "off"')
    )


def payloads(client: Wire, size: int, opcode: int = BINARY) -> bytes:
    """The payloads of the next frames, which have to be whole and of this kind, up to `size`."""
    got = b""
    while len(got) < size:
        one = client.read_frame()
        assert (one.opcode, one.fin, one.rsv, one.masked) == (opcode, True, 0, False)
        got += one.payload
    return got


# --- What passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 1_000_000])
def test_binary_becomes_bytes_and_back(ends: Ends, size: int) -> None:
    """Payloads go up without masks or headers, and come down in binary frames."""
    client, service = ends.raw()
    message = os.urandom(size)
    with client.sending(frame(BINARY, message)):
        assert service.exactly(size) == message
    with service.sending(message):
        assert payloads(client, size) == message


def test_fragments_text_and_empty_messages_become_one_stream(ends: Ends) -> None:
    """Boundaries of messages mean nothing to a byte stream."""
    client, service = ends.raw()
    client.send(
        frame(TEXT, b"a", fin=False)
        + frame(PING, b"between")
        + frame(CONTINUATION, b"", fin=False)
        + frame(CONTINUATION, "é".encode())
        + frame(BINARY, b"")
        + frame(BINARY, b"\xff\x00")
    )
    expected = "aé".encode() + b"\xff\x00"
    assert service.exactly(len(expected)) == expected
    assert client.read_frame()[:2] == (PONG, b"between")


def test_early_bytes_of_both_sides(ends: Ends) -> None:
    """Frames in one piece with the request, and a greeting before the client said anything."""
    client = ends.client()
    client.send(upgrade("/raw") + frame(TEXT, b"early ") + frame(TEXT, b"birds")[:7])
    service = ends.service()
    service.send(b"220 welcome\r\n")
    got = client.read_head()
    assert got.status == 101
    assert payloads(client, 13) == b"220 welcome\r\n"
    assert service.exactly(6) == b"early "


def test_client_pings_are_answered_here(ends: Ends) -> None:
    """Nothing of a ping or an unasked pong reaches the upstream."""
    client, service = ends.raw()
    client.send(frame(PING, b"x" * 125) + frame(PONG, b"nobody asked") + frame(BINARY, b"data"))
    assert client.read_frame()[:2] == (PONG, b"x" * 125)
    assert service.exactly(4) == b"data"


def test_deflate_is_declined_and_the_subprotocol_chosen(ends: Ends) -> None:
    """The first offer that the route has; no extension."""
    client, _ = ends.raw(
        "/raw",
        "Sec-WebSocket-Protocol: mqtt, base64, binary",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    )
    assert client.head is not None
    assert client.head.get(b"Sec-WebSocket-Protocol") in (b"base64", b"binary")
    assert client.head.get(b"Sec-WebSocket-Extensions") is None


@pytest.mark.parametrize("fields", [(), ("Sec-WebSocket-Protocol: mqtt",)])
def test_no_subprotocol_in_common(ends: Ends, fields: tuple[str, ...]) -> None:
    """None is chosen; the client decides what to make of it (RFC 6455 4.2.2)."""
    client, _ = ends.raw("/raw", *fields)
    assert client.head is not None
    assert client.head.get(b"Sec-WebSocket-Protocol") is None


def test_compressed_frame_is_refused(ends: Ends) -> None:
    """RSV1 means nothing where deflate was declined."""
    client, service = ends.raw("/raw", "Sec-WebSocket-Extensions: permessage-deflate")
    client.send(frame(TEXT, b"\x02\x00", rsv=4))
    assert client.read_close().code == 1002
    service.expect_reset()


def test_long_streams_both_ways(ends: Ends) -> None:
    """Frames of all sizes, cut anywhere, and bytes back at the same time."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    client, service = ends.raw("/patient")
    up = [dice.randbytes(dice.choice([0, 1, 100, 200, 5000, 70000])) for _ in range(150)]
    stream = b"".join(up)
    down = dice.randbytes(2_000_000)
    with client.sending(b"".join(frame(BINARY, one) for one in up)), service.sending(down):
        got_down = payloads(client, len(down))
        assert service.exactly(len(stream)) == stream
    assert got_down == down


# --- Text ----------------------------------------------------------------------------------------


def test_text_down_is_never_cut_inside_a_character(ends: Ends) -> None:
    """Half a character waits for its rest."""
    client, service = ends.raw("/text")
    raw = "a€\U0001f30d".encode()
    service.send(raw[:3])
    assert client.read_frame()[:2] == (TEXT, raw[:1])
    assert client.silent(0.05), "part of a character was sent"
    for at in range(3, len(raw)):
        service.send(raw[at : at + 1])
    got = b""
    while len(got) < len(raw) - 1:
        one = client.read_frame()
        assert one.opcode == TEXT
        one.payload.decode()
        got += one.payload
    assert got == raw[1:]


def test_text_down_that_is_not_utf8(ends: Ends) -> None:
    """The upstream broke its promise: it is reset, and the client told, behind what was text."""
    client, service = ends.raw("/text")
    service.send(b"fine")
    assert payloads(client, 4, TEXT) == b"fine"
    service.send(b"so far\xe2\x82\xff and no further")
    assert payloads(client, 6, TEXT) == b"so far"
    assert client.read_close().code == 1014
    service.expect_reset()
    assert ends.record(cause="text", blame="upstream")


def test_text_down_that_ends_inside_a_character(ends: Ends) -> None:
    """A cut character is a cut stream."""
    client, service = ends.raw("/text")
    service.send(b"ab\xe2\x82")
    service.finish()
    assert payloads(client, 2, TEXT) == b"ab"
    assert client.read_close().code == 1014


NOT_UTF8 = {
    "bad byte": [frame(TEXT, b"\xff")],
    "surrogate": [frame(TEXT, b"\xed\xa0\x80")],
    "overlong": [frame(TEXT, b"\xc0\xaf")],
    "ends inside a character": [frame(TEXT, b"abc\xe2\x82")],
    "in a later fragment": [frame(TEXT, b"abc\xe2", fin=False), frame(CONTINUATION, b"\x28")],
    "fragments end inside": [frame(TEXT, b"\xe2", fin=False), frame(CONTINUATION, b"\x82")],
}


@pytest.mark.parametrize("case", NOT_UTF8)
def test_text_up_that_is_not_utf8(ends: Ends, case: str) -> None:
    """1007 to the client; the upstream is reset, since its stream is not whole."""
    client, service = ends.raw()
    client.send(frame(BINARY, b"\xff"))  # RST drops what did not leave before
    assert service.exactly(1) == b"\xff"
    client.send(b"".join(NOT_UTF8[case]))
    assert client.read_close().code == 1007
    service.expect_reset()
    client.finish()
    client.expect_fin()
    assert ends.record(cause="text", blame="client")


def test_a_character_over_two_fragments(ends: Ends) -> None:
    """Text is checked over the whole message, not frame by frame."""
    client, service = ends.raw()
    client.send(frame(TEXT, b"\xe2", fin=False) + frame(CONTINUATION, b"\x82\xac"))
    assert service.exactly(3) == "€".encode()


# --- Ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [None, 1000, 1001, 1011, 3000, 4999])
def test_client_closes(ends: Ends, code: int | None) -> None:
    """Its bytes, then FIN, go up; the Close is answered with its code."""
    client, service = ends.raw()
    client.send(frame(BINARY, b"last") + close_frame(code, b"" if code is None else b"bye"))
    assert service.exactly(4) == b"last"
    service.expect_fin()
    assert client.read_close().code == code
    client.expect_fin()
    service.close()
    assert ends.record(cause="closed", route="raw")


def test_all_bytes_leave_before_the_fin(ends: Ends) -> None:
    """A Close right behind megabytes cuts none of them."""
    client, service = ends.raw("/patient")
    message = os.urandom(3_000_000)
    with client.sending(frame(BINARY, message) + close_frame(1000)):
        assert service.exactly(len(message)) == message
        service.expect_fin()
    assert client.read_close().code == 1000


def test_upstream_finishes(ends: Ends) -> None:
    """1000 to the client, behind the last byte."""
    client, service = ends.raw("/patient")
    message = os.urandom(3_000_000)
    with service.sending(message):
        got = payloads(client, len(message))
    service.finish()
    assert got == message
    assert client.read_close().code == 1000
    client.send(close_frame(1000))
    client.expect_fin()
    client.finish()
    service.end()
    assert ends.record(cause="finished", route="patient")


def test_upstream_finishes_at_once(ends: Ends) -> None:
    """Bytes and FIN in one go, before the client has its 101."""
    client = ends.client()
    client.send(upgrade("/patient"))
    service = ends.service()
    service.send(b"short and sweet")
    service.finish()
    assert client.read_head().status == 101
    assert payloads(client, 15) == b"short and sweet"
    assert client.read_close().code == 1000


PARTIAL = {
    "at the start": b"",
    "after a message": frame(BINARY, b"whole"),
    "in a fragmented message": frame(BINARY, b"whole", fin=False),
    "in a header": frame(BINARY, b"whole") + frame(BINARY, bytes(300))[:3],
    "in a payload": frame(BINARY, b"whole") + frame(BINARY, bytes(300))[:50],
    "in a ping": frame(BINARY, b"whole") + frame(PING, b"abc")[:-1],
    "in a close": frame(BINARY, b"whole") + close_frame(1000, b"bye")[:-1],
}


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("place", PARTIAL)
def test_client_goes_without_a_close(ends: Ends, place: str, how: str) -> None:
    """The upstream sees RST, wherever it happened."""
    client, service = ends.raw()
    client.send(PARTIAL[place])
    if how == "reset":
        if PARTIAL[place]:
            assert service.exactly(5) == b"whole"
        client.reset()
    else:
        client.finish()
    service.expect_reset()
    if how == "fin":
        client.end()
    record = ends.record(route="raw", blame="client")
    assert record["cause"] in ("finished", "cut", "lost")


@pytest.mark.parametrize("greeting", [b"", b"hello"])
def test_upstream_resets(ends: Ends, greeting: bytes) -> None:
    """1014 to the client, behind what came."""
    client, service = ends.raw()
    if greeting:
        service.send(greeting)
        assert payloads(client, 5) == greeting
    service.reset()
    assert client.read_close().code == 1014
    client.send_anyway(close_frame(1014))
    client.finish()
    client.expect_fin()
    assert ends.record(cause="lost", blame="upstream")


@pytest.mark.parametrize(
    "bad",
    [
        frame(TEXT, b"x", masked=False),
        frame(0x3, b""),
        frame(PING, b"x", fin=False),
        frame(CONTINUATION, b"x"),
        close_frame(1005),
        frame(BINARY, bytes(125), length_bits=16),
    ],
    ids=["unmasked", "opcode", "fragmented ping", "continuation", "close code", "length"],
)
def test_broken_framing(ends: Ends, bad: bytes) -> None:
    """1002 to the client, RST to the upstream; what was whole before has passed."""
    client, service = ends.raw()
    client.send(frame(BINARY, b"good") + bad + frame(BINARY, b"behind"))
    assert client.read_close().code == 1002
    client.finish()
    client.expect_fin()
    service.expect_reset()
    assert b"good".startswith(service.received[:4])
    assert len(service.received) <= 4


def test_limits_of_size(ends: Ends) -> None:
    """1009 to the client, RST to the upstream."""
    client, service = ends.raw("/limits")
    client.send(frame(BINARY, bytes(1000)))
    assert service.exactly(1000) == bytes(1000)
    client.send(frame(BINARY, bytes(1001)))
    assert client.read_close().code == 1009
    service.expect_reset()


def test_session_timeout(ends: Ends) -> None:
    """The route's code to the client, FIN to the upstream."""
    client, service = ends.raw("/session")
    assert client.read_close().code == 4007
    service.expect_fin()
    client.finish()
    client.expect_fin()
    assert ends.record(cause="session timeout")


def test_idle_timeout(ends: Ends) -> None:
    """1001 to the client, FIN to the upstream."""
    client, service = ends.raw("/idle")
    assert client.read_close().code == 1001
    service.expect_fin()
    assert ends.record(cause="idle timeout")


def test_nothing_listens(ends: Ends, start: Starter) -> None:
    """No 101 before the connection stands: 502."""
    with Upstream() as gone:
        url = gone.url("tcp")
    gateway = start(head() + route("raw", url))
    with gateway.connect() as client:
        client.send(upgrade("/raw"))
        got, _ = client.read_answer()
        assert got.status == 502
        client.expect_fin()


# --- Unix sockets --------------------------------------------------------------------------------


@pytest.fixture
def unix(start: Starter, tmp_path: Path) -> Iterator[Ends]:
    """Sessions with an upstream on a Unix socket."""
    with Upstream(path=tmp_path / "app.sock") as listening:
        gateway = start(
            head() + route("raw", listening.url("tcp"), 'close_timeout = "300ms"')
        )
        opened = Ends(gateway, listening)
        yield opened
        opened.close()


def test_unix_socket_carries_bytes(unix: Ends) -> None:
    """The same stream, over a Unix socket, and a whole end."""
    client, service = unix.raw()
    client.send(frame(BINARY, b"up"))
    assert service.exactly(2) == b"up"
    service.send(b"down")
    assert payloads(client, 4) == b"down"
    client.send(close_frame(1000))
    service.expect_fin()
    assert client.read_close().code == 1000


def test_cut_toward_a_unix_socket_is_in_the_record(unix: Ends) -> None:
    """There is no RST; the record says what it was."""
    client, service = unix.raw()
    client.send(frame(BINARY, b"whole") + frame(BINARY, bytes(300))[:50])
    client.finish()
    assert service.end() in ("fin", "reset")
    assert unix.record(cause="cut", blame="client")
