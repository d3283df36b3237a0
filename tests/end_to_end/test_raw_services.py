"""Real clients against real byte services: MQTT, a line protocol, a `websockify` client.

MQTT runs on Debian's `mosquitto`, on its plain TCP port, with `paho-mqtt` and npm `mqtt`; where
one of them is not installed its test is skipped and says so.
"""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from websockets.sync.client import connect as connect_sync
from websockets.typing import Subprotocol

from end_to_end.kit import Gateway, Starter, head, route
from end_to_end.wire import Upstream, Wire, echo_bytes, serving, wait_for

pytestmark = pytest.mark.forms

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def free_port() -> int:
    """A port that was free just now, for a program that cannot choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- MQTT ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The plain TCP port of a `mosquitto`."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    port = free_port()
    folder = tmp_path_factory.mktemp("mosquitto")
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stdout=log, stderr=log)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens, message=(folder / "log").read_text())
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def mqtt(start_shared: Starter, broker: int) -> Gateway:
    """A gateway before that broker."""
    return start_shared(
        head() + route("mqtt", f"tcp://127.0.0.1:{broker}", 'subprotocols = ["mqtt"]')
    )


def test_paho(mqtt: Gateway) -> None:
    """Publish and subscribe in all qualities, also more than one frame's worth."""
    received: dict[str, bytes] = {}
    everything = threading.Event()
    subscribed = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, transport="websockets")

    def on_message(_client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        received[message.topic] = bytes(message.payload)
        if len(received) == 3:
            everything.set()

    def on_subscribe(*_: Any) -> None:
        subscribed.set()

    client.on_message = on_message
    client.on_subscribe = on_subscribe
    client.ws_set_options(path="/mqtt")
    client.connect("127.0.0.1", mqtt.port)
    client.loop_start()
    try:
        client.subscribe("paho/+", qos=2)
        assert subscribed.wait(10)
        wanted = {"paho/0": b"small", "paho/1": bytes(300_000), "paho/2": b""}
        for quality, (topic, payload) in enumerate(wanted.items()):
            client.publish(topic, payload, qos=quality)
        assert everything.wait(10)
        assert received == wanted
    finally:
        client.disconnect()
        client.loop_stop()
    record = mqtt.record(route="mqtt", subprotocol="mqtt")
    assert record["status"] == 101


@pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules" / "mqtt").is_dir(),
    reason="node, or the packages of tests/end_to_end/node, are not installed",
)
def test_npm_mqtt(mqtt: Gateway) -> None:
    """The client that browsers use."""
    assert NODE
    done = subprocess.run(
        [NODE, str(FOLDER / "mqtt_client.js"), mqtt.url("/mqtt")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert sorted(seen["messages"]) == [["room/1", 5], ["room/2", 200000], ["room/3", 4]]


# --- Echo and lines ------------------------------------------------------------------------------


def lines(wire: Wire) -> None:
    """A small line protocol, as Redis has one: PING, ECHO words, QUIT."""
    wire.send(b"+HELLO\r\n")
    while True:
        verb, _, rest = wire.until(b"\r\n").strip().partition(b" ")
        if verb == b"QUIT":
            wire.send(b"+OK\r\n")
            wire.finish()
            return
        wire.send(b"+PONG\r\n" if verb == b"PING" else b"$" + rest + b"\r\n")


def test_websockify_client(start: Starter) -> None:
    """What `websockify`'s and noVNC's clients do: subprotocol `binary`, binary frames, a stream."""
    upstream = Upstream()
    with serving(upstream, echo_bytes):
        gateway = start(
            head()
            + route("vnc", upstream.url("tcp"), 'subprotocols = ["binary"]')
        )
        client = websocket.create_connection(
            gateway.url("/vnc"), subprotocols=["binary", "base64"], timeout=10
        )
        try:
            assert client.subprotocol == "binary"
            sent = bytes(range(256)) * 400
            for at in range(0, len(sent), 1000):
                client.send_binary(sent[at : at + 1000])
            got = b""
            while len(got) < len(sent):
                opcode, data = client.recv_data()
                assert opcode == websocket.ABNF.OPCODE_BINARY
                got += data
            assert got == sent
            client.send_close(1000)
            opcode, data = client.recv_data()
            assert (opcode, data) == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8")
        finally:
            client.shutdown()


def test_lines_as_text(start: Starter) -> None:
    """A terminal in a browser: text frames both ways, the server's end is 1000."""
    upstream = Upstream()
    with serving(upstream, lines):
        gateway = start(
            head()
            + route("lines", upstream.url("tcp"), 'frames = "text"', 'subprotocols = ["lines"]')
        )
        with connect_sync(gateway.url("/lines"), subprotocols=[Subprotocol("lines")]) as client:
            assert client.subprotocol == "lines"
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers
            assert client.recv() == "+HELLO\r\n"
            client.send("PING\r\n")
            assert client.recv() == "+PONG\r\n"
            client.send("ECHO größe\r\n")
            assert client.recv() == "$größe\r\n"
            client.send("QUIT\r\n")
            assert client.recv() == "+OK\r\n"
            assert list(client) == []
            assert client.close_code == 1000
