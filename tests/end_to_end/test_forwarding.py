"""What the upstream is asked, and what the client gets back: fields, targets, hosts."""

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import Head, Upstream, switching, upgrade


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """Routes that differ in what goes up."""
    url = upstream.url("ws")
    own = upstream.url("ws", "/own/path")
    return start_shared(
        head()
        + route("ws", url)
        + route("fields", url, 'set_fields = { "X-Team" = "blue", "X-Old" = "new" }',
                'remove_fields = ["Cookie", "x-secret"]')
        + route("own", own, path="/own/*")
        + route("rewrite", url, 'rewrite = "/v2/{room}/{*}"', path="/rooms/{room}/*")
        + route("rewrite-query", url, 'rewrite = "/q?room={room}"', path="/query/{room}")
        + route("send-upstream", url, 'send_host = "upstream"')
        + route("send-value", url, 'send_host = "service.internal:99"')
        + route("host", upstream.url("ws", "/exact"), 'host = "a.example.com"', path="/by-host")
        + route("hosts", upstream.url("ws", "/wild"), 'host = "*.example.com"', path="/by-host")
        + route("none", upstream.url("ws", "/any"), path="/by-host")
        + route("header", upstream.url("ws", "/header"), 'header = { "X-Canary" = "1" }',
                path="/by-match")
        + route("query", upstream.url("ws", "/query"), 'query = { v = "*" }', path="/by-match")
        + route("protocol", upstream.url("ws", "/protocol"), 'subprotocol = "v2"',
                path="/by-match")
        + route("rest", upstream.url("ws", "/rest"), path="/by-match")
    )


def asked(ends: Ends, target: str = "/ws", *fields: str, host: str = "gateway.test") -> Head:
    """The handshake that the upstream sees for this request."""
    ends.client().send(upgrade(target, *fields, host=host))
    return ends.service().read_head()


# --- The handshake -------------------------------------------------------------------------------


def test_the_handshake_is_the_gateways_own(ends: Ends) -> None:
    """A key of its own, and the client's offers untouched and in order."""
    got = asked(
        ends,
        "/ws",
        "Sec-WebSocket-Protocol: chat.v2, chat.v1",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-own; a=b",
        "Sec-WebSocket-Extensions: permessage-deflate",
    )
    assert got.start == b"GET /ws HTTP/1.1"
    assert got.get(b"Sec-WebSocket-Protocol") == b"chat.v2, chat.v1"
    assert got.get(b"Sec-WebSocket-Key") not in (None, b"dGhlIHNhbXBsZSBub25jZQ==")
    extensions = b", ".join(got.all(b"Sec-WebSocket-Extensions"))
    assert extensions == b"permessage-deflate; client_max_window_bits, permessage-deflate"


def test_unknown_fields_pass_unchanged(ends: Ends) -> None:
    """Order, case and bytes of what the gateway does not know."""
    got = asked(
        ends, "/ws", "X-b: 2", "x-A:  1 ", "Cookie: a=b; c=d", "X-b: caf\xe9", "Authorization: t"
    )
    known = [pair for pair in got.fields if pair[0] in (b"X-b", b"x-A", b"Cookie")]
    assert known == [(b"X-b", b"2"), (b"x-A", b"1"), (b"Cookie", b"a=b; c=d"), (b"X-b", b"caf\xe9")]
    assert got.get(b"Authorization") == b"t"


def test_hop_by_hop_fields_do_not_pass(ends: Ends) -> None:
    """Also those that Connection names (RFC 9110 7.6.1)."""
    got = asked(
        ends, "/ws", "Connection: X-Mine, keep-alive", "X-Mine: 1", "Keep-Alive: timeout=5",
        "TE: trailers", "Trailer: X-T", "Proxy-Connection: keep-alive", "X-Other: 2",
    )
    for name in (b"X-Mine", b"Keep-Alive", b"TE", b"Trailer", b"Proxy-Connection"):
        assert got.all(name) == [], name
    assert got.get(b"X-Other") == b"2"
    connection = got.get(b"Connection")
    assert connection is not None
    assert connection.lower() == b"upgrade"


def test_set_and_removed_fields(ends: Ends) -> None:
    """A set field replaces the client's; a removed one is gone, whatever its case."""
    got = asked(ends, "/fields", "X-Old: old", "x-old: older", "cookie: a", "X-Secret: s", "X-K: k")
    assert got.get(b"X-Team") == b"blue"
    assert got.get(b"X-Old") == b"new"
    assert got.all(b"Cookie") == got.all(b"X-Secret") == []
    assert got.get(b"X-K") == b"k"


def test_fields_of_the_answer(ends: Ends) -> None:
    """The upstream's choices and unknown fields come back; its hop's fields do not."""
    client = ends.client()
    client.send(
        upgrade(
            "/ws", "Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Extensions: permessage-deflate"
        )
    )
    service = ends.service()
    service.send(
        switching(
            service.read_head(),
            b"Sec-WebSocket-Protocol: b",
            b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover",
            b"Set-Cookie: one=1",
            b"set-cookie: two=2",
            b"X-Served-By: me",
            b"Keep-Alive: timeout=5",
            b"Connection: X-Hop",
            b"X-Hop: 1",
        )
    )
    got = client.read_head()
    assert got.status == 101
    assert got.get(b"Sec-WebSocket-Accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 1.3
    assert got.get(b"Sec-WebSocket-Protocol") == b"b"
    assert got.get(b"Sec-WebSocket-Extensions") == (
        b"permessage-deflate; server_no_context_takeover"
    )
    assert got.all(b"Set-Cookie") == [b"one=1", b"two=2"]
    assert got.get(b"X-Served-By") == b"me"
    assert got.all(b"Keep-Alive") == got.all(b"X-Hop") == []


# --- Who the client is ---------------------------------------------------------------------------


def elements(value: bytes | None) -> list[dict[str, str]]:
    """The elements of a Forwarded field, quotes aside (RFC 7239 4)."""
    assert value is not None
    return [
        {
            name.strip().lower(): content.strip('"')
            for name, _, content in (pair.partition("=") for pair in element.split(";"))
        }
        for element in value.decode().split(",")
    ]


def test_forwarded_fields_are_set(ends: Ends) -> None:
    """Who, by what, for which host."""
    got = asked(ends, host="gateway.test:8080")
    assert got.get(b"X-Forwarded-For") == b"127.0.0.1"
    assert got.get(b"X-Forwarded-Proto") == b"http"
    assert got.get(b"X-Forwarded-Host") == b"gateway.test:8080"
    (element,) = elements(got.get(b"Forwarded"))
    assert element["for"] == "127.0.0.1"
    assert element["proto"] == "http"
    assert element["host"] == "gateway.test:8080"


FORGED = (
    "X-Forwarded-For: 1.2.3.4, 10.0.0.1",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: real.example.com",
    "Forwarded: for=1.2.3.4;proto=https;host=real.example.com",
)


def test_forwarded_fields_of_strangers_are_not_believed(ends: Ends) -> None:
    """Without `trusted_proxies` what a client claims is thrown away."""
    got = asked(ends, "/ws", *FORGED)
    assert got.get(b"X-Forwarded-For") == b"127.0.0.1"
    assert got.get(b"X-Forwarded-Proto") == b"http"
    assert got.get(b"X-Forwarded-Host") == b"gateway.test"
    assert b"1.2.3.4" not in got.raw
    assert b"real.example.com" not in got.raw


def test_forwarded_fields_of_trusted_proxies_are_kept(start: Starter, upstream: Upstream) -> None:
    """With `trusted_proxies` the chain grows, and the record has the client behind it."""
    gateway = start(
        head('trusted_proxies = ["127.0.0.0/8", "10.0.0.0/8"]') + route("ws", upstream.url("ws"))
    )
    ends = Ends(gateway, upstream)
    try:
        got = asked(ends, "/ws", *FORGED)
        assert got.get(b"X-Forwarded-For") == b"1.2.3.4, 10.0.0.1, 127.0.0.1"
        assert got.get(b"X-Forwarded-Proto") == b"https"
        assert got.get(b"X-Forwarded-Host") == b"real.example.com"
        forwarded = elements(b", ".join(got.all(b"Forwarded")))
        assert forwarded[0] == {"for": "1.2.3.4", "proto": "https", "host": "real.example.com"}
        assert forwarded[-1]["for"] == "127.0.0.1"
    finally:
        ends.close()
    record = ends.record(route="ws")
    assert (record["client"], record["peer"]) == ("1.2.3.4", "127.0.0.1")


# --- Host and target -----------------------------------------------------------------------------


def test_host_goes_up_as_sent(ends: Ends) -> None:
    """Applications compare it with Origin."""
    assert asked(ends, host="Gateway.Test:8080").get(b"Host") == b"Gateway.Test:8080"


def test_send_host(ends: Ends, upstream: Upstream) -> None:
    """The upstream's own, or a value."""
    own = f"127.0.0.1:{upstream.port}".encode()
    assert asked(ends, "/send-upstream").get(b"Host") == own
    assert asked(ends, "/send-value").get(b"Host") == b"service.internal:99"


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("/ws?a=%20b&c", "/ws?a=%20b&c"),
        ("/ws?", "/ws?"),
        ("/own/anything?x=1", "/own/path?x=1"),
        ("/own/", "/own/path"),
        ("/rooms/red/a/b?x", "/v2/red/a/b?x"),
        ("/rooms/r%2Fd%20/", "/v2/r%2Fd%20/"),
        ("/rooms/red//x/", "/v2/red//x/"),
        ("/query/red?x=1", "/q?room=red"),
    ],
)
def test_targets(ends: Ends, target: str, seen: str) -> None:
    """What passes, what an upstream's own path replaces, what a rewrite makes."""
    assert asked(ends, target).target == seen.encode()


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        ("a.example.com", "/exact"),
        ("A.EXAMPLE.COM.:80", "/exact"),
        ("b.example.com", "/wild"),
        ("c.b.example.com", "/wild"),
        ("example.com", "/any"),
        ("[::1]:80", "/any"),
    ],
)
def test_routes_by_host(ends: Ends, host: str, seen: str) -> None:
    """Exact over wildcard over any; case, port and a trailing dot do not count."""
    assert asked(ends, "/by-host", host=host).target == seen.encode()


@pytest.mark.parametrize(
    ("target", "fields", "seen"),
    [
        ("/by-match", ["X-Canary: 1"], "/header"),
        ("/by-match", ["X-Canary: 2"], "/rest"),
        ("/by-match?v=anything", [], "/query?v=anything"),
        ("/by-match?w=1", [], "/rest?w=1"),
        ("/by-match", ["Sec-WebSocket-Protocol: v1, v2"], "/protocol"),
        ("/by-match", ["Sec-WebSocket-Protocol: v1"], "/rest"),
    ],
)
def test_routes_by_further_matches(
    ends: Ends, target: str, fields: list[str], seen: str
) -> None:
    """Header, query and subprotocol."""
    assert asked(ends, target, *fields).target == seen.encode()
