"""One worker as its supervisor sees it: a process, and the channel to it.

Laws of this file:

- `gone` is called once, when the process has ended **and** all that it had said is heard.
- An answer is waited for with a limit. Whoever asks a worker that ends meanwhile is told so.
- The process is waited for in a thread: that works in every container and on every kernel, and
  takes nothing from the loop, whose child watchers differ between Python's versions.
"""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import cast

from gateway.control.channel import Lines, Message, encode, send_sockets
from gateway.control.cpus import usable
from gateway.control.listening import Bound
from gateway.control.spawning import Spawned

ANSWER_LIMIT = 5.0            # seconds; a worker does an order in one turn of its engine


class WorkerState(Enum):
    """STARTING until it says that it serves; DRAINING from when it was told to end."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class WorkerGone(Exception):
    """It has ended, and will not answer."""


class WorkerHandle(asyncio.Protocol):
    """One process of a worker. `open` it, then `tell` and `ask`.

    `heard` gets what it says of itself, `gone` its end.
    """

    def __init__(
        self,
        index: int,
        spawned: Spawned,
        heard: Callable[["WorkerHandle", Message], None],
        gone: Callable[["WorkerHandle"], None],
    ) -> None:
        self.index = index
        self.pid = spawned.process.pid
        self.state = WorkerState.STARTING
        self.version = -1                        # of the terms that it goes by
        self.given: set[int] = set()             # numbers of the listeners whose sockets it has
        self.served = False                      # it has had the chance of having sessions
        self.drains = False                      # it was told to end
        self.counted: dict[str, int] = {}        # by those who had its number before
        self.code: int | None = None             # of its exit; negative: the signal that killed it
        self.ended: Message | None = None        # its last line, where it came to say one
        self._spawned = spawned
        self._heard = heard
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self.born = time.monotonic()
        self._transport: asyncio.Transport | None = None
        self._silent = False                     # the end of its lines is read
        self._lines = Lines()
        self._asked = 0
        self._waiting: dict[int, asyncio.Future[Message]] = {}

    async def open(self) -> None:
        """Begin to hear it, and to wait for its end."""
        await self._loop.create_unix_connection(lambda: self, sock=self._spawned.lines)
        threading.Thread(target=self._wait, daemon=True, name=f"worker {self.index}").start()

    # --- Down -------------------------------------------------------------------------------

    def tell(self, message: Message) -> None:
        """Say something that is not answered. Nothing happens where it is gone."""
        if self._transport is not None and not self._silent:
            self._transport.write(encode(message))

    async def ask(self, message: Message, seconds: float = ANSWER_LIMIT) -> Message:
        """Its answer. Raises `WorkerGone`, or `TimeoutError` where none comes in time."""
        if self._transport is None or self._silent:
            raise WorkerGone
        self._asked += 1
        number = self._asked
        answer = self._waiting[number] = self._loop.create_future()
        self.tell(message | {"id": number})
        try:
            return await asyncio.wait_for(answer, seconds)
        finally:
            del self._waiting[number]

    def give(self, bound: dict[int, Bound]) -> None:
        """Give it these listening sockets, before the line that speaks of them. Raises OSError:
        BlockingIOError where it has not taken what it was given before."""
        send_sockets(self._spawned.lane, {number: each.socket for number, each in bound.items()})
        self.given.update(bound)

    def pin(self, *, pinned: bool) -> None:
        """Let it run on one CPU, in turn over those that there are, or on all of them."""
        cpus = usable()
        with contextlib.suppress(OSError):           # it is gone already, or the CPU is
            os.sched_setaffinity(self.pid, {cpus[self.index % len(cpus)]} if pinned else cpus)

    def leave(self, seconds: float, cause: str) -> None:
        """Have it end gently: others go on accepting."""
        self.end({"do": "drain", "seconds": seconds, "cause": cause, "others": True})

    def end(self, message: Message) -> None:
        """Have it end, in the way that the message says."""
        self.drains = True
        self.state = WorkerState.DRAINING
        self.tell(message)

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        """Of a process that has ended nothing is left to signal: Popen knows."""
        with contextlib.suppress(ProcessLookupError):
            self._spawned.process.send_signal(number)

    # --- Up ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)   # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. A worker that says what cannot be read is not to be trusted."""
        try:
            messages = self._lines.feed(data)
        except (ValueError, AssertionError):
            self.kill()
            return
        for message in messages:
            number = message.get("id")
            if number is None:
                self._hear(message)
            elif number in self._waiting and not self._waiting[number].done():
                self._waiting[number].set_result(message)

    def _hear(self, message: Message) -> None:
        if message["is"] == "serving":
            self.served = True
            if self.state is WorkerState.STARTING:
                self.state = WorkerState.SERVING
        elif message["is"] == "ended":
            self.ended = message
        self._heard(self, message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """See asyncio.Protocol."""
        self._silent = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(WorkerGone())
        self._see_end()

    def _wait(self) -> None:
        """In a thread of its own."""
        code = self._spawned.process.wait()
        with contextlib.suppress(RuntimeError):      # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(self._exited, code)

    def _exited(self, code: int) -> None:
        self.code = code
        self._see_end()

    def _see_end(self) -> None:
        if self._silent and self.code is not None:
            self.state = WorkerState.GONE
            self._spawned.lane.close()
            self._gone(self)

    @property
    def how_it_ended(self) -> str:
        """For the log."""
        assert self.code is not None
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return signal.Signals(-self.code).name
        except ValueError:                           # a real-time signal
            return f"signal {-self.code}"
