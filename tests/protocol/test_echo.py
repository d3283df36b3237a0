"""`builtin:echo` in conversation with a client that was not written here (`websockets`, without
its sockets): messages come back whole, memory stays bounded, the end is orderly."""

import random
import struct
import zlib

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from gateway import events
from gateway.engine.contract import QUEUE_HIGH, QUEUE_MAX
from gateway.events import Command, Event, Side
from gateway.protocol.echo import LINGER, EchoEndpoint

LINK = 7
HEAD = (
    b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)
FAREWELL = [
    events.Finish(Side.CLIENT), events.Read(Side.CLIENT), events.SetTimer("linger", 1 + LINGER)
]


class Wire:
    """An engine's side of the one link: obeys commands, wakes timers, counts what is queued.

    With `reads` off nobody takes what is sent, until `take`.
    """

    def __init__(self, *, reads: bool = True) -> None:
        self.echo = EchoEndpoint()
        self.reads = reads
        self.sent = b""
        self.queued = 0
        self.queued_most = 0
        self.held = True
        self.clogged = False
        self.finished = False
        self.closed = False
        self.timers: dict[str, float] = {}
        self.commands: list[Command] = []
        self._obey(self.echo.start())

    def _obey(self, commands: list[Command]) -> None:
        self.commands = commands
        for command in commands:
            assert not self.closed, "something after Close"
            match command:
                case events.Send(Side.CLIENT, data):
                    assert not self.finished, "something after Finish"
                    self.sent += data
                    self.queued += 0 if self.reads else len(data)
                    self.queued_most = max(self.queued_most, self.queued)
                case events.Read(Side.CLIENT):
                    self.held = False
                case events.Hold(Side.CLIENT):
                    self.held = True
                case events.Finish(Side.CLIENT):
                    self.finished = True
                case events.Close(Side.CLIENT):
                    self.closed = True
                case events.SetTimer(name, at):
                    self.timers[name] = at
                case _:
                    raise AssertionError(command)

    def tell(self, event: Event) -> list[Command]:
        """One event; gives the commands. What it makes due now is told, too."""
        self._obey(self.echo.handle(event))
        commands = self.commands
        while not self.closed and "go on" in self.timers:
            del self.timers["go on"]
            # In one batch with `Clogged` the timer may come first.
            self._obey(self.echo.handle(events.TimedOut(1.0, LINK, "go on")))
            if self.queued > QUEUE_HIGH and not self.clogged:
                self.clogged = True
                self._obey(self.echo.handle(events.Clogged(1.0, LINK)))
        return commands

    def receive(self, data: bytes) -> list[Command]:
        """Bytes of the far end."""
        return self.tell(events.Received(1.0, LINK, data))

    def take(self) -> None:
        """The far end takes all that is queued."""
        self.queued = 0
        if self.clogged:
            self.clogged = False
            self.tell(events.Cleared(1.0, LINK))


class Client:
    """A WebSocket client at the far end."""

    def __init__(self, wire: Wire, *, deflate: bool = False, **settings: object) -> None:
        extensions = [ClientPerMessageDeflateFactory(**settings)] if deflate else None  # type: ignore[arg-type]
        self.wire = wire
        self.protocol = ClientProtocol(
            parse_uri("ws://a/echo"), extensions=extensions, max_size=None,
            subprotocols=[Subprotocol("one"), Subprotocol("two")],
        )
        self._fed = 0
        self.messages: list[bytes] = []
        self.frames: list[Frame] = []
        self.protocol.send_request(self.protocol.connect())
        self.flush()
        assert self.protocol.handshake_exc is None
        assert self.protocol.subprotocol == "one"
        assert bool(self.protocol.extensions) is deflate

    def flush(self, size: int = 65536) -> None:
        """Send what the client has to say, in pieces, and read what comes back."""
        data = b"".join(self.protocol.data_to_send())
        for at in range(0, len(data), size):
            self.wire.receive(data[at : at + size])
            self.wire.take()
        self.read()

    def read(self) -> None:
        """Read what came back."""
        self.protocol.receive_data(self.wire.sent[self._fed :])
        self._fed = len(self.wire.sent)
        for event in self.protocol.events_received():
            if not isinstance(event, Frame):
                continue
            self.frames.append(event)
            if event.opcode in (Opcode.TEXT, Opcode.BINARY):
                self.messages.append(b"")
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.messages[-1] += event.data


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False) -> bytes:
    """A client's frame; the mask is all zeros."""
    first = opcode | fin << 7 | rsv1 << 6
    if len(payload) < 126:
        return bytes([first, 0x80 | len(payload)]) + bytes(4) + payload
    if len(payload) < 65536:
        return struct.pack("!BBH", first, 0xFE, len(payload)) + bytes(4) + payload
    return struct.pack("!BBQ", first, 0xFF, len(payload)) + bytes(4) + payload


def opened(extensions: bytes = b"") -> Wire:
    """A wire whose handshake is done."""
    wire = Wire()
    offer = b"Sec-WebSocket-Extensions: " + extensions + b"\r\n" if extensions else b""
    wire.receive(HEAD + offer + b"\r\n")
    assert wire.sent.startswith(SWITCHING)
    wire.sent = b""
    return wire


# --- The handshake --------------------------------------------------------------------------------


def test_the_handshake() -> None:
    """The first subprotocol that is offered; in pieces, and with frames behind it."""
    assert EchoEndpoint().start() == [events.Read(Side.CLIENT)]
    wire = Wire()
    head = HEAD + b"Sec-WebSocket-Protocol: b, a\r\n\r\n"
    for at in range(len(head) - 1):
        assert wire.receive(head[at : at + 1]) == []
    assert wire.receive(head[-1:] + frame(1, b"hi")) == [events.Send(
        Side.CLIENT, SWITCHING + b"Sec-WebSocket-Protocol: b\r\n\r\n\x81\x02hi"
    )]


@pytest.mark.parametrize(("offered", "agreed"), [
    (b"permessage-deflate", b"permessage-deflate"),
    (b"permessage-deflate; client_max_window_bits=8", b"permessage-deflate"),
    (b'x, permessage-deflate; server_max_window_bits="9"; client_no_context_takeover',
     b"permessage-deflate; client_no_context_takeover; server_max_window_bits=9"),
    (b"permessage-deflate; server_max_window_bits=8 ,permessage-deflate", b"permessage-deflate"),
    (b"permessage-deflate; server_no_context_takeover",
     b"permessage-deflate; server_no_context_takeover"),
    (b"permessage-deflate; server_max_window_bits=8", b""),
    (b"permessage-deflate; unknown", b""),
])
def test_deflate_is_agreed_on(offered: bytes, agreed: bytes) -> None:
    """The first offer that zlib can serve."""
    wire = Wire()
    wire.receive(HEAD + b"Sec-WebSocket-Extensions: " + offered + b"\r\n\r\n")
    line = b"Sec-WebSocket-Extensions: " + agreed + b"\r\n" if agreed else b""
    assert wire.sent == SWITCHING + line + b"\r\n"


@pytest.mark.parametrize(("data", "status"), [
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"426"),
    (HEAD.replace(b"13", b"8", 1) + b"\r\n", b"426"),
    (HEAD.replace(b"GET", b"PUT") + b"\r\n", b"405"),
    (HEAD.replace(b"dG", b"d", 1) + b"\r\n", b"400"),
    (HEAD + b"Content-Length: 3\r\n\r\n", b"400"),
    (b"\x00", b""),
    (b"\x00\x00", b"400"),
])
def test_what_is_no_handshake(data: bytes, status: bytes) -> None:
    """Is refused; then the far end's close is awaited."""
    wire = Wire()
    commands = wire.receive(data)
    if not status:
        assert commands == []
        return
    assert wire.sent.startswith(b"HTTP/1.1 " + status)
    assert commands[1:] == FAREWELL
    assert wire.receive(b"more") == []
    assert wire.tell(events.Finished(2.0, LINK)) == [events.Close(Side.CLIENT)]


# --- Messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    None,
    {},
    {"client_max_window_bits": True, "server_max_window_bits": 9},
    {"server_no_context_takeover": True, "client_no_context_takeover": True},
])
@pytest.mark.parametrize("size", [1, 100, 65536])
def test_messages_come_back(settings: dict[str, object] | None, size: int) -> None:
    """Of any size, cut anywhere, with and without deflate."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    client = Client(Wire(), deflate=settings is not None, **(settings or {}))
    sent = []
    for length in (0, 1, 125, 126, 3000, 0, 70_000 if size > 1 else 700):
        text = "".join(dice.choice("aé€😀") for _ in range(length)).encode()
        for data, send in ((text, client.protocol.send_text),
                           (dice.randbytes(length), client.protocol.send_binary)):
            send(data)
            client.flush(size)
            sent.append(data)
    assert client.messages == sent


@pytest.mark.parametrize("deflate", [False, True])
def test_fragments_go_back_as_they_come(*, deflate: bool) -> None:
    """Not one byte waits for the message's end but those of a cut character; pings between
    fragments are answered between fragments."""
    client = Client(Wire(), deflate=deflate)
    word = "wörld".encode()
    client.protocol.send_text(b"hello ", fin=False)
    client.flush()
    if not deflate:  # a compressor keeps what it likes until the end
        assert client.messages == [b"hello "]
    client.protocol.send_ping(b"ping")
    client.flush()
    client.protocol.send_continuation(word[:2], fin=False)
    client.flush()
    if not deflate:
        assert client.messages == [b"hello w"]
    client.protocol.send_continuation(word[2:], fin=True)
    client.flush()
    assert client.messages == [b"hello " + word]
    assert [one.data for one in client.frames if one.opcode is Opcode.PONG] == [b"ping"]


def test_a_message_without_an_end_is_not_collected() -> None:
    """2 MiB of one frame are back before it ends, and little of it is kept."""
    client = Client(Wire())
    header = frame(2, bytes(70_000))[:2] + struct.pack("!Q", 1 << 40) + bytes(4)
    client.wire.receive(header)
    for _ in range(32):
        client.wire.receive(bytes(65536))
        client.wire.take()
        client.read()
    assert len(client.messages[0]) == 32 * 65536
    assert not client.wire.held


# --- Limits ---------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A compressed message of 16 KiB that is 16 MiB."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = compressor.compress(bytes(16 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return frame(2, data[:-4], rsv1=True)


def stubborn() -> bytes:
    """A compressed message that is small only with a window larger than the echo may use."""
    dice = random.Random(1)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = compressor.compress(dice.randbytes(16_384) * 200) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return frame(2, data[:-4], rsv1=True)


@pytest.mark.parametrize("make", [bomb, stubborn])
def test_output_is_bounded(make: object) -> None:
    """However much a few bytes mean, no more is sent than an engine queues; input waits."""
    assert callable(make)
    data = make()
    wire = opened(b"permessage-deflate; server_max_window_bits=9")
    wire.reads = False
    turns = 0
    while data:
        piece, data = data[:65536], data[65536:]
        wire.receive(piece)
        while wire.held:
            turns += 1
            assert len(wire.echo._input) <= 65536
            wire.take()
            wire.tell(events.TimedOut(1.0, LINK, "go on"))
    assert wire.queued_most < QUEUE_MAX - QUEUE_HIGH
    if make is stubborn:
        assert turns > 10
        assert len(wire.sent) > 3_000_000


def test_a_clogged_link_holds() -> None:
    """Nothing is read or sent until it is cleared, then all."""
    wire = opened()
    assert wire.tell(events.Clogged(1.0, LINK)) == [events.Hold(Side.CLIENT)]
    assert wire.receive(frame(1, b"late")) == []
    assert wire.tell(events.TimedOut(1.0, LINK, "go on")) == []
    assert wire.tell(events.Cleared(1.0, LINK)) == [
        events.Send(Side.CLIENT, b"\x81\x04late"), events.Read(Side.CLIENT)
    ]


def test_fin_waits_for_what_is_held() -> None:
    """All that was said is said back before the end."""
    wire = opened()
    wire.tell(events.Clogged(1.0, LINK))
    wire.receive(frame(1, b"late"))
    assert wire.tell(events.Finished(1.0, LINK)) == []
    assert wire.tell(events.Cleared(1.0, LINK)) == [
        events.Send(Side.CLIENT, b"\x81\x04late"), events.Close(Side.CLIENT)
    ]


def test_a_flood_of_pings() -> None:
    """Is answered, at less than it costs to send."""
    wire = opened()
    flood = frame(9, b"x") * 9000
    wire.receive(flood)
    assert wire.sent == b"\x8a\x01x" * 9000


# --- Ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [
    b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xf5\xc3\xa9", b"\x03\xf6", b"\x03\xf6bye",
    b"\x0b\xb8", b"\x13\x87x",
])
def test_a_close_is_answered(payload: bytes) -> None:
    """With its own code and reason, 1014 too; then the far end closes first (RFC 6455 7.1.1)."""
    wire = opened()
    commands = wire.receive(frame(1, b"last") + frame(8, payload) + frame(1, b"never"))
    answer = b"\x88" + bytes([len(payload)]) + payload
    assert commands == [events.Send(Side.CLIENT, b"\x81\x04last" + answer), *FAREWELL]
    assert wire.tell(events.Finished(2.0, LINK)) == [events.Close(Side.CLIENT)]
    assert wire.tell(events.Closed(3.0, LINK, None)) == []


@pytest.mark.parametrize(("data", "code"), [
    (b"\x81\x02hi", 1002),                        # not masked
    (frame(3), 1002),
    (frame(0, b"x"), 1002),
    (frame(1, b"a", rsv1=True), 1002),
    (frame(9, b"x", fin=False), 1002),
    (frame(1, b"a", fin=False) + frame(1, b"b"), 1002),
    (frame(8, b"\x03"), 1002),
    (frame(8, b"\x03\xed"), 1002),                # 1005 is never sent
    (frame(8, b"\x03\xf7"), 1002),                # nor is 1015
    (frame(1, b"\xff"), 1007),
    (frame(1, b"\xe2\x82"), 1007),
    (frame(8, b"\x03\xe8\xff"), 1007),
    (frame(8, b"\x03\xf6\xff"), 1007),
])
def test_what_is_wrong_is_said(data: bytes, code: int) -> None:
    """With a code and no words."""
    wire = opened()
    commands = wire.receive(data)
    sent = commands[0]
    assert isinstance(sent, events.Send)
    assert sent.data.endswith(b"\x88\x02" + code.to_bytes(2, "big"))
    assert commands[1:] == FAREWELL
    assert wire.receive(b"more") == []


def test_broken_deflate() -> None:
    """Is data that is none: 1007."""
    wire = opened(b"permessage-deflate")
    wire.receive(frame(2, b"\xff\xff\xff", rsv1=True))
    assert wire.sent == b"\x88\x02\x03\xef"
    wire = opened(b"permessage-deflate")
    wire.receive(frame(9, b"x", rsv1=True))
    assert wire.sent == b"\x88\x02\x03\xea"


def test_a_far_end_that_does_not_close() -> None:
    """Is not waited for for ever; other timers mean nothing by then."""
    wire = opened()
    wire.receive(frame(8))
    assert wire.tell(events.TimedOut(1.0, LINK, "go on")) == []
    assert wire.tell(events.TimedOut(6.0, LINK, "linger")) == [events.Close(Side.CLIENT)]
    assert wire.tell(events.Finished(6.0, LINK)) == []


@pytest.mark.parametrize("behind", [b"", frame(1, b"hi"), frame(1, b"hi")[:3]])
def test_fin_without_close(behind: bytes) -> None:
    """Closes, after what was whole."""
    wire = opened()
    wire.receive(behind or frame(9))
    assert wire.tell(events.Finished(1.0, LINK)) == [events.Close(Side.CLIENT)]


def test_fin_inside_the_handshake() -> None:
    """Likewise."""
    wire = Wire()
    wire.receive(HEAD)
    assert wire.tell(events.Finished(1.0, LINK)) == [events.Close(Side.CLIENT)]


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + frame(8)])
def test_a_lost_link(data: bytes) -> None:
    """Is the end, in every state."""
    wire = Wire()
    if data:
        wire.receive(data)
    assert wire.tell(events.Closed(1.0, LINK, None)) == []
    assert wire.tell(events.Closed(1.0, LINK, None)) == []


def test_any_frames_get_an_answer_and_no_exception() -> None:
    """Random bytes behind a handshake: echoes and one Close at most, never an exception."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(300):
        wire = opened(dice.choice([b"", b"permessage-deflate"]))
        for _ in range(dice.randrange(1, 5)):
            if not wire.closed:
                payload = dice.randbytes(dice.randrange(140))
                good = frame(dice.randrange(16), payload, fin=dice.random() < 0.8,
                             rsv1=dice.random() < 0.3)
                wire.receive(dice.choice([good, dice.randbytes(20)]))
        if not wire.closed:
            wire.tell(events.Finished(1.0, LINK))
        assert wire.closed
