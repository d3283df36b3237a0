"""Readers: from one value as an operator wrote it to the value that the gateway obeys.

A reader takes what TOML gave and the place where it stands. It gives the resolved value, or raises
`TableError` (or `TableErrors`, where a list or table has several mistakes) with what was found,
what was expected, and the remedy. Readers know one value each: what two keys mean together is
decided in `config_routes.py`. Addresses and URLs are in `config_addresses.py`.

Why readers and no schema library: a schema library stops at the first mistake, knows types but no
remedies, and would still leave every duration, size, address and pattern to be read by hand.
"""

import datetime
import difflib
import re
from collections.abc import Callable
from typing import TypeVar

from gateway.errors import TableError, TableErrors
from gateway.routing import quoted

T = TypeVar("T")
Reader = Callable[[object, str], T]

YEAR_MS = 365 * 24 * 3600 * 1000         # the longest time that anything may take
UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
COUNT_MAX = 1_000_000_000
RATE_MAX = 1_000_000

_DURATION = re.compile(r"([0-9]{1,15})(ms|s|m|h)")
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB|TiB)")
_LOOSE_SIZE = re.compile(r"\s*([0-9]{1,15})\s*([kKmMgGtT]?)i?[bB]?\s*")
_RATE = re.compile(r"([0-9]{1,15})/(s|m)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 5.6.2
_FIELD_VALUE = re.compile(r"(?:[!-~](?:[ -~\t]*[!-~])?)?")  # RFC 9110 5.5, without obs-text

_HOP_BY_HOP = frozenset({  # RFC 9110 7.6.1, and the old ones that it names
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})
_MADE_HERE = frozenset({
    "client-cert", "client-cert-chain", "content-length", "forwarded", "x-client-cert-names",
    "x-client-cert-subject", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
})


def described(value: object) -> str:
    """What a message says was found."""
    match value:
        case str():
            return quoted(value)
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value) if abs(value) < 10**18 else "a very large number"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "a table" if value else "an empty table"
        case datetime.datetime() | datetime.date() | datetime.time():
            return "a date or time"
    raise AssertionError(f"TOML has no {type(value)}")


def string(value: object, place: str, expected: str, remedy: str = "put it in quotes") -> str:
    """The string that `value` is; else TableError with `expected`."""
    if not isinstance(value, str):
        raise TableError(place, described(value), expected, remedy)
    return value


def boolean(value: object, place: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TableError(place, described(value), "true or false", "write it without quotes")
    return value


def choice(*options: str, usual: str) -> Reader[str]:
    """One of these words; `usual` is what holds without the key."""
    listed = ", ".join(f'"{option}"' for option in options[:-1]) + f' or "{options[-1]}"'

    def read(value: object, place: str) -> str:
        text = string(value, place, listed)
        if text not in options:
            near = difflib.get_close_matches(text[:64], options, 1)
            remedy = f'did you mean "{near[0]}"?' if near else (
                f'write one of these, or leave the key out, which is "{usual}"')
            raise TableError(place, quoted(text), listed, remedy)
        return text

    return read


def duration(*, off: bool = False, zero: bool = False) -> Reader[float]:
    """Seconds, from 1 ms to 365 days; 0.0 for "off", where it may be off, or for `zero`."""
    expected = 'a duration such as "500ms", "5s", "2m" or "1h"' + (', or "off"' if off else "")

    def read(value: object, place: str) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            known = 0 < value < 10**9
            remedy = f'write "{value}s" if seconds are meant' if known else "put it in quotes"
            raise TableError(place, described(value), expected, remedy)
        text = string(value, place, expected)
        if text == "off":
            if off:
                return 0.0
            raise TableError(place, '"off"', expected, "it always has a limit; write a long one")
        found = _DURATION.fullmatch(text)
        if found is None:
            remedy = "write a whole number and ms, s, m or h, without a space"
            raise TableError(place, quoted(text), expected, remedy)
        milliseconds = int(found[1]) * UNITS_MS[found[2]]
        if milliseconds == 0 and not zero:
            remedy = 'write "off"' if off else 'the shortest is "1ms"'
            raise TableError(place, quoted(text), expected, remedy)
        if milliseconds > YEAR_MS:
            remedy = 'the longest is "8760h"' + (', beyond it write "off"' if off else "")
            raise TableError(place, quoted(text), expected, remedy)
        return milliseconds / 1000

    return read


def size(low: int, high: int, *, off: bool = False) -> Reader[int]:
    """Bytes, within bounds; 0 for "off", where it may be off."""
    expected = 'a size such as "64KiB" or "1MiB"' + (', or "off"' if off else "")
    bounds = f'it is at least "{written_size(low)}" and at most "{written_size(high)}"'
    none = 'write "off"' if off else bounds     # for 0, which means "no limit" elsewhere

    def read(value: object, place: str) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            remedy = none
            if value:
                known = 0 < value < 2**50
                remedy = f'write "{written_size(value)}"' if known else "add a unit"
            raise TableError(place, described(value), expected, remedy)
        text = string(value, place, expected)
        if text == "off":
            if off:
                return 0
            raise TableError(place, '"off"', expected, "it always has a limit; write a large one")
        found = _SIZE.fullmatch(text)
        if found is None:
            loose = _LOOSE_SIZE.fullmatch(text)
            remedy = "write a whole number and B, KiB, MiB or GiB"
            if loose is not None:
                meant = f"{loose[1]}{loose[2].upper()}{'iB' if loose[2] else 'B'}"
                remedy = f'write "{meant}"' if int(loose[1]) else none
            raise TableError(place, quoted(text), expected, remedy)
        octets = int(found[1]) * UNITS[found[2]]
        if not low <= octets <= high:
            raise TableError(place, quoted(text), expected, bounds if octets else none)
        return octets

    return read


def written_size(octets: int) -> str:
    """A size as a table has it, in the largest unit that fits."""
    unit = max((u for u in UNITS if octets % UNITS[u] == 0), key=lambda u: UNITS[u])
    return f"{octets // UNITS[unit]}{unit}"


def written_duration(seconds: float) -> str:
    """A duration as a table has it, in the largest unit that fits."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    unit = max((u for u in UNITS_MS if milliseconds % UNITS_MS[u] == 0), key=lambda u: UNITS_MS[u])
    return f"{milliseconds // UNITS_MS[unit]}{unit}"


def count(low: int = 1, high: int = COUNT_MAX, *, off: bool = False) -> Reader[int]:
    """A whole number within bounds; 0 for "off", where it may be off."""
    expected = f"a whole number from {low} to {high}" + (', or "off"' if off else "")

    def read(value: object, place: str) -> int:
        if off and value == "off":
            return 0
        if not isinstance(value, int) or isinstance(value, bool):
            plain = isinstance(value, str) and value.isascii() and value.isdigit()
            raise TableError(place, described(value), expected,
                             "write it without quotes" if plain else "write a plain number")
        if not low <= value <= high:
            remedy = f"write {high} or less" if value > high else f"write {low} or more"
            if off:
                remedy = 'write "off" where there is to be no limit'
            raise TableError(place, described(value), expected, remedy)
        return value

    return read


def rate(value: object, place: str) -> float:
    """How often a second, from once a minute; 0.0 for "off"."""
    expected = 'a rate such as "500/s" or "30/m", or "off"'
    if isinstance(value, int) and not isinstance(value, bool):
        remedy = f'write "{value}/s" if a second is meant' if 0 < value <= RATE_MAX else (
            "put it in quotes")
        raise TableError(place, described(value), expected, remedy)
    text = string(value, place, expected)
    if text == "off":
        return 0.0
    found = _RATE.fullmatch(text)
    if found is None:
        raise TableError(place, quoted(text), expected,
                         "write a whole number and /s or /m, without a space")
    times, seconds = int(found[1]), 60 if found[2] == "m" else 1
    if times == 0:
        raise TableError(place, quoted(text), expected, 'write "off" where there is no limit')
    if times > RATE_MAX * seconds:
        raise TableError(place, quoted(text), expected, f'the highest is "{RATE_MAX}/s"')
    return times / seconds


def written_rate(times: float) -> str:
    """A rate as a table has it: by the second, where that is a whole number."""
    return f"{round(times)}/s" if times == round(times) else f"{round(times * 60)}/m"


def count_or_auto(high: int) -> Reader[int]:
    """A whole number from 1; 0 for "auto"."""
    read_count = count(1, high)

    def read(value: object, place: str) -> int:
        if value == "auto":
            return 0
        try:
            return read_count(value, place)
        except TableError as error:
            raise TableError(
                error.place, error.found, f'"auto", or {error.expected}', error.remedy
            ) from error

    return read


def close_code(value: object, place: str) -> int:
    """A close code that may be sent (RFC 6455 7.4: never 1004, 1005, 1006 and 1015)."""
    expected = "a close code that may be sent: 1000 to 1003, 1007 to 1014, 3000 to 4999"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TableError(place, described(value), expected, "write it as a number")
    if not (1000 <= value <= 1003 or 1007 <= value <= 1014 or 3000 <= value <= 4999):
        raise TableError(place, described(value), expected, "4000 to 4999 are yours to choose")
    return value


def close_reason(value: object, place: str) -> str:
    """A Close frame's reason: 125 bytes less 2 for the code (RFC 6455 5.5, 5.5.1)."""
    expected = "a text of at most 123 bytes"
    text = string(value, place, expected)
    length = len(text.encode())
    if length > 123:
        raise TableError(place, f"{length} bytes", expected, "shorten it")
    return text


def unix_mode(value: object, place: str) -> int:
    """The permissions of a Unix socket's file. A number is refused: 660 and 0o660 look alike."""
    expected = 'permissions such as "0660"'
    text = string(value, place, expected, "write the octal digits in quotes")
    if re.fullmatch(r"0?[0-7]{3}", text) is None:
        raise TableError(place, quoted(text), expected, "write three octal digits behind a 0")
    return int(text, 8)


def name(value: object, place: str) -> str:
    """A name that is fit for logs, labels and TOML keys."""
    expected = 'a name of at most 64 letters, digits, ".", "_" and "-"'
    text = string(value, place, expected)
    if _NAME.fullmatch(text) is None:
        remedy = "begin it with a letter or a digit" if text else "give it one"
        fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
        raise TableError(place, quoted(text), expected, f'write "{fitting}"' if fitting else remedy)
    return text


def token(value: object, place: str) -> str:
    """A token as subprotocols are."""
    expected = 'a subprotocol such as "mqtt"'
    text = string(value, place, expected)
    if _TOKEN.fullmatch(text) is None:
        remedy = 'it has letters, digits and "-", "_", ".", without spaces and commas'
        raise TableError(place, quoted(text), expected, remedy)
    return text


def list_of(read: Reader[T], expected: str, *, empty: bool = False) -> Reader[tuple[T, ...]]:
    """A list, each entry read by `read` and none of them twice. Raises for all bad entries."""

    def read_list(value: object, place: str) -> tuple[T, ...]:
        if not isinstance(value, list):
            remedy = f"write [{quoted(value)}]" if isinstance(value, str) else "put it in brackets"
            raise TableError(place, described(value), expected, remedy)
        if not value and not empty:
            raise TableError(place, "an empty list", expected, "leave the key out, or fill it")
        entries: dict[T, None] = {}
        errors: list[TableError] = []
        for number, one in enumerate(value, 1):
            where = f"{place}, entry {number}"
            try:
                entry = read(one, where)
                if entry in entries:
                    shown = quoted(one if isinstance(one, str) else str(entry))
                    raise TableError(where, f"{shown} again", "each entry once",
                                     "remove one of them")
                entries[entry] = None
            except TableError as error:
                errors.append(error)
            except TableErrors as several:
                errors.extend(several.errors)
        if errors:
            raise TableErrors(errors)
        return tuple(entries)

    return read_list


def one_or_list(read: Reader[T], expected: str) -> Reader[tuple[T, ...]]:
    """One entry or a list of them."""
    read_list = list_of(read, expected)

    def read_either(value: object, place: str) -> tuple[T, ...]:
        return (read(value, place),) if isinstance(value, str) else read_list(value, place)

    return read_either


def pairs_of(
    read_name: Reader[str], read_value: Reader[str], expected: str, *, cased: bool = False
) -> Reader[tuple[tuple[str, str], ...]]:
    """A table of names and texts. Raises for all bad entries, and for a name that comes twice.

    Names are compared without case, unless they are `cased`.
    """

    def read(value: object, place: str) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise TableError(place, described(value), expected, "write it in braces")
        pairs: dict[str, tuple[str, str]] = {}
        errors: list[TableError] = []
        for key, text in value.items():
            where = f"{place}, {key if _NAME.fullmatch(key) else quoted(key)}"
            try:
                one = read_name(key, where)
                same = one if cased else one.lower()
                if same in pairs:
                    raise TableError(where, "the name again", "each name once, in any case",
                                     "remove one of them")
                pairs[same] = (one, read_value(text, where))
            except TableError as error:
                errors.append(error)
        if errors:
            raise TableErrors(errors)
        return tuple(pairs.values())

    return read


# --- Fields ------------------------------------------------------------------------------------

KEYS_OF_FIELDS = {"host": "host", "sec-websocket-protocol": "subprotocol"}


def field_name(value: object, place: str) -> str:
    """A field's name."""
    expected = 'a field name such as "X-Tenant"'
    text = string(value, place, expected)
    if _TOKEN.fullmatch(text) is None:
        raise TableError(place, quoted(text), expected, "it has letters, digits and dashes")
    return text


def field_value(value: object, place: str) -> str:
    """A field's value: never a line break, so that no field can be smuggled in."""
    expected = "a field value: printable ASCII, without spaces at either end"
    text = string(value, place, expected)
    if _FIELD_VALUE.fullmatch(text) is None:
        raise TableError(place, quoted(text), expected, "encode or remove what is not")
    return text


def matched_field(value: object, place: str) -> str:
    """A field that a route may match by, in lower case; some have keys of their own."""
    text = field_name(value, place)
    if text.lower() in KEYS_OF_FIELDS:
        raise TableError(place, quoted(text), "a field without a key of its own",
                         f"use the key {KEYS_OF_FIELDS[text.lower()]}")
    return text.lower()


def parameter(value: object, place: str) -> str:
    """A parameter of a query, decoded."""
    text = string(value, place, "a query parameter")
    if not text:
        raise TableError(place, '""', "a query parameter", "give it a name")
    return text


def text_value(value: object, place: str) -> str:
    """A query parameter's value, decoded."""
    return string(value, place, 'a text, or "*" for any')


def set_field(value: object, place: str) -> str:
    """A field that a route may set: none that the gateway makes itself."""
    text = field_name(value, place)
    expected = "a field that the gateway does not make itself"
    lower = text.lower()
    if lower == "host":
        raise TableError(place, quoted(text), expected, "use the key send_host")
    if lower.startswith("sec-websocket-"):
        remedy = "the handshake is the gateway's; subprotocols and extensions pass by themselves"
        raise TableError(place, quoted(text), expected, remedy)
    if lower in _HOP_BY_HOP:
        remedy = "it never passes from one connection to the next"
        raise TableError(place, quoted(text), expected, remedy)
    if lower in _MADE_HERE:
        raise TableError(place, quoted(text), expected, "the gateway sets it as it must be")
    return text


def removed_field(value: object, place: str) -> str:
    """A field that a route may remove, in lower case: none that the gateway makes itself."""
    return set_field(value, place).lower()
