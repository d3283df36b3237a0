"""Heads of answers, read and written; heads of requests, written. Exact bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamError
from gateway.protocol import http1
from gateway.protocol.http1 import ResponseReader, build_request, build_response
from protocol.feeds import HEAD_MAX, read_response, refused_response

# --- Reading ------------------------------------------------------------------------------------


def test_an_answer() -> None:
    """Every part of it."""
    data = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Set-Cookie: a=b\r\nset-cookie: c=d\r\n\r\n"
    )
    response = read_response(data)
    assert (response.status, response.reason) == (101, b"Switching Protocols")
    assert response.version == (1, 1)
    assert response.connection == {b"upgrade"}
    assert response.get_all(b"set-cookie") == [b"a=b", b"c=d"]
    assert response.raw == data


@pytest.mark.parametrize(("line", "status", "reason", "version"), [
    (b"HTTP/1.1 200 ", 200, b"", (1, 1)),
    (b"HTTP/1.1 200", 200, b"", (1, 1)),
    (b"HTTP/1.0 404 Not \xe9 Found", 404, b"Not \xe9 Found", (1, 0)),
    (b"HTTP/1.4 599  x", 599, b" x", (1, 1)),
])
def test_status_lines(line: bytes, status: int, reason: bytes, version: tuple[int, int]) -> None:
    """RFC 9112 4; the last space may be missing where no reason follows."""
    response = read_response(line + b"\r\n\r\n")
    assert (response.status, response.reason, response.version) == (status, reason, version)


def test_interim_answers_come_one_by_one() -> None:
    """The session counts them."""
    reader = ResponseReader(HEAD_MAX)
    hints = reader.feed(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhi")
    assert hints is not None
    assert hints.status == 103
    final = reader.feed(hints.rest)
    assert final is not None
    assert (final.status, final.rest) == (200, b"hi")


@pytest.mark.parametrize("data", [
    b"HTTP/1.1 200 OK\nX: y\n\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 600 OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 200OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"220 mail ESMTP\r\n" + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: a b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * HEAD_MAX + b"\r\n\r\n",
    b"x" * HEAD_MAX * 2,
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
])
def test_answers_that_are_none(data: bytes) -> None:
    """502, with a sentence for the record."""
    assert refused_response(data).startswith("upstream's head: ")


@given(st.binary(max_size=200))
def test_any_answer_is_read_or_an_upstream_error(data: bytes) -> None:
    """Nothing else is ever raised."""
    try:
        ResponseReader(128).feed(b"HTTP/1.1 " + data)
    except UpstreamError as error:
        assert error.status == 502


# --- Writing ------------------------------------------------------------------------------------


def test_a_request_is_written() -> None:
    """In the order given."""
    data = build_request(b"GET", b"/x?y", [(b"Host", b"a"), (b"X", b"")])
    assert data == b"GET /x?y HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n"


def test_an_answer_is_written() -> None:
    """It closes unless told not to; Connection's options are one list."""
    fields = [(b"Connection", b"Upgrade"), (b"X", b"y")]
    assert build_response(426, fields, b"no\n") == (
        b"HTTP/1.1 426 Upgrade Required\r\nX: y\r\nConnection: Upgrade, close\r\n"
        b"Content-Length: 3\r\n\r\nno\n"
    )
    assert build_response(404, body=b"no\n", head_only=True, close=False) == (
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n"
    )
    assert build_response(599) == (
        b"HTTP/1.1 599 \r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )


def test_a_refusal_says_little() -> None:
    """A sentence and an id, and nothing that was sent."""
    fields, body = http1.refusal(502, http1.SENTENCES[502], "7f-1")
    assert fields == [(b"Content-Type", b"text/plain; charset=utf-8")]
    assert body == (
        b"502 Bad Gateway\nThe upstream could not be reached, or gave no usable answer.\n"
        b"Session 7f-1\n"
    )


@pytest.mark.parametrize("pair", [
    (b"X", b"a\r\nY: b"), (b"X", b"a\n"), (b"X", b"a\r"), (b"X", b"\x00"), (b"X\r\nY", b"a"),
    (b"X y", b"a"), (b"", b"a"), (b"X:", b"\n"),
])
def test_nothing_is_written_into_a_head(pair: tuple[bytes, bytes]) -> None:
    """Splitting (RFC 9112 11.1) is a bug of ours, and loud."""
    with pytest.raises(AssertionError):
        build_request(b"GET", b"/", [pair])
    with pytest.raises(AssertionError):
        build_response(200, [pair])
