"""Where io_uring is refused: real filters, limits and sysctls, and what is said of each.

Each runs in a process of its own, since most of it cannot be undone.
"""

import errno
import json
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control.choice import Choice, choose, make
from gateway.engine import uring_setup
from gateway.engine.ring_completions import RingCompletions
from gateway.engine.ring_relays import RingRelays
from gateway.engine.uring_ring import RingRefused
from gateway.errors import EngineRefused

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")
NOBODY = 65534
SQES = 0x10000000                  # IORING_OFF_SQES: where a ring's entries are mapped
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become nobody")

CHOOSE = """
import json, sys
from gateway.control.choice import choose, make
from gateway.errors import EngineRefused
said = []
for wanted in ("auto", "io_uring"):
    try:
        choice = choose(wanted)
        engine = make(choice.engine, choice.form)
        engine.stop()
        said.append([engine.name, choice.reason])
    except EngineRefused as error:
        said.append([error.exit_code, str(error)])
print(json.dumps(said))
"""


def chosen(before: str) -> list[tuple[str | int, str]]:
    """What "auto" and "io_uring" come to after this code: engine and reason, or exit code and
    message."""
    return [tuple(each) for each in json.loads(python(before + CHOOSE))]


def python(code: str) -> str:
    """What this code prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{FOLDER}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_refused(before: str, *words: str) -> None:
    """Either will do: uvloop runs. It is demanded: refused. Both say these words."""
    auto, demanded = chosen(before)
    assert auto[0] == "uvloop"
    assert demanded[0] == 5
    for word in words:
        assert word in auto[1]
        assert word in demanded[1]


@pytest.mark.ring
def test_here_it_can_be_had() -> None:
    """Or the other tests of this engine mean nothing."""
    assert uring_setup.refusal() == ""
    auto, demanded = chosen("")
    assert auto[0] == "uvloop"
    assert "it can be had here" in auto[1]
    assert demanded[0] == "io_uring"
    assert "the table demands it; relays by readiness: a system call takes" in demanded[1]
    assert uring_setup.refusal_of_completions() == ""


@pytest.mark.ring
@pytest.mark.parametrize(("cost", "form"), [(499, "readiness"), (500, "completions")])
def test_the_form_of_relays_is_measured(
    cost: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what a system call costs; the start line has the figure."""
    monkeypatch.setattr("gateway.engine.uring_ring.call_cost_ns", lambda: cost)
    choice = choose("io_uring")
    assert form_of(choice) == form
    assert f"relays by {form}: a system call takes {cost} ns" in choice.reason


@pytest.mark.ring
def test_auto_says_where_io_uring_would_be_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is uvloop all the same: an operator decides that."""
    monkeypatch.setattr("gateway.engine.uring_ring.call_cost_ns", lambda: 1000)
    choice = choose("auto")
    assert choice.engine == "uvloop"
    assert "a system call takes 1000 ns" in choice.reason
    assert 'engine = "io_uring" would cost less here' in choice.reason


@pytest.mark.ring
@pytest.mark.parametrize("form", ["completions", "readiness"])
def test_the_form_of_relays_can_be_demanded(form: str) -> None:
    """Whatever a system call costs."""
    choice = choose("io_uring", form)
    assert form_of(choice) == form
    assert choice.reason == f"the table demands it, and relays by {form}"


def form_of(choice: Choice) -> str:
    """How relays move in the engine that is made of it."""
    engine = make(choice.engine, choice.form)
    engine.stop()
    form: str = engine.form  # type: ignore[attr-defined]
    return form


@pytest.mark.ring
def test_where_buffers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness will do, unless completions are demanded; then the remedy is said."""
    monkeypatch.setattr("gateway.engine.uring_ring.call_cost_ns", lambda: 1000)
    monkeypatch.setattr(uring_setup, "RingCompletions", refused)
    reason = choose("io_uring").reason
    assert "relays by readiness: no completions: registering buffers: ENOMEM" in reason
    assert "ulimit -l" in reason
    with pytest.raises(EngineRefused, match=r'ENOMEM.*ring = "readiness" can be had'):
        choose("io_uring", "completions")


def refused(**_: int) -> RingCompletions:
    """A ring whose buffers the kernel does not take."""
    raise RingRefused("registering buffers", errno.ENOMEM)


@pytest.mark.ring
def test_completions_that_lose_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial looks at every byte."""
    made = RingCompletions

    class Lazy:
        def __init__(self, **sizes: int) -> None:
            self.loop = made(**sizes)
            self.loop.withhold(True)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.loop, name)

    monkeypatch.setattr(uring_setup, "RingCompletions", Lazy)
    assert "trial: receiving and sending: EIO" in uring_setup.refusal_of_completions()


@pytest.mark.parametrize(
    ("name", "word"), [("EPERM", "Docker"), ("ENOSYS", "Podman")]
)
@pytest.mark.parametrize(
    ("calls", "step"),
    [("425, 426, 427", "io_uring_setup: "), ("427", "io_uring_register: ")],
    ids=["all", "register"],
)
def test_a_seccomp_filter_leads_to_uvloop(name: str, word: str, calls: str, step: str) -> None:
    """Docker and containerd answer EPERM, Podman ENOSYS; a profile that was written by hand may
    have forgotten one of the three calls. What must be allowed is said."""
    before = f"import errno, seccomp; seccomp.deny(errno.{name}, ({calls},))\n"
    assert_refused(before, step + name, "seccomp", word,
                   "a profile must allow io_uring_setup, io_uring_enter and io_uring_register")


@pytest.mark.ring
def test_a_filter_that_forgot_one_call() -> None:
    """Rings can be had and do nothing. It is said before libuv, which asks for a ring of its own,
    ends the process with the same errno."""
    before = "import errno, seccomp; seccomp.deny(errno.EPERM, (426,))\n"
    done = python(before + "from gateway.engine import uring_setup; print(uring_setup.refusal())")
    assert done.startswith("trial: a poll before there is anything: EPERM, a seccomp filter")


@pytest.mark.ring
@pytest.mark.parametrize(("cost", "words"), [
    (100, "io_uring would save nothing here: a system call takes 100 ns"),
    (900, "io_uring would save CPU here: a system call takes 900 ns"),
])
def test_nobody_is_sent_to_allow_it_for_nothing(
    cost: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is refused, "auto" says what it would be good for."""
    monkeypatch.setattr("gateway.engine.uring_ring.call_cost_ns", lambda: cost)
    monkeypatch.setattr("gateway.control.choice.why_no_uring", lambda: "io_uring_setup: EPERM")
    assert f"no io_uring: io_uring_setup: EPERM; {words}" in choose("auto").reason


@pytest.mark.ring
def test_without_a_free_descriptor() -> None:
    """The limit is named. It is raised again for uvloop."""
    before = """
import os, resource, gateway.control.choice as choice
import gateway.engine.uring_setup, gateway.engine.uv, gateway.engine.uring
really = choice.why_no_uring
def why():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        return really()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
choice.why_no_uring = why
"""
    assert_refused(before, "EMFILE", "ulimit -n")


def become_nobody(*first: str) -> str:
    """Code: import all (nobody may not read the tree), do this, and lose root."""
    return "\n".join(
        [
            "import encodings.ascii, json, os, resource",
            "import gateway.control.choice, gateway.engine.uring_setup",
            "import gateway.engine.uring, gateway.engine.uv",
            *first,
            f"os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)",
            "",
        ]
    )


@pytest.mark.ring
@AS_ROOT
def test_without_memory_that_may_be_locked() -> None:
    """Rings count against it for users without CAP_IPC_LOCK, on kernels that count."""
    auto, demanded = chosen(
        become_nobody("resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))")
    )
    if demanded[0] == "io_uring":
        pytest.skip("this kernel does not count rings")
    assert demanded[0] == 5
    for word in ("ENOMEM", "ulimit -l"):
        assert word in auto[1]


@pytest.fixture
def forbidden_by_sysctl() -> Iterator[None]:
    """1: for users without CAP_SYS_ADMIN. Others on this machine go on."""
    try:
        before = SYSCTL.read_text()
        SYSCTL.write_text("1")
    except OSError:
        pytest.skip("kernel.io_uring_disabled cannot be set here")
    yield
    SYSCTL.write_text(before)


@AS_ROOT
@pytest.mark.usefixtures("forbidden_by_sysctl")
def test_the_administrator_forbids_it() -> None:
    """The sysctl is named, with its value."""
    assert_refused(become_nobody(), "EPERM", "kernel.io_uring_disabled is 1: only root")


@pytest.mark.ring
@pytest.mark.parametrize(
    ("place", "value"), [(0, 0), (1, 1 << 2)], ids=["another opcode", "a link"]
)
def test_the_kernel_holds_a_ring_to_what_it_uses(place: int, value: int) -> None:
    """Whoever gets at its memory, by a bug, finds that the kernel refuses anything else. Here a
    poll becomes a NOP, or is linked, before it is submitted: it fails, and who polled looks for
    himself. (Unrestricted, both would pass, and nothing would be found.)"""
    near, far = socket.socketpair()
    ring = RingRelays(entries=8, completions=16)
    assert ring.ring.is_restricted
    assert uring_setup.is_restricted()
    with near, far, mmap.mmap(ring.ring.fd, mmap.PAGESIZE, offset=SQES) as entries:
        ring.register(near.fileno(), select.EPOLLIN)
        entries[place] = value
        ring.wait(time.monotonic())
        assert [fd for fd, mask in ring.poll() if mask & select.EPOLLERR] == [near.fileno()]
        ring.unregister(near.fileno())
        assert ring.close_ring() == 0
    ring.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "this kernel's io_uring has no"),
        (errno.EPERM, "EPERM, forbidden by"),
        (errno.ENOSYS, "ENOSYS, the kernel was built without it"),
        (errno.ENOMEM, "ulimit -l"),
        (errno.ENFILE, "ulimit -n"),
        (errno.EIO, "EIO"),
        (4095, "4095"),
    ],
)
def test_each_cause_is_a_sentence(number: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is known but the errno."""
    monkeypatch.setattr(uring_setup, "_seccomp", lambda: "0")
    assert words in uring_setup.explain("feature NODROP" if not number else "a step", number)


@pytest.mark.ring
def test_a_ring_that_loses_completions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial moves bytes, and looks at what came."""
    made = RingRelays

    class Deaf:
        def __init__(self, **sizes: int) -> None:
            self.ring = made(**sizes)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ring, name)

        def poll(self) -> list[tuple[int, int]]:
            return []

    monkeypatch.setattr(uring_setup, "RingRelays", Deaf)
    assert "trial: a poll: EIO" in uring_setup.refusal()
