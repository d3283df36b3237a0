"""One run: fill a gateway, let a part of its clients come back as a storm, and take figures.

    with scene(Plan()) as run:
        figures = run.run(print)

Before that some clients come to a route that is over its rate, at the pace at which the gateway was
filled: what it costs to refuse one is beside what it costs to let one in.

Two crowds: `stayers` hold their sessions all along, and some of them measure how long an echo
takes; `storm` is cut at one instant, and then comes back within ten seconds. Each has an upstream
of its own, so that what the gateway does to the one is seen, and not what its upstream does.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from end_to_end.kit import Gateway, head, launch, memory_of, route

CROWD = Path(__file__).with_name("crowd.py")
ECHO = Path(__file__).with_name("echo.py")
Say = Callable[[str], None]
Figures = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    stayers: int = 8000
    storm: int = 10_000
    refused: int = 3000                  # who come to a route that is over its rate
    fill_rate: float = 1500.0            # handshakes a second while it is filled
    storm_seconds: float = 10.0
    probes: int = 200                    # sessions that measure
    every: float = 0.5                   # seconds between two messages of each
    before: float = 10.0                 # seconds of measuring without a storm, and at least in it
    cut_seconds: float = 3.0             # and from when all of the storm are cut at one instant
    workers: int = 2
    handshakes: str = "off"
    engine: str = "uvloop"


class CrowdProcess:
    """A crowd in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(CROWD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, what: str, **order: Any) -> None:
        """Order something; `done` waits for it."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": what, **order}) + "\n")
        self._process.stdin.flush()

    def done(self) -> Figures:
        """What came of it."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the crowd's process ended"
        figures: Figures = json.loads(line)
        return figures

    def do(self, what: str, **order: Any) -> Figures:
        """Both."""
        self.begin(what, **order)
        return self.done()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """The URL of an echo upstream in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(ECHO)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    with process.stdin, process.stdout:
        try:
            yield f"ws://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def scene(plan: Plan) -> Iterator["Scene"]:
    """A gateway, its two upstreams, and the two crowds."""
    with contextlib.ExitStack() as at_end:
        table = head(f"workers = {plan.workers}", 'drain = "0s"')
        for name in ("stay", "storm"):
            url = at_end.enter_context(echo())
            table += route(name, name, f'handshakes = "{plan.handshakes}"')
            table += f'[upstream.{name}]\nendpoints = ["{url}"]\n'
            table += 'source_addresses = ["127.0.0.2", "127.0.0.3"]\n'
        table += route("shut", "storm", 'handshakes = "1/s"')
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory()))
        gateway = at_end.enter_context(launch(table, folder, engine=plan.engine))
        crowds = [CrowdProcess() for _ in range(2)]
        for crowd in crowds:
            at_end.callback(crowd.close)
        yield Scene(plan, gateway, *crowds)


class Scene:
    """See `scene`."""

    def __init__(
        self, plan: Plan, gateway: Gateway, stayers: CrowdProcess, storm: CrowdProcess
    ) -> None:
        self.plan = plan
        self.gateway = gateway
        self.stayers = stayers
        self.storm = storm

    def run(self, say: Say) -> dict[str, Figures]:
        """All phases, one after another; what each gave."""
        plan, figures = self.plan, {}
        total = plan.stayers + plan.storm
        memory, cpu = self._memory(), self.gateway.cpu()
        figures["fill"] = self._come("/stay", plan.stayers, plan.fill_rate)
        figures["fill rest"] = self._come("/storm", plan.storm, plan.fill_rate)
        figures["held"] = {
            "sessions": total,
            "KiB_each": round((self._memory() - memory) / total / 1024, 2),
            "cpu_us_each": round((self.gateway.cpu() - cpu) / total * 1e6, 1),
            "most_descriptors": max(self._descriptors()),
            "least_descriptors": min(self._descriptors()),
        }
        say(f"held: {figures['held']}")
        figures["refused"] = self._refuse(figures["held"]["cpu_us_each"])
        say(f"refused: {figures['refused']}")
        with self._probing(plan.before) as figures["before"]:
            pass
        say(f"echo before: {figures['before']}")
        with self._probing(plan.cut_seconds) as figures["cut"]:
            self.storm.do("cut", count=plan.storm)
        say(f"echo while they are cut: {figures['cut']}")
        with self._probing(max(plan.storm_seconds, plan.before)) as figures["during"]:
            figures["storm"] = self._return()
        say(f"storm: {figures['storm']}")
        say(f"echo during: {figures['during']}")
        figures["stayers"] = self.stayers.do("lost")
        figures["returned"] = self.storm.do("lost")
        return figures

    @contextlib.contextmanager
    def _probing(self, seconds: float) -> Iterator[Figures]:
        """Measure echoes of those that stay for so long, beside what is done meanwhile. Tells, too,
        how long the workers ran and how long they waited for a CPU that others had: where that
        is much, the echoes tell of the machine and not of the gateway."""
        figures: Figures = {}
        before = self._scheduled()
        self.stayers.begin(
            "probe", count=self.plan.probes, every=self.plan.every, seconds=seconds
        )
        yield figures
        figures |= self.stayers.done()
        ran, waited = (now - then for now, then in zip(self._scheduled(), before, strict=True))
        figures |= {"workers_ran_ms": ran, "workers_waited_ms": waited}

    def _scheduled(self) -> tuple[int, int]:
        """Milliseconds that all workers ran, and waited for a CPU (/proc/PID/schedstat)."""
        read = [
            Path(f"/proc/{pid}/schedstat").read_text().split() for pid in self.gateway.workers
        ]
        return sum(int(one[0]) for one in read) // 10**6, sum(int(one[1]) for one in read) // 10**6

    def _return(self) -> Figures:
        """All who were cut come back."""
        plan = self.plan
        cpu, begun = self.gateway.cpu(), time.monotonic()
        figures = self._come("/storm", plan.storm, plan.storm / plan.storm_seconds)
        return figures | {
            "seconds": round(time.monotonic() - begun, 2),
            "cpu_seconds": round(self.gateway.cpu() - cpu, 2),
        }

    def _refuse(self, opened_us: float) -> Figures:
        """So many are told to come later; `opened_us` is what it took to let one in."""
        cpu = self.gateway.cpu()
        figures = self._come("/shut", self.plan.refused, self.plan.fill_rate, "knock")
        each = (self.gateway.cpu() - cpu) / self.plan.refused * 1e6
        self.storm.do("cut", count=int(figures["opened"]))       # who came in all the same
        return figures | {
            "cpu_us_each": round(each, 1), "of_a_handshake": round(each / opened_us, 3)
        }

    def _come(self, path: str, count: int, rate: float, order: str = "open") -> Figures:
        """So many open sessions, from two addresses."""
        crowd = self.stayers if path == "/stay" else self.storm
        return crowd.do(
            order, port=self.gateway.port, path=path, count=count, rate=rate,
            sources=["127.0.0.4", "127.0.0.5"],
        )

    def _memory(self) -> int:
        return sum(memory_of(pid) for pid in self.gateway.workers)

    def _descriptors(self) -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in self.gateway.workers]
