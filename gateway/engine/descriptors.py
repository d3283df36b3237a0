"""How many descriptors the process may have, and what the engine leaves for whom.

Laws of this file:

- Whoever is accepted will want a second descriptor, for the upstream. A client that was let in and
  cannot be connected on must be refused; one that waits in the backlog is served when others go.
  So a client is accepted where there are descriptors for all that have come, and two for itself.
- No system call for an accept: what is open is counted once, and from then on by who opens it.
"""

import os
import resource
from pathlib import Path

# Left for what nobody counts: the loop's own, a third one for `builtin:echo`.
SPARE = 8
PIPES_MAX = 32                 # of one process: two descriptors each, and 256 KiB in the kernel
WITHOUT_PROC = 32              # in use, where nobody tells: a guess
FOR_A_PIPE = 64                # descriptors of the process for each pipe: a 32nd of them


def limit() -> int:
    """What the process may have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii"))
    return soft


def pipes_max() -> int:
    """Pipes that splices may take: with few descriptors they are better copied."""
    return min(PIPES_MAX, limit() // FOR_A_PIPE)


def free_for_links() -> int:
    """Descriptors that links may yet take."""
    try:
        in_use = len(os.listdir("/proc/self/fd")) - 1   # less the one of this very look
    except OSError:
        in_use = WITHOUT_PROC
    return limit() - in_use - 2 * pipes_max() - SPARE
