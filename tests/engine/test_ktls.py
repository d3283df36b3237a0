"""What the kernel is given of a TLS session: keys by the vectors of the RFCs, and their layout.

Sessions over kTLS are tried in `tests/ktls`, in a kernel that has it.
"""

import socket
import struct
from itertools import product

import pytest

from gateway.engine import ktls
from gateway.engine.ktls import AES_128, AES_256, CHACHA20, TLS_1_2, TLS_1_3, Keys

# RFC 8448 3, "derive write traffic keys for application data": of the server, of the client.
TRAFFIC = (
    (
        "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
        "9f02283b6c9c07efc26bb9f2ac92e356",
        "cf782b88dd83549aadf1e984",
    ),
    (
        "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
        "17422dda596ed5d9acd890e3c63f5051",
        "5b78923dee08579033e523d9",
    ),
)


@pytest.mark.parametrize(("secret", "key", "iv"), TRAFFIC)
def test_traffic_keys_are_those_of_rfc_8448(secret: str, key: str, iv: str) -> None:
    assert ktls.traffic_keys(AES_128, bytes.fromhex(secret)) == Keys(
        bytes.fromhex(key), bytes.fromhex(iv)
    )


def test_a_key_of_32_bytes_and_the_next_secret_are_those_of_rfc_9001() -> None:
    """Appendix A.5: the same function with QUIC's labels; "quic ku" is its "traffic upd"."""
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    for label, value in (
        ("quic key", "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"),
        ("quic iv", "e0459b3474bdd0e44a41c144"),
        ("quic ku", "1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"),
    ):
        wanted = bytes.fromhex(value)
        assert ktls.expand_label("sha256", secret, label, len(wanted)) == wanted
    assert len(ktls.next_secret(AES_256, bytes(48))) == 48


def test_the_function_of_tls_1_2_is_that_of_its_vector() -> None:
    """The vector for SHA-256 that was published on the TLS working group's list."""
    wanted = bytes.fromhex(
        "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e14"
        "baf9af0fa022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e"
        "5a5110fff70187347b66"
    )
    secret = bytes.fromhex("9bbe436ba940f017b17652849a71db35")
    seed = bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c")
    assert ktls.prf("sha256", secret, b"test label", seed, 100) == wanted


@pytest.mark.parametrize(("suite", "iv"), [(AES_128, 4), (AES_256, 4), (CHACHA20, 12)])
def test_the_key_block_is_cut_in_the_order_of_rfc_5246(suite: ktls.Suite, iv: int) -> None:
    """Both keys, then both nonces; the client's first (6.3), and no keys for a MAC."""
    whole = ktls.prf(suite.digest, b"m" * 48, b"key expansion", b"s" * 32 + b"c" * 32, 200)
    client, server = ktls.key_block(suite, b"m" * 48, b"c" * 32, b"s" * 32)
    assert client.key + server.key + client.iv + server.iv == whole[: 2 * (suite.key_size + iv)]
    assert (len(client.key), len(client.iv)) == (suite.key_size, iv)


@pytest.mark.parametrize(
    ("cipher", "suite"),
    [
        ("TLS_AES_128_GCM_SHA256", AES_128),
        ("TLS_AES_256_GCM_SHA384", AES_256),
        ("TLS_CHACHA20_POLY1305_SHA256", CHACHA20),
        ("ECDHE-RSA-AES128-GCM-SHA256", AES_128),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", AES_256),
        ("DHE-RSA-CHACHA20-POLY1305", CHACHA20),
        ("ECDHE-RSA-AES128-SHA256", None),
        ("TLS_AES_128_CCM_SHA256", None),
    ],
)
def test_suites_by_the_names_of_openssl(cipher: str, suite: ktls.Suite | None) -> None:
    assert ktls.suite_of(cipher) is suite


@pytest.mark.parametrize(
    ("version", "suite"), list(product((TLS_1_2, TLS_1_3), ktls.SUITES))
)
def test_the_layout_is_the_kernels(version: str, suite: ktls.Suite) -> None:
    """include/uapi/linux/tls.h: version, cipher, iv, key, salt, number of the next record."""
    short = version == TLS_1_2 and suite.has_salt
    keys = Keys(b"k" * suite.key_size, b"SALT" if short else b"SALTiviviviv")
    info = ktls.crypto_info(version, suite, keys, 7, b"nonceNON" if short else b"")
    number = {TLS_1_2: 0x0303, TLS_1_3: 0x0304}[version]
    assert struct.unpack_from("=HH", info) == (number, suite.number)
    if suite.has_salt:
        nonce = b"nonceNON" if short else b"iviviviv"
        assert info[4:] == nonce + keys.key + b"SALT" + bytes(7) + b"\7"
    else:
        assert info[4:] == b"SALTiviviviv" + keys.key + bytes(7) + b"\7"


def test_no_key_is_shown() -> None:
    assert repr(Keys(b"secret", b"secret")) == "Keys()"


def test_a_kernel_without_it_is_told_by_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this kernel has: a protocol that none has is refused in the same way."""
    monkeypatch.setattr(ktls, "ULP", b"none of these")
    ktls.support.cache_clear()
    try:
        found = ktls.support()
    finally:
        ktls.support.cache_clear()
    assert found.missing.startswith("the kernel has no TLS for sockets (")
    assert not found.ciphers
    assert not found.rekeys
    assert not found.has(TLS_1_3, "TLS_AES_128_GCM_SHA256")


def test_what_a_kernel_has_is_a_matter_of_version_and_cipher() -> None:
    found = ktls.Support("", frozenset({(TLS_1_3, AES_128)}))
    assert found.has(TLS_1_3, "TLS_AES_128_GCM_SHA256")
    assert not found.has(TLS_1_2, "ECDHE-RSA-AES128-GCM-SHA256")
    assert not found.has(TLS_1_3, "TLS_AES_256_GCM_SHA384")
    assert not found.has(TLS_1_3, "TLS_AES_128_CCM_8_SHA256")


def test_the_trial_leaves_nothing_open() -> None:
    """Descriptors are what they were."""
    ktls.support.cache_clear()
    with socket.socket() as before:
        number = before.fileno()
    ktls.support()
    with socket.socket() as after:
        assert after.fileno() == number
