"""Connecting from several addresses: each has its own ports toward an upstream.

The proof is a machine of its own, a network namespace with very few ports to give out. Where none
may be made (it takes a user namespace, or root) it is skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PORTS = 40

# Runs in the namespace. Connects more often than one address has ports, and says what came of it.
PROGRAM = """
import fcntl, json, socket, struct, sys
from collections import Counter
from gateway.engine.uv import UvEngine
from gateway.errors import Fault
from gateway.events import Address, Connected, ConnectFailed

PORTS, SOURCES = int(sys.argv[1]), json.loads(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    up = struct.pack("16sh", b"lo", 0x1 | 0x8 | 0x40)        # IFF_UP, LOOPBACK, RUNNING
    fcntl.ioctl(any_socket, 0x8914, up)                      # SIOCSIFFLAGS
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as range_file:
    range_file.write(f"32768 {32768 + PORTS - 1}")
listening = socket.socket()
listening.bind(("127.0.0.1", 80))
listening.listen(512)
engine = UvEngine()
address = Address(host="127.0.0.1", port=80)
wanted = 2 * PORTS - 10
for count in range(wanted):
    engine.connect(address, SOURCES[count % len(SOURCES)])
outcome = Counter()

def deliver(batch):
    for event in batch:
        if isinstance(event, Connected):
            outcome["connected"] += 1
        elif isinstance(event, ConnectFailed):
            outcome[event.fault.name] += 1
    if outcome.total() == wanted:
        engine.stop()

engine.run(deliver)
print(json.dumps(outcome))
"""


def connected(sources: list[str]) -> dict[str, int]:
    """What comes of connecting from these addresses."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare(1)")
    apart = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--map-root-user", "--net"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace may be made here")
    done = subprocess.run(
        [*apart, sys.executable, "-c", PROGRAM, str(PORTS), json.dumps(sources)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )
    if "ip_local_port_range" in done.stderr:
        pytest.skip("the namespace's ports may not be set here")
    assert done.returncode == 0, done.stderr
    outcome: dict[str, int] = json.loads(done.stdout)
    return outcome


@pytest.mark.parametrize("sources", [[""], ["127.0.0.2"]])
def test_one_address_has_its_ports_and_no_more(sources: list[str]) -> None:
    outcome = connected(sources)
    assert outcome["connected"] <= PORTS
    assert outcome["NO_ADDRESS"] == 2 * PORTS - 10 - outcome["connected"]


def test_two_addresses_have_twice_as_many() -> None:
    """The same port of two addresses is two ends: bind(2) gave none away."""
    assert connected(["127.0.0.2", "127.0.0.3"]) == {"connected": 2 * PORTS - 10}
