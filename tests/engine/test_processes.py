"""The contract where it takes a process of its own: signals, no free descriptor, a shared listener.

Only for engines on real sockets. Children are programs of `child.py`; each is ended by its test.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("child.py")
ROOT = CHILD.parents[2]
ENGINES = ["uvloop", "io_uring"]
PATIENCE_S = 20.0


class Child:
    """A running program, and its lines."""

    def __init__(self, role: str, engine: str, sock: socket.socket | None = None, stdin: int = -3):
        descriptors = [sock.fileno()] if sock is not None else []
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), role, engine, *map(str, descriptors)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        """The next line; the test's own time limit ends a wait in vain."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def lines_until(self, last: str) -> list[str]:
        """All lines up to this one."""
        lines = [self.line()]
        while lines[-1] != last:
            assert lines[-1], f"it ended early: {lines}"
            lines.append(self.line())
        return lines

    def end(self) -> None:
        """Wait for its end."""
        assert self.line() == "stopped 0"
        assert self.process.wait(PATIENCE_S) == 0


@pytest.fixture(params=ENGINES)
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Child]]:
    """Starts children; what still runs when the test is over is killed."""
    children: list[Child] = []

    def start_one(role: str, sock: socket.socket | None = None, stdin: int = -3) -> Child:
        children.append(Child(role, request.param, sock, stdin))
        return children[-1]

    yield start_one
    for child in children:
        child.process.kill()
        child.process.wait()
        assert child.process.stdout is not None
        child.process.stdout.close()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A listening socket for children."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        yield sock


def ask(listening: socket.socket) -> int:
    """Connect, and learn which process took it."""
    with socket.create_connection(listening.getsockname(), timeout=PATIENCE_S) as sock:
        return int(sock.makefile().read())


def test_a_stopped_process_on_the_same_listener_holds_nobody_up(
    start: Callable[..., Child], listening: socket.socket
) -> None:
    """Its share of the wake-ups must not be lost: no exclusive waiting."""
    one, two = start("greet", listening), start("greet", listening)
    os.kill(one.process.pid, signal.SIGSTOP)
    try:
        assert {ask(listening) for _ in range(40)} == {two.process.pid}
    finally:
        os.kill(one.process.pid, signal.SIGCONT)
    for child in (one, two):
        child.process.terminate()
        child.end()


def test_a_listener_outlives_the_one_who_stopped(
    start: Callable[..., Child], listening: socket.socket
) -> None:
    """Clients that come while nobody accepts wait for the next process."""
    one = start("greet", listening)
    assert ask(listening) == one.process.pid
    one.process.terminate()
    one.end()
    with socket.create_connection(listening.getsockname(), timeout=PATIENCE_S) as early:
        two = start("greet", listening)
        assert int(early.makefile().read()) == two.process.pid
    two.process.terminate()
    two.end()


def test_without_descriptors_accepting_pauses_and_resumes(
    start: Callable[..., Child], listening: socket.socket
) -> None:
    """Nobody is dropped, nothing spins. Who was let in can be connected on; what else needs a
    descriptor is told."""
    child = start("starve", listening)
    clients = [
        socket.create_connection(listening.getsockname(), timeout=PATIENCE_S) for _ in range(6)
    ]
    lines = child.lines_until("paused NO_DESCRIPTORS")
    count = len(lines) - 1
    assert lines == [*(f"accepted {n + 1}" for n in range(count)), "paused NO_DESCRIPTORS"]
    assert count == 3
    said = [child.line() for _ in range(4)]
    assert sorted(said) == ["connected"] * 3 + ["no descriptor to connect with"]
    word, turns = child.line().split()
    assert word == "turns"
    # Half a second: it looks again ten times a second, and had some events.
    assert int(turns) <= 20
    clients[0].sendall(b"go")
    more = child.lines_until(f"accepted {len(clients)}")
    assert [line for line in more if line.startswith("accepted")] == [
        f"accepted {n + 1}" for n in range(count, len(clients))
    ]
    changes = [line.split()[0] for line in more if not line.startswith("accepted")]
    assert changes[0] == "resumed"
    assert all(one != two for one, two in itertools.pairwise(changes)), "each once"
    for client in clients:
        client.close()
    child.process.terminate()
    child.lines_until("stopped 0")
    assert child.process.wait(PATIENCE_S) == 0


def test_signals_are_handled_at_once_though_it_sleeps(start: Callable[..., Child]) -> None:
    """A plain handler of `signal.signal` runs within 10 ms, and what it rings is delivered. The
    best of a few counts, since this machine may be busy."""
    child = start("signals")
    delays = []
    for number in [signal.SIGUSR1] * 5 + [signal.SIGTERM]:
        time.sleep(0.05)                            # it is to be asleep
        sent_at = time.monotonic()
        os.kill(child.process.pid, number)
        for word in ("handled", "delivered"):
            line = child.line().split()
            assert line[:2] == [word, str(int(number))]
        delays.append(float(line[2]) - sent_at)
    assert min(delays) < 0.01, delays
    child.end()


def test_what_a_handler_raises_ends_run(start: Callable[..., Child]) -> None:
    """It is raised there, as what deliver raises."""
    child = start("raising")
    os.kill(child.process.pid, signal.SIGUSR1)
    assert child.line() == "raised Bug"
    assert child.line() == "ready"
    os.kill(child.process.pid, signal.SIGINT)
    assert child.line() == "raised KeyboardInterrupt"
    child.end()


def test_an_adopted_socket_tells_that_the_other_process_is_gone(
    start: Callable[..., Child],
) -> None:
    """So a worker learns that its supervisor died."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = start("hang_up", stdin=theirs.fileno())
        theirs.close()
        ours.close()
        child.end()
