"""From a route table to running workers: builds all that they get, and supervises them.

The order is chosen so that what can be refused is refused first: the table, the engine, the
addresses; then names are resolved, which may take its time while clients wait in the backlog. The
workers' processes are started as soon as the table is known to be right, and load meanwhile.
"""

import asyncio
import contextlib
import errno
import os
import resource
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import uvloop

from gateway.control import control_socket
from gateway.control.board import Board
from gateway.control.choice import choose
from gateway.control.cpus import workers_auto
from gateway.control.parts import OPENSSL
from gateway.control.predecessor import Predecessor
from gateway.control.reloading import read_table, sentence_of
from gateway.control.report import Report
from gateway.control.resolver import resolve
from gateway.control.shared import SharedMemory
from gateway.control.sockets import LISTENER, Sockets
from gateway.control.spawning import Spawned, spawn
from gateway.control.steering import ADMIN, CONTROL, Steering
from gateway.control.supervisor import Setting, Supervisor
from gateway.control.terms import Terms
from gateway.control.vault import Vault
from gateway.errors import StartFailed
from gateway.table import Listener

# Descriptors that no session counts on: the log, the engine, listeners, and connections that are
# still sending their head or are being refused.
SPARE_DESCRIPTORS = 512
FEW_SESSIONS = 100            # fewer by default are an accident of some ulimit: nobody wants that


def serve(path: Path) -> int:
    """Serve the table at `path` until a signal. Returns the exit code.

    Raises `TableErrors`, `EngineRefused`, `ListenError` or `StartFailed` before anything is served.
    """
    table, warnings, seen = read_table(path)
    vault = Vault(tickets=not OPENSSL.why_missing())
    table, _ = vault.fill(table)
    descriptors = raise_descriptor_limit()     # before an engine, which goes by it
    choice = choose(table.gateway.engine, table.gateway.ring)
    report = Report(style=table.gateway.log, log_query=table.gateway.log_query)
    with contextlib.ExitStack() as at_end:
        at_end.callback(report.close)
        memory = SharedMemory(SharedMemory.create())
        at_end.callback(memory.close)
        count = table.gateway.workers or workers_auto()
        sockets = Sockets(os.environ)
        at_end.callback(sockets.close)
        predecessor = Predecessor(sockets.predecessor)
        at_end.callback(predecessor.close)
        control, no_control = control_socket.bind(
            table.gateway, os.environ, partial(sockets.listen, CONTROL)
        )
        spawned = at_end.enter_context(_processes(count, memory.fd))
        bound = [sockets.listen(LISTENER, listener) for listener in table.listeners]
        admin = None if table.gateway.admin is None else sockets.listen(
            ADMIN, Listener(address=table.gateway.admin, backlog=128)
        )
        sockets.check()
        for warning in (*warnings, *filter(None, [no_control])):
            report.warning(warning)
        _warn_of_descriptors(table.gateway.max_sessions, descriptors, report)
        resolution = resolve(table.upstreams.values())
        for failure in resolution.failures:
            report.warning(sentence_of(failure))
        terms = Terms(table, dict(enumerate(bound)), resolution.endpoints)
        setting = Setting(choice, default_max_sessions(descriptors))
        supervisor = Supervisor(terms, setting, Board(memory), sockets, report)
        at_end.callback(lambda: sockets.close(supervisor.terms.bound.values()))
        supervisor.attendant = Steering(
            supervisor, path, seen, vault, resolution.failures, control, admin, predecessor
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(supervisor.run(spawned))
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _processes(count: int, memory: int) -> Iterator[list[Spawned]]:
    """The workers' processes, which are there already while the rest is made ready. Those that
    nobody came to talk to end by themselves: we close our end."""
    spawned: list[Spawned] = []
    try:
        for _ in range(count):
            spawned.append(spawn(memory))
        yield spawned
    except OSError as error:
        raise StartFailed(
            f"a worker's process cannot be started: {error.strerror}; {_remedy_for(error)}"
        ) from error
    finally:
        for each in spawned:
            each.abandon()


def _remedy_for(error: OSError) -> str:
    """What to do where a process cannot be started: fork(2) and execve(2) share their errnos."""
    if error.errno == errno.EAGAIN:
        return "raise the limit on processes (ulimit -u, pids.max of the cgroup)"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit on open files (ulimit -n, the sysctl fs.file-max)"
    if error.errno == errno.ENOMEM:
        return "give it more memory (memory.max of the cgroup)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOEXEC):
        return f"see that this user may execute {sys.executable}, and that nothing forbids it"
    return f"see execve(2) for {sys.executable}"


def _warn_of_descriptors(wanted: int, descriptors: int, report: Report) -> None:
    """Say where the limit on descriptors is too low for what the table wants, or for anybody."""
    suffice_for = default_max_sessions(descriptors)
    if wanted and 2 * wanted + SPARE_DESCRIPTORS > descriptors:
        report.warning(
            "max_sessions is more than the descriptors suffice for; raise the limit (ulimit "
            "-n) or lower it",
            max_sessions=wanted, descriptors=descriptors, suffice_for=suffice_for,
        )
    elif not wanted and suffice_for < FEW_SESSIONS:
        report.warning(
            "the descriptors suffice for few sessions; raise the hard limit (ulimit -Hn, or "
            "LimitNOFILE= of systemd)",
            max_sessions=suffice_for, descriptors=descriptors,
        )


def default_max_sessions(descriptors: int) -> int:
    """What `max_sessions` is where the table does not say: a session has two descriptors."""
    return max(1, (descriptors - SPARE_DESCRIPTORS) // 2)


def raise_descriptor_limit() -> int:
    """Raise the soft limit on descriptors to the hard one, and return it.

    The soft limit is 1,024 almost everywhere only because of select(2), which nothing here uses.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii"))
    return soft
