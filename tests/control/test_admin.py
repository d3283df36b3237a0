"""Metrics and the admin address: what is counted is what is shown, in words that are bounded."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any, Self

import h11
import pytest
import uvloop
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from gateway.control import admin
from gateway.control.admin import Admin
from gateway.control.board import Board
from gateway.control.counters import Counters
from gateway.control.metrics import Facts, exposition
from gateway.control.report import Report
from gateway.control.shared import Cell, SharedMemory, endpoint_name
from gateway.events import AccessRecord, Cause, LegCounts

FACTS = Facts(
    version="1.2.3", engine="uvloop", ready=True, workers={0: "serving", 1: "starting"},
    restarts=2, reloads={"done": 3, "failed": 1}, reloaded=1e9,
    predecessor_sessions=9,
)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """Memory of its own."""
    one = SharedMemory(SharedMemory.create())
    yield one
    one.close()


def counted(memory: SharedMemory) -> Board:
    """Two workers that have seen something."""
    board = Board(memory)
    slots = board.slots(["chat", "live"], [endpoint_name("rooms", "10.0.0.1:9000")])
    for worker in (0, 1):
        board.begin(worker)
        counters = Counters(memory, worker, slots)
        counters.connections_are(5)
        counters.sessions_are(3, "chat", 2)
        counters.began("chat")
        counters.begun_on("rooms", "10.0.0.1:9000")
        counters.add(Cell.ACCEPTED, 7)
        counters.beat(1, 1500)
        counters.record(AccessRecord(
            session="a", client="192.0.2.77:1", peer="192.0.2.77:1", listener="l", route="chat",
            path="/secret", status=101, cause=Cause.DRAIN.value,
            counts=(LegCounts(bytes_in=100, messages=4, copied=10, spliced=90, round_trip=0.5),
                    LegCounts(bytes_in=7, messages=1, copied=7)),
        ))
        counters.record(AccessRecord(
            session="b", client="c", peer="p", listener="l", route="live", status=418,
        ))
    return board


def samples(text: str, families: Any = text_string_to_metric_families) -> dict[str, float]:
    """Every sample by its name and labels."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())):
            sample.value
        for family in families(text) for sample in family.samples
    }


def test_metrics_are_what_workers_counted(memory: SharedMemory) -> None:
    """Sums over workers; what one of them says of itself has its number."""
    content, media_type = exposition(FACTS, counted(memory), "text/plain")
    assert media_type.startswith("text/plain")
    found = samples(content.decode())
    assert {key: value for key, value in found.items() if value and "version" not in key} == {
        "gateway_ready": 1,
        "gateway_worker_up worker=0": 1,
        "gateway_worker_lag_seconds worker=0": 0.0015,
        "gateway_worker_lag_seconds worker=1": 0.0015,
        "gateway_worker_sessions worker=0": 3,
        "gateway_worker_sessions worker=1": 3,
        "gateway_worker_restarts_total": 2,
        "gateway_reloads_total outcome=done": 3,
        "gateway_reloads_total outcome=failed": 1,
        "gateway_table_loaded_timestamp_seconds": 1e9,
        "gateway_predecessor_sessions": 9,
        "gateway_connections_open": 10,
        "gateway_connections_accepted_total": 14,
        "gateway_handshakes_total status=101": 2,
        "gateway_handshakes_total status=4xx": 2,
        "gateway_bytes_total direction=up": 200,
        "gateway_bytes_total direction=down": 14,
        "gateway_messages_total direction=up": 8,
        "gateway_messages_total direction=down": 2,
        "gateway_carried_bytes_total mode=copied": 34,
        "gateway_carried_bytes_total mode=spliced": 180,
        "gateway_round_trip_seconds_count side=client": 2,
        "gateway_round_trip_seconds_sum side=client": 1.0,
        "gateway_loop_lag_seconds_count": 2,
        "gateway_loop_lag_seconds_sum": 0.003,
        "gateway_sessions_open route=chat": 4,
        "gateway_sessions_total route=chat": 2,
        "gateway_requests_refused_total route=live": 2,
        "gateway_sessions_ended_total cause=drain route=chat": 2,
        "gateway_endpoint_sessions endpoint=10.0.0.1:9000 upstream=rooms": 2,
    }


def test_nothing_of_a_client_is_in_them(memory: SharedMemory) -> None:
    """No address, no path."""
    content, _ = exposition(FACTS, counted(memory), "")
    assert b"192.0.2.77" not in content
    assert b"secret" not in content


def test_open_metrics_for_who_asks(memory: SharedMemory) -> None:
    """The other format, with the same samples."""
    board = counted(memory)
    content, media_type = exposition(FACTS, board, "application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    plain, _ = exposition(FACTS, board, "")
    assert samples(content.decode(), open_families) == samples(plain.decode())


class Asked:
    """An admin address in this loop, and what it is told to say."""

    def __init__(self) -> None:
        self.ready = True
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        self.report = Report(output=self.nowhere, errors=self.nowhere)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.admin = Admin(self.listening, lambda: self.ready, self.exposition, self.report)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Fails where it is asked for it."""
        assert accept != "bug"
        return accept.encode(), "text/plain"

    async def get(self, path: str, accept: str = "", method: str = "GET") -> tuple[int, bytes]:
        """Status and content of an answer."""
        port = self.listening.getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
            .encode()
        )
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target=path, headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(await reader.read())
        parser.receive_data(b"")
        writer.close()
        await writer.wait_closed()
        answer = parser.next_event()
        assert isinstance(answer, h11.Response)
        content = b""
        while isinstance(event := parser.next_event(), h11.Data):
            content += event.data
        return answer.status_code, content

    async def __aenter__(self) -> Self:
        self.admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.admin.close()
        self.report.close()
        os.close(self.nowhere)


def test_the_admin_address() -> None:
    """Alive, ready or not, metrics; nothing else, and nothing is changed by a request."""

    async def ask() -> None:
        async with Asked() as asked:
            assert await asked.get("/livez") == (200, b"alive\n")
            assert await asked.get("/readyz") == (200, b"ready\n")
            asked.ready = False
            assert await asked.get("/readyz") == (503, b"not ready\n")
            assert await asked.get("/livez") == (200, b"alive\n")
            assert await asked.get("/metrics", accept="x") == (200, b"x")
            assert (await asked.get("/"))[0] == 404
            assert (await asked.get("/metrics", method="POST"))[0] == 405

    uvloop.run(ask())


def test_a_bug_is_said_and_does_not_end_it(capfd: pytest.CaptureFixture[str]) -> None:
    """500 with a fixed sentence, the traceback in the log, and uvicorn says nothing itself."""

    async def ask() -> None:
        async with Asked() as asked:
            status, content = await asked.get("/metrics", accept="bug")
            assert (status, content) == (500, b"a bug of the gateway; its log has the details\n")
            assert asked.report.waiting
            assert (await asked.get("/livez"))[0] == 200

    uvloop.run(ask())
    assert capfd.readouterr() == ("", "")


async def half_a_request(asked: Asked) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client whose head does not go on."""
    port = asked.listening.getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /liv")
    return reader, writer


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the other side has cut it."""
    with contextlib.suppress(ConnectionResetError):
        while await asyncio.wait_for(reader.read(1 << 20), 20):
            pass
    await give_up(writer)


async def give_up(writer: asyncio.StreamWriter) -> None:
    """End a connection from this side."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def test_slow_clients_do_not_fail_the_probes() -> None:
    """However many there are, the newest is served, and the oldest goes."""

    async def ask() -> None:
        async with Asked() as asked:
            slow = [await half_a_request(asked) for _ in range(admin.CONNECTIONS_MAX + 5)]
            for _ in range(3):
                assert await asked.get("/livez") == (200, b"alive\n")
                assert await asked.get("/readyz") == (200, b"ready\n")
            await cut(*slow[0])
            assert not slow[-1][0].at_eof()
            for _, writer in slow[1:]:
                await give_up(writer)

    uvloop.run(ask())


def test_half_a_head_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the second head of a connection."""
    monkeypatch.setattr(admin, "HEAD_LIMIT", 0.01)
    monkeypatch.setattr(admin, "ANSWER_LIMIT", 0.01)

    async def ask() -> None:
        async with Asked() as asked:
            await cut(*await half_a_request(asked))
            reader, writer = await half_a_request(asked)
            writer.write(b"ez HTTP/1.1\r\nHost: x\r\n\r\nGET /liv")
            await cut(reader, writer)

    uvloop.run(ask())


def test_who_takes_no_answer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does the end wait for it."""
    monkeypatch.setattr(admin, "ANSWER_LIMIT", 0.01)

    async def ask() -> None:
        async with Asked() as asked:
            port = asked.listening.getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {'x' * 60_000}\r\n\r\n"
            writer.write(request.encode() * 200)
            lost = asyncio.create_task(writer.drain())
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(lost, 20)
            await cut(reader, writer)

    uvloop.run(ask())
