"""A crowd of WebSocket clients in one process, ordered by lines of JSON on standard input.

    {"do": "open", "port": p, "path": "/ws", "count": n, "rate": r, "sources": ["127.0.0.4"]}
    {"do": "knock", "port": ...}                              as open, but who is refused stays away
    {"do": "probe", "count": n, "every": s, "seconds": t}     n clients send a message each s
    {"do": "cut", "count": n}                                 so many go without a word, as RST
    {"do": "lost"}                                            how many are gone

Each is answered by one line when it is done. A client that is told 503 closes, and comes back when
`Retry-After` says so. Pings are answered all the while, also between orders. Nothing of the gateway
is imported: it is an independent client, and small, since there are thousands.
"""

import base64
import errno
import heapq
import itertools
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

RESET = struct.pack("ii", 1, 0)          # SO_LINGER: close is RST, and leaves no TIME_WAIT
FINISH = struct.pack("ii", 0, 0)         # close is FIN, as of clients that were told to go
BIND_NO_PORT = 24                        # IP_BIND_ADDRESS_NO_PORT
MASK = b"\1\2\3\4"
MESSAGE = b"\x82" + bytes([0x80 | 64]) + MASK
PAYLOAD = bytes(64)
Order = dict[str, Any]
Figures = dict[str, float]


class Client:
    """One connection."""

    __slots__ = ("begun", "data", "open", "sent_at", "sock")

    def __init__(self, sock: socket.socket, begun: float) -> None:
        self.sock = sock
        self.begun = begun               # when it first wanted in, however often it was refused
        self.open = False
        self.data = b""
        self.sent_at = 0.0               # of the message whose echo is awaited


class Crowd:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.poll.register(0, select.EPOLLIN)
        self.clients: dict[int, Client] = {}
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.lost = 0
        self.order: Order = {}
        self.opened = self.refused = self.failed = 0
        self.waits: list[float] = []
        self.trips: list[float] = []

    # --- The loop ---

    def run(self) -> None:
        """Until standard input ends."""
        while True:
            until = self.agenda[0][0] - time.monotonic() if self.agenda else 1.0
            for fd, mask in self.poll.poll(max(0.0, until), 4096):
                if fd == 0:
                    line = sys.stdin.buffer.readline()
                    if not line:
                        return
                    self.obey(json.loads(line))
                elif fd in self.clients:
                    self.on_ready(self.clients[fd], mask)
            while self.agenda and self.agenda[0][0] <= time.monotonic():
                heapq.heappop(self.agenda)[2]()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self.agenda, (when, next(self.serial), what))

    def answer(self, **figures: object) -> None:
        """The order is done."""
        print(json.dumps(figures), flush=True)

    # --- Orders ---

    def obey(self, order: Order) -> None:
        """Begin what was ordered."""
        now = time.monotonic()
        self.order = order
        if order["do"] in ("open", "knock"):
            self.opened = self.refused = self.failed = 0
            self.waits = []
            sources = itertools.cycle(order["sources"])
            for number in range(order["count"]):
                self.at(now + number / order["rate"], self._comer(next(sources), 0.0))
        elif order["do"] == "probe":
            self.trips = []
            probes = [one for one in self.clients.values() if one.open][: order["count"]]
            for number, client in enumerate(probes):
                self.at(now + order["every"] * number / len(probes), self._prober(client))
            self.at(now + order["seconds"], lambda: self.answer(**quantiles(self.trips)))
            self.order = order | {"until": now + order["seconds"]}
        elif order["do"] == "cut":
            for client in list(self.clients.values())[len(self.clients) - order["count"] :]:
                self.forget(client)
            self.answer()
        else:
            assert order["do"] == "lost"
            self.answer(lost=self.lost, open=sum(one.open for one in self.clients.values()))

    def _comer(self, source: str, begun: float) -> Callable[[], None]:
        return lambda: self.connect(source, begun or time.monotonic())

    def _prober(self, client: Client) -> Callable[[], None]:
        def probe() -> None:
            now = time.monotonic()
            if client.sock.fileno() < 0 or now >= self.order.get("until", 0.0):
                return
            if not client.sent_at:       # else the last one is still on its way, and will tell
                client.sent_at = now
                client.sock.send(MESSAGE + PAYLOAD)
            self.at(now + self.order["every"], probe)

        return probe

    # --- Clients ---

    def connect(self, source: str, begun: float) -> None:
        """One more comes."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.setsockopt(socket.IPPROTO_IP, BIND_NO_PORT, 1)
        sock.bind((source, 0))
        number = sock.connect_ex(("127.0.0.1", self.order["port"]))
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            self.failed += 1
            return
        self.clients[sock.fileno()] = Client(sock, begun)
        self.poll.register(sock.fileno(), select.EPOLLOUT)

    def on_ready(self, client: Client, mask: int) -> None:
        """It is connected, or something came."""
        try:
            if mask & select.EPOLLOUT:
                key = base64.b64encode(os.urandom(16)).decode()
                client.sock.send((
                    f"GET {self.order['path']} HTTP/1.1\r\nHost: scale.test\r\n"
                    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                    f"Sec-WebSocket-Key: {key}\r\n\r\n"
                ).encode())
                self.poll.modify(client.sock.fileno(), select.EPOLLIN)
                return
            data = client.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.lose(client)
            return
        client.data += data
        if client.open or self.is_admitted(client):
            self.read_frames(client)

    def is_admitted(self, client: Client) -> bool:
        """Read the answer to its handshake."""
        head, end, rest = client.data.partition(b"\r\n\r\n")
        if not end:
            return False
        if head.startswith(b"HTTP/1.1 101"):
            client.open, client.data = True, rest
            self.opened += 1
            self.waits.append(time.monotonic() - client.begun)
            self.look_whether_all_came()
            return True
        source = client.sock.getsockname()[0]
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, FINISH)
        self.forget(client)
        later = head.lower().partition(b"retry-after:")[2].split(b"\r\n")[0]
        self.refused += 1
        if self.order["do"] == "open":
            self.at(time.monotonic() + float(later or 1), self._comer(source, client.begun))
        self.look_whether_all_came()
        return False

    def look_whether_all_came(self) -> None:
        """An order to open is done when all are in; one to knock, when all have an answer."""
        order = self.order["do"]
        done = self.opened + self.failed + (self.refused if order == "knock" else 0)
        if order in ("open", "knock") and done == self.order["count"]:
            self.answer(opened=self.opened, refused=self.refused, failed=self.failed,
                        **quantiles(self.waits))

    def read_frames(self, client: Client) -> None:
        """Echoes are timed, pings are answered; all frames are short."""
        while len(client.data) >= 2:
            size = client.data[1]
            assert size < 126
            if len(client.data) < 2 + size:
                return
            opcode, payload = client.data[0] & 15, client.data[2 : 2 + size]
            client.data = client.data[2 + size :]
            if opcode == 9:
                masked = bytes(a ^ b for a, b in zip(payload, itertools.cycle(MASK), strict=False))
                client.sock.send(bytes([0x8A, 0x80 | size]) + MASK + masked)
            elif opcode == 2:
                self.trips.append(time.monotonic() - client.sent_at)
                client.sent_at = 0.0

    def lose(self, client: Client) -> None:
        """It is gone, and nobody ordered it."""
        if client.open:
            self.lost += 1
        else:
            self.failed += 1
        self.forget(client)

    def forget(self, client: Client) -> None:
        """Close it, as RST unless told otherwise."""
        del self.clients[client.sock.fileno()]
        client.sock.close()


def quantiles(seconds: list[float]) -> Figures:
    """Of some times, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return {
        "count": len(seconds),
        **{
            f"p{name}_ms": round(ordered[int(part * (len(ordered) - 1))] * 1000, 3)
            for name, part in (("50", 0.5), ("99", 0.99), ("100", 1.0))
        },
    }


if __name__ == "__main__":
    Crowd().run()
