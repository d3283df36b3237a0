"""The target for `gateway.control.config`: a route table's text.

Laws: only `TableErrors` is raised, each mistake with its place, what was found and what was
expected, on one line; a table that loads is one that its own rendering loads again.
"""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from gateway.control import config
from gateway.errors import TableErrors
from gateway.table import Table


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """One for the whole run, gone at its end."""
    return tempfile.TemporaryDirectory(prefix="tables-")


def _load(text: bytes) -> Table | None:
    """The table, or None where it is refused as it should be."""
    path = Path(_folder().name) / "routes.toml"
    path.write_bytes(text)
    try:
        return config.load(path)
    except TableErrors as refusal:
        for error in refusal.errors:
            assert error.place
            assert error.found
            assert error.expected
            assert "\n" not in str(error)
            assert str(error).isprintable(), ascii(str(error))
    return None


def _placeless(table: Table) -> Table:
    """Without the places that only messages need."""
    routes = tuple(replace(route, place="") for route in table.routes)
    return replace(table, routes=routes)


def fuzz_table(data: bytes) -> None:
    """Load a text; what loads is rendered and loaded again."""
    table = _load(data)
    if table is None:
        return
    text = config.render(table)
    again = _load(text.encode())
    assert again is not None, text
    assert _placeless(again) == _placeless(table), text
