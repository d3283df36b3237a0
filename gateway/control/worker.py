"""The worker: carries events one way and commands the other, and nothing else.

It is the only file that knows an engine and sessions both. An engine speaks of links; a session
speaks of its two sides; the worker has the map between them. It decides nothing about protocol.

Laws of this file:

- Events are handed on from `deliver` alone, one after another; no session is entered from inside
  another, nor from inside a verb.
- What a link says after its session has forgotten it (`Reset` of the upstream, a failed connect)
  reaches nobody. What a session orders for a link that is gone is dropped: the event that says so
  has been or will be delivered.
- A session that raises has a bug. It is ended loudly: the traceback goes to the log under its id,
  both links are reset, what it was counted for is given back. The others go on.
- It hears no signal. What the supervisor says comes by a link of the engine (see orders.py); a
  worker whose supervisor is gone drains and ends (draining.py), since nobody would replace it.
"""

import base64
import secrets
import socket
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from gateway import events
from gateway.control.accepting import LOOK, Accepting, Told
from gateway.control.attending import Attending
from gateway.control.channel import Message
from gateway.control.counters import NOTHING_MOVED, Counters, Moved
from gateway.control.draining import Draining
from gateway.control.listening import Bound
from gateway.control.orders import Orders
from gateway.control.parties import Comer, Counts, Echo, Party
from gateway.control.pulse import Pulse
from gateway.control.report import Report
from gateway.control.shared import Cell
from gateway.control.trouble import Trouble
from gateway.engine.contract import Engine
from gateway.errors import Fault, fault_of
from gateway.events import CLIENT, UPSTREAM, Accepted, AccessRecord, Command, Event, Link, Side
from gateway.protocol.desk import Desk
from gateway.protocol.door import turn_away
from gateway.protocol.session import Session
from gateway.table import Listener

FLUSH_RETRY = 0.1             # seconds until a slow reader of the log is tried again
FLUSH_EVERY = 0.005           # seconds: a write for each of many records is dear in a storm

# Names of timers that are the worker's own. Sessions use words without a space.
_PAIRED = "pair connected"
_UNPAIRED = "pair failed"
_FLUSH = "flush"
_SAID = "said"


# Commands that are one verb for the link of a side.
_VERBS: dict[type[Command], Callable[[Engine, Link, Any], None]] = {
    events.Read: lambda engine, link, _: engine.read(link),
    events.Hold: lambda engine, link, _: engine.hold(link),
    events.Send: lambda engine, link, command: engine.send(link, command.data),
    events.Secure: lambda engine, link, command: engine.secure(
        link, command.settings, command.received
    ),
    events.Finish: lambda engine, link, _: engine.finish(link),
    events.Close: lambda engine, link, command: engine.close(link, command.last),
}

SessionMaker = Callable[..., Session]   # with the keywords of Session.__init__


class Worker:
    """One engine and its sessions. `run` drives it until the supervisor ends it.

    `desk` is what the sessions share; `bound` the sockets to listen on by their numbers, and
    `channel` its own end of what leads there: the engine takes them all. `number` is the
    worker's among all, `counters` where it shares what it counts; `make_session` is for tests.
    """

    def __init__(
        self,
        engine: Engine,
        desk: Desk,
        report: Report,
        bound: dict[int, Bound],
        channel: socket.socket,
        number: int = 0,
        counters: Counters | None = None,
        make_session: SessionMaker = Session,
    ) -> None:
        self.counts = Counts()
        self._engine = engine
        self._desk = desk
        self._report = report
        self._number = number
        self._counters = counters
        self._pulse: Pulse | None = None
        self._bound = bound
        self._make_session = make_session
        self._accepting = Accepting(engine)
        self._clients: dict[Link, Party] = {}    # by the client's link; echo endpoints, too
        self._upstreams: dict[Link, Party] = {}
        self._sessions: dict[Party, Session] = {}
        self._at_door: dict[Link, Comer] = {}    # those of whom no session is made yet
        self._name = base64.b32encode(secrets.token_bytes(5)).decode().lower()
        self._stopped = False
        self._flushing = False          # the timer for the log is set
        self._flushed_at = -FLUSH_EVERY
        self._trouble = Trouble(report)
        self._said_before: Iterable[Message] = ()  # that it began
        self._own: Link = -1            # for the worker's timers; the channel may be lost
        self._draining = Draining(
            self, self._accepting, desk, report, self._sessions, number, counters
        )
        self.orders = Orders(engine, channel, self._draining.orders, self._draining.orphaned)
        self.orders.know(Attending(self._sessions, self.tell).orders)
        self._execute_one: dict[type[Command], Callable[[Party, Any], None]] = {
            **dict.fromkeys(_VERBS, self._on_link),
            events.Connect: self._connect,
            events.Relay: self._relay,
            events.End: self._end,
            events.Reset: self._reset,
            events.SetTimer: self._set_timer,
            events.ClearTimer: self._clear_timer,
            events.Record: self._record,
        }

    # --- Life -------------------------------------------------------------------------------

    def run(self, said: Iterable[Message] = ()) -> None:
        """Serve until the supervisor, or its end, ends it. `said` is what it has said already."""
        self.start()
        self.orders.say({"is": "serving", "worker": self._number})
        self._said_before = said
        self._engine.set_timer(self._own, _SAID, self._engine.now())
        self._engine.run(self.deliver)

    def start(self) -> None:
        """Listen. Events are expected from here on."""
        self._own, _ = self._engine.pair()
        self._accepting.own = self._own
        self.orders.start()
        # Records name the address as it really is, where the table says port 0.
        self._accepting.change(
            {n: replace(each.listener, address=each.address) for n, each in self._bound.items()},
            {n: each.socket for n, each in self._bound.items()},
        )
        if self._counters is not None:
            self._pulse = Pulse(
                self._engine, self._own, self._accepting.links, self._desk.limits,
                self._counters, self._report, self._sessions.keys(),
            )
            self._pulse.start()

    # --- A reload ---------------------------------------------------------------------------

    @property
    def listening(self) -> Collection[int]:
        """The numbers of the listeners that it accepts from."""
        return self._accepting.numbers

    def listen_on(
        self, listeners: dict[int, Listener], sockets: dict[int, socket.socket], at: float,
        told: Told,
    ) -> None:
        """Accept from these and no others; of those that are new here are the sockets. It is told
        when those that went are closed."""
        self._accepting.change(listeners, sockets)
        self._accepting.closed(at, told)

    def drain_routes(self, seconds: dict[str, float], at: float) -> None:
        """Tell the sessions of these routes goodbye, over so many seconds."""
        self._draining.drain_routes(seconds, at)

    # --- Events -----------------------------------------------------------------------------

    def deliver(self, batch: list[Event]) -> None:
        """Hand on what the engine reports, then put out what was said about it."""
        for event in batch:
            self._deliver_one(event)
        if self._desk.news:
            self._trouble.endpoints(self._engine.now(), self._desk.news)
        if self._draining.has_begun and not self._sessions and not self._accepting.is_open:
            self.stop()
        if self._report.said and not self._flushing:
            self._flush()

    def _deliver_one(self, event: Event) -> None:
        party = self._clients.get(event.link)
        if party is not None:
            self._client_event(party, event)
            return
        party = self._upstreams.get(event.link)
        if party is not None:
            self._upstream_event(party, event)
        elif event.link in self._at_door:
            self._on_door(event)
        elif event.link == self.orders.link:
            self.orders.handle(event)
        elif event.link == self._own:
            self._own_event(event)
        elif isinstance(event, Accepted):
            self._admit(event)
        elif isinstance(event, events.AcceptPaused):
            address = str(self._accepting.listener(event.link).address)
            self._trouble.accept_paused(event.at, address, event.fault)
        elif isinstance(event, events.AcceptResumed):
            self._trouble.accept_resumed(str(self._accepting.listener(event.link).address))
        # Else it is of a link that was forgotten.

    def _client_event(self, party: Party, event: Event) -> None:
        if isinstance(event, events.Closed):
            self._forget_client(party)
        elif isinstance(event, events.Secured):
            self._share(Cell.TLS_RESUMED if event.resumed else Cell.TLS_FULL)
        elif isinstance(event, events.TimedOut) and event.name == _UNPAIRED:
            fault, party.unpaired = party.unpaired, None
            assert fault is not None
            failed = events.ConnectFailed(event.at, event.link, fault)
            self._hand(party, UPSTREAM, failed)
            return
        self._hand(party, CLIENT, event)

    def _upstream_event(self, party: Party, event: Event) -> None:
        if isinstance(event, events.TimedOut):
            assert event.name == _PAIRED
            event = events.Connected(event.at, event.link)
        elif isinstance(event, (events.ConnectFailed, events.Closed)):
            # A link that never came to be is forgotten at once: the session may order another
            # before this one's Closed arrives.
            self._forget_upstream(party)
            why = event.handshake if isinstance(event, events.Closed) else None
            if why is not None and self._counters is not None:
                self._counters.handshake_failed(UPSTREAM, why)
        self._hand(party, UPSTREAM, event)

    def _hand(self, party: Party, side: Side, event: Event) -> None:
        """Hand an event to a machine and do what it says."""
        machine = party.machine
        try:
            self._execute(party, machine.handle(side, event))
            assert party.client is not None or machine.over, "alive without its client"
        except Exception:  # noqa: BLE001 - whatever it is, it is the bug of this machine alone
            self._crashed(party, event.at)
        if machine.over:
            self._part(party)

    def tell(self, party: Party, order: Callable[[float], list[Command]], at: float) -> None:
        """Have a session do something that no event of its links asks for."""
        try:
            self._execute(party, order(at))
        except Exception:  # noqa: BLE001 - as above
            self._crashed(party, at)
        if party.machine.over:
            self._part(party)

    def _part(self, party: Party) -> None:
        """A machine that is over is forgotten, and an upstream that it left open is closed."""
        self._sessions.pop(party, None)
        if party.upstream is not None:
            self._engine.close(party.upstream)
            self._forget_upstream(party)

    def _crashed(self, party: Party, at: float) -> None:
        """End a machine that raised: it is told of its client's end, and of nothing else."""
        self.counts.crashed += 1
        self._share(Cell.CRASHED)
        self._report.error(traceback.format_exc(), session=party.name)
        session = self._sessions.pop(party, None)
        if party.upstream is not None:
            self._engine.reset(party.upstream)
            self._forget_upstream(party)
        if party.client is not None:
            self._engine.reset(party.client)
            self._forget_client(party)
        if session is None:
            return
        try:
            # It gives back what it was counted for, and has a record to write.
            for command in session.handle(CLIENT, events.Closed(at, -1, Fault.OTHER)):
                if isinstance(command, events.Record):
                    self._record(party, command)
        except Exception:  # noqa: BLE001 - nothing more can be done for it
            self._report.error(traceback.format_exc(), session=party.name)

    def _forget_client(self, party: Party) -> None:
        """The client's link is gone, or what it still says must reach nobody."""
        assert party.client is not None
        del self._clients[party.client]
        party.client = None
        if not isinstance(party.machine, Echo):
            self._desk.limits.closed()

    def _forget_upstream(self, party: Party) -> None:
        """The upstream's link is gone, or what it still says must reach nobody."""
        if party.upstream is not None:
            del self._upstreams[party.upstream]
        party.upstream = None

    # --- Admission --------------------------------------------------------------------------

    def _admit(self, event: Accepted) -> None:
        """A client came: it gets a session. Above the limits the session itself refuses."""
        self.counts.accepted += 1
        self._share(Cell.ACCEPTED)
        listener = self._accepting.listener(event.listener)
        if not self._desk.limits.opened(costly=listener.secure is not None):
            self.counts.refused += 1
            self._share(Cell.REFUSED)
            self._engine.reset(event.link)
            self._trouble.warn(
                event.at, "connections are cut at accept: far more than max_sessions are open, or "
                "as many, where a TLS handshake would be for nothing",
                connections=self._desk.limits.connections, cut=self.counts.refused,
            )
            return
        if self._pulse is not None:
            self._pulse.look(event.at)
        comer = Comer(f"{self._name}-{self.counts.accepted}", event, listener)
        is_refusing = self._desk.governor.is_refusing(event.at)
        if is_refusing and listener.secure is None and not self._draining.has_begun:
            self._at_door[event.link] = comer
            self._engine.read(event.link)
            self._engine.set_timer(
                event.link, "head", event.at + comer.listener.head_timeout
            )
        else:
            self._let_in(comer)

    def _let_in(self, comer: Comer) -> Party:
        """Make a session."""
        event = comer.accepted
        session = self._make_session(
            number=comer.name, accepted=event, listener=comer.listener, desk=self._desk
        )
        party = Party(session, event.link, comer.name)
        self._clients[event.link] = party
        self._sessions[party] = session
        self.tell(party, lambda _: session.start(), event.at)
        self._draining.admitted(party, event.at)
        return party

    def _on_door(self, event: Event) -> None:
        """Something of one who stands at the door: it is turned away, or let in with it."""
        comer = self._at_door.pop(event.link)
        if isinstance(event, events.Received):
            answer = turn_away(
                self._desk, comer.listener, comer.accepted, comer.name, event.data, event.at
            )
            if answer is not None:
                close, record = answer
                self._engine.close(event.link, close.last)
                self._desk.limits.closed()
                self._write(record.record)
                return
        party = self._let_in(comer)
        if event.link in self._clients:
            self._client_event(party, event)

    # --- Ends -------------------------------------------------------------------------------

    def _own_event(self, event: Event) -> None:
        """The worker's own timers."""
        assert isinstance(event, events.TimedOut)
        if event.name == _SAID:
            self.orders.obey(self._said_before, event.at)
        elif event.name == _FLUSH:
            self._flushing = False
            self._flush()
        elif event.name == LOOK:
            self._accepting.look(event.at)
        else:
            self._draining.timed_out(event.name, event.at)
            if self._pulse is not None:
                self._pulse.timed_out(event.name, event.at)

    def set_timer(self, name: str, at: float) -> None:
        """One of the worker's own."""
        self._engine.set_timer(self._own, name, at)

    def clear_timer(self, name: str) -> None:
        """Likewise."""
        self._engine.clear_timer(self._own, name)

    def idle(self, party: Party) -> float | None:
        """Seconds since a byte passed in its relay; None where it has none."""
        return None if party.client is None else self._engine.idle(party.client)

    def last_call(self) -> None:
        """Others reckon with us no more."""
        if self._pulse is not None:
            self._pulse.stop()
        while self._at_door:
            self._let_in(self._at_door.popitem()[1])

    def _share(self, cell: Cell) -> None:
        """One more of these, for all to see."""
        if self._counters is not None:
            self._counters.add(cell)

    def stop(self) -> None:
        """All is over."""
        if not self._stopped:
            self._stopped = True
            self._draining.over()
            self._report.flush()        # so that what cannot be written is known
            self.orders.say({
                "is": "ended", "accepted": self.counts.accepted, "cut": self.counts.cut,
                "dropped": self._report.dropped,
            })
            self._engine.stop()

    def _flush(self) -> None:
        """Put out what was said: at once, or with what else is said so soon after the last time.
        Where a reader is slow, come back."""
        now = self._engine.now()
        again = self._flushed_at + FLUSH_EVERY
        if now >= again or self._stopped:
            self._report.flush()
            self._flushed_at = now
            again = now + FLUSH_RETRY
        if self._report.waiting and not self._stopped:
            self._flushing = True
            self._engine.set_timer(self._own, _FLUSH, again)

    # --- Commands ---------------------------------------------------------------------------

    def _execute(self, party: Party, commands: list[Command]) -> None:
        """Do what a machine says, in its order."""
        for command in commands:
            self._execute_one[type(command)](party, command)

    def _connect(self, party: Party, command: events.Connect) -> None:
        assert party.upstream is None, "a second upstream link"
        if party.client is None:
            return
        if command.address.builtin:
            assert command.address.builtin == "echo"
            self._connect_echo(party, party.client)
            return
        party.upstream = self._engine.connect(command.address, command.source)
        self._upstreams[party.upstream] = party

    def _connect_echo(self, party: Party, client: Link) -> None:
        """Put an echo endpoint at the far end of a pair. Its outcome comes in the next batch, by
        a timer that is due at once: a session is never entered from inside."""
        now = self._engine.now()
        try:
            near, far = self._engine.pair()
        except OSError as error:
            party.unpaired = fault_of(error.errno or 0)
            self._engine.set_timer(client, _UNPAIRED, now)
            return
        party.upstream = near
        self._upstreams[near] = party
        self._engine.set_timer(near, _PAIRED, now)
        echo = Echo()
        far_party = Party(echo, far, f"{party.name} echo")
        self._clients[far] = far_party
        self.tell(far_party, lambda _: echo.endpoint.start(), now)

    def _link(self, party: Party, side: Side) -> Link | None:
        """The link of this side, or None where it is gone."""
        return party.client if side is CLIENT else party.upstream

    def _on_link(self, party: Party, command: Any) -> None:
        """What is one verb of the engine, for the link of one side."""
        link = self._link(party, command.side)
        if link is not None:
            _VERBS[type(command)](self._engine, link, command)

    def _relay(self, party: Party, command: events.Relay) -> None:
        party.rules = command.rules
        if self._counters is not None:
            route = self._sessions[party].entered
            self._counters.began(route.name if route is not None else "")
        if party.client is not None and party.upstream is not None:
            self._engine.relay(
                party.client, party.upstream, command.rules,
                command.from_client, command.from_upstream,
            )

    def _end(self, party: Party, command: events.End) -> None:
        if party.client is None:
            return
        if not command.code:
            self._engine.end(party.client, command.cause)
            return
        assert party.rules is not None
        rules = replace(party.rules, drain_code=command.code, drain_reason=command.reason)
        self._engine.end(party.client, command.cause, rules)

    def _reset(self, party: Party, command: events.Reset) -> None:
        """The client's link is heard until its `Closed`; the upstream's is forgotten at once."""
        if command.side is CLIENT:
            if party.client is not None:
                self._engine.reset(party.client)
            return
        if party.upstream is not None:
            self._engine.reset(party.upstream)
            self._forget_upstream(party)
        if party.unpaired is not None and party.client is not None:
            party.unpaired = None
            self._engine.clear_timer(party.client, _UNPAIRED)

    def _set_timer(self, party: Party, command: events.SetTimer) -> None:
        if party.client is not None:
            self._engine.set_timer(party.client, command.name, command.at)

    def _clear_timer(self, party: Party, command: events.ClearTimer) -> None:
        if party.client is not None:
            self._engine.clear_timer(party.client, command.name)

    def _record(self, party: Party, command: events.Record) -> None:
        self._draining.recorded(command.record)
        self._write(command.record, party.counted)

    def _write(self, record: AccessRecord, counted: Moved = NOTHING_MOVED) -> None:
        """`counted` is what of its relay is in the counters already."""
        if self._counters is not None:
            self._counters.record(record, counted)
        self._report.access(record)
