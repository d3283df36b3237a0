"""A run as Markdown: the tables, the figures with pass or miss, and how it was made.

Law: pure. It renders what it is given and computes nothing but medians, intervals and ratios.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import CASES, ECHO, Case, Outcome
from .figures import KIB, Field, Verdict, check
from .stats import Interval, interval, median

NOTHING = "-"
LOAD_IDLE = 0.05     # with less of its core left, the load is taken for full
CLOSED_LOOP = (
    "Closed loop: each connection sends when its echo is back, so that throughput is what one "
    "core yields, and latency is mostly waiting for the others."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that a report tells of. `proxies` has name to (kind, version, records), in order."""

    outcome: Outcome
    proxies: dict[str, tuple[str, str, str]]
    machine: dict[str, str]
    plan: dict[str, Any]
    warnings: list[str] = field(default_factory=list)  # why it should not be believed

    def named(self, kind: str) -> list[str]:
        """The proxies of one kind: floor, gateway or peer."""
        return [name for name, about in self.proxies.items() if about[0] == kind]

    def fields(self) -> list[Field]:
        """One for each form of the gateway that was run."""
        floors, peers = self.named("floor"), self.named("peer")
        return [Field(self.outcome, floors, peers, name) for name in self.named("gateway")]


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(found: Interval) -> str:
    """A median with its interval."""
    return f"{number(found.middle)} [{number(found.low)}, {number(found.high)}]"


def render(run: Run) -> str:
    """The whole report."""
    parts = [
        "# Benchmark",
        *(f"**{warning}**" for warning in run.warnings),
        _how(run),
        "## CPU of the proxy for one echoed message, µs",
        _cpu_table(run),
        _calls_table(run),
        "## Throughput and latency",
        CLOSED_LOOP,
        _latency_table(run),
        _who_limits(run),
        "## Idle connections, opening and closing",
        _idle_table(run),
        _tls_table(run),
        "## The figures" if run.named("gateway") else "",
        *(f"### {one.gateway}\n\n{_figures(one)}" for one in run.fields()),
        _failures(run.outcome),
        "## What ran",
        _table(
            ["proxy", "version", "access records"],
            ([name, about[1], about[2]] for name, about in run.proxies.items()),
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(run: Run, picture: Path) -> str:
    """What a README has: how it was measured, CPU per message, the figures."""
    parts = [
        *(f"**{warning}**" for warning in run.warnings),
        _how(run),
        f"![CPU of the proxy for one echoed message]({picture})",
        "CPU of the proxy for one echoed message, µs:",
        _cpu_table(run),
        _calls_table(run).replace("## ", ""),
        "Idle connections, opening and closing:",
        _idle_table(run),
        _tls_table(run),
        *(f"{one.gateway}:\n\n{_figures(one)}" for one in run.fields()),
        _failures(run.outcome).replace("## What failed", "What failed:"),
        "Versions: " + ", ".join(f"{name} {about[1]}" for name, about in run.proxies.items()
                                 if about[0] != "floor") + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how(run: Run) -> str:
    plan = run.plan
    facts = ", ".join(f"{name}: {value}" for name, value in run.machine.items())
    rounds = int(plan["rounds"])
    times = "1 round" if rounds == 1 else f"{rounds} rounds, alternating between the proxies,"
    coverage = interval([float(n) for n in range(rounds)]).coverage
    return (
        f"{facts}.\n\n"
        f"The proxy has core {plan['proxy_core']} for itself, clients and upstreams core "
        f"{plan['load_core']}; one message is in flight on each connection. "
        f"{times} of {plan['seconds']} s after "
        f"{plan['warm_up']} s of warm-up. A figure is the median with its "
        f"{coverage:.0%} interval. CPU is that of the proxy's whole process tree. "
        "Access records are on for all proxies and go to /dev/null; the floors have none."
        f"{_dear(run)}{_disturbance(run)}"
    )


def _dear(run: Run) -> str:
    """Whether the machine was made another one."""
    steps = run.plan.get("dear")
    if not steps:
        return ""
    return (
        f"\n\nThe system calls of all proxies were made dear: each passed a filter of {steps} "
        "steps (`dear.py`)."
    )


def _disturbance(run: Run) -> str:
    """How much else ran on the machine: what the load waited for its core."""
    waits = [
        sample.figures["load_waited_part"]
        for sample in run.outcome.samples
        if "load_waited_part" in sample.figures
    ]
    if not waits:
        return ""
    return (
        f"\n\nOther work on the machine kept the load from its core for {median(waits):.1%} of "
        f"the time (median over all rounds), at most {max(waits):.1%}."
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _cell(run: Run, case: str, proxy: str, figure: str, scale: float = 1.0) -> str:
    values = run.outcome.values(case, proxy, figure)
    if not values:
        return "failed" if (case, proxy) in run.outcome.failures else NOTHING
    return shown(interval([value / scale for value in values]))


def _measured(run: Run, kinds: Callable[[Case], bool]) -> list[Case]:
    present = {sample.case for sample in run.outcome.samples}
    return [case for case in CASES if case.name in present and kinds(case)]


def _cpu_table(run: Run) -> str:
    cases = _measured(run, lambda case: case.kind == ECHO)
    rows = []
    for proxy in run.proxies:
        row = [proxy]
        for case in cases:
            cell = _cell(run, case.name, proxy, "cpu_us")
            values = run.outcome.values(case.name, proxy, "cpu_us")
            floor = Field(run.outcome, run.named("floor"), [], proxy)
            best = floor.best(floor.floors, case.name, "cpu_us")
            ratio = floor.ratio(case.name, "cpu_us", best) if best and values else None
            row.append(f"{cell} ({ratio.middle:.2f})" if ratio else cell)
        if any(cell != NOTHING for cell in row[1:]):
            rows.append(row)
    note = "In parentheses: of the best floor in the same round (median)."
    return _table(["proxy", *(case.title for case in cases)], rows) + "\n\n" + note


def _calls_table(run: Run) -> str:
    """Only where they were counted."""
    cases = [case for case in _measured(run, lambda case: case.kind == ECHO)
             if any(run.outcome.values(case.name, proxy, "calls") for proxy in run.proxies)]
    if not cases:
        return ""
    rows = [[proxy, *(_cell(run, case.name, proxy, "calls") for case in cases)]
            for proxy in run.proxies]
    title = "## System calls for one relayed message (an echo is two)"
    return f"{title}\n\n" + _table(["proxy", *(case.title for case in cases)], rows)


def _latency_table(run: Run) -> str:
    rows = []
    for case in _measured(run, lambda case: case.kind == ECHO):
        for proxy in run.proxies:
            if not run.outcome.values(case.name, proxy, "cpu_us"):
                continue
            figures = ("messages_per_s", "p50_us", "p99_us", "p999_us")
            rows.append(
                [case.title, proxy]
                + [_cell(run, case.name, proxy, figure) for figure in figures]
                + [f"{_idle(run, case.name, proxy, who):.0%}" for who in ("", "load_")]
            )
    heads = ["case", "proxy", "messages/s", "p50 µs", "p99 µs", "p99.9 µs"]
    return _table([*heads, "proxy's core idle", "load's core idle"], rows)


def _idle(run: Run, case: str, proxy: str, who: str) -> float:
    """The share of the time in which a core had nothing to do, for it or for others."""
    busy = median(run.outcome.values(case, proxy, f"{who}busy_part"))
    waited = median(run.outcome.values(case, proxy, f"{who}waited_part"))
    return max(0.0, 1 - busy - waited)


def _who_limits(run: Run) -> str:
    """Whether the load could have given more."""
    idle = {
        (case.title, proxy): _idle(run, case.name, proxy, "load_")
        for case in _measured(run, lambda case: case.kind == ECHO)
        for proxy in run.proxies
        if run.outcome.values(case.name, proxy, "load_busy_part")
    }
    if not idle:
        return ""
    case, proxy = min(idle, key=lambda one: idle[one])
    full = sum(share < LOAD_IDLE for share in idle.values())
    return (
        f"The load's core was idle for {idle[case, proxy]:.0%} of the time at least "
        f"({case}, {proxy}; less than {LOAD_IDLE:.0%} in {full} of {len(idle)} lines): where it is "
        "full, messages/s and latency are the load's limit, and CPU per message is what to compare."
    )


def _idle_table(run: Run) -> str:
    rows = []
    for proxy in run.proxies:
        row = [
            proxy,
            _cell(run, "idle", proxy, "idle_bytes", KIB),
            _cell(run, "idle", proxy, "alone_cpu_us"),
            _cell(run, "idle", proxy, "cpu_us"),
            _cell(run, "idle", proxy, "open_cpu_us"),
            _cell(run, "open", proxy, "cycle_cpu_us"),
        ]
        if any(cell != NOTHING for cell in row[1:]):
            rows.append(row)
    heads = [
        "proxy",
        "user memory per idle WebSocket, KiB",
        "64 B, 64 connections alone, µs",
        f"the same among {run.plan['idle']} idle, µs",
        "CPU to open, µs",
        "CPU to open and close, µs",
    ]
    return _table(heads, rows)


def _tls_table(run: Run) -> str:
    """Only where TLS was measured."""
    columns = [
        ("tls-shake", "shake_cpu_us", 1.0, "CPU for a TLS handshake, µs"),
        ("tls-resume", "shake_cpu_us", 1.0, "the same by a ticket, µs"),
        ("tls-idle", "idle_bytes", KIB, "user memory per idle WebSocket by TLS, KiB"),
    ]
    rows = []
    for proxy in run.proxies:
        row = [_cell(run, case, proxy, figure, scale) for case, figure, scale, _ in columns]
        if any(cell != NOTHING for cell in row):
            rows.append([proxy, *row])
    if not rows:
        return ""
    return "TLS:\n\n" + _table(["proxy", *(title for *_, title in columns)], rows)


def _figures(one: Field) -> str:
    rows = [_row(verdict) for verdict in check(one)]
    heads = ["figure", "at most", "found", "against", ""]
    return _table(heads, rows)


def _row(verdict: Verdict) -> list[str]:
    limit = f"{verdict.limit:,.2f}" if verdict.limit else NOTHING
    found = shown(verdict.found) if verdict.found else NOTHING
    return [verdict.text, limit, found, verdict.against, verdict.word]


def _failures(outcome: Outcome) -> str:
    if not outcome.failures:
        return ""
    lines = [
        f"- {proxy}, {case}: {' '.join(reason.split())}"
        for (case, proxy), reason in outcome.failures.items()
    ]
    return "## What failed\n\n" + "\n".join(lines)
