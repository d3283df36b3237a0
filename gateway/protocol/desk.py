"""What the sessions of one worker share, and what a route makes of one of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from gateway.events import Address, RelayRules
from gateway.governor import Governor, Rate
from gateway.limits import Limits
from gateway.protocol.http1 import Request
from gateway.routing import Match, RouteTable, normalise_path
from gateway.table import Listener, Route, Table
from gateway.upstreams import News, Pool


@dataclass(slots=True)
class Desk:
    """What the sessions of one worker share. Replaced piece by piece by a reload."""

    table: Table
    routes: RouteTable
    pools: dict[str, Pool]
    limits: Limits
    random_bytes: Callable[[int], bytes]
    page: bytes = b""
    draining: bool = False
    governor: Governor = field(default_factory=Governor)
    news: list[News] = field(default_factory=list)  # of all pools; who reads it empties it
    _rules: dict[tuple[int, bool, bool], tuple[Route, RelayRules]] = field(default_factory=dict)
    _rules_of: Table | None = None           # the table that they were made for
    _rates: dict[tuple[int, int], tuple[Listener, Route, tuple[Rate, ...]]] = field(
        default_factory=dict
    )

    def rules_of(self, route: Route, *, raw: bool, deflate: bool) -> RelayRules:
        """`rules_of`, made once for a route: all its relays share one object. A new table ends
        that; a session that began with the old one adds its route once more, until the next."""
        self._look_at_table()
        key = (id(route), raw, deflate)
        kept = self._rules.get(key)
        if kept is None:
            # The route is kept with its rules, so that no other can have its id.
            kept = self._rules[key] = (route, rules_of(route, raw=raw, deflate=deflate))
        return kept[1]

    def rates_of(self, listener: Listener, route: Route) -> tuple[Rate, ...]:
        """What the governor goes by for a handshake; made once, as above."""
        self._look_at_table()
        key = (id(listener), id(route))
        kept = self._rates.get(key)
        if kept is None:
            rates = (
                (f"listener {listener.address}", listener.handshakes),
                (f"route {route.name}", route.handshakes),
            )
            kept = self._rates[key] = (listener, route, tuple(one for one in rates if one[1]))
        return kept[2]

    def _look_at_table(self) -> None:
        """What was made for another table is forgotten."""
        if self._rules_of is not self.table:
            self._rules.clear()
            self._rates.clear()
            self._rules_of = self.table


def rules_of(route: Route, *, raw: bool, deflate: bool) -> RelayRules:
    """What a relay of this route obeys."""
    return RelayRules(
        raw=raw,
        raw_text=raw and route.frames == "text",
        deflate=deflate,
        max_message=route.max_message,
        max_frame=route.max_frame,
        max_queue=route.max_queue,
        idle_timeout=route.idle_timeout,
        write_timeout=route.write_timeout,
        close_timeout=route.close_timeout,
        session_timeout=route.session_timeout,
        session_code=route.session_code,
        heartbeat=route.heartbeat,
        heartbeat_timeout=route.heartbeat_timeout,
        drain_code=route.drain_code,
        drain_reason=route.drain_reason,
    )


def hash_key(hash_on: str, match: Match, head: Request, client: Address) -> bytes:
    """What `balance = "hash"` goes by; the client's address where the request has no value."""
    kind, _, name = hash_on.partition(":")
    value = ""
    if kind == "path":
        # As it is compared: /h/c and /h/%63 are one room.
        value = normalise_path("/" + match.captures.get(name, ""))[0]
    elif kind == "query":
        found = dict(reversed(parse_qsl(head.query, keep_blank_values=True, encoding="latin-1")))
        value = found.get(name, "")
    elif kind == "header":
        value = b",".join(head.get_all(name.lower().encode("ascii"))).decode("latin-1")
    elif kind == "cookie":
        value = _cookie(head, name)
    return (value or client.host).encode("latin-1")


def _cookie(head: Request, name: str) -> str:
    """The first cookie of this name, or "".

    They are taken apart as RFC 6265 4.2.1 has them, and no more is asked of them: http.cookies
    gives none at all where one of them, perhaps another application's, has a value like `{"a":1}`.
    """
    wanted = name.encode("ascii")
    for line in head.get_all(b"cookie"):
        for pair in line.split(b";"):
            key, sign, value = pair.partition(b"=")
            if sign and key.strip(b" \t") == wanted:
                return value.strip(b" \t").decode("latin-1")
    return ""
