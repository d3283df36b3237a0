"""The control socket: takes the commands' requests and hands them to who can do them.

It reads lines and writes lines; what a request comes to is decided by `Steered`, which the
supervisor's steering is. The words are in control_words.py and docs/control.md.

Laws of this file:

- One request after another on each connection, so that answers need no numbers. A connection that
  says nothing costs one descriptor, there are at most `CONNECTIONS_MAX`, and one more closes that
  which has been idle for longest: nobody locks the operator out by doing nothing.
- Nobody is waited for without a limit: not for a request, not until an answer is taken, and least
  of all at the end.
- A request never ends the gateway by an exception: a bug is said in the log and in the answer.
- A place that the table names must be had (`ListenError`). The usual place is a favour: without it
  the gateway serves all the same, and says what is missing.
"""

import asyncio
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.control import listening
from gateway.control.control_words import (
    REQUEST_MAX,
    BadRequest,
    Message,
    encode,
    read_request,
    usual_places,
)
from gateway.control.listening import Bound
from gateway.control.report import Report
from gateway.errors import ListenError
from gateway.events import Address
from gateway.table import GatewaySettings, Listener

Listen = Callable[[Listener], Bound]     # gives a listening socket, or raises ListenError

CONNECTIONS_MAX = 32
FOLDER_MODE = 0o700
IDLE_LIMIT = 30.0             # seconds without a whole request, or in which no answer is taken
LAST_WORDS = 1.0              # seconds that answers may take to get out at the end


class Steered(Protocol):
    """What can be asked of a running gateway; an answer's "is" is the request's own word."""

    def status(self) -> Message:
        """How it is."""

    async def sessions(self, route: str, limit: int) -> Message:
        """Live sessions, the oldest first."""

    async def close_session(self, session: str, code: int, reason: str) -> Message:
        """End one session."""

    async def reload(self) -> Message:
        """Read the table again, and go by it."""

    async def plan(self) -> Message:
        """What a reload would change."""

    def drain(self) -> Message:
        """Begin to end."""

    async def ended(self) -> Message:
        """Wait until every worker has ended."""


def bind(
    settings: GatewaySettings, environment: Mapping[str, str], listen: Listen = listening.bind
) -> tuple[Bound | None, str]:
    """The socket to listen on, and a warning where the usual place cannot be had.

    Raises `ListenError` for a place that the table names.
    """
    if settings.control is None:
        return None, ""
    if settings.control:
        return listen(_at(Path(settings.control))), ""
    place = usual_places(environment)[0]
    try:
        # The folder of the machine, or of a user's gateway, need not be there yet.
        place.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        return listen(_at(place)), ""
    except ListenError as error:
        why = str(error)
    except OSError as error:
        why = f"cannot make {place.parent}: {(error.strerror or str(error)).lower()}"
    return None, (
        f"no control socket: {why}. Commands such as `gateway status` cannot reach this gateway; "
        'name another place by control = "FILE" under [gateway]'
    )


def _at(place: Path) -> Listener:
    return Listener(address=Address(path=str(place)), mode=0o600, backlog=64)


@dataclass(eq=False, slots=True)
class _Connection:
    """One command that is connected."""

    task: asyncio.Task[None]
    writer: asyncio.StreamWriter
    idle_since: float                    # of time.monotonic(): a loop counts in milliseconds
    is_answered: bool = False            # what it asked is being done: this is never cut short

    def close(self) -> None:
        """End it when what was said is out."""
        self.writer.close()

    def cut(self) -> None:
        """End it at once, whatever it has not taken."""
        self.writer.transport.abort()
        self.task.cancel()


class ControlSocket:
    """Serves one listening socket. `start`, then `close`; the file is its binder's."""

    def __init__(self, bound: Bound, steered: Steered, report: Report) -> None:
        self._bound = bound
        self._steered = steered
        self._report = report
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        """Listen from here on."""
        self._server = await asyncio.start_unix_server(
            self._serve, sock=self._bound.socket, limit=REQUEST_MAX
        )

    async def close(self) -> None:
        """Hear no more; who is being answered gets a moment more, and no longer."""
        if self._server is not None:
            self._server.close()
        answered = [each.task for each in self._connections if each.is_answered]
        if answered:
            await asyncio.wait(answered, timeout=LAST_WORDS)
        for end in (_Connection.close, _Connection.cut):
            for each in self._connections:
                end(each)
            if self._connections:
                tasks = [each.task for each in self._connections]
                await asyncio.wait(tasks, timeout=LAST_WORDS)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection, to its end."""
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(task, writer, time.monotonic())
        has_room = self._make_room()
        self._connections.add(connection)
        try:
            if has_room:
                await self._converse(reader, connection)
            else:
                writer.write(encode(_error("too many commands are connected; end some")))
            writer.close()
            async with asyncio.timeout(LAST_WORDS):
                await writer.wait_closed()
        except (OSError, asyncio.CancelledError):
            pass                         # the command has gone or takes nothing, or we go
        finally:
            writer.transport.abort()
            self._connections.discard(connection)

    def _make_room(self) -> bool:
        """Whether one more may connect; the oldest idle one makes way for it."""
        if len(self._connections) < CONNECTIONS_MAX:
            return True
        idle = [each for each in self._connections if not each.is_answered]
        if not idle:
            return False
        oldest = min(idle, key=lambda each: each.idle_since)
        self._connections.remove(oldest)
        oldest.cut()
        return True

    async def _converse(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        writer = connection.writer
        while True:
            try:
                async with asyncio.timeout(IDLE_LIMIT):
                    line = await reader.readline()
            except ValueError:           # longer than the limit: where it ends is not known
                writer.write(encode(_error(f"a request is at most {REQUEST_MAX} bytes")))
                return
            if not line.endswith(b"\n"):
                return
            connection.is_answered = True
            try:
                await self._answer(line, writer)
            finally:
                connection.is_answered = False
                connection.idle_since = time.monotonic()
            async with asyncio.timeout(IDLE_LIMIT):
                await writer.drain()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """Do what one line asks, or say why not."""
        try:
            await self._obey(line, writer)
        except BadRequest as error:
            writer.write(encode(_error(str(error))))
        except OSError:
            raise                        # of the command, which has gone
        except Exception:  # noqa: BLE001 - a bug must not take the gateway with it
            self._report.error(traceback.format_exc())
            writer.write(encode(_error("a bug of the gateway; its log has the details")))

    async def _obey(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        name, values = read_request(line)
        steered = self._steered
        match name:
            case "status":
                answer = steered.status()
            case "sessions":
                answer = await steered.sessions(**values)
            case "close":
                answer = await steered.close_session(**values)
            case "reload":
                answer = await (steered.plan() if values["plan"] else steered.reload())
            case _:
                answer = steered.drain()
                if values["wait"]:
                    writer.write(encode(answer))
                    answer = await steered.ended()
        writer.write(encode(answer))


def _error(text: str) -> Message:
    return {"is": "error", "error": text}
