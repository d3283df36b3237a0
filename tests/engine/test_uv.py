"""What only the engine on uvloop can show: facts of Linux, and what a link costs."""

import socket
import tracemalloc

import pytest

from gateway.engine.uv import UvEngine
from gateway.errors import Fault
from gateway.events import Address, Closed, ConnectFailed, Event, Link, TimedOut


def test_a_connection_to_oneself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gives a socket the very port that it connects to, TCP opens it with itself
    (RFC 9293 3.5). Nothing listens there."""
    engine = UvEngine()
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    monkeypatch.setattr(engine, "_open_socket", lambda _family: sock)
    link = engine.connect(Address(host="127.0.0.1", port=sock.getsockname()[1]))
    events: list[Event] = []

    def deliver(batch: list[Event]) -> None:
        events.extend(batch)
        engine.stop()

    engine.run(deliver)
    assert [type(event) for event in events] == [ConnectFailed, Closed]
    assert isinstance(events[0], ConnectFailed)
    assert (events[0].link, events[0].fault) == (link, Fault.REFUSED)


def test_run_after_stop_returns() -> None:
    """A signal may come before `run` is called."""
    engine = UvEngine()
    engine.pair()
    engine.stop()
    engine.run(lambda _: pytest.fail("nothing is delivered any more"))


def test_a_handle_of_the_loop_that_raises_ends_run() -> None:
    """What the loop would only have logged is raised."""
    engine = UvEngine()
    engine.pair()

    def bug() -> None:
        raise ZeroDivisionError

    engine._loop.call_soon(bug)
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda _: None)
    engine.stop()


def test_an_idle_link_is_small() -> None:
    """A thousand links that are read and quiet: under 1 KiB of Python's memory for each."""
    engine = UvEngine()
    sockets = [socket.socketpair() for _ in range(1000)]
    links: list[Link] = []

    def settle() -> None:
        clock = links[0] if links else engine.pair()[0]
        engine.set_timer(clock, "settled", engine.now())

        class _Settled(Exception):
            pass

        def deliver(batch: list[Event]) -> None:
            if isinstance(batch[0], TimedOut):
                raise _Settled

        with pytest.raises(_Settled):
            engine.run(deliver)

    settle()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for near, _ in sockets:
        links.append(engine.adopt(near))
        engine.read(links[-1])
    settle()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    engine.stop()
    for _, far in sockets:
        far.close()
    assert taken / len(links) < 1024, f"{taken / len(links):.0f} bytes for each link"
