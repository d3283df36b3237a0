"""Inputs that come near the truth: well-formed ones, and such with a few faults.

`random` drives them, so that the same code serves `hypothesis` (which hands its own `Random`) and
the measurements of work. Each function gives one input of the target that has its name.
"""

from collections.abc import Callable
from random import Random

from gateway.control.config_schema import DEFAULTS, GATEWAY, LISTENER, ROUTE, UPSTREAM
from gateway.frames import build_frame, build_header, unmask

FIELDS = (
    b"Host: example.com", b"Upgrade: websocket", b"Connection: Upgrade", b"Connection: keep-alive",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13", b"X: \xff\x80",
    b"Origin: https://example.com", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"A:b",
    b"Sec-WebSocket-Protocol: chat, superchat", b"Empty:", b"Cookie: a=b; c=d", b" folded",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", b"Host: [::1]:80",
    b"Name : value", b"Content-Length: +5", b"Transfer-Encoding: gzip, chunked", b"\x00: nul",
)
REQUEST_LINES = (
    b"GET /chat HTTP/1.1", b"GET / HTTP/1.0", b"GET /a?b=c HTTP/1.1", b"POST /a%2Fb HTTP/1.1",
    b"GET http://example.com/a HTTP/1.1", b"GET  / HTTP/1.1", b"OPTIONS * HTTP/1.1",
    b"GET /a#b HTTP/1.1", b"GET / HTTP/2.0", b"CONNECT a:80 HTTP/1.1", b"GET /\xff HTTP/1.1",
)
STATUS_LINES = (
    b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 200 OK", b"HTTP/1.1 103", b"HTTP/1.0 404 ",
    b"HTTP/1.1 100 Continue", b"HTTP/1.1 99 low", b"HTTP/2 200", b"HTTP/1.1 302 \xc3\xa9",
)
LINE_ENDS = (b"\r\n",) * 30 + (b"\n", b"\r", b"\r\r\n")


def mutate(chance: Random, data: bytes, faults: int | None = None) -> bytes:
    """So many faults, by default often none: bytes changed, taken out, put in, doubled."""
    out = bytearray(data)
    if faults is None:
        faults = chance.choice((0, 0, 0, 1, 1, 2, 4))
    for _ in range(faults):
        if not out:
            break
        at = chance.randrange(len(out))
        kind = chance.randrange(4)
        if kind == 0:
            out[at] = chance.randrange(256)
        elif kind == 1:
            del out[at : at + chance.randrange(1, 9)]
        elif kind == 2:
            out[at:at] = chance.randbytes(chance.randrange(1, 5))
        else:
            out[at:at] = out[at : at + chance.randrange(1, 30)]
    return bytes(out)


def _head(chance: Random, start_lines: tuple[bytes, ...], always: bytes) -> bytes:
    lines = [chance.choice(start_lines), *([always] if chance.random() < 0.8 else [])]
    lines += [chance.choice(FIELDS) for _ in range(chance.randrange(6))]
    head = b"".join(line + chance.choice(LINE_ENDS) for line in lines)
    return head + (b"\r\n" if chance.random() < 0.9 else b"")


def request(chance: Random) -> bytes:
    """A request's head with what is behind it."""
    head = _head(chance, REQUEST_LINES, FIELDS[0])
    before = b"\r\n" if chance.random() < 0.1 else b""
    return mutate(chance, before + head + chance.randbytes(chance.randrange(3)))


def response(chance: Random) -> bytes:
    """Answers' heads, interim ones before the last."""
    count = chance.choice((1, 1, 2, 3))
    heads = [_head(chance, STATUS_LINES, FIELDS[1]) for _ in range(count)]
    return mutate(chance, b"".join(heads) + chance.randbytes(chance.randrange(3)))


def stream(chance: Random, masked: bool, count: int) -> bytes:
    """Frames as one side sends them: data whole and fragmented, control frames between them."""
    out = []
    fragmented = False
    for _ in range(count):
        mask = chance.randbytes(4) if masked else b""
        payload = chance.choice((b"", b"a", "é€😀".encode(), b"x" * 130, chance.randbytes(9)))
        if chance.random() < 0.25:
            opcode = chance.choice((9, 9, 10, 10, 8))
            body = payload[:125]
            if opcode == 8:
                body = chance.choice((b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x03"))
            out.append(build_frame(opcode, body, mask))
            continue
        fin = chance.random() < 0.6
        opcode = 0 if fragmented else chance.choice((1, 2))
        header = build_header(opcode, len(payload), mask, fin=fin)
        out.append(header + (unmask(payload, mask) if mask else payload))
        fragmented = not fin
    return b"".join(out)


def frames(chance: Random) -> bytes:
    """The choice of a cursor, and a stream for it."""
    choice = chance.randrange(32)
    body = mutate(chance, stream(chance, bool(choice & 1), chance.randrange(1, 8)))
    return bytes((choice,)) + body


SAMPLES: dict[str, Callable[[Random], bytes]] = {
    "request": request,
    "response": response,
    "frames": frames,
}


def relay(chance: Random) -> bytes:
    """The choice of rules, and a script of facts."""
    out = [bytes((chance.randrange(256),))]
    for _ in range(chance.randrange(1, 25)):
        side = chance.randrange(2)
        kind = chance.choices(range(8), weights=(4, 6, 6, 4, 3, 1, 0.5, 1))[0]
        fact = bytes((chance.randrange(16) << 4 | side << 3 | kind,))
        if kind == 0:
            part = stream(chance, masked=not side, count=1)
            part = mutate(chance, part)[: chance.choice((1, 3, 7, 255))]
            fact += bytes((len(part),)) + part
        elif kind in (1, 2, 3, 4):
            fact += chance.randbytes(2 if kind < 3 else 1)
        out.append(fact)
    return b"".join(out)


SAMPLES["relay"] = SAMPLES["core"] = relay


EXTENSIONS = (
    b"permessage-deflate", b"permessage-deflate; client_max_window_bits", b"", b";",
    b"permessage-deflate; server_max_window_bits=10", b"x-webkit-deflate-frame",
    b"permessage-deflate; server_max_window_bits=16", b"foo; bar=1; baz", b'foo; q="a\\"b"',
    b'permessage-deflate; server_max_window_bits="12"', b"permessage-deflate;q",
    b"permessage-deflate;client_max_window_bits=8",
    b"permessage-deflate; server_no_context_takeover",
)
PROTOCOLS = (b"chat", b"superchat", b"mqtt", b"graphql-ws", b"a b", b"", b"v1.x")


def offers(chance: Random) -> bytes:
    """Offers of a client, and what an upstream chose."""

    def several(pool: tuple[bytes, ...], most: int) -> bytes:
        comma = chance.choice((b", ", b",", b" , ", b",,"))
        return comma.join(chance.choice(pool) for _ in range(chance.randrange(most + 1)))

    lines = [
        several(EXTENSIONS, 3),
        several(EXTENSIONS, 1),
        several(PROTOCOLS, 3),
        several(EXTENSIONS, 1),
        several(PROTOCOLS, 1),
        chance.choice((b"", b"websocket", b"WebSocket", b"h2c", b"websocket, x")),
    ]
    return mutate(chance, b"\n".join(lines))


VALUES = (
    '"5s"', '"off"', '"500ms"', '"64KiB"', '"1MiB"', "1000", "0", "-1", "true", '""', "1.5", "[]",
    '"*"', '"/*"', '"/rooms/{room}"', '"/a/%2F/b"', '"/x"', '"chat.example.com"', '"*.example.com"',
    '"ws://127.0.0.1:9000"', '"tcp://127.0.0.1:5900"', '"builtin:echo"', '"builtin:page"',
    '"rooms"', '"ws+unix:/run/app.sock:/path"', '"tcp+unix:/run/app.sock"', '["ws://a:1", "ws://b:2"]',
    '[{ url = "ws://a:1", weight = 2 }]', '"127.0.0.1:0"', '"unix:/run/g.sock"', '["[::]:8080"]',
    '{ X-Tenant = "acme" }', '{ v = "*" }', '["https://example.com", "null"]', '["10.0.0.0/8"]',
    '"hash"', '"path:room"', '"least-connections"', '"/v2/{room}/{*}"', '"text"', '"binary"',
    '"uvloop"', '"auto"', '"json"', "4000", "1001", '["mqtt"]', '"upstream"', '"\u00e9\u0000"',
    "1979-05-27T07:32:00Z", '"0660"', "nan", "9" * 30,
)
HEADINGS = (
    "[gateway]", "[[listener]]", "[defaults]", "[[route]]", "[[route]]", "[upstream.rooms]",
    "[upstream.b]", "[routes]", "[[gateway]]",
)
TABLES = (GATEWAY, LISTENER, ROUTE, DEFAULTS, UPSTREAM)
OTHER_KEYS = ("colour", "host.x", '"é"', "workers", "tls", "nmae")


def _table_line(chance: Random, keys: tuple[str, ...]) -> str:
    key = chance.choice(keys) if chance.random() < 0.95 else chance.choice(OTHER_KEYS)
    return f"{key} = {chance.choice(VALUES)}"


def table(chance: Random) -> bytes:
    """A table of known keys, with values that may fit, and faults in its text."""
    lines = ["[gateway]", 'listen = "127.0.0.1:0"', "[[route]]", 'name = "a"', 'upstream = "rooms"',
             "[upstream.rooms]", 'endpoints = ["ws://127.0.0.1:9000"]']
    if chance.random() < 0.2:
        lines = []
    sections = {section.title: tuple(section.keys) for section in TABLES}
    for _ in range(chance.randrange(4)):
        heading = chance.choice(HEADINGS)
        title = "[upstream.NAME]" if heading.startswith("[upstream") else heading
        keys = sections.get(title, ("x",))
        lines.append(heading)
        if title == "[[route]]":
            lines.append(f'name = "r{chance.randrange(9)}"')
            lines.append(f"upstream = {chance.choice(VALUES[19:24])}")
        lines += [_table_line(chance, keys) for _ in range(chance.randrange(4))]
    text = "\n".join(lines) + "\n"
    return mutate(chance, text.encode()) if chance.random() < 0.3 else text.encode()


SAMPLES.update(offers=offers, table=table)
