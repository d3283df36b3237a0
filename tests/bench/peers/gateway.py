"""This gateway, with a chosen engine."""

import subprocess
import sys
from pathlib import Path

from gateway import __version__

from .base import FRAMES, RAW, ROOT, Proxy, write

TABLE = """\
[gateway]
listen = ["127.0.0.1:@LISTEN@"]
engine = "@ENGINE@"

[[route]]
name     = "bench"
path     = "/*"
upstream = "@SCHEME@://127.0.0.1:@UPSTREAM@"
@SUBPROTOCOLS@
"""


class Gateway(Proxy):
    """Everything at its default: frame checks, heartbeat and limits are on."""

    kind = "gateway"
    modes = frozenset({FRAMES, RAW})

    def __init__(self, engine: str):
        self.name = f"gateway-{engine}"
        self._engine = engine

    def missing(self) -> str:
        """It comes with the tree; whether the engine runs here shows when it starts."""
        return ""

    def version(self) -> str:
        """Its own version and the commit, marked where the tree differs from it."""
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        )
        return f"{__version__} {described.stdout.strip()}".strip()

    def subprotocol(self, mode: str) -> str:
        """`binary`, as the clients of raw services ask for."""
        return "binary" if mode == RAW else ""

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """One route for all."""
        table = write(
            place / "routes.toml",
            TABLE,
            LISTEN=listen,
            UPSTREAM=upstream,
            ENGINE=self._engine,
            SCHEME="tcp" if mode == RAW else "ws",
            SUBPROTOCOLS='subprotocols = ["binary"]' if mode == RAW else "",
        )
        return [sys.executable, "-m", "gateway", "--routes", table]
