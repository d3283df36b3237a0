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
