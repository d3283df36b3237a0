"""One life: a gateway, its clients and upstreams, the weather, its end. A seed says all of it.

    world = World(seed)
    world.run()          # raises where the gateway does
    problems = judge(world)    # see oracle.py

`Cast` says whose code plays: relays in Python or compiled, or broken ones; over TLS or not.
"""

import errno
import random
from dataclasses import dataclass, field
from typing import Any, cast

from gateway.control.channel import Message, encode
from gateway.control.listening import Bound
from gateway.control.report import Report
from gateway.control.worker import SessionMaker, Worker
from gateway.engine.memory import FarEnd, Network, Weather
from gateway.engine.memory_tls import SecureFarEnd
from gateway.engine.relay_driver import RelayFactory
from gateway.events import (
    Accepted,
    AccessRecord,
    Address,
    Command,
    Event,
    KeyPair,
    Side,
    TlsClient,
    TlsServer,
)
from gateway.limits import Limits
from gateway.protocol.desk import Desk
from gateway.protocol.session import Session
from gateway.relaying import Relay
from gateway.routing import RouteTable
from gateway.table import EndpointEntry, GatewaySettings, Listener, Route, Table, Upstream
from gateway.upstreams import Pool
from simulation import ends
from simulation.heads import draw_greeting, draw_reception
from simulation.plans import NEVER, Do, Plan, Writer, raw_flood, raw_plan, raw_slow, wait
from simulation.watch import WatchedEngine, hold

LISTEN = Address(host="127.0.0.1", port=8080)
BEGIN = 1.0                            # the clock at the start of a life
DRAIN = 12.0                           # seconds of the drain
AFTERWARDS = 200.0                     # seconds for the far ends to hear the end of it
PAGE = b"<p>a page</p>" * 20
HOSTS = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
SERVER = TlsServer(certificates=(KeyPair(chain=b"of all", key=b"", names=("example.com",)),))
CLIENT = TlsClient(server_name="example.com")


@dataclass(frozen=True)
class Cast:
    """Whose code plays."""

    relay: RelayFactory = Relay
    session: type[Session] = Session
    engine: type[WatchedEngine] = WatchedEngine
    name: str = "python"
    tls: bool = False                  # on every link, both sides


class SimWorker(Worker):
    """The real worker; its supervisor is at the far end of a simulated socket, its name is always
    the same."""

    def __init__(
        self, network: Network, engine: WatchedEngine, desk: Desk, report: Report,
        bound: dict[int, Bound], make_session: SessionMaker, accepted: dict[str, Accepted],
    ):
        """`accepted` is told of those at the door, of whom perhaps no session is made."""
        self._told_of = accepted
        end, self.supervisor = network.inherited()
        super().__init__(engine, desk, report, bound, end, make_session=make_session)
        self._name = "sim"

    def order(self, message: Message) -> None:
        """The supervisor says something."""
        if not self.supervisor.dead and not self.supervisor.closed:
            self.supervisor.send(encode(message))

    def _on_door(self, event: Event) -> None:
        comer = self._at_door[event.link]
        self._told_of[comer.name] = comer.accepted
        super()._on_door(event)

    @property
    def left(self) -> dict[Any, Session]:
        """Sessions that are not over."""
        return self._sessions


@dataclass
class Notes:
    """Takes the report's place."""

    records: list[AccessRecord] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    said: bool = False                # nothing of it waits to be flushed
    waiting: bool = False
    dropped: int = 0

    def access(self, record: AccessRecord) -> None:
        """See Report."""
        self.records.append(record)

    def info(self, message: str, **fields: object) -> None:
        """See Report."""
        self.lines.append(f"{message} {fields}")

    warning = info

    def error(self, message: str, **fields: object) -> None:
        """See Report."""
        self.errors.append(message)

    def flush(self) -> None:
        """See Report."""


class World:
    """See the module's docstring. With `talk`, `log` tells all that happens."""

    def __init__(self, seed: int, whose: Cast | None = None, *, talk: bool = False):
        self.seed, self.cast, self.talk = seed, whose or Cast(), talk
        self.dice = random.Random(f"life {seed}")
        self.log: list[str] = []
        self.mood = self.dice.choices(
            ["calm", "wild", "pressed", "entangled"], [20, 50, 15, 15]
        )[0]
        self.is_calm = self.mood != "wild"
        self.network = Network(seed, self._weather())
        self.network.now = BEGIN
        self.engine = self.cast.engine(self.network, self.cast.relay)
        self.notes = Notes()
        self.clients: list[ends.Client] = []
        self.upstreams: list[ends.Upstream | ends.RawUpstream] = []
        self.accepted: dict[str, Accepted] = {}      # by the session's number
        self.drain_at = self._draw_drain()
        self.kill_at = NEVER
        self.short_until = 0.0                       # descriptors are short until then
        self.desk = self._desk()
        self.worker = SimWorker(
            self.network, self.engine, self.desk, cast(Report, self.notes), {0: self._bound()},
            self._make_session, self.accepted,
        )
        self.engine.on_event = self._told
        self._invite()

    @property
    def told_by(self) -> float:
        """When the last farewell of the drain is said: they are spread over its time."""
        answer = max(route.close_timeout for route in self.desk.table.routes)
        return self.drain_at + max(0.0, DRAIN - answer)

    # --- The stage ----------------------------------------------------------------------------

    def note(self, who: str, what: str) -> None:
        """Tell it, if somebody listens."""
        if self.talk:
            self.log.append(f"{self.network.now:11.5f}  {who:12} {what}")

    def _told(self, event: Event) -> None:
        if self.talk:
            text = repr(event)
            self.note("engine", text if len(text) < 400 else f"{text[:400]}... {len(text)}")

    def _make_session(self, **keywords: Any) -> Session:
        number, accepted = keywords["number"], keywords["accepted"]
        self.accepted[number] = accepted
        maker = self.cast.session
        if self.talk:
            world = self

            class Talking(maker):  # type: ignore[misc, valid-type]
                __slots__ = ()

                def handle(self, side: Side, event: Event) -> list[Command]:
                    commands: list[Command] = super().handle(side, event)
                    for command in commands:
                        text = repr(command)
                        world.note(number, text if len(text) < 400 else f"{text[:400]}...")
                    return commands

            maker = Talking
        return maker(**keywords)

    # --- Drawing ------------------------------------------------------------------------------

    def _weather(self) -> Weather:
        dice = self.dice
        if self.is_calm:
            window = dice.choice([65536, 20_000]) if self.mood == "pressed" else 256 * 1024
            return Weather(latency=dice.choice([0.0, 0.001]), window=window)
        return Weather(
            latency=dice.choice([0.0, 0.0, 0.0005, 0.02]),
            jitter=dice.choice([0.0, 0.001, 0.02]),
            cuts=dice.choice([0.0, 0.1, 0.4]),
            short_reads=dice.choice([0.0, 0.2]),
            short_sends=dice.choice([0.0, 0.2]),
            rough_resets=dice.choice([0.0, 0.5]),
            shuffle=dice.random() < 0.5,
            window=dice.choice([256 * 1024, 256 * 1024, 65536, 20_000]),
        )

    def _draw_drain(self) -> float:
        dice = self.dice
        if self.mood == "pressed":
            return dice.choice([300.0, 300.0, dice.uniform(1.0, 12.0)])
        if self.is_calm:
            return 300.0
        return dice.choice([dice.uniform(0.0, 8.0), dice.uniform(8.0, 40.0), 160.0, 160.0])

    def _desk(self) -> Desk:
        dice = self.dice
        upstreams: dict[str, Upstream] = {}
        pools: dict[str, Pool] = {}
        for name in ("ws0", "ws1", "ws2", "raw0", "raw1"):
            self._add_upstream(name, upstreams, pools)
        upstreams["echo"] = Upstream(name="echo", scheme="builtin", builtin="echo")
        pools["echo"] = Pool(upstreams["echo"], random.Random(self.seed))
        entry = EndpointEntry(url="builtin:echo")
        pools["echo"].set_endpoints([(entry, Address(builtin="echo"))])
        upstreams["page"] = Upstream(name="page", scheme="builtin", builtin="page")
        pools["page"] = Pool(upstreams["page"], random.Random(self.seed))
        routes = [self._route(name) for name in ("ws0", "ws1", "ws2", "raw0", "raw1", "echo")]
        routes.append(Route(name="page", path="/page", upstream="page"))
        listener = Listener(
            address=LISTEN,
            head_timeout=dice.choice([2.0, 10.0]),
            keepalive_timeout=dice.choice([1.0, 60.0]),
            secure=SERVER if self.cast.tls else None,
        )
        table = Table(
            gateway=GatewaySettings(drain=DRAIN),
            listeners=(listener,), routes=tuple(routes), upstreams=upstreams,
        )
        limit = 1000 if self.is_calm else dice.choice([1000] * 5 + [2])
        if self.cast.tls:
            limit = 1000                # who is above it is cut before a handshake: no session
        return Desk(
            table=table, routes=RouteTable(table.routes), pools=pools, limits=Limits(limit),
            random_bytes=random.Random(f"keys {self.seed}").randbytes, page=PAGE,
        )

    def _add_upstream(
        self, name: str, upstreams: dict[str, Upstream], pools: dict[str, Pool]
    ) -> None:
        """An upstream with a few endpoints, not all of which are well."""
        dice = self.dice
        scheme = "tcp" if name.startswith("raw") else "ws"
        entries, resolved = [], []
        secure = CLIENT if self.cast.tls else None
        for at in range(1 if self.is_calm else dice.choice([1, 1, 2, 3])):
            if name in ("ws2", "raw1") and at == 0:
                path = f"/run/{name}.sock"
                entry = EndpointEntry(url=path, unix=path, secure=secure)
                address = Address(path=path)
            else:
                host, port = f"10.0.0.{at + 1}", 9000 + int(name[-1]) + 10 * (scheme == "tcp")
                entry = EndpointEntry(
                    url=f"{host}:{port}", host=host, port=port, secure=secure
                )
                address = Address(host=host, port=port)
            entries.append(entry)
            resolved.append((entry, address))
            self._open_endpoint(name, address, raw=scheme == "tcp")
        upstreams[name] = Upstream(
            name=name, scheme=scheme, entries=tuple(entries),
            balance=dice.choice(["least-connections", "round-robin", "random-two", "hash"]),
        )
        pools[name] = Pool(upstreams[name], random.Random(f"{name} {self.seed}"))
        pools[name].set_endpoints(resolved)

    def _open_endpoint(self, name: str, address: Address, *, raw: bool) -> None:
        dice, network = self.dice, self.network
        chance = 0.0 if self.is_calm else dice.random()

        def come(far: FarEnd) -> None:
            self._upstream_came(name, far, raw=raw)

        make = SecureFarEnd.speaking(SERVER) if self.cast.tls else FarEnd
        if chance < 0.82:
            network.on_connect(address, come, make=make)
        elif chance < 0.86:
            network.on_connect(address, come, delay=dice.choice([0.3, 4.0]), make=make)
        elif chance < 0.90 and address.is_unix:
            network.on_connect(address, come, full_until=dice.choice([0.5, 9.0]), make=make)
        elif chance < 0.95:
            network.on_connect(address, error=dice.choice(
                [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETUNREACH]
            ))
        else:
            network.on_connect(address, silent=True)

    def _route(self, name: str) -> Route:
        dice = self.dice
        odd = self.mood in ("wild", "entangled")
        return Route(
            name=name, path=f"/{name}/*", upstream=name,
            subprotocols=("binary",) if name.startswith("raw") else (),
            frames="text" if name == "raw1" else "binary",
            max_message=dice.choice([0, 0, 0, 0, 0, 300, 5000]) if odd else 0,
            max_frame=dice.choice([0, 0, 0, 0, 0, 200, 3000]) if odd else 0,
            max_queue=dice.choice([1024, 5000, 65536, 256 * 1024]),
            max_sessions=dice.choice([0, 0, 0, 1, 2]) if odd else 0,
            max_sessions_per_client=dice.choice([0, 0, 0, 1]) if odd else 0,
            # Of a die of its own, so that older seeds tell the stories that they told before.
            handshakes=random.Random(f"rate {self.seed} {name}").choice([0.0, 0.0, 0.0, 0.8, 3.0])
            if self.mood == "wild" else 0.0,
            connect_timeout=dice.choice([0.5, 2.0]),
            answer_timeout=dice.choice([2.0, 15.0]),
            idle_timeout=0.0 if self.mood == "calm" else dice.choice([0.0, 0.0, 0.0, 6.0]),
            write_timeout=dice.choice([0.0, 4.0, 30.0]),
            close_timeout=dice.choice([1.0, 5.0]),
            session_timeout=dice.choice([0.0, 0.0, 0.0, 9.0, 25.0]) if odd else 0.0,
            session_code=dice.choice([1000, 4000]),
            heartbeat=dice.choice([0.0, 3.0, 30.0]),
            heartbeat_timeout=dice.choice([2.0, 20.0]),
            drain_code=dice.choice([1001, 1012]),
            drain_reason=dice.choice(["", "bald wieder da"]),
        )

    def _bound(self) -> Bound:
        listener = self.desk.table.listeners[0]
        return Bound(listener, self.network.listener(LISTEN), LISTEN)

    # --- Who comes ----------------------------------------------------------------------------

    def _invite(self) -> None:
        """Let clients come, and trouble."""
        dice, network = self.dice, self.network
        for at in range(dice.choice([1, 1, 2, 2, 3, 5])):
            network.at(dice.choice([0.0, 0.0, dice.uniform(0, 4)]), self._client_comes, at)
        network.at(self.drain_at, self._order, "drain")
        if self.is_calm:
            return
        chance = dice.random()
        if chance < 0.08:
            self.kill_at = self.drain_at + dice.choice([0.0, 0.3, 4.0])
            network.at(self.kill_at, self._order, "kill")
        elif chance < 0.16:
            self.kill_at = min(dice.uniform(BEGIN, 20.0), self.drain_at)
            network.at(self.kill_at, self._order, "kill")
        if dice.random() < 0.1:
            network.at(dice.choice([0.0, 1.0]), self._run_out, dice.choice([3, 4, 5, 6]))
            self.short_until = dice.choice([2.0, 6.0])
            network.at(self.short_until, self._run_out, None)
        if dice.random() < 0.1:
            for _ in range(dice.choice([1, 3])):
                network.accept_errors.append(
                    dice.choice([errno.EMFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EPROTO])
                )

    def _run_out(self, descriptors: int | None) -> None:
        self.note("kernel", f"descriptors_max is {descriptors}")
        self.network.descriptors_max = descriptors

    def _order(self, do: str) -> None:
        self.note("supervisor", do)
        self.worker.order({
            "do": do, "seconds": DRAIN, "cause": "a test", "others": False, "why": "a test",
        })

    def _client_comes(self, at: int) -> None:
        dice, name = self.dice, f"c{at}"
        route = dice.choice(["ws0", "ws0", "ws0", "ws1", "ws1", "ws2", "raw0", "raw0", "raw1",
                             "echo"])
        host = dice.choice(HOSTS)
        make = SecureFarEnd.speaking(CLIENT) if self.cast.tls else FarEnd
        address = Address(host=host, port=self.network.port())
        far = self.network.connect_client(LISTEN, address, make)
        kinds = {"upgrade": 80, "plain": 8, "hostile": 6, "half": 6}
        kind = dice.choices(list(kinds), list(kinds.values()))[0]
        if self.is_calm:
            kind = "upgrade"
        if kind == "half":
            deed = dice.choice(["fin", "reset", "close", "vanish", ""])
            plan = Plan([Do(wait(dice), deed)] if deed else [])
        else:
            calm = self.mood in ("calm", "pressed") or dice.random() < 0.4
            plan = self._plan(Writer(dice, name, is_client=True, calm=calm))
        greeting = draw_greeting(
            dice, kind, f"/{route}/{name}", plan, slow=dice.random() < 0.3
        )
        client = ends.Client(self, far, name, greeting)
        self.clients.append(client)
        client.come()

    def _plan(self, writer: Writer) -> Plan:
        if self.mood == "pressed" and self.dice.random() < 0.9:
            return self.dice.choice([writer.flood, writer.slow])()
        return writer.entangled() if self.mood == "entangled" else writer.plan()

    def _upstream_came(self, route: str, far: FarEnd, *, raw: bool) -> None:
        dice, name = self.dice, f"u{len(self.upstreams)}"
        calm = self.mood in ("calm", "pressed") or dice.random() < 0.4
        self.note(name, f"is connected, for {route}")
        if raw:
            plan = raw_plan(dice, name, text=route == "raw1", calm=calm)
            if self.mood == "pressed":
                plan = self.dice.choice([raw_flood, raw_slow])(dice, name)
            self.upstreams.append(ends.RawUpstream(self, far, name, plan))
            return
        plan = self._plan(Writer(dice, name, is_client=False, calm=calm))
        reception = draw_reception(dice, plan)
        if self.is_calm:
            reception.kind, reception.twice, reception.interims = "accept", False, 0
            reception.wait = 0.0
        self.upstreams.append(ends.Upstream(self, far, name, reception))

    # --- The life -----------------------------------------------------------------------------

    def run(self) -> None:
        """Live it to its end."""
        engine, network = self.engine, self.network
        self.worker.start()
        until = max(self.drain_at, self.kill_at if self.kill_at != NEVER else 0.0) + DRAIN + 2.0
        engine.advance(engine.watched(self.worker.deliver), until)
        self.note("world", f"ended, {'stopped' if engine.is_stopped else 'still running'}")
        hold(engine.is_stopped, "progress: the gateway has not ended after its drain")
        network.go_to(network.now + AFTERWARDS)
