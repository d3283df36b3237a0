"""A new table into a gateway that runs: in full, in every worker, or not at all.

A reload reads and checks the files, compares the table with the one that runs, binds the listeners
that come, resolves the names, and has every worker prepare; when all have, all are told to commit.
Until then nothing has changed, and whatever fails leaves it so.

Laws of this file:

- One reload after another, and no change of endpoints within one.
- Reading, checking and resolving take their time aside; the loop goes on meanwhile.
- What a worker has prepared it can only commit or forget. One that dies in between gets the table
  that holds at its next birth; one that cannot follow where others have is killed, since two tables
  at once would be worse than its end.
- A worker that begins while a reload is under way catches up as soon as it serves.
- That a reload failed is said in the log, counted, and kept for who asks.
- One that failed for a reason that may pass (an address that is taken, no descriptors, a worker
  that does not answer) is tried again, as long as the files say the same. That it fails as before
  is not said again, nor counted.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from gateway.control import config, listening, plan
from gateway.control.channel import Message
from gateway.control.handle import WorkerGone, WorkerHandle, WorkerState
from gateway.control.listening import Bound
from gateway.control.plan import Plan
from gateway.control.report import Report, Value
from gateway.control.resolver import Failure, Found, resolve
from gateway.control.systemd import Notifier
from gateway.control.terms import Terms
from gateway.control.vault import Vault, files_of
from gateway.errors import GatewayError, ListenError
from gateway.events import Address
from gateway.table import EndpointEntry, Listener, Table

PREPARE_LIMIT = 10.0          # seconds; a worker reads its orders once a turn, a hung one never
RETRY = 5.0                   # seconds until what failed for a passing reason is tried again
AGAIN = "it is tried again"   # the cause of a reload

_T = TypeVar("_T")


class ReloadFailed(GatewayError):
    """A reload that changed nothing; the message says why."""

    def __init__(self, text: str, *, may_pass: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass


@dataclass(slots=True)
class Outcome:
    """How reloads went."""

    done: int = 0
    failed: int = 0
    error: str = ""                      # of the latest, if it failed
    is_retried: bool = False             # it failed for a reason that may pass
    at: float = field(default_factory=time.time)  # when the table that runs was taken


class Workers(Protocol):
    """The supervisor, as far as a reload knows it."""

    terms: Terms
    report: Report
    notifier: Notifier

    @property
    def ready(self) -> bool:
        """Whether all have begun, and none was told that the gateway ends."""

    @property
    def live(self) -> list[WorkerHandle]:
        """Those that were not told to end."""

    def body(self, terms: Terms) -> Message:
        """What a worker needs to go by these terms."""

    def taken(self, terms: Terms) -> None:
        """These are the terms from now on."""


class Reloader:
    """Reloads the table at `path`. `start` once the loop runs."""

    def __init__(self, path: Path, workers: Workers, seen: bytes, vault: Vault) -> None:
        """`seen` is the digest of the files that the table which runs was read from, with those
        that its TLS names; `vault` is what they were read by."""
        self.files = files_of(workers.terms.table)  # of TLS, as the latest table names them
        self._vault = vault
        self.outcome = Outcome()
        self._path = path
        self._workers = workers
        self._seen = seen
        self._lock = asyncio.Lock()
        self._next_number = 1 + max(workers.terms.bound, default=-1)

    # --- From outside -----------------------------------------------------------------------

    async def reload(self, cause: str) -> tuple[Plan, list[str]]:
        """Go by what the files say now; what changed, and warnings of the table.

        Raises `GatewayError` where nothing was changed; that is said and counted already.
        """
        async with self._lock:
            return await self._reload_now(cause)

    async def reload_changed(self, cause: str) -> None:
        """The same where the files are others than at the last attempt, and quietly."""
        async with self._lock:
            if await aside(self._digest) != self._seen:
                with contextlib.suppress(GatewayError):
                    await self._reload_now(cause)

    def still(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Within this nothing is reloaded, and the endpoints stay; what runs is waited for."""
        return self._lock

    async def plan(self) -> tuple[Plan, list[str]]:
        """What a reload would change. Raises `TableErrors`."""
        before = self._workers.terms.table
        table, warnings = await aside(lambda: config.check(self._path))
        table, kept = await aside(lambda: self._vault.fill(table, before))
        return plan.compare(before, table), warnings + kept

    async def try_again(self) -> None:
        """Try again what failed for a reason that may pass. A task, until it is cancelled."""
        while True:
            await asyncio.sleep(RETRY)
            async with self._lock:
                if not self.outcome.is_retried:
                    continue
                # Of other files the watch tells, once they are whole.
                if await aside(self._digest) == self._seen:
                    with contextlib.suppress(GatewayError):
                        await self._reload_now(AGAIN)

    async def refresh(self, names: Iterable[str]) -> list[Failure]:
        """Look up the names of these upstreams again, and give the workers what is new."""
        before = self._workers.terms
        upstreams = [before.table.upstreams[name] for name in names]
        found = await aside(lambda: resolve(upstreams, last=before.endpoints))
        async with self._lock:
            terms = self._workers.terms
            if terms.table is not before.table:
                return []                # a reload came between, and has looked them up itself
            changed = {
                name: endpoints for name, endpoints in found.endpoints.items()
                if _as_set(endpoints) != _as_set(terms.endpoints[name])
            }
            if changed:
                endpoints = terms.endpoints | changed
                self._workers.taken(replace(terms, endpoints=endpoints, version=terms.version + 1))
                await self._everywhere()
        return found.failures

    async def renew(self) -> None:
        """Give the workers new keys for tickets."""
        async with self._lock:
            terms = self._workers.terms
            table = self._vault.renew(terms.table)
            if table is not None:
                self._workers.taken(replace(terms, table=table, version=terms.version + 1))
                await self._everywhere()

    async def catch_up(self, worker: WorkerHandle) -> None:
        """A worker serves that began with terms which hold no longer."""
        async with self._lock:
            await self._follow(worker)

    # --- One reload -------------------------------------------------------------------------

    async def _reload_now(self, cause: str) -> tuple[Plan, list[str]]:
        report, outcome = self._workers.report, self.outcome
        if self._workers.ready:
            self._workers.notifier.reloading()
        try:
            found, warnings = await self._take_table()
        except GatewayError as error:
            self._failed(cause, error)
            raise
        finally:
            if self._workers.ready:
                self._workers.notifier.ready("serving")
        outcome.done += 1
        outcome.error, outcome.is_retried = "", False
        outcome.at = time.time()
        for warning in warnings:
            report.warning(warning)
        report.info(
            "reloaded", cause=cause, version=self._workers.terms.version,
            routes=len(self._workers.terms.table.routes), changes=_in_short(found),
        )
        report.flush()
        return found, warnings

    def _failed(self, cause: str, error: GatewayError) -> None:
        """Say it, unless it is what was said of the attempt before this one."""
        outcome = self.outcome
        if outcome.is_retried and cause == AGAIN and str(error) == outcome.error:
            return
        outcome.failed += 1
        outcome.error, outcome.is_retried = str(error), error.may_pass
        retried: dict[str, Value] = {"tried_again_each": RETRY} if error.may_pass else {}
        self._workers.report.error(
            "the table is not reloaded, the one that runs stays", cause=cause, error=str(error),
            **retried,
        )
        self._workers.report.flush()

    async def _take_table(self) -> tuple[Plan, list[str]]:
        self._check_ready()
        before = self._workers.terms
        self._seen = await aside(self._digest)
        table, warnings = await aside(lambda: self._read(before.table))
        found = plan.compare(before.table, table)
        if found.refusals:
            raise ReloadFailed("\n".join(found.refusals))
        with contextlib.ExitStack() as undo:
            bound, fresh = self._bind(before, table)
            for each in fresh.values():
                undo.callback(each.abandon)
            resolution = await aside(
                lambda: resolve(table.upstreams.values(), last=before.endpoints)
            )
            warnings += [sentence_of(failure) for failure in resolution.failures]
            terms = Terms(table, bound, resolution.endpoints, before.version + 1)
            prepared = await self._prepare(terms, fresh)
            undo.pop_all()
        self._workers.taken(terms)
        _retire(before.bound, bound)
        await asyncio.gather(*(self._commit(worker) for worker in prepared))
        await self._everywhere()
        return found, warnings

    def _read(self, before: Table) -> tuple[Table, list[str]]:
        """The table that the files are now, filled. In a thread."""
        table, warnings, self._seen = read_table(self._path)
        self.files = files_of(table)
        table, kept = self._vault.fill(table, before)
        return table, warnings + kept

    def _digest(self) -> bytes:
        return config.digest(self._path, self.files)

    def _bind(self, before: Terms, table: Table) -> tuple[dict[int, Bound], dict[int, Bound]]:
        """The sockets of the new table in its order, and those of them that are new."""
        old = plan.keyed_listeners(each.listener for each in before.bound.values())
        numbers = dict(zip(old, before.bound, strict=True))
        wanted = plan.keyed_listeners(table.listeners)
        going = [before.bound[number] for key, number in numbers.items() if key not in wanted]
        bound: dict[int, Bound] = {}
        fresh: dict[int, Bound] = {}
        try:
            for key, listener in wanted.items():
                if key in numbers:
                    bound[numbers[key]] = replace(before.bound[numbers[key]], listener=listener)
                    continue
                number, self._next_number = self._next_number, self._next_number + 1
                bound[number] = fresh[number] = listening.bind(listener, going)
        except ListenError:
            for each in fresh.values():
                each.abandon()
            raise
        return bound, fresh

    async def _prepare(self, terms: Terms, fresh: dict[int, Bound]) -> list[WorkerHandle]:
        """Have every worker that serves prepare; those that did. Raises `ReloadFailed`, after
        which none has anything prepared."""
        message = {"do": "prepare", **self._workers.body(terms)}
        workers = [one for one in self._workers.live if one.state is WorkerState.SERVING]
        refusals: list[str] = []
        prepared: list[WorkerHandle] = []

        async def prepare(worker: WorkerHandle) -> None:
            try:
                worker.give(fresh)
                answer = await worker.ask(message, PREPARE_LIMIT)
            except WorkerGone:
                return                   # its successor begins with what holds then
            except (OSError, TimeoutError) as error:
                why = str(error) or "it does not answer"
                refusals.append(f"worker {worker.index} cannot take the table: {why}")
                return
            if answer["is"] == "prepared":
                prepared.append(worker)
            else:
                refusals.append(f"worker {worker.index} refuses the table: {answer['error']}")

        await asyncio.gather(*(prepare(worker) for worker in workers))
        try:
            if refusals:
                raise ReloadFailed("\n".join(refusals), may_pass=True)
            self._check_ready()          # its end may have begun meanwhile
        except ReloadFailed:
            for worker in workers:
                worker.tell({"do": "forget"})
            raise
        return prepared

    def _check_ready(self) -> None:
        if not self._workers.ready:
            raise ReloadFailed(
                "the gateway does not serve yet, or is going away; a program that takes its place "
                "reads the table itself"
            )

    async def _commit(self, worker: WorkerHandle) -> None:
        """Have a worker go by what it has prepared."""
        version = self._workers.terms.version
        try:
            await worker.ask({"do": "commit", "version": version}, PREPARE_LIMIT)
            worker.version = version
        except WorkerGone:
            pass
        except TimeoutError:
            self._give_up(worker, "it does not answer")

    async def _everywhere(self) -> None:
        """Workers that serve on other terms follow."""
        version = self._workers.terms.version
        await asyncio.gather(*(
            self._follow(worker) for worker in self._workers.live
            if worker.state is WorkerState.SERVING and worker.version != version
        ))

    async def _follow(self, worker: WorkerHandle) -> None:
        """Have one worker go by the terms that hold."""
        terms = self._workers.terms
        if worker.version == terms.version or worker.state is not WorkerState.SERVING:
            return
        try:
            worker.give({n: each for n, each in terms.bound.items() if n not in worker.given})
            answer = await worker.ask(
                {"do": "prepare", **self._workers.body(terms)}, PREPARE_LIMIT
            )
        except WorkerGone:
            return
        except (OSError, TimeoutError) as error:
            self._give_up(worker, str(error) or "it does not answer")
            return
        if answer["is"] == "prepared":
            await self._commit(worker)
        else:
            self._give_up(worker, answer["error"])

    def _give_up(self, worker: WorkerHandle, why: str) -> None:
        self._workers.report.error(
            "a worker cannot go by the table that holds; it is ended, another takes its place",
            worker=worker.index, pid=worker.pid, error=why,
        )
        self._workers.report.flush()
        worker.kill()


def read_table(path: Path) -> tuple[Table, list[str], bytes]:
    """The table at `path`, its warnings, and the digest of its files and those that its TLS names,
    as of before these are read. Raises TableErrors."""
    before = config.digest(path)
    table, warnings = config.check(path)
    seen = config.digest(path, files_of(table))
    if config.digest(path) != before:
        seen = b""                       # a change came between: that is to be seen again
    return table, warnings, seen


def sentence_of(failure: Failure) -> str:
    """A name that does not resolve, for who wrote it."""
    text = f"{failure.name} does not resolve: {failure.error}"
    if failure.without:
        return f"{text}; these upstreams have no address now: {', '.join(failure.without)}"
    return f"{text}; its last addresses, or other endpoints, are there"


async def aside(work: Callable[[], _T]) -> _T:
    """What this comes to, done in a thread of its own: nobody waits for it at the end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def give(how: Callable[[], None]) -> None:
        def unless_cancelled() -> None:
            if not done.done():
                how()

        with contextlib.suppress(RuntimeError):      # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(unless_cancelled)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            failure = error
            give(lambda: done.set_exception(failure))
        else:
            give(lambda: done.set_result(result))

    threading.Thread(target=run, daemon=True, name="aside").start()
    return await done


def _retire(before: dict[int, Bound], now: dict[int, Bound]) -> None:
    """Close the sockets that nobody listens on any more; those that stay get their new terms."""
    for number, each in before.items():
        if number not in now:
            each.abandon()
        elif now[number].listener != each.listener:
            listening.adjust(now[number])


def _in_short(found: Plan) -> str:
    """What changed, for the log: counts, since names may be thousands."""
    counts: dict[str, int] = {}
    for one in found.routes:
        counts[f"routes {one.what}"] = counts.get(f"routes {one.what}", 0) + 1
    listeners: dict[str, tuple[Listener, ...]] = {
        "added": found.listeners_added, "removed": found.listeners_removed,
        "changed": found.listeners_changed,
    }
    for what, which in listeners.items():
        if which:
            counts[f"listeners {what}"] = len(which)
    if found.settings:
        counts["settings changed"] = len(found.settings)
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "none"


def _as_set(endpoints: Found) -> set[tuple[EndpointEntry, Address]]:
    """Endpoints without their order, which name servers turn."""
    return set(endpoints)
