"""A real seccomp filter that denies io_uring, as container runtimes' default profiles do.

    python seccomp.py EPERM|ENOSYS COMMAND...

runs the command under it. The filter is classic BPF, in force for this process and its children
for ever: whoever imports this calls `deny`, or `install` with a program of its own, in a child
only.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

Step = tuple[int, int, int, int]           # code, jump if true, jump if false, constant

IO_URING_CALLS = (425, 426, 427)           # setup, enter, register: the same number everywhere
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
AT_NUMBER, AT_ARCHITECTURE = 0, 4          # in struct seccomp_data
ALLOW, ANSWER_ERRNO = 0x7FFF0000, 0x00050000


def _program(number: int, calls: Sequence[int]) -> list[Step]:
    """Answer these calls with this errno, and allow all others."""
    steps: list[Step] = [
        (LOAD_WORD, 0, 0, AT_ARCHITECTURE),
        (JUMP_IF_EQUAL, 0, len(calls) + 1, ARCHITECTURES[platform.machine()]),
        (LOAD_WORD, 0, 0, AT_NUMBER),
    ]
    for place, call in enumerate(calls):
        steps.append((JUMP_IF_EQUAL, len(calls) - place, 0, call))
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ANSWER_ERRNO | number)]
    return steps


def deny(number: int, calls: Sequence[int] = IO_URING_CALLS) -> None:
    """From here on these calls fail with this errno."""
    install(_program(number, calls))


def install(steps: Sequence[Step]) -> None:
    """Have each system call of this process and its children pass this program, for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program)),
    ):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """See the module's docstring."""
    deny(getattr(errno, sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
