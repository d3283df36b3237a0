"""All that can be measured, by name: floors, this gateway, and the peers."""

from collections.abc import Sequence
from pathlib import Path

from .floors import Floor
from .peers.base import ROOT, Proxy
from .peers.caddy import Caddy
from .peers.envoy import Envoy
from .peers.gateway import Gateway
from .peers.haproxy import HAProxy
from .peers.lighttpd import Lighttpd
from .peers.nginx import Nginx
from .peers.traefik import Traefik
from .peers.websockify import Websockify


def everything(engines: Sequence[str], tree: Path = ROOT) -> list[Proxy]:
    """Floors first, then the gateway of `tree` once for each of `engines`, then the peers."""
    return [
        Floor("epoll"),
        Floor("uring"),
        Floor("splice"),
        *(Gateway(engine, tree) for engine in engines),
        Nginx(),
        HAProxy(),
        Envoy(),
        Traefik(),
        Caddy(),
        Lighttpd(),
        Websockify(),
    ]
