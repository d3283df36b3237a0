"""The simulated wire: the weather, and the two kinds of ends a stream has; see memory_network.

What TCP does to relays is modelled here:

- Bytes arrive in pieces, cut anywhere, late, and in order; FIN comes behind them.
- A receiver takes only so many bytes (`window`, counting those under way); a sender then waits.
- `close` with unread bytes is RST, and so is the answer to bytes for what was closed. RST may
  overtake bytes under way and destroy those that were not read (RFC 9293 3.10.7.4).
- After RST, what arrived before is still read, unless it was destroyed; then the error, once.
- Unix sockets have no RST: `reset` is EOF, but close with unread bytes is ECONNRESET.
"""

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.events import Address

if TYPE_CHECKING:
    from gateway.engine.memory_network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How the network behaves. The default is a calm loopback; probabilities are from 0 to 1."""

    latency: float = 0.0           # seconds that each piece takes, one way
    jitter: float = 0.0            # up to so many seconds more, at random
    cuts: float = 0.0              # that a piece is cut in two, again and again
    short_reads: float = 0.0       # that a read gives less than there is
    short_sends: float = 0.0       # that a send takes less than it could
    rough_resets: float = 0.0      # that RST overtakes and destroys bytes
    shuffle: bool = False          # the poller tells who is ready in any order
    window: int = 256 * 1024       # bytes, under way and unread, that a new connection's ends take


class End:
    """One end of a stream: what has arrived, what is under way to it, what it has heard."""

    def __init__(self, network: "Network", family: int):
        self.network = network
        self.family = family
        self.window = network.weather.window
        self.peer: End | None = None
        self.inbox = bytearray()
        self.under_way = 0                  # bytes on their way to this end
        self.fin_received = False
        self.fin_sent = False
        self.closed = False
        self.dead = False                   # by RST, either way: nothing comes or goes
        self.vanished = False               # answers nothing, not even with RST
        self.error = 0                      # to be told once, by recv, send or SO_ERROR
        self.latest = 0.0                  # when what was sent last will arrive here

    def room(self) -> int:
        """Bytes that may be sent from here now."""
        peer = self.peer
        assert peer is not None
        return max(0, peer.window - peer.under_way - len(peer.inbox))

    def ship(self, data: bytes) -> None:
        """Put bytes on the wire, cut as the weather is."""
        peer, network = self.peer, self.network
        assert peer is not None
        peer.under_way += len(data)
        cuts = network.weather.cuts
        while cuts and len(data) > 1 and network.random.random() < cuts:
            size = network.random.randrange(1, len(data))
            self._at_peer(peer.arrive_data, data[:size])
            data = data[size:]
        self._at_peer(peer.arrive_data, data)

    def ship_fin(self) -> None:
        """FIN, behind the bytes."""
        assert self.peer is not None
        self.fin_sent = True
        self._at_peer(self.peer.arrive_fin)

    def ship_reset(self, why: str) -> None:
        """RST, behind the bytes or before them. This end is dead from here on."""
        peer, network = self.peer, self.network
        assert peer is not None
        self.dead = True
        rough = network.random.random() < network.weather.rough_resets
        if rough and self.family != socket.AF_UNIX:
            network.later(network.delay(), peer.arrive_reset, why, True)
        else:
            self._at_peer(peer.arrive_reset, why, False)

    def end(self, *, abort: bool = False) -> None:
        """close(2): FIN, or RST with bytes unread or by order."""
        if self.closed:
            return
        self.closed = True
        if self.dead or self.peer is None:
            return
        if self.inbox:
            self.ship_reset("unread")
        elif abort and self.family != socket.AF_UNIX:
            self.ship_reset("abort")
        elif not self.fin_sent:
            self.ship_fin()

    def _at_peer(self, what: Callable[..., None], *arguments: object) -> None:
        """In order behind all that was sent before."""
        peer, network = self.peer, self.network
        assert peer is not None
        peer.latest = max(peer.latest, network.now + network.delay())
        network.at(peer.latest, what, *arguments)

    def arrive_data(self, data: bytes) -> None:
        """These bytes are here."""
        if self.vanished:
            assert self.peer is not None
            self.peer.unanswered()
            return
        self.under_way -= len(data)
        if self.dead:
            return
        if self.closed:
            self.ship_reset("late")
            return
        self.inbox += data
        self.changed()

    def arrive_fin(self) -> None:
        """FIN is here."""
        if not (self.dead or self.closed or self.vanished):
            self.fin_received = True
            self.changed()

    def arrive_reset(self, why: str, rough: bool) -> None:
        """RST is here; a rough one destroys what was not read."""
        if self.dead or self.vanished:
            return
        self.dead = True
        if self.closed:
            return
        self.error = errno.ECONNRESET
        if rough:
            self.inbox.clear()
        self.was_reset_because(why)
        self.changed()

    def changed(self) -> None:
        """Something arrived."""

    def room_grew(self) -> None:
        """The other end has read."""

    def unanswered(self) -> None:
        """The other end has vanished, and bytes wait for its acknowledgement."""

    def was_reset_because(self, why: str) -> None:
        """RST came: the other end's order ("abort"), its close with bytes "unread", or since our
        bytes came "late"."""


class FarEnd(End):
    """The other side of the wire: a client or an upstream, moved by a test.

    It reads at once unless `stall` was said. `on_received(far)`, `on_finished(far)` and
    `on_reset(far)` are called when there is news; what came is in `received`.
    """

    def __init__(self, network: "Network", family: int, local: Address):
        super().__init__(network, family)
        self.address = local
        self.received = bytearray()         # all that was read, ever
        self.finished = False               # FIN came, behind all that was read
        self.was_reset = False
        self.reset_why = ""                 # see End.was_reset_because
        self.refused = 0                    # errno, if the connection was refused
        self.stalled = False
        self.unsent = bytearray()           # told to send, and the window is full
        self.on_received: Callable[[FarEnd], None] | None = None
        self.on_finished: Callable[[FarEnd], None] | None = None
        self.on_reset: Callable[[FarEnd], None] | None = None
        self._finishing = False

    def send(self, data: bytes) -> None:
        """Send behind what waits. What a dead or closed end sends goes nowhere."""
        assert not self._finishing or self.dead
        self.unsent += data
        self._pump()

    def finish(self) -> None:
        """FIN behind what waits."""
        self._finishing = True
        self._pump()

    def close(self) -> None:
        """Finish, and read no more: bytes that come are answered with RST."""
        if self.inbox or self.dead:
            self.end()
        else:
            self.finish()
            self.closed = True

    def reset(self) -> None:
        """RST now; what waits is lost."""
        self.unsent.clear()
        self.end(abort=True)

    def vanish(self) -> None:
        """The machine is gone: nothing more is sent, and nothing is answered."""
        self.vanished = True
        self.unsent.clear()

    def stall(self) -> None:
        """Read no more: the window fills."""
        self.stalled = True

    def resume(self) -> None:
        """Read on."""
        self.stalled = False
        self.changed()

    def _pump(self) -> None:
        if self.dead or self.vanished or self.peer is None:
            return
        while self.unsent and (room := self.room()):
            data = bytes(self.unsent[:room])
            del self.unsent[: len(data)]
            self.ship(data)
        if self._finishing and not self.unsent and not self.fin_sent:
            self.ship_fin()

    def room_grew(self) -> None:
        """See End."""
        self._pump()

    def was_reset_because(self, why: str) -> None:
        """See End."""
        self.was_reset, self.reset_why = True, why
        self.unsent.clear()

    def changed(self) -> None:
        """See End."""
        if self.stalled or self.closed:
            return
        if self.inbox:
            self.received += self.inbox
            self.inbox.clear()
            assert self.peer is not None
            self.peer.room_grew()
            if self.on_received is not None:
                self.on_received(self)
        if self.was_reset:
            callback, self.on_reset = self.on_reset, None
        elif self.fin_received and not self.finished:
            self.finished = True
            callback = self.on_finished
        else:
            return
        if callback is not None:
            callback(self)
