"""All that can be measured, by name: floors, this gateway, and the peers."""

from collections.abc import Sequence

from .floors import Floor
from .peers.base import Proxy
from .peers.caddy import Caddy
from .peers.envoy import Envoy
from .peers.gateway import Gateway
from .peers.haproxy import HAProxy
from .peers.lighttpd import Lighttpd
from .peers.nginx import Nginx
from .peers.traefik import Traefik
from .peers.websockify import Websockify


def everything(engines: Sequence[str]) -> list[Proxy]:
    """Floors first, then this gateway once for each of `engines`, then the peers."""
    return [
        Floor("epoll"),
        Floor("uring"),
        Floor("splice"),
        *(Gateway(engine) for engine in engines),
        Nginx(),
        HAProxy(),
        Envoy(),
        Traefik(),
        Caddy(),
        Lighttpd(),
        Websockify(),
    ]
