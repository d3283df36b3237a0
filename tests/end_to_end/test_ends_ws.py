"""How sessions with a `ws` upstream end, each cell of the table of ends on real sockets.

`client` and `service` are the two far ends. A cut stream must never look whole: where the other
side is inside a frame that will not be finished, it sees RST, and no Close is put into the frame.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Upstream,
    Wire,
    close_frame,
    frame,
)

pytestmark = pytest.mark.forms

MAY_BE_SENT = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
MAY_NOT = [0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65535]
CLIENT, SERVICE = "client", "service"
SIDES = [CLIENT, SERVICE]
TOLD = {CLIENT: 1001, SERVICE: 1014}  # what the other side is told when this one is lost


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """Routes to one upstream, with a short and a long `close_timeout`, and with limits."""
    url = upstream.url("ws")
    quick = 'close_timeout = "300ms"'
    return start_shared(
        head()
        + route("ws", url, quick)
        + route("patient", url, 'close_timeout = "8s"')
        + route("limits", url, quick, 'max_frame = "1000B"', 'max_message = "2000B"')
    )


def sides(ends: Ends, first: str, target: str = "/ws", **how: list[bytes]) -> tuple[Wire, Wire]:
    """A session, the side that acts first and then the other."""
    client, service = ends.ws(target, **how)  # type: ignore[arg-type]
    return (client, service) if first == CLIENT else (service, client)


def data(first: str, payload: bytes, opcode: int = BINARY, *, fin: bool = True) -> bytes:
    """A frame as this side sends it."""
    return frame(opcode, payload, fin=fin, masked=first == CLIENT)


# --- Close ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [None, *MAY_BE_SENT])
@pytest.mark.parametrize("first", SIDES)
def test_close_passes_and_its_answer_too(ends: Ends, first: str, code: int | None) -> None:
    """Code and reason arrive, the answer comes back, and both connections end with FIN."""
    one, other = sides(ends, first)
    reason = b"" if code is None else "tschüß".encode()
    one.send(close_frame(code, reason, masked=first == CLIENT))
    got = other.read_close()
    assert got.payload == (b"" if code is None else struct.pack("!H", code) + reason)
    assert got.masked == (first == CLIENT)
    other.send(close_frame(code, masked=first != CLIENT))
    assert one.read_close().code == code
    client, service = (one, other) if first == CLIENT else (other, one)
    client.expect_fin()
    service.finish()
    service.expect_fin()
    record = ends.record(route="ws", status=101, cause="closed")
    assert record["phase"]


@pytest.mark.parametrize("first", SIDES)
def test_answer_may_have_another_code(ends: Ends, first: str) -> None:
    """Each side sees the other's own code."""
    one, other = sides(ends, first)
    one.send(close_frame(4001, masked=first == CLIENT))
    assert other.read_close().code == 4001
    other.send(close_frame(4002, masked=first != CLIENT))
    assert one.read_close().code == 4002


def test_upstream_closes_first(ends: Ends) -> None:
    """After both Closes the upstream's connection stays open until the upstream ends it."""
    client, service = ends.ws("/patient")
    client.send(close_frame(1000))
    service.read_close()
    service.send(close_frame(1000, masked=False))
    assert client.read_close().code == 1000
    assert service.silent(0.2), "the gateway ended the upstream's connection before it did"
    service.finish()
    service.expect_fin()


@pytest.mark.parametrize("first", SIDES)
def test_messages_until_the_answer_are_delivered(ends: Ends, first: str) -> None:
    """The side that got a Close may finish what it says before it answers."""
    one, other = sides(ends, first)
    one.send(close_frame(1000, masked=first == CLIENT))
    other.read_close()
    other.send(data(other_of(first), b"last words") + close_frame(1000, masked=first != CLIENT))
    assert one.read_frame().payload == b"last words"
    assert one.read_close().code == 1000


def other_of(side: str) -> str:
    """The other side's name."""
    return SERVICE if side == CLIENT else CLIENT


@pytest.mark.parametrize("first", SIDES)
def test_close_without_an_answer(ends: Ends, first: str) -> None:
    """A Close that is not answered in time: the silent side is reset, the other told."""
    one, other = sides(ends, first)
    one.send(close_frame(1000, masked=first == CLIENT))
    assert other.read_close().code == 1000
    assert one.read_close().code == TOLD[other_of(first)]
    other.expect_reset()
    assert ends.record(cause="unanswered")


@pytest.mark.parametrize("first", SIDES)
def test_fin_at_once_after_a_close(ends: Ends, first: str) -> None:
    """FIN right behind the Close: the Close passes, and so does the answer where it can."""
    one, other = sides(ends, first)
    one.send(close_frame(1000, masked=first == CLIENT))
    one.finish()
    assert other.read_close().code == 1000
    other.send_anyway(close_frame(1000, masked=first != CLIENT))
    if first == CLIENT:
        assert one.read_close().code == 1000
    other.finish()
    assert other.end() == "fin"


@pytest.mark.parametrize("first", SIDES)
def test_reset_after_a_close(ends: Ends, first: str) -> None:
    """RST behind the Close: the other side gets the Close, no second one, and an end."""
    one, other = sides(ends, first)
    one.send(close_frame(1000, masked=first == CLIENT))
    assert other.read_close().code == 1000
    one.reset()
    assert other.end() in ("fin", "reset")
    assert len(other.received) == other.parsed, "something came behind the Close"


@pytest.mark.parametrize("first", SIDES)
def test_reset_after_both_closes(ends: Ends, first: str) -> None:
    """RST when all is said harms nobody: the other side still sees the Close, whole."""
    one, other = sides(ends, first)
    one.send(close_frame(1000, masked=first == CLIENT))
    assert other.read_close().code == 1000
    other.send(close_frame(1000, masked=first != CLIENT))
    assert one.read_close().code == 1000
    one.reset()
    other.finish()
    other.end()
    assert len(other.received) == other.parsed


def test_both_close_at_once(ends: Ends) -> None:
    """Two Closes that cross each pass to the other side."""
    client, service = ends.ws()
    client.send(close_frame(4001))
    service.send(close_frame(4002, masked=False))
    assert service.read_close().code == 4001
    assert client.read_close().code == 4002
    client.expect_fin()
    service.finish()
    service.expect_fin()


@pytest.mark.parametrize("first", SIDES)
def test_nothing_passes_behind_a_close(ends: Ends, first: str) -> None:
    """What a side says behind its own Close is thrown away."""
    one, other = sides(ends, first)
    one.send(close_frame(1000, masked=first == CLIENT) + data(first, b"afterthought"))
    assert other.read_close().code == 1000
    other.send(close_frame(1000, masked=first != CLIENT))
    assert one.read_close().code == 1000
    other.finish()
    assert other.end() == "fin"
    assert len(other.received) == other.parsed


# --- FIN and RST ---------------------------------------------------------------------------------

WHOLE = {
    "at the start": lambda _: b"",
    "after a message": lambda side: data(side, b"whole"),
    "in a fragmented message": lambda side: data(side, b"first", TEXT, fin=False),
    "after a control frame in a fragmented message": lambda side: (
        data(side, b"first", fin=False) + data(side, b"now", PING)
    ),
}
IN_HEADER = {
    "after one byte": lambda _: b"\x82",
    "in the length": lambda side: data(side, bytes(70000))[:6],
    "in the mask": lambda _: frame(BINARY, b"abc", masked=True)[:4],
    "in a ping": lambda side: data(side, b"payload", PING)[:-3],
    "in a close": lambda side: close_frame(1000, b"bye", masked=side == CLIENT)[:-1],
}
IN_PAYLOAD = {
    "before the first byte": lambda side: data(side, bytes(1000))[:-1000],
    "in the middle": lambda side: data(side, bytes(1000))[:-500],
    "before the last byte": lambda side: data(side, bytes(70000))[:-1],
    "late in a large frame": lambda side: data(side, bytes(1_000_000))[:-1],
    "early in a large frame": lambda side: data(side, bytes(1_000_000))[:-900_000],
    "in a fragment": lambda side: data(side, b"ab", fin=False) + data(side, bytes(9), 0)[:-4],
}


@pytest.mark.parametrize("place", WHOLE)
@pytest.mark.parametrize("first", SIDES)
def test_fin_between_frames_passes(ends: Ends, first: str, place: str) -> None:
    """FIN is passed on, the other side finishes what it says, then its FIN passes too."""
    one, other = sides(ends, first, "/patient")
    sent = WHOLE[place](first)
    one.send(sent)
    one.finish()
    assert other.rest() == sent
    tail = data(other_of(first), os.urandom(1_000_000)) + data(other_of(first), b"end")
    with other.sending(tail):
        assert one.exactly(len(tail)) == tail
    other.finish()
    one.expect_fin()
    assert ends.record(cause="finished")


@pytest.mark.parametrize("first", SIDES)
def test_fin_without_an_answer(ends: Ends, first: str) -> None:
    """The other side does not finish in time: both connections end."""
    one, other = sides(ends, first)
    one.finish()
    other.expect_fin()
    one.end()
    other_still_there = other.send_anyway(data(other_of(first), b"late"))
    assert not other_still_there or other.end() in ("fin", "reset")


PLACES = [(first, place) for first in SIDES for place in IN_HEADER]
PLACES.remove((SERVICE, "in the mask"))  # an upstream does not mask


@pytest.mark.parametrize(("first", "place"), PLACES)
def test_fin_in_a_header_is_a_cut(ends: Ends, first: str, place: str) -> None:
    """Nothing of that frame has passed, so that the other side can be told by a Close."""
    one, other = sides(ends, first)
    one.send(data(first, b"whole") + IN_HEADER[place](first))
    one.finish()
    assert other.read_frame().payload == b"whole"
    assert other.read_close().code == TOLD[first]
    one.end()
    assert ends.record(cause="cut")


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("place", IN_PAYLOAD)
@pytest.mark.parametrize("first", SIDES)
def test_end_in_a_payload_never_looks_whole(
    ends: Ends, first: str, place: str, how: str
) -> None:
    """The other side is inside the cut frame: it sees RST, and nothing but that frame's bytes."""
    one, other = sides(ends, first)
    sent = IN_PAYLOAD[place](first)
    one.send(sent)
    if how == "fin":
        one.finish()
    else:
        other.exactly(2)
        one.reset()
    other.expect_reset()
    assert sent.startswith(bytes(other.received[len(other.head.raw) :] if other.head else b""))


@pytest.mark.parametrize(
    ("first", "place"), [*PLACES, *((first, place) for first in SIDES for place in WHOLE)]
)
def test_reset_between_frames_is_told(ends: Ends, first: str, place: str) -> None:
    """The other side gets 1001 or 1014 behind the last whole frame."""
    one, other = sides(ends, first)
    start = WHOLE.get(place, lambda side: data(side, b"whole"))(first)
    one.send(start)
    assert other.exactly(len(start)) == start  # RST may overtake bytes that were not read yet
    if place in IN_HEADER:
        one.send(IN_HEADER[place](first))
    one.reset()
    assert other.read_close().code == TOLD[first]
    other.send_anyway(close_frame(TOLD[first], masked=first != CLIENT))
    other.finish()
    assert other.end() == "fin"
    assert ends.record(cause="lost")


def test_both_finish_at_once(ends: Ends) -> None:
    """Two FINs that cross: both sides see one."""
    client, service = ends.ws()
    client.send(frame(TEXT, b"up"))
    client.finish()
    service.send(frame(TEXT, b"down", masked=False))
    service.finish()
    assert service.read_frame().payload == b"up"
    assert client.read_frame().payload == b"down"
    service.expect_fin()
    client.expect_fin()


def test_both_reset_at_once(ends: Ends) -> None:
    """Nobody is left to be told; the record says that it was lost."""
    client, service = ends.ws()
    client.reset()
    service.reset()
    assert ends.record(cause="lost")


def test_fin_against_close(ends: Ends) -> None:
    """The client's FIN meets the upstream's Close: the client still gets the Close."""
    client, service = ends.ws()
    client.finish()
    service.send(close_frame(1001, b"bye", masked=False))
    assert client.read_close().payload[2:] == b"bye"
    service.finish()
    service.end()
    client.expect_fin()


@pytest.mark.parametrize("first", SIDES)
def test_reset_while_the_other_sends(ends: Ends, first: str) -> None:
    """The other side is in the middle of a frame of its own: it can be told all the same."""
    one, other = sides(ends, first)
    whole = data(other_of(first), bytes(1000))
    other.send(whole[:500])
    assert one.exactly(500) == whole[:500]
    one.reset()
    assert other.read_close().code == TOLD[first]
    other.send_anyway(whole[500:])
    other.finish()
    assert other.end() == "fin"


@pytest.mark.parametrize("first", SIDES)
def test_close_while_the_other_sends(ends: Ends, first: str) -> None:
    """A Close passes while a frame comes the other way; that frame and the answer arrive."""
    one, other = sides(ends, first)
    whole = data(other_of(first), bytes(1000))
    other.send(whole[:500])
    assert one.exactly(500) == whole[:500]
    one.send(close_frame(1000, masked=first == CLIENT))
    assert other.read_close().code == 1000
    other.send(whole[500:] + close_frame(1000, masked=first != CLIENT))
    assert one.exactly(len(whole) - 500) == whole[500:]
    assert one.read_close().code == 1000


def test_cut_toward_a_unix_socket_shows_itself(start: Starter, tmp_path: Path) -> None:
    """A Unix socket has no RST; the frame is cut, and nothing is put into it."""
    with Upstream(path=tmp_path / "app.sock") as listening:
        gateway = start(head() + route("ws", listening.url("ws"), 'close_timeout = "300ms"'))
        ends = Ends(gateway, listening)
        client, service = ends.ws()
        sent = frame(BINARY, bytes(1000))[:-500]
        client.send(sent)
        client.finish()
        service.end()
        assert sent.startswith(service.exactly(len(service.received) - service.parsed))
        ends.close()
        assert ends.record(cause="cut", blame="client")


# --- Broken rules --------------------------------------------------------------------------------


def _with_length(opcode: int, length: bytes, masked: int) -> bytes:
    return bytes([0x80 | opcode, masked | (127 if len(length) == 8 else 126)]) + length + b"mask"


def _with_opcode(opcode: int) -> Callable[[bool], bytes]:
    return lambda masked: frame(opcode, b"", masked=masked)


def _with_code(code: int) -> Callable[[bool], bytes]:
    return lambda masked: close_frame(code, masked=masked)


BROKEN: dict[str, Callable[[bool], bytes]] = {
    "wrong masking": lambda masked: frame(TEXT, b"x", masked=not masked),
    "rsv1": lambda masked: frame(TEXT, b"x", rsv=4, masked=masked),
    "rsv2": lambda masked: frame(TEXT, b"x", rsv=2, masked=masked),
    "rsv3": lambda masked: frame(BINARY, b"x", rsv=1, masked=masked),
    "rsv1 on a ping": lambda masked: frame(PING, b"x", rsv=4, masked=masked),
    **{f"opcode {opcode:#x}": _with_opcode(opcode) for opcode in (0x3, 0x7, 0xB, 0xF)},
    "continuation of nothing": lambda masked: frame(CONTINUATION, b"x", masked=masked),
    "fragmented ping": lambda masked: frame(PING, b"x", fin=False, masked=masked),
    "fragmented close": lambda masked: frame(CLOSE, b"\x03\xe8", fin=False, masked=masked),
    "ping of 126 bytes": lambda masked: frame(PING, bytes(126), masked=masked),
    "pong with a long length": lambda masked: frame(PONG, b"x", length_bits=16, masked=masked),
    "length not minimal, 16 bits": lambda m: frame(TEXT, bytes(125), length_bits=16, masked=m),
    "length not minimal, 64 bits": lambda m: frame(TEXT, bytes(200), length_bits=64, masked=m),
    "length with its highest bit": lambda masked: _with_length(
        BINARY, b"\x80" + bytes(7), masked << 7
    ),
    "close of one byte": lambda masked: frame(CLOSE, b"\x03", masked=masked),
    **{f"close code {code}": _with_code(code) for code in MAY_NOT},
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("first", SIDES)
def test_broken_framing(ends: Ends, first: str, fault: str) -> None:
    """What came before passes; the offender gets 1002, the other 1014 or 1001; both end well."""
    one, other = sides(ends, first)
    one.send(data(first, b"good") + BROKEN[fault](first == CLIENT) + data(first, b"behind"))
    assert other.read_frame().payload == b"good"
    assert other.read_close().code == TOLD[first]
    assert one.read_close().code == 1002
    one.finish()
    one.expect_fin()
    other.send_anyway(close_frame(1000, masked=first != CLIENT))
    other.finish()
    assert other.end() == "fin"
    assert len(other.received) == other.parsed
    assert ends.record(cause="framing", blame=blame(first))


def blame(side: str) -> str:
    """The word of the record for the offender."""
    return "client" if side == CLIENT else "upstream"


@pytest.mark.parametrize("first", SIDES)
def test_new_message_in_a_fragmented_one(ends: Ends, first: str) -> None:
    """RFC 6455 5.4: fragments of two messages do not mix."""
    one, other = sides(ends, first)
    one.send(data(first, b"a", TEXT, fin=False) + data(first, b"b", TEXT))
    assert other.read_frame().payload == b"a"
    assert other.read_close().code == TOLD[first]
    assert one.read_close().code == 1002


@pytest.mark.parametrize("first", SIDES)
def test_close_reason_that_is_not_utf8(ends: Ends, first: str) -> None:
    """The reason of a Close is text (RFC 6455 5.5.1)."""
    one, other = sides(ends, first)
    one.send(close_frame(1000, b"\xff\xfe", masked=first == CLIENT))
    assert other.read_close().code == TOLD[first]
    assert one.read_close().code == 1007


@pytest.mark.parametrize("first", SIDES)
def test_rsv1_with_deflate(ends: Ends, first: str) -> None:
    """With permessage-deflate RSV1 passes at a message's start, and nowhere else."""
    client, service = ends.ws(
        "/ws",
        "Sec-WebSocket-Extensions: permessage-deflate",
        answer=[b"Sec-WebSocket-Extensions: permessage-deflate"],
    )
    one, other = (client, service) if first == CLIENT else (service, client)
    masked = first == CLIENT
    one.send(frame(TEXT, b"\x02\x00", rsv=4, fin=False, masked=masked))
    one.send(frame(CONTINUATION, b"x", rsv=4, masked=masked))
    got = other.read_frame()
    assert (got.rsv, got.payload) == (4, b"\x02\x00")
    assert other.read_close().code == TOLD[first]
    assert one.read_close().code == 1002


@pytest.mark.parametrize("first", SIDES)
@pytest.mark.parametrize(
    "frames",
    [
        [(BINARY, 1001, True)],
        [(BINARY, 900, False), (CONTINUATION, 900, False), (CONTINUATION, 201, True)],
        [(TEXT, 1000, True), (BINARY, 70000, True)],
    ],
    ids=["frame", "message", "second message"],
)
def test_limits_of_size(ends: Ends, first: str, frames: list[tuple[int, int, bool]]) -> None:
    """1009 to the offender as soon as the header is there; nothing of the last frame passes."""
    one, other = sides(ends, first, "/limits")
    for opcode, size, fin in frames:
        one.send(data(first, bytes(size), opcode, fin=fin))
    for _, size, _ in frames[:-1]:
        assert len(other.read_frame().payload) == size
    assert other.read_close().code == TOLD[first]
    assert one.read_close().code == 1009
    assert ends.record(cause="too big", blame=blame(first))


@pytest.mark.parametrize("first", SIDES)
def test_at_the_limits_everything_passes(ends: Ends, first: str) -> None:
    """A limit is the largest size that passes."""
    one, other = sides(ends, first, "/limits")
    for opcode, fin in [(BINARY, False), (CONTINUATION, True), (BINARY, True)]:
        one.send(data(first, bytes(1000), opcode, fin=fin))
        assert len(other.read_frame().payload) == 1000


# --- Farewells and frames under way --------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_farewell_waits_for_the_end_of_a_frame(ends: Ends, size: int) -> None:
    """The offender is being sent a frame: its 1002 comes behind it, not inside."""
    client, service = ends.ws("/patient")
    whole = frame(BINARY, os.urandom(size), masked=False)
    half = size // 2
    with service.sending(whole[:half]):
        assert client.exactly(half) == whole[:half]
    client.send(frame(0x3, b""))
    assert service.read_close().code == 1001
    with service.sending(whole[half:]):
        assert client.exactly(len(whole) - half) == whole[half:]
    assert client.read_close().code == 1002


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_farewell_that_never_fits(ends: Ends, size: int) -> None:
    """The frame under way is never finished: RST, and no Close inside it."""
    client, service = ends.ws()
    whole = frame(BINARY, os.urandom(size), masked=False)
    half = size // 2
    with service.sending(whole[:half]):
        assert client.exactly(half) == whole[:half]
    client.send(frame(0x3, b""))
    assert service.read_close().code == 1001
    client.expect_reset()
    assert len(client.received) == client.parsed


@pytest.mark.parametrize("first", SIDES)
def test_farewell_survives_a_flood(ends: Ends, first: str) -> None:
    """The offender goes on sending megabytes: no RST destroys the farewell (RFC 9112 9.6)."""
    one, other = sides(ends, first, "/patient")
    one.send(frame(0x3, b"", masked=first == CLIENT))
    other.read_close()
    one.send(bytes(5_000_000))
    assert one.read_close().code == 1002
    one.finish()
    one.expect_fin()


@pytest.mark.parametrize("first", SIDES)
def test_linger_ends(ends: Ends, first: str) -> None:
    """A side that never finishes after its farewell is not waited for longer than said."""
    one, other = sides(ends, first)
    one.send(frame(0x3, b"", masked=first == CLIENT))
    assert one.read_close().code == 1002
    assert one.end() in ("fin", "reset")
    assert other.read_close().code == TOLD[first]
    assert other.end() in ("fin", "reset")
