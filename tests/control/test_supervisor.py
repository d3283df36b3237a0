"""Real workers under a real supervisor: births, deaths, ends; as a program, by its log and signals.

What clients see of it is in tests/end_to_end/test_workers.py.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.kit import Gateway, head, launch, on_engine, route
from end_to_end.wire import upgrade
from gateway.control.listening import bind
from gateway.control.shared import ROUTES_MAX
from gateway.events import Address
from gateway.table import Listener

TABLE = head() + route("echo", "builtin:echo")
PATIENCE = 20.0


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with launch(TABLE, tmp_path) as started:
        yield started


def said(gateway: Gateway, words: str, count: int = 1) -> list[str]:
    """Wait for so many lines with these words."""

    def found() -> list[str]:
        return [line for line in gateway.err.lines if words in line]

    assert gateway.err.wait(lambda: len(found()) >= count, PATIENCE), gateway.messages
    return found()


def await_worker(gateway: Gateway, *but: int) -> int:
    """A worker that is none of these."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            for pid in gateway.workers:
                if pid not in but:
                    return pid
        time.sleep(0.01)
    raise AssertionError("no other worker came")


def test_a_worker_that_dies_is_said_and_replaced(gateway: Gateway) -> None:
    """At once the first time, then later and later."""
    (first,) = gateway.workers
    os.kill(first, signal.SIGKILL)
    (line,) = said(gateway, "a worker died")
    assert f'"pid":{first}' in line
    assert '"ended_by":"SIGKILL"' in line
    assert '"replaced_in":0.0' in line
    second = await_worker(gateway, first)
    os.kill(second, signal.SIGKILL)
    assert '"replaced_in":0.1' in said(gateway, "a worker died", 2)[-1]
    await_worker(gateway, second)
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0


def test_signals_of_the_whole_group_are_for_the_supervisor(gateway: Gateway) -> None:
    """A terminal sends SIGINT to all of it."""
    (worker,) = gateway.workers
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        os.kill(worker, number)
    with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE) as client:
        client.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404")
    assert gateway.workers == [worker]


def test_workers_without_their_supervisor_end(gateway: Gateway) -> None:
    (worker,) = gateway.workers
    gateway.process.kill()
    assert said(gateway, "the supervisor is gone")
    assert gateway.err.wait(lambda: gateway.err.ended, PATIENCE), "it still has our pipe"
    assert not Path(f"/proc/{worker}/fd/0").exists()


def test_a_stopped_worker_without_its_supervisor_ends_too(gateway: Gateway) -> None:
    """The kernel has it go on; the address is free then."""
    (worker,) = gateway.workers
    os.kill(worker, signal.SIGSTOP)
    try:
        gateway.process.kill()
        assert gateway.err.wait(lambda: gateway.err.ended, PATIENCE), "it is still stopped"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert said(gateway, "the supervisor is gone")
    bind(Listener(address=Address(host="127.0.0.1", port=gateway.port))).abandon()


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """It is stopped, and hears nothing; what it had is counted as cut."""
    with launch(head('drain = "0s"') + route("echo", "builtin:echo"), tmp_path) as gateway:
        (worker,) = gateway.workers
        os.kill(worker, signal.SIGSTOP)
        gateway.signal(signal.SIGTERM)
        assert f'"pid":{worker}' in said(gateway, "a worker does not end; it is killed")[0]
        assert gateway.wait() == 4


def test_what_a_worker_had_that_dies_in_a_drain_is_cut(tmp_path: Path) -> None:
    """No more and no less; who asks meanwhile hears that it drains."""
    table = head('drain = "60s"') + route("echo", "builtin:echo")
    with launch(table, tmp_path) as one, contextlib.ExitStack() as clients:
        for _ in range(3):
            client = clients.enter_context(one.connect())
            client.send(upgrade("/echo"))
            assert client.read_head().status == 101
        one.signal(signal.SIGTERM)
        said(one, "draining")
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(str(tmp_path / "control.sock"))
            asking.sendall(b'{"do":"status"}\n')
            with asking.makefile() as answers:
                (worker,) = json.loads(answers.readline())["workers"]
        assert worker["state"] == "draining"
        os.kill(worker["pid"], signal.SIGKILL)
        assert one.wait() == 4
        said(one, "a worker died in its drain")
        (ended,) = said(one, '"ended"')
        assert '"accepted":3' in ended
        assert '"cut":3' in ended


def test_a_worker_that_hangs_in_a_drain_is_killed(tmp_path: Path) -> None:
    """Long before the drain is over: nobody is served by it any more."""
    with launch(head('drain = "600s"') + route("echo", "builtin:echo"), tmp_path) as one:
        (worker,) = one.workers
        with one.connect() as client:
            client.send(upgrade("/echo"))
            assert client.read_head().status == 101
            one.signal(signal.SIGTERM)
            said(one, "draining")
            os.kill(worker, signal.SIGSTOP)
            assert f'"pid":{worker}' in said(one, "a worker hangs; it is killed")[0]
            assert one.wait() == 4
        assert '"cut":1' in said(one, '"ended"')[0]


def test_many_workers_share_the_addresses(tmp_path: Path) -> None:
    """The start line says how many; each accepts; all end with the supervisor."""
    with launch(head("workers = 3", "pin = true") + route("echo", "builtin:echo"), tmp_path) as one:
        assert '"workers":3' in said(one, '"serving"')[0]
        assert len(one.workers) == 3
        allowed = os.sched_getaffinity(0)
        for pid in one.workers:
            cpus = os.sched_getaffinity(pid)
            assert len(cpus) == 1 and cpus <= allowed
        for pid in one.workers[:2]:
            os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", one.port), PATIENCE) as client:
                    client.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert client.recv(100).startswith(b"HTTP/1.1 404"), "the third serves all"
        finally:
            for pid in one.workers[:2]:
                os.kill(pid, signal.SIGCONT)
        one.signal(signal.SIGTERM)
        assert one.wait() == 0
        assert '"accepted":5' in said(one, '"ended"')[0]


def test_hundreds_of_listeners(tmp_path: Path) -> None:
    """More than the lane to a worker takes messages, before that one reads."""
    files = [f"unix:{tmp_path}/{number}" for number in range(400)]
    with launch(head(listen=files) + route("echo", "builtin:echo"), tmp_path) as one:
        for number in (0, 399):
            with one.connect(number) as client:
                client.send(upgrade("/echo"))
                assert client.read_head().status == 101


def test_clients_are_accepted_while_load_balancers_learn(tmp_path: Path) -> None:
    """For `drain_delay`; a second signal is less patient."""
    table = head('drain_delay = "60s"') + route("echo", "builtin:echo")
    with launch(table, tmp_path) as one:
        one.signal(signal.SIGTERM)
        said(one, "not ready; clients are still accepted")
        with socket.create_connection(("127.0.0.1", one.port), PATIENCE) as client:
            client.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 404")
        one.signal(signal.SIGTERM)
        assert one.wait() == 0


def test_the_drain_begins_after_its_delay(tmp_path: Path) -> None:
    table = head('drain_delay = "100ms"') + route("echo", "builtin:echo")
    with launch(table, tmp_path) as one:
        one.signal(signal.SIGTERM)
        assert one.wait() == 0
        assert said(one, "draining")


def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    """The other one serves meanwhile."""
    with launch(head("workers = 2") + route("echo", "builtin:echo"), tmp_path) as one:
        stopped, other = one.workers
        os.kill(stopped, signal.SIGSTOP)
        assert f'"pid":{stopped}' in said(one, "a worker hangs; it is killed")[0]
        assert '"ended_by":"SIGKILL"' in said(one, "a worker died")[0]
        await_worker(one, stopped, other)
        assert other in one.workers


def test_names_without_shared_counters_are_said_once(tmp_path: Path) -> None:
    """Again only where others are without: a worker that is replaced has the same table."""
    names = [f"r{number}" for number in range(ROUTES_MAX + 2)]
    table = head() + "".join(route(name, "builtin:echo") for name in names)
    with launch(table, tmp_path) as gateway:
        (line,) = said(gateway, "have no place for these")
        assert f'"routes":"{names[-2]}, {names[-1]}"' in line
        (worker,) = gateway.workers
        os.kill(worker, signal.SIGKILL)
        said(gateway, "a worker serves")
        (tmp_path / "draft").write_text(
            on_engine(table + route("more", "builtin:echo"), "uvloop")
        )
        (tmp_path / "draft").rename(tmp_path / "routes.toml")
        assert "more" in said(gateway, "have no place for these", 2)[-1]
