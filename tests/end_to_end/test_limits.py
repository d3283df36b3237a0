"""How many may come in, and what happens when nothing is left for more."""

import contextlib
import time

from end_to_end.kit import Gateway, Starter, head, refused, route
from end_to_end.wire import (
    BINARY,
    Upstream,
    Wire,
    close_frame,
    echo_frames,
    frame,
    plain,
    serving,
    upgrade,
    wait_for,
)

IDLE = 0.5  # seconds over which the CPU is watched


def admitted(gateway: Gateway, crowd: list[Wire], target: str) -> int:
    """The status of one more upgrade, which stays open."""
    client = gateway.connect()
    crowd.append(client)
    client.send(upgrade(target))
    return client.read_head().status


def test_sessions_per_route(start: Starter, crowd: list[Wire]) -> None:
    """503 with Retry-After above it; a session that ends makes room; other routes are free."""
    gateway = start(
        head()
        + route("few", "builtin:echo", "max_sessions = 3")
        + route("many", "builtin:echo")
    )
    assert [admitted(gateway, crowd, "/few") for _ in range(3)] == [101] * 3
    got, _ = refused(gateway, upgrade("/few"))
    assert got.status == 503
    assert int(got.get(b"Retry-After") or b"") > 0
    assert admitted(gateway, crowd, "/many") == 101
    crowd[0].reset()
    wait_for(lambda: admitted(gateway, crowd, "/few") == 101, message="no room was made")


def test_sessions_per_client(start: Starter, crowd: list[Wire]) -> None:
    """429 with Retry-After above it; another address is another client."""
    gateway = start(
        head('trusted_proxies = ["127.0.0.1"]')
        + route("ws", "builtin:echo", "max_sessions_per_client = 2")
    )
    assert [admitted(gateway, crowd, "/ws") for _ in range(2)] == [101] * 2
    got, _ = refused(gateway, upgrade("/ws"))
    assert got.status == 429
    assert int(got.get(b"Retry-After") or b"") > 0
    for number in range(3):
        client = gateway.connect()
        crowd.append(client)
        client.send(upgrade("/ws", f"X-Forwarded-For: 198.51.100.{number}"))
        assert client.read_head().status == 101


def test_sessions_per_process(start: Starter, crowd: list[Wire]) -> None:
    """503 above it, also for another route; plain exchanges are no sessions."""
    gateway = start(
        head("max_sessions = 4")
        + route("ws", "builtin:echo")
        + route("other", "builtin:echo")
        + route("page", "builtin:page", path="/")
    )
    assert [admitted(gateway, crowd, "/ws") for _ in range(4)] == [101] * 4
    got, _ = refused(gateway, upgrade("/other"))
    assert got.status == 503
    assert int(got.get(b"Retry-After") or b"") > 0
    with gateway.connect() as client:
        client.send(plain("/"))
        assert client.read_answer()[0].status == 200


def test_a_refused_session_leaves_room(start: Starter, crowd: list[Wire]) -> None:
    """What was refused, by us or the upstream, does not count on."""
    with Upstream() as gone:
        url = gone.url("ws")
    gateway = start(
        head()
        + route("dead", url, "max_sessions = 1")
        + route("echo", "builtin:echo", "max_sessions = 1")
    )
    for _ in range(5):
        assert refused(gateway, upgrade("/dead"))[0].status == 502
        assert refused(gateway, upgrade("/echo", key=None))[0].status == 400
    assert admitted(gateway, crowd, "/echo") == 101


# --- No free descriptor --------------------------------------------------------------------------

FILES = 64


def test_no_free_descriptor(start: Starter, crowd: list[Wire]) -> None:
    """Waiting clients are not dropped, nothing spins, and each is served in the end."""
    gateway = start(
        head("max_sessions = 1000") + route("page", "builtin:page", path="/"), files=FILES
    )
    for _ in range(FILES + 40):
        client = gateway.connect()
        crowd.append(client)
        client.send(plain("/"))
    served: list[Wire] = []

    def look() -> bool:
        for client in crowd:
            if client not in served and not client.silent(0):
                assert client.read_answer()[0].status == 200
                served.append(client)
        return len(served) > FILES // 8

    wait_for(look)
    time.sleep(0.2)
    look()
    assert len(served) < len(crowd), "there were descriptors enough; the test is of no use"
    before = gateway.cpu()
    time.sleep(IDLE)
    assert gateway.cpu() - before < IDLE / 4, "it spins while it waits for descriptors"
    waiting = [client for client in crowd if client not in served]
    for client in served:
        client.close()
    for client in waiting:
        assert client.read_answer()[0].status == 200
        client.close()
    with contextlib.closing(gateway.connect()) as client:
        client.send(plain("/"))
        assert client.read_answer()[0].status == 200


def test_who_is_let_in_can_be_connected_on(start: Starter, crowd: list[Wire]) -> None:
    """Each client that is accepted keeps a descriptor free for its upstream. So those beyond what
    fits wait in the backlog until others leave, and none is refused."""
    with Upstream() as upstream, serving(upstream, echo_frames):
        gateway = start(head("max_sessions = 1000") + route("ws", upstream.url("ws")), files=FILES)
        for _ in range(FILES):
            client = gateway.connect()
            crowd.append(client)
            client.send(upgrade())
        waiting = list(crowd)

        def heard() -> list[Wire]:
            return [client for client in waiting if not client.silent(0)]

        rounds = 0
        while waiting:
            wait_for(lambda: bool(heard()))
            served = heard()
            for client in served:
                assert client.read_head().status == 101
                client.send(frame(BINARY, b"there"))
                assert client.read_frame().payload == b"there"
            for client in served:
                waiting.remove(client)
                client.send(close_frame(1000))
                assert client.read_close().code == 1000
                client.close()
            rounds += 1
        assert rounds > 1, "there were descriptors enough; the test is of no use"
        assert "accepting is paused" in gateway.messages
