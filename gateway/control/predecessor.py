"""The program that this one has replaced, as long as it drains: how many sessions it still has.

Its control socket and its admin address are ours by now, so that nobody but us can be asked. It
hands over the memory that its workers count in; we only read it.

Laws of this file:

- It is our parent, since it has started us: while it is, the kernel says so. What is left of it
  afterwards counts no more, however it ended.
- Another version may count elsewhere in its memory; then the number is not known.
"""

import contextlib
import os

from gateway.control.board import Board
from gateway.control.shared import SharedMemory
from gateway.control.sockets import Told


class Predecessor:
    """What is known of it. `close` in the end."""

    def __init__(self, told: Told | None) -> None:
        """`told` is what it has handed over; None where there was none."""
        self._process = told.process if told is not None else -1
        self._memory: SharedMemory | None = None
        if told is not None and told.memory >= 0:
            with contextlib.suppress(ValueError, OSError):
                self._memory = SharedMemory(told.memory)

    @property
    def process(self) -> int:
        """Its process id; 0 where it has ended, or never was."""
        if self._process == os.getppid():
            return self._process
        self.close()
        return 0

    @property
    def sessions(self) -> int | None:
        """How many it has open; None where that is not known."""
        if not self.process:
            return 0
        return None if self._memory is None else Board(self._memory).totals()["sessions"]

    def close(self) -> None:
        """Give its memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
