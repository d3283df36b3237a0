"""TLS at the far ends: an authority, the tables that use it, clients and servers over Python's ssl.

What the gateway is shown is made anew for each test, in memory and in the test's folder.
"""

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.kit import Gateway
from end_to_end.wire import PATIENCE, Wire, upgrade
from engine.authority import Authority
from gateway.events import KeyPair

NAMES = ("localhost", "IP:127.0.0.1")


class Folder:
    """Certificates in a folder, and how a table names them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.authority = Authority()
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self.authority.pem)

    def write(self, name: str, pair: KeyPair) -> None:
        """Both files, each in one step."""
        for file, data in ((f"{name}.crt", pair.chain), (f"{name}.key", pair.key)):
            fresh = self.path / f"{file}.new"
            fresh.write_bytes(data)
            fresh.replace(self.path / file)

    def issue(
        self, name: str, *names: str, days: float = 30.0, subject: str = "",
        authority: Authority | None = None,
    ) -> KeyPair:
        """A certificate for these names, in files of this one."""
        signer = authority or self.authority
        pair = signer.issue(*names, subject=subject, ends=datetime.timedelta(days=days))
        self.write(name, pair)
        return pair

    def named(self, name: str) -> str:
        """The files of a pair, as a table has them."""
        return f'{{ chain = "{self.path}/{name}.crt", key = "{self.path}/{name}.key" }}'

    def listener(self, *names: str, more: str = "") -> str:
        """A `[[listener]]` with these pairs."""
        pairs = ", ".join(self.named(name) for name in names)
        return (f'[[listener]]\naddress = "127.0.0.1:0"\n'
                f"tls = {{ certificates = [{pairs}]{more and ', '}{more} }}\n")

    def client(self, name: str = "") -> ssl.SSLContext:
        """A client that trusts the authority, and shows this pair."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        if name:
            context.load_cert_chain(self.path / f"{name}.crt", self.path / f"{name}.key")
        return context

    def server(self, name: str, *, asks: bool = False) -> ssl.SSLContext:
        """A server with this pair, that may ask for a client's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path / f"{name}.crt", self.path / f"{name}.key")
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context


def tls_head(*further: str) -> str:
    """The `[gateway]` of a table whose listeners stand for themselves."""
    lines = ['engine = "{engine}"', 'log = "json"', *further]
    if not any(line.startswith("workers") for line in further):
        lines.append("workers = 1")
    return "\n".join(["[gateway]", *lines]) + "\n"


def secured(
    gateway: Gateway, context: ssl.SSLContext, server_name: str = "localhost", listener: int = 0,
    session: ssl.SSLSession | None = None,
) -> Wire:
    """A client's connection, behind its handshake. Raises ssl.SSLError where that fails."""
    bound = gateway.bound[listener]
    raw = socket.create_connection((bound.host, bound.port), PATIENCE)
    try:
        return Wire(context.wrap_socket(raw, server_hostname=server_name, session=session))
    except BaseException:
        raw.close()
        raise


def shown_to(gateway: Gateway, server_name: str, context: ssl.SSLContext) -> bytes:
    """The certificate (DER) that a client is shown which asks for this name."""
    with secured(gateway, context, server_name) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        found = wire.socket.getpeercert(binary_form=True)
    assert found
    return found


def der_of(pair: KeyPair) -> bytes:
    """The certificate itself."""
    return ssl.PEM_cert_to_DER_cert(pair.chain.decode())


def status_of(gateway: Gateway, wire: Wire, host: str = "localhost", target: str = "/") -> int:
    """What a plain request is answered with."""
    wire.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer, _ = wire.read_answer()
    return answer.status


def refused(gateway: Gateway, target: str = "/ws") -> str:
    """The detail of a session that got 502 on a plain listener, the first one's."""
    with gateway.connect() as client:
        client.send(upgrade(target))
        assert client.read_head().status == 502
    detail = gateway.record(status=502)["detail"]
    assert isinstance(detail, str)
    return detail


@contextlib.contextmanager
def answering(context: ssl.SSLContext | None, answer: bytes = b"") -> Iterator[int]:
    """A server for a moment: of each connection the handshake, then this answer, then the end.
    The port. Without a context it speaks no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    end, _ = listening.accept()
                    end.settimeout(PATIENCE)
                    with contextlib.closing(end):
                        _answer(end, context, answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = listening.getsockname()[1]
        try:
            yield port
        finally:
            ended.set()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                pass
            thread.join()


def _answer(end: socket.socket, context: ssl.SSLContext | None, answer: bytes) -> None:
    """One connection of `answering`. Where the handshake fails its alert is not destroyed by the
    RST of a close on top of what was sent already."""
    if context is None:
        end.recv(1024)
        end.sendall(answer)
        return
    with contextlib.closing(context.wrap_socket(
        end, server_side=True, do_handshake_on_connect=False
    )) as far:
        try:
            far.do_handshake()
            far.recv(1024)
            far.sendall(answer)
        except ssl.SSLError:
            socket.socket.shutdown(far, socket.SHUT_WR)
            while socket.socket.recv(far, 4096):
                pass


@contextlib.contextmanager
def believed(folder: Folder) -> Iterator[None]:
    """Who asks the system, in this process or in one that it starts, trusts the authority."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder.ca))            # OpenSSL
        patch.setenv("NODE_EXTRA_CA_CERTS", str(folder.ca))
        yield


def in_tls(folder: Folder, upstream: str, *routes: str) -> str:
    """A table whose listener and whose upstream "service" have TLS."""
    return (
        tls_head() + folder.listener("server") + "".join(routes)
        + f'[upstream.service]\nendpoints = ["{upstream}"]\ntls = {{ ca = "{folder.ca}" }}\n'
    )
