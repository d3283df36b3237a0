"""The listening sockets of this program: bound here, or had from an init or from a predecessor.

Laws of this file:

- A socket is known by its role and by the address as the table has it: so port 0 of a predecessor
  stays the port that clients know. An init's sockets are listeners, by the address they are on.
- What an init hands over and the table does not want is an error that names both: whoever holds it
  open would wait for ever. What a predecessor hands over and the table does not name any more is
  closed once we serve.
- A Unix socket's file is removed at the end by whose it is. It is the init's, or the predecessor's
  as long as we do not serve, or the successor's as soon as that one does.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass

from gateway.control import listening, systemd
from gateway.control.channel import unpack_address
from gateway.control.listening import Bound, address_of_socket
from gateway.errors import ListenError
from gateway.events import Address
from gateway.table import Listener

VARIABLE = "GATEWAY_REPLACES"  # what a predecessor tells us, in our environment
READY = b"ready\n"             # and behind it, as JSON, the descriptors that we do not want
LISTENER = "listener"          # the role of what clients connect to; others have their own names


@dataclass(frozen=True, slots=True)
class Handed:
    """A listening socket from one program to another."""

    role: str
    wanted: Address            # as the table has it
    bound: Bound


@dataclass(frozen=True, slots=True)
class Told:
    """What a predecessor says of itself: its process, and a descriptor of what its workers count
    in (see shared.py), or -1."""

    process: int
    memory: int


class Sockets:
    """`listen` on what the table says, `check`, and `serving` once we do; `close` at the end.

    Raises `ListenError` for what an init hands over that is no listening socket.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self.given_away = False                  # a successor serves: files are its own
        self._ready = -1                         # where a predecessor hears that we serve
        self.predecessor: Told | None = None     # for whoever takes the memory
        self._handed = self._from_predecessor(environment.pop(VARIABLE, ""))
        self._files = {each.bound.file for each in self._handed if each.bound.file is not None}
        self._of_init: list[Handed] = []
        for sock in systemd.inherited(environment):
            address = address_of_socket(sock)
            bound = Bound(Listener(address=address), sock, address)
            self._of_init.append(Handed(LISTENER, address, bound))
        self._used: list[tuple[str, Bound]] = []

    def _from_predecessor(self, told: str) -> list[Handed]:
        if not told:
            return []
        read = json.loads(told)
        self._ready = read["ready"]
        os.set_inheritable(self._ready, False)
        # One of an older version hands over none.
        self.predecessor = Told(read.get("process", -1), read.get("memory", -1))
        if self.predecessor.memory >= 0:
            os.set_inheritable(self.predecessor.memory, False)
        handed = []
        for each in read["sockets"]:
            os.set_inheritable(each["descriptor"], False)
            sock = socket.socket(fileno=each["descriptor"])
            wanted = unpack_address(each["wanted"])
            file = None if each["file"] is None else (each["file"][0], each["file"][1])
            bound = Bound(Listener(address=wanted), sock, unpack_address(each["address"]), file)
            handed.append(Handed(each["role"], wanted, bound))
        return handed

    @property
    def has_predecessor(self) -> bool:
        """One waits until we serve, and then ends."""
        return self._ready >= 0

    def listen(self, role: str, listener: Listener) -> Bound:
        """A listening socket for this listener. Raises `ListenError`."""
        bound = None
        for source in (self._handed, self._of_init):
            for each in source:
                if bound is None and each.role == role and each.wanted == listener.address:
                    source.remove(each)
                    bound = Bound(listener, each.bound.socket, each.bound.address, each.bound.file)
                    listening.adjust(bound)
                    break
        # One that the table has at another address now, or wider: it is closed once we serve.
        going = [each.bound for each in self._handed if each.wanted.port]
        bound = bound or listening.bind(listener, going)
        self._used.append((role, bound))
        return bound

    def check(self) -> None:
        """All that the table names is listened on. Raises `ListenError` where an init has more."""
        if self._of_init:
            more = ", ".join(str(each.wanted) for each in self._of_init)
            ours = ", ".join(
                str(each.listener.address) for role, each in self._used if role == LISTENER
            )
            raise ListenError(
                f"the init hands over a socket on {more} (LISTEN_FDS), and the table listens on "
                f"{ours}; write the same addresses in both"
            )

    def serving(self) -> None:
        """We serve: a predecessor may go, and the files are ours."""
        if not self.has_predecessor:
            return
        self._files.clear()
        given_up = json.dumps([each.bound.socket.fileno() for each in self._handed])
        for each in self._handed:
            each.bound.abandon()
        self._handed.clear()
        with contextlib.suppress(OSError):       # it is gone already
            os.write(self._ready, READY + given_up.encode("ascii"))
        os.close(self._ready)
        self._ready = -1

    def close(self, others: Iterable[Bound] = ()) -> None:
        """Close all, and `others` that a reload has bound; remove the files that are ours."""
        used = [each for _, each in self._used]
        left = [each.bound for each in (*self._handed, *self._of_init)]
        for bound in (*used, *left, *others):
            if self.given_away or bound.file in self._files:
                bound.socket.close()
            else:
                bound.abandon()
