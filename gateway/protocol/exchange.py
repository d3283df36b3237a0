"""One plain exchange, by h11: a request that is no upgrade, and the gateway's own answer to it.

The connection is kept as HTTP/1.1 has it (RFC 9112 9.3); HTTP/1.0 closes.

Laws of this file:

- Heads come from `http1`, judged already. h11 sees the same bytes, and finds where content ends.
- Nobody here wants a request's content: it is counted and thrown away, at O(n) for n bytes.
- h11 is lax about a chunk's extensions; where two readers may disagree, the connection closes.
- Content that is not read to its end closes the connection: its bytes must never be taken for a
  request (RFC 9112 9.3).
"""

import enum
import re

import h11

from gateway.protocol.http1 import Fields, Request, closing_fields, reason_of

CONTENT_MAX = 64 * 1024       # unwanted content; to read more costs more than a new connection
WIRE_MAX = 4 * CONTENT_MAX    # the same with its chunk headers, which may outweigh it
CHUNK_HEAD_MAX = 16 * 1024    # of a chunk's header or the trailers; what h11 keeps at most


class ExchangeState(enum.Enum):
    """Where an exchange is."""

    UNANSWERED = "unanswered"      # `respond` comes next
    READING_BODY = "reading body"  # answered; feed it what arrives, within the head's time
    DONE_KEEPALIVE = "keep-alive"  # over; `rest` begins the next head
    DONE_CLOSE = "close"           # over; half-close, and throw away what still comes


class Exchange:
    """One request that is no upgrade, and its answer.

    Call `respond` once, then `feed` while the state is READING_BODY. Requests that are pipelined
    behind this one wait in `rest`: they are served in order (RFC 9112 9.3.2).
    """

    def __init__(self, request: Request) -> None:
        self.state = ExchangeState.UNANSWERED
        self._connection = h11.Connection(
            h11.SERVER, max_incomplete_event_size=max(CHUNK_HEAD_MAX, len(request.raw))
        )
        self._connection.receive_data(request.raw)
        event = self._connection.next_event()
        assert type(event) is h11.Request, f"http1 lets through what h11 does not: {event}"
        self._content = 0                # bytes of it that were thrown away
        self._wire = 0                   # bytes that brought them
        self._head_only = request.method == b"HEAD"
        self._ended = False              # the request was read to its end
        self._chunks = _ChunkLines() if request.chunked else None
        self._spoilt = False             # its content is too large or malformed
        if request.content_length is not None and request.content_length > CONTENT_MAX:
            self._spoilt = True          # not worth beginning
        self._take(request.rest)

    def respond(
        self, status: int, fields: Fields = (), body: bytes = b"", *, close: bool = False
    ) -> bytes:
        """The whole final answer, to be sent; HEAD gets its head (RFC 9110 9.3.2).

        Content-Length and `Connection: close` are written here; `close` asks for the latter where
        the request would not. Afterwards look at `state`.
        """
        assert self.state is ExchangeState.UNANSWERED, self.state
        assert status >= 200 and status not in (204, 304), "an answer that has content"
        # RFC 9110 10.1.1: a client that waits for "100 Continue" may or may not send its content
        # after a final answer. Only closing makes it clear what its next bytes are.
        waits = self._connection.they_are_waiting_for_100_continue
        close = close or self._spoilt or (waits and not self._ended)
        lines = closing_fields(fields) if close else list(fields)
        lines.append((b"Content-Length", b"%d" % len(body)))
        head = h11.Response(status_code=status, headers=lines, reason=reason_of(status))
        data = self._connection.send(head)
        if not self._head_only:
            data += self._connection.send(h11.Data(data=body))
        data += self._connection.send(h11.EndOfMessage())
        self.state = ExchangeState.READING_BODY
        self._settle()
        return data

    def feed(self, data: bytes) -> None:
        """Take what arrives from the client while the state is UNANSWERED or READING_BODY."""
        assert self.state in (ExchangeState.UNANSWERED, ExchangeState.READING_BODY), self.state
        self._take(data)
        if self.state is ExchangeState.READING_BODY:
            self._settle()

    @property
    def rest(self) -> bytes:
        """The bytes behind this request, once the state is DONE_KEEPALIVE."""
        assert self.state is ExchangeState.DONE_KEEPALIVE, self.state
        return self._connection.trailing_data[0]

    def _take(self, data: bytes) -> None:
        """Count and throw away what of the content is in here."""
        if data and self._chunks is not None and not self._chunks.feed(data):
            self._spoilt = True
        if data and not self._spoilt:
            self._connection.receive_data(data)
        while not self._ended and not self._spoilt:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError:
                self._spoilt = True      # a broken chunk: where the content ends is not known
                return
            if type(event) is h11.EndOfMessage:
                self._ended = True
            elif type(event) is h11.Data:
                self._content += len(event.data)
                self._spoilt = self._content > CONTENT_MAX
            else:
                self._wire += len(data)
                self._spoilt = self._wire > WIRE_MAX
                return

    def _settle(self) -> None:
        """Say what comes next, once the answer is made."""
        if self._spoilt or self._connection.our_state is not h11.DONE:
            self.state = ExchangeState.DONE_CLOSE
        elif self._ended:
            self.state = ExchangeState.DONE_KEEPALIVE


class _ChunkLines:
    """Watches the lines between chunks more strictly than h11, which lets a bare CR through.

    What another reader takes for a line's end there begins a request for it (RFC 9112 7.1.1,
    11.2). The chunks themselves are stepped over, and so is all behind the last line.
    """

    def __init__(self) -> None:
        self._line = bytearray()         # of the line under way
        self._left = 0                   # bytes of the chunk under way, with its CRLF
        self._pattern = _CHUNK_HEAD
        self._over = False

    def feed(self, data: bytes) -> bool:
        """False once a line is wrong."""
        at = 0
        while at < len(data) and not self._over:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            self._line += data[at:end]
            at = end
            if len(self._line) > CHUNK_HEAD_MAX:
                return False
            if self._line.endswith(b"\n") and not self._end_line():
                return False
        return True

    def _end_line(self) -> bool:
        line = self._pattern.fullmatch(self._line)
        if line is None:
            return False
        if self._pattern is _TRAILER:
            self._over = self._line == b"\r\n"
        elif int(line[1], 16):
            self._left = int(line[1], 16) + 2
        else:
            self._pattern = _TRAILER
        self._line.clear()
        return True


_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*)?\r\n")
