"""Which worker accepts: one that has clearly more than the others waits until it has not.

All workers share each listening socket, and the kernel wakes whom it likes, so the balance is kept
by those who hold back. What counts is what is open and not what is new, since WebSockets stay.

- A worker holds while it has more connections than the mean of all and `ALLOWANCE` of it, at
  least `ALLOWANCE_MIN`.
- It holds while it has as many connections as it may have sessions, and another one that accepts
  has fewer. Where nobody has, all accept, and say with 503 that there is no room.

Pure: counts come in, a word goes out. There is always somebody who accepts: not all can have more
than the mean, and who is full holds only for one that does not hold.

Connections count, and not the sessions that they become: those who were accepted and have not said
yet what they want would else all come to one that has a single place left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALLOWANCE = 1 / 8     # of the mean
ALLOWANCE_MIN = 16    # connections: what comes and goes at small numbers is no imbalance


@dataclass(frozen=True, slots=True)
class Load:
    """What one worker has now."""

    connections: int
    held: bool = False


def allowed(mean: float) -> float:
    """As many connections as a worker may have where the mean is this."""
    return mean + max(mean * ALLOWANCE, ALLOWANCE_MIN)


def holds(own: Load, others: Sequence[Load], max_sessions: int) -> bool:
    """True while this worker is to accept nobody. `others` are those that serve."""
    if not others:
        return False
    total = own.connections + sum(one.connections for one in others)
    if own.connections > allowed(total / (1 + len(others))):
        return True
    return own.connections >= max_sessions and any(
        one.connections < max_sessions and not one.held for one in others
    )
