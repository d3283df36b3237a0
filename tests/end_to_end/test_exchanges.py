"""Requests that are no upgrade, and refusals: what each answer says, and what becomes of the
connection."""

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, refused, route
from end_to_end.wire import Upstream, connect, plain, upgrade


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """The built-in page, the echo, and a route with allowed origins."""
    hasty = (
        '[[listener]]\naddress = "127.0.0.2:0"\nhead_timeout = "300ms"\n'
        'keepalive_timeout = "300ms"\nmax_head = "2KiB"\n'
    )
    origins = 'origins = ["https://good.test", "https://*.wild.test", "http://local.test:3000"]'
    return start_shared(
        head()
        + hasty
        + route("page", "builtin:page", path="/")
        + route("echo", "builtin:echo")
        + route("origin", upstream.url("ws"), origins, 'close_timeout = "300ms"')
    )


# --- The page ------------------------------------------------------------------------------------


def test_page(gateway: Gateway) -> None:
    """GET gives HTML, HEAD the same head without it."""
    with gateway.connect() as client:
        client.send(plain("/"))
        got, body = client.read_answer()
        assert got.status == 200
        kind = got.get(b"Content-Type")
        assert kind is not None
        assert kind.startswith(b"text/html")
        assert b"WebSocket" in body
        client.send(plain("/", method="HEAD"))
        again, nothing = client.read_answer(method="HEAD")
        assert (again.status, nothing) == (200, b"")
        assert again.get(b"Content-Length") == b"%d" % len(body)
        assert client.silent(0.05)
    assert gateway.record(method="HEAD", route="page")["status"] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_page_with_another_method(gateway: Gateway, method: str) -> None:
    """405 that says what is allowed."""
    with gateway.connect() as client:
        client.send(plain("/", method=method))
        got, _ = client.read_answer()
        assert got.status == 405
        allow = got.get(b"Allow")
        assert allow is not None
        assert {one.strip() for one in allow.split(b",")} == {b"GET", b"HEAD"}


def test_page_and_upgrade(gateway: Gateway) -> None:
    """An upgrade where there is only a page gets the page, or a refusal; never a 101."""
    with gateway.connect() as client:
        client.send(upgrade("/"))
        got = client.read_head()
        assert got.status != 101
        assert client.end() == "fin"


# --- Refusals ------------------------------------------------------------------------------------


def test_no_route(gateway: Gateway) -> None:
    """404, a short sentence, and an id that stands in the record."""
    got, body = refused(gateway, upgrade("/nothing?token=secret"))
    assert got.status == 404
    assert got.get(b"Connection") == b"close"
    assert b"secret" not in body
    assert b"nothing" not in body
    record = gateway.record(status=404, path="/nothing")
    assert record["session"].encode() in body
    assert record["blame"] == "client"


@pytest.mark.parametrize(
    "request_bytes",
    [plain("/echo"), upgrade("/echo", version="8"), upgrade("/echo", version=None),
     upgrade("/echo").replace(b"HTTP/1.1", b"HTTP/1.0"),
     upgrade("/echo").replace(b"Upgrade: websocket\r\n", b"")],
    ids=["plain", "version 8", "no version", "HTTP/1.0", "no Upgrade"],
)
def test_upgrade_required(gateway: Gateway, request_bytes: bytes) -> None:
    """426 says to what (RFC 9110 15.5.22, RFC 6455 4.4)."""
    with gateway.connect() as client:
        client.send(request_bytes)
        got, _ = client.read_answer()
        assert got.status == 426
        assert got.get(b"Upgrade") == b"websocket"
        assert got.get(b"Sec-WebSocket-Version") == b"13"
        options = b",".join(got.all(b"Connection")).lower()
        assert b"upgrade" in [one.strip() for one in options.split(b",")]


def test_method_not_allowed(gateway: Gateway) -> None:
    """405 that says GET."""
    with gateway.connect() as client:
        client.send(upgrade("/echo", method="POST"))
        got, _ = client.read_answer()
        assert got.status == 405
        assert got.get(b"Allow") == b"GET"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://good.test", 101),
        ("https://a.wild.test", 101),
        ("https://a.b.wild.test", 101),
        ("http://local.test:3000", 101),
        ("https://wild.test", 403),
        ("http://local.test", 403),
        ("https://evil.test", 403),
        ("null", 403),
        (None, 101),
    ],
)
def test_origins(ends: Ends, origin: str | None, status: int) -> None:
    """Scheme, host and port; a request without Origin is no browser's."""
    if status == 101:
        ends.ws("/origin", *([f"Origin: {origin}"] if origin else []))
        return
    got, _ = refused(ends.gateway, upgrade("/origin", f"Origin: {origin}"))
    assert got.status == 403
    assert not ends.upstream.waiting()


@pytest.mark.parametrize("first", ["/nothing", "/origin"])
def test_refusal_survives_a_flood(gateway: Gateway, first: str) -> None:
    """A client that sends megabytes while it is refused still reads the answer, and then FIN."""
    with gateway.connect() as client:
        with client.sending(upgrade(first, "Origin: https://evil.test") + bytes(5_000_000)):
            got, _ = client.read_answer()
            assert got.status in (403, 404)
        client.finish()
        client.expect_fin()


# --- Keep-alive ----------------------------------------------------------------------------------


def test_exchanges_keep_the_connection(gateway: Gateway) -> None:
    """One after another, of all kinds, and at last an upgrade."""
    with gateway.connect() as client:
        for target, status in [("/", 200), ("/nothing", 404), ("/echo", 426), ("/", 200)]:
            client.send(plain(target))
            got, _ = client.read_answer()
            assert got.status == status
            assert b"close" not in (got.get(b"Connection") or b"")
        client.send(upgrade("/echo"))
        assert client.read_head().status == 101


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    """All in one piece, also one with content."""
    requests = [
        plain("/nothing"),
        plain("/", "Content-Length: 5", method="POST") + b"hello",
        plain("/", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
        plain("/echo", "Connection: close"),
    ]
    with gateway.connect() as client:
        client.send(b"".join(requests) + plain("/"))
        assert [client.read_answer()[0].status for _ in requests] == [404, 405, 200, 426]
        client.expect_fin()


def test_hundreds_of_pipelined_requests(gateway: Gateway) -> None:
    """A client that asks much and reads late gets all of it, in order."""
    count = 300
    with gateway.connect() as client, client.sending((plain("/") + plain("/nothing")) * count):
        for _ in range(count):
            assert client.read_answer()[0].status == 200
            assert client.read_answer()[0].status == 404


@pytest.mark.parametrize("option", ["Connection: close", "HTTP/1.0"])
def test_exchange_that_closes(gateway: Gateway, option: str) -> None:
    """Where the client asks for it, and in HTTP/1.0."""
    data = plain("/", *([option] if ":" in option else []))
    if option == "HTTP/1.0":
        data = data.replace(b"HTTP/1.1", b"HTTP/1.0")
    got, body = refused(gateway, data)
    assert got.status == 200
    assert body


def test_content_up_to_a_limit_is_read(gateway: Gateway) -> None:
    """64 KiB that nobody wants keep the connection; more ends it, after the answer."""
    with gateway.connect() as client:
        client.send(plain("/nothing", "Content-Length: 65536", method="PUT") + bytes(65536))
        assert client.read_answer()[0].status == 404
        client.send(plain("/"))
        assert client.read_answer()[0].status == 200
    with gateway.connect() as client:
        data = plain("/nothing", "Content-Length: 1000000", method="PUT") + bytes(1_000_000)
        with client.sending(data + plain("/")):
            got, _ = client.read_answer()
            assert got.status == 404
            assert got.get(b"Connection") == b"close"
        client.expect_fin()


# --- Heads in time and in size -------------------------------------------------------------------


def hasty(gateway: Gateway) -> tuple[str, int] | str:
    """The listener with little time and little room."""
    return gateway.bound[1].address


def test_content_that_does_not_come(gateway: Gateway) -> None:
    """It has the head's time; then the connection ends."""
    with connect(hasty(gateway)) as client:
        client.send(plain("/", "Content-Length: 5", method="POST") + b"hel")
        assert client.read_answer()[0].status == 405
        client.expect_fin()


def test_silent_client(gateway: Gateway) -> None:
    """Who sends nothing at all is not kept longer than a head may take."""
    with connect(hasty(gateway)) as client:
        got = client.rest()
    assert not got or got.startswith(b"HTTP/1.1 408")


def test_idle_between_exchanges(gateway: Gateway) -> None:
    """`keepalive_timeout`: the connection ends without a word."""
    with connect(hasty(gateway)) as client:
        client.send(plain("/nothing"))
        assert client.read_answer()[0].status == 404
        client.expect_fin()


def test_second_head_has_its_time_too(gateway: Gateway) -> None:
    """408 also for a later request that drips."""
    with connect(hasty(gateway)) as client:
        client.send(plain("/nothing") + b"GET / HT")
        assert client.read_answer()[0].status == 404
        assert client.read_answer()[0].status == 408
        client.expect_fin()


def test_size_of_heads(gateway: Gateway) -> None:
    """`max_head` of the listener: 431, half of it for the request line: 414."""
    with connect(hasty(gateway)) as client:
        client.send(plain("/nothing", "X: " + "y" * 1800))
        assert client.read_answer()[0].status == 404
        client.send(plain("/nothing", "X: " + "y" * 2048))
        assert client.read_answer()[0].status == 431
        client.expect_fin()
    with connect(hasty(gateway)) as client:
        client.send(plain("/" + "y" * 1100))
        assert client.read_answer()[0].status == 414
        client.expect_fin()
