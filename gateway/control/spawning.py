"""Starts the process of one worker.

Laws of this file:

- A worker is a new program, never a fork of a running loop: it shares nothing with its supervisor
  but the two channels and the memory that it is given, standard output and standard error.
- It imports the gateway from where we did, whatever the working folder has of that name.
- Signals that a terminal or an init sends to the whole group are for the supervisor alone. They
  are blocked while the process is made, since a blocked signal stays blocked over exec (signal(7)):
  so none of them can end a worker before it has said that it ignores them.
"""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.control.channel import socket_pairs

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
MODULE = "gateway.control.worker_process"


@dataclass(frozen=True)
class Spawned:
    """A process that waits for its first line, and our ends of its channels."""

    process: subprocess.Popen[bytes]
    lines: socket.socket
    lane: socket.socket

    def abandon(self) -> None:
        """Close our ends: a worker that serves drains, one that waits for its first line ends.
        Harmless for one that has ended."""
        self.lines.close()
        self.lane.close()
        self.process.poll()


def spawn(memory: int) -> Spawned:
    """Start a process that counts in `memory`, a descriptor. Raises OSError where there is no room
    for one more."""
    lines, lane = socket_pairs()
    theirs = (lines[1].fileno(), lane[1].fileno(), memory)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-P", "-m", MODULE, *map(str, theirs)],
            stdin=subprocess.DEVNULL,
            pass_fds=theirs,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(_path()), "NOTIFY_SOCKET": ""},
        )
    except OSError:
        lines[0].close()
        lane[0].close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        lines[1].close()
        lane[1].close()
    return Spawned(process, lines[0], lane[0])


def _path() -> list[str]:
    """Where we import from, whatever the worker's own start would add to that."""
    return [folder or str(Path.cwd()) for folder in sys.path]
