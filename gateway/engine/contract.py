"""The engine contract: verbs, events, promises. Read this before any engine.

An engine talks to the kernel and reports events. It knows no protocol but the relay's rules,
which come to it as data (`RelayRules`). There are three: `uv` (uvloop), `uring`
(io_uring) and `memory` (scripted network and virtual clock, for tests). Each behaviour below is
a test in `tests/engine/test_contract.py`, one class that runs against all of them; what is not
written here is not relied on.

**Verbs.** None blocks and none raises because of the network; every outcome is an event. A verb
on a link that is gone (or never was) does nothing: the event that says so may be on its way. A
verb in the wrong order (a second `relay`, `send` after `finish`) is a bug and asserted.

**Promises.**

1.  Every link ends in exactly one `Closed`; after it the number is never mentioned again.
2.  `Received` keeps the order of arrival; after `Finished` nothing more is received.
3.  Sends leave in the order given; the caller may forget the buffer.
4.  After `hold` no `Received` or `Finished` is delivered until `read`, but what was already read
    in this turn (at most `READ_MAX` bytes a link). That a held link is lost (RST) is still
    reported as `Closed`.
    After `hold` of a listener no client is accepted until `read`, but those that this turn had
    accepted already (at most `ACCEPTS_PER_TURN`); who comes waits for others who share the socket.
5.  No event is delivered from inside a verb. A batch holds what belongs together: one event, or
    `ConnectFailed` and its `Closed`, or `RelayEnded` and both `Closed`. A turn delivers many
    batches, but no more than fit into `TURN_LIMIT` (and `BATCHES_PER_TURN`), so a verb takes back
    what it stops: after `close` and `reset` only `Closed` comes, after `relay` nothing of the
    stream (what was read but not delivered is early bytes), after `clear_timer` no `TimedOut`.
6.  `Clogged` when more than `QUEUE_HIGH` is queued for a link, `Cleared` when `QUEUE_HIGH / 2`
    or less is. More than `QUEUE_MAX` closes the link with `Fault.OVERFLOW`.
7.  The same errno gives the same fault on every engine (`errors.fault_of`).
8.  `close` sends what is queued, then closes; with nobody reading at the far end it gives up
    `CLOSE_LIMIT` seconds after the order, and resets. `finish` is not limited: set a timer.
9.  In a relay, the gateway's own bytes (ping, close) enter only between two frames.
10. Timers fire at or after their time, once, and never after `Closed`.
11. After `stop()`, `run` returns soon, and `stats()` shows zero links, timers and queued bytes.
    What was still open is closed without an event, with RST where bytes were still to go.
12. Early bytes given to `relay` pass through its rules before any that arrive later.
13. When no descriptor or memory is free, accepting pauses and resumes by itself; clients wait in
    the backlog, nothing spins; `AcceptPaused` and `AcceptResumed` say so once each. It pauses
    before: each link that was accepted keeps a descriptor free for one that will be connected.
14. A Python signal handler runs within 10 ms of its signal, also when the engine is idle. It may
    interrupt a turn anywhere, so of the verbs it may call `stop` only; for all else it writes to
    a socketpair whose other end was adopted.
15. An exception out of `deliver` ends `run` and is raised there: bugs are loud. Nothing else is
    lost: `run` may be called again, and goes on with the next batch.
16. A link that is lost while its bytes are read is lost behind them: what the kernel still gives
    is delivered before `Closed`, also where a send was what failed.
17. `secure` on an open link, before anything was sent that is still queued, is answered by
    `Secured` or by `Closed`; nothing else comes for the link until then but the caller's timers.
    What was read but not delivered is the handshake's, behind `received`. The engine reads and
    sends what the handshake needs whatever `read` and `hold` say; they count from `Secured` on, as
    they were said last. `hold`, `read`, `close`, `reset` and timers may be used meanwhile.
18. A handshake that fails is `Closed` with `Fault.TLS` and a sentence in `detail`; the far end is
    told by an alert, and neither is ever an exception. There is no time limit in here: set a timer.
19. Behind `Secured` all is clear text: `Received`, `send`, the marks and limits of promise 6, the
    counters of a relay. What arrived behind the handshake is not lost. `finish` and `close` say
    close_notify before the FIN; `reset` says nothing.
20. `Finished` of a secured link is its close_notify. FIN without one is `Fault.TRUNCATED`: the
    stream may be cut (RFC 8446 6.1), and never looks whole. A relay ends by it as
    `Cause.TRUNCATED`, unless that side's Close had come or the end is settled: then it is a FIN.
    A record that is none (cut, forged, too long) is `Fault.TLS`.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.events import (
    Address,
    Cause,
    Event,
    LegCounts,
    Link,
    RelayRules,
    TlsClient,
    TlsServer,
)

READ_MAX = 64 * 1024          # bytes in one Received, and what one turn reads from one link
QUEUE_HIGH = 64 * 1024        # Clogged above it; Cleared at half
QUEUE_MAX = 512 * 1024        # a caller that heeds Clogged never comes near
CLOSE_LIMIT = 5.0             # seconds that close() waits for queued bytes to leave
ACCEPT_RETRY = 0.1            # seconds until a paused listener is tried again
TURN_LIMIT = 0.001            # seconds of a turn: relays move between turns, and wait for no crowd
BATCHES_PER_TURN = 64         # likewise, where the clock stands still meanwhile
READY_PER_TURN = 64           # descriptors that one turn looks after
ACCEPTS_PER_TURN = 16         # few, so that who holds a listener has hardly more than it wanted

Deliver = Callable[[list[Event]], None]


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of what exists now, and of what was ever made."""

    links: int = 0                # open, relayed ones included
    relays: int = 0
    listeners: int = 0
    timers: int = 0
    queued: int = 0               # bytes that wait in user space
    accepted: int = 0             # ever
    connected: int = 0
    closed: int = 0
    calls: int = 0                # system calls of compiled relays, and those that waited for them


class Engine(Protocol):
    """See the module's docstring for the promises."""

    name: str
    """ "uvloop", "io_uring" or "memory": the name in the table, the start line and the records."""

    def now(self) -> float:
        """The clock of all events and timers, in seconds; monotonic."""

    def listen(self, listening: socket.socket) -> int:
        """Accept from this bound, listening socket, which several processes may share. Returns
        the listener's number. Answered by `Accepted` for each client. The engine owns the
        socket object from here on, and closes its own descriptor at `unlisten`."""

    def unlisten(self, listener: int) -> None:
        """Stop accepting. What waits in the backlog stays there for others who share it."""

    def waits(self, listener: int) -> bool:
        """Whether somebody is still to come by this listener: waits in its backlog, or was accepted
        and is not delivered yet. Asked before `unlisten` by whoever has the socket's last
        descriptor: to close that resets those who wait."""

    def adopt(self, inherited: socket.socket) -> Link:
        """An already connected stream socket becomes a link, open at once (no event)."""

    def pair(self) -> tuple[Link, Link]:
        """Two links, open at once, each the far end of the other (a socketpair). Raises OSError
        when no descriptor is free."""

    def connect(self, address: Address, source: str = "") -> Link:
        """Begin to connect, from `source`, an IP address of this machine and of the family, if
        one is said; the port is any that is free toward `address`. Answered by `Connected`, or
        `ConnectFailed` and then `Closed`. There is no time limit in here: set a timer and `reset`.
        A Unix socket with a full backlog is tried again until then."""

    def secure(
        self, link: Link, settings: TlsServer | TlsClient, received: bytes = b""
    ) -> None:
        """TLS from here on, as what the settings are for, beginning with these bytes. Answered by
        `Secured` or `Closed`; see promises 17 to 20. Raises ValueError for settings that cannot be
        used (a broken PEM, a key that is another's), which whoever made them is to try before:
        `machines.check` does."""

    def read(self, link: Link) -> None:
        """Deliver what arrives: `Received`, then `Finished`; of a listener: accept again.
        Repeating it is harmless."""

    def hold(self, link: Link) -> None:
        """Stop delivering, or accepting; see promise 4. A new link is held, a new listener is not.
        Repeating it is harmless."""

    def send(self, link: Link, data: bytes) -> None:
        """Send after what is queued already. Not before `Connected`."""

    def finish(self, link: Link) -> None:
        """Half-close (FIN) after what is queued. Nothing may be sent afterwards."""

    def close(self, link: Link, last: bytes = b"") -> None:
        """Close after what is queued, and these last bytes, which leave together with the FIN;
        nothing more is delivered. Answered by `Closed(None)`. What still comes is answered with
        RST, which may destroy what was said last: for that see `finish`."""

    def reset(self, link: Link) -> None:
        """Close at once, as RST where the family has it. Answered by `Closed(None)`. A relay of
        this link is cut with it, without a farewell: `RelayEnded(KILLED)` and both `Closed`."""

    def relay(
        self,
        client: Link,
        upstream: Link,
        rules: RelayRules,
        from_client: bytes = b"",
        from_upstream: bytes = b"",
    ) -> None:
        """Move the stream both ways from here on; no event comes for either link until
        `RelayEnded` for the client's and `Closed` for both, but the caller's own timers. Bytes
        that were queued for a link before leave first. If FIN or a loss came for a link, the
        relay begins with that, delivered or not in the case of FIN; where `Closed` was delivered
        for either link, nothing happens. TCP_USER_TIMEOUT is set by `write_timeout`, and toward
        a raw upstream SO_KEEPALIVE by `heartbeat` and `heartbeat_timeout`."""

    def end(self, client: Link, cause: Cause, rules: RelayRules | None = None) -> None:
        """End the relay of this client link with the farewells for `cause` (`DRAIN`: told, then
        waited for as long as `write_timeout` and `close_timeout` allow; `KILLED`: told where a
        frame boundary allows, then cut at once). `rules` have other farewells, and are the relay's
        in all else. Answered by `RelayEnded`. Repeating it is harmless; `KILLED` overrides, and
        is the cause of a drain that still waited for a side."""

    def inspect(self, client: Link) -> tuple[LegCounts, LegCounts] | None:
        """Counters of a running relay, from the client and from the upstream; None if none."""

    def idle(self, client: Link) -> float | None:
        """Seconds since a byte of the stream came from either side of a running relay, but for
        answers to the gateway's own pings; None if none runs."""

    def set_timer(self, link: Link, name: str, at: float) -> None:
        """`TimedOut(link, name)` at the time `at`; replaces the link's timer of that name."""

    def clear_timer(self, link: Link, name: str) -> None:
        """Forget it, also if it is due in the batch under way and not delivered yet."""

    def run(self, deliver: Deliver) -> None:
        """Drive until `stop`; `deliver` gets non-empty lists, see promise 5."""

    def stop(self) -> None:
        """Close all that is open and let `run` return. May be called from `deliver`, which gets
        nothing more then, from a signal handler, and when `run` is over. It is the last verb."""

    def stats(self) -> Stats:
        """Counters now."""
