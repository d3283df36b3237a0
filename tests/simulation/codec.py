"""What the far ends know of RFC 6455 and RFC 9112: build frames, judge streams, read answers.

Written from the RFCs, apart from `gateway.frames` and `gateway.protocol.http1`, and in another
way: a whole stream is judged at once, after the life is over. Speed does not matter, so nothing
here is incremental but `Ear`, by which a far end hears the frames that it has to answer.
"""

import struct
from dataclasses import dataclass, field

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NO_CODE = 1005
FRAMING, NOT_TEXT, TOO_BIG = "framing", "text", "too big"

# RFC 6455 7.4.1 and the IANA registry, as a list: what may stand in a Close.
CODES = frozenset([1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)])


def masked(payload: bytes, key: bytes) -> bytes:
    """RFC 6455 5.3: octet i XOR key octet i mod 4."""
    pad = (key * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return number.to_bytes(len(payload), "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    key: bytes | None = None,
    *,
    fin: bool = True,
    rsv: int = 0,
    width: int = 0,
) -> bytes:
    """A frame; `width` 2 or 8 forces a longer form of the length than is needed."""
    size = len(payload)
    if not width:
        width = 0 if size < 126 else 2 if size < 0x10000 else 8
    short = {0: size, 2: 126, 8: 127}[width]
    head = bytes([fin << 7 | rsv << 4 | opcode, (key is not None) << 7 | short])
    head += size.to_bytes(width, "big") if width else b""
    return head + payload if key is None else head + key + masked(payload, key)


def close_frame(code: int, reason: bytes = b"", key: bytes | None = None) -> bytes:
    """A Close; `NO_CODE` is an empty one."""
    payload = b"" if code == NO_CODE else struct.pack("!H", code) + reason
    return frame(CLOSE, payload, key)


@dataclass(slots=True)
class Frame:
    """A whole frame of a stream."""

    at: int                            # where it begins
    end: int                           # where it ends
    opcode: int
    fin: bool
    payload: bytes                     # unmasked

    @property
    def code(self) -> int:
        """Of a Close."""
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else NO_CODE


@dataclass(slots=True)
class Verdict:
    """What a stream of frames is worth."""

    frames: list[Frame] = field(default_factory=list)  # whole and sound, up to the first fault
    fault: str = ""                    # what is wrong behind them: FRAMING, NOT_TEXT, TOO_BIG
    fault_at: int = 0                  # where the frame begins that has it
    fault_end: int = 0                 # who has read so far cannot have overlooked it
    certain: bool = True               # the fault's header is whole: nobody can overlook it
    closed: Frame | None = None        # the Close that ends it
    part_at: int | None = None         # a data frame begins here that is sound and not whole
    holds: bool = False                # the stream ends inside a header or a control frame
    end: int = 0                       # behind the last of `frames`
    messages: int = 0
    payload: int = 0                   # bytes of data frames, of the one that is not whole too
    raw: bytes = b""                   # unmasked payloads that may go to a byte stream
    edges: set[int] = field(default_factory=lambda: {0})  # lengths of `raw` between two frames


class _FaultError(Exception):
    def __init__(self, kind: str):
        super().__init__(kind)
        self.kind = kind


class Judge:
    """Judges one stream. `is_masked`: as a client's must be. Limits are 0 where there are none.

    `unwrap`: the gateway is the endpoint, so that text has to be UTF-8.
    """

    def __init__(
        self,
        data: bytes,
        *,
        is_masked: bool,
        deflate: bool = False,
        message_max: int = 0,
        frame_max: int = 0,
        unwrap: bool = False,
    ):
        self.data = data
        self.verdict = Verdict()
        self._is_masked, self._deflate, self._unwrap = is_masked, deflate, unwrap
        self._message_max, self._frame_max = message_max, frame_max
        self._open = False             # a message is under way
        self._is_text = False
        self._size = 0                 # of the message under way, as promised
        self._text = b""
        self._raw: list[bytes] = []

    def judge(self) -> Verdict:
        """The verdict on all of it."""
        at, verdict = 0, self.verdict
        try:
            while at < len(self.data) and verdict.closed is None:
                verdict.fault_at = at
                following = self._one(at)
                if following is None:
                    break
                verdict.end = at = following
        except _FaultError as fault:
            verdict.fault = fault.kind
        verdict.raw = b"".join(self._raw)
        return verdict

    def _one(self, at: int) -> int | None:
        """One frame; where the next begins, or None if it is not whole."""
        verdict, have = self.verdict, self.data[at : at + 14]
        verdict.certain, verdict.fault_end = False, at + 14
        self._check_first(have[0])
        opcode, fin = have[0] & 15, have[0] > 127
        if len(have) < 2:
            verdict.holds = True
            return None
        size, length = self._length(have, opcode)
        if size is None:
            verdict.holds = True
            return None
        verdict.certain = len(have) >= size
        if opcode >= CLOSE and length == 1 and opcode == CLOSE:
            raise _FaultError(FRAMING)         # 5.5.1: the code has two bytes
        if opcode < CLOSE:
            self._check_size(opcode, length)
        if len(have) < size:
            verdict.holds = True
            return None
        verdict.fault_end = at + size + length
        key = have[size - 4 : size] if self._is_masked else b"\0\0\0\0"
        body = self.data[at + size : at + size + length]
        payload = masked(body, key)
        whole = len(body) == length
        if opcode >= CLOSE:
            if not whole:
                verdict.holds = True
                return None
            self._control(Frame(at, at + size + length, opcode, fin, payload))
        else:
            self._data(Frame(at, at + size + length, opcode, fin, payload), whole=whole)
        if whole:
            return at + size + length
        verdict.part_at = at
        return None

    def _check_first(self, first: int) -> None:
        """5.2, 5.4, 5.5."""
        opcode = first & 15
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise _FaultError(FRAMING)
        if first & 0x30 or (first & 0x40 and not (self._deflate and opcode in (TEXT, BINARY))):
            raise _FaultError(FRAMING)
        if opcode >= CLOSE and first < 128:
            raise _FaultError(FRAMING)
        if opcode < CLOSE and (opcode == CONTINUATION) is not self._open:
            raise _FaultError(FRAMING)

    def _length(self, have: bytes, opcode: int) -> tuple[int | None, int]:
        """Size of the header, None if its length is not there yet, and payload length."""
        if (have[1] > 127) is not self._is_masked:
            raise _FaultError(FRAMING)
        short = have[1] & 127
        if opcode >= CLOSE and short > 125:
            raise _FaultError(FRAMING)
        width = {126: 2, 127: 8}.get(short, 0)
        if len(have) < 2 + width:
            return None, 0
        length = int.from_bytes(have[2 : 2 + width], "big") if width else short
        if length >= 1 << 63 or (width and length < (126 if width == 2 else 1 << 16)):
            raise _FaultError(FRAMING)
        return 2 + width + (4 if self._is_masked else 0), length

    def _check_size(self, opcode: int, length: int) -> None:
        self._size = length + (self._size if opcode == CONTINUATION else 0)
        if (self._frame_max and length > self._frame_max) or (
            self._message_max and self._size > self._message_max
        ):
            raise _FaultError(TOO_BIG)

    def _control(self, one: Frame) -> None:
        if one.opcode == CLOSE:
            if one.payload and one.code not in CODES:
                raise _FaultError(FRAMING)
            if good_text(one.payload[2:], whole=True) < len(one.payload[2:]):
                raise _FaultError(NOT_TEXT)
            self.verdict.closed = one
        self.verdict.frames.append(one)

    def _data(self, one: Frame, *, whole: bool) -> None:
        verdict = self.verdict
        if one.opcode != CONTINUATION:
            self._is_text, self._text = one.opcode == TEXT, b""
        self._open = not (one.fin and whole)
        verdict.payload += len(one.payload)
        if self._unwrap:
            passed = one.payload
            if self._is_text:
                before = len(self._text)
                self._text += one.payload
                good = good_text(self._text, whole=whole and one.fin)
                passed = self._text[before : max(good, before)]
                if good < len(self._text):
                    if whole and one.fin and good_text(self._text, whole=False) == len(self._text):
                        passed = one.payload       # all may pass, but its end is missing
                    self._raw.append(passed)
                    raise _FaultError(NOT_TEXT)
            self._raw.append(passed)
            if whole:
                verdict.edges.add(sum(map(len, self._raw)))
        if whole:
            verdict.frames.append(one)
            verdict.messages += one.fin


def good_text(data: bytes, *, whole: bool) -> int:
    """How many bytes come before the first that cannot stand there in UTF-8 (RFC 3629).

    Where the text is `whole`, a character that is begun at its end is not good either.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        at = error.start
        for size in range(1, 5):
            if at + size > len(data):
                return at if whole else len(data)
            if not _may_begin(data[at : at + size]):
                return at + size - 1
        raise AssertionError("five bytes that may begin a character") from None
    return len(data)


def _may_begin(data: bytes) -> bool:
    """Whether some bytes behind these make them characters."""
    for filler in (b"\x80", b"\xbf"):
        for count in range(4):
            try:
                (data + filler * count).decode()
            except UnicodeDecodeError:
                continue
            return True
    return False


class Ear:
    """Hears whole frames in what a far end has received, as they come."""

    def __init__(self) -> None:
        self.at = 0                    # where the next frame begins

    def hear(self, data: bytearray) -> list[Frame]:
        """The frames that have come whole since the last time. A broken one is heard as well."""
        found: list[Frame] = []
        while True:
            have = data[self.at : self.at + 14]
            if len(have) < 2:
                return found
            short = have[1] & 127
            width = {126: 2, 127: 8}.get(short, 0)
            size = 2 + width + (4 if have[1] > 127 else 0)
            if len(have) < size:
                return found
            length = int.from_bytes(have[2 : 2 + width], "big") if width else short
            end = self.at + size + length
            if len(data) < end:
                return found
            payload = bytes(data[self.at + size : end])
            if have[1] > 127:
                payload = masked(payload, bytes(have[size - 4 : size]))
            found.append(Frame(self.at, end, have[0] & 15, have[0] > 127, payload))
            self.at = end


@dataclass(slots=True)
class Answer:
    """One HTTP answer as a client reads it."""

    status: int
    fields: dict[bytes, bytes]         # names in lower case
    body: bytes
    whole: bool                        # its end is known to be its end
    end: int                           # where it ends in the stream


def read_answers(data: bytes, methods: list[bytes], *, finished: bool) -> list[Answer]:
    """The answers to requests with these methods (RFC 9112 6.3), up to a 101, interim ones out."""
    answers: list[Answer] = []
    at = 0
    while at < len(data) and len(answers) < len(methods):
        found = data.find(b"\r\n\r\n", at)
        if found < 0:
            break
        lines = data[at:found].split(b"\r\n")
        version, status_text, _ = (lines[0] + b"  ").split(b" ", 2)
        assert version == b"HTTP/1.1", lines[0]
        status = int(status_text)
        fields = {
            name.lower(): value.strip(b" \t")
            for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        at = found + 4
        if 100 <= status < 200 and status != 101:
            continue
        bodiless = status in (101, 204, 304) or methods[len(answers)] == b"HEAD"
        answer = Answer(status, fields, b"", True, at)
        if not bodiless:
            _read_body(answer, data, finished=finished)
        at = answer.end
        answers.append(answer)
        if status == 101 or not answer.whole:
            break
    return answers


def _read_body(answer: Answer, data: bytes, *, finished: bool) -> None:
    at = answer.end
    if answer.fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        answer.whole = False
        while (line := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line].split(b";")[0], 16)
            chunk = data[line + 2 : line + 2 + size]
            answer.body += chunk
            at = line + 2 + size + 2
            if len(data) < at:
                at = len(data)
                break
            if not size:
                answer.whole = True
                break
        answer.end = at
    elif b"content-length" in answer.fields:
        size = int(answer.fields[b"content-length"])
        answer.body = data[at : at + size]
        answer.whole = len(answer.body) == size
        answer.end = at + len(answer.body)
    else:
        answer.body, answer.end, answer.whole = data[at:], len(data), finished
