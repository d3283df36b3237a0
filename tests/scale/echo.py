"""An upstream in a process of its own: a WebSocket echo for thousands, without the gateway.

It says its port on standard output, and ends with its standard input. Messages are those of
`crowd.py`, short and whole; pings are answered, and a Close ends the connection.
"""

import base64
import hashlib
import itertools
import select
import socket

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"   # RFC 6455 1.3
ACCEPTS = 256                                    # a turn
ANSWERS = {2: 2, 9: 10}                          # opcode: that of the answer


def answer_head(head: bytes) -> bytes:
    """The 101 to this request."""
    key = head.lower().index(b"sec-websocket-key:")
    value = head[key:].partition(b":")[2].split(b"\r\n")[0].strip()
    accept = base64.b64encode(hashlib.sha1(value + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class Session:
    """One connection of the gateway."""

    __slots__ = ("data", "is_open", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""
        self.is_open = False

    def received(self, data: bytes) -> bool:
        """Answer what came; False when it is over."""
        self.data += data
        if not self.is_open:
            head, end, rest = self.data.partition(b"\r\n\r\n")
            if not end:
                return True
            self.sock.send(answer_head(head))
            self.is_open, self.data = True, rest
        while len(self.data) >= 6:
            size = self.data[1] & 0x7F
            if len(self.data) < 6 + size:
                break
            opcode, mask = self.data[0] & 15, self.data[2:6]
            masked, self.data = self.data[6 : 6 + size], self.data[6 + size :]
            if opcode == 8:
                return False
            if opcode in ANSWERS:
                plain = bytes(a ^ b for a, b in zip(masked, itertools.cycle(mask), strict=False))
                self.sock.send(bytes([0x80 | ANSWERS[opcode], size]) + plain)
        return True


def main() -> None:
    """See the module's docstring."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listening.setblocking(False)
    print(listening.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(0, select.EPOLLIN)
    poll.register(listening.fileno(), select.EPOLLIN)
    sessions: dict[int, Session] = {}
    while True:
        for fd, _ in poll.poll(-1, 4096):
            if fd == 0:
                return
            if fd == listening.fileno():
                for _ in range(ACCEPTS):
                    try:
                        sock = listening.accept()[0]
                    except BlockingIOError:
                        break
                    sock.setblocking(False)
                    sessions[sock.fileno()] = Session(sock)
                    poll.register(sock.fileno(), select.EPOLLIN)
                continue
            session = sessions[fd]
            try:
                data = session.sock.recv(65536)
                goes_on = bool(data) and session.received(data)
            except OSError:
                goes_on = False
            if not goes_on:
                del sessions[fd]
                session.sock.close()


if __name__ == "__main__":
    main()
