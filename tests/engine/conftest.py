"""The rig: each test that asks for one runs on every engine, and nothing may be left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.rig import RIGS, Rig, rig_of
from engine.tls_ends import SecureEnds
from gateway.engine.uv import UvEngine


@pytest.fixture(scope="session", autouse=True)
def libuv_is_warm() -> None:
    """With the first loop libuv opens a pipe for all of them, and keeps it."""
    UvEngine().stop()


@pytest.fixture(autouse=True)
def created_equals_freed() -> Iterator[None]:
    """What compiled parts make in a test, they free in it; counted in a debug build."""
    try:
        from gateway.engine import ledger  # noqa: PLC0415 - not there where nothing is compiled
    except ImportError:
        yield
        return
    yield
    assert ledger.not_freed() == {}


@pytest.fixture(params=list(RIGS))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """An engine and its far ends. After the test links, timers and queued bytes are zero, and no
    descriptor is open that was not open before."""
    with rig_of(str(request.param), tmp_path) as made:
        yield made


@pytest.fixture(params=[*RIGS, *(f"{kind}-tls" for kind in RIGS)])
def any_rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """As `rig`, and each kind once more with TLS on all links."""
    kind, dash, _ = str(request.param).partition("-tls")
    with rig_of(kind, tmp_path) as made:
        if dash:
            made.ends = SecureEnds(made)
            made.is_calm = False            # far ends send when they are moved, and not at once
        yield made
