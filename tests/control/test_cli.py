"""The command line as the real program: what it prints, where, and its exit codes."""

import contextlib
import errno
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from gateway.control import choice, cli, serving
from gateway.control.choice import choose
from gateway.errors import EngineRefused, StartFailed

COMMAND = [sys.executable, "-m", "gateway"]
PATIENCE = 20.0

ECHO = """
[gateway]
listen = ["{listen}"]

[[route]]
name     = "echo"
path     = "/echo"
upstream = "builtin:echo"
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def refused(*arguments: str, code: int) -> str:
    """What stands on stderr when it is refused with this exit code, in plain sentences."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "routes.toml"
    path.write_text(ECHO.format(listen="127.0.0.1:0"))
    return path


@contextlib.contextmanager
def started(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving gateway and its start line."""
    process = subprocess.Popen(
        [*COMMAND, "--routes", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        assert process.stderr
        line = ""
        while "serving" not in line:
            line = process.stderr.readline()
            assert line, "it ended before it served"
        yield process, line
    finally:
        process.kill()
        process.communicate()


# --- Usage ------------------------------------------------------------------------------------


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"gateway {__version__}\n")


def test_help_says_what_a_beginner_needs() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("--routes", "check", "explain", "SIGTERM", "Exit codes", "routes/demo.toml"):
        assert word in done.stdout
    for command in ("check", "explain"):
        assert "PATH" in run(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "gateway --routes PATH"),
        (["--routes"], "requires an argument"),
        (["--route", "x"], "--routes"),
        (["serve"], "No such command 'serve'"),
        (["check"], "Missing argument 'PATH'"),
        (["explain", "x"], "Missing argument 'URL'"),
        (["--routes", "x", "check", "y"], "gateway check PATH"),
        (["--routes", ""], "the name is empty"),
        (["check", ""], "the name is empty"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], words: str) -> None:
    assert words in refused(*arguments, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no url"],
        ["ftp://example.com/"],
        ["/echo", "--header", "no colon"],
        ["ws://user@example.com/echo"],
    ],
)
def test_a_request_that_cannot_be_is_2(table: Path, arguments: list[str]) -> None:
    assert "Error: " in refused("explain", str(table), *arguments, code=2)


# --- check and explain ------------------------------------------------------------------------


def test_check_prints_the_resolved_table(table: Path) -> None:
    done = run("check", str(table))
    assert (done.returncode, done.stderr) == (0, "")
    assert 'head_timeout = "10s"' in done.stdout, "defaults are filled in"
    assert 'name = "echo"' in done.stdout


def test_check_survives_a_reader_that_goes(table: Path) -> None:
    """`gateway check ... | head -1` prints no traceback."""
    process = subprocess.Popen(
        [*COMMAND, "check", str(table)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(PATIENCE) == 2, "the table is not refused"


@pytest.mark.parametrize(
    "arguments", [["check", "TABLE"], ["explain", "TABLE", "/echo"], ["--help"], ["--version"]]
)
def test_what_cannot_be_written_is_2(table: Path, arguments: list[str]) -> None:
    """A full disk is no mistake of the table, and no traceback."""
    words = [str(table) if word == "TABLE" else word for word in arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=PATIENCE, check=False,
        )
    assert (done.returncode, done.stderr) == (
        2, "cannot write to standard output: no space left on device\n"
    )


def test_a_refusal_that_cannot_be_written_keeps_its_code(table: Path) -> None:
    table.write_text("")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "check", str(table)], stderr=full, timeout=PATIENCE, check=False
        )
        usage = subprocess.run([*COMMAND, "check"], stderr=full, timeout=PATIENCE, check=False)
    assert (done.returncode, usage.returncode) == (1, 2)


def test_explain_says_which_route(table: Path) -> None:
    done = run(
        "explain", str(table), "ws://example.com/echo", "--header", "X-A: b",
        "--origin", "https://example.com", "--subprotocol", "chat",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 'route: "echo"' in done.stdout


@pytest.mark.parametrize("command", [["check"], ["--routes"]])
def test_a_refused_table_is_1(table: Path, command: list[str]) -> None:
    """Every mistake is told, with its place."""
    table.write_text(ECHO.format(listen="127.0.0.1:0") + 'colour = "red"\nmax_frame = "1 apple"\n')
    said = refused(*command, str(table), code=1)
    assert "routes.toml" in said
    assert "colour" in said
    assert "1 apple" in said


@pytest.mark.parametrize("command", [["check"], ["--routes"]])
def test_a_table_that_is_not_there_is_1(tmp_path: Path, command: list[str]) -> None:
    assert "no such file" in refused(*command, str(tmp_path / "none.toml"), code=1).lower()


# --- Serving ----------------------------------------------------------------------------------


def test_the_start_line_says_what_runs_and_where(table: Path, tmp_path: Path) -> None:
    """Port 0 is resolved; the engine is named with its reason; SIGTERM ends it with 0."""
    path = tmp_path / "g.sock"
    text = ECHO.format(listen="127.0.0.1:0").replace('0"]', f'0", "unix:{path}"]')
    table.write_text(text)
    with started(table) as (process, line):
        assert (
            'engine=uvloop reason="io_uring would not be cheaper; ' in line
            or 'engine=uvloop reason="no io_uring: ' in line
            or 'engine=uvloop reason="a system call takes ' in line
        )
        assert f"version={__version__} " in line
        assert f"pid={process.pid}" in line
        assert "routes=1 " in line
        listening = line.partition("listening=")[2].split()[0]
        first, second = listening.split(",")
        host, _, port = first.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE):
            pass
        assert second == f"unix:{path}"
        assert path.exists()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    assert not path.exists(), "our socket's file is removed"


def test_an_address_in_use_is_3(table: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        table.write_text(ECHO.format(listen=f"127.0.0.1:{port}"))
        said = refused("--routes", str(table), code=3)
    assert f"cannot listen on 127.0.0.1:{port}: another process listens there" in said


def test_an_engine_that_cannot_run_is_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the table demands it; "auto" takes the other, and says why."""
    monkeypatch.setattr(choice, "why_no_uring", lambda: "it was not built")
    with pytest.raises(EngineRefused, match=r"io_uring.*it was not built") as caught:
        choose("io_uring")
    assert caught.value.exit_code == 5
    chosen = choose("auto")
    assert (chosen.engine, chosen.form) == ("uvloop", "")
    assert chosen.reason.startswith("no io_uring: it was not built")


def test_any_error_of_the_house_ends_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is all that is printed."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]

    def refuse(path: Path) -> int:
        raise EngineRefused("engine x cannot run here")

    monkeypatch.setattr(serving, "serve", refuse)
    monkeypatch.setattr(sys, "argv", ["gateway", "--routes", "x"])
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert caught.value.code == 5
    assert capsys.readouterr().err == "engine x cannot run here\n"


def test_an_unresolvable_name_is_a_warning(table: Path) -> None:
    """`.invalid` never resolves (RFC 6761 6.4); the other routes are served."""
    text = table.read_text() + '[[route]]\nname = "x"\npath = "/x"\nupstream = "ws://no.invalid"\n'
    table.write_text(text)
    process = subprocess.Popen(
        [*COMMAND, "--routes", str(table)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    line = process.stderr.readline()
    assert "warning no.invalid does not resolve: " in line
    assert "these upstreams have no address now: ws://no.invalid" in line
    assert "serving" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


# --- Signals and descriptors ------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_serving_ends_it_with_0(tmp_path: Path, number: int) -> None:
    """It is held at reading its table, which is a FIFO."""
    fifo = tmp_path / "routes.toml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*COMMAND, "--routes", str(fifo)], stderr=subprocess.PIPE, text=True
    )
    writing = os.open(fifo, os.O_WRONLY)  # waits until it reads
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    os.close(writing)
    assert (process.returncode, err) == (0, "")


def test_sighup_does_not_end_it(table: Path) -> None:
    """It reloads."""
    with started(table) as (process, _):
        process.send_signal(signal.SIGHUP)
        assert process.stderr
        assert "reloaded cause=SIGHUP" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "ended accepted=0" in err


def run_signalled(patch: str, *arguments: str) -> int:
    """The exit code of the command, in which something sends SIGHUP and SIGUSR2."""
    code = (
        "import os, signal, sys\n"
        "from gateway.control import cli, config\n"
        "numbers = (signal.SIGHUP, signal.SIGUSR2)\n"
        "for number in numbers: signal.signal(number, signal.SIG_DFL)\n"  # as a shell starts it
        "def signalled(*_):\n"
        "    for number in numbers:\n"
        "        os.kill(os.getpid(), number)\n"
        f"{patch} = signalled\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    return ended.returncode


def test_signals_for_a_gateway_that_serves_do_not_end_one_that_starts() -> None:
    """From the beginning on: to load what serving needs takes its time."""
    assert run_signalled("cli._fill_standard_descriptors", "--version") == 0


def test_a_command_ends_with_its_terminal(table: Path) -> None:
    assert run_signalled("config.check", "check", str(table)) == -signal.SIGHUP


def test_it_may_be_started_without_standard_descriptors(table: Path) -> None:
    """No socket of a client may become descriptor 1."""
    code = f"exec {shlex.quote(sys.executable)} -m gateway check {table} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", code], timeout=PATIENCE, check=False).returncode == 0


def test_workers_have_standard_descriptors_of_their_own(table: Path) -> None:
    """Else what they count in would become descriptor 1, and records would be written over it."""
    code = f"exec {shlex.quote(sys.executable)} -m gateway --routes {table} <&- >&-"
    with subprocess.Popen(["sh", "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert "serving" in process.stderr.readline()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for pid in (process.pid, *children.split()):
                for descriptor in (0, 1):
                    link = Path(f"/proc/{pid}/fd/{descriptor}")
                    assert str(link.readlink()) == os.devnull
        finally:
            process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EAGAIN, "ulimit -u"), (errno.EACCES, "may execute"), (errno.EPERM, "may execute"),
        (errno.ENOENT, "may execute"), (errno.EMFILE, "ulimit -n"), (errno.ENOMEM, "memory.max"),
        (errno.E2BIG, "execve"),
    ],
)
def test_the_remedy_for_a_worker_that_cannot_be_started(
    number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of the errno; what was started before is let go."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(serving, "spawn", refuse)
    with (
        pytest.raises(StartFailed, match=f"{os.strerror(number)}; .*{remedy}"),
        serving._processes(1, 0),
    ):
        pytest.fail("none was started")


def test_default_max_sessions() -> None:
    """A session has two descriptors, 512 are for everything else; at least one session."""
    assert serving.default_max_sessions(20_000) == 9_744
    assert serving.default_max_sessions(512 + 2) == 1
    assert serving.default_max_sessions(64) == 1


def test_the_descriptor_limit_is_raised() -> None:
    """In a process of its own, since it cannot be taken back for the others' sake."""
    code = (
        "import resource; from gateway.control.serving import raise_descriptor_limit\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, hard), hard))\n"
        "print(raise_descriptor_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("no hard limit here")
    assert done.stdout == f"{hard} {hard}\n"


@pytest.mark.parametrize(
    ("limit", "keys", "words"),
    [
        (1000, "max_sessions = 10000",
         ["max_sessions is more than the descriptors suffice for",
          "max_sessions=10000 descriptors=1000 suffice_for=244"]),
        (600, "",
         ["the descriptors suffice for few sessions; raise the hard limit (ulimit -Hn",
          "max_sessions=44 descriptors=600"]),
        (600, "max_sessions = 44", []),
        (800, "", []),
    ],
)
def test_too_few_descriptors_are_warned_about(
    table: Path, limit: int, keys: str, words: list[str]
) -> None:
    """For what the table wants; or, where it says nothing, for what anybody would want."""
    table.write_text(table.read_text().replace("[gateway]\n", f"[gateway]\n{keys}\n"))
    limited = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *COMMAND, "--routes", str(table)]
    process = subprocess.Popen(limited, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    line = process.stderr.readline()
    if words:
        assert "warning " in line
        assert all(word in line for word in words), line
        line = process.stderr.readline()
    assert "serving" in line
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
