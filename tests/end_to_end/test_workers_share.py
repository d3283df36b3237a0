"""Several workers of one gateway: how sessions spread over them, and limits that hold over all."""

import os
import select
import signal
import socket

import pytest

from end_to_end.kit import Gateway, Starter, head, refused, route
from end_to_end.wire import Wire, upgrade, wait_for
from gateway.balance import allowed
from gateway.engine.contract import ACCEPTS_PER_TURN

EACH = 100            # sessions for each worker


def come(gateway: Gateway, crowd: list[Wire], count: int, target: str = "/ws") -> None:
    """So many more sessions, which stay open. They all come before any of them is answered."""
    clients = [gateway.connect() for _ in range(count)]
    crowd += clients
    for client in clients:
        client.send(upgrade(target))
    for client in clients:
        assert client.read_head().status == 101


def is_lost(client: Wire) -> bool:
    """Its connection has ended."""
    if not select.select([client.socket], [], [], 0)[0]:
        return False
    try:
        return not client.socket.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


class Shares:
    """How many sessions each worker has, by the descriptors that it has open: an echo endpoint is
    in the worker, so that a session has the same number of them everywhere."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.idle = {pid: self.open(pid) for pid in gateway.workers}
        self.each = 0.0

    @staticmethod
    def open(pid: int) -> int:
        """Descriptors of a process."""
        return len(os.listdir(f"/proc/{pid}/fd"))

    def of(self, total: int) -> list[float]:
        """Sessions of each worker, where all have `total`."""
        least = min(self.idle.values())
        grown = [self.open(pid) - self.idle.get(pid, least) for pid in self.gateway.workers]
        self.each = self.each or sum(grown) / total
        return [count / self.each for count in grown]


@pytest.mark.parametrize("workers", [2, 4])
def test_sessions_that_stay_spread_over_the_workers(
    start: Starter, crowd: list[Wire], workers: int
) -> None:
    """As docs/scaling.md says: an eighth more than the mean, at least 16, and one batch. Also
    behind a crash, where one worker begins anew."""
    gateway = start(head(f"workers = {workers}") + route("ws", "builtin:echo"))
    shares = Shares(gateway)
    assert len(shares.idle) == workers
    come(gateway, crowd, EACH * workers)
    spread = shares.of(EACH * workers)
    most = allowed(EACH) + ACCEPTS_PER_TURN
    assert max(spread) <= most, spread
    os.kill(gateway.workers[0], signal.SIGKILL)
    wait_for(lambda: "a worker died" in gateway.messages, message="nobody noticed")
    wait_for(lambda: '"a worker serves"' in gateway.messages, message="nobody took its place")
    lost = sum(map(is_lost, crowd))          # the kernel told them when the process was gone
    assert lost == pytest.approx(spread[0], abs=5)
    come(gateway, crowd, lost)
    spread = shares.of(EACH * workers)
    assert max(spread) <= most, spread


def test_a_worker_that_is_full_leaves_clients_to_another(
    start: Starter, crowd: list[Wire]
) -> None:
    """`max_sessions` is each worker's; together they take twice as many, and then refuse."""
    gateway = start(head("workers = 2", "max_sessions = 10") + route("ws", "builtin:echo"))
    for _ in range(20):
        come(gateway, crowd, 1)
    got, _ = refused(gateway, upgrade("/ws"))
    assert got.status == 503
    crowd[7].reset()
    wait_for(lambda: _admitted(gateway, crowd, "/ws"), message="no room was made")


def test_limits_hold_over_all_workers(start: Starter, crowd: list[Wire]) -> None:
    """Of a route, and of a client on a route. Sessions come one by one, to whichever worker."""
    gateway = start(
        head("workers = 4")
        + route("few", "builtin:echo", "max_sessions = 9")
        + route("each", "builtin:echo", "max_sessions_per_client = 7")
    )
    for target, limit, status in (("/few", 9, 503), ("/each", 7, 429)):
        for _ in range(limit):
            come(gateway, crowd, 1, target)
        for _ in range(12):
            got, _ = refused(gateway, upgrade(target))
            assert got.status == status
        crowd.pop().reset()

        def is_admitted(target: str = target) -> bool:
            return _admitted(gateway, crowd, target)

        wait_for(is_admitted, message="no room was made")


def test_a_dead_worker_s_sessions_make_room(start: Starter, crowd: list[Wire]) -> None:
    gateway = start(head("workers = 1") + route("few", "builtin:echo", "max_sessions = 3"))
    come(gateway, crowd, 3, "/few")
    os.kill(gateway.workers[0], signal.SIGKILL)
    wait_for(lambda: "a worker died" in gateway.messages, message="nobody noticed")
    come(gateway, crowd, 3, "/few")
    got, _ = refused(gateway, upgrade("/few"))
    assert got.status == 503


def _admitted(gateway: Gateway, crowd: list[Wire], target: str) -> bool:
    """True if one more session is let in, which stays open."""
    client = gateway.connect()
    crowd.append(client)
    client.send(upgrade(target))
    return client.read_head().status == 101
