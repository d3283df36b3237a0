"""Messages between supervisor and worker: whole, in pieces, with sockets before them."""

import os
import socket
from collections.abc import Iterator

import pytest

from gateway.control import channel
from gateway.events import Address
from gateway.table import EndpointEntry, Listener, Route, Table, Upstream

ENTRY = EndpointEntry(url="ws://a:1", host="a", port=1)
TABLE = Table(
    listeners=(Listener(address=Address(host="127.0.0.1", port=1)),),
    routes=(Route(name="r", upstream="u"),),
    upstreams={
        "u": Upstream(name="u", scheme="ws", entries=(ENTRY,)),
        "e": Upstream(name="e", scheme="builtin", builtin="echo"),
    },
)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_lines_in_pieces_are_the_messages_that_were_sent(size: int) -> None:
    sent: list[channel.Message] = [{"do": "a", "text": "é\n"}, {"is": "b"}, {"is": "c", "id": 1}]
    data = b"".join(channel.encode(message) for message in sent)
    lines = channel.Lines()
    got: list[channel.Message] = []
    for at in range(0, len(data), size):
        got += lines.feed(data[at : at + size])
    assert got == sent


def test_what_is_no_message_is_refused() -> None:
    for data in (b"[1]\n", b"{\n", b"\xff\n"):
        with pytest.raises((ValueError, AssertionError)):
            channel.Lines().feed(data)


def test_a_table_and_its_endpoints_arrive_as_they_were() -> None:
    assert channel.unpack_table(channel.pack_table(TABLE)) == TABLE
    endpoints: channel.Endpoints = {
        "u": [(ENTRY, Address(host="10.0.0.1", port=1))],
        "e": [(EndpointEntry(url="builtin:echo"), Address(builtin="echo"))],
    }
    packed = channel.pack_endpoints(TABLE, endpoints)
    assert packed["u"] == [[0, ["10.0.0.1", 1, "", ""]]]
    (message,) = channel.Lines().feed(channel.encode({"endpoints": packed}))
    assert channel.unpack_endpoints(TABLE, message["endpoints"]) == endpoints


@pytest.fixture
def lane() -> Iterator[tuple[socket.socket, socket.socket]]:
    lines, (one, two) = channel.socket_pairs()
    for each in lines:
        each.close()
    yield one, two
    one.close()
    two.close()


def test_sockets_arrive_under_their_numbers(lane: tuple[socket.socket, socket.socket]) -> None:
    assert channel.receive_sockets(lane[1]) == {}
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as two:
        channel.send_sockets(lane[0], {3: one})
        channel.send_sockets(lane[0], {12: two})
        got = channel.receive_sockets(lane[1])
        assert list(got) == [3, 12]
        assert got[3].getsockname() == one.getsockname()
        assert got[12].getsockname() == two.getsockname()
        for each in got.values():
            assert not os.get_inheritable(each.fileno())
            each.close()


def test_many_sockets_arrive_though_nobody_reads_yet(
    lane: tuple[socket.socket, socket.socket],
) -> None:
    """More than a lane takes messages, and more than one message carries."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        channel.send_sockets(lane[0], dict.fromkeys(range(100, 700), one))
        got = channel.receive_sockets(lane[1])
        assert list(got) == list(range(100, 700))
        for each in got.values():
            assert each.getsockname() == one.getsockname()
            assert not os.get_inheritable(each.fileno())
            each.close()


def test_a_lane_that_nobody_reads_says_so(lane: tuple[socket.socket, socket.socket]) -> None:
    def fill(listening: socket.socket) -> None:
        for number in range(100_000):
            channel.send_sockets(lane[0], {number: listening})

    with socket.create_server(("127.0.0.1", 0)) as one, pytest.raises(BlockingIOError):
        fill(one)


def test_the_end_of_the_supervisor_is_no_socket(
    lane: tuple[socket.socket, socket.socket],
) -> None:
    lane[0].close()
    assert channel.receive_sockets(lane[1]) == {}
