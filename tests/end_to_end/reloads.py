"""For tests of reloads: a load whose streams are checked, and a volume as Kubernetes mounts it."""

import asyncio
import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from control.volume import config_map
from end_to_end.kit import START_LIMIT, Gateway, launch, on_engine
from end_to_end.wire import PATIENCE

SIZES = [0, 1, 125, 126, 1000, 70_000, 300_000]


class Load:
    """Clients that send numbered messages and look whether each comes back, in its turn.

    A session that ends, or a message that is not the next one, is kept and raised by `check`. A
    client that `returns` opens another session where one is told 1001.
    """

    def __init__(self, url: str, clients: int, *, returns: bool = False) -> None:
        self.messages = 0
        self.returned = 0
        self._returns = returns
        self._url = url
        self._clients = clients
        self._failures: list[BaseException] = []
        self._stopped = threading.Event()
        self._busy = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.check()

    def wait_busy(self) -> None:
        """Wait until every client has had an answer."""
        assert self._busy.wait(PATIENCE)

    def lasted(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._failures:
            raise self._failures[0]

    def stop(self) -> None:
        """Let every client finish, and close as it should."""
        self._stopped.set()
        self._thread.join()
        self.check()

    async def _run(self) -> None:
        answered: set[int] = set()
        await asyncio.gather(*(self._one(number, answered) for number in range(self._clients)))

    async def _one(self, number: int, answered: set[int]) -> None:
        chance = random.Random(number)
        try:
            while not self._stopped.is_set():
                try:
                    await self._session(number, chance, answered)
                except ConnectionClosed as closed:
                    if not self._returns or closed.rcvd is None or closed.rcvd.code != 1001:
                        raise
                    self.returned += 1
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self._failures.append(error)
            self._busy.set()

    async def _session(self, number: int, chance: random.Random, answered: set[int]) -> None:
        async with connect(self._url, proxy=None, max_size=None, compression=None) as client:
            while not self._stopped.is_set():
                size = chance.choice(SIZES)
                text = f"{number} {self.messages} " + "x" * size
                await client.send(text)
                got = await asyncio.wait_for(client.recv(), PATIENCE)
                assert got == text, f"client {number}: another message than was sent"
                self.messages += 1
                answered.add(number)
                if len(answered) == self._clients:
                    self._busy.set()
                await asyncio.sleep(0.01)


class Edits:
    """Writes one table after another, at one stroke each, until it is left; whoever is told by
    `signalled` gets a SIGHUP with each."""

    def __init__(
        self, gateway: Gateway, tables: Sequence[str], engine: str, seconds: float
    ) -> None:
        self.signalled = [gateway.process.pid]
        self.count = 0
        self._write = [partial(write, gateway, table, engine) for table in tables]
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Write no more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._write[self.count % len(self._write)]()
            self.count += 1
            for pid in list(self.signalled):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)


def write(gateway: Gateway, table: str, engine: str) -> None:
    """Write another table, at one stroke."""
    draft = gateway.folder / "draft"
    draft.write_text(on_engine(table, engine))
    draft.rename(gateway.folder / "routes.toml")


@contextlib.contextmanager
def successor(gateway: Gateway, *, signalled: bool = False) -> Iterator[int]:
    """Have it replaced; the new program's process, which is ended afterwards."""
    count = len([line for line in gateway.err.lines if '"serving"' in line])
    if not signalled:
        gateway.signal(signal.SIGUSR2)

    def there() -> bool:
        return any('"the new program serves' in line for line in gateway.err.lines)

    assert gateway.err.wait(there, START_LIMIT), gateway.messages
    lines = [line for line in gateway.err.lines if '"serving"' in line]
    assert len(lines) == count + 1
    found = re.search(r'"pid":(\d+)', lines[-1])
    assert found
    pid = int(found[1])
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}").exists() and not gateway.err.ended:
            assert time.monotonic() < until, "the new program does not end"
            gateway.err.wait(lambda: gateway.err.ended, 0.05)


@contextlib.contextmanager
def served_config_map(
    folder: Path, table: str, engine: str
) -> Iterator[tuple[Gateway, Callable[[str], None]]]:
    """A gateway on a table in a volume as Kubernetes mounts it, and what swaps its content."""
    def filled(text: str) -> str:
        return on_engine(text, engine)

    write = config_map(folder, filled(table))
    with launch(table, folder, engine=engine, write=False) as gateway:
        yield gateway, lambda text: write(filled(text))


def sockets_of(pid: int) -> int:
    """How many sockets a process has open; pipes come as large messages do."""
    return sum(
        str(file.readlink()).startswith("socket:") for file in Path(f"/proc/{pid}/fd").iterdir()
    )


def listening_now(gateway: Gateway) -> list[str]:
    """Where it says that it listens."""
    found: list[str] = gateway.ask("status")["listening"]
    return found
