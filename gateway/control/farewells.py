"""In which order, and when, the sessions of a worker are told goodbye in a drain.

Clients that are told all at once come back all at once. So the farewells are spread evenly over the
time that there is, less what a client may take to answer its Close. Idle sessions come first: they
lose the least, and those that are busy have the most time to come to an end of what they do.
"""

from collections.abc import Iterable
from typing import TypeVar

_Key = TypeVar("_Key")


def spread(
    sessions: Iterable[tuple[float, _Key]], at: float, span: float
) -> list[tuple[float, _Key]]:
    """Of (seconds idle, who): (when, who), in order. The first at once, all within `span`."""
    ordered = sorted(sessions, key=lambda one: -one[0])
    step = max(0.0, span) / max(1, len(ordered))
    return [(at + number * step, who) for number, (_, who) in enumerate(ordered)]
