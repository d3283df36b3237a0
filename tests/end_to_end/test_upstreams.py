"""Upstreams that refuse, lie, are silent or not there; and how one of several is chosen."""

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import BINARY, TEXT, Head, Upstream, accept_key, frame, switching, upgrade


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """Routes to one upstream, with short times."""
    url = upstream.url("ws")
    return start_shared(
        head()
        + route("ws", url, 'answer_timeout = "5s"', 'close_timeout = "2s"')
        + route("hasty", url, 'answer_timeout = "300ms"', 'close_timeout = "300ms"')
    )


# --- Refusals that are passed on -----------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n4;ext=1\r\nWiki\r\n5\r\npedia\r\n0\r\nX-T: 1\r\n\r\n"

REFUSALS = {
    "401": (
        b'401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 1\r\n\r\n!',
        b"!",
    ),
    "403, chunked": (b"403 Forbidden\r\n" + CHUNKED, b"Wikipedia"),
    "404, until FIN": (b"404 Not Found\r\nContent-Type: text/plain\r\n\r\nnot here", b"not here"),
    "302": (b"302 Found\r\nLocation: https://login.test/\r\nContent-Length: 0\r\n\r\n", b""),
    "204": (b"204 No Content\r\nX-Empty: yes\r\n\r\n", b""),
    "200": (b"200 OK\r\nContent-Length: 2\r\n\r\nhm", b"hm"),
    "429": (b"429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", b""),
    "503 without a reason": (b"503 \r\nContent-Length: 4\r\n\r\nbusy", b"busy"),
    "599": (b"599 Whatever\r\nContent-Length: 0\r\n\r\n", b""),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
def test_refusal_is_passed_on(ends: Ends, case: str, pieces: str) -> None:
    """Status, fields and content; then the connection ends."""
    text, content = REFUSALS[case]
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.read_head()
    data = b"HTTP/1.1 " + text
    for at in range(0, len(data), 1 if pieces == "bytes" else len(data)):
        service.send_anyway(data[at : at + (1 if pieces == "bytes" else len(data))])
    if "FIN" in case:
        service.finish()
    got, body = client.read_answer()
    assert got.status == int(text[:3])
    assert body == content
    assert got.get(b"Connection") == b"close"
    for line in text.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b": ")
        if name not in (b"Transfer-Encoding", b"Content-Length"):
            assert got.get(name) == value
    client.expect_fin()
    assert service.end() in ("fin", "reset")
    assert ends.record(status=int(text[:3]), blame="upstream")


def test_large_refusal_to_a_slow_client(ends: Ends) -> None:
    """Megabytes with back-pressure, whole."""
    content = os.urandom(3_000_000)
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.read_head()
    answer = b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n" % len(content)
    with service.sending(answer + content):
        got = client.read_head()
        time.sleep(0.3)  # the client stalls for longer than anything should need
        assert client.read_body(got) == content
    client.expect_fin()


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize(
    "answer",
    [
        b"403 No\r\nContent-Length: 100\r\n\r\nonly this",
        b"403 No\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
        b"403 No\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly",
    ],
    ids=["length", "chunks", "in a chunk"],
)
def test_cut_refusal_does_not_look_whole(ends: Ends, answer: bytes, how: str) -> None:
    """The client gets what there was, and then RST or content that is visibly not whole."""
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.read_head()
    service.send(b"HTTP/1.1 " + answer)
    assert client.read_head().status == 403
    client.until(b"only")
    if how == "fin":
        service.finish()
    else:
        service.reset()
    client.expect_reset()


def test_refusal_that_stalls(ends: Ends) -> None:
    """It ends after `answer_timeout` without a byte, and does not look whole."""
    client = ends.client()
    client.send(upgrade("/hasty"))
    service = ends.service()
    service.read_head()
    service.send(b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\nonly this")
    assert client.read_head().status == 403
    client.expect_reset()
    assert service.end() in ("fin", "reset")


# --- Answers that cannot be used -----------------------------------------------------------------


def answer(
    *,
    status: bytes = b"HTTP/1.1 101 Switching Protocols",
    more: bytes = b"",
    **fields: bytes | None,
) -> Callable[[Head], bytes]:
    """A 101 with these fields in the place of the right ones, None leaving one out."""

    def build(request: Head) -> bytes:
        key = request.get(b"Sec-WebSocket-Key")
        assert key
        lines: dict[str, bytes | None] = {
            "Upgrade": b"websocket",
            "Connection": b"Upgrade",
            "Sec-WebSocket-Accept": accept_key(key),
        }
        lines |= {name.replace("_", "-"): value for name, value in fields.items()}
        text = status + b"\r\n"
        for name, value in lines.items():
            if value is not None:
                text += name.encode() + b": " + value + b"\r\n"
        return text + more + b"\r\n"

    return build


WRONG = {
    "no accept": answer(Sec_WebSocket_Accept=None),
    "empty accept": answer(Sec_WebSocket_Accept=b""),
    "wrong accept": answer(Sec_WebSocket_Accept=accept_key(b"AAAAAAAAAAAAAAAAAAAAAA==")),
    "accept of the client's key": answer(Sec_WebSocket_Accept=b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    "two accepts": lambda r: answer(
        more=b"Sec-WebSocket-Accept: " + accept_key(r.get(b"Sec-WebSocket-Key") or b"") + b"\r\n"
    )(r),
    "no Upgrade": answer(Upgrade=None),
    "Upgrade to h2c": answer(Upgrade=b"h2c"),
    "no Connection": answer(Connection=None),
    "Connection: close": answer(Connection=b"close"),
    "HTTP/1.0": answer(status=b"HTTP/1.0 101 Switching Protocols"),
    "HTTP/2": answer(status=b"HTTP/2 101"),
    "a length": answer(Content_Length=b"5"),
    "an encoding": answer(Transfer_Encoding=b"chunked"),
    "a subprotocol that was not offered": answer(Sec_WebSocket_Protocol=b"c"),
    "two subprotocols": answer(Sec_WebSocket_Protocol=b"a, b"),
    "two subprotocol fields": answer(
        more=b"Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n"
    ),
    "an extension that was not offered": answer(Sec_WebSocket_Extensions=b"x-webkit"),
    "deflate with an unknown parameter": answer(
        Sec_WebSocket_Extensions=b"permessage-deflate; x=1"
    ),
    "deflate twice": answer(Sec_WebSocket_Extensions=b"permessage-deflate, permessage-deflate"),
    "bare LF": lambda r: switching(r).replace(b"\r\n", b"\n"),
    "obs-fold": answer(more=b"X-Field: a\r\n b\r\n"),
    "space before the colon": answer(more=b"X-Field : a\r\n"),
    "NUL in a value": answer(more=b"X-Field: \x00\r\n"),
    "no status": lambda _: b"HTTP/1.1\r\n\r\n",
    "status of two digits": lambda _: b"HTTP/1.1 10 Hm\r\n\r\n",
    "status 600": lambda _: b"HTTP/1.1 600 Hm\r\nContent-Length: 0\r\n\r\n",
    "status 099": lambda _: b"HTTP/1.1 099 Hm\r\nContent-Length: 0\r\n\r\n",
    "garbage": lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "garbage without an end": lambda _: os.urandom(100_000),
    "a head too large": answer(more=b"X-Large: " + b"x" * 100_000 + b"\r\n"),
    "two lengths": lambda _: (
        b"HTTP/1.1 403 No\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"
    ),
    "both framings": lambda _: (
        b"HTTP/1.1 403 No\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "interim answers without an end": lambda _: b"HTTP/1.1 102 Processing\r\n\r\n" * 50,
    "FIN": lambda _: b"",
    "FIN in the head": lambda r: switching(r)[:-3],
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answer(ends: Ends, case: str) -> None:
    """502, never a tunnel; the upstream's words do not reach the client."""
    client = ends.client()
    client.send(
        upgrade(
            "/ws", "Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Extensions: permessage-deflate"
        )
        + frame(TEXT, b"early")
    )
    service = ends.service()
    service.send_anyway(WRONG[case](service.read_head()))
    if case.startswith("FIN"):
        service.finish()
    got, body = client.read_answer()
    assert got.status == 502
    assert b"X-" not in got.raw
    assert len(body) < 1000
    client.expect_fin()
    service.end()
    assert len(service.received) == service.parsed, "the early frame reached the upstream"
    assert ends.record(status=502, blame="upstream")["detail"]


def test_reset_instead_of_an_answer(ends: Ends) -> None:
    """RST before the answer: 502."""
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.read_head()
    service.reset()
    got, _ = client.read_answer()
    assert got.status == 502
    client.expect_fin()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 101 Switching", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_no_answer_in_time(ends: Ends, sent: bytes) -> None:
    """504, however much of an answer there was."""
    client = ends.client()
    client.send(upgrade("/hasty"))
    service = ends.service()
    service.read_head()
    if sent:
        service.send(sent)
    got, _ = client.read_answer()
    assert got.status == 504
    client.expect_fin()
    service.end()


def test_interim_answers_are_stepped_over(ends: Ends) -> None:
    """100 and 103 before the 101, cut anywhere."""
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    data = interim + switching(service.read_head()) + frame(TEXT, b"hello", masked=False)
    for byte in data:
        service.send(bytes([byte]))
    assert client.read_head().status == 101
    assert client.read_frame().payload == b"hello"


# --- Bytes that arrive with a head ---------------------------------------------------------------


def test_early_bytes_of_both_sides(ends: Ends) -> None:
    """Frames in one piece with the request and with the 101 arrive, and in order."""
    up = frame(BINARY, os.urandom(300)) + frame(TEXT, b"second")[:10]
    down = frame(TEXT, b"welcome", masked=False) + frame(BINARY, bytes(500), masked=False)[:100]
    client, service = ends.ws(early=up, early_down=down)
    assert service.exactly(len(up)) == up
    assert client.exactly(len(down)) == down


def test_many_early_bytes(ends: Ends) -> None:
    """More than waits for the relay: the client is held, nothing is lost."""
    up = frame(BINARY, os.urandom(2_000_000))
    client = ends.client()
    client.send(upgrade())
    with client.sending(up):
        service = ends.service()
        asked = service.read_head()
        time.sleep(0.2)
        service.send(switching(asked))
        assert client.read_head().status == 101
        assert service.exactly(len(up)) == up


def test_early_bytes_of_the_upstream_pass_the_rules(ends: Ends) -> None:
    """A masked frame right behind the 101 is the upstream's fault."""
    client, service = ends.ws(early_down=frame(TEXT, b"x", masked=True))
    assert client.read_close().code == 1014
    assert service.read_close().code == 1002


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_client_goes_before_the_answer(ends: Ends, how: str) -> None:
    """The attempt ends, the upstream's connection too, and it was the client's doing."""
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.read_head()
    if how == "fin":
        client.finish()
    else:
        client.reset()
    assert service.end() in ("fin", "reset")
    ends.record(blame="client", route="ws", status=499)


# --- Connecting ----------------------------------------------------------------------------------


def status_of(gateway: Gateway, target: str) -> int:
    """The status that an upgrade there gets."""
    with gateway.connect() as client:
        client.send(upgrade(target))
        return client.read_head().status


def test_nothing_there(start: Starter, tmp_path: Path) -> None:
    """Refused, no such socket, no such name: 502, 502, 503; the name is warned of at start."""
    with Upstream() as gone:
        url = gone.url("ws")
    gateway = start(
        head()
        + route("tcp", url)
        + route("unix", f"ws+unix:{tmp_path}/nothing.sock")
        + route("name", "ws://no-such-name.invalid:80")
        + route("echo", "builtin:echo")
    )
    assert status_of(gateway, "/tcp") == 502
    assert status_of(gateway, "/unix") == 502
    assert status_of(gateway, "/name") == 503
    assert status_of(gateway, "/echo") == 101
    assert "no-such-name.invalid" in gateway.messages
    assert gateway.record(status=502, route="tcp")["blame"] == "upstream"
    nameless = gateway.record(status=503, route="name")
    assert nameless["blame"] == "operator"
    assert nameless["detail"] == "no address is known of no-such-name.invalid"


def test_connect_timeout(start: Starter) -> None:
    """A service that does not even accept: 504 after `connect_timeout`."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        # A backlog of 0 holds one connection; further SYNs are dropped once it is there.
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        gateway = start(
            head() + route("ws", f"ws://127.0.0.1:{address[1]}", 'connect_timeout = "300ms"')
        )
        begun = time.monotonic()
        assert status_of(gateway, "/ws") == 504
        assert 0.3 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_tcp_upstreams(start: Starter, address: str) -> None:
    """IPv4 and IPv6."""
    with Upstream(address) as listening:
        gateway = start(head() + route("ws", listening.url("ws")))
        ends = Ends(gateway, listening)
        client, service = ends.ws()
        client.send(frame(TEXT, b"hello"))
        assert service.read_frame().payload == b"hello"
        ends.close()


def test_unix_upstream(start: Starter, tmp_path: Path) -> None:
    """A Unix socket, with a path of its own."""
    with Upstream(path=tmp_path / "app.sock") as listening:
        gateway = start(head() + route("ws", listening.url("ws", "/inner")))
        ends = Ends(gateway, listening)
        client, service = ends.ws()
        assert service.head is not None
        assert service.head.target == b"/inner"
        client.send(frame(TEXT, b"hello"))
        assert service.read_frame().payload == b"hello"
        ends.close()


# --- Several endpoints ---------------------------------------------------------------------------


@pytest.fixture
def services() -> Iterator[list[Upstream]]:
    """Three listening sockets."""
    with ExitStack() as stack:
        yield [stack.enter_context(Upstream()) for _ in range(3)]


def pool(services: list[Upstream], *more: str, weights: list[int] | None = None) -> str:
    """An `[upstream.pool]` of these."""
    entries = [
        f'{{ url = "{one.url("ws")}", weight = {weight} }}'
        for one, weight in zip(services, weights or [1] * len(services), strict=True)
    ]
    return "\n".join(["[upstream.pool]", f"endpoints = [{', '.join(entries)}]", *more]) + "\n"


def spread(
    gateway: Gateway, services: list[Upstream], targets: list[str], *, hold: bool = False
) -> list[int]:
    """Which endpoint got each of these sessions; with `hold` they stay open till the end."""
    chosen = []
    with ExitStack() as stack:
        for target in targets:
            client = stack.enter_context(gateway.connect())
            client.send(upgrade(target))
            (number,) = _who_was_asked(services)
            service = stack.enter_context(services[number].accept())
            service.send(switching(service.read_head()))
            assert client.read_head().status == 101
            chosen.append(number)
            if not hold:
                client.reset()
                service.reset()
    return chosen


def _who_was_asked(services: list[Upstream]) -> list[int]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        asked = [number for number, one in enumerate(services) if one.waiting(0.01)]
        if asked:
            return asked
    raise AssertionError("no endpoint was asked")


def test_an_endpoint_that_is_gone_is_told_of(start: Starter, services: list[Upstream]) -> None:
    """No client notices; the operator does, once, however many come."""
    gateway = start(head() + route("ws", "pool") + pool(services, 'balance = "round-robin"'))
    gone = services[0].port
    services[0].close()
    assert sum(Counter(spread(gateway, services[1:], ["/ws"] * 4)).values()) == 4
    told = "an endpoint cannot be connected; it rests, and others are taken meanwhile"
    assert gateway.messages.count(told) == 1
    assert f"127.0.0.1:{gone}" in gateway.messages.partition(told)[2]


def test_round_robin_by_weight(start: Starter, services: list[Upstream]) -> None:
    """3 to 1 to none."""
    table = head() + route("ws", "pool")
    gateway = start(table + pool(services, 'balance = "round-robin"', weights=[3, 1, 0]))
    assert Counter(spread(gateway, services, ["/ws"] * 8)) == {0: 6, 1: 2}


def test_least_connections(start: Starter, services: list[Upstream]) -> None:
    """Sessions that stay are counted: nine of them, three each."""
    gateway = start(head() + route("ws", "pool") + pool(services))
    assert Counter(spread(gateway, services, ["/ws"] * 9, hold=True)) == {0: 3, 1: 3, 2: 3}


def test_random_two(start: Starter, services: list[Upstream]) -> None:
    """All get some."""
    gateway = start(head() + route("ws", "pool") + pool(services, 'balance = "random-two"'))
    assert set(spread(gateway, services, ["/ws"] * 30, hold=True)) == {0, 1, 2}


def test_hash_by_path(start: Starter, services: list[Upstream]) -> None:
    """One room, one endpoint; many rooms, all of them."""
    gateway = start(
        head()
        + route("rooms", "pool", path="/rooms/{room}")
        + pool(services, 'balance = "hash"', 'hash_on = "path:room"')
    )
    rooms = [f"/rooms/{number}" for number in range(20)]
    first = spread(gateway, services, rooms)
    again = dict(zip(rooms, first, strict=True))
    assert set(first) == {0, 1, 2}
    seed = random.randrange(1 << 32)
    print("seed", seed)
    random.Random(seed).shuffle(rooms)
    assert spread(gateway, services, rooms) == [again[room] for room in rooms]


def test_next_endpoint_when_one_is_gone(start: Starter, services: list[Upstream]) -> None:
    """A connect that fails costs the client nothing, and the dead one is passed over."""
    gateway = start(head() + route("ws", "pool") + pool(services, 'balance = "round-robin"'))
    services[0].close()
    services[1].close()
    live = services[2:]
    assert spread(gateway, live, ["/ws"] * 6) == [0] * 6
    live[0].close()
    assert status_of(gateway, "/ws") == 502
