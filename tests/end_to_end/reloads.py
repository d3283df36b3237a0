"""For tests of reloads: a load whose streams are checked, and a volume as Kubernetes mounts it."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from websockets.asyncio.client import connect

from control.volume import config_map
from end_to_end.kit import Gateway, launch, on_engine
from end_to_end.wire import PATIENCE

SIZES = [0, 1, 125, 126, 1000, 70_000, 300_000]


class Load:
    """Clients that send numbered messages and look whether each comes back, in its turn.

    A session that ends, or a message that is not the next one, is kept and raised by `check`.
    """

    def __init__(self, url: str, clients: int) -> None:
        self.messages = 0
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
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self._failures.append(error)
            self._busy.set()


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


def listening_now(gateway: Gateway) -> list[str]:
    """Where it says that it listens."""
    found: list[str] = gateway.ask("status")["listening"]
    return found
