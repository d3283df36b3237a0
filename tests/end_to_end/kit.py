"""The gateway as a process: started on a table, asked nothing but what an operator could ask.

`launch` starts it and waits for the line that names its addresses, collects its access records
from stdout and its messages from stderr, and at the end ends it, if the test has not, and fails
if it did not end well or had an exception to show. All listeners use port 0.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from end_to_end.wire import PATIENCE, Head, Upstream, Wire, connect, switching, upgrade

COMMAND = [sys.executable, "-m", "gateway"]
ENGINES = ["uvloop", "io_uring"]
FORMS = ["uvloop", "io_uring:readiness", "io_uring:completions"]  # of relays; see `on_engine`
RUNNING: list["Gateway"] = []  # for the report of a test that fails
START_LIMIT = 30.0  # seconds; a machine that runs other things besides is slow to import

Record = dict[str, Any]
Starter = Callable[..., "Gateway"]


class _Lines:
    """The lines of a pipe, read by a thread, for which a test can wait."""

    def __init__(self, pipe: IO[str]) -> None:
        self.lines: list[str] = []
        self.ended = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def wait(self, found: Callable[[], bool], seconds: float) -> bool:
        """True as soon as `found` says so; False at the end of the time or of the pipe."""
        end = time.monotonic() + seconds
        with self._news:
            while not found():
                left = end - time.monotonic()
                if self.ended or left <= 0:
                    return found()
                self._news.wait(left)
        return True

    def join(self) -> None:
        """Wait for the end of the pipe."""
        self._thread.join(PATIENCE)


@dataclass
class Bound:
    """One address that the gateway listens on, as its start line has it."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def address(self) -> tuple[str, int] | str:
        """What `wire.connect` takes."""
        return self.path or (self.host, self.port)


def bound_addresses(line: str) -> list[Bound]:
    """The addresses of a start line: "127.0.0.1:8080", "[::1]:8080", "unix:/run/x.sock"."""
    found = []
    pattern = r"unix:(/[^\s,\"]+)|\[([0-9a-f:]+)\]:(\d+)|\b(\d+\.\d+\.\d+\.\d+):(\d+)"
    for path, six, six_port, four, four_port in re.findall(pattern, line):
        port = six_port or four_port
        found.append(Bound(path=path) if path else Bound(host=six or four, port=int(port)))
    return found


class Gateway:
    """A running gateway. `bound` are its addresses in the order of the table's listeners."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdout and process.stderr
        self.process = process
        self.folder = folder
        self.out = _Lines(process.stdout)
        self.err = _Lines(process.stderr)
        self.bound: list[Bound] = []
        self.scheme = "ws"                   # "wss" where the first listener has TLS

    # --- Addresses ---

    @property
    def port(self) -> int:
        """The port of the first listener."""
        return self.bound[0].port

    def url(self, path: str = "/ws", scheme: str = "") -> str:
        """The URL of a path on the first listener."""
        return f"{scheme or self.scheme}://127.0.0.1:{self.port}{path}"

    def connect(self, listener: int = 0) -> Wire:
        """A client's connection."""
        return connect(self.bound[listener].address)

    # --- What it says ---

    def wait_started(self, listeners: int) -> None:
        """Wait for the line that names this many addresses."""

        def started() -> bool:
            for line in self.err.lines:
                found = re.search(r'listening[":=]+([^"\s]+)', line)
                if found:
                    self.bound = bound_addresses(found[1])
                    return len(self.bound) >= listeners or found[1].endswith("...")
            return False

        if not self.err.wait(started, START_LIMIT):
            self.process.kill()
            self.process.wait()
            self.err.join()
            raise AssertionError("the gateway did not start:\n" + "\n".join(self.err.lines))
        if len(self.bound) < listeners:          # too many for a line
            self.bound = bound_addresses(",".join(self.ask("status")["listening"]))

    @property
    def messages(self) -> str:
        """What stands on stderr so far."""
        return "\n".join(self.err.lines)

    @property
    def records(self) -> list[Record]:
        """The access records so far; there may be fewer than sessions that ended."""
        return [json.loads(line) for line in list(self.out.lines)]

    def record(self, since: int = 0, **wanted: object) -> Record:
        """Wait for an access record with these values, the last such of those from `since` on."""
        matching: list[Record] = []

        def there() -> bool:
            matching[:] = [
                record
                for record in self.records[since:]
                if all(record.get(key) == value for key, value in wanted.items())
            ]
            return bool(matching)

        assert self.out.wait(there, PATIENCE), f"no record has {wanted}:\n{self.out.lines[-5:]}"
        return matching[-1]

    # --- What it is asked ---

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that speaks to its control socket."""
        return run(name, "--control", str(self.folder / "control.sock"), *arguments)

    def ask(self, name: str, *arguments: str) -> dict[str, Any]:
        """The same, with the answer that it printed as JSON."""
        done = self.command(name, "--json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    @contextlib.contextmanager
    def unread_command(self) -> Iterator[None]:
        """A command that asks and asks and reads nothing, until neither side takes a byte more."""
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.connect(str(self.folder / "control.sock"))
            stuck.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while True:
                    stuck.send(b'{"do":"status"}\n' * 200)
            yield

    def said(self, text: str, count: int = 1) -> None:
        """Wait until so many of its messages have this text."""
        there = self.err.wait(
            lambda: sum(text in line for line in self.err.lines) >= count, PATIENCE
        )
        assert there, f"{text!r} was not said {count} times:\n{self.messages}"

    # --- What it takes ---

    @property
    def workers(self) -> list[int]:
        """The processes of its workers."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def memory(self) -> int:
        """Resident bytes (VmRSS) of its workers."""
        return sum(memory_of(pid) for pid in self.workers)

    def cpu(self) -> float:
        """CPU seconds that it and its workers have used so far, user and system."""
        ticks = 0
        for pid in (self.process.pid, *self.workers):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """How many files its workers have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers)

    # --- Its end ---

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code."""
        code = self.process.wait(seconds)
        self.out.join()
        self.err.join()
        return code

    def end(self) -> None:
        """End it if it runs, and look whether anything was wrong with it."""
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGINT)
            self.wait()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        assert "Traceback" not in self.messages, self.messages
        assert "AssertionError" not in self.messages, self.messages


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """This process stands still meanwhile, or until it is told SIGCONT within."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def launch(
    table: str, folder: Path, *, engine: str = "uvloop", files: int = 0, write: bool = True
) -> Iterator[Gateway]:
    """A gateway on this table, in which `{engine}` stands for the engine (`on_engine`).

    The table's file and the working directory are in `folder`. `files` limits the number of
    open files. Without `write` the file is there already.
    """
    text = on_engine(table, engine)
    path = folder / "routes.toml"
    if write:
        path.write_text(text)
    limit = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"] if files else []
    process = subprocess.Popen(
        [*limit, *COMMAND, "--routes", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"RUNTIME_DIRECTORY": str(folder)},  # for the control socket
    )
    gateway = Gateway(process, folder)
    RUNNING.append(gateway)
    try:
        gateway.wait_started(_listeners(text))
        yield gateway
    finally:
        RUNNING.remove(gateway)
        gateway.end()


def on_engine(table: str, engine: str) -> str:
    """The table with an engine, and behind a colon with the form of the ring's relays."""
    name, _, form = engine.partition(":")
    lines = f'engine = "{name}"' + (f'\nring = "{form}"' if form else "")
    return table.replace('engine = "{engine}"', lines)


def _listeners(text: str) -> int:
    """How many addresses a table listens on."""
    table = tomllib.loads(text)
    return len(table.get("gateway", {}).get("listen", [])) + len(table.get("listener", []))


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, for those that are short."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=START_LIMIT,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )


# --- Tables --------------------------------------------------------------------------------------


def head(*further: str, listen: Sequence[str] = ("127.0.0.1:0",)) -> str:
    """The `[gateway]` of a table, with these further lines. One worker, unless they say otherwise.
    """
    addresses = ", ".join(f'"{address}"' for address in listen)
    lines = [f"listen = [{addresses}]", 'engine = "{engine}"', 'log = "json"', *further]
    if not any(line.startswith("workers") for line in further):
        lines.append("workers = 1")
    return "\n".join(["[gateway]", *lines]) + "\n"


def route(name: str, upstream: str, *further: str, path: str = "") -> str:
    """One `[[route]]`, on the path of its name unless told otherwise."""
    lines = [f'name = "{name}"', f'path = "{path or "/" + name}"', f'upstream = "{upstream}"']
    return "\n".join(["[[route]]", *lines, *further]) + "\n"


# --- Both ends -----------------------------------------------------------------------------------


def open_ws(
    gateway: Gateway,
    upstream: Upstream,
    target: str = "/ws",
    *fields: str,
    early: bytes = b"",
    early_down: bytes = b"",
    answer: Sequence[bytes] = (),
) -> tuple[Wire, Wire]:
    """A session with a `ws` upstream, up to its 101: the client's end, the upstream's end.

    `early` goes out in one piece with the request, `early_down` with the upstream's 101, which
    has the field lines of `answer` besides its own.
    """
    client = gateway.connect()
    client.send(upgrade(target, *fields) + early)
    service = upstream.accept()
    service.send(switching(service.read_head(), *answer) + early_down)
    got = client.read_head()
    assert got.status == 101, got.raw
    return client, service


def open_raw(
    gateway: Gateway, upstream: Upstream, target: str = "/raw", *fields: str, early: bytes = b""
) -> tuple[Wire, Wire]:
    """A session with a raw upstream, up to the gateway's 101: client's end, upstream's end."""
    client = gateway.connect()
    client.send(upgrade(target, *fields) + early)
    service = upstream.accept()
    got = client.read_head()
    assert got.status == 101, got.raw
    return client, service


class Ends:
    """Opens sessions for one test, on one gateway and one upstream, and closes what it opened."""

    def __init__(self, gateway: Gateway, upstream: Upstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self._wires: list[Wire] = []
        self._since = len(gateway.out.lines)

    def ws(
        self, target: str = "/ws", *fields: str, early: bytes = b"", early_down: bytes = b"",
        answer: Sequence[bytes] = (),
    ) -> tuple[Wire, Wire]:
        """See `open_ws`."""
        wires = open_ws(
            self.gateway, self.upstream, target, *fields,
            early=early, early_down=early_down, answer=answer,
        )
        self._wires += wires
        return wires

    def raw(self, target: str = "/raw", *fields: str, early: bytes = b"") -> tuple[Wire, Wire]:
        """See `open_raw`."""
        wires = open_raw(self.gateway, self.upstream, target, *fields, early=early)
        self._wires += wires
        return wires

    def client(self, listener: int = 0) -> Wire:
        """A client's connection."""
        wire = self.gateway.connect(listener)
        self._wires.append(wire)
        return wire

    def service(self) -> Wire:
        """The next connection to the upstream."""
        wire = self.upstream.accept()
        self._wires.append(wire)
        return wire

    def record(self, **wanted: object) -> Record:
        """Wait for an access record of this test that has these values."""
        return self.gateway.record(self._since, **wanted)

    def close(self) -> None:
        """Close everything, and throw away what nobody accepted."""
        for wire in self._wires:
            wire.close()
        self.upstream.forget()


def refused(gateway: Gateway, request: bytes, *, method: str = "GET") -> tuple[Head, bytes]:
    """Send a request, and return the answer after which the connection ended cleanly."""
    with gateway.connect() as client:
        client.send(request)
        answer = client.read_answer(method=method)
        client.expect_fin()
        return answer
