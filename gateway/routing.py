"""Which route a request takes, which target its upstream sees, and whose Origin may come in.

Policy: pure functions over words. No socket, clock or file is in here.

Laws of this file:

- The most specific route wins: exact host over wildcard (the longer one first) over any; then the
  path segment by segment from the left, a literal over `{name}` over the rest `*`; then the number
  of further matches (header, query, subprotocol, sni); equals keep the order of the file.
- A route whose further matches fail is stepped over, and the next in that order is tried.
- `RouteTable.match` walks a tree of path segments for each host that fits, so its cost depends on
  the request and not on the number of routes (but on routes that share host *and* path and differ
  in further matches only: those are tried one after another).
- `match` and `explain_match` read a request with the same code and test the same conditions with
  the same code, so that they cannot disagree.
- What is compared is normalised (RFC 3986 6.2.2: encoded unreserved characters decoded, hex digits
  in upper case). What is captured, and what goes upstream, is what the client sent, to the byte.
- The client's bad path is a `ClientError`, an operator's bad pattern a `TableError`.
"""

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote_plus

from gateway.errors import ClientError, TableError
from gateway.table import Origin, Route, Upstream

HOST_MAX = 253  # characters of a name in the DNS (RFC 1035 2.3.4); no pattern is longer
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

Fields = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Match:
    """The route that won, and what its path pattern captured, as the client sent it."""

    route: Route
    captures: dict[str, str]
    rest: str                            # what stood behind "/*", without that slash


class Outcome(enum.Enum):
    """What became of one route for one request."""

    WON = "won"
    HOST = "host"                        # no host pattern fits
    PATH = "path"                        # the path pattern does not fit
    HEADER = "header"
    QUERY = "query"
    SUBPROTOCOL = "subprotocol"
    SNI = "sni"                          # the client's hello had no such name, or there was none
    OUTRANKED = "outranked"              # all fits, but another one is more specific


@dataclass(frozen=True, slots=True)
class Explanation:
    """One route and its outcome; `detail` says which condition, or by what it was outranked."""

    route: Route
    outcome: Outcome
    detail: str = ""


class RouteTable:
    """Finds the route of a request. Built once for a table; never changed."""

    def __init__(self, routes: Sequence[Route]):
        """`routes` in the order of the files. Raises TableError for a path that is no pattern."""
        self._entries = tuple(_Entry(route, order) for order, route in enumerate(routes))
        self._exact: dict[str, _Node] = {}
        self._wildcard: dict[str, _Node] = {}  # by what follows "*."
        self._any = _Node()
        for entry in self._entries:
            for host in entry.route.hosts or ("",):
                self._root(host).insert(entry)
        for root in (*self._exact.values(), *self._wildcard.values(), self._any):
            root.rank()

    def match(
        self, host: str, path: str, query: str, fields: Fields, sni: str = ""
    ) -> Match | None:
        """The winner for a request, or None: answer that with 404.

        `host` as in the Host field, with or without a port; `path` and `query` as sent, without
        the "?"; field names in lower case; `sni` the name in the TLS hello, in lower case. Raises
        ClientError (400) for a path that is none.
        """
        request = _Request(host, path, query, fields, sni)
        for entry in self._ranked(request):
            if entry.failed(request) is None:
                return entry.capture(request)
        return None

    def explain_match(
        self, host: str, path: str, query: str, fields: Fields, sni: str = ""
    ) -> list[Explanation]:
        """The outcome of every route, in the order of the table. Arguments and raises: `match`."""
        request = _Request(host, path, query, fields, sni)
        winner = next((e for e in self._ranked(request) if e.failed(request) is None), None)
        return [self._explain(entry, winner, request) for entry in self._entries]

    def _explain(
        self, entry: "_Entry", winner: "_Entry | None", request: "_Request"
    ) -> Explanation:
        route = entry.route
        if entry is winner:
            return Explanation(route, Outcome.WON)
        if entry.host_rank(request) is None:
            return Explanation(route, Outcome.HOST, f"it wants {' or '.join(route.hosts)}")
        if not entry.pattern.fits(request.segments):
            return Explanation(route, Outcome.PATH, f"it wants {route.path}")
        failed = entry.failed(request)
        if failed is not None:
            return Explanation(route, *failed)
        assert winner is not None, "a route that fits all is a candidate"
        return Explanation(route, Outcome.OUTRANKED, _outranked_by(entry, winner, request))

    def _root(self, host: str) -> "_Node":
        if not host:
            return self._any
        if host.startswith("*."):
            return self._wildcard.setdefault(host[2:], _Node())
        return self._exact.setdefault(host, _Node())

    def _ranked(self, request: "_Request") -> Iterator["_Entry"]:
        """Every entry whose host and path fit, the most specific first."""
        segments = request.segments
        for root in self._roots(request.host):
            waiting: list[tuple[_Node, int]] = [(root, 0)]
            while waiting:
                node, depth = waiting.pop()
                if depth < 0:
                    yield from node.rest
                elif depth == len(segments):
                    yield from node.ends
                else:
                    segment = segments[depth]
                    # The last one pushed is the first one tried.
                    if node.rest:
                        waiting.append((node, -1))
                    if node.name is not None and segment:
                        waiting.append((node.name, depth + 1))
                    literal = node.literals.get(segment)
                    if literal is not None:
                        waiting.append((literal, depth + 1))

    def _roots(self, host: str) -> Iterator["_Node"]:
        if 0 < len(host) <= HOST_MAX:
            exact = self._exact.get(host)
            if exact is not None:
                yield exact
            if self._wildcard:
                for suffix in _suffixes(host):
                    wildcard = self._wildcard.get(suffix)
                    if wildcard is not None:
                        yield wildcard
        yield self._any


def rewrite_target(
    match: Match, upstream: Upstream, path: str, query: str, has_query: bool
) -> str:
    """The request-target for the upstream, in origin form (RFC 9112 3.2.1).

    `path` and `query` as the client sent them; `has_query` tells "/x?" from "/x". Captures go in
    as they were sent, never decoded. The client's query is kept, unless the route's `rewrite` has
    a "?" of its own.
    """
    rewrite = match.route.rewrite
    if rewrite:
        target = _PLACEHOLDER.sub(
            lambda found: match.rest if found[1] == "*" else match.captures[found[1]], rewrite
        )
        if "?" in rewrite:
            return target
    else:
        target = upstream.own_path or path
    return f"{target}?{query}" if has_query else target


def origin_allowed(route: Route, origin_values: Sequence[bytes]) -> bool:
    """Whether a request with these values of Origin fields may come in; answer False with 403.

    A request without Origin is no browser's and passes. A user agent sends at most one
    (RFC 6454 7.3), so more are refused, also where the route lets any origin in.
    """
    if len(origin_values) > 1:
        return False
    if not origin_values or route.origins is None:
        return True
    origin = parse_origin(origin_values[0].decode("latin-1").strip(" \t"))
    return origin is not None and any(_same_origin(one, origin) for one in route.origins)


def parse_origin(text: str) -> Origin | None:
    """The origin that a serialisation (RFC 6454 6.2) means, or None if it is none.

    Scheme and host are compared without case, so they come in lower case; the scheme's default
    port is filled in, and a scheme without one has port 0.
    """
    if text == "null":
        return Origin(null=True)
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme = found[1].lower()
    port = int(found[3]) if found[3] else DEFAULT_PORTS.get(scheme, 0)
    if port > 65535 or (found[3] and port == 0) or len(found[2]) > HOST_MAX:
        return None
    return Origin(scheme=scheme, host=found[2].lower(), port=port)


def normalise_host(host: str) -> str:
    """A Host field's value without port and trailing dot, in lower case."""
    if host.startswith("["):  # an IPv6 literal has colons of its own (RFC 3986 3.2.2)
        return host[: host.find("]") + 1].lower()
    return host.partition(":")[0].removesuffix(".").lower()


def normalise_path(path: str) -> list[str]:
    """The segments of a path as they are compared. Raises ClientError (400).

    `%2F` stays inside its segment, and an empty segment counts. A dot segment is refused and not
    resolved: the upstream gets the path as it came, and must not resolve it to another route's.
    """
    if not path.startswith("/"):
        raise ClientError(400, "The path does not begin with a slash.")
    if "%" in path:
        path = _ESCAPE.sub(_decode_unreserved, path)
    segments = path[1:].split("/")
    if "/." in path and ("." in segments or ".." in segments):
        raise ClientError(400, "The path has a dot segment.")
    return segments


# --- Patterns ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A route's path, ready to be compared with normalised segments."""

    segments: tuple[str | None, ...]     # a literal, or None for a {name}
    names: tuple[tuple[str, int], ...]   # capture and the number of its segment
    rest: bool                           # ends with "/*"

    def fits(self, segments: Sequence[str]) -> bool:
        """Whether a path fits; the tree of `RouteTable` decides the same for all at once."""
        length = len(self.segments)
        if len(segments) != length and not (self.rest and len(segments) > length):
            return False
        if self.rest and len(segments) == length:
            return False  # "/rooms/*" matches "/rooms/", but not "/rooms"
        return all(
            bool(segment) if wanted is None else segment == wanted
            for wanted, segment in zip(self.segments, segments, strict=False)
        )


def parse_path(path: str, place: str = "path") -> PathPattern:
    """Read a route's `path`. Raises TableError, with `place` in it, for what is no pattern."""
    expected = 'a path such as "/chat", "/rooms/{room}" or "/files/*"'
    if not path.startswith("/"):
        raise TableError(place, quoted(path), expected, f"write {quoted('/' + path)}")
    rest = path.endswith("/*")
    try:
        written = normalise_path(path.removesuffix("/*") or "/")
    except ClientError as error:
        remedy = "write a percent sign as %25" if "%" in path else "write the path it leads to"
        raise TableError(place, quoted(path), "a path that a request can have", remedy) from error
    if path == "/*":
        written = []
    segments: list[str | None] = []
    names: dict[str, int] = {}
    for number, segment in enumerate(written):
        name = _NAME.fullmatch(segment)
        if name is None:
            _check_literal(segment, path, place)
            segments.append(segment)
            continue
        if name[1] in names:
            remedy = f'name the second "{{{name[1]}2}}"'
            raise TableError(place, f'"{{{name[1]}}}" twice', "each name once", remedy)
        names[name[1]] = number
        segments.append(None)
    return PathPattern(tuple(segments), tuple(names.items()), rest)


def check_rewrite(rewrite: str, pattern: PathPattern, place: str = "rewrite") -> None:
    """Raise TableError if `rewrite` cannot make a target from what `pattern` captures."""
    expected = 'a path such as "/v2/{room}/{*}"'
    if not rewrite.startswith("/"):
        raise TableError(place, quoted(rewrite), expected, f"write {quoted('/' + rewrite)}")
    known = [name for name, _ in pattern.names] + ["*"] * pattern.rest
    for name in _PLACEHOLDER.findall(rewrite):
        if name not in known:
            has = ", ".join(f'"{{{one}}}"' for one in known) or "nothing"
            remedy = 'end the path with "/*"' if name == "*" else f'name a segment "{{{name}}}"'
            raise TableError(place, f'"{{{name}}}"', f"what the path captures ({has})", remedy)
    path, _, query = rewrite.partition("?")
    if any("{*}" in one and one != "{*}" for one in path.split("/")):
        raise TableError(
            place, quoted(rewrite), '"{*}" as a segment of its own', 'put a "/" on either side'
        )
    # A name that is filled in is a whole segment and no dot segment, so "x" stands for it.
    filled = _PLACEHOLDER.sub("x", path)
    try:
        normalise_path(filled)
    except ClientError as error:
        remedy = "write a percent sign as %25, and no dot segment"
        raise TableError(place, quoted(rewrite), expected, remedy) from error
    strange = _NOT_TARGET.search(filled + "?" + _PLACEHOLDER.sub("x", query))
    if strange is not None:
        raise TableError(place, f"{quoted(strange[0])} in {quoted(rewrite)}", expected,
                         f"write it as {_encoded(strange[0])}")


def unreachable(routes: Sequence[Route]) -> list[tuple[Route, Route]]:
    """The routes that no request can take, each with one that takes all of its requests.

    A route outranks another only by a host or path that is as specific or more so, and matches
    all that the other does only by one that is as general or more so. So both must have the same
    host and path (names aside), and the same further matches, where "*" covers a value. For each
    (host, path, names of further matches) the values seen so far are kept by which of them are
    "*": a look-up for each such mask, not for each route.
    """
    seen: dict[object, dict[tuple[bool, ...], dict[tuple[str | None, ...], Route]]] = {}
    found: list[tuple[Route, Route]] = []
    for route in routes:
        pattern = parse_path(route.path, route.place)
        conditions = _conditions(route)
        names = tuple(name for name, _ in conditions)
        values = [value for _, value in conditions]
        coverers: list[Route | None] = []
        for host in route.hosts or ("",):
            masks = seen.setdefault((host, pattern.segments, pattern.rest, names), {})
            coverers.append(_coverer(masks, values))
            mask = tuple(value == "*" for value in values)
            key = tuple(None if any_ else value for any_, value in zip(mask, values, strict=True))
            masks.setdefault(mask, {}).setdefault(key, route)
        if all(coverer is not None for coverer in coverers) and coverers[0] is not None:
            found.append((route, coverers[0]))
    return found


def quoted(text: str) -> str:
    """Text from a table as messages show it: in quotes, on one line, and not too long."""
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:61])
    return f'"{text[:60]}..."' if len(text) > 60 else f'"{text}"'


# --- Inside ------------------------------------------------------------------------------------

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NAME = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*|\*)\}")
_NOT_LITERAL = re.compile(r"[^A-Za-z0-9._~!$&'()+,;=:@%-]")  # pchar (RFC 3986 3.3), without "*"
_NOT_TARGET = re.compile(r"[^A-Za-z0-9._~!$&'()*+,;=:@%/?-]")  # pchar, "/" and "?"
_ORIGIN = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()+;=%-]+)(?::([0-9]{1,5}))?"
)


class _Request:
    """A request as routes look at it; what only further matches need is read when they do."""

    def __init__(self, host: str, path: str, query: str, fields: Fields, sni: str):
        self.host = normalise_host(host)
        self.sni = sni
        self.segments = normalise_path(path)
        self.raw_path = path
        self.raw_query = query
        self.fields = fields

    @cached_property
    def headers(self) -> dict[bytes, list[bytes]]:
        """Values by name; a field that is sent twice has two."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in self.fields:
            headers.setdefault(name, []).append(value.strip(b" \t"))
        return headers

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """Values by name, both decoded as HTML forms are (`+` is a space)."""
        query: dict[str, list[str]] = {}
        for pair in self.raw_query.split("&"):
            if pair:
                name, _, value = pair.partition("=")
                query.setdefault(unquote_plus(name), []).append(unquote_plus(value))
        return query

    @cached_property
    def offers(self) -> frozenset[bytes]:
        """The subprotocols that the client offers (RFC 6455 11.3.4); their case counts."""
        values = self.headers.get(b"sec-websocket-protocol", [])
        return frozenset(token.strip(b" \t") for value in values for token in value.split(b","))


class _Entry:
    """A route, compiled."""

    __slots__ = ("further", "headers", "order", "pattern", "route")

    def __init__(self, route: Route, order: int):
        self.route = route
        self.order = order
        self.pattern = parse_path(route.path, route.place or "path")
        self.headers = tuple((name.encode(), value.encode()) for name, value in route.headers)
        self.further = len(_conditions(route))

    def failed(self, request: _Request) -> tuple[Outcome, str] | None:
        """The first further match that fails, or None if all hold."""
        if not self.further:
            return None
        for name, wanted in self.headers:
            values = request.headers.get(name)
            if values is None or (wanted != b"*" and wanted not in values):
                return Outcome.HEADER, f"it wants {name.decode()}: {wanted.decode()}"
        for parameter, value in self.route.query:
            given = request.query.get(parameter)
            if given is None or (value != "*" and value not in given):
                return Outcome.QUERY, f"it wants {parameter}={value}"
        subprotocol = self.route.subprotocol
        if subprotocol and subprotocol.encode() not in request.offers:
            return Outcome.SUBPROTOCOL, f"it wants {subprotocol} to be offered"
        if self.route.sni and not _fits_any(self.route.sni, request.sni):
            return Outcome.SNI, f"it wants {' or '.join(self.route.sni)}"
        return None

    def capture(self, request: _Request) -> Match:
        """What this route takes out of a path that fits it."""
        if not self.pattern.names and not self.pattern.rest:
            return Match(self.route, {}, "")
        raw = request.raw_path[1:].split("/")
        captures = {name: raw[number] for name, number in self.pattern.names}
        rest = "/".join(raw[len(self.pattern.segments):]) if self.pattern.rest else ""
        return Match(self.route, captures, rest)

    def host_rank(self, request: _Request) -> tuple[int, int] | None:
        """How specific the best host pattern is that fits, or None; the greater wins."""
        if not self.route.hosts:
            return (0, 0)
        ranks = []
        if 0 < len(request.host) <= HOST_MAX:
            if request.host in self.route.hosts and request.host[:2] != "*.":
                return (2, 0)
            suffixes = set(_suffixes(request.host))
            ranks = [(1, len(h)) for h in self.route.hosts if h[:2] == "*." and h[2:] in suffixes]
        return max(ranks, default=None)

    def path_rank(self) -> tuple[int, ...]:
        """How specific the path is; compares only with another path that fits the same request."""
        return (*(1 if one is None else 2 for one in self.pattern.segments), 0)


class _Node:
    """One segment deep in a tree of paths."""

    __slots__ = ("ends", "literals", "name", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.name: _Node | None = None
        self.ends: list[_Entry] = []     # patterns that end here
        self.rest: list[_Entry] = []     # patterns that have "/*" here

    def insert(self, entry: _Entry) -> None:
        node = self
        for segment in entry.pattern.segments:
            if segment is not None:
                node = node.literals.setdefault(segment, _Node())
            else:
                if node.name is None:
                    node.name = _Node()
                node = node.name
        (node.rest if entry.pattern.rest else node.ends).append(entry)

    def rank(self) -> None:
        """Put entries of one path into the order in which they are tried."""
        nodes = [self]
        while nodes:
            node = nodes.pop()
            node.ends.sort(key=lambda entry: (-entry.further, entry.order))
            node.rest.sort(key=lambda entry: (-entry.further, entry.order))
            nodes.extend(node.literals.values())
            if node.name is not None:
                nodes.append(node.name)


def _outranked_by(entry: _Entry, winner: _Entry, request: _Request) -> str:
    name = f'"{winner.route.name}"'
    if entry.host_rank(request) != winner.host_rank(request):
        return f"{name} has a more specific host"
    if entry.path_rank() != winner.path_rank():
        return f"{name} has a more specific path"
    if entry.further != winner.further:
        return f"{name} has more further matches"
    return f"{name} is as specific and stands before it"


def _suffixes(host: str) -> Iterator[str]:
    """What a wildcard's "*." may stand before in this host: the longest first.

    "*" is one label or more, and a label is never empty.
    """
    if host.startswith(".") or ".." in host:
        return
    dot = host.find(".")
    while dot >= 0:
        yield host[dot + 1 :]
        dot = host.find(".", dot + 1)


def _fits_any(patterns: Sequence[str], name: str) -> bool:
    """Whether one of these is a name, or a wildcard for it."""
    return name in patterns or any(f"*.{suffix}" in patterns for suffix in _suffixes(name))


def _decode_unreserved(found: re.Match[str]) -> str:
    if found[1] is None:
        raise ClientError(400, "The path has a broken percent-encoding.")
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()


def _same_origin(allowed: Origin, origin: Origin) -> bool:
    if allowed.null or origin.null:
        return allowed.null and origin.null
    if allowed.scheme != origin.scheme or allowed.port != origin.port:
        return False
    if allowed.host.startswith("*."):
        return allowed.host[2:] in _suffixes(origin.host)
    return allowed.host == origin.host


def _conditions(route: Route) -> list[tuple[tuple[str, str], str]]:
    """The further matches of a route, in one order for all routes."""
    conditions = [(("header", name), value) for name, value in route.headers]
    conditions += [(("query", name), value) for name, value in route.query]
    if route.subprotocol:
        conditions.append((("subprotocol", ""), f"={route.subprotocol}"))  # "*" is a token here
    if route.sni:
        conditions.append((("sni", ""), " ".join(sorted(route.sni))))
    return sorted(conditions)


def _coverer(
    masks: dict[tuple[bool, ...], dict[tuple[str | None, ...], Route]], values: list[str]
) -> Route | None:
    for mask, by_values in masks.items():
        key = tuple(None if any_ else value for any_, value in zip(mask, values, strict=True))
        route = by_values.get(key)
        if route is not None:
            return route
    return None


def _check_literal(segment: str, path: str, place: str) -> None:
    expected = 'a path such as "/chat", "/rooms/{room}" or "/files/*"'
    if "{" in segment or "}" in segment:
        remedy = 'a "{name}" of letters, digits, "_" and "-" is a whole segment between slashes'
        raise TableError(place, quoted(path), expected, remedy)
    if "*" in segment:
        raise TableError(place, quoted(path), expected, '"*" stands only at the end, behind a "/"')
    if "?" in segment:
        remedy = 'match a query by the key query = { name = "value" }'
        raise TableError(place, quoted(path), expected, remedy)
    strange = _NOT_LITERAL.search(segment)
    if strange is not None:
        remedy = f"write it as {_encoded(strange[0])}"
        raise TableError(place, f"{quoted(strange[0])} in {quoted(path)}", expected, remedy)


def _encoded(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
