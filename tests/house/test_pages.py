"""README and docs agree with the code: every command, link, file, key, default, state and cause.

A page that tells what is no longer so is worse than none, so each statement that can be compared
is compared. The names of the tests say what.
"""

import dataclasses
import re
import tomllib
from pathlib import Path

import click
import pytest

from draw_states import drawn
from gateway import __version__
from gateway.control import config
from gateway.control.cli import command
from gateway.control.config_routes import BECOMES
from gateway.control.config_schema import (
    GATEWAY,
    LISTENER,
    LISTENER_TLS,
    ROUTE,
    UPSTREAM,
    UPSTREAM_TLS,
    Section,
)
from gateway.events import Cause
from gateway.protocol.life import State
from gateway.protocol.session import TRANSITIONS
from gateway.table import (
    GatewaySettings,
    Listener,
    ListenerTls,
    Route,
    Upstream,
    UpstreamTls,
)

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*"))]
TABLES: dict[str, tuple[Section, type]] = {
    "`[gateway]`": (GATEWAY, GatewaySettings),
    "`[[listener]]`": (LISTENER, Listener),
    "`[[route]]`": (ROUTE, Route),
    "`[upstream.NAME]`": (UPSTREAM, Upstream),
    "TLS toward clients": (LISTENER_TLS, ListenerTls),
    "TLS toward upstreams": (UPSTREAM_TLS, UpstreamTls),
}
UNIT = {"s": 1, "m": 60, "KiB": 1024, "MiB": 1024**2}


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page that have this language, which may be none."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, without heads and rulers."""
    found = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in found if not cells[0].startswith(("---", "key"))]


def section(page: str, title: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    return read(page).partition(f"\n## {title}\n")[2].partition("\n## ")[0]


# --- Commands, links, files ---------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_make_commands_exist(page: str) -> None:
    """Every `make X` that a page names is a target."""
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", read(page), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_gateway_commands_exist(page: str) -> None:
    """Every command line of the gateway in a block has known commands and options."""
    assert isinstance(command, click.Group)
    for block in blocks(page, ""):
        for line in block.splitlines():
            words = line.partition("  #")[0].split()
            if not words or words[0] != "gateway":
                continue
            chosen: click.Command = command
            if words[1] in command.commands:
                chosen = command.commands[words[1]]
            else:
                assert words[1].startswith("--"), line
            known = {name for one in chosen.params for name in one.opts} | {"--help"}
            assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file that is there, and a heading in it."""
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = ((ROOT / page).parent / name) if name else ROOT / page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 _-]", "", one.lower()).replace(" ", "-") for one in titles}
            assert heading in slugs, target


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    """Every source file and folder of tests in backticks is there."""
    for name in re.findall(r"`([a-z0-9_/]+\.(?:py|html|toml|md))`", read(page)):
        places = [ROOT / name, ROOT / "gateway" / name, ROOT / "routes" / name]
        assert name == "routes.toml" or any(place.exists() for place in places), name
    for name in re.findall(r"`(tests/[a-z_]+)`", read(page)):
        assert list((ROOT / name).glob("*.py")), name


def test_the_changelog_begins_with_the_version() -> None:
    """The first heading of the second level is the program's version."""
    titles = re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
    assert titles[0] == __version__


# --- Tables of routes ---------------------------------------------------------------------------


EXAMPLES = [(page, number, text) for page in PAGES for number, text in
            enumerate(blocks(page, "toml"), 1)]


@pytest.mark.parametrize(("page", "number", "text"), EXAMPLES)
def test_examples_are_right(page: str, number: int, text: str, tmp_path: Path) -> None:
    """Every route table on a page passes the check, and without a warning."""
    path = tmp_path / "routes.toml"
    path.write_text(text)
    table, warnings = config.check(path)
    assert table.routes
    assert warnings == []


@pytest.mark.parametrize("title", TABLES)
def test_every_key_is_explained(title: str) -> None:
    """The keys of docs/route-table.md are those that the reader knows, each once."""
    keys = [cells[0].strip("`") for cells in rows(section("docs/route-table.md", title))]
    assert sorted(keys) == sorted(TABLES[title][0].keys)


@pytest.mark.parametrize("title", TABLES)
def test_defaults_are_true(title: str) -> None:
    """A default in docs/route-table.md, read as a table's reader does, is the resolved one."""
    keys, resolved = TABLES[title][0].keys, TABLES[title][1]
    defaults = {field.name: field.default for field in dataclasses.fields(resolved)}
    compared = 0
    for cell, shown, *_ in rows(section("docs/route-table.md", title)):
        key = cell.strip("`")
        if shown.startswith("`"):
            written = tomllib.loads(f"value = {shown.strip('`')}")["value"]
            value = keys[key](written, key) if written not in ([], {}) else ()
            assert value == defaults[BECOMES.get(key, key)], key
            compared += 1
    assert compared


@pytest.mark.parametrize("page", PAGES)
def test_values_beside_keys_are_the_defaults(page: str) -> None:
    """Where prose says "`head_timeout`, 10 s" or "`drain` (30 s)", that is the default."""
    defaults = {
        field.name: field.default
        for resolved in (GatewaySettings, Listener, Route)
        for field in dataclasses.fields(resolved)
    }
    pattern = r"`([a-z_]+)`(?:, | \()(\d+) (s|m|KiB|MiB)\b"
    for key, number, unit in re.findall(pattern, read(page)):
        assert defaults[key] == int(number) * UNIT[unit], (key, number, unit)


# --- The life of one connection -----------------------------------------------------------------


def test_the_states_are_drawn_from_the_table() -> None:
    """Drawing and table are those of TRANSITIONS; `make format` writes them."""
    page = read("docs/life-of-a-connection.md")
    assert drawn(page) == page
    assert drawn(page.replace("PASSING --> LINGERING", "PASSING --> HEAD")) == page


def test_the_drawing_shows_all_that_changes_a_state() -> None:
    """Read back, it is what the table of transitions has, and each state is in it."""
    (drawing,) = blocks("docs/life-of-a-connection.md", "mermaid")
    lines = re.findall(r"^    (\w+) --> (\w+): (.*)$", drawing, re.MULTILINE)
    arrows = {
        (before, after): set(re.findall(r"[A-Z]\w+", label)) for before, after, label in lines
    }
    assert {name for arrow in arrows for name in arrow} == {state.name for state in State}
    for (state, _, event), way in TRANSITIONS.items():
        for after in way.to:
            assert after is state or event.__name__ in arrows[state.name, after.name]


def test_every_cause_has_its_row() -> None:
    """The table of ends has each cause that a record may have, once."""
    text = section("docs/life-of-a-connection.md", "How things end")
    causes = [re.match(r"`([a-z ]+)`", cells[0]) for cells in rows(text)]
    assert sorted(found[1] for found in causes if found) == sorted(one.value for one in Cause)
