"""A drain over two workers, as clients see it that were not written here (`websockets`): who is
told when, and what; and how the program ends.

Each client comes from an address of its own, by which it is known in the records and in the answers
of `gateway sessions`.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import ServerConnection, serve

from end_to_end.kit import Gateway, head, launch, route
from end_to_end.wire import PATIENCE

EACH = 8                      # idle clients, and busy ones: on two workers
DRAIN, ANSWER = 5, 1          # seconds of the drain, and of them for answers to the last Close
SPAN = DRAIN - ANSWER         # over which the farewells are spread
PACE = 0.05                   # seconds between two messages of one that is busy
REASON = "back soon"


@dataclass
class Client:
    """One session; `told_at` and what follows when it is over."""

    address: str
    path: str
    busy: bool
    talk: ClientConnection
    told_at: float = 0.0
    code: int = 0
    reason: str = ""

    async def live(self) -> None:
        """Until the gateway's Close: say something every so often, or nothing at all."""
        try:
            while True:
                if self.busy:
                    await self.talk.send("x")
                    await self.talk.recv()
                    await asyncio.sleep(PACE)
                else:
                    await self.talk.recv()
        except websockets.ConnectionClosed as closed:
            self.told_at = time.monotonic()
            if closed.rcvd is not None:
                self.code, self.reason = closed.rcvd.code, closed.rcvd.reason


class Service:
    """An echoing upstream; `codes` are those that it was told at the end of each session."""

    def __init__(self) -> None:
        self.codes: list[int | None] = []
        self.answers = 0
        self.port = 0
        self._moved = asyncio.Event()

    async def _echo(self, talk: ServerConnection) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in talk:
                await talk.send(message)
                self.answers += 1
                self._moved.set()
        await talk.wait_closed()
        self.codes.append(talk.close_code)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it serves."""
        async with serve(self._echo, "127.0.0.1", 0, compression=None) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            yield

    async def answered(self, count: int) -> None:
        """So many messages more."""
        target = self.answers + count
        async with asyncio.timeout(PATIENCE):
            while self.answers < target:
                self._moved.clear()
                await self._moved.wait()


async def come(gateway: Gateway, number: int, path: str, *, busy: bool) -> Client:
    """A session, which has had an answer."""
    address = f"127.0.8.{number + 1}"
    talk = await ws_connect(
        gateway.url(path), local_addr=(address, 0), compression=None, open_timeout=PATIENCE
    )
    await talk.send("first")
    assert await talk.recv() == "first"
    return Client(address, path, busy, talk)


def settings(port: int, *further: str) -> str:
    """Two routes to the service, of which one has a code and a reason of its own."""
    url, answer = f"ws://127.0.0.1:{port}", f'close_timeout = "{ANSWER}s"'
    return (
        head("workers = 2", *further) + route("ws", url, answer)
        + route("coded", url, answer, "drain_code = 1012", f'drain_reason = "{REASON}"')
    )


def workers_of(gateway: Gateway) -> dict[str, int]:
    """Which worker has the session of which client's address."""
    return {row["client"]: row["worker"] for row in gateway.ask("sessions")["sessions"]}


async def exit_code(gateway: Gateway) -> int:
    """Wait for it."""
    return await asyncio.to_thread(gateway.wait, DRAIN + PATIENCE)


def run(work: Coroutine[Any, Any, None]) -> None:
    """One test."""
    asyncio.run(asyncio.wait_for(work, 4 * PATIENCE))


def test_farewells_are_spread_and_the_idle_are_told_first(engine: str, tmp_path: Path) -> None:
    """Each worker tells its own one after another, over the whole time; each client gets code and
    reason of its route, the service 1001, and nobody is cut: 0."""

    async def body() -> None:
        service = Service()
        async with service.running():
            table = settings(service.port, f'drain = "{DRAIN}s"')
            with launch(table, tmp_path, engine=engine) as gateway:
                await drain(service, gateway)

    async def drain(service: Service, gateway: Gateway) -> None:
        clients = [
            await come(gateway, number, ("/ws", "/coded")[number % 2], busy=number >= EACH)
            for number in range(2 * EACH)
        ]
        lives = [asyncio.create_task(client.live()) for client in clients]
        await service.answered(3 * EACH)
        worker = await asyncio.to_thread(workers_of, gateway)
        assert sorted(worker) == sorted(client.address for client in clients)
        begun = time.monotonic()
        gateway.signal(signal.SIGTERM)
        await asyncio.gather(*lives)
        assert await exit_code(gateway) == 0
        told = {(client.path, client.code, client.reason) for client in clients}
        assert told == {("/ws", 1001, "gateway is going away"), ("/coded", 1012, REASON)}
        assert service.codes == [1001] * len(clients)
        assert Counter(one["cause"] for one in gateway.records) == {"drain": len(clients)}
        of_worker: dict[int, list[Client]] = defaultdict(list)
        for client in sorted(clients, key=lambda one: one.told_at):
            of_worker[worker[client.address]].append(client)
        for some in of_worker.values():
            order = [client.busy for client in some]
            assert order == sorted(order), "one that is busy was told before one that is idle"
            # No sooner than its place in the row says, however slow this machine is.
            for place, client in enumerate(some):
                assert client.told_at - begun >= SPAN * place / len(some)

    run(body())


def test_after_the_delay_it_drains_and_a_second_signal_cuts(engine: str, tmp_path: Path) -> None:
    """It accepts and serves for `drain_delay`, though it is not ready; then sessions are told. The
    second SIGTERM is obeyed at once: who is left is told and cut, 4."""

    async def body() -> None:
        service = Service()
        async with service.running():
            table = settings(service.port, 'drain = "600s"', 'drain_delay = "1s"')
            with launch(table, tmp_path, engine=engine) as gateway:
                await drain(service, gateway)

    async def drain(service: Service, gateway: Gateway) -> None:
        clients = [await come(gateway, number, "/ws", busy=False) for number in range(EACH)]
        lives = [asyncio.create_task(client.live()) for client in clients]
        gateway.signal(signal.SIGTERM)
        await asyncio.to_thread(gateway.said, "not ready")
        late = await come(gateway, EACH, "/ws", busy=False)
        clients.append(late)
        lives.append(asyncio.create_task(late.live()))
        await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
        # The first of each worker is told at once, the others in a hundred seconds and more.
        left = [client for client in clients if not client.told_at]
        assert EACH + 1 - 2 <= len(left) <= EACH
        await asyncio.to_thread(gateway.record, cause="drain")
        gateway.signal(signal.SIGTERM)
        assert await exit_code(gateway) == 4
        await asyncio.gather(*lives)
        assert {client.code for client in clients} == {1001}
        causes = Counter(one["cause"] for one in gateway.records)
        assert set(causes) == {"drain", "killed"}
        assert causes["killed"] >= EACH - 1

    run(body())
