"""Binding: where it is bound, who else may, what of a Unix socket's file, and what is said."""

import contextlib
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.control import listening
from gateway.control.listening import Bound, bind
from gateway.errors import ListenError
from gateway.events import Address
from gateway.table import Listener


def tcp(host: str = "127.0.0.1", port: int = 0) -> Listener:
    return Listener(address=Address(host=host, port=port))


def unix(path: Path, mode: int = 0o660) -> Listener:
    return Listener(address=Address(path=str(path)), mode=mode)


def stale(path: Path) -> None:
    """Leave a socket's file as a killed program does."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def refused(listener: Listener, *going: Bound) -> str:
    with pytest.raises(ListenError) as caught:
        bind(listener, going)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_port_zero_is_resolved() -> None:
    bound = bind(tcp())
    assert bound.address == Address(host="127.0.0.1", port=bound.socket.getsockname()[1])
    assert bound.address.port > 0
    with socket.create_connection((bound.address.host, bound.address.port)):
        pass
    assert not bound.socket.getblocking()
    bound.abandon()


def test_both_families_have_one_port() -> None:
    """IPv6 is IPv6 only, so that both can be listed."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    six = bind(tcp("::", 0))
    four = bind(tcp("0.0.0.0", six.address.port))
    assert str(six.address) == f"[::]:{six.address.port}"
    six.abandon()
    four.abandon()


def test_a_second_gateway_is_refused() -> None:
    first = bind(tcp())
    port = first.address.port
    assert refused(tcp(port=port)) == (
        f"cannot listen on 127.0.0.1:{port}: another process listens there; end it or choose "
        f"another port (process id {os.getpid()})"
    )
    first.abandon()


@pytest.mark.parametrize(("now", "then"), [
    ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("::1", "::"), ("::", "::1"),
    ("127.0.0.1", "127.0.0.1"),
])
def test_what_will_go_keeps_nobody_from_its_port(now: str, then: str) -> None:
    """Both listen meanwhile, and a second gateway is refused: before, then, and afterwards."""
    if ":" in now and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    old, other = bind(tcp(now)), bind(tcp(now))
    port = old.address.port
    assert refused(tcp(then, port))
    new = bind(tcp(then, port), [other, old])
    for each in (old, new):
        assert not each.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert refused(tcp(now, port))
        assert refused(tcp(then, port))
        with socket.create_connection(("::1" if ":" in now else "127.0.0.1", port)):
            each.abandon()
    other.abandon()
    bind(tcp(now, port)).abandon()


def test_what_will_go_may_be_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket of another user cannot be shared; the sentence does not blame another process."""
    old = bind(tcp())
    port = old.address.port
    monkeypatch.setattr(listening, "_sharing", lambda _: contextlib.nullcontext())
    said = refused(tcp("0.0.0.0", port), old)
    assert said.startswith(
        f"cannot listen on 0.0.0.0:{port}: this gateway listens on 127.0.0.1:{port} until then"
    )
    old.abandon()


def test_who_has_it_may_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of somebody else: then the command is said that root may ask."""
    monkeypatch.setattr(listening, "holders", lambda _address: "")
    first = bind(tcp())
    port = first.address.port
    assert refused(tcp(port=port)).endswith(f" (ss -ltnp 'sport = :{port}' shows which)")
    first.abandon()


def test_a_worker_that_keeps_an_address_alone_is_named() -> None:
    """A debugger has stopped it, or it hangs: it cannot see that its supervisor is gone."""
    program = ("import socket, sys; kept = socket.create_server(('127.0.0.1', 0)); "
               "print('port', kept.getsockname()[1], flush=True); sys.stdin.read()")
    alone = subprocess.Popen(           # of a shell, which ends at once
        ["sh", "-c", 'exec 3<&0; "$@" <&3 & echo process $!', "sh", sys.executable, "-c", program,
         "gateway.control.worker_process"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    assert alone.stdin and alone.stdout
    with alone.stdin, alone.stdout:
        alone.wait(20)
        told = dict(alone.stdout.readline().split() for _ in range(2))
        said = refused(tcp(port=int(told["port"])))
        alone.stdin.close()
        assert alone.stdout.read() == ""
    assert said.endswith(
        "(a gateway's worker whose supervisor is gone and that does not end: "
        f"kill -KILL {told['process']})"
    )


def test_an_address_of_nobody() -> None:
    assert refused(tcp("192.0.2.1")) == (
        "cannot listen on 192.0.2.1:0: no interface of this machine has that address; "
        "`ip address` lists those it has"
    )


def test_a_name_is_no_address() -> None:
    assert "write a literal, not a name" in refused(tcp("localhost"))


def test_a_privileged_port_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer is scripted: tests may run as root."""

    class Forbidden(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Forbidden)
    assert refused(tcp(port=80)).startswith(
        "cannot listen on 127.0.0.1:80: port 80 needs root or CAP_NET_BIND_SERVICE; "
    )



@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_unix_socket_has_its_mode_and_the_umask_is_back(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o022)
    try:
        bound = bind(unix(tmp_path / "g.sock", mode))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "g.sock").stat().st_mode) == mode
    bound.abandon()
    assert not (tmp_path / "g.sock").exists()


def test_a_stale_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    stale(path)
    bound = bind(unix(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.abandon()


def test_a_live_socket_is_not_replaced(tmp_path: Path) -> None:
    """Not even when its backlog is full."""
    path = tmp_path / "g.sock"
    first = bind(Listener(address=Address(path=str(path)), backlog=0))
    waiting = []
    for _ in range(4):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        client.connect_ex(str(path))
        waiting.append(client)
    assert refused(unix(path)) == (
        f"cannot listen on unix:{path}: another process listens there; end it or choose another "
        f"path (process id {os.getpid()})"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        assert client.connect_ex(str(path)) != 111
    for client in waiting:
        client.close()
    first.abandon()


def test_another_kind_of_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    assert "a file is there that is no socket" in refused(unix(path))
    assert path.read_text() == "mine"


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"the folder {tmp_path}/none does not exist" in refused(unix(tmp_path / "none/g.sock"))


def test_a_path_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    assert "the kernel takes 107" in refused(unix(path))


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    """A second gateway that replaced it keeps its own."""
    path = tmp_path / "g.sock"
    ours = bind(unix(path))
    path.unlink()
    theirs = bind(unix(path))
    ours.abandon()
    assert path.exists()
    theirs.abandon()
    theirs.remove_file()
    assert not path.exists()


def is_locked(folder: Path) -> bool:
    """Whether somebody is alone in there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_of_two_that_start_together_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the question whether somebody is there until it listens, and at the end, too: a file
    that is there but not listened on yet looks like one of a program that is gone."""
    seen = []
    remove, chmod, unlink = listening._remove_stale, Path.chmod, Path.unlink

    def watched_remove(address: Address) -> None:
        seen.append(is_locked(tmp_path))
        remove(address)

    def watched_chmod(path: Path, mode: int) -> None:
        seen.append(is_locked(tmp_path))
        chmod(path, mode)

    def watched_unlink(path: Path, missing_ok: bool = False) -> None:
        seen.append(is_locked(tmp_path))
        unlink(path, missing_ok)

    monkeypatch.setattr(listening, "_remove_stale", watched_remove)
    monkeypatch.setattr(Path, "chmod", watched_chmod)
    monkeypatch.setattr(Path, "unlink", watched_unlink)
    bound = bind(unix(tmp_path / "s"))
    assert seen == [True, True], "asked, and bound but not listening yet"
    assert not is_locked(tmp_path)
    bound.abandon()
    assert seen == [True, True, True]
    assert not (tmp_path / "s").exists()


def test_who_stays_alone_in_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may read a folder may lock it: nobody waits for ever."""
    monkeypatch.setattr(listening, "FOLDER_LIMIT", 0.0)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert refused(unix(tmp_path / "s")) == (
            f"cannot listen on unix:{tmp_path}/s: another program holds a lock on the folder "
            f"{tmp_path}; end it or choose another path"
        )
    finally:
        os.close(descriptor)
    bind(unix(tmp_path / "s")).abandon()
