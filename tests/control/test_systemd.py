"""An init's sockets and its ears, with sockets of the test in their place."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.control import systemd
from gateway.control.systemd import Notifier, inherited


@pytest.fixture
def init(tmp_path: Path) -> Iterator[socket.socket]:
    """Where it is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        ears.bind(str(tmp_path / "notify"))
        ears.settimeout(10)
        yield ears


def heard(ears: socket.socket) -> list[str]:
    return ears.recv(4096).decode().split("\n")


def test_what_is_said(init: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": init.getsockname()})
    notifier.ready("serving")
    assert heard(init) == ["READY=1", "STATUS=serving"]
    notifier.reloading()
    first, second = heard(init)
    assert first == "RELOADING=1"
    assert second.partition("=")[0] == "MONOTONIC_USEC"
    assert second.partition("=")[2].isdecimal()
    notifier.stopping("SIGTERM")
    assert heard(init)[0] == "STOPPING=1"
    notifier.alive()
    assert heard(init) == ["WATCHDOG=1"]


def test_a_predecessor_says_nothing_more(init: socket.socket) -> None:
    """STOPPING of it would be taken for the service's."""
    notifier = Notifier({"NOTIFY_SOCKET": init.getsockname()})
    notifier.succeeded_by(123)
    assert heard(init) == ["MAINPID=123", "READY=1"]
    notifier.stopping("replaced")
    init.setblocking(False)
    with pytest.raises(BlockingIOError):
        init.recv(100)


def test_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        ears.bind("")                                # the kernel finds an abstract one
        ears.settimeout(10)
        name = ears.getsockname()
        assert isinstance(name, bytes)
        Notifier({"NOTIFY_SOCKET": "@" + name[1:].decode()}).alive()
        assert heard(ears) == ["WATCHDOG=1"]


@pytest.mark.parametrize("name", ["", "/nowhere/at/all"])
def test_without_an_init_nothing_happens(name: str) -> None:
    Notifier({"NOTIFY_SOCKET": name} if name else {}).ready("x")


def test_the_watchdog_is_told_twice_in_its_time() -> None:
    told = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000"}
    assert Notifier(told).interval == 15.0
    assert Notifier(told | {"WATCHDOG_PID": str(os.getpid())}).interval == 15.0
    assert Notifier(told | {"WATCHDOG_PID": "1"}).interval == 0.0
    assert Notifier({"WATCHDOG_USEC": "30000000"}).interval == 0.0


INHERIT = """
import json, os, sys
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "us" else "1"
from gateway.control.listening import address_of_socket
from gateway.control.systemd import inherited
from gateway.errors import ListenError
try:
    found = [str(address_of_socket(each)) for each in inherited(os.environ)]
except ListenError as error:
    found = str(error)
print(json.dumps([found, "LISTEN_FDS" in os.environ]))
"""


def in_a_child(whose: str, *sockets: socket.socket) -> str:
    """What a process finds whose descriptors from 3 on are these."""
    moves = "; ".join(
        f"os.dup2({each.fileno()}, {100 + place})" for place, each in enumerate(sockets)
    )
    back = "; ".join(f"os.dup2({100 + place}, {3 + place})" for place in range(len(sockets)))
    code = f"import os; {moves}; {back}; os.environ['LISTEN_FDS'] = '{len(sockets)}'\n" + INHERIT
    done = subprocess.run(
        [sys.executable, "-c", code, whose], capture_output=True, text=True, timeout=20,
        pass_fds=[each.fileno() for each in sockets],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sockets_are_taken_by_whom_they_are_for(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.socket(socket.AF_UNIX) as two,
    ):
        two.bind(str(tmp_path / "s"))
        two.listen()
        port = one.getsockname()[1]
        expected = f'[["127.0.0.1:{port}", "unix:{tmp_path}/s"], false]\n'
        assert in_a_child("us", one, two) == expected
        assert in_a_child("others", one, two) == "[[], false]\n"


def test_what_is_no_listener_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        said = in_a_child("us", datagrams)
    assert "descriptor 3 of LISTEN_FDS is no listening stream socket" in said
    assert "Accept=no" in said


def test_nothing_is_taken_from_an_environment_that_is_not_for_us() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert inherited(environment) == []
    assert environment == {"HOME": "/"}
    assert systemd.FIRST == 3
