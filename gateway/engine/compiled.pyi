"""Types of `compiled.pyx`."""

from collections.abc import Callable

from gateway.events import RelayRules
from gateway.relaying import Relay

class CompiledRelay(Relay):
    """The compiled rules behind the face of `gateway.relaying.Relay`."""

    def __init__(
        self,
        rules: RelayRules,
        now: float,
        random_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        """They have random bytes of their own."""
    def wrapped(self, data: bytes, now: float) -> None:
        """As `received` from a raw upstream whose bytes are no text, past user space."""
