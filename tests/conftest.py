"""What all tests share: how hypothesis behaves, and what is skipped on which machine.

CI skips nothing for want of a program. Elsewhere tests of what is not compiled are skipped; and
everywhere those that need io_uring, where the kernel or a container forbids it. That is asked with
a plain system call: a fault in the gateway's own use of it must not look like a refusal.
"""

import ctypes
import errno
import os
import re
from collections.abc import Generator, Iterator
from functools import cache

import pytest
from hypothesis import settings

from gateway.control.parts import PARTS, RELAY, URING

IO_URING_SETUP = 425                   # the number of the system call, the same everywhere
RING_FILES = {"test_uring.py", "test_uring_splice.py"}
COMPILED = {"compiled"} | {module for part in PARTS for module in part.modules}
NOT_FOUND = re.compile(
    r"(?:No module named 'gateway\.engine\.|cannot import name ')(\w+)'"
)
IN_CI = os.environ.get("CI", "") not in ("", "0", "false")

# A busy machine is no failure, so no deadline. CI repeats the same examples, so that it fails
# because of a change and not by chance; elsewhere each run looks for new ones. Either way a
# failure prints what replays it.
settings.register_profile("gateway", deadline=None, print_blob=True, derandomize=IN_CI)
settings.load_profile("gateway")


MISSING = [part for part in PARTS if part.why_missing()]
# Its conftest imports all engines: no hook of this file could skip it.
collect_ignore = ["engine"] if MISSING and not IN_CI else []


@pytest.fixture(scope="session", autouse=True)
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No gateway of a test has its control socket where one of this machine would have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_DIRECTORY", str(tmp_path_factory.mktemp("run")))
        yield


def pytest_report_header() -> list[str]:
    """What is left out, since it is not compiled here."""
    return [
        f"{part.name} is {part.why_missing()}: tests/engine is left out (Debian: "
        f"{' '.join(part.packages)})"
        for part in MISSING
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs io_uring where it cannot be had."""
    for item in items:
        if needs_ring(item) and (reason := why_no_ring()):
            item.add_marker(pytest.mark.skip(reason=reason))


def needs_ring(item: pytest.Item) -> bool:
    """True if a test runs on the engine on io_uring."""
    marked = item.get_closest_marker("ring") is not None
    parameters = getattr(item, "callspec", None)
    return marked or item.path.name in RING_FILES or (
        parameters is not None
        and any(str(value).startswith("io_uring") for value in parameters.params.values())
    )


@cache
def why_no_ring() -> str:
    """Why io_uring cannot be had here, whatever the gateway does; "" if it can."""
    if missing := URING.why_missing():
        return f"the engine on io_uring is {missing} (Debian: {' '.join(URING.packages)})"
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(IO_URING_SETUP, 1, ctypes.create_string_buffer(120))
    if descriptor >= 0:
        os.close(descriptor)
        return ""
    number = ctypes.get_errno()
    forbidden = number in (errno.EPERM, errno.ENOSYS)
    return f"io_uring is forbidden here: {errno.errorcode[number]}" if forbidden else ""


@pytest.fixture(scope="session")
def ring_refused() -> str:
    """Why io_uring cannot be had here, for tests that then do without; "" if it can."""
    return why_no_ring()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Files of tests that import what was not built are skipped; in CI they are errors."""
    report = yield
    if report.failed and not IN_CI:
        named = NOT_FOUND.search(str(report.longrepr))
        if named and named[1] in COMPILED:
            reason = f"{named[1]} is not built (Debian: {' '.join(RELAY.packages)})"
            report.outcome = "skipped"
            report.longrepr = (report.nodeid, 0, reason)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that is skipped because something is not installed has failed.

    Skips for other reasons stay: a kernel without IPv6, an engine that is refused here.
    """
    report = yield
    if IN_CI and is_missing(report):
        report.outcome = "failed"
        report.longrepr = f"in CI everything must be there, but: {reason_of(report)}"
    return report


def reason_of(report: pytest.TestReport) -> str:
    """Why a test was skipped, or an empty string if it was not."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return ""


def is_missing(report: pytest.TestReport) -> bool:
    """True if a test was skipped since a program or package is not installed."""
    return any(words in reason_of(report) for words in ("not installed", "(Debian: "))
