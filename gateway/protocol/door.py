"""The door: who is over the rate of handshakes is told so before a session is made of it.

In a storm most of those who come are refused, and a session is made for those who stay: its states,
timers and lingering cost as much for the one as for the other. So while a rate refuses (see
governor.py), the first bytes of a connection are looked at by themselves.

Laws of this file:

- What is no whole upgrade to a route whose rate refuses is for a session, which sees the same
  bytes again and knows nothing of this.
- It only ever refuses, so it may glance at a head where a session reads it (http1.py): the rate
  goes before what else may be wrong with a request, its grammar, its origin, its limits.
- The answer leaves together with the FIN, and nobody lingers: the request is whole, nothing stands
  behind it, and a client says nothing more before it has an answer (RFC 6455 4.1). So there is no
  unread byte that would make the close an RST.
- Clients that were told to come back at one time would come back at one time.
"""

from collections.abc import Callable
from functools import lru_cache
from sys import intern

from gateway.errors import Blame, ClientError
from gateway.events import CLIENT, Accepted, AccessRecord, Address, Close, Record
from gateway.protocol import forwarding, http1
from gateway.protocol.desk import Desk
from gateway.table import Listener, Route

LATER_MAX = 5                  # seconds: who is over the rate is told to come back within so many
TOO_MANY = "Too many handshakes at once."


def later(random_bytes: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """The field that says when to come back."""
    return b"Retry-After", b"%d" % (1 + random_bytes(1)[0] % LATER_MAX)


def shown(address: Address) -> str:
    """An address as records have it: without the port, which says nothing to an operator."""
    return address.host or "unix"


def turn_away(
    desk: Desk, listener: Listener, accepted: Accepted, number: str, data: bytes, now: float
) -> tuple[Close, Record] | None:
    """What these first bytes of a connection are answered with, and its record; None where a
    session must be made."""
    seen = _Glance.at(data)
    if seen is None:
        return None
    try:
        match = desk.routes.match(seen.host, seen.path, seen.query, seen.fields)
    except ClientError:
        return None
    if match is None or not desk.governor.refuses(now, *desk.rates_of(listener, match.route)):
        return None
    answer = _first_part(later(desk.random_bytes), len(number)) + number.encode("ascii") + b"\n"
    record = _record(desk, listener, accepted, number, seen, match.route, now)
    return Close(CLIENT, answer), Record(record)


class _Glance:
    """What one look shows of an upgrade's head."""

    __slots__ = ("fields", "host", "path", "query")

    def __init__(self, host: str, target: str, fields: list[tuple[bytes, bytes]]) -> None:
        self.host = host
        self.path, _, self.query = target.partition("?")
        self.fields = fields                     # names in lower case

    @classmethod
    def at(cls, data: bytes) -> "_Glance | None":
        """None where it is not plainly an upgrade that is whole, with nothing behind it."""
        if data.find(b"\r\n\r\n") != len(data) - 4:
            return None
        first, *lines = data[:-4].split(b"\r\n")
        request = first.split(b" ")
        if len(request) != 3 or request[0] != b"GET" or request[2] != b"HTTP/1.1":
            return None
        fields = [
            (name.lower(), value.strip(b" \t"))
            for name, _, value in [line.partition(b":") for line in lines]
        ]
        by_name = dict(fields)
        if (
            len(by_name) != len(fields) or b"host" not in by_name
            or by_name.get(b"upgrade", b"").lower() != b"websocket"
            or b"content-length" in by_name or b"transfer-encoding" in by_name
        ):
            return None
        try:
            return cls(by_name[b"host"].decode("ascii"), request[1].decode("ascii"), fields)
        except UnicodeDecodeError:
            return None

    def get_all(self, name: bytes) -> list[bytes]:
        """As of a head."""
        return [value for its, value in self.fields if its == name]


@lru_cache(maxsize=64)
def _first_part(field: tuple[bytes, bytes], size: int) -> bytes:
    """The answer as far as the number of the connection, which has this size and stands last."""
    fields, body = http1.refusal(503, TOO_MANY, size * "x")
    return http1.build_response(503, [*fields, field], body)[: -size - 1]


def _record(
    desk: Desk, listener: Listener, accepted: Accepted, number: str, seen: _Glance, route: Route,
    now: float,
) -> AccessRecord:
    client = forwarding.believed_client(
        accepted.client, seen, desk.table.gateway.trusted_proxies
    )
    return AccessRecord(
        session=number,
        client=shown(client),
        peer=shown(accepted.client),
        listener=intern(str(listener.address)),
        method="GET",
        host=seen.host,
        path=seen.path,
        query=seen.query,
        route=route.name,
        phase="head",
        status=503,
        blame=Blame.GATEWAY,
        detail=TOO_MANY,
        started=accepted.at,
        ended=now,
        phases=(("head", now - accepted.at),),
    )
