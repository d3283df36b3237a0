"""The target for `gateway.frames`: cursors of every kind, and the wrapper of raw text.

The first byte of an input says which cursor is meant, the rest is its stream. Laws:

- nothing is raised; a broken stream stays broken at the same place, however it was cut;
- what passes is a prefix of the stream, cut only where a control frame was taken out;
- what is held back is bounded.
"""

import random
import zlib
from typing import Any

from gateway.events import Cause
from gateway.frames import CLOSE, Cursor, Kind, TextWrapper, may_be_sent, unmask

HELD_MAX = 139                         # a masked control frame but for its last byte is 130
DECLARED = {Cause.FRAMING, Cause.TEXT, Cause.TOO_BIG}


def cursor_for(choice: int) -> Cursor:
    """The cursor that the first byte of an input means."""
    return Cursor(
        masked=bool(choice & 1),
        deflate=bool(choice & 2),
        unwrap=bool(choice & 4),
        max_message=200 if choice & 8 else 0,
        max_frame=100 if choice & 16 else 0,
    )


def walk(cursor: Cursor, pieces: list[bytes]) -> tuple[list[Any], bytes]:
    """Feed the pieces: the steps in a form that does not depend on cuts, and what passed."""
    steps: list[Any] = []
    passed = b""
    for piece in pieces:
        for step in cursor.feed(piece):
            if step.kind is Kind.PASS:
                assert step.data
                if not (steps and steps[-1][0] == "pass"):
                    steps.append(("pass", []))
                steps[-1][1].append(step.data)
                passed += step.data
            elif step.kind is Kind.CONTROL:
                steps.append(("control", step.opcode, step.data, step.payload))
            else:
                assert step.cause in DECLARED
                assert step.detail
                steps.append(("broken", step.cause, step.detail))
        assert len(cursor._held) <= HELD_MAX
        if cursor.broken or cursor.closed:
            assert steps[-1][0] == ("broken" if cursor.broken else "control")
            break                      # nothing counts behind a Close (RFC 6455 1.4)
    merged = [(step[0], b"".join(step[1])) if step[0] == "pass" else step for step in steps]
    return merged, passed


def state(cursor: Cursor) -> tuple[object, ...]:
    """What a cursor tells of its place in the stream."""
    return (
        cursor.broken,
        cursor.closed,
        cursor.frames,
        cursor.messages,
        cursor.payload,
        cursor.remaining,
        cursor.fragmented,
        cursor.holds,
    )


def _pieces(data: bytes, count: int) -> list[bytes]:
    """`data` cut at `count` places that depend on it alone."""
    chance = random.Random(zlib.crc32(data) + count)
    places = sorted(chance.sample(range(1, len(data)), min(len(data) - 1, count)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def fuzz_frames(data: bytes) -> None:
    """A stream through one cursor, whole and cut; and as text for a text frame."""
    if len(data) < 2:
        return
    choice, stream = data[0], data[1:]
    whole = cursor_for(choice)
    steps, passed = walk(whole, [stream])
    if not whole.unwrap:
        _check_prefix(steps, stream)
    for step in steps:
        if step[0] == "control":
            _check_control(step[1], step[2], step[3], whole.masked)
    for count in (len(stream), 1, 4):
        cut = cursor_for(choice)
        again, passed_again = walk(cut, _pieces(stream, count))
        assert again == steps, f"whole {steps}, cut {again}"
        assert passed_again == passed
        assert state(cut) == state(whole)
    _wrap(stream)


def _check_prefix(steps: list[Any], stream: bytes) -> None:
    """What passed and the control frames are, in order, the beginning of the stream."""
    at = 0
    for step in steps:
        if step[0] != "broken":
            piece = step[1] if step[0] == "pass" else step[2]
            assert stream[at : at + len(piece)] == piece
            at += len(piece)


def _check_control(opcode: int, frame: bytes, payload: bytes, masked: bool) -> None:
    """A control frame is whole, and its payload is what its mask hides."""
    size = 6 if masked else 2
    assert len(frame) == size + len(payload)
    assert len(payload) <= 125
    assert frame[0] & 0x0F == opcode
    assert (unmask(frame[6:], frame[2:6]) if masked else frame[2:]) == payload
    if opcode == CLOSE and payload:
        assert may_be_sent(int.from_bytes(payload[:2], "big"))
        payload[2:].decode()


def _wrap(stream: bytes) -> None:
    """Text toward a client is never cut inside a character, and is all there is."""
    wrapper, out = TextWrapper(), b""
    for piece in _pieces(stream, 3):
        text = wrapper.feed(piece)
        text.decode()
        out += text
        if wrapper.broken:
            break
    assert stream.startswith(out)
    if wrapper.broken:                         # all that is whole before the first bad byte
        try:
            stream.decode()
        except UnicodeDecodeError as error:
            assert len(out) == error.start
            return
        raise AssertionError("UTF-8 was refused")
    assert len(stream) - len(out) <= 3
    assert wrapper.holds is (len(out) < len(stream))
