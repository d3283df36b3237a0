"""Readers for addresses, URLs, hosts, origins and networks. Nothing is resolved in here.

The laws are those of `config_values.py`. File names are given back as they were written; who knows
the folder of the file makes them absolute with `in_folder`.
"""

import ipaddress
import re
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.control.config_values import described, string
from gateway.errors import ClientError, TableError
from gateway.events import Address
from gateway.routing import DEFAULT_PORTS, HOST_MAX, normalise_path, parse_origin, quoted
from gateway.table import Network, Origin

SOCKET_PATH_MAX = 107                    # bytes: sun_path of unix(7), less the final NUL
NOT_BUILT = frozenset({"http", "https"})
SCHEMES = ("ws", "wss", "tcp", "tls", "builtin")
PATHLESS = ("tcp", "tls")                # byte streams: no path, and no usual port
BUILTINS = ("echo", "page")

_PORT = re.compile(r"[0-9]{1,6}")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_URL_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")  # RFC 3986 3.3
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}(/[^?#]*)?")

_URL = ('an upstream URL such as "ws://10.0.0.1:9000", "wss://app.example.com", '
        '"tcp://10.0.0.1:5900", "ws+unix:/run/app.sock" or "builtin:echo"')
_LISTEN = 'an address such as "0.0.0.0:8080", "[::]:8080" or "unix:/run/gateway.sock"'


@dataclass(frozen=True, slots=True)
class Url:
    """An upstream's address, taken apart. One of `host`, `unix`, `builtin` is meant."""

    text: str
    scheme: str                          # one of SCHEMES
    host: str = ""                       # IPv6 without brackets
    port: int = 0
    unix: str = ""
    builtin: str = ""
    path: str = ""

    def in_folder(self, folder: Path) -> "Url":
        """The same with its socket's file name made absolute."""
        if not self.unix:
            return self
        unix = in_folder(self.unix, folder)
        text = f"{self.scheme}+unix:{unix}" + (f":{self.path}" if self.path else "")
        return replace(self, unix=unix, text=text)


def in_folder(file: str, folder: Path) -> str:
    """A file name of a table, absolute: it is relative to the folder of the table's file."""
    return str(folder / file)


def listen_address(value: object, place: str) -> Address:
    """Where to listen: an IP literal and port, or a Unix socket. Port 0 is any free one."""
    if isinstance(value, int) and not isinstance(value, bool):
        remedy = f'write "0.0.0.0:{value}"' if 0 <= value <= 65535 else (
            "write an IP address and a port, in quotes")
        raise TableError(place, described(value), _LISTEN, remedy)
    text = string(value, place, _LISTEN)
    if text.startswith("unix:"):
        return Address(path=socket_file(text.removeprefix("unix:"), text, place))
    host, _, port = text.rpartition(":")
    if host in ("", "*") and _PORT.fullmatch(port):
        remedy = f'write "0.0.0.0:{port}" for IPv4, "[::]:{port}" for IPv6'
        raise TableError(place, quoted(text), _LISTEN, remedy)
    literal = _ip_literal(host)
    if literal is None:
        remedy = "write an IP address and a port"
        if ":" in host and not host.startswith("["):
            remedy = 'put IPv6 addresses in brackets, as in "[::1]:8080"'
        elif host and _PORT.fullmatch(port):
            remedy = "names are not resolved here, write an IP address"
        raise TableError(place, quoted(text), _LISTEN, remedy)
    return Address(host=literal, port=_port(port, text, place, low=0))


def admin_address(value: object, place: str) -> Address | None:
    """Where the admin address is; None for "", which is nowhere. TCP: who scrapes it is a probe."""
    if value == "":
        return None
    if isinstance(value, str) and value.startswith("unix:"):
        raise TableError(place, quoted(value), 'an address such as "127.0.0.1:9180", or ""',
                         "it is no Unix socket: probes and scrapers come over TCP")
    return listen_address(value, place)


def control_file(value: object, place: str) -> str | None:
    """The file of the control socket, as written; None for "off"."""
    expected = 'a file name such as "/run/gateway/control.sock", or "off"'
    text = string(value, place, expected)
    if text == "off":
        return None
    if text.startswith("unix:"):
        raise TableError(place, quoted(text), expected,
                         f"write {quoted(text.removeprefix('unix:'))}: it is always a Unix socket")
    if not text:
        raise TableError(place, '""', expected, "leave it out for the usual place")
    return socket_file(text, text, place)


def socket_file(file: str, text: str, place: str) -> str:
    """The file name of a Unix socket, as written."""
    expected = "the file name of a Unix socket"
    if not file or file.endswith("/"):
        raise TableError(place, quoted(text), expected, 'write one, as in "unix:/run/app.sock"')
    if file.startswith("@") or not file.isprintable() or "?" in file or "#" in file:
        remedy = "it names a file, without parameters"
        raise TableError(place, quoted(text), expected, remedy)
    if file.startswith("//"):
        remedy = f"write one slash, as in {quoted('unix:/' + file.lstrip('/'))}"
        raise TableError(place, quoted(text), expected, remedy)
    check_socket_length(file, place)
    return file


def check_socket_length(file: str, place: str) -> None:
    """Raise TableError for a file name that no socket can have."""
    length = len(file.encode())
    if length > SOCKET_PATH_MAX:
        raise TableError(place, f"a file name of {length} bytes",
                         f"at most {SOCKET_PATH_MAX} bytes for a Unix socket", "shorten it")


def upstream_url(value: object, place: str) -> Url:
    """An upstream's URL: scheme, host and port, or a socket's file; perhaps a path."""
    text = string(value, place, _URL)
    scheme, colon, tail = text.partition(":")
    scheme = scheme.lower()
    _refuse_user(text, place)
    family, _, transport = scheme.partition("+")
    if family in NOT_BUILT and transport in ("", "unix"):
        raise TableError(place, quoted(text), _URL,
                         f'the scheme "{scheme}" is not built yet: use ws, wss, tcp or tls')
    if not colon or family not in SCHEMES or transport not in ("", "unix"):
        plain = _HOST_AND_PORT.fullmatch(text)
        remedy = f"write {quoted('ws://' + text)}" if plain else (
            "begin with ws:, wss:, tcp:, tls: or builtin:")
        raise TableError(place, quoted(text), _URL, remedy)
    if scheme == "builtin":
        if tail not in BUILTINS:
            raise TableError(place, quoted(text), '"builtin:echo" or "builtin:page"',
                             "there are no others")
        return Url(text=text, scheme="builtin", builtin=tail)
    _refuse_extras(tail, text, place)
    if transport:
        return _unix_url(family, tail, text, place)
    if not tail.startswith("//"):
        raise TableError(place, quoted(text), _URL, f'write "{scheme}://" and a host')
    authority, slash, path = tail[2:].partition("/")
    path = _url_path(family, slash + path, text, place)
    host, port = _authority(authority, text, place)
    if not port and family in PATHLESS:
        raise TableError(place, quoted(text), _URL, f"name the port: {family} has no usual one")
    port = port or DEFAULT_PORTS[family]
    return Url(text=text, scheme=family, host=host, port=port, path=path)


def host_pattern(value: object, place: str) -> str:
    """One entry of `host`, as it is compared: in lower case, without the final dot."""
    expected = 'a host such as "example.com" or "*.example.com"'
    text = string(value, place, expected)
    host = text.lower().removesuffix(".")
    if host == "*":
        raise TableError(place, '"*"', expected, "leave host out: then any matches")
    if "://" in host:
        raise TableError(place, quoted(text), expected, "write the host alone, without a scheme")
    if re.fullmatch(r"([^:\[\]]+|\[.*\]):[0-9]*", host):
        remedy = "leave the port out: hosts are compared without it"
        raise TableError(place, quoted(text), expected, remedy)
    literal = _ip_literal(host)
    if literal is not None:
        return f"[{literal}]" if ":" in literal else literal
    if not _is_name(host.removeprefix("*.")) or len(host) > HOST_MAX:
        remedy = _host_remedy(host)
        raise TableError(place, quoted(text), expected, remedy)
    return host


def sni_pattern(value: object, place: str) -> str:
    """One entry of `sni`, which has no addresses in it (RFC 6066 3)."""
    pattern = host_pattern(value, place)
    if not _is_name(pattern.removeprefix("*.")):
        raise TableError(place, quoted(pattern), "a name", "no client says an address there")
    return pattern


def origin(value: object, place: str) -> Origin:
    """One entry of `origins`: scheme, host and port as browsers send them, or `null`."""
    expected = 'an origin such as "https://example.com", "https://*.example.com" or "null"'
    text = string(value, place, expected)
    if text == "*":
        raise TableError(place, '"*"', expected, "leave origins out: then any may come")
    scheme, separator, tail = text.partition("://")
    wildcard = tail.startswith("*.")
    parsed = parse_origin(scheme + separator + tail.removeprefix("*."))
    if parsed is None:
        remedy = "write scheme, host and port, without a path"
        if tail and parse_origin(scheme + separator + tail.partition("/")[0]):
            remedy = f'write "{scheme}://{tail.partition("/")[0][:60]}", without a path'
        elif not separator and _is_name(text.lower().removeprefix("*.")):
            remedy = f'write "https://{text[:60]}"'
        elif not tail.isascii():
            remedy = _host_remedy(tail)
        elif "*" in tail.removeprefix("*."):
            remedy = '"*." may stand before the whole host, and nowhere else'
        raise TableError(place, quoted(text), expected, remedy)
    if parsed.scheme in DEFAULT_PORTS:  # others, such as extensions', have hosts of their own kind
        literal = _ip_literal(parsed.host)
        if (literal is None or wildcard) and not _is_name(parsed.host):
            raise TableError(place, quoted(text), expected, _host_remedy(parsed.host))
        if literal is not None and ":" in literal:
            return replace(parsed, host=f"[{literal}]")
    return replace(parsed, host=f"*.{parsed.host}") if wildcard else parsed


def network(value: object, place: str) -> Network:
    """One entry of `trusted_proxies`: an address, or a network without host bits."""
    expected = 'an address or a network such as "10.0.0.0/8" or "fd00::/8"'
    text = string(value, place, expected)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        try:
            remedy = f'write "{ipaddress.ip_network(text, strict=False)}"'
        except ValueError:
            remedy = "names are not resolved here"
        raise TableError(place, quoted(text), expected, remedy) from None


def source_address(value: object, place: str) -> str:
    """One entry of `source_addresses`: an address that one machine has, in its usual form."""
    expected = 'an IP address of this machine such as "10.0.0.7" or "fd00::7"'
    text = string(value, place, expected)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        remedy = "names are not resolved here, write an IP address"
        if _ip_literal(text) or _ip_literal(text.rpartition(":")[0]):
            remedy = "write the address alone, without brackets and port"
        raise TableError(place, quoted(text), expected, remedy) from None
    if address.is_unspecified or address.is_multicast:
        raise TableError(place, quoted(text), expected, "leave the key out to connect from any")
    if getattr(address, "scope_id", None):
        raise TableError(place, quoted(text), expected, "write one that needs no zone")
    return str(address)


def redirect(value: object, place: str) -> int:
    """The port of https that every request of a listener is sent to; with "https" the usual one."""
    expected = '"https", or "https:8443" for another port than 443'
    text = string(value, place, expected)
    scheme, colon, port = text.partition(":")
    if scheme != "https" or bool(colon) != bool(port) or not f"0{port}".isdigit():
        remedy = 'write "https": host, path and query stay as the client sent them'
        raise TableError(place, quoted(text), expected, remedy)
    return _port(port, text, place, low=1) if port else DEFAULT_PORTS["https"]


def server_name(value: object, place: str) -> str:
    """The name that a server's certificate must be for: a host, or an IP address."""
    expected = 'a name such as "app.example.com"'
    text = string(value, place, expected)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    host = text.lower().removesuffix(".")
    if not _is_name(host):
        remedy = "write the name alone, without a port" if ":" in host else _host_remedy(host)
        raise TableError(place, quoted(text), expected, remedy)
    return host


def file_name(value: object, place: str) -> str:
    """The name of a file, as written."""
    expected = 'a file name such as "certs/example.crt"'
    text = string(value, place, expected)
    if not text:
        raise TableError(place, '""', expected, "name the file")
    if not text.isprintable():
        raise TableError(place, quoted(text), expected, "rename the file")
    return text


def send_host(value: object, place: str) -> str:
    """What Host the upstream sees: "upstream" for the URL's, or this value itself."""
    expected = '"upstream", or a host such as "app.internal:9000"'
    text = string(value, place, expected)
    if text == "upstream":
        return text
    if "/" in text:
        raise TableError(place, quoted(text), expected, "write host and port alone")
    _authority(text, text, place, expected)
    return text


# --- Inside ------------------------------------------------------------------------------------


def _unix_url(family: str, tail: str, text: str, place: str) -> Url:
    if family == "builtin":
        raise TableError(place, quoted(text), _URL, 'write "builtin:echo" or "builtin:page"')
    if tail.startswith("//"):
        remedy = f"write {quoted(f'{family}+unix:/' + tail.lstrip('/'))}"
        raise TableError(place, quoted(text), _URL, remedy)
    file, colon, path = tail.partition(":")
    if colon and not path.startswith("/"):
        raise TableError(place, quoted(text), _URL, 'a path behind the socket begins with ":/"')
    file = socket_file(file, text, place)
    return Url(text=text, scheme=family, unix=file, path=_url_path(family, path, text, place))


def _url_path(family: str, path: str, text: str, place: str) -> str:
    if path and family in PATHLESS:
        raise TableError(place, quoted(text), _URL, "remove the path: a byte stream has none")
    try:
        fits = _URL_PATH.fullmatch(path) is not None and bool(normalise_path(path or "/"))
    except ClientError:
        fits = False
    if not fits:
        remedy = "make it of captures with the route's key rewrite" if "{" in path else (
            "write its path percent-encoded, and without dot segments")
        raise TableError(place, quoted(text), _URL, remedy)
    return path


def _refuse_user(text: str, place: str) -> None:
    """Before anything else, since no message may quote a password."""
    if "@" in (text.partition("://")[2] or text).partition("/")[0]:
        remedy = "remove user and password: set_fields can send an Authorization"
        raise TableError(place, "a user in the URL", _URL, remedy)


def _refuse_extras(tail: str, text: str, place: str) -> None:
    if "?" in tail or "#" in tail:
        remedy = "remove query and fragment: the client's query goes up"
        raise TableError(place, quoted(text), _URL, remedy)


def _authority(
    authority: str, text: str, place: str, expected: str = _URL
) -> tuple[str, int]:
    """Host, IPv6 without its brackets, and port, 0 where none is written."""
    if authority.startswith("["):
        host, bracket, port = authority.partition("]")
        host += bracket
    elif authority.count(":") > 1:
        raise TableError(place, quoted(text), expected, _host_remedy(authority))
    else:
        host, colon, port = authority.partition(":")
        port = colon + port
    if port == ":" or (port and not port.startswith(":")):
        raise TableError(place, quoted(text), expected, 'write host, ":" and port')
    literal = _ip_literal(host)
    if literal is None and not _is_name(host.lower().removesuffix(".")):
        raise TableError(place, quoted(text), expected, _host_remedy(host))
    number = _port(port[1:], text, place, low=1) if port else 0
    return literal or host.lower(), number


def _port(port: str, text: str, place: str, *, low: int) -> int:
    if _PORT.fullmatch(port) is None or not low <= int(port) <= 65535:
        remedy = "name the one where the service listens"
        if low == 0:
            remedy = "choose another port; 0 is any that is free"
        raise TableError(place, f"port {quoted(port)} in {quoted(text)}",
                         f"a port from {low} to 65535", remedy)
    return int(port)


def _ip_literal(host: str) -> str | None:
    """An IPv4 address, or an IPv6 one in brackets, in its usual form and without brackets."""
    try:
        if host.startswith("[") and host.endswith("]") and "%" not in host:
            return str(ipaddress.IPv6Address(host[1:-1]))
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None


def _is_name(host: str) -> bool:
    """A DNS name, underscores included; never one that looks like an IPv4 address."""
    labels = host.split(".")
    return len(host) <= HOST_MAX and not labels[-1].isdigit() and all(
        _LABEL.fullmatch(label) for label in labels
    )


def _host_remedy(host: str) -> str:
    if "%" in host and host.startswith("["):
        return "zones of IPv6 addresses are not built yet"
    if ":" in host:
        return 'put IPv6 addresses in brackets, as in "[::1]:9000"'
    if not host:
        return "name a host"
    if not host.isascii():
        return 'write names in their ASCII form, which begins with "xn--"'
    if "*" in host:
        return '"*." stands for whole labels before the rest of the host'
    if host.rpartition(".")[2].isdigit():
        return "an IPv4 address is four numbers from 0 to 255"
    return "a host is letters, digits, dots and dashes"
