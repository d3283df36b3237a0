"""Makes a line fit: what is too long loses the ends of its longest texts.

A pipe takes `PIPE_BUF` bytes whole or not at all (pipe(7)); of a longer write it may take a part,
and what another process writes comes in between. Workers and their supervisor share one pipe, so a
line has to stay below that, and a client can send a path of 16 KiB, of which each byte may be
written as six.

Laws of this file:

- Pure. A line that fits is never touched.
- Of what is cut as much is left as there is room for, the same for all that are cut; `MARK` behind
  it says so. Nothing is cut inside a character, or inside what one is escaped to.
- One pass over a text, and only as far as it is kept: strangers choose its length.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import TypeVar

MARK = "..."

_Value = TypeVar("_Value")
Width = Callable[[str], int]             # bytes of one character as it is written


def fitted(
    fields: Mapping[str, _Value | str], over: int, size: Width, width: Width
) -> dict[str, _Value | str]:
    """The same fields, with texts that are written in fewer bytes, by `over` together (or as much
    as they have). `size` has the bytes of a text as it is written."""
    sizes = {key: size(value) for key, value in fields.items() if isinstance(value, str)}
    most = _most(sorted(sizes.values(), reverse=True), over)
    room = most - size("") - len(MARK)   # without what stands around each text
    return {
        key: begin(value, room, width) + MARK
        if isinstance(value, str) and sizes[key] > most else value
        for key, value in fields.items()
    }


def begin(text: str, room: int, width: Width) -> str:
    """As much of its beginning as is written in `room` bytes."""
    used = 0
    for place, character in enumerate(text):
        used += width(character)
        if used > room:
            return text[:place]
    return text


def _most(sizes: list[int], over: int) -> int:
    """What the longest may have, so that together they lose enough; the others have less anyway.
    `sizes` begin with the largest."""
    followings = [*sizes, 0][1:]
    for count, (total, following) in enumerate(
        zip(accumulate(sizes), followings, strict=True), 1
    ):
        most = (total - over) // count
        if most >= following:
            return most
    return 0
