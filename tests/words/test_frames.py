"""Frame headers, walked: exact bytes, and the same outcome however a stream is cut."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, ParseFailed

from gateway import frames
from gateway.events import Cause
from gateway.frames import Cursor, Kind, Step, TextWrapper, Utf8

MASK = b"\x01\x02\x03\x04"


def client_frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0) -> bytes:
    header = bytearray(frames.build_header(opcode, len(payload), MASK, fin=fin))
    header[0] |= rsv
    return bytes(header) + frames.unmask(payload, MASK)


def merged(steps: list[Step]) -> list[Any]:
    """Steps in a form that does not depend on how the passed bytes were cut."""
    result: list[Any] = []
    for step in steps:
        if step.kind is Kind.PASS:
            if result and result[-1][0] is Kind.PASS:
                result[-1] = (Kind.PASS, result[-1][1] + step.data)
            else:
                result.append((Kind.PASS, step.data))
        elif step.kind is Kind.CONTROL:
            result.append((Kind.CONTROL, step.opcode, step.payload, step.data))
        else:
            result.append((Kind.BROKEN, step.cause, step.detail))
    return result


def walk(cursor: Cursor, *pieces: bytes) -> list[Any]:
    steps: list[Step] = []
    for piece in pieces:
        if piece and not (cursor.broken or cursor.closed):
            steps += cursor.feed(piece)
    return merged(steps)


def walk_every_way(data: bytes, **terms: Any) -> list[Any]:
    """Whole, byte by byte, and cut in two at each place: the outcome is the same."""
    whole = walk(Cursor(**terms), data)
    bytewise = walk(Cursor(**terms), *(data[i : i + 1] for i in range(len(data))))
    assert bytewise == whole
    for cut in range(1, min(len(data), 40)):
        assert walk(Cursor(**terms), data[:cut], data[cut:]) == whole
    return whole


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
@pytest.mark.parametrize("masked", [True, False])
def test_build_header_uses_the_shortest_length(size: int, masked: bool) -> None:
    """What is built passes the walk, which refuses a length that could be shorter."""
    frame = frames.build_frame(frames.BINARY, bytes(size), MASK if masked else b"")

    cursor = Cursor(masked=masked)

    assert walk(cursor, frame) == [(Kind.PASS, frame)]
    assert (cursor.frames, cursor.messages, cursor.payload) == (1, 1, size)
    assert not cursor.in_frame


def test_unmask_meets_the_mask_at_its_offset() -> None:
    """A payload that is unmasked in pieces is the payload unmasked whole (RFC 6455 5.3)."""
    payload = bytes(range(256)) * 3
    plain = bytes(b ^ MASK[i % 4] for i, b in enumerate(payload))

    assert frames.unmask(payload, MASK) == plain
    for cut in (1, 2, 3, 4, 5, 255):
        pieces = frames.unmask(payload[:cut], MASK) + frames.unmask(payload[cut:], MASK, cut)
        assert pieces == plain


def test_build_close_cuts_a_reason_between_characters() -> None:
    """A control frame has 125 bytes at most, and its reason stays UTF-8."""
    frame = frames.build_close(1001, "ä" * 100)

    assert frame[:4] == bytes((0x88, 124)) + (1001).to_bytes(2, "big")
    assert frame[4:].decode() == "ä" * 61


def test_build_close_without_a_code_is_empty() -> None:
    assert frames.build_close(frames.NO_CODE) == b"\x88\x00"


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 0, 65535])
def test_codes_that_may_not_be_sent(code: int) -> None:
    """RFC 6455 7.4: reserved and unassigned codes do not stand in a frame."""
    data = client_frame(frames.CLOSE, code.to_bytes(2, "big"))

    assert not frames.may_be_sent(code)
    assert walk_every_way(data, masked=True)[0][:2] == (Kind.BROKEN, Cause.FRAMING)


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4999])
def test_codes_that_may_be_sent(code: int) -> None:
    payload = code.to_bytes(2, "big") + b"why"
    data = client_frame(frames.CLOSE, payload)

    assert walk_every_way(data, masked=True) == [(Kind.CONTROL, frames.CLOSE, payload, data)]


HELLO = client_frame(frames.TEXT, b"hello")

BROKEN = {
    "unmasked from a client": b"\x81\x01a",
    "rsv1 without deflate": client_frame(frames.TEXT, b"a", rsv=0x40),
    "rsv2": client_frame(frames.TEXT, b"a", rsv=0x20),
    "rsv3": client_frame(frames.TEXT, b"a", rsv=0x10),
    "opcode 3": client_frame(3, b"a"),
    "opcode 7": client_frame(7, b"a"),
    "opcode b": client_frame(0xB, b"a"),
    "opcode f": client_frame(0xF, b"a"),
    "fragmented ping": client_frame(frames.PING, b"a", fin=False),
    "ping of 126 bytes": client_frame(frames.PING, bytes(126)),
    "close of one byte": client_frame(frames.CLOSE, b"a"),
    "continuation of nothing": client_frame(frames.CONTINUATION, b"a"),
    "interleaved": client_frame(frames.TEXT, b"a", fin=False) + client_frame(frames.TEXT, b"b"),
    "16 bits for 125": b"\x82\xfe\x00\x7d" + MASK + bytes(125),
    "64 bits for 65535": b"\x82\xff" + (65535).to_bytes(8, "big") + MASK,
    "63rd bit of a length": b"\x82\xff" + (1 << 63).to_bytes(8, "big") + MASK,
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_framing_never_passes(name: str) -> None:
    """What came before passes, the offending header does not, whatever the cuts."""
    steps = walk_every_way(HELLO + BROKEN[name], masked=True)

    assert steps[-1][:2] == (Kind.BROKEN, Cause.FRAMING)
    passed = b"".join(s[1] for s in steps if s[0] is Kind.PASS)
    assert passed in (HELLO, HELLO + client_frame(frames.TEXT, b"a", fin=False))


def test_masked_from_a_server_is_broken() -> None:
    assert walk_every_way(HELLO, masked=False)[-1][:2] == (Kind.BROKEN, Cause.FRAMING)


def test_close_reason_that_is_not_utf8_is_1007s_cause() -> None:
    data = client_frame(frames.CLOSE, b"\x03\xe8\xff")

    steps = walk_every_way(HELLO + data, masked=True)
    assert steps[0] == (Kind.PASS, HELLO)
    assert [step[:2] for step in steps[1:]] == [(Kind.BROKEN, Cause.TEXT)]


def test_deflate_allows_rsv1_on_the_first_frame_only() -> None:
    """RFC 7692 6.1: not on continuations, not on control frames."""
    first = client_frame(frames.TEXT, b"a", fin=False, rsv=0x40)
    rest = client_frame(frames.CONTINUATION, b"b")

    assert walk_every_way(first + rest, masked=True, deflate=True) == [(Kind.PASS, first + rest)]
    again = client_frame(frames.CONTINUATION, b"b", rsv=0x40)
    assert walk_every_way(first + again, masked=True, deflate=True)[-1][0] is Kind.BROKEN
    ping = client_frame(frames.PING, b"b", rsv=0x40)
    assert walk_every_way(ping, masked=True, deflate=True)[-1][0] is Kind.BROKEN


def test_control_frames_between_fragments_are_shown_in_their_place() -> None:
    one = client_frame(frames.TEXT, b"one", fin=False)
    ping = client_frame(frames.PING, b"p")
    two = client_frame(frames.CONTINUATION, b"two")

    steps = walk_every_way(one + ping + two, masked=True)

    assert steps == [
        (Kind.PASS, one), (Kind.CONTROL, frames.PING, b"p", ping), (Kind.PASS, two)
    ]


def test_limits_are_judged_by_what_the_header_promises() -> None:
    """No byte of a frame that is too large passes; the sum over fragments counts."""
    fits = client_frame(frames.BINARY, bytes(60), fin=False)
    over = client_frame(frames.CONTINUATION, bytes(41))

    assert walk_every_way(fits + over, masked=True, max_message=101)[-1][0] is Kind.PASS
    steps = walk_every_way(fits + over, masked=True, max_message=100)
    assert steps[0] == (Kind.PASS, fits)
    assert steps[1][:2] == (Kind.BROKEN, Cause.TOO_BIG)
    steps = walk_every_way(over, masked=True, max_frame=40)
    assert steps[-1][0] is Kind.BROKEN


def test_unwrap_gives_payloads_and_checks_text() -> None:
    text = "grüße €".encode()
    data = client_frame(frames.TEXT, text[:3], fin=False)
    data += client_frame(frames.CONTINUATION, text[3:])
    data += client_frame(frames.BINARY, b"\xff\xfe")

    steps = walk_every_way(data, masked=True, unwrap=True)

    assert steps == [(Kind.PASS, text + b"\xff\xfe")]


BAD_TEXT = [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3", b"\xe2\x82"]


@pytest.mark.parametrize("bad", BAD_TEXT)
def test_unwrap_stops_text_that_is_not_utf8(bad: bytes) -> None:
    """RFC 6455 8.1, also where the text ends inside a character."""
    data = client_frame(frames.TEXT, b"ok" + bad)

    assert walk_every_way(data, masked=True, unwrap=True)[-1][:2] == (Kind.BROKEN, Cause.TEXT)


@given(st.binary(max_size=12))
def test_utf8_agrees_with_python_on_what_is_good(data: bytes) -> None:
    """Byte by byte and whole, it stops at the same byte; what is good decodes."""
    checker = Utf8()
    good = checker.feed(data)
    bytewise = Utf8()
    count = 0
    while count < len(data) and bytewise.feed(data[count : count + 1]):
        count += 1

    assert good == count
    assert (good == len(data) and not checker.held) == _decodes(data)


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.text(max_size=60), st.lists(st.integers(0, 200), max_size=8))
def test_text_wrapper_never_cuts_a_character(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    wrapper = TextWrapper()

    pieces = [wrapper.feed(data[a:b]) for a, b in itertools.pairwise(places)]

    for piece in pieces:
        piece.decode()
    assert b"".join(pieces) == data
    assert not (wrapper.holds or wrapper.broken)


def random_stream(chance: random.Random) -> bytes:
    """Frames that are mostly valid, some hostile."""
    data = b""
    for _ in range(chance.randrange(1, 8)):
        opcode = chance.choice([0, 1, 2, 8, 9, 10, 1, 2, 2, chance.randrange(16)])
        size = chance.choice([0, 1, 5, 124, 125, 126, 300])
        payload = chance.randbytes(size)
        if opcode == frames.CLOSE:
            payload = chance.choice([b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"x"])
        frame = client_frame(opcode, payload, fin=chance.random() < 0.7)
        if chance.random() < 0.1:
            place = chance.randrange(min(len(frame), 14))
            frame = frame[:place] + chance.randbytes(1) + frame[place + 1 :]
        data += frame
    return data


@pytest.mark.parametrize("seed", range(300))
def test_any_cut_gives_the_same_walk(seed: int) -> None:
    """Streams cut at random places give what they give whole; nothing raises."""
    chance = random.Random(seed)
    data = random_stream(chance)
    terms: dict[str, Any] = {
        "masked": True,
        "deflate": chance.random() < 0.3,
        "max_message": chance.choice([0, 200]),
        "unwrap": chance.random() < 0.3,
    }
    whole_cursor, cut_cursor = Cursor(**terms), Cursor(**terms)
    whole = walk(whole_cursor, data)
    places = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(12))})

    pieces = walk(cut_cursor, *(data[a:b] for a, b in itertools.pairwise(places)))

    assert pieces == whole
    for counter in ("frames", "messages", "payload", "remaining", "broken", "fragmented"):
        assert getattr(cut_cursor, counter) == getattr(whole_cursor, counter)


@pytest.mark.parametrize("seed", range(300))
def test_wsproto_agrees_on_what_is_broken(seed: int) -> None:
    """An independent reading of RFC 6455: wsproto refuses what we refuse, and takes the rest.

    It checks the UTF-8 of text, and we do not between two WebSockets; so binary only.
    """
    chance = random.Random(seed)
    data = random_stream(chance)
    steps = walk(Cursor(masked=True, unwrap=True), data)
    ours = bool(steps) and steps[-1][0] is Kind.BROKEN
    theirs = False
    oracle = FrameProtocol(client=False, extensions=[])
    try:
        oracle.receive_bytes(data)
        for _ in oracle.received_frames():
            pass
    except ParseFailed:
        theirs = True
    closed = bool(steps) and steps[-1][:2] == (Kind.CONTROL, frames.CLOSE)

    if not closed:                 # behind a Close the two read on differently
        assert ours == theirs, steps
