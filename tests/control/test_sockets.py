"""Where listening sockets come from, and whose their files are at the end."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.control import systemd
from gateway.control.channel import pack_address
from gateway.control.listening import Bound, address_of_socket, bind
from gateway.control.sockets import LISTENER, READY, VARIABLE, Sockets
from gateway.errors import ListenError
from gateway.events import Address
from gateway.table import Listener

ANY = Listener(address=Address(host="127.0.0.1", port=0))


def unix(tmp_path: Path, name: str = "s") -> Listener:
    return Listener(address=Address(path=str(tmp_path / name)))


def test_alone_all_is_bound_and_removed(tmp_path: Path) -> None:
    sockets = Sockets({})
    assert not sockets.has_predecessor
    bound = [sockets.listen(LISTENER, ANY), sockets.listen(LISTENER, unix(tmp_path))]
    sockets.check()
    sockets.serving()
    assert all(each.address.port or each.address.path for each in bound)
    sockets.close()
    assert [each.socket.fileno() for each in bound] == [-1, -1]
    assert not (tmp_path / "s").exists()


def test_what_a_reload_has_bound_is_closed_too(tmp_path: Path) -> None:
    later = bind(unix(tmp_path))
    Sockets({}).close([later])
    assert not (tmp_path / "s").exists()


def test_one_that_cannot_be_bound_leaves_nothing(tmp_path: Path) -> None:
    sockets = Sockets({})
    sockets.listen(LISTENER, unix(tmp_path))
    with pytest.raises(ListenError):
        sockets.listen(LISTENER, unix(tmp_path / "nowhere"))
    sockets.close()
    assert not (tmp_path / "s").exists()


class Predecessor:
    """Its sockets, handed over as it does that."""

    def __init__(self, *listeners: Listener) -> None:
        self.bound = [bind(listener) for listener in listeners]
        self.hears, says = os.pipe()
        told = [
            {
                "role": LISTENER,
                "descriptor": os.dup(each.socket.fileno()),
                "wanted": pack_address(each.listener.address),
                "address": pack_address(each.address),
                "file": each.file,
            }
            for each in self.bound
        ]
        self.environment = {VARIABLE: json.dumps({"ready": says, "sockets": told})}

    def close(self) -> None:
        os.close(self.hears)
        for each in self.bound:
            each.abandon()


@pytest.fixture
def before(tmp_path: Path) -> Iterator[Predecessor]:
    made = Predecessor(ANY, ANY, unix(tmp_path))
    yield made
    made.close()


def same(one: Bound, two: Bound) -> bool:
    """They are one socket."""
    return one.address == two.address == address_of_socket(one.socket)


def test_a_successor_goes_on_with_the_same_sockets(before: Predecessor, tmp_path: Path) -> None:
    """Port 0 is not asked for again, and two of them are two."""
    environment = dict(before.environment)
    sockets = Sockets(environment)
    assert environment == {}, "no child takes them for its own"
    assert sockets.has_predecessor
    bound = [sockets.listen(LISTENER, each) for each in (ANY, ANY, unix(tmp_path))]
    assert all(map(same, bound, before.bound))
    sockets.check()
    sockets.serving()
    assert os.read(before.hears, 100) == READY + b"[]"
    assert os.read(before.hears, 100) == b"", "and nothing more"
    sockets.close()
    assert not (tmp_path / "s").exists(), "the file is the successor's now"


def test_a_successor_that_fails_leaves_the_file(before: Predecessor, tmp_path: Path) -> None:
    sockets = Sockets(dict(before.environment))
    for each in (ANY, unix(tmp_path)):
        sockets.listen(LISTENER, each)
    sockets.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


def test_what_the_new_table_does_not_name_is_given_up(
    before: Predecessor, tmp_path: Path
) -> None:
    """And what it names anew is bound."""
    sockets = Sockets(dict(before.environment))
    told = json.loads(before.environment[VARIABLE])["sockets"]
    new = sockets.listen(LISTENER, unix(tmp_path, "new"))
    assert new.file is not None
    sockets.check()
    sockets.serving()
    said = os.read(before.hears, 100).removeprefix(READY)
    assert json.loads(said) == [each["descriptor"] for each in told]
    assert not (tmp_path / "s").exists()
    sockets.close()


def test_a_predecessor_removes_no_file_of_its_successor(tmp_path: Path) -> None:
    sockets = Sockets({})
    sockets.listen(LISTENER, unix(tmp_path))
    sockets.given_away = True
    sockets.close()
    assert (tmp_path / "s").exists()


def test_sockets_of_an_init_find_their_listeners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order; a listener without one is bound as ever; a file is the init's."""
    inits = [bind(ANY), bind(unix(tmp_path))]
    monkeypatch.setattr(systemd, "inherited", lambda _: [each.socket for each in inits])
    sockets = Sockets({})
    bound = [
        sockets.listen(LISTENER, each)
        for each in (ANY, unix(tmp_path), Listener(address=inits[0].address))
    ]
    assert bound[2].socket is inits[0].socket
    assert bound[1].socket is inits[1].socket
    assert bound[0].address not in (ANY.address, inits[0].address)
    sockets.check()
    sockets.close()
    assert (tmp_path / "s").exists()


def test_a_socket_that_the_table_does_not_want_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init = bind(ANY)
    monkeypatch.setattr(systemd, "inherited", lambda _: [init.socket])
    sockets = Sockets({})
    own = sockets.listen(LISTENER, ANY)
    with pytest.raises(ListenError) as caught:
        sockets.check()
    assert f"on {init.address} (LISTEN_FDS), and the table listens on {ANY.address}" in str(
        caught.value
    )
    sockets.close()
    assert own.socket.fileno() == init.socket.fileno() == -1
