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
from typing import TYPE_CHECKING, Any

from gateway import servernames
from gateway.engine.memory_wire import FarEnd
from gateway.engine.secure import Facts, TlsFault
from gateway.engine.tls_terms import OTHER_HOST, failed, plain_name, upstream_refused
from gateway.events import Address, KeyPair, PeerCertificate, TlsClient, TlsServer

if TYPE_CHECKING:
    from gateway.engine.memory_network import FarMaker, Network

HANDSHAKE, STREAM, ALERT = 0x16, 0x17, 0x15    # as TLS has them (RFC 8446 5.1)
HEADER = 3
RECORD_MAX = 16 * 1024
CLOSE_NOTIFY = b"close_notify"
_OPENED = memoryview(bytearray(64 * 1024))     # what far ends take out of records


class SimMachine:
    """See secure.Machine. A client's or a server's, by its settings."""

    is_compiled = False

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

    @property
    def has_answered(self) -> bool:
        """A server's part of the handshake is done."""
        return self._begun and isinstance(self._settings, TlsServer)

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

    def secrets(self) -> dict[str, bytes]:
        """See secure.Machine."""
        return {}

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


class SecureFarEnd(FarEnd):
    """A far end that speaks this TLS: what a test says and hears is clear text. `fault` is what it
    found wrong, and `truncated` that a FIN came without close_notify."""

    def __init__(
        self, network: "Network", family: int, local: Address, settings: TlsServer | TlsClient
    ):
        super().__init__(network, family, local)
        self.machine = SimMachine(settings)
        self.is_secured = False
        self.truncated = False
        self._truncates = False
        self.fault: TlsFault | None = None

    @classmethod
    def speaking(cls, settings: TlsServer | TlsClient) -> "FarMaker":
        """For `Network`: far ends of these settings."""
        return lambda network, family, local: cls(network, family, local, settings)

    def ship(self, data: bytes) -> None:
        """See End. Seals it."""
        self.machine.seal(data)
        self._ship_sealed()

    def truncate(self) -> None:
        """FIN behind what waits, and no close_notify."""
        self._truncates = True
        self.finish()

    def close(self) -> None:
        """See FarEnd. In the middle of a handshake nothing is waited for."""
        if not self.is_secured:
            self.unsent.clear()
        super().close()

    def changed(self) -> None:
        """See End."""
        if not (self.stalled or self.closed):
            if self.inbox:
                self._take_sealed()
            if self.fin_received and self.is_secured and not self.machine.finished:
                self.truncated = True
        super().changed()
        if self.machine.finished and not (self.finished or self.was_reset):
            self.fin_received = True
            super().changed()

    def _take_sealed(self) -> None:
        """What came, in place of what it was sealed in."""
        assert self.peer is not None
        self.machine.feed(bytes(self.inbox))
        self.inbox.clear()
        self.peer.room_grew()
        try:
            if not self.is_secured:
                self._shake()
            while self.is_secured and (count := self.machine.open_into(_OPENED)):
                self.inbox += _OPENED[:count]
        except TlsFault as fault:
            self.fault = fault
            self._ship_sealed()

    def _shake(self) -> None:
        self.is_secured = self.machine.shake()
        self._ship_sealed()
        if self.is_secured:
            self._pump()

    def _ship_sealed(self) -> None:
        sealed = self.machine.take()
        if sealed and not (self.dead or self.vanished or self.fin_sent):
            super().ship(sealed)

    def _pump(self) -> None:
        if self.dead or self.vanished or self.peer is None:
            return
        if not self.is_secured:
            # A server that has answered is to be told that the handshake is done, to end it well.
            if self._finishing and not (self.unsent or self.fin_sent or self.machine.has_answered):
                self.ship_fin()
            elif self.fault is None:
                self._shake()
            return
        while self.unsent and (room := self.room() - HEADER) > 0:
            data = bytes(self.unsent[: min(room, RECORD_MAX)])
            del self.unsent[: len(data)]
            self.ship(data)
        if self._finishing and not self.unsent and not self.fin_sent:
            if not self._truncates:
                self.machine.say_close()
                self._ship_sealed()
            self.ship_fin()


def _certificate(names: tuple[str, ...], shown: str) -> PeerCertificate:
    alternatives = tuple(f"DNS:{name}" for name in names)
    return PeerCertificate(f"CN={shown}", alternatives, shown.encode("latin-1"))
