"""TLS in a table: what its keys mean together, and with other tables.

Nothing is read in here: whether the files are there, and fit, is for `certificates.py` to say. File
names become absolute, relative to the folder of the table's file that has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.control.config_addresses import in_folder
from gateway.control.config_schema import Mistakes, Place
from gateway.routing import quoted
from gateway.table import CertificateFiles, Listener, ListenerTls, Route, Upstream, UpstreamTls


def listener_in_folder(tls: ListenerTls, folder: Path) -> ListenerTls:
    """The same with absolute file names."""
    return replace(
        tls,
        certificates=tuple(_in_folder(one, folder) for one in tls.certificates),
        client_ca=in_folder(tls.client_ca, folder) if tls.client_ca else "",
    )


def upstream_in_folder(tls: UpstreamTls, folder: Path) -> UpstreamTls:
    """The same with absolute file names."""
    own = tls.certificate
    return replace(
        tls,
        ca=in_folder(tls.ca, folder) if tls.ca else "",
        certificate=None if own is None else _in_folder(own, folder),
    )


def check_redirect(
    written: Mapping[str, object], values: Mapping[str, Any], place: Place, mistakes: Mistakes
) -> None:
    """A listener that redirects does nothing else."""
    if "redirect" not in values:
        return
    why = "each request is answered with where to go"
    for key in ("tls", "handshakes"):
        if key in written:
            mistakes.add(place.key(key), "the key on a listener that redirects", f"no {key} there",
                         f"remove it, or redirect: {why}")


def check_server_name(upstream: Upstream, place: Place, mistakes: Mistakes) -> None:
    """There must be a name that the server's certificate has to be for."""
    tls = upstream.tls
    if tls is None or not tls.verify or tls.server_name:
        return
    for entry in upstream.entries:
        if entry.unix:
            mistakes.add(place, quoted(entry.url), "a name that its certificate must be for",
                         'a socket has none: write tls = { server_name = "NAME" } in an '
                         "[upstream.NAME] of it")
            return


def check_sni(
    routes: Sequence[Route], files: Mapping[str, int], mistakes: Mistakes
) -> None:
    """Mistakes each route that asks for a name in a hello, where there is no hello."""
    for route in routes:
        if route.sni:
            place = Place(files[route.name], f'{route.place} ("{route.name}")')
            mistakes.add(place.key("sni"), "the key while no listener has tls",
                         "a listener with tls, whose clients say a name",
                         "give one tls, or remove the key")


def only_redirects(listeners: Sequence[Listener]) -> bool:
    """Nobody could be served."""
    return bool(listeners) and all(one.redirect for one in listeners)


def unverified(upstreams: Mapping[str, Upstream]) -> list[str]:
    """Those whose server could be anybody: right, but it looks like a slip."""
    return [
        name for name, one in upstreams.items() if one.tls is not None and not one.tls.verify
    ]


def _in_folder(one: CertificateFiles, folder: Path) -> CertificateFiles:
    return CertificateFiles(chain=in_folder(one.chain, folder), key=in_folder(one.key, folder))
