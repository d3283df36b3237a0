"""Whether io_uring can be had here, and if not, why: a step that failed and its likely cause.

Laws of this file:

- Nothing is concluded from a kernel's version: what is used is asked for, and tried on a ring.
- A trial costs well under a millisecond, so it is made at each start.
- The sentence is for operators: what failed, why most likely, what to do.
"""

import contextlib
import errno
import resource
import select
import socket
import time
from pathlib import Path

from gateway import frames
from gateway.engine.ring_completions import RingCompletions
from gateway.engine.ring_relays import RingRelays
from gateway.engine.uring_ring import Ring, RingRefused
from gateway.events import RelayRules

TRIAL_S = 0.5                      # how long a completion of the trial is waited for
TRIAL_SIZES = 8, 16                # entries and completions of its rings
TRIAL_BUFFERS = 4
TRIAL_RULES = RelayRules(heartbeat=0.0, write_timeout=0.0)
SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")
STATUS = Path("/proc/self/status")
CALLS = "io_uring_setup, io_uring_enter and io_uring_register"
SECCOMP_FILTER = "2"               # of the field Seccomp: a filter of system calls is in force


def refusal() -> str:
    """Why the engine on io_uring cannot run here, as a sentence; "" if it can."""
    try:
        _try_ring()
    except RingRefused as refused:
        return explain_error(refused)
    return ""


def is_restricted() -> bool:
    """Whether the kernel holds a ring to what the gateway uses, where a ring can be had."""
    ring = Ring(*TRIAL_SIZES)
    ring.close()
    return ring.is_restricted


def refusal_of_completions() -> str:
    """Why relays cannot move by completions, where a ring can be had; "" if they can."""
    try:
        _try_completions()
    except RingRefused as refused:
        return explain_error(refused)
    return ""


def explain_error(error: RingRefused | OSError) -> str:
    """What to say of an engine on io_uring that could not be made."""
    if isinstance(error, RingRefused):
        return explain(error.step, error.number)
    return explain("the engine's sockets", error.errno or 0)


def explain(step: str, number: int) -> str:
    """What to say of a step that failed with this errno (0: the kernel lacks something)."""
    if not number:
        return f"this kernel's io_uring has no {step}"
    name = errno.errorcode.get(number, str(number))
    cause = ""
    if number in (errno.EPERM, errno.EACCES):
        cause = _forbidden_by()
    elif number == errno.ENOSYS:
        cause = (
            "a seccomp filter hides it, as Podman's default profile does; a profile must allow "
            + CALLS
            if _seccomp() == SECCOMP_FILTER
            else "the kernel was built without it, or is no Linux (gVisor)"
        )
    elif number == errno.ENOMEM:
        cause = f"too little memory may be locked: {_limit(resource.RLIMIT_MEMLOCK)} (ulimit -l)"
    elif number in (errno.EMFILE, errno.ENFILE):
        cause = f"no free descriptor: {_limit(resource.RLIMIT_NOFILE)} (ulimit -n)"
    return f"{step}: {name}" + (f", {cause}" if cause else "")


def _forbidden_by() -> str:
    """Who answers EPERM: the administrator by sysctl, or a container's profile."""
    disabled = "0"
    with contextlib.suppress(OSError):          # no such file before 6.6
        disabled = SYSCTL.read_text(encoding="ascii").strip()
    if disabled == "1":
        return (
            "kernel.io_uring_disabled is 1: only root, and who is in the group of "
            "kernel.io_uring_group, may use it"
        )
    if disabled != "0":
        return f"kernel.io_uring_disabled is {disabled}: nobody may use it until that is 0"
    if _seccomp() == SECCOMP_FILTER:
        return (
            "a seccomp filter forbids it, as Docker's and containerd's default profiles do; a "
            f"profile must allow {CALLS}"
        )
    return "forbidden by a security module or a sandbox"


def _seccomp() -> str:
    """The field of /proc/self/status; "" if it cannot be read."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("Seccomp:"):
                return line.split()[1]
    return ""


def _limit(which: int) -> str:
    soft = resource.getrlimit(which)[0]
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


def _try_ring() -> None:
    """Do on a small ring what the engine will do on its own. Raises `RingRefused`."""
    entries, completions = TRIAL_SIZES
    ring = RingRelays(entries=entries, completions=completions)
    with contextlib.ExitStack() as at_end:
        at_end.callback(ring.close)
        at_end.callback(ring.close_ring)
        try:
            one, far = socket.socketpair()
            at_end.callback(one.close)
            at_end.callback(far.close)
        except OSError as error:
            raise RingRefused("a pair of sockets for the trial", error.errno or 0) from error
        fd = one.fileno()
        ring.register(fd, select.EPOLLIN)
        _expect(ring, None, "trial: a poll before there is anything")
        far.send(b"x")
        _expect(ring, (fd, select.EPOLLIN), "trial: a poll")
        _expect(ring, (fd, select.EPOLLIN), "trial: a poll, armed again")
        one.recv(1)
        _expect(ring, None, "trial: a poll after all was read")
        ring.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        _expect(ring, (fd, select.EPOLLOUT), "trial: a poll that was changed")
        ring.modify(fd, 0)
        _expect(ring, None, "trial: a poll for nothing")
        ring.unregister(fd)
        far.close()
        _expect(ring, None, "trial: a poll that was cancelled")
        if ring.close_ring():
            raise RingRefused("trial: cancelling", errno.EBUSY)


def _expect(ring: RingRelays, found: tuple[int, int] | None, step: str) -> None:
    """The next wait finds exactly this; raises `RingRefused`."""
    now = time.monotonic()
    try:
        ring.wait(now + TRIAL_S if found else now)
    except OSError as error:
        raise RingRefused(step, error.errno or 0) from error
    if ring.poll() != ([found] if found else []):
        raise RingRefused(step, errno.EIO)


def _try_completions() -> None:
    """Two relays share the buffers of a small ring; one is cut while its receives are armed.
    Raises `RingRefused`."""
    entries, completions = TRIAL_SIZES
    ring = RingCompletions(entries=entries, completions=completions, buffers=TRIAL_BUFFERS)
    with contextlib.ExitStack() as at_end:
        at_end.callback(ring.close)
        at_end.callback(ring.close_ring)
        at_end.callback(ring.abandon_all)
        ways = []
        for number in range(2):
            pairs = [socket.socketpair() for _ in range(2)]
            for near, far in pairs:
                near.setblocking(False)
                far.setblocking(False)
                at_end.callback(far.close)
            ring.begin(
                2 * number, 2 * number + 1, pairs[0][0].detach(), pairs[1][0].detach(),
                TRIAL_RULES, [], (b"", b""), (False, False),
            )
            ways.append((pairs[0][1], pairs[1][1]))
        for turn in range(2 * TRIAL_BUFFERS):
            for number, (client, upstream) in enumerate(ways):
                data = frames.build_frame(
                    frames.BINARY, bytes([turn, number]) * 100, b"\1\2\3\4"
                )
                client.send(data)
                _expect_bytes(ring, upstream, data)
        ring.cut(0)
        _expect_bytes(ring, ways[0][1], b"")
        ring.abandon_all()
        if ring.close_ring() or ring.ring.buffers is None or ring.ring.buffers.out:
            raise RingRefused("trial: a receive that was cancelled", errno.EBUSY)


def _expect_bytes(ring: RingCompletions, sock: socket.socket, data: bytes) -> None:
    """These come before long; raises `RingRefused`."""
    limit = time.monotonic() + TRIAL_S
    found = b""
    while time.monotonic() < limit:
        ring.wait(time.monotonic())
        ring.take_ended()
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            piece = sock.recv(4096)
            found += piece
            if not piece or len(found) >= len(data):
                break
    if found != data:
        raise RingRefused("trial: receiving and sending", errno.EIO)
