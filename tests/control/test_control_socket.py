"""The control socket and its commands: words, places, and what is printed, with a gateway that is
only told what to answer."""

import asyncio
import contextlib
import json
import os
import select
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from click.testing import CliRunner, Result

from gateway.control import cli, control_client, control_socket
from gateway.control.control_words import (
    REQUEST_MAX,
    REQUESTS,
    BadRequest,
    read_request,
    usual_places,
)
from gateway.control.report import Report
from gateway.errors import ListenError, NoAnswer
from gateway.table import GatewaySettings

PLAN: dict[str, Any] = {
    "is": "plan",
    "routes": [
        {"name": "chat", "change": "changed", "sessions": 14, "drain": 600.0},
        {"name": "new", "change": "added", "sessions": 0, "drain": 0.0},
        {"name": "old", "change": "removed", "sessions": 1, "drain": 0.0},
    ],
    "listeners_added": ["127.0.0.1:81"], "listeners_removed": [], "listeners_changed": [],
    "settings": ["log of [gateway]"], "refusals": [], "warnings": [],
    "sessions": 41_200, "sessions_touched": 15, "sessions_drained": 14,
}
STATUS: dict[str, Any] = {
    "is": "status", "version": "0.1.0", "engine": "uvloop", "pid": 7, "ready": True,
    "draining": False, "uptime": 3725.5, "table": "/etc/routes.toml",
    "listening": ["127.0.0.1:80"],
    "reloads": {
        "done": 2, "failed": 1, "error": "routes.toml: found x\x1b, expected y", "retried": True,
    },
    "workers": [
        {"worker": 0, "pid": 8, "state": "serving", "connections": 1234, "sessions": 1200,
         "lag_ms": 0.25, "restarts": 1},
    ],
    "predecessor": {"pid": 6, "sessions": None},
    "routes": [{"name": "chat", "sessions": 1200, "total": 56789}],
}
SESSIONS: dict[str, Any] = {
    "is": "sessions", "total": 1200, "silent": [],
    "sessions": [
        {"session": "abc-1", "worker": 0, "route": "chat", "client": "127.0.0.1:5",
         "endpoint": "127.0.0.1:9", "phase": "relaying", "age": 90.0},
    ],
}


class Fake:
    """Answers what it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.answers: dict[str, dict[str, Any]] = {
            "status": STATUS, "sessions": SESSIONS, "plan": PLAN,
            "close": {"is": "closed", "session": "abc-1"},
            "reload": PLAN | {"is": "reloaded"},
            "drain": {"is": "draining", "sessions": 3},
            "ended": {"is": "ended", "cut": 0},
        }

    def _answer(self, name: str, *values: object) -> dict[str, Any]:
        self.asked.append((name, *values))
        assert name in self.answers, "a bug"
        return self.answers[name]

    def status(self) -> dict[str, Any]:
        return self._answer("status")

    async def sessions(self, route: str, limit: int) -> dict[str, Any]:
        return self._answer("sessions", route, limit)

    async def close_session(self, session: str, code: int, reason: str) -> dict[str, Any]:
        return self._answer("close", session, code, reason)

    async def reload(self) -> dict[str, Any]:
        return self._answer("reload")

    async def plan(self) -> dict[str, Any]:
        return self._answer("plan")

    def drain(self) -> dict[str, Any]:
        return self._answer("drain")

    async def ended(self) -> dict[str, Any]:
        return self._answer("ended")


PATIENCE = 20.0               # seconds for what should be there at once


class Serving:
    """A control socket on a loop in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.fake = Fake()
        self.place = folder / "c.sock"
        self._nowhere = os.open(os.devnull, os.O_WRONLY)
        self.report = Report(output=self._nowhere, errors=self._nowhere)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self._thread.start()
        self._ready.wait()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        bound, warning = control_socket.bind(GatewaySettings(control=str(self.place)), {})
        assert bound is not None
        assert not warning
        serving = control_socket.ControlSocket(bound, self.fake, self.report)
        await serving.start()
        self._ready.set()
        await self._end.wait()
        await serving.close()
        bound.remove_file()

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it waits for somebody who is connected"
        self.report.close()
        os.close(self._nowhere)

    def run(self, *arguments: str) -> Result:
        """Run a command against it."""
        name, *more = arguments
        runner = CliRunner()
        return runner.invoke(cli.command, [name, "--control", str(self.place), *more])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="gw") as name:
        yield Path(name)


@pytest.fixture
def serving(folder: Path) -> Iterator[Serving]:
    """A control socket that answers."""
    one = Serving(folder)
    yield one
    one.close()


# --- Words ------------------------------------------------------------------------------------


def test_requests_are_read_with_their_defaults() -> None:
    """What is not said is filled in."""
    assert read_request(b'{"do":"sessions"}') == ("sessions", {"route": "", "limit": 100})
    assert read_request(b'{"do":"close","session":"a","code":4000}') == (
        "close", {"session": "a", "code": 4000, "reason": ""}
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "no JSON"), (b"\xff", "no JSON"), (b"[" * 9000, "no JSON"), (b"[]", "an object"),
        (b"{}", "status, sessions, close, drain, reload"), (b'{"do":[]}', "is one of"),
        (b'{"do":"status","x":1}', 'no key "x"'), (b'{"do":"close"}', 'needs the key "session"'),
        (b'{"do":"close","session":1}', "a text"), (b'{"do":"sessions","limit":true}', "whole"),
        (b'{"do":"sessions","limit":0}', "from 1 to"), (b'{"do":"drain","wait":1}', "true or f"),
        (rb'{"do":"close","session":"a","reason":"\ud800"}', "close, reason: half of a surrogate"),
        (rb'{"do":"sessions","route":"a\udfff"}', "sessions, route: half of a surrogate"),
    ],
)
def test_what_is_no_request_is_told_why(line: bytes, said: str) -> None:
    """A sentence, and never anything else."""
    with pytest.raises(BadRequest, match=said):
        read_request(line)


def test_usual_places() -> None:
    """Systemd's folder, then the user's, then the machine's."""
    assert usual_places({}) == [Path("/run/gateway/control.sock")]
    both = usual_places({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/7"})
    assert both == [Path(f"{place}/control.sock")
                    for place in ("/run/a", "/run/user/7/gateway", "/run/gateway")]


def test_docs_have_every_word() -> None:
    """docs/control.md names each request and each of its keys."""
    page = (Path(__file__).parents[2] / "docs" / "control.md").read_text()
    for name, keys in REQUESTS.items():
        assert f'{{"do":"{name}"' in page
        for key in keys:
            assert f"`{key}`" in page


# --- The socket -------------------------------------------------------------------------------


def test_only_its_user_may_open_it(serving: Serving) -> None:
    """The file's mode is 0600."""
    assert stat.S_IMODE(serving.place.stat().st_mode) == 0o600


def test_requests_on_one_connection_are_answered_in_order(serving: Serving) -> None:
    """Also those that are none, after which the connection goes on."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(serving.place))
        client.sendall(b'{"do":"status"}\nx\n{"do":"drain","wait":true}\n{"do":"status"}\n')
        client.shutdown(socket.SHUT_WR)
        answers = [json.loads(line) for line in client.makefile("rb")]
    assert [one["is"] for one in answers] == ["status", "error", "draining", "ended", "status"]


def test_a_line_that_has_no_end_ends_the_connection(serving: Serving) -> None:
    """It is told why, and costs no memory."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(serving.place))
        client.sendall(b"x" * (2 * REQUEST_MAX + 1))
        answer = client.makefile("rb").readline()
    assert f"at most {REQUEST_MAX} bytes" in json.loads(answer)["error"]


def connected(serving: Serving) -> socket.socket:
    """A command that has asked something, has its answer, and stays."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(serving.place))
    assert asked(client) == "status"
    return client


def asked(client: socket.socket) -> str:
    """What kind of answer comes to a request for the status; "" where the connection has ended."""
    with contextlib.suppress(OSError):
        client.sendall(b'{"do":"status"}\n')
        with client.makefile("rb") as answers:
            line = answers.readline()
        return str(json.loads(line)["is"]) if line else ""
    return ""


def test_the_oldest_idle_connection_makes_way(serving: Serving) -> None:
    """Whoever does nothing locks nobody out; who has asked last stays longest."""
    clients = [connected(serving) for _ in range(control_socket.CONNECTIONS_MAX)]
    assert asked(clients[0]) == "status"
    late = connected(serving)
    assert [asked(client) for client in (clients[0], clients[1], clients[2], late)] == [
        "status", "", "status", "status"
    ]
    for client in (*clients, late):
        client.close()


def test_nobody_makes_way_while_what_he_asked_is_done(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is told that there are too many."""

    async def ended() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(serving.fake, "ended", ended)
    monkeypatch.setattr(control_socket, "CONNECTIONS_MAX", 1)
    with socket.socket(socket.AF_UNIX) as waits, socket.socket(socket.AF_UNIX) as late:
        waits.connect(str(serving.place))
        waits.sendall(b'{"do":"drain","wait":true}\n')
        assert json.loads(waits.makefile("rb").readline())["is"] == "draining"
        late.connect(str(serving.place))
        assert "too many" in json.loads(late.makefile("rb").readline())["error"]


@pytest.mark.parametrize("said", [b"", b'{"do":"sta'])
def test_who_asks_nothing_is_not_kept(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Half a request is none."""
    monkeypatch.setattr(control_socket, "IDLE_LIMIT", 0.01)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(serving.place))
        client.sendall(said)
        assert client.recv(1) == b""


def unread(serving: Serving) -> socket.socket:
    """A command whose answer is more than the kernel keeps for it, and which reads nothing."""
    serving.fake.answers["status"] = STATUS | {"table": "x" * 4_000_000}
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(serving.place))
    client.sendall(b'{"do":"status"}\n' * 3)
    assert select.select([client], [], [], PATIENCE)[0]
    return client


def test_who_takes_no_answer_does_not_keep_it_from_ending(folder: Path) -> None:
    """A gateway that was told to end would never."""
    serving = Serving(folder)
    with unread(serving):
        serving.close()


def test_who_takes_no_answer_is_not_kept(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut after a while, in the middle of its answer."""
    monkeypatch.setattr(control_socket, "IDLE_LIMIT", 0.01)
    with unread(serving) as client:
        poll = select.poll()
        poll.register(client, 0)                 # POLLHUP is told unasked
        assert poll.poll(PATIENCE * 1000)
        with contextlib.suppress(ConnectionResetError):
            while len(client.recv(1 << 20)):
                pass


def test_a_bug_is_said_and_the_socket_goes_on(serving: Serving) -> None:
    """The command is told to look into the log."""
    del serving.fake.answers["status"]
    assert "a bug of the gateway" in serving.run("status").stderr
    assert serving.run("drain").exit_code == 0


# --- Its place --------------------------------------------------------------------------------


def test_the_usual_place_is_made_and_a_stale_socket_is_replaced(folder: Path) -> None:
    """A folder of the user's is made for nobody else; the second binding finds the first gone."""
    environment = {"XDG_RUNTIME_DIR": str(folder)}
    for _ in range(2):
        bound, warning = control_socket.bind(GatewaySettings(), environment)
        assert bound is not None
        assert not warning
        bound.socket.close()
    assert bound is not None
    assert stat.S_IMODE((folder / "gateway").stat().st_mode) == 0o700
    bound.remove_file()
    assert not os.listdir(folder / "gateway")


def test_a_usual_place_that_is_taken_is_a_warning_a_named_one_an_error(folder: Path) -> None:
    """Two gateways of one user serve both; the second one says what it lacks."""
    environment = {"RUNTIME_DIRECTORY": str(folder)}
    first, _ = control_socket.bind(GatewaySettings(), environment)
    assert first is not None
    second, warning = control_socket.bind(GatewaySettings(), environment)
    assert second is None
    assert "another process listens there" in warning
    assert 'control = "FILE"' in warning
    with pytest.raises(ListenError, match="another process listens there"):
        control_socket.bind(GatewaySettings(control=str(folder / "control.sock")), environment)
    first.abandon()


def test_a_usual_place_that_cannot_be_made_is_a_warning(folder: Path) -> None:
    """So is one whose folder's folder is not there."""
    bound, warning = control_socket.bind(
        GatewaySettings(), {"XDG_RUNTIME_DIR": str(folder / "no" / "where")}
    )
    assert bound is None
    assert "no such file or directory" in warning


def test_no_control_socket_where_the_table_says_so() -> None:
    """And no warning either."""
    assert control_socket.bind(GatewaySettings(control=None), {}) == (None, "")


# --- The commands -----------------------------------------------------------------------------


def test_status(serving: Serving) -> None:
    """In words, without a byte that a terminal would obey; and as it is."""
    text = serving.run("status").stdout
    assert "pid 7, ready\nup         1h2m, 1,200 sessions\n" in text
    assert "replaced   pid 6, which drains: sessions that cannot be counted\n" in text
    assert "2 done, 1 failed" in text
    assert "found x\\x1b, expected y" in text
    assert "WORKER  PID  STATE    CONNECTIONS  SESSIONS  LAG MS  RESTARTS\n" in text
    assert "     0    8  serving        1,234     1,200     0.2         1\n" in text
    assert "chat      1,200  56,789\n" in text
    assert json.loads(serving.run("status", "--json").stdout) == STATUS


def test_sessions(serving: Serving) -> None:
    """A line for each, and how many there are besides."""
    done = serving.run("sessions", "--route", "chat", "--limit", "7")
    assert serving.fake.asked == [("sessions", "chat", 7)]
    assert "abc-1         0  chat   127.0.0.1:5  127.0.0.1:9  relaying  1m30s" in done.stdout
    assert "1 of 1,200 sessions\n" in done.stdout


def test_close(serving: Serving) -> None:
    """What is not said has a default; a code that may not be sent is refused here already."""
    assert serving.run("close", "abc-1").exit_code == 0
    assert serving.run("close", "abc-1", "--code", "4001", "--reason", "no").exit_code == 0
    assert serving.fake.asked == [("close", "abc-1", 1000, ""), ("close", "abc-1", 4001, "no")]
    refused = serving.run("close", "abc-1", "--code", "1006")
    assert refused.exit_code == 2
    assert "a close code that may be sent" in refused.stderr


def test_an_error_goes_to_stderr_and_is_1(serving: Serving) -> None:
    """With --json it is an answer like all others."""
    serving.fake.answers["close"] = {"is": "error", "error": "no session has the id abc-2"}
    done = serving.run("close", "abc-2")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "no session has the id abc-2\n")
    done = serving.run("close", "abc-2", "--json")
    assert (done.exit_code, json.loads(done.stdout)["is"]) == (1, "error")


def test_drain(serving: Serving) -> None:
    """Whoever waits gets the exit code that the gateway itself ends with."""
    done = serving.run("drain")
    assert (done.exit_code, done.stdout) == (0, "draining, 3 sessions left\n")
    done = serving.run("drain", "--wait")
    assert (done.exit_code, done.stdout) == (0, "ended, 0 sessions cut\n")
    serving.fake.answers["ended"] = {"is": "ended", "cut": 1}
    done = serving.run("drain", "--wait")
    assert (done.exit_code, done.stdout) == (4, "ended, 1 session cut\n")


def test_reload(serving: Serving) -> None:
    """What changes, and how many sessions it touches."""
    plan = serving.run("reload", "--plan").stdout
    assert plan == (
        "route chat: changed; 14 sessions, drained over 10m0s\n"
        "route new: added\n"
        "route old: removed; 1 session, on their old terms until they end\n"
        "listener 127.0.0.1:81: added\n"
        "log of [gateway]: changed\n"
        "nothing is done yet; `gateway reload` does it (15 of 41,200 sessions touched, 14 to "
        "drain)\n"
    )
    assert "reloaded (15 of 41,200" in serving.run("reload").stdout
    assert serving.fake.asked == [("plan",), ("reload",)]


def test_a_plan_that_is_refused_is_1(serving: Serving) -> None:
    """It says what would be refused."""
    serving.fake.answers["plan"] = PLAN | {"refusals": ["[gateway], engine: no"]}
    done = serving.run("reload", "--plan")
    assert done.exit_code == 1
    assert done.stdout.endswith("refused:\n[gateway], engine: no\n")


def test_nobody_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names each place, and why it was not that one."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "user"))
    monkeypatch.setattr(control_client, "usual_places", lambda: usual_places()[:2])
    with pytest.raises(NoAnswer) as found:
        control_client.Line(None)
    assert found.value.exit_code == 6
    assert f"  {folder}/control.sock: no such file or directory" in str(found.value)
    assert f"  {folder}/user/gateway/control.sock: no such" in str(found.value)


def test_the_first_place_that_answers_is_it(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale socket before it does not matter."""
    stale = serving.place.with_name("stale")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    monkeypatch.setattr(control_client, "usual_places", lambda: [stale, serving.place])
    with control_client.Line(None) as line:
        assert line.place == serving.place
        assert line.ask(do="status") == STATUS


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (9.96, "10.0s"), (59.9, "59s"), (60, "1m0s"), (3599, "59m59s"),
     (90061, "1d1h")],
)
def test_durations(seconds: float, text: str) -> None:
    """The two largest units."""
    assert control_client.duration(seconds) == text


