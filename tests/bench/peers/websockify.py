"""websockify: frames to a TCP stream, a process for each connection."""

from pathlib import Path

from .base import RAW, Proxy


class Websockify(Proxy):
    """With numpy, which it needs to unmask at any speed."""

    name = "websockify"
    modes = frozenset({RAW})
    package = "PyPI: websockify"
    program = "websockify"

    def version(self) -> str:
        """It does not tell; its package does."""
        path = self.executable()
        assert path is not None
        site = Path(path).parent.parent.glob("lib/python3*/site-packages/websockify-*.dist-info")
        names = [entry.name.removesuffix(".dist-info").split("-", 1)[1] for entry in site]
        return names[0] if names else "?"

    def subprotocol(self, mode: str) -> str:
        """The one that it speaks."""
        return "binary"

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """No files."""
        return self._start(f"127.0.0.1:{listen}", f"127.0.0.1:{upstream}")
