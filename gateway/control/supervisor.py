"""The supervisor: the life of the workers. It serves nobody itself.

Laws of this file:

- One way for all: one worker is started and watched like many.
- Before all of them serve for the first time, a worker that cannot begin is an error of the start.
  Afterwards nothing that happens to workers ends the supervisor: one that dies is said and
  replaced, at once, or later and later where it dies young again and again.
- The listening sockets are ours, and outlive every worker: what waits in their queues is never
  lost with one.
- It ends when every worker has; those that do not in time are killed, and that is said.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from gateway import __version__
from gateway.control import channel
from gateway.control.channel import Endpoints, Message
from gateway.control.choice import Choice
from gateway.control.cpus import usable
from gateway.control.handle import WorkerHandle, WorkerState
from gateway.control.listening import Bound
from gateway.control.parts import relays
from gateway.control.report import Report, Value
from gateway.control.shared import Board, endpoint_name
from gateway.control.spawning import Spawned, spawn
from gateway.control.vigil import LOOK, Vigil
from gateway.errors import EngineRefused, GatewayError, StartFailed
from gateway.table import Table

BACK_OFF_MIN = 0.1            # seconds until a worker that died young is replaced; doubles
BACK_OFF_MAX = 10.0
YOUNG = 10.0                  # seconds of life: one that dies earlier may have a lasting reason
GRACE = 5.0                   # seconds that workers have beyond what they were told to end in
FLUSH_RETRY = 0.1             # seconds until a slow reader of the log is tried again
EXIT_CUT = 4                  # exit code where a session had to be cut


class Phase(Enum):
    """Of the supervisor. LEAVING: not ready any more, but clients are still accepted; ENDING: the
    workers were told to drain, or to cut."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"
    ENDING = "ending"


@dataclass(slots=True)
class Totals:
    """What the workers that have ended had counted."""

    accepted: int = 0
    cut: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What all workers have that is no key of the table: the engine, and how many sessions each
    may have."""

    choice: Choice
    max_sessions: int


class Supervisor:
    """See the module's docstring. `run` is its life, in the main thread.

    `bound` are the listening sockets, by numbers that no other ever has, in the order of the
    table's listeners; `endpoints` are the addresses of the table's upstreams; on the `board` the
    workers count.
    """

    def __init__(
        self, table: Table, bound: list[Bound], endpoints: Endpoints, setting: Setting,
        board: Board, report: Report,
    ) -> None:
        self.table = table
        self.bound = dict(enumerate(bound))
        self.endpoints = endpoints
        self.setting = setting
        self.board = board
        self.report = report
        self.workers: list[WorkerHandle] = []    # those whose process has not ended
        self.phase = Phase.STARTING
        self.totals = Totals()
        self.wanted = 0                          # how many workers there should be
        self._back_off: dict[int, float] = {}    # by a worker's number: seconds, next time
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: GatewayError | None = None  # why it could not start
        self._abandoned = False                  # it ends before it has served
        self._killed = False
        self._flushing = False

    # --- Life -------------------------------------------------------------------------------

    async def run(self, spawned: Iterable[Spawned]) -> int:
        """Serve with these processes and their successors until a signal. Returns the exit code.

        Raises `EngineRefused` or `StartFailed` where a worker cannot begin.
        """
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._vigil = Vigil(time.monotonic())
        self._later(LOOK, self._look)
        with self._hear_signals():
            for index, process in enumerate(spawned):
                self.wanted += 1
                await self._welcome(index, process)
            await self._over.wait()
            for timer in self._timers:
                timer.cancel()
        if self._error is not None:
            raise self._error
        if self._abandoned:
            return 0
        self.report.info(
            "ended", accepted=self.totals.accepted, cut=self.totals.cut,
            dropped=self.totals.dropped + self.report.dropped,
        )
        return EXIT_CUT if self.totals.cut else 0

    @contextlib.contextmanager
    def _hear_signals(self) -> Iterator[None]:
        """Signals are heard as long as this lasts. Then they are blocked: we are leaving."""
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._on_terminate,
            signal.SIGINT: self._on_interrupt,
            signal.SIGHUP: self._on_hangup,
        }
        for number, handler in handlers.items():
            self._loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
            for number in handlers:
                self._loop.remove_signal_handler(number)

    async def _welcome(self, index: int, spawned: Spawned) -> None:
        """Hear a new process, and tell it what to begin with."""
        worker = WorkerHandle(index, spawned, self._heard, self._gone)
        self.workers.append(worker)
        self.board.begin(index)
        await worker.open()
        if self.table.gateway.pin:
            cpus = usable()
            worker.pin(cpus[index % len(cpus)])
        if self.phase is Phase.ENDING:
            worker.kill()                        # it was on its way when the end came
            return
        try:
            worker.give(self.bound)
        except OSError as error:
            self.say(self.report.error, "a worker cannot be given its listening sockets; it is "
                     "ended", worker=index, error=error.strerror or str(error))
            worker.kill()
            return
        worker.tell({
            "do": "begin",
            "worker": index,
            "workers": self.wanted,
            "engine": self.setting.choice.engine,
            "form": self.setting.choice.form,
            "max_sessions": self.setting.max_sessions,
            **self.body(),
        })

    def body(self) -> Message:
        """What a worker serves: of `begin`, and of all that changes it later."""
        return {
            "table": channel.pack_table(self.table),
            "endpoints": channel.pack_endpoints(self.table, self.endpoints),
            "slots": self.board.slots(
                (route.name for route in self.table.routes),
                (
                    endpoint_name(upstream, str(address))
                    for upstream, found in self.endpoints.items() for _, address in found
                ),
            ).to_json(),
            "listeners": [
                {"index": index, "address": channel.pack_address(each.address)}
                for index, each in self.bound.items()
            ],
        }

    # --- What workers say -------------------------------------------------------------------

    @property
    def live(self) -> list[WorkerHandle]:
        """The workers that were not told to end."""
        able = (WorkerState.STARTING, WorkerState.SERVING)
        return [worker for worker in self.workers if worker.state in able]

    def broadcast(self, message: Message) -> None:
        """Tell it to all workers, those that drain, too."""
        for worker in self.workers:
            worker.tell(message)

    def _heard(self, message: Message) -> None:
        if message["is"] == "refused" and self.phase is Phase.STARTING and self._error is None:
            kind = EngineRefused if message["code"] == EngineRefused.exit_code else StartFailed
            self._error = kind(message["error"])
        elif message["is"] == "serving" and self.phase is Phase.STARTING:
            serving = [one for one in self.workers if one.state is WorkerState.SERVING]
            if len(serving) == self.wanted:
                self.phase = Phase.SERVING
                self._say_start()
        elif message["is"] == "serving":
            self.say(self.report.info, "a worker serves", worker=message["worker"])

    def _look(self) -> None:
        """End workers that do not turn any more: their sessions are lost already."""
        self._later(LOOK, self._look)
        watched = [(one, one.born, self.board.beat(one.index) / 1e9) for one in self.live]
        for worker, silent in self._vigil.hung(time.monotonic(), watched):
            self.say(self.report.error, "a worker hangs; it is killed", worker=worker.index,
                     pid=worker.pid, silent=round(silent, 3))
            worker.kill()

    def _say_start(self) -> None:
        self.say(
            self.report.info,
            "serving",
            version=__version__,
            engine=self.setting.choice.engine,
            reason=self.setting.choice.reason,
            relays=relays(),
            listening=",".join(str(each.address) for each in self.bound.values()),
            routes=len(self.table.routes),
            workers=self.wanted,
            max_sessions=self.setting.max_sessions,
            pid=os.getpid(),
        )

    def _gone(self, worker: WorkerHandle) -> None:
        """A process has ended: as it should, or not."""
        told = worker.ended
        self.workers.remove(worker)
        self.board.bury(worker.index)
        if told is not None:
            self.totals.accepted += told["accepted"]
            self.totals.cut += told["cut"]
            self.totals.dropped += told["dropped"]
        if self.phase is Phase.STARTING:
            self._error = self._error or StartFailed(
                f"worker {worker.index} ended before it served: {worker.how_it_ended}"
            )
            self._abandon()
        elif told is None and not self._abandoned:
            self._died(worker)
        if self.phase is Phase.ENDING and not self.workers:
            self._over.set()

    def _died(self, worker: WorkerHandle) -> None:
        """It crashed, or somebody killed it: all its sessions are lost."""
        how: dict[str, Value] = {
            "worker": worker.index, "pid": worker.pid, "ended_by": worker.how_it_ended,
        }
        if self.phase is Phase.ENDING:
            if not worker.served:
                return
            self.totals.cut += 1                 # at the least: that not all ended well is known
            self.say(self.report.error, "a worker died in its drain", **how)
            return
        lived = time.monotonic() - worker.born
        if lived >= YOUNG:
            self._back_off.pop(worker.index, None)
        seconds = self._back_off.get(worker.index, 0.0)
        self._back_off[worker.index] = min(max(2 * seconds, BACK_OFF_MIN), BACK_OFF_MAX)
        self.say(
            self.report.error, "a worker died, its sessions are lost; another takes its place",
            **how, lived=round(lived, 3), replaced_in=seconds,
        )
        self._later(seconds, self._replace, worker.index)

    def _replace(self, index: int) -> None:
        """Start a worker in the place of one that died."""
        if self.phase is Phase.ENDING:
            return
        try:
            spawned = spawn(self.board.memory.fd)
        except OSError as error:
            self.say(self.report.error, "a worker cannot be started; it is tried again",
                     worker=index, error=error.strerror or str(error), seconds=BACK_OFF_MAX)
            self._later(BACK_OFF_MAX, self._replace, index)
            return
        task = self._loop.create_task(self._welcome(index, spawned))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- The end ----------------------------------------------------------------------------

    def _on_terminate(self) -> None:
        if self.phase is Phase.STARTING:
            self._abandon()
        elif self.phase is Phase.SERVING:
            self.drain("SIGTERM")
        else:
            self.cut("a second signal")

    def _on_interrupt(self) -> None:
        if self.phase is Phase.STARTING:
            self._abandon()
        else:
            self.cut("SIGINT")

    def _on_hangup(self) -> None:
        self.say(
            self.report.warning,
            "SIGHUP is ignored: the table is read at start alone; restart to read it",
        )

    @property
    def ready(self) -> bool:
        """Whether new clients should come: what a load balancer asks."""
        return self.phase is Phase.SERVING

    def drain(self, cause: str) -> None:
        """Not ready from now on; after `drain_delay` accept nothing more, and every session may
        finish, for as long as the table says. Repeating it is harmless."""
        if self.phase is not Phase.SERVING:
            return
        self.phase = Phase.LEAVING
        delay = self.table.gateway.drain_delay
        if not delay:
            self._drain(cause)
            return
        self.say(self.report.info, "not ready; clients are still accepted for a while",
                 cause=cause, seconds=delay)
        self._later(delay, self._drain, cause)

    def _drain(self, cause: str) -> None:
        if self.phase is Phase.ENDING:
            return
        seconds = self.table.gateway.drain
        message: Message = {"do": "drain", "seconds": seconds, "cause": cause, "others": False}
        self._end(message, seconds + GRACE)

    def cut(self, cause: str) -> None:
        """Every session is told, and cut at once."""
        if not self._killed:
            self._killed = True
            self._end({"do": "kill", "why": cause}, GRACE)

    def _end(self, message: Message, seconds: float) -> None:
        """Tell the workers, and see to it that they end."""
        self.phase = Phase.ENDING
        self.broadcast(message)
        for each in self.bound.values():
            each.socket.close()
        self._later(seconds, self._kill_rest)
        if not self.workers:
            self._over.set()

    def _kill_rest(self) -> None:
        """The time is over, and with it our patience."""
        for worker in self.workers:
            self.say(self.report.error, "a worker does not end; it is killed",
                     worker=worker.index, pid=worker.pid)
            worker.kill()

    def _abandon(self) -> None:
        """End at once, before anybody was served."""
        self._abandoned = True
        self.phase = Phase.ENDING
        for worker in self.workers:
            worker.kill()
        if not self.workers:
            self._over.set()

    # --- Small things -----------------------------------------------------------------------

    def say(self, how: Callable[..., None], message: str, **fields: Value) -> None:
        """Say it, and see to it that it gets out."""
        how(message, **fields)
        self._flush()

    def _flush(self) -> None:
        self.report.flush()
        if self.report.waiting and not self._flushing:
            self._flushing = True
            self._later(FLUSH_RETRY, self._flush_again)

    def _flush_again(self) -> None:
        self._flushing = False
        self._flush()

    def _later(self, seconds: float, work: Callable[..., None], *arguments: object) -> None:
        """Do it then, unless all is over before."""
        def fire() -> None:
            self._timers.discard(timer)
            work(*arguments)

        timer = self._loop.call_later(seconds, fire)
        self._timers.add(timer)
