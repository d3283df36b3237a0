"""The far ends: clients and upstreams that carry out their plans on the simulated wire.

Each keeps its own account: what it said and when it left, what it heard, what it did (`deeds`).
The oracle goes by these accounts alone. A far end answers pings, Closes and FINs as its manners
are, and never inside a frame of its own.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from gateway.engine.memory import FarEnd, Network
from gateway.engine.memory_tls import SecureFarEnd
from simulation.codec import CLOSE, PING, Ear, Frame, frame, read_answers
from simulation.heads import Greeting, Reception, accept_key, field_of
from simulation.plans import NEVER, Act, Do, Plan, Say

HEARTBEAT = 8                          # bytes of a ping of the gateway's own
DEADLY = ("fin", "reset", "close", "vanish")   # deeds that end a side


class Stage(Protocol):
    """What far ends need of the world."""

    network: Network

    def note(self, who: str, what: str) -> None:
        """Tell it, where somebody listens."""


class Actor:
    """One far end behind its handshake; `sent` and `got` are the stream of frames (or bytes)."""

    def __init__(self, stage: Stage, far: FarEnd, name: str, plan: Plan, *, is_client: bool):
        self.stage, self.far, self.name, self.plan = stage, far, name, plan
        self.is_client = is_client
        self.sent = bytearray()                     # said, though it may have never left
        self.head_size = 0                          # bytes said before
        self.heard_from = 0                         # where the stream begins in far.received
        self.shipped: list[tuple[int, float]] = []  # the stream's bytes that had left by then
        self.said: list[tuple[int, float]] = []     # the same, of what it wanted to leave
        self.heard: list[tuple[float, Frame]] = []  # whole frames, and when
        self.pongs: list[tuple[float, bytes]] = []  # said, and when
        self.deeds: dict[str, float] = {}           # the first of each kind, and when
        self.stalls: list[tuple[float, float]] = []
        self.heard_at = 0.0                         # when the last byte came
        self.ear: Ear | None = None
        self.in_frame: list[tuple[float, float]] = []  # when it was inside a frame of its own
        self._acts: deque[Act] = deque(plan.acts)
        self.truncates = isinstance(far, SecureFarEnd) and far.network.random.random() < 0.2
        self._busy = self._rough = False
        self._replies: deque[tuple[bytes, bool]] = deque()
        self._close_said = self._close_heard = self._leaving = False
        self._left = 0
        self._hook()

    def _hook(self) -> None:
        """Note what leaves, and hear what comes."""
        ship = self.far.ship

        def noted(data: bytes) -> None:
            self._left += len(data)
            self.shipped.append((self._left - self.head_size, self.now))
            ship(data)

        self.far.ship = noted  # type: ignore[method-assign]
        self.far.on_received = self._received
        self.far.on_finished = self._finished
        self.far.on_reset = self._was_reset

    @property
    def now(self) -> float:
        """The virtual clock."""
        return self.stage.network.now

    @property
    def got(self) -> bytes:
        """What came of the stream."""
        return bytes(self.far.received[self.heard_from :])

    @property
    def is_mute(self) -> bool:
        """Nothing leaves it any more."""
        far = self.far
        return far.dead or far.closed or far.vanished or "fin" in self.deeds

    @property
    def listens_well(self) -> bool:
        """It read all that came, as soon as it came, to the end."""
        return not (self.stalls or self.deeds.keys() & {"reset", "close", "vanish"})

    @property
    def went_at(self) -> float:
        """When it first did what ends its side; infinite if it never did."""
        return min(self.deeds.get(deed, NEVER) for deed in DEADLY)

    def later(self, delay: float, what: Callable[..., None], *arguments: object) -> None:
        """On the virtual clock; never, if that is the delay."""
        if delay != NEVER:
            self.stage.network.later(delay, what, *arguments)

    def note(self, what: str) -> None:
        """For the log."""
        self.stage.note(self.name, what)

    # --- Speaking ----------------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        """Send; what a mute one says is not said."""
        if not self.is_mute:
            self.note(f"says {len(data)} bytes: {data[:16].hex(' ')}")
            self.sent += data
            self.said.append((len(self.sent), self.now))
            self.far.send(data)

    def begin(self) -> None:
        """Begin the script."""
        self._next()

    def _next(self) -> None:
        if self._acts and not self.is_mute:
            act = self._acts.popleft()
            self.later(act.wait, self._act, act)

    def _act(self, act: Act) -> None:
        if self.is_mute:
            return
        if isinstance(act, Do):
            self.do(act)
            self._next()
        else:
            self._busy = True
            self._say_piece(act, 0, self.now)

    def _say_piece(self, act: Say, at: int, since: float) -> None:
        self.say(act.pieces[at][1])
        if at + 1 < len(act.pieces):
            self.later(act.pieces[at + 1][0], self._say_piece, act, at + 1, since)
            return
        self.in_frame.append((since, self.now if act.whole else NEVER))
        self._rough = self._rough or not act.whole
        self._close_said = self._close_said or act.closes
        self._busy = False
        self._say_replies()
        if act.closes and self._close_heard:
            self._take_leave()
        self._next()

    def _reply(self, data: bytes, closes: bool) -> None:
        self._replies.append((data, closes))
        if not self._busy:
            self._say_replies()

    def _say_replies(self) -> None:
        while self._replies and not self._rough and not self._close_said:
            data, closes = self._replies.popleft()
            if not self.is_mute:
                if not closes:
                    self.pongs.append((self.now, data))
                self.say(data)
            if closes:
                self._close_said = True
                self._take_leave()

    # --- Deeds -------------------------------------------------------------------------------

    def do(self, act: Do) -> None:
        """One deed."""
        self.note(act.deed)
        if act.deed == "stall":
            begin, end = self.now, self.now + act.seconds
            if self.stalls and self.stalls[-1][1] >= begin:
                before = self.stalls.pop()
                begin, end = before[0], max(before[1], end)
            self.stalls.append((begin, end))
            self.far.stall()
            self.later(act.seconds, self._resume)
            return
        self.deeds.setdefault(act.deed, self.now)
        if act.deed == "fin" and self.truncates:
            assert isinstance(self.far, SecureFarEnd)
            self.far.truncate()
        elif act.deed == "fin":
            self.far.finish()
        elif act.deed == "reset":
            self.far.reset()
        elif act.deed == "close":
            self.far.close()
        else:
            self.far.vanish()

    def _resume(self) -> None:
        if self.now >= max(end for _, end in self.stalls):
            self.note("reads on")
            self.far.resume()

    def _leave(self) -> None:
        """FIN, when the sentence under way is said."""
        if self._busy:
            self.later(0.3, self._leave)
        elif not self.is_mute:
            self._acts.clear()
            self.do(Do(0.0, "fin"))

    def _take_leave(self) -> None:
        """Both Closes are through: the server ends the connection first (RFC 6455 7.1.1)."""
        if not self.is_client and self._close_heard and self._close_said and not self._leaving:
            self._leaving = True
            self.later(self.plan.manners.fin, self._leave)

    # --- Hearing -----------------------------------------------------------------------------

    def _received(self, _far: FarEnd) -> None:
        self.heard_at = self.now
        if self.ear is not None:
            for one in self.ear.hear(self.far.received):
                self.heard.append((self.now, one))
                self._hear(one)

    def _hear(self, one: Frame) -> None:
        self.note(f"hears {one.opcode:#x}, {len(one.payload)} bytes: {one.payload[:16]!r}")
        manners = self.plan.manners
        if one.opcode == PING:
            self.later(manners.pong, self._reply, self._frame(PING + 1, one.payload), False)
        elif one.opcode == CLOSE:
            self._close_heard = True
            if self._close_said:
                self._take_leave()
            else:
                if not manners.talks_on:
                    self._acts.clear()
                answer = self._frame(CLOSE, one.payload[:2])
                self.later(manners.close, self._reply, answer, True)

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        return frame(opcode, payload, self.far.network.random.randbytes(4) if self.is_client
                     else None)

    def _finished(self, _far: FarEnd) -> None:
        self.note("hears FIN")
        self.deeds.setdefault("heard fin", self.now)
        if not self._leaving:
            self._leaving = True
            self.later(self.plan.manners.fin, self._leave)

    def _was_reset(self, far: FarEnd) -> None:
        self.note(f"is reset ({far.reset_why})")
        self.deeds.setdefault("was reset", self.now)


class Client(Actor):
    """One that comes to a listener. It begins its script when it has its 101, or at once."""

    def __init__(self, stage: Stage, far: FarEnd, name: str, greeting: Greeting):
        self.greeting = greeting
        self.upgraded = False
        self.came_at = stage.network.now
        super().__init__(stage, far, name, greeting.plan, is_client=True)

    @property
    def got(self) -> bytes:
        """See Actor. There is no stream before a whole 101."""
        return super().got if self.upgraded else b""

    def come(self) -> None:
        """Say the requests."""
        self.note(f"comes: {self.greeting.kind} to {self.greeting.path}")
        self.far.send(b"")                          # where it speaks TLS, its hello
        self._greet(0)

    def _greet(self, at: int) -> None:
        if self.is_mute:
            return
        pieces = self.greeting.pieces
        if at < len(pieces):
            self.later(pieces[at][0], self._greet_piece, at)
        elif self.greeting.early or self.greeting.is_rude:
            self.begin()

    def _greet_piece(self, at: int) -> None:
        if self.is_mute:
            return
        data = self.greeting.pieces[at][1]
        self.note(f"says {len(data)} bytes of a head")
        self.head_size += len(data)
        self.far.send(data)
        self._greet(at + 1)

    def _received(self, far: FarEnd) -> None:
        if not self.upgraded:
            answers = read_answers(bytes(far.received), self.greeting.methods, finished=False)
            if answers and answers[-1].status == 101:
                self.note("is upgraded")
                self.upgraded = True
                self.heard_from = answers[-1].end
                self.ear = Ear()
                self.ear.at = self.heard_from
                if not self.greeting.early:
                    self.begin()
        super()._received(far)


class Upstream(Actor):
    """One that the gateway comes to, speaking WebSocket."""

    def __init__(self, stage: Stage, far: FarEnd, name: str, reception: Reception):
        self.reception = reception
        self.request = b""                          # the head that reached it
        self.accepted = False
        self.deflate = False
        super().__init__(stage, far, name, reception.plan, is_client=False)
        if reception.kind in ("fin first", "reset first", "close first"):
            self.later(reception.wait, self.do, Do(0.0, reception.kind.split()[0]))
        elif reception.kind == "garbage first":
            self.later(reception.wait, self._say_head, [(0.0, reception.text)])

    def _received(self, far: FarEnd) -> None:
        if not self.request and b"\r\n\r\n" in far.received:
            self.heard_from = far.received.index(b"\r\n\r\n") + 4
            self.request = bytes(far.received[: self.heard_from])
            self.ear = Ear()
            self.ear.at = self.heard_from
            self.later(self.reception.wait, self._answer)
        super()._received(far)

    @property
    def path(self) -> bytes:
        """The target that it was asked for."""
        return self.request.split(b" ", 2)[1] if self.request else b""

    def _answer(self) -> None:
        reception = self.reception
        self.note(f"answers: {reception.kind}")
        offer = field_of(self.request, b"sec-websocket-extensions")
        self.deflate = reception.deflate and offer.startswith(b"permessage-deflate")
        accept = accept_key(field_of(self.request, b"sec-websocket-key"))
        self._say_head(reception.answer(accept, deflate=self.deflate))

    def _say_head(self, pieces: list[tuple[float, bytes]], at: int = 0) -> None:
        if at and not self.is_mute:
            data = pieces[at - 1][1]
            self.note(f"says {len(data)} bytes of an answer")
            self.head_size += len(data)
            self.far.send(data)
        if at < len(pieces):
            self.later(pieces[at][0], self._say_head, pieces, at + 1)
            return
        reception = self.reception
        if reception.is_accepting:
            self.accepted = True
            if reception.twice:
                self.say(reception.text)
            self.begin()
        elif reception.deed:
            self.later(reception.deed_wait, self.do, Do(0.0, reception.deed))


class RawUpstream(Actor):
    """One that the gateway comes to, a byte stream."""

    def __init__(self, stage: Stage, far: FarEnd, name: str, plan: Plan):
        super().__init__(stage, far, name, plan, is_client=False)
        self.begin()


def is_own_ping(one: Frame) -> bool:
    """Whether it is a ping of the gateway's: no far end says one of that size."""
    return one.opcode == PING and len(one.payload) == HEARTBEAT
