"""Which route wins, what it captures, what goes upstream, and whose Origin comes in."""

import random
import time
from collections.abc import Sequence

import pytest

from gateway.errors import ClientError, TableError
from gateway.routing import (
    Match,
    Outcome,
    RouteTable,
    normalise_host,
    origin_allowed,
    parse_origin,
    parse_path,
    rewrite_target,
    unreachable,
)
from gateway.table import Origin, Route, Upstream

NO_FIELDS: list[tuple[bytes, bytes]] = []


def route(name: str, path: str = "/*", *hosts: str, **keys: object) -> Route:
    """A route with what a test says of it."""
    return Route(name=name, path=path, hosts=hosts, **keys)  # type: ignore[arg-type]


def winner(
    routes: Sequence[Route], host: str, path: str, query: str = "",
    fields: Sequence[tuple[bytes, bytes]] = NO_FIELDS,
) -> str | None:
    """The name of the route that a request takes."""
    match = RouteTable(routes).match(host, path, query, fields)
    return match.route.name if match else None


# --- Hosts ---


def test_an_exact_host_wins_over_wildcards_over_any() -> None:
    """Wherever they stand, and the longer wildcard first."""
    routes = [
        route("any"),
        route("short", "/*", "*.com"),
        route("long", "/*", "*.example.com"),
        route("exact", "/*", "a.example.com"),
    ]
    for order in (routes, routes[::-1]):
        assert winner(order, "a.example.com", "/") == "exact"
        assert winner(order, "b.example.com", "/") == "long"
        assert winner(order, "b.a.example.com", "/") == "long"
        assert winner(order, "example.com", "/") == "short"
        assert winner(order, "com", "/") == "any"
        assert winner(order, "", "/") == "any"


def test_a_host_goes_before_the_path() -> None:
    """The most specific path loses against a more specific host."""
    routes = [route("path", "/a/b"), route("host", "/*", "*.example.com")]
    assert winner(routes, "x.example.com", "/a/b") == "host"


def test_a_host_whose_paths_do_not_fit_lets_the_next_one_try() -> None:
    """Exact, then wildcard, then any."""
    routes = [
        route("exact", "/a", "x.example.com"),
        route("wild", "/b", "*.example.com"),
        route("any", "/c"),
    ]
    assert winner(routes, "x.example.com", "/b") == "wild"
    assert winner(routes, "x.example.com", "/c") == "any"
    assert winner(routes, "x.example.com", "/d") is None


@pytest.mark.parametrize(
    ("sent", "compared"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("example.com:8080", "example.com"),
        ("EXAMPLE.com.:8080", "example.com"),
        ("example.com:", "example.com"),
        ("[::1]:8080", "[::1]"),
        ("[::A]", "[::a]"),
        ("[::1", ""),
        ("", ""),
        (":80", ""),
    ],
)
def test_hosts_are_compared_without_case_port_and_final_dot(sent: str, compared: str) -> None:
    """One final dot: a second one is no name's."""
    assert normalise_host(sent) == compared
    if compared:
        assert winner([route("a", "/*", compared)], sent, "/") == "a"


@pytest.mark.parametrize("host", ["example.com", ".example.com", "a..example.com", "xexample.com"])
def test_a_wildcard_is_one_label_or_more(host: str) -> None:
    """A label is never empty, and the domain itself is none."""
    assert winner([route("a", "/*", "*.example.com")], host, "/") is None


def test_a_host_that_is_too_long_for_the_dns_takes_routes_for_any_host() -> None:
    """And costs no time: its labels are not looked at."""
    routes = [route("wild", "/*", "*.com"), route("any")]
    assert winner(routes, "a." * 100_000 + "com", "/") == "any"


def test_several_hosts_of_one_route() -> None:
    """Each is as good as the others."""
    routes = [route("a", "/*", "one.example", "*.two.example")]
    assert winner(routes, "one.example", "/") == "a"
    assert winner(routes, "x.two.example", "/") == "a"
    assert winner(routes, "two.example", "/") is None


# --- Paths ---


def test_paths_segment_by_segment() -> None:
    """From the left: a literal over a name over the rest."""
    routes = [
        route("rest", "/*"),
        route("name-rest", "/{a}/*"),
        route("name-literal", "/{a}/b"),
        route("literal-rest", "/a/*"),
        route("literal-name", "/a/{b}"),
        route("literal", "/a/b"),
    ]
    for order in (routes, routes[::-1]):
        assert winner(order, "", "/a/b") == "literal"
        assert winner(order, "", "/a/x") == "literal-name"
        assert winner(order, "", "/a/x/y") == "literal-rest"
        assert winner(order, "", "/a/") == "literal-rest"
        assert winner(order, "", "/x/b") == "name-literal"
        assert winner(order, "", "/x/y") == "name-rest"
        assert winner(order, "", "/x") == "rest"
        assert winner(order, "", "/") == "rest"


def test_a_literal_that_leads_nowhere_is_stepped_back_from() -> None:
    """`/a/...` looks better, but only `/{x}/c` fits whole."""
    routes = [route("name", "/{x}/c"), route("literal", "/a/b")]
    assert winner(routes, "", "/a/c") == "name"
    deep = [route("r", "/*"), route("s", "/{a}/{b}/{c}/z"), route("t", "/a/b/c/y")]
    assert winner(deep, "", "/a/b/c/z") == "s"
    assert winner(deep, "", "/a/b/c/x") == "r"


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("/rooms/*", ["/rooms/", "/rooms/a", "/rooms/a/b", "/rooms//"], ["/rooms", "/room/", "/"]),
        ("/*", ["/", "/a", "//", "/a/b"], []),
        ("/", ["/"], ["//", "/a"]),
        ("/{a}", ["/x", "/%2F", "/%20"], ["/", "/x/", "//x"]),
        ("/a//b", ["/a//b"], ["/a/b", "/a/x/b"]),
        ("/a/", ["/a/"], ["/a", "/a//"]),
        ("/~a-b_c.d", ["/~a-b_c.d", "/%7Ea%2db%5Fc%2Ed", "/%7ea-b_c.d"], ["/~A-b_c.d"]),
        ("/a%2fb", ["/a%2Fb", "/a%2fb"], ["/a/b"]),
        ("/a%7Eb", ["/a~b"], []),
        ("/a:b@c", ["/a:b@c"], ["/a%3Ab@c"]),
    ],
)
def test_which_paths_fit(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    """As sent, with encoded unreserved characters decoded; `%2F` divides nothing."""
    for path in fits:
        assert winner([route("a", pattern)], "", path) == "a", path
    for path in fits_not:
        assert winner([route("a", pattern)], "", path) is None, path


@pytest.mark.parametrize(
    "path",
    ["/.", "/..", "/a/../b", "/a/./b", "/a/..", "/%2e", "/a/%2E%2e/b", "/.%2e/x", "/a%2", "/%",
     "/%zz", "/%%41", "a", "", "*", "/a/%2e./", "/%c3%"],
)
def test_paths_that_are_refused(path: str) -> None:
    """Dot segments, encoded or not, broken encodings, and what is no path: 400, on any table."""
    with pytest.raises(ClientError) as refused:
        RouteTable([route("a")]).match("", path, "", NO_FIELDS)
    assert refused.value.status == 400


@pytest.mark.parametrize("path", ["/...", "/.a", "/a.", "/..a", "/a..", "/%2e%2e%2e", "/..%2f"])
def test_dots_that_are_no_dot_segment_pass(path: str) -> None:
    """Only a segment of one or two dots alone is one."""
    assert winner([route("a")], "", path) == "a"


def test_captures_are_as_they_were_sent() -> None:
    """Never decoded, since the upstream gets them."""
    table = RouteTable([route("a", "/rooms/{room}/{who}/*")])
    match = table.match("", "/%72ooms/%41%2f/b%7e/c//%2e%41?/", "", NO_FIELDS)
    assert match is not None
    assert match.captures == {"room": "%41%2f", "who": "b%7e"}
    assert match.rest == "c//%2e%41?/"
    assert RouteTable([route("a", "/a")]).match("", "/a", "", NO_FIELDS) == Match(
        route("a", "/a"), {}, ""
    )


@pytest.mark.parametrize(
    "pattern", ["", "a", "/a/*/b", "/a*", "/{a", "/a}", "/{a}b", "/{}", "/{1}", "/{a}/{a}", "/a b",
                "/é", "/a?b", "/a#b", "/%", "/../a", "/a/%2e", "/{a}/./*"],
)
def test_patterns_that_are_none(pattern: str) -> None:
    """An operator's mistake, with the place that was given."""
    with pytest.raises(TableError) as refused:
        parse_path(pattern, "here")
    assert refused.value.place == "here"


# --- Further matches ---


def test_fields() -> None:
    """Any of several values, without spaces around it; case of the value counts."""
    routes = [route("a", headers=(("x-a", "1"),)), route("b", headers=(("x-b", "*"),))]
    assert winner(routes, "", "/", "", [(b"x-a", b"2"), (b"x-a", b" 1\t")]) == "a"
    assert winner(routes, "", "/", "", [(b"x-a", b"2")]) is None
    assert winner(routes, "", "/", "", [(b"x-b", b"")]) == "b"
    assert winner([route("c", headers=(("x-a", "v"),))], "", "/", "", [(b"x-a", b"V")]) is None


def test_queries() -> None:
    """Decoded as HTML forms are; a parameter without "=" has an empty value."""
    routes = [route("a", query=(("v", "2 é"),)), route("b", query=(("w", "*"),))]
    assert winner(routes, "", "/", "x=1&v=2+%C3%A9") == "a"
    assert winner(routes, "", "/", "v=1&v=2%20%c3%a9") == "a"
    assert winner(routes, "", "/", "v=2") is None
    assert winner(routes, "", "/", "w") == "b"
    assert winner(routes, "", "/", "%77=") == "b"
    assert winner(routes, "", "/", "&&ww=1&%zz&=&%ff") is None


def test_subprotocols() -> None:
    """One of the offers, over all fields; case counts."""
    routes = [route("a", subprotocol="mqtt")]
    offer = b"sec-websocket-protocol"
    assert winner(routes, "", "/", "", [(offer, b"x, mqtt")]) == "a"
    assert winner(routes, "", "/", "", [(offer, b"x"), (offer, b"mqtt,y")]) == "a"
    assert winner(routes, "", "/", "", [(offer, b"MQTT, mqttv3.1")]) is None
    assert winner(routes, "", "/") is None


@pytest.mark.parametrize(("sni", "name"), [
    ("a.example.com", "exact"), ("b.example.com", "wild"), ("x.b.example.com", "wild"),
    ("example.com", "any"), ("", "any"),
])
def test_the_name_in_the_hello(sni: str, name: str) -> None:
    """As a host: exact, or a wildcard for some labels; without TLS there is none."""
    routes = [
        route("exact", sni=("a.example.com", "other.example")),
        route("wild", sni=("*.b.example.com", "b.example.com")),
        route("any"),
    ]
    for order in (routes, routes[::-1]):
        match = RouteTable(order).match("x", "/", "", NO_FIELDS, sni)
        assert match is not None
        assert match.route.name == name
        lost = {one.route.name: one for one in RouteTable(order).explain_match(
            "x", "/", "", NO_FIELDS, sni)}
        assert lost[name].outcome is Outcome.WON
        if name != "exact":
            assert lost["exact"].outcome is Outcome.SNI
            assert lost["exact"].detail == "it wants a.example.com or other.example"


def test_more_further_matches_win_and_equals_keep_their_order() -> None:
    """Their number counts, not their kind."""
    routes = [
        route("none"),
        route("one", headers=(("x-a", "*"),)),
        route("also-one", query=(("v", "*"),)),
        route("two", headers=(("x-a", "1"),), subprotocol="s"),
    ]
    both = [(b"x-a", b"1"), (b"sec-websocket-protocol", b"s")]
    assert winner(routes, "", "/", "v=1", both) == "two"
    assert winner(routes, "", "/", "v=1", both[:1]) == "one"
    assert winner(routes, "", "/", "v=1") == "also-one"
    assert winner(routes, "", "/") == "none"


def test_a_more_specific_route_whose_conditions_fail_lets_the_next_one_try() -> None:
    """Over paths and hosts."""
    routes = [
        route("last"),
        route("third", "/{a}/b"),
        route("second", "/a/{b}", headers=(("x-a", "*"),)),
        route("first", "/a/b", "h", query=(("v", "1"),)),
    ]
    assert winner(routes, "h", "/a/b", "v=1") == "first"
    assert winner(routes, "h", "/a/b", "", [(b"x-a", b"")]) == "second"
    assert winner(routes, "h", "/a/b") == "third"
    assert winner(routes, "h", "/a") == "last"


# --- Targets ---

WS = Upstream(name="u", scheme="ws")
WITH_PATH = Upstream(name="u", scheme="ws", path="/live/%7e")


@pytest.mark.parametrize(
    ("rewrite", "upstream", "query", "target"),
    [
        ("", WS, None, "/r/%41/x//y"),
        ("", WS, "a=%7e&b", "/r/%41/x//y?a=%7e&b"),
        ("", WS, "", "/r/%41/x//y?"),
        ("", Upstream(name="u", scheme="ws", path="/"), "q", "/r/%41/x//y?q"),
        ("", WITH_PATH, None, "/live/%7e"),
        ("", WITH_PATH, "q", "/live/%7e?q"),
        ("", WITH_PATH, "", "/live/%7e?"),
        ("/v2/{room}/{*}", WS, "q", "/v2/%41/x//y?q"),
        ("/{*}", WS, None, "/x//y"),
        ("/v2-{room}.{room}", WS, None, "/v2-%41.%41"),
        ("/v2?room={room}", WS, "q", "/v2?room=%41"),
        ("/v2?", WS, "q", "/v2?"),
        ("/fixed", WS, "q", "/fixed?q"),
    ],
)
def test_targets(rewrite: str, upstream: Upstream, query: str | None, target: str) -> None:
    """Byte for byte, and "/x?" is not "/x"."""
    path = "/r/%41/x//y"
    match = RouteTable([route("a", "/r/{room}/*", rewrite=rewrite)]).match(
        "", path, query or "", NO_FIELDS
    )
    assert match is not None
    assert rewrite_target(match, upstream, path, query or "", query is not None) == target


# --- Origins ---

HTTPS = Origin(scheme="https", host="example.com", port=443)
WILD = Origin(scheme="https", host="*.example.com", port=443)
NULL = Origin(null=True)
APP = Origin(scheme="capacitor", host="localhost", port=0)


@pytest.mark.parametrize(
    ("origins", "values", "allowed"),
    [
        (None, [], True),
        (None, [b"https://evil.example"], True),
        (None, [b"garbage"], True),
        (None, [b"https://a", b"https://a"], False),
        ((HTTPS,), [], True),
        ((), [], True),
        ((), [b"https://example.com"], False),
        ((HTTPS,), [b"https://example.com"], True),
        ((HTTPS,), [b"HTTPS://EXAMPLE.com:443"], True),
        ((HTTPS,), [b" https://example.com\t"], True),
        ((HTTPS,), [b"https://example.com", b"https://example.com"], False),
        ((HTTPS,), [b"https://example.com https://evil.example"], False),
        ((HTTPS,), [b"https://example.com, https://evil.example"], False),
        ((HTTPS,), [b"http://example.com"], False),
        ((HTTPS,), [b"https://example.com:8443"], False),
        ((HTTPS,), [b"https://example.com."], False),
        ((HTTPS,), [b"https://example.com/"], False),
        ((HTTPS,), [b"https://a.example.com"], False),
        ((HTTPS,), [b"https://evil-example.com"], False),
        ((HTTPS,), [b"https://example.com@evil.example"], False),
        ((HTTPS,), [b"https://example.com:"], False),
        ((HTTPS,), [b"https://example.com:0443x"], False),
        ((HTTPS,), [b"null"], False),
        ((HTTPS,), [b""], False),
        ((WILD,), [b"https://a.example.com"], True),
        ((WILD,), [b"https://b.a.example.com"], True),
        ((WILD,), [b"https://example.com"], False),
        ((WILD,), [b"https://.example.com"], False),
        ((WILD,), [b"https://aexample.com"], False),
        ((WILD,), [b"https://a.example.com.evil.example"], False),
        ((HTTPS, NULL), [b"null"], True),
        ((NULL,), [b"NULL"], False),
        ((NULL,), [b"https://example.com"], False),
        ((APP,), [b"capacitor://localhost"], True),
        ((APP,), [b"ionic://localhost"], False),
        ((APP,), [b"capacitor://localhost:1"], False),
    ],
)
def test_origins(
    origins: tuple[Origin, ...] | None, values: list[bytes], allowed: bool
) -> None:
    """Absent passes, more than one never does, and all else is compared part by part."""
    assert origin_allowed(route("a", origins=origins), values) is allowed


def test_an_origin_of_any_bytes_is_compared_and_nothing_else() -> None:
    """It costs no more than its length, and raises nothing."""
    begin = time.process_time()
    for value in (b"\xff\x00", b"https://" + b"a." * 8000 + b"example.com", b"a:" * 8000):
        assert origin_allowed(route("a", origins=(WILD,)), [value]) is False
    assert time.process_time() - begin < 0.5
    assert parse_origin("https://a:99999") is None
    assert parse_origin("https://a:0") is None


# --- Unreachable routes ---


@pytest.mark.parametrize(
    ("first", "second", "reachable"),
    [
        (route("a", "/x"), route("b", "/x"), False),
        (route("a", "/{p}"), route("b", "/{q}"), False),
        (route("a", "/%7e"), route("b", "/~"), False),
        (route("a", "/x/*"), route("b", "/x/{q}"), True),
        (route("a", "/x", "h"), route("b", "/x"), True),
        (route("a", "/x"), route("b", "/x", "h"), True),
        (route("a", "/x", "h", "i"), route("b", "/x", "i"), False),
        (route("a", "/x", "h"), route("b", "/x", "h", "i"), True),
        (route("a", "/x", headers=(("n", "1"),)), route("b", "/x", headers=(("n", "2"),)), True),
        (route("a", "/x", headers=(("n", "*"),)), route("b", "/x", headers=(("n", "2"),)), False),
        (route("a", "/x", headers=(("n", "1"),)), route("b", "/x", headers=(("n", "*"),)), True),
        (route("a", "/x", headers=(("n", "1"),)), route("b", "/x", query=(("n", "1"),)), True),
        (route("a", "/x"), route("b", "/x", subprotocol="s"), True),
        (route("a", "/x", subprotocol="s"), route("b", "/x"), True),
        (route("a", "/x", subprotocol="*"), route("b", "/x", subprotocol="s"), True),
    ],
)
def test_routes_that_can_never_be_reached(first: Route, second: Route, reachable: bool) -> None:
    """The later one, if the earlier matches all that it matches and is as specific."""
    assert unreachable([first, second]) == ([] if reachable else [(second, first)])


@pytest.mark.parametrize(("first", "second", "reachable"), [
    (route("a", sni=("x", "y")), route("b", sni=("y", "x")), False),
    (route("a", sni=("x",)), route("b", sni=("y",)), True),
    (route("a", sni=("x",)), route("b"), True),
    (route("a"), route("b", sni=("x",)), True),
])
def test_routes_by_sni_that_can_never_be_reached(
    first: Route, second: Route, reachable: bool
) -> None:
    """The same names are the same condition, in any order."""
    assert (unreachable([first, second]) == []) is reachable


def test_a_route_whose_hosts_are_covered_by_different_ones_is_unreachable() -> None:
    """Each host on its own."""
    routes = [route("a", "/x", "h"), route("b", "/x", "i"), route("c", "/x", "h", "i")]
    assert [(late.name, by.name) for late, by in unreachable(routes)] == [("c", "a")]


# --- Cost ---


def test_ten_thousand_routes_match_in_microseconds() -> None:
    """The cost is the request's, not the table's: a hundred times the routes cost the same."""
    seed = 20_260_101
    print("seed", seed)
    chance = random.Random(seed)

    def seconds_per_match(routes: int) -> float:
        table = RouteTable([
            route(f"r{n}", f"/p{n % 97}/{{a}}/x{n}", f"h{n % 1000}.example.com", "*.example.com")
            for n in range(routes)
        ] + [route(f"any{n}", f"/p{n}/*") for n in range(routes)])
        asked = []
        for _ in range(2000):
            n = chance.randrange(routes)
            asked.append((f"h{n % 1000}.example.com:80", f"/p{n % 97}/room/x{n}"))
        begin = time.process_time()
        for host, path in asked:
            assert table.match(host, path, "", NO_FIELDS) is not None
        return (time.process_time() - begin) / len(asked)

    small, large = seconds_per_match(100), seconds_per_match(10_000)
    print(f"{small * 1e6:.1f} and {large * 1e6:.1f} microseconds")
    assert large < 200e-6
    assert large < 10 * small


def test_a_long_path_costs_linear_time() -> None:
    """Also where every segment might be a name, and where it ends in a mistake."""
    names = [f"/{{a{n}}}" for n in range(40)]
    table = RouteTable([route(f"r{n}", "".join(names[:n]) + "/x") for n in range(40)])
    begin = time.process_time()
    assert table.match("", "/a" * 100_000, "", NO_FIELDS) is None
    with pytest.raises(ClientError):
        table.match("", "/%41" * 100_000 + "/%2e", "", NO_FIELDS)
    assert time.process_time() - begin < 2


def test_explain_says_why_each_route_lost() -> None:
    """One outcome for each, in the order of the table."""
    routes = [
        route("host", "/a", "other.example"),
        route("path", "/b"),
        route("field", "/a", headers=(("x-a", "1"),)),
        route("query", "/a", query=(("v", "2"),)),
        route("offer", "/a", subprotocol="mqtt"),
        route("won", "/a"),
        route("late", "/a"),
        route("rest", "/*"),
        route("wild", "/*", "*.example.com"),
    ]
    outcomes = RouteTable(routes).explain_match("h", "/a", "", NO_FIELDS)
    assert [(one.route.name, one.outcome, one.detail) for one in outcomes] == [
        ("host", Outcome.HOST, "it wants other.example"),
        ("path", Outcome.PATH, "it wants /b"),
        ("field", Outcome.HEADER, "it wants x-a: 1"),
        ("query", Outcome.QUERY, "it wants v=2"),
        ("offer", Outcome.SUBPROTOCOL, "it wants mqtt to be offered"),
        ("won", Outcome.WON, ""),
        ("late", Outcome.OUTRANKED, '"won" is as specific and stands before it'),
        ("rest", Outcome.OUTRANKED, '"won" has a more specific path'),
        ("wild", Outcome.HOST, "it wants *.example.com"),
    ]
