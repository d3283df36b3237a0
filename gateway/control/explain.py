"""What `gateway explain` prints: which route a request takes, what happens on it, and why the
others did not match.

The arguments become a head as a client would send it, which the gateway's own reader and checks
judge; `RouteTable.explain_match` shares its code with the matching of real requests. So nothing is
said here that the gateway would not do. Nothing is sent anywhere.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.control.config_render import effective, origin_text, toml_string
from gateway.errors import ClientError
from gateway.protocol import http1, websocket
from gateway.routing import (
    Explanation,
    Outcome,
    RouteTable,
    normalise_host,
    origin_allowed,
    parse_origin,
    quoted,
    rewrite_target,
)
from gateway.table import Route, Table, Upstream

SCHEMES = ("ws", "wss", "http", "https")

# Taken apart here, since urlsplit loses "//" at a path's front and the "?" of an empty query.
_URL = re.compile(
    r"([A-Za-z]+)://(\[[0-9A-Fa-f:.]+\](?::[0-9]*)?|[^/?#\[\]]+)([/?#].*)?|(/.*)", re.DOTALL
)


# What a client sends besides what is asked about; each gives way to one of the arguments.
_HANDSHAKE = (
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
)
_NO_HOST = "no-host.invalid"             # stands in the head where none is asked about


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request that is asked about: as a client would send it, to the byte."""

    host: str                            # "" where a path alone is asked about
    target: str                          # as it stands in the request line
    head: bytes
    sni: str = ""                        # of the hello: the URL's host, where it has TLS


def explain(
    table: Table,
    url: str,
    headers: Sequence[str] = (),
    origin: str | None = None,
    subprotocols: Sequence[str] = (),
) -> str:
    """The explanation, of several lines.

    `url` is "ws://host/path?query", or a path alone; `headers` are "Name: value", of which a Host
    replaces the URL's. Raises ValueError, with a sentence for the user, for arguments that make no
    request.
    """
    wanted = read_request(url, headers, origin, subprotocols)
    routes = RouteTable(table.routes)
    lines = [f"request: {wanted.target} on host {wanted.host or '(none)'}"]
    try:
        request = _parsed(wanted, max((each.max_head for each in table.listeners), default=16384))
        explanations = routes.explain_match(
            request.host, request.path, request.query, request.lower_fields, wanted.sni
        )
    except ClientError as error:
        lines.append(f"answer: {error.status}, before any route: {error.detail}")
        return "\n".join(lines) + "\n"
    winner = next((one.route for one in explanations if one.outcome is Outcome.WON), None)
    if winner is None:
        lines.append("answer: 404, since no route matches")
    else:
        upstream = table.upstreams[winner.upstream]
        lines += _about_winner(winner, upstream, routes, request, wanted.sni)
    others = [one for one in explanations if one.outcome is not Outcome.WON]
    if others:
        lines += ["", "other routes:"]
        lines += [f'  "{one.route.name}" ({one.route.place}): {_reason(one)}' for one in others]
    return "\n".join(lines) + "\n"


def read_request(
    url: str, headers: Sequence[str], origin: str | None, subprotocols: Sequence[str]
) -> Wanted:
    """The request that the arguments make, sound or not. Raises ValueError where they make none."""
    if not all("!" <= character <= "~" for character in url):
        raise ValueError(f"{quoted(url)} has a space or a character that no URL has; encode it")
    found = _URL.fullmatch(url)
    if found is None or (found[1] and found[1].lower() not in SCHEMES):
        raise ValueError(f'{quoted(url)} is no URL; write one such as "ws://example.com/chat"')
    if "#" in url:
        raise ValueError(f"{quoted(url)} has a fragment, which is never sent")
    host = found[2] or ""
    if "@" in host:
        raise ValueError("the URL has a user, which browsers do not send for a WebSocket")
    sni = normalise_host(host) if (found[1] or "").lower() in ("wss", "https") else ""
    target = found[3] or found[4] or "/"
    fields: list[tuple[str, str]] = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name or name != name.strip() or not _is_line(header):
            raise ValueError(f'{quoted(header)} is no header; write it as "Name: value"')
        if name.lower() == "host":
            host = value.strip()
        fields.append((name, value.strip()))
    for value in (*([] if origin is None else [origin]), *subprotocols):
        if not _is_line(value):
            raise ValueError(f"{quoted(value)} has a character that no header has")
    if origin is not None:
        fields.append(("Origin", origin))
    if subprotocols:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    given = {name.lower() for name, _ in fields}
    usual = [("Host", host or _NO_HOST), *_HANDSHAKE]
    fields = [pair for pair in usual if pair[0].lower() not in given] + fields
    target = target if target.startswith("/") else f"/{target}"
    # Not by `build_request`, which writes sound heads only: an unsound one is what may be asked.
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    return Wanted(host, target, "\r\n".join(lines).encode("ascii"), sni)


def _is_line(text: str) -> bool:
    """Whether it can stand in a header without ending it."""
    return text.isascii() and text.replace("\t", " ").isprintable()


def _parsed(wanted: Wanted, head_max: int) -> http1.Request:
    """The request as the gateway itself reads it. Raises ClientError as it answers."""
    request = http1.RequestReader(head_max).feed(wanted.head)
    assert request is not None, "the head is whole"
    if websocket.is_upgrade(request):
        websocket.check_content(request)
    if not wanted.host:
        request.host = ""
    return request


def _handshake_verdict(request: http1.Request) -> list[str]:
    """The refusal that comes behind the route, if any."""
    try:
        websocket.check_handshake(request)
    except ClientError as error:
        return [f"answer: {error.status}: {error.detail}"]
    return []


def _about_winner(
    route: Route, upstream: Upstream, routes: RouteTable, request: http1.Request, sni: str
) -> list[str]:
    match = routes.match(request.host, request.path, request.query, request.lower_fields, sni)
    assert match is not None and match.route is route, "explain and match cannot disagree"
    kind = upstream.kind
    lines = [] if kind == "page" else _handshake_verdict(request)
    lines += [f'route: "{route.name}" ({route.place})', f"path: {route.path}"]
    captures = [f"{name} = {quoted(value)}" for name, value in match.captures.items()]
    if route.path.endswith("/*"):
        captures.append(f"* = {quoted(match.rest)}")
    if captures:
        lines.append(f"captures: {', '.join(captures)}")
    lines.append(f"origin: {_origin_verdict(route, request)}")
    lines += _about_upstream(upstream)
    if kind == "ws":
        target = rewrite_target(
            match, upstream, request.path, request.query, request.has_query
        )
        lines.append(f"target: {target}")
        lines.append(f"Host: {_sent_host(route, upstream, request)}")
        lines += [f"sets: {name}: {value}" for name, value in route.set_fields]
        if route.remove_fields:
            lines.append(f"removes: {', '.join(route.remove_fields)}")
    elif kind == "tcp":
        lines.append("target: none; the upstream sees only the bytes of messages")
    lines += ["", "in force:"]
    lines += [f"  {key} = {value}" for key, value in effective(route, upstream)]
    return lines


def _about_upstream(upstream: Upstream) -> list[str]:
    if upstream.builtin:
        return [f"upstream: builtin:{upstream.builtin}, in the gateway itself"]
    if ":" in upstream.name:
        return [f"upstream: {upstream.name}"]
    by = f" on {upstream.hash_on}" if upstream.balance == "hash" else ""
    lines = [f"upstream: {upstream.name}, {upstream.balance}{by}, one of:"]
    total = sum(entry.weight for entry in upstream.entries)
    for entry in upstream.entries:
        share = f", weight {entry.weight} of {total}" if total != len(upstream.entries) else ""
        lines.append(f"  {entry.url}{share}")
    return lines


def _sent_host(route: Route, upstream: Upstream, request: http1.Request) -> str:
    if not route.send_host:
        return f"{request.host or '(none)'}, as the client sent it"
    if route.send_host != "upstream":
        return f"{route.send_host}, by send_host"
    hosts = {entry.url.partition("://")[2].partition("/")[0]: None for entry in upstream.entries}
    return f"{' or '.join(hosts)}, by send_host"


def _origin_verdict(route: Route, request: http1.Request) -> str:
    values = request.get_all(b"origin")
    if not origin_allowed(route, values):
        if len(values) > 1:
            return "answer 403, since there is more than one"
        shown = quoted(values[0].decode("latin-1"))
        if parse_origin(values[0].decode("latin-1")) is None:
            return f"answer 403, since {shown} is no origin"
        return f"answer 403, since {shown} is none of {_origins(route)}"
    if route.origins is None:
        return "any may come"
    if not values:
        return f"passes without one, as no browser does; with one, only {_origins(route)}"
    return f"{quoted(values[0].decode('latin-1'))} may come, by {_origins(route)}"


def _origins(route: Route) -> str:
    return ", ".join(toml_string(origin_text(one)) for one in route.origins or ()) or "(none)"


def _reason(one: Explanation) -> str:
    where = {
        Outcome.HOST: "the host does not match",
        Outcome.PATH: "the path does not match",
        Outcome.HEADER: "a header does not match",
        Outcome.QUERY: "the query does not match",
        Outcome.SUBPROTOCOL: "the subprotocol is not offered",
        Outcome.SNI: "the name in the TLS hello does not match",
        Outcome.OUTRANKED: "it matches, but is less specific",
    }[one.outcome]
    return f"{where}: {one.detail}"
