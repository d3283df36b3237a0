"""WebSocket frame headers: build them, walk them (RFC 6455 5.2). Pure bytes.

`Cursor` walks one direction of a relay. It is fed the bytes as they arrive, cut anywhere, and
answers with steps: bytes that pass, a control frame that somebody must look at, or what broke.

Laws of this file:

- A payload of a data frame is never collected; it is only touched to unmask it (`unwrap`).
- What is held back between two feeds is bounded: a header that is not whole (13 bytes at most),
  or a control frame that is not whole (139 at most).
- A byte that breaks the rules, and all behind it, never passes. What came before it does.
- It never raises because of what it is fed, and it knows no time and no other side.

`engine/relay.pyx` is to be the same in C; this file is the reference.
"""

import enum
from typing import Final

from gateway.events import Cause

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

FIN: Final = 0x80
RSV1: Final = 0x40
MASKED: Final = 0x80

CONTROL_MAX: Final = 125           # payload bytes of a control frame (RFC 6455 5.5)

NO_CODE: Final = 1005              # a Close without a code; never on the wire (RFC 6455 7.4.1)
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
INVALID_DATA: Final = 1007
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009
BAD_GATEWAY: Final = 1014          # IANA registry: the gateway got no good answer upstream


def may_be_sent(code: int) -> bool:
    """True for close codes that may stand in a frame (RFC 6455 7.4, IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def unmask(payload: bytes, mask: bytes, offset: int = 0) -> bytes:
    """XOR `payload` with the 4-byte `mask`, whose byte `offset % 4` meets the first byte."""
    length = len(payload)
    if not length:
        return b""
    turn = offset % 4
    key = (mask[turn:] + mask[:turn]) * (length // 4 + 1)
    word = int.from_bytes(payload, "little") ^ int.from_bytes(key[:length], "little")
    return word.to_bytes(length, "little")


def build_header(opcode: int, length: int, mask: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame header with the minimal length; masked if `mask` (4 bytes) is given."""
    first = opcode | (FIN if fin else 0)
    flag = MASKED if mask else 0
    if length <= CONTROL_MAX:
        head = bytes((first, flag | length))
    elif length < 1 << 16:
        head = bytes((first, flag | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, flag | 127)) + length.to_bytes(8, "big")
    return head + mask


def build_frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """A whole frame; the payload is masked if `mask` is given."""
    body = unmask(payload, mask) if mask else payload
    return build_header(opcode, len(payload), mask) + body


def build_close(code: int, reason: str = "", mask: bytes = b"") -> bytes:
    """A Close frame. `NO_CODE` gives an empty one; a reason is cut to fit, between characters."""
    if code == NO_CODE:
        return build_frame(CLOSE, b"", mask)
    assert may_be_sent(code), code
    text = reason.encode()[: CONTROL_MAX - 2].decode("utf-8", "ignore").encode()
    return build_frame(CLOSE, code.to_bytes(2, "big") + text, mask)


# RFC 3629 4: by the first byte, the length of a character and what its second byte may be.
_SECOND = {
    **dict.fromkeys(range(194, 224), (2, 128, 191)),
    **dict.fromkeys(range(225, 240), (3, 128, 191)),
    **dict.fromkeys(range(241, 244), (4, 128, 191)),
    0xE0: (3, 0xA0, 0xBF),
    0xED: (3, 0x80, 0x9F),
    0xF0: (4, 0x90, 0xBF),
    0xF4: (4, 0x80, 0x8F),
}


class Utf8:
    """Checks a byte stream that is cut anywhere, to the byte.

    Python's incremental decoder finds a surrogate one byte late, so that the cuts would decide
    what passes; hence the little table above, which is asked only where a piece ends or breaks.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = b""                # a character that is not whole; good as far as it goes

    def feed(self, piece: bytes) -> int:
        """How many bytes of `piece` come before the first that cannot be UTF-8 where it stands."""
        data = self.held + piece
        try:
            data.decode()
        except UnicodeDecodeError as error:
            good = error.start + _begun(data[error.start : error.start + 4])
            if good < len(data):
                return good - len(self.held)
            self.held = data[error.start :]
        else:
            self.held = b""
        return len(piece)


def _begun(data: bytes) -> int:
    """How many bytes at the start of `data` may begin one character; `data` begins none whole."""
    size, low, high = _SECOND.get(data[0], (0, 0, 0))
    if not size:
        return 0
    if len(data) == 1 or not low <= data[1] <= high:
        return 1
    good = 2
    while good < min(size, len(data)) and 0x80 <= data[good] <= 0xBF:
        good += 1
    return good


class Kind(enum.IntEnum):
    """What a step is."""

    PASS = 0      # data: these bytes go on
    CONTROL = 1   # data: the frame as it came; payload: unmasked; opcode: which
    BROKEN = 2    # cause and detail: nothing behind it is looked at


class Step:
    """One outcome of `Cursor.feed`. Fields that a kind does not have are empty."""

    __slots__ = ("cause", "data", "detail", "kind", "opcode", "payload")

    def __init__(
        self,
        kind: Kind,
        data: bytes = b"",
        payload: bytes = b"",
        opcode: int = 0,
        cause: Cause = Cause.FRAMING,
        detail: str = "",
    ):
        self.kind = kind
        self.data = data
        self.payload = payload
        self.opcode = opcode
        self.cause = cause
        self.detail = detail

    def __repr__(self) -> str:
        if self.kind is Kind.BROKEN:
            return f"<broken: {self.cause.value}, {self.detail}>"
        return f"<{self.kind.name.lower()} {self.opcode:#x} {self.data!r}>"


class _Broken(Exception):
    """Inside `Cursor` only: the cause and the sentence of the first thing that is wrong."""

    def __init__(self, cause: Cause, detail: str):
        super().__init__(detail)
        self.cause = cause
        self.detail = detail


class Cursor:
    """Walks the frames of one direction.

    masked: frames must be masked (from a client) or must not (from an upstream), RFC 6455 5.1.
    deflate: RSV1 may be set on the first frame of a message (RFC 7692 6).
    max_message, max_frame: payload bytes as sent; 0 is no limit.
    unwrap: `PASS` steps carry unmasked payloads without headers, and text is checked as UTF-8.
    """

    __slots__ = (
        "_final",
        "_held",
        "_mask",
        "_mask_at",
        "_text",
        "_utf8",
        "broken",
        "closed",
        "deflate",
        "fragmented",
        "frames",
        "masked",
        "max_frame",
        "max_message",
        "message_size",
        "messages",
        "payload",
        "remaining",
        "unwrap",
    )

    def __init__(
        self,
        *,
        masked: bool,
        deflate: bool = False,
        max_message: int = 0,
        max_frame: int = 0,
        unwrap: bool = False,
    ):
        self.masked = masked
        self.deflate = deflate
        self.max_message = max_message
        self.max_frame = max_frame
        self.unwrap = unwrap
        self.broken = False
        self.closed = False        # a Close came: nothing counts behind it (RFC 6455 1.4)
        self.remaining = 0         # payload bytes still to come of the data frame under way
        self.fragmented = False    # inside a message, after a frame without FIN
        self.message_size = 0      # payload bytes that the headers of this message promised
        self.frames = 0
        self.messages = 0
        self.payload = 0           # payload bytes of data frames that passed
        self._held = b""           # a header or a control frame that is not whole
        self._final = False        # the frame under way ends its message
        self._text = False         # the message under way is text
        self._mask = b""
        self._mask_at = 0
        self._utf8 = Utf8() if unwrap else None

    @property
    def in_frame(self) -> bool:
        """A data frame's header has passed, and not yet all of its payload."""
        return self.remaining > 0

    @property
    def holds(self) -> bool:
        """Bytes are held back: the stream is inside a header or a control frame."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[Step]:
        """Walk on over `data`. After `BROKEN` or a Close, always the last step, do not feed."""
        assert not (self.broken or self.closed)
        if self._held:
            data = self._held + data
            self._held = b""
        steps: list[Step] = []
        at = start = 0             # data[start:at] is walked and waits to be passed in one piece
        end = len(data)
        try:
            while at < end:
                if self.remaining:
                    take = min(self.remaining, end - at)
                    if self.unwrap:
                        self._pass_payload(steps, data[at : at + take])
                    at += take
                    self._advance(take)
                    continue
                size, opcode, length = self._look(data, at)
                if not size or (opcode >= CLOSE and end - at < size + length):
                    break          # not whole: held until there is more
                if opcode >= CLOSE:
                    if at > start and not self.unwrap:
                        steps.append(Step(Kind.PASS, data[start:at]))
                        start = at
                    steps.append(self._control(opcode, data[at : at + size + length], size))
                    at = start = at + size + length
                    if opcode == CLOSE:
                        self.closed = True
                        return steps
                else:
                    self._open(data, at, size, length)
                    at += size
        except _Broken as broken:
            self.broken = True
            if at > start and not self.unwrap:
                steps.append(Step(Kind.PASS, data[start:at]))
            steps.append(Step(Kind.BROKEN, cause=broken.cause, detail=broken.detail))
            return steps
        if at > start and not self.unwrap:
            steps.append(Step(Kind.PASS, data[start:at]))
        if at < end:
            self._held = data[at:]
        return steps

    def _look(self, data: bytes, at: int) -> tuple[int, int, int]:
        """Check the header at `at`, as far as it has come: (its size, opcode, payload length).

        A size of 0: not whole yet. The first two bytes are judged as soon as they are there.
        """
        have = len(data) - at
        first = data[at]
        opcode = first & 0x0F
        self._check_first(first, opcode)
        if have < 2:
            return 0, opcode, 0
        second = data[at + 1]
        if bool(second & MASKED) is not self.masked:
            what = "unmasked frame from a client" if self.masked else "masked frame from a server"
            raise _Broken(Cause.FRAMING, f"{what} (RFC 6455 5.1)")
        length = second & 0x7F
        size = 2
        if length > CONTROL_MAX:
            if opcode >= CLOSE:
                raise _Broken(Cause.FRAMING, "control frame over 125 bytes (RFC 6455 5.5)")
            wide = 2 if length == 126 else 8
            size += wide
            if have < size:
                return 0, opcode, 0
            length = int.from_bytes(data[at + 2 : at + size], "big")
            if length >> 63:
                raise _Broken(Cause.FRAMING, "length with its highest bit set (RFC 6455 5.2)")
            if length <= CONTROL_MAX or (wide == 8 and length < 1 << 16):
                raise _Broken(Cause.FRAMING, "length not in its shortest form (RFC 6455 5.2)")
        if opcode < CLOSE:
            self._check_size(opcode, length)
        elif opcode == CLOSE and length == 1:
            raise _Broken(Cause.FRAMING, "Close with one byte of payload (RFC 6455 5.5.1)")
        if self.masked:
            size += 4
        return (size if have >= size else 0), opcode, length

    def _check_first(self, first: int, opcode: int) -> None:
        """The first byte: reserved bits, opcode, fragmentation (RFC 6455 5.2, 5.4, 5.5)."""
        reserved = first & 0x70
        if reserved and not (
            reserved == RSV1 and self.deflate and opcode in (TEXT, BINARY)
        ):
            raise _Broken(Cause.FRAMING, "reserved bit set (RFC 6455 5.2)")
        if opcode > PONG or BINARY < opcode < CLOSE:
            raise _Broken(Cause.FRAMING, f"unknown opcode {opcode:#x} (RFC 6455 5.2)")
        if opcode >= CLOSE:
            if not first & FIN:
                raise _Broken(Cause.FRAMING, "fragmented control frame (RFC 6455 5.5)")
        elif opcode == CONTINUATION:
            if not self.fragmented:
                raise _Broken(Cause.FRAMING, "continuation of no message (RFC 6455 5.4)")
        elif self.fragmented:
            raise _Broken(Cause.FRAMING, "new message inside a fragmented one (RFC 6455 5.4)")

    def _check_size(self, opcode: int, length: int) -> None:
        """The limits of the route, by what the header promises."""
        if self.max_frame and length > self.max_frame:
            raise _Broken(Cause.TOO_BIG, f"frame of {length} bytes, limit {self.max_frame}")
        size = length if opcode != CONTINUATION else self.message_size + length
        if self.max_message and size > self.max_message:
            raise _Broken(Cause.TOO_BIG, f"message of {size} bytes, limit {self.max_message}")

    def _open(self, data: bytes, at: int, size: int, length: int) -> None:
        """A checked data frame begins."""
        first = data[at]
        opcode = first & 0x0F
        self.frames += 1
        if opcode != CONTINUATION:
            self.message_size = 0
            self._text = opcode == TEXT
        self.message_size += length
        self._final = bool(first & FIN)
        self.fragmented = True
        self.remaining = length
        if self.unwrap:
            self._mask = data[at + size - 4 : at + size] if self.masked else b""
            self._mask_at = 0
        if not length:
            self._advance(0)

    def _advance(self, count: int) -> None:
        """`count` payload bytes of the frame under way are walked."""
        self.remaining -= count
        self.payload += count
        if not self.remaining and self._final:
            self.fragmented = False
            self.messages += 1
            if self._text and self._utf8 is not None and self._utf8.held:
                raise _Broken(Cause.TEXT, "text message ends inside a character (RFC 6455 8.1)")

    def _pass_payload(self, steps: list[Step], piece: bytes) -> None:
        """Unmask a piece of a payload, check it if it is text, and pass it."""
        if self._mask:
            piece = unmask(piece, self._mask, self._mask_at)
            self._mask_at += len(piece)
        if self._text and self._utf8 is not None:
            good = self._utf8.feed(piece)
            if good < len(piece):
                if good:
                    steps.append(Step(Kind.PASS, piece[:good]))
                self._advance(good)
                raise _Broken(Cause.TEXT, "text that is not UTF-8 (RFC 6455 8.1)")
        steps.append(Step(Kind.PASS, piece))

    def _control(self, opcode: int, frame: bytes, size: int) -> Step:
        """A whole control frame. A Close is checked here: its code, and its reason as UTF-8."""
        payload = frame[size:]
        if self.masked:
            payload = unmask(payload, frame[size - 4 : size])
        if opcode == CLOSE and payload:
            code = int.from_bytes(payload[:2], "big")
            if not may_be_sent(code):
                raise _Broken(Cause.FRAMING, f"close code {code} may not be sent (RFC 6455 7.4)")
            try:
                payload[2:].decode()
            except UnicodeDecodeError:
                raise _Broken(Cause.TEXT, "close reason is not UTF-8 (RFC 6455 5.5.1)") from None
        self.frames += 1
        return Step(Kind.CONTROL, frame, payload, opcode)


class TextWrapper:
    """Cuts a byte stream into pieces of whole characters, for text frames."""

    __slots__ = ("_utf8", "broken")

    def __init__(self) -> None:
        self.broken = False        # a byte came that cannot be UTF-8: do not feed
        self._utf8 = Utf8()

    @property
    def holds(self) -> bool:
        """The stream stands inside a character."""
        return bool(self._utf8.held)

    def feed(self, data: bytes) -> bytes:
        """What came up to the last whole character before a byte that cannot be UTF-8."""
        held = self._utf8.held
        good = self._utf8.feed(data)
        if good < len(data):
            self.broken = True
            return (held + data[:good]).decode("utf-8", "ignore").encode()
        return (held + data)[: len(held) + len(data) - len(self._utf8.held)]
