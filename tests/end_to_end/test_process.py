"""The gateway as a process: addresses, signals, drain, exit codes, `check`, `explain`."""

import contextlib
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from end_to_end.kit import COMMAND, Ends, Starter, bound_addresses, head, on_engine, route, run
from end_to_end.wire import (
    BINARY,
    PATIENCE,
    TEXT,
    Upstream,
    close_frame,
    connect,
    frame,
    plain,
    upgrade,
)

TABLE = on_engine(head(), "auto") + route("echo", "builtin:echo")


# --- Addresses -----------------------------------------------------------------------------------


def test_all_kinds_of_listeners(start: Starter, tmp_path: Path) -> None:
    """IPv4, IPv6 and Unix sockets, by both ways to write them."""
    path = tmp_path / "gateway.sock"
    table = head(listen=["127.0.0.1:0", "[::1]:0"])
    table += f'[[listener]]\naddress = "unix:{path}"\nmode = "0600"\n'
    gateway = start(table + route("echo", "builtin:echo"))
    assert len(gateway.bound) == 3
    for number in range(3):
        with gateway.connect(number) as client:
            client.send(upgrade("/echo") + frame(TEXT, b"hello"))
            assert client.read_head().status == 101
            assert client.read_frame().payload == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert not path.exists()
    listeners = {record["listener"] for record in gateway.records}
    assert len(listeners) == 3


def test_client_of_a_unix_socket(start: Starter, tmp_path: Path) -> None:
    """It has no address to be forwarded, which is said and not made up."""
    with Upstream() as upstream:
        table = head() + f'[[listener]]\naddress = "unix:{tmp_path / "gateway.sock"}"\n'
        gateway = start(table + route("ws", upstream.url("ws")))
        with gateway.connect(1) as client:
            client.send(upgrade())
            with upstream.accept() as service:
                asked = service.read_head()
        for value in asked.all(b"X-Forwarded-For"):
            assert value in (b"unknown", b"unix:")
    assert gateway.record(route="ws")["client"] == "unix"


def test_stale_unix_socket_is_replaced(start: Starter, tmp_path: Path) -> None:
    """A file that a dead process left behind is in nobody's way; a live one is."""
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    table = head() + f'[[listener]]\naddress = "unix:{path}"\n' + route("echo", "builtin:echo")
    gateway = start(table)
    with gateway.connect(1) as client:
        client.send(upgrade("/echo"))
        assert client.read_head().status == 101
    again = tmp_path / "again.toml"
    again.write_text(on_engine(table, "auto"))
    assert run("--routes", str(again)).returncode == 3
    with gateway.connect(1) as client:
        client.send(upgrade("/echo"))
        assert client.read_head().status == 101


def test_start_line_says_engine_and_why(start: Starter, engine: str) -> None:
    """One line that an operator can read."""
    gateway = start(head() + route("echo", "builtin:echo"))
    line = next(line for line in gateway.err.lines if "listening" in line)
    assert engine in line
    assert "reason" in line


# --- Drain ---------------------------------------------------------------------------------------


@pytest.fixture
def table_of(upstream: Upstream) -> str:
    """Routes to both kinds of upstreams; 5 s for a drain."""
    return (
        head('drain = "5s"')
        + route("ws", upstream.url("ws"))
        + route("coded", upstream.url("ws"), "drain_code = 1012", 'drain_reason = "back soon"')
        + route("raw", upstream.url("tcp"))
        + route("page", "builtin:page", path="/")
    )


def test_drain(start: Starter, upstream: Upstream, table_of: str) -> None:
    """Both sides are told, nobody new comes in, what ends well is waited for: 0."""
    gateway = start(table_of)
    ends = Ends(gateway, upstream)
    client, service = ends.ws()
    coded, _ = ends.ws("/coded")
    raw_client, raw_service = ends.raw()
    idle = ends.client()
    idle.send(plain("/"))
    assert idle.read_answer()[0].status == 200
    gateway.signal(signal.SIGTERM)
    told = client.read_close()
    assert told.code == 1001
    assert told.payload[2:], "there is no reason"
    assert service.read_close().code == 1001
    assert coded.read_close().payload == b"\x03\xf4back soon"
    assert raw_client.read_close().code == 1001
    raw_service.expect_fin()
    idle.expect_fin()
    with pytest.raises(ConnectionRefusedError):
        connect(gateway.bound[0].address)
    assert gateway.process.poll() is None, "it did not wait"
    for wire in (client, coded, raw_client):
        wire.send(close_frame(1001))
        wire.finish()
        wire.expect_fin()
    service.send(close_frame(1001, masked=False))
    ends.close()
    assert gateway.wait() == 0
    causes = [record["cause"] for record in gateway.records if record["status"] == 101]
    assert causes == ["drain"] * 3


def test_drain_waits_for_the_end_of_a_frame(
    start: Starter, upstream: Upstream, table_of: str
) -> None:
    """A frame on its way is finished before the Close."""
    gateway = start(table_of)
    ends = Ends(gateway, upstream)
    client, service = ends.ws()
    whole = frame(BINARY, bytes(1000), masked=False)
    service.send(whole[:300])
    assert client.exactly(300) == whole[:300]
    gateway.signal(signal.SIGTERM)
    assert service.read_close().code == 1001
    service.send(whole[300:])
    assert client.exactly(len(whole) - 300) == whole[300:]
    assert client.read_close().code == 1001
    ends.close()
    assert gateway.wait() == 0


def test_drain_that_has_to_cut(start: Starter, upstream: Upstream) -> None:
    """Who does not end in time is cut and counted: 4."""
    gateway = start(head('drain = "400ms"') + route("ws", upstream.url("ws")))
    ends = Ends(gateway, upstream)
    begun = time.monotonic()
    client, service = ends.ws()
    gateway.signal(signal.SIGTERM)
    assert client.read_close().code == 1001
    assert service.read_close().code == 1001
    assert gateway.wait() == 4
    assert time.monotonic() - begun >= 0.4
    assert client.end() in ("fin", "reset")
    ends.close()
    record = gateway.record(route="ws")
    assert (record["cause"], record["cut"]) == ("killed", "")
    assert '"cut":1' in gateway.messages
    assert "sessions were cut: the drain's time is over" in gateway.messages


def test_drain_during_a_handshake(start: Starter, upstream: Upstream, table_of: str) -> None:
    """A session that is not up yet is refused, or told as soon as it is."""
    gateway = start(table_of)
    with gateway.connect() as client:
        client.send(upgrade())
        with upstream.accept() as service:
            service.read_head()
            gateway.signal(signal.SIGTERM)
            got = client.read_head()
            assert got.status == 503
            client.read_body(got)
            client.finish()
            client.expect_fin()
    assert gateway.wait() == 0


@pytest.mark.parametrize("first", ["connected", "kept", "queued"])
def test_drain_on_top_of_unread_requests(
    start: Starter, upstream: Upstream, table_of: str, first: str
) -> None:
    """What was sent before the drain is answered, whether its connection is new, kept, or waits to
    be accepted; a close on top of it would be an RST. Stopping the process makes it certain."""
    gateway = start(table_of)
    client = gateway.connect() if first != "queued" else None
    if client and first == "kept":
        client.send(plain("/"))
        assert client.read_answer()[0].status == 200
    elif client:
        with gateway.connect() as other:         # it is served, so `client` was accepted
            other.send(plain("/"))
            assert other.read_answer()[0].status == 200
    gateway.signal(signal.SIGSTOP)
    client = client or gateway.connect()
    client.send(plain("/") if first == "kept" else upgrade())
    gateway.signal(signal.SIGTERM)
    gateway.signal(signal.SIGCONT)
    got, _ = client.read_answer()
    assert got.status == (200 if first == "kept" else 503)
    if first != "kept":
        assert got.get(b"Connection") == b"close"
        assert int(got.get(b"Retry-After") or b"") > 0
    client.expect_fin()
    client.close()
    assert gateway.wait() == 0
    upstream.forget()                            # it may have been read before the signal


def test_signals_at_the_very_end_change_nothing(start: Starter, table_of: str) -> None:
    """Whoever reloads, or ends it once more, does not make a failure of its exit."""
    gateway = start(table_of)
    gateway.signal(signal.SIGTERM)
    while gateway.process.poll() is None:
        gateway.signal(signal.SIGHUP)
        gateway.signal(signal.SIGUSR2)
    assert gateway.wait() == 0


def test_drain_with_nobody_there(start: Starter, table_of: str) -> None:
    """At once: 0."""
    gateway = start(table_of)
    gateway.signal(signal.SIGTERM)
    assert gateway.wait(3) == 0


def test_interrupt(start: Starter, upstream: Upstream, table_of: str) -> None:
    """SIGINT: told where a frame boundary allows, and cut at once."""
    gateway = start(table_of)
    ends = Ends(gateway, upstream)
    client, service = ends.ws()
    cut, cut_service = ends.ws()
    cut_service.send(frame(BINARY, bytes(100), masked=False)[:50])
    cut.exactly(50)
    gateway.signal(signal.SIGINT)
    assert gateway.wait(3) == 4
    assert client.read_close().code == 1001
    assert service.read_close().code == 1001
    assert cut.end() == "reset"
    ends.close()
    assert '"cut":2' in gateway.messages


def test_interrupt_in_a_drain(start: Starter, upstream: Upstream, table_of: str) -> None:
    """Who has no patience says so by SIGINT."""
    gateway = start(table_of)
    ends = Ends(gateway, upstream)
    client, _ = ends.ws()
    gateway.signal(signal.SIGTERM)
    assert client.read_close().code == 1001
    gateway.signal(signal.SIGINT)
    assert gateway.wait(3) in (0, 4)
    ends.close()


# --- Exit codes and commands ---------------------------------------------------------------------


def test_refused_table(tmp_path: Path) -> None:
    """1, and a message that names file, key and the nearest known key."""
    path = tmp_path / "routes.toml"
    path.write_text(TABLE + 'upstraem = "ws://127.0.0.1:1"\n')
    for arguments in (["--routes", str(path)], ["check", str(path)]):
        done = run(*arguments)
        assert done.returncode == 1
        assert "routes.toml" in done.stderr
        assert "upstraem" in done.stderr
        assert "upstream" in done.stderr.replace("upstraem", "")
        assert "Traceback" not in done.stderr


def test_no_such_table(tmp_path: Path) -> None:
    """1: the table is what is wrong."""
    done = run("--routes", str(tmp_path / "nothing.toml"))
    assert done.returncode == 1
    assert "nothing.toml" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["--nonsense"], ["check"], ["explain", "only-one"], ["serve", "x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    """2, and what to write instead."""
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_address_in_use(tmp_path: Path) -> None:
    """3, and the message names the address."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        path = tmp_path / "routes.toml"
        path.write_text(TABLE.replace("127.0.0.1:0", address))
        done = run("--routes", str(path))
        assert done.returncode == 3
        assert address in done.stderr
        assert "Traceback" not in done.stderr


def test_engine_that_does_not_exist(tmp_path: Path) -> None:
    """1, and the message names those that do."""
    path = tmp_path / "routes.toml"
    path.write_text(TABLE.replace('"auto"', '"warp"'))
    done = run("--routes", str(path))
    assert done.returncode == 1
    assert "warp" in done.stderr
    assert "uvloop" in done.stderr


def test_version_and_help() -> None:
    """Both are plain answers: 0."""
    assert run("--version").stdout.startswith("gateway ")
    done = run("--help")
    assert done.returncode == 0
    for word in ("--routes", "check", "explain"):
        assert word in done.stdout


def test_folder_of_tables(tmp_path: Path) -> None:
    """All *.toml of a folder, in the order of their names."""
    (tmp_path / "10-gateway.toml").write_text(TABLE)
    (tmp_path / "20-more.toml").write_text(route("more", "builtin:echo"))
    (tmp_path / "notes.txt").write_text("not a table")
    done = run("check", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.index('"echo"') < done.stdout.index('"more"')


def test_check_prints_what_can_be_read_again(tmp_path: Path) -> None:
    """The resolved table is a table, with the defaults in it."""
    path = tmp_path / "routes.toml"
    path.write_text(TABLE)
    done = run("check", str(path))
    assert done.returncode == 0, done.stderr
    assert "heartbeat" in done.stdout
    path.write_text(done.stdout)
    again = run("check", str(path))
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


def test_explain(tmp_path: Path) -> None:
    """Which route wins, and why the others do not."""
    path = tmp_path / "routes.toml"
    path.write_text(
        on_engine(head(), "auto")
        + route("exact", "builtin:echo", path="/rooms/main")
        + route("canary", "builtin:echo", 'header = { X-Canary = "1" }', path="/rooms/{room}")
        + route("rooms", "builtin:echo", path="/rooms/{room}")
    )
    done = run("explain", str(path), "ws://example.com/rooms/blue")
    assert done.returncode == 0, done.stderr
    for word in ("exact", "canary", "rooms", "X-Canary".lower()):
        assert word in done.stdout.lower()
    other = run("explain", str(path), "/rooms/blue", "--header", "X-Canary: 1")
    assert other.returncode == 0, other.stderr
    assert other.stdout != done.stdout


# --- Standard output -----------------------------------------------------------------------------


def test_long_records_of_many_workers_do_not_mix(start: Starter) -> None:
    """All write into one pipe, which takes a line of 4,096 bytes whole; a longer one is cut."""
    gateway = start(head("workers = 3") + route("echo", "builtin:echo"))
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(gateway.connect()) for _ in range(60)]
        for number, client in enumerate(clients):
            client.send(plain(f"/{number}/" + "long" * 1900))
        for client in clients:
            assert client.read_answer()[0].status == 404
    gateway.out.wait(lambda: len(gateway.out.lines) >= 60, PATIENCE)
    assert {int(one["path"].split("/")[1]) for one in gateway.records} == set(range(60))
    for line in gateway.out.lines:
        assert 4000 < len(line) < 4096
        assert '..."' in line


def test_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """A full pipe never blocks a worker."""
    path = tmp_path / "routes.toml"
    path.write_text(TABLE)
    with subprocess.Popen(
        [*COMMAND, "--routes", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        try:
            (bound,) = bound_addresses(process.stderr.readline())
            with connect(bound.address) as client:
                for _ in range(1500):
                    client.send(plain("/nothing"))
                    assert client.read_answer()[0].status == 404
                client.send(upgrade("/echo") + frame(TEXT, b"hello"))
                assert client.read_head().status == 101
                assert client.read_frame().payload == b"hello"
        finally:
            process.kill()
