"""Workers come and go under load: what clients see of it, by clients that were not written here.

Each stream is numbered messages through a gateway to an echoing server, both of `websockets`. A
stream may end; it may never lose, double or reorder a message before its end, and only the streams
of a worker that was killed may end without a Close.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import websockets
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import Server, ServerConnection, serve

from end_to_end.kit import COMMAND, ENGINES, START_LIMIT, Gateway, head, launch, route, stopped
from end_to_end.wire import PATIENCE, connect, upgrade, wait_for
from gateway.balance import ALLOWANCE_MIN

STREAMS = 12
WINDOW = 8                    # messages of a stream that are on their way


@dataclass
class Stream:
    """One client's messages; `end` is how it ended: its close code, or "cut"."""

    number: int
    url: str
    answered: int = 0
    wrong: str = ""
    end: str = ""
    stop: bool = False
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Send numbers and expect them again, until told to stop or ended."""
        try:
            async with ws_connect(self.url, open_timeout=PATIENCE, compression=None) as client:
                sent = 0
                while not self.stop or self.answered < sent:
                    while not self.stop and sent - self.answered < WINDOW:
                        await client.send(self.text(sent))
                        sent += 1
                    got = await asyncio.wait_for(client.recv(), PATIENCE)
                    if got != self.text(self.answered):
                        self.wrong = f"got {got!r:.40}, expected number {self.answered}"
                        return
                    self.answered += 1
                    self.moved.set()
                self.end = "stopped"
        except websockets.ConnectionClosed as closed:
            self.end = str(closed.rcvd.code) if closed.rcvd else "cut"
        except (OSError, websockets.InvalidHandshake, TimeoutError) as error:
            self.wrong = f"{type(error).__name__}: {error}"
        finally:
            self.moved.set()

    def text(self, number: int) -> str:
        """Of different lengths, so that frames and reads do not fall together."""
        return f"{self.number} {number} " + "x" * (number * 7919 % 3000)


class Crowd:
    """Streams in a thread of their own, beside the test; and the server behind the gateway."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.streams: list[Stream] = []
        self._tasks: list[asyncio.Task[None]] = []    # by the stream's number
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._server = self._do(self._serve())
        self.port: int = next(iter(self._server.sockets)).getsockname()[1]

    def _do(self, work):  # type: ignore[no-untyped-def]  # whatever it gives
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE * 2)

    async def _serve(self) -> Server:
        async def echo(connection: ServerConnection) -> None:
            with contextlib.suppress(websockets.ConnectionClosed):
                async for message in connection:
                    await connection.send(message)

        return await serve(echo, "127.0.0.1", 0, compression=None)

    def come(self, url: str, count: int = STREAMS) -> list[Stream]:
        """More streams, each of which has had an answer."""
        new = [Stream(len(self.streams) + number, url) for number in range(count)]

        async def begin() -> None:
            self._tasks += [self.loop.create_task(stream.run()) for stream in new]
            async with asyncio.timeout(PATIENCE):
                for stream in new:
                    await stream.moved.wait()

        self._do(begin())
        self.streams += new
        return new

    def go_on(self, streams: list[Stream]) -> None:
        """Each of these gets some more answers."""

        async def wait() -> None:
            async with asyncio.timeout(PATIENCE):
                for stream in streams:
                    target = stream.answered + 3 * WINDOW
                    while stream.answered < target and not stream.end and not stream.wrong:
                        stream.moved.clear()
                        await stream.moved.wait()

        self._do(wait())
        assert [stream.end for stream in streams] == [""] * len(streams)

    def ended(self, streams: list[Stream]) -> list[str]:
        """Wait until all of these have ended, and say how."""
        tasks = [self._tasks[stream.number] for stream in streams]
        self._do(asyncio.wait(tasks, timeout=PATIENCE))
        return [stream.end for stream in streams]

    def stop(self) -> None:
        """End those that run, and look at all."""
        for stream in self.streams:
            stream.stop = True

        async def wait() -> None:
            await asyncio.wait_for(asyncio.gather(*self._tasks), PATIENCE)

        self._do(wait())
        assert [stream.wrong for stream in self.streams if stream.wrong] == []

    def close(self) -> None:
        """End everything."""

        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._server.close()
            await self._server.wait_closed()

        self._do(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    made = Crowd()
    yield made
    made.close()


@pytest.fixture(params=ENGINES)
def gateway(request: pytest.FixtureRequest, crowd: Crowd, tmp_path: Path) -> Iterator[Gateway]:
    """Two workers, in front of the crowd's server."""
    table = head("workers = 2", 'drain = "8s"') + route(
        "ws", f"ws://127.0.0.1:{crowd.port}", 'close_timeout = "2s"'
    )
    with launch(table, tmp_path, engine=request.param) as started:
        yield started
        for pid in programs(started)[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        started.err.wait(lambda: started.err.ended, PATIENCE if programs(started)[1:] else 0)


def programs(gateway: Gateway) -> list[int]:
    """The supervisors that have said that they serve: it, and those that replaced it."""
    lines = [line for line in list(gateway.err.lines) if '"serving"' in line]
    return [json.loads(line)["pid"] for line in lines]


def by_worker(gateway: Gateway) -> dict[int, int]:
    """How many sockets each worker has: those with sessions have more."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in gateway.workers}


def said(gateway: Gateway, words: str) -> None:
    there = gateway.err.wait(lambda: words in gateway.messages, PATIENCE)
    assert there, gateway.messages


def test_a_killed_worker_takes_only_its_own_sessions(gateway: Gateway, crowd: Crowd) -> None:
    """Cut, not closed: what stood in it must not look whole. Whoever comes next is served."""
    streams = crowd.come(gateway.url())
    counts = by_worker(gateway)
    victim = max(counts, key=lambda pid: counts[pid])
    os.kill(victim, signal.SIGKILL)
    said(gateway, "a worker died")
    new = crowd.come(gateway.url())
    cut = [stream for stream in streams if stream.end]
    assert {stream.end for stream in cut} <= {"cut"}
    crowd.go_on([stream for stream in streams if not stream.end] + new)
    assert 0 < len(cut) <= STREAMS
    crowd.stop()
    assert {stream.end for stream in new} == {"stopped"}


def test_a_stopped_worker_holds_up_nobody_who_comes(gateway: Gateway, crowd: Crowd) -> None:
    """The sockets are shared: the other one accepts. What stood in it goes on when it does."""
    streams = crowd.come(gateway.url())
    with stopped(gateway.workers[0]):
        new = crowd.come(gateway.url())
        crowd.go_on(new)
    crowd.go_on(streams + new)
    crowd.stop()
    assert {stream.end for stream in crowd.streams} == {"stopped"}


def test_a_stopped_worker_is_not_waited_for(gateway: Gateway) -> None:
    """It has the fewest connections. Far more come than the balance lets one worker have beyond
    it, and all are accepted before it is found hanging and killed."""
    with contextlib.ExitStack() as come, stopped(gateway.workers[0]):
        for _ in range(4 * ALLOWANCE_MIN):
            wire = come.enter_context(gateway.connect())
            wire.send(upgrade())
            assert wire.read_head().status == 101
        assert "a worker hangs" not in gateway.messages


def test_a_drain_tells_everybody(gateway: Gateway, crowd: Crowd) -> None:
    """1001 to each, spread over the time; nothing is lost before, and nothing is cut."""
    streams = crowd.come(gateway.url())
    gateway.signal(signal.SIGTERM)
    assert crowd.ended(streams) == ["1001"] * STREAMS
    assert gateway.wait() == 0
    crowd.stop()
    assert [record["cause"] for record in gateway.records] == ["drain"] * STREAMS


def test_replace_loses_nobody(gateway: Gateway, crowd: Crowd) -> None:
    """Old sessions are told, clients that come at any moment are served, and there is no gap."""
    streams = crowd.come(gateway.url())
    gateway.signal(signal.SIGUSR2)
    while not any('"the new program serves' in line for line in list(gateway.err.lines)):
        crowd.come(gateway.url(), 2)
    late = crowd.come(gateway.url())
    assert crowd.ended(streams) == ["1001"] * STREAMS
    assert gateway.process.wait(PATIENCE) == 0
    crowd.go_on(late)
    crowd.stop()
    assert {stream.end for stream in crowd.streams} <= {"1001", "stopped"}
    (new,) = programs(gateway)[1:]
    os.kill(new, signal.SIGTERM)
    assert gateway.err.wait(lambda: gateway.err.ended, PATIENCE)


def test_without_a_supervisor_sessions_are_told(gateway: Gateway, crowd: Crowd) -> None:
    """It was killed: its workers drain, and nobody accepts any more."""
    streams = crowd.come(gateway.url())
    gateway.process.kill()
    assert crowd.ended(streams) == ["1001"] * STREAMS
    assert gateway.err.wait(lambda: gateway.err.ended, PATIENCE), "a worker is still there"
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()
    crowd.stop()


def test_of_two_that_start_together_one_serves(tmp_path: Path) -> None:
    """On one port and one Unix socket; the other is refused, and takes nothing with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "both.toml"
    path.write_text(
        f'[gateway]\nlisten = ["127.0.0.1:{port}", "unix:both.sock"]\ncontrol = "off"\n'
        "workers = 1\n" + route("echo", "builtin:echo")
    )
    both = [
        subprocess.Popen([*COMMAND, "--routes", str(path)], stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        wait_for(lambda: any(one.poll() is not None for one in both), seconds=START_LIMIT)
        refused, other = sorted(both, key=lambda one: one.poll() is None)
        assert refused.returncode == 3
        assert other.stderr
        assert " serving " in other.stderr.readline()
        for address in (("127.0.0.1", port), str(tmp_path / "both.sock")):
            with connect(address) as client:
                client.send(upgrade("/echo"))
                assert client.read_head().status == 101
        other.terminate()
        assert other.wait(PATIENCE) == 0
        assert not (tmp_path / "both.sock").exists()
    finally:
        for one in both:
            one.kill()
            one.communicate()


def test_two_gateways_do_not_share_an_address(gateway: Gateway, tmp_path: Path) -> None:
    """The second one is refused, and the first one is not disturbed."""
    path = tmp_path / "second.toml"
    path.write_text(
        f'[gateway]\nlisten = ["127.0.0.1:{gateway.port}"]\n' + route("echo", "builtin:echo")
    )
    done = subprocess.run(
        [*COMMAND, "--routes", str(path)], capture_output=True, text=True, timeout=START_LIMIT
    )
    assert done.returncode == 3
    with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE):
        pass
