"""TLS toward clients by the real program: names, hosts, clients' certificates, redirects, ends."""

import re
import shutil
import socket
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect as connect_sync

from end_to_end.kit import Gateway, Starter, route
from end_to_end.reloads import successor, write
from end_to_end.secure import (
    NAMES,
    Folder,
    der_of,
    secured,
    shown_to,
    status_of,
    tls_head,
)
from end_to_end.wire import (
    PATIENCE,
    TEXT,
    Upstream,
    connect,
    frame,
    switching,
    upgrade,
    wait_for,
)
from engine.authority import Authority
from gateway.events import KeyPair

OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Two certificates of one authority, and a client's."""
    made = Folder(tmp_path_factory.mktemp("certs"))
    made.issue("a", *NAMES, "a.test")
    made.issue("b", "b.test", "*.b.test")
    made.issue("client", "DNS-less.test", "URI:spiffe://a.test/zoe", subject="Zoë, of A")
    made.issue("stranger", "x.test", authority=Authority("Another CA"))
    return made


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, folder: Folder, upstream: Upstream) -> Gateway:
    """A listener with two certificates, one that asks clients for theirs, one that demands them,
    and one that redirects."""
    asks = f'client_certificates = "request", client_ca = "{folder.ca}"'
    return start_shared(
        tls_head('admin = "127.0.0.1:0"')
        + folder.listener("a", "b")
        + folder.listener("a", more=asks)
        + folder.listener("a", more=asks.replace("request", "require"))
        + '[[listener]]\naddress = "127.0.0.1:0"\nredirect = "https:8443"\n'
        + route("ws", upstream.url("ws"))
        + route("raw", upstream.url("tcp"))
        + route("echo", "builtin:echo")
        + route("page", "builtin:page", path="/")
        + route("b", "builtin:page", 'sni = "*.b.test"', path="/")
    )


def metric(gateway: Gateway, name: str) -> float:
    """A sample of the admin address, by its name with its labels."""
    found = re.search(r'admin[":=]+([0-9.:]+)', gateway.messages)
    assert found
    with urllib.request.urlopen(f"http://{found[1]}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")))


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("server_name", "pair"), [
    ("localhost", "a"), ("b.test", "b"), ("x.b.test", "b"),
])
def test_the_certificate_is_chosen_by_sni(
    gateway: Gateway, folder: Folder, server_name: str, pair: str
) -> None:
    """Exact, or a wildcard's; it is good for the name, as the client sees for itself."""
    with secured(gateway, folder.client(), server_name) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        assert wire.socket.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(
            (folder.path / f"{pair}.crt").read_text()
        )
        assert wire.socket.version() == "TLSv1.3"
        assert status_of(gateway, wire, server_name) == 200
    record = gateway.record(sni=server_name, status=200)
    assert (record["tls"], record["route"]) == ("TLSv1.3", "b" if server_name[0] == "x" else "page")


def test_a_host_of_another_certificate_is_421(gateway: Gateway, folder: Folder) -> None:
    """And the connection stays for its own."""
    with secured(gateway, folder.client(), "b.test") as wire:
        assert status_of(gateway, wire, "a.test") == 421
        assert status_of(gateway, wire, "b.test") == 200
    assert gateway.record(status=421)["sni"] == "b.test"


# --- Sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("path", ["/ws", "/raw"])
def test_a_session_and_what_the_upstream_is_told(
    gateway: Gateway, folder: Folder, upstream: Upstream, path: str, version: ssl.TLSVersion
) -> None:
    """Frames go both ways; an upstream behind frames hears of https."""
    context = folder.client()
    context.maximum_version = version
    with secured(gateway, context) as client:
        client.send(upgrade(path))
        with upstream.accept() as service:
            if path == "/ws":
                asked = service.read_head()
                assert asked.get(b"X-Forwarded-Proto") == b"https"
                assert b"proto=https" in (asked.get(b"Forwarded") or b"")
                service.send(switching(asked))
            assert client.read_head().status == 101
            client.send(frame(TEXT, b"hello"))
            if path == "/ws":
                assert service.read_frame().payload == b"hello"
                service.send(frame(TEXT, b"there", masked=False))
            else:
                assert service.exactly(5) == b"hello"
                service.send(b"there")
            assert client.read_frame().payload == b"there"


def test_a_client_that_is_cut_off_looks_so(
    gateway: Gateway, folder: Folder, upstream: Upstream
) -> None:
    """FIN without close_notify is no clean end, and the upstream sees none."""
    since = len(gateway.records)
    with secured(gateway, folder.client()) as client:
        client.send(upgrade("/raw"))
        service = upstream.accept()
        assert client.read_head().status == 101
        client.socket.shutdown(socket.SHUT_WR)          # of TCP alone: ssl says nothing
        service.expect_reset()
        service.close()
    assert gateway.record(since, route="raw", cause="truncated")["blame"] == "client"


# --- Handshakes that fail -------------------------------------------------------------------------


def test_plain_http_on_the_tls_port(gateway: Gateway) -> None:
    """No answer that anybody could read; written down and counted."""
    before = metric(gateway, FAILED.format("not tls"))
    with gateway.connect() as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        wire.end()
    record = gateway.record(phase="secure")
    assert record["status"] is None and record["blame"] == "client" and record["detail"]
    assert metric(gateway, FAILED.format("not tls")) == before + 1


FAILED = 'gateway_tls_handshakes_failed_total{{reason="{}",side="client"}}'


@pytest.mark.parametrize(("pair", "reason"), [("", "no certificate"), ("stranger", "untrusted")])
def test_a_client_without_a_certificate_of_ours(
    gateway: Gateway, folder: Folder, pair: str, reason: str
) -> None:
    """It does not come in where one is demanded; TLS 1.3 tells it with the first byte it reads."""
    before = metric(gateway, FAILED.format(reason))
    since = len(gateway.records)
    with pytest.raises((ssl.SSLError, ConnectionError)), secured(  # noqa: PT012 - see above
        gateway, folder.client(pair), listener=2
    ) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        wire.read_head()
    assert gateway.record(since, phase="secure")["status"] is None
    assert metric(gateway, FAILED.format(reason)) == before + 1


def test_a_hello_that_never_ends(start: Starter, folder: Folder) -> None:
    """head_timeout is for it; what comes byte by byte does not extend it."""
    gateway = start(
        tls_head('admin = "127.0.0.1:0"')
        + folder.listener("a").replace("tls =", 'head_timeout = "300ms"\ntls =')
        + route("page", "builtin:page", path="/")
    )
    with gateway.connect() as wire:
        wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
        assert wire.end() == "reset"
    record = gateway.record(phase="secure")
    assert record["detail"] == "head_timeout inside the TLS handshake"
    assert record["phases_ms"]["secure"] >= 300
    assert metric(gateway, FAILED.format("timed out")) == 1


def test_a_full_gateway_shakes_no_hands(
    start: Starter, folder: Folder, upstream: Upstream
) -> None:
    """Where no session can begin, a client is cut before its handshake; later it is let in."""
    gateway = start(tls_head("max_sessions = 1") + folder.listener("a")
                    + route("ws", upstream.url("ws")))
    with secured(gateway, folder.client()) as client:
        client.send(upgrade("/ws"))
        with upstream.accept() as service:
            service.send(switching(service.read_head()))
            assert client.read_head().status == 101
            with pytest.raises(ConnectionResetError), gateway.connect() as other:
                other.rest()                             # where connect(2) did not say so already
            gateway.said("a TLS handshake would be for nothing")
    gateway.record(status=101)
    with secured(gateway, folder.client()) as client:
        client.send(upgrade("/nothing"))
        assert client.read_head().status == 404


# --- Client certificates --------------------------------------------------------------------------


@pytest.mark.parametrize("listener", [1, 2])
def test_a_client_certificate_is_told(
    gateway: Gateway, folder: Folder, upstream: Upstream, listener: int
) -> None:
    """By RFC 9440's field, the subject, the names; what the client says itself does not pass."""
    with secured(gateway, folder.client("client"), listener=listener) as client:
        client.send(upgrade("/ws", "Client-Cert: :AAAA:", "X-Client-Cert-Subject: CN=root"))
        with upstream.accept() as service:
            asked = service.read_head()
            service.send(switching(asked))
            assert client.read_head().status == 101
    told = asked.get(b"Client-Cert") or b""
    pem = (folder.path / "client.crt").read_text()
    assert told == b":" + "".join(pem.splitlines()[1:-1]).encode() + b":"
    assert asked.get(b"X-Client-Cert-Subject") == rb"CN=Zo\C3\AB\, of A"
    assert asked.get(b"X-Client-Cert-Names") == b'"DNS:DNS-less.test", "URI:spiffe://a.test/zoe"'


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("listener", [1, 2])
def test_a_client_that_resumes_is_still_known(
    gateway: Gateway, folder: Folder, upstream: Upstream, listener: int, version: ssl.TLSVersion
) -> None:
    """Its certificate is in its ticket, and upstreams are told of it."""
    context = folder.client("client")
    context.maximum_version = version
    session: ssl.SSLSession | None = None
    told = []
    for _ in range(2):
        with secured(gateway, context, listener=listener, session=session) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            assert client.socket.session_reused is (session is not None)
            client.send(upgrade("/ws"))
            with upstream.accept() as service:
                asked = service.read_head()
                service.send(switching(asked))
                assert client.read_head().status == 101
                session = client.socket.session          # TLS 1.3: the ticket came by now
        told.append(asked.get(b"Client-Cert"))
    assert told[0] == told[1] is not None


def test_where_one_is_only_requested_others_come_in(
    gateway: Gateway, folder: Folder, upstream: Upstream
) -> None:
    """And nothing is told of them, whatever they say."""
    with secured(gateway, folder.client(), listener=1) as client:
        client.send(upgrade("/ws", "Client-Cert: :AAAA:"))
        with upstream.accept() as service:
            asked = service.read_head()
            service.send(switching(asked))
            assert client.read_head().status == 101
    assert b"client-cert" not in asked.raw.lower()


# --- Redirect -------------------------------------------------------------------------------------


def test_a_redirect(gateway: Gateway) -> None:
    """To the same place by https."""
    with gateway.connect(3) as wire:
        wire.send(b"GET /a/b?c HTTP/1.1\r\nHost: a.test:80\r\n\r\n")
        answer, _ = wire.read_answer()
    assert answer.status == 308
    assert answer.get(b"Location") == b"https://a.test:8443/a/b?c"


# --- Resumption -----------------------------------------------------------------------------------


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
def test_a_ticket_is_good_in_every_worker(
    start: Starter, folder: Folder, tmp_path: Path, version: str
) -> None:
    """The keys are the supervisor's: whichever of two workers gave it, the other one resumes."""
    gateway = start(tls_head("workers = 2") + folder.listener("a")
                    + route("page", "builtin:page", path="/"))
    assert OPENSSL
    ticket = tmp_path / "ticket"
    command = [OPENSSL, "s_client", "-connect", f"127.0.0.1:{gateway.port}", version, "-CAfile",
               str(folder.ca), "-servername", "localhost", "-ign_eof"]
    ask = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    def run(*more: str) -> str:
        done = subprocess.run([*command, *more], input=ask, capture_output=True, timeout=PATIENCE)
        said = done.stdout.decode(errors="replace")
        assert "200 OK" in said, said + done.stderr.decode(errors="replace")
        return said

    assert "\nNew, TLSv1" in run("-sess_out", str(ticket))
    for _ in range(8):
        assert "\nReused, TLSv1" in run("-sess_in", str(ticket))
    workers = {record["session"].partition("-")[0] for record in gateway.records}
    assert len(workers) == 2, "chance sent all to one worker"


# --- Certificates that change ---------------------------------------------------------------------


@pytest.fixture
def changing(start: Starter, tmp_path: Path) -> tuple[Gateway, Folder]:
    """A gateway whose certificate is to change."""
    place = tmp_path / "certs"
    place.mkdir()
    own = Folder(place)
    own.issue("a", *NAMES, days=30)
    table = tls_head() + own.listener("a") + route("echo", "builtin:echo")
    return start(table + route("page", "builtin:page", path="/")), own


def until_shown(gateway: Gateway, own: Folder, pair: KeyPair) -> None:
    """Wait for that. Between its two files there may be a look that finds them apart."""
    wanted = der_of(pair)
    wait_for(lambda: shown_to(gateway, "localhost", own.client()) == wanted)


def test_a_new_certificate_is_taken_by_itself(changing: tuple[Gateway, Folder]) -> None:
    """Sessions that are open stay; who comes next sees the new one."""
    gateway, own = changing
    with connect_sync(
        f"wss://127.0.0.1:{gateway.port}/echo", ssl=own.client(), server_hostname="localhost"
    ) as client:
        renewed = own.issue("a", *NAMES)
        until_shown(gateway, own, renewed)
        client.send("still here")
        assert client.recv() == "still here"
        assert "certificates of [[listener]]" not in str(gateway.ask("reload", "--plan"))


@pytest.mark.parametrize("broken", ["key", "crt"])
def test_a_broken_pair_leaves_the_old_one(
    changing: tuple[Gateway, Folder], broken: str
) -> None:
    """It says so; the half that was written first is no harm."""
    gateway, own = changing
    before = der_of_file(own.path / "a.crt")
    whole = (own.path / f"a.{broken}").read_bytes()
    other = own.authority.issue(*NAMES)
    (own.path / f"a.{broken}").write_bytes(other.key if broken == "key" else other.chain[:200])
    gateway.said("what was read before stays in use")
    assert shown_to(gateway, "localhost", own.client()) == before
    (own.path / f"a.{broken}").write_bytes(whole)
    until_shown(gateway, own, own.issue("a", *NAMES))


def der_of_file(file: Path) -> bytes:
    """A certificate in PEM."""
    return ssl.PEM_cert_to_DER_cert(file.read_text())


def test_tls_comes_and_goes_with_a_reload(
    start: Starter, engine: str, tmp_path: Path
) -> None:
    """On the same port; who was there before stays as they were."""
    own = Folder(tmp_path)
    own.issue("a", *NAMES)
    routes = route("echo", "builtin:echo") + route("page", "builtin:page", path="/")
    plain = tls_head() + '[[listener]]\naddress = "127.0.0.1:0"\n' + routes
    gateway = start(plain)
    with connect_sync(f"ws://127.0.0.1:{gateway.port}/echo") as before:
        write(gateway, tls_head() + own.listener("a") + routes, engine)
        gateway.ask("reload")
        with secured(gateway, own.client()) as wire:
            assert status_of(gateway, wire) == 200
            write(gateway, plain, engine)
            gateway.ask("reload")
            assert status_of(gateway, wire) == 200
        with gateway.connect() as wire:
            assert status_of(gateway, wire) == 200
        before.send("still here")
        assert before.recv() == "still here"


def test_a_program_that_replaces_another(changing: tuple[Gateway, Folder]) -> None:
    """It reads the certificates itself, and has the sockets."""
    gateway, own = changing
    with successor(gateway):
        assert gateway.process.wait(PATIENCE) == 0
        assert shown_to(gateway, "localhost", own.client()) == der_of_file(own.path / "a.crt")


def test_a_certificate_that_ends_soon(start: Starter, tmp_path: Path) -> None:
    """A warning 21 days ahead, and the date in the counters."""
    own = Folder(tmp_path)
    own.issue("soon", *NAMES, days=20.5)
    own.issue("later", "b.test", days=22)
    gateway = start(tls_head('admin = "127.0.0.1:0"') + own.listener("soon", "later")
                    + route("echo", "builtin:echo"))
    gateway.said("a certificate ends soon")
    assert "later.crt" not in gateway.messages
    labels = f'{{file="{tmp_path}/later.crt",place="listener 127.0.0.1:0"}}'
    assert metric(gateway, f"gateway_certificate_expires_timestamp_seconds{labels}") > 1.7e9


def test_a_plain_client_of_a_plain_port_beside_it(
    start: Starter, folder: Folder
) -> None:
    """TLS on one listener is none on the others; TLS on a plain port is a bad request."""
    gateway = start(tls_head() + folder.listener("a") + '[[listener]]\naddress = "127.0.0.1:0"\n'
                    + route("page", "builtin:page", path="/"))
    with gateway.connect(1) as wire:
        assert status_of(gateway, wire) == 200
    with connect(gateway.bound[1].address) as wire, pytest.raises((ssl.SSLError, OSError)):
        folder.client().wrap_socket(wire.socket, server_hostname="localhost")
    assert gateway.record(status=400)["tls"] == ""
