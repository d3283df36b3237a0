"""What the sessions of one worker share, and what a route makes of one of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

from gateway.events import Address, RelayRules
from gateway.limits import Limits
from gateway.protocol.http1 import Request
from gateway.routing import Match, RouteTable
from gateway.table import Route, Table
from gateway.upstreams import Pool


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
    _rules: dict[tuple[int, bool, bool], tuple[Route, RelayRules]] = field(default_factory=dict)

    def rules_of(self, route: Route, *, raw: bool, deflate: bool) -> RelayRules:
        """`rules_of`, made once for a route: all its relays share one object."""
        key = (id(route), raw, deflate)
        kept = self._rules.get(key)
        if kept is None:
            # The route is kept with its rules, so that no other can have its id.
            kept = self._rules[key] = (route, rules_of(route, raw=raw, deflate=deflate))
        return kept[1]


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
        value = match.captures.get(name, "")
    elif kind == "query":
        found = dict(reversed(parse_qsl(head.query, keep_blank_values=True, encoding="latin-1")))
        value = found.get(name, "")
    elif kind == "header":
        value = b",".join(head.get_all(name.lower().encode("ascii"))).decode("latin-1")
    elif kind == "cookie":
        value = _cookie(head, name)
    return (value or client.host).encode("latin-1")


def _cookie(head: Request, name: str) -> str:
    """The first cookie of this name (RFC 6265 4.2), or "". A malformed field has none."""
    for line in head.get_all(b"cookie"):
        try:
            cookies = SimpleCookie(line.decode("latin-1"))
        except CookieError:
            continue
        if name in cookies:
            return cookies[name].value
    return ""
