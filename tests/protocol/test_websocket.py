"""The opening handshake: what a client may ask, what an upstream may answer, to the byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ClientError, UpstreamError
from gateway.protocol import websocket
from gateway.protocol.http1 import Request, RequestReader, Response, ResponseReader
from gateway.protocol.websocket import Answer, check_answer, parse_extensions

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="        # RFC 6455 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
OURS = b"AQIDBAUGBwgJCgsMDQ4PEC=="
DEFLATE = b"permessage-deflate; client_max_window_bits"


def ask(
    *lines: bytes,
    start: bytes = b"GET /ws HTTP/1.1",
    connection: bytes = b"Connection: Upgrade",
    upgrade: bytes = b"Upgrade: websocket",
    version: bytes = b"Sec-WebSocket-Version: 13",
    key: bytes = b"Sec-WebSocket-Key: " + KEY,
) -> Request:
    """An upgrade with these lines; b"" leaves one out."""
    own = [line for line in (connection, upgrade, version, key) if line]
    data = b"\r\n".join([start, b"Host: a.test", *own, *lines, b"", b""])
    request = RequestReader(1 << 20).feed(data)
    assert request is not None
    return request


def say(
    *lines: bytes,
    start: bytes = b"HTTP/1.1 101 Switching Protocols",
    connection: bytes = b"Connection: Upgrade",
    upgrade: bytes = b"Upgrade: websocket",
    accept: bytes = b"Sec-WebSocket-Accept: " + websocket.accept_key(OURS),
) -> Response:
    """A 101 with these lines; b"" leaves one out."""
    own = [line for line in (connection, upgrade, accept) if line]
    response = ResponseReader(1 << 20).feed(b"\r\n".join([start, *own, *lines, b"", b""]))
    assert response is not None
    return response


def offer(value: bytes) -> Request:
    """A request that offers these extensions."""
    return ask(b"Sec-WebSocket-Extensions: " + value)


# --- Keys ---------------------------------------------------------------------------------------


def test_accept_key() -> None:
    """The RFC's own example."""
    assert websocket.accept_key(KEY) == ACCEPT


def test_new_key() -> None:
    """16 bytes, as we would accept it ourselves."""
    key = websocket.new_key(lambda count: bytes(range(count)))
    assert key == b"AAECAwQFBgcICQoLDA0ODw=="
    websocket.check_key(ask(key=b"Sec-WebSocket-Key: " + key))


# --- The request ----------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    {},
    {"connection": b"connection: keep-alive, UPGRADE"},
    {"connection": b"Connection: x\r\nConnection: ,upgrade,"},
    {"upgrade": b"UPGRADE: WebSocket"},
    {"upgrade": b"Upgrade: h2c, websocket"},
    {"start": b"GET /ws HTTP/1.9"},
    {"version": b"", "key": b""},
])
def test_upgrades(changes: dict[str, bytes]) -> None:
    """Lists, several fields, any case. Version and key are other questions."""
    request = ask(**changes)
    assert websocket.is_upgrade(request)
    websocket.check_upgrade(request)


@pytest.mark.parametrize("changes", [
    {"connection": b""},
    {"upgrade": b""},
    {"connection": b"Connection: keep-alive"},
    {"connection": b"Connection: upgraded"},
    {"upgrade": b"Upgrade: websocketx"},
    {"upgrade": b"Upgrade: websocket/13"},
    {"upgrade": b"Upgrade: h2c"},
    {"start": b"GET /ws HTTP/1.0"},
    {"start": b"POST /ws HTTP/1.1"},
    {"start": b"get /ws HTTP/1.1"},
])
def test_plain_exchanges(changes: dict[str, bytes]) -> None:
    """426, with all that it must say."""
    request = ask(**changes)
    assert not websocket.is_upgrade(request)
    with pytest.raises(ClientError) as caught:
        websocket.check_upgrade(request)
    assert caught.value.status == 426
    assert caught.value.fields == (
        (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Version", b"13")
    )


def test_content() -> None:
    """400 for any; a length of 0 is none."""
    websocket.check_content(ask())
    websocket.check_content(ask(b"Content-Length: 0"))
    for line in (b"Content-Length: 1", b"Transfer-Encoding: chunked"):
        with pytest.raises(ClientError) as caught:
            websocket.check_content(ask(line))
        assert caught.value.status == 400


def test_methods() -> None:
    """405 says what is allowed."""
    websocket.check_method(ask())
    head = ask(start=b"HEAD /ws HTTP/1.1")
    websocket.check_method(head, (b"GET", b"HEAD"))
    with pytest.raises(ClientError) as caught:
        websocket.check_method(head)
    assert (caught.value.status, caught.value.fields) == (405, ((b"Allow", b"GET"),))
    with pytest.raises(ClientError) as caught:
        websocket.check_method(ask(start=b"PUT / HTTP/1.1"), (b"GET", b"HEAD"))
    assert caught.value.fields == ((b"Allow", b"GET, HEAD"),)


@pytest.mark.parametrize("version", [
    b"", b"Sec-WebSocket-Version:", b"Sec-WebSocket-Version: 8", b"Sec-WebSocket-Version: 013",
    b"Sec-WebSocket-Version: 13, 8", b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13",
    b"Sec-WebSocket-Version: +13", b"Sec-WebSocket-Version: 1 3",
])
def test_versions(version: bytes) -> None:
    """None is another version; 426 names ours (RFC 6455 4.4)."""
    websocket.check_version(ask())
    with pytest.raises(ClientError) as caught:
        websocket.check_version(ask(version=version))
    assert caught.value.status == 426
    assert (b"Sec-WebSocket-Version", b"13") in caught.value.fields


@pytest.mark.parametrize("key", [
    b"", b"Sec-WebSocket-Key:", b"Sec-WebSocket-Key: " + KEY[:-2],
    b"Sec-WebSocket-Key: " + KEY[:-1],
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA=", b"Sec-WebSocket-Key: " + b"A" * 20,
    b"Sec-WebSocket-Key: " + b"A" * 24, b"Sec-WebSocket-Key: " + KEY + b"==",
    b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Key: " + KEY + b", " + KEY,
    b"Sec-WebSocket-Key: " + b"A" * 21 + b"B==",  # bits that no encoder leaves
    b"Sec-WebSocket-Key: -_AAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Key: " + b"\xe9" * 24,
    b"Sec-WebSocket-Key: dGhlIHNhbXBs ZSBub25jZQ==",
])
def test_keys_that_are_none(key: bytes) -> None:
    """Exactly one, of 16 bytes, as encoders write it."""
    with pytest.raises(ClientError) as caught:
        websocket.check_key(ask(key=key))
    assert caught.value.status == 400


@given(st.binary(min_size=16, max_size=16))
def test_every_key_of_16_bytes(value: bytes) -> None:
    """Passes."""
    key = websocket.new_key(lambda _: value)
    websocket.check_key(ask(key=b"Sec-WebSocket-Key: " + key))


# --- Offers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "offers"), [
    ((), []),
    ((b"Sec-WebSocket-Protocol: chat",), ["chat"]),
    ((b"Sec-WebSocket-Protocol: b, a",), ["b", "a"]),
    ((b"Sec-WebSocket-Protocol: b", b"Sec-WebSocket-Protocol: , Chat,chat"), ["b", "Chat", "chat"]),
    ((b"Sec-WebSocket-Protocol:",), []),
])
def test_subprotocols(lines: tuple[bytes, ...], offers: list[str]) -> None:
    """In the client's order; their case counts."""
    assert websocket.offered_subprotocols(ask(*lines)) == offers


@pytest.mark.parametrize("value", [b"a b", b"a, a", b"a, b, a", b"a;b", b'"a"', b"a/b", b"\xe9"])
def test_subprotocols_that_are_none(value: bytes) -> None:
    """Tokens, all unique (RFC 6455 4.1)."""
    with pytest.raises(ClientError) as caught:
        websocket.check_offers(ask(b"Sec-WebSocket-Protocol: " + value))
    assert caught.value.status == 400


def test_a_subprotocol_is_chosen() -> None:
    """The client's first that is ours."""
    request = ask(b"Sec-WebSocket-Protocol: x, mqtt, binary")
    assert websocket.choose_subprotocol(request, ("binary", "mqtt")) == "mqtt"
    assert websocket.choose_subprotocol(request, ("MQTT",)) == ""
    assert websocket.choose_subprotocol(ask(), ("binary",)) == ""


def test_extensions_are_read() -> None:
    """Parameters, quoted values, whitespace, empty elements, several fields."""
    found = parse_extensions([
        b'a, , b ;x; y = 1 ;z="q\\uoted" ,c;d="e"',
        b"\t permessage-deflate;client_max_window_bits ",
    ])
    assert [(one.name, one.parameters, one.text) for one in found] == [
        ("a", (), b"a"),
        ("b", (("x", None), ("y", "1"), ("z", "quoted")), b'b ;x; y = 1 ;z="q\\uoted"'),
        ("c", (("d", "e"),), b'c;d="e"'),
        (
            "permessage-deflate", (("client_max_window_bits", None),),
            b"permessage-deflate;client_max_window_bits",
        ),
    ]
    assert parse_extensions([b"", b" , "]) == []


@pytest.mark.parametrize("value", [
    b"a b", b"a;", b"a;;b", b";a", b"a;=1", b"a;b=", b'a;b="', b'a;b="c', b'a;b=""', b'a;b="c d"',
    b'a;b="c,d"', b'a;b=c"d"', b"a=b", b"a;b=c=d", b'"a"', b"a;b c", b"\xe9", b"a;b=\\c", b"a@",
])
def test_extensions_that_are_none(value: bytes) -> None:
    """RFC 6455 9.1: who gets such a thing must fail the connection."""
    with pytest.raises(ClientError) as caught:
        websocket.check_offers(offer(value))
    assert caught.value.status == 400


@pytest.mark.parametrize("value", [
    b'a;b="' + b"\\" * (1 << 19), b"a;" * (1 << 18), b'a;b="c",' * (1 << 16) + b'"',
    b"," * (1 << 19) + b";", b"a;b=" + b" " * (1 << 19) + b"=", b" " * (1 << 19) + b'"',
])
def test_extensions_cost_what_their_bytes_cost(value: bytes) -> None:
    """Quadratic, these would take hours, and the test's time would run out."""
    with pytest.raises(ValueError, match=r"no|quoted"):
        parse_extensions([value])


@pytest.mark.parametrize(("value", "passed"), [
    (b"x-webkit-deflate-frame", b""),
    (DEFLATE, DEFLATE),
    (b'a, permessage-deflate ;server_max_window_bits="10" , b;c, permessage-deflate',
     b'permessage-deflate ;server_max_window_bits="10", permessage-deflate'),
    (b"Permessage-Deflate", b""),
])
def test_only_deflate_is_offered_on(value: bytes, passed: bytes) -> None:
    """Untouched, in order; the relay would not know what others do to frames."""
    assert websocket.passed_extensions(offer(value)) == passed
    assert websocket.passed_extensions(ask()) == b""


# --- The upstream's answer ------------------------------------------------------------------------


def test_a_plain_answer() -> None:
    """What passes on, and what does not."""
    answer = check_answer(
        say(b"Set-Cookie: a=b", b"Server: x", b"Keep-Alive: 5", b"set-cookie: c=d",
            b"Sec-WebSocket-Version: 13", connection=b"Connection: x-hop, upgrade\r\nX-Hop: 1"),
        OURS, ask(),
    )
    assert answer == Answer(
        fields=((b"Set-Cookie", b"a=b"), (b"Server", b"x"), (b"set-cookie", b"c=d"))
    )
    assert websocket.client_answer(ask(), answer) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\nSet-Cookie: a=b\r\nServer: x\r\n"
        b"set-cookie: c=d\r\n\r\n"
    )


def test_choices_come_back() -> None:
    """Subprotocol and extension, as the upstream wrote them."""
    request = ask(b"Sec-WebSocket-Protocol: a, b", b"Sec-WebSocket-Extensions: x, " + DEFLATE)
    answer = check_answer(
        say(b"Sec-WebSocket-Protocol: b",
            b"Sec-WebSocket-Extensions: permessage-deflate;client_max_window_bits=10 "),
        OURS, request,
    )
    assert answer == Answer(
        subprotocol="b",
        extensions=b"permessage-deflate;client_max_window_bits=10",
        deflate=True,
    )
    assert websocket.client_answer(request, answer).endswith(
        b"Sec-WebSocket-Protocol: b\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate;client_max_window_bits=10\r\n\r\n"
    )


def test_an_answer_of_our_own() -> None:
    """Toward a raw upstream the gateway is the endpoint."""
    assert websocket.raw_answer(ask(b"Sec-WebSocket-Extensions: " + DEFLATE), "binary") == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
    )
    assert b"Protocol:" not in websocket.raw_answer(ask(), "")


@pytest.mark.parametrize("changes", [
    {"start": b"HTTP/1.0 101 x"},
    {"upgrade": b""},
    {"upgrade": b"Upgrade: h2c"},
    {"upgrade": b"Upgrade: websocket, h2c"},
    {"connection": b""},
    {"connection": b"Connection: close"},
    {"accept": b""},
    {"accept": b"Sec-WebSocket-Accept: " + ACCEPT},
    {"accept": b"Sec-WebSocket-Accept: " + websocket.accept_key(OURS).lower()},
    {"accept": b"\r\n".join([b"Sec-WebSocket-Accept: " + websocket.accept_key(OURS)] * 2)},
])
def test_wrong_handshakes(changes: dict[str, bytes]) -> None:
    """RFC 6455 4.1, the client's checks 1 to 4."""
    check_answer(say(), OURS, ask())
    with pytest.raises(UpstreamError) as caught:
        check_answer(say(**changes), OURS, ask())
    assert caught.value.status == 502


@pytest.mark.parametrize("line", [
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b"Sec-WebSocket-Protocol: c",
    b"Sec-WebSocket-Protocol: A",
    b"Sec-WebSocket-Protocol: a, b",
    b"Sec-WebSocket-Protocol:",
    b"Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: a",
    b"Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b",
    b"Sec-WebSocket-Extensions: x",
    b"Sec-WebSocket-Extensions: permessage-deflate;",
    b"Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate",
    b"Sec-WebSocket-Extensions: permessage-deflate, x",
    b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Extensions: permessage-deflate",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
])
def test_wrong_choices(line: bytes) -> None:
    """Twice, malformed, or not offered: 502."""
    request = ask(b"Sec-WebSocket-Protocol: a, b", b"Sec-WebSocket-Extensions: x, " + DEFLATE)
    with pytest.raises(UpstreamError) as caught:
        check_answer(say(line), OURS, request)
    assert caught.value.status == 502


def test_nothing_may_be_chosen_where_nothing_was_offered() -> None:
    """Neither the one nor the other."""
    for line in (b"Sec-WebSocket-Protocol: a", b"Sec-WebSocket-Extensions: permessage-deflate"):
        with pytest.raises(UpstreamError):
            check_answer(say(line), OURS, ask())


@pytest.mark.parametrize(("offered", "chosen", "good"), [
    ("", "", True),
    ("", "server_no_context_takeover", True),          # RFC 7692 7.1.1.1: also unasked
    ("", "client_no_context_takeover", True),          # 7.1.1.2: likewise
    ("", "server_max_window_bits=8", True),            # 7.1.2.1: likewise
    ("", "client_max_window_bits=15", False),          # 7.1.2.2: only if offered
    ("client_max_window_bits", "client_max_window_bits=8", True),
    ("client_max_window_bits=9", "client_max_window_bits=15", True),
    ("client_max_window_bits", "client_max_window_bits", False),
    ("client_max_window_bits", "client_max_window_bits=7", False),
    ("client_max_window_bits", "client_max_window_bits=16", False),
    ("client_max_window_bits", "client_max_window_bits=08", False),
    ("client_max_window_bits", 'client_max_window_bits="10"', True),
    ("server_max_window_bits=10", "server_max_window_bits=10", True),
    ("server_max_window_bits=10", "server_max_window_bits=9", True),
    ("server_max_window_bits=10", "server_max_window_bits=11", False),
    ("server_max_window_bits=10", "", False),
    ("server_no_context_takeover", "server_no_context_takeover", True),
    ("server_no_context_takeover", "", False),
    ("client_no_context_takeover", "", True),
    ("", "server_no_context_takeover=1", False),
    ("", "server_max_window_bits", False),
    ("", "server_max_window_bits=x", False),
    ("", "server_max_window_bits=9; server_max_window_bits=9", False),
    ("", "unknown", False),
    ("unknown", "", False),                            # 7.1: such an offer must be declined
    ("server_max_window_bits", "server_max_window_bits=9", False),
])
def test_deflate_parameters(offered: str, chosen: str, *, good: bool) -> None:
    """RFC 7692 7.1, parameter by parameter."""
    def element(parameters: str) -> bytes:
        return f"permessage-deflate{'; ' if parameters else ''}{parameters}".encode()

    request = offer(element(offered))
    response = say(b"Sec-WebSocket-Extensions: " + element(chosen))
    if good:
        assert check_answer(response, OURS, request).deflate
    else:
        with pytest.raises(UpstreamError):
            check_answer(response, OURS, request)


def test_any_of_several_offers_may_be_accepted() -> None:
    """Each stands for itself."""
    request = offer(b"permessage-deflate; server_max_window_bits=10, permessage-deflate")
    assert check_answer(
        say(b"Sec-WebSocket-Extensions: permessage-deflate"), OURS, request
    ).deflate
    assert check_answer(say(b"Sec-WebSocket-Extensions: ,"), OURS, request) == Answer()
