"""What `balance = "hash"` goes by, from real requests; and what relays share."""

import pytest

from gateway.events import Address
from gateway.limits import Limits
from gateway.protocol.desk import Desk, hash_key
from gateway.protocol.http1 import Request, RequestReader
from gateway.routing import Match, RouteTable
from gateway.table import Route, Table

CLIENT = Address(host="192.0.2.7", port=1)


def request(target: bytes = b"/", *fields: bytes) -> Request:
    head = RequestReader(64 * 1024).feed(
        b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n"
        % (target, b"".join(field + b"\r\n" for field in fields))
    )
    assert head is not None
    return head


def key(hash_on: str, head: Request, **captures: str) -> bytes:
    return hash_key(hash_on, Match(Route(name="r"), captures, ""), head, CLIENT)


@pytest.mark.parametrize(
    "field",
    [
        b"session=S",
        b"session=S; other=1",
        b'a={"x":1}; session=S',
        b"version=2; session=S",
        b"flag; session=S",
        b"path=/; session=S",
        b"a=b=c;session=S ;session=T",
        b"xsession=no; session=S",
    ],
)
def test_a_cookie_is_found_whatever_stands_beside_it(field: bytes) -> None:
    assert key("cookie:session", request(b"/", b"Cookie: " + field)) == b"S"


def test_rules_of_old_tables_are_not_kept() -> None:
    """The relays of a route share them; a reload begins anew, however many there are."""
    desk = Desk(Table(), RouteTable(()), {}, Limits(1), bytes)
    for _ in range(5):
        route = Route(name="ws")
        desk.table = Table(routes=(route,))
        rules = desk.rules_of(route, raw=False, deflate=False)
        assert desk.rules_of(route, raw=False, deflate=False) is rules
        assert desk.rules_of(route, raw=False, deflate=True) is not rules
        assert len(desk._rules) == 2


def test_a_cookie_in_a_second_field() -> None:
    assert key("cookie:session", request(b"/", b"Cookie: a=1", b"Cookie: session=S")) == b"S"


def test_a_hostile_cookie_costs_what_its_length_costs() -> None:
    """http.cookies took a third of a second for this (CVE-2024-7592)."""
    value = b'"' + b"\\a" * 25_000 + b'"'
    head = request(b"/", b"Cookie: session=" + value)
    for _ in range(1000):
        assert len(key("cookie:session", head)) == len(value)


@pytest.mark.parametrize("segment", ["c", "%63"])
def test_a_room_is_one_room_however_it_is_written(segment: str) -> None:
    assert key("path:room", request(), room=segment) == b"c"


def test_query_header_and_address() -> None:
    head = request(b"/?u=7&u=8&v=a%20b", b"X-User: ann")

    assert key("query:u", head) == b"7"
    assert key("query:v", head) == b"a b"
    assert key("header:X-User", head) == b"ann"
    assert key("address", head) == b"192.0.2.7"


@pytest.mark.parametrize("hash_on", ["query:u", "header:X-User", "cookie:session"])
def test_without_the_value_the_address_counts(hash_on: str) -> None:
    assert key(hash_on, request()) == b"192.0.2.7"
