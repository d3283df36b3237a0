"""Which certificate is for a name: exact, then a wildcard for one label, then the first."""

import pytest

from gateway.events import KeyPair
from gateway.servernames import is_for, pick


def pair(*names: str) -> KeyPair:
    """A certificate for these names."""
    return KeyPair(chain=",".join(names).encode(), key=b"", names=names)


FIRST = pair("first.example")
WILD = pair("*.example.com", "example.com")
EXACT = pair("chat.example.com")
AGAIN = pair("chat.example.com", "other.example.com")
ALL = (FIRST, WILD, EXACT, AGAIN)


@pytest.mark.parametrize(("server_name", "wanted"), [
    ("first.example", FIRST),
    ("example.com", WILD),
    ("rooms.example.com", WILD),
    ("chat.example.com", EXACT),              # though the wildcard stands before it
    ("other.example.com", AGAIN),
    ("a.rooms.example.com", FIRST),           # exactly one label
    (".example.com", WILD),                   # no hello has it: a client that says it gets this
    ("strangers.example", FIRST),
    ("com", FIRST),
    ("", FIRST),
])
def test_pick(server_name: str, wanted: KeyPair) -> None:
    """The most specific; the first where none is for it."""
    assert pick(ALL, server_name) is wanted
    assert pick((FIRST,), server_name) is FIRST


@pytest.mark.parametrize(("server_name", "wanted"), [
    ("example.com", True), ("rooms.example.com", True), ("a.rooms.example.com", False),
    ("example.org", False), ("*.example.com", True),
])
def test_is_for(server_name: str, wanted: bool) -> None:
    """Whether a certificate may speak for a name."""
    assert is_for(WILD, server_name) is wanted
