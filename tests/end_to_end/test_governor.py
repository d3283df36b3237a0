"""`handshakes`: how a running gateway meets more of them than it may begin."""

import concurrent.futures
from collections import Counter

from end_to_end.kit import Gateway, Starter, head, route
from end_to_end.wire import upgrade, wait_for


def statuses(gateway: Gateway, paths: list[str]) -> Counter[int]:
    """What so many clients are answered that come at once; each 503 says when to come back."""

    def one(path: str) -> int:
        with gateway.connect() as client:
            client.send(upgrade(path))
            got = client.read_head()
            if got.status == 503:
                assert 1 <= int(got.get(b"Retry-After") or b"") <= 5
            return got.status

    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        return Counter(pool.map(one, paths))


def test_what_is_over_the_rate_of_a_route_waits_or_comes_back(start: Starter) -> None:
    """At five a second five of sixty go on within the second that they may wait, and some more if
    it takes them a while to come. Another route does not feel it, nor what is no upgrade."""
    gateway = start(
        head() + route("few", "builtin:echo", 'handshakes = "5/s"')
        + route("many", "builtin:echo") + route("page", "builtin:page", path="/")
    )
    seen = statuses(gateway, ["/few"] * 60)
    assert set(seen) == {101, 503}
    assert 5 <= seen[101] < 60

    def waited() -> int:
        return sum("wait" in one["phases_ms"] for one in gateway.records)

    wait_for(lambda: waited() >= 3, message="hardly any had to wait")
    assert statuses(gateway, ["/many"] * 30) == {101: 30}
    with gateway.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_head().status == 200


def test_a_listener_s_rate_is_for_all_its_routes(start: Starter) -> None:
    gateway = start(
        head(listen=()).replace("listen = []\n", "")
        + '[[listener]]\naddress = "127.0.0.1:0"\nhandshakes = "5/s"\n'
        + route("one", "builtin:echo") + route("two", "builtin:echo")
    )
    seen = statuses(gateway, ["/one", "/two"] * 20)
    assert set(seen) == {101, 503}
    assert 5 <= seen[101] < 40


def test_below_the_rate_nobody_waits(start: Starter) -> None:
    gateway = start(head() + route("ws", "builtin:echo", 'handshakes = "100000/s"'))
    assert statuses(gateway, ["/ws"] * 20) == {101: 20}
    for _ in range(20):
        assert "wait" not in gateway.record(status=101)["phases_ms"]
