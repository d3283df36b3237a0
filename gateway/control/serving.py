"""From a route table to a running worker: builds all that is shared, says one line, and runs.

The order is chosen so that what can be refused is refused first: the table, the engine, the
addresses; then names are resolved, which may take its time while clients wait in the backlog.
"""

import contextlib
import importlib.resources
import os
import random
import resource
import secrets
import signal
from pathlib import Path

from gateway import __version__
from gateway.control import config
from gateway.control.choice import choose
from gateway.control.listening import Bound, bind_all
from gateway.control.parts import relays
from gateway.control.report import Report
from gateway.control.resolver import resolve
from gateway.control.worker import Worker
from gateway.limits import Limits
from gateway.protocol.desk import Desk
from gateway.routing import RouteTable
from gateway.table import Table
from gateway.upstreams import News, Pool

# Descriptors that no session counts on: the log, the engine, listeners, and connections that are
# still sending their head or are being refused.
SPARE_DESCRIPTORS = 512
FEW_SESSIONS = 100            # fewer by default are an accident of some ulimit: nobody wants that


def serve(path: Path) -> int:
    """Serve the table at `path` until a signal. Returns the exit code.

    Raises `TableErrors`, `EngineRefused` or `ListenError` before anything is served.
    """
    # Until the worker hears it, too: other servers read their configuration again at it, and
    # nobody who sends it for that means to end us.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    table, warnings = config.check(path)
    engine, reason = choose(table.gateway.engine, table.gateway.ring)
    descriptors = raise_descriptor_limit()
    max_sessions = table.gateway.max_sessions or default_max_sessions(descriptors)
    report = Report(style=table.gateway.log, log_query=table.gateway.log_query)
    code = 0
    with contextlib.ExitStack() as at_end:
        at_end.callback(report.close)
        bound = bind_all(table.listeners)
        for each in bound:
            at_end.callback(each.remove_file)
        for warning in warnings:
            report.warning(warning)
        _warn_of_descriptors(table.gateway.max_sessions, descriptors, report)
        desk = _desk(table, max_sessions, report)
        worker = Worker(engine, desk, report, bound)

        def say_start() -> None:
            report.info(
                "serving",
                version=__version__,
                engine=engine.name,
                reason=reason,
                relays=relays(),
                listening=_shown(bound),
                routes=len(table.routes),
                max_sessions=max_sessions,
                pid=os.getpid(),
            )
            report.flush()

        code = worker.run(say_start)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # we are leaving already
    return code


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


def _desk(table: Table, max_sessions: int, report: Report) -> Desk:
    """What the sessions share. Resolves names; those that do not resolve are said."""
    chance = random.Random()  # noqa: S311 - balances load, keeps no secret
    news: list[News] = []
    pools = {name: Pool(upstream, chance, news) for name, upstream in table.upstreams.items()}
    resolution = resolve(table.upstreams.values())
    for name, found in resolution.endpoints.items():
        pools[name].set_endpoints(found)
    for failure in resolution.failures:
        empty = [name for name in failure.upstreams if not pools[name].endpoints]
        routes = [route.name for route in table.routes if route.upstream in empty]
        report.warning(
            "a name does not resolve; it is not asked for again until the next start",
            name=failure.name,
            error=failure.error,
            upstreams=", ".join(failure.upstreams),
            routes_that_answer_503=", ".join(routes),
        )
    page = importlib.resources.files("gateway.protocol").joinpath("page.html").read_bytes()
    return Desk(
        table=table,
        routes=RouteTable(table.routes),
        pools=pools,
        limits=Limits(max_sessions),
        random_bytes=secrets.token_bytes,
        page=page,
        news=news,
    )


def _shown(bound: list[Bound]) -> str:
    """The addresses in the order of the table, as they really are."""
    return ",".join(str(each.address) for each in bound)
