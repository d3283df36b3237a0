"""A head, a table and a stream of frames of n bytes cost O(n), however they arrive.

Work is counted and not timed (`work.py`): twice and four times as much input may cost little more
than twice and four times as much. That the count would show it is a test, too. Regular expressions,
which it cannot see, get inputs so long that only a linear one comes to an end in time.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import frames, leg, relaying
from gateway.control import config
from gateway.errors import ClientError, TableErrors, UpstreamError
from gateway.events import RelayRules, Side
from gateway.frames import Cursor, build_frame
from gateway.protocol import http1, websocket
from gateway.protocol.http1 import RequestReader, ResponseReader
from gateway.relaying import Relay

from .work import Bytes, Work, measure

GROWTH_MAX = 1.15                      # over the linear; what is paid once weighs less and less
LONG = 1 << 20
LONG_LIMIT = 10.0                      # seconds of CPU; a quadratic 1 MiB takes hours
Feed = Callable[[Callable[[bytes], bytes]], object]


def assert_linear(works: list[Work]) -> None:
    """Works of n, 2n and 4n bytes."""
    for field in ("steps", "moved"):
        small, twice, four = (getattr(work, field) for work in works)
        if small < 100:                # nothing of this kind is done at all
            assert four < 1000, works
            continue
        assert twice <= small * 2 * GROWTH_MAX, (field, works)
        assert four <= small * 4 * GROWTH_MAX, (field, works)


def pieces(data: bytes, size: int) -> list[bytes]:
    """`data` in pieces of `size` bytes; 0 is whole."""
    return [data[at : at + size] for at in range(0, len(data), size)] if size else [data]


def lengths(size: int) -> tuple[int, int, int]:
    """n, 2n and 4n: a quadratic cost shows early where there are many pieces."""
    first = 600 if size else 4000
    return first, 2 * first, 4 * first


SIZES = pytest.mark.parametrize("size", [0, 1, 7], ids=["whole", "byte by byte", "by sevens"])


# --- Heads ------------------------------------------------------------------------------------


def request_of(size: int) -> bytes:
    """A sound request of about this size: the fields grow, since their number is limited."""
    fields = b"".join(b"X-%d: %b\r\n" % (n, b"v" * (size // 50)) for n in range(50))
    return b"GET /%b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"p" * (size // 20), fields)


def endless_request_of(size: int) -> bytes:
    """A request that is never whole."""
    return request_of(size)[:-2]


def dripping_request_of(size: int) -> bytes:
    """Line ends that nearly are the head's end, all the way."""
    return b"GET / HTTP/1.1\r\n" + b"a:\r\n" * min(size // 4, 90) + b"b:" + b" " * size


def read_request(data: bytes, size: int) -> Feed:
    def feed(counted: Callable[[bytes], bytes]) -> None:
        reader = RequestReader(LONG)
        for piece in pieces(data, size):
            reader.feed(counted(piece))

    return feed


@SIZES
@pytest.mark.parametrize("make", [request_of, endless_request_of, dripping_request_of])
def test_a_request_costs_what_it_is_long(make: Callable[[int], bytes], size: int) -> None:
    works = [measure(read_request(make(n), size), http1) for n in lengths(size)]
    assert_linear(works)


@SIZES
def test_an_answer_costs_what_it_is_long(size: int) -> None:
    def read(n: int) -> Work:
        fields = b"".join(b"X-%d: %b\r\n" % (at, b"v" * (n // 50)) for at in range(50))
        data = b"HTTP/1.1 200 OK\r\n%b\r\n" % fields

        def feed(counted: Callable[[bytes], bytes]) -> None:
            reader = ResponseReader(LONG)
            for piece in pieces(data, size):
                reader.feed(counted(piece))

        return measure(feed, http1)

    assert_linear([read(n) for n in lengths(size)])


def test_a_list_of_offers_costs_what_it_is_long() -> None:
    def check(n: int) -> Work:
        extension = b"permessage-deflate; client_max_window_bits, foo; a=b, "
        fields = (
            b"Sec-WebSocket-Extensions: " + extension * (n // len(extension)),
            b"Sec-WebSocket-Protocol: " + b", ".join(b"p%d" % at for at in range(n // 6)),
        )
        head = RequestReader(LONG).feed(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n%b\r\n\r\n" % fields)
        assert head is not None

        def both(counted: Callable[[bytes], bytes]) -> None:
            websocket.check_offers(head)
            websocket.passed_extensions(head)

        return measure(both, websocket, http1)

    assert_linear([check(n) for n in (4000, 8000, 16000)])


# --- Frames -----------------------------------------------------------------------------------


def small_frames_of(size: int) -> bytes:
    """Many tiny messages."""
    return build_frame(frames.TEXT, b"a", b"mask") * (size // 7)


def pings_of(size: int) -> bytes:
    """Many of the largest control frames."""
    return build_frame(frames.PING, b"p" * 125, b"mask") * (size // 131)


def one_frame_of(size: int) -> bytes:
    """One message."""
    return build_frame(frames.TEXT, b"x" * size, b"mask")


def fragments_of(size: int) -> bytes:
    """A message in empty fragments that never ends."""
    first = frames.build_header(frames.TEXT, 0, b"mask", fin=False)
    return first + frames.build_header(frames.CONTINUATION, 0, b"mask", fin=False) * (size // 6)


STREAMS = pytest.mark.parametrize("make", [small_frames_of, pings_of, one_frame_of, fragments_of])


@SIZES
@STREAMS
@pytest.mark.parametrize("unwrap", [False, True], ids=["as they are", "unwrapped"])
def test_a_stream_of_frames_costs_what_it_is_long(
    make: Callable[[int], bytes], size: int, unwrap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmask = frames.unmask                 # it makes its bytes of a number, which counts nothing

    def walk(n: int) -> Work:
        data = make(n)

        def feed(counted: Callable[[bytes], bytes]) -> None:
            cursor = Cursor(masked=True, unwrap=unwrap)
            for piece in pieces(data, size):
                cursor.feed(counted(piece))

        with monkeypatch.context() as patch:
            patch.setattr(frames, "unmask", lambda *given: Bytes(unmask(*given)))
            return measure(feed, frames)

    assert_linear([walk(n) for n in lengths(size)])


@SIZES
@STREAMS
@pytest.mark.parametrize("raw", [False, True], ids=["ws", "raw"])
def test_a_relayed_stream_costs_what_it_is_long(
    make: Callable[[int], bytes], size: int, raw: bool
) -> None:
    """With a kernel that takes all at once; what it takes of a piece in parts is another cost."""

    def relay(n: int) -> Work:
        data = make(n)

        def feed(counted: Callable[[bytes], bytes]) -> None:
            one = Relay(RelayRules(raw=raw, max_queue=1 << 30), 0.0, bytes)
            for piece in pieces(data, size):
                one.received(Side.CLIENT, counted(piece), 0.0)
                for side in Side:
                    if one.legs[side].queued:
                        one.sent(side, one.legs[side].queued, 0.0)

        return measure(feed, frames, leg, relaying)

    assert_linear([relay(n) for n in lengths(size)])


# --- Tables -----------------------------------------------------------------------------------


def routes_of(count: int) -> str:
    """Routes that all can be reached."""
    return "".join(
        f'[[route]]\nname = "r{n}"\nhost = "h{n % 7}.example.com"\npath = "/p{n}/{{id}}"\n'
        f'upstream = "u{n}"\n[upstream.u{n}]\nendpoints = ["ws://10.0.0.1:{1000 + n}"]\n'
        for n in range(count)
    )


def shadowed_routes_of(count: int) -> str:
    """Routes that none but the first can be reached, and so are all named in the refusal."""
    return "".join(
        f'[[route]]\nname = "r{n}"\nupstream = "ws://10.0.0.1:{1000 + n}"\n' for n in range(count)
    )


def mistakes_of(count: int) -> str:
    """Keys that are not known, each of which is nearly one that is."""
    return "".join(f'[[route]]\nname = "r{n}"\nhst{n} = "a"\n' for n in range(count))


def similar_routes_of(count: int) -> str:
    """Routes on one path that only what they want further tells apart."""
    return "".join(
        f'[[route]]\nname = "r{n}"\npath = "/*"\nheader = {{ X-Tenant = "t{n}" }}\n'
        f'upstream = "builtin:echo"\n'
        for n in range(count)
    )


def doubled_endpoints_of(count: int) -> str:
    """One upstream of many endpoints."""
    urls = ", ".join(f'"ws://10.0.{n // 250}.{n % 250}:9000"' for n in range(count))
    return f'[[route]]\nname = "r"\nupstream = "u"\n[upstream.u]\nendpoints = [{urls}]\n'


@pytest.mark.parametrize(
    "make",
    [routes_of, shadowed_routes_of, similar_routes_of, mistakes_of, doubled_endpoints_of],
)
def test_a_table_costs_what_it_is_long(make: Callable[[int], str], tmp_path: Path) -> None:
    def load(count: int) -> Work:
        path = tmp_path / "routes.toml"
        path.write_text('[gateway]\nlisten = "127.0.0.1:0"\n' + make(count), encoding="utf-8")

        def feed(counted: Callable[[bytes], bytes]) -> None:
            try:
                config.load(path)
            except TableErrors as refusal:
                str(refusal)

        return measure(feed)

    assert_linear([load(count) for count in (100, 200, 400)])


# --- Regular expressions ----------------------------------------------------------------------

LONG_HEADS = {
    "spaces in a value": b"a:" + b" " * LONG + b"\x01",
    "spaces before the colon": b"a" + b" " * LONG + b"x:",
    "a name without an end": b"a" * LONG,
    "commas": b"Connection:" + b"," * LONG + b"@",
    "options": b"Connection: " + b"a, " * (LONG // 3) + b"@",
    "carriage returns": b"a: \r" * (LONG // 4),
    "digits": b"Content-Length: " + b"1" * LONG,
    "a host": b"Host: " + b"a." * (LONG // 2),
    "a host of colons": b"Host: [" + b":" * LONG,
    "codings": b"Transfer-Encoding: " + b"a," * (LONG // 2),
}
LONG_VALUES = {
    "semicolons": b";" * LONG,
    "parameters": b"a" + b"; b" * (LONG // 3) + b"=",
    "escapes": b'a; b="' + b"\\a" * (LONG // 2),
    "escapes that end": b'a; b="' + b"\\a" * (LONG // 2) + b'"',
    "gaps": b"a" + b" \t, " * (LONG // 4) + b"@",
    "quotes": b'a; b="' * (LONG // 6),
    "names": b"a" * LONG + b"@",
}


def cpu_of(action: Callable[[], Any]) -> float:
    """Seconds of CPU; what is refused is refused."""
    before = time.process_time()
    with contextlib.suppress(ClientError, UpstreamError, ValueError):
        action()
    return time.process_time() - before


@pytest.mark.parametrize("name", LONG_HEADS)
def test_no_pattern_for_heads_tries_twice(name: str) -> None:
    """A MiB of what a pattern could try in many ways is done in time, in both kinds of head."""
    field = LONG_HEADS[name]
    request = b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n"
    assert cpu_of(lambda: RequestReader(LONG * 2).feed(request)) < LONG_LIMIT
    response = b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n"
    assert cpu_of(lambda: ResponseReader(LONG * 2).feed(response)) < LONG_LIMIT


def test_no_pattern_for_start_lines_tries_twice() -> None:
    for line in (b"GET " + b"/" * LONG, b"G" * LONG, b"GET http://" + b"a:" * (LONG // 2) + b" x"):
        read = functools.partial(RequestReader(LONG * 4).feed, line + b"\r\n\r\n")
        assert cpu_of(read) < LONG_LIMIT


@pytest.mark.parametrize("name", LONG_VALUES)
def test_no_pattern_for_extensions_tries_twice(name: str) -> None:
    value = LONG_VALUES[name]
    assert cpu_of(lambda: websocket.parse_extensions([value])) < LONG_LIMIT


# --- The measure itself -----------------------------------------------------------------------


def test_the_measure_sees_what_is_not_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that searches from the start again, one that copies what it holds, one that looks
    at every byte again: each is caught."""

    class Naive:
        def __init__(self) -> None:
            self.array = http1.bytearray()  # type: ignore[attr-defined]
            self.held = b""

        def search(self, piece: bytes) -> None:
            self.array += piece
            self.array.find(b"\r\n\r\n")

        def copy(self, piece: bytes) -> None:
            self.held += piece

        def look(self, piece: bytes) -> None:
            self.held = bytes(self.held) + bytes(piece)
            websocket.parse_extensions([b"a," * (len(self.held) // 100 + 1)])

    for method in ("search", "copy", "look"):

        def work(n: int, method: str = method) -> Work:
            def feed(counted: Callable[[bytes], bytes]) -> None:
                naive = Naive()
                for _ in range(n):
                    getattr(naive, method)(counted(b"x"))

            return measure(feed, http1)

        with pytest.raises(AssertionError):
            assert_linear([work(n) for n in (500, 1000, 2000)])


def test_a_quadratic_pattern_would_not_end_in_time() -> None:
    """What `LONG_LIMIT` rests on: a sixteenth of the length takes a pattern that tries twice more
    than a sixteenth of the time, and all of it far too long."""
    twice = re.compile(rb"(?: *x)| *$")
    small, big = (
        cpu_of(functools.partial(twice.search, b" " * length + b"y")) for length in (512, 8192)
    )
    assert big > small * 40
