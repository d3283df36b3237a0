"""The opening handshake of WebSockets (RFC 6455 4), toward both sides, and permessage-deflate's
negotiation (RFC 7692).

The gateway is a server to the client and a client to the upstream, with a key of its own for
each. Offers pass from one to the other and the choice comes back, so both ends speak to each
other; what is checked here is that the upstream chose from what was offered.

Laws of this file:

- The checks of a request are small and apart, because the order of refusals is the session's:
  `check_content`, then the route, then those of `check_handshake`. Each raises ClientError,
  or does nothing.
- A wrong answer of an upstream is an UpstreamError (502), never a tunnel.
- An extension may change what the bits of a frame mean. The relay knows permessage-deflate and no
  other, so no other is ever offered on or accepted.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gateway.errors import ClientError, UpstreamError
from gateway.protocol.http1 import (
    Head,
    Request,
    Response,
    build_interim,
    end_to_end_fields,
    is_token,
    parse_list,
)

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
VERSION = b"13"                                 # RFC 6455 4.1
DEFLATE = "permessage-deflate"                  # RFC 7692 7

# What 426 must say (RFC 9110 15.5.22), and which version we speak (RFC 6455 4.4).
UPGRADE_FIELDS = (
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Version", VERSION),
)

# The fields of the handshake itself. They are written anew toward each side.
HANDSHAKE_FIELDS = frozenset((
    b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-key",
    b"sec-websocket-protocol", b"sec-websocket-version",
))


# --- Keys -------------------------------------------------------------------------------------


def accept_key(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that answers this Sec-WebSocket-Key (RFC 6455 4.2.2)."""
    # SHA-1 protects nothing here; it shows that the far end read the key.
    return base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())


def new_key(random_bytes: Callable[[int], bytes]) -> bytes:
    """A Sec-WebSocket-Key of our own: 16 random bytes (RFC 6455 4.1)."""
    return base64.b64encode(random_bytes(16))


# --- The client's request ---------------------------------------------------------------------


def is_upgrade(request: Request) -> bool:
    """Whether this request asks for a WebSocket; all else is a plain exchange.

    HTTP/1.0 has no Upgrade (RFC 9110 7.8). Upgrade may name other protocols too, and the
    gateway chooses.
    """
    return (
        request.method == b"GET"
        and request.version == (1, 1)
        and b"upgrade" in request.connection
        and b"websocket" in _upgrade_protocols(request)
    )


def check_handshake(request: Request) -> None:
    """All that a route to a WebSocket asks of a request, in the order of refusals."""
    check_method(request)
    check_upgrade(request)
    check_version(request)
    check_key(request)
    check_offers(request)


def check_content(request: Request) -> None:
    """400 for an upgrade with content: its bytes and the first frames would be told apart by
    nothing but the length, and not every upstream reads it (RFC 9112 11.2)."""
    if request.chunked or request.content_length:
        raise ClientError(400, "A request for an upgrade has no content.")


def check_method(request: Request, allowed: Sequence[bytes] = (b"GET",)) -> None:
    """405 with Allow (RFC 9110 15.5.6) for a method that is not allowed here."""
    if request.method not in allowed:
        fields = ((b"Allow", b", ".join(allowed)),)
        raise ClientError(405, "This method is not allowed here.", fields)


def check_upgrade(request: Request) -> None:
    """426 for a request that does not ask for a WebSocket where there is nothing else."""
    if not is_upgrade(request):
        raise ClientError(426, "Only WebSockets are served here.", UPGRADE_FIELDS)


def check_version(request: Request) -> None:
    """426 for another version of the protocol, or none (RFC 6455 4.2.2, 4.4). A doubled field is
    another one, too: what it says is a list, which a request's must not be (11.3.5)."""
    if request.get_all(b"sec-websocket-version") != [VERSION]:
        raise ClientError(426, "Only version 13 of the protocol is spoken here.", UPGRADE_FIELDS)


def check_key(request: Request) -> None:
    """400 for what is not exactly one key: base64 of 16 bytes (RFC 6455 4.2.1), and as encoders
    write it, the unused bits of the last digit being zero."""
    keys = request.get_all(b"sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise ClientError(400, "There must be exactly one Sec-WebSocket-Key of 16 bytes.")


def check_offers(request: Request) -> None:
    """400 for subprotocols or extensions that are no list of such (RFC 6455 4.1, 9.1)."""
    offered_subprotocols(request)
    offered_extensions(request)


def offered_subprotocols(request: Request) -> list[str]:
    """What the client offers, in its order of preference. Raises ClientError (400): "MUST be
    non-empty strings ... and MUST all be unique strings" (RFC 6455 4.1)."""
    values = request.get_all(b"sec-websocket-protocol")
    if not values:
        return []
    offers = parse_list(values)
    if not all(map(is_token, offers)) or len(set(offers)) != len(offers):
        raise ClientError(400, "Sec-WebSocket-Protocol is malformed.")
    return [offer.decode("ascii") for offer in offers]


def choose_subprotocol(request: Request, own: Sequence[str]) -> str:
    """The first of the client's offers that is one of our own, else "" (RFC 6455 4.2.2)."""
    return next((offer for offer in offered_subprotocols(request) if offer in own), "")


# --- Extensions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extension:
    """One element of Sec-WebSocket-Extensions: an offer, or an answer to one."""

    name: str
    parameters: tuple[tuple[str, str | None], ...]  # values without their quotes
    text: bytes                                     # as sent


def parse_extensions(values: Iterable[bytes]) -> list[Extension]:
    """The extension-list of all fields (RFC 6455 9.1); an empty one is none, since some clients
    write that. Raises ValueError for what is no list."""
    return [extension for value in values for extension in _parse_extension_list(value)]


def offered_extensions(request: Request) -> list[Extension]:
    """What the client offers. Raises ClientError (400): RFC 6455 9.1 demands it."""
    try:
        return parse_extensions(request.get_all(b"sec-websocket-extensions"))
    except ValueError:
        raise ClientError(400, "Sec-WebSocket-Extensions is malformed.") from None


def passed_extensions(request: Request) -> bytes:
    """The value to offer on: the client's offers of permessage-deflate, untouched and in order,
    or b"" if there is none."""
    return b", ".join([one.text for one in offered_extensions(request) if one.name == DEFLATE])


def is_deflate_answer(answer: Extension, offers: Iterable[Extension]) -> bool:
    """Whether this accepts one of the offers as RFC 7692 has it."""
    agreed = deflate_parameters(answer, in_offer=False)
    if agreed is None:
        return False
    for offer in offers:
        wanted = deflate_parameters(offer, in_offer=True)
        if wanted is not None and _accepts(agreed, wanted):
            return True
    return False


# --- The upstream's answer --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an upstream agreed to."""

    subprotocol: str = ""
    extensions: bytes = b""              # the value, as sent; b"": none
    deflate: bool = False
    fields: tuple[tuple[bytes, bytes], ...] = ()  # the others that pass, in order


def check_answer(response: Response, key: bytes, request: Request) -> Answer:
    """Judge a 101 that answers our handshake with `key`, made for the client's `request`.

    Raises UpstreamError (502) for all that RFC 6455 4.1 and 4.2.2 do not let through.
    """
    assert response.status == 101, response.status
    if response.version != (1, 1):
        raise UpstreamError(502, "upstream's 101 is not HTTP/1.1")
    if response.content_length is not None or response.chunked:
        raise UpstreamError(502, "upstream's 101 has content")  # RFC 9110 8.6, RFC 9112 6.1
    if _upgrade_protocols(response) != [b"websocket"] or b"upgrade" not in response.connection:
        raise UpstreamError(502, "upstream's 101 upgrades to something else")
    if response.get_all(b"sec-websocket-accept") != [accept_key(key)]:
        raise UpstreamError(502, "upstream's Sec-WebSocket-Accept is wrong, absent or doubled")
    extensions = _chosen_extension(response, request)
    return Answer(
        subprotocol=_chosen_subprotocol(response, request),
        extensions=extensions,
        deflate=bool(extensions),
        fields=tuple(
            pair for pair in end_to_end_fields(response) if pair[0].lower() not in HANDSHAKE_FIELDS
        ),
    )


def client_answer(request: Request, answer: Answer) -> bytes:
    """Our 101 to the client: its own key answered, the upstream's choices and other fields."""
    (key,) = request.get_all(b"sec-websocket-key")
    fields = [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", accept_key(key)),
    ]
    if answer.subprotocol:
        fields.append((b"Sec-WebSocket-Protocol", answer.subprotocol.encode("ascii")))
    if answer.extensions:
        fields.append((b"Sec-WebSocket-Extensions", answer.extensions))
    return build_interim(101, [*fields, *answer.fields])


def raw_answer(request: Request, subprotocol: str) -> bytes:
    """Our 101 where the gateway itself is the endpoint: no extensions."""
    return client_answer(request, Answer(subprotocol=subprotocol))


# --- Inside -----------------------------------------------------------------------------------

_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")

# RFC 6455 9.1, with the whitespace that RFC 2616's grammar allows between all parts. Linear: each
# repeat ends before a byte that is not in it.
_GAP = re.compile(rb"[\t ,]*")
_NAME = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[\t ]*")
_PARAMETER = re.compile(
    rb";[\t ]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[\t ]*"
    rb"(?:=[\t ]*(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]+)|\"((?:[^\"\\]|\\.)*)\")[\t ]*)?"
)
_ESCAPED = re.compile(rb"\\(.)")
_WINDOW_BITS = re.compile(r"[89]|1[0-5]")  # RFC 7692 7.1.2: 8 to 15, without leading zeros


def _upgrade_protocols(head: Head) -> list[bytes]:
    """Upgrade's elements, which are compared without case (RFC 9110 7.8)."""
    values = head.get_all(b"upgrade")
    if values == [b"websocket"]:  # nearly always
        return values
    return [protocol.lower() for protocol in parse_list(values)]


def _parse_extension_list(value: bytes) -> list[Extension]:
    extensions = []
    at = _end(_GAP, value, 0)  # empty elements are stepped over (RFC 9110 5.6.1)
    while at < len(value):
        begin = at
        name = _NAME.match(value, at)
        if name is None:
            raise ValueError("no name")
        at = name.end()
        parameters = []
        while value.startswith(b";", at):
            found = _PARAMETER.match(value, at)
            if found is None:
                raise ValueError("no parameter")
            parameters.append((found[1].decode("ascii"), _parameter_value(found[2], found[3])))
            at = found.end()
        text = value[begin:at].rstrip(b"\t ")
        extensions.append(Extension(name[1].decode("ascii"), tuple(parameters), text))
        if at < len(value) and not value.startswith(b",", at):
            raise ValueError("no comma")
        at = _end(_GAP, value, at)
    return extensions


def _end(pattern: re.Pattern[bytes], value: bytes, at: int) -> int:
    found = pattern.match(value, at)
    assert found is not None, "it fits the empty string too"
    return found.end()


def _parameter_value(token: bytes | None, quoted: bytes | None) -> str | None:
    """A value: once it is unescaped it MUST be a token, quoted or not (RFC 6455 9.1)."""
    if quoted is not None:
        token = _ESCAPED.sub(rb"\1", quoted)
        if not is_token(token):
            raise ValueError("a quoted value that is no token")
    return None if token is None else token.decode("ascii")


def deflate_parameters(extension: Extension, *, in_offer: bool) -> dict[str, str | None] | None:
    """The parameters of a sound permessage-deflate (RFC 7692 7.1), or None if it is not sound:
    another name, an unknown parameter, one twice, a wrong value."""
    if extension.name != DEFLATE:
        return None
    parameters = dict(extension.parameters)
    if len(parameters) != len(extension.parameters):
        return None
    for name, value in parameters.items():
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            sound = value is None
        elif name == "server_max_window_bits":
            sound = value is not None and _WINDOW_BITS.fullmatch(value) is not None
        elif name == "client_max_window_bits":
            # Only an offer may leave the value away (7.1.2.2).
            sound = in_offer if value is None else _WINDOW_BITS.fullmatch(value) is not None
        else:
            sound = False
        if not sound:
            return None
    return parameters


def _accepts(agreed: dict[str, str | None], wanted: dict[str, str | None]) -> bool:
    """Whether an answer's parameters accept an offer's (both sound)."""
    # 7.1.1.1: who accepts this includes it.
    if "server_no_context_takeover" in wanted and "server_no_context_takeover" not in agreed:
        return False
    # 7.1.2.1: "with the same or smaller value as the offer". It may come unasked.
    limit = wanted.get("server_max_window_bits")
    if limit is not None and int(agreed.get("server_max_window_bits") or 16) > int(limit):
        return False
    # 7.1.2.2: only where the client said that it can.
    return "client_max_window_bits" not in agreed or "client_max_window_bits" in wanted


def _chosen_subprotocol(response: Response, request: Request) -> str:
    values = response.get_all(b"sec-websocket-protocol")
    if not values:
        return ""
    chosen = values[0].decode("latin-1")
    # RFC 6455 4.1: not one that was not asked for; 11.3.4: not more than one. Case counts.
    if len(values) > 1 or chosen not in offered_subprotocols(request):
        raise UpstreamError(502, "upstream chose a subprotocol that was not offered")
    return chosen


def _chosen_extension(response: Response, request: Request) -> bytes:
    try:
        chosen = parse_extensions(response.get_all(b"sec-websocket-extensions"))
    except ValueError:
        raise UpstreamError(502, "upstream's Sec-WebSocket-Extensions is malformed") from None
    if not chosen:
        return b""
    if len(chosen) != 1 or not is_deflate_answer(chosen[0], offered_extensions(request)):
        raise UpstreamError(502, "upstream chose an extension that was not offered")
    return chosen[0].text
