"""The secrets that session tickets are sealed with, for all workers: made here, and rotated.

A ticket (RFC 8446 4.6.1, RFC 5077) has in it what the server would else remember of a client. Every
worker must be able to open what another one has sealed, so the supervisor makes the keys and gives
them to all by the channel.

Laws of this file:

- A secret lives for `KEPT * ROTATE` seconds: whoever steals it later opens nothing older (TLS 1.2
  has no forward secrecy for what a ticket resumes).
- They are in memory alone: never in a file, a log or a message to anybody but a worker.
- Listeners do not share keys: those of each are derived from a secret and from its terms, so that
  what one let in cannot come in at another.
"""

import os
from hashlib import blake2b

ROTATE = 3600.0               # seconds; OpenSSL lets a TLS 1.3 ticket live two hours
KEPT = 3                      # the newest seals, the others still open

_SECRET_BYTES = 64            # the longest key of blake2b
# As nginx has it: a name that is sent in clear, a key for the HMAC, a key for AES-256.
_PARTS = ((b"name", 16), (b"hmac", 32), (b"aes", 32))


class Tickets:
    """The secrets that hold now, the newest first."""

    def __init__(self) -> None:
        self._secrets = [os.urandom(_SECRET_BYTES)]

    def rotate(self) -> None:
        """Seal with a new secret from now on; the oldest opens nothing any more."""
        self._secrets = [os.urandom(_SECRET_BYTES), *self._secrets][:KEPT]

    def keys(self, terms: bytes) -> tuple[bytes, ...]:
        """The keys of a listener with these terms: 80 bytes each, the newest first."""
        return tuple(
            b"".join(
                blake2b(part + b"\0" + terms, key=secret, digest_size=size).digest()
                for part, size in _PARTS
            )
            for secret in self._secrets
        )
