"""An upstream's refusal, passed on: exact bytes, any cut, and no cut answer that looks whole."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamError
from gateway.protocol.http1 import ResponseReader
from gateway.protocol.pass_on import PassOn

LENGTH = b"HTTP/1.1 403 No\r\nServer: x\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nhello"
LENGTH_OUT = (
    b"HTTP/1.1 403 No\r\nServer: x\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n"
    b"Connection: close\r\n\r\nhello"
)
CHUNKED = (
    b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: z\r\n\r\n"
)
CHUNKED_HEAD = (
    b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)
UNTIL_FIN = b"HTTP/1.0 302 Found\r\nLocation: /login\r\n\r\nhello"
UNTIL_FIN_HEAD = (
    b"HTTP/1.1 302 Found\r\nLocation: /login\r\nConnection: close\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def begin(data: bytes) -> tuple[PassOn, bytes]:
    """What came in one piece, passed on."""
    response = ResponseReader(4096).feed(data)
    assert response is not None
    passing = PassOn(response)
    return passing, passing.feed(response.rest)


def read_by_a_client(data: bytes) -> tuple[int, bytes]:
    """Status and content as h11 reads them; the answer must be whole."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert type(response) is h11.Response
    content = b""
    while type(event := client.next_event()) is h11.Data:
        content += event.data
    assert type(event) is h11.EndOfMessage
    return response.status_code, content


def test_an_answer_with_a_length() -> None:
    """Keeps it; status, reason and fields pass."""
    passing, data = begin(LENGTH)
    assert data == LENGTH_OUT
    assert passing.done
    assert passing.finish() == b""


def test_a_chunked_answer() -> None:
    """Is chunked anew, without extensions and trailers."""
    passing, data = begin(CHUNKED)
    assert data == CHUNKED_HEAD + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    assert passing.done


def test_an_answer_until_fin() -> None:
    """Becomes chunked, so that the client can tell a whole one from one that was cut."""
    passing, data = begin(UNTIL_FIN)
    assert data == UNTIL_FIN_HEAD + b"5\r\nhello\r\n"
    assert passing.feed(b"!") == b"1\r\n!\r\n"
    assert not passing.done
    assert passing.finish() == b"0\r\n\r\n"
    assert passing.done


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, UNTIL_FIN])
def test_any_cut(answer: bytes) -> None:
    """The client reads the same."""
    head = answer.index(b"\r\n\r\n") + 4
    for cut in range(head, len(answer) + 1):
        passing, data = begin(answer[:cut])
        for at in range(cut, len(answer)):
            data += passing.feed(answer[at : at + 1])
        data += passing.finish()
        assert passing.done
        assert read_by_a_client(data)[1] == b"hello"


@pytest.mark.parametrize(("head", "out"), [
    (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    (b"HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n",
     b"HTTP/1.1 304 \r\nContent-Length: 9\r\nConnection: close\r\n\r\n"),
    (b"HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n",
     b"HTTP/1.1 401 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
])
def test_answers_without_content(head: bytes, out: bytes) -> None:
    """Are whole with their head (RFC 9112 6.3)."""
    passing, data = begin(head)
    assert data == out
    assert passing.done


def test_fields_of_the_connection_do_not_pass() -> None:
    """Those that RFC 9110 7.6.1 names, and those that Connection names."""
    _, data = begin(
        b"HTTP/1.1 500 x\r\nconnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
        b"Proxy-Connection: x\r\nTE: x\r\nTrailer: x\r\nUpgrade: h2c\r\nX-End: 2\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert data == (
        b"HTTP/1.1 500 x\r\nX-End: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def test_a_426_says_to_what() -> None:
    """RFC 9110 15.5.22, though Upgrade is for one connection."""
    _, data = begin(
        b"HTTP/1.1 426 x\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13, 8\r\n"
        b"Connection: Upgrade\r\nContent-Length: 0\r\n\r\n"
    )
    assert data == (
        b"HTTP/1.1 426 x\r\nSec-WebSocket-Version: 13, 8\r\nContent-Length: 0\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"
    )


@pytest.mark.parametrize("answer", [LENGTH[:-1], CHUNKED[:-2], CHUNKED[:-20]])
def test_fin_too_early(answer: bytes) -> None:
    """Raises, so that the client is cut, too; and nothing that was sent ends the answer."""
    passing, data = begin(answer)
    with pytest.raises(UpstreamError, match="upstream's answer"):
        passing.finish()
    assert not passing.done
    assert not data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("chunk", [b"x\r\n", b"2\r\nabc", b"-1\r\n", b"1;" + b"x" * 20_000])
def test_broken_chunks(chunk: bytes) -> None:
    """Likewise."""
    passing, _ = begin(b"HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(UpstreamError):
        passing.feed(chunk)


def test_what_comes_behind_the_answer_is_thrown_away() -> None:
    """It answers nothing that was asked."""
    passing, data = begin(LENGTH + b"HTTP/1.1 200 OK\r\n\r\n")
    assert data == LENGTH_OUT
    assert passing.feed(b"more") == b""


def test_a_large_answer_streams() -> None:
    """What is fed comes out at once; nothing is kept."""
    passing, _ = begin(b"HTTP/1.1 404 x\r\nContent-Length: 1000000\r\n\r\n")
    piece = bytes(1000)
    for _ in range(1000):
        assert not passing.done
        assert passing.feed(piece) == piece
        assert passing._upstream.trailing_data[0] == b""
    assert passing.done


@given(st.binary(max_size=100), st.booleans())
def test_any_content(content: bytes, fin: bool) -> None:
    """Passed, or an UpstreamError; never anything else."""
    passing, data = begin(b"HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        data += passing.feed(content)
        if fin:
            data += passing.finish()
    except UpstreamError:
        return
    if passing.done:
        assert read_by_a_client(data)[0] == 404
