"""Sessions whose TLS is the kernel's, by the real program, on every engine; the far ends are
Python's `ssl`, `openssl s_client`, and such as say what these would not.
"""

import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from end_to_end.kit import Gateway, launch, route
from end_to_end.secure import NAMES, Folder, secured, tls_head
from end_to_end.wire import (
    BINARY,
    PATIENCE,
    TEXT,
    Head,
    Upstream,
    Wire,
    close_frame,
    frame,
    switching,
    upgrade,
)
from gateway.engine import ktls
from gateway.events import KeyPair
from ktls.far import ALERT, HANDSHAKE, Far, as_client, as_server

ENGINES = {
    "uvloop": ("uvloop", ""),
    "readiness": ("io_uring", 'ring = "readiness"'),
    "completions": ("io_uring", 'ring = "completions"'),
}
LARGE = random.Random(7).randbytes(300_000)
ENOUGH = 65_536                 # bytes that were spliced; how many more is the kernel's timing
CIPHERS = (
    ("-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"),
    ("-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"),
    ("-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"),
    ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("certs"))
    made.pair = made.issue("server", *NAMES)  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def pair(folder: Folder) -> KeyPair:
    found = folder.pair  # type: ignore[attr-defined]
    assert isinstance(found, KeyPair)
    return found


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as listening:
        yield listening


@pytest.fixture(scope="module", params=sorted(ENGINES))
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, folder: Folder,
    upstream: Upstream,
) -> Iterator[Gateway]:
    """TLS toward clients; toward upstreams with it and without."""
    engine, more = ENGINES[request.param]
    tls = f'tls = {{ ca = "{folder.ca}" }}\n'
    table = (
        tls_head(*([more] if more else []))
        + folder.listener("server")
        + route("ws", upstream.url("ws"), 'heartbeat = "off"', 'close_timeout = "30s"')
        + route("raw", upstream.url("tcp"))
        + route("wss", "secure") + route("tls", "bytes")
        + f'[upstream.secure]\nendpoints = ["{upstream.url("wss")}"]\n{tls}'
        + f'[upstream.bytes]\nendpoints = ["{upstream.url("tls")}"]\n{tls}'
    )
    with launch(table, tmp_path_factory.mktemp("gateway"), engine=engine) as running:
        yield running


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def session(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str = "TLSv1_3",
    target: str = "/ws", early: bytes = b"",
) -> Iterator[tuple[Wire, Wire]]:
    """A session with a `ws` upstream without TLS, up to its 101: both far ends. That of the client
    takes an end without close_notify for an error."""
    context = folder.client()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with secured(gateway, context) as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.suppress_ragged_eofs = False      # type: ignore[attr-defined]
        client.send(upgrade(target) + early)
        with upstream.accept() as service:
            service.send(switching(service.read_head()))
            assert client.read_head().status == 101
            yield client, service


@contextmanager
def special(gateway: Gateway, folder: Folder, upstream: Upstream) -> Iterator[tuple[Far, Wire]]:
    """The same with a client whose kernel seals what the test says."""
    bound = gateway.bound[0]
    with socket.create_connection((bound.host, bound.port), PATIENCE) as raw:
        far = Far(raw, as_client(folder.ca))
        far.secured.send(upgrade("/ws"))
        with upstream.accept() as service:
            service.send(switching(service.read_head()))
            far.read(b"\r\n\r\n")
            far.go_over()
            yield far, service


def closed(client: Wire, service: Wire) -> None:
    """Both say Close, and the client hears close_notify behind it."""
    client.send(close_frame(1000))
    assert service.read_close().code == 1000
    service.send(close_frame(1000, masked=False))
    service.finish()
    assert client.read_close().code == 1000
    assert client.rest() == b""


def test_messages_pass_and_large_ones_are_spliced(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    """Both ways, with every byte counted as a clear one."""
    since = len(gateway.out.lines)
    up = down = 0
    with session(gateway, folder, upstream, version) as (client, service):
        for payload in (b"", b"small", LARGE, b"x" * 16_384, LARGE, b"last"):
            sent = frame(BINARY, payload)
            with client.sending(sent):
                assert service.read_frame().payload == payload
            up += len(sent)
            sent = frame(BINARY, payload, masked=False)
            with service.sending(sent):
                assert client.read_frame().payload == payload
            down += len(sent)
        closed(client, service)
    up += len(close_frame(1000))
    down += len(close_frame(1000, masked=False))
    record = gateway.record(since, cause="closed", path="/ws")
    from_client, from_upstream = record["from_client"], record["from_upstream"]
    assert record["tls"] == version.replace("_", ".")
    assert (from_client["ktls"], from_upstream["ktls"]) == ("on", "")
    assert (from_client["bytes_in"], from_upstream["bytes_out"]) == (up, up)
    assert (from_upstream["bytes_in"], from_client["bytes_out"]) == (down, down)
    assert from_client["messages"] == from_upstream["messages"] == 6
    assert from_client["spliced"] > ENOUGH
    assert from_upstream["spliced"] > ENOUGH


def test_what_came_behind_the_request_is_not_lost(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    since = len(gateway.out.lines)
    early = frame(TEXT, b"early") + frame(BINARY, LARGE[:100_000])
    with session(gateway, folder, upstream, version, early=early) as (client, service):
        assert service.read_frame().payload == b"early"
        assert service.read_frame().payload == LARGE[:100_000]
        client.send(frame(TEXT, b"late"))
        assert service.read_frame().payload == b"late"
        closed(client, service)
    record = gateway.record(since, cause="closed")
    assert record["from_client"]["messages"] == 3


def test_a_record_that_was_on_its_way_keeps_the_session_in_user_space(
    gateway: Gateway, folder: Folder, upstream: Upstream
) -> None:
    since = len(gateway.out.lines)
    bound = gateway.bound[0]
    with socket.create_connection((bound.host, bound.port), PATIENCE) as raw:
        far = Far(raw, as_client(folder.ca))
        request, record = far.sealed(upgrade("/ws")), far.sealed(frame(TEXT, b"in two pieces"))
        raw.send(request + record[:9])
        with upstream.accept() as service:
            service.send(switching(service.read_head()))
            far.read(b"\r\n\r\n")
            raw.send(record[9:])
            assert service.read_frame().payload == b"in two pieces"
            service.reset()
            far.read(b"\x03\xf6")                   # 1014: the upstream is lost
    assert gateway.record(since, cause="lost")["from_client"]["ktls"] == "a record was on its way"


# --- Ends -----------------------------------------------------------------------------------------


def test_close_notify_is_a_clean_end(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    """Between two frames: FIN for the upstream, and the client hears one in its turn."""
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream, version) as (client, service):
        assert isinstance(client.socket, ssl.SSLSocket)
        waiting = threading.Thread(target=client.socket.unwrap)     # until it hears ours
        waiting.start()
        service.expect_fin()
        service.finish()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
    assert gateway.record(since, cause="finished")["from_client"]["ktls"] == "on"


def test_a_fin_without_close_notify_is_a_truncated_stream(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream, version) as (client, service):
        client.send(frame(TEXT, b"before"))
        assert service.read_frame().payload == b"before"
        client.socket.shutdown(socket.SHUT_WR)
        assert service.read_close().code == 1001
    record = gateway.record(since, cause="truncated")
    assert (record["blame"], record["from_client"]["ktls"]) == ("client", "on")


def test_a_fin_in_a_spliced_payload_is_a_cut(
    gateway: Gateway, folder: Folder, upstream: Upstream
) -> None:
    """Whatever TLS says of it, the other side does not see a whole frame."""
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream) as (client, service):
        client.send(frame(BINARY, LARGE)[:200_000])
        service.exactly(150_000)
        client.socket.shutdown(socket.SHUT_WR)
        assert service.end() == "reset"
    assert gateway.record(since, blame="client", path="/ws")["cause"] in ("truncated", "cut")


@pytest.mark.parametrize("content", [b"\x02\x28", b"\x02\x00\x00"])
def test_an_alert_is_a_loss(
    gateway: Gateway, folder: Folder, upstream: Upstream, content: bytes
) -> None:
    since = len(gateway.out.lines)
    with special(gateway, folder, upstream) as (far, service):
        far.say(ALERT, content)
        assert service.read_close().code == 1001
    record = gateway.record(since, cause="lost")
    assert (record["blame"], record["detail"]) == ("client", "tls")


def test_a_record_that_cannot_be_opened_is_a_loss(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream, version) as (client, service):
        os.write(client.socket.fileno(), b"\x17\x03\x03\x00\x40" + bytes(64))
        assert service.read_close().code == 1001
    record = gateway.record(since, cause="lost")
    assert (record["blame"], record["detail"]) == ("client", "tls")


def test_bytes_that_are_no_record_are_a_loss(
    gateway: Gateway, folder: Folder, upstream: Upstream
) -> None:
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream) as (client, service):
        os.write(client.socket.fileno(), b"GET / HTTP/1.1\r\n\r\n")
        assert service.read_close().code == 1001
    record = gateway.record(since, cause="lost")
    assert (record["blame"], record["detail"]) == ("client", "tls")


def test_a_reset_is_a_loss(gateway: Gateway, folder: Folder, upstream: Upstream) -> None:
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream) as (client, service):
        client.send(frame(TEXT, b"before"))
        assert service.read_frame().payload == b"before"
        client.reset()
        assert service.read_close().code == 1001
    assert gateway.record(since, cause="lost")["detail"] == "reset"


def test_the_client_hears_close_notify_where_the_upstream_is_lost(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream, version) as (client, service):
        service.reset()
        assert client.read_close().code == 1014
        client.send(close_frame(1014))
        assert client.rest() == b""
    assert gateway.record(since, cause="lost", blame="upstream")["from_client"]["ktls"] == "on"


# --- Keys -----------------------------------------------------------------------------------------


def test_new_keys_are_followed_or_end_the_session(
    gateway: Gateway, folder: Folder, upstream: Upstream
) -> None:
    """Where the kernel takes none, the record says what it was."""
    since = len(gateway.out.lines)
    with special(gateway, folder, upstream) as (far, service):
        far.sock.send(frame(TEXT, b"old keys"))
        assert service.read_frame().payload == b"old keys"
        far.update_keys()
        if ktls.support().rekeys:
            far.sock.send(frame(TEXT, b"new keys"))
            assert service.read_frame().payload == b"new keys"
            return
        assert service.read_close().code == 1001
    record = gateway.record(since, cause="lost")
    assert (record["blame"], record["detail"]) == ("client", "tls keys")


def test_openssl_asks_for_new_keys(gateway: Gateway, folder: Folder, upstream: Upstream) -> None:
    """`K` of s_client: KeyUpdate, and one is asked for."""
    since = len(gateway.out.lines)
    with s_client(gateway, folder, "-tls1_3", "-crlf") as client:
        assert client.stdin
        client.stdin.write(upgrade("/ws").replace(b"\r\n", b"\n"))
        client.stdin.flush()
        with upstream.accept() as service:
            service.send(switching(service.read_head()))
            told(client, b"\r\n\r\n", b"101 ")
            client.stdin.write(b"K\n")
            client.stdin.flush()
            if ktls.support().rekeys:
                service.send(frame(TEXT, b"under new keys", masked=False))
                told(client, b"under new keys")
                return
            assert service.read_close().code == 1001
    record = gateway.record(since, cause="lost")
    assert (record["blame"], record["detail"]) == ("client", "tls keys")


# --- openssl s_client -----------------------------------------------------------------------------


@contextmanager
def s_client(
    gateway: Gateway, folder: Folder, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which("openssl")
    assert program
    bound = gateway.bound[0]
    with subprocess.Popen(
        [program, "s_client", "-connect", f"{bound.host}:{bound.port}", "-servername", "localhost",
         "-CAfile", folder.ca, "-verify_return_error", *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    ) as client:
        try:
            yield client
        finally:
            client.kill()


def told(client: subprocess.Popen[bytes], *wanted: bytes) -> bytes:
    """What it printed, as far as all of these."""
    assert client.stdout
    got = b""
    while not all(one in got for one in wanted):
        more = os.read(client.stdout.fileno(), 65536)
        assert more, got
        got += more
    return got


@pytest.mark.parametrize("cipher", CIPHERS, ids=lambda one: one[2])
def test_every_cipher_with_openssl(
    gateway: Gateway, folder: Folder, upstream: Upstream, cipher: tuple[str, ...]
) -> None:
    """And the tickets that it was given count as records."""
    since = len(gateway.out.lines)
    with s_client(gateway, folder, "-quiet", *cipher) as client:
        assert client.stdin
        client.stdin.write(upgrade("/ws"))
        with upstream.accept() as service:
            service.send(switching(service.read_head()))
            told(client, b"\r\n\r\n", b"101 ")
            for number in range(3):
                client.stdin.write(frame(TEXT, b"up %d" % number))
                assert service.read_frame().payload == b"up %d" % number
                service.send(frame(TEXT, b"down %d" % number, masked=False))
                told(client, b"down %d" % number)
            service.send(close_frame(1000, masked=False))
            told(client, b"\x88\x02\x03\xe8")
            client.stdin.write(close_frame(1000))
            assert service.read_close().code == 1000
    record = gateway.record(since, cause="closed")
    assert record["from_client"]["ktls"] == "on"
    assert record["tls"] == cipher[0].replace("-tls1_", "TLSv1.")


# --- Upstreams ------------------------------------------------------------------------------------


def test_both_sides_are_the_kernels(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    """And spliced through, both ways."""
    since = len(gateway.out.lines)
    context = folder.server("server")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with secured(gateway, folder.client()) as client:
        client.send(upgrade("/wss"))
        plain = upstream.accept()
        with Wire(context.wrap_socket(plain.socket, server_side=True)) as service:
            service.send(switching(service.read_head()))
            assert client.read_head().status == 101
            for payload in (b"small", LARGE, LARGE):
                with client.sending(frame(BINARY, payload)):
                    assert service.read_frame().payload == payload
                with service.sending(frame(BINARY, payload, masked=False)):
                    assert client.read_frame().payload == payload
            client.send(close_frame(1000))
            assert service.read_close().code == 1000
            service.send(close_frame(1000, masked=False))
            assert client.read_close().code == 1000
    record = gateway.record(since, cause="closed", path="/wss")
    for side in ("from_client", "from_upstream"):
        assert record[side]["ktls"] == "on"
        assert record[side]["spliced"] > ENOUGH


def test_bytes_of_a_raw_upstream_are_spliced_into_frames(
    gateway: Gateway, folder: Folder, upstream: Upstream
) -> None:
    since = len(gateway.out.lines)
    data = LARGE * 4
    with secured(gateway, folder.client()) as client:
        client.send(upgrade("/tls"))
        plain = upstream.accept()
        server = folder.server("server")
        with Wire(server.wrap_socket(plain.socket, server_side=True)) as service:
            assert client.read_head().status == 101
            client.send(frame(BINARY, b"up"))
            assert service.exactly(2) == b"up"
            got = b""
            with service.sending(data):
                while len(got) < len(data):
                    got += client.read_frame().payload
            assert got == data
            client.send(close_frame(1000))
            assert client.read_close().code == 1000
    record = gateway.record(since, path="/tls")
    assert record["from_upstream"]["ktls"] == "on"
    assert record["from_upstream"]["spliced"] > ENOUGH


def test_an_upstreams_tickets_are_nobodys(
    gateway: Gateway, folder: Folder, upstream: Upstream, pair: KeyPair
) -> None:
    """They come whenever it likes, one or two in a record, between what it says."""
    since = len(gateway.out.lines)
    ticket = b"\x04\0\0\x05abcde"
    with secured(gateway, folder.client()) as client:
        client.send(upgrade("/wss"))
        plain = upstream.accept()
        with plain.socket:
            far = Far(plain.socket, as_server(pair))
            asked = far.read(b"\r\n\r\n")
            far.go_over()
            far.sock.send(switching(Head(asked)))
            assert client.read_head().status == 101
            for number in range(3):
                far.say(HANDSHAKE, ticket * (1 + number % 2))
                far.sock.send(frame(TEXT, b"%d" % number, masked=False))
                assert client.read_frame().payload == b"%d" % number
            far.say(ALERT, b"\x01\x00")
            assert client.rest() == b"", "close_notify passes as one"
            client.socket.unwrap()                  # type: ignore[attr-defined]
    record = gateway.record(since, cause="finished", path="/wss")
    assert record["from_upstream"]["ktls"] == "on"


# --- Pressure -------------------------------------------------------------------------------------


def test_a_slow_client_gets_all_of_it(
    gateway: Gateway, folder: Folder, upstream: Upstream, version: str
) -> None:
    """The upstream is held meanwhile, and nothing is lost where the kernel was full."""
    since = len(gateway.out.lines)
    with session(gateway, folder, upstream, version) as (client, service):
        sent = b"".join(frame(BINARY, LARGE, masked=False) for _ in range(20))
        with service.sending(sent):
            assert not client.silent(0.2)
            for _ in range(20):
                assert client.read_frame().payload == LARGE
        closed(client, service)
    record = gateway.record(since, cause="closed")
    assert record["from_upstream"]["spliced"] > ENOUGH
