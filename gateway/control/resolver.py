"""Names of a table's upstreams to addresses: at start, at each reload, and again and again.

`resolve` asks for all names at the same time, each in a thread, because `getaddrinfo` blocks and
cannot be cancelled; the threads are daemons, so that one which hangs holds up nobody. A name that
does not resolve is no error: it is in `Resolution.failures`, its last addresses are kept where it
had any, and whoever has no other endpoint answers 503 until it resolves.

Never called by `gateway check`: whether a table is right does not depend on a name server.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gateway.events import Address
from gateway.table import EndpointEntry, Upstream

RESOLVE_LIMIT = 5.0           # seconds for all names together; resolv.conf's own default per try
THREADS_MAX = 16              # at once; a table with hundreds of names is no reason for hundreds

Lookup = Callable[[str], list[str]]
Found = list[tuple[EndpointEntry, Address]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A name without an answer, why, and which upstreams had wanted it."""

    name: str
    error: str
    upstreams: tuple[str, ...]
    without: tuple[str, ...] = ()        # of those, the ones that have no endpoint at all now


@dataclass(frozen=True, slots=True)
class Resolution:
    """What to give to each pool (`Pool.set_endpoints`), and what is missing."""

    endpoints: dict[str, Found] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def look_up(name: str) -> list[str]:
    """All addresses of a name as the system has them (hosts file, name servers), in its order.

    Raises OSError (`socket.gaierror`), or UnicodeError for what cannot be a name.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def resolve(
    upstreams: Iterable[Upstream], limit: float = RESOLVE_LIMIT, lookup: Lookup = look_up,
    last: Mapping[str, Found] | None = None,
) -> Resolution:
    """The addresses of every entry of these upstreams, within `limit` seconds.

    A literal resolves to itself without asking, and so do Unix sockets and built-in endpoints. What
    an upstream had `last`, by its name, stays where a name has no answer now.
    """
    upstreams = list(upstreams)
    wanted: dict[str, dict[str, None]] = {}  # name to upstreams, in order, each once
    for upstream in upstreams:
        for entry in upstream.entries:
            if entry.weight and entry.has_name:
                wanted.setdefault(entry.host, {})[upstream.name] = None
    answers = _ask(list(wanted), limit, lookup)
    result = Resolution()
    for upstream in upstreams:
        kept = (last or {}).get(upstream.name, [])
        found: Found = []
        for entry in upstream.entries or _builtin_entries(upstream):
            found += [(entry, address) for address in _addresses(upstream, entry, answers, kept)]
        result.endpoints[upstream.name] = found
    for name, names in wanted.items():
        answer = answers.get(name, f"no answer within {limit:g} s")
        if isinstance(answer, str):
            without = tuple(one for one in names if not result.endpoints[one])
            result.failures.append(Failure(name, answer, tuple(names), without))
    return result


def _addresses(
    upstream: Upstream, entry: EndpointEntry, answers: dict[str, list[str] | str], kept: Found
) -> list[Address]:
    """Where an entry is; where it was, for a name without an answer."""
    if upstream.builtin:
        return [Address(builtin=upstream.builtin)]
    if entry.unix:
        return [Address(path=entry.unix)]
    if not entry.has_name:
        return [Address(host=entry.host, port=entry.port)]
    answer = answers.get(entry.host)
    if isinstance(answer, list):
        return [Address(host=host, port=entry.port) for host in answer]
    same = (entry.host, entry.port)
    return [address for was, address in kept if (was.host, was.port) == same]


def _builtin_entries(upstream: Upstream) -> tuple[EndpointEntry, ...]:
    """A built-in endpoint needs no entry of its own in the table."""
    if not upstream.builtin:
        return ()
    return (EndpointEntry(url=f"builtin:{upstream.builtin}"),)


def _ask(names: list[str], limit: float, lookup: Lookup) -> dict[str, list[str] | str]:
    """The answer or the error of each name that had one in time."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, list[str] | str]] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)

    def work() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((name, lookup(name) or "it has no address"))
            except (OSError, UnicodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                done.put((name, reason or str(error)))

    for _ in range(min(len(names), THREADS_MAX)):
        threading.Thread(target=work, daemon=True, name="resolver").start()
    answers: dict[str, list[str] | str] = {}
    until = time.monotonic() + limit
    while len(answers) < len(names):
        try:
            name, answer = done.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        answers[name] = answer
    return answers
