"""Which certificate is for a name: asked by the engine for SNI, and by a session for Host.

Both must answer alike, or a request could come in by one certificate for the host of another.

Law: an exact name before a wildcard, which stands for exactly one label (RFC 9525 6.3); of equals
the first; and where none is for the name, the first of all.
"""

from collections.abc import Sequence

from gateway.events import KeyPair


def pick(certificates: Sequence[KeyPair], server_name: str) -> KeyPair:
    """The certificate for a name, which is in lower case; "" is a client that says none."""
    if len(certificates) > 1 and server_name:
        wildcard = _wildcard(server_name)
        for wanted in (server_name, wildcard):
            for pair in certificates:
                if wanted in pair.names:
                    return pair
    return certificates[0]


def is_for(pair: KeyPair, server_name: str) -> bool:
    """Whether a certificate has this name, or a wildcard that stands for it."""
    return server_name in pair.names or _wildcard(server_name) in pair.names


def _wildcard(server_name: str) -> str:
    """The wildcard that stands for a name, whether or not anybody has it."""
    return f"*.{server_name.partition('.')[2]}"
