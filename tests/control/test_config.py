"""What a route table resolves to: values, defaults, files, the way back to text, and its cost."""

import time
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from gateway.control import config, config_schema
from gateway.control.config_routes import BECOMES
from gateway.errors import TableErrors
from gateway.events import Address
from gateway.table import (
    CertificateFiles,
    EndpointEntry,
    GatewaySettings,
    Listener,
    ListenerTls,
    Origin,
    Route,
    Table,
    Upstream,
    UpstreamTls,
)

ROUTES = Path(__file__).parents[2] / "routes"
HEAD = '[gateway]\nlisten = ["127.0.0.1:0"]\n'


def written(folder: Path, text: str) -> Path:
    """A file with this table."""
    file = folder / "routes.toml"
    file.write_text(text)
    return file


def one_route(folder: Path, keys: str, before: str = "") -> Route:
    """The only route of a table, with these keys."""
    text = f'{HEAD}{before}\n[[route]]\nname = "one"\n{keys}\n'
    return config.load(written(folder, text)).routes[0]


# --- Examples and defaults ---


@pytest.mark.parametrize("file", sorted(ROUTES.glob("*.toml")), ids=lambda file: file.stem)
def test_examples_load_without_a_warning(file: Path) -> None:
    """Every example is right, and what `gateway check` prints of it is the same table."""
    table, warnings = config.check(file)
    assert not warnings
    assert table.routes


def test_a_drain_of_no_time_is_printed_as_it_may_be_written(tmp_path: Path) -> None:
    """It is a time, and never off."""
    text = HEAD + 'drain = "0s"\n[[route]]\nname = "a"\nupstream = "ws://x"\n'
    table = config.load(written(tmp_path, text))
    assert table.gateway.drain == 0
    assert 'drain = "0s"\n' in config.render(table)
    assert config.load(written(tmp_path, config.render(table))) == table


def test_the_reason_of_a_drain_is_the_one_that_is_printed(tmp_path: Path) -> None:
    """By default there is one; an empty one is none."""
    ws = 'upstream = "ws://x"\n'
    assert one_route(tmp_path, ws).drain_reason == "gateway is going away"
    assert one_route(tmp_path, ws + 'drain_reason = ""').drain_reason == ""


def test_addresses_that_do_not_overlap(tmp_path: Path) -> None:
    """Other ports, port 0 (a new one each time), and the other family's are apart."""
    text = """
[gateway]
listen = ["0.0.0.0:80", "[::]:80", "127.0.0.1:81", "[::1]:82", "0.0.0.0:0", "127.0.0.1:0"]
[[route]]
name = "a"
upstream = "ws://x"
"""
    assert len(config.load(written(tmp_path, text)).listeners) == 6


def test_the_demo_is_what_the_readme_says() -> None:
    """The demo listens on loopback and has the echo and the page."""
    table = config.load(ROUTES / "demo.toml")
    assert [str(one.address) for one in table.listeners] == ["127.0.0.1:8080"]
    builtins = {route.path: table.upstreams[route.upstream].builtin for route in table.routes}
    assert builtins == {"/echo": "echo", "/": "page"}


def test_absent_keys_leave_the_defaults_of_the_table(tmp_path: Path) -> None:
    """A smallest table has the defaults of `gateway/table.py` and nothing else."""
    table = config.load(written(tmp_path, HEAD + '[[route]]\nname = "a"\nupstream = "ws://x"\n'))
    assert table == Table(
        gateway=GatewaySettings(),
        listeners=(Listener(address=Address(host="127.0.0.1", port=0)),),
        routes=(Route(name="a", upstream="ws://x"),),
        upstreams={
            "ws://x": Upstream(
                name="ws://x",
                scheme="ws",
                entries=(EndpointEntry(url="ws://x", host="x", port=80),),
            )
        },
    )
    assert table.routes[0].place == "routes.toml, [[route]] 1"


def test_every_key_has_a_field_and_every_field_a_key() -> None:
    """The schema and the resolved words cannot drift apart. What TLS files hold is no key."""

    def names(of: Any) -> set[str]:
        return {field.name for field in fields(of)} - {"secure"}

    route = {BECOMES.get(key, key) for key in config_schema.ROUTE.keys}
    assert route == names(Route) - {"place"}
    assert set(config_schema.LISTENER.keys) == names(Listener)
    assert set(config_schema.GATEWAY.keys) - {"listen"} == names(GatewaySettings)
    assert set(config_schema.UPSTREAM.keys) - {"endpoints"} <= names(Upstream)
    assert set(config_schema.LISTENER_TLS.keys) == names(ListenerTls)
    assert set(config_schema.UPSTREAM_TLS.keys) == names(UpstreamTls)


def test_tls_in_full(tmp_path: Path) -> None:
    """Files are named, none is read; names are absolute; and it is printed as it was."""
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "routes.toml"
    path.write_text("""
[[listener]]
address = "127.0.0.1:8443"
tls = { certificates = [
    { chain = "a.crt", key = "/k/a.key" },
    { chain = "../b.crt", key = "b.key" },
], profile = "modern", client_certificates = "request", client_ca = "ca.crt" }

[[listener]]
address = "127.0.0.1:80"
redirect = "https:8443"

[[route]]
name = "chat"
sni = ["A.example.", "*.b.example"]
upstream = "app"

[[route]]
name = "raw"
path = "/raw"
upstream = "tls://App.example:993"

[upstream.app]
endpoints = ["wss://app.example", "wss://[::1]:444"]
tls.ca = "inner.crt"
tls.server_name = "App.Inner."
tls.certificate = { chain = "o.crt", key = "o.key" }
""")
    table, warnings = config.check(path)
    assert warnings == []
    tls, redirects = table.listeners
    assert tls.tls == ListenerTls(
        certificates=(
            CertificateFiles(chain=f"{folder}/a.crt", key="/k/a.key"),
            CertificateFiles(chain=f"{folder}/../b.crt", key=f"{folder}/b.key"),
        ),
        profile="modern", client_certificates="request", client_ca=f"{folder}/ca.crt",
    )
    assert tls.secure is None
    assert (redirects.redirect, redirects.tls) == (8443, None)
    assert table.routes[0].sni == ("a.example", "*.b.example")
    app, raw = table.upstreams["app"], table.upstreams["tls://App.example:993"]
    assert (app.scheme, app.kind, [one.port for one in app.entries]) == ("wss", "ws", [443, 444])
    assert app.tls == UpstreamTls(
        ca=f"{folder}/inner.crt", server_name="app.inner",
        certificate=CertificateFiles(chain=f"{folder}/o.crt", key=f"{folder}/o.key"),
    )
    assert (raw.kind, raw.tls) == ("tcp", UpstreamTls())
    path.write_text(config.render(table))
    assert config.load(path) == table


def test_an_upstream_that_anybody_could_be_is_warned_of(tmp_path: Path) -> None:
    """It is right, and may be a slip."""
    path = tmp_path / "routes.toml"
    path.write_text(HEAD + '[[route]]\nname = "a"\nupstream = "app"\n[upstream.app]\n'
                    'endpoints = ["wss://app.example"]\ntls = { verify = false }\n')
    _, warnings = config.check(path)
    assert warnings == [
        "[upstream.app], tls: verify is false, so that anybody could be this server"
    ]


# --- Values ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1ms", 0.001), ("500ms", 0.5), ("5s", 5.0), ("2m", 120.0), ("8760h", 31.536e6)],
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    """Durations become seconds."""
    assert one_route(tmp_path, f'upstream = "ws://x"\nclose_timeout = "{text}"').close_timeout \
        == seconds


@pytest.mark.parametrize(
    ("text", "octets"),
    [("512B", 512), ("64KiB", 65536), ("1MiB", 2**20), ("2GiB", 2**31), ("off", 0)],
)
def test_sizes(tmp_path: Path, text: str, octets: int) -> None:
    """Sizes become bytes."""
    assert one_route(tmp_path, f'upstream = "ws://x"\nmax_message = "{text}"').max_message == octets


@pytest.mark.parametrize(
    ("text", "times"), [("500/s", 500.0), ("30/m", 0.5), ("1/m", 1 / 60), ("off", 0.0)],
)
def test_rates(tmp_path: Path, text: str, times: float) -> None:
    """Rates become times a second."""
    assert one_route(tmp_path, f'upstream = "ws://x"\nhandshakes = "{text}"').handshakes == times


def test_off_is_zero(tmp_path: Path) -> None:
    """Everything that may be off is 0 then."""
    keys = ("max_frame", "max_sessions", "max_sessions_per_client", "handshakes",
            "write_timeout", "heartbeat", "idle_timeout", "session_timeout")
    route = one_route(
        tmp_path, 'upstream = "ws://x"\n' + "\n".join(f'{key} = "off"' for key in keys)
    )
    assert all(getattr(route, key) == 0 for key in keys)


def test_hosts_and_origins_are_kept_as_they_are_compared(tmp_path: Path) -> None:
    """Lower case, no final dot, default ports filled in, IPv6 in its short form."""
    route = one_route(
        tmp_path,
        'upstream = "ws://x"\n'
        'host = ["*.Example.COM.", "[0:0::1]", "10.0.0.1"]\n'
        'origins = ["HTTPS://Example.com", "http://*.a.example:81", "null", "app://local", '
        '"http://[::0:1]"]',
    )
    assert route.hosts == ("*.example.com", "[::1]", "10.0.0.1")
    assert route.origins == (
        Origin(scheme="https", host="example.com", port=443),
        Origin(scheme="http", host="*.a.example", port=81),
        Origin(null=True),
        Origin(scheme="app", host="local"),
        Origin(scheme="http", host="[::1]", port=80),
    )


def test_an_empty_list_of_origins_lets_no_browser_in(tmp_path: Path) -> None:
    """`[]` is not the same as leaving it out."""
    assert one_route(tmp_path, 'upstream = "ws://x"\norigins = []').origins == ()
    assert one_route(tmp_path, 'upstream = "ws://x"').origins is None


@pytest.mark.parametrize(
    ("url", "scheme", "entry", "path"),
    [
        ("ws://Example.com", "ws", {"host": "example.com", "port": 80}, ""),
        ("ws://a.example:81/", "ws", {"host": "a.example", "port": 81}, "/"),
        ("ws://[::1]:9000/live", "ws", {"host": "::1", "port": 9000}, "/live"),
        ("ws://a/b//c/%2F", "ws", {"host": "a", "port": 80}, "/b//c/%2F"),
        ("tcp://10.0.0.9:5900", "tcp", {"host": "10.0.0.9", "port": 5900}, ""),
        ("ws+unix:/run/a.sock", "ws", {"unix": "/run/a.sock"}, ""),
        ("ws+unix:/run/a.sock:/live", "ws", {"unix": "/run/a.sock"}, "/live"),
        ("tcp+unix:/run/a.sock", "tcp", {"unix": "/run/a.sock"}, ""),
        ("builtin:echo", "builtin", {}, ""),
    ],
)
def test_upstream_urls(
    tmp_path: Path, url: str, scheme: str, entry: dict[str, Any], path: str
) -> None:
    """URLs are taken apart; a URL in a route is an upstream of its own."""
    table = config.load(written(tmp_path, f'{HEAD}[[route]]\nname = "a"\nupstream = "{url}"\n'))
    upstream = table.upstreams[table.routes[0].upstream]
    assert upstream.scheme == scheme
    assert upstream.path == path
    assert upstream.entries == (EndpointEntry(url=url, **entry),)


def test_file_names_are_relative_to_the_tables_folder(tmp_path: Path) -> None:
    """Sockets of listeners and upstreams alike."""
    text = ('[gateway]\nlisten = "unix:run/gateway.sock"\n'
            '[[route]]\nname = "a"\nupstream = "ws+unix:run/app.sock:/live"\n')
    table = config.load(written(tmp_path, text))
    assert table.listeners[0].address == Address(path=f"{tmp_path}/run/gateway.sock")
    name = f"ws+unix:{tmp_path}/run/app.sock:/live"
    assert table.routes[0].upstream == name
    assert table.upstreams[name].entries == (
        EndpointEntry(url=name, unix=f"{tmp_path}/run/app.sock"),
    )


def test_a_gateway_table_in_full(tmp_path: Path) -> None:
    """All keys of [gateway] and [[listener]]."""
    text = """
[gateway]
engine = "uvloop"
workers = 3
pin = true
drain = "1m"
drain_delay = "5s"
log = "json"
log_query = true
max_sessions = 5
trusted_proxies = ["10.0.0.0/8", "::1"]
[[listener]]
address = "unix:/run/g.sock"
mode = "0600"
backlog = 16
head_timeout = "1s"
keepalive_timeout = "2s"
max_head = "8KiB"
[[route]]
name = "a"
upstream = "builtin:echo"
"""
    table = config.load(written(tmp_path, text))
    assert table.gateway == GatewaySettings(
        engine="uvloop", workers=3, pin=True, drain=60.0, drain_delay=5.0, log="json",
        log_query=True, max_sessions=5,
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("::1")),
    )
    assert table.listeners == (
        Listener(address=Address(path="/run/g.sock"), mode=0o600, backlog=16, head_timeout=1.0,
                 keepalive_timeout=2.0, max_head=8192),
    )


# --- Defaults ---


def test_a_route_goes_before_the_defaults(tmp_path: Path) -> None:
    """[defaults] fill in what a route does not say; tables and lists are replaced as a whole."""
    defaults = ('[defaults]\nupstream = "ws://x"\nclose_timeout = "1s"\nconnect_timeout = "1s"\n'
                'set_fields = { X-A = "1" }\n')
    route = one_route(tmp_path, 'close_timeout = "3s"\nset_fields = { X-B = "2" }', defaults)
    assert (route.close_timeout, route.connect_timeout) == (3.0, 1.0)
    assert route.set_fields == (("X-B", "2"),)


def test_defaults_that_mean_nothing_for_a_route_do_not_apply(tmp_path: Path) -> None:
    """They are for all routes; the resolved route says what happens."""
    text = HEAD + """
[defaults]
subprotocols = ["binary"]
answer_timeout = "1s"
rewrite = "/v2"
heartbeat_timeout = "7s"
session_timeout = "off"
session_code = 4000
[[route]]
name = "ws"
path = "/ws"
upstream = "ws://x"
heartbeat = "off"
[[route]]
name = "tcp"
path = "/tcp"
upstream = "tcp://x:1"
session_timeout = "1h"
[[route]]
name = "page"
path = "/"
upstream = "builtin:page"
"""
    ws, tcp, page = config.load(written(tmp_path, text)).routes
    assert ws == Route(name="ws", path="/ws", upstream="ws://x", rewrite="/v2",
                       answer_timeout=1.0, heartbeat=0.0)
    assert tcp == Route(name="tcp", path="/tcp", upstream="tcp://x:1", subprotocols=("binary",),
                        heartbeat_timeout=7.0, session_timeout=3600.0, session_code=4000)
    assert page == Route(name="page", path="/", upstream="builtin:page")


# --- Files ---


def test_a_folder_is_read_in_the_order_of_names_and_not_below(tmp_path: Path) -> None:
    """Only `*.toml`, not recursively; upstreams and defaults are for all files."""
    (tmp_path / "20.toml").write_text('[[route]]\nname = "b"\npath = "/b"\nupstream = "u"\n')
    (tmp_path / "10.toml").write_text('[[route]]\nname = "a"\npath = "/a"\nupstream = "u"\n')
    (tmp_path / "30.toml").write_text(
        HEAD + '[defaults]\nclose_timeout = "1s"\n[upstream.u]\nendpoints = ["ws://x"]\n'
    )
    (tmp_path / "notes.txt").write_text("no table")
    (tmp_path / ".hidden.toml").write_text("no table")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.toml").write_text("no table")
    routes = config.load(tmp_path).routes
    assert [(route.name, route.place) for route in routes] == [
        ("a", "10.toml, [[route]] 1"), ("b", "20.toml, [[route]] 1")
    ]
    assert {route.close_timeout for route in routes} == {1.0}


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """The only mistake then is that one."""
    with pytest.raises(TableErrors) as refused:
        config.load(tmp_path / "none.toml")
    assert len(refused.value.errors) == 1
    assert refused.value.errors[0].place == str(tmp_path / "none.toml")
    assert refused.value.errors[0].found == "no such file or directory"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What the kernel says is told as found."""
    file = tmp_path / "loop.toml"
    file.symlink_to(file)
    with pytest.raises(TableErrors, match="too many levels of symbolic links"):
        config.load(file)


def test_an_upstream_that_no_route_uses_is_a_warning(tmp_path: Path) -> None:
    """It is right, but looks like a slip."""
    text = HEAD + ('[[route]]\nname = "a"\nupstream = "builtin:echo"\n'
                   '[upstream.rooms]\nendpoints = ["ws://x"]\n')
    table, warnings = config.check(written(tmp_path, text))
    assert warnings == ["routes.toml, [upstream.rooms]: no route uses it"]
    assert "rooms" in table.upstreams


def test_port_0_may_be_listened_on_twice(tmp_path: Path) -> None:
    """It is another port for each listener."""
    text = HEAD + ('[[listener]]\naddress = "127.0.0.1:0"\n'
                   '[[route]]\nname = "a"\nupstream = "builtin:echo"\n')
    assert len(config.load(written(tmp_path, text)).listeners) == 2


def test_a_password_is_never_quoted(tmp_path: Path) -> None:
    """Whatever else is wrong with a URL that has one."""
    for url in ("ws://me:hunter2@x", "wss://me:hunter2@x", "ftp://me:hunter2@x?y", "me:hunter2@x:1",
                "ws://me:hunter2@x:99999/{a}"):
        text = f'{HEAD}[[route]]\nname = "a"\nupstream = "{url}"\n'
        with pytest.raises(TableErrors) as refused:
            config.load(written(tmp_path, text))
        assert "hunter2" not in str(refused.value)


# --- Cost ---


def big_table(routes: int) -> str:
    """Many hosts, paths and upstreams, and further matches on one path."""
    blocks = [HEAD]
    for number in range(routes):
        match number % 4:
            case 0:
                match_by = f'host = "h{number}.example.com"\npath = "/rooms/{{room}}/*"'
            case 1:
                match_by = f'path = "/p{number}/{{a}}/x"'
            case 2:
                match_by = f'host = "*.example.com"\npath = "/q/{{a}}/{number}"'
            case _:
                match_by = f'path = "/t"\nheader = {{ X-Tenant = "{number}" }}'
        blocks.append(f'[[route]]\nname = "r{number}"\n{match_by}\nupstream = "u{number % 100}"\n')
    blocks += [f'[upstream.u{n}]\nendpoints = ["ws://10.0.0.{n}:9000"]\n' for n in range(100)]
    return "\n".join(blocks)


def test_ten_thousand_routes_load_in_seconds_and_in_linear_time(tmp_path: Path) -> None:
    """Four times the routes cost about four times the time: nothing compares all with all."""
    spent = {}
    for routes in (2500, 10_000):
        file = written(tmp_path, big_table(routes))
        begin = time.process_time()
        assert len(config.load(file).routes) == routes
        spent[routes] = time.process_time() - begin
    assert spent[10_000] < 10
    assert spent[10_000] < 10 * spent[2500]


def test_ten_thousand_mistakes_cost_linear_time(tmp_path: Path) -> None:
    """Nearest names are looked up for the first few only."""
    file = written(tmp_path, big_table(10_000).replace('upstream = "u', 'upstream = "v'))
    begin = time.process_time()
    with pytest.raises(TableErrors) as refused:
        config.load(file)
    assert len(refused.value.errors) == 10_000
    assert time.process_time() - begin < 10
