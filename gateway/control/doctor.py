"""What this machine gives the gateway, and what it does not: `gateway doctor`.

Laws of this file:

- It looks and tries, and changes nothing: no address is bound, no name resolved, no limit raised.
- A finding is a fact in one line; where something could be better, the next line says how.
- `MISSING` is only what the table demands and cannot be had. All else is good, or worth knowing.
"""

import contextlib
import fcntl
import importlib
import importlib.metadata
import os
import platform
import resource
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway import __version__
from gateway.control.choice import (
    ring_form,
    ring_is_restricted,
    what_it_saves,
    why_no_completions,
    why_no_uring,
)
from gateway.control.parts import OPENSSL, PARTS, RELAY
from gateway.control.renewing import DAY, WARN_DAYS
from gateway.control.serving import SPARE_DESCRIPTORS, default_max_sessions
from gateway.control.vault import Vault, expiries
from gateway.engine import ktls
from gateway.errors import TableErrors
from gateway.table import Listener, Table

GOOD, NOTE, MISSING = "ok", "note", "MISSING"
PIPE_BYTES = 256 * 1024            # of one pipe that relays splice through
PIPES_MAX = 32                     # of one process
CAP_NET_BIND_SERVICE = 10          # capabilities(7)
CALLS = 200
SYS = Path("/proc/sys")


@dataclass(frozen=True)
class Finding:
    """One fact, how good it is, and what would make it better."""

    level: str
    text: str
    remedy: str = ""


Section = tuple[str, list[Finding]]


def examine(table: Table | None) -> tuple[str, bool]:
    """The whole report, and whether all is there that the table (if any) demands."""
    sections: list[Section] = [
        ("system", list(_system())),
        ("compiled parts", list(_parts())),
        ("relays", list(_relays())),
        ("TLS", list(_tls())),
        ("engines", list(_engines())),
        ("limits", list(_limits())),
    ]
    if table is not None:
        sections.append(("the table", list(_demands(table))))
    text = "\n".join(_shown(title, findings) for title, findings in sections)
    found = [finding.level for _, findings in sections for finding in findings]
    return text, MISSING not in found


def _shown(title: str, findings: list[Finding]) -> str:
    lines = [title]
    for finding in findings:
        lines.append(f"  {finding.level:<8}{finding.text}")
        if finding.remedy:
            lines.append(f"  {'':<8}  {finding.remedy}")
    return "\n".join(lines) + "\n"


# --- What is here -------------------------------------------------------------------------------


def _system() -> Iterator[Finding]:
    yield Finding(GOOD, f"gateway {__version__}, Python {platform.python_version()}")
    yield Finding(GOOD, f"{platform.system()} {platform.release()}, {platform.machine()}")
    cpus = len(os.sched_getaffinity(0))
    yield Finding(GOOD, f"{cpus} CPU{'s' if cpus != 1 else ''} may be used")
    yield Finding(GOOD, f"a system call takes about {call_cost_ns()} ns, Python's share included")


def call_cost_ns() -> int:
    """Nanoseconds of the cheapest system call, seen from Python: the best of some rounds."""
    best = 1 << 62
    for _ in range(5):
        began = time.perf_counter_ns()
        for _ in range(CALLS):
            os.getppid()
        best = min(best, time.perf_counter_ns() - began)
    return best // CALLS


def _parts() -> Iterator[Finding]:
    for part in PARTS:
        why = part.why_missing()
        if not why:
            yield Finding(GOOD, f"{part.name} is here")
        else:
            yield Finding(NOTE, f"{part.name} is not here ({why}): {part.without}", part.remedy)


def _relays() -> Iterator[Finding]:
    if RELAY.why_missing():
        yield Finding(NOTE, "relays run in Python, and every byte is copied")
        return
    yield Finding(GOOD, "relays are compiled")
    yield _splice()
    yield _kernel_tls()


def _kernel_tls() -> Finding:
    """Whether the kernel can do a session's TLS while it is relayed."""
    found = ktls.support()
    if found.missing:
        return Finding(
            NOTE, f"TLS stays in user space, and what it carries is copied: {found.missing}",
            "modprobe tls; what is loaded at each start stands in /etc/modules-load.d",
        )
    names = ", ".join(
        suite.name for suite in ktls.SUITES if any(suite is one for _, one in found.ciphers)
    )
    keys = "a KeyUpdate is followed" if found.rekeys else "a KeyUpdate ends the session"
    return Finding(GOOD, f"TLS goes over to the kernel when a relay begins: {names}; {keys}")


def _tls() -> Iterator[Finding]:
    if OPENSSL.why_missing():
        yield Finding(NOTE, f"TLS runs by Python's ssl, {ssl.OPENSSL_VERSION}")
        yield Finding(NOTE, "no session is resumed by a ticket: their keys could not be shared")
        return
    yield Finding(GOOD, "TLS is compiled")
    yield Finding(GOOD, "sessions are resumed by tickets that every worker can open")


def _splice() -> Finding:
    """Whether a pipe of the size that is wanted can be had now."""
    ends: tuple[int, ...] = ()
    try:
        ends = os.pipe()
        size = fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError as error:
        why = f"a pipe of {PIPE_BYTES // 1024} KiB cannot be had ({error.strerror})"
        return Finding(
            NOTE, f"nothing is spliced: {why}", "raise the sysctl fs.pipe-user-pages-soft"
        )
    finally:
        for end in ends:
            os.close(end)
    assert size >= PIPE_BYTES
    pages = _number("fs/pipe-user-pages-soft")
    enough = f"{PIPES_MAX} pipes of {PIPE_BYTES // 1024} KiB a process"
    user = pages * resource.getpagesize() // PIPE_BYTES
    if pages and os.geteuid() != 0 and user < PIPES_MAX:
        return Finding(
            NOTE, f"large payloads are spliced; {enough} are wanted, this user has {user}",
            "raise the sysctl fs.pipe-user-pages-soft",
        )
    return Finding(GOOD, f"large payloads are spliced, by up to {enough}")


def _engines() -> Iterator[Finding]:
    no_uring, no_uvloop = why_no_uring(), _why_no_uvloop()
    if no_uring:
        yield Finding(NOTE, f"io_uring cannot run: {no_uring}", what_it_saves())
    else:
        form, why = ring_form()
        yield Finding(GOOD, f"io_uring can be had; its relays would move by {form}: {why}")
        if ring_is_restricted():
            yield Finding(GOOD, "the kernel holds a ring to the operations that are used")
        else:
            yield Finding(NOTE, "this kernel cannot hold a ring to the operations that are used")
    if no_uvloop:
        yield Finding(NOTE, f"uvloop cannot run: {no_uvloop}", "pip install uvloop")
    else:
        yield Finding(GOOD, f"uvloop can be had, version {importlib.metadata.version('uvloop')}")
        yield Finding(GOOD, 'engine = "auto" runs uvloop')


def _why_no_uvloop() -> str:
    """Why the engine on uvloop cannot run here; "" if it can."""
    try:
        importlib.import_module("gateway.engine.uv")
    except ImportError as error:
        return str(error)
    return ""


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _descriptors(hard)
    text = f"open files: {_amount(soft)}, raised at start to {_amount(hard)}"
    if soft == hard:
        text = f"open files: {_amount(hard)}"
    sessions = default_max_sessions(most)
    text += f"; enough for {sessions} sessions in a process"
    if sessions < 1000:
        yield Finding(NOTE, text, "raise it: ulimit -Hn, or LimitNOFILE= of systemd")
    else:
        yield Finding(GOOD, text)
    yield Finding(GOOD, f"locked memory: {_amount(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])}")
    somaxconn = _number("net/core/somaxconn")
    yield Finding(GOOD, f"net.core.somaxconn: {somaxconn} clients may wait at a listener")
    ports = _numbers("net/ipv4/ip_local_port_range")
    if len(ports) == 2:
        most = ports[1] - ports[0] + 1
        yield Finding(GOOD, f"net.ipv4.ip_local_port_range: {most} connections to one address")


# --- What the table demands ---------------------------------------------------------------------


def _demands(table: Table) -> Iterator[Finding]:
    yield _engine(table.gateway.engine)
    if table.gateway.engine == "io_uring" and not why_no_uring():
        yield _ring(table.gateway.ring)
    most = _descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    wanted = table.gateway.max_sessions
    if wanted and 2 * wanted + SPARE_DESCRIPTORS > most:
        yield Finding(
            MISSING,
            f"max_sessions = {wanted}: {most} open files are enough for "
            f"{default_max_sessions(most)}",
            f"raise the limit to {2 * wanted + SPARE_DESCRIPTORS}: ulimit -Hn, or LimitNOFILE= of "
            "systemd; or lower max_sessions",
        )
    for listener in table.listeners:
        yield from _listener(listener)
    yield from _certificates(table)


def _certificates(table: Table) -> Iterator[Finding]:
    """What the files of its TLS hold."""
    try:
        filled, _ = Vault(tickets=False).fill(table)
    except TableErrors as refused:
        for error in refused.errors:
            yield Finding(MISSING, f"{error.place}: found {error.found}", error.remedy)
        return
    now = time.time()
    for one in expiries(filled):
        until = time.strftime("%Y-%m-%d", time.gmtime(one.until))
        days = int((one.until - now) // DAY)
        text = f"{one.place}: {one.file} is good until {until}"
        if one.until <= now:
            yield Finding(MISSING, f"{one.place}: {one.file} ended on {until}", "renew it")
        elif days < WARN_DAYS:
            yield Finding(NOTE, f"{text}, for {days} days", "renew it")
        else:
            yield Finding(GOOD, text)


def _engine(wanted: str) -> Finding:
    refusals = {"io_uring": why_no_uring(), "uvloop": _why_no_uvloop()}
    name = "uvloop" if wanted == "auto" else wanted
    if not refusals[name]:
        return Finding(GOOD, f'engine = "{wanted}" can be had')
    remedy = "pip install uvloop"
    if name == "io_uring" and not refusals["uvloop"]:
        remedy = 'engine = "auto" runs uvloop instead'
    which = "" if name == wanted else f"{name}: "
    return Finding(MISSING, f'engine = "{wanted}" cannot run: {which}{refusals[name]}', remedy)


def _ring(wanted: str) -> Finding:
    """How relays move in the ring, which can be had."""
    if wanted == "auto":
        form, why = ring_form()
        return Finding(GOOD, f'ring = "auto" is {form}: {why}')
    if wanted == "completions" and (refused := why_no_completions()):
        return Finding(
            MISSING, f'ring = "{wanted}" cannot be had: {refused}',
            'ring = "readiness" can be had, which is also what ring = "auto" is here',
        )
    return Finding(GOOD, f'ring = "{wanted}" can be had')


def _listener(listener: Listener) -> Iterator[Finding]:
    address = listener.address
    somaxconn = _number("net/core/somaxconn")
    if listener.backlog > somaxconn:
        yield Finding(
            NOTE,
            f"{address}: backlog = {listener.backlog}, of which the kernel grants {somaxconn}",
            "raise the sysctl net.core.somaxconn",
        )
    if address.is_unix:
        return
    open_from = _number("net/ipv4/ip_unprivileged_port_start", 1024)
    if 0 < address.port < open_from and not _has_capability(CAP_NET_BIND_SERVICE):
        yield Finding(
            MISSING,
            f"{address}: ports below {open_from} are not for this user",
            "give it CAP_NET_BIND_SERVICE (AmbientCapabilities= of systemd), or listen on another",
        )


# --- The kernel's files -------------------------------------------------------------------------


def _numbers(name: str) -> list[int]:
    """The numbers in a file below /proc/sys; none where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for word in (SYS / name).read_text(encoding="ascii").split()]
    return []


def _number(name: str, default: int = 0) -> int:
    return (_numbers(name) or [default])[0]


def _descriptors(hard: int) -> int:
    """Open files that a process may have once the soft limit is raised to this hard one."""
    return _number("fs/nr_open", 1 << 20) if hard == resource.RLIM_INFINITY else hard


def _amount(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _has_capability(number: int) -> bool:
    """True if this process has it now."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
