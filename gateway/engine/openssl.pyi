"""Types of `openssl.pyx`: TLS machines over OpenSSL."""

from gateway.engine.secure import Facts
from gateway.engine.secure_leg import SecureLeg
from gateway.events import TlsClient, TlsServer

def check(settings: TlsServer | TlsClient) -> None:
    """Raises ValueError for settings that no link could be secured with."""

class Contexts:
    """A `secure.MachineFactory`: keeps the contexts of settings for as long as these live."""

    def __call__(self, settings: TlsServer | TlsClient) -> OpensslMachine:
        """A machine for one link. Raises ValueError for settings that cannot be used."""

class OpensslMachine(SecureLeg):
    """See secure.Machine."""

    finished: bool
    pending: bool
    is_compiled: bool

    def feed(self, sealed: bytes | memoryview) -> None: ...
    def shake(self) -> bool: ...
    def secrets(self) -> dict[str, bytes]: ...
    def facts(self) -> Facts: ...
    def open_into(self, buffer: memoryview) -> int: ...
    def seal(self, data: bytes | memoryview) -> None: ...
    def say_close(self) -> None: ...
    def take(self) -> bytes: ...
