"""npm `ws` as client and as server, with the gateway between.

Needs `node` and the packages in `node/`; without them these tests are skipped and say so.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect as connect_sync
from websockets.typing import Subprotocol

from end_to_end.kit import Gateway, Starter, head, route
from end_to_end.secure import NAMES, Folder, believed, tls_head

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules" / "ws").is_dir(),
    reason="node, or the packages of tests/end_to_end/node, are not installed",
)


def node(script: str, *arguments: str) -> dict[str, Any]:
    """What a script printed."""
    assert NODE
    done = subprocess.run(
        [NODE, str(FOLDER / script), *arguments], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of an npm `ws` server."""
    assert NODE
    process = subprocess.Popen(
        [NODE, str(FOLDER / "ws_server.js")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="module", params=["ws", "wss"])
def gateway(
    request: pytest.FixtureRequest, start_shared: Starter, server: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A gateway before that server, and before its own echo; plain, and by TLS."""
    routes = route("ws", f"ws://127.0.0.1:{server}") + route("echo", "builtin:echo")
    if request.param == "ws":
        yield start_shared(head() + routes)
        return
    folder = Folder(tmp_path_factory.mktemp("certs"))
    folder.issue("server", *NAMES)
    with believed(folder):
        gateway = start_shared(tls_head() + folder.listener("server") + routes)
        gateway.scheme = "wss"
        yield gateway


@pytest.mark.parametrize("deflate", ["true", "false"])
@pytest.mark.parametrize("path", ["/ws", "/echo"])
def test_npm_client(gateway: Gateway, path: str, deflate: str) -> None:
    """Text, fragments, an empty message, 3 MiB, a ping and a Close with its reason."""
    seen = node("ws_client.js", gateway.url(path), deflate)
    assert "error" not in seen
    assert seen["texts"] == ["text, \U0001f30d", "in three pieces"]
    assert seen["binaries"] == [0, 3 * 1024 * 1024] and seen["same"]
    assert seen["pongs"] == ["are you there"]
    assert seen["close"][0] == 4321
    if path == "/ws":
        assert seen["extensions"] == ("permessage-deflate" if deflate == "true" else "")


def test_npm_server(gateway: Gateway) -> None:
    """A Python client and an npm server: deflate, subprotocol, close code."""
    protocols = [Subprotocol("first"), Subprotocol("second")]
    with connect_sync(gateway.url(), subprotocols=protocols) as client:
        assert client.subprotocol == "second"
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        client.send("again " * 10000)
        assert client.recv() == "again " * 10000
        client.send("bye")
        with pytest.raises(ConnectionClosedError):
            client.recv()
        assert (client.close_code, client.close_reason) == (4002, "bye")
