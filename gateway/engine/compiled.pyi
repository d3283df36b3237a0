"""Types of `compiled.pyx`."""

from gateway.relaying import Relay

class CompiledRelay(Relay):
    """The compiled rules behind the face of `gateway.relaying.Relay`."""
