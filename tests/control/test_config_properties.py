"""Tables at random: what is printed loads again as the same, and nonsense is refused in words."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gateway.control import config
from gateway.control.config_render import toml_string
from gateway.control.config_schema import DEFAULTS, GATEWAY, LISTENER, ROUTE, UPSTREAM
from gateway.control.config_values import KEYS_OF_FIELDS
from gateway.errors import TableErrors

IN_A_FOLDER = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

durations = st.tuples(st.integers(1, 9999), st.sampled_from(["ms", "s", "m", "h"])).map(
    lambda found: f"{found[0] if found[1] != 'h' else min(found[0], 8760)}{found[1]}"
)
sizes = st.tuples(st.integers(4, 1024), st.sampled_from(["KiB", "MiB"])).map(
    lambda found: f"{found[0]}{found[1]}"
)
rates = st.tuples(st.integers(1, 9999), st.sampled_from(["s", "m"])).map(
    lambda found: f"{found[0]}/{found[1]}"
)
words = st.text(string.ascii_letters + string.digits, min_size=1, max_size=6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
values = st.text(string.ascii_letters + ' "\\=,', max_size=8).map(str.strip)
codes = st.sampled_from([1000, 1001, 1003, 1007, 1012, 1014, 3000, 4999])
origins = st.sampled_from(
    ["https://a.example", "http://*.b.example:81", "null", "https://[::1]", "app://x", "ws://c:80"]
)


def off(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The value, or off."""
    return st.just("off") | one


ANY_ROUTE = {
    "host": st.lists(st.sampled_from(["a.example", "*.B.example", "[::1]", "10.0.0.1", "c."]),
                     min_size=1, unique=True),
    "path": st.sampled_from(["/", "/*", "/a/{room}/*", "/{room}", "/a%2Fb//c/{room}", "/%7e/*"]),
    "header": st.dictionaries(
        words.map(str.lower).filter(lambda name: name not in KEYS_OF_FIELDS), values, max_size=2
    ),
    "query": st.dictionaries(texts.filter(bool), texts, max_size=2),
    "subprotocol": words,
}
BUSY = {
    "origins": st.lists(origins, unique=True, max_size=3),
    "max_message": off(sizes), "max_frame": off(sizes), "max_queue": sizes,
    "max_sessions": off(st.integers(1, 99)), "max_sessions_per_client": off(st.integers(1, 99)),
    "handshakes": off(rates),
    "write_timeout": off(durations), "close_timeout": durations,
    "heartbeat": off(durations), "session_timeout": off(durations),
    "drain_code": codes, "drain_reason": texts, "reload_drain": off(durations),
}
WS = {
    "send_host": st.sampled_from(["a.example:1", "b"]),
    "set_fields": st.dictionaries(
        words.map(lambda one: f"X-{one.upper()}"), values, max_size=2
    ),
    "remove_fields": st.lists(words.map("Y-{}".format), max_size=2, unique_by=str.lower),
    "answer_timeout": durations, "connect_timeout": durations,
}
TCP = {
    "subprotocols": st.lists(words, max_size=2, unique=True),
    "frames": st.sampled_from(["binary", "text"]),
    "connect_timeout": durations,
}
KINDS: dict[str, tuple[list[str], dict[str, st.SearchStrategy[Any]]]] = {
    "ws": (["ws://h", "ws://[::1]:9/p", "ws+unix:run/a.sock", "ws+unix:/a.sock:/p", "many"],
           BUSY | WS),
    "tcp": (["tcp://h:1", "tcp+unix:/run/b.sock", "bytes"], BUSY | TCP),
    "echo": (["builtin:echo"], BUSY),
    "page": (["builtin:page"], {}),
}
UPSTREAMS = """
[upstream.many]
endpoints = ["ws://h:1/p", { url = "ws://i:2/p", weight = 3 }, "ws+unix:run/c.sock:/p"]
balance = "hash"
hash_on = "cookie:Sid"
resolve = "5s"
[upstream.bytes]
endpoints = ["tcp://h:1", { url = "tcp+unix:d.sock", weight = 0 }]
source_addresses = ["10.0.0.7", "fd00:0::7"]
balance = "random-two"
"""


def toml(value: Any) -> str:
    """A value as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return toml_string(value)
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{toml_string(k)} = {toml(v)}" for k, v in value.items()) + "}"
        case _:
            return str(value)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Tables without a mistake, but for routes that are not reached."""

    def some(keys: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
        return draw(st.fixed_dictionaries({}, optional=keys))

    lines = ["[gateway]", 'listen = ["127.0.0.1:0", "unix:g.sock"]']
    lines += [f"{k} = {toml(v)}" for k, v in some({
        "engine": st.sampled_from(["auto", "io_uring", "uvloop"]),
        "workers": st.just("auto") | st.integers(1, 256), "pin": st.booleans(),
        "drain": st.just("0s") | durations, "drain_delay": st.just("0s") | durations,
        "admin": st.sampled_from(["", "127.0.0.1:9180", "[::1]:0"]),
        "control": st.sampled_from(["off", "/run/c.sock", "run/c.sock"]),
        "log": st.sampled_from(["text", "json"]), "log_query": st.booleans(),
        "max_sessions": st.integers(1, 10**6),
        "trusted_proxies": st.lists(st.sampled_from(["10.0.0.0/8", "::1", "fd00::/8"]),
                                    unique=True),
    }).items()]
    lines += ["[[listener]]", 'address = "unix:run/h.sock"']
    lines += [f"{k} = {toml(v)}" for k, v in some({
        "mode": st.sampled_from(["0600", "0777", "0000"]), "backlog": st.integers(1, 9999),
        "head_timeout": durations, "keepalive_timeout": durations,
        "max_head": st.integers(1, 1024).map("{}KiB".format), "handshakes": off(rates),
    }).items()]
    lines.append("[defaults]")
    lines += [f"{k} = {toml(v)}" for k, v in some(
        BUSY | WS | TCP | {"heartbeat_timeout": durations, "session_code": codes}
    ).items()]
    for number in range(draw(st.integers(1, 4))):
        urls, keys = KINDS[draw(st.sampled_from(sorted(KINDS)))]
        lines += ["[[route]]", f'name = "r{number}"',
                  f"upstream = {toml(draw(st.sampled_from(urls)))}"]
        lines += [f"{k} = {toml(v)}" for k, v in some(ANY_ROUTE | keys).items()]
    return "\n".join(lines) + UPSTREAMS


@IN_A_FOLDER
@given(documents())
def test_what_is_printed_loads_again_as_the_same_table(tmp_path: Path, text: str) -> None:
    """`gateway check` shows all that holds, and nothing that the reader would refuse."""
    file = tmp_path / "routes.toml"
    file.write_text(text)
    try:
        table = config.load(file)
    except TableErrors as refused:
        # The only mistake that may be drawn, too seldom to draw around it.
        assert {one.found for one in refused.errors} == {"a route that is never reached"}, refused
        assume(False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    again = elsewhere / "printed.toml"
    again.write_text(config.render(table))
    assert config.load(again) == table
    assert config.render(config.load(again)) == config.render(table)


scalars = st.one_of(
    st.just("2026-01-01"), st.booleans().map(toml), st.integers().map(str),
    st.floats().map(repr), texts.map(toml),
    st.sampled_from(["inf", "-inf", "12:00:00", '"off"', '"5s"', '"*"', '"ws://["', '"ws://]:1"',
                     '"http://[::1"', '"/{"', '"/%"', '"unix:"', '"[::]:x"', '"ws+unix:"']),
    st.text(string.printable, max_size=12).map(toml),
)
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]")
    | st.dictionaries(texts | words, inner, max_size=3).map(
        lambda found: "{" + ", ".join(f"{toml_string(k)} = {v}" for k, v in found.items()) + "}"
    ),
    max_leaves=6,
)
keys = st.sampled_from(sorted(
    set().union(*(one.keys for one in (GATEWAY, LISTENER, ROUTE, DEFAULTS, UPSTREAM)))
))
headings = st.sampled_from(
    ["[gateway]", "[[listener]]", "[[route]]", "[defaults]", "[upstream.a]", "[upstream]", "[x]"]
)


@IN_A_FOLDER
@given(st.lists(st.tuples(headings, st.dictionaries(keys | words, nested, max_size=4)), max_size=5))
def test_nonsense_is_refused_in_words(
    tmp_path: Path, tables: list[tuple[str, dict[str, str]]]
) -> None:
    """Every key with every kind of value: TableErrors and no other exception, one line each."""
    text = "".join(
        heading + "\n" + "".join(f"{k} = {v}\n" for k, v in entries.items())
        for heading, entries in tables
    )
    file = tmp_path / "routes.toml"
    file.write_text(text)
    try:
        config.load(file)
    except TableErrors as refused:
        for one in refused.errors:
            assert str(one).isprintable(), repr(str(one))
            assert len(str(one)) < 1500


@IN_A_FOLDER
@given(st.binary(max_size=200))
def test_bytes_that_are_no_table_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    """Whatever a file holds."""
    file = tmp_path / "routes.toml"
    file.write_bytes(data)
    with pytest.raises(TableErrors):
        config.load(file)
