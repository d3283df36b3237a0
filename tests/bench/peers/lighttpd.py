"""lighttpd's wstunnel: frames to a TCP stream, the only one in C that servers package."""

from pathlib import Path

from .base import RAW, Proxy, write

CONFIGURATION = """\
server.modules = ("mod_accesslog", "mod_wstunnel")
server.bind = "127.0.0.1"
server.port = @LISTEN@
server.document-root = "@PLACE@"
server.max-connections = 8000
server.max-fds = 20000
accesslog.filename = "/dev/null"
wstunnel.server = ("/" => (("host" => "127.0.0.1", "port" => @UPSTREAM@)))
wstunnel.frame-type = "binary"
"""


class Lighttpd(Proxy):
    """One process, one thread."""

    name = "lighttpd"
    modes = frozenset({RAW})
    package = "Debian: lighttpd"
    program = "lighttpd"
    version_arguments = ("-v",)

    def subprotocol(self, mode: str) -> str:
        """It decides text or binary by this."""
        return "binary"

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """In the foreground."""
        path = write(
            place / "lighttpd.conf", CONFIGURATION, PLACE=place, LISTEN=listen, UPSTREAM=upstream
        )
        return self._start("-D", "-f", path)
