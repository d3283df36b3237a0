"""Makes system calls dear: `python dear.py STEPS COMMAND...` runs a program under a filter.

The filter is seccomp's, as containers have them, only that it allows everything, after STEPS
instructions. It asks for an argument of the call, since the kernel remembers the answers of
filters that look at the number alone. How much more a call takes under it is written to standard
error. What io_uring does inside the kernel passes no filter.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))   # as pytest's `pythonpath` has it

from engine.seccomp import ALLOW, LOAD_WORD, RETURN, install
from gateway.control.doctor import call_cost_ns

STEPS_MAX = 4090                   # of one filter: the kernel takes 4,096 instructions
ADD = 0x04
AT_ARGUMENT = 16                   # in struct seccomp_data: the first argument's lower half


def slow_down(steps: int) -> None:
    """Each system call of this process and its children takes this many steps more, for ever."""
    first, last = (LOAD_WORD, 0, 0, AT_ARGUMENT), (RETURN, 0, 0, ALLOW)
    install([first, *[(ADD, 0, 0, 1)] * steps, last])


def main(words: Sequence[str]) -> None:
    """See the module's docstring."""
    before = call_cost_ns()
    steps = int(words[0])
    while steps > 0:
        slow_down(min(steps, STEPS_MAX))
        steps -= STEPS_MAX
    print(f"a system call takes {call_cost_ns() - before} ns more", file=sys.stderr)
    os.execvp(words[1], list(words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
