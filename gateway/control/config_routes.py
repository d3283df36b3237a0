"""Routes and upstreams: what the keys of one table mean together, and with other tables.

A key that would have no effect is a mistake where it is written, and is left at its default where
it comes from [defaults], which are for all routes. So the resolved route says what happens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from gateway.control.config_addresses import Url, check_socket_length
from gateway.control.config_schema import ROUTE, Endpoint, Mistakes, Place
from gateway.control.config_tls import check_server_name
from gateway.errors import TableError
from gateway.routing import check_rewrite, parse_path, quoted, unreachable
from gateway.table import SECURED, EndpointEntry, Route, Upstream, UpstreamTls

BECOMES = {"host": "hosts", "header": "headers"}  # keys whose field has another name

_ASKING = frozenset({"rewrite", "send_host", "set_fields", "remove_fields", "answer_timeout"})
_ENDPOINT = frozenset({"subprotocols", "frames"})
_MATCHING = frozenset({"name", "host", "path", "header", "query", "subprotocol", "sni", "upstream"})
_ANSWERING = frozenset({"write_timeout", "close_timeout"})

# What has no effect toward each kind of upstream, and why.
_WITHOUT_EFFECT: Mapping[str, tuple[frozenset[str], str]] = {
    "ws": (_ENDPOINT, "a ws upstream speaks frames and chooses the subprotocol itself"),
    "tcp": (_ASKING, "a tcp upstream is not asked anything, bytes are all it sees"),
    "echo": (_ASKING | _ENDPOINT | {"connect_timeout"}, "builtin:echo is in the gateway itself"),
    "page": (frozenset(ROUTE.keys) - _MATCHING - _ANSWERING, "builtin:page answers with a page"),
}

# A key that needs another one to be on: (the key, the other, how to say it).
_NEEDS = (
    ("heartbeat_timeout", "heartbeat", 'heartbeat is "off"'),
    ("session_code", "session_timeout", 'session_timeout is "off"'),
)


@dataclass(frozen=True, slots=True)
class Written:
    """One [[route]] or [defaults] as it was written, and the values that could be read."""

    place: Place                         # without the route's name
    folder: Path
    keys: frozenset[str]
    values: dict[str, Any]


def absolute(values: dict[str, Any], folder: Path, place: Place, mistakes: Mistakes) -> None:
    """Make the file name in a route's `upstream` absolute, in place."""
    upstream = values.get("upstream")
    if isinstance(upstream, Url):
        values["upstream"] = _in_folder(upstream, folder, place.key("upstream"), mistakes)


def build_upstream(
    name: str, values: dict[str, Any], folder: Path, place: Place, mistakes: Mistakes
) -> Upstream | None:
    """The upstream of an [upstream.NAME] whose keys were read; None if something is wrong."""
    before = len(mistakes)
    balance = values.get("balance", "least-connections")
    if "hash_on" in values and balance != "hash":
        mistakes.add(place.key("hash_on"), f"the key with the balance {quoted(balance)}",
                   'it with balance = "hash" alone', 'write balance = "hash", or remove it')
    if "endpoints" not in values:
        return None
    endpoints: tuple[Endpoint, ...] = values["endpoints"]
    where = place.key("endpoints")
    urls = [_in_folder(one.url, folder, where, mistakes) for one in endpoints]
    _check_endpoints(endpoints, where, mistakes)
    if "source_addresses" in values and not any(url.host for url in urls):
        mistakes.add(place.key("source_addresses"), "the key with endpoints that have no address",
                   "it with IP addresses and names alone", "remove it")
    sources: tuple[str, ...] = values.get("source_addresses", ())
    upstream = _upstream(name, urls, [one.weight for one in endpoints], balance,
                         values.get("hash_on", "address"), sources, values.get("tls"))
    if "tls" in values and upstream.scheme not in SECURED:
        mistakes.add(place.key("tls"), f"the key with {upstream.scheme} endpoints",
                   "it with wss or tls endpoints alone",
                   "write wss:// or tls:// in their URLs, or remove it")
    check_server_name(upstream, where, mistakes)
    if "resolve" in values and not any(entry.has_name for entry in upstream.entries):
        mistakes.add(place.key("resolve"), "the key on endpoints without a name",
                   "it where a name is looked up", "remove it: an address stays what it is")
    if len(mistakes) > before:
        return None
    return replace(upstream, resolve=values.get("resolve", upstream.resolve))


def _check_endpoints(endpoints: tuple[Endpoint, ...], place: Place, mistakes: Mistakes) -> None:
    first = endpoints[0].url
    for one in endpoints[1:]:
        if one.url.scheme != first.scheme:
            mistakes.add(place, f"{quoted(first.text)} and {quoted(one.url.text)}",
                       "one scheme for all endpoints", "make two upstreams of it")
            return
        if (one.url.path or "/") != (first.path or "/"):
            mistakes.add(place, f"{quoted(first.text)} and {quoted(one.url.text)}",
                       "one path for all endpoints", "make two upstreams of it")
            return
    if first.scheme == "builtin" and len(endpoints) > 1:
        mistakes.add(place, f"{len(endpoints)} built-in endpoints", "one", "remove the others")
    if not any(one.weight for one in endpoints):
        mistakes.add(place, "no endpoint with a weight above 0", "one that takes sessions",
                   "give one a weight of 1 or more")


class RouteBuilder:
    """Makes routes of what was written, the defaults, and the upstreams, which it adds to."""

    def __init__(
        self, defaults: Written | None, upstreams: dict[str, Upstream], broken: list[str],
        mistakes: Mistakes,
    ):
        """`broken` has the names of upstreams that exist but have mistakes."""
        self._defaults: dict[str, Any] = defaults.values if defaults else {}
        self._default_keys: frozenset[str] = defaults.keys if defaults else frozenset()
        self._upstreams = upstreams
        self._broken = broken
        self._mistakes = mistakes
        self._names: dict[str, str] = {}     # name to the place that has it
        self.used: set[str] = set()          # names of upstreams

    def build(self, written: Written) -> Route | None:
        """The route; None if something is wrong with it."""
        mistakes = self._mistakes
        before = len(mistakes)
        own = written.values
        name = own.get("name")
        place = written.place
        if name is not None:
            place = Place(place.file, f'{place.text} ("{name}")')
            self._check_name(name, written, place)
        elif "name" not in written.keys:
            mistakes.add(place, "no name", "a name, which logs and counters go by",
                       'give it one, such as name = "chat"')
        values = self._defaults | own
        upstream = self._find_upstream(values, written, place)
        if upstream is not None:
            self._check_kind(values, own, upstream, place)
            self._check_upstream_keys(values, own, upstream, place)
        self._check_pairs(values, own, place)
        self._check_path(values, own, upstream, place)
        if upstream is None or len(mistakes) > before or written.keys - own.keys():
            return None
        values["upstream"] = upstream.name
        fields = {BECOMES.get(key, key): value for key, value in values.items()}
        return Route(place=written.place.text, **fields)

    def _at(self, place: Place, key: str, own: Mapping[str, Any]) -> Place:
        """The key's place; the words say so where it is not the route's own."""
        where = place.key(key)
        if key in own or key not in self._default_keys:
            return where
        return Place(where.file, f"{where.text} from [defaults]")

    def _check_name(self, name: str, written: Written, place: Place) -> None:
        other = self._names.setdefault(name, written.place.text)
        if other != written.place.text:
            self._mistakes.add(place.key("name"), f'"{name}"', "a name that no other route has",
                             f"{other} has it too; rename one of them")

    def _find_upstream(
        self, values: dict[str, Any], written: Written, place: Place
    ) -> Upstream | None:
        wanted = values.get("upstream")
        if isinstance(wanted, Url):
            self.used.add(wanted.text)
            upstream = _upstream(wanted.text, [wanted], [1])
            check_server_name(upstream, self._at(written.place, "upstream", written.values),
                              self._mistakes)
            return self._upstreams.setdefault(wanted.text, upstream)
        if wanted is None:
            if "upstream" not in written.keys | self._default_keys:
                self._mistakes.add(place, "no upstream", "where its sessions go",
                                 'write upstream = "ws://HOST:PORT"')
            return None
        self.used.add(wanted)
        if wanted not in self._upstreams and wanted not in self._broken:
            named = (name for name in chain(self._upstreams, self._broken) if ":" not in name)
            remedy = self._mistakes.nearest(wanted, named) or (
                'write a table [upstream.NAME] for it, or a URL such as "ws://HOST:PORT"')
            self._mistakes.add(place.key("upstream"), quoted(wanted), "the name of an upstream",
                             remedy)
        return self._upstreams.get(wanted)

    def _check_kind(
        self, values: dict[str, Any], own: Mapping[str, Any], upstream: Upstream, place: Place
    ) -> None:
        keys, why = _WITHOUT_EFFECT[upstream.kind]
        for key in list(values):
            if key not in keys:
                continue
            if key in own:
                self._mistakes.add(place.key(key), f"the key on a route to {quoted(upstream.name)}",
                                 f"no {key} there", f"remove it: {why}")
            del values[key]

    def _check_upstream_keys(
        self, values: dict[str, Any], own: Mapping[str, Any], upstream: Upstream, place: Place
    ) -> None:
        mistakes = self._mistakes
        if values.get("rewrite") and upstream.own_path:
            mistakes.add(self._at(place, "rewrite", own),
                       f"the key with an upstream that has the path {quoted(upstream.path)}",
                       "one of both", "remove the path from the URL, or the rewrite")
        if values.get("send_host") == "upstream" and any(e.unix for e in upstream.entries):
            mistakes.add(self._at(place, "send_host", own), '"upstream" with a Unix socket',
                       "a host, which a socket has not", "write the one that the service expects")
        kind, _, name = upstream.hash_on.partition(":")
        if kind == "path":
            path = values.get("path", "/*")
            if name not in dict(parse_path(path).names):
                mistakes.add(self._at(place, "path", own), quoted(path),
                           f'a segment "{{{name}}}", by which the upstream {quoted(upstream.name)} '
                           "hashes", "name the segment, or change hash_on")

    def _check_pairs(
        self, values: dict[str, Any], own: Mapping[str, Any], place: Place
    ) -> None:
        mistakes = self._mistakes
        plain = Route(name="")
        for key, other, saying in _NEEDS:
            if values.get(other, getattr(plain, other)) == 0 and key in values:
                if key in own:
                    mistakes.add(place.key(key), f"the key while {saying}", f"no {key} then",
                               f"set {other}, or remove {key}")
                del values[key]
        removed = set(values.get("remove_fields", ()))
        for field, _ in values.get("set_fields", ()):
            if field.lower() in removed:
                mistakes.add(self._at(place, "remove_fields", own), quoted(field),
                           "no field that set_fields has",
                           "remove it here: what is set replaces what was sent")

    def _check_path(
        self, values: dict[str, Any], own: Mapping[str, Any], upstream: Upstream | None,
        place: Place,
    ) -> None:
        rewrite = values.get("rewrite")
        if not rewrite or (upstream is not None and upstream.own_path):
            return
        try:
            check_rewrite(rewrite, parse_path(values.get("path", "/*")),
                          self._at(place, "rewrite", own).text)
        except TableError as error:
            self._mistakes.take(place, error)


def check_reachable(routes: list[Route], files: Mapping[str, int], mistakes: Mistakes) -> None:
    """Mistakes each route that no request can take; `files` has the number of a route's file."""
    for route, other in unreachable(routes):
        mistakes.add(Place(files[route.name], f'{route.place} ("{route.name}")'),
                   "a route that is never reached", "one that some request takes",
                   f'{other.place} ("{other.name}") matches all that it matches, and comes first; '
                   "remove one of them, or match by more")


# --- Inside ------------------------------------------------------------------------------------


def _upstream(
    name: str, urls: list[Url], weights: list[int],
    balance: str = "least-connections", hash_on: str = "address", sources: tuple[str, ...] = (),
    tls: UpstreamTls | None = None,
) -> Upstream:
    entries = tuple(
        EndpointEntry(url=url.text, host=url.host, port=url.port, unix=url.unix, weight=weight)
        for url, weight in zip(urls, weights, strict=True)
    )
    first = urls[0]
    return Upstream(name=name, scheme=first.scheme, builtin=first.builtin, entries=entries,
                    path=first.path, balance=balance, hash_on=hash_on, source_addresses=sources,
                    tls=(tls or UpstreamTls()) if first.scheme in SECURED else None)


def _in_folder(url: Url, folder: Path, place: Place, mistakes: Mistakes) -> Url:
    url = url.in_folder(folder)
    if url.unix:
        try:
            check_socket_length(url.unix, place.text)
        except TableError as error:
            mistakes.take(place, error)
    return url
