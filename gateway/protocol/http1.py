"""HTTP/1.1 heads, in and out (RFC 9112; field rules from RFC 9110).

`RequestReader` and `ResponseReader` take bytes as they come and give a head, once it is whole,
with the bytes behind it. `build_request` and `build_response` write heads.

Laws of this file:

- Two programs that read one head must not disagree. So every head passes a strict grammar first,
  whole; what is laxly allowed elsewhere (a bare LF, obs-fold, a space before the colon, two
  lengths) is refused here and never reaches an upstream. httptools then takes the fields apart.
- How the bytes were cut does not change the outcome: a head is judged as if it came byte by byte,
  and the first fault in the order of its bytes decides while it is not whole.
- A head of n bytes costs O(n), however it arrives, and no more than the limit is ever kept.
- Untrusted bytes raise `ClientError` (a request) or `UpstreamError` (an answer), nothing else.
  The sentences are fixed: they never quote what was sent.
- Nothing is written that has a CR, LF or NUL inside a field: that is a bug, and asserted.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus

import httptools

from gateway.errors import ClientError, UpstreamError

Fields = Sequence[tuple[bytes, bytes]]

FIELDS_MAX = 100              # Apache's default; each costs more than its bytes
LENGTH_DIGITS_MAX = 18        # 999 PB; longer ones overflow somebody's 64 bits (RFC 9110 8.6)


# --- Heads, as they were read -----------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Head:
    """What a request and an answer have in common.

    `fields` keep the order and the case of their names; values come without the whitespace
    around them. `raw` is the head to the byte, with its empty line; `rest` is what came behind it.
    """

    fields: list[tuple[bytes, bytes]]
    connection: frozenset[bytes]         # options of all Connection fields, in lower case
    content_length: int | None           # None: not sent
    chunked: bool                        # Transfer-Encoding: chunked
    raw: bytes
    rest: bytes
    _values: dict[bytes, list[bytes]] = field(repr=False)

    def get_all(self, name: bytes) -> list[bytes]:
        """The values of every field of this name (given in lower case), in order."""
        return self._values.get(name, [])

    @property
    def lower_fields(self) -> list[tuple[bytes, bytes]]:
        """`fields` with the names in lower case, as routes compare them."""
        return [(name.lower(), value) for name, value in self.fields]


@dataclass(slots=True, kw_only=True)
class Request(Head):
    """A request's head. Path and query are as sent, never decoded."""

    method: bytes
    target: bytes                        # as sent, in origin or absolute form
    path: str                            # begins with "/"
    query: str                           # without the "?"
    has_query: bool                      # tells "/x?" from "/x"
    version: tuple[int, int]             # (1, 0) or (1, 1); a later 1.x is spoken to as 1.1
    host: str                            # as sent, with its port; "" only in HTTP/1.0


@dataclass(slots=True, kw_only=True)
class Response(Head):
    """An answer's head."""

    status: int                          # 100 to 599
    reason: bytes
    version: tuple[int, int]


# --- Reading ----------------------------------------------------------------------------------


class RequestReader:
    """Reads one request head after another from a client.

    `head_max` bounds a head with its request line and empty line; half of it bounds the request
    line. (Of the default 16 KiB that leaves the 8,000 bytes RFC 9112 3 asks for.)
    """

    def __init__(self, head_max: int) -> None:
        self._buffer = _HeadBuffer(head_max, head_max // 2, skips_empty_line=True)

    @property
    def is_empty(self) -> bool:
        """True while no byte of the next head has arrived; an empty line before it is none."""
        return self._buffer.is_empty

    def feed(self, data: bytes) -> Request | None:
        """Take bytes; give the head once it is whole, else None.

        After a head the reader is ready for the next one: feed it what belongs to it, since what
        is in `Request.rest` is no longer in here. Raises ClientError: 400, 414, 431, 501 or 505;
        the reader is of no use afterwards.
        """
        try:
            found = self._buffer.feed(data)
            return None if found is None else _parse_request(*found)
        except _HeadError as error:
            raise ClientError(error.status, error.sentence) from None


class ResponseReader:
    """Reads one answer's head after another from an upstream, interim ones (1xx) like the rest."""

    def __init__(self, head_max: int) -> None:
        self._buffer = _HeadBuffer(head_max, head_max, skips_empty_line=False)

    def feed(self, data: bytes) -> Response | None:
        """Take bytes; give the head once it is whole, else None. For the next head see
        `RequestReader.feed`. Raises UpstreamError (502) for what is no head, or too large."""
        try:
            found = self._buffer.feed(data)
            return None if found is None else _parse_response(*found)
        except _HeadError as error:
            raise UpstreamError(502, f"upstream's head: {error.sentence}") from None


# --- Writing ----------------------------------------------------------------------------------


def build_request(method: bytes, target: bytes, fields: Fields) -> bytes:
    """A request head in HTTP/1.1, without content. Fields are written in the order given."""
    assert _TOKEN.fullmatch(method), method
    assert _TARGET.fullmatch(target), target
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, _field_lines(fields))


def build_response(
    status: int,
    fields: Fields = (),
    body: bytes = b"",
    *,
    head_only: bool = False,
    close: bool = True,
) -> bytes:
    """A whole answer of the gateway's own, as refusals are: `Connection: close` unless told not to.

    Content-Length is written here, `head_only` leaves the body away (RFC 9110 9.3.2). There is no
    Date: without a clock a server must not send one (RFC 9110 6.6.1).
    """
    assert 200 <= status <= 599, status
    lines = _field_lines(closing_fields(fields) if close else fields)
    head = b"HTTP/1.1 %d %b\r\n%bContent-Length: %d\r\n\r\n" % (
        status, reason_of(status), lines, len(body)
    )
    return head if head_only else head + body


def build_interim(status: int, fields: Fields) -> bytes:
    """The head of a 1xx answer, 101 included: it has no content (RFC 9110 15.2)."""
    assert 100 <= status <= 199, status
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason_of(status), _field_lines(fields))


def refusal(status: int, sentence: str, session: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Fields and body of a refusal: one short sentence, and the id to ask the operator about.

    The sentence is a `ClientError`'s detail. For what is not the client's doing give
    `SENTENCES[status]`: the detail is for the record alone.
    """
    reason = reason_of(status).decode("ascii")
    body = f"{status} {reason}\n{sentence}\nSession {session}\n".encode()
    return [(b"Content-Type", b"text/plain; charset=utf-8")], body


SENTENCES = {
    404: "No route takes this request.",
    408: "The request took too long to arrive.",
    429: "Too many sessions from this address.",
    500: "The gateway failed.",
    502: "The upstream could not be reached, or gave no usable answer.",
    503: "The gateway has no room for this request now.",
    504: "The upstream did not answer in time.",
}


@lru_cache(maxsize=256)
def reason_of(status: int) -> bytes:
    """The reason phrase of a status; empty where it has none (RFC 9112 4 allows that)."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def closing_fields(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The fields with `close` among the options of their one Connection field."""
    options = [value for name, value in fields if name.lower() == b"connection"]
    kept = [(name, value) for name, value in fields if name.lower() != b"connection"]
    return [*kept, (b"Connection", b", ".join([*options, b"close"]))]


def _field_lines(fields: Fields) -> bytes:
    """Field lines with their CRLFs. A field that is none is a bug of the caller: response and
    request splitting end here (RFC 9112 11.1, 11.2)."""
    lines = b"".join([b"%b: %b\r\n" % pair for pair in fields])
    if lines.count(b"\n") != len(fields) or not _FIELD_LINES.fullmatch(lines):
        raise AssertionError("not a field")  # no assert: must hold under -O, too
    return lines


# --- Fields and lists --------------------------------------------------------------------------


# RFC 9110 7.6.1: meant for one connection, whether its Connection field names them or not.
HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
    b"upgrade",
))


def end_to_end_fields(head: Head) -> list[tuple[bytes, bytes]]:
    """The fields that may pass, unchanged and in order: not those for this connection alone, by
    their nature or because Connection names them."""
    dropped = HOP_BY_HOP | head.connection
    return [pair for pair in head.fields if pair[0].lower() not in dropped]


def is_host(text: str) -> bool:
    """Whether this may stand in Host: a name or IP literal that is not empty, perhaps a port."""
    found = _HOST.fullmatch(text)
    if found is None or (found[2] and int(found[2]) > 65535):
        return False
    if found[1] is None:
        return True
    try:
        ipaddress.IPv6Address(found[1])
    except ValueError:
        return False
    return True


def is_token(value: bytes) -> bool:
    """Whether this is a token (RFC 9110 5.6.2)."""
    return _TOKEN.fullmatch(value) is not None


def parse_list(values: Iterable[bytes]) -> list[bytes]:
    """The elements of a comma-separated list over several fields, empty ones left out
    (RFC 9110 5.6.1). Only for lists whose elements have no quoted strings."""
    text = b",".join(values)
    if b"," not in text:  # nearly always
        text = text.strip(b" \t")
        return [text] if text else []
    elements = [element.strip(b" \t") for element in text.split(b",")]
    return [element for element in elements if element]


# --- Inside: cutting heads out of a stream -----------------------------------------------------


class _HeadError(Exception):
    """A head that is refused; the readers make it a ClientError or an UpstreamError."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


# A CR that is not a CRLF's (one at the end may yet become one), an LF that is not, another control
# byte. RFC 9112 2.2 lets a recipient take a bare LF for a line's end: others do, so we must not.
_BROKEN_SENTENCE = "The head has a bare CR or LF, or another control character."
_BROKEN = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class _HeadBuffer:
    """Collects bytes up to the first empty line; judges nothing but limits and line ends.

    Broken lines are refused at once, not at the head's end: a client that ends its lines with LF
    alone would else wait for its answer until the head's time is up.
    """

    def __init__(self, head_max: int, line_max: int, skips_empty_line: bool) -> None:
        self._head_max = head_max
        self._line_max = line_max
        self._skips_empty_line = skips_empty_line
        self._reset()

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._judged = 0                 # bytes of the buffer that were looked at
        self._line_end = -1              # where the start line's CRLF is
        self._at_start = self._skips_empty_line

    @property
    def is_empty(self) -> bool:
        return not self._buffer or (self._at_start and self._buffer == b"\r")

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Gives (head, rest), or None while the head is not whole. Raises _HeadError."""
        buffer = self._buffer
        buffer += data
        if self._at_start:
            if len(buffer) < 2:
                return None
            self._at_start = False
            if buffer.startswith(b"\r\n"):
                # "SHOULD ignore at least one empty line received prior to the request-line":
                # RFC 9112 2.2. One, not more: they would not count for the limit.
                del buffer[:2]
        # What was judged is not searched again, but for the CRLF that may hang over.
        end = buffer.find(b"\r\n\r\n", max(0, self._judged - 3))
        if self._line_end < 0:
            self._line_end = buffer.find(b"\r\n", max(0, self._judged - 1), self._line_max)
        stop = len(buffer) if end < 0 else end + 4
        if end < 0 or self._line_end < 1 or stop > self._head_max:
            self._refuse_or_wait(stop)
            return None
        head, rest = bytes(buffer[:stop]), bytes(buffer[stop:])
        self._reset()
        return head, rest

    def _refuse_or_wait(self, stop: int) -> None:
        """Raise what the first fault in the order of the bytes is; return if there is none yet."""
        limit = self._line_max if self._line_end < 0 else self._head_max
        if self._line_end == 0:
            raise _HeadError(400, "The start line is empty.")
        if _BROKEN.search(self._buffer, max(0, self._judged - 1), min(stop, limit)):
            raise _HeadError(400, _BROKEN_SENTENCE)
        if stop < limit:
            self._judged = stop
        elif limit < self._head_max:
            raise _HeadError(414, "The request line is too long.")
        else:
            raise _HeadError(431, "The head is too large.")


# --- Inside: the grammar -----------------------------------------------------------------------

# Each pattern is linear: no two neighbouring repeats share a byte, so nothing is tried twice.
_TOKEN_CHARS = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"                       # RFC 9110 5.6.2
_TOKEN = re.compile(_TOKEN_CHARS)
# RFC 9112 3 has exactly one SP between the parts; 3.2 has neither fragment nor whitespace in a
# target, and RFC 3986 no byte above 0x7E. Browsers escape ", < and >, but not all that RFC 3986
# has not: |, {, }, ^, ` and \ pass.
_TARGET = re.compile(rb"[!$-;=?-~]+")
_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n" % _TOKEN_CHARS)
# RFC 9112 4 wants the second SP also where no reason follows; many programs leave it away.
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*))?\r\n")
# RFC 9112 5: no whitespace between name and colon (5.1), no obs-fold (5.2); RFC 9110 5.5 has no
# control bytes in a value.
_FIELD_LINES = re.compile(rb"(?:%b:[\t -~\x80-\xff]*\r\n)*" % _TOKEN_CHARS)
_BAD_LINES = (
    (re.compile(rb"[\t ]"), "A field line begins with whitespace."),
    (re.compile(rb"%b[\t ]+:" % _TOKEN_CHARS), "There is a space before a field's colon."),
    (re.compile(rb":"), "A field has no name."),
)
# RFC 9112 3.2.2; the authority of RFC 3986 3.2 has user information, which RFC 9110 4.2.4 forbids.
_ABSOLUTE = re.compile(rb"(?:https?|wss?)://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
# RFC 9110 7.2: uri-host [ ":" port ]. Of a reg-name only what a name in the DNS or an IPv4 literal
# can have (RFC 3986 3.2.2 asks for that), and "_" and "~": others quote or split at the rest.
_HOST = re.compile(r"(?:[A-Za-z0-9._~-]{1,255}|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{0,5}))?")


def _parse_request(head: bytes, rest: bytes) -> Request:
    """Judge a whole head in the order 431, 400, 501, 505. Raises _HeadError."""
    _check_count(head)
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise _malformed(head, "The request line is malformed.")
    method, target, major, minor = line.groups()
    # RFC 9110 2.5: a higher minor version is treated as the highest one we know.
    version = (1, 0) if (major, minor) == (b"1", b"0") else (1, 1)
    fields, values = _parse_fields(head, line.end())
    if major == b"0":
        raise _HeadError(400, "HTTP/0.9 has no version in its request line.")
    authority, path, query = _parse_target(method, target)
    host = _parse_host(values.get(b"host", []), version)
    if authority is not None:
        # RFC 9112 3.2.2: the target's authority replaces Host, which must be sound all the same.
        host = authority
    connection = _parse_connection(values)
    length, chunked = _parse_framing(values, version)
    if major != b"1":
        raise _HeadError(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    return Request(
        method=method, target=target, path=path, query=query[1:], has_query=bool(query),
        version=version, host=host, fields=fields, connection=connection,
        content_length=length, chunked=chunked, raw=head, rest=rest, _values=values,
    )


def _parse_response(head: bytes, rest: bytes) -> Response:
    """Judge a whole head of an upstream. Raises _HeadError; its status is for nobody."""
    _check_count(head)
    line = _STATUS_LINE.match(head)
    if line is None:
        raise _malformed(head, "The status line is malformed.")
    fields, values = _parse_fields(head, line.end())
    version = (1, 0) if line[1] == b"0" else (1, 1)
    length, chunked = _parse_framing(values, version)
    return Response(
        status=int(line[2]), reason=line[3] or b"", version=version, fields=fields,
        connection=_parse_connection(values), content_length=length, chunked=chunked,
        raw=head, rest=rest, _values=values,
    )


def _check_count(head: bytes) -> None:
    if head.count(b"\n") - 2 > FIELDS_MAX and not _BROKEN.search(head):
        raise _HeadError(431, "The head has too many fields.")


def _malformed(head: bytes, sentence: str) -> _HeadError:
    """The error for a whole head that is none; broken lines are called by the same name whether
    the head came whole or in pieces."""
    return _HeadError(400, _BROKEN_SENTENCE if _BROKEN.search(head) else sentence)


class _Collector:
    """httptools' side of the parsing."""

    __slots__ = ("fields", "values")

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.values: dict[bytes, list[bytes]] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        value = value.rstrip(b" \t")  # llhttp takes leading whitespace away, not trailing
        self.fields.append((name, value))
        self.values.setdefault(name.lower(), []).append(value)


def _parse_fields(
    head: bytes, begin: int
) -> tuple[list[tuple[bytes, bytes]], dict[bytes, list[bytes]]]:
    """The fields between the start line and the empty line, and their values by lower name.

    llhttp gets a start line of its own: it knows a closed list of methods and versions, and the
    status of an answer changes what it reads, while ours was judged already. Its rules for
    framing are off, because ours are stricter and know which status to answer with.
    """
    block_end = len(head) - 2
    if not _FIELD_LINES.fullmatch(head, begin, block_end):
        raise _malformed(head, _what_is_wrong(head, begin))
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    parser.set_dangerous_leniencies(lenient_chunked_length=True, lenient_transfer_encoding=True)
    parser.feed_data(b"GET / HTTP/1.1\r\n")
    try:
        parser.feed_data(head[begin:])
    except httptools.HttpParserUpgrade:
        pass  # not an error: the head is whole, and what follows is no HTTP
    except httptools.HttpParserError:
        # What is left for it to find: a Content-Length that is no number, or two of them.
        raise _HeadError(400, "Content-Length is malformed or repeated.") from None
    assert len(collector.fields) == head.count(b"\n", begin, block_end), "two parsers disagree"
    return collector.fields, collector.values


def _what_is_wrong(head: bytes, begin: int) -> str:
    """A sentence for the first field line that is none."""
    whole = _FIELD_LINES.match(head, begin)
    assert whole is not None, "the pattern fits the empty string too"
    for pattern, sentence in _BAD_LINES:
        if pattern.match(head, whole.end()):
            return sentence
    return "A field line is malformed."


def _parse_target(method: bytes, target: bytes) -> tuple[str | None, str, str]:
    """(authority or None, path, query with its "?") of a request-target (RFC 9112 3.2).

    The authority form belongs to CONNECT and the asterisk form to a server-wide OPTIONS: neither
    leads to a route. Raises _HeadError.
    """
    if method == b"CONNECT" or not _TARGET.fullmatch(target):
        raise _HeadError(400, "The request target is malformed.")
    if target.startswith(b"/"):
        path, mark, query = target.decode("ascii").partition("?")
        return None, path, mark + query
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise _HeadError(400, "The request target is malformed.")
    authority = absolute[1].decode("ascii")
    if not is_host(authority):
        raise _HeadError(400, "The host in the request target is malformed.")
    # RFC 9112 3.2.1: "If the target URI's path component is empty, the client MUST send "/"".
    return authority, (absolute[2] or b"/").decode("ascii"), (absolute[3] or b"").decode("ascii")


def _parse_host(values: list[bytes], version: tuple[int, int]) -> str:
    """The one Host field's value. RFC 9112 3.2: 400 for none in HTTP/1.1, for more than one, and
    for one that is invalid; an empty one is invalid for http (RFC 9110 4.2.1)."""
    if not values and version == (1, 0):
        return ""
    if len(values) != 1:
        raise _HeadError(400, "There must be exactly one Host field.")
    host = values[0].decode("latin-1")
    if not is_host(host):
        raise _HeadError(400, "The Host field is malformed.")
    return host


def _parse_connection(values: dict[bytes, list[bytes]]) -> frozenset[bytes]:
    """The connection options (RFC 9110 7.6.1). They name the fields that must not pass, so what
    cannot be read is refused and not passed over."""
    return _connection_options(b",".join(values.get(b"connection", [])))


@lru_cache(maxsize=64)  # few are in use, and none is longer than a head
def _connection_options(text: bytes) -> frozenset[bytes]:
    options = parse_list([text])
    if not all(map(is_token, options)):
        raise _HeadError(400, "The Connection field is malformed.")
    return frozenset([option.lower() for option in options])


def _parse_framing(
    values: dict[bytes, list[bytes]], version: tuple[int, int]
) -> tuple[int | None, bool]:
    """(Content-Length, chunked) of a head whose content has one possible length.

    RFC 9112 6.1 to 6.3 let a recipient repair some of what is refused here; the next one on the
    way may repair it differently, and that is request smuggling (RFC 9112 11.2).
    """
    lengths = values.get(b"content-length", [])
    encodings = values.get(b"transfer-encoding")
    if encodings is not None:
        if lengths:
            raise _HeadError(400, "Both Content-Length and Transfer-Encoding were sent.")
        if version == (1, 0):
            raise _HeadError(400, "HTTP/1.0 has no Transfer-Encoding.")  # RFC 9112 6.1
        _check_codings([coding.lower() for coding in parse_list(encodings)])
        if len(encodings) > 1 or encodings[0].lower() != b"chunked":
            # An empty element of the list (RFC 9110 5.6.1): others do not step over it.
            raise _HeadError(400, "Transfer-Encoding must be chunked.")
        return None, True
    if not lengths:
        return None, False
    digits = lengths[0]
    # RFC 9110 8.6: 1*DIGIT. A list of equal numbers may be taken for one; it is refused instead.
    if len(lengths) > 1 or not digits.isdigit() or len(digits) > LENGTH_DIGITS_MAX:
        raise _HeadError(400, "Content-Length is malformed or repeated.")
    return int(digits), False


def _check_codings(codings: list[bytes]) -> None:
    """RFC 9112 6.3: 400 where chunked is not the last coding, since no length can be known. 6.1:
    501 for one that is not understood, 400 for chunked twice."""
    if codings[-1:] != [b"chunked"] or b"chunked" in codings[:-1]:
        raise _HeadError(400, "Transfer-Encoding must be chunked.")
    if len(codings) > 1:
        raise _HeadError(501, "Only the transfer coding chunked is known here.")
