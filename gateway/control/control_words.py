"""What the commands and a running gateway say to each other: JSON lines over a Unix socket.

One object a line, both ways; the answers to several requests come in their order. A request is
named by its key "do", an answer by "is". Every word of both stands in docs/control.md.

Laws of this file:

- Whoever may open the socket's file may do everything: it has the mode 0600, and nothing else
  guards it. So it never lies on a network, and a request is limited only to protect the gateway
  from its operator's mistakes.
- A line that is no request is answered with an error, and its connection goes on.
- `requests` is the one list of what can be asked; keys that it does not have are refused.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUEST_MAX = 16 * 1024       # bytes of a line; an id, a code and a reason need a few hundred
ANSWER_MAX = 16 * 1024**2     # bytes of a line; thousands of sessions
SESSIONS_USUAL = 100          # listed where nobody says how many
SESSIONS_MAX = 10_000

NAME = "control.sock"

Message = dict[str, Any]

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class BadRequest(ValueError):
    """A line that is no request; the text says why, and what would be one."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that a request may have: its type, its default, its bounds where it is a number."""

    kind: type
    default: object
    low: int = 0
    high: int = 0


# The requests, and what each may say. A key without a default (...) must be there.
REQUESTS: Mapping[str, Mapping[str, Key]] = {
    "status": {},
    "sessions": {
        "route": Key(str, ""),
        "limit": Key(int, SESSIONS_USUAL, 1, SESSIONS_MAX),
    },
    "close": {
        "session": Key(str, ...),
        "code": Key(int, 1000, 1000, 4999),
        "reason": Key(str, ""),
    },
    "drain": {"wait": Key(bool, default=False)},
    "reload": {"plan": Key(bool, default=False)},
}


def encode(message: Message) -> bytes:
    """One line. ASCII, so that no byte of it can be a newline but the last."""
    return _to_json(message).encode("ascii") + b"\n"


def read_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """What is asked, and with which values, defaults filled in. Raises `BadRequest`."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequest("this line is no JSON; a request is one object on one line") from error
    if not isinstance(message, dict):
        raise BadRequest('a request is an object such as {"do":"status"}')
    name = message.pop("do", None)
    keys = REQUESTS.get(name) if isinstance(name, str) else None
    if keys is None:
        raise BadRequest(f'the key "do" is one of: {", ".join(REQUESTS)}')
    for key in message:
        if key not in keys:
            known = ", ".join(keys) or "none"
            raise BadRequest(f"{name} has no key {_shown(key)}; its keys: {known}")
    return name, {key: _value(name, key, rule, message) for key, rule in keys.items()}


def _value(name: str, key: str, rule: Key, message: Message) -> object:
    if key not in message:
        if rule.default is ...:
            raise BadRequest(f"{name} needs the key {_shown(key)}")
        return rule.default
    value = message[key]
    if type(value) is not rule.kind:
        kinds = {str: "a text", int: "a whole number", bool: "true or false"}
        raise BadRequest(f"{name}, {key}: it is {kinds[rule.kind]}")
    if isinstance(value, str) and not _is_unicode(value):
        raise BadRequest(f"{name}, {key}: half of a surrogate pair is no character (RFC 8259 8.2)")
    if isinstance(value, int) and rule.high and not rule.low <= value <= rule.high:
        raise BadRequest(f"{name}, {key}: it is from {rule.low} to {rule.high}")
    return value


def _is_unicode(text: str) -> bool:
    """False for what JSON can write and UTF-8 cannot: a surrogate that is alone."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(key: str) -> str:
    return json.dumps(key[:64])


# --- The place --------------------------------------------------------------------------------


def usual_places(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where the socket is where nobody says it, the best first: the folder that systemd made for
    this service (RuntimeDirectory=, systemd.exec(5)), that of this user, that of the machine."""
    places = []
    runtime = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if runtime:
        places.append(Path(runtime))
    user = environment.get("XDG_RUNTIME_DIR", "")
    if user:
        places.append(Path(user) / "gateway")
    places.append(Path("/run/gateway"))
    return [place / NAME for place in places]
