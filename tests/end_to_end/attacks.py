"""Handshakes that want to be misread: raw bytes, and the one outcome each may have.

Every entry says what the client must be answered, in order, and nothing may follow. An answer of
101 means that the upstream saw exactly one clean handshake, and then `behind`, to the byte; any
other that it saw nothing at all, unless `refusal` says that it was asked and refused.

What may go wrong elsewhere is told in RFC 9112 11.2 (request smuggling), RFC 9110 17, RFC 6455 10;
the tricks are those that proxies and servers fell for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from end_to_end.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    close_frame,
    frame,
)

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
VERSION = b"Sec-WebSocket-Version: 13"
HOST = b"Host: gateway.test"
UPGRADE = b"Upgrade: websocket"
CONNECTION = b"Connection: Upgrade"
REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n"


@dataclass(frozen=True)
class Attack:
    """`answers` are the statuses in order. `behind`: what the upstream gets behind its handshake,
    `close`: the code of the Close that the client gets then. `slow`: the head never ends."""

    name: str
    data: bytes
    answers: tuple[int, ...]
    behind: bytes = b""
    close: int | None = None
    target: bytes = b"/ws"
    refusal: bytes = b""
    slow: bool = False
    head_only: bool = False

    def __str__(self) -> str:
        return self.name


def request(
    line: bytes = b"GET /ws HTTP/1.1",
    *more: bytes,
    host: bytes | None = HOST,
    upgrade: bytes | None = UPGRADE,
    connection: bytes | None = CONNECTION,
    key: bytes | None = KEY,
    version: bytes | None = VERSION,
    behind: bytes = b"",
) -> bytes:
    """An upgrade with these lines, None leaving one out, and `more` behind them."""
    lines = [line, *(one for one in (host, upgrade, connection, key, version) if one is not None)]
    return b"\r\n".join([*lines, *more]) + b"\r\n\r\n" + behind


def plain(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """A request that is no upgrade."""
    return b"\r\n".join([line, HOST, *fields]) + b"\r\n\r\n" + body


def with_line(line: bytes) -> bytes:
    """A good upgrade, with one more line among its fields."""
    return request(b"GET /ws HTTP/1.1\r\n" + line)


SMUGGLED = plain(b"GET /smuggled HTTP/1.1")


def _request_lines() -> Iterator[Attack]:
    for name, line, status in [
        ("two spaces before the target", b"GET  /ws HTTP/1.1", 400),
        ("two spaces before the version", b"GET /ws  HTTP/1.1", 400),
        ("tab before the target", b"GET\t/ws HTTP/1.1", 400),
        ("tab before the version", b"GET /ws\tHTTP/1.1", 400),
        ("space behind the version", b"GET /ws HTTP/1.1 ", 400),
        ("space before the method", b" GET /ws HTTP/1.1", 400),
        ("no protocol version", b"GET /ws", 400),
        ("no target", b"GET HTTP/1.1", 400),
        ("empty target", b"GET  HTTP/1.1", 400),
        ("space in the target", b"GET /ws x HTTP/1.1", 400),
        ("NUL in the target", b"GET /ws\x00 HTTP/1.1", 400),
        ("NUL in the method", b"GE\x00T /ws HTTP/1.1", 400),
        ("CR in the target", b"GET /ws\rHTTP/1.1 HTTP/1.1", 400),
        ("LF in the target", b"GET /ws\nX: y HTTP/1.1", 400),
        ("vertical tab as a separator", b"GET\x0b/ws\x0bHTTP/1.1", 400),
        ("form feed as a separator", b"GET\x0c/ws\x0cHTTP/1.1", 400),
        ("no-break space as a separator", b"GET\xa0/ws\xa0HTTP/1.1", 400),
        ("CR twice at the end of the line", b"GET /ws HTTP/1.1\r", 400),
        ("a colon in the method", b"GET: /ws HTTP/1.1", 400),
        ("method of a bracket", b"G<T /ws HTTP/1.1", 400),
        ("lower-case protocol", b"GET /ws http/1.1", 400),
        ("protocol without a minor", b"GET /ws HTTP/1", 400),
        ("protocol with two digits", b"GET /ws HTTP/1.10", 400),
        ("protocol with a space", b"GET /ws HTTP/ 1.1", 400),
        ("protocol with a comma", b"GET /ws HTTP/1,1", 400),
        ("protocol ICY", b"GET /ws ICY/1.1", 400),
        ("RTSP", b"GET /ws RTSP/1.0", 400),
        ("version 0.9", b"GET /ws HTTP/0.9", 400),
        ("version 2.0", b"GET /ws HTTP/2.0", 505),
        ("version 3.0", b"GET /ws HTTP/3.0", 505),
        ("version 9.9", b"GET /ws HTTP/9.9", 505),
        ("version 1.0", b"GET /ws HTTP/1.0", 426),
        ("an unknown method", b"FROBNICATE /ws HTTP/1.1", 405),
        ("lower-case method", b"get /ws HTTP/1.1", 405),
        ("POST", b"POST /ws HTTP/1.1", 405),
        ("OPTIONS", b"OPTIONS /ws HTTP/1.1", 405),
        ("TRACE", b"TRACE /ws HTTP/1.1", 405),
        ("CONNECT with an authority", b"CONNECT gateway.test:80 HTTP/1.1", 400),
        ("CONNECT with a path", b"CONNECT /ws HTTP/1.1", 400),
    ]:
        yield Attack(name, request(line), (status,))
    yield Attack("HEAD as an upgrade", request(b"HEAD /ws HTTP/1.1"), (405,), head_only=True)
    yield Attack("version 1.9 counts as 1.1", request(b"GET /ws HTTP/1.9"), (101,))
    yield Attack("one empty line before it", b"\r\n" + request(), (101,))
    yield Attack("two empty lines before it", b"\r\n\r\n" + request(), (400,))
    yield Attack("LF before it", b"\n" + request(), (400,))
    yield Attack("NUL before it", b"\x00" + request(), (400,))
    yield Attack("preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,))
    yield Attack("a TLS hello", bytes.fromhex("16030100c8010000c40303") + bytes(190), (400,))
    yield Attack("header of the PROXY protocol", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + request(),
                 (400,))
    yield Attack("binary PROXY header", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + request(), (400,))
    yield Attack("only bare LFs", request().replace(b"\r\n", b"\n"), (400,))
    yield Attack("only bare CRs", request().replace(b"\r\n", b"\r") + b"\r\n\r\n", (400,))
    yield Attack("head ends with two LFs", request()[:-4] + b"\n\n", (400,))
    yield Attack("head ends with LF CRLF", request()[:-4] + b"\n\r\n", (400,))
    yield Attack("head ends with CR CR LF", request()[:-4] + b"\r\r\n\r\n", (400,))


def _targets() -> Iterator[Attack]:
    for name, target, status in [
        ("asterisk", b"*", 400),
        ("no slash", b"ws", 400),
        ("authority form", b"gateway.test:80", 400),
        ("backslash before it", b"\\ws", 400),
        ("backslash for a slash", b"/\\ws", 404),
        ("two slashes", b"//ws", 404),
        ("slash at the end", b"/ws/", 404),
        ("other case", b"/WS", 404),
        ("dot segment", b"/./ws", 400),
        ("dot-dot segment", b"/x/../ws", 400),
        ("dot-dot at the end", b"/ws/..", 400),
        ("above the root", b"/../ws", 400),
        ("encoded dot-dot", b"/x/%2e%2e/ws", 400),
        ("half encoded dot-dot", b"/x/.%2E/ws", 400),
        ("encoded dot", b"/%2e/ws", 400),
        ("encoded slash", b"/x%2fws", 404),
        ("encoded slash before the route", b"/%2Fws", 404),
        ("twice encoded dot-dot", b"/x/%252e%252e/ws", 404),
        ("encoded NUL", b"/ws%00", 404),
        ("encoded CRLF", b"/ws%0d%0aX-Evil:%20yes", 404),
        ("parameter behind the route", b"/ws;x=1", 404),
        ("fragment", b"/ws#x", 400),
        ("fragment with a slash", b"/ws#/../x", 400),
        ("byte above ASCII", b"/w\xc3\xa9", 400),
        ("DEL", b"/ws\x7f", 400),
        ("quotation mark", b'/ws"', 400),
        ("absolute form with a user", b"http://user@gateway.test/ws", 400),
        ("absolute form with user and password", b"http://a:b@gateway.test/ws", 400),
        ("absolute form without a host", b"http:///ws", 400),
        ("absolute form, bad port", b"http://gateway.test:x/ws", 400),
        ("absolute form, other scheme", b"ftp://gateway.test/ws", 400),
        ("absolute form, file", b"file:///etc/passwd", 400),
        ("absolute form with a dot segment", b"http://gateway.test/a/../ws", 400),
        ("absolute form, one slash", b"http:/ws", 400),
        ("absolute form, no route", b"http://gateway.test/other", 404),
        ("request line too long", b"/ws?" + b"x" * 9000, 414),
        ("path too long", b"/" + b"x" * 9000, 414),
    ]:
        yield Attack(f"target: {name}", request(b"GET " + target + b" HTTP/1.1"), (status,))
    for name, target, seen in [
        ("encoded unreserved character", b"/w%73", b"/w%73"),
        ("query with an encoded CRLF", b"/ws?a=%0d%0aX:%20y", b"/ws?a=%0d%0aX:%20y"),
        ("query with dot segments and slashes", b"/ws?/../../x", b"/ws?/../../x"),
        ("empty query", b"/ws?", b"/ws?"),
        ("second question mark", b"/ws?a?b", b"/ws?a?b"),
        ("absolute form", b"http://gateway.test/ws", b"/ws"),
        ("absolute form, other case", b"HTTP://GATEWAY.TEST/ws", b"/ws"),
        ("absolute form with ws", b"ws://gateway.test:80/ws?x", b"/ws?x"),
    ]:
        line = b"GET " + target + b" HTTP/1.1"
        yield Attack(f"target: {name}", request(line), (101,), target=seen)
    yield Attack("absolute form, other Host", request(b"GET http://gateway.test/ws HTTP/1.1",
                 host=b"Host: evil.test"), (101,))
    yield Attack("absolute form, no Host", request(b"GET http://gateway.test/ws HTTP/1.1",
                 host=None), (400,))


def _hosts() -> Iterator[Attack]:
    for name, value, status in [
        ("empty", b"", 400),
        ("a space inside", b"gateway test", 400),
        ("a comma", b"gateway.test,evil.test", 400),
        ("a comma and a space", b"gateway.test, evil.test", 400),
        ("user information", b"user@gateway.test", 400),
        ("a path", b"gateway.test/evil", 400),
        ("a query", b"gateway.test?evil", 400),
        ("a fragment", b"gateway.test#evil", 400),
        ("a backslash", b"gateway.test\\evil", 400),
        ("a quotation mark", b'gateway.test"', 400),
        ("an angle bracket", b"<gateway.test>", 400),
        ("a percent sign", b"gateway%2etest", 400),
        ("NUL", b"gateway.test\x00evil", 400),
        ("a byte above ASCII", b"gatew\xc3\xa4y.test", 400),
        ("a port that is none", b"gateway.test:eighty", 400),
        ("a port too large", b"gateway.test:65536", 400),
        ("a port of many digits", b"gateway.test:0000080", 400),
        ("two ports", b"gateway.test:80:80", 400),
        ("a negative port", b"gateway.test:-80", 400),
        ("half a bracket", b"[::1", 400),
        ("brackets without IPv6", b"[gateway.test]", 400),
        ("IPv6 without brackets", b"::1", 400),
        ("IPv6 with a zone", b"[fe80::1%25lo]", 400),
        ("a scheme", b"http://gateway.test", 400),
        ("a trailing dot", b"gateway.test.", 101),
        ("a port", b"gateway.test:8080", 101),
        ("IPv6", b"[::1]:8080", 101),
        ("spaces around it", b"  gateway.test \t", 101),
    ]:
        yield Attack(f"Host with {name}", request(host=b"Host: " + value), (status,))
    yield Attack("no Host", request(host=None), (400,))
    yield Attack("two Hosts", with_line(b"Host: evil.test"), (400,))
    yield Attack("two Hosts that are equal", with_line(HOST), (400,))
    yield Attack("two Hosts, the second in other case", with_line(b"hOST: evil.test"), (400,))
    yield Attack("no Host in HTTP/1.0", request(b"GET /ws HTTP/1.0", host=None), (426,))
    yield Attack("X-Forwarded-Host is no Host", request(host=b"X-Forwarded-Host: gateway.test"),
                 (400,))


def _fields() -> Iterator[Attack]:
    for name, line in [
        ("space before the colon", b"X-Field : value"),
        ("tab before the colon", b"X-Field\t: value"),
        ("space before Host's colon", b"Host : evil.test"),
        ("space before a length's colon", b"Content-Length : 5"),
        ("space before an encoding's colon", b"Transfer-Encoding : chunked"),
        ("space before the name", b" X-Field: value"),
        ("obs-fold with a space", b"X-Field: value\r\n folded"),
        ("obs-fold with a tab", b"X-Field: value\r\n\tfolded"),
        ("obs-fold that hides an encoding", b"X-Field: value\r\n Transfer-Encoding: chunked"),
        ("obs-fold of an encoding", b"Transfer-Encoding:\r\n chunked"),
        ("no colon", b"X-Field value"),
        ("no name", b": value"),
        ("only a colon", b":"),
        ("space in the name", b"X Field: value"),
        ("NUL in the name", b"X-Fi\x00eld: value"),
        ("NUL in the value", b"X-Field: va\x00lue"),
        ("CR in the value", b"X-Field: va\rlue"),
        ("LF in the value", b"X-Field: va\nlue"),
        ("LF that begins a field", b"X-Field: value\nX-Other: value"),
        ("CR CR LF", b"X-Field: value\r\r\nX-Other: value"),
        ("escape in the value", b"X-Field: \x1b[31m"),
        ("DEL in the value", b"X-Field: va\x7flue"),
        ("vertical tab in the value", b"X-Field:\x0bvalue"),
        ("form feed before the name", b"\x0cX-Field: value"),
        ("parenthesis in the name", b"X-(Field): value"),
        ("bracket in the name", b"X[Field]: value"),
        ("slash in the name", b"X/Field: value"),
        ("byte above ASCII in the name", b"X-Fi\xe9ld: value"),
        ("quoted name", b'"X-Field": value'),
        ("request line as a field", b"GET /smuggled HTTP/1.1"),
        ("Connection that is no list of tokens", b'Connection: "upgrade"'),
        ("Connection with a space in a token", b"Connection: keep alive"),
    ]:
        yield Attack(f"field: {name}", with_line(line), (400,))
    many = b"\r\n".join(b"X-%d: y" % number for number in range(200))
    yield Attack("too many fields", with_line(many), (431,))
    yield Attack("a field too long", with_line(b"X-Field: " + b"y" * 20000), (431,))
    yield Attack("a name too long", with_line(b"X" * 20000 + b": y"), (431,))
    yield Attack("a head without an end", b"GET /ws HTTP/1.1\r\n" + b"X: y\r\n" * 4000, (431,))
    yield Attack("a line without an end", b"GET /" + b"a" * 20000, (414,))
    yield Attack("bytes above ASCII in a value", with_line(b"X-Field: caf\xc3\xa9"), (101,))
    yield Attack("empty value", with_line(b"X-Field:"), (101,))
    for option in (b"Host", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"X-Forwarded-For",
                   b"Upgrade", b"Content-Length", b"close"):
        yield Attack(
            f"Connection names {option.decode()}",
            request(connection=b"Connection: Upgrade, " + option),
            (101,),
        )


def _framing() -> Iterator[Attack]:
    for name, lines, status in [
        ("a length", b"Content-Length: 5", 400),
        ("chunked", b"Transfer-Encoding: chunked", 400),
        ("chunked in other case", b"Transfer-Encoding: CHUNKED", 400),
        ("both", b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("both, the other way round", b"Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
        ("both, length of 0", b"Content-Length: 0\r\nTransfer-Encoding: chunked", 400),
        ("two lengths", b"Content-Length: 5\r\nContent-Length: 6", 400),
        ("two equal lengths", b"Content-Length: 5\r\nContent-Length: 5", 400),
        ("two lengths of 0", b"Content-Length: 0\r\nContent-Length: 0", 400),
        ("a list of lengths", b"Content-Length: 5, 5", 400),
        ("a list of lengths of 0", b"Content-Length: 0, 0", 400),
        ("a length with a plus", b"Content-Length: +5", 400),
        ("a negative length", b"Content-Length: -5", 400),
        ("a negative 0", b"Content-Length: -0", 400),
        ("a hexadecimal length", b"Content-Length: 0x5", 400),
        ("a length with an underscore", b"Content-Length: 1_0", 400),
        ("a length with a point", b"Content-Length: 5.0", 400),
        ("an empty length", b"Content-Length:", 400),
        ("a length in Arabic digits", "Content-Length: \u0665".encode(), 400),
        ("a length of 30 digits", b"Content-Length: " + b"9" * 30, 400),
        ("a length above 64 bits", b"Content-Length: 18446744073709551616", 400),
        ("a length behind a comma", b"Content-Length: ,5", 400),
        ("identity", b"Transfer-Encoding: identity", 400),
        ("gzip alone", b"Transfer-Encoding: gzip", 400),
        ("chunked before gzip", b"Transfer-Encoding: chunked, gzip", 400),
        ("chunked twice", b"Transfer-Encoding: chunked, chunked", 400),
        ("chunked in two fields", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("chunked, then identity", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", 400),
        ("an encoding that is none", b"Transfer-Encoding: xchunked", 400),
        ("chunked with a parameter", b"Transfer-Encoding: chunked;x=1", 400),
        ("quoted chunked", b'Transfer-Encoding: "chunked"', 400),
        ("chunked behind a vertical tab", b"Transfer-Encoding: \x0bchunked", 400),
        ("an empty encoding", b"Transfer-Encoding:", 400),
        ("an encoding that is not known", b"Transfer-Encoding: gzip, chunked", 501),
    ]:
        yield Attack(f"upgrade with {name}", with_line(lines), (status,))
    yield Attack("chunked in HTTP/1.0", request(b"GET /ws HTTP/1.0", b"Transfer-Encoding: chunked"),
                 (400,))


def _bodies() -> Iterator[Attack]:
    smuggled = plain(b"GET /ws HTTP/1.1", b"Content-Length: 6", b"Transfer-Encoding: chunked",
                     body=b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    yield Attack("smuggling by length and encoding", smuggled, (400,))
    yield Attack("smuggling behind an upgrade with a length",
                 request(b"GET /ws HTTP/1.1", b"Content-Length: %d" % len(SMUGGLED),
                         behind=SMUGGLED), (400,))
    yield Attack("smuggling by a space before the colon",
                 plain(b"POST /ws HTTP/1.1", b"Content-Length: 5", b"Transfer-Encoding : chunked",
                       body=b"0\r\n\r\n" + SMUGGLED), (400,))
    yield Attack("a request inside a body is body",
                 plain(b"GET /ws HTTP/1.1", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
                 (426,))
    yield Attack("a request inside a chunk is body",
                 plain(b"GET /ws HTTP/1.1", b"Transfer-Encoding: chunked",
                       body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)), (426,))
    yield Attack("a request behind a body is a request",
                 plain(b"GET /ws HTTP/1.1", b"Content-Length: 3", body=b"abc" + SMUGGLED),
                 (426, 404))
    yield Attack("a request behind chunks and trailers is a request",
                 plain(b"GET /ws HTTP/1.1", b"Transfer-Encoding: chunked",
                       body=b"3;x=y\r\nabc\r\n0\r\nHost: evil.test\r\n\r\n" + SMUGGLED),
                 (426, 404))
    for name, body in [
        ("is not hexadecimal", b"xyz\r\nabc\r\n0\r\n\r\n"),
        ("is negative", b"-3\r\nabc\r\n0\r\n\r\n"),
        ("has a prefix", b"0x3\r\nabc\r\n0\r\n\r\n"),
        ("has 30 digits", b"f" * 30 + b"\r\nabc\r\n0\r\n\r\n"),
        ("ends with LF", b"3\nabc\r\n0\r\n\r\n"),
        ("is shorter than its chunk", b"3\r\nabcdef\r\n0\r\n\r\n"),
        ("has a bare CR in its extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    ]:
        data = plain(b"GET /ws HTTP/1.1", b"Transfer-Encoding: chunked", body=body + SMUGGLED)
        yield Attack(f"a chunk's size {name}", data, (426,))


def _upgrades() -> Iterator[Attack]:
    for name, lines, status in [
        ("no Upgrade", {"upgrade": None}, 426),
        ("no Connection", {"connection": None}, 426),
        ("Upgrade to h2c", {"upgrade": b"Upgrade: h2c"}, 426),
        ("Upgrade to something longer", {"upgrade": b"Upgrade: websocketx"}, 426),
        ("Upgrade to TLS", {"upgrade": b"Upgrade: TLS/1.2"}, 426),
        ("empty Upgrade", {"upgrade": b"Upgrade:"}, 426),
        ("Connection: close", {"connection": b"Connection: close"}, 426),
        ("Connection: keep-alive", {"connection": b"Connection: keep-alive"}, 426),
        ("Connection with a longer word", {"connection": b"Connection: upgraded"}, 426),
        ("no key", {"key": None}, 400),
        ("empty key", {"key": b"Sec-WebSocket-Key:"}, 400),
        ("key of 15 bytes", {"key": b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA"}, 400),
        ("key of 17 bytes", {"key": b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA="}, 400),
        ("key without padding", {"key": b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"}, 400),
        ("key with too much padding", {"key": KEY + b"=="}, 400),
        ("key with a space", {"key": b"Sec-WebSocket-Key: dGhlIHNhbXBs ZSBub25jZQ=="}, 400),
        ("key that is not base64", {"key": b"Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="}, 400),
        ("key in base64url", {"key": b"Sec-WebSocket-Key: -_-_-_-_-_-_-_-_-_-_-Q=="}, 400),
        ("two keys in a list", {"key": KEY + b", " + KEY.split(b": ")[1]}, 400),
        ("key of bytes above ASCII", {"key": b"Sec-WebSocket-Key: " + b"\xe9" * 24}, 400),
        ("no version", {"version": None}, 426),
        ("empty version", {"version": b"Sec-WebSocket-Version:"}, 426),
        ("version 8", {"version": b"Sec-WebSocket-Version: 8"}, 426),
        ("version 14", {"version": b"Sec-WebSocket-Version: 14"}, 426),
        ("version 013", {"version": b"Sec-WebSocket-Version: 013"}, 426),
        ("version +13", {"version": b"Sec-WebSocket-Version: +13"}, 426),
        ("version 13.0", {"version": b"Sec-WebSocket-Version: 13.0"}, 426),
        ("a list of versions", {"version": b"Sec-WebSocket-Version: 13, 8"}, 426),
    ]:
        yield Attack(name, request(b"GET /ws HTTP/1.1", **lines), (status,))  # type: ignore[arg-type]
    yield Attack("two key fields", with_line(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
                 (400,))
    yield Attack("two equal key fields", with_line(KEY), (400,))
    yield Attack("two versions", with_line(b"Sec-WebSocket-Version: 8"), (426,))
    yield Attack("HTTP/1.0 with Upgrade", request(b"GET /ws HTTP/1.0"), (426,))
    yield Attack("the draft that had two keys",
                 request(key=b"Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5",
                         version=b"Sec-WebSocket-Key2: 12998 5 Y3 1  .P00", behind=b"^n:ds[4U"),
                 (426,))
    for name, lines in [
        ("Upgrade in other case", {"upgrade": b"UPGRADE: WebSocket"}),
        ("Connection of a browser", {"connection": b"Connection: keep-alive, Upgrade"}),
        ("Connection in other case", {"connection": b"connection: UPGRADE"}),
        ("Connection in two fields", {"connection": b"Connection: x\r\nConnection: upgrade"}),
        ("empty elements in a list", {"connection": b"Connection: ,, upgrade ,"}),
    ]:
        yield Attack(name, request(b"GET /ws HTTP/1.1", **lines), (101,))
    for origin, status in [
        (b"https://evil.test", 403),
        (b"https://good.test.evil.test", 403),
        (b"https://evilgood.test", 403),
        (b"https://good.test:444", 403),
        (b"http://good.test", 403),
        (b"https://good.test@evil.test", 403),
        (b"https://good.test\\@evil.test", 403),
        (b"https://good.test/", 403),
        (b"good.test", 403),
        (b"null", 403),
        (b"", 403),
        (b"https://good.test, https://evil.test", 403),
        (b"https://good.test", 101),
        (b"HTTPS://GOOD.TEST:443", 101),
    ]:
        data = request(b"GET /origin HTTP/1.1", b"Origin: " + origin)
        yield Attack(f"origin {origin.decode()!r}", data, (status,), target=b"/origin")
    both = request(b"GET /origin HTTP/1.1", b"Origin: https://good.test", b"Origin: https://evil.x")
    yield Attack("two origins", both, (403,))


def _behind() -> Iterator[Attack]:
    good = frame(TEXT, b"early") + frame(BINARY, bytes(70000))
    yield Attack("frames behind the head", request(behind=good), (101,), behind=good)
    ping = frame(PING, b"early")
    yield Attack("a ping behind the head", request(behind=ping), (101,), behind=ping)
    half = frame(BINARY, bytes(1000))[:500]
    yield Attack("half a frame behind the head", request(behind=half), (101,), behind=half)
    for name, bad, code in [
        ("an unmasked frame", frame(TEXT, b"x", masked=False), 1002),
        ("an unknown opcode", frame(0x5, b"x"), 1002),
        ("a reserved bit", frame(TEXT, b"x", rsv=2), 1002),
        ("a continuation", frame(CONTINUATION, b"x"), 1002),
        ("a fragmented ping", frame(PING, b"x", fin=False), 1002),
        ("a long Close", frame(CLOSE, bytes(126)), 1002),
        ("Close 1006", close_frame(1006), 1002),
        ("a request", SMUGGLED, 1002),
        ("an upgrade", request(), 1002),
        ("CRLF", b"\r\n", 1002),
        ("bytes of the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1002),
    ]:
        first = frame(TEXT, b"good")
        yield Attack(f"{name} behind the head", request(behind=bad), (101,), close=code)
        yield Attack(f"{name} behind a frame behind the head", request(behind=first + bad), (101,),
                     behind=first, close=code)
    yield Attack("requests in a row", SMUGGLED * 3, (404, 404, 404))
    yield Attack("an upgrade behind a request", SMUGGLED + request(), (404, 101))
    for name, data, status in [
        ("without a route", request(b"GET /nothing HTTP/1.1"), 404),
        ("with a bad key", request(key=None), 400),
        ("of another version", request(version=None), 426),
        ("from a bad origin", request(b"GET /origin HTTP/1.1", b"Origin: https://evil.test"), 403),
        ("that is malformed", with_line(b"X : y"), 400),
    ]:
        yield Attack(f"a request behind an upgrade {name}", data + SMUGGLED, (status,))
        yield Attack(f"an upgrade behind an upgrade {name}", data + request(), (status,))
        yield Attack(f"frames behind an upgrade {name}", data + good, (status,))
    # An upgrade is a GET, all else is a plain exchange, which keeps the connection.
    posted = request(b"POST /ws HTTP/1.1")
    yield Attack("a request behind a POST that names an upgrade", posted + SMUGGLED, (405, 404))
    yield Attack("an upgrade behind a POST that names an upgrade", posted + request(), (405, 101))
    yield Attack("frames behind a POST that names an upgrade", posted + good, (405, 400))
    for name, more in [("a request", SMUGGLED), ("an upgrade", request()), ("frames", good)]:
        yield Attack(f"{name} behind an upgrade that the upstream refuses", request(behind=more),
                     (403,), refusal=REFUSAL)


def _slow() -> Iterator[Attack]:
    for name, data in [
        ("nothing but a method", b"GET"),
        ("half a request line", b"GET /ws HT"),
        ("a request line", b"GET /ws HTTP/1.1\r\n"),
        ("half a field", b"GET /ws HTTP/1.1\r\nHost: gate"),
        ("all but the last byte", request()[:-1]),
        ("one CR", b"\r"),
        ("an empty line alone", b"\r\n"),
        ("an SSH greeting", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ]:
        yield Attack(f"slow: {name}", data, (408,), slow=True)


ATTACKS = [
    *_request_lines(),
    *_targets(),
    *_hosts(),
    *_fields(),
    *_framing(),
    *_bodies(),
    *_upgrades(),
    *_behind(),
    *_slow(),
]
