"""TLS in the kernel: what it takes to give a session's keys to a socket (SOL_TLS).

After a handshake the kernel can seal and open the records itself. The socket is then read, written
and spliced as a plain one, and the relay on it is the plain one. OpenSSL 3.0 does that neither for
what is received in TLS 1.3 nor over memory, so the keys are derived here, from the secrets that
its keylog callback tells. Once for each session, so Python is fast enough.

Facts about it (Documentation/networking/tls.rst):

- A socket gets the upper-layer protocol "tls", then keys for each direction; both of one version
  and one cipher, or EINVAL. Before that, nothing that was sealed may wait outside of the kernel.
- Linux takes AES-128-GCM since 4.13, to receive since 4.17, TLS 1.3 and AES-256-GCM since 5.1,
  ChaCha20-Poly1305 since 5.11; new keys for the same session (KeyUpdate) since 6.14.
- Its module "tls" is loaded at the first use by who has CAP_NET_ADMIN; else it must be there.
- The numbers below are the kernel's ABI (include/uapi/linux/tls.h): Python has no names for them.

Never: keep a secret longer than it is needed, or show one in a `repr`.
"""

import hmac
import importlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Final

TCP_ULP: Final = 31
SOL_TLS: Final = 282
TLS_TX: Final = 1
TLS_RX: Final = 2
TLS_SET_RECORD_TYPE: Final = 1          # control messages: of what is sent, and of what came
TLS_GET_RECORD_TYPE: Final = 2

TLS_1_2: Final = "TLSv1.2"              # as OpenSSL says it, and `events.Secured` does
TLS_1_3: Final = "TLSv1.3"
_NUMBERS: Final = {TLS_1_2: 0x0303, TLS_1_3: 0x0304}

ULP: Final = b"tls"

SALT: Final = 4                         # of the twelve bytes of a nonce, with AES-GCM


@dataclass(frozen=True, slots=True)
class Suite:
    """A cipher that the kernel may have, and the hash that keys are derived with."""

    name: str
    number: int                         # of the kernel
    key_size: int
    digest: str

    @property
    def has_salt(self) -> bool:
        """AES-GCM has a fixed part of the nonce in TLS 1.2 (RFC 5288 3), and ChaCha20-Poly1305 has
        the whole as in TLS 1.3 (RFC 7905 2)."""
        return "GCM" in self.name


AES_128: Final = Suite("AES-128-GCM", 51, 16, "sha256")
AES_256: Final = Suite("AES-256-GCM", 52, 32, "sha384")
CHACHA20: Final = Suite("ChaCha20-Poly1305", 54, 32, "sha256")
SUITES: Final = (AES_128, AES_256, CHACHA20)

_NAMED: Final = {                       # ends of OpenSSL's names: "ECDHE-RSA-AES128-GCM-SHA256"
    "AES_128_GCM_SHA256": AES_128,
    "AES_256_GCM_SHA384": AES_256,
    "CHACHA20_POLY1305_SHA256": CHACHA20,
    "AES128_GCM_SHA256": AES_128,
    "AES256_GCM_SHA384": AES_256,
    "CHACHA20_POLY1305": CHACHA20,
}


def suite_of(cipher: str) -> Suite | None:
    """The suite of OpenSSL's name for a cipher; None if the kernel has none for it."""
    name = cipher.replace("-", "_")
    return next((suite for end, suite in _NAMED.items() if name.endswith(end)), None)


# --- Keys ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keys:
    """What one direction is sealed with."""

    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)       # 12 bytes; 4 in TLS 1.2 with AES-GCM


def expand_label(digest: str, secret: bytes, label: str, size: int, context: bytes = b"") -> bytes:
    """HKDF-Expand-Label of RFC 8446 7.1."""
    full = b"tls13 " + label.encode()
    info = struct.pack("!HB", size, len(full)) + full + bytes([len(context)]) + context
    block, out = b"", b""
    for number in range(1, 256):                    # HKDF-Expand, RFC 5869 2.3
        block = hmac.digest(secret, block + info + bytes([number]), digest)
        out += block
        if len(out) >= size:
            break
    return out[:size]


def traffic_keys(suite: Suite, secret: bytes) -> Keys:
    """Of a traffic secret of TLS 1.3 (RFC 8446 7.3)."""
    return Keys(
        expand_label(suite.digest, secret, "key", suite.key_size),
        expand_label(suite.digest, secret, "iv", 12),
    )


def next_secret(suite: Suite, secret: bytes) -> bytes:
    """The traffic secret after a KeyUpdate (RFC 8446 7.2)."""
    return expand_label(suite.digest, secret, "traffic upd", len(secret))


def prf(digest: str, secret: bytes, label: bytes, seed: bytes, size: int) -> bytes:
    """The pseudorandom function of TLS 1.2 (RFC 5246 5)."""
    step, out = label + seed, b""
    while len(out) < size:
        step = hmac.digest(secret, step, digest)
        out += hmac.digest(secret, step + label + seed, digest)
    return out[:size]


def key_block(
    suite: Suite, master: bytes, client_random: bytes, server_random: bytes
) -> tuple[Keys, Keys]:
    """The keys of client and server in TLS 1.2 (RFC 5246 6.3)."""
    iv_size = SALT if suite.has_salt else 12
    out = prf(
        suite.digest, master, b"key expansion", server_random + client_random,
        2 * (suite.key_size + iv_size),
    )
    parts, at = [], 0
    for part in (suite.key_size, suite.key_size, iv_size, iv_size):
        parts.append(out[at : at + part])
        at += part
    return Keys(parts[0], parts[2]), Keys(parts[1], parts[3])


def crypto_info(
    version: str, suite: Suite, keys: Keys, sequence: int, nonce: bytes = b""
) -> bytes:
    """What the kernel is given for one direction: `sequence` is the number of the next record.

    `nonce` is the explicit one of the next record of ours in TLS 1.2 with AES-GCM, which the
    kernel counts on from there: one that was used before breaks the cipher. What is received
    says its own.
    """
    head = struct.pack("=HH", _NUMBERS[version], suite.number)
    if not suite.has_salt:
        salt, iv = b"", keys.iv
    elif version == TLS_1_3:
        salt, iv = keys.iv[:SALT], keys.iv[SALT:]
    else:
        salt, iv = keys.iv, nonce or bytes(8)
    return head + iv + keys.key + salt + struct.pack("!Q", sequence)


def give(sock: socket.socket, direction: int, info: bytes) -> None:
    """Give the kernel the keys of one direction. Raises OSError where it does not take them."""
    sock.setsockopt(SOL_TLS, direction, info)


# --- What this kernel has -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Support:
    """What a trial on the loopback has shown. `missing` says why there is nothing, "" if there
    is."""

    missing: str = ""
    ciphers: frozenset[tuple[str, Suite]] = frozenset()     # version and suite, both directions
    rekeys: bool = False                            # a KeyUpdate can be followed

    def has(self, version: str, cipher: str) -> bool:
        """Whether a session of this version and cipher (OpenSSL's name) can be given over."""
        suite = suite_of(cipher)
        return suite is not None and (version, suite) in self.ciphers


@cache
def support() -> Support:
    """Tried once in a process: by doing all that will be needed."""
    try:
        importlib.import_module("gateway.engine.compiled_relays")
        with _pair() as (one, _):
            one.setsockopt(socket.IPPROTO_TCP, TCP_ULP, ULP)
    except ImportError:
        return Support("relays run in Python")      # which gain nothing by it
    except OSError as error:
        why = os.strerror(error.errno or 0)
        return Support(f"the kernel has no TLS for sockets ({why})")
    taken = frozenset(
        (version, suite) for version in _NUMBERS for suite in SUITES if _carries(version, suite)
    )
    if not taken:
        return Support("the kernel's TLS takes none of the ciphers (AES-GCM, ChaCha20-Poly1305)")
    return Support("", taken, _rekeys())


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one connection over the loopback; raises OSError."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), 1.0) as one,
        listener.accept()[0] as two,
    ):
        two.settimeout(1.0)
        yield one, two


def _trial_keys(suite: Suite, version: str) -> Keys:
    short = suite.has_salt and version == TLS_1_2
    return Keys(os.urandom(suite.key_size), os.urandom(SALT if short else 12))


def _carries(version: str, suite: Suite) -> bool:
    """Whether a byte that one end seals is what the other opens."""
    info = crypto_info(version, suite, _trial_keys(suite, version), 0)
    try:
        with _pair() as (one, two):
            for end, direction in ((one, TLS_TX), (two, TLS_RX)):
                end.setsockopt(socket.IPPROTO_TCP, TCP_ULP, ULP)
                give(end, direction, info)
            one.send(b"x")
            return two.recv(2) == b"x"
    except OSError:
        return False


def _rekeys() -> bool:
    """Whether new keys are taken for a direction that has some: since Linux 6.14, else EBUSY."""
    keys = [crypto_info(TLS_1_3, AES_128, _trial_keys(AES_128, TLS_1_3), 0) for _ in range(2)]
    try:
        with _pair() as (one, _):
            one.setsockopt(socket.IPPROTO_TCP, TCP_ULP, ULP)
            for info in keys:
                give(one, TLS_TX, info)
    except OSError:
        return False
    return True
