"""`source_addresses`: where the gateway connects from, as an upstream sees it."""

from collections import Counter

from end_to_end.kit import Gateway, Starter, head, open_ws, refused, route
from end_to_end.wire import Upstream, Wire, upgrade


def table(upstream: Upstream, *sources: str) -> str:
    """One route to this upstream, from these addresses."""
    listed = ", ".join(f'"{source}"' for source in sources)
    return (
        head() + route("ws", "service")
        + f'[upstream.service]\nendpoints = ["{upstream.url("ws")}"]\n'
        + f"source_addresses = [{listed}]\n"
    )


def seen(gateway: Gateway, upstream: Upstream, sessions: int) -> Counter[str]:
    """The addresses that so many sessions came from, all open at once."""
    wires: list[Wire] = []
    try:
        for _ in range(sessions):
            wires += open_ws(gateway, upstream)
        return Counter(wire.socket.getpeername()[0] for wire in wires[1::2])
    finally:
        for wire in wires:
            wire.close()


def test_they_take_turns(start: Starter, upstream: Upstream) -> None:
    gateway = start(table(upstream, "127.0.0.2", "127.0.0.3"))
    assert seen(gateway, upstream, 6) == {"127.0.0.2": 3, "127.0.0.3": 3}


def test_one_that_the_machine_does_not_have_is_503_and_said(
    start: Starter, upstream: Upstream
) -> None:
    gateway = start(table(upstream, "192.0.2.77"))
    got, _ = refused(gateway, upgrade("/ws"))
    assert got.status == 503
    assert "no free address" in gateway.record(status=503)["detail"]


def test_an_endpoint_of_the_other_family_is_connected_as_ever(start: Starter) -> None:
    """An address of ours is for endpoints of its family alone."""
    with Upstream("::1") as service:
        gateway = start(table(service, "127.0.0.2"))
        assert seen(gateway, service, 2) == {"::1": 2}
    with Upstream("::1") as service:
        gateway = start(table(service, "127.0.0.2", "::1"))
        assert seen(gateway, service, 2) == {"::1": 2}
