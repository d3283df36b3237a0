"""Heads in and out: exact bytes, fed whole, byte by byte, and with bytes behind them."""

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ClientError
from gateway.protocol import http1
from gateway.protocol.http1 import RequestReader
from protocol.feeds import (
    HEAD_MAX,
    read_request,
    refused_request,
)

HOST = b"Host: a.test\r\n"


def get(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> bytes:
    """A request with these field lines."""
    return start + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# --- Requests that pass -------------------------------------------------------------------------


def test_a_browsers_upgrade() -> None:
    """Every part of a real head, its fields in order and in their own case."""
    data = (
        b"GET /chat/a%20b?x=1&y HTTP/1.1\r\nHost: Example.com:8080\r\nUser-Agent: Mozilla/5.0\r\n"
        b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nX-EMPTY:\r\n"
        b"x-twice:  one \t\r\nX-Twice: two\r\nX-Latin: caf\xe9\r\n\r\n"
    )
    request = read_request(data)
    assert request.method == b"GET"
    assert request.target == b"/chat/a%20b?x=1&y"
    assert (request.path, request.query, request.has_query) == ("/chat/a%20b", "x=1&y", True)
    assert request.version == (1, 1)
    assert request.host == "Example.com:8080"
    assert request.connection == {b"keep-alive", b"upgrade"}
    assert (request.content_length, request.chunked) == (None, False)
    assert request.raw == data
    assert request.fields == [
        (b"Host", b"Example.com:8080"),
        (b"User-Agent", b"Mozilla/5.0"),
        (b"Connection", b"keep-alive, Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"X-EMPTY", b""),
        (b"x-twice", b"one"),
        (b"X-Twice", b"two"),
        (b"X-Latin", b"caf\xe9"),
    ]
    assert request.get_all(b"x-twice") == [b"one", b"two"]
    assert request.get_all(b"absent") == []
    assert request.lower_fields[4] == (b"x-empty", b"")


@pytest.mark.parametrize(
    ("target", "host", "path", "query", "has_query"),
    [
        (b"/", "a.test", "/", "", False),
        (b"/?", "a.test", "/", "", True),
        (b"//x/../y;z=1", "a.test", "//x/../y;z=1", "", False),
        (b"/a?b?c/d", "a.test", "/a", "b?c/d", True),
        (b"/a|b{c}^`\\", "a.test", "/a|b{c}^`\\", "", False),
        (b"http://b.test", "b.test", "/", "", False),
        (b"HTTPS://b.test:8/x?y", "b.test:8", "/x", "y", True),
        (b"ws://[::1]:80?q", "[::1]:80", "/", "q", True),
        (b"wss://b.test/", "b.test", "/", "", False),
    ],
)
def test_targets(target: bytes, host: str, path: str, query: str, *, has_query: bool) -> None:
    """Origin form and absolute form, whose authority replaces Host (RFC 9112 3.2.2)."""
    request = read_request(get(start=b"GET " + target + b" HTTP/1.1"))
    assert (request.host, request.path) == (host, path)
    assert (request.query, request.has_query) == (query, has_query)


@pytest.mark.parametrize("host", [
    b"a", b"a.test.", b"a_b~c-d.test", b"1.2.3.4", b"a.test:", b"a.test:0", b"a.test:65535",
    b"[::1]", b"[2001:db8::1.2.3.4]:80",
])
def test_hosts(host: bytes) -> None:
    """What a name or literal may be, as sent."""
    assert read_request(get(host=b"Host: %b\r\n" % host)).host == host.decode()


def test_http_1_0_needs_no_host() -> None:
    """And has one if it says so."""
    request = read_request(get(start=b"GET / HTTP/1.0", host=b""))
    assert (request.version, request.host) == ((1, 0), "")
    assert read_request(get(start=b"GET / HTTP/1.0")).host == "a.test"


def test_a_later_minor_version_is_1_1() -> None:
    """RFC 9110 2.5."""
    assert read_request(get(start=b"GET / HTTP/1.7")).version == (1, 1)


def test_any_token_is_a_method() -> None:
    """Whether it is allowed is the route's question (405), not the reader's."""
    for method in (b"GET", b"get", b"FROBNICATE", b"M-SEARCH", b"!#$%&'*+-.^_`|~"):
        assert read_request(get(start=method + b" / HTTP/1.1")).method == method


def test_one_empty_line_before_a_request() -> None:
    """RFC 9112 2.2; a second one is a fault."""
    assert read_request(b"\r\n" + get()).raw == get()
    assert refused_request(b"\r\n\r\n" + get()).status == 400


@pytest.mark.parametrize("lines", [
    (b"Transfer-Encoding: , chunked",),
    (b"Transfer-Encoding: chunked,",),
    (b"Transfer-Encoding: ,", b"Transfer-Encoding: chunked"),
])
def test_chunked_beside_empty_elements(lines: tuple[bytes, ...]) -> None:
    """Others, h11 among them, do not step over those."""
    assert refused_request(get(*lines)).status == 400


@pytest.mark.parametrize(("lines", "length", "chunked"), [
    ((b"Content-Length: 0",), 0, False),
    ((b"content-length:  0012 ",), 12, False),
    ((b"Content-Length: " + b"9" * 18,), 10**18 - 1, False),
    ((b"Transfer-Encoding: chunked",), None, True),
    ((b"Transfer-Encoding: CHUNKED",), None, True),
    ((), None, False),
])
def test_framing(lines: tuple[bytes, ...], length: int | None, *, chunked: bool) -> None:
    """The one length that content has."""
    request = read_request(get(*lines, start=b"POST / HTTP/1.1"))
    assert (request.content_length, request.chunked) == (length, chunked)


def test_pipelined_heads() -> None:
    """A reader is ready for the next head; what it needs is in `rest`."""
    reader = RequestReader(HEAD_MAX)
    first = reader.feed(get(start=b"GET /1 HTTP/1.1") + get(start=b"GET /2 HTTP/1.1"))
    assert first is not None
    second = reader.feed(first.rest)
    assert second is not None
    assert (first.path, second.path, second.rest) == ("/1", "/2", b"")
    assert reader.feed(b"") is None


# --- Requests that are refused --------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    get().replace(b"\r\n", b"\n"),
    get().replace(b"\r\n", b"\r") + b"\r\n\r\n",
    get(b"X: a\nb"),
    get(b"X: a\rb"),
    get(b"X: a\r\r"),
    get(b"X: a\x00b"),
    get(b"X: \x7f"),
    get(b"X:\x0b1"),
    get()[:-4] + b"\n\n" + get(),
    get(b"X: a\nY: b", *(b"Z: c" for _ in range(200))),
    b"\x16\x03\x01\x00\xc8" + bytes(200),
    b"\n" + get(),
    get(start=b"GET /\x00 HTTP/1.1"),
])
def test_broken_lines(data: bytes) -> None:
    """Bare CR, bare LF and control bytes, wherever they are (RFC 9112 2.2, RFC 9110 5.5)."""
    error = refused_request(data)
    assert (error.status, error.detail) == (
        400, "The head has a bare CR or LF, or another control character."
    )


@pytest.mark.parametrize("data", [get().replace(b"\r\n", b"\n"), b"\x16\x03\x01", b"GET / H\r."])
def test_broken_lines_are_refused_before_the_head_is_whole(data: bytes) -> None:
    """Else they would wait for the head's time to run out."""
    reader = RequestReader(HEAD_MAX)
    with pytest.raises(ClientError, match="bare CR or LF"):
        reader.feed(data)


@pytest.mark.parametrize("line", [
    b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b" GET / HTTP/1.1", b"GET / HTTP/1.1 ",
    b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b"GET\xa0/ HTTP/1.1", b"GET / x HTTP/1.1",
    b"GET /", b"GET HTTP/1.1", b"GET  HTTP/1.1", b"G@T / HTTP/1.1", b"GET: / HTTP/1.1",
    b"GET / http/1.1", b"GET / HTTP/1", b"GET / HTTP/1.", b"GET / HTTP/11", b"GET / HTTP/1.10",
    b"GET / HTTP/01.1", b"GET / HTTP /1.1", b"GET / ICY/1.1", b"GET / HTTP/x.1",
    b"GET /\x80 HTTP/1.1",
])
def test_request_lines(line: bytes) -> None:
    """RFC 9112 3: one SP, a token, a target, and the version's exact form."""
    error = refused_request(get(start=line))
    assert (error.status, error.detail) == (400, "The request line is malformed.")


def test_version_0_9_is_no_version() -> None:
    """That protocol had none in its request line."""
    assert refused_request(get(start=b"GET / HTTP/0.9")).status == 400


@pytest.mark.parametrize("version", [b"2.0", b"3.0", b"9.9"])
def test_other_major_versions(version: bytes) -> None:
    """505, but only for a request that is sound in all else."""
    assert refused_request(get(start=b"GET / HTTP/" + version)).status == 505
    assert refused_request(get(start=b"GET / HTTP/" + version, host=b"")).status == 400
    assert refused_request(get(b"X : y", start=b"GET / HTTP/" + version)).status == 400


@pytest.mark.parametrize("target", [
    b"*", b"x", b"a.test:80", b"/#", b"/a#b", b'/"', b"/<", b"/>", b"http:/a/", b"http:a",
    b"http://", b"http:///x", b"http://?x", b"http://u@a.test/", b"http://u:p@a.test/",
    b"http://a.test:x/", b"http://a.test:65536/", b"http://a%2eb/", b"http://[::1/", b"ftp://a/",
    b"file:///x", b"http://a.test#x",
])
def test_targets_that_are_none_for_us(target: bytes) -> None:
    """Authority and asterisk form lead to no route; a fragment is never sent (RFC 9112 3.2)."""
    assert refused_request(get(start=b"GET " + target + b" HTTP/1.1")).status == 400


def test_connect_is_refused() -> None:
    """RFC 9112 3.2.3: its target is an authority, which leads to no route."""
    assert refused_request(get(start=b"CONNECT a.test:80 HTTP/1.1")).status == 400
    assert refused_request(get(start=b"CONNECT / HTTP/1.1")).status == 400


@pytest.mark.parametrize("host", [
    b"", b"Host:\r\n", b"Host: \r\n", b"Host: a\r\nHost: a\r\n", b"Host: a\r\nhOST: b\r\n",
    b"Host: a b\r\n", b"Host: a,b\r\n", b"Host: u@a\r\n", b"Host: a/b\r\n", b"Host: a?b\r\n",
    b"Host: a#b\r\n", b"Host: http://a\r\n", b"Host: a:x\r\n", b"Host: a:65536\r\n",
    b"Host: a:000080\r\n", b"Host: a:1:1\r\n", b"Host: :80\r\n", b"Host: ::1\r\n",
    b"Host: [::1\r\n", b"Host: [a]\r\n", b"Host: []\r\n", b"Host: [::g]\r\n",
    b"Host: [fe80::1%25lo]\r\n", b"Host: [1::2::3]\r\n", b"Host: [v1.x]\r\n", b"Host: a%41\r\n",
    b"Host: \xe4\r\n", b"Host: a\\b\r\n", b"Host: " + b"a" * 256 + b"\r\n",
])
def test_hosts_that_are_none(host: bytes) -> None:
    """RFC 9112 3.2: 400 for none, for more than one, and for one that is invalid."""
    assert refused_request(get(host=host)).status == 400


def test_host_counts_in_http_1_0_and_beside_an_absolute_target_too() -> None:
    """Two are two, and what is replaced must be sound all the same."""
    assert refused_request(get(start=b"GET / HTTP/1.0", host=HOST + HOST)).status == 400
    absolute = b"GET http://b.test/ HTTP/1.1"
    assert refused_request(get(start=absolute, host=b"")).status == 400
    assert refused_request(get(start=absolute, host=b"Host: x y\r\n")).status == 400


@pytest.mark.parametrize(("line", "detail"), [
    (b"X : y", "There is a space before a field's colon."),
    (b"X\t: y", "There is a space before a field's colon."),
    (b" X: y", "A field line begins with whitespace."),
    (b"X: a\r\n b", "A field line begins with whitespace."),
    (b"X: a\r\n\tb", "A field line begins with whitespace."),
    (b"X:\r\n \r\nY: b", "A field line begins with whitespace."),
    (b": y", "A field has no name."),
    (b"X", "A field line is malformed."),
    (b"X Y: z", "A field line is malformed."),
    (b"X(: z", "A field line is malformed."),
    (b"X\xe9: z", "A field line is malformed."),
    (b"GET / HTTP/1.1", "A field line is malformed."),
])
def test_field_lines(line: bytes, detail: str) -> None:
    """RFC 9112 5: a token, a colon at once, no obs-fold."""
    error = refused_request(get(line))
    assert (error.status, error.detail) == (400, detail)


@pytest.mark.parametrize(("lines", "status"), [
    ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], 400),
    ([b"Transfer-Encoding: chunked", b"Content-Length: 0"], 400),
    ([b"Content-Length: 5", b"Content-Length: 6"], 400),
    ([b"Content-Length: 5", b"content-length: 5"], 400),
    ([b"Content-Length: 5, 5"], 400),
    ([b"Content-Length: +5"], 400),
    ([b"Content-Length: -5"], 400),
    ([b"Content-Length: 0x5"], 400),
    ([b"Content-Length: 5.0"], 400),
    ([b"Content-Length: 5 5"], 400),
    ([b"Content-Length: 1_0"], 400),
    ([b"Content-Length:"], 400),
    ([b"Content-Length: \xd9\xa5"], 400),
    ([b"Content-Length: " + b"9" * 19], 400),
    ([b"Content-Length: " + b"0" * 1000 + b"1"], 400),
    ([b"Transfer-Encoding:"], 400),
    ([b"Transfer-Encoding: identity"], 400),
    ([b"Transfer-Encoding: gzip"], 400),
    ([b"Transfer-Encoding: chunked, gzip"], 400),
    ([b"Transfer-Encoding: chunked, chunked"], 400),
    ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
    ([b"Transfer-Encoding: xchunked"], 400),
    ([b"Transfer-Encoding: chunked;x"], 400),
    ([b'Transfer-Encoding: "chunked"'], 400),
    ([b"Transfer-Encoding: gzip, chunked"], 501),
    ([b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"], 501),
])
def test_ambiguous_framing(lines: list[bytes], status: int) -> None:
    """RFC 9112 6: what two recipients may read differently is refused, not repaired."""
    assert refused_request(get(*lines, start=b"POST / HTTP/1.1")).status == status


def test_http_1_0_has_no_transfer_encoding() -> None:
    """RFC 9112 6.1."""
    data = get(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0")
    assert refused_request(data).status == 400


@pytest.mark.parametrize("value", [b'"close"', b"keep alive", b"a;b", b"a=b", b"\xe9", b"close, @"])
def test_connection_is_a_list_of_tokens(value: bytes) -> None:
    """It names what must not pass, so what cannot be read is refused."""
    assert refused_request(get(b"Connection: " + value)).status == 400


# --- Limits -------------------------------------------------------------------------------------


def padded(size: int, line: bytes = b"GET / HTTP/1.1") -> bytes:
    """A request whose head has exactly this many bytes."""
    head = get(b"X: ", start=line)
    return get(b"X: " + b"y" * (size - len(head)), start=line)


def test_a_head_up_to_the_limit() -> None:
    """And not one byte more: 431."""
    assert len(read_request(padded(HEAD_MAX)).raw) == HEAD_MAX
    assert refused_request(padded(HEAD_MAX + 1)).status == 431
    assert refused_request(padded(HEAD_MAX * 20)).status == 431
    assert refused_request(padded(HEAD_MAX * 2)[:HEAD_MAX]).status == 431


def test_a_request_line_up_to_the_limit() -> None:
    """Half of the head; its CRLF counts. 414 goes before 431 and 400."""
    size = HEAD_MAX // 2 - len(b"GET / HTTP/1.1\r\n")
    target = b"/" + b"a" * size
    assert read_request(get(start=b"GET " + target + b" HTTP/1.1")).target == target
    assert refused_request(get(start=b"GET " + target + b"a HTTP/1.1")).status == 414
    assert refused_request(get(b"X : y", start=b"GET " + target + b"a HTTP/1.1")).status == 414
    assert refused_request(b"A" * HEAD_MAX * 2).status == 414
    assert refused_request(b"A" * (HEAD_MAX // 2 - 1) + b"\r" + b"A" * HEAD_MAX).status == 414
    assert refused_request(b"A" * (HEAD_MAX // 2 - 2) + b"\r" + b"A" * HEAD_MAX).status == 400


def test_the_number_of_fields() -> None:
    """431, before anything is said of the fields."""
    most = [b"X-%d: y" % number for number in range(http1.FIELDS_MAX - 1)]
    assert len(read_request(get(*most)).fields) == http1.FIELDS_MAX
    assert refused_request(get(*most, b"Y: z")).status == 431
    assert refused_request(get(*most, b"Y : z")).status == 431


def test_a_fault_before_a_limit_decides() -> None:
    """The order of the bytes, not how they were cut."""
    assert refused_request(padded(HEAD_MAX * 2).replace(b"X: ", b"X\n: ")).status == 400
    late = padded(HEAD_MAX * 2)
    assert refused_request(late[: HEAD_MAX + 5] + b"\n" + late[HEAD_MAX + 5 :]).status == 431


def test_memory_stays_below_the_limit() -> None:
    """A reader that waits keeps less than the limit; one that has read keeps nothing."""
    reader = RequestReader(HEAD_MAX)
    assert reader.feed(padded(HEAD_MAX)[:-1]) is None
    assert len(reader._buffer._buffer) < HEAD_MAX
    assert reader.feed(b"\n" + bytes(100_000)) is not None
    assert reader.is_empty


class _CountingBytes(bytearray):
    """Counts how many bytes are searched, by the slices that are asked for."""

    searched = 0

    def find(self, what: bytes, begin: int = 0, end: int = 1 << 60) -> int:  # type: ignore[override]
        """As bytearray's."""
        self.searched += max(0, min(end, len(self)) - begin)
        return super().find(what, begin, end)


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n" + HOST, b""])
def test_a_drip_costs_what_its_bytes_cost(line: bytes) -> None:
    """Byte by byte, no byte is searched more than a few times: O(n), not O(n^2)."""
    head_max = 64 * 1024
    searched = []
    for size in (8_000, 32_000):
        reader = RequestReader(head_max)
        buffer = reader._buffer._buffer = _CountingBytes()
        for at in range(size):
            assert reader.feed(line[at : at + 1] or b"X") is None
        searched.append(buffer.searched)
    assert searched[1] <= 10 * 32_000
    assert searched[1] <= searched[0] * 4 + 100


_MEGABYTE = 1024 * 1024


@pytest.mark.parametrize("line", [
    b"X: " + b" " * _MEGABYTE,
    b"X: " + b"a " * (_MEGABYTE // 2) + b"\x01",
    b"X" * _MEGABYTE,
    b"X" * _MEGABYTE + b" :",
    b"X:\t\t" + b" \t" * (_MEGABYTE // 2) + b"\xff\x00",
    b"Connection: " + b"a," * (_MEGABYTE // 2),
    b"Connection: " + b"a , , " * (_MEGABYTE // 6) + b"@",
    b"Transfer-Encoding: " + b"," * _MEGABYTE + b"chunked",
    b"Content-Length: " + b"0" * _MEGABYTE,
    b"Host: [" + b":" * _MEGABYTE,
    b"Host: " + b"1." * (_MEGABYTE // 2),
])
def test_no_line_costs_more_than_its_bytes(line: bytes) -> None:
    """Each is of the kind that makes a backtracking pattern quadratic; a megabyte of it would
    then take hours, and the test's time would run out."""
    reader = RequestReader(4 * _MEGABYTE)
    head = get(line)
    try:
        assert reader.feed(head[:-1]) is None
        assert reader.feed(head[-1:]) is not None
    except ClientError as error:
        assert error.status == 400


@pytest.mark.parametrize("target", [
    b"/" + b"?" * _MEGABYTE, b"http://" + b"a" * _MEGABYTE, b"http://a" + b"/" * _MEGABYTE,
    b"http://a" + b"?" * _MEGABYTE, b"/" + b"%" * _MEGABYTE,
])
def test_no_target_costs_more_than_its_bytes(target: bytes) -> None:
    """Likewise."""
    try:
        RequestReader(4 * _MEGABYTE).feed(get(start=b"GET " + target + b" HTTP/1.1"))
    except ClientError as error:
        assert error.status == 400


# --- h11 as the oracle ----------------------------------------------------------------------------


_TOKENS = st.sampled_from([b"X", b"Host", b"Content-Length", b"Transfer-Encoding", b"connection",
                           b"Upgrade", b"x!#$%&'*+-.^_`|~9", b"Expect", b"X-A"])
_VALUES = st.one_of(
    st.sampled_from([b"a.test", b"5", b"chunked", b"close", b"", b" 5 ", b"\tx\t", b"a,b", b"0",
                     b"100-continue", b"gzip", b"CHUNKED", b"5, 5", b"\xff \xfe"]),
    st.binary(max_size=8),
)
_LINES = st.one_of(
    st.builds(lambda name, value: name + b": " + value, _TOKENS, _VALUES),
    st.binary(max_size=10),
)
_STARTS = st.builds(
    lambda method, target, version: method + b" " + target + b" " + version,
    st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"FOO", b"OPTIONS", b"CONNECT"]),
    st.one_of(st.sampled_from([b"/", b"/a?b", b"http://a/", b"*", b"//"]), st.binary(max_size=6)),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9"]),
)
_HEADS = st.builds(
    lambda start, lines, has_host: b"\r\n".join(
        [start, *([b"Host: a.test"] if has_host else []), *lines, b"", b""]
    ),
    _STARTS, st.lists(_LINES, max_size=6), st.booleans(),
)


@given(_HEADS)
def test_what_is_accepted_h11_reads_the_same(data: bytes) -> None:
    """Method, target, fields and the length of content; what is refused is a ClientError."""
    try:
        request = RequestReader(HEAD_MAX).feed(data)
    except ClientError as error:
        assert error.status in (400, 414, 431, 501, 505)
        return
    if request is None:
        return
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(request.raw)
    event = oracle.next_event()
    assert type(event) is h11.Request
    assert (event.method, event.target) == (request.method, request.target)
    assert event.headers.raw_items() == [
        (name, value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in request.fields
    ]
    length = request.content_length or 0
    if length > 10_000:
        return
    content = b"0\r\n\r\n" if request.chunked else bytes(length)
    if content:
        oracle.receive_data(content)
    events = []
    while (event := oracle.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        events.append(event)
    assert type(events[-1]) is h11.EndOfMessage


@given(st.one_of(_HEADS, st.binary(max_size=60)), st.lists(st.integers(0, 400), max_size=5))
def test_cuts_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """The same head or the same error, wherever the bytes were cut."""
    def outcome(pieces: list[bytes]) -> object:
        reader = RequestReader(128)
        try:
            for number, piece in enumerate(pieces):
                request = reader.feed(piece)
                if request is not None:
                    request.rest += b"".join(pieces[number + 1 :])
                    return request
        except ClientError as error:
            return error.status, error.detail
        return None

    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    cut = [data[a:b] for a, b in itertools.pairwise(places)]
    drip = [data[at : at + 1] for at in range(len(data))]
    assert outcome(cut) == outcome([data]) == outcome(drip)
