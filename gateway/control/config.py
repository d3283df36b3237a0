"""From the route table's files to a `Table`, or to all of their mistakes at once.

`load` reads a file, or the `*.toml` of a folder in the order of their names. Nothing is resolved,
opened or bound here: a table that loads may still name a host that does not exist. The keys are in
`config_schema.py`, their values in `config_values.py` and `config_addresses.py`, what they mean
together in `config_routes.py`, and the way back to text in `config_render.py`.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli

from gateway.control.config_addresses import check_socket_length, in_folder
from gateway.control.config_render import render
from gateway.control.config_routes import (
    RouteBuilder,
    Written,
    absolute,
    build_upstream,
    check_reachable,
)
from gateway.control.config_schema import (
    DEFAULTS,
    GATEWAY,
    LISTENER,
    ROUTE,
    UPSTREAM,
    Mistakes,
    Place,
    Section,
    home_of,
    shown_key,
)
from gateway.control.config_tls import (
    check_redirect,
    check_sni,
    listener_in_folder,
    only_redirects,
    unverified,
    upstream_in_folder,
)
from gateway.control.config_values import described, name
from gateway.errors import TableError
from gateway.events import Address
from gateway.routing import quoted
from gateway.table import GatewaySettings, Listener, Route, Table, Upstream

__all__ = ["check", "digest", "load", "render", "table_files"]

_TOP = {"gateway": False, "listener": True, "defaults": False, "route": True, "upstream": False}


def load(path: Path) -> Table:
    """The table of a file or folder. Raises TableErrors with every mistake in it."""
    return check(path)[0]


def check(path: Path) -> tuple[Table, list[str]]:
    """The same, and warnings: what is right but looks like a slip, each one sentence."""
    mistakes = Mistakes()
    draft = _Draft(mistakes)
    documents = _read_files(path, mistakes)
    for document in documents:
        draft.read(document)
    draft.build_routes()
    draft.check_whole(Place(0, path.name or str(path)), complete=bool(documents))
    mistakes.raise_if_any()
    return draft.table(), draft.warnings()


@dataclass(frozen=True, slots=True)
class _Document:
    """One file, parsed."""

    place: Place                         # of the file; the words are its name
    folder: Path                         # absolute
    tables: dict[str, object]

    def table(self, title: str) -> Place:
        return Place(self.place.file, f"{self.place.text}, {title}")


class _Draft:
    """A table while its files are read one after another."""

    def __init__(self, mistakes: Mistakes):
        self._mistakes = mistakes
        self._gateway: Written | None = None
        self._defaults: Written | None = None
        self._listeners: list[Listener] = []
        self._addresses: dict[Address, Place] = {}
        self._written_routes: list[Written] = []
        self._upstreams: dict[str, Upstream] = {}
        self._upstream_places: dict[str, Place] = {}
        self._routes: list[Route] = []
        self._secured = False            # some listener is meant to have TLS
        self._listens = False            # something that should be a listener was written
        self._misshapen: set[str] = set()  # tables that are none, so that what they lack is moot
        self._used: set[str] = set()

    # --- What the files say ---

    def read(self, document: _Document) -> None:
        """Take in all tables of one file."""
        tables = document.tables
        for key, value in tables.items():
            self._check_top(key, value, document)
        gateway = self._once(document, "gateway", GATEWAY, self._gateway)
        if gateway is not None:
            self._gateway = gateway
            self._place_control(gateway)
            for address in gateway.values.pop("listen", ()):
                self._add_listener({"address": address}, gateway.place.key("listen"), document)
            self._listens = self._listens or "listen" in gateway.keys
        for number, written in enumerate(_tables(tables.get("listener")), 1):
            self._read_listener(written, document.table(f"[[listener]] {number}"), document)
        defaults = self._once(document, "defaults", DEFAULTS, self._defaults)
        if defaults is not None:
            self._defaults = defaults
            absolute(defaults.values, document.folder, defaults.place, self._mistakes)
        upstreams = tables.get("upstream")
        if isinstance(upstreams, dict):
            for key, one in upstreams.items():
                self._read_upstream(key, one, document)
        for number, written in enumerate(_tables(tables.get("route")), 1):
            self._read_route(written, number, document)

    def _check_top(self, key: str, value: object, document: _Document) -> None:
        place = document.place.key(key)
        if key not in _TOP:
            remedy = home_of(key) or self._mistakes.nearest(key, _TOP) or "remove it"
            found = "an unknown table" if isinstance(value, dict) else "an unknown key"
            self._mistakes.add(place, found, "gateway, listener, defaults, route, upstream", remedy)
            return
        if not _TOP[key]:
            right = isinstance(value, dict)
            title = "[upstream.NAME]" if key == "upstream" else f"[{key}]"
        else:
            right = isinstance(value, list) and all(isinstance(one, dict) for one in value)
            title = f"[[{key}]]"
        if not right:
            self._misshapen.add(key)
            self._mistakes.add(place, described(value), f"tables under {title}" if _TOP[key]
                               else f"a table under {title}", f"write the heading {title}")

    def _once(
        self, document: _Document, key: str, section: Section, before: Written | None
    ) -> Written | None:
        """The table of which there is one in all files, if this file has it."""
        written = document.tables.get(key)
        if not isinstance(written, dict):
            return None
        place = document.table(f"[{key}]")
        if before is not None:
            self._mistakes.add(place, "a second one", f"one [{key}] in all files",
                             f"{before.place.text} is there already; move the keys there")
        values = section.read(written, place, self._mistakes)
        return Written(place, document.folder, frozenset(written), values) if not before else None

    def _place_control(self, gateway: Written) -> None:
        """Make the name of the control socket's file absolute, in place."""
        file = gateway.values.get("control")
        if file is None:
            return
        file = gateway.values["control"] = in_folder(file, gateway.folder)
        try:
            check_socket_length(file, gateway.place.key("control").text)
        except TableError as error:
            self._mistakes.take(gateway.place, error)

    def _read_listener(
        self, written: dict[str, object], place: Place, document: _Document
    ) -> None:
        self._listens = True
        values = LISTENER.read(written, place, self._mistakes)
        if "address" not in written:
            self._mistakes.add(place, "no address", "where to listen",
                             'give it one, such as address = "0.0.0.0:8080"')
        if "address" not in values:
            return
        if "mode" in written and not values["address"].path:
            self._mistakes.add(place.key("mode"), f"the key for {values['address']}",
                             "it for a Unix socket alone", "remove it")
        check_redirect(written, values, place, self._mistakes)
        self._secured = self._secured or "tls" in written
        if "tls" in values:
            values["tls"] = listener_in_folder(values["tls"], document.folder)
        self._add_listener(values, place.key("address"), document)

    def _add_listener(
        self, values: dict[str, Any], place: Place, document: _Document
    ) -> None:
        address: Address = values["address"]
        if address.path:
            address = Address(path=in_folder(address.path, document.folder))
            try:
                check_socket_length(address.path, place.text)
            except TableError as error:
                self._mistakes.take(place, error)
        other = self._addresses.setdefault(address, place)
        if other is not place and (address.port or address.path):  # port 0 is a new one each time
            self._mistakes.add(place, quoted(str(address)), "each address once",
                             f"{other.text} has it already; remove one of them")
            return
        for one, where in self._addresses.items():
            wide = one.overlap(address)
            if where is not place and wide is not None:
                family = "IPv6" if ":" in wide.host else "IPv4"
                self._mistakes.add(place, quoted(str(address)),
                                   f"an address beside {quoted(str(one))} of {where.text}",
                                   f"{quoted(str(wide))} is every {family} address of the machine "
                                   "already; remove one of them, or choose another port")
                return
        self._listeners.append(Listener(**(values | {"address": address})))

    def _read_upstream(self, key: str, written: object, document: _Document) -> None:
        place = document.table(f"[upstream.{shown_key(key)}]")
        try:
            name(key, place.text)
        except TableError as error:
            self._mistakes.take(place, error)
        if not isinstance(written, dict):
            known = key in UPSTREAM.keys
            self._mistakes.add(place, described(written), "a table under [upstream.NAME]",
                             "give the upstream a name: [upstream.NAME]" if known else
                               f"write the heading [upstream.{shown_key(key)}]")
            return
        other = self._upstream_places.setdefault(key, place)
        if other is not place:
            self._mistakes.add(place, f'"{key}"', "a name that no other upstream has",
                             f"{other.text} is there already; rename one of them")
            return
        values = UPSTREAM.read(written, place, self._mistakes)
        if "endpoints" not in written:
            self._mistakes.add(place, "no endpoints", "where its sessions go",
                             'give it some, such as endpoints = ["ws://10.0.0.1:9000"]')
        if "tls" in values:
            values["tls"] = upstream_in_folder(values["tls"], document.folder)
        upstream = build_upstream(key, values, document.folder, place, self._mistakes)
        if upstream is not None:
            self._upstreams[key] = upstream

    def _read_route(self, written: dict[str, object], number: int, document: _Document) -> None:
        place = document.table(f"[[route]] {number}")
        title = written.get("name")
        named = Place(place.file, f'{place.text} ("{title}")') if _is_name(title) else place
        values = ROUTE.read(written, named, self._mistakes)
        absolute(values, document.folder, named, self._mistakes)
        self._written_routes.append(Written(place, document.folder, frozenset(written), values))

    # --- What they mean ---

    def build_routes(self) -> None:
        """Make the routes, now that all defaults and upstreams are known."""
        broken = [key for key in self._upstream_places if key not in self._upstreams]
        builder = RouteBuilder(self._defaults, self._upstreams, broken, self._mistakes)
        files: dict[str, int] = {}
        for written in self._written_routes:
            route = builder.build(written)
            if route is not None:
                self._routes.append(route)
                files[route.name] = written.place.file
        self._used = builder.used
        check_reachable(self._routes, files, self._mistakes)
        if not self._secured and not self._misshapen & {"listener"}:
            check_sni(self._routes, files, self._mistakes)

    def check_whole(self, place: Place, *, complete: bool) -> None:
        """Refuse a table that could not serve anybody, or not its operator."""
        self._check_own_addresses()
        listens = self._listens or self._misshapen & {"gateway", "listener"}
        if complete and not listens:
            self._mistakes.add(place, "no listener", "at least one",
                             'write listen = ["0.0.0.0:8080"] under [gateway]')
        if complete and only_redirects(self._listeners):
            self._mistakes.add(place, "only listeners that redirect", "one that serves",
                               "write a [[listener]] with tls, which they redirect to")
        if complete and not self._written_routes and "route" not in self._misshapen:
            self._mistakes.add(place, "no route", "at least one",
                             "write a [[route]] with a name and an upstream")

    def _check_own_addresses(self) -> None:
        """The admin address and the control socket are nobody else's."""
        if self._gateway is None:
            return
        values, place = self._gateway.values, self._gateway.place
        control = values.get("control")
        for key, address in (
            ("admin", values.get("admin")),
            ("control", Address(path=control) if control else None),
        ):
            if address is None or not (address.port or address.path):
                continue
            for other, where in self._addresses.items():
                if other == address or other.overlap(address) is not None:
                    self._mistakes.add(place.key(key), quoted(str(address)),
                                       "an address of its own",
                                       f"{where.text} has it already; choose another")

    def table(self) -> Table:
        """The result; there were no mistakes."""
        settings = self._gateway.values if self._gateway else {}
        return Table(
            gateway=GatewaySettings(**settings),
            listeners=tuple(self._listeners),
            routes=tuple(self._routes),
            upstreams=self._upstreams,
        )

    def warnings(self) -> list[str]:
        """What looks like a slip."""
        return [
            f"{place.text}: no route uses it"
            for key, place in self._upstream_places.items()
            if key not in self._used
        ] + [
            f"[upstream.{shown_key(name)}], tls: verify is false, so that anybody could be this "
            "server" for name in unverified(self._upstreams)
        ]


def table_files(path: Path) -> list[Path]:
    """The files of the table at `path`, in their order. Raises OSError for a folder that cannot be
    read; whether the files can be is not looked at."""
    if not path.is_dir():
        return [path]
    return sorted(one for one in path.iterdir() if one.suffix == ".toml"
                  and not one.name.startswith(".") and not one.is_dir())


def digest(path: Path, others: Iterable[Path] = ()) -> bytes:
    """What stands for the content of a table's files, and of others that belong to it: their
    names, and what is in them. What cannot be read counts as it is, so that a table which comes
    back is a change."""
    found = hashlib.blake2b(digest_size=16)
    try:
        files = table_files(path)
    except OSError as error:
        files = []
        found.update(f"{error.errno}".encode())
    for file in (*files, *others):
        found.update(os.fsencode(file) + b"\0")
        try:
            content = file.read_bytes()
            found.update(len(content).to_bytes(8, "big") + content)
        except OSError as error:
            found.update(f"{error.errno}".encode())
    return found.digest()


def _read_files(path: Path, mistakes: Mistakes) -> list[_Document]:
    try:
        files = table_files(path)
    except OSError as error:
        mistakes.add(Place(0, str(path)), _os_words(error), "a folder that can be read",
                     "check its name and its permissions")
        return []
    if not files:
        mistakes.add(Place(0, str(path)), "no file whose name ends in .toml",
                   "a file, or a folder with at least one", "name the file itself, or add one")
    documents = [_read_file(file, number, mistakes) for number, file in enumerate(files)]
    return [document for document in documents if document is not None]


def _read_file(file: Path, number: int, mistakes: Mistakes) -> _Document | None:
    place = Place(number, file.name)
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        mistakes.add(Place(number, str(file)), _os_words(error), "a file that can be read",
                   "check its name and its permissions")
        return None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        mistakes.add(replace(place, text=f"{place.text}, line {line}"),
                   f"the byte 0x{error.object[error.start]:02x}, which is not UTF-8",
                   "a TOML file in UTF-8", "save it as UTF-8")
        return None
    try:
        tables: dict[str, object] = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        where = f"{place.text}, line {error.lineno}, column {error.colno}"
        mistakes.add(Place(number, where), f"what is no TOML ({_toml_words(error)})", "TOML",
                   "see https://toml.io")
        return None
    except (RecursionError, ValueError) as error:
        # Nested deeper than the parser goes, or a number of thousands of digits.
        words = "nested too deep" if isinstance(error, RecursionError) else "a number too long"
        mistakes.add(place, f"what no table needs ({words})", "TOML of a usual kind", "shorten it")
        return None
    return _Document(place, file.absolute().parent, tables)


def _os_words(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _toml_words(error: tomli.TOMLDecodeError) -> str:
    words = error.msg.strip().rstrip(".")
    return words[:1].lower() + words[1:]


def _tables(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        return []
    return [one for one in value if isinstance(one, dict)]


def _is_name(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(name(value, ""))
    except TableError:
        return False
