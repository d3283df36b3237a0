"""Certificates for tests: an authority in memory, and what it signs. Nothing is written down."""

import datetime
import ipaddress
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from gateway.events import KeyPair

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

DAY = datetime.timedelta(days=1)


def new_key(kind: str = "ecdsa") -> Key:
    """A private key: "ecdsa" (P-256) or "rsa" (2,048 bits)."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: Key) -> bytes:
    """Without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _alternative(name: str) -> x509.GeneralName:
    kind, _, rest = name.partition(":")
    if kind == "URI":
        return x509.UniformResourceIdentifier(rest)
    if kind == "EMAIL":
        return x509.RFC822Name(rest)
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_address(rest))
    return x509.DNSName(name)


class Authority:
    """A root that signs. `pem` is its certificate."""

    def __init__(self, name: str = "Test CA"):
        self._key = new_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.pem = self._sign(self._name, self._key, (), DAY, 30 * DAY, is_root=True)

    def issue(
        self,
        *names: str,
        subject: str = "",
        kind: str = "ecdsa",
        key: Key | None = None,
        starts: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 30 * DAY,
    ) -> KeyPair:
        """For DNS names, and "IP:...", "URI:...", "EMAIL:..."; `starts` and `ends` from now."""
        key = key or new_key(kind)
        common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])
        chain = self._sign(common, key, names, -starts, ends, is_root=False)
        return KeyPair(
            chain=chain,
            key=pem_of(key),
            names=tuple(name.lower() for name in names if ":" not in name),
        )

    def _sign(
        self,
        subject: x509.Name,
        key: Key,
        names: tuple[str, ...],
        since: datetime.timedelta,
        ends: datetime.timedelta,
        *,
        is_root: bool,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - since)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_alternative(name) for name in names]),
                critical=False,
            )
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)
