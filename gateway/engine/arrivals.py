"""How links come: listening and accepting, connecting, sockets that are open already.

Laws of this file:

- A listening socket may be shared by processes: level-triggered readiness, then accept until
  nobody waits, a few a turn; never an exclusive wait.
- Where nothing is free to accept with, the listener is not watched until its retry, or until a
  descriptor is closed; nobody is dropped, nothing spins. That is so, too, where what is free will
  be wanted by those who came before (`descriptors.py`).
- A link that cannot be made is a link all the same, which fails and is closed by events.
"""

import errno
import math
import os
import socket

from gateway.engine import contract
from gateway.engine.addresses import address_of, family_of, target_of
from gateway.engine.link_state import CONNECTING, OPEN, LinkState, ListenerState
from gateway.engine.reactor import Poller, Reactor
from gateway.errors import Fault, fault_of
from gateway.events import (
    Accepted,
    AcceptPaused,
    AcceptResumed,
    Address,
    Closed,
    Connected,
    ConnectFailed,
    Link,
)

WILDCARDS = ("0.0.0.0", "::")    # the address that a client came to is the kernel's to tell
CONNECT_RETRY = 0.02               # seconds until a Unix socket with a full backlog is tried again

# What accept(2) may report of the connection that it would have given: take the next.
PASSING_ERRORS = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,               # a firewall's rule
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    )
)

IP_BIND_ADDRESS_NO_PORT = 24       # linux/in.h, for IPv6 too; the socket module has it from 3.14 on

# Names of timers; see core.py.
ACCEPT_TIMER, CONNECT_TIMER = "accept", "connect"

# Bytes that a socket keeps unsent before it counts as full. By default that is megabytes, and a
# reader that is slow but steady shows no progress for as long as they last: it would seem stalled,
# and silent, since a ping waits behind them. Linux wakes a writer at half of it, so this is two
# pipes of 256 KiB: with less, 1 MiB messages are moved in small pieces (CPU with 256 KiB 1.5 of
# this, with 128 KiB 2.0; with 1 MiB 0.9, with no limit 0.8; at 64 KiB messages all are alike).
NOTSENT_MAX = 512 * 1024


class Arrivals(Reactor):
    """The part of `SocketEngine` that makes links."""

    def __init__(self, poller: Poller):
        super().__init__(poller)
        self._listeners: dict[int, ListenerState] = {}
        self._accepted = self._connected = 0
        self._room = math.inf                            # descriptors for links, and what of it
        self._given = 0                                  # relays have that were given away, and
        self._wanted = 0                                 # clients will want for their upstreams

    def bury(self, link: LinkState, *, abort: bool = False) -> None:
        """Close the descriptor, drop what the link owns; its `Closed` is the caller's to post."""
        raise NotImplementedError

    # --- Listening --------------------------------------------------------------------------

    def listen(self, listening: socket.socket) -> int:
        """See contract.Engine.listen."""
        listening.setblocking(False)
        listener = ListenerState(self._number(), listening)
        bound = address_of(listening.getsockname())
        if bound.host not in WILDCARDS:
            listener.local = bound
        if not bound.is_unix:
            # Linux hands it on to what is accepted: a system call less for each.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_MAX)
        self._listeners[listener.number] = listener
        self._room = len(self._links) + self._given + max(2, self._free_for_links())
        self.touch(listener)
        return listener.number

    def unlisten(self, listener: int) -> None:
        """See contract.Engine.unlisten."""
        state = self._listeners.pop(listener, None)
        if state is not None:
            if state.timer is not None:
                self.timers.cancel(state.timer)
            state.forget_news()
            self.release(state)

    def waits(self, listener: int) -> bool:
        """See contract.Engine.waits. Clients are delivered in the order in which they came."""
        state = self._listeners.get(listener)
        if state is None or state.sock is None:
            return False
        latest = self._links.get(state.latest)
        if latest is not None and latest.news and isinstance(latest.news[0][0], Accepted):
            return True
        return self._is_readable(state.sock)

    def _hold_listener(self, listener: ListenerState) -> None:
        listener.held = True
        if listener.timer is not None:
            self.timers.cancel(listener.timer)
            listener.timer = None
        self.touch(listener)

    def _read_listener(self, listener: ListenerState) -> None:
        if not listener.held:
            return
        listener.held = False
        self.touch(listener)
        if listener.paused:                          # whatever was missing may be there by now
            listener.timer = self.timers.add(self.now(), listener, ACCEPT_TIMER)
            self._wake_outside_turn()

    def _accept(self, listener: ListenerState) -> None:
        """Take who waits, a few a turn; pause where nothing is free to take them with."""
        for _ in range(contract.ACCEPTS_PER_TURN):
            sock = listener.sock
            if sock is None or listener.held:
                return
            if not self._may_accept():
                self._pause(listener, Fault.NO_DESCRIPTORS)
                return
            try:
                client, name = sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in PASSING_ERRORS:
                    continue
                self._pause(listener, fault_of(error.errno or 0))
                return
            self._resume(listener)
            self._accepted += 1
            link = self._open(client, is_unix=listener.is_unix, inherits=True, wants=1)
            listener.latest = link.number
            local = listener.local or address_of(client.getsockname())
            self.post(
                link, Accepted(self.now(), link.number, listener.number, address_of(name), local)
            )
            if self.now() >= self._until:
                break
        self._resume(listener)

    def _may_accept(self) -> bool:
        """Whether one more could be connected on, and all that are here already."""
        return len(self._links) + self._given + max(0, self._wanted) + 2 <= self._room

    def _pause(self, listener: ListenerState, fault: Fault) -> None:
        if not listener.paused:
            listener.paused = True
            self.touch(listener)
            self.post(listener, AcceptPaused(self.now(), listener.number, fault))
        if listener.timer is None:
            at = self.now() + contract.ACCEPT_RETRY
            listener.timer = self.timers.add(at, listener, ACCEPT_TIMER)

    def _resume(self, listener: ListenerState) -> None:
        if listener.paused:
            listener.paused = False
            if listener.timer is not None:
                self.timers.cancel(listener.timer)
                listener.timer = None
            self.touch(listener)
            self.post(listener, AcceptResumed(self.now(), listener.number))

    # --- Links: how they come ---------------------------------------------------------------

    def adopt(self, inherited: socket.socket) -> Link:
        """See contract.Engine.adopt."""
        return self._open(inherited, is_unix=inherited.family == socket.AF_UNIX).number

    def pair(self) -> tuple[Link, Link]:
        """See contract.Engine.pair."""
        one, two = self._open_pair()
        near = self._open(one, is_unix=True, wants=-1)
        return near.number, self._open(two, is_unix=True).number

    def connect(self, address: Address, source: str = "") -> Link:
        """See contract.Engine.connect."""
        assert not address.builtin
        assert not source or not address.is_unix
        link = LinkState(self._number(), CONNECTING, wants=-1)
        link.address = address
        self._links[link.number] = link
        self._wanted += link.wants
        try:
            link.attach(self._open_socket(family_of(address)), is_unix=address.is_unix)
            if source:
                self._bind(link, source)
            self._try_connect(link)
        except OSError as error:
            self._connect_failed(link, fault_of(error.errno or 0))
        return link.number

    def _open(
        self, sock: socket.socket, *, is_unix: bool, inherits: bool = False, wants: int = 0
    ) -> LinkState:
        """A connected socket becomes a link, held; one that `inherits` has its listener's options.
        """
        sock.setblocking(False)
        link = LinkState(self._number(), OPEN, wants)
        self._wanted += wants
        link.attach(sock, is_unix=is_unix)
        if not inherits:
            self._set_nodelay(link)
        self._links[link.number] = link
        self.touch(link)
        return link

    def _bind(self, link: LinkState, source: str) -> None:
        """Connect from this address; raises OSError. That bind(2) gives no port (Linux 4.2) is the
        point: else it would take one that nobody has toward anywhere, and 28,000 were all that one
        address could have, over all upstreams. connect(2) takes one that is free toward its own."""
        assert link.sock is not None
        link.sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        link.sock.bind((source, 0))

    def _try_connect(self, link: LinkState) -> None:
        """connect(2), first or again; raises OSError."""
        assert link.sock is not None and link.address is not None
        number = link.sock.connect_ex(target_of(link.address))
        if number == 0:
            self._is_connected(link)
        elif number in (errno.EINPROGRESS, errno.EINTR):
            self.touch(link)
        elif number == errno.EAGAIN and link.is_unix:
            link.timer = self.timers.add(self.now() + CONNECT_RETRY, link, CONNECT_TIMER)
            self._wake_outside_turn()
        else:
            raise OSError(number, os.strerror(number))

    def _connect_ready(self, link: LinkState) -> None:
        assert link.sock is not None and link.address is not None
        number = link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._connect_failed(link, fault_of(number))
        elif link.sock.getsockname()[:2] == target_of(link.address):
            # On loopback the kernel may pick the port itself that we connect to: a simultaneous
            # open with nobody but ourselves (RFC 9293 3.5). Nothing listens there.
            self._connect_failed(link, Fault.REFUSED)
        else:
            self._is_connected(link)

    def _is_connected(self, link: LinkState) -> None:
        link.state = OPEN
        link.address = None
        self._set_nodelay(link)
        self._connected += 1
        self.touch(link)
        self.post(link, Connected(self.now(), link.number))

    def _connect_failed(self, link: LinkState, fault: Fault) -> None:
        self.bury(link)
        now = self.now()
        self.post(link, ConnectFailed(now, link.number, fault), Closed(now, link.number, fault))

    def _retry_connect(self, link: LinkState) -> None:
        """The timer for a full Unix queue is due."""
        link.timer = None
        try:
            self._try_connect(link)
        except OSError as error:
            self._connect_failed(link, fault_of(error.errno or 0))

    def _on_freed(self) -> None:
        for listener in list(self._listeners.values()):
            if listener.paused and not listener.held:
                self._accept(listener)

    def _set_nodelay(self, link: LinkState) -> None:
        if not link.is_unix:
            assert link.sock is not None
            link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_MAX)
