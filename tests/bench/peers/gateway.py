"""This gateway, with a chosen engine, from this tree or from another.

Law: what ran is told exactly. The version has the form of the relay that is loaded and a
fingerprint of the files, since a commit does not say what lies in a work tree, and a tree may
change while it is measured (`fingerprint`, taken again at the end).
"""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .base import FRAMES, RAW, ROOT, TLS, Proxy, certificate, write

ISOLATED = Path(__file__).resolve().parents[1] / "isolated"
TABLE = """\
[gateway]
control = "off"
engine = "@ENGINE@"
ring   = "@RING@"
@WORKERS@

[[listener]]
address = "127.0.0.1:@LISTEN@"
@TLS@

[[route]]
name     = "bench"
path     = "/*"
upstream = "@SCHEME@://127.0.0.1:@UPSTREAM@"
@SUBPROTOCOLS@
"""
ASK = """\
import gateway
try:
    import gateway.engine.epoll_relays
    form = "compiled relay"
except ImportError:
    form = "Python relay"
print(gateway.__version__, form, sep=", ")
"""


SUPERVISOR = "gateway/control/supervisor.py"
ONE = "workers = 1"              # a tree without a supervisor has one process, and no such key


class Gateway(Proxy):
    """Everything at its default: frame checks, heartbeat and limits are on. The engine may have
    the form of its relays behind a colon: `io_uring:completions`."""

    kind = "gateway"
    modes = frozenset({FRAMES, RAW, TLS})

    def __init__(self, engine: str, tree: Path = ROOT):
        self._engine, _, form = engine.partition(":")
        self._ring = form or "auto"
        self.name = f"gateway-{self._engine}" + (f"-{form}" if form else "")
        self._tree = tree.resolve()

    def missing(self) -> str:
        """Whether the engine runs here shows when it starts."""
        return "" if (self._tree / "gateway").is_dir() else "no gateway in that tree"

    def version(self) -> str:
        """Version, form of the relay, and fingerprint."""
        told = subprocess.run(
            [*self._python(), "-c", ASK], capture_output=True, text=True
        ).stdout.strip()
        return f"{told or '?'}, files {self.fingerprint()}"

    def fingerprint(self) -> str:
        """Eight digits for all that Python would load from the tree."""
        digest = hashlib.sha256()
        for path in sorted((self._tree / "gateway").rglob("*")):
            if path.suffix in (".py", ".so"):
                digest.update(str(path.relative_to(self._tree)).encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()[:8]

    def subprotocol(self, mode: str) -> str:
        """`binary`, as the clients of raw services ask for."""
        return "binary" if mode == RAW else ""

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """One route for all."""
        tls = ""
        if mode == TLS:
            chain, key = certificate(place)
            tls = f'tls = {{ certificates = [{{ chain = "{chain}", key = "{key}" }}] }}'
        table = write(
            place / "routes.toml",
            TABLE,
            LISTEN=listen,
            UPSTREAM=upstream,
            ENGINE=self._engine,
            RING=self._ring,
            WORKERS=ONE if (self._tree / SUPERVISOR).exists() else "",
            TLS=tls,
            SCHEME="tcp" if mode == RAW else "ws",
            SUBPROTOCOLS='subprotocols = ["binary"]' if mode == RAW else "",
        )
        return [*self._python(), "-m", "gateway", "--routes", table]

    def _python(self) -> list[str]:
        """-P: without it the current folder would come before the tree that is asked for."""
        return ["env", f"PYTHONPATH={ISOLATED}:{self._tree}", sys.executable, "-P"]

    def loaded_wrongly(self, pids: Sequence[int]) -> list[str]:
        """Compiled parts of a gateway that these processes have from elsewhere than the tree."""
        own, found = f"{self._tree}/", set()
        for pid in pids:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                path = line.split(maxsplit=5)[5] if line.count(" ") > 5 else ""
                if "/gateway/engine/" in path and not path.strip().startswith(own):
                    found.add(path.strip())
        return sorted(found)
