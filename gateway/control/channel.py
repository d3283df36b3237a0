"""What the supervisor and a worker say to each other, as bytes.

Two socketpairs for each worker. On one, JSON lines go both ways, one object a line; the word "do"
or "is" names it. On the other, listening sockets go down (SCM_RIGHTS), each **before** the line
that speaks of it, so that whoever reads the line has the socket already.

Down:

    {"do": "begin", "worker": index, "workers": n, "engine": name, "form": name,
     "max_sessions": n, "table": packed, "endpoints": packed,
     "listeners": [{"index": n, "address": packed}, ...]}
                                the first line, answered by "serving" or "refused"; the listeners
                                are in the order of the table's, under numbers that no other has
    {"do": "drain", "seconds": s, "cause": why, "others": bool, "alone": [n, ...]}
                                "others" go on accepting from the listening sockets, but for those
                                of these numbers, if there are any
    {"do": "kill", "why": why}  tell the sessions, and cut them
    {"do": ..., "id": n, ...}   what is answered, by a line with the same id

Up:

    {"is": "serving", "worker": index}             it accepts
    {"is": "refused", "error": text, "code": n}    it cannot begin; n is the exit code
    {"is": "ended", "accepted": n, "cut": n, "dropped": n}    the last line
    {"is": ..., "id": n, ...}                      the answer to the line of that id

Laws of this file:

- Both ends are this program, so that a line which cannot be read is a bug. But nothing that comes
  up is unpickled: a worker has read what strangers sent, and must not be able to make the
  supervisor run code.
- End of file upward means that the worker has ended; downward that the supervisor has: the worker
  drains and ends. So no end may be inherited by anybody else.
- A table that goes down has the keys of its certificates in it, and of its tickets. No line is ever
  logged.
- An answer stays below `ANSWER_MAX`, which is less than an engine queues for one link.
"""

import base64
import errno
import json
import os
import pickle
import socket
from collections.abc import Mapping
from typing import Any

from gateway.events import Address
from gateway.table import EndpointEntry, Table

ANSWER_MAX = 256 * 1024
RECEIVE_MAX = 64 * 1024
SOCKETS_MAX = 253             # SCM_MAX_FD: what one message carries, unix(7)

Message = dict[str, Any]
Endpoints = dict[str, list[tuple[EndpointEntry, Address]]]

_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode(message: Message) -> bytes:
    """One line. ASCII, so that no byte of it can be a newline but the last."""
    return _to_json(message).encode("ascii") + b"\n"


class Lines:
    """Cuts what arrives into messages. A line of any length costs no more than its bytes."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []    # pieces of a line that has no end yet

    @property
    def is_empty(self) -> bool:
        """No line is begun."""
        return not self._begun

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now."""
        *whole, rest = data.split(b"\n")
        messages = []
        for line in whole:
            self._begun.append(line)
            message = json.loads(b"".join(self._begun))
            self._begun.clear()
            assert isinstance(message, dict), f"no message: {message!r}"
            messages.append(message)
        if rest:
            self._begun.append(rest)
        return messages


# --- What stands in a message -----------------------------------------------------------------


def pack_table(table: Table) -> str:
    """A table as it goes down."""
    return base64.b64encode(pickle.dumps(table, pickle.HIGHEST_PROTOCOL)).decode("ascii")


def unpack_table(packed: str) -> Table:
    """The table that the supervisor packed."""
    table = pickle.loads(base64.b64decode(packed))  # noqa: S301 - the supervisor is ourselves
    assert isinstance(table, Table)
    return table


def pack_address(address: Address) -> list[str | int]:
    """An address as it stands in a message."""
    return [address.host, address.port, address.path, address.builtin]


def unpack_address(packed: list[Any]) -> Address:
    """The same, read."""
    host, port, path, builtin = packed
    return Address(host=host, port=port, path=path, builtin=builtin)


def pack_endpoints(table: Table, endpoints: Endpoints) -> dict[str, list[list[Any]]]:
    """Where each upstream's endpoints are: of each the number of its entry in the table (-1: it
    needs none there, being built in) and its address."""
    packed = {}
    for name, found in endpoints.items():
        entries = table.upstreams[name].entries
        packed[name] = [
            [entries.index(entry) if entry in entries else -1, pack_address(address)]
            for entry, address in found
        ]
    return packed


def unpack_endpoints(table: Table, packed: dict[str, list[list[Any]]]) -> Endpoints:
    """The same, read: what `Pool.set_endpoints` takes."""
    endpoints = {}
    for name, found in packed.items():
        upstream = table.upstreams[name]
        builtin = EndpointEntry(url=f"builtin:{upstream.builtin}")
        endpoints[name] = [
            (upstream.entries[number] if number >= 0 else builtin, unpack_address(address))
            for number, address in found
        ]
    return endpoints


# --- Sockets ----------------------------------------------------------------------------------


def socket_pairs() -> tuple[tuple[socket.socket, socket.socket], tuple[socket.socket, ...]]:
    """A channel and its lane for sockets; of each the supervisor's end, then the worker's.

    None of them is inherited. The lane keeps the bounds of what is sent (SOCK_SEQPACKET).
    """
    lines = socket.socketpair()
    lane = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for each in (lines[0], *lane):
        each.setblocking(False)
    return lines, lane


def send_sockets(lane: socket.socket, sockets: Mapping[int, socket.socket]) -> None:
    """Send listening sockets under their numbers. Raises OSError: BlockingIOError where the worker
    has not taken what was sent before.

    Many go in one message: of messages a lane takes no more than some hundreds.
    """
    numbers = list(sockets)
    for start in range(0, len(numbers), SOCKETS_MAX):
        some = numbers[start : start + SOCKETS_MAX]
        text = ",".join(map(str, some)).encode("ascii")
        socket.send_fds(lane, [text], [sockets[number].fileno() for number in some])


def receive_sockets(lane: socket.socket) -> dict[int, socket.socket]:
    """All listening sockets that have come, by their numbers. Raises OSError where there is no
    descriptor for one."""
    found: dict[int, socket.socket] = {}
    while True:
        try:
            text, descriptors, _, _ = socket.recv_fds(lane, RECEIVE_MAX, SOCKETS_MAX)
        except BlockingIOError:
            return found
        if not text:
            return found                   # the supervisor is gone; the channel says so, too
        numbers = [int(number) for number in text.split(b",")]
        for number, descriptor in zip(numbers, descriptors, strict=False):
            os.set_inheritable(descriptor, False)
            found[number] = socket.socket(fileno=descriptor)
        if len(descriptors) < len(numbers):    # the kernel says only MSG_CTRUNC (unix(7))
            for each in found.values():
                each.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
