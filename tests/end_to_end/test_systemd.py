"""The program under an init: its sockets, and what it is told. The test plays the init."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.kit import COMMAND, START_LIMIT, route
from end_to_end.wire import PATIENCE

ROUTE = route("page", "builtin:page", path="/")


@pytest.fixture
def ears(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(START_LIMIT)
        yield listening


def table(folder: Path, *addresses: str) -> Path:
    listen = ", ".join(f'"{address}"' for address in addresses)
    path = folder / "routes.toml"
    path.write_text(
        f'[gateway]\nlisten = [{listen}]\nworkers = 1\ncontrol = "control.sock"\n' + ROUTE
    )
    return path


def started(path: Path, ears: socket.socket, *sockets: socket.socket) -> subprocess.Popen[bytes]:
    """The program, with these as its descriptors from 3 on."""
    moves = [f"os.dup2({each.fileno()}, {100 + n})" for n, each in enumerate(sockets)]
    moves += [f"os.dup2({100 + n}, {3 + n})" for n in range(len(sockets))]
    moves += [f"os.close({100 + n})" for n in range(len(sockets))]
    code = "\n".join([
        "import os, sys", *moves,
        "os.environ['LISTEN_PID'] = str(os.getpid())",
        f"os.environ['LISTEN_FDS'] = '{len(sockets)}'",
        "os.execv(sys.argv[1], sys.argv[1:])",
    ])
    return subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND, "--routes", str(path)],
        pass_fds=[each.fileno() for each in sockets],
        env=os.environ | {"NOTIFY_SOCKET": ears.getsockname(), "WATCHDOG_USEC": "200000"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )


def hear(ears: socket.socket, wanted: str) -> str:
    """The next message that begins with this line; what comes between is the watchdog's."""
    while True:
        said = ears.recv(4096).decode()
        if said.startswith(wanted):
            return said
        assert said == "WATCHDOG=1", said


def test_an_init_gives_sockets_and_is_told(tmp_path: Path, ears: socket.socket) -> None:
    """READY when it serves, the watchdog, a reload, the end; the init keeps its sockets."""
    with socket.create_server(("127.0.0.1", 0)) as ours:
        address = f"127.0.0.1:{ours.getsockname()[1]}"
        with started(table(tmp_path, address), ears, ours) as program:
            try:
                assert hear(ears, "READY=1")
                with socket.create_connection(ours.getsockname(), PATIENCE) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert client.recv(100).startswith(b"HTTP/1.1 200")
                assert ears.recv(100) == b"WATCHDOG=1"
                program.send_signal(signal.SIGHUP)
                assert "MONOTONIC_USEC=" in hear(ears, "RELOADING=1")
                hear(ears, "READY=1")
                program.send_signal(signal.SIGTERM)
                hear(ears, "STOPPING=1")
                assert program.wait(PATIENCE) == 0
                with socket.create_connection(ours.getsockname(), PATIENCE):
                    pass                     # it waits for the next start
            finally:
                program.kill()


def test_an_init_is_told_of_a_new_program(tmp_path: Path, ears: socket.socket) -> None:
    """MAINPID, by the old one; that it goes is no end of the service."""
    with started(table(tmp_path, "127.0.0.1:0"), ears) as program:
        try:
            hear(ears, "READY=1")
            program.send_signal(signal.SIGUSR2)
            told = hear(ears, "MAINPID=")
            new = int(told.splitlines()[0].removeprefix("MAINPID="))
            assert "READY=1" in told
            os.kill(new, signal.SIGTERM)
            hear(ears, "STOPPING=1")
            assert program.wait(PATIENCE) == 0
        finally:
            program.kill()


def test_a_socket_that_the_table_does_not_name(tmp_path: Path, ears: socket.socket) -> None:
    """3, and both addresses are named."""
    with socket.create_server(("127.0.0.1", 0)) as ours:
        with started(table(tmp_path, "127.0.0.1:0"), ears, ours) as program:
            _, said = program.communicate(timeout=START_LIMIT)
        assert program.returncode == 3
        assert f"127.0.0.1:{ours.getsockname()[1]} (LISTEN_FDS)" in said.decode()
        assert "127.0.0.1:0" in said.decode()
