"""Binding the sockets that listeners accept from.

Laws of this file:

- One socket per address, with `SO_REUSEADDR` (a restart must not wait for TIME_WAIT) and without
  `SO_REUSEPORT`: a second gateway on the same address is refused, not given half of the clients.
- A socket of ours that is about to go does not keep us from its port: the new one is bound beside
  it, so that nobody is lost between the two, and there is a way back.
- An IPv6 socket is IPv6 only, so that `0.0.0.0:80` and `[::]:80` can both be listed.
- The file of a Unix socket never exists with a wider mode than asked for. A file left over from a
  program that is gone is replaced; one where somebody answers is not, nor anything that is no
  socket. At the end only our own file is removed.
- Who asks, removes, binds and listens, or removes at the end, is alone in the folder meanwhile: by
  flock(2) on the folder itself, which leaves no file behind. Else of two gateways that start
  together one could take the other's fresh socket, which does not listen yet, for a stale one.
- What fails says which address, why, and what to do (`ListenError`).
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.control.holders import holders
from gateway.errors import ListenError
from gateway.events import Address
from gateway.table import Listener

UNIX_PATH_MAX = 107           # bytes of sockaddr_un's path without its NUL, unix(7)
FOLDER_LIMIT = 2.0            # seconds to wait for others in the folder, who need milliseconds
FOLDER_RETRY = 0.01


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener with its socket. `address` is where it really is: port 0 is resolved."""

    listener: Listener
    socket: socket.socket
    address: Address
    file: tuple[int, int] | None = None  # device and inode of a Unix socket's file

    def remove_file(self) -> None:
        """Remove the Unix socket's file, if it is still ours. Harmless when repeated."""
        if self.file is None:
            return
        with contextlib.suppress(OSError), _alone_in_folder(self.address.path):
            if _identity(self.address.path) == self.file:
                Path(self.address.path).unlink()

    def abandon(self) -> None:
        """Close it and remove its file: no engine has taken the socket."""
        self.socket.close()
        self.remove_file()


def bind(listener: Listener, going: Iterable[Bound] = ()) -> Bound:
    """A listening, non-blocking socket for this listener. Raises `ListenError`.

    `going` are sockets of ours that will be closed: what is bound may be beside them until then.
    """
    if listener.address.is_unix:
        return _bind_unix(listener)
    beside = [
        each for each in going
        if each.address == listener.address or each.address.overlap(listener.address)
    ]
    return _bind_tcp(listener, beside)


def adjust(bound: Bound) -> None:
    """Give a socket that listens the backlog and the mode that its listener has now. What the
    kernel refuses stays as it was: the socket itself is good."""
    with contextlib.suppress(OSError):
        bound.socket.listen(bound.listener.backlog)
        if bound.file is not None and _identity(bound.address.path) == bound.file:
            Path(bound.address.path).chmod(bound.listener.mode)


def address_of_socket(bound: socket.socket) -> Address:
    """Where a socket is bound."""
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return Address(path=name if isinstance(name, str) else os.fsdecode(name))
    return Address(host=name[0], port=name[1])


# --- TCP --------------------------------------------------------------------------------------


def _bind_tcp(listener: Listener, beside: Sequence[Bound]) -> Bound:
    address = listener.address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    opened: socket.socket | None = None
    try:
        opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Through getaddrinfo, which knows the zone of "fe80::1%eth0"; a literal never asks a name
        # server.
        found = socket.getaddrinfo(
            address.host, address.port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST
        )
        with _sharing([opened, *(each.socket for each in beside)] if beside else []):
            opened.bind(found[0][4])
            opened.listen(listener.backlog)
        port = opened.getsockname()[1]
    except OSError as error:
        if opened is not None:
            opened.close()
        raise ListenError(_tcp_message(address, error, beside)) from error
    return Bound(listener, opened, Address(host=address.host, port=port))


@contextlib.contextmanager
def _sharing(sockets: Sequence[socket.socket]) -> Iterator[None]:
    """All of these may listen on one port meanwhile; what listens then goes on. Raises OSError.

    Else 0.0.0.0:80 could not be had before 127.0.0.1:80 is closed, and who waits there lost. Linux
    asks for SO_REUSEPORT only while one is bound and begins to listen (inet_csk_get_port), of all
    that have the port then, which must be one user's. So it is there for a moment, and nobody else
    can come by it later, but for a program of the same user that asks for it.
    """
    try:
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield
    finally:
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def _tcp_message(address: Address, error: OSError, beside: Sequence[Bound] = ()) -> str:
    """Place, cause, remedy."""
    if error.errno == errno.EADDRINUSE:
        shows = f"ss -ltnp 'sport = :{address.port}' shows which"
        why = (
            "another process listens there; end it or choose another port"
            if not beside else
            f"this gateway listens on {beside[0].address} until then, by a socket that it cannot "
            "share since an init or another user has made it, or another process has the port too; "
            "restart the gateway, or end that process"
        ) + f" ({holders(address) or shows})"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = (
            f"port {address.port} needs root or CAP_NET_BIND_SERVICE; choose a port from 1024 on, "
            "grant the capability, or lower net.ipv4.ip_unprivileged_port_start"
        )
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "no interface of this machine has that address; `ip address` lists those it has"
    elif error.errno == errno.EAFNOSUPPORT:
        why = "this machine has no IPv6; listen on an IPv4 address"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        why = "no file descriptor is free; raise the limit (ulimit -n)"
    elif isinstance(error, socket.gaierror):
        why = f"that is no IP address ({error.strerror}); write a literal, not a name"
    else:
        why = error.strerror or str(error)
    return f"cannot listen on {address}: {why}"


# --- Unix -------------------------------------------------------------------------------------


def _bind_unix(listener: Listener) -> Bound:
    path = listener.address.path
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ListenError(
            f"cannot listen on {listener.address}: the path has {len(os.fsencode(path))} bytes and "
            f"the kernel takes {UNIX_PATH_MAX}; choose a shorter one"
        )
    try:
        with _alone_in_folder(path):
            _remove_stale(listener.address)
            return _make_unix(listener)
    except OSError as error:
        raise ListenError(_unix_message(listener.address, error)) from error


def _make_unix(listener: Listener) -> Bound:
    """Bind and listen where nothing is in the way. Raises OSError, and leaves nothing then."""
    path = listener.address.path
    opened: socket.socket | None = None
    file = None
    # The file is made by bind, with a mode that only the umask can narrow in time; chmod then
    # gives exactly what was asked for. Threads do not matter: none makes files now.
    mask = os.umask(0o777 & ~listener.mode)
    try:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.bind(path)
        file = _identity(path)
        Path(path).chmod(listener.mode)
        opened.listen(listener.backlog)
    except OSError:
        if opened is not None:
            opened.close()
        if file is not None:
            Path(path).unlink(missing_ok=True)
        raise
    finally:
        os.umask(mask)
    return Bound(listener, opened, listener.address, file)


@contextlib.contextmanager
def _alone_in_folder(path: str) -> Iterator[None]:
    """Nobody else of this program makes or removes sockets in the folder of `path` meanwhile.

    A folder that we may not read, or a file system without such locks, is used without: rare, and
    better than a gateway that does not start. Raises TimeoutError where somebody stays in it.
    """
    try:
        folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield                           # who binds will say what is wrong
        return
    try:
        until = time.monotonic() + FOLDER_LIMIT
        while not _lock(folder):
            if time.monotonic() > until:
                raise TimeoutError(errno.ETIMEDOUT, "another program locks the folder")
            time.sleep(FOLDER_RETRY)    # not in flock itself: whoever may read it may lock it
        yield
    finally:
        os.close(folder)                # and with it the lock: nobody has inherited it


def _lock(folder: int) -> bool:
    """Whether it is ours, or cannot be anybody's."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:                     # flock(2): NFS, which wants a file that is open to write
        return True
    return True


def _remove_stale(address: Address) -> None:
    """Make way at this path, if what is there is the socket of a program that is gone."""
    try:
        mode = os.lstat(address.path).st_mode
    except OSError:
        return                          # nothing is there, or bind will say what is wrong
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            f"cannot listen on {address}: a file is there that is no socket; move it away or "
            "choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
        number = asking.connect_ex(address.path)
    # A full backlog (EAGAIN) is somebody who listens, too.
    if number in (0, errno.EAGAIN):
        who = holders(address)
        raise ListenError(
            f"cannot listen on {address}: another process listens there; end it or choose another "
            f"path{who and f' ({who})'}"
        )
    if number == errno.ECONNREFUSED:
        try:
            Path(address.path).unlink(missing_ok=True)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {address}: a socket that nobody listens on is in the way and "
                f"cannot be removed ({error.strerror}); remove it"
            ) from error


def _unix_message(address: Address, error: OSError) -> str:
    """Place, cause, remedy."""
    folder = Path(address.path).parent
    if error.errno == errno.ENOENT:
        why = f"the folder {folder} does not exist; create it"
    elif error.errno == errno.ENOTDIR:
        why = f"{folder} is no folder; choose another path"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = f"this user may not create files in {folder}; change its owner or mode"
    elif error.errno == errno.EROFS:
        why = f"{folder} is on a file system that is read-only; choose another path"
    elif error.errno == errno.ETIMEDOUT:
        why = f"another program holds a lock on the folder {folder}; end it or choose another path"
    elif error.errno == errno.EADDRINUSE:
        why = "a socket is there that this user may not ask; remove it or choose another path"
    else:
        why = error.strerror or str(error)
    return f"cannot listen on {address}: {why}"


def _identity(path: str) -> tuple[int, int]:
    """Device and inode of the file at this path, itself."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino
