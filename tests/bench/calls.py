"""How many system calls a proxy makes for a message, counted by the kernel.

Facts: `perf stat` counts the tracepoint raw_syscalls:sys_enter for given processes, at some 50 ns a
call, so the counted run is one of its own. It asks for root or CAP_PERFMON, and for tracefs. What
io_uring does inside the kernel is no call; its `io_uring_enter` is one.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence

EVENT = "raw_syscalls:sys_enter"


class CallsError(Exception):
    """They cannot be counted here; the sentence is perf's."""


class Calls:
    """What was counted, when the context is left."""

    def __init__(self) -> None:
        self.count = 0


@contextlib.contextmanager
def counted(pids: Sequence[int]) -> Iterator[Calls]:
    """Count the system calls of these processes within. Raises CallsError."""
    orders, order = os.pipe()
    answer, answers = os.pipe()
    calls = Calls()
    command = ["perf", "stat", "-x", ",", "-e", EVENT, "-D", "-1",
               "--control", f"fd:{orders},{answers}", "-p", ",".join(map(str, pids))]
    try:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            pass_fds=(orders, answers),
        ) as perf:
            os.close(answers)
            answers = -1
            try:
                _tell(order, answer, perf, "enable")
                yield calls
                _tell(order, answer, perf, "disable")
            finally:
                if perf.poll() is None:
                    perf.send_signal(signal.SIGINT)
                _, said = perf.communicate()
            calls.count = _read(said)
    except FileNotFoundError:
        raise CallsError("perf is not here (Debian: linux-perf)") from None
    finally:
        for fd in (orders, order, answer, answers):
            if fd >= 0:
                os.close(fd)


def _tell(order: int, answer: int, perf: "subprocess.Popen[str]", word: str) -> None:
    """It has obeyed when it answers; no answer: it is gone."""
    with contextlib.suppress(BrokenPipeError):
        os.write(order, f"{word}\n".encode())
    if not os.read(answer, 16):
        _, said = perf.communicate()
        raise CallsError(said.strip() or "perf ended at once")


def _read(said: str) -> int:
    for line in said.splitlines():
        parts = line.split(",")
        if EVENT in line and parts[0].isdigit():
            return int(parts[0])
    raise CallsError(said.strip())
