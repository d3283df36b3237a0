"""The files of a table's TLS: certificates, keys and CAs, read, checked, and put into the table.

`secured` gives the same table with `Listener.secure` and `EndpointEntry.secure` filled in: what the
engine is given. It is done at the start, by each reload, and when a file has changed.

Laws of this file:

- What a client would stumble over is found here: a file that is missing or no PEM, a key that is
  another certificate's, or locked with a passphrase, a certificate that OpenSSL would not take.
- What was good before and is broken now stays as it was, and that is said: who renews a
  certificate writes two files, one after the other. What was never good is a mistake in the table.
- Nothing of a key is ever shown: messages name files.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from gateway.control.tickets import Tickets
from gateway.engine.machines import check
from gateway.errors import TableError, TableErrors
from gateway.events import KeyPair, TlsClient, TlsServer
from gateway.table import CertificateFiles, EndpointEntry, Listener, Table, Upstream

_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
_AGAIN = "see that it is whole, and not of another kind"


@dataclass(frozen=True, slots=True)
class Expiry:
    """Until when one certificate of the table is good."""

    place: str                           # "listener 0.0.0.0:8443", or "upstream rooms"
    file: str
    until: float                         # seconds since 1970


def secured(
    table: Table, tickets: Tickets | None = None, last: Table | None = None
) -> tuple[Table, list[str]]:
    """The table with what its TLS files hold, and sentences of those that are kept as they were
    in `last`, since they are broken now. Without `tickets` listeners send none.

    Raises TableErrors where a file that never was good is not good now.
    """
    reading = _Reading(last)
    listeners = tuple(_listener(one, reading, tickets) for one in table.listeners)
    upstreams = {name: _upstream(one, reading) for name, one in table.upstreams.items()}
    if reading.errors:
        raise TableErrors(reading.errors)
    return replace(table, listeners=listeners, upstreams=upstreams), reading.kept


def with_tickets(table: Table, tickets: Tickets) -> Table:
    """The table, secured already, with the keys for tickets that hold now."""
    return replace(table, listeners=tuple(
        one if one.secure is None else replace(one, secure=_ticketed(one, one.secure, tickets))
        for one in table.listeners
    ))


def expiries(table: Table) -> list[Expiry]:
    """Of each certificate that is shown to somebody: those of listeners, and ours as a client.
    The table is secured already."""
    found = []
    for listener in table.listeners:
        if listener.tls is not None and listener.secure is not None:
            pairs = zip(listener.tls.certificates, listener.secure.certificates, strict=True)
            found += [
                Expiry(f"listener {listener.address}", files.chain, not_after(pair.chain))
                for files, pair in pairs
            ]
    for upstream in table.upstreams.values():
        own = None if upstream.tls is None else upstream.tls.certificate
        secure = upstream.entries[0].secure if upstream.entries else None
        if own is not None and secure is not None:
            found.append(Expiry(f"upstream {upstream.name}", own.chain, not_after(secure.chain)))
    return found


@functools.lru_cache(maxsize=1024)       # asked at each scrape
def not_after(chain: bytes) -> float:
    """Until when the first certificate of a chain is good, in seconds since 1970."""
    return x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc.timestamp()


# --- Inside ------------------------------------------------------------------------------------


class _Reading:
    """What is read once for one table, what went wrong, and what was there before."""

    def __init__(self, last: Table | None) -> None:
        self.errors: list[TableError] = []
        self.kept: list[str] = []
        self._pairs: dict[CertificateFiles, KeyPair | None] = {}
        self._authorities: dict[str, bytes] = {}
        self._last_pairs: dict[CertificateFiles, KeyPair] = {}
        self._last_authorities: dict[str, bytes] = {}
        if last is not None:
            self._remember(last)

    def _remember(self, last: Table) -> None:
        for listener in last.listeners:
            if listener.tls is not None and listener.secure is not None:
                known = zip(listener.tls.certificates, listener.secure.certificates, strict=True)
                self._last_pairs.update(known)
                self._last_authorities[listener.tls.client_ca] = listener.secure.client_ca
        for upstream in last.upstreams.values():
            secure = upstream.entries[0].secure if upstream.entries else None
            if upstream.tls is not None and secure is not None:
                self._last_authorities[upstream.tls.ca] = secure.ca
                if upstream.tls.certificate is not None:
                    own = KeyPair(chain=secure.chain, key=secure.key)
                    self._last_pairs.setdefault(upstream.tls.certificate, own)

    def pair(self, files: CertificateFiles, place: str) -> KeyPair | None:
        """A certificate and its key; None for a mistake, which is noted."""
        if files not in self._pairs:
            try:
                self._pairs[files] = read_pair(files, place)
            except TableError as error:
                self._pairs[files] = self._last_pairs.get(files)
                self._broken(error, known=files in self._last_pairs)
        return self._pairs[files]

    def authorities(self, file: str, place: str) -> bytes:
        """The certificates of a CA; nothing for a mistake, which is noted."""
        if file and file not in self._authorities:
            try:
                self._authorities[file] = read_authorities(file, place)
            except TableError as error:
                self._authorities[file] = self._last_authorities.get(file, b"")
                self._broken(error, known=file in self._last_authorities)
        return self._authorities.get(file, b"")

    def _broken(self, error: TableError, *, known: bool) -> None:
        if known:
            self.kept.append(f"{error}; what was read before stays in use")
        else:
            self.errors.append(error)


def _listener(listener: Listener, reading: _Reading, tickets: Tickets | None) -> Listener:
    tls = listener.tls
    if tls is None:
        return listener
    place = f"listener {listener.address}, tls"
    found = [
        reading.pair(files, f"{place}, certificates, entry {number}")
        for number, files in enumerate(tls.certificates, 1)
    ]
    secure = TlsServer(
        certificates=tuple(pair for pair in found if pair is not None),
        profile=tls.profile,
        client_certificates=tls.client_certificates,
        client_ca=reading.authorities(tls.client_ca, f"{place}, client_ca"),
    )
    if tickets is not None:
        secure = _ticketed(listener, secure, tickets)
    return replace(listener, secure=secure)


def _ticketed(listener: Listener, secure: TlsServer, tickets: Tickets) -> TlsServer:
    """A ticket says that a client was let in: so it is good for the listener that gave it, as
    long as that one lets in the same."""
    terms = (str(listener.address), secure.profile, secure.client_certificates)
    keys = tickets.keys(b"\0".join((*(term.encode() for term in terms), secure.client_ca)))
    return replace(secure, ticket_keys=keys)


def _upstream(upstream: Upstream, reading: _Reading) -> Upstream:
    tls = upstream.tls
    if tls is None:
        return upstream
    place = f"upstream {upstream.name}, tls"
    authorities = reading.authorities(tls.ca, f"{place}, ca")
    own = None
    if tls.certificate is not None:
        own = reading.pair(tls.certificate, f"{place}, certificate")

    def secure(entry: EndpointEntry) -> EndpointEntry:
        return replace(entry, secure=TlsClient(
            # RFC 6066 3: without the final dot. A socket has no name, and is not verified then.
            server_name=tls.server_name or entry.host.removesuffix(".") or "localhost",
            verify=tls.verify,
            ca=authorities,
            chain=own.chain if own is not None else b"",
            key=own.key if own is not None else b"",
            alpn=("http/1.1",) if upstream.kind == "ws" else (),
        ))

    return replace(upstream, entries=tuple(secure(entry) for entry in upstream.entries))


def read_pair(files: CertificateFiles, place: str) -> KeyPair:
    """A certificate with its chain, and its key. Raises TableError."""
    chain = _read(files.chain, f"{place}, chain")
    key = _read(files.key, f"{place}, key")
    certificates = _certificates(chain, files.chain, f"{place}, chain")
    _check_key(certificates, key, files, place)
    pair = KeyPair(chain=chain, key=key, names=names_of(certificates[0]))
    try:
        check(TlsServer(certificates=(pair,)))
    except ValueError as error:          # keys that are too short, digests that are too weak
        raise TableError(f"{place}, chain", f"{files.chain}, which OpenSSL refuses: {error}",
                         "a certificate that it takes", "have a new one made") from error
    return pair


def read_authorities(file: str, place: str) -> bytes:
    """The certificates of one or more CAs. Raises TableError."""
    data = _read(file, place)
    _certificates(data, file, place)
    try:
        check(TlsClient(server_name="any.invalid", ca=data))
    except ValueError as error:
        raise TableError(place, f"{file}, which OpenSSL refuses: {error}",
                         "certificates of CAs", _AGAIN) from error
    return data


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names that a certificate is for, in lower case: those that a TLS hello may ask for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        # RFC 6125 6.4.4, and RFC 9525 6.3 against it: clients of old times go by this.
        said = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names: Iterable[str] = [str(one.value) for one in said]
    else:
        names = found.value.get_values_for_type(x509.DNSName)
    return tuple(dict.fromkeys(name.lower() for name in names))


def _read(file: str, place: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise TableError(place, f"{file}: {why}", "a file that can be read",
                         "check its name and its permissions") from error


def _certificates(data: bytes, file: str, place: str) -> list[x509.Certificate]:
    expected = "certificates in PEM"
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise TableError(place, f"{file}, which has none that can be read", expected,
                         _AGAIN) from error
    return found


def _check_key(
    certificates: list[x509.Certificate], key: bytes, files: CertificateFiles, place: str
) -> None:
    where = f"{place}, key"
    try:
        private = serialization.load_pem_private_key(key, None)
    except TypeError as error:           # so it says that a passphrase is wanted
        raise TableError(where, f"{files.key}, which has a passphrase", "a key without one",
                         "nobody is there to type it: write it out without") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TableError(where, f"{files.key}, which has no key that can be read",
                         "a private key in PEM", _AGAIN) from error
    ours = private.public_key().public_bytes(*_SPKI)
    owners = [number for number, one in enumerate(certificates) if _public(one) == ours]
    if owners and owners[0] > 0:
        raise TableError(f"{place}, chain", f"{files.chain}, where the key's certificate is not "
                         "the first", "it first, then those that it is signed by",
                         "turn them round")
    if not owners:
        raise TableError(where, f"{files.key}, which is another certificate's",
                         f"the key of {files.chain}", "name the pair that belongs together")


def _public(certificate: x509.Certificate) -> bytes:
    """Its public key; nothing for one of a kind that no key of ours can be."""
    try:
        return certificate.public_key().public_bytes(*_SPKI)
    except (ValueError, UnsupportedAlgorithm):
        return b""
