"""A proxy that runs: started on its core, found listening, measured, and stopped by its id.

Laws: only what was started here is ever signalled; memory and CPU are those of the whole tree.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_LIMIT = 20.0   # seconds; Envoy needs about one
STOP_LIMIT = 5.0
LISTENING = "0A"     # the state in /proc/net/tcp


class StartError(Exception):
    """A proxy that did not come to listen; the text has the end of what it wrote."""


class Running:
    """One process tree. Use as a context; the tree ends with it."""

    def __init__(self, command: Sequence[str], port: int, place: Path, core: int | None = None):
        pin = [] if core is None else ["taskset", "-c", str(core)]
        self._log = place / "stderr.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*pin, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # access records go here
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": ""},
            )
        try:
            self._await_listening(port)
        except StartError:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _await_listening(self, port: int) -> None:
        """By the kernel's table, so that no connection is made that nobody ordered."""
        deadline = time.monotonic() + START_LIMIT
        while not is_listening(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-600:].strip()
                raise StartError(f"it does not listen (exit {self._process.poll()}): {tail}")
            time.sleep(0.02)

    def pids(self) -> list[int]:
        """The process and all its descendants that live now."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    text = (entry / "stat").read_text()
                    parent = int(text[text.rindex(")") + 2 :].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        found = [self._process.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def memory(self) -> int:
        """Bytes of user memory of the tree: pages shared by several count once (PSS)."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def stop(self) -> None:
        """SIGTERM, and what is left after a while is killed, by its id."""
        if self._process.poll() is not None:
            return
        tree = self.pids()
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            for pid in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


def is_listening(port: int) -> bool:
    """Whether a socket on this port of an IPv4 address listens in this network namespace."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == LISTENING and int(columns[1].split(":")[1], 16) == port:
            return True
    return False
