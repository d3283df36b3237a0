"""`builtin:echo`: a WebSocket server that says back what it hears, on wsproto.

It is the far end of a socket pair behind the gateway's own relay, for trying things out: events
in, commands out, like a session. Its one link is the client's side.

Laws of this file:

- A message is never collected: what has arrived of it goes back as a fragment.
- Output is bounded, whatever comes in. A byte of compressed input can mean a thousand of output,
  so compressed input is taken in small pieces, and the rest waits until what went out has left.
- After the last word the link is half-closed, and what still comes is read and thrown away until
  the far end closes: a close with unread bytes would destroy that word.
"""

import enum

from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import (
    CloseReason,
    Frame,
    FrameDecoder,
    FrameProtocol,
    Opcode,
    ParseFailed,
    RsvBits,
)

from gateway import events
from gateway.errors import ClientError
from gateway.events import Command, Event, Side
from gateway.protocol import http1, websocket

HEAD_MAX = 1024 * 1024        # the gateway made the head: it is as large as a listener lets in
LINGER = 5.0                  # seconds until a far end that does not close is closed
FRAGMENT = 16 * 1024          # bytes: what arrived together goes back together, up to this
# Input is taken in pieces until the output of this turn reaches OUTPUT_PAUSE. Deflate makes at
# most 1032 bytes of one, so a piece gives up to 129 KiB, and two turns, before an engine can say
# `Clogged`, stay within what it queues for a link (512 KiB).
PIECE = 32 * 1024
DEFLATED_PIECE = 128
OUTPUT_PAUSE = 64 * 1024
CLOSE_1014 = (1014).to_bytes(2, "big")


class _State(enum.Enum):
    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    LINGERING = enum.auto()   # the last word is out; only the far end's close is awaited
    CLOSING = enum.auto()     # closing is ordered
    OVER = enum.auto()


class EchoEndpoint:
    """One echo. Feed `start` and `handle`; obey what they return, in order."""

    def __init__(self) -> None:
        self._state = _State.HANDSHAKE
        self._commands: list[Command] = []
        self._reader: http1.RequestReader | None = http1.RequestReader(HEAD_MAX)
        self._frames = _Frames(client=False, extensions=[])
        self._piece = PIECE              # bytes of input taken at once
        self._input = bytearray()        # what waits for output to leave
        self._output: list[bytes | bytearray] = []
        self._output_size = 0
        self._said: list[bytes | str] = []  # parts of one message that go back as one fragment
        self._said_size = 0
        self._held = False
        self._clogged = False
        self._finished = False           # the far end has nothing more to say

    # --- Called by the worker ----------------------------------------------------------------

    def start(self) -> list[Command]:
        """The first commands."""
        return [events.Read(Side.CLIENT)]

    def handle(self, event: Event) -> list[Command]:
        """One event of the link."""
        if isinstance(event, events.Closed):
            self._state = _State.OVER
        elif self._state is _State.LINGERING:
            if isinstance(event, events.Finished) or (
                isinstance(event, events.TimedOut) and event.name == "linger"
            ):
                self._close()
        elif self._state in (_State.HANDSHAKE, _State.OPEN):
            self._note(event)
            if self._state is _State.HANDSHAKE:
                self._shake_hands(event.at)
            if self._state is _State.OPEN:
                self._pump(event.at)
        commands, self._commands = self._commands, []
        return commands

    # --- Inside ------------------------------------------------------------------------------

    def _order(self, command: Command) -> None:
        self._commands.append(command)

    def _note(self, event: Event) -> None:
        """Remember what an event says. Another timer than "linger" only wakes us."""
        match event:
            case events.Received():
                self._input += event.data
            case events.Finished():
                self._finished = True
            case events.Clogged():
                self._clogged = True
            case events.Cleared():
                self._clogged = False

    def _shake_hands(self, at: float) -> None:
        """Answer the handshake, once it is whole."""
        assert self._reader is not None
        data = bytes(self._input)
        self._input.clear()
        try:
            request = self._reader.feed(data)
            if request is not None:
                self._accept(request)
            elif self._finished:
                self._close()
        except ClientError as error:
            body = f"{error.detail}\n".encode()
            self._say(http1.build_response(error.status, error.fields, body))
            self._linger(at)

    def _accept(self, request: http1.Request) -> None:
        """Open the WebSocket. Raises ClientError."""
        websocket.check_content(request)
        websocket.check_method(request)
        websocket.check_upgrade(request)
        websocket.check_version(request)
        websocket.check_key(request)
        chosen = next(iter(websocket.offered_subprotocols(request)), "")
        extensions = _choose_deflate(websocket.offered_extensions(request))
        answer = websocket.Answer(subprotocol=chosen, extensions=extensions)
        self._say(websocket.client_answer(request, answer))
        if extensions:
            deflate = _Deflate()
            deflate.finalize(extensions.decode("ascii"))
            self._frames = _Frames(client=False, extensions=[deflate])
            self._piece = DEFLATED_PIECE
        self._input += request.rest
        self._reader = None
        self._state = _State.OPEN

    def _pump(self, at: float) -> None:
        """Take input, as much as output has room for, and say what comes next."""
        while self._input and not self._clogged and self._output_size < OUTPUT_PAUSE:
            piece = bytes(self._input[: self._piece])
            del self._input[: self._piece]
            code = self._take(piece)
            if code is not None:
                self._linger(at)
                return
        self._flush_fragment(finished=False)
        self._flush_output()
        if self._finished and not self._input:
            self._close()
        elif self._input or self._clogged:
            if not self._held:
                self._held = True
                self._order(events.Hold(Side.CLIENT))
            if not self._clogged:
                self._order(events.SetTimer("go on", at))
        elif self._held:
            self._held = False
            self._order(events.Read(Side.CLIENT))

    def _take(self, piece: bytes) -> int | None:
        """Answer the frames in a piece; gives the code of the Close that was said, if one was."""
        self._frames.receive_bytes(piece)
        try:
            for frame in self._frames.received_frames():
                if frame.opcode is Opcode.CLOSE:
                    assert isinstance(frame.payload, tuple)
                    return self._say_close(*frame.payload)
                self._answer(frame)
        except ParseFailed as error:
            return self._say_close(error.code, "")
        return None

    def _answer(self, frame: Frame) -> None:
        payload = frame.payload
        assert isinstance(payload, (bytes, bytearray, str))
        if frame.opcode is Opcode.PING:
            assert not isinstance(payload, str)
            self._flush_fragment(finished=False)
            self._say(self._frames.pong(bytes(payload)))
        elif frame.opcode is not Opcode.PONG:
            self._said.append(payload if isinstance(payload, str) else bytes(payload))
            self._said_size += len(payload)
            if frame.message_finished or self._said_size >= FRAGMENT:
                self._flush_fragment(finished=frame.message_finished)

    def _flush_fragment(self, *, finished: bool) -> None:
        """Say what was collected of the message under way."""
        if not finished and not self._said_size:
            return  # an empty fragment says nothing
        said: bytes | str
        if isinstance(self._said[0], str):
            said = "".join(part for part in self._said if isinstance(part, str))
        else:
            said = b"".join(part for part in self._said if isinstance(part, bytes))
        self._said.clear()
        self._said_size = 0
        self._say(self._frames.send_data(said, finished))

    def _say(self, data: bytes | bytearray) -> None:
        self._output.append(data)
        self._output_size += len(data)

    def _say_close(self, code: int, reason: str) -> int:
        """The last word: the code that was heard (RFC 6455 5.5.1), or what was wrong."""
        self._say(self._frames.close(code, reason or None))
        return code

    def _flush_output(self) -> None:
        if self._output:
            self._order(events.Send(Side.CLIENT, b"".join(self._output)))
            self._output.clear()
            self._output_size = 0

    def _linger(self, at: float) -> None:
        """The last word is said: send it, half-close, and wait for the far end's close."""
        self._flush_output()
        self._forget()
        if self._finished:
            self._close()
            return
        self._state = _State.LINGERING
        self._order(events.Finish(Side.CLIENT))
        self._order(events.Read(Side.CLIENT))
        self._order(events.SetTimer("linger", at + LINGER))

    def _close(self) -> None:
        self._forget()
        self._state = _State.CLOSING
        self._order(events.Close(Side.CLIENT))

    def _forget(self) -> None:
        self._reader = None
        self._input.clear()
        self._said.clear()


# --- Inside: what wsproto needs ----------------------------------------------------------------


def _choose_deflate(offers: list[websocket.Extension]) -> bytes:
    """The answer to the first offer of permessage-deflate that zlib can serve, or b""."""
    for offer in offers:
        wanted = websocket.deflate_parameters(offer, in_offer=True)
        # zlib makes no window of 8 bits; what it inflates may come from any.
        if wanted is None or wanted.get("server_max_window_bits") == "8":
            continue
        parts = [websocket.DEFLATE]
        for name in ("server_no_context_takeover", "client_no_context_takeover"):
            if name in wanted:
                parts.append(name)
        if "server_max_window_bits" in wanted:
            parts.append(f"server_max_window_bits={wanted['server_max_window_bits']}")
        return "; ".join(parts).encode("ascii")
    return b""


class _Frames(FrameProtocol):
    """wsproto's frames, and close code 1014, which IANA has registered since."""

    def _process_close(self, frame: Frame) -> Frame:
        payload = frame.payload
        assert isinstance(payload, (bytes, bytearray))
        if payload[:2] != CLOSE_1014:
            return super()._process_close(frame)
        try:
            reason = payload[2:].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ParseFailed(str(error), CloseReason.INVALID_FRAME_PAYLOAD_DATA) from None
        return Frame(frame.opcode, (1014, reason), True, True)


class _Deflate(PerMessageDeflate):
    """wsproto's permessage-deflate, but for control frames inside a fragmented message.

    Its own forgets at the end of such a frame that the message around it is compressed (seen in
    1.3). Control frames are never compressed and say nothing of the message (RFC 7692 6.1).
    """

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> CloseReason | RsvBits:
        if opcode.iscontrol() and not rsv.rsv1:
            self._inbound_is_compressible = False
            return RsvBits(True, False, False)
        return super().frame_inbound_header(proto, opcode, rsv, payload_length)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        if not self._inbound_is_compressible:
            return None
        return super().frame_inbound_complete(proto, fin)
