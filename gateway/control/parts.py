"""The compiled parts: which of them are here, what runs without, and how to get them.

Each part is a few extension modules of `gateway.engine`. Nothing needs them; where one is missing
the start line and `gateway doctor` say so.
"""

import importlib
from dataclasses import dataclass

COMPILER = ("gcc", "libc6-dev", "python3-dev")     # Debian packages
AGAIN = "install the gateway again: pip install --no-cache-dir --force-reinstall --no-deps ."


@dataclass(frozen=True)
class Part:
    """One part: its modules, the Debian packages that building it takes, what is without it."""

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    without: str

    def why_missing(self) -> str:
        """Why it cannot be loaded; "" if it can."""
        for module in self.modules:
            try:
                importlib.import_module(f"gateway.engine.{module}")
            except ModuleNotFoundError as error:
                if error.name == f"gateway.engine.{module}":
                    return "not built"
                return str(error)
            except ImportError as error:
                return str(error)
        return ""

    @property
    def remedy(self) -> str:
        """What to type."""
        return f"apt-get install {' '.join(self.packages)}, then {AGAIN}"


RELAY = Part(
    "relay",
    ("ledger", "relay", "relay_report", "pipes", "secure_leg", "relay_slots", "relay_carriage",
     "relay_sealed", "relay_kernel", "relay_loop", "epoll_relays"),
    COMPILER,
    "relays run in Python: the same rules, slower, and nothing is spliced",
)
URING = Part(
    "io_uring",
    ("uring_ring", "uring_buffers", "ring_relays", "ring_completions"),
    (*COMPILER, "liburing-dev"),
    "the engine is uvloop",
)
OPENSSL = Part(
    "openssl",
    ("openssl_context", "openssl"),
    (*COMPILER, "libssl-dev"),
    "TLS runs by Python's ssl: relays with TLS run in Python, and there are no tickets",
)
PARTS = (RELAY, URING, OPENSSL)


def relays() -> str:
    """How relays run here: "compiled", or "Python" with the way to learn more."""
    return "Python (gateway doctor says why)" if RELAY.why_missing() else "compiled"


def tls() -> str:
    """How TLS runs here, likewise."""
    return "Python (gateway doctor says why)" if OPENSSL.why_missing() else "compiled"
