"""Handshakes in the simulation: what clients ask and upstreams answer, good, rude and broken."""

import base64
import hashlib
import random
from dataclasses import dataclass, field

from simulation.plans import Plan, cut

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


def accept_key(key: bytes) -> bytes:
    """RFC 6455 4.2.2."""
    return base64.b64encode(hashlib.sha1(key + GUID).digest())


def field_of(head: bytes, name: bytes) -> bytes:
    """The first field of this name (in lower case), or nothing."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


@dataclass(slots=True)
class Greeting:
    """What a client says first."""

    kind: str
    path: str
    pieces: list[tuple[float, bytes]]
    methods: list[bytes]               # of the requests in it
    plan: Plan
    key: bytes = b""
    early: bool = False                # it does not wait for the 101
    is_rude: bool = False              # the head is not whole: the plan's deeds follow at once
    upgrades: bool = True              # the last request is a sound upgrade


def draw_greeting(
    dice: random.Random, kind: str, path: str, plan: Plan, *, slow: bool = True
) -> Greeting:
    """A greeting of this kind: upgrade, plain, hostile, half."""
    key = base64.b64encode(dice.randbytes(16))
    head = _upgrade(dice, path, key)
    methods: list[bytes] = []
    data = b""
    upgrades = kind != "hostile"
    if kind == "plain":
        for _ in range(dice.choice([1, 1, 2, 4])):
            method, request = _plain(dice, path)
            methods.append(method)
            data += request
        upgrades = dice.random() < 0.5
    if kind == "hostile":
        head = _broken(dice, path, key, head)
    if upgrades or kind == "hostile":
        data += head
        methods.append(b"GET")
    if kind == "half":
        data = data[: dice.randrange(len(data))]
    return Greeting(
        kind, path, cut(dice, data, slow=slow) if data else [], methods, plan, key,
        early=kind == "upgrade" and dice.random() < 0.35,
        is_rude=kind == "half", upgrades=upgrades and kind != "half",
    )


def _upgrade(dice: random.Random, path: str, key: bytes) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1".encode(), b"Host: example.com", b"Upgrade: websocket",
        b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + key,
    ]
    if dice.random() < 0.35:
        lines.append(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    if dice.random() < 0.3:
        lines.append(b"Sec-WebSocket-Protocol: chat, binary")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _plain(dice: random.Random, path: str) -> tuple[bytes, bytes]:
    """A request that is no upgrade: its method, and itself."""
    target = dice.choice([path, "/page", "/nowhere", "/page"])
    method = dice.choice(["GET", "GET", "HEAD", "POST", "DELETE"])
    lines = [f"{method} {target} HTTP/1.1", "Host: example.com"]
    body = b""
    if method == "POST":
        body = dice.randbytes(dice.choice([0, 5, 3000]))
        if dice.random() < 0.5:
            lines.append(f"Content-Length: {len(body)}")
        else:
            lines.append("Transfer-Encoding: chunked")
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    if dice.random() < 0.15:
        lines.append("Connection: close")
    return method.encode(), "\r\n".join([*lines, "", ""]).encode() + body


def _broken(dice: random.Random, path: str, key: bytes, good: bytes) -> bytes:
    """A head that must not be upgraded."""
    kind = dice.randrange(10)
    if kind == 0:
        flipped = bytearray(good)
        for _ in range(6):
            flipped[dice.randrange(16, len(flipped))] = dice.randrange(256)
        return bytes(flipped)
    return [
        good.replace(b"Version: 13", b"Version: 8"),
        good.replace(key, b"short"),
        good.replace(b"Sec-WebSocket-Key: " + key + b"\r\n", b""),
        good.replace(b"Host: example.com\r\n", b""),
        good.replace(b"Host:", b"Host: other\r\nHost:"),
        good.replace(b"Connection: Upgrade",
                     b"Connection: Upgrade\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"),
        good.replace(path.encode(), path.encode() + b"/../x"),
        good.replace(b"Host:", b"X: " + b"a" * 20_000 + b"\r\nHost:"),
        dice.randbytes(60),
    ][kind - 1]


@dataclass(slots=True)
class Reception:
    """What an upstream that speaks WebSocket answers."""

    kind: str
    wait: float
    plan: Plan
    dice: random.Random
    interims: int = 0
    deflate: bool = False
    twice: bool = False
    slow: bool = False
    status: int = 403
    body: bytes = b""
    text: bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    deed: str = ""                     # behind an answer that is not an upgrade
    deed_wait: float = 0.0
    fields: list[bytes] = field(default_factory=list)

    @property
    def is_accepting(self) -> bool:
        """It answers a sound 101."""
        return self.kind == "accept"

    def answer(self, accept: bytes, *, deflate: bool) -> list[tuple[float, bytes]]:
        """Its answer, in pieces; nothing where it does not answer."""
        dice = self.dice
        if self.deed or self.kind == "silent" or self.kind.endswith("first"):
            return []
        if self.kind == "wrong key":
            accept = accept_key(b"another")
        data = INTERIM * self.interims
        if self.kind in ("accept", "wrong key", "odd protocol"):
            lines = [
                b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade",
                b"Sec-WebSocket-Accept: " + accept,
            ]
            if deflate:
                lines.append(b"Sec-WebSocket-Extensions: permessage-deflate")
            if self.kind == "odd protocol":
                lines.append(b"Sec-WebSocket-Protocol: nobody-asked")
            data += b"\r\n".join(lines) + b"\r\n\r\n"
        elif self.kind == "garbage":
            data += dice.randbytes(100)
        else:
            data += b"HTTP/1.1 %d No\r\nX-Reason: none\r\n" % self.status
            data += self._framed_body()
        return cut(dice, data, slow=self.slow)

    def _framed_body(self) -> bytes:
        body = self.body
        if self.kind == "refuse":
            return b"Content-Length: %d\r\n\r\n" % len(body) + body
        if self.kind == "refuse chunked":
            half = len(body) // 2
            parts = [part for part in (body[:half], body[half:]) if part]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
            return b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        if self.kind == "refuse until fin":
            return b"\r\n" + body
        assert self.kind == "refuse cut", self.kind
        return b"Content-Length: %d\r\n\r\n" % (len(body) + 10) + body


_KINDS = {
    "accept": 100, "refuse": 4, "refuse chunked": 3, "refuse until fin": 2, "refuse cut": 6,
    "silent": 2, "fin": 1, "reset": 1, "close": 1, "vanish": 1, "wrong key": 2, "garbage": 2,
    "odd protocol": 1, "fin first": 1, "reset first": 1, "close first": 1, "garbage first": 1,
}


def draw_reception(dice: random.Random, plan: Plan) -> Reception:
    """Mostly an upgrade."""
    kind = dice.choices(list(_KINDS), list(_KINDS.values()))[0]
    deed = kind if kind in ("fin", "reset", "close", "vanish") else ""
    if kind == "refuse until fin":
        deed = dice.choice(["fin", "fin", "reset"])
    if kind == "refuse cut":
        deed = dice.choice(["fin", "reset", ""])
    return Reception(
        kind,
        dice.choice([0.0, 0.0, 0.0, 0.01, 0.4, 3.0, 20.0]),
        plan,
        dice,
        interims=dice.choice([0, 0, 0, 0, 1, 3, 8, 9]),
        deflate=dice.random() < 0.6,
        twice=dice.random() < 0.03,
        slow=dice.random() < 0.3,
        status=dice.choice([403, 404, 426, 503, 200]),
        body=dice.randbytes(dice.choice([0, 20, 3000, 200_000])),
        deed=deed,
        deed_wait=dice.choice([0.0, 0.0, 0.5]),
    )


