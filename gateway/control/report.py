r"""The one writer: access records to standard output, log lines to standard error.

**It never blocks a worker.** A pipe whose reader has stopped must not stop the relays. Facts about
descriptors, and what follows:

- `O_NONBLOCK` belongs to the open file description, which a shell, `make` and every process with
  the same terminal share: setting it on descriptor 1 would break theirs. So a pipe, FIFO or
  terminal is opened anew through `/proc/self/fd`, which gives a description of our own. Where that
  is not allowed (another user's pipe, a terminal of another mount namespace), `poll` is asked
  before each write: a pipe that is writable takes `PIPE_BUF` bytes without blocking (pipe(7)),
  unless another process that shares it is quicker.
- A socket (the journal's) cannot be opened anew; it has `MSG_DONTWAIT` for each call.
- A regular file never says EAGAIN, and opened anew it would have an offset of its own and
  overwrite: it is written as it is.

**It never tears a line.** Lines wait in a bounded queue and leave in chunks of whole lines, up to
`PIPE_BUF`, which a pipe takes whole or not at all. No line is longer: else what another process
writes into the same pipe could come in between. Where it would be, its longest texts are cut and
end in `...` (fitting.py). What other descriptors take of a line is continued before anything else.
When the queue is full whole lines are dropped and counted, and a line says
how many once there is room. A reader that is gone (EPIPE) drops what waits, the rest of a line
that was begun included; a FIFO may get a new reader, so later lines are tried.

**It does not lose in silence.** When the lines of one stream begin to be lost (nobody reads, the
disk is full, the queue is), the other stream says so, once, and again when they leave as ever.

**It cannot be made to lie.** Nothing that a client sent leaves without being escaped: a value in a
text line is bare only if it has no space, quote, backslash, `=` or unprintable character.

Text is `time kind key=value ...`, without what is empty or counts nothing. JSON is one object a
line, ASCII:

- `"type": "access"`, one for each session or plain exchange; every key is always there:
  `time` (RFC 3339, UTC, of the end), `session`, `client`, `peer`, `listener`, `tls` (the version,
  or empty), `sni`, `method`, `host`, `path`, `query` (only with `log_query`), `route`, `endpoint`,
  `phase`, `status` (or null), `cause`, `blame` (client, upstream, gateway, operator or null),
  `detail`, `cut` (client, upstream, both, or empty: who was reset while bytes or a farewell waited
  for it), `subprotocol`, `duration_ms`, `phases_ms` (an object: phase to milliseconds), `carried`
  (copy, splice, both, or empty where there was no relay), `from_client` and `from_upstream`:
  objects of `bytes_in`, `bytes_out`, `frames`, `messages`, `payload`, `carried` (what came from
  this side), `copied`, `spliced`, `not_spliced` (why nothing was), `ktls`, `close_received`,
  `close_sent`, `pings_sent`, `round_trip_ms`, as `events.LegCounts` explains them.
- `"type": "log"`: `time`, `level` (info, warning, error), `message`, and what the message needs.
  A long message of several lines becomes several objects, one behind the other.
- `"type": "dropped"`: `time`, `lines`: so many lines are missing here.
"""

import errno
import json
import os
import re
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from gateway.control.fitting import MARK, begin, fitted
from gateway.events import NO_COUNTS, AccessRecord, LegCounts

QUEUE_MAX = 256 * 1024        # bytes of lines that wait for one stream
CHUNK_MAX = select.PIPE_BUF   # 4,096 on Linux: written whole or not at all
LINE_MAX = CHUNK_MAX          # bytes of a line, with its newline
MESSAGE_MAX = LINE_MAX // 2   # of its message; the rest is for what that needs
SHORT_MAX = 64                # characters of a value whose word is kept to be said again
FAREWELL = 0.5                # seconds that `close` waits for a slow reader

Value = str | int | float | None | dict[str, "Value"]

_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)


# --- Streams: whole lines into a descriptor, without waiting ----------------------------------


class LineStream:
    """One descriptor that takes whole lines and never waits. Works on a duplicate of its own.

    `dropped` counts lines that were never written, ever; `notice` makes the line that says how
    many were just lost, written when there is room again. `trouble` says why lines are being lost,
    or are going to be; it is empty while they leave.
    """

    def __init__(self, descriptor: int, notice: Callable[[int], bytes]) -> None:
        self.dropped = 0
        self.trouble = ""
        self._notice = notice
        self._lines: deque[bytes] = deque()
        self._queued = 0                # bytes of _lines
        self._tail = b""                # what is being written: whole lines, or the rest of one
        self._lost = 0                  # lines dropped that no notice is on its way for
        self._telling = 0               # lines that the notice in _tail tells of
        self._gone = False              # at the last attempt nobody was there to read
        self._write, self._close = _writer(descriptor)

    @property
    def waiting(self) -> bool:
        """True while something is left for the next `flush`, and somebody may read it."""
        return bool(self._tail or self._lines or self._lost) and not self._gone

    @property
    def unwritten(self) -> int:
        """Lines that were dropped, and those that wait: what would be missing if it ended now."""
        begun = 0 if self._telling else self._tail.count(b"\n")
        return self.dropped + len(self._lines) + begun

    def put(self, line: bytes) -> None:
        """Queue one line, with its newline; dropped and counted where it does not fit."""
        if self._lost or self._queued + len(line) > QUEUE_MAX:
            # Once one is dropped all are, until what waits is out: the gap is one, and is told.
            self._lost += 1
            self.dropped += 1
            self.trouble = self.trouble or "its reader is too slow"
            return
        self._lines.append(line)
        self._queued += len(line)

    def flush(self) -> None:
        """Write what the descriptor takes now."""
        while self._tail or self._next():
            try:
                taken = self._write(self._tail)
            except OSError as error:
                if error.errno in _GONE:
                    self._drop_all()
                    self.trouble = "nobody reads it"
                elif error.errno not in (errno.EAGAIN, errno.EINTR):
                    # A disk without space may get some: what waits stays.
                    self.trouble = (error.strerror or str(error)).lower()
                return
            self._gone = False
            self._keep(taken)
            if not self._tail and not self._lines and not self._lost:
                self.trouble = ""

    def _next(self) -> bool:
        """Take the next whole lines, together at most a chunk, or one longer line alone."""
        if not self._lines:
            if not self._lost:
                return False
            self._telling, self._lost = self._lost, 0
            self._tail = self._notice(self._telling)
            return True
        chunk = [self._lines.popleft()]
        size = len(chunk[0])
        while self._lines and size + len(self._lines[0]) <= CHUNK_MAX:
            chunk.append(self._lines.popleft())
            size += len(chunk[-1])
        self._queued -= size
        self._tail = b"".join(chunk)
        return True

    def _keep(self, taken: int) -> None:
        """Keep the rest of a line that was begun; whole lines behind it go back to the queue.

        So the tail, between two calls, is never more than what must come next.
        """
        begun = self._tail[taken - 1 : taken] != b"\n"
        rest = self._tail[taken:]
        cut = rest.find(b"\n") + 1 if begun else 0
        self._tail, whole = rest[:cut], rest[cut:]
        for line in reversed(whole.split(b"\n")[:-1]):
            self._lines.appendleft(line + b"\n")
        self._queued += len(whole)
        if not self._tail:
            self._telling = 0

    def _drop_all(self) -> None:
        """Nobody will ever read what waits. A new reader of a FIFO begins at a whole line."""
        lines = len(self._lines)
        if not self._telling:
            lines += self._tail.count(b"\n")
        self.dropped += lines
        self._lost += lines + self._telling
        self._telling = 0
        self._lines.clear()
        self._queued = 0
        self._tail = b""
        self._gone = True

    def close(self, seconds: float = FAREWELL) -> None:
        """Write what is left, within this time. Nothing may be put afterwards."""
        until = time.monotonic() + seconds
        self.flush()
        while self.waiting and time.monotonic() < until:
            time.sleep(0.01)
            self.flush()
        self.dropped = self.unwritten
        self._lines.clear()
        self._tail = b""
        self._close()
        self._write, self._close = _nowhere, _nothing


_Write = Callable[[bytes], int]         # takes what it can, or raises OSError
_Close = Callable[[], None]


def _writer(descriptor: int) -> tuple[_Write, _Close]:
    """How to write to this descriptor without waiting, and how to close what that took."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return _nowhere, _nothing       # it was closed before we were started
    if stat.S_ISSOCK(mode):
        far = socket.socket(fileno=os.dup(descriptor))
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        return lambda data: far.send(data, flags), far.close
    if stat.S_ISREG(mode):
        own = os.dup(descriptor)
        return lambda data: os.write(own, data), lambda: os.close(own)
    try:
        own = os.open(
            f"/proc/self/fd/{descriptor}",
            os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
        )
    except OSError:
        own = os.dup(descriptor)
        return _polled(own), lambda: os.close(own)
    return lambda data: os.write(own, data), lambda: os.close(own)


def _polled(own: int) -> _Write:
    """For a description that others share: ask first, and write no more than surely fits."""
    poll = select.poll()
    poll.register(own, select.POLLOUT)

    def write(data: bytes) -> int:
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, "full")
        return os.write(own, data[:CHUNK_MAX])

    return write


def _nowhere(data: bytes) -> int:
    """Write to a descriptor that is closed."""
    raise OSError(errno.EBADF, f"closed: {len(data)} bytes have nowhere to go")


def _nothing() -> None:
    """Close nothing."""


# --- Lines: what is said, escaped -------------------------------------------------------------

_BARE = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&()*+,;%|{}^-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(value: str) -> str:
    """The value as it stands behind `key=`: bare where that is safe, else quoted and escaped."""
    if _BARE.fullmatch(value):
        return value
    return f'"{escaped(value)}"'


def escaped(value: str) -> str:
    r"""Printable as it is, but for quotes and backslashes; all else as \n, \x1b, \u202e."""
    if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
        return value
    return "".join(_escape(character) for character in value)


def _escape(character: str) -> str:
    """One character, made harmless."""
    known = _ESCAPES.get(character)
    if known:
        return known
    if character.isprintable():
        return character
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _width(character: str) -> int:
    """Bytes of it in a text line."""
    if " " <= character <= "~" and character not in _ESCAPES:
        return 1
    return len(_escape(character).encode("utf-8", "backslashreplace"))


def _size(value: str) -> int:
    """Bytes of it in a text line, with its quotes."""
    return len(quoted(value).encode("utf-8", "backslashreplace"))


def _milliseconds(seconds: float) -> float:
    """Seconds as milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)


def _leg(counts: LegCounts) -> dict[str, Value]:
    """One side's counters under their documented keys."""
    trip = counts.round_trip
    return {
        "bytes_in": counts.bytes_in,
        "bytes_out": counts.bytes_out,
        "frames": counts.frames,
        "messages": counts.messages,
        "payload": counts.payload,
        "carried": _carried(counts, counts),
        "copied": counts.copied,
        "spliced": counts.spliced,
        "not_spliced": counts.not_spliced,
        "ktls": counts.ktls,
        "close_received": counts.close_received,
        "close_sent": counts.close_sent,
        "pings_sent": counts.pings_sent,
        "round_trip_ms": None if trip is None else _milliseconds(trip),
    }


def _cut(client: LegCounts, upstream: LegCounts) -> str:
    """Which sides were cut."""
    if client.cut:
        return "both" if upstream.cut else "client"
    return "upstream" if upstream.cut else ""


def _carried(one: LegCounts, other: LegCounts) -> str:
    """How the bytes of these legs were moved; of one leg, if it is given twice."""
    copied = one.copied or other.copied
    if one.spliced or other.spliced:
        return "both" if copied else "splice"
    return "copy" if copied else ""


def access_fields(record: AccessRecord, *, log_query: bool) -> dict[str, Value]:
    """An access record under its documented keys, in their order, but for `_legs`."""
    phases: dict[str, Value] = {}
    for phase, seconds in record.phases:
        before = phases.get(phase, 0.0)
        assert isinstance(before, float)
        phases[phase] = round(before + seconds * 1000, 3)
    fields: dict[str, Value] = {
        "session": record.session,
        "client": record.client,
        "peer": record.peer,
        "listener": record.listener,
        "tls": record.tls,
        "sni": record.sni,
        "method": record.method,
        "host": record.host,
        "path": record.path,
    }
    if log_query:
        fields["query"] = record.query
    fields |= {
        "route": record.route,
        "endpoint": record.endpoint,
        "phase": record.phase,
        "status": record.status,
        "cause": record.cause,
        "blame": record.blame.value if record.blame else None,
        "detail": record.detail,
        "cut": _cut(*record.counts),
        "subprotocol": record.subprotocol,
        "duration_ms": _milliseconds(record.ended - record.started),
        "phases_ms": phases,
        "carried": _carried(*record.counts),
    }
    return fields


def _legs(counts: tuple[LegCounts, LegCounts]) -> dict[str, Value]:
    """What stands last in an access record."""
    return {"from_client": _leg(counts[0]), "from_upstream": _leg(counts[1])}


_to_json = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes it anew


# Most records of a storm are of requests without a relay, and half of such a line is this.
_NO_LEGS = "," + _to_json(_legs(NO_COUNTS))[1:]


def _json_line(
    time_text: str, kind: str, fields: Mapping[str, Value], behind: str = "}"
) -> bytes:
    """One object, ASCII, so that no reader can stumble over an encoding or a line separator."""
    text = _to_json({"type": kind, "time": time_text, **fields})
    return f"{text[:-1]}{behind}\n".encode("ascii")


def _json_width(character: str) -> int:
    """Bytes of it in an object."""
    if " " <= character <= "~" and character not in _ESCAPES:
        return 1
    return len(_to_json(character)) - 2


def _json_size(value: str) -> int:
    """The same of a text, with its quotes."""
    return len(_to_json(value))


def _json_parts(message: str) -> list[str]:
    """A message as lines of the log have it: what is too long for one is cut between its lines."""
    if len(message) <= MESSAGE_MAX and len(_to_json(message)) <= MESSAGE_MAX:
        return [message]
    parts: list[str] = []
    used = 0
    for text in message.splitlines():
        size = len(_to_json(text))
        if parts and used + size <= MESSAGE_MAX:
            parts[-1] += "\n" + text
        else:
            parts.append(text)
            used = 0
        used += size
    return parts


def _text_line(time_text: str, kind: str, fields: Mapping[str, Value]) -> bytes:
    """`time kind key=value ...`, without what is empty, and without counters of a leg at zero."""
    words = [time_text, kind]
    for key, value in fields.items():
        if value is None or value == "":
            continue
        if type(value) is str:
            short = len(value) <= SHORT_MAX
            words.append(_short_word(key, value) if short else f"{key}={quoted(value)}")
        elif type(value) is dict:
            zeros = key == "phases_ms"
            for inner, part in value.items():
                if part or (zeros and part is not None):
                    name = f"{key}.{inner}"
                    words.append(
                        _short_word(name, part) if type(part) is str else f"{name}={part}"
                    )
        else:  # a number, which has nothing to quote
            words.append(f"{key}={value}")
    return " ".join(words).encode("utf-8", "backslashreplace") + b"\n"


@lru_cache(maxsize=1024)  # routes, endpoints, causes: of a record most was said before
def _short_word(key: str, value: str) -> str:
    """`key=value`, for values that may be kept: short ones."""
    return f"{key}={quoted(value)}"


class Report:
    """Where a process says things. `flush` puts out what was said since the last one.

    `style` is "text" or "json" (`gateway.log`). Descriptors are duplicated, not taken. The worker
    calls `flush` at once, or some milliseconds after the last time, so that in a storm one write
    carries what many had to say; and again a little later while `waiting`.
    """

    def __init__(
        self,
        *,
        style: str = "text",
        log_query: bool = False,
        output: int = 1,
        errors: int = 2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        assert style in ("text", "json")
        self.style = style
        self._log_query = log_query
        self._clock = clock
        self._second = -1               # the whole second that `_second_text` tells
        self._second_text = ""
        self.said = False               # something, since all was out
        self._output = LineStream(output, self._dropped_line)
        self._errors = LineStream(errors, self._dropped_line)
        self._told = {self._output: "", self._errors: ""}  # the trouble that was told of

    def change(self, *, style: str, log_query: bool) -> None:
        """Say things this way from now on."""
        assert style in ("text", "json")
        self.style = style
        self._log_query = log_query

    def access(self, record: AccessRecord) -> None:
        """One session or exchange is over."""
        self.said = True
        fields = access_fields(record, log_query=self._log_query)
        if record.counts is not NO_COUNTS:
            line = self._line("access", fields | _legs(record.counts))
        else:                                # a text line has no counters at zero
            line = self._line("access", fields, _NO_LEGS)
        self._output.put(line)

    def info(self, message: str, **fields: Value) -> None:
        """Something an operator likes to know."""
        self._log("info", message, fields)

    def warning(self, message: str, **fields: Value) -> None:
        """Something an operator should look at; the gateway goes on."""
        self._log("warning", message, fields)

    def error(self, message: str, **fields: Value) -> None:
        """Something that should not be; a text message of several lines becomes several lines."""
        self._log("error", message, fields)

    def _log(
        self, level: str, message: str, fields: Mapping[str, Value],
        stream: LineStream | None = None,
    ) -> None:
        self.said = True
        stream = stream or self._errors
        if self.style == "json":
            for part in _json_parts(message):
                stream.put(self._line("log", {"level": level, "message": part, **fields}))
            return
        for text in message.splitlines() or [""]:
            said = begin(text, MESSAGE_MAX, _width)
            mark = "" if said == text else MARK
            stream.put(self._line(f"{level} {escaped(said)}{mark}", fields))

    def _line(self, kind: str, fields: Mapping[str, Value], behind: str = "}") -> bytes:
        """A line, which fits into one write; `behind` ends the object where it is one."""
        write, now = _text_line, self._now()
        if self.style == "json":
            write = partial(_json_line, behind=behind)
        line = write(now, kind, fields)
        over = len(line) - LINE_MAX
        if over <= 0:
            return line
        if self.style == "json":
            return write(now, kind, fitted(fields, over, _json_size, _json_width))
        return write(now, kind, fitted(fields, over, _size, _width))

    def _dropped_line(self, lines: int) -> bytes:
        return self._line("dropped", {"lines": lines})

    def _now(self) -> str:
        """The wall clock as RFC 3339, UTC, to the millisecond."""
        second, microsecond = divmod(round(self._clock() * 1_000_000), 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{microsecond // 1000:03d}Z"

    @property
    def dropped(self) -> int:
        """Lines that were never written, on both streams; those that wait where lines are being
        lost are counted already."""
        return sum(
            stream.unwritten if stream.trouble else stream.dropped for stream in self._told
        )

    @property
    def waiting(self) -> bool:
        """True while something is left for the next `flush`."""
        return self.said and (self._output.waiting or self._errors.waiting)

    def flush(self) -> None:
        """Write what can be written now; never waits."""
        if self.said:
            self._output.flush()
            self._errors.flush()
            if self._output.trouble != self._told[self._output]:
                self._tell("standard output", self._output, self._errors)
            if self._errors.trouble != self._told[self._errors]:
                self._tell("standard error", self._errors, self._output)
            self.said = self.waiting

    def _tell(self, name: str, stream: LineStream, other: LineStream) -> None:
        """Say on the other stream that lines of this one begin to be lost, or leave again."""
        before, self._told[stream] = self._told[stream], stream.trouble
        if not stream.trouble:
            fields: dict[str, Value] = {"stream": name, "dropped": stream.dropped}
            self._log("info", "the lines of a stream are written again", fields, other)
        elif not before:
            fields = {"stream": name, "reason": stream.trouble}
            self._log("warning", "the lines of a stream are being lost", fields, other)
        other.flush()

    def close(self) -> None:
        """Write what is left, within `FAREWELL` seconds for each stream: the process ends. What
        then still waits is lost; of access records that is said."""
        before = self._output.dropped
        self._output.close()
        lost = self._output.dropped - before
        if lost:
            self.warning("access records were lost at the end", lines=lost)
        self._errors.close()
