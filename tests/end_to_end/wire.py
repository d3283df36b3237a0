"""Bytes and sockets of the far ends: WebSocket frames, heads, and a socket that keeps its past.

Written from the RFCs and not from the gateway's code, so that a misreading shared by both is
unlikely. Everything blocks, with a limit (`PATIENCE`), and a test drives both far ends in its own
thread: what happens, happens in the order in which it is written.
"""

import base64
import contextlib
import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

PATIENCE = 10.0  # seconds that any one step may take before the test fails
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def accept_key(key: bytes) -> bytes:
    """The value of Sec-WebSocket-Accept for a key (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + GUID).digest())


def mask_bytes(payload: bytes, mask: bytes) -> bytes:
    """The payload XORed with the repeated mask; its own inverse."""
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length_bits: int | None = None,
) -> bytes:
    """One frame (RFC 6455 5.2). `rsv` is the three bits as a number, `length_bits` (7, 16, 64)
    forces a form of the length that may be longer than need be."""
    size = len(payload)
    form = length_bits or (7 if size < 126 else 16 if size < 65536 else 64)
    short = size if form == 7 else 126 if form == 16 else 127
    head = bytes([fin << 7 | rsv << 4 | opcode, masked << 7 | short])
    head += b"" if form == 7 else struct.pack("!H" if form == 16 else "!Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + mask_bytes(payload, mask)


def close_frame(code: int | None = None, reason: bytes = b"", *, masked: bool = True) -> bytes:
    """A Close frame; without a code its payload is empty."""
    payload = b"" if code is None else struct.pack("!H", code) + reason
    return frame(CLOSE, payload, masked=masked)


class Frame(NamedTuple):
    """A frame as it arrived, its payload unmasked."""

    opcode: int
    payload: bytes
    fin: bool
    rsv: int
    masked: bool

    @property
    def code(self) -> int | None:
        """The code of a Close frame, None where it has none."""
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None


@dataclass
class Head:
    """A start line and its fields, as they arrived."""

    raw: bytes
    start: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start, *lines = self.raw[:-4].split(b"\r\n")
        for line in lines:
            name, colon, value = line.partition(b":")
            assert colon, f"a field without a colon: {line!r}"
            self.fields.append((name, value.strip(b" \t")))

    @property
    def status(self) -> int:
        """The status of an answer."""
        version, status, *_ = self.start.split(b" ")
        assert version == b"HTTP/1.1", self.start
        return int(status)

    @property
    def target(self) -> bytes:
        """The target of a request."""
        return self.start.split(b" ")[1]

    def all(self, name: bytes) -> list[bytes]:
        """Every value of the fields of that name, in order."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def get(self, name: bytes) -> bytes | None:
        """The one value of that name, None if there is none; two of it fail the test."""
        values = self.all(name)
        assert len(values) < 2, f"{name!r} stands twice in {self.raw!r}"
        return values[0] if values else None


class Wire:
    """One end of a connection. All that came is kept in `received`, also after it was parsed."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.socket.settimeout(PATIENCE)
        if end.family != socket.AF_UNIX:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.parsed = 0
        self.head: Head | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Out ---

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def send_anyway(self, data: bytes) -> bool:
        """Send what can be sent; False if the far end had enough before the end."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    @contextlib.contextmanager
    def sending(self, data: bytes) -> Iterator[None]:
        """Send in a thread while the block reads; for more than the kernels' buffers hold."""
        thread = threading.Thread(target=self.send_anyway, args=(data,))
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def finish(self) -> None:
        """Half-close: FIN."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST; a Unix socket has none and just closes."""
        if self.socket.fileno() >= 0 and self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close; harmless when it is closed already."""
        self.socket.close()

    # --- In ---

    def _more(self) -> bool:
        data = self.socket.recv(262144)
        self.received += data
        return bool(data)

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes."""
        while len(self.received) - self.parsed < size:
            assert self._more(), f"ended after {bytes(self.received[self.parsed:])[:200]!r}"
        data = bytes(self.received[self.parsed : self.parsed + size])
        self.parsed += size
        return data

    def until(self, mark: bytes) -> bytes:
        """The next bytes, up to and with `mark`."""
        while (at := self.received.find(mark, self.parsed)) < 0:
            assert self._more(), f"ended after {bytes(self.received[self.parsed:])[:200]!r}"
        return self.exactly(at + len(mark) - self.parsed)

    def read_head(self) -> Head:
        """The next head, with its empty line."""
        self.head = Head(self.until(b"\r\n\r\n"))
        return self.head

    def read_body(self, head: Head, *, method: str = "GET") -> bytes:
        """The content that belongs to this answer (RFC 9112 6.3)."""
        if method == "HEAD" or head.status in (204, 304) or head.status < 200:
            return b""
        if head.get(b"Transfer-Encoding") is not None:
            body = b""
            while size := int(self.until(b"\r\n").split(b";")[0], 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            while self.until(b"\r\n") != b"\r\n":
                pass
            return body
        if (length := head.get(b"Content-Length")) is not None:
            return self.exactly(int(length))
        return self.rest()

    def read_answer(self, *, method: str = "GET") -> tuple[Head, bytes]:
        """The next answer, its content decoded."""
        head = self.read_head()
        return head, self.read_body(head, method=method)

    def read_frame(self) -> Frame:
        """The next frame."""
        first, second = self.exactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self.exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.exactly(8))
        masked = bool(second & 0x80)
        mask = self.exactly(4) if masked else b""
        payload = self.exactly(size)
        payload = mask_bytes(payload, mask) if masked else payload
        return Frame(first & 0xF, payload, bool(first & 0x80), first >> 4 & 7, masked)

    def read_close(self) -> Frame:
        """The next frame, which has to be a Close."""
        got = self.read_frame()
        assert got.opcode == CLOSE, f"a Close was expected, {got!r} came"
        return got

    def rest(self) -> bytes:
        """All that comes until FIN. Raises ConnectionResetError where the end is an RST."""
        while self._more():
            pass
        return self.exactly(len(self.received) - self.parsed)

    def end(self) -> str:
        """Read on to the end, and say how it came: "fin" or "reset"."""
        try:
            while self._more():
                pass
        except ConnectionResetError:
            return "reset"
        return "fin"

    def expect_fin(self) -> None:
        """Nothing more but FIN may come."""
        left = self.rest()
        assert not left, f"{left[:200]!r} came where the end was expected"

    def expect_reset(self) -> None:
        """The end has to come as RST."""
        assert self.end() == "reset", "FIN came where RST was expected"

    def silent(self, seconds: float) -> bool:
        """True if nothing comes for so long; use it only to show that nothing happens."""
        if len(self.received) > self.parsed:
            return False
        readable, _, _ = select.select([self.socket], [], [], seconds)
        return not readable


# --- The upstream --------------------------------------------------------------------------------


class Upstream:
    """A listening socket. The test takes its connections by `accept` and plays the service."""

    def __init__(self, address: str = "127.0.0.1", *, path: Path | None = None) -> None:
        if path is not None:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(str(path))
        else:
            self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            self.socket.bind((address, 0))
        self.path = path
        self.address = address
        self.socket.listen(256)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.socket.getsockname()[1])

    def url(self, scheme: str, path: str = "") -> str:
        """Its address as a table has it."""
        if self.path is not None:
            return f"{scheme}+unix:{self.path}" + (f":{path}" if path else "")
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{scheme}://{host}:{self.port}{path}"

    def accept(self, seconds: float = PATIENCE) -> Wire:
        """The next connection of the gateway."""
        self.socket.settimeout(seconds)
        return Wire(self.socket.accept()[0])

    def waiting(self, seconds: float = 0.0) -> bool:
        """True if a connection is there to accept."""
        return bool(select.select([self.socket], [], [], seconds)[0])

    def forget(self) -> None:
        """Throw away connections that nobody accepted."""
        while self.waiting():
            self.accept().reset()

    def close(self) -> None:
        """Stop listening: from now on connections are refused."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def switching(request: Head, *fields: bytes) -> bytes:
    """The 101 that belongs to this request, with these further field lines."""
    key = request.get(b"Sec-WebSocket-Key")
    assert key is not None, request.raw
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept_key(key),
        *fields,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@contextlib.contextmanager
def serving(upstream: Upstream, serve: Callable[[Wire], None]) -> Iterator[None]:
    """Let a thread serve each connection of `upstream`, for clients that keep this thread busy.

    Ends when the block does: the listening socket is closed, and so are the connections. What a
    far end does to `serve` (resets, ends) is its business; an assertion in it is raised here.
    """
    wires: list[Wire] = []
    failures: list[AssertionError] = []
    threads: list[threading.Thread] = []

    def one(wire: Wire) -> None:
        try:
            serve(wire)
        except (OSError, ValueError):
            pass
        except AssertionError as failure:
            failures.append(failure)

    def loop() -> None:
        while True:
            try:
                wire = upstream.accept(seconds=60)
            except OSError:
                return
            wires.append(wire)
            thread = threading.Thread(target=one, args=(wire,))
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=loop)
    acceptor.start()
    try:
        yield
    finally:
        # shutdown wakes the accept of a listening socket on Linux; close alone does not.
        with contextlib.suppress(OSError):
            upstream.socket.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        for wire in wires:
            with contextlib.suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for wire in wires:
            wire.close()
        upstream.close()
    if failures:
        raise failures[0]


def echo_frames(wire: Wire) -> None:
    """Serve a WebSocket echo: every data frame back as it came, pings and Close answered."""
    wire.send(switching(wire.read_head()))
    while True:
        got = wire.read_frame()
        answer = PONG if got.opcode == PING else got.opcode
        if got.opcode != PONG:
            wire.send(frame(answer, got.payload, fin=got.fin, masked=False))
        if got.opcode == CLOSE:
            wire.finish()
            wire.end()
            return


def echo_bytes(wire: Wire) -> None:
    """Serve a byte echo until FIN, then FIN."""
    while data := wire.socket.recv(65536):
        wire.socket.sendall(data)
    wire.finish()


# --- The client ----------------------------------------------------------------------------------


def connect(address: tuple[str, int] | str) -> Wire:
    """A client's connection to an address of the gateway; a string is a Unix path."""
    if isinstance(address, str):
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(PATIENCE)
        end.connect(address)
        return Wire(end)
    return Wire(socket.create_connection(address, timeout=PATIENCE))


def upgrade(
    target: str = "/ws",
    *fields: str,
    host: str = "gateway.test",
    key: bytes | None = KEY,
    version: str | None = "13",
    method: str = "GET",
) -> bytes:
    """The request of a WebSocket client, with these further field lines."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += ["Connection: Upgrade", "Upgrade: websocket"]
    lines += [] if key is None else [f"Sec-WebSocket-Key: {key.decode('latin-1')}"]
    lines += [] if version is None else [f"Sec-WebSocket-Version: {version}"]
    return ("\r\n".join([*lines, *fields]) + "\r\n\r\n").encode("latin-1")


def plain(
    target: str = "/", *fields: str, method: str = "GET", host: str = "gateway.test"
) -> bytes:
    """A request that is no upgrade, with these further field lines."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def wait_for(what: Callable[[], bool], *, seconds: float = PATIENCE, message: str = "") -> None:
    """Look again and again until it is so; for facts of the kernel that nobody announces."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, message or "waited in vain"
        time.sleep(0.005)
