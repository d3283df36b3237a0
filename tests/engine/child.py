"""Programs for `test_processes.py`: an engine in a process of its own.

    python child.py ROLE ENGINE [DESCRIPTOR]

Each says what it has to say in lines on standard output.
"""

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gateway.engine.contract import Engine
from gateway.engine.descriptors import SPARE
from gateway.engine.uring import UringEngine
from gateway.engine.uv import UvEngine
from gateway.errors import Fault
from gateway.events import (
    Accepted,
    AcceptPaused,
    AcceptResumed,
    Address,
    Connected,
    ConnectFailed,
    Event,
    Finished,
    Received,
    TimedOut,
)

ENGINES: dict[str, Callable[[], Engine]] = {"uvloop": UvEngine, "io_uring": UringEngine}


def say(*words: object) -> None:
    """One line."""
    print(*words, flush=True)


def greet(engine: Engine, descriptor: int) -> None:
    """Tell each client our process id and close, until told to stop by SIGTERM."""
    engine.listen(socket.socket(fileno=descriptor))
    signal.signal(signal.SIGTERM, lambda *_: engine.stop())

    def deliver(batch: list[Event]) -> None:
        for event in batch:
            if isinstance(event, Accepted):
                engine.send(event.link, str(os.getpid()).encode())
                engine.close(event.link)

    say("ready")
    engine.run(deliver)
    say("stopped", engine.stats().links)


def starve(engine: Engine, descriptor: int) -> None:
    """Have descriptors for three clients and their upstreams, and hold clients; when no more come
    in, connect for each of them and use up the rest. At a byte from any of them close all, and from
    then on each that is accepted."""
    clock, _ = engine.pair()
    upstream = socket.create_server(("127.0.0.1", 0))
    target = Address(host="127.0.0.1", port=upstream.getsockname()[1])
    in_use = len(list(Path("/proc/self/fd").iterdir())) - 1     # less the one of this very look
    limit = in_use + 2 * 3 + SPARE
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    listener = engine.listen(socket.socket(fileno=descriptor))
    signal.signal(signal.SIGTERM, lambda *_: engine.stop())
    held: list[int] = []
    own: list[int] = []
    left: list[int] = []
    accepted = turns = 0
    letting_go = False

    def on_paused(event: AcceptPaused) -> None:
        nonlocal turns
        assert event.link == listener
        say("paused", event.fault.name)
        if not letting_go:
            turns = engine.turns  # type: ignore[attr-defined]
            own.extend(engine.connect(target) for _ in held)
            with contextlib.suppress(OSError):
                while True:
                    own.extend(engine.pair())
            with contextlib.suppress(OSError):
                left.append(os.dup(0))              # where an odd number was left
            engine.connect(target)
            engine.set_timer(clock, "look", engine.now() + 0.5)

    def deliver(batch: list[Event]) -> None:
        nonlocal accepted, letting_go
        for event in batch:
            if isinstance(event, Accepted):
                accepted += 1
                say("accepted", accepted)
                held.append(event.link)
                engine.read(event.link)
            elif isinstance(event, AcceptPaused):
                on_paused(event)
            elif isinstance(event, AcceptResumed):
                say("resumed")
            elif isinstance(event, Connected):
                say("connected")
            elif isinstance(event, ConnectFailed):
                assert event.fault is Fault.NO_DESCRIPTORS
                say("no descriptor to connect with")
            elif isinstance(event, TimedOut):
                say("turns", engine.turns - turns)  # type: ignore[attr-defined]
            elif isinstance(event, Received):
                letting_go = True
        while letting_go and (held or own):
            engine.close(own.pop() if own else held.pop())
        while letting_go and left:
            os.close(left.pop())

    say("ready")
    engine.run(deliver)
    say("stopped", engine.stats().links)


def signals(engine: Engine) -> None:
    """Print how long after each signal its handler ran, by the time that SIGUSR1's sender wrote."""
    bell, bell_end = socket.socketpair()
    link = engine.adopt(bell_end)
    engine.read(link)

    def ring(number: int, _: object) -> None:
        say("handled", number, time.monotonic())
        bell.send(bytes([number]))

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, ring)

    def deliver(batch: list[Event]) -> None:
        for event in batch:
            assert isinstance(event, Received)
            for number in event.data:
                say("delivered", number, time.monotonic())
                if number == signal.SIGTERM:
                    engine.stop()

    say("ready")
    engine.run(deliver)
    bell.close()
    say("stopped", engine.stats().links)


def raising(engine: Engine) -> None:
    """A handler that raises ends `run`, and so does Ctrl-C where nobody handles it."""

    class Bug(Exception):
        pass

    def handler(*_: object) -> None:
        raise Bug

    signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    link, _ = engine.pair()
    for kind in (Bug, KeyboardInterrupt):
        engine.set_timer(link, "running", engine.now())
        try:
            engine.run(lambda _: say("ready"))
        except kind:
            say("raised", kind.__name__)
    engine.stop()
    say("stopped", engine.stats().links)


def hang_up(engine: Engine) -> None:
    """End when the supervisor's end of standard input is closed: an adopted socket."""
    link = engine.adopt(socket.socket(fileno=os.dup(0)))
    engine.read(link)

    def deliver(batch: list[Event]) -> None:
        if any(isinstance(event, Finished) for event in batch):
            engine.stop()

    say("ready")
    engine.run(deliver)
    say("stopped", engine.stats().links)


def main() -> None:
    """See the module's docstring."""
    role, kind, *rest = sys.argv[1:]
    engine = ENGINES[kind]()
    if role == "greet":
        greet(engine, int(rest[0]))
    elif role == "starve":
        starve(engine, int(rest[0]))
    elif role == "signals":
        signals(engine)
    elif role == "raising":
        raising(engine)
    else:
        hang_up(engine)


if __name__ == "__main__":
    main()
