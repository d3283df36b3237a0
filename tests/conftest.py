"""What all tests share: how hypothesis behaves, and that CI skips nothing for want of a program."""

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

IN_CI = os.environ.get("CI", "") not in ("", "0", "false")

# A busy machine is no failure, so no deadline. CI repeats the same examples, so that it fails
# because of a change and not by chance; elsewhere each run looks for new ones. Either way a
# failure prints what replays it.
settings.register_profile("gateway", deadline=None, print_blob=True, derandomize=IN_CI)
settings.load_profile("gateway")


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
