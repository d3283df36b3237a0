"""TLS machines over `ssl.MemoryBIO`: for where nothing is compiled, or libssl does not load.

The same as `openssl.pyx` but for what Python's `ssl` cannot do: it sets no keys of tickets, so none
are sent (each process would have its own, and clients would offer them to others in vain), and no
groups before Python 3.15; and it does not refuse a client whose ALPN has nothing of ours. Laws:

- A context is made once for each certificate of a settings object, and lives as long as that does.
- A key never lies on a disk: `ssl` reads files only, so it gets one that is nowhere (memfd).
- Renegotiation is off (TLS 1.2), and so is compression.
"""

import contextlib
import ipaddress
import os
import ssl
import weakref
from typing import cast

from gateway import servernames
from gateway.engine import ktls
from gateway.engine.ktls_handover import Secrets, secrets_of
from gateway.engine.secure import Facts, Machine, TlsFault
from gateway.engine.tls_terms import (
    PROFILES,
    VERSION_1_2,
    client_refused,
    failed,
    plain_name,
    subject_text,
    upstream_refused,
)
from gateway.events import KeyPair, PeerCertificate, TlsClient, TlsServer

VERIFY_MODES = {
    "off": ssl.CERT_NONE,
    "request": ssl.CERT_OPTIONAL,
    "require": ssl.CERT_REQUIRED,
}
_KINDS = {"DNS": "DNS", "IP Address": "IP", "email": "EMAIL", "URI": "URI"}


def check(settings: TlsServer | TlsClient) -> None:
    """Raises ValueError for settings that no link could be secured with."""
    Contexts()(settings)


class Contexts:
    """A `secure.MachineFactory`: keeps the contexts of settings for as long as these live."""

    def __init__(self) -> None:
        self._servers: weakref.WeakKeyDictionary[TlsServer, ssl.SSLContext] = (
            weakref.WeakKeyDictionary()
        )
        self._clients: weakref.WeakKeyDictionary[TlsClient, ssl.SSLContext] = (
            weakref.WeakKeyDictionary()
        )
        self._keylog = None if ktls.support().missing else Keylog()

    def __call__(self, settings: TlsServer | TlsClient) -> Machine:
        """A machine for one link. Raises ValueError for settings that cannot be used."""
        if isinstance(settings, TlsServer):
            server = self._servers.get(settings)
            if server is None:
                server = self._servers[settings] = _server_context(settings, self._keylog)
            return SslMachine(server, keylog=self._keylog)
        client = self._clients.get(settings)
        if client is None:
            client = self._clients[settings] = _client_context(settings, self._keylog)
        return SslMachine(client, settings.server_name, self._keylog)


class SslMachine:
    """See secure.Machine. With a server name it is a client's, else a server's."""

    is_compiled = False

    __slots__ = (
        "_failure", "_incoming", "_keylog", "_outgoing", "_secrets", "_server_name", "_ssl",
        "finished", "pending",
    )

    def __init__(
        self, context: ssl.SSLContext, server_name: str = "", keylog: "Keylog | None" = None
    ):
        self.finished = False
        self.pending = False
        self._server_name = server_name
        self._failure: TlsFault | None = None
        self._keylog = keylog
        self._secrets: Secrets = {}
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing,
            server_side=not server_name, server_hostname=server_name or None,
        )

    def feed(self, sealed: bytes | memoryview) -> None:
        """See secure.Machine."""
        self._incoming.write(sealed)

    def shake(self) -> bool:
        """See secure.Machine."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._fault_of(error) from None
        finally:
            if self._keylog is not None:
                self._secrets.update(self._keylog.take())
        self.pending = self._incoming.pending > 0
        return True

    def secrets(self) -> Secrets:
        """See secure.Machine."""
        secrets, self._secrets = self._secrets, {}
        return secrets

    def facts(self) -> Facts:
        """See secure.Machine."""
        cipher = self._ssl.cipher()
        asked = self._server_name or getattr(self._ssl, "asked", "")
        return Facts(
            server_name=asked,
            protocol=self._ssl.selected_alpn_protocol() or "",
            version=self._ssl.version() or "",
            cipher=cipher[0] if cipher else "",
            resumed=bool(self._ssl.session_reused),
            certificate=self._certificate(),
        )

    def open_into(self, buffer: memoryview) -> int:
        """See secure.Machine."""
        self.pending = False
        if self._failure is not None:
            raise self._failure
        count, size = 0, len(buffer)
        try:
            while count < size and not self.finished:
                opened = int(self._ssl.read(size - count, buffer[count:]))    # bytes, say its stubs
                count += opened
                self.finished = not opened
        except ssl.SSLWantReadError:
            return count
        except ssl.SSLZeroReturnError:              # so where our close_notify is out, too
            self.finished = True
        except ssl.SSLError as error:
            self._failure = self._fault_of(error)
            if not count:
                raise self._failure from None
        self.pending = count > 0
        return count

    def seal(self, data: bytes | memoryview) -> None:
        """See secure.Machine. `ssl` asks for partial writes: each call seals one record."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._ssl.write(rest) :]
        except ssl.SSLError as error:
            raise self._fault_of(error) from None

    def say_close(self) -> None:
        """See secure.Machine. `unwrap` also looks for the far end's close_notify, and takes what
        else it finds for a mistake: it is to find nothing."""
        if self._failure is not None:
            return
        unread = self._incoming.read()
        with contextlib.suppress(ssl.SSLError):     # nothing was found: it is said all the same
            self._ssl.unwrap()
        if unread:
            self._incoming.write(unread)

    def take(self) -> bytes:
        """See secure.Machine."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def _certificate(self) -> PeerCertificate | None:
        """The far end's. `ssl` reads none that it did not verify: it is its bytes alone then."""
        der = self._ssl.getpeercert(binary_form=True)
        if not der:
            return None
        read = self._ssl.getpeercert() or {}
        subject = cast("tuple[tuple[tuple[str, str], ...], ...]", read.get("subject", ()))
        alternatives = cast("tuple[tuple[str, str], ...]", read.get("subjectAltName", ()))
        names = tuple(_name_of(kind, name) for kind, name in alternatives if kind in _KINDS)
        return PeerCertificate(subject_text(subject), names, der)

    def _fault_of(self, error: ssl.SSLError) -> TlsFault:
        far = "upstream" if self._server_name else "client"
        if isinstance(error, ssl.SSLCertVerificationError):
            code, text = error.verify_code, error.verify_message
            if self._server_name:
                return upstream_refused(code, text, self._server_name)
            return client_refused(code, text)
        return failed(error.reason or "it does not say why", far)


def _name_of(kind: str, name: str) -> str:
    if kind == "IP Address":
        name = str(ipaddress.ip_address(name.strip()))      # `ssl` writes all of an IPv6 address
    return f"{_KINDS[kind]}:{name}"


# --- Contexts -------------------------------------------------------------------------------------


class Keylog:
    """The secrets of handshakes, which `ssl` tells by a file only: it gets one that is nowhere, and
    it is emptied after each step. One thread does one step at a time, so what is in it is of the
    link that made it."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("keylog")

    def __del__(self) -> None:
        os.close(self._fd)

    def listen(self, context: ssl.SSLContext) -> None:
        """Have this context tell its secrets."""
        context.keylog_filename = f"/proc/self/fd/{self._fd}"

    def take(self) -> Secrets:
        """What was told since the last time."""
        size = os.fstat(self._fd).st_size
        if not size:
            return {}
        lines = os.pread(self._fd, size, 0).splitlines()
        os.ftruncate(self._fd, 0)
        return secrets_of(lines)


class _Asked(ssl.SSLObject):
    """Remembers which name the client asked for."""

    asked = ""


def _server_context(settings: TlsServer, keylog: Keylog | None) -> ssl.SSLContext:
    """That of the first certificate, which goes over to another's by the name."""
    assert settings.certificates
    contexts = {id(pair): _pair_context(settings, pair, keylog) for pair in settings.certificates}
    first = contexts[id(settings.certificates[0])]
    certificates = settings.certificates

    def choose(asking: ssl.SSLObject, server_name: str | None, _: ssl.SSLContext) -> None:
        name = plain_name(server_name)
        assert isinstance(asking, _Asked)
        asking.asked = name
        asking.context = contexts[id(servernames.pick(certificates, name))]

    first.sslobject_class = _Asked
    first.sni_callback = choose
    return first


def _pair_context(
    settings: TlsServer, pair: KeyPair, keylog: Keylog | None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if keylog is not None:
        keylog.listen(context)
    profile = PROFILES[settings.profile]
    if profile.minimum == VERSION_1_2:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(profile.ciphers)
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE     # each client knows what is fast there
    context.num_tickets = 0
    context.set_alpn_protocols(list(settings.alpn))
    _load_pair(context, pair.chain, pair.key)
    context.verify_mode = VERIFY_MODES[settings.client_certificates]
    if settings.client_certificates != "off":
        _load_trusted(context, settings.client_ca)
    return context


def _client_context(settings: TlsClient, keylog: Keylog | None) -> ssl.SSLContext:
    if not settings.server_name:
        raise ValueError("there is no server name")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if keylog is not None:
        keylog.listen(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.check_hostname = settings.verify
    context.hostname_checks_common_name = False             # RFC 9525 2: names are in the SAN
    context.verify_mode = ssl.CERT_REQUIRED if settings.verify else ssl.CERT_NONE
    if settings.alpn:
        context.set_alpn_protocols(list(settings.alpn))
    if settings.ca:
        _load_trusted(context, settings.ca)
    elif settings.verify:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if settings.chain:
        _load_pair(context, settings.chain, settings.key)
    return context


def _load_pair(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    chain_fd, key_fd = _nowhere(chain), _nowhere(key)
    try:
        # An encrypted key would have OpenSSL ask at the terminal.
        context.load_cert_chain(_path(chain_fd), _path(key_fd), password=lambda: b"")
    except ssl.SSLError as error:
        raise ValueError(_unusable(chain, error)) from None
    finally:
        os.close(chain_fd)
        os.close(key_fd)


def _unusable(chain: bytes, error: ssl.SSLError) -> str:
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        return "the certificate has no PEM block of a certificate"
    if error.reason in ("KEY_VALUES_MISMATCH", "EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return "the certificate and its key do not fit, or are too weak"
    return "the key of the certificate cannot be read; it must be PEM without a passphrase"


def _load_trusted(context: ssl.SSLContext, pem: bytes) -> None:
    fd = _nowhere(pem)
    try:
        context.load_verify_locations(_path(fd))
    except ssl.SSLError:
        raise ValueError("the CA file has no PEM block of a certificate") from None
    finally:
        os.close(fd)


def _nowhere(data: bytes) -> int:
    """A file in memory, of no name."""
    fd = os.memfd_create("tls", os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
