"""Draw the states of a session into docs/life-of-a-connection.md, from the table of transitions.

    .venv/bin/python tools/draw_states.py     (or: make format)

Between the two markers stand a drawing in Mermaid, which has what changes a state, and a table,
which has all that may happen in one. Whoever changes the table of transitions runs this, and a
test in tests/house fails until then.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from gateway.events import Side
from gateway.protocol.life import State
from gateway.protocol.session import ALWAYS, ON_DRAIN, ON_KILL, TRANSITIONS, Way

PAGE = Path(__file__).resolve().parent.parent / "docs" / "life-of-a-connection.md"
BEGIN = "<!-- drawn by tools/draw_states.py -->\n"
END = "<!-- as far as here -->\n"


def drawn(text: str) -> str:
    """The page with a true drawing. Raises AssertionError if the markers are not there, once."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    made = f"{BEGIN}\n```mermaid\n{drawing()}```\n\n{table()}\n{END}"
    text, count = pattern.subn(lambda _: made, text)
    assert count == 1, f"{count} places to draw, expected one"
    return text


def drawing() -> str:
    """Mermaid's text: an arrow for each two states that something leads from and to."""
    arrows: dict[tuple[State, State], dict[str, list[str]]] = {}
    for before, after, who, what in changes():
        arrows.setdefault((before, after), {}).setdefault(who, []).append(what)
    lines = ["stateDiagram-v2", f"    [*] --> {State.SECURING.name}: with TLS",
             f"    [*] --> {State.HEAD.name}: without"]
    for (before, after), causes in arrows.items():
        words = [f"{who} {', '.join(what)}".strip() for who, what in causes.items()]
        lines.append(f"    {before.name} --> {after.name}: {' / '.join(words)}")
    lines.append(f"    {State.OVER.name} --> [*]")
    return "".join(f"{line}\n" for line in lines)


def changes() -> Iterator[tuple[State, State, str, str]]:
    """Each (state, another state, who, what) of the tables, in their order.

    A client's `Closed`, which may come in every state, is drawn where it is expected alone.
    """
    for before in State:
        for (state, side, event), way in TRANSITIONS.items():
            if state is before:
                yield from _leave(before, way, side.name.lower(), event.__name__)
        if before is State.CLOSING:
            for (side, event), way in ALWAYS.items():
                yield from _leave(before, way, side.name.lower(), event.__name__)
        for name, told in (("drain", ON_DRAIN), ("kill", ON_KILL)):
            if before in told:
                yield from _leave(before, told[before], "", name)


def _leave(before: State, way: Way, who: str, what: str) -> Iterator[tuple[State, State, str, str]]:
    yield from ((before, after, who, what) for after in way.to if after is not before)


def table() -> str:
    """A row for each state: what each of the links may report."""
    lines = [
        "| state | what the client's link may report | what the upstream's link may report |",
        "| --- | --- | --- |",
    ]
    for state in State:
        cells = [
            ", ".join(
                f"`{event.__name__}`" for (where, who, event) in TRANSITIONS
                if where is state and who is side
            )
            for side in Side
        ]
        lines.append(f"| `{state.name}` | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
