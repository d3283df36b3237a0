"""How many sessions may be at once: per worker, per route, per client address.

A session asks with `enter` once it knows its route, before anything reaches an upstream, and says
`leave` when it is over. The worker says `opened` and `closed` for each connection.

Laws of this file:

- Pure counting: no clock, no chance, no answer. What a refusal is answered with is said by
  `Refusal.status`; the session answers.
- The limits of a route and of its clients hold over all workers: each says its counts to
  `Elsewhere`, and asks what the others have. Two that ask at one instant may both let one in, so
  a limit is passed by at most one session for each worker but one.
- Each `enter` that was not refused is followed by exactly one `leave`, which is asserted.
- A count that is zero has no entry: a million strangers that came and went leave nothing.
- An IPv6 client is its /64, because that is what one customer gets (RFC 6177), and an
  IPv4-mapped address is the IPv4 client it is (RFC 4291 2.5.5.2). Clients on a Unix socket
  cannot be told apart, so the limit per client does not apply to them.
"""

import enum
from collections.abc import Hashable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Protocol, TypeVar

from gateway.events import Address

# Connections beyond `max_sessions` that may be open to read a head and be refused, or for a plain
# exchange. Half of the descriptors that the default of `max_sessions` leaves free.
SPARE_CONNECTIONS = 256

_Key = TypeVar("_Key", bound=Hashable)


class Refusal(enum.Enum):
    """Why a session may not begin; the value is a sentence that is safe to show to a stranger."""

    CLIENT = "Too many sessions from this client's address."
    ROUTE = "Too many sessions on this route."
    PROCESS = "Too many sessions on this gateway."

    @property
    def status(self) -> int:
        """What it is answered with: 429 where the client can help it (RFC 6585 4), else 503."""
        return 429 if self is Refusal.CLIENT else 503


class Elsewhere(Protocol):
    """The other workers: what they are told of this one's counts, and what they have."""

    def connections_are(self, count: int, /) -> None:
        """This worker has so many clients now."""

    def sessions_are(self, count: int, route: str, on_route: int, /) -> None:
        """It has so many sessions, and so many on this route, where one begun or ended."""

    def client_is(self, route: str, client: bytes, count: int, /) -> None:
        """It has so many sessions of this client on this route, which has a limit for clients."""

    def on_route(self, route: str, /) -> int:
        """Sessions on this route in all other workers."""

    def of_client(self, route: str, client: bytes, /) -> int:
        """Sessions of this client on this route in all other workers."""


class Nowhere:
    """There are no other workers."""

    def connections_are(self, _count: int, /) -> None:
        """Nobody asks."""

    def sessions_are(self, _count: int, _route: str, _on_route: int, /) -> None:
        """Nobody asks."""

    def client_is(self, _route: str, _client: bytes, _count: int, /) -> None:
        """Nobody asks."""

    def on_route(self, _route: str, /) -> int:
        """None."""
        return 0

    def of_client(self, _route: str, _client: bytes, /) -> int:
        """None."""
        return 0


class Limits:
    """The live counts of one worker. `max_sessions`, its own limit, is at least 1."""

    def __init__(self, max_sessions: int, elsewhere: Elsewhere | None = None) -> None:
        assert max_sessions >= 1
        self.max_sessions = max_sessions
        self._elsewhere = elsewhere or Nowhere()
        self.connections = 0            # open clients, whatever they do
        self.sessions = 0               # entered and not left
        self._routes: dict[str, int] = {}
        self._clients: dict[tuple[str, bytes], int] = {}
        self._told: set[tuple[str, bytes]] = set()   # clients that the others know of

    def opened(self, *, costly: bool = False) -> bool:
        """A client was accepted; False if it is one too many, and must be cut (no `closed`).

        The limit on sessions is kept by `enter`, which lets the client be told. This one only
        keeps strangers who never send a head from eating the descriptors of those who did. A
        client that is `costly` must be served a TLS handshake first, and it would be for nothing
        where no session can begin.
        """
        if self.connections >= self.max_sessions + SPARE_CONNECTIONS or (
            costly and self.sessions >= self.max_sessions
        ):
            return False
        self.connections += 1
        self._elsewhere.connections_are(self.connections)
        return True

    def closed(self) -> None:
        """A client that `opened` let in is gone."""
        assert self.connections > 0
        self.connections -= 1
        self._elsewhere.connections_are(self.connections)

    def enter(
        self, route_name: str, route_limit: int, client: Address, per_client_limit: int
    ) -> Refusal | None:
        """Count one more session of `client` on this route, or say why not. A limit of 0 is off.

        The client's own limit is asked first: it is the one that the client can do something
        about. After None the caller owes one `leave` with the same route and client.
        """
        key = (route_name, _client_key(client))
        here = self._clients.get(key, 0)
        shared = bool(per_client_limit and key[1])
        if shared and (here >= per_client_limit
                       or here + self._elsewhere.of_client(*key) >= per_client_limit):
            return Refusal.CLIENT
        on_route = self._routes.get(route_name, 0)
        if route_limit and (on_route >= route_limit
                            or on_route + self._elsewhere.on_route(route_name) >= route_limit):
            return Refusal.ROUTE
        if self.sessions >= self.max_sessions:
            return Refusal.PROCESS
        self._clients[key] = here + 1
        self._routes[route_name] = on_route + 1
        self.sessions += 1
        self._elsewhere.sessions_are(self.sessions, route_name, on_route + 1)
        if shared or key in self._told:
            self._told.add(key)
            self._elsewhere.client_is(*key, here + 1)
        return None

    def leave(self, route_name: str, client: Address) -> None:
        """One session of `client` on this route is over."""
        assert self.sessions > 0
        self.sessions -= 1
        key = (route_name, _client_key(client))
        on_route = _count_down(self._routes, route_name)
        here = _count_down(self._clients, key)
        self._elsewhere.sessions_are(self.sessions, route_name, on_route)
        if key in self._told:
            self._elsewhere.client_is(*key, here)
            if not here:
                self._told.remove(key)

    @property
    def entries(self) -> int:
        """How many counts are kept; zero when nobody is there."""
        return len(self._routes) + len(self._clients) + len(self._told)


def _client_key(client: Address) -> bytes:
    """What stands for one client: 4 bytes of IPv4, 8 of an IPv6 /64; b"" for a Unix socket."""
    return b"" if client.is_unix else _host_key(client.host)


@lru_cache(maxsize=1024)  # asked twice a session, and ipaddress is slow
def _host_key(host: str) -> bytes:
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return mapped.packed if mapped else address.packed[:8]
    return address.packed


def _count_down(counts: dict[_Key, int], key: _Key) -> int:
    """One less, which is returned; no entry at zero."""
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
    return left
