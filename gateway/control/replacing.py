"""Another program in the place of the running one, on SIGUSR2: an upgrade that loses nobody.

The old program starts the new one with its listening sockets, by the command that it was itself
started with. The new one reads its table, takes the sockets that the table still names, starts its
workers, and says so on a pipe (sockets.py has its side). From then on both accept; the old one
stops, drains and ends. What waits in the sockets' queues belongs to both, and is lost by neither.

Laws of this file:

- Nothing is risked: a new program that ends, or does not come up in time, is killed, and the old
  one has never stopped serving.
- A socket is known by its role and by the address as the table has it: port 0 is not asked for
  again, it stays the port that clients know.
- A Unix socket's file belongs to whoever is to remove it: to the new program, as soon as it serves.
- What a watchdog and socket activation were told of the old process is not for the new one.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable

from gateway.control.channel import pack_address
from gateway.control.sockets import READY, VARIABLE, Handed
from gateway.errors import GatewayError

ANSWER_MAX = 64 * 1024        # bytes; what a pipe takes at once
START_LIMIT = 60.0            # seconds for the new program to serve: names may be slow to resolve

_NOT_INHERITED = (VARIABLE, "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ReplaceFailed(GatewayError):
    """The new program does not serve, and the old one goes on; the message says why."""


class Replacement:
    """A new program on its way. `start` it, wait until it is `serving`, or `cancel` it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._hears = -1               # our end of the pipe

    def start(self, sockets: Iterable[Handed], memory: int) -> int:
        """Start it with these sockets, and with what our workers count in, to tell of us while we
        drain. Gives its process id. Raises `ReplaceFailed`."""
        if os.getpid() == 1:
            raise ReplaceFailed(
                "this is process 1 of its container, which ends with it; start a container with "
                "the new program beside this one, and end this one with SIGTERM"
            )
        sockets = list(sockets)
        self._hears, says = os.pipe()
        told = {
            "ready": says,
            "process": os.getpid(),
            "memory": memory,
            "sockets": [
                {
                    "role": each.role,
                    "descriptor": each.bound.socket.fileno(),
                    "wanted": pack_address(each.wanted),
                    "address": pack_address(each.bound.address),
                    "file": each.bound.file,
                }
                for each in sockets
            ],
        }
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command that we were started with
                sys.orig_argv,
                executable=sys.executable,
                pass_fds=[says, memory, *(each.bound.socket.fileno() for each in sockets)],
                env=environment | {VARIABLE: json.dumps(told)},
            )
        except OSError as error:
            os.close(self._hears)
            raise ReplaceFailed(
                f"the new program cannot be started: {error.strerror or error}"
            ) from error
        finally:
            os.close(says)
        return self._process.pid

    async def serving(self, seconds: float = START_LIMIT) -> set[int]:
        """Wait until it serves; the descriptors that it has no use for. Raises `ReplaceFailed`,
        after which nothing of it is left."""
        assert self._process is not None
        loop = asyncio.get_running_loop()
        said: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(self._hears, self._read, said)
        try:
            answer = await asyncio.wait_for(asyncio.shield(said), seconds)
        except TimeoutError:
            self._process.kill()
            raise ReplaceFailed(f"the new program did not serve within {seconds:g} s") from None
        finally:
            loop.remove_reader(self._hears)
            os.close(self._hears)
            # Nobody waits for a child that lives on; one that fails must not stay a zombie.
            threading.Thread(target=self._process.wait, daemon=True, name="successor").start()
        if not answer.startswith(READY):
            code = await self._code()
            raise ReplaceFailed(
                f"the new program ended before it served ({code}); what it said stands above"
            )
        return set(json.loads(answer.removeprefix(READY) or b"[]"))  # an older one says no more

    def _read(self, said: asyncio.Future[bytes]) -> None:
        if not said.done():
            said.set_result(os.read(self._hears, ANSWER_MAX))

    async def _code(self) -> str:
        """How it ended: it has closed its end of the pipe, and will soon."""
        assert self._process is not None
        for _ in range(100):
            if self._process.poll() is not None:
                return f"exit code {self._process.returncode}"
            await asyncio.sleep(0.05)
        self._process.kill()
        return "it had to be killed"

    def cancel(self) -> None:
        """It is not wanted any more: it is told to end, whether it serves or not."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
