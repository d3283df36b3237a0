"""A worker that has begun, for the tests that play its engine and its sessions."""

from collections.abc import Iterator

import pytest

from control.stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    made.start()
    yield made
    made.close()
