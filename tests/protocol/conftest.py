"""The stage on which conversations with a session are played; see playbook.py."""

from collections.abc import Iterator

import pytest

from protocol.playbook import Stage


@pytest.fixture
def begin() -> Iterator[Stage]:
    """Makes plays; afterwards each must have been played to its end."""
    stage = Stage()
    yield stage
    stage.check()
