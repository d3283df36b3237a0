"""The answer of an upstream that refused an upgrade, on its way to the client, by h11.

Laws of this file:

- Two h11 connections back to back: one is the client that the upstream answers, the other the
  server that the client hears. Heads come from `http1`, judged already.
- Nothing is collected: what a piece of the upstream gives leaves with the call that brought it.
  Back-pressure is the caller's: it stops feeding. n bytes cost O(n).
- An answer that was cut must not look whole: UpstreamError is raised, and the caller cuts too.
"""

import h11

from gateway.errors import UpstreamError
from gateway.protocol.http1 import Response, closing_fields, end_to_end_fields

CHUNK_HEAD_MAX = 16 * 1024    # of a chunk's header or the trailers; what h11 keeps at most


class PassOn:
    """One answer that is passed on.

    `feed` it with `response.rest` first, though it may be empty: that gives the client's head.
    Then with what arrives, until `done`; at the upstream's FIN call `finish`. Each gives what the
    client is sent. The client's connection closes afterwards, and is told so.

    Status, reason and fields pass, those of one connection aside. Content with a length keeps it;
    other content, also such as only the upstream's FIN ends, becomes chunked. Trailers are
    dropped, as RFC 9110 6.5.1 allows.
    """

    def __init__(self, response: Response) -> None:
        """`response` is a final answer. Raises UpstreamError if h11 cannot read it."""
        assert response.status >= 200, response.status
        self.done = False
        self._upstream = h11.Connection(h11.CLIENT, max_incomplete_event_size=CHUNK_HEAD_MAX)
        self._client = h11.Connection(h11.SERVER)
        # What was asked decides how an answer is read (RFC 9112 6.3): a GET, as all upgrades are.
        asked = h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"upstream")])
        self._client.receive_data(self._upstream.send(asked))
        self._upstream.send(h11.EndOfMessage())
        for kind in (h11.Request, h11.EndOfMessage):
            event = self._client.next_event()
            assert type(event) is kind, event
        self._upstream.receive_data(response.raw)
        event = self._next_event()
        assert type(event) is h11.Response, event
        self._head = self._client.send(h11.Response(
            status_code=response.status, reason=response.reason, headers=_passed_fields(response)
        ))

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the upstream. What comes after the answer's end is thrown away. Raises
        UpstreamError for broken chunks."""
        if self.done:
            return b""
        if data:
            self._upstream.receive_data(data)
        return self._pump()

    def finish(self) -> bytes:
        """The upstream's FIN. Raises UpstreamError if it came before the answer's end."""
        if self.done:
            return b""
        self._upstream.receive_data(b"")
        return self._pump()

    def _pump(self) -> bytes:
        parts, self._head = [self._head], b""
        while not self.done:
            event = self._next_event()
            if type(event) is h11.Data:
                parts.append(self._client.send(h11.Data(data=event.data)))
            elif type(event) is h11.EndOfMessage:
                parts.append(self._client.send(h11.EndOfMessage()))
                self.done = True
            else:
                assert event is h11.NEED_DATA, event
                break
        return b"".join(parts)

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._upstream.next_event()
        except h11.RemoteProtocolError as error:
            raise UpstreamError(502, f"upstream's answer: {error}") from None


def _passed_fields(response: Response) -> list[tuple[bytes, bytes]]:
    fields = end_to_end_fields(response)
    if response.status == 426:
        # RFC 9110 15.5.22: a 426 must say to what. The upstream was asked for this, by us.
        fields += [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
    return closing_fields(fields)
