"""The contract's secured links against OpenSSL's own programs: `openssl s_client` and `s_server`.

What they do and Python's `ssl` cannot: ask for a new handshake in the midst of TLS 1.2, ask for new
keys in TLS 1.3, offer a session again.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engine.rig import RIGS, Rig, rig_of
from engine.tls_ends import authority, client_settings, pair, server_settings
from gateway.engine.uv import UvEngine
from gateway.errors import Fault
from gateway.events import Accepted, Address, Closed, Connected, Link, Secured, TlsServer

OPENSSL = shutil.which("openssl")
REAL = [kind for kind in RIGS if not kind.startswith("memory")]
TICKETS = (bytes(range(80)), bytes(range(80, 160)))

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="there is no openssl(1)")


@pytest.fixture(params=REAL)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Engines on real sockets alone."""
    with rig_of(str(request.param), tmp_path) as made:
        yield made


class Program:
    """`openssl` with pipes that a rig can wait on."""

    def __init__(self, *arguments: str):
        assert OPENSSL is not None
        self._process = subprocess.Popen(
            [OPENSSL, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._said = bytearray()

    def type(self, text: str) -> None:
        """As somebody who sits before it."""
        self._input.write(text.encode())

    def said(self) -> str:
        """All that it printed until now."""
        while data := self._output.read(65_536):
            self._said += data
        return self._said.decode("latin-1")

    def ended(self) -> bool:
        """It is over."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End it, however it stands."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.kill()
        self._process.wait()
        self._output.close()


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[Program]:
    """One that is ended in any case."""
    started = Program(*arguments)
    try:
        yield started
    finally:
        started.close()


@contextlib.contextmanager
def client(rig: Rig, settings: TlsServer, *arguments: str) -> Iterator[tuple[Link, Program]]:
    """`s_client` at a link that is being secured."""
    address = rig.listen()
    seen = len(rig.events)
    with program(
        "s_client", "-connect", f"127.0.0.1:{address.port}", "-servername", "a.example",
        *arguments,
    ) as started:
        rig.until(lambda: any(isinstance(event, Accepted) for event in rig.events[seen:]))
        (link,) = (event.link for event in rig.events[seen:] if isinstance(event, Accepted))
        rig.engine.read(link)
        rig.engine.secure(link, settings)
        yield link, started


def trusting(folder: Path) -> tuple[str, ...]:
    """Arguments by which the CA is trusted, and the name insisted on."""
    file = folder / "ca.pem"
    file.write_bytes(authority().pem)
    return "-CAfile", str(file), "-verify_hostname", "a.example", "-verify_return_error"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client(rig: Rig, tmp_path: Path, version: str) -> None:
    arguments = (*trusting(tmp_path), version, "-alpn", "h2,http/1.1", "-quiet")
    with client(rig, server_settings(), *arguments) as (link, openssl):
        rig.until(lambda: rig.has(link, Secured))
        (secured,) = rig.of(link, Secured)
        assert secured.version == version.replace("-tls1_", "TLSv1.")
        assert (secured.server_name, secured.protocol) == ("a.example", "http/1.1")
        openssl.type("hello\n")
        rig.until(lambda: rig.data(link) == b"hello\n")
        rig.engine.send(link, b"good day\n")
        rig.until(lambda: openssl.said().endswith("good day\n"))
        rig.engine.close(link)
        rig.until(openssl.ended)


def count_of(word: str, openssl: Program, count: int) -> bool:
    """It said that so often."""
    return openssl.said().count(word) >= count


def has_data(rig: Rig, link: Link, end: bytes) -> bool:
    """What came ends so."""
    return rig.data(link).endswith(end)


def test_new_keys_in_the_midst(rig: Rig) -> None:
    """KeyUpdate, of its own keys and of ours (RFC 8446 4.6.3)."""
    with client(rig, server_settings(), "-tls1_3") as (link, openssl):
        rig.until(lambda: rig.has(link, Secured))
        for number, command in enumerate("kKkK"):
            openssl.type(f"{command}\n")
            rig.until(partial(count_of, "KEYUPDATE", openssl, number + 1))
            openssl.type(f"after {number}\n")
            rig.until(partial(has_data, rig, link, f"after {number}\n".encode()))
            rig.engine.send(link, f"here {number}\n".encode())
            rig.until(partial(count_of, f"here {number}", openssl, 1))
        assert not rig.has(link, Closed)


def test_a_new_handshake_in_the_midst_is_not_made(rig: Rig) -> None:
    """Of TLS 1.2: the client gives up, or goes on as it was; nothing is negotiated."""
    with client(rig, server_settings(), "-tls1_2") as (link, openssl):
        rig.until(lambda: rig.has(link, Secured))
        openssl.type("R\n")
        rig.until(lambda: "RENEGOTIATING" in openssl.said())
        rig.until(lambda: "renegotiation" in openssl.said().split("RENEGOTIATING")[1])
        assert len(rig.of(link, Secured)) == 1
        assert rig.data(link) == b""


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_session_is_resumed_where_tickets_can_be(
    rig: Rig, tmp_path: Path, version: str
) -> None:
    """Also with what another engine gave, by the keys that both have, the second key included.
    Python's `ssl` takes no keys, so it gives no tickets."""
    one = replace(server_settings(), ticket_keys=TICKETS[1:])
    two = replace(server_settings(), ticket_keys=TICKETS)
    has_tickets = not (isinstance(rig.engine, UvEngine) and rig.engine.compiled is None)
    file = tmp_path / "session.pem"
    with client(rig, one, version, "-sess_out", str(file), "-quiet") as (link, openssl):
        rig.until(lambda: rig.has(link, Secured))
        assert not rig.of(link, Secured)[0].resumed
        rig.engine.send(link, b"a line\n")
        rig.until(lambda: "a line" in openssl.said())
        rig.engine.close(link)
        rig.until(openssl.ended)
    if not has_tickets and version == "-tls1_3":
        assert not file.exists()
        return
    with client(rig, two, version, "-sess_in", str(file), "-quiet") as (link, _):
        rig.until(lambda: rig.has(link, Secured))
        (secured,) = rig.of(link, Secured)
        assert secured.resumed == has_tickets
        assert secured.server_name == "a.example"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_server(rig: Rig, tmp_path: Path, version: str) -> None:
    """With a certificate of ours that it requires."""
    shown, own = pair("a.example"), pair("EMAIL:gateway@a.example")
    for name, data in (("chain", shown.chain), ("key", shown.key), ("ca", authority().pem)):
        (tmp_path / name).write_bytes(data)
    arguments = (
        "s_server", "-accept", "127.0.0.1:0", "-cert", str(tmp_path / "chain"),
        "-key", str(tmp_path / "key"), "-CAfile", str(tmp_path / "ca"), "-Verify", "1",
        "-verify_return_error", version, "-naccept", "1",
    )
    with program(*arguments) as openssl:
        rig.until(lambda: "ACCEPT" in openssl.said() and openssl.said().endswith("\n"))
        port = int(openssl.said().split("ACCEPT")[1].split()[0].rpartition(":")[2])
        link = rig.engine.connect(Address(host="127.0.0.1", port=port))
        rig.until(lambda: rig.has(link, Connected))
        settings = replace(client_settings(), chain=own.chain, key=own.key)
        rig.engine.secure(link, settings)
        rig.engine.read(link)
        rig.until(lambda: rig.has(link, Secured))
        assert rig.of(link, Secured)[0].version == version.replace("-tls1_", "TLSv1.")
        rig.engine.send(link, b"hello\n")
        rig.until(lambda: "hello\n" in openssl.said())
        openssl.type("good day\n")
        rig.until(lambda: rig.data(link) == b"good day\n")
        openssl.type("Q\n")                         # it goes, and says no close_notify
        rig.until(lambda: rig.has(link, Closed))
        assert rig.of(link, Closed)[0].fault is Fault.TRUNCATED
