"""A resolved table as TOML that a person can read: every route with every value that it obeys.

Loading the text again gives an equal table. So nothing is written that the reader would refuse: a
key that has no effect on a route is left out, as it is when the table is read.
"""

import json
from collections.abc import Iterator

from gateway.control.config_values import written_duration, written_rate, written_size
from gateway.events import Address
from gateway.routing import DEFAULT_PORTS
from gateway.table import (
    CertificateFiles,
    Listener,
    ListenerTls,
    Origin,
    Route,
    Table,
    Upstream,
    UpstreamTls,
)

_SIZES = frozenset({"max_message", "max_frame", "max_queue", "max_head"})
_COUNTS = frozenset({"max_sessions", "max_sessions_per_client"})
_RATES = frozenset({"handshakes"})

_ASKING = ("rewrite", "send_host", "set_fields", "remove_fields")
_LIMITS = ("max_message", "max_frame", "max_queue", "max_sessions", "max_sessions_per_client",
           "handshakes")
_TIMES = ("connect_timeout", "answer_timeout", "idle_timeout", "write_timeout", "close_timeout",
          "session_timeout", "heartbeat", "heartbeat_timeout")


def render(table: Table) -> str:
    """The table as TOML."""
    blocks = [_gateway(table)]
    blocks += [_listener(listener) for listener in table.listeners]
    blocks += [_route(route, table.upstreams[route.upstream]) for route in table.routes]
    blocks += [_upstream(one) for one in table.upstreams.values() if ":" not in one.name]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def effective(route: Route, upstream: Upstream) -> Iterator[tuple[str, str]]:
    """The limits, times and codes that hold on a route, as (key, value in TOML)."""
    kind = upstream.kind
    if kind == "page":
        for key in ("write_timeout", "close_timeout"):
            yield key, _value(key, getattr(route, key))
        return
    for key in _LIMITS:
        yield key, _value(key, getattr(route, key))
    for key in _TIMES:
        without = {
            "connect_timeout": kind == "echo",
            "answer_timeout": kind != "ws",
            "heartbeat_timeout": route.heartbeat == 0,
        }
        if not without.get(key, False):
            yield key, _value(key, getattr(route, key))
    if route.session_timeout:
        yield "session_code", str(route.session_code)
    yield "drain_code", str(route.drain_code)
    yield "drain_reason", toml_string(route.drain_reason)
    yield "reload_drain", _value("reload_drain", route.reload_drain)


def toml_string(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def origin_text(origin: Origin) -> str:
    """An origin as browsers send it, with a wildcard as the table has it."""
    if origin.null:
        return "null"
    usual = origin.port in (0, DEFAULT_PORTS.get(origin.scheme))
    return f"{origin.scheme}://{origin.host}" + ("" if usual else f":{origin.port}")


# --- Inside ------------------------------------------------------------------------------------


def _gateway(table: Table) -> list[str]:
    settings = table.gateway
    sessions = (f"max_sessions = {settings.max_sessions}" if settings.max_sessions
                else "# max_sessions = (RLIMIT_NOFILE - 512) / 2")
    return [
        "[gateway]",
        f"engine = {toml_string(settings.engine)}",
        f"ring = {toml_string(settings.ring)}",
        f"workers = {settings.workers or toml_string('auto')}",
        f"pin = {_boolean(settings.pin)}",
        f"admin = {toml_string(str(settings.admin or ''))}",
        _control(settings.control),
        f'drain = "{written_duration(settings.drain)}"',  # 0 is a time here: nothing is "off"
        f'drain_delay = "{written_duration(settings.drain_delay)}"',
        f"log = {toml_string(settings.log)}",
        f"log_query = {_boolean(settings.log_query)}",
        sessions,
        f"trusted_proxies = {_list(str(one) for one in settings.trusted_proxies)}",
    ]


def _control(file: str | None) -> str:
    if file == "":
        return "# control = $RUNTIME_DIRECTORY/control.sock, or the next usual place"
    return f"control = {toml_string('off' if file is None else file)}"


def _listener(listener: Listener) -> list[str]:
    address: Address = listener.address
    lines = ["[[listener]]", f"address = {toml_string(str(address))}"]
    if address.path:
        lines.append(f'mode = "{listener.mode:04o}"')
    lines.append(f"backlog = {listener.backlog}")
    keys = ["head_timeout", "keepalive_timeout", "max_head"]
    if not listener.redirect:
        keys.append("handshakes")
    lines += [f"{key} = {_value(key, getattr(listener, key))}" for key in keys]
    if listener.redirect:
        usual = listener.redirect == DEFAULT_PORTS["https"]
        lines.append(f'redirect = "https{"" if usual else f":{listener.redirect}"}"')
    if listener.tls is not None:
        lines.append(f"tls = {_listener_tls(listener.tls)}")
    return lines


def _listener_tls(tls: ListenerTls) -> str:
    certificates = ", ".join(_files(one) for one in tls.certificates)
    parts = [f"certificates = [{certificates}]", f"profile = {toml_string(tls.profile)}",
             f"client_certificates = {toml_string(tls.client_certificates)}"]
    if tls.client_ca:
        parts.append(f"client_ca = {toml_string(tls.client_ca)}")
    return f"{{ {', '.join(parts)} }}"


def _upstream_tls(tls: UpstreamTls) -> str:
    parts = [f"verify = {_boolean(tls.verify)}"]
    if tls.ca:
        parts.append(f"ca = {toml_string(tls.ca)}")
    if tls.server_name:
        parts.append(f"server_name = {toml_string(tls.server_name)}")
    if tls.certificate is not None:
        parts.append(f"certificate = {_files(tls.certificate)}")
    return f"{{ {', '.join(parts)} }}"


def _files(one: CertificateFiles) -> str:
    return f"{{ chain = {toml_string(one.chain)}, key = {toml_string(one.key)} }}"


def _route(route: Route, upstream: Upstream) -> list[str]:
    kind = upstream.kind
    lines = ["[[route]]", f"name = {toml_string(route.name)}"]
    if route.hosts:
        lines.append(f"host = {_list(route.hosts)}")
    lines.append(f"path = {toml_string(route.path)}")
    if route.headers:
        lines.append(f"header = {_pairs(route.headers)}")
    if route.query:
        lines.append(f"query = {_pairs(route.query)}")
    if route.subprotocol:
        lines.append(f"subprotocol = {toml_string(route.subprotocol)}")
    if route.sni:
        lines.append(f"sni = {_list(route.sni)}")
    if route.origins is not None:
        lines.append(f"origins = {_list(origin_text(one) for one in route.origins)}")
    lines.append(f"upstream = {toml_string(route.upstream)}")
    if route.rewrite:
        lines.append(f"rewrite = {toml_string(route.rewrite)}")
    if route.send_host:
        lines.append(f"send_host = {toml_string(route.send_host)}")
    if route.set_fields:
        lines.append(f"set_fields = {_pairs(route.set_fields)}")
    if route.remove_fields:
        lines.append(f"remove_fields = {_list(route.remove_fields)}")
    if kind == "tcp":
        lines.append(f"subprotocols = {_list(route.subprotocols)}")
        lines.append(f"frames = {toml_string(route.frames)}")
    lines += [f"{key} = {value}" for key, value in effective(route, upstream)]
    return lines


def _upstream(upstream: Upstream) -> list[str]:
    entries = [
        toml_string(one.url) if one.weight == 1
        else f"{{ url = {toml_string(one.url)}, weight = {one.weight} }}"
        for one in upstream.entries
    ]
    bare = upstream.name.replace("-", "").replace("_", "").isalnum()
    lines = [
        f"[upstream.{upstream.name if bare else toml_string(upstream.name)}]",
        f"endpoints = [{', '.join(entries)}]",
        f"balance = {toml_string(upstream.balance)}",
    ]
    if upstream.balance == "hash":
        lines.append(f"hash_on = {toml_string(upstream.hash_on)}")
    if upstream.source_addresses:
        lines.append(f"source_addresses = {_list(upstream.source_addresses)}")
    if any(one.has_name for one in upstream.entries):
        lines.append(f'resolve = "{written_duration(upstream.resolve)}"')
    if upstream.tls is not None:
        lines.append(f"tls = {_upstream_tls(upstream.tls)}")
    return lines


def _value(key: str, value: float) -> str:
    if value == 0:
        return '"off"'
    if key in _SIZES:
        return f'"{written_size(int(value))}"'
    if key in _RATES:
        return f'"{written_rate(value)}"'
    return str(value) if key in _COUNTS else f'"{written_duration(value)}"'


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _list(texts: "Iterator[str] | tuple[str, ...]") -> str:
    return f"[{', '.join(toml_string(text) for text in texts)}]"


def _pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    return "{ " + ", ".join(f"{toml_string(k)} = {toml_string(v)}" for k, v in pairs) + " }"
