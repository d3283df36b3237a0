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
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from gateway import __version__
from gateway.control import channel
from gateway.control.board import Board
from gateway.control.channel import Message
from gateway.control.choice import Choice
from gateway.control.handle import WorkerHandle, WorkerState
from gateway.control.parts import relays, tls
from gateway.control.replacing import ReplaceFailed, Replacement
from gateway.control.report import Report, Value
from gateway.control.sockets import LISTENER, Handed, Sockets
from gateway.control.spawning import Spawned, spawn
from gateway.control.systemd import Notifier
from gateway.control.terms import Terms
from gateway.control.vault import has_tls
from gateway.control.vigil import LOOK, Vigil
from gateway.errors import EngineRefused, GatewayError, StartFailed
from gateway.table import Table

BACK_OFF_MIN = 0.1            # seconds until a worker that died young is replaced; doubles
BACK_OFF_MAX = 10.0
YOUNG = 10.0                  # seconds of life: one that dies earlier may have a lasting reason
GRACE = 5.0                   # seconds that workers have beyond what they were told to end in
FLUSH_RETRY = 0.1             # seconds until a slow reader of the log is tried again
NAMES_SAID = 8                # names in one line of the log
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
    died: int = 0             # workers, in a drain: that not all ended well is known by this


@dataclass(frozen=True, slots=True)
class Setting:
    """What all workers have that is no key of the table: the engine, and how many sessions each
    may have."""

    choice: Choice
    max_sessions_default: int

    def max_sessions(self, table: Table) -> int:
        """How many sessions each worker may have."""
        return table.gateway.max_sessions or self.max_sessions_default


class Attendant(Protocol):
    """Who takes orders for the supervisor, and has it go by other terms."""

    addresses: dict[str, Value]

    @property
    def handed(self) -> list[Handed]:
        """Its own listening sockets, for a successor."""

    async def start(self) -> None:
        """The loop runs; workers are about to come."""

    def serving(self) -> None:
        """All workers serve, for the first time."""

    def still(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Within this the terms stay what they are; who changes them is waited for."""

    def behind(self, worker: WorkerHandle) -> None:
        """This one serves, on terms that hold no longer."""

    def hangup(self) -> None:
        """SIGHUP came."""

    async def close(self) -> None:
        """All workers have ended."""


class Supervisor:
    """See the module's docstring. `run` is its life, in the main thread.

    `terms` are what the workers obey first; on the `board` they count; `sockets` is whose their
    files are. Give it an `attendant` before it runs.
    """

    attendant: Attendant

    def __init__(
        self, terms: Terms, setting: Setting, board: Board, sockets: Sockets, report: Report
    ) -> None:
        self.terms = terms
        self.setting = setting
        self.board = board
        self.sockets = sockets
        self.notifier = Notifier(os.environ)
        self._replacement: Replacement | None = None  # on its way
        self.report = report
        self.workers: list[WorkerHandle] = []    # those whose process has not ended
        self.phase = Phase.STARTING
        self.totals = Totals()
        self.wanted = 0                          # how many workers there should be
        self._back_off: dict[int, float] = {}    # by a worker's number: seconds, next time
        self.restarts: dict[int, int] = {}       # of each number, for one that died
        self._coming: set[int] = set()           # numbers whose process is started just now
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: GatewayError | None = None  # why it could not start
        self._abandoned = False                  # it ends before it has served
        self._killed = False
        self._terminated = False                 # by a SIGTERM: the next one is a second
        self._flushing = False
        self._left_out: set[str] = set()         # names without shared cells, of which it was said

    # --- Life -------------------------------------------------------------------------------

    async def run(self, spawned: Iterable[Spawned]) -> int:
        """Serve with these processes and their successors until a signal. Returns the exit code.

        Raises `EngineRefused` or `StartFailed` where a worker cannot begin.
        """
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._vigil = Vigil(time.monotonic())
        self._later(LOOK, self._look)
        await self.attendant.start()
        with self._hear_signals():
            for index, process in enumerate(spawned):
                self.wanted += 1
                await self._welcome(index, process)
            await self._over.wait()
            await self.attendant.close()
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
        return EXIT_CUT if self.totals.cut or self.totals.died else 0

    @contextlib.contextmanager
    def _hear_signals(self) -> Iterator[None]:
        """Signals are heard as long as this lasts. Then they are ignored: we are leaving."""
        # Not by the loop, which gives each its default back. Blocked, another thread takes it.
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._on_terminate,
            signal.SIGINT: self._on_interrupt,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR2: self._on_replace,
        }
        for number, handler in handlers.items():
            signal.signal(
                number, lambda *_, handler=handler: self._loop.call_soon_threadsafe(handler)
            )
        try:
            yield
        finally:
            for number in handlers:
                signal.signal(number, signal.SIG_IGN)

    async def _welcome(self, index: int, spawned: Spawned) -> None:
        """Hear a new process, and tell it what to begin with."""
        worker = WorkerHandle(index, spawned, self._heard, self._gone)
        self.workers.append(worker)
        self._coming.discard(index)
        self.board.begin(index)
        worker.counted = self.board.of_worker(index)
        await worker.open()
        if self.terms.table.gateway.pin:
            worker.pin(pinned=True)
        if self.phase is Phase.ENDING:
            worker.kill()                        # it was on its way when the end came
            return
        try:
            worker.give(self.terms.bound)
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
            **self.body(self.terms),
        })
        worker.version = self.terms.version

    def body(self, terms: Terms) -> Message:
        """What a worker needs to go by these terms: of `begin`, and of all that changes it."""
        return {
            "table": channel.pack_table(terms.table),
            "endpoints": channel.pack_endpoints(terms.table, terms.endpoints),
            "slots": terms.slots(self.board).to_json(),
            "listeners": [
                {"index": index, "address": channel.pack_address(each.address)}
                for index, each in terms.bound.items()
            ],
            "max_sessions": self.setting.max_sessions(terms.table),
        }

    # --- Other terms ------------------------------------------------------------------------

    def taken(self, terms: Terms) -> None:
        """These are the terms from now on. What they ask of us is done; whoever is born gets
        them."""
        before, self.terms = self.terms.table.gateway, terms
        self.board.keep(terms.slots(self.board))
        self._say_left_out()
        gateway = terms.table.gateway
        self.report.change(style=gateway.log, log_query=gateway.log_query)
        if gateway.pin != before.pin:
            for worker in self.live:
                worker.pin(pinned=gateway.pin)
        if self.phase is Phase.SERVING:
            self._resize(terms.workers)

    def _resize(self, wanted: int) -> None:
        """Start workers that are missing; those that are too many end gently."""
        self.wanted = wanted
        for index in range(wanted):
            self._replace(index)
        seconds = self.terms.table.gateway.drain
        for worker in self.live:
            if worker.index >= wanted:
                worker.leave(seconds, "there are to be fewer workers")
                self._later(seconds + GRACE, self._kill_late, worker)

    def _kill_late(self, worker: WorkerHandle) -> None:
        """It was told to end, and has had its time."""
        if worker in self.workers:
            worker.kill()

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

    def _heard(self, worker: WorkerHandle, message: Message) -> None:
        if message["is"] == "refused" and self.phase is Phase.STARTING and self._error is None:
            kind = EngineRefused if message["code"] == EngineRefused.exit_code else StartFailed
            self._error = kind(message["error"])
        elif message["is"] == "serving" and self.phase is Phase.STARTING:
            serving = [one for one in self.workers if one.state is WorkerState.SERVING]
            if len(serving) == self.wanted:
                self.phase = Phase.SERVING
                self._say_start()
                self._say_left_out()
                self.attendant.serving()
                if not self.sockets.has_predecessor:
                    self.notifier.ready("serving")
                self.sockets.serving()
                if self.notifier.interval:
                    self._tell_alive()
        elif message["is"] == "serving":
            self.say(self.report.info, "a worker serves", worker=worker.index)
            if worker.version != self.terms.version:
                self.attendant.behind(worker)

    def _tell_alive(self) -> None:
        self.notifier.alive()
        self._later(self.notifier.interval, self._tell_alive)

    def _look(self) -> None:
        """End workers that do not turn any more, those that drain, too: their sessions are lost
        already."""
        self._later(LOOK, self._look)
        watched = [(one, one.born, self.board.beat(one.index) / 1e9) for one in self.workers]
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
            **({"tls": tls()} if has_tls(self.terms.table) else {}),
            listening=",".join(str(each.address) for each in self.terms.bound.values()),
            **self.attendant.addresses,
            routes=len(self.terms.table.routes),
            workers=self.wanted,
            max_sessions=self.setting.max_sessions(self.terms.table),
            pid=os.getpid(),
        )

    def _say_left_out(self) -> None:
        """Warn of names for which there are no shared cells, once for as long as that lasts."""
        routes, endpoints = self.board.left_out
        names = {*routes, *endpoints}
        if not names <= self._left_out:
            self.say(
                self.report.warning,
                "the counters of all workers have no place for these: each worker holds their "
                "limits and balances them by itself, and metrics leave them out; use fewer names",
                routes=_few(routes), endpoints=_few(endpoints),
            )
        self._left_out = names

    def _gone(self, worker: WorkerHandle) -> None:
        """A process has ended: as it should, or not."""
        self.workers.remove(worker)
        self._settle(worker)
        self.board.bury(worker.index)
        if self.phase is Phase.STARTING:
            self._error = self._error or StartFailed(
                f"worker {worker.index} ended before it served: {worker.how_it_ended}"
            )
            self._abandon()
        elif worker.ended is None and not self._abandoned:
            self._died(worker)
        elif self.phase is Phase.SERVING:
            self._replace(worker.index)          # there were to be fewer, and now more again
        if self.phase is Phase.ENDING and not self.workers:
            self._over.set()

    def _settle(self, worker: WorkerHandle) -> None:
        """Add what it had counted to the totals. What one that died in its drain had open is cut,
        by us instead of by itself."""
        told = worker.ended
        if told is None:
            now, before = self.board.of_worker(worker.index), worker.counted
            open_at_death = now["sessions"] if worker.drains else 0
            self.board.cut(worker.index, open_at_death)
            told = {
                "accepted": now["accepted"] - before["accepted"],
                "cut": now["cut"] - before["cut"] + open_at_death,
                "dropped": now["dropped_lines"] - before["dropped_lines"],
            }
        self.totals.accepted += told["accepted"]
        self.totals.cut += told["cut"]
        self.totals.dropped += told["dropped"]

    def _died(self, worker: WorkerHandle) -> None:
        """It crashed, or somebody killed it: all its sessions are lost."""
        how: dict[str, Value] = {
            "worker": worker.index, "pid": worker.pid, "ended_by": worker.how_it_ended,
        }
        if self.phase is Phase.ENDING or worker.drains:
            if worker.served:
                self.totals.died += 1
                self.say(self.report.error, "a worker died in its drain", **how)
            self._replace(worker.index)          # there were to be fewer, and now more again
            return
        self.restarts[worker.index] = self.restarts.get(worker.index, 0) + 1
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
        """Start a worker of this number, if there should be one and is none: two would write into
        the same memory."""
        there = self._coming | {worker.index for worker in self.workers}
        if self.phase is Phase.ENDING or index >= self.wanted or index in there:
            return
        try:
            spawned = spawn(self.board.memory.fd)
        except OSError as error:
            self.say(self.report.error, "a worker cannot be started; it is tried again",
                     worker=index, error=error.strerror or str(error), seconds=BACK_OFF_MAX)
            self._later(BACK_OFF_MAX, self._replace, index)
            return
        self._coming.add(index)
        task = self._loop.create_task(self._welcome(index, spawned))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- A successor ------------------------------------------------------------------------

    def _on_replace(self) -> None:
        if self.phase is not Phase.SERVING or self._replacement is not None:
            self.say(self.report.warning, "SIGUSR2 is ignored: the gateway "
                     f"{'is being replaced' if self._replacement else 'is ' + self.phase.value}")
            return
        self._replacement = Replacement()
        task = self._loop.create_task(self._be_replaced(self._replacement))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _be_replaced(self, replacement: Replacement) -> None:
        """Have a new program take our place. It reads the table by itself: what that names anew is
        either ours before it starts, and handed over, or stays free for it."""
        async with self.attendant.still():
            await self._start_successor(replacement)
        if self.sockets.given_away:
            await self.attendant.close()         # whoever asks from here on asks the new one

    async def _start_successor(self, replacement: Replacement) -> None:
        """Start the program anew; drain when that one serves, and serve on if it does not."""
        if not self.ready:
            return                               # it was told to end while it waited
        ours = [
            Handed(LISTENER, each.listener.address, each) for each in self.terms.bound.values()
        ]
        try:
            pid = replacement.start(
                [*ours, *self.attendant.handed], self.board.memory.fd
            )
            self.say(self.report.info, "a new program is started, to replace this one", child=pid)
            given_up = await replacement.serving()
        except ReplaceFailed as error:
            self._replacement = None
            if self.phase is Phase.SERVING:
                self.say(self.report.error, "the program is not replaced, and serves on",
                         error=str(error))
            return
        if self.phase is not Phase.SERVING:
            return                               # an end came between: for the new one, too
        self.sockets.given_away = True
        self.notifier.succeeded_by(pid)
        self.say(self.report.info, "the new program serves; this one drains", child=pid)
        self._drain("replaced", [
            number for number, each in self.terms.bound.items()
            if each.socket.fileno() in given_up
        ])

    # --- The end ----------------------------------------------------------------------------

    def _on_terminate(self) -> None:
        if self.phase is Phase.STARTING:
            self._abandon()
        elif self._terminated:
            self.cut("a second signal")
        elif self.phase is Phase.SERVING:
            self.drain("SIGTERM")
        else:
            # An init sends it to all of us, a replaced program and its successor; a container's
            # hook has ordered a drain before. Neither has lost its patience.
            self.say(self.report.info, "SIGTERM: it drains already; a second one cuts")
        self._terminated = True

    def _on_interrupt(self) -> None:
        if self.phase is Phase.STARTING:
            self._abandon()
        else:
            self.cut("SIGINT")

    def _on_hangup(self) -> None:
        if self.phase is Phase.SERVING:
            self.attendant.hangup()

    @property
    def ready(self) -> bool:
        """Whether new clients should come: what a load balancer asks."""
        return self.phase is Phase.SERVING

    @property
    def leaving(self) -> bool:
        """Whether it was told to end."""
        return self.phase in (Phase.LEAVING, Phase.ENDING)

    def drain(self, cause: str) -> None:
        """Not ready from now on; after `drain_delay` accept nothing more, and every session may
        finish, for as long as the table says. Repeating it is harmless."""
        if self.phase is not Phase.SERVING:
            return
        self.phase = Phase.LEAVING
        self.notifier.stopping("not ready")
        delay = self.terms.table.gateway.drain_delay
        if not delay:
            self._drain(cause)
            return
        self.say(self.report.info, "not ready; clients are still accepted for a while",
                 cause=cause, seconds=delay)
        self._later(delay, self._drain, cause)

    def _drain(self, cause: str, alone: Collection[int] = ()) -> None:
        """Begin; `alone` are listeners that a successor has no use for."""
        if self.phase is Phase.ENDING:
            return
        seconds = self.terms.table.gateway.drain
        others = self.sockets.given_away
        message: Message = {"do": "drain", "seconds": seconds, "cause": cause, "others": others,
                            "alone": list(alone)}
        self._end(message, seconds + GRACE)

    def cut(self, cause: str) -> None:
        """Every session is told, and cut at once."""
        if not self._killed:
            self._killed = True
            self._end({"do": "kill", "why": cause}, GRACE)

    def _end(self, message: Message, seconds: float) -> None:
        """Tell the workers, and see to it that they end."""
        self.phase = Phase.ENDING
        self.notifier.stopping("draining" if message["do"] == "drain" else "ending")
        if self._replacement is not None and not self.sockets.given_away:
            self._replacement.cancel()
        for worker in self.workers:
            worker.end(message)
        for each in self.terms.bound.values():
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


def _few(names: list[str]) -> str:
    """The first of them, for a line of the log."""
    shown = ", ".join(names[:NAMES_SAID])
    return f"{shown}, and {len(names) - NAMES_SAID} more" if len(names) > NAMES_SAID else shown
