"""Bare relays in C that parse nothing: what moving bytes costs, whoever does it."""

from pathlib import Path

from . import build
from .peers.base import Proxy


class Floor(Proxy):
    """One of `epoll`, `uring`, `splice`; the best of them in a case is the floor."""

    kind = "floor"
    records = "none"

    def __init__(self, form: str):
        self.name = f"floor-{form}"
        self._program = f"floor_{form}"

    def missing(self) -> str:
        """Why it cannot be built."""
        return build.missing(self._program)

    def version(self) -> str:
        """It has none of its own."""
        return "this tree"

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """No files."""
        return [str(build.build(self._program)), str(listen), str(upstream)]
