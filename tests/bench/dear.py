"""Makes system calls dear: `python dear.py STEPS COMMAND...` runs a program under a filter.

The filter is seccomp's, as containers have them, only that it allows everything, after STEPS
instructions. It asks for an argument of the call, since the kernel remembers the answers of
filters that look at the number alone. How much more a call takes under it is written to standard
error. What io_uring does inside the
kernel passes no filter.
"""

import ctypes
import os
import struct
import sys
import time
from collections.abc import Sequence

STEPS_MAX = 4090                   # of one filter: the kernel takes 4,096 instructions
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, ADD, RETURN = 0x20, 0x04, 0x06
AT_ARGUMENT = 16                   # in struct seccomp_data: the first argument's lower half
ALLOW = 0x7FFF0000
ROUNDS, CALLS = 40, 500


def slow_down(steps: int) -> None:
    """Each system call of this process and its children takes this many steps more, for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = [(LOAD_WORD, 0, 0, AT_ARGUMENT), *[(ADD, 0, 0, 1)] * steps, (RETURN, 0, 0, ALLOW)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text))
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program)),
    ):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def call_ns() -> float:
    """Nanoseconds of `getppid`, Python's share included: the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        for _ in range(CALLS):
            os.getppid()
        best = min(best, (time.perf_counter_ns() - began) / CALLS)
    return best


def main(words: Sequence[str]) -> None:
    """See the module's docstring."""
    before = call_ns()
    steps = int(words[0])
    while steps > 0:
        slow_down(min(steps, STEPS_MAX))
        steps -= STEPS_MAX
    print(f"a system call takes {call_ns() - before:.0f} ns more", file=sys.stderr)
    os.execvp(words[1], list(words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
