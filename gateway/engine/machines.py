"""Which TLS machines there are here: OpenSSL's in C where that was built and loads, or Python's.

    contexts()                  a `secure.MachineFactory`, for one engine
    check(settings)             raises ValueError for settings that no link could be secured with
    HAS_TICKETS                 whether a `TlsServer`'s ticket keys count: Python's `ssl` takes none

Never: prefer one by a setting. Where the better one is, it runs.
"""

from collections.abc import Callable

from gateway.engine import tls
from gateway.engine.secure import MachineFactory
from gateway.events import TlsClient, TlsServer

contexts: Callable[[], MachineFactory] = tls.Contexts
check: Callable[[TlsServer | TlsClient], None] = tls.check
HAS_TICKETS = False

try:
    from gateway.engine import openssl
except ImportError:                     # not built, or libssl does not load
    pass
else:
    contexts, check, HAS_TICKETS = openssl.Contexts, openssl.check, True
