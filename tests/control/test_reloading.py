"""A reload in the supervisor: in every worker or in none, with workers that are only told what to
answer."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from end_to_end.secure import Folder
from gateway.control import config, reloading
from gateway.control.handle import WorkerGone, WorkerHandle, WorkerState
from gateway.control.listening import Bound, bind
from gateway.control.names import Names
from gateway.control.reloading import Reloader, ReloadFailed
from gateway.control.report import Report
from gateway.control.resolver import Failure, Resolution, resolve
from gateway.control.systemd import Notifier
from gateway.control.terms import Terms
from gateway.control.vault import Vault, alike
from gateway.errors import GatewayError, ListenError, TableErrors

HEAD = '[gateway]\nlisten = ["127.0.0.1:0"]\n'
ROUTE = '[[route]]\nname = "{name}"\npath = "/{name}"\nupstream = "ws://127.0.0.1:9"\n'
ROOM = ('[[route]]\nname = "room"\npath = "/room"\nupstream = "room"\n'
        '[upstream.room]\nendpoints = ["ws://room.test:9"]\nresolve = "1ms"\n')


class FakeWorker:
    """A worker that answers by its script: "prepared", "refused", "gone", "silent"."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid = 1000 + index
        self.state = WorkerState.SERVING
        self.version = 0
        self.given: set[int] = {0}
        self.script: dict[str, str] = {}
        self.heard: list[str] = []
        self.killed = False

    def give(self, bound: dict[int, Bound]) -> None:
        self.given.update(bound)

    async def ask(self, message: dict[str, Any], _seconds: float) -> dict[str, Any]:
        word = message["do"]
        self.heard.append(word)
        match self.script.get(word, "well"):
            case "gone":
                raise WorkerGone
            case "silent":
                raise TimeoutError
            case "refused":
                return {"is": "refused", "error": "no descriptor"}
        return {"is": {"prepare": "prepared", "commit": "committed"}[word]}

    def tell(self, message: dict[str, Any]) -> None:
        self.heard.append(message["do"])

    def kill(self) -> None:
        self.killed = True


class Rig:
    """A table's file, two fake workers, and the reloader between them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "routes.toml"
        self.write(HEAD + ROUTE.format(name="a"))
        table = config.load(self.path)
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        self.report = Report(output=self.nowhere, errors=self.nowhere)
        self.notifier = Notifier({})
        bound = dict(enumerate(bind(each) for each in table.listeners))
        self.terms = Terms(table, bound, resolve(table.upstreams.values()).endpoints)
        self.workers = [FakeWorker(0), FakeWorker(1)]
        self.ready = True
        self.reloader = Reloader(
            self.path, self, config.digest(self.path), Vault(tickets=True)
        )

    @property
    def live(self) -> list[WorkerHandle]:
        return cast("list[WorkerHandle]", self.workers)

    def body(self, terms: Terms) -> dict[str, Any]:
        return {"version": terms.version}

    def taken(self, terms: Terms) -> None:
        self.terms = terms

    def write(self, text: str) -> None:
        """Another table."""
        self.path.write_text(text)

    def close(self) -> None:
        """Give everything back."""
        for each in self.terms.bound.values():
            each.abandon()
        self.report.close()
        os.close(self.nowhere)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """See `Rig`."""
    one = Rig(tmp_path)
    yield one
    one.close()


def run(story: Callable[[], Awaitable[Any]]) -> Any:
    """Tell it in a loop."""

    async def told() -> Any:
        return await story()

    return uvloop.run(told())


def test_all_prepare_and_all_commit(rig: Rig) -> None:
    """And what changed is said."""
    rig.write(HEAD + ROUTE.format(name="a") + ROUTE.format(name="b"))
    plan, _ = run(lambda: rig.reloader.reload("test"))
    assert [one.name for one in plan.routes] == ["b"]
    assert [route.name for route in rig.terms.table.routes] == ["a", "b"]
    for worker in rig.workers:
        assert worker.heard == ["prepare", "commit"]
        assert worker.version == 1
    assert (rig.reloader.outcome.done, rig.reloader.outcome.failed) == (1, 0)


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_one_that_cannot_prepare_stops_all(rig: Rig, how: str) -> None:
    """All forget, nothing has changed, and new listeners are gone again."""
    before = rig.terms
    rig.write(HEAD.replace('"]', '", "127.0.0.2:0"]') + ROUTE.format(name="b"))
    rig.workers[1].script["prepare"] = how
    with pytest.raises(ReloadFailed, match="worker 1 "):
        run(lambda: rig.reloader.reload("test"))
    assert rig.terms is before
    for worker in rig.workers:
        assert worker.heard == ["prepare", "forget"]
        assert worker.version == 0
    assert rig.reloader.outcome.failed == 1
    assert "worker 1" in rig.reloader.outcome.error


def test_one_that_dies_while_it_prepares_stops_nobody(rig: Rig) -> None:
    """Its successor begins with the new table."""
    rig.write(HEAD + ROUTE.format(name="b"))
    rig.workers[0].script["prepare"] = "gone"
    run(lambda: rig.reloader.reload("test"))
    assert rig.terms.version == 1
    assert rig.workers[1].version == 1


def test_one_that_dies_between_prepare_and_commit_stops_nobody(rig: Rig) -> None:
    """The others have gone over."""
    rig.write(HEAD + ROUTE.format(name="b"))
    rig.workers[0].script["commit"] = "gone"
    run(lambda: rig.reloader.reload("test"))
    assert (rig.terms.version, rig.workers[1].version) == (1, 1)


def test_one_that_does_not_commit_is_killed(rig: Rig) -> None:
    """Two tables at once would be worse."""
    rig.write(HEAD + ROUTE.format(name="b"))
    rig.workers[0].script["commit"] = "silent"
    run(lambda: rig.reloader.reload("test"))
    assert rig.workers[0].killed
    assert not rig.workers[1].killed


def test_one_that_began_before_catches_up(rig: Rig) -> None:
    """It gets the sockets that it has not, prepares and commits."""
    rig.workers[1].state = WorkerState.STARTING
    rig.write(HEAD.replace('"]', '", "127.0.0.2:0"]') + ROUTE.format(name="b"))
    run(lambda: rig.reloader.reload("test"))
    late = rig.workers[1]
    assert late.heard == []
    late.state = WorkerState.SERVING
    run(lambda: rig.reloader.catch_up(cast("WorkerHandle", late)))
    assert late.heard == ["prepare", "commit"]
    assert (late.version, late.given) == (1, {0, 1})
    run(lambda: rig.reloader.catch_up(cast("WorkerHandle", late)))
    assert late.heard == ["prepare", "commit"]


def test_one_that_cannot_catch_up_is_killed(rig: Rig) -> None:
    """It would serve what holds no longer."""
    rig.workers[1].version = -1
    rig.workers[1].script["prepare"] = "refused"
    run(lambda: rig.reloader.catch_up(cast("WorkerHandle", rig.workers[1])))
    assert rig.workers[1].killed


def test_listeners_keep_their_sockets(rig: Rig) -> None:
    """Also where their terms change; those that come have numbers that none ever had."""
    (first,) = rig.terms.bound.values()
    text = '[[listener]]\naddress = "127.0.0.1:0"\nhead_timeout = "1s"\n'
    rig.write(text + text + ROUTE.format(name="a"))
    run(lambda: rig.reloader.reload("test"))
    assert list(rig.terms.bound) == [0, 1]
    assert rig.terms.bound[0].socket is first.socket
    assert rig.terms.bound[0].listener.head_timeout == 1.0
    second = rig.terms.bound[1]
    rig.write(text + ROUTE.format(name="a"))
    run(lambda: rig.reloader.reload("test"))
    assert second.socket.fileno() == -1
    rig.write(text + text + ROUTE.format(name="a"))
    run(lambda: rig.reloader.reload("test"))
    assert list(rig.terms.bound) == [0, 2]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("broken =", TableErrors),
        (HEAD + 'engine = "uvloop"\n' + ROUTE.format(name="a"), ReloadFailed),
        (HEAD.replace('"]', '", "192.0.2.1:0"]') + ROUTE.format(name="a"), ListenError),
    ],
)
def test_what_is_refused_reaches_no_worker(
    rig: Rig, text: str, error: type[GatewayError]
) -> None:
    """A mistake, a key that only a replace changes, an address that cannot be had."""
    before = rig.terms
    rig.write(text)
    with pytest.raises(error):
        run(lambda: rig.reloader.reload("test"))
    assert rig.terms is before
    assert rig.workers[0].heard == []


def test_a_gateway_that_goes_away_is_not_reloaded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before, nor where its end begins while the workers prepare."""
    before = rig.terms
    rig.write(HEAD + ROUTE.format(name="b"))
    rig.ready = False
    with pytest.raises(ReloadFailed, match="going away"):
        run(lambda: rig.reloader.reload("test"))
    assert rig.workers[0].heard == []
    rig.ready = True

    async def ends(_message: dict[str, Any], _seconds: float) -> dict[str, Any]:
        rig.ready = False
        return {"is": "prepared"}

    monkeypatch.setattr(rig.workers[0], "ask", ends)
    with pytest.raises(ReloadFailed, match="going away"):
        run(lambda: rig.reloader.reload("test"))
    assert rig.workers[0].heard == ["forget"]
    assert rig.terms is before


def test_files_that_were_read_already_are_not_read_again(rig: Rig) -> None:
    """The watch and a command tell of one change; only the first one acts."""
    rig.write(HEAD + ROUTE.format(name="b"))
    run(lambda: rig.reloader.reload("by command"))
    run(lambda: rig.reloader.reload_changed("by the watch"))
    assert rig.terms.version == 1
    rig.write(HEAD + ROUTE.format(name="c"))
    run(lambda: rig.reloader.reload_changed("by the watch"))
    assert rig.terms.version == 2


def test_nothing_is_reloaded_while_all_is_to_be_still(rig: Rig) -> None:
    """A new program reads the table meanwhile. What is asked is done afterwards."""
    rig.write(HEAD + ROUTE.format(name="b"))

    async def story() -> None:
        async with rig.reloader.still():
            asked = asyncio.create_task(rig.reloader.reload("test"))
            told = asyncio.create_task(rig.reloader.reload_changed("by the watch"))
            await asyncio.sleep(0.01)
            assert rig.workers[0].heard == []
        await asyncio.gather(asked, told)

    run(story)
    assert rig.workers[0].heard == ["prepare", "commit"]


# --- Tried again ------------------------------------------------------------------------------


class Again:
    """Lets time go fast, counts what is tried, and keeps what is said."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        self.tried = 0
        self.said: list[tuple[str, str]] = []
        self._look = asyncio.Event()
        monkeypatch.setattr(reloading, "RETRY", 0.002)
        reload_now = rig.reloader._reload_now

        async def counted(cause: str) -> Any:
            self.tried += 1
            try:
                return await reload_now(cause)
            finally:
                self._look.set()

        monkeypatch.setattr(rig.reloader, "_reload_now", counted)
        for level in ("error", "info"):
            monkeypatch.setattr(
                rig.report, level, lambda text, **more: self.said.append((text, more["cause"]))
            )

    async def until(self, found: Callable[[], bool]) -> None:
        """Try again until then."""
        task = asyncio.create_task(self.rig.reloader.try_again())
        async with asyncio.timeout(20):
            while not found():
                self._look.clear()
                await self._look.wait()
        task.cancel()


@pytest.fixture
def again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Again:
    """See `Again`."""
    return Again(rig, monkeypatch)


FAILED = "the table is not reloaded, the one that runs stays"


def test_an_address_that_is_taken_is_tried_again(rig: Rig, again: Again) -> None:
    """Said and counted once, however often it is tried; and once that it is there."""

    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            rig.write(HEAD.replace('"]', f'", "127.0.0.1:{port}"]') + ROUTE.format(name="a"))
            with pytest.raises(ListenError):
                await rig.reloader.reload("test")
            assert rig.reloader.outcome.is_retried
            await again.until(lambda: again.tried >= 4)
            assert again.said == [(FAILED, "test")]
            assert rig.reloader.outcome.failed == 1
        await again.until(lambda: rig.reloader.outcome.done == 1)

    run(story)
    assert again.said == [(FAILED, "test"), ("reloaded", "it is tried again")]
    assert (rig.reloader.outcome.error, rig.reloader.outcome.is_retried) == ("", False)
    assert len(rig.terms.bound) == 2


def test_another_reason_is_said(rig: Rig, again: Again) -> None:
    """A worker did not answer; now it has no descriptor; then it has."""
    rig.write(HEAD + ROUTE.format(name="b"))
    rig.workers[1].script["prepare"] = "silent"

    async def story() -> None:
        with pytest.raises(ReloadFailed):
            await rig.reloader.reload("test")
        rig.workers[1].script["prepare"] = "refused"
        await again.until(lambda: again.tried >= 4)
        rig.workers[1].script.clear()
        await again.until(lambda: rig.reloader.outcome.done == 1)

    run(story)
    assert [text for text, _ in again.said] == [FAILED, FAILED, "reloaded"]
    assert rig.reloader.outcome.failed == 2
    assert rig.workers[1].version == 1


@pytest.mark.parametrize("text", ["broken =", HEAD + 'engine = "uvloop"\n'])
def test_what_stays_as_it_is_is_not_tried_again(rig: Rig, again: Again, text: str) -> None:
    """A mistake; what only a replace changes."""
    rig.write(text + ROUTE.format(name="a"))

    async def story() -> None:
        with pytest.raises(GatewayError):
            await rig.reloader.reload("test")
        assert not rig.reloader.outcome.is_retried
        task = asyncio.create_task(rig.reloader.try_again())
        await asyncio.sleep(0.05)
        task.cancel()

    run(story)
    assert again.tried == 1


def test_other_files_are_not_tried_unasked(rig: Rig, again: Again) -> None:
    """They may be half written: the watch waits until they are whole."""
    rig.write(HEAD + ROUTE.format(name="b"))
    rig.workers[1].script["prepare"] = "silent"

    async def story() -> None:
        with pytest.raises(ReloadFailed):
            await rig.reloader.reload("test")
        rig.write(HEAD + ROUTE.format(name="c"))
        task = asyncio.create_task(rig.reloader.try_again())
        await asyncio.sleep(0.05)
        task.cancel()

    run(story)
    assert again.tried == 1


# --- An address that becomes wider, or narrower -------------------------------------------------


@pytest.mark.parametrize(("now", "then"), [
    ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"),
])
def test_a_listener_moves_on_its_port(rig: Rig, now: str, then: str) -> None:
    """The new one is there before the old one goes; a reload that fails leaves the old one. (The
    third: port 0 of before is named now.)"""
    rig.write(HEAD.replace("127.0.0.1:0", f"{now}:0") + ROUTE.format(name="a"))
    run(lambda: rig.reloader.reload("test"))
    (before,) = rig.terms.bound.values()
    port = before.address.port
    rig.write(HEAD.replace("127.0.0.1:0", f"{then}:{port}") + ROUTE.format(name="a"))
    rig.workers[1].script["prepare"] = "refused"
    with pytest.raises(ReloadFailed):
        run(lambda: rig.reloader.reload("test"))
    with socket.create_connection(("127.0.0.1", port)):
        before.socket.accept()[0].close()
    rig.workers[1].script.clear()
    run(lambda: rig.reloader.reload("test"))
    (after,) = rig.terms.bound.values()
    assert after.address.host == then
    assert before.socket.fileno() == -1
    with socket.create_connection(("127.0.0.1", port)):
        after.socket.accept()[0].close()


# --- Names ------------------------------------------------------------------------------------


class Server:
    """A name server in place of the system's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: list[str] = []
        monkeypatch.setattr(reloading, "resolve", self._resolve)

    def _resolve(self, upstreams: Any, last: Any = None) -> Resolution:
        def lookup(_: str) -> list[str]:
            if not self.hosts:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return self.hosts

        return resolve(upstreams, lookup=lookup, last=last)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """See `Server`."""
    return Server(monkeypatch)


def endpoints(rig: Rig) -> list[str]:
    """Where the room is."""
    return [str(address) for _, address in rig.terms.endpoints["room"]]


def test_a_certificate_is_a_file_of_the_table(rig: Rig, tmp_path: Path) -> None:
    """Its change is one; a broken one leaves what was there, and the reload succeeds."""
    folder = Folder(tmp_path)
    folder.issue("a", "a.test")
    rig.write(folder.listener("a").replace(":0", ":18443") + ROUTE.format(name="a"))
    run(lambda: rig.reloader.reload("test"))
    first = rig.terms.table.listeners[0].secure
    assert first is not None

    run(lambda: rig.reloader.reload_changed("nothing did"))
    assert rig.reloader.outcome.done == 1
    folder.issue("a", "a.test", "b.test")
    plan, _ = run(rig.reloader.plan)
    assert plan.settings == ("certificates of [[listener]] 127.0.0.1:18443",)
    run(lambda: rig.reloader.reload_changed("it did"))
    second = rig.terms.table.listeners[0].secure
    assert second is not None
    assert second.certificates[0].names == ("a.test", "b.test")
    assert second.ticket_keys == first.ticket_keys

    (folder.path / "a.crt").write_bytes(b"half of it")
    _, warnings = run(lambda: rig.reloader.reload("test"))
    assert len(warnings) == 1
    assert warnings[0].endswith("what was read before stays in use")
    assert alike(rig.terms.table.listeners[0].secure, second)
    run(lambda: rig.reloader.reload_changed("nothing did"))
    assert rig.reloader.outcome.done == 3


def test_a_certificate_that_never_was_good_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    """The table that runs stays, as for any mistake; the file is looked for, and then it is taken.
    """
    folder = Folder(tmp_path)
    rig.write(folder.listener("late") + ROUTE.format(name="a"))
    with pytest.raises(TableErrors, match="no such file"):
        run(lambda: rig.reloader.reload("test"))
    assert all(worker.heard == [] for worker in rig.workers)
    assert tmp_path / "late.crt" in rig.reloader.files
    run(lambda: rig.reloader.reload_changed("nothing did"))
    assert rig.reloader.outcome.failed == 1
    folder.issue("late", "a.test")
    run(lambda: rig.reloader.reload_changed("it came"))
    assert rig.terms.table.listeners[0].secure is not None


def test_keys_for_tickets_are_given_to_all(rig: Rig, tmp_path: Path) -> None:
    """As new terms, of which nothing else has changed; without TLS there is nothing to give."""
    run(rig.reloader.renew)
    assert rig.terms.version == 0
    folder = Folder(tmp_path)
    folder.issue("a", "a.test")
    rig.write(folder.listener("a") + ROUTE.format(name="a"))
    run(lambda: rig.reloader.reload("test"))
    before = rig.terms.table
    run(rig.reloader.renew)
    assert rig.terms.version == 2
    assert rig.terms.table == before
    assert [worker.heard for worker in rig.workers] == [["prepare", "commit"] * 2] * 2
    old, new = before.listeners[0].secure, rig.terms.table.listeners[0].secure
    assert old is not None
    assert new is not None
    assert new.ticket_keys[1:] == old.ticket_keys


def test_names_are_looked_up_again(rig: Rig, server: Server) -> None:
    """A late first answer serves; an answer that changes goes to the workers, one that only has
    another order does not; a look-up that fails keeps the last."""
    rig.write(HEAD + ROOM)
    run(lambda: rig.reloader.reload("test"))
    assert endpoints(rig) == []
    server.hosts = ["10.0.0.1", "10.0.0.2"]
    assert run(lambda: rig.reloader.refresh(["room"])) == []
    assert endpoints(rig) == ["10.0.0.1:9", "10.0.0.2:9"]
    assert rig.workers[0].heard == ["prepare", "commit"] * 2
    assert rig.workers[0].version == rig.terms.version == 2
    server.hosts = ["10.0.0.2", "10.0.0.1"]
    run(lambda: rig.reloader.refresh(["room"]))
    assert rig.terms.version == 2
    server.hosts = []
    (failure,) = run(lambda: rig.reloader.refresh(["room"]))
    assert (failure.name, failure.without) == ("room.test", ())
    assert endpoints(rig) == ["10.0.0.1:9", "10.0.0.2:9"]
    server.hosts = ["10.0.0.3"]
    run(lambda: rig.reloader.refresh(["room"]))
    assert endpoints(rig) == ["10.0.0.3:9"]


def test_a_reload_keeps_the_last_answer(rig: Rig, server: Server) -> None:
    """And says that there is no new one."""
    rig.write(HEAD + ROOM)
    server.hosts = ["10.0.0.1"]
    run(lambda: rig.reloader.reload("test"))
    server.hosts = []
    rig.write(HEAD + ROOM + ROUTE.format(name="b"))
    _, warnings = run(lambda: rig.reloader.reload("test"))
    assert endpoints(rig) == ["10.0.0.1:9"]
    assert "room.test does not resolve" in warnings[0]


def test_what_fails_is_said_once_and_that_it_resolves_again(
    rig: Rig, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is asked for."""
    said: list[str] = []
    monkeypatch.setattr(rig.report, "warning", lambda text, **_: said.append(text))
    monkeypatch.setattr(rig.report, "info", lambda text, **_: said.append(text))
    rig.write(HEAD + ROOM)
    server.hosts = ["10.0.0.1"]
    run(lambda: rig.reloader.reload("test"))
    said.clear()

    async def story() -> None:
        names = Names(rig.reloader, rig)
        asked = 0
        refresh = rig.reloader.refresh
        again = asyncio.Event()

        async def counted(upstreams: Any) -> list[Failure]:
            nonlocal asked
            found = await refresh(upstreams)
            asked += 1
            server.hosts = [] if asked in (1, 2) else ["10.0.0.1"]
            if asked == 5:
                again.set()
            return found

        monkeypatch.setattr(rig.reloader, "refresh", counted)
        task = asyncio.create_task(names.run())
        await asyncio.wait_for(again.wait(), 20)
        task.cancel()

    uvloop.run(story())
    assert len(said) == 2
    assert "room.test does not resolve" in said[0]
    assert said[1] == "a name resolves again"
