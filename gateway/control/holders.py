"""Who listens on an address already, for the sentence that says so.

A worker that a debugger has stopped, or that hangs, cannot see that its supervisor is gone, and
keeps the address for as long: whoever starts the gateway again has to be told whom to end.

Laws of this file:

- It only looks, in /proc (proc(5)), and only where an address could not be had: it is slow.
- What may not be seen (another user's processes, other name spaces) is left out; nothing raises.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gateway.events import Address

_PROC = Path("/proc")
_TCP_LISTEN = "0A"            # TCP_LISTEN of the kernel's tcp_states.h
_UNIX_LISTEN = "00010000"     # __SO_ACCEPTCON
_WORKER = b"gateway.control.worker_process"


def holders(address: Address) -> str:
    """Who they are and what ends them, as part of a sentence; empty where nobody can be seen."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(address)}
    found = sorted(pid for pid, names in _descriptors() if not wanted.isdisjoint(names))
    lost = [pid for pid in found if _is_lost_worker(pid)]
    if lost:
        return (
            "a gateway's worker whose supervisor is gone and that does not end: "
            f"kill -KILL {' '.join(map(str, lost))}"
        )
    return f"process id {', '.join(map(str, found))}" if found else ""


def _inodes(address: Address) -> Iterator[str]:
    """Of the sockets that listen there; for TCP on that port, whatever the interface."""
    if address.is_unix:
        for row in _rows("unix"):
            if row[3] == _UNIX_LISTEN and row[7:] == [address.path]:
                yield row[6]
        return
    for row in (*_rows("tcp"), *_rows("tcp6")):
        if row[3] == _TCP_LISTEN and int(row[1].rpartition(":")[2], 16) == address.port:
            yield row[9]


def _rows(name: str) -> list[list[str]]:
    """The rows of a list of sockets, without its heading; a path may have spaces in it."""
    with contextlib.suppress(OSError):
        text = (_PROC / "net" / name).read_text(errors="surrogateescape")
        return [line.split(maxsplit=7 if name == "unix" else -1) for line in text.splitlines()[1:]]
    return []


def _descriptors() -> Iterator[tuple[int, set[str]]]:
    """Every process that we may look into, and what its descriptors are."""
    for folder in _PROC.glob("[0-9]*"):
        names = set()
        with contextlib.suppress(OSError):
            for link in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):   # it is closed by now
                    names.add(str(link.readlink()))
        yield int(folder.name), names


def _is_lost_worker(pid: int) -> bool:
    """A worker of ours whose parent is no gateway: it was given to an init (credentials(7))."""
    with contextlib.suppress(OSError):
        if _WORKER not in (_PROC / str(pid) / "cmdline").read_bytes():
            return False
        # The command's name stands in parentheses and may have spaces itself.
        parent = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]
        return b"gateway" not in (_PROC / parent / "cmdline").read_bytes()
    return False
