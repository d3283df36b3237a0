"""A running gateway is given another table: what changed changes, and nothing else does."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve

from end_to_end.kit import Gateway, Starter, head, on_engine, route, stopped
from end_to_end.reloads import (
    Edits,
    Load,
    listening_now,
    served_config_map,
    sockets_of,
    successor,
    write,
)
from end_to_end.wire import PATIENCE, upgrade, wait_for
from end_to_end.wire import connect as connect_to

Client = Callable[..., ClientConnection]
GROWTH = 8 << 20              # bytes of two workers: buffers, and what Python does as it goes


def echo(connection: ServerConnection) -> None:
    """Give every message back."""
    for message in connection:
        connection.send(message)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a `websockets` server that echoes."""
    with serve(echo, "127.0.0.1", 0, max_size=None) as running:
        port = running.socket.getsockname()[1]
        yield from _serving(running, f"ws://127.0.0.1:{port}")


def _serving(running: Server, url: str) -> Iterator[str]:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield url
    running.shutdown()
    thread.join()


@pytest.fixture
def client() -> Iterator[Client]:
    """Opens a session on a path, that echoes; it is closed with the test."""
    with contextlib.ExitStack() as stack:

        def opened(gateway: Gateway, path: str, port: int = 0) -> ClientConnection:
            url = f"ws://127.0.0.1:{port or gateway.port}{path}"
            one = stack.enter_context(connect(url, proxy=None, max_size=None, compression=None))
            assert answers(one)
            return one

        yield opened


def answers(one: ClientConnection) -> bool:
    """True if it echoes."""
    one.send("hello")
    return one.recv(timeout=PATIENCE) == "hello"


# --- Routes -----------------------------------------------------------------------------------


def test_sessions_stay_on_their_terms_and_new_ones_get_the_new(
    start: Starter, engine: str, server: str, client: Client
) -> None:
    """One route stays, one changes, one goes, one comes: no session of any is touched."""
    gateway = start(
        head() + route("stays", server) + route("changes", server) + route("goes", server)
    )
    stays, changes, goes = (client(gateway, f"/{name}") for name in ("stays", "changes", "goes"))
    write(gateway, head() + route("stays", server)
          + route("changes", server, 'max_message = "10B"') + route("comes", server), engine)
    plan = gateway.ask("reload", "--plan")
    assert [(one["name"], one["change"], one["sessions"]) for one in plan["routes"]] == [
        ("changes", "changed", 1), ("comes", "added", 0), ("goes", "removed", 1),
    ] or plan["routes"] == []            # the watch was quicker
    gateway.command("reload")
    for one in (stays, changes, goes):
        assert answers(one)
    changes.send("x" * 100)
    assert changes.recv(timeout=PATIENCE) == "x" * 100
    fresh = client(gateway, "/changes")
    fresh.send("x" * 100)
    with pytest.raises(ConnectionClosed) as closed:
        fresh.recv(timeout=PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    client(gateway, "/comes").close()
    with pytest.raises(InvalidStatus):
        client(gateway, "/goes")
    for one in (stays, changes, goes):
        assert answers(one)
        one.close()


def test_a_route_that_changes_or_goes_is_drained_where_it_says_so(
    start: Starter, engine: str, server: str, client: Client
) -> None:
    """Over `reload_drain`; others are not, also where their own `reload_drain` is new."""
    soon = 'reload_drain = "500ms"'
    gateway = start(head() + route("stays", server) + route("changes", server, soon)
                    + route("goes", server, soon, "drain_code = 1012"))
    stays = client(gateway, "/stays")
    leaving = {
        name: [client(gateway, f"/{name}") for _ in range(3)] for name in ("changes", "goes")
    }
    write(gateway, head() + route("stays", server, soon)
          + route("changes", server, soon, 'max_message = "10B"'), engine)
    for name, code in (("changes", 1001), ("goes", 1012)):
        for one in leaving[name]:
            with pytest.raises(ConnectionClosed) as closed:
                one.recv(timeout=PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
    assert answers(stays)
    stays.close()
    for _ in range(6):
        assert gateway.record(cause="drain")["cause"] == "drain"


def test_an_upstream_that_moves_takes_new_sessions_alone(
    start: Starter, engine: str, server: str, client: Client
) -> None:
    """Sessions on an address that went go on."""
    table = head() + route("room", "rooms") + '[upstream.rooms]\nendpoints = ["{url}"]\n'
    gateway = start(table.replace("{url}", server))
    before = client(gateway, "/room")
    with serve(echo, "127.0.0.1", 0) as other:
        port = other.socket.getsockname()[1]
        for _ in _serving(other, ""):
            write(gateway, table.replace("{url}", f"ws://127.0.0.1:{port}"), engine)
            gateway.command("reload")
            after = client(gateway, "/room")
            rows = gateway.ask("sessions", "--route", "room")["sessions"]
            assert [row["endpoint"] for row in rows] == [
                server.removeprefix("ws://"), f"127.0.0.1:{port}"
            ]
            assert answers(before)
            after.close()
    before.close()


# --- Listeners, workers, logs -----------------------------------------------------------------


def test_listeners_come_and_go_without_touching_the_others(
    start: Starter, engine: str, client: Client
) -> None:
    """By a change of the file; a session of one that went goes on."""
    echoing = route("echo", "builtin:echo")
    gateway = start(head() + echoing)
    first = client(gateway, "/echo")
    # A port that was free a moment ago; if somebody took it, the reload says so and is tried again.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write(gateway, head(listen=("127.0.0.1:0", f"127.0.0.1:{port}")) + echoing, engine)
    gateway.said("1 listeners added")
    second = client(gateway, "/echo", port)
    write(gateway, head() + echoing, engine)
    gateway.said("1 listeners removed")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)
    for one in (first, second, client(gateway, "/echo")):
        assert answers(one)
        one.close()


@pytest.mark.parametrize(("now", "then"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_a_listener_becomes_wider_or_narrower(
    start: Starter, engine: str, client: Client, now: str, then: str
) -> None:
    """On its port, in one reload; sessions go on, and who waits is served."""
    echoing = route("echo", "builtin:echo")
    gateway = start(head(listen=(f"{now}:0",)) + echoing)
    one = client(gateway, "/echo")
    (worker,) = gateway.workers
    with stopped(worker), contextlib.ExitStack() as waiting:
        host = ("127.0.0.1", gateway.port)
        clients = [waiting.enter_context(connect_to(host)) for _ in range(100)]
        for each in clients:
            each.send(upgrade("/echo"))
        write(gateway, head(listen=(f"{then}:{gateway.port}",)) + echoing, engine)
        gateway.signal(signal.SIGHUP)
        os.kill(worker, signal.SIGCONT)
        gateway.said("1 listeners added, 1 listeners removed")
        for each in clients:
            assert each.read_head().status == 101
    assert listening_now(gateway) == [f"{then}:{gateway.port}"]
    assert answers(one)
    assert answers(client(gateway, "/echo"))


def test_an_address_that_becomes_free_is_taken_then(
    start: Starter, engine: str, client: Client
) -> None:
    """A reload that failed for it is tried again by itself; meanwhile that is said."""
    echoing = route("echo", "builtin:echo")
    gateway = start(head() + echoing)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(gateway, head(listen=("127.0.0.1:0", f"127.0.0.1:{port}")) + echoing, engine)
        gateway.signal(signal.SIGHUP)
        gateway.said("the table is not reloaded")
        assert gateway.ask("status")["reloads"]["retried"]
        done = gateway.command("reload")
        assert done.returncode == 1
        assert "it is tried again each 5 s" in done.stderr
    gateway.said('"cause":"it is tried again"')
    assert answers(client(gateway, "/echo", port))
    assert not gateway.ask("status")["reloads"]["retried"]


def test_who_waits_on_a_listener_that_goes_is_served(start: Starter, engine: str) -> None:
    """Many more than a worker accepts in a turn; the rest would be reset."""
    echoing = route("echo", "builtin:echo")
    gateway = start(head(listen=("127.0.0.1:0", "unix:goes.sock")) + echoing)
    (worker,) = gateway.workers
    with stopped(worker), contextlib.ExitStack() as waiting:
        clients = [waiting.enter_context(gateway.connect(1)) for _ in range(200)]
        for one in clients:
            one.send(upgrade("/echo"))
        write(gateway, head() + echoing, engine)
        gateway.signal(signal.SIGHUP)
        os.kill(worker, signal.SIGCONT)
        gateway.said("1 listeners removed")
        for one in clients:
            assert one.read_head().status == 101
    assert not (gateway.folder / "goes.sock").exists()


def test_a_unix_listener_that_a_reload_brought_leaves_no_file(
    start: Starter, engine: str
) -> None:
    """Neither when it goes nor at the end of the gateway."""
    gateway = start(head() + route("echo", "builtin:echo"))
    places = [gateway.folder / name for name in ("a.sock", "b.sock")]
    listen = ("127.0.0.1:0", *(f"unix:{place.name}" for place in places))
    write(gateway, head(listen=listen) + route("echo", "builtin:echo"), engine)
    gateway.command("reload")
    assert all(place.exists() for place in places)
    write(gateway, head(listen=listen[:2]) + route("echo", "builtin:echo"), engine)
    gateway.command("reload")
    assert [place.exists() for place in places] == [True, False]
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert not places[0].exists()


def test_the_number_of_workers_changes(start: Starter, engine: str, client: Client) -> None:
    """More take their share; those that are too many tell their sessions, and end."""
    echoing = route("echo", "builtin:echo", "drain_code = 1012")
    short = 'drain = "6s"'
    gateway = start(head(short) + echoing)
    write(gateway, head(short, "workers = 3") + echoing, engine)
    gateway.command("reload")
    wait_for(lambda: _serving_workers(gateway) == [0, 1, 2], message="three workers")
    assert answers(client(gateway, "/echo"))
    write(gateway, head(short, "workers = 1") + echoing, engine)
    gateway.command("reload")
    wait_for(lambda: _serving_workers(gateway) == [0], message="one worker")
    assert answers(client(gateway, "/echo"))
    gateway.signal(signal.SIGINT)
    gateway.wait()


def _serving_workers(gateway: Gateway) -> list[int]:
    return [one["worker"] for one in gateway.ask("status")["workers"]
            if one["state"] == "serving"]


def test_what_all_workers_have_changes(start: Starter, engine: str, client: Client) -> None:
    """How many sessions each may have, the log, and on which CPU it runs."""
    echoing = route("echo", "builtin:echo")
    gateway = start(head("max_sessions = 1") + echoing)
    one = client(gateway, "/echo")
    with pytest.raises(InvalidStatus, match="503"):
        client(gateway, "/echo")
    write(gateway, head("max_sessions = 2", "pin = true").replace("json", "text") + echoing, engine)
    assert gateway.command("reload").returncode == 0
    client(gateway, "/echo").close()
    assert gateway.out.wait(lambda: " status=101 " in gateway.out.lines[-1], PATIENCE)
    assert len(os.sched_getaffinity(gateway.workers[0])) == 1
    write(gateway, head("max_sessions = 1") + echoing, engine)
    assert gateway.command("reload").returncode == 0
    with pytest.raises(InvalidStatus, match="503"):
        client(gateway, "/echo")
    assert gateway.out.wait(lambda: '"status":503' in gateway.out.lines[-1], PATIENCE)
    assert os.sched_getaffinity(gateway.workers[0]) == os.sched_getaffinity(0)
    assert answers(one)


# --- What is refused --------------------------------------------------------------------------


def test_a_table_with_a_mistake_changes_nothing(
    start: Starter, engine: str, client: Client
) -> None:
    """It is said in the log, in the reply, in the status; the next good one is taken."""
    good = head() + route("echo", "builtin:echo")
    gateway = start(good)
    one = client(gateway, "/echo")
    write(gateway, good + 'nonsense = "x"\n', engine)
    gateway.said("the table is not reloaded")
    done = gateway.command("reload")
    assert done.returncode == 1
    assert "nonsense: found an unknown key" in done.stderr
    assert "nonsense: found an unknown key" in gateway.ask("status")["reloads"]["error"]
    assert answers(one)
    assert answers(client(gateway, "/echo"))
    write(gateway, good, engine)
    gateway.said('"message":"reloaded"')
    assert gateway.ask("status")["reloads"]["error"] == ""


def test_an_address_that_is_taken_changes_nothing(
    start: Starter, engine: str, client: Client
) -> None:
    """Not even what could have been done."""
    gateway = start(head() + route("echo", "builtin:echo"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = ("127.0.0.1:0", f"127.0.0.1:{port}")
        write(gateway, head(listen=listen) + route("other", "builtin:echo"), engine)
        done = gateway.command("reload")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: another process listens there" in done.stderr
    assert answers(client(gateway, "/echo"))


def test_what_only_a_replace_changes_is_refused(
    start: Starter, engine: str, client: Client
) -> None:
    """With a sentence that says what to do instead, in the plan, too."""
    good = head() + route("echo", "builtin:echo")
    gateway = start(good)
    write(gateway, on_engine(good, "auto"), engine)
    for arguments in (["--plan"], []):
        done = gateway.command("reload", *arguments)
        assert done.returncode == 1
        assert 'cannot become "auto" by a reload; replace the program' in done.stdout + done.stderr
    assert answers(client(gateway, "/echo"))


def test_sighup_reloads(start: Starter, engine: str, client: Client) -> None:
    """Also where nothing has changed."""
    gateway = start(head() + route("echo", "builtin:echo"))
    one = client(gateway, "/echo")
    gateway.signal(signal.SIGHUP)
    gateway.said('"cause":"SIGHUP"')
    assert answers(one)
    one.close()


def test_a_config_map_is_followed(engine: str, tmp_path: Path, server: str, client: Client) -> None:
    """Kubernetes puts another link in the place of ..data; each time that is a reload."""
    table = head() + route("echo", "builtin:echo")
    with served_config_map(tmp_path, table, engine) as (gateway, swap):
        one = client(gateway, "/echo")
        for number in range(1, 4):
            swap(head() + route("echo", "builtin:echo") + route(f"new{number}", server))
            gateway.said("1 routes added", number)
            assert answers(client(gateway, f"/new{number}"))
        assert answers(one)
        one.close()


# --- Under load -------------------------------------------------------------------------------


def test_reloads_under_load(start: Starter, engine: str, server: str) -> None:
    """Again and again, good tables and broken ones: no session of a route that stays is lost, no
    byte is lost, doubled or out of order, and nothing is left behind. `make reloads` does it for a
    minute."""
    seconds = float(os.environ.get("RELOAD_SECONDS", "12"))
    stays = route("stays", server)
    gateway = start(head("workers = 2") + stays)
    with Load(gateway.url("/stays"), clients=12) as load:
        load.wait_busy()
        sockets = _sockets(gateway)
        listening = listening_now(gateway)
        rounds = 0
        while load.lasted() < seconds:
            rounds += 1
            if rounds == 3:
                memory = gateway.memory()
            extra = "".join(
                route(f"other{n}", server, f'max_message = "{rounds + n}KiB"') for n in range(3)
            )
            write(gateway, head("workers = 2") + stays + extra, engine)
            assert gateway.command("reload").returncode == 0
            write(gateway, "broken = ", engine)
            assert gateway.command("reload").returncode == 1
            load.check()
        write(gateway, head("workers = 2") + stays, engine)
        assert gateway.command("reload").returncode == 0
        assert listening_now(gateway) == listening
        assert _sockets(gateway) == sockets
        grown = gateway.memory() - memory
        pids = [one["pid"] for one in gateway.ask("status")["workers"]]
        load.stop()
    print(f"{rounds} rounds, {load.messages} messages, grown by {grown} bytes since the third")
    assert rounds >= 3
    assert grown < GROWTH
    assert load.messages > 100
    assert gateway.ask("status")["reloads"]["failed"] >= rounds
    assert [one["pid"] for one in gateway.ask("status")["workers"]] == pids
    assert not re.search(r"a worker (died|cannot)", gateway.messages)


def _sockets(gateway: Gateway) -> list[int]:
    return [sockets_of(one["pid"]) for one in gateway.ask("status")["workers"]]


def test_reloads_and_a_replace_under_load(start: Starter, engine: str, server: str) -> None:
    """An edit each 300 ms, listeners that come and go, and SIGUSR2 in the midst: who is told to
    comes back, everybody else goes on; no byte is lost, doubled or out of order, nobody is refused
    or cut, and nothing is left behind."""
    base = head("workers = 2", 'drain = "6s"') + route("stays", server, 'close_timeout = "3s"')
    more = base + route("more", server)
    gateway = start(base)
    listening = listening_now(gateway)
    before = [*_sockets(gateway), sockets_of(gateway.process.pid)]
    tables = [base, more, more + '[[listener]]\naddress = "unix:more.sock"\n']
    with Load(gateway.url("/stays"), clients=10, returns=True) as load:
        load.wait_busy()
        with Edits(gateway, tables, engine, 0.3) as edits:
            gateway.said('"message":"reloaded"', 3)
            with successor(gateway) as pid:
                edits.signalled.append(pid)
                assert gateway.process.wait(PATIENCE) == 0, gateway.messages
                load.check()
                reloads = gateway.messages.count('"message":"reloaded"')
                gateway.said('"message":"reloaded"', reloads + 3)
                edits.stop()
                write(gateway, base, engine)
                assert gateway.command("reload").returncode == 0
                assert listening_now(gateway) == listening
                load.stop()
                assert load.returned == 10, "each is told once"

                def is_level() -> bool:
                    return [*_sockets(gateway), sockets_of(pid)] == before

                wait_for(is_level, message=f"as many sockets as before: {before}")
    print(f"{edits.count} edits, {load.messages} messages")
    assert "the table is not reloaded" not in gateway.messages
    assert not re.search(r"a worker (died|cannot)|cutting sessions", gateway.messages)
    assert not (gateway.folder / "more.sock").exists()
