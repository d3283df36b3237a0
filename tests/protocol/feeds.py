"""Each parser case is fed three ways: whole, byte by byte, and with bytes behind it."""

from gateway.errors import ClientError, UpstreamError
from gateway.protocol.http1 import Request, RequestReader, Response, ResponseReader

HEAD_MAX = 4096
BEHIND = b"\x81\x80behind\r\n\r\n\x00"   # never part of a head


def read_request(data: bytes, head_max: int = HEAD_MAX) -> Request:
    """The request in `data`, which is exactly one head; the same however it is fed."""
    request = RequestReader(head_max).feed(data)
    assert request is not None, "not whole"
    assert request.raw.endswith(data.removeprefix(b"\r\n"))
    assert request.rest == b""
    reader = RequestReader(head_max)
    *earlier, last = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert earlier == [None] * (len(data) - 1)
    assert last == request
    assert reader.is_empty
    followed = RequestReader(head_max).feed(data + BEHIND)
    assert followed is not None
    assert followed.rest == BEHIND
    followed.rest = b""
    assert followed == request
    return request


def refused_request(data: bytes, head_max: int = HEAD_MAX) -> ClientError:
    """The error for `data`; the same however it is fed."""
    errors = [
        _request_error([data], head_max),
        _request_error([data[at : at + 1] for at in range(len(data))], head_max),
        _request_error([data + BEHIND], head_max),
    ]
    outcomes = [(error.status, error.detail) for error in errors]
    assert outcomes == outcomes[:1] * 3
    return errors[0]


def read_response(data: bytes, head_max: int = HEAD_MAX) -> Response:
    """The answer in `data`, which is exactly one head; the same however it is fed."""
    response = ResponseReader(head_max).feed(data)
    assert response is not None, "not whole"
    reader = ResponseReader(head_max)
    *earlier, last = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert earlier == [None] * (len(data) - 1)
    assert last == response
    followed = ResponseReader(head_max).feed(data + BEHIND)
    assert followed is not None
    assert followed.rest == BEHIND
    return response


def refused_response(data: bytes, head_max: int = HEAD_MAX) -> str:
    """What is said of a wrong answer; the same however it is fed."""
    details = set()
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))], [data + BEHIND]):
        reader = ResponseReader(head_max)
        try:
            for piece in pieces:
                assert reader.feed(piece) is None, "it was read"
        except UpstreamError as error:
            assert error.status == 502
            details.add(error.detail)
        else:
            raise AssertionError("it still waits")
    assert len(details) == 1
    return details.pop()


def _request_error(pieces: list[bytes], head_max: int) -> ClientError:
    reader = RequestReader(head_max)
    try:
        for piece in pieces:
            assert reader.feed(piece) is None, "it was read"
    except ClientError as error:
        return error
    raise AssertionError("it still waits")
