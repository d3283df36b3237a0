"""The load generator as Python sees it: one process for a whole run, ordered by lines.

What the commands mean stands at the head of `native/load.c`. Every answer that carries an error
raises `LoadError`, so that a figure exists only for messages that were right.
"""

import json
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from .build import build


class LoadError(Exception):
    """Something went wrong in a measurement; the sentence is the load generator's."""


class Load:
    """Clients and upstreams. Use as a context; the process ends with it."""

    def __init__(self, core: int | None = None):
        program = str(build("load"))
        pin = [] if core is None else ["taskset", "-c", str(core)]
        self._process = subprocess.Popen(
            [*pin, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ports = self._answer()
        self.frames_port: int = ports["frames_port"]
        self.raw_port: int = ports["raw_port"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()  # its end of input is its end
        self._process.wait(10)
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the load generator ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("errors"):
            raise LoadError(f"{answer['error']} ({answer['errors']} in all)")
        return answer

    def _order(self, command: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def pids(self, pids: Sequence[int]) -> None:
        """The processes whose CPU time is meant from here on."""
        self._order(" ".join(["pids", *map(str, pids)]))

    def open(self, port: int, count: int, subprotocol: str = "") -> dict[str, Any]:
        """Open `count` more WebSockets. Answers seconds and `cpu_ns` for all of them."""
        return self._order(f"open {port} {count} {subprotocol}".rstrip())

    def run(
        self, count: int, size: int, seconds: float, warm_up: float = 0.0, messages: int = 0
    ) -> dict[str, Any]:
        """Echo messages of `size` bytes on the first `count` connections, one in flight each."""
        return self._order(
            f"run {count} {size} {round(seconds * 1000)} {round(warm_up * 1000)} {messages}"
        )

    def cycle(self, port: int, count: int, concurrency: int) -> dict[str, Any]:
        """Open and close a WebSocket `count` times."""
        return self._order(f"cycle {port} {count} {concurrency}")

    def tls(self, how: str) -> None:
        """How clients begin that connect from here on: "off", "full" or "resumed"."""
        self._order(f"tls {how}")

    def shake(self, port: int, count: int, concurrency: int) -> dict[str, Any]:
        """Connect, shake hands and end, `count` times. To resume, open a connection before."""
        return self._order(f"shake {port} {count} {concurrency}")

    def close(self) -> dict[str, Any]:
        """Close everything that is open, cleanly where the proxy lets us."""
        return self._order("close")

    def getppid_ns(self) -> float:
        """What one of the cheapest system calls costs here, in nanoseconds."""
        return float(self._order("syscall")["getppid_ns"])
