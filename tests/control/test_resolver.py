"""Resolving: literals never ask, names are asked once and together, failures are told."""

import socket
import threading
import time

import pytest

from gateway.control.resolver import Failure, look_up, resolve
from gateway.events import Address
from gateway.table import EndpointEntry, Upstream


def upstream(name: str, *entries: EndpointEntry, scheme: str = "ws", builtin: str = "") -> Upstream:
    return Upstream(name=name, scheme=scheme, builtin=builtin, entries=entries)


def host(name: str, port: int = 80, weight: int = 1) -> EndpointEntry:
    return EndpointEntry(url=f"ws://{name}:{port}", host=name, port=port, weight=weight)


def never(name: str) -> list[str]:
    raise AssertionError(f"{name} was asked for")


def test_literals_unix_and_builtin_never_ask() -> None:
    four, six, zone = host("127.0.0.1", 9), host("::1", 9), host("fe80::1%lo", 9)
    unix = EndpointEntry(url="ws+unix:/run/a.sock", unix="/run/a.sock")
    echo = EndpointEntry(url="builtin:echo")
    result = resolve(
        [
            upstream("tcp", four, six, zone),
            upstream("unix", unix),
            upstream("echo", echo, scheme="builtin", builtin="echo"),
            upstream("page", scheme="builtin", builtin="page"),
        ],
        lookup=never,
    )
    assert result.failures == []
    assert result.endpoints["tcp"] == [
        (four, Address(host="127.0.0.1", port=9)),
        (six, Address(host="::1", port=9)),
        (zone, Address(host="fe80::1%lo", port=9)),
    ]
    assert result.endpoints["unix"] == [(unix, Address(path="/run/a.sock"))]
    assert result.endpoints["echo"] == [(echo, Address(builtin="echo"))]
    assert [address for _, address in result.endpoints["page"]] == [Address(builtin="page")]


def test_each_address_of_a_name_is_an_endpoint() -> None:
    entry = host("app.test", 9000, weight=3)
    result = resolve([upstream("app", entry)], lookup=lambda _: ["10.0.0.1", "2001:db8::1"])
    assert result.endpoints["app"] == [
        (entry, Address(host="10.0.0.1", port=9000)),
        (entry, Address(host="2001:db8::1", port=9000)),
    ]


def test_a_name_is_asked_once_for_all_who_want_it() -> None:
    asked: list[str] = []

    def lookup(name: str) -> list[str]:
        asked.append(name)
        return ["10.0.0.1"]

    result = resolve(
        [upstream("a", host("app.test", 1)), upstream("b", host("app.test", 2))], lookup=lookup
    )
    assert asked == ["app.test"]
    assert [found[0][1].port for found in result.endpoints.values()] == [1, 2]


def test_a_name_that_fails_is_told_with_who_wanted_it() -> None:
    """The other endpoints stay, and an upstream without any has an empty list."""

    def lookup(name: str) -> list[str]:
        if name == "odd..name":
            raise UnicodeError("label empty or too long")
        if name == "empty.test":
            return []
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    good = host("127.0.0.1")
    result = resolve(
        [
            upstream("a", host("gone.test"), good),
            upstream("b", host("gone.test"), host("odd..name"), host("empty.test")),
        ],
        lookup=lookup,
    )
    assert result.failures == [
        Failure("gone.test", "Name or service not known", ("a", "b"), ("b",)),
        Failure("odd..name", "label empty or too long", ("b",), ("b",)),
        Failure("empty.test", "it has no address", ("b",), ("b",)),
    ]
    assert result.endpoints == {"a": [(good, Address(host="127.0.0.1", port=80))], "b": []}


def test_a_name_that_fails_keeps_its_last_addresses() -> None:
    """Of the entry with the same name and port alone, with the weight that it has now."""

    def lookup(_: str) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    was = resolve(
        [upstream("a", host("one.test", 1), host("one.test", 2)), upstream("b", host("one.test"))],
        lookup=lambda _: ["10.0.0.1"],
    )
    now = host("one.test", 1, weight=5)
    result = resolve(
        [upstream("a", now, host("two.test", 1)), upstream("c", now)],
        lookup=lookup, last=was.endpoints,
    )
    assert result.endpoints == {"a": [(now, Address(host="10.0.0.1", port=1))], "c": []}
    assert [(one.name, one.without) for one in result.failures] == [
        ("one.test", ("c",)), ("two.test", ()),
    ]


def test_a_name_that_hangs_costs_the_limit_and_no_more() -> None:
    """Nobody waits for its thread, at the end of the process neither."""
    release = threading.Event()

    def lookup(name: str) -> list[str]:
        if name == "slow.test":
            release.wait(30)
        return ["10.0.0.1"]

    begun = time.monotonic()
    result = resolve(
        [upstream("a", host("slow.test"), host("fast.test"))], limit=0.1, lookup=lookup
    )
    assert time.monotonic() - begun < 5
    release.set()
    assert result.failures == [Failure("slow.test", "no answer within 0.1 s", ("a",))]
    assert [address.host for _, address in result.endpoints["a"]] == ["10.0.0.1"]


def test_names_are_asked_at_the_same_time() -> None:
    """Four that wait for each other all come back."""
    together = threading.Barrier(4, timeout=10)

    def lookup(name: str) -> list[str]:
        together.wait()
        return ["10.0.0.1"]

    result = resolve([upstream("a", *(host(f"{n}.test") for n in range(4)))], lookup=lookup)
    assert len(result.endpoints["a"]) == 4


def test_more_names_than_threads() -> None:
    result = resolve(
        [upstream("a", *(host(f"{n}.test") for n in range(50)))], lookup=lambda _: ["10.0.0.1"]
    )
    assert len(result.endpoints["a"]) == 50


def test_weight_zero_is_not_asked_for() -> None:
    """It gets nothing, so its name need not exist."""
    result = resolve([upstream("a", host("gone.test", weight=0))], lookup=never)
    assert result.failures == []
    assert result.endpoints == {"a": []}


def test_the_system_knows_localhost() -> None:
    """Each address once, although getaddrinfo gives one for each socket type."""
    found = look_up("localhost")
    assert set(found) <= {"127.0.0.1", "::1"}
    assert len(found) == len(set(found)) > 0


def test_the_system_refuses_a_name_that_cannot_be() -> None:
    with pytest.raises((OSError, UnicodeError)):
        look_up("a..b")
