"""The verbs of the contract over non-blocking sockets and a poller: what `uv` and `memory` share.

An engine is this class and a kernel: a clock, a way to open sockets, a poller with the face of
`select.epoll`, and something that calls `_turn` when there is cause. `uv.py` brings Linux,
`memory.py` a simulated one; so the simulation tries the very code that carries real sockets.
Laws of this file:

- A link is forgotten when its `Closed` is delivered, and its descriptor closed long before.
- The network never makes a verb raise: each OSError becomes a fault in an event.
- Idle links own no buffer, no queue, no list and no timer of the engine's.

How a turn goes is in `reactor.py`, how links come in `arrivals.py`, the relay's part in
`relay_driver.py`; names without underscore that are not verbs are for it.
"""

import fcntl
import select
import socket
import sys
import termios
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from gateway.engine import contract
from gateway.engine.arrivals import CONNECT_TIMER
from gateway.engine.contract import QUEUE_HIGH, QUEUE_MAX, Stats
from gateway.engine.link_state import (
    CLOSING,
    CONNECTING,
    DEAD,
    OPEN,
    SECURING,
    Endpoint,
    LinkState,
    ListenerState,
)
from gateway.engine.machines import contexts
from gateway.engine.reactor import Poller, TimerOwner
from gateway.engine.relay_driver import RelayDriver, RelayFactory
from gateway.engine.secure import MachineFactory, verdict_of
from gateway.engine.securing import Securing
from gateway.errors import Fault, fault_of
from gateway.events import (
    Cause,
    Cleared,
    Clogged,
    Closed,
    Event,
    Finished,
    LegCounts,
    Link,
    Received,
    RelayRules,
    TimedOut,
)
from gateway.relaying import Relay

if TYPE_CHECKING:
    from gateway.engine.compiled_relays import CompiledRelays

PIECES_MAX = 64                    # pieces of a queue that one sendmsg takes

# The engine's own timers; the caller's names get a prefix, so that none can be one of these.
_CLOSE = "close"
_CALLERS = "/"


class SocketEngine(Securing):
    """See the module's docstring."""

    name = ""

    def __init__(
        self,
        poller: Poller,
        relay_factory: RelayFactory = Relay,
        machines: MachineFactory | None = None,
    ):
        super().__init__(poller, machines or contexts())
        self.relay_factory = relay_factory
        self.relays = 0                                  # of the driver in Python
        self.compiled: CompiledRelays | None = None
        self._closed = 0

    # --- Links: reading ---------------------------------------------------------------------

    def read(self, link: Link) -> None:
        """See contract.Engine.read."""
        state = self._living(link)
        if state is None:
            if link in self._listeners:
                self._read_listener(self._listeners[link])
        elif not state.reading:
            assert state.state in (OPEN, SECURING)
            state.reading = True
            self.touch(state)
            if state.secured is not None and state.secured.pending and not state.finished:
                self._receive(state)

    def hold(self, link: Link) -> None:
        """See contract.Engine.hold."""
        state = self._living(link)
        if state is None:
            if link in self._listeners:
                self._hold_listener(self._listeners[link])
        elif state.reading:
            state.reading = False
            self.touch(state)
            if state.fault is not None:
                self._lose(state, state.fault)      # nobody reads on to its end

    def _receive(self, link: LinkState) -> None:
        assert link.sock is not None
        try:
            count = link.sock.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError as error:
            fault, detail = verdict_of(error)
            self._lose(link, link.fault or fault, detail)
            return
        if count:
            data = bytes(self.buffer[:count])
            self.post(link, Received(self.now(), link.number, data))
            if link.secured is not None and link.secured.pending:
                self._receive(link)
        elif link.fault is not None:
            self._lose(link, link.fault)
        else:
            link.finished = True
            self.touch(link)
            self.post(link, Finished(self.now(), link.number))

    # --- Links: sending ---------------------------------------------------------------------

    def send(self, link: Link, data: bytes) -> None:
        """See contract.Engine.send."""
        state = self._living(link)
        if state is None or state.fault is not None or not data:
            return
        assert state.state is OPEN and not state.finishing
        if state.queue is None:
            if not state.blocked:
                try:
                    data = data[self.send_some(state, (data,)) :]
                except OSError as error:
                    self._send_failed(state, fault_of(error.errno or 0))
                    return
                if not data:
                    return
            state.queue = deque()
        state.queue.append(data)
        state.queued += len(data)
        if not state.blocked:
            self._flush(state)
        if state.queued > QUEUE_MAX:
            self._lose(state, Fault.OVERFLOW)
        elif state.queued > QUEUE_HIGH and not state.clogged:
            state.clogged = True
            self.post(state, Clogged(self.now(), link))

    def finish(self, link: Link) -> None:
        """See contract.Engine.finish."""
        state = self._living(link)
        if state is not None and state.fault is None:
            assert state.state is OPEN
            state.finishing = True
            self._flush(state)

    def _flush(self, link: LinkState) -> None:
        """Send what the kernel takes; when all is out, do what waits for that."""
        try:
            self.flush_queue(link)
            if link.queue is None and link.finishing and not link.shut:
                self.shut(link)
        except OSError as error:
            self._send_failed(link, fault_of(error.errno or 0))
            return
        if link.state is CLOSING:
            if self._all_is_out(link):
                self._end_close(link)
        elif link.clogged and link.queued <= QUEUE_HIGH // 2:
            link.clogged = False
            self.post(link, Cleared(self.now(), link.number))

    def _send_failed(self, link: LinkState, fault: Fault) -> None:
        """Nothing leaves any more. What came before is still read: an answer, before the RST."""
        if link.state is CLOSING:
            self._end_close(link)
        elif link.reading and not link.finished and fault is Fault.RESET:
            link.fault = fault
            link.drop_queue()
            self.touch(link)
        else:
            self._lose(link, fault)

    def flush_queue(self, link: LinkState) -> None:
        """Send the link's own queue as far as the kernel takes it; raises OSError."""
        while link.queue and not link.blocked:
            count = self.send_some(link, link.queue)
            link.queued -= count
            while count:
                first = link.queue[0]
                if len(first) > count:
                    link.queue[0] = memoryview(first)[count:]
                    break
                count -= len(first)
                link.queue.popleft()
        if not link.queue:
            link.queue = None

    def send_some(self, link: LinkState, queue: Sequence[bytes | memoryview]) -> int:
        """Bytes that the kernel took from the front; 0 if it is full. Raises OSError."""
        assert link.sock is not None
        try:
            if len(queue) == 1:
                return link.sock.send(queue[0])
            return link.sock.sendmsg(list(islice(queue, PIECES_MAX)))
        except BlockingIOError:
            link.blocked = True
            self.touch(link)
            return 0

    def shut(self, link: LinkState) -> None:
        """Send FIN; raises OSError. Where a close_notify does not go out before it, it is to be
        tried again when the link is writable."""
        assert link.sock is not None
        link.shut = True
        try:
            link.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            link.shut = False
            link.blocked = True
            self.touch(link)

    # --- Links: how they go -----------------------------------------------------------------

    def close(self, link: Link, last: bytes = b"") -> None:
        """See contract.Engine.close."""
        state = self._living(link)
        if state is None:
            return
        state.forget_news()
        self._clear_timers(state)
        if last and not self._say_last(state, last):
            return
        if self._all_is_out(state):
            self._end_close(state)
            return
        state.state = CLOSING
        state.reading = False
        state.timer = self.timers.add(self.now() + contract.CLOSE_LIMIT, state, _CLOSE)
        self.touch(state)

    def _all_is_out(self, link: LinkState) -> bool:
        """Whether nothing is to be sent before the FIN any more, a close_notify of TLS included."""
        if link.queue is not None:
            return False
        if link.secured is None or link.fault is not None:
            return True
        try:
            link.secured.say_close()
        except OSError:
            return True
        if link.secured.unsent:
            link.blocked = True
            self.touch(link)
        return not link.secured.unsent

    def _say_last(self, link: LinkState, data: bytes) -> bool:
        """Send or queue what goes before the end; False if that was the end already."""
        assert link.state is OPEN and not link.finishing
        if link.fault is not None:
            return True                             # nothing leaves any more
        if link.queue is None:
            if not link.blocked:
                assert link.sock is not None
                try:
                    # It waits for the FIN, and both leave as one (tcp(7), on TCP_CORK); but in TLS
                    # there is a record between them.
                    flags = () if link.secured is not None else (socket.MSG_MORE,)
                    data = data[link.sock.send(data, *flags) :]
                except BlockingIOError:
                    link.blocked = True
                except OSError:
                    self._end_close(link)
                    return False
                if not data:
                    return True
            link.queue = deque()
        link.queue.append(data)
        link.queued += len(data)
        return True

    def reset(self, link: Link) -> None:
        """See contract.Engine.reset."""
        if self._is_compiled(link):
            assert self.compiled is not None
            self.compiled.cut(link)
            return
        relayed = self._links.get(link)
        if relayed is not None and relayed.relay is not None:
            relayed.relay.cut()
            return
        state = self._living(link, closing=True)
        if state is not None:
            state.forget_news()
            self._end_close(state, abort=True)

    def _end_close(self, link: LinkState, *, abort: bool = False) -> None:
        """The end that was ordered."""
        self.bury(link, abort=abort)
        self.post(link, Closed(self.now(), link.number, None))

    def _lose(self, link: LinkState, fault: Fault, detail: str = "") -> None:
        """The end that nobody ordered. What was received before it is delivered before it.

        TLS that failed has said an alert, which an RST might destroy; and an answer may be on its
        way to who finished without close_notify. Neither is told one: what is said to it may be
        cut as well.
        """
        in_order = fault in (Fault.TLS, Fault.TRUNCATED) and link.queue is None
        if link.secured is not None:
            link.secured.keep_silent()
        self.bury(link, abort=not in_order)
        link.fault = fault
        self.post(link, Closed(self.now(), link.number, fault, detail))

    def bury(self, link: LinkState, *, abort: bool = False) -> None:
        """Close the descriptor, drop what the link owns; its `Closed` is the caller's to post."""
        if link.state is DEAD:
            return
        self.release(link, abort=abort)
        self._clear_timers(link)
        link.secured = None
        link.state = DEAD
        link.drop_queue()
        self._wanted -= link.wants
        self._closed += 1

    # --- Relays -----------------------------------------------------------------------------

    def relay(
        self,
        client: Link,
        upstream: Link,
        rules: RelayRules,
        from_client: bytes = b"",
        from_upstream: bytes = b"",
    ) -> None:
        """See contract.Engine.relay."""
        assert client != upstream
        assert not (self._is_compiled(client) or self._is_compiled(upstream))
        one, two = self._links.get(client), self._links.get(upstream)
        if one is None or two is None:
            return
        for link in (one, two):
            assert link.relay is None and not link.finishing
            assert link.state not in (CONNECTING, SECURING)
            if link.state is CLOSING or (link.state is DEAD and link.fault is None):
                return                              # closed by order: its `Closed` is on its way
        if self.compiled is not None:
            self.hand_to_kernel((one, two))
        if self.compiled is not None and self.compiled.may_have(one, two):
            self.compiled.begin(one, two, rules, (from_client, from_upstream))
        else:
            RelayDriver(self, one, two, rules).begin(from_client, from_upstream)

    def end(self, client: Link, cause: Cause, rules: RelayRules | None = None) -> None:
        """See contract.Engine.end."""
        if self._is_compiled(client):
            assert self.compiled is not None
            self.compiled.end(client, cause, rules)
            return
        link = self._links.get(client)
        if link is not None and link.relay is not None:
            link.relay.end(cause, rules)

    def inspect(self, client: Link) -> tuple[LegCounts, LegCounts] | None:
        """See contract.Engine.inspect."""
        if self._is_compiled(client):
            assert self.compiled is not None
            return self.compiled.inspect(client)
        link = self._links.get(client)
        return None if link is None or link.relay is None else link.relay.relay.counts()

    def idle(self, client: Link) -> float | None:
        """See contract.Engine.idle."""
        if self._is_compiled(client):
            assert self.compiled is not None
            return self.now() - self.compiled.active_at(client)
        link = self._links.get(client)
        if link is None or link.relay is None:
            return None
        return self.now() - link.relay.relay.active_at

    def _is_compiled(self, link: Link) -> bool:
        return self.compiled is not None and link in self.compiled.slots

    def detach(self, link: LinkState) -> int:
        """Give the link's descriptor away; the link itself stays only for the caller's timers."""
        assert link.sock is not None
        self.unwatch(link)
        link.drop_queue()
        self._wanted -= link.wants
        link.wants = 0
        self._given += 1
        sock, link.sock = link.sock, None
        if link.timers is None and not link.news:
            del self._links[link.number]
        return sock.detach()

    def come_back(self, client: Link, upstream: Link, *batch: Event) -> None:
        """A relay that was given away has ended."""
        for number in (client, upstream):
            link = self._links.get(number)
            if link is None:
                link = self._links[number] = LinkState(number, DEAD)
            else:
                self._clear_timers(link)
                link.state = DEAD
        self._closed += 2
        self._given -= 2
        self.freed()
        self.post(self._links[client], *batch)

    # --- Timers -----------------------------------------------------------------------------

    def set_timer(self, link: Link, name: str, at: float) -> None:
        """See contract.Engine.set_timer."""
        state = self._links.get(link)
        if state is None:
            if not self._is_compiled(link):
                return
            state = self._links[link] = LinkState(link, OPEN)
        elif state.state is CLOSING or state.state is DEAD:
            return
        if state.news or (state.timers is not None and name in state.timers):
            self.clear_timer(link, name)
        timer = self.timers.add(at, state, _CALLERS + name)
        if state.timers is None:
            state.timers = {name: timer}
        else:
            state.timers[name] = timer
        self._wake_outside_turn()

    def clear_timer(self, link: Link, name: str) -> None:
        """See contract.Engine.clear_timer."""
        state = self._links.get(link)
        if state is None:
            return
        timer = state.timers.pop(name, None) if state.timers else None
        if timer is not None:
            self.timers.cancel(timer)
        elif state.news:
            state.news[:] = [
                batch
                for batch in state.news
                if not (isinstance(batch[0], TimedOut) and batch[0].name == name)
            ]
        if not state.timers:
            state.timers = None

    def _clear_timers(self, link: LinkState) -> None:
        if link.timer is not None:
            self.timers.cancel(link.timer)
            link.timer = None
        if link.timers is not None:
            for timer in link.timers.values():
                self.timers.cancel(timer)
            link.timers = None
        if link.news:
            link.news[:] = [batch for batch in link.news if not isinstance(batch[0], TimedOut)]

    # --- What a turn finds ---------------------------------------------------------------------

    def _on_ready(self, owner: Endpoint, mask: int) -> None:
        if isinstance(owner, ListenerState):
            self._accept(owner)
            return
        assert isinstance(owner, LinkState)
        if mask & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP):
            owner.blocked = False
            self.touch(owner)
        if owner.relay is not None:
            owner.relay.on_ready(owner, mask)
        elif owner.state is CONNECTING:
            self._connect_ready(owner)
        elif owner.state is SECURING:
            self._shake(owner)
        else:
            self._link_ready(owner, mask)

    def _link_ready(self, link: LinkState, mask: int) -> None:
        if link.reading and not link.finished:
            if mask & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                self._receive(link)
        elif mask & select.EPOLLERR:
            fault = self.error_of(link)
            if link.state is CLOSING:
                self._end_close(link)
            elif fault is not None:
                self._lose(link, fault)
        elif mask & select.EPOLLHUP:
            link.hung = True
        if link.sock is not None and (link.queue is not None or link.secured is not None):
            self._flush(link)

    def error_of(self, link: LinkState) -> Fault | None:
        """What the kernel says of a link that shows an error; None if it takes it back."""
        assert link.sock is not None
        number = link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            return fault_of(number)
        link.hung = True
        return None

    def unacknowledged(self, link: LinkState) -> int:
        """Bytes that were sent, and that the far end has not taken (its kernel; on a Unix socket,
        itself)."""
        assert link.sock is not None
        return int.from_bytes(fcntl.ioctl(link.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def _on_due(self, owner: TimerOwner, name: str) -> None:
        if isinstance(owner, RelayDriver):
            owner.tick()
        elif isinstance(owner, ListenerState):
            owner.timer = None
            self._accept(owner)
        elif owner.state is DEAD:
            pass                                    # another timer of this turn ended it
        elif name == CONNECT_TIMER:
            self._retry_connect(owner)
        elif name == _CLOSE:
            owner.timer = None
            self._end_close(owner, abort=True)
        else:
            assert owner.timers is not None
            callers = name.removeprefix(_CALLERS)
            del owner.timers[callers]
            owner.timers = owner.timers or None
            self.post(owner, TimedOut(self.now(), owner.number, callers))

    # --- The end ----------------------------------------------------------------------------

    def stats(self) -> Stats:
        """See contract.Engine.stats."""
        compiled = self.compiled
        queued = compiled.queued if compiled else 0
        for link in self._links.values():
            queued += link.queued
            if link.relay is not None:
                queued += link.relay.queued_for(link)
        return Stats(
            links=len(self._links.keys() | compiled.slots.keys()) if compiled else len(self._links),
            relays=self.relays + (compiled.live if compiled else 0),
            listeners=len(self._listeners),
            timers=len(self.timers),
            queued=queued,
            accepted=self._accepted,
            connected=self._connected,
            closed=self._closed,
            calls=compiled.calls if compiled else 0,
        )

    def _close_all(self) -> None:
        """Close what is open, without an event. A stream that is cut must not look whole."""
        for listener in list(self._listeners):
            self.unlisten(listener)
        if self.compiled is not None:
            self.compiled.abandon()
            self.compiled = None
        for link in list(self._links.values()):
            if link.relay is not None:
                link.relay.abandon()
            self.bury(link, abort=link.queue is not None)
        self._links.clear()
        self._news.clear()
        self._touched.clear()
        assert not self._by_fd and not self.timers and not self.relays

    def _living(self, link: Link, *, closing: bool = False) -> LinkState | None:
        """The link, unless it is gone or (but for `closing`) ordered to go."""
        state, compiled = self._links.get(link), self.compiled
        assert compiled is None or link not in compiled.slots, "a verb on a relayed link is a bug"
        if state is None or state.state is DEAD:
            return None
        assert state.relay is None, "this verb on a relayed link is a bug"
        return None if state.state is CLOSING and not closing else state
