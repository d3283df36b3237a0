"""Clients and servers that others wrote, with the gateway between them."""

import asyncio
import hashlib
import os
import random
import ssl
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import pytest
import websocket
import websockets
from websockets.asyncio.client import connect as connect_async
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from end_to_end.kit import Gateway, Starter, head, route
from end_to_end.secure import NAMES, Folder, believed, in_tls

pytestmark = pytest.mark.forms

MEBIBYTE = 1024 * 1024
SIZES = [0, 1, 125, 126, 127, 65535, 65536, 70000, MEBIBYTE, 10 * MEBIBYTE]


def handle(connection: ServerConnection) -> None:
    """Echo, and some words that make it do something else."""
    for message in connection:
        if message == "fragments":
            connection.send(["one ", "two ", "", "three"])
        elif isinstance(message, str) and message.startswith("close "):
            connection.close(int(message.split()[1]), "as you wish")
        elif message == "protocol":
            connection.send(str(connection.subprotocol))
        elif message == "ping":
            connection.send(str(connection.ping(b"from the server").wait(10)))
        elif message == "hash":
            digest = hashlib.sha256()
            for part in connection.recv_streaming():
                digest.update(part if isinstance(part, bytes) else part.encode())
            connection.send(digest.hexdigest())
        else:
            connection.send(message)


def choose(_: ServerConnection, offers: Sequence[Subprotocol]) -> Subprotocol | None:
    """The newest that is offered, or none."""
    known = (Subprotocol("chat.v2"), Subprotocol("chat.v1"))
    return next((one for one in known if one in offers), None)


def connect_sync(url: str, **named: Any) -> ClientConnection:
    """A client of `websockets` in threads. Two of them use one SSLSocket at once, for which
    Python's `ssl` is not made: a ticket that comes behind the handshake, as in TLS 1.3, may keep
    what is sent meanwhile. TLS 1.2 has it within."""
    if url.startswith("wss:"):
        named["ssl"] = context = ssl.create_default_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return connect(url, **named)


@pytest.fixture(scope="module", params=["plain", "tls"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Folder | None]:
    """Certificates, where all is to be in TLS; whoever asks the system trusts them meanwhile."""
    if request.param == "plain":
        yield None
        return
    made = Folder(tmp_path_factory.mktemp("certs"))
    made.issue("server", *NAMES)
    with believed(made):
        yield made


@pytest.fixture(scope="module")
def server(folder: Folder | None) -> Iterator[Server]:
    """A `websockets` server."""
    with serve(
        handle,
        "127.0.0.1",
        0,
        max_size=None,
        ping_interval=None,
        select_subprotocol=choose,
        ssl=folder.server("server") if folder else None,
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def gateway(start_shared: Starter, server: Server, folder: Folder | None) -> Gateway:
    """A gateway before that server, and before its own echo."""
    port = server.socket.getsockname()[1]
    echo = route("echo", "builtin:echo")
    if folder is None:
        return start_shared(head() + route("ws", f"ws://127.0.0.1:{port}") + echo)
    gateway = start_shared(
        in_tls(folder, f"wss://127.0.0.1:{port}", route("ws", "service"), echo)
    )
    gateway.scheme = "wss"
    return gateway


@pytest.fixture(params=["/ws", "/echo"])
def url(request: pytest.FixtureRequest, gateway: Gateway) -> str:
    """A URL that echoes: through to the server, and the gateway's own echo."""
    return gateway.url(request.param)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_binary_messages_come_back_whole(url: str, size: int, compression: str | None) -> None:
    """Every form of the length, with and without permessage-deflate.

    The gateway's own echo answers while it hears, so that who only sends is stalled in the end.
    """
    message = random.Random(size).randbytes(size)

    async def talk() -> None:
        # No pings: they would wake up a stream that stalled.
        async with connect_async(
            url, compression=compression, max_size=None, ping_interval=None
        ) as client, asyncio.timeout(30):
            sending = asyncio.create_task(client.send(message))
            assert await client.recv() == message
            await sending

    asyncio.run(talk())


@pytest.mark.parametrize("size", [*SIZES[:-1], 3 * MEBIBYTE])
def test_a_client_in_threads(gateway: Gateway, size: int) -> None:
    """The same server, and a client that does not read while it sends."""
    message = random.Random(size).randbytes(size)
    with connect_sync(gateway.url(), max_size=None) as client:
        client.send(message)
        assert client.recv() == message


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_text_comes_back_as_text(url: str, compression: str | None) -> None:
    """Text stays text, to the last character outside the basic plane."""
    message = "κόσμε \U0001f30d " * 5000
    with connect_sync(url, compression=compression) as client:
        client.send(message)
        assert client.recv() == message


def test_fragments_pass_both_ways(gateway: Gateway) -> None:
    """A message in fragments stays one message, and its fragments stay what they were."""
    with connect_sync(gateway.url()) as client:
        client.send(["a", "", "b" * 70000, "c"])
        assert client.recv() == "a" + "b" * 70000 + "c"
        client.send("fragments")
        assert list(client.recv_streaming()) == ["one ", "two ", "", "three", ""]


def test_deflate_is_negotiated_end_to_end(gateway: Gateway) -> None:
    """The server's choice of parameters comes back to the client, and holds."""
    offer = ClientPerMessageDeflateFactory(
        server_no_context_takeover=True, client_max_window_bits=11
    )
    with connect_sync(gateway.url(), compression=None, extensions=[offer]) as client:
        assert client.response is not None
        chosen = client.response.headers["Sec-WebSocket-Extensions"]
        assert "permessage-deflate" in chosen and "server_no_context_takeover" in chosen
        for _ in range(3):
            client.send("again and again " * 1000)
            assert client.recv() == "again and again " * 1000


def test_subprotocol_is_the_servers_choice(gateway: Gateway) -> None:
    """The offers go up, and the choice comes down."""
    with connect_sync(
        gateway.url(), subprotocols=[Subprotocol("other"), Subprotocol("chat.v1")]
    ) as client:
        assert client.subprotocol == "chat.v1"
        client.send("protocol")
        assert client.recv() == "chat.v1"


def test_pings_pass_both_ways(gateway: Gateway) -> None:
    """A ping of either side is answered by the other."""
    with connect_sync(gateway.url()) as client:
        assert client.ping(b"from the client").wait(10)
        client.send("ping")
        assert client.recv() == "True"


CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]


@pytest.mark.parametrize("code", [code for code in CODES if code != 1010])
def test_close_code_of_the_server_arrives(gateway: Gateway, code: int) -> None:
    """The client sees the server's code and reason."""
    with connect_sync(gateway.url()) as client:
        client.send(f"close {code}")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "as you wish")


@pytest.mark.parametrize("code", CODES)
def test_close_code_of_the_client_is_answered(url: str, code: int) -> None:
    """The server's answer to a Close comes back with the code."""
    with connect_sync(url) as client:
        client.close(code, "enough")
    assert client.close_code == code or (code == 1010 and client.close_code)


def test_two_hundred_at_once(url: str) -> None:
    """Many sessions at the same time, each gets its own messages, in order."""

    async def one(number: int) -> None:
        async with connect_async(url, compression=None, open_timeout=60) as client:
            for turn in range(5):
                await client.send(f"{number}.{turn}")
                await client.send(bytes([turn]) * number)
            for turn in range(5):
                assert await client.recv() == f"{number}.{turn}"
                assert await client.recv() == bytes([turn]) * number

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(one(number))

    asyncio.run(all_of_them())


def test_streams_both_ways_at_once_keep_their_order(url: str) -> None:
    """Sending and receiving at once, sizes at random, everything comes in order and whole."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    sizes = [random.Random(seed + turn).choice([10, 200, 4096, 100_000]) for turn in range(200)]

    def message(turn: int) -> bytes:
        return turn.to_bytes(4, "big") + random.Random(seed ^ turn).randbytes(sizes[turn])

    async def stream() -> None:
        async with connect_async(url, compression=None, max_size=None) as client:

            async def send() -> None:
                for turn in range(len(sizes)):
                    await client.send(message(turn))

            sending = asyncio.create_task(send())
            for turn in range(len(sizes)):
                assert await client.recv() == message(turn), turn
            await sending

    asyncio.run(stream())


def test_websocket_client(url: str) -> None:
    """The `websocket-client` package."""
    client = websocket.create_connection(url, timeout=10)
    try:
        client.send("text")
        assert client.recv() == "text"
        big = os.urandom(3 * MEBIBYTE)
        sender = threading.Thread(target=client.send_binary, args=(big,))
        sender.start()
        assert client.recv() == big
        sender.join()
        client.ping("hello")
        opcode, payload = client.recv_data(control_frame=True)
        assert (opcode, payload) == (websocket.ABNF.OPCODE_PONG, b"hello")
        client.send_close(4000, b"done")
        opcode, payload = client.recv_data()
        assert (opcode, payload[:2]) == (websocket.ABNF.OPCODE_CLOSE, (4000).to_bytes(2, "big"))
    finally:
        client.shutdown()


@pytest.mark.parametrize("compress", [0, 15])
def test_aiohttp(url: str, compress: int, folder: Folder | None) -> None:
    """The client of `aiohttp`, which asks the system once, when it is loaded."""

    async def talk() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                url, compress=compress, max_msg_size=0, ssl=folder.client() if folder else True
            ) as client,
        ):
            await client.send_str("text")
            assert await client.receive_str() == "text"
            big = os.urandom(3 * MEBIBYTE)
            await client.send_bytes(big)
            assert await client.receive_bytes() == big
            assert await client.close(code=4001, message=b"done")
            assert client.close_code == 4001
        # aiohttp's close returns before its transports are closed (its docs: graceful shutdown).
        watched = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            while len(watched) > 1:  # noqa: ASYNC110 - no event tells; the loop's own pipe stays
                await asyncio.sleep(0.01)

    asyncio.run(talk())


def test_two_clients_do_not_hear_each_other(url: str) -> None:
    """Sessions of one route are apart."""
    with connect_sync(url) as first, connect_sync(url) as second:
        first.send("first")
        second.send("second")
        assert second.recv() == "second"
        assert first.recv() == "first"
        first.close()
        second.send("still here")
        assert second.recv() == "still here"


def test_the_record_of_a_session(gateway: Gateway) -> None:
    """One record for each session, with what passed."""
    with connect_sync(gateway.url("/ws?secret=1"), compression=None) as client:
        client.send("hello")
        assert client.recv() == "hello"
        client.close(CloseCode.NORMAL_CLOSURE)
    record = gateway.record(path="/ws", status=101)
    assert record["route"] == "ws"
    assert "secret" not in "\n".join(gateway.out.lines)


