"""HAProxy in HTTP mode, with splicing where it finds it useful."""

from pathlib import Path

from .base import FRAMES, TLS, Proxy, certificate, write

CONFIGURATION = """\
global
    nbthread 1
    maxconn 9000
    maxpipes 256
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    option splice-auto
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
frontend clients
    bind 127.0.0.1:@LISTEN@ backlog 4096 @SSL@
    default_backend upstreams
backend upstreams
    server one 127.0.0.1:@UPSTREAM@
"""


class HAProxy(Proxy):
    """Blind after the 101."""

    modes = frozenset({FRAMES, TLS})

    name = "haproxy"
    package = "Debian: haproxy"
    program = "haproxy"
    version_arguments = ("-v",)

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """In the foreground, one process."""
        ssl = ""
        if mode == TLS:
            chain, key = certificate(place)
            chain.write_bytes(chain.read_bytes() + key.read_bytes())
            ssl = f"ssl crt {chain} alpn http/1.1"
        path = write(
            place / "haproxy.cfg", CONFIGURATION, LISTEN=listen, UPSTREAM=upstream, SSL=ssl
        )
        return self._start("-db", "-f", path)
