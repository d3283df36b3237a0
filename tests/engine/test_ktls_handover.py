"""What a link hands to the kernel: keys, and the number of the next record, each way.

Tried where the kernel has none of it: the far end seals one more record, and ours; and both are
opened with what the kernel would have been given, by another library.
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from engine.authority import Authority
from engine.sealing import Parties, parties
from engine.tls_ends import NAME
from gateway.engine import ktls, openssl, tls
from gateway.engine.ktls import AES_128, AES_256, CHACHA20, TLS_1_2, TLS_1_3, TLS_RX, TLS_TX
from gateway.engine.ktls_handover import Handover, KernelLeg, Records, follow, secrets_of
from gateway.engine.secure import SecureSocket
from gateway.events import KeyPair, TlsClient, TlsServer

ALL = ktls.Support("", frozenset(product((TLS_1_2, TLS_1_3), ktls.SUITES)), rekeys=True)
MACHINES: dict[str, Callable[[], Any]] = {"ssl": tls.Contexts, "openssl": openssl.Contexts}
TICKETS = 1                         # that a server of ours says in TLS 1.3
CIPHERS = {
    "ECDHE-ECDSA-AES128-GCM-SHA256": AES_128,
    "ECDHE-ECDSA-AES256-GCM-SHA384": AES_256,
    "ECDHE-ECDSA-CHACHA20-POLY1305": CHACHA20,
}
FRESH = memoryview(bytearray(65536))
SCRATCH = memoryview(bytearray(40000))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def pair(authority: Authority) -> KeyPair:
    return authority.issue(NAME)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has all of it, and is never asked."""
    monkeypatch.setattr(ktls, "support", lambda: ALL)


@pytest.fixture
def wires() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


class Link:
    """A secured link of ours, and its far end, which `ssl` has. `given` is what the kernel was."""

    def __init__(
        self, wires: tuple[socket.socket, socket.socket], chosen: Parties, machine: Any,
        settings: TlsServer | TlsClient, monkeypatch: pytest.MonkeyPatch,
    ):
        self.wire = wires[1]
        is_server = isinstance(settings, TlsServer)
        self.near = SecureSocket(
            wires[0], machine(settings), SCRATCH, "client", Handover(ALL, is_server=is_server)
        )
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        chosen.far_server.num_tickets = 0
        self.far = (chosen.far_client if is_server else chosen.far_server).wrap_bio(
            self.incoming, self.outgoing, server_side=not is_server,
            server_hostname=NAME if is_server else None,
        )
        self.given: dict[int, bytes] = {}
        monkeypatch.setattr(ktls, "give", lambda _, direction, info: self._give(direction, info))
        monkeypatch.setattr(ktls, "TCP_ULP", socket.TCP_NODELAY)    # which every kernel has
        monkeypatch.setattr(ktls, "ULP", 1)
        self.wire.settimeout(10)

    def _give(self, direction: int, info: bytes) -> None:
        self.given[direction] = info

    def shake(self, pieces: int = 65536) -> None:
        """Both handshakes, to their ends."""
        done = far_done = False
        while not (done and far_done):
            try:
                self.far.do_handshake()
                far_done = True
            except ssl.SSLWantReadError:
                pass
            flight = self.outgoing.read()
            while flight:
                self.wire.send(flight[:pieces])
                flight = flight[pieces:]
                if not done:
                    done = self.near.shake()
            if not done:
                done = self.near.shake()
            self.wire.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.incoming.write(self.wire.recv(65536))
            self.wire.setblocking(True)

    def hear(self) -> bytes:
        """What our end has said, as the far end opens it."""
        self.incoming.write(self.wire.recv(65536))
        return self.far.read(65536)

    def say(self, data: bytes) -> bytes:
        """What the far end sends, sealed."""
        self.far.write(data)
        return self.outgoing.read()

    def give(self) -> KernelLeg:
        """Go over."""
        handover = self.near.handover
        assert handover is not None
        with socket.socket() as any_socket:
            return handover.give(any_socket)


def opened(info: bytes, record: bytes) -> bytes:
    """A record by what the kernel is told of its direction (RFC 8446 5.2, RFC 5288 3,
    RFC 7905 2)."""
    version, number = struct.unpack_from("=HH", info)
    suite = next(suite for suite in ktls.SUITES if suite.number == number)
    iv_size = 8 if suite.has_salt else 12
    iv, rest = info[4 : 4 + iv_size], info[4 + iv_size :]
    key, salt, sequence = rest[: suite.key_size], rest[suite.key_size : -8], rest[-8:]
    cipher = AESGCM(key) if suite.has_salt else ChaCha20Poly1305(key)
    header, body = record[:5], record[5:]
    if version == 0x0303 and suite.has_salt:
        nonce, body = salt + body[:8], body[8:]
    else:
        fixed = int.from_bytes(salt + iv)
        nonce = (fixed ^ int.from_bytes(sequence)).to_bytes(12)
    if version == 0x0304:
        return cipher.decrypt(nonce, body, header).rstrip(b"\0")[:-1]
    size = struct.pack("!H", len(body) - 16)
    return cipher.decrypt(nonce, body, sequence + header[:3] + size)


def sealed_next(link: Link, data: bytes) -> bytes:
    """The record that our end would say next."""
    link.near.machine.seal(data)
    return link.near.machine.take()


@pytest.fixture(params=[TLS_1_2, TLS_1_3])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(MACHINES))
def machine(request: pytest.FixtureRequest) -> Any:
    return MACHINES[request.param]()


@pytest.fixture(params=["client", "upstream"])
def link(
    request: pytest.FixtureRequest, wires: tuple[socket.socket, socket.socket], version: str,
    machine: Any, authority: Authority, pair: KeyPair, monkeypatch: pytest.MonkeyPatch,
) -> Link:
    """Toward a client, or toward an upstream, before its handshake."""
    chosen = parties(authority, pair, version.replace(".", "_"))
    settings = chosen.server if request.param == "client" else chosen.client
    return Link(wires, chosen, machine, settings, monkeypatch)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("pieces", [1, 65536])
def test_the_next_records_are_opened_by_what_the_kernel_is_given(
    link: Link, pieces: int, before: int
) -> None:
    """Right behind the handshake, and behind records both ways."""
    link.shake(pieces)
    for number in range(before):
        link.wire.send(link.say(b"up %d" % number))
        assert link.near.recv_into(FRESH) == 4
        link.near.send(b"down %d" % number)
        assert link.hear() == b"down %d" % number
    assert link.near.settle(FRESH) == b""
    assert link.near.handover is not None
    assert link.near.handover.refused == ""
    link.give()
    assert opened(link.given[TLS_RX], link.say(b"theirs")) == b"theirs"
    assert opened(link.given[TLS_TX], sealed_next(link, b"ours")) == b"ours"


@pytest.mark.parametrize("cipher", sorted(CIPHERS))
def test_every_cipher_of_tls_1_2(
    wires: tuple[socket.socket, socket.socket], cipher: str, machine: Any, authority: Authority,
    pair: KeyPair, monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = parties(authority, pair, "TLSv1_2")
    chosen.far_client.set_ciphers(cipher)
    link = Link(wires, chosen, machine, chosen.server, monkeypatch)
    link.shake()
    assert link.near.machine.facts().cipher == cipher
    link.near.settle(FRESH)
    link.give()
    assert struct.unpack_from("=H", link.given[TLS_TX], 2)[0] == CIPHERS[cipher].number
    assert opened(link.given[TLS_RX], link.say(b"theirs")) == b"theirs"
    assert opened(link.given[TLS_TX], sealed_next(link, b"ours")) == b"ours"


def test_no_nonce_is_used_twice(
    wires: tuple[socket.socket, socket.socket], machine: Any, authority: Authority, pair: KeyPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AES-GCM in TLS 1.2: the kernel goes on behind that of our last record."""
    chosen = parties(authority, pair, "TLSv1_2")
    chosen.far_client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    link = Link(wires, chosen, machine, chosen.server, monkeypatch)
    link.shake()
    link.near.send(b"ours")
    record = link.wire.recv(65536)
    link.near.settle(FRESH)
    link.give()
    last = int.from_bytes(record[5:13])
    assert int.from_bytes(link.given[TLS_TX][4:12]) == (last + 1) % (1 << 64)


def test_tickets_count(
    wires: tuple[socket.socket, socket.socket], authority: Authority, pair: KeyPair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are the first records under a server's keys."""
    chosen = parties(authority, pair)
    settings = TlsServer(certificates=(pair,), ticket_keys=(bytes(range(80)),))
    link = Link(wires, chosen, openssl.Contexts(), settings, monkeypatch)
    link.shake()
    link.near.settle(FRESH)
    link.give()
    assert link.given[TLS_TX][-8:] == struct.pack("!Q", TICKETS)
    assert opened(link.given[TLS_TX], sealed_next(link, b"ours")) == b"ours"


def test_a_wrong_number_opens_nothing(link: Link) -> None:
    """The test of the test."""
    link.shake()
    link.near.settle(FRESH)
    link.give()
    link.say(b"one that the kernel did not see")
    with pytest.raises(InvalidTag):
        opened(link.given[TLS_RX], link.say(b"theirs"))


def test_what_came_behind_the_handshake_is_opened_first(link: Link) -> None:
    """Records that the engine has already are given to the relay as early bytes."""
    link.shake()
    link.wire.send(link.say(b"one, ") + link.say(b"two"))
    assert link.near.recv_into(FRESH) == 8
    link.near.feed(link.say(b"three"))
    assert link.near.settle(FRESH) == b"three"
    link.give()
    assert opened(link.given[TLS_RX], link.say(b"four")) == b"four"


@pytest.mark.parametrize("first", [1, 4, 5, 6, 20])
def test_the_rest_of_a_record_is_read_and_no_more(link: Link, first: int) -> None:
    link.shake()
    record, after = link.say(b"a record in two pieces"), link.say(b"the kernel's")
    link.near.feed(record[:first])
    link.wire.send(record[first:] + after)
    assert link.near.settle(FRESH) == b"a record in two pieces"
    link.give()
    assert opened(link.given[TLS_RX], link.near.sock.recv(65536)) == b"the kernel's"


@pytest.mark.parametrize("first", [3, 20])
def test_a_record_whose_rest_has_not_come_keeps_the_link_here(link: Link, first: int) -> None:
    """And it goes on as it was."""
    link.shake()
    record = link.say(b"late")
    link.near.feed(record[:first])
    assert link.near.settle(FRESH) == b""
    assert link.near.handover is not None
    assert link.near.handover.refused == "a record was on its way"
    link.wire.send(record[first:])
    assert link.near.recv_into(FRESH) == 4


def test_an_end_that_has_come_keeps_the_link_here(link: Link) -> None:
    link.shake()
    end = link.say(b"last")
    try:
        link.far.unwrap()
    except ssl.SSLWantReadError:
        end += link.outgoing.read()
    link.near.feed(end)
    assert link.near.settle(FRESH) == b"last"
    assert link.near.handover is not None
    assert link.near.handover.refused == "its end had come"
    assert link.near.pending
    assert link.near.recv_into(FRESH) == 0


def test_sealed_bytes_that_are_not_out_keep_the_link_here(link: Link) -> None:
    link.shake()
    with contextlib.suppress(BlockingIOError):
        while True:
            link.near.send(bytes(65536))
    link.near.settle(FRESH)
    assert link.near.handover is not None
    assert link.near.handover.refused == "what was sealed was not out"


def test_a_cipher_that_the_kernel_lacks_keeps_the_link_here(link: Link) -> None:
    handover = Handover(
        ktls.Support("", frozenset({(TLS_1_3, CHACHA20)})), is_server=not link.far.server_side
    )
    link.near.handover = handover
    link.shake()
    facts = link.near.machine.facts()
    assert handover.refused == f"the kernel does not have {facts.cipher} in {facts.version}"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\x01", b"\x16\x03\x01\xff"])
def test_what_is_no_record_is_the_machines_to_refuse(
    wires: tuple[socket.socket, socket.socket], machine: Any, authority: Authority, pair: KeyPair,
    monkeypatch: pytest.MonkeyPatch, data: bytes,
) -> None:
    """At once, not when as much has come as its length would be."""
    chosen = parties(authority, pair)
    link = Link(wires, chosen, machine, chosen.server, monkeypatch)
    link.wire.send(data + bytes(60))
    with pytest.raises(OSError, match=r"\w"):
        link.near.shake()


@pytest.mark.parametrize("step", [1, 2, 5, 7, 1000])
def test_records_are_counted_in_any_pieces(step: int) -> None:
    stream = b"".join(
        struct.pack("!BHH", kind, 0x0303, size) + bytes(size)
        for kind, size in ((22, 100), (20, 1), (22, 40), (23, 1), (23, 16000), (21, 2))
    )
    records = Records()
    for at in range(0, len(stream), step):
        records.saw(stream[at : at + step])
    assert records.count == 4, "those behind ChangeCipherSpec"
    assert records.missing == 0
    records.saw(b"\x17\x03")
    assert records.missing == 3
    records.saw(b"\x03\x00\x10")
    assert records.missing == 16


def test_a_keylog_is_read_by_its_labels() -> None:
    lines = [b"# comment", b"", b"CLIENT_RANDOM 0a0b 0c0d", b"SERVER_TRAFFIC_SECRET_0 0a0b 0e"]
    assert secrets_of(lines) == {
        "CLIENT_RANDOM": b"\x0a\x0b\x0c\x0d", "SERVER_TRAFFIC_SECRET_0": b"\x0e"
    }


def test_secrets_are_kept_where_new_keys_can_follow(link: Link, version: str) -> None:
    """In TLS 1.3; and never shown."""
    link.shake()
    link.near.settle(FRESH)
    leg = link.give()
    assert bool(leg.ours) == bool(leg.theirs) == (version == TLS_1_3)
    assert "ours" not in repr(leg)


def test_new_keys_are_those_of_the_next_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours only where they were asked for."""
    given: list[tuple[int, bytes]] = []
    monkeypatch.setattr(ktls, "give", lambda _, direction, info: given.append((direction, info)))
    leg = KernelLeg(AES_128, ours=b"o" * 32, theirs=b"t" * 32)
    with socket.socket() as any_socket:
        assert follow(any_socket.fileno(), leg, asked=False)
    theirs = ktls.next_secret(AES_128, b"t" * 32)
    keys = ktls.traffic_keys(AES_128, theirs)
    assert given == [(TLS_RX, ktls.crypto_info(TLS_1_3, AES_128, keys, 0))]
    assert (leg.ours, leg.theirs) == (b"o" * 32, theirs)


def test_new_keys_that_the_kernel_does_not_take_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: socket.socket, direction: int, info: bytes) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(ktls, "give", refuse)
    with socket.socket() as any_socket:
        assert not follow(any_socket.fileno(), KernelLeg(AES_128, b"o" * 32, b"t" * 32), asked=True)
        assert any_socket.fileno() >= 0, "the descriptor is not ours to close"
