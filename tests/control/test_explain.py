"""What `gateway explain` says, word for word where the words are the point."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control import config
from gateway.control.explain import explain, read_request

ROUTES = Path(__file__).parents[2] / "routes"
SERVICES = config.load(ROUTES / "services.toml")
CANARY = config.load(ROUTES / "canary.toml")
RAW = config.load(ROUTES / "raw.toml")
HASH = config.load(ROUTES / "hash.toml")


def test_a_route_in_full() -> None:
    """Winner, captures, origin, upstream, target, what holds, and why the others lost."""
    text = explain(
        SERVICES, "wss://chat.example.com/rooms/%41b/live?token=x", [], "https://www.example.com"
    )
    assert text == """\
request: /rooms/%41b/live?token=x on host chat.example.com
route: "chat" (services.toml, [[route]] 1)
path: /rooms/{room}/*
captures: room = "%41b", * = "live"
origin: "https://www.example.com" may come, by "https://example.com", "https://*.example.com"
upstream: chat, least-connections, one of:
  ws://chat-1.internal:9000
  ws://chat-2.internal:9000
target: /v2/%41b/live?token=x
Host: chat.example.com, as the client sent it

in force:
  max_message = "1MiB"
  max_frame = "off"
  max_queue = "256KiB"
  max_sessions = "off"
  max_sessions_per_client = 50
  handshakes = "off"
  connect_timeout = "1s"
  answer_timeout = "15s"
  idle_timeout = "off"
  write_timeout = "30s"
  close_timeout = "5s"
  session_timeout = "off"
  heartbeat = "30s"
  heartbeat_timeout = "20s"
  drain_code = 1001
  drain_reason = "gateway is going away"
  reload_drain = "off"

other routes:
  "chat-lobby" (services.toml, [[route]] 2): the path does not match: it wants /rooms/lobby/*
  "graphql" (services.toml, [[route]] 3): the path does not match: it wants /graphql
  "devices" (services.toml, [[route]] 4): the host does not match: it wants devices.example.com or \
*.devices.example.com
  "console" (services.toml, [[route]] 5): the host does not match: it wants console.example.com
"""


def test_the_more_specific_path_and_the_one_it_outranks() -> None:
    """The loser is told by whom."""
    text = explain(SERVICES, "ws://chat.example.com:8080/rooms/lobby/live")
    assert 'route: "chat-lobby"' in text
    assert "upstream: ws://lobby.internal:9000\n" in text
    assert '"chat" (services.toml, [[route]] 1): it matches, but is less specific' in text
    assert ': "chat-lobby" has a more specific path\n' in text
    assert "origin: passes without one, as no browser does; with one, only " in text


def test_no_route() -> None:
    """404, and every route says why not."""
    text = explain(CANARY, "/other")
    assert "request: /other on host (none)\nanswer: 404, since no route matches\n" in text
    assert text.count("the path does not match: it wants /live") == 3


def test_further_matches_and_weights() -> None:
    """A header of the command line is a field of the request."""
    text = explain(CANARY, "/live", ["X-Version:  next "])
    assert 'route: "app-next-by-field"' in text
    assert "the query does not match: it wants version=next" in text
    text = explain(CANARY, "/live", ["X-Version: old"])
    assert "a header does not match: it wants x-version: next" in text
    assert "  ws://app-stable.internal:9000, weight 95 of 100\n" in text


def test_a_host_in_a_header_goes_before_the_urls() -> None:
    """And fields match like those of a real request."""
    text = explain(
        SERVICES, "ws://127.0.0.1:8080/x", ["Host: console.example.com", "X-Role: operator"]
    )
    assert 'route: "console"' in text
    assert "Host: console.internal:7000, by send_host\n" in text


def test_the_name_in_the_hello(tmp_path: Path) -> None:
    """It is the URL's host, where the URL has TLS."""
    path = tmp_path / "routes.toml"
    path.write_text(
        '[[listener]]\naddress = "127.0.0.1:8443"\n'
        'tls = { certificates = [{ chain = "a.crt", key = "a.key" }] }\n'
        '[[route]]\nname = "named"\nsni = "a.test"\nupstream = "wss://app.test/live"\n'
        '[[route]]\nname = "any"\nupstream = "builtin:echo"\n'
    )
    table = config.load(path)
    text = explain(table, "wss://A.test:8443/x", ["Host: b.test"])
    assert 'route: "named"' in text
    assert "upstream: wss://app.test/live\ntarget: /live\n" in text
    assert "answer_timeout" in text
    text = explain(table, "ws://a.test/x")
    assert 'route: "any"' in text
    assert "the name in the TLS hello does not match: it wants a.test" in text


def test_subprotocols() -> None:
    """They are offered in one field."""
    text = explain(SERVICES, "/graphql", [], None, ["a", "graphql-transport-ws"])
    assert 'route: "graphql"' in text
    text = explain(SERVICES, "/graphql", [], None, ["a"])
    assert "the subprotocol is not offered: it wants graphql-transport-ws to be offered" in text


@pytest.mark.parametrize(
    ("origin", "verdict"),
    [
        ("https://evil.example", 'answer 403, since "https://evil.example" is none of (none)'),
        ("evil", 'answer 403, since "evil" is no origin'),
        (None, "passes without one, as no browser does; with one, only (none)"),
    ],
)
def test_origin_verdicts(origin: str | None, verdict: str) -> None:
    """What would become of the request at that step."""
    assert f"origin: {verdict}\n" in explain(RAW, "/mqtt", [], origin)


def test_two_origins_are_refused() -> None:
    """One from each option."""
    text = explain(RAW, "/vnc", ["Origin: http://127.0.0.1:8080"], "http://127.0.0.1:8080")
    assert "origin: answer 403, since there is more than one\n" in text


def test_byte_streams_and_hashes() -> None:
    """What has no target says so; a hash says by what."""
    text = explain(RAW, "/vnc")
    assert "target: none; the upstream sees only the bytes of messages\n" in text
    assert "answer_timeout" not in text
    assert "upstream: rooms, hash on path:room, one of:\n" in explain(HASH, "/rooms/a")


def test_builtin_routes() -> None:
    """Nothing is sent anywhere."""
    demo = config.load(ROUTES / "demo.toml")
    assert "upstream: builtin:echo, in the gateway itself\n" in explain(demo, "/echo")
    page = explain(demo, "ws://127.0.0.1:8080")
    assert 'route: "page"' in page
    assert 'in force:\n  write_timeout = "30s"\n  close_timeout = "5s"\n' in page


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ws://h:abc/echo", "The Host field is malformed."),
        ("http://h:99999/echo", "The Host field is malformed."),
        ("ws://[::g]/echo", "no URL"),
        ('/echo"x', "The request target is malformed."),
        ("/" + "a" * 9000, "The request line is too long."),
    ],
)
def test_what_the_gateway_refuses_before_any_route(url: str, words: str) -> None:
    """Its own reader judges, so that both cannot disagree."""
    demo = config.load(ROUTES / "demo.toml")
    try:
        text = explain(demo, url)
    except ValueError as error:
        assert words in str(error)
        return
    assert re.search(rf"answer: (400|414), before any route: {words}\n\Z", text)


@pytest.mark.parametrize(
    ("headers", "subprotocols", "answer"),
    [
        ([], ["a b"], "400: Sec-WebSocket-Protocol is malformed."),
        ([], ["a", "a"], "400: Sec-WebSocket-Protocol is malformed."),
        (["Sec-WebSocket-Version: 8"], [], "426: Only version 13 of the protocol is spoken here."),
        (["Upgrade: h2c"], [], "426: Only WebSockets are served here."),
        (["Sec-WebSocket-Key: short"], [],
         "400: There must be exactly one Sec-WebSocket-Key of 16 bytes."),
        (["Content-Length: 5"], [],
         "400, before any route: A request for an upgrade has no content."),
        (["Host: a", "Host: b"], [],
         "400, before any route: There must be exactly one Host field."),
        (["X A: b"], [], "400, before any route: A field line is malformed."),
    ],
)
def test_what_the_gateway_refuses_of_a_handshake(
    headers: list[str], subprotocols: list[str], answer: str
) -> None:
    """Behind the route it names the answer and the route."""
    demo = config.load(ROUTES / "demo.toml")
    text = explain(demo, "ws://h/echo", headers, None, subprotocols)
    assert f"\nanswer: {answer}\n" in text
    assert ('route: "echo"' in text) == ("before any route" not in answer)


def test_edits_of_fields_are_shown(tmp_path: Path) -> None:
    """What is set and what is taken away."""
    file = tmp_path / "routes.toml"
    file.write_text("""
[gateway]
listen = "127.0.0.1:0"
[[route]]
name = "a"
upstream = "ws://x"
set_fields = { X-Edge = "1", X-Zone = "b" }
remove_fields = ["Cookie", "X-Debug"]
""")
    text = explain(config.load(file), "ws://h/")
    assert "sets: X-Edge: 1\nsets: X-Zone: b\nremoves: cookie, x-debug\n" in text


def test_a_path_that_no_route_may_see() -> None:
    """The status that the client would get."""
    text = explain(SERVICES, "/a/%2e%2e/b")
    assert text.endswith("answer: 400, before any route: The path has a dot segment.\n")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("ws://h", "/"),
        ("ws://h?", "/?"),
        ("http://h//a//b", "//a//b"),
        ("//a", "//a"),
        ("/a?b?c", "/a?b?c"),
        ("wss://h:1/%7e?", "/%7e?"),
    ],
)
def test_the_target_is_what_the_url_says(url: str, target: str) -> None:
    """Nothing is normalised on the way."""
    assert read_request(url, [], None, []).target == target


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("a", []), ("ftp://h/", []), ("ws:/a", []), ("", []), ("/a b", []), ("/é", []),
        ("/a#b", []), ("ws://me@h/", []), ("ws://[::1/", []), ("/", ["X-A"]), ("/", [": x"]),
        ("/", ["X A : x"]), ("/", ["X-A: é"]),
    ],
)
def test_arguments_that_make_no_request(url: str, headers: list[str]) -> None:
    """ValueError with a sentence, for the command line to print."""
    with pytest.raises(ValueError, match=r"\w"):
        explain(SERVICES, url, headers)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(max_size=12), max_size=2),
       st.none() | st.text(max_size=12), st.lists(st.text(max_size=5), max_size=2))
def test_any_arguments_are_explained_or_refused(
    url: str, headers: list[str], origin: str | None, subprotocols: list[str]
) -> None:
    """No exception but ValueError."""
    try:
        assert explain(SERVICES, url, headers, origin, subprotocols).endswith("\n")
    except ValueError:
        return
