"""One leg of a relay: what is queued for a side, what was heard from it, what becomes of it.

Only data and snapshots; the rules that move it are in `relaying.py`. A driver reads `queue`,
`queued`, `reading` and `fate`, and writes nothing.
"""

import enum
from collections import deque

from gateway.events import LegCounts, RelayRules, Side
from gateway.frames import Cursor

NOT_SPLICED = "the relay is in Python"   # why these rules copy every byte


class Fate(enum.IntEnum):
    """What is to become of a leg. It only ever grows."""

    OPEN = 0
    FINISH = 1                     # half-close once the queue is empty, and go on reading
    CLOSE = 2                      # close once the queue is empty
    RESET = 3                      # RST at once; the queue is dropped


class Leg:
    """One side of a relay. The driver reads `queue`, `queued`, `reading` and `fate`."""

    __slots__ = (
        "acknowledged",
        "behind",
        "bytes_in",
        "bytes_out",
        "clogged",
        "close_received",
        "close_sent",
        "cursor",
        "cut",
        "fate",
        "finished",
        "foreign_ping_at",
        "gone",
        "heard_at",
        "pending",
        "ping_at",
        "ping_payload",
        "pings_sent",
        "pings_waiting",
        "probe_at",
        "queue",
        "queued",
        "raw",
        "reading",
        "round_trip",
        "side",
        "taken_at",
        "wrapped",
    )

    def __init__(self, side: Side, rules: RelayRules, now: float):
        self.side = side
        self.raw = rules.raw and side is Side.UPSTREAM
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.reading = True
        self.fate = Fate.OPEN
        self.gone = False                       # lost: the driver has no socket any more
        self.finished = False                   # FIN came from this side
        self.clogged = False
        self.pending: tuple[int | None, str] | None = None  # a farewell that waits for a boundary
        self.close_received: int | None = None
        self.close_sent: int | None = None
        self.heard_at = now                     # last byte from this side
        self.cut = False                        # reset while bytes or a farewell waited for it
        self.taken_at = now                     # last progress of its queue
        self.acknowledged = 0                   # of bytes_out, as far as the far end took them
        self.behind = False                     # when that was asked last, some were on their way
        self.probe_at: float | None = None      # silence since then counts as lost
        self.ping_at = 0.0
        self.ping_payload = b""                 # of our latest ping
        self.pings_waiting = 0                  # of ours, that were not answered
        self.foreign_ping_at: float | None = None  # an unanswered ping that passed to this side
        self.pings_sent = 0
        self.round_trip: float | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.wrapped = 0                        # frames made of a raw upstream's bytes
        self.cursor = Cursor(
            masked=side is Side.CLIENT,
            deflate=rules.deflate,
            max_message=rules.max_message,
            max_frame=rules.max_frame,
            unwrap=rules.raw,
        )

    @property
    def done(self) -> bool:
        """Nothing more is to be done for this leg but to close its socket."""
        return (
            self.gone
            or self.fate is Fate.RESET
            or (self.fate is Fate.CLOSE and not self.queued)
        )

    @property
    def is_awaited(self) -> bool:
        """It is still waited for what its far end says, or for that to end."""
        return not self.gone and self.fate < Fate.CLOSE

    def raise_fate(self, fate: Fate) -> None:
        """Fates only grow; RESET drops the queue and a farewell that waits: the leg is cut."""
        self.fate = max(self.fate, fate)
        if self.fate is Fate.RESET and (self.queued or self.pending is not None):
            self.cut = True
            self.drop()

    def give_up(self) -> None:
        """Its time is over: RESET, which loses what the kernel still has for it, too."""
        self.cut = self.cut or self.behind
        self.raise_fate(Fate.RESET)

    def drop(self) -> None:
        """Forget what waits for it."""
        self.behind = False
        self.pending = None
        self.queue.clear()
        self.queued = 0

    def put(self, data: bytes, now: float) -> None:
        """Queue bytes. What waits begins to wait now, if nothing waited before."""
        if not self.queued:
            self.taken_at = now
        self.queue.append(data)
        self.queued += len(data)

    def counts(self) -> LegCounts:
        """A snapshot."""
        cursor = self.cursor
        return LegCounts(
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            frames=self.wrapped if self.raw else cursor.frames,
            messages=self.wrapped if self.raw else cursor.messages,
            payload=self.bytes_in if self.raw else cursor.payload,
            copied=self.bytes_in,
            not_spliced=NOT_SPLICED,
            close_received=self.close_received,
            close_sent=self.close_sent,
            cut=self.cut,
            pings_sent=self.pings_sent,
            round_trip=self.round_trip,
        )
