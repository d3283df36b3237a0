"""TLS machines without a socket: the one over Python's `ssl`, and OpenSSL's in C.

Both keep one face (`secure.Machine`), and say the same of the same.

Far ends are Python's `ssl`, of its own contexts where old versions and ciphers are wanted.
"""

import datetime
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from engine.authority import Authority
from engine.tls_ends import FarTls, authority, client_settings, pair, server_settings
from gateway.engine import openssl, tls
from gateway.engine.secure import Facts, Machine, MachineFactory, TlsFault
from gateway.errors import Fault, Handshake
from gateway.events import KeyPair, TlsClient, TlsServer

DAY = datetime.timedelta(days=1)
KINDS: dict[str, tuple[Callable[[], MachineFactory], Callable[[Any], None]]] = {
    "python": (tls.Contexts, tls.check),
    "openssl": (openssl.Contexts, openssl.check),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Which machine is tried."""
    return str(request.param)


@pytest.fixture
def make(kind: str) -> MachineFactory:
    """Makes one."""
    return KINDS[kind][0]()


def far(settings: TlsServer | TlsClient) -> Machine:
    """The other end, in Python."""
    return tls.Contexts()(settings)


def shaken(one: Machine, two: Machine, *, turns: int = 10) -> None:
    """Carry bytes between both until the handshake is done. Raises what either raises."""
    done = [False, False]
    for _ in range(turns):
        for place, (here, there) in enumerate(((one, two), (two, one))):
            try:
                done[place] = done[place] or here.shake()
            finally:
                there.feed(here.take())
        if all(done):
            return
    raise AssertionError("it never comes to an end")


def opened(machine: Machine) -> bytes:
    """All clear bytes that there are."""
    room = memoryview(bytearray(64 * 1024))
    data = b""
    while count := machine.open_into(room):
        data += room[:count]
    return data


def refused(make: MachineFactory, ours: TlsServer | TlsClient, far_end: Machine) -> TlsFault:
    """Why ours ends the handshake; the far end is told by an alert."""
    machine = make(ours)
    with pytest.raises(TlsFault) as caught:
        shaken(machine, far_end)
    assert caught.value.fault is Fault.TLS
    far_end.feed(machine.take())
    with pytest.raises(TlsFault):
        far_end.shake()
    return caught.value


# --- Who it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("a.example", "a.example"),
        ("A.Example", "a.example"),
        ("x.b.example", "*.b.example"),
        ("b.example", "*.b.example"),
        ("elsewhere.example", "a.example"),
    ],
)
def test_a_certificate_is_chosen_by_sni(make: MachineFactory, asked: str, shown: str) -> None:
    machine = make(server_settings())
    client = far(replace(client_settings(), server_name=asked, verify=False))
    shaken(machine, client)
    assert machine.facts().server_name == asked.lower()
    certificate = client.facts().certificate
    assert certificate is not None
    found = x509.load_der_x509_certificate(certificate.der)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName)[0] == shown


def test_an_address_is_verified_and_no_sni(make: MachineFactory) -> None:
    """RFC 6066 3: no literal addresses."""
    settings = TlsServer(certificates=(authority().issue("IP:192.0.2.1", "IP:2001:db8::1"),))
    for address in ("192.0.2.1", "2001:db8::1"):
        server = far(settings)
        shaken(make(client_settings(address)), server)
        assert server.facts().server_name == ""


def test_a_client_certificate_is_read_alike() -> None:
    """Subject by RFC 4514, names of four kinds; by both machines, letter by letter."""
    odd = authority().issue(
        "a.example", "*.b.example", "IP:192.0.2.1", "IP:2001:db8::1", "EMAIL:me@a.example",
        "URI:spiffe://a.example/x", subject='#One, "two" + <three>; \\four ',
    )
    settings = TlsServer(
        certificates=(pair("a.example"),), client_certificates="require", client_ca=authority().pem
    )
    read: list[Facts] = []
    for contexts, _ in KINDS.values():
        machine = contexts()(settings)
        shaken(machine, far(replace(client_settings(), chain=odd.chain, key=odd.key)))
        read.append(machine.facts())
    one, two = (facts.certificate for facts in read)
    assert one == two
    assert one is not None
    assert one.subject == r"CN=\#One\, \"two\" \+ \<three\>\; \\four\ "
    assert one.names == (
        "DNS:a.example", "DNS:*.b.example", "IP:192.0.2.1", "IP:2001:db8::1", "EMAIL:me@a.example",
        "URI:spiffe://a.example/x",
    )
    assert one.der == ssl.PEM_cert_to_DER_cert(odd.chain.decode())


# --- What an upstream may be ------------------------------------------------------------------


STRANGER = Authority("Somebody")


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (
            lambda: authority().issue("other.example"),
            "the upstream's certificate is not for a.example",
        ),
        (
            lambda: authority().issue("a.example", starts=-3 * DAY, ends=-DAY),
            "the upstream's certificate has expired; it must be renewed there",
        ),
        (
            lambda: authority().issue("a.example", starts=DAY),
            "the upstream's certificate is not valid yet; compare the clocks of both machines",
        ),
        (
            lambda: STRANGER.issue("a.example"),
            "the upstream's certificate is signed by nobody that is trusted; set ca to",
        ),
    ],
)
def test_an_upstream_that_is_not_trusted(
    make: MachineFactory, shown: object, sentence: str
) -> None:
    assert callable(shown)
    fault = refused(make, client_settings(), far(TlsServer(certificates=(shown(),))))
    assert fault.detail.startswith(sentence)
    assert fault.handshake is Handshake.UNTRUSTED


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (
            lambda: authority().issue("EMAIL:me@a.example", starts=-3 * DAY, ends=-DAY),
            "the client's certificate has expired",
        ),
        (
            lambda: STRANGER.issue("EMAIL:me@a.example"),
            "the client's certificate is signed by nobody in client_ca",
        ),
    ],
)
def test_a_client_that_is_not_trusted(make: MachineFactory, shown: object, sentence: str) -> None:
    """Also where a certificate is only requested: one that is shown must be good."""
    assert callable(shown)
    own = shown()
    for mode in ("request", "require"):
        settings = TlsServer(
            certificates=(pair("a.example"),), client_certificates=mode, client_ca=authority().pem
        )
        client = far(replace(client_settings(), chain=own.chain, key=own.key))
        machine = make(settings)
        with pytest.raises(TlsFault) as caught:
            shaken(machine, client)
        assert caught.value.detail == sentence
        assert caught.value.handshake is Handshake.UNTRUSTED


# --- Versions, ciphers, protocols -------------------------------------------------------------


class Old(FarTls):
    """As much of a machine as a handshake takes: a client of one version, however old."""

    def __init__(self, version: ssl.TLSVersion, ciphers: str = "DEFAULT:@SECLEVEL=0"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers(ciphers)
        context.minimum_version = context.maximum_version = version
        super().__init__(context, is_server=False)

    def feed(self, sealed: bytes | memoryview) -> None:
        """See secure.Machine; and so on."""
        self.incoming.write(sealed)

    def take(self) -> bytes:
        return self.outgoing.read()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("profile", "version", "passes"),
    [
        ("intermediate", ssl.TLSVersion.TLSv1, False),
        ("intermediate", ssl.TLSVersion.TLSv1_1, False),
        ("intermediate", ssl.TLSVersion.TLSv1_2, True),
        ("intermediate", ssl.TLSVersion.TLSv1_3, True),
        ("modern", ssl.TLSVersion.TLSv1_2, False),
        ("modern", ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_versions(
    make: MachineFactory, profile: str, version: ssl.TLSVersion, passes: bool
) -> None:
    machine = make(replace(server_settings(), profile=profile))
    client = Old(version)
    if passes:
        shaken(machine, cast(Machine, client))
        assert machine.facts().version == client.ssl.version()
        return
    with pytest.raises(TlsFault) as caught:
        shaken(machine, cast(Machine, client))
    assert caught.value.handshake is Handshake.VERSION
    assert caught.value.detail == "the client offers no version of TLS that is spoken here"


@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256"])
def test_a_weak_cipher(make: MachineFactory, cipher: str) -> None:
    machine = make(server_settings())
    client = Old(ssl.TLSVersion.TLSv1_2, f"{cipher}:@SECLEVEL=0")
    with pytest.raises(TlsFault) as caught:
        shaken(machine, cast(Machine, client))
    assert caught.value.handshake is Handshake.CIPHER


@pytest.mark.parametrize(
    ("hello", "kind_of"),
    [
        # SSLv3: version 3.0 in the record and in the hello.
        ("160300002f0100002b0300" + "11" * 32 + "000004000a00050100", "version"),
        # SSLv2's own form, which offers up to 3.1 (RFC 5246 E.2).
        ("802e0103010015000000100100800300800700c006004002008004008000000aff" + "22" * 15, ""),
    ],
)
def test_ancient_hellos(make: MachineFactory, hello: str, kind_of: str) -> None:
    machine = make(server_settings())
    machine.feed(bytes.fromhex(hello))
    with pytest.raises(TlsFault) as caught:
        machine.shake()
    if kind_of:
        assert caught.value.handshake.value == kind_of
    assert caught.value.fault is Fault.TLS


def test_alpn(make: MachineFactory, kind: str) -> None:
    """What both know; nothing where the client says nothing. Where they have nothing in common the
    compiled one refuses (RFC 7301 3.2), and Python's cannot."""
    for offered, chosen in ((("h2", "http/1.1"), "http/1.1"), ((), "")):
        machine = make(server_settings())
        shaken(machine, far(replace(client_settings(), alpn=offered)))
        assert machine.facts().protocol == chosen
    client = far(replace(client_settings(), alpn=("h2",)))
    if kind == "openssl":
        assert "ALPN" in refused(make, server_settings(), client).detail
    else:
        shaken(make(server_settings()), client)


# --- Streams ------------------------------------------------------------------------------------


@pytest.fixture(params=["server", "client"])
def ends(request: pytest.FixtureRequest, make: MachineFactory) -> tuple[Machine, Machine]:
    """A machine in one of its roles, and its far end, which have shaken hands."""
    if request.param == "server":
        one, two = make(server_settings()), far(client_settings())
    else:
        one, two = make(client_settings()), far(server_settings())
    shaken(one, two)
    return one, two


@pytest.mark.parametrize("size", [1, 16_383, 16_384, 16_385, 60_000])
def test_bytes_pass(ends: tuple[Machine, Machine], size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    for here, there in (ends, ends[::-1]):
        here.seal(data[:size])
        there.feed(here.take())
        assert opened(there) == data[:size]


def test_what_does_not_fit_is_pending(ends: tuple[Machine, Machine]) -> None:
    machine, other = ends
    other.seal(b"a" * 10_000)
    other.say_close()
    machine.feed(other.take())
    room = memoryview(bytearray(6_000))
    assert machine.open_into(room) == 6_000
    assert machine.pending
    assert machine.open_into(room) == 4_000
    assert machine.pending
    assert machine.open_into(room) == 0
    assert machine.finished
    assert not machine.pending


def test_each_way_ends_by_itself(ends: tuple[Machine, Machine]) -> None:
    """Behind our close_notify what comes is still opened, also if it waited then; nothing that
    waited is lost."""
    machine, other = ends
    other.seal(b"before")
    sealed = other.take()
    machine.feed(sealed[:9])
    machine.say_close()
    other.feed(machine.take())
    assert opened(other) == b""
    assert other.finished
    other.seal(b"after")
    other.say_close()
    machine.feed(sealed[9:] + other.take())
    assert opened(machine) == b"beforeafter"
    assert machine.finished


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]), id="damaged"),
        pytest.param(lambda _: b"\x17\x03\x03\xff\xff" + bytes(70_000), id="too long"),
        pytest.param(lambda _: b"GET / HTTP/1.1\r\n\r\n", id="plain"),
        pytest.param(lambda sealed: sealed[:5] + sealed[5:-1] + sealed, id="cut"),
    ],
)
def test_a_record_that_is_none(ends: tuple[Machine, Machine], forged: object) -> None:
    """What came before it is opened first; the far end is told by an alert, and not by more."""
    machine, other = ends
    assert callable(forged)
    other.seal(b"good")
    good = other.take()
    other.seal(b"the next" * 10)
    machine.feed(good + forged(other.take()))
    room = memoryview(bytearray(1_000))
    assert machine.open_into(room) == 4
    assert machine.pending
    with pytest.raises(TlsFault) as caught:
        machine.open_into(room)
    assert caught.value.fault is Fault.TLS
    assert not machine.pending
    alert = machine.take()
    assert alert
    machine.say_close()
    assert machine.take() == b""
    other.feed(alert)
    with pytest.raises(TlsFault):
        other.open_into(room)


# --- Settings -----------------------------------------------------------------------------------


def encrypted(key: bytes) -> bytes:
    read = serialization.load_pem_private_key(key, None)
    return read.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def _settings_of(what: str) -> TlsServer | TlsClient:
    good, other = pair("a.example"), pair("b.example")
    bad = {
        "another's key": KeyPair(chain=good.chain, key=other.key),
        "no chain": KeyPair(chain=b"", key=good.key),
        "no PEM": KeyPair(chain=good.chain, key=b"-----BEGIN"),
        "encrypted": KeyPair(chain=good.chain, key=encrypted(good.key)),
    }
    if what in bad:
        return TlsServer(certificates=(good, bad[what]))
    if what == "a CA that is none":
        return TlsServer(certificates=(good,), client_certificates="request", client_ca=b"x")
    assert what == "an upstream's CA that is none"
    return TlsClient(server_name="a.example", ca=good.key)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("another's key", "the certificate and its key do not fit, or are too weak"),
        ("no chain", "the certificate has no PEM block of a certificate"),
        ("no PEM", "the key of the certificate cannot be read; it must be PEM without"),
        ("encrypted", "the key of the certificate cannot be read; it must be PEM without"),
        ("a CA that is none", "the CA file has no PEM block of a certificate"),
        ("an upstream's CA that is none", "the CA file has no PEM block of a certificate"),
    ],
)
def test_settings_that_cannot_be_used(kind: str, what: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        KINDS[kind][1](_settings_of(what))


def test_good_settings_pass(kind: str) -> None:
    for settings in (server_settings(), client_settings(), TlsClient(server_name="a.example")):
        KINDS[kind][1](settings)
