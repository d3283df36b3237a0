"""A raw upstream that vanishes while nothing is said: the kernel's keep-alive finds it.

The proof is two machines, network namespaces with a pair of veth between them, of which the far
one's goes down. Where none may be made (it takes a user namespace, or root) it is skipped.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.engine.link_state import OPEN, LinkState
from gateway.engine.relay_driver import set_kernel_limits
from gateway.events import RelayRules

ROOT = Path(__file__).resolve().parents[2]

# The far machine: an upstream that says a word once it has heard one, and then vanishes.
FAR = """
import socket, subprocess, sys
def ip(words): subprocess.run(["ip", *words.split()], check=True)
def told(): assert sys.stdin.readline()
print("born", flush=True)
told()
ip("address add 192.0.2.2/24 dev far")
ip("link set far up")
listening = socket.create_server(("192.0.2.2", 7))
print("listens", flush=True)
one, _ = listening.accept()
one.sendall(one.recv(100))
told()
ip("link set far down")
print("vanished", flush=True)
sys.stdin.read()
"""

# The near machine: one relay of an engine, and its client, which answers pings.
NEAR = """
import json, socket, subprocess, sys, threading
from gateway import frames
from gateway.engine.uring import UringEngine
from gateway.engine.uv import UvEngine
from gateway.events import Address, Connected, RelayEnded, RelayRules

FAR = sys.argv[2]
MAKE = {
    "uvloop": UvEngine,
    "uvloop-python": lambda: UvEngine(compiled=False),
    "io_uring": lambda: UringEngine("readiness"),
    "io_uring-completions": lambda: UringEngine("completions"),
}
PING, PONG, CLOSE, MASK = 9, 10, 8, b"mask"

def ip(words): subprocess.run(["ip", *words.split()], check=True)

far = subprocess.Popen(["unshare", "--net", sys.executable, "-c", FAR], text=True,
                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def tell(): print(flush=True, file=far.stdin)
def wait_for(word): assert far.stdout.readline().strip() == word
wait_for("born")
ip(f"link add near type veth peer name far netns {far.pid}")
ip("address add 192.0.2.1/24 dev near")
ip("link set near up")
tell()
wait_for("listens")

engine = MAKE[sys.argv[1]]()
client_end, ours = socket.socketpair()
client = engine.adopt(ours)
upstream = engine.connect(Address(host="192.0.2.2", port=7))
outcome = {"payloads": []}

def be_client():
    client_end.sendall(frames.build_frame(2, b"word", MASK))
    reading = client_end.makefile("rb")
    while True:
        first, length = reading.read(2)
        payload = reading.read(length)
        if first & 15 == PING:
            client_end.sendall(frames.build_frame(PONG, payload, MASK))
        elif first & 15 == CLOSE:
            outcome["code"] = int.from_bytes(payload[:2], "big")
            client_end.sendall(frames.build_frame(CLOSE, payload[:2], MASK))
            client_end.shutdown(socket.SHUT_WR)
            return
        else:
            outcome["payloads"].append(payload.decode())
            tell()
            wait_for("vanished")

def deliver(batch):
    for event in batch:
        if isinstance(event, Connected):
            rules = RelayRules(raw=True, heartbeat=1, heartbeat_timeout=2, write_timeout=1)
            engine.relay(client, upstream, rules)
        elif isinstance(event, RelayEnded):
            outcome.update(cause=event.cause.value, side=event.side.name)
            engine.stop()

thread = threading.Thread(target=be_client, daemon=True)
thread.start()
engine.run(deliver)
thread.join()
far.stdin.close()
far.wait()
print(json.dumps(outcome))
"""


@pytest.mark.parametrize("name", ["uvloop", "uvloop-python", "io_uring", "io_uring-completions"])
def test_a_raw_upstream_that_vanishes_is_found_though_nothing_is_said(name: str) -> None:
    """Its client hears of it. Without the keep-alive this would wait for ever."""
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    apart = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    veth = "ip link add near type veth peer name far"
    if subprocess.run([*apart, *veth.split()], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace with veth may be made here")
    done = subprocess.run(
        [*apart, sys.executable, "-c", NEAR, name, FAR],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "payloads": ["word"], "code": 1014, "cause": "lost", "side": "UPSTREAM",
    }


# --- What is set ------------------------------------------------------------------------------


@pytest.fixture
def links() -> Iterator[tuple[LinkState, LinkState]]:
    """A client's link and an upstream's; nobody is at their far ends."""
    with socket.socket() as client, socket.socket() as upstream:
        made = LinkState(1, OPEN), LinkState(2, OPEN)
        for link, sock in zip(made, (client, upstream), strict=True):
            link.attach(sock, is_unix=False)
        yield made


def limits_of(link: LinkState) -> tuple[int, int, int, int, int]:
    """Keep-alive or not, first after, again each, so often; and TCP_USER_TIMEOUT, all in s."""
    assert link.sock is not None
    sock = link.sock
    idle, interval, count, user_ms = (
        sock.getsockopt(socket.IPPROTO_TCP, option)
        for option in (
            socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT
        )
    )
    on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return on, idle, interval, count, user_ms // 1000


@pytest.mark.parametrize(
    ("heartbeat", "heartbeat_timeout", "write_timeout", "expected"),
    [
        (30, 20, 30, (1, 30, 5, 4, 50)),         # the defaults: never after one lost probe
        (30, 20, 0, (1, 30, 5, 4, 0)),           # here the count decides
        (30, 20, 600, (1, 30, 5, 4, 601)),       # a window may be closed for so long
        (1, 2, 1, (1, 1, 1, 2, 3)),
        (0.1, 0.2, 0.5, (1, 1, 1, 1, 2)),        # the kernel's shortest
        (7, 30, 5, (1, 7, 7, 4, 35)),
        (31_536_000, 31_536_000, 0, (1, 32_767, 32_767, 127, 0)),
    ],
)
def test_the_kernel_asks_a_raw_upstream_by_the_heartbeats_times(
    links: tuple[LinkState, LinkState],
    heartbeat: float, heartbeat_timeout: float, write_timeout: float,
    expected: tuple[int, int, int, int, int],
) -> None:
    """TCP_USER_TIMEOUT, which decides in place of the count, is as long as all probes."""
    rules = RelayRules(
        raw=True, heartbeat=heartbeat, heartbeat_timeout=heartbeat_timeout,
        write_timeout=write_timeout,
    )
    client, upstream = links
    set_kernel_limits(client, upstream, rules)
    assert limits_of(upstream) == expected
    assert limits_of(client)[0] == 0
    assert limits_of(client)[4] == (int(write_timeout + 1) if write_timeout else 0)


@pytest.mark.parametrize(
    "rules", [RelayRules(raw=True, heartbeat=0), RelayRules(heartbeat=30)], ids=["off", "frames"]
)
def test_without_a_heartbeat_or_with_pings_the_kernel_does_not_ask(
    links: tuple[LinkState, LinkState], rules: RelayRules
) -> None:
    client, upstream = links
    set_kernel_limits(client, upstream, rules)
    for link in links:
        on, *_, user = limits_of(link)
        assert (on, user) == (0, 31)
