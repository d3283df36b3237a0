"""What runs inside the clean root: the installed gateway on io_uring, and one echo through it.

    python echo_in_clean_root.py FORM

The standard library alone. Prints the gateway's start line and what came back. See
`test_clean_root.py`.
"""

import re
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

TABLE = """\
[gateway]
listen = ["127.0.0.1:0"]
engine = "io_uring"
ring = "{form}"
workers = 1

[[route]]
name = "echo"
path = "/*"
upstream = "{upstream}"
"""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: clean.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
WORDS = b"from a clean root"
PATIENCE_S = 20.0


def main(form: str) -> None:
    """The first gateway echoes; the second relays to it, compiled and in the ring."""
    with tempfile.TemporaryDirectory() as folder:
        echo, echo_port = start(Path(folder, "echo.toml"), form, "builtin:echo")
        relay, port = start(Path(folder, "relay.toml"), form, f"ws://127.0.0.1:{echo_port}")
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
            client.settimeout(PATIENCE_S)
            stream = client.makefile("rwb")
            stream.write(UPGRADE + b"\x81" + bytes([0x80 | len(WORDS)]) + bytes(4) + WORDS)
            stream.flush()
            assert b" 101 " in stream.readline()
            while stream.readline() != b"\r\n":
                pass
            assert stream.read(2 + len(WORDS)) == b"\x81" + bytes([len(WORDS)]) + WORDS
            stream.write(b"\x88\x82" + bytes(4) + b"\x03\xe8")
            stream.flush()
            assert stream.read(4) == b"\x88\x02\x03\xe8"
        for gateway in (relay, echo):
            gateway.terminate()
            assert gateway.wait(PATIENCE_S) == 0
    print("echoed:", WORDS.decode())


def start(table: Path, form: str, upstream: str) -> "tuple[subprocess.Popen[str], int]":
    """A gateway, and the port that it listens on."""
    table.write_text(TABLE.format(form=form, upstream=upstream))
    gateway = subprocess.Popen(
        [Path(sys.executable).with_name("gateway"), "--routes", table],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    assert gateway.stderr
    said = ""
    for line in gateway.stderr:
        said += line
        if found := re.search(r"serving.*127\.0\.0\.1:(\d+)", line):
            print(line.strip())
            threading.Thread(target=gateway.stderr.read, daemon=True).start()
            return gateway, int(found[1])
    raise SystemExit(f"it does not serve: {said}")


if __name__ == "__main__":
    main(sys.argv[1])
