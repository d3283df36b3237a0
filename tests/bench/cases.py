"""What is measured: the cases, and how one round of one case runs for one proxy.

Laws: within a case the rounds alternate between the proxies, each round beginning with another
one; a proxy that fails is out of that case, with its reason kept; a sample holds raw figures only.
"""

import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .calls import CallsError, counted
from .load import Load, LoadError
from .peers.base import FRAMES, RAW, TLS, Proxy
from .process import Running, StartError

ECHO, IDLE, OPEN, SHAKE = "echo", "idle", "open", "shake"
CYCLES_AT_ONCE = 8
DEAR = Path(__file__).with_name("dear.py")
READY_LIMIT = 5.0    # seconds from listening to the first WebSocket
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure. `size` in bytes; one message is in flight on each connection."""

    name: str
    title: str
    kind: str = ECHO                     # echo | idle | open | shake
    mode: str = FRAMES
    size: int = 64
    connections: int = 64
    resumed: bool = False                # shake: by a ticket


CASES = [
    Case("64", "64 B"),
    Case("4k", "4 KiB", size=4096),
    Case("64k", "64 KiB", size=65536),
    Case("1m", "1 MiB, 8 connections", size=1 << 20, connections=8),
    Case("idle", "64 B among idle connections", kind=IDLE),
    Case("open", "open and close", kind=OPEN),
    Case("raw-64", "frames to TCP, 64 B", mode=RAW),
    Case("raw-64k", "frames to TCP, 64 KiB", mode=RAW, size=65536),
    Case("tls-64", "TLS, 64 B", mode=TLS),
    Case("tls-4k", "TLS, 4 KiB", mode=TLS, size=4096),
    Case("tls-64k", "TLS, 64 KiB", mode=TLS, size=65536),
    Case("tls-1m", "TLS, 1 MiB, 8 connections", mode=TLS, size=1 << 20, connections=8),
    Case("tls-idle", "TLS, 64 B among idle connections", kind=IDLE, mode=TLS),
    Case("tls-shake", "TLS, handshake alone", kind=SHAKE, mode=TLS),
    Case("tls-resume", "TLS, handshake by a ticket", kind=SHAKE, mode=TLS, resumed=True),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how often. Times in seconds."""

    rounds: int = 9
    seconds: float = 1.0
    warm_up: float = 0.3
    idle: int = 4000                     # connections that are open and silent
    cycles: int = 1000                   # opened and closed in a round
    calls: bool = False                  # count system calls too, in runs of their own
    dear: int = 0                        # steps of a filter for the proxies, see dear.py
    proxy_core: int | None = None
    load_core: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One proxy in one round of one case."""

    case: str
    proxy: str
    round: int
    figures: dict[str, float]


@dataclass(slots=True)
class Outcome:
    """All samples of a run, and who failed where: (case, proxy) to reason."""

    samples: list[Sample] = field(default_factory=list)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def values(self, case: str, proxy: str, figure: str) -> list[float]:
        """One figure in the order of rounds; empty if it was not measured."""
        return [
            sample.figures[figure]
            for sample in self.samples
            if sample.case == case and sample.proxy == proxy and figure in sample.figures
        ]


def free_port() -> int:
    """A port of the loopback interface that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Subject:
    """A proxy that runs before the load's upstreams."""

    proxy: Proxy
    running: Running
    port: int
    subprotocol: str


@contextlib.contextmanager
def started(proxy: Proxy, mode: str, load: Load, plan: Plan) -> Iterator[Subject]:
    """Start it, with a folder of its own. Raises StartError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place, port = Path(folder), free_port()
        load.tls("full" if mode == TLS else "off")
        upstream = load.raw_port if mode == RAW else load.frames_port
        command = proxy.command(mode, port, upstream, place)
        if plan.dear:
            command = [sys.executable, str(DEAR), str(plan.dear), *command]
        with Running(command, port, place, plan.proxy_core) as running:
            subject = Subject(proxy, running, port, proxy.subprotocol(mode))
            _await_ready(subject, load)
            if wrong := proxy.loaded_wrongly(running.pids()):
                raise StartError(f"it runs with parts of another tree: {', '.join(wrong)}")
            yield subject


def _await_ready(subject: Subject, load: Load) -> None:
    """Until one WebSocket opens: some listen before they have read their routes."""
    deadline = time.monotonic() + READY_LIMIT
    while True:
        try:
            load.open(subject.port, 1, subject.subprotocol)
        except LoadError as error:
            if time.monotonic() > deadline:
                raise StartError(f"it listens, but: {error}") from None
            time.sleep(0.05)
        else:
            load.close()
            return


def measure(case: Case, subject: Subject, load: Load, plan: Plan) -> dict[str, float]:
    """One round. The figures' names end with their unit. Raises LoadError."""
    load.pids(subject.running.pids())
    try:
        load.tls("full" if case.mode == TLS else "off")
        if case.kind == OPEN:
            figures = _open(subject, load, plan)
        elif case.kind == SHAKE:
            figures = _shake(case, subject, load, plan)
        else:
            load.open(subject.port, case.connections, subject.subprotocol)
            load.pids(subject.running.pids())  # some have a process for each connection
            if case.kind == IDLE:
                figures = _idle(case, subject, load, plan)
            else:
                figures = _echo(case, load, plan)
                if plan.calls:
                    figures["calls"] = _calls(case, subject, load, plan)
    except LoadError:
        with contextlib.suppress(LoadError):  # a consequence; the first reason is the one to tell
            load.close()
        raise
    load.close()
    return figures


def _echo(case: Case, load: Load, plan: Plan) -> dict[str, float]:
    answer = load.run(case.connections, case.size, plan.seconds, plan.warm_up)
    messages = answer["messages"]
    if not messages:
        raise LoadError("not one message came back")
    return {
        "cpu_us": answer["cpu_ns"] / messages / 1000,
        "messages_per_s": messages / answer["seconds"],
        "p50_us": answer["p50_ns"] / 1000,
        "p99_us": answer["p99_ns"] / 1000,
        "p999_us": answer["p999_ns"] / 1000,
        "busy_part": answer["cpu_ns"] / 1e9 / answer["seconds"],
        "load_busy_part": answer["load_cpu_ns"] / 1e9 / answer["seconds"],
        "waited_part": answer["waited_ns"] / 1e9 / answer["seconds"],
        "load_waited_part": answer["load_waited_ns"] / 1e9 / answer["seconds"],
    }


def _calls(case: Case, subject: Subject, load: Load, plan: Plan) -> float:
    """System calls for one relayed message: an echo is two."""
    try:
        with counted(subject.running.pids()) as calls:
            answer = load.run(case.connections, case.size, plan.seconds / 4)
    except CallsError as error:
        raise LoadError(str(error)) from error
    return calls.count / answer["messages"] / 2


def _idle(case: Case, subject: Subject, load: Load, plan: Plan) -> dict[str, float]:
    """The first connections echo alone, then among the idle ones."""
    alone = _echo(case, load, plan)
    before = subject.running.memory()
    opening = load.open(subject.port, plan.idle, subject.subprotocol)
    grown = subject.running.memory() - before
    among = _echo(case, load, plan)
    return {
        **among,
        "alone_cpu_us": alone["cpu_us"],
        "idle_bytes": grown / plan.idle,
        "open_cpu_us": opening["cpu_ns"] / plan.idle / 1000,
    }


def _open(subject: Subject, load: Load, plan: Plan) -> dict[str, float]:
    load.cycle(subject.port, max(1, plan.cycles // 10), CYCLES_AT_ONCE)  # warm-up
    answer = load.cycle(subject.port, plan.cycles, CYCLES_AT_ONCE)
    return {
        "cycle_cpu_us": answer["cpu_ns"] / plan.cycles / 1000,
        "cycles_per_s": plan.cycles / answer["seconds"],
    }


def _shake(case: Case, subject: Subject, load: Load, plan: Plan) -> dict[str, float]:
    if case.resumed:
        load.tls("resumed")
        load.open(subject.port, 1)           # for its ticket
        load.close()
    load.shake(subject.port, max(1, plan.cycles // 10), CYCLES_AT_ONCE)  # warm-up
    answer = load.shake(subject.port, plan.cycles, CYCLES_AT_ONCE)
    return {
        "shake_cpu_us": answer["cpu_ns"] / plan.cycles / 1000,
        "shakes_per_s": plan.cycles / answer["seconds"],
    }


Say = Callable[[str], None]


def run_case(
    case: Case, proxies: Sequence[Proxy], load: Load, plan: Plan, outcome: Outcome, say: Say
) -> None:
    """All rounds of one case. Samples and failures go into `outcome`."""
    able = [proxy for proxy in proxies if case.mode in proxy.modes]
    if case.kind == IDLE:
        _run_fresh(case, able, load, plan, outcome, say)
        return
    with contextlib.ExitStack() as stack:
        subjects = []
        for proxy in able:
            try:
                subjects.append(
                    stack.enter_context(started(proxy, case.mode, load, plan))
                )
            except StartError as error:
                _fail(case, proxy, error, outcome, say)
        for number in range(plan.rounds):
            for subject in _rotated(subjects, number):
                if (case.name, subject.proxy.name) not in outcome.failures:
                    _one(case, subject, load, plan, number, outcome, say)


def _run_fresh(
    case: Case, proxies: Sequence[Proxy], load: Load, plan: Plan, outcome: Outcome, say: Say
) -> None:
    """Memory is that of a process without a past, so each round starts the proxy anew."""
    for number in range(plan.rounds):
        for proxy in _rotated(proxies, number):
            if (case.name, proxy.name) in outcome.failures:
                continue
            try:
                with started(proxy, case.mode, load, plan) as subject:
                    _one(case, subject, load, plan, number, outcome, say)
            except StartError as error:
                _fail(case, proxy, error, outcome, say)


def _rotated(items: Sequence[Item], number: int) -> list[Item]:
    cut = number % len(items) if items else 0
    return [*items[cut:], *items[:cut]]


def _one(
    case: Case,
    subject: Subject,
    load: Load,
    plan: Plan,
    number: int,
    outcome: Outcome,
    say: Say,
) -> None:
    try:
        figures = measure(case, subject, load, plan)
    except LoadError as error:
        _fail(case, subject.proxy, error, outcome, say)
        return
    outcome.samples.append(Sample(case.name, subject.proxy.name, number, figures))
    names = ("cpu_us", "cycle_cpu_us", "shake_cpu_us")
    shown = next(figures[name] for name in names if name in figures)
    say(f"{case.title:28} round {number + 1}  {subject.proxy.name:18} {shown:9.2f} µs")


def _fail(case: Case, proxy: Proxy, error: Exception, outcome: Outcome, say: Say) -> None:
    outcome.failures[case.name, proxy.name] = str(error)
    say(f"{case.title:28} FAILED   {proxy.name:18} {error}")


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The raw rounds."""
    return {
        "samples": [
            {"case": one.case, "proxy": one.proxy, "round": one.round, "figures": one.figures}
            for one in outcome.samples
        ],
        "failures": [
            {"case": case, "proxy": proxy, "reason": reason}
            for (case, proxy), reason in outcome.failures.items()
        ],
    }


def from_json(data: dict[str, Any]) -> Outcome:
    """What `as_json` gave."""
    return Outcome(
        [Sample(one["case"], one["proxy"], one["round"], one["figures"])
         for one in data["samples"]],
        {(one["case"], one["proxy"]): one["reason"] for one in data["failures"]},
    )
