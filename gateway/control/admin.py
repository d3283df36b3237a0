"""The admin address: is it alive, is it ready, what did it count.

    GET /livez     200 while the supervisor's loop turns
    GET /readyz    200 while new sessions are taken, else 503
    GET /metrics   for Prometheus and OpenMetrics

Laws of this file:

- It changes nothing: what does is on the control socket. So it may be seen by whoever may see what
  it says, and binds where the table says.
- It runs in the supervisor, and never delays a worker. What it costs is limited: few connections
  at once, no request has content, and each head and each answer has its time.
- A probe is answered whoever else is connected: one connection too many closes the one that has
  waited for longest, and is not refused itself. An orchestrator that gets no answer would end a
  gateway which serves.
- Signals are the supervisor's: uvicorn is not let at them, nor does it write a log.
"""

import asyncio
import contextlib
import socket
import time
import traceback
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from gateway.control.report import Report

CONNECTIONS_MAX = 64
HEAD_LIMIT = 5.0              # seconds until the first head has come
ANSWER_LIMIT = 10.0           # seconds until an answer is taken, and the next head has come
QUIET = "critical"            # the least that uvicorn says

Exposition = Callable[[str], tuple[bytes, str]]


class Admin:
    """Serves one listening socket. `ready` and `exposition` are asked anew each time."""

    def __init__(
        self, listening: socket.socket, ready: Callable[[], bool], exposition: Exposition,
        report: Report,
    ) -> None:
        self._listening = listening
        self._ready = ready
        self._exposition = exposition
        self._report = report
        app = Starlette(
            routes=[
                Route("/livez", self._livez),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={Exception: self._failed},
        )
        self._server = _Server(uvicorn.Config(
            app, http=_Connection, ws="none", lifespan="off", log_config=None, log_level=QUIET,
            access_log=False, server_header=False, timeout_graceful_shutdown=1,
        ))
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Serve from here on."""
        self._serving = asyncio.get_running_loop().create_task(
            self._server.serve([self._listening])
        )

    async def close(self) -> None:
        """Stop, and wait a moment for what is under way."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving

    async def _livez(self, _request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def _readyz(self, _request: Request) -> Response:
        if self._ready():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", 503)

    async def _metrics(self, request: Request) -> Response:
        content, media_type = self._exposition(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type})

    async def _failed(self, _request: Request, error: Exception) -> Response:
        self._report.error("".join(traceback.format_exception(error)))
        return PlainTextResponse("a bug of the gateway; its log has the details\n", 500)


class _Server(uvicorn.Server):
    """uvicorn without a hand on signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None of them."""
        yield


class _Connection(H11Protocol):
    """uvicorn's connection with a time for everything: half a head would stay for ever."""

    _limit: asyncio.TimerHandle | None = None
    since = 0.0                         # when what it waits for now began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came: where there are too many, the one that has waited for longest goes."""
        super().connection_made(transport)
        self._expect_within(HEAD_LIMIT)
        there = [each for each in self.connections if isinstance(each, _Connection)]
        if len(there) > CONNECTIONS_MAX:
            min(there, key=lambda each: (each.is_answered, each.since)).cut()

    def data_received(self, data: bytes) -> None:
        """Bytes do not buy time; a whole head does."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._expect_within(ANSWER_LIMIT)

    def on_response_complete(self) -> None:
        """The answer is written, which does not mean taken."""
        super().on_response_complete()
        self._expect_within(ANSWER_LIMIT)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        if self._limit is not None:
            self._limit.cancel()

    @property
    def is_answered(self) -> bool:
        """Whether a request has come and its answer is not written."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expect_within(self, seconds: float) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self.since = time.monotonic()
        self._limit = self.loop.call_later(seconds, self.cut)

    def cut(self) -> None:
        """End it at once, whatever it has not taken."""
        self.connections.discard(self)
        self.transport.abort()
