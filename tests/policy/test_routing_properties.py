"""The tree that finds routes, against a plain list that is sorted by the written rules."""

from collections.abc import Sequence

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.errors import ClientError
from gateway.routing import (
    Outcome,
    RouteTable,
    normalise_host,
    normalise_path,
    rewrite_target,
    unreachable,
)
from gateway.table import Route, Upstream

Fields = Sequence[tuple[bytes, bytes]]

labels = st.sampled_from(["a", "b", "example", "com"])
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
hosts = names | names.map("*.{}".format)
segments = st.sampled_from(["a", "b", "", "%2F", "~", "%7E", "{x}", "{y}", "{z}"])
conditions = st.dictionaries(
    st.sampled_from(["p", "q"]), st.sampled_from(["1", "2", "*"]), max_size=2
).map(lambda found: tuple(found.items()))


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """A path with a few segments, each name once."""
    path = draw(st.lists(segments, min_size=1, max_size=4))
    captured = [one for one in path if one.startswith("{")]
    assume(len(captured) == len(set(captured)))
    rest = draw(st.booleans())
    return "".join(f"/{one}" for one in path) + ("/*" if rest else "")


@st.composite
def tables(draw: st.DrawFn) -> list[Route]:
    """Some routes that get in each other's way."""
    return [
        Route(
            name=f"r{number}",
            path=draw(patterns() | st.just("/*")),
            hosts=tuple(draw(st.lists(hosts, max_size=2, unique=True))),
            headers=draw(st.just(()) | conditions),
            query=draw(st.just(()) | conditions),
            subprotocol=draw(st.sampled_from(["", "", "s", "t"])),
        )
        for number in range(draw(st.integers(1, 8)))
    ]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, str, Fields]:
    """Requests that meet them now and then."""
    host = draw(names | st.sampled_from(["", "A.Example.com.:80", "..", "a..com", "*.com"]))
    path = "".join(f"/{one}" for one in draw(st.lists(
        st.sampled_from(["a", "b", "", "%2f", "~", "%7e", "c", "%61"]), min_size=1, max_size=5
    )))
    query = "&".join(draw(st.lists(st.sampled_from(["p=1", "p=2", "q=1", "q=2", "x"]), max_size=2)))
    fields = draw(st.lists(st.sampled_from([
        (b"p", b"1"), (b"p", b"2"), (b"q", b"1"), (b"sec-websocket-protocol", b"s, u"),
        (b"sec-websocket-protocol", b"t"),
    ]), max_size=3))
    return host, path, query, fields


def host_rank(route: Route, host: str) -> tuple[int, int] | None:
    """Written anew, from the rules alone."""
    if not route.hosts:
        return (0, 0)
    ranks = []
    for pattern in route.hosts:
        if not pattern.startswith("*."):
            if pattern == host:
                ranks.append((2, 0))
        elif host.endswith(pattern[1:]) and all(host[: -len(pattern[1:])].split(".")):
            ranks.append((1, len(pattern)))
    return max(ranks, default=None)


def path_rank(route: Route, path: list[str]) -> list[int] | None:
    """3 for a literal, 2 for a name, 1 for the rest, from the left."""
    rank: list[int] = []
    written = [one if one[:1] == "{" else normalise_path("/" + one)[0]
               for one in route.path[1:].split("/")]
    for number, wanted in enumerate(written):
        if wanted == "*" and number == len(written) - 1:
            return [*rank, 1] if len(path) > number else None
        if number >= len(path):
            return None
        if wanted.startswith("{"):
            if not path[number]:
                return None
            rank.append(2)
        elif wanted == path[number]:
            rank.append(3)
        else:
            return None
    return rank if len(path) == len(written) else None


def holds(route: Route, query: str, fields: Fields) -> bool:
    """All further matches."""
    given_pairs = [tuple(one.split("=")) for one in query.split("&")]
    offers = [one.strip() for name, value in fields if name.startswith(b"sec")
              for one in value.decode().split(",")]
    return (
        all(any(k == n.decode() and v in ("*", w.decode()) for n, w in fields)
            for k, v in route.headers)
        and all(any(g[0] == k and (v == "*" or g[1:] == (v,)) for g in given_pairs)
                for k, v in route.query)
        and (not route.subprotocol or route.subprotocol in offers)
    )


def best(routes: list[Route], request: tuple[str, str, str, Fields]) -> Route | None:
    """The winner by sorting all of them."""
    host, path, query, fields = request
    found = []
    for order, route in enumerate(routes):
        by_host = host_rank(route, normalise_host(host))
        by_path = path_rank(route, normalise_path(path))
        if by_host is None or by_path is None or not holds(route, query, fields):
            continue
        further = len(route.headers) + len(route.query) + bool(route.subprotocol)
        found.append((by_host, by_path, further, -order))
    return routes[-max(found)[3]] if found else None


@settings(max_examples=200, deadline=None)
@given(tables(), requests())
def test_the_tree_finds_what_sorting_finds(
    routes: list[Route], request: tuple[str, str, str, Fields]
) -> None:
    """Precedence, stepping back, further matches: the written rules, and nothing else."""
    match = RouteTable(routes).match(*request)
    assert (match.route if match else None) == best(routes, request)


@settings(max_examples=200, deadline=None)
@given(tables(), requests())
def test_explain_and_match_agree(
    routes: list[Route], request: tuple[str, str, str, Fields]
) -> None:
    """The winner is the same, one outcome for each route, and who is outranked fits in full."""
    table = RouteTable(routes)
    match = table.match(*request)
    outcomes = table.explain_match(*request)
    assert [one.route for one in outcomes] == routes
    won = [one.route for one in outcomes if one.outcome is Outcome.WON]
    assert won == ([match.route] if match else [])
    for one in outcomes:
        alone = RouteTable([one.route]).match(*request)
        fits = one.outcome in (Outcome.WON, Outcome.OUTRANKED)
        assert (alone is not None) is fits


@settings(max_examples=150, deadline=None)
@given(tables(), st.lists(requests(), max_size=10))
def test_an_unreachable_route_is_never_taken(
    routes: list[Route], asked: list[tuple[str, str, str, Fields]]
) -> None:
    """And the one that is named as the reason fits whenever it does."""
    reasons = {late.name: by for late, by in unreachable(routes)}
    table = RouteTable(routes)
    for request in asked:
        match = table.match(*request)
        assert match is None or match.route.name not in reasons


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x17E), max_size=40),
       st.text(max_size=20), st.text(max_size=20))
def test_any_path_is_refused_with_400_or_goes_up_as_it_came(
    path: str, host: str, query: str
) -> None:
    """No other exception, and not a byte changed, whatever was captured."""
    table = RouteTable([
        Route(name="a", path="/*"), Route(name="b", path="/{x}/*", rewrite="/{x}/{*}"),
    ])
    try:
        match = table.match(host, path, query, [])
    except ClientError as error:
        assert error.status == 400
        return
    assert match is not None
    assert rewrite_target(match, Upstream(name="u", scheme="ws"), path, query, True) \
        == f"{path}?{query}"
