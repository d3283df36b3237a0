"""nginx, as its page "WebSocket proxying" has it."""

from pathlib import Path

from .base import FRAMES, TLS, Proxy, certificate, write

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
        listen 127.0.0.1:@LISTEN@ @SSL@ backlog=4096;
@CERTIFICATE@
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


CERTIFICATE = """\
        ssl_certificate @CHAIN@;
        ssl_certificate_key @KEY@;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_timeout 1d;
"""


class Nginx(Proxy):
    """Blind after the 101."""

    modes = frozenset({FRAMES, TLS})

    name = "nginx"
    package = "Debian: nginx"
    program = "nginx"
    version_arguments = ("-v",)

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """Its error log before the configuration is read is standard error too."""
        text = ""
        if mode == TLS:
            chain, key = certificate(place)
            text = CERTIFICATE.replace("@CHAIN@", str(chain)).replace("@KEY@", str(key))
        path = write(
            place / "nginx.conf", CONFIGURATION, PLACE=place, LISTEN=listen, UPSTREAM=upstream,
            SSL="ssl" if mode == TLS else "", CERTIFICATE=text,
        )
        return self._start("-e", "stderr", "-p", str(place), "-c", path)
