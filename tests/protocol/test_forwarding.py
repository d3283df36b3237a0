"""What the upstream is told, to the byte, and whom the gateway believes."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Address, PeerCertificate, Secured
from gateway.protocol.forwarding import believed_client, forwarding_fields, upstream_request
from gateway.protocol.http1 import Request, RequestReader
from gateway.table import Network, Route

PEER = Address(host="192.0.2.7", port=5000)
PROXY = Address(host="10.0.0.5", port=5000)
PROXY6 = Address(host="fd00::5", port=5000)
UNIX = Address(path="")
TRUSTED: tuple[Network, ...] = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
OURS = b"AQIDBAUGBwgJCgsMDQ4PEA=="
OWN = (
    b"GET /up?q HTTP/1.1\r\nHost: a.test:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: " + OURS + b"\r\nSec-WebSocket-Version: 13\r\n"
)
TOLD = (
    b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a.test:8080\r\n"
    b'Forwarded: for=192.0.2.7;host="a.test:8080";proto=http\r\n\r\n'
)


def ask(*lines: bytes, connection: bytes = b"Upgrade") -> Request:
    """A client's upgrade with these lines."""
    request = RequestReader(1 << 20).feed(b"\r\n".join([
        b"GET /ws?q HTTP/1.1", b"Host: a.test:8080", b"Connection: " + connection,
        b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *lines, b"", b"",
    ]))
    assert request is not None
    return request


def tell(
    request: Request, route: Route | None = None, *, peer: Address = PEER,
    secured: Secured | None = None,
) -> bytes:
    """Our handshake."""
    return upstream_request(
        request, target="/up?q", route=route or Route(name="r"), endpoint_host="up.test:9000",
        key=OURS, peer=peer, trusted=TRUSTED, secured=secured,
    )


def told(request: Request, peer: Address) -> dict[bytes, bytes]:
    """The forwarding fields."""
    return dict(forwarding_fields(request, peer, TRUSTED))


# --- The handshake --------------------------------------------------------------------------------


def test_a_bare_upgrade() -> None:
    """Our handshake, and who the client is."""
    assert tell(ask()) == OWN + TOLD


def test_other_fields_pass_unchanged() -> None:
    """In order, in their own case, doubled ones too."""
    lines = b"ORIGIN: https://a.test\r\nCookie: a=b\r\nx-Z: caf\xe9\r\nCookie: c\r\nEmpty: \r\n"
    assert tell(ask(*lines.split(b"\r\n")[:-1])) == OWN + lines + TOLD


def test_offers_pass() -> None:
    """Subprotocols as they came; of extensions, deflate alone."""
    data = tell(ask(
        b"Sec-WebSocket-Protocol: b,a", b"sec-websocket-protocol: c", b"Sec-WebSocket-Protocol:",
        b"Sec-WebSocket-Extensions: x, permessage-deflate; client_max_window_bits",
        b"Sec-WebSocket-Extensions: permessage-deflate",
    ))
    assert data == OWN + (
        b"Sec-WebSocket-Protocol: b,a\r\nSec-WebSocket-Protocol: c\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, "
        b"permessage-deflate\r\n"
    ) + TOLD


def test_fields_of_the_connection_do_not_pass() -> None:
    """By their nature, or because Connection names them; what would frame content neither."""
    data = tell(ask(
        b"Keep-Alive: 5", b"Proxy-Connection: x", b"TE: trailers", b"Trailer: x", b"X-Hop: 1",
        b"HTTP2-Settings: x", b"Content-Length: 0", b"Expect: 100-continue", b"X-End: 2",
        b"Sec-WebSocket-Accept: x",
        connection=b"Upgrade, x-hop, HTTP2-Settings, Host, Sec-WebSocket-Key, close",
    ))
    assert data == OWN + b"X-End: 2\r\n" + TOLD


def test_send_host() -> None:
    """As the client sent it, the URL's, or another."""
    for send_host, host in [("", b"a.test:8080"), ("upstream", b"up.test:9000"), ("x.y", b"x.y")]:
        data = tell(ask(), Route(name="r", send_host=send_host))
        assert data.split(b"\r\n")[1] == b"Host: " + host
        assert b"X-Forwarded-Host: a.test:8080\r\n" in data


def test_a_route_sets_and_removes() -> None:
    """Last, so that it wins; names are compared without case."""
    route = Route(
        name="r",
        set_fields=(("X-Edge", "1"), ("cookie", "mine")),
        remove_fields=("origin", "x-forwarded-host", "upgrade", "sec-websocket-key", "host"),
    )
    data = tell(ask(b"Origin: x", b"COOKIE: theirs", b"x-edge: 0", b"Y: z"), route)
    assert data == OWN + b"Y: z\r\n" + TOLD.replace(
        b"X-Forwarded-Host: a.test:8080\r\n", b""
    )[:-2] + b"X-Edge: 1\r\ncookie: mine\r\n\r\n"


@pytest.mark.parametrize("name", ["Host", "upgrade", "Sec-WebSocket-Key", "Content-Length"])
def test_a_route_cannot_set_the_handshake(name: str) -> None:
    """The table refuses it; here it is a bug."""
    with pytest.raises(AssertionError):
        tell(ask(), Route(name="r", set_fields=((name, "x"),)))


def test_tls_is_told() -> None:
    """Where the client's side has it."""
    data = tell(ask(), secured=Secured(0.0, 1))
    assert b"X-Forwarded-Proto: https\r\n" in data
    assert data.endswith(b";proto=https\r\n\r\n")


CERTIFICATE = PeerCertificate(subject="CN=a", names=("DNS:a.test",), der=b"der")
OF_A_CLIENT = (b"Client-Cert: :eA==:", b"client_cert-chain: :eA==:", b"X-Client-Cert-Subject: CN=x",
               b"X-CLIENT-CERT-NAMES: x")


@pytest.mark.parametrize("secured", [None, Secured(0.0, 1)])
def test_who_a_stranger_says_to_have_proved_to_be_does_not_pass(secured: Secured | None) -> None:
    """With TLS or without; what a trusted proxy says of its client does."""
    strange, trusted = (
        tell(ask(*OF_A_CLIENT), peer=peer, secured=secured).lower() for peer in (PEER, PROXY)
    )
    assert b"cert" not in strange
    assert all(line.lower() in trusted for line in OF_A_CLIENT)


@pytest.mark.parametrize("peer", [PEER, PROXY])
def test_a_certificate_that_was_shown_here_is_told(peer: Address) -> None:
    """In place of all that was said of one."""
    data = tell(ask(*OF_A_CLIENT), peer=peer, secured=Secured(0.0, 1, certificate=CERTIFICATE))
    lines = [line for line in data.split(b"\r\n") if b"cert" in line.lower()]
    assert lines == [b"Client-Cert: :ZGVy:", b"X-Client-Cert-Subject: CN=a",
                     b'X-Client-Cert-Names: "DNS:a.test"']


def test_a_certificate_without_a_subject() -> None:
    """What is empty is not sent; no byte of a name can be a field's end."""
    bare = PeerCertificate(subject="", names=(), der=b"\0")
    data = tell(ask(), secured=Secured(0.0, 1, certificate=bare))
    assert data.lower().count(b"cert") == 1
    odd = PeerCertificate(subject=" \r\nX: y\x7f ", names=("URI:\r\n\u2028",), der=b"")
    data = tell(ask(), secured=Secured(0.0, 1, certificate=odd))
    assert b"X-Client-Cert-Subject: \\20\\0D\\0AX: y\\7F\\20\r\n" in data
    assert b'X-Client-Cert-Names: "URI:%0D%0A%E2%80%A8"\r\n' in data


# --- Forwarding fields ----------------------------------------------------------------------------


CLAIMS = (
    b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-For: 2.2.2.2", b"X-Forwarded-Proto: https",
    b"X-Forwarded-Host: evil.test", b"Forwarded: for=1.1.1.1;host=evil.test",
    b"x_forwarded_for: 3.3.3.3", b"X-Forwarded_Proto: x", b"X-FORWARDED-HOST: evil.test",
)


def test_a_strangers_claims_are_replaced() -> None:
    """All of them, also as CGI would read them."""
    assert tell(ask(*CLAIMS)) == OWN + TOLD
    assert tell(ask(b"X-Real-IP: 1.1.1.1")) == OWN + b"X-Real-IP: 1.1.1.1\r\n" + TOLD


def test_a_trusted_proxys_claims_are_kept() -> None:
    """And this hop is added to the lists."""
    request = ask(*CLAIMS[:5])
    assert told(request, PROXY) == {
        b"X-Forwarded-For": b"1.1.1.1, 2.2.2.2, 10.0.0.5",
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-Host": b"evil.test",
        b"Forwarded": (
            b"for=1.1.1.1;host=evil.test, "
            b'for=10.0.0.5;host="a.test:8080";proto=http'
        ),
    }


def test_a_trusted_proxys_nonsense_is_replaced() -> None:
    """What is twice, no scheme, no host, or not to be read."""
    request = ask(
        b"X-Forwarded-Proto: a, b", b"X-Forwarded-Host: a.test/b", b'Forwarded: for="1.1.1.1',
    )
    assert told(request, PROXY) == {
        b"X-Forwarded-For": b"10.0.0.5",
        b"X-Forwarded-Proto": b"http",
        b"X-Forwarded-Host": b"a.test:8080",
        b"Forwarded": b'for=10.0.0.5;host="a.test:8080";proto=http',
    }
    assert told(ask(*CLAIMS), PROXY)[b"X-Forwarded-Host"] == b"a.test:8080"


def test_ipv6() -> None:
    """In brackets and quoted in the one, bare in the other (RFC 7239 6)."""
    assert told(ask(), PROXY6)[b"X-Forwarded-For"] == b"fd00::5"
    assert told(ask(), PROXY6)[b"Forwarded"].startswith(b'for="[fd00::5]";')
    mapped = Address(host="::ffff:192.0.2.7", port=1)
    assert told(ask(), mapped)[b"X-Forwarded-For"] == b"192.0.2.7"
    scoped = Address(host="fe80::1%eth0", port=1)
    assert told(ask(), scoped)[b"X-Forwarded-For"] == b"fe80::1"


def test_a_client_on_a_unix_socket() -> None:
    """Has no address, and is not trusted (RFC 7239 6.2)."""
    assert told(ask(*CLAIMS), UNIX) == {
        b"X-Forwarded-Proto": b"http",
        b"X-Forwarded-Host": b"a.test:8080",
        b"Forwarded": b'for=unknown;host="a.test:8080";proto=http',
    }


# --- Who the client is ----------------------------------------------------------------------------


@pytest.mark.parametrize(("peer", "lines", "client"), [
    (PEER, (b"X-Forwarded-For: 1.1.1.1",), PEER),
    (UNIX, (b"X-Forwarded-For: 1.1.1.1",), UNIX),
    (PROXY, (), PROXY),
    (PROXY, (b"X-Forwarded-For: 1.1.1.1",), Address(host="1.1.1.1")),
    (PROXY, (b"X-Forwarded-For: 6.6.6.6, 1.1.1.1",), Address(host="1.1.1.1")),
    (PROXY, (b"X-Forwarded-For: 6.6.6.6", b"x-forwarded-for: 1.1.1.1,, 10.9.9.9"),
     Address(host="1.1.1.1")),
    (PROXY, (b"X-Forwarded-For: 1.1.1.1:99",), Address(host="1.1.1.1", port=99)),
    (PROXY, (b"X-Forwarded-For: 2001:db8::1",), Address(host="2001:db8::1")),
    (PROXY, (b"X-Forwarded-For: [2001:DB8::1]:99",), Address(host="2001:db8::1", port=99)),
    (PROXY, (b"X-Forwarded-For: ::ffff:1.1.1.1",), Address(host="1.1.1.1")),
    (PROXY6, (b"X-Forwarded-For: 10.1.1.1, 10.2.2.2",), Address(host="10.1.1.1")),
    (PROXY, (b"X-Forwarded-For: 1.1.1.1, unknown, 10.2.2.2",), Address(host="10.2.2.2")),
    (PROXY, (b"X-Forwarded-For: 1.1.1.1, evil",), PROXY),
    (PROXY, (b"X-Forwarded-For: 1.1.1.1:99999",), PROXY),
    (PROXY, (b"X-Forwarded-For: 1.1.1.256",), PROXY),
    (PROXY, (b"X-Forwarded-For: 1.1.1.1 ",), Address(host="1.1.1.1")),
    (PROXY, (b"X-Forwarded-For: \xff",), PROXY),
    (PROXY, (b'Forwarded: For="[2001:db8::1]:8";proto=http, for=10.3.3.3;by=x',),
     Address(host="2001:db8::1", port=8)),
    (PROXY, (b"Forwarded: for=1.1.1.1, proto=http",), PROXY),
    (PROXY, (b"Forwarded: for=1.1.1.1, for=_hidden",), PROXY),
    (PROXY, (b'Forwarded: for=1.1.1.1, for="2.2.2.2',), PROXY),
    (PROXY, (b"Forwarded: for=1.1.1.1;for=2.2.2.2",), PROXY),
    (PROXY, (b'Forwarded: for="1.1.\\1.1"',), Address(host="1.1.1.1")),
    (PROXY, (b"Forwarded: for=2.2.2.2", b"X-Forwarded-For: 1.1.1.1"), Address(host="1.1.1.1")),
    (Address(host="::ffff:10.0.0.5", port=1), (b"X-Forwarded-For: 1.1.1.1",),
     Address(host="1.1.1.1")),
])
def test_believed_client(peer: Address, lines: tuple[bytes, ...], client: Address) -> None:
    """From the right over trusted hops, up to the first that is not, or is none."""
    assert believed_client(peer, ask(*lines), TRUSTED) == client
    assert believed_client(peer, ask(*lines), ()) == peer


@pytest.mark.parametrize("value", [
    b'for="' + b"\\" * (1 << 19), b"for=1;" * (1 << 16), b"," * (1 << 19), b" " * (1 << 19) + b"x",
    b'for="",' * (1 << 16) + b'"', b";" * (1 << 19),
])
def test_claims_cost_what_their_bytes_cost(value: bytes) -> None:
    """Quadratic, these would take hours, and the test's time would run out."""
    assert believed_client(PROXY, ask(b"Forwarded: " + value), TRUSTED) == PROXY
    assert believed_client(PROXY, ask(b"X-Forwarded-For: " + value), TRUSTED) == PROXY


@given(
    st.lists(st.tuples(
        st.sampled_from([b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Y",
                         b"X-Forwarded-Host", b"Sec-WebSocket-Protocol", b"Cookie"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"),
                max_size=12),
    ), max_size=5),
    st.sampled_from([PEER, PROXY, PROXY6, UNIX]),
)
def test_whatever_is_claimed(pairs: list[tuple[bytes, str]], peer: Address) -> None:
    """Our handshake is one head that our own reader takes, with one of each of our fields."""
    request = RequestReader(4096).feed(ask(
        *(name + b": " + value.encode("latin-1") for name, value in pairs)
    ).raw)
    assert request is not None
    believed_client(peer, request, TRUSTED)
    read = RequestReader(1 << 16).feed(tell(request, peer=peer))
    assert read is not None
    assert read.rest == b""
    for name in (b"host", b"upgrade", b"connection", b"sec-websocket-key", b"forwarded",
                 b"x-forwarded-proto", b"x-forwarded-host"):
        assert len(read.get_all(name)) == 1
    if peer is PEER:
        assert read.get_all(b"x-forwarded-for") == [b"192.0.2.7"]
        assert believed_client(PROXY, read, TRUSTED) == Address(host="192.0.2.7")
