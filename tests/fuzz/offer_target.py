"""The target for the opening handshake: extensions and subprotocols, offered and chosen.

An input is up to six lines: two values of the client's Sec-WebSocket-Extensions, one of its
Sec-WebSocket-Protocol, then the same of the upstream's answer in the order extensions,
subprotocol, Upgrade. An empty line is a field that was not sent. Laws:

- the request is refused with 400, the answer with 502, and nothing else is raised;
- only permessage-deflate is offered on, and only what was offered can be agreed on;
- the answer to the client is a sound 101, and says what the upstream agreed to;
- a list that is accepted here is the same list for a parser that was not written here.
"""

from websockets.exceptions import InvalidHeader
from websockets.headers import parse_extension, parse_subprotocol

from gateway.errors import ClientError, UpstreamError
from gateway.protocol import websocket
from gateway.protocol.http1 import Request, RequestReader, Response, ResponseReader

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HEAD_MAX = 16 * 1024
LINES = 6


def _lines(*fields: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields if field[1]) + b"\r\n"


def _request(extensions: list[bytes], protocols: bytes) -> Request | None:
    """The client's request with these fields; None where they are not fields at all."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + _lines(
        (b"Sec-WebSocket-Key", KEY),
        (b"Sec-WebSocket-Version", b"13"),
        *((b"Sec-WebSocket-Extensions", value) for value in extensions),
        (b"Sec-WebSocket-Protocol", protocols),
    )
    try:
        return RequestReader(HEAD_MAX).feed(head)
    except ClientError:
        return None


def _response(extensions: bytes, protocol: bytes, upgrade: bytes) -> Response | None:
    """The upstream's answer with these fields, else right; None where they are no fields."""
    head = b"HTTP/1.1 101 \r\nConnection: Upgrade\r\n" + _lines(
        (b"Upgrade", upgrade or b"websocket"),
        (b"Sec-WebSocket-Accept", websocket.accept_key(KEY)),
        (b"Sec-WebSocket-Extensions", extensions),
        (b"Sec-WebSocket-Protocol", protocol),
    )
    try:
        return ResponseReader(HEAD_MAX).feed(head)
    except UpstreamError:
        return None


def fuzz_offers(data: bytes) -> None:
    """One opening handshake."""
    lines = [*data.split(b"\n", LINES - 1), *[b""] * LINES][:LINES]
    request = _request(lines[:2], lines[2])
    if request is None:
        return
    try:
        websocket.check_offers(request)
    except ClientError as error:
        assert error.status == 400
        return
    _check_offers(request)
    response = _response(*lines[3:])
    if response is None:
        return
    try:
        answer = websocket.check_answer(response, KEY, request)
    except UpstreamError as error:
        assert error.status == 502
        return
    _check_answer(request, answer)


def _check_offers(request: Request) -> None:
    """What was accepted is what another parser finds in it."""
    offers = websocket.offered_extensions(request)
    if offers:                         # an empty list is none here, and refused there
        values = request.get_all(b"sec-websocket-extensions")
        others = parse_extension(b", ".join(values).decode("latin-1"))
        ours = [(offer.name, list(offer.parameters)) for offer in offers]
        assert ours == others
    protocols = websocket.offered_subprotocols(request)
    if protocols:
        values = request.get_all(b"sec-websocket-protocol")
        assert protocols == parse_subprotocol(b", ".join(values).decode("latin-1"))
    passed = websocket.passed_extensions(request)
    if passed:
        again = websocket.parse_extensions([passed])
        assert again == [offer for offer in offers if offer.name == websocket.DEFLATE]
    else:
        assert all(offer.name != websocket.DEFLATE for offer in offers)


def _check_answer(request: Request, answer: websocket.Answer) -> None:
    """What was agreed on was offered; the client's 101 says it and nothing else."""
    if answer.subprotocol:
        assert answer.subprotocol in websocket.offered_subprotocols(request)
    assert answer.deflate is bool(answer.extensions)
    if answer.extensions:
        assert websocket.passed_extensions(request)
        try:
            ((name, _),) = parse_extension(answer.extensions.decode("ascii"))
        except InvalidHeader as error:
            raise AssertionError(answer.extensions) from error
        assert name == websocket.DEFLATE
    head = ResponseReader(HEAD_MAX).feed(websocket.client_answer(request, answer))
    assert head is not None
    assert head.status == 101
    assert not head.rest
    expected = [answer.extensions] if answer.extensions else []
    assert head.get_all(b"sec-websocket-extensions") == expected
    again = websocket.check_answer(head, KEY, request)
    assert (again.subprotocol, again.extensions) == (answer.subprotocol, answer.extensions)
