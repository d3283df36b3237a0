"""What an init such as systemd gives and wants: sockets that it holds (LISTEN_FDS), and to be told
how things stand (NOTIFY_SOCKET). Without an init nothing of this does anything.

Facts, of sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3):

- Inherited sockets are 3, 4, ... LISTEN_PID says whose they are; both are removed from the
  environment, so that no child takes them for its own.
- A message is one datagram of `KEY=value` lines. A name that begins with "@" is an abstract one.
- RELOADING=1 needs MONOTONIC_USEC (systemd 253, Type=notify-reload), and READY=1 ends it.
- WATCHDOG_PID names the process that has to say WATCHDOG=1; a successor that was made main by
  MAINPID has to go on, so that it must not inherit the name.

Whether somebody listens to what is said makes no difference: nothing here waits or fails.
"""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from gateway.errors import ListenError

FIRST = 3                     # SD_LISTEN_FDS_START
OURS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

Environment = MutableMapping[str, str]


def inherited(environment: Environment) -> list[socket.socket]:
    """The listening sockets that are handed to this process; once. Raises `ListenError` for what
    is none."""
    found = {name: environment.pop(name, "") for name in OURS}
    if found["LISTEN_PID"] != str(os.getpid()) or not found["LISTEN_FDS"].isdecimal():
        return []
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for descriptor in range(FIRST, FIRST + int(found["LISTEN_FDS"])):
            try:
                os.set_inheritable(descriptor, False)
                sock = socket.socket(fileno=descriptor)
                undo.callback(sock.close)
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            except OSError:
                listens = 0
            if not listens or sock.type != socket.SOCK_STREAM:
                raise ListenError(
                    f"descriptor {descriptor} of LISTEN_FDS is no listening stream socket; in the "
                    ".socket unit, write ListenStream= and Accept=no"
                )
            sock.setblocking(False)
            sockets.append(sock)
        undo.pop_all()
    return sockets


class Notifier:
    """Tells the init. `interval` is how often it wants to hear that we live; 0: never."""

    def __init__(self, environment: Environment) -> None:
        self._name = environment.get("NOTIFY_SOCKET", "")
        self.interval = 0.0
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        if self._name and watched and microseconds.isdecimal():
            self.interval = int(microseconds) / 2_000_000    # half of it, as systemd advises

    def ready(self, status: str) -> None:
        """It serves; after a reload: with the new table."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` says that it is over, whatever came of it."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._say("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """To be said each `interval` seconds."""
        self._say("WATCHDOG=1")

    def succeeded_by(self, pid: int) -> None:
        """Another process is the main one from here on; nothing is to be said by this one."""
        self._say(f"MAINPID={pid}", "READY=1")
        self._name = ""

    def _say(self, *lines: str) -> None:
        if not self._name:
            return
        name = "\0" + self._name[1:] if self._name.startswith("@") else self._name
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.sendto("\n".join(lines).encode(), name)
