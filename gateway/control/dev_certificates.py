"""A CA for development, and what it signs: `gateway certs`.

Laws of this file:

- Nothing here is for production: the CA's key lies in a folder, and who trusts that CA trusts
  whoever can read it.
- A key is never readable by others, not even for a moment, and a CA that is there already is used
  on: who trusts it need not do so again.
- What was not made here is not overwritten.
"""

import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.errors import TableError

CA_DAYS = 825                 # the longest that Apple's clients take from a CA that was installed
CA_NAME = "Development CA of an edge gateway"
SERVER, CLIENT = "server", "client"

_DAY = datetime.timedelta(days=1)
_USAGES = {SERVER: ExtendedKeyUsageOID.SERVER_AUTH, CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}


def make(folder: Path, names: Sequence[str], days: int) -> list[Path]:
    """Write `ca.crt`, `server.crt` and `client.crt` with their keys; the files that are new.

    Raises TableError, a sentence for who typed it, and OSError for a folder that cannot be written.
    """
    alternatives = [_alternative(name) for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    key, authority = _authority(folder, made)
    for kind, alike in ((SERVER, alternatives), (CLIENT, [x509.DNSName("developer")])):
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(_named(names[0] if kind == SERVER else "developer"), own, days, (
            (x509.SubjectAlternativeName(alike), False),
            (x509.ExtendedKeyUsage([_USAGES[kind]]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_others=False), True),
        ), authority, key)
        _write(folder, kind, certificate, own, authority, made)
    return made


def _authority(
    folder: Path, made: list[Path]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The one that is in the folder, or a new one."""
    if (folder / "ca.key").exists():
        try:
            read = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, TypeError, ValueError):
            _refuse(folder / "ca.key", "a key without its ca.crt, or one that cannot be read")
        if certificate.subject != _named(CA_NAME) or not isinstance(
            read, ec.EllipticCurvePrivateKey
        ):
            _refuse(folder / "ca.key", "another CA's key")
        return read, certificate
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(_named(CA_NAME), key, CA_DAYS, (
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_usage(signs_others=True), True),
    ), None, key)
    _write(folder, "ca", certificate, key, None, made)
    return key, certificate


def _signed(
    subject: x509.Name, own: ec.EllipticCurvePrivateKey, days: int,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
    authority: x509.Certificate | None, key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate for `own`, signed with `key` by the authority, or by itself."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if authority is None else authority.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)            # of a machine whose clock is behind
        .not_valid_after(now + days * _DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA256())


def _usage(*, signs_others: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_others,
        crl_sign=signs_others, encipher_only=False, decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name.isascii() or not name.replace("-", "").replace(".", "").replace("*", "").isalnum():
        raise TableError("gateway certs", f'"{name}"', "names such as localhost or *.example.test, "
                         "and IP addresses", "write the name alone")
    return x509.DNSName(name.lower())


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate | None, made: list[Path],
) -> None:
    """Both files, in the place of those that were made here before."""
    chain, secret = folder / f"{name}.crt", folder / f"{name}.key"
    if chain.exists():
        try:
            before = x509.load_pem_x509_certificate(chain.read_bytes())
        except ValueError:
            _refuse(chain, "what is no certificate")
        if authority is None or before.issuer != authority.subject:
            _refuse(chain, "a certificate that was not made here")
    elif secret.exists():
        _refuse(secret, "a key without its certificate")
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, data, mode in (
        (secret, pem, 0o600),
        (chain, certificate.public_bytes(serialization.Encoding.PEM), 0o644),
    ):
        fresh = file.with_name(f"{file.name}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - it is open already
            stream.write(data)
        fresh.replace(file)              # whoever watches sees it whole
        made.append(file)


def _refuse(file: Path, found: str) -> NoReturn:
    raise TableError(str(file), found, "a folder that this command has to itself",
                     "choose another one with --out, or remove the file")
