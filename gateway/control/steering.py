"""What can be asked of a gateway that runs: it answers the control socket and the admin address,
and has the supervisor reload.

Laws of this file:

- It decides nothing itself: what is asked is done by who can, and put into the words of
  docs/control.md here.
- What the table does not ask for is not imported: the admin address brings three libraries.
- Everything that it began it ends in `close`.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from pathlib import Path

from gateway import __version__
from gateway.control import plan
from gateway.control.config_values import close_code, close_reason
from gateway.control.control_socket import ControlSocket
from gateway.control.control_words import Message
from gateway.control.handle import WorkerGone, WorkerHandle, WorkerState
from gateway.control.listening import Bound
from gateway.control.names import Names
from gateway.control.plan import Plan
from gateway.control.predecessor import Predecessor
from gateway.control.reloading import RETRY, Reloader
from gateway.control.renewing import Renewing
from gateway.control.report import Value
from gateway.control.resolver import Failure
from gateway.control.sockets import Handed
from gateway.control.supervisor import Supervisor
from gateway.control.vault import Vault, expiries
from gateway.errors import GatewayError, TableError

CONTROL, ADMIN = "control", "admin"      # roles of sockets


class Steering:
    """The supervisor's attendant. `control` and `admin` are listening sockets, where there are."""

    def __init__(
        self, supervisor: Supervisor, path: Path, seen: bytes, vault: Vault,
        failures: list[Failure], control: Bound | None, admin: Bound | None,
        predecessor: Predecessor,
    ) -> None:
        """`seen` is the digest of the table's files, `vault` has its secrets, `failures` are the
        names without an address, `predecessor` the program that this one has replaced."""
        self._vault = vault
        self._supervisor = supervisor
        self._path = path
        self._seen = seen
        self._failures = failures
        self._predecessor = predecessor
        self._bound = {CONTROL: control, ADMIN: admin}
        self._began = time.monotonic()
        self._reloader: Reloader
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_end = contextlib.AsyncExitStack()
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self.addresses: dict[str, Value] = {
            name: bound.address.path or str(bound.address)
            for name, bound in self._bound.items() if bound is not None
        }

    # --- For the supervisor -----------------------------------------------------------------

    async def start(self) -> None:
        """Take orders from here on, also while the workers are not there yet."""
        supervisor = self._supervisor
        self._reloader = Reloader(self._path, supervisor, self._seen, self._vault)
        control, admin = self._bound[CONTROL], self._bound[ADMIN]
        if admin is not None:
            from gateway.control.admin import Admin  # noqa: PLC0415 - see the module's docstring

            served = Admin(
                admin.socket, self._takes_sessions, self._exposition, supervisor.report
            )
            served.start()
            self._at_end.push_async_callback(served.close)
        if control is not None:
            commands = ControlSocket(control, self, supervisor.report)
            await commands.start()
            self._at_end.push_async_callback(commands.close)

    @property
    def handed(self) -> list[Handed]:
        """What a successor gets of us."""
        return [
            Handed(role, bound.listener.address, bound)
            for role, bound in self._bound.items() if bound is not None
        ]

    def still(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Nothing is reloaded meanwhile."""
        return self._reloader.still()

    def serving(self) -> None:
        """All workers serve: what may change is looked at from here on."""
        from gateway.control.watching import Watch  # noqa: PLC0415 - after the start, which is quick

        names = Names(self._reloader, self._supervisor)
        names.failed(self._failures)
        self._begin(names.run())
        self._begin(self._reloader.try_again())
        watch = Watch(
            self._path, self._seen, self._changed, self._unwatched,
            lambda: self._reloader.files,
        )
        watch.start()
        self._begin(Renewing(self._reloader.renew, self._supervisor).run())
        self._at_end.callback(watch.stop)

    def behind(self, worker: WorkerHandle) -> None:
        """A worker serves on terms that hold no longer."""
        self._begin(self._reloader.catch_up(worker))

    def hangup(self) -> None:
        """SIGHUP came."""
        self._begin(self._reload_quietly("SIGHUP"))

    async def close(self) -> None:
        """All workers have ended, or another program is asked from here on: tell those who wait
        for it, and end. Whoever calls it again waits for the same end."""
        if self._closing is None:
            self._ended.set()
            for task in self._tasks:
                task.cancel()
            self._closing = asyncio.get_running_loop().create_task(self._at_end.aclose())
        await self._closing

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changed(self) -> None:
        self._begin(self._reloader.reload_changed("its files have changed"))

    def _unwatched(self, why: str) -> None:
        self._supervisor.say(
            self._supervisor.report.warning,
            "the table's files are not watched; reload by SIGHUP or `gateway reload`", error=why,
        )

    async def _reload_quietly(self, cause: str) -> None:
        with contextlib.suppress(GatewayError):      # said and counted already
            await self._reloader.reload(cause)

    # --- For the control socket -------------------------------------------------------------

    def status(self) -> Message:
        """See control_socket.Steered."""
        supervisor, outcome = self._supervisor, self._reloader.outcome
        counts = supervisor.board.routes()
        before = self._predecessor
        return {
            "is": "status",
            "version": __version__,
            "engine": supervisor.setting.choice.engine,
            "pid": os.getpid(),
            "ready": self._takes_sessions(),
            "draining": supervisor.leaving,
            "uptime": round(time.monotonic() - self._began, 3),
            "table": str(self._path.absolute()),
            "listening": [str(each.address) for each in supervisor.terms.bound.values()],
            "reloads": {
                "done": outcome.done, "failed": outcome.failed, "error": outcome.error,
                "retried": outcome.is_retried,
            },
            "workers": [self._worker(worker) for worker in supervisor.workers],
            "predecessor": (
                {"pid": before.process, "sessions": before.sessions} if before.process else None
            ),
            "routes": [
                {"name": name, "sessions": one.open, "total": one.begun}
                for name, one in counts.items()
            ],
        }

    def _worker(self, worker: WorkerHandle) -> Message:
        cells = self._supervisor.board.of_worker(worker.index)
        return {
            "worker": worker.index,
            "pid": worker.pid,
            "state": worker.state.value,
            "connections": cells["connections"],
            "sessions": cells["sessions"],
            "lag_ms": cells["lag_us"] / 1000,
            "restarts": self._supervisor.restarts.get(worker.index, 0),
        }

    async def sessions(self, route: str, limit: int) -> Message:
        """See control_socket.Steered."""
        if route and route not in self._supervisor.board.routes():
            return _error(f"no route has the name {route}")
        answers, silent = await self._ask_all(
            {"do": "sessions", "route": route, "limit": limit}
        )
        found = [
            row | {"worker": index} for index, answer in answers for row in answer["sessions"]
        ]
        found.sort(key=lambda row: -row["age"])
        total = sum(answer["total"] for _, answer in answers)
        return {"is": "sessions", "total": total, "silent": silent, "sessions": found[:limit]}

    async def close_session(self, session: str, code: int, reason: str) -> Message:
        """See control_socket.Steered."""
        try:
            close_code(code, "code")
            close_reason(reason, "reason")
        except TableError as error:
            return _error(str(error))
        answers, silent = await self._ask_all(
            {"do": "close", "session": session, "code": code, "reason": reason}
        )
        if any(answer["found"] for _, answer in answers):
            return {"is": "closed", "session": session}
        if silent:
            return _error(f"no session has the id {session}, but not all workers answer: {silent}")
        return _error(f"no session has the id {session}")

    async def _ask_all(self, message: Message) -> tuple[list[tuple[int, Message]], list[int]]:
        """The answers by the workers' numbers, and who did not answer."""
        answers: list[tuple[int, Message]] = []
        silent: list[int] = []

        async def ask(worker: WorkerHandle) -> None:
            try:
                answers.append((worker.index, await worker.ask(message)))
            except WorkerGone:
                pass                     # and its sessions with it
            except TimeoutError:
                silent.append(worker.index)

        able = (WorkerState.SERVING, WorkerState.DRAINING)
        await asyncio.gather(*(
            ask(worker) for worker in self._supervisor.workers if worker.state in able
        ))
        return answers, silent

    async def reload(self) -> Message:
        """See control_socket.Steered."""
        try:
            sessions = self._sessions()
            done, warnings = await self._reloader.reload("gateway reload")
        except GatewayError as error:
            again = f"it is tried again each {RETRY:g} s, as long as the files say the same"
            return _error(f"{error}\n{again}" if error.may_pass else str(error))
        return self._plan("reloaded", done, warnings, sessions)

    async def plan(self) -> Message:
        """See control_socket.Steered."""
        try:
            found, warnings = await self._reloader.plan()
        except GatewayError as error:
            return _error(str(error))
        return self._plan("plan", found, warnings, self._sessions())

    def _sessions(self) -> dict[str, int]:
        """Live sessions by route."""
        return {name: one.open for name, one in self._supervisor.board.routes().items()}

    def _plan(
        self, word: str, found: Plan, warnings: list[str], sessions: dict[str, int]
    ) -> Message:
        data = plan.as_data(found, sessions, sum(sessions.values()))
        return {"is": word, **data, "warnings": warnings}

    def drain(self) -> Message:
        """See control_socket.Steered."""
        sessions = sum(self._sessions().values())
        self._supervisor.drain("gateway drain")
        return {"is": "draining", "sessions": sessions}

    async def ended(self) -> Message:
        """See control_socket.Steered."""
        await self._ended.wait()
        return {"is": "ended", "cut": self._supervisor.totals.cut}

    def _takes_sessions(self) -> bool:
        """Whether new clients should come: where every worker has died nobody accepts them."""
        serving = (one.state is WorkerState.SERVING for one in self._supervisor.live)
        return self._supervisor.ready and any(serving)

    # --- For the admin address --------------------------------------------------------------

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics."""
        from gateway.control.metrics import Facts, exposition  # noqa: PLC0415 - as above

        supervisor, outcome = self._supervisor, self._reloader.outcome
        facts = Facts(
            version=__version__,
            engine=supervisor.setting.choice.engine,
            ready=self._takes_sessions(),
            workers={worker.index: worker.state.value for worker in supervisor.workers},
            restarts=sum(supervisor.restarts.values()),
            reloads={"done": outcome.done, "failed": outcome.failed},
            reloaded=outcome.at,
            expiries=tuple(
                (one.place, one.file, one.until) for one in expiries(supervisor.terms.table)
            ),
            predecessor_sessions=self._predecessor.sessions,
        )
        return exposition(facts, supervisor.board, accept)


def _error(text: str) -> Message:
    return {"is": "error", "error": text}
