"""What happens at the seams: between two requests, behind a refusal, around a 101, in a crowd."""

import random
import signal

import pytest

from end_to_end.kit import Ends, Gateway, Starter, head, route
from end_to_end.wire import (
    BINARY,
    TEXT,
    Upstream,
    Wire,
    close_frame,
    frame,
    plain,
    serving,
    switching,
    upgrade,
    wait_for,
)

pytestmark = pytest.mark.forms

REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnope!"
GONE = b"\x03\xf6"                  # 1014: the upstream is lost


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, upstream: Upstream) -> Gateway:
    """Little time for everything."""
    hasty = (
        '[[listener]]\naddress = "127.0.0.2:0"\nhead_timeout = "600ms"\n'
        'keepalive_timeout = "300ms"\n'
    )
    return start_shared(
        head()
        + hasty
        + route("ws", upstream.url("ws"), 'close_timeout = "2s"')
        + route("page", "builtin:page", path="/")
    )


# --- Behind a refusal ----------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [100, 60_000, 300_000])
def test_frames_before_a_refusal_do_not_destroy_it(ends: Ends, behind: int) -> None:
    """The client is told whole, and its frames are thrown away; so is what the upstream says
    behind its answer."""
    client = ends.client()
    with client.sending(upgrade() + frame(BINARY, bytes(behind))):
        service = ends.service()
        service.read_head()
        service.send(REFUSAL + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        got, body = client.read_answer()
        assert (got.status, body) == (403, b"nope!")
        client.expect_fin()


def test_a_reset_behind_a_whole_refusal(ends: Ends) -> None:
    """It was whole: the client is not reset for it."""
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.read_head()
    service.send(REFUSAL + b"and more")
    service.reset()
    got, body = client.read_answer()
    assert (got.status, body) == (403, b"nope!")
    client.expect_fin()


def test_a_client_that_half_closes_inside_a_refusal_hears_its_end(ends: Ends) -> None:
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.read_head()
    service.send(REFUSAL[:-3])
    client.until(REFUSAL[-5:-3])
    client.finish()
    service.send(REFUSAL[-3:])
    assert client.exactly(3) == REFUSAL[-3:]
    client.expect_fin()


@pytest.mark.parametrize(
    "first",
    [upgrade("/none"), upgrade(key=None), plain("/").replace(b"Host", b"Nost")],
    ids=["no route", "no key", "no host"],
)
def test_a_request_behind_a_refusal_is_not_answered(ends: Ends, first: bytes) -> None:
    """The connection is at its end; what follows might not be what it seems."""
    client = ends.client()
    client.send(first + plain("/") * 3)
    got, _ = client.read_answer()
    assert got.status in (400, 404)
    client.expect_fin()


# --- Around a 101 --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["fin", "reset"])
@pytest.mark.parametrize("said", ["nothing", "message", "close", "cut"])
def test_an_upstream_that_ends_with_its_101(ends: Ends, said: str, end: str) -> None:
    """What it said behind the 101 arrives; a cut frame looks cut, a reset is told of."""
    down = {
        "nothing": b"", "message": frame(TEXT, b"hi", masked=False),
        "close": close_frame(1000, masked=False), "cut": frame(TEXT, b"hi", masked=False)[:3],
    }[said]
    client = ends.client()
    client.send(upgrade())
    service = ends.service()
    service.send(switching(service.read_head()) + down)
    if end == "fin":
        service.finish()
    else:
        service.reset()
    assert client.read_head().status == 101
    assert client.exactly(len(down)) == down
    if said == "cut":
        client.expect_reset()
        return
    if said != "close" and end == "reset":
        assert client.read_close().payload[:2] == GONE
    client.send_anyway(close_frame(1000))
    client.expect_fin()


# --- Between two requests ------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"", b"\r", b"\r\n"], ids=["nothing", "half", "whole"])
@pytest.mark.parametrize("together", [True, False])
def test_an_empty_line_holds_no_connection(ends: Ends, behind: bytes, together: bool) -> None:
    """RFC 9112 2.2: it is ignored, whether it comes with the request or later; the connection
    ends as an idle one, without an answer to it."""
    client = ends.client(listener=1)
    client.send(plain("/") + (behind if together else b""))
    assert client.read_answer()[0].status == 200
    if behind and not together:
        client.send(behind)
    client.expect_fin()


# --- Crowds --------------------------------------------------------------------------------------


def test_a_crowd_that_comes_and_goes(start: Starter) -> None:
    """Hundreds of fast connects, cut at any place: nothing is left of them."""
    with Upstream() as silent, Upstream() as refusing:
        def refuse(wire: Wire) -> None:
            wire.read_head()
            wire.send(REFUSAL)

        with serving(refusing, refuse):
            gateway = start(
                head()
                + route("silent", silent.url("ws"), 'answer_timeout = "1s"')
                + route("refuse", refusing.url("ws"))
                + route("echo", "builtin:echo", 'close_timeout = "1s"')
                + route("page", "builtin:page", path="/")
            )
            before = gateway.descriptors()
            seed = random.randrange(1 << 32)
            print("seed", seed)
            dice = random.Random(seed)
            heads = [
                upgrade("/silent"), upgrade("/refuse"), upgrade("/echo"), upgrade("/none"),
                plain("/"), plain("/") * 20, b"BAD\r\n\r\n", b"\r\n", b"GET / HT", b"",
            ]
            for _ in range(600):
                client = gateway.connect()
                client.send_anyway(dice.choice(heads) + dice.choice([b"", frame(TEXT, b"x")]))
                if dice.random() < 0.3:
                    client.silent(0.002)
                if dice.random() < 0.6:
                    client.reset()
                client.close()
            wait_for(lambda: gateway.descriptors() <= before + 2 * 32)  # splices keep their pipes
            with gateway.connect() as client:
                client.send(upgrade("/echo"))
                assert client.read_head().status == 101
            assert "Traceback" not in gateway.messages


def test_a_drain_on_top_of_a_crowd(start: Starter) -> None:
    """Whoever waits in the backlog, whatever it has sent, is answered or sees a FIN."""
    gateway = start(
        head('drain = "8s"')
        + '[[listener]]\naddress = "127.0.0.2:0"\nhead_timeout = "2s"\n'
        + route("echo", "builtin:echo")
        + route("page", "builtin:page", path="/")
    )
    sent = [upgrade("/none"), plain("/"), b"", b"GET / HT", b"\r\n", b"\r"]
    status = {upgrade("/none"): 404, plain("/"): 200, b"GET / HT": 408}
    gateway.signal(signal.SIGSTOP)
    crowd = [gateway.connect(1) for _ in range(150)]
    for number, client in enumerate(crowd):
        client.send(sent[number % len(sent)])
    gateway.signal(signal.SIGTERM)
    gateway.signal(signal.SIGCONT)
    for number, client in enumerate(crowd):
        asked = sent[number % len(sent)]
        if asked in status:
            assert client.read_answer()[0].status == status[asked]
        client.expect_fin()
        client.close()
    assert gateway.wait() == 0
