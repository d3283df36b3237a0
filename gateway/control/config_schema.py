"""The keys of each table of a route table, as operators write them, and how a table is read.

One entry for each key: its reader. What is not in here is unknown, and refused with the nearest key
that is. Defaults are not in here but in `gateway/table.py`: a key that is absent leaves the field
as it is there.

The readers are written here and not left to a library of schemas (msgspec was tried): an operator
is told all mistakes of a table at once, each with its place, what was found, what was expected and
the remedy. msgspec stops at the first one, and its error no longer has the value that was found.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.control import config_addresses as addresses
from gateway.control import config_values as values
from gateway.control.config_addresses import Url
from gateway.control.config_values import Reader, described
from gateway.control.shared import WORKERS_MAX
from gateway.errors import TableError, TableErrors
from gateway.routing import parse_path, quoted
from gateway.table import CertificateFiles, ListenerTls, UpstreamTls

NEAREST_MAX = 50  # look-ups of a nearest name in one table: each costs as much as there are names

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH_ON = re.compile(r"(path|query|header|cookie):(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: the number of its file, for the order of messages, and the words."""

    file: int
    text: str

    def key(self, key: str) -> "Place":
        """A key in here."""
        return Place(self.file, f"{self.text}, {shown_key(key)}")


def shown_key(key: str) -> str:
    """A key as TOML has it: in quotes where it needs them."""
    return key if _BARE_KEY.fullmatch(key) else quoted(key)


class Mistakes:
    """Collects the mistakes of a table, so that all are told at once."""

    def __init__(self) -> None:
        self._errors: list[tuple[int, TableError]] = []
        self._nearest_left = NEAREST_MAX

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, place: Place, found: str, expected: str, remedy: str) -> None:
        """One more mistake. What to do about it is always said."""
        assert remedy
        self._errors.append((place.file, TableError(place.text, found, expected, remedy)))

    def take(self, place: Place, error: TableError | TableErrors) -> None:
        """The mistakes that a reader raised."""
        several = error.errors if isinstance(error, TableErrors) else [error]
        self._errors.extend((place.file, one) for one in several)

    def nearest(self, word: str, known: Iterable[str]) -> str:
        """A question for the remedy, or nothing where no known word is near."""
        if self._nearest_left <= 0:
            return ""
        self._nearest_left -= 1
        near = difflib.get_close_matches(word[:64], list(known), 1)
        return f'did you mean "{near[0]}"?' if near else ""

    def raise_if_any(self) -> None:
        """Raise TableErrors with all of them, in the order of the files, if there are any."""
        if self._errors:
            ordered = sorted(self._errors, key=lambda one: one[0])
            raise TableErrors([error for _, error in ordered])


@dataclass(frozen=True, slots=True)
class Section:
    """One kind of table: its title in messages, and its keys."""

    title: str
    keys: Mapping[str, Reader[object]]

    def read(
        self, written: Mapping[str, object], place: Place, mistakes: Mistakes
    ) -> dict[str, Any]:
        """The resolved values of the keys that are right; for the others there are mistakes."""
        read: dict[str, Any] = {}
        for key, value in written.items():
            reader = self.keys.get(key)
            if reader is None:
                self._refuse(key, place, mistakes)
                continue
            try:
                read[key] = reader(value, place.key(key).text)
            except (TableError, TableErrors) as error:
                mistakes.take(place, error)
        return read

    def _refuse(self, key: str, place: Place, mistakes: Mistakes) -> None:
        expected = f"a key of {self.title}"
        remedy = home_of(key) or mistakes.nearest(key, self.keys) or (
            f"the keys are {', '.join(self.keys)}")
        mistakes.add(place.key(key), "an unknown key", expected, remedy)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of `endpoints`. Two with one URL are the same, whatever their weights."""

    url: Url
    weight: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return self.url.text


def _endpoint(value: object, place: str) -> Endpoint:
    if isinstance(value, str):
        return Endpoint(addresses.upstream_url(value, place))
    expected = 'a URL, or a table such as { url = "ws://10.0.0.1:9000", weight = 2 }'
    if not isinstance(value, dict):
        is_port = isinstance(value, int) and 0 < value <= 65535 and not isinstance(value, bool)
        remedy = f'write "ws://HOST:{value}"' if is_port else "write the URL in quotes"
        raise TableError(place, described(value), expected, remedy)
    mistakes = Mistakes()
    read = ENDPOINT.read(value, Place(0, place), mistakes)
    if "url" not in value:
        mistakes.add(Place(0, place), "no url", expected, "give it one")
    mistakes.raise_if_any()
    return Endpoint(read["url"], read.get("weight", 1))


def _upstream(value: object, place: str) -> str | Url:
    """A route's upstream: the name of a table, or a URL, which has a colon as no name has."""
    expected = 'the name of an [upstream.NAME], or a URL such as "ws://127.0.0.1:9000"'
    remedy = "make an [upstream.NAME] of several endpoints" if isinstance(value, list) else (
        "put it in quotes")
    text = values.string(value, place, expected, remedy)
    if ":" in text:
        return addresses.upstream_url(text, place)
    if not text:
        raise TableError(place, '""', expected, "name one")
    return text


def _path(value: object, place: str) -> str:
    text = values.string(value, place, 'a path such as "/chat", "/rooms/{room}" or "/files/*"')
    parse_path(text, place)
    return text


def _rewrite(value: object, place: str) -> str:
    expected = 'a path such as "/v2/{room}/{*}"'
    text = values.string(value, place, expected)
    if not text:
        raise TableError(place, '""', expected, "leave it out to send the client's path")
    return text


def _hash_on(value: object, place: str) -> str:
    expected = '"address", or "path:", "query:", "header:" or "cookie:" and a name'
    text = values.string(value, place, expected)
    if text == "address":
        return text
    found = _HASH_ON.fullmatch(text)
    if found is None:
        raise TableError(place, quoted(text), expected,
                         'write "address" for the client\'s own, or say by what: "header:X-User"')
    kind, name = found.groups()
    if kind in ("header", "cookie"):
        values.field_name(name, place)
    return f"{kind}:{name.lower()}" if kind == "header" else text


def _read_table(
    section: Section, value: object, place: str, expected: str, required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values of a table in braces. Raises TableErrors for all that is wrong in it."""
    if not isinstance(value, dict):
        raise TableError(place, described(value), expected, "write it in braces")
    mistakes = Mistakes()
    read = section.read(value, Place(0, place), mistakes)
    for key in required:
        if key not in value:
            mistakes.add(Place(0, place), f"no {key}", expected, "give it one")
    mistakes.raise_if_any()
    return read


def _certificate(value: object, place: str) -> CertificateFiles:
    expected = 'a table such as { chain = "example.crt", key = "example.key" }'
    return CertificateFiles(**_read_table(CERTIFICATE, value, place, expected, ("chain", "key")))


def _listener_tls(value: object, place: str) -> ListenerTls:
    expected = 'a table such as { certificates = [{ chain = "a.crt", key = "a.key" }] }'
    tls = ListenerTls(**_read_table(LISTENER_TLS, value, place, expected, ("certificates",)))
    asks = tls.client_certificates != "off"
    if asks and not tls.client_ca:
        raise TableError(place, f"client_certificates = {quoted(tls.client_certificates)} alone",
                         "client_ca beside it", "name the PEM file of the CA that signs them")
    if tls.client_ca and not asks:
        raise TableError(place, "client_ca alone", "client_certificates beside it",
                         'write client_certificates = "require" or "request", or remove it')
    return tls


def _upstream_tls(value: object, place: str) -> UpstreamTls:
    expected = 'a table such as { ca = "internal-ca.crt" }'
    tls = UpstreamTls(**_read_table(UPSTREAM_TLS, value, place, expected))
    if tls.ca and not tls.verify:
        raise TableError(place, "ca with verify = false", "one of both",
                         "remove verify: a ca is there to verify by")
    return tls


CERTIFICATE = Section("a certificate", {"chain": addresses.file_name, "key": addresses.file_name})

LISTENER_TLS = Section(
    "tls of [[listener]]",
    {
        "certificates": values.list_of(
            _certificate, 'a list such as [{ chain = "a.crt", key = "a.key" }]'
        ),
        "profile": values.choice("intermediate", "modern", usual="intermediate"),
        "client_certificates": values.choice("off", "request", "require", usual="off"),
        "client_ca": addresses.file_name,
    },
)

UPSTREAM_TLS = Section(
    "tls of [upstream.NAME]",
    {
        "verify": values.boolean,
        "ca": addresses.file_name,
        "server_name": addresses.server_name,
        "certificate": _certificate,
    },
)

ENDPOINT = Section(
    "an endpoint", {"url": addresses.upstream_url, "weight": values.count(0, 65535)}
)

GATEWAY = Section(
    "[gateway]",
    {
        "listen": values.one_or_list(
            addresses.listen_address, 'an address such as "0.0.0.0:8080", or a list of them'
        ),
        "engine": values.choice("auto", "io_uring", "uvloop", usual="auto"),
        "ring": values.choice("auto", "completions", "readiness", usual="auto"),
        "workers": values.count_or_auto(WORKERS_MAX),
        "pin": values.boolean,
        "admin": addresses.admin_address,
        "control": addresses.control_file,
        "drain": values.duration(zero=True),
        "drain_delay": values.duration(zero=True),
        "log": values.choice("text", "json", usual="text"),
        "log_query": values.boolean,
        "max_sessions": values.count(),
        "trusted_proxies": values.list_of(
            addresses.network, 'a list of networks such as ["10.0.0.0/8"]', empty=True
        ),
    },
)

LISTENER = Section(
    "[[listener]]",
    {
        "address": addresses.listen_address,
        "mode": values.unix_mode,
        "backlog": values.count(1, 2**31 - 1),
        "head_timeout": values.duration(),
        "keepalive_timeout": values.duration(),
        "max_head": values.size(1024, 1024**2),
        "handshakes": values.rate,
        "redirect": addresses.redirect,
        "tls": _listener_tls,
    },
)

ROUTE = Section(
    "[[route]]",
    {
        "name": values.name,
        "host": values.one_or_list(
            addresses.host_pattern, 'a host such as "*.example.com", or a list of them'
        ),
        "path": _path,
        "header": values.pairs_of(
            values.matched_field, values.field_value, 'a table such as { X-Tenant = "acme" }'
        ),
        "query": values.pairs_of(
            values.parameter, values.text_value, 'a table such as { v = "2" }', cased=True
        ),
        "subprotocol": values.token,
        "sni": values.one_or_list(
            addresses.sni_pattern, 'a name such as "*.example.com", or a list of them'
        ),
        "origins": values.list_of(
            addresses.origin, 'a list of origins such as ["https://example.com"]', empty=True
        ),
        "upstream": _upstream,
        "rewrite": _rewrite,
        "send_host": addresses.send_host,
        "set_fields": values.pairs_of(
            values.set_field, values.field_value, 'a table such as { X-Edge = "1" }'
        ),
        "remove_fields": values.list_of(
            values.removed_field, 'a list of field names such as ["Cookie"]', empty=True
        ),
        "subprotocols": values.list_of(
            values.token, 'a list of subprotocols such as ["mqtt"]', empty=True
        ),
        "frames": values.choice("binary", "text", usual="binary"),
        "max_message": values.size(1, 2**50, off=True),
        "max_frame": values.size(1, 2**50, off=True),
        "max_queue": values.size(4096, 2**30),
        "max_sessions": values.count(off=True),
        "max_sessions_per_client": values.count(off=True),
        "handshakes": values.rate,
        "connect_timeout": values.duration(),
        "answer_timeout": values.duration(),
        "idle_timeout": values.duration(off=True),
        "write_timeout": values.duration(off=True),
        "close_timeout": values.duration(),
        "session_timeout": values.duration(off=True),
        "session_code": values.close_code,
        "heartbeat": values.duration(off=True),
        "heartbeat_timeout": values.duration(),
        "drain_code": values.close_code,
        "drain_reason": values.close_reason,
        "reload_drain": values.duration(off=True),
    },
)

DEFAULTS = Section("[defaults]", {k: v for k, v in ROUTE.keys.items() if k != "name"})

UPSTREAM = Section(
    "[upstream.NAME]",
    {
        "endpoints": values.list_of(_endpoint, 'a list of URLs such as ["ws://10.0.0.1:9000"]'),
        "balance": values.choice(
            "round-robin", "least-connections", "random-two", "hash", usual="least-connections"
        ),
        "hash_on": _hash_on,
        "source_addresses": values.list_of(
            addresses.source_address, 'a list of IP addresses such as ["10.0.0.7", "10.0.0.8"]'
        ),
        "resolve": values.duration(),
        "tls": _upstream_tls,
    },
)

_SECTIONS = (GATEWAY, LISTENER, ROUTE, DEFAULTS, UPSTREAM, LISTENER_TLS, UPSTREAM_TLS)


def home_of(key: str) -> str:
    """A remedy for a key that is in the wrong table, or nothing where no table has it."""
    homes = [section.title for section in _SECTIONS if key in section.keys]
    if homes:
        return f"it belongs under {' or '.join(homes)}"
    return ""
