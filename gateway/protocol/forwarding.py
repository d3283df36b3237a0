"""What the upstream is told: our own handshake, the client's other fields, and who the client is.

Laws of this file:

- The handshake is the gateway's own, and nothing of the client's can add to it or take from it.
- Fields for one connection do not pass (RFC 9110 7.6.1), those that Connection names included.
  All others pass unchanged, in order, in their own case.
- What a client says of its own origin (X-Forwarded-*, Forwarded) is believed only if the socket's
  far end is a trusted proxy; else it is replaced. A trusted proxy is not on a Unix socket: such a
  peer has no address that a network could contain.
- Who the client has proved to be by a certificate is said by us alone, or by a trusted proxy whose
  client it was: fields of that kind never pass from a stranger, with TLS or without.
- Of names that differ in "-" and "_" alone CGI and its heirs make one (RFC 3875 4.1.18), so
  X_Forwarded_For goes where X-Forwarded-For goes.
- A route's own fields come last, so that they win over the client's.
"""

import base64
import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol
from urllib.parse import quote

from gateway.events import Address, PeerCertificate, Secured
from gateway.protocol.http1 import (
    HOP_BY_HOP,
    Request,
    build_request,
    is_host,
    is_token,
    parse_list,
)
from gateway.protocol.websocket import HANDSHAKE_FIELDS, VERSION, passed_extensions
from gateway.table import Network, Route

FORWARDING_FIELDS = frozenset((
    b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
))

# RFC 9440 2, and two that spare an upstream from taking it apart.
CERTIFICATE_FIELDS = frozenset((
    b"client-cert", b"client-cert-chain", b"x-client-cert-subject", b"x-client-cert-names",
))

# Never the client's, and not for a route to set. An upgrade has no content, so it has no length
# and no expectation (RFC 9110 10.1.1) either.
OWN_FIELDS = HANDSHAKE_FIELDS | HOP_BY_HOP | {b"content-length", b"expect", b"host"}
NOT_PASSED = OWN_FIELDS | FORWARDING_FIELDS


def upstream_request(
    request: Request,
    *,
    target: str,
    route: Route,
    endpoint_host: str,
    key: bytes,
    peer: Address,
    trusted: Sequence[Network],
    secured: Secured | None = None,
) -> bytes:
    """The head of our handshake with the upstream.

    `target` is the request-target in origin form, `endpoint_host` the authority of the
    upstream's URL (for `send_host`), `key` our own; `peer` is the far end of the client's socket,
    and `secured` what its TLS came to, if it has that.
    """
    fields = [
        (b"Host", _host(request, route, endpoint_host)),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Key", key),
        (b"Sec-WebSocket-Version", VERSION),
    ]
    for offer in request.get_all(b"sec-websocket-protocol"):
        if offer:  # some clients send an empty list
            fields.append((b"Sec-WebSocket-Protocol", offer))
    extensions = passed_extensions(request)
    if extensions:
        fields.append((b"Sec-WebSocket-Extensions", extensions))
    certificate = secured.certificate if secured is not None else None
    stays = NOT_PASSED
    if certificate is not None or not _is_trusted(peer.host, trusted):
        stays = NOT_PASSED | CERTIFICATE_FIELDS
    passed = [
        pair for pair in request.fields
        if _folded(name := pair[0].lower()) not in stays and name not in request.connection
    ]
    passed += forwarding_fields(request, peer, trusted, secure=secured is not None)
    if certificate is not None:
        passed += certificate_fields(certificate)
    return build_request(b"GET", target.encode("ascii"), [*fields, *_edited(passed, route)])


class Fielded(Protocol):
    """What has fields: a head, or what was seen of one."""

    def get_all(self, name: bytes, /) -> list[bytes]:
        """See http1.Head."""


def believed_client(peer: Address, request: Fielded, trusted: Sequence[Network]) -> Address:
    """Who the client is: the far end of the socket, or whom trusted proxies say they speak for.

    The list of hops is walked from the right, the end that trusted proxies wrote, up to the first
    hop that is not trusted itself, or that is no address. X-Forwarded-For goes before Forwarded:
    a proxy that writes the one lets the other through as its client sent it, and nearly all write
    the former.
    """
    if not _is_trusted(peer.host, trusted):
        return peer
    believed = peer
    for node in reversed(_nodes(request)):
        address = _node_address(node)
        if address is None:
            break
        believed = address
        if not _is_trusted(address.host, trusted):
            break
    return believed


def forwarding_fields(
    request: Request, peer: Address, trusted: Sequence[Network], *, secure: bool = False
) -> list[tuple[bytes, bytes]]:
    """The four fields that tell of this hop, and of those before it if `peer` is trusted."""
    proto, host = b"https" if secure else b"http", request.host.encode("ascii")
    hop, node = _hop(peer.host)
    element = b"for=%b;host=%b;proto=%b" % (node, _quoted(host), proto)
    if _is_trusted(peer.host, trusted):
        told = b", ".join(request.get_all(b"x-forwarded-for"))
        hop = b"%b, %b" % (told, hop) if told and hop else told or hop
        protos = request.get_all(b"x-forwarded-proto")
        if len(protos) == 1 and is_token(protos[0]):
            proto = protos[0]
        hosts = request.get_all(b"x-forwarded-host")
        if len(hosts) == 1 and is_host(hosts[0].decode("latin-1")):
            host = hosts[0]
        elements = request.get_all(b"forwarded")
        if _parse_forwarded(elements) is not None:
            # Else an open quotation mark would swallow what is written behind it.
            element = b", ".join([*elements, element])
    fields = [
        (b"X-Forwarded-For", hop),
        (b"X-Forwarded-Proto", proto),
        (b"X-Forwarded-Host", host),
        (b"Forwarded", element),
    ]
    return fields if hop else fields[1:]


def certificate_fields(certificate: PeerCertificate) -> list[tuple[bytes, bytes]]:
    """Who the client has proved to be: its certificate as RFC 9440 2.1 has it, the subject as RFC
    4514 text, and the alternative names as a list of strings (RFC 8941 3.1, 3.3.3)."""
    names = b", ".join(b'"%b"' % _string(name) for name in certificate.names)
    fields = [
        (b"Client-Cert", b":%b:" % base64.b64encode(certificate.der)),
        (b"X-Client-Cert-Subject", _ESCAPED_TEXT.sub(_hex_pair, certificate.subject.encode())),
        (b"X-Client-Cert-Names", names),
    ]
    return [pair for pair in fields if pair[1]]


# --- Inside -----------------------------------------------------------------------------------

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# RFC 7239 4: pairs with ";" between them make an element, elements with "," a list. There is no
# space around "=". Linear: each repeat ends before a byte that is not in it.
_PAIR = re.compile(rb"[\t ]*(%b)=(?:(%b)|\"((?:[^\"\\]|\\.)*)\")[\t ]*" % (_TOKEN, _TOKEN))
_SPACE = re.compile(rb"[\t ]*")
_ESCAPED_TEXT = re.compile(rb"[^ -~]|\A | \Z")
_ESCAPED = re.compile(rb"\\(.)")
# RFC 7239 6: an IPv6 address stands in brackets; X-Forwarded-For has it without, too.
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?|([0-9A-Fa-f:.]+)")


def _host(request: Request, route: Route, endpoint_host: str) -> bytes:
    """Host as the client sent it, because applications compare it with Origin; or as told."""
    if not route.send_host:
        return request.host.encode("ascii")
    host = endpoint_host if route.send_host == "upstream" else route.send_host
    return host.encode("ascii")


def _folded(name: bytes) -> bytes:
    """A name as CGI and its heirs see it."""
    return name.lower().replace(b"_", b"-")


def _edited(fields: list[tuple[bytes, bytes]], route: Route) -> list[tuple[bytes, bytes]]:
    """What the route removes and sets. The table refuses fields that are the gateway's own."""
    if not route.set_fields and not route.remove_fields:
        return fields
    added = [(name.encode("ascii"), value.encode("ascii")) for name, value in route.set_fields]
    replaced = {name.lower() for name, _ in added}
    assert not replaced & OWN_FIELDS, "a route that sets a field of the handshake"
    dropped = {_folded(name) for name in replaced}
    dropped.update(_folded(name.encode("ascii")) for name in route.remove_fields)
    return [pair for pair in fields if _folded(pair[0]) not in dropped] + added


@lru_cache(maxsize=1024)  # clients come again, and ipaddress is slow
def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """The address in a host, or None; an IPv4 client of an IPv6 socket is an IPv4 client."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_trusted(host: str, trusted: Sequence[Network]) -> bool:
    if not trusted:
        return False
    address = _ip(host)
    return address is not None and any(address in network for network in trusted)


def _nodes(request: Fielded) -> list[str]:
    """The hops that the request tells of, the latest last."""
    values = request.get_all(b"x-forwarded-for")
    if values:
        return [node.decode("latin-1") for node in parse_list(values)]
    elements = _parse_forwarded(request.get_all(b"forwarded"))
    # An element without "for" says nothing of its hop: the walk must end there.
    return [element.get("for", "") for element in elements or []]


def _node_address(node: str) -> Address | None:
    """The address of one hop; None for "unknown", a made-up name, or rubbish."""
    found = _NODE.fullmatch(node)
    if found is None:
        return None
    address = _ip(found[1] or found[2] or found[4])
    port = int(found[3] or 0)
    return None if address is None or port > 65535 else Address(host=str(address), port=port)


def _parse_forwarded(values: Sequence[bytes]) -> list[dict[str, str]] | None:
    """The elements of all Forwarded fields, names in lower case; None if they are malformed."""
    elements: list[dict[str, str]] = []
    for value in values:
        element: dict[str, str] = {}
        at = 0
        while at <= len(value):
            pair = _PAIR.match(value, at)
            if pair is not None:
                name = pair[1].decode("ascii").lower()
                text = pair[2] if pair[2] is not None else _ESCAPED.sub(rb"\1", pair[3])
                if name in element:  # RFC 7239 4: each parameter once
                    return None
                element[name] = text.decode("latin-1")
            space = pair if pair is not None else _SPACE.match(value, at)
            assert space is not None, "it fits the empty string too"
            at = space.end()
            mark = value[at : at + 1]
            if mark not in (b"", b",", b";"):
                return None
            if mark != b";" and element:  # empty elements are stepped over (RFC 9110 5.6.1)
                elements.append(element)
                element = {}
            at += 1
    return elements


@lru_cache(maxsize=1024)  # as above
def _hop(host: str) -> tuple[bytes, bytes]:
    """A peer as X-Forwarded-For has it, which has nothing for one without an address, and as
    Forwarded has it (RFC 7239 6)."""
    address = _ip(host)
    if address is None:
        return b"", b"unknown"  # RFC 7239 6.2
    text = str(address).encode("ascii")
    return text, _quoted(b"[%b]" % text if address.version == 6 else text)


def _hex_pair(found: re.Match[bytes]) -> bytes:
    """A byte as RFC 4514 2.4 lets it be written; none of a field's own meaning is left in it."""
    return b"\\%02X" % found[0][0]


def _string(text: str) -> bytes:
    """What stands in a string of RFC 8941, which is ASCII that can be seen: all else, and what
    would end the string, is percent-encoded."""
    return quote(text, safe="!#$&'()*+,-./:;<=>?@[]^_`{|}~ ").encode("ascii")


def _quoted(value: bytes) -> bytes:
    """A value as it stands in a pair. `is_host` lets nothing through that needs escaping."""
    return value if is_token(value) else b'"%b"' % value
