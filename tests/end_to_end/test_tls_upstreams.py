"""TLS toward upstreams by the real program: who is trusted, and what is said of others."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from end_to_end.kit import Gateway, Starter, head, route
from end_to_end.secure import NAMES, Folder, answering, refused
from end_to_end.wire import BINARY, TEXT, Upstream, Wire, frame, switching, upgrade
from engine.authority import Authority


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A server's certificates, good and bad, and one for the gateway as a client."""
    made = Folder(tmp_path_factory.mktemp("certs"))
    made.issue("good", *NAMES, "app.internal")
    made.issue("other", "other.internal")
    made.issue("old", *NAMES, days=-0.1)
    made.issue("stranger", *NAMES, authority=Authority("Another CA"))
    made.issue("own", "gateway.internal", subject="gateway")
    return made


def upstream_table(url: str, tls: str) -> str:
    """One upstream with this TLS."""
    return (head() + route("ws", "app")
            + f'[upstream.app]\nendpoints = ["{url}"]\ntls = {{ {tls} }}\n')


def accepted(upstream: Upstream, context: ssl.SSLContext) -> Wire:
    """The gateway's next connection, behind its handshake."""
    plain = upstream.accept()
    return Wire(context.wrap_socket(plain.socket, server_side=True))


def one_session(gateway: Gateway, accept: Callable[[], Wire]) -> None:
    """A client gets through, and a message each way."""
    with gateway.connect() as client:
        client.send(upgrade("/ws"))
        with accept() as service:
            asked = service.read_head()
            service.send(switching(asked))
            assert client.read_head().status == 101
            client.send(frame(TEXT, b"up"))
            assert service.read_frame().payload == b"up"
            service.send(frame(BINARY, b"d" * 100_000, masked=False))
            assert client.read_frame().payload == b"d" * 100_000


@pytest.mark.parametrize(("host", "pair", "tls"), [
    ("127.0.0.1", "good", ""), ("localhost", "good", ""),
    ("127.0.0.1", "other", 'server_name = "other.internal"'),
    ("127.0.0.1", "stranger", "verify = false"),
])
def test_a_server_that_may_be_trusted(
    start: Starter, folder: Folder, upstream: Upstream, host: str, pair: str, tls: str
) -> None:
    """By the URL's host or address, by a name that is set, or without a question."""
    ca = "" if "verify" in tls else f'ca = "{folder.ca}"'
    url = f"wss://{host}:{upstream.port}"
    gateway = start(upstream_table(url, ", ".join(filter(None, (ca, tls)))))
    one_session(gateway, lambda: accepted(upstream, folder.server(pair)))
    assert ("verify is false" in gateway.messages) == ("verify" in tls)


def test_a_unix_socket(start: Starter, folder: Folder, tmp_path: Path) -> None:
    """With the name that its certificate is for."""
    with Upstream(path=tmp_path / "app.sock") as upstream:
        gateway = start(upstream_table(
            upstream.url("wss"), f'ca = "{folder.ca}", server_name = "app.internal"'
        ))
        one_session(gateway, lambda: accepted(upstream, folder.server("good")))


def test_a_certificate_of_our_own(start: Starter, folder: Folder, upstream: Upstream) -> None:
    """A server that asks for one is shown it."""
    shown: list[object] = []

    def accept() -> Wire:
        wire = accepted(upstream, folder.server("good", asks=True))
        assert isinstance(wire.socket, ssl.SSLSocket)
        found = wire.socket.getpeercert() or {}
        shown.append(found["subject"])
        return wire

    gateway = start(upstream_table(
        f"wss://localhost:{upstream.port}",
        f'ca = "{folder.ca}", certificate = {folder.named("own")}',
    ))
    one_session(gateway, accept)
    assert shown == [((("commonName", "gateway"),),)]


def test_a_byte_stream(start: Starter, folder: Folder, upstream: Upstream) -> None:
    """`tls`: what is in frames goes up as it is, inside of TLS; no ALPN is offered for it."""
    context = folder.server("good")
    context.set_alpn_protocols(["mqtt"])
    gateway = start(head() + route("raw", "app") + f'[upstream.app]\nendpoints = '
                    f'["tls://localhost:{upstream.port}"]\ntls = {{ ca = "{folder.ca}" }}\n')
    with gateway.connect() as client:
        client.send(upgrade("/raw"))
        with accepted(upstream, context) as service:
            assert client.read_head().status == 101
            client.send(frame(BINARY, b"hello"))
            assert service.exactly(5) == b"hello"
            service.send(b"there")
            assert client.read_frame().payload == b"there"
            service.socket.close()                       # FIN without close_notify: not whole
            assert client.read_close().code == 1014
    assert gateway.record(route="raw")["cause"] == "truncated"


@pytest.mark.parametrize(("pair", "words"), [
    ("other", ("localhost", "other.internal")),
    ("old", ("expired",)),
    ("stranger", ("ca",)),
    ("", ("TLS",)),
])
def test_a_server_that_may_not(
    start: Starter, folder: Folder, pair: str, words: tuple[str, ...]
) -> None:
    """502 for the client, and a sentence for the operator: what was wrong, and what to do."""
    context = folder.server(pair) if pair else None
    with answering(context, b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        gateway = start(upstream_table(f"wss://localhost:{port}", f'ca = "{folder.ca}"'))
        detail = refused(gateway)
    assert detail.startswith("tls: ")
    for word in words:
        assert word.lower() in detail.lower(), detail
    gateway.said("an endpoint cannot be connected")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_a_certificate(
    start: Starter, folder: Folder, version: ssl.TLSVersion
) -> None:
    """The sentence speaks of one, where none is set. With TLS 1.3 it comes behind the handshake."""
    context = folder.server("good", asks=True)
    context.maximum_version = version
    with answering(context) as port:
        gateway = start(upstream_table(f"wss://localhost:{port}", f'ca = "{folder.ca}"'))
        assert "certificate" in refused(gateway)


def test_the_store_of_the_system(start: Starter, folder: Folder) -> None:
    """It does not know our authority, and the sentence says that a `ca` can be named."""
    with answering(folder.server("good")) as port:
        gateway = start(head() + route("ws", f"wss://localhost:{port}"))
        detail = refused(gateway)
    assert "ca" in detail.split(), detail


def test_the_next_endpoint_is_tried(start: Starter, folder: Folder, upstream: Upstream) -> None:
    """One whose certificate does not hold rests, and the others serve."""
    with answering(folder.server("old")) as port:
        gateway = start(
            head() + route("ws", "app") + '[upstream.app]\nbalance = "round-robin"\n'
            f'endpoints = ["wss://localhost:{port}", "wss://127.0.0.1:{upstream.port}"]\n'
            f'tls = {{ ca = "{folder.ca}" }}\n'
        )
        for _ in range(3):
            one_session(gateway, lambda: accepted(upstream, folder.server("good")))
    assert gateway.messages.count("an endpoint cannot be connected") == 1


def test_a_refusal_passes(start: Starter, folder: Folder, upstream: Upstream) -> None:
    """Whole, as from a plain one."""
    gateway = start(upstream_table(f"wss://localhost:{upstream.port}", f'ca = "{folder.ca}"'))

    with gateway.connect() as client:
        client.send(upgrade("/ws"))
        with accepted(upstream, folder.server("good")) as service:
            service.read_head()
            service.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            answer, body = client.read_answer()
    assert (answer.status, body) == (403, b"no")
