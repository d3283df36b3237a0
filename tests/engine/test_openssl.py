"""OpenSSL's machines: which certificate is chosen, which tickets are good, what is refused."""

import gc
import os
import random
import ssl
from dataclasses import replace

import pytest

from engine.authority import Authority
from gateway import servernames
from gateway.control.parts import OPENSSL
from gateway.engine import ledger
from gateway.events import KeyPair, TlsClient, TlsServer

if OPENSSL.why_missing():
    pytest.skip("no OpenSSL here", allow_module_level=True)

from gateway.engine.openssl import Contexts, OpensslMachine, check

AUTHORITY = Authority()
CONTEXTS = Contexts()
LABELS = ("a", "b", "www", "example", "com", "xn--bcher-kva")


def shaken(server: TlsServer, client: TlsClient) -> tuple[OpensslMachine, OpensslMachine]:
    """Both machines, behind their handshake."""
    near, far = CONTEXTS(server), CONTEXTS(client)
    done = [False, False]
    while not all(done):
        done[1] = done[1] or far.shake()
        near.feed(far.take())
        done[0] = done[0] or near.shake()
        far.feed(near.take())
    return near, far


def chosen(server: TlsServer, name: str) -> bytes:
    """The certificate that a client which asks for this name gets, whatever it is for."""
    _, far = shaken(server, TlsClient(server_name=name, verify=False))
    certificate = far.facts().certificate
    assert certificate is not None
    return certificate.der


def der_of(pair: KeyPair) -> bytes:
    """Of its first certificate."""
    return ssl.PEM_cert_to_DER_cert(pair.chain.decode())


def test_the_certificate_for_a_name_is_the_one_that_sessions_expect() -> None:
    """As `servernames.pick` has it, for names of all kinds."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def name() -> str:
        return ".".join(chance.choice(LABELS) for _ in range(chance.randint(1, 3)))

    for _ in range(12):
        pairs = tuple(
            AUTHORITY.issue(*{chance.choice(("", "*.")) + name() for _ in range(3)})
            for _ in range(4)
        )
        server = TlsServer(certificates=pairs)
        for _ in range(8):
            wanted = name()
            assert chosen(server, wanted) == der_of(servernames.pick(pairs, wanted)), wanted


def test_a_name_is_compared_without_case_and_the_root_s_dot() -> None:
    pairs = (AUTHORITY.issue("first.example"), AUTHORITY.issue("Second.Example"))
    server = TlsServer(certificates=pairs)
    assert chosen(server, "SECOND.example") == der_of(pairs[1])


def test_two_keys_for_the_same_names_are_both_offered() -> None:
    """Whoever has no ECDSA gets RSA."""
    pairs = (AUTHORITY.issue("a.example"), AUTHORITY.issue("a.example", kind="rsa"))
    server = TlsServer(certificates=pairs)
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    for ciphers, pair in (("aECDSA", pairs[0]), ("aRSA", pairs[1])):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        assert resume(context, server, None)[0].getpeercert(binary_form=True) == der_of(pair)


def resume(
    context: ssl.SSLContext, server: TlsServer, session: ssl.SSLSession | None
) -> tuple[ssl.SSLObject, OpensslMachine]:
    """A handshake with Python's `ssl`, which may have a session; tickets are taken."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = context.wrap_bio(incoming, outgoing, server_hostname="a.example", session=session)
    near = CONTEXTS(server)
    done = [False, False]
    while not all(done):
        try:
            far.do_handshake()
            done[1] = True
        except ssl.SSLWantReadError:
            pass
        near.feed(outgoing.read())
        done[0] = done[0] or near.shake()
        incoming.write(near.take())
    with pytest.raises(ssl.SSLWantReadError):
        far.read(1)
    return far, near


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_ticket_is_good_while_its_key_is_known(version: str) -> None:
    """In every context that has it, as other workers do; and then no more."""
    old, new, other = (os.urandom(80) for _ in range(3))
    pair = AUTHORITY.issue("a.example")
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    far, near = resume(context, TlsServer(certificates=(pair,), ticket_keys=(old,)), None)
    assert not near.facts().resumed
    far, near = resume(
        context, TlsServer(certificates=(pair,), ticket_keys=(new, old)), far.session
    )
    assert (near.facts().resumed, far.session_reused) == (True, True)
    renewed = far.session
    for keys, resumed in (((new,), True), ((other,), False), ((), False)):
        _, near = resume(context, TlsServer(certificates=(pair,), ticket_keys=keys), renewed)
        assert near.facts().resumed is resumed


def test_no_ticket_opens_a_listener_that_asks_for_a_certificate() -> None:
    """It was given by one that does not, under the same key."""
    open_one = TlsServer(
        certificates=(AUTHORITY.issue("a.example"),), ticket_keys=(os.urandom(80),)
    )
    asking = replace(open_one, client_certificates="request", client_ca=AUTHORITY.pem)
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    far, _ = resume(context, open_one, None)
    _, near = resume(context, asking, far.session)
    assert not near.facts().resumed


def test_a_client_s_certificate_is_told_whole() -> None:
    """Its subject by RFC 4514, and its names of four kinds."""
    server = TlsServer(
        certificates=(AUTHORITY.issue("a.example"),),
        client_certificates="require", client_ca=AUTHORITY.pem,
    )
    own = AUTHORITY.issue(
        "b.example", "URI:spiffe://x/y", "IP:2001:db8::1", "EMAIL:c@b.example",
        subject="Jos\u00e9, the client",
    )
    near, _ = shaken(server, TlsClient(
        server_name="a.example", ca=AUTHORITY.pem, chain=own.chain, key=own.key,
    ))
    certificate = near.facts().certificate
    assert certificate is not None
    assert certificate.der == der_of(own)
    assert certificate.subject == "CN=Jos\u00e9\\, the client"
    assert certificate.names == (
        "DNS:b.example", "URI:spiffe://x/y", "IP:2001:db8::1", "EMAIL:c@b.example",
    )


GOOD = AUTHORITY.issue("a.example")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (TlsServer(certificates=(replace(GOOD, key=b"no key"),)), "key of the certificate"),
        (TlsServer(certificates=(replace(GOOD, chain=b"no PEM"),)), "no PEM block"),
        (TlsServer(certificates=(replace(GOOD, key=AUTHORITY.issue("b").key),)), "do not fit"),
        (TlsServer(certificates=(GOOD,), client_certificates="require"), "CA file"),
        (TlsClient(server_name="a.example", ca=b"no PEM"), "CA file"),
        (TlsClient(server_name=""), "no server name"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    settings: TlsServer | TlsClient, words: str
) -> None:
    """With a sentence, before anybody connects; and no key is said in it."""
    with pytest.raises(ValueError, match=words):
        check(settings)


def test_what_is_sealed_is_in_few_records() -> None:
    """As many as it takes, and a small message in one."""
    near, far = shaken(
        TlsServer(certificates=(GOOD,)), TlsClient(server_name="a.example", ca=AUTHORITY.pem)
    )
    far.open_into(memoryview(bytearray(10)))
    near.seal(bytes(100_000))
    sealed, sizes = near.take(), []
    while sealed:
        size = int.from_bytes(sealed[3:5], "big")
        sizes.append(size)
        sealed = sealed[5 + size :]
    assert [size - 17 for size in sizes] == [16_384] * 6 + [100_000 - 6 * 16_384]


def test_contexts_go_with_their_settings() -> None:
    """And with the last machine that was made of them; counted in a debug build."""
    if not ledger.is_kept():
        pytest.skip("no debug build: nothing is counted")
    gc.collect()
    before = ledger.entries()["contexts"]
    contexts, settings = Contexts(), TlsServer(certificates=(GOOD, AUTHORITY.issue("b.example")))
    machine = contexts(settings)
    assert ledger.entries()["contexts"][0] == before[0] + 1
    del settings
    gc.collect()
    assert ledger.entries()["contexts"][1] == before[1]
    del machine
    assert ledger.entries()["contexts"][1] == before[1] + 1
