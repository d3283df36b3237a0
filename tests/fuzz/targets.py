"""What is fuzzed: each target takes bytes, feeds them to one part, and asserts that part's laws.

A target raises nothing for any input. Whatever comes out of it is a finding: an `AssertionError`
of a law here, or an exception that the part has not declared. The same targets are driven by
`hypothesis` (`test_fuzz.py`), by `atheris` (`run.py`) and by the corpus (`test_corpus.py`).

Where bytes are cut is derived from the input itself, so that an input alone replays a finding.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h11

from gateway.errors import ClientError, UpstreamError
from gateway.protocol.http1 import Head, Request, RequestReader, Response, ResponseReader

from .core_target import fuzz_core
from .frame_target import fuzz_frames
from .offer_target import fuzz_offers
from .relay_target import fuzz_relay
from .table_target import fuzz_table

HEAD_MAX = 1024
STATUSES = {400, 414, 431, 501, 505}
CORPUS = Path(__file__).resolve().parent / "corpus"


def cuts_of(data: bytes) -> Iterator[list[bytes]]:
    """Some ways to cut `data`: byte by byte, and twice at random places that depend on it alone."""
    yield [data[at : at + 1] for at in range(len(data))]
    chance = random.Random(zlib.crc32(data))
    for _ in range(2):
        places = sorted(chance.sample(range(len(data) + 1), min(len(data) + 1, 5)))
        yield [
            data[begin:end]
            for begin, end in zip([0, *places], [*places, len(data)], strict=True)
            if end > begin
        ]


# --- Heads ------------------------------------------------------------------------------------

Outcome = tuple[str, object]


def _outcome(reader: RequestReader | ResponseReader, pieces: list[bytes]) -> Outcome:
    """What comes of feeding these pieces: the first head with all behind it, a refusal, a wait."""
    try:
        for number, piece in enumerate(pieces):
            head = reader.feed(piece)
            if head is not None:
                behind = head.rest + b"".join(pieces[number + 1 :])
                return "head", (_told(head), behind)
    except ClientError as error:
        assert isinstance(reader, RequestReader)
        assert error.status in STATUSES
        return "refused", (error.status, error.detail)
    except UpstreamError as error:
        assert isinstance(reader, ResponseReader)
        assert error.status == 502
        return "refused", error.detail
    return "waits", None


def _told(head: Head) -> object:
    """All that a head says, but for the bytes behind it."""
    common = (head.fields, head.connection, head.content_length, head.chunked, head.raw)
    if isinstance(head, Request):
        return common, head.method, head.target, head.path, head.query, head.version, head.host
    assert isinstance(head, Response)
    return common, head.status, head.reason, head.version


def fuzz_request(data: bytes) -> None:
    """A client's bytes: one outcome however they are cut, and never more lax than h11."""
    whole = _outcome(RequestReader(HEAD_MAX), [data] if data else [])
    for pieces in cuts_of(data):
        cut = _outcome(RequestReader(HEAD_MAX), pieces)
        assert cut == whole, f"whole {whole}, cut {cut}"
    if whole[0] == "head":
        reader = RequestReader(HEAD_MAX)
        head = reader.feed(data)
        assert head is not None
        _check_head(head, data)
        assert len(head.raw) <= HEAD_MAX
        assert head.path.startswith("/")
        assert reader.is_empty
        _check_with_h11(head)


def fuzz_response(data: bytes) -> None:
    """An upstream's bytes: the same, also for the heads behind interim ones."""
    rest = data
    while rest:
        whole = _outcome(ResponseReader(HEAD_MAX), [rest])
        for pieces in cuts_of(rest):
            cut = _outcome(ResponseReader(HEAD_MAX), pieces)
            assert cut == whole, f"whole {whole}, cut {cut}"
        if whole[0] != "head":
            return
        head = ResponseReader(HEAD_MAX).feed(rest)
        assert head is not None
        _check_head(head, rest)
        assert 100 <= head.status <= 599
        rest = head.rest


def _check_head(head: Head, data: bytes) -> None:
    """Nothing is lost or invented between the head and what is behind it."""
    assert data.removeprefix(b"\r\n").endswith(head.raw + head.rest)
    assert len(data) - len(head.raw + head.rest) in (0, 2)
    assert head.raw.endswith(b"\r\n\r\n")
    for name, value in head.fields:
        assert value == value.strip(b" \t")
        assert not set(name + value) & set(b"\r\n\x00")
        assert value in head.get_all(name.lower())
    assert not (head.chunked and head.content_length is not None)


def _check_with_h11(head: Request) -> None:
    """What is taken for a head here, h11 takes for the same head."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX * 2)
    server.receive_data(head.raw)
    event = server.next_event()
    assert isinstance(event, h11.Request), event
    assert event.method == head.method
    assert event.target == head.target
    # Both lists in order; h11 gives the names in lower case and one Content-Length as one.
    ours = [(name.lower(), value) for name, value in head.fields]
    assert list(event.headers) == ours


Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "request": fuzz_request,
    "response": fuzz_response,
    "offers": fuzz_offers,
    "frames": fuzz_frames,
    "relay": fuzz_relay,
    "core": fuzz_core,
    "table": fuzz_table,
}


def corpus_of(name: str) -> list[Path]:
    """The kept inputs of a target, in order of their names."""
    return sorted((CORPUS / name).iterdir())
