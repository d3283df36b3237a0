"""Plain exchanges: the answer to the byte, what is thrown away, and what may follow."""

import pytest

from gateway.protocol.exchange import CONTENT_MAX, WIRE_MAX, Exchange, ExchangeState
from gateway.protocol.http1 import Request, RequestReader
from protocol.feeds import HEAD_MAX

KEEPALIVE = ExchangeState.DONE_KEEPALIVE
CLOSE = ExchangeState.DONE_CLOSE
READING = ExchangeState.READING_BODY
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
OK_CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nyes"
NEXT = b"GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


def ask(*lines: bytes, start: bytes = b"GET / HTTP/1.1", behind: bytes = b"") -> Request:
    """A request, with bytes behind its head."""
    head = b"\r\n".join([start, b"Host: a.test", *lines, b"", b""])
    request = RequestReader(HEAD_MAX).feed(head + behind)
    assert request is not None
    return request


def post(*lines: bytes, behind: bytes = b"") -> Request:
    """The same, with content to come."""
    return ask(*lines, start=b"POST / HTTP/1.1", behind=behind)


def test_a_request_without_content_keeps_the_connection() -> None:
    """What was pipelined behind it is the next one's (RFC 9112 9.3.2)."""
    exchange = Exchange(ask(behind=NEXT))
    assert exchange.respond(200, [(b"X", b"y")], b"yes") == (
        b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 3\r\n\r\nyes"
    )
    assert exchange.state is KEEPALIVE
    assert exchange.rest == NEXT


def test_head_gets_the_head_alone() -> None:
    """RFC 9110 9.3.2: as GET would, without content."""
    exchange = Exchange(ask(start=b"HEAD / HTTP/1.1"))
    assert exchange.respond(200, (), b"yes") == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    assert exchange.state is KEEPALIVE


def test_who_says_close_is_closed() -> None:
    """Client or gateway; the answer says so, too (RFC 9112 9.6)."""
    exchange = Exchange(ask(b"Connection: close", behind=NEXT))
    assert b"\r\nConnection: close\r\n" in exchange.respond(200, (), b"yes")
    assert exchange.state is CLOSE
    exchange = Exchange(ask(behind=NEXT))
    assert exchange.respond(200, (), b"yes", close=True) == OK_CLOSING
    assert exchange.state is CLOSE


def test_http_1_0_closes() -> None:
    """Also where it would keep the connection: RFC 9112 9.3 lets a server."""
    for lines in ((), (b"Connection: keep-alive",)):
        exchange = Exchange(ask(*lines, start=b"GET / HTTP/1.0"))
        data = exchange.respond(200, (), b"yes")
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close\r\n" in data
        assert exchange.state is CLOSE


def test_an_upgrade_to_something_else_is_an_exchange() -> None:
    """RFC 9110 7.8: who does not want to upgrade answers as ever."""
    exchange = Exchange(ask(b"Connection: Upgrade", b"Upgrade: h2c", behind=NEXT))
    assert exchange.respond(200, (), b"yes") == OK
    assert (exchange.state, exchange.rest) == (KEEPALIVE, NEXT)


@pytest.mark.parametrize(("line", "content"), [
    (b"Content-Length: 5", b"hello"),
    (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"),
    (CHUNKED, b"2;x=y\r\nhe\r\n3;a;b\r\nllo\r\n0\r\nX: y\r\nHost: evil.test\r\n\r\n"),
    (CHUNKED, b"0\r\n\r\n"),
])
def test_unwanted_content_is_read(line: bytes, content: bytes) -> None:
    """Behind the answer, at any cut, and what follows it is the next request's."""
    data = content + NEXT
    for cut in range(len(content)):
        exchange = Exchange(post(line, behind=data[:cut]))
        assert exchange.respond(200, (), b"yes") == OK
        assert exchange.state is READING
        exchange.feed(data[cut:])
        assert exchange.state is KEEPALIVE
        assert exchange.rest == NEXT
    drip = Exchange(post(line))
    drip.respond(200, (), b"yes")
    for at in range(len(content)):
        assert drip.state is READING
        drip.feed(content[at : at + 1])
    assert drip.state is KEEPALIVE
    assert drip.rest == b""


def test_content_that_came_before_the_answer() -> None:
    """An answer may take its time."""
    exchange = Exchange(post(b"Content-Length: 5", behind=b"he"))
    exchange.feed(b"llo" + NEXT)
    assert exchange.state is ExchangeState.UNANSWERED
    assert exchange.respond(200, (), b"yes") == OK
    assert (exchange.state, exchange.rest) == (KEEPALIVE, NEXT)


def test_too_much_content_closes() -> None:
    """At once where the length is known, else where the limit is."""
    exchange = Exchange(post(b"Content-Length: %d" % (CONTENT_MAX + 1)))
    assert exchange.respond(200, (), b"yes") == OK_CLOSING
    assert exchange.state is CLOSE
    exchange = Exchange(post(b"Content-Length: %d" % CONTENT_MAX))
    assert exchange.respond(200, (), b"yes") == OK
    exchange.feed(bytes(CONTENT_MAX))
    assert exchange.state is KEEPALIVE
    for last, state in [(b"\0", KEEPALIVE), (b"\0\0", CLOSE)]:
        exchange = Exchange(post(CHUNKED))
        assert exchange.respond(200, (), b"yes") == OK
        exchange.feed(b"%x\r\n%b\r\n" % (CONTENT_MAX - 1, bytes(CONTENT_MAX - 1)))
        assert exchange.state is READING
        exchange.feed(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        assert exchange.state is state


def test_chunk_headers_are_bounded() -> None:
    """One of them, and all together, though they carry hardly a byte."""
    exchange = Exchange(post(CHUNKED))
    exchange.respond(200, (), b"yes")
    exchange.feed(b"1;" + b"x" * 20_000)
    assert exchange.state is CLOSE
    exchange = Exchange(post(CHUNKED))
    exchange.respond(200, (), b"yes")
    fed = 0
    while exchange.state is READING:
        chunk = b"1;" + b"x" * 8_000 + b"\r\n.\r\n"
        exchange.feed(chunk)
        fed += len(chunk)
    assert exchange.state is CLOSE
    assert fed < WIRE_MAX + 10_000


@pytest.mark.parametrize("content", [
    b"x\r\n", b"-1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"1 ;x\r\n", b"1\n", b"\r\n", b";\r\n",
    b"1\r\nab\r\n", b"1\r\na\n0\r\n\r\n", b"f" * 17 + b"\r\n", b"1;a\rb\r\na\r\n0\r\n\r\n",
    b"1;a\nb\r\na\r\n0\r\n\r\n", b"1;\x00\r\na\r\n0\r\n\r\n", b"1\r\r\na\r\n", b"1_0\r\n",
    b"0\r\nX : y\r\n\r\n", b"0\r\n X: y\r\n\r\n", b"0\r\nX: a\rb\r\n\r\n", b"0\r\nX: y\n\r\n",
    b"0\r\n\n",
])
def test_broken_chunks_close(content: bytes) -> None:
    """Where the content ends is not known, so nothing behind it may be taken for a request."""
    exchange = Exchange(post(CHUNKED, behind=content + NEXT))
    assert exchange.respond(200, (), b"yes") == OK_CLOSING
    assert exchange.state is CLOSE
    drip = Exchange(post(CHUNKED))
    drip.respond(200, (), b"yes")
    for at in range(len(content + NEXT)):
        if drip.state is READING:
            drip.feed((content + NEXT)[at : at + 1])
    assert drip.state is CLOSE


def test_expect_100_continue() -> None:
    """No content is asked for; whether it comes is not known, so the connection closes (RFC 9110
    10.1.1). Where it is here already, all is well."""
    lines = (b"Expect: 100-continue", b"Content-Length: 5")
    exchange = Exchange(post(*lines))
    assert exchange.respond(200, (), b"yes") == OK_CLOSING
    assert exchange.state is CLOSE
    exchange = Exchange(post(*lines, behind=b"hello" + NEXT))
    assert exchange.respond(200, (), b"yes") == OK
    assert (exchange.state, exchange.rest) == (KEEPALIVE, NEXT)


def test_connection_options_are_kept_beside_close() -> None:
    """426 says what to upgrade to, closing or not."""
    fields = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
    data = Exchange(ask()).respond(426, fields, b"", close=True)
    assert b"\r\nConnection: Upgrade, close\r\n" in data


def test_much_content_in_small_chunks_is_linear() -> None:
    """Each call looks at what it brings, not at what came before: nothing piles up."""
    exchange = Exchange(post(CHUNKED))
    exchange.respond(200, (), b"yes")
    for _ in range(CONTENT_MAX // 2):
        exchange.feed(b"1\r\n.\r\n")
        assert len(exchange._connection.trailing_data[0]) < 10
    assert exchange.state is READING
