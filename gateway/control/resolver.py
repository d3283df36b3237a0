"""Names of a table's upstreams to addresses, once, at start.

`resolve` asks for all names at the same time, each in a thread, because `getaddrinfo` blocks and
cannot be cancelled; the threads are daemons, so that one which hangs holds up nobody. A name that
does not resolve is no error: it is in `Resolution.failures`, and whoever has no other endpoint
answers 503 until the next start.

Never called by `gateway check`: whether a table is right does not depend on a name server.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.events import Address
from gateway.table import EndpointEntry, Upstream

RESOLVE_LIMIT = 5.0           # seconds for all names together; resolv.conf's own default per try
THREADS_MAX = 16              # at once; a table with hundreds of names is no reason for hundreds

Lookup = Callable[[str], list[str]]
Found = list[tuple[EndpointEntry, Address]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A name without addresses, why, and which upstreams had wanted it."""

    name: str
    error: str
    upstreams: tuple[str, ...]


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
    upstreams: Iterable[Upstream], limit: float = RESOLVE_LIMIT, lookup: Lookup = look_up
) -> Resolution:
    """The addresses of every entry of these upstreams, within `limit` seconds.

    A literal resolves to itself without asking, and so do Unix sockets and built-in endpoints.
    """
    upstreams = list(upstreams)
    wanted: dict[str, dict[str, None]] = {}  # name to upstreams, in order, each once
    for upstream in upstreams:
        for entry in upstream.entries:
            if entry.host and entry.weight and not _is_literal(entry.host):
                wanted.setdefault(entry.host, {})[upstream.name] = None
    answers = _ask(list(wanted), limit, lookup)
    result = Resolution()
    for name, names in wanted.items():
        answer = answers.get(name, f"no answer within {limit:g} s")
        if isinstance(answer, str):
            result.failures.append(Failure(name, answer, tuple(names)))
    for upstream in upstreams:
        found: Found = []
        for entry in upstream.entries or _builtin_entries(upstream):
            found += [(entry, address) for address in _addresses(upstream, entry, answers)]
        result.endpoints[upstream.name] = found
    return result


def _addresses(
    upstream: Upstream, entry: EndpointEntry, answers: dict[str, list[str] | str]
) -> list[Address]:
    """Where an entry is; empty for a name without an answer."""
    if upstream.builtin:
        return [Address(builtin=upstream.builtin)]
    if entry.unix:
        return [Address(path=entry.unix)]
    if _is_literal(entry.host):
        return [Address(host=entry.host, port=entry.port)]
    answer = answers.get(entry.host, [])
    hosts = [] if isinstance(answer, str) else answer
    return [Address(host=host, port=entry.port) for host in hosts]


def _builtin_entries(upstream: Upstream) -> tuple[EndpointEntry, ...]:
    """A built-in endpoint needs no entry of its own in the table."""
    if not upstream.builtin:
        return ()
    return (EndpointEntry(url=f"builtin:{upstream.builtin}"),)


def _is_literal(host: str) -> bool:
    """True for an IP address as connect(2) understands it, with or without a zone."""
    address = host.partition("%")[0]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except (OSError, ValueError):
            continue
        return True
    return False


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
