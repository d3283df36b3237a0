"""What a proxy is to the benchmark: a name, a version, and a command with its configuration.

Laws: each runs as its documentation has it for WebSockets, on one core, with access records on
and written to /dev/null (Running sends standard output there); timeouts that would end idle
connections are raised, and nothing is tuned that its users would not tune.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / ".tools" / "bench"    # a virtual environment of the peers' own
FRAMES = "frames"                    # WebSocket to WebSocket
RAW = "raw"                          # WebSocket to a TCP stream
TLS = "tls"                          # WebSocket by TLS to WebSocket without


class Proxy:
    """One thing to measure. Subclasses set the attributes and give `command`."""

    name = ""
    kind = "peer"                    # floor | gateway | peer
    modes: frozenset[str] = frozenset({FRAMES})
    records = "on, to /dev/null"
    package = ""                     # how to get it
    program = ""                     # its file name
    version_arguments: tuple[str, ...] = ("--version",)

    def executable(self) -> str | None:
        """Its path: from the benchmark's own environment, or from the system."""
        own = TOOLS / "bin" / self.program
        system = [p for d in ("/usr/sbin", "/usr/bin") if (p := Path(d) / self.program).exists()]
        if own.exists():
            return str(own)
        return shutil.which(self.program) or (str(system[0]) if system else None)

    def missing(self) -> str:
        """Why it cannot run here, with the remedy; "" if it can."""
        return "" if self.executable() else f"not installed ({self.package})"

    def version(self) -> str:
        """The first thing in its own output that looks like a version."""
        path = self.executable()
        assert path is not None
        result = subprocess.run([path, *self.version_arguments], capture_output=True, text=True)
        found = re.search(r"\d+\.\d+(\.\d+)?", result.stdout + result.stderr)
        return found.group() if found else "?"

    def fingerprint(self) -> str:
        """Something that differs when other code would run; "" where nothing can change it."""
        return ""

    def loaded_wrongly(self, pids: Sequence[int]) -> list[str]:
        """Files that its processes have and should not: then something else is measured."""
        return []

    def subprotocol(self, mode: str) -> str:
        """What a client must ask for in this mode; "" for nothing."""
        return ""

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """How to start it on port `listen` before port `upstream`; files go into `place`."""
        raise NotImplementedError

    def _start(self, *arguments: str) -> list[str]:
        path = self.executable()
        assert path is not None
        return [path, *arguments]


def certificate(place: Path) -> tuple[Path, Path]:
    """A certificate (P-256) and its key, made by OpenSSL's command."""
    chain, key = place / "bench.crt", place / "bench.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", chain, "-days", "30", "-subj", "/CN=bench.example",
         "-addext", "subjectAltName=DNS:bench.example"],
        check=True, capture_output=True,
    )
    return chain, key


def write(path: Path, text: str, **values: object) -> str:
    """Fill `@NAME@` in a template and write it; returns the path."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    path.write_text(text)
    return str(path)
