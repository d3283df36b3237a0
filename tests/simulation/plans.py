"""What everybody in a life will do, drawn from one `random.Random`: the dice of the simulation.

A plan is data. `ends.py` carries it out; nothing in here knows what the gateway makes of it.
Waits are in seconds of the virtual clock, and short ones, none and very long ones are all likely:
most faults live where two things happen at once, or where nothing happens for long.
"""

import random
from dataclasses import dataclass, field

from simulation.codec import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_CODE,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
)

FOREIGN = b"@"                         # begins each ping and unasked pong of a far end's own
WORDS = "aß€\U0001f600 lorem ipsum "
NEVER = float("inf")


@dataclass(slots=True)
class Say:
    """Bytes, in pieces with a wait before each; `whole`: it ends where a frame may follow."""

    wait: float
    pieces: list[tuple[float, bytes]]
    whole: bool = True
    closes: bool = False               # it has a Close: nothing is answered behind it


@dataclass(slots=True)
class Do:
    """A deed: fin, reset, close (hard), vanish, stall (for `seconds`)."""

    wait: float
    deed: str
    seconds: float = NEVER


Act = Say | Do


@dataclass(slots=True)
class Manners:
    """How a far end answers, in seconds; NEVER is not at all."""

    pong: float = 0.0
    close: float = 0.0                 # a Close, to a Close
    fin: float = 0.0                   # FIN, to FIN or when both Closes are through
    talks_on: bool = False             # goes on with its script when a Close came


@dataclass(slots=True)
class Plan:
    """Of one far end, behind the handshake."""

    acts: list[Act] = field(default_factory=list)
    manners: Manners = field(default_factory=Manners)


def cut(
    dice: random.Random, data: bytes, *, slow: bool = True, often: float = 0.35
) -> list[tuple[float, bytes]]:
    """The same bytes in pieces, cut so often."""
    pieces = []
    while len(data) > 1 and dice.random() < often:
        at = dice.randrange(1, min(len(data), 200))
        pieces.append(data[:at])
        data = data[at:]
    pieces.append(data)
    waits = [0.0, 0.0, 0.0, 0.001, 0.05, 0.6, 4.0] if slow else [0.0, 0.001, 0.05]
    return [(dice.choice(waits) if at else 0.0, piece) for at, piece in enumerate(pieces)]


def wait(dice: random.Random) -> float:
    """Between two acts."""
    return dice.choice([0.0, 0.0, 0.0, 0.0, 0.002, 0.1, 0.5, 2.0, 2.0, 7.0, 33.0])


class Writer:
    """Draws what one far end says in frames. `name` marks all that it says."""

    def __init__(self, dice: random.Random, name: str, *, is_client: bool, calm: bool):
        self._dice = dice
        self._name = name
        self._is_client = is_client
        self._calm = calm              # says nothing that breaks a rule
        self._dawdles = dice.random() < 0.25         # is inside a frame most of the time
        self._serial = 0

    def _key(self) -> bytes | None:
        return self._dice.randbytes(4) if self._is_client else None

    def payload(self, size: int, *, text: bool) -> bytes:
        """Bytes that say whose they are, and which; no two are the same."""
        self._serial += 1
        mark = f"{self._name}:{self._serial}:".encode()
        if text:
            return (mark + (WORDS * (size // 20 + 1)).encode())[: max(size, 0)]
        return (mark + self._dice.randbytes(max(0, size - len(mark))))[: max(size, 0)]

    def plan(self) -> Plan:
        """A whole plan."""
        dice = self._dice
        acts: list[Act] = []
        for _ in range(dice.choice([0, 1, 1, 2, 3, 5, 9])):
            acts.append(self._act())
        if dice.random() < 0.08:
            acts += [Say(2.5, [(0.0, frame(TEXT, b"", self._key()))]) for _ in range(5)]
        acts += self._end()
        return Plan(acts, draw_manners(dice))

    def entangled(self) -> Plan:
        """Inside a frame most of the time, and often never out of it."""
        dice = self._dice
        self._dawdles = True
        acts = [self._act() for _ in range(dice.choice([1, 2, 4]))]
        acts += self._half(0.0) if dice.random() < 0.6 else self._end()
        for act in acts:
            act.wait = min(act.wait, dice.choice([0.0, 0.0, 0.5]))
        return Plan(acts, draw_manners(dice))

    def flood(self) -> Plan:
        """A lot at once, and later a Close."""
        dice = self._dice
        acts: list[Act] = []
        for _ in range(dice.choice([2, 4, 8])):
            size = dice.choice([3000, 70_000, 70_000, 300_000])
            data = frame(BINARY, self.payload(size, text=False), self._key())
            acts.append(Say(dice.choice([0.0, 0.0, 0.2]), cut(dice, data, slow=False)))
        acts += self._closing(dice.choice([0.0, 0.5, 90.0]))
        return Plan(acts, draw_manners(dice))

    def slow(self) -> Plan:
        """Reads by fits and starts, says little."""
        dice = self._dice
        acts: list[Act] = []
        for _ in range(dice.choice([2, 5, 9])):
            acts.append(Do(dice.choice([0.0, 0.01, 1.0]), "stall", dice.choice([0.5, 3.0, 9.0])))
            acts.append(Say(dice.choice([9.5, 9.5, 2.0]), [(0.0, self._message())]))
        if dice.random() < 0.4:
            acts = [Do(0.5, "stall"), *acts[1:2]]
        if dice.random() < 0.6:
            acts += self._closing(wait(dice))
        return Plan(acts, draw_manners(dice))

    def _act(self) -> Act:
        dice, chance = self._dice, self._dice.random()
        if chance < 0.06:
            return Do(wait(dice), "stall", dice.choice([0.5, 3.0, 10.0, 45.0, NEVER]))
        if chance < 0.18 and not self._calm:
            return Say(wait(dice), cut(dice, self._hostile()), whole=False)
        if chance < 0.27:
            mark = FOREIGN + self.payload(dice.choice([20, 60, 124]), text=False)
            data = frame(dice.choice([PING, PING, PONG]), mark, self._key())
            return Say(wait(dice), cut(dice, data))
        data = b"".join(self._message() for _ in range(dice.choice([1, 1, 1, 2, 6])))
        if self._dawdles:
            return Say(wait(dice), [(0.0, data[:20]), (dice.choice([0.4, 3.0, 9.0]), data[20:])])
        return Say(wait(dice), cut(dice, data, slow=dice.random() < 0.3))

    def _message(self) -> bytes:
        """One message, in one frame or more; its text may be cut inside a character."""
        dice = self._dice
        size = dice.choice([0, 1, 9, 20, 40, 80, 125, 126, 127, 250, 400, 3000])
        if dice.random() < 0.08:
            size = dice.choice([65535, 65536, 70000, 300_000])
        text = dice.random() < 0.5
        payload = self.payload(size, text=text)
        if text and dice.random() < 0.9:
            payload = payload.decode("utf-8", "ignore").encode()
        opcode, data = TEXT if text else BINARY, b""
        while dice.random() < 0.3 and len(payload) < 5000:
            at = dice.randrange(len(payload) + 1)
            data += frame(opcode, payload[:at], self._key(), fin=False)
            opcode, payload = CONTINUATION, payload[at:]
            if dice.random() < 0.3:
                data += frame(PING, FOREIGN + self.payload(12, text=False), self._key())
        return data + frame(opcode, payload, self._key())

    def _hostile(self) -> bytes:
        """Something that breaks a rule of framing, or may."""
        dice, key = self._dice, self._key()
        wrong = None if self._is_client else dice.randbytes(4)
        payload = self.payload(30, text=False)
        kind = dice.randrange(13)
        if kind == 0:
            flipped = bytearray(frame(dice.choice([TEXT, BINARY, PING]), payload, key))
            flipped[dice.randrange(min(len(flipped), 8))] ^= 1 << dice.randrange(8)
            return bytes(flipped)
        made = [
            frame(BINARY, payload, wrong),
            frame(TEXT, payload, key, rsv=dice.choice([1, 2, 4, 4])),
            frame(BINARY, payload, key, rsv=4, fin=False),
            frame(dice.choice([3, 7, 11, 15]), payload, key),
            frame(CONTINUATION, payload, key),
            frame(PING, payload, key, fin=False),
            frame(PING, bytes(126), key),
            frame(BINARY, payload, key, width=dice.choice([2, 8])),
            frame(CLOSE, b"\x03", key),
            close_frame(dice.choice([0, 999, 1004, 1005, 1006, 1015, 2999, 5000]), b"", key),
            close_frame(1000, b"\xff\xfe", key),
            frame(TEXT, payload[:9] + b"\xff\xc0" + payload, key),
        ]
        return made[kind - 1] + frame(TEXT, self.payload(20, text=True), self._key())

    def _end(self) -> list[Act]:
        """How it goes, if it goes by itself."""
        dice, chance = self._dice, self._dice.random()
        pause = wait(dice)
        if chance < 0.40:
            return self._closing(pause)
        if chance < 0.52:
            return [Do(pause, "fin")]
        if chance < 0.60:
            return [Do(pause, "reset")]
        if chance < 0.64:
            return [Do(pause, "close")]
        if chance < 0.69:
            return [Do(pause, "vanish")]
        if chance < 0.84:
            return self._half(pause)
        return []

    def _half(self, pause: float) -> list[Act]:
        """A frame that never ends, and mostly an end."""
        dice = self._dice
        whole = self._message()
        half = whole[: dice.randrange(1, len(whole))] if len(whole) > 1 else whole
        say = Say(pause, cut(dice, half), whole=False)
        if dice.random() < 0.2:
            return [say]
        return [say, Do(wait(dice), dice.choice(["fin", "fin", "reset", "close", "vanish"]))]

    def _closing(self, pause: float) -> list[Act]:
        dice = self._dice
        code = dice.choice([NO_CODE, 1000, 1000, 1000, 1001, 1011, 3000, 4999])
        reason = b"" if code == NO_CODE else dice.choice([b"", b"bye", "tschüß".encode()])
        data = close_frame(code, reason, self._key())
        if dice.random() < 0.2:
            data = self._message() + data
        if dice.random() < 0.15 and not self._calm:
            data += dice.choice([self._message(), b"rubbish", close_frame(1000, b"", self._key())])
        acts: list[Act] = [Say(pause, cut(dice, data), closes=True)]
        if dice.random() < 0.2 and not self._calm:
            behind = self._message()
            acts.append(Say(dice.choice([0.0, 0.01, 0.3]), cut(dice, behind), closes=True))
        if dice.random() < 0.3:
            acts.append(Do(dice.choice([0.0, 0.0, 0.01, 2.0]), dice.choice(["fin", "reset"])))
        return acts


def draw_manners(dice: random.Random) -> Manners:
    """Mostly good ones."""
    return Manners(
        pong=dice.choice([0.0, 0.0, 0.0, 0.0, 0.3, 1.5, 8.0, NEVER]),
        close=dice.choice([0.0, 0.0, 0.0, 0.0, 0.4, 3.0, 20.0, NEVER]),
        fin=dice.choice([0.0, 0.0, 0.0, 0.0, 0.4, 3.0, NEVER]),
        talks_on=dice.random() < 0.3,
    )


def raw_plan(dice: random.Random, name: str, *, text: bool, calm: bool) -> Plan:
    """Of a raw upstream."""
    acts: list[Act] = []
    writer = Writer(dice, name, is_client=False, calm=True)
    for _ in range(dice.choice([0, 1, 2, 4, 7])):
        chance = dice.random()
        if chance < 0.08:
            acts.append(Do(wait(dice), "stall", dice.choice([0.5, 10.0, NEVER])))
            continue
        size = dice.choice([1, 5, 30, 125, 126, 500, 3000])
        if dice.random() < 0.08:
            size = dice.choice([65536, 70000, 300_000])
        data = writer.payload(size, text=text)
        if text and dice.random() < 0.8:
            data = data.decode("utf-8", "ignore").encode()
        if chance < 0.12 and not calm:
            data += b"\xff"
        acts.append(Say(wait(dice), cut(dice, data)))
    chance = dice.random()
    deed = (
        "fin" if chance < 0.45 else "reset" if chance < 0.57 else "close" if chance < 0.63
        else "vanish" if chance < 0.68 else ""
    )
    if deed:
        acts.append(Do(wait(dice), deed))
    return Plan(acts, Manners(fin=dice.choice([0.0, 0.0, 0.0, 0.3, 3.0, NEVER])))


def raw_flood(dice: random.Random, name: str) -> Plan:
    """A raw upstream that says a lot at once; all of it is text, too."""
    writer = Writer(dice, name, is_client=False, calm=True)
    acts: list[Act] = [
        Say(dice.choice([0.0, 0.2]), [(0.0, writer.payload(size, text=True).decode(
            "utf-8", "ignore").encode())])
        for size in dice.choices([3000, 70_000, 300_000], k=dice.choice([2, 5]))
    ]
    if dice.random() < 0.6:
        acts.append(Do(wait(dice), "fin"))
    return Plan(acts, Manners(fin=0.0))


def raw_slow(dice: random.Random, name: str) -> Plan:
    """One that reads by fits and starts."""
    acts: list[Act] = []
    for _ in range(dice.choice([2, 5, 9])):
        acts.append(Do(dice.choice([0.0, 0.01, 1.0]), "stall", dice.choice([0.5, 3.0, 9.0])))
        acts.append(Say(dice.choice([9.5, 2.0]), [(0.0, name.encode())]))
    if dice.random() < 0.3:
        acts.insert(0, Do(0.5, "stall"))
    return Plan(acts, Manners(fin=dice.choice([0.0, 3.0])))
