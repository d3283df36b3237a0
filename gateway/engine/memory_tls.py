"""TLS as the memory engine speaks it: the shape of the real thing, and no secret in it.

A record is a kind (handshake, stream, alert), two bytes of length, and its content as it is. A
client says hello, the server answers, the client finishes; names are chosen and compared,
certificates asked for and refused, and close_notify is told apart from a FIN. So a simulation has
what TLS does to a stream (records that come in pieces, a handshake before the first byte, an end of
its own) and stays quick and repeatable. Laws:

- Same settings, same outcome; no chance, no clock.
- What a real machine refuses for what it is (a wrong name, no certificate, a record that is none),
  this one refuses; what takes cryptography to know (expired, forged) it cannot.
"""

import json
from typing import Any

from gateway import servernames
from gateway.engine.secure import Facts, TlsFault
from gateway.engine.tls_terms import OTHER_HOST, failed, plain_name, upstream_refused
from gateway.events import KeyPair, PeerCertificate, TlsClient, TlsServer

HANDSHAKE, STREAM, ALERT = 0x16, 0x17, 0x15    # as TLS has them (RFC 8446 5.1)
HEADER = 3
RECORD_MAX = 16 * 1024
CLOSE_NOTIFY = b"close_notify"


class SimMachine:
    """See secure.Machine. A client's or a server's, by its settings."""

    def __init__(self, settings: TlsServer | TlsClient):
        self.finished = False
        self.pending = False
        self._settings = settings
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._opened = bytearray()
        self._facts = Facts()
        self._failure: TlsFault | None = None
        self._begun = False

    def feed(self, sealed: bytes | memoryview) -> None:
        """See secure.Machine."""
        self._incoming += sealed

    def shake(self) -> bool:
        """See secure.Machine."""
        if isinstance(self._settings, TlsServer):
            done = self._shake_as_server(self._settings)
        else:
            done = self._shake_as_client(self._settings)
        self.pending = done and bool(self._incoming)
        return done

    def facts(self) -> Facts:
        """See secure.Machine."""
        return self._facts

    def open_into(self, buffer: memoryview) -> int:
        """See secure.Machine."""
        self.pending = False
        if self._failure is not None and not self._opened:
            raise self._failure
        while len(self._opened) < len(buffer) and self._failure is None and not self.finished:
            try:
                record = self._take_record()
                if record is None:
                    break
                self._take(*record)
            except TlsFault as fault:
                self._failure = fault
                if not self._opened:
                    raise
        count = min(len(self._opened), len(buffer))
        buffer[:count] = self._opened[:count]
        del self._opened[:count]
        left = bool(self._opened) or self.finished or self._failure is not None
        self.pending = count > 0 and left
        return count

    def seal(self, data: bytes | memoryview) -> None:
        """See secure.Machine."""
        view = memoryview(data)
        while view:
            self._put(STREAM, view[:RECORD_MAX])
            view = view[RECORD_MAX:]

    def say_close(self) -> None:
        """See secure.Machine."""
        if self._failure is None:
            self._put(ALERT, CLOSE_NOTIFY)

    def take(self) -> bytes:
        """See secure.Machine."""
        taken = bytes(self._outgoing)
        self._outgoing.clear()
        return taken

    # --- The handshake ----------------------------------------------------------------------

    def _shake_as_client(self, settings: TlsClient) -> bool:
        if not self._begun:
            self._begun = True
            self._tell(name=settings.server_name, alpn=settings.alpn)
        answer = self._heard()
        if answer is None:
            return False
        names = tuple(answer["names"])
        shown = KeyPair(chain=b"", key=b"", names=names)
        if settings.verify and not servernames.is_for(shown, plain_name(settings.server_name)):
            raise self._failed(upstream_refused(OTHER_HOST, "", settings.server_name, names))
        self._tell(certificate=settings.chain.decode("latin-1"))
        self._facts = Facts(
            server_name=settings.server_name, protocol=answer["protocol"], version="simulated",
            certificate=_certificate(names, answer["certificate"]),
        )
        return True

    def _shake_as_server(self, settings: TlsServer) -> bool:
        if not self._begun:
            hello = self._heard()
            if hello is None:
                return False
            self._begun = True
            name = plain_name(hello["name"])
            pair = servernames.pick(settings.certificates, name)
            protocol = next((one for one in settings.alpn if one in hello["alpn"]), "")
            self._tell(
                names=pair.names, certificate=pair.chain.decode("latin-1"), protocol=protocol
            )
            self._facts = Facts(server_name=name, protocol=protocol, version="simulated")
        finish = self._heard()
        if finish is None:
            return False
        shown = finish["certificate"]
        if not shown and settings.client_certificates == "require":
            raise self._failed(failed("PEER_DID_NOT_RETURN_A_CERTIFICATE", "client"))
        if shown and settings.client_certificates != "off":
            self._facts = Facts(
                server_name=self._facts.server_name, protocol=self._facts.protocol,
                version="simulated", certificate=_certificate((), shown),
            )
        return True

    def _tell(self, **said: object) -> None:
        self._put(HANDSHAKE, json.dumps(said).encode())

    def _heard(self) -> dict[str, Any] | None:
        """The next part of the handshake, once it is whole."""
        record = self._take_record()
        if record is None:
            return None
        kind, content = record
        if kind == ALERT:
            raise self._failed(failed(content.decode(), self._far))
        try:
            heard = json.loads(content)
        except ValueError:
            heard = None
        if kind != HANDSHAKE or not isinstance(heard, dict):
            raise self._failed(failed("UNEXPECTED_MESSAGE", self._far))
        return heard

    # --- Records ----------------------------------------------------------------------------

    @property
    def _far(self) -> str:
        return "client" if isinstance(self._settings, TlsServer) else "upstream"

    def _failed(self, fault: TlsFault) -> TlsFault:
        """Says an alert, once."""
        if self._failure is None:
            self._failure = fault
            self._put(ALERT, b"SSLV3_ALERT_HANDSHAKE_FAILURE")
        return fault

    def _put(self, kind: int, content: bytes | memoryview) -> None:
        self._outgoing += bytes([kind]) + len(content).to_bytes(2, "big") + content

    def _take_record(self) -> tuple[int, bytes] | None:
        """The next record, once it is whole."""
        incoming = self._incoming
        if incoming and incoming[0] not in (HANDSHAKE, STREAM, ALERT):
            known = bytes(incoming[:4]) in (b"GET ", b"POST", b"HEAD", b"PUT ")
            reason = "HTTP_REQUEST" if known else "WRONG_VERSION_NUMBER"
            raise self._failed(failed(reason, self._far))
        size = HEADER + int.from_bytes(incoming[1:HEADER], "big")
        if len(incoming) < max(size, HEADER):
            return None
        kind, content = incoming[0], bytes(incoming[HEADER:size])
        del incoming[:size]
        return kind, content

    def _take(self, kind: int, content: bytes) -> None:
        """A record of the stream."""
        if kind == STREAM:
            self._opened += content
        elif kind == ALERT and content == CLOSE_NOTIFY:
            self.finished = True
        elif kind == ALERT:
            raise failed(content.decode("latin-1"), self._far)
        else:
            raise self._failed(failed("NO_RENEGOTIATION", self._far))


def _certificate(names: tuple[str, ...], shown: str) -> PeerCertificate:
    alternatives = tuple(f"DNS:{name}" for name in names)
    return PeerCertificate(f"CN={shown}", alternatives, shown.encode("latin-1"))
