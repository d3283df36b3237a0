"""Runs `attacks.py`: each string whole, and in pieces cut at random places."""

import base64
import itertools
import random
import time

import pytest

from end_to_end.attacks import ATTACKS, Attack, request
from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import Head, Upstream, Wire, close_frame, switching

HOP_BY_HOP = {
    b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"content-length",
    b"proxy-authorization",
}


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """Two routes to the instrumented upstream; a second listener has little time for heads."""
    url = upstream.url("ws")
    quick = 'close_timeout = "2s"'
    hasty = '[[listener]]\naddress = "127.0.0.2:0"\nhead_timeout = "300ms"\n'
    origins = 'origins = ["https://good.test"]'
    return start_shared(head() + hasty + route("ws", url, quick) + route("origin", url, origins))


def test_there_are_enough_and_each_has_its_own_name() -> None:
    """At least 160, by the names that a report shows."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 160


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attack(ends: Ends, attack: Attack) -> None:
    """The whole string in one piece."""
    run(ends, attack, [attack.data])


@pytest.mark.parametrize("attack", [one for one in ATTACKS if not one.slow], ids=str)
def test_attack_in_pieces(ends: Ends, attack: Attack) -> None:
    """The same outcome, wherever the string is cut."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    size = min(len(attack.data), 1000)
    cuts = sorted({dice.randrange(size + 1) for _ in range(3)})
    places = [0, *cuts, len(attack.data)]
    run(ends, attack, [attack.data[a:b] for a, b in itertools.pairwise(places)])


def run(ends: Ends, attack: Attack, pieces: list[bytes]) -> None:
    """Send the pieces, play the upstream, and look at everything that came back."""
    client = ends.client(listener=1 if attack.slow else 0)
    for number, piece in enumerate(pieces):
        if number:
            time.sleep(0.001)  # so that most pieces arrive alone
        client.send_anyway(piece)
    for status in attack.answers:
        if status == 101 or attack.refusal:
            serve(ends, attack)
        got = client.read_head()
        assert got.status == status, got.raw
        assert got.all(b"Transfer-Encoding") == []
        client.read_body(got, method="HEAD" if attack.head_only else "GET")
    if attack.answers[-1] == 101:
        finish_session(client, attack)
    else:
        # An answer that ends the connection does so without being asked; others at our FIN.
        if b"close" not in b",".join(got.all(b"Connection")):
            client.finish()
        client.expect_fin()
    assert not ends.upstream.waiting(), "the upstream was asked once too often"


def serve(ends: Ends, attack: Attack) -> None:
    """Play the upstream: one clean handshake, nothing behind it before the answer."""
    service = ends.service()
    asked = service.read_head()
    check_clean(asked, attack)
    if attack.refusal:
        service.send(attack.refusal)
        assert service.end() in ("fin", "reset")
        assert len(service.received) == service.parsed, "something came behind the handshake"
        return
    assert len(service.received) == service.parsed
    service.send(switching(asked))
    assert service.exactly(len(attack.behind)) == attack.behind
    if attack.close:
        assert service.read_close().code == 1001
        service.send_anyway(close_frame(1001, masked=False))
    service.finish()


def check_clean(asked: Head, attack: Attack) -> None:
    """The gateway's own handshake: one of each field, none that belongs to the client's hop."""
    assert asked.start == b"GET " + attack.target + b" HTTP/1.1"
    for name, value in [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")]:
        assert asked.get(name) == value
    connection = asked.get(b"Connection")
    assert connection is not None
    assert connection.lower() == b"upgrade"
    host = asked.get(b"Host")
    assert host
    assert b"evil" not in host
    assert len(base64.b64decode(asked.get(b"Sec-WebSocket-Key") or b"", validate=True)) == 16
    names = {name.lower() for name, _ in asked.fields}
    assert not names & HOP_BY_HOP
    for value in asked.all(b"X-Forwarded-For"):
        assert value == b"127.0.0.1"


def finish_session(client: Wire, attack: Attack) -> None:
    """After the 101 the client sees the Close that it earned, or the upstream's FIN."""
    if attack.close:
        assert client.read_close().code == attack.close
        client.finish()
        client.expect_fin()
    elif not attack.name.startswith("half"):
        client.finish()
        client.expect_fin()
    else:
        client.finish()
        client.end()


def test_slow_drip(ends: Ends) -> None:
    """Bytes that keep coming do not extend the head's time."""
    client = ends.client(listener=1)
    begun = time.monotonic()
    for byte in request() * 10:
        if not client.send_anyway(bytes([byte])) or not client.silent(0.02):
            break
    assert time.monotonic() - begun < 3
    got, _ = client.read_answer()
    assert got.status == 408
    assert not ends.upstream.waiting()
