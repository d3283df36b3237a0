"""nginx, as its page "WebSocket proxying" has it."""

from pathlib import Path

from .base import Proxy, write

CONFIGURATION = """\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid @PLACE@/nginx.pid;
error_log stderr;
events { worker_connections 16384; }
http {
    access_log /dev/null;
    client_body_temp_path @PLACE@/body;
    proxy_temp_path @PLACE@/proxy;
    fastcgi_temp_path @PLACE@/fastcgi;
    uwsgi_temp_path @PLACE@/uwsgi;
    scgi_temp_path @PLACE@/scgi;
    server {
        listen 127.0.0.1:@LISTEN@ backlog=4096;
        location / {
            proxy_pass http://127.0.0.1:@UPSTREAM@;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }
    }
}
"""


class Nginx(Proxy):
    """Blind after the 101."""

    name = "nginx"
    package = "Debian: nginx"
    program = "nginx"
    version_arguments = ("-v",)

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """Its error log before the configuration is read is standard error too."""
        path = write(
            place / "nginx.conf", CONFIGURATION, PLACE=place, LISTEN=listen, UPSTREAM=upstream
        )
        return self._start("-e", "stderr", "-p", str(place), "-c", path)
